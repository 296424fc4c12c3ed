"""A vector for each class label, or for each of the categories that a label combines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..common.checks import whole_number

LARGEST = 2**53
"""Labels are exact below it, also where they pass through floats."""


def number_of_labels(classes: object) -> int:
    """How many labels `classes` stands for: itself, or the product of a tuple."""
    if isinstance(classes, list | tuple):
        sizes = [whole_number("classes", size) for size in classes]
        if len(sizes) < 2 or math.prod(sizes) >= LARGEST:
            raise ValueError(
                f"classes is a number, or at least two of fewer than 2^53 combinations, got "
                f"{len(sizes)} with {math.prod(sizes):.3g}"
            )
        return math.prod(sizes)
    return whole_number("classes", classes, 0)


class CombinedLabels(nn.Embedding):
    """The sum of a vector for each category that a label combines.

    A label is (…(c_1·s_2 + c_2)·s_3 + …)·s_C + c_C, with c_j from 0 to s_j − 1, and Π s_j itself
    means "no label". Vectors start at zero, so that a category of few rows adds no noise.
    """

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__(sum(sizes) + 1, width)
        nn.init.zeros_(self.weight)
        self.sizes = tuple(map(int, sizes))

    def forward(self, labels: Tensor) -> Tensor:
        """Vectors (B, width) of labels (B,)."""
        rows, missing = rows_of_labels(labels, self.sizes)
        known = super().forward(rows).sum(1)
        return torch.where(missing.unsqueeze(1), self.weight[-1], known)


def rows_of_labels(labels: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The rows (B, C) of a table of all categories that labels (B,) combine, and which are none.

    Π s_j means "no label".
    """
    rows = []
    rest = labels
    for j in reversed(range(len(sizes))):
        rows.append(rest % sizes[j] + sum(sizes[:j]))
        rest = rest.div(sizes[j], rounding_mode="floor")
    return torch.stack(rows, 1), rest > 0


def label_table(classes: int | Sequence[int], width: int) -> nn.Embedding | None:
    """Vectors of labels, and one of "no label" in the last row; None without classes."""
    count = number_of_labels(classes)
    if not count:
        return None
    if isinstance(classes, list | tuple):
        return CombinedLabels(classes, width)
    return nn.Embedding(count + 1, width)
