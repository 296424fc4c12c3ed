"""What an evaluation found: scores of held-out data and a distance of samples to them, as numbers, a table and a JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Score:
    """How likely held-out data are under a model.

    Attributes
    ----------
    unit : str
        "bits/dim" or "nats".
    mean, stderr : float
        Over the data scored; the standard error has the data, their noise and the trace's in it.
    n : int
        How many were scored.
    draws : int
        k of the importance-weighted bound; 1 for uniform dequantization, 0 for data that are not discrete.
    trace : str
        "exact", or "hutchinson" with `probes` probes.
    probes : int
    trace_error, solver_error, prior_gap : float
        Errors of one value, as `Likelihood` has them, in `unit`: the root mean square of the first over the data, and means. With
        several draws the first has the error of their mean in it, as `Bits` has.
    bias : float
        How far `mean` may be too low for the trace's error, in `unit`.
    nfe : float
        Network evaluations of each, over all draws.
    seconds : float

    Examples
    --------
    See `evaluate`.
    """

    unit: str
    mean: float
    stderr: float
    n: int
    draws: int
    trace: str
    probes: int
    trace_error: float
    solver_error: float
    prior_gap: float
    bias: float
    nfe: float
    seconds: float

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
        errors = f"{first} {self.trace_error:.1g}, solver {self.solver_error:.1g}, prior {self.prior_gap:.1g}"
        errors += f"; the mean up to {self.bias:.1g} too low" if self.bias != 0 else ""
        return [
            (label, f"{self.mean:.4f} ± {self.stderr:.4f}{unit}", f"{how}{self.n:,} data, {trace}, {_cost(self)}"),
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
    data : str
        Which of the data were scored.
    seed : int
    solver : str
        Of the likelihood, with its options.
    device, date : str
    score : Score or None
        With uniform dequantization, or log p(x).
    weighted : Score or None
        The importance-weighted bound.
    samples : int
        Drawn for the sheet: with seed s they are those of `sample` with a generator of seed s.
    samples_nfe, samples_seconds : float
    sheet : str or None
        The picture's file.
    distance : Distance or None

    Examples
    --------
    See `evaluate`.
    """

    model: str
    parameters: int
    data: str
    seed: int
    solver: str
    device: str
    date: str
    score: Score | None = None
    weighted: Score | None = None
    samples: int = 0
    samples_nfe: float = 0.0
    samples_seconds: float = 0.0
    sheet: str | None = None
    distance: Distance | None = None

    def __repr__(self) -> str:
        """The table."""
        rows = [("model", self.model, f"{self.parameters:,} parameters"), ("data", self.data, "")]
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

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write folder/evaluation.json, whole or not at all; what is NaN becomes null.

        Parameters
        ----------
        folder : path

        Examples
        --------
        See `evaluate`.
        """
        path = Path(folder) / "evaluation.json"
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(_plain(dataclasses.asdict(self)), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)


def _cost(score: Score) -> str:
    return f"{score.nfe:.0f} evaluations each, {score.seconds:.1f} s"


def _plain(value: Any) -> Any:
    """The same for JSON, which has no NaN."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
