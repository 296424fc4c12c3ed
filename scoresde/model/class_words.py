"""Classes that were words in the data: the number of each, and its word."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..common.inputs import refuse_masked


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
        """Drop the words from results of arithmetic."""
        return array[()] if return_scalar else np.asarray(array)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Renumber the classes where labels of several files are joined."""
        joined = args[0] if args and function is np.concatenate else ()
        if not joined or not all(isinstance(one, Labels) and one.words for one in joined):
            return super().__array_function__(function, types, args, kwargs)
        words = joined[0].words
        if any(one.words != words for one in joined):
            words = tuple(sorted({word for one in joined for word in one.words}))
        plain = []
        for one in joined:
            number = np.array([words.index(word) for word in one.words])
            plain.append(number[np.asarray(one)])
        return Labels(np.concatenate(plain, *args[1:], **kwargs), words)

    def __repr__(self) -> str:
        """Show the numbers."""
        return repr(np.asarray(self))

    def __reduce__(self) -> Any:
        """Keep the words in copies by pickle."""
        return Labels, (np.asarray(self), self.words)


def coded(name: str, column: Any, declared: tuple[str, ...] = ()) -> np.ndarray:
    """A column of words as `Labels`, numbered by the alphabet or as declared; digits as numbers."""
    refuse_masked(column, f"condition {name!r}")
    words = np.asarray(np.char.strip(np.asarray(column).astype(str)))
    classes = np.unique(words)
    numbers = [word for word in classes.tolist() if is_number(word)]
    if "" in classes:
        row = int((words.reshape(-1) == "").argmax())
        raise ValueError(f"condition {name!r} is empty in row {row} (from 0)")
    if not numbers:
        return _numbered(words, classes, declared)
    if len(numbers) < len(classes):
        word = next(word for word in classes.tolist() if not is_number(word))
        raise ValueError(
            f"condition {name!r} has numbers and words, such as {numbers[0]!r} and {word!r}"
        )
    if not all(re.fullmatch(r"[+-]?\d+", number) for number in numbers):
        return words.astype(np.float64)
    large = [number for number in numbers if abs(int(number)) >= 2**63]
    if large:
        raise ValueError(
            f"condition {name!r} has integers of 2^63 and more, such as {large[0]}: number the "
            "classes from 0"
        )
    return words.astype(np.int64)


def _numbered(words: np.ndarray, classes: np.ndarray, declared: tuple[str, ...]) -> Labels:
    """Words as labels of the declared classes if these contain all words, else of new classes."""
    place = np.searchsorted(classes, words)
    if not declared or not {*classes.tolist()} <= {*declared}:
        return Labels(place, classes.tolist())
    at = {word: i for i, word in enumerate(declared)}
    number = np.array([at[word] for word in classes.tolist()])
    return Labels(number[place], declared)


def is_number(text: str) -> bool:
    """Whether a text is one number as files write it; 1_000 is a number in Python alone."""
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text


def wordy(value: Any) -> bool:
    """Whether a value is words, or objects that may be words."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "UOT"
    if isinstance(value, list | tuple):
        return bool(value) and any(isinstance(word, str) for word in value)
    return isinstance(value, str)
