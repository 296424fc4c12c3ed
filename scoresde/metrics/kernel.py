"""The maximum mean discrepancy between two sets of samples.

With a positive kernel k, X′ and Y′ being independent copies of X and Y,

    MMD² = E k(X, X′) + E k(Y, Y′) − 2·E k(X, Y) ≥ 0          (Gretton et al. 2012, lemma 6),

zero if and only if the distributions agree. The kernel here is a mean of Gaussians,
k(x, y) = 1/B·Σ_b exp(−|x − y|²/2b²). A difference between the distributions shows best at a
bandwidth b of the same length, so several bandwidths are used unless one is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.checks import real_number
from .points import distances, points, total

OCTAVES = (0.25, 0.5, 1.0, 2.0, 4.0)  # bandwidths, in median distances
MEDIAN_POINTS = 1000  # points of each set, the first ones, whose median distance is taken


@torch.no_grad()
def mmd(x: Tensor, y: Tensor, bandwidth: float | Sequence[float] | None = None) -> Tensor:
    """Return the squared maximum mean discrepancy MMD² = E k(X, X′) + E k(Y, Y′) − 2·E k(X, Y).

    The kernel k is a mean of Gaussians. It is the U-statistic, which leaves out pairs of a point
    with itself and is unbiased: if the distributions agree, it scatters about 0 and may be
    negative. It carries no gradient.

    Parameters
    ----------
    x : Tensor, shape (n, *shape)
        n ≥ 2.
    y : Tensor, shape (m, *shape)
        m ≥ 2, in the same units.
    bandwidth : float or sequence of float, optional
        b of k = exp(−|x − y|²/2b²), in the units of the data; k is the mean over several. By
        default 1/4, 1/2, 1, 2 and 4 times the median distance among the first 1000 points of each
        set: then b depends on the samples. Give it to compare values.

    Returns
    -------
    Tensor, shape (), float64
        MMD², from 0 to 2 up to scatter. It costs n·m + n² + m² kernels and 4 MB.

    Raises
    ------
    TypeError
        If x or y is not a tensor, or a bandwidth no number.
    ValueError
        For a bandwidth that is not positive, or samples that `energy_distance` refuses.

    References
    ----------
    Gretton et al., A kernel two-sample test, JMLR 2012: eq. 3, and the median as bandwidth.

    Examples
    --------
    >>> mmd(torch.tensor([0.0, 0.0]), torch.tensor([2.0, 2.0]), bandwidth=1.0)  # 2 − 2·exp(−2)
    tensor(1.7293, dtype=torch.float64)
    """
    x, y = points(x, y)
    if bandwidth is None:
        bandwidth = _around_the_median(x, y)
    single = not isinstance(bandwidth, Sequence) or isinstance(bandwidth, str | bytes)
    widths: Any = [bandwidth] if single else bandwidth
    if not widths:
        raise ValueError("bandwidth holds no number; try 1.0, or None for the median distance")
    rates = []
    for b in widths:
        b = real_number("bandwidth", b, 0, math.inf, hint="try None, for the median distance")
        rates.append(-0.5 / b**2)

    def kernel(d: Tensor) -> Tensor:
        square = d.square_()
        values = sum((torch.exp(rate * square) for rate in rates), torch.zeros_like(square))
        return values.div_(len(rates))

    n = len(x)
    m = len(y)
    # k = 1 on the diagonal
    inner = sum((total(u, u, kernel) - len(u)) / (len(u) * (len(u) - 1)) for u in (x, y))
    return inner - 2 * total(x, y, kernel) / (n * m)


def _around_the_median(x: Tensor, y: Tensor) -> list[float]:
    """Bandwidths about the median distance."""
    pool = torch.cat([x[:MEDIAN_POINTS], y[:MEDIAN_POINTS]])
    across = torch.ones(len(pool), len(pool), dtype=torch.bool, device=x.device).triu(1)
    median = float(distances(pool, pool)[across].median())
    if not median:
        raise ValueError(
            "half of all points coincide, so that their median distance is 0; give a bandwidth="
        )
    return [octave * median for octave in OCTAVES]
