"""How `fit` takes rows of a table: as values and labels, with noise and a change of variables."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.user_warnings import warn
from ..data.typed_table import (
    EncodeRows,
    Table,
    is_rows,
    keep_schema,
    training_rows,
)
from ..model.score_sde import ScoreSDE
from ..model.tables.equalize import FEWEST_ROWS
from ..model.tables.infer import gains_of_equalizing
from ..model.trainable import Trainable
from .options import Validation
from .plan import Plan

WORTH_TELLING = 0.3
"""Nats a row that equalized columns gain together, from which `fit` says so."""
LOOKED_AT = 10_000
"""Rows that are searched for clumps, at most."""
NUMBERS_LOOKED_AT = 2**19
MOST_COLUMNS = 256
MOST_SHOWN = 5


def with_table(
    sde: Trainable,
    data: Any,
    given: Any,
    plan: Plan,
) -> tuple[Any, Any, Plan]:
    """Data, conditions and plan, with the rows of a table as tensors; others as they are."""
    if not is_rows(sde, data):
        if sde.table is not None:
            raise TypeError(
                "this model has learnt a table: train it further on rows of it, a data frame or a "
                "mapping of columns"
            )
        return data, given, plan
    if plan.transforms:
        raise ValueError("a table has its own noise and changes of variables: no transforms=")
    keep_schema(sde, data)
    assert sde.table is not None
    values, given = training_rows(sde, data, given)
    return values, given, dataclasses.replace(plan, transforms=(EncodeRows(sde.table),))


def refuse_table(model: Any, data: Any, validation: Validation | None) -> None:
    """Raise TypeError for a `Table` to a model that keeps no schema, or held out from arrays."""
    held = None if validation is None else validation.x
    if not isinstance(data, Table) and not isinstance(held, Table):
        return
    if not isinstance(model, ScoreSDE):
        kind = type(getattr(model, "whole", model)).__name__
        raise TypeError(
            f"a {kind} is fitted to tensors or arrays, got a Table, whose schema it can't keep: "
            "give it an array of numbers, or build a score model, scoresde.build(..., "
            "shape=table.shape, classes=table.classes)"
        )
    if not isinstance(data, Table) and model.table is None:
        raise TypeError(
            "validation is a Table, and the training data are not: fit(sde, table, "
            "validation=held_out_table), or give the rows of both as arrays"
        )


def tell_of_clumps(sde: Trainable, data: Any, plan: Plan) -> None:
    """Warn of an array whose columns clump, if `scoresde.Table` would gain much by it."""
    seen = bool(sde.measured) or sde.table is not None or not sde._tells_of_clumps
    if seen or not isinstance(sde, ScoreSDE) or sde.source is not None or plan.transforms:
        return
    if not isinstance(data, Tensor | np.ndarray) or data.ndim != 2 or plan.coupling.joins:
        return
    n, d = data.shape
    if n < 2 * FEWEST_ROWS or not 0 < d <= MOST_COLUMNS or (d,) != sde.shape:
        return
    every = -(-n // min(LOOKED_AT, NUMBERS_LOOKED_AT // d))
    rows = data[::every]
    if isinstance(rows, Tensor):
        rows = rows.detach().cpu()
        rows = rows.float().numpy() if rows.dtype == torch.bfloat16 else rows.numpy()
    if rows.dtype.kind not in "iuf":
        return
    gains = gains_of_equalizing(rows)
    if gains.sum() < WORTH_TELLING:
        return
    at = np.flatnonzero(gains > 0.1 * gains.max()).tolist()
    names = [repr(name) for name in sde.schema.columns] or [f"column {j}" for j in range(d)]
    shown = ", ".join(names[j] for j in at[:MOST_SHOWN])
    more = f" and {len(at) - MOST_SHOWN} others" if len(at) > MOST_SHOWN else ""
    warn(
        f"the values of {shown}{more} clump more narrowly than a network sees: a scoresde.Table "
        f"spreads the clumps, and gains about {gains.sum():.1f} nats a row; "
        "fit(sde, scoresde.Table(x))"
    )
