"""The main job from data to samples to log p(x) on a toy density, with a figure and a table: `scoresde demo`."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import torch

from . import toy
from .builder import build
from .exact import likelihood, log_prob
from .plan import plan
from .plotting import density_figure
from .registry import nearest
from .sampling import solve
from .training import fit

LATTICE, PATHS = 128, 250


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
    """Fit a model, sample it, evaluate its exact log-density against the truth; print a table and save a figure.

    Parameters
    ----------
    density : str
        A key of `scoresde.toy.DENSITIES`.
    process : str
        A name of `scoresde.PROCESSES`.
    solver : str
        Draws the samples: a name of `scoresde.SOLVERS`.
    steps : int
        Training steps.
    points : int
        Samples drawn, and true samples evaluated.
    out : path
        The figure.
    seed : int
        Of everything random.

    Returns
    -------
    dict
        The numbers of the table: nll, entropy, gap, gap_error (nats), nfe_sample, nfe_log_prob, and seconds per stage.

    Raises
    ------
    ValueError
        For unknown names.

    Examples
    --------
    >>> numbers = demo("moons", steps=1000, out="moons.png")  # doctest: +SKIP
    """
    if density not in toy.DENSITIES:
        raise ValueError(f"unknown density {density!r}. {nearest(density, toy.DENSITIES)}")
    truth = toy.DENSITIES[density]()
    plan(build(process, "mlp", shape=(2,), width=1), solver, None, None, {})  # a typo must not cost the training
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
    name = f"{density} · {sde.process!r} · {solver}"
    nll, entropy = -float(scored.log_prob.mean()), truth.entropy()
    excess = (truth.log_prob(test) - scored.log_prob).double()  # its mean is the divergence, with little variance
    gap, error = float(excess.mean()), float(excess.std()) / points**0.5
    density_figure(
        truth,
        lambda x: log_prob(sde, x, rtol=1e-4, atol=1e-4),
        drawn.x[-1],
        paths,
        out,
        points=LATTICE,
        subtitle=f"{name}: {gap:.3f} nats from the truth",
    )
    clock.append(time.perf_counter())
    seconds = [b - a for a, b in itertools.pairwise(clock)]
    numbers = {
        "nll": nll,
        "entropy": entropy,
        "gap": gap,
        "gap_error": error,
        "nfe_sample": float(drawn.nfe.double().mean()),
        "nfe_log_prob": float(scored.nfe.double().mean()),
        "seconds_fit": seconds[0],
        "seconds_sample": seconds[1],
        "seconds_log_prob": seconds[2],
        "seconds_figure": seconds[3],
    }
    rows = [
        ("model NLL", f"{nll:.4f} nats", f"exact log-density of {points:,} true samples"),
        ("true entropy", f"{entropy:.4f} nats", ""),
        ("gap = KL(truth ‖ model)", f"{gap:.4f} nats", f"± {error:.4f}, mean of log p − log p_model over them"),
        ("fit", f"{seconds[0]:.1f} s", f"{steps:,} steps"),
        ("sample", f"{seconds[1]:.1f} s", f"{points:,} samples, {numbers['nfe_sample']:.0f} evaluations each"),
        ("log_prob", f"{seconds[2]:.1f} s", f"{points:,} points, {numbers['nfe_log_prob']:.0f} evaluations each"),
        ("figure", f"{seconds[3]:.1f} s", str(out)),
    ]
    print(f"\n{name}")
    for label, value, note in rows:
        print(f"  {label:<24} {value:>12}   {note}".rstrip())
    return numbers
