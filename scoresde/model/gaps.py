"""Rows with gaps: their mean and scale, and what a network for gaps is told of them.

Only the data themselves are masked: entries of a standardized row are those of the row, each with
a mean and scale of its own. A map that mixes columns, such as a whitening, would spread one gap
over all entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..backbones.masked import MISSING, MODELLED, SEEN
from ..common.user_warnings import warn
from .standardization import Moments


def standardize_observed(sde: Any, parts: Iterable[Tensor]) -> None:
    """Measure mean and scale of a model per first axis, from the entries that there are."""
    moments = [Moments(None) for _ in range(sde.shape[0])]
    for part in parts:
        for column, mine in zip(part.unbind(1), moments, strict=True):
            mine.add(column[~column.isnan()])
    empty = [i for i, mine in enumerate(moments) if not mine.count]
    if empty:
        raise ValueError(f"features {empty} of the data have no value in any row: leave them out")
    measured = [mine.statistics() for mine in moments]
    mean = torch.stack([m.mean for m in measured])
    std = torch.stack([m.std for m in measured])
    varies = torch.stack([m.varies for m in measured])
    if not bool((mean.isfinite() & std.isfinite()).all()):
        raise ValueError("data has infinite values, and no mean or scale")
    if not bool(varies.any()):
        raise ValueError("the data do not vary: equal rows (to rounding) have no density to learn")
    if not bool(varies.all()):
        constant = (~varies).nonzero().flatten().tolist()
        warn(
            f"features {constant} are constant: samples repeat them, and log p leaves out their "
            "density, a spike; drop them, or add noise to have a density of all"
        )
    sde.mean.copy_(mean.reshape(sde.mean.shape))
    sde.scale.copy_(torch.where(varies, std, 0).reshape(sde.scale.shape))
    sde.measured.fill_(True)


def with_gaps(sde: Any, z0: Tensor) -> tuple[Tensor, Tensor]:
    """States (B, n) with 0 for NaN, and the condition `seen` that says which are missing."""
    return _seen(sde, z0, MODELLED, MISSING)


def with_observed(sde: Any, z0: Tensor) -> Tensor:
    """The condition `seen` that shows all entries of states (B, n) but NaN, which are modelled."""
    return _seen(sde, z0, SEEN, MODELLED)[1]


def _seen(sde: Any, z0: Tensor, known: float, unknown: float) -> tuple[Tensor, Tensor]:
    """States with 0 for NaN, and values and roles (B, 2, *shape)."""
    gaps = z0.isnan()
    z0 = z0.masked_fill(gaps, 0)
    spread = sde.standardization.spread
    roles = torch.full_like(z0, known).masked_fill(gaps, unknown)
    return z0, torch.stack([spread(z0), spread(roles)], 1)


def modelled(sde: Any, seen: Tensor) -> Tensor:
    """Which elements of states the loss counts, 1 or 0, shape (B, n)."""
    counted = (seen[:, 1] == MODELLED).to(seen.dtype).flatten(1)
    free = sde.standardization.free
    return counted if free is None else counted.index_select(1, free)
