"""A network's trainable weights in one piece of memory, and averages of them over training.

Copying, clipping, stepping and averaging many small tensors one by one costs more than the arithmetic of a small network.
`Weights` lays them side by side, so that each of these is one operation; the network keeps its parameters, which become
views. With β_k the decay at step k, an average is

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

from .errors import TrainingError


class Weights:
    """The trainable parameters of a network, as few flat tensors.

    Parameters
    ----------
    net : nn.Module
        Its parameters stay the same objects, and are views of the parts until `release`.
    flat : bool
        Whether to lay them side by side; otherwise each parameter is a part, as sharded ones must be.

    Attributes
    ----------
    parts : list of Tensor
        Leaves for an optimizer to step, with `.grad` allocated if flat.

    Examples
    --------
    >>> net = nn.Linear(2, 3)
    >>> weights = Weights(net)
    >>> weights.parts[0].shape, net.weight.shape
    (torch.Size([9]), torch.Size([3, 2]))
    """

    def __init__(self, net: nn.Module, *, flat: bool = True) -> None:
        named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        plain = [p for p in net.parameters() if type(p.data) is Tensor]
        self.flat = flat and all(type(p.data) is Tensor and _dense(p) for p in named.values()) and _apart(plain)
        self._layout: dict[str, tuple[int, int, torch.Size, tuple[int, ...]]] = {}
        self.parameters = list(named.values())
        if not self.flat:
            self.parts: list[Tensor] = list(self.parameters)
            self._gathered: list[Any] = [module for module in net.modules() if hasattr(module, "reshard")]
            self._names = list(named)
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[tuple[str, nn.Parameter]]] = {}
        for name, p in named.items():
            kinds.setdefault((p.dtype, p.device), []).append((name, p))
        self.parts = []
        for i, ((dtype, device), group) in enumerate(kinds.items()):
            part = torch.empty(sum(p.numel() for _, p in group), dtype=dtype, device=device)
            grad, at = torch.zeros_like(part), 0
            for name, p in group:
                self._layout[name] = (i, at, p.shape, p.stride())
                view = self._view(part, name)
                view.copy_(p.detach())
                p.data, p.grad = view, self._view(grad, name)
                at += p.numel()
            part.requires_grad_().grad = grad
            self.parts.append(part)
        self._places = [p.data_ptr() for p in self.parameters]

    def _view(self, part: Tensor, name: str) -> Tensor:
        _, at, shape, stride = self._layout[name]
        return part.as_strided(shape, stride, at)

    def named(self, parts: list[Tensor]) -> dict[str, Tensor]:
        """Return tensors that are laid out as `parts` by the names of the parameters, as views of them."""
        if not self.flat:
            return dict(zip(self._names, parts, strict=True))
        return {name: self._view(parts[layout[0]], name) for name, layout in self._layout.items()}

    @torch.no_grad()
    def fill(self, parts: list[Tensor], values: Mapping[str, Tensor], prefix: str = "") -> None:
        """Copy values, which have the names of the parameters after a prefix, into tensors that are laid out as `parts`."""
        for name, view in self.named(parts).items():
            _put(view, values[prefix + name])

    @torch.no_grad()
    def fill_module(self, net: nn.Module, parts: list[Tensor]) -> None:
        """Copy tensors that are laid out as `parts` into the parameters of another network of the same kind."""
        theirs = dict(net.named_parameters())
        for name, view in self.named(parts).items():
            theirs[name].copy_(whole_tensor(view))

    def copies(self) -> list[Tensor]:
        """Return copies of the parts."""
        return [part.detach().clone() for part in self.parts]

    @contextlib.contextmanager
    def holding(self, parts: list[Tensor]) -> Iterator[None]:
        """Let the network have other weights for a while."""
        mine = [part.detach() for part in self.parts]
        own = [part.clone() for part in mine]
        copy_all(mine, parts)
        try:
            yield
        finally:
            copy_all(mine, own)
            for module in [] if self.flat else self._gathered:
                module.reshard()  # what FSDP gathered for a forward pass it keeps for a backward one

    def zero_grad(self) -> None:
        """Set gradients to zero, in place where they have a place.

        Raises
        ------
        TrainingError
            If the network has given a flat parameter other memory, where a step would not reach it.
        """
        if self.flat and self._places != [p.data_ptr() for p in self.parameters]:
            raise TrainingError(
                "the network gives a parameter other memory while it is trained (p.data = …): change it in place, p.data.copy_(…)"
            )
        for part in self.parts:
            if self.flat and part.grad is not None:
                part.grad.zero_()
            else:
                part.grad = None

    def clip(self, most: float) -> None:
        """Scale gradients down to a joint norm of `most`, if it is more; NaN stays NaN. The device is not waited for."""
        if len(self.parts) == 1 and self.flat and self.parts[0].grad is not None:
            grad = self.parts[0].grad
            grad.mul_((most / (torch.linalg.vector_norm(grad) + 1e-6)).clamp_(max=1.0))
        else:
            nn.utils.clip_grad_norm_(self.parts, most)

    def release(self) -> None:
        """Give the parameters memory of their own again, and no gradients."""
        for p in self.parameters:
            p.grad = None
            if self.flat:
                p.data = p.detach().clone(memory_format=torch.preserve_format)


def _dense(p: Tensor) -> bool:
    """Whether a tensor fills a stretch of memory, in whichever order of its axes."""
    return p.is_contiguous() or (p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last))


def _apart(tensors: Iterable[Tensor]) -> bool:
    """Whether tensors that fill their stretches of memory share none: what two parameters share, they are to go on sharing."""
    spans = sorted((p.data_ptr(), p.data_ptr() + p.nbytes) for p in tensors if p.numel() and _dense(p))
    return all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def whole_tensor(x: Tensor) -> Tensor:
    """Return a tensor that may be sharded over ranks as one, on every rank; all ranks have to ask.

    Parameters
    ----------
    x : Tensor

    Returns
    -------
    Tensor

    Examples
    --------
    >>> whole_tensor(torch.ones(2))
    tensor([1., 1.])
    """
    gather = getattr(x, "full_tensor", None)
    return x if gather is None else gather()


def copy_all(targets: list[Tensor], values: list[Tensor]) -> None:
    """Copy tensors into others, both in one piece or sharded alike.

    Parameters
    ----------
    targets, values : list of Tensor

    Examples
    --------
    >>> x = torch.zeros(2)
    >>> copy_all([x], [torch.ones(2)])
    >>> x
    tensor([1., 1.])
    """
    torch._foreach_copy_([_local(x) for x in targets], [_local(x) for x in values])


def _local(x: Tensor) -> Tensor:
    """What a rank has of a tensor that may be sharded: there is no such operation on many of those."""
    take = getattr(x, "to_local", None)
    return x if take is None else take()


def _put(view: Tensor, value: Tensor) -> None:
    if type(view) is not Tensor and hasattr(view, "device_mesh"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(view, DTensor)
        value = distribute_tensor(value.to(view.device, view.dtype), view.device_mesh, view.placements)
    view.copy_(value)


Decay = Callable[[int], float]


def half_life(steps: float) -> Decay:
    """Return the decay β_k of an exponential average whose memory halves in so many steps, and grows to that at first.

    β_k = min(2^(−1/steps), k/(9 + k)): of an average over k steps, a tenth is the last tenth's, so that the first weights are
    soon forgotten.

    Parameters
    ----------
    steps : float
        0 for no average: the last weights.

    Returns
    -------
    callable (k) -> float

    Examples
    --------
    >>> decay = half_life(700)
    >>> decay(1), decay(10), round(decay(10**6), 6)
    (0.0, 0.5263157894736842, 0.99901)
    """
    most = 0.5 ** (1 / steps) if steps else 0.0
    return lambda k: min(most, k / (9 + k)) if k > 1 else 0.0


def power(gamma: float) -> Decay:
    """Return the decay of a power-function average, β_k = (1 − 1/k)^(γ+1), whose memory is a fixed fraction of training.

    Parameters
    ----------
    gamma : float
        Step τ of k weighs τ^γ.

    Returns
    -------
    callable (k) -> float

    References
    ----------
    Karras et al., Analyzing and improving the training dynamics of diffusion models, CVPR 2024, eq. 127.

    Examples
    --------
    >>> power(1.0)(1), power(1.0)(2)
    (0.0, 0.25)
    """
    return lambda k: (1 - 1 / k) ** (gamma + 1)


class Average:
    """An average of a network's weights over training.

    Parameters
    ----------
    weights : Weights
    decay : callable (k) -> float
        β_k, for k = 1, 2, …
    count : int
        Steps that were averaged before.

    Attributes
    ----------
    parts : list of Tensor
        Laid out as `weights.parts`.

    Examples
    --------
    >>> net = nn.Linear(1, 1, bias=False)
    >>> average = Average(Weights(net), lambda k: 1 - 1 / k)
    >>> for w in (1.0, 2.0, 6.0):
    ...     _ = net.weight.data.fill_(w)
    ...     average.update()
    >>> average.parts[0]
    tensor([3.])
    """

    def __init__(self, weights: Weights, decay: Decay, count: int = 0) -> None:
        self.decay, self.count = decay, count
        self._current = [part.detach() for part in weights.parts]
        self.parts = weights.copies()

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.count += 1
        share = 1 - self.decay(self.count)
        if len(self.parts) == 1:
            self.parts[0].lerp_(self._current[0], share)
        else:
            torch._foreach_lerp_(self.parts, self._current, share)


def width(gamma: float) -> float:
    """Return σ_rel, the standard deviation of a power-function average's profile over the length of training.

    σ_rel = (γ + 1)^½·(γ + 2)^(−1)·(γ + 3)^(−½) (Karras et al. 2024, eq. 123).

    Parameters
    ----------
    gamma : float

    Returns
    -------
    float

    Examples
    --------
    >>> round(width(6.94), 3), round(width(16.97), 3)
    (0.1, 0.05)
    """
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def exponent(sigma: float) -> float:
    """Return γ of a power-function average of relative width σ_rel, the inverse of `width`.

    Parameters
    ----------
    sigma : float
        In (0, 0.288], that of γ = 0.

    Returns
    -------
    float

    Examples
    --------
    >>> round(exponent(0.1), 2), round(exponent(0.05), 2)
    (6.94, 16.97)
    """
    from scipy.optimize import brentq

    return float(brentq(lambda gamma: width(gamma) - sigma, 0.0, 1e9))
