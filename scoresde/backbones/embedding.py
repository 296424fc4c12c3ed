"""What a network is shown: its noise label and named conditions as one vector a sample, and channels that join those of x.

The noise label t is seen through waves, (sin ωt, cos ωt) with frequencies ω that span what matters of log σ/α: "sinusoidal" ones
in a geometric row from 0.1 to 10 radians per unit, or random ones, "fourier", N(0, 2²). A perceptron makes a vector of them, to
which those of the conditions are added:

    y        a class label 0 … classes − 1, (B,)         a row of a table, whose last row says "no label"
    vector   numbers, (B, vector)                        a linear map of them, or a learnt vector for "none"
    image    channels, (B, image, *space)                joined to those of x, or zeros and a learnt vector for "none"

All are optional, as are waves of x itself: sin 2πfx and cos 2πfx of each element at f = 1, 2, 4 … 2^(octaves − 1) cycles per
standard deviation of the data, times exp(−½(2πf)²·sin²φ), which fades those that are finer than the noise (as those of
`scoresde.backbones.mlp`, with the label t = log tan φ). An image of 256 levels has structure 100 times finer than its standard
deviation, the levels themselves, which a network without such waves is slow to see (Kingma et al. 2021, appendix C).

`fit` shows each sample without its conditions with probability `condition_dropout`, so that the one network is conditional and
unconditional, as classifier-free guidance needs it (Ho & Salimans 2021). With condition_dropout=0 a condition that is left out is
an error. Waves are formed in at least float32, whatever the dtype of the weights, and then cast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..checks import number, whole
from ..registry import nearest
from .base import ExactWaves, weights_dtype, wide
from .labels import absent, check_known, check_labels, check_numbers, hide, need, show_labels

WAVES = ("sinusoidal", "fourier")


class Embedding(ExactWaves):
    """One vector a sample from its noise label and its conditions, and x with the channels of a condition joined to it.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample.
    width : int
        Length of the vector.
    features : int
        Number of sines and cosines of the noise label, even.
    waves : str
        "sinusoidal" or "fourier".
    classes, vector, image : int
        Number of labels `y`, length of a condition `vector`, and channels of a condition `image`; 0 for none.
    condition_dropout : float
        Probability that a training sample is shown without its conditions.
    octaves : int
        Of the waves of x that are joined to its channels; 0 for none. 6 or 7 for images of 256 levels.

    Attributes
    ----------
    channels : int
        C·(1 + 2·octaves) + image, those of x as it is returned.

    Raises
    ------
    ValueError
        For sizes that are negative, odd features, a dropout outside [0, 1], or unknown waves.

    References
    ----------
    Ho & Salimans, Classifier-free diffusion guidance, 2021, Algorithm 1. Tancik et al., NeurIPS 2020, eq. 5. Kingma et al.,
    Variational diffusion models, NeurIPS 2021, appendix C.

    Examples
    --------
    >>> embed = Embedding((3, 8, 8), width=16, features=8, classes=10, image=1)
    >>> x, vector = embed(torch.zeros(2, 3, 8, 8), torch.zeros(2), y=torch.tensor([3, 4]))
    >>> x.shape, vector.shape
    (torch.Size([2, 4, 8, 8]), torch.Size([2, 16]))
    """

    rates: Tensor
    exact_buffers = ("rates",)

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        features: int,
        waves: str = "sinusoidal",
        classes: int = 0,
        vector: int = 0,
        image: int = 0,
        condition_dropout: float = 0.1,
        octaves: int = 0,
    ) -> None:
        super().__init__()
        if not shape:
            raise ValueError("a sample of shape () has no axis; try shape=(1,)")
        for name, value in (("classes", classes), ("vector", vector), ("image", image), ("octaves", octaves)):
            whole(name, value, 0)
        number("condition_dropout", condition_dropout, 0, 1, closed=True, hint="try 0.1")
        if whole("features", features, 2) % 2:
            raise ValueError(f"features is even, as many sines as cosines, got {features}; try {features + 1}")
        if waves not in WAVES:
            raise ValueError(f"unknown waves={waves!r}. {nearest(waves, WAVES)}")
        for name, value in (("image", image), ("octaves", octaves)):
            if value and len(shape) < 2:
                raise ValueError(f"{name}={value} joins channels to those of a sample, and one of shape {tuple(shape)} has none")
        if octaves > 12:
            raise ValueError(f"octaves={octaves}: more than 12 are finer than a model resolves; try 6")
        count = features // 2
        rates = (
            torch.exp(torch.linspace(math.log(0.1), math.log(10.0), count)) if waves == "sinusoidal" else 2 * torch.randn(count)
        )
        self.register_buffer("rates", rates)
        self.first, self.last = nn.Linear(2 * count, width), nn.Linear(width, width)
        self.shape, self.classes, self.vectors, self.images = tuple(shape), classes, vector, image
        self.condition_dropout, self.octaves = condition_dropout, octaves
        self.channels = shape[0] * (1 + 2 * octaves) + image
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.vector = nn.Linear(vector, width, bias=False) if vector else None
        self.null_vector = nn.Parameter(torch.randn(width) / math.sqrt(3)) if vector else None  # as large as maps of numbers
        self.null_image = nn.Parameter(torch.randn(width) / math.sqrt(3)) if image else None

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The conditions that it takes, with the shape of one sample's."""
        every = {
            "y": (self.classes, ()),
            "vector": (self.vectors, (self.vectors,)),
            "image": (self.images, (self.images, *self.shape[1:])),
        }
        return {name: shape for name, (size, shape) in every.items() if size}

    def null_parameters(self) -> list[nn.Parameter]:
        """What is learnt in place of numbers that are absent."""
        return [p for p in (self.null_vector, self.null_image) if p is not None]

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, vector: Tensor | None = None, image: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return x with its waves' and an image's channels, and the vector.

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
        x : Tensor, shape (B, channels, *space)
        vector : Tensor, shape (B, width)

        Raises
        ------
        ValueError
            For t of another shape, or a condition that was left out where none ever was in training.

        Examples
        --------
        See the class.
        """
        given = {"y": (y, self.classes), "vector": (vector, self.vectors), "image": (image, self.images)}
        need({name: value for name, (value, size) in given.items() if size}, self.condition_dropout)
        if t.shape != x.shape[:1]:
            raise ValueError(f"noise labels t have shape ({len(x)},), one a sample, got {tuple(t.shape)}")
        label, state = wide(t), wide(x)
        turn = label.unsqueeze(1) * self.rates
        waves = torch.cat([turn.sin(), turn.cos()], 1).to(weights_dtype(self.first, x))
        told: Tensor = self.last(nn.functional.silu(self.first(waves)))
        if self.label is not None:
            told = told + self.label(show_labels(x, y, self.classes))
        if self.vector is not None:
            told = told + self._numbers(vector)
        joined = [x]
        for octave in range(self.octaves):
            omega = 2 * math.pi * 2**octave
            fade = torch.exp(-0.5 * omega**2 * torch.sigmoid(2 * label)).view(-1, *[1] * (x.ndim - 1))
            joined += [fade * torch.sin(omega * state), fade * torch.cos(omega * state)]
        if self.null_image is not None:
            if image is None:
                joined.append(x.new_zeros(len(x), self.images, *x.shape[2:]))
                told = told + self.null_image
            else:
                lost = absent(image)
                joined.append(image.to(x.dtype).masked_fill(lost.view(-1, *[1] * (image.ndim - 1)), 0))
                told = told + lost.unsqueeze(1).to(self.null_image.dtype) * self.null_image
        return torch.cat(joined, 1) if len(joined) > 1 else x, told

    def _numbers(self, vector: Tensor | None) -> Tensor:
        """What a condition `vector` adds."""
        assert self.vector is not None
        assert self.null_vector is not None
        if vector is None:
            return self.null_vector
        lost = absent(vector).unsqueeze(1)
        known: Tensor = self.vector(vector.masked_fill(lost, 0).to(weights_dtype(self.vector, vector)))
        return torch.where(lost, self.null_vector, known)

    def hide(self, condition: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return conditions as `fit` shows them: of each sample left out with probability `condition_dropout`.

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
        >>> Embedding((2,), 4, 4, classes=3, condition_dropout=1.0).hide({"y": torch.tensor([0, 1])}, torch.Generator())
        {'y': tensor([3, 3])}
        """
        return hide(condition, self.classes, self.condition_dropout, generator)

    def check_condition(
        self, y: Tensor | None = None, vector: Tensor | None = None, image: Tensor | None = None, **unknown: Tensor
    ) -> None:
        """Raise unless conditions are what this network takes; called once before a solve or a loss, not at every evaluation.

        Parameters
        ----------
        y : Tensor of int, shape (n,), optional
        vector : Tensor, shape (n, vector), optional
        image : Tensor, shape (n, image, *space), optional
        **unknown : Tensor
            None of these.

        Raises
        ------
        ValueError

        Examples
        --------
        >>> Embedding((2,), width=4, features=4, classes=3).check_condition(y=torch.tensor([3]))
        Traceback (most recent call last):
        ValueError: labels y run from 0 to 2, got 3 to 3
        >>> Embedding((2,), width=4, features=4, vector=5).check_condition(vector=torch.zeros(1, 4))
        Traceback (most recent call last):
        ValueError: vector has shape (n, 5), got (1, 4)
        """
        check_known(unknown, self.condition_shapes)
        if y is not None:
            check_labels(y, self.classes)
        if vector is not None:
            check_numbers("vector", vector, (self.vectors,))
        if image is not None:
            check_numbers("image", image, (self.images, *self.shape[1:]))


class Conditioned(nn.Module):
    """A network whose conditions are those of its `embed`.

    Examples
    --------
    >>> net = scoresde.backbones.UNet((1, 8), channels=8, classes=3, condition_dropout=1.0)
    >>> net.check_condition(y=torch.tensor([3]))
    Traceback (most recent call last):
    ValueError: labels y run from 0 to 2, got 3 to 3
    """

    embed: Embedding
    wide_inputs = True
    labels = ("y",)

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The conditions that it takes, with the shape of one sample's."""
        return self.embed.condition_shapes

    @property
    def condition_dropout(self) -> float:
        """Probability that a training sample is shown without its conditions."""
        return self.embed.condition_dropout

    def check_condition(self, **condition: Tensor) -> None:
        """Raise unless conditions are what this network takes; called once before a solve or a loss, not at every evaluation.

        Parameters
        ----------
        **condition : Tensor
            y, vector or image; see `Embedding.check_condition`.

        Raises
        ------
        ValueError

        Examples
        --------
        See `Conditioned`.
        """
        self.embed.check_condition(**condition)

    def hide(self, condition: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return conditions as `fit` shows them; see `Embedding.hide`.

        Parameters
        ----------
        condition : mapping of str to Tensor
        generator : torch.Generator

        Returns
        -------
        dict of str to Tensor

        Examples
        --------
        See `Conditioned`.
        """
        return self.embed.hide(condition, generator)
