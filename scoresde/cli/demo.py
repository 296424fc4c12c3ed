"""`scoresde demo`: the main job on a toy density, from data to samples to log p(x)."""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch

from .. import toy
from ..common.names import nearest
from ..common.plotting import density_figure
from ..density.error_bars import Likelihood
from ..density.exact import likelihood, log_prob
from ..model.builder import build
from ..processes.base import PROCESSES
from ..sampling.plan import plan
from ..sampling.solution import Solution
from ..sampling.trajectory import solve
from ..solvers import SOLVERS
from ..training.fitting import fit
from .inputs import check_writable
from .parser import SEED, Command, option

LATTICE = 128  # points of the figure along each axis
PATHS = 250  # trajectories in the figure


def demo(
    density: str = "checkerboard",
    process: str = "vp",
    solver: str = "adams",
    *,
    steps: int = 10_000,
    points: int = 10_000,
    out: str | Path = "demo.png",
    seed: int = 0,
) -> dict[str, float]:
    """Fit, sample and evaluate a model of a toy density; print a table, save a figure."""
    if density not in toy.DENSITIES:
        raise ValueError(f"unknown density {density!r}. {nearest(density, toy.DENSITIES)}")
    truth = toy.DENSITIES[density]()
    # a wrong name is found here, before the training
    plan(build(process, "mlp", shape=(2,), width=1), solver, None, None, {})
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sde = build(process, "mlp", shape=(2,))
    clock = [time.perf_counter()]
    fit(sde, truth, steps=steps, generator=generator)
    clock.append(time.perf_counter())
    drawn = solve(sde, points, solver=solver, generator=generator)
    clock.append(time.perf_counter())
    test = truth.sample(points, generator=generator)
    scored = likelihood(sde, test)
    clock.append(time.perf_counter())
    paths = solve(sde, PATHS, times=torch.linspace(1, 0, 60, device="cpu"), generator=generator).x
    numbers = _numbers(truth, test, drawn, scored)
    name = f"{density} · {sde.process!r} · {solver}"
    density_figure(
        truth,
        lambda x: log_prob(sde, x, rtol=1e-4, atol=1e-4),
        drawn.x[-1],
        paths,
        out,
        points=LATTICE,
        subtitle=f"{name}: {numbers['gap']:.3f} nats from the truth",
    )
    clock.append(time.perf_counter())
    spans = [after - before for before, after in itertools.pairwise(clock)]
    phases = ("seconds_fit", "seconds_sample", "seconds_log_prob", "seconds_figure")
    numbers |= dict(zip(phases, spans, strict=True))
    print(f"\n{name}")
    for label, value, note in _table(numbers, points, steps, out):
        print(f"  {label:<24} {value:>12}   {note}".rstrip())
    return numbers


def _numbers(
    truth: Any, test: torch.Tensor, drawn: Solution, scored: Likelihood
) -> dict[str, float]:
    """The figures of the table except the times; the gap is the mean of log p − log p_model."""
    # the two share the scatter of the test points, so that their difference has little
    excess = (truth.log_prob(test) - scored.log_prob).double()
    return {
        "nll": -float(scored.log_prob.mean()),
        "entropy": truth.entropy(),
        "gap": float(excess.mean()),
        "gap_error": float(excess.std()) / len(test) ** 0.5,
        "nfe_sample": float(drawn.nfe.double().mean()),
        "nfe_log_prob": float(scored.nfe.double().mean()),
    }


def _table(
    numbers: dict[str, float], points: int, steps: int, out: str | Path
) -> list[tuple[str, str, str]]:
    """The rows of the table: label, value, note."""
    n = numbers
    error = f"± {n['gap_error']:.4f}, mean of log p − log p_model over them"
    sampled = f"{points:,} samples, {n['nfe_sample']:.0f} evaluations each"
    scored = f"{points:,} points, {n['nfe_log_prob']:.0f} evaluations each"
    return [
        ("model NLL", f"{n['nll']:.4f} nats", f"exact log-density of {points:,} true samples"),
        ("true entropy", f"{n['entropy']:.4f} nats", ""),
        ("gap = KL(truth ‖ model)", f"{n['gap']:.4f} nats", error),
        ("fit", f"{n['seconds_fit']:.1f} s", f"{steps:,} steps"),
        ("sample", f"{n['seconds_sample']:.1f} s", sampled),
        ("log_prob", f"{n['seconds_log_prob']:.1f} s", scored),
        ("figure", f"{n['seconds_figure']:.1f} s", str(out)),
    ]


def _run(args: argparse.Namespace) -> None:
    """Check that the figure can be written, then run the demo."""
    check_writable(args.out, ".png", ".pdf", ".svg")
    demo(args.density, args.process, args.solver, steps=args.steps, out=args.out, seed=args.seed)


COMMANDS = {
    "demo": Command(
        help="fit a toy density, sample it, draw it, and print how far from the truth it is",
        run=_run,
        options=(
            option("--density", default="checkerboard", help=", ".join(toy.DENSITIES)),
            option("--process", default="vp", help=", ".join(PROCESSES)),
            option("--solver", default="adams", help=", ".join(SOLVERS)),
            option(
                "--steps", type=int, default=10_000, help="training steps (default: %(default)s)"
            ),
            SEED,
            option("--out", default="demo.png", help="the figure (default: %(default)s)"),
        ),
    )
}
