"""A model at states on the arc: its output, the velocity, and the 2×2 system between them.

A state z = x̃_t/√(α² + σ²) of standardized data has unit variance, and its angle φ = atan(σ/α)
says how much of it is noise: z = cos φ·x̃0 + sin φ·ε. The point (cos φ, sin φ) moves along the unit
circle from the data at φ = 0 to the noise at φ = π/2: this is the arc.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..processes.base import as_time
from ..processes.prediction import Coefficients, coefficients, singular


class OnArc:
    """What follows from a model's output on the arc."""

    def velocity_fn(self: Any, *, raw: bool = False) -> Callable[..., Tensor]:
        """Return dz/dφ = cos φ·ε̂ − sin φ·x̂0, the right-hand side of the ODE, as a function.

        Parameters
        ----------
        raw : bool
            As for `network_fn`.

        Returns
        -------
        callable (z, φ, rows) -> Tensor (B, n)
            Per radian.

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).velocity_fn()(torch.ones(1, 2), 0.5, None)
        tensor([[-0., -0.]], grad_fn=...)
        """
        output: Callable[..., Tensor] = self.network_fn(raw=raw)
        if self.predict == "edm":
            return lambda z, phi, rows=None: -output(z, phi, rows)

        def velocity(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Tensor:
            c: Coefficients = self.coefficients(as_time(phi)).to(z)
            out = output(z, phi, rows)
            return (out - (c.a * c.cos + c.b * c.sin) * z) / c.det

        return velocity

    def arc_velocity(
        self: Any, z: Tensor, phi: Tensor | float, rows: Tensor | None = None
    ) -> Tensor:
        """Return dz/dφ = cos φ·ε̂ − sin φ·x̂0 at states on the arc.

        Parameters
        ----------
        z : Tensor, shape (B, n)
            States on the unit arc, flattened.
        phi : float, or Tensor of shape (B,), float64
            Angle in radians, for all or one a state.
        rows : Tensor of int, shape (B,), optional
            Which rows of a per-sample condition these states are.

        Returns
        -------
        Tensor, shape (B, n)
            Per radian.

        Examples
        --------
        >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
        >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE())
        >>> sde.arc_velocity(torch.ones(1, 2), 0.5).abs() < 1e-6
        tensor([[True, True]])
        """
        found: Tensor = self.velocity_fn()(z, phi, rows)
        return found

    def coefficients(self: Any, phi: Tensor) -> Coefficients:
        """Return the 2×2 system of this model's prediction at angle(s) φ.

        Parameters
        ----------
        phi : Tensor, shape () or (B,), float64
            Angles in radians.

        Returns
        -------
        Coefficients

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).coefficients(torch.tensor(0.0)).det
        tensor(-1.)
        """
        return coefficients(self.predict, self.process, phi)

    def output(self: Any, z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Tensor:
        """Return the network's output at states on the arc.

        Parameters
        ----------
        z : Tensor, shape (B, n)
            States on the unit arc, flattened.
        phi : float, or Tensor of shape (B,), float64
            Angle in radians, for all or one a state.
        rows : Tensor of int, shape (B,), optional
            Which rows of a per-sample condition these states are.

        Returns
        -------
        Tensor, shape (B, n)
            In z's dtype.

        Raises
        ------
        ValueError
            If the network returns another shape than it was given.

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).output(torch.ones(1, 2), 0.5)
        tensor([[0., 0.]], grad_fn=...)
        """
        found: Tensor = self.network_fn()(z, phi, rows)
        return found

    @property
    def phi_min(self: Any) -> float:
        """Where solves end, in radians: φ(0), or `Process.phi_floor` if φ(0) is singular."""
        start: float = self.process.phi_min
        if singular(self.predict, self.process, start):
            start = self.process.phi_floor
        return start
