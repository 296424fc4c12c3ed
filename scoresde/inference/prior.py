"""What a prior is asked for: its support, as bounds of each parameter, and its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    Uniform,
)
from torch.distributions import constraints as known

from ..common.checks import brief_repr
from ..common.errors import CheckpointError
from ..common.inputs import as_tensor
from ..common.random import isolated

HINT = "give a pair (low, high) of tensors, or a torch distribution of event shape (D,)"

FEWEST_NUMBERS = 2**7
"""Floating-point numbers across an interval, at least."""
FAMILIES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "box": (Uniform, ("low", "high")),
    "normal": (Normal, ("loc", "scale")),
    "multivariate_normal": (MultivariateNormal, ("loc", "scale_tril")),
}
"""Those that are saved, by the name in the record, with the numbers of each."""


class Prior:
    """A torch distribution over D parameters, and the box (low, high) that its support lies in."""

    def __init__(self, law: Distribution) -> None:
        if len(law.event_shape) != 1 or law.batch_shape:
            raise ValueError(
                f"the prior has batch shape {tuple(law.batch_shape)} and event shape "
                f"{tuple(law.event_shape)}, wanted () and (D,); join single parameters by "
                "torch.distributions.Independent(prior, 1)"
            )
        self.law = law
        self.dim = int(law.event_shape[0])
        try:
            support: Any = law.support
        except NotImplementedError:
            support = None
        if support is None or support.is_discrete or not _has_density(support):
            raise ValueError(
                f"the prior's support is {support}, on which D numbers have no density; {HINT}"
            )
        found = _transformed_bounds(law, self.dim) or _bounds(support, self.dim)
        self.box = found is not None
        free = torch.full((self.dim,), math.inf, dtype=torch.float64)
        self.low, self.high = (-free, free) if found is None else found
        self.everywhere = self.box and bool((self.low.isinf() & self.high.isinf()).all())

    def contains(self, theta: Tensor) -> Tensor:
        """Whether the prior's support holds theta (…, D)."""
        if self.box:
            value = theta.detach().double()
            low = self.low.to(value.device)
            high = self.high.to(value.device)
            return ((value >= low) & (value <= high)).all(-1)
        value = theta.detach().to(_device_of(self.law))
        return _holds(self.law, value).to(theta.device)

    def log_prob(self, theta: Tensor) -> Tensor:
        """log p of theta (N, D), on the CPU in float64; −∞ outside the support."""
        value = torch.full(theta.shape[:1], -math.inf, dtype=torch.float64)
        inside = self.contains(theta)
        if not bool(inside.any()):
            return value
        there = theta.to(_device_of(self.law))
        held = _holds(self.law, there)
        inside = inside & held.to(inside.device)
        there = there[inside.to(there.device)]
        try:
            found = self.law.log_prob(there)
        except RuntimeError:  # the prior has another dtype
            found = self.law.log_prob(there.to(torch.get_default_dtype()))
        value[inside] = found.double().cpu()
        return value

    def nearest(self, theta: Tensor) -> Tensor:
        """The nearest point of the box, as numbers of theta's dtype, coordinate by coordinate."""
        low = self.low.to(theta)
        high = self.high.to(theta)
        up = torch.nextafter(low, torch.full_like(low, math.inf))
        down = torch.nextafter(high, torch.full_like(high, -math.inf))
        low = torch.where(low.double() < self.low.to(low.device), up, low)
        high = torch.where(high.double() > self.high.to(high.device), down, high)
        return torch.minimum(torch.maximum(theta, low), high)

    def check_resolved(self, dtype: torch.dtype) -> None:
        """Raise ValueError if an interval holds few numbers of a dtype."""
        size = torch.maximum(self.low.abs(), self.high.abs())
        narrow = size.isfinite() & (self.high - self.low < FEWEST_NUMBERS * _eps(dtype) * size)
        if bool(narrow.any()):
            at = narrow.nonzero().flatten().tolist()
            name = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"the prior's intervals of parameters {at} are too narrow for {name} so far from "
                "0: subtract a constant from them, or give a model in float64, sde=build(...)"
                ".double()"
            )

    def describe(self) -> dict[str, Any] | None:
        """The prior in plain JSON, if it is of a family that can be written so."""
        law = self.law
        if isinstance(law, Independent) and law.reinterpreted_batch_ndims == 1:
            base = law.base_dist
            if type(base) is Uniform:
                return _written("box", low=base.low, high=base.high)
            if type(base) is Normal:
                return _written("normal", loc=base.loc, scale=base.scale)
        if type(law) is MultivariateNormal:
            return _written("multivariate_normal", loc=law.loc, scale_tril=law.scale_tril)
        return None


def as_prior(prior: object) -> Prior:
    """A prior from a torch distribution, or a box (low, high); raise for anything else."""
    if isinstance(prior, Prior):
        return prior
    if isinstance(prior, Distribution):
        return Prior(prior)
    if isinstance(prior, tuple | list) and len(prior) == 2:
        return Prior(_box(*prior))
    raise TypeError(f"the prior is {brief_repr(prior)}; {HINT}")


def rebuild_prior(about: Mapping[str, Any], where: str) -> Prior:
    """The prior that `describe` wrote."""
    try:
        values = dict(about)
        family = values.pop("family")
        dtype = {"float32": torch.float32, "float64": torch.float64}[values.pop("dtype")]
        numbers: Any = {name: torch.tensor(value, dtype=dtype) for name, value in values.items()}
        made, names = FAMILIES[family]
        if set(numbers) != set(names):
            raise ValueError(f"a {family} is of {', '.join(names)}")
        if not all(bool(value.isfinite().all()) for value in numbers.values()):
            raise ValueError("infinite numbers")
        law = made(**numbers, validate_args=True)
        if not law.event_shape:
            law = Independent(law, 1)
        return Prior(law)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{where} holds no prior that this version knows: {error}") from None


def _box(lowest: object, highest: object) -> Distribution:
    """The uniform distribution of a box."""
    low = as_tensor(lowest, "low")
    high = as_tensor(highest, "high")
    if low.is_complex() or high.is_complex():
        raise TypeError("a box has real corners, got complex numbers")
    dtype = torch.promote_types(torch.promote_types(low.dtype, high.dtype), torch.float16)
    if not (low.is_floating_point() or high.is_floating_point()):
        dtype = torch.get_default_dtype()
    if low.ndim != 1 or low.shape != high.shape:
        raise ValueError(
            f"a box has corners of shape (D,), got low {tuple(low.shape)} and high "
            f"{tuple(high.shape)}"
        )
    low = low.to(dtype)
    high = high.to(dtype)
    if not bool((low < high).all() & low.isfinite().all() & high.isfinite().all()):
        raise ValueError(
            f"a box has finite corners, low < high, got low={brief_repr(low.tolist())} and "
            f"high={brief_repr(high.tolist())}"
        )
    return Independent(Uniform(low, high), 1)


def _written(
    family: str,
    **values: Tensor,
) -> dict[str, Any] | None:
    """A family and its numbers in plain JSON, exact for float32 and float64."""
    dtypes = {value.dtype for value in values.values()}
    name = str(dtypes.pop()).removeprefix("torch.")
    if dtypes or name not in ("float32", "float64"):
        return None
    numbers = {key: value.detach().cpu().tolist() for key, value in values.items()}
    return {"family": family, "dtype": name, **numbers}


def _eps(dtype: torch.dtype) -> float:
    """The relative spacing of numbers of a dtype."""
    return float(torch.finfo(dtype).eps)


def _one_of(law: Any) -> Tensor:
    """A draw; the global generator stays as it was."""
    with isolated():
        some: Tensor = law.sample()
    return some


def _device_of(law: Any) -> torch.device:
    """Where a distribution's numbers are."""
    return _one_of(law).device


def _holds(law: Any, value: Tensor) -> Tensor:
    """Whether a distribution's support holds values (…, *batch, *event), of each in the batch."""
    if isinstance(law, Independent):
        each = _holds(law.base_dist, value)
        return each.flatten(-law.reinterpreted_batch_ndims).all(-1)
    if isinstance(law, MixtureSameFamily):  # torch's own support asks for all components'
        spread = value.unsqueeze(-1 - len(law.event_shape))
        return _holds(law.component_distribution, spread).any(-1)
    inside: Tensor = law.support.check(value)
    if type(law) is TransformedDistribution:  # of which torch knows what the last map returns
        for transform in reversed(law.transforms):
            value = transform.inv(value)
        base = _holds(law.base_dist, value)
        inside = inside & base.flatten(inside.ndim).all(-1) if base.ndim > inside.ndim else base
    return inside


def _has_density(support: Any) -> bool:
    """Whether a support has a volume in R^D: a simplex has none."""
    parts = getattr(support, "cseq", None) or [getattr(support, "base_constraint", support)]
    return not any(isinstance(part, type(known.simplex)) for part in parts)


def _transformed_bounds(law: Any, dim: int) -> tuple[Tensor, Tensor] | None:
    """The box that holds numbers made elementwise of those in a box; None for any other law."""
    if isinstance(law, Independent):
        return _transformed_bounds(law.base_dist, dim)
    if type(law) is not TransformedDistribution:  # torch's own families know their supports
        return None
    if any(t.domain.event_dim or not t.bijective for t in law.transforms):
        return None
    base = _transformed_bounds(law.base_dist, dim) or _bounds(law.base_dist.support, dim)
    if base is None:
        return None
    ends = []
    for kind in (torch.float64, _one_of(law).dtype):  # the box holds what rounds to its edge
        for end in base:
            value = end.to(kind)
            for transform in law.transforms:
                value = transform(value)
            ends.append(value.double().cpu())
    found = torch.stack(ends)
    if found.shape[1:] != (dim,) or bool(found.isnan().any()):
        return None
    low, high = found.amin(0), found.amax(0)
    stated = _bounds(law.support, dim)
    if stated is not None:  # torch's maps stop short of an open end
        low = torch.where(torch.isclose(low, stated[0], atol=1e-12), stated[0], low)
        high = torch.where(torch.isclose(high, stated[1], atol=1e-12), stated[1], high)
    return low, high


def _bounds(
    support: Any,
    dim: int,
) -> tuple[Tensor, Tensor] | None:
    """The box that a support is, as float64 (D,) each; None if it is of another form."""
    inner = getattr(support, "base_constraint", None)
    if inner is not None:
        return _bounds(inner, dim)
    parts = getattr(support, "cseq", None)
    if parts is not None:
        lengths = getattr(support, "lengths", [1] * len(parts))
        found = [_bounds(part, length) for part, length in zip(parts, lengths, strict=True)]
        pairs = [pair for pair in found if pair is not None]
        if len(pairs) < len(found) or sum(lengths) != dim:
            return None
        return torch.cat([low for low, _ in pairs]), torch.cat([high for _, high in pairs])
    if isinstance(support, type(known.real)):
        ends: tuple[Any, Any] = (-math.inf, math.inf)
    elif isinstance(support, known.interval | known.half_open_interval):
        ends = (support.lower_bound, support.upper_bound)
    elif isinstance(support, known.greater_than | known.greater_than_eq):
        ends = (support.lower_bound, math.inf)
    elif isinstance(support, known.less_than):
        ends = (-math.inf, support.upper_bound)
    else:
        return None
    low, high = (torch.as_tensor(end, dtype=torch.float64, device="cpu") for end in ends)
    if low.ndim > 1 or high.ndim > 1:
        return None
    return low.expand(dim).clone(), high.expand(dim).clone()
