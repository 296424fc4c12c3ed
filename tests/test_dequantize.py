"""Dequantization and bits per dimension, against discrete laws whose probabilities are differences
of distribution functions.
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, norm, truncnorm, uniform
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import scoresde
from conftest import generator
from scoresde import ScoreSDE, toy
from scoresde.density.dequantize import Dequantization, TruncatedNormal, Uniform

TIGHT = {"rtol": 1e-7, "atol": 1e-7}


def model(means: list[list[float]], std: float) -> tuple[ScoreSDE, toy.GaussianMixture]:
    mixture = toy.GaussianMixture(torch.tensor(means, dtype=torch.float64), std)
    return scoresde.oracle(mixture, scoresde.RectifiedFlow()).double(), mixture


def bin_bits(means: list[list[float]], std: float, values: Tensor, levels: int) -> Tensor:
    """−log₂ P(v)/D of an equally weighted mixture, exactly."""
    low = values.double().unsqueeze(1).numpy() / levels
    inside = norm.cdf(low + 1 / levels, means, std) - norm.cdf(low, means, std)  # (B, K, D)
    mass = torch.as_tensor(inside).prod(2).mean(1)
    return -mass.log2() / values.shape[1]


def test_uniform_over_all_images_is_eight_bits_exactly() -> None:
    """The model U[0, 1)^D, whatever its bins: log p = 0. And one bit a dimension is one bit."""
    values = torch.randint(256, (5, 3, 4, 4), generator=generator())
    x, log_q = Uniform(256).noisy(values, generator(1))
    torch.testing.assert_close(
        Uniform(256).bits(torch.zeros(5), log_q, 48), torch.full((5,), 8.0), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        Uniform(2).bits(torch.tensor([-2 * math.log(2)]), torch.zeros(1), 2), torch.ones(1)
    )
    assert (
        abs(
            float(Uniform(17).bits(torch.zeros(1), torch.tensor(64 * math.log(17)), 64))
            - math.log2(17)
        )
        < 1e-6
    )
    assert bool((Uniform(256).values(x) == values).all())


UNSIGNED = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize(
    "dtype", [*UNSIGNED, torch.int16, torch.int64, torch.float32, torch.float64, torch.bfloat16]
)
def test_any_dtype_will_do(dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 255], [128, 7]])
    data = Uniform(256).dataset(values.to(dtype))
    x, _ = Uniform(256).noisy(values.to(dtype), generator())
    assert x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert bool((Uniform(256).values(x) == values).all())
    assert bool((Uniform(256).values(data[[1, 0]].numpy()) == values[[1, 0]]).all())


@pytest.mark.parametrize("levels", [2, 49, 256, 1000, 4096, 65_536, 2**24, 2**32])
def test_no_point_leaves_its_bin(levels: int) -> None:
    """Drawn at random, and at the edges, q = 0 and 1, where rounding would move many into the next
    bin.
    """
    values = torch.randint(levels, (200_000, 2), generator=generator())
    for dequantization in (Uniform(levels), TruncatedNormal(levels, 5.0)):
        x, _ = dequantization.noisy(values, generator(1))
        assert bool((dequantization.values(x) == values).all())
        for q in (0.0, 1.0):
            x, _ = dequantization._add(values, torch.full(values.shape, q, dtype=torch.float64))
            assert bool((dequantization.values(x) == values).all())
            at_double = ((values.double() + q) / levels - x.double()).abs()
            assert float(at_double.max()) < 3 * torch.finfo(x.dtype).eps


@pytest.mark.parametrize("std", [0.05, 0.25, 1.0, 10.0, 1e8, 1e16])
def test_the_truncated_normal_is_scipys(std: float) -> None:
    """log q is scipy's density, which integrates to 1, and the draws follow it
    (Kolmogorov–Smirnov, p < 1e-4 by chance: 1 in 1,700 runs of all six). The two widest are
    uniform to rounding, where SciPy's own fails.
    """
    law = truncnorm(-0.5 / std, 0.5 / std, 0.5, std) if std < 1e3 else uniform()
    x, log_q = TruncatedNormal(4, std).noisy(
        torch.full((20_000, 1), 2.0, dtype=torch.float64), generator(2)
    )
    u = (4 * x - 2).flatten().numpy()
    torch.testing.assert_close(
        log_q, torch.as_tensor(law.logpdf(u)) + math.log(4), rtol=0, atol=1e-9
    )
    assert kstest(u, law.cdf).pvalue > 1e-4
    assert abs(quad(law.pdf, 0, 1, points=[0.5])[0] - 1) < 1e-6
    mean = float(
        torch.exp(-log_q).mean()
    )  # E_q[1/q] is the bin's length, the other way to integrate to 1
    if std >= 0.25:
        assert abs(mean - 0.25) < 4 * float(torch.exp(-log_q).std()) / math.sqrt(len(x)) + 1e-14


@pytest.mark.parametrize(
    "dequantization",
    [Uniform(4), TruncatedNormal(4, 0.3)],
    ids=repr,
)
@pytest.mark.slow
def test_importance_weighted_bits_fall_to_the_exact_number(dequantization: Dequantization) -> None:
    """D = 2, bins about as wide as the modes. The bound is loose with one draw, tighter with every
    doubling, exact in the limit: with 400 draws the bias is var(w)/(2k), below 0.005 bits here. 5
    standard errors of 10: false alarm 1 in 80,000 runs.
    """
    means, std = [[0.3, 0.4], [0.7, 0.8]], 0.12
    sde, mixture = model(means, std)
    values = dequantization.values(mixture.sample(200, generator=generator(3)).double())
    exact = bin_bits(means, std, values, 4)
    gaps = []
    for draws in (1, 4, 16):
        found = scoresde.bits_per_dim(
            sde, values, dequantization, draws=draws, generator=generator(4), rtol=1e-3, atol=1e-3
        )
        gaps.append(float((found.bits - exact).mean()))
    assert gaps[0] > 0.05
    assert all(0 < after < 0.6 * before for before, after in pairwise(gaps))
    few = values[:10]
    found = scoresde.bits_per_dim(
        sde, few, dequantization, draws=400, generator=generator(5), rtol=1e-3, atol=1e-3
    )
    gap = found.bits - exact[:10]
    assert float(gap.abs().mean()) < 0.03
    assert bool((gap.abs() < 5 * found.stderr + 0.005).all())


def test_one_draw_is_the_mean_of_log_p_minus_log_q() -> None:
    """D = 1 by quadrature over the bin: ∫ h(u)·(log h(u) + log L − log p) du, in bits. 4 standard
    errors of 2,000 draws.
    """
    sde, _ = model([[0.45]], 0.2)
    for dequantization in (Uniform(4), TruncatedNormal(4, 0.2)):
        std = getattr(dequantization, "std", 1e4)
        law = truncnorm(-0.5 / std, 0.5 / std, 0.5, std)
        exact = quad(
            lambda u, law=law: (
                law.pdf(u) * (law.logpdf(u) + math.log(4) - norm.logpdf((1 + u) / 4, 0.45, 0.2))
            ),
            0,
            1,
        )[0]
        found = scoresde.bits_per_dim(
            sde, torch.ones(2000, 1), dequantization, generator=generator(6), rtol=1e-4, atol=1e-4
        )
        assert abs(found.mean - exact / math.log(2)) < 4 * found.mean_stderr + 1e-4
        assert found.mean_stderr < 0.02


def test_bits_of_continuous_data_are_log_prob() -> None:
    sde, mixture = model([[0.0, 1.0], [2.0, 3.0]], 0.5)
    x = mixture.sample(20, generator=generator(7)).double()
    found = scoresde.bits_per_dim(sde, x, None, **TIGHT)
    torch.testing.assert_close(
        found.bits, -mixture.log_prob(x) / (2 * math.log(2)), rtol=0, atol=1e-5
    )
    assert bool((found.stderr == 0).all())
    assert torch.equal(found.nfe, scoresde.likelihood(sde, x, **TIGHT).nfe)


def test_the_traces_error_comes_through() -> None:
    """One draw: the standard error of log p over D·ln 2."""
    sde, mixture = model([[0.3] * 8, [0.6] * 8], 0.15)
    x = mixture.sample(30, generator=generator(8)).double()
    how = {"trace": "hutchinson", "probes": 6, "rtol": 1e-4, "atol": 1e-4}
    found = scoresde.bits_per_dim(sde, x, None, generator=generator(9), **how)
    straight = scoresde.likelihood(sde, x, generator=generator(9), **how)
    torch.testing.assert_close(found.stderr, straight.stderr / (8 * math.log(2)))
    torch.testing.assert_close(found.bits, -straight.log_prob / (8 * math.log(2)))
    assert float(found.stderr.min()) > 0


def test_the_standard_error_of_several_draws_is_their_spread() -> None:
    """500 estimates of one bin, 64 draws each, in the middle of a mode and on its flank."""
    sde, _ = model([[0.3, 0.4], [0.7, 0.8]], 0.2)
    for bin_ in ([1.0, 1.0], [0.0, 2.0]):
        found = scoresde.bits_per_dim(
            sde,
            torch.tensor([bin_] * 500),
            Uniform(4),
            draws=64,
            generator=generator(14),
            steps=6,
        )
        assert abs(float(found.stderr.mean() / found.bits.std()) - 1) < 0.15
        assert found.mean_stderr == pytest.approx(float(found.bits.std()) / math.sqrt(500))


@pytest.mark.slow
def test_narrow_noise_fits_a_model_of_narrow_noise() -> None:
    """A model whose bins hold N(center, (0.2/4)²): q = p inside a bin, so the bound with std 0.2
    is −log₂ P(v) but for the mass outside (1.2%). Uniform noise costs E log U/p, by hand; 5
    standard errors. `fitted` finds the 0.2.
    """
    centers = [[0.125], [0.375], [0.625], [0.875]]
    sde, _ = model(centers, 0.05)
    values = torch.arange(4).repeat(64).unsqueeze(1)
    found = {
        std: scoresde.bits_per_dim(sde, values, TruncatedNormal(4, std), generator=generator(10))
        for std in (0.2, 10.0)
    }
    exact = bin_bits(centers, 0.05, values, 4)
    assert abs(found[0.2].mean - float(exact.mean())) < 0.01
    cost = (0.5 / 12 / 0.2**2 + math.log(0.2 * math.sqrt(2 * math.pi))) / math.log(2)
    assert abs(found[10.0].mean - found[0.2].mean - cost) < 5 * found[10.0].mean_stderr
    assert TruncatedNormal.fitted(sde, values, 4, generator=generator(15)).std == 0.2


def test_error_of_the_solve_and_gap_to_the_prior_come_through() -> None:
    """One draw: what `likelihood` says over ln 2, of each. At a tolerance of 0.1 bosh3 is up to
    0.006 bits off, and says so. Several draws: their errors, each weighted by its share of the
    mean of p/q.
    """
    sde, _ = model([[0.5]], 0.4)
    values, how = torch.ones(60, 1), {"solver": "bosh3", "rtol": 0.1, "atol": 0.1}
    coarse = scoresde.bits_per_dim(sde, values, Uniform(4), generator=generator(16), **how)
    x, _ = Uniform(4).noisy(values, generator(16))
    straight = scoresde.likelihood(sde, x, **how)
    torch.testing.assert_close(coarse.solver_error, straight.solver_error / math.log(2))
    off = (
        coarse.bits
        - scoresde.bits_per_dim(sde, values, Uniform(4), generator=generator(16), **TIGHT).bits
    )
    assert float(off.abs().max()) > 0.004
    assert bool((off.abs() < coarse.solver_error).all())
    several = scoresde.bits_per_dim(
        sde, values, Uniform(4), draws=3, generator=generator(16), **how
    )
    each = scoresde.likelihood(
        sde, Uniform(4).noisy(values.repeat_interleave(3, 0), generator(16))[0], **how
    )
    weight = each.log_prob.reshape(60, 3).softmax(1)  # log q is the same for all
    wanted = (weight * each.solver_error.reshape(60, 3)).sum(1) / math.log(2)
    torch.testing.assert_close(several.solver_error, wanted)
    assert torch.equal(several.nfe, each.nfe.reshape(60, 3).sum(1))

    short = scoresde.oracle(
        toy.GaussianMixture([[0.5]], 0.4), scoresde.VPSDE(beta_max=3.0)
    ).double()  # far from pure noise
    gap = scoresde.bits_per_dim(short, values, Uniform(4), generator=generator(16)).prior_gap
    straight = scoresde.likelihood(short, x)
    assert float(gap.min()) > 0.01
    torch.testing.assert_close(gap, straight.prior_gap / math.log(2))


@pytest.mark.parametrize(
    "how",
    [{"trace": "hutchinson", "probes": 4}, {"draws": 3}, {"draws": 2, "trace": "hutchinson"}],
    ids=repr,
)
def test_mates_do_not_matter(how: dict[str, int]) -> None:
    """Sample i has its own noise and probes, whatever batch it is computed in; the same on every
    call with the same seed.
    """
    sde, _ = model([[0.3] * 6, [0.6] * 6], 0.2)
    values = torch.randint(4, (100, 6), generator=generator(17))
    whole, part = (
        scoresde.bits_per_dim(
            sde, v, TruncatedNormal(4, 0.5), generator=generator(18), steps=8, **how
        )
        for v in (values, values[:70])
    )
    torch.testing.assert_close(part.bits, whole.bits[:70], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(part.stderr, whole.stderr[:70], rtol=1e-3, atol=1e-6)
    x, log_q = TruncatedNormal(4, 0.5).noisy(values, generator(18))
    some, log_some = TruncatedNormal(4, 0.5).noisy(values[:70], generator(18))
    assert torch.equal(some, x[:70])
    assert torch.equal(log_some, log_q[:70])
    assert float(x.unique(dim=0).shape[0]) == 100


def test_a_single_sample_and_samples_without_a_shape() -> None:
    """One sample has no standard error of the mean, and no warning either. A model of scalars
    takes (B,).
    """
    mixture = toy.GaussianMixture(torch.tensor([[0.5]], dtype=torch.float64), 0.2)
    line = scoresde.oracle(mixture, scoresde.RectifiedFlow()).double()

    class Scalar(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return line.net(x[:, None], t)[:, 0]

    scalar = ScoreSDE(
        line.process, Scalar(), shape=(), predict=line.predict, sees=line.sees
    ).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = scoresde.bits_per_dim(line, torch.tensor([[2]]), Uniform(4), generator=generator(19))
    assert math.isnan(one.mean_stderr)
    flat = scoresde.bits_per_dim(scalar, torch.tensor([2]), Uniform(4), generator=generator(19))
    torch.testing.assert_close(flat.bits, one.bits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("few", [5, 200])
def test_values_unlike_the_training_data_are_remarked_on_once(few: int) -> None:
    """Other levels always; the scale 2x − 1, a factor 2 and half a unit off, from 32 samples on.
    Not what it was fitted to.
    """
    values = torch.randint(4, (200, 2, 4, 4), generator=generator(20))
    net = Zero()
    for data, dequantization, warned in [
        (Uniform(4).dataset(values), Uniform(4), False),
        (Uniform(4).dataset(values), Uniform(256), True),
        (2 * Uniform(4).noisy(values)[0] - 1, Uniform(4), few > 32),
    ]:
        sde = ScoreSDE(scoresde.VPSDE(), net, shape=(2, 4, 4))
        scoresde.fit(sde, data, steps=1, progress=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scoresde.bits_per_dim(sde, values[:few], dequantization, steps=4)
        assert len(caught) == warned
        assert all("was it trained on these levels" in str(w.message) for w in caught)


class Zero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is None or bool((y == 0).all())
        return x * self.w


def test_training_data_are_dequantized_afresh_and_measured_as_such() -> None:
    """(v + u)/L has mean (E v + ½)/L and variance (var v + 1/12)/L². Each to 5 standard errors of
    50,000 samples: 1 in 10⁶.
    """
    values = torch.tensor([[0, 3], [1, 3], [0, 2], [1, 2]], dtype=torch.uint8).repeat(50, 1)
    data = Uniform(4).dataset(values)
    first, again = data.sample(5, generator(11)), data.sample(5, generator(11))
    assert torch.equal(first, again)
    assert not torch.equal(data[:5], data[:5])
    assert bool((Uniform(4).values(data[:]) == values).all())
    sde = ScoreSDE(scoresde.VPSDE(), Zero(), shape=(2,))
    scoresde.fit(sde, data, steps=2, progress=False, generator=generator(12))
    wanted = torch.tensor([(0.5 + 0.5) / 4, (2.5 + 0.5) / 4])
    std = math.sqrt((0.25 + 1 / 12) / 16)
    torch.testing.assert_close(sde.mean.float(), wanted, rtol=0, atol=5 * std / math.sqrt(50_000))
    torch.testing.assert_close(
        sde.scale.float(), torch.full((2,), std), rtol=5 / math.sqrt(2 * 50_000), atol=0
    )


def test_labels_come_along_in_a_loader_and_are_never_lost() -> None:
    """The network sees labels of the right rows: all 0 here, or its assertion fails."""
    data = Uniform(4).dataset(
        torch.randint(4, (64, 2), generator=generator(13)), y=torch.zeros(64)
    )
    sde = ScoreSDE(scoresde.VPSDE(), Zero(), shape=(2,))
    rows = BatchSampler(RandomSampler(data), 16, False)
    loader = DataLoader(data, sampler=rows, batch_size=None)  # type: ignore[arg-type]
    scoresde.fit(sde, loader, steps=8, progress=False)
    scoresde.fit(sde, data, steps=8, progress=False)
    with pytest.raises(TypeError, match="without their y"):
        data.sample(3)


def test_a_dataset_is_indexed_as_a_tensor_is() -> None:
    """By integers of all kinds, slices, lists, masks, nothing; labels of any kind come along as
    tensors.
    """
    values = torch.arange(4).repeat(16).reshape(-1, 2)
    for labels in (list(range(32)), np.arange(32), torch.arange(32)):
        data = Uniform(4).dataset(values, y=labels)
        for rows in (
            3,
            np.int64(3),
            torch.tensor(3),
            [3, 5],
            [],
            np.array([3, 5]),
            slice(2, 9),
            torch.arange(32) > 20,
        ):
            x, condition = data[rows]
            wanted = values[torch.as_tensor(rows).long() if isinstance(rows, list) else rows]
            assert torch.equal(Uniform(4).values(x), wanted)
            assert torch.equal(condition["y"] % 2 * 2, wanted[..., 0])
    assert repr(data) == "Dequantized(Uniform(levels=4), 32 samples)"
    assert data == data
    assert len({data, data}) == 1


def test_bad_values_and_options_are_refused() -> None:
    sde, _ = model([[0.5, 0.5]], 0.2)
    good = torch.zeros(3, 2)
    for call, error, text in [
        (
            lambda: Uniform(256).noisy(torch.tensor([[0.5, 1.0]])),
            ValueError,
            "integers from 0 to 255, got 0.5",
        ),
        (lambda: Uniform(17).noisy(torch.tensor([[3, 17]])), ValueError, "from 0 to 16, got 17"),
        (lambda: Uniform(17).noisy(torch.tensor([[3, -1]])), ValueError, "got -1"),
        (lambda: Uniform(17).noisy(torch.tensor([[3.0, math.nan]])), ValueError, "got nan"),
        (lambda: Uniform(17).noisy(torch.tensor([True])), TypeError, "dtype torch.bool"),
        (lambda: Uniform(17).noisy(torch.tensor(3)), ValueError, r"got shape \(\)"),
        (
            lambda: Uniform(17).noisy("abc"),
            TypeError,
            "integers from 0 to 16, in a tensor or array; got str",
        ),
        (lambda: Uniform(17).noisy({1, 2}), TypeError, "got set"),
        (
            lambda: Uniform(17).noisy(DataLoader(good)),  # type: ignore[arg-type]
            TypeError,
            "got DataLoader",
        ),
        (
            lambda: Uniform(17).values(torch.tensor([0.5, math.nan])),
            ValueError,
            "NaN or infinite values in 1 places",
        ),
        (lambda: Uniform(17).noisy(good, generator=0), TypeError, "torch.Generator"),
        (lambda: Uniform(1), ValueError, "levels is at least 2"),
        (lambda: TruncatedNormal(256, std=0.0), ValueError, "std is at least 0.01.*in bins"),
        (lambda: TruncatedNormal.fitted(sde, good, 4, stds=()), ValueError, "stds is empty"),
        (lambda: TruncatedNormal.fitted(sde, good, 4, generator=0), TypeError, "torch.Generator"),
        (lambda: Uniform(2**32 + 1), ValueError, "at most 2.32"),
        (
            lambda: Uniform(4).dataset(good, y=torch.zeros(2)),
            ValueError,
            r"'y' has shape \(2,\) for 3 samples",
        ),
        (lambda: Uniform(4).dataset(good, y=1), ValueError, r"'y' has shape \(\) for 3 samples"),
        (
            lambda: Uniform(4).bits(torch.zeros(1), torch.zeros(1), 0),
            ValueError,
            "dim is at least 1, got 0",
        ),
        (
            lambda: scoresde.bits_per_dim(sde, good, 256),
            TypeError,
            r"such as Uniform\(256\), or None, got 256",
        ),
        (
            lambda: scoresde.bits_per_dim(sde, good),  # type: ignore[call-arg]
            TypeError,
            "dequantization",
        ),
        (
            lambda: scoresde.bits_per_dim(sde, good, None, draws=2),
            ValueError,
            "continuous data .* have none",
        ),
        (
            lambda: scoresde.bits_per_dim(sde, good.long(), None),
            TypeError,
            "wanted floating point",
        ),
        (
            lambda: scoresde.bits_per_dim(sde, good, Uniform(4), draws=0),
            ValueError,
            "draws is at least 1",
        ),
        (
            lambda: scoresde.bits_per_dim(sde, torch.zeros(3, 5), Uniform(4)),
            ValueError,
            "wanted .batch, 2.",
        ),
        (
            lambda: scoresde.bits_per_dim(sde, torch.zeros(3), Uniform(4), draws=2),
            ValueError,
            r"\(3,\), wanted .batch, 2.",
        ),
        (
            lambda: scoresde.bits_per_dim(sde, Uniform(4).dataset(good), Uniform(4)),
            TypeError,
            "give its .integers",
        ),
        (
            lambda: scoresde.bits_per_dim(good, 2, 4),
            TypeError,
            r"dequantize.Uniform\(256\).bits\(log_prob",
        ),  # type: ignore[arg-type]
        (
            lambda: scoresde.bits_per_dim(sde, good, Uniform(4), solver="em"),
            ValueError,
            "stochastic",
        ),
    ]:
        with pytest.raises(error, match=text):
            call()
