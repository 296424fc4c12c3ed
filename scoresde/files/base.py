"""What all readers share: the samples they return, what was asked for, and conditions by name."""

from __future__ import annotations

import importlib
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..registry import nearest
from ..schema import Labels, Named, coded

OLDEST_PILLOW = (10, 3)  # those before 10.1 turn TIFFs twice, those before 10.3 read 16-bit PNGs as int32
LARGE, SHRUNK = 2**28, 200  # bytes from which on data are refused that were shrunk by more than so much


@dataclass(frozen=True, eq=False, repr=False)
class Samples(Named):
    """What a file holds: samples, conditions by name, and the names of columns and classes.

    `fit`, `log_prob`, `likelihood`, `bits_per_dim` and `evaluate` take it as it is: columns and classes are then matched by
    name with those that the model has learnt, and its conditions are the model's.

    Attributes
    ----------
    values : array, shape (n, *shape)
        In the file's dtype (tables: float32). A read-only `np.memmap` where the file can be mapped.
    given : dict of str to array, shape (n, ...)
        int64 or float32. Those of words know their words, so that a model numbers them as in training.
    names : dict of str to tuple of str
        For conditions that were words or folders: the name of class 0, 1, …
    columns : tuple of str
        Of a table with a header: the names of the samples' columns.
    parts : dict of str to tuple of str
        The columns of each condition that has several.

    Examples
    --------
    >>> import numpy as np
    >>> samples = Samples(np.zeros((3, 1, 8, 8), np.uint8), {"y": np.array([0, 1, 0])}, {"y": ("cat", "dog")})
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
        """What and how much, not the numbers themselves."""
        given = f", given {', '.join(self.given)}" if self.given else ""
        return f"Samples({len(self)} of shape {self.values.shape[1:]}, {self.values.dtype}{given})"


@dataclass(frozen=True)
class Ask:
    """What the user wants of a file: columns by the condition's name, which array, split, columns and encoding."""

    conditions: dict[str, str | tuple[str, ...]]
    samples: str | None = None
    split: str = "train"
    chosen: tuple[str, ...] | None = None
    encoding: str = "utf-8"

    def wanted(self) -> list[str]:
        """Every column that is asked for."""
        several = ((column,) if isinstance(column, str) else column for column in self.conditions.values())
        return [name for columns in several for name in columns] + list(self.chosen or ())

    def columns(self, there: Iterable[str]) -> dict[str, str | tuple[str, ...]]:
        """Return the conditions, once it is known that the file has all that is asked for."""
        there = [name for name in there if name]
        for column in self.wanted():
            if column not in there:
                raise ValueError(f"there is no {column!r}. {nearest(column, there) if there else 'It names no columns.'}")
        return self.conditions


def regular(path: Path) -> Path:
    """Return a path that is a regular file; opening anything else may wait for ever."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{path.name} is {kinds.get(stat.S_IFMT(mode), 'a device')}, wanted a file")
    return path


def check_shrunk(nbytes: int, held: int) -> None:
    """Raise if data are to come out of a file that is so small as only that of a decompression bomb."""
    if nbytes > LARGE and nbytes > SHRUNK * held:
        raise ValueError(
            f"{nbytes:,} bytes or more are to come out of {held:,}, more than {SHRUNK} out of one, as of a decompression bomb; "
            "if these are data, save them without compression"
        )


def optional(module: str, what: str) -> Any:
    """Import a module of an extra, when it is first needed."""
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
            raise ImportError(f"{what} need Pillow {oldest} or newer, got {version}: pip install 'scoresde[data]'")
    return found


def condition(name: str, column: np.ndarray) -> np.ndarray:
    """Return a condition as int64, `Labels` if it was words, or float32."""
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
    """Put samples and conditions together; several columns make one condition of vectors, float32."""
    given, parts = {}, {}
    for name, wanted in fields.items():
        if isinstance(wanted, str):
            given[name] = condition(name, column(wanted))
            continue
        several = [condition(name, column(each)) for each in wanted]
        for each, part in zip(wanted, several, strict=True):
            if part.ndim != 1 or isinstance(part, Labels):
                what = "words" if isinstance(part, Labels) else f"shape {part.shape}"
                raise ValueError(f"condition {name!r} is several columns of numbers, and {each!r} has {what}")
        given[name], parts[name] = np.stack(several, 1).astype(np.float32), wanted
    words = {name: value.words for name, value in given.items() if isinstance(value, Labels)}
    return Samples(values, given, words, names, parts)


def labelled(values: np.ndarray, y: np.ndarray, names: tuple[str, ...], ask: Ask) -> Samples:
    """A set that brings its labels: they are called y unless asked for by another name."""
    fields = ask.columns(["y"]) or {"y": "y"}
    labels = Labels(y, names) if y.size and int(y.max()) < len(names) else y.astype(np.int64)
    return Samples(values, dict.fromkeys(fields, labels), dict.fromkeys(fields, names) if names else {})
