"""Arguments of `sample` by name, for functions that pass them on."""

from __future__ import annotations

from ..solvers import Solver
from ..solvers.options import SolverOptions


class StateOptions(SolverOptions, total=False):
    """How states are solved."""

    solver: str | Solver | None
    steps: int | None
    spacing: str | None
    batch_size: int | None


class SampleOptions(StateOptions, total=False):
    """Arguments of `sample`, without its number and randomness."""

    progress: bool | None


class PathOptions(SolverOptions, total=False):
    """Arguments of `encode` and `decode`."""

    solver: str | Solver
    steps: int | None
    spacing: str | None
    batch_size: int | None
