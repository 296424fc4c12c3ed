r"""The discrete chains of DDPM as processes, continued between their levels.

A chain of T steps adds variances β_1 … β_T. Its levels, ᾱ_i = Π_{j≤i} (1 − β_j), are those of this
process at t = i/T, and φ = atan(√(1 − ᾱ)/√ᾱ) is linear in t between two of them:

    α(t) = cos φ(t),    σ(t) = sin φ(t),    φ(i/T) = φ_i,    φ_0 = 0.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.checks import brief_repr, real_number, true_or_false, whole_number
from ..common.names import choose
from .base import PROCESSES, Process, as_time

Betas = Callable[[float, float, int], Tensor]
TRAINED = "trained"
MOST_LEVELS = 100_000
COSINE_OFFSET = 0.008
MOST_BETA = 0.999


def _linear(start: float, end: float, steps: int) -> Tensor:
    """Return β from `start` to `end` in equal steps (Ho et al. 2020)."""
    return torch.linspace(start, end, steps, dtype=torch.float64, device="cpu")


def _scaled_linear(start: float, end: float, steps: int) -> Tensor:
    """Return β whose root goes in equal steps (Rombach et al. 2022)."""
    return _linear(math.sqrt(start), math.sqrt(end), steps) ** 2


def _cosine(start: float, end: float, steps: int) -> Tensor:
    """Return β of ᾱ = cos²((τ + s)/(1 + s)·π/2), cut to 0.999 (Nichol & Dhariwal 2021)."""
    tau = _linear(0, 1, steps + 1)
    alpha_bar = torch.cos((tau + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=MOST_BETA)


def _sigmoid(start: float, end: float, steps: int) -> Tensor:
    """Return β along a sigmoid from −6 to 6 (Xu et al., GeoDiff, 2022)."""
    return torch.sigmoid(_linear(-6, 6, steps)) * (end - start) + start


BETAS: dict[str, Betas] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
    "sigmoid": _sigmoid,
}
"""Rules for β by diffusers' names, functions of (beta_start, beta_end, steps)."""


def _numbers(values: Any) -> tuple[float, ...]:
    """β as floats; raise for anything but a sequence of numbers."""
    try:
        if isinstance(values, str | bytes):
            raise TypeError
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise TypeError(f"trained is a sequence of numbers β, got {brief_repr(values)}") from None


@dataclass(frozen=True, repr=False)
class DDPM(Process):
    """A discrete chain of T noise levels, "ddpm:RULE", continued in between.

    At t = i/T it has the i-th level of the chain. Between two levels φ is linear in t, so that α̇
    and σ̇ jump at the levels. It is for networks that were trained on such a chain elsewhere; a new
    network does not need it.

    Parameters
    ----------
    betas : str
        The rule for β, by diffusers' names: "linear", "scaled_linear", "squaredcos_cap_v2",
        "sigmoid"; or "trained" for the numbers in `trained`.
    beta_start, beta_end : float
        β_1 and β_T; the cosine rule ignores them.
    steps : int
        T.
    trained : sequence of float, optional
        β_1 … β_T, in place of a rule.
    zero_snr : bool
        Whether √ᾱ is shifted and scaled so that ᾱ_T = 0 (Lin et al. 2024). Predicting ε is then
        singular.

    Raises
    ------
    ValueError
        Unless all β lie in (0, 1).

    References
    ----------
    Ho et al. 2020. Nichol & Dhariwal 2021. Lin et al., Common diffusion noise schedules and sample
    steps are flawed, WACV 2024.

    Examples
    --------
    >>> process = DDPM("linear")
    >>> process.sigma(process.ddpm_times()[1]) ** 2
    tensor(0.0001, dtype=torch.float64)
    >>> scoresde.PROCESSES.build("ddpm:scaled_linear", beta_end=0.012)
    DDPM('scaled_linear', beta_start=0.0001, beta_end=0.012, steps=1000)
    """

    betas: str
    beta_start: float = 1e-4
    beta_end: float = 0.02
    steps: int = 1000
    trained: tuple[float, ...] | None = None
    zero_snr: bool = False

    def __post_init__(self) -> None:
        choose("betas", self.betas, [*BETAS, TRAINED])
        true_or_false("zero_snr", self.zero_snr)
        if (self.betas == TRAINED) != (self.trained is not None):
            raise ValueError("the numbers trained= go with betas='trained': give both or neither")
        if self.trained is not None:
            values = _numbers(self.trained)
            object.__setattr__(self, "trained", values)
            object.__setattr__(self, "steps", len(values))
        steps = whole_number("steps", self.steps)
        if steps > MOST_LEVELS:
            raise ValueError(f"steps is at most {MOST_LEVELS}, got {steps}")
        for name in ("beta_start", "beta_end"):
            real_number(name, getattr(self, name), 0, 1, hint="try 0.02")
        beta = self._betas()
        if not bool(((beta > 0) & (beta < 1)).all()):
            raise ValueError(
                f"every β lies between 0 and 1, got {float(beta.min()):g} to {float(beta.max()):g}"
            )

    def __repr__(self) -> str:
        """The call that makes it; numbers that were trained are counted."""
        if self.trained is not None:
            text = f"'{TRAINED}', {self.steps} numbers"
        else:
            text = f"{self.betas!r}, beta_start={self.beta_start:g}, beta_end={self.beta_end:g}, "
            text += f"steps={self.steps}"
        return f"DDPM({text}{', zero_snr=True' if self.zero_snr else ''})"

    def _betas(self) -> Tensor:
        """β_1 … β_T, before the last level is moved."""
        if self.trained is not None:
            return torch.tensor(self.trained, dtype=torch.float64, device="cpu")
        return BETAS[self.betas](self.beta_start, self.beta_end, self.steps)

    @functools.cached_property
    def angles(self) -> Tensor:
        """φ_0 = 0 … φ_T in radians, float64."""
        log_alpha = 0.5 * torch.log1p(-self._betas()).cumsum(0)
        alpha = torch.exp(log_alpha)
        sigma = torch.sqrt(-torch.expm1(2 * log_alpha))
        if self.zero_snr and self.steps > 1:
            alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
            later = torch.sqrt((1 - alpha) * (1 + alpha))
            sigma = torch.cat([sigma[:1], later[1:]])
        zero = torch.zeros(1, dtype=torch.float64, device="cpu")
        return torch.cat([zero, torch.atan2(sigma, alpha)])

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """φ(t) and dφ/dt, in the dtype of t."""
        nodes = self.angles.to(t.device)
        place = t.to(nodes.dtype) * self.steps
        i = place.detach().floor().clamp(0, self.steps - 1).long()
        step = nodes[i + 1] - nodes[i]
        return (nodes[i] + (place - i) * step).to(t.dtype), (self.steps * step).to(t.dtype)

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sin(0.5 * math.pi - self._at(t)[0])  # cos(π/2) would not round to 0

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sin(self._at(t)[0])

    def dalpha(self, t: Tensor) -> Tensor:  # noqa: D102
        phi, slope = self._at(t)
        return -torch.sin(phi) * slope

    def dsigma(self, t: Tensor) -> Tensor:  # noqa: D102
        phi, slope = self._at(t)
        return torch.cos(phi) * slope

    def time(self, phi: Tensor | float) -> Tensor:  # noqa: D102
        phi = as_time(phi)
        nodes = self.angles.to(phi.device)
        i = torch.searchsorted(nodes, phi.detach().contiguous(), right=True) - 1
        i = i.clamp(0, self.steps - 1)
        return (i + (phi - nodes[i]) / (nodes[i + 1] - nodes[i])) / self.steps

    def ddpm_times(self, steps: int | None = None) -> Tensor:
        """Return the times of the levels, t_i = i/T.

        Parameters
        ----------
        steps : int, optional
            T; other numbers are refused.

        Returns
        -------
        Tensor, shape (T + 1,), float64

        Raises
        ------
        ValueError
            For another number of levels than the chain has.

        Examples
        --------
        >>> DDPM("linear", steps=4).ddpm_times()
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
        """
        if steps not in (None, self.steps):
            raise ValueError(f"this chain has {self.steps} levels, and not {steps}")
        return torch.arange(self.steps + 1, dtype=torch.float64, device="cpu") / self.steps


PROCESSES.family("ddpm", DDPM)
