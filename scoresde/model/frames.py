"""Data frames of pandas and polars: columns by name, as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def is_frame(data: Any) -> bool:
    """Whether data are columns by name, as pandas and polars have them."""
    return hasattr(data, "to_numpy") and hasattr(data, "columns") and hasattr(data, "__getitem__")


def is_row(data: Any) -> bool:
    """Whether data are a Series of pandas, whose index names its numbers."""
    return hasattr(data, "to_frame") and hasattr(data, "iloc") and hasattr(data, "index")


def row_frame(row: Any) -> Any:
    """A data frame of one row, whose columns are the index of a Series."""
    return row.to_frame().T.infer_objects()


def frame_values(data: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """The columns of a data frame as an array (rows, columns), and their names."""
    pandas = hasattr(data, "iloc")
    names = tuple(str(name) for name in data.columns)
    check_unique(names)
    columns = []
    bad = []
    for i, name in enumerate(names):
        series = data.iloc[:, i] if pandas else data[name]
        column = column_values(series)
        if column is None:
            bad.append(name)
        else:
            columns.append(column)
    if bad:
        drop = f"df.drop(columns={bad!r})" if pandas else f"df.drop({bad!r})"
        raise TypeError(
            f"columns {listed(bad)} of this {type(data).__name__} are not numbers: leave them "
            f"out, {drop}; one that is a condition is given by name, y=df[{bad[0]!r}]; "
            "scoresde.Table takes words too"
        )
    dtype = np.dtype(np.float64)
    if columns:
        dtype = np.result_type(*(column.dtype for column in columns))
    values = np.empty((len(data), len(names)), dtype)
    for i, column in enumerate(columns):
        values[:, i] = column
    return values, names


def column_values(column: Any) -> np.ndarray | None:
    """The numbers of a column, NaN in its gaps; None for a column of anything else."""
    if str(column.dtype) == "category":
        return None
    values: np.ndarray = column.to_numpy()
    # Columns of pandas' own types with gaps come as objects.
    if values.dtype.kind == "O" and getattr(column.dtype, "kind", "O") in "biuf":
        values = column.to_numpy(dtype="float64", na_value=np.nan)
    return values if values.dtype.kind in "biuf" else None


def check_unique(names: tuple[str, ...]) -> None:
    """Raise ValueError for two columns of one name."""
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"several columns are called {name!r}")


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names for a message: the first few, and how many there are."""
    names = list(names)
    text = ", ".join(map(repr, names[:most]))
    if len(names) > most:
        text += f", … ({len(names)} in all)"
    return text
