"""Figures of calibration: coverage against level, and histograms of ranks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..checks import brief_repr, whole_number
from .figures import BLUE, GREY, ORANGE, _pyplot, finish

BAND = 0.95
"""Probability that a calibrated curve, or step, is inside the band, at each level by itself."""
COLORS = (BLUE, ORANGE, "#3f8f5f", "#7a4f9a")
MOST_PANELS = 32
PANELS_A_ROW = 3


class Covered(Protocol):
    """What `coverage` and `tarp` return."""

    ranks: Tensor
    p_value: float

    def at(self, levels: Tensor) -> Tensor:
        """The coverage at each level."""


class Ranked(Protocol):
    """What `sbc` returns."""

    ranks: Tensor
    draws: int
    p_values: Tensor


def band(n: int, p: Any) -> tuple[Any, Any]:
    """The central 95% of the share of n independent trials of probability p."""
    from scipy.stats import binom  # dear to import

    tail = (1 - BAND) / 2
    return binom.ppf(tail, n, p) / n, binom.ppf(1 - tail, n, p) / n


def calibration_curve(
    result: Covered | Mapping[str, Covered], path: str | os.PathLike[str] | None = None
) -> Any:
    """Draw coverage against level, with the band in which a calibrated posterior stays.

    The band holds 95% of calibrated curves at each level by itself; the p-value in the legend
    judges the whole curve. Coverage below the diagonal at high levels means that the posterior is
    too narrow or biased, above it that it is too wide.

    Parameters
    ----------
    result : Coverage or ExpectedCoverage, or a mapping of names to several
        From `scoresde.metrics.coverage` or `scoresde.metrics.tarp`.
    path : path, optional
        Where to save the figure.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    TypeError
        If result is no such result.
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> true, draws = torch.randn(300, generator=g), torch.randn(300, 100, generator=g)
    >>> normal = torch.distributions.Normal(0.0, 1.0)
    >>> found = scoresde.metrics.coverage(normal.log_prob(true), normal.log_prob(draws))
    >>> scoresde.plotting.calibration_curve(found).axes[0].get_xlabel()
    'probability of the region'
    """
    results = dict(result) if isinstance(result, Mapping) else {"coverage": result}
    for one in results.values():
        if not callable(getattr(one, "at", None)):
            raise TypeError(
                f"result is what metrics.coverage or metrics.tarp returns, got {brief_repr(one)}"
            )
    if not results:
        raise ValueError("result is an empty mapping; wanted one result or more")
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(4, 4.4), constrained_layout=True)
    levels = np.linspace(0, 1, 201)
    n = min(len(one.ranks) for one in results.values())
    low, high = band(n, levels)
    axes.fill_between(levels, low, high, color=GREY, alpha=0.25, lw=0, label="95% if calibrated")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    for i, (name, one) in enumerate(results.items()):
        share = one.at(torch.from_numpy(levels)).cpu().numpy()
        label = f"{name}, p = {_p(one.p_value)}"
        axes.plot(levels, share, color=COLORS[i % len(COLORS)], linewidth=1.8, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("probability of the region")
    axes.set_ylabel(f"share of {n:,} truths inside")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return finish(figure, path)


def rank_histogram(
    result: Ranked,
    names: Sequence[str] | None = None,
    bins: int = 20,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Draw the ranks of the truth among draws: one panel per coordinate, flat if calibrated.

    Steps are counts over those expected. High ends mean draws that are too narrow, a high middle
    draws that are too wide, a slope a bias. 95% of the steps of a calibrated posterior are inside
    the band.

    Parameters
    ----------
    result : RankTest
        From `scoresde.metrics.sbc`, with at most 32 coordinates.
    names : sequence of str, optional
        Of the coordinates.
    bins : int
        Steps of a panel, fewer if there are fewer ranks, or fewer than 10 counts expected in each.
    path : path, optional
        Where to save the figure.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    TypeError
        If result is no such result.
    ValueError
        For too many coordinates, or names of another number.
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> true, draws = torch.randn(300, 2, generator=g), torch.randn(300, 99, 2, generator=g)
    >>> figure = scoresde.plotting.rank_histogram(scoresde.metrics.sbc(true, draws), ["a", "b"])
    >>> [axes.get_title() for axes in figure.axes]
    ['a, p = 0.08', 'b, p = 0.48']
    """
    if not hasattr(result, "p_values"):
        raise TypeError(f"result is what metrics.sbc returns, got {brief_repr(result)}")
    n, d = result.ranks.shape
    if d > MOST_PANELS:
        raise ValueError(
            f"result has {d} coordinates, the figure takes {MOST_PANELS}: give fewer to sbc"
        )
    titles = [f"θ{i}" for i in range(d)] if names is None else [str(name) for name in names]
    if len(titles) != d:
        raise ValueError(f"names has {len(titles)} entries, wanted {d}, one for each coordinate")
    bars = min(whole_number("bins", bins), result.draws + 1, max(2, n // 10))
    of_rank = np.arange(result.draws + 1) * bars // (result.draws + 1)
    expected = np.bincount(of_rank, minlength=bars) / (result.draws + 1)
    edges = np.concatenate([[0], expected.cumsum()])
    low, high = band(n, expected)
    of_truth = of_rank[result.ranks.cpu().numpy()]
    heights = [np.bincount(column, minlength=bars) / (n * expected) for column in of_truth.T]
    top = 1.05 * max(*(float(each.max()) for each in heights), float((high / expected).max()))
    plt = _pyplot()
    columns = min(d, PANELS_A_ROW)
    rows = math.ceil(d / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(max(3.6, 1.9 * columns), 0.6 + 1.7 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        constrained_layout=True,
    )
    shade: dict[str, Any] = {
        "fill": True,
        "color": GREY,
        "alpha": 0.3,
        "lw": 0,
    }
    for i, axes in enumerate(grid.flat):
        if i >= d:
            axes.remove()
            continue
        axes.stairs(high / expected, edges, baseline=low / expected, **shade)
        axes.stairs(heights[i], edges, color=BLUE, linewidth=1.8)
        axes.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
        axes.set_title(f"{titles[i]}, p = {_p(float(result.p_values[i]))}", fontsize=10)
        axes.set_ylim(0, top)
        axes.set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "½", "1"])
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("rank of the truth among draws, from 0 to 1", fontsize=10)
    figure.supylabel("count / expected", fontsize=10)
    return finish(figure, path)


def _p(value: float) -> str:
    """A p-value in a label."""
    return f"{value:.1g}" if value < 0.01 else f"{value:.2f}"
