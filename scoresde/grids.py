"""Where a fixed number of steps puts its nodes: times from 1 to 0, by name.

"Grid" is the list of times and "spacing" the name of the rule that makes it (peers call both "scheduler").
λ = log(α/σ) is infinite at an end where α or σ vanishes: `logsnr` and `karras` then space their nodes over λ ∈ [−5, 6]
and put the end point behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .checks import affordable, whole
from .process import Process
from .registry import choose

LAMBDA = (-5.0, 6.0)


def _arc(process: Process, steps: int) -> Tensor:
    return process.time(torch.linspace(process.phi_max, process.phi_min, steps + 1, dtype=torch.float64, device="cpu"))


def _graded(process: Process, steps: int) -> Tensor:
    v = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")
    w = v**2 / (v**2 + (1 - v) ** (4 / 3))
    return process.time(process.phi_min + (process.phi_max - process.phi_min) * w)


def _time(process: Process, steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")


def _warped(process: Process, steps: int, warp: Callable[[Tensor], Tensor], unwarp: Callable[[Tensor], Tensor]) -> Tensor:
    """Uniform in warp(σ/α) between the ends, or between the bounds of λ where an end is infinite."""
    low = process.phi_min or math.atan(math.exp(-LAMBDA[1]))
    high = math.atan(math.exp(-LAMBDA[0])) if process.ends_in_noise else process.phi_max
    extra = int(process.phi_min == 0) + int(process.ends_in_noise)
    if steps <= extra:
        return _time(process, steps)
    ends = warp(torch.tan(torch.tensor([high, low], dtype=torch.float64, device="cpu")))
    inner = process.time(
        torch.atan(unwarp(torch.linspace(float(ends[0]), float(ends[1]), steps + 1 - extra, dtype=torch.float64, device="cpu")))
    )
    one, zero = torch.ones(1, dtype=torch.float64, device="cpu"), torch.zeros(1, dtype=torch.float64, device="cpu")
    return torch.cat([one] * process.ends_in_noise + [inner] + [zero] * (process.phi_min == 0))


def _logsnr(process: Process, steps: int) -> Tensor:
    return _warped(process, steps, torch.log, torch.exp)


def _karras(process: Process, steps: int, rho: float = 7.0) -> Tensor:
    return _warped(process, steps, lambda ratio: ratio ** (1 / rho), lambda root: root**rho)


def _ddpm(process: Process, steps: int) -> Tensor:
    levels = getattr(process, "ddpm_times", None)
    if levels is None:
        raise ValueError(f"spacing='ddpm' is the discrete grid of a VPSDE, got {process!r}; try 'time'")
    if 1000 % steps:
        raise ValueError(f"spacing='ddpm' takes a number of steps that divides 1000, got {steps}")
    times: Tensor = levels(1000)
    return times[:: 1000 // steps].flip(0)


SPACINGS: dict[str, Callable[[Process, int], Tensor]] = {
    "arc": _arc,
    "graded": _graded,
    "time": _time,
    "logsnr": _logsnr,
    "karras": _karras,
    "ddpm": _ddpm,
}
"""Rules by name, functions (process, steps) -> steps + 1 decreasing float64 times: `arc` (uniform in φ), `graded` (denser at both
ends: φ = φ(0) + (φ(1) − φ(0))·w, w = v²/(v² + (1 − v)^{4/3}), v uniform), `time` (uniform in t), `logsnr` (uniform in
λ), `karras` ((σ/α)^{1/7} uniform, Karras et al. 2022 eq. 5), `ddpm` (every k-th of DDPM's 1,000 levels)."""


def grid(process: Process, steps: int, spacing: str) -> Tensor:
    """Return the times of a fixed grid, from noise to data.

    Parameters
    ----------
    process : Process
    steps : int
        Number of steps, at least 1.
    spacing : str
        A key of `SPACINGS`.

    Returns
    -------
    Tensor, shape (steps + 1,), float64
        From 1 down to 0; "ddpm" starts at its own last level, t = 1.003 (see `VPSDE.ddpm_times`).

    Raises
    ------
    TypeError, ValueError
        For a number of steps that is not a positive integer, or an unknown spacing.

    Examples
    --------
    >>> from scoresde import VPSDE
    >>> grid(VPSDE(), 4, "time")
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    steps = whole("steps", steps)
    affordable(f"steps={steps}", 32.0 * steps, calls=steps)
    choose("spacing", spacing, SPACINGS)
    times = SPACINGS[spacing](process, steps)
    if spacing != "ddpm":  # pin the ends against rounding
        times[0], times[-1] = 1.0, 0.0
    return times
