"""DiT, a transformer on patches; the noise label and the conditions scale, shift and gate blocks.

With tokens h (see `scoresde.backbones.tokens`), h = X·W + b + positions, and one vector
c = silu(embedding) a sample, a block is

    (β_1, γ_1, α_1, β_2, γ_2, α_2) = W_c·c + b_c,
    h ← h + α_1 ∘ Attention((1 + γ_1) ∘ LN(h) + β_1),
    h ← h + α_2 ∘ Perceptron((1 + γ_2) ∘ LN(h) + β_2),

where LN is layer normalization without weights of its own. After the last block tokens become
patches again by

    (β, γ) = W_c'·c + b_c',      out = W_o·((1 + γ) ∘ LN(h) + β) + b_o.

W_c and b_c start at zero ("adaLN-zero"), so that each block starts as the identity; W_o and b_o
start at zero, and so does the output.
"""

from __future__ import annotations

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
    positions,
    unpatchify,
)


@BACKBONES.register("dit")
class DiT(Conditioned):
    """A diffusion transformer for samples (C, *space) with 1 to 3 axes of space.

    Patches have to fill the samples. Named sizes are DiT-S (width 384, depth 12, 6 heads),
    B (768, 12, 12), L (1024, 24, 16) and XL (1152, 28, 16); "/2" is the patch. The output has as
    many channels as x: unlike the paper's, it has no variance.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample.
    patch : int
        Elements of a patch along each axis.
    width, depth, heads : int
        Numbers a token; blocks; and heads of attention, which divide the width.
    ratio : float
        Hidden units of a block's perceptron, in widths.
    dropout : float
        Probability, in training, for what a block adds to its tokens.
    features, waves, classes, vector, image, condition_dropout, octaves
        See `Embedding`.

    Raises
    ------
    ValueError
        For sizes that are not positive, heads that do not divide the width, or patches that do not
        fill a sample.

    References
    ----------
    Peebles & Xie, Scalable diffusion models with transformers, ICCV 2023, section 3.2, figure 3.

    Examples
    --------
    >>> net = DiT((3, 8, 8), width=32, depth=2, heads=2, classes=10)
    >>> net(torch.randn(5, 3, 8, 8), torch.zeros(5), y=torch.arange(5)).abs().max()
    tensor(0., grad_fn=...)
    """

    places: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        patch: int = 2,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        ratio: float = 4.0,
        dropout: float = 0.0,
        features: int = 256,
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
        self.embed = Embedding(
            self.shape, width, features, waves, classes, vector, image, condition_dropout, octaves
        )
        area = patch ** len(places)
        self.first = nn.Linear(self.embed.channels * area, width)
        self.register_buffer("places", positions(places, width), persistent=False)
        hidden = int(ratio * width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.turn = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, shape[0] * area)
        self._start()

    def _start(self) -> None:
        """Draw the weights as the paper's code does."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for weight in (self.embed.first.weight, self.embed.last.weight):
            nn.init.normal_(weight, std=0.02)
        if self.embed.label is not None:
            nn.init.normal_(self.embed.label.weight, std=0.02)
        for null in self.embed.null_parameters():
            nn.init.normal_(null, std=0.02)
        turns = [block.turn for block in self.blocks if isinstance(block, Block)]
        for linear in (self.last, self.turn, *turns):
            nn.init.zeros_(linear.weight)

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
        See `DiT`.
        """
        check_sample(x, self.shape)
        x, embedding = self.embed(x, t, y, vector, image)
        c = functional.silu(embedding)
        h = self.first(patchify(x.to(weights_dtype(self.first, x)), self.patch))
        # in the dtype of the weights, not in that of h, which autocast lowers
        h = h + self.places.to(self.first.weight.dtype)
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.turn(c).unsqueeze(1).chunk(2, 2)
        return unpatchify(self.last(modulate(h, shift, scale)), self.shape, self.patch)


class Block(nn.Module):
    """A block of DiT: attention and a perceptron, each with a scale, a shift and a gate by c."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.perceptron = Perceptron(width, hidden, approximate="tanh")
        self.turn = nn.Linear(width, 6 * width)
        self.dropout = dropout

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Return the tokens after the block."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.turn(c).unsqueeze(1).chunk(6, 2)
        change = self.attention(modulate(h, shift1, scale1))
        h = torch.addcmul(h, gate1, functional.dropout(change, self.dropout, self.training))
        change = self.perceptron(modulate(h, shift2, scale2))
        return torch.addcmul(h, gate2, functional.dropout(change, self.dropout, self.training))


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return (1 + γ) ∘ LN(h) + β, with layer normalization of the last axis."""
    return torch.addcmul(shift, 1 + scale, functional.layer_norm(h, h.shape[-1:], eps=1e-6))
