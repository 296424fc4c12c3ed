"""What the tests share: the mixtures they hold everything against, and newcomers that must pass like our own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import scoresde
from scoresde import toy

torch.set_num_threads(1)  # the suite is small tensors; threads only add noise to its run time


@scoresde.PROCESSES.register("test_polynomial")
class Polynomial(scoresde.Process):
    """A process as a user would write it: two methods, derivatives and inverse left to the base class."""

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


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sixteen() -> toy.GaussianMixture:
    """Ten well-separated components in 16-D."""
    means = torch.randn(10, 16, generator=generator(16), dtype=torch.float64)
    return toy.GaussianMixture(means, torch.linspace(0.2, 0.6, 10, dtype=torch.float64))


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
