"""Toy densities against scipy, autograd, quadrature and their own samples.

Seeds are fixed. Statistical bounds are 4 standard errors, a false alarm in 16,000 draws of the
seed; permutation tests fail at p ≤ 0.001, a false alarm in 1,000.
"""

from __future__ import annotations

import copy
import functools
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.func import jacrev, jvp, vmap

from scoresde.metrics import energy_test
from scoresde.toy import (
    DENSITIES,
    Checkerboard,
    Density,
    EightGaussians,
    GaussianMixture,
    Moons,
    NoisyCurve,
    Pinwheel,
    Rings,
    SwissRoll,
    TwoSpirals,
)

NAMES = sorted(DENSITIES)
CURVES = [Moons, Rings, SwissRoll, TwoSpirals]
# name: (by quadrature, the Monte Carlo figure of the benchmark table, good to 0.006)
ENTROPIES = {
    "eight_gaussians": (2.831578, 2.827),
    "checkerboard": (math.log(32), 3.4657),
    "moons": (2.393879, 2.393),
    "rings": (2.623183, 2.620),
    "pinwheel": (2.317788, 2.313),
    "swiss_roll": (2.669646, 2.664),
    "two_spirals": (2.645301, 2.645),
    "grid25": (math.log(25) + math.log(2 * math.pi * math.e * 0.01), 1.4516),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(low: Tensor, high: Tensor, n: int) -> tuple[Tensor, float]:
    """Midpoints of an n×n grid and the area of a cell."""
    steps = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    axes = [a + (b - a) * steps for a, b in zip(low, high, strict=True)]
    return torch.cartesian_prod(*axes), float((high - low).prod()) / n**2


@functools.cache
def density(name: str) -> Density:
    """One of each for the whole file: its entropy, found once, is a quadrature."""
    return DENSITIES[name]()


def mixture(shape: tuple[int, ...], kind: str, K: int = 4) -> GaussianMixture:
    g = seeded(3)
    means = 2 * torch.randn(K, *shape, generator=g, dtype=torch.float64)
    stds: Tensor | float = 0.4
    if kind == "per component":
        stds = 0.3 + torch.rand(K, generator=g, dtype=torch.float64)
    if kind == "diagonal":
        stds = 0.3 + torch.rand(K, *shape, generator=g, dtype=torch.float64)
    return GaussianMixture(means, stds, torch.arange(1, K + 1))


@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one_and_gives_the_entropy(name: str) -> None:
    p = density(name)
    low, high = p.bounds()
    middle = (low + high) / 2
    if name != "checkerboard":  # whose edges the midpoint grid meets exactly
        low, high = middle + 1.4 * (low - middle), middle + 1.4 * (high - middle)
    x, cell = grid(low, high, 160 if name == "pinwheel" else 120)
    logp = p.log_prob(x)
    mass = logp.exp()
    assert cell * mass.sum().item() == pytest.approx(1, abs=1e-6)
    entropy = -cell * float((mass * logp.clamp(min=-1e4)).sum())
    assert p.entropy() == pytest.approx(entropy, abs=1e-5)
    exact, table = ENTROPIES[name]
    assert p.entropy() == pytest.approx(exact, abs=1e-6)
    assert p.entropy() == pytest.approx(table, abs=0.006)


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_density(name: str) -> None:
    p = density(name)
    x = p.sample(10_000, seeded(1), torch.float64)
    logp = p.log_prob(x)
    error = float(logp.std()) / math.sqrt(len(x))
    assert -float(logp.mean()) == pytest.approx(p.entropy(), abs=4 * error + 1e-12)
    # cell counts against cell masses, each the mean of a 5×5 grid within the cell
    low, high = p.bounds()
    n, fine = 20, 5
    points, cell = grid(low, high, n * fine)
    mass = p.log_prob(points).exp().reshape(n, fine, n, fine).sum((1, 3)).flatten() * cell
    inside = ((x >= low) & (x < high)).all(1)
    index = ((x[inside] - low) / (high - low) * n).long()
    count = torch.bincount(index[:, 0] * n + index[:, 1], minlength=n * n).double()
    common = mass * len(x) > 20
    chi2 = float(((count - mass * len(x)).square() / (mass * len(x)))[common].sum())
    assert stats.chi2(int(common.sum())).sf(chi2) > 1e-4


@pytest.mark.parametrize("shape", [(1,), (2,), (16,), (1, 8, 8), (3, 4, 4, 2)], ids=str)
@pytest.mark.parametrize("kind", ["scalar", "per component", "diagonal"])
def test_mixture_log_prob_is_scipys(shape: tuple[int, ...], kind: str) -> None:
    p = mixture(shape, kind)
    x = p.sample(20, seeded(), torch.float64)
    g = seeded(3)
    means = 2 * torch.randn(4, *shape, generator=g, dtype=torch.float64)
    stds = torch.full_like(means, 0.4)
    if kind != "scalar":
        size = (4, *[1] * len(shape)) if kind == "per component" else means.shape
        stds = (0.3 + torch.rand(size, generator=g, dtype=torch.float64)).expand_as(means)
    pairs = zip(means.numpy(), stds.numpy(), strict=True)
    each = [stats.norm(m, s).logpdf(x).reshape(20, -1).sum(1) for m, s in pairs]
    expected = np.logaddexp.reduce(np.stack(each, 1) + np.log([0.1, 0.2, 0.3, 0.4]), 1)
    np.testing.assert_allclose(p.log_prob(x), expected, rtol=1e-13, atol=1e-12)
    assert torch.equal(p.log_prob(x.float()), p.log_prob(x.float().double()).float())
    w = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).reshape(4, *[1] * len(shape))
    mean = (w * means).sum(0)
    torch.testing.assert_close(p.mean(), mean)
    torch.testing.assert_close(p.std(), ((w * (stds**2 + means**2)).sum(0) - mean**2).sqrt())


@pytest.mark.parametrize("shape", [(1,), (2,), (16,), (1, 8, 8), (3, 4, 4, 2)], ids=str)
@pytest.mark.parametrize("kind", ["scalar", "per component", "diagonal"])
@pytest.mark.parametrize("batch", [1, 7])
def test_denoise_is_tweedie(shape: tuple[int, ...], kind: str, batch: int) -> None:
    p = mixture(shape, kind, K=12)
    x = 2 * torch.randn(batch, *shape, generator=seeded(), dtype=torch.float64)
    sigma = torch.linspace(0.1, 0.9, batch, dtype=torch.float64)
    alpha = (1 - sigma**2).sqrt()
    x0, eps = p.denoise(x, alpha, sigma)
    for i in range(batch):
        a, s, xi = float(alpha[i]), float(sigma[i]), x[i : i + 1].clone().requires_grad_()
        (score,) = torch.autograd.grad(p.perturb(a, s).log_prob(xi).sum(), xi)
        torch.testing.assert_close(eps[i : i + 1], -s * score, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            x0[i : i + 1], (xi.detach() + s**2 * score) / a, rtol=1e-10, atol=1e-10
        )
        one = p.denoise(x[i : i + 1], a, s)  # alone, with numbers for levels
        torch.testing.assert_close(one, (x0[i : i + 1], eps[i : i + 1]), rtol=1e-12, atol=1e-12)
    leaf = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(p.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(p.score(x), score, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["scalar", "per component", "diagonal"])
def test_denoise_at_both_ends(kind: str) -> None:
    p = mixture((1, 3, 3), kind)
    x = torch.randn(5, 1, 3, 3, generator=seeded(), dtype=torch.float64)
    x0, eps = p.denoise(x, 0.5, 0.0)
    torch.testing.assert_close(x0, x / 0.5, rtol=1e-13, atol=1e-13)
    assert (eps == 0).all()
    x0, eps = p.denoise(x, torch.zeros(5), torch.full((5,), 2.0))
    torch.testing.assert_close(x0, p.mean().expand_as(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(eps, x / 2, rtol=1e-13, atol=1e-13)
    near, limit = p.denoise(x, 0.5, 1e-7), p.denoise(x, 0.5, 0.0)
    torch.testing.assert_close(near[0], limit[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denoise_under_transforms(dtype: torch.dtype) -> None:
    p = mixture((1, 2, 2), "diagonal")
    x, v = torch.randn(2, 6, 1, 2, 2, generator=seeded(), dtype=dtype)
    t = torch.linspace(0.1, 0.9, 6, dtype=dtype)
    whole, change = jvp(lambda x: p.denoise(x, 1 - t, t)[0], (x,), (v,))
    assert whole.dtype == dtype
    each = vmap(lambda x, t: p.denoise(x[None], 1 - t, t)[0][0])(x, t)
    torch.testing.assert_close(each, whole)
    jacobian = vmap(jacrev(lambda x, t: p.denoise(x[None], 1 - t, t)[0][0]))(x, t)
    torch.testing.assert_close((jacobian.flatten(4) @ v.reshape(6, 1, 1, 4, 1))[..., 0], change)
    with torch.inference_mode():
        copy.deepcopy(p).denoise(x, 0.6, 0.8)
    q = pickle.loads(pickle.dumps(p))
    torch.testing.assert_close(q.denoise(x, 1 - t, t)[0], whole, rtol=0, atol=0)


def test_matrix_products_are_as_good_as_differences() -> None:
    p = TwoSpirals()
    assert p._expand
    q = copy.deepcopy(p)
    q._expand = False
    low, high = p.bounds()
    x = grid(1.5 * low, 1.5 * high, 20)[0]
    torch.testing.assert_close(p.log_prob(x), q.log_prob(x), rtol=1e-14, atol=1e-12)
    for a, s in ((1.0, 0.0), (0.8, 0.6), (0.0, 1.0)):
        torch.testing.assert_close(p.denoise(x, a, s), q.denoise(x, a, s), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8)])
def test_perturbed_samples_follow_perturb(shape: tuple[int, ...]) -> None:
    p = mixture(shape, "diagonal")
    x0, eps = p.sample(800, seeded(1)), torch.randn(800, *shape, generator=seeded(2))
    y = p.perturb(0.6, 0.8).sample(800, seeded(3))
    assert energy_test(0.6 * x0 + 0.8 * eps, y, generator=seeded(4)) > 0.001
    assert energy_test(x0, y, generator=seeded(4)) <= 0.001


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (1, 1, 3)])
def test_entropy_of_small_mixtures(shape: tuple[int, ...]) -> None:
    p = mixture(shape, "per component", K=3)
    logp = p.log_prob(p.sample(40_000, seeded(), torch.float64))
    assert -float(logp.mean()) == pytest.approx(p.entropy(), abs=4 * float(logp.std()) / 200)
    far = GaussianMixture(60.0 * torch.arange(3)[:, None].expand(3, shape[-1]), 2.0, [1, 2, 1])
    closed = 1.5 * math.log(2) + shape[-1] * math.log(2 * math.sqrt(2 * math.pi * math.e))
    assert far.entropy() == pytest.approx(closed, abs=1e-9)


def test_entropy_in_closed_form_or_refused() -> None:
    p = GaussianMixture(torch.ones(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5))
    assert p.entropy() == pytest.approx(stats.norm(0, 0.5).entropy() * 48, abs=1e-12)
    with pytest.raises(ValueError, match=r"estimate it with -p\.log_prob"):
        mixture((16,), "scalar").entropy()
    with pytest.raises(ValueError, match="too fine"):
        GaussianMixture([[0.0, 0.0], [1.0, 1.0]], [1e-5, 1.0]).entropy()


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("noise", [0.06, 0.3])
def test_twice_the_nodes_change_nothing(curve: type[NoisyCurve], noise: float) -> None:
    p = curve(noise)  # type: ignore[call-arg]
    q = type("Finer", (curve,), {"resolution": 2 * curve.resolution})(p.noise)
    low, high = p.bounds()
    torch.testing.assert_close(
        p.log_prob(x := grid(low, high, 40)[0]), q.log_prob(x), rtol=0, atol=1e-9
    )
    middle = (low + high) / 2
    far = middle + 2 * (x - middle)
    torch.testing.assert_close(p.log_prob(far), q.log_prob(far), rtol=1e-10, atol=1e-7)


def test_rings_by_bessel_functions() -> None:
    x = grid(torch.full((2,), -4.0), torch.full((2,), 4.0), 60)[0]
    r = x.norm(dim=1, keepdim=True)
    R, s = torch.tensor([3.0, 2.25, 1.5, 0.75], dtype=torch.float64), 0.08
    each = (
        -0.5 * ((r - R) / s) ** 2
        + torch.special.i0e(r * R / s**2).log()
        - math.log(4 * 2 * math.pi * s**2)
    )
    torch.testing.assert_close(Rings().log_prob(x), each.logsumexp(1), rtol=1e-11, atol=1e-11)


def test_curves_are_those_of_scikit_learn_and_ffjord() -> None:
    u = torch.linspace(0, 1, 5, dtype=torch.float64)
    zero, one = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.long)
    t = math.pi * u
    upper, lower = torch.stack([t.cos(), t.sin()], 1), torch.stack([1 - t.cos(), 0.5 - t.sin()], 1)
    shift = torch.tensor([1.0, 0.2], dtype=torch.float64)
    torch.testing.assert_close(Moons().curve(u, zero), 2 * upper - shift)
    torch.testing.assert_close(Moons().curve(u, one), 2 * lower - shift)
    n = u * 540 * 2 * math.pi / 360
    arm = torch.stack([-n.cos() * n, n.sin() * n], 1) / 3
    torch.testing.assert_close(TwoSpirals().curve(u, zero), arm)
    torch.testing.assert_close(TwoSpirals().curve(u, one), -arm)
    t = 1.5 * math.pi * (1 + 2 * u)
    torch.testing.assert_close(
        SwissRoll().curve(u, zero), torch.stack([t * t.cos(), t * t.sin()], 1) / 5
    )


def test_pinwheel_without_twist_is_a_mixture() -> None:
    # one arm, no twist: a single Gaussian; and turning the plane by a fifth changes nothing with
    # five arms
    x = grid(torch.full((2,), -6.0), torch.full((2,), 6.0), 40)[0]
    expected = stats.norm(2, 0.6).logpdf(x[:, 0]) + stats.norm(0, 0.2).logpdf(x[:, 1])
    np.testing.assert_allclose(
        Pinwheel(arms=1, rate=0.0).log_prob(x), expected, rtol=1e-11, atol=1e-11
    )
    p, a = Pinwheel(), 2 * math.pi / 5
    turn = torch.tensor(
        [[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]], dtype=torch.float64
    )
    x = x[x.norm(dim=1) < 5]
    torch.testing.assert_close(p.log_prob(x @ turn), p.log_prob(x), rtol=1e-9, atol=1e-9)


def test_pinwheel_by_change_of_variables() -> None:
    # p(x(f)) is p(f)/(4·arms·|F′|) and what other features bring: never less, equal where the arms
    # are apart
    p = Pinwheel()
    z = torch.randn(2000, 2, generator=seeded(), dtype=torch.float64).clamp(-2, 2)
    f = p._features(z)
    x = p._place(f, torch.arange(2000) % 5)
    slope = 1 + 0.25 * f[:, 0].exp() * f[:, 1]
    own = -0.5 * (z**2).sum(1) - math.log(2 * math.pi * 0.3 * 0.1) - (4 * 5 * slope).log()
    excess = p.log_prob(x) - own
    assert excess.min() > -1e-12
    assert excess.median() < 1e-9


@pytest.mark.parametrize(
    "kw",
    [
        pytest.param({"radial_std": 0.5, "rate": 0.6, "arms": 3}, marks=pytest.mark.slow),
        {"tangential_std": 0.3, "arms": 1},
    ],
)
def test_folded_pinwheels_follow_their_density(kw: dict[str, float]) -> None:
    # folds make p infinite on lines, which a grid of 20×20 per cell still integrates
    p = Pinwheel(**kw)  # type: ignore[arg-type]
    x = p.sample(20_000, seeded(2), torch.float64)
    points, cell = grid(torch.full((2,), -4.0), torch.full((2,), 4.0), 160)
    mass = p.log_prob(points).exp().reshape(8, 20, 8, 20).sum((1, 3)).flatten() * cell
    index = (x[(x.abs() < 4).all(1)] + 4).long()
    count = torch.bincount(index[:, 0] * 8 + index[:, 1], minlength=64).double()
    chi2 = float(
        ((count - mass * 20_000).square() / (mass * 20_000))[keep := mass * 20_000 > 50].sum()
    )
    assert stats.chi2(int(keep.sum())).sf(chi2) > 1e-4
    with pytest.raises(ValueError, match="fold too much"):
        p.entropy()


def test_far_away_and_not_a_number() -> None:
    far = torch.tensor(
        [[20.0, 3.0], [1e9, 0.0], [0.0, 0.0], [math.inf, 0.0], [math.nan, 0.0]],
        dtype=torch.float64,
    )
    for name in NAMES:
        value = DENSITIES[name]().log_prob(far)
        assert value[4].isnan(), name
        assert value[3] == -math.inf or value[3].isnan(), name
        assert (value[:2] < -1000).all() or name == "pinwheel", name


def test_checkerboard_is_uniform_on_its_cells() -> None:
    p = Checkerboard()
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = p.sample(50_000, seeded(), dtype)
        assert x.dtype == dtype
        assert p.log_prob(x).isfinite().all()
    cells = torch.bincount((torch.floor(x / 2) + 2).long() @ torch.tensor([4, 1]), minlength=16)
    dark = cells[cells > 0]
    assert len(dark) == 8
    assert stats.chisquare(dark.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_generator_is_the_only_source(name: str) -> None:
    p = DENSITIES[name]()
    state = torch.get_rng_state()
    first = p.sample(7, seeded(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, p.sample(7, seeded(5)))
    assert first.dtype == torch.get_default_dtype()
    assert first.shape == (7, *p.shape)
    low, high = p.bounds()
    x = p.sample(2000, seeded(6), torch.float64)
    assert ((x > low) & (x < high)).all(1).double().mean() > 0.99
    assert p.log_prob(first[:0]).shape == (0,)
    assert p.log_prob(first).dtype == first.dtype


def test_mistakes_are_named() -> None:
    p = EightGaussians()
    with pytest.raises(ValueError, match="at least 1"):
        p.sample(0)
    with pytest.raises(TypeError, match=r"n is an integer, got 2\.5"):
        p.sample(2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="floating"):
        p.sample(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"x\[None\]"):
        p.log_prob(torch.zeros(2))
    with pytest.raises(ValueError, match=r"wants \(n, 2\)"):
        p.denoise(torch.zeros(4, 3), 1.0, 1.0)
    with pytest.raises(TypeError, match="int64"):
        Moons().log_prob(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match="list"):
        Checkerboard().log_prob([[0.0, 0.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one per point"):
        p.denoise(torch.zeros(4, 2), torch.ones(3), 1.0)
    with pytest.raises(ValueError, match="stds of shape"):
        GaussianMixture(torch.zeros(3, 2), torch.ones(2))
    with pytest.raises(ValueError, match="positive finite"):
        GaussianMixture(torch.zeros(3, 2), 1.0, [1, 0, 1])
    with pytest.raises(ValueError, match="weights of shape"):
        GaussianMixture(torch.zeros(3, 2), 1.0, [1, 1])
    with pytest.raises(ValueError, match="means of shape"):
        GaussianMixture(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="noise is greater than 0, got 0"):
        Rings(noise=0)
    with pytest.raises(ValueError, match="arms is at least 1, got 0"):
        Pinwheel(arms=0)


@pytest.mark.parametrize("density", [Moons, SwissRoll])
def test_a_curve_of_any_thinness_has_a_density_at_once_or_says_why_not(density: type) -> None:
    """On the curve's middle p is flat along it: across, it is N(0, noise²) over the arc's speed."""
    noise = 1e-3
    thin = density(noise=noise)
    tau = torch.tensor([0.5], dtype=torch.float64)
    arc = torch.zeros(1, dtype=torch.long)
    ahead, behind = (thin.curve(tau + d, arc) for d in (1e-5, -1e-5))
    tangent = (ahead - behind) / 2e-5
    normal = torch.stack([-tangent[:, 1], tangent[:, 0]], 1) / tangent.norm()
    log_p = thin.log_prob(
        thin.curve(tau, arc) + torch.tensor([[0.0], [noise], [2 * noise]]) * normal
    )
    expected = torch.tensor([0.0, -0.5, -2.0], dtype=torch.float64)
    torch.testing.assert_close(log_p - log_p[0], expected, atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="nodes of quadrature along one arc; take at least"):
        density(noise=1e-12)
