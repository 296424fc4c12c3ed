"""Noise that belongs to samples, not to calls: sample i sees the same numbers whatever batch it is computed in.

Samples are numbered, and 64 in a row form a block with a generator of its own, seeded by (seed, stream, block). So the rows
of a draw do not depend on how many there are, on `batch_size`, or on how they are spread over devices.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from .ranks import agree

BLOCK = 64  # fewer where a sample has more than 512 numbers, so that a few samples do not draw for many
AHEAD = 4096  # numbers drawn ahead per sample, so that a cheap network does not wait for its noise

PRIOR, PATH, PROBE = range(3)  # streams: starting points, noise along the path, trace probes
ORDER, DRAWS, CHANGES, LEVELS, NETWORK, FIXED, STARTS, PAIRS = range(3, 11)  # in training: shuffles, new data, transforms, …


def draw_seed(generator: torch.Generator | None) -> int:
    """Draw one seed from the generator, or from torch's global one if there is none; inside `sharded()` it is rank 0's.

    Parameters
    ----------
    generator : torch.Generator or None
        Advanced by one draw.

    Returns
    -------
    int
        In [0, 2⁶³ − 1).

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> draw_seed(g) == draw_seed(g)
    False
    """
    device = generator.device if generator is not None else "cpu"
    return agree(int(torch.randint(2**63 - 1, (), generator=generator, device=device)))


def _mix(*words: int) -> int:
    """Hash integers to a 63-bit seed (SplitMix64, Steele et al. 2014)."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


def seeded(device: torch.device | str, *words: int) -> torch.Generator:
    """Return a generator that depends on the words alone: a seed, a stream, and what counts in it.

    Parameters
    ----------
    device : torch.device or str
    *words : int

    Returns
    -------
    torch.Generator

    Examples
    --------
    >>> torch.rand(1, generator=seeded("cpu", 1, ORDER, 5)) == torch.rand(1, generator=seeded("cpu", 1, ORDER, 5))
    tensor([True])
    """
    return torch.Generator(device).manual_seed(_mix(*words))


@contextlib.contextmanager
def isolated(device: torch.device | str = "cpu") -> Iterator[Callable[..., None]]:
    """Put the global generators of torch, numpy and Python back afterwards; within, seed them by words.

    Parameters
    ----------
    device : torch.device or str
        Whose generator is kept beside the CPU's.

    Yields
    ------
    callable (*words)
        Seeds torch's generators and, as soon as it is called with `everything=True`, also numpy's and Python's.

    Examples
    --------
    >>> with isolated() as seed:
    ...     seed(1, NETWORK, 0)
    ...     first = torch.rand(1)
    >>> with isolated() as seed:
    ...     seed(1, NETWORK, 0)
    ...     torch.rand(1) == first
    tensor([True])
    """
    device = torch.device(device)
    here = [] if device.type == "cpu" else [device.index or 0]
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[here[0]])
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002

    def seed(*words: int, everything: bool = False) -> None:
        value = _mix(*words)
        for generator in generators:
            generator.manual_seed(value)
        if everything:
            random.seed(value)
            np.random.seed(value % 2**32)  # noqa: NPY002

    with torch.random.fork_rng(devices=here, device_type=device.type if here else "cuda"):
        try:
            yield seed
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002


class Noise:
    """A stream of standard normal draws for samples `start` to `stop`: each call returns the next (stop − start, n) of them.

    What a call returned stays as it is: no later call writes into it.

    Parameters
    ----------
    seed : int
        The call's seed; see `draw_seed`.
    stream : int
        PRIOR, PATH or PROBE.
    start, stop : int
        The samples of this batch, numbered over the whole call.
    n : int
        Numbers per sample.
    like : Tensor
        Gives dtype and device.

    Examples
    --------
    >>> like = torch.empty(0)
    >>> whole = Noise(7, PATH, 0, 200, 3, like)
    >>> part = Noise(7, PATH, 100, 150, 3, like)
    >>> all(torch.equal(whole()[100:150], part()) for _ in range(5))
    True
    """

    def __init__(self, seed: int, stream: int, start: int, stop: int, n: int, like: Tensor) -> None:
        self._block = size = max(1, min(BLOCK, 2**15 // max(n, 1)))
        self._first, self._last = start // size, -(-stop // size)
        self._rows = slice(start - self._first * size, stop - self._first * size)
        self._generators = [
            torch.Generator(like.device).manual_seed(_mix(seed, stream, block)) for block in range(self._first, self._last)
        ]
        # Path noise is asked for step after step: draw several steps at once. How many may depend on n alone.
        self._ahead = max(1, min(32, AHEAD // max(n, 1))) if stream == PATH else 1
        self._n, self._like, self._used = n, like.new_empty(0), self._ahead
        self._buffer: Tensor | None = None

    def __call__(self) -> Tensor:
        """Return the next draw, shape (stop − start, n)."""
        if self._buffer is None or self._used == self._ahead:
            self._buffer = None  # freed before the next is made, unless a caller keeps some of it
            shape = (self._ahead, self._block, self._n)
            like, blocks = self._like, len(self._generators)
            buffer = like.new_empty((self._ahead, blocks * self._block, self._n))
            for i, generator in enumerate(self._generators):
                block = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
                buffer[:, i * self._block : (i + 1) * self._block] = block
            self._buffer = buffer
            self._used = 0
        self._used += 1
        return self._buffer[self._used - 1, self._rows]
