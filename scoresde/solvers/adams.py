"""Adams methods in the angle: one evaluation a step, of an order as high as it pays, for each sample its own.

dz/dφ = v is smooth in φ at both ends of every path, so a polynomial through the last values of v reaches far. In Newton's
form, with the nodes t_0 (now), t_1, … and the divided differences d_j = v[t_0 … t_j], the step to b is

    z' = z + Σ_{j<k} I_j·d_j + I_k·e_k,        I_j = ∫_{t_0}^b Π_{i<j}(s − t_i) ds,   e_j = v[b, t_0 … t_{j−1}],

where the sum predicts (order k) and the last term, with v evaluated once at the predicted state, corrects (order k + 1). It
is also what the step's error is judged by, as |I_{k±1}·e_{k±1}| is what a lower or higher order would have made: each sample
takes the order that allows it the longest next step (Krogh 1974; Shampine & Gordon 1975).

On a fixed grid no error is watched, and near the data v is stiff: where a mode is thinner than φ, v ≈ (z − x̂0)/φ, and
polynomials in v are unstable. There the method interpolates x̂0 instead, in φ², and integrates the rest exactly: a row of
`scoresde.solvers.multistep`, with the same predictor and corrector. From data to noise it stays with v, at low order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..checks import whole
from .base import SOLVERS, Adaptive, Counts, Problem, Survivors, column
from .multistep import Row, march

HIGHEST = 8
BUDGET = {1: 2, 2: 3, 4: 4, 6: 5, 32: 6, 72: 7, 100: 8}  # order from so many steps on; exact scores would bear more
FORWARD = {1: 1, 4: 3, 5: 4}  # from data to noise, where the field is stiff first and higher orders are unstable
TAIL = 1 / 16  # of a correction is left as error after it, about, where no higher order says how much
SAFETY = 0.7  # a step is tried at 0.7 of the length that would just do: a rejection wastes an evaluation
_NEAR = torch.tensor([[-1], [0], [1]], device="cpu")  # orders to choose from, seen from the last
_RULE = torch.from_numpy(np.array(np.polynomial.legendre.leggauss(4))).unsqueeze(2)  # nodes and weights, exact to degree 7


@SOLVERS.register("adams")
@dataclass(frozen=True)
class Adams(Adaptive):
    """Adams predictor–corrector of variable order for dz/dφ = v, with steps and order of its own for each sample.

    One network evaluation a step (PEC). Without `steps=` every sample goes by the tolerance; its end point's error comes
    out close to it. With `steps=` the grid is fixed, spaced "graded", and x̂0 is what is interpolated, as a polynomial in φ²:
    stable for modes of any thinness. The order follows the number of steps: 2 for one step (where it lands on x̂0), 3 from 2
    steps on, then 4 from 4, 5 from 6, 6 from 32, 7 from 72 and 8 from 100 steps on: trained networks are rougher than an
    exact score, which would bear 8 from 28 steps on. From data to noise v is interpolated, with
    an order of 1, then 3 from 4 and 4 from 5 steps on. The first steps can have no high order: they leave an error of order
    4, which matters only far below 1e-8.

    Parameters
    ----------
    rtol, atol : float
        Tolerated error a step, relative and absolute, in standard deviations of the data (and nats, in a likelihood).
    max_order : int
        Highest order, 2 to 8.
    max_steps : int
        Attempted steps per sample after which a solve raises `SolverError`.

    Raises
    ------
    TypeError, ValueError
        For tolerances that are not positive, or numbers out of range.

    References
    ----------
    Krogh, Changing stepsize in the integration of differential equations using modified divided differences, 1974.

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
        whole("max_order", self.max_order)
        if not 2 <= self.max_order <= HIGHEST:
            raise ValueError(f"max_order is from 2 to {HIGHEST}, got {self.max_order}")

    @property
    def order(self) -> int:  # type: ignore[override]
        """The order on coarse grids; finer ones have more, up to `max_order`."""
        return min(4, self.max_order)

    def error_factor(self, adaptive: bool) -> float:  # noqa: D102
        # Measured on trained networks. Above 1e-4 steps are too long for their estimates; on a grid it is the predictor's
        # error that is summed.
        if not adaptive:
            return 0.13
        return 0.95 * float(max(1.0, max(self.rtol, self.atol) / 1e-4) ** 0.4)

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        if problem.adaptive:
            return self._adapt(problem, z)
        to_data = problem.levels[0].phi > problem.levels[-1].phi
        budget = BUDGET if to_data else FORWARD
        order = min(self.max_order, max(order for steps, order in budget.items() if problem.last >= steps))
        return march(Row("x0φ²" if to_data else "v", order, corrector=order > 1), problem, z)

    def _adapt(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:
        """Move each sample with steps and order of its own; those that are done leave the batch."""
        stations = torch.tensor([level.phi for level in problem.levels[1:-1]], dtype=torch.float64, device=z.device).unsqueeze(1)
        start, end = problem.levels[0].phi, problem.levels[-1].phi
        sign, highest, near = math.copysign(1.0, end - start), self.max_order - 1, _NEAR.to(z.device)
        passed = z.expand(len(stations), *z.shape).clone()
        under_way, attempts = Survivors(len(z), z.device), 0
        gauged = None if problem.measure is None else z.new_zeros(len(z), dtype=torch.float64)  # Σ measure(e)

        # d_j is held as δ_j = d_j·q_j, a number of v's own size, with q_j = Π_{i<j}(t_0 − t_{i+1}): tiny steps overflow nothing.
        delta = problem.velocity(z, start, None).unsqueeze(0)
        with torch.no_grad():  # steps and orders are held fixed by a gradient
            h = 0.5 * problem.norm(delta[0] / (self.atol + self.rtol * z.abs())).double().rsqrt()
            h = sign * h.clamp(1e-6, 0.1).nan_to_num(nan=1e-6)
        # Nodes that are not there yet are put far behind; no order reaches them.
        far = start - 10 * sign * torch.arange(highest, dtype=torch.float64, device=z.device)
        nodes = far.unsqueeze(1).repeat(1, len(z))
        q = torch.ones_like(nodes[:1])
        k, known = torch.ones(2, len(z), dtype=torch.int64, device=z.device)  # order of the predictor, number of nodes
        place, one = torch.arange(len(z), device=z.device), torch.ones_like(k[:1])
        while len(z):
            attempts += 1
            m, t = len(delta), nodes[0]
            b = torch.add(t, h, alpha=1 + 1e-9).clamp_(min(start, end), max(start, end))
            ahead, share = _products(nodes[:m], b)
            terms = column(ahead[:m] / q, z) * delta
            sums = (column(share[:m], z) * terms).cumsum(0)
            predicted = z + _pick(sums, k * len(z) + (place - len(z)))
            v = problem.velocity(predicted, b, under_way.some)
            fresh = torch.cat([v.unsqueeze(0), v - terms.cumsum(0)])
            # The next lower order, this, and the next higher would err by I_j·e_j: share_j times the new difference.
            orders = torch.clamp(k + near, one, known.clamp_max(highest))
            which = (orders * len(z) + place).flatten()
            e, factor = _pick(fresh, which).reshape(3, *z.shape), _pick(share, which).reshape(3, -1)
            change = column(factor[1], z) * e[1]
            with torch.no_grad():
                scale = predicted.abs().mul_(self.rtol).add_(self.atol)
                errors = problem.norm((e / scale).flatten(0, 1)).reshape(3, -1) * factor.abs()
            least, best = (errors.log() / (orders + 1)).min(0)
            growth = least.neg_().exp_().mul_(SAFETY).clamp_(0.2, 2.0)
            best, good = orders.gather(0, best.unsqueeze(0))[0], errors[1] <= 1.0
            known, over = known + good, (b == end) & good
            if gauged is not None and problem.measure is not None:
                # What the corrected step leaves: ∫ (s − b)·Π_{i<k}(s − t_i) ds times the next difference, if there is one.
                left = torch.where(orders[2] > orders[1], factor[2] - factor[1], TAIL * factor[1])
                gauge = problem.measure((column(left, z) * e[2]).detach(), predicted.detach(), v.detach(), b).double()
                gauged[under_way.rows] += torch.where(good, gauge, 0.0)
            if len(stations):  # the polynomial knows all between t and b
                inside = ((b - stations) * sign >= 0) & ((t - stations) * sign < 0) & good
                at, some = inside.nonzero(as_tuple=True)
                there, shares = _products(nodes[:m, some], stations[at, 0])
                part, order = there * shares, k[some].unsqueeze(0)
                below = (column(part[:m] / q[:, some], z) * delta[:, some]).cumsum(0)
                last = column((part / ahead[:, some]).gather(0, order)[0], z) * fresh[order[0], some]
                passed[at, under_way.rows[some]] = z[some] + below[order[0] - 1, torch.arange(len(some), device=z.device)] + last
            new, passing = predicted + change, torch.cat([b.unsqueeze(0), nodes[:-1]])
            bad = (~good).nonzero()[:, 0]
            if len(bad):  # they try again from where they were
                growth = torch.where(good, growth, growth.clamp_max(SAFETY).nan_to_num_(nan=0.2))
                best = torch.where(good, best, torch.minimum(best, k))
                new[bad], passing[:, bad] = z[bad], nodes[:, bad]
                fresh[:m, bad], ahead[:m, bad] = delta[:, bad], q[:, bad]  # and row m has differences that no order reaches
                over |= ~good & (h.abs() < 1e-13)  # stuck
            h = (b - t) * growth
            m = min(int(best.max()) + 1, highest)  # no one looks further back
            z, nodes, k, delta, q = new, passing, best, fresh[:m], ahead[:m]
            if attempts == self.max_steps:
                over = torch.ones_like(over)
            if bool(over.any()):
                nan = ~v.isfinite().all(1)
                stay = under_way.leave(over, z, known - 1, torch.full_like(known, attempts), nodes[0] != end, nan)
                z, k, h, known = (x.index_select(0, stay) for x in (z, k, h, known))
                delta, q, nodes = (x.index_select(1, stay) for x in (delta, q, nodes))
                place = place[: len(z)]
        result, accepted, tried, failed, nan = under_way.all()
        reason = "nan" if bool((failed & nan).any()) else "steps" if attempts == self.max_steps else "stuck"
        for i, state in enumerate(passed, start=1):
            problem.observe(i, state)
        problem.observe(problem.last, result)
        return result, Counts(1 + tried, accepted, tried - accepted, failed, reason, gauged)


def _pick(table: Tensor, which: Tensor) -> Tensor:
    """Entries of a table (m, B, …) by their number, counted along B first."""
    return table.flatten(0, 1).index_select(0, which)


def _products(nodes: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return Π_{i<j}(b − t_i), and I_j divided by it, for j = 0 … m, shape (m + 1, B); nodes (m, B), b (B,).

    With h = b − t_0 and s = b − h·y the second is h·∫_0^1 Π_{i<j}(1 − y·h/(b − t_i)) dy, of factors that are at most 1.

    Here and above sums are cumulative or written out: those of `sum` depend in their bits on where in the batch a row lies.
    """
    gaps, (x, w) = b - nodes, 0.5 * _RULE.to(b.device)
    one, h = torch.ones_like(gaps[:1]), gaps[0]
    f = torch.addcmul(one, (h / gaps).unsqueeze(1), 0.5 + x, value=-1).cumprod(0).mul_(w)
    f = f[:, :2] + f[:, 2:]
    return torch.cat([one, gaps]).cumprod(0), torch.cat([one, f[:, 0] + f[:, 1]]).mul_(h)
