"""Observations, and the condition of a network that they are."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch
from torch import Size, Tensor

from ..common.checks import check_budget, whole_number
from ..common.inputs import as_reals
from ..common.user_warnings import warn
from ..model.frames import is_frame
from ..model.schema import Schema
from ..model.score_sde import ScoreSDE

FAR = 3.0
"""Times the range of nearly all simulations beyond which an observation is far from them."""


def observations(
    sde: ScoreSDE,
    condition: str,
    x: Any,
    shape: tuple[int, ...] | None = None,
) -> tuple[Tensor, Size]:
    """Observations as rows (B, *shape) on the model's device, and their batch shape.

    The shape of one is that of the network's condition unless given.
    """
    if x is None:
        raise TypeError("x is missing: give the observation, x=x_o")
    shape = shape or shape_of(sde, condition)
    value = as_reals(x, "x")
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    if shape == (1,) and value.ndim == 0:
        value = value[None]
    ndim = len(shape) if shape is not None else 1
    batch = value.shape[: max(0, value.ndim - ndim)]
    if shape is not None and tuple(value.shape[len(batch) :]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(
            f"x has shape {tuple(value.shape)}, wanted ({wanted}), one observation, or "
            f"(B, {wanted})"
        )
    if not bool(value.isfinite().all()):
        raise ValueError("x has NaN or infinite values")
    rows = value.reshape(-1, *value.shape[len(batch) :])
    return rows.to(sde.scale.device), Size(batch)


def warn_of_extrapolation(rows: Tensor, low: Tensor, high: Tensor) -> None:
    """Warn of observations (B, K) far from where nearly all simulations lie."""
    value = rows.detach().cpu().double()
    room = FAR * (high - low) + 1e-6 * torch.maximum(low.abs(), high.abs())
    far = ((value < low - room) | (value > high + room)).nonzero()
    if len(far):
        row, column = far[0].tolist()
        found = float(value[row, column])
        warn(
            f"x[{column}] = {found:.4g} lies far from the simulations, nearly all of which have "
            f"{float(low[column]):.4g} to {float(high[column]):.4g} there: the posterior is a guess"
        )


def condition_name(sde: ScoreSDE, name: str | None) -> str:
    """The condition of the network that x is given as."""
    names = sde.interface.condition_names
    if name is not None:
        sde.interface.check_names([name])
        return name
    interface = sde.interface
    if not names and interface.open and interface.condition_shapes is None:  # any name will do
        return "vector"
    if not names:
        raise ValueError(
            f"{sde.interface.name} takes no condition, and x would be one; try "
            "scoresde.build('vp', 'resmlp', shape=(D,), vector=K)"
        )
    if "vector" not in names and len(names) > 1:
        raise ValueError(f"which of the conditions {names} is x? Write condition={names[0]!r}")
    return "vector" if "vector" in names else names[0]


def with_names(sde: ScoreSDE | None, theta: Any, x: Any) -> tuple[Schema | None, Any, Any]:
    """The column names of theta and x, if any, and both in the order that a model knows."""
    schema = Schema()
    name = "vector"
    if sde is not None:
        schema = sde.schema.copy()
        name = condition_name(sde, None)
    if is_frame(theta):
        theta, _ = schema.learn(theta, None)
    if is_frame(x):
        x = schema.learn(None, {name: x})[1][name]
    return (schema if schema.columns or schema.parts else None), theta, x


def shape_of(sde: ScoreSDE, name: str) -> tuple[int, ...] | None:
    """The shape of one observation, where the network states it or has learnt it."""
    shapes = sde.interface.condition_shapes
    if shapes is not None:
        return shapes.get(name)
    learnt = {} if sde.learnt is None else sde.learnt["conditions"]
    return tuple(learnt[name]) if name in learnt else None


def sample_size(shape: Any, each: int) -> Size:
    """A sample shape, checked, of so many numbers each; a number stands for one axis."""
    sizes = (shape,) if isinstance(shape, Integral) else shape
    if not isinstance(sizes, tuple | list):
        raise TypeError(f"sample_shape is a tuple of integers such as (1000,), got {shape!r}")
    found = [whole_number("a size of sample_shape", size, 0) for size in sizes]
    check_budget(f"sample_shape={tuple(found)}", 8.0 * math.prod(found) * max(1, each))
    return Size(found)


def joint_shape(theta: Tensor, batch: Size, dim: int) -> Size:
    """The shape of log p of theta (…, D) for a batch of observations; raise if they do not fit."""
    if not theta.ndim or theta.shape[-1] != dim:
        raise ValueError(f"theta has shape {tuple(theta.shape)}, wanted (…, {dim})")
    broadcast: Any = torch.broadcast_shapes
    try:
        shape: Size = broadcast(theta.shape[:-1], batch)
    except RuntimeError:
        raise ValueError(
            f"theta has shape {tuple(theta.shape)} and x holds {tuple(batch)} observations: "
            f"wanted (…, {', '.join(map(str, batch))}, {dim})"
        ) from None
    return shape
