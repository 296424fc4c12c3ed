"""Discrete data for a continuous model: noise inside each bin, and the density of that noise.

The integer v in 0 … L − 1 has the bin [v/L, (v + 1)/L) of the unit scale. x = (v + u)/L lies in
it, with u in [0, 1) of density h(u), so that log q(x|v) = Σ_i log(L·h(u_i)). u is a quantile of its
distribution, at a uniform random number. For any model density p,
log P(v) = log ∫ p(x) dx over the bin ≥ E[log p(x) − log q(x|v)] by Jensen's inequality (Theis et
al. 2016). Bits per dimension are that over −D·ln 2: see `scoresde.bits_per_dim`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from ..common.checks import check_generator, real_number, whole_number
from ..common.inputs import as_condition, as_reals, as_tensor
from ..common.random import PRIOR, Noise, draw_seed
from ..common.seeds import takes_seed
from ..model.protocol import Model
from ..model.require import require_model
from ..model.schema import Schema
from .discrete import Dequantized
from .options import FittedOptions
from .weighted_bits import bits_of_integers

__all__ = ["Dequantization", "Dequantized", "TruncatedNormal", "Uniform"]

FLOAT32_LEVELS = 4096
"""Levels beyond which float32 has too few numbers in a bin."""


@dataclass(frozen=True)
class Dequantization(abc.ABC):
    """How integers become points of the unit scale, and back.

    Use one object for training data, bits per dimension and samples. To train with uniform noise,
    `fit(sde, v, transforms="dequantize")` is the same. Subclasses give `_noise`, the distribution
    of u in its bin.

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
        if whole_number("levels", self.levels, 2) > 2**32:
            raise ValueError(
                f"levels is at most 2^32, got {self.levels}; take such data for continuous ones"
            )

    @abc.abstractmethod
    def _noise(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The quantile u in [0, 1] at q in [0, 1], and log h(u), both of q's shape and dtype."""

    @takes_seed
    def noisy(
        self, values: Any, generator: torch.Generator | None = None, *, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return x = (v + u)/L and its log-density given v.

        Parameters
        ----------
        values : Tensor or array of integers 0 … L − 1, shape (B, *shape)
            Of any integer or floating dtype.
        generator : torch.Generator, optional
            The randomness, on any device: that of sample i does not depend on the others.
        seed : int, optional
            An integer in place of the generator.

        Returns
        -------
        x : Tensor, shape (B, *shape)
            Inside its bin; float32, or float64 for float64 values and for more than 4096 levels.
        log_q : Tensor, shape (B,)
            Nats, in the units of x.

        Raises
        ------
        TypeError, ValueError
            For values that are not integers 0 … L − 1.

        Examples
        --------
        log q = 2·log 256:

        >>> x, log_q = scoresde.dequantize.Uniform(256).noisy(torch.tensor([[0, 255]]))
        >>> (x * 256).floor(), log_q
        (tensor([[  0., 255.]]), tensor([11.0904]))
        """
        check_generator(generator)
        v = self._accept(values)
        like = torch.empty(0, dtype=torch.float64, device=v.device)
        normal = Noise(draw_seed(generator), PRIOR, 0, len(v), v.shape[1:].numel(), like)()
        return self._add(v, torch.special.ndtr(normal).reshape(v.shape))

    def _add(self, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """x = (v + u)/L and log q(x|v) (B,), with u the quantile at q."""
        double = v.dtype == torch.float64 or self.levels > FLOAT32_LEVELS
        dtype = torch.float64 if double else torch.float32
        u, log_h = self._noise(q)
        # What rounding may move u by, here and in `values`.
        edge = 2 * self.levels * torch.finfo(dtype).eps
        x = (v.to(dtype) + u.clamp(edge, 1 - edge).to(dtype)) / self.levels
        dim = v.shape[1:].numel()
        log_q = log_h.reshape(len(v), dim).sum(1) + dim * math.log(self.levels)
        return x, log_q.to(dtype)

    def values(self, x: Any) -> Tensor:
        """Return the integers whose bins hold x, ⌊L·x⌋: samples as pixels.

        What lies outside [0, 1) goes to the nearest bin.

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
        """Return −(log p(x) − log q(x|v))/(D·ln 2), for a log p(x) found elsewhere.

        That may be by `elbo`, or by another library.

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
        A density that is uniform over all images:

        >>> scoresde.dequantize.Uniform(256).bits(torch.zeros(1), 64 * math.log(256), dim=64)
        tensor([8.])
        """
        if not isinstance(log_q, float | int):
            log_q = as_reals(log_q, "log_q")
        return (log_q - as_reals(log_prob, "log_prob")) / (whole_number("dim", dim) * math.log(2))

    def dataset(self, values: Any, **condition: Any) -> Dequantized:
        """Return integers as data to train on, with fresh noise at every access.

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
            For values that are not integers 0 … L − 1, or conditions of another length.

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
                raise ValueError(
                    f"condition {name!r} has shape {tuple(value.shape)} for {len(v)} samples"
                )
        return Dequantized(self, v, labels, schema)

    def _accept(self, values: Any) -> Tensor:
        """The values (B, *shape), checked, of a dtype that can be compared and indexed."""
        wanted = f"values are integers from 0 to {self.levels - 1}"
        if isinstance(values, Dequantized):
            raise TypeError(f"{wanted}, got a Dequantized; give its .integers")
        try:
            v = as_tensor(values, "values")
        except TypeError as error:
            came = str(error)
            if not isinstance(values, Tensor) and not hasattr(values, "__array__"):
                came = f"got {type(values).__name__}"
            raise TypeError(f"{wanted}, in a tensor or array; {came}") from None
        if v.is_complex() or v.dtype == torch.bool:
            raise TypeError(f"{wanted}, got dtype {v.dtype}; convert them, e.g. .long()")
        if not v.ndim or not v.numel():
            raise ValueError(
                f"values are (batch, *shape) and not empty, got shape {tuple(v.shape)}"
            )
        # A comparison in uint8 would wrap; wider unsigned integers have none, and no indexing.
        integers = v.long()
        if v.dtype in (torch.uint16, torch.uint32, torch.uint64):
            v = integers
        bad = (v != integers) | (integers < 0) | (integers >= self.levels)
        if bool(bad.any()):
            raise ValueError(
                f"{wanted}, got {float(v[bad][0]):g} and {int(bad.sum()) - 1} more such; give "
                "levels= that fit, or dequantization=None to bits_per_dim for data that are not "
                "discrete"
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
        """U = q, and h = 1."""
        return q, torch.zeros_like(q)


@dataclass(frozen=True)
class TruncatedNormal(Dequantization):
    """u − ½ ~ N(0, std²) truncated to [−½, ½], as in i-DODE (Zheng et al. 2023).

    This is variational dequantization without a network. Data with narrow noise look like points
    smoothed by Gaussians, which is what a diffusion model sees anyway; uniform noise has edges
    that it must learn. Train and evaluate with the same. `fitted` picks the std that gives a model
    the fewest bits. For a model trained on uniform noise that is a wide one, near U[0, 1).

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
    Zheng et al., Improved techniques for maximum likelihood estimation for diffusion ODEs, ICML
    2023.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, log_q = TruncatedNormal(4, std=0.1).noisy(torch.tensor([[2, 0]]), generator)
    >>> (x * 4 - torch.tensor([2.5, 0.5])).abs() < 0.5
    tensor([[True, True]])
    """

    std: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        real_number("std", self.std, 0.01, math.inf, closed=True, hint="in bins; try 0.25")

    def _noise(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """U = ½ + std·n, with n a quantile of the truncated standard normal."""
        edge = 0.5 / self.std
        mass = math.erf(edge / math.sqrt(2))
        n = (math.sqrt(2) * torch.special.erfinv((2 * q - 1) * mass)).clamp(-edge, edge)
        log_norm = math.log(self.std) + 0.5 * math.log(2 * math.pi) + math.log(mass)
        return 0.5 + self.std * n, -0.5 * n.square() - log_norm

    @classmethod
    @takes_seed
    def fitted(
        cls,
        sde: Model,
        values: Any,
        levels: int,
        *,
        stds: Sequence[float] = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0, 10.0),
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **how: Unpack[FittedOptions],
    ) -> TruncatedNormal:
        """Return the dequantization whose std gives a model the fewest bits on a few samples.

        Every std sees the same random numbers, so a few dozen samples tell them apart. Use samples
        that are not evaluated later.

        Parameters
        ----------
        sde : ScoreSDE
        values : Tensor or array of integers 0 … L − 1, shape (B, *shape)
            A handful, e.g. 32.
        levels : int
            L.
        stds : sequence of float
            Candidates, in bins; 10 is as good as uniform noise.
        generator : torch.Generator, optional
            The randomness.
        seed : int, optional
            An integer in place of the generator.
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
        >>> sde = scoresde.oracle(bumps, scoresde.VPSDE())
        >>> values = torch.arange(4).repeat(16)[:, None]
        >>> TruncatedNormal.fitted(sde, values, 4, stds=(0.1, 0.2, 0.4), seed=1).std
        0.2
        """
        candidates = [cls(levels, std) for std in stds]
        if not candidates:
            raise ValueError("stds is empty; give candidates such as (0.1, 0.2, 0.4)")
        sde = require_model(sde, "TruncatedNormal.fitted")
        draws = whole_number("draws", how.pop("draws", 1))
        check_generator(generator)
        drawn = draw_seed(generator)

        def bits(noise: TruncatedNormal) -> float:
            same = torch.Generator().manual_seed(drawn)
            return bits_of_integers(sde, values, noise, draws, same, {**how}).mean

        return min(candidates, key=bits)
