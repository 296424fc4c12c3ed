"""Checks of what users pass in: the shape of a sample, tensors, batches and conditions."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checks import brief_repr, check_budget

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Dtypes that PyTorch can neither index nor compare."""
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *UNSIGNED)
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)


NAMED_ROWS = 8
"""Most bad rows that a message names."""


def event_shape(shape: object) -> tuple[int, ...]:
    """Return the shape of one sample as a tuple of positive integers, or raise."""
    shape = (shape,) if isinstance(shape, numbers.Integral) else shape
    sizes = shape if isinstance(shape, tuple | list) else (None,)
    if not all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in sizes):
        raise TypeError(
            f"shape is a tuple of integers such as (2,) or (3, 32, 32), got {brief_repr(shape)}"
        )
    text = brief_repr(tuple(sizes))
    if not all(n > 0 for n in sizes):
        raise ValueError(f"shape is the shape of one sample, all sizes at least 1, got {text}")
    count = min(math.prod(sizes), 10**300)  # which a float can hold
    check_budget(f"the numbers of one sample of shape {text}", 4.0 * count)
    return tuple(int(n) for n in sizes)


def as_tensor(value: Any, what: str, *, exact: bool = False) -> Tensor:
    """Return a dense tensor of numbers, which `exact` keeps in their dtype; raise otherwise."""
    if isinstance(value, Tensor):
        return _ordinary(value, what)
    refuse_masked(value, what)
    if isinstance(value, np.ma.MaskedArray):
        value = value.data
    if value is None or isinstance(value, str | bytes | type):
        came = "None" if value is None else type(value).__name__
        raise TypeError(f"{what} is a tensor or array, got {came}")
    plain = isinstance(value, list | tuple | numbers.Number)
    array_like = hasattr(value, "__array__") and not plain
    try:
        first = value[0] if isinstance(value, list | tuple) and value else None
        if isinstance(first, Tensor):  # rows, one by one
            return torch.stack([as_tensor(row, what) for row in value])
        if isinstance(first, np.ndarray):
            value = np.asarray(value)
        if exact or array_like:
            value = _native(np.asarray(value), what)
        return _ordinary(torch.as_tensor(value, device="cpu"), what)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if str(error).startswith(what):
            raise
        kind = type(value).__name__
        if re.search("inhomogeneous|sequence of length", str(error)):
            raise ValueError(
                f"{what} is a tensor or array, got a {kind} of inhomogeneous rows"
            ) from None
        if isinstance(value, list | tuple):
            kind = f"a {kind} that is no table of numbers"
        raise TypeError(f"{what} is a tensor or array, got {kind}") from None


def refuse_masked(value: Any, what: str) -> None:
    """Raise ValueError for an array, or a list of arrays, some of whose values are masked."""
    if isinstance(value, np.ma.MaskedArray):
        masked = int(np.ma.getmaskarray(value).sum())
    elif isinstance(value, list | tuple):
        rows = [row for row in value if isinstance(row, np.ma.MaskedArray)]
        masked = sum(int(np.ma.getmaskarray(row).sum()) for row in rows)
    else:
        return
    if masked:
        raise ValueError(
            f"{what} has {masked} masked values, which stand for no number: drop those rows"
        )


def _native(array: np.ndarray[Any, Any], what: str) -> np.ndarray[Any, Any]:
    """The same numbers as PyTorch takes them: native bytes, positive strides, writeable memory."""
    widest = 16 if array.dtype.kind == "c" else 8
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > widest:
        raise TypeError(
            f"{what} is an array of {brief_repr(array.dtype, str)}, wanted numbers: convert it, "
            "e.g. .astype(float)"
        )
    forwards = all(stride >= 0 for stride in array.strides)
    if array.flags.writeable and array.dtype.isnative and forwards:
        return array
    return array.astype(array.dtype.newbyteorder("="), order="C")


def _ordinary(x: Tensor, what: str) -> Tensor:
    """Return a dense tensor with values, of a dtype to compute with; raise for any other."""
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
    elif x.dtype not in (*INTEGERS, *FLOATING, *COMPLEX):
        hint = (
            f"has dtype {x.dtype}, wanted floating point or integers; convert it, e.g. "
            f"{what}.float()"
        )
    if hint:
        raise TypeError(f"{what} {hint}")
    return x


def as_reals(value: Any, what: str) -> Tensor:
    """Return a tensor of real numbers, NaN included; Python's floats become float64."""
    x = as_tensor(value, what, exact=True)
    if x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{what} has dtype {x.dtype}, wanted real numbers")
    return x


def as_condition(value: Any, name: str) -> Tensor:
    """Return a condition as a tensor of labels or of real, finite numbers; raise otherwise."""
    what = f"condition {name!r}"
    if value is None or isinstance(value, str):
        raise TypeError(
            f"{what} is a number or a tensor, got {brief_repr(value)}; leave it out for none"
        )
    x = as_tensor(value, what)
    if x.is_complex():
        raise TypeError(
            f"{what} has dtype {x.dtype}, wanted real numbers; give its parts, "
            "torch.view_as_real(...)"
        )
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise ValueError(f"{what} has NaN or infinite values")
    return whole_labels(name, x)


def whole_labels(name: str, value: Tensor) -> Tensor:
    """Return a condition with unsigned integers as int64, and any other as it is."""
    if value.dtype not in UNSIGNED:
        return value
    if value.dtype == torch.uint64 and bool((value.view(torch.int64) < 0).any()):
        raise ValueError(
            f"condition {name!r} has integers of 2^63 and more: number the classes from 0"
        )
    return value.long()


def as_floats(
    x: object,
    shape: tuple[int, ...],
    what: str,
    rows: Sequence[int] | None = None,
    *,
    finite: bool = True,
    gaps: bool = False,
) -> Tensor:
    """Return a floating-point tensor (B, *shape) with B ≥ 1 and finite numbers; raise otherwise.

    With `gaps`, NaN stands for a missing number.
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
    fine = x.isinf().logical_not() if gaps else x.isfinite()
    if finite and not bool(fine.all()):
        bad = (~fine.reshape(len(x), -1).all(1)).nonzero()[:, 0]
        named = [row if rows is None else rows[row] for row in bad[:NAMED_ROWS].tolist()]
        text = ", ".join(map(str, named))
        if len(bad) > NAMED_ROWS:
            text += ", …"
        kinds = "infinite" if gaps else "NaN or infinite"
        raise ValueError(f"{what} has {kinds} values in {len(bad)} of {len(x)} rows: {text}")
    return x
