"""Runge–Kutta methods: rows of one table, with a fixed grid or with a step size of its own for every sample.

A tableau (a, b, c) takes the stages k_i = v(y + h·Σ_j a_ij·k_j, φ + c_i·h) to y + h·Σ b_i·k_i. If it has a second row of
weights b̂ of lower order, h·Σ(b_i − b̂_i)·k_i estimates the error of a step, and each sample chooses its step by a PI
controller (Hairer, Nørsett & Wanner 1993, II.4 and IV.2). The estimate is divided by atol + rtol·max(|y|, |y'|); the norm
of a row is its root mean square, and a step is taken when that is at most 1.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import number, whole
from .base import SOLVERS, Counts, Problem, Stepper


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau.

    Parameters
    ----------
    order : int
        Order of the solution.
    a : tuple of tuples
        Strictly lower triangle; row i has i entries.
    b : tuple
        Weights.
    b_hat : tuple or None
        Weights of the embedded lower order, if the method has them.

    Examples
    --------
    >>> TABLEAUS["heun"].c
    (0.0, 1.0)
    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    b_hat: tuple[float, ...] | None = None

    @functools.cached_property
    def c(self) -> tuple[float, ...]:
        """Nodes: the row sums of a."""
        return tuple(math.fsum(row) for row in self.a)

    @functools.cached_property
    def error(self) -> tuple[float, ...]:
        """b − b̂."""
        return tuple(x - y for x, y in zip(self.b, self.b_hat or self.b, strict=True))

    @functools.cached_property
    def fsal(self) -> bool:
        """First same as last: the last stage is the first of the next step."""
        return self.b[-1] == 0 and self.a[-1] == self.b[:-1]


TABLEAUS: dict[str, Tableau] = {
    "euler": Tableau(1, ((),), (1.0,)),
    "heun": Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2)),
    "rk4": Tableau(4, ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "rk45": Tableau(  # Dormand & Prince 1980
        5,
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    ),
}
"""Explicit methods by name: euler (1), heun (2), rk4 (4), rk45 (5, Dormand & Prince, with embedded order 4)."""


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
            ks.append(problem.velocity(_combine(z, h, row, ks), here + c * h, None))
        return _combine(z, h, self.tableau.b, ks)


@dataclass(frozen=True)
class AdaptiveRungeKutta(RungeKutta):
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
    >>> bool((scoresde.solve(sde, 4, solver="rk45", rtol=1e-3, atol=1e-3).nfe < 60).all())
    True
    >>> AdaptiveRungeKutta(TABLEAUS["rk45"], rtol=-1.0)
    Traceback (most recent call last):
    ValueError: rtol is greater than 0, got -1.0; try 1e-5
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000
    steps: ClassVar[None] = None
    tolerances: ClassVar[tuple[str, ...]] = ("rtol", "atol", "max_steps")

    def __post_init__(self) -> None:
        if self.tableau.b_hat is None:
            raise ValueError("this tableau has no b_hat to estimate errors with; use RungeKutta on a fixed grid")
        number("rtol", self.rtol, 0, math.inf, hint="try 1e-5")
        number("atol", self.atol, 0, math.inf, hint="try 1e-5")
        whole("max_steps", self.max_steps)

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        return self._adapt(problem, z) if problem.adaptive else super().run(problem, z)

    def _adapt(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:
        """Move each sample with steps of its own from station to station; only those still under way are evaluated."""
        start, end = problem.levels[0].phi, problem.levels[-1].phi
        sign = math.copysign(1.0, end - start)
        y, k = z.clone(), problem.velocity(z, start, None)
        phi = z.new_full((len(z),), start, dtype=torch.float64)
        h, before = self._first_step(problem, z, k, sign), torch.full_like(phi, 1e-4)
        accepted, rejected = torch.zeros_like(phi, dtype=torch.int64), torch.zeros_like(phi, dtype=torch.int64)
        failed, reason = torch.zeros_like(phi, dtype=torch.bool), ""
        for i, station in enumerate(problem.levels[1:], start=1):
            while len(rows := ((phi != station.phi) & ~failed).nonzero()[:, 0]):
                some = None if len(rows) == len(z) else rows
                y0, k0, at, wish, old = (v if some is None else v[rows] for v in (y, k, phi, h, before))
                room = (station.phi - at).abs()
                lands = wish >= room * (1 - 1e-9)
                step = torch.minimum(wish, room)
                new, k_new, error, finite = self._attempt(problem, y0, k0, at, sign * step, some)
                good = error <= 1.0
                # PI controller (beta = 0.04); what failed shrinks, what passed grows at most tenfold.
                growth = 0.9 * error.clamp_min(1e-10) ** (0.03 - 1 / self.order) * old**0.04
                growth = torch.where(good, growth.clamp(0.2, 10.0), growth.clamp(0.1, 0.9).nan_to_num(nan=0.1))
                h[rows] = torch.where(good & lands, torch.maximum(wish, step * growth), step * growth)
                taken = rows[good]
                y[taken], k[taken], before[taken] = new[good], k_new[good], error[good].clamp_min(1e-4)
                phi[taken] = torch.where(lands, station.phi, at + sign * step)[good]
                accepted[taken] += 1
                rejected[rows] += ~good
                stuck = ~good & (step < 1e-12)
                lost = stuck | ((phi[rows] != station.phi) & (accepted[rows] + rejected[rows] >= self.max_steps))
                if bool(lost.any()):
                    failed[rows[lost]] = True
                    reason = "steps" if not bool(stuck.any()) else "stuck" if bool(finite[stuck].all()) else "nan"
            problem.observe(i, y)
        per_step = len(self.tableau.b) - self.tableau.fsal
        nfe = 2 + per_step * (accepted + rejected)
        return y, Counts(nfe, accepted, rejected, failed, reason)

    def _attempt(
        self, problem: Problem, y: Tensor, k: Tensor, phi: Tensor, step: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Try one step: the new state, the velocity there, the error in units of the tolerance, and whether all was finite."""
        tableau, h = self.tableau, step.unsqueeze(1).to(y.dtype)
        ks, new = [k], y
        for row, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
            new = _combine(y, h, row, ks)
            ks.append(problem.velocity(new, phi + c * step, rows))
        if not tableau.fsal:
            new = _combine(y, h, tableau.b, ks)
        error = _combine(None, h, tableau.error, ks) / (self.atol + self.rtol * torch.maximum(y.abs(), new.abs()))
        k_new = ks[-1] if tableau.fsal else problem.velocity(new, phi + step, rows)
        return new, k_new, problem.norm(error).double(), k_new.isfinite().all(1)

    def _first_step(self, problem: Problem, y: Tensor, k: Tensor, sign: float) -> Tensor:
        """Choose each sample's first step by the algorithm of Hairer, Nørsett & Wanner 1993, II.4; one evaluation."""
        scale = self.atol + self.rtol * y.abs()
        size, slope = problem.norm(y / scale).double(), problem.norm(k / scale).double()
        # Where nothing moves yet (a centered model in pure noise), a hundredth of a radian; the arc is π/2 long.
        h0 = torch.where(slope < 1e-5, 0.01, 0.01 * size / slope).clamp(1e-6, 0.1).nan_to_num(nan=1e-6)
        start = problem.levels[0].phi
        probe = problem.velocity(y + (sign * h0).unsqueeze(1).to(y.dtype) * k, start + sign * h0, None)
        bend = problem.norm((probe - k) / scale).double() / h0
        steepest = torch.maximum(slope, bend)
        h1 = torch.where(steepest <= 1e-15, (h0 * 1e-3).clamp_min(1e-6), (0.01 / steepest) ** (1 / self.order))
        return torch.minimum(100 * h0, h1).clamp(1e-8, 0.5).nan_to_num(nan=1e-6)


def _combine(y: Tensor | None, h: float | Tensor, weights: tuple[float, ...], ks: list[Tensor]) -> Tensor:
    """Return y + h·Σ w_i·k_i, leaving out zero weights."""
    terms = [(w, k) for w, k in zip(weights, ks, strict=False) if w]
    if not terms:
        return y if y is not None else torch.zeros_like(ks[0])
    if y is not None and isinstance(h, float):
        total = torch.add(y, terms[0][1], alpha=h * terms[0][0])
        for w, k in terms[1:]:
            total.add_(k, alpha=h * w)
        return total
    total = terms[0][1] * terms[0][0]
    for w, k in terms[1:]:
        total.add_(k, alpha=w)
    return total.mul_(h) if y is None else torch.addcmul(y, total, h)  # type: ignore[arg-type]


for _name, _tableau in TABLEAUS.items():
    SOLVERS.add(_name, functools.partial(AdaptiveRungeKutta if _tableau.b_hat else RungeKutta, _tableau))
