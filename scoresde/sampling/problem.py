"""The problem that a solver works on: a process's levels, the network's answers, the start."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.capabilities import FIELDS, Capability
from ..common.random import PRIOR, Noise
from ..model.protocol import Model
from ..model.source import starts
from ..processes.prediction import Coefficients
from ..solvers import Level, Measured, Problem, Solver
from ..solvers.problem import Denoise, Jump, Velocity


def levels(sde: Model, times: Tensor) -> tuple[Level, ...]:
    """Evaluate the process at the times of a grid, in float64 on the CPU."""
    process = sde.process
    at = times
    if sde.phi_min > process.phi_min:
        # A prediction is singular at σ = 0. At the data end the lowest level that the model
        # knows stands for it.
        lowest = torch.tensor(sde.phi_min, dtype=torch.float64, device="cpu")
        at = torch.maximum(times, process.time(lowest))
    alpha = process.alpha(at)
    sigma = process.sigma(at)
    radius = process.radius(at)
    columns = (
        times,
        process.phi(at),
        alpha / radius,
        sigma / radius,
        alpha,
        sigma,
        process.radius(times),
        process.dalpha(at),
        process.dsigma(at),
        process.reverse_g2(at),
    )
    return tuple(Level(*row) for row in zip(*(c.tolist() for c in columns), strict=True))


def problem(
    sde: Model,
    nodes: tuple[Level, ...],
    adaptive: bool,
    noise: Callable[[], Tensor],
    measurement: Measured | None = None,
) -> Problem:
    """The problem of sampling: velocities, denoised values and jumps on the arc."""
    conversions = _conversions(sde, nodes)
    output = sde.network_fn()

    def denoise(z: Tensor, i: int) -> tuple[Tensor, Tensor]:
        return conversions[i].solve(z, output(z, nodes[i].phi))

    return Problem(
        nodes,
        sde.velocity_fn(),
        denoise,
        noise,
        adaptive,
        jump=_jump(sde, nodes, conversions, denoise),
        bridge=_bridge_noise(sde),
        capabilities=sde.capabilities,
        field=functools.cache(functools.partial(_field, sde)),
        measurement=measurement,
    )


def measured_by(sde: Any, solver: Solver) -> Measured | None:
    """What was measured of a model's samples, for a solver that needs it; else None."""
    if Capability.MEASUREMENT not in solver.all_needs:
        return None
    found: Measured = sde.measured_states()
    return found


def prior_and_rows(
    sde: Any,
    measurement: Measured | None,
    start: int,
    stop: int,
) -> tuple[Model, Measured | None]:
    """The model that a solver evaluates, and what was measured of samples start to stop.

    With a measurement that is the prior p(x), in place of a model of p(x | y).
    """
    if measurement is None:
        return sde, None
    return sde.model, measurement.rows(start, stop)


def _field(sde: Model, name: str) -> Velocity:
    """What the model gives for a capability; ValueError if it does not serve that."""
    sde.require(name)
    own = getattr(sde, f"{name}_fn", None)
    made: Velocity = FIELDS[name](sde) if own is None else own()
    return made


def _conversions(
    sde: Model,
    nodes: tuple[Level, ...],
) -> list[Coefficients]:
    """What turns the network's output into (x̂0, ε̂) at each level, in plain floats."""
    phi = torch.tensor([level.phi for level in nodes], dtype=torch.float64, device="cpu")
    columns = sde.coefficients(phi)
    rows = zip(
        *(torch.as_tensor(c, device="cpu").flatten().tolist() for c in columns), strict=True
    )
    return [Coefficients(*row) for row in rows]


def _bridge_noise(sde: Model) -> float:
    """The noise σ of a bridge between data and source, 0 for all other models."""
    if not sde.takes("tilt"):
        return 0.0
    noise: float = sde.process.noise
    return noise


def _jump(
    sde: Model,
    nodes: tuple[Level, ...],
    conversions: list[Coefficients],
    denoise: Denoise,
) -> Jump:
    """Where the model says that level i leads to at level j, by the inputs of its network."""
    if sde.takes("tilt"):
        to_data, to_source = (_tilted(sde, tilt) for tilt in (1.0, -1.0))

        def head(z: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
            drift = to_source if nodes[j].phi > nodes[i].phi else to_data
            return conversions[i].solve(z, drift(z, nodes[i].phi))

        return head

    if sde.takes("span"):

        def jump(z: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
            span = z.new_full((1,), nodes[i].phi - nodes[j].phi)
            spanned = sde.with_condition({**sde.condition, "span": span})
            return conversions[i].solve(z, spanned.network_fn()(z, nodes[j].phi))

        return jump

    # A network without either input has learnt where the ODE ends, if it has learnt a jump at all.
    return lambda z, i, j: denoise(z, i)


def _tilted(sde: Model, tilt: float) -> Callable[..., Tensor]:
    """A bridge's network with its drift to the data (tilt 1) or to the source (−1)."""
    value = sde.scale.new_full((1,), tilt, dtype=sde.state_dtype)
    network: Callable[..., Tensor] = sde.with_condition(
        {**sde.condition, "tilt": value}
    ).network_fn()
    return network


def starting_points(
    sde: Model,
    seed: int,
    start: int,
    stop: int,
) -> Tensor:
    """Draw the arc states (stop − start, n) at t = 1 of samples start to stop of a call."""
    like = sde.scale.new_empty(0, dtype=sde.state_dtype)
    if sde.source is None:
        return Noise(seed, PRIOR, start, stop, sde.dim, like)()
    return sde.from_start(starts(sde.source, seed, start, stop, sde.shape).to(like))
