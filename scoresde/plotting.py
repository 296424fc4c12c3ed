"""Figures: a density beside its model, and sheets of small images. Needs matplotlib (`pip install 'scoresde[plot]'`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

BLUE, ORANGE, GREY = "#1f5f8b", "#d1662a", "#8a8f94"


class Density(Protocol):
    """A 2-D density with bounds and log_prob, such as those of `scoresde.toy`."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), shape (B,)."""

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the corners of a box that holds it."""


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg", force=False)
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("figures need matplotlib: pip install 'scoresde[plot]'") from None
    return plt


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | os.PathLike[str] | None = None,
    mark: int | None = None,
) -> Any:
    """Draw losses over training steps.

    Parameters
    ----------
    lines : mapping of str to (steps, losses)
        By label.
    path : path, optional
        The figure's file: .png, .pdf, .svg.
    mark : int, optional
        A step to mark.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> len(curves({"training": ([1, 2], [0.5, 0.4])}).axes[0].lines)
    1
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
    if path is not None:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return figure


def lattice(low: Tensor, high: Tensor, n: int) -> Tensor:
    """Return the n × n centres of a regular lattice over a box, row by row from the bottom.

    Parameters
    ----------
    low, high : Tensor, shape (2,)
        Corners.
    n : int
        Points a side.

    Returns
    -------
    Tensor, shape (n², 2), float32

    Examples
    --------
    >>> lattice(torch.zeros(2), torch.ones(2), 2)
    tensor([[0.2500, 0.2500],
            [0.7500, 0.2500],
            [0.2500, 0.7500],
            [0.7500, 0.7500]])
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
    """Draw four panels: the true density, samples, the model's density, and paths from noise to data; save as a file.

    Parameters
    ----------
    truth : density
        2-D, with `log_prob` and `bounds`.
    log_prob : callable (B, 2) -> (B,)
        The model's, in nats.
    samples : Tensor, shape (n, 2)
        Drawn from the model.
    paths : Tensor, shape (T, k, 2)
        Trajectories, noise first.
    out : path
        A .png, .pdf or .svg.
    points : int
        The model's density is evaluated on points × points positions.
    subtitle : str
        A line under the title.

    Returns
    -------
    Tensor, shape (points, points)
        The model's density there, per unit area.

    Raises
    ------
    ImportError
        Without matplotlib.

    Examples
    --------
    >>> import scoresde, tempfile
    >>> moons = scoresde.toy.Moons()
    >>> with tempfile.TemporaryDirectory() as d:
    ...     p = density_figure(moons, moons.log_prob, moons.sample(50), moons.sample(9)[None], d + "/a.png", points=40)
    >>> p.shape
    torch.Size([40, 40])
    """
    plt = _pyplot()
    low, high = truth.bounds()
    middle, half = 0.5 * (low + high), 0.55 * float((high - low).max())
    low, high = middle - half, middle + half
    where, fine = lattice(low, high, points), lattice(low, high, max(points, 256))
    model = log_prob(where).exp().reshape(points, points).double()
    true = truth.log_prob(fine).exp().reshape(max(points, 256), -1).double()
    box = [float(low[0]), float(high[0]), float(low[1]), float(high[1])]
    top = float(true.flatten().quantile(0.995) if true.numel() < 10**7 else true.max())
    figure, axes = plt.subplots(1, 4, figsize=(16, 4.5), constrained_layout=True)
    for axis, density, title in ((axes[0], true, "true density"), (axes[2], model, "model density, exp(log_prob)")):
        axis.imshow(density.numpy(), extent=box, origin="lower", cmap="magma", vmin=0, vmax=1.4 * top, aspect="equal")
        axis.set_title(title)
    axes[1].set_facecolor("black")
    axes[1].scatter(*samples.T.numpy(), s=1.2, c="#fdc38d", linewidths=0, alpha=0.8)
    axes[1].set_title(f"{len(samples):,} samples")
    axes[3].plot(*paths.permute(2, 0, 1).numpy(), color=GREY, lw=0.5, alpha=0.6)
    axes[3].scatter(*paths[0].T.numpy(), s=5, c=BLUE, linewidths=0, label="noise, t = 1", zorder=3)
    axes[3].scatter(*paths[-1].T.numpy(), s=5, c=ORANGE, linewidths=0, label="data, t = 0", zorder=3)
    axes[3].set_title("probability-flow trajectories")
    axes[3].legend(loc="upper right", fontsize=8, framealpha=0.9)
    for axis in axes:
        axis.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[], aspect="equal")
    if subtitle:
        figure.suptitle(subtitle, fontsize=12)
    figure.savefig(out, dpi=150)
    plt.close(figure)
    return model


def sheet(
    images: Tensor, out: str | Path, *, columns: int = 8, title: str = "", limits: tuple[float, float] | None = None
) -> None:
    """Save a sheet of small images, scaled from their common minimum to their common maximum, or between limits.

    Parameters
    ----------
    images : Tensor, shape (n, C, H, W) with C 1 or 3, or (n, H, W)
    out : path
        A .png, .pdf or .svg.
    columns : int
        Images per row.
    title : str
        A line above.
    limits : (float, float), optional
        What is black and what is white, such as (0, 255).

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        For another shape.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     sheet(torch.rand(10, 8, 8), d + "/sheet.png")
    """
    plt = _pyplot()
    images = images[:, None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images have shape (n, 1 or 3, height, width), got {tuple(images.shape)}")
    low, high = (float(images.min()), float(images.max())) if limits is None else limits
    images = ((images - low) / (high - low or 1)).clamp(0, 1).cpu()
    n, c, h, w = images.shape
    rows = math.ceil(n / columns)
    canvas = torch.ones(c, rows * (h + 1) + 1, columns * (w + 1) + 1, device="cpu")
    for i, image in enumerate(images):
        y, x = 1 + (i // columns) * (h + 1), 1 + (i % columns) * (w + 1)
        canvas[:, y : y + h, x : x + w] = image
    figure, axis = plt.subplots(figsize=(columns * 0.8, rows * 0.8 + (0.4 if title else 0)), constrained_layout=True)
    axis.imshow(canvas.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=10)
    figure.savefig(out, dpi=150)
    plt.close(figure)
