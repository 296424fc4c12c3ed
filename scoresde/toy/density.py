"""The base of toy densities: samples x ~ p, log p(x), and the entropy H = −E[log p(x)]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from ..common.checks import brief_repr, check_budget, check_generator, whole_number
from ..common.inputs import FLOATING, as_tensor
from ..common.names import suggest_arguments
from ..common.seeds import takes_seed


class Density(ABC):
    """A density with a known truth.

    A new one gives `_sample`, `_log_prob`, `_entropy` and `bounds`, in float64. `_rows` is how many
    points `_log_prob` gets at a time, which bounds its memory.

    Examples
    --------
    >>> class UnitSquare(Density):
    ...     def bounds(self): return torch.zeros(2).double(), torch.ones(2).double()
    ...     def _sample(self, n, generator, device, dtype):
    ...         return torch.rand(n, 2, generator=generator, device=device, dtype=dtype)
    ...     def _log_prob(self, x): return torch.where(((x >= 0) & (x < 1)).all(1), 0.0, -math.inf)
    ...     def _entropy(self): return 0.0
    >>> UnitSquare().log_prob(torch.tensor([[0.5, 0.5], [0.5, 1.5]]))
    tensor([0., -inf])
    """

    shape: tuple[int, ...] = (2,)
    _rows: int = 4096
    _nats: float | None = None

    @final
    @takes_seed
    @suggest_arguments
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        *,
        seed: int | None = None,
    ) -> Tensor:
        """Draw n independent points x ~ p.

        Parameters
        ----------
        n : int
            How many points, at least 1.
        generator : torch.Generator, optional
            The only source of randomness when given; the points lie on its device.
        seed : int, optional
            An integer in place of the generator.
        dtype : torch.dtype, optional
            The dtype of the points; by default torch's.

        Returns
        -------
        Tensor, shape (n, *shape)
            In the units of the data.

        Raises
        ------
        ValueError
            For n < 1.
        TypeError
            If n is not an integer or dtype is not a floating-point type.

        Examples
        --------
        >>> from scoresde.toy import Checkerboard
        >>> Checkerboard().sample(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
        """
        n = whole_number("n", n)
        check_generator(generator)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in FLOATING:
            got = brief_repr(dtype)
            raise TypeError(
                f"sample got dtype = {got}; it wants a floating type, such as torch.float32"
            )
        device = torch.device("cpu") if generator is None else generator.device
        check_budget(f"n={n} samples", 8.0 * n * math.prod(self.shape), device=device)
        return self._sample(n, generator, device, dtype)

    @final
    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), evaluated in float64 whatever the dtype of x; −inf outside the support.

        Parameters
        ----------
        x : Tensor, shape (n, *shape)
            Floating point, on any device that has float64.

        Returns
        -------
        Tensor, shape (n,)
            In nats, in the dtype and on the device of x; NaN where x is NaN.

        Raises
        ------
        TypeError
            If x is not a floating-point tensor.
        ValueError
            If x is not of shape (n, *shape).

        Examples
        --------
        >>> from scoresde.toy import Checkerboard
        >>> Checkerboard().log_prob(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        tensor([-3.4657,    -inf])
        """
        self._check(x)
        parts = torch.split(x.double(), self._rows)
        return torch.cat([self._log_prob(part) for part in parts]).to(x.dtype)

    @final
    def entropy(self) -> float:
        """Return the entropy H = −E[log p(x)]; it is computed once.

        It has a closed form, or a quadrature to 1e-6 nats.

        Returns
        -------
        float
            H in nats: the least mean negative log-likelihood of any model.

        Raises
        ------
        ValueError
            Where neither a closed form nor an affordable quadrature exists; estimate it from
            samples.

        Examples
        --------
        >>> from scoresde.toy import Checkerboard
        >>> round(Checkerboard().entropy(), 4)  # log 32
        3.4657
        """
        if self._nats is None:
            with torch.inference_mode():
                self._nats = self._entropy()
        return self._nats

    @abstractmethod
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return a box that holds nearly all of the mass, for plots and grids.

        Returns
        -------
        low, high : Tensor of the event shape, float64
            In the units of the data.

        Examples
        --------
        >>> from scoresde.toy import EightGaussians
        >>> low, high = EightGaussians(radius=4.0, std=0.5).bounds()
        >>> low, high
        (tensor([-6., -6.], dtype=torch.float64), tensor([6., 6.], dtype=torch.float64))
        """

    @abstractmethod
    def _sample(
        self, n: int, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Draw n points (n, *shape)."""

    @abstractmethod
    def _log_prob(self, x: Tensor) -> Tensor:
        """Return log p (n,) of points in float64."""

    @abstractmethod
    def _entropy(self) -> float:
        """Return H in nats."""

    def _check(self, x: Tensor) -> None:
        """Raise unless x is a floating-point tensor (n, *shape)."""
        if isinstance(x, Tensor):
            as_tensor(x, "x")
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TypeError(
                f"{type(self).__name__} got {what}; it wants a floating tensor, "
                "torch.as_tensor(x).float()"
            )
        if x.ndim == 0 or tuple(x.shape[1:]) != self.shape:
            hint = "add a batch axis with x[None]" if tuple(x.shape) == self.shape else "reshape x"
            wanted = f"(n, {', '.join(map(str, self.shape))})"
            raise ValueError(
                f"{type(self).__name__} got shape {tuple(x.shape)}; it wants {wanted}: {hint}"
            )

    def __repr__(self) -> str:
        """Name and event shape."""
        return f"{type(self).__name__}(shape={self.shape})"
