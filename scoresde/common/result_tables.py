"""Results as small tables, as text and for notebooks: a few samples, and the mean over all."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FEW = 3
"""Samples that a table shows of more than `ALL`."""
ALL = 5
"""A table of up to so many samples shows them all."""


class Grid(NamedTuple):
    """A title, the heads of columns, and rows of text; the first column is of labels."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """In columns, aligned on the right."""
        lines = [list(self.heads), *map(list, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = [self.title]
        for label, *cells in lines:
            right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            texts.append("  ".join([label.ljust(widths[0]), *right]).rstrip())
        return "\n".join(texts)

    def html(self) -> str:
        """A table of HTML."""

        def row(cells: Sequence[str], kind: str) -> str:
            inside = "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells)
            return f"<tr>{inside}</tr>"

        body = "".join(row(cells, "td") for cells in self.rows)
        head = row(self.heads, "th")
        caption = f"<caption>{html.escape(self.title)}</caption>"
        return f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>"


class ShownAsTable:
    """What prints as a grid."""

    def _grid(self) -> Grid:
        """The grid."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """A small table."""
        try:
            return self._grid().text()
        except Exception:  # columns that are no tensors, or on the meta device
            return f"{type(self).__name__}(...)"

    def _repr_html_(self) -> str | None:
        """The same for notebooks; None leaves it to the text."""
        try:
            return self._grid().html()
        except Exception:
            return None


def number(value: float, digits: int = 4) -> str:
    """A number with four significant digits, or so many."""
    return f"{value:.{digits}g}"


def by_sample(title: str, columns: Mapping[str, Tensor]) -> Grid:
    """Columns (n,) of results: some samples, and the mean of each column over all.

    The mean of the first has its standard error, std/√n. Errors, named "± …", have two digits.
    """
    values = [column.detach().cpu().double() for column in columns.values()]
    digits = [2 if name.startswith("±") else 4 for name in columns]

    def cells(numbers: Iterable[Tensor]) -> list[str]:
        return [number(float(x), k) for x, k in zip(numbers, digits, strict=True)]

    n = len(values[0])
    shown = n if n <= ALL else FEW
    rows = [[str(i), *cells(column[i] for column in values)] for i in range(shown)]
    if shown < n:
        rows.append(["…", *("" for _ in values)])
    if n > 1:
        means = cells(column.mean() for column in values)
        means[0] += f" ± {float(values[0].std()) / math.sqrt(n):.2g}"
        rows.append(["mean", *means])
    return Grid(title, ["", *columns], rows)


def counted(n: int, what: str) -> str:
    """A number of things, in the plural unless there is one."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def spread(x: Tensor) -> list[str]:
    """Mean, standard deviation and range of numbers."""
    x = x.detach().cpu().double().flatten()
    if not len(x):
        return ["", "", "", ""]
    deviation = float(x.std()) if len(x) > 1 else math.nan
    return [number(v) for v in (float(x.mean()), deviation, float(x.min()), float(x.max()))]


def extent(values: Tensor) -> str:
    """Counts, one per sample, as text: their common value, or their range."""
    if not len(values):
        return "0"
    low, high = torch.aminmax(values.detach().cpu())
    return f"{int(low)}" if low == high else f"{int(low)} … {int(high)}"
