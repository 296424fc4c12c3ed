"""log p with its error bars: the trace's, the solver's with rounding, and that of the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.result_tables import Grid, ShownAsTable, by_sample, counted
from ..model.protocol import Model
from .density_ode import DensityODE, DensitySolve, rounding_unit, score_at_data
from .prior import log_prior, prior_gap

SAFETY = 10.0
"""solver_error over the difference to the check. Where both solves err alike, by independent
amounts, it holds 97% of the errors: |a − b| < |a|/10 has the probability 0.032 for normal a, b."""
ROUNDING = 0.5
"""Rounding that is stated, over the estimate of it, which is high."""


@dataclass(frozen=True, repr=False)
class Likelihood(ShownAsTable):
    """log p of some samples, and how far to trust it.

    Attributes
    ----------
    log_prob : Tensor, shape (B,)
        log p(x) in nats, with respect to the units of the data.
    stderr : Tensor, shape (B,)
        Standard error of log_prob from the estimated trace, in nats: 0 for a trace without
        randomness, NaN for a single estimate. With few probes it is widened as Student's t asks:
        if estimates were normal, ±2 of it would hold the exact value in 95.4% of runs. They are
        skewed, and it does in 84 to 94% with random signs (74% with two of them in three
        dimensions, where they often come out equal) and 84 to 97% with normal probes, in 2 to 80
        dimensions.
    solver_error : Tensor, shape (B,)
        Estimated error of the solve and its arithmetic, in nats: 10 times the difference to a more
        exact solve, or rounding if that is more. The other solve is by "adams" at a tenth of the
        tolerance, and at most 1e-5, and for fixed steps by the same solver with twice as many.
        For trained networks that were not looked at before, in float32 and float64, it held the
        true error of 94% of points or more with every solver, tolerance and number of steps tried,
        and was 4 to 16 times too large in the median. NaN where the other solve fails, and for
        an adaptive solver of one's own without rtol and atol.
    prior_gap : Tensor, shape (B,)
        How far log p(x) moves if p(z_1) by the model's own score replaces the prior N(0, I), in
        nats, without its sign. It is rounded up by a tenth or more, so that it holds the gap of
        95% of points. It is 0 where `prior` was given, and only rounding where the path ends in
        pure noise (rectified flow).
    nfe : Tensor of int, shape (B,)
        Network evaluations of each sample's solve, without those of its error; each comes with a
        trace.
    latent : Tensor, shape (B, *shape)
        Where x ends at t = 1, in the units of the data.

    Examples
    --------
    >>> import scoresde
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> scoresde.likelihood(scoresde.oracle(gaussian, scoresde.VPSDE()), torch.zeros(1, 2))
    Likelihood of 1 sample, in nats
        log p  ± trace   ± solver    ± prior  nfe
    0  -1.838        0  ...
    """

    log_prob: Tensor
    stderr: Tensor
    solver_error: Tensor
    prior_gap: Tensor
    nfe: Tensor
    latent: Tensor

    def _grid(self) -> Grid:
        title = f"Likelihood of {counted(len(self.log_prob), 'sample')}, in nats"
        columns = {
            "log p": self.log_prob,
            "± trace": self.stderr,
            "± solver": self.solver_error,
            "± prior": self.prior_gap,
            "nfe": self.nfe,
        }
        return by_sample(title, columns)


def likelihood_columns(
    sde: Model,
    ode: DensityODE,
    data: Tensor,
    start: int,
    seed: int,
    prior: Any,
) -> tuple[Tensor, ...]:
    """The columns of a `Likelihood`, of data (B, n) on the arc: samples start, … of a call."""
    solved = ode.solve(sde, data, start, seed)
    checked = ode.solve_again(sde, data.detach(), start, seed)
    first = ode.levels[0]
    last = ode.levels[-1]
    z = solved.z
    nan = z.new_full((len(z),), math.nan)
    latent = sde.to_data(z * last.radius)
    log_p = log_prior(sde, prior, z, last.radius) + solved.gain
    nfe = torch.as_tensor(solved.counts.nfe, device=z.device)
    error = nan
    if checked is not None:
        end, gain = checked
        exact = log_prior(sde, prior, end, last.radius) + gain
        difference = (log_p - exact).detach()
        rounding = _rounding(sde, ode, data.detach(), log_p.detach().abs(), solved, nfe)
        error = torch.maximum(SAFETY * difference.abs(), rounding)
    if prior is not None:
        gap = torch.zeros_like(solved.stderr)
    elif ode.errors:
        gap = prior_gap(sde, z.detach(), last, solved.traced, sde.network_fn(raw=ode.raw))
    else:
        gap = nan
    return (
        log_p - sde.dim * math.log(first.radius) - sde.log_scale,
        solved.stderr,
        error,
        gap,
        nfe.expand(len(z)),
        latent,
    )


def _rounding(
    sde: Model, ode: DensityODE, data: Tensor, log_p: Tensor, solved: DensitySolve, nfe: Tensor
) -> Tensor:
    """The rounding (B,) of a solve: of log p and, times the score, of the state; of the network."""
    # That of states adds up like a random walk. That of a network of half precision is in part
    # the same in both solves; the rest of it shows in their difference.
    gain = solved.gain.detach().abs()
    by_state = (score_at_data(sde, data, ode.raw) * data).norm(dim=1)
    of_state = torch.finfo(sde.state_dtype).eps * nfe.sqrt() * torch.hypot(gain + log_p, by_state)
    return ROUNDING * torch.hypot(of_state, rounding_unit(sde) * gain)
