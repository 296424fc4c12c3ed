"""The training batches with the other ends of their paths, joined beside the training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.inputs import as_floats, as_tensor
from ..common.random import PAIRS, STARTS, seeded
from ..common.user_warnings import warn
from ..data.readers import Batch
from ..data.stream import TrainingStream
from ..model.source import draw
from .couplings import Array, Coupling

JOINED_STEPS = 16
"""Steps that are joined in one go, before the first of them is taken."""

SLOW_ROWS = 1024
"""Rows whose assignment takes a noticeable part of a second."""

ASSIGNMENT_SECONDS = 2e-10
"""Of an assignment of n rows, over n³."""

Position = Mapping[str, int]
Step = tuple[Tensor, Tensor | None, dict[str, Tensor], list[int]]


@dataclass
class _Group:
    """Batches of several steps as one: both ends of paths, and how they are to be joined."""

    position: dict[str, int]
    """In the data, before these batches."""
    x0: Tensor
    eps: Tensor | None
    condition: dict[str, Tensor]
    sizes: list[int]
    which: Future[Tensor] | None = None

    def ends(self) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Return x0, ε and the conditions of these rows, joined."""
        if self.which is None or self.eps is None:
            return self.x0, self.eps, self.condition
        rows = self.which.result().to(self.eps.device)
        return self.x0, self.eps.index_select(0, rows), self.condition


class Pairing:
    """An endless stream of training batches with what their paths begin in."""

    def __init__(
        self, source: TrainingStream, sde: Any, coupling: Coupling, seed: int, rank: int
    ) -> None:
        self.seed = seed
        self.source = source
        self._sde = sde
        self._coupling = coupling
        self._rank = rank
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self._checked = False
        # the step after the pairs in use, whether they are used up then, and the positions before
        # and after them
        self._span: tuple[int, bool, dict[str, int], dict[str, int]] = 0, False, {}, {}
        if not coupling.joins:
            return
        if source.paired:
            raise TypeError("these data are pairs already; leave out coupling=")
        if not sde.process.ends_in_noise:
            raise ValueError(
                f"a coupling joins the ends of paths, and {sde.process} has none at t = 1; try "
                "RectifiedFlow()"
            )
        source.read_multiples(coupling.size, JOINED_STEPS)
        if source.condition_names is not None:
            self._check(source.condition_names, coupling.size or source.rows_per_step or 0)
        self._pool = ThreadPoolExecutor(1, "scoresde-coupling")

    def _check(self, names: set[str], size: int) -> None:
        """Raise or warn, once, if the data do not suit the coupling."""
        self._checked = True
        self._coupling.check(names)
        if size > SLOW_ROWS:
            seconds = ASSIGNMENT_SECONDS * size**3
            warn(
                f"joining {size} rows takes about {seconds:.2g} s on one core, and "
                f"{size**2 * 8e-6:.0f} MB, each time; try a smaller size=, or batch_size="
            )

    def batches(
        self, step: int, position: Position | None = None, stop: float = math.inf
    ) -> Iterator[Step]:
        """Yield (x0, ε or None, conditions, sizes) of several steps at once, after `step`.

        An ε of None is left to the caller to draw.
        """
        reuse = self._coupling.reuse if self._coupling.joins else 1
        several = 1
        if self.source.steps_at_once == 1 and stop < math.inf:
            # Join several batches of those that come step by step, so that each row meets others
            # every time it is used.
            several = max(1, min(reuse, math.ceil(stop / reuse)))
        k = self.source.steps_at_once * several
        first = step // k // reuse
        groups = self._groups(first, k, reuse, several, position or {}, stop)
        for number, (group, after) in zip(itertools.count(first), groups, strict=False):
            ends = group.ends()
            used = step // k - first * reuse if number == first else 0
            for use in range(used, reuse):
                taken = ends if not use else self._shuffled(ends, number, use)
                last = use + 1 == reuse
                self._span = (number * reuse + use + 1) * k, last, group.position, after
                yield *taken, group.sizes

    def _groups(
        self,
        first: int,
        k: int,
        reuse: int,
        several: int,
        position: Position,
        stop: float,
    ) -> Iterator[tuple[_Group, dict[str, int]]]:
        """Yield groups and the positions after them; the next is joined while one is learnt."""
        ready: list[_Group] = []
        taken = self.source.batches(first * k, position)
        before = dict(position)
        for number in itertools.count(first):
            ahead = (number + 1) * k * reuse < stop
            while not ready or (self._pool and len(ready) < 2 and ahead):
                batches = [next(taken) for _ in range(several)]
                ready.append(self._begun(batches, number + len(ready), before))
                before = dict(self.source.position)
            group = ready.pop(0)
            yield group, ready[0].position if ready else before

    def _shuffled(self, ends: Any, number: int, use: int) -> Any:
        """Return pairs in another order."""
        x0, eps, condition = ends
        g = seeded(x0.device, self.seed, PAIRS, number, use, self._rank)
        order = torch.randperm(len(x0), generator=g, device=x0.device)
        condition = {name: value.index_select(0, order) for name, value in condition.items()}
        return x0.index_select(0, order), eps.index_select(0, order), condition

    def at(self, step: int) -> dict[str, int]:
        """Return the position from which `batches` goes on after a step.

        Within a group it begins with that group again.
        """
        end, over, before, after = self._span
        return after if over and step >= end else before

    def _begun(self, batches: list[Batch], number: int, position: dict[str, int]) -> _Group:
        """Return batches as one group, whose rows are being joined."""
        x0, start, condition, _ = batches[0]
        sizes = [len(x0) // self.source.steps_at_once] * self.source.steps_at_once
        if len(batches) > 1:
            x0 = torch.cat([batch[0] for batch in batches])
            sizes = [len(batch[0]) for batch in batches]
            condition = {
                name: torch.cat([batch[2][name] for batch in batches]) for name in condition
            }
        for name, value in condition.items():
            self._sde.conditions.widen(name, value)
        words = self.seed, STARTS, number, self._rank
        eps = self._starts(x0, start, words)
        group = _Group(position, x0, eps, condition, sizes)
        if self._pool is None or eps is None:
            return group
        size = self._coupling.size
        if not self._checked:
            self._check(set(condition), size or sizes[0])
        blocks = sizes if size is None else [size] * -(-len(x0) // size)
        data = self._sde.from_data(x0).detach().cpu().double().numpy()
        noise = eps.detach().cpu().double().numpy()
        given = {}
        for name, value in condition.items():
            numbers = self._sde.conditions.standardize(name, value)
            given[name] = numbers.detach().cpu().numpy()
        group.which = self._pool.submit(self._joined, data, noise, given, blocks, words)
        return group

    def _starts(self, x0: Tensor, start: Tensor | None, words: tuple[int, ...]) -> Tensor | None:
        """Return the states at t = 1 that samples are joined with; None for independent noise."""
        sde = self._sde
        if start is not None:
            states: Tensor = sde.from_start(start)
            return states.to(sde.state_dtype)
        if sde.source is not None:
            drawn = as_tensor(draw(sde.source, len(x0), *words), "source.sample(n)")
            drawn = as_floats(drawn, sde.shape, "source.sample(n)").to(x0.device)
            states = sde.from_start(drawn)
            return states.to(sde.state_dtype)
        if self._pool is None:
            return None
        g = seeded(x0.device, *words)
        shape = len(x0), sde.dim
        return torch.randn(shape, generator=g, device=x0.device, dtype=sde.state_dtype)

    def _joined(
        self,
        x0: Array,
        x1: Array,
        condition: dict[str, NDArray[Any]],
        sizes: list[int],
        words: tuple[int, ...],
    ) -> Tensor:
        """Return the row of x1 that goes with each row of x0, block by block."""
        rng = np.random.default_rng(words)
        parts = []
        for start, stop in itertools.pairwise(itertools.accumulate(sizes, initial=0)):
            if self._closed:
                raise RuntimeError("the training has ended")
            rows = slice(start, stop)
            given = {name: value[rows] for name, value in condition.items()}
            found = np.asarray(self._coupling.join(x0[rows], x1[rows], given, rng))
            self._check_rows(found, len(x0[rows]))
            parts.append(start + found)
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    def _check_rows(self, found: NDArray[Any], b: int) -> None:
        """Raise ValueError unless a coupling returned b rows of b."""
        integers = found.shape == (b,) and found.dtype.kind in "iu"
        if not integers or found.min() < 0 or found.max() >= b:
            raise ValueError(
                f"{type(self._coupling).__name__}.join returned {found.dtype} of shape "
                f"{found.shape} for {b} rows; wanted the row of x1 that goes with each of x0: "
                f"integers from 0 to {b - 1}, of shape ({b},)"
            )

    def close(self) -> None:
        """Stop the worker."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
