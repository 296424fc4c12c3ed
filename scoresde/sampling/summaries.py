"""Summaries of p(x | condition): many draws for each of many conditions, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from ..common import progress as bars
from ..common.checks import check_budget, check_generator, real_number, whole_number
from ..common.progress import shows_progress
from ..common.random import draw_seed
from ..common.seeds import takes_seed
from ..common.sharding import together
from ..model.protocol import Model
from ..model.require import require_model
from ..solvers import Solver
from ..solvers.options import SolverOptions
from .batches import BATCH_NUMBERS
from .states import solve_states

GROUP_STATES = 2**16
"""Draws that are held at once, at most, unless one condition has more."""

SAME_LEVEL = 1e-7  # the rounding of float32
"""How far two levels of quantiles may differ and still be the same."""


@dataclass(frozen=True)
class Summary:
    """Mean, spread and quantiles of the draws for each of n conditions, in the data's units.

    Attributes
    ----------
    mean, std : Tensor, shape (n, *shape)
        Of each element; std is the unbiased kind, divided by draws − 1.
    quantiles : Tensor, shape (n, Q, *shape)
        At `levels`, linear between order statistics.
    levels : tuple of float
    draws : int
        For each condition: the standard error of a mean is std/√draws.

    Examples
    --------
    See `summary`.
    """

    mean: Tensor
    std: Tensor
    quantiles: Tensor
    levels: tuple[float, ...]
    draws: int

    def quantile(self, level: float) -> Tensor:
        """Return one of the quantiles.

        Parameters
        ----------
        level : float
            One of `levels`.

        Returns
        -------
        Tensor, shape (n, *shape)

        Raises
        ------
        ValueError
            For a level that was not asked for.

        Examples
        --------
        >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
        >>> scoresde.summary(sde, draws=50).quantile(0.5).shape
        torch.Size([1, 2])
        """
        for place, known in enumerate(self.levels):
            if abs(known - level) < SAME_LEVEL:
                return self.quantiles[:, place]
        raise ValueError(
            f"there is no quantile {level:g} among {self.levels}: ask for it, "
            f"summary(..., quantiles=({level:g}, ...))"
        )

    def interval(self, mass: float = 0.9) -> tuple[Tensor, Tensor]:
        """Return the central interval of each element: quantiles (1 ∓ mass)/2.

        Parameters
        ----------
        mass : float
            The probability that an element lies within.

        Returns
        -------
        low, high : Tensor, shape (n, *shape)

        Raises
        ------
        ValueError
            If its ends are not among `levels`.

        Examples
        --------
        >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
        >>> low, high = scoresde.summary(sde, draws=50).interval(0.5)
        >>> bool((low < high).all())
        True
        """
        mass = real_number("mass", mass, 0, 1, hint="try 0.9")
        return self.quantile((1 - mass) / 2), self.quantile((1 + mass) / 2)


@takes_seed
@shows_progress
@torch.no_grad()
@together()
def summary(
    sde: Model,
    draws: int = 1000,
    *,
    given: Mapping[str, Any] | None = None,
    quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
    solver: str | Solver | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[SolverOptions],
) -> Summary:
    """Summarize p(x | condition) for each of n conditions by draws of x.

    The draws are those of `sample(sde.given(...), draws=draws)`, made and summarized some
    conditions at a time, so that memory is bounded. Those of condition i depend on the generator,
    on i and on its values alone, not on the other conditions or on `batch_size`.

    Parameters
    ----------
    sde : ScoreSDE
        It may be conditioned already, `sde.given(...)`. Of a model of a `Table` the numeric
        columns are summarized, in their own units.
    draws : int
        For each condition, at least 2.
    given : mapping of str to Tensor, array, data frame, …, optional
        Conditions by name with n rows; see `ScoreSDE.given`.
    quantiles : sequence of float
        Levels in [0, 1].
    solver, steps, spacing, generator, seed, batch_size, **options
        As for `sample`.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.

    Returns
    -------
    Summary

    Raises
    ------
    TypeError, ValueError
        For bad arguments, before any work starts.
    SolverError
        As `sample`.

    Examples
    --------
    >>> x = torch.randn(500, 1)
    >>> y = x + 0.1 * torch.randn(500, 1)
    >>> sde = scoresde.build("vp", "mlp", shape=(1,), vector=1, width=16)
    >>> _ = scoresde.fit(sde, y, given={"vector": x}, steps=20)
    >>> found = scoresde.summary(sde, 100, given={"vector": x[:7]}, steps=10)
    >>> found.mean.shape, found.quantiles.shape
    (torch.Size([7, 1]), torch.Size([7, 5, 1]))
    >>> low, high = found.interval(0.9)
    """
    sde = require_model(sde, "summary")
    check_generator(generator)
    draws = whole_number("draws", draws, 2)
    levels = _levels(quantiles)
    if given is not None:
        if not isinstance(given, Mapping):
            raise TypeError(
                f"given is a mapping such as {{'vector': values}}, got {type(given).__name__}"
            )
        sde = sde.given(**given)
    _require_categories(sde)
    total = sde.condition_rows
    if not total:
        raise ValueError("the conditions have no rows: there is nothing to summarize")
    sde.slice_conditions(0, total, total)
    check_budget(f"draws={draws}", 8.0 * draws * sde.dim)  # of one condition, at least
    seed = draw_seed(generator)
    size = _conditions_at_once(sde, draws)
    parts = []
    for start in range(0, total, size):
        stop = min(start + size, total)
        rows = torch.arange(start, stop, device="cpu").repeat_interleave(draws)
        with bars.part(start, stop, total, "condition"):
            _, states, *_ = solve_states(
                sde.select_conditions(rows),
                len(rows),
                None,
                solver,
                steps,
                spacing,
                None,
                generator,
                batch_size,
                {**options},
                seed=seed,
                first_sample=start * draws,
            )
        drawn = _in_columns(sde, states[-1]).reshape(stop - start, draws, *sde.shape)
        parts.append(_summarized(drawn, levels))
    mean, std, found = (torch.cat(column) for column in zip(*parts, strict=True))
    return Summary(mean, std, found, levels, draws)


def _require_categories(sde: Model) -> None:
    """Raise for a model of a table with categories that is under none of them."""
    named = "y" in sde.condition or sde.unconditional
    if sde.table is not None and sde.table.classes and not named:
        raise ValueError(
            "the table of this model has categories, and a summary is of conditions: name some, "
            "sde.given(y=...), or summarize draws of all, sample(sde, 1000).describe()"
        )


def _in_columns(sde: Model, x: Tensor) -> Tensor:
    """Samples in the units of a table's columns; as they are without a table."""
    return x if sde.table is None else sde.table.restored(x).to(x)


def _levels(quantiles: Any) -> tuple[float, ...]:
    """The levels of quantiles, checked."""
    if isinstance(quantiles, Tensor):
        quantiles = quantiles.tolist()
    try:
        levels = tuple(quantiles)
    except TypeError:
        levels = (quantiles,)
    if not levels:
        raise ValueError("quantiles are levels such as (0.05, 0.5, 0.95), got none")
    return tuple(real_number("quantiles", p, 0, 1, closed=True, hint="try 0.5") for p in levels)


def _conditions_at_once(sde: Model, draws: int) -> int:
    """How many conditions to draw for at once: by the draws, and by the numbers they hold."""
    largest = max((value[:1].numel() for value in sde.condition.values()), default=1)
    numbers = draws * max(sde.dim, largest)
    return max(1, min(GROUP_STATES // draws, BATCH_NUMBERS // numbers))


def _summarized(x: Tensor, levels: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and quantiles over the draws x (n, draws, *shape)."""
    ordered = x.sort(1).values
    draws = x.shape[1]
    found = []
    for level in levels:
        place = level * (draws - 1)
        low = min(int(place), draws - 2)
        found.append(torch.lerp(ordered[:, low], ordered[:, low + 1], place - low))
    wide = x.double() if x.device.type != "mps" else x
    return wide.mean(1).to(x), wide.std(1).to(x), torch.stack(found, 1)
