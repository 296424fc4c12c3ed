"""Products of powers of models, Π pᵢ^aᵢ: products, tempering, negation.

With y = z/cos φ = x/α and u = tan φ = σ/α every process is y = x0 + u·ε. For s = Σ aᵢ the product
Π pᵢ^aᵢ is smoothed by noise of variance u² if each part is taken at noise √s·u, as a product of
Gaussian kernels of variance s·u² to powers that add up to s has variance u². So

    ∇log p_u(y) = Σ aᵢ·∇log pᵢ(y, √s·u),

which ends in N(0, I) on the arc, and is exact for Gaussians of one covariance. With
r² = cos²φ + s·sin²φ and φ' = atan(√s·tan φ) this reads

    v(z, φ) = (s − 1)·sin φ·cos φ/r²·z + Σ aᵢ·vᵢ(z/r, φ')/(√s·r).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.capabilities import Capability
from ..common.checks import brief_repr, real_number
from ..model.protocol import Model
from .guided import Guided, cosine_and_sine, require_part, traced_velocity_fn


def compose(parts: Sequence[tuple[Model, float]]) -> Model:
    """Return a model of Π pᵢ(x)^aᵢ, whose scores add up: products, mixtures of styles, negation.

    ∇log p_u = Σ aᵢ·∇log pᵢ at noise √(Σa)·u, u = σ/α: see `scoresde.guidance.powers`. At the data
    this is the score of the product. On the way to it, it is not that of the product's own noised
    states, so `sample` is biased, the more the further the parts differ (Du et al. 2023), but not
    for Gaussians of one covariance. `scoresde.particles` corrects it.

    Parameters
    ----------
    parts : sequence of (model, a)
        Models of one process, shape and units, and the powers of their densities, whose sum is
        positive. A negative power keeps away from what its model has.

    Returns
    -------
    Model

    Raises
    ------
    TypeError, ValueError
        For parts that differ in process, shape or units, that have no score, or Σa ≤ 0.

    References
    ----------
    Du et al., Reduce, reuse, recycle: compositional generation with energy-based diffusion models
    and MCMC, ICML 2023. Liu et al., Compositional visual generation with composable diffusion
    models, ECCV 2022.

    Examples
    --------
    N(1, 1)·N(−1, 1) is N(0, 1/2), up to a factor:

    >>> a, b = (
    ...     scoresde.oracle(scoresde.toy.GaussianMixture([[m]], 1.0), scoresde.VPSDE())
    ...     for m in (1.0, -1.0)
    ... )
    >>> score = scoresde.compose([(a, 1.0), (b, 1.0)]).score(torch.tensor([[0.5]]), 0.0)
    >>> score.round(decimals=3)
    tensor([[-1.]])
    """
    try:
        pairs = [(model, power) for model, power in parts]
    except (TypeError, ValueError):
        raise TypeError(
            f"compose takes pairs [(model, power), ...], got {brief_repr(parts)}"
        ) from None
    if not pairs:
        raise ValueError("compose takes at least one (model, power)")
    models = [require_part(model, "compose", Capability.SCORE) for model, _ in pairs]
    powers = [real_number("power", a, -math.inf, math.inf) for _, a in pairs]
    if not math.fsum(powers) > 0:
        raise ValueError(
            f"the powers add up to {math.fsum(powers):g}: a density needs a positive sum, as pure "
            "noise has that power"
        )
    made = Composed(models, powers)
    made.require_one_space()
    return made


def temper(sde: Model, power: float) -> Model:
    """Return a model of p(x)^a, up to a factor: a > 1 sharpens, a < 1 flattens.

    As `compose([(sde, a)])`: exact for a Gaussian. For modes that lie apart, each gets the right
    shape, and their weights stay nearly those of p: `scoresde.particles` gives the right ones.

    Parameters
    ----------
    sde : ScoreSDE
    power : float
        a > 0, the inverse temperature.

    Returns
    -------
    Model

    Raises
    ------
    TypeError, ValueError
        For a model without a score, or a ≤ 0.

    Examples
    --------
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 1), 1.0)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE()).double()
    >>> cold = scoresde.temper(sde, 4.0)
    >>> x = torch.zeros(1, 1, dtype=torch.float64)
    >>> (scoresde.log_prob(cold, x) - scoresde.log_prob(sde, x)).exp()  # a std of 1/2
    tensor([2.0000], dtype=torch.float64)
    """
    model = require_part(sde, "temper", Capability.SCORE)
    return Composed([model], [real_number("power", power, 0, math.inf)])


class Composed(Guided):
    """Π pᵢ^aᵢ."""

    keeps_categories = False

    def __init__(self, models: Sequence[Model], powers: Sequence[float]) -> None:
        super().__init__(models[0])
        self._parts = ["model"]
        for number, model in enumerate(models[1:], start=1):
            name = f"part{number}"
            setattr(self, name, model)
            self._parts.append(name)
        self.powers = tuple(powers)

    @property
    def factors(self) -> list[tuple[Model, float]]:
        """The parts and the powers of their densities."""
        return [(getattr(self, n), a) for n, a in zip(self._parts, self.powers, strict=True)]

    @property
    def phi_min(self) -> float:
        """Where solves end, so that no part is asked below its own end."""
        return math.atan(math.tan(super().phi_min) / min(1.0, math.sqrt(sum(self.powers))))

    def traces(self, *, raw: bool = False) -> bool:
        """Whether all parts have closed-form traces, which then add up; see `Model.traces`."""
        return all(part.traces(raw=raw) for part in self.models.values())

    def network_fn(self, *, raw: bool = False, traced: bool = False) -> Callable[..., Any]:
        """Return −dz/dφ, the output of an `edm` network; see `Model.network_fn`."""
        if not traced:
            velocity = self.velocity_fn(raw=raw)
            return lambda z, phi, rows=None: -velocity(z, phi, rows)
        if not self.traces(raw=raw):
            raise TypeError("a part of Composed has no trace in closed form")
        parts = [traced_velocity_fn(part, raw) for part, _ in self.factors]

        def output(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Any:
            k, r, angle = self._shift(phi, z)
            v = k * z
            trace = torch.zeros_like(z[:, :1]) + k * z.shape[1]
            for (_, power), part in zip(self.factors, parts, strict=True):
                velocity, divergence = part(z / r, angle, rows)
                v = v + (power / (self._root * r)) * velocity
                trace = trace + (power / (self._root * r * r)) * divergence
            return -v, -trace

        return output

    def velocity_fn(self, *, raw: bool = False) -> Callable[..., Tensor]:
        """Return the velocity of the product; see `scoresde.guidance.powers`."""
        parts = [(part.velocity_fn(raw=raw), power) for part, power in self.factors]

        def velocity(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Tensor:
            k, r, angle = self._shift(phi, z)
            v: Tensor = k * z
            for part, power in parts:
                v = v + (power / (self._root * r)) * part(z / r, angle, rows)
            return v

        return velocity

    @property
    def _root(self) -> float:
        """√s."""
        return math.sqrt(sum(self.powers))

    def _shift(self, phi: Tensor | float, z: Tensor) -> tuple[Any, Any, Tensor | float]:
        """(s − 1)·sin φ·cos φ/r², r, and the angle φ' at which the parts are evaluated."""
        total = sum(self.powers)
        if total == 1:
            return 0.0, 1.0, phi
        cos, sin = cosine_and_sine(phi, z)
        square = cos * cos + total * sin * sin
        most = self.process.phi_max
        r: Any
        angle: Tensor | float
        if isinstance(phi, Tensor):
            r = square.sqrt() if isinstance(square, Tensor) else math.sqrt(square)
            angle = torch.atan2(self._root * phi.sin(), phi.cos()).clamp_max(most)
        else:
            r = math.sqrt(square)
            angle = min(math.atan2(self._root * sin, cos), most)
        return (total - 1) * sin * cos / square, r, angle
