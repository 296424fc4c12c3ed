"""Drawing samples: `solve` returns the trajectory and its costs, `sample` only the samples.

Both work on flattened states on the arc z = x/√(α² + σ²), and take and return the units of the
data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from ..common.checks import check_budget, whole_number
from ..common.progress import shows_progress
from ..common.seeds import takes_seed
from ..common.sharding import together
from ..model.protocol import Model
from ..model.require import require_model
from ..solvers import Solver
from ..solvers.options import SolverOptions
from .options import StateOptions
from .solution import Solution
from .states import ArcStates, solve_states
from .tables import with_categories


@takes_seed
@shows_progress
@torch.no_grad()
@together()
def solve(
    sde: Model,
    n: int | None = None,
    *,
    start: Tensor | None = None,
    solver: str | Solver | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    times: Sequence[float] | Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[SolverOptions],
) -> Solution:
    """Move samples from noise to data, or given states either way, and return the trajectory.

    On the arc z = x/√(α² + σ²) every solver starts from z ~ N(0, I) at t = 1, or from the model's
    `source`, and ends at t = 0. With `start=` it starts from those states instead. With times that
    increase from 0 to 1 it takes data to noise (see `encode` and `decode`).

    Parameters
    ----------
    sde : ScoreSDE
    n : int, optional
        Number of samples: by default as many as `start` or conditions have rows, or 1.
    start : Tensor, shape (n, *shape), optional
        States to start from, in the units of the data, at the first of `times`.
    solver : str or Solver, optional
        A name of `scoresde.SOLVERS`, with its options as further arguments, or a solver object.
        The default is "adams"; for consistency models and flow maps it is "consistency" or
        "flow_map", for bridges "bridge", for distilled models "ddim" with their own steps, and
        for models of `observe` "dpmpp_2m".
    steps : int, optional
        Fixed number of steps. Without it an adaptive solver goes by its tolerances, and others
        take their default. With a half-precision network, tolerances that are not named are at
        least a tenth of its rounding: 8e-4 in bfloat16, 1e-4 in float16.
    spacing : str, optional
        Where the steps lie: a key of `scoresde.SPACINGS`.
    times : sequence of float, optional
        Process times at which the state is wanted, decreasing from 1 to 0; by default those two.
        With `start`, from any time in (0, 1] to 0, or increasing from 0 to one; `steps` are then
        the steps between these two. Adaptive Runge–Kutta and Adams methods interpolate: further
        times change neither their steps nor the end.
    generator : torch.Generator, optional
        The randomness: sample i depends on it and on i alone, not on n or `batch_size`. Without
        one, torch's global generator.
    seed : int, optional
        An integer in place of the generator.
    batch_size : int, optional
        Samples computed at once.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.
    **options
        Of the solver, e.g. rtol=1e-6 for "rk45", eta=0.5 for "ddim", snr=0.1 for "pc".

    Returns
    -------
    Solution

    Raises
    ------
    TypeError, ValueError
        For invalid arguments, before any work starts.
    SolverError
        If the network's output is not finite, or an adaptive solve does not reach the end.

    References
    ----------
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR
    2021.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> solution = scoresde.solve(sde, 3, solver="rk45", times=[1.0, 0.5, 0.25, 0.0])
    >>> solution.x.shape
    torch.Size([4, 3, 2])
    """
    t, states, *counts = solve_states(
        sde, n, start, solver, steps, spacing, times, generator, batch_size, {**options}
    )
    return Solution(t, torch.stack(states), *counts)


@torch.no_grad()
@together()
def last_states(
    sde: Model,
    n: int | None = None,
    *,
    start: Tensor | ArcStates | None = None,
    solver: str | Solver | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    times: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    **options: Unpack[SolverOptions],
) -> Tensor:
    """The last states of `solve`, in memory of their own."""
    _, states, *_ = solve_states(
        sde, n, start, solver, steps, spacing, times, generator, batch_size, {**options}
    )
    return states[-1]


@takes_seed
@shows_progress
def sample(
    sde: Model,
    n: int | None = None,
    *,
    draws: int | None = None,
    solver: str | Solver | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[SolverOptions],
) -> Any:
    """Draw n samples: a tensor, or a data frame from a model that has learnt a `Table`.

    Parameters
    ----------
    sde : ScoreSDE
    n : int, optional
        Number of samples: by default as many as conditions have rows, or 1.
    draws : int, optional
        Samples for each of the n rows: draws of x for each condition, as `summary` makes them.
    solver : str or Solver, optional
        A name of `scoresde.SOLVERS`, with its options as further arguments, or a solver object.
        The default is "adams"; for consistency models and flow maps it is "consistency" or
        "flow_map", for bridges "bridge", for distilled models "ddim" with their own steps, and
        for models of `observe` "dpmpp_2m".
    steps : int, optional
        Fixed number of steps. Without it an adaptive solver goes by its tolerances, and others
        take their default. With a half-precision network, tolerances that are not named are at
        least a tenth of its rounding: 8e-4 in bfloat16, 1e-4 in float16.
    spacing : str, optional
        Where the steps lie: a key of `scoresde.SPACINGS`.
    generator : torch.Generator, optional
        The randomness: sample i depends on it and on i alone, not on n or `batch_size`. Without
        one, torch's global generator.
    seed : int, optional
        An integer in place of the generator.
    batch_size : int, optional
        Samples computed at once.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.
    **options
        Of the solver, e.g. rtol=1e-6 for "rk45", eta=0.5 for "ddim", snr=0.1 for "pc".

    Returns
    -------
    Tensor, shape (n, *shape) or (draws, n, *shape), or pandas.DataFrame
        Samples, in the units of the data. From a model with a table, rows with its columns and
        dtypes: categories by their frequencies, unless `given(y=...)` names the combination, and
        numbers given those.

    Raises
    ------
    TypeError, ValueError
        For invalid arguments, before any work starts.
    SolverError
        If the network's output is not finite, or an adaptive solve does not reach the end.

    References
    ----------
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR
    2021.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> scoresde.sample(sde, 1000, solver="rk45").norm(dim=1).mean()
    tensor(2.8...)
    """
    model = require_model(sde, "sample")
    if draws is not None:
        if model.table is not None:
            raise TypeError("draws= is for models without a table; repeat the conditions instead")
        model, n = _repeated(model, n, whole_number("draws", draws))
    model, rows = with_categories(model, n, generator)
    x = last_states(
        model,
        rows.n,
        solver=solver,
        steps=steps,
        spacing=spacing,
        generator=generator,
        batch_size=batch_size,
        **options,
    )
    if draws is None:
        return rows.decoded(x)
    return x.reshape(-1, draws, *x.shape[1:]).transpose(0, 1)


def _repeated(sde: Model, n: int | None, draws: int) -> tuple[Model, int]:
    """The model with each of n rows of conditions repeated, and the number of rows then."""
    n = sde.condition_rows if n is None else whole_number("n", n)
    rows = sde.condition_rows
    if rows not in (1, n):
        sde.slice_conditions(0, n, n)  # which says so
    check_budget(f"draws={draws} for each of {n}", 8.0 * n * draws * sde.dim)
    repeated = torch.arange(n, device="cpu").repeat_interleave(draws)
    return sde.select_conditions(repeated), n * draws


@shows_progress
@together()
def encode(
    sde: Model,
    x: Tensor,
    *,
    solver: str | Solver = "adams",
    steps: int | None = None,
    spacing: str | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[SolverOptions],
) -> Tensor:
    """Run data to noise along the probability-flow ODE: the x_1 of each x_0.

    Its distribution is nearly N(0, (α² + σ²)·Σ), where Σ is the covariance of the data, or
    diag(scale²) of a model that does not whiten.

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, shape (B, *shape)
        Data, in their own units.
    solver, steps, spacing, batch_size, progress, **options
        As for `sample`; the solver is deterministic.

    Returns
    -------
    Tensor, shape (B, *shape)
        States at t = 1, in the units of the data; `decode` takes them back.

    Raises
    ------
    TypeError, ValueError
        For a stochastic solver or one that jumps, a model without a velocity, times=, or data of
        the wrong shape or type.
    SolverError
        As `sample`.

    References
    ----------
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR
    2021, section 4.3.

    Examples
    --------
    >>> import scoresde
    >>> mixture = scoresde.toy.Moons()
    >>> sde, x = scoresde.oracle(mixture, scoresde.RectifiedFlow()), mixture.sample(4)
    >>> torch.allclose(scoresde.decode(sde, scoresde.encode(sde, x)), x, atol=1e-3)
    True
    """
    how: StateOptions = {
        "solver": solver,
        "steps": steps,
        "spacing": spacing,
        "batch_size": batch_size,
        **options,
    }
    sde = require_model(sde, "encode")
    if "times" in options:
        raise TypeError(
            "encode runs from t = 0 to t = 1 and takes no times=: for other times, "
            "scoresde.solve(sde, start=x, times=[0.0, 0.5])"
        )
    return last_states(sde, start=sde.accept(x), times=(0.0, 1.0), **how)


@shows_progress
@together()
def decode(
    sde: Model,
    latent: Tensor,
    *,
    solver: str | Solver = "adams",
    steps: int | None = None,
    spacing: str | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[SolverOptions],
) -> Tensor:
    """Run noise to data: the sample x_0 of each latent x_1, the inverse of `encode`.

    Parameters
    ----------
    sde : ScoreSDE
    latent : Tensor, shape (B, *shape)
        States at t = 1, in the units of the data: from `encode`, interpolated, or drawn.
    solver, steps, spacing, batch_size, progress, **options
        As for `sample`.

    Returns
    -------
    Tensor, shape (B, *shape)
        Samples, in the units of the data.

    Raises
    ------
    TypeError, ValueError, SolverError
        As `sample`.

    Examples
    --------
    See `encode`.
    """
    how: StateOptions = {
        "solver": solver,
        "steps": steps,
        "spacing": spacing,
        "batch_size": batch_size,
        **options,
    }
    sde = require_model(sde, "decode")
    if "times" in options:
        raise TypeError(
            "decode runs from t = 1 to t = 0 and takes no times=: for other times, "
            "scoresde.solve(sde, start=latent, times=[1.0, 0.5])"
        )
    return last_states(sde, start=sde.accept(latent, "latent"), **how)
