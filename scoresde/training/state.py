"""The parts of a run's state, by the names that they have in a checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..model.trainable import Trainable
from ..storage.models import PREFIX
from ..storage.older_files import missing_in_older
from .averaging import Weights, whole_tensor

NET = PREFIX + "net."
EMA = PREFIX + "ema."
CONDITIONS = PREFIX + "conditions."
MOMENTS = ("exp_avg", "exp_avg_sq")


def named(weights: Weights, parts: list[Tensor], prefix: str) -> dict[str, Tensor]:
    """Return tensors laid out as `parts`, by the names of the parameters after a prefix."""
    views = weights.named(parts)
    return {prefix + name: whole_tensor(value) for name, value in views.items()}


def model_tensors(sde: Trainable, averaged_net: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors as `load` reads them, and buffers that its networks do not save."""
    found = {PREFIX + name: value for name, value in sde.statistics().items()}
    found |= {CONDITIONS + name: value for name, value in sde.conditions.named_buffers()}
    for prefix, net in ((NET, sde.net), (EMA, averaged_net)):
        for name, value in net.state_dict().items():
            found[prefix + name] = whole_tensor(value)
    saved = sde.net.state_dict().keys()
    for name, value in sde.net.named_buffers():
        if name not in saved:
            found[f"buffer.{name}"] = value
    return found


def optimizer_tensors(optimizer: Any, weights: Weights) -> dict[str, Tensor]:
    """Return the moments of Adam, by the names of the parameters."""
    optimizer = _inner(optimizer)
    states = [optimizer.state[p] for p in weights.parts]
    found: dict[str, Tensor] = {}
    for key in MOMENTS:
        parts = [
            state.get(key, torch.zeros_like(p.detach()))
            for state, p in zip(states, weights.parts, strict=True)
        ]
        found |= named(weights, parts, f"optimizer.{key}.")
    found["optimizer.step"] = max((state["step"] for state in states if state), key=float)
    return found


def check(found: Mapping[str, Any], sde: Trainable, weights: Weights) -> None:
    """Raise ValueError unless a state is of this network, with the same weights trained."""
    trained = weights.named([p.detach() for p in weights.parts])
    wanted = sde.net.state_dict()
    for name in missing_in_older(wanted, found, NET):
        del wanted[name]
    _check_shapes(found, NET, wanted)
    _check_shapes(found, f"optimizer.{MOMENTS[0]}.", trained)


def _check_shapes(found: Mapping[str, Any], prefix: str, wanted: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless tensors after a prefix have the names and shapes wanted."""
    theirs = {
        (name.removeprefix(prefix), tuple(value.shape))
        for name, value in found.items()
        if name.startswith(prefix)
    }
    ours = {(name, tuple(value.shape)) for name, value in wanted.items()}
    wrong = sorted({name for name, _ in theirs ^ ours})
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights are missing, unknown, frozen or of another shape, first "
            f"{wrong[0]!r}"
        )


@torch.no_grad()
def load_model(found: Mapping[str, Any], sde: Trainable, averaged_net: nn.Module) -> None:
    """Give a model its statistics, conditions, and the weights and buffers that do not train."""
    device = sde.scale.device
    for name, value in sde.statistics().items():
        value.copy_(found[PREFIX + name])
    described = found.get("model") or {}
    # version 0.1 has it in the model's description alone
    sde.learnt = found["learnt"] if "learnt" in found else described.get("learnt")
    sde.conditions.read(found, CONDITIONS, device)
    for net in (sde.net, averaged_net):
        for name, value in itertools.chain(net.named_parameters(), net.named_buffers()):
            if not value.requires_grad and NET + name in found:
                value.copy_(found[NET + name])
    for name, value in sde.net.named_buffers():
        if f"buffer.{name}" in found:
            value.copy_(found[f"buffer.{name}"])


def load_optimizer(found: Mapping[str, Any], optimizer: Any, weights: Weights) -> None:
    """Give Adam its moments and its step."""
    optimizer = _inner(optimizer)
    moments = {key: [torch.zeros_like(p.detach()) for p in weights.parts] for key in MOMENTS}
    for key, parts in moments.items():
        weights.fill(parts, found, f"optimizer.{key}.")
    for i, p in enumerate(weights.parts):
        step = found["optimizer.step"].clone()
        if optimizer.defaults["fused"]:
            step = step.to(p.device)
        optimizer.state[p] = {"step": step, **{key: parts[i] for key, parts in moments.items()}}


def of_all_ranks(position: Mapping[str, int], world: int) -> dict[str, int]:
    """Return a position in the data over all ranks, which take turns at a loader's batches."""
    return {k: v * world if k == "batch" else v for k, v in position.items()}


def of_one_rank(position: Mapping[str, int], world: int) -> dict[str, int]:
    """Return the position of one rank; the inverse of `of_all_ranks`."""
    return {k: -(-v // world) if k == "batch" else v for k, v in position.items()}


def _inner(optimizer: Any) -> Any:
    """Return the optimizer that Accelerate has wrapped, or itself."""
    return getattr(optimizer, "optimizer", optimizer)
