"""Adams methods in the angle: one evaluation per step, separate steps and order per sample.

dz/dφ = v is smooth in φ at both ends of every path, so a polynomial through the last values of v
reaches far. In Newton's form, with the nodes t_0 (now), t_1, … and the divided differences d_j =
v[t_0 … t_j], the step to b is

    z' = z + Σ_{j<k} I_j·d_j + I_k·e_k,
    I_j = ∫_{t_0}^b Π_{i<j}(s − t_i) ds,        e_j = v[b, t_0 … t_{j−1}],

where the sum predicts (order k) and the last term, with v evaluated once at the predicted state,
corrects (order k + 1). That term also estimates the step's error, as |I_{k±1}·e_{k±1}| estimates
that of a lower or higher order. Each sample takes the order that allows it the longest next step
(Krogh 1974; Shampine & Gordon 1975).

On a fixed grid no error is watched, and near the data v is stiff: where a mode is thinner than φ,
v ≈ (z − x̂0)/φ, and polynomials in v are unstable. There the method interpolates x̂0 instead, in
φ², and integrates the rest exactly: a row of `scoresde.solvers.multistep`, with the same predictor
and corrector, and a limit on the Lebesgue number that chooses the order of each step. From data to
noise it stays with v, at low order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..common.checks import whole_number
from .adaptive import Adaptive, AdaptiveSolve, Trial
from .base import SOLVERS
from .multistep import Row, march
from .problem import Counts, Problem, column

HIGHEST = 10
"""Highest order."""
ADAPTIVE = 8
"""The same of adaptive steps."""
LIMIT = {1: 32, 36: 48, 72: 64, 86: 100, 100: 200}
"""Largest Lebesgue number on a grid of at least so many steps. Exact scores would allow more."""
FORWARD = {1: 1, 4: 3, 5: 4}
"""The same to noise. The field is stiff at the start of the way, and higher orders are unstable."""
SAFETY = 0.7
"""Length of the next step over the longest that would do: a rejection wastes an evaluation."""
_NEAR = torch.tensor([[-1], [0], [1]], device="cpu")
"""Orders to choose from, relative to the last."""
_RULE = torch.from_numpy(np.array(np.polynomial.legendre.leggauss(4))).unsqueeze(2)
"""Nodes and weights of Gauss and Legendre, exact to degree 7."""


@SOLVERS.register("adams")
@dataclass(frozen=True)
class Adams(Adaptive):
    """Adams predictor–corrector for dz/dφ = v; each sample has separate steps and a separate order.

    It takes one network evaluation a step (PEC). Without `steps=` the tolerance determines the
    steps of every sample, and the error of its end point is close to it. With `steps=` the grid is
    fixed, spaced "graded", and the method interpolates x̂0 by a polynomial in φ², which is stable
    for modes of any width. Each step has the highest order whose polynomial multiplies errors of
    the values by 32 at most (48 from 36 steps on, 64 from 72, 100 from 86, 200 from 100): 2 in the
    first, some 4 to 6 where the grid is coarse, up to 10 near the data. An exact score would bear
    more; trained networks are rougher. The order depends on the grid alone.
    From data to noise it interpolates v, with an order of 1, then 3 from 4 and 4 from 5 steps on.

    Parameters
    ----------
    rtol, atol : float
        Tolerated error a step, relative and absolute, in standard deviations of the data (and
        nats, in a likelihood).
    max_order : int
        Highest order, 2 to 10; adaptive steps have 8 at most.
    max_steps : int
        Attempted steps per sample after which a solve raises `SolverError`.

    Raises
    ------
    TypeError, ValueError
        For tolerances that are not positive, or numbers out of range.

    References
    ----------
    Krogh, Changing stepsize in the integration of differential equations using modified divided
    differences, 1974.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE()).double()
    >>> solution = scoresde.solve(sde, 100, solver="adams", rtol=1e-6, atol=1e-6)
    >>> 40 < float(solution.nfe.double().mean()) < 80
    True
    """

    max_order: int = HIGHEST
    ode: ClassVar[bool] = True
    spacing: ClassVar[str] = "graded"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("max_order", self.max_order)
        if not 2 <= self.max_order <= HIGHEST:
            raise ValueError(f"max_order is from 2 to {HIGHEST}, got {self.max_order}")

    @property
    def order(self) -> int:  # type: ignore[override]
        """The order on coarse grids; finer ones have more, up to `max_order`."""
        return min(4, self.max_order)

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        if problem.adaptive:
            return _AdamsSolve(problem, z, self).run(self.max_steps)
        to_data = problem.levels[0].phi > problem.levels[-1].phi
        if to_data:
            limit = _allowed(LIMIT, problem.last)
            row = Row("x0φ²", self.max_order, corrector=True, limit=limit)
        else:
            order = min(self.max_order, _allowed(FORWARD, problem.last))
            row = Row("v", order, corrector=order > 1)
        return march(row, problem, z)


def _allowed(table: dict[int, int], steps: int) -> int:
    """Return the entry of a table for the largest of its numbers of steps that is affordable."""
    return max(entry for least, entry in table.items() if steps >= least)


@dataclass(slots=True)
class _AdamsTrial(Trial):
    """A trial step, as `_AdamsSolve` describes its numbers."""

    h: Tensor  # its length before it was cut at the end (B,)
    ahead: Tensor  # q_j as seen from the end of the step (m + 1, B)
    fresh: Tensor  # δ_j at the end of the step (m + 1, B, n)
    best: Tensor  # the order that allows the longest next step (B,)
    growth: Tensor  # the length of that step over this one (B,)


class _AdamsSolve(AdaptiveSolve[_AdamsTrial]):
    """An adaptive solve by Adams methods; `k` (B,) is the order of each sample's predictor."""

    # `nodes` (max_order − 1, B) are t_0, t_1, … The differences d_j are held as `delta` (m, B, n),
    # δ_j = d_j·q_j with q_j = Π_{i<j}(t_0 − t_{i+1}), in `q` (m, B). They have v's own size, so
    # that tiny steps overflow nothing. No order reaches further back than m nodes.

    columns = ("y", "h", "accepted", "k")

    def __init__(self, problem: Problem, z: Tensor, solver: Adams) -> None:
        super().__init__(problem, z)
        self.solver = solver
        self.highest = min(solver.max_order, ADAPTIVE) - 1
        self.sign = math.copysign(1.0, self.end - self.start)
        self.bounds = min(self.start, self.end), max(self.start, self.end)
        self.near = _NEAR.to(z.device)
        inner = [level.phi for level in problem.levels[1:-1]]
        self.stations = torch.tensor(inner, dtype=torch.float64, device=z.device).unsqueeze(1)
        self.states = z.expand(len(inner), *z.shape).clone()
        self.delta = problem.velocity(z, self.start, None).unsqueeze(0)
        with torch.no_grad():  # steps and orders are held fixed by a gradient
            scale = solver.atol + solver.rtol * z.abs()
            h = 0.5 * problem.norm(self.delta[0] / scale).double().rsqrt()
            self.h = self.sign * h.clamp(1e-6, 0.1).nan_to_num(nan=1e-6)
        # Nodes that are not there yet are put far behind, where no order reaches.
        behind = torch.arange(self.highest, dtype=torch.float64, device=z.device)
        far = self.start - 10 * self.sign * behind
        self.nodes = far.unsqueeze(1).repeat(1, len(z))
        self.q = torch.ones_like(self.nodes[:1])
        self.k = torch.ones_like(self.accepted)
        self.one = torch.ones_like(self.k[:1])
        self.place = torch.arange(len(z), device=z.device)

    def propose(self) -> _AdamsTrial:
        z, k, delta = self.y, self.k, self.delta
        m = len(delta)
        b = torch.add(self.phi, self.h, alpha=1 + 1e-9).clamp_(*self.bounds)
        ahead, share = _products(self.nodes[:m], b)
        terms = column(ahead[:m] / self.q, z) * delta
        sums = (column(share[:m], z) * terms).cumsum(0)
        predicted = z + _pick(sums, k * len(z) + (self.place - len(z)))
        v = self.problem.velocity(predicted, b, self.under_way.some)
        fresh = torch.cat([v.unsqueeze(0), v - terms.cumsum(0)])
        # The next lower order, this, and the next higher would err by I_j·e_j: share_j times the
        # new difference.
        most = (self.accepted + 1).clamp_max_(self.highest)
        orders = torch.clamp(k + self.near, self.one, most)
        which = (orders * len(z) + self.place).flatten()
        e = _pick(fresh, which).reshape(3, *z.shape)
        factor = _pick(share, which).reshape(3, -1)
        change = column(factor[1], z) * e[1]
        with torch.no_grad():
            scale = predicted.abs().mul_(self.solver.rtol).add_(self.solver.atol)
            norms = self.problem.norm((e / scale).flatten(0, 1)).reshape(3, -1)
            errors = norms * factor.abs()
        least, best = (errors.log() / (orders + 1)).min(0)
        growth = least.neg_().exp_().mul_(SAFETY).clamp_(0.2, 2.0)
        best = orders.gather(0, best.unsqueeze(0))[0]
        return _AdamsTrial(
            state=predicted + change,
            phi=b,
            error=errors[1],
            output=v,
            h=self.h,
            ahead=ahead,
            fresh=fresh,
            growth=growth,
            best=best,
        )

    def record(self, trial: _AdamsTrial, good: Tensor) -> None:
        if len(self.stations):
            self._interpolate(trial, good)

    def _interpolate(self, trial: _AdamsTrial, good: Tensor) -> None:
        """Write the states at stations between t and b: the polynomial holds all the way."""
        m = len(self.delta)
        z = self.y
        reached = (trial.phi - self.stations) * self.sign >= 0
        before = (self.phi - self.stations) * self.sign < 0
        at, some = (reached & before & good).nonzero(as_tuple=True)
        there, shares = _products(self.nodes[:m, some], self.stations[at, 0])
        part = there * shares
        order = self.k[some].unsqueeze(0)
        below = (column(part[:m] / self.q[:, some], z) * self.delta[:, some]).cumsum(0)
        ratio = (part / trial.ahead[:, some]).gather(0, order)[0]
        last = column(ratio, z) * trial.fresh[order[0], some]
        places = torch.arange(len(some), device=z.device)
        self.states[at, self.under_way.rows[some]] = z[some] + below[order[0] - 1, places] + last

    def resize(self, trial: _AdamsTrial, good: Tensor) -> None:
        growth, best = trial.growth, trial.best
        self.bad = (~good).nonzero()[:, 0]
        if len(self.bad):
            growth = torch.where(good, growth, growth.clamp_max(SAFETY).nan_to_num_(nan=0.2))
            best = torch.where(good, best, torch.minimum(best, self.k))
        self.h = (trial.phi - self.phi) * growth
        self.k = best

    def accept(self, trial: _AdamsTrial, good: Tensor) -> None:
        state, fresh, ahead = trial.state, trial.fresh, trial.ahead
        nodes = torch.cat([trial.phi.unsqueeze(0), self.nodes[:-1]])
        bad = self.bad
        if len(bad):  # they try again from where they were
            m = len(self.delta)
            state[bad] = self.y[bad]
            nodes[:, bad] = self.nodes[:, bad]
            fresh[:m, bad] = self.delta[:, bad]
            ahead[:m, bad] = self.q[:, bad]  # row m holds differences that no order reaches
        m = min(int(self.k.max()) + 1, self.highest)  # no sample looks further back
        self.y, self.nodes, self.phi = state, nodes, nodes[0]
        self.delta, self.q = fresh[:m], ahead[:m]

    def stuck(self, trial: _AdamsTrial, good: Tensor) -> Tensor | None:
        return ~good & (trial.h.abs() < 1e-13) if len(self.bad) else None

    def keep(self, stay: Tensor) -> None:
        super().keep(stay)
        for name in ("delta", "q", "nodes"):
            setattr(self, name, getattr(self, name).index_select(1, stay))
        self.phi = self.nodes[0]
        self.place = self.place[: len(stay)]

    def evaluations(self, tried: Tensor, accepted: Tensor, good: Tensor) -> Tensor:
        return 1 + tried

    def inner_states(self) -> Iterable[Tensor]:
        return self.states


def _pick(table: Tensor, which: Tensor) -> Tensor:
    """Return entries of a table (m, B, …) by their number, counted along B first."""
    return table.flatten(0, 1).index_select(0, which)


def _products(nodes: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return q_j = Π_{i<j}(b − t_i) and I_j/q_j (m + 1, B), j = 0 … m, of nodes (m, B), b (B,)."""
    # With h = b − t_0 and s = b − h·y the second is h·∫_0^1 Π_{i<j}(1 − y·h/(b − t_i)) dy, of
    # factors that are at most 1.
    gaps = b - nodes
    x, w = 0.5 * _RULE.to(b.device)
    one, h = torch.ones_like(gaps[:1]), gaps[0]
    f = torch.addcmul(one, (h / gaps).unsqueeze(1), 0.5 + x, value=-1).cumprod(0).mul_(w)
    # Sums are written out: the bits of `sum` depend on where in the batch a row lies.
    f = f[:, :2] + f[:, 2:]
    return torch.cat([one, gaps]).cumprod(0), torch.cat([one, f[:, 0] + f[:, 1]]).mul_(h)
