"""The mode of a posterior: ascent of log p from the likeliest draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..common.errors import SolverError
from ..density.exact import log_prob, sample_and_log_prob

STARTS = 2
"""Draws that climb."""
SOLVE_STEPS = 24
"""Of each solve while they climb; the points are compared at the end by solves in full."""
FARTHEST = 4.0
"""Largest |u| of a parameter in an interval: 3e-5 of the interval from its edge."""


def mode(
    posterior: Any,
    row: Tensor,
    draws: int,
    steps: int,
    generator: torch.Generator | None,
    how: dict[str, Any],
) -> Tensor:
    """The likeliest point found at one observation (1, *shape)."""
    model, _ = posterior._under(row, torch.zeros(draws, dtype=torch.long))
    fixed = {name: value for name, value in how.items() if name not in ("rtol", "atol")}
    quick = {"steps": SOLVE_STEPS, **fixed}
    with torch.no_grad():
        w, log_p = sample_and_log_prob(model, draws, generator=generator, **quick)
        spread = w.std(0) if draws > 1 else torch.ones_like(w[0])
        inside = _clamped(posterior, w, row)
        moved = (inside != w).any(1)
        log_p[moved] = log_prob(model, inside[moved], **quick) if bool(moved.any()) else log_p[:0]
        height = log_p + _slope(posterior, inside, row)
        supported = _supported(posterior, inside, row)
        if not bool(supported.any()):
            raise SolverError(
                f"none of {draws} draws of the model lies in the prior's support: take more draws, "
                "or train on more pairs"
            )
        best = height.masked_fill(~supported, -math.inf).topk(min(STARTS, draws)).indices
        best = best[supported[best]]
    start = inside[best]
    shift = torch.zeros_like(start, requires_grad=True)
    ascent: Any = torch.optim.LBFGS([shift], max_iter=steps, line_search_fn="strong_wolfe")

    def fall() -> Tensor:
        ascent.zero_grad()
        here = _clamped(posterior, start + spread * shift, row)
        loss = -(log_prob(model, here, **quick) + _slope(posterior, here, row)).sum()
        torch.autograd.backward(loss, inputs=[shift])
        return loss

    if steps:
        with torch.enable_grad():
            ascent.step(fall)
    with torch.no_grad():
        last = _clamped(posterior, start + spread * shift, row)
        every = torch.cat([start, last])
        height = log_prob(model, every, **how) + _slope(posterior, every, row)
        height = height.masked_fill(~_supported(posterior, every, row), -math.inf)
        found: Tensor = _theta(posterior, every[height.argmax()][None], row)[0]
    return found


def _theta(posterior: Any, w: Tensor, row: Tensor) -> Tensor:
    """The parameters of w; rounding takes none of them out of the prior's box."""
    theta = w
    if posterior.coordinates is not None:
        theta = posterior.coordinates.inverse(w, row.flatten(1))
    if posterior.leaks:
        theta = posterior._prior.nearest(theta)
    return theta


def _supported(posterior: Any, w: Tensor, row: Tensor) -> Tensor:
    """Whether the prior's support holds the parameters of w."""
    inside: Tensor = posterior._prior.contains(_theta(posterior, w, row))
    return inside


def _slope(posterior: Any, w: Tensor, row: Tensor) -> Tensor:
    """log |det dw/dtheta| at w up to a constant: log p(theta) is log p(w) plus this."""
    if posterior.coordinates is None:
        return w.new_zeros(len(w))
    slope: Tensor = posterior.coordinates.log_slope(w, row.flatten(1))
    return slope.to(w.dtype)


def _clamped(posterior: Any, w: Tensor, row: Tensor) -> Tensor:
    """The nearest point inside the prior's box, coordinate by coordinate."""
    prior = posterior._prior
    coordinates = posterior.coordinates
    if coordinates is None:
        nearest: Tensor = prior.nearest(w)
        return nearest
    flat = row.flatten(1)
    inside: Tensor = coordinates.clamped(w, flat, FARTHEST)
    if posterior.leaks:
        # what is left of the bounds is those of theta itself
        u = coordinates.to_u(inside, flat)
        u = torch.minimum(torch.maximum(u, prior.low.to(u)), prior.high.to(u))
        inside = coordinates.from_u(u, flat).to(w.dtype)
    return inside
