r"""One call over many processes: each computes a contiguous share of the samples, and all get all of them, in order.

Of n samples, rank r of W has ⌊n·r/W⌋ to ⌊n·(r + 1)/W⌋ − 1. Sample i's random numbers depend on the call's seed and on i (see
`scoresde.random`), and the seed is rank 0's, so that n samples are the same on 1, 2 or 8 ranks, but for how a device rounds
the rows of a smaller batch. Weights, data and arguments have to be the same on all ranks: they are not sent.

Ranks need different numbers of evaluations in a solve, so nothing is sent within one: what is called from a solve is alone.
Around it ranks meet, once for a seed and once for the results. At each meeting everyone first says what they came for. A rank
that has failed says so at the next one; so all ranks raise, and none waits for a result that will not come.
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

MESSAGE = 4096  # bytes that every rank says at a meeting
EXPLANATION = 500  # characters of an error that reach the other ranks, of up to 6 bytes each


@dataclass(frozen=True)
class _Ranks:
    rank: int
    world: int


_RANKS: ContextVar[_Ranks | None] = ContextVar("ranks", default=None)


@contextlib.contextmanager
def sharded() -> Iterator[None]:
    """Share the samples of every call inside among the ranks of `torch.distributed`'s default group; all ranks get all results.

    Without a group, or with one rank, it changes nothing. Inside, every rank makes the same calls with the same weights, data
    and arguments: x is the whole batch on every rank. It serves `sample`, `solve`, `encode`, `decode`, `log_prob`,
    `likelihood`, `sample_and_log_prob`, `elbo`, `vlb`, `bits_per_dim` and `Distribution`; it is no place for `fit`, nor for
    gradients, which are refused. If a rank fails, it raises its own error and the others a `SolverError` that names it.

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
    """Compute what is called inside on this rank alone, without meeting the others.

    Examples
    --------
    >>> with sharded(), alone():
    ...     share(10)
    (0, 10)
    """
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
    """Whether samples are shared among ranks here.

    Returns
    -------
    bool

    Examples
    --------
    >>> shared()
    False
    """
    return _RANKS.get() is not None


def share(n: int) -> tuple[int, int]:
    """Return which of n samples this rank computes: at least one, so that each knows what a result looks like.

    Parameters
    ----------
    n : int
        Positive.

    Returns
    -------
    start, stop : int
        ⌊n·r/W⌋ and ⌊n·(r + 1)/W⌋; for ranks without a sample of their own, one that belongs to another.

    Examples
    --------
    >>> share(10)
    (0, 10)
    """
    ranks = _RANKS.get()
    if ranks is None:
        return 0, n
    start, stop = _own(n, ranks.rank, ranks.world)
    return start, max(stop, start + 1)


def _own(n: int, rank: int, world: int) -> tuple[int, int]:
    return n * rank // world, n * (rank + 1) // world


def agree(seed: int) -> int:
    """Return rank 0's seed on every rank.

    Parameters
    ----------
    seed : int
        This rank's.

    Returns
    -------
    int

    Raises
    ------
    SolverError
        If another rank has failed.

    Examples
    --------
    >>> agree(7)
    7
    """
    ranks = _RANKS.get()
    return seed if ranks is None else int(_meet({"for": "a seed", "seed": seed}, ranks)[0]["seed"])


def gather(columns: Sequence[Tensor], n: int) -> list[Tensor]:
    """Return columns that hold this rank's share of n samples for all n, in order, on every rank.

    Parameters
    ----------
    columns : sequence of Tensor, shape (rows of this rank, …)
        Of any dtypes, on any devices.
    n : int

    Returns
    -------
    list of Tensor, shape (n, …)
        Where they were.

    Raises
    ------
    SolverError
        If another rank has failed.
    ValueError
        If the ranks have different numbers of samples, or different kinds of results.

    Examples
    --------
    >>> gather([torch.zeros(3), torch.ones(3, 2)], 3)[0]
    tensor([0., 0., 0.])
    """
    ranks = _RANKS.get()
    if ranks is None:
        return list(columns)
    home = _home()
    # All columns as bytes side by side: one collective call, which every backend can do, whatever the dtypes.
    columns = [column.detach() for column in columns]
    packed = [column.to(home).reshape(len(column), -1).contiguous().view(torch.uint8) for column in columns]
    widths = [column.shape[1] for column in packed]
    rows = [stop - start for start, stop in (_own(n, rank, ranks.world) for rank in range(ranks.world))]
    mine = packed[0].new_zeros((max(rows), sum(widths)))  # the same size on all
    mine[: len(packed[0])] = torch.cat(packed, 1)
    every = [torch.empty_like(mine) for _ in rows]
    _meet({"for": f"{n} samples of {sum(widths)} bytes"}, ranks)
    with _told():
        dist.all_gather(every, mine)
    joined = torch.cat([part[:k] for part, k in zip(every, rows, strict=True)])
    parts = (part.clone(memory_format=torch.contiguous_format) for part in torch.split(joined, widths, 1))  # aligned again
    return [
        part.view(column.dtype).reshape(n, *column.shape[1:]).to(column.device)
        for part, column in zip(parts, columns, strict=True)
    ]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Let the other ranks know if what is inside fails on this one: every verb that meets them is inside.

    Raises
    ------
    Exception
        The one that came.

    Examples
    --------
    >>> with together():
    ...     raise ValueError("steps is at least 1, got 0")
    Traceback (most recent call last):
    ValueError: steps is at least 1, got 0
    """
    ranks = _RANKS.get()
    try:
        yield
    except Exception as error:
        if ranks is not None and not vars(error).get("_told"):
            text = f"{type(error).__name__}: {error}"[:EXPLANATION]
            with _told():
                _say({"error": text, "first": getattr(error, "first", 0)}, ranks)
            vars(error)["_told"] = True
        raise


def _meet(message: dict[str, Any], ranks: _Ranks) -> list[dict[str, Any]]:
    """What every rank has to say; raises if one has failed, or came for something else."""
    with _told():  # whatever is raised here is raised on every rank
        said = _say(message, ranks)
        for rank, other in enumerate(said):
            if "error" in other:
                error = SolverError(f"rank {rank} failed: {other['error']}")
                error.first = other["first"]
                raise error
        wants = {rank: other["for"] for rank, other in enumerate(said)}
        if len(set(wants.values())) > 1:
            listed = "; ".join(f"rank {rank} came for {want}" for rank, want in list(wants.items())[:8])
            raise ValueError(
                f"inside sharded() all ranks make the same calls, each with the whole batch, and here {listed}; "
                "give all of them the same model, data and arguments"
            )
    return said


def _say(message: dict[str, Any], ranks: _Ranks) -> list[dict[str, Any]]:
    text = json.dumps(message, ensure_ascii=False).encode(errors="replace").ljust(MESSAGE)
    mine = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(_home())
    every = [torch.empty_like(mine) for _ in range(ranks.world)]
    dist.all_gather(every, mine)
    return [json.loads(bytes(other.tolist())) for other in every]


def _home() -> torch.device:
    """Where a tensor has to be to be sent: on the CPU, unless the backend knows only accelerators."""
    kinds = [pair.split(":")[0] for pair in dist.get_backend_config().split(",")]  # such as cpu:gloo,cuda:nccl
    return torch.device("cpu" if "cpu" in kinds else kinds[0])


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Mark errors as known to all ranks: those of a meeting, or of one that broke up."""
    try:
        yield
    except Exception as error:
        vars(error)["_told"] = True
        if not isinstance(error, SolverError | ValueError):
            error.add_note(
                "A rank of torch.distributed's group is gone, or was slower than the others by more than the group's timeout: "
                "init_process_group(timeout=...)."
            )
        raise
