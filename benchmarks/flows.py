"""Flows and their couplings: how well they carry one law to another in one step, how straight they
are, what they cost.

    python benchmarks/flows.py coupling|reflow|onestep|cost [--runs 10] [--out FILE.jsonl]

`coupling`: 8 Gaussians → moons, as in C²OT (Cheng & Schwing 2025): a perceptron of 3 × 128, 20,000
steps of 256 pairs, optimal transport among 1,024; then 10,000 samples by one Euler step in t
(`ddim` on the rectified path) and by an adaptive solver, and the optimal transport between them and
10,000 true points. What that paper's code (and torchcfm's) prints as 2-Wasserstein is POT's `emd2`
with squared distances: W2², not W2, and so it is here. With a condition (which moon) the labels of
the true points are given, as there. The 8 Gaussians are torchcfm's: at radius 5, of variance √0.1
(std 0.562; its code says var=0.1 and passes √var to MultivariateNormal as a covariance). The moons:
noise 0.2, times 3, minus 1. Ours is `fit` with noise="uniform" and otherwise its defaults (Adam
3e-3, cosine, average); torchcfm's is its example's loop (Adam 1e-3, no average, transport within
the batch of 256). The floor is W2² between two sets of 10,000 true points.

`reflow`: straightness S, path energy and curvature of rectified flows after 0, 1 and 2 reflows, on
three densities, and E² of 10,000 samples by one Euler step (mean of four draws) over its floor,
the RMS of E² between two true sets of as many (from sets of 4,000: E² of equal laws scales as
1/n). Default `mlp` with blur=False, `--steps` steps each, 100,000 pairs. After each reflow also
the model distilled for one step from the same pairs.

`onestep`: E² over the same floor of consistency models and mean flows by 1 and 2 evaluations, the
mean of four draws of 10,000.

`cost`: time per step of `fit` at batch 256 with coupling="minibatch_ot" over that without,
interleaved; beside torchcfm's.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoresde
from scoresde.training.couplings import ConditionAwareOT, MinibatchOT

POINTS = 10_000
PUBLISHED = {  # W2² in C²OT, mean and standard deviation of 10 runs: one Euler step, adaptive
    ("unconditional", "independent"): ("6.232 ± 0.186", "0.120 ± 0.045"),
    ("unconditional", "minibatch_ot"): ("0.072 ± 0.025", "0.050 ± 0.040"),
    ("moon", "independent"): ("", "0.059"),
    ("moon", "minibatch_ot"): ("", "0.462"),
    ("moon", "condition_aware_ot"): ("", "0.018"),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Moons:
    """Torchcfm's and C²OT's: make_moons(noise=0.2)·3 − 1, with the label of the moon."""

    def labelled(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Points and labels."""
        y = (torch.rand(n, generator=generator) < 0.5).long()
        angle = math.pi * torch.rand(n, generator=generator)
        x = torch.stack([angle.cos(), angle.sin()], 1)
        x = torch.where(y[:, None] == 1, torch.tensor([1.0, 0.5]) - x, x)
        return (x + 0.2 * torch.randn(n, 2, generator=generator)) * 3 - 1, y

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Points."""
        return self.labelled(n, generator)[0]


def source() -> scoresde.toy.EightGaussians:
    return scoresde.toy.EightGaussians(radius=5.0, std=0.1**0.25)


def transport(x: Tensor, y: Tensor) -> float:
    """W2². (An assignment by scipy gives the same and is faster, but takes forever where all of x
    is nearly one point.)
    """
    import ot

    return float(
        ot.emd2([], [], torch.cdist(x.double(), y.double()).square().numpy(), numItermax=10**8)
    )


# --- coupling ---


def ours(
    coupling: str, conditional: bool, seed: int, steps: int
) -> Callable[[str, Tensor, Tensor], Tensor]:
    torch.manual_seed(seed)
    sde = scoresde.build(
        "rectified",
        "mlp",
        shape=(2,),
        width=128,
        depth=3,
        blur=False,
        classes=2 * conditional,
        condition_dropout=0,
    )
    sde.source = source()
    joined: Any = {"independent": coupling, "minibatch_ot": MinibatchOT(size=1024)}.get(
        coupling, ConditionAwareOT(size=1024)
    )
    how: dict[str, Any] = {
        "steps": steps,
        "batch_size": 256,
        "objective": scoresde.Denoising(noise="uniform"),
        "progress": False,
        "generator": generator(seed),
    }
    if conditional:
        x, y = Moons().labelled(200_000, generator(10**6 + seed))
        scoresde.fit(sde, x, given={"y": y}, coupling=joined, **how)
    else:
        scoresde.fit(sde, Moons(), coupling=joined, **how)

    def sample(how: str, start: Tensor, y: Tensor) -> Tensor:
        model = sde.given(y=y) if conditional else sde
        if how == "one":
            return scoresde.decode(model, start, solver="ddim", steps=1)
        return scoresde.decode(model, start)

    return sample


def torchcfm(
    coupling: str, conditional: bool, seed: int, steps: int
) -> Callable[[str, Tensor, Tensor], Tensor]:
    """The loop of torchcfm's example notebook, with a network of the same size as ours."""
    import numpy as np
    from torchcfm.conditional_flow_matching import (
        ConditionalFlowMatcher,
        ExactOptimalTransportConditionalFlowMatcher,
    )
    from torchdiffeq import odeint

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what torchcfm draws its plan by
    matcher = (
        ConditionalFlowMatcher
        if coupling == "independent"
        else ExactOptimalTransportConditionalFlowMatcher
    )(sigma=0.0)
    sizes = [3 + conditional, 128, 128, 128]
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.SELU())]
    net, moons, eight = nn.Sequential(*layers, nn.Linear(128, 2)), Moons(), source()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(steps):
        x1, y = moons.labelled(256)
        x0 = eight.sample(256)
        if conditional:
            if coupling == "independent":
                (t, xt, ut), y1 = matcher.sample_location_and_conditional_flow(x0, x1), y
            else:
                t, xt, ut, _, y1 = matcher.guided_sample_location_and_conditional_flow(
                    x0, x1, y1=y
                )
            inputs = torch.cat([xt, 2.0 * y1[:, None] - 1, t[:, None]], 1)
        else:
            t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
            inputs = torch.cat([xt, t[:, None]], 1)
        optimizer.zero_grad()
        (net(inputs) - ut).square().mean().backward()
        optimizer.step()

    @torch.no_grad()
    def sample(how: str, start: Tensor, y: Tensor) -> Tensor:
        told = (2.0 * y[:, None] - 1,) if conditional else ()

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            return net(torch.cat([x, *told, t.expand(len(x), 1)], 1))

        ends = torch.tensor([0.0, 1.0])
        if how == "one":
            return start + velocity(ends[0], start)
        return odeint(velocity, start, ends, rtol=1e-4, atol=1e-4, method="dopri5")[-1]

    return sample


def coupling(args: argparse.Namespace) -> None:
    loops = {"scoresde": ours, "torchcfm": torchcfm}
    rows: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for seed in range(args.first, args.first + args.runs):
        g = generator(10**9 + seed)
        x, y = Moons().labelled(args.points, g)
        start = source().sample(args.points, generator=g)
        if not args.row or "floor" in args.row:
            note(
                args,
                "truth",
                "",
                "floor",
                seed,
                floor=transport(x, Moons().sample(args.points, g)),
            )
        for (problem, name), _ in PUBLISHED.items():
            for who, loop in loops.items():
                row = f"{who} {problem} {name}"
                if (args.row and not any(part in row for part in args.row)) or (who, name) == (
                    "torchcfm",
                    "condition_aware_ot",
                ):
                    continue
                begun = time.process_time()
                sample = loop(name, problem == "moon", seed, args.steps)
                spent = time.process_time() - begun
                wanted = ("one", "adaptive") if PUBLISHED[problem, name][0] else ("adaptive",)
                found = {how: transport(x, sample(how, start, y)) for how in wanted}
                note(args, who, problem, name, seed, **found, seconds=spent)
                for key, value in found.items():
                    rows.setdefault((who, problem, name), {}).setdefault(key, []).append(value)
    print(
        "\n| | coupling | | one Euler step | published | adaptive | published |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for (who, problem, name), found in rows.items():
        one, adaptive = PUBLISHED[problem, name]
        print(
            f"| {problem} | {name} | {who} | {spread(found.get('one', []))} | {one} | "
            f"{spread(found['adaptive'])} | {adaptive} |"
        )


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.mean(values):.3f} ± {statistics.pstdev(values):.3f} ({len(values)})"


def note(args: argparse.Namespace, *names: Any, **values: Any) -> None:
    print(*names, {key: round(value, 4) for key, value in values.items()}, flush=True)
    if args.out:
        with Path(args.out).open("a") as file:
            file.write(json.dumps([*names, values]) + "\n")


# --- reflow and one step ---

DENSITIES = ("eight_gaussians", "moons", "checkerboard")
ONE: dict[str, Any] = {"solver": "ddim", "steps": 1}


class Grade:
    """E² of samples over its floor."""

    def __init__(self, name: str, seed: int) -> None:
        self.law = scoresde.toy.DENSITIES[name]()
        few = scoresde.noise_floor(
            scoresde.energy_distance, self.law, 4000, repeats=40, generator=generator(99)
        )
        self.floor, self.seed = few.rms * 4000 / POINTS, seed

    def __call__(self, sde: scoresde.ScoreSDE, draws: int = 4, **how: Any) -> float:
        """Mean over draws."""
        found = []
        for k in range(draws):
            x = scoresde.sample(sde, POINTS, generator=generator(1000 * k + self.seed), **how)
            found.append(
                float(
                    scoresde.energy_distance(
                        x, self.law.sample(POINTS, generator(777 + 1000 * k + self.seed))
                    )
                )
            )
        return statistics.mean(found) / self.floor


def train(
    data: Any,
    seed: int,
    steps: int,
    start: scoresde.ScoreSDE | None = None,
    net: str = "mlp",
    **how: Any,
) -> Any:
    torch.manual_seed(seed)
    sde = (
        copy.deepcopy(start)
        if start is not None
        else scoresde.build("rectified", net, shape=(2,), blur=False)
    )
    begun = time.process_time()
    scoresde.fit(sde, data, steps=steps, generator=generator(seed), progress=False, **how)
    return sde, time.process_time() - begun


def reflow(args: argparse.Namespace) -> None:
    for name in args.density or DENSITIES:
        for seed in range(args.first, args.first + args.runs):
            grade = Grade(name, seed)
            sde, seconds = train(grade.law, seed, args.steps)
            for k in range(3):
                found = scoresde.straightness(sde, 4000, generator=generator(seed))
                values = {
                    key: getattr(found, key).value
                    for key in ("straightness", "path_energy", "curvature")
                }
                ends = {
                    "one": grade(sde, **ONE),
                    "two": grade(sde, **ONE | {"steps": 2}),
                    "adaptive": grade(sde),
                }
                note(args, name, f"{k} reflows", seed, **values, **ends, seconds=seconds)
                if k == 2:
                    break
                pairs = scoresde.reflow(
                    sde, 100_000, generator=generator(seed), rtol=1e-4, atol=1e-4, progress=False
                )
                sde, seconds = train(pairs, seed, args.steps, sde)
                student, seconds_more = train(
                    pairs, seed, args.steps // 2, sde, objective="distilled"
                )
                note(
                    args,
                    name,
                    f"{k + 1} reflows, distilled",
                    seed,
                    one=grade(student, **ONE),
                    seconds=seconds_more,
                )


def onestep(args: argparse.Namespace) -> None:
    for name in args.density or DENSITIES:
        for seed in range(args.first, args.first + args.runs):
            grade = Grade(name, seed)
            for objective in ("consistency", "meanflow"):
                sde, seconds = train(
                    grade.law, seed, args.steps, net="two_times", objective=objective
                )
                for solver in ("consistency", "flow_map")[: 1 + (sde.outcome.name == "flow_map")]:
                    ends = {f"evaluations_{k}": grade(sde, solver=solver, steps=k) for k in (1, 2)}
                    note(args, name, objective, solver, seed, **ends, seconds=seconds)


# --- cost ---


def cost(args: argparse.Namespace) -> None:
    x = Moons().sample(50_000, generator(0))

    def run(coupling: Any) -> float:
        sde = scoresde.build("rectified", "mlp", shape=(2,), width=128, depth=3)
        how = {"steps": args.steps, "batch_size": 256, "progress": False}
        how["objective"] = scoresde.Denoising(noise="uniform")
        begun = time.perf_counter()
        scoresde.fit(sde, x, coupling=coupling, **how)
        return (time.perf_counter() - begun) / args.steps

    kinds = {
        "independent": "independent",
        "minibatch_ot": "minibatch_ot",
        "minibatch_ot, reuse=1": MinibatchOT(reuse=1),
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(args.runs):
        for name, each in kinds.items():
            times[name].append(run(each))
    base = statistics.median(times["independent"])
    for name, each in times.items():
        middle = statistics.median(each)
        print(
            f"{name}: {1e3 * middle:.2f} ms a step, {middle / base:.2f} × independent "
            f"({torch.get_num_threads()} threads)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("coupling", "reflow", "onestep", "cost"))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--steps",
        type=int,
        help="of training: 20,000 for coupling, 1,000 for cost, else fit's 10,000",
    )
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--row", nargs="*", help="only rows whose name has one of these in it")
    parser.add_argument(
        "--density",
        nargs="*",
        choices=DENSITIES,
        help="of reflow and onestep; all if none is named",
    )
    parser.add_argument("--out", help="a file to append every figure to")
    args = parser.parse_args()
    args.steps = args.steps or {"coupling": 20_000, "cost": 1000}.get(args.what, 10_000)
    warnings.filterwarnings("ignore")
    {"coupling": coupling, "reflow": reflow, "onestep": onestep, "cost": cost}[args.what](args)


if __name__ == "__main__":
    main()
