"""Denoising as a regression: the one loss of all objectives of the field.

With z = cos φ·x0 + sin φ·ε and the network's output turned into a velocity on the arc (see
`scoresde.processes.prediction`), denoising score matching and flow matching are

    L = E_{x0, ε, φ} w(φ)·e²,      e² = ‖(out − a·x0 − b·ε)/det‖²/D,

the squared error of the arc velocity. The error of x̂0 is sin φ·e, that of ε̂ is cos φ·e. Papers
differ in the weight w and the distribution of φ; both are rows of a table. To a network this is a
regression of a·x0 + b·ε on (x_t, t), and `denoising_examples` states it as one, for as many
training steps at a time as one likes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..common.checks import brief_repr
from ..common.names import choose
from ..model.gaps import modelled
from ..model.network import misshapen
from ..model.score_sde import ScoreSDE
from ..processes.base import Process
from .objectives import Condition, expand_rows, slice_rows

Weight = Callable[[Process, Tensor], Tensor]

SNR_CAP = 5.0


def _turn(process: Process, t: Tensor) -> Tensor:
    """r²·dφ/dt = α·dσ/dt − σ·dα/dt."""
    return process.alpha(t) * process.dsigma(t) - process.sigma(t) * process.dalpha(t)


def _likelihood(process: Process, phi: Tensor) -> Tensor:
    t = process.time(phi)
    speed = _turn(process, t) / process.radius(t) ** 2  # dφ/dt
    return 2 * speed * torch.cos(phi) / torch.sin(phi)


def _velocity(process: Process, phi: Tensor) -> Tensor:
    t = process.time(phi)
    return (_turn(process, t) / process.radius(t)) ** 2


def _min_snr(process: Process, phi: Tensor) -> Tensor:
    return torch.minimum(torch.cos(phi) ** 2, SNR_CAP * torch.sin(phi) ** 2)


WEIGHTS: dict[str, Weight] = {
    "edm": lambda process, phi: torch.ones_like(phi),
    "sigma2": lambda process, phi: torch.cos(phi) ** 2,
    "likelihood": _likelihood,
    "min_snr": _min_snr,
    "velocity": _velocity,
}
"""Weights w(φ) of the squared arc-velocity error, by name:

- `edm`: 1 (Karras et al. 2022, λ(σ) at σ_data = 1).
- `sigma2`: cos²φ, that is σ²·‖score error‖² = ‖ε error‖² (Song et al. 2021, eq. 7 with λ = σ²).
- `likelihood`: g²·‖score error‖² (Song et al. 2021b; the bound on log p when t is uniform).
- `min_snr`: min(SNR, 5)·‖x0 error‖² (Hang et al. 2023).
- `velocity`: ‖dx/dt error‖² (flow matching, Lipman et al. 2023).
"""


@dataclass(frozen=True)
class Examples:
    """Rows of a regression: weight·(net(x, t, **condition) − target)² is to be small."""

    x: Tensor  # (B, *shape)
    t: Tensor  # (B,)
    target: Tensor  # (B, n)
    weight: Tensor | None = None  # (B, 1), or (B, n) where rows have gaps
    condition: Condition = field(default_factory=dict)

    def __getitem__(self, rows: slice) -> Examples:
        """Return some of the rows."""
        weight = None if self.weight is None else self.weight[rows]
        condition = slice_rows(self.condition, rows)
        return Examples(self.x[rows], self.t[rows], self.target[rows], weight, condition)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.x)


@dataclass(frozen=True)
class AdaptiveExamples:
    """Rows of a regression at adaptive noise levels."""

    inner: Examples
    ratio: Tensor  # (B,), the factors 1/p
    bins: Tensor  # (B,)

    def __getitem__(self, rows: slice) -> AdaptiveExamples:
        """Return some of the rows."""
        return AdaptiveExamples(self.inner[rows], self.ratio[rows], self.bins[rows])


def denoising_examples(
    sde: ScoreSDE,
    z0: Tensor,
    eps: Tensor,
    phi: Tensor,
    weight: str,
    condition: Condition,
) -> Examples:
    """State denoising of standardized samples at noise levels φ as a regression."""
    c = sde.coefficients(phi).to(z0)
    parameter = next(sde.net.parameters(), z0)
    x, t, _ = sde.inputs(c.cos * z0 + c.sin * eps, phi, parameter.dtype)
    factor: Any = None
    if weight != "edm":
        factor = WEIGHTS[weight](sde.process, phi).to(z0).unsqueeze(1)
    if sde.predict != "edm":  # whose determinant is −1
        factor = 1 / c.det**2 if factor is None else factor / c.det**2
    if sde.interface.takes_gaps and "seen" in condition:
        counted = modelled(sde, condition["seen"])
        factor = counted if factor is None else factor * counted
    return Examples(x, t, c.a * z0 + c.b * eps, factor, condition)


def network_output(net: Callable[..., Any], examples: Examples) -> Tensor:
    """Return a network's output for examples, in the target's shape and dtype."""
    x = examples.x
    target = examples.target
    out = net(x, examples.t, **expand_rows(examples.condition, len(x)))
    if not isinstance(out, Tensor) or out.shape not in (x.shape, target.shape):
        raise ValueError(misshapen(x, out))
    if out.shape != target.shape:
        out = out.reshape(target.shape)
    return out if out.dtype == target.dtype else out.to(target.dtype)


def squared_errors(out: Tensor, examples: Examples) -> Tensor:
    """Return the weighted squared error (B,) of each example, a mean over its dimensions."""
    square = (out - examples.target).square()
    return (square if examples.weight is None else examples.weight * square).mean(1)


def mean_error(out: Tensor, examples: Examples) -> Tensor:
    """Return the mean of `squared_errors`."""
    if examples.weight is None:
        return torch.nn.functional.mse_loss(out, examples.target)
    return (examples.weight * (out - examples.target).square()).mean()


def check_weight(weight: object) -> None:
    """Raise unless this is the name of a weight."""
    if not isinstance(weight, str):
        raise TypeError(f"weight is a name, such as 'edm', got {brief_repr(weight)}")
    choose("weight", weight, WEIGHTS)
