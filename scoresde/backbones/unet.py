"""The U-Net of diffusion models: one family that holds DDPM, DDPM++, NCSN++ and ADM, for signals, images and volumes.

Levels i = 0 … L − 1 have c·m_i channels and 1/2^i of the size. What blocks say on the way down is kept, and on the way up each
block gets one of these back, joined to what comes from below:

    x → stem ─ blocks ──────────────────────────────────→ blocks + 1 ─ norm, silu, conv → out
                 └ down ─ blocks ──────────→ blocks + 1 ─ up ┘
                            └ down ─ blocks ─ 2 ─ blocks + 1 ─ up ┘

What its members are, and what differs (blocks: see `scoresde.backbones.blocks`):

                    DDPM      DDPM++    NCSN++      ADM
    condition       shift     shift     shift       scale_shift
    resample        conv      pool      fir         pool
    project         –         True      True        False
    skip_scale      False     True      True        False
    attention_up    all       last      last        all
    residual_input  False     False     True        False
    heads           1         1         1           channels/64
    waves           sinus…    sinus…    fourier     sinus…

Channels lie last in memory (torch.channels_last), in which convolutions of CPUs and tensor cores are fastest and attention needs
no copies; x comes in and leaves in the usual layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import flag, number, whole
from ..inputs import event_shape
from ..registry import nearest
from .base import BACKBONES, weights_dtype
from .blocks import Block, norm
from .embedding import Conditioned, Embedding
from .options import wholes
from .resampling import Pyramid, Resample, convolution

CHOICES = {"condition": ("shift", "scale_shift"), "resample": ("pool", "fir", "conv"), "attention_up": ("all", "last")}
LEVELS = 24
LAYOUTS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


@BACKBONES.register("unet")
class UNet(Conditioned):
    """Residual blocks and attention at several sizes, with skips between blocks of the same size.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample, (C, n), (C, n, n) or (C, n, n, n). Sizes are multiples of patch·2^(levels − 1).
    channels : int
        c, channels of the stem. The vector of the noise label has 4c numbers.
    multipliers : sequence of int
        m_i, one a level.
    blocks : int
        Residual blocks a level; one more on the way up.
    attention : sequence of int
        Sizes, along the first axis and after patching, of the levels whose blocks have attention; the middle always has.
    attention_up : str
        On the way up, attention in "all" blocks of such a level, or in the "last".
    heads, head_channels : int
        Heads of attention, or if that is 0, channels of one.
    dropout : float
        Probability, in blocks.
    condition : str
        "shift", or "scale_shift": how the noise label and conditions act.
    resample : str
        "pool": blocks halve by means and double by repetition. "fir": likewise with the filter [1, 3, 3, 1]/8. "conv":
        convolutions between blocks do.
    project : bool
        Whether what skips a change of size goes through a 1×1 convolution; not with "conv".
    skip_scale : bool
        Whether sums are multiplied by √½.
    residual_input : bool
        Whether each level gets the input, too.
    patch : int
        Length of the patches that are made channels at the door: what a step costs falls by about patch^rank.
    groups : int
        Of group norms, at most.
    octaves : int
        Of waves of x that join its channels, for images of many levels; see `scoresde.backbones.embedding`.
    features : int
        Sines and cosines of the noise label, even; 0 for as many as channels, or one more.
    waves, classes, vector, image, condition_dropout
        Of `scoresde.backbones.embedding.Embedding`.

    Raises
    ------
    ValueError
        For a shape that cannot be halved as often as needed, unknown names, or sizes that are not positive.

    References
    ----------
    Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020, appendix B. Song et al., Score-based generative modeling
    through SDEs, ICLR 2021, appendix H. Dhariwal & Nichol, Diffusion models beat GANs, NeurIPS 2021, section 3.

    Examples
    --------
    >>> net = UNet((1, 28, 28), channels=16, blocks=1, classes=10)
    >>> net(torch.randn(2, 1, 28, 28), torch.zeros(2), y=torch.tensor([3, 4])).shape
    torch.Size([2, 1, 28, 28])
    >>> UNet((1, 28, 28), multipliers=(1, 2, 2, 2))
    Traceback (most recent call last):
    ValueError: a U-Net of 4 levels and patch=1 takes sizes that are multiples of 8, got (28, 28); try 24 or 32, or fewer levels
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        attention_up: str = "all",
        heads: int = 0,
        head_channels: int = 64,
        dropout: float = 0.0,
        condition: str = "scale_shift",
        resample: str = "pool",
        project: bool = False,
        skip_scale: bool = False,
        residual_input: bool = False,
        patch: int = 1,
        groups: int = 32,
        octaves: int = 0,
        features: int = 0,
        waves: str = "sinusoidal",
        classes: int = 0,
        vector: int = 0,
        image: int = 0,
        condition_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        shape = event_shape(shape)
        for name, value in (("channels", channels), ("blocks", blocks), ("patch", patch), ("groups", groups)):
            whole(name, value)
        for name, value in (("heads", heads), ("features", features)):
            whole(name, value, 0)
        whole("head_channels", head_channels)
        number("dropout", dropout, 0, 1, closed=True, hint="try 0.1")
        for name, choice in (("condition", condition), ("resample", resample), ("attention_up", attention_up)):
            if choice not in CHOICES[name]:
                raise ValueError(f"unknown {name}={choice!r}. {nearest(choice, CHOICES[name])}")
        for name, value in (("project", project), ("skip_scale", skip_scale), ("residual_input", residual_input)):
            flag(name, value)
        multipliers, attention = wholes("multipliers", multipliers, "(1, 2, 2)"), wholes("attention", attention, "(16, 8)")
        sizes = _sizes(shape, patch, multipliers)
        for size in attention:
            if size not in sizes:
                near = min(sizes, key=lambda level: abs(math.log(level / size)))
                raise ValueError(
                    f"attention={size} is no level of this U-Net; it has {', '.join(map(str, sizes))}: try attention=({near},)"
                )

        self.shape, self.patch, rank, width = shape, patch, len(shape) - 1, 4 * channels
        told = (waves, classes, vector, image, condition_dropout, octaves)
        self.embed = Embedding(shape, width, features or channels + channels % 2, *told)
        scale, filter = math.sqrt(0.5) if skip_scale else 1.0, "fir" if resample == "fir" else "box"
        into, out = self.embed.channels * patch**rank, shape[0] * patch**rank
        wide = [channels * m for m in multipliers]

        def block(into: int, out: int, attends: bool = False, change: str = "") -> nn.Module:
            if change and resample == "conv":
                return Resample(rank, into, change == "up")
            many = (heads or max(1, out // head_channels)) if attends else 0
            if many and out % many:
                raise ValueError(f"{many} heads do not divide {out} channels; try heads=1")
            return Block(rank, into, out, width, change, filter, project, condition, many, dropout, scale, groups)

        self.stem = convolution(rank, into, channels)
        self.downs, self.ups, self.pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        here, kept = channels, [channels]
        for i, there in enumerate(wide):
            if i:
                self.downs.append(block(here, here, change="down"))
                if residual_input:
                    self.pyramid.append(Pyramid(rank, into, here, filter))
                    into = here
                kept.append(here)
            level = nn.ModuleList(block(here if j == 0 else there, there, sizes[i] in attention) for j in range(blocks))
            here, kept = there, kept + [there] * blocks
            self.encoder.append(level)
        self.middle = nn.ModuleList([block(here, here, True), block(here, here)])
        for i, there in reversed(list(enumerate(wide))):
            if i < len(wide) - 1:
                self.ups.append(block(here, here, change="up"))
            level = nn.ModuleList()
            for j in range(blocks + 1):
                level.append(block(here + kept.pop(), there, sizes[i] in attention and (attention_up == "all" or j == blocks)))
                here = there
            self.decoder.append(level)
        self.norm = norm(here, groups)
        self.out = convolution(rank, here, out, zero=True)
        if rank == 2:  # not for volumes: training lays weights flat, in this format or the usual one
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, vector: Tensor | None = None, image: Tensor | None = None
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
            raise ValueError(f"this U-Net takes samples of shape {self.shape}, got x of shape {tuple(x.shape)}")
        x, told = self.embed(x, t, y, vector, image)
        told = F.silu(told)
        x = _patched(x.to(weights_dtype(self.stem, x)), self.patch).contiguous(memory_format=LAYOUTS[x.ndim - 2])
        h = self.stem(x)
        kept = [h]
        for i, level in enumerate(self.encoder):
            if i:
                h = self.downs[i - 1](h, told)
                if self.pyramid:
                    h = x = (h + self.pyramid[i - 1](x)) * math.sqrt(0.5)
                kept.append(h)
            for block in level.children():
                h = block(h, told)
                kept.append(h)
        for block in self.middle.children():
            h = block(h, told)
        for i, level in enumerate(self.decoder):
            if i:
                h = self.ups[i - 1](h, told)
            for block in level.children():
                h = block(torch.cat([h, kept.pop()], 1), told)
        h = self.out(F.silu(self.norm(h)))
        return _joined(h, self.patch).contiguous()


def _sizes(shape: tuple[int, ...], patch: int, multipliers: Sequence[int]) -> list[int]:
    """The size of each level along the first axis; raises if there is none."""
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"a U-Net takes samples of shape (C, n), (C, n, n) or (C, n, n, n), got {shape}; for points try 'mlp'")
    if len(multipliers) > LEVELS:
        raise ValueError(f"multipliers has {len(multipliers)} entries, one a level, and {LEVELS} halve {2**LEVELS} to 1")
    if not multipliers:
        raise ValueError("multipliers is empty; give one number a level, such as (1, 2, 2)")
    unit = patch * 2 ** (len(multipliers) - 1)
    for size in shape[1:]:
        if size % unit or not size:
            near = [f"{n * unit}" for n in (size // unit, size // unit + 1) if n]
            raise ValueError(
                f"a U-Net of {len(multipliers)} levels and patch={patch} takes sizes that are multiples of {unit}, "
                f"got {shape[1:]}; try {' or '.join(near)}, or fewer levels"
            )
    return [shape[1] // patch // 2**i for i in range(len(multipliers))]


def _patched(x: Tensor, p: int) -> Tensor:
    """(B, C, *space) to (B, C·p^rank, *space/p): each patch's numbers as channels."""
    if p == 1:
        return x
    rank = x.ndim - 2
    x = x.reshape(*x.shape[:2], *(n for size in x.shape[2:] for n in (size // p, p)))
    return x.permute(0, 1, *range(3, 3 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2)).flatten(1, 1 + rank)


def _joined(x: Tensor, p: int) -> Tensor:
    """The inverse of `_patched`."""
    if p == 1:
        return x
    rank = x.ndim - 2
    x = x.reshape(len(x), -1, *[p] * rank, *x.shape[2:])
    x = x.permute(0, 1, *(axis for i in range(rank) for axis in (2 + rank + i, 2 + i)))
    return x.reshape(*x.shape[:2], *(x.shape[i] * p for i in range(2, 2 + 2 * rank, 2)))
