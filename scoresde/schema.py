"""Names that a model keeps of its data: the columns of a sample, and the words and columns of its conditions.

Tables are matched by these names, whatever the order of their columns and whichever classes they hold. Data without names, and
models that were trained on such, go by position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .registry import nearest


class Labels(np.ndarray):
    """Class numbers, int64, that know the word of each class; arithmetic gives plain arrays."""

    words: tuple[str, ...]

    def __new__(cls, numbers: Any, words: Iterable[str]) -> Labels:
        """Return labels of those numbers."""
        labels = np.asarray(numbers, np.int64).view(cls)
        labels.words = tuple(words)
        return labels

    def __array_finalize__(self, source: Any) -> None:
        """Keep the words in views."""
        self.words = getattr(source, "words", ())

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        """Drop them in results of arithmetic."""
        return array[()] if return_scalar else np.asarray(array)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Number the words anew where labels of several files are joined."""
        parts = args[0] if args and function is np.concatenate else ()
        if not parts or not all(isinstance(part, Labels) and part.words for part in parts):
            return super().__array_function__(function, types, args, kwargs)
        words = parts[0].words
        if any(part.words != words for part in parts):
            words = tuple(sorted({word for part in parts for word in part.words}))
        plain = [np.array([words.index(word) for word in part.words])[np.asarray(part)] for part in parts]
        return Labels(np.concatenate(plain, *args[1:], **kwargs), words)

    def __repr__(self) -> str:
        """Show the numbers."""
        return repr(np.asarray(self))

    def __reduce__(self) -> Any:
        """Keep them in copies by pickle."""
        return Labels, (np.asarray(self), self.words)


class Named:
    """Base of samples that were read with their names: values, given, columns, parts."""

    values: Any
    given: dict[str, Any]
    columns: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]


@dataclass
class Schema:
    """The names of a model's data.

    Attributes
    ----------
    columns : tuple of str
        Of a sample, in the model's order; () if it was trained without.
    words : dict of str to tuple of str
        Of each condition, the words of class 0, 1, …; () for one of numbers.
    parts : dict of str to tuple of str
        The columns of each condition that has several.
    """

    columns: tuple[str, ...] = ()
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def copy(self) -> Schema:
        """Return another that can change by itself."""
        return Schema(self.columns, dict(self.words), dict(self.parts))

    def assign(self, other: Schema) -> None:
        """Become like another; all views of a model share one object."""
        self.columns, self.words, self.parts = other.columns, dict(other.words), dict(other.parts)

    def describe(self) -> dict[str, Any]:
        """Return it in plain JSON, without what is empty."""
        about = {"columns": list(self.columns), "words": _lists(self.words), "parts": _lists(self.parts)}
        return {name: value for name, value in about.items() if value}

    @staticmethod
    def rebuild(about: Any, shape: tuple[int, ...]) -> Schema:
        """Return what `describe` said, of a model of that shape; nothing of it is trusted."""
        about = {} if about is None else about
        if not isinstance(about, Mapping) or about.keys() - {"columns", "words", "parts"}:
            raise ValueError("its schema is not one of columns, words and parts")
        columns = _names(about.get("columns", []))
        if columns and (len(shape) != 1 or len(columns) != shape[0]):
            raise ValueError(f"its schema names {len(columns)} columns, and a sample has shape {shape}")
        found = [about.get(key, {}) for key in ("words", "parts")]
        if not all(isinstance(each, Mapping) and all(isinstance(name, str) for name in each) for each in found):
            raise ValueError("its schema has no names of conditions")
        words, parts = ({name: _names(value) for name, value in each.items()} for each in found)
        return Schema(columns, words, parts)

    def follow(self, other: Schema) -> None:
        """Take over the names of data that were made ready before, if they are not others than those that are known."""
        known, new = ({"": each.columns, **each.words, **each.parts} for each in (self, other))
        for name in known.keys() & new.keys():
            if known[name] and new[name] and known[name] != new[name]:
                what = f"condition {name!r} has" if name else "the data have the columns"
                raise ValueError(
                    f"{what} {_listed(new[name])}, and this model has learnt {_listed(known[name])}: take a new model"
                )
        self.columns = self.columns or other.columns
        self.words, self.parts = {**other.words, **self.words}, {**other.parts, **self.parts}

    def learn(self, data: Any, given: Any) -> tuple[Any, Any]:
        """Match training data and their conditions with what is known, and keep the names that are new."""
        values, names, given, parts, files = _parted(data, given)
        if names and not self.columns:
            _unique(names)
            self.columns = names
        values = self._matched(values, names, self.columns, "the data")
        if not isinstance(given, Mapping):
            return values, given
        found = {}
        for name, value in given.items():
            value, names = _condition(name, value, parts.get(name, ()))
            if names and name not in self.parts:
                _unique(names)
                self.parts[name] = names
            self.words.setdefault(name, getattr(value, "words", ()))
            found[name] = self._numbers(name, self._matched(value, names, self.parts.get(name, ()), f"condition {name!r}"))
        self._strict(given, files)
        return values, found

    def take(self, data: Any, given: Any = None) -> tuple[Any, Any]:
        """Match other data and their conditions with what is known."""
        values, names, given, parts, files = _parted(data, given)
        values = self._matched(values, names, self.columns, "the data")
        if not isinstance(given, Mapping):
            return values, given
        found = {name: self.condition(name, value, parts.get(name, ())) for name, value in given.items()}
        self._strict(given, files)
        return values, found

    def values(self, data: Any) -> Any:
        """Match data that come without conditions."""
        if isinstance(data, Named) and data.given:
            names = ", ".join(f"{name}=samples.given[{name!r}]" for name in data.given)
            raise TypeError(
                f"these samples bring conditions, {', '.join(data.given)}, and here they have no place: "
                f"write sde.given({names}), and give samples.values"
            )
        return self.take(data)[0]

    def condition(self, name: str, value: Any, names: tuple[str, ...] = ()) -> Any:
        """Return a condition as numbers: words by their class, columns in the model's order."""
        came, (value, names) = value, _condition(name, value, names)
        if name not in self.words and isinstance(value, Labels) and not isinstance(came, Labels):
            shown = f"is a number or a tensor, got {came!r}"
            if not isinstance(came, str):
                plain = isinstance(came, np.ndarray | list | tuple)
                kind = f"an array of {np.asarray(came).dtype}" if plain else f"a {type(came).__name__} of words"
                shown = f"is a tensor or array of numbers, got {kind}"
            raise TypeError(f"condition {name!r} {shown}; this model knows no words for it")
        return self._numbers(name, self._matched(value, names, self.parts.get(name, ()), f"condition {name!r}"))

    def _matched(self, values: Any, names: tuple[str, ...], known: tuple[str, ...], what: str) -> Any:
        """Put columns into the order that is known."""
        if not names or not known or names == known:
            return values
        _unique(names)
        missing = [name for name in known if name not in names]
        extra = [name for name in names if name not in known]
        if missing or extra:
            said = [f"{len(missing)} missing: {_listed(missing)}"] * bool(missing)
            said += [f"{len(extra)} unknown: {_listed(extra)}"] * bool(extra)
            raise ValueError(
                f"{what} have other columns than those the model has learnt, {_listed(known)}; {'; '.join(said)}. "
                f"Choose them by name: read(..., columns=...), --columns, or df[[...]]; an array goes by position"
            )
        return values[:, [names.index(name) for name in known]]

    def _numbers(self, name: str, value: Any) -> Any:
        """Number words as the model does."""
        if not isinstance(value, Labels):
            return value
        known, numbers = self.words.get(name), np.asarray(value)
        if known is None or known == value.words or not value.words:  # saved before there were names: as they are
            return numbers
        unknown = [word for word in value.words if word not in known]
        used = {value.words[i] for i in np.unique(numbers).tolist()}
        if wrong := [word for word in unknown if word in used]:
            if not known:
                raise ValueError(f"condition {name!r} is numbers in this model, got words such as {wrong[0]!r}")
            raise ValueError(
                f"condition {name!r} has {_listed(wrong)}, which this model has not learnt. {nearest(wrong[0], known)}"
            )
        return np.array([known.index(word) if word in known else -1 for word in value.words], np.int64)[numbers]

    def _strict(self, given: Mapping[str, Any], files: Iterable[str]) -> None:
        """Raise if a file has numbers where the model has words: they may be numbered otherwise."""
        for name in files:
            if self.words.get(name) and not isinstance(given[name], Labels):
                raise ValueError(f"condition {name!r} is numbers here, and one of {_listed(self.words[name])} in this model")


def coded(name: str, column: Any, declared: tuple[str, ...] = ()) -> np.ndarray:
    """Return a column of words as `Labels`, in the order of the alphabet or as declared; of texts of numbers as those."""
    words = np.asarray(np.char.strip(np.asarray(column).astype(str)))
    classes = np.unique(words)
    numbers = [word for word in classes.tolist() if is_number(word)]
    if "" in classes:
        raise ValueError(f"condition {name!r} is empty in row {int((words.reshape(-1) == '').argmax())} (from 0)")
    if not numbers:
        if declared and {*classes.tolist()} <= {*declared}:
            at = {word: i for i, word in enumerate(declared)}
            place = np.array([at[word] for word in classes.tolist()])
            return Labels(place[np.searchsorted(classes, words)], declared)
        return Labels(np.searchsorted(classes, words), classes.tolist())
    if len(numbers) < len(classes):
        word = next(word for word in classes.tolist() if not is_number(word))
        raise ValueError(f"condition {name!r} has numbers and words, such as {numbers[0]!r} and {word!r}")
    if not all(re.fullmatch(r"[+-]?\d+", number) for number in numbers):
        return words.astype(np.float64)
    if large := [number for number in numbers if abs(int(number)) >= 2**63]:
        raise ValueError(f"condition {name!r} has integers of 2^63 and more, such as {large[0]}: number the classes from 0")
    return words.astype(np.int64)


def is_number(text: str) -> bool:
    """Whether a text is one number as files have it: 1_000 is one in Python alone."""
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text


def is_frame(data: Any) -> bool:
    """Whether these are columns by name, as pandas and polars have them."""
    return hasattr(data, "to_numpy") and hasattr(data, "columns") and hasattr(data, "__getitem__")


def is_named(data: Any) -> bool:
    """Whether data come with names."""
    return isinstance(data, Named) or is_frame(data)


def _parted(data: Any, given: Any) -> tuple[Any, tuple[str, ...], Any, dict[str, tuple[str, ...]], set[str]]:
    """Values, their names, conditions, the columns of these, and which of them a file brought."""
    if isinstance(data, Named):
        if isinstance(given, Mapping) and (twice := sorted(given.keys() & data.given.keys())):
            raise ValueError(f"condition {twice[0]!r} comes with the samples and in given=; leave one out")
        if isinstance(given, Mapping | None):
            given = {**data.given, **(given or {})}
        return data.values, data.columns, given, data.parts, {*data.given}
    if is_frame(data):
        return *_frame(data), given, {}, set()
    return data, (), given, {}, set()


def _frame(data: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """The columns of a data frame as an array, all of which must be numbers."""
    names = tuple(str(name) for name in data.columns)
    _unique(names)
    columns = [_real(data.iloc[:, i] if hasattr(data, "iloc") else data[name]) for i, name in enumerate(names)]
    bad = [name for name, column in zip(names, columns, strict=True) if column is None]
    if bad:
        drop = f"df.drop(columns={bad!r})" if hasattr(data, "iloc") else f"df.drop({bad!r})"
        raise TypeError(
            f"columns {_listed(bad)} of this {type(data).__name__} are not numbers: leave them out, {drop}; "
            f"one that is a condition is given by name, y=df[{bad[0]!r}]"
        )
    dtype = np.result_type(*(column.dtype for column in columns if column is not None)) if columns else np.dtype(np.float64)
    values = np.empty((len(data), len(names)), dtype)
    for i, column in enumerate(columns):
        values[:, i] = column
    return values, names


def _real(column: Any) -> np.ndarray | None:
    """The numbers of a column, NaN where it has none; None if it holds something else."""
    if str(column.dtype) == "category":
        return None
    values = column.to_numpy()
    if values.dtype.kind == "O" and getattr(column.dtype, "kind", "O") in "biuf":  # pandas' own, with gaps
        values = column.to_numpy(dtype="float64", na_value=np.nan)
    return values if values.dtype.kind in "biuf" else None


def _condition(name: str, value: Any, names: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """A condition as Labels or numbers, and the names of its columns; what holds no words and no names stays as it is."""
    if is_frame(value):
        return _frame(value)
    declared: tuple[str, ...] = ()
    if hasattr(value, "to_numpy"):
        if (real := _real(value)) is not None:
            if real.dtype.kind == "f" and np.isnan(real).any():
                raise ValueError(f"condition {name!r} has no value in row {int(np.isnan(real).argmax())} (from 0)")
            return real, names
        categories = getattr(getattr(value, "cat", None), "categories", ())
        if len(categories) and all(isinstance(word, str) for word in categories):
            declared = tuple(word.strip() for word in categories)
        value = value.to_numpy()
    if isinstance(value, Labels) or not wordy(value):
        return value, names
    column = np.asarray(value)
    if column.ndim > 1:
        raise ValueError(f"condition {name!r} has words in shape {column.shape}, wanted one a sample")
    for row, word in enumerate(column.reshape(-1).tolist() if column.dtype.kind == "O" else ()):
        if not isinstance(word, str) and str(word) in ("None", "nan", "<NA>", "NaT"):
            raise ValueError(f"condition {name!r} has no value in row {row} (from 0)")
    return coded(name, column, declared), names


def wordy(value: Any) -> bool:
    """Whether these are words, or objects that may be."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "UOT"
    if isinstance(value, list | tuple):
        return bool(value) and any(isinstance(word, str) for word in value)
    return isinstance(value, str)


def _unique(names: tuple[str, ...]) -> None:
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"several columns are called {twice[0]!r}")


def _listed(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:most])) + f", … ({len(names)} in all)" * (len(names) > most)


def _lists(names: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    return {name: list(value) for name, value in names.items()}


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or len({*value}) < len(value):
        raise ValueError("its schema has names that are no texts, or one twice")
    return tuple(value)
