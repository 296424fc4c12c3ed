"""A first stage with a codebook: latent vectors become the nearest of a few, learnt by averages."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..common.checks import real_number, whole_number
from ..common.inputs import event_shape
from .base import wide
from .stages import FIRST_STAGES, StageNet, check_axes, coders, sizes

TINY = 1e-30
"""Added to squared distances, of which at least one must not be 0."""
MOST = 16.0
"""Most that a squared distance counts, in units of the squared mean distance."""


class StraightThrough(torch.autograd.Function):
    """The quantized vectors, with the gradient of the identity to the unquantized ones."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, quantized: Tensor) -> Tensor:
        """Return the quantized vectors, exactly."""
        return quantized.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        """Return the gradient as it is, and none of the codebook."""
        return gradient[0], None


@FIRST_STAGES.register("vq")
class VQ(StageNet):
    """A vector-quantized autoencoder, whose codebook is an exponential average of the latents.

    The latent before quantization is what `encode` returns; `decode` quantizes. In a step the
    nearest codes are found and the loss is computed with them; then code k becomes sum_k/count_k,
    averages of the latents that are nearest to it. With decay=0 that is one step of Lloyd's
    algorithm, k-means. A code whose count falls below `revive` is put on a latent of the batch, by
    chances in proportion to the squared distance to its code, of which outliers count 16 times the
    usual at the most.

    Parameters
    ----------
    shape, latent, channels, blocks, width, depth, noise, patch
        As for `VAE`. Each latent vector along the first axis is quantized.
    codes : int
        Vectors in the codebook.
    decay : float
        Of the averages, in [0, 1).
    commitment : float
        Weight of the mean of (z − its code)², which the encoder lowers.
    revive : float
        Uses per step below which a code is dead; 0 for none.

    Attributes
    ----------
    codebook, sum : Tensor, shape (codes, latent[0])
    count : Tensor, shape (codes,)

    References
    ----------
    van den Oord et al., Neural discrete representation learning, NeurIPS 2017, appendix A.1.
    Razavi et al., Generating diverse high-fidelity images with VQ-VAE-2, NeurIPS 2019. Arthur &
    Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007 (chances by distance).

    Examples
    --------
    >>> net = VQ((1, 8, 8), latent=(2, 4, 4), channels=8, codes=16)
    >>> x_hat, code = net(torch.zeros(3, 1, 8, 8))
    >>> net.settle(code)
    >>> net.count.sum() > 16
    tensor(True)
    """

    codebook: Tensor
    sum: Tensor
    count: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        latent: tuple[int, ...],
        codes: int = 512,
        decay: float = 0.99,
        commitment: float = 0.25,
        revive: float = 0.1,
        channels: int = 64,
        blocks: int = 1,
        width: int = 256,
        depth: int = 2,
        noise: float | None = None,
        patch: int = 1,
    ) -> None:
        shape = event_shape(shape)
        o = sizes(channels=channels, blocks=blocks, width=width, depth=depth, patch=patch)
        check_axes(shape, latent, o["patch"])
        super().__init__(latent, noise)
        codes = whole_number("codes", codes)
        self.decay = real_number("decay", decay, 0, 1, closed=True)
        if self.decay == 1:
            raise ValueError("decay=1 would never change the codebook; try 0.99")
        self.commitment = real_number("commitment", commitment, 0, math.inf, closed=True)
        self.revive = real_number("revive", revive, 0, 1, closed=True)
        d = self.latent[0]
        self.encoder, self.decoder = coders(shape, self.latent, d, o)
        codebook = torch.randn(codes, d)
        self.register_buffer("codebook", codebook)
        self.register_buffer("sum", codebook.clone())
        self.register_buffer("count", torch.ones(codes))

    def encode(self, x: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        return self.encoder(x), None

    def decode(self, z: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.decoder(self.quantized(z)[0])
        return out

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Any]:  # noqa: D102
        z = self.encoder(x)
        quantized, index = self.quantized(z)
        straight: Any = StraightThrough.apply(z, quantized)  # type: ignore[no-untyped-call]
        return self.decoder(straight), (z, quantized, index)

    def quantized(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest codes.

        Parameters
        ----------
        z : Tensor, shape (B, *latent)

        Returns
        -------
        quantized : Tensor, shape (B, *latent)
        index : Tensor of int, shape (B, *latent[1:])

        Examples
        --------
        >>> net = VQ((6,), latent=(2,), codes=3)
        >>> net.quantized(net.codebook)[1]
        tensor([0, 1, 2])
        """
        rows = z.detach().movedim(1, -1)
        flat = rows.reshape(-1, rows.shape[-1])
        near = self.codebook.square().sum(1) - 2 * flat @ self.codebook.T
        index = near.argmin(1)
        quantized = self.codebook[index].reshape(rows.shape).movedim(-1, 1)
        return quantized, index.reshape(rows.shape[:-1])

    def penalty(self, code: Any, kl: float, free_bits: float) -> Tensor:  # noqa: D102
        z, quantized, _ = code
        loss: Tensor = F.mse_loss(z, quantized)
        return self.commitment * math.prod(self.latent) * loss

    @torch.no_grad()
    def settle(self, code: Any) -> None:  # noqa: D102
        z, _, index = code
        rows = z.detach().movedim(1, -1).reshape(-1, len(self.codebook[0])).to(self.sum)
        index = index.flatten()
        used = torch.bincount(index, minlength=len(self.count)).to(self.count)
        total = torch.zeros_like(self.sum).index_add_(0, index, rows)
        for part in (used, total):
            over_ranks(part, sum_up=True)
        self.count.mul_(self.decay).add_(used, alpha=1 - self.decay)
        self.sum.mul_(self.decay).add_(total, alpha=1 - self.decay)
        fresh = far_rows(rows, self.codebook[index], len(self.count))
        over_ranks(fresh, sum_up=False)
        dead = self.count < self.revive
        self.count[dead] = 1.0
        self.sum[dead] = fresh[dead]
        known = self.count > torch.finfo(self.count.dtype).tiny
        mean = self.sum / torch.where(known, self.count, 1).unsqueeze(1)
        self.codebook.copy_(torch.where(known.unsqueeze(1), mean, self.codebook))

    @property
    def perplexity(self) -> float:
        """exp of the entropy of how often the codes were used: the effective number of codes."""
        share = self.count / self.count.sum()
        return float(torch.special.entr(share).sum().exp())


def far_rows(rows: Tensor, codes: Tensor, n: int) -> Tensor:
    """n of the rows (M, d), by chances in proportion to the squared distance to their codes.

    NaN are no error here: the loss tells of them.
    """
    distance = wide(rows - codes).square().sum(1)
    distance = torch.minimum(distance, MOST * distance.sqrt().mean().square())
    total = (distance + TINY).cumsum(0)
    uniform = torch.rand(n, dtype=total.dtype, device=total.device)
    at = torch.searchsorted(total, uniform * total[-1])
    return rows[at.clamp_max(len(rows) - 1)]


def over_ranks(x: Tensor, *, sum_up: bool) -> None:
    """Add x over the processes of a training, or give all the first one's, in place."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized() and group.get_world_size() > 1):
        return
    if sum_up:
        group.all_reduce(x)
    else:
        group.broadcast(x, src=0)
