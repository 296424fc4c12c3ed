"""An adaptive stochastic solver: improved Euler on the reverse SDE in the angle.

Each sample has separate steps.

Any noise keeps the marginals (see `Process.reverse_g2`). Per radian, n² = sin 2φ is the same for
every process and vanishes at both ends. Going down the arc,

    dz = −(v + cos φ·ε̂)·|dφ| + √(sin 2φ) dw = −f·|dφ| + dB,

where B is Brownian motion in the time τ = sin²φ, so that its increment from φ to φ' < φ is
exactly N(0, sin²φ − sin²φ'). With that increment ΔB and h = φ − φ', Jolicoeur-Martineau et al.
take

    z' = z − h·f(z, φ) + ΔB,        z'' = z − h·½(f(z, φ) + f(z', φ')) + ΔB,

go on from z'', of weak order 2 since the noise does not depend on z, and estimate the error of the
step by z' − z''.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .adaptive import Adaptive, LandingSolve, LandingTrial
from .base import SOLVERS, Stepper
from .problem import Counts, Problem, column

SAFETY = 0.75
RATE = 0.5
"""The next step is SAFETY·error^(−RATE) times this one. The paper has 0.9 for both. Errors along a
Brownian path vary so much from step to step that ours halve the rejections, and cost fewer
evaluations at the same bias.
"""


class _BrownianPaths:
    """The Brownian paths of all samples as far as rejected steps have seen them."""

    # Each is a stack of pieces. The top piece leads from where the sample is down to the angle
    # `goal` by the increment `piece`; the others go on from there. A piece that is too long is
    # split by a Brownian bridge, and its rest is kept. To throw it away would favor paths on which
    # steps succeed.

    def __init__(self, z: Tensor) -> None:
        self.depth = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        self._goal = z.new_zeros((1, len(z)), dtype=torch.float64)
        self._piece = z.new_zeros((1, *z.shape))

    def look(self, rows: Tensor, phi: Tensor, wish: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """Return ends (B,) not beyond `wish` and increments of pieces from φ; n: normal draws."""
        depth = self.depth[rows]
        variance = _variance(phi, wish)
        goal = wish
        new = depth == 0
        increment = column(variance.clamp_min(0).sqrt(), n) * n
        some = depth.nonzero()[:, 0]
        if len(some):
            top, of = depth[some] - 1, rows[some]
            end, rest = self._goal[top, of], self._piece[top, of]
            known = _variance(phi[some], end)
            # The share of the known variance; 1 or more where the piece is used unchanged.
            share = variance[some] / known
            bridge = (variance[some] * (1 - share)).clamp_min(0).sqrt()
            first = column(share, n) * rest + column(bridge, n) * n[some]
            cut = wish[some] > end
            self._piece[top[cut], of[cut]] = (rest - first)[cut]
            goal = goal.index_copy(0, some, torch.where(cut, wish[some], end))
            new = new.index_copy(0, some, cut)
            increment = increment.index_copy(0, some, torch.where(cut.unsqueeze(1), first, rest))
        if int(depth.max()) == len(self._goal):
            self._goal = torch.cat([self._goal, torch.zeros_like(self._goal[:1])])
            self._piece = torch.cat([self._piece, torch.zeros_like(self._piece[:1])])
        at = new.nonzero()[:, 0]
        self._goal[depth[at], rows[at]] = goal[at]
        self._piece[depth[at], rows[at]] = increment[at]
        self.depth[rows] = depth + new
        return goal, increment


def _variance(high: Tensor, low: Tensor) -> Tensor:
    """Return sin² high − sin² low, without cancellation."""
    return torch.sin(high - low) * torch.sin(high + low)


@SOLVERS.register("ggf")
@dataclass(frozen=True)
class GottaGoFast(Adaptive, Stepper):
    """Improved Euler on the reverse SDE with adaptive, separate steps per sample; any process.

    The error of a step is the root mean square of (z' − z'')/(sin φ·(atol + rtol·max(|z|,
    |z''|))). A step is taken when that is at most 1, and the next is 0.75/√error times as long.
    sin φ is the noise level where the step starts. Without it (as in the paper, where x and not z
    is the state) steps near the data are too long, and modes up to 1% wider at equal cost. The
    paper's scale is max(atol, rtol·…) where ours is the sum. A rejected step costs one evaluation,
    not two. The solver keeps what it saw of the Brownian path; the paper draws anew, and so
    prefers quiet paths. With `steps=` it takes a fixed grid, and has weak order 2.

    A tolerance bounds the error of a step along a path, not that of the distribution. On
    standardized data with modes of 10% of its standard deviation these come out 43% too wide at a
    tolerance of 0.04, with 3% of the samples far from all of them, 7% at 0.02, and 1% at 0.01, the
    default, for 156 evaluations. (The paper's own recursion at its tolerances 0.0078 and 0.1: 16%
    too wide at 118 evaluations; with 0.5 for the second, its fastest: twice as wide, 6% far out.)

    Parameters
    ----------
    rtol, atol : float
        Tolerated error a step, relative and absolute, in units of the noise level.
    max_steps : int
        Attempted steps per sample after which a solve raises `SolverError`.

    Raises
    ------
    TypeError, ValueError
        For tolerances that are not positive, or max_steps < 1.

    References
    ----------
    Jolicoeur-Martineau et al., Gotta go fast when generating data with score-based models, 2021.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> loose = scoresde.solve(sde, 8, solver="ggf", atol=0.2, rtol=0.2)
    >>> tight = scoresde.solve(sde, 8, solver="ggf", atol=0.01, rtol=0.01)
    >>> bool((loose.nfe < tight.nfe).all())
    True
    """

    rtol: float = 0.01
    atol: float = 0.01
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    spacing: ClassVar[str] = "logsnr"
    usual: ClassVar[str] = "0.01"

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        here, there = problem.levels[i], problem.levels[i + 1]
        h = here.phi - there.phi
        std = math.sqrt(math.sin(h) * math.sin(here.phi + there.phi))
        moved = z.add(problem.noise(), alpha=std)
        f = _drift(problem, z, here.phi, None)
        f1 = _drift(problem, torch.add(moved, f, alpha=-h), there.phi, None)
        return moved.add_(f.add_(f1), alpha=-0.5 * h)

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        if not problem.adaptive:
            return super().run(problem, z)
        return _ImprovedEulerSolve(problem, z, self).run(self.max_steps)


class _ImprovedEulerSolve(LandingSolve):
    """An adaptive solve by improved Euler; `slope` (B, n) is the drift f where the samples are."""

    # A sample's k-th attempt takes its row of the k-th draw, so that none waits at a station.

    stages = 2

    def __init__(self, problem: Problem, z: Tensor, solver: GottaGoFast) -> None:
        super().__init__(problem, z, h=0.02)
        self.solver = solver
        self.slope = _drift(problem, z, self.phi, None)
        self.paths = _BrownianPaths(z)

    def evaluate(self, y: Tensor, phi: Tensor, rows: Tensor | None) -> Tensor:
        return _drift(self.problem, y, phi, rows)

    def propose(self) -> LandingTrial:
        y, phi, f = self.y, self.phi, self.slope
        some = self.under_way.some
        station = self.next_stations()
        draw = self.problem.noise()
        if some is not None:
            draw = draw[some]
        wish = torch.where(self.h >= (phi - station) * (1 - 1e-9), station, phi - self.h)
        goal, increment = self.paths.look(self.under_way.rows, phi, wish, draw)
        step = phi - goal
        moved = y + increment
        h = column(step, y)
        f1 = _drift(self.problem, moved - h * f, goal, some)
        there = moved - 0.5 * h * (f + f1)
        with torch.no_grad():
            scale = torch.maximum(y.abs(), there.abs()).mul_(self.solver.rtol)
            scale = scale.add_(self.solver.atol).mul_(column(phi.sin(), y))
            error = self.problem.norm((f1 - f).mul_(0.5 * h).div_(scale)).double()
        # Cut by a station, or by the end of a known piece of the path.
        cut = step < self.h * (1 - 1e-9)
        return LandingTrial(there, goal, error, f1, step, station, cut)

    def growth(self, error: Tensor) -> Tensor:
        return SAFETY * error.clamp_min(1e-10) ** -RATE

    def accept(self, trial: LandingTrial, good: Tensor) -> None:
        self.paths.depth[self.under_way.rows] -= good.long()
        super().accept(trial, good)


def _drift(problem: Problem, z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
    """Return f = v + cos φ·ε̂ with ε̂ = sin φ·z + cos φ·v."""
    v = problem.velocity(z, phi, rows)
    if isinstance(phi, float):
        cos, sin = math.cos(phi), math.sin(phi)
        return torch.add((1 + cos * cos) * v, z, alpha=cos * sin)
    c, s = (w.unsqueeze(1).to(z) for w in (phi.cos(), phi.sin()))
    return (1 + c * c) * v + (c * s) * z
