"""Categories as one class label: the number of the combination in a row."""

from __future__ import annotations

import numpy as np

MOST_COMBINATIONS = 1000
"""Class labels that one network is asked to tell apart."""


class Combinations:
    """The combinations of categories that occurred (K, C), and how often each did (K,)."""

    def __init__(self, codes: np.ndarray, counts: np.ndarray) -> None:
        self.codes = codes
        self.counts = counts

    @staticmethod
    def of(codes: np.ndarray) -> Combinations:
        """The combinations in the rows (N, C) of category numbers."""
        found, counts = np.unique(codes, axis=0, return_counts=True)
        if len(found) > MOST_COMBINATIONS:
            raise ValueError(
                f"the categorical columns have {len(found):,} different combinations, and one "
                f"class label stands for at most {MOST_COMBINATIONS:,}: leave columns out, join "
                "rare categories, or give integers as numbers"
            )
        return Combinations(found, counts)

    def __len__(self) -> int:
        """Number of combinations."""
        return len(self.codes)

    def labels(self, codes: np.ndarray) -> np.ndarray:
        """The combination in each row (N, C) of category numbers; −1 for one that is not known."""
        together = np.concatenate([self.codes, codes])
        unique, inverse = np.unique(together, axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        known = len(self)
        place = np.full(len(unique), -1, np.int64)
        place[inverse[:known]] = np.arange(known)
        found: np.ndarray = place[inverse[known:]]
        return found

    @property
    def frequencies(self) -> np.ndarray:
        """The share of each combination in the table's rows: its probability, above 0."""
        found: np.ndarray = self.counts / self.counts.sum()
        return found
