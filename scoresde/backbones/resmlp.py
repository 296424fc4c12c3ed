"""A residual perceptron for points and tables: deeper than `mlp`, and told the noise label and the conditions in every block.

The state enters as [x, s·sin ωx, s·cos ωx], with random Fourier features that fade with the noise, s = exp(−½|ω|²·sin²φ), as
`scoresde.backbones.mlp` explains. With c = silu(embedding), one vector a sample, and LN layer normalization without weights of
its own, a block is

    h ← h + α ∘ (W_2·silu(W_1·silu((1 + γ) ∘ LN(h) + β) + b_1) + b_2),      (β, γ, α) = W_c·c + b_c,

and out = W_o·silu((1 + γ) ∘ LN(h) + β) + b_o + g ∘ x, where g = W_g·c + b_g is a gain of each element: without it a network that
is narrower than the data could not take off their noise. W_c, W_o and W_g start at zero: at first blocks are the identity
("adaLN-zero", Peebles & Xie 2023), and the output is zero. c is short beside h, and all W_c are one matrix: as wide as h, each
would cost more than the rest of its block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checks import flag, number, whole
from ..inputs import event_shape
from .base import BACKBONES, ExactWaves, weights_dtype, wide
from .embedding import Conditioned, Embedding
from .tokens import check_sample


@BACKBONES.register("resmlp")
class ResMLP(ExactWaves, Conditioned):
    """Residual blocks on [x, s·sin ωx, s·cos ωx] that the noise label and the conditions scale, shift and gate, plus g∘x.

    ω = 2πF are random frequencies, s = exp(−½|ω|²/(1 + e^{−2t})) fades those that are finer than the noise: the label t is
    understood as log σ/α, as a ScoreSDE that sees the "arc" hands it over.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample; flattened inside.
    width : int
        Units of h.
    depth : int
        Residual blocks, of two layers each, at least 1.
    fourier : int
        Number of random Fourier features of the state, rows of F; 0 for none.
    bandwidth : float
        Their frequencies: entries of F are N(0, bandwidth²·2/D), in cycles per standard deviation of the data, D = ∏shape.
    blur : bool
        Whether to fade them; see `MLP`.
    dropout : float
        Of what a block adds, in training.
    told : int
        Length of the embedding.
    features, waves, classes, vector, image, condition_dropout
        See `Embedding`.

    Raises
    ------
    ValueError
        For sizes that are not positive.

    References
    ----------
    Gorishniy et al., Revisiting deep learning models for tabular data, NeurIPS 2021, section 3.2. Peebles & Xie, Scalable
    diffusion models with transformers, ICCV 2023, section 3.2.

    Examples
    --------
    >>> net = ResMLP((2,), width=32)
    >>> net(torch.randn(5, 2), torch.zeros(5))[0]
    tensor([0., 0.], grad_fn=...)
    """

    frequencies: Tensor
    exact_buffers = ("frequencies",)

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 96,
        depth: int = 2,
        fourier: int = 64,
        bandwidth: float = 0.5,
        blur: bool = True,
        dropout: float = 0.0,
        told: int = 32,
        features: int = 32,
        waves: str = "sinusoidal",
        classes: int = 0,
        vector: int = 0,
        image: int = 0,
        condition_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value, least in (("width", width, 1), ("depth", depth, 1), ("fourier", fourier, 0), ("told", told, 1)):
            whole(name, value, least)
        flag("blur", blur)
        number("bandwidth", bandwidth, 0, math.inf, hint="try 0.5")
        number("dropout", dropout, 0, 1, closed=True, hint="try 0")
        self.shape, self.blur, self.dropout = event_shape(shape), blur, dropout
        self.embed = Embedding(self.shape, told, features, waves, classes, vector, image, condition_dropout)
        n = math.prod(self.shape)
        seen = n + image * math.prod(self.shape[1:])
        self.register_buffer("frequencies", torch.randn(n, fourier) * (2 * math.pi * bandwidth * math.sqrt(2 / n)))
        self.first = nn.Linear(seen + 2 * fourier, width)
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.turn = nn.Linear(told, (3 * depth + 2) * width)
        self.last, self.gain = nn.Linear(width, n), nn.Linear(told, n)
        for layer in (self.turn, self.last, self.gain):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

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
        See `ResMLP`.
        """
        check_sample(x, self.shape)
        joined, told = self.embed(x, t, y, vector, image)
        flat, c, dtype = x.flatten(1), functional.silu(told), weights_dtype(self.first, x)
        seen = torch.cat([joined.flatten(1), *self._features(wide(flat), wide(t))], 1)
        h: Tensor = self.first(seen.to(dtype))
        turns = self.turn(c).chunk(3 * len(self.up) + 2, 1)
        for i, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            shift, scale, gate = turns[3 * i : 3 * i + 3]
            made = down(functional.silu(up(functional.silu(_modulate(h, shift, scale)))))
            h = torch.addcmul(h, gate, functional.dropout(made, self.dropout, self.training))
        out = self.last(functional.silu(_modulate(h, *turns[-2:])))
        return torch.addcmul(out, self.gain(c), flat.to(dtype)).view_as(x)

    def _features(self, flat: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The Fourier features, faded as the noise has blurred them."""
        phase = flat @ self.frequencies.to(flat.dtype)
        if not self.blur:
            return phase.sin(), phase.cos()
        fade = torch.exp(torch.outer(torch.sigmoid(2 * t), -0.5 * self.frequencies.square().sum(0)))
        return fade * phase.sin(), fade * phase.cos()


def _modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, 1 + scale, functional.layer_norm(h, h.shape[-1:], eps=1e-6))
