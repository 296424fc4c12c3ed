"""A variational autoencoder, with a Gaussian p(x|z) or with probabilities of integers."""

from __future__ import annotations

from torch import Tensor

from ..common.checks import whole_number
from ..common.inputs import event_shape
from .discretized import Bins, Logistics, log_mass, logistics, mixture_mean, start_mixture
from .stages import FIRST_STAGES, StageNet, check_axes, coders, sizes

LOG_SCALES = (-15.0, 10.0)
"""log s(x) is kept in this range, in which s² neither overflows nor vanishes."""


@FIRST_STAGES.register("vae")
class VAE(StageNet):
    """A variational autoencoder: q(z|x) is a Gaussian with a diagonal covariance, and so is p(x|z).

    With levels=L, x = (v + u)/L are dequantized integers v = 0 … L − 1, and the decoder gives
    their probabilities, by mixtures of logistic distributions: p(x|z) = L^D·P(v|z), constant in
    each bin.

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
    levels : int
        L of integers, 256 for bytes; 0 for a Gaussian p(x|z).
    components : int
        Logistic distributions in a mixture, if levels is not 0.
    patch : int
        Side of the patches that become channels before the first layer, in pixels; the cost of a
        step falls by a factor of about patch^rank.

    Raises
    ------
    ValueError
        For a latent that the sample can't be halved to.

    References
    ----------
    Kingma & Welling, Auto-encoding variational Bayes, ICLR 2014. Salimans et al., PixelCNN++, ICLR
    2017 (mixtures of logistics).

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
        levels: int = 0,
        components: int = 5,
        patch: int = 1,
    ) -> None:
        self.shape = event_shape(shape)
        levels = whole_number("levels", levels, 0)
        if levels == 1:
            raise ValueError("levels is at least 2, or 0 for a Gaussian p(x|z), got 1")
        if levels and noise is not None:
            raise ValueError("noise= is that of a Gaussian p(x|z); leave it out, or levels=")
        if levels:
            noise = 1.0  # not used
        o = sizes(channels=channels, blocks=blocks, width=width, depth=depth, patch=patch)
        check_axes(self.shape, latent, o["patch"])
        super().__init__(latent, noise)
        self.levels = levels
        self.components = whole_number("components", components)
        numbers = 3 * components if levels else 1
        out = 2 * self.latent[0]
        self.encoder, self.decoder = coders(self.shape, self.latent, out, o, numbers)
        if levels:
            last = [part for part in self.decoder.modules() if hasattr(part, "bias")][-1]
            start_mixture(last, components)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        out: Tensor = self.encoder(x)
        mean, log_scale = out.chunk(2, 1)
        return mean, log_scale.clamp(*LOG_SCALES).exp()

    def outputs(self, z: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.decoder(z)
        return out

    def decode(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.mean_of(self.outputs(z))

    def mean_of(self, out: Tensor) -> Tensor:  # noqa: D102
        if not self.levels:
            return out
        return mixture_mean(logistics(out, self.components)).reshape(-1, *self.shape)

    def log_mass(self, out: Tensor, bins: Bins, free: Tensor | None) -> Tensor:  # noqa: D102
        mixture = logistics(out, self.components)
        if free is not None:
            mixture = Logistics(*(part.index_select(2, free) for part in mixture))
        return log_mass(mixture, bins)
