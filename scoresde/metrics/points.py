"""What the metrics share: two sets of samples as rows of float64, and sums over their pairs a block at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..inputs import as_tensor

HELD = 2**19  # pairs held at a time: 4 MB, in cache


def points(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return two sets of samples as rows (n, D) and (m, D) in float64; raise for what is no such thing.

    Parameters
    ----------
    x, y : Tensor, shape (n, *shape) and (m, *shape)

    Returns
    -------
    x, y : Tensor, shape (n, D) and (m, D), float64
        On x's device.

    Raises
    ------
    TypeError
        If x or y is not a tensor.
    ValueError
        For fewer than two points, shapes that differ, or samples that are not finite.

    Examples
    --------
    >>> points(torch.zeros(3, 2, 2), torch.zeros(5, 2, 2))[1].shape
    torch.Size([5, 4])
    """
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; wanted a tensor, try torch.as_tensor({name})")
        as_tensor(value, name)
        if value.ndim < 1 or value.shape[0] < 2:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; wanted (n, *shape) with n ≥ 2")
        if value.is_complex() or not value.isfinite().all():
            raise ValueError(f"{name} is complex or holds NaN or infinity; wanted finite samples: find the culprit")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x of shape {tuple(x.shape)}, y {tuple(y.shape)}; wanted the same shape but for the first")
    return x.reshape(len(x), -1).double(), y.reshape(len(y), -1).to(x.device, torch.float64)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Return all Euclidean distances |x_i − y_j|.

    Parameters
    ----------
    x, y : Tensor, shape (n, D) and (m, D)

    Returns
    -------
    Tensor, shape (n, m)

    Examples
    --------
    >>> distances(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([[5.]])
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # as fast in the plane, and exact


def total(x: Tensor, y: Tensor, of: Callable[[Tensor], Tensor] = lambda d: d) -> Tensor:
    """Return Σ_ij of(|x_i − y_j|), holding 4 MB of distances at a time.

    Parameters
    ----------
    x, y : Tensor, shape (n, D) and (m, D)
    of : callable (Tensor) -> Tensor
        Elementwise.

    Returns
    -------
    Tensor, shape ()

    Examples
    --------
    >>> total(torch.zeros(2, 2), torch.tensor([[3.0, 4.0]]), of=torch.square)
    tensor(50.)
    """
    result = x.new_zeros(())
    for part in torch.split(x, max(1, HELD // len(y))):
        result += of(distances(part, y)).sum()
    return result
