"""Numbers in x with heavy tails, as normal scores.

One simulation in a thousand that ends far away makes the standard deviation of x_k so large that
all others look alike. A log-normal x_k hides the small values behind the large ones. Such an x_k
can be replaced by its normal score,

    Φ⁻¹(the share of simulations below x_k)                      between the outermost knots,
    ±(q + a/(1 + a)),   a = d·|x_k − the knot|/r                 beyond them,

which is bounded and never falls. A value that many simulations have gets the mean of the scores
that they would share. q is the score of the outermost knot. d and r are how far the score and x_k
go between the last six knots; if these are one value, r is the distance to the farthest simulation.

Scores are no gain where theta is a difference of numbers, or has heavy tails itself. So held-out
pairs decide, see `Coordinates.measured`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .linear import interpolated, normal_scores

HEAVY = (1.8, 30.0)
"""Tails are heavy, or those of outliers, if the standard deviation is so many times (Q₃ − Q₁)/1.35,
which it is once for a normal distribution, 1.2 times for an exponential one, and 1.5 times for
Student's t with three degrees of freedom.
"""
QUARTILES = 1.3489795003921634
"""Standard deviations between the quartiles of a normal distribution."""
FEWEST = 100
"""Pairs; of fewer, normal numbers may look heavy, and knots coincide."""
LAST = 5
"""Steps between knots, at each end, that set the slope beyond."""


def candidates(x: Tensor) -> list[Tensor]:
    """The sets of columns of x (N, K) that may be replaced, (K,) each and not empty."""
    if len(x) < FEWEST:
        return []
    q = torch.tensor([0.25, 0.75], dtype=x.dtype)
    low, high = x.sort(0).values[(q * (len(x) - 1)).round().long()]
    scale = x.std(0, correction=0)
    constant = scale <= 1e-9 * x.mean(0).abs()
    found: list[Tensor] = []
    for ratio in HEAVY:
        heavy = (scale > ratio * (high - low) / QUARTILES) & ~constant
        if bool(heavy.any()) and not any(torch.equal(heavy, known) for known in found):
            found.append(heavy)
    return found


def measured(x: Tensor, heavy: Tensor) -> dict[str, Tensor]:
    """The knots and the range of the heavy columns of x (N, K)."""
    columns = x[:, heavy]
    scores = normal_scores(columns)
    return {
        "heavy": heavy.double(),
        "heavy_knots": scores["knots"],
        "heavy_levels": scores["levels"],
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
    knots = numbers["heavy_knots"].to(x.device)
    levels = numbers["heavy_levels"].to(x.device)
    least, most = numbers["heavy_range"].to(x.device)
    first, last = knots[:, 0], knots[:, -1]
    step = levels[-1] - levels[-1 - LAST]
    above = step * (x - last).clamp_min(0) / _run(last - knots[:, -1 - LAST], most - last, last)
    below = step * (first - x).clamp_min(0) / _run(knots[:, LAST] - first, first - least, first)
    score = 0.5 * (interpolated(x, knots, levels) + interpolated(x, knots, levels, last=True))
    return score + _bounded(above) - _bounded(below)


def _run(between: Tensor, beyond: Tensor, end: Tensor) -> Tensor:
    """The width of the last steps, or the distance to the farthest simulation, or some other."""
    run = torch.where(between > 0, between, beyond)
    return torch.where(run > 0, run, end.abs() + 1.0)


def _bounded(a: Tensor) -> Tensor:
    """a/(1 + a), also of an infinite a."""
    return 1 - 1 / (1 + a)


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
    rising = (numbers["heavy_knots"].diff() >= 0).all() & (
        numbers["heavy_levels"].diff() > 0
    ).all()
    if not bool(rising):
        raise ValueError("knots or levels of heavy columns that do not rise")
