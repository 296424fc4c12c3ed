"""What a user hands in, checked before any work: the shape of a sample, and batches of them."""

from __future__ import annotations

import numbers
from typing import Any

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


def as_tensor(x: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor as it is, and anything else as one on the CPU, whatever the default device is."""
    if isinstance(x, Tensor):
        return x if dtype is None else x.to(dtype)
    return torch.as_tensor(x, dtype=dtype, device="cpu")


def as_floats(x: object, shape: tuple[int, ...], what: str) -> Tensor:
    """Return x as it is if it is a floating-point tensor (B, *shape), B ≥ 1, of finite numbers; raise otherwise.

    Parameters
    ----------
    x : object
        What the user gave.
    shape : tuple of int
        Shape of one sample.
    what : str
        Its name, for messages.

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
            x = as_tensor(x)
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
        named = ", ".join(map(str, bad[:8].tolist())) + ", …" * (len(bad) > 8)
        raise ValueError(f"{what} has NaN or infinite values in {len(bad)} of {len(x)} rows: {named}")
    return x
