"""The levels of the variational bound, on the arc that begins at the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.protocol import Model
from ..processes.spacings import grid

TAN_FINE = 2e-3
TAN_COARSE = 3.0
"""tan θ between which draws are uniform in log tan θ; beyond, their density falls like the noise
of an estimate."""


def level_range(sde: Model) -> float:
    """The length of the interval whose places `level_at` takes to levels, up to θ(1).

    The density of T = tan θ in log T is ∝ T·(COARSE − FINE)/((FINE + T)(COARSE + T)).
    """
    phi_max = sde.process.phi_max
    end = math.sqrt(sin2_from_data(sde, phi_max)) * math.cos(data_end(sde)) / math.cos(phi_max)
    return math.log((1 + end / TAN_FINE) / (1 + end / TAN_COARSE))


def level_at(place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos θ, sin θ, and the factor that makes an integral over places one over cot θ dθ."""
    grown = torch.expm1(place)
    tan = TAN_FINE * grown / (1 - (1 + grown) * (TAN_FINE / TAN_COARSE))
    cos = torch.rsqrt(1 + tan * tan)
    weight = cos * cos * (TAN_FINE + tan) * (TAN_COARSE + tan)
    return cos, tan * cos, weight / (tan * (TAN_COARSE - TAN_FINE))


def onto_arc(sde: Model, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The angle φ of levels θ on the process's arc, and dφ/dθ."""
    start = data_end(sde)
    sin_phi = torch.sqrt(math.sin(start) ** 2 + (math.cos(start) * sin) ** 2)
    return torch.atan2(sin_phi, cos * math.cos(start)), math.cos(start) * sin / sin_phi


def vlb_levels(sde: Model, steps: int, spacing: str) -> Tensor:
    """sin²θ (T + 1,) from the data to noise, without levels that are left to the decoder."""
    phi = sde.process.phi(grid(sde.process, steps, spacing).flip(0)).tolist()
    sin2 = [sin2_from_data(sde, p) for p in phi[1:] if p > 1.5 * data_end(sde)]
    return torch.tensor([0.0, *sin2], dtype=torch.float64, device="cpu")


def data_end(sde: Model) -> float:
    """φ0; where σ(0) = 0 it is `phi_floor`, as at 0 any error of a network makes the bound −∞."""
    return max(sde.process.phi_min, sde.process.phi_floor)


def sin2_from_data(sde: Model, phi: float) -> float:
    """sin²θ = 1 − cos²φ/cos²φ0, without cancellation."""
    start = data_end(sde)
    return min(1.0, math.sin(phi - start) * math.sin(phi + start) / math.cos(start) ** 2)


def step_costs(sin2: Tensor, posterior: bool) -> tuple[Tensor, Tensor]:
    """Weights (T,) of the squared error in twice the KL of each step, and what it is without error.

    The variance of steps is β̃ if posterior, and β otherwise. The first step is the decoder.
    """
    here = sin2[1:]
    below = sin2[:-1]
    ratio = below / here  # of β̃ to β
    spare = torch.zeros_like(ratio)
    if not posterior:
        spare = ratio - 1 - ratio.log()
    cost = (here - below) / (below if posterior else here)
    cost[0] = 1.0
    return cost, spare
