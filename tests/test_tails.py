"""Posteriors from numbers with heavy tails: in closed form, without training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import scoresde
from scoresde.inference import tails
from scoresde.inference.coordinates import Coordinates

FREE = torch.full((2,), math.inf)
NOISE = 0.3
EXACT = -math.log(2 * math.pi * NOISE**2 / (1 + NOISE**2)) - 1
"""Mean log p of the posterior of θ ~ N(0, I) from θ + noise, or from any increasing map of it."""


def pairs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    theta = torch.randn(n, 2, generator=g, dtype=torch.float64)
    return theta, theta + NOISE * torch.randn(n, 2, generator=g, dtype=torch.float64)


def start(coordinates: Coordinates, theta: Tensor, x: Tensor) -> float:
    """Mean log p(θ | x) where w ~ N(0, I), which a network that outputs zero means."""
    w, log_det = coordinates.forward(theta, x)
    return float((log_det - 0.5 * w.square().sum(1)).mean()) - math.log(2 * math.pi)


MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "e^x": torch.exp,
    "e^3x": lambda x: (3 * x).exp(),
    "e^30x": lambda x: (30 * x).exp(),
    "x³": lambda x: x**3,
    "like Cauchy's": lambda x: torch.tan(3.14 * (torch.special.ndtr(x) - 0.5)),
}


@pytest.mark.parametrize("name", MAPS)
def test_an_increasing_map_of_x_changes_nothing(name: str) -> None:
    """Within 0.1 nats of the exact posterior, where x as it is loses 0.7 nats or more."""
    theta, x = pairs(2000, 0)
    fresh, seen = pairs(2000, 1)
    f = MAPS[name]
    found = Coordinates.measured(-FREE, FREE, theta, f(x))
    assert abs(start(found, fresh, f(seen)) - EXACT) < 0.1
    as_it_is = Coordinates.measured(-FREE, FREE, theta, f(x), varies=False)
    assert start(as_it_is, fresh, f(seen)) < EXACT - 0.7
    told = found.told(f(seen))
    assert float(told.abs().max()) < 5
    low, high = found.usual
    assert bool(((f(x) >= low) & (f(x) <= high)).double().mean() > 0.99)


@pytest.mark.parametrize(("row", "value"), [(0, 1e3), (1, 1e9), (2, -1e30), (0, 1e290)])
def test_one_simulation_far_away_does_no_harm(row: int, value: float) -> None:
    """The posterior at other observations, and what is said of one even farther away."""
    theta, x = pairs(2000, 0)
    fresh, seen = pairs(2000, 1)
    x[row, 0] = value
    found = Coordinates.measured(-FREE, FREE, theta, x)
    assert found.numbers["heavy"].tolist() == [1, 0]
    assert abs(start(found, fresh, seen) - EXACT) < 0.1
    far = found.told(torch.full((1, 2), 1e6 * value, dtype=torch.float64))
    assert bool(far[:, 0].isfinite().all())
    assert float(far[:, 0].abs().max()) < 5


def test_scores_increase_with_x_and_light_tails_are_left_alone() -> None:
    x = torch.cat([pairs(1000, 0)[0], pairs(1000, 2)[0].exp().square()], 1)
    assert tails.candidates(x)[0].tolist() == [False, False, True, True]
    numbers = tails.measured(x, tails.candidates(x)[0])
    at = torch.linspace(-3, 400, 20_001, dtype=torch.float64).unsqueeze(1).expand(-1, 4)
    seen = tails.with_scores(at, numbers)
    assert torch.equal(seen[:, :2], at[:, :2])
    assert bool((seen[:, 2:].diff(dim=0) > 0).all())
    assert (
        tails.with_scores(at, Coordinates.measured(-FREE, FREE, x[:, :2], x[:, :2]).numbers) is at
    )


def test_constants_and_rare_events() -> None:
    """A constant is none; zeros with one row in ten that has a count are."""
    g = torch.Generator().manual_seed(0)
    count = torch.poisson(torch.full((500,), 9.0), generator=g) * (
        torch.rand(500, generator=g) < 0.1
    )
    x = torch.stack([torch.full((500,), 7.0), count], 1).double()
    assert tails.candidates(x)[0].tolist() == [False, True]
    numbers = tails.measured(x, tails.candidates(x)[0])
    seen = tails.with_scores(x, numbers)[:, 1]
    assert bool((seen[count == 0] < seen[count > 0].min() - 0.5).all())
    beyond = tails.with_scores(torch.tensor([[7.0, -1e9], [7.0, 1e9]]), numbers)
    assert bool(beyond.isfinite().all())


def test_files_keep_it_bit_for_bit_and_edited_ones_are_refused(tmp_path: Path) -> None:
    theta, x = pairs(200, 0)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    post = scoresde.posterior(prior, theta, x**3, steps=5, seed=0, progress=False)
    again = scoresde.load_posterior(post.save(tmp_path / "a"))
    at = x[:3] ** 3
    assert post.coordinates is not None
    assert again.coordinates is not None
    assert torch.equal(post.coordinates.told(at), again.coordinates.told(at))
    assert torch.equal(post.sample((2,), x=at, seed=0), again.sample((2,), x=at, seed=0))
    good = post.coordinates.numbers
    for name, value in {
        "heavy": torch.ones(3),
        "heavy_range": good["heavy_range"][:1],
        "heavy_knots": good["heavy_knots"].flip(1),
        "heavy_levels": good["heavy_levels"].flip(0),
    }.items():
        with pytest.raises(ValueError):
            Coordinates(**{**good, name: value})


def test_counts_whose_differences_tell_more_stay_as_they_are() -> None:
    """Held-out pairs decide. θ moves a peak of Poisson counts: two logarithms tell where it is, and
    the scores of far counts that are nearly always 0 tell less.
    """
    g = torch.Generator().manual_seed(0)
    theta = torch.randn(4000, 2, generator=g, dtype=torch.float64)
    away = torch.arange(10.0, dtype=torch.float64) - 5 - 2 * theta[:, 1:]
    x = torch.poisson((6 + 0.3 * theta[:, :1] - 0.5 * away**2).exp(), generator=g)
    heavy = tails.candidates(x)[0]
    assert heavy.sum() == 4
    found = Coordinates.measured(-FREE, FREE, theta[:2000], x[:2000])
    assert not len(found.numbers["heavy"])
    scores = tails.measured(x[:2000], heavy)
    worse = Coordinates._fitted(-FREE, FREE, theta[:2000], x[:2000], True, scores)
    assert start(worse, theta[2000:], x[2000:]) < start(found, theta[2000:], x[2000:]) - 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["e^3x", "x³"])
def test_a_trained_posterior_is_as_good(name: str) -> None:
    theta, x = pairs(2000, 0)
    fresh, seen = pairs(1000, 1)
    f = MAPS[name]
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    post = scoresde.posterior(prior, theta, f(x), steps=1500, seed=0, progress=False)
    assert abs(float(post.log_prob(fresh, x=f(seen)).mean()) - EXACT) < 0.1
