"""How many network evaluations a solver needs for an error: what straight paths are for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from ..common.checks import check_budget, check_generator, real_number, true_or_false, whole_number
from ..common.errors import SolverError
from ..common.seeds import takes_seed
from ..common.user_warnings import warn
from ..model.protocol import Model
from ..model.require import require_model
from ..sampling import plan as planning
from ..sampling.plan import plan
from ..sampling.solution import Solution
from ..sampling.trajectory import solve
from ..solvers import Solver
from ..solvers.options import SolverOptions

REFERENCE_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}  # by the dtype of the states

Measure = Callable[..., tuple[float, float]]
"""Solves with some options; returns the RMS error and the evaluations per sample."""


@dataclass(frozen=True)
class Evaluations:
    """What a solver needs for an error; see `nfe_for_error`.

    Attributes
    ----------
    nfe : float
        Network evaluations per sample; ∞ if the error was not reached.
    error : float
        RMS error at that cost, in the units of the data; if it was not reached, the least seen.
    steps : int or None
        Of the fixed grid.
    tolerance : float or None
        rtol = atol of the adaptive solve.

    Examples
    --------
    See `nfe_for_error`.
    """

    nfe: float
    error: float
    steps: int | None = None
    tolerance: float | None = None


class SearchOptions(SolverOptions, total=False):
    """Options of the solves whose number of steps is searched for."""

    spacing: str | None


class SearchKeywords(SearchOptions, total=False):
    """Arguments of `nfe_for_error`."""

    solver: str | Solver
    adaptive: bool
    n: int | None
    start: Tensor | None
    most: int
    generator: torch.Generator | None
    seed: int | None
    batch_size: int | None


@takes_seed
def nfe_for_error(
    sde: Model,
    error: float,
    *,
    solver: str | Solver = "ddim",
    adaptive: bool = False,
    n: int | None = None,
    start: Tensor | None = None,
    most: int = 1024,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    **options: Unpack[SearchOptions],
) -> Evaluations:
    """Find how many network evaluations a solver needs for an RMS error of the ODE's solution.

    The error is √(mean (x_0 − x_0*)²) over samples and dimensions, where x_0* is the solution by
    "adams" from the same starts at a tolerance of 1e-10 (1e-6 for a model in float32). On a fixed
    grid the number of steps is doubled until the error is reached, then bisected: this finds the
    least number if errors fall as steps grow. Adaptively, the tolerance rtol = atol falls from 1 by
    half decades until the error is reached.

    Parameters
    ----------
    sde : ScoreSDE
    error : float
        In the units of the data; above 1e-9 of the samples' root mean square (2e-5 in float32).
    solver : str or Solver
        A deterministic one; by name if adaptive. "ddim" is Euler's method in the time of a
        rectified flow, exact in one step on a straight path. ("euler" takes its steps along the
        arc, where constant velocity looks curved.)
    adaptive : bool
        Whether to vary the tolerance instead of the steps.
    n : int, optional
        Number of samples; 256 if neither it nor `start` is given.
    start : Tensor, shape (n, *shape), optional
        States at t = 1 to start from, in the units of the data; otherwise drawn as `solve` does.
    most : int
        The largest number of steps of a fixed grid to try.
    generator : torch.Generator, optional
        The randomness of the starts.
    seed : int, optional
        An integer in place of the generator.
    batch_size : int, optional
        Samples computed at once.
    **options
        Of the solver; `spacing` is one for fixed grids.

    Returns
    -------
    Evaluations

    Raises
    ------
    TypeError, ValueError
        For a stochastic solver, an adaptive solve without tolerances, an error below what the
        reference resolves, and as `solve`.
    SolverError
        If the reference fails. A solve that fails on the way counts as an infinite error.

    References
    ----------
    Liu, Gong and Liu, Flow straight and fast, ICLR 2023: straight paths need few.

    Examples
    --------
    >>> import scoresde
    >>> flow = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.RectifiedFlow()).double()
    >>> how = {"n": 64, "generator": torch.Generator().manual_seed(0)}
    >>> ddim = nfe_for_error(flow, 0.01, solver="ddim", **how)
    >>> adams = nfe_for_error(flow, 0.01, solver="adams", **how)
    >>> ddim.nfe > 2 * adams.nfe, adams.error <= 0.01
    (True, True)
    """
    sde = require_model(sde, "nfe_for_error")
    error = real_number("error", error, 0, math.inf, hint="try 1e-2")
    most = whole_number("most", most)
    adaptive = true_or_false("adaptive", adaptive)
    check_generator(generator)
    check_budget(f"most={most} steps", calls=most)
    spacing = options.pop("spacing", None)
    _check_solver(sde, solver, adaptive, {**options})
    if n is None:
        n = 256 if start is None else 1
    tight = max(REFERENCE_TOLERANCE[sde.state_dtype], planning.tolerance(sde))
    exact = solve(
        sde,
        n,
        start=start,
        generator=generator,
        batch_size=batch_size,
        solver="adams",
        rtol=tight,
        atol=tight,
    )
    _check_error(sde, error, exact, tight)

    def measure(**how: Any) -> tuple[float, float]:
        try:
            solution = solve(
                sde, start=exact.x[0], solver=solver, batch_size=batch_size, **how, **options
            )
        except SolverError:
            return math.inf, math.inf
        off = (solution.x[-1] - exact.x[-1]).double().square().mean().sqrt()
        return float(off), float(solution.nfe.double().mean())

    if adaptive:
        return _by_tolerance(measure, error, tight)
    return _by_steps(measure, error, most, spacing)


def _check_solver(
    sde: Model, solver: str | Solver, adaptive: bool, options: dict[str, Any]
) -> None:
    """Raise unless the solver is deterministic, and has a tolerance by name if that is varied."""
    clash = [name for name in ("rtol", "atol", "steps") if name in options]
    if clash:
        raise ValueError(f"{clash[0]}= is what is searched for; leave it out")
    method = plan(sde, solver, None, None, options).solver
    if method.stochastic:
        raise ValueError(
            f"the error is that of an ODE's solution, and solver {solver!r} is stochastic; try "
            "'adams'"
        )
    if adaptive and (not isinstance(solver, str) or "rtol" not in method.tolerances):
        raise ValueError(
            f"solver {solver!r} has no tolerance to search for by name; try 'rk45', or "
            "adaptive=False"
        )


def _check_error(sde: Model, error: float, exact: Solution, tolerance: float) -> None:
    """Raise for an error below 20 tolerances of the reference solution."""
    least = 20 * tolerance * float(exact.x[-1].double().square().mean().sqrt())
    if error < least:
        hint = (
            "; the model's .double() reaches further" if sde.state_dtype == torch.float32 else ""
        )
        raise ValueError(
            f"error = {error:g} is below {least:.1g}, what the reference solution resolves{hint}"
        )


def _by_tolerance(measure: Measure, error: float, tight: float) -> Evaluations:
    """The first tolerance 1, 10^−½, 0.1 … at which the error is reached."""
    least = math.inf
    tolerance = 1.0
    while tolerance > 0.5 * tight:
        off, nfe = measure(rtol=tolerance, atol=tolerance)
        if off <= error:
            return Evaluations(nfe, off, tolerance=tolerance)
        least = min(least, off)
        tolerance /= math.sqrt(10)
    return Evaluations(math.inf, least)


def _by_steps(measure: Measure, error: float, most: int, spacing: str | None) -> Evaluations:
    """The number of steps at which the error is reached, by doubling and bisection."""
    least = math.inf
    too_few = 0
    steps = 1
    found = None
    while found is None and steps <= most:
        off, nfe = measure(steps=steps, spacing=spacing)
        least = min(least, off)
        if off <= error:
            found = Evaluations(nfe, off, steps=steps)
        else:
            too_few = steps
            steps *= 2
    if found is None:
        return Evaluations(math.inf, least)
    while steps - too_few > 1:
        middle = (too_few + steps) // 2
        off, nfe = measure(steps=middle, spacing=spacing)
        if off <= error:
            steps = middle
            found = Evaluations(nfe, off, steps=middle)
        else:
            too_few = middle
    return found


def evaluations(sde: Model, error: float, **options: Unpack[SearchKeywords]) -> Evaluations:
    """Find what `nfe_for_error` finds, whose old name this is.

    Parameters
    ----------
    sde, error, **options
        As for `nfe_for_error`.

    Returns
    -------
    Evaluations

    Warns
    -----
    DeprecationWarning

    Examples
    --------
    See `nfe_for_error`.
    """
    warn("scoresde.evaluations is now scoresde.nfe_for_error", DeprecationWarning)
    return nfe_for_error(sde, error, **options)
