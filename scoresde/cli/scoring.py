"""`scoresde log-prob` and `scoresde evaluate`: how well a model explains data in a file."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

import torch

from ..common.names import nearest
from ..common.result_tables import counted
from ..common.sharding import sharded
from ..data import files
from ..data.files.formats import writable
from ..density.bits import bits_per_dim
from ..density.dequantize import Uniform
from ..density.exact import likelihood
from ..evaluation.report import evaluate
from ..metrics.frechet import FEATURES
from ..model.protocol import Model
from ..storage.models import load
from .devices import is_main, place, say
from .inputs import conditions, first_samples, held_out_split, read_samples, with_constants
from .parser import (
    COLUMNS,
    CONDITION,
    DEVICE,
    ENCODING,
    GIVEN,
    IMPORT,
    LEVELS,
    MODEL,
    SEED,
    SOLVER,
    Command,
    option,
)
from .tables import read_rows


def log_prob(args: argparse.Namespace) -> None:
    """Evaluate log p(x), or bits per dimension of bytes; print the mean, write the values."""
    if args.out:
        writable(args.out)
    how = {"solver": args.solver, "trace": args.trace, **_tolerances(args)}
    how["generator"] = torch.Generator().manual_seed(args.seed)
    columns, texts = conditions(args)
    sde: Model = load(args.model)
    samples: Any
    levels = 0
    if sde.table is None:
        samples, levels = read_samples(args, args.data, columns, args.split)
        samples = first_samples(samples, args.n)
    else:
        samples = read_rows(args, args.data, sde.table, args.n)
    sde = with_constants(sde, texts)
    engine = place(sde, args.device)
    result: Any
    with sharded():
        if levels:
            noise = Uniform(args.levels or levels)
            result = bits_per_dim(sde, samples, noise, **how)
            name = "mean bits per dimension"
            unit = "bits/dim"
            values = result.bits
            mean = result.mean
            error = result.mean_stderr
        else:
            result = likelihood(sde, samples, **how)
            name = "mean log p(x)"
            unit = "nats"
            values = result.log_prob
            mean = float(values.double().mean())
            error = math.nan
            if len(values) > 1:
                error = float(values.double().std()) / len(values) ** 0.5
    if args.out and is_main(engine):
        files.write(args.out, values.cpu())
    bar = "not known" if math.isnan(error) else f"{error:.4f}"
    say(engine, f"{name}: {mean:.4f} ± {bar} {unit} over {counted(len(values), 'sample')}")
    say(engine, f"errors of one value, in {unit}: {_errors(result)}")


def _tolerances(args: argparse.Namespace) -> dict[str, Any]:
    """The tolerances of --tolerance."""
    return {} if args.tolerance is None else {"rtol": args.tolerance, "atol": args.tolerance}


def _errors(result: Any) -> str:
    """The mean errors of a likelihood by their sources, and its cost."""
    errors = {"solver": result.solver_error, "prior": result.prior_gap, "trace": result.stderr}
    texts = []
    for name, error in errors.items():
        size = f"{float(error.mean()):.0e}" if bool(error.any()) else "0"
        texts.append(f"{name} {size}")
    return f"{', '.join(texts)}; {float(result.nfe.double().mean()):.0f} evaluations each"


def evaluate_model(args: argparse.Namespace) -> None:
    """Evaluate a model on held-out data; print the table."""
    columns, texts = conditions(args)
    names = ("pixels", *FEATURES)
    if args.features not in names:
        raise ValueError(f"unknown features {args.features!r}. {nearest(args.features, names)}")
    features = None if args.features == "pixels" else args.features
    split = held_out_split(args.data, args.split)
    sde = with_constants(load(args.model), texts)
    levels = 0
    samples: Any
    if sde.table is None:
        samples, levels = read_samples(args, args.data, columns, split, on_disk=True)
    else:
        samples = read_rows(args, args.data, sde.table)
    engine = place(sde, args.device)
    notes = {
        **vars(args),
        "model": os.path.abspath(args.model),
        "data": os.path.abspath(args.data),
        "split": split,
    }
    with sharded():
        found = evaluate(
            sde,
            samples,
            n=args.n,
            draws=args.draws,
            levels=args.levels or levels or 256,
            samples=args.samples,
            fid=args.fid,
            features=features,
            seed=args.seed,
            out=args.out,
            notes=notes,
            trace=args.trace,
            probes=args.probes,
            solver=args.solver,
            **_tolerances(args),
        )
    say(engine, repr(found))
    if args.out is not None:
        also = f", {found.sheet}" if found.sheet else ""
        say(engine, f"{args.out}: evaluation.json{also}")


def _results_so_far(args: argparse.Namespace) -> str:
    """What an interrupted evaluation leaves."""
    if args.out and (Path(args.out) / "evaluation.json").exists():
        return f"; the results so far are in {args.out}/evaluation.json"
    return ""


COMMANDS = {
    "log-prob": Command(
        help="evaluate log p(x), in nats, of samples in a file",
        run=log_prob,
        options=(
            MODEL,
            option("data", help="as for fit; of bytes, bits per dimension are evaluated"),
            option(
                "--split",
                default="train",
                help="of MNIST's or CIFAR-10's files: train or test (default: %(default)s)",
            ),
            GIVEN,
            CONDITION,
            option("-n", type=int, help="how many samples, the first ones (default: all)"),
            LEVELS,
            SOLVER,
            option("--trace", default="exact", help="exact or hutchinson (default: %(default)s)"),
            option(
                "--tolerance",
                type=float,
                help="of an adaptive solver, in nats (default: 1e-5)",
            ),
            SEED,
            DEVICE,
            option(
                "--out",
                help=f"{', '.join(files.WRITERS)}; without it only the mean is printed",
            ),
            COLUMNS,
            ENCODING,
            IMPORT,
        ),
    ),
    "evaluate": Command(
        help="bits/dim or log p of held-out data, a sheet of samples, the Fréchet distance",
        run=evaluate_model,
        when_interrupted=_results_so_far,
        options=(
            MODEL,
            option("data", help="as for fit"),
            option(
                "--out",
                help="folder for evaluation.json and the samples: .png for images, .csv for "
                "tables; without it nothing is written",
            ),
            option(
                "--split",
                help="of MNIST's or CIFAR-10's files: train or test (default: test)",
            ),
            option(
                "-n",
                type=int,
                default=1000,
                help="how many of the data, drawn at random (default: %(default)s)",
            ),
            option(
                "--trace",
                help="exact or hutchinson (default: exact up to 256 numbers a sample)",
            ),
            option("--probes", type=int, help="of an estimated trace (default: 2)"),
            option(
                "--draws",
                type=int,
                default=1,
                help="more than one for importance-weighted bits/dim as well",
            ),
            LEVELS,
            SOLVER,
            option(
                "--tolerance",
                type=float,
                help="of an adaptive solver, in nats (default: 1e-5, for integers 1e-4)",
            ),
            option("--samples", type=int, default=64, help="on the sheet (default: %(default)s)"),
            option(
                "--fid",
                type=int,
                default=0,
                metavar="N",
                help="N samples for the Fréchet distance to the data, and for metrics of modules "
                "of --import; published FIDs of CIFAR-10 are to its training set: --split train",
            ),
            option(
                "--features",
                default="inception",
                help="of the Fréchet distance and of metrics of --import: inception, or pixels",
            ),
            GIVEN,
            CONDITION,
            option(
                "--device", help="where to compute (default: the accelerator, if there is one)"
            ),
            SEED,
            COLUMNS,
            ENCODING,
            IMPORT,
        ),
    ),
}
