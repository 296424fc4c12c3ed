"""Histogram equalization inside small cells: clumps of a column's values, spread out.

Numbers that people write down have clumps that are far narrower than their spread: sizes of hard
disks, distances between airports, degrees Fahrenheit that were Celsius. A network of finite
resolution can't see them. So a column is cut into cells of a sixteenth of its standard deviation,
and in each cell a piecewise linear map T spreads the clumps. T keeps the ends of every cell: it
moves nothing by more than a cell, and a density of z = T(x) is one of x,

    log p(x) = log p_z(T(x)) + log T'(x).

T' comes from an optional Pólya tree (Wong & Ma 2010, Ann. Statist. 38). Its nodes are a cell, the
halves of the cell, their halves, and so on. Of the n values in a node, L lie in its left half and R
in the right one. If the node is split, a value lies in the left half with probability
(a + L)/(2a + n), a = ½. A node is split if this is more probable than uniform values in the node.
The log evidence of a node, with the nodes below it, is

    φ = log(ρ + (1 − ρ)·2ⁿ·B(a + L, a + R)/B(a, a)·exp(φ_left + φ_right)),      ρ = 0.9,

relative to uniform values in the node. Where the tree has no split, T is the identity.

An outlier can make the standard deviation so large that all other values lie in a sliver of one
cell. So the tree of a continuous column goes on below 2⁻¹⁰ cells, in nodes whose different values
are 1% of the rows or more. It ends at a value that occurs many times, whose density has no bound.

A column with bounds is equalized after its log or logit, w, in which the bins of discretized values
have different widths. Its cells end where a bin does, and halves have equally many bins. If the
left half has a share s of a node's width, its prior mass is a_left = 2as in place of a, that of the
other a_right = 2a(1 − s), and the uniform density makes s⁻ᴸ·(1 − s)⁻ᴿ of 2ⁿ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import betaln

CELL = 1 / 16
"""Width of a cell in standard deviations; a network with `axes` resolves a quarter of it."""

USUAL_HALVINGS = 10
"""Levels of the tree below a cell of a continuous column; more where a clump is left."""

MOST_HALVINGS = 40
"""Levels at most."""

CLUMP_SHARE = 0.01
"""A node is split below the usual levels if it has so many different values, as a share of rows."""

PSEUDO_COUNT = 0.5
STOP = 0.9
"""Prior probability that a node is not split."""

LEAST_SHARE = 1e-4
"""Least share of a node's probability that a half gets."""

LEAST_GAIN = 0.05
"""Nats a row: columns that gain less stay as they are."""

SPACINGS = 2**10
"""Of float64 numbers as large as the column's, in a bin: finer bins would be rounded."""

FEWEST_ROWS = 100
MOST_KNOTS = 2**16

Edges = Callable[[np.ndarray], np.ndarray]
"""Where bins k begin."""
Cells = tuple[np.ndarray, np.ndarray]
"""First bin and end of each."""

Knots = tuple[tuple[float, ...], tuple[float, ...]]
"""Places x and T(x), both increasing; outside of them T is the identity."""

NONE: Knots = (), ()


def equalizing_knots(values: np.ndarray, step: float | None, origin: float) -> Knots:
    """Return the knots of T for the finite values of a column; none where T would gain nothing.

    With a step, the value v stands for [v, v + step), and no bin is cut in two.
    """
    values = values[np.isfinite(values)].astype(np.float64)
    if len(values) < FEWEST_ROWS:
        return NONE
    cell, finest = _resolutions(values)
    depth = MOST_HALVINGS
    continuous = step is None
    if step is None:
        origin = float(values.min())
        if cell > finest:
            depth = min(depth, math.floor(math.log2(cell / finest)))
        step = cell / 2**depth
    else:
        depth = math.floor(math.log2(max(cell / step, 1.0)))
    if depth < 1 or step < finest:
        return NONE
    values = np.sort(values)
    numbers = np.floor((values - origin) / step + 1e-6).astype(np.int64)
    start = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    bins = numbers[start]
    counts = np.diff(start, append=len(values))
    different = None
    if continuous:
        is_new = np.diff(values, prepend=-np.inf) > 0
        different = np.add.reduceat(is_new.astype(np.int64), start)
    low = np.unique(bins >> depth) << depth
    cells = (low, low + 2**depth)
    return _knots_of(bins, counts, cells, lambda k: k.astype(np.float64), origin, step, different)


def expected_gain(values: np.ndarray, step: float | None, origin: float) -> float:
    """Return the mean log T' of every second value of a column, T being found from the others."""
    places, images = map(np.array, equalizing_knots(values[::2], step, origin))
    if not len(places):
        return 0.0
    held_out = values[1::2] + 0.5 * (step or 0.0)
    after = np.searchsorted(places, held_out, side="right")
    inside = (after > 0) & (after < len(places))
    slopes = np.diff(images) / np.diff(places)
    return float(np.log(slopes[after[inside] - 1]).sum() / len(held_out))


def knots_of_unequal_bins(bins: np.ndarray, edges: Edges, below: Edges) -> Knots:
    """Return the knots of T in w for the bin k of each value; none where T would gain nothing.

    `edges` gives the w at which bins begin, and `below` the bin that holds each w.
    """
    if len(bins) < FEWEST_ROWS:
        return NONE
    bins, counts = np.unique(bins.astype(np.int64), return_counts=True)
    middles = 0.5 * (edges(bins) + edges(bins + 1))
    cell, finest = _resolutions(np.repeat(middles, counts))
    if cell < finest:
        return NONE
    numbers = np.unique(np.floor(middles / cell))
    numbers = np.union1d(numbers, numbers + 1)  # a bin may begin in the cell before
    low = below(numbers * cell)
    high = below((numbers + 1) * cell)
    narrowest = np.minimum(edges(low + 1) - edges(low), edges(high) - edges(high - 1))
    kept = (high > low + 1) & (narrowest > finest)
    cells = (low[kept], high[kept])
    return _knots_of(bins, counts, cells, edges, 0.0, 1.0)


def _resolutions(values: np.ndarray) -> tuple[float, float]:
    """Width of a cell, also of values whose squares overflow, and of the finest bin."""
    largest = float(np.abs(values).max())
    if largest == 0:
        return 0.0, np.finfo(np.float64).tiny
    cell = CELL * largest * float((values / largest).std())
    finest = SPACINGS * max(float(np.spacing(largest)), np.finfo(np.float64).tiny)
    return cell, finest


def _knots_of(
    bins: np.ndarray,
    counts: np.ndarray,
    cells: Cells,
    edges: Edges,
    origin: float,
    unit: float,
    different: np.ndarray | None = None,
) -> Knots:
    """Knots of T from the bins that occur, with the number of values in each and, of a continuous
    column, of different ones; places are origin + unit·edge.
    """
    if not len(cells[0]):
        return NONE
    first, end, masses = _leaves(bins, counts.astype(np.float64), cells, edges, different)
    if not len(first):
        return NONE
    left = edges(first)
    right = edges(end)
    widths = right - left
    at = np.searchsorted(first, bins, side="right") - 1
    inside = (at >= 0) & (bins < end[at])
    gain = (counts * np.log(masses[at] / widths[at]))[inside].sum() / counts.sum()
    if gain < LEAST_GAIN:
        return NONE
    gaps = np.flatnonzero(np.append(first[1:] != end[:-1], True))
    moved = np.concatenate([[0.0], np.cumsum(masses - widths)])
    places = np.concatenate([left, right[gaps]])
    images = np.concatenate([left + moved[:-1], right[gaps]])
    order = np.argsort(places, kind="stable")
    x = origin + unit * places[order]
    z = origin + unit * images[order]
    growing = bool((np.diff(x) > 0).all() and (np.diff(z) > 0).all())
    if not growing or len(x) > MOST_KNOTS:
        return NONE
    return tuple(x.tolist()), tuple(z.tolist())


def _leaves(
    bins: np.ndarray,
    counts: np.ndarray,
    cells: Cells,
    edges: Edges,
    different: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First bin, end and mass of the leaves of cells that are split, from left to right."""
    levels = _levels(bins, counts, cells, different)
    # From the bins up to the cells: the evidence of each node, and whether it is split.
    evidence = np.zeros(0)
    judged = []
    for level in reversed(levels):
        is_split = np.zeros(len(level.low), bool)
        below = evidence.reshape(-1, 2).sum(1)
        evidence = np.zeros(len(level.low))
        grows = level.grows
        share, is_split[grows], evidence[grows] = _judge(level, edges, below)
        judged.append((share, is_split))
    # From the cells that are split down to the leaves: their bins and masses.
    masses = edges(cells[1]) - edges(cells[0])
    alive = judged[-1][1]
    found = []
    for level, (share, is_split) in zip(levels, reversed(judged), strict=True):
        leaf = alive & ~is_split
        found.append((level.low[leaf], level.high[leaf], masses[leaf]))
        alive = np.repeat((alive & is_split)[level.grows], 2)
        kept = masses[level.grows]
        masses = np.stack([kept * share, kept * (1 - share)], 1).ravel()
    first, end, masses = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(first)
    return first[order], end[order], masses[order]


class _Level(NamedTuple):
    """Nodes at one height of the tree: their bins, the values in each half, and which may grow."""

    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray
    left: np.ndarray
    right: np.ndarray
    grows: np.ndarray


def _levels(
    bins: np.ndarray, counts: np.ndarray, cells: Cells, different: np.ndarray | None
) -> list[_Level]:
    """The nodes of the tree, from the cells down to the bins.

    Nodes grow that have two bins and two values: others gain nothing from a split. Those of a
    continuous column that grow below the usual levels have many different values.
    """
    kinds = None if different is None else np.concatenate([[0], np.cumsum(different)])
    before = np.concatenate([[0.0], np.cumsum(counts)])
    low, high = cells
    levels: list[_Level] = []
    while len(low):
        middle = (low + high) // 2
        ends = [np.searchsorted(bins, at) for at in (low, middle, high)]
        left, right = np.diff([before[end] for end in ends], axis=0)
        grows = (left + right > 1) & (high - low > 1)
        if kinds is not None and len(levels) >= USUAL_HALVINGS:
            grows &= kinds[ends[2]] - kinds[ends[0]] >= CLUMP_SHARE * before[-1]
        levels.append(_Level(low, middle, high, left, right, grows))
        low, high = (np.stack(two, 1)[grows].ravel() for two in ((low, middle), (middle, high)))
    return levels


def _judge(
    level: _Level, edges: Edges, below: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the nodes that may be split: the share of the left half, whether they are, and φ."""
    grows = level.grows
    start, middle, end = (edges(at[grows]) for at in (level.low, level.middle, level.high))
    s = (middle - start) / (end - start)
    left = level.left[grows]
    right = level.right[grows]
    a_left = 2 * PSEUDO_COUNT * s
    a_right = 2 * PSEUDO_COUNT * (1 - s)
    split = betaln(a_left + left, a_right + right) - betaln(a_left, a_right)
    split = split - left * np.log(s) - right * np.log1p(-s) + below + math.log(1 - STOP)
    share = (a_left + left) / (2 * PSEUDO_COUNT + left + right)
    share = np.clip(share, 2 * LEAST_SHARE * s, 1 - 2 * LEAST_SHARE * (1 - s))
    return share, split > math.log(STOP), np.logaddexp(split, math.log(STOP))
