"""The processes of the field in closed form: VP, sub-VP, VE, EDM, cosine and rectified flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.checks import real_number
from .base import PROCESSES, Process, as_time


@dataclass(frozen=True)
class _Variance(Process):
    """What VP and sub-VP share: β(t) = β_min + t·(β_max − β_min), log α = −½∫β."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        low = self.beta_min
        real_number(f"beta_min of {name}", low, 0, math.inf, hint="try 0.1")
        real_number(
            f"beta_max of {name}", self.beta_max, low, math.inf, closed=True, hint="try 20.0"
        )

    def beta(self, t: Tensor | float) -> Tensor:
        """Return β(t), the variance added per unit of process time."""
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        """Return log α(t) = −¼t²·(β_max − β_min) − ½t·β_min."""
        t = as_time(t)
        return -t * (0.25 * t * (self.beta_max - self.beta_min) + 0.5 * self.beta_min)

    def _time_of(self, minus_log_alpha: Tensor) -> Tensor:
        """The positive root t of −log α(t) = a·t² + b·t."""
        a = 0.25 * (self.beta_max - self.beta_min)
        b = 0.5 * self.beta_min
        return 2 * minus_log_alpha / (b + torch.sqrt(b * b + 4 * a * minus_log_alpha))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self.log_alpha(t))

    def dalpha(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t) * self.alpha(t)

    def f(self, t: Tensor | float) -> Tensor:
        return -0.5 * self.beta(t)


@PROCESSES.register("vp")
@dataclass(frozen=True)
class VPSDE(_Variance):
    """The variance-preserving SDE: α² + σ² = 1, f = −β/2, g² = β.

    See Song et al. 2021, eq. 11 and 33, and Ho et al. 2020.

    Parameters
    ----------
    beta_min, beta_max : float
        β at t = 0 and t = 1, per unit of process time; β is linear between them.

    Raises
    ------
    ValueError
        Unless 0 < beta_min ≤ beta_max.

    Examples
    --------
    >>> vp = VPSDE(beta_min=0.1, beta_max=20.0)
    >>> float(vp.alpha(torch.tensor(1.0))) < 0.01, vp.phi_min
    (True, 0.0)
    """

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def dsigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return 0.5 * self.beta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def g2(self, t: Tensor | float) -> Tensor:  # noqa: D102
        return self.beta(t)

    def time(self, phi: Tensor | float) -> Tensor:  # noqa: D102
        return self._time_of(0.5 * torch.log1p(torch.tan(as_time(phi)) ** 2))

    def ddpm_times(self, steps: int = 1000) -> Tensor:
        """Return the times at which this process has the noise levels of DDPM with linear β.

        DDPM has β_i from β_min/T to β_max/T and ᾱ_i = Π(1 − β_j). Since α(t)² takes every value,
        it is a grid on this process: t_i with α(t_i)² = ᾱ_i (Ho et al. 2020; Song et al. 2021,
        appendix B). With the defaults and T = 1000, β_i runs from 1e-4 to 0.02; the last level
        lies a little beyond t = 1.

        Parameters
        ----------
        steps : int
            T, the number of levels.

        Returns
        -------
        Tensor, shape (T + 1,), float64
            t_0 = 0 < t_1 < … < t_T ≈ 1.003.

        Raises
        ------
        ValueError
            If β_T ≥ 1, which happens for T ≤ β_max.

        Examples
        --------
        >>> t = VPSDE().ddpm_times(1000)
        >>> abar = VPSDE().alpha(t) ** 2
        >>> 1 - abar[1], 1 - abar[-1] / abar[-2]
        (tensor(1.0000e-04, dtype=torch.float64), tensor(0.0200, dtype=torch.float64))
        """
        if steps <= self.beta_max:
            raise ValueError(
                f"the DDPM grid needs more than beta_max = {self.beta_max:g} steps, got {steps}"
            )
        beta = torch.linspace(
            self.beta_min / steps, self.beta_max / steps, steps, dtype=torch.float64, device="cpu"
        )
        minus_log_alpha = -0.5 * torch.log1p(-beta).cumsum(0)
        zero = torch.zeros(1, dtype=torch.float64, device="cpu")
        return torch.cat([zero, self._time_of(minus_log_alpha)])


@PROCESSES.register("subvp")
@dataclass(frozen=True)
class SubVPSDE(_Variance):
    """The sub-VP SDE: α as in VP, σ = 1 − α², g² = β·(1 − α⁴) (Song et al. 2021, eq. 12 and 29).

    Parameters
    ----------
    beta_min, beta_max : float
        β at t = 0 and t = 1, per unit of process time; β is linear between them.

    Raises
    ------
    ValueError
        Unless 0 < beta_min ≤ beta_max.

    Examples
    --------
    >>> float(SubVPSDE().sigma(torch.tensor(0.0)))
    0.0
    """

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return -torch.expm1(2 * self.log_alpha(t))

    def dsigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.beta(t) * self.alpha(t) ** 2

    def g2(self, t: Tensor | float) -> Tensor:  # noqa: D102
        return self.beta(t) * -torch.expm1(4 * self.log_alpha(t))

    def time(self, phi: Tensor | float) -> Tensor:  # noqa: D102
        return self._time_of(torch.asinh(0.5 * torch.tan(as_time(phi))))


class _Exploding(Process):
    """The signal of VE and EDM: α = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)


@PROCESSES.register("ve")
@dataclass(frozen=True)
class VESDE(_Exploding):
    """The variance-exploding SDE: α = 1, σ = σ_min·(σ_max/σ_min)^t.

    See Song et al. 2021, eq. 9 and 30. It starts at σ(0) = σ_min, not 0: it models the data
    smoothed by σ_min standard deviations.

    Parameters
    ----------
    sigma_min, sigma_max : float
        σ at t = 0 and t = 1, in units of the standardized data.

    Raises
    ------
    ValueError
        Unless 0 < sigma_min < sigma_max.

    Examples
    --------
    >>> VESDE(sigma_min=0.01, sigma_max=50.0).sigma(torch.tensor([0.0, 1.0]))
    tensor([1.0000e-02, 5.0000e+01])
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        low = self.sigma_min
        real_number(f"sigma_min of {name}", low, 0, math.inf, hint="try 0.01")
        real_number(f"sigma_max of {name}", self.sigma_max, low, math.inf, hint="try 50.0")

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.sigma_min * torch.exp(self._rate * t)

    def dsigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self._rate * self.sigma(t)

    def time(self, phi: Tensor | float) -> Tensor:  # noqa: D102
        return torch.log(torch.tan(as_time(phi)) / self.sigma_min) / self._rate


@PROCESSES.register("edm")
@dataclass(frozen=True)
class EDM(_Exploding):
    """EDM's noise levels: α = 1, σ = (σ_min^{1/ρ} + t·(σ_max^{1/ρ} − σ_min^{1/ρ}))^ρ.

    See Karras et al. 2022, eq. 5. It starts at σ(0) = σ_min, not 0: it models the data smoothed by
    σ_min standard deviations.

    Parameters
    ----------
    sigma_min, sigma_max : float
        σ at t = 0 and t = 1, in units of the standardized data.
    rho : float
        The exponent ρ: for larger ρ more levels of a uniform grid lie near the data.

    Raises
    ------
    ValueError
        Unless 0 < sigma_min < sigma_max and 0.1 < rho < 100.

    Examples
    --------
    >>> EDM().sigma(torch.tensor([0.0, 1.0]))
    tensor([2.0000e-03, 8.0000e+01])
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        low = self.sigma_min
        real_number(f"sigma_min of {name}", low, 0, math.inf, hint="try 0.002")
        real_number(f"sigma_max of {name}", self.sigma_max, low, math.inf, hint="try 80.0")
        real_number(f"rho of {name}", self.rho, 0.1, 100, hint="try 7.0")

    @property
    def _roots(self) -> tuple[float, float]:
        """σ_min^{1/ρ} and σ_max^{1/ρ} − σ_min^{1/ρ}."""
        low = self.sigma_min ** (1 / self.rho)
        high = self.sigma_max ** (1 / self.rho)
        return low, high - low

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        low, span = self._roots
        return (low + t * span) ** self.rho

    def dsigma(self, t: Tensor) -> Tensor:  # noqa: D102
        low, span = self._roots
        return self.rho * span * (low + t * span) ** (self.rho - 1)

    def time(self, phi: Tensor | float) -> Tensor:  # noqa: D102
        low, span = self._roots
        return (torch.tan(as_time(phi)) ** (1 / self.rho) - low) / span


@PROCESSES.register("cosine")
@dataclass(frozen=True)
class Cosine(Process):
    """The cosine path α = cos(πt/2), σ = sin(πt/2): the arc at constant speed.

    It is that of Nichol & Dhariwal 2021, without their offset. `ddpm_times` has their grid.

    Examples
    --------
    >>> Cosine().ends_in_noise
    True
    """

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sin(0.5 * math.pi * (1 - t))  # cos(π/2) would not round to 0

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sin(0.5 * math.pi * t)

    def dalpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return -0.5 * math.pi * self.sigma(t)

    def dsigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return 0.5 * math.pi * self.alpha(t)

    def time(self, phi: Tensor | float) -> Tensor:  # noqa: D102
        return as_time(phi) / (0.5 * math.pi)

    def ddpm_times(self, steps: int = 1000) -> Tensor:
        """Return the times at which this process has the levels of the discrete cosine schedule.

        ᾱ_i = f(i/T)/f(0) with f(τ) = cos²((τ + s)/(1 + s)·π/2), s = 0.008, and β_T, which would be
        1, is cut to 0.999 (Nichol & Dhariwal 2021, eq. 17).

        Parameters
        ----------
        steps : int
            T, the number of levels.

        Returns
        -------
        Tensor, shape (T + 1,), float64
            t_0 = 0 < t_1 < … < t_T < 1, the last one just below 1.

        Examples
        --------
        >>> abar = Cosine().alpha(Cosine().ddpm_times(1000)) ** 2
        >>> 1 - abar[1], 1 - abar[-1] / abar[-2]
        (tensor(4.1284e-05, dtype=torch.float64), tensor(0.9990, dtype=torch.float64))
        """
        s = 0.008
        tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")
        angle = 0.5 * math.pi * (tau + s) / (1 + s)
        start = angle[0]
        # sin²φ = 1 − ᾱ, without cancellation
        phi = torch.asin(
            torch.sqrt(torch.sin(angle - start) * torch.sin(angle + start)) / start.cos()
        )
        kept = angle.cos()[-2] / start.cos()
        phi[-1] = torch.acos(kept * math.sqrt(1 - 0.999))
        return self.time(phi)


@PROCESSES.register("rectified")
@dataclass(frozen=True)
class RectifiedFlow(Process):
    """The straight path α = 1 − t, σ = t of rectified flow and flow matching.

    See Liu et al. 2023 and Lipman et al. 2023. Both put noise at t = 0; here data are at t = 0, as
    for every other process.

    Examples
    --------
    >>> mean, std = RectifiedFlow().marginal(torch.ones(1), 0.5)
    >>> mean, std
    (tensor([0.5000]), tensor(0.5000))
    """

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return t.clone()

    def dalpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return -torch.ones_like(t)

    def dsigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(t)

    def time(self, phi: Tensor | float) -> Tensor:  # noqa: D102
        phi = as_time(phi)
        return torch.sin(phi) / (torch.sin(phi) + torch.cos(phi))
