"""Networks of diffusers as backbones: "diffusers:UNet2DModel" and the like, any model called as model(x, timestep).

Its sizes follow from the shape of a sample: sample_size, in_channels and out_channels. What it sees of the noise is a step
number, made from our label t ≈ log(σ/α), which lies in [−6.2, 6.2]:

    step = 1000·(t + 6.2)/12.4

So they are for a ScoreSDE that sees the "arc", as all do unless told otherwise: one that sees "raw" hands over a time in [0, 1],
which would become step 500 … 581. Such an embedding is made for step numbers 0 … 999. ("fourier" embeddings are not offered:
with one, UNet2DModel divides its output by the noise level.)

With `classes`, labels y go to the model's own table, which gets one row more: "no label". A model that attends to a text
(UNet2DConditionModel) is given a condition `vector` in its place, as a text of one word, with one number more, which says
that there is none. The step number is a float32 in models of half precision as well.

diffusers' outputs do not start at zero, and no closed form of a trace is known.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..checks import number, whole
from ..inputs import event_shape
from ..registry import may_import, nearest
from .base import BACKBONES, weights_dtype, wide
from .labels import absent, check_labels, check_numbers, hide, need, show_labels

LABEL = 6.2  # |t| of a model that sees the arc
SHOWN = ("UNet2DModel", "UNet1DModel", "UNet2DConditionModel", "DiTTransformer2DModel")  # the tried ones
TABLES = ("num_class_embeds", "num_embeds_ada_norm")  # how models call the size of their table of labels


class Diffusers(nn.Module):
    """A model of diffusers, as "diffusers:NAME": built for a sample's shape, told the noise as it expects it.

    Not for a ScoreSDE with sees="raw", whose times it could hardly tell apart. A model file that names one is loaded only after
    `import diffusers`: files import nothing.

    Parameters
    ----------
    model : str
        Name of a class of diffusers that is called as model(x, timestep): UNet2DModel, UNet1DModel, UNet2DConditionModel,
        DiTTransformer2DModel, …
    shape : tuple of int
        Shape of one sample.
    classes : int
        Number of labels `y`; 0 for none.
    vector : int
        Length of a condition `vector`, for models that attend to one; 0 for none.
    condition_dropout : float
        Probability that a training sample is shown without its conditions; with 0, a label that is left out is an error.
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
    von Platen et al., Diffusers: state-of-the-art diffusion models, github.com/huggingface/diffusers.

    Examples
    --------
    >>> sde = scoresde.build("vp", "diffusers:UNet2DModel", shape=(1, 8, 8), block_out_channels=[8, 8], norm_num_groups=4,
    ...     down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2, layers_per_block=1)
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
        **options: Any,
    ) -> None:
        super().__init__()
        for name, value in (("classes", classes), ("vector", vector)):
            whole(name, value, 0)
        number("condition_dropout", condition_dropout, 0, 1, closed=True, hint="try 0.1")
        shape = event_shape(shape)
        if len(shape) < 2:
            raise ValueError(f"models of diffusers are for channels and space, (C, *space); got shape {shape}")
        cls = _find(model)
        known, called = inspect.signature(cls).parameters, inspect.signature(cls.forward).parameters
        table = next((name for name in TABLES if name in known), None)
        text = "encoder_hidden_states" in called
        for name, size, able in (("classes", classes, table), ("vector", vector, text)):
            if size and not able:
                raise ValueError(f"diffusers' {model} takes no {name}")
        side: int | list[int] = shape[1] if len(set(shape[1:])) == 1 else list(shape[1:])
        sizes: dict[str, Any] = {"sample_size": side, "in_channels": shape[0], "out_channels": shape[0]}
        sizes |= {"cross_attention_dim": vector + 1, "time_embedding_type": "positional"}
        if table:
            # A transformer's table has the row of no label by itself, and has one always.
            sizes[table] = max(classes, 1) if table == "num_embeds_ada_norm" else classes + 1 if classes else None
        for option in options:
            if option not in known:
                raise ValueError(f"diffusers' {model} has no option {option!r}. {nearest(option, set(known) - set(sizes))}")
            if option in sizes:
                raise ValueError(f"{option!r} of diffusers' {model} is set by shape, classes and vector; leave it out")
        given = {name: value for name, value in sizes.items() if name in known} | options
        self.shape, self.classes, self.vectors, self.condition_dropout = shape, classes, vector, condition_dropout
        self.label = "class_labels" in called and (classes > 0 or table == "num_embeds_ada_norm")
        self.text = sizes["cross_attention_dim"] if text else 0
        try:
            with torch.device("meta"):
                self.model = cls(**given)
                out = self.eval()(torch.empty(2, *shape), torch.empty(2), **self._some())
            if out.shape[1:] != self.shape:
                raise ValueError(f"it returns {tuple(out.shape[1:])}")
        except NotImplementedError:
            pass  # it can't be tried without numbers
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"diffusers' {model} does not work for samples of shape {self.shape} with {options}: {error}"
            ) from error
        self.model = cls(**given)
        self.train()
        for part in self.model.modules():
            if hasattr(part, "embedding_table"):  # of labels, which it would leave out by itself
                part.dropout_prob = 0.0  # type: ignore[assignment]

    def _some(self) -> dict[str, Tensor]:
        """Conditions of two samples, to try the model with."""
        some = {"y": torch.zeros(2, dtype=torch.long)} if self.classes else {}
        return some | ({"vector": torch.zeros(2, self.vectors)} if self.vectors else {})

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The conditions that it takes, with the shape of one sample's."""
        return ({"y": ()} if self.classes else {}) | ({"vector": (self.vectors,)} if self.vectors else {})

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, vector: Tensor | None = None) -> Tensor:
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
            If a condition is missing that it always had in training.

        Examples
        --------
        See `Diffusers`.
        """
        x = x.to(weights_dtype(self.model, x))
        more = {}
        given = {"y": (y, self.classes), "vector": (vector, self.vectors)}
        need({name: value for name, (value, size) in given.items() if size}, self.condition_dropout)
        if self.label:
            more["class_labels"] = show_labels(x, y, self.classes or 1)
        if self.text:
            if vector is None:
                vector = x.new_full((len(x), self.vectors), math.nan)
            lost = absent(vector).unsqueeze(1) if self.vectors else x.new_zeros(len(x), 1)
            word = torch.cat([vector.to(x.dtype).masked_fill(lost.bool(), 0), lost.to(x.dtype)], 1)
            more["encoder_hidden_states"] = word.unsqueeze(1)
        step = (wide(t) + LABEL) * (1000 / (2 * LABEL))
        out: Tensor = self.model(x, step, **more, return_dict=False)[0]
        return out

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
        See `MLP.hide`.
        """
        return hide(condition, self.classes or 1, self.condition_dropout, generator)

    def check_condition(self, y: Tensor | None = None, vector: Tensor | None = None) -> None:
        """Raise unless conditions are what this network takes; called once before a solve or a loss, not at every evaluation.

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


def _find(model: str) -> type[nn.Module]:
    """The class of that name; imports diffusers, and nothing that is not its own."""
    if "diffusers" not in sys.modules and not may_import():
        raise ValueError(
            f"files import nothing, and this one names 'diffusers:{model}': import diffusers first (scoresde --import diffusers)"
        )
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"the backbone 'diffusers:{model}' needs diffusers: pip install diffusers") from error
    cls: Any = getattr(diffusers, model, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)):
        raise ValueError(f"unknown model {model!r} of diffusers. {nearest(model, SHOWN)}")
    first = list(inspect.signature(cls.forward).parameters)[1:3]
    if first[1:] != ["timestep"]:
        raise ValueError(f"diffusers' {model} is called with {first}, not with a state and a timestep; try UNet2DModel")
    return cast("type[nn.Module]", cls)


BACKBONES.family("diffusers", Diffusers)
