"""Discrete data for a continuous model: noise inside each bin, the density of that noise, and bits per dimension.

An integer v in 0 … L − 1 owns the bin [v/L, (v + 1)/L) of the unit scale, and x = (v + u)/L lies in it, with u in [0, 1) of
density h(u), so that log q(x|v) = Σ_i log(L·h(u_i)). For any model density p, by Jensen's inequality,

    log P(v) = log ∫ p(x) dx over the bin ≥ E log (1/k)·Σ_j p(x_j)/q(x_j|v) ≥ E[log p(x) − log q(x|v)]

(Theis et al. 2016; Burda et al. 2016). Bits per dimension are that over −D·ln 2.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import number, whole
from .likelihood import likelihood
from .plan import check_generator
from .sde import ScoreSDE, require_sde


@dataclass(frozen=True)
class Dequantization(abc.ABC):
    """How integers become points of the unit scale, and back: one object for training data, bits per dimension and samples.

    Subclasses give `_noise`, draws of u in [0, 1) with log h(u).

    Parameters
    ----------
    levels : int
        L: values are 0 … L − 1.

    Examples
    --------
    >>> issubclass(scoresde.Uniform, Dequantization)
    True
    """

    levels: int = 256

    def __post_init__(self) -> None:
        whole("levels", self.levels, 2)

    @abc.abstractmethod
    def _noise(self, shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | float]:
        """Return u in [0, 1) of the shape, and log h(u)."""

    def noisy(self, values: Any, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return x = (v + u)/L and its log-density given v.

        Parameters
        ----------
        values : Tensor or array of integers 0 … L − 1, shape (B, *shape)
            Of any integer or floating dtype.
        generator : torch.Generator, optional
            Draws u; on the values' device.

        Returns
        -------
        x : Tensor, shape (B, *shape)
            In [0, 1); float32, or float64 for float64 values.
        log_q : Tensor, shape (B,)
            Nats, in the units of x.

        Raises
        ------
        TypeError, ValueError
            For what are no integers 0 … L − 1.

        Examples
        --------
        >>> x, log_q = scoresde.Uniform(256).noisy(torch.tensor([[0, 255]]))
        >>> (x * 256).floor(), log_q  # log_q = 2·log 256
        (tensor([[  0., 255.]]), tensor([11.0904]))
        """
        check_generator(generator)
        return self._add(self._accept(values), generator)

    def _add(self, v: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        v = v if v.dtype == torch.float64 else v.float()
        u, log_h = self._noise(v.shape, v, generator)
        x = ((v + u) / self.levels).clamp_max(1 - 0.5 * torch.finfo(v.dtype).eps)  # 255.99999999 is 256 in float32
        log_q = torch.as_tensor(log_h, dtype=v.dtype, device=v.device).expand_as(v).flatten(1).sum(1)
        return x, log_q + v[:1].numel() * math.log(self.levels)

    def values(self, x: Tensor) -> Tensor:
        """Return the integers whose bins hold x, ⌊L·x⌋, with what lies outside [0, 1) moved to the nearest: samples as pixels.

        Parameters
        ----------
        x : Tensor
            On the unit scale.

        Returns
        -------
        Tensor of int64, of x's shape

        Examples
        --------
        >>> scoresde.Uniform(256).values(torch.tensor([-0.1, 0.5, 1.2]))
        tensor([  0, 128, 255])
        """
        return (x * self.levels).floor().clamp(0, self.levels - 1).long()

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
        >>> scoresde.Uniform(256).bits(torch.zeros(1), 64 * math.log(256), dim=64)  # uniform over all images
        tensor([8.])
        """
        return (log_q - log_prob) / (whole("dim", dim) * math.log(2))

    def dataset(self, values: Any, **condition: Tensor) -> Dequantized:
        """Return integers as data to train on, with noise of their own at every access.

        Parameters
        ----------
        values : Tensor or array of integers 0 … L − 1, shape (N, *shape)
        **condition : Tensor, shape (N, ...)
            Labels by name.

        Returns
        -------
        Dequantized
            Keeps the values' dtype.

        Raises
        ------
        TypeError, ValueError
            For what are no integers 0 … L − 1, or conditions of another length.

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> data = scoresde.Uniform(4).dataset(torch.randint(4, (100, 2)))
        >>> scoresde.fit(sde, data, steps=20, progress=False)
        History(steps=20, loss=..., seconds=...)
        """
        v = self._accept(values)
        for name, value in condition.items():
            if len(value) != len(v):
                raise ValueError(f"condition {name!r} has {len(value)} rows for {len(v)} samples")
        return Dequantized(self, v, condition)

    def _accept(self, values: Any) -> Tensor:
        v = torch.as_tensor(np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values)
        if v.is_complex() or v.dtype == torch.bool:
            raise TypeError(f"values are integers from 0 to {self.levels - 1}, got dtype {v.dtype}; convert them, e.g. .long()")
        if v.ndim < 2 or not v.numel():
            raise ValueError(f"values are (batch, *shape) and not empty, got shape {tuple(v.shape)}; try values[None]")
        integers = v.long()  # a comparison in uint8 would wrap
        bad = (v != integers) | (integers < 0) | (integers >= self.levels)
        if bool(bad.any()):
            raise ValueError(
                f"values are integers from 0 to {self.levels - 1}, got {float(v[bad][0]):g} and {int(bad.sum()) - 1} more such; "
                "give levels= that fit, or Continuous() for data that are not discrete"
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
    Theis, van den Oord & Bethge, A note on the evaluation of generative models, ICLR 2016, section 3.1.

    Examples
    --------
    >>> Uniform(17).noisy(torch.tensor([[16]]))[0] > 16 / 17
    tensor([[True]])
    """

    def _noise(self, shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | float]:
        return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device), 0.0


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
        In bins.

    Raises
    ------
    TypeError, ValueError
        Unless levels is an integer of at least 2, and std at least 0.01.

    References
    ----------
    Zheng et al., Improved techniques for maximum likelihood estimation for diffusion ODEs, ICML 2023, section 4.2.

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

    def _noise(self, shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | float]:
        q = torch.rand(shape, generator=generator, dtype=torch.float64, device=like.device)
        low = 0.5 * math.erfc(0.5 / self.std / math.sqrt(2))
        n = torch.special.ndtri(low + (1 - 2 * low) * q).clamp(-0.5 / self.std, 0.5 / self.std)
        u = (0.5 + self.std * n).to(like.dtype)
        log_h = -0.5 * n * n - math.log(self.std * math.sqrt(2 * math.pi) * (1 - 2 * low))
        return u, log_h.to(like.dtype)

    @classmethod
    def fitted(
        cls,
        sde: ScoreSDE,
        values: Any,
        levels: int = 256,
        *,
        stds: Sequence[float] = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0, 10.0),
        seed: int = 0,
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
        seed : int
            Of the random numbers.
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
        >>> TruncatedNormal.fitted(scoresde.oracle(bumps, scoresde.VPSDE()), torch.arange(4).repeat(16)[:, None], 4).std
        0.2
        """
        candidates = [cls(levels, std) for std in stds]
        if not candidates:
            raise ValueError("stds is empty; give candidates such as (0.1, 0.2, 0.4)")

        def cost(each: TruncatedNormal) -> float:
            return bits_per_dim(sde, values, each, generator=torch.Generator().manual_seed(seed), **how).mean

        return min(candidates, key=cost)


@dataclass(frozen=True)
class Continuous(Dequantization):
    """No dequantization: data that are continuous anyway, in their own units. x = v, log q = 0; bits may be negative.

    Examples
    --------
    >>> Continuous().noisy(torch.tensor([[0.5, -2.0]]))
    (tensor([[ 0.5000, -2.0000]]), tensor([0.]))
    """

    levels: int = 1

    def __post_init__(self) -> None:
        if self.levels != 1:
            raise ValueError(f"continuous data have no levels, got levels={self.levels!r}; write Continuous()")

    def _noise(self, shape: torch.Size, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor | float]:
        raise AssertionError("continuous data get no noise")

    def _add(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(len(x))

    def values(self, x: Tensor) -> Tensor:  # noqa: D102
        return x

    def _accept(self, values: Any) -> Tensor:
        x = torch.as_tensor(np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values)
        if not x.is_floating_point():
            raise TypeError(f"continuous data are floating point, got dtype {x.dtype}; for integers take Uniform(levels)")
        return x


@dataclass(frozen=True, repr=False)
class Dequantized:
    """Integers as data to train on, which `fit` takes: noise of their own at every access, whole batches at once.

    `data[i]` takes an integer, a slice or indices, so with labels write, for `fit`,
    `DataLoader(data, sampler=BatchSampler(RandomSampler(data), 512, False), batch_size=None)`.

    Parameters
    ----------
    dequantization : Dequantization
    integers : Tensor, shape (N, *shape)
    condition : dict of str to Tensor

    Examples
    --------
    >>> data = scoresde.Uniform(4).dataset(torch.tensor([[0, 3]] * 10), y=torch.arange(10))
    >>> x, condition = data[[2, 5]]
    >>> x.shape, condition
    (torch.Size([2, 2]), {'y': tensor([2, 5])})
    """

    dequantization: Dequantization
    integers: Tensor
    condition: dict[str, Tensor]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.integers)

    def __getitem__(self, rows: int | slice | Sequence[int]) -> Any:
        """Return the samples of these rows with fresh noise; with their labels, if there are any."""
        at = rows if isinstance(rows, int | slice) else torch.as_tensor(rows)
        v = self.integers[at]
        x = self.dequantization._add(v[None], None)[0][0] if isinstance(at, int) else self.dequantization._add(v, None)[0]
        labels = {name: value[at] for name, value in self.condition.items()}
        return (x, labels) if labels else x

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
        >>> scoresde.Uniform(4).dataset(torch.tensor([[0, 3]])).sample(5).shape
        torch.Size([5, 2])
        """
        if self.condition:
            raise TypeError(
                f"samples would come without their {', '.join(self.condition)}; give fit "
                "DataLoader(data, sampler=BatchSampler(RandomSampler(data), 512, False), batch_size=None)"
            )
        device = self.integers.device
        rows = torch.randint(len(self.integers), (n,), generator=generator, device=device)
        return self.dequantization._add(self.integers[rows], generator)[0]


@dataclass(frozen=True)
class Bits:
    """What `bits_per_dim` returns.

    Attributes
    ----------
    bits : Tensor, shape (B,)
        Bits per dimension of each sample.
    stderr : Tensor, shape (B,)
        Standard error of each: that of an estimated trace, and for several draws that of their mean (a single draw does not
        tell how much others would differ: `mean_stderr` has it).
    nfe : float
        Network evaluations per sample, on average.

    Examples
    --------
    >>> bits = Bits(torch.tensor([1.0, 3.0]), torch.zeros(2), 100.0)
    >>> bits.mean, bits.mean_stderr
    (2.0, 1.0)
    """

    bits: Tensor
    stderr: Tensor
    nfe: float

    @property
    def mean(self) -> float:
        """Mean over the samples."""
        return float(self.bits.double().mean())

    @property
    def mean_stderr(self) -> float:
        """Standard error of the mean as an estimate over all data: samples, dequantization and trace, all in their spread."""
        return float(self.bits.double().std()) / math.sqrt(len(self.bits))


def bits_per_dim(
    sde: ScoreSDE,
    values: Any,
    dequantization: Dequantization | None = None,
    *,
    draws: int = 1,
    generator: torch.Generator | None = None,
    **how: Any,
) -> Bits:
    """Return bits per dimension of discrete data, an upper bound on −log₂ P(v)/D of the model, by its probability-flow ODE.

    −log (1/k)·Σ_j p(x_j)/q(x_j|v) over D·ln 2: with k = 1 the usual number; it falls to −log₂ P(v)/D as k grows. The model is one
    of data on the unit scale, as `dequantization.dataset(values)` has them. An estimated trace with k > 1 would count too few
    bits, since the mean of exp(log p + error) is too large: take the exact one.

    Parameters
    ----------
    sde : ScoreSDE
    values : Tensor or array of integers 0 … L − 1, shape (B, *shape)
        Floating-point data for `Continuous()`.
    dequantization : Dequantization, optional
        The data's scale and noise: `Uniform(levels)`, by default Uniform(256), `TruncatedNormal(levels, std)` or `Continuous()`.
    draws : int
        k, of the importance-weighted bound.
    generator : torch.Generator, optional
        Draws the noise, and probes of an estimated trace.
    **how
        For `likelihood`: solver=, trace=, rtol=, …

    Returns
    -------
    Bits

    Raises
    ------
    TypeError, ValueError
        For values that are no integers 0 … L − 1, or other bad arguments.
    SolverError
        As `likelihood`.

    References
    ----------
    Theis et al., ICLR 2016. Burda et al., Importance weighted autoencoders, ICLR 2016, eq. 8. Song et al., ICLR 2021, sec. 4.3.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.GaussianMixture([[0.5, 0.5]], stds=0.2), scoresde.VPSDE())
    >>> scoresde.bits_per_dim(sde, torch.tensor([[128, 128]]), scoresde.Uniform(256)).bits  # log2(256·0.2·√2π)
    tensor([7.0...])
    """
    require_sde(sde, "bits_per_dim")
    dequantization = Uniform() if dequantization is None else dequantization
    if not isinstance(dequantization, Dequantization):
        raise TypeError(f"dequantization is an object such as Uniform(256), got {dequantization!r}")
    whole("draws", draws)
    check_generator(generator)
    v = dequantization._accept(values)
    n, dim = len(v), v[:1].numel()
    sde.rows(0, n, n)
    if draws > 1:  # all draws in one solve
        v = v.repeat(draws, *(1,) * (v.ndim - 1))
        sde = sde.holding({k: c if len(c) == 1 else c.repeat(draws, *(1,) * (c.ndim - 1)) for k, c in sde.condition.items()})
    x, log_q = dequantization._add(v, generator)
    found = likelihood(sde, x, generator=generator, **how)
    log_w, error = (found.log_prob - log_q.to(found.log_prob)).reshape(draws, n), found.stderr.reshape(draws, n)
    share = log_w.softmax(0)  # of each draw in the mean of exp(log w), through which its errors come in
    stderr = (share * error).square().sum(0).sqrt()
    if draws > 1:
        stderr = torch.hypot(stderr, (draws * share - 1).square().sum(0).div(draws * (draws - 1)).sqrt())
    nats = dim * math.log(2)
    return Bits((math.log(draws) - log_w.logsumexp(0)) / nats, stderr / nats, draws * float(found.nfe.double().mean()))
