"""What a network outputs, as one row (a, b): output = a·x0 + b·ε.

Together with z = cos φ·x0 + sin φ·ε this is a 2×2 system, so one solve serves every parameterization. With
det = cos φ·b − sin φ·a,

    x̂0 = (b·z − sin φ·out)/det,     ε̂ = (cos φ·out − a·z)/det,     dz/dφ = (out − (a·cos φ + b·sin φ)·z)/det.

The `edm` row (sin φ, −cos φ) has det = −1 everywhere: the network predicts the velocity on the arc up to sign. It is EDM's
preconditioning at σ_data = 1 (Karras et al. 2022, eq. 7) and Salimans & Ho's v (2022, appendix D), and the default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .process import Process
from .registry import choose

Row = Callable[[Process, Tensor], tuple[Tensor, Tensor]]


def _edm(process: Process, phi: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sin(phi), -torch.cos(phi)


def _x0(process: Process, phi: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(phi), torch.zeros_like(phi)


def _eps(process: Process, phi: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(phi), torch.ones_like(phi)


def _v(process: Process, phi: Tensor) -> tuple[Tensor, Tensor]:
    t = process.time(phi)
    return process.dalpha(t), process.dsigma(t)


def _score(process: Process, phi: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(phi), -1 / process.sigma(process.time(phi))


PREDICTIONS: dict[str, Row] = {"edm": _edm, "x0": _x0, "eps": _eps, "v": _v, "score": _score}
"""Rows (a, b) by name, functions of (process, φ): `edm` (sin φ, −cos φ), `x0` (1, 0), `eps` (0, 1), `v` = dx/dt (α̇, σ̇),
`score` (0, −1/σ)."""


class Coefficients(NamedTuple):
    """The 2×2 system at one or many angles: numbers for one (float64 tensors of shape (), or floats), (B, 1) for one a sample."""

    cos: float | Tensor
    sin: float | Tensor
    a: float | Tensor
    b: float | Tensor
    det: float | Tensor

    def solve(self, z: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x̂0, ε̂) from the arc state and the network's output.

        Parameters
        ----------
        z, out : Tensor, shape (B, n)
            State on the arc and network output.

        Returns
        -------
        x0, eps : Tensor, shape (B, n)

        Examples
        --------
        >>> import math, torch
        >>> from scoresde import VPSDE
        >>> x0, eps = torch.ones(1, 2), torch.full((1, 2), 3.0)
        >>> c = coefficients("x0", VPSDE(), torch.tensor(0.5))
        >>> torch.stack(c.solve(c.cos * x0 + c.sin * eps, c.a * x0 + c.b * eps)).round(decimals=4)
        tensor([[[1., 1.]],
        <BLANKLINE>
                [[3., 3.]]])
        """
        if isinstance(self.det, float):
            k, sin, cos = 1 / self.det, float(self.sin), float(self.cos)
            return torch.add((self.b * k) * z, out, alpha=-sin * k), torch.add((-self.a * k) * z, out, alpha=cos * k)
        return (self.b * z - self.sin * out) / self.det, (self.cos * out - self.a * z) / self.det

    def to(self, like: Tensor) -> Coefficients:
        """Return the coefficients in the dtype of `like`; numbers, which promote nothing, stay as they are.

        Parameters
        ----------
        like : Tensor
            Gives the dtype.

        Returns
        -------
        Coefficients

        Examples
        --------
        >>> import torch
        >>> from scoresde import VPSDE
        >>> coefficients("edm", VPSDE(), torch.zeros(3)).to(torch.zeros(1)).cos.dtype
        torch.float32
        """
        return Coefficients(*(c.to(like.dtype) if isinstance(c, Tensor) and c.ndim else c for c in self))


def coefficients(predict: str, process: Process, phi: Tensor) -> Coefficients:
    """Return the 2×2 system of a prediction at angle(s) φ.

    Parameters
    ----------
    predict : str
        A key of `PREDICTIONS`.
    process : Process
        Gives the clock, which the rows `v` and `score` depend on.
    phi : Tensor of shape () or (B,)
        Angles in radians.

    Returns
    -------
    Coefficients
        Tensors of shape () for a 0-dimensional φ, on the CPU where φ is (no device waits for them), (B, 1) otherwise.

    Examples
    --------
    >>> import torch
    >>> from scoresde import RectifiedFlow
    >>> [float(c) for c in coefficients("v", RectifiedFlow(), torch.tensor(0.0, dtype=torch.float64))]
    [1.0, 0.0, -1.0, 1.0, 1.0]
    """
    cos, sin = torch.cos(phi), torch.sin(phi)
    a, b = PREDICTIONS[predict](process, phi)
    det = -torch.ones_like(phi) if predict == "edm" else cos * b - sin * a
    five = (cos, sin, a, b, det)
    return Coefficients(*(c.unsqueeze(1) if phi.ndim else c for c in five))


def singular(predict: str, process: Process, phi: float) -> bool:
    """Whether a prediction does not determine (x̂0, ε̂) at angle φ: its determinant vanishes there or its row is infinite.

    Parameters
    ----------
    predict : str
        A key of `PREDICTIONS`.
    process : Process
    phi : float
        Angle in radians.

    Returns
    -------
    bool

    Examples
    --------
    >>> from scoresde import RectifiedFlow
    >>> [singular(p, RectifiedFlow(), RectifiedFlow().phi_max) for p in ("edm", "eps", "v")]
    [False, True, False]
    """
    c = coefficients(predict, process, torch.tensor(phi, dtype=torch.float64, device="cpu"))
    size = abs(float(c.a)) + abs(float(c.b))
    return not abs(float(c.det)) > 1e-6 * size or size == float("inf")


def check(predict: str, process: Process) -> None:
    """Refuse a prediction that is unknown, or singular at the noise end of the process.

    Parameters
    ----------
    predict : str
        A name.
    process : Process

    Raises
    ------
    ValueError
        With the names that work.

    Examples
    --------
    >>> from scoresde import RectifiedFlow
    >>> check("eps", RectifiedFlow())
    Traceback (most recent call last):
    ValueError: predict='eps' says nothing about the data at t = 1 of RectifiedFlow(), where α = 0; ... edm, x0, v
    """
    choose("prediction", predict, PREDICTIONS)
    if singular(predict, process, process.phi_max):
        works = [name for name in PREDICTIONS if not singular(name, process, process.phi_max)]
        raise ValueError(
            f"predict={predict!r} says nothing about the data at t = 1 of {process!r}, where α = 0; "
            f"predictions that work there: {', '.join(works)}"
        )
