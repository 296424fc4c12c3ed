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
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaln

CELL = 1 / 16
"""Width of a cell in standard deviations; a network with `axes` resolves a quarter of it."""

MOST_HALVINGS = 10
"""Levels of the tree below a cell of a continuous column."""

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

Knots = tuple[tuple[float, ...], tuple[float, ...]]
"""Places x and T(x), both increasing; outside of them T is the identity."""


def equalizing_knots(values: np.ndarray, step: float | None, origin: float) -> Knots:
    """Return the knots of T for the finite values of a column; none where T would gain nothing.

    With a step, the value v stands for [v, v + step), and no bin is cut in two.
    """
    none: Knots = (), ()
    values = values[np.isfinite(values)].astype(np.float64)
    if len(values) < FEWEST_ROWS:
        return none
    largest = float(np.abs(values).max())
    cell = (
        CELL * largest * float((values / largest).std())
    )  # of values whose squares overflow, too
    depth = MOST_HALVINGS
    finest = SPACINGS * max(float(np.spacing(largest)), np.finfo(np.float64).tiny)
    if step is None:
        origin = float(values.min())
        if cell > finest:
            depth = min(depth, math.floor(math.log2(cell / finest)))
        step = cell / 2**depth
    else:
        depth = math.floor(math.log2(max(cell / step, 1.0)))
    if depth < 1 or step < finest:
        return none
    bins, counts = np.unique(np.floor((values - origin) / step + 1e-6), return_counts=True)
    first, widths, masses = _leaves(bins.astype(np.int64), counts.astype(np.float64), depth)
    if not len(first):
        return none
    at = np.searchsorted(first, bins, side="right") - 1
    inside = (at >= 0) & (bins < first[at] + widths[at])
    gain = (counts * np.log(masses[at] / widths[at]))[inside].sum() / len(values)
    if gain < LEAST_GAIN:
        return none
    ends = first + widths
    gaps = np.flatnonzero(np.append(first[1:] != ends[:-1], True))
    moved = np.concatenate([[0.0], np.cumsum(masses - widths)])
    places = np.concatenate([first, ends[gaps]]).astype(np.float64)
    images = np.concatenate([first + moved[:-1], ends[gaps].astype(np.float64)])
    order = np.argsort(places, kind="stable")
    x = origin + step * places[order]
    z = origin + step * images[order]
    growing = bool((np.diff(x) > 0).all() and (np.diff(z) > 0).all())
    if not growing or len(x) > MOST_KNOTS:
        return none
    return tuple(x.tolist()), tuple(z.tolist())


def _leaves(
    bins: np.ndarray, counts: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First bin, width and mass, in bins, of the leaves of cells that are split."""
    a = PSEUDO_COUNT
    levels = []
    evidence = np.zeros(len(bins))
    # From the bins up to the cells: the evidence of each node, and whether it is split.
    for _ in range(depth):
        nodes, place = np.unique(bins >> 1, return_inverse=True)
        left = np.bincount(place, counts * (bins % 2 == 0), len(nodes))
        n = np.bincount(place, counts, len(nodes))
        below = np.bincount(place, evidence, len(nodes))
        split = betaln(a + left, a + n - left) - betaln(a, a) + n * math.log(2) + below
        split = split + math.log(1 - STOP)
        stop = math.log(STOP)
        share = np.clip((a + left) / (2 * a + n), LEAST_SHARE, 1 - LEAST_SHARE)
        levels.append((nodes, split > stop, share))
        evidence = np.logaddexp(split, stop)
        bins = nodes
        counts = n
    # From the cells that are split down to the leaves: their widths and masses.
    nodes, is_split, _ = levels[-1]
    nodes = nodes[is_split]
    masses = np.full(len(nodes), 2.0**depth)
    found = []
    for height in range(depth, -1, -1):
        goes_on = np.zeros(len(nodes), bool)
        if height and len(nodes):
            known, is_split, share = levels[height - 1]
            at = np.minimum(np.searchsorted(known, nodes), len(known) - 1)
            goes_on = (known[at] == nodes) & is_split[at]
        ends = ~goes_on
        found.append((nodes[ends] << height, np.full(ends.sum(), 2**height), masses[ends]))
        if not goes_on.any():
            break
        lower = share[at[goes_on]]
        nodes = np.stack([2 * nodes[goes_on], 2 * nodes[goes_on] + 1], 1).ravel()
        kept = masses[goes_on]
        masses = np.stack([kept * lower, kept * (1 - lower)], 1).ravel()
    first, widths, masses = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(first)
    return first[order], widths[order], masses[order]
