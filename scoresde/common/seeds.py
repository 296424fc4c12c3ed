"""`seed=` in place of `generator=`: an integer for the generator that it makes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypedDict, TypeVar

import torch

from .checks import check_seed

P = ParamSpec("P")
T = TypeVar("T")


class Randomness(TypedDict, total=False):
    """Generator or seed of a call, for functions whose arguments are many."""

    generator: torch.Generator | None
    seed: int | None


def takes_seed(verb: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function with `generator=` and `seed=`: it receives a generator only.

    A seed is torch.Generator(device).manual_seed(seed), on the device of the first argument that
    has one.
    """
    signature = inspect.signature(verb)
    if "generator" not in signature.parameters:
        signature = _spelt_out(verb)

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        seed = kwargs.pop("seed", None)
        if seed is None:
            return verb(*args, **kwargs)
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
        except TypeError:
            return verb(*args, **kwargs)  # raises the TypeError
        if given.get("generator") is not None:
            raise TypeError("give seed= or generator=, not both: a seed makes a generator")
        made = torch.Generator(_device(given.values())).manual_seed(check_seed(seed))
        if "generator" in given:  # None, passed by position
            given["generator"] = made
            bound = inspect.BoundArguments(signature, given)
            return verb(*bound.args, **bound.kwargs)
        kwargs["generator"] = made
        return verb(*args, **kwargs)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _spelt_out(verb: Callable[..., object]) -> inspect.Signature:
    """A function's signature, with the arguments that `**how: Unpack[...]` stands for."""
    signature = inspect.signature(verb)
    *first, how = signature.parameters.values()
    named = str(how.annotation).removeprefix("Unpack[").removesuffix("]")
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=getattr(held, "__forward_arg__", held),
        )
        for name, held in verb.__globals__[named].__annotations__.items()
    ]
    return signature.replace(parameters=[*first, *added])


def _device(values: Iterable[object]) -> torch.device:
    """The device of the first model or tensor; the CPU if none has one, or the meta device."""
    for value in values:
        device = getattr(getattr(value, "sde", value), "device", None)
        if isinstance(device, torch.device) and device.type != "meta":
            return device
    return torch.device("cpu")
