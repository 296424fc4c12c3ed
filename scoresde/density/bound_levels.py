"""The levels of the variational bound, on the arc that begins at the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.protocol import Model
from ..processes.spacings import grid


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
