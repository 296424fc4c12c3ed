"""The rules of conditions, the same for all networks, and class labels: 0 … classes − 1, and classes itself, "no label".

`fit` shows each sample without its conditions with probability `condition_dropout`, so that the one network is conditional and
unconditional (Ho & Salimans 2021, Algorithm 1); with condition_dropout=0 they must always be there.

A row of numbers that is absent is marked by NaN, which no user's numbers are: they are refused before. A network replaces it
by a learnt null of its own, the same that it takes if the condition is left out altogether, so that no value of the data,
zeros included, means "none".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..registry import nearest


def hide(condition: Mapping[str, Tensor], classes: int, dropout: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Return conditions of which each sample has lost all its own with a probability: no label, and NaN for numbers.

    `fit` calls it, by a network's own `hide`, once for each sample of a step. A network that did so by itself would do it anew at
    each call, and what is learnt from differences between calls, as flow maps are, would be of several conditions.

    Parameters
    ----------
    condition : mapping of str to Tensor
        By name, with one row per sample; labels are those called y.
    classes : int
        The label of no label.
    dropout : float
        Probability.
    generator : torch.Generator
        On the conditions' device.

    Returns
    -------
    dict of str to Tensor

    Examples
    --------
    >>> hide({"y": torch.tensor([1, 2])}, 3, 1.0, torch.Generator())
    {'y': tensor([3, 3])}
    >>> hide({"vector": torch.zeros(1, 2)}, 0, 1.0, torch.Generator())
    {'vector': tensor([[nan, nan]])}
    """
    if not condition or not dropout:
        return dict(condition)
    first = next(iter(condition.values()))
    lost = torch.rand(len(first), generator=generator, device=first.device) < dropout
    return {
        name: value.long().masked_fill(lost, classes)
        if name == "y"
        else _floats(value).masked_fill(lost.view(-1, *[1] * (value.ndim - 1)), math.nan)
        for name, value in condition.items()
    }


def _floats(value: Tensor) -> Tensor:
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def absent(value: Tensor) -> Tensor:
    """Which rows of a condition are marked as absent, shape (B,): see `hide`."""
    return value.reshape(len(value), -1)[:, 0].isnan()


def need(given: Mapping[str, Tensor | None], condition_dropout: float) -> None:
    """Raise if a condition was left out where none ever was in training.

    Parameters
    ----------
    given : mapping of str to Tensor or None
        What the network takes, by name.
    condition_dropout : float

    Raises
    ------
    ValueError

    Examples
    --------
    >>> need({"y": None}, 0)
    Traceback (most recent call last):
    ValueError: this network has learnt with condition_dropout=0, always with y: write sde.given(y=...)
    """
    for name, value in given.items():
        if value is None and not condition_dropout:
            raise ValueError(f"this network has learnt with condition_dropout=0, always with {name}: write sde.given({name}=...)")


def show_labels(x: Tensor, y: Tensor | None, classes: int) -> Tensor:
    """Return what a table of classes + 1 rows is asked for.

    Parameters
    ----------
    x : Tensor, shape (B, ...)
        The state, for its size and device.
    y : Tensor of an integer type, shape (B,), or None
    classes : int
        Number of labels, and the label of no label.

    Returns
    -------
    Tensor of int64, shape (B,)

    Examples
    --------
    >>> show_labels(torch.zeros(2, 5), torch.tensor([0, 1], dtype=torch.uint8), 3)
    tensor([0, 1])
    >>> show_labels(torch.zeros(2, 5), None, 3)
    tensor([3, 3])
    """
    return torch.full((len(x),), classes, device=x.device) if y is None else y.long()  # tables take no shorter integers


def check_labels(y: Tensor, classes: int, name: str = "network") -> None:
    """Raise unless labels are integers of shape (n,) in range.

    Parameters
    ----------
    y : Tensor of an integer type, shape (n,)
    classes : int
        Number of labels, 0 if the network takes none.
    name : str
        Of the network, for messages.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_labels(torch.tensor([3]), 3, "MLP")
    Traceback (most recent call last):
    ValueError: labels y run from 0 to 2, got 3 to 3
    """
    if not classes:
        raise ValueError(f"this {name} takes no condition y; build it with classes=n")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.ndim != 1:
        hint = "; if they are class numbers, convert them: y.long()" if y.ndim == 1 else ""
        raise ValueError(f"labels y are integers of shape (n,), got {y.dtype} of shape {tuple(y.shape)}{hint}")
    y = y.long()
    if len(y) and not bool(((y >= 0) & (y < classes)).all()):
        raise ValueError(f"labels y run from 0 to {classes - 1}, got {int(y.min())} to {int(y.max())}")


def check_numbers(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless a condition has finite numbers of shape (n, *shape).

    Parameters
    ----------
    name : str
    value : Tensor, shape (n, *shape)
    shape : tuple of int
        Of one sample's; its first size is 0 if the network takes no such condition.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_numbers("vector", torch.zeros(1, 4), (5,))
    Traceback (most recent call last):
    ValueError: vector has shape (n, 5), got (1, 4)
    """
    if not shape[0]:
        raise ValueError(f"this network takes no condition {name}; build it with {name}=n")
    if not value.ndim or tuple(value.shape[1:]) != shape:
        raise ValueError(f"{name} has shape (n, {', '.join(map(str, shape))}), got {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} has numbers that are NaN or infinite")


def check_known(names: Iterable[str], shapes: Mapping[str, object], *, hint_labels: bool = False) -> None:
    """Raise ValueError if a condition is none of those that a network takes."""
    for name in names:
        if name not in shapes:
            hint = ", or build it with classes=n" if name == "y" and hint_labels else ""
            raise ValueError(f"the network takes no condition {name!r}. {nearest(name, list(shapes))}{hint}")
