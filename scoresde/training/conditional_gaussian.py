"""What `fit` measures of p(x | vector, class) before it trains: the Gaussian with a linear mean.

The mean is a ridge regression of standardized data on the vector as the network is told it, and on
the categories. Rows far from it have less weight, as if what is left had Student's t distribution
with `FREEDOM` degrees of freedom, and columns that do not depend on one another: a few outliers do
not turn the line. The covariance is that of the residuals of rows that were left out of their own
regression, so that few rows do not look more certain than they are. Whitened data have the
covariance I, and what is left has I − cov(m), so its axes are those of cov(m). Along these its
correlations are shrunk, as those of data are, where rows are few.

A Gaussian falls too steeply for the outliers of heavy-tailed residuals. N residuals of a normal
distribution rarely go beyond √(2 log 2N) standard deviations. Where those of an axis end f times as
far out, and f is more than `HEAVY`, its variance is f times as large.

See `scoresde.backbones.conditional_gaussian` for what the network makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..backbones.conditional_gaussian import ConditionalGaussian
from ..backbones.labels import rows_of_labels
from ..common.ridge import left_out, ridge
from ..data.stream import TrainingStream
from ..model.column_features import ALWAYS, NUMBERS, octaves_of
from ..model.covariance import Covariance
from ..model.score_sde import ScoreSDE
from ..model.trainable import Trainable
from .objectives import Objective

FREEDOM = 10.0
"""Degrees of freedom of Student's t. On normal residuals its weights cost 3 to 5% of the rows."""
ROUNDS = 6
"""Of regression and weights."""
FEWEST_ROWS = 8
MOST_ENTRIES = 500
"""Of vector and categories together: of more, nothing is measured."""
LEAST_VARIANCE = 1e-6
"""Of what is left, in units of the data's: narrower densities are not resolved by solvers."""
HEAVY = 2.0
"""Of 300 rows, two in three of Student's t (2) have more, and 6% of an exponential distribution."""
WIDE = 0.25
"""If the geometric mean of variances is above it, the network sees the data, not what is left."""
LEAST_SCALE = 1e-3
"""By which residuals are weighted, in units of their root mean square: many may be equal."""


def measure(
    sde: Trainable, source: TrainingStream, objective: Objective, *, all_rows: bool = False
) -> None:
    """Give a network the Gaussian of training rows, or of all rows, if it has a place for one."""
    part = gaussian_of(sde)
    if part is None or getattr(objective, "kind", None) != "score":
        return
    if part.measured and not all_rows:
        return
    assert isinstance(sde, ScoreSDE)
    size = sde.shape[0] + part.vector + sum(part.sizes)
    rows = source.some_rows(size, all_rows)
    if rows is None or len(rows[0]) < FEWEST_ROWS:
        return
    found = _measured(sde, part, *rows)
    if sde.free is not None:
        found = _with_constants(found, sde.free.cpu(), sde.shape[0])
    part.assign(found)


def gaussian_of(sde: Trainable) -> ConditionalGaussian | None:
    """The part of a model's network that keeps the Gaussian of what it learns; None without one."""
    if not isinstance(sde, ScoreSDE) or sde.input_convention != "arc" or sde.predict != "edm":
        return None
    part = getattr(sde.net, "conditional_gaussian", None)
    if not isinstance(part, ConditionalGaussian):
        return None
    return part if part.vector + sum(part.sizes) <= MOST_ENTRIES else None


def _measured(
    sde: ScoreSDE, part: ConditionalGaussian, x: Tensor, condition: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The Gaussian of rows under conditions, of the columns that vary."""
    z = sde.from_data(x.to(sde.device)).double().cpu()
    told = z.new_zeros(len(z), part.vector)
    marks = z.new_zeros(len(z), sum(part.sizes))
    if part.vector and "vector" in condition:
        vector = condition["vector"].to(sde.device)
        told = sde.conditions.standardize("vector", vector)
        told = told.double().cpu()
    if part.sizes and "y" in condition:
        labels = condition["y"].long().cpu()
        marks.scatter_(1, rows_of_labels(labels, part.sizes)[0], 1.0)
    found = fit_gaussian(z, torch.cat([told, marks], 1))
    if _has_fine_columns(sde, z):
        found["outer"].fill_(1.0)
    slope, shifts = torch.split(found["slope"], [part.vector, marks.shape[1]])
    shares = marks.mean(0)
    centred = _centred(shifts, shares, part.sizes)
    found["intercept"] = found["intercept"] + shares @ (shifts - centred)
    return found | {"slope": slope, "shifts": centred}


def _has_fine_columns(sde: ScoreSDE, z: Tensor) -> bool:
    """Whether some column has clumps or edges, which stay where they are."""
    rows = z[: max(1, NUMBERS // sde.shape[0])]
    columns = sde.standardization.columns(rows.to(sde.device))
    return max(octaves_of(columns.cpu().float())) > ALWAYS


def _centred(shifts: Tensor, shares: Tensor, sizes: Sequence[int]) -> Tensor:
    """The shifts of categories, less their mean over rows; 0 of those that no row has."""
    found = []
    groups = (torch.split(each, list(sizes)) for each in (shifts, shares))
    for shift, share in zip(*groups, strict=True):
        mean = share @ shift / share.sum().clamp_min(1e-300)
        found.append(torch.where(share.unsqueeze(1) > 0, shift - mean, 0.0))
    return torch.cat(found) if found else shifts


def fit_gaussian(z: Tensor, c: Tensor) -> dict[str, Tensor]:
    """N(A·c + b, S) of rows z (N, D) given features c (N, K)."""
    weight = z.new_ones(len(z), 1)
    slope, intercept, left = _line(z, c, weight)
    for _ in range(ROUNDS - 1):
        weight = _weights(left)
        slope, intercept, left = _line(z, c, weight)
    _, turned = torch.linalg.eigh(slope.T @ torch.cov(c.T).reshape(c.shape[1], -1) @ slope)
    value, basis = torch.linalg.eigh(turned @ _covariance(left @ turned) @ turned.T)
    value = value.clamp_min(LEAST_VARIANCE)
    farthest = (left @ basis).square().amax(0) / value
    times = (farthest / (2 * math.log(2 * len(left)))).sqrt()
    widened = torch.where(times > HEAVY, times * value, value)
    return {
        "slope": slope,
        "intercept": intercept,
        "basis": basis,
        "log_variance": widened.log(),
        "outer": (value.log().mean() > math.log(WIDE)).double(),
    }


def _covariance(left: Tensor) -> Tensor:
    """That of residuals (N, D), with correlations that are shrunk where rows are few."""
    found = Covariance()
    found.add(left)
    vary = left.std(0) > 0
    index = vary.nonzero()[:, 0]
    whole = left.new_full((len(vary),), LEAST_VARIANCE).diag()
    if len(index):
        std, correlation, share = found.correlations(index)
        unit = torch.ones_like(std).diag()
        shrunk = (1 - share) * correlation + share * unit
        whole[index.unsqueeze(1), index] = std * shrunk * std.unsqueeze(1)
    return whole


def _line(z: Tensor, c: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope, intercept, and the residual of each row from the regression on the others."""
    total = weight.sum()
    centre = (weight * c).sum(0) / total
    middle = (weight * z).sum(0) / total
    root = weight.sqrt()
    found = ridge(root * (c - centre), root * (z - middle))
    left = z - middle - (c - centre) @ found.slope
    own = found.leverage + weight[:, 0] / total
    return found.slope, middle - centre @ found.slope, left_out(left, own)


def _weights(left: Tensor) -> Tensor:
    """Weights (N, 1) of rows by their residuals (N, D), of mean 1."""
    square = left.square()
    mean = square.mean(0)
    mean = torch.where(mean > 0, mean, 1.0)
    scale = mean
    dim = left.shape[1]
    for _ in range(2 * ROUNDS):
        distance = (square / scale).sum(1, keepdim=True)
        weight = (FREEDOM + dim) / (FREEDOM + distance)
        scale = (weight * square).mean(0).clamp_min(LEAST_SCALE**2 * mean)
    return weight / weight.mean()


def _with_constants(found: dict[str, Tensor], free: Tensor, dim: int) -> dict[str, Tensor]:
    """The Gaussian of all D columns, with N(0, 1) of constants, of that of columns that vary."""
    whole = {"outer": found["outer"]}
    for name in ("slope", "shifts", "intercept", "log_variance"):
        whole[name] = found[name].new_zeros(*found[name].shape[:-1], dim)
        whole[name][..., free] = found[name]
    whole["basis"] = torch.eye(dim, dtype=torch.float64, device="cpu")
    whole["basis"][free.unsqueeze(1), free] = found["basis"]
    return whole
