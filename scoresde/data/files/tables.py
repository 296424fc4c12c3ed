"""Tables, .csv, .tsv and .parquet: columns that are not conditions are the samples, as float32.

The first line of text is a header if none of its cells is a number, or if it has the names that
the user wants. A comment before the first row is one if it has as many cells as the row. A line
that begins with # is a comment; # elsewhere belongs to its cell.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...common.result_tables import counted
from ...common.user_warnings import warn
from ...model.class_words import is_number
from .base import (
    BOMB_BYTES,
    BOMB_RATIO,
    Request,
    Samples,
    check_compression,
    from_columns,
    optional,
)

DELIMITERS = (";", "\t", ",")
"""What may separate cells: the first that gives the first two lines as many cells each."""
CHUNK_BYTES = 2**20
DEFLATE_RATIO = 1032
"""The most that deflate can shrink data by."""
LARGEST_FLOAT32 = 3.4028235e38
SAFE_PYARROW = (15, 0)
"""Before 14.0.1 a file could make pyarrow unpickle: CVE-2023-47248."""
UNREADABLE = (
    "no UTF-8 text: say which encoding it has, such as encoding='utf-16' or 'latin-1' (--encoding)"
)

_PLAIN_NAME = re.compile(r"[^\W\d][\w .()%/°²³µ-]*")
"""Names that every program takes for those of a header."""
_INDEX_NAME = re.compile(r"__index_level_\d+__")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")


@dataclass(frozen=True)
class _Columns:
    """The columns of a text: names, which hold words of conditions, and which are left out."""

    names: list[str]
    words: set[int]
    unused: set[int]

    @property
    def numeric(self) -> bool:
        """Whether all cells are read as numbers."""
        return not self.words and not self.unused

    @property
    def dtype(self) -> Any:
        """Text for words, so that 64-bit integers stay exact; float64 for other cells."""
        if self.numeric:
            return np.dtype(np.float64)
        fields: list[tuple[str, Any]] = []
        for j in range(len(self.names)):
            cell: Any = np.float64
            if j in self.words:
                cell = object
            elif j in self.unused:
                cell = "U1"
            fields.append((str(j), cell))
        return np.dtype(fields)


def table(path: Path, request: Request) -> Samples:
    """Read separated values."""
    _check_text_size(path)
    delimiter = _delimiter(path, request)
    wanted = request.wanted()
    skip, names, first = _header(text_lines(path, request), delimiter, {*wanted})
    _check_header(skip, names, first)
    names = names or [""] * len(first)
    request.conditions_in(names)  # raises before the cells are read
    chosen = request.chosen
    words = {names.index(name) for name in wanted if name not in (chosen or ())}
    unused: set[int] = set()
    if chosen is not None:
        unused = {j for j, name in enumerate(names) if name not in wanted}
    columns = _Columns(names, words, unused)
    lines = text_lines(path, request)
    least_axes: Any = 2 if columns.numeric else 1
    rows = TextRows(lines, skip, len(names), delimiter)
    kept: Any = iter(rows)
    try:
        cells = np.loadtxt(
            kept,
            columns.dtype,
            delimiter=delimiter,
            comments=None,
            quotechar='"',
            ndmin=least_axes,
        )
        if rows.comments and 0 in words | unused:
            warn(comment_text(rows.comments))

        def column(j: int) -> np.ndarray:
            found: np.ndarray = cells[:, j] if columns.numeric else cells[str(j)]
            return found

        return from_columns(names, column, len(cells), request)
    except ValueError as error:
        fault = _find_fault(path, request, skip, columns, delimiter)
        raise ValueError(fault or str(error)) from None


class TextRows:
    """The lines of rows; counts the comments among them that have as many cells as a row."""

    def __init__(
        self, lines: Iterator[tuple[int, str]], skip: int, width: int, delimiter: str
    ) -> None:
        self.lines = lines
        self.skip = skip
        self.width = width
        self.delimiter = delimiter
        self.comments = 0

    def __iter__(self) -> Iterator[str]:
        """The lines after the header."""
        for i, line in self.lines:
            if i > self.skip and not line.startswith("#"):
                yield line
            elif i > self.skip:
                self.comments += len(_cells(line, self.delimiter)) == self.width > 1


def comment_text(comments: int) -> str:
    """The warning of comments that may be rows."""
    return (
        f"{counted(comments, 'line')} with as many cells as a row, which begin with #, are left "
        'out as comments: if they are rows, write their first cell in quotes, such as "#1"'
    )


def _header(
    lines: Iterator[tuple[int, str]], delimiter: str, wanted: set[str]
) -> tuple[int, list[str], list[str]]:
    """The number of the last line before the rows, the names of columns, and the first row."""
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
        for names in comments:
            # A comment of one cell may be a remark, unless the user wants a column of that name.
            several = len(names) > 1 or wanted & {*names}
            if several and len(names) == len(first) and _repeated(names) is None:
                return skip, names, first
        return skip, [], first
    return skip, [], []


def _check_header(skip: int, names: list[str], first: list[str]) -> None:
    """Raise unless names are different, and as many as the cells of the first row."""
    if not first:
        raise ValueError("it has no rows")
    if names and len(names) != len(first):
        raise ValueError(
            f"line {skip} names {len(names)} columns, and the next line has {len(first)}"
        )
    if names and not all(names):
        raise ValueError(
            "a column has no name; pandas writes its row numbers so: to_csv(index=False) leaves "
            "them out"
        )
    twice = _repeated(names)
    if twice is not None:
        at = " and ".join(str(j) for j, name in enumerate(names, 1) if name == twice)
        raise ValueError(
            f"its header calls several columns {twice!r}: {at}; give each its own name"
        )


def _repeated(names: list[str]) -> str | None:
    """The first name that comes twice; None if all differ."""
    return next((name for name in names if name and names.count(name) > 1), None)


def _check_text_size(path: Path) -> None:
    """Raise if a compressed text is a decompression bomb, without reading it as a table."""
    held = path.stat().st_size
    if path.suffix.lower() != ".gz" or DEFLATE_RATIO * held < BOMB_BYTES:
        return
    limit = max(BOMB_BYTES, BOMB_RATIO * held)
    total = 0
    with gzip.open(path) as stream:
        while total <= limit:
            count = len(stream.read(CHUNK_BYTES))
            if not count:
                break
            total += count
    check_compression(total, held)


def _open_bytes(path: Path, mode: Any) -> Any:
    """The bytes of a text, compressed or not."""
    return gzip.open(path, mode) if path.suffix.lower() == ".gz" else path.open(mode)


def text_lines(path: Path, request: Request) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, with their numbers from 1."""
    return ((i, line) for i, line in raw_lines(path, request, None) if line.strip())


def raw_lines(path: Path, request: Request, newline: str | None = "") -> Iterator[tuple[int, str]]:
    """The lines of a text, with their numbers from 1; their ends stay, unless newline is None."""
    utf8 = codecs.lookup(request.encoding).name == "utf-8"
    encoding = "utf-8-sig" if utf8 else request.encoding
    try:
        with (
            _open_bytes(path, "rb") as raw,
            io.TextIOWrapper(raw, encoding=encoding, newline=newline) as file,
        ):
            for i, line in enumerate(file, 1):
                if "\0" in line:
                    raise ValueError(
                        UNREADABLE.replace("no UTF-8 text", "no text of this encoding")
                    )
                yield i, line
    except UnicodeError:
        reason = f"no text in {request.encoding}: say another encoding"
        if utf8:
            reason = UNREADABLE
        raise ValueError(reason) from None


def _delimiter(path: Path, request: Request) -> str:
    """What separates the cells."""
    if ".tsv" in path.name.lower():
        return "\t"
    lines = []
    for _, line in text_lines(path, request):
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
    """The cells of a line, without quotes and outer spaces."""
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _find_fault(path: Path, request: Request, skip: int, columns: _Columns, delimiter: str) -> str:
    """Which cell numpy could not read: slow, but done once. Empty if all cells are right."""
    names = columns.names
    for i, line in text_lines(path, request):
        if i <= skip or line.startswith("#"):
            continue
        cells = _cells(line, delimiter)
        if len(cells) != len(names):
            return f"line {i} has {len(cells)} columns, wanted {len(names)}"
        for j, cell in enumerate(cells):
            if j in columns.unused or (cell and (j in columns.words or _is_float32(cell))):
                continue
            hint = ""
            if _DECIMAL_COMMA.fullmatch(cell):
                hint = "; decimals are written with a point"
            elif names[j] and j not in columns.words and cell:
                hint = (
                    f" in {names[j]!r}: what is no sample is a condition, or left out by columns= "
                    "(--columns); scoresde.Table (--table) takes words too"
                )
            return f"line {i}, column {j + 1} is {cell!r}, wanted a finite number{hint}"
    return ""


def _is_float32(cell: str) -> bool:
    """Whether a cell is a number that float32 holds."""
    return is_number(cell) and abs(float(cell)) <= LARGEST_FLOAT32


def parquet(path: Path, request: Request) -> Samples:
    """Read a parquet file, column by column."""
    arrow = optional("pyarrow", "parquet files")
    parquet = optional("pyarrow.parquet", "parquet files")
    if tuple(map(int, arrow.__version__.split(".")[:2])) < SAFE_PYARROW:
        raise ImportError(
            f"parquet files need pyarrow 15 or newer, got {arrow.__version__}: pip install -U "
            "'scoresde[data]'"
        )
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if any(map(_INDEX_NAME.fullmatch, names)):
                raise ValueError("it holds a pandas index; to_parquet(index=False) leaves it out")
            n = file.metadata.num_rows
            check_compression(4 * n * len(names), path.stat().st_size)

            def column(j: int) -> np.ndarray:
                return _parquet_column(arrow, file, names[j])

            return from_columns(names, column, n, request)
    except arrow.ArrowException as error:  # not all of which are ValueErrors
        raise ValueError(str(error)) from None


def _parquet_column(arrow: Any, file: Any, name: str) -> np.ndarray:
    """A column of numbers or words."""
    data = file.read([name]).column(0)
    if data.null_count:
        raise ValueError(
            f"column {name!r} has no value in {data.null_count:,} of {len(data):,} rows"
        )
    if arrow.types.is_dictionary(data.type):
        data = data.cast(data.type.value_type)
    array: np.ndarray = data.to_numpy()
    words = arrow.types.is_string(data.type) or arrow.types.is_large_string(data.type)
    if array.dtype.kind not in "biuf" and not words:
        raise ValueError(f"column {name!r} is of type {data.type}, wanted numbers")
    return array


def write_text(path: Path, values: np.ndarray, columns: Sequence[str] = ()) -> None:
    """Write one sample per line under a header; numbers have the fewest digits that suffice."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    delimiter = "\t" if ".tsv" in suffixes[-2:] else ","
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    if rows.dtype.kind == "b":
        rows = rows.astype(np.uint8)
    with (
        _open_bytes(path, "wb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8", newline="") as file,
    ):
        if columns:
            file.write(_header_line(columns, delimiter))
        file.writelines(delimiter.join(map(_digits, row)) + "\n" for row in rows)


def _header_line(columns: Sequence[str], delimiter: str) -> str:
    """A header; as a comment if a name is a number, since it would be read as a row."""
    names = [" ".join(name.split()) for name in columns]
    plain = all(map(_PLAIN_NAME.fullmatch, names))
    style: dict[str, Any] = {
        "delimiter": delimiter,
        "quoting": csv.QUOTE_MINIMAL if plain else csv.QUOTE_ALL,
        "lineterminator": "\n",
    }
    header = io.StringIO()
    csv.writer(header, **style).writerow(names)
    comment = "# " if any(map(is_number, names)) else ""
    return comment + header.getvalue()


def _digits(number: Any) -> str:
    """The fewest digits that determine a number: 16777216.0, as Python has it, not 1.67e+07."""
    text = str(number)
    return repr(float(text)) if "e" in text else text


def write_parquet(path: Path, values: np.ndarray, columns: Sequence[str] = ()) -> None:
    """Write one sample per row, in columns of those names, or x0, x1, …."""
    arrow = optional("pyarrow", "parquet files")
    parquet = optional("pyarrow.parquet", "parquet files")
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    names = list(columns) or [f"x{j}" for j in range(rows.shape[1])]
    arrays = {name: np.ascontiguousarray(rows[:, j]) for j, name in enumerate(names)}
    parquet.write_table(arrow.table(arrays), path)
