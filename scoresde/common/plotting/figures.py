"""Figures: losses, a density beside its model, and sheets of small images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

BLUE = "#1f5f8b"
ORANGE = "#d1662a"
GREY = "#8a8f94"
TRUE_POINTS = 256
"""Points of a true density along each axis, at least."""
QUANTILE_NUMBERS = 10**7
"""Most numbers whose quantile PyTorch finds."""


class Density(Protocol):
    """A 2-D density with bounds and log_prob, such as those of `scoresde.toy`."""

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), shape (B,)."""

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lower and the upper corner of a box that holds the density."""


def _pyplot() -> Any:
    """Matplotlib's pyplot, without windows."""
    try:
        import matplotlib

        matplotlib.use("Agg", force=False)
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("figures need matplotlib: pip install 'scoresde[plot]'") from None
    return plt


def finish(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    """Save a figure if there is a path, forget it in pyplot, and return it."""
    if path is not None:
        figure.savefig(path, dpi=150)
    _pyplot().close(figure)
    return figure


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | os.PathLike[str] | None = None,
    mark: int | None = None,
) -> Any:
    """Draw losses over training steps, and mark one step.

    Parameters
    ----------
    lines : mapping of names to (steps, values)
        At most three.
    path : path, optional
        Where to save the figure.
    mark : int, optional
        A step to mark.

    Returns
    -------
    matplotlib Figure

    Examples
    --------
    >>> figure = scoresde.plotting.curves({"loss": ([1, 2, 3], [0.9, 0.5, 0.4])}, mark=2)
    >>> figure.axes[0].get_xlabel()
    'step'
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.6), constrained_layout=True)
    for (label, (steps, values)), color in zip(lines.items(), (BLUE, ORANGE, GREY), strict=False):
        axes.plot(steps, values, color=color, label=label, linewidth=1.2)
    if mark is not None:
        axes.axvline(mark, color=GREY, linewidth=0.8, linestyle=":", label=f"kept: step {mark:,}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return finish(figure, path)


def lattice(low: Tensor, high: Tensor, n: int) -> Tensor:
    """Return the centres of n × n cells of a box, row by row from the bottom.

    Parameters
    ----------
    low : Tensor, shape (2,)
    high : Tensor, shape (2,)
    n : int

    Returns
    -------
    Tensor, shape (n², 2), float32

    Examples
    --------
    >>> scoresde.plotting.lattice(torch.zeros(2), torch.ones(2), 2)[1]
    tensor([0.7500, 0.2500])
    """
    steps = (torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) / n
    x, y = (float(a) + steps * float(b - a) for a, b in zip(low, high, strict=True))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2).float()


def density_figure(
    truth: Density,
    log_prob: Callable[[Tensor], Tensor],
    samples: Tensor,
    paths: Tensor,
    out: str | Path,
    *,
    points: int = 128,
    subtitle: str = "",
) -> Tensor:
    """Save four panels: true density, samples, model density, paths; return the model density.

    Parameters
    ----------
    truth : object with log_prob and bounds
        Such as a density of `scoresde.toy`.
    log_prob : callable
        The model's, of points (B, 2).
    samples : Tensor, shape (n, 2)
    paths : Tensor, shape (times, B, 2)
        From noise to data.
    out : path
        Where to save the figure.
    points : int
        Points of the model's density along each axis.
    subtitle : str

    Returns
    -------
    Tensor, shape (points, points), float64

    Examples
    --------
    See `scoresde demo`, which draws it.
    """
    plt = _pyplot()
    low, high = truth.bounds()
    middle = 0.5 * (low + high)
    half = 0.55 * float((high - low).max())
    low = middle - half
    high = middle + half
    fine = max(points, TRUE_POINTS)
    model = log_prob(lattice(low, high, points)).exp().reshape(points, points).double()
    true = truth.log_prob(lattice(low, high, fine)).exp().reshape(fine, -1).double()
    box = [float(low[0]), float(high[0]), float(low[1]), float(high[1])]
    top = float(true.max())
    if true.numel() < QUANTILE_NUMBERS:
        top = float(true.flatten().quantile(0.995))
    figure, axes = plt.subplots(1, 4, figsize=(16, 4.5), constrained_layout=True)
    style: dict[str, Any] = {"extent": box, "origin": "lower", "cmap": "magma", "aspect": "equal"}
    axes[0].imshow(true.numpy(), vmin=0, vmax=1.4 * top, **style)
    axes[0].set_title("true density")
    axes[1].set_facecolor("black")
    axes[1].scatter(*samples.T.numpy(), s=1.2, c="#fdc38d", linewidths=0, alpha=0.8)
    axes[1].set_title(f"{len(samples):,} samples")
    axes[2].imshow(model.numpy(), vmin=0, vmax=1.4 * top, **style)
    axes[2].set_title("model density, exp(log_prob)")
    _draw_paths(axes[3], paths)
    for axis in axes:
        axis.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[], aspect="equal")
    if subtitle:
        figure.suptitle(subtitle, fontsize=12)
    figure.savefig(out, dpi=150)
    plt.close(figure)
    return model


def _draw_paths(axis: Any, paths: Tensor) -> None:
    """Draw trajectories (times, B, 2) with their ends."""
    dots: dict[str, Any] = {"s": 5, "linewidths": 0, "zorder": 3}
    axis.plot(*paths.permute(2, 0, 1).numpy(), color=GREY, lw=0.5, alpha=0.6)
    axis.scatter(*paths[0].T.numpy(), c=BLUE, label="noise, t = 1", **dots)
    axis.scatter(*paths[-1].T.numpy(), c=ORANGE, label="data, t = 0", **dots)
    axis.set_title("probability-flow trajectories")
    axis.legend(loc="upper right", fontsize=8, framealpha=0.9)


def sheet(
    images: Tensor,
    out: str | Path,
    *,
    columns: int = 8,
    title: str = "",
    limits: tuple[float, float] | None = None,
) -> None:
    """Save a sheet of small images.

    Parameters
    ----------
    images : Tensor, shape (n, H, W), (n, 1, H, W) or (n, 3, H, W)
    out : path
        Where to save the figure.
    columns : int
        Images in a row.
    title : str
    limits : pair of float, optional
        Black and white; by default the extremes of all images.

    Raises
    ------
    ValueError
        For images of another shape.

    Examples
    --------
    See `examples/digits.py`, which draws one.
    """
    plt = _pyplot()
    images = images[:, None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(
            f"images have shape (n, 1 or 3, height, width), got {tuple(images.shape)}"
        )
    low, high = limits or (float(images.min()), float(images.max()))
    images = ((images - low) / (high - low or 1)).clamp(0, 1).cpu()
    n, c, h, w = images.shape
    rows = math.ceil(n / columns)
    canvas = torch.ones(c, rows * (h + 1) + 1, columns * (w + 1) + 1, device="cpu")
    for i, image in enumerate(images):
        y = 1 + (i // columns) * (h + 1)
        x = 1 + (i % columns) * (w + 1)
        canvas[:, y : y + h, x : x + w] = image
    height = rows * 0.8 + (0.4 if title else 0)
    figure, axis = plt.subplots(figsize=(columns * 0.8, height), constrained_layout=True)
    axis.imshow(
        canvas.permute(1, 2, 0).squeeze(-1).numpy(),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=10)
    figure.savefig(out, dpi=150)
    plt.close(figure)
