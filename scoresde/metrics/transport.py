"""Wasserstein distances between two sets of samples: exact by assignment, and sliced.

The p-Wasserstein distance is the least cost of moving one distribution to the other,

    W_p = (inf_γ E_γ|X − Y|^p)^(1/p)                          (Villani 2009),

where γ is any joint distribution with the given marginals. Between two sets of n points the best γ
is a permutation. In one dimension it joins equal quantiles, so that
W_p^p = ∫|F⁻¹(u) − G⁻¹(u)|^p du. Averaged over directions θ on the sphere,

    SW_p = (E_θ W_p^p(θ·X, θ·Y))^(1/p)                        (Bonneel et al. 2015).

Both are distances in the units of the data. (Other libraries return p-th powers: POT's `emd2` of
squared distances is W_2².) Two sets of true samples are W_p apart by about n^(−1/D), a bias that
no other metric here has: see `noise_floor`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..common.checks import check_budget, check_generator, real_number, whole_number
from ..common.names import suggest_arguments
from ..common.seeds import takes_seed
from ..common.user_warnings import warn
from . import points as pairs
from .points import distances, points

MOST_POINTS = 8192  # of a set without a warning: above, the exact distance takes minutes


@torch.no_grad()
def wasserstein(x: Tensor, y: Tensor, p: float = 2) -> Tensor:
    """Return the p-Wasserstein distance W_p = (min_π 1/n·Σ_i |x_i − y_π(i)|^p)^(1/p), exactly.

    It is W_p itself, not its p-th power: POT's `emd2` with squared distances as cost is the square
    of `wasserstein(x, y)`. The sets must be equally large. It carries no gradient.

    Parameters
    ----------
    x : Tensor, shape (n, *shape)
        n ≥ 2.
    y : Tensor, shape (n, *shape)
        As many, in the same units.
    p : float
        Power of the Euclidean distance, ≥ 1.

    Returns
    -------
    Tensor, shape (), float64
        W_p, in the units of the data. It takes 8·n² bytes and at most some n³ operations; p = 2 is
        up to ten times faster than others.

    Raises
    ------
    TypeError
        If x or y is not a tensor.
    ValueError
        For sets of different sizes, p < 1, or samples that `energy_distance` refuses.

    Warns
    -----
    UserWarning
        Above 8192 points, with the cost.

    References
    ----------
    Villani, Optimal transport: old and new, 2009; Crouse, On implementing 2D
    rectangular assignment algorithms, 2016, for the assignment (scipy).

    Examples
    --------
    >>> wasserstein(torch.tensor([0.0, 1.0]), torch.tensor([4.0, 3.0]))
    tensor(3., dtype=torch.float64)
    """
    x, y = points(x, y)
    p = real_number(
        "p", p, 1, math.inf, closed=True, hint="try 2, or 1 for the earth mover's distance"
    )
    n = len(x)
    if n != len(y):
        rows = f"[torch.randperm({max(n, len(y))})[:{min(n, len(y))}]]"
        raise ValueError(
            f"x holds {n} points and y {len(y)}; an assignment wants as many of each: subsample "
            f"the larger, {rows}; sliced_wasserstein takes any sizes"
        )
    if n > MOST_POINTS:
        gigabytes = 8 * n * n / 2**30
        minutes = 2e-10 * n**3 / 60 * (1 if p == 2 else 10)
        warn(
            f"assigning {n} points takes {gigabytes:.1f} GiB and about {minutes:.0f} minutes: "
            "subsample, or take sliced_wasserstein",
        )
    check_budget(
        f"{n} points and their distances",
        8.0 * n * n,
        hint="subsample, or take sliced_wasserstein",
    )
    from_x = x
    to_y = y
    if p == 2:
        # Of |x − y|² the assignment depends on −2x·y alone, also if x is moved and scaled: that of
        # equal means and variances is found ten times faster.
        spread = (y.var() / x.var()).sqrt()
        from_x = (x - x.mean(0)) * (spread if bool(0 < spread < math.inf) else 1.0)
        to_y = y - y.mean(0)
    cost = distances(from_x, to_y).pow_(p)
    from scipy.optimize import linear_sum_assignment  # dear to import

    _, order = linear_sum_assignment(cost.cpu().numpy())
    moved = (x - y[torch.as_tensor(order, device=y.device)]).norm(dim=1)
    result: Tensor = moved.pow(p).mean().pow(1 / p)
    return result


@takes_seed
@suggest_arguments
@torch.no_grad()
def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    projections: int = 512,
    p: float = 2,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
) -> Tensor:
    """Return the sliced p-Wasserstein distance SW_p = (E_θ W_p^p(θ·X, θ·Y))^(1/p).

    The sets may have any sizes, and samples any dimension. Each one-dimensional distance is exact;
    E_θ is a mean over random directions, whose relative error falls as 1/√projections. In one
    dimension SW_p = W_p. It carries no gradient.

    Parameters
    ----------
    x : Tensor, shape (n, *shape)
        n ≥ 2.
    y : Tensor, shape (m, *shape)
        m ≥ 2, in the same units.
    projections : int
        Number of directions θ, uniform on the sphere.
    p : float
        Power of the distance, ≥ 1.
    generator : torch.Generator, optional
        The only source of randomness when given.
    seed : int, optional
        An integer in place of the generator.

    Returns
    -------
    Tensor, shape (), float64
        SW_p, in the units of the data. It costs projections·(n + m) numbers, their sorting, and 8
        MB.

    Raises
    ------
    TypeError
        If x or y is not a tensor.
    ValueError
        For p < 1, projections < 1, or samples that `energy_distance` refuses.

    References
    ----------
    Bonneel, Rabin, Peyré and Pfister, Sliced and Radon Wasserstein barycenters of measures, 2015.

    Examples
    --------
    >>> sliced_wasserstein(torch.tensor([0.0, 1.0]), torch.tensor([4.0, 3.0]))
    tensor(3., dtype=torch.float64)
    """
    projections = whole_number("projections", projections)
    check_generator(generator)
    x, y = points(x, y)
    p = real_number("p", p, 1, math.inf, closed=True, hint="try 2")
    check_budget(f"projections={projections}", 8.0 * x.shape[1] * projections, device=x.device)
    device = x.device if generator is None else generator.device
    size = (x.shape[1], projections)
    theta = torch.randn(size, generator=generator, device=device, dtype=torch.float64).to(x.device)
    theta = theta / theta.norm(dim=0)
    n = len(x)
    m = len(y)
    # Both quantile functions are steps: between the joined steps u_k, F⁻¹ is the i-th smallest
    # and G⁻¹ the j-th. `ends` are u·n·m, in exact integers.
    ends_x = torch.arange(1, n + 1, device="cpu") * m
    ends_y = torch.arange(1, m + 1, device="cpu") * n
    ends = torch.unique(torch.cat([ends_x, ends_y])).to(x.device)
    width = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    i = (ends - 1) // m
    j = (ends - 1) // n
    total = x.new_zeros(())
    for part in torch.split(theta, max(1, pairs.PAIRS_AT_ONCE // (n + m)), dim=1):
        gap = (x @ part).sort(0).values[i] - (y @ part).sort(0).values[j]
        total += (width @ gap.abs_().pow_(p)).sum()
    result: Tensor = (total / theta.shape[1]).pow(1 / p)
    return result
