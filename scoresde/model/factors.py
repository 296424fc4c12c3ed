"""A covariance of low rank plus a diagonal, for vectors too long for a full one.

The correlations of n columns are taken for those of r factors and independent noise,

    C ≈ diag(ψ) + W·Wᵀ,    W (n, r),

found by the EM algorithm (Rubin & Thayer, EM algorithms for ML factor analysis, Psychometrika 47,
1982), which begins at principal components from subspace iteration (Halko, Martinsson & Tropp
2011), on rows kept from the stream. With U and d the eigenvectors and eigenvalues of
ψ^{−1/2}·W·Wᵀ·ψ^{−1/2}, the map

    R = ψ^{1/2}·(I + U·(√(1 + d) − 1)·Uᵀ),    R·Rᵀ = diag(ψ) + W·Wᵀ,

takes white states to the columns; `scoresde.model.mixing` applies and inverts it. A fifth of the
rows is left out, and r, at most 64, is that of their highest likelihood. So is a share ρ ≤ 1 to
which all correlations are shrunk: W ← √ρ·W, ψ ← ψ + (1 − ρ)·diag(W·Wᵀ).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MOST_FACTORS = 64

NUMBERS_KEPT = 2**25
"""Numbers of the data from which factors are found."""

RANKS = (1, 2, 3, 4, 5, 6, 8, 11, 16, 23, 32, 45, 64)
SHARES = (1.0, 0.9, 0.7, 0.4)
TRIED_ROWS = 4000
"""Rows by which r and ρ are chosen, beside a quarter as many that are left out."""
FEWEST_ROWS = 10
OVERSAMPLED = 8
TURNS = 6
"""Of subspace iteration."""
FEW_ROUNDS = 3
ROUNDS = 20
"""Of EM, to choose r, and at the end."""
PATIENCE = 4
"""Ranks in a row without a higher likelihood, after which no larger one is tried."""
FIRST_NOISE = 0.05
LEAST_NOISE = 1e-6
"""Of a column's variance: what ψ is at least, before EM and after."""
ROWS_AT_ONCE = 4096


def root_shape(shape: tuple[int, ...], how: str) -> tuple[int, int]:
    """The shape of the root of vectors of a shape, standardized by "whiten" or "factors"."""
    (d,) = shape
    if how == "whiten":
        return d, d
    if d <= 1 + MOST_FACTORS:
        raise ValueError(
            f"standardize='factors' is for vectors of more than {1 + MOST_FACTORS} numbers, and "
            f"these have {d}: take 'whiten'"
        )
    return d, 1 + MOST_FACTORS


def factor_root(rows: Tensor, mean: Tensor, std: Tensor, varies: Tensor) -> Tensor:
    """The root (n, 1 + 64) of the correlations of rows (M, n), whose mean and scale are known.

    Columns that do not vary are left as they are.
    """
    root = torch.zeros(len(mean), 1 + MOST_FACTORS, dtype=torch.float64, device="cpu")
    root[:, 0] = 1
    index = varies.nonzero()[:, 0]
    if len(rows) < FEWEST_ROWS or len(index) < 2:
        return root
    x = torch.empty(len(rows), len(index), device="cpu")
    for first in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[first : first + ROWS_AT_ONCE, index].double()
        x[first : first + ROWS_AT_ONCE] = (part - mean[index]) / std[index]
    found = _fitted(x)
    root[index, 0] = found.noise.sqrt()
    root[index, 1 : 1 + found.loadings.shape[1]] = found.mixed()
    return root


class Factors(NamedTuple):
    """ψ (n,) and W (n, r), in float64."""

    noise: Tensor
    loadings: Tensor

    def shrunk(self, share: float) -> Factors:
        """The same with a share of all correlations."""
        noise = self.noise + (1 - share) * self.loadings.square().sum(1)
        return Factors(noise, math.sqrt(share) * self.loadings)

    def weights(self) -> Tensor:
        """(diag(ψ) + W·Wᵀ)⁻¹·W, (n, r)."""
        scaled = self.loadings / self.noise.unsqueeze(1)
        found: Tensor = torch.linalg.solve(self.inner(), scaled.T).T
        return found

    def inner(self) -> Tensor:
        """I + Wᵀ·ψ⁻¹·W, (r, r)."""
        inner = self.loadings.T @ (self.loadings / self.noise.unsqueeze(1))
        return inner + torch.eye(len(inner), dtype=inner.dtype, device=inner.device)

    def improved(self, x: Tensor, square: Tensor) -> Factors:
        """After a step of EM on standardized rows x (M, n), whose mean squares are known."""
        weights = self.weights()
        cross = (x.T @ (x @ weights.to(x.dtype))).double() / len(x)
        one = torch.eye(weights.shape[1], dtype=weights.dtype, device=weights.device)
        second = one - weights.T @ self.loadings + weights.T @ cross
        loadings = torch.linalg.solve(second, cross.T).T
        noise = square - (loadings * cross).sum(1)
        return Factors(noise.clamp_min(LEAST_NOISE), loadings)

    def mixed(self) -> Tensor:
        """V = U·(√(1 + d) − 1)^{1/2}."""
        scaled = self.loadings / self.noise.sqrt().unsqueeze(1)
        value, turn = torch.linalg.eigh(scaled.T @ scaled)
        value = value.clamp_min(1e-300)
        found: Tensor = (scaled @ turn) * ((torch.sqrt(1 + value) - 1) / value).sqrt()
        return found

    def log_p(self, x: Tensor) -> float:
        """Mean log N(x; 0, diag(ψ) + W·Wᵀ), but for a constant."""
        lower = torch.linalg.cholesky(self.inner())
        scaled = self.loadings / self.noise.unsqueeze(1)
        seen = (x @ scaled.to(x.dtype)).double()
        explained = torch.linalg.solve_triangular(lower, seen.T, upper=False).square().sum(0)
        square = x.square() @ (1 / self.noise).to(x.dtype)
        log_det = self.noise.log().sum() + 2 * lower.diagonal().log().sum()
        return -0.5 * float((square.double() - explained).mean() + log_det)


def _fitted(x: Tensor) -> Factors:
    """Factors of standardized rows, as many as rows that are left out confirm."""
    few = x[:: -(-len(x) * 4 // (5 * TRIED_ROWS))]
    out = torch.arange(len(few), device="cpu") % 5 == 4
    held_out = few[out]
    few = few[~out]
    principal = _principal(few)
    square = _mean_squares(few)
    rest = torch.ones_like(square)
    none = Factors(rest, rest.new_zeros(len(rest), 0))
    best = (none.log_p(held_out), -1, 1.0)
    for place, rank in enumerate(RANKS):
        if rank > principal.shape[1] or place - best[1] > PATIENCE:
            break
        tried = _after(few, square, principal[:, :rank], FEW_ROUNDS)
        best = max(
            best, *((tried.shrunk(share).log_p(held_out), place, share) for share in SHARES)
        )
    _, place, share = best
    if place < 0:
        return none
    square = _mean_squares(x)
    return _after(x, square, _principal(x, RANKS[place]), ROUNDS).shrunk(share)


def _after(x: Tensor, square: Tensor, loadings: Tensor, rounds: int) -> Factors:
    """Factors after some steps of EM."""
    noise = (square - loadings.square().sum(1)).clamp_min(FIRST_NOISE)
    found = Factors(noise, loadings)
    for _ in range(rounds):
        found = found.improved(x, square)
    return found


def _mean_squares(x: Tensor) -> Tensor:
    """Of each column, in float64."""
    found: Tensor = torch.linalg.vector_norm(x, dim=0).double().square() / len(x)
    return found


def _principal(x: Tensor, rank: int = MOST_FACTORS) -> Tensor:
    """Loadings (n, r) of the principal components, in order, less the variance of noise."""
    rank = min(rank, len(x) - 1, x.shape[1] - 1)
    chance = torch.Generator().manual_seed(0)
    width = min(rank + OVERSAMPLED, *x.shape)
    axes = torch.randn(x.shape[1], width, generator=chance, device="cpu")
    for _ in range(TURNS):
        axes = torch.linalg.qr(x.T @ (x @ torch.linalg.qr(axes).Q)).Q
    along = (x @ axes).double()
    value, turn = torch.linalg.eigh(along.T @ along / len(x))
    value = value.flip(0)[:rank]
    axes = (axes.double() @ turn.flip(1))[:, :rank]
    noise = (float(_mean_squares(x).sum()) - float(value.sum())) / (x.shape[1] - rank)
    loadings: Tensor = axes * (value - noise).clamp_min(0).sqrt()
    return loadings
