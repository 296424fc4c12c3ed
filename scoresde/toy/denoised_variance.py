"""The variance of x0 given a noised point, for Gaussian mixtures."""

from __future__ import annotations

import torch
from torch import Tensor

from .mixture import GaussianMixture

CELLS = 2**20
"""Numbers that a temporary tensor may hold."""


def denoised_variance(mixture: GaussianMixture, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Var[x0 | x = α·x0 + σ·ε] (B, *shape), the diagonal of the posterior covariance, in float64.

    It is Σ r_k·(s_k²σ²/v_k + (μ_k − x̂0)²) with the posterior means μ_k = (σ²m_k + αs_k²x)/v_k of
    the components, v_k = α²s_k² + σ², and their probabilities r_k.
    """
    flat = x.flatten(1).double()
    levels = (each.double().reshape(-1, 1).expand(len(x), 1) for each in (alpha, sigma))
    means, *_ = mixture._parameters(flat)
    rows = max(1, CELLS // means.numel())
    parts = zip(*(torch.split(each, rows) for each in (flat, *levels)), strict=True)
    return torch.cat([_variances(mixture, *part) for part in parts]).reshape(x.shape)


def _variances(mixture: GaussianMixture, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Var[x0 | x] (B, D) of some rows."""
    joint, v, _ = mixture._components(x, alpha, sigma)
    m, s2, _ = mixture._parameters(x)
    r = joint.softmax(-1)
    means = (sigma.square() * m.T.unsqueeze(1) + alpha * s2 * x.T.unsqueeze(2)) / v  # (D, B, K)
    mean = (r * means).sum(-1, True)
    return (r * (s2 * sigma.square() / v + (means - mean).square())).sum(-1).T
