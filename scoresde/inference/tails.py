"""Numbers in x with heavy tails, seen through their normal scores.

One simulation in a thousand that ends far away makes the standard deviation of x_k so large that
all others look alike. A log-normal x_k hides the small values behind the large ones. A normal
distribution has quartiles 1.35 standard deviations apart. If x_k has a standard deviation of more
than 1.8 times what its quartiles would make it, it is replaced by

    Φ⁻¹(the share of simulations below x_k)                      between the outermost knots,
    ±(q + a/(1 + a)),   a = d·|x_k − the knot|/r                 beyond them,

which is increasing and bounded. q is the score of the outermost knot. d and r are how far the score
and x_k go over the last five knots. All other numbers stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .linear import interpolated, normal_scores

HEAVY = 1.8
"""Ratio of these standard deviations beyond which tails are heavy; 1.5 for Student's t with 3
degrees of freedom, 1.4 for a Laplace distribution, 1.2 for an exponential one.
"""
QUARTILE = 0.6744897501960817
LAST = 5
"""Knots that tell how fast the score grows at the ends."""


def measured(x: Tensor) -> dict[str, Tensor]:
    """Which numbers of x (N, K) have heavy tails, and the knots of all; none if none has."""
    q = torch.tensor([0.25, 0.75], dtype=x.dtype)
    low, high = x.sort(0).values[(q * (len(x) - 1)).round().long()]
    scale = x.std(0, correction=0)
    constant = scale <= 1e-9 * x.mean(0).abs()
    heavy = (scale > HEAVY * (high - low) / (2 * QUARTILE)) & ~constant
    if not bool(heavy.any()):
        return {}
    scores = normal_scores(x)
    return {
        "heavy": heavy.double(),
        "heavy_knots": scores["knots"],
        "heavy_levels": scores["levels"],
    }


def seen(x: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """x (…, K) in float64, with scores in place of the numbers that have heavy tails."""
    x = x.double()
    heavy = numbers["heavy"].to(x.device)
    if not len(heavy):
        return x
    knots = numbers["heavy_knots"].to(x.device)
    levels = numbers["heavy_levels"].to(x.device)
    score = interpolated(x, knots, levels)
    rise = levels[-1] - levels[-1 - LAST]
    first, last = knots[:, 0], knots[:, -1]
    above = rise * (x - last).clamp_min(0) / reach(last - knots[:, -1 - LAST], last)
    below = rise * (first - x).clamp_min(0) / reach(knots[:, LAST] - first, first)
    return torch.where(heavy == 1, score + bounded(above) - bounded(below), x)


def bounded(a: Tensor) -> Tensor:
    """a/(1 + a), also of infinite a."""
    return 1 - 1 / (1 + a)


def reach(width: Tensor, end: Tensor) -> Tensor:
    """The width, or, where the knots are one, rounding at their place."""
    return torch.where(width > 0, width, 1e-12 * end.abs() + 1e-300)
