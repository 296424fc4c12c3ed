"""Multistep methods as data: rows of one table, and the coefficients of their steps on a grid.

Every method integrates a variable f that changes slowly, against a weight that is integrated
exactly:

    z' = keep·z + Σ_j w_j·f_j + noise·n,        w_j = ∫ ω(s)·ℓ_j(s) ds,

with ℓ_j the Lagrange polynomials on the last nodes. The variables, integrated over φ or λ =
−log tan φ, are

    v       dz = v dφ                                      ω = 1
            Adams–Bashforth in the angle
    x0      d(z·e^{τ²λ}/sin φ) = κ·e^{κλ}·x̂0 dλ + noise    ω = cos φ'·κ·e^{−κ(λ' − λ)}
            DPM-Solver++, UniPC, SA-Solver
    eps     d(z/cos φ) = −e^{−λ}·ε̂ dλ                      ω = −cos φ'·e^{−λ}
            DEIS
    x0φ²    d(z/sin φ) = −x̂0/sin²φ dφ                      ω = −sin φ'/sin²φ
            `adams`

where κ = 1 + τ², and τ is the strength of the noise: 0 the probability-flow ODE, 1 the reverse SDE
with the noise sin φ'·√(1 − e^{−2τ²(λ' − λ)})·n (Xue et al. 2023).

The polynomials of the first three are in φ or λ; those of the last are in φ². Along a path x̂0 is
a smooth, even function of φ, so a polynomial in φ² reaches φ = 0, where λ is infinite, and loses
no order at either end. The weights fall off as 1/sin²φ, so errors die out towards the data however
thin a mode is, where those of "v" grow.

A high order multiplies what is not smooth, the errors of a network and rounding, by the Lebesgue
number Σ_j |ℓ_j(φ'²)| of the extrapolation to the new node. For "x0φ²" the row limits this number,
and so the order of each step: it is low in coarse grids and where steps grow, high near the data.
The first steps have few values behind them. Their corrections therefore integrate again from the
start, by the polynomial through all values so far. This costs no evaluation.

λ is infinite where the path ends in pure data or pure noise. There "x0" and "eps" take a step of
order 1 (DDIM).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .problem import Level

Array = NDArray[np.float64]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
"""Gauss–Legendre rule, exact for polynomials, to 1e-15 for e^{κλ} over 10 units of λ."""
LONGEST = 10.0
"""Units of λ that one such rule covers."""
LEAST = 1e-150
"""φ below which a level is the data: φ² would be rounded to 0."""
INFINITE = 1e-6
"""cos φ or sin φ below which λ is infinite, or as good as that."""
START = 4
"""Values, the new one included, up to which "x0φ²" integrates again from the start."""


class Row(NamedTuple):
    """A method, as data.

    Parameters
    ----------
    variable : str
        What is interpolated: "v" in φ, "x0" or "eps" in λ, "x0φ²" in φ², from noise to data.
    order : int
        Order of convergence; with `limit` the highest.
    corrector : bool
        Whether the step is taken again with the value at the new node.
    half : bool
        Whether polynomials of two nodes take the midpoint's weights.
    tau : float
        Strength of the noise.
    limit : float
        Largest Lebesgue number of an extrapolation, for "x0φ²".

    Examples
    --------
    >>> METHODS["dpmpp_2m"].order
    2
    """

    variable: str
    order: int
    corrector: bool = False
    half: bool = False
    tau: float = 0.0
    limit: float = np.inf


VARIABLES = ("v", "x0", "eps", "x0φ²")

METHODS: dict[str, Row] = {
    # Lu et al. 2022b, Algorithm 2
    "dpmpp_2m": Row("x0", 2, half=True),
    "dpmpp_3m": Row("x0", 3),
    # Zhang & Chen 2023, with polynomials in λ
    "deis": Row("eps", 3),
    # Zhao et al. 2023, B(h) = e^h − 1
    "unipc": Row("x0", 3, corrector=True, half=True),
    # Lu et al. 2022b, SDE-DPM-Solver++(2M)
    "dpmpp_2m_sde": Row("x0", 2, half=True, tau=1.0),
    "dpmpp_3m_sde": Row("x0", 3, tau=1.0),
    # Xue et al. 2023: predictor and corrector of 3 steps
    "sa": Row("x0", 4, corrector=True, tau=1.0),
}
"""Multistep methods by name."""


def quadrature(nodes: Array, a: Array, b: Array, rate: float = 0.0) -> Array:
    """Return ∫_a^b e^{rate·(s − b)}·ℓ_j(s) ds (N, m) of N steps with m nodes each, (N, m)."""
    half = 0.5 * (b - a)[:, None]
    s = 0.5 * (a + b)[:, None] + half * _NODES
    omega = _WEIGHTS * half * np.exp(rate * (s - b[:, None]))
    columns = []
    for j in range(nodes.shape[1]):
        others = np.delete(nodes, j, axis=1)
        apart = nodes[:, j, None] - others
        factors = (s[:, :, None] - others[:, None, :]) / np.where(apart, apart, 1)[:, None, :]
        columns.append((omega * factors.prod(2)).sum(1))
    return np.stack(columns, 1)


class Step(NamedTuple):
    """Coefficients of a step: of z, of the values (newest first) by purpose, of the noise."""

    keep: float
    predict: list[float]
    correct: list[float]
    noise: float


def coefficients(row: Row, levels: Sequence[Level]) -> list[Step]:
    """Return the coefficients of every step of a grid."""
    return list(_coefficients(row, tuple(levels)))


# They cost as much as an evaluation of a small network, and are the same for sample after sample.
@functools.lru_cache(maxsize=32)
def _coefficients(row: Row, levels: tuple[Level, ...]) -> list[Step]:
    if row.variable == "x0φ²":
        return _even(row, np.array([level.phi for level in levels]))
    grid = _Grid(row, levels)
    last = len(levels) - 2
    found = [
        _ddim(row, levels[i], levels[i + 1], noise) for i, noise in enumerate(grid.noise.tolist())
    ]
    reach = grid.reach(row.order - row.corrector)
    for m in sorted(set(reach[grid.short].tolist())):
        which = np.flatnonzero(grid.short & (reach == m))
        predict, correct = _weights(row, grid, which, m)
        for i, p, c in zip(which.tolist(), predict, correct, strict=True):
            scale = grid.scale[i]
            repair = []
            if row.corrector and i < last and grid.s[i + 1] != grid.s[i]:
                repair = (c * scale).tolist()
            found[i] = Step(
                float(grid.keep[i]), (p * scale).tolist(), repair, float(grid.noise[i])
            )
    if row.tau:  # the last step is E[x0 | x], without noise
        found[-1] = Step(0.0, [levels[-1].cos], [], 0.0)
    return found


class _Grid:
    """A grid of N steps in the variable s: keep·z + scale·∫ e^{rate·(s − b)}·f ds + noise·n."""

    # `far` (N + 1,) says where s is infinite, `short` (N,) which steps have no such end.

    def __init__(self, row: Row, levels: tuple[Level, ...]) -> None:
        cos, sin = np.array([[level.cos, level.sin] for level in levels]).T
        self.far = np.minimum(cos, sin) < INFINITE
        self.rate = 0.0
        if row.variable == "v":
            self.s = np.array([level.phi for level in levels])
            self.far = np.zeros_like(self.far)
            self.keep = np.ones(len(levels) - 1)
            self.scale = np.ones(len(levels) - 1)
            self.noise = np.zeros(len(levels) - 1)
        else:
            self._in_lambda(row, cos, sin)
        self.short = ~(self.far[1:] | self.far[:-1])

    def _in_lambda(self, row: Row, cos: Array, sin: Array) -> None:
        far = self.far
        self.s = np.log(np.where(far, 1.0, cos)) - np.log(np.where(far, 1.0, sin))
        length = np.where(far[1:] | far[:-1], 1e3, np.diff(self.s))
        self.noise = sin[1:] * np.sqrt(-np.expm1(-2 * row.tau**2 * length))
        if row.variable == "x0":
            self.rate = 1 + row.tau**2
            self.scale = self.rate * cos[1:]
            self.keep = (
                sin[1:] / np.where(far[:-1], 1.0, sin[:-1]) * np.exp(-(row.tau**2) * length)
            )
        else:
            self.rate = -1.0
            self.scale = -sin[1:]
            self.keep = cos[1:] / np.where(far[:-1], 1.0, cos[:-1])

    def reach(self, most: int) -> NDArray[np.intp]:
        """Return how many nodes (N,) the polynomial of each step has, `most` at the most."""
        # It does not look across an infinite s, nor across a gap much smaller than the step ahead.
        steps = np.arange(len(self.s) - 1)
        gaps = np.abs(np.diff(self.s))
        nodes = np.ones_like(steps)
        clear = ~self.far[:-1]
        for back in range(1, most):
            before = np.maximum(steps - back, 0)
            clear = clear & (steps >= back) & ~self.far[before]
            clear &= gaps[before] > gaps / 8
            nodes += clear
        return nodes


def _weights(row: Row, grid: _Grid, which: NDArray[np.intp], m: int) -> tuple[Array, Array]:
    """Return the weights (N, m) of predictor and (N, m + 1) of corrector of steps with m nodes."""
    s = grid.s
    nodes, a, b = s[which[:, None] - np.arange(m)], s[which], s[which + 1]
    predict = quadrature(nodes, a, b, grid.rate)
    correct = quadrature(np.concatenate([b[:, None], nodes], 1), a, b, grid.rate)
    total = predict.sum(1, keepdims=True)
    if row.half and m == 1:
        correct = total * np.array([0.5, 0.5])
    if row.half and m == 2:
        back = 0.5 * (b - a) / (a - nodes[:, 1])
        predict = total * np.stack([1 + back, -back], 1)
    return predict, correct


def _even(row: Row, phi: Array) -> list[Step]:
    """Coefficients of z' = (sin φ'/sin φ)·z − sin φ'·∫ p(s²)/sin²s ds, p(φ²) ≈ x̂0; p(0) at 0."""
    q = phi**2
    last = len(phi) - 2
    log = np.log(np.tan(0.5 * np.maximum(phi, LEAST)))  # ds/sin²s = d log tan(s/2)/sin s
    steps = []
    behind: list[tuple[Array, Array]] = []  # nodes s² and weights of the integrals so far
    sums = np.zeros(1)  # weights of the values in all of them
    for i, m in enumerate(_reach(q, max(row.order - row.corrector, 1), row.limit).tolist()):
        nodes = q[i - np.arange(m)]
        if phi[i + 1] < LEAST:
            steps.append(Step(0.0, _lagrange(nodes, np.zeros(1))[:, 0].tolist(), [], 0.0))
            continue
        y, weights = _panels(log[i], log[i + 1])
        s = 2 * np.arctan(np.exp(y))
        omega = -weights / np.sin(s)
        sin = np.sin(phi[i + 1])
        predict = sin * (_lagrange(nodes, s**2) @ omega)
        correct = np.zeros(0)
        corrected = row.corrector and i < last and q[i + 1] < q[i]
        if corrected and m == i + 1 == len(behind) + 1 < min(START, row.order):
            behind.append((s**2, omega))
            before = np.append(0.0, sums)
            every = q[i + 1 :: -1]
            sums = np.sum([_lagrange(every, x) @ w for x, w in behind], axis=0)
            correct = sin * (sums - before)
        elif corrected:
            correct = sin * (_lagrange(np.append(q[i + 1], nodes), s**2) @ omega)
        keep = float(sin / np.sin(phi[i]))
        steps.append(Step(keep, predict.tolist(), correct.tolist(), 0.0))
    return steps


def _panels(a: float, b: float) -> tuple[Array, Array]:
    """Return nodes and weights of ∫_a^b dλ, by as many rules as its length asks for."""
    edges = np.linspace(a, b, 1 + max(1, int(np.ceil(abs(b - a) / LONGEST))))
    half = 0.5 * np.diff(edges)[:, None]
    middle = 0.5 * (edges[1:] + edges[:-1])[:, None]
    return (middle + half * _NODES).flatten(), (half * _WEIGHTS).flatten()


def _reach(q: Array, most: int, limit: float) -> NDArray[np.intp]:
    """Return how many nodes (N,) the polynomial of each step has, for a Lebesgue number ≤ limit."""
    steps = np.arange(len(q) - 1)
    reach = np.ones_like(steps)
    for m in range(2, most + 1):
        i = steps[reach == m - 1]
        i = i[i >= m - 1]
        nodes = q[i[:, None] - np.arange(m)]
        ahead = q[i + 1, None] - nodes
        apart = nodes[:, :, None] - nodes[:, None, :] + np.eye(m)
        with np.errstate(divide="ignore", invalid="ignore"):  # nodes in one place: not counted
            weights = ahead.prod(1, keepdims=True) / (ahead * apart.prod(2))
        reach[i[np.abs(weights).sum(1) <= limit]] = m
    return reach


def _lagrange(nodes: Array, x: Array) -> Array:
    """Return ℓ_j(x), shape (nodes, len(x))."""
    rows = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        rows.append(((x[:, None] - others) / (node - others)).prod(1))
    return np.array(rows)


def _ddim(row: Row, here: Level, there: Level, noise: float) -> Step:
    """Return the step of order 1 from or to an end where λ is infinite: DDIM's."""
    if row.variable == "eps" and here.cos > INFINITE:
        return Step(there.cos / here.cos, [there.sin - there.cos * here.sin / here.cos], [], 0.0)
    if here.sin < INFINITE:  # from the data: z is x̂0 itself, and the value is ε̂
        return Step(there.cos, [there.sin], [], 0.0)
    keep = 0.0 if row.tau else there.sin / here.sin
    return Step(keep, [there.cos - keep * here.cos], [], noise)
