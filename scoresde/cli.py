"""The `scoresde` command: demo, fit, sample, log-prob, evaluate. Arrays come in and go out as files; models are folders.

`accelerate launch -m scoresde …` runs fit, sample and log-prob on several processes.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import fnmatch
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import files, toy
from .backbones import BACKBONES
from .bits import bits_per_dim
from .checks import check_seed, whole
from .coupling import COUPLINGS
from .dequantize import Uniform
from .errors import SolverError, TrainingError
from .exact import likelihood
from .files.formats import writable
from .inputs import as_tensor
from .io import load
from .metrics.frechet import FEATURES
from .objective import OBJECTIVES
from .process import PROCESSES
from .ranks import sharded
from .recipes import PLAIN, RECIPES, recipe
from .registry import nearest
from .reports import evaluate
from .sampling import solve
from .schema import Labels
from .sde import ScoreSDE
from .solvers import SOLVERS
from .transforms import TRANSFORMS, Dequantize


def _writable(path: str, *suffixes: str) -> None:
    """Find out before the work whether its result can be written."""
    if Path(path).suffix not in suffixes:
        raise ValueError(f"{path}: written are {', '.join(suffixes)} files")
    if not Path(path).absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no such folder")


LEVELS = {np.dtype(np.uint8): 256, np.dtype(np.uint16): 65536}  # of integers that are dequantized
MAPPED = 2**30  # bytes from which on data stay on the disk


def _values(values: np.ndarray, *, mapped: bool = False) -> Any:
    """Samples from a file as a tensor, floating point as float32; large ones stay on the disk if they may."""
    if mapped and isinstance(values, np.memmap) and values.nbytes > MAPPED:
        return values
    tensor = torch.from_numpy(np.array(values, np.int32 if values.dtype == np.uint16 else values.dtype))
    return tensor.float() if tensor.is_floating_point() else tensor


ELSEWHERE = {"net": "say --net", "process": "say --process", "shape": "that is the data's"}


def _parsed(pair: str, value: str) -> Any:
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError(f"{pair[:20]}… is nested too deep") from None


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, …, with values that are numbers, true, false or words."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"an option of the network is NAME=VALUE such as width=256, got {pair!r}")
        if name in ELSEWHERE:
            raise ValueError(f"{name} is no option of the network: {ELSEWHERE[name]}")
        try:
            options[name] = _parsed(pair, value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def _number_of_classes(y: np.ndarray) -> int:
    """How many classes labels have."""
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise ValueError(
            f"labels y are integers, one a sample, got {y.dtype} of shape {y.shape}; numbers are a --condition vector=COLUMN,…"
        )
    if isinstance(y, Labels) and y.words:
        return len(y.words)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= len(y):
        raise ValueError(
            f"labels y run from {low} to {high} in {len(y):,} samples; wanted are classes numbered 0, 1, …; if there are more of "
            "them than samples, say --option classes=N"
        )
    return high + 1


def _constants(texts: dict[str, str], sde: ScoreSDE) -> dict[str, Any]:
    """Conditions NAME=VALUE, of numbers, or of words that the model has learnt."""
    given: dict[str, Any] = {}
    for name, text in texts.items():
        words = sde.schema.words.get(name, ())
        if text in words:
            given[name] = text
            continue
        try:
            value = torch.as_tensor(_parsed(f"{name}={text}", text))
        except (json.JSONDecodeError, TypeError, RuntimeError):
            known = f"or one of {', '.join(words[:20])}, " if words else ""
            raise ValueError(f"a condition is NAME=NUMBER such as y=3, {known}got {f'{name}={text}'[:80]!r}") from None
        given[name] = value.float().reshape(1, -1) if name == "vector" else value
    return given


def _told(args: argparse.Namespace) -> tuple[dict[str, str | tuple[str, ...]], dict[str, str]]:
    """Columns of --condition, and texts of --given."""
    columns = _columns(getattr(args, "condition", ()))
    texts = {name: text for name, _, text in (pair.partition("=") for pair in args.given)}
    if twice := sorted(columns.keys() & texts.keys()):
        raise ValueError(f"condition {twice[0]!r} comes by both --condition and --given; leave one out")
    return columns, texts


def _samples(args: argparse.Namespace, path: str, columns: Any, split: str = "train", *, mapped: bool = False) -> Any:
    """The samples of a file or folder, as tensors, and their levels: 0 of what is not dequantized."""
    chosen = None if args.columns is None else tuple(_names(args.columns))
    found = files.read(path, conditions=columns, columns=chosen, split=split, encoding=args.encoding)
    given = dict(found.given)
    if "vector" in given:
        if isinstance(given["vector"], Labels):
            raise ValueError("condition 'vector' is of numbers, and this column has words: --condition y=COLUMN")
        given["vector"] = given["vector"].astype(np.float32).reshape(len(found), -1)
    values, levels = _values(found.values, mapped=mapped), LEVELS.get(found.values.dtype, 0)
    return dataclasses.replace(found, values=values, given=given), levels


def _first(samples: files.Samples, n: int | None) -> files.Samples:
    """The first n."""
    given = {name: value[:n] for name, value in samples.given.items()}
    return dataclasses.replace(samples, values=samples.values[:n], given=given)


def _launched() -> Any:
    """An Accelerator, if a launcher started this process as one of several or asked for another precision."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not several and os.environ.get("ACCELERATE_MIXED_PRECISION", "no") == "no":
        return None
    try:
        from accelerate import Accelerator
    except ImportError:
        raise ImportError("several processes need Accelerate: pip install 'scoresde[train]'") from None
    return Accelerator(cpu=not torch.accelerator.is_available())


def _say(engine: Any, text: str) -> None:
    """Print, on one of several processes."""
    if engine is None or engine.is_main_process:
        print(text)


def _device(name: str | None) -> torch.device:
    """The device of that name; without one the accelerator, if there is one."""
    kind = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    there = ["cpu", *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()) if kind != "cpu")]
    name = kind if name is None else name
    if name not in {*there, kind}:
        raise ValueError(f"device {name!r} can't be used; there are: {', '.join(there)}")
    return torch.device(name)


def _placed(sde: Any, name: str | None) -> Any:
    """Move a model to where it computes; an Accelerator, if there is one, knows best."""
    engine = _launched()
    sde.to(_device(name) if engine is None else engine.device)
    return engine


def _split(path: str, split: str | None) -> str:
    """Which set of a folder to read: the test set, if it has one and the user does not say."""
    if split is not None or not os.path.isdir(path):
        return split or "train"
    inside = [name.lower() for name in os.listdir(path)]
    takes = next((takes for pattern, (_, takes) in files.FOLDERS.items() if fnmatch.filter(inside, pattern)), "")
    return "test" if "split" in takes else "train"


DISTANCE = "N samples for the Fréchet distance to the data; published FIDs of CIFAR-10 are to its training set: --split train"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scoresde", description="Score models: train, sample, log p(x).")
    verbs = parser.add_subparsers(dest="verb", required=True)

    demo = verbs.add_parser("demo", help="fit a toy density, sample it, draw it, and print how far from the truth it is")
    demo.add_argument("--density", default="checkerboard", help=", ".join(toy.DENSITIES))
    demo.add_argument("--process", default="vp", help=", ".join(PROCESSES))
    demo.add_argument("--solver", default="adams", help=", ".join(SOLVERS))
    demo.add_argument("--steps", type=int, default=10_000, help="training steps (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--out", default="demo.png", help="the figure (default: %(default)s)")

    def default(name: str) -> str:
        return f"(default: {PLAIN.how.get(name) or getattr(PLAIN, name, None)}, or the recipe's)"

    train = verbs.add_parser("fit", help="train a model on samples in a file or folder")
    train.add_argument("data", help=".npy, .npz, .csv, .tsv, .parquet, MNIST's or CIFAR-10's files, or a folder of images")
    train.add_argument("--out", required=True, help="folder for checkpoints and the model")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the folder, if there is one")
    train.add_argument("--recipe", help="all of the following as it was found good for: " + ", ".join(RECIPES))
    train.add_argument("--device", help="where to train (default: cpu; with a recipe the accelerator, if there is one)")
    train.add_argument("--every", type=int, help=f"steps between checkpoints {default('every')}")
    train.add_argument("--process", help=f"{', '.join(PROCESSES)} {default('process')}")
    train.add_argument("--net", help=f"{', '.join(BACKBONES)} {default('net')}")
    train.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the network, e.g. width=256")
    train.add_argument(
        "--condition",
        action="append",
        default=[],
        metavar="NAME[=COLUMN,…]",
        help="one in the data: y=label, vector=dose,age",
    )
    train.add_argument("--transform", action="append", help=f"{', '.join(TRANSFORMS)}; bytes are dequantized anyway")
    train.add_argument(
        "--validation", help="held-out samples, whose loss is noted; the folder of the data itself for its test set"
    )
    train.add_argument("--patience", type=int, help="stop after so many validations without a lower loss")
    train.add_argument("--steps", type=int, help=f"training steps {default('steps')}")
    train.add_argument("--batch-size", type=int, help=f"over all processes {default('batch_size')}")
    train.add_argument("--lr", type=float, help=f"peak learning rate {default('lr')}")
    train.add_argument("--coupling", help=", ".join(COUPLINGS))
    train.add_argument("--objective", help=", ".join(OBJECTIVES))
    train.add_argument("--seed", type=int, default=0, help="all randomness (default: 0); a run that is resumed keeps its own")

    draw = verbs.add_parser("sample", help="draw samples from a model")
    draw.add_argument("model", help="folder")
    draw.add_argument("-n", type=int, default=1, help="how many (default: %(default)s)")
    draw.add_argument("--solver", help="by default the model's own, mostly adams: " + ", ".join(SOLVERS))
    draw.add_argument("--steps", type=int, help="fixed number of steps; adaptive solvers go by tolerances without")
    draw.add_argument("--seed", type=int, default=0)
    draw.add_argument(
        "--given", action="append", default=[], metavar="NAME=VALUE", help="a condition, e.g. y=3, y=cat, or vector=[0.5,2]"
    )
    draw.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    draw.add_argument("--out", required=True, help=", ".join(files.WRITERS) + "; tables have the data's header")

    score = verbs.add_parser("log-prob", help="evaluate log p(x), in nats, of samples in a file")
    score.add_argument("model", help="folder")
    score.add_argument("data", help="as for fit; of bytes, bits per dimension are evaluated")
    score.add_argument("--split", default="train", help="of MNIST's or CIFAR-10's files: train or test (default: %(default)s)")
    score.add_argument(
        "--given", action="append", default=[], metavar="NAME=VALUE", help="a condition of all samples, e.g. y=3 or y=cat"
    )
    score.add_argument("--condition", action="append", default=[], metavar="NAME[=COLUMN,…]", help="as for fit: one in the data")
    score.add_argument("-n", type=int, help="how many samples, the first ones (default: all)")
    score.add_argument("--levels", type=int, help="of integer data (default: 256, of 16 bits 65536)")
    score.add_argument("--solver", default="adams", help="an ODE solver")
    score.add_argument("--trace", default="exact", help="exact or hutchinson")
    score.add_argument("--tolerance", type=float, help="of an adaptive solver, in nats; 1e-5 unless given")
    score.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    score.add_argument("--out", help=", ".join(files.WRITERS) + "; without it only the mean is printed")

    judge = verbs.add_parser("evaluate", help="bits/dim or log p of held-out data, a sheet of samples, the Fréchet distance")
    judge.add_argument("model", help="folder")
    judge.add_argument("data", help="as for fit")
    judge.add_argument(
        "--out", help="folder for evaluation.json and the samples: .png of images, .csv of tables; without it nothing is written"
    )
    judge.add_argument("--split", help="of MNIST's or CIFAR-10's files: train or test (default: test)")
    judge.add_argument("-n", type=int, default=1000, help="how many of the data, drawn at random (default: %(default)s)")
    judge.add_argument("--trace", help="exact or hutchinson (default: exact up to 256 numbers a sample)")
    judge.add_argument("--probes", type=int, help="of an estimated trace (default: 2)")
    judge.add_argument("--draws", type=int, default=1, help="more than one for importance-weighted bits/dim as well")
    judge.add_argument("--levels", type=int, help="of integer data (default: 256, of 16 bits 65536)")
    judge.add_argument("--solver", default="adams", help="an ODE solver")
    judge.add_argument("--tolerance", type=float, help="of an adaptive solver, in nats; unless given 1e-5, of integers 1e-4")
    judge.add_argument("--samples", type=int, default=64, help="on the sheet (default: %(default)s)")
    judge.add_argument("--fid", type=int, default=0, metavar="N", help=DISTANCE)
    judge.add_argument("--features", default="inception", help="of the Fréchet distance: inception (FID), or pixels")
    judge.add_argument(
        "--given", action="append", default=[], metavar="NAME=VALUE", help="a condition of all samples, e.g. y=3 or y=cat"
    )
    judge.add_argument("--condition", action="append", default=[], metavar="NAME[=COLUMN,…]", help="as for fit: one in the data")
    judge.add_argument("--device", help="where to compute (default: the accelerator, if there is one)")
    judge.add_argument("--seed", type=int, default=0)
    for verb in (train, score, judge):
        verb.add_argument("--columns", metavar="NAME,…", help="the columns of a table that are the samples (default: all others)")
        verb.add_argument("--encoding", default="utf-8", help="of a .csv or .tsv, e.g. utf-16 (default: %(default)s)")
    said = "a module first, whose backbones the model needs: its file imports nothing, not even diffusers"
    for verb in (train, draw, score, judge):
        verb.add_argument("--import", action="append", default=[], dest="imports", metavar="MODULE", help=said)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; mistakes end with exit status 2 and one line on standard error.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default the process's own.

    Examples
    --------
    >>> main(["fit", "missing.npy", "--out", "model"])
    Traceback (most recent call last):
    SystemExit: 2
    """
    parser = _parser()
    args = parser.parse_args(argv)
    status = 2
    try:
        check_seed(getattr(args, "seed", 0))
        for name in getattr(args, "imports", ()):
            importlib.import_module(name)
        _VERBS[args.verb](args)
        return
    except (ValueError, TypeError, OSError, ImportError, SolverError, TrainingError) as error:
        words = r"give it by --given \1=…" + r" or --condition \1" * hasattr(args, "condition")
        said = re.sub(r"write sde\.given\((\w+)=\.\.\.\)", words, str(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("memory|overflow", str(error), re.IGNORECASE):
            raise
        said = f"there is not the memory for it: {str(error).splitlines()[0] if str(error) else 'on this machine'}"
    except KeyboardInterrupt:
        said, status = "interrupted" + _remains(args), 130
    print(f"scoresde {args.verb}: {' '.join(said.split())}", file=sys.stderr)
    raise SystemExit(status)


def _remains(args: argparse.Namespace) -> str:
    """What an interrupted command leaves."""
    if args.verb == "fit" and (steps := sorted(Path(args.out).glob("step-*.json"))):
        return f"; the last checkpoint is of step {int(steps[-1].stem.partition('-')[2])}: go on with --resume"
    if args.verb == "evaluate" and args.out and (Path(args.out) / "evaluation.json").exists():
        return f"; what was found so far stands in {args.out}/evaluation.json"
    return ""


def _demo(args: argparse.Namespace) -> None:
    from .demo import demo  # matplotlib only when it is needed

    _writable(args.out, ".png", ".pdf", ".svg")
    demo(args.density, args.process, args.solver, steps=args.steps, out=args.out, seed=args.seed)


def _names(text: str) -> list[str]:
    """Names between commas; those that hold one stand in quotes."""
    names = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    if not names or not all(names):
        raise ValueError(f"columns are NAME,NAME,…, got {text!r}")
    return names


def _columns(pairs: Sequence[str]) -> dict[str, str | tuple[str, ...]]:
    """Conditions NAME=COLUMN, NAME=COLUMN,COLUMN,… of vectors, or NAME of a column of that name."""
    found: dict[str, str | tuple[str, ...]] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        columns = _names(text or name)
        if name in found:
            raise ValueError(f"condition {name!r} comes twice by --condition; several columns are {name}=a,b")
        found[name] = columns[0] if len(columns) == 1 else tuple(columns)
    return found


def _fit(args: argparse.Namespace) -> None:
    rule = recipe(args.recipe) if args.recipe is not None else PLAIN
    columns = _columns(args.condition)
    samples, levels = _samples(args, args.data, columns, mapped=True)
    data = samples.values
    if args.recipe:
        rule.check(data)
    said = {name: getattr(args, name) for name in ("steps", "batch_size", "lr", "every") if getattr(args, name) is not None}
    how = {**PLAIN.how, **rule.how, **said}
    transforms = list(how.pop("transforms") if args.transform is None else args.transform)
    if levels and "dequantize" not in transforms:
        transforms.append("dequantize")
    if levels > 256:
        transforms = [Dequantize(levels) if each == "dequantize" else each for each in transforms]
    samples = dataclasses.replace(samples, given={name: samples.given[name] for name in columns})  # no labels unasked
    options, takes = _options(args.option), inspect.signature(BACKBONES[args.net or rule.net]).parameters
    if "y" in columns and "classes" in takes:
        options["classes"] = options.get("classes") or _number_of_classes(samples.given["y"])
    if "vector" in columns and "vector" in takes:
        options["vector"] = options.get("vector") or samples.given["vector"].shape[1]
    validation = None
    if args.validation:
        split = "test" if args.validation == args.data and Path(args.data).is_dir() else "train"
        validation, _ = _samples(args, args.validation, columns, split)
        validation = dataclasses.replace(validation, given={name: validation.given[name] for name in columns})
    torch.manual_seed(args.seed)
    rule = dataclasses.replace(rule, shape=tuple(data.shape[1:]))
    sde = rule.build(args.process, args.net, **options)
    if not transforms:
        sde.accept(as_tensor(data[:1], "data") if isinstance(data, np.memmap) else data, "data")
    for name in ("steps", "batch-size", "every"):
        whole(name, how[name.replace("-", "_")])
    engine = _launched()
    if engine is None and (args.device is not None or args.recipe is not None):
        sde.to(_device(args.device))
    given, samples = samples.given, dataclasses.replace(samples, given={})
    how |= {"given": given or None, "transforms": transforms, "validation": validation, "patience": args.patience}
    how |= {"coupling": args.coupling, "objective": args.objective, "out": args.out, "resume": args.resume}
    history = rule.fit(sde, samples, **how, accelerator=engine)
    _say(engine, f"{args.out}: {len(data):,} samples of shape {tuple(data.shape[1:])}, {history!r}")


def _sample(args: argparse.Namespace) -> None:
    writable(args.out)
    generator = torch.Generator().manual_seed(args.seed)
    sde = load(args.model)
    given = _constants(_told(args)[1], sde)
    engine = _placed(sde, args.device)
    with sharded():
        solution = solve(sde.given(**given) if given else sde, args.n, solver=args.solver, steps=args.steps, generator=generator)
    if engine is None or engine.is_main_process:
        files.write(args.out, solution.x[-1].cpu(), columns=sde.schema.columns)
    _say(engine, f"{args.out}: {args.n:,} samples, {float(solution.nfe.double().mean()):.0f} evaluations each")


def _log_prob(args: argparse.Namespace) -> None:
    if args.out:
        writable(args.out)
    how: dict[str, Any] = {"solver": args.solver, "trace": args.trace}
    if args.tolerance is not None:
        how |= {"rtol": args.tolerance, "atol": args.tolerance}
    columns, texts = _told(args)
    samples, levels = _samples(args, args.data, columns, args.split)
    sde = load(args.model)
    samples = _first(dataclasses.replace(samples, given={name: samples.given[name] for name in columns}), args.n)
    constants = _constants(texts, sde)
    sde = sde.given(**constants) if constants else sde
    engine = _placed(sde, args.device)
    with sharded():
        if levels:
            noise = Uniform(args.levels or levels)
            result: Any = bits_per_dim(sde, samples, noise, generator=torch.Generator().manual_seed(0), **how)
            values, unit, mean, error = result.bits, "bits/dim", result.mean, result.mean_stderr
        else:
            result = likelihood(sde, samples, **how)  # type: ignore[arg-type]
            values, unit = result.log_prob, "nats"
            mean = float(values.double().mean())
            error = float(values.double().std()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    if args.out and (engine is None or engine.is_main_process):
        files.write(args.out, values.cpu())
    what = "mean bits per dimension" if unit == "bits/dim" else "mean log p(x)"
    _say(engine, f"{what}: {mean:.4f} ± {error:.4f} {unit} over {len(values):,} samples")
    errors = {"solver": result.solver_error, "prior": result.prior_gap, "trace": result.stderr}
    sizes = ", ".join(f"{name} {float(size.mean()):.0e}" if bool(size.any()) else f"{name} 0" for name, size in errors.items())
    _say(engine, f"errors of one value, in {unit}: {sizes}; {float(result.nfe.double().mean()):.0f} evaluations each")


def _evaluate(args: argparse.Namespace) -> None:
    how = {} if args.tolerance is None else {"rtol": args.tolerance, "atol": args.tolerance}
    columns, texts = _told(args)
    names = ("pixels", *FEATURES)
    if args.features not in names:
        raise ValueError(f"unknown features {args.features!r}. {nearest(args.features, names)}")
    split = _split(args.data, args.split)
    (samples, levels), sde = _samples(args, args.data, columns, split, mapped=True), load(args.model)
    samples = dataclasses.replace(samples, given={name: samples.given[name] for name in columns})
    constants = _constants(texts, sde)
    if constants:
        sde = sde.given(**constants)
    engine = _placed(sde, args.device)
    with sharded():
        found = evaluate(
            sde,
            samples,
            n=args.n,
            trace=args.trace,
            probes=args.probes,
            draws=args.draws,
            levels=args.levels or levels or 256,
            samples=args.samples,
            fid=args.fid,
            features=None if args.features == "pixels" else args.features,
            seed=args.seed,
            out=args.out,
            solver=args.solver,
            notes={**vars(args), "model": os.path.abspath(args.model), "data": os.path.abspath(args.data), "split": split},
            **how,
        )
    _say(engine, repr(found))
    if args.out is not None:
        _say(engine, f"{args.out}: evaluation.json{f', {found.sheet}' if found.sheet else ''}")


_VERBS = {"demo": _demo, "fit": _fit, "sample": _sample, "log-prob": _log_prob, "evaluate": _evaluate}
