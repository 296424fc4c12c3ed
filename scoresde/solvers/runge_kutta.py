"""Runge–Kutta methods: rows of one table, on a fixed grid or with separate steps per sample.

A tableau takes the stages k_i = v(y + h·Σ_j a_ij·k_j, φ + c_i·h) to y' = y + h·Σ b_i·k_i
(`scoresde.solvers.tableaus`). If it has weights b̂ of lower order, e = h·Σ(b_i − b̂_i)·k_i
estimates the error of a step, and each sample chooses its own steps by a PI controller (Hairer,
Nørsett & Wanner 1993, II.4; Hairer & Wanner 1996, IV.2). The estimate is divided by atol +
rtol·max(|y|, |y'|). The norm of a row is its root mean square, and a step is taken when that is at
most 1.

States wanted on the way shorten no step: they are y + h·Σ b_i(θ)·k_i, the method's own
interpolant. So the end point is the same to the last bit for all `times=`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .adaptive import Adaptive, AdaptiveSolve, Trial
from .base import SOLVERS, Stepper
from .problem import Counts, Problem
from .tableaus import TABLEAUS, Tableau


@dataclass(frozen=True)
class RungeKutta(Stepper):
    """A tableau on a fixed grid, for dz/dφ = cos φ·ε̂ − sin φ·x̂0; default spacing uniform in φ.

    Parameters
    ----------
    tableau : Tableau

    Examples
    --------
    >>> RungeKutta(TABLEAUS["rk4"]).nfe(10)
    40
    """

    tableau: Tableau = field(repr=False)
    ode: ClassVar[bool] = True
    spacing: ClassVar[str] = "arc"

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of the tableau."""
        return self.tableau.order

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        """Network evaluations a step."""
        # A fixed grid does without the last stage of a first-same-as-last tableau.
        return len(self.tableau.b) - self.tableau.fsal

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        here, there = problem.levels[i].phi, problem.levels[i + 1].phi
        h = there - here
        ks: list[Tensor] = []
        for row, c in zip(self.tableau.a[: self.evaluations], self.tableau.c, strict=False):
            stage = _combine(z, [h * w for w in row], ks)
            phi = there if c == 1 else here + c * h
            ks.append(problem.velocity(stage, phi, None))
        return _combine(z, [h * w for w in self.tableau.b], ks)


@dataclass(frozen=True)
class AdaptiveRungeKutta(Adaptive, RungeKutta):
    """A tableau with an error estimate: each sample chooses its own steps.

    A sample that is done costs no more evaluations, and none depends on the others of its batch.
    With `steps=` it takes a fixed grid.

    Parameters
    ----------
    tableau : Tableau
        With `b_hat`.
    rtol, atol : float
        Tolerated error a step, relative and absolute, in standard deviations of the data (and
        nats, in a likelihood).
    max_steps : int
        Attempted steps per sample after which a solve raises `SolverError`.

    Raises
    ------
    TypeError, ValueError
        For tolerances that are not positive, or max_steps < 1.

    Examples
    --------
    >>> import scoresde
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 0.1)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE())
    >>> bool((scoresde.solve(sde, 4, solver="rk45", rtol=1e-3, atol=1e-3).nfe < 80).all())
    True
    >>> AdaptiveRungeKutta(TABLEAUS["rk45"], rtol=-1.0)
    Traceback (most recent call last):
    ValueError: rtol is greater than 0, got -1.0; try 1e-5
    """

    def __post_init__(self) -> None:
        if self.tableau.b_hat is None:
            raise ValueError(
                "this tableau has no b_hat to estimate errors with; use RungeKutta on a fixed grid"
            )
        super().__post_init__()

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        if not problem.adaptive:
            return super().run(problem, z)
        return _RungeKuttaSolve(problem, z, self).run(self.max_steps)

    def _error(self, problem: Problem, y: Tensor, new: Tensor, hks: list[Tensor]) -> Tensor:
        """Return the error (B,) of a step in units of the tolerance."""
        scale = torch.maximum(y.abs(), new.abs()).mul_(self.rtol).add_(self.atol)
        errors = [_combine(None, weights, hks) for weights in self.tableau.errors]
        return _blend([problem.norm(e.div_(scale)).double() for e in errors])

    @torch.no_grad()
    def _first_step(self, problem: Problem, y: Tensor, k: Tensor, sign: float) -> Tensor:
        """Choose each sample's first step (Hairer, Nørsett & Wanner 1993, II.4); one evaluation."""
        scale = self.atol + self.rtol * y.abs()
        size = problem.norm(y / scale).double()
        slope = problem.norm(k / scale).double()
        # A hundredth of a radian where nothing moves yet (a centered model in pure noise). The
        # arc is π/2 long.
        h0 = torch.where(slope < 1e-5, 0.01, 0.01 * size / slope)
        h0 = h0.clamp(1e-6, 0.1).nan_to_num(nan=1e-6)
        probed = y + (sign * h0).unsqueeze(1).to(y.dtype) * k
        probe = problem.velocity(probed, problem.levels[0].phi + sign * h0, None)
        bend = problem.norm((probe - k) / scale).double() / h0
        steepest = torch.maximum(slope, bend)
        flat = (h0 * 1e-3).clamp_min(1e-6)
        h1 = torch.where(steepest <= 1e-15, flat, (0.01 / steepest) ** (1 / self.order))
        return sign * torch.minimum(100 * h0, h1).clamp(1e-8, 0.5).nan_to_num(nan=1e-6)


SMALLEST_LOG_ERROR = math.log(1e-4)
"""Log of the least error that the controller remembers."""


@dataclass(slots=True)
class _RungeKuttaTrial(Trial):
    """A trial step of length `step` (B,), with its stages times h."""

    step: Tensor
    hks: list[Tensor]


class _RungeKuttaSolve(AdaptiveSolve[_RungeKuttaTrial]):
    """An adaptive solve by a tableau; `slope` (B, n) is the velocity where the samples are."""

    columns = (*AdaptiveSolve.columns, "slope", "log_error")

    def __init__(self, problem: Problem, z: Tensor, solver: AdaptiveRungeKutta) -> None:
        super().__init__(problem, z)
        self.solver = solver
        self.tableau = solver.tableau
        self.slope = problem.velocity(z, self.start, None)
        sign = math.copysign(1.0, self.end - self.start)
        self.h = solver._first_step(problem, z, self.slope, sign)
        self.log_error = torch.full_like(self.phi, SMALLEST_LOG_ERROR)  # of the last step taken
        self.dense = _DenseOutput(problem, solver.tableau, z)

    def propose(self) -> _RungeKuttaTrial:
        room = self.end - self.phi
        lands = room / self.h < 1.01
        step = torch.where(lands, room, self.h)
        there = torch.where(lands, self.end, self.phi + self.h)
        new, slope, hks = self._stages(step, there)
        with torch.no_grad():  # steps are held fixed by a gradient
            error = self.solver._error(self.problem, self.y, new, hks)
        return _RungeKuttaTrial(new, there, error, slope, step, hks)

    def _stages(self, step: Tensor, there: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the new state, the velocity there, and all stages times h."""
        tableau = self.tableau.closed
        rows = self.under_way.some
        # Expanded in memory, so that nothing below broadcasts short rows.
        h = step.to(self.y.dtype).unsqueeze(1).expand_as(self.y).contiguous()
        new, k = self.y, self.slope
        hks = [k * h]
        for row, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
            new = _combine(self.y, row, hks)
            phi = there if c == 1 else torch.add(self.phi, step, alpha=c)
            k = self.problem.velocity(new, phi, rows)
            hks.append(k * h)
        return new, k, hks

    def record(self, trial: _RungeKuttaTrial, good: Tensor) -> None:
        if len(self.dense.states):
            self.dense.record(self.y, trial, self.phi, good, self.under_way.rows)

    @torch.no_grad()
    def resize(self, trial: _RungeKuttaTrial, good: Tensor) -> None:
        # PI controller (beta = 0.04), in logarithms. An error above 1 always shrinks a step, and
        # NaN shrinks it most. With 0.8 where books have 0.9 a third as many steps are rejected,
        # and fewer evaluations are spent in all.
        log = trial.error.log()
        growth = torch.add(0.04 * self.log_error, log, alpha=0.03 - 1 / self.solver.order)
        growth.exp_().mul_(0.8).clamp_(0.1, 10.0).nan_to_num_(nan=0.1)
        self.h = growth.mul_(trial.step)
        self.log_error = torch.where(good, log.clamp_min_(SMALLEST_LOG_ERROR), self.log_error)

    def accept(self, trial: _RungeKuttaTrial, good: Tensor) -> None:
        wide = good.unsqueeze(1)
        self.y = torch.where(wide, trial.state, self.y)
        self.slope = torch.where(wide, trial.output, self.slope)
        self.phi = torch.where(good, trial.phi, self.phi)

    def stuck(self, trial: _RungeKuttaTrial, good: Tensor) -> Tensor | None:
        # It is rare, so that looking now and then is enough.
        return None if self.attempts % 16 else self.h.abs() < 1e-12

    def evaluations(self, tried: Tensor, accepted: Tensor, good: Tensor) -> Tensor:
        stages = len(self.tableau.b) - self.tableau.fsal
        return 2 + stages * tried + self.dense.nfe

    def inner_states(self) -> Iterable[Tensor]:
        return self.dense.states


class _DenseOutput:
    """The states y + h·Σ b_i(θ)·k_i at the inner levels, and the evaluations of extra stages."""

    def __init__(self, problem: Problem, tableau: Tableau, z: Tensor) -> None:
        inner = [level.phi for level in problem.levels[1:-1]]
        self.problem = problem
        self.extra = tableau.extra
        self.phi = torch.tensor(inner, dtype=torch.float64, device=z.device).unsqueeze(1)
        self.d = torch.tensor(tableau.interpolant, dtype=torch.float64, device=z.device)
        self.states = z.expand(len(inner), *z.shape).clone()
        self.nfe = torch.zeros(len(z), dtype=torch.int64, device=z.device)

    def record(
        self, y: Tensor, trial: _RungeKuttaTrial, phi: Tensor, good: Tensor, rows: Tensor
    ) -> None:
        """Write the states at the levels that a step taken from (y, φ) passes or reaches."""
        behind = (self.phi - phi) * trial.step > 0
        ahead = (self.phi - trial.phi) * trial.step <= 0
        passed = behind & ahead & good  # (levels, samples)
        at = passed.any(0).nonzero()[:, 0]
        if not len(at):
            return
        y, phi, step, rows = y[at], phi[at], trial.step[at], rows[at]
        hks = [k[at] for k in trial.hks]
        for row in self.extra:
            k = self.problem.velocity(_combine(y, row, hks), phi + math.fsum(row) * step, rows)
            hks.append(k * step.to(y.dtype).unsqueeze(1))
        self.nfe[rows] += len(self.extra)
        level, of = passed[:, at].nonzero(as_tuple=True)
        theta = (self.phi[level, 0] - phi[of]) / step[of]
        weights = self.d[:, -1:] * theta
        for m in range(self.d.shape[1] - 2, -1, -1):
            weights = (weights + self.d[:, m : m + 1]) * theta
        state = y[of]
        for w, k in zip(weights.to(y.dtype), hks, strict=True):
            state = torch.addcmul(state, w.unsqueeze(1), k[of])
        self.states[level, rows[of]] = state


def _blend(sizes: list[Tensor]) -> Tensor:
    """Return the size e of an error, or e²/√(e² + e_low²/100) where a tableau has `b_low`."""
    high, *low = sizes
    if not low:
        return high
    return high.square() / torch.hypot(high, 0.1 * low[0]).clamp_min(1e-30)


def _combine(y: Tensor | None, weights: Sequence[float], ks: list[Tensor]) -> Tensor:
    """Return y + Σ w_i·k_i, leaving out zero weights."""
    total = y
    for w, k in zip(weights, ks, strict=False):
        if not w:
            continue
        # The first sum is a new tensor, and the others go into it.
        if total is None:
            total = k * w
        elif total is y:
            total = torch.add(total, k, alpha=w)
        else:
            total.add_(k, alpha=w)
    return torch.zeros_like(ks[0]) if total is None else total


for _name, _tableau in TABLEAUS.items():
    _class = AdaptiveRungeKutta if _tableau.b_hat else RungeKutta
    SOLVERS.add(_name, functools.partial(_class, _tableau))
SOLVERS.alias("rk23", "bosh3")
SOLVERS.alias("dopri5", "rk45")
