"""Samples of a model that has learnt a table: categories first, then numbers given them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.checks import check_generator
from ..model.protocol import Model
from ..model.tables.schema import TableSchema
from .batches import check_count


@dataclass(frozen=True)
class Rows:
    """The rows of a table to come: how many, and their combinations of categories."""

    n: int | None
    table: TableSchema | None = None
    combinations: Tensor | None = None
    drawn: bool = False
    """Whether combinations were drawn by their probabilities."""

    def decoded(self, x: Tensor) -> Any:
        """Samples as rows of the table; as they are without one."""
        return x if self.table is None else self.table.decode(x, self.combinations)

    def added(self, x: Tensor) -> Tensor | float:
        """What log p of a row has beside that of its encoded numbers: log|dz/dx|, log p(y)."""
        if self.table is None:
            return 0.0
        found = self.table.log_det(x)
        if self.drawn and self.combinations is not None:
            found = found + self.table.category_log_prob(self.combinations).to(found)
        return found


def with_categories(
    model: Model,
    n: int | None,
    generator: torch.Generator | None,
) -> tuple[Model, Rows]:
    """The model under n drawn combinations of categories, unless it has one; and the rows."""
    table = model.table
    if table is None:
        return model, Rows(n)
    if not table.classes or model.unconditional:
        return model, Rows(n, table)
    y = model.condition.get("y")
    if n is None:
        n = model.condition_rows
    n = check_count(model, n)
    if y is not None:
        if len(y) == 1:
            y = y.expand(n)
        return model, Rows(n, table, y)
    if not model.keeps_categories:
        raise ValueError(
            "this model is guided, which changes how frequent the categories of its table are: "
            "name one by given(y=...), of the model that is guided"
        )
    check_generator(generator)
    drawn = table.draw_categories(n, generator)
    return model.given(y=table.labels(drawn)), Rows(n, table, drawn, drawn=True)
