"""Rows of a table that lack numbers or categories."""

from __future__ import annotations

import math
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
    if table.categories is None or not categories:
        return values, None
    codes = [category_numbers(each, raw[each.name], gaps=True) for each in table.categorical]
    return values, torch.from_numpy(np.stack(codes, 1))


def candidates(table: TableSchema, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and combinations, (P,) each, that rows of category numbers (N, C) may have, in order."""
    assert table.categories is not None
    rows, numbers = map(torch.from_numpy, table.categories.candidates(codes.numpy()))
    possible = table.category_log_prob(numbers) > -math.inf
    rows, numbers = rows[possible], numbers[possible]
    none = (rows.bincount(minlength=len(codes)) == 0).nonzero()[:, 0]
    if len(none):
        raise ValueError(
            f"row {int(none[0])} (from 0) has a combination of categories that the table does not "
            "have: its probability is 0"
        )
    return rows, numbers
