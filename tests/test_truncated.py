"""Truncated normals as coordinates: against scipy's, and posteriors in closed form."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri_exp
from scipy.stats import truncnorm
from torch import Tensor, nn

import scoresde
from scoresde.inference import truncated
from scoresde.inference.coordinates import Coordinates
from scoresde.storage import records

NOISE = 0.15
LAWS = [
    (0.5, 30.0),
    (0.3, 0.3),
    (0.3, 1e-3),
    (-1.0, 0.3),
    (2.0, 0.5),
    (1.001, 1e-3),
    (-10.0, 0.1),
    (-300.0, 30.0),
    (0.0, 0.1),
]
"""m and s in units of the interval."""


def like(u: Tensor, m: float, s: float) -> tuple[Tensor, Tensor]:
    return torch.full_like(u, m), torch.full_like(u, 2 * math.log(s))


@pytest.mark.parametrize(("m", "s"), LAWS)
def test_the_map_is_that_of_truncated_normals(m: float, s: float) -> None:
    """v = Φ⁻¹ of scipy's distribution function, from its smaller tail, and log p of p = Φ(u)."""
    u = torch.linspace(-6, 6, 49, dtype=torch.float64)
    v, log_slope = truncated.forward(u, *like(u, m, s))
    law = truncnorm(-m / s, (1 - m) / s, loc=m, scale=s)
    p = ndtr(u.numpy())
    below = law.logcdf(p)
    above = law.logsf(p)
    wanted = torch.as_tensor(np.where(below < above, ndtri_exp(below), -ndtri_exp(above)))
    sure = wanted.isfinite() & (wanted.abs() < 20)
    torch.testing.assert_close(v[sure], wanted[sure], atol=1e-5, rtol=1e-7)
    log_p = log_slope + 0.5 * (u.square() - v.square())
    torch.testing.assert_close(log_p, torch.as_tensor(law.logpdf(p)), atol=1e-8, rtol=1e-8)
    v = torch.linspace(-3, 3, 13, dtype=torch.float64)
    found = torch.special.ndtr(truncated.inverse(v, *like(v, m, s)))
    share = torch.as_tensor(law.ppf(ndtr(v.numpy())))
    torch.testing.assert_close(found, share, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize(("m", "s"), LAWS)
def test_the_map_and_its_inverse_agree(m: float, s: float) -> None:
    u = torch.linspace(-6, 6, 49, dtype=torch.float64, requires_grad=True)
    v, log_slope = truncated.forward(u, *like(u, m, s))
    assert v.isfinite().all()
    torch.testing.assert_close(truncated.inverse(v, *like(u, m, s)), u, atol=1e-10, rtol=0)
    (slope,) = torch.autograd.grad(v.sum(), u)
    torch.testing.assert_close(slope.log(), log_slope, atol=1e-8, rtol=0)
    far = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    back = truncated.inverse(far, *like(far, m, s))
    again, log_slope = truncated.forward(back, *like(far, m, s))
    torch.testing.assert_close(again, far, atol=1e-10, rtol=0)
    (slope,) = torch.autograd.grad(back.sum(), far)
    torch.testing.assert_close(-slope.log(), log_slope, atol=1e-8, rtol=0)


def test_numbers_far_out_are_mapped_into_the_interval() -> None:
    v = torch.tensor([-1e5, -300.0, -38.0, 38.0, 300.0, 1e5], dtype=torch.float64)
    for log_variance in (-12.0, -1.0, 3.0):
        for m in (-3.0, 0.5, 1.0):
            u = truncated.inverse(v, torch.full_like(v, m), torch.full_like(v, log_variance))
            assert u.isfinite().all()
            assert (u.diff() >= 0).all()


def test_a_wide_law_is_no_law_and_a_narrow_one_an_affine_map() -> None:
    u = torch.linspace(-4, 4, 9, dtype=torch.float64)
    v, log_slope = truncated.forward(u, *like(u, 0.5, 1e4))
    torch.testing.assert_close(v, u, atol=1e-7, rtol=0)
    assert log_slope.abs().max() < 1e-7
    v, _ = truncated.forward(u, *like(u, 0.5, 1e-3))
    torch.testing.assert_close(v, (torch.special.ndtr(u) - 0.5) / 1e-3, atol=1e-9, rtol=1e-9)


def test_derivatives_of_both_orders() -> None:
    """Against finite differences, in m and s too: log_prob may be differentiated twice."""
    u = torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64, requires_grad=True)
    m = torch.tensor([0.4, -0.5, 1.2], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([-1.0, -2.0, -4.0], dtype=torch.float64, requires_grad=True)
    for fn in (truncated.forward, truncated.inverse):
        assert torch.autograd.gradcheck(fn, (u, m, t))
        assert torch.autograd.gradgradcheck(fn, (u, m, t))


def pairs(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """θ uniform on [0, 1]², x = θ_1 + 0.15·ε, and nothing of θ_2."""
    g = torch.Generator().manual_seed(seed)
    theta = torch.rand(n, 2, generator=g, dtype=torch.float64)
    return theta, theta[:, :1] + NOISE * torch.randn(n, 1, generator=g, dtype=torch.float64)


def exact(theta: Tensor, mean: Tensor, spread: float | Tensor) -> Tensor:
    """log p of θ_1, a normal truncated to [0, 1]; θ_2 is uniform."""
    edges = torch.special.ndtr((1 - mean) / spread) - torch.special.ndtr(-mean / spread)
    depth = 0.5 * ((theta[..., 0] - mean) / spread).square()
    height = torch.log(torch.as_tensor(spread) * math.sqrt(2 * math.pi))
    return -depth - height - edges.log()


LOW = torch.zeros(2, dtype=torch.float64)


@pytest.fixture(scope="module")
def fitted() -> Coordinates:
    theta, x = pairs(4000, 1)
    return Coordinates.measured(LOW, LOW + 1, theta, x)


@pytest.fixture(scope="module")
def start() -> scoresde.Posterior:
    """The posterior itself: m = x and s = 0.15, m = 0.5 and s = 30, and a network of zeros."""
    zero = torch.zeros(2, dtype=torch.float64)
    none = torch.zeros(1, 0, dtype=torch.float64)
    log_variance = torch.tensor([2 * math.log(NOISE), 2 * math.log(30)])
    coordinates = Coordinates(
        low=LOW,
        high=LOW + 1,
        mean=zero[:1],
        scale=zero[:1] + 1,
        knots=none,
        levels=none[0],
        slope=torch.tensor([[1.0, 0.0]]),
        intercept=torch.tensor([0.0, 0.5]),
        root=torch.eye(2),
        contrast_scale=zero[:1] + 1,
        spread_mean=zero,
        spread_scale=zero + 1,
        spread_slope=torch.zeros(2, 2),
        spread_intercept=log_variance,
        spread_low=log_variance,
        spread_high=log_variance,
        truncated=torch.ones(2),
        ceiling=torch.full((2,), math.inf),
    )
    sde = scoresde.build("rectified", "resmlp", shape=(2,), vector=5, width=16)
    nn.init.zeros_(list(sde.net.parameters())[-1])
    nn.init.zeros_(list(sde.net.parameters())[-2])
    return scoresde.Posterior(sde, (LOW, LOW + 1), coordinates=coordinates)


def test_noise_in_a_box_is_exact_from_the_start(fitted: Coordinates) -> None:
    """The KL of fits to other simulations was 0.0009 to 0.004 nats; 0.04 with Gaussians in u."""
    assert fitted.cut == [0, 1]
    theta, x = pairs(4000, 2)
    w, log_det = fitted.forward(theta, x)
    log_p = log_det - 0.5 * (w.square() + math.log(2 * math.pi)).sum(1)
    assert abs(float((exact(theta, x[:, 0], NOISE) - log_p).mean())) < 0.01
    torch.testing.assert_close(fitted.inverse(w, x), theta, atol=1e-9, rtol=1e-9)
    assert (torch.cov(w.T) - torch.eye(2)).abs().max() < 0.12  # five standard errors
    plain = Coordinates.measured(LOW, LOW + 1, *pairs(4000, 1), varies=False)
    assert not plain.cut
    w, log_det = plain.forward(theta, x)
    log_p = log_det - 0.5 * (w.square() + math.log(2 * math.pi)).sum(1)
    assert float((exact(theta, x[:, 0], NOISE) - log_p).mean()) > 0.03


def test_a_spread_that_x_tells() -> None:
    """x = (θ_1 + s·ε, s), s from 0.03 to 1: p(θ_1 | x) is truncated normal, off by 0.006 nats."""

    def seen(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        theta, _ = pairs(n, seed)
        g = torch.Generator().manual_seed(10 + seed)
        s = 10 ** (-1.5 * torch.rand(n, generator=g, dtype=torch.float64))
        x = theta[:, 0] + s * torch.randn(n, generator=g, dtype=torch.float64)
        return theta[:, :1], torch.stack([x, s], 1), s

    theta, x, _ = seen(3000, 0)
    law = Coordinates.measured(LOW[:1], LOW[:1] + 1, theta, x)
    assert law.cut == [0]
    theta, x, s = seen(3000, 1)
    w, log_det = law.forward(theta, x)
    log_p = log_det - 0.5 * (w.square() + math.log(2 * math.pi)).sum(1)
    gap = float((exact(theta, x[:, 0], s) - log_p).mean())
    assert abs(gap) < 0.02


def test_a_ceiling_adds_precisions() -> None:
    variance = torch.tensor([1e-6, 0.3, 5.0], dtype=torch.float64)
    found = truncated.under(variance.log(), math.log(0.5)).exp()
    torch.testing.assert_close(found, 1 / (1 / variance + 2))
    assert torch.equal(truncated.under(variance.log(), math.inf), variance.log())


def test_what_is_not_informed_stays_uniform(fitted: Coordinates) -> None:
    """θ_2 at quantiles of its w, for x below, inside and above: within 0.02 of them."""
    w = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for x in (-0.3, 0.5, 1.3):
        at = torch.full((9, 1), x, dtype=torch.float64)
        middle = torch.stack([torch.zeros_like(w), w], 1)
        theta = fitted.inverse(middle, at)[:, 1]
        assert (theta - torch.special.ndtr(w)).abs().max() < 0.02


def test_a_network_is_told_the_median_and_the_slope(fitted: Coordinates) -> None:
    x = torch.tensor([[0.5], [1.2]], dtype=torch.float64)
    told = fitted.told(x)
    assert told.shape == (2, 5)
    u, log_variance = told[:, 1:3], told[:, 3:]
    edge = (fitted.support.inverse(u, torch.float64)[:, 0] - x[:, 0]) / NOISE
    below = torch.special.ndtr(-x[:, 0] / NOISE)
    above = torch.special.ndtr((1 - x[:, 0]) / NOISE)
    half = (torch.special.ndtr(edge) - below) / (above - below)
    assert (half - 0.5).abs().max() < 0.05
    step = 1e-5
    shifted, _ = fitted._standardized(u + step, x)
    centre, _ = fitted._standardized(u, x)
    slope = (shifted - centre)[:, 0] / step
    assert torch.allclose(slope.log(), -0.5 * log_variance[:, 0], atol=1e-3)


def test_two_peaks_remain_a_gaussian_in_u() -> None:
    """|θ| and a little noise: p(θ | x) has peaks at both, and no truncated normal is likelier."""
    theta = 2 * pairs(2000)[0][:, :1] - 1
    x = theta.abs() + 0.05 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(2))
    law = Coordinates.measured(LOW[:1] - 1, LOW[:1] + 1, theta, x)
    assert not law.cut
    assert not len(law.numbers["truncated"])


def test_only_intervals_are_truncated() -> None:
    theta, x = pairs(2000)
    both = torch.cat([theta[:, :1], theta[:, 1:].log(), (1 - theta[:, 1:]) ** 2], 1)
    seen = torch.cat([x, both[:, 1:2] + x.flip(0)], 1)
    low = torch.tensor([0.0, -math.inf, 0.0])
    high = torch.tensor([1.0, math.inf, math.inf])
    law = Coordinates.measured(low, high, both, seen)
    assert law.cut == [0]
    at = both[:20].clone().requires_grad_()
    w, log_det = law.forward(at, seen[:20])
    rows = [torch.autograd.grad(w[:, i].sum(), at, retain_graph=True)[0] for i in range(3)]
    assert torch.allclose(torch.linalg.slogdet(torch.stack(rows, 1))[1], log_det, atol=1e-8)
    torch.testing.assert_close(law.inverse(w, seen[:20]), both[:20], atol=1e-9, rtol=1e-9)


def test_observations_of_one_theta(start: scoresde.Posterior) -> None:
    """Of three, p(θ | x) is the normal of their mean with 0.15/√3, truncated."""
    x = torch.tensor([[0.9], [1.2], [0.7]])
    many = start.iid(x, draws=400, seed=0)
    theta = torch.linspace(0.55, 0.99, 12, dtype=torch.float64)[:, None].expand(-1, 2).clone()
    theta[:, 1] = 0.5
    truth = exact(theta, x.double().mean(), NOISE / math.sqrt(3))
    assert (many.log_prob(theta) - truth).abs().max() < 4 * many.stderr + 0.02
    mean = float(many.weights @ many.theta[:, 0].double())
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    weight = exact(grid, x.double().mean(), NOISE / math.sqrt(3)).softmax(0)
    assert abs(mean - float(weight @ grid[:, 0])) < 0.025  # five standard errors


@pytest.mark.slow
def test_the_mode_is_that_of_the_truncated_normal(start: scoresde.Posterior) -> None:
    x = torch.tensor([[0.6], [1.5]])
    quick = {"draws": 30, "steps": 2, "rtol": 1e-2, "atol": 1e-2}
    inside, outside = start.map(x, seed=0, **quick)[:, 0].tolist()
    assert abs(inside - 0.6) < 0.02
    assert outside > 0.998


def test_a_truncated_posterior_is_saved(start: scoresde.Posterior, tmp_path: Path) -> None:
    folder = start.save(tmp_path / "post")
    again = scoresde.load_posterior(folder)
    x = torch.tensor([0.4])
    points = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.log_prob(points, x=x, steps=8), start.log_prob(points, x=x, steps=8))
    about, numbers = records.read(folder, "posterior")
    bad = [torch.full((2,), 0.5), torch.ones(3), torch.full((2,), math.nan)]
    changes = [{"truncated": value} for value in bad] + [{"low": torch.full((2,), -math.inf)}]
    changes += [{"ceiling": value} for value in bad[1:]]
    for change in changes:
        records.write(folder, "posterior", {**numbers, **change}, about)
        with pytest.raises(scoresde.CheckpointError, match="edited"):
            scoresde.load_posterior(folder)
