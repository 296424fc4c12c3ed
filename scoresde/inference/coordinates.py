"""Coordinates in which a posterior is nearly a standard normal distribution.

    u_i = Φ⁻¹((theta_i − low_i)/(high_i − low_i))      in an interval, Φ the normal CDF
    u_i = log(theta_i − low_i), −log(high_i − theta_i)  on a half line
    u_i = theta_i                                       elsewhere
    w = L⁻¹v,     v_i = (u_i − b_i − A_i·f(x))/s_i(x),
    f(x) = (standardized x, the normal scores of x)

A and b are a ridge regression of u on f(x), whose penalty generalized cross-validation chooses,
with weights 1/s². s_i(x) is how far u_i may lie from it, see `spread`: 1 where that does not
depend on x. L Lᵀ is the covariance of v. A network that outputs zero means w ~ N(0, I). No sample
leaves the prior's support. Under a uniform prior, u is N(0, I).

Numbers in x with heavy tails are replaced by their normal scores first, where that makes held-out
pairs likelier: see `tails`.

The normal score of x_k is Φ⁻¹ of the share of simulations below it. Scores are used if some theta_i
has an interval: where x_k is theta_i and a little noise, u_i is nearly linear in the score.

Where that makes held-out pairs likelier, parameters in intervals have another v_i: one that is
N(0, 1) if theta_i is a normal with mean m_i(x) and spread s_i(x), truncated to the interval. See
`truncated` for the map, and `truncated_fit` for m and s.

    log p(theta | x) = log p(w | x) − log det L + ∑ log |dv_i/du_i| + ∑ log |du_i/dtheta_i|
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..common.normal_scores import normal_scores
from ..common.ridge import MOST_FEATURES
from . import linear, spread, tails, truncated, truncated_fit
from .linear import features
from .support import Support

FOLD = 5
"""One pair of so many tells which numbers with heavy tails are better as scores."""


class Coordinates:
    """The map between theta and w, given x, with its numbers in float64."""

    NUMBERS = (
        "low",
        "high",
        "mean",
        "scale",
        "knots",
        "levels",
        "slope",
        "intercept",
        "root",
    )
    OF_SPREAD = (
        "contrast_scale",
        "spread_mean",
        "spread_scale",
        "spread_slope",
        "spread_intercept",
        "spread_low",
        "spread_high",
    )
    """Empty where no s depends on x."""
    OF_TAILS = ("heavy", "heavy_knots", "heavy_levels", "heavy_range")
    """Empty where no number in x is replaced by its score."""
    TRUNCATED = "truncated"
    """1 for a truncated normal, 0 for a Gaussian in u, (D,); empty if there are only those."""
    CEILING = "ceiling"
    """The ceiling of log s² of truncated normals, (D,); empty if there are none."""

    def __init__(self, **numbers: Tensor) -> None:
        found = {name: numbers[name] for name in self.NUMBERS}
        optional = (*self.OF_SPREAD, *self.OF_TAILS, self.TRUNCATED, self.CEILING)
        found |= {name: numbers.get(name, torch.zeros(0)) for name in optional}
        dense = torch.contiguous_format
        self.numbers = {
            name: value.double().cpu().clone(memory_format=dense) for name, value in found.items()
        }
        self._check()
        self.support = Support(self.numbers["low"], self.numbers["high"])
        self.cut: list[int] = self.numbers[self.TRUNCATED].nonzero()[:, 0].tolist()

    def _check(self) -> None:
        """Raise ValueError for numbers that are no map of D parameters and K numbers in x."""
        n = self.numbers
        shapes = {name: tuple(value.shape) for name, value in n.items()}
        dim = n["low"].shape[:1].numel()
        k = n["mean"].shape[:1].numel()
        knots = n["levels"].shape[:1].numel()
        wanted: dict[str, tuple[int, ...]] = dict.fromkeys(("low", "high", "intercept"), (dim,))
        wanted |= {"mean": (k,), "scale": (k,), "knots": (k, knots), "levels": (knots,)}
        parts = 1
        if knots:
            parts = 3 if len(n[self.TRUNCATED]) else 2
        wanted |= {"slope": (parts * k, dim), "root": (dim, dim)}
        if len(n[self.TRUNCATED]):
            wanted |= {self.TRUNCATED: (dim,), self.CEILING: (dim,)}
        if self.varies or len(n[self.TRUNCATED]):
            many = n["spread_mean"].shape[:1].numel()
            wanted |= {"contrast_scale": tuple(spread.contrasts(n["mean"]).shape)}
            wanted |= {"spread_mean": (many,), "spread_scale": (many,)}
            wanted |= {"spread_slope": (many, dim), "spread_intercept": (dim,)}
            wanted |= {"spread_low": (dim,), "spread_high": (dim,)}
        for name, shape in wanted.items():
            if shapes[name] != shape:
                raise ValueError(f"{name} has shape {shapes[name]}, wanted {shape}")
        finite = ("mean", "knots", "levels", "slope", "intercept", "root", *self.OF_SPREAD[3:])
        if not all(bool(n[name].isfinite().all()) for name in finite):
            raise ValueError("numbers that are not finite")
        if not bool((n["low"] < n["high"]).all() & (n["scale"] > 0).all()):
            raise ValueError("an empty interval, or a scale that is not positive")
        rising = (n["knots"].diff() >= 0).all() & (n["levels"].diff() > 0).all()
        if not bool(rising):
            raise ValueError("knots or levels that do not rise")
        tails.check(n, k)
        if bool((n[self.CEILING].isnan() | (n[self.CEILING] == -math.inf)).any()):
            raise ValueError("a ceiling of log s² that is no number")
        cut = n[self.TRUNCATED]
        open_end = n["low"].isinf() | n["high"].isinf()
        if len(cut) and not bool(((cut == 0) | ((cut == 1) & ~open_end)).all()):
            raise ValueError("a truncated normal of a parameter that has no interval")
        if not bool((n["root"].diagonal() > 0).all() & (n["root"].triu(1) == 0).all()):
            raise ValueError("a root that is not lower triangular with a positive diagonal")

    @classmethod
    def measured(
        cls,
        low: Tensor,
        high: Tensor,
        theta: Tensor,
        x: Tensor,
        varies: bool = True,
    ) -> Coordinates:
        """Coordinates from pairs: theta (N, D) and x (N, K).

        With varies=False, s is 1, and x is used as it is.
        """
        theta = theta.cpu()
        x = x.cpu().double()
        scores: dict[str, Tensor] = {}
        if varies and (sets := tails.candidates(x)):
            held = torch.arange(len(x)) % FOLD == 0
            best = -math.inf
            for heavy in (None, *sets):
                tried = {} if heavy is None else tails.measured(x[~held], heavy)
                made = cls._fitted(low, high, theta[~held], x[~held], True, tried)
                w, log_det = made.forward(theta[held], x[held])
                found = float((log_det - 0.5 * w.square().sum(1)).mean())
                if found > best:
                    best = found
                    scores = {} if heavy is None else tails.measured(x, heavy)
        return cls._fitted(low, high, theta, x, varies, scores)

    @classmethod
    def _fitted(
        cls,
        low: Tensor,
        high: Tensor,
        theta: Tensor,
        raw: Tensor,
        varies: bool,
        scores: dict[str, Tensor],
    ) -> Coordinates:
        """Coordinates from pairs, with scores in place of some numbers in x."""
        support = Support(low, high)
        u, _ = support.forward(theta)
        x = tails.with_scores(raw, scores) if scores else raw
        scale = x.std(0, correction=0)
        numbers = {"mean": x.mean(0)}
        constant = scale <= 1e-9 * numbers["mean"].abs()
        numbers["scale"] = torch.where(constant, math.inf, scale)
        wanted = bool(support.both.any()) and 2 * x.shape[1] <= MOST_FEATURES
        scored = x if wanted else x[:0]
        numbers |= normal_scores(scored)
        f = features(x, numbers)
        cut = torch.zeros(0)
        if varies and wanted and spread.feasible(x, f):
            found, line = truncated_fit.measured(x, f, u, support.both)
            cut = found.double() if bool(found.any()) else cut
        if not len(cut):
            line = linear.measured(x, f, u, varies)
        start = cls(
            low=low,
            high=high,
            slope=line.slope,
            intercept=line.intercept,
            root=torch.eye(u.shape[1], dtype=torch.float64),
            **numbers,
            **line.law,
            **scores,
            truncated=cut,
        )
        left, _ = start._standardized(u, raw)
        covariance = left.T @ left / max(1.0, len(u) - 1 - line.freedom)
        variance = covariance.diagonal()
        variance = torch.where(variance > 0, variance, 1.0)
        covariance = covariance + torch.diag(1e-10 * variance)
        return cls(**{**start.numbers, "root": torch.linalg.cholesky(covariance)})

    @property
    def varies(self) -> bool:
        """Whether s depends on x."""
        return len(self.numbers["spread_slope"]) > 0

    @property
    def observed(self) -> int:
        """Numbers in x."""
        return len(self.numbers["mean"])

    @property
    def usual(self) -> tuple[Tensor, Tensor]:
        """What the numbers in x of nearly all simulations lie between, (K,) each."""
        n = self.numbers
        knots = n["knots"]
        if knots.shape[1]:
            low, high = knots[:, 0], knots[:, -1]
        else:
            reach = torch.where(n["scale"].isinf(), 0.0, 3 * n["scale"])
            low, high = n["mean"] - reach, n["mean"] + reach
        return tails.outermost(n, low, high)

    def told(self, x: Tensor) -> Tensor:
        """What a network is told of x (B, K): x with scores; if s depends on it, the center and
        log s² too.
        """
        seen = tails.with_scores(x, self.numbers).to(x.dtype)
        if not self.varies:
            return seen
        centre, log_variance = self._gaussian(x)
        if self.cut:
            m = centre[:, self.cut]
            median = truncated.inverse(torch.zeros_like(m), m, log_variance[:, self.cut])
            _, slope = truncated.forward(median, m, log_variance[:, self.cut])
            centre[:, self.cut] = median
            log_variance[:, self.cut] = -2 * slope
        return torch.cat([seen, centre.to(x.dtype), log_variance.to(x.dtype)], 1)

    def forward(
        self,
        theta: Tensor,
        x: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """w (…, D) and log |det dw/dtheta| (…) of theta inside, given x (…, K), in float64."""
        u, log_det = self.support.forward(theta)
        v, slope = self._standardized(u, x)
        log_det = log_det + slope.sum(-1) - self._log_volume()
        return self._whitened(v), log_det

    def inverse(self, w: Tensor, x: Tensor) -> Tensor:
        """Theta of w, strictly inside the support, in w's dtype."""
        return self.support.inverse(self.to_u(w, x), w.dtype)

    def log_det(self, u: Tensor, x: Tensor) -> Tensor:
        """log |det dw/du| at u (…, D) and x (…, K)."""
        _, slope = self._standardized(u, x)
        return slope.sum(-1) - self._log_volume()

    def log_slope(self, w: Tensor, x: Tensor) -> Tensor:
        """log |det dw/dtheta| at w, up to a constant."""
        u = self.to_u(w, x)
        found = self.support.log_slope(u)
        return found + self.log_det(u, x) if self.cut else found

    def clamped(
        self,
        w: Tensor,
        x: Tensor,
        farthest: float,
    ) -> Tensor:
        """w with no |u_i| of an interval beyond `farthest`."""
        u = self.support.clamped(self.to_u(w, x), farthest)
        return self.from_u(u, x).to(w.dtype)

    def to_u(self, w: Tensor, x: Tensor) -> Tensor:
        """u of w."""
        centre, log_variance = self._gaussian(x.to(w.device))
        v = w.double() @ self.numbers["root"].to(w.device).T
        u = v * torch.exp(0.5 * log_variance) + centre
        if self.cut:
            inner = truncated.inverse(
                v[..., self.cut], centre[..., self.cut], log_variance[..., self.cut]
            )
            u[..., self.cut] = inner
        return u

    def from_u(self, u: Tensor, x: Tensor) -> Tensor:
        """w of u."""
        v, _ = self._standardized(u, x)
        return self._whitened(v)

    def _standardized(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """What w is before L, and log |dv_i/du_i|, both (…, D)."""
        centre, log_variance = self._gaussian(x.to(u.device))
        v = (u - centre) * torch.exp(-0.5 * log_variance)
        slope = -0.5 * log_variance
        if self.cut:
            inner, steep = truncated.forward(
                u[..., self.cut], centre[..., self.cut], log_variance[..., self.cut]
            )
            v[..., self.cut] = inner
            slope = slope.expand_as(v).clone()
            slope[..., self.cut] = steep
        return v, slope

    def _whitened(self, v: Tensor) -> Tensor:
        """L⁻¹v."""
        root = self.numbers["root"].to(v.device)
        w = torch.linalg.solve_triangular(root.T, v.unsqueeze(-2), upper=True, left=False)
        flat: Tensor = w.squeeze(-2)
        return flat

    def _log_volume(self) -> float:
        """log det L."""
        return float(self.numbers["root"].diagonal().log().sum())

    def _gaussian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What u, or m of a truncated normal, is expected at x (…, K), and log s², both (…, D)."""
        near = {name: value.to(x.device) for name, value in self.numbers.items()}
        x = tails.with_scores(x, near)
        f = features(x, near)
        used = linear.with_ranks(f, self.observed) if len(near[self.TRUNCATED]) else f
        centre = near["intercept"] + used @ near["slope"]
        if not self.varies:
            return centre, torch.zeros_like(centre)
        log_variance = spread.log_variance(x, f, near)
        if self.cut:
            inner = truncated.under(log_variance[..., self.cut], near[self.CEILING][self.cut])
            m, inner = truncated.limited(centre[..., self.cut], inner)
            centre[..., self.cut] = m
            log_variance[..., self.cut] = inner
        return centre, log_variance
