"""What all readers share: the samples they return, what was asked for, and conditions by name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..registry import nearest


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """What a file holds: samples, conditions by name, and the names of their classes.

    Attributes
    ----------
    values : array, shape (n, *shape)
        In the file's dtype (tables: float32). A read-only `np.memmap` where the file can be mapped.
    given : dict of str to array, shape (n, ...)
        int64 or float32.
    names : dict of str to tuple of str
        For conditions that were words or folders: the name of class 0, 1, …

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

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.values)

    def __repr__(self) -> str:
        """What and how much, not the numbers themselves."""
        given = f", given {', '.join(self.given)}" if self.given else ""
        return f"Samples({len(self)} of shape {self.values.shape[1:]}, {self.values.dtype}{given})"


@dataclass(frozen=True)
class Ask:
    """What the user wants of a file: columns by the condition's name, which array, which split."""

    conditions: dict[str, str]
    samples: str | None
    split: str

    def columns(self, there: Iterable[str]) -> dict[str, str]:
        """Return the conditions, once it is known that the file has them."""
        there = [name for name in there if name]
        for column in self.conditions.values():
            if column not in there:
                raise ValueError(f"there is no {column!r}. {nearest(column, there) if there else 'It names no columns.'}")
        return self.conditions


def optional(module: str, what: str) -> Any:
    """Import a module of an extra, when it is first needed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = {"PIL": "Pillow"}.get(module.partition(".")[0], module.partition(".")[0])
        raise ImportError(f"{what} need {package}: pip install 'scoresde[data]'") from None


def condition(name: str, column: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a condition as int64 or float32, and its classes if it was words."""
    if column.dtype.kind in "OU":
        words = np.char.strip(column.astype(str))
        classes = np.unique(words)
        numbers = [word for word in classes.tolist() if is_number(word)]
        if "" in classes:
            raise ValueError(f"condition {name!r} is empty in row {int((words == '').argmax())} (from 0)")
        if not numbers:
            return np.searchsorted(classes, words).astype(np.int64), tuple(classes.tolist())
        if len(numbers) < len(classes):
            word = next(word for word in classes.tolist() if not is_number(word))
            raise ValueError(f"condition {name!r} has numbers and words, such as {numbers[0]!r} and {word!r}")
        integers = all(re.fullmatch(r"[+-]?\d+", number) for number in numbers)
        column = words.astype(np.int64 if integers else np.float64)
    if column.dtype.kind in "biu":
        return column.astype(np.int64), ()
    if column.dtype.kind != "f" or not np.isfinite(column).all():
        raise ValueError(f"condition {name!r} has values that are no finite real numbers")
    return column.astype(np.float32), ()


def with_conditions(values: np.ndarray, found: Mapping[str, tuple[np.ndarray, tuple[str, ...]]]) -> Samples:
    """Put samples and conditions together."""
    return Samples(values, {k: v for k, (v, _) in found.items()}, {k: names for k, (_, names) in found.items() if names})


def labelled(values: np.ndarray, y: np.ndarray, names: tuple[str, ...], ask: Ask) -> Samples:
    """A set that brings its labels: they are called y unless asked for by another name."""
    fields = ask.columns(["y"]) or {"y": "y"}
    return with_conditions(values, dict.fromkeys(fields, (y.astype(np.int64), names)))


def is_number(text: str) -> bool:
    """Whether a text is one number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
