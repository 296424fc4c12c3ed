"""What a trained model is worth on held-out data, in one call: bits/dim or log p, a sheet of samples, the Fréchet distance.

Integers are scored in bits per dimension (see `scoresde.bits`), with uniform dequantization and, if several draws are asked for,
by the importance-weighted bound as well. Of other data log p(x) is found, in nats.

All that is random belongs to the seed: the order in which the data are taken, their noise, their probes, and the samples. One
random order serves all: the first n of it are scored, and samples take the conditions of the first ones, round after round. So
data that lie sorted by class are no matter, and what was scored before an interruption is a random subset like any other. The
data are scored `PART` at a time, each part with a stream of its own; after each, what is known is written down.

An estimated trace makes the importance-weighted bound too low: log p with a normal error e enters as E log mean w·exp(e), which
is at most ½·E e² above that of w alone. That much is reported as `bias`; it is 0 for the exact trace.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import plotting
from .bits import bits_per_dim
from .checks import affordable, as_path, check_seed, flag, whole
from .dequantize import Uniform
from .evaluation import Distance, Evaluation, Score, fingerprint
from .exact import check_how, likelihood
from .files import write
from .inputs import as_floats, as_tensor
from .metrics.frechet import Features, frechet_distance, moments, resolve_features
from .plan import tolerance
from .random import seeded
from .ranks import share
from .sampling import sample, solve
from .sde import ScoreSDE, evaluating, require_sde
from .solvers import Solver

PART = 128  # data scored between two notes
DRAWN = 1024  # samples drawn at a time for the Fréchet distance
EXACT = 256  # numbers of a sample up to which the trace is exact, unless the user says
PROBES = 2
TOLERANCE = 1e-4  # of the likelihood of integers, in nats, whose errors are divided by D·ln 2
SKETCH = 1000  # data by which the same data are known again
ROWS, SINGLE, WEIGHTED, DISTANCE = range(4)  # streams


def evaluate(
    sde: ScoreSDE,
    data: Any,
    *,
    given: Mapping[str, Tensor] | None = None,
    n: int = 1000,
    trace: str | None = None,
    probes: int | None = None,
    draws: int = 1,
    levels: int = 256,
    samples: int = 64,
    fid: int = 0,
    features: str | Features | None = "inception",
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    solver: str | Solver = "adams",
    notes: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> Evaluation:
    """Score held-out data, draw a sheet of samples, and measure the Fréchet distance, all as the seed has it.

    Integers are scored in bits/dim, −log₂ P(v)/D from above, other numbers by the mean of log p(x) in nats. All is checked before
    the work; of what is interrupted, the parts that were done stand in `out`. What a file there says of the same model, data and
    seed is kept until it is found anew; one that speaks of others is replaced by the first result.

    Parameters
    ----------
    sde : ScoreSDE
    data : Tensor, array, data frame or Samples, shape (N, *shape)
        Held-out: integers 0 … levels − 1 for a model of the unit scale, or floating-point data in their own units.
    given : mapping of str to Tensor, optional
        Conditions by name, one row per datum. Samples take those of the data in the seed's random order, round after round.
    n : int
        How many to score, a random subset of that seed; all if there are no more. 0 for none.
    trace : str, optional
        "exact" or "hutchinson". By default exact for samples of up to 256 numbers, unless probes are given.
    probes : int, optional
        Of an estimated trace: 2 by default. One tells nothing about the error of one value; that of the mean is told anyway.
    draws : int
        k. More than one evaluates the importance-weighted bound with k draws, after the usual one: k times as long.
    levels : int
        L, of integers.
    samples : int
        How many to draw, 0 for none. If there is an `out`, they are there: images, (1 or 3, H, W), drawn on a sheet,
        samples.png; vectors as a table, samples.csv, with the names that the model knows; others as an array, samples.npy.
    fid : int
        How many samples to draw for the Fréchet distance to all of `data`, n being far above the features for a useful one.
        0 for none.
    features : str, callable or None
        As for `frechet_distance`; of integers they are given bytes 0 … 255, ⌊(v + ½)·256/L⌋. None sees the integers themselves.
    seed : int
        All randomness, 0 ≤ seed < 2⁶³.
    out : path, optional
        A folder for evaluation.json and the samples; made if it is not there.
    solver : str or Solver
        Of the likelihood. Samples go by the model's own.
    notes : mapping, optional
        For the file alone: where model and data come from, and the like. What JSON can't hold stands there as its `str`.
    progress : bool
        Show a progress bar (on a terminal).
    **options
        Of the likelihood: rtol=, atol=, steps=, batch_size=, … For integers "adams" goes by rtol = atol = 1e-4 unless told.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError, OSError, ImportError
        For data of another shape or kind than the model's, bad arguments, a folder that can't be written, or a missing package.
    SolverError
        As `likelihood`.

    References
    ----------
    Theis et al., ICLR 2016, and Burda et al., ICLR 2016, eq. 8, for the bits; Heusel et al., NeurIPS 2017, for the distance.

    Examples
    --------
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde = scoresde.oracle(mixture, scoresde.RectifiedFlow())
    >>> found = evaluate(sde, mixture.sample(200), n=100, samples=4, fid=200, features=None, progress=False)
    >>> found
    model          RectifiedFlow(), MixtureDenoiser, (2,)  (0 parameters)
    data           100 of 200, drawn at random with seed 0
    mean log p(x)  -... ± ... nats  (100 data, exact trace, ... evaluations each, ... s)
                   errors of one  (trace 0, solver ..., prior ...)
    samples        4  (... evaluations each, ... s)
    Fréchet d²     ...  (points, 200 samples, 200 data, ... s)
    >>> abs(found.score.mean + mixture.entropy()) < 4 * found.score.stderr
    True
    """
    sde = require_sde(sde, "evaluate")
    n, samples, fid, seed = whole("n", n, 0), whole("samples", samples, 0), whole("fid", fid, 0), check_seed(seed)
    draws, progress = whole("draws", draws), flag("progress", progress)
    if not isinstance(notes, Mapping | None):
        raise TypeError(f"notes is a mapping such as {{'model': path}}, got {type(notes).__name__}")
    out = None if out is None else as_path(out, "out")
    for name, count in (("samples", samples), ("fid", fid)):
        nbytes = float(count) * (8 + 4 * sde.dim)
        affordable(f"{name}={count}", nbytes, calls=count // DRAWN, device=sde.scale.device)
    if fid == 1:
        raise ValueError("fid is how many samples the Fréchet distance takes, at least 2, got 1")
    trace, probes = _trace(sde, trace, probes)
    data, given = sde.schema.take(data, given)
    data = _array("data", data)
    if not data.ndim or not len(data):
        raise ValueError(f"data are (N, *shape) and not empty, got shape {tuple(data.shape)}")
    total, n = len(data), min(n, len(data))
    if fid and total < 2:
        raise ValueError("the Fréchet distance takes at least 2 data, got 1")
    order = _order(total, max(n, samples, fid, min(SKETCH, total)), seed)
    scored = _tensor(data, order[: max(n, 1)])
    discrete = not (scored.is_floating_point() or scored.is_complex() or scored.dtype == torch.bool)
    if draws > 1 and not discrete:
        raise ValueError(f"draws={draws} are of the noise of integers, and the data are {scored.dtype}")
    if discrete and solver == "adams" and not {"rtol", "atol", "steps"} & options.keys():
        options |= dict.fromkeys(("rtol", "atol"), max(TOLERANCE, tolerance(sde)))
    noise = Uniform(levels)
    if n:
        affordable(f"draws={draws}", 4.0 * min(n, PART) * sde.dim * draws, device=sde.scale.device)
    truth = _tensor(data, slice(None)) if fid else scored
    _accept(sde, truth, noise if discrete else None)
    told = _conditions(sde, given, total)
    told(order[: max(n, samples, fid)])  # all labels that there will be
    if n or options:
        check_how(sde, trace=trace, probes=probes, solver=solver, **options)
    see: Features | None = None
    as_bytes = discrete and (features is not None or levels == 256)
    if fid:
        see = resolve_features(features)
        see = see.to(sde.scale.device) if isinstance(features, str) and isinstance(see, nn.Module) else see
        truth = torch.cat([_bytes(part, levels) for part in torch.split(truth, DRAWN)]) if as_bytes else truth
        moments(truth[:2], see)
    drawn = bool(samples) and len(sde.shape) == 3 and sde.shape[0] in (1, 3) and out is not None
    if drawn:
        plotting._pyplot()
    with torch.no_grad(), evaluating(sde):  # a network that wants a condition says so now
        one = told(order[:1]).rows(0, 1, 1)
        one.output(torch.zeros(1, sde.dim, dtype=sde.state_dtype, device=sde.scale.device), 0.8)
    writes = out is not None and share(2**20)[0] == 0  # one of several ranks
    if out is not None and writes:
        _ready(out)

    sketch = order[:SKETCH]
    conditions = {name: value.cpu() for name, value in told(sketch).condition.items()}
    found = Evaluation(
        model=f"{sde.process!r}, {type(sde.net).__name__}, {sde.shape}",
        parameters=sum(p.numel() for p in sde.net.parameters()),
        total=total,
        levels=levels if discrete else 0,
        conditions=tuple(conditions),
        seed=seed,
        fingerprint=fingerprint(sde, _tensor(data, sketch), conditions, total, levels if discrete else 0),
        device=_named(sde.scale.device),
        notes=dict(notes or {}),
    )
    kept = found.kept(out) if writes and out is not None else {}

    def note() -> None:
        if writes:
            assert out is not None
            found.write(out, kept)

    if samples:
        began = time.perf_counter()
        solution = solve(told(order[:samples]), samples, generator=torch.Generator().manual_seed(seed))
        images = noise.values(solution.x[-1]).float() if discrete else solution.x[-1]
        found.samples, found.samples_nfe = samples, float(solution.nfe.double().mean())
        found.samples_seconds = time.perf_counter() - began
        if writes and not drawn:
            assert out is not None
            found.sheet = "samples.csv" if len(sde.shape) == 1 else "samples.npy"
            write(Path(out) / found.sheet, images, columns=sde.schema.columns)
        if drawn and writes:
            assert out is not None
            found.sheet = "samples.png"
            title = f"{samples} samples, seed {seed}, {found.samples_nfe:.0f} evaluations each"
            limits, partial = (0.0, levels - 1.0) if discrete else None, Path(out) / "samples.partial.png"
            plotting.sheet(images, partial, columns=math.ceil(math.sqrt(samples)), title=title, limits=limits)
            os.replace(partial, Path(out) / found.sheet)
        note()
    how = {"trace": trace, "probes": probes, "solver": solver, **options}
    asked = [("score", 1 if discrete else 0, SINGLE), *([("weighted", draws, WEIGHTED)] if draws > 1 else [])]
    for field, k, stream in asked if n else []:
        columns: list[tuple[Tensor, ...]] = []
        began = time.perf_counter()
        with tqdm(total=n, desc=field, disable=None if progress else True, mininterval=0.5) as bar:
            for i, (part, rows) in enumerate(zip(torch.split(scored, PART), torch.split(order[:n], PART), strict=True)):
                columns.append(_values(told(rows), part, noise if k else None, k, seeded("cpu", seed, stream, i), how))
                setattr(found, field, _score(sde, columns, n, k, how, time.perf_counter() - began, found.score))
                note()
                bar.update(len(rows))
    if fid:
        began = time.perf_counter()
        parts = []
        for i, rows in enumerate(torch.split(order[:fid], DRAWN)):
            x = sample(told(rows), len(rows), generator=seeded("cpu", seed, DISTANCE, i))
            v = noise.values(x).cpu() if discrete else x.cpu()
            parts.append(_bytes(v, levels) if as_bytes else v.to(truth.dtype) if discrete else v)
        d2 = float(frechet_distance(torch.cat(parts), truth, see))
        found.distance = Distance(d2, _called(features), fid, total, time.perf_counter() - began)
        note()
    return found


def _trace(sde: ScoreSDE, trace: str | None, probes: int | None) -> tuple[str, int]:
    """How the trace is found, and with how many probes; 0 for the exact one."""
    if trace == "exact" and probes is not None:
        raise ValueError(f"probes={probes} are of an estimated trace; leave them out, or trace='exact'")
    if trace is None:
        trace = "exact" if probes is None and sde.dim <= EXACT else "hutchinson"
    probes = PROBES if probes is None else whole("probes", probes)
    if trace == "hutchinson" and probes >= sde.dim:  # see `likelihood`
        trace = "exact"
    return trace, probes


def _order(total: int, wanted: int, seed: int) -> Tensor:
    """Rows in random order, each once a round, for as many as are wanted: of fewer, the first ones."""
    generator = seeded("cpu", seed, ROWS)
    return torch.cat([torch.randperm(total, generator=generator, device="cpu") for _ in range(math.ceil(wanted / total))])[
        :wanted
    ]


def _array(name: str, values: Any) -> Any:
    """Values as a tensor or array of numbers; those in a file stay there."""
    if np.ma.is_masked(values):
        as_tensor(values, name)
    if isinstance(values, Tensor):
        values = as_tensor(values, name)
        return values.long() if values.dtype in (torch.uint16, torch.uint32, torch.uint64) else values
    if isinstance(values, list | tuple) or hasattr(values, "__array__"):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # rows of several lengths
            values = values if isinstance(values, np.ndarray) else np.asarray(values)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biufc" or values.dtype == np.longdouble:
        kind = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise TypeError(f"{name} is a tensor or array of numbers, got {kind}")
    return values


def _tensor(values: Any, rows: Tensor | slice) -> Tensor:
    """Some rows, as a tensor of its own."""
    if isinstance(values, Tensor):
        return values[rows if isinstance(rows, slice) else rows.to(values.device)]
    part = values[rows if isinstance(rows, slice) else rows.numpy()]
    wide = part.dtype.kind == "u" and part.dtype.itemsize > 1  # which torch can't index
    return torch.from_numpy(np.array(part, dtype=np.int64 if wide else part.dtype.newbyteorder("="), order="C"))


def _accept(sde: ScoreSDE, x: Tensor, noise: Uniform | None) -> None:
    """Raise unless these are data that the model can score."""
    if noise is None:
        as_floats(x, sde.shape, "data")
        return
    if tuple(x.shape[1:]) != sde.shape:
        raise ValueError(f"data have shape {tuple(x.shape[1:])} a sample, and the model's are {sde.shape}")
    noise._accept(x)


def _conditions(sde: ScoreSDE, given: Any, total: int) -> Callable[[Tensor], ScoreSDE]:
    """The model told the conditions of some rows, as a function of them."""
    for name, value in sde.condition.items():
        if len(value) > 1:
            raise ValueError(
                f"the model has been given {name!r} of {len(value)} rows; give those of the data by given= (--condition {name})"
            )
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"given is a mapping from names to values such as {{'y': labels}}, got {type(given).__name__}")
    values = {name: _array(f"condition {name!r}", value) for name, value in (given or {}).items()}
    for name, value in values.items():
        if not value.ndim or len(value) != total:
            raise ValueError(f"condition {name!r} has shape {tuple(value.shape)} for {total} data")

    def told(rows: Tensor) -> ScoreSDE:
        return sde.given(**{name: _tensor(value, rows) for name, value in values.items()}) if values else sde

    return told


def _bytes(v: Tensor, levels: int) -> Tensor:
    """The byte in the middle of each integer's bin: ⌊(v + ½)·256/L⌋."""
    return (v if levels == 256 else ((2 * v.long() + 1) * 128).div(levels, rounding_mode="floor")).byte()


def _ready(out: Path) -> None:
    """Make the folder, or say why not."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"can't write to {out}: {error.strerror}") from None
    if not os.access(out, os.W_OK):
        raise ValueError(f"can't write to {out}: it is read-only")


def _values(
    sde: ScoreSDE, x: Tensor, noise: Uniform | None, draws: int, generator: torch.Generator, how: Mapping[str, Any]
) -> tuple[Tensor, ...]:
    """Of each datum: bits or log p, the errors of trace, solver and prior, and evaluations."""
    if noise is not None:
        bits = bits_per_dim(sde, x, noise, draws=draws, generator=generator, **how)
        return bits.bits.cpu(), bits.stderr.cpu(), bits.solver_error.cpu(), bits.prior_gap.cpu(), bits.nfe
    found = likelihood(sde, x, generator=generator, **how)
    return found.log_prob.cpu(), found.stderr.cpu(), found.solver_error.cpu(), found.prior_gap.cpu(), found.nfe


def _score(
    sde: ScoreSDE,
    columns: Sequence[tuple[Tensor, ...]],
    of: int,
    draws: int,
    how: Mapping[str, Any],
    seconds: float,
    single: Score | None,
) -> Score:
    value, stderr, solver_error, prior_gap, nfe = (torch.cat(column).double() for column in zip(*columns, strict=True))
    trace, probes = how["trace"], how["probes"]
    trace_error, bias = float(stderr.square().mean().sqrt()), 0.0
    if trace != "exact":  # back from the widening of Student's t, which is for intervals of one value
        widening = 0.5 * float(student.ppf(0.5 * (1 + math.erf(math.sqrt(2))), probes - 1)) if probes > 1 else math.nan
        trace_error = trace_error / widening if draws < 2 else math.nan
    if trace != "exact" and draws > 1:
        assert single is not None
        bias = 0.5 * single.trace_error**2 * sde.dim * math.log(2)
    return Score(
        unit="bits/dim" if draws else "nats",
        mean=float(value.mean()),
        stderr=float(value.std()) / math.sqrt(len(value)) if len(value) > 1 else math.nan,
        n=len(value),
        of=of,
        draws=draws,
        trace=trace,
        probes=0 if trace == "exact" else probes,
        trace_error=trace_error,
        solver_error=float(solver_error.mean()),
        prior_gap=float(prior_gap.mean()),
        bias=bias,
        nfe=float(nfe.mean()),
        seconds=seconds,
        solver=", ".join(f"{v}" if k == "solver" else f"{k}={v}" for k, v in how.items() if k not in ("trace", "probes")),
    )


def _called(features: object) -> str:
    """Features by name, for the table."""
    if features is None or isinstance(features, str):
        return features or "points"
    return str(getattr(features, "__name__", type(features).__name__))


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"
