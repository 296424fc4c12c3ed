"""Columns of several kinds in .csv, .tsv and .parquet files: numbers and words by name."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...common.checks import as_path
from ...model.class_words import is_number
from .base import (
    Request,
    check_compression,
    optional,
    regular,
)
from .formats import DAMAGE
from .tables import (
    SAFE_PYARROW,
    _check_header,
    _check_text_size,
    _delimiter,
    _header,
    _open_bytes,
    text_lines,
)

GAPS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
"""Cells without a value."""


def read_columns(
    path: str | os.PathLike[str], *, encoding: str = "utf-8"
) -> dict[str, np.ndarray]:
    """The columns of a table by name: int64, float64 with NaN for gaps, bool, or words."""
    path = as_path(path, "path")
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    suffixes = [suffix for suffix in TABLES if path.name.lower().endswith(suffix)]
    if not suffixes:
        raise ValueError(f"{path}: tables are read from {', '.join(TABLES)}")
    try:
        regular(path)
        return TABLES[suffixes[0]](path, Request({}, encoding=encoding))
    except (*DAMAGE, LookupError) as error:
        raise ValueError(f"{path} can't be read: {' '.join(str(error).split())}") from None


def _text(path: Path, request: Request) -> dict[str, np.ndarray]:
    """Columns of separated values."""
    _check_text_size(path)
    delimiter = _delimiter(path, request)
    skip, names, first = _header(text_lines(path, request), delimiter, set())
    _check_header(skip, names, first)
    if not names:
        raise ValueError("its first line has no names of columns")
    lines: Any = text_lines(path, request)
    rows = (line for i, line in lines if i > skip and not line.startswith("#"))
    how: dict[str, Any] = {"delimiter": delimiter, "quotechar": '"', "comments": None}
    cells = np.loadtxt(rows, object, ndmin=2, **how)
    if cells.shape[1] != len(names):
        raise ValueError(f"its rows have {cells.shape[1]} columns, and {len(names)} names")
    return {name: _parsed(cells[:, j]) for j, name in enumerate(names)}


def _parsed(column: np.ndarray) -> np.ndarray:
    """Cells of text as integers, as numbers with NaN for gaps, or as words."""
    words: np.ndarray = np.char.strip(column.astype(str))
    distinct = np.unique(words)
    gaps = np.isin(distinct, GAPS)
    there = distinct[~gaps]
    if len(there) and {*there.tolist()} <= {"True", "False"} and not gaps.any():
        flags: np.ndarray = words == "True"
        return flags
    if not len(there) or not all(map(is_number, there.tolist())):
        return np.where(np.isin(words, GAPS), "", words)
    if not gaps.any():
        try:
            return words.astype(np.int64)
        except (ValueError, OverflowError):
            return words.astype(np.float64)
    return np.where(np.isin(words, GAPS), "nan", words).astype(np.float64)


def _parquet(path: Path, request: Request) -> dict[str, Any]:
    """Columns of a parquet file."""
    arrow = optional("pyarrow", "parquet files")
    parquet = optional("pyarrow.parquet", "parquet files")
    if tuple(map(int, arrow.__version__.split(".")[:2])) < SAFE_PYARROW:
        raise ImportError(f"parquet files need pyarrow 15 or newer, got {arrow.__version__}")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            check_compression(4 * file.metadata.num_rows * len(names), path.stat().st_size)
            data = file.read()
    except arrow.ArrowException as error:  # not all of which are ValueErrors
        raise ValueError(str(error)) from None
    found = {}
    for name in names:
        column = data.column(name)
        if arrow.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        found[name] = column.to_numpy()
    return found


TABLES: dict[str, Callable[[Path, Request], dict[str, np.ndarray]]] = {
    ".csv": _text,
    ".tsv": _text,
    ".csv.gz": _text,
    ".tsv.gz": _text,
    ".parquet": _parquet,
}
"""Readers of columns by suffix. `write_columns` writes the same suffixes."""


def write_columns(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of a data frame or mapping as .csv, .tsv or .parquet, with a header."""
    names = [str(name) for name in columns]
    arrays = [np.asarray(columns[name]) for name in columns]
    if path.suffix.lower() == ".parquet":
        arrow = optional("pyarrow", "parquet files")
        parquet = optional("pyarrow.parquet", "parquet files")
        parquet.write_table(arrow.table(dict(zip(names, arrays, strict=True))), path)
        return
    suffixes = [suffix.lower() for suffix in path.suffixes]
    delimiter = "\t" if ".tsv" in suffixes[-2:] else ","
    with (
        _open_bytes(path, "wb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(zip(*(_texts(array) for array in arrays), strict=True))


def _texts(array: np.ndarray) -> list[str]:
    """Cells as text: the fewest digits that determine a number of its dtype."""
    texts: list[str] = array.astype(str).tolist()
    return texts


def check_table_path(path: str) -> None:
    """Raise unless a path is one of a table."""
    if not path.lower().endswith(tuple(TABLES)):
        raise ValueError(f"{path}: tables are written as {', '.join(TABLES)}")
