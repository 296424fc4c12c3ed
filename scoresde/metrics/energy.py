"""The energy distance between two sets of samples, and the permutation test that goes with it.

The energy distance between the distributions of X and Y is, with independent copies X′ and Y′,

    E² = 2·E|X − Y| − E|X − X′| − E|Y − Y′| ≥ 0,        zero if and only if they agree,

in the units of the data (Székely and Rizzo 2013, Energy statistics: a class of statistics based on
distances). It has no kernel, no bandwidth and no network to choose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.checks import check_budget, check_generator, whole_number
from ..common.names import suggest_arguments
from ..common.seeds import takes_seed
from . import points as pairs
from .points import distances, points, total

MOST_POINTS = 8192  # of both sets in a permutation test


@torch.no_grad()
def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared energy distance E² = 2·E|X − Y| − E|X − X′| − E|Y − Y′| of two sets.

    It is the U-statistic, which leaves out pairs of a point with itself and is unbiased: if the
    distributions agree, it scatters about 0 and may be negative. It carries no gradient.

    Parameters
    ----------
    x : Tensor, shape (n, *shape)
        n ≥ 2.
    y : Tensor, shape (m, *shape)
        m ≥ 2, in the same units.

    Returns
    -------
    Tensor, shape (), float64
        E², in the units of the data. It costs n·m + n² + m² distances and 4 MB.

    Raises
    ------
    TypeError
        If x or y is not a tensor.
    ValueError
        For fewer than two points, shapes that differ, or samples that are not finite.

    References
    ----------
    Székely and Rizzo 2013 for E²; Hoeffding 1948 for U-statistics.

    Examples
    --------
    >>> energy_distance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0]))     # 2·1.5 − 1 − 3
    tensor(-1., dtype=torch.float64)
    """
    x, y = points(x, y)
    n = len(x)
    m = len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))


@takes_seed
@suggest_arguments
@torch.no_grad()
def energy_test(
    x: Tensor,
    y: Tensor,
    permutations: int = 999,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
) -> float:
    """Return the p-value of a permutation test that x and y are equally distributed.

    Points are pooled and divided anew; p = (1 + #{E²_permuted ≥ E²})/(1 + permutations). If the
    distributions agree, P(p ≤ a) ≤ a for every a and every sample size: rejecting at p ≤ 0.01 is a
    false alarm once in a hundred tests. A large p does not prove that they agree: the test is as
    sharp as n and m make it.

    Parameters
    ----------
    x : Tensor, shape (n, *shape)
        n ≥ 2.
    y : Tensor, shape (m, *shape)
        m ≥ 2, in the same units; n + m ≤ 8192.
    permutations : int
        How many; p is never below 1/(1 + permutations).
    generator : torch.Generator, optional
        The only source of randomness when given.
    seed : int, optional
        An integer in place of the generator.

    Returns
    -------
    float
        p in (0, 1]. It costs (n + m)²·permutations multiplications.

    Raises
    ------
    TypeError
        If x or y is not a tensor.
    ValueError
        For too many points, permutations < 1, or samples that `energy_distance` refuses.

    References
    ----------
    Székely and Rizzo 2004, Testing for equal distributions in high dimension; Phipson and Smyth
    2010 for the 1 in p.

    Examples
    --------
    >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    >>> energy_test(x, x + 1.0, permutations=99, generator=torch.Generator().manual_seed(1))
    0.01
    """
    permutations = whole_number("permutations", permutations)
    check_generator(generator)
    x, y = points(x, y)
    n = len(x)
    N = len(x) + len(y)
    if N > MOST_POINTS:
        hint = f"subsample, x[torch.randperm(len(x))[:{MOST_POINTS // 2}]]"
        raise ValueError(f"{N} points in all; the test takes at most {MOST_POINTS}: {hint}")
    check_budget(f"permutations={permutations}", 8.0 * N * permutations)
    device = x.device if generator is None else generator.device
    orders = [torch.randperm(N, generator=generator, device=device) for _ in range(permutations)]
    in_x = torch.stack([torch.arange(N, device=device), *orders])[:, :n].to(x.device)
    # E² = −zᵀ·d·z with z = 1/n on x and −1/m on y, one column of z per division (the V-statistic)
    z = x.new_full((1 + permutations, N), -1 / (N - n)).scatter(1, in_x, 1 / n).T.contiguous()
    pool = torch.cat([x, y])
    energy = x.new_zeros(1 + permutations)
    rows = max(1, pairs.PAIRS_AT_ONCE // N)
    for part, sign in zip(torch.split(pool, rows), torch.split(z, rows), strict=True):
        energy -= (sign * (distances(part, pool) @ z)).sum(0)
    # ties must count whatever the rounding
    slack = 1e-12 * distances(pool[:1], pool).mean()
    return int((energy >= energy[0] - slack).sum()) / (1 + permutations)
