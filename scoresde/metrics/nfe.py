"""How many network evaluations a solver needs for an error: what straight paths are for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import plan as planning
from ..checks import affordable, check_generator, flag, number, whole
from ..errors import SolverError
from ..plan import plan
from ..sampling import solve
from ..sde import ScoreSDE, require_sde
from ..solvers import Solver

_TIGHT = {torch.float64: 1e-10, torch.float32: 1e-6}  # tolerance of reference solves


@dataclass(frozen=True)
class Evaluations:
    """What a solver needs for an error; see `evaluations`.

    Attributes
    ----------
    nfe : float
        Network evaluations per sample; ∞ if the error was not reached.
    error : float
        RMS error at that cost, in the units of the data; the least seen if it was not reached.
    steps : int or None
        Of the fixed grid.
    tolerance : float or None
        rtol = atol of the adaptive solve.

    Examples
    --------
    See `evaluations`.
    """

    nfe: float
    error: float
    steps: int | None = None
    tolerance: float | None = None


def evaluations(
    sde: ScoreSDE,
    error: float,
    *,
    solver: str | Solver = "ddim",
    adaptive: bool = False,
    n: int | None = None,
    start: Tensor | None = None,
    most: int = 1024,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Evaluations:
    """Find how many network evaluations a solver needs to end within an RMS error of the exact ODE solution from the same starts.

    The error is √(mean (x_0 − x_0*)²) over samples and dimensions, x_0* being from "adams" at a tolerance of 1e-10 (1e-6 for a
    model in float32). On a fixed grid the number of steps is doubled until the error is met, then bisected: the least, where
    errors fall as steps grow. Adaptively, tolerances rtol = atol go down from 1 by half decades until it is met.

    Parameters
    ----------
    sde : ScoreSDE
    error : float
        In the units of the data; above 1e-9 of the samples' root mean square (2e-5 in float32).
    solver : str or Solver
        A deterministic one; by name if adaptive. Euler's method in the time of a rectified flow, which is exact in one step on a
        straight path, is "ddim". ("euler" takes its steps along the arc, where constant velocity looks curved.)
    adaptive : bool
        Whether to go by tolerances instead of steps.
    n : int, optional
        Number of samples; 256 if neither it nor `start` is given.
    start : Tensor, shape (n, *shape), optional
        States at t = 1 to start from, in the units of the data; otherwise drawn as `solve` does.
    most : int
        Steps after which a fixed grid is given up.
    generator : torch.Generator, optional
        The randomness of the starts.
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
        For a stochastic solver, an adaptive solve without tolerances, an error too small to be seen, and as `solve`.
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
    >>> ddim, adams = (evaluations(flow, 0.01, solver=name, **how) for name in ("ddim", "adams"))
    >>> ddim.nfe > 2 * adams.nfe, adams.error <= 0.01
    (True, True)
    """
    sde = require_sde(sde, "evaluations")
    error, most = number("error", error, 0, math.inf, hint="try 1e-2"), whole("most", most)
    adaptive = flag("adaptive", adaptive)
    check_generator(generator)
    affordable(f"most={most} steps", calls=most)
    clash = [name for name in ("rtol", "atol", "steps") if name in options]
    if clash:
        raise ValueError(f"{clash[0]}= is what is searched for; leave it out")
    spacing = options.pop("spacing", None)
    method = plan(sde, solver, None, None, options).solver
    if method.stochastic:
        raise ValueError(f"the error is that of an ODE's solution, and solver {solver!r} is stochastic; try 'adams'")
    if adaptive and (not isinstance(solver, str) or "rtol" not in method.tolerances):
        raise ValueError(f"solver {solver!r} has no tolerance to search for by name; try 'rk45', or adaptive=False")
    tight = max(_TIGHT[sde.state_dtype], planning.tolerance(sde))
    n = (256 if start is None else 1) if n is None else n
    exact = solve(sde, n, start=start, generator=generator, batch_size=batch_size, solver="adams", rtol=tight, atol=tight)
    least = 20 * tight * float(exact.x[-1].double().square().mean().sqrt())
    if error < least:
        hint = "; the model's .double() reaches further" if sde.state_dtype == torch.float32 else ""
        raise ValueError(f"error = {error:g} is below {least:.1g}, what the reference solution resolves{hint}")

    def measure(**how: Any) -> tuple[float, float]:
        try:
            solution = solve(sde, start=exact.x[0], solver=solver, batch_size=batch_size, **how, **options)
        except SolverError:
            return math.inf, math.inf
        off = (solution.x[-1] - exact.x[-1]).double().square().mean().sqrt()
        return float(off), float(solution.nfe.double().mean())

    best = math.inf
    if adaptive:
        tolerance = 1.0
        while tolerance > 0.5 * tight:
            off, nfe = measure(rtol=tolerance, atol=tolerance)
            if off <= error:
                return Evaluations(nfe, off, tolerance=tolerance)
            best, tolerance = min(best, off), tolerance / math.sqrt(10)
        return Evaluations(math.inf, best)
    low, high, found = 0, 1, None
    while high <= most:
        off, nfe = measure(steps=high, spacing=spacing)
        best = min(best, off)
        if off <= error:
            found = Evaluations(nfe, off, steps=high)
            break
        low, high = high, 2 * high
    while found is not None and high - low > 1:
        middle = (low + high) // 2
        off, nfe = measure(steps=middle, spacing=spacing)
        if off <= error:
            high, found = middle, Evaluations(nfe, off, steps=middle)
        else:
            low = middle
    return found or Evaluations(math.inf, best)
