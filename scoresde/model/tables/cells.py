"""Cells of a table as numbers, and numbers as cells."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...common.checks import brief_repr
from ...common.names import nearest
from ..frames import listed
from .columns import (
    Categorical,
    Numeric,
    grid_values,
)
from .infer import check_bounds, on_grid
from .reading import RawColumn, raw_columns


def category_numbers(
    column: Categorical,
    raw: RawColumn,
    gaps: bool = False,
) -> np.ndarray:
    """The number of each row's category, −1 for a gap; raise for those never seen."""
    if raw.missing.any() and not gaps:
        raise ValueError(missing_text(raw))
    if raw.missing.any():
        found = np.full(len(raw), -1, np.int64)
        there = np.flatnonzero(~raw.missing)
        if len(there):
            found[there] = category_numbers(column, raw.take(there))
        return found
    came: Sequence[Any]
    if raw.categories is None:
        unique, place = np.unique(raw.values, return_inverse=True)
        came = unique.tolist()
        place = place.reshape(-1)
    else:
        came = raw.categories
        place = raw.values
    known: dict[Any, int] = {str(word): i for i, word in enumerate(column.categories)}
    known |= {word: i for i, word in enumerate(column.categories)}
    numbers = np.array([known.get(word, known.get(str(word), -1)) for word in came], np.int64)
    codes: np.ndarray = numbers[place]
    if (codes < 0).any():
        word = came[int(place[codes < 0][0])]
        hint = nearest(str(word), [str(each) for each in column.categories])
        raise ValueError(
            f"column {column.name!r} has {word!r}, which the table does not have. {hint}"
        )
    return codes


def combination(columns: Sequence[Categorical], categories: Any) -> np.ndarray:
    """The category numbers (1, C) of one category of each column, by name; checked."""
    names = [column.name for column in columns]
    if not isinstance(categories, Mapping):
        raise TypeError(
            f"categories are a mapping of {listed(names)}, got {brief_repr(categories)}"
        )
    if categories.keys() != {*names}:
        raise ValueError(
            f"categories are one of each of {listed(names)}, got {listed(map(str, categories))}"
        )
    codes = []
    for column in columns:
        word = categories[column.name]
        if not isinstance(word, str | bool | int | float | np.generic) or word != word:
            raise TypeError(f"column {column.name!r} has {brief_repr(word)}, which is no category")
        codes.append(category_numbers(column, raw_columns({column.name: [word]})[column.name]))
    return np.stack(codes, 1)


def missing_text(raw: RawColumn) -> str:
    """The message on a column with gaps."""
    rows = int(raw.missing.sum())
    first = int(raw.missing.argmax())
    return (
        f"column {raw.name!r} has no value in {rows} of {len(raw)} rows, first in row {first} "
        "(from 0): drop these rows, Table(..., missing='drop'), leave the column out, fill it in, "
        "or keep gaps of numbers, missing='keep', for a network that learns from them, "
        "build(..., 'masked'); of a trained model, scoresde.impute and marginal_log_prob take "
        "rows with gaps"
    )


def checked_numbers(
    column: Numeric,
    raw: RawColumn,
    gaps: bool,
) -> np.ndarray:
    """The values of a numeric column in float64, on its grid and within its bounds."""
    if not raw.numeric:
        raise TypeError(f"column {column.name!r} is numbers in the table, and here {raw.dtype}")
    if raw.missing.any() and not gaps:
        raise ValueError(missing_text(raw))
    values = raw.values.astype(np.float64)
    if np.isinf(values).any() and not gaps:
        raise ValueError(
            f"column {column.name!r} has infinite values in {int(np.isinf(values).sum())} rows"
        )
    finite = np.where(np.isfinite(values), values, np.nan)
    check_bounds(column, finite)
    return on_grid(column, finite)


def restored_numbers(column: Numeric, x: np.ndarray) -> np.ndarray:
    """Points of a column as values in its dtype, within its bounds."""
    least, greatest = column.ends
    if column.step is not None:
        whole = np.floor((x - column.origin) / column.step)
        if np.isfinite(least):
            whole = np.maximum(whole, column.nearest(least))
        if np.isfinite(greatest):
            whole = np.minimum(whole, column.nearest(greatest))
        x = grid_values(column, whole)
    if column.integer:
        limits = np.iinfo(column.dtype)
        x = np.rint(np.clip(x, float(limits.min), min(float(limits.max), 2.0**62)))
        integers: np.ndarray = x.astype(column.dtype)
        return integers
    top = float(np.finfo(column.dtype).max)
    values: np.ndarray = np.clip(x, -top, top).astype(column.dtype)
    if column.step is None:  # inside, as log and logit need it
        if np.isfinite(least):
            values = np.maximum(values, _next(values.dtype, least, np.inf))
        if np.isfinite(greatest):
            values = np.minimum(values, _next(values.dtype, greatest, -np.inf))
    return values


def _next(
    dtype: np.dtype[Any],
    value: float,
    towards: float,
) -> Any:
    """The number of a dtype next to a value."""
    return np.nextafter(dtype.type(value), dtype.type(towards))


def restored_words(column: Categorical, codes: np.ndarray) -> Any:
    """The categories of these numbers, as pandas' type where the table had that."""
    if column.dtype == "category":
        pandas = _pandas()
        if pandas is not None:
            categories = list(column.categories)
            return pandas.Categorical.from_codes(codes, categories, ordered=column.ordered)
    if column.dtype in ("category", "str"):
        return np.array(column.categories, object)[codes]
    return np.array(column.categories, column.dtype)[codes]


def as_frame(columns: dict[str, Any]) -> Any:
    """Columns as a data frame of pandas; as they are where there is no pandas."""
    pandas = _pandas()
    return columns if pandas is None else pandas.DataFrame(columns)


def _pandas() -> Any:
    """The module pandas, or None where it is not installed."""
    try:
        return importlib.import_module("pandas")
    except ImportError:
        return None
