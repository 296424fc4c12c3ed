"""What a network predicts, as a pair (a, b): output = a·x0 + b·ε.

Together with z = cos φ·x0 + sin φ·ε this is a 2×2 system, with one solution for all predictions.
With det = cos φ·b − sin φ·a,

    x̂0 = (b·z − sin φ·out)/det,     ε̂ = (cos φ·out − a·z)/det,
    dz/dφ = (out − (a·cos φ + b·sin φ)·z)/det.

The pair of `edm`, (sin φ, −cos φ), has det = −1 everywhere: the network predicts the velocity on
the arc up to sign. It is EDM's preconditioning at σ_data = 1 (Karras et al. 2022, eq. 7) and
Salimans & Ho's v (2022, appendix D), and the default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.names import choose
from .base import Process

Pair = Callable[[Process, Tensor], tuple[Tensor, Tensor]]


def _edm(process: Process, phi: Tensor) -> tuple[Tensor, Tensor]:
    """(sin φ, −cos φ)."""
    return torch.sin(phi), -torch.cos(phi)


def _x0(process: Process, phi: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 0)."""
    return torch.ones_like(phi), torch.zeros_like(phi)


def _eps(process: Process, phi: Tensor) -> tuple[Tensor, Tensor]:
    """(0, 1)."""
    return torch.zeros_like(phi), torch.ones_like(phi)


def _v(process: Process, phi: Tensor) -> tuple[Tensor, Tensor]:
    """(α̇, σ̇): dx/dt."""
    t = process.time(phi)
    return process.dalpha(t), process.dsigma(t)


def _score(process: Process, phi: Tensor) -> tuple[Tensor, Tensor]:
    """(0, −1/σ)."""
    return torch.zeros_like(phi), -1 / process.sigma(process.time(phi))


def _v_arc(process: Process, phi: Tensor) -> tuple[Tensor, Tensor]:
    """(−sin φ, cos φ): dz/dφ."""
    return -torch.sin(phi), torch.cos(phi)


PREDICTIONS: dict[str, Pair] = {
    "edm": _edm,
    "x0": _x0,
    "eps": _eps,
    "v": _v,
    "v_arc": _v_arc,
    "score": _score,
}
"""Pairs (a, b) by name, functions of (process, φ): `edm` (sin φ, −cos φ), `x0` (1, 0), `eps` (0,
1), `v` = dx/dt (α̇, σ̇), `v_arc` = dz/dφ (−sin φ, cos φ), `score` (0, −1/σ). What Salimans & Ho and
diffusers call v is `v_arc`.
"""


class Coefficients(NamedTuple):
    """The 2×2 system: floats or tensors of shape () for one angle, (B, 1) for one a sample."""

    cos: float | Tensor
    sin: float | Tensor
    a: float | Tensor
    b: float | Tensor
    det: float | Tensor

    def solve(self, z: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x̂0, ε̂) from the arc state and the network's output."""
        if isinstance(self.det, float):
            k = 1 / self.det
            x0 = torch.add((self.b * k) * z, out, alpha=-float(self.sin) * k)
            eps = torch.add((-self.a * k) * z, out, alpha=float(self.cos) * k)
            return x0, eps
        return (self.b * z - self.sin * out) / self.det, (self.cos * out - self.a * z) / self.det

    def to(self, like: Tensor) -> Coefficients:
        """Return the coefficients in the dtype of `like`; those of one angle promote nothing."""
        parts = (c.to(like.dtype) if isinstance(c, Tensor) and c.ndim else c for c in self)
        return Coefficients(*parts)


def coefficients(predict: str, process: Process, phi: Tensor) -> Coefficients:
    """Return the 2×2 system of a prediction at angle(s) φ."""
    cos = torch.cos(phi)
    sin = torch.sin(phi)
    a, b = PREDICTIONS[predict](process, phi)
    det = -torch.ones_like(phi) if predict == "edm" else cos * b - sin * a
    parts = (cos, sin, a, b, det)
    return Coefficients(*(c.unsqueeze(1) if phi.ndim else c for c in parts))


def singular(predict: str, process: Process, phi: float) -> bool:
    """Whether a prediction leaves (x̂0, ε̂) undetermined at φ: det = 0, or an infinite row."""
    c = coefficients(predict, process, torch.tensor(phi, dtype=torch.float64, device="cpu"))
    size = abs(float(c.a)) + abs(float(c.b))
    return not abs(float(c.det)) > 1e-6 * size or size == float("inf")


def check(predict: str, process: Process) -> None:
    """Refuse a prediction that is unknown, or singular at the noise end of the process."""
    choose("prediction", predict, PREDICTIONS)
    if singular(predict, process, process.phi_max):
        works = [name for name in PREDICTIONS if not singular(name, process, process.phi_max)]
        raise ValueError(
            f"predict={predict!r} says nothing about the data at t = 1 of {process!r}, where "
            f"α = 0; predictions that work there: {', '.join(works)}"
        )
