"""Tables of earlier versions: one class label for each combination of categories that occurred.

Of N rows, n₁ have a combination that no other row has. By Good's estimate (1953) a share of about
ε = n₁/N of new rows has a combination that never occurred. These share ε as if columns were
independent, p(c) ∝ Π_j p_j(c_j), and their numbers have the distribution of the most similar
combination that occurred. The others have the probability (1 − ε)·count/N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST_COMBINATIONS = 1000
"""Class labels that one network is asked to tell apart."""
MOST_POSSIBLE = 10_000
"""Beyond so many possible combinations, those that never occurred have probability 0."""
MOST_UNSEEN = 0.5
"""The most that ε may be, for tables of few rows."""


class Combinations:
    """The combinations of categories, and what they are for a model: M, of which K occurred.

    `seen` (K, C) and `counts` (K,) are those that occurred, with the class labels 0 … K − 1. The
    others have the label of the most similar one. `probabilities` (M,) sum to 1.
    """

    def __init__(self, seen: np.ndarray, counts: np.ndarray) -> None:
        self.seen = seen
        self.counts = counts
        self.classes = len(seen)
        total = int(counts.sum())
        others, weights = _unseen(seen, counts)
        share = 0.0
        if len(others):
            once = int((counts == 1).sum())
            share = min(MOST_UNSEEN, (once + 0.5) / (total + 1))
        self._codes = np.concatenate([seen, others])
        self.most = len(self._codes)
        similar = _most_similar(others, seen, counts)
        self._labels = np.concatenate([np.arange(len(seen)), similar])
        known = (1 - share) * counts / total
        self.probabilities = np.concatenate([known, share * weights])

    classes: int
    """Number of combinations that occurred, K."""
    chances = 1
    """How many uniform numbers a draw takes."""

    def find(self, codes: np.ndarray) -> np.ndarray:
        """The number of the combination in each row (N, C); −1 where its probability is 0."""
        return _places(self._codes, codes)

    def labels(self, numbers: np.ndarray) -> np.ndarray:
        """The class labels of combinations."""
        found: np.ndarray = self._labels[numbers]
        return found

    def codes(self, numbers: np.ndarray) -> np.ndarray:
        """The category numbers (N, C) of combinations."""
        found: np.ndarray = self._codes[numbers]
        return found

    def log_prob(self, numbers: np.ndarray) -> np.ndarray:
        """log p of combinations; −∞ for the number −1."""
        found: np.ndarray = np.where(numbers < 0, -np.inf, np.log(self.probabilities[numbers]))
        return found

    def draw(self, chance: np.ndarray) -> np.ndarray:
        """Combinations from uniform numbers (n, 1)."""
        edges = self.probabilities.cumsum()[:-1]
        return np.searchsorted(edges, chance[:, 0], side="right")

    def candidates(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and numbers of all combinations that rows (N, C) with gaps, −1, may have."""
        allowed = np.ones((len(codes), self.most), bool)
        for column, numbers in zip(self._codes.T, codes.T, strict=True):
            allowed &= (numbers[:, None] < 0) | (numbers[:, None] == column)
        rows, numbers = allowed.nonzero()
        return rows, numbers

    def words(self, parts: Sequence[Sequence[str]]) -> tuple[str, ...]:
        """A text for each class label, from those of each column."""
        return tuple(
            ", ".join(part[code] for part, code in zip(parts, row, strict=True))
            for row in self.seen.tolist()
        )

    def describe(self) -> dict[str, Any]:
        """Return all as plain JSON."""
        return {"combinations": self.seen.tolist(), "counts": self.counts.tolist()}


def _places(known: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The place of each row of codes among the known rows; −1 for others."""
    together = np.concatenate([known, codes])
    unique, inverse = np.unique(together, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    place = np.full(len(unique), -1, np.int64)
    place[inverse[: len(known)]] = np.arange(len(known))
    found: np.ndarray = place[inverse[len(known) :]]
    return found


def _unseen(seen: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Combinations of categories that occurred apart and never together, with their shares."""
    none = np.zeros((0, seen.shape[1]), np.int64)
    used = [np.unique(column) for column in seen.T]
    if math.prod(map(len, used)) > MOST_POSSIBLE:
        return none, np.zeros(0)
    grid = np.meshgrid(*used, indexing="ij")
    codes = np.stack([axis.reshape(-1) for axis in grid], 1)
    codes = codes[_places(seen, codes) < 0]
    if not len(codes):
        return none, np.zeros(0)
    weights = np.ones(len(codes))
    for column, numbers in zip(seen.T, codes.T, strict=True):
        weights = weights * np.bincount(column, counts)[numbers] / counts.sum()
    return codes, weights / weights.sum()


def _most_similar(
    codes: np.ndarray,
    seen: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """For each row the seen combination with the most equal categories, the frequentest of them."""
    same = np.zeros((len(codes), len(seen)))
    for column, numbers in zip(seen.T, codes.T, strict=True):
        same += numbers[:, None] == column
    found: np.ndarray = (same + counts / (counts.sum() + 1)).argmax(1)
    return found


def rebuild_combinations(about: Mapping[str, Any], sizes: Sequence[int]) -> Combinations | None:
    """Combinations and counts of a file, checked."""
    if not sizes:
        if {"combinations", "counts"} & about.keys():
            raise ValueError("its table has combinations of no categorical columns")
        return None
    rows = about.get("combinations")
    counts = about.get("counts")
    wrong = ValueError("its table has combinations or counts that can't be")
    if not isinstance(rows, list) or not isinstance(counts, list):
        raise wrong
    if not 0 < len(rows) <= MOST_COMBINATIONS or len(counts) != len(rows):
        raise wrong
    for row in rows:
        fits = isinstance(row, list) and len(row) == len(sizes)
        if not fits or any(type(code) is not int for code in row):
            raise wrong
        if any(not 0 <= code < size for code, size in zip(row, sizes, strict=True)):
            raise wrong
    whole = all(type(count) is int and 0 < count < 2**53 for count in counts)
    if not whole or len({*map(tuple, rows)}) < len(rows):
        raise wrong
    return Combinations(np.array(rows, np.int64), np.array(counts, np.int64))
