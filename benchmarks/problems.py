"""The problems of solvers.py and stochastic.py: mixtures as a fitted model has them, with mean 0
and std 1 in each coordinate.

`fit` standardizes, so a solver never meets raw data. Beside P1 and P2 of the record there is one
problem of each kind that tells solvers apart: modes much narrower than the data, in few and in
many dimensions; modes of unequal weight and width; a mode that is nearly a point, among others and
alone (the only one that is not standardized: alone it would be N(0, I)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

import scoresde
from scoresde.toy import GaussianMixture


def parts(mixture: GaussianMixture) -> tuple[Tensor, Tensor, Tensor]:
    """Return means (K, D), stds (K, D) and weights (K,)."""
    return mixture._m, mixture._s.expand_as(mixture._m), mixture._w


class Mixture(GaussianMixture):
    """The same in matrix products where all rows have one noise level, many times faster in many
    dimensions.
    """

    def denoise(
        self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return x̂0 and ε̂ at α and σ."""
        levels = (
            torch.as_tensor(alpha, dtype=torch.float64),
            torch.as_tensor(sigma, dtype=torch.float64),
        )
        if x.dtype != torch.float64:
            return super().denoise(x, alpha, sigma)
        if any(bool((level != level.flatten()[0]).any()) for level in levels):
            return self._apart(x, *(level.reshape(-1, 1, 1) for level in levels))
        a, b = (float(level.flatten()[0]) for level in levels)
        m, s, w = parts(self)
        square = s.square()
        v = a * a * square + b * b
        inverse = 1 / v
        joint = w.log() - 0.5 * (v.log().sum(1) + a * a * (m.square() * inverse).sum(1))
        joint = torch.addmm(joint, x, (a * m * inverse).T).addmm_(
            x.square(), inverse.T, alpha=-0.5
        )
        r = joint.softmax(1)
        x0 = (r @ (m * (b * b * inverse))).addcmul_(x, r @ (a * square * inverse))
        return x0, (r @ (-a * m * inverse)).addcmul_(x, r @ inverse).mul_(b)

    def _apart(self, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The same for rows of different noise levels."""
        m, s, w = parts(self)
        square = s.square()
        v = a * a * square + b * b
        off = (x[:, None] - a * m).div_(v)
        joint = w.log() - 0.5 * (off.square().mul_(v).sum(2) + v.log().sum(2))
        r = joint.softmax(1)[:, None]
        x0 = r[:, 0] @ m + (r @ (a * square * off))[:, 0]
        return x0, b[:, 0] * (r @ off)[:, 0]


def standardized(mixture: GaussianMixture) -> GaussianMixture:
    """Return the mixture in units of its own standard deviation, about its own mean."""
    m, s, w = parts(mixture)
    mean, std = mixture.mean().flatten(), mixture.std().flatten()
    return Mixture((m - mean) / std, s / std, w)


def drawn(
    seed: int,
    k: int,
    d: int,
    widths: tuple[float, float],
    weights: tuple[float, float],
    spread: float = 1.0,
) -> GaussianMixture:
    """Draw k modes, their means from N(0, spread²·I), of widths and weights spaced evenly in their
    logarithms.
    """
    g = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(k, d, generator=g, dtype=torch.float64)
    w = torch.linspace(math.log(weights[0]), math.log(weights[1]), k, dtype=torch.float64).exp()
    s = torch.linspace(math.log(widths[0]), math.log(widths[1]), k, dtype=torch.float64).exp()
    return GaussianMixture(means, s[torch.randperm(k, generator=g)], w)


def two() -> GaussianMixture:
    """P1: eight Gaussians of std 0.3 on radius 4."""
    return scoresde.toy.EightGaussians(4.0, 0.3)


def many() -> GaussianMixture:
    """P2: ten Gaussians in 64-D of stds 0.2 to 0.6."""
    means = torch.randn(10, 64, generator=torch.Generator().manual_seed(64), dtype=torch.float64)
    return GaussianMixture(means, torch.linspace(0.2, 0.6, 10, dtype=torch.float64))


def problems() -> dict[str, GaussianMixture]:
    """Return all problems by name, standardized."""
    even = (1.0, 1.0)
    raw = {
        "P1 8 Gaussians, 2-D": two(),
        "P2 10 Gaussians, 64-D": many(),
        "narrow, 2-D": drawn(3, 6, 2, (0.02, 0.02), even),
        "narrow, 64-D": drawn(4, 6, 64, (0.02, 0.02), even),
        "unequal, 2-D": drawn(1, 7, 2, (0.05, 0.5), (0.05, 1.0), 1.5),
        "unequal, 16-D": drawn(2, 6, 16, (0.02, 0.6), (0.05, 1.0)),
        "5×5 grid, 2-D": scoresde.toy.Grid25(),
        "moons, 2-D": scoresde.toy.Moons(),
        "one thin, 2-D": drawn(5, 4, 2, (1e-4, 0.5), even),
    }
    found = {name: standardized(mixture) for name, mixture in raw.items()}
    found["thin alone, 2-D"] = Mixture(torch.zeros(1, 2), 1e-4)
    return found


def chosen(names: str | None) -> Iterator[tuple[str, GaussianMixture]]:
    """Yield the problems whose names contain one of some words, given with commas between them;
    None: all.
    """
    words = [word.strip() for word in (names or "").split(",")]
    return (
        (name, mixture)
        for name, mixture in problems().items()
        if any(word in name for word in words)
    )


def modes(mixture: GaussianMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest component of every row, and the row's distance from its mean in units
    of its width.
    """
    m, s, w = parts(mixture)
    x = x.flatten(1)
    found, squares = [], []
    for rows in x.split(max(1, 2**24 // m.numel())):
        away = ((rows[:, None] - m) / s).square().sum(2)
        k = (0.5 * away + s.log().sum(1) - w.log()).argmin(1)
        found.append(k)
        squares.append(away.gather(1, k[:, None])[:, 0] / x.shape[1])
    return torch.cat(found), torch.cat(squares).sqrt()
