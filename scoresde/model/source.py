"""Sources: distributions of x at t = 1 in place of a Gaussian, such as a density or a data set.

Any path x_t = α·x0 + σ·x1 with α(1) = 0 carries one distribution to another (Liu et al. 2023;
Albergo et al. 2023), with x1 ~ source in place of the noise. The ODE stays the same, and so does
its likelihood if log p(x1) is known. There is no score, because Tweedie's formula requires Gaussian
noise.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import check_generator
from ..common.inputs import as_floats, as_tensor
from ..common.random import PRIOR, isolated, seeded
from ..toy import DENSITIES

BLOCK_SAMPLES = 64
"""How many samples of a source share a generator."""


class Empirical:
    """Rows of a data set, drawn with replacement; it has no density."""

    def __init__(self, x: Any) -> None:
        x = as_tensor(x, "source")
        self.x = as_floats(x.detach(), tuple(x.shape[1:]), "source")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n rows."""
        check_generator(generator)
        rows = torch.randint(len(self.x), (n,), generator=generator, device="cpu")
        return self.x[rows.to(self.x.device)]

    def __repr__(self) -> str:
        """Number and shape of the samples."""
        return f"Empirical({len(self.x)} samples of shape {tuple(self.x.shape[1:])})"


class Missing:
    """The place of a source that the files of a loaded model cannot hold."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Raise ValueError."""
        raise ValueError(
            "this model starts from data or a density that was not saved with it: set "
            "sde.source to it"
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """Raise ValueError."""
        return self.sample(len(x))

    def __repr__(self) -> str:
        """As it is made."""
        return "Missing()"


def as_source(source: Any, shape: tuple[int, ...]) -> Any:
    """A user's source as an object with `.sample(n)`; a tensor of samples as `Empirical`."""
    if source is None or isinstance(source, Missing):
        return source
    if isinstance(source, Tensor | np.ndarray):
        source = Empirical(source)
    if not callable(getattr(source, "sample", None)) or hasattr(source, "to_numpy"):
        raise TypeError(
            f"source is a tensor of samples or an object with .sample(n), got "
            f"{type(source).__name__}"
        )
    starts(source, 0, 0, 1, shape)
    return source


def draw(law: Any, n: int, *words: int) -> Any:
    """Draw n samples that depend only on `words`, with any generator that the source uses."""
    with isolated() as seed:
        seed(*words, everything=True)
        if isinstance(law, torch.distributions.Distribution):
            return law.sample(torch.Size((n,)))
        if "generator" in inspect.signature(law.sample).parameters:
            return law.sample(n, generator=seeded("cpu", *words))
        return law.sample(n)


def starts(law: Any, seed: int, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
    """Draw samples start … stop of a call: each depends on the seed and its number alone."""
    size = BLOCK_SAMPLES
    first = start // size
    last = -(-stop // size)
    parts = []
    for block in range(first, last):
        x = draw(law, size, seed, PRIOR, block)
        values = as_tensor(x, "source.sample(n)").detach()
        parts.append(as_floats(values, shape, "source.sample(n)"))
        if len(x) != size:
            raise ValueError(f"{type(law).__name__}.sample({size}) returned {len(x)} samples")
    return torch.cat(parts)[start - first * size : stop - first * size]


def describe_source(source: Any) -> dict[str, Any] | None:
    """The source by name, in plain JSON; the name is None for a source that no file can hold."""
    if source is None:
        return None
    try:
        return {"name": DENSITIES.name_of(source), "options": DENSITIES.options_of(source)}
    except ValueError:
        return {"name": None, "options": {}}


def rebuild_source(about: dict[str, Any] | None) -> Any:
    """The source by name; `Missing` if the source can't be stored in a file."""
    if about is None:
        return None
    if about["name"] is None:
        return Missing()
    return DENSITIES.build(about["name"], **about["options"])
