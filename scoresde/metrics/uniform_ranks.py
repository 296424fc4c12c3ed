"""Ranks of true values among draws, and the test that they are uniform.

Each of N independent pairs (θ, x) comes with K draws θ_1 … θ_K of a posterior given x. If the
posterior is the true one, θ and its draws are exchangeable. The rank of f(θ) among f(θ_1) … f(θ_K),

    r = #{k : f(θ_k) < f(θ)},        ties broken at random,

is then uniform on 0 … K for every function f and every K (Talts et al. 2018). `sbc` takes the
coordinates for f, `coverage` the density, and `tarp` the distance from a reference point.

With u uniform, (r + u)/(K + 1) is uniform on (0, 1). The share of pairs below a level α, averaged
over u, is the coverage

    c(α) = mean over pairs of clip(α·(K + 1) − r, 0, 1),        E c(α) = α for the true posterior.

The test compares the counts of ranks in at most 100 cells with uniform counts by the statistic of
Anderson and Darling, N·Σ_j p_j·(F̂_j − F_j)²/(F_j·(1 − F_j)), with cumulative shares F̂ and F.
Its p-value comes from 9,999 simulated sets of N uniform ranks, so that the rate of false alarms is
right for every N and K.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from ..common.checks import check_generator
from ..common.inputs import as_reals

SIMULATIONS = 9_999
MOST_CELLS = 100
INTERVAL = 0.95
"""Probability of the intervals that are printed and drawn."""
Array = np.ndarray[Any, np.dtype[np.float64]]


def truth_and_draws(
    truth: object, draws: object, names: tuple[str, str], *, finite: bool
) -> tuple[Tensor, Tensor]:
    """Return (N, D) and (N, K, D) in float64, with N ≥ 2 and K ≥ 1; raise for anything else."""
    first, second = names
    x = as_reals(truth, first)
    y = as_reals(draws, second)
    if x.ndim < 1 or y.ndim != x.ndim + 1 or x.shape != y.shape[:1] + y.shape[2:]:
        got = f"{first} of shape {tuple(x.shape)}, {second} {tuple(y.shape)}"
        hint = ""
        if 1 <= x.ndim == y.ndim - 1 and x.shape == y.shape[1:]:
            hint = f": try {second}.swapaxes(0, 1)"
        raise ValueError(
            f"{got}; wanted (pairs, *shape) and (pairs, draws, *shape), the same shape{hint}"
        )
    if len(x) < 2:
        raise ValueError(
            f"{first} has {len(x)} pairs; wanted at least 2, since ranks show nothing one by one: "
            "try 200 to 1,000"
        )
    if not y.shape[1] or not x[0].numel():
        raise ValueError(f"{second} has no draws: shape {tuple(y.shape)}; try 100 draws per pair")
    for name, value in ((first, x), (second, y)):
        bad = ~value.isfinite() if finite else value.isnan() | (value == torch.inf)
        if bool(bad.any()):
            rows = int(bad.reshape(len(x), -1).any(1).sum())
            what = "NaN or infinity" if finite else "NaN or +infinity"
            raise ValueError(
                f"{name} holds {what} in {rows} of {len(x)} pairs: look where they come from, or "
                "drop those pairs in both"
            )
    x = x.reshape(len(x), -1).double()
    return x, y.reshape(len(y), y.shape[1], -1).to(x.device, torch.float64)


def ranks(truth: Tensor, draws: Tensor, generator: torch.Generator | None) -> Tensor:
    """How many of the draws (N, K, D) are below the truth (N, D), ties broken at random."""
    check_generator(generator)
    below = (draws < truth[:, None]).sum(1)
    ties = (draws == truth[:, None]).sum(1)
    if not bool(ties.any()):
        return below
    device = truth.device if generator is None else generator.device
    u = torch.rand(truth.shape, generator=generator, device=device, dtype=torch.float64)
    return below + (u.to(truth.device) * (ties + 1)).long()


def coverage_at(ranks: Tensor, draws: int, levels: Tensor) -> Tensor:
    """c(α) of ranks (N,) at levels (L,), each in [0, 1]."""
    counts = torch.bincount(ranks, minlength=draws + 1).double()
    shares = torch.cat([counts.new_zeros(1), counts.cumsum(0)]) / len(ranks)
    place = levels * (draws + 1)
    whole = place.floor().long().clamp(0, draws)
    return shares[whole] + (place - whole) * (shares[whole + 1] - shares[whole])


def binomial_interval(share: Tensor, n: int) -> Tensor:
    """The Clopper–Pearson interval (L, 2) of a probability that n trials estimate as `share`."""
    hits = (share * n).cpu().numpy()
    tail = (1 - INTERVAL) / 2
    low = np.nan_to_num(betaincinv(hits, n - hits + 1, tail), nan=0.0)
    high = np.nan_to_num(betaincinv(hits + 1, n - hits, 1 - tail), nan=1.0)
    return torch.stack([torch.from_numpy(low), torch.from_numpy(high)], 1)


def uniformity(ranks: Tensor, draws: int) -> Tensor:
    """P-values (D,) of the test that the ranks (N, D) are uniform on 0 … draws."""
    cells = min(draws + 1, MOST_CELLS)
    cell = (ranks.cpu().numpy() * cells) // (draws + 1)
    counts = np.stack([np.bincount(column, minlength=cells) for column in cell.T])
    found = _statistic(counts, _cells(draws))
    null = _null(len(ranks), draws)
    above = SIMULATIONS - np.searchsorted(null, found * (1 - 1e-9))  # rounding breaks no tie
    return torch.from_numpy((1 + above) / (1 + SIMULATIONS))


def _cells(draws: int) -> Array:
    """Probabilities of cells of neighbouring ranks."""
    cells = min(draws + 1, MOST_CELLS)
    sizes = np.bincount(np.arange(draws + 1) * cells // (draws + 1), minlength=cells)
    return np.asarray(sizes / (draws + 1), dtype=np.float64)


def _statistic(counts: Any, p: Array) -> Array:
    """The Anderson–Darling statistic of each row of counts in cells of probabilities p."""
    n = counts[0].sum()
    expected = p.cumsum()[:-1]
    excess = counts.cumsum(1)[:, :-1] / n - expected
    return np.asarray(n * (excess**2 * (p[:-1] / (expected * (1 - expected)))).sum(1))


@functools.lru_cache(maxsize=16)
def _null(n: int, draws: int) -> Array:
    """The statistic of simulated sets of n uniform ranks, sorted."""
    p = _cells(draws)
    return np.sort(_statistic(np.random.default_rng(0).multinomial(n, p, SIMULATIONS), p))
