"""Measurements y = A(x) + noise·n, n ~ N(0, I), of samples x in the units of the data."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.checks import real_number, whole_number
from ..common.inputs import as_reals, as_tensor
from ..common.names import choose
from .measured import Measurement

__all__ = [
    "Blur",
    "Denoise",
    "Downsample",
    "Inpaint",
    "Linear",
    "Measurement",
    "PhaseRetrieval",
]


class Denoise(Measurement):
    """y = x + noise·n.

    Parameters
    ----------
    noise : float
        > 0, in the units of the data.

    Examples
    --------
    >>> Denoise(0.1)
    Denoise(noise=0.1)
    """

    def __init__(self, noise: float) -> None:
        super().__init__(lambda x: x, noise, linear=True)


class Inpaint(Measurement):
    """y holds the elements of x where the mask is True, with noise or exactly.

    y has the shape of a sample; where the mask is False its values are not looked at.

    Parameters
    ----------
    mask : Tensor or array of bool, shape (*shape)
        True for what is observed; dimensions of 1 are repeated, such as the channels of an image.
    noise : float
        ≥ 0, in the units of the data; 0 keeps the observed elements as they are.

    Raises
    ------
    TypeError, ValueError
        For a mask that is not of bool, or observes nothing.

    Examples
    --------
    >>> Inpaint([True, False])(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 0.]])
    """

    noise_may_be_zero = True

    def __init__(self, mask: Any, noise: float = 0.0) -> None:
        mask = as_tensor(mask, "mask")
        if mask.dtype != torch.bool:
            raise TypeError(f"mask is of bool, True for what is observed, got {mask.dtype}")
        if not bool(mask.any()):
            raise ValueError("the mask observes nothing: True marks what is observed")
        super().__init__(self._masked, noise, linear=True)
        self.mask = mask
        self.observed = mask

    def _masked(self, x: Tensor) -> Tensor:
        """X where it is observed, 0 elsewhere."""
        shape = tuple(x.shape[1:])
        ours = (1,) * (len(shape) - self.mask.ndim) + tuple(self.mask.shape)
        fits = len(ours) == len(shape)
        if not fits or any(a not in (1, b) for a, b in zip(ours, shape, strict=True)):
            raise ValueError(
                f"the mask has shape {tuple(self.mask.shape)}, wanted {shape}, that of a sample"
            )
        return torch.where(self.mask.to(x.device), x, 0)

    def with_exact(self, x: Tensor, y: Tensor) -> Tensor:
        """Return x with y in the observed elements, if there is no noise."""
        if self.noise:
            return x
        counts = self.mask.to(x.device).expand(x.shape[1:]).reshape(-1)
        rows = x.reshape(len(x), -1).clone()
        rows[:, counts] = y.to(rows)
        return rows.reshape(x.shape)


class Blur(Measurement):
    """y = k ∗ x + noise·n, convolution along the last axis of a sample, or the last two.

    Samples of shape (d,) or (channels, d) are blurred along their last axis, images along their
    last two; a kernel of two axes always along two.

    Parameters
    ----------
    kernel : float, Tensor or array
        The width of a Gaussian in elements, its standard deviation, cut at four of them. Or the
        kernel itself, of shape (k,) or (k, l), of odd sizes.
    noise : float
        > 0, in the units of the data.
    padding : str
        What lies beyond the ends: "zeros", or "circular" for what comes in at the other end.

    Raises
    ------
    TypeError, ValueError
        For a width ≤ 0, or a kernel that is not finite or of even size.

    Examples
    --------
    >>> Blur([0.25, 0.5, 0.25], noise=0.1)(torch.tensor([[0.0, 4.0, 0.0, 0.0]]))
    tensor([[1., 2., 1., 0.]])
    """

    def __init__(self, kernel: Any, noise: float, padding: str = "zeros") -> None:
        super().__init__(self._convolved, noise, linear=True)
        self.padding = choose("padding", padding, ("zeros", "circular"))
        if isinstance(kernel, int | float):
            width = real_number("the width of the blur", kernel, 0, math.inf)
            self.kernel = _gaussian(width)
            self.separable = True
            return
        self.kernel = as_reals(kernel, "kernel").double()
        self.separable = self.kernel.ndim == 1
        if self.kernel.ndim not in (1, 2) or any(k % 2 == 0 for k in self.kernel.shape):
            raise ValueError(
                f"kernel is a width, or of shape (k,) or (k, l) of odd sizes, got shape "
                f"{tuple(self.kernel.shape)}"
            )
        if not bool(self.kernel.isfinite().all()):
            raise ValueError("kernel has numbers that are NaN or infinite")

    def _convolved(self, x: Tensor) -> Tensor:
        """The convolution of x (B, *shape)."""
        kernel = self.kernel.to(x)
        if not self.separable:
            if x.ndim < 3:
                raise ValueError("a kernel of two axes blurs samples of two axes or more")
            return self._along_two(x, kernel)
        for axis in _axes(x):
            turned = x.movedim(axis, -1)
            rows = turned.reshape(-1, 1, turned.shape[-1])
            padded = self._padded(rows, len(kernel) // 2, -1)
            found = F.conv1d(padded, kernel.flip(0).reshape(1, 1, -1))
            x = found.reshape(turned.shape).movedim(-1, axis)
        return x

    def _along_two(self, x: Tensor, kernel: Tensor) -> Tensor:
        """The convolution of the last two axes."""
        rows = x.reshape(-1, 1, *x.shape[-2:])
        rows = self._padded(rows, kernel.shape[0] // 2, -2)
        rows = self._padded(rows, kernel.shape[1] // 2, -1)
        return F.conv2d(rows, kernel.flip(0, 1)[None, None]).reshape(x.shape)

    def _padded(self, x: Tensor, reach: int, axis: int) -> Tensor:
        """X with `reach` further elements at both ends of an axis."""
        size = x.shape[axis]
        if self.padding == "circular":
            index = torch.arange(-reach, size + reach, device=x.device) % size
            return x.index_select(axis, index)
        pads = [0, 0] * (-axis - 1) + [reach, reach]
        return F.pad(x, pads)


class Downsample(Measurement):
    """y = the means of blocks of x, + noise·n: along the last axis of a sample, or the last two.

    Samples of shape (d,) or (channels, d) are reduced along their last axis, images along two.

    Parameters
    ----------
    factor : int
        Elements of a block along each axis, which divides the size.
    noise : float
        > 0, in the units of the data.

    Raises
    ------
    TypeError, ValueError
        For a factor below 2; of a sample, where the factor does not divide its size.

    Examples
    --------
    >>> Downsample(2, noise=0.1)(torch.tensor([[1.0, 3.0, 5.0, 5.0]]))
    tensor([[2., 5.]])
    """

    def __init__(self, factor: int, noise: float) -> None:
        super().__init__(self._pooled, noise, linear=True)
        self.factor = whole_number("factor", factor, 2)

    def _pooled(self, x: Tensor) -> Tensor:
        """The means of blocks."""
        for axis in _axes(x):
            if x.shape[axis] % self.factor:
                raise ValueError(f"factor {self.factor} does not divide {x.shape[axis]} elements")
            size = x.shape[axis] // self.factor
            turned = x.movedim(axis, -1)
            blocks = turned.reshape(*turned.shape[:-1], size, self.factor)
            x = blocks.mean(-1).movedim(-1, axis)
        return x


class PhaseRetrieval(Measurement):
    """y = |FFT of x padded by zeros| + noise·n, with the norm of x kept (norm "ortho").

    Samples of shape (d,) or (channels, d) are transformed along their last axis, images along
    their last two. −x, and x turned round, have the same y.

    Parameters
    ----------
    noise : float
        > 0, in the units of the data.
    oversample : float
        ≥ 1: the padded size over that of x.

    Raises
    ------
    TypeError, ValueError
        For oversample below 1.

    Examples
    --------
    >>> PhaseRetrieval(noise=0.1, oversample=1)(torch.tensor([[3.0, -1.0]]))
    tensor([[1.4142, 2.8284]])
    """

    def __init__(self, noise: float, oversample: float = 2.0) -> None:
        super().__init__(self._magnitudes, noise)
        self.oversample = real_number("oversample", oversample, 1, 64, closed=True)

    def _magnitudes(self, x: Tensor) -> Tensor:
        """|FFT| of x padded by zeros."""
        axes = _axes(x)
        sizes = [math.ceil(self.oversample * x.shape[axis]) for axis in axes]
        found: Tensor = torch.fft.fftn(x, s=sizes, dim=axes, norm="ortho").abs()
        return found


class Linear(Measurement):
    """y = A·x + noise·n for a matrix A.

    Parameters
    ----------
    matrix : Tensor or array, shape (m, n)
        n is the number of elements of a sample.
    noise : float
        > 0, in the units of y.

    Raises
    ------
    TypeError, ValueError
        For what is no matrix of finite numbers.

    Examples
    --------
    >>> Linear([[1.0, 1.0]], noise=0.1)(torch.tensor([[1.0, 2.0]]))
    tensor([[3.]])
    """

    def __init__(self, matrix: Any, noise: float) -> None:
        matrix = as_reals(matrix, "matrix")
        if matrix.ndim != 2 or not matrix.numel():
            raise ValueError(f"matrix has shape (m, n), got {tuple(matrix.shape)}")
        if not bool(matrix.isfinite().all()):
            raise ValueError("matrix has numbers that are NaN or infinite")
        super().__init__(self._product, noise, linear=True)
        self.matrix = matrix

    def _product(self, x: Tensor) -> Tensor:
        """A·x."""
        wide = self.matrix.shape[1]
        if math.prod(x.shape[1:]) != wide:
            raise ValueError(
                f"the matrix has {wide} columns, and a sample {math.prod(x.shape[1:])} elements"
            )
        found: Tensor = x.flatten(1) @ self.matrix.to(x).T
        return found


def _axes(x: Tensor) -> tuple[int, ...]:
    """The axes of samples (B, *shape) along which signals or images lie."""
    if x.ndim < 2:
        raise ValueError("it takes samples of one axis or more")
    return (-1,) if x.ndim <= 3 else (-2, -1)


def _gaussian(width: float) -> Tensor:
    """A Gaussian of a standard deviation in elements, cut at four of them, whose sum is 1."""
    reach = max(1, math.ceil(4 * width))
    at = torch.arange(-reach, reach + 1, dtype=torch.float64, device="cpu")
    weights = torch.exp(-0.5 * (at / width).square())
    return weights / weights.sum()
