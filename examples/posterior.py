"""Two moons: the posterior of a simulator from 5,000 simulations, beside the exact one, in a
picture. About 30 seconds on one CPU core.

The simulator of Greenberg et al. 2019, as in sbibm: a point on a noisy half circle, shifted by
(−|θ₁ + θ₂|, −θ₁ + θ₂)/√2, with θ uniform in [−1, 1]².
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

import scoresde

LOW = -torch.ones(2)
HIGH = torch.ones(2)


def shift(theta: Tensor) -> Tensor:
    total = -(theta[..., 0] + theta[..., 1]).abs()
    difference = theta[..., 1] - theta[..., 0]
    return torch.stack([total, difference], -1) / math.sqrt(2)


def simulate(theta: Tensor) -> Tensor:
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    moon = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)
    return moon + shift(theta)


def exact(theta: Tensor, x: Tensor) -> Tensor:
    """log p(x | theta), which a uniform prior makes log p(theta | x) up to a constant."""
    across, up = (x - shift(theta) - torch.tensor([0.25, 0.0])).unbind(-1)
    radius = torch.hypot(across, up)
    log_p = -0.5 * ((radius - 0.1) / 0.01) ** 2 - math.log(0.01 * math.sqrt(2 * math.pi))
    log_p = log_p - (math.pi * radius).log()
    return torch.where(across > 0, log_p, -math.inf)


def main(
    n: int = 5000,
    steps: int = 1500,
    draws: int = 2000,
    out: str = "posterior.png",
    seed: int = 0,
) -> float:
    torch.manual_seed(seed)
    theta = LOW + (HIGH - LOW) * torch.rand(n, 2)
    post = scoresde.posterior((LOW, HIGH), theta, simulate(theta), steps=steps)
    observed = torch.zeros(2)
    found = post.sample((draws,), x=observed)
    at = torch.linspace(-1, 1, 801)
    points = torch.cartesian_prod(at, at)
    log_p = exact(points, observed)
    weight = (log_p - log_p.logsumexp(0)).exp()
    truth = points[weight.multinomial(draws, replacement=True)]
    accuracy = scoresde.classifier_test(found, truth).accuracy
    print(post.history)
    print(f"a classifier tells draws from the exact posterior in {accuracy:.1%} of cases")
    print(f"a likely theta: {post.map(x=observed, draws=200, steps=5).tolist()}")
    plot(found, truth, Path(out))
    return accuracy


def plot(found: Tensor, truth: Tensor, out: Path) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("pip install matplotlib for a picture")
        return
    figure, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True)
    for axis, points, title in zip(axes, (truth, found), ("exact", "scoresde"), strict=True):
        axis.plot(*points.T.numpy(), ".", markersize=2)
        axis.set_title(f"{title}: p(θ | x = 0)")
    figure.savefig(out, dpi=120)
    print(f"picture: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=5000, help="simulations")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--out", default="posterior.png")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
