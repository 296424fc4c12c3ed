"""Two sets of samples as rows of float64, and sums over their pairs, a block at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..common.inputs import as_tensor

PAIRS_AT_ONCE = 2**19  # pairs held in memory: 4 MB, which fits in a cache


def points(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return two sets of samples as rows (n, D) and (m, D) in float64; raise for anything else."""
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} is a {type(value).__name__}; wanted a tensor, try torch.as_tensor({name})"
            )
        as_tensor(value, name)
        if value.ndim < 1 or value.shape[0] < 2:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; wanted (n, *shape) with n ≥ 2"
            )
        if value.is_complex() or not value.isfinite().all():
            raise ValueError(
                f"{name} is complex or holds NaN or infinity; wanted finite samples: look where "
                "it comes from"
            )
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"x of shape {tuple(x.shape)}, y {tuple(y.shape)}; wanted samples of the same shape"
        )
    return x.reshape(len(x), -1).double(), y.reshape(len(y), -1).to(x.device, torch.float64)


def reach(*parts: Tensor) -> Tensor:
    """Divisor of the columns of rows (…, D), a power of two, by which their squares are finite."""
    largest = torch.stack([part.reshape(-1, part.shape[-1]).abs().amax(0) for part in parts])
    found = largest.amax(0)
    return torch.where(found > 0, torch.exp2(torch.frexp(found).exponent.double() - 1), 1.0)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Return all Euclidean distances |x_i − y_j|."""
    # without matrix products: as fast in the plane, and exact
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def total(x: Tensor, y: Tensor, of: Callable[[Tensor], Tensor] = lambda d: d) -> Tensor:
    """Return Σ_ij of(|x_i − y_j|), with 4 MB of distances at a time."""
    result = x.new_zeros(())
    for part in torch.split(x, max(1, PAIRS_AT_ONCE // len(y))):
        result += of(distances(part, y)).sum()
    return result
