"""Changes of variables of all numeric columns at once, and their Jacobians.

A column without bounds keeps its numbers, less a constant if they lie far from 0. With box (a, b):

    a, none:  z = log(x − a),                   log dz/dx = −z
    none, b:  z = −log(b − x),                  log dz/dx = z
    a and b:  z = log((x − a)/(b − x)),         log dz/dx = ζ(z) + ζ(−z) − log(b − a)

with ζ(z) = log(1 + e^z). An equalized column has z = T(w), where w is x or the log or logit above,
and T is piecewise linear between its knots and the identity outside of them: see
`scoresde.model.tables.equalize`. All work on tensors (N, D).
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
        equalized = [j for j, column in enumerate(columns) if column.knots]
        self.equalized = torch.tensor(equalized, dtype=torch.int64, device="cpu")
        self.knots = _padded([columns[j].knots for j in equalized])
        self.images = _padded([columns[j].images for j in equalized])

    def noisy(self, values: Tensor, u: Tensor) -> Tensor:
        """v + u·step: points inside the bins of values (N, D); u is uniform on (0, 1)."""
        # Rounding must not lead into another bin.
        inside = 1e-6 + (1 - 2e-6) * u
        steps = self.steps.to(values)
        below = torch.nextafter(values + steps, torch.full_like(values, -torch.inf))
        return torch.where(steps > 0, torch.minimum(values + inside * steps, below), values)

    def forward(self, x: Tensor) -> Tensor:
        """Encoded rows of points x, both (N, D)."""
        z = self._moved(self.without_bounds(x), self.knots, self.images)
        return z - self.shift.to(z) if self.shifted else z

    def without_bounds(self, x: Tensor) -> Tensor:
        """w (N, D) of points x: log and logit of the columns with bounds, others as they are."""
        if not self.bounded:
            return x
        z = x.clone()
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
        w = z + self.shift.to(z) if self.shifted else z
        w = self._moved(w, self.images, self.knots)
        if not self.bounded:
            return w
        x = w.clone()
        low = self.low.to(w)
        high = self.high.to(w)
        lower, upper, both = (at.to(w.device) for at in (self.lower, self.upper, self.both))
        x[:, lower] = low[lower] + w[:, lower].exp()
        x[:, upper] = high[upper] - (-w[:, upper]).exp()
        x[:, both] = low[both] + (high[both] - low[both]) * w[:, both].sigmoid()
        return x

    def least_slopes(self) -> Tensor:
        """The least dT/dw of each equalized column, 1 for others, (D,)."""
        found = torch.ones_like(self.steps)
        if len(self.equalized):
            rises = self.images.diff(dim=1) / self.knots.diff(dim=1)
            found[self.equalized] = rises.nan_to_num(nan=1.0).amin(1).clamp(max=1.0)
        return found

    def _moved(self, values: Tensor, places: Tensor, images: Tensor) -> Tensor:
        """Values (N, D) whose equalized columns go from places to images."""
        if not len(self.equalized):
            return values
        at = self.equalized.to(values.device)
        moved = values.clone()
        moved[:, at] = _pieces(values[:, at], places, images)[0].to(moved)
        return moved

    def log_slopes(self, z: Tensor) -> Tensor:
        """log dz/dx at encoded rows z, both (N, D)."""
        if not len(self.equalized):
            return self.bounds_log_slopes(z)
        at = self.equalized.to(z.device)
        # In float64, as float32 would round a column far from 0 by more than a knot.
        wide = _float64(z[:, at])
        places = wide + self.shift.to(wide)[at]
        moved, falls = _pieces(places, self.images, self.knots)
        w = z.clone()
        w[:, at] = moved.to(w)
        slopes = self.bounds_log_slopes(w)
        slopes[:, at] -= falls.log().to(slopes)
        return slopes

    def bounds_log_slopes(self, w: Tensor) -> Tensor:
        """log dw/dx of log and logit at w, 0 for columns without bounds, both (N, D)."""
        slopes = torch.zeros_like(w)
        if not self.bounded:
            return slopes
        lower, upper, both = (at.to(w.device) for at in (self.lower, self.upper, self.both))
        width = (self.high - self.low).to(w)
        slopes[:, lower] = -w[:, lower]
        slopes[:, upper] = w[:, upper]
        part = w[:, both]
        slopes[:, both] = softplus(part) + softplus(-part) - width[both].log()
        return slopes


def _padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """Rows of different lengths as one float64 tensor, filled up with infinities."""
    width = 1 + max(map(len, rows), default=0)
    filled = [[*row, *[torch.inf] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.float64, device="cpu").reshape(-1, width)


def _float64(x: Tensor) -> Tensor:
    """A tensor in float64, on the CPU if its device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _pieces(values: Tensor, places: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Values (N, E) of piecewise linear functions with knots (E, K), and their slopes; float64."""
    values = _float64(values)
    places = places.to(values)
    images = images.to(values)
    after = torch.searchsorted(places, values.detach().T.contiguous(), right=True)
    last = places.isfinite().sum(1, keepdim=True)
    inside = ((after > 0) & (after < last)).T
    after = torch.minimum(after.clamp(min=1), last - 1)
    x0, x1 = places.gather(1, after - 1).T, places.gather(1, after).T
    z0, z1 = images.gather(1, after - 1).T, images.gather(1, after).T
    slopes = torch.where(inside, (z1 - z0) / (x1 - x0), 1.0)
    return torch.where(inside, z0 + slopes * (values - x0), values), slopes
