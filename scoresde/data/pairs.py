"""Pairs of a sample and the point at t = 1 that its path begins at."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import as_path, brief_repr
from ..common.errors import CheckpointError
from ..common.inputs import as_condition, as_floats, as_tensor
from ..model.frames import is_frame
from ..model.schema import Schema
from .pair_store import RECORD, FolderStore, Store, native

CHECKED_NUMBERS = 2**21
"""Numbers of a file that are checked at once."""


class Pairs:
    """n pairs of a sample x_0 and a point x_1 at t = 1: drawn by `reflow`, or any two tensors.

    Parameters
    ----------
    x : Tensor, array or data frame, shape (n, *shape)
        Samples x_0, in the units of the data. A memory-mapped array stays on the disk.
    latent : Tensor, array or data frame, shape (n, *shape)
        Points x_1, in the same units. Columns of a frame are matched to those of x by name.
    given : mapping of str to tensor, optional
        Conditions, one row per pair.

    Attributes
    ----------
    x, latent : Tensor or numpy.memmap
    given : dict of str to Tensor
    unit : tuple of two or three Tensors, or None
        Mean and scale of the Gaussian that `reflow` drew x_1 from, if it did. A model without mean
        and scale that learns the pairs takes them over.

    Raises
    ------
    TypeError
        For other than floating-point numbers.
    ValueError
        For unequal numbers or shapes, no pairs, or numbers that are not finite.

    References
    ----------
    Liu, Gong & Liu, Flow straight and fast: learning to generate and transfer data with rectified
    flow, ICLR 2023.

    Examples
    --------
    >>> pairs = Pairs(torch.zeros(5, 2), torch.randn(5, 2))
    >>> len(pairs), pairs.shape, pairs[:3]
    (5, (2,), Pairs(3 of shape (2,)))
    >>> Pairs(torch.zeros(5, 2), torch.randn(4, 2))
    Traceback (most recent call last):
    ValueError: x has 5 rows and latent has 4: a pair has one of each
    """

    x: Any
    latent: Any
    given: dict[str, Tensor]
    unit: tuple[Tensor, ...] | None = None
    schema: Schema | None = None
    """Names in the data of the model that drew the pairs; a model that learns them keeps these."""

    def __init__(self, x: Any, latent: Any, given: Mapping[str, Any] | None = None) -> None:
        x, latent, given = self._without_names(x, latent, given)
        self.x = _finite_floats(x, "x")
        self.latent = _finite_floats(latent, "latent")
        if isinstance(self.x, Tensor) != isinstance(self.latent, Tensor):
            # Both are in memory, or both are on the disk.
            self.x = _in_memory(self.x)
            self.latent = _in_memory(self.latent)
        if len(self.x) != len(self.latent):
            raise ValueError(
                f"x has {len(self.x)} rows and latent has {len(self.latent)}: a pair has one of "
                "each"
            )
        if self.x.shape != self.latent.shape:
            raise ValueError(
                f"x has samples of shape {self.shape} and latent of shape "
                f"{tuple(self.latent.shape[1:])}: the ODE keeps the shape"
            )
        if not isinstance(given, Mapping | None):
            raise TypeError(
                f"given is a mapping such as {{'y': labels}}, got {type(given).__name__}"
            )
        self.given = {
            name: as_condition(value, name).detach() for name, value in (given or {}).items()
        }
        for name, value in self.given.items():
            if not value.ndim or len(value) != len(self):
                raise ValueError(
                    f"condition {name!r} has shape {tuple(value.shape)} for {len(self)} pairs"
                )

    def _without_names(self, x: Any, latent: Any, given: Any) -> tuple[Any, Any, Any]:
        """Data frames as arrays in the order of x's columns, whose names are kept."""
        frames = {}
        if isinstance(given, Mapping):
            frames = {name: value for name, value in given.items() if is_frame(value)}
        if not (is_frame(x) or is_frame(latent) or frames):
            return x, latent, given
        schema = Schema()
        if is_frame(x):
            x, _ = schema.learn(x, None)
        if is_frame(latent):
            latent = schema.values(latent)
        if frames:
            given = {**given, **schema.learn(None, frames)[1]}
        self.schema = schema
        return x, latent, given

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.x)

    def __getitem__(self, rows: slice) -> Pairs:
        """Some of the pairs, sharing memory or the file."""
        if not isinstance(rows, slice):
            raise TypeError(
                f"pairs are selected by a slice such as pairs[:100], got {brief_repr(rows)}; for "
                "other rows take Pairs(pairs.x[rows], pairs.latent[rows])"
            )
        if not range(len(self))[rows]:
            raise ValueError(f"none of {len(self)} pairs lies in {rows}")
        if (rows.step or 1) < 0:
            raise ValueError(f"pairs are selected by a slice with a positive step, got {rows}")
        part = copy.copy(self)
        part.x = self.x[rows]
        part.latent = self.latent[rows]
        part.given = {name: value[rows] for name, value in self.given.items()}
        return part

    def __repr__(self) -> str:
        """How many, of which shape, with which conditions."""
        given = f", given {sorted(self.given)}" if self.given else ""
        return f"Pairs({len(self)} of shape {self.shape}{given})"

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Pairs:
        """Open pairs that `reflow` wrote to a folder, memory-mapped; all bytes are checked.

        Parameters
        ----------
        folder : path

        Returns
        -------
        Pairs
            `x` and `latent` are read-only `numpy.memmap`, conditions are tensors.

        Raises
        ------
        CheckpointError
            If there are no pairs, they are damaged, or some are missing: `reflow` with the same
            `out=` draws these.

        Examples
        --------
        >>> import scoresde, tempfile
        >>> sde = scoresde.oracle(scoresde.toy.Moons(), scoresde.RectifiedFlow())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = scoresde.reflow(sde, 10, steps=5, out=folder, progress=False)
        ...     Pairs.open(folder)
        Pairs(10 of shape (2,))
        """
        path = as_path(folder, "folder")
        if not os.path.lexists(path / f"{RECORD}.json"):
            raise CheckpointError(
                f"no pairs at {path}: it has no {RECORD}.json; reflow(..., out=folder) writes them"
            )
        store = FolderStore.read(path)
        model = store.settings.get("model")
        names = model.get("schema") if isinstance(model, dict) else None
        try:
            return stored_pairs(store, store.settings.get("unit"), names)
        except ValueError as error:
            raise CheckpointError(f"the pairs at {path} are damaged: {error}") from None


def stored_pairs(store: Store, unit: Any, names: Any) -> Pairs:
    """Pairs of a store, which were checked when drawn, with mean and scale, and a schema."""
    pairs = Pairs.__new__(Pairs)
    (pairs.x, pairs.latent), pairs.given = store.columns()
    pairs.schema = Schema.rebuild(names, pairs.shape)
    if unit is not None:
        pairs.unit = tuple(
            torch.tensor(value, dtype=torch.float64, device="cpu") for value in unit
        )
    return pairs


def _in_memory(value: Any) -> Tensor:
    """A tensor as it is, and a copy of a memory-mapped array."""
    return value if isinstance(value, Tensor) else torch.from_numpy(native(value))


def _finite_floats(value: Any, what: str) -> Any:
    """Rows of finite floating-point numbers, as a tensor; a memory-mapped array stays one."""
    mapped = isinstance(value, np.memmap)
    if not mapped:
        value = as_tensor(value, what).detach()
    shape = tuple(value.shape)
    if len(shape) < 2:
        raise ValueError(
            f"{what} has shape {shape}, wanted (n, *shape), such as (n, 1) for numbers"
        )
    step = max(1, len(value))
    if mapped:
        step = max(1, CHECKED_NUMBERS // max(1, math.prod(shape[1:])))
    for i in range(0, max(1, len(value)), step):
        part = value[i : i + step]
        if mapped:
            part = native(part)
        as_floats(part, shape[1:], what)
    return value
