"""Simulated pairs, and how a network learns from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.random import draw_seed
from ..model.builder import build
from ..model.score_sde import ScoreSDE
from ..model.standardization import Moments
from ..training.fitting import fit
from ..training.history import History
from ..training.options import Validation, as_checkpoints
from .coordinates import Coordinates

FEWEST = 16
"""Pairs that can be trained on."""
FEWEST_HELD_OUT = 10
"""Held-out pairs, unless that is more than a fifth: fewer judge by chance."""
MEMBERS = 2
"""Networks whose mean is the default one."""


@dataclass(frozen=True)
class Pairs:
    """theta (N, D) and x (N, *shape), and the rows that are trained on and held out."""

    theta: Tensor
    x: Tensor
    kept: Tensor
    held: Tensor

    @classmethod
    def divided(cls, theta: Tensor, x: Tensor, share: float, chance: torch.Generator) -> Pairs:
        """Hold out a share of the pairs, at random."""
        order = torch.randperm(len(theta), generator=chance)
        count = held_out(share, len(theta))
        return cls(theta, x, order[count:], order[:count])

    def measured(self, low: Tensor, high: Tensor, varies: bool = True) -> Coordinates:
        """Coordinates of theta, from the pairs that are trained on."""
        theta, x = self.theta[self.kept], self.x[self.kept].flatten(1)
        return Coordinates.measured(low, high, theta, x, varies)


@dataclass(frozen=True)
class Training:
    """Arguments of `fit`, for every network that is trained on some pairs."""

    steps: int | str
    lr: float | str
    ema: float
    patience: int
    how: Mapping[str, Any]
    chosen: bool
    """Whether held-out pairs have chosen what is a normal score in x: `fit` makes none then."""

    def fit(
        self,
        model: ScoreSDE,
        condition: str,
        w: Tensor,
        told: Tensor,
        pairs: Pairs,
        chance: torch.Generator,
        more: tuple[Tensor, Tensor] | None = None,
    ) -> History:
        """Train on w (N, D) and what is told of x (N, ·); `more` holds further rows of both."""
        w = w.to(model.state_dtype)
        validation = None
        if len(pairs.held):
            held = {condition: told[pairs.held]}
            validation = Validation(w[pairs.held], held, every="auto", patience=self.patience)
        w = w[pairs.kept]
        told = told[pairs.kept]
        if more is not None:
            w = torch.cat([w, more[0].to(w)])
            told = torch.cat([told, more[1].to(told)])
        if self.chosen:
            moments = Moments(1)
            moments.add(told)
            model.conditions.settle(condition, *moments.statistics()[:3])
        return fit(
            model,
            w,
            given={condition: told},
            validation=validation,
            steps=self.steps,
            lr=self.lr,
            ema=self.ema,
            generator=chance,
            **self.how,
        )

    def within(self, name: str) -> Training:
        """A copy that writes checkpoints to a subfolder, and logs nothing."""
        how = {key: value for key, value in self.how.items() if key != "log"}
        checkpoints = as_checkpoints(how.get("checkpoints"))
        if checkpoints is not None:
            folder = Path(checkpoints.folder) / name
            how["checkpoints"] = dataclasses.replace(checkpoints, folder=folder)
        return dataclasses.replace(self, how=how)

    def longer(self, steps: int, checks: int) -> Training:
        """A copy with `steps` and `patience` multiplied; steps="auto" stays."""
        most = steps * self.steps if isinstance(self.steps, int) else self.steps
        return dataclasses.replace(self, steps=most, patience=checks * self.patience)


def held_out(share: float, n: int) -> int:
    """How many of n pairs are held out."""
    least = min(FEWEST_HELD_OUT, n // 5) if share else 0
    return min(max(round(share * n), least), n - FEWEST // 2)


def default_model(dim: int, size: int, chance: torch.Generator) -> ScoreSDE:
    """The model that is trained if none is given, of dim numbers, told a vector of this size."""
    with torch.random.fork_rng([]):
        torch.manual_seed(draw_seed(chance))
        return build(
            "rectified",
            "encoded_resmlp",
            shape=(dim,),
            vector=size,
            members=MEMBERS,
            fourier=16,
            dropout=0.1,
            condition_dropout=0.0,
        )
