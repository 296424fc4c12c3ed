"""What a user hands in, checked before any work: the shape of a sample, and batches of them."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checks import affordable, said

WHOLE: tuple[torch.dtype, ...] = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
WHOLE += (torch.uint16, torch.uint32, torch.uint64)
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)


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
        raise TypeError(f"shape is a tuple of integers such as (2,) or (3, 32, 32), got {said(shape)}")
    if not all(n > 0 for n in sizes):
        raise ValueError(f"shape is the shape of one sample, all sizes at least 1, got {said(tuple(sizes))}")
    affordable(f"the numbers of one sample of shape {said(tuple(sizes))}", 4.0 * min(math.prod(sizes), 10**300))
    return tuple(int(n) for n in sizes)


def as_tensor(value: Any, what: str, *, exact: bool = False) -> Tensor:
    """Return value as an ordinary tensor of numbers, with memory of its own kind; raise for what is none.

    This is the one check at the door of every verb. A tensor is returned as it is; an array shares its memory unless it
    is read-only, or torch can't read it so. With `exact`, Python's floats become float64.
    """
    if isinstance(value, Tensor):
        return _ordinary(value, what)
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise ValueError(
                f"{what} has {int(np.ma.getmaskarray(value).sum())} masked values, which stand for no number: drop those rows"
            )
        value = value.data
    if value is None or isinstance(value, str | bytes | type):
        raise TypeError(f"{what} is a tensor or array, got {said(value) if value is None else type(value).__name__}")
    try:
        if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):  # rows, one by one
            return torch.stack([as_tensor(row, what) for row in value])
        if isinstance(value, list | tuple) and value and isinstance(value[0], np.ndarray):
            value = np.asarray(value)
        if exact or (not isinstance(value, list | tuple | numbers.Number) and hasattr(value, "__array__")):
            value = _native(np.asarray(value), what)
        return _ordinary(torch.as_tensor(value, device="cpu"), what)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if str(error).startswith(what):
            raise
        kind = type(value).__name__
        if re.search("inhomogeneous|sequence of length", str(error)):
            raise ValueError(f"{what} is a tensor or array, got a {kind} of inhomogeneous rows") from None
        if isinstance(value, list | tuple):
            kind = f"a {kind} that is no table of numbers"
        raise TypeError(f"{what} is a tensor or array, got {kind}") from None


def _native(array: np.ndarray[Any, Any], what: str) -> np.ndarray[Any, Any]:
    """The same numbers as torch takes them: in the machine's byte order, forwards, and in memory that may be written."""
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 8 * (1 + (array.dtype.kind == "c")):
        raise TypeError(f"{what} is an array of {said(array.dtype, str)}, wanted numbers: convert it, e.g. .astype(float)")
    if not array.flags.writeable or not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    return array


def _ordinary(x: Tensor, what: str) -> Tensor:
    """x if it is a dense tensor with values, of a dtype that can be computed with."""
    hint = ""
    if isinstance(x, nn.UninitializedParameter | nn.UninitializedBuffer):
        hint = "has no shape yet; initialize it first"
    elif x.is_nested:
        hint = "is a nested tensor; wanted rows of one shape: pad and mask them yourself"
    elif x.layout == torch._mkldnn:  # type: ignore[attr-defined]
        hint = f"has the layout of MKL-DNN; wanted an ordinary tensor, {what}.to_dense()"
    elif x.layout != torch.strided:
        hint = f"is sparse ({x.layout}); wanted a dense tensor, {what}.to_dense()"
    elif x.is_meta:
        hint = "is on the meta device and has no values; make it on a real one"
    elif x.is_quantized:
        hint = f"is quantized ({x.dtype}); convert it, {what}.dequantize()"
    elif x.dtype not in (*WHOLE, *FLOATING, *COMPLEX):
        hint = f"has dtype {x.dtype}, wanted floating point or integers; convert it, e.g. {what}.float()"
    if hint:
        raise TypeError(f"{what} {hint}")
    return x


def as_reals(value: Any, what: str) -> Tensor:
    """Return value as a tensor of real numbers, of any shape, NaN and all; Python's floats become float64."""
    x = as_tensor(value, what, exact=True)
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{what} has dtype {x.dtype}, wanted real numbers")
    return x


def as_condition(value: Any, name: str) -> Tensor:
    """Return the values of a condition as a tensor of real, finite numbers or labels; raise otherwise."""
    what = f"condition {name!r}"
    if value is None or isinstance(value, str):
        raise TypeError(f"{what} is a number or a tensor, got {said(value)}; leave it out for none")
    x = as_tensor(value, what)
    if x.is_complex():
        raise TypeError(f"{what} has dtype {x.dtype}, wanted real numbers; give its parts, torch.view_as_real(...)")
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise ValueError(f"{what} has NaN or infinite values")
    return whole_labels(name, x)


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


def as_floats(x: object, shape: tuple[int, ...], what: str, rows: Sequence[int] | None = None, *, finite: bool = True) -> Tensor:
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
    finite : bool
        Whether to look at all numbers, too.

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
    x = as_tensor(x, what)
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
    if finite and not bool(x.isfinite().all()):
        bad = (~x.isfinite().reshape(len(x), -1).all(1)).nonzero()[:, 0]
        first = [row if rows is None else rows[row] for row in bad[:8].tolist()]
        named = ", ".join(map(str, first)) + ", …" * (len(bad) > 8)
        raise ValueError(f"{what} has NaN or infinite values in {len(bad)} of {len(x)} rows: {named}")
    return x
