"""What guided models share: tensors of their own a sample, velocities with traces, noise ranges.

A guided model combines the velocities dz/dφ of its parts on the arc (`scoresde.model.arc`), so
solvers, likelihoods and bounds work with it as with any model. u = tan φ = σ/α is the noise level.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..common.capabilities import Capability
from ..common.checks import brief_repr, real_number
from ..common.inputs import as_tensor
from ..model.derived import Derived
from ..model.protocol import Model
from ..model.require import require_model
from ..processes.base import as_time

LARGEST_ANGLE = math.acos(1e-3)
"""The angle in radians above which a gradient of guidance is taken at this angle instead.

∇log p(y | z) vanishes like cos φ towards pure noise, and tan φ·∇log p(y | z) does not: above this
angle it is a quotient of two small numbers.
"""

_NUMBERS = itertools.count()


class Guided(Derived):
    """A model whose velocity is made from those of its parts, and from tensors of its own.

    Tensors with one row for all samples, or one a sample, live in `condition`, so that batches,
    chunks and ranks take their rows.
    """

    def __init__(self, model: Model, **tensors: Tensor) -> None:
        super().__init__(model)
        prefix = f"{type(self).__name__}{next(_NUMBERS)}"
        self._names = {name: f"{prefix}.{name}" for name in tensors}
        self._tensors = {self._names[name]: value for name, value in tensors.items()}

    def tensor(self, name: str, rows: Tensor | None, like: Tensor) -> Tensor:
        """One of its tensors for the states of a call: one row for all, or a row each."""
        value = self._tensors[self._names[name]]
        if value.is_inference():
            with torch.inference_mode(False):
                value = value.clone()  # which gradients can pass
        if value.is_floating_point():
            value = value.to(like)
        elif value.device != like.device:
            value = value.to(like.device)
        if rows is not None and len(value) > 1:
            value = value[rows]
        return value

    def _in_place(self, name: str, *args: Any, **kwargs: Any) -> Self:
        """Move, convert or set the mode of its parts, and move networks of its own."""
        super()._in_place(name, *args, **kwargs)
        for value in vars(self).values():
            if isinstance(value, nn.Module) and not isinstance(value, Model):
                value.to(self.device)
        return self

    @property
    def keeps_categories(self) -> bool:  # type: ignore[override]
        """Whether categories of a table are as frequent as without guidance."""
        return all(model.keeps_categories for model in self.models.values())

    @property
    def condition(self) -> Mapping[str, Tensor]:
        """The conditions of its parts, and its own tensors."""
        return {**super().condition, **self._tensors}

    def takes_condition(self, name: str) -> bool:
        """Whether a part takes a condition of that name, or it is a tensor of its own."""
        return name in self._tensors or super().takes_condition(name)

    def with_condition(self, condition: Mapping[str, Tensor]) -> Self:
        """Return this model with its parts conditioned, and its own tensors where they are."""
        made = super().with_condition(condition)
        own = {name: condition.get(name, value) for name, value in self._tensors.items()}
        made._tensors = own
        return made

    def slice_conditions(self, start: int, stop: int, total: int) -> Self:
        """Return this model for some samples of a call; see `Model.slice_conditions`."""
        made = super().slice_conditions(start, stop, total)
        found = {}
        for name, value in self._tensors.items():
            if len(value) not in (1, total):
                word = name.rpartition(".")[2]
                raise ValueError(
                    f"{word} has {len(value)} rows for {total} samples; wanted 1 or n"
                )
            part = value if len(value) == 1 else value[start:stop]
            found[name] = part.to(self.device)
        made._tensors = found
        return made

    def select_conditions(self, rows: Tensor) -> Self:
        """Return this model for chosen rows of its conditions; see `Model.select_conditions`."""
        made = super().select_conditions(rows)
        made._tensors = {
            name: value if len(value) == 1 else value[rows.to(value.device)]
            for name, value in self._tensors.items()
        }
        return made


def require_part(model: Any, verb: str, *needs: Capability) -> Model:
    """A model to be guided, which has what guidance needs of it."""
    found = require_model(model, verb)
    has = found.capabilities
    if Capability.SCORE in needs and Capability.VELOCITY in has and Capability.SCORE not in has:
        raise ValueError(
            f"{verb} needs a score, and this model has only a velocity (it learnt from coupled "
            "pairs, or has a source): guide the model that was there before reflow; "
            "classifier_free takes velocities"
        )
    for need in needs:
        if need not in has:
            found.require(need)
    return found


def own_tensor(name: str, value: Any) -> Tensor:
    """A tensor of one row for all samples or a row each, checked: finite, and not empty."""
    found = as_tensor(value, name)
    if not found.ndim:
        found = found[None]
    if not len(found):
        raise ValueError(f"{name} has no rows: shape {tuple(found.shape)}")
    if found.is_floating_point() and not bool(found.isfinite().all()):
        raise ValueError(f"{name} has NaN or infinite values")
    return found.detach()


def noise_range(interval: Any) -> tuple[float, float]:
    """An interval of noise levels σ/α, checked: 0 ≤ low < high ≤ ∞."""
    try:
        low, high = interval
    except (TypeError, ValueError):
        raise TypeError(
            f"interval is a pair (low, high) of noise levels σ/α, got {brief_repr(interval)}"
        ) from None
    low = real_number("interval[0]", low, 0, math.inf, closed=True)
    if high != math.inf:
        high = real_number("interval[1]", high, low, math.inf)
    return low, float(high)


def inside(phi: Tensor | float, interval: tuple[float, float]) -> bool | Tensor:
    """Whether low ≤ tan φ ≤ high: for one angle a bool, for angles (B,) a mask (B, 1)."""
    low, high = interval
    if low == 0 and high == math.inf:
        return True
    least = math.atan(low)
    most = math.atan(high)
    if not isinstance(phi, Tensor):
        return least <= phi <= most
    if not phi.ndim:
        return least <= float(phi) <= most
    return ((phi >= least) & (phi <= most)).unsqueeze(1)


def below_noise(phi: Tensor | float) -> Tensor | float:
    """Angles, at most `LARGEST_ANGLE`."""
    if isinstance(phi, torch.Tensor):
        return phi.clamp_max(LARGEST_ANGLE)
    return min(phi, LARGEST_ANGLE)


def cosine_and_sine(phi: Tensor | float, like: Tensor) -> tuple[Any, Any]:
    """(cos φ, sin φ): floats for one angle, (B, 1) in the dtype of `like` for angles (B,)."""
    if isinstance(phi, Tensor) and phi.ndim:
        angle = phi.unsqueeze(1)
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)
    return math.cos(phi), math.sin(phi)


def traced_velocity_fn(model: Model, raw: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """dz/dφ and its divergence (B, 1) as a function, from a network's trace in closed form."""
    output = model.network_fn(raw=raw, traced=True)

    def velocity(
        z: Tensor, phi: Tensor | float, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        out, trace = output(z, phi, rows)
        if model.predict == "edm":
            return -out, -trace
        c = model.coefficients(as_time(phi)).to(z)
        k = c.a * c.cos + c.b * c.sin
        return (out - k * z) / c.det, (trace - k * z.shape[1]) / c.det

    return velocity
