"""`evaluate` of a model that has learnt a table: log p of held-out rows, and calibration."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common import plotting, progress
from ..common.random import seeded
from ..data.files.mixed import write_columns
from ..density.exact import likelihood, log_prob
from ..model.protocol import Model
from ..model.tables.reading import as_array, holds_columns
from ..model.tables.schema import TableSchema
from ..sampling.trajectory import sample
from .held_out import random_order
from .measures import PAIRED_COLUMNS
from .results import Evaluation, Score, fingerprint

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Probabilities of the regions whose coverage is counted."""
DRAWN = (200, 1000)
"""Rows drawn to find regions: twice as many as are scored, at least and at most these."""
SCORED_AT_ONCE = 128
"""Rows between two writes of the file."""
SCORE_STREAM, DRAW_STREAM, NOISE_STREAM = 1, 3, 4
"""Random streams of the seed; the order of rows has another."""
FINGERPRINT_ROWS = 1000


class Rows:
    """Held-out rows of a table, in the seed's random order."""

    def __init__(self, sde: Model, data: Any, n: int, seed: int) -> None:
        """Raise for rows that the table cannot have, before any work."""
        if sde.table is None:
            raise TypeError("this model has not learnt a table")
        self.sde = sde
        self.table: TableSchema = sde.table
        frame: Any = data
        if isinstance(data, TableSchema) or self.table.takes(data):
            frame = self.table.by_name(data)
        if not holds_columns(frame):
            raise TypeError(
                "evaluate takes rows of the table that this model has learnt, a data frame or a "
                f"mapping of columns, got {type(data).__name__}"
            )
        categories = "y" not in sde.condition and not sde.unconditional
        self.values, self.found = self.table.values(frame, categories=categories)
        needed = [each.name for each in self.table.columns]
        if not categories:
            needed = [each.name for each in self.table.numeric]
        self.columns = {name: as_array(name, frame[name]) for name in needed}
        self.n = min(n, len(self.values))
        self.seed = seed
        self.order = random_order(len(self.values), len(self.values), seed)

    def take(self, rows: Tensor) -> Any:
        """Some of the rows, by columns."""
        return {name: column[rows.numpy()] for name, column in self.columns.items()}

    def points(self, values: Tensor, stream: int) -> Tensor:
        """Points (N, D) of the bins of values."""
        return self.table.noisy(values, seeded("cpu", self.seed, NOISE_STREAM, stream))


def evaluate_rows(
    rows: Rows,
    evaluation: Evaluation,
    samples: int,
    folder: Path | None,
    options: Mapping[str, Any],
    shown: bool | None,
) -> Evaluation:
    """Record log p, samples, and coverage of regions; write the file after each."""
    kept = {} if folder is None else evaluation.kept(folder)
    for results in _measured(rows, samples, folder, options, shown):
        evaluation.record(results)
        if folder is not None:
            evaluation.write(folder, kept)
    return evaluation


def new_evaluation(rows: Rows, model: str, parameters: int, **about: Any) -> Evaluation:
    """An evaluation without results."""
    sketch = rows.order[:FINGERPRINT_ROWS]
    conditions = {name: value.cpu() for name, value in rows.sde.condition.items()}
    if rows.found is not None:
        conditions["y"] = rows.found[sketch]
    total = len(rows.values)
    return Evaluation(
        model=model,
        parameters=parameters,
        total=total,
        levels=0,
        conditions=tuple(conditions),
        seed=rows.seed,
        fingerprint=fingerprint(rows.sde, rows.values[sketch], conditions, total, 0),
        **about,
    )


def _measured(
    rows: Rows,
    samples: int,
    folder: Path | None,
    options: Mapping[str, Any],
    shown: bool | None,
) -> Iterator[dict[str, Any]]:
    """The results, one after the other."""
    if samples:
        yield _samples(rows, samples, folder)
    if not rows.n:
        return
    found: list[tuple[Tensor, ...]] = []
    began = time.perf_counter()
    done = 0
    with progress.bar("score", shown):
        for i, here in enumerate(torch.split(rows.order[: rows.n], SCORED_AT_ONCE)):
            generator = seeded("cpu", rows.seed, SCORE_STREAM, i)
            with progress.part(done, done + len(here), rows.n, "row"):
                how = {**options, "errors": i == 0}
                one = likelihood(rows.sde, rows.take(here), generator=generator, **how)
            errors = (one.stderr.cpu(), one.solver_error.cpu(), one.prior_gap.cpu())
            found.append((one.log_prob.cpu(), *errors, one.nfe))
            done += len(here)
            yield {"score": _score(rows, found, options, time.perf_counter() - began)}
    yield _coverage(rows, torch.cat([column[0] for column in found]).double(), options)


def _samples(rows: Rows, samples: int, folder: Path | None) -> dict[str, Any]:
    """Rows of the model, written as a table."""
    began = time.perf_counter()
    drawn = sample(rows.sde, samples, generator=torch.Generator().manual_seed(rows.seed))
    found: dict[str, Any] = {
        "samples": samples,
        "samples_seconds": time.perf_counter() - began,
    }
    if folder is not None:
        write_columns(folder / "samples.csv", drawn)
        found["sheet"] = "samples.csv"
        names = [each.name for each in rows.table.numeric]
        if len(names) in PAIRED_COLUMNS and min(len(rows.values), samples) > 1:
            model, _ = rows.table.values(drawn, categories=False)
            with contextlib.suppress(ImportError):
                plotting.pairs(rows.values[rows.order], model, names, folder / "pairs.png")
    return found


def _score(
    rows: Rows,
    found: list[tuple[Tensor, ...]],
    options: Mapping[str, Any],
    seconds: float,
) -> Score:
    """The score of the rows so far."""
    columns = (torch.cat(column).double() for column in zip(*found, strict=True))
    value, stderr, solver_error, prior_gap, nfe = columns
    probes = 0
    if options["trace"] != "exact":
        probes = options["probes"]
    error = math.nan
    if len(value) > 1:
        error = float(value.std()) / math.sqrt(len(value))
    return Score(
        unit="nats",
        mean=float(value.mean()),
        stderr=error,
        n=len(value),
        of=rows.n,
        draws=0,
        trace=options["trace"],
        probes=probes,
        trace_error=float(stderr.square().mean().sqrt()),
        solver_error=float(solver_error[:SCORED_AT_ONCE].mean()),
        prior_gap=float(prior_gap[:SCORED_AT_ONCE].mean()),
        bias=0.0,
        nfe=float(nfe.mean()),
        seconds=seconds,
        solver=str(options["solver"]),
    )


def _coverage(rows: Rows, log_p: Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
    """The share of held-out rows in the model's regions of each level, by density and by column.

    Rows drawn from the model define the regions: that by density holds the points of highest
    density, that of a column is the central interval of its values.
    """
    generator = seeded("cpu", rows.seed, DRAW_STREAM)
    count = min(max(2 * rows.n, DRAWN[0]), DRAWN[1])
    drawn = sample(rows.sde, count, generator=generator)
    own, _ = rows.table.values(drawn, categories=False)
    mine = log_prob(rows.sde, drawn, generator=generator, **options).double().cpu()
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    ranks = (mine > log_p.unsqueeze(1)).double().mean(1)
    found: dict[str, Any] = {"coverage": list(LEVELS)}
    found["coverage of the density"] = _shares(ranks, levels)
    data = rows.points(rows.values[rows.order[: rows.n]], 0)
    model = rows.points(own, 1).sort(0).values
    for j, column in enumerate(rows.table.numeric):
        below = torch.searchsorted(model[:, j].contiguous(), data[:, j].contiguous()) / count
        found[f"coverage of {column.name}"] = _shares((2 * below - 1).abs().double(), levels)
    return found


def _shares(ranks: Tensor, levels: Tensor) -> list[float]:
    """The share of rows whose rank is at most each level."""
    shares: list[float] = (ranks.unsqueeze(1) <= levels).double().mean(0).tolist()
    return [round(share, 4) for share in shares]
