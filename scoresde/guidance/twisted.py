"""Twisted sequential Monte Carlo: weighted particles of p(x)·g(x) (Wu et al. 2023).

With y = z/cos φ = x̃0 + u·ε and u = tan φ, a step of the reverse SDE from u to u' is

    y' = ρ²·y + (1 − ρ²)·x̄0 + u'·√(1 − ρ²)·ξ,   ρ = u'/u,   ξ ~ N(0, I),

where x̄0 extrapolates x̂0 from the last two states (DPM-Solver++ 2M SDE, Lu et al. 2022): it gives
y' the covariance that x̂0's uncertainty adds, without a Jacobian. This is the base. The proposal
takes e = η + L·ξ in place of ξ, with η = √(1 − ρ²)·u²/u'·∇_y log ψ, which makes E[y' | y] exact if
ψ is, and L·Lᵀ = (I + K)⁻¹, K = −(1 − ρ²)·u'²·∇²_y log ψ, as of N(e; 0, I)·ψ(y'). So

    log w ← log w + log ψ(y') − log ψ(y) + ½‖ξ‖² − ½‖e‖² + log det L.

With L = I a step leaves weights of variance ½·tr K², and all of them together one in proportion to
the size of steps; with L little of that is left. L = I where ∇²log ψ is unknown. The last ψ is g
itself. The mean weight then estimates ∫p·g without bias for the base's p, whatever ψ is. In noise,
where x0 | z has many modes, ψ is a poor weight and its gradient is a good guide: log ψ varies
several times as much as log E[g | z]. Particles are therefore chosen by w^cos⁴φ, and keep the rest
of w as weight; on mixtures in 16 and 64 dimensions the bias of log ∫p·g falls from −0.4 and −1.7 to
−0.07 and −0.09 nats. Moves at one level, up by the forward kernel and down by the proposal, do not
help for the same reason: they bring particles to p·ψ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..common import progress
from .guided import below_noise
from .particle_resampling import Population
from .tilted import Tilted, differentiated

LOOKS = 3
"""How often log g is evaluated to see its curvature."""
TINY = 1e-9
"""Where slope and curvature are both 0, the gradient is taken as it is."""


def run_twisted(
    model: Tilted,
    angles: Sequence[float],
    z: Tensor,
    rows: Tensor,
    noise: Callable[[], Tensor],
    population: Population,
) -> Tensor:
    """Standardized data (n·P, D), from states at the first angle; it weights the population."""
    twist = model.curved_twist()
    log_psi = z.new_zeros(len(z))
    last: Tensor | None = None
    last_step = math.inf
    for i, phi in enumerate(angles):
        progress.step(i, len(angles))
        v, found, gradient, bend = twist(z, below_noise(phi), rows)
        x0 = math.cos(phi) * z - math.sin(phi) * v
        pull = math.tan(below_noise(phi)) * math.sin(phi) * gradient
        if model.plugs_in:
            found, pull = _damped(model, x0, found, pull, rows)
        population.add(found - log_psi)
        log_psi = found
        if i + 1 == len(angles):
            break
        states = [z, log_psi, x0, v, pull, last, bend]
        z, log_psi, x0, v, pull, last, bend = population.resample(math.cos(phi) ** 4, *states)
        u = math.tan(phi)
        below = math.tan(angles[i + 1])
        ratio = below / u
        gain = -math.expm1(2 * math.log(ratio))
        drawn = noise()
        shift = math.sqrt(gain) / below * pull
        change = shift
        if bend is not None:
            narrowed, log_det = _narrowed(drawn, math.sqrt(gain) * below * math.cos(phi) * bend)
            change = shift + narrowed - drawn
            population.add(log_det)
        population.add(-(change * (drawn + 0.5 * change)).sum(1))
        eps = math.sin(phi) * z + math.cos(phi) * v
        step = -math.log(ratio)
        mean = x0
        if last is not None:
            mean = x0 + (step - 0.5 * gain) / last_step * (x0 - last)
        spread = ratio * eps + math.sqrt(gain) * (drawn + change)
        z = math.cos(angles[i + 1]) * mean + math.sin(angles[i + 1]) * spread
        last = x0
        last_step = step
    population.add(model.log_g(x0, rows) - log_psi)
    return x0


def _narrowed(drawn: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """L·ξ of rows ξ (B, n) and log det L (B,), L·Lᵀ = (I + TᵀT)⁻¹, for T (B, k, n).

    L = I − Tᵀ·U⁻ᵀ·(U + I)⁻¹·T with the Cholesky factor U of I + T·Tᵀ (Andrews 1968).
    """
    eye = torch.eye(T.shape[1], dtype=T.dtype, device=T.device)
    U = torch.linalg.cholesky_ex(eye + T @ T.mT).L
    half = torch.linalg.solve_triangular(U + eye, T @ drawn.unsqueeze(2), upper=False)
    half = torch.linalg.solve_triangular(U.mT, half, upper=True)
    return drawn - (T.mT @ half).squeeze(2), -U.diagonal(dim1=1, dim2=2).log().sum(1)


def _damped(
    model: Tilted, x0: Tensor, log_g: Tensor, pull: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """log E[g(x0) | z] and the shift of E[x0 | z], from log g and its gradient at x̂0.

    Along the pull Δ = C·∇log g let log g be quadratic, of slope s = ∇log g·Δ and curvature κ. For
    x0 | z ~ N(x̂0, C) the shift is t·Δ, t = s/(s + κ), and log E[g] = log g(x̂0) + ½·s·t + ½·log t.
    κ is the largest that log g(x̂0 + t·Δ) shows at t = 1 and where that leads, `LOOKS` times.
    """
    slope, _ = differentiated(lambda x: (model.log_g(x, rows),), x0)
    s = (slope * pull).sum(1).clamp_min(0)
    bend = torch.zeros_like(s)
    t = torch.ones_like(s)
    for _ in range(LOOKS):
        there = model.log_g(x0 + t.unsqueeze(1) * pull, rows)
        bend = torch.maximum(bend, 2 * (log_g + t * s - there) / t.square())
        t = ((s + TINY) / (s + bend + TINY)).clamp_min(TINY)
    return log_g + 0.5 * s * t + 0.5 * torch.log(t), t.unsqueeze(1) * pull
