"""Simulation-based calibration, `sbc`: ranks of each coordinate among posterior draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..common.names import suggest_arguments
from ..common.seeds import takes_seed
from .uniform_ranks import ranks, truth_and_draws, uniformity


@dataclass(frozen=True, eq=False)
class RankTest:
    """Ranks of true values among draws, coordinate by coordinate; it prints as a table.

    Attributes
    ----------
    mean : Tensor, shape (D,)
        Of the ranks of each coordinate, divided by the number of draws: ½ if calibrated.
    spread : Tensor, shape (D,)
        Their standard deviation beside that of uniform ranks: 1 if calibrated.
    ranks : Tensor, shape (N, D), int64
        How many of the draws are below the true value, from 0 to `draws`.
    draws : int
        Draws per pair, K.
    p_values : Tensor, shape (D,), float64
        Of each coordinate's test, in [1e-4, 1].
    p_value : float
        Of all coordinates: min(1, D·min p) (Bonferroni). For the true posterior, P(p ≤ a) ≤ a.

    Examples
    --------
    See `sbc`.
    """

    ranks: Tensor = field(repr=False)
    draws: int
    p_values: Tensor
    p_value: float

    @property
    def mean(self) -> Tensor:
        """Mean of (r + ½)/(K + 1), shape (D,): ½ if calibrated, more if draws are too low."""
        return (self.ranks.double().mean(0) + 0.5) / (self.draws + 1)

    @property
    def spread(self) -> Tensor:
        """Standard deviation of the ranks over a uniform's, (D,): above 1 if draws are narrow."""
        uniform = math.sqrt(self.draws * (self.draws + 2) / 12)
        return self.ranks.double().std(0, correction=0) / uniform

    def __str__(self) -> str:
        n, d = self.ranks.shape
        rows = [f"{n} pairs, {self.draws} draws each; calibrated: mean 0.5, spread 1"]
        rows.append("coordinate    mean   spread   p-value")
        columns = (self.mean.tolist(), self.spread.tolist(), self.p_values.tolist())
        for i, (mean, spread, p) in enumerate(zip(*columns, strict=True)):
            rows.append(f"{i:10d}{mean:8.3f}{spread:9.3f}{p:10.4f}")
        rows.append(f"p-value of calibration, all {d}: {self.p_value:.4f}")
        return "\n".join(rows)


@takes_seed
@suggest_arguments
@torch.no_grad()
def sbc(
    theta_true: Tensor,
    draws: Tensor,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
) -> RankTest:
    """Return the ranks of true values among posterior draws, and test that they are uniform.

    The rank r = #{k : θ_k < θ} of each coordinate is uniform on 0 … K for the true posterior
    (simulation-based calibration). Draws that are too narrow make ranks of 0 and K frequent, draws
    that are too wide make them rare, and draws that are too low make ranks high.

    It looks at one coordinate at a time: it does not see wrong correlations, and the prior passes.

    Parameters
    ----------
    theta_true : Tensor or array, shape (N, *shape)
        True values, N ≥ 2, drawn from the prior; x of each pair is simulated from its value.
    draws : Tensor or array, shape (N, K, *shape)
        K ≥ 1 independent draws of the posterior given the x of each pair.
    generator : torch.Generator, optional
        Breaks ties, where values are discrete; the only source of randomness when given.
    seed : int, optional
        An integer in place of the generator.

    Returns
    -------
    RankTest

    Raises
    ------
    ValueError
        For shapes that do not agree, NaN or infinity, one pair, or no draws.
    TypeError
        If an argument holds no real numbers.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari and Gelman, Validating Bayesian inference algorithms with
    simulation-based calibration, arXiv:1804.06788, 2018.

    Examples
    --------
    The first coordinate's draws are right, those of the second too narrow:

    >>> g = torch.Generator().manual_seed(0)
    >>> theta = torch.randn(500, 2, generator=g)
    >>> x = theta + torch.randn(500, 2, generator=g)
    >>> std = torch.tensor([1.0, 0.6]) / 2**0.5
    >>> print(sbc(theta, x[:, None] / 2 + std * torch.randn(500, 200, 2, generator=g)))
    500 pairs, 200 draws each; calibrated: mean 0.5, spread 1
    coordinate    mean   spread   p-value
             0   0.500    1.003    0.8663
             1   0.494    1.238    0.0001
    p-value of calibration, all 2: 0.0002
    """
    truth, values = truth_and_draws(theta_true, draws, ("theta_true", "draws"), finite=True)
    found = ranks(truth, values, generator)
    p = uniformity(found, values.shape[1])
    return RankTest(found, values.shape[1], p, min(1.0, len(p) * float(p.min())))
