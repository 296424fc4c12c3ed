"""Some rows of a stream of unknown length."""

from __future__ import annotations

import torch
from torch import Tensor


class Thinned:
    """Some rows of a stream, evenly spaced, at most twice as many as wanted."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._every = 1
        self._seen = 0
        self._kept = 0
        self._parts: list[Tensor] = []

    def add(self, part: Tensor) -> None:
        """Look at further rows."""
        rows = part[-self._seen % self._every :: self._every]
        self._seen += len(part)
        if len(rows):
            self._parts.append(rows.cpu())
            self._kept += len(rows)
        if self._kept > 2 * self._wanted:
            kept = torch.cat(self._parts)[::2]
            self._parts = [kept]
            self._kept = len(kept)
            self._every *= 2

    def rows(self) -> Tensor:
        """What was kept."""
        return torch.cat(self._parts)
