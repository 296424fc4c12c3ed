"""How good a model in the same CPU time: KL(truth ‖ model) on every toy density, and bits/dim of
digits, beside peers' models.

    python benchmarks/likelihood.py density [--seconds 40] [--densities moons rings] [--models vp
    NSF] [--json FILE.jsonl] python benchmarks/likelihood.py digits [--seconds 40]

Everyone trains on one thread for the same CPU time, on endless fresh samples. Ours is
`build(process, "mlp", shape=(2,))` and `fit` with its defaults but the number of steps, which a
short timing makes fill the time. Peers (see `likelihood_peers`) run Adam until the time is up,
with cosine decay to 0 over it (on rings a constant rate did as well). Their data are standardized
per dimension, flow_matching's are not. The gap is the mean over 10,000 true points of log p_true −
log p_model, paired, with its standard error. Each result is a line of the JSON file, and what is
there already is not run again.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from likelihood_peers import MODELS, Model, Standardized, nsf
from torch import Tensor

import scoresde
from scoresde.common import plotting

OURS = ("vp", "ve", "rectified")
COLUMNS = (*OURS, *MODELS)
DRAWN = ("vp", "NSF")
GRID = 160
RECORD = {  # targets of an earlier record, 40 CPU seconds
    "eight_gaussians": 0.0095,
    "checkerboard": 0.044,
    "moons": 0.0087,
    "rings": 0.018,
    "pinwheel": 0.015,
    "swiss_roll": 0.015,
    "two_spirals": 0.021,
}
Say = Callable[[str], None]
LogProb = Callable[[Tensor], Tensor]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of both commands."""
    parser.add_argument("--seconds", type=float, default=40.0, help="CPU time of every training")
    parser.add_argument(
        "--densities",
        nargs="*",
        default=list(scoresde.toy.DENSITIES),
        choices=list(scoresde.toy.DENSITIES),
    )
    parser.add_argument("--models", nargs="*", default=list(COLUMNS), choices=COLUMNS)
    parser.add_argument(
        "--json",
        default="likelihood.jsonl",
        help="where results of `density` are added, one a line",
    )
    parser.add_argument(
        "--figure", help="where to draw the densities; the gaps are drawn beside it, as …-gaps"
    )
    parser.add_argument("--seed", type=int, default=0)


# --- training for a time ---


def steps_for(seconds: float, make: Callable[[], scoresde.ScoreSDE], data: Any, **how: Any) -> int:
    """How many steps of `fit` take that CPU time: from two short fits, whose difference leaves out
    what comes but once.
    """
    spent = []
    for steps in (50, 100, 400):  # the first warms up
        sde, began = make(), time.process_time()
        scoresde.fit(sde, data, steps=steps, progress=False, **how)
        spent.append(time.process_time() - began)
    pace = (spent[2] - spent[1]) / 300
    return max(1, round((seconds - spent[1]) / pace) + 100)


def ours(
    seconds: float, make: Callable[[], scoresde.ScoreSDE], data: Any, seed: int, **how: Any
) -> tuple[Any, int, float]:
    """A model of ours after that CPU time, its steps, and the CPU time it really took."""
    steps = steps_for(seconds, make, data, **how)
    torch.manual_seed(seed)
    sde, began = make(), time.process_time()
    scoresde.fit(
        sde,
        data,
        steps=steps,
        progress=False,
        generator=torch.Generator().manual_seed(seed),
        **how,
    )
    return sde, steps, time.process_time() - began


def theirs(
    seconds: float,
    model: Model,
    draw: Callable[[int], Tensor],
    check: Callable[[], float] | None = None,
) -> int:
    """Train a peer's model for that CPU time; return its steps. With `check`, the weights that it
    likes best are kept.

    The time that checks take does not count.
    """
    optimizer = torch.optim.Adam(model.parameters, lr=model.lr)
    steps, used, best, kept = 0, 0.0, math.inf, [p.detach().clone() for p in model.parameters]
    looked = 0.0
    while used < seconds:
        began = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = model.lr * 0.5 * (1 + math.cos(math.pi * used / seconds))
        loss = model.loss(draw(model.batch))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        steps += 1
        used += time.process_time() - began
        if check is not None and (used - looked > seconds / 50 or used >= seconds):
            looked, value = used, check()
            if value < best:
                best, kept = value, [p.detach().clone() for p in model.parameters]
    if check is not None:
        with torch.no_grad():
            for p, value in zip(model.parameters, kept, strict=True):
                p.copy_(value)
    return steps


# --- toy densities ---


def trained(
    name: str, truth: scoresde.toy.Density, seconds: float, seed: int
) -> tuple[LogProb, dict[str, float]]:
    """A model's log p after training, and what it took."""
    torch.manual_seed(seed)
    if name in OURS:
        sde, steps, used = ours(
            seconds, lambda: scoresde.build(name, "mlp", shape=(2,)), truth, seed
        )
        return lambda x: scoresde.log_prob(sde, x), {"steps": steps, "cpu": used}
    model = MODELS[name](2)
    inside = Standardized(truth.sample(100_000), model.standardized)
    steps = theirs(seconds, model, lambda n: inside.inside(truth.sample(n)))

    def log_prob(x: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [model.log_prob(part).detach() for part in inside.inside(x).split(2500)]
        return torch.cat(parts) - inside.log_det

    return log_prob, {"steps": steps, "cpu": seconds}


def gap(
    truth: scoresde.toy.Density, log_prob: LogProb, points: int, seed: int
) -> dict[str, float]:
    """KL(truth ‖ model) in nats, and its standard error."""
    x = truth.sample(points, generator=torch.Generator().manual_seed(seed + 1))
    began = time.process_time()
    excess = (truth.log_prob(x) - log_prob(x)).double()
    seconds = time.process_time() - began
    return {
        "gap": float(excess.mean()),
        "stderr": float(excess.std()) / points**0.5,
        "log_prob_cpu": seconds,
    }


def box(truth: scoresde.toy.Density) -> tuple[Tensor, Tensor]:
    """A square that holds a density."""
    low, high = truth.bounds()
    middle, half = 0.5 * (low + high), 0.55 * float((high - low).max())
    return middle - half, middle + half


def picture(file: Path, name: str, model: str) -> Path:
    return file.with_name(f"{file.stem}-{name}-{model}.pt")


def load(file: Path, seconds: float) -> dict[tuple[str, str], dict[str, Any]]:
    """What the file knows about trainings of that length."""
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [row for row in map(json.loads, lines) if row["seconds"] == seconds]
    return {(row["density"], row["model"]): row for row in rows}


def density(say: Any, args: argparse.Namespace) -> None:
    """Train what is missing, then print a table: a row a density, a column a model."""
    file, seconds = Path(args.json), 1.0 if args.quick else args.seconds
    points = 1000 if args.quick else 10_000
    known = load(file, seconds)
    for name in args.densities:
        truth = scoresde.toy.DENSITIES[name]()
        for model in args.models:
            if (name, model) in known:
                continue
            log_prob, spent = trained(model, truth, seconds, args.seed)
            found = {
                "density": name,
                "model": model,
                "seconds": seconds,
                "seed": args.seed,
                "entropy": truth.entropy(),
            }
            found |= spent | gap(truth, log_prob, points, args.seed)
            if model in DRAWN:
                grid = plotting.lattice(*box(truth), GRID)
                torch.save(
                    log_prob(grid).exp().reshape(GRID, GRID).half(), picture(file, name, model)
                )
            with file.open("a") as out:
                out.write(json.dumps(found) + "\n")
            known[name, model] = found
            print(
                f"  {name}, {model}: {found['gap']:.4f} ± {found['stderr']:.4f}, "
                f"{spent['steps']:.0f} steps",
                flush=True,
            )
    say(
        f"### KL(truth ‖ model) in nats after {seconds:g} CPU seconds of training, ± standard "
        f"error ({points:,} points)\n"
    )
    say(
        "| density | true entropy | "
        + " | ".join(f"**ours, {m}**" if m in OURS else m for m in args.models)
        + " | record |"
    )
    say("| --- | --- |" + " --- |" * len(args.models) + " --- |")
    for name in args.densities:
        rows = [known[name, model] for model in args.models]
        cells = [f"{row['gap']:.4f} ± {row['stderr']:.4f}" for row in rows]
        say(
            f"| {name} | {rows[0]['entropy']:.4f} | "
            + " | ".join(cells)
            + f" | {RECORD.get(name, math.nan):.4f} |"
        )
    say("")
    for model in args.models:
        rows = [known[name, model] for name in args.densities]
        steps, cpu, solve = (
            sum(row[k] for row in rows) / len(rows) for k in ("steps", "cpu", "log_prob_cpu")
        )
        say(
            f"- {model}: {steps:,.0f} steps in {cpu:.1f} CPU s on average; log p of {points:,} "
            f"points takes {solve:.1f} CPU s"
        )
    say("")
    if args.figure:
        figure(Path(args.figure), file, known, args)


def figure(
    path: Path, file: Path, known: dict[tuple[str, str], dict[str, Any]], args: argparse.Namespace
) -> None:
    """Draw each density, true and as models have it; and all gaps."""
    plt = plotting._pyplot()
    names = [n for n in args.densities if all(picture(file, n, m).exists() for m in DRAWN)]
    columns = ("truth", *DRAWN)
    sheet, axes = plt.subplots(
        len(columns),
        len(names),
        figsize=(2.2 * len(names), 6.9),
        squeeze=False,
        layout="constrained",
    )
    for j, name in enumerate(names):
        truth = scoresde.toy.DENSITIES[name]()
        true = truth.log_prob(plotting.lattice(*box(truth), GRID)).exp().reshape(GRID, GRID)
        top = 1.4 * float(true.flatten().quantile(0.995))
        for i, model in enumerate(columns):
            shown = true if model == "truth" else torch.load(picture(file, name, model)).float()
            axes[i, j].imshow(shown.numpy(), origin="lower", cmap="magma", vmin=0, vmax=top)
            axes[i, j].set(xticks=[], yticks=[])
            label = f"ours, {model}" if model in OURS else model
            if model != "truth":
                label += f"\n{known[name, model]['gap']:.4f} nats"
            axes[i, j].set_title(name if model == "truth" else label, fontsize=9)
    sheet.savefig(path, dpi=150)
    plt.close(sheet)

    blue, orange, grey = plotting.BLUE, plotting.ORANGE, plotting.GREY
    looks = dict(
        zip(
            COLUMNS,
            [(blue, "o"), (blue, "s"), (blue, "^"), (orange, "D"), (orange, "v"), (grey, "x")],
            strict=True,
        )
    )
    dots, axis = plt.subplots(figsize=(7.5, 0.5 * len(args.densities) + 1.4), layout="constrained")
    for model in args.models:
        color, marker = looks[model]
        gaps = [known[name, model]["gap"] for name in args.densities]
        errors = [2 * known[name, model]["stderr"] for name in args.densities]
        label = f"scoresde {model}" if model in OURS else model
        style = {
            "color": color,
            "marker": marker,
            "linestyle": "none",
            "markersize": 6,
            "elinewidth": 1,
        }
        axis.errorbar(gaps, range(len(gaps)), xerr=errors, label=label, **style)
    seen = [name in RECORD for name in args.densities]
    axis.plot(
        [RECORD.get(n, math.nan) for n in args.densities],
        range(len(seen)),
        "k|",
        markersize=14,
        label="record",
    )
    axis.set(
        xscale="log",
        xlabel="KL(truth ‖ model), nats",
        yticks=range(len(args.densities)),
        yticklabels=args.densities,
    )
    axis.invert_yaxis()
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    dots.savefig(path.with_name(f"{path.stem}-gaps{path.suffix}"), dpi=150)
    plt.close(dots)


# --- digits ---


def digits(say: Any, args: argparse.Namespace) -> None:
    """Print bits/dim of 297 held-out digits: 8×8 pixels, 17 gray levels, uniform dequantization."""
    from sklearn.datasets import load_digits

    seconds = 1.0 if args.quick else args.seconds
    generator = torch.Generator().manual_seed(args.seed)
    images = torch.as_tensor(load_digits().images).long().unsqueeze(1)
    images = images[torch.randperm(len(images), generator=generator)]
    train, test = images[:1500], images[1500:]
    uniform = scoresde.dequantize.Uniform(17)
    data = uniform.dataset(train)
    x, log_q = uniform.noisy(test, generator)
    say(
        f"### Held-out bits/dim of scikit-learn's digits after {seconds:g} CPU seconds of "
        "training\n"
    )
    say("| model | bits/dim | steps | CPU s |")
    say("| --- | --- | --- | --- |")

    def row(name: str, log_p: Tensor, steps: int, used: float) -> None:
        bits = -(log_p - log_q).double() / (64 * math.log(2))
        error = float(bits.std()) / len(bits) ** 0.5
        say(f"| {name} | {float(bits.mean()):.3f} ± {error:.3f} | {steps:,} | {used:.1f} |")

    row("uniform over 17 levels", torch.zeros(len(x)), 0, 0.0)
    for process in OURS:
        make = functools.partial(
            scoresde.build, process, "mlp", shape=(1, 8, 8), width=512, depth=3, fourier=0
        )
        sde, steps, used = ours(seconds, make, data, args.seed, lr=1e-3)
        row(f"**ours, {process}**", scoresde.log_prob(sde, x), steps, used)

    held = train[
        :150
        # a flow of this size learns 1,500 images by heart: it stops where these, which it never
        # sees, are best
    ]
    rest, seen = uniform.dataset(train[150:]), uniform.noisy(held, generator)[0].flatten(1)
    inside = Standardized(rest.sample(20_000).flatten(1))
    for width in (64, 256):
        torch.manual_seed(args.seed)
        model = nsf(64, width)

        def check(model: Model = model) -> float:
            with torch.no_grad():
                return -float(model.log_prob(inside.inside(seen)).mean())

        steps = theirs(seconds, model, lambda n: inside.inside(rest.sample(n).flatten(1)), check)
        with torch.no_grad():
            log_p = model.log_prob(inside.inside(x.flatten(1))) - inside.log_det
        row(f"zuko NSF, width {width}, stopped early", log_p, steps, seconds)
    say("")
