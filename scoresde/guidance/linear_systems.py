"""Systems S·w = r a sample, S positive definite: by Cholesky, or by conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.standardization import wide

LEAST_SLACK = 1e-11
"""Eigenvalues above minus this share of the mean variance count as rounding of 0."""

CHECKED_EVERY = 4
"""Iterations of conjugate gradients between two looks at whether all samples are done."""


def gaussian_terms(r: Tensor, W: Tensor, noise2: float, instead: Tensor) -> tuple[Tensor, Tensor]:
    """S⁻¹·r (B, m) and log N(r; 0, S) (B,), for S = noise²·I + W: see `factored`."""
    return factored(W, noise2, instead, r.dtype).terms(r)


@dataclass(frozen=True)
class Factored:
    """S = F·Fᵀ (B or 1, m, m), and the projector on directions that S⁻¹ is to leave out."""

    factor: Tensor
    dropped: Tensor | None

    def terms(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """S⁻¹·r (B, m) and log N(r; 0, S) (B,)."""
        right = r.to(self.factor.dtype).unsqueeze(2)
        half = torch.linalg.solve_triangular(self.factor, right, upper=False)
        w = torch.linalg.solve_triangular(self.factor.mT, half, upper=True)
        if self.dropped is not None:
            w = w - self.dropped @ w
        log_det = 2 * self.factor.diagonal(dim1=1, dim2=2).log().sum(1)
        square = half.squeeze(2).square().sum(1)
        log_density = -0.5 * (square + log_det + r.shape[1] * math.log(2 * math.pi))
        return w.squeeze(2).to(r.dtype), log_density.to(r.dtype)

    def whitened(self, G: Tensor) -> Tensor:
        """F⁻¹·G of matrices (B, m, n), so that GᵀS⁻¹G is its square."""
        right = G.to(self.factor.dtype)
        if self.dropped is not None:
            right = right - self.dropped @ right
        half: Tensor = torch.linalg.solve_triangular(self.factor, right, upper=False)
        return half.to(G.dtype)


def factored(W: Tensor, noise2: float, instead: Tensor, dtype: torch.dtype) -> Factored:
    """S = noise²·I + W, W = H·C·Hᵀ (B or 1, m, m), by Cholesky, for numbers of a dtype.

    C of a network need not be a covariance. Along eigenvectors of W of negative eigenvalues it
    says nothing of use: S⁻¹·r is 0 there, and S takes the variance of `instead` (B or 1, m, m).
    """
    slack = max(LEAST_SLACK, 100 * torch.finfo(dtype).eps)
    dtype = torch.promote_types(dtype, wide(W.device))
    W = 0.5 * (W + W.mT).to(dtype)
    eye = torch.eye(W.shape[1], dtype=dtype, device=W.device)
    low = _low(W.detach(), slack)
    S = W + noise2 * eye
    dropped = None
    if bool(low.any()):
        change, dropped = _mended(W.detach(), low, slack, instead.detach().to(dtype))
        S = S + change
    if not noise2:
        scale = W.detach().diagonal(dim1=1, dim2=2).abs().mean(1)
        S = S + 1e-14 * scale[:, None, None] * eye
    return Factored(torch.linalg.cholesky_ex(S).L, dropped)


def _low(W: Tensor, slack: float) -> Tensor:
    """Which of W (B, m, m) have an eigenvalue below −slack of their scale, (B,)."""
    scale = W.diagonal(dim1=1, dim2=2).abs().mean(1)
    eye = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    info = torch.linalg.cholesky_ex(W + (slack * scale + 1e-300)[:, None, None] * eye).info
    found: Tensor = (info != 0) & W.isfinite().flatten(1).all(1)
    return found


def _mended(W: Tensor, low: Tensor, slack: float, instead: Tensor) -> tuple[Tensor, Tensor]:
    """What to add to W of rows that are `low`, and the projectors on what was negative there."""
    values, vectors = torch.linalg.eigh(W[low])
    negative = vectors * (values < 0).unsqueeze(1)
    projector = torch.zeros_like(W)
    projector[low] = negative @ negative.mT
    variance = instead if len(instead) == 1 else instead[low]
    raised = (negative * (variance @ negative)).sum(1)
    change = torch.zeros_like(W)
    change[low] = (negative * (raised - values).unsqueeze(1)) @ negative.mT
    return change, projector


def information_terms(
    r: Tensor, H: Tensor, J: Tensor, scale: Any, noise2: float
) -> tuple[Tensor, Tensor]:
    """J·Hᵀ·S⁻¹·r (B, n) and log N(r; 0, S), S = noise²·I + H·C·Hᵀ, by systems in n dimensions.

    C = scale·J. For m > n and noise > 0. Negative eigenvalues of J (B, n, n) are set to 0.
    """
    dtype = torch.promote_types(r.dtype, wide(r.device))
    slack = max(LEAST_SLACK, 100 * torch.finfo(r.dtype).eps)
    H = H.to(dtype)
    J = 0.5 * (J + J.mT).to(dtype)
    low = _low(J.detach(), slack)
    if bool(low.any()):
        J = J + _mended(J.detach(), low, slack, torch.zeros_like(J[:1]))[0]
    right = r.to(dtype).unsqueeze(2)
    eye = torch.eye(J.shape[1], dtype=dtype, device=J.device)
    ratio = eye + scale * (J @ (H.mT @ H)) / noise2
    shift = torch.linalg.solve_ex(ratio, J @ (H.mT @ right) / noise2).result
    log_det = r.shape[1] * math.log(2 * math.pi * noise2) + torch.linalg.slogdet(ratio).logabsdet
    square = (right * (right - H @ (scale * shift))).sum((1, 2)) / noise2
    return shift.squeeze(2).to(r.dtype), -0.5 * (square + log_det).to(r.dtype)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    r: Tensor,
    most: int,
    tolerance: float,
    least: float = 0.0,
) -> Tensor:
    """S⁻¹·r (B, m) by at most `most` products w ↦ S·w of rows; samples stop one by one.

    A sample stops at ‖S·w − r‖ ≤ tolerance·‖r‖, or where pᵀSp ≤ least·|p|²: no S of a covariance.
    """
    w = torch.zeros_like(r)
    rest = r.clone()
    p = r.clone()
    square = _dot(r, r)
    target = tolerance**2 * square
    active = square > 0
    for i in range(most):
        if i % CHECKED_EVERY == 0 and not bool(active.any()):
            break
        Sp = product(p)
        curvature = _dot(p, Sp)
        active = active & (curvature > least * _dot(p, p))
        step = torch.where(active, square / torch.where(active, curvature, 1), 0)
        w = w + step * p
        rest = rest - step * Sp
        now = _dot(rest, rest)
        active = active & (now > target)
        ratio = torch.where(active, now / torch.where(active, square, 1), 0)
        p = torch.where(active, rest + ratio * p, p)
        square = torch.where(active, now, square)
    return w


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """a·b of each row, (B, 1)."""
    return (a * b).sum(1, keepdim=True)
