"""Numbers in x with heavy tails, as normal scores.

One simulation in a thousand that ends far away makes the standard deviation of x_k so large that
all others look alike. A log-normal x_k hides the small values behind the large ones. Such an x_k
can be replaced by its normal score, see `common.normal_scores`.

Scores are no gain where theta is a difference of numbers, or has heavy tails itself. So held-out
pairs decide, see `Coordinates.measured`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..common.normal_scores import LAST, QUARTILES, beyond, interpolated, normal_scores

HEAVY = (1.8, 30.0)
"""Tails are heavy, or those of outliers, if the standard deviation is so many times (Q₃ − Q₁)/1.35,
which it is once for a normal distribution, 1.2 times for an exponential one, and 1.5 times for
Student's t with three degrees of freedom.
"""
FEWEST = 100
"""Pairs; of fewer, normal numbers may look heavy, and knots coincide."""


def candidates(x: Tensor) -> list[Tensor]:
    """The sets of columns of x (N, K) that may be replaced, (K,) each and not empty."""
    if len(x) < FEWEST:
        return []
    q = torch.tensor([0.25, 0.75], dtype=x.dtype)
    low, high = x.sort(0).values[(q * (len(x) - 1)).round().long()]
    middle = (high - low) / QUARTILES
    scale = x.std(0, correction=0)
    constant = scale <= 1e-9 * x.mean(0).abs()
    found: list[Tensor] = []
    for ratio in HEAVY:
        heavy = (scale > ratio * middle) & ~constant
        if bool(heavy.any()) and not any(torch.equal(heavy, known) for known in found):
            found.append(heavy)
    return found


def measured(x: Tensor, heavy: Tensor) -> dict[str, Tensor]:
    """The knots and the range of the heavy columns of x (N, K)."""
    columns = x[:, heavy]
    found = normal_scores(columns)
    return {
        "heavy": heavy.double(),
        "heavy_knots": found["knots"],
        "heavy_levels": found["levels"],
        "heavy_range": torch.stack([columns.amin(0), columns.amax(0)]),
    }


def with_scores(x: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """x (…, K) in float64, with scores in its heavy columns."""
    x = x.double()
    heavy = numbers["heavy"].to(x.device) == 1
    if not len(heavy):
        return x
    replaced = x.clone()
    replaced[..., heavy] = _scores(x[..., heavy], numbers)
    return replaced


def _scores(x: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """The scores of heavy columns (…, H)."""
    of = (numbers[f"heavy_{name}"].to(x.device) for name in ("knots", "levels", "range"))
    knots, levels, ends = of
    score = 0.5 * (interpolated(x, knots, levels) + interpolated(x, knots, levels, last=True))
    return score + beyond(x, knots, ends, levels[-1] - levels[-1 - LAST])


def outermost(numbers: Mapping[str, Tensor], low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """What simulations lie between: low and high, (K,) each, but the range of heavy columns."""
    heavy = numbers["heavy"] == 1
    if not len(heavy):
        return low, high
    low, high = low.clone(), high.clone()
    low[heavy], high[heavy] = numbers["heavy_range"]
    return low, high


def check(numbers: Mapping[str, Tensor], observed: int) -> None:
    """Raise ValueError for numbers that are no scores of so many columns."""
    heavy = numbers["heavy"]
    if not len(heavy):
        return
    many = len(numbers["heavy_levels"])
    count = int((heavy == 1).sum())
    shapes = {
        "heavy": (observed,),
        "heavy_knots": (count, many),
        "heavy_levels": (many,),
        "heavy_range": (2, count),
    }
    for name, shape in shapes.items():
        if tuple(numbers[name].shape) != shape or not bool(numbers[name].isfinite().all()):
            raise ValueError(f"{name} is not finite, or not of shape {shape}")
    if many <= 2 * LAST or not bool(((heavy == 0) | (heavy == 1)).all()):
        raise ValueError("too few knots for heavy columns, or a mark that is neither 0 nor 1")
    rising = (numbers["heavy_knots"].diff() >= 0).all()
    if not bool(rising & (numbers["heavy_levels"].diff() > 0).all()):
        raise ValueError("knots or levels of heavy columns that do not rise")
