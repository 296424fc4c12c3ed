"""`scoresde fit`: train a model on a file or folder of samples."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backbones import BACKBONES
from ..common.checks import whole_number
from ..common.inputs import as_tensor
from ..data import files
from ..data.files.formats import readable
from ..data.transforms import TRANSFORMS, Dequantize
from ..processes.base import PROCESSES
from ..storage.models import LATENTS, STAGE
from ..training.couplings import COUPLINGS
from ..training.latent_recipes import LatentRecipe
from ..training.objectives import OBJECTIVES
from ..training.options import AUTO, Checkpoints, Validation
from ..training.recipes import PLAIN, RECIPES, recipe
from .devices import find_device, launched, say
from .inputs import (
    Columns,
    condition_columns,
    log_of,
    network_options,
    number_of_classes,
    read_samples,
)
from .parser import COLUMNS, CONDITION, ENCODING, IMPORT, Command, option
from .tables import NO_FILE, TABLE_OPTIONS, fit_table


def _default(name: str) -> str:
    """The default of an option, for the help."""
    return f"(default: {PLAIN.how.get(name) or getattr(PLAIN, name, None)}, or the recipe's)"


def fit(args: argparse.Namespace) -> None:
    """Train a model; it and its checkpoints are written to a folder."""
    of_tables = (args.categories, args.bounds, args.drop_missing, args.no_equalize)
    if args.table or any(of_tables):
        fit_table(args)
        return
    rule = PLAIN if args.recipe is None else recipe(args.recipe)
    if isinstance(rule, LatentRecipe):
        rule = rule.with_stage(**network_options(args.stage))
    elif args.stage:
        raise ValueError("--stage goes with a recipe that has one: fashion-mnist-latent")
    log = log_of(args)
    columns = condition_columns(args.condition)
    samples, levels = read_samples(args, args.data, columns, on_disk=True)
    data = samples.values
    if args.recipe:
        rule.check(data)
    how = {**PLAIN.how, **rule.how}
    for name in ("steps", "batch_size", "lr"):
        if getattr(args, name) is not None:
            how[name] = getattr(args, name)
    every = rule.every
    if args.every is not None:
        every = whole_number("every", args.every)
    transforms = list(how.pop("transforms"))
    if args.transform is not None:
        transforms = list(args.transform)
    transforms = _with_dequantization(transforms, levels)
    options = _network_options(args, args.net or rule.net, columns, samples)
    held_out = _held_out(args, columns, every)
    torch.manual_seed(args.seed)
    rule = dataclasses.replace(rule, shape=tuple(data.shape[1:]))
    sde: Any = rule.build(args.process, args.net, **options)
    if not transforms:
        on_disk = isinstance(data, np.memmap)
        some: Any = as_tensor(data[:1], "data") if on_disk else data
        sde.accept(some, "data")
    for name in ("steps", "batch_size"):
        if how[name] != AUTO:
            whole_number(name.replace("_", "-"), how[name])
    engine = launched()
    if engine is None and (args.device is not None or args.recipe is not None):
        sde.to(find_device(args.device))
    history = rule.fit(
        sde,
        dataclasses.replace(samples, given={}),
        given=samples.given or None,
        transforms=transforms,
        validation=held_out,
        coupling=args.coupling,
        objective=args.objective,
        checkpoints=Checkpoints(args.out, every=every, resume=args.resume),
        log=log,
        backend=engine,
        **how,
    )
    say(engine, f"{args.out}: {len(data):,} samples of shape {tuple(data.shape[1:])}, {history!r}")


def _held_out(args: argparse.Namespace, columns: Any, every: int) -> Validation | str | None:
    """What is held out: rows of a file, rows of the data, or none."""
    validation = _validation(args, columns)
    if validation is not None:
        return Validation(validation, every=every, patience=args.patience)
    if args.patience is not None:
        raise ValueError("--patience goes with --validation, whose loss it watches")
    return None if args.validation == "none" else AUTO


def _with_dequantization(transforms: list[Any], levels: int) -> list[Any]:
    """The transforms, and dequantization of integers if it is not among them."""
    if levels and "dequantize" not in transforms:
        transforms.append("dequantize")
    if levels > 256:
        transforms = [Dequantize(levels) if each == "dequantize" else each for each in transforms]
    return transforms


def _network_options(
    args: argparse.Namespace, net: str, columns: Columns, samples: files.Samples
) -> dict[str, Any]:
    """The options of the network: those given, and the sizes of its conditions."""
    options = network_options(args.option)
    known = inspect.signature(BACKBONES[net]).parameters
    if "y" in columns and "classes" in known:
        options["classes"] = options.get("classes") or number_of_classes(samples.given["y"])
    if "vector" in columns and "vector" in known:
        options["vector"] = options.get("vector") or samples.given["vector"].shape[1]
    return options


def _validation(args: argparse.Namespace, columns: Columns) -> files.Samples | None:
    """The held-out samples; of the folder of the data itself, its test set."""
    if args.validation in NO_FILE:
        return None
    same = args.validation == args.data and Path(args.data).is_dir()
    split = "test" if same else "train"
    samples: files.Samples
    samples, _ = read_samples(args, args.validation, columns, split)
    return samples


def _checkpoint(args: argparse.Namespace) -> str:
    """What an interrupted training leaves."""
    for part in ("", LATENTS, STAGE):
        steps = sorted((Path(args.out) / part).glob("step-*.json"))
        if steps:
            step = int(steps[-1].stem.partition("-")[2])
            where = f" in {part}" if part else ""
            return f"; the last checkpoint is of step {step}{where}: go on with --resume"
    return ""


COMMANDS = {
    "fit": Command(
        help="train a model on samples in a file or folder",
        run=fit,
        when_interrupted=_checkpoint,
        options=(
            option(
                "data",
                help=f"{readable()}; idx files are MNIST's, batch files CIFAR-10's",
            ),
            option("--out", required=True, help="folder for checkpoints and the model"),
            option(
                "--resume",
                action="store_true",
                help="go on from the newest checkpoint in the folder, if there is one",
            ),
            option(
                "--recipe",
                help=f"tried values of all options that follow: {', '.join(RECIPES)}",
            ),
            option(
                "--device",
                help="where to train (default: cpu; with a recipe the accelerator, if there is "
                "one)",
            ),
            option("--every", type=int, help=f"steps between checkpoints {_default('every')}"),
            option(
                "--log",
                metavar="PATH",
                help="where losses are written: a file that ends in .jsonl, or a folder for "
                "TensorBoard; of a recipe with a first stage, the log is of the score model",
            ),
            option(
                "--log-samples",
                type=int,
                metavar="STEPS",
                help="steps between samples in the log (default: none are drawn)",
            ),
            option("--process", help=f"{', '.join(PROCESSES)} {_default('process')}"),
            option("--net", help=f"{', '.join(BACKBONES)} {_default('net')}"),
            option(
                "--option",
                action="append",
                default=[],
                metavar="NAME=VALUE",
                help="of the network, e.g. width=256",
            ),
            CONDITION,
            *TABLE_OPTIONS,
            option(
                "--stage",
                action="append",
                default=[],
                metavar="NAME=VALUE",
                help="of a recipe's first stage, e.g. channels=64, steps=1000 or kl=0.5; all "
                "other options are of the score model of its latents",
            ),
            option(
                "--transform",
                action="append",
                help=f"{', '.join(TRANSFORMS)}; bytes are dequantized anyway",
            ),
            option(
                "--validation",
                help="held-out samples, whose loss is recorded; the folder of the data itself for "
                "its test set; auto: some rows of a table, none: nothing (default: auto)",
            ),
            option(
                "--patience",
                type=int,
                help="stop after this many validations without a lower loss",
            ),
            option("--steps", type=int, help=f"training steps {_default('steps')}"),
            option("--batch-size", type=int, help=f"over all processes {_default('batch_size')}"),
            option("--lr", type=float, help=f"peak learning rate {_default('lr')}"),
            option("--coupling", help=", ".join(COUPLINGS)),
            option("--objective", help=", ".join(OBJECTIVES)),
            option(
                "--seed",
                type=int,
                default=0,
                help="of all randomness (default: 0); a resumed run keeps its own",
            ),
            COLUMNS,
            ENCODING,
            IMPORT,
        ),
    )
}
