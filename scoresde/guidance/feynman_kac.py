"""Particles of products of powers Π pᵢ^aᵢ by a Feynman–Kac formula.

With y = z/cos φ = x̃0 + u·ε, u = tan φ and w = u², let π_w = Π pᵢ(y, u)^aᵢ, S = Σ aᵢ·sᵢ its score,
and s = Σ aᵢ. Since ∂p/∂w = ½Δp for each part, particles that follow

    dy = [S + c·y/(1 + w)]·|dw| + √|dw|·ξ,   c = (s − 1)/2,

towards the data have density π_w if they are weighted by

    d log w = [½(‖S‖² − Σ aᵢ‖sᵢ‖²) + c·(D + y·S)/(1 + w)]·|dw|.

For s = 1 this is the formula of Skreta et al. (2025); the term in c makes the weight the same for
all particles where the parts are N(0, I), as in pure noise. The state takes a step of an
exponential integrator, exact in the linear part and with X = Σ aᵢ·x̂0ᵢ extrapolated from two
states; the weight takes the trapezoid rule in log(1 + w).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..common import progress
from ..model.protocol import Model
from .guided import LARGEST_ANGLE
from .particle_resampling import Population

NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)


@dataclass(frozen=True)
class Step:
    """z' = keep·z + mean·X + slope·(X − X_before) + noise·ξ."""

    keep: float
    mean: float
    slope: float
    noise: float


def step_between(phi: float, below: float, power: float, before: float) -> Step:
    """The coefficients of a step from one angle to another; `before` is the last one's −Δlog u."""
    c = 0.5 * (power - 1)
    low = 2 * math.log(math.tan(below))
    high = 2 * math.log(math.tan(phi))
    logs = 0.5 * (high + low) + 0.5 * (high - low) * NODES
    measure = 0.5 * (high - low) * WEIGHTS

    def log_kernel(log_w: np.ndarray | float) -> np.ndarray:
        found: np.ndarray = power * np.asarray(log_w) - c * np.logaddexp(0, log_w)
        return found

    kernel = np.exp(log_kernel(low) - log_kernel(logs))
    cos = math.cos(below)
    return Step(
        keep=float(np.exp(log_kernel(low) - log_kernel(high))) * cos / math.cos(phi),
        mean=cos * float((measure * kernel).sum()),
        slope=cos * float((measure * kernel * 0.5 * (high - logs)).sum()) / before,
        noise=cos * math.sqrt(float((measure * kernel**2 * np.exp(logs)).sum())),
    )


def run_corrected(
    factors: Sequence[tuple[Model, float]],
    angles: Sequence[float],
    z: Tensor,
    rows: Tensor,
    noise: Callable[[], Tensor],
    population: Population,
) -> Tensor:
    """Standardized data (n·P, D) from draws of N(0, I); it weights the population."""
    parts = [(model.velocity_fn(), power) for model, power in factors]
    power = math.fsum(a for _, a in parts)
    angles = [min(phi, LARGEST_ANGLE) for phi in angles]
    dim = z.shape[1]
    z = z / math.sqrt(power)
    start = -2 * math.log(math.cos(angles[0])) + math.log(2 * math.pi)
    mass = 0.5 * dim * ((1 - power) * start - math.log(power))
    population.add(torch.full_like(population.log_weights, mass))
    rate = z.new_zeros(len(z))
    before = math.inf
    last = z
    for i, phi in enumerate(angles):
        progress.step(i, len(angles))
        mean, now = _mean_and_rate(parts, power, z, phi, rows)
        length = -2 * math.log(math.cos(phi))
        if i:
            span = -2 * math.log(math.cos(angles[i - 1])) - length
            population.add(0.5 * span * (rate + now))
        if i + 1 == len(angles):
            population.add(length * now)
            break
        z, mean, rate, last = population.resample(1.0, z, mean, now, last)
        step = step_between(phi, angles[i + 1], power, before)
        z = step.keep * z + step.mean * mean + step.slope * (mean - last) + step.noise * noise()
        last = mean
        before = math.log(math.tan(phi) / math.tan(angles[i + 1]))
    return mean / power


def _mean_and_rate(
    parts: Sequence[tuple[Callable[..., Tensor], float]],
    power: float,
    z: Tensor,
    phi: float,
    rows: Tensor,
) -> tuple[Tensor, Tensor]:
    """X = Σ aᵢ·x̂0ᵢ, and d log w/d log(1 + w)."""
    cos = math.cos(phi)
    sin = math.sin(phi)
    mean = torch.zeros_like(z)
    noise = torch.zeros_like(z)
    squares = z.new_zeros(len(z))
    for velocity, a in parts:
        v = velocity(z, phi, rows)
        eps = sin * z + cos * v
        mean = mean + a * (cos * z - sin * v)
        noise = noise + a * eps
        squares = squares + a * eps.square().sum(1)
    rate = 0.5 * (noise.square().sum(1) - squares) / sin**2
    c = 0.5 * (power - 1)
    return mean, rate + c * (z.shape[1] - (z * noise).sum(1) / sin)
