"""How `fit` takes rows of a table: as values and labels, with noise and a change of variables."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..data.typed_table import (
    EncodeRows,
    is_rows,
    keep_schema,
    training_rows,
)
from ..model.trainable import Trainable
from .plan import Plan


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
