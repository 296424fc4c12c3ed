r"""Gaussian paths from data to noise: one family for VP, VE, sub-VP, EDM, cosine, rectified flow.

A process is a pair of functions of time, data at t = 0 and noise at t = 1:

    x_t = α(t)·x0 + σ(t)·ε,        ε ~ N(0, I).

Everything else follows. As an SDE it is dx = f(t)·x dt + g(t) dw with (Song et al. 2021, eq. 5; Lu
et al. 2022a, eq. 2.3)

    f = α̇/α,        g² = 2σ·(α·σ̇ − σ·α̇)/α,

and between two times s < t

    x_t | x_s ~ N(a·x_s, v·I),   a = α_t/α_s,   v = σ_t²·(1 − exp(2λ_t − 2λ_s)),   λ = log(α/σ).

On the unit arc, α = r·cos φ and σ = r·sin φ, so z = x/r = cos φ·x0 + sin φ·ε has unit variance for
standardized data, and dz/dφ = cos φ·ε̂ − sin φ·x̂0 for every process (the velocity of Salimans &
Ho 2022, appendix D). A process is a segment φ(0) … φ(1) of the arc, and a speed along it. It
defines its values at both end points, so no function in this library takes an epsilon.
"""

from __future__ import annotations

import abc
import functools
import math
from typing import ClassVar

import torch
from torch import Tensor

from ..common.registry import Registry
from .functions import check_path, derivative, inverse
from .old_names import OldFloor

PROCESSES: Registry[Process] = Registry("process")
"""All processes by name; `@PROCESSES.register("name")` adds one and enrols it in the tests."""


def as_time(t: Tensor | float) -> Tensor:
    """Return a time as a tensor: floats become float64, tensors stay as they are."""
    return t if isinstance(t, Tensor) else torch.full((), t, dtype=torch.float64, device="cpu")


class Process(OldFloor, abc.ABC):
    """A Gaussian path x_t = α(t)·x0 + σ(t)·ε, t from 0 (data) to 1 (noise).

    Subclasses give `alpha` and `sigma`, elementwise functions of a tensor, with σ/α increasing in
    t; `dalpha`, `dsigma` and `time` come from automatic differentiation and bisection unless given.
    All methods take floats or tensors of any shape and return tensors of that shape.

    Examples
    --------
    >>> class Cosine(scoresde.Process):
    ...     def alpha(self, t): return torch.cos(0.5 * math.pi * t)
    ...     def sigma(self, t): return torch.sin(0.5 * math.pi * t)
    >>> Cosine().phi(0.5) / math.pi
    tensor(0.2500, dtype=torch.float64)
    """

    phi_floor: float = 1e-4
    """Where σ(0) = 0 and the prediction is singular there, solvers end at this φ in radians, as if
    data were smoothed by 1e-4 standard deviations: O(1e-8) in log p of a smooth density.
    """

    noise: float = 0.0
    """σ of the Brownian motion between the two ends of a path; 0 except for `SchrodingerBridge`."""

    objective: ClassVar[str] = "denoising"
    """The objective by which `fit` trains models of this process by default."""

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the signal scale α(t).

        Parameters
        ----------
        t : Tensor
            Times in [0, 1].

        Returns
        -------
        Tensor
            α, of t's shape.

        Examples
        --------
        >>> scoresde.RectifiedFlow().alpha(torch.tensor(0.25))
        tensor(0.7500)
        """

    @abc.abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise scale σ(t), in units of the standardized data.

        Parameters
        ----------
        t : Tensor
            Times in [0, 1].

        Returns
        -------
        Tensor
            σ, of t's shape.

        Examples
        --------
        >>> scoresde.RectifiedFlow().sigma(torch.tensor(0.25))
        tensor(0.2500)
        """

    def dalpha(self, t: Tensor) -> Tensor:
        """Return dα/dt, by automatic differentiation unless a subclass has the closed form.

        Parameters
        ----------
        t : Tensor
            Times in [0, 1].

        Returns
        -------
        Tensor
            α̇, per unit of process time.

        Examples
        --------
        >>> scoresde.RectifiedFlow().dalpha(torch.tensor(0.25))
        tensor(-1.)
        """
        return derivative(self.alpha, t)

    def dsigma(self, t: Tensor) -> Tensor:
        """Return dσ/dt, by automatic differentiation unless a subclass has the closed form.

        Parameters
        ----------
        t : Tensor
            Times in [0, 1].

        Returns
        -------
        Tensor
            σ̇, per unit of process time.

        Examples
        --------
        >>> scoresde.RectifiedFlow().dsigma(torch.tensor(0.25))
        tensor(1.)
        """
        return derivative(self.sigma, t)

    def phi(self, t: Tensor | float) -> Tensor:
        """Return the angle on the unit arc, φ = atan2(σ, α), in radians: 0 is data, π/2 pure noise.

        Parameters
        ----------
        t : Tensor or float
            Times in [0, 1].

        Returns
        -------
        Tensor
            Angles in [0, π/2].

        Examples
        --------
        >>> scoresde.RectifiedFlow().phi(1.0)
        tensor(1.5708, dtype=torch.float64)
        """
        t = as_time(t)
        return torch.atan2(self.sigma(t), self.alpha(t))

    def radius(self, t: Tensor | float) -> Tensor:
        """Return r = √(α² + σ²), the standard deviation of x_t for standardized data.

        Parameters
        ----------
        t : Tensor or float
            Times in [0, 1].

        Returns
        -------
        Tensor
            Radii; 1 for variance-preserving processes.

        Examples
        --------
        >>> scoresde.VESDE(sigma_max=50.0).radius(1.0)
        tensor(50.0100, dtype=torch.float64)
        """
        t = as_time(t)
        return torch.hypot(self.alpha(t), self.sigma(t))

    def time(self, phi: Tensor | float) -> Tensor:
        """Return the time at which the path is at angle φ: the inverse of `phi`.

        Parameters
        ----------
        phi : Tensor or float
            Angles in radians, between φ(0) and φ(1).

        Returns
        -------
        Tensor
            Times in [0, 1]. Processes without a closed form bisect to the last bit.

        Examples
        --------
        >>> scoresde.VPSDE().time(scoresde.VPSDE().phi(0.3))
        tensor(0.3000, dtype=torch.float64)
        """
        phi = as_time(phi)
        inside = torch.where(phi <= self.phi_min, 0.0, inverse(self.phi, phi))
        return torch.where(phi >= self.phi_max, torch.ones_like(phi), inside)

    @functools.cached_property
    def phi_min(self) -> float:
        """φ(0) in radians: 0 if the path starts at the data itself, else about σ_min."""
        return float(self.phi(0.0))

    @functools.cached_property
    def phi_max(self) -> float:
        """φ(1) in radians: π/2 if the path ends in pure noise, less if it keeps some signal."""
        return float(self.phi(1.0))

    @functools.cached_property
    def ends_in_noise(self) -> bool:
        """Whether α(1) = 0: x_1 is independent of the data, and f and g² are singular there."""
        return math.cos(self.phi_max) < 1e-6

    def check(self) -> None:
        """Raise unless α and σ are finite, α(0) = 1, and σ/α increases with t.

        Raises
        ------
        TypeError, ValueError
            If they are not, or no tensors of t's shape.

        Examples
        --------
        >>> class Reversed(Process):
        ...     def alpha(self, t): return t
        ...     def sigma(self, t): return 1 - t
        >>> Reversed().check()
        Traceback (most recent call last):
        ValueError: σ/α of Reversed must increase from t = 0 (data) ... Replace t by 1 - t
        """
        check_path(type(self).__name__, self.alpha, self.sigma)

    def f(self, t: Tensor | float) -> Tensor:
        """Return the drift coefficient f = α̇/α of dx = f·x dt + g dw; −∞ where α = 0.

        Parameters
        ----------
        t : Tensor or float
            Times in [0, 1].

        Returns
        -------
        Tensor
            f, per unit of process time.

        Examples
        --------
        >>> scoresde.VPSDE(beta_min=0.1, beta_max=20.0).f(1.0)
        tensor(-10., dtype=torch.float64)
        """
        t = as_time(t)
        return self.dalpha(t) / self.alpha(t)

    def g2(self, t: Tensor | float) -> Tensor:
        """Return the squared diffusion coefficient g² = 2σ·(α·σ̇ − σ·α̇)/α; ∞ where α = 0.

        Parameters
        ----------
        t : Tensor or float
            Times in [0, 1].

        Returns
        -------
        Tensor
            g², variance per unit of process time.

        Examples
        --------
        >>> scoresde.VPSDE(beta_min=0.1, beta_max=20.0).g2(1.0)
        tensor(20., dtype=torch.float64)
        """
        t = as_time(t)
        alpha = self.alpha(t)
        sigma = self.sigma(t)
        return 2 * sigma * (alpha * self.dsigma(t) - sigma * self.dalpha(t)) / alpha

    def reverse_g2(self, t: Tensor | float) -> Tensor:
        """Return the squared noise of the reverse SDE that stochastic solvers integrate.

        Any amount of noise g̃² keeps the marginals of dx = [α̇·x̂0 + σ̇·ε̂ + ½g̃²·ε̂/σ] dt + g̃ dw̄
        (Karras et al. 2022, eq. 6). Here g̃² = g², except if a process ends in pure noise: then g²
        is infinite at t = 1, and g̃² = g²·cos²φ = 2ασ·(α·σ̇ − σ·α̇)/r² is finite everywhere.

        Parameters
        ----------
        t : Tensor or float
            Times in [0, 1].

        Returns
        -------
        Tensor
            g̃², variance per unit of process time.

        Examples
        --------
        >>> scoresde.RectifiedFlow().reverse_g2(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0., 1., 0.])
        """
        t = as_time(t)
        if not self.ends_in_noise:
            return self.g2(t)
        alpha = self.alpha(t)
        sigma = self.sigma(t)
        turn = alpha * self.dsigma(t) - sigma * self.dalpha(t)
        return 2 * alpha * sigma * turn / (alpha * alpha + sigma * sigma)

    def marginal(self, x0: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of x_t given x0: (α(t)·x0, σ(t)).

        Parameters
        ----------
        x0 : Tensor, shape (B, *shape)
            Data, standardized.
        t : Tensor of shape (B,) or (), or float
            Times in [0, 1].

        Returns
        -------
        mean : Tensor, shape (B, *shape)
        std : Tensor, broadcastable to the mean

        Examples
        --------
        >>> scoresde.RectifiedFlow().marginal(torch.ones(1, 2), 0.25)
        (tensor([[0.7500, 0.7500]]), tensor(0.2500))
        """
        t = as_time(t)
        if t.ndim:
            t = t.reshape(t.shape + (1,) * (x0.ndim - 1))
        return self.alpha(t).to(x0.dtype) * x0, self.sigma(t).to(x0.dtype)

    def transition(self, s: Tensor | float, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (a, v) of the kernel x_t | x_s ~ N(a·x_s, v·I) for s ≤ t.

        Parameters
        ----------
        s, t : Tensor or float
            Times in [0, 1], s ≤ t.

        Returns
        -------
        a : Tensor
            α_t/α_s.
        v : Tensor
            σ_t²·(1 − exp(2λ_t − 2λ_s)): 0 for s = t, σ_t² for s = 0 where σ(0) = 0.

        Examples
        --------
        >>> a, v = scoresde.VESDE(sigma_min=0.01, sigma_max=50.0).transition(0.0, 1.0)
        >>> float(a), round(float(v), 4)
        (1.0, 2499.9999)
        """
        s = as_time(s)
        t = as_time(t)
        alpha_s = self.alpha(s)
        alpha_t = self.alpha(t)
        sigma_t = self.sigma(t)
        # exp(λ_t − λ_s), in [0, 1]; 0/0 only where s = t = 0
        ratio = (alpha_t * self.sigma(s)) / (alpha_s * sigma_t)
        near = torch.nan_to_num(1 - ratio, nan=0.0)
        return alpha_t / alpha_s, sigma_t**2 * near * (1 + ratio.nan_to_num(nan=1.0))

    def prior(self, shape: tuple[int, ...]) -> torch.distributions.Distribution:
        """Return N(0, (α² + σ²)·I), which has the first two moments of p(x_1).

        Parameters
        ----------
        shape : tuple of int
            Shape of one sample.

        Returns
        -------
        torch.distributions.Distribution
            For standardized data, float64.

        Examples
        --------
        >>> scoresde.VESDE(sigma_max=50.0).prior((2,)).stddev
        tensor([50.0100, 50.0100], dtype=torch.float64)
        """
        zero = torch.zeros(shape, dtype=torch.float64, device="cpu")
        normal = torch.distributions.Normal(zero, self.radius(1.0))
        return torch.distributions.Independent(normal, len(shape))
