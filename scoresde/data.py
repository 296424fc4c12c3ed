"""Whatever a user has, as an endless stream of training batches on the model's device, which can begin at any step.

Tensors and arrays are moved there once and shuffled by index (memory-mapped ones stay on disk); datasets and loaders are
iterated, again and again; objects with `.sample` are drawn from. What comes at a step depends on the seed, the step and the
rank alone, so that an interrupted run goes on with the data it would have seen.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from .dequantize import Dequantization, Dequantized
from .errors import TrainingError
from .files import Samples
from .inputs import as_floats, as_tensor
from .items import Items, brief, collated, following, is_row, placed
from .pairs import Pairs
from .random import CHANGES, DRAWS, ORDER, isolated, seeded
from .schema import wordy
from .sde import ScoreSDE
from .source import draw
from .standardization import Moments
from .transforms import Transform, apply, check_condition, resolve

Batch = tuple[Tensor, Tensor | None, dict[str, Tensor], int]  # samples of k steps, where their paths begin, conditions, k

SAMPLED = 50_000  # samples that measure mean and scale where the data are not at hand all at once …
LAWFUL = 2**28, 1000  # … and of a law no more than have so many numbers, but so many samples at least
PART = 2**22  # numbers that are looked at together
HASHED = 2**28  # bytes up to which data are recognized by all of their rows, and beyond by 4,096
TOGETHER = 64  # steps whose data and noise are made at once, so that small batches are not a matter of many small calls …
NUMBERS = 2**16  # … with at most so many numbers
WIDE = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}  # where PyTorch can index
EMPTY = "the data are empty, or can be iterated only once: a pass over them yielded no batch"


class Source:
    """An endless stream of training batches.

    Parameters
    ----------
    data : Tensor, array, list, Dataset, DataLoader, Pairs, files.Samples, or an object with .sample(n)
        Samples of shape `sde.shape`. What lists, datasets and loaders may yield is said in `scoresde.items`.
    sde : ScoreSDE
        Gives shape, dtype and device.
    batch_size : int
        Samples per step on all ranks together; a DataLoader brings its own, per rank.
    seed : int
    given : mapping of str to tensor, optional
        Conditions, one row per sample, for tensors and arrays.
    transforms : str, Transform, or several
        What happens to a batch; see `scoresde.transforms`.
    rank, world : int
        Which of how many processes this is.

    Attributes
    ----------
    together : int
        Steps whose data come in one batch.
    position : dict
        What `batches` needs beside the step to go on.
    about : dict
        What the data are, to be recognized by.
    names : set of str, or None
        Names of the conditions of a table; of others they are not known before they come.
    rows : int, or None
        Samples a step here; of a loader they are not known before they come.
    paired : bool
        Whether the samples come with where their paths begin.
    conditions : dict of str to tuple of int
        Names of the conditions that have been seen, with the shape of one sample's.

    Raises
    ------
    TypeError, ValueError
        For data of the wrong kind, shape or dtype, empty, or with NaN.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("vp", "mlp", shape=(2,))
    >>> x, _, condition, k = next(Source(torch.rand(10, 2), sde, 4, seed=0).batches(0))
    >>> x.shape, k
    (torch.Size([256, 2]), 64)
    """

    def __init__(
        self,
        data: Any,
        sde: ScoreSDE,
        batch_size: int,
        *,
        seed: int,
        given: Mapping[str, Tensor] | None = None,
        transforms: Any = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise ValueError(f"batch_size={batch_size} is of all {world} processes together: take a multiple of {world}")
        self._device, self._shape, self._dtype = sde.scale.device, sde.shape, sde.state_dtype
        self._seed, self._rank, self._world, self._size, self._dim = seed, rank, world, batch_size, sde.dim
        self._where = torch.device("cpu")  # what loaders make is made here, whatever the default device
        self._transforms = resolve(transforms)
        self._accepts, self._numeric, self._schema = sde.checked, sde.numeric, sde.schema
        self.conditions: dict[str, tuple[int, ...]] = {}
        self._moments: dict[str, Moments] = {}
        self._noted = False  # whether a pass over the data has told their conditions
        self.together = max(1, min(TOGETHER, NUMBERS // (batch_size // world * sde.dim)))
        self.position: dict[str, int] = {}
        self.names: set[str] | None = None
        self.rows: int | None = None if isinstance(data, DataLoader) else batch_size // world
        self._starts: Any = None
        self.paired = isinstance(data, Pairs)
        self._kind: dict[str, Any] = {"kind": type(data).__name__}
        self._split = Items(sde)
        data, given = self._as_table(data, given)
        if isinstance(data, tuple):
            raise TypeError("data is a tuple; give the samples as data and name the rest: fit(sde, x, given={'y': y})")
        if hasattr(data, "to_numpy"):  # whose .sample(n) is something else
            raise TypeError(f"data is a tensor or array, got {type(data).__name__}: give its numbers, data.to_numpy()")
        if np.ma.is_masked(data):
            raise ValueError("data is an array with masked values, which can't be learnt from: drop those rows")
        if isinstance(data, Pairs):
            if self._transforms or given:
                raise TypeError("pairs are learnt as they are: their conditions are their own, and transforms= would part them")
            self._starts, self._unit, given, data = data.latent, data.unit, data.given, data.x
        self.batches: Callable[..., Iterator[Batch]]
        if isinstance(data, Tensor | np.ndarray | list):
            self._table(data, given, sde)
            return
        if given:
            raise TypeError(
                "given= goes with a tensor or array; a Dataset or DataLoader yields (x, {'y': labels}) or (x, labels)"
            )
        if isinstance(data, DataLoader | IterableDataset):
            self.together = 1
            self._loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size // world)
            self._kind["batch_size"] = self._loader.batch_size
            if hasattr(self._loader.dataset, "__len__"):
                self._kind["samples"] = len(self._loader.dataset)
            self.batches = self._looped
        elif isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "features")):  # Hugging Face's
            self.together = 1
            self._rows: Any = data
            self._kind["samples"] = len(data)
            if not self._kind["samples"]:
                raise ValueError("the data are empty: a dataset of length 0")
            self.batches = self._fetched
        elif callable(getattr(data, "sample", None)):
            self._rows = data
            self.batches = self._drawn
        else:
            raise TypeError(
                f"data is a tensor, array, Dataset, DataLoader or an object with .sample(n), got {type(data).__name__}"
            )

    def _as_table(self, data: Any, given: Any) -> tuple[Any, Any]:
        """Return samples and conditions of data that are a table in other clothes; others as they are."""
        own: dict[str, Any] = {}
        if isinstance(data, Samples):
            data, own = data.values, dict(data.given)
        elif isinstance(data, Dequantized) and data.condition:
            if any(each.continuous for each in self._transforms):
                raise ValueError(f"data are dequantized once, got {data!r} and {self._transforms!r}")
            self._transforms = (*self._transforms, _Bins(data.dequantization))
            data, own = data.integers, dict(data.condition)
        elif isinstance(data, TensorDataset):
            data, own = self._split.split(data.tensors)
        elif isinstance(data, list) and data and not is_row(data[0], self._shape):
            data, own = self._split.split(collated(data))
        if not own:
            return data, given
        _, own = self._schema.learn(None, own)
        if isinstance(given, Mapping) and (twice := sorted(given.keys() & own.keys())):
            raise ValueError(f"the data bring the condition {twice[0]!r} themselves: leave it out of given=")
        return data, {**own, **(given or {})} if isinstance(given, Mapping | None) else given

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What the data are, to be recognized by; tables by their rows, which takes a pass over them."""
        if self.batches != self._tabled:
            return self._kind
        rows, n = self._rows, len(self._rows)
        size = n * self._dim * self._taken(slice(0, 1)).element_size()
        which, digest = torch.arange(0, n, 1 if size <= HASHED else -(-n // 4096), device="cpu"), hashlib.sha256()
        for part in torch.split(which.to(rows.device) if isinstance(rows, Tensor) else which, max(1, PART // self._dim)):
            for table in [rows] if self._starts is None else [rows, self._starts]:
                digest.update(self._taken(part, table).cpu().contiguous().numpy().tobytes())
        bins = [repr(each.dequantization) for each in self._transforms if isinstance(each, _Bins)]
        return {
            **({"dequantization": bins[0]} if bins else {}),
            "samples": n,
            "dtype": str(rows.dtype).removeprefix("torch."),
            "sha256": digest.hexdigest(),
            "given": {name: _digest(value) for name, value in self._given.items()},
        }

    def gather(self, n: int | None, most: int) -> None:
        """Let samples come together in a multiple of n; without n those of so many steps at most.

        Parameters
        ----------
        n : int, optional
        most : int

        Raises
        ------
        ValueError
            For data that come step by step.

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> source = Source(torch.rand(10, 2), sde, 4, seed=0)
        >>> source.gather(10, 16)
        >>> source.together
        5
        """
        if n is None:
            self.together = min(self.together, most)
        elif self.batches in (self._tabled, self._drawn) and self.rows:
            self.together = n // math.gcd(n, self.rows)
        elif n > (self.rows or 0):
            raise ValueError(f"size={n} goes with a tensor, array or law; of datasets and loaders, rows of a step are joined")

    def measure(self) -> Iterator[Tensor]:
        """Return the data, or as many as measure mean and scale, in parts.

        Returns
        -------
        iterator of Tensor, shape (B, *shape)

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> sum(map(len, Source(torch.rand(10, 2), sde, 4, seed=0).measure()))
        10
        """
        if self.batches == self._tabled:
            if isinstance(self._rows, Tensor) and not self._transforms:
                yield self._rows
                return
            step = max(1, PART // self._dim)
            for i in range(0, len(self._rows), step):
                yield self._changed(self._taken(slice(i, i + step)), -1, i)
        elif self.batches == self._drawn:
            numbers, least = LAWFUL
            n, step = min(SAMPLED, max(least, numbers // self._dim)), max(1, PART // self._dim)
            for i in range(0, n, step):
                yield self._draw(min(step, n - i), -1 - i, 0)
        else:
            loader = self._loader if self.batches == self._looped else DataLoader(self._rows, self._size)
            seen = 0
            for x, condition in self._items(self._begun(loader, 0), 0, 0, rank=0, world=1):  # the same on all ranks
                self._note(condition)
                yield x
                seen += len(x)
                if seen >= SAMPLED:
                    break
            if not seen:
                raise ValueError(EMPTY)

    def _note(self, condition: Mapping[str, Tensor]) -> None:
        """Keep names and shapes of conditions, and what their mean and scale are made of."""
        self._noted = True
        for name, value in condition.items():
            self.conditions[name] = tuple(value.shape[1:])
            if self._numeric(name, value):
                self._moments.setdefault(name, Moments(1)).add(value)

    def settle_conditions(self, sde: ScoreSDE) -> None:
        """Give a model mean and scale of the conditions that it has none of yet, after `settle`.

        Parameters
        ----------
        sde : ScoreSDE

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "resmlp", shape=(2,), vector=1)
        >>> given = {"vector": torch.tensor([[10.0], [30.0]])}
        >>> Source(torch.rand(2, 2), sde, 1, seed=0, given=given).settle_conditions(sde)
        >>> sde.conditions.vector.scale
        tensor([10.], dtype=torch.float64)
        """
        if self.batches == self._tabled:
            self._note(self._given)
        elif self.batches != self._drawn and not self._noted:  # mean and scale were known, and no pass was made
            for _ in self.measure():
                if not self._moments.keys() - sde.conditions.known().keys():
                    break
        for name in self._moments.keys() - sde.conditions.known().keys():
            mean, std, varies, _ = self._moments[name].statistics()
            sde.conditions.settle(name, mean, std, varies)

    def settle(self, sde: ScoreSDE) -> None:
        """Give a model that has none yet mean and scale: of the data, or of what its pairs begin in if it has no source.

        Parameters
        ----------
        sde : ScoreSDE

        Raises
        ------
        ValueError
            If pairs begin elsewhere than the model does.

        Warns
        -----
        UserWarning
            If pairs do not say what they begin in.

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> Source(torch.tensor([[0.0, 10.0], [2.0, 30.0]]), sde, 1, seed=0).settle(sde)
        >>> sde.scale
        tensor([ 1., 10.], dtype=torch.float64)
        """
        known = bool(sde.measured)
        if not self.paired or sde.source is not None:
            if not known:
                sde.standardize(self.measure())
            return
        if self._unit is not None and not known:
            for mine, theirs in zip((sde.mean, sde.scale), self._unit, strict=True):
                mine.copy_(theirs)
            sde.measured.fill_(True)
            return
        n, step = len(self._rows), max(1, PART // self._dim)
        some = [self._taken(slice(i, i + step), self._starts) for i in range(0, min(n, max(step, SAMPLED)), step)]
        some = [part.to(torch.promote_types(part.dtype, self._dtype)) for part in some]
        if not known:
            warnings.warn(
                "these pairs don't say what their x_1 are drawn from: they are taken for a Gaussian of their mean and scale; if "
                "they are not, set sde.source = pairs.latent, or their law",
                stacklevel=5,
            )
            radius = float(sde.process.radius(torch.ones((), dtype=torch.float64, device="cpu")))
            sde.standardize(part / radius for part in some)
            return
        z = torch.cat([sde.from_start(part) for part in some])
        mean, std = float(z.mean()), float(z.std(correction=0))
        if n >= 64 and (abs(mean) > 0.25 or not 0.75 < std < 1.33):
            raise ValueError(
                f"these pairs begin in another law than this model does: their x_1 have mean {mean:.2g} and standard deviation "
                f"{std:.2g} in its units; set sde.source = pairs.latent, or train a new model on them"
            )

    def some(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return about n rows of a table, transformed, each as often as the others: evenly spaced ones, or all several times.

        Parameters
        ----------
        n : int

        Returns
        -------
        x : Tensor, shape (B, *shape), with n/2 < B ≤ 2n
        condition : dict of str to Tensor

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> Source(torch.rand(3, 2), sde, 4, seed=0).some(100)[0].shape
        torch.Size([102, 2])
        """
        rows = torch.arange(0, len(self._rows), max(1, len(self._rows) // n), device="cpu")
        rows = rows.repeat(max(1, -(-n // len(rows)) if len(rows) < n else 1))
        here = rows.to(self._device)
        x = self._taken(here if isinstance(self._rows, Tensor) else rows)
        return self._changed(x, -2, 0), {name: value[here] for name, value in self._given.items()}

    # ------------------------------------------------------------------ tensors and arrays

    def _table(self, data: Any, given: Mapping[str, Tensor] | None, sde: ScoreSDE) -> None:
        mapped = isinstance(data, np.memmap)
        if not mapped:
            data = as_tensor(data, "data", exact=True).detach()
            data = data.to(WIDE.get(data.dtype, data.dtype))
            if data.is_floating_point() or not self._transforms:
                data = as_floats(data, self._shape, "data")
                # float64 data are standardized in float64, whatever the model's own
                data = data.to(self._device, torch.promote_types(data.dtype, self._dtype))
            else:
                data = data.to(self._device)
        self._rows = data
        if isinstance(self._starts, Tensor):
            self._starts = self._starts.to(self._device, torch.promote_types(self._starts.dtype, self._dtype))
        n = len(data) if data.ndim else 0
        if tuple(data.shape[1:]) != self._shape or not n:
            wanted = ", ".join(["n", *map(str, self._shape)])
            raise ValueError(f"data have shape {tuple(data.shape)}, wanted ({wanted}), n at least 1")
        step = max(1, PART // self._dim)
        for i in range(0, n, step) if mapped else [0]:  # what is read later was looked at before
            part = self._taken(slice(i, i + (step if mapped else 1)))
            self._changed(part, -1, i, rows=range(i, i + len(part)))
        if not isinstance(given, Mapping | None):
            raise TypeError(f"given is a mapping such as {{'y': labels}}, got {type(given).__name__}")
        self._given = {name: value.to(self._device) for name, value in sde.checked(given or {}, n).items()}
        self.names = set(self._given)
        check_condition(self._transforms, self._given)
        self.batches = self._tabled

    def _taken(self, rows: slice | Tensor, table: Any = None) -> Tensor:
        table = self._rows if table is None else table
        if isinstance(table, Tensor):
            return table[rows] if isinstance(rows, slice) else table.index_select(0, rows)
        part = table[rows if isinstance(rows, slice) else rows.numpy()]
        # in the machine's byte order, and never a view of a file that must not be written to
        found = torch.from_numpy(np.require(part, part.dtype.newbyteorder("="), ["C", "W"]))
        return found.to(self._device, WIDE.get(found.dtype, found.dtype))

    def _tabled(self, step: int, position: Mapping[str, int] | None = None) -> Iterator[Batch]:
        k, size, share = self.together, self._size, self._size // self._world
        device = self._device if isinstance(self._rows, Tensor) else torch.device("cpu")
        order = _Order(len(self._rows), self._seed, device)
        for group in itertools.count(step // k):
            rows = order(group * k * size, (group + 1) * k * size)
            if self._world > 1:
                rows = rows.view(k, size)[:, self._rank * share : (self._rank + 1) * share].flatten()
            x = self._taken(rows)
            if self._transforms or not isinstance(self._rows, Tensor):
                x = self._changed(x, group, self._rank)
            start = None if self._starts is None else self._taken(rows, self._starts)
            start = start if start is None else start.to(torch.promote_types(start.dtype, self._dtype))
            rows = rows.to(self._device)
            yield x, start, {name: value.index_select(0, rows) for name, value in self._given.items()}, k

    def _changed(self, x: Tensor, *words: int, what: str = "data", rows: Sequence[int] | None = None) -> Tensor:
        x = as_tensor(x, what)
        if self._transforms:
            x = apply(self._transforms, x, seeded(x.device, self._seed, CHANGES, *words))
        x = as_floats(x, self._shape, what, rows)
        return x.to(self._device, torch.promote_types(x.dtype, self._dtype))

    # ------------------------------------------------------------------ datasets and loaders

    def _fetched(self, step: int, position: Mapping[str, int] | None = None) -> Iterator[Batch]:
        """Batches of a map-style dataset, in an order of our own."""
        order, share = _Order(len(self._rows), self._seed, torch.device("cpu")), self._size // self._world

        def batches() -> Iterator[list[int]]:
            for i in itertools.count(step):
                start = i * self._size + self._rank * share
                yield order(start, start + share).tolist()

        def rows(i: int) -> list[int]:
            return order(i * self._size + self._rank * share, i * self._size + (self._rank + 1) * share).tolist()

        with torch.device(self._where):
            items = iter(DataLoader(self._rows, batch_sampler=_Sampler(batches)))
        for x, condition in self._items(items, 0, step, rank=self._rank, world=1, rows=rows):
            yield x, None, condition, 1

    def _looped(self, step: int, position: Mapping[str, int] | None = None) -> Iterator[Batch]:
        """Batches of a loader, epoch after epoch; those before the position are passed over."""
        epoch, skip = (position or {}).get("epoch", 0), (position or {}).get("batch", 0)
        while True:
            items, empty = self._begun(self._loader, epoch), True
            for i, (x, condition) in enumerate(self._items(items, epoch, 0, skip, rank=self._rank, world=self._world)):
                empty = False
                self.position = {"epoch": epoch, "batch": skip + i + 1}
                yield x, None, condition, 1
            if empty and not skip:
                raise ValueError(EMPTY)
            epoch, skip = epoch + 1, 0

    def _begun(self, loader: Any, epoch: int) -> Iterator[Any]:
        """A pass over a loader, whose shuffle and workers are seeded by us."""
        with isolated() as seed:
            seed(self._seed, ORDER, epoch, everything=True)
            inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
            for generator in {getattr(part, "generator", None) for part in (loader, loader.sampler, inner)}:
                if generator is not None:
                    generator.manual_seed(_word(self._seed, epoch))
                    self._where = generator.device
            with torch.device(self._where):
                return iter(loader)

    def _items(
        self,
        items: Iterator[Any],
        epoch: int,
        first: int,
        skip: int = 0,
        *,
        rank: int,
        world: int,
        rows: Callable[[int], Sequence[int]] | None = None,
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """One of every `world` items, checked and moved; they may use the global generators, seeded item by item."""
        of = "" if self.batches == self._fetched else f" of epoch {epoch}"
        mapped = self.batches == self._fetched or not isinstance(self._loader.dataset, IterableDataset)
        items = following(items, of, first=first, mapped=mapped)
        for i in itertools.count(first):
            with isolated() as seed:
                seed(self._seed, DRAWS, epoch, i, rank if world == 1 else 0, everything=True)
                with torch.device(self._where):
                    several = list(itertools.islice(items, world))
            if len(several) < world:
                return
            if i < skip:
                continue
            mine = rank if world > 1 else 0
            with placed(f"batch {i * world + mine}{of}"):
                x, condition = self._split.split(several[mine])
                x = x.detach().to(self._device) if isinstance(x, Tensor) else x
                x = self._changed(x, epoch, i, rank, rows=None if rows is None else rows(i))
                condition = self._conditions(condition, len(x))
            yield x, condition

    def _conditions(self, condition: dict[str, Any], n: int) -> dict[str, Tensor]:
        """Conditions of a batch of n, checked and moved."""
        for name, value in condition.items():
            if not isinstance(value, Tensor) or value.shape[:1] != (n,):
                came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
                if wordy(value):
                    raise TypeError(
                        f"condition {name!r} has words such as {value[0]!r}: a data set is to number them from 0, "
                        f"or give all samples at once, fit(sde, x, given={{{name!r}: words}})"
                    )
                raise TypeError(f"condition {name!r} of a batch of {n} has {came}, wanted a tensor, one row per sample")
        check_condition(self._transforms, condition)
        condition = self._accepts(condition, n)  # before they are on a device, where a wrong label is hard to name
        return {name: value.to(self._device) for name, value in condition.items()}

    # ------------------------------------------------------------------ laws

    def _drawn(self, step: int, position: Mapping[str, int] | None = None) -> Iterator[Batch]:
        k, share = self.together, self._size // self._world
        for group in itertools.count(step // k):
            yield self._draw(share * k, group, self._rank), None, {}, k

    def _draw(self, n: int, group: int, rank: int) -> Tensor:
        what = f"{type(self._rows).__name__}.sample({n})"
        try:
            x = draw(self._rows, n, self._seed, DRAWS, group, rank)
        except Exception as error:
            raise TrainingError(f"the data failed: {what} raised {brief(error)}") from error
        x = self._changed(x.detach().to(self._device) if isinstance(x, Tensor) else x, group, rank, what=what)
        if len(x) != n:
            raise ValueError(f"{what} returned {len(x)} samples")
        return x


class _Bins(Transform):
    """Noise of any dequantization inside the bins of integers."""

    continuous = True
    moves = False

    def __init__(self, dequantization: Dequantization) -> None:
        self.dequantization = dequantization

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return (x + u)/L."""
        q = torch.rand(x.shape, generator=generator, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        return self.dequantization._add(x, q)[0]

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Return −D·log L, that of uniform noise."""
        return -math.prod(shape) * math.log(self.dequantization.levels)


class _Sampler:
    """Lists of indices, for a DataLoader."""

    def __init__(self, batches: Callable[[], Iterator[list[int]]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return self._batches()


class _Order:
    """Shuffles of n rows, one after the other, as one endless sequence that can be looked up anywhere."""

    def __init__(self, n: int, seed: int, device: torch.device) -> None:
        self._n, self._seed, self._device = n, seed, device
        self._several = max(1, 4096 // n)  # shuffles made at once
        self._known = (-1, torch.empty(0, device="cpu"))

    def __call__(self, start: int, stop: int) -> Tensor:
        size = self._n * self._several
        parts = []
        for block in range(start // size, -(-stop // size)):
            if self._known[0] != block:
                g = seeded(self._device, self._seed, ORDER, block)
                if self._several == 1:
                    rows = torch.randperm(self._n, generator=g, device=self._device)
                else:
                    rows = torch.rand(self._several, self._n, generator=g, device=self._device).argsort(1).flatten()
                self._known = block, rows
            parts.append(self._known[1][max(start - block * size, 0) : stop - block * size])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.cpu().double().contiguous().numpy().tobytes()).hexdigest()


def _word(*words: int) -> int:
    return seeded("cpu", *words).initial_seed()
