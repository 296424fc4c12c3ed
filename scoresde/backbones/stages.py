"""First stages: networks that encode a sample as a smaller latent, and decode it.

A variational autoencoder (Kingma and Welling 2014; Rezende et al. 2014) has q(z|x) = N(m(x), s(x)²)
and a decoder x̂(z), with p(x|z) = N(x̂(z), noise²·I). A vector-quantized one (van den Oord et al.
2017) replaces each latent vector by the nearest of `codes` vectors, its codebook.

Images, signals and volumes go through convolutions and changes of size by two; vectors through
perceptrons. x is standardized, and so is the noise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..common.checks import real_number, whole_number
from ..common.inputs import event_shape
from ..common.registry import Registry
from .blocks import norm
from .discretized import Bins
from .resampling import Resample, convolution, joined, patched

FIRST_STAGES: Registry[nn.Module] = Registry("first stage", "scoresde.FIRST_STAGES")
"""First stages by name, built as `FIRST_STAGES.build(name, shape, latent=…, **options)`."""

MOST_AXES = 4
CHANNELS = 4
"""Of the latent that a message suggests."""
LEAST_NOISE = 1e-3
"""Of p(x|z), if it is learnt."""


class Residual(nn.Module):
    """Two convolutions with group norms, added to their input."""

    def __init__(self, rank: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            norm(channels),
            nn.SiLU(),
            convolution(rank, channels, channels),
            norm(channels),
            nn.SiLU(),
            convolution(rank, channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        out: Tensor = x + self.layers(x)
        return out


class Patches(nn.Module):
    """Patches of an image as channels, or channels as patches."""

    def __init__(self, patch: int, join: bool) -> None:
        super().__init__()
        self.patch = patch
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        """Return x with its patches folded into channels, or unfolded."""
        return joined(x, self.patch) if self.join else patched(x, self.patch)


def halvings(shape: tuple[int, ...], latent: tuple[int, ...], patch: int) -> int:
    """How often patches are halved to the size of a latent; ValueError if they can't be."""
    for k in range(20):
        if all(n == m * patch * 2**k for n, m in zip(shape[1:], latent[1:], strict=True)):
            return k
    got = f"latent={latent} of samples {shape}"
    divisor = "one and the same power of two"
    if patch > 1:
        got += f" with patch={patch}"
        divisor = f"{patch} times one and the same power of two"
    example = _example(shape, latent[0], patch, 1)
    if example is None:
        raise ValueError(f"{got}: patch= divides each size of a sample, and {patch} does not")
    raise ValueError(
        f"{got}: each size is that of the sample divided by {divisor}, such as {example}"
    )


def _example(
    shape: tuple[int, ...], channels: int, patch: int, most: int
) -> tuple[int, ...] | None:
    """A latent of so many channels, halved at most so often; None if patches don't fit."""
    for k in range(most, -1, -1):
        if all(n % (patch * 2**k) == 0 for n in shape[1:]):
            return channels, *(n // (patch * 2**k) for n in shape[1:])
    return None


def check_axes(shape: tuple[int, ...], latent: object, patch: int = 1) -> None:
    """Raise ValueError unless samples and latents have the same axes, at least 1 and at most 4."""
    if not 1 <= len(shape) <= MOST_AXES:
        raise ValueError(
            f"samples of a first stage are vectors (d,), signals (C, n), images (C, n, n) or "
            f"volumes, got shape={shape}"
        )
    latent = event_shape(latent)
    if len(latent) != len(shape):
        example = _example(shape, CHANNELS, patch, 2)
        hint = "" if example is None else f", such as {example}"
        raise ValueError(f"latent={latent} of samples {shape}: wanted as many axes{hint}")


def coders(
    shape: tuple[int, ...], latent: tuple[int, ...], out: int, o: dict[str, int], numbers: int = 1
) -> tuple[nn.Module, nn.Module]:
    """An encoder to `out` channels of the latent's size, a decoder to `numbers` per number of x."""
    if len(shape) == 1:
        return perceptron(shape[0], out, o), perceptron(latent[0], numbers * shape[0], o)
    rank = len(shape) - 1
    patch = o.get("patch", 1)
    times = halvings(shape, latent, patch)
    c = o["channels"]
    folded = shape[0] * patch**rank
    down: list[nn.Module] = [convolution(rank, folded, c)]
    up: list[nn.Module] = [convolution(rank, latent[0], c)]
    for i in range(times + 1):
        blocks = [Residual(rank, c) for _ in range(o["blocks"])]
        down += [*([Resample(rank, c, up=False)] if i else []), *blocks]
        blocks = [Residual(rank, c) for _ in range(o["blocks"])]
        up += [*([Resample(rank, c, up=True)] if i else []), *blocks]
    down += [norm(c), nn.SiLU(), convolution(rank, c, out)]
    up += [norm(c), nn.SiLU(), convolution(rank, c, numbers * folded)]
    if patch > 1:
        down = [Patches(patch, join=False), *down]
        up = [*up, Patches(patch, join=True)]
    return nn.Sequential(*down), nn.Sequential(*up)


def perceptron(into: int, out: int, o: dict[str, int]) -> nn.Module:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = [nn.Linear(into, o["width"])]
    for _ in range(o["depth"] - 1):
        layers += [nn.SiLU(), nn.Linear(o["width"], o["width"])]
    return nn.Sequential(*layers, nn.SiLU(), nn.Linear(o["width"], out))


class StageNet(nn.Module):
    """A network with `encode` and `decode`: subclass it and register it in `FIRST_STAGES`.

    Parameters
    ----------
    latent : tuple of int
        Shape of one latent.
    noise : float, optional
        Standard deviation of p(x|z), in units of the standardized x. Without one it is learnt, and
        at least 1e-3: where a latent says all of x, its density has no bound.

    Attributes
    ----------
    latent : tuple of int
    levels : int
        Number of integer values that p(x|z) gives probabilities to; 0 for a Gaussian p(x|z).

    Examples
    --------
    >>> class Half(StageNet):  # keeps half of the columns
    ...     def __init__(self, shape): super().__init__((shape[0] // 2,), noise=1.0)
    ...     def encode(self, x): return x[:, : self.latent[0]], None
    ...     def decode(self, z): return torch.cat([z, 0 * z], 1)
    >>> stage = scoresde.FirstStage(Half((4,)), shape=(4,))
    >>> stage.reconstruct(torch.ones(1, 4))
    tensor([[1., 1., 0., 0.]])
    """

    levels = 0
    learnt_noise: nn.Parameter | None
    given_noise: Tensor

    def __init__(self, latent: tuple[int, ...], noise: float | None = None) -> None:
        super().__init__()
        self.latent = event_shape(latent)
        if noise is None:
            self.learnt_noise = nn.Parameter(torch.zeros(()))
        else:
            self.register_parameter("learnt_noise", None)
            value = real_number("noise", noise, 0, math.inf, hint="leave it out to learn it")
            self.register_buffer("given_noise", torch.tensor(math.log(value)))

    @property
    def log_noise(self) -> Tensor:
        """Logarithm of the noise of p(x|z), shape ()."""
        if self.learnt_noise is None:
            return self.given_noise
        return self.learnt_noise.clamp_min(math.log(LEAST_NOISE))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and standard deviation of q(z|x).

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            Standardized.

        Returns
        -------
        mean : Tensor, shape (B, *latent)
        scale : Tensor, shape (B, *latent), or None
            None for a latent that is a function of x.

        Examples
        --------
        >>> mean, scale = scoresde.backbones.VAE((6,), latent=(2,)).encode(torch.zeros(3, 6))
        >>> mean.shape, scale.shape
        (torch.Size([3, 2]), torch.Size([3, 2]))
        """
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x|z).

        Parameters
        ----------
        z : Tensor, shape (B, *latent)

        Returns
        -------
        Tensor, shape (B, *shape)
            Standardized.

        Examples
        --------
        >>> scoresde.backbones.VAE((6,), latent=(2,)).decode(torch.zeros(3, 2)).shape
        torch.Size([3, 6])
        """
        raise NotImplementedError

    def outputs(self, z: Tensor) -> Tensor:
        """Return the parameters of p(x|z): here its mean, `decode(z)`.

        Parameters
        ----------
        z : Tensor, shape (B, *latent)

        Returns
        -------
        Tensor

        Examples
        --------
        >>> net = scoresde.backbones.VAE((6,), latent=(2,), levels=8, components=3)
        >>> net.outputs(torch.zeros(3, 2)).shape
        torch.Size([3, 54])
        """
        return self.decode(z)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Any]:
        """Return x̂ of a latent drawn from q(z|x), and what `penalty` and `settle` need.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        noise : Tensor, shape (B, *latent), optional
            Standard normal: z = mean + scale·noise. Without it z is the mean.

        Returns
        -------
        x_hat : Tensor, shape (B, *shape)
            With `levels`, the decoder's `outputs` instead.
        code : object
            By default (mean, scale).

        Examples
        --------
        >>> scoresde.backbones.VAE((6,), latent=(2,))(torch.zeros(3, 6))[0].shape
        torch.Size([3, 6])
        """
        mean, scale = self.encode(x)
        z = mean if noise is None or scale is None else mean + scale * noise
        return self.outputs(z), (mean, scale)

    def mean_of(self, out: Tensor) -> Tensor:
        """Return the mean of p(x|z), computed from `outputs`.

        Parameters
        ----------
        out : Tensor

        Returns
        -------
        Tensor, shape (B, *shape)
            Standardized.

        Examples
        --------
        >>> net = scoresde.backbones.VAE((6,), latent=(2,))
        >>> net.mean_of(torch.ones(3, 6)).shape
        torch.Size([3, 6])
        """
        return out

    def log_mass(self, out: Tensor, bins: Bins, free: Tensor | None) -> Tensor:
        """Return log P(v|z) of integers v by their bins; only networks with `levels` have it.

        Parameters
        ----------
        out : Tensor
            Of `outputs`.
        bins : Bins
            Their standardized edges.
        free : Tensor, optional
            Indices of the numbers of x that vary, if not all do.

        Returns
        -------
        Tensor, shape (B,)
            Nats.

        Raises
        ------
        NotImplementedError
            For a network without it.

        Examples
        --------
        See `scoresde.backbones.discretized`.
        """
        raise NotImplementedError("a network with levels defines log_mass(out, bins, free)")

    def penalty(self, code: Any, kl: float, free_bits: float) -> Tensor:
        """Return what is added to −log p(x|z): here kl·KL(q(z|x) ‖ N(0, I)), a mean over the batch.

        Parameters
        ----------
        code : object
            Of `forward`.
        kl : float
        free_bits : float
            Nats per latent channel below which its KL is not lowered further.

        Returns
        -------
        Tensor, shape ()
            Nats per sample.

        Examples
        --------
        >>> net = scoresde.backbones.VAE((6,), latent=(2,))
        >>> net.penalty((torch.ones(3, 2), torch.ones(3, 2)), kl=1.0, free_bits=0.0)
        tensor(1.)
        """
        mean: Tensor
        mean, scale = code
        if scale is None:
            return mean.new_zeros(())
        nats = 0.5 * (mean.square() + scale.square() - 1) - scale.log()
        by_channel = nats.reshape(*mean.shape[:2], -1).sum(2).mean(0)
        total: Tensor = by_channel.clamp_min(free_bits).sum()
        return kl * total

    def settle(self, code: Any) -> None:
        """Adapt, after the loss of a training step, what is not learnt by gradients.

        Parameters
        ----------
        code : object
            Of `forward`.

        Examples
        --------
        See `VQ`.
        """


def sizes(**named: int) -> dict[str, int]:
    """Sizes of a network, checked."""
    return {name: whole_number(name, value) for name, value in named.items()}
