"""The weights that a description asks for, found before any memory is allocated for them.

A description may come from a stranger, and ask for anything: the network is built on the meta
device, whose tensors have no memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import Embedded
from ..common.inputs import event_shape
from ..common.names import choose
from ..common.registry import Registry
from ..model.condition_scales import vector_shapes
from ..model.factors import root_shape
from ..model.trainable import KINDS, Trainable

Expected = tuple[tuple[int, ...], str]
"""Shape and number type of a weight."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MOST_UNSAVED_NUMBERS = 2**26
"""Numbers in buffers that a network may keep out of its state: no weight of a file bounds them."""

OLDEST = "score_sde"
"""The kind of model that files name by naming none."""

MOST_STRETCH = 1e20
"""Roots of correlations that `fit` measures have eigenvalues far inside (1e-20, 1e20)."""


def expected_weights(
    about: dict[str, Any], count: int, embed: Mapping[str, nn.Module] | None = None
) -> dict[str, Expected]:
    """Shape and number type of every weight, by name, for a file that holds `count` weights."""
    shape = event_shape(about["shape"])
    known = kind_of(about).networks_by_name
    net = _meta_network(known, about["net"]["name"], shape, about["net"]["options"], count)
    net = with_embed(net, about, embed)
    state = net.state_dict()
    unsaved = sum(value.numel() for name, value in net.named_buffers() if name not in state)
    if unsaved > MOST_UNSAVED_NUMBERS:
        raise ValueError(
            f"the network makes {unsaved} numbers that are in no file, more than "
            f"{MOST_UNSAVED_NUMBERS}"
        )
    statistic = shape[:1] + (1,) * (len(shape) - 1)
    wanted: dict[str, Expected] = {
        "mean": (statistic, "float"),
        "scale": (statistic, "float"),
        "measured": ((), _number_type(torch.bool)),
    }
    if about.get("standardize") in ("whiten", "factors"):
        wanted["root"] = (root_shape(shape, about["standardize"]), "float")
    scores = about.get("scored_conditions", {})
    if not isinstance(scores, dict):
        raise ValueError(f"its scores of conditions are no numbers by name: {scores!r}")
    for name, sizes in about.get("conditions", {}).items():
        if (
            not isinstance(sizes, list)
            or len(sizes) > 1
            or not all(type(n) is int and n >= 0 for n in sizes)
        ):
            raise ValueError(f"the standardization of condition {name!r} has no shape {sizes!r}")
        wanted[f"conditions.{name}.mean"] = (tuple(sizes), "float")
        wanted[f"conditions.{name}.scale"] = (tuple(sizes), "float")
        scored = scores.get(name)
        if scored is not None and not (type(scored) is int and 0 <= scored <= sum(sizes)):
            raise ValueError(f"condition {name!r} has scores of {scored!r} entries of {sizes!r}")
        for what, size in vector_shapes(tuple(sizes), scored).items():
            kind = _number_type(torch.long) if what == "entries" else "float"
            wanted[f"conditions.{name}.{what}"] = (size, kind)
    for part in ("net", "ema") if about["averaged"] else ("net",):
        for name, value in state.items():
            wanted[f"{part}.{name}"] = (tuple(value.shape), _number_type(value.dtype))
    return wanted


def with_embed(
    net: nn.Module, about: Mapping[str, Any], embed: Mapping[str, nn.Module] | None
) -> nn.Module:
    """A network whose conditions are made by the user's, if a description says so."""
    facts = about.get("embed")
    if facts is None:
        return net
    if embed is None:
        raise ValueError(
            f"its conditions {facts['names']} are made by networks of yours, which no file holds: "
            "load(folder, embed=net), with networks built as those that were trained"
        )
    if sorted(embed) != sorted(facts["names"]):
        raise ValueError(
            f"its conditions {facts['names']} are made by networks of yours, and embed= has "
            f"{sorted(embed)}"
        )
    return Embedded(net, embed, standardize=bool(facts["standardize"]))


def kind_of(about: Mapping[str, Any]) -> type[Trainable]:
    """The class that a description names; older files, and all of score models, name none."""
    return KINDS[choose("class", about.get("class", OLDEST), KINDS)]


def _meta_network(
    known: Registry[nn.Module],
    name: str,
    shape: tuple[int, ...],
    options: Mapping[str, Any],
    count: int,
) -> nn.Module:
    """Build a network without memory; raise once it has many more weights than `count`."""
    left = 4.0 * count + 100  # constructors may assign a parameter more than once

    def stop(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"the network has many more weights than the {count} in the file")

    handle = None
    try:
        handle = nn.modules.module.register_module_parameter_registration_hook(stop)
        with torch.device("meta"):
            return known.build(name, shape, **options)
    except RuntimeError as error:
        if not (isinstance(error, NotImplementedError) or re.search(r"\bmeta\b", str(error))):
            raise
        # A constructor that reads its numbers can't be built on the meta device.
        return known.build(name, shape, **options)
    finally:
        # The hook is global: should an interrupt keep it from being removed, it does no harm.
        left = math.inf
        if handle is not None:
            handle.remove()


def _number_type(dtype: torch.dtype) -> str:
    """ "float" for all floating-point dtypes, as models may be converted; else the dtype."""
    return "float" if dtype in FLOATS else str(dtype)


def check_weights(wanted: Mapping[str, Expected], tensors: Mapping[str, Tensor]) -> None:
    """Raise unless the tensors are the wanted ones, and their statistics are usable."""
    found = {
        name: (tuple(value.shape), _number_type(value.dtype)) for name, value in tensors.items()
    }
    wrong = sorted({name for name, _ in wanted.items() ^ found.items()})
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights are missing, unknown or of another shape or kind, first "
            f"{wrong[0]!r}"
        )
    _check_conditions(tensors)
    mean = tensors["mean"]
    scale = tensors["scale"]
    finite = mean.isfinite().all() & scale.isfinite().all()
    if not bool(finite & (scale >= 0).all() & (scale > 0).any()):
        raise ValueError(
            "its standardization is not a finite mean and a positive scale (0 for constants)"
        )
    root = tensors.get("root")
    if root is None:
        return
    stretch = _stretches(root)
    if not bool((stretch > 0).all()):
        raise ValueError("the root of its correlations is not a positive definite matrix")
    if not bool(((stretch > 1 / MOST_STRETCH) & (stretch < MOST_STRETCH)).all()):
        raise ValueError(f"the root of its correlations stretches by {MOST_STRETCH:g} or more")


def _check_conditions(tensors: Mapping[str, Tensor]) -> None:
    """Raise unless the statistics of conditions are usable."""
    for name, value in tensors.items():
        place, _, what = name.rpartition(".")
        if not name.startswith("conditions."):
            continue
        if not bool(value.isfinite().all()) or (what == "scale" and bool((value <= 0).any())):
            raise ValueError(
                "the standardization of its conditions is not a finite mean and a positive scale"
            )
        if what == "ends" and not bool((value[0] <= value[1]).all()):
            raise ValueError("the range of its conditions ends before it begins")
        if what == "entries":
            inside = (value.diff() > 0).all() & (value >= 0).all()
            if not bool(inside & (value < len(tensors[f"{place}.mean"])).all()):
                raise ValueError("the scores of its conditions are not of different entries")
        if what in ("knots", "levels") and not bool((value.diff(dim=1) >= 0).all()):
            raise ValueError(f"the {what} of its conditions do not rise")


def _stretches(root: Tensor) -> Tensor:
    """By what a root stretches some directions: not more than 0 if it is none."""
    if root.shape[0] == root.shape[1]:
        found: Tensor = torch.linalg.eigvalsh(_symmetric(root))
        return found
    root = root.double()
    if not bool(root.isfinite().all()):
        return torch.zeros(1)
    v = root[:, 1:]
    return torch.cat([root[:, 0], 1 + torch.linalg.eigvalsh(v.T @ v).clamp_min(0)])


def _symmetric(root: Tensor) -> Tensor:
    """A finite symmetric matrix in float64; one of zeros for any other."""
    root = root.double()
    symmetric = bool(root.isfinite().all()) and torch.allclose(root, root.T, atol=1e-6)
    return root if symmetric else torch.zeros_like(root)
