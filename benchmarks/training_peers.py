"""Training loops beside `scoresde.fit`: what people write by hand, and what the peers'
documentation has.

All of them train the same network object, `Net`: 3 hidden layers of 128 with SiLU, fed x and the
noise label as one more input, 34 thousand weights. A loop is a function `start(net, data, batch)
-> step`; `step(count)` does so many optimizer steps. With x1 data and x0 ~ N(0, I), as the
flow-matching libraries name them, x_t = (1 − t)·x0 + t·x1 and the target is x1 − x0; ours is the
same backwards. Settings are those of the peers' own examples, with the differences that stand
beside them.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import scoresde

Step = Callable[[int], None]


class Net(nn.Module):
    """3×128 with SiLU on [x, label]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (3, 128, 128):
            layers += [nn.Linear(inputs, 128), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Linear(128, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.body(torch.cat([x, t.unsqueeze(1)], 1))
        return out


class TimeFirst(nn.Module):
    """The same network, called as score_models calls one."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net, self.hyperparameters = net, {"beta_min": 0.1, "beta_max": 20.0}

    def forward(self, t: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.net(x, t)
        return out


def batch_of(data: Tensor, batch: int) -> Tensor:
    return data[torch.randint(len(data), (batch,))]


def flow_loss(net: Net, x0: Tensor) -> Tensor:
    """Flow matching: x_t = (1 − t)·x0 + t·ε, target ε − x0, t ~ U[0, 1]."""
    eps, t = torch.randn_like(x0), torch.rand(len(x0))
    s = t.unsqueeze(1)
    return (net((1 - s) * x0 + s * eps, t) - (eps - x0)).square().mean()


def naive(net: Net, data: Tensor, batch: int) -> Step:
    """Adam as it comes (a for-loop on the CPU), an average kept by a Python loop, the loss read at
    every step, clipping.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    average, losses = copy.deepcopy(net), []

    def step(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            loss = flow_loss(net, batch_of(data, batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                for mean, p in zip(average.parameters(), net.parameters(), strict=True):
                    mean.mul_(0.999).add_(p, alpha=0.001)
            losses.append(loss.item())

    return step


def engineered(net: Net, data: Tensor, batch: int, lr: float = 2e-3) -> Step:
    """Fused Adam, the average and the clipping over all tensors at once (foreach), nothing read."""
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    net.average = copy.deepcopy(net)
    means, count_ = list(net.average.parameters()), 0

    def step(count: int) -> None:
        nonlocal count_
        for _ in range(count):
            count_ += 1
            flow_loss(net, batch_of(data, batch)).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(means, parameters, max(0.001, 9 / (9 + count_)))

    return step


def bare(net: Net, data: Tensor, batch: int) -> Step:
    """Forward and backward alone, on one batch: the limit of what leaves the network's mathematics
    as it is.
    """
    x, t, parameters = batch_of(data, batch), torch.rand(batch), list(net.parameters())

    def step(count: int) -> None:
        for _ in range(count):
            for p in parameters:
                p.grad = None
            net(x, t).square().mean().backward()

    return step


def azula(net: Net, data: Tensor, batch: int) -> Step:
    """azula 0.11's README: KarrasDenoiser, VPSchedule, Adam(1e-3), t ~ U[0, 1]; no average, no
    clipping.
    """
    denoise, noise = (importlib.import_module(f"azula.{name}") for name in ("denoise", "noise"))
    denoiser = denoise.KarrasDenoiser(backbone=net, schedule=noise.VPSchedule())
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)

    def step(count: int) -> None:
        for _ in range(count):
            denoiser.loss(batch_of(data, batch), torch.rand(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def flow_matching(net: Net, data: Tensor, batch: int) -> Step:
    """examples/2d_flow_matching.ipynb of flow_matching 1.0: CondOT path, Adam(1e-3); no average,
    no clipping.
    """
    path_, scheduler = (
        importlib.import_module(f"flow_matching.{name}") for name in ("path", "path.scheduler")
    )
    path = path_.AffineProbPath(scheduler=scheduler.CondOTScheduler())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            x1 = batch_of(data, batch)
            drawn = path.sample(t=torch.rand(batch), x_0=torch.randn_like(x1), x_1=x1)
            loss = (net(drawn.x_t, drawn.t) - drawn.dx_t).square().mean()
            loss.backward()
            optimizer.step()

    return step


def torchcfm(
    net: Net, data: Tensor, batch: int, matcher: str = "ConditionalFlowMatcher", sigma: float = 0.0
) -> Step:
    """torchcfm 1.0.7's 2-D tutorials: Adam() with its own rate, 1e-3; no average, no clipping.

    The tutorials blur the data by sigma = 0.1, which these thresholds would not forgive; 0 is the
    class's own default.
    """
    flow = getattr(importlib.import_module("torchcfm.conditional_flow_matching"), matcher)(
        sigma=sigma
    )
    optimizer = torch.optim.Adam(net.parameters())

    def step(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            x1 = batch_of(data, batch)
            t, xt, ut = flow.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            loss = ((net(xt, t) - ut) ** 2).mean()
            loss.backward()
            optimizer.step()

    return step


def torchcfm_ot(net: Net, data: Tensor, batch: int) -> Step:
    """The same with pairs of exact optimal transport (POT)."""
    return torchcfm(net, data, batch, "ExactOptimalTransportConditionalFlowMatcher")


def score_models(net: Net, data: Tensor, batch: int) -> Step:
    """score_models 0.5's `fit` of its VPSDE, with clipping and its average; the data come from a
    shuffled DataLoader.
    """
    model = importlib.import_module("score_models").ScoreModel(
        TimeFirst(net), sde="vp", device="cpu", beta_min=0.1, beta_max=20
    )
    options = {
        "batch_size": batch,
        "shuffle": True,
        "clip": 1.0,
        "learning_rate": 1e-3,
        "ema_decay": 0.999,
        "epochs": 1,
    }

    def step(count: int) -> None:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            model.fit(TensorDataset(data), n_iterations_in_epoch=count, **options)

    return step


# --- models to sample ---


class Backwards(nn.Module):
    """dx/dt of a flow whose data are at t = 1, with the data at t = 0."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = -self.net(x, 1 - t)
        return out


def as_flow(net: nn.Module) -> scoresde.ScoreSDE:
    """A network of dx/dt, data at t = 0."""
    return scoresde.ScoreSDE(
        scoresde.RectifiedFlow(), net, shape=(2,), predict="v", input_convention="raw"
    )


def as_karras(net: nn.Module) -> scoresde.ScoreSDE:
    """A network as azula's KarrasDenoiser calls it: our `edm` row, which sees the arc. Its VP
    schedule starts at α = 1e-3.
    """
    # α(1) = 1e-3, as azula's; sampling goes by the arc
    process = scoresde.VPSDE(beta_min=1e-3, beta_max=4 * math.log(1e3))
    return scoresde.ScoreSDE(process, net, shape=(2,), predict="edm", input_convention="arc")


@dataclass(frozen=True)
class Loop:
    """A loop with the batch of its example, and the model that its network is."""

    name: str
    start: Callable[[Net, Tensor, int], Step]
    batch: int
    model: Callable[[Any], scoresde.ScoreSDE]


LOOPS = (
    Loop(
        "engineered flow matching, Adam 2e-3, batch 512, EMA",
        engineered,
        512,
        lambda net: as_flow(net.average),
    ),
    Loop("azula README, batch 256", azula, 256, as_karras),  # the README names no batch
    Loop(
        "flow_matching example, batch 4,096",
        flow_matching,
        4096,
        lambda net: as_flow(Backwards(net)),
    ),
    Loop(
        "torchcfm example, independent, batch 256",
        torchcfm,
        256,
        lambda net: as_flow(Backwards(net)),
    ),
    Loop("torchcfm example, OT, batch 256", torchcfm_ot, 256, lambda net: as_flow(Backwards(net))),
)
"""The loops of `quality`. Their learning rate is constant, so that they can be stopped at any time.
"""

PACE = (
    ("naive loop", naive),
    ("engineered eager loop", engineered),
    ("bare forward + backward (limit)", bare),
    ("score_models `fit`", score_models),
    ("torchcfm, independent (no EMA, no clipping)", torchcfm),
    ("torchcfm, exact OT (no EMA, no clipping)", torchcfm_ot),
)
"""The loops of `throughput`; the first is what the others are divided by."""
