"""Maximum likelihood, by which coupling flows learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..model.invertible import CouplingFlow
from .objectives import OBJECTIVES, Condition, Objective


@OBJECTIVES.register("maximum_likelihood")
class MaximumLikelihood(Objective):
    """−log p of standardized samples in nats per dimension: what a `CouplingFlow` learns by.

    Examples
    --------
    >>> flow = scoresde.coupling_flow(shape=(2,), layers=2, width=8)
    >>> scoresde.fit(flow, torch.randn(100, 2), steps=5, progress=False)
    History(steps=5, loss=..., seconds=...)
    """

    trains = CouplingFlow

    def __call__(  # noqa: D102
        self,
        net: Callable[..., Any],
        sde: Any,
        z0: Tensor,
        eps: Tensor,
        q: Tensor,
        condition: Condition,
        progress: float,
        generator: torch.Generator,
    ) -> Tensor:
        if sde.free is not None:
            constant = (sde.scale == 0).nonzero()[:, 0].tolist()
            raise ValueError(
                f"features {constant} are constant, and no flow has a density of them: drop them"
            )
        z, log_det = net(sde.standardization.spread(z0), None, **condition)
        nats = 0.5 * (z.square() + math.log(2 * math.pi)).sum(1) - log_det
        loss: Tensor = nats.mean() / z.shape[1]
        return loss
