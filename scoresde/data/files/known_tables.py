"""Text whose table is known: its categories are read exactly as they are written.

A cell that is a category of its column is that category, whatever it looks like: 01234, NA, #a, or
with outer spaces. A line that begins with # after the header is a row if its first cell is such a
category, or belongs to a column that the table does not have.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...common.user_warnings import warn
from ...model.class_words import is_number
from ...model.tables.cells import restored_words
from ...model.tables.columns import Categorical
from ...model.tables.schema import TableSchema
from .base import Request
from .tables import DELIMITERS, _check_header, _check_text_size, comment_text, raw_lines

GAPS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
"""Cells without a value, unless they are categories."""

BLANK = " \r\n"
"""Lines of these alone hold no row; tabs may separate empty cells."""


def read_known(path: Path, request: Request, table: TableSchema) -> dict[str, np.ndarray] | None:
    """The columns of a text by name; None if no line names the table's numeric columns.

    Cells of numeric columns are text still; categories are words, "" for gaps; columns that the
    table does not have are text as written.
    """
    _check_text_size(path)
    tabs = ".tsv" in path.name.lower()
    for delimiter in ("\t",) if tabs else DELIMITERS:
        lines = (line for _, line in raw_lines(path, request))
        header = _header(lines, delimiter, table)
        if header is not None:
            break
    else:
        return None
    names, skip = header
    _check_header(skip, names, names)
    categorical = {each.name: _Categories(each) for each in table.categorical}
    foreign = all(each.name != names[0] for each in table.columns)
    first = categorical.get(names[0])

    def is_row(cells: list[str]) -> bool:
        if foreign:
            return len(cells) == len(names)
        return first is not None and len(cells) > 1 and first.knows(cells[0])

    rows = Rows(delimiter, len(names), is_row)
    cells = list(rows.read(itertools.islice(raw_lines(path, request), skip, None)))
    if rows.comments and first is not None:  # numbers do not begin with #
        warn(comment_text(rows.comments))
    if not cells:
        raise ValueError("it has no rows")
    found: dict[str, np.ndarray] = {}
    for name, column in zip(names, zip(*cells, strict=True), strict=True):
        texts: Sequence[str] = column
        if name in categorical:
            texts = categorical[name].words(column)
        found[name] = np.array(texts, str)
    return found


def _header(
    lines: Iterator[str], delimiter: str, table: TableSchema
) -> tuple[list[str], int] | None:
    """The names of columns, and how many lines come before the rows; None without a header."""
    known = {each.name for each in table.columns}
    numeric = {each.name for each in table.numeric}
    comments: list[tuple[list[str], int]] = []

    def named(text: str) -> list[str]:
        return [cell if cell in known else cell.strip() for cell in _split(text, delimiter)]

    for skip, line in enumerate(lines):
        if not line.strip():
            continue
        if line.startswith("#"):
            names = named(line)
            if names[0] in known and numeric <= {*names}:
                return names, skip + 1
            bare = named(line.lstrip("# "))
            if bare and bare[0] in known:
                names = bare
            comments.append((names, skip + 1))
            continue
        reader = csv.reader(itertools.chain([line], lines), delimiter=delimiter)
        names = [cell if cell in known else cell.strip() for cell in next(reader)]
        if numeric <= {*names}:
            return names, skip + reader.line_num
        for each, after in comments:
            if numeric <= {*each} and len(each) == len(names):
                return each, after
        return None
    return None


def _split(line: str, delimiter: str) -> list[str]:
    """The cells of one line, as they are written."""
    return next(csv.reader([line], delimiter=delimiter), [])


class Rows:
    """Rows of cells; comments between them are left out, and counted if they look like rows."""

    def __init__(
        self,
        delimiter: str,
        width: int,
        is_row: Callable[[list[str]], bool] = lambda cells: False,
    ) -> None:
        self.delimiter = delimiter
        self.width = width
        self.is_row = is_row  # of the cells of a line that begins with #
        self.blank = BLANK if delimiter == "\t" else None
        self.comments = 0
        self.number = 0
        self.begins = True

    def read(self, lines: Iterator[tuple[int, str]]) -> Iterator[list[str]]:
        """The rows of numbered lines; a cell in quotes may hold several lines."""
        for row in csv.reader(self._kept(lines), delimiter=self.delimiter):
            if len(row) != self.width:
                raise ValueError(f"line {self.number} has {len(row)} columns, wanted {self.width}")
            self.begins = True
            yield row

    def _kept(self, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
        """The lines of rows."""
        first = 0
        for number, line in lines:
            self.number = number
            if self.begins and (not line.strip(self.blank) or self._is_comment(line)):
                continue
            if self.begins:
                first = number
            self.begins = False
            yield line
        if not self.begins:
            raise ValueError(f"a quote that line {first} opens is not closed")

    def _is_comment(self, line: str) -> bool:
        """Whether a line that begins a row is none."""
        if not line.startswith("#"):
            return False
        cells = _split(line, self.delimiter)
        if self.is_row(cells):
            return False
        self.comments += len(cells) == self.width > 1
        return True


class _Categories:
    """The texts that stand for the categories of a column."""

    def __init__(self, column: Categorical) -> None:
        self.column = column
        words = [str(each) for each in column.categories]
        written = np.asarray(restored_words(column, np.arange(len(words)))).astype(str).tolist()
        self.spellings: dict[str, str] = dict(zip(written + words, words + words, strict=True))
        self.alike = {word for word in words if words.count(word) > 1} if _mixed(column) else set()
        self.spaced = any(word != word.strip() for word in words)
        pairs = zip(column.categories, words, strict=True)
        self.numbers: dict[Any, str] = {
            each: word for each, word in pairs if not isinstance(each, str)
        }

    def knows(self, text: str) -> bool:
        """Whether a text is a category."""
        return self._word(text) in self.spellings

    def words(self, cells: Sequence[str]) -> list[str]:
        """Cells as the words of their categories; "" for gaps, and unknown words as they are."""
        found = {text: self._word(text) for text in {*cells}}
        doubtful = self.alike & {*found.values()}
        if doubtful:
            raise ValueError(
                f"column {self.column.name!r} has two categories that text writes as "
                f"{min(doubtful)!r}: take a .parquet file, or a data frame in Python"
            )
        if "" in self.spellings and "" in found:
            raise ValueError(
                f"an empty cell of column {self.column.name!r} may be a gap or its category '': "
                "give the data frame in Python"
            )
        return [found[text] for text in cells]

    def _word(self, text: str) -> str:
        """The word of a category, "" for a gap, or the text."""
        if text in self.spellings:
            return self.spellings[text]
        stripped = text.strip()
        if stripped in self.spellings and not self.spaced:
            return self.spellings[stripped]
        if stripped in GAPS:
            return ""
        if self.numbers and is_number(stripped):
            value = _number(stripped)
            return self.numbers.get(value, text)
        return text


def _mixed(column: Categorical) -> bool:
    """Whether categories are of several types, of which text may write two alike."""
    return len({type(each) for each in column.categories}) > 1


def _number(text: str) -> int | float:
    """An integer, or else a float."""
    try:
        return int(text)
    except ValueError:
        return float(text)
