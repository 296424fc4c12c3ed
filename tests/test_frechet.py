"""The Fréchet distance, held against closed forms, scipy's matrix root, and features whose moments
are known.
"""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

import scoresde
from conftest import generator
from scoresde import frechet_distance, noise_floor, toy
from scoresde.metrics import inception, moments


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def law(f: int, seed: int, rank: int | None = None) -> tuple[Tensor, Tensor]:
    a = randn(f, rank or f + 2, seed=seed)
    return randn(f, seed=seed + 100), a @ a.T / a.shape[1]


def by_scipy(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """Heusel et al. 2017, eq. 6, as it stands."""
    (m1, c1), (m2, c2) = one, other
    root = scipy.linalg.sqrtm((c1 @ c2).numpy())
    return float((m1 - m2).square().sum() + c1.trace() + c2.trace()) - 2 * float(root.trace().real)


@pytest.mark.parametrize("f", [1, 2, 7, 40])
def test_exact_moments_give_the_formula_of_the_paper(f: int) -> None:
    one, other = law(f, 1), law(f, 2)
    assert float(frechet_distance(one, other)) == pytest.approx(
        by_scipy(one, other), abs=1e-10 * f
    )
    assert float(frechet_distance(other, one)) == pytest.approx(
        float(frechet_distance(one, other)), abs=1e-11 * f
    )


def test_in_one_dimension_it_is_the_squared_difference_of_means_and_of_deviations() -> None:
    one, other = (
        (torch.tensor([2.0]), torch.tensor([[9.0]])),
        (torch.tensor([-1.0]), torch.tensor([[0.25]])),
    )
    assert float(frechet_distance(one, other)) == pytest.approx(3.0**2 + (3 - 0.5) ** 2, abs=1e-13)


def test_commuting_covariances_compare_their_deviations() -> None:
    """Σ = U·diag(s²)·Uᵀ with one U: Σ_i (s_i − t_i)²."""
    u = torch.linalg.qr(randn(9, 9))[0]
    s, t, m = randn(9, seed=1).abs(), randn(9, seed=2).abs(), torch.zeros(9)
    d = frechet_distance((m, u * s**2 @ u.T), (m, u * t**2 @ u.T))
    assert float(d) == pytest.approx(float((s - t).square().sum()), abs=1e-12)


@pytest.mark.parametrize("f", [30, 300])
def test_singular_covariances_of_fewer_samples_than_features_are_exact(f: int) -> None:
    """In orthogonal subspaces nothing is shared; in the same one, of rank 10, what counts are the
    moments within it.

    Roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½ are wrong by 5e-7 of tr Σ at f = 300: what is 0 is
    rounded before its root is taken.
    """
    u = torch.linalg.qr(randn(f, 20))[0]
    a, b = u[:, :10] @ randn(10, 10, seed=3), u[:, 10:] @ randn(10, 10, seed=4)
    m = torch.zeros(f)
    apart = frechet_distance((m, a @ a.T), (m, b @ b.T))
    assert float(apart) == pytest.approx(float(a.square().sum() + b.square().sum()), rel=1e-12)
    within = u[:, :10] @ randn(10, 10, seed=5)
    small = [(torch.zeros(10), (u[:, :10].T @ c) @ (u[:, :10].T @ c).T) for c in (a, within)]
    together = frechet_distance((m, a @ a.T), (m, within @ within.T))
    assert float(together) == pytest.approx(float(frechet_distance(*small)), rel=1e-11)
    assert float(frechet_distance((m, a @ a.T), (m, a @ a.T))) < 1e-11 * float(a.square().sum())


def test_variances_that_rounding_could_have_left_cost_no_more_than_is_said() -> None:
    """A hundred of 5e-14 beside 1: they count as 0, and d² is too large by at most 2k·√(F·2⁻⁵²)."""
    a, b = torch.ones(300, dtype=torch.float64), torch.ones(300, dtype=torch.float64)
    a[:100] = 5e-14
    error = float(frechet_distance((0 * a, a.diag()), (0 * b, b.diag()))) - float(
        (a.sqrt() - b.sqrt()).square().sum()
    )
    assert -1e-11 < error < 200 * math.sqrt(300 * 2.0**-52)


def test_fewer_samples_than_features_as_scipy_has_it() -> None:
    x, y = randn(12, 3, 10), 0.5 + 2 * randn(15, 3, 10, seed=1)
    d = frechet_distance(x, y)
    ours = [(v.flatten(1).mean(0), v.flatten(1).T.cov()) for v in (x, y)]
    c1, c2 = ours[0][1], ours[1][1]
    # sqrtm itself fails on singular matrices
    roots = scipy.linalg.eigvals((c1 @ c2).numpy()).real.clip(0) ** 0.5
    wanted = (
        float((ours[0][0] - ours[1][0]).square().sum() + c1.trace() + c2.trace()) - 2 * roots.sum()
    )
    assert float(d) == pytest.approx(wanted, abs=1e-4)  # which is what roots of eigenvalues can do
    assert d.dtype == torch.float64


def test_moments_do_not_depend_on_the_batch_size_and_may_be_kept() -> None:
    x, y = 1e3 + randn(101, 5), 1e3 + 1.3 * randn(90, 5, seed=1)
    mean, cov = moments(x, batch_size=7)
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(cov, x.T.cov(), rtol=1e-11, atol=1e-12)
    d = float(frechet_distance(x, y))
    assert float(frechet_distance(moments(x, batch_size=13), y)) == pytest.approx(d, abs=1e-10)
    assert float(frechet_distance(x, moments(y), batch_size=3)) == pytest.approx(d, abs=1e-10)


def test_rotations_and_shifts_of_both_sets_change_nothing() -> None:
    x, y = randn(50, 8), 1 + randn(60, 8, seed=1) @ randn(8, 8, seed=2)
    u, shift = torch.linalg.qr(randn(8, 8, seed=3))[0], randn(8, seed=4)
    assert float(frechet_distance(x @ u + shift, y @ u + shift)) == pytest.approx(
        float(frechet_distance(x, y)), rel=1e-12
    )
    assert float(frechet_distance(x, x)) < 1e-12
    assert float(frechet_distance(x, x + shift)) == pytest.approx(
        float(shift.square().sum()), rel=1e-12
    )


class Network(nn.Module):
    """A stand-in for a feature network: linear, so that f(x) of a normal x is normal, and zero in
    train mode.
    """

    def __init__(self, n: int, f: int) -> None:
        super().__init__()
        self.map = nn.Linear(n, f, dtype=torch.float64)
        self.drop = nn.Dropout(0.5)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.sizes.append(len(x))
        found: Tensor = self.drop(self.map(x.flatten(1)))
        return found


def test_a_network_of_known_answer_is_called_in_batches_and_left_in_its_mode() -> None:
    """With f(x) = Wx + b exact moments are (Wμ + b, WΣWᵀ); those of 1,000 samples are exact for
    the law of these samples.
    """
    torch.manual_seed(0)
    x, y, net = randn(1000, 1, 2, 3), 0.3 + 0.8 * randn(900, 1, 2, 3, seed=1), Network(6, 4)
    net.drop.train()
    net.map.eval()
    d = frechet_distance(x, y, net, batch_size=128)
    assert net.sizes[:8] == [128] * 7 + [104]
    assert (net.drop.training, net.map.training) == (True, False)
    w, b = net.map.weight.detach(), net.map.bias.detach()
    exact = [(w @ m + b, w @ c @ w.T) for m, c in (moments(x), moments(y))]
    assert float(d) == pytest.approx(float(frechet_distance(*exact)), rel=1e-11)
    assert float(frechet_distance(x, y, lambda v: net(v))) >= 0


def test_it_converges_to_the_distance_of_the_laws() -> None:
    """|d²(n) − d²| within 5/√n of samples, at two sizes; seeds are fixed."""
    one, other = (
        (torch.zeros(3), torch.eye(3)),
        (torch.ones(3), torch.diag(torch.tensor([1.0, 4.0, 0.25]))),
    )
    exact = float(frechet_distance(one, other))
    assert exact == pytest.approx(3 + 1 + 0.25)
    for n in (400, 6400):
        y = 1 + randn(n, 3, seed=n + 1) * torch.tensor([1.0, 2.0, 0.5])
        assert abs(float(frechet_distance(randn(n, 3, seed=n), y)) - exact) < 5 * math.sqrt(
            exact / n
        )


@pytest.mark.parametrize("f", [1, 4])
def test_of_equal_laws_it_is_biased_upwards_by_one_over_n(f: int) -> None:
    """At Σ = I, d² ≈ |Δμ|² + ¼·|ΔΣ|², whose mean is (2F + ½·F(F + 1))/n. Within 4 standard errors:
    a false alarm in 15,000.
    """
    n = 500
    values = torch.stack(
        [frechet_distance(randn(n, f, seed=i), randn(n, f, seed=1000 + i)) for i in range(100)]
    )
    wanted = (2 * f + f * (f + 1) / 2) / n
    assert abs(float(values.mean()) - wanted) < 4 * float(values.std()) / 10


def test_it_has_a_noise_floor_like_the_other_metrics() -> None:
    moons = toy.Moons()
    floor = noise_floor(frechet_distance, moons, 500, repeats=10, generator=generator(0))
    assert 0 < floor.rms < 0.05
    shifted = moons.sample(500, generator=generator(1)) + 0.5
    assert floor.times(frechet_distance(shifted, moons.sample(500, generator=generator(2)))) > 10


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch-fidelity: the same module, class and arguments, and features that are
    means of colors.
    """

    class FeatureExtractorInceptionV3(nn.Module):
        def __init__(
            self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None
        ) -> None:
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])

        def forward(self, x: Tensor) -> tuple[Tensor]:
            assert x.dtype == torch.uint8
            assert x.shape[1] == 3
            return (x.float().mean((2, 3)),)

    module: Any = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FeatureExtractorInceptionV3
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


@pytest.mark.usefixtures("fidelity")
@pytest.mark.parametrize("channels", [1, 3])
def test_inception_sees_bytes_in_three_colors(channels: int) -> None:
    x = torch.randint(256, (20, channels, 6, 6), generator=generator(0)).byte()
    mean, cov = moments(x, "inception")
    wanted = x.double().mean((2, 3)).expand(-1, 3)
    torch.testing.assert_close(mean, wanted.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(cov, wanted.T.cov(), rtol=1e-4, atol=1e-3)
    assert float(frechet_distance(x, x, "inception")) < 1e-9
    for bad in (x / 256, x[:, :1].expand(-1, 2, -1, -1), x[:, 0]):
        with pytest.raises(ValueError, match=r"bytes, \(B, 1 or 3, H, W\), got torch"):
            frechet_distance(bad, bad, "inception")


def test_without_torch_fidelity_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=r"pip install 'scoresde\[fid\]'"):
        inception()


X = torch.zeros(4, 2)
PAIR = (torch.zeros(2), torch.eye(2))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (([1, 2, 3], X), TypeError, "pair of tensors"),
        (("x", X), TypeError, "x is a str"),
        ((X[:1], X), ValueError, "n ≥ 2"),
        ((X, torch.zeros(4, 3)), ValueError, "x has 2 features and y 3"),
        ((X, torch.full((4, 2), math.nan)), ValueError, "NaN"),
        ((X, (torch.zeros(2), torch.eye(3))), ValueError, r"\(2,\) and .*\(3, 3\)"),
        (
            (X, (torch.zeros(2), torch.tensor([[1.0, 2.0], [0.0, 1.0]]))),
            ValueError,
            "not symmetric",
        ),
        (
            (X, (torch.zeros(2), torch.diag(torch.tensor([1.0, -1.0])))),
            ValueError,
            "y has a covariance.*-1.*negative",
        ),
        ((PAIR, PAIR, 3), TypeError, "features are a function"),
        ((PAIR, PAIR, "vgg"), ValueError, "unknown features 'vgg'.*inception"),
        ((X, X, lambda x: x.sum()), ValueError, r"\(4, F\), got \(\)"),
        (
            (X, X, lambda x: x[:, :0]),
            ValueError,
            r"at least one a sample, got torch.float32 of shape \(4, 0\)",
        ),
        ((torch.zeros(4, 0), torch.zeros(4, 0)), ValueError, "at least one a sample"),
        ((X, X, lambda x: x + 1j), ValueError, "real numbers.*complex64"),
        (
            (1e160 * torch.arange(8.0, dtype=torch.float64).reshape(4, 2), X),
            ValueError,
            "too large: their squares overflow",
        ),
        ((X, (torch.zeros(2), torch.eye(2) + 0j)), ValueError, r"\(F, F\), real, got .*complex64"),
        ((X, (torch.zeros(0), torch.zeros(0, 0))), ValueError, r"\(F,\) and \(F, F\)"),
    ],
)
def test_mistakes_are_named(arguments: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        scoresde.frechet_distance(*arguments)
