"""Columns of several kinds in .csv, .tsv and .parquet files: numbers and words by name."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...common.checks import as_path
from ...common.user_warnings import warn
from ...model.class_words import is_number
from ...model.tables.reading import GAPS as OBJECT_GAPS
from ...model.tables.schema import TableSchema
from .base import (
    Request,
    check_compression,
    optional,
    regular,
)
from .formats import DAMAGE
from .known_tables import GAPS, Rows, read_known
from .tables import (
    SAFE_PYARROW,
    _check_header,
    _check_text_size,
    _delimiter,
    _header,
    _open_bytes,
    comment_text,
    raw_lines,
    text_lines,
)


def read_columns(
    path: str | os.PathLike[str],
    *,
    encoding: str = "utf-8",
    table: TableSchema | None = None,
    numbers: Collection[str] | None = None,
    categories: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The columns of a table by name: int64, float64 with NaN for gaps, bool, or words.

    If the table is known, text is read by it (`known_tables`). If `numbers` names columns, the
    cells of other columns are text as written. Categories 01234 and 1234 are words.
    """
    path = as_path(path, "path")
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    suffixes = [suffix for suffix in TABLES if path.name.lower().endswith(suffix)]
    if not suffixes:
        raise ValueError(f"{path}: tables are read from {', '.join(TABLES)}")
    request = Request({}, encoding=encoding)
    try:
        regular(path)
        if TABLES[suffixes[0]] is not _text:
            return TABLES[suffixes[0]](path, request)
        if table is not None:
            found = _of_table(path, request, table)
            if found is not None:
                return found
        stated = categories if isinstance(categories, Collection) else ()
        return _text(path, request, numbers, stated)
    except (*DAMAGE, LookupError) as error:
        raise ValueError(f"{path} can't be read: {' '.join(str(error).split())}") from None


def _of_table(path: Path, request: Request, table: TableSchema) -> dict[str, np.ndarray] | None:
    """The columns of a text whose table is known; None if it names other columns."""
    found = read_known(path, request, table)
    if found is None:
        return None
    for name in {each.name for each in table.numeric} & found.keys():
        found[name] = _parsed(found[name])
        if found[name].dtype.kind == "U" and not (found[name] != "").any():
            found[name] = np.full(len(found[name]), np.nan)
    return found


def _text(
    path: Path,
    request: Request,
    numbers: Collection[str] | None = None,
    categories: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Columns of separated values."""
    _check_text_size(path)
    delimiter = _delimiter(path, request)
    skip, names, first = _header(text_lines(path, request), delimiter, {*(numbers or ())})
    _check_header(skip, names, first)
    if not names:
        raise ValueError("its first line has no names of columns")
    rows = Rows(delimiter, len(names))
    cells = list(rows.read(itertools.islice(raw_lines(path, request), skip, None)))
    found = {}
    for name, column in zip(names, zip(*cells, strict=True), strict=True):
        found[name] = np.array(column, str)
        if not numbers or name in numbers:
            found[name] = _parsed(found[name], name in categories)
    if rows.comments:
        warn(comment_text(rows.comments))
    return found


def _parsed(column: np.ndarray, category: bool = False) -> np.ndarray:
    """Cells of text as integers, as numbers with NaN for gaps, or as words."""
    words: np.ndarray = np.char.strip(column)
    distinct = np.unique(words)
    gaps = np.isin(distinct, GAPS)
    there = distinct[~gaps]
    if len(there) and {*there.tolist()} <= {"True", "False"} and not gaps.any():
        flags: np.ndarray = words == "True"
        return flags
    if category and _has_codes({*there.tolist()}):
        return np.where(np.isin(words, GAPS), "", words)
    if not len(there) or not all(map(is_number, there.tolist())):
        return np.where(np.isin(words, GAPS), "", words)
    if not gaps.any():
        try:
            return words.astype(np.int64)
        except (ValueError, OverflowError):
            return words.astype(np.float64)
    return np.where(np.isin(words, GAPS), "nan", words).astype(np.float64)


def _has_codes(words: set[str]) -> bool:
    """Whether words are codes, such as 01234 beside 1234, of which numbers would make one."""
    whole = [word for word in words if word.isdecimal()]
    return len({word.lstrip("0") for word in whole}) < len(whole)


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
        texts = [_texts(array) for array in arrays]
        style: Any = {"delimiter": delimiter, "lineterminator": "\n"}
        if _quoted(names, texts):
            style["quoting"] = csv.QUOTE_ALL
        writer = csv.writer(file, **style)
        writer.writerow(names)
        writer.writerows(zip(*texts, strict=True))


def _quoted(names: list[str], texts: list[list[str]]) -> bool:
    """Whether cells need quotes: a line that begins with # is a comment, and \\r ends one."""
    firsts = {*texts[0], names[0]} if texts else set()
    if any(text.startswith("#") for text in firsts):
        return True
    return any("\r" in text for column in [names, *texts] for text in {*column})


def _texts(array: np.ndarray) -> list[str]:
    """Cells as text: the fewest digits that determine a number of its dtype, and "" for None."""
    if array.dtype.kind == "O":
        cells = array.tolist()
        return ["" if _is_gap(cell) else str(cell) for cell in cells]
    texts: list[str] = array.astype(str).tolist()
    return texts


def _is_gap(cell: Any) -> bool:
    """Whether an object stands for no value."""
    return not isinstance(cell, str) and str(cell) in OBJECT_GAPS


def check_table_path(path: str) -> None:
    """Raise unless a path is one of a table."""
    if not path.lower().endswith(tuple(TABLES)):
        raise ValueError(f"{path}: tables are written as {', '.join(TABLES)}")
