"""The names in a model's data: columns of a sample, words and columns of its conditions.

Later tables are matched by these names, so the order of their columns and the set of their classes
do not matter. If the data or the training data have no names, columns are matched by position.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..common.inputs import refuse_masked
from ..common.names import nearest
from .class_words import Labels, coded, wordy
from .frames import (
    check_unique,
    column_values,
    frame_values,
    is_frame,
    is_row,
    listed,
    row_frame,
)


class Named:
    """Base of samples that were read with names; `parts` are the columns of each condition."""

    values: Any
    given: dict[str, Any]
    columns: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]


@dataclass
class Schema:
    """The names in a model's data.

    `columns` of a sample, `words` of each condition's classes, `parts`: each condition's columns.
    """

    columns: tuple[str, ...] = ()
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def copy(self) -> Schema:
        """Return an independent copy."""
        return Schema(self.columns, dict(self.words), dict(self.parts))

    def assign(self, other: Schema) -> None:
        """Take all names of another, in place."""
        self.columns = other.columns
        self.words = dict(other.words)
        self.parts = dict(other.parts)

    def describe(self) -> dict[str, Any]:
        """Return the names as plain JSON, without what is empty."""
        about = {
            "columns": list(self.columns),
            "words": _lists(self.words),
            "parts": _lists(self.parts),
        }
        return {name: value for name, value in about.items() if value}

    @staticmethod
    def rebuild(about: Any, shape: tuple[int, ...]) -> Schema:
        """Return the schema that `describe` wrote, checked as data from a stranger."""
        about = {} if about is None else about
        if not isinstance(about, Mapping) or about.keys() - {"columns", "words", "parts"}:
            raise ValueError("its schema is not one of columns, words and parts")
        columns = _names(about.get("columns", []))
        if columns and (len(shape) != 1 or len(columns) != shape[0]):
            raise ValueError(
                f"its schema names {len(columns)} columns, and a sample has shape {shape}"
            )
        words = _names_by_condition(about.get("words", {}))
        parts = _names_by_condition(about.get("parts", {}))
        return Schema(columns, words, parts)

    def follow(self, other: Schema) -> None:
        """Take the names of data that were prepared before; raise if they contradict known ones."""
        known = {"": self.columns, **self.words, **self.parts}
        new = {"": other.columns, **other.words, **other.parts}
        for name in known.keys() & new.keys():
            if known[name] and new[name] and known[name] != new[name]:
                what = f"condition {name!r} has" if name else "the data have the columns"
                raise ValueError(
                    f"{what} {listed(new[name])}, and this model has learnt "
                    f"{listed(known[name])}: take a new model"
                )
        self.columns = self.columns or other.columns
        self.words = {**other.words, **self.words}
        self.parts = {**other.parts, **self.parts}

    def learn(self, data: Any, given: Any) -> tuple[Any, Any]:
        """Match training data and conditions by the known names, and keep the new names."""
        values, names, given, parts, files = _parted(data, given)
        if names and not self.columns:
            check_unique(names)
            self.columns = names
        values = self._matched(values, names, self.columns, "the data")
        if not isinstance(given, Mapping):
            return values, given
        found = {}
        for name, value in given.items():
            value, names = _condition(name, value, parts.get(name, ()))
            if names and name not in self.parts:
                check_unique(names)
                self.parts[name] = names
            self.words.setdefault(name, getattr(value, "words", ()))
            found[name] = self._matched_condition(name, value, names)
        self._strict(given, files)
        return values, found

    def take(self, data: Any, given: Any = None) -> tuple[Any, Any]:
        """Match other data and their conditions by the known names."""
        values, names, given, parts, files = _parted(data, given)
        values = self._matched(values, names, self.columns, "the data")
        if not isinstance(given, Mapping):
            return values, given
        found = {}
        for name, value in given.items():
            found[name] = self.condition(name, value, parts.get(name, ()))
        self._strict(given, files)
        return values, found

    def values(self, data: Any) -> Any:
        """Match data that come without conditions."""
        if isinstance(data, Named) and data.given:
            names = ", ".join(f"{name}=samples.given[{name!r}]" for name in data.given)
            raise TypeError(
                f"these samples bring conditions, {', '.join(data.given)}, and here they have no "
                f"place: write sde.given({names}), and give samples.values"
            )
        return self.take(data)[0]

    def one_or_more(self, data: Any) -> Any:
        """Match data of any number of axes: a frame has rows, and a Series is one by its index."""
        if len(self.columns) > 1 and is_row(data):
            return self.values(row_frame(data))[0]
        return self.values(data) if is_named(data) else data

    def condition(self, name: str, value: Any, names: tuple[str, ...] = ()) -> Any:
        """Return a condition as numbers: words by their class, columns in the model's order.

        A Series of pandas is one vector by its index, where the model knows several columns.
        """
        if is_row(value) and len(self.parts.get(name, ())) > 1:
            return self.condition(name, row_frame(value))[0]
        numbers, names = _condition(name, value, names)
        words = isinstance(numbers, Labels) and not isinstance(value, Labels)
        if words and name not in self.words:
            wanted = "a tensor or array of numbers"
            if isinstance(value, str):
                wanted = "a number or a tensor"
                came = repr(value)
            elif isinstance(value, np.ndarray | list | tuple):
                came = f"an array of {np.asarray(value).dtype}"
            else:
                came = f"a {type(value).__name__} of words"
            raise TypeError(
                f"condition {name!r} is {wanted}, got {came}; this model knows no words for it"
            )
        return self._matched_condition(name, numbers, names)

    def _matched_condition(self, name: str, value: Any, names: tuple[str, ...]) -> Any:
        """A condition with its columns and classes in the model's order."""
        value = self._matched(value, names, self.parts.get(name, ()), f"condition {name!r}")
        return self._numbers(name, value)

    def _matched(
        self, values: Any, names: tuple[str, ...], known: tuple[str, ...], what: str
    ) -> Any:
        """Values with their columns in the known order."""
        if not names or not known or names == known:
            return values
        check_unique(names)
        missing = [name for name in known if name not in names]
        extra = [name for name in names if name not in known]
        if missing or extra:
            differences = []
            if missing:
                differences.append(f"{len(missing)} missing: {listed(missing)}")
            if extra:
                differences.append(f"{len(extra)} unknown: {listed(extra)}")
            raise ValueError(
                f"{what} have other columns than those the model has learnt, {listed(known)}; "
                f"{'; '.join(differences)}. "
                "Choose them by name: read(..., columns=...), --columns, or df[[...]]; an array "
                "goes by position"
            )
        order = [names.index(name) for name in known]
        if isinstance(values, np.ndarray):
            return np.take(values, order, 1)  # contiguous: sums round as those of an array do
        return values[:, order]

    def _numbers(self, name: str, value: Any) -> Any:
        """Class numbers by the model's own numbering of the words."""
        if not isinstance(value, Labels):
            return value
        known = self.words.get(name)
        numbers = np.asarray(value)
        # Models that were saved before there were names keep the numbers as they come.
        if known is None or known == value.words or not value.words:
            return numbers
        used = {value.words[i] for i in np.unique(numbers).tolist()}
        wrong = [word for word in value.words if word not in known and word in used]
        if wrong and not known:
            raise ValueError(
                f"condition {name!r} is numbers in this model, got words such as {wrong[0]!r}; "
                "categories of a table are given by column, y={'column': word, …}"
            )
        if wrong:
            raise ValueError(
                f"condition {name!r} has {listed(wrong)}, which this model has not learnt. "
                f"{nearest(wrong[0], known)}"
            )
        ours = [known.index(word) if word in known else -1 for word in value.words]
        return np.array(ours, np.int64)[numbers]

    def _strict(self, given: Mapping[str, Any], files: Iterable[str]) -> None:
        """Raise if a file has numbers where the model has words: its numbering may differ."""
        for name in files:
            if self.words.get(name) and not isinstance(given[name], Labels):
                raise ValueError(
                    f"condition {name!r} is numbers here, and one of {listed(self.words[name])} "
                    "in this model"
                )


def is_named(data: Any) -> bool:
    """Whether data come with names of columns."""
    return isinstance(data, Named) or is_frame(data)


def _parted(
    data: Any, given: Any
) -> tuple[Any, tuple[str, ...], Any, dict[str, tuple[str, ...]], set[str]]:
    """(values, their columns, conditions, columns of these, names of those that a file brought)."""
    if isinstance(data, Named):
        twice = sorted(given.keys() & data.given.keys()) if isinstance(given, Mapping) else []
        if twice:
            raise ValueError(
                f"condition {twice[0]!r} comes with the samples and in given=; leave one out"
            )
        if isinstance(given, Mapping | None):
            given = {**data.given, **(given or {})}
        return data.values, data.columns, given, data.parts, {*data.given}
    if is_frame(data):
        return *frame_values(data), given, {}, set()
    return data, (), given, {}, set()


def _condition(name: str, value: Any, names: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """A condition as `Labels` or numbers, and its columns; one without words or names unchanged."""
    if is_frame(value):
        return frame_values(value)
    declared: tuple[str, ...] = ()
    if hasattr(value, "to_numpy"):
        real = column_values(value)
        if real is not None:
            _check_gaps(name, real)
            return real, names
        categories = getattr(getattr(value, "cat", None), "categories", ())
        if len(categories) and all(isinstance(word, str) for word in categories):
            declared = tuple(word.strip() for word in categories)
        value = value.to_numpy()
    if isinstance(value, Labels) or not wordy(value):
        return value, names
    refuse_masked(value, f"condition {name!r}")
    column = np.asarray(value)
    if column.ndim > 1:
        raise ValueError(
            f"condition {name!r} has words in shape {column.shape}, wanted one word a sample"
        )
    if column.dtype.kind == "O":
        _check_gaps(name, column.reshape(-1))
    return coded(name, column, declared), names


def _check_gaps(name: str, column: np.ndarray) -> None:
    """Raise ValueError for a column with NaN or None."""
    gaps = np.zeros(len(column), bool)
    if column.dtype.kind == "f":
        gaps = np.isnan(column)
    elif column.dtype.kind == "O":
        missing = ("None", "nan", "<NA>", "NaT")
        words = column.tolist()
        gaps = np.array([not isinstance(word, str) and str(word) in missing for word in words])
    if gaps.any():
        row = int(gaps.argmax())
        raise ValueError(f"condition {name!r} has no value in row {row} (from 0)")


def _lists(names: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Names as JSON has them."""
    return {name: list(value) for name, value in names.items()}


def _names(value: Any) -> tuple[str, ...]:
    """A list of names of a file, checked."""
    texts = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if not texts or len({*value}) < len(value):
        raise ValueError("its schema has names that are not text, or one name twice")
    return tuple(value)


def _names_by_condition(value: Any) -> dict[str, tuple[str, ...]]:
    """Lists of names of a file by condition, checked."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError("its schema has no names of conditions")
    return {name: _names(names) for name, names in value.items()}
