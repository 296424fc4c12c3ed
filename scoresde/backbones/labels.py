"""Class labels y of networks that have a table of their own: 0 … classes − 1, and classes itself, which says "no label".

The same rules as those of `Embedding`: in training each label is left out with probability `condition_dropout`, so that the one
network is conditional and unconditional (Ho & Salimans 2021, Algorithm 1); with condition_dropout=0 it must always be there.
"""

from __future__ import annotations

import torch
from torch import Tensor


def show_labels(x: Tensor, y: Tensor | None, classes: int, condition_dropout: float, training: bool) -> Tensor:
    """Return what a table of classes + 1 rows is asked for: labels, some of them left out in training.

    Parameters
    ----------
    x : Tensor, shape (B, ...)
        The state, for its size and device.
    y : Tensor of int, shape (B,), or None
    classes : int
        Number of labels, and the label of no label.
    condition_dropout : float
        Probability that a label is left out in training.
    training : bool

    Returns
    -------
    Tensor of int, shape (B,)

    Raises
    ------
    ValueError
        For labels that were left out where none ever was in training.

    Examples
    --------
    >>> show_labels(torch.zeros(2, 5), torch.tensor([0, 1]), 3, 0.1, training=False)
    tensor([0, 1])
    >>> show_labels(torch.zeros(2, 5), None, 3, 0.1, training=True)
    tensor([3, 3])
    """
    none = torch.full((len(x),), classes, device=x.device)
    if y is None and condition_dropout == 0:
        raise ValueError("this network has learnt with condition_dropout=0, always with y: write sde.given(y=...)")
    if y is None:
        return none
    if not training or condition_dropout == 0:
        return y
    return torch.where(torch.rand(len(x), device=x.device) < condition_dropout, none, y)


def check_labels(y: Tensor, classes: int, name: str) -> None:
    """Raise unless labels are integers of shape (n,) in range.

    Parameters
    ----------
    y : Tensor of int, shape (n,)
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
        raise ValueError(f"this {name} takes no label y; build it with classes=n")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.ndim != 1:
        raise ValueError(f"labels y are integers of shape (n,), got {y.dtype} of shape {tuple(y.shape)}")
    if len(y) and not bool(((y >= 0) & (y < classes)).all()):
        raise ValueError(f"labels y run from 0 to {classes - 1}, got {int(y.min())} to {int(y.max())}")
