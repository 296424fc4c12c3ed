"""Options of backbones: lists of integers, and dataclasses of options as keywords."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from ..common.checks import brief_repr, whole_number

F = TypeVar("F", bound=Callable[..., None])

MOST_ENTRIES = 64  # of a list; a file may ask for any length


def whole_numbers(name: str, values: object, example: str) -> list[int]:
    """Return values if they are a list or tuple of positive integers; raise otherwise."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TypeError(
            f"{name} is a list or tuple of integers such as {example}, got {brief_repr(values)}"
        )
    if len(values) > MOST_ENTRIES:
        raise ValueError(
            f"{name} has {len(values)} entries, at most {MOST_ENTRIES} make sense; try {example}"
        )
    return [whole_number(name, value) for value in values]


def takes_options(options: Any) -> Callable[[F], F]:
    """Give an __init__(self, shape, **options) the fields of a dataclass as arguments."""

    def decorate(init: F) -> F:
        # registries check and save options by the names in the signature
        known = inspect.signature(init).parameters.values()
        parameters = [p for p in known if p.kind is not p.VAR_KEYWORD]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters += [
            inspect.Parameter(field.name, kind, default=field.default, annotation=field.type)
            for field in dataclasses.fields(options)
        ]
        signature = inspect.Signature(parameters)

        @functools.wraps(init)
        def bound(*args: Any, **kwargs: Any) -> None:
            init(**signature.bind(*args, **kwargs).arguments)

        bound.__signature__ = signature  # type: ignore[attr-defined]
        return cast(F, bound)

    return decorate
