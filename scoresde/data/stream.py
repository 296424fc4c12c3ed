"""Any kind of training data as one endless stream of batches that can begin at any step.

`TrainingStream` finds out what kind of data it is given and leaves reading to one of
`scoresde.data.readers`. It measures mean and scale of samples and conditions from what these read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ..density.dequantize import Dequantized
from ..model.condition_measures import ConditionMeasure
from ..model.gaps import standardize_observed
from ..model.score_sde import ScoreSDE
from ..model.trainable import Trainable
from .files import Samples
from .items import ItemSplitter, collated, is_row
from .kept_rows import NAMES, KeptRows, Rows, chosen_rows
from .pairs import Pairs
from .readers import (
    Batch,
    DatasetReader,
    LoaderReader,
    PairsReader,
    Reader,
    SamplerReader,
    Share,
    TableReader,
)
from .readers.base import Entrance
from .transforms import DequantizeBy, Transform, resolve


class TrainingStream:
    """An endless stream of training batches on the model's device."""

    def __init__(
        self,
        data: Any,
        sde: Trainable,
        batch_size: int,
        *,
        seed: int,
        given: Mapping[str, Any] | None = None,
        transforms: Any = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise ValueError(
                f"batch_size={batch_size} is of all {world} processes together: take a multiple of "
                f"{world}"
            )
        share = Share(batch_size, seed, rank, world)
        self.reader = _reader(data, sde, share, given, resolve(transforms))
        self.conditions: dict[str, tuple[int, ...]] = {}
        """Shapes, without the batch, of the conditions that were seen."""
        self._numeric = sde.interface.is_numeric
        self._measures: dict[str, ConditionMeasure] = {}
        self._saw_conditions = False
        self._some = KeptRows() if _wants_rows(sde) else None

    @property
    def paired(self) -> bool:
        """Whether samples come with where their paths begin."""
        return isinstance(self.reader, PairsReader)

    @property
    def condition_names(self) -> set[str] | None:
        """Names of conditions; None where only the batches tell."""
        return self.reader.condition_names

    @property
    def rows_per_step(self) -> int | None:
        """Samples of a step in this process; None where only the data know."""
        return self.reader.rows_per_step

    @property
    def steps_at_once(self) -> int:
        """Steps that each batch holds."""
        return self.reader.steps_at_once

    @property
    def position(self) -> Mapping[str, int]:
        """Where the last batch was in the data; empty where the step says it."""
        return self.reader.position

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What to recognize the data by, in plain JSON."""
        return self.reader.fingerprint()

    def batches(self, step: int, position: Mapping[str, int] | None = None) -> Iterator[Batch]:
        """Batches from that of `step` on; `position` is what the stream returned for it before."""
        return self.reader.batches(step, position)

    def read_multiples(self, n: int | None, most: int) -> None:
        """Let batches hold a multiple of n samples; without n, at most `most` steps."""
        self.reader.read_multiples(n, most)

    def evenly_spaced(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        """About n samples of a table, with their conditions; see `TableReader.evenly_spaced`."""
        return self.reader.evenly_spaced(n)

    def measure(self) -> Iterator[Tensor]:
        """The data, or as many as measure mean and scale, in parts."""
        for x, condition in self.reader.measured():
            if self.reader.given is None:
                self._see_conditions(condition)
                if self._some is not None:
                    self._some.add(x, condition)
            yield x

    def standardize(self, sde: Trainable) -> None:
        """Set mean and scale of a model without them, from the data, or from the x_1 of pairs."""
        if isinstance(self.reader, PairsReader) and sde.source is None:
            self.reader.standardize(sde)
        elif not bool(sde.measured) and sde.interface.takes_gaps:
            standardize_observed(sde, self.measure())
        elif not bool(sde.measured):
            sde.standardize(self.measure())

    def standardize_conditions(self, sde: Trainable) -> None:
        """Set mean and scale of conditions that the model lacks, after `standardize`."""
        known = sde.conditions.known().keys()
        if self.reader.given is not None:
            self._see_conditions(self.reader.given)
        elif not self._saw_conditions:  # the model had mean and scale, and no pass was made
            for _ in self.measure():
                if self._some is None and not self._measures.keys() - known:
                    break
        for name in self._measures.keys() - known:
            self._measures[name].settle(sde.conditions, name)

    def some_rows(self, size: int, all_rows: bool = False) -> Rows | None:
        """Some training rows, or of all rows, with their `vector` and `y`.

        `size` numbers will be made of each. None for a stream none of which was kept.
        """
        reader = self.reader
        if not isinstance(reader, TableReader):
            return None if self._some is None else self._some.rows(size)
        rows = torch.arange(len(reader.rows), device="cpu")
        if reader.kept is not None and not all_rows:
            rows = reader.kept.cpu()
        x, condition = reader.chosen(chosen_rows(rows, size))
        return x, {name: condition[name] for name in NAMES if name in condition}

    def _see_conditions(self, condition: Mapping[str, Tensor]) -> None:
        """Note shapes of conditions, and add to the measures of numeric ones."""
        self._saw_conditions = True
        for name, value in condition.items():
            self.conditions[name] = tuple(value.shape[1:])
            if self._numeric(name, value):
                self._measures.setdefault(name, ConditionMeasure()).add(value)


def _wants_rows(sde: Trainable) -> bool:
    """Whether the Gaussian of data under conditions is to be measured for a new model."""
    if not isinstance(sde, ScoreSDE) or sde.learnt is not None or sde.ema is not None:
        return False
    return getattr(sde.net, "conditional_gaussian", None) is not None


def _reader(
    data: Any, sde: Trainable, share: Share, given: Any, transforms: tuple[Transform, ...]
) -> Reader:
    """The reader for what a user gave as data."""
    splitter = ItemSplitter(sde)
    data, own, transforms = _as_table(data, splitter, sde.shape, transforms)
    if own:
        _, own = sde.schema.learn(None, own)
        given = _joined(given, own)
    entrance = Entrance(sde, transforms, share.seed)
    _check_kind(data)
    if isinstance(data, Pairs):
        if transforms or given:
            raise TypeError(
                "pairs bring their own conditions, and transforms= would separate x from latent: "
                "leave given= and transforms= out"
            )
        return PairsReader(data, share, entrance)
    if isinstance(data, Tensor | np.ndarray | list):
        return TableReader(data, given, share, entrance)
    if given:
        raise TypeError(
            "given= goes with a tensor or array; a Dataset or DataLoader yields (x, {'y': labels}) "
            "or (x, labels)"
        )
    if isinstance(data, DataLoader | IterableDataset):
        return LoaderReader(data, share, entrance, splitter)
    hugging_face = hasattr(data, "__getitem__") and hasattr(data, "features")
    if isinstance(data, Dataset) or hugging_face:
        return DatasetReader(data, share, entrance, splitter)
    if callable(getattr(data, "sample", None)):
        return SamplerReader(data, share, entrance)
    raise TypeError(
        f"data is a tensor, array, Dataset, DataLoader or an object with .sample(n), got "
        f"{type(data).__name__}"
    )


def _check_kind(data: Any) -> None:
    """Raise for data that look like a kind that can be read, and are another."""
    if isinstance(data, tuple):
        raise TypeError(
            "data is a tuple; give the samples as data and name the rest: fit(sde, x, "
            "given={'y': y})"
        )
    if hasattr(data, "to_numpy"):  # a data frame, whose .sample(n) is something else
        raise TypeError(
            f"data is a tensor or array, got {type(data).__name__}: give its numbers, "
            "data.to_numpy()"
        )
    if np.ma.is_masked(data):
        raise ValueError(
            "data is an array with masked values, which can't be learnt from: drop those rows"
        )


def _as_table(
    data: Any,
    splitter: ItemSplitter,
    shape: tuple[int, ...],
    transforms: tuple[Transform, ...],
) -> tuple[Any, dict[str, Any], tuple[Transform, ...]]:
    """Samples, conditions and transforms of data that hold a table; other data as they are."""
    if isinstance(data, Samples):
        return data.values, dict(data.given), transforms
    if isinstance(data, Dequantized) and data.condition:
        if any(transform.continuous for transform in transforms):
            raise ValueError(f"data are dequantized once, got {data!r} and {transforms!r}")
        transforms = (*transforms, DequantizeBy(data.dequantization))
        return data.integers, dict(data.condition), transforms
    if isinstance(data, TensorDataset):
        return *splitter.split(data.tensors), transforms
    if isinstance(data, list) and data and not is_row(data[0], shape):
        return *splitter.split(collated(data)), transforms
    return data, {}, transforms


def _joined(given: Any, own: dict[str, Any]) -> Any:
    """Conditions of the data and of given=, which must not have the same names."""
    if not isinstance(given, Mapping | None):
        return given
    given = given or {}
    twice = sorted(given.keys() & own.keys())
    if twice:
        raise ValueError(
            f"the data bring the condition {twice[0]!r} already: leave it out of given="
        )
    return {**own, **given}
