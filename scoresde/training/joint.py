r"""Training of a first stage together with the score model of its latents.

The bound on log p(x) of both, with z ~ q(z|x) and its standardized state u, is

    log p(x) ≥ E[log p(x|z)] + H(q(z|x)) − CE(q(z|x) ‖ p(z)),

and the cross entropy is bounded by that of the reverse SDE (`scoresde.density.bounds`),

    CE ≤ E[−log N(u; 0, I) − ∫ cot θ·(2v·u* − ‖v‖²) dθ] + log|det scale|,

one level θ and one noise for each row. The encoder needs this integral as it stands: another
weight moves its optimum. The score network has the same optimum for every weight w(φ) > 0 of the
squared error. Rows of a batch do not mix, so that one pass through the network is enough for both:
the loss of a row is weighted by w, and the gradient that it sends to u divided by w.

Mean and scale of latents stay as they were before. The score model's p(z) includes them, so it is
exact wherever the latents move. New ones would be those of another p(z), which no network has
learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from ..common.capabilities import Capability
from ..density.bound_levels import level_at, level_range, onto_arc
from ..model.autoencoder import FirstStage
from ..model.joint import Joint
from ..model.latent import Latent
from ..model.network import misshapen
from ..model.require import require_sde
from ..model.score_sde import ScoreSDE
from ..model.trainable import Trainable
from .fitting import fit
from .history import History
from .keywords import StageKeywords
from .objectives import Condition, Objective, expand_rows
from .regression import WEIGHTS, check_weight
from .stages import check_output

LEAST_WEIGHT = 1e-6
"""Of the score network's loss, where its gradient is divided by it."""


@dataclass(frozen=True)
class Level:
    """Where on the arc each row is: numbers (B, 1), but for the angle (B,) in float64."""

    phi: Tensor
    cos: Tensor
    sin: Tensor
    turn: Tensor
    weight: Tensor
    """Of the integral over levels."""
    own: Tensor | None
    """Of the score network's loss; None for 1."""
    radius: float
    """Of the arc at the data."""
    log_scale: float
    """From states on the arc to latents, in nats."""


@dataclass
class JointBound(Objective):
    """The negative bound on log p(x) of a first stage and a score model, in nats per number of x.

    Parameters
    ----------
    weight : str
        Of the score network's loss, a key of `scoresde.WEIGHTS`.
    """

    weight: str = "edm"
    trains: ClassVar[type[Trainable]] = Joint

    def __post_init__(self) -> None:
        check_weight(self.weight)
        self._log_scale: tuple[Any, float] = (None, 0.0)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {"objective": "joint", "joint_weight": self.weight}

    def __call__(  # noqa: D102
        self,
        net: Callable[..., Any],
        sde: Joint,
        z0: Tensor,
        eps: Tensor,
        q: Tensor,
        condition: Condition,
        progress: float,
        generator: torch.Generator,
    ) -> Tensor:
        latents = sde.latents
        if latents.free is not None:
            raise ValueError(
                "some channels of the latents are constant, and have no density: take fewer "
                "channels, latent=, or fit the first stage anew"
            )
        dtype = latents.state_dtype
        shape = (len(z0), *sde.stage.latent)
        noise = torch.randn(shape, generator=generator, device=z0.device, dtype=sde.net_dtype)
        size = (len(z0), latents.dim)
        eps = torch.randn(size, generator=generator, device=z0.device, dtype=dtype)
        level = self._level(latents, q, dtype)
        condition = expand_rows(condition, len(z0))
        (nats,) = net(bound_terms, sde, z0, noise, eps, level, **condition)
        loss: Tensor = nats.mean() / sde.dim
        return loss

    def _level(self, latents: ScoreSDE, q: Tensor, dtype: torch.dtype) -> Level:
        """The levels of quantiles."""
        length = level_range(latents)
        cos, sin, weight = level_at(length * q)
        phi, turn = onto_arc(latents, cos, sin)
        own = None
        if self.weight != "edm":
            own = WEIGHTS[self.weight](latents.process, phi).clamp_min(LEAST_WEIGHT)
            own = own.to(dtype).unsqueeze(1)
        cos, sin, turn, weight = (y.to(dtype).unsqueeze(1) for y in (cos, sin, turn, weight))
        radius = float(latents.process.radius(0.0))
        units = latents.standardization
        if self._log_scale[0] is not units:  # once, as it waits for the device
            self._log_scale = (units, units.log_scale)
        log_scale = self._log_scale[1] + latents.dim * math.log(radius)
        return Level(phi, cos, sin, turn, length * weight, own, radius, log_scale)


def bound_terms(
    stage_net: Any,
    latent_net: Any,
    sde: Joint,
    z0: Tensor,
    noise: Tensor,
    eps: Tensor,
    level: Level,
    /,
    **condition: Tensor,
) -> tuple[Tensor]:
    """−log p(x|z) − H(q(z|x)) + CE(q(z|x) ‖ p(z)) of each row, (B,), from one draw of each.

    In a tuple, as a tensor would be taken for a network's output, of which constants are dropped.
    """
    stage = sde.stage
    x = stage.standardization.spread(z0).to(noise.dtype)
    mean, scale = stage_net.encode(x)
    if scale is None:
        raise TypeError(NO_DENSITY)
    z = mean + scale * noise
    out = stage_net.outputs(z)
    check_output(stage_net, x, out)
    log_x = stage._log_of_states(stage_net, z0, out)
    log_q = -0.5 * noise.square() - scale.log() - 0.5 * math.log(2 * math.pi)
    cross = cross_entropies(latent_net, sde.latents, z, eps, level, condition)
    return (cross + (log_q.flatten(1).sum(1).to(log_x) - log_x),)


def cross_entropies(
    net: Any, latents: ScoreSDE, z: Tensor, eps: Tensor, level: Level, condition: Condition
) -> Tensor:
    """Estimates (B,) of a bound on −log p(z), whose gradient by z is that of the bound.

    The gradient by weights of the network is that of the loss with the weights of `level.own`.
    """
    u = latents.from_data(z).to(eps.dtype) / level.radius
    own = level.own
    state = u if own is None else u.detach() + (u - u.detach()) / own
    wanted = level.cos * eps - level.sin * state
    v = level.turn * _velocity(net, latents, level.cos * state + level.sin * eps, level, condition)
    gained = level.weight * v * (2 * wanted - v)
    known = 0.5 * (u.square() + math.log(2 * math.pi))
    if own is None:
        return (known - gained).sum(1) + level.log_scale
    # the value of the bound, with the gradients of the weighted loss
    loss = known - own * gained
    value = known - gained
    return (loss + (value - loss).detach()).sum(1) + level.log_scale


def _velocity(
    net: Any, latents: ScoreSDE, z: Tensor, level: Level, condition: Condition
) -> Tensor:
    """The velocity of a network at states z (B, n) on the arc, one level a row."""
    parameter = next(net.parameters(), z)
    x, t, _ = latents.inputs(z, level.phi, parameter.dtype)
    out = net(x, t, **condition)
    if not isinstance(out, Tensor) or out.shape != x.shape:
        raise ValueError(misshapen(x, out))
    out = out.flatten(1).to(z.dtype)
    if latents.predict == "edm":
        return -out
    c = latents.coefficients(level.phi).to(z)
    velocity: Tensor = (out - (c.a * c.cos + c.b * c.sin) * z) / c.det
    return velocity


NO_DENSITY = (
    "a vector-quantized stage has no density q(z|x), whose entropy joint training needs: take a "
    "'vae', or fit_stage and then fit"
)


def fit_joint(
    model: Latent, data: Any, *, weight: str = "edm", **how: Unpack[StageKeywords]
) -> History:
    """Train a first stage and the score model of its latents together, by their joint bound.

    Maximizes E log p(x|z) + H(q(z|x)) − CE(q(z|x) ‖ p(z)), with z from q(z|x) and the cross
    entropy as the likelihood-weighted denoising integral of the score model: see
    `scoresde.training.joint`. It is the bound of `latent_bound` with one draw, but for p(z), which
    is that of the reverse SDE here and of the ODE there. Train both parts before, by `fit_stage`
    and `fit`: from a stage whose latents mean nothing yet, joint training is slow. It has a weight
    of 1 for the KL, whatever `fit_stage` had.

    Mean and scale of the latents stay those that `fit` measured, or are measured first if the
    score model was never fitted; p(z) includes them, and follows the latents where they move.

    Parameters
    ----------
    model : Latent
        Of a variational stage that is fitted. Both parts are trained in place, and left in eval
        mode.
    data
        As for `fit`: x, not latents.
    weight : str
        Of the score network's own loss: a key of `scoresde.WEIGHTS`. Encoder and decoder always
        have that of the bound, in the same pass. With "edm" so has the score network.
    **how
        Arguments of `fit`: given (conditions of the score model), steps, batch_size, lr,
        checkpoints, validation, backend, seed, … `load(folder)` of its checkpoints is the Latent.

    Returns
    -------
    History
        Its loss is the negative bound, in nats per number of standardized x.

    Raises
    ------
    TypeError
        For another model than a Latent of one variational stage and one score model.
    ValueError
        For a stage that was never fitted or is frozen, and for score models that joint training
        has no bound for.
    TypeError, ValueError, TrainingError, CheckpointError
        As `fit`.

    References
    ----------
    Vahdat, Kreis & Kautz, Score-based generative modeling in latent space, NeurIPS 2021: theorem 1
    for the cross entropy, algorithms 1–3 for the two weights.

    Examples
    --------
    >>> stage = scoresde.first_stage("vae", shape=(6,), latent=(2,), width=16)
    >>> model = scoresde.Latent(stage, scoresde.build("vp", "mlp", shape=(2,), width=16))
    >>> x = torch.randn(200, 6)
    >>> history = scoresde.fit_stage(stage, x, steps=20, progress=False)
    >>> history = scoresde.fit(model, x, steps=20, progress=False)
    >>> fit_joint(model, x, steps=20, progress=False)
    History(steps=20, loss=..., seconds=...)
    """
    if not isinstance(model, Latent):
        raise TypeError(
            f"fit_joint takes a Latent, got {type(model).__name__}: write Latent(stage, "
            "scoresde.build('vp', 'mlp', shape=stage.latent))"
        )
    if "objective" in how:
        raise TypeError("fit_joint has its own objective: fit(model, data, objective=…)")
    if how.get("coupling") is not None:
        raise TypeError("fit_joint pairs latents with noise as they come: leave coupling= out")
    objective = JointBound(weight)
    latents = require_sde(model.model, "fit_joint")
    _check(model.stage, latents)
    return fit(Joint(model, model.stage, latents), data, objective=objective, **how)


def _check(stage: FirstStage, latents: ScoreSDE) -> None:
    """Raise for parts that have no joint bound, or that can't be trained."""
    if hasattr(stage.net, "codebook"):
        raise TypeError(NO_DENSITY)
    if stage.table is not None:
        raise TypeError("this first stage has learnt a table, and a Latent is fitted to tensors")
    for name, part in (("first stage", stage), ("score model", latents)):
        if not any(p.requires_grad for p in part.net.parameters()):
            raise ValueError(
                f"the {name} is frozen, and joint training changes it: fit(model, data) trains the "
                "score model alone, fit_stage(model.stage, data) the stage"
            )
    if latents.interface.has_variance:
        raise ValueError(
            "joint training leaves the variance untrained that this score model has learnt: build "
            "it without variance="
        )
    if Capability.SCORE not in latents.capabilities or latents.source is not None:
        raise ValueError(
            f"joint training bounds log p(z) by a score, and this score model has learnt "
            f"{latents.outcome.name!r}: fit(model, data) with the default objective"
        )
    if latents.interface.takes_gaps:
        raise ValueError("latents have no gaps: build a score model with another network")
