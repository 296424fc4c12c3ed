"""What all readers share: the samples they return, the user's request, and conditions by name."""

from __future__ import annotations

import importlib
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...common.names import nearest
from ...model.class_words import Labels, coded
from ...model.schema import Named

OLDEST_PILLOW = (10, 3)
"""Those before 10.1 turn TIFFs twice, those before 10.3 read 16-bit PNGs as int32."""
BOMB_BYTES = 2**28
"""Data of more bytes are refused …"""
BOMB_RATIO = 200
"""… if they were compressed by more than this."""


@dataclass(frozen=True, eq=False, repr=False)
class Samples(Named):
    """Contents of a file: samples, conditions by name, and the names of columns and classes.

    `fit`, `log_prob`, `likelihood`, `bits_per_dim` and `evaluate` take it in place of a tensor.
    They match columns and classes by name with those that the model has learnt, and pass the
    conditions on.

    Attributes
    ----------
    values : array, shape (n, *shape)
        In the file's dtype; float32 for tables. A read-only `np.memmap` if the file can be mapped.
    given : dict of str to array, shape (n, ...)
        Conditions, int64 or float32. Words are numbered, and remembered, so that a model can
        number them as in training.
    names : dict of str to tuple of str
        Names of class 0, 1, … of conditions that are words or folders in the file.
    columns : tuple of str
        Names of the samples' columns, of a table with a header.
    parts : dict of str to tuple of str
        Names of the columns of each condition that has several.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.array([0, 1, 0])
    >>> samples = Samples(np.zeros((3, 1, 8, 8), np.uint8), {"y": y}, {"y": ("cat", "dog")})
    >>> samples, len(samples)
    (Samples(3 of shape (1, 8, 8), uint8, given y), 3)
    """

    values: np.ndarray
    given: dict[str, np.ndarray] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.values)

    def __repr__(self) -> str:
        """Number, shape and dtype, and the names of conditions."""
        given = f", given {', '.join(self.given)}" if self.given else ""
        return f"Samples({len(self)} of shape {self.values.shape[1:]}, {self.values.dtype}{given})"


@dataclass(frozen=True)
class Request:
    """What the user wants of a file; `conditions` are columns by the condition's name."""

    conditions: dict[str, str | tuple[str, ...]]
    samples: str | None = None
    split: str = "train"
    chosen: tuple[str, ...] | None = None
    encoding: str = "utf-8"

    def wanted(self) -> list[str]:
        """Every column that the user named."""
        names: list[str] = []
        for columns in self.conditions.values():
            names += (columns,) if isinstance(columns, str) else columns
        return names + list(self.chosen or ())

    def conditions_in(self, columns: Iterable[str]) -> dict[str, str | tuple[str, ...]]:
        """The conditions, if the file has all columns that the user named; ValueError otherwise."""
        there = [name for name in columns if name]
        for column in self.wanted():
            if column not in there:
                hint = nearest(column, there) if there else "It names no columns."
                raise ValueError(f"there is no {column!r}. {hint}")
        return self.conditions


def regular(path: Path) -> Path:
    """A path that is a regular file; opening anything else may block for ever."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise ValueError(f"{path.name} is {kind}, wanted a file")
    return path


def check_compression(nbytes: int, held: int) -> None:
    """Raise if `nbytes` come out of `held` compressed bytes, as of a decompression bomb."""
    if nbytes > BOMB_BYTES and nbytes > BOMB_RATIO * held:
        raise ValueError(
            f"{nbytes:,} bytes or more are to come out of {held:,}, more than {BOMB_RATIO} out of "
            "one, as of a decompression bomb; if these are data, save them without compression"
        )


def optional(module: str, what: str) -> Any:
    """Import a module of an extra when it is first needed."""
    root = module.partition(".")[0]
    try:
        found = importlib.import_module(module)
    except ImportError:
        package = {"PIL": "Pillow"}.get(root, root)
        raise ImportError(f"{what} need {package}: pip install 'scoresde[data]'") from None
    if root == "PIL":
        version = importlib.import_module("PIL").__version__
        if tuple(map(int, version.split(".")[:2])) < OLDEST_PILLOW:
            oldest = ".".join(map(str, OLDEST_PILLOW))
            raise ImportError(
                f"{what} need Pillow {oldest} or newer, got {version}: pip install 'scoresde[data]'"
            )
    return found


def condition(name: str, column: np.ndarray) -> np.ndarray:
    """A condition as int64, as `Labels` if it is words, or as float32."""
    if column.dtype.kind in "OU":
        column = coded(name, column)
        if isinstance(column, Labels):
            return column
    if column.dtype.kind in "biu":
        return column.astype(np.int64)
    if column.dtype.kind != "f" or not np.isfinite(column).all():
        raise ValueError(f"condition {name!r} has values that are no finite real numbers")
    return column.astype(np.float32)


def with_conditions(
    values: np.ndarray,
    fields: Mapping[str, str | tuple[str, ...]],
    column: Callable[[str], np.ndarray],
    names: tuple[str, ...] = (),
) -> Samples:
    """Samples with conditions; several columns make one condition of vectors, float32."""
    given: dict[str, np.ndarray] = {}
    parts: dict[str, tuple[str, ...]] = {}
    for name, wanted in fields.items():
        if isinstance(wanted, str):
            given[name] = condition(name, column(wanted))
            continue
        several = [condition(name, column(each)) for each in wanted]
        for each, part in zip(wanted, several, strict=True):
            if part.ndim != 1 or isinstance(part, Labels):
                what = "words" if isinstance(part, Labels) else f"shape {part.shape}"
                raise ValueError(
                    f"condition {name!r} is several columns of numbers, and {each!r} has {what}"
                )
        given[name] = np.stack(several, 1).astype(np.float32)
        parts[name] = wanted
    words = {name: value.words for name, value in given.items() if isinstance(value, Labels)}
    return Samples(values, given, words, names, parts)


def from_columns(
    names: list[str],
    column: Callable[[int], np.ndarray],
    n: int,
    request: Request,
) -> Samples:
    """Samples and conditions of a table: the names of its columns, "" for none, and each by its
    number, an array of n numbers, or of text or objects where it holds words.
    """
    conditions = request.conditions_in(names)
    for name in names:
        if name and names.count(name) > 1:
            raise ValueError(f"{names.count(name)} columns are called {name!r}")
    wanted = request.wanted()
    rest = [j for j, name in enumerate(names) if name not in wanted or not name]
    if request.chosen is not None:
        rest = [names.index(name) for name in request.chosen]
    if not rest:
        raise ValueError("all of its columns are conditions; none is left for the samples")
    values = np.empty((n, len(rest)), np.float32)
    for i, j in enumerate(rest):
        numbers = column(j)
        if numbers.dtype.kind not in "biuf":
            what = "words" if numbers.dtype.kind in "OSU" else f"{numbers.dtype.name} values"
            raise ValueError(
                f"column {names[j]!r} holds {what}; ask for it in conditions=, or choose the "
                "others by columns="
            )
        with np.errstate(over="ignore"):
            values[:, i] = numbers
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise ValueError(
            f"row {bad[0]} (from 0), and {len(bad) - 1} more, hold values that are no finite "
            "float32 numbers"
        )
    columns = tuple(names[j] for j in rest) if any(names) else ()
    return with_conditions(values, conditions, lambda name: column(names.index(name)), columns)


def labelled(
    values: np.ndarray, y: np.ndarray, names: tuple[str, ...], request: Request
) -> Samples:
    """Samples of a set that brings its labels, called y unless the user gives another name."""
    fields = request.conditions_in(["y"]) or {"y": "y"}
    labels = y.astype(np.int64)
    if y.size and int(y.max()) < len(names):
        labels = Labels(y, names)
    known = dict.fromkeys(fields, names) if names else {}
    return Samples(values, dict.fromkeys(fields, labels), known)
