"""Pairs of a sample and where its path begins, and the standardization of a model of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...common.user_warnings import warn
from ...model.module import STATISTICS
from ..pairs import Pairs
from .base import MEASURED_SAMPLES, Entrance, Share
from .table import TableReader

FEW = 64
"""Fewer pairs than this can't tell whether they belong to a model."""


class PairsReader(TableReader):
    """Reads `Pairs`, shuffled anew in each epoch."""

    def __init__(self, pairs: Pairs, share: Share, entrance: Entrance) -> None:
        starts = pairs.latent
        if isinstance(starts, Tensor):
            starts = starts.to(entrance.device, entrance.promoted(starts.dtype))
        self.starts = starts
        self._unit = pairs.unit
        super().__init__(pairs.x, pairs.given, share, entrance)

    def starts_of(self, rows: Tensor) -> Tensor | None:
        """Where the paths of some rows begin at t = 1."""
        start = self.take(rows, self.starts)
        return start.to(self.entrance.promoted(start.dtype))

    def hashed_tables(self) -> list[Any]:
        """Samples and starts, row by row."""
        return [self.rows, self.starts]

    def standardize(self, sde: Any) -> None:
        """Standardize a model without source so that x_1/r(1) ~ N(0, 1); raise if it can't fit."""
        known = bool(sde.measured)
        if self._unit is not None and not known:  # `reflow` drew them, and says from where
            choice = "scale"
            if len(self._unit) > 2:
                square = len(self._unit[2]) == len(self._unit[2][0])
                choice = "whiten" if square else "factors"
            sde.choose_standardization(choice, coupled=False)
            for name, value in zip(STATISTICS, self._unit, strict=False):
                getattr(sde, name).copy_(value)
            sde.measured.fill_(True)
            return
        parts = self._some_starts()
        if not known:
            warn(
                "these pairs don't say what their x_1 are drawn from: a Gaussian of their mean and "
                "scale is assumed; if that is wrong, set sde.source = pairs.latent or a density",
            )
            radius = float(sde.process.radius(torch.ones((), dtype=torch.float64, device="cpu")))
            sde.standardize(part / radius for part in parts)
            return
        z = torch.cat([sde.from_start(part) for part in parts])
        mean = float(z.mean())
        std = float(z.std(correction=0))
        if len(self.rows) >= FEW and (abs(mean) > 0.25 or not 0.75 < std < 1.33):
            raise ValueError(
                f"these pairs begin in another distribution than the model: their x_1 have mean "
                f"{mean:.2g} and standard deviation {std:.2g} in its units; set sde.source = "
                "pairs.latent, or train a new model on them"
            )

    def _some_starts(self) -> list[Tensor]:
        """Starts of the first pairs, in parts."""
        step = self.entrance.part_rows
        stop = min(len(self.rows), max(step, MEASURED_SAMPLES))
        parts = [self.take(slice(i, i + step), self.starts) for i in range(0, stop, step)]
        return [part.to(self.entrance.promoted(part.dtype)) for part in parts]
