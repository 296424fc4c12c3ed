"""Singlestep exponential integrators in λ = log(α/σ) = −log tan φ: DPM-Solver and DPM-Solver++.

On the arc, z = cos φ·x0 + sin φ·ε moves so that along a trajectory, with x̂0 and ε̂ the network's
estimates,

    d(z/sin φ)/dλ = e^λ·x̂0        and        d(z/cos φ)/dλ = −e^{−λ}·ε̂.

A step of length h from (φ, λ), reaching the angle φ_c at λ + c·h, integrates one of the two: the
exponential exactly, and f, which is x̂0 or ε̂, as a polynomial in λ. With φ_1(x) = (e^x − 1)/x,
φ_{k+1}(x) = (φ_k(x) − 1/k!)/x that is

    x0:   z_c = (sin φ_c/sin φ)·z + cos φ_c·c·h·Σ_j Σ_k w_jk·φ_k(−c·h)·f_j
    eps:  z_c = (cos φ_c/cos φ)·z − sin φ_c·c·h·Σ_j Σ_k w_jk·φ_k(+c·h)·f_j

(Lu et al. 2022b; 2022a, Proposition 3.1). A method is its nodes c and weights w:
a row of `EXPONENTIALS`. Where a step is long in λ, |h| > 2, f is no polynomial in λ; at σ = 0 and
α = 0, λ is even infinite. Such a step takes the same row in the angle instead, with the velocity v
for f: z_c = z + c·Δφ·Σ_j Σ_k w_jk·φ_k(0)·v_j. As φ_k(0) = 1/k!, these are Runge–Kutta methods of
the same order (the midpoint rule, Heun's third-order method), finite at both ends. Other libraries
take every step in λ, and the step to σ = 0 as z' = x̂0, of first order.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .adaptive import Adaptive, LandingSolve, LandingTrial
from .base import SOLVERS, Stepper
from .exponential_tableaus import EXPONENTIALS, Exponential, by_node, step_numbers
from .problem import Counts, Level, Problem


def _combine(
    z: Tensor, a: float | Tensor, b: Sequence[float | Tensor], fs: list[Tensor]
) -> Tensor:
    """Return a·z + Σ_j b_j·f_j, for plain floats or columns (B, 1)."""
    total = z * a
    for w, f in zip(b, fs, strict=True):
        if isinstance(w, Tensor):
            total.addcmul_(w, f)
        elif w:
            total.add_(f, alpha=w)
    return total


def _move(
    nodes: list[list[Any]], z: Tensor, v: Tensor, velocity: Callable[[Tensor, Any], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Take a step from z, where the velocity is v; return the new state, and f at all nodes."""
    new = z
    fs: list[Tensor] = []
    for here, there in itertools.pairwise(nodes):
        if fs:
            v = velocity(new, here[0])
        fs.append(_combine(new, here[1], here[2:3], [v]))
        new = _combine(z, there[3], there[4:], fs)
    return new, fs


@dataclass(frozen=True)
class Singlestep(Stepper):
    """An exponential Runge–Kutta method on a fixed grid; default spacing uniform in φ.

    Each step starts afresh, at `evaluations` network evaluations; multistep methods take one. It
    carries no log-density. Its order holds where steps in λ get small. On a grid uniform in φ or t
    that goes down to σ(0) = 0 the last of them do not (log 2, log 3/2, …), and order 3 becomes 2
    in the limit. With spacing="logsnr", as in the papers, the order stays, but the error is larger
    up to hundreds of evaluations.

    Parameters
    ----------
    row : Exponential

    References
    ----------
    Lu et al., DPM-Solver, NeurIPS 2022 (2022a); DPM-Solver++, arXiv:2211.01095 (2022b).

    Examples
    --------
    >>> Singlestep(EXPONENTIALS["dpmpp_2s"]).nfe(10)
    20
    """

    row: Exponential = field(repr=False)
    steps: ClassVar[int | None] = 50
    spacing: ClassVar[str] = "arc"

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of the method."""
        return self.row.order

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        """Network evaluations a step."""
        return len(self.row.w)

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        return self._step(problem, z, i, self._grid(problem.levels[i : i + 2])[0])

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        for i, nodes in enumerate(self._grid(problem.levels)):
            z = self._step(problem, z, i, nodes)
            problem.observe(i + 1, z)
        return z, Counts(self.nfe(problem.last), problem.last)

    def _grid(self, levels: tuple[Level, ...]) -> list[list[list[float]]]:
        """Return the nodes of every step of a grid, in plain floats."""
        angles = torch.tensor([level.phi for level in levels], dtype=torch.float64, device="cpu")
        tables = step_numbers(self.row, angles[:-1], angles[1:])
        steps = zip(*(table.T.tolist() for table in tables), strict=True)
        return [by_node(self.row, *step)[: len(self.row.c)] for step in steps]

    def _step(self, problem: Problem, z: Tensor, i: int, nodes: list[list[float]]) -> Tensor:
        v = problem.velocity(z, problem.levels[i].phi, None)
        return _move(nodes, z, v, lambda y, phi: problem.velocity(y, phi, None))[0]


@dataclass(frozen=True)
class AdaptiveSinglestep(Adaptive, Singlestep):
    """An exponential Runge–Kutta method with an error estimate: each sample chooses its own steps.

    `"rk45"` needs fewer evaluations for errors of 1e-3 and less; this is for those who want
    DPM-Solver's. k-diffusion's and dpm-solver's adaptive variants share one step over the batch,
    and evaluate a rejected step's first stage anew. Here a sample that is done costs no more
    evaluations, a rejected step costs one less than an accepted one, and no sample depends on the
    others of its batch. The controller measures steps in φ, in which both ends are finite, so no λ
    has to be chosen to begin or end at. Steps that are long in λ are taken in φ altogether (see
    the module). With `steps=` it takes a fixed grid.

    Parameters
    ----------
    row : Exponential
        With `w_hat`.
    rtol, atol : float
        Tolerated error a step, relative and absolute, in standard deviations of the data.
    max_steps : int
        Attempted steps per sample after which a solve raises `SolverError`.

    Raises
    ------
    TypeError, ValueError
        For tolerances that are not positive, or max_steps < 1.

    References
    ----------
    Lu et al. 2022a, appendix C; Hairer, Nørsett & Wanner 1993, II.4 and IV.2, for the PI
    controller.

    Examples
    --------
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 0.1)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE())
    >>> bool((scoresde.solve(sde, 4, solver="dpm_adaptive", rtol=1e-2, atol=1e-2).nfe < 40).all())
    True
    >>> AdaptiveSinglestep(EXPONENTIALS["dpm_adaptive"], rtol=0)
    Traceback (most recent call last):
    ValueError: rtol is greater than 0, got 0; try 1e-3
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    usual: ClassVar[str] = "1e-3"

    def __post_init__(self) -> None:
        if self.row.w_hat is None:
            raise ValueError(
                "this method has no w_hat to estimate errors with; use Singlestep on a fixed grid"
            )
        super().__post_init__()

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        if not problem.adaptive:
            return super().run(problem, z)
        return _SinglestepSolve(problem, z, self).run(self.max_steps)


class _SinglestepSolve(LandingSolve):
    """An adaptive solve by an exponential method; `last_error` is that of the last step taken."""

    columns = (*LandingSolve.columns, "last_error")

    def __init__(self, problem: Problem, z: Tensor, solver: AdaptiveSinglestep) -> None:
        # A first guess that is rejected costs what a better one would.
        super().__init__(problem, z, h=0.2)
        self.solver = solver
        self.row = solver.row
        self.stages = solver.evaluations
        self.sign = math.copysign(1.0, self.end - self.start)
        self.slope = problem.velocity(z, self.start, None)
        self.last_error = torch.full_like(self.phi, 1e-4)

    def evaluate(self, y: Tensor, phi: Tensor, rows: Tensor | None) -> Tensor:
        return self.problem.velocity(y, phi, rows)

    def propose(self) -> LandingTrial:
        goal = self.next_stations()
        room = (goal - self.phi).abs()
        lands = self.h >= room * (1 - 1e-9)
        step = torch.minimum(self.h, room)
        there = torch.where(lands, goal, self.phi + self.sign * step)
        new, error = self._attempt(there)
        return LandingTrial(new, there, error, error, step, goal, lands)

    def _attempt(self, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new state, and the error in units of the tolerance."""
        z = self.y
        rows = self.under_way.some
        phi, numbers = step_numbers(self.row, self.phi, there)
        factors = numbers.to(z.dtype).unsqueeze(2).unbind()
        *nodes, last = by_node(self.row, phi.unbind(), factors)
        new, fs = _move(nodes, z, self.slope, lambda y, phi: self.problem.velocity(y, phi, rows))
        with torch.no_grad():
            error = _combine(torch.zeros_like(z), 0.0, last[4:], fs)
            scale = torch.maximum(z.abs(), new.abs()).mul_(self.solver.rtol).add_(self.solver.atol)
            return new, self.problem.norm(error.div_(scale)).double()

    def growth(self, error: Tensor) -> Tensor:
        # PI controller (beta = 0.04).
        power = 0.03 - 1 / self.solver.order
        return 0.9 * error.clamp_min(1e-10) ** power * self.last_error**0.04

    def resize(self, trial: LandingTrial, good: Tensor) -> None:
        super().resize(trial, good)
        self.last_error = torch.where(good, trial.error.clamp_min(1e-4), self.last_error)


for _name, _row in EXPONENTIALS.items():
    _class = AdaptiveSinglestep if _row.w_hat else Singlestep
    SOLVERS.add(_name, functools.partial(_class, _row))
