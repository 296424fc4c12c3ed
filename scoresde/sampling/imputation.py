"""Missing entries of rows, drawn from p(missing | seen)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..common.inputs import as_floats
from ..model.gaps import with_observed
from ..model.protocol import Model
from ..model.require import require_model, trainable
from ..solvers import Solver
from .trajectory import sample


@torch.no_grad()
def impute(
    sde: Model,
    x: Any,
    *,
    draws: int | None = None,
    solver: str | Solver | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    """Fill in the gaps (NaN) of rows by draws from p(missing | seen).

    The network is shown the entries that a row has, and the others are sampled. It must have learnt
    to be shown a part of a row: `build(..., "masked")`.

    Parameters
    ----------
    sde : ScoreSDE
        Under conditions, if it has learnt with such: sde.given(y=...).
    x : Tensor or array, shape (n, *shape)
        Rows in the units of the data, NaN for what is missing.
    draws : int, optional
        Imputations of each row.
    solver, steps, spacing, generator, batch_size, **options
        As for `sample`.

    Returns
    -------
    Tensor, shape (n, *shape), or (draws, n, *shape)
        The rows as they are where they have values, and draws elsewhere.

    Raises
    ------
    TypeError, ValueError
        For a model that has not learnt this, and as `sample`.

    References
    ----------
    Tashiro et al., CSDI: conditional score-based diffusion models for probabilistic time series
    imputation, NeurIPS 2021.

    Examples
    --------
    See `scoresde.backbones.Masked`.
    """
    sde = require_model(sde, "impute")
    owner = trainable(sde, "impute")
    if not owner.interface.takes_gaps:
        raise ValueError(
            "impute needs a network that has learnt to be shown a part of a row: "
            f"scoresde.build(..., 'masked', shape={owner.shape}), trained by fit"
        )
    if not getattr(owner.interface.inner, "shown", 1):
        raise ValueError(
            "this network has learnt with shown=0, never given a part of a row: build it with "
            "shown=0.5 to impute"
        )
    x = as_floats(x, owner.shape, "x", gaps=True)
    x = x.to(owner.device, torch.promote_types(x.dtype, owner.state_dtype))
    if sde.condition_rows not in (1, len(x)):
        sde.slice_conditions(0, len(x), len(x))  # which says so
    seen = with_observed(owner, sde.from_data(x))
    drawn = sample(
        sde.with_condition({**sde.condition, "seen": seen}),
        len(x),
        draws=draws,
        solver=solver,
        steps=steps,
        spacing=spacing,
        generator=generator,
        batch_size=batch_size,
        **options,
    )
    return torch.where(x.isnan(), drawn.to(x.dtype), x)
