"""Integers as training data: noise in their bins, new at every access."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..common.checks import check_budget, check_generator, whole_number
from ..common.inputs import as_tensor
from ..common.seeds import takes_seed
from ..model.schema import Schema


@dataclass(frozen=True, eq=False, repr=False)
class Dequantized:
    """Integers as data to train on, with fresh noise at every access.

    `data[i]` takes an integer, a slice or indices, and returns a whole batch at once. `fit` draws
    samples from it, or goes through its rows if there are labels.

    Parameters
    ----------
    dequantization : Dequantization
    integers : Tensor, shape (N, *shape)
    condition : dict of str to Tensor
    schema : Schema
        The names of columns and classes, if the data had any.

    Examples
    --------
    >>> integers = torch.tensor([[0, 3]] * 10)
    >>> data = scoresde.dequantize.Uniform(4).dataset(integers, y=torch.arange(10))
    >>> x, condition = data[[2, 5]]
    >>> x.shape, condition
    (torch.Size([2, 2]), {'y': tensor([2, 5])})
    """

    dequantization: Any  # a Dequantization, which imports this module
    integers: Tensor
    condition: dict[str, Tensor]
    schema: Schema = field(default_factory=Schema)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.integers)

    def __repr__(self) -> str:
        """The dequantization and the number of samples."""
        return f"Dequantized({self.dequantization}, {len(self)} samples)"

    def __getitem__(self, rows: Any) -> Any:
        """Return these rows with fresh noise, and with their labels, if there are any."""
        at = rows
        if not isinstance(rows, slice):
            at = as_tensor(rows, "rows")
            # An empty list has no dtype of its own.
            at = at if at.numel() else at.long()
        v = self.integers[at]
        x = self._noisy(v) if v.ndim == self.integers.ndim else self._noisy(v[None])[0]
        labels = {name: value[at] for name, value in self.condition.items()}
        return (x, labels) if labels else x

    def _noisy(self, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Integers v with fresh noise."""
        device = v.device if generator is None else generator.device
        q = torch.rand(v.shape, generator=generator, device=device)
        x: Tensor
        x, _ = self.dequantization._add(v, q.to(v.device))
        return x

    @takes_seed
    def sample(
        self, n: int, generator: torch.Generator | None = None, *, seed: int | None = None
    ) -> Tensor:
        """Draw n of the samples, with replacement, and fresh noise.

        Parameters
        ----------
        n : int
        generator : torch.Generator, optional
        seed : int, optional
            An integer in place of the generator.

        Returns
        -------
        Tensor, shape (n, *shape)
            On the unit scale.

        Raises
        ------
        TypeError
            If there are labels, which would be lost.

        Examples
        --------
        >>> scoresde.dequantize.Uniform(4).dataset(torch.tensor([[0, 3]])).sample(5).shape
        torch.Size([5, 2])
        """
        if self.condition:
            raise TypeError(
                f"samples would come without their {', '.join(self.condition)}: take rows, "
                "data[rows], which have them"
            )
        n = whole_number("n", n)
        check_generator(generator)
        device = self.integers.device if generator is None else generator.device
        check_budget(f"n={n} samples", 4.0 * n * self.integers[0].numel(), device=device)
        rows = torch.randint(len(self), (n,), generator=generator, device=device)
        return self._noisy(self.integers[rows.to(self.integers.device)], generator)
