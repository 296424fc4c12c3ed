"""Truncated normals as posteriors of parameters in intervals: how m and s depend on x.

    p = (theta − low)/(high − low) ~ N(m(x), s²(x)) truncated to [0, 1],
    m(x) = b + A·f(x),      1/s²(x) = exp(−c − B·g(x)) + 1/ceiling²,

with f(x) the features of the regression and ranks, Φ of the normal scores; g(x) are the features of
`spread`. A, b, c and B have the highest likelihood, with penalties on A and B that held-out rows
choose, B = 0 among them. Fisher scoring finds all four at once; its masses and moments are
Gauss–Legendre sums over where the density is. Cohen, Estimating the mean and variance of normal
populations from singly truncated and doubly truncated samples, Ann. Math. Statist. 1950.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.special import log_ndtr

from . import linear, spread, truncated
from .linear import Line

NODES = 16
DEPTH = 18.0
"""Nats below its peak down to which a density is summed."""
SCORINGS = 30
HALVINGS = 6
"""Of a step that does not gain."""
ENOUGH = 1e-5
"""Gain in log p per row below which scoring ends."""
LARGEST = 2.0
"""Step in log s² of any row."""
ON_MEAN = (1e-6, 1e-4, 1e-2)
"""Penalties on A, per row, in units of the residual variance of least squares."""
CEILINGS = (1.0, 0.6, 0.35)
"""Bounds on s(x) that are tried: features that tell how narrow p is may not tell how wide."""
SURE = 1.0
"""Standard errors by which a truncated normal must be likelier than a Gaussian in u."""
FEWEST_ROWS = 100
"""Below, too few are held out to tell."""
MOST_ROWS = 20_000
"""Of which penalties, and what is truncated, are chosen; all rows are fitted then."""
LEAST_PENALTY = 1e-9
"""Per row, on all that has no other."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(NODES)
AT = torch.as_tensor(0.5 + 0.5 * _NODES)
WEIGHTS = torch.as_tensor(0.5 * _WEIGHTS)


def measured(
    x: Tensor,
    f: Tensor,
    u: Tensor,
    bounded: Tensor,
) -> tuple[Tensor, Line]:
    """Which parameters (D,) are truncated normals given x, and the numbers of those, of all rows.

    From x (N, K), features f without ranks, u (N, D), and which parameters have intervals. Tried
    are all of these, and those that each make held-out rows likelier than a Gaussian in u; none
    are truncated if held-out rows are not likelier with all parameters together.
    """
    none = torch.zeros_like(bounded)
    if len(u) < FEWEST_ROWS:
        return none, linear.measured(x, f, u, varies=True)
    numbers, g = spread.described(x, f)
    ranked = linear.with_ranks(f, x.shape[-1])
    first = slice(MOST_ROWS)
    cut, fits, line = _compared(x[first], f[first], ranked[first], g[first], u[first], bounded)
    if not bool(cut.any()):
        return cut, line
    if bool(cut.all()):
        line = replace(line, law={})  # its law has the features of other rows
    else:
        line = linear.measured(x, f, u, varies=True)
    return cut, _joined(line, fits, u, ranked, g, numbers)


def _compared(
    x: Tensor,
    f: Tensor,
    ranked: Tensor,
    g: Tensor,
    u: Tensor,
    bounded: Tensor,
) -> tuple[Tensor, dict[int, Fit], Line]:
    """Which are truncated, their fits, and a line for all, of the rows that are not held out."""
    held = torch.arange(len(u)) % spread.FOLD == 0
    line = linear.measured(x[~held], f[~held], u[~held], varies=True)
    before, slope = linear.standardized(x, f, u, line)
    scale = before[~held].square().mean(0).sqrt().clamp_min(truncated.SMALLEST)
    before = before / scale
    slope = slope - scale.log()
    after = before.clone()
    steeper = slope.clone()
    better = torch.zeros_like(bounded)
    fits = {}
    for i in bounded.nonzero()[:, 0].tolist():
        share = log_ndtr(u[:, i]).exp()
        fits[i] = _chosen(share, ranked, g, held)
        place = _placed(fits[i].numbers, ranked, g, fits[i].widest)
        after[:, i], steeper[:, i] = truncated.forward(u[:, i], *place)
        gain = steeper[:, i] - slope[:, i] + 0.5 * (before[:, i].square() - after[:, i].square())
        better[i] = _clear(gain[held], SURE)
    cut = torch.zeros_like(bounded)
    plain = _log_p(before, slope, held)
    best = plain
    for which in (better, bounded):
        v = torch.where(which, after, before)
        value = _log_p(v, torch.where(which, steeper, slope), held)
        if _clear(value - plain, SURE) and float(value.mean()) > float(best.mean()):
            cut = which
            best = value
    return cut, {i: fit for i, fit in fits.items() if bool(cut[i])}, line


def _joined(
    line: Line,
    fits: dict[int, Fit],
    u: Tensor,
    f: Tensor,
    g: Tensor,
    numbers: dict[str, Tensor],
) -> Line:
    """The numbers of a line, with those of truncated normals in their columns, fitted anew."""
    width = u.shape[1]
    slope = torch.zeros(f.shape[1], width, dtype=torch.float64)
    slope[: len(line.slope)] = line.slope
    intercept = line.intercept.clone()
    law = dict(line.law)
    if not law:
        zero = torch.zeros(width, dtype=torch.float64)
        law = {name: zero.clone() for name in ("spread_intercept", "spread_low", "spread_high")}
        law |= numbers | {"spread_slope": torch.zeros(g.shape[1], width, dtype=torch.float64)}
    law["ceiling"] = torch.full((width,), math.inf, dtype=torch.float64)
    for i, fit in fits.items():
        share = log_ndtr(u[:, i]).exp()
        again = _scored(share, f, g, fit)
        first = f.shape[1]
        raw = _with_one(g) @ again[first + 1 :]
        slope[:, i] = again[:first]
        intercept[i] = again[first]
        law["spread_slope"][:, i] = again[first + 1 : -1]
        law["spread_intercept"][i] = again[-1]
        low, high = spread.bounds(raw)
        law["spread_low"][i] = low
        law["spread_high"][i] = high
        law["ceiling"][i] = fit.widest
    return Line(slope, intercept, law, line.freedom)


@dataclass(frozen=True)
class Fit:
    """A, b, B and c of one parameter in one vector; penalties, and the largest log s²."""

    numbers: Tensor
    on_mean: float
    on_spread: float
    widest: float = math.inf


def _chosen(p: Tensor, f: Tensor, g: Tensor, held: Tensor) -> Fit:
    """The fit to rows that are not held out, with penalties that are best for those that are."""
    rest = ~held
    line, left = _least_squares(p[rest], f[rest])
    zero = torch.zeros(g.shape[1], dtype=torch.float64)
    first = torch.cat([line, zero, torch.tensor([math.log(left)], dtype=torch.float64)])

    def tried(fit: Fit) -> tuple[Fit, Tensor]:
        found = replace(fit, numbers=_scored(p[rest], f[rest], g[rest], fit))
        return found, log_p(p[held], *_placed(found.numbers, f[held], g[held], fit.widest))

    common = [tried(Fit(first, penalty / left, math.inf)) for penalty in ON_MEAN]
    plain, least = max(common, key=lambda pair: float(pair[1].mean()))
    best, value = plain, least
    found = plain
    for penalty in reversed(spread.PENALTIES):
        found, new = tried(Fit(found.numbers, plain.on_mean, penalty))
        if _clear(new - least) and float(new.mean()) > float(value.mean()):
            best, value = found, new
    found = best
    for ceiling in CEILINGS if best.on_spread < math.inf else ():
        found, new = tried(replace(found, widest=2 * math.log(ceiling)))
        if _clear(new - value, SURE):
            best, value = found, new
    return best


def _least_squares(p: Tensor, f: Tensor) -> tuple[Tensor, float]:
    """A and b of least squares, and the variance that they leave."""
    design = _with_one(f)
    ridge = ON_MEAN[0] * len(p) * torch.eye(design.shape[1], dtype=torch.float64)
    line = torch.linalg.solve(design.T @ design + ridge, design.T @ p)
    left = float((p - design @ line).square().mean())
    return line, max(left, math.exp(truncated.NARROWEST))


def _scored(p: Tensor, f: Tensor, g: Tensor, fit: Fit) -> Tensor:
    """The numbers of the highest penalized likelihood that Fisher scoring finds from a fit's."""
    varies = fit.on_spread < math.inf
    used = g if varies else g[:, :0]
    size = f.shape[1] + 1
    penalty = torch.full((size + used.shape[1] + 1,), LEAST_PENALTY, dtype=torch.float64)
    penalty[: size - 1] = fit.on_mean
    if varies:
        penalty[size:-1] = fit.on_spread
    penalty = penalty * len(p)
    numbers = fit.numbers if varies else torch.cat([fit.numbers[:size], fit.numbers[-1:]])

    def height(numbers: Tensor) -> float:
        total = log_p(p, *_placed(numbers, f, used, fit.widest)).sum()
        return float(total - 0.5 * (penalty * numbers.square()).sum())

    best = height(numbers)
    for _ in range(SCORINGS):
        step = _step(p, f, used, numbers, penalty, fit.widest)
        sizes = [0.5**i for i in range(HALVINGS)]
        found = next(((s, h) for s in sizes if (h := height(numbers + s * step)) > best), None)
        if found is None:
            break
        gain = found[1] - best
        numbers = numbers + found[0] * step
        best = found[1]
        if gain < ENOUGH * len(p):
            break
    none = torch.zeros(g.shape[1] - used.shape[1], dtype=torch.float64)
    return torch.cat([numbers[:-1], none, numbers[-1:]])


def _step(
    p: Tensor,
    f: Tensor,
    g: Tensor,
    numbers: Tensor,
    penalty: Tensor,
    widest: float,
) -> Tensor:
    """The step of Fisher scoring, cut where log s² would change by much."""
    m, log_variance = _placed(numbers, f, g, widest)
    variance = log_variance.exp()
    at, chance, _ = _summed(m, log_variance)
    mean = (chance * at).sum(1)
    square = (at - m[:, None]).square()
    second = (chance * square).sum(1)
    by_m = (p - mean) / variance
    by_spread = 0.5 * ((p - m).square() - second) / variance
    raw = _with_one(g) @ numbers[f.shape[1] + 1 :]
    inward = (log_variance > truncated.NARROWEST) | (by_spread > 0)
    inward = inward & ((log_variance < truncated.WIDEST) | (by_spread < 0))
    inward = inward * torch.sigmoid(widest - raw)  # d log s²/d raw
    by_spread = by_spread * inward
    first = (at - mean[:, None]) / variance[:, None]
    other = 0.5 * (square - second[:, None]) / variance[:, None] * inward[:, None]
    f = _with_one(f)
    g = _with_one(g)
    slope = torch.cat([f.T @ by_m, g.T @ by_spread]) - penalty * numbers
    cross = f.T @ ((chance * first * other).sum(1, keepdim=True) * g)
    top = torch.cat([f.T @ ((chance * first.square()).sum(1, keepdim=True) * f), cross], 1)
    low = torch.cat([cross.T, g.T @ ((chance * other.square()).sum(1, keepdim=True) * g)], 1)
    matrix = torch.cat([top, low])
    matrix = matrix + torch.diag(penalty + 1e-8 * matrix.diagonal())
    root, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        return torch.zeros_like(numbers)
    step = torch.cholesky_solve(slope[:, None], root)[:, 0]
    change = float((g @ step[f.shape[1] :]).abs().max())
    return step * min(1.0, LARGEST / max(change, LARGEST))


def log_p(p: Tensor, m: Tensor, log_variance: Tensor) -> Tensor:
    """The log density of p (N,)."""
    _, _, log_mass = _summed(m, log_variance)
    return -0.5 * (p - m).square() * torch.exp(-log_variance) - log_mass


def _summed(m: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points (N, NODES), their probabilities, and log ∫ exp(−(p − m)²/2s²) dp over [0, 1]."""
    variance = log_variance.exp()
    peak = m.clamp(0, 1)
    gap = (m - peak).abs()
    depth = 2 * DEPTH * variance
    reach = depth / (gap + (gap.square() + depth).sqrt())
    first = (peak - reach).clamp_min(0)
    width = (peak + reach).clamp_max(1) - first
    at = first[:, None] + width[:, None] * AT
    fall = ((at - m[:, None]).square() - gap[:, None].square()) / (2 * variance[:, None])
    mass = WEIGHTS * torch.exp(-fall)
    total = mass.sum(1)
    log_mass = (total * width).log() - 0.5 * gap.square() / variance
    return at, mass / total[:, None], log_mass


def _placed(numbers: Tensor, f: Tensor, g: Tensor, widest: float) -> tuple[Tensor, Tensor]:
    """m and log s², (N,)."""
    size = f.shape[1] + 1
    raw = _with_one(g) @ numbers[size:]
    return truncated.limited(_with_one(f) @ numbers[:size], truncated.under(raw, widest))


def _with_one(f: Tensor) -> Tensor:
    """Features and a column of ones."""
    return torch.cat([f, torch.ones_like(f[:, :1])], 1) if f.shape[1] else f.new_ones(len(f), 1)


def _clear(gain: Tensor, errors: float = spread.CLEAR) -> bool:
    """Whether a mean gain is more than 0 by so many standard errors."""
    return float(gain.mean()) > errors * float(gain.std()) / math.sqrt(len(gain))


def _log_p(v: Tensor, log_slope: Tensor, held: Tensor) -> Tensor:
    """log p(u) of held-out rows, where v is a Gaussian of the covariance of the other rows."""
    return spread.log_density(v, held) + log_slope[held].sum(1)
