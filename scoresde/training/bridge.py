r"""Schrödinger bridges: the likeliest way of a noisy particle from one distribution to another.

Of all ways to carry a source (t = 1) to the data (t = 0), the Schrödinger bridge is the one nearest
to Brownian motion σ·W in relative entropy. Its ends (x0, x1) are joined by entropic optimal
transport with regularization 2σ², and between them it is a Brownian bridge (Tong et al. 2024b).
With z = x_t/r on the arc, tan φ = t/(1 − t), ξ ~ N(0, I),

    x_t = (1 − t)·x0 + t·x1 + σ·√(t(1 − t))·ξ,
    z = cos φ·x0 + sin φ·x1 + σ·√(sin φ·cos φ)·ξ.

As a Markov process it has a drift towards either end, given by the mean of that end:

    towards the data      dx = (x − E[x0 | x])/t dt + σ dW̄,
    towards the source    dx = (E[x1 | x] − x)/(1 − t) dt + σ dW.

Their mean is the velocity of the ODE with the same marginals, and half their difference is
½σ²·score. All of these are regressions on straight pairs once the noise has been put into an end:
with the tilt τ = 1 for the first, −1 for the second and 0 for the ODE,

    x0' = x0 + ½(1 − τ)·σ·√(tan φ)·ξ,      x1' = x1 + ½(1 + τ)·σ·√(cot φ)·ξ,
    z = cos φ·x0' + sin φ·x1',

E[x1' − x0' | x_t] is the drift, and E[cos φ·x1' − sin φ·x0' | z] the network's output, as for any
flow.

So the ODE, its likelihood, `encode` and `decode` are those of any model; one network learns two
drifts (`scoresde.backbones.TwoDrifts`). The first regression has noise 1 + σ²·cos³φ/sin φ, the
second 1 + σ²·sin³φ/cos φ: each is weighted by the inverse. Levels are drawn with density ∝ 1/√(t(1
− t)), where the noise of the ODE's is greatest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common.checks import real_number
from ..model.score_sde import ScoreSDE
from ..processes.base import PROCESSES
from ..processes.paths import RectifiedFlow
from ..solvers.problem import column
from .couplings import Sinkhorn
from .objectives import OBJECTIVES, Condition, Objective, expand_rows

END_RADIANS = 1e-4


@PROCESSES.register("bridge")
@dataclass(frozen=True)
class SchrodingerBridge(RectifiedFlow):
    """The Schrödinger bridge of Brownian motion σ·W between a source and the data, or simply
    between two data sets.

    Give the model a `source` and `fit` it: entropic transport within batches joins the pairs
    ("sinkhorn", which needs `pip install scoresde[ot]`), and the model's network learns two
    drifts. `sample` follows the SDE; any ODE solver, and `log_prob`, follow the ODE with the same
    marginals.

    Parameters
    ----------
    noise : float
        σ, in standard deviations of the data: how far a particle would wander on its way. For
        small σ the ends are joined by plain optimal transport, in straight lines; for large σ at
        random.

    Raises
    ------
    TypeError, ValueError
        Unless σ > 0.

    References
    ----------
    Tong, Malkin, Fatras et al., Simulation-free Schrödinger bridges via score and flow matching,
    AISTATS 2024.

    Examples
    --------
    >>> sde = scoresde.build(SchrodingerBridge(noise=0.5), "two_drifts", shape=(2,), width=32)
    >>> sde.source = scoresde.toy.EightGaussians()
    >>> history = scoresde.fit(sde, scoresde.toy.Moons(), steps=5, batch_size=16)
    >>> scoresde.sample(sde, 3).shape, scoresde.sample(sde, 3, solver="adams").shape
    (torch.Size([3, 2]), torch.Size([3, 2]))
    """

    noise: float = 0.5
    objective: ClassVar[str] = "bridge"

    def __post_init__(self) -> None:
        real_number("noise", self.noise, 0, math.inf, hint="try 0.5, or RectifiedFlow() for none")


@OBJECTIVES.register("bridge")
@dataclass(frozen=True)
class BridgeMatching(Objective):
    """Learn both drifts of a Schrödinger bridge from pairs that entropic transport has joined (see
    `scoresde.training.bridge`).

    It is the default of `SchrodingerBridge`. Another coupling gives another path: "independent" a
    stochastic interpolant (Albergo et al. 2023), with the same distributions at its ends. Its
    likelihood and both samplers stay valid.

    References
    ----------
    Tong et al. 2024b; Shi et al., Diffusion Schrödinger bridge matching, NeurIPS 2023.

    Examples
    --------
    >>> sde = scoresde.build("bridge", "mlp", shape=(2,))
    >>> BridgeMatching().check(sde)
    Traceback (most recent call last):
    ValueError: a bridge has two drifts, and MLP takes no tilt=; try ...
    """

    kind = "bridge"

    def check(self, sde: ScoreSDE) -> None:  # noqa: D102
        if not sde.process.noise:
            raise ValueError(
                f"a bridge has noise on the way, and {sde.process} has none; try "
                "SchrodingerBridge(noise=0.5)"
            )
        if not sde.takes("tilt"):
            raise ValueError(
                f"a bridge has two drifts, and {type(sde.net).__name__} takes no tilt=; "
                "try build('bridge', 'two_drifts', shape=..., backbone='mlp')"
            )
        if sde.predict != "edm":
            raise ValueError(
                f"a bridge is learnt as velocities on the arc, predict='edm', got {sde.predict!r}"
            )
        if sde.source is None:
            raise ValueError(
                "a bridge joins two distributions, and this model has no source: set sde.source to "
                "samples or a density"
            )

    def coupling(self, sde: ScoreSDE) -> Sinkhorn:  # noqa: D102
        return Sinkhorn(reg=2 * sde.process.noise**2)

    def __call__(  # noqa: D102
        self,
        net: Callable[..., Any],
        sde: ScoreSDE,
        z0: Tensor,
        eps: Tensor,
        q: Tensor,
        condition: Condition,
        progress: float,
        generator: torch.Generator,
    ) -> Tensor:
        sigma = sde.process.noise
        phi = sde.process.phi(torch.sin(0.5 * math.pi * q) ** 2)
        phi = phi.clamp(END_RADIANS, 0.5 * math.pi - END_RADIANS)
        cos = column(torch.cos(phi), z0)
        sin = column(torch.sin(phi), z0)
        xi = sigma * torch.randn(z0.shape, generator=generator, device=z0.device, dtype=z0.dtype)
        z = cos * z0 + sin * eps + (sin * cos).sqrt() * xi
        x, label, _ = sde.inputs(z, phi, next(sde.net.parameters()).dtype)
        out = -net(x, label, apart=True, **expand_rows(condition, len(x)))
        out = out.reshape(2, *z0.shape).to(z0.dtype)
        straight = cos * eps - sin * z0
        to_data = straight + cos * (cos / sin).sqrt() * xi
        to_source = straight - sin * (sin / cos).sqrt() * xi
        targets = torch.stack([to_data, to_source])
        weights = torch.stack([sin / (sin + sigma**2 * cos**3), cos / (cos + sigma**2 * sin**3)])
        value: Tensor = (weights * (out - targets).square()).mean()
        return value
