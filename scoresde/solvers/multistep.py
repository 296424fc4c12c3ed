"""Multistep methods on a grid: one evaluation a step, and a polynomial through the last values.

All share one loop, `march`; a method is a row of a table (`scoresde.solvers.multistep_rows`):
variable, order, corrector, half, τ. With a corrector the value at the new node, evaluated at the
predicted state, joins the polynomial, and the step is taken again ("PEC": one evaluation a step);
the order grows by one. `half` is a shortcut in use for two nodes: instead of the exact weights
those of the midpoint, as in DPM-Solver++(2M) and UniPC.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..common.checks import real_number, whole_number
from ..common.names import choose
from .base import SOLVERS, Solver
from .multistep_rows import INFINITE, METHODS, VARIABLES, Row, coefficients
from .problem import Counts, Problem

__all__ = ["METHODS", "Multistep", "Row", "march", "multistep"]


@dataclass(frozen=True)
class Multistep(Solver):
    """A multistep method on a fixed grid: z' = keep·z + Σ_j w_j·f_j + noise·n.

    It takes one evaluation a step. Methods in x̂0 and ε̂, which include all with a name, can't
    compute a likelihood. By name they take two options: `order`, the order of convergence, 1 to 4
    (with a corrector at least 2, so that the literature's UniPC-2 has order=3), and for methods in
    x̂0 `tau`, the strength of the noise: 0 the ODE, 1 the reverse SDE, 2 at most.

    Parameters
    ----------
    row : Row

    Raises
    ------
    TypeError, ValueError
        For a row that is no method: an unknown variable, an order out of range, noise with another
        variable than "x0".

    References
    ----------
    Lu et al., DPM-Solver++, 2022; Zhang & Chen, DEIS, ICLR 2023; Zhao et al., UniPC, NeurIPS 2023;
    Xue et al., SA-Solver, NeurIPS 2023.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE()).double()
    >>> def draw(solver):
    ...     generator = torch.Generator().manual_seed(0)
    ...     return scoresde.sample(sde, 8, solver=solver, steps=200, generator=generator)
    >>> torch.allclose(draw("dpmpp_3m"), draw("unipc"), atol=1e-3)
    True
    """

    row: Row
    steps: ClassVar[int | None] = 50

    def __post_init__(self) -> None:
        row = self.row
        choose("variable", row.variable, VARIABLES)
        if not 1 + row.corrector <= whole_number("order", row.order) <= 9:
            raise ValueError(f"order is from {1 + row.corrector} to 9, got {row.order}")
        real_number("tau", row.tau, 0, 2, closed=True, hint="0 is the ODE, 1 the reverse SDE")
        if row.tau and row.variable != "x0":
            raise ValueError(
                f"tau= goes with methods in x̂0 such as 'dpmpp_2m' and 'sa', got {row.tau}"
            )

    @property
    def spacing(self) -> str:  # type: ignore[override]
        """Denser at both ends of the arc; with noise, equal steps in λ, of equal shares of it."""
        return "logsnr" if self.stochastic else "graded"

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of convergence; with noise weak, and 2 at most."""
        # What is extrapolated lags a step behind its noise.
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
    """Move states along the grid of a problem: the loop of all multistep methods."""
    # z is the predicted state; its correction is taken together with the next prediction.
    last = problem.last
    values: list[Tensor] = []
    repair: list[float] = []  # weights of the values in the correction of z
    for i, step in enumerate(coefficients(row, problem.levels)):
        values = [_value(row, problem, z, i), *values[: row.order - 1]]
        if i and problem.wants(i):
            problem.observe(i, _combine(1.0, z, repair, values))
        pairs = itertools.zip_longest(repair, step.predict, fillvalue=0.0)
        weights = [step.keep * r + w for r, w in pairs]
        repair = []
        if step.correct:
            pairs = itertools.zip_longest(step.correct, [0.0, *step.predict], fillvalue=0.0)
            repair = [c - w for c, w in pairs]
        z = _combine(step.keep, z, weights, values)
        if step.noise:
            z.add_(problem.noise(), alpha=step.noise)
    problem.observe(last, z)
    return z, Counts(last, last)


def _combine(keep: float, z: Tensor, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Return keep·z + Σ_j w_j·f_j, a new tensor."""
    first = weights[0] if weights else 0.0
    kept = z if keep == 1 else keep * z
    total = torch.add(kept, values[0], alpha=first)
    for w, f in zip(weights[1:], values[1:], strict=False):
        total.add_(f, alpha=w)
    return total


def _value(row: Row, problem: Problem, z: Tensor, i: int) -> Tensor:
    """Return the variable at level i."""
    level = problem.levels[i]
    if row.variable in ("v", "x0φ²"):
        v = problem.velocity(z, level.phi, None)
        return v if row.variable == "v" else torch.add(level.cos * z, v, alpha=-level.sin)
    x0, eps = problem.denoise(z, i)
    # Whatever the variable, the DDIM step from pure noise needs x̂0, and that from pure data ε̂.
    if level.cos < INFINITE or (row.variable == "x0" and level.sin >= INFINITE):
        return x0
    return eps


def multistep(row: Row, order: int | None = None, tau: float | None = None) -> Multistep:
    """Return a multistep solver: a row, with another order or strength of noise if wanted.

    Parameters
    ----------
    row : Row
    order : int, optional
        1 to 4; with a corrector at least 2.
    tau : float, optional
        Strength of the noise, 0 to 2.

    Returns
    -------
    Multistep

    Examples
    --------
    >>> multistep(METHODS["dpmpp_2m"], tau=1.0).stochastic
    True
    """
    if order is not None and not 1 + row.corrector <= whole_number("order", order) <= 4:
        raise ValueError(f"order is from {1 + row.corrector} to 4, got {order}")
    tau = row.tau if tau is None else tau
    return Multistep(row._replace(order=order or row.order, tau=tau))


for _name, _row in METHODS.items():
    SOLVERS.add(_name, functools.partial(multistep, _row))
