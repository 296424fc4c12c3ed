"""What the variational bound gains by a learned variance of its steps.

The posterior of z_s given (z_t, z0) has the variance β̃, and the model's p(z_s | z_t) has Σ =
β̃·(1 + h·w) in each element, h = β/β̃ − 1 = sin²θ_t/sin²θ_s − 1. With the squared error e² of the
velocity, one element is

    KL(w) = ½·[log(1 + h·w) + h·(e² − w)/(1 + h·w)]

apart, and w = E[e² | z_t] is best. w = 1 is the variance β, whose sum over steps is known in closed
form up to e² (`scoresde.density.bounds`), so a learned variance adds KL(1) − KL(w).

The network's w is that of the data at σ = 0. Where a process begins at an angle φ0 > 0, the bound
is for z0 at φ0, whose own noise is a part of e²: w + (1 − w)·sin²φ0/sin²φ, exactly.
"""

from __future__ import annotations

from torch import Tensor


def saved_by(w: Tensor, square: Tensor, growth: Tensor) -> Tensor:
    """2·(KL(1) − KL(w))·(1 + h)/h, summed over elements: (B,) in float64, and 0 where h is 0.

    w and e² are (B, n), h is (B,). The factor is the inverse of the weight that the bound has for
    a squared error with w = 1.
    """
    h = growth.double().unsqueeze(1)
    full = 1 + h
    part = 1 + h * w.double()
    gap = (1 / full - 1 / part) * (1 + h * square.double()) + (full / part).log()
    factor = (1 + growth) / growth.clamp_min(1e-300)
    return (growth > 0) * factor * gap.sum(1)


def with_data_noise(w: Tensor, sin_ratio: Tensor) -> Tensor:
    """w + (1 − w)·sin²φ0/sin²φ (B, n), from w and sin φ0/sin φ (B,): what w is for z0 at φ0."""
    return w + (1 - w) * sin_ratio.to(w).square().unsqueeze(1)
