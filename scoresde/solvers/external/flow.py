"""The probability-flow ODE as other libraries want it, and what their solvers have in common.

They see dz/ds = ±v(z, φ), in a variable s = ±φ that increases from start to end. Two things are
hidden from them: an angle outside the path is moved to its end, and steps that run out or vanish
are reported as `Counts.failed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...common.names import nearest
from ..adaptive import Adaptive
from ..base import Solver
from ..problem import Problem


def check_method(method: str, table: Iterable[str]) -> None:
    """Raise ValueError unless a method is one of a table."""
    if method not in table:
        raise ValueError(f"unknown method {method!r}. {nearest(method, table)}")


class Failed(Exception):
    """A solve cannot go on; the argument is a reason of `Counts`."""


class Flow:
    """dz/ds as a function (s, z) that never leaves the path, and counts its calls."""

    def __init__(self, problem: Problem) -> None:
        first, last = problem.levels[0].phi, problem.levels[-1].phi
        self.problem = problem
        self.sign = math.copysign(1.0, last - first)
        self.low, self.high = min(first, last), max(first, last)
        self.stations = [self.sign * level.phi for level in problem.levels]
        self.calls = 0

    def __call__(self, s: float | Tensor, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return dz/ds (B, n)."""
        # Adaptive methods look for a first step size beyond the end, and torchdiffeq rounds s to
        # the dtype of z.
        phi = min(max(self.sign * float(s), self.low), self.high)
        self.calls += 1
        self.v = self.problem.velocity(z, phi, rows)
        return self.sign * self.v


@dataclass(frozen=True)
class Method(Solver):
    """A deterministic method of another library, by its name there."""

    method: str
    table: ClassVar[dict[str, int]]
    ode: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_method(self.method, self.table)

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of the method, the highest if it varies."""
        return self.table[self.method]


@dataclass(frozen=True)
class AdaptiveMethod(Adaptive, Method):
    """An adaptive method of another library: it has tolerances, and takes no fixed grid."""

    def __post_init__(self) -> None:
        check_method(self.method, self.table)
        super().__post_init__()

    def _refuse_grid(self, problem: Problem) -> None:
        if not problem.adaptive:
            raise ValueError(
                f"{self.method!r} chooses its own steps; give rtol= and atol= instead of steps=, "
                "or try 'rk45'"
            )
