"""What `fit` measures of a numeric condition, in one pass over the data.

Mean, scale and ends are those of all rows. The normal scores of some entries are those of rows that
are drawn at random, so that memory stays small.

An entry becomes scores if its standard deviation is `HEAVY` times the spread of its nearest half:
the width of the shortest interval with half of the rows, over 1.35. For a normal distribution it is
once, for an exponential one twice, and more for outliers, for codes such as −999, and for narrow
modes. Where half of the rows have one value, the half is one of the others. The spread is at least
the smallest gap between two values, so that labels and small counts stay as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..common.normal_scores import QUARTILES, beyond, interpolated, normal_scores, shared
from .condition_scales import ENDS, SCORES, STEP, ConditionScales
from .standardization import Moments

HEAVY = 5.0
"""Below, scores gain little and may lose: straight lines are learnt better from the numbers."""
MOST_SCORED = 100
"""Entries of one condition: those with the heaviest tails."""
FEWEST = 100
"""Rows; of fewer, a normal distribution may look heavy, and knots coincide."""
MOST_ROWS = 20_000
MOST_NUMBERS = 4_000_000
"""Numbers of all kept rows together."""


class ConditionMeasure:
    """Moments of one condition, and some of its rows if these are vectors."""

    def __init__(self) -> None:
        self._moments = Moments(1)
        self._kept: list[Tensor] = []
        self._lots: list[Tensor] = []
        self._count = 0
        self._share = 1.0
        self._chance = torch.Generator("cpu").manual_seed(0)

    def add(self, value: Tensor) -> None:
        """Count in further rows (B, …)."""
        self._moments.add(value)
        if value.ndim != 2 or not len(value):
            return
        lots = torch.empty(len(value), dtype=torch.float64, device="cpu")
        lots.uniform_(generator=self._chance)
        drawn = lots < self._share
        rows = value.detach().cpu()[drawn]
        self._kept.append(rows.double())
        self._lots.append(lots[drawn])
        self._count += len(rows)
        most = MOST_NUMBERS // max(1, value.shape[1])
        most = min(MOST_ROWS, max(FEWEST, most))
        while self._count > 2 * most:
            self._halve()

    def settle(self, conditions: ConditionScales, name: str) -> None:
        """Keep what was measured in a model."""
        mean, std, varies, _ = self._moments.statistics()
        more = {ENDS: self._ends()} if self._kept else {}
        heavy = self._heavy(std.cpu(), varies.cpu())
        if len(heavy):
            found, middle, spread = self._scores(heavy)
            mean, std = mean.clone(), std.clone()
            mean[heavy] = middle.to(mean)
            std[heavy] = torch.where(spread > 0, spread, 1.0).to(std)
            more |= {what: value.to(mean.device) for what, value in found.items()}
        conditions.settle(name, mean, std, varies, more)

    def _ends(self) -> Tensor:
        """The least and the greatest numbers, (2, K)."""
        return torch.stack([self._moments.low, self._moments.high])

    def _scores(self, heavy: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The scores of these entries, and their mean and standard deviation."""
        columns = torch.cat(self._kept)[:, heavy]
        found = normal_scores(columns)
        knots = found["knots"]
        levels = shared(knots, found["levels"])
        ends = self._ends().cpu()[:, heavy]
        seen = interpolated(columns, knots, levels)
        seen = seen + beyond(columns, knots, ends, STEP)
        scores = dict(zip(SCORES, (heavy, knots, levels), strict=True))
        spread = seen.std(0, correction=0)
        return scores, seen.mean(0), spread

    def _heavy(self, std: Tensor, varies: Tensor) -> Tensor:
        """Indices of the entries that become scores."""
        rows = torch.cat(self._kept) if self._kept else std.new_zeros(0, 0)
        if len(rows) < FEWEST or not rows.shape[1]:
            return torch.zeros(0, dtype=torch.long, device="cpu")
        ratio = torch.where(varies, std, 0.0) / _spread(rows)
        index = (ratio > HEAVY).nonzero()[:, 0]
        heaviest = ratio[index].argsort(descending=True)[:MOST_SCORED]
        return index[heaviest].sort().values

    def _halve(self) -> None:
        """Keep half of the rows."""
        self._share /= 2
        lots = torch.cat(self._lots)
        drawn = lots < self._share
        self._kept = [torch.cat(self._kept)[drawn]]
        self._lots = [lots[drawn]]
        self._count = len(self._lots[0])


def _spread(rows: Tensor) -> Tensor:
    """The spread of the nearest half of each column, as the module says; infinite of constants."""
    ordered = rows.sort(0).values
    spread = _half_width(ordered)
    for i in (spread == 0).nonzero()[:, 0].tolist():
        column = ordered[:, i]
        others = column[column != column.mode().values]
        if len(others) > 1:
            spread[i] = _half_width(others[:, None])[0]
    gaps = ordered.diff(dim=0)
    gap = torch.where(gaps > 0, gaps, math.inf).amin(0)
    return torch.maximum(spread, gap)


def _half_width(ordered: Tensor) -> Tensor:
    """The width of the shortest interval with half of the numbers of each column, over 1.35."""
    half = len(ordered) // 2
    width: Tensor = (ordered[half:] - ordered[: len(ordered) - half]).amin(0)
    return width / QUARTILES
