"""U-ViT, a transformer with long connections from its first blocks to its last.

Its tokens h (see `scoresde.backbones.tokens`) are the patches, X·W + b, the noise label, and the
conditions if there are any; learnt positions are added to all. A block is

    h ← h + Attention(LN(h)),      h ← h + Perceptron(LN(h)),

and of 2k + 1 blocks the last k begin by h ← [h, s]·W_s + b_s, where s is the output of block k, k −
1, … 1: fine structure bypasses the middle, as in a U-Net. After the last block LN and a linear map
turn the tokens of patches into patches, and a convolution of 3 along each axis of space smooths the
seams. Its weights start at zero, and so does the output.

The token of the noise label is silu of its waves, without the perceptron of `Embedding`: nothing of
it is learnt. That of the conditions is the row of the label, plus a linear map of `vector`, plus
these waves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..common.inputs import event_shape
from .base import BACKBONES, weights_dtype
from .embedding import Conditioned, Embedding
from .tokens import (
    Attention,
    Perceptron,
    check_sample,
    check_transformer,
    grid,
    patchify,
    unpatchify,
)

CONVOLUTIONS: tuple[type[nn.Conv1d | nn.Conv2d | nn.Conv3d], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
)


@BACKBONES.register("uvit")
class UViT(Conditioned):
    """A U-shaped transformer for samples (C, *space) with 1 to 3 axes of space.

    Patches have to fill the samples. The paper's U-ViT-S/2 for CIFAR-10 has width 512, depth 13,
    8 heads and patch 2.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample.
    patch : int
        Elements of a patch along each axis.
    width, depth, heads : int
        Numbers a token, even; blocks, odd; and heads of attention, which divide the width.
    ratio : float
        Hidden units of a block's perceptron, in widths.
    dropout : float
        Probability, in training, for what a block adds to its tokens.
    waves, classes, vector, image, condition_dropout, octaves
        See `Embedding`.

    Raises
    ------
    ValueError
        For sizes that are not positive, heads that do not divide the width, an odd width, an even
        depth, or patches that do not fill a sample.

    References
    ----------
    Bao et al., All are worth words: a ViT backbone for diffusion models, CVPR 2023.

    Examples
    --------
    >>> net = UViT((3, 8, 8), width=32, depth=3, heads=2, classes=10)
    >>> net(torch.randn(5, 3, 8, 8), torch.zeros(5), y=torch.arange(5)).abs().max()
    tensor(0., grad_fn=...)
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        patch: int = 2,
        width: int = 192,
        depth: int = 7,
        heads: int = 3,
        ratio: float = 4.0,
        dropout: float = 0.0,
        waves: str = "sinusoidal",
        classes: int | Sequence[int] = 0,
        vector: int = 0,
        image: int = 0,
        condition_dropout: float = 0.1,
        octaves: int = 0,
    ) -> None:
        super().__init__()
        self.shape = event_shape(shape)
        self.patch = patch
        places = grid(self.shape, patch)
        check_transformer(width, depth, heads, ratio, dropout)
        if depth % 2 == 0:
            raise ValueError(
                f"depth is odd, with as many blocks behind the middle one as before it, got "
                f"{depth}; try {depth + 1}"
            )
        if width % 2:
            raise ValueError(
                f"width is even, as many sines of the noise label as cosines, got {width}; try "
                f"{width + 1}"
            )
        conditions = (classes, vector, image, condition_dropout, octaves)
        self.embed = _plain(Embedding(self.shape, width, width, waves, *conditions))
        self.noise = None
        if classes or vector:
            self.noise = _plain(Embedding(self.shape, width, width, waves))
        area = patch ** len(places)
        tokens = (2 if self.noise else 1) + math.prod(places)
        self.first = nn.Linear(self.embed.channels * area, width)
        self.places = nn.Parameter(torch.empty(tokens, width))
        half = depth // 2
        hidden = int(ratio * width)
        self.rising = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(half))
        self.middle = Block(width, heads, hidden, dropout)
        self.falling = nn.ModuleList(
            Block(width, heads, hidden, dropout, skip=True) for _ in range(half)
        )
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, shape[0] * area)
        self.smooth = CONVOLUTIONS[len(places) - 1](shape[0], shape[0], 3, padding=1)
        self._start()

    def _start(self) -> None:
        """Draw the weights as the paper's code does, except the zeros."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for parameter in (self.places, *self.embed.null_parameters()):
            nn.init.trunc_normal_(parameter, std=0.02)
        nn.init.zeros_(self.smooth.weight)
        if self.smooth.bias is not None:
            nn.init.zeros_(self.smooth.bias)

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
        y, vector, image : Tensor, optional
            Conditions; see `Embedding`.

        Returns
        -------
        Tensor, shape (B, *shape)

        Raises
        ------
        ValueError
            For x of another shape.

        Examples
        --------
        See `UViT`.
        """
        check_sample(x, self.shape)
        joined, embedding = self.embed(x, t, y, vector, image)
        extra = [embedding]
        if self.noise is not None:
            extra = [self.noise(x, t)[1], embedding]
        patches = self.first(patchify(joined.to(weights_dtype(self.first, x)), self.patch))
        tokens = [each.unsqueeze(1).to(patches.dtype) for each in extra]
        h = torch.cat([*tokens, patches], 1) + self.places
        outputs = []
        for block in self.rising:
            h = block(h)
            outputs.append(h)
        h = self.middle(h)
        for block in self.falling:
            h = block(h, outputs.pop())
        patches = self.last(self.norm(h[:, len(extra) :]))
        out: Tensor = self.smooth(unpatchify(patches, self.shape, self.patch))
        return out


def _plain(embed: Embedding) -> Embedding:
    """An embedding without its perceptron."""
    embed.add_module("first", nn.Identity())
    embed.add_module("last", nn.Identity())
    return embed


class Block(nn.Module):
    """A block of U-ViT; with `skip` it first joins its tokens to those of an earlier block."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float = 0.0, skip: bool = False
    ) -> None:
        super().__init__()
        self.join = nn.Linear(2 * width, width) if skip else None
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.perceptron = Perceptron(width, hidden)
        self.dropout = dropout

    def forward(self, h: Tensor, earlier: Tensor | None = None) -> Tensor:
        """Return the tokens after the block."""
        if self.join is not None and earlier is not None:
            h = self.join(torch.cat([h, earlier], 2))
        h = h + functional.dropout(self.attention(self.norm1(h)), self.dropout, self.training)
        return h + functional.dropout(self.perceptron(self.norm2(h)), self.dropout, self.training)
