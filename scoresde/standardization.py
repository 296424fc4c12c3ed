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


class Moments:
    """Mean and variance of a stream of parts (B, …) along all axes but one, or along all; and what varies at all."""

    def __init__(self, axis: int | None) -> None:
        self.axis, self.count, self.resolution = axis, 0, 0.0

    def add(self, part: Tensor) -> None:
        """Take further rows."""
        if not len(part):
            return
        if part.is_floating_point():
            self.resolution = max(self.resolution, torch.finfo(part.dtype).eps)
        part = (part.cpu() if part.device.type == "mps" else part).double()
        axes = tuple(i for i in range(part.ndim) if i != self.axis)
        low, high = part.amin(axes), part.amax(axes)
        if not self.count:
            self.reference = low + 0.5 * (high - low)
            self.mean, self.square, self.unit = torch.zeros_like(low), torch.zeros_like(low), torch.zeros_like(low)
            self.low, self.high = low, high
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        before, self.unit = self.unit, _power_of_two(torch.maximum(self.high - self.reference, self.reference - self.low))
        divisor = torch.where(self.unit > 0, self.unit, 1)
        shrink = before / divisor
        mean, square = self.mean * shrink, self.square * shrink**2
        shape = [-1 if i == self.axis else 1 for i in range(part.ndim)]
        part = (part - self.reference.reshape(shape)).div_(divisor.reshape(shape))
        n, total = len(part), self.count + len(part)
        here = part.mean(axes)
        gap = here - mean
        square = square * (self.count / total) + part.var(axes, correction=0) * (n / total)
        self.square = square + gap.square() * (self.count / total) * (n / total)
        self.mean, self.count = mean + gap * (n / total), total

    def statistics(self) -> Statistics:
        """Return what was found."""
        if not self.count:
            raise ValueError("there are no data to standardize by")
        largest = torch.maximum(self.high.abs(), self.low.abs())
        varies = self.high - self.low > ROUNDING * self.resolution * largest
        return Statistics(self.reference + self.unit * self.mean, self.unit * self.square.sqrt(), varies, self.count)


def measure(parts: Iterable[Tensor], axis: int | None) -> Statistics:
    """Mean and standard deviation of parts (B, …) along all axes but one, or along all; and what varies at all."""
    moments = Moments(axis)
    for part in parts:
        moments.add(part)
    return moments.statistics()


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
