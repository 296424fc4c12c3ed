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
BUDGET = (12, 18, 28, 50)  # steps from which a fixed grid carries order 5, 6, 7, 8
SAFETY = 0.7  # a step is tried at 0.7 of the length that would just do: a rejection wastes an evaluation
_NODES, _WEIGHTS = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(5))  # exact to degree 9


@SOLVERS.register("adams")
@dataclass(frozen=True)
class Adams(Solver):
    """Adams predictor–corrector of variable order for dz/dφ = v, with steps and order of its own for each sample.

    One network evaluation a step (PEC). Without `steps=` every sample goes by the tolerance; its end point's error comes out
    close to it. With `steps=` the grid is fixed, spaced "graded", and the order is 4 below 12 steps, then 5, from 18
    steps 6, from 28 steps 7 and from 50 steps 8. The first steps can have no high order: they leave an error of order 4,
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
        """The order on the coarsest grids; finer ones have more, up to `max_order`."""
        return min(4, self.max_order)

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        if problem.adaptive:
            return self._adapt(problem, z)
        order = 4 + sum(problem.last >= steps for steps in BUDGET)
        return march(Row("v", min(order, self.max_order), corrector=True), problem, z)

    def _adapt(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:
        """Move each sample with steps and order of its own; those that are done leave the batch."""
        stations = problem.levels[1:-1]
        start, end = problem.levels[0].phi, problem.levels[-1].phi
        sign, total = math.copysign(1.0, end - start), len(z)
        result, passed = torch.empty_like(z), [torch.empty_like(z) for _ in stations]
        accepted, rejected = torch.zeros(2, total, dtype=torch.int64, device=z.device)
        failed, reason = torch.zeros(total, dtype=torch.bool, device=z.device), ""

        rows, here = None, torch.arange(total, device=z.device)  # which samples are still under way: None means all
        # d_j is held as δ_j = d_j·q_j, a number of v's own size, with q_j = Π_{i<j}(t_0 − t_{i+1}): tiny steps overflow nothing.
        delta = problem.velocity(z, start, None).unsqueeze(0)
        scale = self.atol + self.rtol * z.abs()
        h = (0.5 * problem.norm(delta[0] / scale).double().rsqrt()).clamp(1e-6, 0.1).nan_to_num(nan=1e-6)
        # Nodes that are not there yet are put far behind; no order reaches them.
        far = start - 10 * sign * torch.arange(self.max_order, dtype=torch.float64, device=z.device)
        nodes = far.unsqueeze(1).repeat(1, total)
        q = torch.ones_like(nodes[:1])
        k, known = torch.ones(2, total, dtype=torch.int64, device=z.device)  # order of the predictor, number of nodes
        for attempt in range(1, self.max_steps + 1):
            t, room = nodes[0], (end - nodes[0]).abs()
            lands = h >= room * (1 - 1e-9)
            step = torch.minimum(h, room)
            b = torch.where(lands, end, t + sign * step)
            m = len(delta)
            integrals = _integrals(nodes[:m], t, b)
            used = torch.arange(m, device=z.device).unsqueeze(1) < k
            predicted = z + _sum(delta * _column(integrals[:-1] / q * used, z))
            v = problem.velocity(predicted, b, rows)
            ahead = torch.cat([torch.ones_like(q[:1]), b - nodes[:m]]).cumprod(0)  # Π_{i<j}(b − t_i)
            p = (delta * _column(ahead[:-1] / q, z)).cumsum(0)  # the polynomials through the last values, at b
            new_delta = torch.cat([v.unsqueeze(0), v - p])
            # The errors that the next lower order, this, and the next higher would make.
            orders = torch.stack([(k - 1).clamp_min(1), k, torch.minimum(k + 1, known.clamp_max(self.max_order - 1))])
            terms = new_delta.gather(0, orders.unsqueeze(2).expand(3, *z.shape))
            terms = terms * _column((integrals / ahead).gather(0, orders), z)
            scale = self.atol + self.rtol * torch.maximum(z.abs(), predicted.abs())
            errors = problem.norm((terms / scale).flatten(0, 1)).reshape(3, -1)
            good = errors[1] <= 1.0
            growth, best = (SAFETY * torch.exp(errors.clamp_min(1e-12).log() / -(orders + 1))).double().max(0)
            best = orders.gather(0, best.unsqueeze(0))[0]
            growth = growth.nan_to_num(nan=0.2).clamp(0.2, 2.0)
            bad = (~good).nonzero()[:, 0]
            growth[bad] = growth[bad].clamp_max(SAFETY)
            best[bad] = torch.minimum(best, k)[bad]
            for station, into in zip(stations, passed, strict=True):  # the polynomial knows all between t and b
                inside = (good & ((b - station.phi) * sign >= 0) & ((t - station.phi) * sign < 0)).nonzero()[:, 0]
                part = _integrals(nodes[:m, inside], t[inside], torch.full_like(t[inside], station.phi))
                order = k[inside].unsqueeze(0)
                into[here[inside]] = (
                    z[inside]
                    + _sum(delta[:, inside] * _column(part[:-1] / q[:, inside] * used[:, inside], z))
                    + new_delta[order[0], inside] * _column((part / ahead[:, inside]).gather(0, order)[0], z)
                )
            new, passing = predicted.add_(terms[1]), torch.cat([b.unsqueeze(0), nodes[:-1]])
            new[bad], passing[:, bad] = z[bad], nodes[:, bad]
            new_delta[:m, bad], ahead[:m, bad] = delta[:, bad], q[:, bad]
            z, nodes, k, h = new, passing, best, step * growth
            delta, q = new_delta[: self.max_order], ahead[: self.max_order]
            known += good
            accepted[here] += good
            rejected[here] += ~good
            over = nodes[0] == end
            stuck = ~good & (step < 1e-12)
            leaves = over | stuck if attempt < self.max_steps else torch.ones_like(over)
            if bool(leaves.any()):
                result[here[leaves]] = z[leaves]
                lost = leaves & ~over
                if bool(lost.any()):
                    failed[here[lost]] = True
                    nan = not bool(v[lost].isfinite().all())
                    reason = "nan" if nan else "steps" if attempt == self.max_steps else "stuck"
                stay = (~leaves).nonzero()[:, 0]
                if not len(stay):
                    break
                here, z, k, h, known = (x[stay] for x in (here, z, k, h, known))
                delta, q, nodes, rows = delta[:, stay], q[:, stay], nodes[:, stay], here
        for i, state in enumerate(passed, start=1):
            problem.observe(i, state)
        problem.observe(problem.last, result)
        return result, Counts(1 + accepted + rejected, accepted, rejected, failed, reason)


def _column(weights: Tensor, like: Tensor) -> Tensor:
    """Weights of rows, as factors of states."""
    return weights.to(like.dtype).unsqueeze(-1)


def _sum(terms: Tensor) -> Tensor:
    """Σ over the first axis, in an order that does not depend on where a row lies in the batch, as that of `sum` may."""
    return terms.cumsum(0)[-1]


def _integrals(nodes: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """I_j = ∫_a^b Π_{i<j}(s − t_i) ds for j = 0 … m, shape (m + 1, B); nodes (m, B), a and b (B,)."""
    half = 0.5 * (b - a)
    s = torch.addcmul(0.5 * (a + b), half, _NODES.to(a).unsqueeze(1))
    factors, products = s - nodes.unsqueeze(1), s.new_empty(len(nodes) + 1, *s.shape)
    torch.mul(_WEIGHTS.to(a).unsqueeze(1), half, out=products[0])
    for j, factor in enumerate(factors):
        torch.mul(products[j], factor, out=products[j + 1])
    return products.cumsum(1)[:, -1]
