"""Mean and scale of numeric conditions, per first axis: entry of a vector, channel of an image.

`fit` measures them in one pass over the data, and the model keeps them beside those of the data;
the network is given (c − mean)/scale. Labels are not standardized. An entry that does not vary has
its own size as scale, or 1 if it is 0: the network sees 0, and rounding errors stay small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..common.inputs import as_condition
from ..common.user_warnings import warn
from .standardization import wide

CPU = torch.device("cpu")


class ConditionScales(nn.Module):
    """Means and scales by condition, in float64 whatever dtype the model is converted to."""

    def known(self) -> dict[str, tuple[int, ...]]:
        """Return the conditions that were measured, with the shapes of their statistics."""
        return {name: tuple(mean.shape) for name, (mean, _) in self._pairs()}

    def put(self, name: str, mean: Tensor, scale: Tensor) -> None:
        """Keep mean and scale of a condition; raise if they are not finite."""
        if not bool(mean.isfinite().all() & scale.isfinite().all() & (scale > 0).all()):
            raise ValueError(
                f"condition {name!r} has numbers too large to be standardized: divide them by a "
                "constant"
            )
        part = nn.Module()
        part.register_buffer("mean", mean.detach().clone())
        part.register_buffer("scale", scale.detach().clone())
        self._modules[name] = part

    def settle(self, name: str, mean: Tensor, std: Tensor, varies: Tensor) -> None:
        """Keep measured statistics of a condition; constants are scaled by their own size."""
        size = mean.abs()
        constant = torch.where(size > 0, size, 1.0)
        self.put(name, mean, torch.where(varies, std, constant))

    def blank(self, name: str, shape: tuple[int, ...], device: torch.device = CPU) -> None:
        """Make room for mean and scale of a condition that a file holds."""
        one = torch.ones(shape, dtype=wide(device), device=device)
        self.put(name, 0 * one, one)

    def make_room(self, state: Mapping[str, Any], prefix: str, device: torch.device) -> None:
        """Make room for the statistics that a state holds under a prefix."""
        for key, value in state.items():
            place, _, what = key.rpartition(".")
            name = place.removeprefix(prefix)
            if place.startswith(prefix) and what == "mean" and name not in self.known():
                self.blank(name, tuple(value.shape), device)

    def keep(self, names: set[str]) -> None:
        """Forget all other conditions."""
        for name in set(self.known()) - names:
            del self._modules[name]

    def standardize(self, name: str, value: Tensor) -> Tensor:
        """Return (c − mean)/scale in float64, or the condition as it is if it was not measured."""
        part = self._modules.get(name)
        if part is None:
            return value
        learnt = tuple(part.mean.shape)  # type: ignore[arg-type]
        got = tuple(value.shape[1 : 1 + len(learnt)])
        if got != learnt:
            raise ValueError(
                f"condition {name!r} has shape {tuple(value.shape)}, and the model has learnt with "
                f"{learnt[0]} entries along its second axis"
            )
        mean = _like_rows(part.mean, value)  # type: ignore[arg-type]
        scale = _like_rows(part.scale, value)  # type: ignore[arg-type]
        return (value.to(mean.dtype) - mean) / scale

    def _pairs(self) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """Names with (mean, scale)."""
        for key, part in self._modules.items():
            if part is not None:
                yield key, (part.mean, part.scale)  # type: ignore[misc]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConditionScales:
        """Move to a device, as `nn.Module` does, but keep the dtype."""
        for part in self._modules.values():
            buffers = {} if part is None else part._buffers
            for name, value in buffers.items():
                if value is None:
                    continue
                device = fn(torch.empty(0, device=value.device)).device
                if value.is_meta:
                    buffers[name] = torch.empty_like(value, device=device)
                elif device.type == "mps":
                    buffers[name] = value.to(device, wide(device))
                else:
                    buffers[name] = value.to(device)
        return self


def _like_rows(statistic: Tensor, value: Tensor) -> Tensor:
    """Numbers per first axis in a shape, and on a device, to subtract from rows of values."""
    shape = statistic.shape + (1,) * (value.ndim - 1 - statistic.ndim)
    return statistic.to(value.device).reshape(shape)


def checked(sde: Any, condition: Mapping[str, Any], rows: int | None = None) -> dict[str, Tensor]:
    """Conditions as tensors of one row for all or one a sample; with `rows`, of so many."""
    sde.interface.check_names(condition)
    learnt = {} if sde.learnt is None else sde.learnt["conditions"]
    shapes = {name: tuple(shape) for name, shape in learnt.items()}
    shapes |= sde.interface.condition_shapes or {}
    found = {}
    for name, given in condition.items():
        if name == "y" and isinstance(given, Mapping) and sde.table is not None:
            given = sde.table.label(given)
        value = as_condition(sde.schema.condition(name, given), name)
        shape = shapes.get(name)
        one_for_all = value.ndim == 0 or tuple(value.shape) == shape
        if rows is None and one_for_all:
            value = value[None]
        numbers = value.ndim == 1 and shape == (1,)
        if numbers:
            value = value[:, None]
        if rows is not None and value.shape[:1] != (rows,):
            raise ValueError(
                f"condition {name!r} has shape {tuple(value.shape)} for {rows} samples"
            )
        found[name] = value
    # The network checks values once, here, rather than at every evaluation.
    sde.interface.check_values(found)
    return found


def standardized(
    sde: Any, condition: Mapping[str, Tensor], net: nn.Module | None = None
) -> dict[str, Tensor]:
    """Conditions as the network is given them: (c − mean)/scale, in a dtype that it takes."""
    if not condition:
        return {}
    net = sde.net if net is None else net
    weight = next(net.parameters(), None)
    found = {}
    for name, value in condition.items():
        value = sde.conditions.standardize(name, value)
        if weight is not None and value.is_floating_point() and weight.is_floating_point():
            least = torch.float32 if sde.interface.wide_inputs else weight.dtype
            value = value.to(torch.promote_types(weight.dtype, least))
        found[name] = value
    return found


def warn_lacking(sde: Any, condition: Mapping[str, Tensor]) -> None:
    """Warn once that a model lacks conditions that it was fitted with; raise if it cannot do so."""
    if sde.learnt is None or sde._warned:
        return
    lacking = [name for name in sde.learnt["conditions"] if name not in condition]
    if not lacking:
        return
    names = " and ".join(lacking)
    line = f"sde.given({', '.join(f'{name}=...' for name in lacking)})"
    if sde.learnt["unconditional"]:
        them = "it" if len(lacking) == 1 else "them"
        warn(
            f"this model has learnt with {names} and is not given {them}: it uses the distribution "
            f"over all of them; {line} conditions it, and sde.given() silences this warning"
        )
    elif sde.interface.drop is not None:
        raise ValueError(
            f"this network has learnt with condition_dropout=0, always with {names}: write {line}"
        )
    else:
        warn(f"this model has learnt always with {names}, and means nothing without: write {line}")
    sde._warned = True
