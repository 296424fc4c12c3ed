"""The importance-weighted bound on log p(x) of a first stage with a score model of its latents.

With K latents z_k from q(z|x) (Burda et al. 2016),

    log p(x) ≥ E log (1/K) Σ_k p(x|z_k)·p(z_k)/q(z_k|x),

which rises with K to log p(x). p(z) is exact for the score model: noise in log p(z_k) would weigh
draws by exp of it, and lift the mean of the sum by half its variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from ..common import progress as bars
from ..common.checks import check_budget, check_generator, whole_number
from ..common.progress import shows_progress
from ..common.random import PATH, Noise, draw_seed
from ..common.result_tables import Grid, ShownAsTable, by_sample, counted
from ..common.seeds import takes_seed
from ..model.autoencoder import Encoded
from ..model.eval_mode import evaluating
from ..model.latent import Latent
from .exact import likelihood, log_prob
from .options import DensityOptions

LATENTS_AT_ONCE = 8192
SAMPLES_AT_ONCE = 512
"""Samples that encoder and decoder are given at once."""


@dataclass(frozen=True, repr=False)
class LatentBound(ShownAsTable):
    """What `latent_bound` returns.

    Attributes
    ----------
    log_prob : Tensor, shape (B,)
        Nats, in the units of the data; on average over its draws below log p(x).
    ess : Tensor, shape (B,)
        (Σw)²/Σw² of the weights, from 1 to the number of draws: near 1, one draw decides, and the
        bound is loose.

    Examples
    --------
    See `latent_bound`.
    """

    log_prob: Tensor
    ess: Tensor

    def _grid(self) -> Grid:
        title = f"Lower bound on log p of {counted(len(self.ess), 'sample')}, in nats"
        return by_sample(title, {"bound": self.log_prob, "ess": self.ess})


class OneDraw(NamedTuple):
    """log p(x|z)·p(z)/q(z|x) (B,) of one draw z per sample; errors of log p(z) as `Likelihood`."""

    log_prob: Tensor
    stderr: Tensor
    solver_error: Tensor
    prior_gap: Tensor
    nfe: Tensor


@takes_seed
@shows_progress
@torch.no_grad()
def latent_bound(
    model: Latent,
    x: Tensor,
    draws: int = 100,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    **how: Unpack[DensityOptions],
) -> LatentBound:
    """Return a lower bound on log p(x) of a `Latent`, by importance weights.

    log (1/K) Σ_k p(x|z_k)·p(z_k)/q(z_k|x) with z_k from q(z|x); K = 1 is the bound of variational
    autoencoders. p(z_k) takes a solve for each draw, so the cost is K log-likelihoods a sample.

    Parameters
    ----------
    model : Latent
        Of a variational stage, with or without conditions.
    x : Tensor, array or data frame, shape (B, *shape)
        In the units of the data. Columns of a frame are matched by the names that the stage knows.
    draws : int
        K.
    generator : torch.Generator, optional
        The randomness: that of sample i does not depend on the others.
    seed : int, optional
        An integer in place of the generator.
    **how
        Of `log_prob` for the latents: solver, rtol, atol, steps, progress. Its trace is the exact
        one; a single draw may have trace="hutchinson", whose error then has mean 0.

    Returns
    -------
    LatentBound

    Raises
    ------
    TypeError
        For other models, a vector-quantized stage, whose q(z|x) has no density, and probes.
    ValueError
        For x of the wrong shape.
    SolverError
        As `log_prob`.

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, ICLR 2016. Vahdat et al.,
    Score-based generative modeling in latent space, NeurIPS 2021.

    Examples
    --------
    >>> stage = scoresde.first_stage("vae", shape=(6,), latent=(2,), width=16)
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> x = torch.randn(5, 6)
    >>> scoresde.latent_bound(scoresde.Latent(stage, sde), x, draws=3).log_prob.shape
    torch.Size([5])
    """
    draws = whole_number("draws", draws)
    model = _checked(model, how, draws)
    check_generator(generator)
    stage = model.stage
    x = model.accept(x)
    model.slice_conditions(0, len(x), len(x))
    width = math.prod(stage.latent)
    check_budget(f"{draws} draws of {len(x)} samples", calls=draws * len(x) / LATENTS_AT_ONCE)
    seed = draw_seed(generator)
    rows = max(1, LATENTS_AT_ONCE // draws)
    found = []
    with evaluating(model):
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            q = _posterior(stage, part)
            noise = Noise(seed, PATH, start, start + len(part), width, q.mean)
            eps = torch.stack([noise() for _ in range(draws)], 1)
            of = model.model.slice_conditions(start, start + len(part), len(x))
            with bars.part(start, start + len(part), len(x), "sample"):
                found.append(_weights(model, of, part, q, eps.double(), how))
    weights = torch.cat(found)
    total = torch.logsumexp(weights, 1)
    ess = (2 * total - torch.logsumexp(2 * weights, 1)).exp()
    return LatentBound(total - math.log(draws), ess)


@torch.no_grad()
def one_draw(
    model: Latent, x: Tensor, generator: torch.Generator | None, how: dict[str, Any]
) -> OneDraw:
    """The bound by one draw for each sample, with the errors that `likelihood` reports."""
    x = model.accept(x)
    model.slice_conditions(0, len(x), len(x))
    seed = draw_seed(generator)
    stage = model.stage
    width = math.prod(stage.latent)
    latents = []
    weights = []
    with evaluating(model):
        for start in range(0, len(x), SAMPLES_AT_ONCE):
            part = x[start : start + SAMPLES_AT_ONCE]
            q = _posterior(stage, part)
            noise = Noise(seed, PATH, start, start + len(part), width, q.mean)
            eps = noise().double()
            z = q.mean + q.scale * eps.to(q.scale).reshape(q.scale.shape)
            weight = stage.log_likelihood(part, z).double() - _log_q(q.scale.flatten(1), eps)
            latents.append(z)
            weights.append(weight)
        found = likelihood(model.model, torch.cat(latents), generator=generator, **how)
    log_w = torch.cat(weights) + found.log_prob.double()
    return OneDraw(log_w, found.stderr, found.solver_error, found.prior_gap, found.nfe)


def _posterior(stage: Any, x: Tensor) -> Any:
    """q(z|x) of samples; TypeError for a stage without a density of latents."""
    parts = [stage.encode(part) for part in torch.split(x, SAMPLES_AT_ONCE)]
    if parts[0].scale is None:
        raise TypeError(
            "a vector-quantized stage has no density q(z|x), and so no bound on log p(x)"
        )
    return Encoded(torch.cat([q.mean for q in parts]), torch.cat([q.scale for q in parts]))


def _log_q(scale: Tensor, eps: Tensor) -> Tensor:
    """log q(z|x) of z = mean + scale·ε, summed over the last axis."""
    log_q = -0.5 * eps.square() - scale.double().log() - 0.5 * math.log(2 * math.pi)
    total: Tensor = log_q.sum(-1)
    return total


def _weights(model: Latent, of: Any, x: Tensor, q: Any, eps: Tensor, how: Any) -> Tensor:
    """log p(x|z_k) + log p(z_k) − log q(z_k|x), (B, K) in float64."""
    b, draws = eps.shape[:2]
    scale = q.scale.flatten(1).unsqueeze(1)
    z = q.mean.flatten(1).unsqueeze(1) + scale * eps.to(scale)
    which = torch.arange(b, device=x.device).repeat_interleave(draws)
    z = z.reshape(b * draws, *model.stage.latent)
    log_p = log_prob(of.select_conditions(which), z, **how)
    parts = zip(torch.split(which, SAMPLES_AT_ONCE), torch.split(z, SAMPLES_AT_ONCE), strict=True)
    log_x = [model.stage.log_likelihood(x.index_select(0, i), part) for i, part in parts]
    weights: Tensor = (torch.cat(log_x).double() + log_p.double()).reshape(b, draws)
    return weights - _log_q(scale, eps)


def _checked(model: Any, how: Any, draws: int) -> Latent:
    """The model, if the bound can be computed for it in this way."""
    if not isinstance(model, Latent):
        raise TypeError(
            f"latent_bound takes a scoresde.Latent, got {type(model).__name__}; log_prob takes "
            "score models"
        )
    estimated = how.get("trace", "exact") != "exact" or how.get("probes") is not None
    if estimated and draws > 1:
        raise TypeError(
            "the bound needs exact log p(z): noise of a trace estimated by probes, inside the log "
            "of a sum, would lift it above log p(x); leave trace= and probes= out, or take draws=1"
        )
    return model
