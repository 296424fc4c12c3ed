"""The times of a fixed number of steps, from 1, or where a solve begins, to 0.

A "grid" is the list of times, a "spacing" the name of the rule that makes it (other libraries call
both "scheduler"). λ = log(α/σ) is infinite at an end where α or σ vanishes: `logsnr` and `karras`
then space their nodes over λ ∈ [−5, 6] and add the end point.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..common.checks import check_budget, whole_number
from ..common.names import choose
from .base import Process

LAMBDA_RANGE = (-5.0, 6.0)  # of nodes in λ where an end is infinite


class Shortened(Process):
    """The part of a process from t = 0 to a time `begin`, in the time t/begin."""

    def __init__(self, process: Process, begin: float) -> None:
        self.process = process
        self.begin = begin

    def alpha(self, t: Tensor) -> Tensor:
        """α of the whole process."""
        return self.process.alpha(self.begin * t)

    def sigma(self, t: Tensor) -> Tensor:
        """σ of the whole process."""
        return self.process.sigma(self.begin * t)

    def time(self, phi: Tensor | float) -> Tensor:
        """The time of the whole process, in units of `begin`."""
        return self.process.time(phi) / self.begin


def _linspace(start: float, end: float, count: int) -> Tensor:
    """Equally spaced numbers in float64."""
    return torch.linspace(start, end, count, dtype=torch.float64, device="cpu")


def _arc(process: Process, steps: int) -> Tensor:
    """Uniform in φ."""
    return process.time(_linspace(process.phi_max, process.phi_min, steps + 1))


def _graded(process: Process, steps: int) -> Tensor:
    """Denser at both ends: φ(0) + (φ(1) − φ(0))·w, w = v^a/(v^a + (1 − v)^b), v uniform."""
    v = _linspace(1, 0, steps + 1)
    w = v**2.25 / (v**2.25 + (1 - v) ** 1.25)
    return process.time(process.phi_min + (process.phi_max - process.phi_min) * w)


def _time(process: Process, steps: int) -> Tensor:
    """Uniform in t."""
    return _linspace(1, 0, steps + 1)


def _warped(
    process: Process,
    steps: int,
    warp: Callable[[Tensor], Tensor],
    unwarp: Callable[[Tensor], Tensor],
) -> Tensor:
    """Uniform in warp(σ/α) between the ends; where an end is infinite, to the bound of λ."""
    low = process.phi_min or math.atan(math.exp(-LAMBDA_RANGE[1]))
    high = process.phi_max
    if process.ends_in_noise:
        high = math.atan(math.exp(-LAMBDA_RANGE[0]))
    low = min(low, 0.5 * (process.phi_min + high))  # a solve may begin below the bound of λ
    extra = int(process.phi_min == 0) + int(process.ends_in_noise)
    if steps <= extra:
        return _time(process, steps)
    ends = warp(torch.tan(torch.tensor([high, low], dtype=torch.float64, device="cpu")))
    nodes = unwarp(_linspace(float(ends[0]), float(ends[1]), steps + 1 - extra))
    times = [process.time(torch.atan(nodes))]
    if process.ends_in_noise:
        times.insert(0, torch.ones(1, dtype=torch.float64, device="cpu"))
    if process.phi_min == 0:
        times.append(torch.zeros(1, dtype=torch.float64, device="cpu"))
    return torch.cat(times)


def _logsnr(process: Process, steps: int) -> Tensor:
    """Uniform in λ."""
    return _warped(process, steps, torch.log, torch.exp)


def _karras(process: Process, steps: int, rho: float = 7.0) -> Tensor:
    """(σ/α)^{1/ρ} uniform (Karras et al. 2022, eq. 5)."""
    return _warped(process, steps, lambda ratio: ratio ** (1 / rho), lambda root: root**rho)


def _ddpm(process: Process, steps: int) -> Tensor:
    """Every k-th of DDPM's 1,000 levels, of improved DDPM's (Cosine), or of a chain's own."""
    levels = getattr(process, "ddpm_times", None)
    if levels is None:
        raise ValueError(
            f"spacing='ddpm' is the grid of a VPSDE, Cosine or DDPM, got {process!r}; try 'time'"
        )
    count = getattr(process, "steps", 1000)
    if count % steps:
        raise ValueError(
            f"spacing='ddpm' takes a number of steps that divides {count}, got {steps}"
        )
    times: Tensor = levels(count)
    return times[:: count // steps].flip(0)


SPACINGS: dict[str, Callable[[Process, int], Tensor]] = {
    "arc": _arc,
    "graded": _graded,
    "time": _time,
    "logsnr": _logsnr,
    "karras": _karras,
    "ddpm": _ddpm,
}
"""Rules by name: functions (process, steps) -> steps + 1 decreasing times in float64.

- `arc`: uniform in φ.
- `graded`: denser at both ends, φ = φ(0) + (φ(1) − φ(0))·w, w = v^a/(v^a + (1 − v)^b) with
  a = 2.25 and b = 1.25, v uniform.
- `time`: uniform in t.
- `logsnr`: uniform in λ.
- `karras`: (σ/α)^{1/7} uniform (Karras et al. 2022, eq. 5).
- `ddpm`: every k-th of DDPM's 1,000 levels; for `Cosine`, of those of improved DDPM; for `DDPM`, of
  its own.
"""


def grid(process: Process, steps: int, spacing: str, begin: float = 1.0) -> Tensor:
    """Return the times of a fixed grid, from noise at t = `begin` to data."""
    steps = whole_number("steps", steps)
    check_budget(f"steps={steps}", 32.0 * steps, calls=steps)
    choose("spacing", spacing, SPACINGS)
    if begin < 1:
        process = Shortened(process, begin)
    times = SPACINGS[spacing](process, steps)
    if spacing != "ddpm":  # without rounding at the ends
        times[0] = 1.0
        times[-1] = 0.0
    return begin * times
