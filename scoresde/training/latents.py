"""Data as a first stage encodes them: what `fit` trains the score model of a `Latent` on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..common.checks import check_budget
from ..data.files import Samples
from ..data.pairs import Pairs
from ..data.stream import TrainingStream
from ..data.transforms import Transform
from ..model.eval_mode import evaluating
from ..model.latent import Latent
from .plan import Plan

ENCODED_ROWS = 256
"""Samples that the encoder is given at once."""


@dataclass(frozen=True)
class FromPosterior(Transform):
    """A fresh latent mean + scale·ε of each row, (mean, scale) of shape (2, *latent)."""

    takes: tuple[int, ...]
    moves = False

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return latents (B, *latent) of rows (B, 2, *latent)."""
        mean, scale = x.unbind(1)
        noise = torch.randn(mean.shape, generator=generator, device=x.device, dtype=x.dtype)
        return mean + scale * noise

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Refuse: latents are drawn, not transformed."""
        raise TypeError("latents are drawn from q(z|x), which has no Jacobian")


def with_latents(model: Latent, data: Any, given: Any, plan: Plan) -> tuple[Tensor, Any, Plan]:
    """Data, conditions and plan for the score model of a `Latent`, in place of those for x."""
    if not bool(model.stage.measured):
        raise ValueError(
            "this first stage was never fitted: scoresde.fit_stage(model.stage, data) comes first "
            "(stage.standardize(data) takes it as it is)"
        )
    rows, given = encoded(model, data, given, plan.transforms)
    held = plan.validation
    if held is not None:
        x, theirs = encoded(model, held.x, held.given, plan.transforms)
        held = dataclasses.replace(held, x=x, given=theirs)
    drawn: tuple[Transform, ...] = ()
    if rows.shape[1:] != model.stage.latent:
        drawn = (FromPosterior(tuple(rows.shape[1:])),)
    return rows, given, dataclasses.replace(plan, transforms=drawn, validation=held)


def encoded(model: Latent, data: Any, given: Any, transforms: Any) -> tuple[Tensor, Any]:
    """q(z|x) of all data as rows (n, 2, *latent), or (n, *latent), and their conditions."""
    if isinstance(data, Pairs):
        raise TypeError("a Latent is fitted to data x, not to pairs: reflow its score model")
    if isinstance(data, Samples):
        given = {**data.given, **(given or {})}
    stage = model.stage
    data = stage.schema.take(data)[0] if not isinstance(data, Samples) else data.values
    stream = TrainingStream(data, _entrance(model), ENCODED_ROWS, seed=0, transforms=transforms)
    parts: list[Tensor] = []
    conditions: dict[str, list[Tensor]] = {}
    with torch.no_grad(), evaluating(model):
        for x, condition in stream.reader.whole():
            for some in torch.split(x, ENCODED_ROWS):
                parts.append(_rows(stage, some))
            for name, value in condition.items():
                conditions.setdefault(name, []).append(value)
    own = stream.reader.given or {name: torch.cat(each) for name, each in conditions.items()}
    return torch.cat(parts), _joined(given, own)


def _rows(stage: Any, x: Tensor) -> Tensor:
    """q(z|x) of a few samples."""
    mean, scale = stage.encode(x)
    nbytes = 2.0 * mean.numel() * mean.element_size()
    check_budget("the latents of a part of the data", nbytes, device=mean.device)
    if not bool(mean.isfinite().all()):
        raise ValueError("the encoder's latents are not finite; fit the first stage anew")
    return mean if scale is None else torch.stack([mean, scale], 1)


def _entrance(model: Latent) -> Any:
    """What reads data of the first stage's shape with conditions of the score model."""
    sde: Any = model.model
    stage = model.stage
    return SimpleNamespace(
        shape=stage.shape,
        dim=stage.dim,
        scale=stage.scale,
        state_dtype=stage.state_dtype,
        net=sde.net,
        interface=sde.interface,
        schema=sde.schema.copy(),
        learnt=sde.learnt,
    )


def _joined(given: Any, own: Mapping[str, Any]) -> Any:
    """Conditions of the user and of the data; the user's may be words, and stay as they are."""
    if given is not None and not isinstance(given, Mapping):
        return given
    found = {**own, **(given or {})}
    return found or None
