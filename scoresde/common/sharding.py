r"""One call over several processes: each computes a share of the samples, and all get all of them.

Of n samples, rank r of W computes ⌊n·r/W⌋ to ⌊n·(r + 1)/W⌋ − 1. Random numbers of sample i depend
on i and on the call's seed (`scoresde.common.random`), which rank 0 draws. The n samples are
therefore the same on 1, 2 or 8 ranks, up to how a device rounds rows of a smaller batch. Weights,
data and arguments are not sent: they must be the same on all ranks.

Solves take different numbers of evaluations on different ranks, so nothing is sent within one:
calls inside a solve are `alone`. Ranks meet before it for a seed, and after it for the results. At
each meeting every rank first says what it came for. A rank that failed says so at the next
meeting; then all ranks raise, and none waits for a result that will not come.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import SolverError

MESSAGE_BYTES = 4096
"""Size of what every rank says at a meeting."""
ERROR_CHARACTERS = 500
"""The most characters of an error message for other ranks, each of up to 6 bytes."""


@dataclass(frozen=True)
class _Ranks:
    rank: int
    world: int


_RANKS: ContextVar[_Ranks | None] = ContextVar("ranks", default=None)


@contextlib.contextmanager
def sharded() -> Iterator[None]:
    """Share the samples of every call inside among ranks; all ranks get all results.

    The ranks are those of `torch.distributed`'s default group. Without a group, or with one rank,
    nothing changes. Inside, every rank makes the same calls with the same weights, data and
    arguments: x is the whole batch on every rank. `sample`, `solve`, `encode`, `decode`,
    `log_prob`, `likelihood`, `sample_and_log_prob`, `elbo`, `vlb`, `bits_per_dim` and
    `Distribution` are shared; `fit` and gradients are refused. If a rank fails, it raises its own
    error, and the others a `SolverError` that names it.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> with scoresde.sharded():
    ...     x = scoresde.sample(sde, 100)
    ...     log_p = scoresde.log_prob(sde, x)
    >>> x.shape, log_p.shape
    (torch.Size([100, 2]), torch.Size([100]))
    """
    ranks = None
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        ranks = _Ranks(dist.get_rank(), dist.get_world_size())
    with _as(ranks):
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Compute calls inside on this rank alone, without meeting the others."""
    with _as(None):
        yield


@contextlib.contextmanager
def _as(ranks: _Ranks | None) -> Iterator[None]:
    token = _RANKS.set(ranks)
    try:
        yield
    finally:
        _RANKS.reset(token)


def shared() -> bool:
    """Whether calls share their samples among ranks here."""
    return _RANKS.get() is not None


def first_rank() -> bool:
    """Whether this rank speaks for all: the first one, or the only one."""
    ranks = _RANKS.get()
    return ranks is None or ranks.rank == 0


def share(n: int) -> tuple[int, int]:
    """Which of n samples this rank computes: at least one, so that it knows a result's shape."""
    ranks = _RANKS.get()
    if ranks is None:
        return 0, n
    start, stop = _own(n, ranks.rank, ranks.world)
    return start, max(stop, start + 1)


def _own(n: int, rank: int, world: int) -> tuple[int, int]:
    return n * rank // world, n * (rank + 1) // world


def agree(seed: int) -> int:
    """Rank 0's seed, on every rank."""
    ranks = _RANKS.get()
    return seed if ranks is None else int(_meet({"for": "a seed", "seed": seed}, ranks)[0]["seed"])


def gather(columns: Sequence[Tensor], n: int) -> list[Tensor]:
    """Columns of all n samples, in order, from columns of this rank's share of them."""
    ranks = _RANKS.get()
    if ranks is None:
        return list(columns)
    home = _home()
    # All columns as bytes side by side: one collective call, for which every backend has a dtype.
    columns = [column.detach() for column in columns]
    packed = [
        column.to(home).reshape(len(column), -1).contiguous().view(torch.uint8)
        for column in columns
    ]
    widths = [column.shape[1] for column in packed]
    rows = [
        stop - start for start, stop in (_own(n, rank, ranks.world) for rank in range(ranks.world))
    ]
    mine = packed[0].new_zeros((max(rows), sum(widths)))  # of the same size on all ranks
    mine[: len(packed[0])] = torch.cat(packed, 1)
    every = [torch.empty_like(mine) for _ in rows]
    _meet({"for": f"{n} samples of {sum(widths)} bytes"}, ranks)
    with _told():
        dist.all_gather(every, mine)
    joined = torch.cat([part[:k] for part, k in zip(every, rows, strict=True)])
    # Copies, as numbers must be aligned in memory.
    parts = (
        part.clone(memory_format=torch.contiguous_format)
        for part in torch.split(joined, widths, 1)
    )
    return [
        part.view(column.dtype).reshape(n, *column.shape[1:]).to(column.device)
        for part, column in zip(parts, columns, strict=True)
    ]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Tell the other ranks if the code inside fails on this one; around all calls that meet."""
    ranks = _RANKS.get()
    try:
        yield
    except Exception as error:
        if ranks is not None and not vars(error).get("_told"):
            text = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS]
            with _told():
                _say({"error": text, "first": getattr(error, "first", 0)}, ranks)
            vars(error)["_told"] = True
        raise


def _meet(message: dict[str, Any], ranks: _Ranks) -> list[dict[str, Any]]:
    """What every rank says; raise if one has failed, or came for something else."""
    with _told():  # an error here is raised on every rank
        said = _say(message, ranks)
        for rank, other in enumerate(said):
            if "error" in other:
                error = SolverError(f"rank {rank} failed: {other['error']}")
                error.first = other["first"]
                raise error
        wants = {rank: other["for"] for rank, other in enumerate(said)}
        if len(set(wants.values())) > 1:
            listed = "; ".join(
                f"rank {rank} came for {want}" for rank, want in list(wants.items())[:8]
            )
            raise ValueError(
                "inside sharded() all ranks make the same calls, each with the whole batch, and "
                f"here {listed}; give all of them the same model, data and arguments"
            )
    return said


def _say(message: dict[str, Any], ranks: _Ranks) -> list[dict[str, Any]]:
    text = json.dumps(message, ensure_ascii=False).encode(errors="replace").ljust(MESSAGE_BYTES)
    mine = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(_home())
    every = [torch.empty_like(mine) for _ in range(ranks.world)]
    dist.all_gather(every, mine)
    return [json.loads(bytes(other.tolist())) for other in every]


def _home() -> torch.device:
    """Where tensors are sent from: the CPU, unless the backend has only accelerators."""
    backends = dist.get_backend_config().split(",")  # such as cpu:gloo,cuda:nccl
    kinds = [pair.split(":")[0] for pair in backends]
    if "cpu" in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0])


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Mark errors of a meeting as known to all ranks, also of one that broke up."""
    try:
        yield
    except Exception as error:
        vars(error)["_told"] = True
        if not isinstance(error, SolverError | ValueError):
            error.add_note(
                "A rank of torch.distributed's group is gone, or was slower than the others by "
                "more than the group's timeout: init_process_group(timeout=...)."
            )
        raise
