"""How fast `scoresde.fit` trains, and how soon a model is good: ours beside loops by hand and the
peers', in one run.

    python benchmarks/training.py throughput|quality|all [--quick] [--out FILE.md] [--json
    FILE.json]

`throughput`: wall and CPU time per step of a 2-D network, 3×128 with SiLU on [x, label], at batch
256, 1,024 and 4,096, on 50,000 points of 8 Gaussians that are a tensor. Everyone trains the very
same `Net` of `training_peers`; ours is `fit(ScoreSDE(VPSDE(), Net()))`, whose objective differs
(arc velocity, log-normal noise) and whose network doesn't. A run of ours is a whole call with its
beginning and end: standardization, whatever is compiled, the average. Each batch and number of
threads is a process of its own, so that the first run is a cold one. Rounds are interleaved: naive
loop, everyone, naive loop; each time is divided into the mean of the two naive ones about it.
Printed are medians of naive ÷ this (more is better), of CPU time on one thread, of wall time on
two.

`quality`: CPU seconds of training on one thread until 10,000 samples of the model are as good as
true ones. Grade: the squared energy distance E² = 2·E|X − Y| − E|X − X′| − E|Y − Y′|
(`scoresde.metrics`, unbiased) to 10,000 true samples that are fixed for a seed. Thresholds:
**noise**, the 95% quantile of E² between two sets of 10,000 true samples, and **coarse**, 1e-3 (8
Gaussians, moons) and 3e-3 (checkerboard). The quantile is that of 2,000 draws of two sets of 500,
divided by 20: E² of equal laws is a degenerate U-statistic, which scales as 1/n. Everyone is
examined at the same times, 0.5 s · 1.4^k, and the first that passes counts. Loops of a constant
rate go on after an examination; ours decays its rate over the run, so it is trained anew, from
`fit`'s defaults, for each time: `steps` is what its pace allows. Its rows are with the loops' own
network, with `mlp` of as many layers (which has Fourier features besides), and with the default
`mlp`, of 4×128. Training is on 200,000 points, all models are sampled by the same code at 32
steps, and neither that nor the grade is counted.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_peers import LOOPS, PACE, Loop, Net, naive

import scoresde
from scoresde.metrics import energy_distance

BATCHES = (256, 1024, 4096)
TARGETS = {256: (1.2, 1.4), 1024: (1.1, 1.2), 4096: (1.05, 1.05)}
COARSE = {"eight_gaussians": 1e-3, "moons": 1e-3, "checkerboard": 3e-3}
FIRST, RATIO = 0.5, 1.4  # seconds of the first examination, and from one to the next
PACKAGES = ("torch", "azula", "flow_matching", "torchcfm", "score_models", "POT")
Clock = tuple[float, float]
"""Wall and CPU seconds."""


class Printer:
    """Prints lines, adds them to a Markdown file, and keeps rows for a JSON file."""

    def __init__(self, out: str | None, rows: str | None) -> None:
        self.out, self.json, self.rows = (
            (Path(out) if out else None),
            (Path(rows) if rows else None),
            [],
        )
        if self.out:
            self.out.write_text("")

    def __call__(self, line: str = "") -> None:  # noqa: D102
        print(line, flush=True)
        if self.out:
            with self.out.open("a") as file:
                file.write(line + "\n")

    def keep(self, **row: Any) -> None:  # noqa: D102
        self.rows.append(row)
        if self.json:
            self.json.write_text(json.dumps({"machine": machine(), "rows": self.rows}, indent=1))


def machine() -> str:
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{', '.join(versions)}; {machine}; {time.strftime('%Y-%m-%d')}"


def timed(run: Callable[[], object]) -> Clock:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


# --- throughput ---


def cell(
    batch: int, threads: int, steps: int, rounds: int
) -> dict[str, list[tuple[float, Clock]]]:
    """Naive ÷ this, and wall and CPU seconds per step, of each round, by name.

    One thread is judged by its CPU time, which other programs of the machine disturb less; two by
    wall time.
    """
    clock = 1 if threads == 1 else 0
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    data = scoresde.toy.EightGaussians().sample(50_000)
    chunk = max(10, min(200, steps // 10) * 256 // batch)
    found: dict[str, list[tuple[float, Clock]]] = {}
    reference = naive(Net(), data, batch)
    reference(20)
    before = timed(lambda: reference(chunk))[clock] / chunk

    def note(name: str, count: int, run: Callable[[], object]) -> None:
        nonlocal before
        spent = timed(run)
        wall, cpu = spent
        after = timed(lambda: reference(chunk))[clock] / chunk
        found.setdefault(name, []).append(
            (0.5 * (before + after) * count / spent[clock], (wall / count, cpu / count))
        )
        before = after

    running: dict[str, Any] = {}
    for round_ in range(rounds):
        # a new model each time, as a user's: what is compiled is compiled for it
        model = scoresde.ScoreSDE(scoresde.VPSDE(), Net(), shape=(2,))
        label = "**ours, `fit`**" if round_ else "**ours, `fit`, first run (cold)**"
        note(
            label,
            steps,
            lambda model=model: scoresde.fit(
                model, data, steps=steps, batch_size=batch, progress=False
            ),
        )
        for name, start in PACE:
            ot = name.startswith("torchcfm, exact")
            if ot and batch > 1024:  # seconds per step
                continue
            count = max(2, chunk * 64 // batch) if ot else chunk
            try:
                if name not in running:
                    running[name] = start(Net(), data, batch)
                    running[name](2)
                    before = timed(lambda: reference(chunk))[clock] / chunk
                note(name, count, lambda name=name, count=count: running[name](count))
            except ImportError as error:
                if not round_:
                    print(f"{name}: skipped, {error}", flush=True)
    return found


def throughput(say: Printer, quick: bool, steps: int) -> None:
    """Print a table for each number of threads."""
    steps, rounds = (300, 2) if quick else (steps, 4)
    for threads in (1, 2):
        tables = {}
        for batch in BATCHES:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                tables[batch] = pool.submit(cell, batch, threads, steps, rounds).result()
        plural = "s" if threads > 1 else ""
        say(
            f"### Naive loop's time per step ÷ this one's, {threads} thread{plural}; ours in runs "
            f"of {steps:,} steps\n"
        )
        say(
            "| loop | "
            + " | ".join(f"{batch:,}: ratio | wall ms | CPU ms" for batch in BATCHES)
            + " |"
        )
        say("| --- |" + " --- |" * 3 * len(BATCHES))
        for name in tables[BATCHES[0]]:
            cells = []
            for batch in BATCHES:
                rows = tables[batch].get(name)
                if not rows:
                    cells.append("– | – | –")
                    continue
                ratio, wall, cpu = (
                    statistics.median(c)
                    for c in zip(*((r, w, c) for r, (w, c) in rows), strict=True)
                )
                cells.append(f"{ratio:.2f} | {1e3 * wall:.2f} | {1e3 * cpu:.2f}")
                say.keep(
                    what="throughput",
                    loop=name,
                    threads=threads,
                    batch=batch,
                    ratio=ratio,
                    wall_s=wall,
                    cpu_s=cpu,
                )
            say(f"| {name} | " + " | ".join(cells) + " |")
        asked = " | ".join(f"≥ {least} (wanted {wish}) | | " for least, wish in TARGETS.values())
        say(f"| *asked of ours* | {asked} |")
        say()


# --- quality ---


class Examiner:
    """Grades models of one density: E² to 10,000 fixed true samples, whose own term is computed
    once.
    """

    def __init__(self, name: str, seed: int, n: int) -> None:
        self.n = n
        generator = torch.Generator().manual_seed(1000 + seed)
        density = scoresde.toy.DENSITIES[name]()
        self.data = density.sample(200_000, generator=generator)
        self.truth = density.sample(n, generator=generator)
        self.own = self.mean(self.truth, self.truth) * n / (n - 1)

    def __call__(self, sde: scoresde.ScoreSDE) -> float:
        """E² of a model, in units of the data."""
        sde.eval()
        x = scoresde.sample(sde, self.n, steps=32, generator=torch.Generator().manual_seed(7))
        if not x.isfinite().all():
            return math.inf
        return 2 * self.mean(x, self.truth) - self.mean(x, x) * self.n / (self.n - 1) - self.own

    @staticmethod
    def mean(x: Tensor, y: Tensor) -> float:
        """E|X − Y| over all pairs; distances in float32, which is 3e-7 in E², summed in float64."""
        direct = "donot_use_mm_for_euclid_dist"
        sums = [
            torch.cdist(part, y, compute_mode=direct).sum(dtype=torch.float64)
            for part in x.split(50)
        ]
        return float(torch.stack(sums).sum()) / (len(x) * len(y))


def noise_of(name: str, n: int, draws: int = 2000, m: int = 500) -> float:
    """The 95% quantile of E² between two sets of n true samples."""
    density, generator = scoresde.toy.DENSITIES[name](), torch.Generator().manual_seed(0)
    pairs = (density.sample(2 * m, generator=generator).split(m) for _ in range(draws))
    values = sorted(float(energy_distance(x, y)) for x, y in pairs)
    return values[math.ceil(0.95 * draws) - 1] * m / n


Passed = list[float | None]
"""Seconds to each threshold, or None."""


class Crossing:
    """Notes the first time at which each threshold is met."""

    def __init__(self, thresholds: list[float], cap: float) -> None:
        self.thresholds, self.cap, self.best = thresholds, cap, math.inf
        self.passed: Passed = [None] * len(thresholds)

    def note(self, seconds: float, grade: float) -> bool:
        """True when there is no more to see."""
        self.best = min(self.best, grade)
        self.passed = [
            seconds if old is None and grade <= limit else old
            for old, limit in zip(self.passed, self.thresholds, strict=True)
        ]
        return None not in self.passed or seconds * RATIO > self.cap


def go_on(loop: Loop, exam: Examiner, seed: int, crossing: Crossing) -> None:
    """A loop of constant rate, examined on its way."""
    torch.manual_seed(seed)
    net = Net()
    step = loop.start(net, exam.data, loop.batch)
    spent, mark = 0.0, FIRST
    while True:
        while spent < mark:
            spent += timed(lambda: step(10))[1]
        if crossing.note(spent, exam(loop.model(net))):
            return
        mark *= RATIO


Build = Callable[[], scoresde.ScoreSDE]


def same_size(process: str) -> Build:
    """Ours with the peers' network."""
    return lambda: scoresde.ScoreSDE(scoresde.PROCESSES.build(process), Net(), shape=(2,))


def default(process: str, depth: int = 4) -> Build:
    """Ours with our default network, whose first layer is fed Fourier features, of so many layers
    of 128.
    """
    return lambda: scoresde.build(process, "mlp", shape=(2,), depth=depth)


OURS = {
    "**ours, vp, same network**": same_size("vp"),
    "**ours, rectified, same network**": same_size("rectified"),
    "**ours, vp, mlp of 3×128**": default("vp", 3),
    "**ours, rectified, mlp of 3×128**": default("rectified", 3),
    "**ours, vp, default mlp**": default("vp"),
    "**ours, rectified, default mlp**": default("rectified"),
}


def train_anew(build: Build, exam: Examiner, seed: int, crossing: Crossing) -> None:
    """`fit` from its defaults, once for each examination."""
    torch.manual_seed(seed)

    def run(steps: int) -> tuple[scoresde.ScoreSDE, float]:
        torch.manual_seed(seed)
        sde = build()
        return sde, timed(lambda: scoresde.fit(sde, exam.data, steps=steps, progress=False))[1]

    run(20)  # what only the first call pays is paid
    pace = (run(120)[1] - run(20)[1]) / 100
    mark, seconds = FIRST, 0.0
    while True:
        steps = max(20, round(mark / pace))
        sde, seconds = run(steps)
        pace = seconds / steps
        if crossing.note(seconds, exam(sde)):
            return
        mark *= RATIO


def quality(say: Printer, args: argparse.Namespace) -> None:
    """Print a table: a row a loop, for each density the median seconds to noise and to coarse,
    over seeds.
    """
    torch.set_num_threads(1)
    n, seeds, cap = (4000, 1, 4.0) if args.quick else (10_000, args.seeds, args.cap)
    names = args.density or list(COARSE)
    noise = {name: noise_of(name, n) for name in names}
    rows: dict[str, Callable[[Examiner, int, Crossing], None]] = {
        name: (lambda exam, seed, c, build=build: train_anew(build, exam, seed, c))
        for name, build in OURS.items()
    }
    rows |= {
        loop.name: (lambda exam, seed, c, loop=loop: go_on(loop, exam, seed, c)) for loop in LOOPS
    }
    found: dict[str, dict[str, list[Crossing]]] = {name: {} for name in rows}
    for density in names:
        for seed in range(seeds):
            exam = Examiner(density, seed, n)
            for name, run in rows.items():
                if args.row and not any(part in name for part in args.row):
                    continue
                crossing = Crossing([noise[density], COARSE[density]], cap)
                try:
                    run(exam, seed, crossing)
                except ImportError as error:
                    print(f"{name}: skipped, {error}", flush=True)
                    continue
                found[name].setdefault(density, []).append(crossing)
                print(
                    f"  {density} {seed} {name}: {crossing.passed}, best {crossing.best:.1e}",
                    flush=True,
                )
                say.keep(
                    what="quality",
                    loop=name,
                    density=density,
                    seed=seed,
                    seconds=crossing.passed,
                    limits=crossing.thresholds,
                )
    say(
        f"### CPU seconds of training until E² ≤ noise / ≤ coarse, {n:,} samples: median of "
        f"{seeds} seeds (all)\n"
    )
    limits = [f"{name}: E² ≤ {noise[name]:.1e} | ≤ {COARSE[name]:.0e}" for name in names]
    say("| loop | " + " | ".join(limits) + " |")
    say("| --- |" + " --- |" * 2 * len(names))
    for name, by in found.items():
        if by:
            say(
                f"| {name} | "
                + " | ".join(
                    summary(by.get(density, []), i, cap) for density in names for i in (0, 1)
                )
                + " |"
            )
    say()


def summary(crossings: list[Crossing], which: int, cap: float) -> str:
    """The median and all values; `>` for what did not pass within the cap."""
    values = sorted(math.inf if c.passed[which] is None else c.passed[which] for c in crossings)
    if not values:
        return "–"
    show = [f"> {cap:g}" if math.isinf(v) else f"{v:.1f}" for v in values]
    return f"{show[len(show) // 2]} ({', '.join(show)})" if len(show) > 1 else show[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("throughput", "quality", "all"))
    parser.add_argument("--out", help="a Markdown file for the tables, beside the screen")
    parser.add_argument("--json", help="a JSON file for the rows")
    parser.add_argument("--quick", action="store_true", help="a few minutes, to see that it works")
    parser.add_argument(
        "--steps", type=int, default=2000, help="length of our runs in `throughput`"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of `quality`")
    parser.add_argument(
        "--cap",
        type=float,
        default=15.0,
        help="CPU seconds of training after which a run is given up",
    )
    parser.add_argument(
        "--density",
        nargs="*",
        choices=tuple(COARSE),
        help="of `quality`; all of them if none is named",
    )
    parser.add_argument(
        "--row", nargs="*", help="only rows of `quality` whose name has one of these in it"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    say = Printer(args.out, args.json)
    say(f"{machine()}\n")
    if args.what in ("throughput", "all"):
        throughput(say, args.quick, args.steps)
    if args.what in ("quality", "all"):
        quality(say, args)


if __name__ == "__main__":
    main()
