"""Proposals for the missing columns of many rows at once, each row with gaps of its own.

Rows u (N, D) have standardized columns, and each row misses columns of its own. In its known
columns all points are equal and covariances are 1 on the diagonal, so that these columns add
nothing to a density. The first proposal is a t distribution about the Gaussian conditional, whose
covariance is the model's own; later ones are kernel estimates of the weighted points, with the
first one mixed in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FREEDOM = 6
"""Degrees of freedom of the tails."""
FIRST_SHARE = 0.2
"""Weight of the first proposal in the later ones."""
WIDENED = 1.3
"""Width of the first proposal in standard deviations of the conditional."""
WIDTHS = (1.0, 0.5, 0.25, 0.12, 0.06)
"""Kernel widths, in standard deviations of the points, of which each row takes the best."""


class RowProposals:
    """Mixtures of t distributions over the missing columns, one for each row."""

    def __init__(self, u: Tensor, known: Tensor, covariance: Tensor) -> None:
        """Rows (N, D) with 0 where missing, which are known, and the covariance of columns."""
        self.known = known
        self.missing = ~known
        self.dims = self.missing.sum(1).double()
        seen = known.double()
        lost = self.missing.double()
        inner = seen.unsqueeze(2) * covariance * seen.unsqueeze(1) + torch.diag_embed(lost)
        across = lost.unsqueeze(2) * covariance * seen.unsqueeze(1)
        gain = torch.linalg.solve(inner, across.mT).mT
        self.mean = u * seen + (gain @ (u * seen).unsqueeze(2)).squeeze(2)
        left = lost.unsqueeze(2) * covariance * lost.unsqueeze(1) - gain @ across.mT
        self.covariance = self._whole(left)
        self.root = WIDENED * torch.linalg.cholesky(self.covariance)
        self.kernel: tuple[Tensor, Tensor, Tensor] | None = None

    def sample(self, m: int, generator: torch.Generator) -> Tensor:
        """Draw points (N, m, D)."""
        n, dim = self.mean.shape
        step = torch.randn(n, m, dim, generator=generator, dtype=torch.float64)
        chi = torch.randn(n, m, FREEDOM, generator=generator, dtype=torch.float64)
        step = step / (chi.square().sum(2, keepdim=True) / FREEDOM).sqrt()
        center = self.mean.unsqueeze(1).expand(n, m, dim)
        root = self.root
        points = center + step @ root.mT
        if self.kernel is not None:
            centers, weights, root = self.kernel
            chosen = torch.multinomial(weights, m, replacement=True, generator=generator)
            near = centers.gather(1, chosen.unsqueeze(2).expand(n, m, dim))
            local = near + step @ root.mT
            first = torch.rand(n, m, 1, generator=generator, dtype=torch.float64) < FIRST_SHARE
            points = torch.where(first, points, local)
        return torch.where(self.missing.unsqueeze(1), points, self.mean.unsqueeze(1))

    def log_prob(self, points: Tensor) -> Tensor:
        """Log-densities (N, m) of the missing columns of points (N, m, D)."""
        first = self._each(points, self.mean.unsqueeze(1), self.root)[:, :, 0]
        if self.kernel is None:
            return first
        centers, weights, root = self.kernel
        each = self._each(points, centers, root) + weights.log().unsqueeze(1)
        local = each.logsumexp(2)
        return torch.logaddexp(first + math.log(FIRST_SHARE), local + math.log(1 - FIRST_SHARE))

    def adapt(self, points: Tensor, log_weights: Tensor) -> None:
        """Put kernels on weighted points (N, m, D), as wide as predicts left-out points best."""
        weights = log_weights.softmax(1)
        share = weights.unsqueeze(2)
        centred = points - (share * points).sum(1, keepdim=True)
        spread = (share * centred).mT @ centred
        effective = 1 / weights.square().sum(1)
        trust = (effective / (effective + self.dims + 1)).view(-1, 1, 1)
        covariance = self._whole(trust * spread + (1 - trust) * 0.1 * self.covariance)
        root = torch.linalg.cholesky(covariance)
        itself = torch.eye(points.shape[1], dtype=torch.bool)
        scores = []
        for width in WIDTHS:
            each = self._each(points, points, width * root) + weights.log().unsqueeze(1)
            left_out = each.masked_fill(itself, -math.inf).logsumexp(2)
            floor = self._each(points, self.mean.unsqueeze(1), self.root)[:, :, 0]
            left_out = torch.logaddexp(left_out, floor + math.log(FIRST_SHARE))
            scores.append((weights * left_out).sum(1))
        best = torch.tensor(WIDTHS).double()[torch.stack(scores).argmax(0)]
        self.kernel = points, weights.clamp_min(1e-300), best.view(-1, 1, 1) * root

    def _each(self, points: Tensor, centers: Tensor, root: Tensor) -> Tensor:
        """Log-densities (N, m, c) of t distributions about centers (N, c, D)."""
        white = torch.linalg.solve_triangular(root, points.mT, upper=False).mT
        about = torch.linalg.solve_triangular(root, centers.mT, upper=False).mT
        size = torch.cdist(white, about).square()
        scale = torch.where(self.missing, root.diagonal(dim1=1, dim2=2), 1.0).log().sum(1)
        half = 0.5 * (FREEDOM + self.dims)
        constant = torch.lgamma(half) - math.lgamma(0.5 * FREEDOM)
        constant = constant - 0.5 * self.dims * math.log(FREEDOM * math.pi) - scale
        return constant.view(-1, 1, 1) - half.view(-1, 1, 1) * torch.log1p(size / FREEDOM)

    def _whole(self, block: Tensor) -> Tensor:
        """A covariance of missing columns with ones for the known, safely positive."""
        lost = self.missing.double()
        block = lost.unsqueeze(2) * block * lost.unsqueeze(1)
        block = 0.5 * (block + block.mT)
        jitter = 1e-8 * block.diagonal(dim1=1, dim2=2).clamp_min(1e-12)
        return block + torch.diag_embed(lost * jitter + self.known.double())
