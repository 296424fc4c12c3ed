"""Names and types of all solvers' options, by which editors complete them."""

from __future__ import annotations

from typing import Any, TypedDict


class SolverOptions(TypedDict, total=False):
    """Options of `scoresde.SOLVERS`: each solver takes its own, and refuses the others.

    A solver registered outside the library may have others: give `solver=` the object then.
    """

    rtol: float
    atol: float
    max_steps: int
    max_order: int
    order: int | None
    eta: float
    tau: float | None
    noise: float
    form: str
    churn: float
    s_min: float
    s_max: float
    s_noise: float
    intervals: tuple[tuple[float, float], ...]
    repeats: int
    jump: int
    ode_steps: int
    inner: int
    predictor: Any
    corrector: str
    corrections: int
    snr: float
    share: float
    variance: str | None


class RunOptions(SolverOptions, total=False):
    """A solver's options, and the bar of the call."""

    progress: bool | None
