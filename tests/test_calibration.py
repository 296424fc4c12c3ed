"""Calibration of posteriors on a conjugate Gaussian: θ ~ N(0, I), x = θ + noise.

The posterior is N(x/2, I/2).

Seeds are fixed. Where a bound is statistical, a correct library fails it once in ten thousand
seeds, or it is 4 standard errors.
"""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from conftest import generator
from scoresde import plotting
from scoresde.metrics import (
    Calibration,
    Coverage,
    RankTest,
    c2st,
    calibration,
    classifier_test,
    coverage,
    sbc,
    tarp,
)

RANKS = importlib.import_module("scoresde.metrics.uniform_ranks")
N, K, D = 400, 100, 2


class Gaussian:
    """N(x/2 + bias, scale²/2), with coordinates of one correlation."""

    def __init__(self, scale: float = 1.0, bias: float = 0.0, correlation: float = 0.0) -> None:
        cov = torch.full((D, D), correlation, dtype=torch.float64)
        cov.fill_diagonal_(1.0)
        self.cov, self.bias = 0.5 * scale**2 * cov, bias

    def _of(self, x: Tensor) -> torch.distributions.MultivariateNormal:
        return torch.distributions.MultivariateNormal(x / 2 + self.bias, self.cov)

    def sample(self, shape: tuple[int, ...], x: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.randn(*shape, *x.shape, generator=generator, dtype=torch.float64)
        return x / 2 + self.bias + z @ torch.linalg.cholesky(self.cov).T

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        return self._of(x).log_prob(theta)


class Prior(Gaussian):
    """The prior, whatever x is."""

    def sample(self, shape: tuple[int, ...], x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(*shape, *x.shape, generator=generator, dtype=torch.float64)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        return -theta.square().sum(-1)


def simulate(seed: int = 0, n: int = N, correlation: float = 0.0) -> tuple[Tensor, Tensor]:
    """θ and x, with correlated θ | x on request: then θ is drawn from the posterior, given x."""
    g = generator(seed)
    x = 2**0.5 * torch.randn(n, D, generator=g, dtype=torch.float64)
    return Gaussian(correlation=correlation).sample((1,), x, g)[0], x


def check(posterior: Any, seed: int = 0, n: int = N, k: int = K, **how: Any) -> Calibration:
    theta, x = simulate(seed, n, **how)
    return calibration(posterior, theta, x, k, generator=generator(seed + 1))


def test_ranks_and_coverage_are_the_counts_by_hand() -> None:
    g = generator()
    truth = torch.randn(40, 3, generator=g, dtype=torch.float64)
    draws = torch.randn(40, 7, 3, generator=g, dtype=torch.float64)
    found = sbc(truth, draws)
    for i in range(40):
        for j in range(3):
            assert found.ranks[i, j] == sum(draws[i, k, j] < truth[i, j] for k in range(7))
    levels = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.77, 1.0], dtype=torch.float64)
    column = found.ranks[:, 0]
    wanted = (levels[:, None] * 8 - column).clamp(0, 1).mean(1)
    assert torch.allclose(RANKS.coverage_at(column, 7, levels), wanted, atol=1e-12)


def test_ties_are_broken_evenly() -> None:
    # all values tie: ranks are uniform on 0 … 4, whatever the values
    found = sbc(torch.zeros(5000), torch.zeros(5000, 4), generator=generator())
    counts = torch.bincount(found.ranks[:, 0], minlength=5)
    assert len(counts) == 5
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    again = sbc(torch.zeros(5000), torch.zeros(5000, 4), generator=generator())
    assert torch.equal(found.ranks, again.ranks)


@pytest.mark.parametrize(("n", "k"), [(30, 20), (100, 300), (300, 100)])
def test_false_alarms_are_as_frequent_as_stated(n: int, k: int) -> None:
    tests = 4000
    ranks = torch.randint(0, k + 1, (n, tests), generator=generator())
    p = RANKS.uniformity(ranks, k)
    for a in (0.5, 0.05, 0.01):
        error = math.sqrt(a * (1 - a) * (1 / tests + 1 / RANKS.SIMULATIONS))
        assert float((p <= a).double().mean()) == pytest.approx(a, abs=4 * error)


def test_p_values_with_one_draw_are_on_the_safe_side() -> None:
    p = RANKS.uniformity(torch.randint(0, 2, (20, 4000), generator=generator()), 1)
    # P(|hits − 10| ≥ 5) of Binomial(20, ½) is the largest below .05
    assert float((p <= 0.05).double().mean()) == pytest.approx(0.0414, abs=0.0126)


def test_the_true_posterior_passes_as_often_as_stated() -> None:
    repeats = 100
    found = [check(Gaussian(), seed, n=60, k=30) for seed in range(repeats)]
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], repeats, 0.05)
    for p in (
        [one.coverage.p_value for one in found if one.coverage],
        [one.sbc.p_value for one in found],
        [one.tarp.p_value for one in found],
    ):
        assert len(p) == repeats
        assert low <= sum(value <= 0.05 for value in p) <= high
    together = sum(one.p_value <= 0.05 for one in found)
    assert together <= high  # Bonferroni: at most as many


@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_a_wrong_width_is_caught_by_all_and_measured(scale: float) -> None:
    found = check(Gaussian(scale))
    assert found.coverage is not None
    for one in (found.coverage, found.sbc, found.tarp):
        assert one.p_value < 1e-3
    # |θ − x/2|² is exponential in two dimensions
    wanted = 1 - (1 - found.coverage.levels) ** (scale**2)
    assert ((found.coverage.coverage - wanted).abs() <= 4 * found.coverage.stderr + 1e-9).all()
    narrow = scale < 1
    assert ((found.sbc.spread > 1) == narrow).all()
    assert (found.tarp.area < 0) == narrow


def test_a_bias_is_caught_by_all() -> None:
    found = check(Gaussian(bias=-0.7))
    assert found.coverage is not None
    for one in (found.coverage, found.sbc, found.tarp):
        assert one.p_value < 1e-3
    assert (found.sbc.mean > 0.6).all()
    assert (found.coverage.coverage < found.coverage.levels).all()


def test_the_prior_passes_unless_references_depend_on_x() -> None:
    """No test that averages over x sees a posterior that ignores x; this is their known limit."""
    found = check(Prior())
    assert found.p_value > 0.01
    theta, x = simulate()
    draws = Prior().sample((K,), x, generator(1)).transpose(0, 1)
    assert tarp(theta, draws, references=x / 2).p_value < 1e-3
    draws = Gaussian().sample((K,), x, generator(1)).transpose(0, 1)
    assert tarp(theta, draws, references=x / 2).p_value > 0.01


def test_a_wrong_correlation_is_invisible_to_sbc_alone() -> None:
    found = check(Gaussian(), correlation=0.9)
    assert found.coverage is not None
    assert found.sbc.p_value > 0.01
    assert found.coverage.p_value < 1e-3
    theta, x = simulate(correlation=0.9)
    draws = Gaussian().sample((K,), x, generator(1)).transpose(0, 1)
    assert tarp(theta, draws, references=x / 2).p_value < 1e-3


def test_far_references_see_one_direction_only() -> None:
    theta, x = simulate()
    draws = Gaussian().sample((K,), x, generator(1)).transpose(0, 1).clone()
    draws[:, :, 1] += 1.0
    far = torch.tensor([-1e6, 0.0], dtype=torch.float64).expand(N, D)
    assert tarp(theta, draws, references=far).p_value > 0.01
    assert tarp(theta, draws, generator=generator()).p_value < 1e-3


def test_tarp_with_references_far_below_has_the_ranks_of_sbc() -> None:
    g = generator()
    truth, draws = torch.randn(50, generator=g), torch.randn(50, 20, generator=g)
    found = tarp(truth, draws, references=torch.full((50,), -100.0))
    assert torch.equal(found.ranks, sbc(truth, draws).ranks[:, 0])
    levels = torch.linspace(0.5, 1, 200_001, dtype=torch.float64)
    area = torch.trapezoid(found.at(levels) - levels, levels)
    assert found.area == pytest.approx(float(area), abs=1e-6)


def test_units_and_shape_of_parameters_do_not_matter() -> None:
    g = generator()
    truth = torch.randn(50, 4, generator=g, dtype=torch.float64)
    draws = torch.randn(50, 20, 4, generator=g, dtype=torch.float64)
    units = torch.tensor([1.0, 1e-6, 1e6, 3.0], dtype=torch.float64)
    a = tarp(truth, draws, generator=generator())
    b = tarp(truth * units + 5, draws * units + 5, generator=generator())
    assert torch.equal(a.ranks, b.ranks)
    c = sbc(truth.reshape(50, 2, 2), draws.reshape(50, 20, 2, 2).numpy())
    assert torch.equal(c.ranks, sbc(truth, draws).ranks)


@pytest.mark.parametrize("unit", [1e-200, 1e200, 1e300])
def test_results_are_the_same_in_any_unit(unit: float) -> None:
    theta = torch.randn(60, 2, generator=generator(0), dtype=torch.float64)
    draws = torch.randn(60, 20, 2, generator=generator(1), dtype=torch.float64)
    points = torch.randn(60, 2, generator=generator(2), dtype=torch.float64)
    for references in (None, points):
        scaled = None if references is None else references * unit
        found = tarp(theta * unit, draws * unit, scaled, generator=generator())
        assert torch.equal(
            found.ranks, tarp(theta, draws, references, generator=generator()).ranks
        )
    x, y = theta[:20], theta[20:40] + 9
    assert c2st(x * unit, y * unit, folds=2, generator=generator()) > 0.9


def test_c2st_tells_sets_of_different_units_apart_also_in_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.randn(60, 2, generator=generator(0))
        assert c2st(1e-30 * x, 1e30 * x, generator=generator()) > 0.9


def test_densities_may_lack_a_constant_and_be_zero() -> None:
    g = generator()
    true, draws = torch.randn(100, generator=g), torch.randn(100, 30, generator=g)
    constant = 100 * torch.randn(100, generator=g)
    a = coverage(true.double(), draws.double())
    b = coverage(true.double() + constant, draws.double() + constant[:, None])
    assert torch.equal(a.ranks, b.ranks)
    true[0] = -torch.inf
    assert coverage(true, draws).ranks[0] == 30  # outside the support: outside every region
    flat = coverage(torch.zeros(300), torch.zeros(300, 50), generator=generator())
    assert flat.p_value > 1e-4  # a uniform density: all draws tie


def test_the_interval_is_that_of_clopper_and_pearson() -> None:
    found = RANKS.binomial_interval(torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), 50)
    for row, hits in zip(found, (0, 15, 50), strict=True):
        wanted = stats.binomtest(hits, 50).proportion_ci(0.95, method="exact")
        assert row.tolist() == pytest.approx([wanted.low, wanted.high], abs=1e-9)


def test_results_print_as_tables() -> None:
    text = str(check(Gaussian(), n=50, k=10))
    assert text.count("50 pairs, 10 draws each") == 3
    assert text.count("p-value of calibration") == 3


BAD: list[tuple[Any, tuple[Any, ...], str]] = [
    (sbc, (torch.zeros(9, 2), torch.zeros(9, 5, 3)), r"wanted \(pairs, \*shape\)"),
    (sbc, (torch.zeros(9, 2), torch.zeros(5, 9, 2)), "swapaxes"),
    (sbc, (torch.zeros(1, 2), torch.zeros(1, 5, 2)), "1 pairs; wanted at least 2"),
    (sbc, (torch.zeros(9, 2), torch.zeros(9, 0, 2)), "no draws"),
    (sbc, (torch.full((9, 2), torch.nan), torch.zeros(9, 5, 2)), "NaN or infinity in 9 of 9"),
    (sbc, (torch.zeros(9, 2), torch.full((9, 5, 2), torch.inf)), "NaN or infinity in 9 of 9"),
    (coverage, (torch.zeros(9), torch.zeros(9)), "wanted"),
    (coverage, (torch.zeros(9, 2), torch.zeros(9, 5, 2)), "one log-density for each pair"),
    (coverage, (torch.full((9,), torch.nan), torch.zeros(9, 5)), "NaN"),
    (coverage, (torch.zeros(9), torch.full((9, 5), torch.inf)), "infinity in 9 of 9"),
    (coverage, (torch.zeros(9), torch.zeros(9, 5), (50, 90)), "probabilities from 0 to 1"),
    (coverage, (torch.zeros(9), torch.zeros(9, 5), ()), "probabilities from 0 to 1"),
    (tarp, (torch.zeros(9, 2), torch.zeros(9, 5, 2), torch.zeros(2)), "one point for each pair"),
    (tarp, (torch.zeros(1, 2), torch.zeros(1, 5, 2)), "1 pairs"),
    (calibration, (Gaussian(), torch.zeros(9, D), torch.zeros(8, D)), "one observation for each"),
    (calibration, (Gaussian(), torch.zeros(9, D), torch.zeros(9, D), 0), "draws is at least 1"),
    (c2st, (torch.zeros(3, 2), torch.zeros(9, 2)), "at least as many as folds"),
]


@pytest.mark.parametrize(("call", "arguments", "says"), BAD)
def test_bad_input_gets_one_sentence(call: Any, arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_checked_raises() -> None:
    theta, x = simulate()
    sampler: Any = SimpleNamespace(sample=Gaussian().sample)
    with pytest.raises(TypeError, match="no log_prob"):
        calibration(sampler, theta, x)
    with pytest.raises(TypeError, match=r"torch\.Generator"):
        sbc(theta, theta[:, None], generator=0)  # type: ignore[arg-type]

    class One(Gaussian):
        def sample(self, shape: Any, x: Tensor, generator: Any = None) -> Tensor:
            return torch.zeros(*shape, D)

    with pytest.raises(ValueError, match="draws that you collect yourself"):
        calibration(One(), theta, x)


def test_densities_can_be_left_out_and_are_not_normalized() -> None:
    theta, x = simulate()
    asked: list[bool] = []

    class Normalizing(Gaussian):
        def log_prob(self, theta: Tensor, x: Tensor, normalized: bool = True) -> Tensor:
            asked.append(normalized)
            return super().log_prob(theta, x)

    found = calibration(Normalizing(), theta, x, 20, density=False, generator=generator())
    assert found.coverage is None
    assert asked == []
    calibration(Normalizing(), theta, x, 20, generator=generator())
    assert asked == [False]


def test_c2st_nears_the_best_accuracy_there_is() -> None:
    # N(0, I) and N((1.5, 0), I): no classifier beats Φ(0.75)
    g = generator()
    x, y = torch.randn(2, 100, 2, generator=g)
    y[:, 0] += 1.5
    best = stats.norm.cdf(0.75)
    error = math.sqrt(best * (1 - best) / 200)
    found = c2st(x, y, generator=generator())
    assert best - 4 * error - 0.02 <= found <= best + 4 * error


@pytest.mark.parametrize(("n", "m"), [(1000, 50), (50, 1000)])
def test_c2st_of_sets_of_different_sizes_is_not_the_share_of_the_larger(n: int, m: int) -> None:
    # 100 points in use, four standard errors of their hits: 1e-4; the larger set's share is .95
    g = generator()
    x = torch.randn(n, 1, generator=g)
    y = torch.randn(m, 1, generator=g)
    found = c2st(x, y, folds=2, generator=generator())
    assert found == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(100))


def test_c2st_uses_a_random_part_of_the_larger_set() -> None:
    # y is like the first half of x: right on the other half of x, and on all y, is 0.75
    g = generator()
    x = torch.randn(1000, 1, generator=g)
    x[500:] += 8
    y = torch.randn(100, 1, generator=g)
    found = c2st(x, y, generator=generator())
    assert found == c2st(x, y, generator=generator())
    assert found == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 200) + 0.02)


@pytest.mark.slow
def test_c2st_agrees_with_the_benchmark() -> None:
    """Scikit-learn's network with sbibm's settings; three seeds of each scatter by .003."""
    model_selection = pytest.importorskip("sklearn.model_selection")
    network = pytest.importorskip("sklearn.neural_network").MLPClassifier
    g = generator()
    x, y = torch.randn(2, 1000, 2, generator=g)
    y[:, 1] = 0.9 * y[:, 0] + 0.19**0.5 * y[:, 1]
    both = (torch.cat([x, y]) - x.mean(0)) / x.std(0)
    label = np.repeat([0.0, 1.0], 1000)
    net = network((20, 20), max_iter=10_000, random_state=1)
    folds = model_selection.KFold(5, shuffle=True, random_state=1)
    wanted = model_selection.cross_val_score(net, both.numpy(), label, cv=folds).mean()
    assert c2st(x, y, generator=generator()) == pytest.approx(wanted, abs=0.015)


@pytest.mark.slow
def test_c2st_of_equal_distributions_is_a_half() -> None:
    x, y = torch.randn(2, 100, 2, generator=generator())
    # hits on held-out points: the folds share training points, which widens the binomial a little
    assert c2st(x, y, generator=generator()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(200))
    assert c2st(x, y, generator=generator(3)) == c2st(x, y, generator=generator(3))
    assert classifier_test(x, y, generator=generator()).p_value > 1e-3


def results() -> tuple[Coverage, RankTest]:
    found = check(Gaussian(), n=60, k=20)
    assert found.coverage is not None
    return found.coverage, found.sbc


def test_the_calibration_figure_shows_the_coverage_and_its_band() -> None:
    pytest.importorskip("matplotlib")
    found, ranks = results()
    axes = plotting.calibration_curve({"a": found, "b": found}).axes[0]
    levels, shares = axes.lines[1].get_data()
    assert np.allclose(shares, found.at(torch.from_numpy(levels)).numpy())
    band = axes.collections[0].get_paths()[0].vertices
    at_half = band[np.isclose(band[:, 0], 0.5), 1]
    assert at_half.min() == pytest.approx(stats.binom.ppf(0.025, 60, 0.5) / 60)
    assert at_half.max() == pytest.approx(stats.binom.ppf(0.975, 60, 0.5) / 60)
    with pytest.raises(TypeError, match=r"metrics\.coverage"):
        plotting.calibration_curve(ranks)  # type: ignore[arg-type]


def test_the_histogram_of_ranks_is_the_count_over_the_expected() -> None:
    pytest.importorskip("matplotlib")
    found, ranks = results()
    figure = plotting.rank_histogram(ranks, bins=3, names=["a", "b"])
    for axes, column in zip(figure.axes, ranks.ranks.T, strict=True):
        counts = torch.bincount(column * 3 // 21, minlength=3) / 20  # 60 ranks in 3 bars
        heights = [patch.get_data().values for patch in axes.patches]
        assert any(np.allclose(each, counts.numpy()) for each in heights)
    with pytest.raises(ValueError, match="names has 1 entries, wanted 2"):
        plotting.rank_histogram(ranks, names=["a"])
    with pytest.raises(TypeError, match=r"metrics\.sbc"):
        plotting.rank_histogram(found)  # type: ignore[arg-type]


def test_pairs_put_data_below_and_samples_above(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    pandas = pytest.importorskip("pandas")
    data = torch.randn(50, 3, generator=generator(), dtype=torch.float64)
    samples = data + 0.1
    frame = pandas.DataFrame(data.numpy(), columns=["a", "b", "c"])
    figure = plotting.pairs(frame, samples, path=tmp_path / "pairs.png")
    assert (tmp_path / "pairs.png").stat().st_size > 0
    grid = np.array(figure.axes).reshape(3, 3)
    assert [axes.get_xlabel() for axes in grid[2]] == ["a", "b", "c"]
    below, above = (axes.collections[0].get_offsets() for axes in (grid[2, 0], grid[0, 2]))
    assert np.allclose(below, data[:, [0, 2]].numpy())
    assert np.allclose(above, samples[:, [2, 0]].numpy())
    for bad, says in (
        ((data, samples[:, :2]), "3 columns, samples 2"),
        ((torch.zeros(9, 20),), "the figure takes 12"),
        ((data, None, ["a"]), "names has 1 entries"),
        ((torch.full((9, 2), torch.nan),), "0 rows without NaN"),
        ((torch.zeros(9),), r"wanted \(rows, columns\)"),
    ):
        with pytest.raises(ValueError, match=says):
            plotting.pairs(*bad)


def test_curves_sort_x_and_want_symmetric_levels() -> None:
    pytest.importorskip("matplotlib")
    x = torch.tensor([2.0, 0.0, 1.0])
    q = x[:, None] + torch.tensor([-1.0, 0.0, 1.0])
    axes = plotting.conditional_curves(x, q, levels=(0.1, 0.5, 0.9), data=(x, x)).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0, 0], [1, 1], [2, 2]]
    for bad, says in (
        ((x, q), "a column for each of the levels"),
        ((x, q, (0.1, 0.5, 0.8)), "symmetric about 0.5"),
        ((x, q, (0.9, 0.5, 0.1)), "increasing"),
        ((x, torch.zeros(3, 0), ()), "symmetric about 0.5"),
        ((x, q, (0.1, 0.5, 0.9), (x, x[:2])), "wanted x and y, as many"),
        ((x * torch.nan, q, (0.1, 0.5, 0.9)), "x holds NaN"),
    ):
        with pytest.raises(ValueError, match=says):
            plotting.conditional_curves(*bad)
