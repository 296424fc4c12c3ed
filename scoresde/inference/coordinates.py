"""Coordinates in which a posterior is nearly a standard normal distribution.

    u_i = Φ⁻¹((theta_i − low_i)/(high_i − low_i))      in an interval, Φ the normal CDF
    u_i = log(theta_i − low_i), −log(high_i − theta_i)  on a half line
    u_i = theta_i                                       elsewhere
    w = L⁻¹((u − b − A·f(x))/s(x)),     f(x) = (standardized x, the normal scores of x)

A and b are a ridge regression of u on f(x), whose penalty generalized cross-validation chooses,
with weights 1/s². s_i(x) is how far u_i may lie from it, see `spread`: 1 where that does not
depend on x. L Lᵀ is the covariance of the residuals over s. A network that outputs zero means
w ~ N(0, I), which is the best linear-Gaussian posterior. No sample leaves the prior's support.
Under a uniform prior, u is N(0, I).

The normal score of x_k is Φ⁻¹ of the share of simulations below it. Scores are used if some theta_i
has an interval: where x_k is theta_i and a little noise, u_i is nearly linear in the score.

    log p(theta | x) = log p(w | x) − log det L − ∑ log s_i(x) + ∑ log |du_i/dtheta_i|
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from . import spread

EDGE = 1e-9
"""Share of an interval, at each end, that counts as its edge: u stays within ±6."""
PENALTIES = torch.logspace(-6, 6, 25, dtype=torch.float64)
"""Of the ridge regression, per row."""
MOST_FEATURES = 2000
"""Twice the numbers in one observation, beyond which no regression is made."""
ROUNDS = 4
"""Of regression and spread."""
MOST_WEIGHT = 1000.0
"""Of a row in the regression, in units of the median."""
KNOTS = 61
"""Of the normal scores, from −3 to 3, or nearer to 0 if fewer than five simulations lie beyond."""
SMALLEST = 1e-300
LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


class Support:
    """The bijection between the interior of a box of intervals, half lines and lines, and R^D."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low = low.double()
        self.high = high.double()
        self.both = low.isfinite() & high.isfinite()
        self.lower = low.isfinite() & ~high.isfinite()
        self.upper = high.isfinite() & ~low.isfinite()

    def contains(self, theta: Tensor) -> Tensor:
        """Whether theta (…, D) is inside or at the edge."""
        theta = theta.detach().double()
        low = self.low.to(theta.device)
        high = self.high.to(theta.device)
        return ((theta >= low) & (theta <= high)).all(-1)

    def forward(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """u and ∑ log |du/dtheta| of theta (…, D) inside, in float64."""
        theta = theta.double()
        low, high, both, lower, upper = self._on(theta.device)
        width = torch.where(both, high - low, 1.0)
        share = ((theta - torch.where(both, low, 0.0)) / width).clamp(EDGE, 1 - EDGE)
        probit = torch.special.ndtri(torch.where(both, share, 0.5))
        one = torch.ones_like(theta)
        above = torch.where(lower, theta - low, one).clamp_min(SMALLEST)
        below = torch.where(upper, high - theta, one).clamp_min(SMALLEST)
        u = torch.where(both, probit, theta)
        u = torch.where(lower, above.log(), u)
        u = torch.where(upper, -below.log(), u)
        return u, self.log_slope(u)

    def log_slope(self, u: Tensor) -> Tensor:
        """∑ log |du/dtheta| at u (…, D)."""
        low, high, both, lower, upper = self._on(u.device)
        width = torch.where(both, high - low, 1.0)
        inner = torch.where(both, 0.5 * u.square() + LOG_ROOT_2PI - width.log(), 0.0)
        return (inner + torch.where(upper, u, 0.0) - torch.where(lower, u, 0.0)).sum(-1)

    def clamped(self, u: Tensor, farthest: float) -> Tensor:
        """u with parameters in intervals no farther than that from 0."""
        return torch.where(self.both.to(u.device), u.clamp(-farthest, farthest), u)

    def inverse(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        """Theta of u (…, D), strictly inside as numbers of that dtype."""
        u = u.double()
        low, high, both, lower, upper = self._on(u.device)
        theta = torch.where(both, low + torch.special.ndtr(u) * (high - low), u)
        theta = torch.where(lower, low + torch.where(lower, u, 0.0).exp(), theta)
        theta = torch.where(upper, high - torch.where(upper, -u, 0.0).exp(), theta)
        theta = theta.to(dtype)
        least = torch.nextafter(low.to(dtype), torch.full_like(low, math.inf).to(dtype))
        most = torch.nextafter(high.to(dtype), torch.full_like(high, -math.inf).to(dtype))
        return torch.minimum(torch.maximum(theta, least), most)

    def _on(self, device: torch.device) -> list[Tensor]:
        """Bounds and masks on a device."""
        parts = (self.low, self.high, self.both, self.lower, self.upper)
        return [part.to(device) for part in parts]


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

    def __init__(self, **numbers: Tensor) -> None:
        found = {name: numbers[name] for name in self.NUMBERS}
        found |= {name: numbers.get(name, torch.zeros(0)) for name in self.OF_SPREAD}
        dense = torch.contiguous_format
        self.numbers = {
            name: value.double().cpu().clone(memory_format=dense) for name, value in found.items()
        }
        self._check()
        self.support = Support(self.numbers["low"], self.numbers["high"])

    def _check(self) -> None:
        """Raise ValueError for numbers that are no map of D parameters and K numbers in x."""
        n = self.numbers
        shapes = {name: tuple(value.shape) for name, value in n.items()}
        dim = n["low"].shape[:1].numel()
        k = n["mean"].shape[:1].numel()
        knots = n["levels"].shape[:1].numel()
        wanted: dict[str, tuple[int, ...]] = dict.fromkeys(("low", "high", "intercept"), (dim,))
        wanted |= {"mean": (k,), "scale": (k,), "knots": (k, knots), "levels": (knots,)}
        wanted |= {"slope": (2 * k if knots else k, dim), "root": (dim, dim)}
        if self.varies:
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
        """Coordinates from pairs: theta (N, D) and x (N, K); s is 1 unless it may vary."""
        support = Support(low, high)
        u, _ = support.forward(theta.cpu())
        x = x.cpu().double()
        scale = x.std(0, correction=0)
        numbers = {"mean": x.mean(0)}
        constant = scale <= 1e-9 * numbers["mean"].abs()
        numbers["scale"] = torch.where(constant, math.inf, scale)
        wanted = bool(support.both.any()) and 2 * x.shape[1] <= MOST_FEATURES
        scored = x if wanted else x[:0]
        numbers |= _normal_scores(scored)
        f = features(x, numbers)
        weight = torch.ones_like(u)
        law: dict[str, Tensor] = {}
        for _ in range(ROUNDS):
            slope, intercept, freedom = regression(f, u, weight)
            left = u - intercept - f @ slope
            found = spread.measured(x, f, left) if varies else {}
            if not found:
                break
            law = found
            weight = torch.exp(-spread.log_variance(x, f, law))
        left = left * weight.sqrt()
        covariance = left.T @ left / max(1.0, len(u) - 1 - freedom)
        variance = covariance.diagonal()
        variance = torch.where(variance > 0, variance, 1.0)
        covariance = covariance + torch.diag(1e-10 * variance)
        return cls(
            low=low,
            high=high,
            slope=slope,
            intercept=intercept,
            root=torch.linalg.cholesky(covariance),
            **numbers,
            **law,
        )

    @property
    def varies(self) -> bool:
        """Whether s depends on x."""
        return len(self.numbers["spread_slope"]) > 0

    @property
    def observed(self) -> int:
        """Numbers in x."""
        return len(self.numbers["mean"])

    def told(self, x: Tensor) -> Tensor:
        """What a network is told of x (B, K): x, and if s depends on it the center and log s²."""
        if not self.varies:
            return x
        return torch.cat([x, *(part.to(x.dtype) for part in self._gaussian(x))], 1)

    def forward(
        self,
        theta: Tensor,
        x: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """w (…, D) and log |det dw/dtheta| (…) of theta inside, given x (…, K), in float64."""
        u, log_det = self.support.forward(theta)
        return self.from_u(u, x), log_det + self.log_det(x).to(u.device)

    def inverse(self, w: Tensor, x: Tensor) -> Tensor:
        """Theta of w, strictly inside the support, in w's dtype."""
        return self.support.inverse(self.to_u(w, x), w.dtype)

    def log_det(self, x: Tensor) -> Tensor:
        """log |det dw/du| at x (…, K)."""
        _, log_variance = self._gaussian(x)
        root = self.numbers["root"].to(x.device)
        return -0.5 * log_variance.sum(-1) - root.diagonal().log().sum()

    def log_slope(self, w: Tensor, x: Tensor) -> Tensor:
        """log |det dw/dtheta| at w, up to a constant."""
        return self.support.log_slope(self.to_u(w, x))

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
        root = self.numbers["root"].to(w.device)
        centre, log_variance = self._gaussian(x.to(w.device))
        return w.double() @ root.T * torch.exp(0.5 * log_variance) + centre

    def from_u(self, u: Tensor, x: Tensor) -> Tensor:
        """w of u."""
        root = self.numbers["root"].to(u.device)
        centre, log_variance = self._gaussian(x.to(u.device))
        centred = (u - centre) * torch.exp(-0.5 * log_variance)
        w = torch.linalg.solve_triangular(root.T, centred.unsqueeze(-2), upper=True, left=False)
        flat: Tensor = w.squeeze(-2)
        return flat

    def _gaussian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What u is expected to be at x (…, K), and log s², both (…, D)."""
        near = {name: value.to(x.device) for name, value in self.numbers.items()}
        f = features(x.double(), near)
        centre = near["intercept"] + f @ near["slope"]
        if not self.varies:
            return centre, torch.zeros_like(centre)
        return centre, spread.log_variance(x.double(), f, near)


def features(x: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
    """f(x), (…, 2K) or (…, K), of x (…, K)."""
    linear = (x - numbers["mean"]) / numbers["scale"]
    levels = numbers["levels"]
    if not len(levels):
        return linear
    rows = x.reshape(-1, x.shape[-1]).T.contiguous()
    above = torch.searchsorted(numbers["knots"], rows).clamp(1, len(levels) - 1)
    high = numbers["knots"].gather(1, above)
    low = numbers["knots"].gather(1, above - 1)
    width = high - low
    share = torch.where(width > 0, ((rows - low) / width).clamp(0, 1), 0.5)
    score = levels[above - 1] + share * (levels[above] - levels[above - 1])
    score = torch.where(numbers["scale"].isinf().unsqueeze(1), 0.0, score)
    return torch.cat([linear, score.T.reshape(x.shape)], -1)


def _normal_scores(x: Tensor) -> dict[str, Tensor]:
    """The knots (K, KNOTS) of x (N, K), and the normal quantiles that they are; none of no x."""
    if not len(x):
        none = torch.zeros(0, dtype=torch.float64)
        return {"knots": none.expand(x.shape[1], 0), "levels": none}
    rare = torch.special.ndtri(torch.tensor(5 / max(len(x), 20), dtype=torch.float64))
    most = min(3.0, -float(rare))
    levels = torch.linspace(-most, most, KNOTS, dtype=torch.float64)
    at = (torch.special.ndtr(levels) * (len(x) - 1)).round().long()
    return {"knots": x.sort(0).values[at].T.contiguous(), "levels": levels}


def regression(
    f: Tensor,
    target: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, float]:
    """Slope, intercept and degrees of freedom of a weighted ridge regression of each target.

    Targets (N, D) whose weights (N, D) are 1 share one penalty.
    """
    slope = torch.zeros(f.shape[1], target.shape[1], dtype=torch.float64)
    intercept = torch.zeros(target.shape[1], dtype=torch.float64)
    equal = (weight == 1).all(0)
    groups = [equal.nonzero()[:, 0].tolist(), *([i] for i in (~equal).nonzero()[:, 0].tolist())]
    freedom = 0.0
    for group in filter(len, groups):
        of_rows = weight[:, group[:1]]
        of_rows = of_rows.clamp_max(MOST_WEIGHT * float(of_rows.median()))
        root = (of_rows / of_rows.mean()).sqrt()
        centre = (of_rows * f).sum(0) / of_rows.sum()
        middle = (of_rows * target[:, group]).sum(0) / of_rows.sum()
        found, used = ridge(root * (f - centre), root * (target[:, group] - middle))
        slope[:, group] = found
        intercept[group] = middle - centre @ found
        freedom = max(freedom, used)
    return slope, intercept, freedom


def ridge(given: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """The slope (K, D) of a regression of centred numbers, and its degrees of freedom.

    The penalty has the least generalized cross-validation error, ∑‖y − ŷ‖²/(N − df)², summed over
    targets of unit variance; an infinite one, for no regression, is among them.
    """
    n, k = given.shape
    none = torch.zeros(k, target.shape[1], dtype=torch.float64)
    if k > MOST_FEATURES:
        return none, 0.0
    left, size, right = torch.linalg.svd(given, full_matrices=False)
    deviation = target.std(0, correction=0)
    unit = target / torch.where(deviation > 0, deviation, 1.0)
    along = left.T @ unit
    total = float(unit.square().sum())
    best = (total / (n - 1) ** 2, none, 0.0)
    for penalty in PENALTIES * n:
        shrink = size.square() / (size.square() + penalty)
        freedom = float(shrink.sum())
        if freedom + 1 >= n:
            continue
        removed = float(((2 * shrink - shrink.square()).unsqueeze(1) * along.square()).sum())
        error = (total - removed) / (n - 1 - freedom) ** 2
        if error < best[0]:
            weights = (size / (size.square() + penalty)).unsqueeze(1)
            best = (error, right.T @ (weights * (left.T @ target)), freedom)
    return best[1], best[2]
