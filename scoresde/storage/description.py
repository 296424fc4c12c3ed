"""What a model is built from, as plain JSON, and its weights by name."""

from __future__ import annotations

import inspect
import json
import numbers
import re
from typing import Any

from torch import Tensor

from ..backbones import Embedded
from ..backbones.base import unwrapped
from ..model.joint import Joint
from ..model.trainable import Trainable
from .expected import OLDEST, check_weights, expected_weights
from .features import with_features
from .parts import describe_parts

CONDITION_FACTS = ("conditions", "scored_conditions", "learnt")
"""Entries of a description that hold what `fit` found of the data's conditions."""

COMPILED = re.compile(r"(?<![^.])_orig_mod\.")
"""What `torch.compile` puts into the names of weights."""


def describe(sde: Trainable) -> dict[str, Any]:
    """What a model is built from, in plain JSON, checked: a model can be built from it."""
    if isinstance(sde, Joint):
        return {**describe_parts(sde, describe), **condition_facts(sde)}
    if sde.condition:
        raise ValueError(
            f"conditions {sorted(sde.condition)} are not saved: save the model that given(...) was "
            "called on"
        )
    net = unwrapped(sde.net)
    embed = None
    if type(net) is Embedded:  # its conditions are made by networks that no file names
        embed = dict(net.embed.items())
        facts = {"embed": {"names": sorted(embed), "standardize": net.standardize}}
        net = unwrapped(net.net)
    else:
        facts = {}
    known = sde.networks_by_name
    name = known.name_of(net)
    options = known.options_of(net)
    shape_argument = next(iter(inspect.signature(known[name]).parameters), "")
    options.pop(shape_argument, None)
    about: dict[str, Any] = {
        **sde.described(),
        "net": {"name": name, "options": options},
        "shape": list(sde.shape),
        "averaged": sde.ema is not None,
        "standardize": sde.standardize_by,
        **condition_facts(sde),
        **facts,
    }
    if sde.stored_as != OLDEST:
        about["class"] = sde.stored_as
    schema = sde.schema.describe()
    if schema:
        about["schema"] = schema
    if sde.table is not None:
        about["table"] = sde.table.describe()
    try:
        # As it will be read: tuples are lists.
        about = json.loads(json.dumps(about, allow_nan=False, default=_python_number))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"a model is saved as names and options in JSON, and one option is not plain: {error}"
        ) from None
    tensors = weights(sde)
    about = with_features(about, tensors)  # of a pickle of an earlier version
    try:
        check_weights(expected_weights(about, len(tensors), embed), tensors)
    except (ValueError, TypeError, RuntimeError) as error:
        raise TypeError(
            f"this model can't be rebuilt from its names and options, so it is not saved: {error}"
        ) from error
    return about


def condition_facts(sde: Trainable) -> dict[str, Any]:
    """What `fit` found of the data's conditions, in plain JSON; empty entries are left out."""
    shapes = {name: list(shape) for name, shape in sde.conditions.known().items()}
    about = {
        "conditions": shapes,
        "scored_conditions": sde.conditions.scored(),
        "learnt": sde.learnt,
    }
    return {name: value for name, value in about.items() if value}


def weights(sde: Trainable) -> dict[str, Tensor]:
    """All tensors of a model by name: network, averaged network, standardization."""
    parts = {"net.": unwrapped(sde.net)}
    if sde.ema is not None:
        parts["ema."] = unwrapped(sde.ema)
    state = sde.state_dict()
    found = {name: value for name, value in state.items() if not name.startswith(("net.", "ema."))}
    for prefix, net in parts.items():
        found |= {prefix + name: value for name, value in net.state_dict().items()}
    return {COMPILED.sub("", name): value.detach() for name, value in found.items()}


def _python_number(value: object) -> int | float:
    """A number of numpy's as one of Python's."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} {value!r}")
