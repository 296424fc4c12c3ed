"""Mean and scale of data, for any magnitude that their numbers can have.

Sums run over d = (x − reference)/unit with |d| < 2 (Chan, Golub and LeVeque 1983), the unit being a power of two that grows with
the data, so that squares neither overflow nor vanish. A feature whose values are all equal, to rounding, is constant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 4  # units in the last place by which values of a constant may differ


class Statistics(NamedTuple):
    """What `measure` found, one number per first axis of a sample, float64 on the CPU or the data's device."""

    mean: Tensor
    std: Tensor
    varies: Tensor
    rows: int


class Units(NamedTuple):
    """A standardization in one dtype: mean + rest is the mean in about twice its digits.

    `free` are the elements of a flattened sample that vary, None for all. The scale of the others is given as 1.
    """

    mean: Tensor
    rest: Tensor | None
    scale: Tensor
    free: Tensor | None


def wide(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def measure(parts: Iterable[Tensor], axis: int | None) -> Statistics:
    """Mean and standard deviation of parts (B, …) along all axes but one, or along all; and what varies at all."""
    count, resolution = 0, 0.0
    for part in parts:
        if not len(part):
            continue
        resolution = max(resolution, torch.finfo(part.dtype).eps)
        part = (part.cpu() if part.device.type == "mps" else part).double()
        axes = tuple(i for i in range(part.ndim) if i != axis)
        low, high = part.amin(axes), part.amax(axes)
        if not count:
            reference = low + 0.5 * (high - low)
            mean, square, unit = torch.zeros_like(low), torch.zeros_like(low), torch.zeros_like(low)
            lowest, highest = low, high
        lowest, highest = torch.minimum(lowest, low), torch.maximum(highest, high)
        reach = torch.maximum(highest - reference, reference - lowest)
        before, unit = unit, _power_of_two(reach)
        divisor = torch.where(unit > 0, unit, 1)
        shrink = before / divisor
        mean, square = mean * shrink, square * shrink**2
        shape = [-1 if i == axis else 1 for i in range(part.ndim)]
        part = (part - reference.reshape(shape)).div_(divisor.reshape(shape))
        n, total = len(part), count + len(part)
        here = part.mean(axes)
        gap = here - mean
        square = square * (count / total) + part.var(axes, correction=0) * (n / total)
        square = square + gap.square() * (count / total) * (n / total)
        mean, count = mean + gap * (n / total), total
    if not count:
        raise ValueError("there are no data to standardize by")
    varies = highest - lowest > ROUNDING * resolution * torch.maximum(highest.abs(), lowest.abs())
    return Statistics(reference + unit * mean, unit * square.sqrt(), varies, count)


def _power_of_two(x: Tensor) -> Tensor:
    """The largest power of two that is at most x; 0 for 0."""
    return torch.where(x > 0, x / (2 * torch.frexp(x).mantissa), 0)


def units(mean: Tensor, scale: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Units:
    """A standardization made ready for states of a dtype."""
    near = mean.to(dtype)
    rest: Tensor | None = (mean - near).to(dtype)
    free = None
    if scale.device.type != "meta":
        rest = None if torch.equal(near.to(mean.dtype), mean) else rest
        varies = (scale != 0).expand(shape).flatten()
        free = None if bool(varies.all()) else varies.nonzero()[:, 0]
    return Units(near, rest, torch.where(scale == 0, 1, scale).to(dtype), free)
