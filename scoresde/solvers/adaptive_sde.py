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

from ..checks import number, whole
from .base import SOLVERS, Counts, Problem, Stepper

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
        self._goal = z.new_zeros((0, len(z)), dtype=torch.float64)
        self._piece = z.new_zeros((0, *z.shape))

    def look(self, rows: Tensor, phi: Tensor, wish: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """Make the top piece of these rows end at `wish` if it is longer or there is none; return its end and increment."""
        none = self.depth[rows] == 0
        top = (self.depth[rows] - 1).clamp_min(0)
        if not len(self._goal):
            self._grow()
        end, rest = torch.where(none, 0.0, self._goal[top, rows]), self._piece[top, rows]
        new = none | (wish > end)
        done, whole_ = _variance(phi, wish), _variance(phi, end)
        share = torch.where(none, 0.0, done / whole_)  # of the known piece's variance; 1 or more if it serves as it is
        spread = torch.where(none, done, done * (1 - share)).clamp_min(0).sqrt()
        first = share.unsqueeze(1).to(n) * rest.masked_fill(none.unsqueeze(1), 0.0) + spread.unsqueeze(1).to(n) * n
        cut = new & ~none
        self._piece[top[cut], rows[cut]] = (rest - first)[cut]
        self._push(rows[new], wish[new], first[new])
        return torch.where(new, wish, end), torch.where(new.unsqueeze(1), first, rest)

    def _push(self, rows: Tensor, goal: Tensor, piece: Tensor) -> None:
        if bool((self.depth[rows] == len(self._goal)).any()):
            self._grow()
        self._goal[self.depth[rows], rows], self._piece[self.depth[rows], rows] = goal, piece
        self.depth[rows] += 1

    def _grow(self) -> None:
        self._goal = torch.cat([self._goal, self._goal.new_zeros((1, *self._goal.shape[1:]))])
        self._piece = torch.cat([self._piece, self._piece.new_zeros((1, *self._piece.shape[1:]))])


def _variance(high: Tensor, low: Tensor) -> Tensor:
    """sin² high − sin² low, without cancellation."""
    return torch.sin(high - low) * torch.sin(high + low)


@SOLVERS.register("ggf")
@dataclass(frozen=True)
class GottaGoFast(Stepper):
    """Improved Euler on the reverse SDE with adaptive steps, each sample its own; any process (weak order 2 on a fixed grid).

    The error of a step is the root mean square of (z' − z'')/(sin φ·(atol + rtol·max(|z|, |z''|))); it is taken when that is at
    most 1, and the next is θ·error^(−r) times as long. sin φ is the noise level where the step starts: without it (as in the
    paper, where x and not z is the state) steps near the data are too long, and modes up to 1% wider at equal cost. A rejected
    step costs one evaluation, not two, and what it saw of the Brownian path is kept, where the paper draws anew and so prefers
    quiet paths. The paper's scale is max(atol, rtol·…) where ours is the sum. With `steps=` it takes a fixed grid. A
    tolerance bounds the error of a step along a path, not that of the law.

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
    Jolicoeur-Martineau et al., Gotta go fast when generating data with score-based models, 2021, Algorithm 1.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> loose, tight = (scoresde.solve(sde, 8, solver="ggf", atol=tol, rtol=tol).nfe for tol in (0.2, 0.01))
    >>> bool((loose < tight).all())
    True
    """

    rtol: float = 0.04
    atol: float = 0.04
    max_steps: int = 10_000
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    steps: ClassVar[None] = None
    spacing: ClassVar[str] = "logsnr"
    tolerances: ClassVar[tuple[str, ...]] = ("rtol", "atol", "max_steps")

    def __post_init__(self) -> None:
        number("rtol", self.rtol, 0, math.inf, hint="try 0.04")
        number("atol", self.atol, 0, math.inf, hint="try 0.04")
        whole("max_steps", self.max_steps)

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
        stations = torch.tensor([level.phi for level in problem.levels], dtype=torch.float64, device=z.device)
        states = [z.clone() for _ in stations[1:]]  # where each sample was at each station
        y, f, path = z.clone(), torch.empty_like(z), _Path(z)
        phi, h = torch.full_like(z[:, 0], problem.levels[0].phi, dtype=torch.float64), torch.full_like(z[:, 0], 0.02).double()
        target, nfe, accepted, rejected = (torch.zeros_like(path.depth) for _ in range(4))
        target += 1
        failed, reason = torch.zeros_like(phi, dtype=torch.bool), ""
        fresh = torch.ones_like(failed)  # whether the drift at (y, φ) is still to be evaluated
        while len(rows := ((target < len(stations)) & ~failed).nonzero()[:, 0]):
            start = rows[fresh[rows]]
            if len(start):
                f[start] = _drift(problem, y[start], phi[start], start)
                nfe[start] += 1
            station = stations[target[rows]]
            at, long = phi[rows], h[rows]
            wish = torch.where(long >= (at - station) * (1 - 1e-9), station, at - long)
            goal, increment = path.look(rows, at, wish, problem.noise()[rows])
            step = at - goal
            moved, slope, h1 = y[rows] + increment, f[rows], step.unsqueeze(1).to(y)
            f1 = _drift(problem, moved - h1 * slope, goal, rows)
            nfe[rows] += 1
            new = moved - 0.5 * h1 * (slope + f1)
            scale = at.sin().unsqueeze(1).to(y) * (self.atol + self.rtol * torch.maximum(y[rows].abs(), new.abs()))
            error = problem.norm(0.5 * h1 * (f1 - slope) / scale).double()
            good = error <= 1.0
            growth = THETA * error.clamp_min(1e-10) ** -RATE
            growth = torch.where(good, growth.clamp(0.2, 5.0), growth.clamp(0.1, 0.9).nan_to_num(nan=0.1))
            # A step cut short by a station or by a piece of path does not make the next one shorter.
            h[rows] = torch.where(
                good, torch.maximum(step * growth, torch.where(step < long * (1 - 1e-9), long, 0.0)), step * growth
            )
            taken = rows[good]
            y[taken], phi[taken], fresh[rows] = new[good], goal[good], good
            path.depth[taken] -= 1
            accepted[taken] += 1
            rejected[rows] += ~good
            there = taken[goal[good] == station[good]]
            for i in sorted(set(target[there].tolist())):
                reached = there[target[there] == i]
                states[i - 1][reached] = y[reached]
            target[there] += 1
            stuck = ~good & (step < 1e-12)
            lost = stuck | ((target[rows] < len(stations)) & (accepted[rows] + rejected[rows] >= self.max_steps))
            if bool(lost.any()):
                failed[rows[lost]] = True
                finite = f1.isfinite().all(1)
                reason = "steps" if not bool(stuck.any()) else "stuck" if bool(finite[stuck].all()) else "nan"
        for i, state in enumerate(states, start=1):
            problem.observe(i, state)
        return y, Counts(nfe, accepted, rejected, failed, reason)


def _drift(problem: Problem, z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
    """f = v + cos φ·ε̂ with ε̂ = sin φ·z + cos φ·v."""
    v = problem.velocity(z, phi, rows)
    if isinstance(phi, float):
        cos, sin = math.cos(phi), math.sin(phi)
        return torch.add((1 + cos * cos) * v, z, alpha=cos * sin)
    c, s = (w.unsqueeze(1).to(z) for w in (phi.cos(), phi.sin()))
    return (1 + c * c) * v + (c * s) * z
