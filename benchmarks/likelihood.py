"""How exact a log p(x), at what cost, of how good a model: ours beside the peers', in one run.

    python benchmarks/likelihood.py accuracy|cost|density|digits|all [--quick] [--out FILE.md]

`accuracy`: log p of mixtures with the exact score, 512 points, float64, against the closed form,
with the true law of x at the noise end as prior. Everyone solves with atol = rtol = tolerance;
errors in nats. `cost`: CPU time of the whole log p of 1,000 points in 2-D with one trained
network, the same object for all. For every code the loosest tolerance is taken whose worst error
is within the target, and of the ways to write the ODE (see `likelihood_peers`) the one of fewest
evaluations. The last columns compare with the fastest peer that brings an exact likelihood of its
own (zuko, flow_matching), and with any, torchdiffeq with its trace written by hand among them. The
reference is ours at 1e-12 in float64; how far another code is from it stands beside. `density` and
`digits` train models; see `likelihood_models`. Tables are printed in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path as File
from typing import Any

import likelihood_models
import torch
from likelihood_peers import EXACT, HUTCHINSON, LogProb, Path, mixture_paths, network_paths
from torch import Tensor, nn

import scoresde
from scoresde.toy import GaussianMixture

TOLERANCES = tuple(10.0**-k for k in range(3, 10))
LADDER = tuple(10 ** (-k / 2) for k in range(4, 21))
# those that have an exact likelihood of their own; the others' is written by hand here
LIBRARIES = (
    "zuko",
    "flow_matching",
)
TARGETS = {torch.float64: (1e-3, 1e-4, 1e-5, 1e-6), torch.float32: (1e-3, 1e-4)}


class Printer:
    """Prints lines, and adds them to a file."""

    def __init__(self, out: str | None) -> None:
        self.out = File(out) if out else None
        if self.out:
            self.out.write_text("")

    def __call__(self, line: str = "") -> None:  # noqa: D102
        print(line, flush=True)
        if self.out:
            with self.out.open("a") as file:
                file.write(line + "\n")


# --- accuracy ---


def mixtures() -> dict[str, GaussianMixture]:
    """The two problems of the record."""
    means = torch.randn(10, 16, generator=torch.Generator().manual_seed(16), dtype=torch.float64)
    return {
        "8 Gaussians, 2-D": scoresde.toy.EightGaussians(4.0, 0.3),
        "10 Gaussians, 16-D": GaussianMixture(
            means, torch.linspace(0.2, 0.6, 10, dtype=torch.float64)
        ),
    }


def ours_exactly(
    mixture: GaussianMixture, name: str, x: Tensor, tolerance: float
) -> tuple[Tensor, float]:
    """log p of our oracle of a mixture under a process of that name, and evaluations per sample.

    The law of x is that at the process's own beginning, t = 0, where a VE process has a little
    noise. So that everyone is held against the same truth, the value is corrected by the
    difference in closed form.
    """
    process = scoresde.PROCESSES.build(name)
    alpha, sigma = (
        f(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        for f in (process.alpha, process.sigma)
    )
    first, last = (mixture.perturb(a, s) for a, s in zip(alpha, sigma, strict=True))
    result = scoresde.likelihood(
        scoresde.oracle(mixture, process).double(), x, prior=last, rtol=tolerance, atol=tolerance
    )
    return result.log_prob - first.log_prob(x) + mixture.log_prob(x), float(
        result.nfe.double().mean()
    )


def theirs(solve: LogProb, path: Path, x: Tensor, tolerance: float) -> tuple[Tensor, float]:
    path.calls = 0
    with torch.no_grad():
        return solve(path, x, tolerance), path.calls


def accuracy(say: Printer, quick: bool) -> None:
    """Print a table a problem: a row a code and form of the ODE, a column a tolerance, evaluations
    : mean / worst error.
    """
    for title, mixture in mixtures().items():
        x = mixture.sample(
            64 if quick else 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        truth = mixture.log_prob(x)
        runs: list[tuple[str, Callable[[float], tuple[Tensor, float]]]] = []
        for name in ("vp", "ve", "rectified"):
            runs.append((f"**ours, {name}**", partial(ours_exactly, mixture, name, x)))
        for name, solve in (EXACT | HUTCHINSON).items():
            for path in mixture_paths(mixture):
                if name == "torchdiffeq dopri5" or (name in HUTCHINSON and path.name != "time"):
                    continue  # the numbers of the first are flow_matching's, which calls it
                runs.append((f"{name}, {path.name}", partial(theirs, solve, path, x)))
        say(
            f"### Errors of log p in nats, {title}: evaluations : mean / worst of {len(x)} points\n"
        )
        say("| code, form of the ODE | " + " | ".join(f"{tol:.0e}" for tol in TOLERANCES) + " |")
        say("| --- |" + " --- |" * len(TOLERANCES))
        for name, run in runs:
            cells = []
            for tolerance in TOLERANCES:
                try:
                    found, nfe = run(tolerance)
                except (
                    AssertionError,
                    RuntimeError,
                ) as error:  # a failure, of whatever kind, is said
                    cells.append(type(error).__name__)
                    continue
                gap = (found - truth).abs()
                cells.append(f"{nfe:.0f} : {float(gap.mean()):.1e} / {float(gap.max()):.1e}")
            say(f"| {name} | " + " | ".join(cells) + " |")
        say()


# --- cost ---


class Plain(nn.Module):
    """A network known by its output alone: its trace takes vector–Jacobian products."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.net(x, t)
        return out


@dataclass
class Runner:
    """A library with a form of the ODE: `run(tolerance)` returns log p and evaluations."""

    library: str
    path: str
    run: Callable[[float], tuple[Tensor, float]]

    def timed(self, tolerance: float) -> float:
        """CPU seconds of a run."""
        began = time.process_time()
        self.run(tolerance)
        return time.process_time() - began


def network(options: dict[str, Any], steps: int, quick: bool) -> tuple[scoresde.ScoreSDE, Tensor]:
    """A rectified flow of 8 Gaussians, trained, and 1,000 points."""
    torch.manual_seed(0)
    truth = scoresde.toy.EightGaussians()
    sde = scoresde.build("rectified", "mlp", shape=(2,), **options)
    scoresde.fit(
        sde,
        truth,
        steps=100 if quick else steps,
        generator=torch.Generator().manual_seed(0),
        progress=False,
    )
    sde.requires_grad_(False)
    return sde, truth.sample(200 if quick else 1000, generator=torch.Generator().manual_seed(1))


def runners(sde: scoresde.ScoreSDE, x: Tensor) -> list[Runner]:
    """Everyone, with the network that `sde` evaluates, in its dtype."""
    net = sde.net if sde.ema is None else sde.ema
    plain = scoresde.ScoreSDE(sde.process, Plain(net), shape=(2,)).to(x.dtype).eval()
    plain.mean.copy_(sde.mean), plain.scale.copy_(sde.scale)
    z, log_scale = sde.from_data(x), sde.log_scale

    def ours(model: scoresde.ScoreSDE, tolerance: float) -> tuple[Tensor, float]:
        result = scoresde.likelihood(model, x, rtol=tolerance, atol=tolerance)
        return result.log_prob, float(result.nfe.double().mean())

    def peer(solve: LogProb, path: Path, tolerance: float) -> tuple[Tensor, float]:
        found, nfe = theirs(solve, path, z, tolerance)
        return found - log_scale, nfe

    found = [Runner("**ours**", "arc", partial(ours, sde))]
    found.append(Runner("**ours, by VJPs**", "arc", partial(ours, plain)))
    for name, solve in EXACT.items():
        if name.endswith("dopri8"):
            continue  # it was never near the fastest
        for path in network_paths(net):
            found.append(Runner(name, path.name, partial(peer, solve, path)))
    return found


@dataclass
class Entry:
    """A run that reaches a target, at the loosest tolerance that does."""

    runner: Runner
    tolerance: float
    worst: float
    nfe: float


def loosest(
    runner: Runner, reference: Tensor, targets: tuple[float, ...], last: float
) -> dict[float, Entry]:
    """For each target the loosest tolerance that reaches it: down a ladder of half decades, and a
    quarter back up.
    """
    found: dict[float, Entry] = {}

    def attempt(tolerance: float) -> Entry | None:
        with contextlib.suppress(AssertionError, RuntimeError):  # no answer at this tolerance
            value, nfe = runner.run(tolerance)
            return Entry(runner, tolerance, float((value.double() - reference).abs().max()), nfe)
        return None

    for tolerance in LADDER:
        if tolerance < last or len(found) == len(targets):
            break
        entry = attempt(tolerance)
        reached = [t for t in targets if t not in found and entry is not None and entry.worst <= t]
        between = attempt(tolerance * 10**0.25) if reached else None
        for target in reached:
            assert entry is not None
            found[target] = between if between is not None and between.worst <= target else entry
    return found


def cost(say: Printer, steps: int, quick: bool) -> None:
    """Print a table a network and dtype: CPU seconds at equal worst-case error."""
    nets: dict[str, dict[str, Any]] = {
        "MLP 3×128": {"width": 128, "depth": 3, "fourier": 0},
        "the default network": {},
    }
    for title, options in nets.items():
        sde, x = network(options, steps, quick)
        double = copy.deepcopy(sde).double()
        reference = scoresde.likelihood(double, x.double(), rtol=1e-12, atol=1e-12).log_prob
        for dtype, targets in TARGETS.items():
            torch.set_default_dtype(dtype)  # flow_matching keeps log p in the default dtype
            everyone = runners(double if dtype == torch.float64 else sde, x.to(dtype))
            if dtype == torch.float64:
                path = network_paths(double.net if double.ema is None else double.ema)[0]
                other = (
                    theirs(EXACT["zuko"], path, double.from_data(x.double()), 1e-10)[0]
                    - double.log_scale
                )
                agree = float((other - reference).abs().max())
                say(
                    f"{title}: zuko at 1e-10 is within {agree:.1e} nats of the reference, at the "
                    "worst point.\n"
                )
            chosen = [
                loosest(runner, reference, targets, 0.0 if dtype == torch.float64 else 1e-6)
                for runner in everyone
            ]
            say(
                f"### CPU seconds of log p of {len(x):,} points, {title} after {steps:,} steps, "
                f"{str(dtype)[6:]}\n"
            )
            say(
                "| worst error ≤ | code | form | tolerance | worst error | evaluations | CPU s | "
                "quartiles | × library | × any |"
            )
            say("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
            for target in targets:
                table(
                    say,
                    target,
                    [each[target] for each in chosen if target in each],
                    rounds=2 if quick else 5,
                )
            say()
    torch.set_default_dtype(torch.float32)


def table(say: Printer, target: float, reached: list[Entry], rounds: int) -> None:
    """Time each library in its form of fewest evaluations, in turns, and print them from the
    fastest on.
    """
    fewest: dict[str, Entry] = {}
    for entry in sorted(reached, key=lambda entry: entry.nfe):
        fewest.setdefault(entry.runner.library, entry)
    # the first warms up
    seconds = {name: [entry.runner.timed(entry.tolerance)] for name, entry in fewest.items()}
    for _ in range(rounds):
        for name, entry in fewest.items():
            seconds[name].append(entry.runner.timed(entry.tolerance))
    quartiles = {name: statistics.quantiles(taken[1:], n=4) for name, taken in seconds.items()}
    library = min((quartiles[name][1] for name in fewest if name in LIBRARIES), default=math.nan)
    best = min((quartiles[name][1] for name in fewest if name in EXACT), default=math.nan)
    for name, (low, middle, high) in sorted(quartiles.items(), key=lambda item: item[1][1]):
        e = fewest[name]
        say(
            f"| {target:.0e} | {name} | {e.runner.path} | {e.tolerance:.1e} | {e.worst:.1e} | "
            f"{e.nfe:.0f} "
            f"| {middle:.3f} | {low:.3f} – {high:.3f} | {library / middle:.2f} | "
            f"{best / middle:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("accuracy", "cost", "density", "digits", "all"))
    parser.add_argument("--out", help="a file for the tables, beside the screen")
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works")
    parser.add_argument(
        "--steps", type=int, default=2000, help="how long the network of `cost` is trained"
    )
    likelihood_models.arguments(parser)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    say = Printer(args.out)
    say(
        f"torch {torch.__version__}, one thread, {platform.machine()}, "
        f"{time.strftime('%Y-%m-%d')}\n"
    )
    if args.what in ("accuracy", "all"):
        torch.set_default_dtype(torch.float64)
        accuracy(say, args.quick)
        torch.set_default_dtype(torch.float32)
    if args.what in ("cost", "all"):
        cost(say, args.steps, args.quick)
    if args.what in ("density", "all"):
        likelihood_models.density(say, args)
    if args.what in ("digits", "all"):
        likelihood_models.digits(say, args)


if __name__ == "__main__":
    main()
