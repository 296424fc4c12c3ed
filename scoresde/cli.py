"""The `scoresde` command: demo, fit, sample, log-prob, evaluate. Arrays come in and go out as files; models are folders.

`accelerate launch -m scoresde …` runs fit, sample and log-prob on several processes.
"""

from __future__ import annotations

import argparse
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
from .checks import whole
from .coupling import COUPLINGS
from .dequantize import Uniform
from .errors import SolverError, TrainingError
from .exact import likelihood
from .inputs import as_tensor
from .io import load
from .metrics.frechet import FEATURES
from .objective import OBJECTIVES
from .process import PROCESSES
from .ranks import sharded
from .recipes import PLAIN, RECIPES, recipe
from .registry import nearest
from .reports import check_seed, evaluate
from .sampling import solve
from .solvers import SOLVERS
from .transforms import TRANSFORMS


def _writable(path: str, *suffixes: str) -> None:
    """Find out before the work whether its result can be written."""
    if Path(path).suffix not in suffixes:
        raise ValueError(f"{path}: written are {', '.join(suffixes)} files")
    if not Path(path).absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no such folder")


MAPPED = 2**30  # bytes from which on data stay on the disk


def _values(values: np.ndarray, *, mapped: bool = False) -> Any:
    """Samples from a file as a tensor, floating point as float32; large ones stay on the disk if they may."""
    if mapped and isinstance(values, np.memmap) and values.nbytes > MAPPED:
        return values
    tensor = torch.from_numpy(np.array(values))
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
        raise ValueError(f"labels y are integers, one a sample, got {y.dtype} of shape {y.shape}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= len(y):
        raise ValueError(
            f"labels y run from {low} to {high} in {len(y):,} samples; wanted are classes numbered 0, 1, …; if there are more of "
            "them than samples, say --option classes=N"
        )
    return high + 1


def _classes(training: files.Samples, other: files.Samples, name: str) -> torch.Tensor:
    """A condition of another file, its classes numbered as in the training data."""
    values = torch.from_numpy(other.given[name])
    words, known = other.names.get(name, ()), training.names.get(name, ())
    if words == known:
        return values
    unknown = sorted(set(words) - set(known))
    if unknown or not words:
        raise ValueError(
            f"condition {name!r} is {unknown or 'numbers'} here, and one of {list(known) or 'numbers'} in the training data"
        )
    return torch.tensor([known.index(word) for word in words], device="cpu")[values]


def _given(pairs: Sequence[str]) -> dict[str, Any]:
    """Conditions NAME=VALUE, of numbers."""
    given = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            given[name] = as_tensor(_parsed(pair, value))
        except (json.JSONDecodeError, TypeError, RuntimeError):
            raise ValueError(f"a condition is NAME=NUMBER such as y=3, got {pair[:80]!r}") from None
    return given


def _told(args: argparse.Namespace) -> tuple[dict[str, str], dict[str, Any]]:
    """Columns of --condition, and constants of --given."""
    columns, constants = _columns(args.condition), _given(args.given)
    if twice := sorted(columns.keys() & constants.keys()):
        raise ValueError(f"condition {twice[0]!r} comes by both --condition and --given; leave one out")
    return columns, constants


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
    train.add_argument("data", help=".npy, .npz, .csv, .parquet, MNIST's or CIFAR-10's files, or a folder of images")
    train.add_argument("--out", required=True, help="folder for checkpoints and the model")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the folder, if there is one")
    train.add_argument("--recipe", help="all of the following as it was found good for: " + ", ".join(RECIPES))
    train.add_argument("--device", help="where to train (default: cpu; with a recipe the accelerator, if there is one)")
    train.add_argument("--every", type=int, help=f"steps between checkpoints {default('every')}")
    train.add_argument("--process", help=f"{', '.join(PROCESSES)} {default('process')}")
    train.add_argument("--net", help=f"{', '.join(BACKBONES)} {default('net')}")
    train.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the network, e.g. width=256")
    train.add_argument(
        "--condition", action="append", default=[], metavar="NAME[=COLUMN]", help="a condition in the data, e.g. y=label"
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
    draw.add_argument("--given", action="append", default=[], metavar="NAME=VALUE", help="a condition, e.g. y=3")
    draw.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    draw.add_argument("--out", required=True, help=".npy, .npz or .csv")

    score = verbs.add_parser("log-prob", help="evaluate log p(x), in nats, of samples in a file")
    score.add_argument("model", help="folder")
    score.add_argument("data", help="as for fit; of bytes, bits per dimension are evaluated")
    score.add_argument("--split", default="train", help="of MNIST's or CIFAR-10's files: train or test (default: %(default)s)")
    score.add_argument("--given", action="append", default=[], metavar="NAME=VALUE", help="a condition of all samples, e.g. y=3")
    score.add_argument("--condition", action="append", default=[], metavar="NAME[=COLUMN]", help="as for fit: one in the data")
    score.add_argument("-n", type=int, help="how many samples, the first ones (default: all)")
    score.add_argument("--levels", type=int, default=256, help="of integer data (default: %(default)s)")
    score.add_argument("--solver", default="adams", help="an ODE solver")
    score.add_argument("--trace", default="exact", help="exact or hutchinson")
    score.add_argument("--tolerance", type=float, help="of an adaptive solver, in nats; 1e-5 unless given")
    score.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    score.add_argument("--out", help=".npy, .npz or .csv; without it only the mean is printed")

    judge = verbs.add_parser("evaluate", help="bits/dim or log p of held-out data, a sheet of samples, the Fréchet distance")
    judge.add_argument("model", help="folder")
    judge.add_argument("data", help="as for fit")
    judge.add_argument("--out", help="folder for evaluation.json and samples.png; without it the table is only printed")
    judge.add_argument("--split", help="of MNIST's or CIFAR-10's files: train or test (default: test)")
    judge.add_argument("-n", type=int, default=1000, help="how many of the data, drawn at random (default: %(default)s)")
    judge.add_argument("--trace", help="exact or hutchinson (default: exact up to 256 numbers a sample)")
    judge.add_argument("--probes", type=int, help="of an estimated trace (default: 2)")
    judge.add_argument("--draws", type=int, default=1, help="more than one for importance-weighted bits/dim as well")
    judge.add_argument("--levels", type=int, default=256, help="of integer data (default: %(default)s)")
    judge.add_argument("--solver", default="adams", help="an ODE solver")
    judge.add_argument("--tolerance", type=float, help="of an adaptive solver, in nats; unless given 1e-5, of integers 1e-4")
    judge.add_argument("--samples", type=int, default=64, help="on the sheet (default: %(default)s)")
    judge.add_argument("--fid", type=int, default=0, metavar="N", help=DISTANCE)
    judge.add_argument("--features", default="inception", help="of the Fréchet distance: inception (FID), or pixels")
    judge.add_argument("--given", action="append", default=[], metavar="NAME=VALUE", help="a condition of all samples, e.g. y=3")
    judge.add_argument("--condition", action="append", default=[], metavar="NAME[=COLUMN]", help="as for fit: one in the data")
    judge.add_argument("--device", help="where to compute (default: the accelerator, if there is one)")
    judge.add_argument("--seed", type=int, default=0)
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


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    """Conditions NAME=COLUMN, or NAME of a column of that name."""
    return {name: column or name for name, _, column in (pair.partition("=") for pair in pairs)}


def _fit(args: argparse.Namespace) -> None:
    rule = recipe(args.recipe) if args.recipe is not None else PLAIN
    columns = _columns(args.condition)
    samples = files.read(args.data, conditions=columns)
    data = _values(samples.values, mapped=True)
    if args.recipe:
        rule.check(data)
    said = {name: getattr(args, name) for name in ("steps", "batch_size", "lr", "every") if getattr(args, name) is not None}
    how = {**PLAIN.how, **rule.how, **said}
    transforms = list(how.pop("transforms") if args.transform is None else args.transform)
    if samples.values.dtype == np.uint8 and "dequantize" not in transforms:
        transforms.append("dequantize")
    given = {name: torch.from_numpy(samples.given[name]) for name in columns}
    options = _options(args.option)
    if "y" in given and "classes" in inspect.signature(BACKBONES[args.net or rule.net]).parameters:
        options["classes"] = options.get("classes") or _number_of_classes(samples.given["y"])
    validation = None
    if args.validation:
        split = "test" if args.validation == args.data and Path(args.data).is_dir() else "train"
        held_out = files.read(args.validation, conditions=columns, split=split)
        validation = _values(held_out.values), {name: _classes(samples, held_out, name) for name in columns}
    torch.manual_seed(args.seed)
    rule = dataclasses.replace(rule, shape=tuple(data.shape[1:]))
    sde = rule.build(args.process, args.net, **options)
    if not transforms:
        sde.accept(as_tensor(data[:1]) if isinstance(data, np.memmap) else data, "data")
    for name in ("steps", "batch-size", "every"):
        whole(name, how[name.replace("-", "_")])
    engine = _launched()
    if engine is None and (args.device is not None or args.recipe is not None):
        sde.to(_device(args.device))
    how |= {"given": given or None, "transforms": transforms, "validation": validation, "patience": args.patience}
    how |= {"coupling": args.coupling, "objective": args.objective, "out": args.out, "resume": args.resume}
    history = rule.fit(sde, data, **how, accelerator=engine)
    _say(engine, f"{args.out}: {len(data):,} samples of shape {tuple(data.shape[1:])}, {history!r}")


def _sample(args: argparse.Namespace) -> None:
    _writable(args.out, *files.WRITERS)
    generator = torch.Generator().manual_seed(args.seed)
    sde = load(args.model)
    given = _given(args.given)
    engine = _placed(sde, args.device)
    with sharded():
        solution = solve(sde.given(**given) if given else sde, args.n, solver=args.solver, steps=args.steps, generator=generator)
    if engine is None or engine.is_main_process:
        files.write(args.out, solution.x[-1].cpu())
    _say(engine, f"{args.out}: {args.n:,} samples, {float(solution.nfe.double().mean()):.0f} evaluations each")


def _log_prob(args: argparse.Namespace) -> None:
    if args.out:
        _writable(args.out, *files.WRITERS)
    how: dict[str, Any] = {"solver": args.solver, "trace": args.trace}
    if args.tolerance is not None:
        how |= {"rtol": args.tolerance, "atol": args.tolerance}
    columns, constants = _told(args)
    samples = files.read(args.data, conditions=columns, split=args.split)
    sde, data = load(args.model), _values(samples.values)[: args.n]
    given = constants | {name: torch.from_numpy(samples.given[name])[: args.n] for name in columns}
    if given:
        sde = sde.given(**given)
    engine = _placed(sde, args.device)
    with sharded():
        if data.dtype == torch.uint8:
            result: Any = bits_per_dim(sde, data, Uniform(args.levels), generator=torch.Generator().manual_seed(0), **how)
            values, unit, mean, error = result.bits, "bits/dim", result.mean, result.mean_stderr
        else:
            result = likelihood(sde, data, **how)
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
    columns, constants = _told(args)
    names = ("pixels", *FEATURES)
    if args.features not in names:
        raise ValueError(f"unknown features {args.features!r}. {nearest(args.features, names)}")
    split = _split(args.data, args.split)
    samples, sde = files.read(args.data, conditions=columns, split=split), load(args.model)
    if constants:
        sde = sde.given(**constants)
    engine = _placed(sde, args.device)
    with sharded():
        found = evaluate(
            sde,
            samples.values if samples.values.dtype.kind in "biu" else samples.values.astype(np.float32, copy=False),
            given={name: torch.from_numpy(samples.given[name]) for name in columns},
            n=args.n,
            trace=args.trace,
            probes=args.probes,
            draws=args.draws,
            levels=args.levels,
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
        _say(engine, f"{args.out}: evaluation.json{', samples.png' if found.sheet else ''}")


_VERBS = {"demo": _demo, "fit": _fit, "sample": _sample, "log-prob": _log_prob, "evaluate": _evaluate}
