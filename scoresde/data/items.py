"""Items of a dataset, taken apart into the sample and its conditions by name.

Items, and batches of them, are x, (x,), (x, {"y": labels}), (x, labels) or {"x": x, "y": labels}.
A condition without a name gets one if it fits exactly one condition of the network: one integer per
sample is a label `y`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from ..model.condition_scales import checked
from ..model.trainable import Trainable
from .failures import error_text

OWN_CONDITIONS = ("y", "vector", "image")
"""Conditions of the library's own networks."""


class ItemSplitter:
    """Takes items apart, all of them as the first."""

    def __init__(self, sde: Trainable) -> None:
        self._shape = sde.shape
        self._check_accepted = functools.partial(checked, sde)
        self._checks_conditions = hasattr(sde.net, "check_condition")
        self._takes = self._condition_names(sde)
        self._unnamed: tuple[str, ...] | None = None  # names of conditions that come without
        self._sample_key: str | None = None  # of items that are mappings
        self._seen: set[str] | None = None

    def _condition_names(self, sde: Trainable) -> list[str]:
        """Names of conditions that the network takes."""
        forward = getattr(sde.net, "_orig_mod", sde.net).forward
        parameters = inspect.signature(forward).parameters.values()
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        names = named[2:]  # after the state and the noise label
        if self._checks_conditions and any(p.kind is p.VAR_KEYWORD for p in parameters):
            names += OWN_CONDITIONS
        return list(dict.fromkeys(names))

    def split(self, item: Any) -> tuple[Any, dict[str, Any]]:
        """The sample and the conditions of an item, or of a batch of items, as they are."""
        if isinstance(item, Mapping):
            if self._sample_key is None:
                self._sample_key = self._find_sample(item)
            condition = dict(item)
            x = condition.pop(self._sample_key)
        else:
            x, *rest = item if isinstance(item, list | tuple) and item else (item,)
            if isinstance(x, Mapping):
                raise TypeError(_dict_advice(x))
            if len(rest) == 1 and isinstance(rest[0], Mapping):
                condition = dict(rest[0])
            else:
                condition = self._name(rest)
        if self._seen is None:
            self._seen = set(condition)
        if set(condition) != self._seen:
            raise ValueError(
                f"an item has the conditions {sorted(condition)} where those before had "
                f"{sorted(self._seen)}"
            )
        return x, condition

    def _name(self, values: Sequence[Any]) -> dict[str, Any]:
        """Name conditions that come without, as those of the first item."""
        if self._unnamed is None:
            self._unnamed = self._find_names(values)
        if len(self._unnamed) != len(values):
            raise TypeError(
                f"an item has {len(values)} conditions where those before had {len(self._unnamed)}"
            )
        return dict(zip(self._unnamed, values, strict=True))

    def _find_names(self, values: Sequence[Any]) -> tuple[str, ...]:
        """The only name that each condition can have, or TypeError."""
        names: list[str] = []
        for value in values:
            fitting = [name for name in self._fitting(value) if name not in names]
            if len(fitting) != 1:
                takes = f"takes {', '.join(self._takes)}" if self._takes else "takes no condition"
                raise TypeError(
                    f"beside x the data have {_unfitting(value)}, and which condition that is "
                    f"can't be told (the network {takes}): name the labels, (x, {{'y': labels}}), "
                    "as in fit(sde, [(x, {'y': y}) for x, y in data]), or leave them out, "
                    "fit(sde, [x for x, _ in data])"
                )
            names += fitting
        return tuple(names)

    def _fitting(self, value: Any) -> list[str]:
        """Names of the conditions that a value can be."""
        if not isinstance(value, Tensor):
            return []
        integers = not value.is_floating_point() and not value.is_complex()
        if value.ndim == 1 and integers and "y" in self._takes:
            return ["y"]  # labels out of range are refused later, by name
        return [
            name for name in self._takes if self._checks_conditions and self._fits(name, value)
        ]

    def _fits(self, name: str, value: Tensor) -> bool:
        """Whether the network accepts a value as a condition."""
        try:
            self._check_accepted({name: value}, len(value))
        except (TypeError, ValueError):
            return False
        return True

    def _find_sample(self, item: Mapping[str, Any]) -> str:
        """The only key of a mapping that is no condition, or TypeError."""
        others = [key for key, value in item.items() if not self._is_condition(key, value)]
        if len(others) != 1:
            raise TypeError(_dict_advice(item))
        return others[0]

    def _is_condition(self, key: str, value: Any) -> bool:
        """Whether an entry of a mapping is a condition of the network."""
        if key not in self._takes:
            return False
        return key == "y" or (isinstance(value, Tensor) and self._fits(key, value))


def _unfitting(value: Any) -> str:
    """What a condition is that fits no name, or several."""
    if isinstance(value, Tensor):
        text = f"{value.dtype} of shape {tuple(value.shape)}"
        if value.ndim == 1 and value.is_floating_point():
            text += " (labels y are integers: y.long())"
        return text
    if isinstance(value, list | tuple) and value and isinstance(value[0], str):
        return f"words such as {value[0]!r}, which are to be numbers from 0 to classes − 1"
    return type(value).__name__


def _dict_advice(item: Mapping[str, Any]) -> str:
    """What to do with items that are dicts, of which no key is clearly the sample."""
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
    whole = _array_shape(item)
    return whole is not None and (whole == shape or _array_shape(item[0]) != shape)


def collated(items: Sequence[Any]) -> Any:
    """Items as a batch of them, as a DataLoader makes it."""
    try:
        return default_collate([_as_arrays(item) for item in items])
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        first = _outline(items[0])
        where = f" ({error_text(error)})"
        for i, item in enumerate(items):
            if _outline(item) != first:
                where = f": item {i} is {_outline(item)}, item 0 is {first}"
                break
        raise ValueError(f"the data's items can't be put together{where}") from None


def _as_arrays(item: Any) -> Any:
    """An item with lists of numbers as arrays, which are collated as a whole."""
    if isinstance(item, Mapping):
        return {key: _list_as_array(value) for key, value in item.items()}
    return tuple(map(_list_as_array, item))


def _list_as_array(value: Any) -> Any:
    """A list of numbers as an array; anything else as it is."""
    return np.asarray(value) if isinstance(value, list | tuple) else value


def _outline(item: Any) -> str:
    """Types and shapes of an item, for messages."""
    if isinstance(item, Mapping):
        return "{" + ", ".join(f"{key!r}: {_outline(value)}" for key, value in item.items()) + "}"
    if isinstance(item, tuple):
        return "(" + ", ".join(map(_outline, item)) + ")"
    shape = _array_shape(item)
    return type(item).__name__ if shape is None else f"{type(item).__name__} of shape {shape}"


def _array_shape(value: Any) -> tuple[int, ...] | None:
    """The shape of an array or of nested lists; None if they have none."""
    try:
        return tuple(value.shape) if hasattr(value, "shape") else np.shape(value)
    except (TypeError, ValueError, RuntimeError):  # such as a list of lists of unequal lengths
        return None
