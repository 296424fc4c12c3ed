"""Networks of diffusers as backbones: "diffusers:UNet2DModel" and any other that is called as
model(x, timestep).

The sizes follow from the shape of a sample: sample_size, in_channels and out_channels. The noise
enters as a step number, made from the label t ≈ log(σ/α), which lies in [−6.2, 6.2]:

    step = 1000·(t + 6.2)/12.4

These models expect steps 0 … 999, so they need input_convention="arc", the default. With "raw" the
label is a time in [0, 1], which would become a step of 500 … 581; with levels=T, for models that
were trained elsewhere on T levels, it becomes step T·t − 1. ("fourier"
embeddings are not offered: with one, UNet2DModel divides its output by the noise level.)

With `classes`, labels y go to the model's own table, which gets one more row: "no label". A model
that attends to a text (UNet2DConditionModel) gets a condition `vector` in its place, as a text of
one word, with one more number that marks a missing condition. The step number is a float32 in
models of half precision as well.

Outputs of diffusers do not start at zero, and no closed form of a trace is known.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..common.checks import real_number, whole_number
from ..common.inputs import event_shape
from ..common.names import nearest
from ..common.plugins import may_import
from .base import BACKBONES, weights_dtype, wide
from .conditions import (
    absent,
    check_labels,
    check_numbers,
    drop_conditions,
    label_indices,
    require_conditions,
)

MOST_LABEL = 6.2  # |t| with input_convention="arc"
TESTED = ("UNet2DModel", "UNet1DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
TRANSFORMER_TABLE = "num_embeds_ada_norm"
TABLES = ("num_class_embeds", TRANSFORMER_TABLE)  # names of the option for the number of labels


class Diffusers(nn.Module):
    """A model of diffusers, "diffusers:NAME", built for the shape of a sample.

    With input_convention="raw" it needs `levels`. Before you load a model file that names it, write
    `import diffusers`: files import nothing.

    Parameters
    ----------
    model : str
        Name of a class of diffusers that is called as model(x, timestep): UNet2DModel,
        UNet1DModel, UNet2DConditionModel, DiTTransformer2DModel, …
    shape : tuple of int
        Shape of one sample.
    classes : int
        Number of labels `y`; 0 for none.
    vector : int
        Length of a condition `vector`, for models that attend to one; 0 for none.
    condition_dropout : float
        Probability that a training sample loses its conditions; with 0 a missing condition is an
        error.
    levels : int
        T, for a model that was trained on a chain of T noise levels, with input_convention="raw":
        the label is then a time t, and the step number is T·t − 1. With 0, the step number is made
        from the noise label.
    **options
        Of the model, e.g. block_out_channels=[32, 64].

    Raises
    ------
    ImportError
        If diffusers is not installed.
    ValueError
        If there is no such model, it has no such option, or it can't be built for this shape.

    References
    ----------
    von Platen et al., Diffusers: state-of-the-art diffusion models, 2022,
    github.com/huggingface/diffusers.

    Examples
    --------
    >>> options = {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}
    >>> options["down_block_types"] = ["DownBlock2D"] * 2
    >>> options["up_block_types"] = ["UpBlock2D"] * 2
    >>> sde = scoresde.build("vp", "diffusers:UNet2DModel", shape=(1, 8, 8), **options)
    >>> scoresde.sample(sde, 2, steps=2).shape
    torch.Size([2, 1, 8, 8])
    """

    wide_inputs = True
    labels = ("y",)

    def __init__(
        self,
        model: str,
        shape: tuple[int, ...],
        classes: int = 0,
        vector: int = 0,
        condition_dropout: float = 0.1,
        levels: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value in (("classes", classes), ("vector", vector), ("levels", levels)):
            whole_number(name, value, 0)
        real_number("condition_dropout", condition_dropout, 0, 1, closed=True, hint="try 0.1")
        self.shape = event_shape(shape)
        if len(self.shape) < 2:
            raise ValueError(
                "models of diffusers are for channels and space, (C, *space); got shape "
                f"{self.shape}"
            )
        self.classes = classes
        self.vectors = vector
        self.levels = levels
        self.condition_dropout = condition_dropout
        cls = _find(model)
        known = inspect.signature(cls).parameters
        called = inspect.signature(cls.forward).parameters
        table = next((name for name in TABLES if name in known), "")
        takes_text = "encoder_hidden_states" in called
        for name, size, able in (("classes", classes, table), ("vector", vector, takes_text)):
            if size and not able:
                raise ValueError(f"diffusers' {model} takes no {name}")
        self.label = "class_labels" in called and (classes > 0 or table == TRANSFORMER_TABLE)
        self.text = vector + 1 if takes_text else 0
        sizes = self._sizes(table)
        for option in options:
            if option not in known:
                raise ValueError(
                    f"diffusers' {model} has no option {option!r}. "
                    f"{nearest(option, set(known) - set(sizes))}"
                )
            if option in sizes:
                raise ValueError(
                    f"{option!r} of diffusers' {model} is set by shape, classes and vector; leave "
                    "it out"
                )
        given = {name: value for name, value in sizes.items() if name in known} | options
        self._try(cls, given, options)
        self.model = cls(**given)
        self.train()
        for part in self.model.modules():
            if hasattr(part, "embedding_table"):  # of labels, which it would drop by itself
                part.dropout_prob = 0.0  # type: ignore[assignment]

    def _sizes(self, table: str) -> dict[str, Any]:
        """The model's options that follow from shape, classes and vector."""
        space = self.shape[1:]
        side = space[0] if len(set(space)) == 1 else list(space)
        sizes: dict[str, Any] = {
            "sample_size": side,
            "in_channels": self.shape[0],
            "out_channels": self.shape[0],
            "cross_attention_dim": self.vectors + 1,
            "time_embedding_type": "positional",
        }
        if table == TRANSFORMER_TABLE:
            # a transformer always has a table, and adds the row of "no label" itself
            sizes[table] = max(self.classes, 1)
        elif table:
            sizes[table] = self.classes + 1 if self.classes else None
        return sizes

    def _try(self, cls: type[nn.Module], given: dict[str, Any], options: dict[str, Any]) -> None:
        """Raise ValueError unless the model keeps the shape of samples; tried without memory."""
        try:
            with torch.device("meta"):
                self.model = cls(**given)
                out = self.eval()(torch.empty(2, *self.shape), torch.empty(2), **self._some())
            if out.shape[1:] != self.shape:
                raise ValueError(f"it returns {tuple(out.shape[1:])}")
        except NotImplementedError:
            pass  # some models can't run without memory
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise ValueError(
                f"diffusers' {cls.__name__} does not work for samples of shape {self.shape} with "
                f"{options}: {error}"
            ) from error

    def _some(self) -> dict[str, Tensor]:
        """Conditions of two samples, to try the model with."""
        some: dict[str, Tensor] = {}
        if self.classes:
            some["y"] = torch.zeros(2, dtype=torch.long)
        if self.vectors:
            some["vector"] = torch.zeros(2, self.vectors)
        return some

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The conditions that it takes, with the shape of one sample's."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.classes:
            shapes["y"] = ()
        if self.vectors:
            shapes["vector"] = (self.vectors,)
        return shapes

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
        vector : Tensor, shape (B, vector), optional

        Returns
        -------
        Tensor, shape (B, *shape)

        Raises
        ------
        ValueError
            If a condition is missing that was never dropped in training.

        Examples
        --------
        See `Diffusers`.
        """
        x = x.to(weights_dtype(self.model, x))
        more = {}
        given = {"y": (y, self.classes), "vector": (vector, self.vectors)}
        require_conditions(
            {name: value for name, (value, size) in given.items() if size}, self.condition_dropout
        )
        if self.label:
            more["class_labels"] = label_indices(x, y, self.classes or 1)
        if self.text:
            if vector is None:
                vector = x.new_full((x.shape[0], self.vectors), math.nan)
            lost = absent(vector).unsqueeze(1) if self.vectors else x.new_zeros(x.shape[0], 1)
            word = torch.cat([vector.to(x.dtype).masked_fill(lost.bool(), 0), lost.to(x.dtype)], 1)
            more["encoder_hidden_states"] = word.unsqueeze(1)
        if self.levels:
            step = _chain_steps(wide(t), self.levels)
        else:
            step = (wide(t) + MOST_LABEL) * (1000 / (2 * MOST_LABEL))
        out: Tensor = self.model(x, step, **more, return_dict=False)[0]
        return out

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
        See `MLP.drop_conditions`.
        """
        return drop_conditions(condition, self.classes or 1, self.condition_dropout, generator)

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
        See `MLP.check_condition`.
        """
        if y is not None:
            check_labels(y, self.classes, type(self.model).__name__)
        if vector is not None:
            check_numbers("vector", vector, (self.vectors,))


def _chain_steps(t: Tensor, levels: int) -> Tensor:
    """Step numbers T·t − 1 of times t, at least 0; exact integers at the levels of the chain."""
    step = levels * t - 1
    whole = step.round()
    rounding = levels * 2 * torch.finfo(t.dtype).eps
    return torch.where((step - whole).abs() < rounding, whole, step).clamp(min=0)


def _find(model: str) -> type[nn.Module]:
    """The class of diffusers of that name; imports diffusers alone."""
    if "diffusers" not in sys.modules and not may_import():
        raise ValueError(
            f"files import nothing, and this one names 'diffusers:{model}': import diffusers first "
            "(scoresde --import diffusers)"
        )
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            f"the backbone 'diffusers:{model}' needs diffusers: pip install diffusers"
        ) from error
    cls: Any = getattr(diffusers, model, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)):
        raise ValueError(f"unknown model {model!r} of diffusers. {nearest(model, TESTED)}")
    first = list(inspect.signature(cls.forward).parameters)[1:3]
    if first[1:] != ["timestep"]:
        raise ValueError(
            f"diffusers' {model} is called with {first}, not with a state and a timestep; try "
            "UNet2DModel"
        )
    return cast("type[nn.Module]", cls)


BACKBONES.family("diffusers", Diffusers)
