"""The categories of a row as one class label, and their distribution.

Columns of s_1 … s_C categories have Π_j s_j combinations. The label of c = (c_1 … c_C) is its place
in their order, y = (…(c_1·s_2 + c_2)·s_3 + …)·s_C + c_C, which a network with classes=(s_1 … s_C)
takes apart again: what it learns of a category serves all combinations. Their distribution is

    p(c) = (1 − ε)·n(c)/N' + ε·Π_j p(c_j | c_{parent of j}),

the shares of those N' rows whose combination occurred more than once, and a tree of columns, that
of greatest mutual information (Chow & Liu 1968), with

    p(a | b) = (n(a, b) + κ·n(a)/N)/(n(b) + κ)

along its edges. ε and the κ of each edge are those under which rows are most probable if each is
left out in turn (deleted interpolation, Jelinek & Mercer 1980).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from ...backbones.labels import LARGEST
from .category_tree import CategoryTree

TINY = 1e-300
"""Probability of a combination that is left out of the only two rows with it."""
MOST_WORDS = 1000
"""Combinations that have a name each."""
ROUNDS = 200
"""Of expectation maximization for ε."""
MOST_CANDIDATES = 100_000
"""Combinations that rows with gaps may have, in all."""


class Categories:
    """Numbers and probabilities of combinations; the class label of one is its number.

    `numbers` (K,) and `counts` (K,) are of those that occurred more than once, `share` is ε, `tree`
    is the other part of the mixture, and `most` is how many combinations there are.
    """

    def __init__(
        self,
        tree: CategoryTree,
        numbers: np.ndarray,
        counts: np.ndarray,
        share: float,
    ) -> None:
        self.tree = tree
        self.sizes = tree.sizes
        self.numbers = numbers
        self.counts = counts
        self.share = share
        self.most = math.prod(self.sizes)

    @staticmethod
    def of(codes: np.ndarray, sizes: Sequence[int]) -> Categories:
        """From the category numbers of rows (N, C)."""
        check_labels_fit(sizes)
        tree = CategoryTree.of(codes, sizes)
        numbers, at, counts = np.unique(
            numbered(codes, sizes), return_index=True, return_counts=True
        )
        often = counts > 1
        if len(sizes) == 1 or not often.any():
            return Categories(tree, numbers[:0], counts[:0], 1.0)
        left_out = np.log(np.where(counts > 2, (counts - 1) / (counts[often].sum() - 1), TINY))
        share = _share(left_out, tree.left_out(codes[at]), counts)
        return Categories(tree, numbers[often], counts[often], share)

    @property
    def classes(self) -> int | tuple[int, ...]:
        """What `build(..., classes=)` takes."""
        return self.sizes[0] if len(self.sizes) == 1 else self.sizes

    def find(self, codes: np.ndarray) -> np.ndarray:
        """The number of the combination in each row (N, C)."""
        return numbered(codes, self.sizes)

    def labels(self, numbers: np.ndarray) -> np.ndarray:
        """The class labels of numbers: the same."""
        return numbers

    def codes(self, numbers: np.ndarray) -> np.ndarray:
        """The category numbers (N, C) of combinations."""
        columns = []
        for size in reversed(self.sizes):
            columns.append(numbers % size)
            numbers = numbers // size
        return np.stack(columns[::-1], 1)

    def log_prob(self, numbers: np.ndarray) -> np.ndarray:
        """log p of combinations, −∞ for those with a category that no row had."""
        found = math.log(self.share) + self.tree.log_prob(self.codes(numbers))
        if not len(self.numbers):
            return found
        place = np.searchsorted(self.numbers, numbers).clip(max=len(self.numbers) - 1)
        known = self.numbers[place] == numbers
        often = (1 - self.share) * self.counts[place] / self.counts.sum()
        often = np.log(often, out=np.full(len(found), -np.inf), where=known & (often > 0))
        mixed: np.ndarray = np.logaddexp(found, often)
        return mixed

    @property
    def chances(self) -> int:
        """How many uniform numbers a draw takes."""
        return 1 + len(self.sizes)

    def draw(self, chance: np.ndarray) -> np.ndarray:
        """Combinations from uniform numbers (n, chances)."""
        found = self.find(self.tree.draw(chance[:, 1:]))
        if not len(self.numbers):
            return found
        edges = (1 - self.share) * self.counts.cumsum() / self.counts.sum()
        place = np.searchsorted(edges, chance[:, 0], side="right")
        often = place < len(self.numbers)
        known = self.numbers[place.clip(max=len(self.numbers) - 1)]
        drawn: np.ndarray = np.where(often, known, found)
        return drawn

    def candidates(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and numbers of all combinations that rows (N, C) with gaps, −1, may have."""
        gaps = codes < 0
        sizes = np.array(self.sizes)
        counts = np.where(gaps, sizes, 1).prod(1, dtype=float)
        total = counts[gaps.any(1)].sum()
        if total > MOST_CANDIDATES:
            raise ValueError(
                f"rows that lack categories ({int(gaps.any(1).sum())}) may have {total:.3g} "
                f"combinations, and {MOST_CANDIDATES:,} are compared at once: give fewer rows, or "
                "fill in some columns"
            )
        rows, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for pattern in np.unique(gaps, axis=0):
            at = np.flatnonzero((gaps == pattern).all(1))
            choices = [range(size) for size in sizes[pattern]]
            grid = np.array([*itertools.product(*choices)], np.int64)
            filled = np.repeat(codes[at], len(grid), 0)
            filled[:, pattern] = np.tile(grid, (len(at), 1))
            rows.append(np.repeat(at, len(grid)))
            numbers.append(self.find(filled))
        order = np.concatenate(rows).argsort(kind="stable")
        return np.concatenate(rows)[order], np.concatenate(numbers)[order]

    def words(self, parts: Sequence[Sequence[str]]) -> tuple[str, ...]:
        """A text for each combination, from those of each column; none if there are too many."""
        if self.most > MOST_WORDS:
            return ()
        codes = self.codes(np.arange(self.most))
        return tuple(
            ", ".join(part[code] for part, code in zip(parts, row, strict=True))
            for row in codes.tolist()
        )

    def describe(self) -> dict[str, Any]:
        """Return all as plain JSON."""
        about = {"numbers": self.numbers.tolist(), "counts": self.counts.tolist()}
        return {"categories": {**about, "share": self.share, "tree": self.tree.describe()}}

    @staticmethod
    def rebuild(about: Any, sizes: Sequence[int]) -> Categories:
        """Return what `describe` wrote, checked."""
        wrong = ValueError("its table has counts of categories that can't be")
        names = {"numbers", "counts", "share", "tree"}
        if not isinstance(about, Mapping) or about.keys() != names:
            raise wrong
        check_labels_fit(sizes)
        numbers, counts, share = about["numbers"], about["counts"], about["share"]
        lists = isinstance(numbers, list) and isinstance(counts, list)
        if not lists or len(numbers) != len(counts):
            raise wrong
        whole = all(type(each) is int for each in (*numbers, *counts))
        if not whole or not all(each > 1 for each in counts) or sum(counts) >= LARGEST:
            raise wrong
        ordered = all(a < b for a, b in itertools.pairwise(numbers))
        inside = not numbers or (numbers[0] >= 0 and numbers[-1] < math.prod(sizes))
        fits = type(share) is float and 0 < share <= 1
        if not ordered or not inside or not fits or (not numbers and share < 1):
            raise wrong
        tree = CategoryTree.rebuild(about["tree"], sizes)
        return Categories(tree, np.array(numbers, np.int64), np.array(counts, np.int64), share)


def numbered(codes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The number of the combination in each row (N, C)."""
    found = np.zeros(len(codes), np.int64)
    for column, size in zip(codes.T, sizes, strict=True):
        found = found * size + column
    return found


def check_labels_fit(sizes: Sequence[int]) -> None:
    """Raise unless all combinations have a number."""
    if math.prod(sizes) >= LARGEST:
        raise ValueError(
            f"the {len(sizes)} categorical columns have {math.prod(sizes):.2g} combinations, and "
            "labels end at 2^53: leave columns out, join rare categories, drop those that no row "
            "has, df[name].cat.remove_unused_categories(), or give integers as numbers"
        )


def _share(often: np.ndarray, tree: np.ndarray, counts: np.ndarray) -> float:
    """The ε under which combinations with these log p and counts are most probable."""
    total = counts.sum()
    never = often <= math.log(TINY)
    sure = float(counts[never].sum())
    counts, ahead = counts[~never], (often - tree)[~never]
    share = 0.5
    for _ in range(ROUNDS):
        of_tree = expit(math.log(share) - math.log1p(-share) - ahead)
        share = (sure + float((counts * of_tree).sum())) / float(total)
        share = min(max(share, 0.5 / (float(total) + 1)), 1 - 1e-9)
    return share
