"""All tests of calibration of a posterior, in one call."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..common import progress as bars
from ..common.checks import check_generator, true_or_false, whole_number
from ..common.inputs import as_reals
from ..common.names import suggest_arguments
from ..common.progress import shows_progress
from ..common.seeds import takes_seed
from .hpd import Coverage, coverage
from .rank_statistics import RankTest, sbc
from .reference_points import ExpectedCoverage, tarp


class Posterior(Protocol):
    """Anything with sample((k,), x=) and log_prob(theta, x=) for many x at once."""

    def sample(self, sample_shape: tuple[int, ...], x: Tensor) -> Tensor:
        """Return draws (*sample_shape, N, D) given x (N, …)."""

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return log p(theta | x), shape (k, N), of theta (k, N, D)."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `coverage`, `sbc` and `tarp` find; it prints as three tables.

    Attributes
    ----------
    coverage : Coverage or None
        None if densities were not asked for.
    sbc : RankTest
    tarp : ExpectedCoverage

    Examples
    --------
    See `calibration`.
    """

    coverage: Coverage | None
    sbc: RankTest
    tarp: ExpectedCoverage

    @property
    def p_value(self) -> float:
        """The smallest p-value, times the number of tests: P(p ≤ a) ≤ a if calibrated."""
        found = [self.sbc.p_value, self.tarp.p_value]
        if self.coverage is not None:
            found.append(self.coverage.p_value)
        return min(1.0, len(found) * min(found))

    def __str__(self) -> str:
        parts = [f"coordinates (sbc): {self.sbc}", f"balls around points (tarp): {self.tarp}"]
        if self.coverage is not None:
            parts.insert(0, f"highest-density regions (coverage): {self.coverage}")
        return "\n\n".join(parts)


@takes_seed
@shows_progress
@suggest_arguments
@torch.no_grad()
def calibration(
    posterior: Posterior,
    theta_true: Tensor,
    x: Tensor,
    draws: int = 200,
    density: bool = True,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
    progress: bool | None = None,
) -> Calibration:
    """Draw from a posterior for each x, and run `coverage`, `sbc` and `tarp`.

    Parameters
    ----------
    posterior : object with sample and log_prob
        `sample((K,), x=x)` returns draws (K, N, D), `log_prob(theta, x=x)` their log-densities
        (K, N), for N observations at once.
    theta_true : Tensor, shape (N, D)
        Drawn from the prior, N ≥ 2; a few hundred.
    x : Tensor, shape (N, …)
        Simulated, one for each θ, and not used in training. A `scoresde.Posterior` matches data
        frames by the column names of its training data, theta_true too.
    draws : int
        K, draws per x.
    density : bool
        Whether to compute the N·(K + 1) log-densities that `coverage` needs, which takes most of
        the time.
    generator : torch.Generator, optional
        The only source of randomness when given; `sample` gets it too.
    seed : int, optional
        An integer in place of the generator.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.

    Returns
    -------
    Calibration

    Raises
    ------
    TypeError
        If posterior has no `sample`, or no `log_prob`.
    ValueError
        For shapes that do not agree, NaN, one pair, or draws < 1.

    Examples
    --------
    >>> class Exact:
    ...     def sample(self, shape, x, generator):
    ...         return x / 2 + 0.5**0.5 * torch.randn(*shape, *x.shape, generator=generator)
    ...     def log_prob(self, theta, x):
    ...         return torch.distributions.Normal(x / 2, 0.5**0.5).log_prob(theta).sum(-1)
    >>> g = torch.Generator().manual_seed(0)
    >>> theta = torch.randn(300, 2, generator=g)
    >>> x = theta + torch.randn(300, 2, generator=g)
    >>> calibration(Exact(), theta, x, generator=g).p_value > 0.05
    True
    """
    draws = whole_number("draws", draws)
    check_generator(generator)
    wanted = ["sample", "log_prob"] if true_or_false("density", density) else ["sample"]
    for name in wanted:
        if not callable(getattr(posterior, name, None)):
            raise TypeError(f"posterior is a {type(posterior).__name__}, which has no {name}()")
    theta, seen = _pairs(posterior, theta_true, x)
    how: dict[str, Any] = {}
    if generator is not None:
        how["generator"] = generator
    with bars.part(0, 1, 2):
        drawn = posterior.sample((draws,), x=seen, **how)
    found = as_reals(drawn, "posterior.sample((k,), x=x)")
    if tuple(found.shape) != (draws, *theta.shape):
        raise ValueError(
            f"posterior.sample(({draws},), x=x) has shape {tuple(found.shape)} for "
            f"{len(theta)} observations; wanted {(draws, *theta.shape)}: use sbc and tarp with "
            "draws that you collect yourself"
        )
    regions = None
    if density:
        theta = theta.to(found)
        unnormalized: dict[str, Any] = {}
        if "normalized" in inspect.signature(posterior.log_prob).parameters:
            unnormalized["normalized"] = False  # a constant per x: it changes no rank
        both = torch.cat([theta[None], found])
        with bars.part(1, 2, 2):
            density_there = posterior.log_prob(both, x=seen, **unnormalized)
        values = as_reals(density_there, "posterior.log_prob")
        if tuple(values.shape) != (draws + 1, len(theta)):
            raise ValueError(
                f"posterior.log_prob(theta, x=x) has shape {tuple(values.shape)} for theta "
                f"{tuple(both.shape)}; wanted {(draws + 1, len(theta))}"
            )
        regions = coverage(values[0], values[1:].T, generator=generator)
    columns = found.transpose(0, 1)
    return Calibration(
        regions,
        sbc(theta, columns, generator),
        tarp(theta, columns, generator=generator),
    )


def _pairs(posterior: Any, theta_true: Any, x: Any) -> tuple[Tensor, Tensor]:
    """Parameters (N, D) and observations (N, …), checked."""
    matched = getattr(posterior, "_matched", None)  # of a Posterior, which knows column names
    if matched is not None:
        theta_true, x = matched(theta_true, x)
    theta = as_reals(theta_true, "theta_true")
    seen = as_reals(x, "x")
    if theta.ndim != 2 or seen.ndim < 1 or len(seen) != len(theta):
        raise ValueError(
            f"theta_true has shape {tuple(theta.shape)} and x {tuple(seen.shape)}; wanted "
            "(pairs, D) and one observation for each pair"
        )
    return theta, seen
