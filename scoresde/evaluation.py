"""What an evaluation found: scores of held-out data and a distance of samples to them, as numbers, a table and a JSON file."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .sde import ScoreSDE


@dataclass(frozen=True)
class Score:
    """How likely held-out data are under a model.

    Attributes
    ----------
    unit : str
        "bits/dim" or "nats".
    mean, stderr : float
        Over the data scored; the standard error has the data, their noise and the trace's in it.
    n, of : int
        How many were scored, of how many that were to be: fewer, if it was interrupted.
    draws : int
        k of the importance-weighted bound; 1 for uniform dequantization, 0 for data that are not discrete.
    trace : str
        "exact", or "hutchinson" with `probes` probes.
    probes : int
    trace_error : float
        One standard deviation of the trace's error of one value, in `unit`, as its root mean square over the data has it: not
        widened as that of a single `Likelihood` is. NaN, not known, of one probe. With several draws it is the error of their
        mean, and not known if the trace is estimated too.
    solver_error, prior_gap : float
        Errors of one value, as `Likelihood` has them, in `unit`: means over the data.
    bias : float
        How far `mean` may be too low for the trace's error, in `unit`; NaN if that is not known.
    nfe : float
        Network evaluations of each, over all draws.
    seconds : float
    solver : str
        With its options.

    Examples
    --------
    See `evaluate`.
    """

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
        """Return what is shown of it: label, number, and how it was found.

        Returns
        -------
        list of (str, str, str)

        Examples
        --------
        See `evaluate`.
        """
        label = {0: "mean log p(x)", 1: self.unit}.get(self.draws, f"{self.unit}, k = {self.draws}")
        how = {0: "", 1: "uniform dequantization, "}.get(self.draws, "importance-weighted, ")
        trace = "exact trace" if self.trace == "exact" else f"{self.probes} probe{'s'[: self.probes > 1]}"
        unit = " nats" if self.unit == "nats" else ""
        first = "trace" if self.draws < 2 else "trace and draws"
        errors = ", ".join(
            f"{name} {_known(size, '.1g')}"
            for name, size in ((first, self.trace_error), ("solver", self.solver_error), ("prior", self.prior_gap))
        )
        errors += f"; the mean too low by up to: {_known(self.bias, '.1g')}" if self.bias != 0 else ""
        data = f"{self.n:,} data" if self.n == self.of else f"so far {self.n:,} of {self.of:,} data"
        return [
            (label, f"{self.mean:.4f} ± {_known(self.stderr, '.4f')}{unit}", f"{how}{data}, {trace}, {_cost(self)}"),
            ("", "errors of one", errors),
        ]


@dataclass(frozen=True)
class Distance:
    """The Fréchet distance of samples to data.

    Attributes
    ----------
    value : float
        d², in squared units of the features.
    features : str
    samples, data : int
        How many of each.
    seconds : float

    Examples
    --------
    See `evaluate`.
    """

    value: float
    features: str
    samples: int
    data: int
    seconds: float


@dataclass
class Evaluation:
    """What `evaluate` found; parts that were not asked for are None. Its `repr` is a table.

    Attributes
    ----------
    model : str
        Process, network and shape of a sample.
    parameters : int
        Numbers of the network.
    total : int
        How many data there were.
    levels : int
        L, of integers; 0 for other data.
    conditions : tuple of str
        Names of those that the model was told.
    seed : int
    fingerprint : str
        Of model, data and conditions: see `fingerprint`.
    device : str
    notes : mapping
        What `evaluate` was told for the file.
    date : str
        The beginning, UTC.
    versions : mapping
        Of scoresde and torch.
    score : Score or None
        With uniform dequantization, or log p(x).
    weighted : Score or None
        The importance-weighted bound.
    samples : int
        Drawn for the sheet: with seed s they are those of `sample` with a generator of seed s.
    samples_nfe, samples_seconds : float
    sheet : str or None
        The file that the samples are in: samples.png of images, samples.csv of vectors, samples.npy of others.
    distance : Distance or None

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
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())
    score: Score | None = None
    weighted: Score | None = None
    samples: int = 0
    samples_nfe: float = 0.0
    samples_seconds: float = 0.0
    sheet: str | None = None
    distance: Distance | None = None

    def __repr__(self) -> str:
        """The table."""
        data = f"{self.total:,}"
        if self.score:
            some = self.score.of < self.total
            data = f"{self.score.of:,} of {self.total:,}, " + (f"drawn at random with seed {self.seed}" if some else "all")
        rows = [("model", self.model, f"{self.parameters:,} parameters"), ("data", data, "")]
        rows += self.score.rows() if self.score else []
        rows += self.weighted.rows() if self.weighted else []
        if self.samples:
            cost = f"{self.samples_nfe:.0f} evaluations each, {self.samples_seconds:.1f} s"
            rows.append(("samples", f"{self.samples:,}", cost))
        if self.distance:
            d = self.distance
            rows.append(
                ("Fréchet d²", f"{d.value:.4g}", f"{d.features}, {d.samples:,} samples, {d.data:,} data, {d.seconds:.1f} s")
            )
        width = max(len(label) for label, *_ in rows)
        return "\n".join(f"{label:{width}}  {value}" + (f"  ({how})" if how else "") for label, value, how in rows)

    def kept(self, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the parts that folder/evaluation.json holds of the same model, data and seed; of any others, none.

        Parameters
        ----------
        folder : path

        Returns
        -------
        dict of str to object
            As JSON has them.

        Examples
        --------
        See `evaluate`.
        """
        try:
            old = json.loads((Path(folder) / "evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        same = isinstance(old, dict) and (old.get("fingerprint"), old.get("seed")) == (self.fingerprint, self.seed)
        return {part: old.get(part) for part in PARTS} if same else {}

    def write(self, folder: str | os.PathLike[str], kept: Mapping[str, Any] | None = None) -> None:
        """Write folder/evaluation.json, whole or not at all; what is NaN becomes null.

        Parameters
        ----------
        folder : path
        kept : mapping, optional
            Parts from before, for those that this evaluation does not have.

        Examples
        --------
        See `evaluate`.
        """
        path = Path(folder) / "evaluation.json"
        partial = path.with_suffix(".json.partial")
        mine = _plain(dataclasses.asdict(self))
        mine |= {part: value for part, value in (kept or {}).items() if not mine[part]}
        partial.write_text(json.dumps(mine, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        os.replace(partial, path)


PARTS = ("score", "weighted", "samples", "samples_nfe", "samples_seconds", "sheet", "distance")


def fingerprint(sde: ScoreSDE, data: Tensor, conditions: Mapping[str, Tensor], *numbers: int) -> str:
    """Return a hash of a model and of data, by which a file is known to speak of the same.

    It sees the weights, the options of process and network that are plain numbers or words, and what else it is given.

    Parameters
    ----------
    sde : ScoreSDE
    data : Tensor
    conditions : mapping of str to Tensor
    *numbers : int

    Returns
    -------
    str
        64 bits, in hexadecimal digits.

    Examples
    --------
    >>> sde, x = scoresde.build("vp", "mlp", shape=(2,)), torch.zeros(1, 2)
    >>> fingerprint(sde, x, {}) == fingerprint(sde, x + 1, {})
    False
    """
    known = hashlib.sha256(repr((sde.process, sde.shape, sde.predict, sde.sees, sde.kind, numbers)).encode())
    for name, module in sde.named_modules():
        plain = sorted(
            (k, v) for k, v in vars(module).items() if isinstance(v, bool | int | float | str | tuple) and k != "training"
        )
        known.update(repr((name, type(module).__name__, plain)).encode())
    for name, value in (*sde.state_dict().items(), *conditions.items(), ("data", data)):
        known.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        known.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return known.hexdigest()[:16]


def _versions() -> dict[str, str]:
    return {"scoresde": sys.modules["scoresde"].__version__, "torch": str(torch.__version__)}


def _known(size: float, form: str) -> str:
    return "not known" if math.isnan(size) else f"{size:{form}}"


def _cost(score: Score) -> str:
    return f"{score.nfe:.0f} evaluations each, {score.seconds:.1f} s"


def _plain(value: Any) -> Any:
    """The same for JSON, which has no NaN."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
