"""An adaptive stochastic solver: improved Euler on the reverse SDE in the angle, a step size of its own for every sample.

Any noise keeps the marginals (see `Process.reverse_g2`); per radian n² = sin 2φ is the same for every process and vanishes at
both ends. Going down the arc,

    dz = −(v + cos φ·ε̂)·|dφ| + √(sin 2φ) dw = −f·|dφ| + dB,

where B is Brownian motion in the clock τ = sin²φ, so that its increment from φ to φ' < φ is exactly N(0, sin²φ − sin²φ'). With
that increment ΔB and h = φ − φ', Jolicoeur-Martineau et al. take

    z' = z − h·f(z, φ) + ΔB,        z'' = z − h·½(f(z, φ) + f(z', φ')) + ΔB,

go on from z'', of weak order 2 since the noise does not depend on z, and estimate the error of the step by z' − z''.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import SOLVERS, Adaptive, Counts, Problem, Stepper, Survivors, column

# The next step is θ·error^(−r) times this one. The paper has 0.9 for both; errors along a Brownian path vary so much from step to
# step that these cost half the rejections, and fewer evaluations at the same bias.
THETA, RATE = 0.75, 0.5


class _Path:
    """The Brownian paths of all samples, known as far as rejected steps have looked: a stack of pieces for each.

    The top piece leads from where the sample is down to `goal` by the increment `piece`; those below go on from there. A piece
    that proves too long is split by a Brownian bridge and its rest is kept, so that what was seen of the path does not change:
    throwing an increment away because a step failed would favor paths on which steps succeed.
    """

    def __init__(self, z: Tensor) -> None:
        self.depth = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        self._goal = z.new_zeros((1, len(z)), dtype=torch.float64)
        self._piece = z.new_zeros((1, *z.shape))

    def look(self, rows: Tensor, phi: Tensor, wish: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """Make the top piece of these rows end at `wish` if it is longer or there is none; return its end and increment."""
        depth, done = self.depth[rows], _variance(phi, wish)
        goal, new, increment = wish, depth == 0, column(done.clamp_min(0).sqrt(), n) * n
        some = depth.nonzero()[:, 0]
        if len(some):
            top, of, want, done = depth[some] - 1, rows[some], wish[some], done[some]
            end, rest = self._goal[top, of], self._piece[top, of]
            share = done / _variance(phi[some], end)  # of the known piece's variance; 1 or more if it serves as it is
            first = column(share, n) * rest + column((done * (1 - share)).clamp_min(0).sqrt(), n) * n[some]
            cut = want > end
            self._piece[top[cut], of[cut]] = (rest - first)[cut]
            goal, new = goal.index_copy(0, some, torch.where(cut, want, end)), new.index_copy(0, some, cut)
            increment = increment.index_copy(0, some, torch.where(cut.unsqueeze(1), first, rest))
        if int(depth.max()) == len(self._goal):
            self._goal, self._piece = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (self._goal, self._piece))
        at = new.nonzero()[:, 0]
        self._goal[depth[at], rows[at]], self._piece[depth[at], rows[at]] = goal[at], increment[at]
        self.depth[rows] = depth + new
        return goal, increment


def _variance(high: Tensor, low: Tensor) -> Tensor:
    """sin² high − sin² low, without cancellation."""
    return torch.sin(high - low) * torch.sin(high + low)


@SOLVERS.register("ggf")
@dataclass(frozen=True)
class GottaGoFast(Adaptive, Stepper):
    """Improved Euler on the reverse SDE with adaptive steps, each sample its own; any process (weak order 2 on a fixed grid).

    The error of a step is the root mean square of (z' − z'')/(sin φ·(atol + rtol·max(|z|, |z''|))); it is taken when that is at
    most 1, and the next is θ·error^(−r) times as long. sin φ is the noise level where the step starts: without it (as in the
    paper, where x and not z is the state) steps near the data are too long, and modes up to 1% wider at equal cost. A rejected
    step costs one evaluation, not two, and what it saw of the Brownian path is kept, where the paper draws anew and so prefers
    quiet paths. The paper's scale is max(atol, rtol·…) where ours is the sum. With `steps=` it takes a fixed grid. A
    tolerance bounds the error of a step along a path, not that of the law: on standardized data with modes of 10% of its
    standard deviation these come out 43% too wide at a tolerance of 0.04, 3% of the samples far from all of them, 7% at
    0.02, and 1% at 0.01, the default, for 156 evaluations. (The paper's own recursion at its tolerances 0.0078 and 0.1:
    16% too wide at 118 evaluations; with 0.5 for the second, its fastest: twice as wide, 6% far out.)

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
    >>> loose, tight = (scoresde.solve(sde, 8, solver="ggf", atol=tol, rtol=tol).nfe for tol in (0.2, 0.01))
    >>> bool((loose < tight).all())
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
        moved = z.add(problem.noise(), alpha=math.sqrt(math.sin(h) * math.sin(here.phi + there.phi)))
        f = _drift(problem, z, here.phi, None)
        f1 = _drift(problem, torch.add(moved, f, alpha=-h), there.phi, None)
        return moved.add_(f.add_(f1), alpha=-0.5 * h)

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        return self._adapt(problem, z) if problem.adaptive else super().run(problem, z)

    def _adapt(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:
        """Move each sample with steps of its own. Its k-th attempt takes its row of the k-th draw: none waits at a station."""
        stations = torch.tensor([level.phi for level in problem.levels[1:]], dtype=torch.float64, device=z.device)
        passed = z.expand(len(stations), *z.shape).clone()  # where each sample was at each station
        phi = torch.full_like(z[:, 0], problem.levels[0].phi, dtype=torch.float64)
        y, f, path, h = z, _drift(problem, z, phi, None), _Path(z), torch.full_like(phi, 0.02)
        target, accepted, nfe = torch.zeros(3, len(z), dtype=torch.int64, device=z.device)
        nfe = nfe + 1
        under_way, attempts = Survivors(len(z), z.device), 0
        while len(y):
            attempts += 1
            some, station, draw = under_way.some, stations[target], problem.noise()
            wish = torch.where(h >= (phi - station) * (1 - 1e-9), station, phi - h)
            goal, increment = path.look(under_way.rows, phi, wish, draw if some is None else draw[some])
            step = phi - goal
            moved, h1 = y + increment, column(step, y)
            f1 = _drift(problem, moved - h1 * f, goal, some)
            there = moved - 0.5 * h1 * (f + f1)
            with torch.no_grad():
                scale = torch.maximum(y.abs(), there.abs()).mul_(self.rtol).add_(self.atol).mul_(column(phi.sin(), y))
                error = problem.norm((f1 - f).mul_(0.5 * h1).div_(scale)).double()
            good = error <= 1.0
            growth = THETA * error.clamp_min(1e-10) ** -RATE
            growth = torch.where(good, growth.clamp(0.2, 5.0), growth.clamp(0.1, 0.9).nan_to_num(nan=0.1))
            # A step cut short by a station or by a piece of path does not make the next one shorter.
            short = good & (step < h * (1 - 1e-9))
            h = torch.where(short, torch.maximum(step * growth, h), step * growth)
            path.depth[under_way.rows] -= good.long()
            y, phi = torch.where(good.unsqueeze(1), there, y), torch.where(good, goal, phi)
            accepted, nfe = accepted + good, nfe + 1
            reached = phi == station
            if len(at := reached.nonzero()[:, 0]):
                passed[target[at], under_way.rows[at]] = y[at]
                target = target + reached
            done = target == len(stations)
            over = done | (~good & (step < 1e-12)) if attempts < self.max_steps else torch.ones_like(done)
            if bool(over.any()):
                finite = f1.isfinite().all(1)
                stay = under_way.leave(over, accepted, torch.full_like(accepted, attempts), nfe, ~done, finite)
                y, f, phi, h, target, accepted, nfe, good = (
                    x.index_select(0, stay) for x in (y, f, phi, h, target, accepted, nfe, good)
                )
            onward = good.nonzero()[:, 0]
            if len(onward) == len(y):
                f = _drift(problem, y, phi, under_way.some) if len(y) else f
            elif len(onward):
                f = f.index_copy(0, onward, _drift(problem, y[onward], phi[onward], under_way.rows[onward]))
            nfe = nfe + good
        for i, state in enumerate(passed, start=1):
            problem.observe(i, state)
        taken, tried, nfe, failed, finite = under_way.all()
        nan = bool((failed & ~finite).any())
        reason = "nan" if nan else "steps" if attempts == self.max_steps else "stuck"
        return passed[-1], Counts(nfe, taken, tried - taken, failed, reason)


def _drift(problem: Problem, z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
    """f = v + cos φ·ε̂ with ε̂ = sin φ·z + cos φ·v."""
    v = problem.velocity(z, phi, rows)
    if isinstance(phi, float):
        cos, sin = math.cos(phi), math.sin(phi)
        return torch.add((1 + cos * cos) * v, z, alpha=cos * sin)
    c, s = (w.unsqueeze(1).to(z) for w in (phi.cos(), phi.sin()))
    return (1 + c * c) * v + (c * s) * z
