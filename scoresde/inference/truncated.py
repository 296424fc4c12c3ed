"""Truncated normals on the unit interval, and the map that makes them N(0, 1).

    v = Φ⁻¹[(Φ((p − m)/s) − Φ(−m/s)) / (Φ((1 − m)/s) − Φ(−m/s))],      p = Φ(u)

is N(0, 1) if p ∈ [0, 1] is N(m, s²) truncated to the interval: then v → u for s → ∞, and
v → (p − m)/s where the ends are many s from m. Masses are logarithms of the smaller tail, so m may
lie outside of the interval, and v far out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import erfcx, log_ndtr, ndtri

LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)
ROOT_2 = math.sqrt(2)
SHORT = 3e-3
"""δ·(1 + |middle|) below which a mass is a series in δ; the error is about its fourth power."""
DEEP = -5.0
"""log p below which a quantile starts at its asymptote."""
NEWTON = 3
"""Steps of Newton's method without gradients, from each start."""
DIFFERENTIABLE = 2
"""Steps after them: the first has the right first derivatives, the second those up to the third."""
SMALLEST = 1e-300
NARROWEST = 2 * math.log(1e-6)
WIDEST = 2 * math.log(30.0)
"""Least and most log s²: the most is that of a parameter of which nothing is known."""
FARTHEST_U = 37.0
"""Most |u|: beyond, Φ(u) is no number in float64."""
FARTHEST = 1e4
"""Most |m| from the interval, in units of s."""


def limited(m: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """m and log s² within what can be computed."""
    log_variance = log_variance.clamp(NARROWEST, WIDEST)
    far = FARTHEST * torch.exp(0.5 * log_variance)
    return torch.minimum(torch.maximum(m, -far), 1 + far), log_variance


def under(log_variance: Tensor, ceiling: Tensor | float) -> Tensor:
    """log s² that nears a ceiling smoothly: s² and its ceiling added as resistors in parallel."""
    return log_variance - torch.nn.functional.softplus(log_variance - ceiling)


def forward(u: Tensor, m: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """v and log dv/du of u, elementwise; m and s in units of the interval."""
    s = torch.exp(0.5 * log_variance)
    u = u.clamp(-FARTHEST_U, FARTHEST_U)
    from_low = log_ndtr(u).exp() / s  # ndtr loses digits far below 0
    from_high = log_ndtr(-u).exp() / s
    whole = log_mass(-m / s, 1 / s)
    below = log_mass(-m / s, from_low) - whole
    above = log_mass((m - 1) / s, from_high) - whole
    low = below < above
    smaller = quantile(torch.where(low, below, above))
    v = torch.where(low, smaller, -smaller)
    z = torch.where(u < 0, from_low - m / s, (1 - m) / s - from_high)
    log_slope = 0.5 * (v.square() - z.square() - u.square()) - LOG_ROOT_2PI
    return v, log_slope - 0.5 * log_variance - whole


def inverse(v: Tensor, m: Tensor, log_variance: Tensor) -> Tensor:
    """u of v, elementwise; the distance to the nearer end by mass keeps its digits."""
    s = torch.exp(0.5 * log_variance)
    with torch.no_grad():
        most = torch.full_like(v, FARTHEST_U)
        least, _ = forward(-most, m, log_variance)
        most, _ = forward(most, m, log_variance)
    v = torch.minimum(torch.maximum(v, least), most)
    low = v <= 0
    start = torch.where(low, -m, m - 1) / s
    wanted = log_ndtr(torch.where(low, v, -v)) + log_mass(start, 1 / s)
    with torch.no_grad():
        log_width = _width(start, wanted).log()
        for _ in range(NEWTON):
            log_width += (wanted - log_mass(start, log_width.exp())) / _rate(start, log_width)
    for _ in range(DIFFERENTIABLE):
        gap = wanted - log_mass(start, log_width.exp())
        log_width = log_width + gap / _rate(start, log_width)
    share = (log_width.exp() * s).clamp(SMALLEST, 1 - 1e-16)
    near = share < 0.5
    u = quantile(torch.where(near, share, 1 - share).log())
    return torch.where(near == low, u, -u)


def log_mass(start: Tensor, width: Tensor) -> Tensor:
    """log(Φ(start + width) − Φ(start)), of the lower tail by reflection."""
    middle = start + 0.5 * width
    short = width * (1 + middle.abs()) < SHORT
    c = torch.where(short, middle, 0.0)
    d = torch.where(short, width, 0.5 * SHORT)
    series = d.log() - 0.5 * c.square() + torch.log1p((c.square() - 1) * d.square() / 24)
    low = torch.where(middle > 0, -start - width, start)
    low = torch.where(short, -1.0, low)
    d = torch.where(short, 1.0, width)
    high = low + d
    # log Φ(high) − log Φ(low), without the difference of two squares
    tails = -d * (low + 0.5 * d) - erfcx(-low / ROOT_2).log()
    tails = tails + erfcx(-high.clamp_max(0.0) / ROOT_2).log()
    ratio = torch.where(high <= 0, tails, log_ndtr(high) - log_ndtr(low))
    long = log_ndtr(high) + torch.log(-torch.expm1(-ratio))
    return torch.where(short, series - LOG_ROOT_2PI, long)


def quantile(log_p: Tensor) -> Tensor:
    """Φ⁻¹(exp(log_p)) of log_p below log 0.9 or so, by Newton's method on log Φ."""
    with torch.no_grad():
        far = (-2 * log_p - 2 * LOG_ROOT_2PI).clamp_min(4.0)
        asymptote = -(far - far.log()).sqrt()
        z = torch.where(log_p > DEEP, ndtri(log_p.exp()), asymptote)
        for _ in range(NEWTON):
            z -= (log_ndtr(z) - log_p) / _hazard(z)
    for _ in range(DIFFERENTIABLE):
        z = z - (log_ndtr(z) - log_p) / _hazard(z)
    return z


def _hazard(z: Tensor) -> Tensor:
    """φ(z)/Φ(z)."""
    hazard: Tensor = math.sqrt(2 / math.pi) / erfcx(-z / ROOT_2)
    return hazard


def _rate(start: Tensor, log_width: Tensor) -> Tensor:
    """d log_mass/d log width."""
    width = log_width.exp()
    log_density = -0.5 * (start + width).square() - LOG_ROOT_2PI
    rate: Tensor = torch.exp(log_width + log_density - log_mass(start, width))
    return rate.clamp_min(SMALLEST)


def _width(start: Tensor, wanted: Tensor) -> Tensor:
    """Where log_mass is about as wanted: at most half of Φ from start to infinity."""
    sign = torch.where(start > 0, -1.0, 1.0)
    tail = log_ndtr(-start.abs())
    excess = wanted - tail
    down = -torch.log1p(-excess.exp().clamp_max(0.5))
    step = torch.where(start > 0, down, torch.nn.functional.softplus(excess))
    step = torch.where(excess < -30, excess.exp(), step)
    found = sign * quantile(tail + sign * step) - start
    return torch.where(step < 1e-4, step / _hazard(-start.abs()), found).clamp_min(SMALLEST)
