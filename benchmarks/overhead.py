"""What a solver costs beside its network: total CPU time ÷ (evaluations × bare forward), one
thread, float32.

Runs are interleaved and each is divided by bare forwards timed just before it; the median over
rounds is printed. Everyone calls the same network object as net(x, t), with no conversion of its
output. An evaluation is one of the whole batch: rows that an adaptive solver of ours leaves out
count as parts. Called by `python benchmarks/solvers.py overhead`.
"""

from __future__ import annotations

import importlib
import statistics
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peers import k_sampling, ratios
from race import steps_within
from torch import Tensor, nn

import scoresde


class Counted(nn.Module):
    """A network of x with t as another input (or channel), which counts the rows it is given."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.rows = body, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        self.rows += len(x)
        t = t.reshape(-1, *(1,) * (x.ndim - 1)).expand(len(x), 1, *x.shape[2:])
        return self.body(torch.cat([x, t.to(x.dtype)], 1))


def mlp() -> tuple[Counted, tuple[int, ...], int]:
    layers = [
        nn.Linear(3, 128),
        nn.SiLU(),
        nn.Linear(128, 128),
        nn.SiLU(),
        nn.Linear(128, 128),
        nn.SiLU(),
        nn.Linear(128, 2),
    ]
    return Counted(nn.Sequential(*layers)), (1000, 2), 50


def convolutional() -> tuple[Counted, tuple[int, ...], int]:
    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 3, padding=1)

    body = nn.Sequential(layer(4, 32), nn.SiLU(), layer(32, 32), nn.SiLU(), layer(32, 3))
    return Counted(body), (16, 3, 32, 32), 20


Run = Callable[[], object]


def peers_of(net: Counted, x: Tensor, n: int) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Names, and functions that import a peer and return its run of about n evaluations from x."""
    half = torch.full((len(x),), 0.5)

    def loop() -> None:
        z, h = x, -1 / n
        for i in range(n):
            z = z + h * net(z, half.fill_(1 - i / n))

    def at(t: Tensor) -> Tensor:
        return t.to(x.dtype).expand(len(x))

    def k(name: str) -> Run:
        sampling = k_sampling()
        sigmas = torch.cat([ratios(n, "karras7", 1e-2).to(x), torch.zeros(1)])
        return lambda: getattr(sampling, name)(
            lambda z, sigma: net(z, sigma), x, sigmas, disable=True
        )

    def a(name: str) -> Run:
        sample = importlib.import_module("azula.sample")
        schedule = importlib.import_module("azula.noise").RectifiedSchedule()

        class Denoiser:
            def __init__(self) -> None:
                self.schedule = schedule

            def __call__(self, z: Tensor, t: Tensor) -> Any:
                return types.SimpleNamespace(mean=net(z, t.expand(len(z))))

        return lambda: getattr(sample, name)(Denoiser(), steps=n, silent=True)(x)

    def d(name: str) -> Run:
        diffusers = importlib.import_module("diffusers")
        scheduler = getattr(diffusers, name)(prediction_type="sample")

        def run() -> None:
            scheduler.set_timesteps(n)
            z = x
            for t in scheduler.timesteps:
                z = scheduler.step(net(z, t.expand(len(z))), t, z).prev_sample

        return run

    def diffeq(method: str) -> Run:
        odeint = importlib.import_module("torchdiffeq").odeint
        ts = torch.linspace(1, 0, n + 1 if method == "euler" else 2)
        return lambda: odeint(
            lambda t, z: net(z, at(t)), x, ts, method=method, rtol=1e-5, atol=1e-5
        )

    def ode() -> Run:
        to = importlib.import_module("torchode")
        term = to.ODETerm(lambda t, z: net(z.reshape(x.shape), t).flatten(1))
        controller = to.IntegralController(atol=1e-5, rtol=1e-5, term=term)
        solver = to.AutoDiffAdjoint(to.Dopri5(term=term), controller)
        ends = torch.tensor([1.0, 0.0]).expand(len(x), 2)
        return lambda: solver.solve(to.InitialValueProblem(y0=x.flatten(1), t_eval=ends))

    def zuko() -> Run:
        odeint = importlib.import_module("zuko.utils").odeint
        return lambda: odeint(lambda t, z: net(z, at(t)), x, 1.0, 0.0, atol=1e-5, rtol=1e-5)

    def torchsde() -> Run:
        sdeint = importlib.import_module("torchsde").sdeint
        ts = torch.linspace(0, 1, n + 1)
        fields = {
            "noise_type": "diagonal",
            "sde_type": "ito",
            "g": lambda t, z: torch.ones_like(z),
        }
        sde = types.SimpleNamespace(
            f=lambda t, z: net(z.reshape(x.shape), at(1 - t)).flatten(1), **fields
        )
        return lambda: sdeint(sde, x.flatten(1), ts, method="euler", dt=1 / n)

    yield "hand-written loop", lambda: loop
    yield "torchdiffeq euler", lambda: diffeq("euler")
    yield "torchdiffeq dopri5", lambda: diffeq("dopri5")
    yield "torchode dopri5", ode
    yield "zuko dopri5", zuko
    yield "k-diffusion Euler", lambda: k("sample_euler")
    yield "k-diffusion DPM++2M", lambda: k("sample_dpmpp_2m")
    yield "azula Euler", lambda: a("EulerSampler")
    yield "azula vAB", lambda: a("vABSampler")
    yield "diffusers DPM++2M", lambda: d("DPMSolverMultistepScheduler")
    yield "diffusers UniPC", lambda: d("UniPCMultistepScheduler")
    yield "torchsde euler", torchsde


def ours_of(net: Counted, x: Tensor, n: int) -> Iterator[tuple[str, Run]]:
    sde = scoresde.ScoreSDE(scoresde.VPSDE(), net, shape=tuple(x.shape[1:]))
    for name in scoresde.SOLVERS:
        if ":" in name:
            continue
        solver = scoresde.SOLVERS.build(name)

        def run(solver: scoresde.Solver, steps: int | None) -> None:
            scoresde.solve(
                sde, len(x), solver=solver, steps=steps, generator=torch.Generator().manual_seed(0)
            )

        if solver.steps is None:
            yield f"**ours, {name}, adaptive**", partial(run, solver, None)
        if solver.steps is not None or not solver.stochastic:
            yield f"**ours, {name}**", partial(run, solver, steps_within(solver, n))


def measure(run: Run, net: Counted, x: Tensor, bare: int) -> tuple[float, float]:
    """Ratio to bare forwards timed just before, and evaluations."""
    t = torch.full((len(x),), 0.5)
    began = time.process_time()
    for _ in range(bare):
        net(x, t)
    forward = (time.process_time() - began) / bare
    net.rows, began = 0, time.process_time()
    run()
    evaluations = net.rows / len(x)
    return (time.process_time() - began) / (evaluations * forward), evaluations


@torch.no_grad()
def table(quick: bool) -> None:
    """Print the ratios of all peers and of all our solvers, on both networks."""
    for title, build in (
        ("MLP 3×128, 2-D, 1,000 points", mlp),
        ("convolutions, 16×3×32×32", convolutional),
    ):
        torch.manual_seed(0)
        net, size, n = build()
        x = torch.randn(size)
        runs: dict[str, Run] = {}
        for name, make in peers_of(net, x, n):
            try:
                runs[name] = make()
            except ImportError as error:
                print(f"{name}: skipped, {error}\n")
        runs.update(ours_of(net, x, n))
        ratios_: dict[str, list[float]] = {name: [] for name in runs}
        cost: dict[str, float] = {}
        for round_ in range(3 if quick else 10):
            for name, run in list(runs.items()):
                try:
                    ratio, cost[name] = measure(run, net, x, n)
                except Exception as error:  # a failure is said, once
                    print(f"{name}: {type(error).__name__}: {str(error)[:100]}\n")
                    del runs[name]
                    continue
                if round_:  # the first warms up
                    ratios_[name].append(ratio)
        print(f"### Total time ÷ (evaluations × bare forward): {title}\n")
        print("| solver | ratio | quartiles | evaluations |")
        print("| --- | --- | --- | --- |")
        for name in runs:
            low, middle, high = statistics.quantiles(ratios_[name], n=4)
            print(
                f"| {name} | {middle:.2f} | {low:.2f} – {high:.2f} | {cost[name]:.0f} |",
                flush=True,
            )
        print()
