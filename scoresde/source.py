"""What a path starts from when it is not a Gaussian: the law of x at t = 1, another density or another data set.

Any path x_t = α·x0 + σ·x1 with α(1) = 0 carries one law to another (Liu et al. 2023; Albergo et al. 2023), with x1 ~ source in
place of the noise. The ODE and its likelihood stay what they are, given log p(x1); there is no score, as Tweedie's formula is
one of Gaussian noise.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import check_generator
from .inputs import as_floats, as_tensor
from .random import PRIOR, isolated, seeded

BLOCK = 64  # samples that share a generator


class Empirical:
    """The law of a row that is drawn at random from given ones, with replacement. It has no density.

    Parameters
    ----------
    x : Tensor or array, shape (n, *shape)

    Raises
    ------
    TypeError, ValueError
        For other than finite floating-point numbers, or none.

    Examples
    --------
    >>> Empirical(torch.ones(3, 2)).sample(1)
    tensor([[1., 1.]])
    """

    def __init__(self, x: Any) -> None:
        x = as_tensor(x, "source")
        self.x = as_floats(x.detach(), tuple(x.shape[1:]), "source")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw rows.

        Parameters
        ----------
        n : int
        generator : torch.Generator, optional
            On the CPU.

        Returns
        -------
        Tensor, shape (n, *shape)

        Examples
        --------
        See `Empirical`.
        """
        check_generator(generator)
        return self.x[torch.randint(len(self.x), (n,), generator=generator, device="cpu").to(self.x.device)]

    def __repr__(self) -> str:
        """How many, of which shape."""
        return f"Empirical({len(self.x)} samples of shape {tuple(self.x.shape[1:])})"


class Missing:
    """Stands for the source of a loaded model that files can't hold."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Raise.

        Parameters
        ----------
        n : int
        generator : torch.Generator, optional

        Raises
        ------
        ValueError

        Examples
        --------
        >>> Missing().sample(1)
        Traceback (most recent call last):
        ValueError: this model starts from data or a law that was not saved with it: set sde.source to it
        """
        raise ValueError("this model starts from data or a law that was not saved with it: set sde.source to it")

    def log_prob(self, x: Tensor) -> Tensor:
        """Raise, too.

        Parameters
        ----------
        x : Tensor

        Raises
        ------
        ValueError

        Examples
        --------
        See `Missing.sample`.
        """
        return self.sample(len(x))

    def __repr__(self) -> str:
        """What it stands for."""
        return "Missing()"


def as_source(source: Any, shape: tuple[int, ...]) -> Any:
    """Return what a user gave as an object with `.sample(n)`: samples are drawn from with replacement.

    Parameters
    ----------
    source : Tensor, array, an object with .sample(n), or None
    shape : tuple of int
        Of one sample.

    Returns
    -------
    object or None

    Raises
    ------
    TypeError, ValueError
        If it is none of these, or its samples have another shape.

    Examples
    --------
    >>> as_source(torch.zeros(4, 2), (2,))
    Empirical(4 samples of shape (2,))
    """
    if source is None or isinstance(source, Missing):
        return source
    if isinstance(source, Tensor | np.ndarray):
        source = Empirical(source)
    if not callable(getattr(source, "sample", None)) or hasattr(source, "to_numpy"):
        raise TypeError(f"source is a tensor of samples or an object with .sample(n), got {type(source).__name__}")
    starts(source, 0, 0, 1, shape)
    return source


def draw(law: Any, n: int, *words: int) -> Any:
    """Draw n samples that depend on the words alone, wherever the law takes its randomness from.

    Parameters
    ----------
    law : object with .sample(n)
        One that has a `generator` argument is given one; what others do with torch's, numpy's and Python's global generators
        is seeded, and put back.
    n : int
    *words : int

    Returns
    -------
    Tensor or array, shape (n, *shape)
        What the law said, unchecked.

    Examples
    --------
    >>> moons = scoresde.toy.Moons()
    >>> torch.equal(draw(moons, 3, 1, 2), draw(moons, 3, 1, 2))
    True
    """
    with isolated() as seed:
        seed(*words, everything=True)
        if isinstance(law, torch.distributions.Distribution):
            return law.sample(torch.Size((n,)))
        if "generator" in inspect.signature(law.sample).parameters:
            return law.sample(n, generator=seeded("cpu", *words))
        return law.sample(n)


def starts(law: Any, seed: int, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
    """Draw samples number start to stop of a call: each depends on the seed and its number alone.

    Parameters
    ----------
    law : object with .sample(n)
    seed : int
        The call's.
    start, stop : int
    shape : tuple of int
        Of one sample.

    Returns
    -------
    Tensor, shape (stop − start, *shape)

    Raises
    ------
    TypeError, ValueError
        If the law returns other than finite samples of that shape.

    Examples
    --------
    >>> moons = scoresde.toy.Moons()
    >>> torch.equal(starts(moons, 1, 0, 200, (2,))[70:100], starts(moons, 1, 70, 100, (2,)))
    True
    """
    first, last = start // BLOCK, -(-stop // BLOCK)
    parts = []
    for block in range(first, last):
        x = draw(law, BLOCK, seed, PRIOR, block)
        parts.append(as_floats(as_tensor(x, "source.sample(n)").detach(), shape, "source.sample(n)"))
        if len(x) != BLOCK:
            raise ValueError(f"{type(law).__name__}.sample({BLOCK}) returned {len(x)} samples")
    return torch.cat(parts)[start - first * BLOCK : stop - first * BLOCK]
