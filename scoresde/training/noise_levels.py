"""Distributions of the noise level in training, and their stratified draws.

A distribution is a function (process, quantile) -> φ, so that a batch can have one level in each
of B equal intervals of probability.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from ..common.checks import brief_repr
from ..common.names import choose
from ..processes.base import Process

Levels = Callable[[Process, Tensor], Tensor]

PHI_FLOOR = 1e-6  # radians
U_SHAPE = 4.0


def _lognormal(process: Process, q: Tensor, mean: float = -1.5, std: float = 1.5) -> Tensor:
    """log tan φ ~ N(mean, std²), cut to the process's part of the arc."""
    ends = []
    for end in (process.phi_min, process.phi_max):
        inside = max(min(end, math.pi / 2 - PHI_FLOOR), PHI_FLOOR)
        ends.append(math.log(math.tan(inside)))
    low, high = (0.5 * math.erfc(-(end - mean) / std / math.sqrt(2)) for end in ends)
    return torch.atan(torch.exp(mean + std * torch.special.ndtri(low + (high - low) * q)))


def _uniform(process: Process, q: Tensor) -> Tensor:
    """t ~ U[0, 1]."""
    return process.phi(q).clamp_min(PHI_FLOOR)


def _likelihood(process: Process, q: Tensor) -> Tensor:
    """Density ∝ cot φ: log sin φ is uniform, so that the bound on log p has weight 1."""
    low = math.sin(max(process.phi_min, process.phi_floor))
    return torch.asin(low * (math.sin(process.phi_max) / low) ** q)


def _logit_normal(process: Process, q: Tensor) -> Tensor:
    """log(t/(1 − t)) ~ N(0, 1)."""
    return process.phi(torch.sigmoid(torch.special.ndtri(q))).clamp_min(PHI_FLOOR)


def _u_shaped(process: Process, q: Tensor, a: float = U_SHAPE) -> Tensor:
    """t with density ∝ e^{at} + e^{a(1 − t)} ∝ cosh(a·(t − ½)): sinh(a·(t − ½)) is uniform."""
    t = 0.5 + torch.asinh((2 * q - 1) * math.sinh(0.5 * a)) / a
    return process.phi(t).clamp_min(PHI_FLOOR)


NOISES: dict[str, Levels] = {
    "lognormal": _lognormal,
    "uniform": _uniform,
    "logit_normal": _logit_normal,
    "u_shaped": _u_shaped,
    "likelihood": _likelihood,
    "adaptive": _likelihood,
}
"""Distributions of the noise level in training, by name, as functions (process, quantile in (0, 1))
-> φ:

- `lognormal`: log σ/α ~ N(−1.5, 1.5²), the default: that of Karras et al. 2022, table 1, with a
  P_mean and P_std that suit the likelihood of the ODE.
- `uniform`: t ~ U[0, 1].
- `logit_normal`: log(t/(1 − t)) ~ N(0, 1), Esser et al. 2024, section 3.1: mostly the middle of the
  path.
- `u_shaped`: density ∝ e^{4t} + e^{4(1 − t)}, Lee et al. 2024, as their code draws it:
  mostly the ends of the path, for pairs that lie on straight ones.
- `likelihood`: log sin φ uniform from φ0 = max(φ(0), `Process.phi_floor`). With weight `edm`, which
  is 1, the loss times D·log(sin φ(1)/sin φ0) is −`elbo` up to a constant; so is, at more noise, D/2
  times the loss with weight `likelihood` and uniform t. This is maximum-likelihood training with
  importance-sampled noise levels, Song et al. 2021b.
- `adaptive`: the same expectation as `likelihood`. `fit` learns to draw levels where the loss
  varies most, and divides by how often it draws them.
"""


def stratified_quantiles(
    k: int, b: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Draw quantiles (k·b,) of k batches, each with one in each of b equal intervals."""
    jitter = torch.rand((k, b), generator=generator, device=device, dtype=torch.float64)
    strata = torch.randperm(b, generator=generator, device=device)
    return ((strata + jitter) / b).flatten()


class AdaptiveLevels:
    """Noise levels drawn where the loss varies most; the loss keeps its expectation."""

    BINS = 64
    UNIFORM_SHARE = 0.1
    RATE = 0.2

    def __init__(self, base: Levels, device: torch.device) -> None:
        self.base = base
        self.moments = torch.ones(self.BINS, device=device, dtype=torch.float64)
        # of squared losses, and of how many
        self.sums = torch.zeros(2, self.BINS, device=device, dtype=torch.float64)

    def __call__(self, process: Process, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return levels φ, the factors 1/p of their losses, and their bins."""
        density = self.moments.sqrt() + 1e-300  # uniform if all are 0
        density = (1 - self.UNIFORM_SHARE) * density / density.mean() + self.UNIFORM_SHARE
        edges = torch.cat([density.new_zeros(1), density.cumsum(0) / self.BINS])
        bins = torch.searchsorted(edges[1:-1], q, right=True)
        inside = (bins + (q - edges[bins]) * self.BINS / density[bins]) / self.BINS
        return self.base(process, inside.clamp(0, 1)), 1 / density[bins], bins

    def record(self, bins: Tensor, losses: Tensor) -> None:
        """Count losses (B,), without their factors 1/p; skip those that are not finite."""
        square = losses.double().square()
        finite = square.isfinite()
        # a product, whose order of summation is fixed
        which = torch.nn.functional.one_hot(bins, self.BINS).to(self.sums.dtype)
        self.sums += torch.stack([square.where(finite, 0), finite.to(square)]) @ which

    def update(self) -> None:
        """Move the moments towards the recorded losses, where there are any, and start anew."""
        total, count = self.sums
        seen = count > 0
        first = torch.where(seen, total / count.clamp_min(1), self.moments)
        self.moments = torch.where(seen, torch.lerp(self.moments, first, self.RATE), self.moments)
        self.sums.zero_()


def check_noise(noise: object) -> None:
    """Raise unless this is the name of a distribution of noise levels."""
    if not isinstance(noise, str):
        raise TypeError(f"noise is a name, such as 'uniform', got {brief_repr(noise)}")
    steps = re.fullmatch(r"nodes:0*([1-9]\d{0,8})", noise)
    if steps and noise not in NOISES:
        raise ValueError(
            f"unknown noise {noise!r}: the levels of {steps[1]} steps are now those of "
            f"fit(sde, pairs, objective=scoresde.Distilled({steps[1]}))"
        )
    choose("noise", noise, NOISES)
