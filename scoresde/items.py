"""Which part of a data set's items is the sample, and which are its conditions, by name.

Items, and batches of them, are x, (x,), (x, {"y": labels}), (x, labels) or {"x": x, "y": labels}. Where no name is given, a
condition has one only if the network takes just one that it fits: integers, one a sample, are labels `y`.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from .errors import TrainingError
from .sde import ScoreSDE

OWN = ("y", "vector", "image")  # conditions of our own networks


class Items:
    """Splits items into samples and conditions, all as the first of them.

    Parameters
    ----------
    sde : ScoreSDE
        Its network says which conditions it takes.
    """

    def __init__(self, sde: ScoreSDE) -> None:
        self._shape, self._accepts, self._net = sde.shape, sde.checked, sde.net
        parameters = inspect.signature(getattr(sde.net, "_orig_mod", sde.net).forward).parameters.values()
        self._checked = hasattr(sde.net, "check_condition")
        explicit = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][2:]
        passed_on = self._checked and any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._takes = list(dict.fromkeys([*explicit, *(OWN if passed_on else ())]))
        self._names: tuple[str, ...] | None = None  # of conditions that stand behind x without a name
        self._key: str | None = None  # of x in a mapping
        self._seen: set[str] | None = None

    def split(self, item: Any) -> tuple[Any, dict[str, Any]]:
        """Return x and the conditions of an item, or of a batch of items, as they are."""
        if isinstance(item, Mapping):
            if self._key is None:
                self._key = self._sample_of(item)
            condition = dict(item)
            x = condition.pop(self._key)
        else:
            x, *rest = item if isinstance(item, list | tuple) and item else (item,)
            if isinstance(x, Mapping):
                raise TypeError(_unnamed(x))
            if len(rest) == 1 and isinstance(rest[0], Mapping):
                condition = dict(rest[0])
            else:
                if self._names is None:
                    self._names = self._named(rest)
                if len(self._names) != len(rest):
                    raise TypeError(f"an item has {len(rest)} conditions where those before had {len(self._names)}")
                condition = dict(zip(self._names, rest, strict=True))
        if self._seen is None:
            self._seen = set(condition)
        if set(condition) != self._seen:
            raise ValueError(f"an item has the conditions {sorted(condition)} where those before had {sorted(self._seen)}")
        return x, condition

    def _named(self, rest: Sequence[Any]) -> tuple[str, ...]:
        """Return the names of conditions that have none."""
        names: list[str] = []
        for value in rest:
            fits = [name for name in self._fitting(value) if name not in names]
            if len(fits) != 1:
                came = type(value).__name__
                if isinstance(value, Tensor):
                    came = f"{value.dtype} of shape {tuple(value.shape)}"
                    came += " (labels y are integers: y.long())" if value.ndim == 1 and value.is_floating_point() else ""
                elif isinstance(value, list | tuple) and value and isinstance(value[0], str):
                    came = f"words such as {value[0]!r}, which are to be numbers from 0 to classes − 1"
                takes = f"takes {', '.join(self._takes)}" if self._takes else "takes no condition"
                raise TypeError(
                    f"beside x the data have {came}, and which condition that is can't be told (the network {takes}): "
                    "name the labels, (x, {'y': labels}), as in fit(sde, [(x, {'y': y}) for x, y in data]), or "
                    "leave them out, fit(sde, [x for x, _ in data])"
                )
            names += fits
        return tuple(names)

    def _fitting(self, value: Any) -> list[str]:
        """Return the conditions that a value can be."""
        if not isinstance(value, Tensor):
            return []
        if value.ndim == 1 and not value.is_floating_point() and not value.is_complex() and "y" in self._takes:
            return ["y"]  # whether these labels are in range is said later, by name
        return [name for name in self._takes if self._checked and self._fits(name, value)]

    def _fits(self, name: str, value: Tensor) -> bool:
        try:
            self._accepts({name: value}, len(value))
        except (TypeError, ValueError):
            return False
        return True

    def _sample_of(self, item: Mapping[str, Any]) -> str:
        """Return the key of x: the only one that is no condition."""
        others = [
            key
            for key, value in item.items()
            if key not in self._takes or (key != "y" and not (isinstance(value, Tensor) and self._fits(key, value)))
        ]
        if len(others) != 1:
            raise TypeError(_unnamed(item))
        return others[0]


def _unnamed(item: Mapping[str, Any]) -> str:
    return (
        f"the data's items are dicts of {', '.join(map(repr, item))}; "
        "say which is what: scoresde.files.columns(data, 'image', y='label')"
    )


def is_row(item: Any, shape: tuple[int, ...]) -> bool:
    """Whether an element of a list is one sample, and not a sample with its conditions."""
    if isinstance(item, Mapping):
        return False
    if not isinstance(item, list | tuple) or not item:
        return True
    whole = _shape(item)
    return whole is not None and (whole == shape or _shape(item[0]) != shape)


def collated(items: Sequence[Any]) -> Any:
    """Return items as a batch of them, as a DataLoader would."""
    try:
        return default_collate([_as_arrays(item) for item in items])
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        first = items[0]
        unlike = next((i for i, item in enumerate(items) if _outline(item) != _outline(first)), None)
        where = "" if unlike is None else f": item {unlike} is {_outline(items[unlike])}, item 0 is {_outline(first)}"
        raise ValueError(f"the data's items can't be put together{where or f' ({brief(error)})'}") from None


def _as_arrays(item: Any) -> Any:
    """An item whose samples that are lists of numbers have become arrays, which are put together as a whole."""
    if isinstance(item, Mapping):
        return {key: np.asarray(value) if isinstance(value, list | tuple) else value for key, value in item.items()}
    return tuple(np.asarray(value) if isinstance(value, list | tuple) else value for value in item)


def _outline(item: Any) -> str:
    if isinstance(item, Mapping):
        return "{" + ", ".join(f"{key!r}: {_outline(value)}" for key, value in item.items()) + "}"
    if isinstance(item, tuple):
        return "(" + ", ".join(map(_outline, item)) + ")"
    shape = _shape(item)
    return type(item).__name__ if shape is None else f"{type(item).__name__} of shape {shape}"


def _shape(value: Any) -> tuple[int, ...] | None:
    try:
        return tuple(value.shape) if hasattr(value, "shape") else np.shape(value)
    except (TypeError, ValueError, RuntimeError):  # such as a list of lists of unequal lengths
        return None


def brief(error: BaseException) -> str:
    """Return an exception's own sentence; of one from a DataLoader's worker, the sentence there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def rows_asked(traceback: TracebackType | None) -> str | None:
    """Return which rows of a map-style data set a DataLoader was fetching when an exception came; None if it was not."""
    found = None
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        if not frame.f_code.co_filename.replace("\\", "/").endswith("torch/utils/data/_utils/fetch.py"):
            continue
        held = frame.f_locals
        if "idx" in held:
            found = f"row {held['idx']}"
        elif "possibly_batched_index" in held and not hasattr(held.get("self"), "dataset_iter"):
            rows = held["possibly_batched_index"]
            rows = list(rows) if isinstance(rows, list | tuple) else [rows]
            found = f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:8]))}" + ", …" * (len(rows) > 8)
    return found


def following(items: Iterator[Any], where: str, *, first: int = 0, mapped: bool) -> Iterator[Any]:
    """Yield a loader's items; what the user's code raises becomes a TrainingError that says where, with the cause chained.

    A StopIteration of a map-style data set is a failure too: taken for the end of the pass, it would lose rows silently.
    """
    for i in itertools.count(first):
        try:
            item = next(items)
        except StopIteration as stop:
            if not mapped or (rows_asked(stop.__traceback__) is None and not str(stop).startswith("Caught StopIteration")):
                return
            failed: Exception = stop
        except Exception as error:
            failed = error
        else:
            yield item
            continue
        rows = rows_asked(failed.__traceback__)
        raise TrainingError(f"the data failed at batch {i}{where}{f', {rows}' if rows else ''}: {brief(failed)}") from failed


@contextlib.contextmanager
def placed(where: str) -> Iterator[None]:
    """Say where it was that data were not as they should be."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):
            raise
        raise type(error)(f"{error} ({where})") from error.__cause__
