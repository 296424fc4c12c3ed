"""The results of an evaluation: as numbers, as a table and as a JSON file."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import html
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.outcomes import to_kind
from ..model.protocol import Model


@dataclass(frozen=True)
class Score:
    """How likely held-out data are under a model."""

    unit: str
    mean: float
    stderr: float
    n: int
    of: int
    draws: int
    trace: str
    probes: int
    trace_error: float
    solver_error: float
    prior_gap: float
    bias: float
    nfe: float
    seconds: float
    solver: str

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the rows of the table: label, number, and how it was found."""
        labels = {0: "mean log p(x)", 1: self.unit}
        methods = {0: "", 1: "uniform dequantization, "}
        label = labels.get(self.draws, f"{self.unit}, k = {self.draws}")
        how = methods.get(self.draws, "importance-weighted, ")
        unit = " nats" if self.unit == "nats" else ""
        mean = f"{self.mean:.4f} ± {_text(self.stderr, '.4f')}{unit}"
        data = (
            f"{self.n:,} data" if self.n == self.of else f"so far {self.n:,} of {self.of:,} data"
        )
        trace = f"{self.probes} probe{'s'[: self.probes > 1]}"
        if self.trace == "exact":
            trace = "exact trace"
        cost = f"{self.nfe:.0f} evaluations each, {self.seconds:.1f} s"
        return [
            (label, mean, f"{how}{data}, {trace}, {cost}"),
            ("", "errors of one", self._errors()),
        ]

    def _errors(self) -> str:
        """The errors of one value by their sources."""
        first = "trace" if self.draws < 2 else "trace and draws"
        sources = {first: self.trace_error, "solver": self.solver_error, "prior": self.prior_gap}
        text = ", ".join(f"{name} {_text(error, '.1g')}" for name, error in sources.items())
        if self.bias != 0:
            text += f"; the mean too low by up to: {_text(self.bias, '.1g')}"
        return text


@dataclass(frozen=True)
class Distance:
    """The Fréchet distance of samples to data."""

    value: float
    features: str
    samples: int
    data: int
    seconds: float


@dataclass
class Evaluation:
    """What `evaluate` found; what was not asked for is None. Its `repr` is a table.

    Attributes
    ----------
    model : str
        Process, network and shape of a sample.
    parameters : int
        The number of parameters of the network.
    total : int
        How many data there were.
    levels : int
        L, the number of levels of integers; 0 for other data.
    conditions : tuple of str
        The names of the model's conditions.
    seed : int
    fingerprint : str
        A hash of model, data and conditions.
    device : str
    notes : mapping
        The `notes` of `evaluate`.
    date : str
        When it began, UTC.
    versions : mapping
        Of scoresde and torch.
    score : Score or None
        With uniform dequantization, or log p(x).
    weighted : Score or None
        The importance-weighted bound.
    samples : int
        How many were drawn: those of `sample` with a generator of the same seed.
    samples_nfe, samples_seconds : float
    sheet : str or None
        The file of the samples: samples.png for images, samples.csv for vectors, samples.npy for
        others.
    distance : Distance or None
    metrics : dict of str to float
        Other results by name, of rows added to `scoresde.evaluation.measures.MEASURES`.

    Examples
    --------
    See `evaluate`.
    """

    model: str
    parameters: int
    total: int
    levels: int
    conditions: tuple[str, ...]
    seed: int
    fingerprint: str
    device: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    date: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())
    score: Score | None = None
    weighted: Score | None = None
    samples: int = 0
    samples_nfe: float = 0.0
    samples_seconds: float = 0.0
    sheet: str | None = None
    distance: Distance | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The table."""
        data = f"{self.total:,}"
        if self.score:
            some = self.score.of < self.total
            which = f"drawn at random with seed {self.seed}" if some else "all"
            data = f"{self.score.of:,} of {self.total:,}, {which}"
        rows = [("model", self.model, f"{self.parameters:,} parameters"), ("data", data, "")]
        rows += self.score.rows() if self.score else []
        rows += self.weighted.rows() if self.weighted else []
        if self.samples:
            cost = f"{self.samples_nfe:.0f} evaluations each, {self.samples_seconds:.1f} s"
            if not self.samples_nfe:  # not counted
                cost = f"{self.samples_seconds:.1f} s"
            rows.append(("samples", f"{self.samples:,}", cost))
        if self.distance:
            d = self.distance
            how = f"{d.features}, {d.samples:,} samples, {d.data:,} data, {d.seconds:.1f} s"
            rows.append(("Fréchet d²", f"{d.value:.4g}", how))
        rows += [(name, _metric_text(value), "") for name, value in self.metrics.items()]
        width = max(len(label) for label, *_ in rows)
        return "\n".join(
            f"{label:{width}}  {value}" + (f"  ({how})" if how else "")
            for label, value, how in rows
        )

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        return f"<pre>{html.escape(repr(self))}</pre>"

    def record(self, results: Mapping[str, Any]) -> None:
        """Keep results by name: those without an attribute of that name go to `metrics`.

        Parameters
        ----------
        results : mapping of str to object

        Examples
        --------
        See `evaluate`.
        """
        for name, value in results.items():
            if name in RESULTS:
                setattr(self, name, value)
            else:
                self.metrics[name] = _number(value)

    def kept(self, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the results that folder/evaluation.json holds of the same model, data and seed.

        Parameters
        ----------
        folder : path

        Returns
        -------
        dict of str to object
            As JSON has them; none of another model, other data or another seed.

        Examples
        --------
        See `evaluate`.
        """
        try:
            old = json.loads((Path(folder) / "evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(old, dict):
            return {}
        if (old.get("fingerprint"), old.get("seed")) != (self.fingerprint, self.seed):
            return {}
        return {name: old.get(name) for name in RESULTS}

    def write(self, folder: str | os.PathLike[str], kept: Mapping[str, Any] | None = None) -> None:
        """Write folder/evaluation.json, whole or not at all; NaN becomes null.

        Parameters
        ----------
        folder : path
        kept : mapping, optional
            Results from before, for those that this evaluation does not have.

        Examples
        --------
        See `evaluate`.
        """
        path = Path(folder) / "evaluation.json"
        partial = path.with_suffix(".json.partial")
        mine = _plain(dataclasses.asdict(self))
        before = dict(kept or {})
        metrics = before.pop("metrics", None)
        if isinstance(metrics, dict):
            mine["metrics"] = metrics | mine["metrics"]
        mine |= {name: value for name, value in before.items() if not mine[name]}
        text = json.dumps(mine, indent=2, ensure_ascii=False, default=str)
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, path)


RESULTS = (
    "score",
    "weighted",
    "samples",
    "samples_nfe",
    "samples_seconds",
    "sheet",
    "distance",
    "metrics",
)
"""The attributes of an evaluation that measures find."""


def fingerprint(sde: Model, data: Tensor, conditions: Mapping[str, Tensor], *numbers: int) -> str:
    """Return a hash of a model and of data: of its weights, its plain options, and the numbers."""
    about = (sde.process, sde.shape, sde.predict, to_kind(sde.outcome), numbers)
    digest = hashlib.sha256(repr(about).encode())
    parts = list(sde._evaluated())
    for name, module in (named for part in parts for named in part.named_modules()):
        plain = sorted(
            (k, v)
            for k, v in vars(module).items()
            if isinstance(v, bool | int | float | str | tuple) and k != "training"
        )
        digest.update(repr((name, type(module).__name__, plain)).encode())
    tensors = [item for part in parts for item in part.state_dict().items()]
    for name, value in (*tensors, *conditions.items(), ("data", data)):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _versions() -> dict[str, str]:
    """The versions of scoresde and torch."""
    return {"scoresde": sys.modules["scoresde"].__version__, "torch": str(torch.__version__)}


def _text(value: float, form: str) -> str:
    """A number for the table."""
    return "not known" if math.isnan(value) else f"{value:{form}}"


def _metric_text(value: Any) -> str:
    """A result of an added measure for the table."""
    if isinstance(value, list):
        return "  ".join(map(_metric_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> Any:
    """A tensor or array of one number as a number; anything else as it is."""
    arrays = isinstance(value, Tensor | np.ndarray | np.generic)
    return value.item() if arrays and math.prod(value.shape) == 1 else value


def _plain(value: Any) -> Any:
    """The same value for JSON, which has no NaN."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    value = _number(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
