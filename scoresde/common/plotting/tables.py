"""Figures of tables: pairs of columns, and quantiles of one column given another."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..inputs import as_reals
from .figures import BLUE, GREY, ORANGE, _pyplot, finish

Array = np.ndarray[Any, np.dtype[np.float64]]

MOST_COLUMNS = 12
POINTS = 2_000
"""Points that a panel shows, at most: evenly spaced rows."""
BINS = 30
MARGIN = 0.15
LABEL_WIDTH = 14
"""Characters of a line of a column's name."""
QUANTILE_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def pairs(
    data: Any,
    samples: Any = None,
    names: Sequence[str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Draw all pairs of columns: data below the diagonal, samples above, histograms on it.

    Axes reach over the middle 99% of each column of the data, and 15% beyond on both sides; what
    lies outside is not drawn. A panel shows at most 2,000 evenly spaced rows.

    Parameters
    ----------
    data : Tensor, array or DataFrame, shape (n, D)
        At most 12 columns. Rows with NaN are left out.
    samples : Tensor, array or DataFrame, shape (m, D), optional
        Such as a model's, with the same columns.
    names : sequence of str, optional
        Of the columns; a DataFrame has its own.
    path : path, optional
        Where to save the figure.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ValueError
        For too many columns, columns that do not agree, or names of another number.
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> moons = scoresde.toy.Moons()
    >>> figure = scoresde.plotting.pairs(moons.sample(500), moons.sample(500), ["x", "y"])
    >>> len(figure.axes)
    4
    """
    columns = getattr(data, "columns", None)
    first = _table(data, "data")
    second = None if samples is None else _table(samples, "samples")
    d = first.shape[1]
    if d > MOST_COLUMNS:
        raise ValueError(
            f"data has {d} columns, the figure takes {MOST_COLUMNS}: choose some, data[:, :6]"
        )
    if second is not None and second.shape[1] != d:
        raise ValueError(f"data has {d} columns, samples {second.shape[1]}; wanted as many")
    known: Iterable[object] = range(d)
    if names is not None:
        known = names
    elif columns is not None:
        known = columns
    titles = [str(name) for name in known]
    if len(titles) != d:
        raise ValueError(f"names has {len(titles)} entries, wanted {d}, one for each column")
    low, high = np.quantile(first, [0.005, 0.995], axis=0)
    width = np.where(high > low, high - low, 1.0)
    low = low - MARGIN * width
    high = high + MARGIN * width
    plt = _pyplot()
    side = max(4.0, 1.4 * d)
    figure, grid = plt.subplots(
        d,
        d,
        figsize=(side, side),
        squeeze=False,
        sharex="col",
        constrained_layout=True,
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    for i in range(d):
        for j in range(d):
            axes = grid[i, j]
            axes.set_xlim(low[j], high[j])
            if i == j:
                _histogram(axes, first[:, j], second, j, (low[j], high[j]))
            else:
                axes.set_ylim(low[i], high[i])
                shown, color = (first, BLUE) if i > j else (second, ORANGE)
                _points(axes, shown, i, j, color)
            _ticks(axes, plt, i, j, d)
        label = textwrap.fill(titles[i], LABEL_WIDTH)
        grid[d - 1, i].set_xlabel(label, fontsize=9)
        grid[i, 0].set_ylabel(label, fontsize=9)
    figure.align_labels()
    if second is not None:
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return finish(figure, path)


def _histogram(
    axes: Any, column: Array, samples: Array | None, j: int, limits: tuple[float, float]
) -> None:
    """The densities of a column of data and of samples, in the same bins."""
    edges = np.linspace(*limits, BINS + 1)
    found = [np.histogram(column, edges)[0] / len(column)]
    axes.stairs(found[0], edges, fill=True, color=BLUE, alpha=0.55, label="data")
    if samples is not None:
        found.append(np.histogram(samples[:, j], edges)[0] / len(samples))
        axes.stairs(found[1], edges, color=ORANGE, linewidth=1.6, label="samples")
    axes.set_ylim(0, 1.1 * max(float(each.max()) for each in found) or 1)


def _points(axes: Any, table: Array | None, i: int, j: int, color: str) -> None:
    """Points of two columns; no panel at all without a table."""
    if table is None:
        axes.set_visible(False)
        return
    shown = table[:: -(-len(table) // POINTS)]
    style = {"s": 7, "alpha": 0.6} if len(shown) < 500 else {"s": 3, "alpha": 0.35}
    axes.scatter(shown[:, j], shown[:, i], color=color, linewidths=0, **style)


def _ticks(axes: Any, plt: Any, i: int, j: int, d: int) -> None:
    """Few numbers, at the left and at the bottom; none beside histograms."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(plt.MaxNLocator(2, prune="both", min_n_ticks=2))
        axis.set_major_formatter(lambda value, _: f"{value:.3g}".replace("-", "−"))
    axes.tick_params(labelsize=8, labelbottom=i == d - 1, labelleft=j == 0 < i, length=2)
    if i == j:
        axes.set_yticks([])


def conditional_curves(
    x: Any,
    quantiles: Any,
    levels: Sequence[float] = QUANTILE_LEVELS,
    data: tuple[Any, Any] | None = None,
    names: tuple[str, str] = ("x", "y"),
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Draw quantiles of y given x: bands, the median as a line, and data as points on top.

    Parameters
    ----------
    x : Tensor or array, shape (n,)
        In any order, n ≥ 2.
    quantiles : Tensor or array, shape (n, Q)
        Of y given each x.
    levels : sequence of float, shape (Q,)
        Increasing probabilities, symmetric about ½, with ½ among them; by default a median with
        bands of 50 and 90%.
    data : pair of Tensors or arrays, shapes (m,) and (m,), optional
        x and y of points to draw, 2,000 at most, evenly spaced.
    names : pair of str
        Labels of the axes.
    path : path, optional
        Where to save the figure.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ValueError
        For shapes that do not agree, NaN, or levels that are not symmetric.
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> x = torch.linspace(0, 3, 50)
    >>> y = x.sin()[:, None] + 0.2 * torch.randn(50, 1000)
    >>> q = y.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]), 1).T
    >>> figure = scoresde.plotting.conditional_curves(x, q, data=(x, y[:, 0]))
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['data', 'median', '50%', '90%']
    """
    place = _finite(x, "x")
    values = _finite(quantiles, "quantiles")
    p = _finite(levels, "levels")
    if place.ndim != 1 or len(place) < 2 or values.shape != (len(place), len(p)):
        raise ValueError(
            f"x has shape {place.shape}, quantiles {values.shape}; wanted (n,) with n ≥ 2 and "
            f"(n, {len(p)}), a column for each of the levels {p.tolist()}"
        )
    _check_symmetric(p)
    half = len(p) // 2
    order = place.argsort()
    place = place[order]
    values = values[order]
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(5, 3.6), constrained_layout=True)
    handles: list[Any] = []
    for k in range(half):
        strength = 0.18 + 0.22 * k / max(1, half - 1)
        label = f"{100 * (p[-1 - k] - p[k]):.3g}%"
        style: dict[str, Any] = {
            "color": BLUE,
            "alpha": strength,
            "lw": 0,
            "label": label,
        }
        handles.insert(0, axes.fill_between(place, values[:, k], values[:, -1 - k], **style))
    handles[:0] = axes.plot(place, values[:, half], color=BLUE, linewidth=1.8, label="median")
    if data is not None:
        points = _columns(data)
        points = points[:: -(-len(points) // POINTS)]
        size = 14 if len(points) < 300 else 5
        style = {
            "s": size,
            "color": ORANGE,
            "alpha": 0.6,
            "linewidths": 0,
            "label": "data",
        }
        handles.insert(0, axes.scatter(points[:, 0], points[:, 1], zorder=3, **style))
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(color=GREY)
    axes.set_xlim(place[0], place[-1])
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
    )
    return finish(figure, path)


def _columns(data: Sequence[Any]) -> Array:
    """x and y of points as rows (m, 2); raise unless there are as many."""
    seen = [_finite(each, "data").ravel() for each in data]
    if len({len(each) for each in seen}) != 1 or len(seen) != 2:
        sizes = [len(each) for each in seen]
        raise ValueError(f"data has columns of {sizes} numbers; wanted x and y, as many")
    return np.stack(seen, 1)


def _check_symmetric(p: Array) -> None:
    """Raise ValueError unless levels increase, symmetric about ½, with ½ among them."""
    increasing = bool((np.diff(p) > 0).all()) and bool((p > 0).all())
    if not increasing or len(p) % 2 == 0 or not np.allclose(p + p[::-1], 1):
        raise ValueError(
            f"levels are increasing and symmetric about 0.5, got {p.tolist()}; try "
            f"{list(QUANTILE_LEVELS)}"
        )


def _finite(value: Any, what: str) -> Array:
    """Numbers as an array of float64; raise for NaN and infinity."""
    array = as_reals(value, what).detach().cpu().double().numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"{what} holds NaN or infinity; wanted finite numbers")
    return np.asarray(array)


def _table(value: Any, what: str) -> Array:
    """Rows without NaN or infinity; raise unless there are at least two."""
    array = as_reals(value, what).detach().cpu().double().numpy()
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{what} has shape {array.shape}, wanted (rows, columns)")
    array = array[np.isfinite(array).all(1)]
    if len(array) < 2:
        raise ValueError(f"{what} has {len(array)} rows without NaN; wanted at least 2")
    return np.asarray(array)
