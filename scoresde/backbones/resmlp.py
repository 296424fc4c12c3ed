"""A residual perceptron for points and tables, deeper than `mlp`; the noise label and the
conditions enter every block.

The state enters as [x, s·sin ωx, s·cos ωx], with random Fourier features that fade with the noise,
s = exp(−½|ω|²·sin²φ): see `scoresde.backbones.mlp`. With c = silu(embedding), one vector a sample,
and LN layer normalization without weights of its own, a block is

    h ← h + α ∘ (W_2·silu(W_1·silu((1 + γ) ∘ LN(h) + β) + b_1) + b_2),      (β, γ, α) = W_c·c + b_c,

and out = W_o·silu((1 + γ) ∘ LN(h) + β) + b_o + g ∘ x, where g = W_g·c + b_g is a gain of each
element: without it a network that is narrower than the data could not remove their noise. W_c, W_o
and W_g start at zero, so that blocks start as the identity ("adaLN-zero", Peebles & Xie 2023) and
the output at zero. c is shorter than h, and all W_c are one matrix: with a c as wide as h, each
would cost more than the rest of its block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..common.checks import real_number, true_or_false, whole_number
from ..common.inputs import event_shape
from .base import BACKBONES, ExactWaves, faded_waves, feature_counts, weights_dtype, wide
from .conditional_gaussian import TakesGaussian, gaussian_for, residual
from .embedding import Conditioned, Embedding
from .tokens import check_sample


@BACKBONES.register("resmlp")
class ResMLP(ExactWaves, Conditioned, TakesGaussian):
    """Residual blocks on [x, s·sin ωx, s·cos ωx], plus g∘x.

    The noise label and the conditions scale, shift and gate the blocks. Of vectors, `fit` first
    measures the linear regression on `vector` and the means of classes, and the blocks learn what
    is left; see `scoresde.backbones.conditional_gaussian`. ω = 2πF are random
    frequencies, and s = exp(−½|ω|²/(1 + e^{−2t})) fades features that are finer than the noise: t
    is log σ/α, the label with input_convention="arc".

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample; flattened inside.
    width : int
        Units of h.
    depth : int
        Residual blocks, of two layers each, at least 1.
    fourier : int, optional
        Number of random Fourier features of the state, rows of F; 0 for none. By default 64, but
        128/D, at least 8, of vectors of D > 2 dimensions that have features along columns.
    axes : int, optional
        Number of further features, each along one column of the data, at ½, 1, 2 … 64 cycles per
        standard deviation of it. `fit` gives each column as many as its structure asks for, and
        those left over are random. By default 8 a column, at most 256, for vectors, and none for
        other shapes and without `blur`.
    bandwidth : float
        Their frequencies: entries of F are N(0, bandwidth²·2/D), in cycles per standard deviation
        of the data, D = ∏shape.
    blur : bool
        Whether to fade them; see `MLP`.
    dropout : float
        Probability, in training, for what a block adds.
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
    Gorishniy et al., Revisiting deep learning models for tabular data, NeurIPS 2021, section 3.2.
    Peebles & Xie, Scalable diffusion models with transformers, ICCV 2023, section 3.2.

    Examples
    --------
    >>> net = ResMLP((2,), width=32)
    >>> net(torch.randn(5, 2), torch.zeros(5))[0]
    tensor([0., 0.], grad_fn=...)
    """

    frequencies: Tensor
    exact_buffers = ("frequencies",)
    last_layers = ("last", "gain")

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 96,
        depth: int = 2,
        fourier: int | None = None,
        bandwidth: float = 0.5,
        blur: bool = True,
        axes: int | None = None,
        dropout: float = 0.0,
        told: int = 32,
        features: int = 32,
        waves: str = "sinusoidal",
        classes: int | Sequence[int] = 0,
        vector: int = 0,
        image: int = 0,
        condition_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth), ("told", told)):
            whole_number(name, value)
        true_or_false("blur", blur)
        real_number("bandwidth", bandwidth, 0, math.inf, hint="try 0.5")
        real_number("dropout", dropout, 0, 1, closed=True, hint="try 0")
        self.shape = event_shape(shape)
        self.blur = blur
        self.dropout = dropout
        self.embed = Embedding(
            self.shape, told, features, waves, classes, vector, image, condition_dropout
        )
        n = math.prod(self.shape)
        random, self.axes = feature_counts(self.shape, fourier, blur, axes)
        count = random + self.axes
        scale = 2 * math.pi * bandwidth * math.sqrt(2 / n)
        self.register_buffer("frequencies", torch.randn(n, count) * scale)
        inputs = n + image * math.prod(self.shape[1:]) + 2 * count
        self.first = nn.Linear(inputs, width)
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.turn = nn.Linear(told, (3 * depth + 2) * width)
        self.last = nn.Linear(width, n)
        self.gain = nn.Linear(told, n)
        self.conditional_gaussian = gaussian_for(self.shape, vector, classes)
        for layer in (self.turn, self.last, self.gain):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

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
        See `ResMLP`.
        """
        check_sample(x, self.shape)
        left = residual(self.conditional_gaussian, x, t, y, vector)
        seen, label, gained = x, t, x
        if left is not None:
            seen, label, gained = left.x, left.t, left.inner
        joined, embedding = self.embed(seen, label, y, vector, image)
        c = functional.silu(embedding)
        dtype = weights_dtype(self.first, x)
        flat = wide(seen.flatten(1))
        waves = faded_waves(self.frequencies, flat, wide(label), self.blur)
        inputs = torch.cat([joined.flatten(1), *waves], 1)
        h: Tensor = self.first(inputs.to(dtype))
        turns = self.turn(c).chunk(3 * len(self.up) + 2, 1)
        for i, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            shift, scale, gate = turns[3 * i : 3 * i + 3]
            change = down(functional.silu(up(functional.silu(_modulate(h, shift, scale)))))
            h = torch.addcmul(h, gate, functional.dropout(change, self.dropout, self.training))
        out = self.last(functional.silu(_modulate(h, *turns[-2:])))
        out = torch.addcmul(out, self.gain(c), gained.flatten(1).to(dtype))
        out = out if left is None else left.output(out)
        return out.view_as(x)


def _modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + γ) ∘ LN(h) + β."""
    return torch.addcmul(shift, 1 + scale, functional.layer_norm(h, h.shape[-1:], eps=1e-6))
