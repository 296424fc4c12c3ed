"""A network's trainable weights in one piece of memory, and averages of them over training.

Copying, clipping, stepping and averaging many small tensors one by one costs more than the
arithmetic of a small network. `Weights` lays them side by side, so that each of these is one
operation; the network keeps its parameters, which become views. With β_k the decay at step k, an
average is

    w̄_k = β_k·w̄_{k−1} + (1 − β_k)·w_k.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import TrainingError

PROFILE_WIDTHS = (0.05, 0.10)
"""σ_rel of the two averages that others are composed of (Karras et al. 2024, section 3)."""

GRADIENT_EPSILON = 1e-6


class Weights:
    """The trainable parameters of a network, as few flat tensors."""

    def __init__(self, net: nn.Module, *, flat: bool = True) -> None:
        named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        plain = [p for p in net.parameters() if type(p.data) is Tensor]
        dense = all(type(p.data) is Tensor and _dense(p) for p in named.values())
        self.flat = flat and dense and _apart(plain)
        self._layout: dict[str, tuple[int, int, torch.Size, tuple[int, ...]]] = {}
        self._names = list(named)
        self.parameters = list(named.values())
        if self.flat:
            self.parts = self._laid_out(named)
            self._places = [p.data_ptr() for p in self.parameters]
            return
        self.parts = list(self.parameters)
        self._gathered: list[Any] = [m for m in net.modules() if hasattr(m, "reshard")]

    def _laid_out(self, named: Mapping[str, nn.Parameter]) -> list[Tensor]:
        """Return one tensor per dtype and device, and make the parameters views of it."""
        kinds: dict[tuple[torch.dtype, torch.device], list[tuple[str, nn.Parameter]]] = {}
        for name, p in named.items():
            kinds.setdefault((p.dtype, p.device), []).append((name, p))
        parts = []
        for i, ((dtype, device), group) in enumerate(kinds.items()):
            part = torch.empty(sum(p.numel() for _, p in group), dtype=dtype, device=device)
            grad = torch.zeros_like(part)
            at = 0
            for name, p in group:
                self._layout[name] = (i, at, p.shape, p.stride())
                view = self._view(part, name)
                view.copy_(p.detach())
                p.data = view
                p.grad = self._view(grad, name)
                at += p.numel()
            part.requires_grad_().grad = grad
            parts.append(part)
        return parts

    def _view(self, part: Tensor, name: str) -> Tensor:
        _, at, shape, stride = self._layout[name]
        return part.as_strided(shape, stride, at)

    def named(self, parts: list[Tensor]) -> dict[str, Tensor]:
        """Return views, by the names of the parameters, of tensors laid out as `parts`."""
        if not self.flat:
            return dict(zip(self._names, parts, strict=True))
        return {name: self._view(parts[layout[0]], name) for name, layout in self._layout.items()}

    @torch.no_grad()
    def fill(self, parts: list[Tensor], values: Mapping[str, Tensor], prefix: str = "") -> None:
        """Copy values, named as the parameters after a prefix, into tensors laid out as `parts`."""
        for name, view in self.named(parts).items():
            _put(view, values[prefix + name])

    @torch.no_grad()
    def fill_module(self, net: nn.Module, parts: list[Tensor]) -> None:
        """Copy tensors laid out as `parts` into the parameters of a copy of the network."""
        theirs = dict(net.named_parameters())
        for name, view in self.named(parts).items():
            theirs[name].copy_(whole_tensor(view))

    def copies(self) -> list[Tensor]:
        """Return copies of the parts."""
        return [part.detach().clone() for part in self.parts]

    @contextlib.contextmanager
    def holding(self, parts: list[Tensor]) -> Iterator[None]:
        """Give the network other weights within a `with` block."""
        mine = [part.detach() for part in self.parts]
        own = [part.clone() for part in mine]
        copy_all(mine, parts)
        try:
            yield
        finally:
            copy_all(mine, own)
            # FSDP keeps what it gathered for a forward pass, for a backward one
            for module in [] if self.flat else self._gathered:
                module.reshard()

    def zero_grad(self) -> None:
        """Set gradients to zero, in place where the weights are flat."""
        if self.flat and self._places != [p.data_ptr() for p in self.parameters]:
            raise TrainingError(
                "the network gives a parameter other memory while it is trained (p.data = …); "
                "change it in place, p.data.copy_(…)"
            )
        for part in self.parts:
            if self.flat and part.grad is not None:
                part.grad.zero_()
            else:
                part.grad = None

    def clip(self, most: float) -> Tensor:
        """Scale gradients down to a joint norm of `most`, and return the norm that they had, which
        may be sharded; do not wait for the device.
        """
        if len(self.parts) == 1 and self.flat and self.parts[0].grad is not None:
            grad = self.parts[0].grad
            norm: Tensor = torch.linalg.vector_norm(grad)
            grad.mul_((most / (norm + GRADIENT_EPSILON)).clamp_(max=1.0))
            return norm
        return nn.utils.clip_grad_norm_(self.parts, most)

    def release(self) -> None:
        """Give the parameters their own memory again, and no gradients."""
        for p in self.parameters:
            p.grad = None
            if self.flat:
                p.data = p.detach().clone(memory_format=torch.preserve_format)


def _dense(p: Tensor) -> bool:
    """Whether a tensor fills its memory without gaps, in any order of its axes."""
    return p.is_contiguous() or (
        p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)
    )


def _apart(tensors: Iterable[Tensor]) -> bool:
    """Whether dense tensors share no memory; parameters that share some must go on sharing it."""
    dense = [p for p in tensors if p.numel() and _dense(p)]
    spans = sorted((p.data_ptr(), p.data_ptr() + p.nbytes) for p in dense)
    return all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def whole_tensor(x: Tensor) -> Tensor:
    """Return a tensor that may be sharded over ranks whole; all ranks must call this."""
    gather = getattr(x, "full_tensor", None)
    return x if gather is None else gather()


def copy_all(targets: list[Tensor], values: list[Tensor]) -> None:
    """Copy tensors into others that are whole or sharded alike."""
    torch._foreach_copy_([_local(x) for x in targets], [_local(x) for x in values])


def _local(x: Tensor) -> Tensor:
    """Return this rank's shard; operations on many tensors take no sharded ones."""
    take = getattr(x, "to_local", None)
    return x if take is None else take()


def _put(view: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if type(view) is not Tensor and hasattr(view, "device_mesh"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(view, DTensor)
        value = value.to(view.device, view.dtype)
        value = distribute_tensor(value, view.device_mesh, view.placements)
    view.copy_(value)


Decay = Callable[[int], float]

LONG_AGO = 10**9
"""The step count of an average that has its full memory."""


def half_life(steps: float) -> Decay:
    """Return β_k of an exponential average: min(2^(−1/steps), k/(9 + k)), and 0 at first."""
    most = 0.5 ** (1 / steps) if steps else 0.0
    return lambda k: min(most, k / (9 + k)) if k > 1 else 0.0


def power(gamma: float) -> Decay:
    """Return β_k = (1 − 1/k)^(γ+1) of an average over a fixed share of training."""
    return lambda k: (1 - 1 / k) ** (gamma + 1)


class Average:
    """An average of a network's weights over training."""

    def __init__(self, weights: Weights, decay: Decay, count: int = 0) -> None:
        self.decay = decay
        self.count = count
        self._current = [part.detach() for part in weights.parts]
        self.parts = weights.copies()

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        self.count += 1
        share = 1 - self.decay(self.count)
        if len(self.parts) == 1:
            self.parts[0].lerp_(self._current[0], share)
        else:
            torch._foreach_lerp_(self.parts, self._current, share)


class Averages:
    """The averages of a run: that of eval mode, the two of snapshots, and the last finite one."""

    def __init__(
        self, weights: Weights, half_life_steps: float, snapshots: int, before: nn.Module | None
    ) -> None:
        count = 0 if before is None else LONG_AGO
        self.main = Average(weights, half_life(half_life_steps), count)
        if before is not None:  # a second training goes on with the average as well
            weights.fill(self.main.parts, dict(before.named_parameters()))
        self.profiles: list[Average] = []
        if snapshots:
            self.profiles = [Average(weights, power(exponent(s))) for s in PROFILE_WIDTHS]
        self.last_finite = [p.clone() for p in self.main.parts]

    def update(self) -> None:
        """Move all averages towards the present weights."""
        self.main.update()
        for profile in self.profiles:
            profile.update()

    def are_finite(self) -> bool:
        """Whether the main average is finite; the device is waited for."""
        return all(bool(whole_tensor(p.isfinite().all())) for p in self.main.parts)


def width(gamma: float) -> float:
    """Return σ_rel = √(γ + 1)/((γ + 2)·√(γ + 3)), the relative width of a power average."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def exponent(sigma: float) -> float:
    """Return γ of a power average of relative width σ_rel, the inverse of `width`."""
    from scipy.optimize import brentq

    return float(brentq(lambda gamma: width(gamma) - sigma, 0.0, 1e9))
