"""The best linear-Gaussian posterior of u: a weighted ridge regression on features of x."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.normal_scores import interpolated
from ..common.ridge import ridge
from . import spread

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
        found = ridge(root * (f - centre), root * (target[:, group] - middle))
        slope[:, group] = found.slope
        intercept[group] = middle - centre @ found.slope
        freedom = max(freedom, found.freedom)
    return slope, intercept, freedom
