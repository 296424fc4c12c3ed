"""The two parts of a `Latent` as one model with one network, for training both together.

Weights, statistics, names and conditions are those of the parts themselves, so that what training
does to the one model is done to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..common.random import FIXED, seeded
from .autoencoder import Encoded, FirstStage
from .latent import Latent, SharedSchema
from .network import NetworkInterface
from .score_sde import ScoreSDE
from .trainable import Trainable

STAGE = "stage"
LATENTS = "latents"
"""The two parts: submodules of the joint network, and folders of a saved `Latent`."""


class JointNet(nn.Module):
    """Two networks, given to a function within one call, which a wrapper sees as a whole."""

    def __init__(self, stage: nn.Module, latents: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        self.latents = latents

    def forward(self, work: Callable[..., Any], /, *inputs: Any, **condition: Tensor) -> Any:
        """Return work(stage, latents, *inputs, **condition)."""
        return work(self.stage, self.latents, *inputs, **condition)


class Joint(Trainable):
    """A `Latent` as a `Trainable`: data are those of the stage, conditions of the score model."""

    verbs = "fit_joint trains it, and the Latent that it was made of has what it has learnt"

    def __init__(self, whole: Latent, stage: FirstStage, latents: ScoreSDE) -> None:
        learnt = latents.learnt
        training = stage.training
        # not as submodules, which would give each weight two names
        object.__setattr__(self, "whole", whole)
        object.__setattr__(self, "stage", stage)
        object.__setattr__(self, "latents", latents)
        super().__init__(JointNet(stage.net, latents.net), shape=stage.shape)
        self.schema = SharedSchema(stage, latents)
        self.conditions = latents.conditions
        self.learnt = learnt
        self.training = training
        if stage.ema is not None and latents.ema is not None:
            self.ema = JointNet(stage.ema, latents.ema)

    whole: Latent
    stage: FirstStage
    latents: ScoreSDE

    def parts(self) -> dict[str, Trainable]:
        """The two parts by name."""
        return {STAGE: self.stage, LATENTS: self.latents}

    # ------------------------------------------------------------------ statistics

    def make_statistics(self, like: Tensor | None) -> None:
        """Take the buffers of both parts, the tensors themselves."""
        for name, part, prefix in self._shared():
            self.register_buffer(prefix + name, getattr(part, name))

    def choose_standardization(self, choice: str | None, coupled: bool) -> None:
        """Keep what the stage measures of the data."""
        self.standardize_by = self.stage.standardize_by

    def _shared(self) -> Iterator[tuple[str, Trainable, str]]:
        """Buffers of the parts: the name, the part, and what precedes the name here."""
        for name in ("mean", "scale", "root"):
            yield name, self.stage, ""
        yield "measured", self.stage, "stage_"
        for name in ("mean", "scale", "root", "measured"):
            yield name, self.latents, "latents_"

    @property
    def measured(self) -> Tensor:  # type: ignore[override]
        """Whether both parts know mean and scale of what they are given."""
        return self.stage.measured & self.latents.measured

    def statistics(self) -> dict[str, Tensor]:
        """Those of both parts."""
        found = {prefix + name: getattr(part, name) for name, part, prefix in self._shared()}
        return {name: value for name, value in found.items() if value is not None}

    def standardize(self, data: Tensor | Iterable[Tensor]) -> Self:
        """Measure the latents of data, if the stage is fitted."""
        if not bool(self.stage.measured):
            raise ValueError(
                "this first stage was never fitted: scoresde.fit_stage(model.stage, data) comes "
                "first (stage.standardize(data) takes it as it is)"
            )
        parts = [data] if isinstance(data, Tensor) else data
        device = self.scale.device
        g = seeded(device, FIXED)

        def latents() -> Iterator[Tensor]:
            for part in parts:
                with torch.no_grad():
                    q: Encoded = self.stage.encode(part)
                yield q.sample(g)

        self.latents.standardize(latents())
        return self

    # ------------------------------------------------------------------ what the parts hold

    @property
    def interface(self) -> NetworkInterface:
        """That of the score model, which takes the conditions."""
        return self.latents.interface

    @property
    def learnt(self) -> dict[str, Any] | None:
        """What training has recorded of conditions."""
        return self.latents.learnt

    @learnt.setter
    def learnt(self, learnt: dict[str, Any] | None) -> None:
        self.latents.learnt = learnt

    @property
    def net_dtype(self) -> torch.dtype:
        """The dtype of the stage's weights."""
        return self.stage.net_dtype

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; an averaged network is that of both parts."""
        super().__setattr__(name, value)
        if name == "ema" and isinstance(value, JointNet):
            self.stage.ema = value.stage
            self.latents.ema = value.latents

    def train(self, mode: bool = True) -> Self:
        """Set the mode of both parts."""
        super().train(mode)
        self.stage.train(mode)
        self.latents.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert both parts, and share their buffers again."""
        self.stage._apply(fn, recurse)
        self.latents._apply(fn, recurse)
        for name, part, prefix in self._shared():
            self._buffers[prefix + name] = getattr(part, name)
        return self
