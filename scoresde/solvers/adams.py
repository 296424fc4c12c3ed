"""Adams methods in the angle: one evaluation a step, of an order as high as it pays, for each sample its own.

dz/dφ = v is smooth in φ at both ends of every path, so a polynomial through the last values of v reaches far. In Newton's
form, with the nodes t_0 (now), t_1, … and the divided differences d_j = v[t_0 … t_j], the step to b is

    z' = z + Σ_{j<k} I_j·d_j + I_k·e_k,        I_j = ∫_{t_0}^b Π_{i<j}(s − t_i) ds,   e_j = v[b, t_0 … t_{j−1}],

where the sum predicts (order k) and the last term, with v evaluated once at the predicted state, corrects (order k + 1). It
is also what the step's error is judged by, as |I_{k±1}·e_{k±1}| is what a lower or higher order would have made: each sample
takes the order that allows it the longest next step (Krogh 1974; Shampine & Gordon 1975). On a fixed grid the same
method takes its nodes from the grid and its order from their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..checks import number, whole
from .base import SOLVERS, Counts, Problem, Solver
from .multistep import Row, march

HIGHEST = 8
BUDGET = {1: 1, 4: 3, 5: 4, 12: 5, 18: 6, 28: 7, 50: 8}  # the order that pays from so many steps of a fixed grid on
FORWARD = 4  # the highest from data to noise, where the field is stiff first and higher orders are unstable on a fixed grid
SAFETY = 0.7  # a step is tried at 0.7 of the length that would just do: a rejection wastes an evaluation
_NODES, _WEIGHTS = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(4))  # exact to degree 7


@SOLVERS.register("adams")
@dataclass(frozen=True)
class Adams(Solver):
    """Adams predictor–corrector of variable order for dz/dφ = v, with steps and order of its own for each sample.

    One network evaluation a step (PEC). Without `steps=` every sample goes by the tolerance; its end point's error comes
    out close to it. With `steps=` the grid is fixed, spaced "graded", and the order follows the number of steps: 1 below 4
    steps (Euler's method), 3 with 4, 4 from 5 on, then 5 from 12, 6 from 18, 7 from 28 and 8 from 50 steps on (from data to
    noise never above 4, being unstable there). The first steps can have no high order: they leave an error of order 4,
    which matters only far below 1e-8.

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

    rtol: float = 1e-5
    atol: float = 1e-5
    max_order: int = HIGHEST
    max_steps: int = 10_000
    ode: ClassVar[bool] = True
    steps: ClassVar[None] = None
    spacing: ClassVar[str] = "graded"
    tolerances: ClassVar[tuple[str, ...]] = ("rtol", "atol", "max_steps")

    def __post_init__(self) -> None:
        number("rtol", self.rtol, 0, math.inf, hint="try 1e-5")
        number("atol", self.atol, 0, math.inf, hint="try 1e-5")
        whole("max_order", self.max_order)
        whole("max_steps", self.max_steps)
        if not 2 <= self.max_order <= HIGHEST:
            raise ValueError(f"max_order is from 2 to {HIGHEST}, got {self.max_order}")

    @property
    def order(self) -> int:  # type: ignore[override]
        """The order on coarse grids; finer ones have more, up to `max_order`."""
        return min(4, self.max_order)

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        if problem.adaptive:
            return self._adapt(problem, z)
        order = min(self.max_order, max(order for steps, order in BUDGET.items() if problem.last >= steps))
        if problem.levels[0].phi < problem.levels[-1].phi:
            order = min(order, FORWARD)
        return march(Row("v", order, corrector=order > 1), problem, z)

    def _adapt(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:
        """Move each sample with steps and order of its own; those that are done leave the batch."""
        stations = torch.tensor([level.phi for level in problem.levels[1:-1]], dtype=torch.float64, device=z.device).unsqueeze(1)
        start, end = problem.levels[0].phi, problem.levels[-1].phi
        sign, total, highest = math.copysign(1.0, end - start), len(z), self.max_order - 1
        result, passed = torch.empty_like(z), z.expand(len(stations), *z.shape).clone()
        accepted, rejected = torch.zeros(2, total, dtype=torch.int64, device=z.device)
        failed, reason = torch.zeros(total, dtype=torch.bool, device=z.device), ""

        rows, here = None, torch.arange(total, device=z.device)  # which samples are still under way: None means all
        # d_j is held as δ_j = d_j·q_j, a number of v's own size, with q_j = Π_{i<j}(t_0 − t_{i+1}): tiny steps overflow nothing.
        delta = problem.velocity(z, start, None).unsqueeze(0)
        h = 0.5 * problem.norm(delta[0] / (self.atol + self.rtol * z.abs())).double().rsqrt()
        h = h.clamp(1e-6, 0.1).nan_to_num(nan=1e-6)
        # Nodes that are not there yet are put far behind; no order reaches them.
        far = start - 10 * sign * torch.arange(highest, dtype=torch.float64, device=z.device)
        nodes = far.unsqueeze(1).repeat(1, total)
        q = torch.ones_like(nodes[:1])
        k, known = torch.ones(2, total, dtype=torch.int64, device=z.device)  # order of the predictor, number of nodes
        count = torch.arange(highest, device=z.device).unsqueeze(1)
        broken = torch.zeros(total, dtype=torch.bool, device=z.device)  # whose last failed attempt met a NaN
        for attempt in range(1, self.max_steps + 1):
            m, t = len(delta), nodes[0]
            b = torch.clamp(t + (sign * (1 + 1e-9)) * h, min(start, end), max(start, end))
            gaps = b - nodes[:m]
            ahead = torch.cat([q[:1], gaps]).cumprod(0)  # Π_{i<j}(b − t_i), as q_0 = 1
            integrals = _integrals(nodes[:m], t, b)
            weights = torch.stack([integrals[:m] * (count[:m] < k), ahead[:m]]) / q
            sums = (_column(weights, z) * delta).cumsum(1)  # of the prediction, and of the polynomials at b
            predicted = z + sums[0, -1]
            v = problem.velocity(predicted, b, rows)
            fresh = torch.cat([v.unsqueeze(0), v - sums[1]])
            # The errors that the next lower order, this, and the next higher would make.
            orders = torch.stack([(k - 1).clamp_min(1), k, torch.minimum(k + 1, known).clamp_max(highest)])
            terms = fresh.gather(0, orders.unsqueeze(2).expand(3, *z.shape))
            terms = terms * _column((integrals / ahead).gather(0, orders), z)
            errors = problem.norm((terms / (self.atol + self.rtol * predicted.abs())).flatten(0, 1)).reshape(3, -1)
            least, best = (errors.log() / (orders + 1)).min(0)
            growth = (SAFETY * torch.exp(-least.double())).clamp(0.2, 2.0)
            best = orders.gather(0, best.unsqueeze(0))[0]
            bad = (~(errors[1] <= 1.0)).nonzero()[:, 0]
            known = known + 1
            over = b == end
            if len(bad):  # they try again from where they were
                known[bad] -= 1
                over[bad] = False
                growth[bad] = growth[bad].nan_to_num(nan=0.2).clamp_max(SAFETY)
                best[bad] = torch.minimum(best, k)[bad]
                broken[bad] = ~v[bad].isfinite().all(1)
            if len(stations):  # the polynomial knows all between t and b
                inside = ((b - stations) * sign >= 0) & ((t - stations) * sign < 0)
                inside[:, bad] = False
                at, some = inside.nonzero(as_tuple=True)
                part, order = _integrals(nodes[:m, some], t[some], stations[at, 0]), k[some].unsqueeze(0)
                below = _column(part[:m] / q[:, some] * (count[:m] < order), z) * delta[:, some]
                last = _column((part / ahead[:, some]).gather(0, order)[0], z) * fresh[order[0], some]
                passed[at, here[some]] = z[some] + below.cumsum(0)[-1] + last
            h = gaps[0].abs() * growth
            new, passing = predicted + terms[1], torch.cat([b.unsqueeze(0), nodes[:-1]])
            if len(bad):
                new[bad], passing[:, bad] = z[bad], nodes[:, bad]
                fresh[:m, bad], ahead[:m, bad] = delta[:, bad], q[:, bad]
                fresh[m:, bad], ahead[m:, bad] = 0.0, 1.0
                over |= h < 1e-13  # stuck
            z, nodes, k, delta, q = new, passing, best, fresh[:highest], ahead[:highest]
            leaves = over.nonzero()[:, 0] if attempt < self.max_steps else torch.arange(len(z), device=z.device)
            if len(leaves):
                which = here[leaves]
                result[which] = z[leaves]
                accepted[which] = known[leaves] - 1
                rejected[which] = attempt + 1 - known[leaves]
                lost = nodes[0, leaves] != end
                if bool(lost.any()):
                    failed[which] = lost
                    nan = reason == "nan" or bool(broken[leaves[lost]].any())
                    reason = "nan" if nan else "steps" if attempt == self.max_steps else "stuck"
                stay = (~over).nonzero()[:, 0] if attempt < self.max_steps else leaves[:0]
                if not len(stay):
                    break
                here, z, k, h, known, broken = (x[stay] for x in (here, z, k, h, known, broken))
                delta, q, nodes, rows = delta[:, stay], q[:, stay], nodes[:, stay], here
        for i, state in enumerate(passed, start=1):
            problem.observe(i, state)
        problem.observe(problem.last, result)
        return result, Counts(1 + accepted + rejected, accepted, rejected, failed, reason)


def _column(weights: Tensor, like: Tensor) -> Tensor:
    """Weights of rows, as factors of states."""
    return weights.to(like.dtype).unsqueeze(-1)


def _integrals(nodes: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """I_j = ∫_a^b Π_{i<j}(s − t_i) ds for j = 0 … m, shape (m + 1, B); nodes (m, B), a and b (B,).

    Here and above sums are cumulative: unlike those of `sum`, their bits do not depend on where in the batch a row lies.
    """
    half = 0.5 * (b - a)
    s = torch.addcmul(a + half, half, _NODES.to(a).unsqueeze(1))
    first = _WEIGHTS.to(a).unsqueeze(1) * half
    products = torch.cat([first.unsqueeze(0), s - nodes.unsqueeze(1)]).cumprod(0)
    return products.cumsum(1)[:, -1]
