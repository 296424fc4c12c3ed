"""Classifier-free guidance and autoguidance: v = (1 − β)·v₀ + β·v₁ on the arc."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.capabilities import Capability
from ..common.checks import real_number
from ..model.protocol import Model
from .guided import Guided, inside, noise_range, require_part, traced_velocity_fn


def classifier_free(
    sde: Model,
    scale: float,
    *,
    without: Model | None = None,
    interval: tuple[float, float] = (0.0, math.inf),
    rescale: float = 0.0,
) -> Model:
    """Return the model with score (1 − β)·∇log p(x) + β·∇log p(x | y), β the scale.

    β = 0 is the unconditional model and β = 1 the conditional one. β > 1 makes samples more typical
    of their condition and less diverse (Ho and Salimans write w = β − 1). It is not the
    distribution p(x)·p(y | x)^β: on a mixture of four components in 1-D, KL is 0.20 nats at β = 2
    and 1.2 at β = 5, however many steps, and the ODE and the SDE sample different distributions.
    `scoresde.particles` samples p(x)·p(y | x)^β itself.

    Parameters
    ----------
    sde : ScoreSDE
        The conditional model: `sde.given(y=3)`.
    scale : float
        β.
    without : ScoreSDE, optional
        What guides away: by default the same network without its conditions. A weaker model of the
        same data, such as a smaller or less trained one, gives autoguidance (Karras et al. 2024).
    interval : pair of float
        The noise levels σ/α where guidance acts; elsewhere the model is the conditional one
        (Kynkäänniemi et al. 2024). Adaptive solvers spend steps on its two ends.
    rescale : float
        From 0 to 1: the share of the guided velocity that is rescaled to the standard deviation
        over a sample's elements which the conditional one has (Lin et al. 2024, section 3.4). For
        images, whose contrast grows with β.

    Returns
    -------
    Model
        It works with every verb but `fit` and `save`. With closed-form traces, where both parts
        have them and rescale is 0.

    Raises
    ------
    TypeError, ValueError
        For parts that differ in process, shape or units, a model without conditions, or a network
        that was never shown data without its condition.

    References
    ----------
    Ho and Salimans, Classifier-free diffusion guidance, 2022. Karras et al., Guiding a diffusion
    model with a bad version of itself, NeurIPS 2024. Kynkäänniemi et al., Applying guidance in a
    limited interval, NeurIPS 2024. Lin et al., Common diffusion noise schedules and sample steps
    are flawed, WACV 2024.

    Examples
    --------
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), classes=3)
    >>> guided = scoresde.classifier_free(sde.given(y=2), 2.0)
    >>> scoresde.sample(guided, 4).shape
    torch.Size([4, 2])
    """
    model = require_part(sde, "classifier_free", Capability.VELOCITY)
    scale = real_number("scale", scale, -math.inf, math.inf)
    rescale = real_number("rescale", rescale, 0, 1, closed=True)
    if rescale and model.dim < 2:
        raise ValueError("rescale= takes the spread over a sample's elements, and this has one")
    if without is None:
        other = _unconditional(model)
    else:
        other = require_part(without, "classifier_free", Capability.VELOCITY)
    made = ClassifierFree(model, other, scale, noise_range(interval), rescale)
    made.require_one_space()
    return made


def _unconditional(model: Model) -> Model:
    """The same networks without conditions; ValueError if there are none, or they can't."""
    owners = list(model.trained())
    for owner in owners:
        interface = owner.interface
        names = interface.condition_names
        names = names or [name for name in model.condition if owner.takes_condition(name)]
        if not names and not interface.open:
            raise ValueError(
                "classifier_free takes a model with a condition, sde.given(y=3), and this network "
                "takes none; without= guides away from another model"
            )
        learnt = owner.learnt
        never = learnt is not None and not learnt["unconditional"]
        if never or not interface.can_do_without:
            raise ValueError(
                "this network was never shown data without its condition (condition_dropout=0), "
                "so there is nothing to guide away from: train it with condition_dropout=0.1, or "
                "give a model without= it"
            )
    return model.with_condition({}).given()


class ClassifierFree(Guided):
    """(1 − β)·v₀ + β·v₁."""

    def __init__(
        self,
        model: Model,
        without: Model,
        beta: float,
        interval: tuple[float, float] = (0.0, math.inf),
        rescale: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.without = without
        self._follows = not without.unconditional  # whether conditions reach it too
        self.beta = beta
        self.interval = interval
        self.rescale = rescale

    def _open(self) -> dict[str, Model]:
        """The parts that conditions reach: the unconditional one never."""
        if self._follows:
            return self.models
        return {"model": self.model}

    @property
    def factors(self) -> list[tuple[Model, float]]:
        """The parts and the powers of their densities, for `particles`."""
        if self.rescale or self.interval != (0.0, math.inf):
            raise ValueError(
                "interval= and rescale= make no power of densities: leave them out for particles"
            )
        return [(self.without, 1 - self.beta), (self.model, self.beta)]

    @property
    def cost(self) -> int:  # type: ignore[override]
        """The calls of both parts, or of the only one in use."""
        if self._one is not None:
            return self._one.cost
        return super().cost

    @property
    def _one(self) -> Model | None:
        """The part that is the whole model: the conditional one at β = 1, the other one at 0."""
        if self.beta == 1:
            return self.model
        if self.beta == 0 and self.interval == (0.0, math.inf):
            return self.without
        return None

    def traces(self, *, raw: bool = False) -> bool:
        """Whether both parts have closed-form traces, which then add up; see `Model.traces`."""
        return not self.rescale and all(part.traces(raw=raw) for part in self.models.values())

    def network_fn(self, *, raw: bool = False, traced: bool = False) -> Callable[..., Any]:
        """Return −dz/dφ, the output of an `edm` network; see `Model.network_fn`."""
        if not traced:
            velocity = self.velocity_fn(raw=raw)
            return lambda z, phi, rows=None: -velocity(z, phi, rows)
        if not self.traces(raw=raw):
            raise TypeError("a part of ClassifierFree has no trace in closed form, or it rescales")
        model = traced_velocity_fn(self.model, raw)
        without = traced_velocity_fn(self.without, raw)

        def output(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Any:
            both = self._combined(model, without, z, phi, rows)
            return -both[0], -both[1]

        return output

    def velocity_fn(self, *, raw: bool = False) -> Callable[..., Tensor]:
        """Return (1 − β)·v₀ + β·v₁; see `Model.velocity_fn`."""
        if self._one is not None:
            return self._one.velocity_fn(raw=raw)
        model = _alone(self.model.velocity_fn(raw=raw))
        without = _alone(self.without.velocity_fn(raw=raw))

        def velocity(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Tensor:
            return self._combined(model, without, z, phi, rows)[0]

        return velocity

    def _combined(
        self,
        model: Callable[..., tuple[Tensor, ...]],
        without: Callable[..., tuple[Tensor, ...]],
        z: Tensor,
        phi: Tensor | float,
        rows: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Velocity and trace, or the velocity alone, of the two parts together."""
        within = inside(phi, self.interval)
        if self.beta == 1 or within is False:
            return model(z, phi, rows)
        if self.beta == 0 and within is True:
            return without(z, phi, rows)
        ones = model(z, phi, rows)
        zeros = without(z, phi, rows)
        found = []
        for one, zero in zip(ones, zeros, strict=True):
            value = torch.lerp(zero, one, self.beta)
            if self.rescale:
                ratio = one.std(1, keepdim=True) / value.std(1, keepdim=True).clamp_min(1e-12)
                value = torch.lerp(value, ratio * value, self.rescale)
            if isinstance(within, Tensor):
                value = torch.where(within, value, one)
            found.append(value)
        return tuple(found)


def _alone(velocity: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """A velocity as a tuple of one."""
    return lambda z, phi, rows=None: (velocity(z, phi, rows),)
