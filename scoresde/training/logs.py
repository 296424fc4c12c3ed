"""Where `fit` writes down a run while it goes on: JSON lines, TensorBoard, loggers of others."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..common.checks import as_path, brief_repr, whole_number
from ..model.frames import column_values, is_frame
from .options import written

LINES = ".jsonl"
START = b'{"step": '
"""Of each line."""
NO_FOLDERS = (".json", ".ndjson", ".csv", ".tsv", ".txt", ".log")
"""Suffixes that are refused: a log is neither a file of these kinds, nor a folder so named."""
MOST_HISTOGRAMS = 32
"""Columns of a sample of vectors that TensorBoard shows."""

Values = Mapping[str, Any]
"""Numbers, and samples as a tensor or, of a table, as a data frame."""


@dataclass(frozen=True, eq=False)
class Log:
    """Where `fit` writes down losses, and samples drawn on the way; `fit(..., log=Log(...))`.

    Written are "loss", "lr" and "seconds" whenever `History` notes a loss, "validation" whenever
    it is measured, and "samples" of the averaged network. Samples start from the same noise each
    time, and leave the randomness of training as it is: the weights are those of a run without a
    log, bit for bit. Only the main process writes. A log that fails ends with a warning, and the
    run goes on.

    Parameters
    ----------
    to : path, or an object with .log(dict, step)
        A file that ends in .jsonl, with one JSON object a line; any other path is a folder for
        TensorBoard (`pip install scoresde[tensorboard]`). An object such as a run of wandb gets
        numbers, and samples as an array, or as a data frame from a model of a `Table`.
    samples : int
        Steps between two draws of samples; 0 for none.
    n : int
        How many samples.
    given : mapping of str to Tensor, array or number, optional
        Conditions of the samples, as of `ScoreSDE.given`.

    Raises
    ------
    TypeError, ValueError
        For another kind of `to`, or a file name with another ending.
    ImportError
        For a folder, if TensorBoard is not installed.

    Notes
    -----
    A resumed run goes on with its file or folder: what was written after the checkpoint is
    replaced. An object of yours is called again for these steps.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = Log(folder + "/run.jsonl", samples=10, n=3)
    ...     _ = scoresde.fit(sde, torch.randn(100, 2), steps=20, validation=None, log=log)
    ...     lines = pathlib.Path(folder, "run.jsonl").read_text().splitlines()
    >>> [sorted(json.loads(line)) for line in lines[-2:]]
    [['loss', 'lr', 'seconds', 'step'], ['samples', 'step']]
    """

    to: Any
    samples: int = 0
    n: int = 16
    given: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not is_logger(self.to):
            object.__setattr__(self, "to", _log_path(self.to))
        object.__setattr__(self, "samples", whole_number("samples", self.samples, 0))
        object.__setattr__(self, "n", whole_number("n", self.n))
        if self.given is not None and not isinstance(self.given, Mapping):
            raise TypeError(
                f"given is a mapping such as {{'y': 0}}, got {type(self.given).__name__}"
            )

    def __repr__(self) -> str:
        """The call that makes it."""
        return written(self)


def is_logger(value: object) -> bool:
    """Whether something has a method log(dict, step)."""
    return not isinstance(value, type) and callable(getattr(value, "log", None))


def as_log(value: Any) -> Log | None:
    """Return `log=` in full."""
    if value is None or isinstance(value, Log):
        return value
    return Log(value)


def _log_path(value: Any) -> Path:
    """The path of a log, if it can be written."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(
            f"a log goes to a path or an object with .log(dict, step), got {brief_repr(value)}"
        )
    path = as_path(value, "the log")
    if path.suffix in NO_FOLDERS:
        raise ValueError(
            f"a log is a file that ends in {LINES} or a folder for TensorBoard, got {path}"
        )
    if path.suffix != LINES and importlib.util.find_spec("tensorboard") is None:
        raise ImportError(
            f"{path} is a folder for TensorBoard, which is not installed: pip install "
            f"scoresde[tensorboard], or choose a file that ends in {LINES}"
        )
    return path


class Writer(Protocol):
    """What writes a log down."""

    def write(self, values: Values, step: int) -> None:
        """Write values of a step."""

    def close(self) -> None:
        """Finish what is open."""


def writer_of(log: Log, step: int, resumed: bool) -> Writer:
    """Open a log that goes on after a step."""
    if not isinstance(log.to, Path):
        return Logger(log.to)
    if log.to.suffix == LINES:
        return JSONLines(log.to, step, resumed)
    return TensorBoard(log.to, step, resumed)


class JSONLines:
    """One JSON object a line, in order of steps."""

    def __init__(self, path: Path, step: int, resumed: bool) -> None:
        _make_folder(path.parent)
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no file, and a log that ends in {LINES} is one")
        before = path.read_bytes() if path.exists() else b""
        if before and not resumed:
            raise _taken(path)
        kept = 0
        for line in before.splitlines(keepends=True):
            if _step_of(line, path) > step:
                break  # written after the checkpoint, or cut off when the process ended
            kept += len(line)
        self.file = open(path, "ab")  # noqa: SIM115
        self.file.truncate(kept)

    def write(self, values: Values, step: int) -> None:
        """Write a line, so that it can be read at once."""
        plain = {name: _plain(value) for name, value in values.items()}
        line = json.dumps({"step": step, **plain}, allow_nan=False)
        self.file.write(line.encode() + b"\n")
        self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TensorBoard:
    """Scalars, images, and histograms of columns."""

    def __init__(self, path: Path, step: int, resumed: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if not resumed and path.is_dir() and any(path.glob("events.out.tfevents.*")):
            raise _taken(path)
        _make_folder(path)
        purged = step + 1 if resumed else None
        self.writer: Any = SummaryWriter(str(path), purge_step=purged)

    def write(self, values: Values, step: int) -> None:
        """Write a value to each of its charts."""
        for name, value in values.items():
            if is_frame(value):
                self._write_columns(name, value, step)
            elif not isinstance(value, Tensor):
                self.writer.add_scalar(name, value, step)
            elif value.ndim == 4 and value.shape[1] in (1, 3):
                low = value.min()
                span = (value.max() - low).clamp(min=1e-12)
                self.writer.add_images(name, (value - low) / span, step)
            else:
                columns = value.flatten(1)[:, :MOST_HISTOGRAMS]
                for i, column in enumerate(columns.unbind(1)):
                    self.writer.add_histogram(f"{name}/{i}", column, step)
        self.writer.flush()

    def _write_columns(self, name: str, frame: Any, step: int) -> None:
        """Write a histogram of each column of numbers, and other columns as text."""
        for column in list(frame.columns)[:MOST_HISTOGRAMS]:
            chart = f"{name}/{column}"
            numbers = column_values(frame[column])
            if numbers is None:
                words = ", ".join(map(str, frame[column]))
                self.writer.add_text(chart, words, step)
            else:
                self.writer.add_histogram(chart, numbers.astype(float), step)

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class Logger:
    """An object of the user's, with a method log(dict, step)."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def write(self, values: Values, step: int) -> None:
        """Call it with numbers and arrays."""
        plain = {
            name: value.numpy() if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        self.logger.log(plain, step)

    def close(self) -> None:
        """Leave it open: it is the user's."""


def _make_folder(path: Path) -> None:
    """Make a folder for a log; raise if a file has its name."""
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise ValueError(
                f"{part} is no folder, and a log that ends in {LINES} is a file in one, any other "
                "log a folder for TensorBoard"
            )
    path.mkdir(parents=True, exist_ok=True)


def _step_of(line: bytes, path: Path) -> float:
    """The step of a line, ∞ for one that is cut off; raise ValueError for one that no log has."""
    if not line.endswith(b"\n") and START.startswith(line[: len(START)]):
        return math.inf
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} has a line that is not of a log, {line[:40]!r}, and is left as it is: take it "
            "out, or choose another file"
        ) from None


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if is_frame(value):
        return {str(column): value[column].tolist() for column in value.columns}
    if isinstance(value, Tensor):
        return value.tolist()
    return float(value)


def _taken(path: Path) -> ValueError:
    """The error for a place that holds another run's log."""
    return ValueError(
        f"{path} holds the log of a run: choose another place, or go on with the run by "
        "Checkpoints(folder, resume=True)"
    )


def drawn(model: Any, log: Log) -> Any:
    """Samples of a model in eval mode, from the same noise each time; rows of a table."""
    from ..sampling.trajectory import sample

    if log.given:
        model = model.given(**log.given)
    device = model.scale.device
    generator = torch.Generator(device).manual_seed(0)
    found = sample(model, log.n, generator=generator)
    if isinstance(found, Tensor):
        found = found.detach().float().cpu()
    return found
