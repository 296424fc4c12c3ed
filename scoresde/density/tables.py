"""log p of rows of a table: the density of encoded rows, the Jacobian, and the categories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.user_warnings import warn
from ..model.protocol import Model
from ..model.require import matched
from ..model.tables.schema import TableSchema


@dataclass(frozen=True)
class EncodedRows:
    """Encoded rows z (N, D): a bare tensor would be rows of a table that was an array."""

    z: Tensor


def entered(
    model: Model,
    x: Any,
    generator: torch.Generator | None,
    invalid: str = "raise",
) -> tuple[Model, Any, Tensor | None]:
    """The model, its x, and what is added to log p(x): for rows of a table log p(y) + log|dz/dx|.

    Other data are matched by their names, and nothing is added.
    """
    if isinstance(x, EncodedRows):
        return *matched(model, x.z), None
    table = model.table
    x = getattr(x, "frame", x) if isinstance(x, TableSchema) else x
    if table is None or not table.takes(x):
        return *matched(model, x), None
    categories = "y" not in model.condition and not model.unconditional
    gaps = invalid == "nan"
    values, found = table.values(x, categories=categories, gaps=gaps)
    z = table.maps.forward(table.noisy(values, generator))
    added = table.maps.log_slopes(z).sum(1)
    if found is None:
        return model, z, added
    rare = table.category_log_prob(found)
    unknown = rare.isneginf()
    if bool(unknown.any()):
        warn(
            f"{int(unknown.sum())} of {len(rare)} rows have categories that no row of the table "
            "had: their log p is −∞"
        )
    found = found.clamp(min=0)  # tables of earlier versions have none for some
    return model.given(y=table.labels(found)), z, added + rare
