"""The registry of backbones, and what a backbone is: a network that is called as
net(x, t, **condition) and returns the shape of x.

x has shape (B, *shape), the noise labels t have shape (B,), and rows do not mix. Nothing else is
required. x, t and numeric conditions come in the dtype of the parameters. A network with
`wide_inputs = True` gets them in at least float32 and casts by itself, so that its waves are exact
in half precision. Four further attributes are optional: `condition_shapes`, a dict from names to
shapes of one sample's conditions; `labels`, the names of conditions that are not standardized;
`drop_conditions(condition, generator)`, which returns the conditions of a training batch, some rows
marked as absent; and `learning_rate`, the default of `fit` where it learns a score, or None.

A backbone whose trace has a closed form may add a method `value_and_trace(x, t, **condition)`: the
output of the same call and its trace Σ_i ∂out_i/∂x_i, of shape (B,). Likelihoods then use it in
place of automatic differentiation, where a trace costs about D evaluations. It consists of plain
differentiable operations, so that gradients flow through the trace to x and to the parameters. Here
for out_i = a(t)·tanh(x_i):

>>> class Gate(nn.Module):
...     def __init__(self, shape):
...         super().__init__()
...         self.gain = nn.Linear(1, 1)
...     def forward(self, x, t):
...         return self.gain(t[:, None]) * torch.tanh(x)
...     def value_and_trace(self, x, t):
...         a, y = self.gain(t[:, None]), torch.tanh(x)
...         return a * y, (a * (1 - y * y)).sum(1)
>>> can_trace(Gate((2,)))
True
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks as _GLOBAL_HOOKS
from torch.nn.modules.module import _global_forward_pre_hooks as _GLOBAL_PRE_HOOKS

from ..common.checks import whole_number
from ..common.registry import Registry

BACKBONES: Registry[nn.Module] = Registry("backbone")
"""All backbones by name, built as `BACKBONES.build(name, shape, **options)`;
`@BACKBONES.register("name")` adds one and enrols it in the tests.
"""

BUDGET = 2**20
"""Numbers that a temporary tensor of a trace may hold, whatever D."""

LEAST_EXPONENT = -60.0

RANDOM_FEATURES = 64
"""Random Fourier features, without ones along columns; with them in 1 or 2 dimensions."""

FEWEST_FEATURES = 8
"""Random features beside those along many columns: in many dimensions they show little."""

SMALL_RATE = 5e-3
SMALL_WIDTH = 128
FEWEST_COLUMNS = 4

COLUMN_FEATURES = 8
MOST_COLUMN_FEATURES = 256

_BATCHED: ContextVar[bool] = ContextVar("_BATCHED", default=False)


@contextlib.contextmanager
def batchable() -> Iterator[None]:
    """Let layers compute what can be differentiated for many cotangents at once, if slower."""
    before = _BATCHED.set(True)
    try:
        yield
    finally:
        _BATCHED.reset(before)


def batching() -> bool:
    """Whether this runs within `batchable`; False in a compiled network."""
    return not torch.compiler.is_compiling() and _BATCHED.get()


def can_trace(net: nn.Module) -> bool:
    """Whether `value_and_trace` of a network is sure to agree with its `forward`."""
    method = getattr(net, "value_and_trace", None)
    if not callable(method):
        return False
    if "value_and_trace" in net.__dict__:
        return True  # a function that was set on this instance
    # the network inside, if net is a wrapper such as torch.compile's
    owner = getattr(method, "__self__", None)
    if not isinstance(owner, nn.Module):
        return False
    if owner is not net and getattr(net, "_orig_mod", None) is not owner:
        return False
    if _is_overridden(owner) or _GLOBAL_HOOKS or _GLOBAL_PRE_HOOKS:
        return False
    # hooks, replaced forward methods, and replaced layers (adapters, quantization) change `forward`
    types = (type(owner), *getattr(owner, "layer_types", map(type, owner.modules())))
    return not any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) or type(m) not in types
        for m in owner.modules()
    )


def _is_overridden(net: nn.Module) -> bool:
    """Whether a subclass of the class with `value_and_trace` overrides a method of that class."""
    classes = type(net).__mro__
    home = next(cls for cls in classes if "value_and_trace" in vars(cls))
    methods = {n for n, f in vars(home).items() if callable(f) and n != "__init__"}
    subclasses = classes[: classes.index(home)]
    return any(methods & vars(cls).keys() for cls in subclasses)


def takes(net: nn.Module, name: str) -> bool:
    """Whether a network's `forward` has an argument of that name, such as `span` or `tilt`."""
    return name in inspect.signature(unwrapped(net).forward).parameters


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside wrappers for distributed training and `torch.compile`."""
    while True:
        if isinstance(net, nn.parallel.DistributedDataParallel | nn.DataParallel):
            net = net.module
            continue
        inner = getattr(net, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return net
        net = inner


def weights_dtype(layer: nn.Module, like: Tensor) -> torch.dtype:
    """The dtype of a layer's floating-point weights; that of a tensor if it has none."""
    for p in layer.parameters():
        if p.is_floating_point():
            return p.dtype
    return like.dtype


def wide(x: Tensor) -> Tensor:
    """A tensor in at least float32, for exact waves."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def noise_fade(frequencies: Tensor, t: Tensor) -> Tensor:
    """exp(−½|ω|²·sin²φ), (B, K), of features with frequencies (D, K), at t = log tan φ, (B,).

    It stops at 1e-26: arithmetic with numbers below 1e-38 takes many times as long.
    """
    exponent = -0.5 * frequencies.square().sum(0)
    return torch.outer(torch.sigmoid(2 * t), exponent).clamp_min(LEAST_EXPONENT).exp()


def faded_waves(frequencies: Tensor, x: Tensor, t: Tensor, blur: bool) -> tuple[Tensor, Tensor]:
    """s·sin ωx and s·cos ωx, (B, K) each, of x (B, D) at t (B,); s is 1 without blur."""
    phase = x @ frequencies.to(x.dtype)
    if not blur:
        return phase.sin(), phase.cos()
    fade = noise_fade(frequencies, t)
    return fade * phase.sin(), fade * phase.cos()


def feature_counts(
    shape: tuple[int, ...], fourier: int | None, blur: bool, axes: int | None
) -> tuple[int, int]:
    """How many random Fourier features a network has, and how many along columns; see `MLP`."""
    if fourier is not None:
        fourier = whole_number("fourier", fourier, 0)
    if axes is None:
        usual = len(shape) == 1 and blur and fourier != 0
        axes = min(COLUMN_FEATURES * shape[0], MOST_COLUMN_FEATURES) if usual else 0
    axes = whole_number("axes", axes, 0)
    if axes and (len(shape) != 1 or not blur):
        raise ValueError(
            f"axes={axes} are features of vectors, shape (d,), that fade with the noise: leave it "
            f"out for shape {shape} and blur={blur}"
        )
    if fourier is None:
        fourier = RANDOM_FEATURES
        if axes:
            fourier = min(max(2 * RANDOM_FEATURES // shape[0], FEWEST_FEATURES), RANDOM_FEATURES)
    return fourier, axes


def usual_rate(axes: int, width: int, columns: int) -> float | None:
    """The peak learning rate of a small network with features along columns; None for others."""
    small = width <= SMALL_WIDTH and columns >= FEWEST_COLUMNS
    return SMALL_RATE if axes and small else None


class ExactWaves(nn.Module):
    """A network whose `exact_buffers`, frequencies of waves, stay unrounded in half precision."""

    exact_buffers: tuple[str, ...] = ()
    wide_inputs = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExactWaves:
        before = {name: self._buffers.get(name) for name in self.exact_buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in before.items():
            now = self._buffers[name]
            if exact is None or now is None:
                continue
            if now.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = exact.to(now.device)
        return self
