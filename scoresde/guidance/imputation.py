"""Missing entries of rows, drawn from p(missing | seen)."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from ..common.capabilities import Capability
from ..common.checks import check_budget, whole_number
from ..common.inputs import as_floats
from ..common.progress import shows_progress
from ..common.random import draw_seed
from ..common.seeds import takes_seed
from ..model.conditioned import Conditioned
from ..model.gaps import with_observed
from ..model.protocol import Model
from ..model.require import matched, require_model
from ..model.score_sde import ScoreSDE
from ..model.tables.gaps import candidates, partial_rows
from ..model.tables.schema import TableSchema
from ..sampling.trajectory import last_states
from ..solvers import Solver
from ..solvers.options import SolverOptions
from .gaps import WithGaps
from .guided import Guided
from .marginals import of_categories
from .weighted_particles import particles as weighted

POINTS = 64
"""Draws that estimate the density of a row that lacks numbers as well as a category."""


@takes_seed
@shows_progress
@torch.no_grad()
def impute(
    sde: Model,
    x: Any,
    *,
    draws: int | None = None,
    particles: int | None = None,
    solver: str | Solver | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[SolverOptions],
) -> Any:
    """Fill in the gaps (NaN) of rows by draws from p(missing | seen).

    It takes any model with a score. Each row with gaps is one draw of weighted particles that
    guidance leads to what the row has (`scoresde.particles`): exact for a Gaussian, and in the
    limit of many particles and steps for all. A network that has learnt to be shown a part of a
    row, `build(..., "masked")`, is shown that instead, and the others are sampled; it alone can
    learn from rows with gaps.

    Parameters
    ----------
    sde : ScoreSDE
        With its conditions given, if it has any: sde.given(y=...). The categories of a table are
        not given: they come with the rows.
    x : Tensor or array, shape (n, *shape), or data frame
        Rows in the units of the data, NaN for what is missing. Columns of a frame are matched by
        their names. Of a model with a table, a frame with its columns. A missing category is drawn
        from p(category | the rest of the row), by Bayes' rule from the model's p(y) p(x | y): exact
        where no number is missing.
    draws : int, optional
        Imputations of each row of a tensor.
    particles : int, optional
        Of each row and draw, 16 by default; more of them where few rows of the data are like it.
    steps : int, optional
        As for `particles`, 100 by default, or for `sample` with a masked network.
    solver, **options
        As for `sample`, with a masked network alone.
    spacing, generator, seed, batch_size, progress
        As for `particles` or `sample`. Of particles, the gaps of a row depend on the generator and
        on how many rows with gaps come before it.

    Returns
    -------
    Tensor, shape (n, *shape) or (draws, n, *shape), or pandas.DataFrame
        The rows as they are where they have values, and draws elsewhere, within the bounds and on
        the steps of a table's columns. A row of gaps alone is a sample. A tensor has the model's
        order of columns, `sde.schema.columns`.

    Raises
    ------
    TypeError, ValueError
        For a model without a score, a table's model with given(y=...), options that are not its
        own, and as `sample`.

    Warns
    -----
    UserWarning
        As `particles`.

    References
    ----------
    Wu et al., Practical and asymptotically exact conditional sampling in diffusion models, NeurIPS
    2023. Tashiro et al., CSDI: conditional score-based diffusion models for probabilistic time
    series imputation, NeurIPS 2021.

    Examples
    --------
    The second of two numbers whose correlation is 1, but for noise:

    >>> pairs = torch.randn(1000, 1) + 0.01 * torch.randn(1000, 2)
    >>> sde = scoresde.build("vp", "mlp", shape=(2,)).standardize(pairs)  # their Gaussian
    >>> scoresde.impute(sde, torch.tensor([[0.7, torch.nan]])).round(decimals=1)
    tensor([[0.7000, 0.7000]])
    """
    model = require_model(sde, "impute")
    named = {"steps": steps, "spacing": spacing, "generator": generator, "batch_size": batch_size}
    how: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    given: dict[str, Any] = {**options}
    if solver is not None:
        given = {"solver": solver, **options}
    if model.table is None or not model.table.takes(x):
        model, x = matched(model, x)
        return _filled(model, x, draws, particles, how, given)
    if draws is not None:
        raise TypeError("draws= is for models without a table; repeat the rows instead")
    return _frame(model, model.table, x, particles, how, given)


def _frame(
    model: Model,
    table: TableSchema,
    frame: Any,
    particles: int | None,
    how: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    """Rows of a table, filled: categories first, then numbers given them."""
    values, codes = partial_rows(table, frame)
    if codes is not None and "y" in model.condition:
        raise ValueError(
            "the rows have categories of their own, and the model is given y= too: impute by the "
            "model without given(y=...)"
        )
    z = table.maps.forward(table.noisy(values, how.get("generator")))
    combinations = None
    if codes is not None:
        combinations = _drawn(model, table, z, codes, how.get("generator"))
        model = model.given(y=table.labels(combinations))
    found = table.decode(_filled(model, z, None, particles, how, options), combinations)
    for j, column in enumerate(table.numeric):
        known = ~values[:, j].isnan().numpy()
        if not column.step:  # without the rounding of its map and back
            decoded = np.asarray(found[column.name])
            found[column.name] = np.where(known, values[:, j].to(torch.float64), decoded).astype(
                decoded.dtype
            )
    if hasattr(found, "loc") and hasattr(frame, "loc"):
        found.index = frame.index
    return found


def _drawn(
    model: Model,
    table: TableSchema,
    z: Tensor,
    codes: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """A combination (N,) for each row, drawn from p(combination | what the row has)."""
    rows, numbers = candidates(table, codes)
    counts = rows.bincount(minlength=len(codes))
    found = numbers[counts.cumsum(0) - counts]
    open_rows = (counts > 1).nonzero()[:, 0]
    if not len(open_rows):
        return found
    chance = torch.Generator().manual_seed(draw_seed(generator))
    part = model
    if model.condition_rows not in (1, len(z)):
        model.slice_conditions(0, len(z), len(z))  # raises
    if model.condition_rows > 1:
        part = model.select_conditions(open_rows)
    sums = of_categories(part, table, z[open_rows], codes[open_rows], POINTS, chance, {})
    shares = (sums.log_prob - sums.summed(len(open_rows))[sums.rows]).exp()
    ends = sums.rows.bincount(minlength=len(open_rows)).cumsum(0)
    target = torch.arange(len(open_rows)) + torch.rand(len(open_rows), generator=chance)
    place = torch.searchsorted(shares.cumsum(0), target.double())
    found[open_rows] = sums.combinations[torch.minimum(place, ends - 1)]
    return found


def _filled(
    model: Model,
    x: Any,
    draws: int | None,
    particles: int | None,
    how: dict[str, Any],
    options: dict[str, Any],
) -> Tensor:
    """Rows with gaps, filled by a network that is shown the others, or by weighted particles."""
    owner = model.model if isinstance(model, Conditioned) else model
    if isinstance(owner, ScoreSDE) and owner.interface.takes_gaps:
        if particles is not None:
            raise TypeError(
                "particles= is for networks that are not shown parts of rows: leave it out"
            )
        drawn, x = _shown(model, owner, x, draws, {**how, **options})
        return torch.where(x.isnan(), drawn.to(x.dtype), x)
    if options:
        raise TypeError(
            f"{', '.join(options)}= is of solvers, and this model imputes by weighted particles: "
            "it takes particles=, steps= and spacing="
        )
    size = 16 if particles is None else particles
    return _by_particles(model, x, draws, size, how)


def _by_particles(
    model: Model,
    x: Any,
    draws: int | None,
    size: int,
    how: dict[str, Any],
) -> Tensor:
    """Rows filled by weighted particles."""
    if Capability.SCORE not in model.capabilities:
        raise ValueError(
            "impute takes a model with a score, or a network that has learnt to be shown a part "
            f"of a row: scoresde.build(..., 'masked', shape={model.shape}), trained by fit"
        )
    if isinstance(model, Guided):
        raise TypeError(
            f"impute takes a model of data, and this is a guided one ({type(model).__name__}), "
            "whose noised densities are unknown: impute by the model that was guided"
        )
    x = as_floats(x, model.shape, "x", gaps=True)
    x = x.to(model.device, torch.promote_types(x.dtype, model.state_dtype))
    if model.condition_rows not in (1, len(x)):
        model.slice_conditions(0, len(x), len(x))  # which says so
    times = 1 if draws is None else whole_number("draws", draws)
    check_budget(f"draws={times} for each of {len(x)}", 8.0 * len(x) * times * model.dim)
    found: Tensor = x.expand(times, *x.shape).clone()
    rows = x.isnan().flatten(1).any(1).nonzero()[:, 0]
    if len(rows):
        each = rows.cpu().repeat_interleave(times)
        target = WithGaps(model.select_conditions(each), x[each.to(x.device)])
        drawn = weighted(target, len(each), size, **how).x
        drawn = drawn.reshape(len(rows), times, *x.shape[1:]).transpose(0, 1).to(x.dtype)
        found[:, rows] = torch.where(x[rows].isnan(), drawn, x[rows])
    return found if draws is not None else found[0]


def _shown(
    model: Model,
    owner: ScoreSDE,
    x: Any,
    draws: int | None,
    how: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Draws of a network that is shown what rows have, and the rows."""
    if not getattr(owner.interface.inner, "shown", 1):
        raise ValueError(
            "this network has learnt with shown=0, never given a part of a row: build it with "
            "shown=0.5 to impute"
        )
    x = as_floats(x, owner.shape, "x", gaps=True)
    x = x.to(owner.device, torch.promote_types(x.dtype, owner.state_dtype))
    if model.condition_rows not in (1, len(x)):
        model.slice_conditions(0, len(x), len(x))  # which says so
    seen = with_observed(owner, model.from_data(x))
    shown = model.with_condition({**model.condition, "seen": seen})
    times = 1 if draws is None else whole_number("draws", draws)
    rows = torch.arange(len(x), device="cpu").repeat_interleave(times)
    drawn = last_states(shown.select_conditions(rows), len(rows), **how)
    if draws is None:
        return drawn, x
    return drawn.reshape(len(x), times, *x.shape[1:]).transpose(0, 1), x
