"""What one column of a table is, in plain numbers and text that JSON holds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import (
    asdict,
    dataclass,
    fields,
)
from typing import Any

import numpy as np

from .equalize import MOST_KNOTS

INTEGERS = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
NUMERIC = (*INTEGERS, "float16", "float32", "float64")
"""Dtypes of numeric columns, by numpy's names."""
FROM_LATER_VERSIONS = ("knots", "images")
"""Fields that records of the first version lack."""
CATEGORICAL = ("bool", "category", "str", *NUMERIC)
"""Dtypes of categorical columns: numpy's names, "str" for words, "category" as pandas has it."""
SHOWN_CATEGORIES = 4
MARGIN = 0.05
"""Of a step, by which the box of a bounded discretized column is wider than its bins."""
FINEST_SHARE = 2.0**-54
"""Of the range of a column, which its step is at least."""

Bounds = tuple[float | None, float | None]
Category = str | bool | int | float


@dataclass(frozen=True)
class Numeric:
    """A column of numbers: its grid, if it is discretized, and the bounds that the user states.

    The value v of a grid origin + k·step stands for the bin [v, v + step).
    """

    name: str
    dtype: str
    seen: tuple[float, float]
    """Least and greatest value in the table."""
    step: float | None = None
    origin: float = 0.0
    decimals: int | None = None
    """Digits after the point that write every value of the grid."""
    bounds: Bounds = (None, None)
    knots: tuple[float, ...] = ()
    """Places between which the map T that spreads clumps is linear, of x, or of the log or logit of
    a column with bounds; see `equalize`."""
    images: tuple[float, ...] = ()
    """T of the knots."""

    @property
    def kind(self) -> str:
        """Continuous or discretized."""
        return "continuous" if self.step is None else "discretized"

    @property
    def integer(self) -> bool:
        """Whether values are integers of the machine."""
        return not self.dtype.startswith("float")

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value within the bounds; of a grid, ones of it."""
        low, high = self.bounds
        least = -math.inf if low is None else low
        greatest = math.inf if high is None else high
        if self.step is None:
            return least, greatest
        slack = 1e-6
        if low is not None:
            least = self.origin + math.ceil((low - self.origin) / self.step - slack) * self.step
        if high is not None:
            whole = math.floor((high - self.origin) / self.step + slack)
            greatest = self.origin + whole * self.step
        return least, greatest

    @property
    def box(self) -> tuple[float, float]:
        """The open interval that log and logit take to all real numbers."""
        least, greatest = self.ends
        if self.step is None:
            return least, greatest
        margin = MARGIN * self.step
        return least - margin, greatest + self.step + margin

    @property
    def shift(self) -> float:
        """Subtracted from a column far from 0 for its spread, which float32 would round."""
        low, high = self.seen
        near = abs(low + high) < 200 * (high - low) or low == high
        if self.bounds != (None, None) or near:
            return 0.0
        return self.origin + self.nearest(low) * self.step if self.step else low

    def nearest(self, value: float) -> int:
        """The number k of the bin that holds a value."""
        assert self.step is not None
        return math.floor((value - self.origin) / self.step + 1e-6)

    def describe(self) -> dict[str, Any]:
        """Return the column as plain JSON."""
        return {"kind": "numeric", **_plain(asdict(self))}

    def __str__(self) -> str:
        """Kind, step and bounds in words."""
        text = self.kind
        if self.step is not None:
            text += f", step {self.step:g}"
        low, high = self.bounds
        if low is not None and high is not None:
            text += f", logit in ({low:g}, {high:g})"
        elif low is not None:
            text += f", log above {low:g}"
        elif high is not None:
            text += f", log below {high:g}"
        return f"{text}, equalized" if self.knots else text


@dataclass(frozen=True)
class Categorical:
    """A column of categories, in the order of their numbers."""

    name: str
    dtype: str
    categories: tuple[Category, ...]
    ordered: bool = False

    def describe(self) -> dict[str, Any]:
        """Return the column as plain JSON."""
        return {"kind": "categorical", **_plain(asdict(self))}

    def __str__(self) -> str:
        """How many categories."""
        return f"categorical, {len(self.categories)} categories"


Column = Numeric | Categorical


def shown_columns(columns: Sequence[Column]) -> list[str]:
    """A line for each column: name, dtype, kind, range or categories."""
    lines = [(each.name, each.dtype, str(each), _range(each)) for each in columns]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    texts = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line[:3], widths, strict=True)]
        texts.append("  ".join(["", *cells, line[3]]).rstrip())
    return texts


def _range(column: Column) -> str:
    """The range of numbers, or the first categories."""
    if isinstance(column, Numeric):
        return f"{column.seen[0]:g} … {column.seen[1]:g}"
    words = [str(word) for word in column.categories[:SHOWN_CATEGORIES]]
    more = ", …" if len(column.categories) > SHOWN_CATEGORIES else ""
    return ", ".join(words) + more


def rebuild_column(about: Any) -> Column:
    """Return the column that `describe` wrote, checked as data from a stranger."""
    if not isinstance(about, Mapping):
        raise ValueError("its table has a column that is no record")
    made: Any = {"numeric": Numeric, "categorical": Categorical}.get(str(about.get("kind")))
    if made is Numeric and not about.keys() & {*FROM_LATER_VERSIONS}:
        about = {**about, "knots": [], "images": []}
    known = {"kind"} | ({field.name for field in fields(made)} if made else set())
    if made is None or about.keys() != known or not isinstance(about["name"], str):
        raise ValueError("its table has a column of another form than this version writes")
    about = {name: value for name, value in about.items() if name != "kind"}
    if made is Categorical:
        return _rebuild_categorical(about)
    return _rebuild_numeric(about)


def _rebuild_categorical(about: Mapping[str, Any]) -> Categorical:
    """A categorical column, checked."""
    name = about["name"]
    categories = about["categories"]
    plain = isinstance(categories, list) and all(
        isinstance(each, str | bool | int | float) for each in categories
    )
    dtype = about["dtype"]
    if (
        not plain
        or not categories
        or dtype not in CATEGORICAL
        or type(about["ordered"]) is not bool
    ):
        raise ValueError(f"its column {name!r} has no categories of a known kind")
    kinds: dict[str, set[type]] = {
        "str": {str},
        "bool": {bool},
        "category": {str, bool, int, float},
    }
    wanted = kinds.get(dtype, {int})
    if dtype.startswith("float"):
        wanted = {float}
    finite = all(math.isfinite(each) for each in categories if type(each) is float)
    if not finite or {type(each) for each in categories} - wanted:
        raise ValueError(f"its column {name!r} has categories that are not {dtype}")
    if len({*categories}) < len(categories):
        raise ValueError(f"its column {name!r} has one category twice")
    return Categorical(name, dtype, tuple(categories), about["ordered"])


def _rebuild_numeric(about: Mapping[str, Any]) -> Numeric:
    """A numeric column, checked."""
    name = about["name"]
    wrong = ValueError(f"its column {name!r} has a step, a range or bounds that can't be")
    seen = about["seen"]
    bounds = about["bounds"]
    pairs = all(isinstance(pair, list) and len(pair) == 2 for pair in (seen, bounds))
    if not pairs or about["dtype"] not in NUMERIC:
        raise wrong
    step = about["step"]
    decimals = about["decimals"]
    numbers = [*seen, about["origin"], *(each for each in (*bounds, step) if each is not None)]
    if not all(type(each) in (int, float) and math.isfinite(each) for each in numbers):
        raise wrong
    if decimals is not None and (type(decimals) is not int or not 0 <= decimals <= 20):
        raise wrong
    low, high = bounds
    ordered = seen[0] <= seen[1] and (low is None or high is None or low < high)
    reach = float(seen[1]) - float(seen[0])
    if not ordered or not math.isfinite(reach):
        raise wrong
    if step is not None:
        fits = FINEST_SHARE * reach <= step <= 1.001 * reach
        if not fits or abs(about["origin"]) > 1.001 * max(step, abs(seen[0])):
            raise wrong
    knots = _rebuild_knots(about)
    if knots is None:
        raise wrong
    grid = (step, about["origin"], decimals)
    column = Numeric(name, about["dtype"], tuple(seen), *grid, tuple(bounds), *knots)
    least, greatest = column.ends
    slack = 1e-3 * (step or 0.0)
    within = least - slack <= seen[0] and seen[1] <= greatest + slack
    if not within or not math.isfinite(column.shift):
        raise wrong
    return column


def _rebuild_knots(about: Mapping[str, Any]) -> tuple[tuple[float, ...], ...] | None:
    """Knots and images of a file; None unless they are those of an increasing map."""
    found = []
    for name in FROM_LATER_VERSIONS:
        numbers = about[name]
        if not isinstance(numbers, list) or len(numbers) > MOST_KNOTS:
            return None
        if not all(type(each) is float and math.isfinite(each) for each in numbers):
            return None
        if any(b <= a for a, b in itertools.pairwise(numbers)):
            return None
        found.append(tuple(numbers))
    knots, images = found
    if len(knots) != len(images) or len(knots) == 1:
        return None
    ends = zip(knots[:1] + knots[-1:], images[:1] + images[-1:], strict=True)
    reach = sum(map(abs, knots[:1] + knots[-1:]))
    if any(abs(a - b) > 1e-9 * reach for a, b in ends):
        return None
    return knots, images


def _plain(about: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as JSON has them."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in about.items()
    }


def grid_values(column: Numeric, whole: np.ndarray) -> np.ndarray:
    """The values origin + k·step of a grid, rounded to its decimals."""
    assert column.step is not None
    found: np.ndarray = column.origin + whole * column.step
    if column.decimals is not None:
        found = np.round(found, column.decimals)
    return found
