"""Shuffles of n rows, one after another, as an endless sequence with random access."""

from __future__ import annotations

import torch
from torch import Tensor

from ...common.random import ORDER, seeded

SMALLEST_BLOCK = 4096
"""Rows that are shuffled at once at least: few rows are shuffled several times in one call."""


class Shuffles:
    """Row numbers: every n in a row, from a multiple of n on, are all rows of a table, shuffled."""

    def __init__(self, n: int, seed: int, device: torch.device) -> None:
        self._n = n
        self._seed = seed
        self._device = device
        self._epochs = max(1, SMALLEST_BLOCK // n)
        self._block = -1
        self._rows = torch.empty(0, device="cpu")

    def __call__(self, start: int, stop: int) -> Tensor:
        """Row numbers at places start to stop − 1 of the sequence."""
        size = self._n * self._epochs
        parts = []
        for block in range(start // size, -(-stop // size)):
            if self._block != block:
                self._rows = self._shuffled(block)
                self._block = block
            parts.append(self._rows[max(start - block * size, 0) : stop - block * size])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _shuffled(self, block: int) -> Tensor:
        """All shuffles of a block, one after another."""
        g = seeded(self._device, self._seed, ORDER, block)
        if self._epochs == 1:
            return torch.randperm(self._n, generator=g, device=self._device)
        keys = torch.rand(self._epochs, self._n, generator=g, device=self._device)
        return keys.argsort(1).flatten()
