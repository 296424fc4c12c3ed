"""Draws and densities of a posterior in flat rows, each with the index of its observation."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Size, Tensor

from ..common.checks import brief_repr
from ..common.inputs import as_reals
from ..density.exact import log_prob
from ..model.frames import is_frame, is_row
from ..model.schema import Schema
from ..model.score_sde import ScoreSDE
from ..sampling.trajectory import sample
from .coordinates import Coordinates
from .observations import observations, warn_of_extrapolation
from .prior import Prior
from .rejection import accepted, remembered_share


class FlatRows:
    """What `Posterior` is made of: a model under a condition, coordinates, and a prior."""

    sde: ScoreSDE
    condition: str
    coordinates: Coordinates | None
    leaks: bool
    _prior: Prior
    _shares: dict[bytes, float]
    _names: Schema | None = None
    surrogate_pairs: int = 0

    def __repr__(self) -> str:
        """The prior and how its support is kept, and the rows of the model: at most six lines."""
        how = "draws outside it are rejected" if self.leaks else "no draw leaves it"
        if self.surrogate_pairs:
            how += f"; {self.surrogate_pairs:,} surrogate pairs"
        prior = f"  {'prior':<12}{brief_repr(self._prior.law)}, {how}"
        title, *rows = repr(self.sde).splitlines()
        return "\n".join([f"Posterior of {title}", prior, *rows][:6])

    def _under(self, rows: Tensor, index: Tensor) -> tuple[Any, Tensor]:
        """The model under chosen observations, and these; one for all stays one row."""
        chosen = rows if len(rows) == 1 else rows[index.to(rows.device)]
        told = chosen if self.coordinates is None else self.coordinates.told(chosen)
        return self.sde.given(**{self.condition: told}), chosen

    @property
    def _schema(self) -> Schema:
        """The names of theta's columns and of x's, if data frames brought any."""
        return self.sde.schema if self._names is None else self._names

    def _parameters(self, theta: Any) -> Tensor:
        """Parameters (…, D), a data frame's or a Series' matched by name."""
        return as_reals(self._matched(theta, None)[0], "theta")

    def _matched(self, theta: Any, x: Any) -> tuple[Any, Any]:
        """Parameters and observations of data frames or Series, in the known order of columns."""
        if is_frame(x) or is_row(x):
            x = self._schema.condition(self.condition, x)
        return self._schema.one_or_more(theta), x

    def _observations(self, x: Any) -> tuple[Tensor, Size]:
        """Observations as rows (B, *shape) and their batch shape."""
        shape = None
        if self.coordinates is not None and self.coordinates.varies:
            shape = (self.coordinates.observed,)
        _, x = self._matched(None, x)
        rows, batch = observations(self.sde, self.condition, x, shape)
        if self.coordinates is not None:
            warn_of_extrapolation(rows.flatten(1), *self.coordinates.usual)
        return rows, batch

    def _sampled(
        self,
        rows: Tensor,
        index: Tensor,
        generator: torch.Generator | None,
        how: dict[str, Any],
    ) -> Tensor:
        """Draws (N, D) inside the support, one for each index of an observation."""
        draw = partial(accepted, self) if self.leaks else self._draw
        return draw(rows, index, generator, how)

    def _draw(
        self,
        rows: Tensor,
        index: Tensor,
        generator: torch.Generator | None,
        how: dict[str, Any],
    ) -> Tensor:
        """The model's draws, (N, D), one for each index of an observation."""
        model, chosen = self._under(rows, index)
        w: Tensor = sample(model, len(index), generator=generator, **how)
        if self.coordinates is None:
            return w
        return self.coordinates.inverse(w, chosen.flatten(1))

    def _density(self, theta: Tensor, rows: Tensor, index: Tensor, how: dict[str, Any]) -> Tensor:
        """The model's log p of theta (N, D) inside the support."""
        model, chosen = self._under(rows, index)
        if self.coordinates is None:
            return log_prob(model, theta.to(self.sde.state_dtype), **how)
        w, log_det = self.coordinates.forward(theta, chosen.flatten(1))
        log_p = log_prob(model, w.to(self.sde.state_dtype), **how)
        return (log_p + log_det).to(log_p.dtype)

    def _flat_log_prob(
        self,
        theta: Tensor,
        rows: Tensor,
        index: Tensor,
        normalized: bool,
        how: dict[str, Any],
    ) -> Tensor:
        """log p of theta (N, D), −∞ outside."""
        inside = self._prior.contains(theta) & theta.isfinite().all(1)
        if self.coordinates is not None:
            inside = inside & self.coordinates.support.contains(theta)
        value = torch.full(theta.shape[:1], -math.inf, device=theta.device)
        value = value.to(self.sde.state_dtype)
        if not bool(inside.any()):
            return value
        chosen = index[inside.to(index.device)]
        log_p = self._density(theta[inside], rows, chosen, how)
        if normalized and self.leaks:
            shares = torch.ones(len(rows), dtype=torch.float64)
            for i in sorted(set(chosen.tolist())):
                shares[i] = remembered_share(self, rows[i : i + 1])
            log_p = log_p - shares.log()[chosen].to(log_p)
        value = value.to(log_p.dtype)
        value[inside] = log_p
        return value
