"""How far u may lie from its regression on x, as a function of x.

    log s_i²(x) = c_i + B_i·g(x),      within what the simulations have,

where g(x) holds log(d² + ε²) of contrasts d, and other features of x. Contrasts are differences of
the numbers in x, since how far repeated measurements lie apart tells how precise they are, and
those numbers that never change sign: to the others, 0 is a value like any other, where a logarithm
would have a spike. c and B maximize the Gaussian likelihood of the residuals, ∑ log s² + r²/s²,
with a penalty on B that held-out residuals choose. Harvey, Estimating regression models with
multiplicative heteroscedasticity, Econometrica 1976.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

MOST_PAIRED = 16
"""Numbers in x of which all differences are taken; of more, those of neighbours."""
SMALL = 0.01
"""ε, in standard deviations of a contrast."""
FARTHEST = 6.0
"""Standard deviations from its mean beyond which a feature is cut."""
MOST = 400
"""Features."""
ROWS_EACH = 10
"""Fewest rows for each feature."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""On B, per row."""
SCORINGS = 25
"""Steps of Fisher scoring."""
OUTLIER = 20.0
"""Most that one r²/s² counts in a step."""
FOLD = 5
"""One row of so many is held out."""
OUTERMOST = 1e-3
"""Share of rows at each end whose log s² is no bound."""
SMALLEST = 1e-30
"""Of r²."""
CLEAR = 2.0
"""Standard errors by which s must make held-out residuals likelier, or it is constant."""


def contrasts(x: Tensor) -> Tensor:
    """The numbers in x (…, K) and their differences."""
    size = x.shape[-1]
    if size <= MOST_PAIRED:
        pairs = list(itertools.combinations(range(size), 2))
    else:
        pairs = list(itertools.pairwise(range(size)))
    first = [pair[0] for pair in pairs]
    second = [pair[1] for pair in pairs]
    return torch.cat([x, x[..., second] - x[..., first]], -1)


def log_contrasts(x: Tensor, scale: Tensor) -> Tensor:
    """log(d² + ε²) of contrasts of x (…, K), each in units of its scale."""
    d = contrasts(x) / scale
    return torch.log(d.square() + SMALL**2)


def measured(x: Tensor, f: Tensor, left: Tensor) -> dict[str, Tensor]:
    """The numbers of log s², of x (N, K), features f and residuals; none where s is constant."""
    if not feasible(x, f):
        return {}
    numbers, g = described(x, f)
    slope, intercept = fitted(g, left)
    if not bool(slope.any()):
        return {}
    low, high = bounds(intercept + g @ slope)
    law = {"spread_slope": slope, "spread_intercept": intercept}
    return {**numbers, **law, "spread_low": low, "spread_high": high}


def described(x: Tensor, f: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The numbers that make g of x (N, K) and features f, and g (N, Q)."""
    d = contrasts(x)
    scale = d.std(0, correction=0)
    crosses = (d.amin(0) < 0) & (d.amax(0) > 0)
    crosses[x.shape[1] :] = False  # differences do
    numbers = {"contrast_scale": torch.where((scale > 0) & ~crosses, scale, math.inf)}
    raw = _raw(x, f, numbers["contrast_scale"])
    deviation = raw.std(0, correction=0)
    numbers["spread_mean"] = raw.mean(0)
    numbers["spread_scale"] = torch.where(deviation > 1e-9, deviation, math.inf)
    return numbers, _standardized(raw, numbers)


def bounds(value: Tensor) -> tuple[Tensor, Tensor]:
    """What log s² (N, …) of the simulations lies between, but for the outermost."""
    value = value.sort(0).values
    outermost = round(OUTERMOST * len(value))
    return value[outermost], value[-1 - outermost]


def log_variance(x: Tensor, f: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """log s², (…, D), of x (…, K) and features f."""
    g = _standardized(_raw(x, f, numbers["contrast_scale"]), numbers)
    value = numbers["spread_intercept"] + g @ numbers["spread_slope"]
    return torch.minimum(torch.maximum(value, numbers["spread_low"]), numbers["spread_high"])


def _raw(x: Tensor, f: Tensor, scale: Tensor) -> Tensor:
    """Features as they are."""
    scores = f[..., x.shape[-1] :]
    return torch.cat([log_contrasts(x, scale), f, scores.square()], -1)


def _standardized(raw: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """g."""
    g: Tensor = (raw - numbers["spread_mean"]) / numbers["spread_scale"]
    return g.clamp(-FARTHEST, FARTHEST)


def feasible(x: Tensor, f: Tensor) -> bool:
    """Whether there are rows enough for features of x (N, K) and f."""
    features = contrasts(x[:1]).shape[1] + 2 * f.shape[1] - x.shape[1]
    return 0 < features <= MOST and len(x) >= ROWS_EACH * features


def fitted(g: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Slope (Q, D) and intercept (D,) of log s² on standardized g (N, Q), of residuals (N, D).

    Both are 0 for a residual of which a constant s is as good, and for all if it is so of all
    together, as where they are correlated.
    """
    square = left.square().clamp_min(SMALLEST)
    held = torch.arange(len(g)) % FOLD == 0
    common = square[~held].mean(0).log().expand_as(square)
    plain = _surprise(common, square)[held]
    best = torch.zeros(square.shape[1], dtype=torch.float64)
    chosen = torch.full_like(best, math.inf)
    value = common.clone()
    for penalty in PENALTIES:
        slope, intercept = _scored(g[~held], square[~held], penalty)
        found = intercept + g @ slope
        gain = plain - _surprise(found, square)[held]
        mean = gain.mean(0)
        better = (mean > CLEAR * gain.std(0) / math.sqrt(len(gain))) & (mean > best)
        best = torch.where(better, mean, best)
        chosen = torch.where(better, torch.full_like(chosen, penalty), chosen)
        value = torch.where(better, found, value)
    gain = _log_p(left, value, held) - _log_p(left, common, held)
    if not float(gain.mean()) > CLEAR * float(gain.std()) / math.sqrt(len(gain)):
        chosen = torch.full_like(chosen, math.inf)
    slope = torch.zeros(g.shape[1], square.shape[1], dtype=torch.float64)
    intercept = torch.zeros_like(best)
    for penalty in set(chosen[chosen.isfinite()].tolist()):
        which = chosen == penalty
        slope[:, which], intercept[which] = _scored(g, square[:, which], penalty)
    return slope, intercept


def _log_p(left: Tensor, log_variance: Tensor, held: Tensor) -> Tensor:
    """Gaussian log p of held-out rows, up to a constant, correlated as the other rows are."""
    unit = left * torch.exp(-0.5 * log_variance)
    return log_density(unit, held) - 0.5 * log_variance[held].sum(1)


def log_density(unit: Tensor, held: Tensor) -> Tensor:
    """Gaussian log p of held-out rows, up to a constant, of the covariance of the others."""
    covariance = unit[~held].T @ unit[~held] / int((~held).sum())
    root = torch.linalg.cholesky(covariance + torch.diag(1e-10 * covariance.diagonal() + SMALLEST))
    white = torch.linalg.solve_triangular(root, unit[held].T, upper=False)
    found: Tensor = -0.5 * white.square().sum(0) - root.diagonal().log().sum()
    return found


def _surprise(log_variance: Tensor, square: Tensor) -> Tensor:
    """−log p of residuals, up to a constant."""
    return 0.5 * (log_variance + square * torch.exp(-log_variance))


def _scored(g: Tensor, square: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Slope and intercept with that penalty, by Fisher scoring, whose matrix is constant."""
    rows, size = g.shape
    design = torch.cat([g, torch.ones_like(g[:, :1])], 1)
    ridge = 0.5 * penalty * rows * torch.ones(size + 1, 1, dtype=torch.float64)
    ridge[-1] = 1e-9
    root = torch.linalg.cholesky(0.5 * design.T @ design + torch.diag(ridge[:, 0]))
    found = torch.zeros(size + 1, square.shape[1], dtype=torch.float64)
    found[-1] = square.mean(0).log()
    for _ in range(SCORINGS):
        ratio = (square.log() - design @ found).clamp_max(math.log(OUTLIER)).exp()
        slope = 0.5 * design.T @ (ratio - 1) - ridge * found
        found = found + torch.cholesky_solve(slope, root)
    return found[:-1], found[-1]
