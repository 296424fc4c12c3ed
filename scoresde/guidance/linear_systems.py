"""Systems S·w = r a sample, S positive definite: by Cholesky, or by conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..model.standardization import wide

CHECKED_EVERY = 4
"""Iterations of conjugate gradients between two looks at whether all samples are done."""


def gaussian_terms(r: Tensor, S: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """S⁻¹·r (B, m) and log N(r; 0, S) (B,), for S (B or 1, m, m) symmetric.

    Eigenvalues below ½·least, which the Jacobian of a network can have, are set to `least`.
    """
    dtype = torch.promote_types(r.dtype, wide(r.device))
    matrix = 0.5 * (S + S.mT).to(dtype)
    factor = torch.linalg.cholesky_ex(_positive(matrix, least)).L
    right = r.to(dtype).unsqueeze(2)
    # S⁻¹r by two triangular systems; L⁻¹r has the square that the density takes
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    w = torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(2)
    log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    square = half.squeeze(2).square().sum(1)
    log_density = -0.5 * (square + log_det + r.shape[1] * math.log(2 * math.pi))
    return w.to(r.dtype), log_density.to(r.dtype)


def _positive(S: Tensor, least: float) -> Tensor:
    """S with eigenvalues below ½·least set to `least`; rows that have none stay as they are."""
    scale = S.detach().diagonal(dim1=1, dim2=2).abs().mean(1).clamp_min(1e-300)
    floor = (0.5 * least + 1e-13 * scale)[:, None, None]
    eye = torch.eye(S.shape[1], dtype=S.dtype, device=S.device)
    info = torch.linalg.cholesky_ex(S.detach() - floor * eye).info
    finite = S.detach().isfinite().flatten(1).all(1)
    low = (info != 0) & finite
    if not bool(low.any()):
        return S
    values, vectors = torch.linalg.eigh(S.detach()[low])
    smallest = (least + 2e-13 * scale[low]).unsqueeze(1)
    raised = torch.where(values < floor[low, 0], smallest - values, 0)
    change = torch.zeros_like(S)
    change[low] = (vectors * raised.unsqueeze(1)) @ vectors.mT
    return S + change


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], r: Tensor, most: int, tolerance: float
) -> Tensor:
    """S⁻¹·r (B, m) by at most `most` products w ↦ S·w of rows; samples stop one by one.

    A sample stops at ‖S·w − r‖ ≤ tolerance·‖r‖, or where S turns out not to be positive.
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
        active = active & (curvature > 0)
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
