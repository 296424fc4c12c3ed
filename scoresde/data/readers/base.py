"""What all readers of training data share: batches, one process's share, and how samples enter."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...common.inputs import as_floats, as_tensor
from ...common.random import CHANGES, seeded
from ...model.class_words import wordy
from ...model.condition_scales import checked
from ...model.trainable import Trainable
from ..transforms import Transform, apply, check_condition

MEASURED_SAMPLES = 50_000
"""Samples from which mean and scale are measured if not all data are read."""
PART_NUMBERS = 2**22
"""Numbers that are read at once in a pass over the data."""
READ_STEPS = 64
"""Most steps that one batch holds: small batches would be a matter of many small calls …"""
READ_NUMBERS = 2**16
"""… and most numbers of one that holds several steps."""


class Batch(NamedTuple):
    """Samples of one or several steps, one after another."""

    x: Tensor
    """Samples (B, *shape) in the units of the data."""
    start: Tensor | None
    """Where their paths begin at t = 1 (B, *shape), of data that come in pairs."""
    condition: dict[str, Tensor]
    """Conditions, with a row per sample."""
    steps: int
    """Number of steps, each with B / steps samples."""


@dataclass(frozen=True)
class Share:
    """One process's share of the batches of a run, and the seed of all processes."""

    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def rows(self) -> int:
        """Samples of a step that this process reads."""
        return self.batch_size // self.world


class Entrance:
    """Checks samples and conditions, transforms them, and moves them to the model's device."""

    def __init__(self, sde: Trainable, transforms: tuple[Transform, ...], seed: int) -> None:
        self.device = sde.scale.device
        self.shape = sde.shape
        self.dim = sde.dim
        self.gaps = sde.interface.takes_gaps
        self.transforms = transforms
        self._dtype = sde.state_dtype
        self._seed = seed
        self._check_accepted = functools.partial(checked, sde)

    @property
    def taken_shape(self) -> tuple[int, ...]:
        """Shape of samples before they are transformed."""
        first = self.transforms[0].takes if self.transforms else None
        return self.shape if first is None else first

    @property
    def part_rows(self) -> int:
        """Samples that are read at once in a pass over the data."""
        return max(1, PART_NUMBERS // self.dim)

    def promoted(self, dtype: torch.dtype) -> torch.dtype:
        """The model's dtype, or a wider one of the data: float64 is standardized in float64."""
        return torch.promote_types(dtype, self._dtype)

    def samples(
        self, x: Any, *words: int, what: str = "data", rows: Sequence[int] | None = None
    ) -> Tensor:
        """Transform and check samples (B, *shape); `words` seed transforms, `rows` number rows."""
        x = as_tensor(x, what)
        if self.transforms:
            x = apply(self.transforms, x, seeded(x.device, self._seed, CHANGES, *words))
        found = as_floats(x, self.shape, what, rows, gaps=self.gaps)
        return found.to(self.device, self.promoted(found.dtype))

    def conditions(self, condition: Mapping[str, Any], n: int) -> dict[str, Tensor]:
        """Check the conditions of a batch of n samples."""
        for name, value in condition.items():
            if not isinstance(value, Tensor) or value.shape[:1] != (n,):
                came = f"type {type(value).__name__}"
                if isinstance(value, Tensor):
                    came = f"shape {tuple(value.shape)}"
                if wordy(value):
                    raise TypeError(
                        f"condition {name!r} has words such as {value[0]!r}: a data set numbers "
                        "them from 0; or give all samples at once, "
                        f"fit(sde, x, given={{{name!r}: words}})"
                    )
                raise TypeError(
                    f"condition {name!r} of a batch of {n} has {came}, wanted a tensor, one row "
                    "per sample"
                )
        check_condition(self.transforms, condition)
        # On the CPU still: an accelerator's error about a wrong label would not name it.
        found = self._check_accepted(condition, n)
        return {name: value.to(self.device) for name, value in found.items()}

    def table_conditions(self, given: Mapping[str, Any] | None, n: int) -> dict[str, Tensor]:
        """Check the conditions of a table of n samples."""
        if not isinstance(given, Mapping | None):
            raise TypeError(
                f"given is a mapping such as {{'y': labels}}, got {type(given).__name__}"
            )
        accepted = self._check_accepted(given or {}, n)
        found = {name: value.to(self.device) for name, value in accepted.items()}
        check_condition(self.transforms, found)
        return found


class Reader(abc.ABC):
    """Reads one kind of data as endless batches, which depend on seed, step and rank alone."""

    steps_at_once: int = 1
    """Steps that each batch holds."""
    rows_per_step: int | None
    """Samples of a step in this process; None where only the data know."""
    joins_steps: bool = False
    """Whether a batch can hold any number of steps."""
    given: Mapping[str, Tensor] | None = None
    """Conditions of all samples; None where they come with each batch."""
    condition_names: set[str] | None = None
    """Names of conditions; None where only the batches tell."""
    position: Mapping[str, int] = {}
    """Where the last batch was in the data; empty where the step says it."""

    def __init__(self, share: Share, entrance: Entrance) -> None:
        self.share = share
        self.entrance = entrance
        self.rows_per_step = share.rows
        if self.joins_steps:
            fitting = READ_NUMBERS // (share.rows * entrance.dim)
            self.steps_at_once = max(1, min(READ_STEPS, fitting))

    @abc.abstractmethod
    def batches(self, step: int, position: Mapping[str, int] | None = None) -> Iterator[Batch]:
        """Batches from that of `step` on; `position` is what the reader returned for it before."""

    @abc.abstractmethod
    def measured(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """Samples to measure mean and scale from, in parts, with conditions unless `given`."""

    def whole(self) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """One pass over all samples, or over those measured where there is no end of them."""
        return self.measured()

    @abc.abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What to recognize the data by, in plain JSON."""

    def read_multiples(self, n: int | None, most: int) -> None:
        """Let batches hold a multiple of n samples; without n, at most `most` steps."""
        if n is None:
            self.steps_at_once = min(self.steps_at_once, most)
        elif self.joins_steps and self.rows_per_step:
            self.steps_at_once = n // math.gcd(n, self.rows_per_step)
        elif n > (self.rows_per_step or 0):
            raise ValueError(
                f"size={n} needs a tensor, an array or an object with .sample; of datasets and "
                "loaders, only rows of the same step are joined"
            )

    def evenly_spaced(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        """About n samples of a table, with their conditions; other data raise TypeError."""
        raise TypeError(f"{type(self).__name__} has no rows to choose from")
