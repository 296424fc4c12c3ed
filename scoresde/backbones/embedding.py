"""The noise label and the conditions as one vector a sample, and channels that join those of x.

The noise label t enters as waves, (sin ωt, cos ωt), whose frequencies ω span the range of log σ/α:
"sinusoidal" ones from 0.1 to 10 radians per unit in a geometric row, or random ones, "fourier",
N(0, 2²). A perceptron makes a vector of them, and the vectors of the conditions are added:

    condition                                    given                    missing
    y       class label 0 … classes − 1, (B,)    a row of a table         its last row
    vector  numbers, (B, vector)                 a linear map of them     a learnt vector
    image   channels, (B, image, *space)         channels beside x's      zeros and a learnt vector

With classes=(s_1 … s_C), a label numbers the combinations of C categories,
y = (…(c_1·s_2 + c_2)·s_3 + …)·s_C + c_C. Each category has a vector, and y the sum of those that it
combines, so that what is learnt of a category serves all combinations.

All are optional, as are waves of x itself: sin 2πfx and cos 2πfx of each element at f = 1, 2, 4 …
2^(octaves − 1) cycles per standard deviation of the data, times exp(−½(2πf)²·sin²φ), which fades
waves that are finer than the noise (as in `scoresde.backbones.mlp`, with the label t = log tan φ).
An image of 256 levels has structure 100 times finer than its standard deviation, the levels
themselves, which a network without such waves is slow to learn (Kingma et al. 2021, appendix C).

`fit` drops the conditions of each sample with probability `condition_dropout`, so that one network
is conditional and unconditional, as classifier-free guidance needs it (Ho & Salimans 2021). With
condition_dropout=0 a missing condition is an error. Waves are computed in at least float32,
whatever the dtype of the weights, and then cast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..common.checks import real_number, whole_number
from ..common.names import nearest
from .base import ExactWaves, weights_dtype, wide
from .conditions import (
    absent,
    check_known,
    check_labels,
    check_numbers,
    drop_conditions,
    embedded_numbers,
    label_indices,
    require_conditions,
)
from .labels import label_table, number_of_labels

WAVES = ("sinusoidal", "fourier")


class Embedding(ExactWaves):
    """One vector a sample of its noise label and conditions, and x with more channels."""

    rates: Tensor
    exact_buffers = ("rates",)

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        features: int,
        waves: str = "sinusoidal",
        classes: int | Sequence[int] = 0,
        vector: int = 0,
        image: int = 0,
        condition_dropout: float = 0.1,
        octaves: int = 0,
    ) -> None:
        super().__init__()
        if not shape:
            raise ValueError("a sample of shape () has no axis; try shape=(1,)")
        sizes = {"vector": vector, "image": image, "octaves": octaves}
        for name, value in sizes.items():
            whole_number(name, value, 0)
        real_number("condition_dropout", condition_dropout, 0, 1, closed=True, hint="try 0.1")
        if whole_number("features", features, 2) % 2:
            raise ValueError(
                f"features is even, as many sines as cosines, got {features}; try {features + 1}"
            )
        if waves not in WAVES:
            raise ValueError(f"unknown waves={waves!r}. {nearest(waves, WAVES)}")
        for name in ("image", "octaves"):
            if sizes[name] and len(shape) < 2:
                raise ValueError(
                    f"{name}={sizes[name]} joins channels to those of a sample, and one of shape "
                    f"{tuple(shape)} has none"
                )
        if octaves > 12:
            raise ValueError(
                f"octaves={octaves}: more than 12 are finer than a model resolves; try 6"
            )
        count = features // 2
        if waves == "sinusoidal":
            rates = torch.exp(torch.linspace(math.log(0.1), math.log(10.0), count))
        else:
            rates = 2 * torch.randn(count)
        self.register_buffer("rates", rates)
        self.first = nn.Linear(2 * count, width)
        self.last = nn.Linear(width, width)
        self.shape = tuple(shape)
        self.classes = number_of_labels(classes)
        self.vectors = vector
        self.images = image
        self.condition_dropout = condition_dropout
        self.octaves = octaves
        self.channels = shape[0] * (1 + 2 * octaves) + image
        self.label = label_table(classes, width)
        self.vector = nn.Linear(vector, width, bias=False) if vector else None
        # nulls are as large as linear maps of numbers
        self.null_vector = nn.Parameter(torch.randn(width) / math.sqrt(3)) if vector else None
        self.null_image = nn.Parameter(torch.randn(width) / math.sqrt(3)) if image else None

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The conditions that it takes, with the shape of one sample's."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.classes:
            shapes["y"] = ()
        if self.vectors:
            shapes["vector"] = (self.vectors,)
        if self.images:
            shapes["image"] = (self.images, *self.shape[1:])
        return shapes

    def null_parameters(self) -> list[nn.Parameter]:
        """The learnt vectors that replace absent numbers."""
        return [p for p in (self.null_vector, self.null_image) if p is not None]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        vector: Tensor | None = None,
        image: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return x with the channels of its waves and of an image, and the vector (B, width)."""
        given = {
            "y": (y, self.classes),
            "vector": (vector, self.vectors),
            "image": (image, self.images),
        }
        require_conditions(
            {name: value for name, (value, size) in given.items() if size}, self.condition_dropout
        )
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"noise labels t have shape ({len(x)},), one a sample, got {tuple(t.shape)}"
            )
        label = wide(t)
        state = wide(x)
        turn = label.unsqueeze(1) * self.rates
        waves = torch.cat([turn.sin(), turn.cos()], 1).to(weights_dtype(self.first, x))
        out: Tensor = self.last(nn.functional.silu(self.first(waves)))
        if self.label is not None:
            out = out + self.label(label_indices(x, y, self.classes))
        if self.vector is not None and self.null_vector is not None:
            out = out + embedded_numbers(self.vector, self.null_vector, vector)
        joined = [x]
        for octave in range(self.octaves):
            omega = 2 * math.pi * 2**octave
            fade = torch.exp(-0.5 * omega**2 * torch.sigmoid(2 * label))
            fade = fade.view(-1, *[1] * (x.ndim - 1))
            joined += [fade * torch.sin(omega * state), fade * torch.cos(omega * state)]
        if self.null_image is not None:
            if image is None:
                joined.append(x.new_zeros(x.shape[0], self.images, *x.shape[2:]))
                out = out + self.null_image
            else:
                lost = absent(image)
                mask = lost.view(-1, *[1] * (image.ndim - 1))
                joined.append(image.to(x.dtype).masked_fill(mask, 0))
                out = out + lost.unsqueeze(1).to(self.null_image.dtype) * self.null_image
        return torch.cat(joined, 1) if len(joined) > 1 else x, out

    def drop_conditions(
        self, condition: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return conditions without those of some samples, chosen with `condition_dropout`."""
        return drop_conditions(condition, self.classes, self.condition_dropout, generator)

    def check_condition(
        self,
        y: Tensor | None = None,
        vector: Tensor | None = None,
        image: Tensor | None = None,
        **unknown: Tensor,
    ) -> None:
        """Raise unless the network takes these conditions; called once before a solve or a loss."""
        check_known(unknown, self.condition_shapes)
        if y is not None:
            check_labels(y, self.classes)
        if vector is not None:
            check_numbers("vector", vector, (self.vectors,))
        if image is not None:
            check_numbers("image", image, (self.images, *self.shape[1:]))


class Conditioned(nn.Module):
    """A network with the conditions of its `embed`."""

    embed: Embedding
    wide_inputs = True
    labels = ("y",)

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The conditions that it takes, with the shape of one sample's."""
        return self.embed.condition_shapes

    @property
    def condition_dropout(self) -> float:
        """Probability that a training sample loses its conditions."""
        return self.embed.condition_dropout

    def check_condition(self, **condition: Tensor) -> None:
        """Raise unless the network takes these conditions; called once before a solve or a loss."""
        self.embed.check_condition(**condition)

    def drop_conditions(
        self, condition: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return conditions as training uses them; see `Embedding.drop_conditions`."""
        return self.embed.drop_conditions(condition, generator)
