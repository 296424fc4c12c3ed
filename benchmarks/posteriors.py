"""How good a posterior: ours beside sbi's NPE, NPSE and FMPE on the tasks of sbibm, in one run.

    python benchmarks/posteriors.py [--quick] [--tasks two_moons slcp] [--methods scoresde NPE]
    [--simulations 10000] [--observations 1 2 3 …] [--samples 1000 10000] [--coverage 500]
    [--fit steps=5000] [--json FILE.json]

Everyone sees the same simulations and trains on one thread for as long as its own defaults want:

    scoresde   `scoresde.posterior` with its defaults, the same for all tasks
    NPE        sbi's NPE with its neural spline flow; NPSE and FMPE likewise with their defaults

C2ST is the benchmark's own (Lueckmann et al. 2021): scikit-learn's perceptron with two hidden
layers of 10·D units, on both sets standardized by the reference's mean and spread, accuracy over 5
folds; 0.5 is perfect. Draws outside of the prior are counted, then left out, for everyone, as sbi
does. Printed are the mean over observations and its standard error, and the worst.

Coverage needs draws alone (TARP, Lemos et al. 2023, ICML): for pairs θ, x of the simulator and a
random reference point, a region of level a is the ball about it with that share of the draws. The
shares of θ that regions of 50, 90 and 95% hold are printed; they are binomial if the posterior is
right. The pairs come from a seed of their own: parameters that were trained on, under new noise,
lie where a model puts a little too much.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import report
import torch
from sbibm_tasks import TASKS, Task
from torch import Tensor

import scoresde

LEVELS = (0.5, 0.9, 0.95)
TARP_DRAWS = 99  # for each pair of the coverage; an exact posterior then covers just the levels
TRIES = 50  # rounds of draws before a posterior that leaks is given up
PACKAGES = ("torch", "numpy", "sbi", "sbibm", "scikit-learn")

Draw = Callable[[int, Tensor], Tensor]
"""Draws n parameters for each row of x, shape (len(x), n, D), with those outside the prior."""


@dataclass(frozen=True)
class Posterior:
    """A trained posterior, and what it took."""

    draw: Draw
    cpu: float
    steps: float = math.nan


# --- methods ---


def ours(task: Task, theta: Tensor, x: Tensor, args: argparse.Namespace) -> Posterior:
    """Train `scoresde.posterior` with its defaults."""
    how = report.options(args.fit)
    if args.quick:
        how.setdefault("steps", 200)
    generator = torch.Generator().manual_seed(args.seed)
    began = time.process_time()
    made = scoresde.posterior(task.prior, theta, x, generator=generator, progress=False, **how)
    spent = time.process_time() - began

    def draw(n: int, x: Tensor) -> Tensor:
        return made.sample((n,), x=x, generator=generator).transpose(0, 1)

    return Posterior(draw, spent, made.history.step[-1])


def of_sbi(method: str) -> Callable[[Task, Tensor, Tensor, argparse.Namespace], Posterior]:
    """Return a function that trains sbi's method with its defaults."""

    def train(task: Task, theta: Tensor, x: Tensor, args: argparse.Namespace) -> Posterior:
        import sbi.inference

        how = {"density_estimator": "nsf"} if method == "NPE" else {}
        limit = {"max_num_epochs": 3} if args.quick else {}
        began = time.process_time()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            logs = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(contextlib.chdir(logs))  # sbi writes logs to the current folder
            trainer = getattr(sbi.inference, method)(task.prior, show_progress_bars=False, **how)
            trainer.append_simulations(theta, x).train(**limit)
        spent = time.process_time() - began
        posterior = trainer.build_posterior()
        quiet = {"show_progress_bars": False, "reject_outside_prior": False}

        def draw(n: int, x: Tensor) -> Tensor:
            if len(x) == 1:
                return posterior.sample((n,), x=x, **quiet)[None].detach()
            return posterior.sample_batched((n,), x=x, **quiet).transpose(0, 1).detach()

        return Posterior(draw, spent, math.nan)

    return train


METHODS: dict[str, Callable[[Task, Tensor, Tensor, argparse.Namespace], Posterior]] = {
    "scoresde": ours,
    "NPE": of_sbi("NPE"),
    "NPSE": of_sbi("NPSE"),
    "FMPE": of_sbi("FMPE"),
}


# --- grades ---


def c2st(reference: Tensor, drawn: Tensor, seed: int = 1) -> float:
    """Accuracy of sbibm's classifier."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    middle, spread = reference.mean(0), reference.std(0)
    points = torch.cat([(reference - middle) / spread, (drawn - middle) / spread]).numpy()
    labels = torch.cat([torch.zeros(len(reference)), torch.ones(len(drawn))]).numpy()
    width = 10 * reference.shape[1]
    classifier = MLPClassifier(
        activation="relu",
        hidden_layer_sizes=(width, width),
        max_iter=10_000,
        solver="adam",
        random_state=seed,
    )
    folds = KFold(n_splits=5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, points, labels, cv=folds).mean())


def inside(task: Task, posterior: Posterior, x: Tensor, n: int) -> tuple[Tensor | None, float]:
    """Draw n parameters that the prior allows, None if that fails, and the share outside."""
    kept: list[Tensor] = []
    drawn = 0
    for _ in range(TRIES):
        theta = posterior.draw(n, x)[0]
        drawn += n
        kept.append(theta[task.inside(theta)])
        if sum(map(len, kept)) >= n:
            break
    found = torch.cat(kept)
    return (found[:n] if len(found) >= n else None), 1 - len(found) / drawn


def tarp(task: Task, posterior: Posterior, pairs: int) -> list[float]:
    """Share of true parameters within regions of each level."""
    theta = task.prior.sample((pairs,))
    x = task.simulate(theta)
    draws = posterior.draw(TARP_DRAWS, x)
    spread = theta.std(0)
    points = task.prior.sample((pairs,)) / spread
    far = (draws / spread - points[:, None]).norm(dim=-1)
    true = (theta / spread - points).norm(dim=-1, keepdim=True)
    ranks = (far < true).double().mean(1)
    return [float((ranks < level).double().mean()) for level in LEVELS]


def graded(
    say: report.Report,
    task: Task,
    name: str,
    posterior: Posterior,
    args: argparse.Namespace,
    samples: int,
    coverage: int,
) -> None:
    """Print a row: C2ST over observations, leaks, coverage."""
    accuracies, leaks = [], []
    began = time.process_time()
    for number in args.observations:
        drawn, leak = inside(task, posterior, task.observation(number), samples)
        leaks.append(leak)
        reference = task.reference(number)[:samples]
        accuracies.append(1.0 if drawn is None else c2st(reference, drawn))
    scores = torch.tensor(accuracies, dtype=torch.float64)
    shown = f"{float(scores.mean()):.3f}"
    if len(scores) > 1:
        shown += f" ± {float(scores.std()) / math.sqrt(len(scores)):.3f}"
    torch.manual_seed(args.seed + 1)  # no pair of the training
    covered = tarp(task, posterior, coverage) if coverage else []
    say.row(
        task.name,
        name,
        f"{samples:,}",
        shown,
        f"{float(scores.max()):.3f}",
        f"{100 * sum(leaks) / len(leaks):.1f}%",
        " / ".join(f"{share:.3f}" for share in covered) or "–",
        f"{posterior.cpu:.0f}",
        f"{time.process_time() - began:.0f}",
    )
    say.keep(
        task=task.name,
        method=name,
        samples=samples,
        observations=args.observations,
        c2st=accuracies,
        outside=leaks,
        coverage=dict(zip(map(str, LEVELS), covered, strict=False)),
        pairs=coverage,
        cpu=posterior.cpu,
        steps=posterior.steps,
        simulations=args.simulations,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--observations", nargs="*", type=int, default=list(range(1, 11)))
    parser.add_argument("--samples", type=int, nargs="+", default=[1000], help="of each C2ST set")
    parser.add_argument("--coverage", type=int, default=500, help="pairs; 0 for no coverage")
    parser.add_argument("--fit", nargs="*", default=[], help="options of fit, key=value")
    report.add_outputs(parser)
    args = parser.parse_args()
    if args.quick:
        args.simulations, args.observations = min(args.simulations, 1000), args.observations[:1]
        args.samples = [min(*args.samples, 200)]
        args.coverage = min(args.coverage, 20)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    say = report.Report(args.out, args.json, PACKAGES)
    columns = ["task", "method", "draws", "C2ST", "worst", "outside prior"]
    columns += ["covered at 50 / 90 / 95%", "training CPU s", "grading CPU s"]
    say.head(f"Posteriors from {args.simulations:,} simulations", columns)
    for name in args.tasks:
        task = TASKS[name]()
        torch.manual_seed(args.seed)
        theta = task.prior.sample((args.simulations,))
        x = task.simulate(theta)
        for method in args.methods:
            torch.manual_seed(args.seed)
            posterior = METHODS[method](task, theta, x, args)
            for i, samples in enumerate(args.samples):
                pairs = 0 if i else args.coverage
                graded(say, task, method, posterior, args, samples, pairs)
    say()


if __name__ == "__main__":
    main()
