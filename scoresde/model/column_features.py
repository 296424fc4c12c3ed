"""How fine the structure of each column of data is, and the Fourier features that show it.

The empirical characteristic function of N rows, φ̂(f) = mean exp(2πi·f·u) of a standardized column
u, is noise where the density has no structure as fine as 1/f: N·|φ̂|² is then exponential of mean
1. A column has structure in an octave of f where the mean over the octave is well above 1. The
edges of rounded numbers have it, also once noise was added to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

OCTAVES = 8
"""Frequencies ½, 1, 2 … 64 cycles per standard deviation of a column."""

LOWEST = 0.5
ALWAYS = 3
"""Octaves that every column is given."""

PROBED = 32
"""Frequencies in an octave."""

SIGNIFICANT = 1.0 + 5.0 / math.sqrt(PROBED)

NUMBERS = 2**17
"""Numbers of the data that are looked at."""


def octaves_of(u: Tensor) -> list[int]:
    """How many octaves the structure of each standardized column u (N, D) reaches up to."""
    count = len(u)
    found = [ALWAYS] * u.shape[1]
    for octave in range(ALWAYS, OCTAVES):
        low = LOWEST * 2 ** (octave - 0.5)
        f = torch.linspace(low, 2 * low, PROBED + 1, device="cpu")[1:]
        power = torch.zeros(u.shape[1], dtype=u.dtype, device=u.device)
        for one in f.tolist():
            phase = (2 * math.pi * one) * u
            power += phase.cos().mean(0).square() + phase.sin().mean(0).square()
        strong = count * power / PROBED > SIGNIFICANT
        for column in strong.nonzero()[:, 0].tolist():
            found[column] = octave + 1
    return [max(found[i], _octaves_of_steps(u[:, i])) for i in range(u.shape[1])]


def _octaves_of_steps(u: Tensor) -> int:
    """Octaves up to ½ cycle in the smallest step between the values of a column with ties."""
    values = torch.unique(u)  # sorted
    if len(values) < 2 or 2 * len(values) > len(u):
        return 0
    step = float(values.diff().amin())
    finest = math.ceil(math.log2(max(0.5 / max(step, 1e-9) / LOWEST, 1.0))) + 1
    return min(finest, OCTAVES)


def column_frequencies(u: Tensor, directions_of: Callable[[Tensor], Tensor], slots: int) -> Tensor:
    """Frequencies (d, k ≤ slots) of columns in the units of states: low ones first.

    u (N, D) are standardized columns, and states z (B, d) have the columns u = z·directionsᵀ.
    """
    octaves = octaves_of(u)
    chosen = [
        (LOWEST * 2**octave, column)
        for octave in range(OCTAVES)
        for column in range(u.shape[1])
        if octaves[column] > octave
    ][:slots]
    numbers, columns = (torch.tensor(each, device="cpu") for each in zip(*chosen, strict=True))
    directions = directions_of(columns).cpu()
    return 2 * math.pi * (numbers.to(directions).unsqueeze(1) * directions).T


def columned(net: nn.Module, shape: tuple[int, ...]) -> list[Any]:
    """The parts of a network that have Fourier features along the columns of such samples."""
    return [
        part
        for part in net.modules()
        if getattr(part, "axes", 0) and getattr(part, "shape", None) == shape
    ]
