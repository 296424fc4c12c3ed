"""What the columns of a table are, found from their values and from what the user states."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import torch

from ...common.names import nearest
from ...common.user_warnings import warn
from .columns import (
    Bounds,
    Categorical,
    Category,
    Column,
    Numeric,
    grid_values,
)
from .equalize import Knots, equalizing_knots, expected_gain, knots_of_unequal_bins
from .maps import Maps
from .reading import RawColumn

MOST_DECIMALS = 9
FINEST_STEP = 1e-4
"""Of the standard deviation: finer grids are continuous, unless most rows repeat a value."""
LARGEST_INTEGER = 2**53
INTEGERS_APART = 0.25
"""Spacing of a dtype's numbers from which values that are all integers show no grid."""
TOLD_STEP = 1e-3
"""Of the range: a value between finer steps is rounded down without a warning."""
ATOM = 0.2
"""Share of equal values in a continuous column from which it has no density."""


class Statements:
    """What the user states: categorical columns, steps and bounds, by the names of columns."""

    def __init__(
        self,
        categories: Any,
        steps: Any,
        bounds: Any,
        names: Collection[str],
    ) -> None:
        names_alone = not isinstance(categories, str) and isinstance(categories, Collection)
        if not names_alone or not all(isinstance(name, str) for name in categories):
            raise TypeError(f"categories is a list of names of columns, got {categories!r:.80}")
        for what, value in (("steps", steps), ("bounds", bounds)):
            if not isinstance(value, Mapping):
                raise TypeError(f"{what} is a mapping of columns, got {value!r:.80}")
        self.categories = {*categories}
        self.steps = {name: _step(name, step) for name, step in steps.items()}
        self.bounds = {name: _bounds(name, pair) for name, pair in bounds.items()}
        for name in (*categories, *steps, *bounds):
            if name not in names:
                raise ValueError(f"the table has no column {name!r}. {nearest(str(name), names)}")
        for name in categories:
            if name in steps or name in bounds:
                raise ValueError(f"column {name!r} is categorical: it has no steps and no bounds")


def column_of(raw: RawColumn, stated: Statements, equalize: bool = True) -> Column:
    """What a column without gaps is."""
    name = raw.name
    if raw.missing.all():
        raise ValueError(f"column {name!r} has no values at all: leave it out")
    if not raw.numeric or name in stated.categories:
        if name in stated.steps or name in stated.bounds:
            raise ValueError(f"column {name!r} is categorical: it has no steps and no bounds")
        return _categorical(raw)
    values = raw.values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(
            f"column {name!r} has infinite values in {int(np.isinf(values).sum())} rows"
        )
    low = float(values.min())
    high = float(values.max())
    if len(values) == 1:
        raise ValueError("the table has one row, and a density takes at least two different ones")
    if values.min() == values.max():  # of integers, which floats may round to one
        raise ValueError(
            f"column {name!r} is constant, {low:g} in all rows, and has no density: leave it out"
        )
    if high - low > 1e300:
        raise ValueError(f"column {name!r} runs from {low:g} to {high:g}: divide it by a constant")
    if values.dtype.kind in "iu" and max(-low, high) > LARGEST_INTEGER:
        raise ValueError(
            f"column {name!r} has integers beyond 2^53, such as {high:.0f}, which float64 rounds: "
            "leave it out if they are identifiers, or subtract a constant"
        )
    grid: tuple[float, float, int | None] | None
    if name in stated.steps:
        grid = _stated_grid(raw, stated.steps[name])
    else:
        grid = find_grid(values)
    bounds = stated.bounds.get(name, (None, None))
    column = Numeric(name, raw.dtype, (low, high), bounds=bounds)
    if grid is not None:
        step, origin, decimals = grid
        column = Numeric(name, raw.dtype, (low, high), step, origin, decimals, bounds)
    else:
        _warn_of_atom(name, values)
    check_bounds(column, values.astype(np.float64))
    return equalized(column, values) if equalize else column


def continuous_column(name: str, values: np.ndarray) -> Numeric:
    """A column that is continuous, also if it has a grid: clumps are spread, bins are not.

    Each value of a grid is the middle of a bin, in which its map is linear.
    """
    low, high = float(values.min()), float(values.max())
    column = Numeric(name, values.dtype.name, (low, high))
    if low == high:
        return column
    step, origin, _ = find_grid(values) or (None, 0.0, None)
    if step is not None:
        origin -= 0.5 * step
    knots, images = equalizing_knots(values, step, origin)
    return replace(column, knots=knots, images=images)


def gains_of_equalizing(values: np.ndarray) -> np.ndarray:
    """Nats a row that equalizing each column of numbers (N, D) gains; 0 where one value abounds."""
    found = np.zeros(values.shape[1])
    for j, column in enumerate(values.T):
        distinct, counts = np.unique(column, return_counts=True)
        if len(distinct) == 1 or not np.isfinite(distinct).all():
            continue
        step, origin, _ = find_grid(column) or (None, 0.0, None)
        if step is not None or counts.max() <= ATOM * len(column):
            found[j] = expected_gain(column, step, origin)
    return found


def equalized(column: Numeric, values: np.ndarray) -> Numeric:
    """The column with the map that spreads the clumps of its values, if it has any."""
    if column.bounds == (None, None):
        knots = equalizing_knots(values, column.step, column.origin)
    else:
        knots = _knots_within_bounds(column, values.astype(np.float64))
    return replace(column, knots=knots[0], images=knots[1])


def _knots_within_bounds(column: Numeric, values: np.ndarray) -> Knots:
    """The knots of a column with bounds, in terms of its log or logit."""
    maps = Maps([column])

    def map_of(x: np.ndarray) -> np.ndarray:
        found: np.ndarray = maps.without_bounds(torch.from_numpy(x)[:, None])[:, 0].numpy()
        return found

    if column.step is None:
        return equalizing_knots(map_of(values), None, 0.0)
    origin, step = column.origin, column.step
    bins = np.rint((values - origin) / step)
    ends = bins.min(), bins.max() + 1

    def edges(k: np.ndarray) -> np.ndarray:
        return map_of(origin + k * step)

    def below(w: np.ndarray) -> np.ndarray:
        x = maps.inverse(torch.from_numpy(w)[:, None])[:, 0].numpy()
        found: np.ndarray = np.floor(((x - origin) / step).clip(*ends) + 1e-6).astype(np.int64)
        return found

    return knots_of_unequal_bins(bins, edges, below)


def find_grid(values: np.ndarray) -> tuple[float, float, int | None] | None:
    """Step, origin and decimals of a grid that holds all values; None if it is too fine for one."""
    distinct = np.unique(values)
    found = _decimal_grid(distinct) or _even_grid(distinct)
    if found is None or values.dtype.kind in "iu":
        return found
    with np.errstate(over="ignore"):  # then no grid is coarse
        std = float(values.std(dtype=np.float64))
    coarse = found[0] >= FINEST_STEP * std
    return found if coarse or 2 * len(distinct) <= len(values) else None


def _decimal_grid(distinct: np.ndarray) -> tuple[float, float, int | None] | None:
    """The coarsest grid of numbers with few decimals: the gcd of the differences of values."""
    eps = np.finfo(distinct.dtype).eps if distinct.dtype.kind == "f" else 2.0**-53
    for decimals in range(MOST_DECIMALS + 1):
        if distinct.dtype.kind in "iu":
            whole = distinct.astype(np.int64)
        else:
            scaled = distinct.astype(np.float64) * 10**decimals
            rounding = 4 * eps * np.abs(scaled)
            if not decimals and eps * np.abs(scaled).max() < INTEGERS_APART:
                rounding = np.zeros_like(scaled)  # integers are exact
            elif rounding.max() > 0.01:
                return None
            rounded = np.rint(scaled)
            if (np.abs(scaled - rounded) > rounding).any():
                continue
            whole = rounded.astype(np.int64)
        divisor = int(np.gcd.reduce(np.diff(whole)))
        return divisor / 10**decimals, int(whole[0]) % divisor / 10**decimals, decimals
    return None


def _even_grid(distinct: np.ndarray) -> tuple[float, float, int | None] | None:
    """The grid whose step is the smallest difference of values, if all of them lie on it."""
    reals = distinct.astype(np.float64)
    gap = float(np.diff(reals).min())
    eps = np.finfo(distinct.dtype).eps if distinct.dtype.kind == "f" else 2.0**-53
    multiples = (reals - reals[0]) / gap
    rounding = max(1e-6, 8 * float(eps) * float(np.abs(reals).max()) / gap)
    whole = np.rint(multiples[-1])
    if rounding > 0.01 or whole > 1e6:
        return None
    step = float((reals[-1] - reals[0]) / whole)
    multiples = (reals - reals[0]) / step
    if (np.abs(multiples - np.rint(multiples)) > rounding).any():
        return None
    return step, float(reals[0]), None


def _stated_grid(raw: RawColumn, step: float | None) -> tuple[float, float, int | None] | None:
    """The grid of a step that the user states, with 0 on it if that holds all values."""
    if step is None:
        return None
    values = np.unique(raw.values).astype(np.float64)
    reach = float(values[-1] - values[0])
    if step < 2.0**-52 * float(np.abs(values).max()):
        raise ValueError(
            f"column {raw.name!r} has the step {step:g}, finer than float64 tells its values "
            f"apart: give a larger one, or steps={{{raw.name!r}: None}} for a continuous column"
        )
    if step > reach * (1 + 1e-3):
        raise ValueError(
            f"column {raw.name!r} has the step {step:g}, and all its values lie within {reach:g}: "
            "give a smaller one"
        )
    for origin in (0.0, float(values[0])):
        multiples = (values - origin) / step
        off = np.abs(multiples - np.rint(multiples)) > 1e-3
        if not off.any():
            return step, origin, _decimals(step, origin)
    raise ValueError(
        f"column {raw.name!r} has {values[off][0]:g}, no multiple of its step {step:g}: give "
        f"another one, or steps={{{raw.name!r}: None}} for a continuous column"
    )


def _decimals(*values: float) -> int | None:
    """The fewest decimals that write all values; None for more than nine."""
    for decimals in range(MOST_DECIMALS + 1):
        if all(round(value, decimals) == value for value in values):
            return decimals
    return None


def _categorical(raw: RawColumn) -> Categorical:
    """A column of categories: the declared ones, or those that occur, sorted."""
    there = raw.values[~raw.missing]
    categories: tuple[Category, ...] = tuple(np.unique(there).tolist())
    if raw.categories is not None:
        categories = raw.categories
    plain = all(type(each) in (str, bool, int, float) for each in categories)
    if not plain or any(isinstance(each, float) and each - each != 0 for each in categories):
        raise TypeError(
            f"column {raw.name!r} has categories such as {categories[0]!r:.40}; wanted words, "
            "finite numbers or booleans"
        )
    return Categorical(raw.name, raw.dtype, categories, raw.ordered)


def check_bounds(column: Numeric, values: np.ndarray) -> None:
    """Raise unless values lie within the bounds that the user stated; NaN passes."""
    low, high = column.bounds
    if low is None and high is None:
        return
    least, greatest = column.ends
    if column.step is None:
        bad = (values <= least) | (values >= greatest)
    else:
        slack = 1e-6 * column.step
        bad = (values < least - slack) | (values > greatest + slack)
    if not bad.any():
        return
    first = values[bad][0]
    text = f"column {column.name!r} has {first:g}{and_more(bad)}"
    if first in (least, greatest):
        raise ValueError(
            f"{text} on the bounds {(low, high)} of a continuous column, where log and logit have "
            "no value: state wider bounds, or a step"
        )
    raise ValueError(f"{text} outside the bounds {(low, high)}")


def and_more(bad: np.ndarray) -> str:
    """How many rows besides the first are bad, for a message; nothing if there are no others."""
    others = int(bad.sum()) - 1
    return f", and {others:,} more," if others else ""


def on_grid(column: Numeric, values: np.ndarray) -> np.ndarray:
    """Values on the column's grid, rounded down to it, with a warning; NaN stays."""
    if column.step is None:
        return values
    multiples = (values - column.origin) / column.step
    whole = np.rint(multiples)
    # A float32 column of large numbers is off by its own rounding.
    rounding = 1e-3
    if column.dtype in ("float16", "float32"):
        eps = float(np.finfo(column.dtype).eps)
        rounding += 4 * eps * float(np.nanmax(np.abs(values), initial=0)) / column.step
    off = np.abs(multiples - whole) > rounding
    low, high = column.seen
    if off.any() and column.step > TOLD_STEP * (high - low):
        warn(
            f"column {column.name!r} has {values[off][0]:g}{and_more(off)} "
            f"between the multiples of its step {column.step:g}: they are rounded down"
        )
    if off.any():
        whole = np.where(off, np.floor(multiples), whole)
    return grid_values(column, whole)


def _warn_of_atom(name: str, values: np.ndarray) -> None:
    """Warn of a continuous column with one value in many rows."""
    distinct, counts = np.unique(values, return_counts=True)
    share = counts.max() / len(values)
    if share > ATOM and len(values) >= 20:
        value = distinct[counts.argmax()]
        warn(
            f"column {name!r} is {value:g} in {share:.0%} of the rows and continuous otherwise: "
            "its density is infinite there; round it and state steps=, or split it in two columns"
        )


def _step(name: str, step: Any) -> float | None:
    """A stated step: a positive number, or None for a continuous column."""
    if step is None:
        return None
    found = _real(step)
    if not 0 < found < math.inf:
        raise ValueError(f"steps[{name!r}] is a positive number or None, got {step!r:.40}")
    return found


def _real(value: Any) -> float:
    """A number as a float; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _bounds(name: str, pair: Any) -> Bounds:
    """Stated bounds: a pair of numbers, None for none."""
    wanted = f"bounds[{name!r}] is a pair such as (0, None) or (0, 1), got {pair!r:.40}"
    if not isinstance(pair, tuple | list) or len(pair) != 2 or pair[0] == pair[1] is None:
        raise ValueError(wanted)
    numbers = [_real(each) for each in pair if each is not None]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(wanted)
    if len(numbers) == 2 and not numbers[0] < numbers[1]:
        raise ValueError(wanted)
    low, high = (None if each is None else _real(each) for each in pair)
    return low, high
