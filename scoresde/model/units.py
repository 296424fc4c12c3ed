"""The map between a model's states and a user's data, and checks of that data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..common.inputs import as_floats
from ..processes.base import as_time
from .schema import is_named
from .shown import shown


class DataUnits:
    """What follows from a model's standardization."""

    def __repr__(self) -> str:
        """At most six lines: process, network, training, scale, conditions."""
        return shown(self)

    @property
    def device(self: Any) -> torch.device:
        """Where its numbers are."""
        return self.standardization.scale.device

    @property
    def dim(self: Any) -> int:
        """Number of elements of one sample that vary: of its states, and of its density."""
        return self.standardization.dim

    @property
    def free(self: Any) -> Tensor | None:
        """Which elements of a flattened sample vary, shape (dim,); None for all."""
        return self.standardization.free

    @property
    def log_scale(self: Any) -> float:
        """log|det| of the map from standardized states to data, in nats."""
        return self.standardization.log_scale

    def off_constants(self: Any, x: Tensor) -> Tensor | None:
        """Return which rows of x lie off a constant by more than 1e-6 of it: their density is 0.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            In the units of the data.

        Returns
        -------
        Tensor of bool, shape (B,), or None
            None for a model without constants.

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> sde.scale[1] = 0.0  # and its mean is 0
        >>> sde.off_constants(torch.tensor([[5.0, 0.0], [5.0, 0.1]]))
        tensor([False,  True])
        """
        return self.standardization.off_constants(x)

    @property
    def state_dtype(self: Any) -> torch.dtype:
        """The dtype of states, at least float32."""
        return torch.float32

    def to_data(self: Any, z: Tensor) -> Tensor:
        """Return standardized, flattened states as data: mean + scale ∘ (R·z); see `ScoreSDE`.

        Parameters
        ----------
        z : Tensor, shape (B, n)

        Returns
        -------
        Tensor, shape (B, *shape)

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(1, 2, 2)).to_data(torch.ones(3, 4)).shape
        torch.Size([3, 1, 2, 2])
        """
        return self.standardization.to_data(z)

    def from_data(self: Any, x: Tensor) -> Tensor:
        """Return data as standardized, flattened states, R⁻¹·(x − mean)/scale, without constants.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)

        Returns
        -------
        Tensor, shape (B, n)

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(1, 2, 2)).from_data(torch.ones(3, 1, 2, 2)).shape
        torch.Size([3, 4])
        """
        return self.standardization.from_data(x)

    def from_start(self: Any, x: Tensor) -> Tensor:
        """Return points at t = 1, where α = 0, as states on the arc: R⁻¹·(x − mean)/(scale·σ(1)).

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            In the units of the data.

        Returns
        -------
        Tensor, shape (B, n)

        Examples
        --------
        >>> scoresde.build("rectified", "mlp", shape=(2,)).from_start(torch.ones(1, 2))
        tensor([[1., 1.]])
        """
        return self.from_data(x) / float(self.process.radius(as_time(1.0)))

    def accept(self: Any, x: Any, what: str = "x") -> Tensor:
        """Check a batch from a user, and return it on the model's device.

        Parameters
        ----------
        x : Tensor, array or data frame, shape (B, *shape)
            In the units of the data; columns with names are put into the model's order.
        what : str
            The argument's name, for messages.

        Returns
        -------
        Tensor, shape (B, *shape)
            In the dtype that states have, or a wider one that it came in.

        Raises
        ------
        TypeError
            If x is not a tensor of floating-point numbers.
        ValueError
            For a wrong shape or numbers that are not finite.

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).accept(torch.zeros(5, 3))
        Traceback (most recent call last):
        ValueError: x has shape (5, 3), wanted (batch, 2)
        """
        if is_named(x):
            if self.table is not None:
                raise TypeError(
                    f"{what} is encoded rows of the model's table here: sde.table.encode(frame)"
                )
            x = self.schema.values(x)
        x = as_floats(x, self.shape, what)
        dtype = torch.promote_types(x.dtype, self.state_dtype)
        return x.to(self.device, dtype)
