"""What a network takes and offers, and how it is called on the arc."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.base import can_trace, unwrapped
from ..backbones.conditions import check_known
from ..backbones.embedded import Embedded
from ..backbones.learnedvariance import HEAD, has_variance
from ..processes.base import Process
from .standardization import Standardization

LABEL_FLOOR = 2e-3
"""δ of the noise label."""
CONVENTIONS = ("arc", "raw")
"""What a network is given: the unit-variance state z and `noise_label(φ)`, or x_t and t."""
SOLVE_ARGUMENTS = ("span", "tilt")
"""Arguments of networks that solvers set: a second time, and the end that a drift leads to."""


def noise_label(phi: Tensor | float) -> Tensor | float:
    """The noise label of angles φ in radians: about log tan φ = log(σ/α), finite at both ends.

    u = ½·log((sin²φ + δ²)/(cos²φ + δ²)) with δ = 2e-3, so that u ∈ [−6.2, 6.2].
    """
    # The same in fewer operations: artanh y = ½·logit(½ + ½y) with y = −cos 2φ/(1 + 2δ²). The bits
    # of torch.atanh depend on where in a batch a number lies.
    shrink = 0.5 / (1 + 2 * LABEL_FLOOR**2)
    if isinstance(phi, float):
        return math.atanh(-2 * shrink * math.cos(2 * phi))
    return 0.5 * torch.logit(0.5 - shrink * torch.cos(2 * phi))


class NetworkInterface:
    """What a network says about itself, by its signature and its optional attributes.

    Made once for a network and kept outside the tree of modules, so that names of weights stay.
    """

    def __init__(self, net: nn.Module) -> None:
        inner = unwrapped(net)
        self.net = net
        self.inner = inner
        parameters = inspect.signature(inner.forward).parameters
        self.names = tuple(parameters)
        self.named = [p.name for p in parameters.values() if p.kind is not p.VAR_KEYWORD][2:]
        self.open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.drop: Callable[..., dict[str, Tensor]] | None
        self.drop = _drop_of(inner)

    @property
    def name(self) -> str:
        """The class of the network."""
        return type(self.inner).__name__

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Shapes of one sample's conditions, where the network states them."""
        shapes = getattr(self.inner, "condition_shapes", None)
        if shapes is None:
            return None
        return {name: tuple(shape) for name, shape in shapes.items()}

    @property
    def condition_names(self) -> list[str]:
        """Names of the conditions that it takes, as far as it says them."""
        inner = self.inner
        shapes = inner.shapes if isinstance(inner, Embedded) else self.condition_shapes
        if shapes is not None:
            return list(shapes)
        names = [*inner.embed] if isinstance(inner, Embedded) else self.named
        return [name for name in names if name not in (*SOLVE_ARGUMENTS, HEAD)]

    @property
    def wide_inputs(self) -> bool:
        """Whether it takes x and t in at least float32 even if its weights have half precision."""
        return bool(getattr(self.inner, "wide_inputs", False))

    @property
    def takes_gaps(self) -> bool:
        """Whether it is told which entries of a row are missing, so that rows may hold NaN."""
        return bool(getattr(self.inner, "takes_gaps", False))

    @property
    def has_variance(self) -> bool:
        """Whether it has a second output, the variance of reverse steps."""
        return has_variance(self.inner)

    @property
    def can_do_without(self) -> bool:
        """Whether training dropped conditions, so that it can also do without them."""
        return self.drop is not None and getattr(self.inner, "condition_dropout", None) != 0

    def takes(self, name: str) -> bool:
        """Whether it has a parameter of that name, such as `span` (a second time) or `tilt`."""
        return name in self.names

    def is_numeric(self, name: str, value: Tensor) -> bool:
        """Whether a condition is numbers, to be standardized, rather than labels."""
        if name in getattr(self.inner, "labels", ()):
            return False
        if value.is_complex() or value.dtype == torch.bool:
            return False
        return value.is_floating_point() or name in (self.condition_shapes or {})

    def takes_condition(self, name: str) -> bool:
        """Whether it takes a condition of that name, as far as it says which it takes."""
        shapes = self.condition_shapes
        if shapes is not None:
            return name in shapes or (name in SOLVE_ARGUMENTS and self.takes(name))
        return self.open or name in self.names[2:]

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ValueError for conditions that the network does not take."""
        shapes = self.condition_shapes
        if shapes is not None:
            unknown = (name for name in names if name not in self.names)
            check_known(unknown, shapes, hint_labels=True)
        elif not self.open:
            check_known(names, dict.fromkeys(self.names[2:]))

    def check_values(self, condition: Mapping[str, Tensor]) -> None:
        """Raise ValueError for values that the network does not take."""
        check = getattr(self.inner, "check_condition", None)
        if check is not None and condition:
            check(**condition)


def _drop_of(net: nn.Module) -> Callable[..., dict[str, Tensor]] | None:
    """The method that leaves out conditions, also by its old name, `hide`, in a user's class."""
    for kind in type(net).__mro__:
        for name in ("drop_conditions", "hide"):
            if name in vars(kind):
                found: Callable[..., dict[str, Tensor]] = getattr(net, name)
                return found
    return getattr(net, "drop_conditions", getattr(net, "hide", None))


def call_on_arc(
    net: nn.Module,
    condition: Mapping[str, Tensor],
    inputs: Callable[..., tuple[Tensor, Tensor, Tensor | float]],
    standardization: Standardization,
    traced: bool = False,
    with_variance: bool = False,
) -> Callable[..., Any]:
    """A network as a function of states z (B, n), angles φ, and rows (B,) of the conditions.

    With the variance it returns both of its outputs, (2, B, n).
    """
    # What stays the same throughout a solve is looked up here, once.
    net, condition = _embedded_once(net, condition)
    free = standardization.free
    flat = len(standardization.shape) == 1
    weight = next(net.parameters(), None)
    if traced and not (can_trace(net) and free is None):
        raise TypeError(f"{type(net).__name__} has no value_and_trace for the features that vary")
    size = math.prod(standardization.shape)
    outputs = (2,) if with_variance else ()
    call: Callable[..., Any] = net
    if traced:
        call = net.value_and_trace  # type: ignore[assignment]
    if with_variance:
        call = functools.partial(net, **{HEAD: True})

    def output(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Any:
        dtype = z.dtype if weight is None else weight.dtype
        x, label, radius = inputs(z, phi, dtype)
        if condition:
            out = call(x, label, **_rows_of(condition, rows, len(z)))
        else:
            out = call(x, label)
        if traced:
            out, trace = out
            _check_trace(trace, x)
        if not isinstance(out, Tensor) or out.shape != (*outputs, *x.shape):
            raise ValueError(misshapen(x, out, with_variance))
        if free is not None:
            out = out.reshape(*outputs, len(x), size).index_select(-1, free)
        elif not flat:
            out = out.reshape(*outputs, len(x), size)
        if out.dtype != z.dtype:
            out = out.to(z.dtype)
        if traced:
            return out, radius * trace.unsqueeze(1).to(z.dtype)
        return out

    return output


def _embedded_once(
    net: nn.Module, condition: Mapping[str, Tensor]
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """The network inside an `Embedded`, and what that makes of the conditions, which stay."""
    hooked = net._forward_hooks or net._forward_pre_hooks or "forward" in vars(net)
    if not condition or hooked or not isinstance(net, Embedded):
        return net, condition
    if type(net).forward is not Embedded.forward:
        return net, condition
    return net.net, net.embedded(condition)


def arc_inputs(
    z: Tensor,
    phi: Tensor | float,
    dtype: torch.dtype,
    process: Process,
    convention: str,
    standardization: Standardization,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """What a network is given for states z (B, n): x (B, *shape), t (B,) and the radius x/z."""
    radius: Tensor | float = 1.0
    x = z
    label: Tensor | float
    if convention == "raw":
        label = process.time(phi)
        far = process.radius(label)
        radius = far.unsqueeze(1).to(z.dtype) if far.ndim else float(far)
        x = z * radius
    else:
        label = noise_label(phi)
    if not isinstance(label, Tensor) or not label.ndim:
        label = z.new_full((len(z),), float(label), dtype=dtype)
    x = standardization.spread(x)
    if z.dtype != dtype or label.dtype != dtype:
        x = x.to(dtype)
        label = label.to(dtype)
    return x, label, radius


def misshapen(x: Tensor, out: object, with_variance: bool = False) -> str:
    """The message on a network that was given x and returned something of another shape."""
    got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if with_variance:
        return (
            f"the network was given {tuple(x.shape)} and {HEAD}=True, and returned {got}; it must "
            f"return both outputs, stacked: {(2, *x.shape)}"
        )
    return f"the network was given {tuple(x.shape)} and returned {got}; it must keep the shape"


def _rows_of(
    condition: Mapping[str, Tensor], rows: Tensor | None, total: int
) -> dict[str, Tensor]:
    """The conditions of these rows, one row for each state."""
    found = {}
    for name, value in condition.items():
        if rows is not None and len(value) > 1:
            value = value[rows]
        found[name] = value.expand(total, *value.shape[1:])
    return found


def _check_trace(trace: object, x: Tensor) -> None:
    """Raise ValueError for a trace that is not one number a state."""
    if not isinstance(trace, Tensor) or trace.shape != (len(x),):
        got = tuple(trace.shape) if isinstance(trace, Tensor) else type(trace).__name__
        raise ValueError(f"value_and_trace returned a trace of shape {got}, wanted ({len(x)},)")
