"""Learning where the ODE leads: flow maps on the arc, which mean flows and consistency models use.

The flow map F(z, φ, s) takes a state z at the angle φ along dz/dφ = v(z, φ) to the angle s = φ − δ.
It is written as a turn,

    F(z, φ, s) = cos δ·z − sin δ·w(z, φ, s),        w(z, φ, φ) = v(z, φ),

so that for s = φ the network w is an ordinary velocity, and for s = 0 F is the usual
x̂0 = cos φ·z − sin φ·w. F is right if and only if it stays the same while its start moves along the
path, dF/dφ = 0 at fixed s, and dF/dφ is

    R = cos δ·(v − w) − sin δ·(z + dw/dφ),        dw/dφ = ∂w/∂φ + (v·∇)w.

For δ = 0 this is the error of flow matching. The loss E‖w − sg(w + R)‖²/D, where sg stops
gradients, moves w by R, at all δ alike: for small δ by the MeanFlow identity (Geng et al. 2025,
eq. 6), for s = 0 as continuous-time consistency training does (Lu & Song 2025), both in a form that
is finite throughout.

R is linear in v, so v = E[cos φ·ε − sin φ·x0 | z] may be replaced by that of a single pair. The
first term does so; along dw the model's own v = sg w(z, φ, φ) has less variance (Geng et al.
2025b). That term is a central difference, exact to O(h²),

    dw/dφ ≈ (w(z + h·v, φ + h, s) − w(z − h·v, φ − h, s))/2h,

at two evaluations without a graph: cheaper than forward-mode differentiation, and it asks nothing
of the network but float32 (in half precision the difference drowns in rounding).

In a batch half of the rows have s = φ, with the distribution of φ that denoising has. The others
have φ uniform on the arc, because one step starts from the noise end; s is φ_min (the data) for a
share of them, and uniform between φ_min and φ for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.checks import real_number
from ..model.score_sde import ScoreSDE
from ..solvers.problem import column
from .noise_levels import NOISES
from .objectives import OBJECTIVES, Condition, Objective, expand_rows, slice_rows

DIFFERENCE_RADIANS = 0.01

AverageVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]


def average_velocity(
    net: Callable[..., Any], sde: ScoreSDE, condition: Condition
) -> AverageVelocity:
    """Return w(z, φ, s) of a network that takes a span."""
    parameter = next(sde.net.parameters(), None)

    def w(z: Tensor, phi: Tensor, s: Tensor) -> Tensor:
        dtype = z.dtype if parameter is None else parameter.dtype
        x, label, _ = sde.inputs(z, s, dtype)
        span = (phi - s).to(x.dtype)
        out: Tensor = net(x, label, span=span, **expand_rows(condition, len(x)))
        return -out.reshape(z.shape).to(z.dtype)

    return w


def drift(
    w: AverageVelocity, z: Tensor, v: Tensor, phi: Tensor, s: Tensor, h: float = DIFFERENCE_RADIANS
) -> Tensor:
    """Return dw/dφ along a velocity at fixed s, by a central difference."""
    both = w(torch.cat([z + h * v, z - h * v]), torch.cat([phi + h, phi - h]), torch.cat([s, s]))
    ahead, behind = both.chunk(2)
    return (ahead - behind) / (2 * h)


def residual(w: Tensor, dw: Tensor, z: Tensor, v: Tensor, span: Tensor) -> Tensor:
    """Return R = cos δ·(v − w) − sin δ·(z + dw/dφ), by which a flow map fails to be constant."""
    cos = column(torch.cos(span), z)
    sin = column(torch.sin(span), z)
    return cos * (v - w) - sin * (z + dw)


@OBJECTIVES.register("meanflow")
@dataclass(frozen=True)
class MeanFlow(Objective):
    """Learn the flow map between any two levels, the velocity included: MeanFlow, written as turns
    on the arc (see `scoresde.training.flow_maps`).

    It takes a network with a span, such as `build(process, "two_times", shape=...,
    backbone="mlp")`, and costs about twice a denoising step. The model has a velocity, so that ODE
    solvers and likelihoods stay valid, and is sampled by "flow_map" in one step or a few.

    Parameters
    ----------
    to_data : float
        Share of the jumps that go all the way to the data: a large share favours one step, a small
        one several.

    Raises
    ------
    TypeError, ValueError
        Unless 0 ≤ to_data ≤ 1.

    References
    ----------
    Geng, Deng, Bai, Kolter and He, Mean flows for one-step generative modeling, 2025, eq. 6 and
    algorithm 1; Geng et al., Improved mean flows, 2025b; Boffi, Albergo and Vanden-Eijnden, Flow
    map matching, 2024.

    Examples
    --------
    >>> sde = scoresde.build("rectified", "two_times", shape=(2,), width=32)
    >>> history = scoresde.fit(sde, scoresde.toy.Moons(), objective="meanflow", steps=20)
    >>> scoresde.sample(sde, 3, solver="flow_map", steps=1).shape
    torch.Size([3, 2])
    """

    to_data: float = 0.5
    kind = "flow_map"

    def __post_init__(self) -> None:
        real_number("to_data", self.to_data, 0, 1, closed=True, hint="try 0.5")

    def check(self, sde: ScoreSDE) -> None:  # noqa: D102
        if not sde.takes("span"):
            raise ValueError(
                f"a flow map has a second time, and {type(sde.net).__name__} takes no span=; "
                "try build(process, 'two_times', shape=..., backbone='mlp')"
            )
        if sde.predict != "edm":
            raise ValueError(
                f"a flow map is learnt as a velocity on the arc, predict='edm', got {sde.predict!r}"
            )

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
        # These rows may be a piece of a batch whose gradients are accumulated, and q is stratified
        # over all of it. So only its order, which is random, is used: rows are sorted by it, and
        # the first m of them lie on the diagonal s = φ.
        rows = q.argsort()
        n = len(q)
        m = n // 2
        z0 = z0[rows]
        eps = eps[rows]
        condition = slice_rows(condition, rows)
        jumps = slice_rows(condition, slice(m, None))
        jitter = torch.rand(n, generator=generator, device=q.device, dtype=torch.float64)
        quantiles = (torch.arange(n, device=q.device) + jitter) / n
        phi, s = self.angles(sde, quantiles, generator)
        cos = column(torch.cos(phi), z0)
        sin = column(torch.sin(phi), z0)
        z = cos * z0 + sin * eps
        v = cos * eps - sin * z0
        w = average_velocity(net, sde, condition)(z, phi, s)
        with torch.no_grad():
            along = average_velocity(net, sde, jumps)(z[m:], phi[m:], phi[m:])
            twice = {
                name: value if len(value) == 1 else torch.cat([value, value])
                for name, value in jumps.items()
            }
            dw = torch.zeros_like(z)
            dw[m:] = drift(average_velocity(net, sde, twice), z[m:], along, phi[m:], s[m:])
            target = w + residual(w, dw, z, v, phi - s)
        return torch.nn.functional.mse_loss(w, target)

    def angles(
        self, sde: ScoreSDE, q: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Draw the angles φ and s of a batch: with s = φ where q < ½, with s < φ elsewhere.

        Parameters
        ----------
        sde : ScoreSDE
        q : Tensor, shape (B,), float64
            Quantiles in [0, 1].
        generator : torch.Generator or None

        Returns
        -------
        phi, s : Tensor, shape (B,), float64

        Examples
        --------
        >>> sde = scoresde.build("rectified", "two_times", shape=(2,))
        >>> q = torch.tensor([0.2, 0.5, 0.75, 1.0]).double()
        >>> phi, s = MeanFlow(to_data=1.0).angles(sde, q, None)
        >>> phi[2:], s[2:]
        (tensor([0.7854, 1.5708], dtype=torch.float64), tensor([0., 0.], dtype=torch.float64))
        """
        low = sde.phi_min
        high = sde.process.phi_max
        diagonal = q < 0.5
        usual = NOISES["lognormal"](sde.process, (2 * q).clamp_max(1))
        phi = torch.where(diagonal, usual, low + (high - low) * (2 * q - 1))
        way = torch.rand(len(q), generator=generator, device=q.device, dtype=torch.float64)
        # the share of the way from φ_min to φ at which s is
        way = ((way - self.to_data) / max(1 - self.to_data, 1e-9)).clamp(0, 1)
        return phi, torch.where(diagonal, phi, low + (phi - low) * way)


@OBJECTIVES.register("consistency")
@dataclass(frozen=True)
class ConsistencyTraining(MeanFlow):
    """Learn where the ODE ends, from every level: consistency training in continuous time, without
    a teacher.

    It is "meanflow" with all jumps going to the data. The same network learns the velocity, which
    the consistency loss follows (as in Peng et al. 2025). The model is sampled by "consistency" in
    one step, or in a few with fresh noise between.

    References
    ----------
    Song, Dhariwal, Chen and Sutskever, Consistency models, ICML 2023; Lu and Song, Simplifying,
    stabilizing and scaling continuous-time consistency models, ICLR 2025; Peng et al.,
    Flow-anchored consistency models, 2025.

    Examples
    --------
    >>> sde = scoresde.build("rectified", "two_times", shape=(2,), width=32)
    >>> history = scoresde.fit(sde, scoresde.toy.Moons(), objective="consistency", steps=20)
    >>> scoresde.sample(sde, 3, steps=1).shape
    torch.Size([3, 2])
    """

    to_data: float = 1.0
    kind = "endpoint"
