"""Some rows of the training data with their vectors and classes, by which `fit` measures them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..common.thinning import Thinned

NAMES = ("vector", "y")
"""Conditions that are kept."""
MOST_ROWS = 20_000
MOST_NUMBERS = 4_000_000
"""Of rows, vectors and classes together."""

Rows = tuple[Tensor, dict[str, Tensor]]


def most_rows(size: int) -> int:
    """How many rows of so many numbers are looked at."""
    return max(2, min(MOST_ROWS, MOST_NUMBERS // max(1, size)))


class KeptRows:
    """Rows (B, D) of a stream and their conditions, evenly spaced."""

    def __init__(self) -> None:
        self._kept: Thinned | None = None
        self._sizes: dict[str, int] = {}

    def add(self, x: Tensor, condition: Mapping[str, Tensor]) -> None:
        """Look at further rows."""
        parts = {"x": x} | {name: condition[name] for name in NAMES if name in condition}
        columns = {n: part.reshape(len(x), -1).cpu().double() for n, part in parts.items()}
        both = torch.cat([*columns.values()], 1)
        sizes = {name: part.shape[1] for name, part in columns.items()}
        if self._kept is None:
            self._sizes = sizes
            self._kept = Thinned(max(1, most_rows(both.shape[1]) // 2))
        if sizes == self._sizes:  # other batches raise in training, or have other conditions
            self._kept.add(both)

    def rows(self, size: int) -> Rows | None:
        """Rows of which so many numbers will be made, and their conditions; None if none came."""
        if self._kept is None:
            return None
        both = self._kept.rows()
        both = both[chosen_rows(torch.arange(len(both), device="cpu"), size)]
        parts = torch.split(both, [*self._sizes.values()], 1)
        found = dict(zip(self._sizes, parts, strict=True))
        if "y" in found:
            found["y"] = found["y"][:, 0]
        return found.pop("x"), found


def chosen_rows(rows: Tensor, size: int) -> Tensor:
    """Some of these row numbers, drawn at random, of rows of so many numbers."""
    chance = torch.Generator("cpu").manual_seed(0)
    order = torch.randperm(len(rows), generator=chance, device="cpu")
    return rows[order[: most_rows(size)]]
