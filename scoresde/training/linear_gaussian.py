"""What `fit` measures of p(x | vector, class) before it trains: the Gaussian with a linear mean.

The mean is a ridge regression of standardized data on the vector as the network is told it, and on
the categories. Rows far from it have less weight, as if what is left had Student's t distribution
with `FREEDOM` degrees of freedom: a few outliers do not turn the line. The covariance is that of
the residuals of rows that were left out of their own regression, so that few rows do not look more
certain than they are.

See `scoresde.backbones.regression` for what the network makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..backbones.labels import rows_of_labels
from ..backbones.regression import LinearGaussian
from ..common.ridge import ridge
from ..data.stream import TrainingStream
from ..model.score_sde import ScoreSDE
from ..model.trainable import Trainable
from .objectives import Objective

FREEDOM = 10.0
"""Of the distribution of residuals, by which rows are weighted: 2% more rows are needed for normal
ones."""
ROUNDS = 6
"""Of regression and weights."""
FEWEST_ROWS = 8
MOST_FEATURES = 500
LEAST_VARIANCE = 1e-6
"""Of what is left, in units of the data's: solvers begin where noise is not much finer."""
WIDE = 0.25
"""Variance of what is left, by its geometric mean, whose Fourier features remain those of data."""
LEAST_SCALE = 1e-3
"""By which residuals are weighted, in units of their root mean square: many may be equal."""


def measure(
    sde: Trainable, source: TrainingStream, objective: Objective, held_out: bool = False
) -> None:
    """Let the network of a new model be the Gaussian of its data, if it can.

    It is one of the rows that are trained on, or, with `held_out`, of all.
    """
    if not isinstance(sde, ScoreSDE):
        return
    learns = getattr(objective, "kind", None)
    if learns != "score" or sde.predict != "edm":
        return
    part = getattr(sde.net, "regression", None)
    if not isinstance(part, LinearGaussian):
        return
    if sde.input_convention != "arc":
        return
    if part.vector + sum(part.sizes) > MOST_FEATURES:
        return
    rows = source.some_rows(held_out)
    if rows is None or len(rows[0]) < FEWEST_ROWS:
        return
    found = _measured(sde, part, *rows)
    if sde.free is not None:
        found = _with_constants(found, sde.free.cpu(), sde.shape[0])
    part.put(found)


def _measured(
    sde: ScoreSDE, part: LinearGaussian, x: Tensor, condition: Mapping[str, Tensor]
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
        of, missing = rows_of_labels(condition["y"].long().cpu(), part.sizes)
        marks.scatter_(1, of, 1.0).masked_fill_(missing.unsqueeze(1), 0.0)
    found = gaussian(z, torch.cat([told, marks], 1))
    slope, shifts = torch.split(found["slope"], [part.vector, len(marks.T)])
    shares = marks.mean(0)
    centred = _centred(shifts, shares, part.sizes)
    found["intercept"] = found["intercept"] + shares @ (shifts - centred)
    return found | {"slope": slope, "shifts": centred}


def _centred(shifts: Tensor, shares: Tensor, sizes: Sequence[int]) -> Tensor:
    """The shifts of categories, less their mean over rows; 0 of those that no row has."""
    found = []
    groups = (torch.split(each, list(sizes)) for each in (shifts, shares))
    for shift, share in zip(*groups, strict=True):
        mean = share @ shift / share.sum().clamp_min(1e-300)
        found.append(torch.where(share.unsqueeze(1) > 0, shift - mean, 0.0))
    return torch.cat(found) if found else shifts


def gaussian(z: Tensor, c: Tensor) -> dict[str, Tensor]:
    """N(A·c + b, S) of rows z (N, D) given features c (N, K)."""
    weight = z.new_ones(len(z), 1)
    for _ in range(ROUNDS):
        slope, intercept, left = _line(z, c, weight)
        weight = _weights(left)
    value, basis = torch.linalg.eigh(left.T @ left / len(z))
    log_variance = value.clamp_min(LEAST_VARIANCE).log()
    return {
        "slope": slope,
        "intercept": intercept,
        "basis": basis,
        "log_variance": log_variance,
        "outer": (log_variance.mean() > math.log(WIDE)).double(),
    }


def _line(z: Tensor, c: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope, intercept, and the residual of each row from the regression on the others."""
    total = weight.sum()
    centre = (weight * c).sum(0) / total
    middle = (weight * z).sum(0) / total
    root = weight.sqrt()
    found = ridge(root * (c - centre), root * (z - middle))
    left = z - middle - (c - centre) @ found.slope
    own = found.leverage + weight[:, 0] / total
    return (
        found.slope,
        middle - centre @ found.slope,
        left / (1 - own).clamp_min(0.01).unsqueeze(1),
    )


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
    whole["basis"] = torch.eye(dim, dtype=torch.float64)
    whole["basis"][free.unsqueeze(1), free] = found["basis"]
    return whole
