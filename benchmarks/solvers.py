"""How few evaluations, how exact a spread, how little overhead: our solvers beside the peers', in
one run.

    python benchmarks/solvers.py ours [SOLVER ...] [--only WORDS] [--json PATH] python
    benchmarks/solvers.py page python benchmarks/solvers.py draw --json PATH --figure PATH python
    benchmarks/solvers.py frontier|stochastic|overhead|all [--quick] [--dpm-solver
    PATH/dpm_solver_pytorch.py]

`all` is frontier, page, stochastic and overhead: every table of docs/solvers.md, and with --figure
its picture. `ours` takes a minute and no peers: any of our deterministic solvers, with options and
spacing if wanted (as in "unipc order=4 spacing=arc"), on all problems. `frontier` puts ours beside
the peers. Both integrate the probability-flow ODE of mixtures with the exact score, VP(0.1, 20),
float64, in units of the standardized data (see `problems`). Everyone starts from the same noise
and is measured against the same solution, RMS over samples and dimensions. A peer counts by the
best of all its solvers and settings (see `peers`), chosen anew for every number; ours by one
default setting. `stochastic` and `overhead` are explained in the modules of their names. Tables
are printed in Markdown.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import overhead
import page
import peers
import stochastic
import torch
from problems import chosen
from race import LIMIT, OURS, Point, Race, deterministic, ours

TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
BUDGETS = (10, 20, 36, 50, 100, 200)
FINE = (
    *range(3, 19),
    22,
    25,
    28,
    32,
    40,
    44,
    48,
    56,
    64,
    72,
    80,
    86,
    92,
    112,
    128,
    140,
    160,
    180,
    194,
    206,
    225,
)
PICTURED = ("P1 8 Gaussians, 2-D", "P2 10 Gaussians, 64-D", "narrow, 64-D")
TOLERANCES = tuple(10 ** (-k / 2) for k in range(1, 23))


def sweep(
    race: Race, run: peers.Setting | str, adaptive: bool, budgets: Iterable[float]
) -> list[Point]:
    """Run a setting (or a solver of ours) at every budget, or at falling tolerances until it costs
    too much.
    """
    points = []
    for budget in TOLERANCES if adaptive else budgets:
        point = (
            race.ours(run, budget, adaptive) if isinstance(run, str) else race.peer(run, budget)
        )
        points.append(point)
        if adaptive and point.nfe > LIMIT - 10:
            break
    return points


def needed(points: Iterable[Point], target: float) -> Point | None:
    return min((p for p in points if p.error <= target), key=lambda p: p.nfe, default=None)


def at(points: Iterable[Point], budget: int, fixed: bool = True) -> Point | None:
    return min(
        (p for p in points if p.nfe <= budget and not (fixed and p.adaptive)),
        key=lambda p: p.error,
        default=None,
    )


def frontier(args: argparse.Namespace) -> list[Point]:
    settings = peers.all_peers(args.dpm_solver)
    budgets = (10, 20, 50) if args.quick else BUDGETS
    names = list(chosen(args.only))[: 1 if args.quick else None]
    points: list[Point] = []
    for name, mixture in names:
        began = time.process_time()
        race = Race(name, mixture, 64 if args.quick else 128)
        mine: list[Point] = []
        coarse = {
            setting: sweep(race, setting, True, ()) for setting in settings if setting.adaptive
        }
        climbing = [setting for setting in settings if not setting.adaptive]
        for budget in budgets:
            for setting in climbing:
                coarse.setdefault(setting, []).extend(sweep(race, setting, False, [budget]))
            if budget == 100:  # who is ten times worse than the best is spared the dearest
                limit = 10 * min(coarse[setting][-1].error for setting in climbing)
                climbing = [setting for setting in climbing if coarse[setting][-1].error <= limit]
        for budget in budgets:  # those near the front at one of the budgets run at all of them
            best = at((p for run in coarse.values() for p in run), budget)
            for setting, run in list(coarse.items()):
                near = any(
                    p.budget == budget and best and p.error <= 1.3 * best.error for p in run
                )
                if near and not setting.adaptive and len(run) <= len(budgets) and not args.quick:
                    coarse[setting] = run + sweep(race, setting, False, FINE)
        theirs = [p for run in coarse.values() for p in run]
        for solver, adaptive in deterministic():
            fine = not args.quick and not adaptive and (solver == args.ours or args.ours_fine)
            mine += sweep(race, solver, adaptive, sorted({*budgets, *FINE}) if fine else budgets)
        points += theirs + mine
        save(args.json, points)
        print(
            f"### {name}: {len(settings)} settings of peers, "
            f"{time.process_time() - began:.0f} s of CPU\n"
        )
        print_needed(theirs, mine, args.ours)
        print_errors(theirs, mine, args.ours, budgets)
    if len(names) > 1:
        print_single(points, args.ours, budgets)
    return points


def cell(point: Point | None) -> str:
    return "–" if point is None else f"{point.nfe:.0f}"


def line(name: str, cells: Iterable[str]) -> None:
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def head(name: str, cells: Iterable[str]) -> None:
    cells = list(cells)
    line(name, cells)
    print("| --- |" + " --- |" * len(cells))


def print_needed(theirs: list[Point], mine: list[Point], ours: str) -> None:
    head("evaluations for an RMS error ≤", (f"{target:.0e}" for target in TARGETS))
    best = [needed(theirs, target) for target in TARGETS]
    line("best peer", map(cell, best))
    line("… which", (f"{p.peer} {p.setting}" if p else "–" for p in best))
    for peer in sorted({p.peer for p in theirs}):
        line(
            peer,
            (cell(needed((p for p in theirs if p.peer == peer), target)) for target in TARGETS),
        )
    for solver in sorted(
        {p.setting for p in mine}, key=lambda name: (not name.startswith(ours), name)
    ):
        own = [p for p in mine if p.setting == solver]
        label = f"**ours, {solver}**" if solver == ours else f"ours, {solver}"
        line(label, (cell(needed(own, target)) for target in TARGETS))
    print()


def print_errors(
    theirs: list[Point], mine: list[Point], ours: str, budgets: Iterable[int]
) -> None:
    budgets = list(budgets)
    head("error at", (f"{budget} evaluations" for budget in budgets))
    best = [at(theirs, budget) for budget in budgets]
    own = [at((p for p in mine if p.setting == ours), budget, fixed=False) for budget in budgets]
    line("best fixed setting of a peer", (f"{p.error:.1e}" if p else "–" for p in best))
    line("… which", (f"{p.peer} {p.setting}" if p else "–" for p in best))
    line(f"**ours, {ours}**", (f"{p.error:.1e}" if p else "–" for p in own))
    line(
        "ours ÷ peer",
        (f"{p.error / q.error:.2f}" if p and q else "–" for p, q in zip(own, best, strict=True)),
    )
    print()


def print_single(points: list[Point], ours: str, budgets: Iterable[int]) -> None:
    """The one setting of a peer that is best over all problems, by the geometric mean of its
    errors, a budget at a time.
    """
    names = list(dict.fromkeys(p.problem for p in points))
    print(
        "### Over all problems: the best single fixed setting of a peer, geometric mean of errors\n"
    )
    rows = []
    for budget in budgets:
        tried: dict[tuple[str, str], dict[str, float]] = {}
        for p in points:
            if p.nfe <= budget and p.budget <= budget and not p.adaptive:
                errors = tried.setdefault((p.peer, p.setting), {})
                errors[p.problem] = min(errors.get(p.problem, math.inf), p.error)
        mean = {
            key: math.exp(sum(math.log(e) for e in v.values()) / len(v))
            for key, v in tried.items()
            if len(v) == len(names)
        }
        best = min((key for key in mean if key[0] != OURS), key=mean.__getitem__)
        own = mean.get((OURS, ours), math.nan)
        worst = (
            max(tried[OURS, ours][name] / tried[best][name] for name in names)
            if (OURS, ours) in tried
            else math.nan
        )
        rows.append(
            (
                str(budget),
                f"{mean[best]:.1e}",
                " ".join(best),
                f"{own:.1e}",
                f"{own / mean[best]:.2f}",
                f"{worst:.2f}",
            )
        )
    head("evaluations", ("peer", "which", f"ours, {ours}", "ours ÷ peer", "worst problem"))
    for first, *rest in rows:
        line(first, rest)
    print()


def save(path: str | None, points: list[Point]) -> None:
    if path:
        kept = [asdict(p) for p in points if math.isfinite(p.error)]
        Path(path).write_text(
            json.dumps(
                {"torch": torch.__version__, "machine": platform.machine(), "points": kept},
                indent=0,
            )
        )


def figure(path: str, points: list[Point], ours: str) -> None:
    """Error against evaluations on PICTURED problems: peers' envelopes in gray, ours in color."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in dict.fromkeys(p.problem for p in points) if name in PICTURED]
    fig, axes = plt.subplots(
        1, len(names), figsize=(3.6 * len(names), 3.6), sharey=True, squeeze=False
    )
    own = [(ours, "tab:red"), (f"{ours}, adaptive", "tab:orange"), ("rk45, adaptive", "tab:blue")]
    styles = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
    for axis, name in zip(axes[0], names, strict=True):
        here = [p for p in points if p.problem == name]
        for style, peer in zip(styles, sorted({p.peer for p in here} - {OURS}), strict=False):
            draw(
                axis,
                [p for p in here if p.peer == peer],
                color="0.55",
                linestyle=style,
                linewidth=1.2,
                label=peer,
            )
        for solver, color in own:
            kept = [p for p in here if p.peer == OURS and p.setting == solver]
            if kept:
                draw(axis, kept, color=color, linewidth=2.0, label=f"scoresde {solver}")
        axis.set(
            xscale="log",
            yscale="log",
            xlim=(4, LIMIT),
            ylim=(1e-8, 1),
            xlabel="network evaluations",
            title=name,
        )
    axes[0, 0].set_ylabel("RMS error of the end point")
    axes[0, -1].legend(fontsize=7, frameon=False)
    fig.tight_layout()
    fig.savefig(path, dpi=160)


def draw(axis: object, points: list[Point], **style: object) -> None:
    """The lower envelope: points that no cheaper one beats."""
    front: list[Point] = []
    for p in sorted(points, key=lambda p: (p.nfe, p.error)):
        if math.isfinite(p.error) and (not front or p.error < front[-1].error):
            front.append(p)
    axis.plot([p.nfe for p in front], [p.error for p in front], **style)  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", choices=("ours", "frontier", "page", "stochastic", "overhead", "draw", "all")
    )
    parser.add_argument(
        "solvers",
        nargs="*",
        help="of `ours` and `stochastic`: names with options, as in 'unipc order=4 spacing=arc'; "
        "all if none",
    )
    parser.add_argument(
        "--load", help="of `ours`: a Python file to run first, which registers solvers"
    )
    parser.add_argument(
        "--budgets", type=int, nargs="+", help="of `ours` and `stochastic`: numbers of evaluations"
    )
    parser.add_argument("--process", default="vp", help="of `ours`: a process by name")
    parser.add_argument(
        "--only", help="only problems with one of these words in their names, commas between"
    )
    parser.add_argument(
        "--ours",
        default="adams",
        help="our solver, in its default setting, that stands beside the best peer",
    )
    parser.add_argument(
        "--ours-fine", action="store_true", help="run all our fixed-step solvers at every budget"
    )
    parser.add_argument(
        "--dpm-solver", help="the file dpm_solver_pytorch.py of LuChengTHU/dpm-solver"
    )
    parser.add_argument("--json", help="where to store every point of the frontier")
    parser.add_argument("--figure", help="where to draw the frontier")
    parser.add_argument(
        "--quick", action="store_true", help="a minute instead of a quarter of an hour"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, one thread, {platform.machine()}, "
        f"{time.strftime('%Y-%m-%d')}\n"
    )
    torch.set_default_dtype(torch.float64)  # some peers make their constants in the default dtype
    if args.what == "draw":
        kept = json.loads(Path(args.json).read_text())["points"]
        figure(args.figure, [Point(**point) for point in kept], args.ours)
    if args.what == "ours":
        save(args.json, ours(args))
    if args.what in ("frontier", "all"):
        points = frontier(args)
        if args.figure:
            figure(args.figure, points, args.ours)
    if args.what in ("page", "all"):
        page.tables()
    if args.what in ("stochastic", "all"):
        stochastic.table({k: v for k, v in chosen(args.only) if "moons" not in k}, args)
    torch.set_default_dtype(torch.float32)
    if args.what in ("overhead", "all"):
        overhead.table(args.quick)


if __name__ == "__main__":
    main()
