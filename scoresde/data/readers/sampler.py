"""Densities, and other objects with `.sample(n)`: new samples at every step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ...common.errors import TrainingError
from ...common.random import DRAWS
from ...model.source import draw
from ..failures import error_text
from .base import MEASURED_SAMPLES, Batch, Entrance, Reader, Share

MEASURED_NUMBERS = 2**28
"""Most numbers that mean and scale are measured from …"""
FEWEST_MEASURED = 1000
"""… but from so many samples at least."""


class SamplerReader(Reader):
    """Draws samples from an object with `.sample(n)`."""

    joins_steps = True
    given: Mapping[str, Tensor] = {}

    def __init__(self, sampler: Any, share: Share, entrance: Entrance) -> None:
        super().__init__(share, entrance)
        self._sampler = sampler

    def batches(self, step: int, position: Mapping[str, int] | None = None) -> Iterator[Batch]:
        """New samples of several steps; ranks draw their own."""
        share = self.share
        k = self.steps_at_once
        for group in itertools.count(step // k):
            yield Batch(self._draw(share.rows * k, group, share.rank), None, {}, k)

    def measured(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """Samples drawn for this alone, the same on all ranks."""
        fitting = max(FEWEST_MEASURED, MEASURED_NUMBERS // self.entrance.dim)
        n = min(MEASURED_SAMPLES, fitting)
        step = self.entrance.part_rows
        for i in range(0, n, step):
            yield self._draw(min(step, n - i), -1 - i, 0), {}

    def fingerprint(self) -> dict[str, Any]:
        """The name of the class."""
        return {"kind": type(self._sampler).__name__}

    def _draw(self, n: int, group: int, rank: int) -> Tensor:
        """Draw n samples that depend on the seed, the group and the rank alone."""
        what = f"{type(self._sampler).__name__}.sample({n})"
        try:
            x = draw(self._sampler, n, self.share.seed, DRAWS, group, rank)
        except Exception as error:
            raise TrainingError(f"the data failed: {what} raised {error_text(error)}") from error
        if isinstance(x, Tensor):
            x = x.detach().to(self.entrance.device)
        x = self.entrance.samples(x, group, rank, what=what)
        if len(x) != n:
            raise ValueError(f"{what} returned {len(x)} samples")
        return x
