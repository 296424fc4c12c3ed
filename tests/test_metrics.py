"""Energy distance and permutation test against closed forms and brute force.

Seeds are fixed; bounds are 4 standard errors.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist

from scoresde import metrics
from scoresde.metrics import energy_distance, energy_test


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(), (2,), (1, 4, 4)])
@pytest.mark.parametrize("pairs", [1, 64, 2**19])
def test_is_the_sum_over_pairs(shape: tuple[int, ...], pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PAIRS", pairs)
    x, y = torch.randn(30, *shape, generator=seeded()), 1 + torch.randn(17, *shape, generator=seeded(1))
    a, b = x.double().reshape(30, -1).numpy(), y.double().reshape(17, -1).numpy()
    expected = 2 * cdist(a, b).mean() - cdist(a, a).sum() / (30 * 29) - cdist(b, b).sum() / (17 * 16)
    assert energy_distance(x, y).item() == pytest.approx(expected, abs=1e-12)
    assert energy_distance(x, y).dtype == torch.float64


def test_is_unbiased_for_two_gaussians() -> None:
    # in one dimension E|Z| of Z ~ N(d, v) is known: √(2v/π)·exp(−d²/2v) + d·(1 − 2Φ(−d/√v))
    def mean_abs(d: float, v: float) -> float:
        flip = 1 - 2 * stats.norm.cdf(-d / math.sqrt(v))
        return math.sqrt(2 * v / math.pi) * math.exp(-d * d / (2 * v)) + d * float(flip)

    truth = 2 * mean_abs(0.5, 5) - mean_abs(0, 2) - mean_abs(0, 8)
    g = seeded()
    draws = torch.stack(
        [energy_distance(torch.randn(20, 1, generator=g), 0.5 + 2 * torch.randn(30, 1, generator=g)) for _ in range(2000)]
    )
    assert draws.mean().item() == pytest.approx(truth, abs=4 * draws.std().item() / math.sqrt(2000))


def test_p_values_are_uniform_under_the_null() -> None:
    # 200 tests of equal laws: Kolmogorov–Smirnov against uniform, false alarm in 10,000
    g = seeded()
    p = [
        energy_test(torch.randn(40, 2, generator=g), torch.randn(60, 2, generator=g), permutations=99, generator=g)
        for _ in range(200)
    ]
    assert stats.kstest(p, stats.uniform.cdf).pvalue > 1e-4
    assert min(p) >= 0.01


def test_sees_a_shift_and_a_missing_correlation() -> None:
    g = seeded()
    x, y = torch.randn(300, 1, 4, 4, generator=g), torch.randn(400, 1, 4, 4, generator=g)
    assert energy_test(x, y + 0.3, generator=g) == 0.001
    z = torch.randn(500, 1, generator=g)
    assert energy_test(torch.cat([z, z], 1), torch.randn(500, 2, generator=g), generator=g) == 0.001


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
