"""Checkpoints of joint training: a first stage and a score model in one record.

The record of a `Joint` has the descriptions of both parts under "parts". What the data decide
stands beside them, as in any other description. It is read as the `Latent` of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..common.inputs import event_shape
from ..model.joint import LATENTS, STAGE, Joint
from ..model.latent import Latent
from ..model.schema import Schema
from ..model.trainable import Trainable

DECIDED = ("averaged", "conditions", "scored_conditions", "learnt", "schema")
"""Entries of a part's description that stand beside both parts, or that training changes."""


def describe_parts(sde: Joint, describe: Callable[[Trainable], dict[str, Any]]) -> dict[str, Any]:
    """The descriptions of both parts, in plain JSON, checked."""
    parts = {}
    for name, part in sde.parts().items():
        about = describe(part)
        parts[name] = {key: value for key, value in about.items() if key not in DECIDED}
    about = {"parts": parts, "shape": list(sde.shape), "averaged": sde.ema is not None}
    schema = sde.schema.describe()
    return {**about, "schema": schema} if schema else about


def rebuild_parts(
    about: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    embed: Mapping[str, nn.Module] | None,
    rebuild: Callable[..., Trainable],
) -> Latent:
    """The `Latent` of a description and of weights, neither of them trusted."""
    names = Schema.rebuild(about.get("schema"), event_shape(about["shape"]))
    of_latents = Schema(words=names.words, parts=names.parts)
    facts = {
        STAGE: {"schema": Schema(names.columns).describe()},
        LATENTS: {
            "schema": of_latents.describe(),
            "conditions": about.get("conditions", {}),
            "scored_conditions": about.get("scored_conditions", {}),
            "learnt": about.get("learnt"),
        },
    }
    networks = {STAGE: None, LATENTS: embed}
    made: dict[str, Any] = {}
    for name in (STAGE, LATENTS):
        part = {**about["parts"][name], "averaged": about["averaged"], **facts[name]}
        where = f"the {name} of a joint training"
        made[name] = rebuild(part, _of_part(name, tensors), where, networks[name])
    return Latent(made[STAGE], made[LATENTS])


def _of_part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part, by the names that they have in a record of its own."""
    prefixes = {f"net.{name}.": "net.", f"ema.{name}.": "ema.", f"{name}_": ""}
    if name == STAGE:
        prefixes |= {whole: whole for whole in ("mean", "scale", "root")}
    else:
        prefixes |= {"conditions.": "conditions."}
    found = {}
    for key, value in tensors.items():
        for prefix, own in prefixes.items():
            if key.startswith(prefix):
                found[own + key.removeprefix(prefix)] = value
    return found
