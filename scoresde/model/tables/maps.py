"""Changes of variables of all numeric columns at once, and their Jacobians.

A column without bounds keeps its numbers, less a constant if they lie far from 0. With box (a, b):

    a, none:  z = log(x − a),                   log dz/dx = −z
    none, b:  z = −log(b − x),                  log dz/dx = z
    a and b:  z = log((x − a)/(b − x)),         log dz/dx = ζ(z) + ζ(−z) − log(b − a)

with ζ(z) = log(1 + e^z). All work on tensors (N, D).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .columns import Numeric


class Maps:
    """The changes of variables of the numeric columns of a table."""

    def __init__(self, columns: Sequence[Numeric]) -> None:
        boxes = torch.tensor([column.box for column in columns], dtype=torch.float64, device="cpu")
        boxes = boxes.reshape(-1, 2)
        self.low = boxes[:, 0]
        self.high = boxes[:, 1]
        below = self.low.isfinite()
        above = self.high.isfinite()
        self.lower = (below & ~above).nonzero()[:, 0]
        self.upper = (above & ~below).nonzero()[:, 0]
        self.both = (below & above).nonzero()[:, 0]
        steps = [column.step or 0.0 for column in columns]
        self.steps = torch.tensor(steps, dtype=torch.float64, device="cpu")
        self.shift = torch.tensor(
            [column.shift for column in columns], dtype=torch.float64, device="cpu"
        )
        self.bounded = bool((below | above).any())
        self.shifted = bool(self.shift.any())

    def noisy(self, values: Tensor, u: Tensor) -> Tensor:
        """v + u·step: points inside the bins of values (N, D); u is uniform on (0, 1)."""
        # Rounding must not lead into another bin.
        inside = 1e-6 + (1 - 2e-6) * u
        steps = self.steps.to(values)
        below = torch.nextafter(values + steps, torch.full_like(values, -torch.inf))
        return torch.where(steps > 0, torch.minimum(values + inside * steps, below), values)

    def forward(self, x: Tensor) -> Tensor:
        """Encoded rows of points x, both (N, D)."""
        z = x - self.shift.to(x) if self.shifted else x
        if not self.bounded:
            return z
        z = z.clone()
        low = self.low.to(x)
        high = self.high.to(x)
        for at, below, above in ((self.lower, 1, 0), (self.upper, 0, 1), (self.both, 1, 1)):
            if len(at):
                at = at.to(x.device)
                part = x[:, at]
                rise = (part - low[at]).log() if below else 0.0
                fall = (high[at] - part).log() if above else 0.0
                z[:, at] = rise - fall
        return z

    def inverse(self, z: Tensor) -> Tensor:
        """Points of encoded rows, both (N, D)."""
        x = z + self.shift.to(z) if self.shifted else z
        if not self.bounded:
            return x
        x = x.clone()
        low = self.low.to(z)
        high = self.high.to(z)
        lower, upper, both = (at.to(z.device) for at in (self.lower, self.upper, self.both))
        x[:, lower] = low[lower] + z[:, lower].exp()
        x[:, upper] = high[upper] - (-z[:, upper]).exp()
        x[:, both] = low[both] + (high[both] - low[both]) * z[:, both].sigmoid()
        return x

    def log_slopes(self, z: Tensor) -> Tensor:
        """log dz/dx at encoded rows z, both (N, D)."""
        slopes = torch.zeros_like(z)
        if not self.bounded:
            return slopes
        lower, upper, both = (at.to(z.device) for at in (self.lower, self.upper, self.both))
        width = (self.high - self.low).to(z)
        slopes[:, lower] = -z[:, lower]
        slopes[:, upper] = z[:, upper]
        part = z[:, both]
        slopes[:, both] = softplus(part) + softplus(-part) - width[both].log()
        return slopes
