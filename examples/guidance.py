"""Guidance against the truth, in two dimensions: a class and a noisy measurement, each sampled by
several methods beside the exact distribution. About 30 seconds on one CPU core.

The prior is a mixture of ten Gaussians with its exact score, so that all errors are those of
guidance. A number is the sliced Wasserstein distance to the target, divided by that between two
sets of exact samples: a third such set has 0.7 to 1.5.

    python examples/guidance.py --out guidance.png
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg", force=False)
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import scoresde
from scoresde.toy import GaussianMixture

ORANGE = "#d1662a"
GREY = "#8a8f94"
HALF = 3.0  # pictures and exact densities lie on [−3, 3]²
CELLS = 600  # along each axis
DIRECTION = torch.tensor([[0.8, 0.6]])
MEASURED = 0.55
NOISE = 0.15


class Panel(NamedTuple):
    """One picture: a method, what it should sample, and what it does."""

    title: str
    target: Tensor  # the exact density on the grid, up to a factor
    samples: Tensor


def prior() -> tuple[GaussianMixture, GaussianMixture]:
    """A ring of ten Gaussians, wide and narrow ones, and every other one of them: a class."""
    angle = torch.arange(10) * (2 * math.pi / 10)
    radius = torch.tensor([1.9, 1.1]).repeat(5)
    means = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    stds = torch.tensor([0.15, 0.35, 0.25, 0.2, 0.3]).repeat(2)
    weights = torch.tensor([3.0, 1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 3.0, 1.0])
    return GaussianMixture(means, stds, weights), GaussianMixture(
        means[::2], stds[::2], weights[::2]
    )


def points() -> Tensor:
    """The middles of the cells, as a list of points."""
    at = HALF * ((2 * torch.arange(CELLS, dtype=torch.float64) + 1) / CELLS - 1)
    return torch.cartesian_prod(at, at)


def exact(log_p: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Samples of a density on the grid: a cell by its weight, then a point of it."""
    chosen = (log_p - log_p.max()).exp().multinomial(n, replacement=True, generator=generator)
    within = torch.rand(n, 2, generator=generator, dtype=torch.float64) - 0.5
    return points()[chosen] + within * (2 * HALF / CELLS)


def distance(a: Tensor, b: Tensor) -> float:
    fixed = torch.Generator().manual_seed(0)
    return float(scoresde.sliced_wasserstein(a.double(), b.double(), 128, generator=fixed))


def apart(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The root mean square of the distances of pairs of sets."""
    squares = [distance(a, b) ** 2 for a, b in pairs]
    return math.sqrt(sum(squares) / len(squares))


def main(
    n: int = 1000,
    particles: int = 64,
    steps: int = 100,
    out: str = "guidance.png",
    seed: int = 0,
) -> dict[str, float]:
    ratios: list[float] = []
    generator = torch.Generator().manual_seed(seed)
    whole, one_class = prior()
    process = scoresde.VPSDE()
    sde = scoresde.oracle(whole, process)
    conditional = scoresde.oracle(one_class, process)
    x = points()
    log_p = whole.log_prob(x)
    log_class = one_class.log_prob(x)

    def powers(beta: float) -> Tensor:
        """log p(x)·p(y | x)^β, up to a constant."""
        return (1 - beta) * log_p + beta * log_class

    measurement = scoresde.measurements.Linear(DIRECTION, NOISE)
    y = torch.tensor([MEASURED])
    log_posterior = log_p + measurement.log_likelihood(x, y.double()[None])

    def guided(beta: float) -> scoresde.Model:
        return scoresde.classifier_free(conditional, beta, without=sde)

    def solved(model: scoresde.Model) -> Tensor:
        return scoresde.sample(model, n, solver="dpmpp_2m", steps=steps, generator=generator)

    def weighted(model: scoresde.Model) -> Tensor:
        return scoresde.particles(model, n, particles, steps, generator=generator).x

    def seen(method: str) -> scoresde.Model:
        return scoresde.observe(sde, measurement, y, method=method)

    rows = [
        ("particles, β = 3", powers(3.0), weighted(guided(3.0))),
        ("classifier_free, β = 3", powers(3.0), solved(guided(3.0))),
        ("classifier_free, β = 1", powers(1.0), solved(guided(1.0))),
        ("particles", log_posterior, weighted(seen("mmps"))),
        ("mmps", log_posterior, solved(seen("mmps"))),
        ("pigdm", log_posterior, solved(seen("pigdm"))),
    ]
    panels = []
    for title, target, samples in rows:
        sets = [exact(target, n, generator) for _ in range(8)]
        floor = apart(itertools.combinations(sets, 2))
        ratio = apart((samples, truth) for truth in sets) / floor
        panels.append(Panel(f"{title}: {ratio:.1f} × floor", target, samples))
        print(f"{title:24} {ratio:5.2f} × the floor")
        ratios.append(ratio)
    power = Panel("exact: p(x)·p(class | x)³", powers(3.0), exact(powers(3.0), n, generator))
    posterior = Panel("exact: p(x | y)", log_posterior, exact(log_posterior, n, generator))
    draw([power, *panels[:3], posterior, *panels[3:]], log_p, out)
    print(f"picture: {out}")
    return {title: ratio for (title, _, _), ratio in zip(rows, ratios, strict=True)}


def on_grid(log_p: Tensor) -> np.ndarray:
    """A density over its maximum, as an image whose first row is the lowest."""
    return (log_p - log_p.max()).exp().reshape(CELLS, CELLS).T.numpy()


def draw(panels: list[Panel], log_prior: Tensor, out: str) -> None:
    """Samples over exact densities; gray lines are the prior, dashes what was measured."""
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.9), constrained_layout=True)
    box = (-HALF, HALF, -HALF, HALF)
    for axis, panel in zip(axes.flat, panels, strict=True):
        axis.imshow(
            np.sqrt(on_grid(panel.target)), origin="lower", extent=box, cmap="Blues", vmax=1.3
        )
        levels = [0.01, 0.1, 0.5]
        axis.contour(on_grid(log_prior), levels, extent=box, colors=GREY, linewidths=0.5)
        axis.scatter(*panel.samples.T.numpy(), s=3, c=ORANGE, linewidths=0, alpha=0.6)
        axis.set_title(panel.title, fontsize=12)
        axis.set(xlim=(-2.7, 2.7), ylim=(-2.7, 2.7), xticks=[], yticks=[])
        axis.spines[:].set_color("#d5d8da")
    across, up = DIRECTION[0].tolist()
    for axis in axes[1]:
        for side in (-2, 2):
            foot = ((MEASURED + side * NOISE) * across, (MEASURED + side * NOISE) * up)
            axis.axline(foot, slope=-across / up, color=GREY, lw=0.8, ls="--")
    axes[0, 0].set_ylabel("one of two classes", fontsize=12)
    axes[1, 0].set_ylabel("a measurement, ± 2 std", fontsize=12)
    figure.savefig(out, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=1000, help="samples of each method")
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", default="guidance.png")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
