"""What every toy density can do: draw x ~ p, evaluate log p(x), state its entropy H = −E[log p(x)]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from ..checks import affordable, check_generator, said, whole
from ..inputs import FLOATING, as_tensor
from ..registry import explained


class Density(ABC):
    """A density with a known truth; a new one supplies `_sample`, `_log_prob`, `_entropy` and `bounds`.

    The hooks work in float64; `_rows` is how many points `_log_prob` is given at a time, which bounds its
    memory.

    Examples
    --------
    >>> import math
    >>> class UnitSquare(Density):
    ...     def bounds(self): return torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
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
    @explained
    def sample(self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Draw n independent points x ~ p.

        Parameters
        ----------
        n : int
            How many points, at least 1.
        generator : torch.Generator, optional
            The only source of randomness when given; the points lie on its device.
        dtype : torch.dtype, optional
            Of the points; None means torch's default.

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
        n = whole("n", n)
        check_generator(generator)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in FLOATING:
            raise TypeError(f"sample got dtype = {said(dtype)}; it wants a floating type, such as torch.float32")
        device = torch.device("cpu") if generator is None else generator.device
        affordable(f"n={n} samples", 8.0 * n * math.prod(self.shape), device=device)
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
        return torch.cat([self._log_prob(part) for part in torch.split(x.double(), self._rows)]).to(x.dtype)

    @final
    def entropy(self) -> float:
        """Return the entropy H = −E[log p(x)], in closed form or by quadrature to 1e-6 nats; computed once.

        Returns
        -------
        float
            H in nats, the mean negative log-likelihood that no model can beat.

        Raises
        ------
        ValueError
            Where neither a closed form nor an affordable quadrature exists; estimate it from samples.

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
    def _sample(self, n: int, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype) -> Tensor: ...

    @abstractmethod
    def _log_prob(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _entropy(self) -> float: ...

    def _check(self, x: Tensor) -> None:
        if isinstance(x, Tensor):
            as_tensor(x, "x")
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TypeError(f"{type(self).__name__} got {what}; it wants a floating tensor, torch.as_tensor(x).float()")
        if x.ndim == 0 or tuple(x.shape[1:]) != self.shape:
            hint = "add a batch axis with x[None]" if tuple(x.shape) == self.shape else "reshape x"
            wanted = f"(n, {', '.join(map(str, self.shape))})"
            raise ValueError(f"{type(self).__name__} got shape {tuple(x.shape)}; it wants {wanted}: {hint}")

    def __repr__(self) -> str:
        """Name and event shape."""
        return f"{type(self).__name__}(shape={self.shape})"
