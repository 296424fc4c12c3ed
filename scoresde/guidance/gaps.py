"""Rows of which some elements are known exactly, other ones in each row: p(x | those elements)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..model.protocol import Model
from ..model.standardization import Standardization
from .evaluation import METHODS, Evaluation
from .guided import below_noise
from .linear_systems import Factored, factored
from .linearized import Linearized, matrix_of_linear
from .tilted import CurvedTwist, Tilted, Twist, first_three

FEW = 16
"""Columns up to which the Jacobian of the network is taken."""


class WithGaps(Tilted):
    """p(x | known elements) of rows with NaN for the others, by the twist "mmps" or "pigdm".

    "mmps" finds the weights of modes with fewer particles; above `FEW` columns "pigdm" takes two
    calls for any number of columns.

    It works on standardized columns, (x − mean)/scale, which are a linear map of states. Where an
    element is missing, its row of the map and of the residual are 0, and that of S is one of I.
    """

    def __init__(self, model: Model, x: Tensor) -> None:
        """A model of whole rows, and rows (n, *shape) in the units of the data."""
        plain = Standardization(model.mean, model.scale, model.shape)
        columns = plain.from_data(x)
        known = ~columns.isnan()
        super().__init__(model, columns=columns.masked_fill(~known, 0), known=known)

    @property
    def cost(self) -> int:  # type: ignore[override]
        """Calls of the network an evaluation, forward and backward."""
        calls = 1 + self.dim if self.dim <= FEW else 2
        return calls * self.model.cost

    @property
    def phi_min(self) -> float:
        """Where solves end: at `Process.phi_floor` at the least."""
        return max(super().phi_min, self.process.phi_floor)

    def map(self, z: Tensor) -> Tensor:
        """The standardized columns (B, n) of states."""
        found: Tensor = z @ self.standardization.directions.to(z).T
        return found

    def log_g(
        self,
        z: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        """log p of the known elements given x0 (B,), at the noise where solves end."""
        noise = math.sin(self.phi_min)
        columns = self.tensor("columns", rows, z).to(z.dtype)
        known = self.tensor("known", rows, z)
        terms = 0.5 * ((columns - self.map(z)) / noise).square()
        terms = terms + math.log(noise) + 0.5 * math.log(2 * math.pi)
        return -torch.where(known, terms, 0).sum(1)

    def twist(self, *, raw: bool = False) -> Twist:
        """Velocity of the part, log ψ and ∇_z log ψ."""
        return first_three(self._twist(raw, curved=False))

    def curved_twist(self) -> CurvedTwist:
        """As `twist`, and what is known of −∇²log ψ."""
        return self._twist(False, curved=True)

    def _twist(self, raw: bool, curved: bool) -> CurvedTwist:
        """`twist` and, if wanted, its curvature."""
        plain = self.model.velocity_fn(raw=raw)
        like = self.scale.new_empty(1, self.dim, dtype=self.state_dtype)
        whole = matrix_of_linear(self.map, like)
        least = self.phi_min
        row = METHODS["mmps" if self.dim <= FEW else "pigdm"]

        def twist(
            z: Tensor,
            phi: Tensor | float,
            rows: Tensor | None = None,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            angle: Any = below_noise(phi)
            angle = angle.clamp_min(least) if isinstance(angle, Tensor) else max(angle, least)
            columns = self.tensor("columns", rows, z).to(z)
            known = self.tensor("known", rows, z).to(z)

            def matrix(at: Linearized, like: Tensor) -> Tensor:
                return known.unsqueeze(2) * whole.to(like)

            graph = torch.is_grad_enabled() and z.requires_grad
            at = Rows(
                lambda x0: known * self.map(x0),
                0.0,
                row,
                columns.expand_as(z),
                angle,
                graph,
                matrix,
            )
            at.missing = 1 - known
            at.curved = curved
            return *at(lambda z: plain(z, angle, rows), z), at.curvature

        return twist


class Rows(Evaluation):
    """An evaluation whose S has ones on its diagonal for what is missing."""

    missing: Tensor

    def _factored(self, CH: Tensor, H: Tensor, dtype: torch.dtype) -> Factored:
        """S of what is known, and of ones."""
        ones = torch.diag_embed(self.missing.expand(len(CH), -1))
        square = self.sin * self.sin
        if isinstance(square, Tensor):
            square = square.unsqueeze(2)
        return factored(CH @ H.mT + ones, 0.0, square * (H @ H.mT) + ones, dtype)
