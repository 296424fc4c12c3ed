"""Rows of a table that lack numbers or categories."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cells import category_numbers, checked_numbers
from .reading import raw_columns
from .schema import TableSchema


def partial_rows(
    table: TableSchema,
    frame: Any,
    categories: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The values (N, D), NaN for gaps, and the category numbers (N, C), −1 for gaps."""
    needed = table.columns if categories else table.numeric
    raw = raw_columns(table.by_name(frame), [each.name for each in needed])
    for column in table.numeric:
        found = raw[column.name]
        infinite = found.numeric and int(np.isinf(found.values.astype(np.float64)).sum())
        if infinite:
            raise ValueError(f"column {column.name!r} has infinite values in {infinite} rows")
    parts = [checked_numbers(column, raw[column.name], True) for column in table.numeric]
    values = torch.from_numpy(np.stack(parts, 1))
    if table.combinations is None or not categories:
        return values, None
    codes = [category_numbers(each, raw[each.name], gaps=True) for each in table.categorical]
    return values, torch.from_numpy(np.stack(codes, 1))


def candidates(table: TableSchema, codes: Tensor) -> Tensor:
    """Which of the table's combinations rows of category numbers (N, C) may have, (N, M)."""
    assert table.combinations is not None
    known = torch.from_numpy(table.combinations.codes)
    allowed = torch.ones(len(codes), len(known), dtype=torch.bool)
    for column, numbers in zip(known.T, codes.T, strict=True):
        allowed &= (numbers[:, None] < 0) | (numbers[:, None] == column)
    none = ~allowed.any(1)
    if bool(none.any()):
        raise ValueError(
            f"row {int(none.nonzero()[0])} (from 0) has a combination of categories that the table "
            "does not have: its probability is 0"
        )
    return allowed
