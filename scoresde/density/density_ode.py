"""A state together with its log-density, as one ODE for a solver.

The state of a solve is (z, ℓ_1 … ℓ_k), with dz/dφ = v and dℓ/dφ = div v, once for each of k
estimates of the trace (Chen et al. 2018; Grathwohl et al. 2019).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..common import progress as bars
from ..common.random import PROBE, Noise
from ..model.eval_mode import evaluating
from ..model.protocol import Model
from ..processes.base import as_time
from ..sampling.batches import batch_ranges
from ..sampling.failures import run_solver, with_bar
from ..sampling.plan import Plan, network_dtypes, plan
from ..sampling.problem import levels
from ..solvers import SOLVERS, Counts, Level, Problem, Solver
from ..solvers.problem import Velocity
from .prior import Traced
from .trace_estimators import Exact, TraceEstimator, as_estimator, check_memory

SCORE_SIN = 0.02
"""sin φ below which ε̂ is not divided by it for a score: that would be the network's error."""

CHECK_SHARE = 0.1
"""Tolerance of a check over that of the solve."""
CHECK_MOST = 1e-5
"""Highest tolerance of a check: coarser solves overlook the same bends of a rough field."""


def plan_ode(
    sde: Model,
    solver: str | Solver,
    steps: int | None,
    spacing: str | None,
    options: dict[str, Any],
    *,
    forward: bool = False,
) -> Plan:
    """The plan of a solve with log p, which takes a solver that integrates an ODE."""
    planned = plan(sde, solver, steps, spacing, options, forward=forward)
    if not planned.solver.ode:
        what = "stochastic" if planned.solver.stochastic else "not an ODE method"
        raise ValueError(
            f"log p goes by the probability-flow ODE, and solver {solver!r} is {what}; try 'adams' "
            "or 'rk45'"
        )
    return planned


@dataclass(frozen=True)
class Check:
    """How to solve again, more exactly."""

    solver: Solver
    levels: tuple[Level, ...]


def plan_check(sde: Model, planned: Plan, nodes: tuple[Level, ...]) -> Check | None:
    """The check of a solve: at a lower tolerance, or by twice the steps; None without either."""
    if not planned.adaptive:
        return Check(planned.solver, _halved(sde, planned.times, nodes))
    # Solvers of one's own may have neither.
    given = [_number(getattr(planned.solver, name, None)) for name in ("rtol", "atol")]
    if math.isnan(sum(given)):
        return None
    # A network of low precision has no use for a tolerance far below its rounding.
    least = CHECK_SHARE**2 * rounding_unit(sde)
    rtol, atol = (max(min(CHECK_SHARE * value, CHECK_MOST), least) for value in given)
    return Check(SOLVERS.build("adams", rtol=rtol, atol=atol), nodes)


def _number(value: Any) -> float:
    """A tolerance of whatever type; NaN for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _halved(sde: Model, times: Tensor, nodes: tuple[Level, ...]) -> tuple[Level, ...]:
    """The levels of a grid with one more in the middle, in φ, of every two."""
    phi = torch.tensor([node.phi for node in nodes], dtype=torch.float64, device="cpu")
    between = sde.process.time(0.5 * (phi[1:] + phi[:-1]))[phi[1:] != phi[:-1]]
    return levels(sde, torch.cat([times, between]).sort().values)


@dataclass(frozen=True)
class DensitySolve:
    """A solved batch."""

    z: Tensor  # (B, n), at the other end
    gain: Tensor  # (B,), ∫ div v dφ
    stderr: Tensor  # (B,), of the gain
    traced: Traced
    counts: Counts


class DensityODE:
    """The ODE of (z, ∫ div v dφ), planned once and solved batch by batch."""

    def __init__(
        self,
        sde: Model,
        planned: Plan,
        estimator: TraceEstimator,
        *,
        graph: bool = False,
        raw: bool = False,
        errors: bool = False,
    ) -> None:
        self.plan = planned
        self.levels = levels(sde, planned.times)
        self.estimator = estimator.in_dimension(sde.dim)
        self.graph = graph
        self.raw = raw
        self.check = plan_check(sde, planned, self.levels) if errors else None
        self.errors = errors
        self.share = 1.0 if self.check is None else 0.4  # of the time, for the solve itself
        check_memory(self.estimator, sde.dim, sde.scale.device)

    @property
    def random(self) -> bool:
        """Whether it draws probes."""
        return self.estimator.probes > 0

    @property
    def cost(self) -> int:
        """Backward passes that an evaluation takes, in comparison with others."""
        return max(1, self.estimator.probes)

    def batches(self, sde: Model, n: int, batch_size: int | None) -> Iterator[tuple[int, int]]:
        """Cut n samples into batches (start, stop)."""
        calls = len(self.plan.times) - 1
        return batch_ranges(sde, n, batch_size, cost=self.cost, calls=calls)

    def solve(self, sde: Model, z: Tensor, start: int, seed: int) -> DensitySolve:
        """Solve from arc states z (B, n) of samples number start, start + 1, … of a call."""
        probes = self._probes(z, start, seed) if self.random else None
        traced = _traced(sde, self.estimator, probes, self.graph, self.raw)
        velocity = _augmented(sde, traced)
        if self.graph:
            velocity = _recomputed(sde, velocity, weights_in_use(sde, self.raw))
        task = self._problem(z, self.levels, velocity)
        with bars.part(0, self.share, 1):
            end, counts = run_solver(sde, self.plan.solver, task, self._state(z), lambda: task)
        n = z.shape[1]
        gains = end[:, n:]
        stderr = _standard_error(gains.detach(), self.random)
        return DensitySolve(end[:, :n], gains.mean(1), stderr, traced, counts)

    @torch.no_grad()
    def solve_again(
        self, sde: Model, z: Tensor, start: int, seed: int
    ) -> tuple[Tensor, Tensor] | None:
        """The ends (B, n) and gains (B,) of the check, NaN where it fails; None without one."""
        if self.check is None:
            return None
        probes = self._probes(z, start, seed) if self.random else None
        velocity = _augmented(sde, _traced(sde, self.estimator, probes, False, self.raw))
        task = self._problem(z, self.check.levels, velocity)
        with bars.part(self.share, 1, 1):
            end, counts = self.check.solver.run(with_bar(task, len(z)), self._state(z))
        if counts.failed is not None:
            end[counts.failed] = math.nan
        n = z.shape[1]
        return end[:, :n], end[:, n:].mean(1)

    def _problem(self, z: Tensor, nodes: tuple[Level, ...], velocity: Velocity) -> Problem:
        """The problem of moving states like z (B, n) along some levels."""
        return Problem(
            nodes,
            velocity,
            _not_in_an_ode,
            _not_in_an_ode,
            self.plan.adaptive,
            norm=functools.partial(_norm, z.shape[1]),
        )

    def _state(self, z: Tensor) -> Tensor:
        """States (B, n + k) at the start."""
        return torch.cat([z, z.new_zeros(len(z), self.estimator.draws)], 1)

    def _probes(self, z: Tensor, start: int, seed: int) -> Tensor:
        """The probes (probes, B, n) of a batch."""
        draw = Noise(seed, PROBE, start, start + len(z), z.shape[1], z)
        return self.estimator.prepare(torch.stack([draw() for _ in range(self.estimator.probes)]))


def _traced(
    sde: Model, estimator: TraceEstimator, probes: Tensor | None, graph: bool, raw: bool
) -> Traced:
    """The network's output with the estimates of its trace."""
    if isinstance(estimator, Exact) and sde.traces(raw=raw):
        closed_form: Traced = sde.network_fn(raw=raw, traced=True)
        return closed_form
    call = sde.network_fn(raw=raw)
    draws = estimator.draws

    def traced(z: Tensor, phi: float | Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        def output(z: Tensor) -> Tensor:
            out: Tensor = call(z, phi, rows)
            return out

        mine = probes if probes is None or rows is None else probes[:, rows]
        out, traces = estimator.estimate(output, z, mine, graph)
        if traces.shape != (len(z), draws):
            raise ValueError(
                f"{type(estimator).__name__}.estimate returned traces of shape "
                f"{tuple(traces.shape)}, wanted {(len(z), draws)}: a column for each of its draws"
            )
        return out, traces

    return traced


def _augmented(sde: Model, traced: Traced) -> Velocity:
    """The right-hand side (v, div v) of (z, ∫ div v dφ), with a column for each trace estimate."""
    n = sde.dim
    direct = sde.predict == "edm"

    def velocity(state: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        out, traces = traced(state[:, :n], phi, rows)
        both = torch.cat([out, traces], 1)
        if direct:
            return -both
        z = state[:, :n]
        c = sde.coefficients(as_time(phi)).to(z)
        k = c.a * c.cos + c.b * c.sin
        return (both - torch.cat([k * z, k * n * torch.ones_like(traces)], 1)) / c.det

    return velocity


def weights_in_use(sde: Model, raw: bool) -> list[nn.Parameter]:
    """The parameters of the network in use: raw, or as the model's mode says."""
    return [p for net in sde.networks(raw=raw) for p in net.parameters()]


def _recomputed(sde: Model, velocity: Velocity, weights: list[nn.Parameter]) -> Velocity:
    """The same velocity, whose activations are computed again on the way back, to save memory."""
    # By then the model may be back in train mode, in which it must not be evaluated, and an
    # optimizer may have changed the weights, which is an error.
    versions = [p._version for p in weights]

    def again(state: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        if versions != [p._version for p in weights]:
            raise RuntimeError(
                "the network's weights were changed between log_prob and backward(); call "
                "backward() first"
            )
        with evaluating(sde):
            return velocity(state, phi, rows)

    return functools.partial(checkpoint, again, use_reentrant=False)


def _standard_error(gains: Tensor, random: bool) -> Tensor:
    """The standard error (B,) of the mean of estimates (B, draws), widened as Student's t asks."""
    draws = gains.shape[1]
    if not random:
        return gains.new_zeros(len(gains))
    if draws == 1:
        return gains.new_full((len(gains),), math.nan)
    # ±2 of it hold 95.4% of normal errors, however few estimates there are.
    quantile = 0.5 * (1 + math.erf(math.sqrt(2)))
    widened = 0.5 * float(stdtrit(draws - 1, quantile))
    return gains.std(1) * (widened / math.sqrt(draws))


def rounding_unit(sde: Model) -> float:
    """The relative rounding of the coarsest arithmetic that takes part in a solve."""
    return max(torch.finfo(dtype).eps for dtype in network_dtypes(sde) | {sde.state_dtype})


def score_at_data(sde: Model, z: Tensor, raw: bool) -> Tensor:
    """The model's score (B, n) at data z on the arc, at a little noise, where networks know it."""
    phi = max(sde.process.phi_min, 2 * SCORE_SIN)
    with torch.no_grad():
        _, eps = sde.coefficients(as_time(phi)).solve(z, sde.network_fn(raw=raw)(z, phi, None))
    return -eps / math.sin(phi)


def _norm(n: int, error: Tensor) -> Tensor:
    """The larger of log p's error and of the state's, by length, as log p sums over dimensions."""
    return torch.maximum(error[:, :n].norm(dim=1), error[:, n:].mean(1).abs())


def _not_in_an_ode(*_: Any) -> Any:
    """What the problem has for denoised values and for noise."""
    raise AssertionError("an ODE solver asked for more than the velocity")


def check_how(
    sde: Model,
    *,
    trace: str | TraceEstimator = "exact",
    probes: int | None = None,
    solver: str | Solver = "adams",
    steps: int | None = None,
    spacing: str | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> None:
    """Raise the errors of `likelihood` and `sample` for these arguments, without any work."""
    batch_ranges(sde, 1, batch_size)
    planned = plan_ode(sde, solver, steps, spacing, {**options})
    DensityODE(sde, planned, as_estimator(trace, probes))
