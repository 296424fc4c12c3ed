"""Exponential Runge–Kutta methods in λ as data: rows of one table, and the weights of their steps.

A method is its nodes c and weights w (see `scoresde.solvers.exponential` for the formulas). The
functions φ_k turn them into the factors of a step of length h in λ.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LONGEST_STEP = 2.0
"""Longest step in λ that is taken in λ: with eight or more steps uniform in λ, all finite ones."""

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
        For each node after the first, for each f_j before it, the weights (w_j1, w_j2, …) of φ_1,
        φ_2, …
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
                f"c goes from 0 to 1 and w has a row for each node after the first, got c={self.c} "
                f"and {len(self.w)} rows"
            )


_TWO: tuple[Weights, ...] = (((1.0,),), ((), (1.0,)))
_THREE: tuple[Weights, ...] = (((1.0,),), ((1.0, -2.0), (0.0, 2.0)), ((1.0, -1.5), (), (0.0, 1.5)))
_HALVES = (0.0, 1 / 2, 1.0)
_THIRDS = (0.0, 1 / 3, 2 / 3, 1.0)

EXPONENTIALS: dict[str, Exponential] = {
    "dpmpp_2s": Exponential(2, "x0", _HALVES, _TWO),
    "dpmpp_3s": Exponential(3, "x0", _THIRDS, _THREE),
    "dpm_2": Exponential(2, "eps", _HALVES, _TWO),
    "dpm_3": Exponential(3, "eps", _THIRDS, _THREE),
    "dpm_adaptive": Exponential(3, "eps", _THIRDS, _THREE, ((-0.5,), (1.5,))),
}
"""Methods by name: DPM-Solver++(2S) (Lu et al. 2022b) and its 3S; DPM-Solver-2 and -3
(Lu et al. 2022a, Algorithms 1 and 2, r = 1/2; 1/3, 2/3); and -3 with an embedded -2 of r = 1/3
(DPM-Solver-23; 2022a, appendix C).
"""


def phi_functions(x: Tensor, n: int) -> list[Tensor]:
    """Return φ_1(x), …, φ_n(x): φ_k(x) = ∫_0^1 e^{(1−s)x}·s^{k−1}/(k−1)! ds, φ_k(0) = 1/k!."""
    near = x.abs() < 1
    small = torch.where(near, x, 0.0)
    large = torch.where(near, 1.0, x)
    # The recursion upwards cancels for small x. There, sum the series Σ x^m/(m + n)! of the last
    # function, and recur downwards.
    series = torch.full_like(x, 1 / math.factorial(17 + n))
    for m in range(16, -1, -1):
        series.mul_(small).add_(1 / math.factorial(m + n))
    ups = [torch.expm1(large) / large]
    downs = [series]
    for k in range(1, n):
        ups.append((ups[-1] - 1 / math.factorial(k)) / large)
        downs.append(downs[-1] * small + 1 / math.factorial(n - k))
    return [torch.where(near, down, up) for down, up in zip(reversed(downs), ups, strict=True)]


@functools.cache
def _flat_weights(row: Exponential) -> tuple[tuple[Weights, ...], Tensor, Tensor]:
    """Return the weights of all nodes, and those not empty as flat tensors: node, and columns."""
    # With ŵ, the weights w − ŵ of the error come last, as if of one more node.
    ws: tuple[Weights, ...] = ((), *row.w)
    if row.w_hat:
        pairs = itertools.zip_longest(row.w[-1], row.w_hat, fillvalue=())
        ws += (tuple(_difference(w, w_hat) for w, w_hat in pairs),)
    last = len(row.c) - 1
    flat = []
    for i, weights in enumerate(ws):
        flat += [(min(i, last), *(*w, 0.0)[:2]) for w in weights if w]
    which, *columns = zip(*flat, strict=True)
    factors = torch.tensor(columns, dtype=torch.float64, device="cpu").unsqueeze(2)
    return ws, torch.tensor(which, device="cpu"), factors


def _difference(w: tuple[float, ...], w_hat: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(x - y for x, y in itertools.zip_longest(w, w_hat, fillvalue=0.0))


def step_numbers(row: Exponential, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Return the angles (C, N) of the C nodes of N steps, and p, q, a and all b_j (3C + …, N)."""
    c = torch.tensor(row.c, dtype=here.dtype, device=here.device).unsqueeze(1)
    ends = torch.stack([here, there])
    lam, end = -ends.tan().log()
    h = end - lam
    turn = c * (there - here)
    far = ~(h.abs() <= LONGEST_STEP)
    length = c * torch.where(far, 0.0, h)
    phi = torch.where(far, here + turn, torch.atan(torch.exp(-lam - length)))
    phi[0], phi[-1] = ends
    x, y = phi.cos(), phi.sin()
    if row.predict == "x0":
        a, b = y / y[0], length * x
        p, q = x, -y
        length = -length
    else:
        a, b = x / x[0], -length * y
        p, q = y, x
    paqs = torch.cat(
        [torch.where(far, 0.0, p), torch.where(far, 1.0, q), torch.where(far, 1.0, a)]
    )
    _, which, (first, second) = _flat_weights(row)
    one, two = torch.stack(phi_functions(length, 2)) * torch.where(far, turn, b)
    which = which.to(here.device)
    return phi, torch.cat([paqs, first.to(one) * one[which] + second.to(one) * two[which]])


def by_node(row: Exponential, phi: Sequence[Any], numbers: Sequence[Any]) -> list[list[Any]]:
    """Return lists φ, p, q, a, b_0, b_1, … of the nodes of a step, from `step_numbers`."""
    # At the angle φ, f = p·z + q·v, and a·z + Σ_j b_j·f_j is the state there. An embedded method
    # has one more list, the end with the weights of the error.
    n, last = len(row.c), len(row.c) - 1
    rest = iter(numbers[3 * n :])
    nodes = []
    for i, weights in enumerate(_flat_weights(row)[0]):
        at = min(i, last)
        bs = [next(rest) if w else 0.0 for w in weights]
        nodes.append([phi[at], *numbers[at : 3 * n : n], *bs])
    return nodes
