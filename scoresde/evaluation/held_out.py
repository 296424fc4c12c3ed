"""Held-out data with their conditions, and the random order in which they are used."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.inputs import as_floats, as_tensor
from ..common.random import seeded
from ..density.dequantize import Uniform
from ..model.protocol import Model

ORDER_STREAM = 0  # the stream of the seed that shuffles the rows


@dataclass(frozen=True)
class HeldOut:
    """Values (N, *shape) and conditions (N, ...) by name, in memory or in a file."""

    sde: Model
    values: Any
    given: Mapping[str, Any]

    def __len__(self) -> int:
        """Return N."""
        return len(self.values)

    def rows(self, rows: Tensor | slice) -> Tensor:
        """Return some values as a tensor."""
        return take_rows(self.values, rows)

    def model(self, rows: Tensor) -> Model:
        """Return the model under the conditions of some rows."""
        if not self.given:
            return self.sde
        return self.sde.given(**{name: take_rows(v, rows) for name, v in self.given.items()})


def held_out(sde: Model, data: Any, given: Any) -> HeldOut:
    """Return data and conditions; raise unless they are numbers, one row of conditions a datum."""
    data, given = sde.schema.take(data, given)
    values = as_array("data", data)
    if not values.ndim or not len(values):
        raise ValueError(f"data are (N, *shape) and not empty, got shape {tuple(values.shape)}")
    return HeldOut(sde, values, _conditions(sde, given, len(values)))


def _conditions(sde: Model, given: Any, total: int) -> dict[str, Any]:
    """The conditions as tensors or arrays of `total` rows."""
    for name, value in sde.condition.items():
        if len(value) > 1 and "." in name:
            raise ValueError(
                f"the model is guided by {name.rpartition('.')[2]} of {len(value)} rows: guide it "
                "by one row for all data"
            )
        if len(value) > 1:
            raise ValueError(
                f"the model has been given {name!r} of {len(value)} rows; give those of the data "
                f"by given= (--condition {name})"
            )
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            "given is a mapping from names to values such as {'y': labels}, "
            f"got {type(given).__name__}"
        )
    values = {
        name: as_array(f"condition {name!r}", value) for name, value in (given or {}).items()
    }
    for name, value in values.items():
        if not value.ndim or len(value) != total:
            raise ValueError(f"condition {name!r} has shape {tuple(value.shape)} for {total} data")
    return values


def check_values(sde: Model, x: Tensor, noise: Uniform | None) -> None:
    """Raise unless the model can score x: floats, or integers if there is a noise to add."""
    if noise is None:
        as_floats(x, sde.shape, "data")
        return
    if tuple(x.shape[1:]) != sde.shape:
        raise ValueError(
            f"data have shape {tuple(x.shape[1:])} a sample, and the model's are {sde.shape}"
        )
    noise._accept(x)


def is_discrete(x: Tensor) -> bool:
    """Whether a tensor holds integers."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def random_order(total: int, wanted: int, seed: int) -> Tensor:
    """Return `wanted` row numbers: one random permutation of all rows after the other."""
    generator = seeded("cpu", seed, ORDER_STREAM)
    rounds = range(math.ceil(wanted / total))
    shuffled = [torch.randperm(total, generator=generator, device="cpu") for _ in rounds]
    return torch.cat(shuffled)[:wanted]


def as_array(name: str, values: Any) -> Any:
    """Return values as a tensor or array of numbers; a memory-mapped array stays in its file."""
    if np.ma.is_masked(values):
        as_tensor(values, name)
    if isinstance(values, Tensor):
        values = as_tensor(values, name)
        unsigned = values.dtype in (torch.uint16, torch.uint32, torch.uint64)
        return values.long() if unsigned else values
    if isinstance(values, list | tuple) or hasattr(values, "__array__"):
        # rows of several lengths make no array, and are refused below
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            values = values if isinstance(values, np.ndarray) else np.asarray(values)
    if not isinstance(values, np.ndarray):
        raise TypeError(f"{name} is a tensor or array of numbers, got {type(values).__name__}")
    if values.dtype.kind not in "biufc" or values.dtype == np.longdouble:
        raise TypeError(f"{name} is a tensor or array of numbers, got an array of {values.dtype}")
    return values


def take_rows(values: Any, rows: Tensor | slice) -> Tensor:
    """Return some rows of a tensor or array as a tensor, copied from an array."""
    if isinstance(values, Tensor):
        return values[rows if isinstance(rows, slice) else rows.to(values.device)]
    part = values[rows if isinstance(rows, slice) else rows.numpy()]
    if part.dtype.kind == "u" and part.dtype.itemsize > 1:
        dtype = np.dtype(np.int64)  # torch can't index wide unsigned integers
    else:
        dtype = part.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(part, dtype=dtype, order="C"))
