"""Tables, .csv, .tsv and .parquet: the columns that are no conditions are the samples, as float32."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..schema import is_number
from .base import LARGE, SHRUNK, Ask, Samples, check_shrunk, optional, with_conditions

DELIMITERS = (";", "\t", ",")  # those that give the first two lines as many cells each, in this order
PLAIN_NAME = re.compile(r"[^\W\d][\w .()%/°²³µ-]*")  # what is a header in anybody's eyes
UNSAID = "no UTF-8 text: say which encoding it has, such as encoding='utf-16' or 'latin-1' (--encoding)"


def table(path: Path, ask: Ask) -> Samples:
    """Read separated values.

    The first line is a header if none of its cells is a number, or if it has the names asked for; a comment before the first row
    if it has as many cells. A line that begins with # is a comment; # elsewhere belongs to its cell.
    """
    _check_size(path)
    delimiter, wanted = _delimiter(path, ask), {*ask.wanted()}
    skip, names, first = _header(_lines(path, ask), delimiter, wanted)
    if not first:
        raise ValueError("it has no rows")
    if names and len(names) != len(first):
        raise ValueError(f"line {skip} names {len(names)} columns, and the next line has {len(first)}")
    if names and not all(names):
        raise ValueError("a column has no name; pandas writes its row numbers so: to_csv(index=False) leaves them out")
    if (twice := _twice(names)) is not None:
        at = " and ".join(str(j) for j, name in enumerate(names, 1) if name == twice)
        raise ValueError(f"its header calls several columns {twice!r}: {at}; rename them, so that each can be asked for")
    named = bool(names)
    names = names or [""] * len(first)
    conditions = ask.columns(names)
    words = {names.index(column) for column in ask.wanted() if column not in (ask.chosen or ())}
    left = set() if ask.chosen is None else {j for j, name in enumerate(names) if name not in ask.wanted()}
    # Cells of conditions stay text, so that 64-bit integers are exact and words are possible.
    mixed = [(str(j), object if j in words else "U1" if j in left else np.float64) for j in range(len(names))]
    dtype: Any = np.dtype(mixed) if words or left else np.float64
    rows: Any = (line for i, line in _lines(path, ask) if i > skip and not line.startswith("#"))
    try:
        least: Any = 1 if words or left else 2
        cells = np.loadtxt(rows, dtype, delimiter=delimiter, comments=None, quotechar='"', ndmin=least)
        columns = (lambda j: cells[str(j)]) if words or left else (lambda j: cells[:, j])
        return _table(names, columns, len(cells), ask, conditions, named)
    except ValueError as error:
        raise ValueError(_blame(path, ask, skip, names, words, left, delimiter) or str(error)) from None


def _header(lines: Iterator[tuple[int, str]], delimiter: str, wanted: set[str]) -> tuple[int, list[str], list[str]]:
    """The number of the last line before the rows, the names of the columns, and the first row."""
    comments: list[list[str]] = []
    skip = 0
    for number, line in lines:
        if line.startswith("#"):
            comments.append(_cells(line.lstrip("# "), delimiter))
            continue
        first = _cells(line, delimiter)
        if not any(map(is_number, first)) or (wanted and wanted <= {*first}):
            row = next((line for _, line in lines if not line.startswith("#")), "")
            return number, first, _cells(row, delimiter)
        for names in comments:  # of one cell only if that is asked for: it may be a remark
            if len(names) == len(first) and _twice(names) is None and (len(names) > 1 or wanted & {*names}):
                return skip, names, first
        return skip, [], first
    return skip, [], []


def _twice(names: list[str]) -> str | None:
    """The first name that comes twice."""
    return next((name for name in names if name and names.count(name) > 1), None)


def _check_size(path: Path) -> None:
    """See what comes out of a packed table, without reading it as one."""
    held = path.stat().st_size
    if path.suffix.lower() != ".gz" or 1032 * held < LARGE:
        return
    total, limit = 0, max(LARGE, SHRUNK * held)
    with gzip.open(path) as stream:
        while total <= limit and (part := len(stream.read(2**20))):
            total += part
    check_shrunk(total, held)


def _binary(path: Path, mode: Any) -> Any:
    """The bytes of a text, packed or not."""
    return gzip.open(path, mode) if path.suffix.lower() == ".gz" else path.open(mode)


def _lines(path: Path, ask: Ask) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, with their numbers."""
    encoding = "utf-8-sig" if codecs.lookup(ask.encoding).name == "utf-8" else ask.encoding
    try:
        with _binary(path, "rb") as raw, io.TextIOWrapper(raw, encoding=encoding, newline=None) as file:
            for i, line in enumerate(file, 1):
                if "\0" in line:
                    raise ValueError(UNSAID.replace("no UTF-8 text", "no text of this encoding"))
                if line.strip():
                    yield i, line
    except UnicodeError:
        raise ValueError(UNSAID if encoding == "utf-8-sig" else f"no text in {ask.encoding}: say another encoding") from None


def _delimiter(path: Path, ask: Ask) -> str:
    """What separates the cells."""
    if ".tsv" in path.name.lower():
        return "\t"
    lines = []
    for _, line in _lines(path, ask):
        if not line.startswith("#"):
            lines.append(line)
        if len(lines) == 2:
            break
    for delimiter in DELIMITERS:
        counts = {len(_cells(line, delimiter)) for line in lines}
        if len(counts) == 1 and counts != {1}:
            return delimiter
    return ","


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _blame(path: Path, ask: Ask, skip: int, names: list[str], words: set[int], left: set[int], delimiter: str) -> str:
    """Say which line is at fault, now that one is: slowly, but once."""
    for i, line in _lines(path, ask):
        if i <= skip or line.startswith("#"):
            continue
        cells = _cells(line, delimiter)
        if len(cells) != len(names):
            return f"line {i} has {len(cells)} columns, wanted {len(names)}"
        for j, cell in enumerate(cells):
            if j in left:
                continue
            if not cell or (j not in words and not (is_number(cell) and abs(float(cell)) <= 3.4028235e38)):
                hint = "; decimals are written with a point" if re.fullmatch(r"[+-]?\d*,\d+", cell) else ""
                if names[j] and j not in words and cell and not hint:
                    hint = f" in {names[j]!r}: what is no sample is a condition, or left out by columns= (--columns)"
                return f"line {i}, column {j + 1} is {cell!r}, wanted a finite number{hint}"
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
            check_shrunk(4 * file.metadata.num_rows * len(names), path.stat().st_size)

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

            return _table(names, column, file.metadata.num_rows, ask, ask.columns(names), True)
    except arrow.ArrowException as error:  # not all of which are ValueErrors
        raise ValueError(str(error)) from None


def _table(
    names: list[str],
    column: Callable[[int], np.ndarray],
    n: int,
    ask: Ask,
    conditions: dict[str, str | tuple[str, ...]],
    named: bool,
) -> Samples:
    for name in names:
        if name and names.count(name) > 1:
            raise ValueError(f"{names.count(name)} columns are called {name!r}")
    asked = ask.wanted()
    rest = [j for j, name in enumerate(names) if name not in asked or not name]
    rest = rest if ask.chosen is None else [names.index(name) for name in ask.chosen]
    if not rest:
        raise ValueError("all of its columns are conditions; none is left for the samples")
    values = np.empty((n, len(rest)), np.float32)
    for i, j in enumerate(rest):
        numbers = column(j)
        if numbers.dtype.kind == "O":
            raise ValueError(f"column {names[j]!r} holds words; ask for it in conditions=, or choose the others by columns=")
        with np.errstate(over="ignore"):
            values[:, i] = numbers
    if len(bad := np.flatnonzero(~np.isfinite(values).all(1))):
        raise ValueError(f"row {bad[0]} (from 0), and {len(bad) - 1} more, hold values that are no finite float32 numbers")
    columns = tuple(names[j] for j in rest) if named else ()
    return with_conditions(values, conditions, lambda name: column(names.index(name)), columns)


def write_text(path: Path, values: np.ndarray, columns: Sequence[str] = ()) -> None:
    """Write one sample per line, each number in the fewest digits that come back as the same one, under a header of names."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    delimiter = "\t" if ".tsv" in suffixes[-2:] else ","
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    rows = rows.astype(np.uint8) if rows.dtype.kind == "b" else rows
    with _binary(path, "wb") as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as file:
        if columns:
            names = [" ".join(name.split()) for name in columns]
            header = io.StringIO()
            plain = all(map(PLAIN_NAME.fullmatch, names))
            style: dict[str, Any] = {"quoting": csv.QUOTE_MINIMAL if plain else csv.QUOTE_ALL, "lineterminator": "\n"}
            csv.writer(header, delimiter=delimiter, **style).writerow(names)
            file.write("# " * any(map(is_number, names)) + header.getvalue())  # which would be taken for a row
        file.writelines(delimiter.join(map(_digits, row)) + "\n" for row in rows)


def _digits(number: Any) -> str:
    """The fewest digits that tell a number from others of its dtype; as Python has them, 16777216.0 and not 1.6777216e+07."""
    text = str(number)
    return repr(float(text)) if "e" in text else text


def write_parquet(path: Path, values: np.ndarray, columns: Sequence[str] = ()) -> None:
    """Write one sample per row, in columns of those names, or x0, x1, …."""
    arrow, parquet = optional("pyarrow", "parquet files"), optional("pyarrow.parquet", "parquet files")
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    names = list(columns) or [f"x{j}" for j in range(rows.shape[1])]
    parquet.write_table(arrow.table({name: np.ascontiguousarray(rows[:, j]) for j, name in enumerate(names)}), path)
