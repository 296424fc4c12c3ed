"""Multistep methods: one evaluation a step, and a polynomial through the last few; one loop, one table of rows.

Every method here integrates a variable f that changes slowly, against a weight that is integrated exactly:

    z' = keep·z + Σ_j w_j·f_j + noise·n,        w_j = ∫ ω(s)·ℓ_j(s) ds,

with ℓ_j the Lagrange polynomials on the last nodes. The variables in use, integrated over φ or λ = −log tan φ, are

    v      dz = v dφ                                       ω = 1                        Adams–Bashforth in the angle
    x0     d(z·e^{τ²λ}/sin φ) = κ·e^{κλ}·x̂0 dλ + noise     ω = cos φ'·κ·e^{−κ(λ' − λ)}   DPM-Solver++, UniPC, SA-Solver
    eps    d(z/cos φ) = −e^{−λ}·ε̂ dλ                       ω = −cos φ'·e^{−λ}           DEIS
    x0φ²   d(z/sin φ) = −x̂0/sin²φ dφ                       ω = −sin φ'/sin²φ            `adams`

The polynomials of the first three are in φ or λ; those of the last are in φ². Along a path x̂0 is a smooth, even function of φ,
so a polynomial in φ² reaches φ = 0, where λ is infinite, and loses no order at either end. The weights fall off as
1/sin²φ, so errors die out towards the data however thin a mode is, where those of "v" grow.

where κ = 1 + τ², and τ is the strength of the noise: 0 the probability-flow ODE, 1 the reverse SDE with the noise
sin φ'·√(1 − e^{−2τ²(λ' − λ)})·n (Xue et al. 2023). A method is then a row (variable, order, corrector, half, τ). With a
corrector the value at the new node, evaluated at the predicted state, joins the polynomial and the step is taken again
("PEC": one evaluation a step); the order grows by one. `half` is the field's shortcut for two nodes: instead of the exact
weights those of the midpoint, as in DPM-Solver++(2M) and UniPC.

λ is infinite where the path ends in pure data or pure noise. There "x0" and "eps" take a step of order 1 (DDIM).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checks import number, whole
from ..registry import choose
from .base import SOLVERS, Counts, Level, Problem, Solver

Array = NDArray[np.float64]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)  # exact for polynomials, 1e-15 for e^{κλ} over 10 units of λ


class Row(NamedTuple):
    """A method, as data.

    Parameters
    ----------
    variable : str
        What is interpolated: "v" in φ, "x0" or "eps" in λ, "x0φ²" in φ², from noise to data.
    order : int
        Order of convergence.
    corrector : bool
        Whether the step is taken again with the value at the new node.
    half : bool
        Whether polynomials of two nodes take the midpoint's weights.
    tau : float
        Strength of the noise.

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


VARIABLES = ("v", "x0", "eps", "x0φ²")

METHODS: dict[str, Row] = {
    "dpmpp_2m": Row("x0", 2, half=True),  # Lu et al. 2022b, Algorithm 2
    "dpmpp_3m": Row("x0", 3),
    "deis": Row("eps", 3),  # Zhang & Chen 2023, with polynomials in λ
    "unipc": Row("x0", 3, corrector=True, half=True),  # Zhao et al. 2023, B(h) = e^h − 1
    "dpmpp_2m_sde": Row("x0", 2, half=True, tau=1.0),  # Lu et al. 2022b, SDE-DPM-Solver++(2M)
    "dpmpp_3m_sde": Row("x0", 3, tau=1.0),
    "sa": Row("x0", 4, corrector=True, tau=1.0),  # Xue et al. 2023: predictor and corrector of 3 steps
}
"""Multistep methods by name."""


def quadrature(nodes: Array, a: Array, b: Array, rate: Array | float = 0.0) -> Array:
    """Return ∫_a^b e^{rate·(s − b)}·ℓ_j(s) ds for the Lagrange polynomials ℓ_j on some nodes, many steps at once.

    Parameters
    ----------
    nodes : ndarray, shape (S, m)
        Nodes of each of S steps.
    a, b : ndarray, shape (S,)
        Ends of the steps.
    rate : ndarray, shape (S,), or float
        Of the exponential weight.

    Returns
    -------
    ndarray, shape (S, m)

    Examples
    --------
    >>> import numpy as np
    >>> quadrature(np.array([[0.0, -1.0]]), np.array([0.0]), np.array([1.0]))  # Adams–Bashforth 2
    array([[ 1.5, -0.5]])
    """
    half = 0.5 * (b - a)[:, None]
    s = 0.5 * (a + b)[:, None] + half * _NODES
    omega = _WEIGHTS * half * np.exp(np.asarray(rate).reshape(-1, 1) * (s - b[:, None]))
    columns = []
    for j in range(nodes.shape[1]):
        others = np.delete(nodes, j, axis=1)
        factors = (s[:, :, None] - others[:, None, :]) / (nodes[:, j, None] - others)[:, None, :]
        columns.append((omega * factors.prod(2)).sum(1))
    return np.stack(columns, 1)


class Step(NamedTuple):
    """One step's coefficients: what is kept of z, the weights (newest value first) of predictor and corrector, the noise."""

    keep: float
    predict: list[float]
    correct: list[float]
    noise: float


def coefficients(row: Row, levels: Sequence[Level]) -> list[Step]:
    """Return the coefficients of every step of a grid.

    Parameters
    ----------
    row : Row
    levels : sequence of Level
        The grid, N + 1 nodes.

    Returns
    -------
    list of Step, length N

    Examples
    --------
    >>> sde = scoresde.build("rectified", "mlp", shape=(2,))
    >>> levels = scoresde.plan.levels(sde, torch.linspace(1, 0, 3, dtype=torch.float64))
    >>> [[round(w * 4 / math.pi, 6) for w in step.predict] for step in coefficients(Row("v", 2), levels)]
    [[-1.0], [-1.5, 0.5]]
    """
    return list(_coefficients(row, tuple(levels)))


@functools.lru_cache(maxsize=32)  # for who draws sample after sample: they cost as much as an evaluation of a small network
def _coefficients(row: Row, levels: tuple[Level, ...]) -> list[Step]:
    if row.variable == "x0φ²":
        return _even(row, np.array([level.phi for level in levels]))
    cos, sin = np.array([[level.cos, level.sin] for level in levels]).T
    far = np.minimum(cos, sin) < 1e-6  # λ is infinite, or as good as that
    if row.variable == "v":
        s, far = np.array([level.phi for level in levels]), np.zeros_like(far)
        rate, keep, scale, noise = 0.0, np.ones_like(s[1:]), np.ones_like(s[1:]), np.zeros_like(s[1:])
    else:
        s = np.log(np.where(far, 1.0, cos)) - np.log(np.where(far, 1.0, sin))
        kappa, length = 1 + row.tau**2, np.where(far[1:] | far[:-1], 1e3, np.diff(s))
        noise = sin[1:] * np.sqrt(-np.expm1(-2 * row.tau**2 * length))
        if row.variable == "x0":
            rate, scale = kappa, kappa * cos[1:]
            keep = sin[1:] / np.where(far[:-1], 1.0, sin[:-1]) * np.exp(-(row.tau**2) * length)
        else:
            rate, keep, scale = -1.0, cos[1:] / np.where(far[:-1], 1.0, cos[:-1]), -sin[1:]
    steps = np.arange(len(s) - 1)
    short = ~(far[1:] | far[:-1])
    # How far back a polynomial may look: not across an infinite λ, nor across a gap much smaller than the step ahead.
    gaps, sees, clear = np.abs(np.diff(s)), np.ones_like(steps), ~far[:-1]
    for back in range(1, row.order - row.corrector):
        clear = clear & (steps >= back) & ~far[np.maximum(steps - back, 0)]
        clear &= gaps[np.maximum(steps - back, 0)] > gaps / 8
        sees += clear
    found = [
        Step(0.0, [], [], 0.0) if short[i] else _ddim(row, levels[i], levels[i + 1], float(noise[i])) for i in steps.tolist()
    ]
    for m in sorted(set(sees[short].tolist())):
        which = steps[short & (sees == m)]
        nodes, a, b = s[which[:, None] - np.arange(m)], s[which], s[which + 1]
        predict = quadrature(nodes, a, b, rate)
        correct = quadrature(np.concatenate([b[:, None], nodes], 1), a, b, rate)
        total = predict.sum(1, keepdims=True)
        if row.half and m == 1:
            correct = total * np.array([0.5, 0.5])
        if row.half and m == 2:
            back = 0.5 * (b - a) / (a - nodes[:, 1])
            predict = total * np.stack([1 + back, -back], 1)
        for at, p, c in zip(which.tolist(), predict, correct, strict=True):
            c = c * scale[at] if row.corrector and at < steps[-1] else c[:0]
            found[at] = Step(float(keep[at]), (p * scale[at]).tolist(), c.tolist(), float(noise[at]))
    if row.tau:  # the last step is E[x0 | x], without noise
        found[-1] = Step(0.0, [levels[-1].cos], [], 0.0)
    return found


def _even(row: Row, phi: Array) -> list[Step]:
    """Coefficients of z' = (sin φ'/sin φ)·z − sin φ'·∫ p(s²)/sin²s ds with p(φ²) ≈ x̂0; to φ' = 0 they are those of p(0)."""
    q, last = phi**2, len(phi) - 2
    gaps, steps = np.abs(np.diff(q)), []
    log = np.log(np.tan(0.5 * np.maximum(phi, 1e-300)))  # ds/sin²s = d log tan(s/2)/sin s
    for i in range(last + 1):
        m = 1  # nodes in the polynomial: not across a gap much smaller than the step ahead
        while m < min(row.order - row.corrector, i + 1) and gaps[i - m] > gaps[i] / 8:
            m += 1
        nodes = q[i - np.arange(m)]
        if phi[i + 1] == 0:
            steps.append(Step(0.0, _lagrange(nodes, np.zeros(1))[:, 0].tolist(), [], 0.0))
            continue
        half = 0.5 * (log[i + 1] - log[i])
        s = 2 * np.arctan(np.exp(0.5 * (log[i] + log[i + 1]) + half * _NODES))
        omega = -np.sin(phi[i + 1]) * _WEIGHTS * half / np.sin(s)
        predict = _lagrange(nodes, s**2) @ omega
        correct = _lagrange(np.append(q[i + 1], nodes), s**2) @ omega if row.corrector and i < last else np.empty(0)
        steps.append(Step(float(np.sin(phi[i + 1]) / np.sin(phi[i])), predict.tolist(), correct.tolist(), 0.0))
    return steps


def _lagrange(nodes: Array, x: Array) -> Array:
    """ℓ_j(x), shape (nodes, len(x))."""
    rows = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        rows.append(((x[:, None] - others) / (node - others)).prod(1))
    return np.array(rows)


def _ddim(row: Row, here: Level, there: Level, noise: float) -> Step:
    """The step of order 1 from or to an end where λ is infinite: cos φ'·x̂0 and, from pure noise, sin φ' of what ε was."""
    if row.variable == "eps" and here.cos > 1e-6:
        return Step(there.cos / here.cos, [there.sin - there.cos * here.sin / here.cos], [], 0.0)
    if here.sin < 1e-6:  # from the data: z is x̂0 itself, and the value is ε̂
        return Step(there.cos, [there.sin], [], 0.0)
    keep = 0.0 if row.tau else there.sin / here.sin
    return Step(keep, [there.cos - keep * here.cos], [], noise)


@dataclass(frozen=True)
class Multistep(Solver):
    """A row of `METHODS` on a fixed grid: z' = keep·z + Σ_j w_j·f_j + noise·n, one evaluation a step.

    Those in x̂0 and ε̂, all that have names, serve no likelihood.

    By name they take two options: `order`, the order of convergence, 1 to 4 (with a corrector at least 2, so that the
    literature's UniPC-2 has order=3), and for methods in x̂0 `tau`, the strength of the noise: 0 the ODE, 1 the reverse
    SDE, 2 at most.

    Parameters
    ----------
    row : Row

    Raises
    ------
    TypeError, ValueError
        For a row that is no method: an unknown variable, an order out of range, noise with another variable than "x0".

    References
    ----------
    Lu et al., DPM-Solver++, 2022. Zhang & Chen, DEIS, ICLR 2023. Zhao et al., UniPC, NeurIPS 2023. Xue et al., SA-Solver,
    NeurIPS 2023.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE()).double()
    >>> ends = [scoresde.sample(sde, 8, solver=name, steps=200, generator=torch.Generator().manual_seed(0))
    ...         for name in ("dpmpp_3m", "unipc")]
    >>> torch.allclose(*ends, atol=1e-3)
    True
    """

    row: Row
    steps: ClassVar[int | None] = 50

    def __post_init__(self) -> None:
        row = self.row
        choose("variable", row.variable, VARIABLES)
        if not 1 + row.corrector <= whole("order", row.order) <= 9:
            raise ValueError(f"order is from {1 + row.corrector} to 9, got {row.order}")
        number("tau", row.tau, 0, 2, closed=True, hint="0 is the ODE, 1 the reverse SDE")
        if row.tau and row.variable != "x0":
            raise ValueError(f"tau= goes with methods in x̂0 such as 'dpmpp_2m' and 'sa', got {row.tau}")

    @property
    def spacing(self) -> str:  # type: ignore[override]
        """Denser at both ends of the arc; noise wants equal steps in λ, in each of which the same share of it is drawn anew."""
        return "logsnr" if self.stochastic else "graded"

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of convergence; with noise weak, and 2 at most: what is extrapolated lags a step behind its noise."""
        return min(2, self.row.order) if self.row.tau else self.row.order

    @property
    def ode(self) -> bool:  # type: ignore[override]
        """Whether it asks for velocities alone."""
        return self.row.variable in ("v", "x0φ²")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether τ > 0."""
        return self.row.tau > 0

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        return march(self.row, problem, z)


def march(row: Row, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:
    """Move states along the grid of a problem: the loop of all multistep methods.

    What a corrector adds is the predictor's local error, so for the price of a few numbers a row `Counts.error` sums it, over all
    steps but the last, which is not corrected.

    Parameters
    ----------
    row : Row
    problem : Problem
    z : Tensor, shape (B, n)

    Returns
    -------
    z : Tensor, shape (B, n)
    counts : Counts

    Examples
    --------
    See `Multistep`.
    """
    last, table = problem.last, coefficients(row, problem.levels)
    values: list[Tensor] = []
    repair: list[float] = []  # what the corrector adds to the predicted state, as weights of the values
    gauge = problem.measure if row.corrector else None
    gauged = None if gauge is None else z.new_zeros(len(z), dtype=torch.float64)  # Σ measure(e)
    for i, step in enumerate(table):
        values = [_value(row, problem, z, i), *values[: row.order - 1]]
        if i and problem.wants(i):
            problem.observe(i, _combine(1.0, z, repair, values))
        if gauge is not None and gauged is not None and repair:
            added = _combine(0.0, torch.zeros_like(z), repair, [f.detach() for f in values])
            level, f = problem.levels[i], values[0].detach()
            v = f if row.variable == "v" else (level.cos * z.detach() - f) / level.sin
            gauged += gauge(added, z.detach(), v, level.phi).double()
        # The state is carried as predicted; its correction is taken together with the next prediction.
        weights = [step.keep * r + w for r, w in itertools.zip_longest(repair, step.predict, fillvalue=0.0)]
        repair = (
            [c - w for c, w in itertools.zip_longest(step.correct, [0.0, *step.predict], fillvalue=0.0)] if step.correct else []
        )
        z = _combine(step.keep, z, weights, values)
        if step.noise:
            z.add_(problem.noise(), alpha=step.noise)
    problem.observe(last, z)
    return z, Counts(last, last, error=gauged)


def _combine(keep: float, z: Tensor, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """keep·z + Σ_j w_j·f_j, a new tensor."""
    first = weights[0] if weights else 0.0
    total = torch.add(z if keep == 1 else keep * z, values[0], alpha=first)
    for w, f in zip(weights[1:], values[1:], strict=False):
        total.add_(f, alpha=w)
    return total


def _value(row: Row, problem: Problem, z: Tensor, i: int) -> Tensor:
    """The variable at level i; the DDIM step from pure noise needs x̂0, and that from pure data ε̂, whatever the variable."""
    if row.variable in ("v", "x0φ²"):
        level = problem.levels[i]
        v = problem.velocity(z, level.phi, None)
        return v if row.variable == "v" else torch.add(level.cos * z, v, alpha=-level.sin)
    x0, eps = problem.denoise(z, i)
    level = problem.levels[i]
    return x0 if level.cos < 1e-6 or (row.variable == "x0" and level.sin >= 1e-6) else eps


def multistep(row: Row, order: int | None = None, tau: float | None = None) -> Multistep:
    """Return a multistep solver: a row, with another order or strength of noise if wanted.

    Parameters
    ----------
    row : Row
    order : int, optional
        1 to 4; at least 2 with a corrector.
    tau : float, optional
        0 for the ODE, 1 for the reverse SDE, for methods in x̂0.

    Returns
    -------
    Multistep

    Raises
    ------
    TypeError, ValueError
        For an order or tau that is out of range.

    Examples
    --------
    >>> multistep(METHODS["dpmpp_2m"], tau=1.0).stochastic
    True
    """
    if order is not None and not 1 + row.corrector <= whole("order", order) <= 4:
        raise ValueError(f"order is from {1 + row.corrector} to 4, got {order}")
    return Multistep(row._replace(order=order or row.order, tau=row.tau if tau is None else tau))


for _name, _row in METHODS.items():
    SOLVERS.add(_name, functools.partial(multistep, _row))
