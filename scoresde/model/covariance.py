"""The covariance of a stream of rows, and the map that whitens them.

x = mean + scale ∘ (R·z) gives z the covariance I. scale is the standard deviation of each column,
and R = C^{1/2} the symmetric square root of their correlations C: of all whitening maps, its z is
nearest to the standardized columns (Kessy, Lewin & Strimmer 2018, ZCA-cor).

A covariance of few rows is shrunk, C ← (1 − ρ)·C + ρ·I. Each fifth of the rows in turn is left
out, and ρ is the one by which the Gaussian of the others gives it the highest likelihood. This
needs sums only, so that the rows are read once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.user_warnings import warn

FOLDS = 5

SHRINKAGES = (0.0, *(10.0 ** (0.25 * k) for k in range(-24, 0)), 1.0)
"""Values of ρ that are tried."""

ENOUGH_ROWS = 50
"""With this many rows a column, nothing is shrunk, unless no correlations at all were better."""

FEWEST_ROWS = 2 * FOLDS
"""Fewer show no correlations."""

SMALLEST_VARIANCE = 1e-13
"""Of a direction, in units of the variance of a column: float64 can't resolve less."""


class Covariance:
    """Means and products of rows (B, d) in float64, for each fold of the rows."""

    def __init__(self) -> None:
        self.count = 0
        self.resolution = 0.0
        self._counts = [0] * FOLDS
        self._unit = torch.zeros(0, device="cpu")

    def add(self, part: Tensor) -> None:
        """Count in further rows."""
        if not len(part):
            return
        if part.is_floating_point():
            self.resolution = max(self.resolution, torch.finfo(part.dtype).eps)
        part = part.cpu().double()
        if not self.count:
            self._begin(part)
        part = part - self._reference
        self._grow(part.abs().amax(0))
        part = part / torch.where(self._unit > 0, self._unit, 1)
        first = self.count % FOLDS
        for fold in range(FOLDS):
            rows = part[(fold - first) % FOLDS :: FOLDS]
            if len(rows):
                self._add_to(fold, rows)
        self.count += len(part)

    def _begin(self, part: Tensor) -> None:
        d = part.shape[1]
        self._reference = part.mean(0)
        self._unit = part.new_zeros(d)
        self._means = part.new_zeros(FOLDS, d)
        self._products = part.new_zeros(FOLDS, d, d)

    def _grow(self, reach: Tensor) -> None:
        """Choose units, powers of two, in which no square overflows or vanishes."""
        unit = torch.where(reach > 0, torch.exp2(torch.log2(reach).floor()), 0)
        unit = torch.maximum(unit, self._unit)
        ratio = torch.where(unit > 0, self._unit / unit, 1)
        if bool((ratio != 1).any()):
            self._means *= ratio
            self._products *= ratio * ratio.unsqueeze(1)
        self._unit = unit

    def _add_to(self, fold: int, rows: Tensor) -> None:
        """Chan, Golub & LeVeque's update of one fold's mean and sum of products."""
        old = self._counts[fold]
        total = old + len(rows)
        mean = rows.mean(0)
        rest = rows - mean
        gap = mean - self._means[fold]
        self._products[fold].addmm_(rest.T, rest).addr_(gap, gap, alpha=old * len(rows) / total)
        self._means[fold] += gap * (len(rows) / total)
        self._counts[fold] = total

    def correlations(self, columns: Tensor) -> tuple[Tensor, Tensor, float]:
        """Standard deviations and correlations of these columns, and by which ρ to shrink them."""
        counts = torch.tensor(self._counts, dtype=torch.float64, device="cpu")
        means = self._means[:, columns]
        products = self._products[:, columns][:, :, columns]
        _, product = _pooled(counts, means, products)
        std = (product.diagonal() / self.count).sqrt()
        scale = std * std.unsqueeze(1)
        few = self.count < ENOUGH_ROWS * len(columns)
        share = _best_shrinkage(counts, means / std, products / scale, few)
        return self._unit[columns] * std, product / (self.count * scale), share

    def root(self, varies: Tensor) -> Tensor:
        """R (d, d) in float64; rows and columns of constants are those of the identity."""
        index = varies.nonzero()[:, 0]
        std, correlation, share = self.correlations(index)
        largest = (self._reference.abs()[index] + self._unit[index]) / std
        floor = max(SMALLEST_VARIANCE, float((self.resolution * largest).amax()) ** 2)
        whole = torch.eye(len(varies), dtype=torch.float64, device="cpu")
        found = _square_root((1 - share) * correlation, share, floor, index.tolist())
        whole[index.unsqueeze(1), index] = found
        return whole


def _pooled(counts: Tensor, means: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and sum of products about it, of several sets of rows."""
    mean = (counts @ means) / counts.sum()
    gaps = means - mean
    return mean, products.sum(0) + (gaps.T * counts) @ gaps


def _best_shrinkage(counts: Tensor, means: Tensor, products: Tensor, few: bool) -> float:
    """The ρ of the highest likelihood of folds that were left out; 1 for a handful of rows.

    If there are not few rows, it is 0 where that is better than 1.
    """
    if counts.sum() < FEWEST_ROWS:
        return 1.0
    shares = torch.tensor(SHRINKAGES, dtype=torch.float64, device="cpu")
    lost = torch.zeros_like(shares)
    for fold in range(len(counts)):
        others = [other for other in range(len(counts)) if other != fold]
        mean, product = _pooled(counts[others], means[others], products[others])
        value, axes = torch.linalg.eigh(product / counts[others].sum())
        gap = means[fold] - mean
        seen = products[fold] + counts[fold] * torch.outer(gap, gap)
        along = ((axes.T @ seen) * axes.T).sum(1)
        variance = (1 - shares).unsqueeze(1) * value.clamp_min(0) + shares.unsqueeze(1)
        variance = variance.clamp_min(SMALLEST_VARIANCE)
        lost += (counts[fold] * variance.log() + along / variance).sum(1)
    if not few and bool(lost[0] <= lost[-1]):
        return 0.0
    return float(shares[lost.argmin()])


def _square_root(correlation: Tensor, share: float, floor: float, columns: list[int]) -> Tensor:
    """(C + ρ·I)^{1/2}; warn where columns determine one another to rounding."""
    value, axes = torch.linalg.eigh(correlation)
    value = value + share
    flat = value < floor
    if bool(flat.any()):
        part = axes[:, flat].square().sum(1)
        involved = [c for c, p in zip(columns, part.tolist(), strict=True) if p > 0.01]
        warn(
            f"features {involved} determine one another, to rounding: log p is that of data "
            "rounded there, and grows with their precision; leave some of them out"
        )
    root: Tensor = (axes * value.clamp_min(floor).sqrt()) @ axes.T
    return root
