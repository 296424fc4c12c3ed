"""What the tests share: the mixtures they hold everything against, and newcomers that must pass
like our own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from scoresde import toy
from scoresde.solvers import Problem

torch.set_num_threads(1)  # the suite is small tensors; threads only add noise to its run time


@scoresde.PROCESSES.register("test_polynomial")
class Polynomial(scoresde.Process):
    """A process as a user would write it: two methods, derivatives and inverse left to the base
    class.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) * (1 + 0.3 * t)

    def sigma(self, t: Tensor) -> Tensor:
        return t * (1.5 - 0.2 * t)


@scoresde.BACKBONES.register("test_linear")
class Linear(nn.Module):
    """A backbone as a user would write it."""

    def __init__(self, shape: tuple[int, ...], width: int = 8) -> None:
        super().__init__()
        n = math.prod(shape)
        self.first, self.last = nn.Linear(n + 1, width), nn.Linear(width, n)

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        h = torch.tanh(self.first(torch.cat([x.flatten(1), t[:, None]], 1)))
        return self.last(h).reshape(x.shape)


@scoresde.SOLVERS.register("test_midpoint")
class Midpoint(scoresde.Stepper):
    """A deterministic solver as a user would write it: the midpoint rule in φ."""

    order, ode, evaluations, spacing = 2, True, 2, "arc"

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:
        here, there = problem.levels[i].phi, problem.levels[i + 1].phi
        h = there - here
        half = z + 0.5 * h * problem.velocity(z, here, None)
        return z + h * problem.velocity(half, here + 0.5 * h, None)


@scoresde.SOLVERS.register("test_renoise")
class Renoise(scoresde.Stepper):
    """A stochastic solver as a user would write it: DDIM beyond the next level, then back up to it
    by fresh noise.

    In u = σ/α, from u to v = u'²/u by DDIM and from v to u' by noise of variance u'² − v²: that is
    DDPM's posterior.
    """

    order, stochastic, steps, spacing = 1, True, 250, "logsnr"

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:
        here, there = problem.levels[i], problem.levels[i + 1]
        x0, eps = problem.denoise(z, i)
        keep = (there.sin * here.cos) / (there.cos * here.sin)  # u'/u, 0 at both infinite ends
        return there.cos * x0 + there.sin * (
            keep * eps + math.sqrt(max(0.0, 1 - keep**2)) * problem.noise()
        )


ORDINARY = [
    name
    for name in scoresde.SOLVERS
    if scoresde.SOLVERS.build(name).all_needs <= {"score", "velocity", *scoresde.FIELDS}
]
"""Solvers for models that have a score: all but those for models that have learnt to jump."""


SMALL = {
    "width": 16,
    "depth": 3,
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "patch": 2,
    "heads": 2,
}
SHAPES: tuple[tuple[int, ...], ...] = ((6,), (2, 8), (3, 8, 8), (1, 4, 4, 4))


def options_of(name: str) -> set[str]:
    """The names of a backbone's options; those of a wrapper's backbone too."""
    parameters = inspect.signature(scoresde.BACKBONES[name]).parameters
    inner = options_of("mlp") if "backbone" in parameters else set()
    return inner | {p.name for p in parameters.values() if p.kind is not p.VAR_KEYWORD}


def fitting(
    name: str, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The first of some shapes that a backbone takes, and options that make it small."""
    options = {option: value for option, value in SMALL.items() if option in options_of(name)}
    said = []
    for shape in shapes:
        try:
            with torch.device("meta"):
                scoresde.BACKBONES.build(name, shape, **options)(
                    torch.empty(1, *shape), torch.empty(1)
                )
        except (ValueError, IndexError) as error:
            said.append(str(error))
        else:
            return shape, options
    raise AssertionError(f"{name} takes none of the shapes {shapes} with {options}: {said}")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sixteen() -> toy.GaussianMixture:
    """Ten well-separated components in 16-D."""
    means = torch.randn(10, 16, generator=generator(16), dtype=torch.float64)
    return toy.GaussianMixture(means, torch.linspace(0.2, 0.6, 10, dtype=torch.float64))


def kept(cases: Iterable[tuple[Any, ...]], keep: Callable[..., bool]) -> list[Any]:
    """Cases as parameters: those to keep run in `make test`, the others are slow."""
    return [
        pytest.param(*case, marks=() if keep(*case) else (pytest.mark.slow,)) for case in cases
    ]


def some(values: Iterable[Any], *few: Any) -> list[Any]:
    """Values as parameters: a few run in `make test`, the others are slow."""
    return kept(((value,) for value in values), lambda value: value in few)


def rotated(first: Iterable[Any], second: Iterable[Any]) -> list[Any]:
    """All pairs of two lists as parameters: in `make test` each element runs with one of the other
    list, in turn; the other pairs are slow.
    """
    ones, others = list(first), list(second)
    return [
        pytest.param(
            a, b, marks=() if j == i % len(others) or i == j % len(ones) else (pytest.mark.slow,)
        )
        for i, a in enumerate(ones)
        for j, b in enumerate(others)
    ]


MIXTURES = {"8 Gaussians": toy.EightGaussians(4.0, 0.3), "16-D": sixteen()}
PROCESSES = list(scoresde.PROCESSES)


def at(process: scoresde.Process, t: float) -> tuple[float, float]:
    """α and σ at a time, as floats."""
    time = torch.tensor(t, dtype=torch.float64)
    return float(process.alpha(time)), float(process.sigma(time))


@pytest.fixture(params=PROCESSES)
def process(request: pytest.FixtureRequest) -> scoresde.Process:
    return scoresde.PROCESSES.build(request.param)


@pytest.fixture(params=list(MIXTURES))
def mixture(request: pytest.FixtureRequest) -> toy.GaussianMixture:
    return MIXTURES[request.param]
