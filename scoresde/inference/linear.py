"""The best linear-Gaussian posterior of u: a weighted ridge regression on features of x."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.normal_scores import interpolated
from . import spread

PENALTIES = torch.logspace(-6, 6, 25, dtype=torch.float64)
"""Of the ridge regression, per row."""
MOST_FEATURES = 2000
"""Twice the numbers in one observation, beyond which no regression is made."""
ROUNDS = 4
"""Of regression and spread."""
MOST_WEIGHT = 1000.0
"""Of a row in the regression, in units of the median."""


@dataclass(frozen=True)
class Line:
    """u = intercept + f·slope ± s(x), where s is 1 without a law, and its degrees of freedom."""

    slope: Tensor
    intercept: Tensor
    law: dict[str, Tensor]
    freedom: float


def measured(x: Tensor, f: Tensor, u: Tensor, varies: bool) -> Line:
    """Regression and spread of u (N, D) in turns, of x (N, K) and features; s is 1 or may vary."""
    weight = torch.ones_like(u)
    law: dict[str, Tensor] = {}
    for _ in range(ROUNDS):
        slope, intercept, freedom = regression(f, u, weight)
        found = spread.measured(x, f, u - intercept - f @ slope) if varies else {}
        if not found:
            break
        law = found
        weight = torch.exp(-spread.log_variance(x, f, law))
    return Line(slope, intercept, law, freedom)


def standardized(x: Tensor, f: Tensor, u: Tensor, line: Line) -> tuple[Tensor, Tensor]:
    """(u − its center)/s, and −log s, both (N, D)."""
    left = u - line.intercept - f @ line.slope
    if not line.law:
        return left, torch.zeros_like(left)
    log_variance = spread.log_variance(x, f, line.law)
    return left * torch.exp(-0.5 * log_variance), -0.5 * log_variance


def with_ranks(f: Tensor, observed: int) -> Tensor:
    """f(x) of so many numbers with their ranks, of unit variance; none without normal scores."""
    ranks = torch.special.ndtr(f[..., observed:]) - 0.5
    return torch.cat([f, math.sqrt(12) * ranks], -1)


def features(x: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """f(x), (…, 2K) or (…, K), of x (…, K)."""
    linear = (x - numbers["mean"]) / numbers["scale"]
    levels = numbers["levels"]
    if not len(levels):
        return linear
    score = interpolated(x, numbers["knots"], levels)
    score = torch.where(numbers["scale"].isinf(), 0.0, score)
    return torch.cat([linear, score], -1)


def regression(
    f: Tensor,
    target: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, float]:
    """Slope, intercept and degrees of freedom of a weighted ridge regression of each target.

    Targets (N, D) whose weights (N, D) are 1 share one penalty.
    """
    slope = torch.zeros(f.shape[1], target.shape[1], dtype=torch.float64)
    intercept = torch.zeros(target.shape[1], dtype=torch.float64)
    equal = (weight == 1).all(0)
    groups = [equal.nonzero()[:, 0].tolist(), *([i] for i in (~equal).nonzero()[:, 0].tolist())]
    freedom = 0.0
    for group in filter(len, groups):
        of_rows = weight[:, group[:1]]
        of_rows = of_rows.clamp_max(MOST_WEIGHT * float(of_rows.median()))
        root = (of_rows / of_rows.mean()).sqrt()
        centre = (of_rows * f).sum(0) / of_rows.sum()
        middle = (of_rows * target[:, group]).sum(0) / of_rows.sum()
        found, used = ridge(root * (f - centre), root * (target[:, group] - middle))
        slope[:, group] = found
        intercept[group] = middle - centre @ found
        freedom = max(freedom, used)
    return slope, intercept, freedom


def ridge(given: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """The slope (K, D) of a regression of centred numbers, and its degrees of freedom.

    The penalty has the least generalized cross-validation error, ∑‖y − ŷ‖²/(N − df)², summed over
    targets of unit variance; an infinite one, for no regression, is among them.
    """
    n, k = given.shape
    none = torch.zeros(k, target.shape[1], dtype=torch.float64)
    if k > MOST_FEATURES:
        return none, 0.0
    left, size, right = torch.linalg.svd(given, full_matrices=False)
    deviation = target.std(0, correction=0)
    unit = target / torch.where(deviation > 0, deviation, 1.0)
    along = left.T @ unit
    total = float(unit.square().sum())
    best = (total / (n - 1) ** 2, none, 0.0)
    for penalty in PENALTIES * n:
        shrink = size.square() / (size.square() + penalty)
        freedom = float(shrink.sum())
        if freedom + 1 >= n:
            continue
        removed = float(((2 * shrink - shrink.square()).unsqueeze(1) * along.square()).sum())
        error = (total - removed) / (n - 1 - freedom) ** 2
        if error < best[0]:
            weights = (size / (size.square() + penalty)).unsqueeze(1)
            best = (error, right.T @ (weights * (left.T @ target)), freedom)
    return best[1], best[2]
