"""The fields of a model at states of the user's: denoised, score, velocity, drift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..common.inputs import as_reals


class Fields:
    """What every model says of a state x_t, in the units of the data."""

    def denoise(self: Any, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the model's E[x0 | x_t] and E[ε | x_t].

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            States x_t in the units of the data.
        t : Tensor of shape (B,) or (), or float
            Process time in [0, 1].

        Returns
        -------
        x0 : Tensor, shape (B, *shape)
            In the units of the data.
        eps : Tensor, shape (B, *shape)
            In standard deviations; of a model that whitens, along the whitened axes.

        Raises
        ------
        ValueError
            For a wrong shape or a time outside [0, 1].

        Examples
        --------
        >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
        >>> sde = scoresde.oracle(gaussian, scoresde.RectifiedFlow())
        >>> x0, eps = sde.denoise(torch.ones(1, 2), 0.5)
        >>> x0.round(decimals=4), eps.round(decimals=4)
        (tensor([[1., 1.]]), tensor([[1., 1.]]))
        """
        z, phi, _ = self._on_arc(x, t)
        x0, eps = self._solve(z, phi)
        return self.to_data(x0), self.standardization.spread(eps)

    def score(self: Any, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the model's score ∇log p_t(x) = −L⁻ᵀ·ε̂/σ, per unit of the data.

        L is the map of standardized states to data, scale ∘ R: see `ScoreSDE`.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            States x_t in the units of the data.
        t : Tensor of shape (B,) or (), or float
            Process time in [0, 1]; at t = 0 of a process with σ(0) = 0 the score is taken at
            `Process.phi_floor`.

        Returns
        -------
        Tensor, shape (B, *shape)
            0 for constant features.

        Raises
        ------
        ValueError
            For a wrong shape, a time outside [0, 1], or a model without a score.

        Examples
        --------
        >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 2.0)
        >>> scoresde.oracle(gaussian, scoresde.VESDE()).score(torch.ones(1, 2), 0.0)
        tensor([[-0.2500, -0.2500]])
        """
        self.require("score")
        z, phi, t = self._on_arc(x, t, floor=self.process.phi_floor)
        _, eps = self._solve(z, phi)
        sigma = _per_sample(self.process.radius(t) * torch.sin(phi), eps).to(z)
        return self.standardization.to_gradients(-eps / sigma)

    def velocity(self: Any, x: Tensor, t: Tensor | float) -> Tensor:
        """Return dx/dt of the probability-flow ODE, α̇·x̂0 + σ̇·ε̂.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            States x_t in the units of the data.
        t : Tensor of shape (B,) or (), or float
            Process time in [0, 1]; increasing time goes from data to noise.

        Returns
        -------
        Tensor, shape (B, *shape)
            Units of the data per unit of process time.

        Raises
        ------
        ValueError
            For a wrong shape, a time outside [0, 1], or a model without a velocity.

        References
        ----------
        Song et al. 2021, eq. 13; Lipman et al. 2023.

        Examples
        --------
        >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
        >>> scoresde.oracle(gaussian, scoresde.VPSDE()).velocity(torch.ones(1, 2), 0.5).abs() < 1e-6
        tensor([[True, True]])
        """
        self.require("velocity")
        return self._rate(x, t, noise=0.0)

    def drift(self: Any, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the drift of the reverse-time SDE, f·x − g²·score.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            States x_t in the units of the data.
        t : Tensor of shape (B,) or (), or float
            Process time in [0, 1].

        Returns
        -------
        Tensor, shape (B, *shape)
            Units of the data per unit of process time; −∞ or ∞ where g² is infinite.

        Raises
        ------
        ValueError
            For a wrong shape, a time outside [0, 1], or a model without a score.

        References
        ----------
        Song et al. 2021, eq. 6.

        Examples
        --------
        >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
        >>> scoresde.oracle(gaussian, scoresde.VPSDE()).drift(torch.ones(1, 2), 1.0)
        tensor([[10., 10.]])
        """
        self.require("score")
        return self._rate(x, t, noise=0.5)

    def _rate(self: Any, x: Tensor, t: Tensor | float, noise: float) -> Tensor:
        """α̇·x̂0 + (σ̇ + noise·g²/σ)·ε̂ in the units of the data."""
        z, phi, t = self._on_arc(x, t, floor=self.process.phi_floor)
        x0, eps = self._solve(z, phi)
        dalpha = self.process.dalpha(t)
        dsigma = self.process.dsigma(t)
        if noise:
            dsigma = dsigma + noise * self.process.g2(t) / self.process.sigma(t)
        a = _per_sample(dalpha, x0).to(z)
        b = _per_sample(dsigma, x0).to(z)
        return self.standardization.to_rates(a * x0 + b * eps)

    def _solve(self: Any, z: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """(x̂0, ε̂) at states z (B, n)."""
        output = self.slice_conditions(0, len(z), len(z)).network_fn()
        angle = phi if phi.ndim else float(phi)
        out = output(z, angle, None)
        return self.coefficients(phi).to(z).solve(z, out)

    def _on_arc(
        self: Any, x: Tensor, t: Tensor | float, floor: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States z (B, n), angles φ and times t of x_t in the units of the data."""
        x = self.accept(x)
        t = as_reals(t, "t")
        device = x.device if t.ndim else torch.device("cpu")
        t = t.to(device, torch.float64)
        if t.ndim and t.shape != (len(x),):
            raise ValueError(f"t has shape {tuple(t.shape)}, wanted () or ({len(x)},)")
        if t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(
                "process time runs from 0 (data) to 1 (noise), "
                f"got {float(t.min()):g} to {float(t.max()):g}"
            )
        phi = self.process.phi(t)
        lowest = self.phi_min if floor is None else max(floor, self.process.phi_min)
        if self.process.phi_min < lowest:
            phi = phi.clamp_min(lowest)
            angle = torch.tensor(lowest, dtype=torch.float64, device="cpu")
            t = torch.maximum(t, self.process.time(angle))
        radius = _per_sample(self.process.radius(t), x).to(x.dtype).reshape(-1, 1)
        return self.from_data(x) / radius, phi, t


def _per_sample(c: Tensor, x: Tensor) -> Tensor:
    """Numbers of shape (B,) or () in a shape that multiplies x (B, …)."""
    return c.reshape(-1, *(1,) * (x.ndim - 1)) if c.ndim else c
