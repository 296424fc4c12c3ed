"""Random numbers that belong to samples: sample i gets the same ones in every batch.

Samples are numbered. Every 64 in a row form a block with its own generator, seeded by (seed,
stream, block). Rows of a draw therefore do not depend on how many there are, on `batch_size`, or
on how they are spread over devices.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from .sharding import agree

BLOCK = 64
"""Samples that share a generator …"""
BLOCK_NUMBERS = 2**15
"""… but fewer if a block had more numbers, so that few samples do not draw for many."""
NUMBERS_AHEAD = 4096
"""Numbers that are drawn ahead for each sample, as many small draws are slow …"""
DRAWS_AHEAD = 32
"""… and most draws of them."""

# Streams of random numbers, by what they are for.
PRIOR = 0  # starting points
PATH = 1  # noise along the path
PROBE = 2  # probes of a trace
ORDER = 3  # shuffles of training data
DRAWS = 4  # samples drawn for training, and random datasets
CHANGES = 5  # transforms
LEVELS = 6  # noise levels
NETWORK = 7  # dropout and other randomness of a network
FIXED = 8  # noise of validation
STARTS = 9  # where training paths begin
PAIRS = 10  # couplings
HELD_OUT = 11  # rows that are not trained on
RESAMPLING = 12  # which particles of a population go on


def draw_seed(generator: torch.Generator | None) -> int:
    """Draw a seed from a generator, or from torch's global one; inside `sharded()`, on rank 0."""
    device = generator.device if generator is not None else "cpu"
    return agree(int(torch.randint(2**63 - 1, (), generator=generator, device=device)))


def _mix(*words: int) -> int:
    """Hash integers to a seed of 63 bits (SplitMix64, Steele et al. 2014)."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


def seeded(device: torch.device | str, *words: int) -> torch.Generator:
    """A generator that depends on the words alone: a seed, a stream, and numbers in it."""
    return torch.Generator(device).manual_seed(_mix(*words))


@contextlib.contextmanager
def isolated(device: torch.device | str = "cpu") -> Iterator[Callable[..., None]]:
    """Restore the global generators of torch, numpy and Python afterwards; yield their seeder."""
    device = torch.device(device)
    here = [] if device.type == "cpu" else [device.index or 0]
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[here[0]])
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002

    def seed(*words: int, everything: bool = False) -> None:
        value = _mix(*words)
        for generator in generators:
            generator.manual_seed(value)
        if everything:
            random.seed(value)
            np.random.seed(value % 2**32)  # noqa: NPY002

    forked = device.type if here else "cuda"
    with torch.random.fork_rng(devices=here, device_type=forked):
        try:
            yield seed
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


class Noise:
    """A stream of normal draws (stop − start, n) for samples start to stop − 1, one per call."""

    def __init__(
        self, seed: int, stream: int, start: int, stop: int, n: int, like: Tensor
    ) -> None:
        size = max(1, min(BLOCK, BLOCK_NUMBERS // max(n, 1)))
        first = start // size
        last = -(-stop // size)
        self._block = size
        self._rows = slice(start - first * size, stop - first * size)
        self._generators = [
            torch.Generator(like.device).manual_seed(_mix(seed, stream, block))
            for block in range(first, last)
        ]
        # Path noise is drawn step after step: draw several steps at once. Their number must depend
        # on n alone.
        self._ahead = 1
        if stream == PATH:
            self._ahead = max(1, min(DRAWS_AHEAD, NUMBERS_AHEAD // max(n, 1)))
        self._n = n
        self._like = like.new_empty(0)
        self._used = self._ahead
        self._buffer: Tensor | None = None

    def __call__(self) -> Tensor:
        """The next draw, shape (stop − start, n)."""
        if self._buffer is None or self._used == self._ahead:
            self._buffer = None  # frees it before the next is made, unless a caller keeps a part
            self._buffer = self._draw()
            self._used = 0
        self._used += 1
        return self._buffer[self._used - 1, self._rows]

    def _draw(self) -> Tensor:
        """Several draws for all blocks."""
        like = self._like
        shape = (self._ahead, self._block, self._n)
        buffer = like.new_empty((self._ahead, len(self._generators) * self._block, self._n))
        for i, generator in enumerate(self._generators):
            block = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
            buffer[:, i * self._block : (i + 1) * self._block] = block
        return buffer
