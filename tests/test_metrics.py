"""Distances between two sets, tests of equality and noise floors against closed forms and brute
force.

Seeds are fixed; bounds are 4 standard errors.
"""

from __future__ import annotations

import importlib
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

import scoresde
from conftest import generator
from scoresde import toy
from scoresde.metrics import (
    classifier_test,
    energy_distance,
    energy_test,
    mmd,
    noise_floor,
    sliced_wasserstein,
    wasserstein,
)

BLOCKS = importlib.import_module("scoresde.metrics.points")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(), (2,), (1, 4, 4)])
@pytest.mark.parametrize("pairs", [1, 64, 2**19])
def test_is_the_sum_over_pairs(
    shape: tuple[int, ...], pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BLOCKS, "PAIRS_AT_ONCE", pairs)
    x, y = (
        torch.randn(30, *shape, generator=seeded()),
        1 + torch.randn(17, *shape, generator=seeded(1)),
    )
    a, b = x.double().reshape(30, -1).numpy(), y.double().reshape(17, -1).numpy()
    expected = (
        2 * cdist(a, b).mean() - cdist(a, a).sum() / (30 * 29) - cdist(b, b).sum() / (17 * 16)
    )
    assert energy_distance(x, y).item() == pytest.approx(expected, abs=1e-12)
    assert energy_distance(x, y).dtype == torch.float64


def test_sums_over_pairs_by_hand() -> None:
    x, y = torch.zeros(2, 2), torch.tensor([[3.0, 4.0]])
    assert float(BLOCKS.total(x, y)) == 10
    assert float(BLOCKS.total(x, y, of=torch.square)) == 50


def test_is_unbiased_for_two_gaussians() -> None:
    # in one dimension E|Z| of Z ~ N(d, v) is known: √(2v/π)·exp(−d²/2v) + d·(1 − 2Φ(−d/√v))
    def mean_abs(d: float, v: float) -> float:
        flip = 1 - 2 * stats.norm.cdf(-d / math.sqrt(v))
        return math.sqrt(2 * v / math.pi) * math.exp(-d * d / (2 * v)) + d * float(flip)

    truth = 2 * mean_abs(0.5, 5) - mean_abs(0, 2) - mean_abs(0, 8)
    g = seeded()
    draws = torch.stack(
        [
            energy_distance(
                torch.randn(20, 1, generator=g), 0.5 + 2 * torch.randn(30, 1, generator=g)
            )
            for _ in range(2000)
        ]
    )
    assert draws.mean().item() == pytest.approx(
        truth, abs=4 * draws.std().item() / math.sqrt(2000)
    )


def test_p_values_are_uniform_under_the_null() -> None:
    # 200 tests of equal laws: Kolmogorov–Smirnov against uniform, false alarm in 10,000
    g = seeded()
    p = [
        energy_test(
            torch.randn(40, 2, generator=g),
            torch.randn(60, 2, generator=g),
            permutations=99,
            generator=g,
        )
        for _ in range(200)
    ]
    assert stats.kstest(p, stats.uniform.cdf).pvalue > 1e-4
    assert min(p) >= 0.01


def test_sees_a_shift_and_a_missing_correlation() -> None:
    g = seeded()
    x, y = torch.randn(300, 1, 4, 4, generator=g), torch.randn(400, 1, 4, 4, generator=g)
    assert energy_test(x, y + 0.3, generator=g) == 0.001
    z = torch.randn(500, 1, generator=g)
    assert (
        energy_test(torch.cat([z, z], 1), torch.randn(500, 2, generator=g), generator=g) == 0.001
    )


def test_ties_count_and_the_generator_is_the_only_source() -> None:
    x = torch.tensor([0.1, 0.7])
    p = energy_test(x, x + 10, permutations=2000, generator=seeded())
    # of the 6 deals of 4 points, 2 are as extreme: 4 standard errors of a binomial
    assert p == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / 2000))
    state = torch.get_rng_state()
    a, b = torch.randn(2, 50, 2, generator=seeded(1))
    assert energy_test(a, b, generator=seeded(2)) == energy_test(a, b, generator=seeded(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_mistakes_are_named() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(TypeError, match=r"torch\.as_tensor\(y\)"):
        energy_distance(x, [1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same shape"):
        energy_distance(x, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="n ≥ 2"):
        energy_distance(x, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="NaN"):
        energy_distance(x, x / 0)
    with pytest.raises(ValueError, match="subsample"):
        energy_test(torch.zeros(5000, 2), torch.zeros(5000, 2))
    with pytest.raises(ValueError, match="permutations"):
        energy_test(x, x, permutations=0)


# --- transport ---


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("shape", [(), (2,), (1, 2, 2)])
def test_wasserstein_is_the_best_of_all_permutations(shape: tuple[int, ...], p: float) -> None:
    x, y = (
        torch.randn(6, *shape, generator=seeded()),
        3 * torch.rand(6, *shape, generator=seeded(1)) - 1,
    )
    d = cdist(x.double().reshape(6, -1).numpy(), y.double().reshape(6, -1).numpy()) ** p
    best = min(
        sum(d[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(6))
    )
    assert wasserstein(x, y, p=p).item() == pytest.approx((best / 6) ** (1 / p), rel=1e-12)


def test_moving_and_scaling_a_set_before_it_is_assigned_changes_nothing() -> None:
    """It makes p = 2 fast; on sets far apart, of other sizes, of rank 1, and without any spread."""
    x, y = (
        torch.randn(150, 3, generator=seeded()).double(),
        torch.rand(150, 3, generator=seeded(1)).double(),
    )
    for a, b in (
        (x, y),
        (x, 100 + 1e-3 * y),
        (1e3 * x - 7, y * torch.tensor([1.0, 0.0, 0.0])),
        (torch.ones_like(x), y),
    ):
        cost = cdist(a.numpy(), b.numpy(), "sqeuclidean")
        assert wasserstein(a, b).item() == pytest.approx(
            math.sqrt(cost[linear_sum_assignment(cost)].mean()), rel=1e-9
        )


def test_wasserstein_of_a_convex_map_is_its_displacement() -> None:
    """x ↦ A·x + b with A symmetric and positive is a gradient of a convex function, hence optimal
    (Brenier 1991).
    """
    x = torch.randn(300, 2, generator=seeded(), dtype=torch.float64)
    y = x @ torch.tensor([[2.0, 0.7], [0.7, 0.5]], dtype=torch.float64) + torch.tensor(
        [3.0, -1.0], dtype=torch.float64
    )
    shuffled = y[torch.randperm(300, generator=seeded(1))]
    assert wasserstein(x, shuffled).item() == pytest.approx(
        (x - y).square().sum(1).mean().sqrt().item(), rel=1e-12
    )


@pytest.mark.parametrize(("n", "m"), [(50, 50), (40, 60), (7, 30)])
def test_sliced_wasserstein_in_one_dimension_is_exact(n: int, m: int) -> None:
    x, y = (
        torch.randn(n, generator=seeded()).double(),
        2 * torch.randn(m, generator=seeded(1)).double() + 1,
    )
    value = sliced_wasserstein(x, y, projections=3, p=1, generator=seeded())
    assert value.item() == pytest.approx(
        stats.wasserstein_distance(x.numpy(), y.numpy()), rel=1e-12
    )
    lots = math.lcm(n, m)  # every point as often as makes the sets equally large
    a, b = np.sort(np.repeat(x.numpy(), lots // n)), np.sort(np.repeat(y.numpy(), lots // m))
    for p in (1.5, 2, 4):
        assert sliced_wasserstein(x, y, p=p).item() == pytest.approx(
            (np.abs(a - b) ** p).mean() ** (1 / p), rel=1e-12
        )


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_sliced_wasserstein_of_a_shift(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # SW_2² = E(θ·a)² = |a|²/D, and E(θ·a)⁴ = 3·|a|⁴/(D·(D + 2)): 4 standard errors of 4,000
    # directions
    x, a, D = torch.randn(40, *shape, generator=seeded()).double(), 0.7, math.prod(shape)
    square = a * a * D
    error = 4 * square * math.sqrt((3 / (D * (D + 2)) - 1 / D**2) / 4000)
    y = x.flip(0) + a
    value = sliced_wasserstein(x, y, projections=4000, generator=seeded())
    assert value.item() ** 2 == pytest.approx(square / D, abs=error)
    monkeypatch.setattr(BLOCKS, "PAIRS_AT_ONCE", 1)
    assert sliced_wasserstein(x, y, projections=4000, generator=seeded()).item() == pytest.approx(
        value.item(), rel=1e-12
    )


def test_sets_that_no_assignment_fits_are_refused_and_large_ones_priced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"x holds 4 points and y 5.*subsample"):
        wasserstein(torch.zeros(4, 2), torch.zeros(5, 2))
    for metric in (wasserstein, sliced_wasserstein):
        with pytest.raises(ValueError, match=r"p is .*1"):
            metric(torch.zeros(4, 2), torch.zeros(4, 2), p=0.5)
    with pytest.raises(ValueError, match="projections"):
        sliced_wasserstein(torch.zeros(4, 2), torch.zeros(4, 2), projections=0)
    monkeypatch.setattr(importlib.import_module("scoresde.metrics.transport"), "MOST_POINTS", 3)
    with pytest.warns(UserWarning, match=r"assigning 4 points takes .* GiB and about .* minutes"):
        wasserstein(torch.zeros(4, 2), torch.zeros(4, 2))


# --- kernel ---


@pytest.mark.parametrize("shape", [(), (2,), (1, 4, 4)])
@pytest.mark.parametrize("pairs", [1, 64, 2**19])
def test_mmd_is_the_sum_over_pairs(
    shape: tuple[int, ...], pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BLOCKS, "PAIRS_AT_ONCE", pairs)
    x, y = (
        torch.randn(30, *shape, generator=seeded()),
        1 + torch.randn(17, *shape, generator=seeded(1)),
    )
    a, b = x.double().reshape(30, -1).numpy(), y.double().reshape(17, -1).numpy()
    both = np.concatenate([a, b])
    median = float(np.sort(cdist(both, both)[np.triu_indices(47, 1)])[(47 * 46 // 2 - 1) // 2])
    for given, widths in (
        ((0.5, 2.0), (0.5, 2.0)),
        (1.5, (1.5,)),
        (None, [c * median for c in (0.25, 0.5, 1, 2, 4)]),
    ):

        def kernel(u: np.ndarray, v: np.ndarray, widths: object = widths) -> np.ndarray:
            return np.mean([np.exp(-cdist(u, v, "sqeuclidean") / (2 * w * w)) for w in widths], 0)  # type: ignore[attr-defined]

        inner = [(kernel(u, u).sum() - len(u)) / (len(u) * (len(u) - 1)) for u in (a, b)]
        assert mmd(x, y, bandwidth=given).item() == pytest.approx(
            sum(inner) - 2 * kernel(a, b).mean(), abs=1e-12
        )


def test_mmd_is_unbiased_for_two_gaussians() -> None:
    # E exp(−|Z|²/2w²) = (w²/(w² + v))^(D/2)·exp(−|d|²/2(w² + v)) for Z ~ N(d, v·I)
    def mean_kernel(shift: float, v: float, w: float = 0.8, D: int = 3) -> float:
        return float(
            (w * w / (w * w + v)) ** (D / 2) * math.exp(-D * shift**2 / (2 * (w * w + v)))
        )

    truth = mean_kernel(0, 2) + mean_kernel(0, 2 * 1.5**2) - 2 * mean_kernel(0.4, 1 + 1.5**2)
    g = seeded()
    draws = [
        mmd(
            torch.randn(15, 3, generator=g),
            0.4 + 1.5 * torch.randn(20, 3, generator=g),
            bandwidth=0.8,
        ).item()
        for _ in range(1500)
    ]
    assert np.mean(draws) == pytest.approx(truth, abs=4 * np.std(draws) / math.sqrt(1500))


def test_bandwidths_that_make_no_sense() -> None:
    x = torch.zeros(4, 2)
    for bandwidth, message in ((0.0, "greater than 0"), ([], "no number"), (None, "coincide")):
        with pytest.raises(ValueError, match=message):
            mmd(x, x, bandwidth=bandwidth)
    with pytest.raises(TypeError, match="bandwidth is a number"):
        mmd(x, x, bandwidth="median")  # type: ignore[arg-type]


# --- classifier ---


def test_a_classifier_finds_what_bayes_finds() -> None:
    # N(0, I) against N(d, I): the best accuracy is Φ(|d|/2). 4 standard errors, and 2% for a net
    # that saw 2,000 points
    g = seeded()
    x, y = (
        torch.randn(2000, 2, generator=g),
        torch.randn(2500, 2, generator=g) + torch.tensor([1.0, 0.5]),
    )
    best = stats.norm.cdf(math.hypot(1, 0.5) / 2)
    test = classifier_test(x, y, generator=g)
    assert test.n_test == 2000
    assert test.accuracy == pytest.approx(best, abs=0.02 + 4 * math.sqrt(best * (1 - best) / 2000))
    assert test.p_value == pytest.approx(
        stats.binomtest(round(2000 * test.accuracy), 2000, alternative="greater").pvalue
    )
    z = torch.randn(1000, 1, 1, generator=g)  # and a missing correlation, in images of two pixels
    assert (
        classifier_test(
            torch.cat([z, z], 2), torch.randn(1000, 1, 2, generator=g), generator=g
        ).p_value
        < 1e-6
    )


@pytest.mark.slow
def test_a_classifier_raises_no_more_false_alarms_than_it_says() -> None:
    # 100 tests of equal laws at level 0.1: more than 24 alarms happen once in 10,000 times
    g = seeded()
    p = [
        classifier_test(
            torch.randn(40, 2, generator=g),
            torch.randn(40, 2, generator=g),
            width=8,
            steps=20,
            generator=g,
        ).p_value
        for _ in range(100)
    ]
    assert stats.binom.sf(24, 100, 0.1) < 1e-4
    assert sum(q <= 0.1 for q in p) <= 24
    assert min(p) > 1e-6


def test_the_generator_alone_decides_and_no_grad_is_no_hindrance() -> None:
    state = torch.get_rng_state()
    a, b = torch.randn(2, 60, 2, generator=seeded(1))
    with torch.no_grad():
        first = classifier_test(a, b, steps=30, generator=seeded(2))
    assert classifier_test(a, b, steps=30, generator=seeded(2)) == first
    assert torch.equal(
        sliced_wasserstein(a, b, generator=seeded()), sliced_wasserstein(a, b, generator=seeded())
    )
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="at least 8"):
        classifier_test(a[:7], b)


# --- floor ---


def test_the_floor_of_a_difference_of_means_is_known() -> None:
    # x̄ − ȳ ~ N(0, 2/n): its variance over 400 repeats is known to 4·√(2/400)
    gaussian = toy.GaussianMixture(torch.zeros(1, 1), 1.0)
    floor = noise_floor(
        lambda x, y: x.mean() - y.mean(), gaussian, 50, repeats=400, generator=seeded()
    )
    assert floor.rms**2 == pytest.approx(2 / 50, rel=4 * math.sqrt(2 / 400))
    assert floor.rms**2 == pytest.approx(floor.mean**2 + floor.std**2 * 399 / 400, rel=1e-12)
    assert abs(floor.mean) < 4 * math.sqrt(2 / 50 / 400)
    assert floor.quantile(0.5) == pytest.approx(float(floor.values.median()), abs=0.02)
    assert floor.times(0.6) == pytest.approx(0.6 / floor.rms)


def test_true_samples_serve_as_a_law_and_the_two_sets_share_none() -> None:
    data = torch.arange(20.0)

    def shared(x: Tensor, y: Tensor) -> float:
        assert len(x) == len(y) == 10
        return float(len(set(x.tolist()) & set(y.tolist())))

    assert noise_floor(shared, data, 10, repeats=5, generator=seeded()).rms == 0
    few, many = (
        noise_floor(energy_distance, data, 5, repeats=r, generator=seeded()).values for r in (3, 6)
    )
    assert torch.equal(few, many[:3])
    assert len(set(many.tolist())) > 3
    with pytest.raises(ValueError, match="at least 22"):
        noise_floor(energy_distance, data, 11)
    with pytest.raises(TypeError, match="sample"):
        noise_floor(energy_distance, [1.0], 11)  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", [energy_distance, wasserstein, sliced_wasserstein, mmd])
def test_true_samples_are_at_the_floor_and_others_are_not(metric: object) -> None:
    """A third set of true samples lies within 4 × the floor; moons that are moved by half a
    standard deviation beyond it.
    """
    moons, g = toy.Moons(), seeded()
    floor = noise_floor(metric, moons, 300, repeats=10, generator=g)  # type: ignore[arg-type]
    x, y = moons.sample(300, generator=g), moons.sample(300, generator=g)
    assert abs(floor.times(metric(x, y))) < 4  # type: ignore[operator]
    assert floor.times(metric(x + 1.0, y)) > 4  # type: ignore[operator]


def test_nfe_for_error_draws_from_their_generator_alone() -> None:
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.RectifiedFlow())
    before = torch.get_rng_state()
    scoresde.metrics.nfe_for_error(sde, 0.5, n=4, generator=generator(0))
    assert torch.equal(before, torch.get_rng_state())


def test_noise_floor_takes_a_torch_distribution() -> None:
    law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    truth: Any = law
    assert (
        scoresde.noise_floor(scoresde.energy_distance, truth, 20, 3, generator=generator(0)).rms
        > 0
    )
