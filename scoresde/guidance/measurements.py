"""Measurements y = A(x) + noise·n, n ~ N(0, I), of samples x in the units of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.checks import brief_repr, real_number
from ..common.inputs import as_tensor


class Measurement:
    """Any differentiable map A of samples, and the noise of what it gives: y = A(x) + noise·n.

    Parameters
    ----------
    function : callable (B, *shape) -> (B, *m)
        A, in the units of the data; its rows do not mix.
    noise : float
        Standard deviation of the noise, > 0, in the units of y.
    linear : bool
        Whether A(x) = A·x, so that A of a sum is the sum of the A's.

    Raises
    ------
    TypeError, ValueError
        For a function that can't be called, or noise ≤ 0.

    Examples
    --------
    >>> product = Measurement(lambda x: x[:, :1] * x[:, 1:], noise=0.1)
    >>> product(torch.tensor([[2.0, 3.0]]))
    tensor([[6.]])
    """

    noise_may_be_zero = False

    def __init__(
        self, function: Callable[[Tensor], Tensor], noise: float, *, linear: bool = False
    ) -> None:
        if not callable(function):
            raise TypeError(f"a measurement is a function of samples, got {brief_repr(function)}")
        closed = self.noise_may_be_zero
        self.noise = real_number("noise", noise, 0, math.inf, closed=closed)
        self.function = function
        self.linear = linear

    def __call__(self, x: Tensor) -> Tensor:
        """Return A(x) of samples (B, *shape), without noise."""
        return self.function(x)

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log p(y | x) (B,) = log N(y; A(x), noise²), in nats, noise > 0.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        y : Tensor, shape (B, *m) or (1, *m)

        Returns
        -------
        Tensor, shape (B,)

        Examples
        --------
        >>> Denoise(1.0).log_likelihood(torch.zeros(1, 1), torch.zeros(1, 1))
        tensor([-0.9189])
        """
        residual = ((y - self(x)) / self.noise).flatten(1)
        constant = math.log(self.noise) + 0.5 * math.log(2 * math.pi)
        return -0.5 * residual.square().sum(1) - constant * residual.shape[1]

    def __repr__(self) -> str:
        """Its name and noise."""
        return f"{type(self).__name__}(noise={self.noise:g})"


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

    def _masked(self, x: Tensor) -> Tensor:
        """X where it is observed, 0 elsewhere."""
        return torch.where(self.mask.to(x.device), x, 0)


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
        matrix = as_tensor(matrix, "matrix")
        if matrix.ndim != 2 or not matrix.numel():
            raise ValueError(f"matrix has shape (m, n), got {tuple(matrix.shape)}")
        if not bool(matrix.isfinite().all()):
            raise ValueError("matrix has numbers that are NaN or infinite")
        super().__init__(self._product, noise, linear=True)
        self.matrix = matrix

    def _product(self, x: Tensor) -> Tensor:
        """A·x."""
        found: Tensor = x.flatten(1) @ self.matrix.to(x).T
        return found
