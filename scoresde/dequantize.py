"""Discrete data for a continuous model: noise inside each bin, and the density of that noise.

An integer v in 0 … L − 1 owns the bin [v/L, (v + 1)/L) of the unit scale, and x = (v + u)/L lies in it, with u in [0, 1) of
density h(u), so that log q(x|v) = Σ_i log(L·h(u_i)). u is found as the quantile of its law at a uniform number. For any model
density p, log P(v) = log ∫ p(x) dx over the bin ≥ E[log p(x) − log q(x|v)] by Jensen's inequality (Theis et al. 2016), and
bits per dimension are that over −D·ln 2: see `scoresde.bits_per_dim`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .checks import affordable, check_generator, number, whole
from .inputs import as_condition, as_reals, as_tensor
from .random import PRIOR, Noise, draw_seed
from .schema import Schema
from .sde import ScoreSDE

__all__ = ["Dequantization", "Dequantized", "TruncatedNormal", "Uniform"]

FLOAT32_LEVELS = 4096  # with more of them, float32 has too few numbers in a bin


@dataclass(frozen=True)
class Dequantization(abc.ABC):
    """How integers become points of the unit scale, and back: one object for training data, bits per dimension and samples.

    Subclasses give `_noise`, the law of u in its bin.

    Parameters
    ----------
    levels : int
        L, at most 2³²: values are 0 … L − 1.

    Examples
    --------
    >>> issubclass(scoresde.dequantize.Uniform, Dequantization)
    True
    """

    levels: int

    def __post_init__(self) -> None:
        if whole("levels", self.levels, 2) > 2**32:
            raise ValueError(f"levels is at most 2^32, got {self.levels}; take such data for continuous ones")

    @abc.abstractmethod
    def _noise(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return u in [0, 1], the law's quantile at q in [0, 1], and log h(u), both of q's shape and dtype."""

    def noisy(self, values: Any, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return x = (v + u)/L and its log-density given v.

        Parameters
        ----------
        values : Tensor or array of integers 0 … L − 1, shape (B, *shape)
            Of any integer or floating dtype.
        generator : torch.Generator, optional
            The randomness, on any device: that of sample i does not depend on its mates.

        Returns
        -------
        x : Tensor, shape (B, *shape)
            Inside its bin; float32, or float64 for float64 values and for more than 4096 levels.
        log_q : Tensor, shape (B,)
            Nats, in the units of x.

        Raises
        ------
        TypeError, ValueError
            For what are no integers 0 … L − 1.

        Examples
        --------
        >>> x, log_q = scoresde.dequantize.Uniform(256).noisy(torch.tensor([[0, 255]]))
        >>> (x * 256).floor(), log_q  # log_q = 2·log 256
        (tensor([[  0., 255.]]), tensor([11.0904]))
        """
        check_generator(generator)
        v = self._accept(values)
        like = torch.empty(0, dtype=torch.float64, device=v.device)
        normal = Noise(draw_seed(generator), PRIOR, 0, len(v), v.shape[1:].numel(), like)()
        return self._add(v, torch.special.ndtr(normal).reshape(v.shape))

    def _add(self, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if v.dtype == torch.float64 or self.levels > FLOAT32_LEVELS else torch.float32
        u, log_h = self._noise(q)
        edge = 2 * self.levels * torch.finfo(dtype).eps  # what rounding, here and in `values`, may move u by
        x = (v.to(dtype) + u.clamp(edge, 1 - edge).to(dtype)) / self.levels
        log_q = log_h.reshape(len(v), v.shape[1:].numel()).sum(1) + v.shape[1:].numel() * math.log(self.levels)
        return x, log_q.to(dtype)

    def values(self, x: Any) -> Tensor:
        """Return the integers whose bins hold x, ⌊L·x⌋, with what lies outside [0, 1) moved to the nearest: samples as pixels.

        Parameters
        ----------
        x : Tensor or array
            On the unit scale.

        Returns
        -------
        Tensor of int64, of x's shape

        Raises
        ------
        ValueError
            If x is not finite.

        Examples
        --------
        >>> scoresde.dequantize.Uniform(256).values(torch.tensor([-0.1, 0.5, 1.2]))
        tensor([  0, 128, 255])
        """
        scaled = as_reals(x, "x").double() * self.levels
        if bad := int((~scaled.isfinite()).sum()):
            raise ValueError(f"x is on the unit scale, got NaN or infinite values in {bad} places")
        return scaled.floor().clamp(0, self.levels - 1).long()

    def bits(self, log_prob: Tensor, log_q: Tensor, dim: int) -> Tensor:
        """Return −(log p(x) − log q(x|v))/(D·ln 2), for a log p(x) found elsewhere: by `elbo`, or by another library.

        Parameters
        ----------
        log_prob : Tensor, shape (B,)
            log p(x), or a bound on it, in nats, x on the unit scale.
        log_q : Tensor, shape (B,), or float
            From `noisy`; for uniform noise D·log L.
        dim : int
            D, elements per sample.

        Returns
        -------
        Tensor, shape (B,)
            Bits per dimension.

        Raises
        ------
        TypeError, ValueError
            Unless dim is a positive integer.

        Examples
        --------
        >>> scoresde.dequantize.Uniform(256).bits(torch.zeros(1), 64 * math.log(256), dim=64)  # uniform over all images
        tensor([8.])
        """
        if not isinstance(log_q, float | int):
            log_q = as_reals(log_q, "log_q")
        return (log_q - as_reals(log_prob, "log_prob")) / (whole("dim", dim) * math.log(2))

    def dataset(self, values: Any, **condition: Any) -> Dequantized:
        """Return integers as data to train on, with noise of their own at every access.

        Parameters
        ----------
        values : Tensor, array or data frame of integers 0 … L − 1, shape (N, *shape)
        **condition : Tensor, array, Series or list, shape (N, ...)
            Labels by name; words will do.

        Returns
        -------
        Dequantized
            Keeps the values' dtype, where PyTorch can index it.

        Raises
        ------
        TypeError, ValueError
            For what are no integers 0 … L − 1, or conditions of another length.

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> data = scoresde.dequantize.Uniform(4).dataset(torch.randint(4, (100, 2)))
        >>> scoresde.fit(sde, data, steps=20, progress=False)
        History(steps=20, loss=..., seconds=...)
        """
        schema = Schema()
        values, told = schema.learn(values, condition)
        v = self._accept(values)
        labels = {name: as_condition(value, name) for name, value in told.items()}
        for name, value in labels.items():
            if not value.ndim or len(value) != len(v):
                raise ValueError(f"condition {name!r} has shape {tuple(value.shape)} for {len(v)} samples")
        return Dequantized(self, v, labels, schema)

    def _accept(self, values: Any) -> Tensor:
        wanted = f"values are integers from 0 to {self.levels - 1}"
        if isinstance(values, Dequantized):
            raise TypeError(f"{wanted}, got a Dequantized; give its .integers")
        try:
            v = as_tensor(values, "values")
        except TypeError as error:
            came = error if isinstance(values, Tensor) or hasattr(values, "__array__") else f"got {type(values).__name__}"
            raise TypeError(f"{wanted}, in a tensor or array; {came}") from None
        if v.is_complex() or v.dtype == torch.bool:
            raise TypeError(f"{wanted}, got dtype {v.dtype}; convert them, e.g. .long()")
        if not v.ndim or not v.numel():
            raise ValueError(f"values are (batch, *shape) and not empty, got shape {tuple(v.shape)}")
        integers = v.long()  # a comparison in uint8 would wrap
        if v.dtype in (torch.uint16, torch.uint32, torch.uint64):  # which can be neither compared nor indexed
            v = integers
        bad = (v != integers) | (integers < 0) | (integers >= self.levels)
        if bool(bad.any()):
            raise ValueError(
                f"{wanted}, got {float(v[bad][0]):g} and {int(bad.sum()) - 1} more such; give levels= that fit, "
                "or dequantization=None to bits_per_dim for data that are not discrete"
            )
        return v


@dataclass(frozen=True)
class Uniform(Dequantization):
    """u ~ U[0, 1): the usual dequantization of images, log q(x|v) = D·log L (Theis et al. 2016).

    Parameters
    ----------
    levels : int
        L: values are 0 … L − 1.

    Raises
    ------
    TypeError, ValueError
        Unless levels is an integer of at least 2.

    References
    ----------
    Theis, van den Oord & Bethge, A note on the evaluation of generative models, ICLR 2016.

    Examples
    --------
    >>> Uniform(17).noisy(torch.tensor([[16]]))[0] > 16 / 17
    tensor([[True]])
    """

    def _noise(self, q: Tensor) -> tuple[Tensor, Tensor]:
        return q, torch.zeros_like(q)


@dataclass(frozen=True)
class TruncatedNormal(Dequantization):
    """u − ½ ~ N(0, std²) truncated to [−½, ½]: variational dequantization without a network, as in i-DODE (Zheng et al. 2023).

    Data with narrow noise look like points smoothed by Gaussians, which is what a diffusion model sees anyway; uniform noise has
    edges that it must learn. Train and evaluate with the same. `fitted` picks std for a model: the one of least bits. For a
    model trained on uniform noise that is a wide one, near U[0, 1).

    Parameters
    ----------
    levels : int
        L: values are 0 … L − 1.
    std : float
        In bins. Below 0.25, take one draw in `bits_per_dim`.

    Raises
    ------
    TypeError, ValueError
        Unless levels is an integer of at least 2, and std at least 0.01.

    References
    ----------
    Zheng et al., Improved techniques for maximum likelihood estimation for diffusion ODEs, ICML 2023.

    Examples
    --------
    >>> x, log_q = TruncatedNormal(4, std=0.1).noisy(torch.tensor([[2, 0]]), torch.Generator().manual_seed(0))
    >>> (x * 4 - torch.tensor([2.5, 0.5])).abs() < 0.5
    tensor([[True, True]])
    """

    std: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        number("std", self.std, 0.01, math.inf, closed=True, hint="in bins; try 0.25")

    def _noise(self, q: Tensor) -> tuple[Tensor, Tensor]:
        edge = 0.5 / self.std
        mass = math.erf(edge / math.sqrt(2))
        n = (math.sqrt(2) * torch.special.erfinv((2 * q - 1) * mass)).clamp(-edge, edge)
        log_h = -0.5 * n.square() - (math.log(self.std) + 0.5 * math.log(2 * math.pi) + math.log(mass))
        return 0.5 + self.std * n, log_h

    @classmethod
    def fitted(
        cls,
        sde: ScoreSDE,
        values: Any,
        levels: int,
        *,
        stds: Sequence[float] = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0, 10.0),
        generator: torch.Generator | None = None,
        **how: Any,
    ) -> TruncatedNormal:
        """Return the dequantization whose std gives a model the fewest bits on a handful of samples.

        Every std sees the same random numbers, so a few dozen samples tell them apart. Use samples that are not evaluated later.

        Parameters
        ----------
        sde : ScoreSDE
        values : Tensor or array of integers 0 … L − 1, shape (B, *shape)
            A handful, e.g. 32.
        levels : int
            L.
        stds : sequence of float
            Candidates, in bins; 10 is uniform noise.
        generator : torch.Generator, optional
            The randomness.
        **how
            For `likelihood`.

        Returns
        -------
        TruncatedNormal

        Raises
        ------
        TypeError, ValueError, SolverError
            As `bits_per_dim`.

        Examples
        --------
        >>> bumps = scoresde.toy.GaussianMixture([[0.125], [0.375], [0.625], [0.875]], stds=0.05)
        >>> sde, values = scoresde.oracle(bumps, scoresde.VPSDE()), torch.arange(4).repeat(16)[:, None]
        >>> TruncatedNormal.fitted(sde, values, 4, generator=torch.Generator().manual_seed(1)).std
        0.2
        """
        from .bits import bits_per_dim  # which imports this module

        candidates = [cls(levels, std) for std in stds]
        if not candidates:
            raise ValueError("stds is empty; give candidates such as (0.1, 0.2, 0.4)")
        check_generator(generator)
        seed = draw_seed(generator)

        def cost(each: TruncatedNormal) -> float:
            return bits_per_dim(sde, values, each, generator=torch.Generator().manual_seed(seed), **how).mean

        return min(candidates, key=cost)


@dataclass(frozen=True, eq=False, repr=False)
class Dequantized:
    """Integers as data to train on, which `fit` takes: noise of their own at every access, whole batches at once.

    `data[i]` takes an integer, a slice or indices. Without labels `fit` draws from it; with labels, it goes through its rows.

    Parameters
    ----------
    dequantization : Dequantization
    integers : Tensor, shape (N, *shape)
    condition : dict of str to Tensor
    schema : Schema
        The names of columns and classes, if the data had any.

    Examples
    --------
    >>> data = scoresde.dequantize.Uniform(4).dataset(torch.tensor([[0, 3]] * 10), y=torch.arange(10))
    >>> x, condition = data[[2, 5]]
    >>> x.shape, condition
    (torch.Size([2, 2]), {'y': tensor([2, 5])})
    """

    dequantization: Dequantization
    integers: Tensor
    condition: dict[str, Tensor]
    schema: Schema = field(default_factory=Schema)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.integers)

    def __repr__(self) -> str:
        """What and how much."""
        return f"Dequantized({self.dequantization}, {len(self)} samples)"

    def __getitem__(self, rows: Any) -> Any:
        """Return the samples of these rows with fresh noise; with their labels, if there are any."""
        at = rows if isinstance(rows, slice) else as_tensor(rows, "rows")
        at = at if isinstance(at, slice) or at.numel() else at.long()  # an empty list has no dtype
        v = self.integers[at]
        x = self._noisy(v) if v.ndim == self.integers.ndim else self._noisy(v[None])[0]
        labels = {name: value[at] for name, value in self.condition.items()}
        return (x, labels) if labels else x

    def _noisy(self, v: Tensor, generator: torch.Generator | None = None) -> Tensor:
        device = v.device if generator is None else generator.device
        q = torch.rand(v.shape, generator=generator, device=device)
        return self.dequantization._add(v, q.to(v.device))[0]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n of the samples, with replacement, and fresh noise.

        Parameters
        ----------
        n : int
        generator : torch.Generator, optional

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
                f"samples would come without their {', '.join(self.condition)}: take rows, data[rows], which have them"
            )
        n = whole("n", n)
        check_generator(generator)
        device = self.integers.device if generator is None else generator.device
        affordable(f"n={n} samples", 4.0 * n * self.integers[0].numel(), device=device)
        rows = torch.randint(len(self), (n,), generator=generator, device=device)
        return self._noisy(self.integers[rows.to(self.integers.device)], generator)
