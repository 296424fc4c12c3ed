"""Spread within modes of stochastic samplers: √mean (x − m_k)²/s_k², k the likeliest component of x; the truth is 1.

20,000 samples of P1 and P2 with the exact score, VP(0.1, 20), float64: standard error 0.35 % in 2-D, 0.06 % in 64-D. Called
by `python benchmarks/solvers.py stochastic`. A cell that took another number of evaluations than its column names it.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peers import BETA0, BETA1, AzulaDenoiser, Field, d_run, k_run, k_sampling, ratio_of, unit
from torch import Tensor

import scoresde
from scoresde.toy import GaussianMixture

BUDGETS = (20, 50, 100)
BATCH = 1_000  # fits a cache
Run = Callable[[Field, Tensor, float], Tensor]


def spread(mixture: GaussianMixture, x: Tensor) -> float:
    m, s = mixture._m, mixture._s.expand(len(mixture._m), 1)
    squares = torch.cdist(x, m).square() / s.square().T
    k = (squares + 2 * m.shape[1] * s.log().T).argmin(1)
    return float((squares.gather(1, k[:, None]).mean() / m.shape[1]).sqrt())


class Brownian:
    """Increments of a Brownian path over [a, b], normalized, as k-diffusion's trees give them and a hundred times faster.

    A step asks for (a, b), or as DPM++ SDE does for (a, middle) and then for (a, b), which go on from what it was told.
    """

    def __init__(self, like: Tensor) -> None:
        self.like, self.value = like, like
        self.start = self.stop = torch.tensor(math.nan)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:  # noqa: D102
        again = bool(a == self.start)
        known, told = (self.stop, self.value) if again else (a, torch.zeros_like(self.like))
        self.start, self.stop = a, b
        self.value = told + (b - known).abs().sqrt() * torch.randn_like(self.like)
        return self.value / (b - a).abs().sqrt()


def k_noisy(sampler: Any, grid: str, low: float, cost: int, field: Field, z: Tensor, budget: float) -> Tensor:
    return k_run(sampler, grid, low, cost, {"noise_sampler": Brownian(z)}, field, z, budget)


def k_rows() -> Iterator[tuple[str, Run]]:
    k = k_sampling()
    table: list[tuple[str, Any, int]] = [
        ("Euler ancestral", k.sample_euler_ancestral, 1),
        ("DPM2 ancestral", k.sample_dpm_2_ancestral, 2),
        ("DPM++2S ancestral", k.sample_dpmpp_2s_ancestral, 2),
        ("DPM++ SDE", k.sample_dpmpp_sde, 2),
        ("DPM++2M SDE", k.sample_dpmpp_2m_sde, 1),
        ("DPM++3M SDE", k.sample_dpmpp_3m_sde, 1),
    ]
    for name, sampler, cost in table:
        yield f"k-diffusion {name} log", partial(k_noisy, sampler, "log", 1e-2, cost)
    yield "k-diffusion DPM++2M SDE karras7", partial(k_noisy, k.sample_dpmpp_2m_sde, "karras7", 1e-2, 1)
    churn = {"s_churn": 80.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
    yield "EDM Heun with churn (k-diffusion)", partial(k_run, k.sample_heun, "karras7", 2e-3, 2, churn)


def d_rows() -> Iterator[tuple[str, Run]]:
    d = importlib.import_module("diffusers")
    shared = {"prediction_type": "sample", "lower_order_final": True}
    sde = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero", "solver_order": 2, **shared}
    for grid in ("karras7", "log"):
        yield f"diffusers SDE-DPM++2M {grid}", partial(d_run, partial(d.DPMSolverMultistepScheduler, **sde), True, grid, 1e-2)

    def ddpm(field: Field, z: Tensor, budget: float) -> Tensor:
        scheduler = d.DDPMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
        scheduler.set_timesteps(int(budget))
        for t in scheduler.timesteps:
            alpha2 = scheduler.alphas_cumprod[int(t)].double()
            z = scheduler.step(field(z, alpha2.sqrt(), (1 - alpha2).sqrt())[0], int(t), z).prev_sample
        return z

    yield "diffusers DDPM", ddpm


def a_rows() -> Iterator[tuple[str, Run]]:
    a = importlib.import_module("azula.sample")
    for name, make in (("DDPM", a.DDPMSampler), ("Itô", a.ItoSampler)):
        for grid, low in (("time", 1e-3), ("arc", 1e-3)):

            def run(field: Field, z: Tensor, budget: float, make: Any = make, grid: str = grid, low: float = low) -> Tensor:
                x = make(AzulaDenoiser(field, grid, low), steps=int(budget) - 1, silent=True, dtype=torch.float64)(z)
                return field.finish(x / unit(low)[0], low)

            yield f"azula {name} {grid}", run


class ReverseVP:
    """The reverse VP-SDE for torchsde, whose time must increase: s = 1 − t."""

    noise_type = "diagonal"

    def __init__(self, field: Field, kind: str) -> None:
        self.field, self.sde_type = field, kind

    def f(self, s: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        t = 1 - s
        beta, (alpha, sigma) = BETA0 + (BETA1 - BETA0) * t, unit(ratio_of(t))
        return beta * (0.5 * x - self.field(x, alpha, sigma)[1] / sigma)

    def g(self, s: Tensor, x: Tensor) -> Tensor:  # noqa: D102
        return (BETA0 + (BETA1 - BETA0) * (1 - s)).sqrt().expand_as(x)


def t_rows() -> Iterator[tuple[str, Run]]:
    torchsde = importlib.import_module("torchsde")
    end = 1e-3
    for method, kind, cost in (("euler", "ito", 1), ("heun", "stratonovich", 2)):

        def run(field: Field, z: Tensor, budget: float, method: str = method, kind: str = kind, cost: int = cost) -> Tensor:
            steps = (int(budget) - 1) // cost
            ts = torch.linspace(0, 1 - end, steps + 1, dtype=torch.float64)
            path = torchsde.BrownianInterval(0.0, 1.0, size=tuple(z.shape), dtype=z.dtype, entropy=0)
            x = torchsde.sdeint(ReverseVP(field, kind), z, ts, bm=path, method=method, dt=1.001 * float(ts[1]))[-1]
            low = float(ratio_of(torch.tensor(end, dtype=torch.float64)))
            return field.finish(x / unit(low)[0], low)

        yield f"torchsde {method}", run


def plain(field: Field, z: Tensor, budget: float) -> Tensor:
    """Euler–Maruyama as score_sde does it: uniform in t down to 1e-3, the last step without noise."""
    ts = torch.linspace(1, 1e-3, int(budget), dtype=torch.float64)
    h = float(ts[0] - ts[1])
    for t in ts:
        beta, (alpha, sigma) = float(BETA0 + (BETA1 - BETA0) * t), unit(ratio_of(t))
        mean = z + h * beta * (0.5 * z - field(z, alpha, sigma)[1] / sigma)
        z = mean + math.sqrt(h * beta) * torch.randn_like(z)
    return mean


def p_rows() -> Iterator[tuple[str, Run]]:
    yield "score_sde EM (its loop, retyped)", plain


def steps_within(solver: scoresde.Solver, budget: int) -> int:
    """The most steps of our solver that cost no more than the budget."""
    nfe = getattr(solver, "nfe", lambda steps: steps)
    return max((steps for steps in range(1, budget + 1) if nfe(steps) <= budget), default=1)


def ours(name: str, mixture: GaussianMixture, n: int, budget: int) -> tuple[float, float]:
    sde = scoresde.oracle(mixture, scoresde.VPSDE()).double()
    solver = scoresde.SOLVERS.build(name)
    steps = None if solver.steps is None else steps_within(solver, budget)
    solution = scoresde.solve(sde, n, solver=solver, steps=steps, generator=torch.Generator().manual_seed(0), batch_size=BATCH)
    return spread(mixture, solution.x[-1]), float(solution.nfe.double().mean())


def theirs(run: Run, mixture: GaussianMixture, n: int, budget: int) -> tuple[float, float]:
    torch.manual_seed(0)
    field = Field(mixture)
    parts = range(0, n, BATCH)
    with torch.no_grad():
        x = torch.cat([run(field, torch.randn(BATCH, *mixture.shape, dtype=torch.float64), budget) for _ in parts])
    return spread(mixture, x), field.calls / len(parts)


def table(mixtures: dict[str, GaussianMixture], quick: bool) -> None:
    """Print the ratios of all samplers on all mixtures."""
    n, budgets = (1_000, BUDGETS[:2]) if quick else (20_000, BUDGETS)
    rows: list[tuple[str, Callable[[GaussianMixture, int, int], tuple[float, float]]]] = []
    for source in (k_rows, d_rows, a_rows, t_rows, p_rows):
        try:
            rows += [(name, partial(theirs, run)) for name, run in source()]
        except ImportError as error:
            print(f"skipped: {error}\n")
    mine = [name for name in scoresde.SOLVERS if ":" not in name and scoresde.SOLVERS.build(name).stochastic]
    rows += [(f"**ours, {name}**", partial(ours, name)) for name in mine]
    print(f"### Spread within modes ÷ truth, {n:,} samples\n")
    columns = [(mixture, budget) for mixture in mixtures for budget in budgets]
    print("| sampler | " + " | ".join(f"{mixture[:2]}, {budget}" for mixture, budget in columns) + " | CPU s |")
    print("| --- |" + " --- |" * (len(columns) + 1))
    for label, run in rows:
        began = time.process_time()
        cells: list[str] = []
        for mixture, budget in columns:
            try:
                ratio, nfe = run(mixtures[mixture], n, budget)
                cells.append(f"{ratio:.3f}" + f" ({nfe:.0f})" * (round(nfe) != budget))
            except Exception as error:  # a failure is an entry of the table
                cells.append(type(error).__name__)
        print(f"| {label} | " + " | ".join(cells) + f" | {time.process_time() - began:.1f} |", flush=True)
    print()
