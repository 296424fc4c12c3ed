"""What `evaluate` measures: a table of functions, one row each.

A measure is called with a `Task` and yields dictionaries of results by name. It yields nothing if
the user did not ask for it, and yields again whenever it knows more: `evaluate` writes the file
after each. Results whose names are no attributes of `Evaluation` go to `Evaluation.metrics`, into
its table and into the file. So a new metric is one row of `MEASURES`, such as the energy distance
of the samples that are drawn for the Fréchet distance:

>>> from scoresde.metrics import energy_distance
>>> def energy(task):
...     if task.fid:
...         yield {"energy": float(energy_distance(task.drawn, task.truth))}
>>> MEASURES["energy"] = energy
>>> mixture = scoresde.toy.EightGaussians()
>>> sde = scoresde.oracle(mixture, scoresde.RectifiedFlow())
>>> how = {"n": 0, "samples": 0, "fid": 200, "features": None, "progress": False}
>>> found = scoresde.evaluate(sde, mixture.sample(200), **how)
>>> abs(found.metrics["energy"]) < 0.2
True
>>> del MEASURES["energy"]

An estimated trace makes the importance-weighted bound too low: log p with a normal error e enters
as E log mean w·exp(e), which is at most ½·E e² above that of w alone. That much is reported as
`bias`; it is 0 for the exact trace.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from ..common import plotting, progress
from ..common.random import seeded
from ..data.files import write
from ..density.bits import bits_per_dim
from ..density.dequantize import Uniform
from ..density.exact import likelihood
from ..metrics.frechet import Features, frechet_distance
from ..model.latent import Latent
from ..model.protocol import Model
from ..sampling.trajectory import sample, solve
from .held_out import HeldOut
from .results import Distance, Evaluation, Score

PAIRED_COLUMNS = range(2, 9)  # of which samples and data are drawn in pairs
PAIRED_ROWS = 2000
SCORED_AT_ONCE = 128  # data between two writes of the file
DRAWN_AT_ONCE = 1024  # samples drawn at a time for the Fréchet distance
# streams of the seed, beside ORDER_STREAM
SCORE_STREAM = 1
WEIGHTED_STREAM = 2
SAMPLES_STREAM = 3


@dataclass(kw_only=True)
class Task:
    """What `evaluate` was asked for: measures read it and do not change it."""

    sde: Model
    data: HeldOut
    order: Tensor  # row numbers in random order
    scored: Tensor  # the first n values in this order, or the first alone if n = 0
    noise: Uniform | None  # of integers; None for other data
    n: int
    draws: int
    samples: int
    fid: int
    features: str | Features | None
    seed: int
    folder: Path | None
    options: Mapping[str, Any]  # of the likelihood
    progress: bool | None
    network: Features | None = None  # the features, as something to call
    truth: Tensor | None = None  # with fid, all data in the form that features see
    writes: bool = False  # whether this process writes to the folder
    evaluation: Evaluation | None = None  # what is known so far

    @property
    def levels(self) -> int:
        """The number of levels of integers; 0 for other data."""
        return self.noise.levels if self.noise is not None else 0

    @property
    def dim(self) -> int:
        """The number of elements of one sample that vary, by which bits are divided."""
        sde: Any = self.sde
        found: int = sde.stage.dim if isinstance(sde, Latent) else sde.dim
        return found

    @property
    def as_bytes(self) -> bool:
        """Whether features see integers as bytes."""
        return self.noise is not None and (self.features is not None or self.levels == 256)

    @property
    def is_image(self) -> bool:
        """Whether samples are drawn on a sheet."""
        shape = self.sde.shape
        return len(shape) == 3 and shape[0] in (1, 3) and self.folder is not None

    @functools.cached_property
    def drawn(self) -> Tensor:
        """The `fid` samples, in the form of `truth`."""
        parts = []
        for i, rows in enumerate(torch.split(self.order[: self.fid], DRAWN_AT_ONCE)):
            generator = seeded("cpu", self.seed, SAMPLES_STREAM, i)
            done = i * DRAWN_AT_ONCE
            with progress.part(done, done + len(rows), self.fid, "sample"):
                x = sample(self.data.model(rows), len(rows), generator=generator)
            if self.noise is None:
                parts.append(x.cpu())
                continue
            values = self.noise.values(x).cpu()
            if self.as_bytes:
                parts.append(as_bytes(values, self.levels))
            else:
                assert self.truth is not None
                parts.append(values.to(self.truth.dtype))
        return torch.cat(parts)


def as_bytes(v: Tensor, levels: int) -> Tensor:
    """Return the byte in the middle of each integer's bin, ⌊(v + ½)·256/L⌋."""
    if levels == 256:
        return v.byte()
    return ((2 * v.long() + 1) * 128).div(levels, rounding_mode="floor").byte()


def draw_samples(task: Task) -> Iterator[dict[str, Any]]:
    """Draw samples into a sheet of images, a table of vectors, or an array."""
    if not task.samples:
        return
    began = time.perf_counter()
    model = task.data.model(task.order[: task.samples])
    generator = torch.Generator().manual_seed(task.seed)
    with progress.bar("samples", task.progress):
        solution = solve(model, task.samples, generator=generator)
    x = solution.x[-1]
    if task.noise is not None:
        x = task.noise.values(x).float()
    found: dict[str, Any] = {
        "samples": task.samples,
        "samples_nfe": float(solution.nfe.double().mean()),
        "samples_seconds": time.perf_counter() - began,
    }
    if task.writes:
        found["sheet"] = _write_samples(task, x, found["samples_nfe"])
    yield found


def _write_samples(task: Task, x: Tensor, nfe: float) -> str:
    """Write samples to the folder; return the file's name."""
    assert task.folder is not None
    if not task.is_image:
        name = "samples.csv" if len(task.sde.shape) == 1 else "samples.npy"
        write(task.folder / name, x, columns=task.sde.schema.columns)
        if len(task.sde.shape) == 1 and task.sde.shape[0] in PAIRED_COLUMNS:
            _draw_pairs(task, x)
        return name
    partial = task.folder / "samples.partial.png"
    limits = (0.0, task.levels - 1.0) if task.levels else None
    plotting.sheet(
        x,
        partial,
        columns=math.ceil(math.sqrt(task.samples)),
        title=f"{task.samples} samples, seed {task.seed}, {nfe:.0f} evaluations each",
        limits=limits,
    )
    os.replace(partial, task.folder / "samples.png")
    return "samples.png"


def _draw_pairs(task: Task, x: Tensor) -> None:
    """Draw samples beside data, column by column, if matplotlib is there."""
    assert task.folder is not None
    partial = task.folder / "pairs.partial.png"
    data = task.data.rows(task.order[:PAIRED_ROWS]).cpu()
    names = list(task.sde.schema.columns) or None
    if min(len(data), len(x)) < 2:
        return
    with contextlib.suppress(ImportError):
        plotting.pairs(data.double(), x.cpu(), names, partial)
        os.replace(partial, task.folder / "pairs.png")


def score(task: Task) -> Iterator[dict[str, Any]]:
    """Score the data: bits per dimension of integers, log p of others."""
    if task.n:
        draws = 1 if task.noise is not None else 0
        yield from _scores(task, "score", draws, SCORE_STREAM)


def weighted_score(task: Task) -> Iterator[dict[str, Any]]:
    """Score integers by the importance-weighted bound."""
    if task.n and task.draws > 1:
        yield from _scores(task, "weighted", task.draws, WEIGHTED_STREAM)


def frechet(task: Task) -> Iterator[dict[str, Any]]:
    """Measure the Fréchet distance of samples to all data."""
    if not task.fid:
        return
    assert task.truth is not None
    began = time.perf_counter()
    with progress.bar("distance", task.progress):
        drawn = task.drawn  # at its first use it draws the samples
    d2 = float(frechet_distance(drawn, task.truth, task.network))
    seconds = time.perf_counter() - began
    name = _name(task.features)
    yield {"distance": Distance(d2, name, task.fid, len(task.data), seconds)}


Measure = Callable[[Task], Iterator[dict[str, Any]]]

MEASURES: dict[str, Measure] = {
    "samples": draw_samples,
    "score": score,
    "weighted": weighted_score,
    "distance": frechet,
}
"""What `evaluate` measures, in this order; see the module's docstring for a new row."""


def _scores(task: Task, name: str, draws: int, stream: int) -> Iterator[dict[str, Any]]:
    """The score of the first parts of the data, after each part."""
    columns: list[tuple[Tensor, ...]] = []
    rows = torch.split(task.order[: task.n], SCORED_AT_ONCE)
    parts = zip(torch.split(task.scored, SCORED_AT_ONCE), rows, strict=True)
    began = time.perf_counter()
    done = 0
    with progress.bar(name, task.progress):
        for i, (part, here) in enumerate(parts):
            generator = seeded("cpu", task.seed, stream, i)
            with progress.part(done, done + len(here), task.n, "datum"):
                columns.append(
                    _values(task, task.data.model(here), part, draws, generator, i == 0)
                )
            done += len(here)
            yield {name: _score(task, columns, draws, time.perf_counter() - began)}


def _values(
    task: Task, sde: Model, x: Tensor, draws: int, generator: torch.Generator, errors: bool
) -> tuple[Tensor, ...]:
    """Bits or log p of each datum, its errors by trace, solver and prior, and its evaluations.

    Without `errors`, which cost a second solve, those by solver and prior are NaN.
    """
    found: Any
    how = {**task.options, "errors": errors}
    if task.noise is not None:
        found = bits_per_dim(sde, x, task.noise, draws=draws, generator=generator, **how)
        value = found.bits
    else:
        found = likelihood(sde, x, generator=generator, **how)
        value = found.log_prob
    sources = (found.stderr.cpu(), found.solver_error.cpu(), found.prior_gap.cpu())
    return (value.cpu(), *sources, found.nfe)


def _score(task: Task, columns: Sequence[tuple[Tensor, ...]], draws: int, seconds: float) -> Score:
    """The score of what has been evaluated so far."""
    value, stderr, solver_error, prior_gap, nfe = (
        torch.cat(column).double() for column in zip(*columns, strict=True)
    )
    exact = task.options["trace"] == "exact"
    probes = 0 if exact else task.options["probes"]
    trace_error = float(stderr.square().mean().sqrt())
    bias = 0.0
    if not exact and draws > 1:
        trace_error = math.nan
        assert task.evaluation is not None
        single = task.evaluation.score
        assert single is not None
        bias = 0.5 * single.trace_error**2 * task.dim * math.log(2)
    elif not exact:
        trace_error = trace_error / _widening(probes)
    stderr_of_mean = math.nan
    if len(value) > 1:
        stderr_of_mean = float(value.std()) / math.sqrt(len(value))
    unit = "bits/dim" if draws else "nats"
    return Score(
        unit=unit,
        mean=float(value.mean()),
        stderr=stderr_of_mean,
        n=len(value),
        of=task.n,
        draws=draws,
        trace=task.options["trace"],
        probes=probes,
        trace_error=trace_error,
        solver_error=float(solver_error[:SCORED_AT_ONCE].mean()),
        prior_gap=float(prior_gap[:SCORED_AT_ONCE].mean()),
        bias=bias,
        nfe=float(nfe.mean()),
        seconds=seconds,
        solver=_solver_text(task.options),
    )


def _widening(probes: int) -> float:
    """Half the width of the 68% interval of one value by Student's t, in standard deviations."""
    if probes == 1:
        return math.nan
    return 0.5 * float(stdtrit(probes - 1, 0.5 * (1 + math.erf(math.sqrt(2)))))


def _solver_text(options: Mapping[str, Any]) -> str:
    """The solver and its options, for the table."""
    texts = []
    for name, value in options.items():
        if name == "solver":
            texts.append(f"{value}")
        elif name not in ("trace", "probes"):
            texts.append(f"{name}={value}")
    return ", ".join(texts)


def _name(features: object) -> str:
    """The name of features, for the table."""
    if features is None or isinstance(features, str):
        return features or "points"
    return str(getattr(features, "__name__", type(features).__name__))
