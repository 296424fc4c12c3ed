"""log p of rows with gaps: the marginal density of what a row has.

    p(x_seen) = ∫ p(x_seen, x_missing) dx_missing = E_q[p(x_seen, x_missing)/q(x_missing)]

The joint density is the model's, exact, and q follows it in a few rounds of importance sampling, so
that the mean is unbiased whatever q is. A missing category is summed over.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from ..common.checks import check_budget, check_generator, whole_number
from ..common.inputs import as_floats
from ..common.progress import shows_progress
from ..common.random import draw_seed
from ..common.seeds import takes_seed
from ..common.user_warnings import warn
from ..density.exact import log_prob
from ..density.options import DensityOptions
from ..density.tables import EncodedRows
from ..model.protocol import Model
from ..model.require import matched, require_model
from ..model.tables.gaps import candidates, partial_rows
from ..model.tables.schema import TableSchema
from ..sampling.trajectory import last_states
from .row_proposals import RowProposals

ROUNDS = 3
"""Of proposals; the last one is what is averaged."""
SOLVE_STEPS = 40
"""Of each density of a row with gaps."""
MOST_ERROR = 0.5
"""Standard error in nats above which a row is uncertain; a warning counts such rows."""


CHECKED_DRAWS = 4
CHECK_STEPS = 160
"""Steps by which the density at a few draws is found again: its change is an error, too."""
NO_SOLVER = {"batch_size", "probes", "trace"}
"""Options with which the steps are still ours."""
MOST_SHARE = 0.5
"""Weight of one draw above which the error is not known."""
MEASURED_ON = 256
"""Samples of a model that has not measured its data."""


class Moments(NamedTuple):
    """Means (D,) and standard deviations of columns, and their correlations (D, D)."""

    mean: Tensor
    scale: Tensor
    covariance: Tensor


class Marginal(NamedTuple):
    """What `marginal_log_prob` returns.

    Attributes
    ----------
    log_prob : Tensor, shape (n,), float64
        log p of what each row has, in nats.
    stderr : Tensor, shape (n,), float64
        Its standard error by the importance weights, and by 160 steps in place of 40 at four of
        the draws; 0 for rows without gaps, ∞ where one draw has more than half of the weight.

    Examples
    --------
    See `marginal_log_prob`.
    """

    log_prob: Tensor
    stderr: Tensor


class OfCategories(NamedTuple):
    """log p(c) + log p(x_seen | c) of each row with each combination c that it allows, (P,)."""

    rows: Tensor
    combinations: Tensor
    log_prob: Tensor
    stderr: Tensor

    def summed(self, count: int) -> Tensor:
        """log Σ_c of so many rows."""
        blank = torch.full((count,), -math.inf, dtype=torch.float64)
        top = blank.scatter_reduce(0, self.rows, self.log_prob, "amax")
        parts = (self.log_prob - top[self.rows]).exp()
        return top + torch.zeros_like(blank).index_add(0, self.rows, parts).log()


@takes_seed
@shows_progress
@torch.no_grad()
def marginal_log_prob(
    sde: Model,
    x: Any,
    *,
    draws: int = 64,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    **how: Unpack[DensityOptions],
) -> Marginal:
    """Return log p(x_seen) of rows with gaps, the density of the columns that each row has.

    An unbiased estimate of p(x_seen), the integral of the model's density over the missing columns,
    by importance sampling: for a few gaps in a row. Rows without gaps have the log p of
    `scoresde.log_prob`, and rows of gaps alone have 0. The model need not know gaps from training:
    only its density of whole rows is evaluated, 3·draws times for a row with gaps.

    Parameters
    ----------
    sde : ScoreSDE
        A model of vectors, with its conditions given, if it has any: sde.given(y=...).
    x : Tensor or array, shape (n, D), or data frame
        Rows in the units of the data, NaN for what is missing. Columns of a frame are matched by
        their names. Of a model with a table, a frame with its columns, of which a categorical one
        may be missing as well: it is summed over.
    draws : int
        Points of the missing columns, in each of three rounds.
    generator : torch.Generator, optional
        The only source of randomness when given.
    seed : int, optional
        An integer in place of the generator.
    **how
        As for `scoresde.log_prob`, with its progress; by default 40 fixed steps for rows with gaps.

    Returns
    -------
    Marginal
        `log_prob` and `stderr`.

    Raises
    ------
    TypeError, ValueError
        For rows of another shape, categories that the table does not have, samples that are no
        vectors, and as `scoresde.log_prob`.

    Warns
    -----
    UserWarning
        If more than 5% of the rows have a standard error above 0.5 nats, or one has an infinite
        one.

    References
    ----------
    Cappé et al., Population Monte Carlo, Journal of Computational and Graphical Statistics 2004.

    Examples
    --------
    >>> mixture = scoresde.toy.GaussianMixture([[-1.0, 2.0], [1.0, 0.0]], 1.0)
    >>> sde = scoresde.oracle(mixture, scoresde.VPSDE())
    >>> row = torch.tensor([[0.0, torch.nan]])  # log N(±1; 0, 1) = -1.419
    >>> scoresde.marginal_log_prob(sde, row, draws=200, seed=0).log_prob
    tensor([-1.4...], dtype=torch.float64)
    """
    model = require_model(sde, "marginal_log_prob")
    draws = whole_number("draws", draws, 2)
    check_generator(generator)
    if len(model.shape) != 1:
        raise ValueError(
            f"marginal_log_prob takes models of vectors, shape (D,), and this one has samples of "
            f"shape {tuple(model.shape)}"
        )
    here = torch.Generator().manual_seed(draw_seed(generator))
    if model.table is None or not model.table.takes(x):
        model, x = matched(model, x)
        x = as_floats(x, model.shape, "x", gaps=True)
        if model.condition_rows not in (1, len(x)):
            model.slice_conditions(0, len(x), len(x))  # raises
        found = Marginal(*of_columns(model, x.double().cpu(), draws, here, {**how}))
    else:
        found = _of_frame(model, model.table, x, draws, here, {**how})
    uncertain = int((found.stderr > MOST_ERROR).sum())
    if uncertain > 0.05 * len(found.stderr) or bool(found.stderr.isinf().any()):
        warn(
            f"log p of {uncertain} of {len(found.stderr)} rows has a standard error above "
            f"{MOST_ERROR} nats, as they have many gaps or narrow modes: take more draws=, or more "
            "steps="
        )
    return found


def _of_frame(
    model: Model,
    table: TableSchema,
    frame: Any,
    draws: int,
    generator: torch.Generator,
    how: dict[str, Any],
) -> Marginal:
    """log p of rows of a table, in the units of its columns."""
    summed = "y" not in model.condition and not model.unconditional
    values, codes = partial_rows(table, frame, summed)
    z = table.maps.forward(table.noisy(values, generator))
    slopes = table.maps.log_slopes(z).nan_to_num(nan=0.0).sum(1)
    if codes is None:
        log_p, stderr = of_columns(model, z, draws, generator, how)
        return Marginal(log_p + slopes, stderr)
    sums = of_categories(model, table, z, codes, draws, generator, how)
    log_p = sums.summed(len(z))
    parts = ((sums.log_prob - log_p[sums.rows]).exp() * sums.stderr).square()
    stderr = torch.zeros_like(log_p).index_add(0, sums.rows, parts).sqrt()
    return Marginal(log_p + slopes, stderr)


def of_categories(
    model: Model,
    table: TableSchema,
    z: Tensor,
    codes: Tensor,
    draws: int,
    generator: torch.Generator,
    how: dict[str, Any],
) -> OfCategories:
    """The density of rows with each combination that their category numbers (N, C) allow."""
    rows, numbers = candidates(table, codes)
    pairs = torch.stack([rows, table.labels(numbers)], 1).numpy()
    unique, place = np.unique(pairs, axis=0, return_inverse=True)
    row, label = torch.from_numpy(unique).T
    check_budget(f"{len(unique)} rows with all their categories", 8.0 * len(unique) * z.shape[1])
    given = model.select_conditions(row).given(y=label)
    density = torch.stack(of_columns(given, z[row], draws, generator, how))
    density = density[:, place.reshape(-1)]
    log_p, stderr = density
    return OfCategories(rows, numbers, log_p + table.category_log_prob(numbers), stderr)


def of_columns(
    model: Model,
    x: Tensor,
    draws: int,
    generator: torch.Generator,
    how: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """log p and its error of what rows (N, D) in float64 have, in the units of the data."""
    gaps = x.isnan()
    log_p = torch.zeros(len(x), dtype=torch.float64)
    stderr = torch.zeros_like(log_p)
    whole = (~gaps.any(1)).nonzero()[:, 0]
    if len(whole):
        log_p[whole] = _density(model, x[whole], whole, how)
    some = (gaps.any(1) & ~gaps.all(1)).nonzero()[:, 0]
    if not len(some):
        return log_p, stderr
    moments = _moments(model, some, generator)
    most = max(1, 2**22 // (draws * max(draws, x.shape[1])))
    for rows in torch.split(some, most):
        log_p[rows], stderr[rows] = _averaged(model, x[rows], rows, moments, draws, generator, how)
    return log_p, stderr


def _density(model: Model, x: Tensor, rows: Tensor, how: dict[str, Any]) -> Tensor:
    """log p of whole rows, under the conditions of these rows."""
    point = x.to(model.device, torch.promote_types(torch.float32, model.state_dtype))
    encoded: Any = EncodedRows(point)
    return log_prob(model.select_conditions(rows), encoded, **how).double().cpu()


def _averaged(
    model: Model,
    x: Tensor,
    rows: Tensor,
    moments: Moments,
    draws: int,
    generator: torch.Generator,
    how: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """log p and its error of rows with gaps."""
    mean, scale, covariance = moments
    free = scale > 0
    x = torch.where(x.isnan() & ~free, mean, x)  # a constant is known
    known = ~x.isnan()
    unit = torch.where(free, scale, 1.0)
    u = ((x - mean) / unit).nan_to_num(nan=0.0)
    proposals = RowProposals(u, known, covariance)
    units = (~known * unit.log()).sum(1, keepdim=True)
    each = rows.repeat_interleave(draws)
    checked = how.keys() <= NO_SOLVER
    if checked:
        how = {**how, "steps": SOLVE_STEPS}
    for number in range(ROUNDS):
        points = proposals.sample(draws, generator)
        filled = torch.where(known.unsqueeze(1), x.unsqueeze(1), mean + unit * points)
        joint = _density(model, filled.flatten(0, 1), each, how).view(len(x), draws)
        weights = joint + units - proposals.log_prob(points)
        never = weights.isneginf().all(1)  # a constant column has another number
        weights = weights.masked_fill(never.unsqueeze(1), 0.0)
        if number < ROUNDS - 1:
            proposals.adapt(points, weights)
    shares = weights.softmax(1)
    error = (shares.square().sum(1) - 1 / draws).clamp_min(0).sqrt()
    error = error.masked_fill(shares.amax(1) > MOST_SHARE, math.inf)
    if checked:
        few = torch.multinomial(shares, CHECKED_DRAWS, replacement=True, generator=generator)
        again = filled.gather(1, few.unsqueeze(2).expand(-1, -1, x.shape[1])).flatten(0, 1)
        finer = {**how, "steps": CHECK_STEPS}
        exact = _density(model, again, rows.repeat_interleave(CHECKED_DRAWS), finer)
        gap = exact.view(len(x), CHECKED_DRAWS) - joint.gather(1, few)
        error = (error.square() + gap.masked_fill(never.unsqueeze(1), 0).square().mean(1)).sqrt()
    log_p = weights.logsumexp(1) - math.log(draws)
    return log_p.masked_fill(never, -math.inf), error


def _moments(model: Model, rows: Tensor, generator: torch.Generator) -> Moments:
    """Those of the data; an oracle has measured none, and its samples are taken."""
    mean = model.mean.double().cpu()
    scale = model.scale.double().cpu()
    if not bool(getattr(model, "measured", True)):
        chosen = rows[torch.randint(len(rows), (MEASURED_ON,), generator=generator)]
        drawn = last_states(model.select_conditions(chosen), MEASURED_ON, generator=generator)
        x = drawn.double().cpu()
        scale, mean = torch.std_mean(x, 0)
        scale = scale.clamp_min(1e-6 * mean.abs()).clamp_min(1e-30)
        white = (x - mean) / scale
        whole = white.T @ white / MEASURED_ON
        return Moments(mean, scale, whole + 1e-6 * torch.eye(len(mean), dtype=torch.float64))
    free = scale > 0
    directions = model.standardization.directions.double().cpu()
    whole = torch.eye(len(free), dtype=torch.float64)
    at = free.nonzero()[:, 0]
    whole[at.unsqueeze(1), at] = directions @ directions.T
    return Moments(mean, scale, whole)
