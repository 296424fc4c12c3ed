"""The registry of backbones, and what a backbone is: a network called as net(x, t, **condition) that keeps x's shape.

x has shape (B, *shape), the noise labels t have shape (B,), and rows do not mix. Nothing else is asked. x, t and numeric
conditions come in the dtype of the parameters; to a network with `wide_inputs = True` in at least float32, so that waves of
them are exact in half precision, and it casts by itself. Three further attributes say what a network takes:
`condition_shapes`, a dict of names and shapes of one sample's; `labels`, the names of those that are not to be standardized;
and `hide(condition, generator)`, which returns the conditions of a training batch, marked as absent in some rows.

A backbone whose derivatives have a closed form may add a method `value_and_trace(x, t, **condition)`: the output of the same
call and its trace Σ_i ∂out_i/∂x_i, of shape (B,). Likelihoods then use it in place of automatic differentiation, where a trace
costs about as much as D evaluations. It is made of plain differentiable operations, so that gradients flow through the trace to
x and to the parameters. Here for out_i = a(t)·tanh(x_i):

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

from ..registry import Registry

BACKBONES: Registry[nn.Module] = Registry("backbone")
"""All backbones by name, built as `BACKBONES.build(name, shape, **options)`; `@BACKBONES.register("name")` adds one and enrols
it in the tests."""

BUDGET = 2**20
"""Numbers that a temporary tensor of a trace may hold: traces cut their work by it, so that memory is bounded whatever D."""


_BATCHED: ContextVar[bool] = ContextVar("_BATCHED", default=False)


@contextlib.contextmanager
def batchable() -> Iterator[None]:
    """Within it, layers are to compute what can be differentiated for many cotangents at once, even where that takes longer.

    For torch has fused layers whose backward pass it can't batch; traces do best with batches.

    Examples
    --------
    >>> with batchable():
    ...     batching()
    True
    """
    before = _BATCHED.set(True)
    try:
        yield
    finally:
        _BATCHED.reset(before)


def batching() -> bool:
    """Whether this is within `batchable`; a compiled network has no choice.

    Returns
    -------
    bool

    Examples
    --------
    >>> batching()
    False
    """
    return not torch.compiler.is_compiling() and _BATCHED.get()


def can_trace(net: nn.Module) -> bool:
    """Whether a network has a `value_and_trace` that can be trusted to say what its `forward` says.

    Not so if a subclass has methods of its own but no `value_and_trace`, if the `forward` of an instance or of a layer was
    replaced, if a wrapper hands on the method of a network inside, if there are hooks, which a closed form does not run, or if
    layers were replaced (by adapters, parametrizations, quantization): a class that lists the types of its layers as
    `layer_types` is traced only as long as it has no others.

    Parameters
    ----------
    net : nn.Module

    Returns
    -------
    bool

    Examples
    --------
    >>> net = scoresde.backbones.MLP((2,))
    >>> can_trace(net)
    True
    >>> nn.utils.parametrizations.weight_norm(net.out)
    ParametrizedLinear(...)
    >>> can_trace(net)
    False
    """
    method = getattr(net, "value_and_trace", None)
    if not callable(method):
        return False
    if "value_and_trace" in net.__dict__:
        return True  # a function that someone put there on purpose
    owner = getattr(method, "__self__", None)  # the network inside, if net is a wrapper, as torch.compile makes
    if not isinstance(owner, nn.Module) or not (owner is net or getattr(net, "_orig_mod", None) is owner):
        return False
    methods = {"value_and_trace"} | {n for n, f in vars(_home(owner)).items() if callable(f) and n != "__init__"}
    for cls in type(owner).__mro__[: type(owner).__mro__.index(_home(owner))]:  # subclasses of the one that knows its trace
        if methods & vars(cls).keys():
            return False
    if _GLOBAL_HOOKS or _GLOBAL_PRE_HOOKS:
        return False
    types = (type(owner), *getattr(owner, "layer_types", map(type, owner.modules())))
    return not any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) or type(m) not in types for m in owner.modules()
    )


def _home(net: nn.Module) -> type:
    """The class that defines a network's `value_and_trace`."""
    return next(cls for cls in type(net).__mro__ if "value_and_trace" in vars(cls))


def takes(net: nn.Module, name: str) -> bool:
    """Whether a network has a parameter of that name beside x and t, such as `span`, a second time, or `tilt`, two drifts.

    Parameters
    ----------
    net : nn.Module
    name : str

    Returns
    -------
    bool

    Examples
    --------
    >>> takes(scoresde.MLP((2,)), "y"), takes(scoresde.MLP((2,)), "span")
    (True, False)
    """
    return name in inspect.signature(unwrapped(net).forward).parameters


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside wrappers for distributed training and `torch.compile`."""
    while True:
        if isinstance(net, nn.parallel.DistributedDataParallel | nn.DataParallel):
            net = net.module
        elif isinstance(inner := getattr(net, "_orig_mod", None), nn.Module):
            net = inner
        else:
            return net


def weights_dtype(layer: nn.Module, like: Tensor) -> torch.dtype:
    """The dtype of a layer's weights, or that of a tensor if it has none that are floating-point numbers."""
    for p in layer.parameters():
        if p.is_floating_point():
            return p.dtype
    return like.dtype


def wide(x: Tensor) -> Tensor:
    """A tensor in at least float32, in which waves of it are formed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ExactWaves(nn.Module):
    """A network that keeps the frequencies of its waves unrounded when it is converted to half precision."""

    exact_buffers: tuple[str, ...] = ()
    wide_inputs = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExactWaves:
        before = {name: self._buffers.get(name) for name in self.exact_buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in before.items():
            now = self._buffers[name]
            if exact is not None and now is not None and now.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = exact.to(now.device)
        return self
