"""What was measured of a sample, as solvers of inverse problems need it: coordinates of states.

Any linear measurement y = A·x + noise·n of data is one of standardized data x̃0, and by the
singular vectors of A one of k coordinates, each with a noise of its own,

    Vᵀ·x̃0 = c + τ·n,        VᵀV = I.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """A linear measurement of standardized data, Vᵀ·x̃0 = c + τ·n.

    Attributes
    ----------
    values : Tensor, shape (B or 1, k)
        c, for each sample or for all.
    std : Tensor, shape (k,)
        τ ≥ 0.
    coordinates : callable (B, n) -> (B, k)
        z ↦ Vᵀ·z.
    states : callable (B, k) -> (B, n)
        c ↦ V·c.

    Examples
    --------
    The first of two numbers, exactly:

    >>> first = Measured(
    ...     values=torch.tensor([[3.0]]),
    ...     std=torch.zeros(1),
    ...     coordinates=lambda z: z[:, :1],
    ...     states=lambda c: torch.cat([c, torch.zeros_like(c)], 1),
    ... )
    >>> first.conditioned(torch.ones(1, 2), 0.5, torch.zeros(1, 2))
    tensor([[3., 1.]])
    """

    values: Tensor
    std: Tensor
    coordinates: Callable[[Tensor], Tensor]
    states: Callable[[Tensor], Tensor]

    def rows(self, start: int, stop: int) -> Measured:
        """Return the measurement of samples start to stop alone.

        Parameters
        ----------
        start, stop : int

        Returns
        -------
        Measured

        Examples
        --------
        See `Measured`.
        """
        if len(self.values) == 1:
            return self
        return replace(self, values=self.values[start:stop])

    def conditioned(
        self,
        mean: Tensor,
        std: float,
        noise: Tensor,
    ) -> Tensor:
        """Return draws of x̃0 from N(x̃0; mean, std²·I)·p(y | x̃0), exactly.

        Parameters
        ----------
        mean : Tensor, shape (B, n)
        std : float
            ≥ 0.
        noise : Tensor, shape (B, n)
            Standard normal numbers.

        Returns
        -------
        Tensor, shape (B, n)

        Examples
        --------
        See `Measured`.
        """
        own = self.std.to(mean)
        both = (own.square() + std**2).sqrt()
        exact = both == 0
        gain = torch.where(own == 0, 1, std**2 / torch.where(exact, 1, both).square())
        left = torch.where(exact, 0, std * own / torch.where(exact, 1, both))
        shift = gain * (self.values.to(mean) - self.coordinates(mean))
        shift = shift + (left - std) * self.coordinates(noise)
        return mean + std * noise + self.states(shift)

    def replaced(
        self,
        z: Tensor,
        cos: float,
        sin: float,
        noise: Tensor,
    ) -> Tensor:
        """Return states whose measured coordinates are cos·c + sin·n instead.

        Parameters
        ----------
        z : Tensor, shape (B, n)
        cos, sin : float
            Of the angle of the states.
        noise : Tensor, shape (B, n)
            Standard normal numbers.

        Returns
        -------
        Tensor, shape (B, n)

        Examples
        --------
        See `Measured`.
        """
        wanted = cos * self.values.to(z) + sin * self.coordinates(noise)
        return z + self.states(wanted - self.coordinates(z))
