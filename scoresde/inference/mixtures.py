"""Mixtures of Student t distributions, fitted to weighted points: proposals that have heavy tails.

A Gaussian mixture is fitted by expectation maximization, with as many components as the Bayesian
information criterion chooses. Each component becomes a t distribution of the same location and
shape; one of the whole population, twice as wide, is mixed in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FREEDOM = 6.0
"""Degrees of freedom of the tails."""
COMPONENTS = (1, 2, 3, 4, 6, 8)
"""Numbers of components that are tried."""
ROWS_PER_NUMBER = 2.0
"""Effective points for each number of a mixture, at least."""
ROUNDS = 40
"""Of expectation maximization."""
WIDE_SHARE = 0.1
"""Weight of the wide component."""
SHRINKAGE = 1e-3
"""Share of the population's covariance in that of each component."""


class Mixture:
    """A mixture of C multivariate t distributions in D dimensions, in float64."""

    def __init__(self, weights: Tensor, means: Tensor, roots: Tensor) -> None:
        self.weights = weights
        self.means = means
        self.roots = roots

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points (n, D)."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        dim = self.means.shape[1]
        normal = torch.randn(n, dim, generator=generator, dtype=torch.float64)
        squares = torch.randn(n, int(FREEDOM), generator=generator, dtype=torch.float64)
        chi = squares.square().sum(1, keepdim=True) / FREEDOM
        step = (self.roots[which] @ normal.unsqueeze(2)).squeeze(2)
        return self.means[which] + step / chi.sqrt()

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density (N,) of points (N, D)."""
        dim = x.shape[1]
        size = _distances(x, self.means, self.roots)
        half = 0.5 * (FREEDOM + dim)
        constant = math.lgamma(half) - math.lgamma(0.5 * FREEDOM)
        constant -= 0.5 * dim * math.log(FREEDOM * math.pi)
        each = constant - _log_det(self.roots) - half * torch.log1p(size / FREEDOM)
        return torch.logsumexp(each + self.weights.log(), 1)


def fitted(x: Tensor, weights: Tensor, generator: torch.Generator) -> Mixture:
    """The mixture that describes points (N, D) of normalized weights (N,) best."""
    mean = weights @ x
    centred = x - mean
    whole = (weights.unsqueeze(1) * centred).T @ centred
    spread = whole.diagonal().clamp_min(1e-24)
    whole = whole + torch.diag(1e-9 * spread)
    effective = float(1 / weights.square().sum())
    dim = x.shape[1]
    best = (math.inf, weights.new_ones(1), mean.unsqueeze(0), whole.unsqueeze(0))
    for count in COMPONENTS:
        numbers = count * (1 + dim + dim * (dim + 1) / 2)
        if count > 1 and effective < ROWS_PER_NUMBER * numbers:
            break
        parts = _maximized(x, weights, whole, count, generator)
        log_p = float(weights @ _responsibilities(x, *parts)[1])
        cost = 0.5 * numbers * math.log(effective + 1) - effective * log_p
        if cost < best[0]:
            best = (cost, *parts)
    shares = torch.cat([(1 - WIDE_SHARE) * best[1], torch.tensor([WIDE_SHARE]).double()])
    means = torch.cat([best[2], mean.unsqueeze(0)])
    covariances = torch.cat([best[3], 4 * whole.unsqueeze(0)])
    return Mixture(shares, means, torch.linalg.cholesky(covariances))


def _maximized(
    x: Tensor,
    weights: Tensor,
    whole: Tensor,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shares, means and covariances of a Gaussian mixture, by expectation maximization."""
    means = _centers(x, weights, whole, count, generator)
    shares = torch.full((count,), 1 / count, dtype=torch.float64)
    covariances = (whole / count ** (2 / x.shape[1])).expand(count, -1, -1)
    for _ in range(ROUNDS):
        share, _ = _responsibilities(x, shares, means, covariances)
        mass = weights.unsqueeze(1) * share
        shares = mass.sum(0).clamp_min(1e-12)
        means = mass.T @ x / shares.unsqueeze(1)
        centred = x - means.unsqueeze(1)
        covariances = (mass.T.unsqueeze(2) * centred).mT @ centred / shares.view(-1, 1, 1)
        covariances = (1 - SHRINKAGE) * covariances + SHRINKAGE * whole
        shares = shares / shares.sum()
    return shares, means, covariances


def _centers(
    x: Tensor,
    weights: Tensor,
    whole: Tensor,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Points far from one another: k-means++ in units of the population's covariance."""
    root = torch.linalg.cholesky(whole)
    white = torch.linalg.solve_triangular(root, x.T, upper=False).T
    chosen = torch.multinomial(weights, 1, generator=generator)
    for _ in range(count - 1):
        near = torch.cdist(white, white[chosen]).square().amin(1)
        drawn = torch.multinomial(weights * near + 1e-30, 1, generator=generator)
        chosen = torch.cat([chosen, drawn])
    return x[chosen]


def _responsibilities(
    x: Tensor, shares: Tensor, means: Tensor, covariances: Tensor
) -> tuple[Tensor, Tensor]:
    """p(component | x), (N, C), and log p(x), (N,), of a Gaussian mixture."""
    roots = torch.linalg.cholesky(covariances)
    each = -0.5 * _distances(x, means, roots) - _log_det(roots)
    each = each + shares.log() - 0.5 * x.shape[1] * math.log(2 * math.pi)
    total = torch.logsumexp(each, 1)
    return (each - total.unsqueeze(1)).exp(), total


def _distances(x: Tensor, means: Tensor, roots: Tensor) -> Tensor:
    """Squared Mahalanobis distances (N, C)."""
    centred = (x - means.unsqueeze(1)).mT
    white = torch.linalg.solve_triangular(roots, centred, upper=False)
    size: Tensor = white.square().sum(1)
    return size.T


def _log_det(roots: Tensor) -> Tensor:
    """log det of each root (C,)."""
    return roots.diagonal(dim1=1, dim2=2).log().sum(1)
