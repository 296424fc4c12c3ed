"""A linear measurement of data as one of coordinates of states, Vᵀ·x̃0 = c + τ·n."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.protocol import Model
from ..model.standardization import wide
from ..solvers import Measured
from .measured import Measurement
from .measurements import Denoise, Inpaint

MOST_ENTRIES = 2**22
"""Entries of A up to which its singular vectors are computed: some ten seconds."""


def measured_coordinates(
    model: Model,
    measurement: Measurement,
    y: Tensor,
) -> Measured:
    """What was measured, from the elements of y (B or 1, k) that count."""
    if isinstance(measurement, Denoise | Inpaint) and model.standardization.root is None:
        return _elements(model, measurement, y)
    return _by_singular_vectors(model, measurement, y)


def _elements(
    model: Model,
    measurement: Measurement,
    y: Tensor,
) -> Measured:
    """Of elements of data that are not whitened: coordinates are states themselves."""
    observed = torch.ones(model.shape, dtype=torch.bool, device=y.device)
    if measurement.observed is not None:
        observed = measurement.observed.to(y.device).expand(model.shape)
    # y where it was measured, the mean elsewhere
    x = model.to_data(y.new_zeros(len(y), model.dim)).flatten(1)
    x[:, observed.flatten()] = y
    z = model.from_data(x.reshape(-1, *model.shape))
    spread = model.scale.to(y).expand(model.shape).flatten()
    seen = observed.flatten()
    free = model.standardization.free
    if free is not None:
        spread = spread[free]
        seen = seen[free]
    at = seen.nonzero()[:, 0]

    def states(c: Tensor) -> Tensor:
        return c.new_zeros(len(c), model.dim).index_copy(1, at, c)

    return Measured(
        values=z[:, at],
        std=measurement.noise / spread[at],
        coordinates=lambda z: z[:, at],
        states=states,
    )


def _by_singular_vectors(
    model: Model,
    measurement: Measurement,
    y: Tensor,
) -> Measured:
    """Of any linear map, whose matrix on states is built and decomposed."""
    if y.shape[1] * model.dim > MOST_ENTRIES:
        raise ValueError(
            f"{measurement!r} gives {y.shape[1]} numbers of {model.dim}, and this solver "
            f"decomposes matrices of up to {MOST_ENTRIES} entries: take scoresde.particles, or "
            "sample without a solver="
        )
    dtype = wide(y.device)
    points = torch.cat([y.new_zeros(1, model.dim), torch.eye(model.dim).to(y)]).to(dtype)
    found = measurement.flat(measurement(model.to_data(points))).to(dtype)
    offset = found[0]
    left, values, right = torch.linalg.svd((found[1:] - offset).T, full_matrices=False)
    if not bool(values[0] > 0):
        raise ValueError(f"{measurement!r} says nothing of what varies in samples of this model")
    least = values[0] * torch.finfo(dtype).eps * max(y.shape[1], model.dim)
    rank = max(1, int((values > least).sum()))
    left = left[:, :rank]
    values = values[:rank]
    basis = right[:rank].T.to(y)
    return Measured(
        values=(((y.to(dtype) - offset) @ left) / values).to(y),
        std=(measurement.noise / values).to(y),
        coordinates=lambda z: z @ basis.to(z),
        states=lambda c: c @ basis.T.to(c),
    )
