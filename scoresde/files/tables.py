"""Tables, .csv and .parquet: the columns that are no conditions are the samples, as float32."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .base import Ask, Samples, condition, is_number, optional, with_conditions


def table(path: Path, ask: Ask) -> Samples:
    """Read comma-separated values.

    The first line is a header if none of its cells is a number, if it is a comment, or if it has the names asked for.
    """
    names: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = ((i, _cells(line.lstrip("# ")), line[0] == "#") for i, line in enumerate(file, 1) if line.strip())
        skip, first, comment = next(lines, (0, [], False))
        if comment or not any(map(is_number, first)) or (ask.conditions and {*ask.conditions.values()} <= {*first}):
            names, first = first, next((cells for _, cells, comment in lines if not comment), [])
        else:
            skip = 0
    if not first:
        raise ValueError("it has no rows")
    if names and len(names) != len(first):
        if not comment:
            raise ValueError(f"line {skip} names {len(names)} columns, and the next line has {len(first)}")
        names = []  # a remark, not a header
    if names and not all(names):
        raise ValueError("a column has no name; pandas writes its row numbers so: to_csv(index=False) leaves them out")
    names = names or [""] * len(first)
    words = {names.index(column) for column in ask.columns(names).values()}
    # Cells of conditions stay text, so that 64-bit integers are exact and words are possible.
    mixed = [(str(j), object if j in words else np.float64) for j in range(len(names))]
    dtype: Any = np.dtype(mixed) if words else np.float64
    try:
        with path.open(encoding="utf-8-sig") as file:
            cells = np.loadtxt(file, dtype, delimiter=",", skiprows=skip, quotechar='"', ndmin=1 if words else 2)
        return _table(names, lambda j: cells[str(j)] if words else cells[:, j], len(cells), ask)
    except ValueError as error:
        raise ValueError(_blame(path, skip, len(names), words) or str(error)) from None


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]), [])]


def _blame(path: Path, skip: int, width: int, words: set[int]) -> str:
    """Say which line is at fault, now that one is: slowly, but once."""
    with path.open(encoding="utf-8-sig") as file:
        for i, line in enumerate(file, 1):
            if i <= skip or not line.partition("#")[0].strip():
                continue
            cells = _cells(line.partition("#")[0])
            if len(cells) != width:
                return f"line {i} has {len(cells)} columns, wanted {width}"
            for j, cell in enumerate(cells):
                if not cell or (j not in words and not (is_number(cell) and abs(float(cell)) <= 3.4028235e38)):
                    return f"line {i}, column {j + 1} is {cell!r}, wanted a finite number"
    return ""


def parquet(path: Path, ask: Ask) -> Samples:
    """Read a parquet file, column by column."""
    arrow, parquet = optional("pyarrow", "parquet files"), optional("pyarrow.parquet", "parquet files")
    if tuple(map(int, arrow.__version__.split(".")[:2])) < (15, 0):  # before 14.0.1 a file could make it unpickle: CVE-2023-47248
        raise ImportError(f"parquet files need pyarrow 15 or newer, got {arrow.__version__}: pip install -U 'scoresde[data]'")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if any(re.fullmatch(r"__index_level_\d+__", name) for name in names):
                raise ValueError("it holds a pandas index; to_parquet(index=False) leaves it out")

            def column(j: int) -> np.ndarray:
                data = file.read([names[j]]).column(0)
                if data.null_count:
                    raise ValueError(f"column {names[j]!r} has no value in {data.null_count:,} of {len(data):,} rows")
                data = data.cast(data.type.value_type) if arrow.types.is_dictionary(data.type) else data
                array: np.ndarray = data.to_numpy()
                words = arrow.types.is_string(data.type) or arrow.types.is_large_string(data.type)
                if array.dtype.kind not in "biuf" and not words:
                    raise ValueError(f"column {names[j]!r} is of type {data.type}, wanted numbers")
                return array

            return _table(names, column, file.metadata.num_rows, ask)
    except arrow.ArrowException as error:  # not all of which are ValueErrors
        raise ValueError(str(error)) from None


def _table(names: list[str], column: Callable[[int], np.ndarray], n: int, ask: Ask) -> Samples:
    fields = ask.columns(names)
    for name in fields.values():
        if names.count(name) > 1:
            raise ValueError(f"{names.count(name)} columns are called {name!r}")
    rest = [j for j, name in enumerate(names) if name not in fields.values()]
    if not rest:
        raise ValueError("all of its columns are conditions; none is left for the samples")
    values = np.empty((n, len(rest)), np.float32)
    for i, j in enumerate(rest):
        numbers = column(j)
        if numbers.dtype.kind == "O":
            raise ValueError(f"column {names[j]!r} holds words; ask for it in conditions=, or leave it out")
        with np.errstate(over="ignore"):
            values[:, i] = numbers
    if len(bad := np.flatnonzero(~np.isfinite(values).all(1))):
        raise ValueError(f"row {bad[0]} (from 0), and {len(bad) - 1} more, hold values that are no finite float32 numbers")
    return with_conditions(values, {name: condition(c, column(names.index(c))) for name, c in fields.items()})
