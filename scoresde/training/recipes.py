"""Recipes: what works for a data set, as one row of a table each: process, network, budget and all.

A recipe contains only arguments: `build` passes its names to `scoresde.build`, and `fit` its
keywords to `scoresde.fit`. Arguments of the user override those of the recipe. The command
`scoresde fit --recipe mnist FOLDER --out run` is, from Python,

    recipe = scoresde.recipes.RECIPES["mnist"]
    sde = recipe.build()
    recipe.fit(sde, scoresde.files.read(FOLDER).values, checkpoints="run")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

import torch
from torch import nn

from ..backbones.keywords import NetworkOptions
from ..common.names import nearest
from ..model.builder import build
from ..model.require import require_sde
from ..model.schema import Named
from ..model.score_sde import ScoreSDE
from ..processes.base import Process
from .fitting import fit
from .history import History
from .keywords import FitKeywords
from .options import AUTO, EVERY_STEPS, Backend, Checkpoints, Validation, as_validation
from .renamed import OLD, translated

__all__ = ["RECIPES", "Recipe", "recipe"]


@dataclass(frozen=True)
class Recipe:
    """A process, a network with its options, and keywords of `fit`, for data of one shape.

    Attributes
    ----------
    sentence : str
        What it is for.
    shape : tuple of int
        Of a sample.
    process, net : str
        Names of `scoresde.PROCESSES` and `scoresde.BACKBONES`.
    options : mapping
        Of the network.
    how : mapping
        Keywords of `scoresde.fit`: steps, batch_size, lr, transforms, …
    budget : str
        The machine and time that it needs. For GPUs this is a plan, and not measured yet.
    accelerated : bool
        Whether on CUDA the network is compiled, and computes in bfloat16, which needs `pip install
        scoresde[train]`.
    every : int
        Steps between checkpoints, and between validations.

    Examples
    --------
    >>> how = {"steps": 20, "batch_size": 16}
    >>> recipe = Recipe("Points.", (2,), net="mlp", options={"width": 32}, how=how)
    >>> sde = recipe.build()
    >>> recipe.fit(sde, torch.randn(100, 2), steps=5, progress=False)
    History(steps=5, loss=..., seconds=...)
    """

    sentence: str
    shape: tuple[int, ...]
    process: str = "vp"
    net: str = "unet"
    options: Mapping[str, Any] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)
    budget: str = ""
    accelerated: bool = False
    every: int = EVERY_STEPS

    def build(
        self,
        process: str | Process | None = None,
        net: str | nn.Module | None = None,
        **options: Unpack[NetworkOptions],
    ) -> ScoreSDE:
        """Return the recipe's model, untrained.

        Parameters
        ----------
        process, net : str or object, optional
            Instead of the recipe's, as for `scoresde.build`. Another network than the recipe's
            does not get the recipe's options.
        **options
            Of the network, instead of the recipe's.

        Returns
        -------
        ScoreSDE

        Raises
        ------
        TypeError, ValueError
            As `scoresde.build`.

        Examples
        --------
        >>> RECIPES["mnist"].build(net="mlp", width=32).shape
        (1, 28, 28)
        """
        mine = self.options if net is None or net == self.net else {}
        process = self.process if process is None else process
        net = self.net if net is None else net
        return build(process, net, shape=self.shape, **{**mine, **options})

    def check(self, data: Any) -> None:
        """Raise unless data have the recipe's shape, and are integers where it dequantizes.

        Parameters
        ----------
        data : Tensor or array, shape (N, *shape)

        Raises
        ------
        ValueError

        Examples
        --------
        >>> RECIPES["mnist"].check(torch.zeros(5, 3, 32, 32, dtype=torch.uint8))
        Traceback (most recent call last):
        ValueError: this recipe is for samples of shape (1, 28, 28), got (3, 32, 32). Those go ...
        """
        data = data.values if isinstance(data, Named) else data
        shape = tuple(getattr(data, "shape", ()))[1:]
        if shape != self.shape:
            others = ", ".join(name for name, recipe in RECIPES.items() if recipe.shape == shape)
            hint = f"Those go with: {others}." if others else "Without a recipe any shape goes."
            raise ValueError(
                f"this recipe is for samples of shape {self.shape}, got {shape}. {hint}"
            )
        dtype = str(data.dtype).removeprefix("torch.")
        integers = not dtype.startswith(("float", "bfloat", "complex", "bool"))
        if "dequantize" in self.how.get("transforms", ()) and not integers:
            raise ValueError(
                f"this recipe is for integers 0 … 255, which it dequantizes, got {dtype}"
            )

    def fit(self, sde: ScoreSDE, data: Any, **how: Unpack[FitKeywords]) -> History:
        """Train a model as the recipe says.

        Parameters
        ----------
        sde : ScoreSDE
            From `build`, on the device where it is to be trained.
        data : Tensor or array, shape (N, *shape)
            Integers, where the recipe dequantizes: as `scoresde.files.read` has them.
        **how
            Keywords of `scoresde.fit`, instead of the recipe's: steps=, checkpoints=,
            validation=, …

        Returns
        -------
        History

        Raises
        ------
        TypeError, ValueError, TrainingError, CheckpointError
            As `scoresde.fit`, and for data of another shape.

        Examples
        --------
        See `Recipe`.
        """
        self.check(data)
        device = require_sde(sde, "Recipe.fit").scale.device
        return fit(sde, data, **self.keywords(device, **how))

    def keywords(
        self, device: str | torch.device = "cpu", **how: Unpack[FitKeywords]
    ) -> dict[str, Any]:
        """Return the keywords that `fit` gives to `scoresde.fit` on a device.

        Parameters
        ----------
        device : str or torch.device
            "cpu", "cuda:1", … If an Accelerator is made here, this CUDA device becomes the current
            one, because Accelerate takes that.
        **how
            The user's.

        Returns
        -------
        dict of str to object

        Raises
        ------
        ImportError
            On CUDA, where the recipe computes in bfloat16, without Accelerate.
        ValueError
            If the process has an Accelerator of another precision.

        Examples
        --------
        >>> RECIPES["mnist"].keywords(steps=10)["steps"]
        10
        >>> RECIPES["cifar10"].keywords(checkpoints="run")["checkpoints"]
        Checkpoints('run', every=2000)
        """
        device = torch.device(device)
        accelerated = self.accelerated and device.type == "cuda"
        made = self._translated({**self.how, **how}, accelerated)
        checkpoints = made.get("checkpoints")
        if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
            made["checkpoints"] = Checkpoints(checkpoints, every=self.every)
        validation = made.get("validation")
        if not isinstance(validation, Validation | str | None):
            every = made["checkpoints"].every if checkpoints is not None else self.every
            made["validation"] = as_validation(validation, every)
        if accelerated:
            made["backend"] = _fast(made.get("backend"), device)
        return made

    def _translated(self, how: dict[str, Any], accelerated: bool) -> dict[str, Any]:
        """Return keywords in the form of today; the recipe goes before their old defaults."""
        if OLD.keys().isdisjoint(how):
            return how
        if "out" in how or "patience" in how:
            how.setdefault("every", self.every)
        if accelerated and "accelerator" in how:
            how.setdefault("compile", True)
        return translated(how)


def _fast(backend: Any, device: torch.device) -> Backend:
    """Return a user's backend, completed by torch.compile and bfloat16 on a CUDA device."""
    if isinstance(backend, Backend):
        accelerator = backend.accelerator
        compiled = backend.compile
    else:
        accelerator = None if isinstance(backend, str) else backend
        compiled = True
    if accelerator is None:
        accelerator = _bfloat16(device)
    return Backend(accelerator, compiled)


def _bfloat16(device: torch.device) -> Any:
    """Return an Accelerator of bfloat16 on a CUDA device."""
    try:
        from accelerate import Accelerator
    except ImportError:
        raise ImportError("bfloat16 needs Accelerate: pip install 'scoresde[train]'") from None
    if device.index is not None:
        torch.cuda.set_device(device)
    try:
        return Accelerator(mixed_precision="bf16")
    except ValueError:
        raise ValueError(
            "this process has an Accelerator of another precision than the recipe's bfloat16; give "
            "it as backend="
        ) from None


PLAIN = Recipe(
    "Anything: what the command does without a recipe.",
    (),
    net="mlp",
    how={"steps": AUTO, "batch_size": 512, "lr": AUTO, "transforms": ()},
)

GRAY: dict[str, Any] = {
    "channels": 32,
    "patch": 2,
    "multipliers": (1, 2),
    "blocks": 2,
    "attention": (7,),
    "octaves": 7,
}
COLOR: dict[str, Any] = {
    "channels": 128,
    "multipliers": (1, 2, 2, 2),
    "blocks": 2,
    "attention": (16,),
    "dropout": 0.1,
    "octaves": 6,
}

RECIPES: dict[str, Recipe] = {
    "mnist": Recipe(
        "Handwritten digits, 28×28.",
        (1, 28, 28),
        options=GRAY,
        how={"steps": 1800, "batch_size": 128, "lr": 2e-3, "transforms": ("dequantize",)},
        budget="2 CPU cores, 20 minutes",
    ),
    "fashion-mnist": Recipe(
        "Clothes in gray, 28×28; mirrored at random.",
        (1, 28, 28),
        options=GRAY,
        how={"steps": 1800, "batch_size": 128, "lr": 2e-3, "transforms": ("flip", "dequantize")},
        budget="2 CPU cores, 20 minutes",
    ),
    "cifar10": Recipe(
        "Small photographs in ten classes, 32×32; mirrored at random.",
        (3, 32, 32),
        options=COLOR,
        how={
            "steps": 30_000,
            "batch_size": 256,
            "lr": 5e-4,
            "ema": 2000,
            "transforms": ("flip", "dequantize"),
        },
        every=2000,
        budget="one GPU, 30 minutes",
        accelerated=True,
    ),
    "cifar10-5min": Recipe(
        "The same in a sixth of the time.",
        (3, 32, 32),
        options={**COLOR, "channels": 96},
        how={
            "steps": 5000,
            "batch_size": 256,
            "lr": 1e-3,
            "ema": 500,
            "transforms": ("flip", "dequantize"),
        },
        every=2000,
        budget="one GPU, 5 minutes",
        accelerated=True,
    ),
}
"""Recipes by name."""


def recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Parameters
    ----------
    name : str

    Returns
    -------
    Recipe

    Raises
    ------
    ValueError

    Examples
    --------
    >>> recipe("fashion_mnist")
    Traceback (most recent call last):
    ValueError: unknown recipe 'fashion_mnist'. Did you mean 'fashion-mnist'? There are: ...
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}. {nearest(name, RECIPES)}")
    return RECIPES[name]
