"""Conditions inside networks: checks, dropping, and what a network learns for "no condition".

Class labels are 0 … classes − 1, and `classes` itself means "no label".

`fit` drops the conditions of each sample with probability `condition_dropout`, so that one network
is conditional and unconditional (Ho & Salimans 2021, Algorithm 1); with condition_dropout=0
conditions are required.

NaN marks an absent row of numbers; NaN from users is refused. A network replaces it by a null that
it learns, as it does if the condition is not given at all, so that no value of the data, zero
included, means "none".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..common.names import nearest
from .base import weights_dtype


def drop_conditions(
    condition: Mapping[str, Tensor], classes: int, dropout: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return conditions in which each sample has none with probability `dropout`."""
    if not condition or not dropout:
        return dict(condition)
    first = next(iter(condition.values()))
    lost = torch.rand(len(first), generator=generator, device=first.device) < dropout
    dropped = {}
    for name, value in condition.items():
        if name == "y":
            dropped[name] = value.long().masked_fill(lost, classes)
        else:
            mask = lost.view(-1, *[1] * (value.ndim - 1))
            dropped[name] = _floats(value).masked_fill(mask, math.nan)
    return dropped


def _floats(value: Tensor) -> Tensor:
    """Numbers in a floating-point dtype."""
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def absent(value: Tensor) -> Tensor:
    """Return which rows of a condition are marked as absent, (B,)."""
    return value.reshape(value.shape[0], -1)[:, 0].isnan()


def embedded_numbers(layer: nn.Module, null: Tensor, value: Tensor | None) -> Tensor:
    """Return what a layer makes of a condition of numbers, and the null where it is absent."""
    if value is None:
        return null
    lost = absent(value).unsqueeze(1)
    known: Tensor = layer(value.masked_fill(lost, 0).to(weights_dtype(layer, value)))
    return torch.where(lost, null, known)


def require_conditions(given: Mapping[str, Tensor | None], condition_dropout: float) -> None:
    """Raise if a condition is missing that was never dropped in training."""
    for name, value in given.items():
        if value is None and not condition_dropout:
            raise ValueError(
                f"this network has learnt with condition_dropout=0, always with {name}: write "
                f"sde.given({name}=...)"
            )


def label_indices(x: Tensor, y: Tensor | None, classes: int) -> Tensor:
    """Return labels (B,) as indices of a table of classes + 1 rows; "no label" without y."""
    if y is None:
        return torch.full((x.shape[0],), classes, device=x.device)
    return y.long()  # tables take no shorter integers


def check_labels(y: Tensor, classes: int, name: str = "network") -> None:
    """Raise unless labels are integers of shape (n,) in range."""
    if not classes:
        raise ValueError(f"this {name} takes no condition y; build it with classes=n")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.ndim != 1:
        hint = "; if they are class numbers, convert them: y.long()" if y.ndim == 1 else ""
        raise ValueError(
            f"labels y are integers of shape (n,), got {y.dtype} of shape {tuple(y.shape)}{hint}"
        )
    y = y.long()
    if len(y) and not bool(((y >= 0) & (y < classes)).all()):
        raise ValueError(
            f"labels y run from 0 to {classes - 1}, got {int(y.min())} to {int(y.max())}"
        )


def check_numbers(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless a condition holds finite numbers of shape (n, *shape)."""
    if not shape[0]:
        raise ValueError(f"this network takes no condition {name}; build it with {name}=n")
    if not value.ndim or tuple(value.shape[1:]) != shape:
        raise ValueError(
            f"{name} has shape (n, {', '.join(map(str, shape))}), got {tuple(value.shape)}"
        )
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} has numbers that are NaN or infinite")


def check_known(
    names: Iterable[str], shapes: Mapping[str, object], *, hint_labels: bool = False
) -> None:
    """Raise ValueError for a condition that a network does not take."""
    for name in names:
        if name not in shapes:
            hint = ", or build it with classes=n" if name == "y" and hint_labels else ""
            raise ValueError(
                f"the network takes no condition {name!r}. {nearest(name, list(shapes))}{hint}"
            )
