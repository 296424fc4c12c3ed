"""Posteriors p(theta | x): against conjugate and truncated Gaussians in closed form."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Dirichlet,
    Exponential,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Uniform,
)

import scoresde
from scoresde.common.ridge import ridge
from scoresde.inference import pairs
from scoresde.inference.coordinates import Coordinates
from scoresde.inference.support import Support

COV = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
SLOPE = torch.tensor([[0.5, 0.2], [-0.3, 0.6]], dtype=torch.float64)
WIDE = MultivariateNormal(torch.zeros(2), torch.eye(2))
UNIT = (torch.zeros(2), torch.ones(2))
QUICK = {"rtol": 1e-3, "atol": 1e-3}


class Conjugate(nn.Module):
    """E[x0 | z] in closed form where theta | x is N(SLOPE·x, COV): the output of a perfect net."""

    condition_shapes = {"vector": (2,)}  # noqa: RUF012
    wide_inputs = True

    def __init__(self, shape: tuple[int, ...], cov: Tensor = COV) -> None:
        super().__init__()
        self.size, self.along = torch.linalg.eigh(cov)
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z: Tensor, t: Tensor, vector: Tensor) -> Tensor:
        phi = t.double().exp().atan()[:, None]
        cos, sin = phi.cos(), phi.sin()
        mean = vector.double() @ SLOPE.T
        left = ((z - cos * mean) @ self.along) / (cos**2 * self.size + sin**2)
        x0 = mean + cos * ((left * self.size) @ self.along.T)
        eps = sin * (left @ self.along.T)
        return (sin * x0 - cos * eps).to(z.dtype)


def conjugate(prior: Any, cov: Tensor = COV) -> scoresde.Posterior:
    sde = scoresde.ScoreSDE(scoresde.RectifiedFlow(), Conjugate((2,), cov), shape=(2,)).double()
    return scoresde.Posterior(sde, prior)


def truth(x: Tensor, cov: Tensor = COV) -> MultivariateNormal:
    return MultivariateNormal(x.double() @ SLOPE.T, cov)


def grid(n: int = 25) -> tuple[Tensor, float]:
    """Midpoints of the unit square's cells, and the area of a cell."""
    at = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.cartesian_prod(at, at), 1 / n**2


def test_a_perfect_model_gives_the_conjugate_posterior() -> None:
    post = conjugate(WIDE)
    x = torch.tensor([[0.4, -1.0], [2.0, 0.5], [0.0, 0.0]]).double()
    theta = truth(x).sample((5,))
    assert (post.log_prob(theta, x=x) - truth(x).log_prob(theta)).abs().max() < 1e-3
    one = post.log_prob(theta[:, 0], x=x[0])
    assert (one - truth(x[0]).log_prob(theta[:, 0])).abs().max() < 1e-3
    assert (post.map(x=x[:1], draws=20, steps=4) - truth(x[:1]).mean).abs().max() < 1e-3
    draws = post.sample((1000,), x=x, generator=torch.Generator().manual_seed(0), **QUICK)
    # five standard errors of a mean of 1,000
    assert ((draws.mean(0) - truth(x).mean).abs() < 5 * (COV.diagonal() / 1000).sqrt()).all()
    assert torch.allclose(torch.cov(draws[:, 1].T), COV, atol=0.08)


def test_outside_a_box_nothing_is_drawn_and_the_leak_is_divided_out() -> None:
    diagonal = torch.diag(torch.tensor([0.09, 0.04])).double()
    post = conjugate(UNIT, diagonal)
    x = torch.tensor([0.2, 1.5]).double()
    law = Normal(truth(x).mean, diagonal.diagonal().sqrt())
    exact = (law.cdf(torch.ones(2).double()) - law.cdf(torch.zeros(2).double())).prod()
    found = post.acceptance(x)
    assert abs(float(found.share - exact)) < 5 * float(found.stderr)
    theta, area = grid()
    log_p = post.log_prob(theta, x=x)
    error = float((log_p - (law.log_prob(theta).sum(-1) - exact.log())).abs().max())
    assert error < 5 * float(found.stderr / found.share) + 1e-3
    assert abs(float(log_p.exp().sum()) * area - 1) < 5 * float(found.stderr / found.share)
    draws = post.sample((1000,), x=x, generator=torch.Generator().manual_seed(0), **QUICK)
    assert WIDE.support.check(draws).all()
    assert ((draws >= 0) & (draws <= 1)).all()
    mean = (log_p.exp()[:, None] * theta).sum(0) * area
    assert ((draws.mean(0) - mean).abs() < 5 * draws.std(0) / math.sqrt(1000)).all()
    assert post.log_prob(torch.tensor([0.5, 1.01]), x=x) == -math.inf
    mode = post.map(x=x, draws=20, steps=4)
    assert (mode - law.mean.clamp(0, 1)).abs().max() < 2e-3


def test_a_model_that_misses_the_support_is_told_of() -> None:
    post = conjugate(UNIT, 1e-4 * torch.eye(2).double())
    far = torch.tensor([-9.0, -9.0]).double()
    with pytest.raises(scoresde.SolverError, match="of the model lie in the prior's support"):
        post.sample((2,), x=far, **QUICK)
    with pytest.raises(ValueError, match="normalized=False"):
        post.log_prob(torch.tensor([0.5, 0.5]), x=far)
    edge = torch.linalg.solve(SLOPE, torch.tensor([-0.022, 0.5]).double())
    with pytest.warns(UserWarning, match="lie in the prior's support"):
        assert (post.sample((200,), x=edge, **QUICK) >= 0).all()


def test_the_support_is_mapped_to_all_of_space_and_back() -> None:
    low = torch.tensor([-3.0, 0.0, -math.inf, -math.inf])
    high = torch.tensor([5.0, math.inf, 2.0, math.inf])
    support = Support(low, high)
    u = torch.randn(100, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta = support.inverse(u, torch.float64)
    back, log_det = support.forward(theta)
    assert torch.allclose(back, u, atol=1e-9)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: support.forward(v)[0]))(theta)
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_det, atol=1e-9)
    far = support.inverse(40 * u, torch.float32)
    assert ((far > low) & (far < high)).all()


def small(prior: Any, theta: Tensor, x: Tensor, **how: Any) -> scoresde.Posterior:
    """A posterior after a few steps of a narrow network, which is all that these need."""
    g = torch.Generator().manual_seed(0)
    net = {"width": 32, "units": 32, "fourier": 16, "dropout": 0.1, "condition_dropout": 0.0}
    sizes = {"shape": (theta.shape[1],), "vector": x.shape[1]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        how = {"sde": scoresde.build("rectified", "encoded_resmlp", **sizes, **net), **how}
    how = {"steps": 4, "held_out": 0, "progress": False, "generator": g, **how}
    return scoresde.posterior(prior, theta, x, **how)


def test_a_linear_gaussian_posterior_needs_no_network() -> None:
    """sbibm's gaussian_linear: KL ≤ 0.03 nats, as least squares reaches; standard error 0.01."""
    g = torch.Generator().manual_seed(0)
    prior = MultivariateNormal(torch.zeros(10), 0.1 * torch.eye(10))
    theta = math.sqrt(0.1) * torch.randn(10_000, 10, generator=g)
    x = theta + math.sqrt(0.1) * torch.randn(10_000, 10, generator=g)
    post = small(prior, theta, x)
    seen = theta[:1000] + math.sqrt(0.1) * torch.randn(1000, 10, generator=g)
    exact = Independent(Normal(seen / 2, math.sqrt(0.05)), 1)
    draws = exact.mean + math.sqrt(0.05) * torch.randn(1000, 10, generator=g)
    gap = exact.log_prob(draws) - post.log_prob(draws, x=seen, steps=16)
    assert abs(float(gap.mean())) < 0.03


@pytest.mark.parametrize("bounds", ["transform", "reject"])
def test_a_box_holds_all_of_a_trained_posterior(bounds: str) -> None:
    g = torch.Generator().manual_seed(0)
    theta = torch.rand(500, 2, generator=g)
    x = theta + 0.2 * torch.randn(500, 2, generator=g)
    post = small(UNIT, theta, x, bounds=bounds)
    seen = torch.tensor([0.9, 0.4])
    points, area = grid(25)
    total = float(post.log_prob(points, x=seen, **QUICK).exp().sum()) * area
    assert abs(total - 1) < 0.03
    draws = post.sample((300,), x=torch.tensor([[1.2, 0.4], [0.5, -0.2]]), **QUICK)
    assert draws.shape == (300, 2, 2)
    assert ((draws > 0) & (draws < 1)).all()
    assert draws[:, 0, 0].mean() > draws[:, 1, 0].mean() + 0.2


def test_a_positive_parameter_stays_positive() -> None:
    g = torch.Generator().manual_seed(0)
    theta = torch.empty(500, 1).exponential_(generator=g)
    x = theta.log() + 0.3 * torch.randn(500, 1, generator=g)
    post = small(Independent(Exponential(torch.ones(1)), 1), theta, x)
    at = torch.logspace(-4, 2, 400, dtype=torch.float64)[:, None]
    density = post.log_prob(at, x=torch.tensor([-1.0]), **QUICK).exp()
    assert abs(float(torch.trapezoid(density.double(), at[:, 0])) - 1) < 5e-3
    assert (post.sample((500,), x=torch.tensor([-3.0])) > 0).all()


def test_a_support_in_two_pieces_is_kept_by_rejection() -> None:
    low = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    prior = MixtureSameFamily(Categorical(torch.ones(2)), Independent(Uniform(low, low + 1), 1))
    g = torch.Generator().manual_seed(0)
    theta = torch.rand(400, 2, generator=g) + 2 * (torch.rand(400, 1, generator=g) < 0.5)
    post = small(prior, theta, theta + 0.3 * torch.randn(400, 2, generator=g))
    draws = post.sample((100,), x=torch.tensor([1.5, 1.5]), generator=g, **QUICK)
    first = ((draws >= 0) & (draws <= 1)).all(1)
    second = ((draws >= 2) & (draws <= 3)).all(1)
    assert (first | second).all()
    assert first.any()
    assert second.any()
    gap = torch.tensor([1.5, 1.5])
    assert post.log_prob(gap, x=gap) == -math.inf


def test_the_regression_forgets_features_that_tell_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(60, 50, dtype=torch.float64, generator=g)
    noise = torch.randn(60, 2, dtype=torch.float64, generator=g)
    slope = ridge(features, noise - noise.mean(0)).slope
    assert (features @ slope).std() < 0.5
    target = features @ torch.randn(50, 2, dtype=torch.float64, generator=g)
    assert (features @ ridge(features, target).slope - target).abs().max() < 1e-2


class Trained(Exception):
    """What comes after the training is not looked at."""


def test_held_out_pairs_are_checked_before_training_and_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A twentieth of them, but at least 10, or a fifth of few."""
    held = []
    original = pairs.fit

    def fit(*args: Any, **how: Any) -> scoresde.History:
        held.append(len(how["validation"].x))
        history = original(*args, **how)
        assert history.checked == [0, 20, 24, 29, 30]
        raise Trained

    monkeypatch.setattr(pairs, "fit", fit)
    monkeypatch.setattr(pairs, "build", functools.partial(scoresde.build, width=16))
    for n in (40, 100, 400):
        theta = torch.rand(n, 2, generator=torch.Generator().manual_seed(n))
        with pytest.raises(Trained):
            scoresde.posterior(UNIT, theta, theta, steps=30, seed=0, progress=False)
    assert held == [8, 10, 20]


@pytest.mark.slow
def test_few_pairs_are_no_worse_than_the_start() -> None:
    """The posterior before training is nearly exact here, and the network learns pairs by heart
    within a hundred steps: with the first check after 250 steps, log p of fresh pairs fell by 25.
    """
    g = torch.Generator().manual_seed(0)
    low, high = torch.zeros(4), torch.ones(4)
    theta, fresh = torch.rand(100, 4, generator=g), torch.rand(100, 4, generator=g)
    x, seen = (t + 0.3 * torch.randn(t.shape, generator=g) for t in (theta, fresh))
    found = []
    for steps in (1, 320):
        how: dict[str, Any] = {"steps": steps, "seed": 1, "progress": False}
        post = scoresde.posterior((low, high), theta, x, **how)
        found.append(post.log_prob(fresh, x=seen, steps=12))
    assert post.history.checked[:4] == [0, 20, 24, 29]
    assert float((found[0] - found[1]).mean()) < 0.1  # seen: .00


def test_constant_and_failed_simulations() -> None:
    g = torch.Generator().manual_seed(0)
    theta = torch.rand(300, 2, generator=g)
    x = torch.cat([theta + 0.1 * torch.randn(300, 2, generator=g), torch.full((300, 1), 7.0)], 1)
    x[3, 0] = math.nan
    x[9, 1] = math.inf
    with pytest.warns(UserWarning, match="2 of 300 simulations"):
        post = small(UNIT, theta, x)
    near = post.sample((200,), x=torch.tensor([0.5, 0.5, 7.0]), **QUICK)
    off = post.log_prob(near, x=torch.tensor([0.5, 0.5, 7.0]), **QUICK)
    assert (near.mean(0) - 0.5).abs().max() < 0.1
    assert off.isfinite().all()


@pytest.mark.parametrize(
    "prior",
    [
        UNIT,
        Independent(Normal(torch.zeros(2), torch.ones(2) / 3), 1),
        MultivariateNormal(torch.zeros(2), COV.float()),
    ],
)
def test_what_is_saved_comes_back_bit_for_bit(prior: Any, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    theta = 0.4 + 0.2 * torch.rand(100, 2, generator=g)
    post = small(prior, theta, theta + 0.1)
    again = scoresde.load_posterior(post.save(tmp_path / "post"))
    x = torch.tensor([0.5, 0.4])
    points = 0.1 + 0.3 * torch.randn(20, 2, generator=g)
    assert torch.equal(again.log_prob(points, x=x, steps=8), post.log_prob(points, x=x, steps=8))
    assert again._prior.describe() == post._prior.describe()
    inside = post.prior.support.check(points)
    assert torch.equal(again.prior.log_prob(points[inside]), post.prior.log_prob(points[inside]))
    assert type(again.prior) is type(post.prior)
    assert scoresde.load(tmp_path / "post").shape == (2,)


def test_a_prior_of_another_family_is_given_anew(tmp_path: Path) -> None:
    parts = Independent(Normal(torch.zeros(3, 2), torch.ones(3, 2)), 1)
    prior = MixtureSameFamily(Categorical(torch.ones(3)), parts)
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=1, width=8)
    post = scoresde.Posterior(sde, prior)
    assert not post.leaks
    folder = post.save(tmp_path / "post")
    with pytest.raises(ValueError, match=r"load_posterior\(folder, prior\)"):
        scoresde.load_posterior(folder)
    assert scoresde.load_posterior(folder, prior).prior is prior
    with pytest.raises(scoresde.CheckpointError, match="no posterior"):
        scoresde.load_posterior(scoresde.save(sde, tmp_path / "model"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prior": (torch.zeros(3), torch.ones(3))}, r"wanted \(N, 3\)"),
        ({"prior": Uniform(torch.zeros(2), torch.ones(2))}, "batch shape"),
        ({"prior": (torch.ones(2), torch.zeros(2))}, "low < high"),
        ({"prior": Dirichlet(torch.ones(2))}, "no density"),
        ({"theta": 2 + torch.rand(20, 2)}, "20 of 20 rows of theta lie outside"),
        ({"x": torch.rand(19, 3)}, "20 rows and x has 19"),
        ({"x": torch.full((20, 3), math.nan)}, "0 pairs are left"),
        ({"bounds": "clip"}, "There are: reject, transform"),
        ({"x": torch.rand(20, 3, 4)}, "flatten it"),
        ({"held_out": 1.5}, "held_out"),
        ({"patience": 0}, "patience"),
        ({"steps": "Auto"}, "steps is an integer or 'auto'"),
        ({"lr": -1.0}, "lr"),
        ({"ema": -3}, "ema"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_pairs_are_refused(
    change: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"prior": UNIT, "theta": torch.rand(20, 2), "x": torch.rand(20, 3)}
    monkeypatch.delattr(Coordinates, "measured")  # before any work
    with pytest.raises(ValueError, match=words):
        scoresde.posterior(**{**good, **change})


def test_bad_arguments_are_refused() -> None:
    post = conjugate(UNIT)
    with pytest.raises(TypeError, match="x is missing"):
        post.sample((3,))
    with pytest.raises(ValueError, match=r"wanted \(2\), one observation, or \(B, 2\)"):
        post.sample((3,), x=torch.zeros(3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        post.sample((3,), x=torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match=r"theta has shape \(4, 3\)"):
        post.log_prob(torch.zeros(4, 3), x=torch.zeros(2))
    with pytest.raises(ValueError, match="x holds"):
        post.log_prob(torch.zeros(4, 2), x=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="2 parameters"):
        scoresde.Posterior(scoresde.build("vp", "resmlp", shape=(3,), vector=1), UNIT)
    with pytest.raises(ValueError, match="takes no condition"):
        scoresde.Posterior(scoresde.build("vp", "resmlp", shape=(2,)), UNIT)
    with pytest.raises(TypeError, match=r"pair \(low, high\)"):
        scoresde.Posterior(post.sde, "uniform")


def test_numbers_of_coordinates_are_measured_where_the_data_are() -> None:
    """Of scale 1e-6 and 1e6, w is standard normal all the same."""
    g = torch.Generator().manual_seed(0)
    theta = torch.randn(2000, 2, generator=g) @ COV.float()
    x = torch.stack([1e6 * theta[:, 0], 1e-6 * theta[:, 1]], 1) * (1 + 1e-3)
    x = x * (1 + 0.3 * torch.randn(2000, 2, generator=g))
    free = torch.full((2,), math.inf)
    coordinates = Coordinates.measured(-free, free, theta, x)
    w, _ = coordinates.forward(theta, x)
    assert torch.allclose(torch.cov(w.T), torch.eye(2).double(), atol=5e-3)
    assert torch.allclose(coordinates.inverse(w, x), theta.double(), atol=1e-8)


@pytest.mark.slow
def test_a_spread_is_learnt_from_how_far_the_observations_lie_apart() -> None:
    """x is four draws of N(0, θ²), and p(θ | x) ∝ θ⁻⁴·exp(−∑x²/2θ²) in the box, by quadrature.

    The gap in log p was 0.04 ± 0.01 nats; 0.07 with a linear map of x.
    """
    rng = torch.Generator().manual_seed(0)
    low, high = torch.tensor([0.2]), torch.tensor([3.0])
    theta = low + (high - low) * torch.rand(4500, 1, generator=rng)
    x = theta * torch.randn(4500, 4, generator=rng)
    post = scoresde.posterior(
        (low, high), theta[500:], x[500:], steps=1500, generator=rng, progress=False
    )
    square = x[:500].double().square().sum(1)
    grid = torch.linspace(0.2, 3.0, 20_001, dtype=torch.float64)

    def height(scale: Tensor) -> Tensor:
        return -4 * scale.log() - square[:, None] / (2 * scale**2)

    evidence = torch.trapezoid(height(grid).exp(), grid, dim=1)
    exact = height(theta[:500].double())[:, 0] - evidence.log()
    gap = exact - post.log_prob(theta[:500], x=x[:500], **QUICK)
    assert -0.03 < float(gap.mean()) < 0.08
