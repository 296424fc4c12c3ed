"""Runge–Kutta methods: rows of one table, with a fixed grid or with a step size of its own for every sample.

A tableau takes the stages k_i = v(y + h·Σ_j a_ij·k_j, φ + c_i·h) to y' = y + h·Σ b_i·k_i (`scoresde.solvers.tableaus`). If it
has weights b̂ of lower order, e = h·Σ(b_i − b̂_i)·k_i estimates the error of a step, and each sample chooses its own steps
by a PI controller (Hairer, Nørsett & Wanner 1993, II.4; Hairer & Wanner 1996, IV.2). The estimate is divided by
atol + rtol·max(|y|, |y'|); the norm of a row is its root mean square, and a step is taken when that is at most 1.

States wanted on the way shorten no step: they are y + h·Σ b_i(θ)·k_i, the method's own interpolant. So the end point is the
same to the last bit whichever times are asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .base import SOLVERS, Adaptive, Counts, Problem, Stepper, Survivors
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
        """Network evaluations a step; the last stage of a first-same-as-last tableau is not needed on a fixed grid."""
        return len(self.tableau.b) - self.tableau.fsal

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        here, there = problem.levels[i].phi, problem.levels[i + 1].phi
        h = there - here
        ks: list[Tensor] = []
        for row, c in zip(self.tableau.a[: self.evaluations], self.tableau.c, strict=False):
            ks.append(problem.velocity(_combine(z, [h * w for w in row], ks), there if c == 1 else here + c * h, None))
        return _combine(z, [h * w for w in self.tableau.b], ks)


@dataclass(frozen=True)
class AdaptiveRungeKutta(Adaptive, RungeKutta):
    """A tableau with an error estimate: each sample is an initial-value problem with steps of its own.

    A sample that is done costs no more evaluations, and none depends on its mates. With `steps=` it takes a fixed grid.

    Parameters
    ----------
    tableau : Tableau
        With `b_hat`.
    rtol, atol : float
        Tolerated error a step, relative and absolute, in standard deviations of the data (and nats, in a likelihood).
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
            raise ValueError("this tableau has no b_hat to estimate errors with; use RungeKutta on a fixed grid")
        super().__post_init__()

    def error_factor(self, adaptive: bool) -> float:  # noqa: D102
        # On a rough field a step errs by h·‖b‖ times the roughness and sees h·‖b − b̂‖ times it: a third for "bosh3", but a
        # sixth for "tsit5" and an eleventh for "rk45", which on a smooth field err by far less than they see. The error of
        # "bosh3" falls faster with the tolerance than its estimate.
        if self.tableau is not TABLEAUS["bosh3"]:
            return math.nan
        return 0.2 * float((max(self.rtol, self.atol) / 1e-4) ** 0.4)

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        return self._adapt(problem, z) if problem.adaptive else super().run(problem, z)

    def _adapt(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:
        """Move each sample with steps of its own; only those still under way are kept in y, k, φ, h, … and evaluated."""
        start, end = problem.levels[0].phi, problem.levels[-1].phi
        y, k = z, problem.velocity(z, start, None)
        phi = z.new_full((len(z),), start, dtype=torch.float64)
        h = self._first_step(problem, z, k, math.copysign(1.0, end - start))
        old = torch.full_like(phi, math.log(1e-4))  # log of the last accepted step's error
        gauged = None if problem.measure is None else torch.zeros_like(phi)  # Σ measure(e)
        accepted = torch.zeros_like(phi, dtype=torch.int64)
        under_way, attempts = Survivors(len(z), z.device), 0
        path = _Path(problem, self.tableau, z) if problem.last > 1 else None
        while len(y):
            attempts += 1
            room = end - phi
            lands = room / h < 1.01
            step, there = torch.where(lands, room, h), torch.where(lands, end, phi + h)
            new, k_new, hks = self._attempt(problem, y, k, phi, step, there, under_way.some)
            with torch.no_grad():  # steps are held fixed by a gradient
                error, gauge = self._error(problem, y, new, k_new, there, hks)
                good = error <= 1
                # PI controller (beta = 0.04), in logarithms; error > 1 always shrinks a step, and NaN shrinks it most. With 0.8
                # where books have 0.9 a third as many steps are rejected, and fewer evaluations are spent in all.
                log = error.log()
                growth = torch.add(0.04 * old, log, alpha=0.03 - 1 / self.order).exp_().mul_(0.8)
                h = growth.clamp_(0.1, 10.0).nan_to_num_(nan=0.1).mul_(step)
            if path is not None:
                path.record(y, hks, phi, step, there, good, under_way.rows)
            if gauged is not None and gauge is not None:
                gauged[under_way.rows] += torch.where(good, gauge, 0.0)
            wide = good.unsqueeze(1)
            y, k = torch.where(wide, new, y), torch.where(wide, k_new, k)
            phi, old = torch.where(good, there, phi), torch.where(good, log.clamp_min_(math.log(1e-4)), old)
            accepted += good
            leaves = arrived = good & lands
            if attempts == self.max_steps:
                leaves = torch.ones_like(arrived)
            elif attempts % 16 == 0:  # now and then, as it is rare
                leaves = arrived | (h.abs() < 1e-12)
            if bool(leaves.any()):  # the one thing a step waits for
                stay = under_way.leave(leaves, y, k_new, accepted, torch.full_like(accepted, attempts), ~arrived)
                y, k, phi, h, old, accepted = (v.index_select(0, stay) for v in (y, k, phi, h, old, accepted))
        end_point, slope, taken, tried, failed = under_way.all()
        finite = bool(slope[failed].isfinite().all())
        reason = "nan" if not finite else "steps" if attempts == self.max_steps else "stuck"
        nfe = 2 + (len(self.tableau.b) - self.tableau.fsal) * tried
        if path is not None:
            nfe = nfe + path.nfe
            for i, state in enumerate(path.states, start=1):
                problem.observe(i, state)
        problem.observe(problem.last, end_point)
        return end_point, Counts(nfe, taken, tried - taken, failed, reason, gauged)

    def _attempt(
        self, problem: Problem, y: Tensor, k: Tensor, phi: Tensor, step: Tensor, there: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Try one step: the new state, the velocity there, and all stages times h."""
        tableau = self.tableau.closed
        h = step.to(y.dtype).unsqueeze(1).expand_as(y).contiguous()  # so that nothing below has to broadcast short rows
        hks, new = [k * h], y
        for row, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
            new = _combine(y, row, hks)
            k = problem.velocity(new, there if c == 1 else torch.add(phi, step, alpha=c), rows)
            hks.append(k * h)
        return new, k, hks

    def _error(
        self, problem: Problem, y: Tensor, new: Tensor, k: Tensor, phi: Tensor, hks: list[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the error of a step in units of the tolerance, and by the problem's measure."""
        scale = torch.maximum(y.abs(), new.abs()).mul_(self.rtol).add_(self.atol)
        errors = [_combine(None, weights, hks) for weights in self.tableau.errors]
        gauge = None
        if problem.measure is not None:
            gauge = _blend([problem.measure(e, new, k, phi).double() for e in errors])
        return _blend([problem.norm(e.div_(scale)).double() for e in errors]), gauge

    @torch.no_grad()
    def _first_step(self, problem: Problem, y: Tensor, k: Tensor, sign: float) -> Tensor:
        """Choose each sample's first step by the algorithm of Hairer, Nørsett & Wanner 1993, II.4; one evaluation.

        From noise a fixed 0.1 would do and save an evaluation. From data it can step over a narrow mode unseen.
        """
        scale = self.atol + self.rtol * y.abs()
        size, slope = problem.norm(y / scale).double(), problem.norm(k / scale).double()
        # Where nothing moves yet (a centered model in pure noise), a hundredth of a radian; the arc is π/2 long.
        h0 = torch.where(slope < 1e-5, 0.01, 0.01 * size / slope).clamp(1e-6, 0.1).nan_to_num(nan=1e-6)
        start = problem.levels[0].phi
        probe = problem.velocity(y + (sign * h0).unsqueeze(1).to(y.dtype) * k, start + sign * h0, None)
        bend = problem.norm((probe - k) / scale).double() / h0
        steepest = torch.maximum(slope, bend)
        h1 = torch.where(steepest <= 1e-15, (h0 * 1e-3).clamp_min(1e-6), (0.01 / steepest) ** (1 / self.order))
        return sign * torch.minimum(100 * h0, h1).clamp(1e-8, 0.5).nan_to_num(nan=1e-6)


class _Path:
    """The states at the inner levels of an adaptive solve, y + h·Σ b_i(θ)·k_i, and the evaluations spent on extra stages."""

    def __init__(self, problem: Problem, tableau: Tableau, z: Tensor) -> None:
        inner = [level.phi for level in problem.levels[1:-1]]
        self.problem, self.extra = problem, tableau.extra
        self.phi = torch.tensor(inner, dtype=torch.float64, device=z.device).unsqueeze(1)
        self.d = torch.tensor(tableau.interpolant, dtype=torch.float64, device=z.device)
        self.states = z.expand(len(inner), *z.shape).clone()
        self.nfe = torch.zeros(len(z), dtype=torch.int64, device=z.device)

    def record(self, y: Tensor, hks: list[Tensor], phi: Tensor, step: Tensor, there: Tensor, good: Tensor, rows: Tensor) -> None:
        """Write the states at the levels that an accepted step from φ passed or reached."""
        passed = ((self.phi - phi) * step > 0) & ((self.phi - there) * step <= 0) & good  # (levels, samples)
        at = passed.any(0).nonzero()[:, 0]
        if not len(at):
            return
        y, phi, step, rows, hks = y[at], phi[at], step[at], rows[at], [k[at] for k in hks]
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
    """The size of an error by that of its estimate, or of the two estimates of a tableau with `b_low`."""
    high, *low = sizes
    return high.square() / torch.hypot(high, 0.1 * low[0]).clamp_min(1e-30) if low else high


def _combine(y: Tensor | None, weights: Sequence[float], ks: list[Tensor]) -> Tensor:
    """Return y + Σ w_i·k_i, leaving out zero weights."""
    total = y
    for w, k in zip(weights, ks, strict=False):
        if w:
            # The first sum is a new tensor, the others go into it.
            total = k * w if total is None else torch.add(total, k, alpha=w) if total is y else total.add_(k, alpha=w)
    return torch.zeros_like(ks[0]) if total is None else total


for _name, _tableau in TABLEAUS.items():
    SOLVERS.add(_name, functools.partial(AdaptiveRungeKutta if _tableau.b_hat else RungeKutta, _tableau))
SOLVERS.alias("rk23", "bosh3")
SOLVERS.alias("dopri5", "rk45")
