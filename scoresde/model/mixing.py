"""The linear map R of x = mean + scale ∘ (R·z), as `root` holds it.

A square root (d, d) is R itself. A root (d, 1 + r) holds p and V (d, r), and is

    R = diag(p)·(I + V·Vᵀ),        R⁻¹ = (I − V·(I + VᵀV)⁻¹·Vᵀ)·diag(1/p),
    log det R = Σ log p + log det(I + VᵀV),

at a cost of d·r. All vectors are rows.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Mixing(Protocol):
    """The map R of rows z (B, d)."""

    dtype: torch.dtype
    log_det: float

    def forward(self, z: Tensor) -> Tensor:
        """R·z."""

    def inverse(self, x: Tensor) -> Tensor:
        """R⁻¹·x."""

    def transposed_inverse(self, g: Tensor) -> Tensor:
        """R⁻ᵀ·g."""

    def rows(self, index: Tensor) -> Tensor:
        """Some rows of R."""


class FullMixing:
    """R as a matrix."""

    def __init__(self, root: Tensor) -> None:
        self.dtype = root.dtype
        self._root: Tensor = root
        self._inverse: Tensor = torch.linalg.inv(root.cpu().double()).to(root)
        self.log_det = float(torch.linalg.slogdet(root.cpu().double()).logabsdet)

    def forward(self, z: Tensor) -> Tensor:
        """R·z."""
        return z @ self._root.T

    def inverse(self, x: Tensor) -> Tensor:
        """R⁻¹·x."""
        return x @ self._inverse.T

    def transposed_inverse(self, g: Tensor) -> Tensor:
        """R⁻ᵀ·g."""
        return g @ self._inverse

    def rows(self, index: Tensor) -> Tensor:
        """Some rows of R."""
        return self._root[index]


class FactorMixing:
    """R = diag(p)·(I + V·Vᵀ)."""

    def __init__(self, root: Tensor) -> None:
        self.dtype = root.dtype
        used = root[:, 1:].abs().amax(0) > 0
        self._p: Tensor = root[:, 0]
        self._v: Tensor = root[:, 1:][:, used]
        v = self._v.cpu().double()
        inner = torch.eye(v.shape[1], dtype=v.dtype, device=v.device) + v.T @ v
        self._inner_v: Tensor = torch.linalg.solve(inner, v.T).to(root)
        spread = self._p.cpu().double().log().sum()
        self.log_det = float(spread + torch.linalg.slogdet(inner).logabsdet)

    def forward(self, z: Tensor) -> Tensor:
        """R·z."""
        return self._p * (z + (z @ self._v) @ self._v.T)

    def inverse(self, x: Tensor) -> Tensor:
        """R⁻¹·x."""
        return self._unmixed(x / self._p)

    def transposed_inverse(self, g: Tensor) -> Tensor:
        """R⁻ᵀ·g."""
        return self._unmixed(g) / self._p

    def rows(self, index: Tensor) -> Tensor:
        """Some rows of R."""
        found: Tensor = self._v[index] @ self._v.T
        found[torch.arange(len(index), device=found.device), index] += 1
        found *= self._p[index].unsqueeze(1)
        return found

    def _unmixed(self, y: Tensor) -> Tensor:
        """(I + V·Vᵀ)⁻¹·y."""
        return y - (y @ self._v) @ self._inner_v


@torch.inference_mode(False)
def mixing_of(root: Tensor | None) -> Mixing | None:
    """The map of a root; None for the identity."""
    if root is None or root.device.type == "meta":
        return None
    if torch.equal(root, identity_root(root.shape, root)):
        return None
    square = root.shape[0] == root.shape[1]
    return FullMixing(root) if square else FactorMixing(root)


def identity_root(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The root of a shape that changes nothing."""
    if shape[0] == shape[1]:
        return torch.eye(shape[0], dtype=like.dtype, device=like.device)
    root = torch.zeros(shape, dtype=like.dtype, device=like.device)
    root[:, 0] = 1
    return root
