"""How wide a posterior is at each x: against Gaussians whose spread x tells, in closed form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import scoresde
from scoresde.inference.coordinates import Coordinates
from scoresde.inference.spread import contrasts

FREE = torch.full((1,), math.inf)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def of_known_noise(n: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """θ ~ N(0, 1), s ∈ [0.01, 0.1], x = (θ + s·ε, s); and log p(θ | x), a Gaussian's."""
    theta = torch.randn(n, 1, generator=g, dtype=torch.float64)
    s = 10 ** (-1 - torch.rand(n, 1, generator=g, dtype=torch.float64))
    y = theta + s * torch.randn(n, 1, generator=g, dtype=torch.float64)
    variance = s**2 / (1 + s**2)
    gap = theta - y / (1 + s**2)
    exact = -0.5 * (gap**2 / variance + variance.log() + math.log(2 * math.pi))
    return theta, torch.cat([y, s], 1), exact[:, 0]


def start(coordinates: Coordinates, theta: Tensor, x: Tensor) -> Tensor:
    """log p(θ | x) where w ~ N(0, I), which a network that outputs zero means."""
    w, log_det = coordinates.forward(theta, x)
    return log_det - 0.5 * (w.square() + math.log(2 * math.pi)).sum(1)


def test_the_start_knows_how_precise_each_observation_is() -> None:
    """Its gap was 0.002 nats; 0.36 with one spread for all."""
    g = generator()
    theta, x, _ = of_known_noise(3000, g)
    new, seen, exact = of_known_noise(2000, g)
    varies = Coordinates.measured(-FREE, FREE, theta, x)
    gap = float((exact - start(varies, new, seen)).mean())
    assert abs(gap) < 0.02
    common = Coordinates.measured(-FREE, FREE, theta, x, varies=False)
    assert float((exact - start(common, new, seen)).mean()) > 0.2
    assert varies.told(seen).shape == (2000, 4)
    assert common.told(seen) is seen


def test_the_volume_is_that_of_the_map() -> None:
    theta, x, _ = of_known_noise(1000, generator())
    both = torch.cat([theta, theta.square() + 0.1 * theta.flip(0)], 1)
    coordinates = Coordinates.measured(-FREE.expand(2), FREE.expand(2), both, x)
    assert coordinates.varies
    at = both[:3]
    zero = coordinates.from_u(at, x[:3])
    steps = torch.eye(2, dtype=torch.float64)
    columns = [coordinates.from_u(at + step, x[:3]) - zero for step in steps]  # it is affine in u
    jacobian = torch.stack(columns, 2)
    volume = torch.linalg.slogdet(jacobian)[1]
    assert torch.allclose(volume, coordinates.log_det(at, x[:3]), atol=1e-9)
    w = coordinates.from_u(at, x[:3])
    assert torch.allclose(coordinates.to_u(w, x[:3]), at, atol=1e-9)


def test_a_constant_spread_stays_constant() -> None:
    """A linear Gaussian simulator, five times; each varies with probability 0.02 or so."""
    g = generator()
    for _ in range(5):
        theta = torch.randn(1000, 3, generator=g)
        x = theta + torch.randn(1000, 3, generator=g)
        free = torch.full((3,), math.inf)
        assert not Coordinates.measured(-free, free, theta, x).varies


def test_spreads_of_single_parameters_must_suit_all_of_them() -> None:
    """θ_2 − θ_1 is known to 0.01 everywhere, their sum to x + ½: scaling each would lose the first.

    The rule allows a loss of two standard errors, so the probability of a false alarm is 0.02.
    """
    g = generator()
    free = torch.full((2,), math.inf)

    def pairs(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 1, generator=g, dtype=torch.float64).abs()
        common = (0.5 + x) * torch.randn(n, 1, generator=g, dtype=torch.float64)
        apart = 0.01 * torch.randn(n, 1, generator=g, dtype=torch.float64)
        return torch.cat([common, common + apart], 1), x

    theta, x = pairs(3000)
    new, seen = pairs(2000)
    for i in range(2):
        assert Coordinates.measured(-FREE, FREE, theta[:, i : i + 1], x).varies
    usual = start(Coordinates.measured(-free, free, theta, x, varies=False), new, seen)
    found = start(Coordinates.measured(-free, free, theta, x), new, seen)
    gain = found - usual
    assert float(gain.mean()) >= -2 * float(gain.std()) / math.sqrt(len(gain))


def test_contrasts_are_numbers_and_differences() -> None:
    x = torch.tensor([1.0, 3.0, 7.0])
    assert contrasts(x).tolist() == [1, 3, 7, 2, 6, 4]
    assert contrasts(torch.arange(20.0)).shape == (39,)


@pytest.fixture(scope="module")
def trained() -> scoresde.Posterior:
    """A posterior whose spread varies, after a few steps."""
    theta, x, _ = of_known_noise(600, generator())
    prior = MultivariateNormal(torch.zeros(1), torch.eye(1))
    return scoresde.posterior(
        prior, theta.float(), x.float(), steps=4, held_out=0, progress=False, seed=0
    )


def test_a_posterior_keeps_its_spread(trained: scoresde.Posterior, tmp_path: Path) -> None:
    x = torch.tensor([[0.3, 0.01], [0.3, 0.1]])
    draws = trained.sample((500,), x=x, seed=0, rtol=1e-3, atol=1e-3)
    narrow, wide = draws.std(0)[:, 0].tolist()
    assert 5 < wide / narrow < 20  # 10, within five standard errors of 3% each and the network
    again = scoresde.load_posterior(trained.save(tmp_path / "post"))
    points = torch.linspace(0.2, 0.4, 9)[:, None]
    before = trained.log_prob(points, x=x[1], steps=8)
    assert torch.equal(again.log_prob(points, x=x[1], steps=8), before)
    with pytest.raises(ValueError, match=r"wanted \(2\), one observation"):
        again.sample((3,), x=torch.zeros(4))


def test_one_observation_of_many_has_its_own_posterior(trained: scoresde.Posterior) -> None:
    x = torch.tensor([[0.3, 0.05]])
    many = trained.iid(x, draws=500, seed=0)
    points = torch.tensor([[0.25], [0.3], [0.35]])
    gap = many.log_prob(points) - trained.log_prob(points, x=x[0])
    assert gap.abs().max() < 0.1
