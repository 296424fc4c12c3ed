"""What a user hands in, checked before any work: the shape of a sample, and batches of them."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor


def event_shape(shape: object) -> tuple[int, ...]:
    """Return the shape of one sample as a tuple of positive integers, or raise.

    Parameters
    ----------
    shape : tuple of int, or int
        What the user gave.

    Returns
    -------
    tuple of int

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> event_shape(2), event_shape([3, 8, 8])
    ((2,), (3, 8, 8))
    """
    shape = (shape,) if isinstance(shape, numbers.Integral) else shape
    sizes = shape if isinstance(shape, tuple | list) else (None,)
    if not all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in sizes):
        raise TypeError(f"shape is a tuple of integers such as (2,) or (3, 32, 32), got {shape!r}")
    if not all(n > 0 for n in sizes):
        raise ValueError(f"shape is the shape of one sample, all sizes at least 1, got {tuple(sizes)}")
    return tuple(int(n) for n in sizes)


def whole_labels(name: str, value: Tensor) -> Tensor:
    """Return a condition of uint16, uint32 or uint64, which torch can neither index nor compare, as int64; others as they are.

    >>> whole_labels("y", torch.tensor([3], dtype=torch.uint16)).dtype
    torch.int64
    """
    if value.dtype not in (torch.uint16, torch.uint32, torch.uint64):
        return value
    if value.dtype == torch.uint64 and bool((value.view(torch.int64) < 0).any()):
        raise ValueError(f"condition {name!r} has integers of 2^63 and more: number the classes from 0")
    return value.long()


def as_floats(x: object, shape: tuple[int, ...], what: str, rows: Sequence[int] | None = None) -> Tensor:
    """Return x as it is if it is a floating-point tensor (B, *shape), B ≥ 1, of finite numbers; raise otherwise.

    Parameters
    ----------
    x : object
        What the user gave.
    shape : tuple of int
        Shape of one sample.
    what : str
        Its name, for messages.
    rows : sequence of int, optional
        What the rows are called in messages; by default 0, 1, 2 …

    Returns
    -------
    Tensor

    Raises
    ------
    TypeError
        If x is not a floating-point tensor or array.
    ValueError
        For a wrong shape, no samples, or numbers that are not finite.

    Examples
    --------
    >>> as_floats(torch.tensor([[1, 2]]), (2,), "x")
    Traceback (most recent call last):
    TypeError: x has dtype torch.int64, wanted floating point; convert it, e.g. x.float() (dequantize counts or pixels first)
    """
    if not isinstance(x, Tensor):
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{what} is a tensor or array, got {type(x).__name__}") from None
    if not x.is_floating_point():
        raise TypeError(
            f"{what} has dtype {x.dtype}, wanted floating point; convert it, e.g. {what}.float() "
            "(dequantize counts or pixels first)"
        )
    if tuple(x.shape[1:]) != shape or not x.ndim:
        wanted = ", ".join(["batch", *map(str, shape)])
        raise ValueError(f"{what} has shape {tuple(x.shape)}, wanted ({wanted})")
    if not len(x):
        raise ValueError(f"{what} has no samples: shape {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        bad = (~x.isfinite().reshape(len(x), -1).all(1)).nonzero()[:, 0]
        first = [row if rows is None else rows[row] for row in bad[:8].tolist()]
        named = ", ".join(map(str, first)) + ", …" * (len(bad) > 8)
        raise ValueError(f"{what} has NaN or infinite values in {len(bad)} of {len(x)} rows: {named}")
    return x
