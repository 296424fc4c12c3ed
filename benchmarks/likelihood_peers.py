"""log p(x) by the peers: each one's likelihood, through its public interface, of the same ODE as
ours.

A `Path` is one way to write that ODE, dx/du = right(x, u) from data at u = start to noise at u =
stop, with the law that x has there: log p(x) = log p(x_stop) + ∫ div right du. The same velocity
on the arc, v(z, φ), can be written as

    arc         u = φ                               dz/dφ = v, the form that ours solves straight
    x = (1 − u)·x0 + u·ε                dx/du = ε̂ − x̂0, flow matching's path time        x =
    α(t)·x0 + σ(t)·ε, VP(0.1, 20)   dx/dt = −½β·x + ½β·ε̂/σ, from t = 1e-5, score_sde's path and
    its start

A peer is handed `right` and nothing else, and finds the divergence in its own way:

    zuko             FreeFormJacobianTransform: Dormand–Prince, one batched VJP for the Jacobian,
    largest error of the batch flow_matching    ODESolver.compute_likelihood,
    exact_divergence=True: torchdiffeq's dopri5, n VJPs with create_graph torchdiffeq      odeint
    with n VJPs written by hand, without create_graph: the leanest that its users can write
    Hutchinson       the same with one Rademacher probe, held through the solve, as score_sde does
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peers import ratio_of, unit
from torch import Tensor, nn

import scoresde
from scoresde.solvers.problem import split

Right = Callable[[Tensor, Tensor], Tensor]
Law = Callable[[Tensor], Tensor]
LIMIT = 3000  # calls after which a solve is given up


@dataclass
class Path:
    """An ODE from data to noise, which counts how often its right-hand side is called."""

    name: str
    right: Right
    start: float
    stop: float
    law: Law
    """log p of x at `stop`, in the measure of x at `start`."""
    calls: int = 0

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """dx/du."""
        self.calls += 1
        if (
            self.calls > LIMIT
        ):  # zuko halves its step for ever where float32 can't reach the tolerance
            raise RuntimeError(f"more than {LIMIT} calls")
        return self.right(x, u)


def standard_normal(x: Tensor) -> Tensor:
    """log N(x; 0, I)."""
    return -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)


def mixture_paths(mixture: scoresde.toy.GaussianMixture) -> list[Path]:
    """All three forms for the exact score of a mixture, each with the true law at its end."""

    def arc(z: Tensor, phi: Tensor) -> Tensor:
        x0, eps = mixture.denoise(z, phi.cos(), phi.sin())
        return phi.cos() * eps - phi.sin() * x0

    def straight(x: Tensor, u: Tensor) -> Tensor:
        x0, eps = mixture.denoise(x, 1 - u, u)
        return eps - x0

    def in_time(x: Tensor, t: Tensor) -> Tensor:
        t = t.clamp_min(1e-6)  # torchdiffeq steps beyond the end
        beta, (alpha, sigma) = 0.1 + 19.9 * t, unit(ratio_of(t))
        return 0.5 * beta * (mixture.denoise(x, alpha, sigma)[1] / sigma - x)

    alpha, sigma = (float(c) for c in unit(ratio_of(torch.tensor(1.0, dtype=torch.float64))))
    return [
        Path("arc", arc, 0.0, 0.5 * math.pi, standard_normal),
        Path("straight", straight, 0.0, 1.0, standard_normal),
        Path("time", in_time, 1e-5, 1.0, mixture.perturb(alpha, sigma).log_prob),
    ]


def network_paths(net: nn.Module) -> list[Path]:
    """The two forms that end in pure noise, for the network of a rectified flow and its
    standardized data.
    """

    def arc(z: Tensor, phi: Tensor) -> Tensor:
        label = scoresde.model.network.noise_label(phi).to(z.dtype)
        v: Tensor = -net(z, label.expand(len(z)))
        return v

    def straight(x: Tensor, u: Tensor) -> Tensor:
        radius, phi = torch.hypot(1 - u, u), torch.atan2(u, 1 - u)
        z = x / radius
        x0, eps = split(z, arc(z, phi), (1 - u) / radius, u / radius)
        return eps - x0

    return [
        Path("arc", arc, 0.0, 0.5 * math.pi, standard_normal),
        Path("straight", straight, 0.0, 1.0, standard_normal),
    ]


# --- their solves ---

LogProb = Callable[[Path, Tensor, float], Tensor]


def zuko(path: Path, x: Tensor, tolerance: float) -> Tensor:
    """Its transform of a free-form Jacobian, as in `zuko.flows.CNF`; atol = rtol."""
    transform = importlib.import_module("zuko.transforms").FreeFormJacobianTransform(
        lambda u, x: path(x, u), t0=path.start, t1=path.stop, atol=tolerance, rtol=tolerance
    )
    y, gained = transform.call_and_ladj(x)
    return path.law(y) + gained


def flow_matching(path: Path, x: Tensor, tolerance: float) -> Tensor:
    """Its ODESolver, whose time runs from data at 1 to noise at 0."""
    solver = importlib.import_module("flow_matching.solver").ODESolver
    span = path.stop - path.start
    velocity = lambda x, t: -span * path(x, path.start + span * (1 - t))  # noqa: E731
    return solver(velocity).compute_likelihood(  # type: ignore[no-any-return]
        x,
        path.law,
        step_size=None,
        method="dopri5",
        atol=tolerance,
        rtol=tolerance,
        time_grid=torch.tensor([1.0, 0.0], dtype=x.dtype),
        exact_divergence=True,
    )[1]


def torchdiffeq(method: str, probe: bool, path: Path, x: Tensor, tolerance: float) -> Tensor:
    """Its odeint of (x, log p), the divergence by n products eᵀJe, or by one vᵀJv."""
    odeint = importlib.import_module("torchdiffeq").odeint
    n = x.shape[1]
    v = (torch.rand_like(x) < 0.5).to(x) * 2 - 1

    def right(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            dx = path(x, u.to(x))
            sums = dx.sum(0).unbind()
        if probe:
            divergence = (torch.autograd.grad(dx, x, v)[0] * v).sum(1)
        else:
            rows = [
                torch.autograd.grad(sums[i], x, retain_graph=i < n - 1)[0][:, i] for i in range(n)
            ]
            divergence = torch.stack(rows).sum(0)
        return dx.detach(), divergence

    us = torch.tensor([path.start, path.stop], dtype=torch.float64)
    y, gained = odeint(
        right, (x, x.new_zeros(len(x))), us, method=method, rtol=tolerance, atol=tolerance
    )
    return path.law(y[-1]) + gained[-1]


EXACT: dict[str, LogProb] = {
    "zuko": zuko,
    "flow_matching": flow_matching,
    "torchdiffeq dopri5": partial(torchdiffeq, "dopri5", False),
    "torchdiffeq dopri8": partial(torchdiffeq, "dopri8", False),
}
HUTCHINSON: dict[str, LogProb] = {
    "torchdiffeq dopri5, 1 probe": partial(torchdiffeq, "dopri5", True)
}


# --- their models ---


class Standardized:
    """A peer's flow for x̃ = (x − mean)/std, per dimension, as zuko recommends."""

    def __init__(self, x: Tensor, on: bool = True) -> None:
        self.mean, self.std = (
            (x.mean(0), x.std(0)) if on else (torch.zeros(x.shape[1]), torch.ones(x.shape[1]))
        )

    def inside(self, x: Tensor) -> Tensor:
        """x̃."""
        return (x - self.mean) / self.std

    @property
    def log_det(self) -> float:
        """log|dx/dx̃|."""
        return float(self.std.double().log().sum())


@dataclass
class Model:
    """A peer's model: its loss on a batch and its log p, both of standardized data unless it says
    otherwise, its parameters.
    """

    parameters: list[nn.Parameter]
    loss: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor]
    lr: float = 1e-3
    batch: int = 512
    standardized: bool = True


def nsf(dim: int, width: int = 64, bins: int = 32, lr: float = 5e-3) -> Model:
    """zuko's neural spline flow: three transforms with its default networks of 2×64, 32 bins,
    learning rate 5e-3.

    Of eight settings tried on rings for 20 s, its README's (three layers of 128, 8 bins, 1e-3)
    among them, this was best by far: a gap of 0.05 against 0.38.
    """
    flow = importlib.import_module("zuko").flows.NSF(
        dim, transforms=3, bins=bins, hidden_features=(width, width)
    )
    return Model(
        list(flow.parameters()),
        lambda x: -flow().log_prob(x).mean(),
        lambda x: flow().log_prob(x),
        lr,
    )


def cnf(dim: int) -> Model:
    """zuko's continuous flow with its defaults (exact trace in training too); its likelihood at
    1e-5.
    """
    flow = importlib.import_module("zuko").flows.CNF(dim)

    def log_prob(x: Tensor) -> Tensor:
        flow.eval()
        flow.transform.atol = flow.transform.rtol = 1e-5
        return flow().log_prob(x)  # type: ignore[no-any-return]

    return Model(list(flow.parameters()), lambda x: -flow().log_prob(x).mean(), log_prob)


def straight_flow(dim: int, width: int = 128) -> Model:
    """flow_matching as in its 2-D example: CondOT path, uniform t, four hidden layers with SiLU
    that see x and t.

    The example's width of 512 and batches of 4,096 are for a GPU: on one thread they would leave
    it some 150 steps. The width is its class's default, the batch everyone's here. Data are as
    they come, as in the example: these densities are some two units wide, and standardized ones,
    of finer detail in its units, it learns ten times worse (8 Gaussians 0.4, not 0.04).
    """
    scheduler = importlib.import_module("flow_matching.path.scheduler").CondOTScheduler()
    path = importlib.import_module("flow_matching.path").AffineProbPath(scheduler=scheduler)
    solver = importlib.import_module("flow_matching.solver").ODESolver
    layers: list[nn.Module] = [nn.Linear(dim + 1, width), nn.SiLU()]
    for _ in range(3):
        layers += [nn.Linear(width, width), nn.SiLU()]
    net = nn.Sequential(*layers, nn.Linear(width, dim))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        v: Tensor = net(torch.cat([x, t.to(x).reshape(-1, 1).expand(len(x), 1)], 1))
        return v

    def loss(x: Tensor) -> Tensor:
        sample = path.sample(t=torch.rand(len(x)), x_0=torch.randn_like(x), x_1=x)
        return (velocity(sample.x_t, sample.t) - sample.dx_t).square().mean()

    def log_prob(x: Tensor) -> Tensor:
        rule: dict[str, Any] = {"step_size": None, "method": "dopri5", "atol": 1e-5, "rtol": 1e-5}
        return solver(velocity).compute_likelihood(
            x, standard_normal, exact_divergence=True, **rule
        )[1]  # type: ignore[no-any-return]

    return Model(list(net.parameters()), loss, log_prob, standardized=False)


MODELS: dict[str, Callable[[int], Model]] = {
    "NSF": nsf,
    "CNF": cnf,
    "flow_matching": straight_flow,
}
