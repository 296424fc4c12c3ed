"""Columns as a user has them, by name: numbers, words, booleans, categories."""

from __future__ import annotations

import math
import numbers
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...common.inputs import as_tensor
from ...common.names import nearest
from ..frames import check_unique, is_frame, listed
from .columns import NUMERIC

GAPS = ("None", "nan", "<NA>", "NaT")
"""How Python writes what stands for no value."""


@dataclass(frozen=True)
class RawColumn:
    """A column as it came."""

    name: str
    dtype: str
    values: np.ndarray
    """Numbers, booleans or words; of a column with declared categories, their numbers."""
    missing: np.ndarray
    """Which rows have no value."""
    categories: tuple[Any, ...] | None = None
    """The declared categories."""
    ordered: bool = False

    @property
    def numeric(self) -> bool:
        """Whether values are numbers."""
        return self.categories is None and self.values.dtype.kind in "iuf"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.values)

    def take(self, rows: np.ndarray) -> RawColumn:
        """Some of the rows."""
        values = self.values[rows]
        return RawColumn(
            self.name, self.dtype, values, self.missing[rows], self.categories, self.ordered
        )


def holds_columns(data: Any) -> bool:
    """Whether data are columns by name: a data frame or a mapping."""
    return is_frame(data) or isinstance(data, Mapping)


def raw_columns(data: Any, needed: Collection[str] | None = None) -> dict[str, RawColumn]:
    """The columns of a data frame or mapping by name, or the needed ones, all of one length."""
    if not holds_columns(data):
        raise TypeError(
            "a table is a data frame, a mapping of names to columns or an array (N, columns), got "
            f"{type(data).__name__}"
            f"{_hint_of(data)}"
        )
    named = dict(_named(data))
    if needed is not None and named:
        lacking = [name for name in needed if name not in named]
        if lacking:
            raise ValueError(
                f"the rows lack the columns {listed(lacking)}. " + nearest(lacking[0], list(named))
            )
        named = {name: named[name] for name in needed}
    found = {name: raw_column(name, column) for name, column in named.items()}
    lengths = {len(column) for column in found.values()}
    if not found or lengths == {0}:
        raise ValueError("the table is empty: it has no columns, or no rows")
    if len(lengths) > 1:
        text = ", ".join(f"{name!r} {len(column)}" for name, column in found.items())
        raise ValueError(f"the columns of a table have one length, got {text:.200}")
    return found


def array_columns(rows: Any, names: Sequence[str] = ()) -> dict[str, Any]:
    """The columns of an array (N, columns) by name: x0, x1, … unless names are given."""
    width = rows.shape[1]
    return {name: rows[:, j] for j, name in enumerate(names or [f"x{j}" for j in range(width)])}


def _hint_of(data: Any) -> str:
    """What to write for data that are no columns by name."""
    if isinstance(data, str | os.PathLike):
        return "; a file is read by scoresde.Table.read(path)"
    if getattr(data, "ndim", 0) == 1 and hasattr(data, "to_frame"):
        return "; write column.to_frame()"
    if getattr(data, "ndim", 0) == 1:
        return "; write x[:, None] for a table of one column"
    if getattr(data, "ndim", 0) == 2:
        return "; name the columns, {'a': x[:, 0], …}, or write scoresde.Table(x)"
    return ""


def _named(data: Any) -> Iterator[tuple[str, Any]]:
    """The columns with their names, which must differ."""
    if isinstance(data, Mapping):
        keys = [*data]
        columns = [*data.values()]
    else:
        keys = [*data.columns]
        pandas = hasattr(data, "iloc")
        columns = [data.iloc[:, i] if pandas else data[key] for i, key in enumerate(keys)]
    names = tuple(map(str, keys))
    check_unique(names)
    return zip(names, columns, strict=True)


def raw_column(name: str, column: Any) -> RawColumn:
    """One column of a user."""
    if str(getattr(column, "dtype", "")) == "category" and hasattr(column, "cat"):
        codes = column.cat.codes.to_numpy().astype(np.int64)
        categories = tuple(column.cat.categories.tolist())
        ordered = bool(column.cat.ordered)
        return RawColumn(name, "category", codes, codes < 0, categories, ordered)
    if hasattr(column, "to_numpy"):
        column = column.to_numpy()
    values = as_array(name, column)
    if values.ndim != 1:
        raise ValueError(
            f"column {name!r} has shape {values.shape}, wanted one number or word in each row"
        )
    if values.dtype.kind in "OT":
        return _of_objects(name, values.astype(object))
    if values.dtype.kind == "U":
        return RawColumn(name, "str", values, values == "")
    if values.dtype.kind == "b":
        return RawColumn(name, "bool", values, np.zeros(len(values), bool))
    if values.dtype.name not in NUMERIC:
        raise TypeError(
            f"column {name!r} is of {values.dtype}, wanted numbers, words or booleans; give dates "
            "as numbers, such as days since the first"
        )
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return RawColumn(name, values.dtype.name, values, np.isnan(values))


def as_array(name: str, column: Any) -> np.ndarray:
    """The cells of a column; Python's stay objects where numpy would make them of one kind."""
    if isinstance(column, Tensor):
        column = as_tensor(column, f"column {name!r}").detach().cpu()
        if column.dtype == torch.bfloat16:  # which numpy does not have
            column = column.float()
        return np.asarray(column)
    if isinstance(column, np.ma.MaskedArray):
        values = np.asarray(column.data).astype(object)
        values[np.ma.getmaskarray(column)] = None
        return values
    values = np.asarray(column)
    if isinstance(column, list | tuple) and values.ndim == 1:
        kinds = {type(v) for v in column}
        if len(kinds) > 1 and (values.dtype.kind in "US" or kinds & {bool, np.bool_}):
            return np.array(column, object)
    return values


def _of_objects(name: str, values: np.ndarray) -> RawColumn:
    """A column of Python's objects: all words, all booleans or all numbers, but for gaps."""
    cells = values.tolist()
    missing = np.array([not isinstance(v, str) and str(v) in GAPS for v in cells], bool)
    there = [v for v, gap in zip(cells, missing.tolist(), strict=True) if not gap]
    if all(isinstance(v, str) for v in there):
        words = np.full(len(values), "", f"U{max(map(len, there), default=1) or 1}")
        words[~missing] = there
        return RawColumn(name, "str", words, missing | (words == ""))
    if all(isinstance(v, bool | np.bool_) for v in there):
        flags = np.zeros(len(values), bool)
        flags[~missing] = there
        return RawColumn(name, "bool", flags, missing)
    if all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in there):
        largest = max((abs(v) for v in there), default=0)
        if largest > sys.float_info.max and largest != math.inf:
            raise ValueError(f"column {name!r} has integers that float64 can't hold: leave it out")
        dtype = np.asarray(there).dtype
        if missing.any() or dtype.name not in NUMERIC:
            dtype = np.dtype(np.float64)
        reals = np.full(len(values), 0, dtype)
        reals[~missing] = there
        if missing.any():
            reals[missing] = np.nan
        return RawColumn(name, dtype.name, reals, missing)
    kinds = sorted({type(v).__name__ for v in there})
    dates = ""
    if any(hasattr(v, "year") for v in there[:1]):
        dates = "; give dates as numbers, such as days since the first"
    raise TypeError(
        f"column {name!r} holds {' and '.join(kinds)[:80]}, wanted numbers, words or booleans alone"
        f"{dates}"
    )
