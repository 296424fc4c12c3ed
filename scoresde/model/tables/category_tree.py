"""A tree of categorical columns, p(c) = Π_j p(c_j | c_{parent of j}), from counts of pairs.

Only pairs of categories that occurred are kept, so that columns may have many categories. A pair
(b, a) of a column and its parent has the number b·s + a, s being the column's size; a column
without a parent has b = 0.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

STRENGTHS = tuple(2.0**k for k in range(-1, 11))
"""The values of κ."""
GAIN = 8.0
"""Nats that a parent must add over all rows, beside log of the number of pairs of columns; chance
alone adds some."""


class Edge:
    """p(a | b) of a column and its parent, from the counts of pairs.

    `below` is the share of rows with each a, `above` the number of rows with each b, and `until`
    the number of rows whose pair comes before each.
    """

    def __init__(
        self,
        size: int,
        above: int,
        pairs: np.ndarray,
        counts: np.ndarray,
        strength: float,
    ) -> None:
        self.size = size
        self.pairs = pairs
        self.counts = counts
        self.strength = strength
        self.rows = int(counts.sum())
        self.below = np.bincount(pairs % size, counts, size) / self.rows
        self.above = np.bincount(pairs // size, counts, above)
        self.until = np.concatenate([[0], counts.cumsum()])

    @staticmethod
    def of(column: np.ndarray, size: int, parent: np.ndarray, above: int) -> Edge:
        """Of the category numbers in rows; its κ is the best of STRENGTHS if rows are left out."""
        pairs, counts = counted(parent * size + column, size * above)
        edges = [Edge(size, above, pairs, counts, strength) for strength in STRENGTHS]
        return max(edges, key=lambda edge: edge.score)

    @functools.cached_property
    def score(self) -> float:
        """The sum over rows of log p(a | b), each left out in turn."""
        return float((self.counts * self.left_out(self.pairs)).sum())

    def log_prob(self, pairs: np.ndarray, left_out: int = 0) -> np.ndarray:
        """log p(a | b) of pairs, from the counts of so many rows fewer with each of them."""
        place = np.searchsorted(self.pairs, pairs).clip(max=len(self.pairs) - 1)
        same = np.where(self.pairs[place] == pairs, self.counts[place], 0) - left_out
        rows = self.above[pairs // self.size] - left_out
        below = self.below[pairs % self.size]
        if left_out:  # once, not twice; ½ for a category that occurred once
            below = (self.rows * below - left_out).clip(0.5) / (self.rows - left_out + 1e-9)
        smooth = self.strength * below
        found = (same + smooth) / (rows + self.strength)
        logs: np.ndarray = np.log(found, out=np.full(len(found), -np.inf), where=found > 0)
        return logs

    def left_out(self, pairs: np.ndarray) -> np.ndarray:
        """log p of pairs that occurred, as if each row were left out in turn."""
        return self.log_prob(pairs, 1)

    def draw(self, parent: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """Categories given the parent's (n,), from uniform numbers (n,)."""
        rows = self.above[parent]
        target = chance * (rows + self.strength)
        first = self.until[np.searchsorted(self.pairs, parent * self.size)]
        place = np.searchsorted(self.until, first + target, side="right") - 1
        own = self.pairs[place.clip(max=len(self.pairs) - 1)] % self.size
        rest = ((target - rows) / self.strength).clip(0)
        edges = self.below.cumsum()
        other = np.searchsorted(edges / edges[-1], rest, side="right")
        last = int(self.below.nonzero()[0][-1])
        found: np.ndarray = np.where(target < rows, own, other.clip(max=last))
        return found


class CategoryTree:
    """Columns with their parents, −1 for none, and p(column | parent)."""

    def __init__(
        self, sizes: Sequence[int], parents: Sequence[int], edges: Sequence[Edge]
    ) -> None:
        self.sizes = tuple(sizes)
        self.parents = tuple(parents)
        self.edges = tuple(edges)
        self.order = _from_the_roots(self.parents)

    @staticmethod
    def of(codes: np.ndarray, sizes: Sequence[int]) -> CategoryTree:
        """The tree of greatest mutual information among the columns of rows (N, C)."""
        parents = _greatest_tree(_mutual_information(codes, sizes))
        edges = []
        for j, parent in enumerate(parents):
            alone = Edge.of(codes[:, j], sizes[j], *_above(codes, sizes, -1))
            edge = Edge.of(codes[:, j], sizes[j], *_above(codes, sizes, parent))
            if edge.score <= alone.score + GAIN + math.log(math.comb(len(sizes), 2) or 1):
                parents[j], edge = -1, alone
            edges.append(edge)
        return CategoryTree(sizes, parents, edges)

    def log_prob(self, codes: np.ndarray) -> np.ndarray:
        """log p of rows (N, C)."""
        return self._summed(codes, 0)

    def left_out(self, codes: np.ndarray) -> np.ndarray:
        """log p of rows that occurred, as if each were left out in turn."""
        return self._summed(codes, 1)

    def _summed(self, codes: np.ndarray, left_out: int) -> np.ndarray:
        """The sum over edges."""
        found = np.zeros(len(codes))
        for j, (parent, edge) in enumerate(zip(self.parents, self.edges, strict=True)):
            above, _ = _above(codes, self.sizes, parent)
            found = found + edge.log_prob(above * edge.size + codes[:, j], left_out)
        return found

    def draw(self, chance: np.ndarray) -> np.ndarray:
        """Rows (n, C) from uniform numbers (n, C)."""
        codes = np.zeros(chance.shape, np.int64)
        for j in self.order:
            above, _ = _above(codes, self.sizes, self.parents[j])
            codes[:, j] = self.edges[j].draw(above, chance[:, j])
        return codes

    def describe(self) -> list[dict[str, Any]]:
        """Return an entry for each column as plain JSON."""
        found = []
        for parent, edge in zip(self.parents, self.edges, strict=True):
            about = {"pairs": edge.pairs.tolist(), "counts": edge.counts.tolist()}
            found.append({"parent": parent, **about, "strength": edge.strength})
        return found

    @staticmethod
    def rebuild(about: Any, sizes: Sequence[int]) -> CategoryTree:
        """Return what `describe` wrote, checked."""
        wrong = ValueError("its table has a tree of categories that can't be")
        if not isinstance(about, list) or len(about) != len(sizes):
            raise wrong
        parents, edges = [], []
        for j, each in enumerate(about):
            names = {"parent", "pairs", "counts", "strength"}
            if not isinstance(each, Mapping) or each.keys() != names:
                raise wrong
            parent = each["parent"]
            if type(parent) is not int or not -1 <= parent < len(sizes) or parent == j:
                raise wrong
            above = 1 if parent < 0 else sizes[parent]
            edge = _rebuild_edge(each, sizes[j], above)
            if edge is None:
                raise wrong
            parents.append(parent)
            edges.append(edge)
        if len(_from_the_roots(parents)) < len(parents):
            raise wrong
        return CategoryTree(sizes, parents, edges)


def _rebuild_edge(about: Mapping[str, Any], size: int, above: int) -> Edge | None:
    """An edge of a file; None unless it can be."""
    pairs, counts, strength = about["pairs"], about["counts"], about["strength"]
    lists = isinstance(pairs, list) and isinstance(counts, list)
    if not lists or not pairs or len(pairs) != len(counts) or type(strength) is not float:
        return None
    if strength not in STRENGTHS or not all(type(each) is int for each in (*pairs, *counts)):
        return None
    if not all(each > 0 for each in counts) or sum(counts) >= 2**53:
        return None
    ordered = all(a < b for a, b in itertools.pairwise(pairs))
    if not ordered or pairs[0] < 0 or pairs[-1] >= size * above:
        return None
    return Edge(size, above, np.array(pairs, np.int64), np.array(counts, np.int64), strength)


def counted(numbers: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers below `most` that occur, in order, and how often."""
    if most > 4 * len(numbers):
        return np.unique(numbers, return_counts=True)
    counts = np.bincount(numbers, minlength=most)
    found = counts.nonzero()[0]
    return found, counts[found]


def _above(codes: np.ndarray, sizes: Sequence[int], parent: int) -> tuple[np.ndarray, int]:
    """The parent's category in each row, and how many it has; one for all without a parent."""
    if parent < 0:
        return np.zeros(len(codes), np.int64), 1
    return codes[:, parent], sizes[parent]


def _from_the_roots(parents: Sequence[int]) -> list[int]:
    """Columns in an order in which each comes after its parent; those in circles are left out."""
    order = [j for j, parent in enumerate(parents) if parent < 0]
    for j in order:
        order.extend(k for k, parent in enumerate(parents) if parent == j)
    return order


def _mutual_information(codes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """That of each pair of columns in nats (C, C), less what independent ones have by chance."""
    n, count = codes.shape
    found = np.zeros((count, count))
    alone = [np.bincount(column) for column in codes.T]
    used = [np.count_nonzero(counts) - 1 for counts in alone]
    for i, j in itertools.combinations(range(count), 2):
        pairs, both = counted(codes[:, i] * sizes[j] + codes[:, j], sizes[i] * sizes[j])
        apart = alone[i][pairs // sizes[j]] * alone[j][pairs % sizes[j]]
        whole = float((both / n * np.log(both * n / apart)).sum())
        found[i, j] = found[j, i] = whole - used[i] * used[j] / (2 * n)
    return found


def _greatest_tree(weights: np.ndarray) -> list[int]:
    """The parent of each column in the tree of greatest weight (Prim); edges are positive."""
    parents = [-1] * len(weights)
    best = np.zeros(len(weights))
    open_columns = [*range(len(weights))]
    while open_columns:
        j = max(open_columns, key=lambda k: best[k])
        open_columns.remove(j)
        for k in open_columns:
            if weights[j, k] > best[k]:
                best[k] = weights[j, k]
                parents[k] = j
    return parents
