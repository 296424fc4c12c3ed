"""Models from descriptions and weights: built from registered classes, and from nothing else.

No file is trusted: it names classes that are registered and imported already, and never runs code.
Old files, with other words or fewer weights, are read here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import CheckpointError, one_line
from ..common.inputs import event_shape
from ..common.modules import duplicate
from ..common.plugins import loaded_only
from ..common.user_warnings import warn
from ..model.schema import Schema
from ..model.tables.fitting import check_network
from ..model.tables.schema import TableSchema
from ..model.trainable import Trainable
from .description import COMPILED
from .expected import Expected, check_weights, expected_weights, kind_of, with_embed
from .features import with_features
from .older_files import with_gaussians
from .parts import rebuild_parts

_NETS = ("net.", "ema.")
_NULL_CONDITION = re.compile(r"(^|\.)null_(vector|image)$")
"""Weights learnt in place of an absent condition, which older files lack."""
_CROSS_ATTENTION = re.compile(r"\.to_[kv]\.weight$")
"""Weights of diffusers' networks that attend to a condition; older files have a column less."""
_UNBUILDABLE = (
    ImportError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)
"""What building a model from a wrong description may raise."""


@loaded_only()  # a file must not choose what is imported
def rebuild(
    about: Any,
    tensors: Mapping[str, Tensor],
    where: str = "the description",
    embed: Mapping[str, nn.Module] | None = None,
) -> Any:
    """Build a model from a description and weights, neither of them trusted; in eval mode."""
    try:
        if "parts" in about:
            return rebuild_parts(about, tensors, embed, rebuild)
        about = with_features(about, tensors)
        wanted = expected_weights(about, len(tensors), embed)
        tensors = _without_wrappers(tensors, wanted)
        tensors = with_gaussians(tensors, wanted)
        filled = _fill_null_conditions(tensors, wanted)
        if filled is not tensors:
            tensors = filled
            warn(
                f"{where} is of a version for which a condition of zeros and none are the same: "
                "fit it anew to tell them apart",
            )
        check_weights(wanted, tensors)
        with torch.device("cpu"), torch.inference_mode(False):
            sde = _build(about, embed)
        _convert_networks(sde, tensors)
        sde.load_state_dict(tensors)
    except _UNBUILDABLE as error:
        raise CheckpointError(
            f"{where} does not describe a model that can be built here: {one_line(error)}"
        ) from None
    return sde.eval()


def _build(about: dict[str, Any], embed: Mapping[str, nn.Module] | None) -> Trainable:
    """Build what the JSON describes, with weights yet to come."""
    shape = event_shape(about["shape"])
    kind = kind_of(about)
    net = kind.networks_by_name.build(about["net"]["name"], shape, **about["net"]["options"])
    if embed is not None:
        embed = {name: duplicate(module) for name, module in embed.items()}
    net = with_embed(net, about, embed)
    sde = kind.rebuilt(net, shape, about)
    sde.schema = Schema.rebuild(about.get("schema"), shape)
    sde.table = TableSchema.rebuild(about.get("table"), shape)
    if sde.table is not None:
        check_network(sde, sde.table)
    if about["averaged"]:
        sde.ema = duplicate(net).requires_grad_(False)
    for name, sizes in about.get("conditions", {}).items():
        scored = about.get("scored_conditions", {}).get(name)
        sde.conditions.blank(name, tuple(sizes), scored=scored)
    sde.learnt = _checked_learnt(about.get("learnt"))
    return sde


def _checked_learnt(about: Any) -> dict[str, Any] | None:
    """What `fit` recorded of conditions, in plain types."""
    if about is None:
        return None
    conditions = {
        str(name): [int(n) for n in shape] for name, shape in about["conditions"].items()
    }
    return {"conditions": conditions, "unconditional": bool(about["unconditional"])}


def _convert_networks(sde: Trainable, tensors: Mapping[str, Tensor]) -> None:
    """Convert the networks to the dtypes of a file; unsaved buffers follow the first weight."""
    parts = [*sde.named_parameters(), *sde.named_buffers()]
    parts = [(name, value) for name, value in parts if name.startswith(_NETS)]
    converted: dict[torch.dtype, torch.dtype] = {}
    for name, value in parts:
        if name in tensors:
            converted.setdefault(value.dtype, tensors[name].dtype)
    for name, value in parts:
        if name in tensors:
            dtype = tensors[name].dtype
        else:
            dtype = converted.get(value.dtype, value.dtype)
        value.data = value.data.to(dtype)


def _without_wrappers(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Expected]
) -> dict[str, Tensor]:
    """Tensors by the wanted names, where theirs differ only by wrappers of the network."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name not in wanted:
            name = COMPILED.sub("", name)
        # A network may have a part called "module": strip that only where the name is not wanted.
        while name not in wanted and re.match(r"(net|ema)\.module\.", name):
            name = name.replace("module.", "", 1)
        if name in found:
            raise ValueError(f"two weights are both {name!r}")
        found[name] = value
    return found


def _fill_null_conditions(
    tensors: dict[str, Tensor], wanted: Mapping[str, Expected]
) -> dict[str, Tensor]:
    """Tensors of an older file with zeros for absent conditions; the same dict if none lack."""
    found = dict(tensors)
    for name, (shape, _) in wanted.items():
        here = tensors.get(name)
        if here is None and _NULL_CONDITION.search(name):
            same_net = [value for other, value in tensors.items() if other.startswith(name[:4])]
            dtype = same_net[0].dtype if same_net else torch.float32
            found[name] = torch.zeros(shape, dtype=dtype)
        elif here is not None and _CROSS_ATTENTION.search(name) and here.ndim == 2:
            rows, columns = here.shape
            if (rows, columns + 1) == shape:
                found[name] = torch.cat([here, here.new_zeros(rows, 1)], 1)
    same = found.keys() == tensors.keys() and all(
        found[name] is value for name, value in tensors.items()
    )
    return tensors if same else found
