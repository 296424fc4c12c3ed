"""Mean and scale of numeric conditions, per first axis of a condition (entry of a vector, channel of an image).

`fit` measures them in one pass over the data and keeps them in the model, as those of the data are; the network is shown
(c − mean)/scale. Labels are not standardized. An entry that does not vary has its own size as scale, or 1 if it is 0, so
that it is 0 in training, and rounding of it stays small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")


class ConditionScales(nn.Module):
    """Means and scales by the name of a condition, in float64 whatever dtype the model is converted to."""

    def known(self) -> dict[str, tuple[int, ...]]:
        """Return the names of the conditions that were measured, with the shape of their statistics."""
        return {name: tuple(mean.shape) for name, (mean, _) in self._pairs()}

    def put(self, name: str, mean: Tensor, scale: Tensor) -> None:
        """Keep mean and scale of a condition."""
        if not bool(mean.isfinite().all() & scale.isfinite().all() & (scale > 0).all()):
            raise ValueError(f"condition {name!r} has numbers too large to be standardized: divide them by a constant")
        part = nn.Module()
        part.register_buffer("mean", mean.detach().clone())
        part.register_buffer("scale", scale.detach().clone())
        self._modules[name] = part

    def settle(self, name: str, mean: Tensor, std: Tensor, varies: Tensor) -> None:
        """Keep what was measured of a condition."""
        size = mean.abs()
        self.put(name, mean, torch.where(varies, std, torch.where(size > 0, size, 1.0)))

    def blank(self, name: str, shape: tuple[int, ...], device: torch.device = CPU) -> None:
        """Make room for mean and scale of a condition that a file holds."""
        one = torch.ones(shape, dtype=_dtype(device), device=device)
        self.put(name, 0 * one, one)

    def keep(self, names: set[str]) -> None:
        """Forget all other conditions."""
        for name in set(self.known()) - names:
            del self._modules[name]

    def standardize(self, name: str, value: Tensor) -> Tensor:
        """Return (c − mean)/scale in float64, or the condition as it is if it was not measured."""
        part = self._modules.get(name)
        if part is None:
            return value
        mean, scale = (_like_rows(getattr(part, what).to(value.device), value) for what in ("mean", "scale"))
        return (value.to(mean.dtype) - mean) / scale

    def _pairs(self) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        for key, part in self._modules.items():
            if part is not None:
                yield key, (part.mean, part.scale)  # type: ignore[misc]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConditionScales:
        """Move to a device, as `nn.Module` does, but keep the dtype."""
        for part in self._modules.values():
            for name, value in (part._buffers if part is not None else {}).items():
                if value is None:
                    continue
                device = fn(torch.empty(0, device=value.device)).device
                dtype = _dtype(device) if device.type == "mps" else value.dtype
                moved = torch.empty_like(value, device=device) if value.is_meta else value.to(device, dtype)
                part._buffers[name] = moved  # type: ignore[union-attr]
        return self


def _like_rows(statistic: Tensor, value: Tensor) -> Tensor:
    return statistic.reshape(statistic.shape + (1,) * (value.ndim - 1 - statistic.ndim))


def _dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
