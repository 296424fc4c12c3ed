"""A transformer on patches whose blocks are told the noise label and the conditions by scales, shifts and gates: DiT.

With tokens h (see `scoresde.backbones.tokens`), h = X·W + b + positions, and c = silu(embedding) one vector a sample, a block is

    (β_1, γ_1, α_1, β_2, γ_2, α_2) = W_c·c + b_c,
    h ← h + α_1 ∘ Attention((1 + γ_1) ∘ LN(h) + β_1),
    h ← h + α_2 ∘ Perceptron((1 + γ_2) ∘ LN(h) + β_2),

where LN is layer normalization without weights of its own, and after the last block tokens become patches again by

    (β, γ) = W_c'·c + b_c',      out = W_o·((1 + γ) ∘ LN(h) + β) + b_o.

W_c and b_c start at zero, "adaLN-zero": at first each block is the identity. So do W_o and b_o: the output starts at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..inputs import event_shape
from .base import BACKBONES, weights_dtype
from .embedding import Conditioned, Embedding
from .tokens import Attention, Perceptron, check_sample, check_transformer, grid, patchify, positions, unpatchify


@BACKBONES.register("dit")
class DiT(Conditioned):
    """A diffusion transformer for samples (C, *space) with 1 to 3 axes of space, which patches have to fill.

    Named sizes are DiT-S (width 384, depth 12, 6 heads), B (768, 12, 12), L (1024, 24, 16) and XL (1152, 28, 16); "/2" is the
    patch. The output has as many channels as x: unlike the paper's, it has no variance.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample.
    patch : int
        Elements of a patch along each axis.
    width, depth, heads : int
        Numbers a token, blocks, and heads of attention, which divide the width.
    ratio : float
        Hidden units of a block's perceptron, in widths.
    dropout : float
        Of what a block adds to its tokens, in training.
    features, waves, classes, vector, image, condition_dropout, octaves
        See `Embedding`.

    Raises
    ------
    ValueError
        For sizes that are not positive, heads that do not divide the width, or patches that do not fill a sample.

    References
    ----------
    Peebles & Xie, Scalable diffusion models with transformers, ICCV 2023, section 3.2 and figure 3.

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
        classes: int = 0,
        vector: int = 0,
        image: int = 0,
        condition_dropout: float = 0.1,
        octaves: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.patch = event_shape(shape), patch
        places = grid(self.shape, patch)
        check_transformer(width, depth, heads, ratio, dropout)
        self.embed = Embedding(self.shape, width, features, waves, classes, vector, image, condition_dropout, octaves)
        area = patch ** len(places)
        self.first = nn.Linear(self.embed.channels * area, width)
        self.register_buffer("places", positions(places, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, int(ratio * width), dropout) for _ in range(depth))
        self.turn, self.last = nn.Linear(width, 2 * width), nn.Linear(width, shape[0] * area)
        self._start()

    def _start(self) -> None:
        """Weights as the paper's code draws them."""
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
        self, x: Tensor, t: Tensor, y: Tensor | None = None, vector: Tensor | None = None, image: Tensor | None = None
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
        x, told = self.embed(x, t, y, vector, image)
        c = functional.silu(told)
        # in the weights' type, not in that of h, which autocast makes less of
        h = self.first(patchify(x.to(weights_dtype(self.first, x)), self.patch)) + self.places.to(self.first.weight.dtype)
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.turn(c).unsqueeze(1).chunk(2, 2)
        return unpatchify(self.last(modulate(h, shift, scale)), self.shape, self.patch)


class Block(nn.Module):
    """A block of DiT: attention and a perceptron, each with a scale, a shift and a gate by c.

    Parameters
    ----------
    width, heads, hidden : int
        Numbers a token, heads of attention, and units of the perceptron.
    dropout : float
        Of what is added to the tokens.

    Examples
    --------
    >>> block = Block(8, 2, 32)
    >>> nn.init.zeros_(block.turn.weight); nn.init.zeros_(block.turn.bias)
    Parameter...
    >>> h = torch.randn(5, 3, 8)
    >>> torch.equal(block(h, torch.randn(5, 8)), h)
    True
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention, self.perceptron = Attention(width, heads), Perceptron(width, hidden, approximate="tanh")
        self.turn, self.dropout = nn.Linear(width, 6 * width), dropout

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Return the tokens after the block.

        Parameters
        ----------
        h : Tensor, shape (B, N, width)
        c : Tensor, shape (B, width)

        Returns
        -------
        Tensor, shape (B, N, width)

        Examples
        --------
        See `Block`.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.turn(c).unsqueeze(1).chunk(6, 2)
        heard = self.attention(modulate(h, shift1, scale1))
        h = torch.addcmul(h, gate1, functional.dropout(heard, self.dropout, self.training))
        made = self.perceptron(modulate(h, shift2, scale2))
        return torch.addcmul(h, gate2, functional.dropout(made, self.dropout, self.training))


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return (1 + γ) ∘ LN(h) + β, with layer normalization of the last axis.

    Parameters
    ----------
    h : Tensor, shape (…, width)
    shift, scale : Tensor
        β and γ, of shapes that broadcast with h.

    Returns
    -------
    Tensor, shape (…, width)

    Examples
    --------
    >>> modulate(torch.tensor([1.0, 3.0]), torch.ones(2), torch.ones(2))
    tensor([-1.0000,  3.0000])
    """
    return torch.addcmul(shift, 1 + scale, functional.layer_norm(h, h.shape[-1:], eps=1e-6))
