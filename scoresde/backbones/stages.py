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
from .resampling import Resample, convolution

FIRST_STAGES: Registry[nn.Module] = Registry("first stage", "scoresde.FIRST_STAGES")
"""First stages by name, built as `FIRST_STAGES.build(name, shape, latent=…, **options)`."""

LEAST_NOISE = 1e-3
"""Of p(x|z), if it is learnt."""

LOG_SCALES = (-15.0, 10.0)
"""log s(x) is kept in this range, in which s² neither overflows nor vanishes."""


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


def halvings(shape: tuple[int, ...], latent: tuple[int, ...]) -> int:
    """How often a sample is halved to the size of its latent; ValueError if it can't be."""
    for k in range(20):
        if all(n == m * 2**k for n, m in zip(shape[1:], latent[1:], strict=True)):
            return k
    raise ValueError(
        f"latent={latent} of samples {shape}: each size is that of the sample divided by one and "
        f"the same power of two, such as {(latent[0], *(n // 2 for n in shape[1:]))}"
    )


def coders(
    shape: tuple[int, ...], latent: tuple[int, ...], out: int, o: dict[str, int]
) -> tuple[nn.Module, nn.Module]:
    """An encoder into `out` channels or numbers of the latent's size, and a decoder."""
    if len(shape) != len(latent):
        raise ValueError(
            f"latent={latent} of samples {shape}: wanted as many axes, such as "
            f"{(4, *(n // 4 for n in shape[1:]))}"
        )
    if len(shape) == 1:
        return perceptron(shape[0], out, o), perceptron(latent[0], shape[0], o)
    rank = len(shape) - 1
    times = halvings(shape, latent)
    c = o["channels"]
    down: list[nn.Module] = [convolution(rank, shape[0], c)]
    up: list[nn.Module] = [convolution(rank, latent[0], c)]
    for i in range(times + 1):
        blocks = [Residual(rank, c) for _ in range(o["blocks"])]
        down += [*([Resample(rank, c, up=False)] if i else []), *blocks]
        blocks = [Residual(rank, c) for _ in range(o["blocks"])]
        up += [*([Resample(rank, c, up=True)] if i else []), *blocks]
    down += [norm(c), nn.SiLU(), convolution(rank, c, out)]
    up += [norm(c), nn.SiLU(), convolution(rank, c, shape[0])]
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
        >>> mean, scale = VAE((6,), latent=(2,)).encode(torch.zeros(3, 6))
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
        >>> VAE((6,), latent=(2,)).decode(torch.zeros(3, 2)).shape
        torch.Size([3, 6])
        """
        raise NotImplementedError

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
        code : object
            By default (mean, scale).

        Examples
        --------
        >>> VAE((6,), latent=(2,))(torch.zeros(3, 6))[0].shape
        torch.Size([3, 6])
        """
        mean, scale = self.encode(x)
        z = mean if noise is None or scale is None else mean + scale * noise
        return self.decode(z), (mean, scale)

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
        >>> net = VAE((6,), latent=(2,))
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


@FIRST_STAGES.register("vae")
class VAE(StageNet):
    """A variational autoencoder: q(z|x) and p(x|z) are Gaussians with diagonal covariances.

    Parameters
    ----------
    shape : tuple of int
    latent : tuple of int
        With as many axes as shape; sizes are those of a sample divided by a power of two.
    channels, blocks : int
        Channels, and residual blocks of each size, of the convolutions.
    width, depth : int
        Of the perceptrons of vectors.
    noise : float, optional
        See `StageNet`. The learnt one is that of Rybkin et al. 2021.

    Raises
    ------
    ValueError
        For a latent that the sample can't be halved to.

    References
    ----------
    Kingma & Welling, Auto-encoding variational Bayes, ICLR 2014.

    Examples
    --------
    >>> net = VAE((1, 28, 28), latent=(4, 7, 7), channels=8)
    >>> net.decode(net.encode(torch.zeros(2, 1, 28, 28))[0]).shape
    torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        latent: tuple[int, ...],
        channels: int = 64,
        blocks: int = 1,
        width: int = 256,
        depth: int = 2,
        noise: float | None = None,
    ) -> None:
        super().__init__(latent, noise)
        o = sizes(channels=channels, blocks=blocks, width=width, depth=depth)
        out = 2 * self.latent[0]
        self.encoder, self.decoder = coders(event_shape(shape), self.latent, out, o)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        out: Tensor = self.encoder(x)
        mean, log_scale = out.chunk(2, 1)
        return mean, log_scale.clamp(*LOG_SCALES).exp()

    def decode(self, z: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.decoder(z)
        return out


def sizes(**named: int) -> dict[str, int]:
    """Sizes of a network, checked."""
    return {name: whole_number(name, value) for name, value in named.items()}
