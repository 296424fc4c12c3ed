"""Singlestep exponential integrators in λ = log(α/σ) = −log tan φ: DPM-Solver and DPM-Solver++, on a grid or adaptive.

On the arc, z = cos φ·x0 + sin φ·ε moves so that along a trajectory, with x̂0 and ε̂ the network's estimates,

    d(z/sin φ)/dλ = e^λ·x̂0        and        d(z/cos φ)/dλ = −e^{−λ}·ε̂.

A step of length h from (φ, λ), reaching the angle φ_c at λ + c·h, integrates one of the two: the exponential exactly, and f,
which is x̂0 or ε̂, as a polynomial in λ. With φ_1(x) = (e^x − 1)/x, φ_{k+1}(x) = (φ_k(x) − 1/k!)/x that is

    x0:   z_c = (sin φ_c/sin φ)·z + cos φ_c·c·h·Σ_j Σ_k w_jk·φ_k(−c·h)·f_j         (Lu et al. 2022b)
    eps:  z_c = (cos φ_c/cos φ)·z − sin φ_c·c·h·Σ_j Σ_k w_jk·φ_k(+c·h)·f_j         (Lu et al. 2022a, Proposition 3.1)

and a method is its nodes c and weights w: a row of `EXPONENTIALS`. Where a step is long in λ, |h| > 2, f is no polynomial in λ;
at σ = 0 and α = 0, λ is even infinite. Such a step takes the same row in the angle instead, with the velocity v for f:
z_c = z + c·Δφ·Σ_j Σ_k w_jk·φ_k(0)·v_j. As φ_k(0) = 1/k!, these are Runge–Kutta methods of the same order (the midpoint rule,
Heun's third-order method), finite at both ends. Peers take every step in λ, and to σ = 0 end with z' = x̂0, first order.
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

from .base import SOLVERS, Adaptive, Counts, Level, Problem, Stepper, Survivors

LONG = 2.0  # in λ; with eight steps or more uniform in λ every step but those to infinity is the papers'

Weights = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Exponential:
    """An exponential Runge–Kutta method in λ.

    Parameters
    ----------
    order : int
        Order of the solution.
    predict : str
        What is interpolated: "x0" or "eps".
    c : tuple of float
        Nodes: 0 first, where a step starts, and 1 last, where it ends and nothing is evaluated.
    w : tuple
        For each node after the first, for each f_j before it, the weights (w_j1, w_j2, …) of φ_1, φ_2, …
    w_hat : tuple or None
        Weights at the last node of an embedded method of one order less, if the method has one.

    Raises
    ------
    ValueError
        For another predict, or rows that do not fit each other.

    Examples
    --------
    >>> EXPONENTIALS["dpm_3"].c
    (0.0, 0.3333333333333333, 0.6666666666666666, 1.0)
    """

    order: int
    predict: str
    c: tuple[float, ...]
    w: tuple[Weights, ...]
    w_hat: Weights | None = None

    def __post_init__(self) -> None:
        if self.predict not in ("x0", "eps"):
            raise ValueError(f"predict is 'x0' or 'eps', got {self.predict!r}")
        if len(self.w) != len(self.c) - 1 or self.c[0] != 0 or self.c[-1] != 1:
            raise ValueError(
                f"c goes from 0 to 1 and w has a row for each node after the first, got c={self.c} and {len(self.w)} rows"
            )


_TWO: tuple[Weights, ...] = (((1.0,),), ((), (1.0,)))
_THREE: tuple[Weights, ...] = (((1.0,),), ((1.0, -2.0), (0.0, 2.0)), ((1.0, -1.5), (), (0.0, 1.5)))
_HALVES, _THIRDS = (0.0, 1 / 2, 1.0), (0.0, 1 / 3, 2 / 3, 1.0)

EXPONENTIALS: dict[str, Exponential] = {
    "dpmpp_2s": Exponential(2, "x0", _HALVES, _TWO),
    "dpmpp_3s": Exponential(3, "x0", _THIRDS, _THREE),
    "dpm_2": Exponential(2, "eps", _HALVES, _TWO),
    "dpm_3": Exponential(3, "eps", _THIRDS, _THREE),
    "dpm_adaptive": Exponential(3, "eps", _THIRDS, _THREE, ((-0.5,), (1.5,))),
}
"""Methods by name: DPM-Solver++(2S) (Lu et al. 2022b) and its 3S; DPM-Solver-2 and -3 (Lu et al.
2022a, Algorithms 1 and 2, r = 1/2; 1/3, 2/3); and -3 with an embedded -2 of r = 1/3
(DPM-Solver-23; 2022a, appendix C)."""


def exponentials(x: Tensor, n: int) -> list[Tensor]:
    """Return φ_1(x), …, φ_n(x): φ_k(x) = ∫_0^1 e^{(1−s)x}·s^{k−1}/(k−1)! ds, so that φ_k(0) = 1/k!.

    Parameters
    ----------
    x : Tensor, float64
    n : int
        How many; up to 3, to 1e-14 of their size.

    Returns
    -------
    list of n Tensor, of x's shape

    References
    ----------
    Hochbruck & Ostermann, Exponential integrators, Acta Numerica 2010.

    Examples
    --------
    >>> [float(p) for p in exponentials(torch.zeros((), dtype=torch.float64), 3)]
    [1.0, 0.5, 0.16666666666666666]
    """
    near = x.abs() < 1
    small, large = torch.where(near, x, 0.0), torch.where(near, 1.0, x)
    # For small x the recursion cancels: sum the series Σ x^m/(m + n)! for the last, and recur towards the first.
    series = torch.full_like(x, 1 / math.factorial(17 + n))
    for m in range(16, -1, -1):
        series.mul_(small).add_(1 / math.factorial(m + n))
    ups, downs = [torch.expm1(large) / large], [series]
    for k in range(1, n):
        ups.append((ups[-1] - 1 / math.factorial(k)) / large)
        downs.append(downs[-1] * small + 1 / math.factorial(n - k))
    return [torch.where(near, down, up) for down, up in zip(reversed(downs), ups, strict=True)]


@functools.cache
def _rows(row: Exponential) -> tuple[tuple[Weights, ...], Tensor, Tensor]:
    """Return the weights of all nodes, last those of the error if there is ŵ; and of those not empty nodes and weights, flat."""
    ws: tuple[Weights, ...] = ((), *row.w)
    if row.w_hat:
        pairs = itertools.zip_longest(row.w[-1], row.w_hat, fillvalue=())
        ws += (tuple(tuple(x - y for x, y in itertools.zip_longest(*pair, fillvalue=0.0)) for pair in pairs),)
    flat = [(min(i, len(row.c) - 1), *(*w, 0.0)[:2]) for i, weights in enumerate(ws) for w in weights if w]
    which, *columns = zip(*flat, strict=True)
    return ws, torch.tensor(which, device="cpu"), torch.tensor(columns, dtype=torch.float64, device="cpu").unsqueeze(2)


def _nodes(row: Exponential, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Return the angles of the nodes of N steps, (C, N), and their p, q and a and all b_j, (3C + …, N); `_laid` sorts them."""
    c = torch.tensor(row.c, dtype=here.dtype, device=here.device).unsqueeze(1)
    ends = torch.stack([here, there])
    lam, end = -ends.tan().log()
    h, turn, data = end - lam, c * (there - here), row.predict == "x0"
    far = ~(h.abs() <= LONG)
    length = c * torch.where(far, 0.0, h)
    phi = torch.where(far, here + turn, torch.atan(torch.exp(-lam - length)))
    phi[0], phi[-1] = ends
    x, y = phi.cos(), phi.sin()
    a, b, p, q = (y / y[0], length * x, x, -y) if data else (x / x[0], -length * y, y, x)
    paqs = torch.cat([torch.where(far, 0.0, p), torch.where(far, 1.0, q), torch.where(far, 1.0, a)])
    _, which, (first, second) = _rows(row)
    one, two = torch.stack(exponentials(-length if data else length, 2)) * torch.where(far, turn, b)
    which = which.to(here.device)
    return phi, torch.cat([paqs, first.to(one) * one[which] + second.to(one) * two[which]])


def _laid(row: Exponential, phi: Sequence[Any], numbers: Sequence[Any]) -> list[list[Any]]:
    """Return the nodes of a step, of floats or of tensors: lists of φ, p, q, a, b_0, b_1, …

    At the angle φ, f = p·z + q·v; the node is reached from the first by a·z + Σ_j b_j·f_j. Last, for an embedded method, the
    end once more with b − b̂ for b.
    """
    n, last = len(row.c), len(row.c) - 1
    rest, ws = iter(numbers[3 * n :]), _rows(row)[0]
    places = [min(i, last) for i in range(len(ws))]
    return [
        [phi[i], *numbers[i : 3 * n : n], *(next(rest) if w else 0.0 for w in weights)]
        for i, weights in zip(places, ws, strict=True)
    ]


def _combine(z: Tensor, a: float | Tensor, b: Sequence[float | Tensor], fs: list[Tensor]) -> Tensor:
    """Return a·z + Σ_j b_j·f_j, for plain floats or columns (B, 1)."""
    total = z * a
    for w, f in zip(b, fs, strict=True):
        total = total.addcmul_(w, f) if isinstance(w, Tensor) else total.add_(f, alpha=w) if w else total
    return total


def _move(nodes: list[list[Any]], z: Tensor, v: Tensor, velocity: Callable[[Tensor, Any], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Take a step from z, where the velocity is v; return the state at the last node and f at the others."""
    new, fs = z, list[Tensor]()
    for here, there in itertools.pairwise(nodes):
        v = velocity(new, here[0]) if fs else v
        fs.append(_combine(new, here[1], here[2:3], [v]))
        new = _combine(z, there[3], there[4:], fs)
    return new, fs


@dataclass(frozen=True)
class Singlestep(Stepper):
    """An exponential Runge–Kutta method on a fixed grid; default spacing uniform in φ.

    Each step starts afresh, at `evaluations` network evaluations; multistep methods take one. It carries no log-density. Its
    order holds where steps in λ get small. On a grid uniform in φ or t that goes down to σ(0) = 0 the last of them don't
    (log 2, log 3/2, …), and order 3 becomes 2 in the limit; with spacing="logsnr", as in the papers, it stays, but the
    error is larger up to hundreds of evaluations.

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
        phi, numbers = (table.T.tolist() for table in _nodes(self.row, angles[:-1], angles[1:]))
        return [_laid(self.row, *step)[: len(self.row.c)] for step in zip(phi, numbers, strict=True)]

    def _step(self, problem: Problem, z: Tensor, i: int, nodes: list[list[float]]) -> Tensor:
        v = problem.velocity(z, problem.levels[i].phi, None)
        return _move(nodes, z, v, lambda y, phi: problem.velocity(y, phi, None))[0]


@dataclass(frozen=True)
class AdaptiveSinglestep(Adaptive, Singlestep):
    """An exponential Runge–Kutta method with an error estimate: each sample chooses its own steps.

    `"rk45"` needs fewer evaluations for errors of 1e-3 and less; this is for those who want DPM-Solver's. k-diffusion's and
    dpm-solver's adaptive variants share one step over the batch, and evaluate a rejected step's first stage anew. Here a
    sample that is done costs no more evaluations, a rejected step costs one less than an accepted one, and none depends on
    its mates. The controller measures steps in φ, in which both ends are finite, so no λ is chosen to begin or end at; the
    steps that are long in λ are taken in φ altogether (see the module). With `steps=` it takes a fixed grid.

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
    Lu et al. 2022a, appendix C; Hairer, Nørsett & Wanner 1993, II.4, and Hairer & Wanner 1996,
    IV.2, for the PI controller.

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
            raise ValueError("this method has no w_hat to estimate errors with; use Singlestep on a fixed grid")
        super().__post_init__()

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        return self._adapt(problem, z) if problem.adaptive else super().run(problem, z)

    def _adapt(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:
        """Move each sample with steps of its own from station to station; only those still under way are evaluated."""
        start, end = problem.levels[0].phi, problem.levels[-1].phi
        sign = math.copysign(1.0, end - start)
        stations = torch.tensor([level.phi for level in problem.levels[1:]], dtype=torch.float64, device=z.device)
        passed = z.expand(len(stations) - 1, *z.shape).clone()
        y, v = z, problem.velocity(z, start, None)
        phi = z.new_full((len(z),), start, dtype=torch.float64)
        h, before = torch.full_like(phi, 0.2), torch.full_like(phi, 1e-4)  # a rejected guess costs what a better one would
        accepted, nfe = torch.zeros_like(phi, dtype=torch.int64), torch.ones_like(phi, dtype=torch.int64)
        under_way, attempts = Survivors(len(z), z.device), 0
        while len(y):
            attempts += 1
            behind = sign * (stations.unsqueeze(1) - phi) <= 0
            goal = stations[behind.sum(0)]
            room = (goal - phi).abs()
            lands = h >= room * (1 - 1e-9)
            step = torch.minimum(h, room)
            there = torch.where(lands, goal, phi + sign * step)
            new, error = self._attempt(problem, y, v, phi, there, under_way.some)
            good = error <= 1.0
            # PI controller (beta = 0.04); what failed shrinks, what passed grows at most fivefold.
            growth = 0.9 * error.clamp_min(1e-10) ** (0.03 - 1 / self.order) * before**0.04
            growth = torch.where(good, growth.clamp(0.2, 5.0), growth.clamp(0.1, 0.9).nan_to_num(nan=0.1))
            h = torch.where(good & lands, torch.maximum(h, step * growth), step * growth)
            y, phi = torch.where(good.unsqueeze(1), new, y), torch.where(good, there, phi)
            before = torch.where(good, error.clamp_min(1e-4), before)
            accepted += good
            nfe += self.evaluations - 1
            if len(passed):
                at, some = ((sign * (stations[:-1].unsqueeze(1) - phi) <= 0) & ~behind[:-1]).nonzero(as_tuple=True)
                passed[at, under_way.rows[some]] = y[some]
            arrived = phi == end
            leaves = arrived | (~good & (step < 1e-12)) if attempts < self.max_steps else torch.ones_like(arrived)
            if bool(leaves.any()):
                stay = under_way.leave(leaves, y, accepted, torch.full_like(accepted, attempts), nfe, ~arrived, error.isfinite())
                y, v, phi, h, before, accepted, nfe, good = (x[stay] for x in (y, v, phi, h, before, accepted, nfe, good))
            onward = good.nonzero()[:, 0]
            if len(onward) == len(y):
                v = problem.velocity(y, phi, under_way.some) if len(y) else v
            elif len(onward):
                v = v.index_copy(0, onward, problem.velocity(y[onward], phi[onward], under_way.rows[onward]))
            nfe += good
        for i, state in enumerate(passed, start=1):
            problem.observe(i, state)
        end_point, taken, tried, nfe, failed, finite = under_way.all()
        problem.observe(problem.last, end_point)
        nan = bool((failed & ~finite).any())
        reason = "nan" if nan else "steps" if attempts == self.max_steps else "stuck"
        return end_point, Counts(nfe, taken, tried - taken, failed, reason)

    def _attempt(
        self, problem: Problem, z: Tensor, v: Tensor, here: Tensor, there: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Try one step: the new state, and the error in units of the tolerance."""
        phi, numbers = _nodes(self.row, here, there)
        *nodes, last = _laid(self.row, phi.unbind(), numbers.to(z.dtype).unsqueeze(2).unbind())
        new, fs = _move(nodes, z, v, lambda y, phi: problem.velocity(y, phi, rows))
        with torch.no_grad():
            error = _combine(torch.zeros_like(z), 0.0, last[4:], fs)
            scale = torch.maximum(z.abs(), new.abs()).mul_(self.rtol).add_(self.atol)
            return new, problem.norm(error.div_(scale)).double()


for _name, _row in EXPONENTIALS.items():
    SOLVERS.add(_name, functools.partial(AdaptiveSinglestep if _row.w_hat else Singlestep, _row))
