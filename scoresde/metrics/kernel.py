"""The maximum mean discrepancy between two sets of samples.

With a positive kernel k, X′ and Y′ being independent copies of X and Y,

    MMD² = E k(X, X′) + E k(Y, Y′) − 2·E k(X, Y) ≥ 0                   (Gretton et al. 2012, lemma 6),

zero if and only if the laws agree, for the kernel here: a mean of Gaussians, k = 1/B·Σ_b exp(−|x − y|²/2b²). A difference
between the laws shows best at a bandwidth b of its own length, so several are taken unless one is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import number
from .points import distances, points, total

OCTAVES = (0.25, 0.5, 1.0, 2.0, 4.0)
_SAMPLE = 1000  # points of each set that the median is taken over: the first, for want of a reason to choose


@torch.no_grad()
def mmd(x: Tensor, y: Tensor, bandwidth: float | Sequence[float] | None = None) -> Tensor:
    """Return the squared maximum mean discrepancy MMD² = E k(X, X′) + E k(Y, Y′) − 2·E k(X, Y), with Gaussian kernels.

    It is the U-statistic: pairs of a point with itself are left out, which makes it unbiased, so it scatters
    about 0, and may be negative, when the laws agree. It carries no gradient.

    Parameters
    ----------
    x : Tensor, shape (n, *shape)
        n ≥ 2.
    y : Tensor, shape (m, *shape)
        m ≥ 2, in the same units.
    bandwidth : float or sequence of float, optional
        b of k = exp(−|x − y|²/2b²), in the units of the data; of several, k is the mean. By default 1/4, 1/2, 1, 2 and 4 times
        the median distance among the first 1000 points of each set: then b differs a little between two calls, and with it
        MMD². Give it to compare values.

    Returns
    -------
    Tensor, shape (), float64
        MMD², from 0 to 2 but for scatter. It costs n·m + n² + m² kernels and 4 MB.

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
    >>> mmd(torch.tensor([0.0, 0.0]), torch.tensor([2.0, 2.0]), bandwidth=1.0)      # 2 − 2·exp(−2)
    tensor(1.7293, dtype=torch.float64)
    """
    x, y = points(x, y)
    if bandwidth is None:
        bandwidth = _around_the_median(x, y)
    widths = bandwidth if isinstance(bandwidth, Sequence) and not isinstance(bandwidth, str | bytes) else [bandwidth]
    if not widths:
        raise ValueError("bandwidth holds no number; try 1.0, or None for the median distance")
    rates = [-0.5 / number("bandwidth", b, 0, math.inf, hint="try None, for the median distance") ** 2 for b in widths]

    def kernel(d: Tensor) -> Tensor:
        square = d.square_()
        return sum((torch.exp(rate * square) for rate in rates), torch.zeros_like(square)).div_(len(rates))

    n, m = len(x), len(y)
    inner = sum((total(u, u, kernel) - len(u)) / (len(u) * (len(u) - 1)) for u in (x, y))  # k = 1 on the diagonal
    return inner - 2 * total(x, y, kernel) / (n * m)


def _around_the_median(x: Tensor, y: Tensor) -> list[float]:
    pool = torch.cat([x[:_SAMPLE], y[:_SAMPLE]])
    across = torch.ones(len(pool), len(pool), dtype=torch.bool, device=x.device).triu(1)
    median = float(distances(pool, pool)[across].median())
    if not median:
        raise ValueError("half of all points coincide, and their median distance is 0; give a bandwidth=")
    return [octave * median for octave in OCTAVES]
