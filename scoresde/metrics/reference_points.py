"""Tests of accuracy with random points (TARP): coverage of balls around reference points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.checks import check_generator
from ..common.inputs import as_reals
from ..common.names import suggest_arguments
from ..common.seeds import takes_seed
from .hpd import LEVELS, Coverage, check_levels, curve
from .points import reach
from .uniform_ranks import ranks, truth_and_draws


@dataclass(frozen=True, eq=False)
class ExpectedCoverage(Coverage):
    """Coverage of balls around reference points; it prints as a table.

    Attributes
    ----------
    levels, coverage, stderr, interval, p_value, ranks, draws
        As in `Coverage`.
    area : float
        ∫ (c(α) − α) dα over α from ½ to 1: 0 if calibrated, negative if draws are too narrow,
        positive if they are too wide.

    Examples
    --------
    See `tarp`.
    """

    area: float

    def __str__(self) -> str:
        return f"{super().__str__()}\narea above the diagonal beyond 0.5: {self.area:+.4f}"


@takes_seed
@suggest_arguments
@torch.no_grad()
def tarp(
    theta_true: Tensor,
    draws: Tensor,
    references: Tensor | None = None,
    levels: Sequence[float] | Tensor = LEVELS,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
) -> ExpectedCoverage:
    """Return how often balls around random points hold the true value (TARP), and test it.

    The ball around a reference point that holds a share α of the draws holds the true value with
    probability α, if the posterior is the true one. Distances are Euclidean, with each coordinate
    divided by the standard deviation of all draws and true values together.

    It looks at all coordinates at once. With references that do not depend on x, the prior passes,
    and wrong correlations show weakly; references near a guess of θ from x see both. References
    far from all draws compare one direction only.

    Parameters
    ----------
    theta_true : Tensor or array, shape (N, *shape)
        True values, N ≥ 2.
    draws : Tensor or array, shape (N, K, *shape)
        K ≥ 1 independent draws of the posterior given the x of each pair.
    references : Tensor or array, shape (N, *shape), optional
        One point per pair, chosen without a look at its true value. Default: uniform on the box of
        mean ± √3·(standard deviation) of all draws and true values together.
    levels : sequence of float, or Tensor of shape (L,)
        Probabilities of the balls, each from 0 to 1.
    generator : torch.Generator, optional
        Draws references and breaks ties; the only source of randomness when given.
    seed : int, optional
        An integer in place of the generator.

    Returns
    -------
    ExpectedCoverage

    Raises
    ------
    ValueError
        For shapes that do not agree, NaN or infinity, one pair, no draws, or levels beyond 0 and 1.
    TypeError
        If an argument holds no real numbers.

    References
    ----------
    Lemos, Coogan, Hezaveh and Perreault-Levasseur, Sampling-based accuracy testing of posterior
    estimators for general inference, ICML 2023, arXiv:2302.03026.

    Examples
    --------
    The true standard deviation is 0.71 in both coordinates; the draws have 0.5:

    >>> g = torch.Generator().manual_seed(0)
    >>> theta = torch.randn(500, 2, generator=g)
    >>> x = theta + torch.randn(500, 2, generator=g)
    >>> draws = x[:, None] / 2 + 0.5 * torch.randn(500, 200, 2, generator=g)
    >>> print(tarp(theta, draws, generator=g))
    500 pairs, 200 draws each
    level   coverage   stderr   95% interval
    0.500      0.434    0.022   0.390 to 0.479
    0.900      0.761    0.019   0.721 to 0.798
    0.950      0.835    0.017   0.800 to 0.867
    p-value of calibration: 0.0001
    area above the diagonal beyond 0.5: -0.0508
    """
    check_generator(generator)
    wanted = check_levels(levels)
    truth, values = truth_and_draws(theta_true, draws, ("theta_true", "draws"), finite=True)
    n, k = values.shape[:2]
    unit = reach(truth, values)
    truth = truth / unit
    values = values / unit
    mean = (truth.sum(0) + values.sum((0, 1))) / (n * (k + 1))
    squares = (truth - mean).square().sum(0) + (values - mean).square().sum((0, 1))
    std = (squares / (n * (k + 1))).sqrt()
    std = torch.where(std > 0, std, 1.0)
    if references is None:
        device = truth.device if generator is None else generator.device
        u = torch.rand(truth.shape, generator=generator, device=device, dtype=torch.float64)
        points = mean + math.sqrt(3) * std * (2 * u.to(truth.device) - 1)
    else:
        points = _references(references, theta_true).to(truth) / unit
    near = ((truth - points) / std).square().sum(1, keepdim=True)
    far = ((values - points[:, None]) / std).square().sum(2, keepdim=True)
    found = curve(ranks(near, far, generator)[:, 0], k, wanted)
    return ExpectedCoverage(**vars(found), area=_area(found))


def _references(references: object, theta_true: object) -> Tensor:
    """Return reference points as rows; raise unless they are finite and one for each pair."""
    x = as_reals(references, "references")
    shape = as_reals(theta_true, "theta_true").shape
    if x.shape != shape:
        raise ValueError(
            f"references has shape {tuple(x.shape)}; wanted one point for each pair, {tuple(shape)}"
        )
    if not bool(x.isfinite().all()):
        raise ValueError("references holds NaN or infinity; wanted finite points")
    return x.reshape(len(x), -1)


def _area(found: Coverage) -> float:
    """∫ (c(α) − α) dα from ½ to 1, exact, since c is linear between the multiples of 1/(K + 1)."""
    k = found.draws + 1
    inside = torch.arange(k // 2 + 1, k + 1, dtype=torch.float64) / k
    levels = torch.cat([inside.new_tensor([0.5]), inside])
    excess = found.at(levels).cpu() - levels
    return float(torch.trapezoid(excess, levels))
