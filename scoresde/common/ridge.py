"""Ridge regression whose penalty the data choose."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PENALTIES = torch.logspace(-6, 6, 25, dtype=torch.float64)
"""Penalties that are tried, per row."""
MOST_FEATURES = 2000
"""Of more features, the slope is 0."""
MOST_ROWS = 2000
"""Where only a variance is wanted."""


class Ridge(NamedTuple):
    """A ridge regression of N rows of D targets on K features."""

    slope: Tensor
    """(K, D)."""
    freedom: float
    """Degrees of freedom."""
    leverage: Tensor
    """∂ŷ_i/∂y_i of each row, (N,)."""


def ridge(given: Tensor, target: Tensor) -> Ridge:
    """The regression of centred numbers (N, D) on centred features (N, K).

    The penalty has the least generalized cross-validation error, ∑‖y − ŷ‖²/(N − df)², summed over
    targets of unit variance; an infinite one, for no regression, is among them.
    """
    n, k = given.shape
    none = given.new_zeros(k, target.shape[1])
    nothing = Ridge(none, 0.0, given.new_zeros(n))
    if k > MOST_FEATURES:
        return nothing
    left, size, right = torch.linalg.svd(given, full_matrices=False)
    deviation = target.std(0, correction=0)
    unit = target / torch.where(deviation > 0, deviation, 1.0)
    along = left.T @ unit
    total = float(unit.square().sum())
    least = total / (n - 1) ** 2
    best = None
    for penalty in PENALTIES * n:
        shrink = size.square() / (size.square() + penalty)
        freedom = float(shrink.sum())
        if freedom + 1 >= n:
            continue
        removed = float(((2 * shrink - shrink.square()).unsqueeze(1) * along.square()).sum())
        error = (total - removed) / (n - 1 - freedom) ** 2
        if error < least:
            least = error
            best = penalty
    if best is None:
        return nothing
    shrink = size.square() / (size.square() + best)
    weights = (size / (size.square() + best)).unsqueeze(1)
    slope = right.T @ (weights * (left.T @ target))
    return Ridge(slope, float(shrink.sum()), left.square() @ shrink)


def unexplained(given: Tensor, target: Tensor) -> Tensor:
    """Leave-one-out residual variances (D,) of a ridge regression of (N, D) on (N, K)."""
    chance = torch.Generator("cpu").manual_seed(0)
    order = torch.randperm(len(given), generator=chance, device="cpu")
    some = order[:MOST_ROWS]
    x = given[some].double()
    y = target[some].double()
    largest = x.abs().amax(0)
    x = x / torch.where(largest > 0, largest, 1.0)
    x = x - x.mean(0)
    y = y - y.mean(0)
    scale = x.square().mean(0).sqrt()
    x = x / torch.where(scale > 0, scale, 1.0)
    found = ridge(x, y)
    left = y - x @ found.slope
    left = left_out(left, found.leverage + 1 / len(x))
    return left.square().mean(0)


def left_out(residual: Tensor, leverage: Tensor) -> Tensor:
    """Residuals (N, D) of a regression, as those of each row from the regression on the others."""
    others = (1 - leverage).clamp_min(0.01)
    return residual / others.unsqueeze(1)
