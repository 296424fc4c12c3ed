"""A multilayer perceptron for points, tables and small images: the default backbone.

Random Fourier features of the state (Tancik et al. 2020) let a small network draw sharp edges, and
a sinusoidal embedding of the noise label says how sharp they are. The output starts at zero. Added
to it is g(t)∘x, the state times a gain of each element that depends on the noise label: without it
a network that is narrower than the data could not remove their noise, which has as many dimensions
as they have.

A noise of sin φ leaves no fine structure, so a feature that is finer than the noise does harm: it
bends a velocity that is smooth, and log p adds up the divergence of every such ripple. The features
are therefore those of the state blurred once more by the noise that it has,

    E_ξ exp(iω·(x + sin φ·ξ)) = exp(iω·x)·exp(−½|ω|²·sin²φ),      ξ ~ N(0, I),

the integrated positional encoding of Barron et al. (2021, mip-NeRF, eq. 13 and 14), with the noise
in place of a pixel. With the noise label t = log tan φ, sin²φ = 1/(1 + e^{−2t}).

The trace has a closed form. With S_l = diag(s_l), the derivatives of the activations of layer l =
1 … L, and C = diag(s·cos ωx, −s·sin ωx), those of the Fourier features, s = exp(−½|ω|²·sin²φ),

    ∂out/∂x = W_out·S_L·W_L ⋯ W_2·S_1·(A + W_c·C·Φ) + diag(g),

where A and W_c are the columns of W_1 for x and its features, and Φ = (ω; ω). As tr XY = tr YX, a
trace over D > h dimensions is one over the h units of the last layer: W_out = V·R, where R has q =
min(D, h) rows, (V, R) = (I, W_out) or (W_out, I), and the trace is that of the q×q matrix R·S_L ⋯
S_1·(A + W_c·C·Φ)·V. It is multilinear in the derivatives. With two of them (two hidden layers
without Fourier features, or one with) it is a bilinear form,

    tr = s_2ᵀ·(W_2 ∘ (A·W_out)ᵀ)·s_1,

one h×h product at any D. With more, q rows are multiplied from the left and q columns from the
right, up to the last layer but one. The outermost weights are multiplied beforehand, so that the
first step on either side is one product, with s_1 (or C) and with s_L.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..common.checks import real_number, true_or_false, whole_number
from ..common.inputs import event_shape
from ..common.names import nearest
from .base import (
    BACKBONES,
    ExactWaves,
    faded_waves,
    feature_counts,
    usual_rate,
    weights_dtype,
    wide,
)
from .conditional_gaussian import (
    ConditionalGaussian,
    Residual,
    TakesGaussian,
    gaussian_for,
    residual,
)
from .conditions import (
    check_labels,
    check_numbers,
    drop_conditions,
    embedded_numbers,
    label_indices,
    require_conditions,
)
from .embedding import WAVES
from .labels import CombinedLabels, label_table, number_of_labels
from .traces import perceptron_trace

LABEL_WAVES = 16  # frequencies of the noise label


class First(NamedTuple):
    """What the first layer makes of a batch."""

    h: Tensor  # (B, width)
    gain: Tensor  # g(t), (B, D)
    gained: Tensor  # what is multiplied by it, (B, D)
    sin: Tensor  # s·sin ωx
    cos: Tensor  # s·cos ωx
    left: Residual | None  # how the whole output follows, if a Gaussian was taken away


@BACKBONES.register("mlp")
class MLP(ExactWaves, TakesGaussian):
    """A perceptron on [x, s·sin ωx, s·cos ωx, embedding(t), conditions], plus g(t)∘x.

    Of vectors, `fit` first measures the linear regression on `vector` and the means of classes, and
    the perceptron learns what is left; see `scoresde.backbones.conditional_gaussian`. Activations
    are SiLU. ω = 2πF are random frequencies, and s = exp(−½|ω|²/(1 + e^{−2t})) fades features that
    are finer than the noise: t is log σ/α, the label with input_convention="arc".

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample; flattened inside.
    width : int
        Units per hidden layer.
    depth : int
        Hidden layers, at least 1.
    fourier : int, optional
        Number of random Fourier features of the state, rows of F; 0 for none. By default 64, but
        128/D, at least 8, of vectors of D > 2 dimensions that have features along columns.
    axes : int, optional
        Number of further features, each along one column of the data, at ½, 1, 2 … 64 cycles per
        standard deviation of it. `fit` gives each column as many as its structure asks for, and
        those left over are random. By default 8 a column, at most 256, for vectors, and none for
        other shapes and without `blur`.
    bandwidth : float
        Scale of their frequencies: entries of F are N(0, bandwidth²·2/D), in cycles per standard
        deviation of the data, D = ∏shape. As they fade, they can be higher than those of a plain
        encoding.
    blur : bool
        Whether to fade them. False for models that are sharp where the noise is greatest: flows
        from another source than noise, and reflowed or distilled flows.
    classes : int or tuple of int
        Number of labels `y`, shape (B,); a tuple is that of `Table.classes`. 0 for none.
    waves : str
        Frequencies for the noise label t: "sinusoidal", from 0.2 to 4 radians per unit in a
        geometric row, or "fourier", random ones, N(0, 2²).
    condition_dropout : float
        Probability that a training sample loses its conditions; with 0 a missing condition is an
        error.
    vector : int
        If positive, the network takes a condition `vector` of so many numbers, shape (B, vector),
        whose linear map joins the first layer. A learnt vector stands for a missing one.

    Raises
    ------
    ValueError
        For sizes that are not positive, a dropout outside [0, 1], or unknown waves.

    References
    ----------
    Tancik et al., Fourier features let networks learn high frequency functions in low dimensional
    domains, NeurIPS 2020, eq. 5. Barron et al., Mip-NeRF, ICCV 2021, eq. 14.

    Examples
    --------
    >>> net = MLP((2,), width=32)
    >>> net(torch.randn(5, 2), torch.zeros(5))[0]
    tensor([0., 0.], grad_fn=...)
    """

    frequencies: Tensor
    rates: Tensor
    out: nn.Linear
    exact_buffers = ("frequencies", "rates")
    labels = ("y",)
    last_layers = ("out", "gain")
    layer_types = (nn.Linear, nn.Embedding, CombinedLabels, nn.ModuleList, ConditionalGaussian)

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 128,
        depth: int = 4,
        fourier: int | None = None,
        bandwidth: float = 0.5,
        blur: bool = True,
        axes: int | None = None,
        classes: int | Sequence[int] = 0,
        waves: str = "sinusoidal",
        condition_dropout: float = 0.1,
        vector: int = 0,
    ) -> None:
        super().__init__()
        whole_number("width", width)
        whole_number("depth", depth)
        whole_number("vector", vector, 0)
        real_number("bandwidth", bandwidth, 0, math.inf, hint="try 0.5")
        real_number("condition_dropout", condition_dropout, 0, 1, closed=True, hint="try 0.1")
        true_or_false("blur", blur)
        if waves not in WAVES:
            raise ValueError(f"unknown waves={waves!r}. {nearest(waves, WAVES)}")
        self.shape = event_shape(shape)
        n = math.prod(self.shape)
        random, self.axes = feature_counts(self.shape, fourier, blur, axes)
        self.learning_rate = usual_rate(self.axes, width, n)
        count = random + self.axes
        scale = 2 * math.pi * bandwidth * math.sqrt(2 / n)
        self.register_buffer("frequencies", torch.randn(n, count) * scale)
        if waves == "sinusoidal":
            rates = torch.exp(torch.linspace(math.log(0.2), math.log(4.0), LABEL_WAVES))
        else:
            rates = 2 * torch.randn(LABEL_WAVES)
        self.register_buffer("rates", rates)
        # no list: a file may ask for 10⁹ layers
        inputs = n + 2 * count + 2 * LABEL_WAVES
        sizes = itertools.chain([inputs], itertools.repeat(width, depth))
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(width, n)
        self.gain = nn.Linear(2 * LABEL_WAVES, n)
        for layer in (self.out, self.gain):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.blur = blur
        self.classes = number_of_labels(classes)
        self.condition_dropout = condition_dropout
        label = label_table(classes, width)
        if label is not None:
            self.label = label
            nn.init.zeros_(label.weight)
        self.vectors = vector
        if vector:
            self.vector = nn.Linear(vector, width, bias=False)
            self.null_vector = nn.Parameter(torch.randn(width) / math.sqrt(3))
        self.conditional_gaussian = gaussian_for(self.shape, vector, classes)

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The conditions that it takes, with the shape of one sample's."""
        shapes = {"y": (), "vector": (self.vectors,)}
        sizes = {"y": self.classes, "vector": self.vectors}
        return {name: shape for name, shape in shapes.items() if sizes[name]}

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, vector: Tensor | None = None
    ) -> Tensor:
        """Return the network's output.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        t : Tensor, shape (B,)
            Noise labels.
        y : Tensor of int, shape (B,), optional
            Class labels, if the network was built with classes.
        vector : Tensor, shape (B, vector), optional
            Numbers, if it was built with vector. A row of NaN is a missing one.

        Returns
        -------
        Tensor, shape (B, *shape)

        Examples
        --------
        >>> net = MLP((2,), classes=3)
        >>> net(torch.zeros(1, 2), torch.zeros(1), y=torch.tensor([2])).shape
        torch.Size([1, 2])
        """
        first = self._first(x, t, y, vector)
        h = first.h
        for layer in self.hidden[1:]:
            h = layer(nn.functional.silu(h))
        out = torch.addcmul(self.out(nn.functional.silu(h)), first.gain, first.gained)
        if first.left is not None:
            out = first.left.output(out)
        return out.reshape(x.shape)

    def value_and_trace(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, vector: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the network's output and its exact trace Σ_i ∂out_i/∂x_i, in closed form.

        Gradients flow through both. It needs no automatic differentiation, and memory is bounded
        whatever B and D.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        t : Tensor, shape (B,)
            Noise labels.
        y : Tensor of int, shape (B,), optional
            Class labels, if the network was built with classes.
        vector : Tensor, shape (B, vector), optional
            Numbers, if it was built with vector. A row of NaN is a missing one.

        Returns
        -------
        out : Tensor, shape (B, *shape)
        trace : Tensor, shape (B,)

        Examples
        --------
        >>> net = MLP((2,))
        >>> net.out.reset_parameters()
        >>> x, t = torch.randn(1, 2), torch.zeros(1)
        >>> out, trace = net.value_and_trace(x, t)
        >>> jacobian = torch.autograd.functional.jacobian(lambda x: net(x[None], t)[0], x[0])
        >>> torch.allclose(trace, jacobian.trace(), atol=1e-4)
        True
        """
        first = self._first(x, t, y, vector)
        a = first.h
        one = a.new_ones(())
        derivatives = []
        if first.sin.shape[1]:
            derivatives.append(torch.cat([first.cos, -first.sin], 1))
        for layer in [*self.hidden[1:], self.out]:
            gate = a.sigmoid()
            h = a * gate
            derivatives.append(torch.lerp(h, one, gate))  # silu'(a) = h + σ(a)·(1 − h)
            a = layer(h)
        out = torch.addcmul(a, first.gain, first.gained)
        trace = self._trace(derivatives)
        left = first.left
        if left is None:
            trace = trace + first.gain.sum(1)
        else:
            out = left.output(out)
            inner = left.x_stretch[:, 0].to(trace.dtype)
            trace = left.trace(torch.addcmul(first.gain.sum(1), inner, trace))
        return out.reshape(x.shape), trace

    def _first(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        vector: Tensor | None,
    ) -> First:
        """The first layer, of the state or of what a Gaussian leaves of it."""
        left = residual(self.conditional_gaussian, x, t, y, vector)
        gained = x
        if left is not None:
            x, t, gained = left.x, left.t, left.inner
        flat = wide(x.reshape(x.shape[0], -1))
        t = wide(t)
        dtype = weights_dtype(self.hidden[0], x)
        turn = t.unsqueeze(1) * self.rates
        waves = faded_waves(self.frequencies, flat, t, self.blur)
        sin, cos = (wave.to(dtype) for wave in waves)
        label = torch.cat([turn.sin(), turn.cos()], 1).to(dtype)
        h: Tensor = self.hidden[0](torch.cat([flat.to(dtype), sin, cos, label], 1))
        h = self._with_conditions(h, x, y, vector)
        gained = gained.reshape(x.shape[0], -1).to(dtype)
        return First(h, self.gain(label), gained, sin, cos, left)

    def _with_conditions(
        self, h: Tensor, x: Tensor, y: Tensor | None, vector: Tensor | None
    ) -> Tensor:
        """The first layer's output plus what label and vector add."""
        if self.classes:
            require_conditions({"y": y}, self.condition_dropout)
            h = h + self.label(label_indices(x, y, self.classes))
        if self.vectors:
            require_conditions({"vector": vector}, self.condition_dropout)
            h = h + embedded_numbers(self.vector, self.null_vector, vector)
        return h

    def _trace(self, derivatives: list[Tensor]) -> Tensor:
        """The trace (B,) from the derivatives: C of the features, if any, and s_l (B, h)."""
        weights = [cast(nn.Linear, layer).weight for layer in [*self.hidden, self.out]]
        return perceptron_trace(derivatives, weights, self.frequencies)

    def drop_conditions(
        self, condition: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return conditions without those of some samples, chosen with `condition_dropout`.

        Parameters
        ----------
        condition : mapping of str to Tensor
            With one row per sample.
        generator : torch.Generator

        Returns
        -------
        dict of str to Tensor

        Examples
        --------
        >>> net = MLP((2,), classes=3, condition_dropout=1.0)
        >>> net.drop_conditions({"y": torch.tensor([0, 1])}, torch.Generator())
        {'y': tensor([3, 3])}
        """
        return drop_conditions(condition, self.classes, self.condition_dropout, generator)

    def check_condition(self, y: Tensor | None = None, vector: Tensor | None = None) -> None:
        """Raise unless the network takes these conditions; called once before a solve or a loss.

        Parameters
        ----------
        y : Tensor of int, shape (n,), optional
        vector : Tensor, shape (n, vector), optional

        Raises
        ------
        ValueError

        Examples
        --------
        >>> MLP((2,), classes=3).check_condition(y=torch.tensor([3]))
        Traceback (most recent call last):
        ValueError: labels y run from 0 to 2, got 3 to 3
        """
        if y is not None:
            check_labels(y, self.classes, "MLP")
        if vector is not None:
            check_numbers("vector", vector, (self.vectors,))
