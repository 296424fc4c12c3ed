"""Whatever a user has, as an endless stream of batches (x, condition) on the model's device.

Tensors and arrays are moved there once and shuffled by index; datasets and loaders are iterated, again and again; objects
with `.sample` are drawn from, many batches at a time.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from .inputs import as_floats
from .random import draw_seed
from .sde import ScoreSDE

Batch = tuple[Tensor, dict[str, Tensor]]

SAMPLED = 50_000  # samples that measure mean and scale where the data are not at hand all at once


class Source:
    """An endless stream of training batches.

    Parameters
    ----------
    data : Tensor, array, Dataset, DataLoader, or an object with .sample(n)
        Samples of shape `sde.shape`, floating point. Datasets and loaders yield x, (x,), or (x, {"y": labels}).
    sde : ScoreSDE
        Gives shape, dtype and device.
    batch_size : int
    generator : torch.Generator
        On the model's device.
    condition : mapping of str to tensor, optional
        One row per sample, for tensors and arrays.

    Raises
    ------
    TypeError, ValueError
        For data of the wrong kind, shape or dtype, empty, or with NaN.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("vp", "mlp", shape=(2,))
    >>> x, condition = next(iter(Source(torch.rand(10, 2), sde, 4, torch.Generator())))
    >>> x.shape, condition
    (torch.Size([4, 2]), {})
    """

    def __init__(
        self,
        data: Any,
        sde: ScoreSDE,
        batch_size: int,
        generator: torch.Generator,
        condition: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._like, self._shape, self._size, self._generator = sde.scale, sde.shape, batch_size, generator
        self._dtype = sde.state_dtype
        if isinstance(data, TensorDataset) and len(data.tensors) == 1:
            data = data.tensors[0]
        if isinstance(data, tuple):
            raise TypeError("data is a tuple; give the samples as data and name the rest: fit(sde, x, given={'y': y})")
        if isinstance(data, Tensor | np.ndarray | list):
            x = self._accept(data if isinstance(data, Tensor) else np.ascontiguousarray(data))
            if not isinstance(condition, Mapping | None):
                raise TypeError(f"given is a mapping such as {{'y': labels}}, got {type(condition).__name__}")
            condition = {name: torch.as_tensor(value).to(x.device) for name, value in (condition or {}).items()}
            sde.given(**condition)
            for name, value in condition.items():
                if not value.ndim or len(value) != len(x):
                    raise ValueError(f"condition {name!r} has shape {tuple(value.shape)} for {len(x)} samples")
            self.measure, self._stream = x, self._shuffled(x, condition)
            return
        if condition:
            raise TypeError("given= goes with a tensor or array; a Dataset or DataLoader yields (x, {'y': labels})")
        if isinstance(data, DataLoader | Dataset):
            if not isinstance(data, DataLoader):
                whole = isinstance(data, IterableDataset)
                order = None if whole else torch.Generator().manual_seed(generator.initial_seed() % 2**63)
                data = DataLoader(data, batch_size, shuffle=not whole, generator=order)
            self.measure, self._stream = self._first(self._epoch(data)), self._looped(data)
        elif callable(getattr(data, "sample", None)):
            self.measure, self._stream = self._draw(data, SAMPLED), self._sampled(data)
        else:
            raise TypeError(
                f"data is a tensor, array, Dataset, DataLoader or an object with .sample(n), got {type(data).__name__}"
            )

    def __iter__(self) -> Iterator[Batch]:
        """The batches."""
        return self._stream

    def _accept(self, x: Any) -> Tensor:
        sound: Tensor = as_floats(x, self._shape, "data")  # float64 data are standardized in float64, whatever the model's own
        return sound.to(self._like.device, torch.promote_types(sound.dtype, self._dtype))

    def _shuffled(self, x: Tensor, condition: dict[str, Tensor]) -> Iterator[Batch]:
        order = torch.empty(0, dtype=torch.int64, device=x.device)
        while True:
            while len(order) < self._size:
                count = -(-self._size // len(x))
                epochs = [torch.randperm(len(x), generator=self._generator, device=x.device) for _ in range(count)]
                order = torch.cat([order, *epochs])
            rows, order = order[: self._size], order[self._size :]
            yield x[rows], {name: value[rows] for name, value in condition.items()}

    def _looped(self, loader: DataLoader[Any]) -> Iterator[Batch]:
        while True:
            yield from self._epoch(loader)

    def _epoch(self, loader: DataLoader[Any]) -> Iterator[Batch]:
        with self._isolated():
            items = iter(loader)
        empty = True
        while True:
            with self._isolated():
                item = next(items, None)
            if item is None:
                break
            empty = False
            x, *rest = item if isinstance(item, list | tuple) else (item,)
            if len(rest) > 1 or (rest and not isinstance(rest[0], Mapping)):
                raise TypeError("batches are x, (x,) or (x, {'y': labels}): name the labels")
            condition = {n: v.to(self._like.device) for n, v in rest[0].items()} if rest else {}
            yield self._accept(x), condition
        if empty:
            raise ValueError("the data are empty, or can be iterated only once: a pass over them yielded no batch")

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        """Let what knows only torch's global generator draw from ours."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw_seed(self._generator))
            yield

    def _first(self, epoch: Iterator[Batch]) -> Tensor:
        """The first pass over the data, or as much of it as measures mean and scale."""
        seen = []
        for x, _ in epoch:
            seen.append(x)
            if sum(map(len, seen)) >= SAMPLED:
                break
        return torch.cat(seen)

    def _draw(self, data: Any, n: int) -> Tensor:
        if isinstance(data, torch.distributions.Distribution):
            with self._isolated():
                return self._accept(data.sample(torch.Size((n,))))
        if "generator" in inspect.signature(data.sample).parameters and self._generator.device.type == "cpu":
            return self._accept(data.sample(n, generator=self._generator))
        return self._accept(data.sample(n))

    def _sampled(self, data: Any) -> Iterator[Batch]:
        while True:
            yield from ((x, {}) for x in torch.split(self._draw(data, self._size * 64), self._size))
