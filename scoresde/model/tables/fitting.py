"""Whether a network fits a table."""

from __future__ import annotations

from typing import Any

import torch

from ...backbones.labels import CombinedLabels, number_of_labels
from .schema import TableSchema


def check_network(sde: Any, table: TableSchema) -> None:
    """Raise ValueError unless a model's shape and classes are those of a table."""
    if sde.shape != table.shape:
        raise ValueError(
            f"the table has {table.shape[0]} numeric columns, and the model the shape {sde.shape}: "
            "build(..., shape=table.shape, classes=table.classes)"
        )
    if not table.classes:
        return
    try:
        if not sde.takes_condition("y"):
            raise ValueError("it takes no labels y")
        count = number_of_labels(table.classes)
        sde.interface.check_values({"y": torch.tensor([count - 1], device="cpu")})
        for part in sde.net.modules():
            if isinstance(part, CombinedLabels) and part.sizes != table.classes:
                raise ValueError(f"it has classes={part.sizes}")
    except ValueError as error:
        raise ValueError(
            f"the table has classes={table.classes}, and the network does not tell them apart "
            f"({error}): build(..., shape=table.shape, classes=table.classes)"
        ) from None
