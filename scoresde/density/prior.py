"""The density at t = 1, where the ODE ends: the prior, and how far the model is from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..model.protocol import Model
from ..processes.base import as_time
from ..solvers import Level

Traced = Callable[..., tuple[Tensor, Tensor]]
"""A network with its traces: (z, φ, rows) -> ((B, n), (B, draws))."""

PURE_NOISE_COS = 1e-12
"""cos φ below which a path ends in pure noise."""


class HasLogProb(Protocol):
    """Anything with log_prob: a torch distribution, a toy density, a `scoresde.Distribution`."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), shape (B,)."""


def resolve_prior(sde: Model, prior: Any) -> Any:
    """The density at t = 1, checked: the user's prior, or the model's source; None for N(0, I)."""
    what = "source" if prior is None else "prior"
    density = sde.source if prior is None else prior
    if density is None:
        return None
    if sde.free is not None:
        constant = (sde.scale == 0).nonzero()[:, 0].tolist()
        raise ValueError(
            f"features {constant} are constant in this model, and log p of the others needs their "
            f"density at t = 1, which {what} does not give; train a model of the features that vary"
        )
    if not callable(getattr(density, "log_prob", None)):
        if prior is None:
            raise ValueError(
                "the likelihood needs log p at t = 1, and this model's source has none: "
                f"{density!r}; give prior="
            )
        raise TypeError(
            "prior is the distribution of x at t = 1 and needs a log_prob method, got "
            f"{type(density).__name__}"
        )
    if isinstance(density, Distribution):
        batch = tuple(density.batch_shape)
        event = tuple(density.event_shape)
        if batch != () or event != tuple(sde.shape):
            raise ValueError(
                f"{what} must be one distribution of samples of shape {tuple(sde.shape)}, got "
                f"batch_shape {batch} and event_shape {event}; torch.distributions.Independent "
                "makes one of several"
            )
    return density


def log_prior(sde: Model, prior: Any, z: Tensor, radius: float) -> Tensor:
    """log p (B,) of arc states z (B, n) at t = 1, under a resolved prior."""
    if prior is None:
        return log_standard_normal(z)
    x = sde.to_data(z * radius)
    inside = _in_support(prior, x)
    if inside is not None:
        x = x[inside]
        if not len(x):
            return z.new_full((len(z),), -math.inf)
    log_p: Tensor = prior.log_prob(x)
    if log_p.shape != (len(x),):
        what = "source" if prior is sde.source else "prior"
        raise ValueError(
            f"{what}.log_prob returned shape {tuple(log_p.shape)}, wanted ({len(x)},): one number "
            "a sample; torch.distributions.Independent makes one distribution of several"
        )
    log_p = log_p.to(z)
    if inside is not None:
        log_p = z.new_full((len(z),), -math.inf).index_put((inside,), log_p)
    return log_p + sde.log_scale + sde.dim * math.log(radius)


def _in_support(prior: Any, x: Tensor) -> Tensor | None:
    """Which points lie in a torch distribution's support, as it raises at others; None for all."""
    if not isinstance(prior, Distribution):
        return None
    try:
        support: Any = prior.support
    except NotImplementedError:
        # This distribution does not state its support.
        return None
    inside: Tensor = support.check(x)
    return None if bool(inside.all()) else inside


def log_standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) (B,) of states z (B, n)."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


def prior_gap(
    sde: Model, z: Tensor, end: Level, traced: Traced, output: Callable[..., Tensor]
) -> Tensor:
    """|log p(z) − log N(z; 0, I)| (B,) at the noise end, by the model's score, rounded up.

    h = ∇log(p/N) = (cos φ/sin² φ)·(x̂0 − cos φ·z) is small, so log(p/N) = g − log E_N[e^g] with
    g = ∫_0^1 z·h(uz) du, and log E_N[e^g] = ½·tr ∂h/∂z + ½|h|² at z = 0 to second order. The
    omitted terms are of the order of their squares, or of cos² φ times them where the second order
    nearly vanishes. Both are added, and a tenth.
    """
    n = z.shape[1]
    rounding = torch.finfo(z.dtype).eps * n
    if end.cos < PURE_NOISE_COS:
        return z.new_full((len(z),), rounding)
    if "score" not in sde.capabilities:
        return z.new_full((len(z),), math.nan)
    c = sde.coefficients(as_time(end.phi))
    factor = end.cos / end.sin**2
    with torch.no_grad():
        zero = torch.zeros_like(z)
        out, traces = traced(zero, end.phi, None)
        h = factor * c.solve(zero, out)[0]
        divergence = factor * ((c.b * n - c.sin * traces.mean(1)) / c.det - end.cos * n)
        g = torch.zeros_like(divergence)
        # Two-point Gauss–Legendre quadrature.
        for u in (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12)):
            x0, _ = c.solve(u * z, output(u * z, end.phi, None))
            g = g + 0.5 * (z * factor * (x0 - end.cos * u * z)).sum(1)
        log_mean = 0.5 * divergence + 0.5 * h.square().sum(1)
        size = g.abs() + log_mean.abs()
        margin = 0.1 + 8 * end.cos**2
        gap = (g - log_mean).abs() + size.square() + margin * size + rounding
    return gap.to(z.dtype).detach()
