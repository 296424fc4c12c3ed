"""The U-Net of diffusion models: one family that holds DDPM, DDPM++, NCSN++ and ADM, for signals,
images and volumes.

Levels i = 0 … L − 1 have c·m_i channels and 1/2^i of the size. The outputs of blocks on the way
down are kept, and each block on the way up takes one of them, joined to what comes from below:

    x → stem ─ blocks ──────────────────────────────────→ blocks + 1 ─ norm, silu, conv → out
                 └ down ─ blocks ──────────→ blocks + 1 ─ up ┘
                            └ down ─ blocks ─ 2 ─ blocks + 1 ─ up ┘

The members and what differs (blocks: see `scoresde.backbones.blocks`):

                    DDPM      DDPM++    NCSN++      ADM
    condition       shift     shift     shift       scale_shift
    resample        conv      pool      fir         pool
    project         –         True      True        False
    skip_scale      False     True      True        False
    attention_up    all       last      last        all
    residual_input  False     False     True        False
    heads           1         1         1           channels/64
    waves           sinus…    sinus…    fourier     sinus…

Channels lie last in memory (torch.channels_last), in which convolutions of CPUs and tensor cores
are fastest and attention needs no copies; x comes in and leaves in the usual layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..common.inputs import event_shape
from .base import BACKBONES, weights_dtype
from .blocks import Block, norm
from .embedding import Conditioned, Embedding
from .options import takes_options
from .resampling import Pyramid, Resample, convolution, joined, patched
from .unet_options import UNetOptions

LAYOUTS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


@BACKBONES.register("unet")
class UNet(Conditioned):
    """Residual blocks and attention at several sizes, with skips between blocks of the same size.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample, (C, n), (C, n, n) or (C, n, n, n), with sizes that are multiples of
        patch·2^(levels − 1).
    channels : int
        c, channels of the stem, by default 64. The vector of the noise label has 4c numbers.
    multipliers : sequence of int
        m_i, one a level; by default (1, 2, 2).
    blocks : int
        Residual blocks a level, by default 2; one more on the way up.
    attention : sequence of int
        Sizes, along the first axis and after patching, of the levels whose blocks have attention;
        the middle always has it.
    attention_up : str
        On the way up, attention in "all" blocks of such a level (the default), or in the "last".
    heads, head_channels : int
        Heads of attention; if heads is 0 (the default), channels of one head, by default 64.
    dropout : float
        Probability, in blocks.
    condition : str
        How the noise label and conditions act: "shift" or "scale_shift" (the default).
    resample : str
        "pool" (the default): blocks halve by means and double by repetition. "fir": blocks use the
        filter [1, 3, 3, 1]/8. "conv": convolutions between blocks change the size.
    project : bool
        Whether a skip connection that changes size has a 1×1 convolution; not with "conv".
    skip_scale : bool
        Whether sums are multiplied by √½.
    residual_input : bool
        Whether every level gets the input as well.
    patch : int
        Length of the patches whose numbers become channels first; the cost of a step falls by
        about patch^rank.
    groups : int
        Most groups of a group norm, by default 32.
    octaves : int
        Octaves of waves of x that join its channels, for images of many levels; see
        `scoresde.backbones.embedding`.
    features : int
        Sines and cosines of the noise label, even; 0 for as many as channels, or one more.
    waves, classes, vector, image, condition_dropout
        Of `scoresde.backbones.embedding.Embedding`.

    Raises
    ------
    ValueError
        For a shape that cannot be halved as often as needed, unknown names, or sizes that are not
        positive.

    References
    ----------
    Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020, appendix B. Song et al.,
    Score-based generative modeling through SDEs, ICLR 2021, appendix H. Dhariwal & Nichol,
    Diffusion models beat GANs, NeurIPS 2021, section 3.

    Examples
    --------
    >>> net = UNet((1, 28, 28), channels=16, blocks=1, classes=10)
    >>> net(torch.randn(2, 1, 28, 28), torch.zeros(2), y=torch.tensor([3, 4])).shape
    torch.Size([2, 1, 28, 28])
    >>> UNet((1, 28, 28), multipliers=(1, 2, 2, 2))
    Traceback (most recent call last):
    ValueError: a U-Net of 4 levels and patch=1 takes ... multiples of 8, got (28, 28); try 24 ...
    """

    @takes_options(UNetOptions)
    def __init__(self, shape: tuple[int, ...], **options: Any) -> None:
        super().__init__()
        o = UNetOptions(**options)
        self.shape = event_shape(shape)
        self.patch = o.patch
        attends = _attending(o, _sizes(self.shape, o.patch, o.multipliers))
        rank = len(self.shape) - 1
        self.embed = Embedding(
            self.shape,
            4 * o.channels,
            o.features or o.channels + o.channels % 2,
            o.waves,
            o.classes,
            o.vector,
            o.image,
            o.condition_dropout,
            o.octaves,
        )
        into = self.embed.channels * o.patch**rank
        self.stem = convolution(rank, into, o.channels)
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.pyramid = nn.ModuleList()
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        kept = self._build_encoder(rank, into, o, attends)
        lowest = kept[-1]
        self.middle = nn.ModuleList(
            [_block(rank, o, lowest, lowest, attends=True), _block(rank, o, lowest, lowest)]
        )
        last = self._build_decoder(rank, o, attends, kept)
        self.norm = norm(last, o.groups)
        self.out = convolution(rank, last, shape[0] * o.patch**rank, zero=True)
        if rank == 2:
            # volumes keep the usual layout: training flattens weights, and takes these two only
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _build_encoder(
        self, rank: int, into: int, o: UNetOptions, attends: list[bool]
    ) -> list[int]:
        """Build the way down; return the channels of all outputs that are kept."""
        here = o.channels
        kept = [here]
        for i, multiplier in enumerate(o.multipliers):
            there = o.channels * multiplier
            if i:
                self.downs.append(_block(rank, o, here, here, change="down"))
                if o.residual_input:
                    self.pyramid.append(Pyramid(rank, into, here, o.filter))
                    into = here
                kept.append(here)
            level = nn.ModuleList()
            for _ in range(o.blocks):
                level.append(_block(rank, o, here, there, attends[i]))
                here = there
            kept += [there] * o.blocks
            self.encoder.append(level)
        return kept

    def _build_decoder(
        self, rank: int, o: UNetOptions, attends: list[bool], kept: list[int]
    ) -> int:
        """Build the way up, which uses `kept` up; return the channels at its end."""
        here = kept[-1]
        for i in reversed(range(len(o.multipliers))):
            if i < len(o.multipliers) - 1:
                self.ups.append(_block(rank, o, here, here, change="up"))
            level = nn.ModuleList()
            for j in range(o.blocks + 1):
                attending = attends[i] and (o.attention_up == "all" or j == o.blocks)
                there = o.channels * o.multipliers[i]
                level.append(_block(rank, o, here + kept.pop(), there, attending))
                here = there
            self.decoder.append(level)
        return here

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        vector: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """Return the network's output.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        t : Tensor, shape (B,)
            Noise labels.
        y : Tensor of int, shape (B,), optional
        vector : Tensor, shape (B, vector), optional
        image : Tensor, shape (B, image, *space), optional

        Returns
        -------
        Tensor, shape (B, *shape)

        Raises
        ------
        ValueError
            For samples of another shape.

        Examples
        --------
        See `UNet`.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"this U-Net takes samples of shape {self.shape}, got x of shape {tuple(x.shape)}"
            )
        x, embedding = self.embed(x, t, y, vector, image)
        embedding = F.silu(embedding)
        x = patched(x.to(weights_dtype(self.stem, x)), self.patch)
        x = x.contiguous(memory_format=LAYOUTS[x.ndim - 2])
        h = self.stem(x)
        kept = [h]
        for i, level in enumerate(self.encoder):
            if i:
                h = self.downs[i - 1](h, embedding)
                if self.pyramid:
                    h = x = (h + self.pyramid[i - 1](x)) * math.sqrt(0.5)
                kept.append(h)
            for block in level.children():
                h = block(h, embedding)
                kept.append(h)
        for block in self.middle.children():
            h = block(h, embedding)
        for i, level in enumerate(self.decoder):
            if i:
                h = self.ups[i - 1](h, embedding)
            for block in level.children():
                h = block(torch.cat([h, kept.pop()], 1), embedding)
        h = self.out(F.silu(self.norm(h)))
        return joined(h, self.patch).contiguous()


def _block(
    rank: int, o: UNetOptions, into: int, out: int, attends: bool = False, change: str = ""
) -> nn.Module:
    """A residual block with the options of a U-Net; with "conv", a change of size alone."""
    if change and o.resample == "conv":
        return Resample(rank, into, change == "up")
    heads = (o.heads or max(1, out // o.head_channels)) if attends else 0
    if heads and out % heads:
        raise ValueError(f"{heads} heads do not divide {out} channels; try heads=1")
    return Block(
        rank,
        into,
        out,
        4 * o.channels,
        change,
        o.filter,
        o.project,
        o.condition,
        heads,
        o.dropout,
        o.scale,
        o.groups,
    )


def _attending(o: UNetOptions, sizes: list[int]) -> list[bool]:
    """Whether the blocks of each level have attention; raises for a size that no level has."""
    for size in o.attention:
        if size not in sizes:
            near = min(sizes, key=lambda level: abs(math.log(level / size)))
            raise ValueError(
                f"attention={size} is no level of this U-Net; it has "
                f"{', '.join(map(str, sizes))}: try attention=({near},)"
            )
    return [size in o.attention for size in sizes]


def _sizes(shape: tuple[int, ...], patch: int, multipliers: Sequence[int]) -> list[int]:
    """The size of each level along the first axis; raises for a shape that can't be halved."""
    if len(shape) not in (2, 3, 4):
        raise ValueError(
            f"a U-Net takes samples of shape (C, n), (C, n, n) or (C, n, n, n), got {shape}; for "
            "points try 'mlp'"
        )
    unit = patch * 2 ** (len(multipliers) - 1)
    for size in shape[1:]:
        if size % unit or not size:
            near = [f"{n * unit}" for n in (size // unit, size // unit + 1) if n]
            raise ValueError(
                f"a U-Net of {len(multipliers)} levels and patch={patch} takes sizes that are "
                f"multiples of {unit}, got {shape[1:]}; try {' or '.join(near)}, or fewer levels"
            )
    return [shape[1] // patch // 2**i for i in range(len(multipliers))]
