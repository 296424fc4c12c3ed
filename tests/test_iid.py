"""Posteriors of several i.i.d. observations: against products of densities in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_posterior import COV, SLOPE, UNIT, WIDE, conjugate, grid
from torch import Tensor, nn
from torch.distributions import Categorical, Exponential, Independent, MixtureSameFamily, Normal
from torch.distributions import MultivariateNormal as Normals

import scoresde
from scoresde.inference.coordinates import Coordinates
from scoresde.inference.mixtures import fitted

EYE = torch.eye(2, dtype=torch.float64)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def moments(many: Any) -> tuple[Tensor, Tensor]:
    """The weighted mean and standard deviation of the points."""
    theta = many.theta.double()
    mean = many.weights @ theta
    return mean, (many.weights @ (theta - mean).square()).sqrt()


def product_of_gaussians(x: Tensor) -> Normals:
    """Π N(SLOPE·x_i, COV)/N(0, I)^(k − 1)."""
    k = len(x)
    inverse = torch.linalg.inv(COV)
    cov = torch.linalg.inv(k * inverse - (k - 1) * EYE)
    return Normals(cov @ inverse @ (x.double() @ SLOPE.T).sum(0), cov)


@pytest.mark.parametrize("k", [1, pytest.param(5, marks=pytest.mark.slow), 20])
def test_a_gaussian_with_k_observations(k: int) -> None:
    """Means within three standard errors, which all six are in 98.4% of runs; stds within 5%."""
    x = torch.randn(k, 2, generator=seed(3))
    many = conjugate(WIDE).iid(x, draws=1500, generator=seed(1))
    law = product_of_gaussians(x)
    mean, std = moments(many)
    error = law.stddev / math.sqrt(many.ess)
    assert ((mean - law.mean).abs() < 3 * error).all()
    assert ((std / law.stddev - 1).abs() < 0.05).all()
    theta = law.sample((5,))
    assert (many.log_prob(theta) - law.log_prob(theta)).abs().max() < 4 * many.stderr + 1e-3
    drawn = many.sample((1000,), generator=seed(2))
    # of the weights, and of the draws
    error = error + law.stddev / math.sqrt(1000)
    assert ((drawn.mean(0) - law.mean).abs() < 4 * error).all()


@pytest.mark.parametrize("apart", [0.3, 1.8])
def test_observations_that_contradict_one_another_are_told_of(apart: float) -> None:
    """p(x_1, x_2)/p(x_1)p(x_2) by Bayes' rule at 0: e^0.6, and e^−12, which is told to a nat."""
    x = torch.linalg.solve(SLOPE, torch.tensor([[apart, 0.0], [-apart, 0.0]]).double().T).T
    one = Normals(torch.zeros(2).double(), EYE)
    zero = torch.zeros(2, dtype=torch.float64)
    each = Normals(x @ SLOPE.T, COV).log_prob(zero)
    law = product_of_gaussians(x)
    log_z = float(each.sum() - one.log_prob(zero) - law.log_prob(zero))
    post = conjugate(WIDE)
    if log_z > math.log(1e-3):
        post.iid(x, draws=500, generator=seed())  # a warning would be an error
        return
    with pytest.warns(UserWarning, match="the observations contradict one another") as told:
        post.iid(x, draws=500, generator=seed())
    times = float(str(told[0].message).partition("e^")[2].split()[0])
    assert times == pytest.approx(-log_z, abs=1)


class TwoModes(nn.Module):
    """E[x0 | z] where theta ~ ½N(−1.5, ¼) + ½N(1.5, ¼) and x | theta ~ N(theta, 9)."""

    condition_shapes = {"vector": (1,)}  # noqa: RUF012
    wide_inputs = True
    means = torch.tensor([-1.5, 1.5], dtype=torch.float64)
    variance = 0.25
    noise = 9.0

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z: Tensor, t: Tensor, vector: Tensor) -> Tensor:
        phi = t.double().exp().atan()[:, None]
        cos, sin = phi.cos(), phi.sin()
        x = vector.double()
        total = self.variance + self.noise
        left = 1 / (1 / self.variance + 1 / self.noise)
        mean = left * (self.means / self.variance + x / self.noise)
        log_weight = -0.5 * (x - self.means).square() / total
        width = cos**2 * left + sin**2
        log_weight = log_weight - 0.5 * (z - cos * mean).square() / width
        part = (z - cos * mean) / width
        out = sin * (mean + cos * left * part) - cos * sin * part
        return (log_weight.softmax(1) * out).sum(1, keepdim=True).to(z.dtype)


def test_a_mixture_of_two_modes() -> None:
    """The prior is no Gaussian; the chance of a mode within four standard errors."""
    parts = Independent(Normal(TwoModes.means.float()[:, None], 0.5), 1)
    prior = MixtureSameFamily(Categorical(torch.ones(2)), parts)
    sde = scoresde.ScoreSDE(scoresde.RectifiedFlow(), TwoModes(), shape=(1,)).double()
    post = scoresde.Posterior(sde, prior)
    x = 0.6 + 3 * torch.randn(5, 1, generator=seed(5)).double()
    many = post.iid(x, draws=2000, generator=seed())
    at = torch.linspace(-6, 6, 2401, dtype=torch.float64)[:, None]
    truth = prior.log_prob(at) - (x.T - at).square().sum(1) / 18
    truth = truth - truth.logsumexp(0) - math.log(0.005)
    assert (many.log_prob(at[1000:1400:50]) - truth[1000:1400:50]).abs().max() < 0.05
    chance = float((truth.exp() * (at[:, 0] > 0)).sum()) * 0.005
    assert 0.2 < chance < 0.8
    found = float(many.weights @ (many.theta[:, 0] > 0).double())
    assert abs(found - chance) < 4 * math.sqrt(chance * (1 - chance) / many.ess)
    assert many.ess > 500


def test_a_box_by_coordinates_without_bounds() -> None:
    """A uniform prior is N(0, I) in u, where a network of zeros is a Gaussian."""
    zero = torch.zeros(2, dtype=torch.float64)
    none = torch.zeros(2, 0, dtype=torch.float64)
    coordinates = Coordinates(
        low=zero,
        high=zero + 1,
        mean=zero,
        scale=zero + 1,
        knots=none,
        levels=none[0],
        slope=SLOPE.T,
        intercept=zero,
        root=torch.linalg.cholesky(COV),
    )
    sde = scoresde.build("rectified", "resmlp", shape=(2,), vector=2, width=16)
    nn.init.zeros_(list(sde.net.parameters())[-1])
    post = scoresde.Posterior(sde, UNIT, coordinates=coordinates)
    x = torch.randn(4, 2, generator=seed(7))
    many = post.iid(x, draws=400, generator=seed())
    assert ((many.theta > 0) & (many.theta < 1)).all()
    theta, area = grid(12)
    u, slope = coordinates.support.forward(theta)
    truth = product_of_gaussians(x).log_prob(u) + slope
    log_p = many.log_prob(theta)
    allowed = log_p.isfinite()
    assert (log_p - truth)[allowed].abs().max() < 4 * many.stderr + 0.02
    assert float(truth[~allowed].exp().sum()) * area < 0.01
    assert many.log_prob([0.5, 1.2]) == -math.inf


def test_a_box_by_rejection() -> None:
    """Truncated Gaussians: leaks of single posteriors cancel from the product."""
    cov = torch.diag(torch.tensor([0.09, 0.04])).double()
    x = torch.tensor([[0.2, 1.5], [0.4, 1.0], [-0.2, 1.3]]).double()
    many = conjugate(UNIT, cov).iid(x, draws=1000, generator=seed())
    theta, area = grid(50)
    truth = Normals((x @ SLOPE.T).mean(0), cov / 3).log_prob(theta)
    truth = truth - (truth.exp().sum() * area).log()
    log_p = many.log_prob(theta)
    allowed = log_p.isfinite()
    assert (log_p - truth)[allowed].abs().max() < 4 * many.stderr + 0.02
    assert float(truth[~allowed].exp().sum()) * area < 1e-3
    assert ((many.theta >= 0) & (many.theta <= 1)).all()
    mean, _ = moments(many)
    exact = (truth.exp()[:, None] * theta).sum(0) * area
    assert (mean - exact).abs().max() < 4 * 0.2 / math.sqrt(many.ess)


def test_a_prior_with_thinner_tails_than_the_model() -> None:
    """log theta is a Gaussian for the model, so that Π p(theta | x_i)/exp(−5·theta) has no integral
    over the half line; where the observations put theta, it has: by quadrature over the bulk.
    """
    one = torch.ones(1, dtype=torch.float64)
    none = torch.zeros(1, 0, dtype=torch.float64)
    coordinates = Coordinates(
        low=0 * one,
        high=math.inf * one,
        mean=0 * one,
        scale=one,
        knots=none,
        levels=none[0],
        slope=one[:, None],
        intercept=0 * one,
        root=0.6 * one[:, None],
    )
    sde = scoresde.build("rectified", "resmlp", shape=(1,), vector=1, width=16)
    prior = Independent(Exponential(torch.ones(1)), 1)
    post = scoresde.Posterior(sde, prior, coordinates=coordinates)
    x = torch.tensor([[-1.0], [-0.8], [-1.3], [-0.9], [-1.1], [-1.4]])
    many = post.iid(x, draws=1000, generator=seed())
    u = torch.linspace(-4, 1, 2001, dtype=torch.float64)
    truth = -0.5 * ((u - x.double()) / 0.6).square().sum(0) - 5 * (u - u.exp())
    weights = truth.softmax(0)
    mean, std = moments(many)
    exact = float(weights @ u.exp())
    spread = math.sqrt(float(weights @ u.exp().square()) - exact**2)
    assert abs(float(mean) - exact) < 4 * spread / math.sqrt(many.ess)
    assert abs(float(std) / spread - 1) < 0.15
    assert many.ess > 400


def test_few_points_and_bad_observations_are_told_of() -> None:
    post = conjugate(WIDE)
    with pytest.raises(ValueError, match=r"wanted \(k, …\): k observations of one theta"):
        post.iid(torch.zeros(2))
    with pytest.raises(ValueError, match="x has NaN"):
        post.iid(torch.full((3, 2), math.nan))
    with pytest.raises(ValueError, match=r"wanted \(2\), one observation"):
        post.iid(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="draws is at least 2, got 1"):
        post.iid(torch.zeros(3, 2), draws=1)
    many = post.iid(torch.zeros(3, 2), draws=50, generator=seed())
    with pytest.warns(UserWarning, match="100 draws of 50 weighted points repeat some"):
        many.sample(100)
    with pytest.raises(ValueError, match=r"theta has shape \(3,\), wanted \(…, 2\)"):
        many.log_prob(torch.zeros(3))
    assert many.log_prob(torch.zeros(4, 3, 2)).shape == (4, 3)
    again = post.iid(torch.zeros(3, 2), draws=50, generator=seed())
    assert torch.equal(many.theta, again.theta)


def test_proposals_are_a_density_that_follows_the_points() -> None:
    modes = torch.tensor([[-3.0, 0.0], [3.0, 1.0]]).double()
    x = modes[torch.arange(4000) % 2] + 0.5 * torch.randn(4000, 2, generator=seed()).double()
    weights = torch.where(x[:, 0] > 0, 3.0, 1.0).double()
    mixture = fitted(x, weights / weights.sum(), seed())
    at = torch.linspace(-30, 30, 601, dtype=torch.float64)
    density = mixture.log_prob(torch.cartesian_prod(at, at)).exp()
    assert abs(float(density.sum()) * 0.01 - 1) < 0.01
    drawn = mixture.sample(4000, seed())
    narrow = torch.cdist(drawn, modes).amin(1) < 1.5
    assert narrow.double().mean() > 0.8
    share = (drawn[narrow][:, 0] > 0).double().mean()
    assert abs(float(share) - 0.75) < 0.04  # five standard errors


def test_infinite_parameters_have_density_0() -> None:
    many = conjugate(WIDE).iid(torch.zeros(2, 2), draws=50, generator=seed(0))
    theta = torch.tensor([[math.inf, 0.0], [0.0, -math.inf], [0.0, 0.0]])
    assert many.log_prob(theta).isneginf().tolist() == [True, True, False]
    one = conjugate(WIDE).log_prob(theta, x=torch.zeros(2))
    assert one.isneginf().tolist() == [True, True, False]


def test_observations_beyond_all_scales_are_refused() -> None:
    x = torch.tensor([[1e30, 0.0], [0.0, 0.0]])
    with pytest.raises(scoresde.SolverError, match="so far out"):
        conjugate(WIDE).iid(x, draws=50, generator=seed(0))
