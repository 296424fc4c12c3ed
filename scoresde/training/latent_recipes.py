"""Recipes of latent score models: a first stage, and a score model of its latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from ..backbones.keywords import NetworkOptions, StageOptions
from ..model.autoencoder import first_stage
from ..model.builder import build
from ..model.latent import Latent
from ..processes.base import Process
from ..storage.models import LATENTS, STAGE
from .fitting import fit
from .history import History
from .keywords import FitKeywords
from .options import Averaging, Checkpoints
from .recipes import RECIPES, Recipe
from .stages import fit_stage

SHARED = ("backend", "generator", "progress", "seed", "transforms", "validation")
"""Keywords of `fit` that both trainings get."""


class StageRecipeOptions(StageOptions, total=False):
    """Options of a first stage, and keywords of its training."""

    steps: int
    batch_size: int
    lr: float
    ema: float | Averaging
    kl: float
    free_bits: float


@dataclass(frozen=True)
class LatentRecipe(Recipe):
    """A recipe of a `Latent`: the fields of `Recipe` describe the score model of its latents.

    Attributes
    ----------
    stage : str
        A name of `scoresde.FIRST_STAGES`.
    stage_options : mapping
        Of the first stage: latent, channels, …
    stage_how : mapping
        Keywords of `scoresde.fit_stage`: steps, batch_size, lr, kl, …

    Examples
    --------
    >>> stage = {"latent": (2,), "width": 16}
    >>> recipe = LatentRecipe(
    ...     "Points.", (6,), net="mlp", options={"width": 16}, how={"steps": 5},
    ...     stage_options=stage, stage_how={"steps": 5},
    ... )
    >>> model = recipe.build()
    >>> recipe.fit(model, torch.randn(100, 6), progress=False)
    History(steps=5, loss=..., seconds=...)
    >>> scoresde.sample(model, 3).shape
    torch.Size([3, 6])
    """

    stage: str = "vae"
    stage_options: Mapping[str, Any] = field(default_factory=dict)
    stage_how: Mapping[str, Any] = field(default_factory=dict)

    def build(  # type: ignore[override]
        self,
        process: str | Process | None = None,
        net: str | nn.Module | None = None,
        **options: Unpack[NetworkOptions],
    ) -> Latent:
        """Return the recipe's first stage and score model, untrained.

        Parameters
        ----------
        process, net, **options
            Of the score model, as for `Recipe.build`.

        Returns
        -------
        Latent

        Raises
        ------
        TypeError, ValueError
            As `scoresde.first_stage` and `scoresde.build`.

        Examples
        --------
        See `LatentRecipe`.
        """
        stage = first_stage(self.stage, shape=self.shape, **self.stage_options)
        mine = self.options if net is None or net == self.net else {}
        process = self.process if process is None else process
        net = self.net if net is None else net
        return Latent(stage, build(process, net, shape=stage.latent, **{**mine, **options}))

    def fit(  # type: ignore[override]
        self, model: Latent, data: Any, **how: Unpack[FitKeywords]
    ) -> History:
        """Train the first stage, then the score model of its latents.

        Parameters
        ----------
        model : Latent
            From `build`, on the device where it is to be trained.
        data : Tensor or array, shape (N, *shape)
            Integers, where the recipe dequantizes: as `scoresde.files.read` has them.
        **how
            Keywords of `scoresde.fit` for the score model, in place of the recipe's. The first
            stage gets backend, generator, seed, progress, transforms and validation too. The two
            runs have the folders "stage" and "latents" in that of checkpoints=, and with
            resume=True the one that was interrupted continues.

        Returns
        -------
        History
            Of the score model.

        Raises
        ------
        TypeError, ValueError, TrainingError, CheckpointError
            As `scoresde.fit`, and for data of another shape.

        Examples
        --------
        See `LatentRecipe`.
        """
        if not isinstance(model, Latent):
            raise TypeError(
                f"this recipe fits the Latent of its build(), got {type(model).__name__}"
            )
        self.check(data)
        keywords = self.keywords(model.stage.scale.device, **how)
        shared = {name: keywords[name] for name in SHARED if name in keywords}
        kept = keywords.get("checkpoints")
        parts: dict[str, Any] = {STAGE: None, LATENTS: None}
        if kept is not None:
            parts = {name: _inside(kept, name) for name in parts}
        fit_stage(model.stage, data, **{**shared, **self.stage_how}, checkpoints=parts[STAGE])
        return fit(model, data, **{**keywords, "checkpoints": parts[LATENTS]})

    def with_stage(self, **options: Unpack[StageRecipeOptions]) -> LatentRecipe:
        """Return this recipe with another first stage.

        Parameters
        ----------
        **options
            Of the network, and keywords of `scoresde.fit_stage` such as steps and kl.

        Returns
        -------
        LatentRecipe

        Examples
        --------
        >>> from scoresde.recipes import RECIPES
        >>> recipe = RECIPES["fashion-mnist-latent"].with_stage(steps=10, channels=8)
        >>> recipe.stage_how["steps"], recipe.stage_options["channels"]
        (10, 8)
        """
        how = {name: value for name, value in options.items() if name in STAGE_HOW}
        net = {name: value for name, value in options.items() if name not in STAGE_HOW}
        return dataclasses.replace(
            self,
            stage_how={**self.stage_how, **how},
            stage_options={**self.stage_options, **net},
        )


STAGE_HOW = ("steps", "batch_size", "lr", "ema", "kl", "free_bits")
"""Options of `with_stage` that are keywords of `fit_stage`."""


def _inside(kept: Checkpoints, name: str) -> Checkpoints:
    """The same checkpoints in a folder inside theirs."""
    return dataclasses.replace(kept, folder=Path(kept.folder) / name)


RECIPES["fashion-mnist-latent"] = LatentRecipe(
    "Clothes in gray, 28×28, by a variational autoencoder and a score model of its latents.",
    (1, 28, 28),
    net="resmlp",
    options={"width": 512, "depth": 4, "fourier": 0},
    how={
        "steps": 8000,
        "batch_size": 256,
        "lr": 1e-3,
        "ema": 300,
        "transforms": ("flip", "dequantize"),
    },
    stage_options={
        "latent": (4, 7, 7),
        "levels": 256,
        "components": 3,
        "channels": 96,
        "patch": 4,
    },
    stage_how={"steps": 5000, "batch_size": 128, "lr": 2e-3, "ema": 150, "kl": 0.5},
    budget="2 CPU cores, 20 minutes",
)
