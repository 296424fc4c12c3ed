"""Parameters without their bounds: a map of a box onto all of space, and its Jacobian."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EDGE = 1e-9
"""Share of an interval, at each end, that counts as its edge: u stays within ±6."""
SMALLEST = 1e-300
LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


class Support:
    """The bijection between the interior of a box of intervals, half lines and lines, and R^D."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low = low.double()
        self.high = high.double()
        self.both = low.isfinite() & high.isfinite()
        self.lower = low.isfinite() & ~high.isfinite()
        self.upper = high.isfinite() & ~low.isfinite()

    def contains(self, theta: Tensor) -> Tensor:
        """Whether theta (…, D) is inside or at the edge."""
        theta = theta.detach().double()
        low = self.low.to(theta.device)
        high = self.high.to(theta.device)
        return ((theta >= low) & (theta <= high)).all(-1)

    def forward(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """u and ∑ log |du/dtheta| of theta (…, D) inside, in float64."""
        theta = theta.double()
        low, high, both, lower, upper = self._on(theta.device)
        width = torch.where(both, high - low, 1.0)
        share = ((theta - torch.where(both, low, 0.0)) / width).clamp(EDGE, 1 - EDGE)
        probit = torch.special.ndtri(torch.where(both, share, 0.5))
        one = torch.ones_like(theta)
        above = torch.where(lower, theta - low, one).clamp_min(SMALLEST)
        below = torch.where(upper, high - theta, one).clamp_min(SMALLEST)
        u = torch.where(both, probit, theta)
        u = torch.where(lower, above.log(), u)
        u = torch.where(upper, -below.log(), u)
        return u, self.log_slope(u)

    def log_slope(self, u: Tensor) -> Tensor:
        """∑ log |du/dtheta| at u (…, D)."""
        low, high, both, lower, upper = self._on(u.device)
        width = torch.where(both, high - low, 1.0)
        inner = torch.where(both, 0.5 * u.square() + LOG_ROOT_2PI - width.log(), 0.0)
        return (inner + torch.where(upper, u, 0.0) - torch.where(lower, u, 0.0)).sum(-1)

    def clamped(self, u: Tensor, farthest: float) -> Tensor:
        """u with parameters in intervals no farther than that from 0."""
        return torch.where(self.both.to(u.device), u.clamp(-farthest, farthest), u)

    def inverse(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        """Theta of u (…, D), strictly inside as numbers of that dtype."""
        u = u.double()
        low, high, both, lower, upper = self._on(u.device)
        theta = torch.where(both, low + torch.special.ndtr(u) * (high - low), u)
        theta = torch.where(lower, low + torch.where(lower, u, 0.0).exp(), theta)
        theta = torch.where(upper, high - torch.where(upper, -u, 0.0).exp(), theta)
        theta = theta.to(dtype)
        least = torch.nextafter(low.to(dtype), torch.full_like(low, math.inf).to(dtype))
        most = torch.nextafter(high.to(dtype), torch.full_like(high, -math.inf).to(dtype))
        return torch.minimum(torch.maximum(theta, least), most)

    def _on(self, device: torch.device) -> list[Tensor]:
        """Bounds and masks on a device."""
        parts = (self.low, self.high, self.both, self.lower, self.upper)
        return [part.to(device) for part in parts]
