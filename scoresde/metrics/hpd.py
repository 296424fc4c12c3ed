"""Coverage of highest-density regions: how often the region that holds a share α of the posterior
also holds the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..common.inputs import as_reals
from ..common.names import suggest_arguments
from ..common.seeds import takes_seed
from .uniform_ranks import binomial_interval, coverage_at, ranks, truth_and_draws, uniformity

LEVELS = (0.5, 0.9, 0.95)


@dataclass(frozen=True, eq=False)
class Coverage:
    """How often regions of given probability hold the true value; it prints as a table.

    Attributes
    ----------
    levels : Tensor, shape (L,), float64
        Probability of the region under the posterior.
    coverage : Tensor, shape (L,), float64
        Share of pairs whose true value is inside. Less than the level: the posterior is too narrow
        or off the mark. More: it is too wide.
    stderr : Tensor, shape (L,), float64
        Binomial standard error of `coverage`.
    interval : Tensor, shape (L, 2), float64
        The 95% Clopper–Pearson interval of `coverage`.
    p_value : float
        Of the test that all levels are covered as they should be, in [1e-4, 1]. For the true
        posterior, P(p ≤ a) ≤ a.
    ranks : Tensor, shape (N,), int64
        How many draws come before the true value, from the inside of the regions to the outside.
    draws : int
        Draws per pair.

    Examples
    --------
    See `coverage`.
    """

    levels: Tensor
    coverage: Tensor
    stderr: Tensor
    interval: Tensor
    p_value: float
    ranks: Tensor = field(repr=False)
    draws: int

    def at(self, levels: Sequence[float] | Tensor) -> Tensor:
        """Return the coverage at other levels.

        Parameters
        ----------
        levels : sequence of float, or Tensor of shape (L,)
            Each from 0 to 1.

        Returns
        -------
        Tensor, shape (L,), float64

        Examples
        --------
        See `coverage`.
        """
        return coverage_at(self.ranks, self.draws, check_levels(levels).to(self.ranks.device))

    def __str__(self) -> str:
        rows = [f"{len(self.ranks)} pairs, {self.draws} draws each"]
        rows.append("level   coverage   stderr   95% interval")
        for level, share, error, (low, high) in zip(
            self.levels.tolist(),
            self.coverage.tolist(),
            self.stderr.tolist(),
            self.interval.tolist(),
            strict=True,
        ):
            rows.append(f"{level:5.3f}{share:11.3f}{error:9.3f}   {low:.3f} to {high:.3f}")
        rows.append(f"p-value of calibration: {self.p_value:.4f}")
        return "\n".join(rows)


def check_levels(levels: object) -> Tensor:
    """Return levels as a tensor (L,) in float64, from 0 to 1; raise for anything else."""
    x = as_reals(levels, "levels").double()
    if x.ndim != 1 or not len(x) or not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            f"levels are probabilities from 0 to 1, one or more, got {x.tolist()}; try (0.5, 0.9)"
        )
    return x


def curve(ranks: Tensor, draws: int, levels: Tensor) -> Coverage:
    """The coverage that ranks (N,) show."""
    share = coverage_at(ranks, draws, levels.to(ranks.device)).cpu()
    n = len(ranks)
    return Coverage(
        levels.cpu(),
        share,
        (share * (1 - share)).clamp(min=0).div(n).sqrt(),
        binomial_interval(share, n),
        float(uniformity(ranks[:, None], draws)[0]),
        ranks,
        draws,
    )


@takes_seed
@suggest_arguments
@torch.no_grad()
def coverage(
    log_prob_true: Tensor,
    log_prob_draws: Tensor,
    levels: Sequence[float] | Tensor = LEVELS,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
) -> Coverage:
    """Return how often highest-density regions of a posterior hold the true value.

    A true value is outside the region of a draw that has a higher density. Its rank r is the
    number of such draws, and r/K estimates the probability of the smallest region that holds it.
    c(α) = mean clip(α·(K + 1) − r, 0, 1) is unbiased for every number of draws K.

    It sees posteriors that are too narrow, too wide, or biased. It does not see an error that
    leaves the ranks uniform: the prior passes.

    Parameters
    ----------
    log_prob_true : Tensor or array, shape (N,)
        log p(θ | x) of the true value of each pair, N ≥ 2; −∞ outside the support. A constant may
        be missing, a different one for each pair.
    log_prob_draws : Tensor or array, shape (N, K)
        log p(θ_k | x) of K ≥ 1 draws of the same posterior.
    levels : sequence of float, or Tensor of shape (L,)
        Probabilities of the regions, each from 0 to 1.
    generator : torch.Generator, optional
        Breaks ties, where densities are constant; the only source of randomness when given.
    seed : int, optional
        An integer in place of the generator.

    Returns
    -------
    Coverage

    Raises
    ------
    ValueError
        For shapes that do not agree, NaN, one pair, no draws, or levels beyond 0 and 1.
    TypeError
        If an argument holds no real numbers.

    Examples
    --------
    The posterior of θ given x = θ + noise is N(x/2, 1/2). This one is half as wide:

    >>> g = torch.Generator().manual_seed(0)
    >>> theta = torch.randn(500, generator=g)
    >>> x = theta + torch.randn(500, generator=g)
    >>> q = torch.distributions.Normal(x / 2, 0.125**0.5)
    >>> draws = x[:, None] / 2 + 0.125**0.5 * torch.randn(500, 200, generator=g)
    >>> found = coverage(q.log_prob(theta), q.log_prob(draws.T).T)
    >>> print(found)
    500 pairs, 200 draws each
    level   coverage   stderr   95% interval
    0.500      0.249    0.019   0.212 to 0.289
    0.900      0.567    0.022   0.523 to 0.611
    0.950      0.661    0.021   0.618 to 0.703
    p-value of calibration: 0.0001
    >>> [round(c, 2) for c in found.at([0.6, 0.8]).tolist()]
    [0.3, 0.45]
    """
    wanted = check_levels(levels)
    names = ("log_prob_true", "log_prob_draws")
    truth, values = truth_and_draws(log_prob_true, log_prob_draws, names, finite=False)
    if truth.shape[1:] != (1,) or as_reals(log_prob_true, names[0]).ndim != 1:
        shape = tuple(as_reals(log_prob_true, names[0]).shape)
        raise ValueError(
            f"log_prob_true has shape {shape}; wanted (pairs,), one log-density for each pair"
        )
    return curve(ranks(-truth, -values, generator)[:, 0], values.shape[1], wanted)
