"""The `scoresde` command: demo, fit, sample, log-prob. Arrays come in and go out as .npy (or .csv); models are folders."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import toy
from .backbones import BACKBONES
from .build import build
from .checks import whole
from .errors import SolverError, TrainingError
from .io import load, ready, save
from .likelihood import likelihood
from .process import PROCESSES
from .sampling import solve
from .solvers import SOLVERS
from .training import fit


def read(path: str | Path) -> Tensor:
    """Read a table or an array of samples: .npy, or .csv with or without a header line. Nothing is unpickled.

    Parameters
    ----------
    path : path

    Returns
    -------
    Tensor, shape (n, *shape), float32
        One sample per row; .npy arrays keep their dtype if it is an integer, so that a model can refuse it.

    Raises
    ------
    ValueError
        If the file is of another kind, has no rows, or holds something that is not a number.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     _ = Path(d, "a.csv").write_text("x,y\\n1,2\\n3,4\\n")
    ...     read(Path(d, "a.csv"))
    tensor([[1., 2.],
            [3., 4.]])
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix == ".npy":
        try:
            array = np.lib.format.read_array(path.open("rb"), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is not a sound .npy file of numbers: {error}") from None
    elif path.suffix == ".csv":
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        start = 0 if lines and _is_number(lines[0].split(",")[0]) else 1
        if len(lines) <= start:
            raise ValueError(f"{path} has no rows")
        array = np.loadtxt(lines[start:], delimiter=",", ndmin=2, dtype=np.float32)
    else:
        raise ValueError(f"{path}: samples are read from .npy or .csv files")
    if array.ndim < 2:
        raise ValueError(f"{path} holds an array of shape {array.shape}; wanted one sample per row, (n, …)")
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.float() if tensor.is_floating_point() else tensor


def write(path: str | Path, values: Tensor) -> None:
    """Write values as .npy, or as .csv if the name says so and they are a table.

    Parameters
    ----------
    path : path
    values : Tensor

    Raises
    ------
    ValueError
        For another suffix.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     write(Path(d, "a.npy"), torch.ones(2, 2)); read(Path(d, "a.npy")).sum()
    tensor(4.)
    """
    path = Path(path)
    if path.suffix == ".npy":
        np.save(path, values.cpu().numpy())
    elif path.suffix == ".csv":
        np.savetxt(path, values.cpu().reshape(len(values), -1).numpy(), delimiter=",")
    else:
        raise ValueError(f"{path}: values are written as .npy or .csv")


def _writable(path: str, *suffixes: str) -> None:
    """Find out before the work whether its result can be written."""
    if Path(path).suffix not in suffixes:
        raise ValueError(f"{path}: written are {', '.join(suffixes)} files")
    if not Path(path).absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no such folder")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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

    train = verbs.add_parser("fit", help="train a model on samples in a file")
    train.add_argument("data", help=".npy (n, …) or .csv, one sample per row")
    train.add_argument("--out", required=True, help="folder for the model")
    train.add_argument("--process", default="vp", help=", ".join(PROCESSES))
    train.add_argument("--net", default="mlp", help=", ".join(BACKBONES))
    train.add_argument("--steps", type=int, default=10_000, help="training steps (default: %(default)s)")
    train.add_argument("--batch-size", type=int, default=512)
    train.add_argument("--seed", type=int, default=0)

    draw = verbs.add_parser("sample", help="draw samples from a model")
    draw.add_argument("model", help="folder")
    draw.add_argument("-n", type=int, default=1, help="how many (default: %(default)s)")
    draw.add_argument("--solver", default="adams", help=", ".join(SOLVERS))
    draw.add_argument("--steps", type=int, help="fixed number of steps; adaptive solvers go by tolerances without")
    draw.add_argument("--seed", type=int, default=0)
    draw.add_argument("--out", required=True, help=".npy or .csv")

    score = verbs.add_parser("log-prob", help="evaluate log p(x), in nats, of samples in a file")
    score.add_argument("model", help="folder")
    score.add_argument("data", help=".npy or .csv")
    score.add_argument("--solver", default="adams", help="an ODE solver")
    score.add_argument("--trace", default="exact", help="exact or hutchinson")
    score.add_argument("--tolerance", type=float, help="of an adaptive solver, in nats; 1e-5 unless given")
    score.add_argument("--out", help=".npy or .csv; without it only the mean is printed")
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
    try:
        _VERBS[args.verb](args)
    except (ValueError, TypeError, OSError, ImportError, SolverError, TrainingError) as error:
        print(f"scoresde {args.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def _demo(args: argparse.Namespace) -> None:
    from .demo import demo  # matplotlib only when it is needed

    _writable(args.out, ".png", ".pdf", ".svg")
    demo(args.density, args.process, args.solver, steps=args.steps, out=args.out, seed=args.seed)


def _fit(args: argparse.Namespace) -> None:
    data = read(args.data)
    torch.manual_seed(args.seed)
    sde = build(args.process, args.net, shape=tuple(data.shape[1:]))
    sde.accept(data, "data")
    whole("steps", args.steps)
    whole("batch-size", args.batch_size)
    ready(args.out)  # last, so that a mistake leaves no folder, and before the training
    history = fit(sde, data, steps=args.steps, batch_size=args.batch_size)
    print(f"{save(sde, args.out)}: {len(data):,} samples of shape {tuple(data.shape[1:])}, {history!r}")


def _sample(args: argparse.Namespace) -> None:
    _writable(args.out, ".npy", ".csv")
    generator = torch.Generator().manual_seed(args.seed)
    solution = solve(load(args.model), args.n, solver=args.solver, steps=args.steps, generator=generator)
    write(args.out, solution.x[-1])
    print(f"{args.out}: {args.n:,} samples, {float(solution.nfe.double().mean()):.0f} evaluations each")


def _log_prob(args: argparse.Namespace) -> None:
    if args.out:
        _writable(args.out, ".npy", ".csv")
    how = {} if args.tolerance is None else {"rtol": args.tolerance, "atol": args.tolerance}
    result = likelihood(load(args.model), read(args.data), solver=args.solver, trace=args.trace, **how)
    if args.out:
        write(args.out, result.log_prob)
    values = result.log_prob.double()
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    print(f"mean log p(x): {float(values.mean()):.4f} ± {error:.4f} nats over {len(values):,} samples")
    errors = {"solver": result.solver_error, "prior": result.prior_gap, "trace": result.stderr}
    sizes = ", ".join(f"{name} {float(size.mean()):.0e}" if bool(size.any()) else f"{name} 0" for name, size in errors.items())
    print(f"errors of one value, in nats: {sizes}; {float(result.nfe.double().mean()):.0f} evaluations each")


_VERBS = {"demo": _demo, "fit": _fit, "sample": _sample, "log-prob": _log_prob}
