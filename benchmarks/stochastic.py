"""Stochastic samplers on standardized data: the width of modes, how often each is met, and
outliers.

20,000 samples of each problem with the exact score, VP(0.1, 20), float64, against 200,000 exact
samples. A cell reads

    width / weights / outliers

width: √mean (x − m_k)²/s_k² with k the likeliest component of x, over that of exact samples; 1 is
right. Its standard error is 0.0035 in 2-D, 0.0006 in 64-D. weights: of all modes the largest
distance of its count from its due, in binomial standard errors; below 3 is right. outliers:
samples in 10,000 that are further out than all exact ones; left out where there are none. A cell
that took another number of evaluations than its column names it.

    python benchmarks/solvers.py stochastic [SOLVER ...] [--only WORDS] [--budgets N ...]

With solvers named, as "edm churn=10 spacing=arc", only those run, and no peer.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peers import BETA0, BETA1, AzulaDenoiser, Field, d_run, k_run, k_sampling, ratio_of, unit
from problems import modes
from race import parsed
from torch import Tensor

import scoresde
from scoresde.toy import GaussianMixture

BUDGETS = (20, 50, 100, 200)
EXACT = 200_000
BATCH = 1_000  # fits a cache
Run = Callable[[Field, Tensor, float], Tensor]


@dataclass
class Truth:
    """What exact samples of a mixture show."""

    mixture: GaussianMixture

    def __post_init__(self) -> None:
        x = self.mixture.sample(
            EXACT, generator=torch.Generator().manual_seed(99), dtype=torch.float64
        )
        k, away = modes(self.mixture, x)
        self.shares = k.bincount(minlength=len(self.mixture._w)).double() / len(x)
        self.width = float(away.square().mean().sqrt())
        self.far = float(away.max())

    def seen(self, x: Tensor) -> tuple[float, float, float]:
        """Return width, weights and outliers of samples, as the table has them."""
        k, away = modes(self.mixture, x)
        n, p = len(x), self.shares
        counts = k.bincount(minlength=len(p)).double()
        z = (counts - n * p).abs() / (n * p * (1 - p) * (1 + n / EXACT)).sqrt()
        within = away[away <= 3 * self.far]  # one sample far out is an outlier, and no width
        worst = float(z.max()) if len(p) > 1 else 0.0
        return (
            float(within.square().mean().sqrt()) / self.width,
            worst,
            1e4 * float((away > 1.05 * self.far).double().mean()),
        )


class Brownian:
    """Increments of a Brownian path over [a, b], normalized, as k-diffusion's trees give them and
    a hundred times faster.

    A step asks for (a, b), or as DPM++ SDE does for (a, middle) and then for (a, b), which go on
    from what it was told.
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


def k_noisy(
    sampler: Any, grid: str, low: float, cost: int, field: Field, z: Tensor, budget: float
) -> Tensor:
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
    yield (
        "k-diffusion DPM++2M SDE karras7",
        partial(k_noisy, k.sample_dpmpp_2m_sde, "karras7", 1e-2, 1),
    )
    churn = {"s_churn": 80.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
    yield (
        "EDM Heun with churn (k-diffusion)",
        partial(k_run, k.sample_heun, "karras7", 2e-3, 2, churn),
    )


def d_rows() -> Iterator[tuple[str, Run]]:
    d = importlib.import_module("diffusers")
    shared = {"prediction_type": "sample", "lower_order_final": True}
    sde = {
        "algorithm_type": "sde-dpmsolver++",
        "final_sigmas_type": "zero",
        "solver_order": 2,
        **shared,
    }
    for grid in ("karras7", "log"):
        yield (
            f"diffusers SDE-DPM++2M {grid}",
            partial(d_run, partial(d.DPMSolverMultistepScheduler, **sde), True, grid, 1e-2),
        )

    def ddpm(field: Field, z: Tensor, budget: float) -> Tensor:
        scheduler = d.DDPMScheduler(
            prediction_type="sample", clip_sample=False, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(int(budget))
        for t in scheduler.timesteps:
            alpha2 = scheduler.alphas_cumprod[int(t)].double()
            z = scheduler.step(
                field(z, alpha2.sqrt(), (1 - alpha2).sqrt())[0], int(t), z
            ).prev_sample
        return z

    yield "diffusers DDPM", ddpm


def a_rows() -> Iterator[tuple[str, Run]]:
    a = importlib.import_module("azula.sample")
    for name, make in (("DDPM", a.DDPMSampler), ("Itô", a.ItoSampler)):
        for grid, low in (("time", 1e-3), ("arc", 1e-3)):

            def run(
                field: Field,
                z: Tensor,
                budget: float,
                make: Any = make,
                grid: str = grid,
                low: float = low,
            ) -> Tensor:
                x = make(
                    AzulaDenoiser(field, grid, low),
                    steps=int(budget) - 1,
                    silent=True,
                    dtype=torch.float64,
                )(z)
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

        def run(
            field: Field,
            z: Tensor,
            budget: float,
            method: str = method,
            kind: str = kind,
            cost: int = cost,
        ) -> Tensor:
            steps = (int(budget) - 1) // cost
            ts = torch.linspace(0, 1 - end, steps + 1, dtype=torch.float64)
            path = torchsde.BrownianInterval(
                0.0, 1.0, size=tuple(z.shape), dtype=z.dtype, entropy=0
            )
            x = torchsde.sdeint(
                ReverseVP(field, kind), z, ts, bm=path, method=method, dt=1.001 * float(ts[1])
            )[-1]
            low = float(ratio_of(torch.tensor(end, dtype=torch.float64)))
            return field.finish(x / unit(low)[0], low)

        yield f"torchsde {method}", run


def plain(field: Field, z: Tensor, budget: float) -> Tensor:
    """Euler–Maruyama as in score_sde: uniform in t down to 1e-3, the last step without noise."""
    ts = torch.linspace(1, 1e-3, int(budget), dtype=torch.float64)
    h = float(ts[0] - ts[1])
    for t in ts:
        beta, (alpha, sigma) = float(BETA0 + (BETA1 - BETA0) * t), unit(ratio_of(t))
        mean = z + h * beta * (0.5 * z - field(z, alpha, sigma)[1] / sigma)
        z = mean + math.sqrt(h * beta) * torch.randn_like(z)
    return mean


def p_rows() -> Iterator[tuple[str, Run]]:
    yield "score_sde EM (its loop, retyped)", plain


def steps_within(label: str, budget: int) -> int:
    """The most steps of our solver that cost no more than the budget, found by trying."""
    low, high = 1, budget + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(label, middle) <= budget else (low, middle)
    return low


@functools.cache
def cost(label: str, steps: int) -> int:
    name, options = parsed(label)
    one = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    return int(
        scoresde.solve(
            scoresde.oracle(one, scoresde.VPSDE()).double(), solver=name, steps=steps, **options
        ).nfe
    )


def ours(
    label: str, truth: Truth, n: int, budget: int
) -> tuple[tuple[float, float, float], float]:
    sde = scoresde.oracle(truth.mixture, scoresde.VPSDE()).double()
    name, options = parsed(label)
    adaptive = (
        scoresde.SOLVERS.build(name, **{k: v for k, v in options.items() if k != "spacing"}).steps
        is None
    )
    steps = None if adaptive else steps_within(label, budget)
    generator = torch.Generator().manual_seed(0)
    solution = scoresde.solve(
        sde, n, solver=name, steps=steps, generator=generator, batch_size=BATCH, **options
    )
    return truth.seen(solution.x[-1]), float(solution.nfe.double().mean())


def theirs(
    run: Run, truth: Truth, n: int, budget: int
) -> tuple[tuple[float, float, float], float]:
    torch.manual_seed(0)
    field = Field(truth.mixture)
    parts = range(0, n, BATCH)
    shape = truth.mixture.shape
    with torch.no_grad():
        x = torch.cat(
            [run(field, torch.randn(BATCH, *shape, dtype=torch.float64), budget) for _ in parts]
        )
    return truth.seen(x), field.calls / len(parts)


OURS = (
    "edm churn=10 spacing=arc",
    "edm churn=10",
    "adams",
    "dpmpp_2m",
)
"""Run beside the stochastic solvers of the registry: with noise, or without for comparison."""


def table(mixtures: dict[str, GaussianMixture], args: argparse.Namespace) -> None:
    """Print what all samplers do on all mixtures."""
    n, budgets = (1_000, BUDGETS[:2]) if args.quick else (20_000, args.budgets or BUDGETS)
    rows: list[
        tuple[str, Callable[[Truth, int, int], tuple[tuple[float, float, float], float]]]
    ] = []
    for source in () if args.solvers else (k_rows, d_rows, a_rows, t_rows, p_rows):
        try:
            rows += [(name, partial(theirs, run)) for name, run in source()]
        except ImportError as error:
            print(f"skipped: {error}\n")
    built = {name: scoresde.SOLVERS.build(name) for name in scoresde.SOLVERS if ":" not in name}
    mine = [
        name for name, solver in built.items() if solver.stochastic and "score" in solver.needs
    ]
    rows += [
        (f"**ours, {label}**", partial(ours, label)) for label in args.solvers or [*mine, *OURS]
    ]
    for name, mixture in mixtures.items():
        truth = Truth(mixture)
        print(f"### {name}: width / weights / outliers of {n:,} samples\n")
        print(
            "| sampler | "
            + " | ".join(f"{budget} evaluations" for budget in budgets)
            + " | CPU s |"
        )
        print("| --- |" + " --- |" * (len(budgets) + 1))
        for label, run in rows:
            began = time.process_time()
            cells: list[str] = []
            for budget in budgets:
                try:
                    (width, weights, out), nfe = run(truth, n, budget)
                    cell = f"{width:.3f} / {weights:.1f}" + f" / {out:.1f}" * (out > 0)
                    cells.append(cell + f" ({nfe:.0f})" * (round(nfe) != budget))
                except Exception as error:  # a failure is an entry of the table
                    cells.append(type(error).__name__)
            print(
                f"| {label} | " + " | ".join(cells) + f" | {time.process_time() - began:.1f} |",
                flush=True,
            )
        print()
