"""The samples of a call, batch by batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..common.checks import check_budget, whole_number
from ..common.errors import SolverError
from ..common.progress import part
from ..common.random import BLOCK
from ..common.sharding import alone, gather, share
from ..model.eval_mode import evaluating
from ..model.protocol import Model

BATCH_STATES = 8192
"""States evaluated at once by default: enough to be fast, few enough for a cache."""

BATCH_NUMBERS = 2**22
"""Numbers in the states evaluated at once by default, at most."""


def check_count(sde: Model, n: int | None, held: int = 1) -> int:
    """Return n as an int; raise unless so many samples fit into memory, `held` times."""
    n = whole_number("n", n)
    what = f"n={n} samples"
    if held > 2:
        what += f" at {held} times"
    nbytes = float(n) * sde.dim * sde.state_dtype.itemsize * held
    hint = "draw fewer, or write them to disk in parts"
    check_budget(what, nbytes, device=sde.scale.device, hint=hint)
    return n


def batch_ranges(
    sde: Model,
    n: int,
    batch_size: int | None,
    cost: int = 1,
    calls: int = 1,
    held: int = 1,
    width: int = 1,
) -> Iterator[tuple[int, int]]:
    """Cut n samples into batches (start, stop); inside `sharded()`, this rank's share of them.

    By default smaller where a sample is `cost` states, each with `width` times its own numbers.
    """
    n = check_count(sde, n, held)
    if batch_size is not None:
        size = whole_number("batch_size", batch_size)
    else:
        size = max(1, min(BATCH_STATES // cost, BATCH_NUMBERS // (cost * width * sde.dim)))
        size = max(BLOCK * (size // BLOCK), min(size, BLOCK))
    low, high = share(n)
    batches = -(-(high - low) // size)
    check_budget(f"{high - low} samples at {calls} calls a batch", calls=calls * batches)
    return ((start, min(start + size, high)) for start in range(low, high, size))


def map_batches(
    sde: Model,
    n: int,
    batches: Iterator[tuple[int, int]],
    work: Callable[[Model, int, int], Sequence[Tensor]],
) -> list[Tensor]:
    """Call work(model, start, stop) on every batch, in eval mode, and join the columns."""
    sde.warn_unconditional()
    parts = []
    with evaluating(sde), alone():
        for start, stop in batches:
            with name_failed_batch(start, stop, n), part(start, stop, n, "sample"):
                parts.append(work(sde.slice_conditions(start, stop, n), start, stop))
    return gather([torch.cat(column) for column in zip(*parts, strict=True)], n)


@contextlib.contextmanager
def name_failed_batch(start: int, stop: int, n: int) -> Iterator[None]:
    """Add to a `SolverError` which samples of the call the failed batch holds."""
    try:
        yield
    except SolverError as error:
        error.first = start
        if stop - start < n:
            error.args = (f"{error} (the batch of samples {start} to {stop - 1})",)
        raise
