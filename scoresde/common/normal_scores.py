"""Normal scores: Φ⁻¹(the share of known rows below a number), column by column.

They make one column of any law look like N(0, 1). A few knots per column hold them:

    Φ⁻¹(the share of rows below x)                        between the outermost knots,
    ±(q + a/(1 + a)),   a = d·|x − the knot|/r            beyond them,

which is bounded and never falls. A value that many rows have gets the mean of the scores that they
would share. q is the score of the outermost knot. r is how far x goes between the last six knots;
if these are one value, r is the distance to the farthest row.
"""

from __future__ import annotations

import torch
from torch import Tensor

KNOTS = 61
"""From −3 to 3, or nearer to 0 if fewer than five rows lie beyond."""
LAST = 5
"""Steps between knots, at each end, that set the slope beyond."""
QUARTILES = 1.3489795003921634
"""Standard deviations between the quartiles of a normal distribution."""


def normal_scores(x: Tensor) -> dict[str, Tensor]:
    """The knots (K, KNOTS) of x (N, K), and the normal quantiles that they are; none of no x."""
    if not len(x):
        none = x.new_zeros(0, dtype=torch.float64)
        return {"knots": none.expand(x.shape[1], 0), "levels": none}
    rare = torch.special.ndtri(
        torch.tensor(5 / max(len(x), 20), dtype=torch.float64, device="cpu")
    )
    most = min(3.0, -float(rare))
    levels = torch.linspace(-most, most, KNOTS, dtype=torch.float64, device=x.device)
    at = (torch.special.ndtr(levels) * (len(x) - 1)).round().long()
    return {"knots": x.sort(0).values[at].T.contiguous(), "levels": levels}


def interpolated(x: Tensor, knots: Tensor, levels: Tensor, last: bool = False) -> Tensor:
    """The levels of x (…, K) between its knots (K, ·); the outermost ones beyond them.

    Levels are those of all columns (·,), or of each (K, ·). A value that several knots have gets
    the level of the first or the last of these.
    """
    rows = x.reshape(-1, x.shape[-1]).T.contiguous()
    levels = levels.expand(knots.shape)
    above = torch.searchsorted(knots, rows, right=last).clamp(1, knots.shape[1] - 1)
    low = knots.gather(1, above - 1)
    width = knots.gather(1, above) - low
    varies = width > 0
    share = ((rows - low) / torch.where(varies, width, 1.0)).clamp(0, 1)
    share = torch.where(varies, share, 0.5)
    start = levels.gather(1, above - 1)
    score = start + share * (levels.gather(1, above) - start)
    return score.T.reshape(x.shape)


def shared(knots: Tensor, levels: Tensor) -> Tensor:
    """The levels (K, ·) of knots (K, ·), of which equal ones have their mean.

    Interpolated, they are continuous, also at a value that many rows have.
    """
    at = knots.T.contiguous()
    first = interpolated(at, knots, levels)
    last = interpolated(at, knots, levels, last=True)
    mean = 0.5 * (first + last)
    return mean.T.contiguous()


def beyond(x: Tensor, knots: Tensor, ends: Tensor, step: Tensor | float) -> Tensor:
    """What the scores of x (…, K) rise beyond the outermost knots.

    `step` is d, what they rise between the last six knots; ends (2, K) are the least and the
    greatest number of the rows.
    """
    least, most = ends
    first, last = knots[:, 0], knots[:, -1]
    run = _run(last - knots[:, -1 - LAST], most - last, last)
    above = step * (x - last).clamp_min(0) / run
    run = _run(knots[:, LAST] - first, first - least, first)
    below = step * (first - x).clamp_min(0) / run
    return bounded(above) - bounded(below)


def bounded(a: Tensor) -> Tensor:
    """a/(1 + a) of a ≥ 0, also of an infinite a."""
    return 1 - 1 / (1 + a)


def _run(between: Tensor, beyond: Tensor, end: Tensor) -> Tensor:
    """The width of the last steps, or the distance to the farthest row, or some other."""
    run = torch.where(between > 0, between, beyond)
    return torch.where(run > 0, run, end.abs() + 1.0)
