"""Datasets and loaders: iterated again and again, item by item."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ...common.random import DRAWS, ORDER, isolated, seeded
from ..failures import following, placed
from ..items import ItemSplitter
from .base import MEASURED_SAMPLES, Batch, Entrance, Reader, Share
from .shuffles import Shuffles

EMPTY = "the data are empty, or can be iterated only once: a pass over them yielded no batch"


class _ItemReader(Reader):
    """Reads what a DataLoader yields."""

    def __init__(self, share: Share, entrance: Entrance, splitter: ItemSplitter) -> None:
        super().__init__(share, entrance)
        self._splitter = splitter
        # What loaders make is made here, whatever the default device.
        self._loader_device = torch.device("cpu")

    @abc.abstractmethod
    def _loader(self) -> Any:
        """What a pass over the data iterates, to measure them."""

    @abc.abstractmethod
    def _read(
        self, items: Iterator[Any], epoch: int
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Every item of a pass, the same on all ranks."""

    def measured(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """The first samples of a pass, the same on all ranks."""
        seen = 0
        for x, condition in self.whole():
            yield x, condition
            seen += len(x)
            if seen >= MEASURED_SAMPLES:
                break

    def whole(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """The samples of one pass, the same on all ranks."""
        empty = True
        for x, condition in self._read(self._begin(self._loader(), 0), 0):
            empty = False
            yield x, condition
        if empty:
            raise ValueError(EMPTY)

    def _begin(self, loader: Any, epoch: int) -> Iterator[Any]:
        """Begin a pass over a loader, with its shuffle and workers seeded."""
        seed = self.share.seed
        with isolated() as seed_all:
            seed_all(seed, ORDER, epoch, everything=True)
            inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
            parts = (loader, loader.sampler, inner)
            for generator in {getattr(part, "generator", None) for part in parts}:
                if generator is not None:
                    generator.manual_seed(seeded("cpu", seed, epoch).initial_seed())
                    self._loader_device = generator.device
            with torch.device(self._loader_device):
                return iter(loader)

    def _items(
        self,
        items: Iterator[Any],
        epoch: int,
        *,
        first: int = 0,
        skip: int = 0,
        rank: int,
        world: int,
        where: str,
        mapped: bool,
        rows: Callable[[int], Sequence[int]] | None = None,
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """One of every `world` items, checked and moved, after the first `skip`; all are seeded."""
        # A loader is read by all ranks alike, and each takes its own of every `world` items. A
        # dataset is read by each rank for itself. Both may draw from the global generators.
        shared = world > 1
        mine = rank if shared else 0
        own_noise = 0 if shared else rank
        items = following(items, where, first=first, mapped=mapped)
        for i in itertools.count(first):
            with isolated() as seed_all:
                seed_all(self.share.seed, DRAWS, epoch, i, own_noise, everything=True)
                with torch.device(self._loader_device):
                    several = list(itertools.islice(items, world))
            if len(several) < world:
                return
            if i < skip:
                continue
            with placed(f"batch {i * world + mine}{where}"):
                x, condition = self._splitter.split(several[mine])
                if isinstance(x, Tensor):
                    x = x.detach().to(self.entrance.device)
                names = None if rows is None else rows(i)
                x = self.entrance.samples(x, epoch, i, rank, rows=names)
                condition = self.entrance.conditions(condition, len(x))
            yield x, condition


class DatasetReader(_ItemReader):
    """Reads a map-style dataset, shuffled anew in each epoch."""

    def __init__(
        self, dataset: Any, share: Share, entrance: Entrance, splitter: ItemSplitter
    ) -> None:
        super().__init__(share, entrance, splitter)
        self._dataset = dataset
        if not len(dataset):
            raise ValueError("the data are empty: a dataset of length 0")

    def batches(self, step: int, position: Mapping[str, int] | None = None) -> Iterator[Batch]:
        """Batches of one step; ranks read disjoint rows."""
        share = self.share
        order = Shuffles(len(self._dataset), share.seed, torch.device("cpu"))

        def rows(i: int) -> list[int]:
            start = i * share.batch_size + share.rank * share.rows
            return order(start, start + share.rows).tolist()

        with torch.device(self._loader_device):
            items = iter(DataLoader(self._dataset, batch_sampler=_RowSampler(rows, step)))
        for x, condition in self._items(
            items, 0, first=step, rank=share.rank, world=1, where="", mapped=True, rows=rows
        ):
            yield Batch(x, None, condition, 1)

    def fingerprint(self) -> dict[str, Any]:
        """The name of the class, and the number of samples."""
        return {"kind": type(self._dataset).__name__, "samples": len(self._dataset)}

    def _loader(self) -> Any:
        return DataLoader(self._dataset, self.share.batch_size)

    def _read(
        self, items: Iterator[Any], epoch: int
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        return self._items(items, epoch, rank=0, world=1, where="", mapped=True)


class LoaderReader(_ItemReader):
    """Reads a DataLoader or an iterable-style dataset, epoch after epoch."""

    def __init__(
        self, data: Any, share: Share, entrance: Entrance, splitter: ItemSplitter
    ) -> None:
        super().__init__(share, entrance, splitter)
        self._kind = type(data).__name__
        self._data = data
        if isinstance(data, DataLoader):
            self.rows_per_step = None
        else:
            self._data = DataLoader(data, share.rows)
        self._mapped = not isinstance(self._data.dataset, IterableDataset)

    def batches(self, step: int, position: Mapping[str, int] | None = None) -> Iterator[Batch]:
        """Batches of one step from a position on; ranks read every world-th batch."""
        share = self.share
        position = position or {}
        epoch = position.get("epoch", 0)
        skip = position.get("batch", 0)
        while True:
            empty = True
            for i, (x, condition) in enumerate(
                self._items(
                    self._begin(self._data, epoch),
                    epoch,
                    skip=skip,
                    rank=share.rank,
                    world=share.world,
                    where=f" of epoch {epoch}",
                    mapped=self._mapped,
                )
            ):
                empty = False
                self.position = {"epoch": epoch, "batch": skip + i + 1}
                yield Batch(x, None, condition, 1)
            if empty and not skip:
                raise ValueError(EMPTY)
            epoch += 1
            skip = 0

    def fingerprint(self) -> dict[str, Any]:
        """The name of the class, the batch size, and the number of samples where it is known."""
        found = {"kind": self._kind, "batch_size": self._data.batch_size}
        if hasattr(self._data.dataset, "__len__"):
            found["samples"] = len(self._data.dataset)
        return found

    def _loader(self) -> Any:
        return self._data

    def _read(
        self, items: Iterator[Any], epoch: int
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        where = f" of epoch {epoch}"
        return self._items(items, epoch, rank=0, world=1, where=where, mapped=self._mapped)


class _RowSampler:
    """Row numbers of one batch after another, from a step on, for a DataLoader."""

    def __init__(self, rows: Callable[[int], list[int]], first: int) -> None:
        self._rows = rows
        self._first = first

    def __iter__(self) -> Iterator[list[int]]:
        for i in itertools.count(self._first):
            yield self._rows(i)
