"""Copies of networks that hold computed tensors, or tensors of inference mode."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copy_memo(module: nn.Module) -> dict[int, object]:
    """A memo for `copy.deepcopy` with tensors that it refuses: those that hooks computed."""
    held = [
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor)
    ]
    return {id(value): value.detach().clone() for value in held if not value.is_leaf}


def duplicate(module: Module) -> Module:
    """A deep copy of a module, which may hold tensors that are no leaves."""
    return copy.deepcopy(module, copy_memo(module))


@torch.inference_mode(False)
def leave_inference(module: nn.Module) -> None:
    """Replace a module's tensors of inference mode, which no gradient passes, by copies."""
    copies: dict[int, Any] = {}

    def ordinary(value: Tensor) -> Any:
        if id(value) not in copies:
            new = value.detach().clone()
            is_parameter = isinstance(value, nn.Parameter)
            copies[id(value)] = nn.Parameter(new, value.requires_grad) if is_parameter else new
        return copies[id(value)]

    for part in module.modules():
        for held in (part._parameters, part._buffers, vars(part)):
            for name, value in list(held.items()):
                if isinstance(value, Tensor) and value.is_inference():
                    held[name] = ordinary(value)
