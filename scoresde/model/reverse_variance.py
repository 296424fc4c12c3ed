"""The variance of reverse steps that a network has learnt beside the denoised value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.capabilities import Capability
from ..processes.base import as_time


class ReverseVariance:
    """What a score model with a second output has more than others."""

    @property
    def capabilities(self: Any) -> frozenset[str]:
        """What it can compute: a score, a velocity, a variance of reverse steps, …"""
        found: frozenset[str] = super().capabilities  # type: ignore[misc]
        if Capability.SCORE in found and self.interface.has_variance:
            return found | {Capability.VARIANCE}
        return found

    @property
    def _usual_objective(self: Any) -> str:
        """What `fit` trains it for if the user names nothing."""
        usual: str = self.process.objective
        if usual == "denoising" and self.interface.has_variance:
            return "hybrid"
        return usual

    def variance_fn(self: Any, *, raw: bool = False) -> Callable[..., Tensor]:
        """Return velocity and variance of reverse steps as a function, of one network evaluation.

        With the share w and h = sin²φ/sin²s − 1, a step to an angle s < φ has the variance
        β̃·(1 + h·w): see `scoresde.backbones.learnedvariance`.

        Parameters
        ----------
        raw : bool
            As for `network_fn`.

        Returns
        -------
        callable (z, φ, rows) -> Tensor (B, 2n)
            dz/dφ per radian, then w in [0, 1], both of shape (B, n).

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,), variance="learned")
        >>> sde.variance_fn()(torch.ones(1, 2), 0.5)
        tensor([[-0.0000, -0.0000,  0.5000,  0.5000]], grad_fn=...)
        """
        self.require(Capability.VARIANCE)
        outputs: Callable[..., Tensor] = self._both_outputs(raw)
        edm = self.predict == "edm"

        def velocity_and_share(
            z: Tensor, phi: Tensor | float, rows: Tensor | None = None
        ) -> Tensor:
            out, logit = outputs(z, phi, rows)
            if edm:
                velocity = -out
            else:
                c = self.coefficients(as_time(phi)).to(z)
                velocity = (out - (c.a * c.cos + c.b * c.sin) * z) / c.det
            return torch.cat([velocity, logit.sigmoid()], 1)

        return velocity_and_share

    def _both_outputs(self: Any, raw: bool) -> Callable[..., Tensor]:
        """The network's two outputs, stacked."""
        both: Callable[..., Tensor] = self._network_under({}, raw=raw, with_variance=True)
        return both
