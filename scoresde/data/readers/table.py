"""Tensors and arrays: moved to the model's device once, or left on the disk, and read by index."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...common.inputs import as_floats, as_tensor
from ..transforms import DequantizeBy
from .base import Batch, Entrance, Reader, Share
from .shuffles import Shuffles

HASHED_BYTES = 2**28
"""Data of more bytes are recognized by some of their rows …"""
HASHED_ROWS = 4096
"""… evenly spaced, about so many."""
INDEXABLE = {
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}
"""Dtypes that PyTorch can't index, and dtypes that hold the same numbers."""


class TableReader(Reader):
    """Reads a tensor or array (n, *shape), shuffled anew in each epoch."""

    joins_steps = True
    given: dict[str, Tensor]

    def __init__(self, data: Any, given: Any, share: Share, entrance: Entrance) -> None:
        super().__init__(share, entrance)
        mapped = isinstance(data, np.memmap)
        self.rows: Tensor | np.ndarray = data if mapped else self._on_device(data)
        n = len(self.rows) if self.rows.ndim else 0
        if tuple(self.rows.shape[1:]) != entrance.taken_shape or not n:
            wanted = ", ".join(["n", *map(str, entrance.taken_shape)])
            raise ValueError(
                f"data have shape {tuple(self.rows.shape)}, wanted ({wanted}), n at least 1"
            )
        # Tensors have been checked, except against the transforms; files are checked row by row.
        step = entrance.part_rows if mapped else 1
        stop = n if mapped else 1
        for i in range(0, stop, step):
            part = self.take(slice(i, i + step))
            entrance.samples(part, -1, i, rows=range(i, i + len(part)))
        self.given = entrance.table_conditions(given, n)
        self.condition_names = set(self.given)
        self.kept: Tensor | None = None
        """Numbers of the rows that batches are made of; None for all."""

    def _on_device(self, data: Any) -> Tensor:
        """The data as a tensor on the model's device; integers stay so for the transforms."""
        x = as_tensor(data, "data", exact=True).detach()
        x = x.to(INDEXABLE.get(x.dtype, x.dtype))
        if x.is_floating_point() or not self.entrance.transforms:
            x = as_floats(x, self.entrance.taken_shape, "data", gaps=self.entrance.gaps)
            return x.to(self.entrance.device, self.entrance.promoted(x.dtype))
        return x.to(self.entrance.device)

    def take(self, rows: slice | Tensor, table: Tensor | np.ndarray | None = None) -> Tensor:
        """Some rows of a table, on the model's device, as they are."""
        if table is None:
            table = self.rows
        if isinstance(table, Tensor):
            return table[rows] if isinstance(rows, slice) else table.index_select(0, rows)
        part = table[rows if isinstance(rows, slice) else rows.numpy()]
        # In the machine's byte order, and never a view of a file that must not be written to.
        found = torch.from_numpy(np.require(part, part.dtype.newbyteorder("="), ["C", "W"]))
        return found.to(self.entrance.device, INDEXABLE.get(found.dtype, found.dtype))

    def hold_out(self, rows: Tensor) -> None:
        """Leave rows out of all batches; mean, scale and fingerprint remain those of all rows."""
        keep = torch.ones(len(self.rows), dtype=torch.bool, device="cpu")
        keep[rows.cpu()] = False
        device = self.rows.device if isinstance(self.rows, Tensor) else keep.device
        self.kept = keep.nonzero()[:, 0].to(device)

    def batches(self, step: int, position: Mapping[str, int] | None = None) -> Iterator[Batch]:
        """Batches of several steps; ranks read disjoint rows."""
        share = self.share
        k = self.steps_at_once
        size = share.batch_size
        mine = slice(share.rank * share.rows, (share.rank + 1) * share.rows)
        device = self.entrance.device if isinstance(self.rows, Tensor) else torch.device("cpu")
        kept = self.kept
        n = len(self.rows)
        if kept is not None:
            n = len(kept)
        order = Shuffles(n, share.seed, device)
        for group in itertools.count(step // k):
            rows = order(group * k * size, (group + 1) * k * size)
            rows = rows if kept is None else kept[rows]
            if share.world > 1:
                rows = rows.view(k, size)[:, mine].flatten()
            x = self.take(rows)
            if self.entrance.transforms or not isinstance(self.rows, Tensor):
                x = self.entrance.samples(x, group, share.rank)
            start = self.starts_of(rows)
            rows = rows.to(self.entrance.device)
            condition = {name: value.index_select(0, rows) for name, value in self.given.items()}
            yield Batch(x, start, condition, k)

    def starts_of(self, rows: Tensor) -> Tensor | None:
        """Where the paths of some rows begin at t = 1; None, as a table does not say."""
        return None

    def measured(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """All rows, transformed."""
        if isinstance(self.rows, Tensor) and not self.entrance.transforms:
            yield self.rows, {}
            return
        step = self.entrance.part_rows
        for i in range(0, len(self.rows), step):
            yield self.entrance.samples(self.take(slice(i, i + step)), -1, i), {}

    def evenly_spaced(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        """About n rows, transformed, each as often as the others: evenly spaced, or repeated."""
        total = len(self.rows)
        rows = torch.arange(0, total, max(1, total // n), device="cpu")
        if len(rows) < n:
            rows = rows.repeat(-(-n // len(rows)))
        return self.chosen(rows)

    def chosen(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows by their numbers, transformed as held-out samples are, with their conditions."""
        here = rows.to(self.entrance.device)
        if isinstance(self.rows, Tensor):
            rows = here
        x = self.take(rows)
        condition = {name: value[here] for name, value in self.given.items()}
        return self.entrance.samples(x, -2, 0), condition

    def fingerprint(self) -> dict[str, Any]:
        """Number, dtype and SHA-256 of rows, of all of them if they are few: a pass over them."""
        n = len(self.rows)
        nbytes = n * self.entrance.dim * self.take(slice(0, 1)).element_size()
        step = 1 if nbytes <= HASHED_BYTES else -(-n // HASHED_ROWS)
        rows = torch.arange(0, n, step, device="cpu")
        if isinstance(self.rows, Tensor):
            rows = rows.to(self.rows.device)
        digest = hashlib.sha256()
        for part in torch.split(rows, self.entrance.part_rows):
            for table in self.hashed_tables():
                values = self.take(part, table).cpu().contiguous()
                digest.update(values.numpy().tobytes())
        found: dict[str, Any] = {}
        for transform in self.entrance.transforms:
            if isinstance(transform, DequantizeBy):
                found["dequantization"] = repr(transform.dequantization)
        return found | {
            "samples": n,
            "dtype": str(self.rows.dtype).removeprefix("torch."),
            "sha256": digest.hexdigest(),
            "given": {name: _sha256(value) for name, value in self.given.items()},
        }

    def hashed_tables(self) -> list[Any]:
        """The tables that make up the data, row by row."""
        return [self.rows]


def _sha256(x: Tensor) -> str:
    """SHA-256 of numbers as float64."""
    return hashlib.sha256(x.cpu().double().contiguous().numpy().tobytes()).hexdigest()
