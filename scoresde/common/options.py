"""Options that an object was built with, remembered so that a file can say how to rebuild it."""

from __future__ import annotations

import functools
import inspect
from typing import Any


def remember_options(cls: type) -> None:
    """Wrap `cls.__init__`: instances keep their arguments, by name, in `_options`."""
    init = cls.__init__  # type: ignore[misc]
    plain = init is object.__init__
    signature = inspect.Signature() if plain else inspect.signature(init)
    if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        raise TypeError(
            f"{cls.__name__} takes *args, which can't be saved by name; give its options names"
        )

    @functools.wraps(init)
    def remembering(self: Any, *args: Any, **kwargs: Any) -> None:
        # Bound before the call, so that wrong arguments raise Python's own error.
        bound = signature.bind(*args, **kwargs) if plain else signature.bind(self, *args, **kwargs)
        arguments = list(bound.arguments.items())
        options = {name: _own_copy(value) for name, value in arguments[not plain :]}
        init(self, *args, **kwargs)
        if type(self) is cls:
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    options |= options.pop(name, {})
            object.__setattr__(self, "_options", options)

    cls.__init__ = remembering  # type: ignore[misc]


def _own_copy(value: Any) -> Any:
    """A copy of nested lists, tuples and dicts that the caller can't change later."""
    if type(value) in (list, tuple):
        return type(value)(map(_own_copy, value))
    if type(value) is dict:
        return {key: _own_copy(each) for key, each in value.items()}
    return value
