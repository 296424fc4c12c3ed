"""The keywords of `fit` in version 0.1, translated for one more version."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ..common.checks import as_path, true_or_false, whole_number
from ..common.user_warnings import warn
from .denoising import Denoising, Distilled
from .noise_levels import check_noise
from .objectives import Objective
from .options import (
    EVERY_STEPS,
    HALF_LIFE_STEPS,
    Averaging,
    Backend,
    Checkpoints,
    Validation,
    as_averaging,
    as_validation,
)
from .regression import check_weight

P = ParamSpec("P")
T = TypeVar("T")

OLD = {
    "weight": "objective",
    "noise": "objective",
    "patience": "validation",
    "snapshots": "ema",
    "out": "checkpoints",
    "every": "checkpoints",
    "resume": "checkpoints",
    "compile": "backend",
    "accelerator": "backend",
}
"""Old keywords, and the new ones for each."""


def old_keywords_translated(verb: Callable[P, T]) -> Callable[P, T]:
    """Let `fit` take its old keywords too, with a DeprecationWarning that says what to write."""

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if OLD.keys().isdisjoint(kwargs):
            return verb(*args, **kwargs)
        sde: Any = args[0] if args else kwargs.get("sde")
        process = getattr(sde, "process", None)
        usual = getattr(process, "objective", "denoising")
        return verb(*args, **translated(kwargs, usual))

    return call


def translated(keywords: dict[str, Any], usual: str = "denoising") -> dict[str, Any]:
    """Return keywords in the form of today, and warn about old ones; `usual` is the objective."""
    new = {name: value for name, value in keywords.items() if name not in OLD}
    old = {name: value for name, value in keywords.items() if name in OLD}
    _check(old, new)
    made: dict[str, Any] = {}
    objective = _objective(old, new.get("objective"), usual)
    if objective is not None:
        made["objective"] = objective
    every = old.get("every", EVERY_STEPS)
    held_out = as_validation(new.get("validation"), every)
    if isinstance(held_out, Validation) and not old.keys().isdisjoint(
        ("patience", "every", "out")
    ):
        patience = old.get("patience", held_out.patience)
        made["validation"] = dataclasses.replace(held_out, patience=patience)
    if old.get("snapshots"):
        half_life = as_averaging(new.get("ema", HALF_LIFE_STEPS)).half_life
        made["ema"] = Averaging(half_life, old["snapshots"])
    if old.get("out") is not None:
        made["checkpoints"] = Checkpoints(old["out"], every, old.get("resume", False))
    if old.get("compile") or old.get("accelerator") is not None:
        made["backend"] = Backend(old.get("accelerator"), old.get("compile", False))
    if old:
        written = ", ".join(f"{name}={value!r}" for name, value in made.items())
        names = ", ".join(f"{name}=" for name in old)
        instead = f"write fit(..., {written})" if made else "leave them out"
        warn(
            f"{names}: these keywords of fit go after this version; {instead}", DeprecationWarning
        )
    return new | made


def _check(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise for old keywords of the wrong type, without what they need, or beside new ones."""
    whole_number("every", old.get("every", EVERY_STEPS))
    whole_number("snapshots", old.get("snapshots", 0), 0)
    for name in ("resume", "compile"):
        true_or_false(name, old.get(name, False))
    if old.get("patience") is not None:
        whole_number("patience", old["patience"])
        if isinstance(new.get("validation"), str | None):
            raise ValueError("patience= goes with validation=, whose loss it watches")
    if old.get("out") is not None:
        as_path(old["out"], "out")
    elif old.get("resume") or old.get("snapshots"):
        name = "resume" if old.get("resume") else "snapshots"
        if new.get("checkpoints") is None:
            raise ValueError(f"{name}= needs a folder; give it as checkpoints=")
    ready = (
        ("objective", Objective, ("weight", "noise")),
        ("validation", Validation, ("patience", "every")),
        ("ema", Averaging, ("snapshots",)),
        ("checkpoints", object, ("out", "every", "resume")),
        ("backend", object, ("compile", "accelerator")),
    )
    for name, kind, replaced in ready:
        both = [each for each in replaced if each in old]
        if both and new.get(name) is not None and isinstance(new[name], kind):
            raise TypeError(f"{both[0]}= is now part of {name}=; write both in one, {name}=...")


def _objective(old: dict[str, Any], named: Any, usual: str) -> Denoising | Distilled | None:
    """Return the objective for the old keywords weight= and noise=."""
    weight = old.get("weight", "edm")
    noise = old.get("noise")
    check_weight(weight)
    steps = re.fullmatch(r"nodes:0*([1-9]\d{0,8})", noise) if isinstance(noise, str) else None
    if noise is not None and steps is None:
        check_noise(noise)
    if (weight, noise) == ("edm", None):
        return None
    if (usual if named is None else named) != "denoising":
        raise ValueError(
            "weight= and noise= are of objective='denoising'; "
            f"{usual if named is None else named!r} has its own"
        )
    return Distilled(int(steps[1]), weight) if steps else Denoising(weight, noise)
