"""A measurement y = A(x) + noise·n, n ~ N(0, I), and the checks of a y that was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.checks import brief_repr, real_number
from ..common.inputs import as_reals


class Measurement:
    """Any differentiable map A of samples, and the noise of what it gives: y = A(x) + noise·n.

    Parameters
    ----------
    function : callable (B, *shape) -> (B, *m)
        A, in the units of the data; its rows do not mix.
    noise : float
        Standard deviation of the noise, > 0, in the units of y: one for all of its entries. Where
        they differ, measure A(x)/noise and say noise=1.
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
    observed: Tensor | None = None
    """True for the elements of y that count, broadcast to y; None for all."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], noise: float, *, linear: bool = False
    ) -> None:
        if not callable(function):
            raise TypeError(f"a measurement is a function of samples, got {brief_repr(function)}")
        if isinstance(noise, list | tuple) or getattr(noise, "shape", None):
            raise TypeError(
                f"noise is one number for all of y, got {brief_repr(noise)}: where entries differ "
                "in noise, measure A(x)/noise, give y/noise, and say noise=1"
            )
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
        >>> scoresde.measurements.Denoise(1.0).log_likelihood(torch.zeros(1, 1), torch.zeros(1, 1))
        tensor([-0.9189])
        """
        if not self.noise:
            raise ValueError(f"y has no density given x without noise: {self!r}")
        residual = (self.flat(y) - self.flat(self(x))) / self.noise
        constant = math.log(self.noise) + 0.5 * math.log(2 * math.pi)
        return -0.5 * residual.square().sum(1) - constant * residual.shape[1]

    def flat(self, y: Tensor) -> Tensor:
        """Return the elements of y (B, *m) that count, as rows.

        Parameters
        ----------
        y : Tensor, shape (B, *m)

        Returns
        -------
        Tensor, shape (B, k)

        Examples
        --------
        >>> scoresde.measurements.Inpaint([True, False]).flat(torch.tensor([[1.0, 2.0]]))
        tensor([[1.]])
        """
        rows = y.reshape(len(y), -1)
        if self.observed is None:
            return rows
        counts = self.observed.to(y.device).expand(y.shape[1:]).reshape(-1)
        return rows[:, counts]

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return Aᵀ·y of a linear measurement, by automatic differentiation.

        Parameters
        ----------
        y : Tensor, shape (B, *m)
        shape : tuple of int
            The shape of a sample.

        Returns
        -------
        Tensor, shape (B, *shape)

        Raises
        ------
        TypeError
            For a measurement that is not linear.

        Examples
        --------
        >>> product = scoresde.measurements.Linear([[1.0, 2.0]], noise=0.1)
        >>> product.adjoint(torch.tensor([[3.0]]), (2,))
        tensor([[3., 6.]])
        """
        if not self.linear:
            raise TypeError(f"{self!r} is not linear and has no adjoint")
        with torch.inference_mode(False), torch.enable_grad():
            x = y.new_zeros(len(y), *shape).requires_grad_()
            (found,) = torch.autograd.grad(self(x), x, y)
        return found

    def accept(self, y: Any, model: Any) -> Tensor:
        """Return a measured y, checked against A(x) of a model's data: one row for all, or n.

        Parameters
        ----------
        y : Tensor or array, shape (*m) or (n, *m)
            In the units of A(x).
        model : Model

        Returns
        -------
        Tensor, shape (1, *m) or (n, *m)
            0 where y does not count.

        Raises
        ------
        TypeError, ValueError
            For y of another shape than A(x), not finite, or an A that does not take samples of
            this model, mixes rows, has no gradient, or is not linear as it says.

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> scoresde.measurements.Linear([[1.0, 1.0]], noise=0.1).accept([3.0], sde)
        tensor([[3.]], dtype=torch.float64)
        """
        shape = self._probe(model)
        y = as_reals(y, "y")
        y = y if y.is_floating_point() else y.double()
        if tuple(y.shape) == shape:
            y = y.unsqueeze(0)
        elif tuple(y.shape[1:]) != shape or not y.ndim or not len(y):
            wanted = ", ".join(("n", *map(str, shape)))
            raise ValueError(
                f"y has shape {tuple(y.shape)}, and A(x) of a sample has {shape}: wanted that, "
                f"or ({wanted}), a row for each sample"
            )
        if self.observed is not None:
            y = torch.where(self.observed.to(y.device), y, 0)
        if not bool(y.isfinite().all()):
            rows = (~y.isfinite()).reshape(len(y), -1).any(1).nonzero()[:, 0].tolist()
            raise ValueError(
                f"y has NaN or infinite values, in row {rows[0]}: leave out what was not measured, "
                "by Inpaint(mask) or fewer rows of a matrix"
            )
        found: Tensor = y
        return found

    def with_exact(self, x: Tensor, y: Tensor) -> Tensor:
        """Return samples x (B, *shape) with what y (B or 1, k), as of `flat`, says exactly.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        y : Tensor, shape (B, k) or (1, k)

        Returns
        -------
        Tensor, shape (B, *shape)

        Examples
        --------
        >>> first = scoresde.measurements.Inpaint([True, False])
        >>> first.with_exact(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0]]))
        tensor([[0., 2.]])
        """
        return x

    def _probe(self, model: Any) -> tuple[int, ...]:
        """The shape of A(x) of one sample, once A is seen to take samples of the model."""
        with torch.inference_mode(False), torch.enable_grad():
            like = model.scale.new_empty(0, dtype=model.state_dtype)
            zeros = like.new_zeros(4, model.dim)
            zeros[1:3] = torch.linspace(-1, 1, 2 * model.dim).reshape(2, -1)
            zeros[3] = zeros[1] + zeros[2]
            x = model.to_data(zeros).detach().requires_grad_()
            name = f"{self!r} of samples of shape {model.shape}"
            try:
                found = self(x)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise ValueError(f"{name} fails: {reason}") from error
            if not isinstance(found, Tensor) or found.is_complex():
                came = found.dtype if isinstance(found, Tensor) else type(found).__name__
                raise TypeError(f"{name} is a tensor of real numbers, got {came}")
            if not found.ndim or len(found) != len(x):
                raise ValueError(
                    f"{name} has a row for each: got {tuple(found.shape)} for {len(x)} samples"
                )
            if not found.numel():
                raise ValueError(f"{name} measures nothing: it has shape {tuple(found.shape)}")
            if not bool(found.isfinite().all()):
                raise ValueError(f"{name} is not finite near the mean of the data")
            self._check_gradient(found, x, name)
        if self.linear:
            self._check_linear(found.detach().double(), name)
        return tuple(found.shape[1:])

    def _check_gradient(self, found: Tensor, x: Tensor, name: str) -> None:
        """Raise unless A has a gradient, and its rows do not mix."""
        gradient = None
        if found.requires_grad:
            (gradient,) = torch.autograd.grad(found[0].sum(), x, allow_unused=True)
        if gradient is None:
            raise ValueError(
                f"{name} has no gradient (detach, no_grad, rounding or numpy inside it?)"
            )
        if bool((gradient[1:] != 0).any()):
            raise ValueError(f"{name} mixes rows: A(x)[i] is a function of x[i] alone")

    def _check_linear(self, found: Tensor, name: str) -> None:
        """Raise unless A(x) + A(x') = A(x + x') + A(0): rows of the probe are 0, x, x', x + x'."""
        size = found.abs().amax()
        gap = (found[1] + found[2] - found[3] - found[0]).abs().amax()
        if bool(gap > 1e-2 * size):
            raise ValueError(f"{name} says that it is linear, and A(x) + A(x') is not A(x + x')")

    def __repr__(self) -> str:
        """Its name and noise."""
        return f"{type(self).__name__}(noise={self.noise:g})"


def require_measurement(value: Any) -> Measurement:
    """A measurement; TypeError, with what to write, for anything else."""
    if isinstance(value, Measurement):
        return value
    came = brief_repr(value)
    if isinstance(value, type):
        raise TypeError(f"a measurement is an object, got the class {value.__name__}")
    if callable(value):
        raise TypeError(
            f"a measurement says its noise, and {came} is a function alone: write "
            "measurements.Measurement(f, noise=0.1)"
        )
    raise TypeError(
        f"a measurement is one of scoresde.measurements, such as Inpaint(mask), got {came}"
    )
