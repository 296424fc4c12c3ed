"""Learned variances of reverse steps: against Gaussian conditioning, DDPM by hand, and exact heads.

Statistical tests allow five standard errors, a false alarm in two million, unless they say more.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import scoresde
from scoresde.backbones import LearnedVariance
from scoresde.density.bound_levels import data_end, vlb_levels
from scoresde.processes.spacings import grid
from scoresde.toy.denoised_variance import denoised_variance
from scoresde.training.hybrid import step_costs

EXACT = {
    ("logsnr", "posterior"): 2.498,
    ("logsnr", "beta"): 0.241,
    ("logsnr", "isotropic"): 0.136,
    ("logsnr", "elementwise"): 0.110,
    ("ddpm", "posterior"): 1.250,
    ("ddpm", "beta"): 0.285,
    ("ddpm", "isotropic"): 0.151,
    ("ddpm", "elementwise"): 0.127,
}
"""Nats of 50 steps below the entropy of standardized 8 Gaussians: KLs between Gaussians with the
exact posterior moments, averaged over 40,000 noised samples a step; each to 0.004."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def modes() -> tuple[Tensor, float]:
    """Means and standard deviation of 8 Gaussians that have one of 1 along each axis."""
    scale = float(scoresde.toy.EightGaussians().std()[0])
    angle = torch.arange(8).double() * math.pi / 4
    means = 4 / math.sqrt(2) / scale * torch.stack([angle.cos(), angle.sin()], 1)
    return means, 0.5 / math.sqrt(2) / scale


def standard_gaussians() -> scoresde.toy.GaussianMixture:
    """The 8 Gaussians with a standard deviation of 1 along each axis."""
    return scoresde.toy.GaussianMixture(*modes())


def gaussian(*stds: float) -> scoresde.toy.GaussianMixture:
    return scoresde.toy.GaussianMixture(torch.zeros(1, len(stds)), [list(stds)])


def test_the_variance_of_x0_is_that_of_a_quadrature() -> None:
    mixture = scoresde.toy.GaussianMixture(
        [[-1.0], [0.5], [2.0]], [[0.3], [0.2], [0.7]], [0.2, 0.5, 0.3]
    )
    x0 = torch.linspace(-12, 12, 200_001).double()
    prior = mixture.log_prob(x0[:, None])
    x = torch.tensor([[-1.3], [0.4], [1.0], [3.0]]).double()
    for alpha, sigma in ((0.9, 0.3), (0.4, 1.2), (1.0, 0.05)):
        weight = (prior - 0.5 * ((x - alpha * x0) / sigma) ** 2).softmax(1)
        mean = (weight * x0).sum(1, True)
        wanted = (weight * (x0 - mean) ** 2).sum(1)
        levels = torch.full((4,), alpha), torch.full((4,), sigma)
        found = denoised_variance(mixture, x, *levels)[:, 0]
        assert torch.allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("process", [scoresde.VPSDE(), scoresde.RectifiedFlow()], ids=repr)
def test_one_share_gives_the_variance_of_steps_of_every_length(process: scoresde.Process) -> None:
    """Var[z_s | z_t] of Gaussian data, by conditioning, is β̃·(1 + h·w) and exp(v log β + …)."""
    std = 0.6
    sde = scoresde.oracle(gaussian(std), process, variance="elementwise").double()
    phi = process.phi(torch.tensor([0.1, 0.35, 0.6, 0.8]).double()).tolist()
    for k, t in enumerate(phi[1:], 1):
        w = float(sde.variance_fn()(torch.tensor([[0.7]]).double(), t)[0, 1])
        for s in phi[:k]:
            own = math.cos(s) ** 2 * std**2 + math.sin(s) ** 2
            # z_t = (cos t/cos s)·z_s + noise
            a = math.cos(t) / math.cos(s)
            there = math.cos(t) ** 2 * std**2 + math.sin(t) ** 2
            wanted = own - (a * own) ** 2 / there
            beta = 1 - a**2
            tilde = math.sin(s) ** 2 / math.sin(t) ** 2 * beta
            h = beta / tilde - 1
            v = math.log1p(h * w) / math.log1p(h)
            between = math.exp(v * math.log(beta) + (1 - v) * math.log(tilde))
            assert tilde * (1 + h * w) == pytest.approx(wanted, rel=1e-6)
            assert between == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("process", [scoresde.VPSDE(), scoresde.VESDE(), scoresde.EDM()], ids=repr)
def test_the_bound_of_gaussian_data_lacks_only_prior_and_decoder(
    process: scoresde.Process,
) -> None:
    """Every p(z_s | z_t) is exact, so that log p is missed by two KLs in closed form."""
    stds = torch.tensor([0.3, 0.8]).double()
    data = gaussian(*stds.tolist())
    sde = scoresde.oracle(data, process, variance="elementwise").double()
    start = data_end(sde)
    law = data.perturb(float(process.alpha(torch.zeros(()))), math.sin(start))
    if process.phi_min == 0:
        law = data.perturb(math.cos(start), math.sin(start))
    x = law.sample(3000, generator=generator(0)).double()
    bound = scoresde.vlb(sde, x, steps=12, variance="learned", generator=generator(1))
    gap = law.log_prob(x) - bound.log_prob
    # the arc that begins at the data, whose variance is that of z at φ0
    v0 = stds**2 * math.cos(start) ** 2 + math.sin(start) ** 2
    sin2 = vlb_levels(sde, 12, "logsnr")
    last = sin2[-1] + (1 - sin2[-1]) * v0
    own = 1 / (1 / v0 + (1 - sin2[1]) / sin2[1])
    wanted = torch.zeros(()).double()
    for variance, unit in ((last, torch.ones(2)), (own, sin2[1])):
        ratio = variance / unit
        wanted = wanted + 0.5 * (ratio - 1 - ratio.log()).sum()
    error = float(gap.std()) / math.sqrt(len(x))
    assert abs(float(gap.mean() - wanted)) < 5 * error + 2e-3
    assert error < 0.02


def quadrature(alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Weights that add up to 1 and traces of Cov[x0|z], on a grid about one of 8 alike modes."""
    means, std = modes()
    std2 = std**2
    var = alpha**2 * std2 + sigma**2
    axis = torch.linspace(-7, 7, 101).double() * math.sqrt(var)
    z = torch.cartesian_prod(axis, axis) + alpha * means[0]
    square = (z[:, None] - alpha * means).square().sum(2)
    of_mode = (-0.5 * square[:, 0] / var).exp()
    posterior = (-0.5 * square / var).softmax(1)
    x0 = means + (alpha * std2 / var) * (z[:, None] - alpha * means)
    mean = (posterior[:, :, None] * x0).sum(1, keepdim=True)
    trace = (posterior[:, :, None] * (x0 - mean).square()).sum((1, 2)) + 2 * std2 * sigma**2 / var
    return of_mode / of_mode.sum(), trace


@pytest.mark.parametrize("spacing", ["logsnr", "ddpm"])
def test_the_exact_figures_are_those_of_a_quadrature(spacing: str) -> None:
    """The bound term by term, E over z on a grid of its plane: no samples, no random numbers."""
    process = scoresde.VPSDE()
    times = grid(process, 50, spacing).flip(0)[1:]
    alphas = process.alpha(times).tolist()
    sigmas = process.sigma(times).tolist()
    weight, trace = quadrature(alphas[0], sigmas[0])
    decoder = math.log(2 * math.pi * sigmas[0] ** 2) + float(weight @ trace) / (2 * sigmas[0] ** 2)
    prior = sigmas[-1] ** 2 + alphas[-1] ** 2 - 1 - 2 * math.log(sigmas[-1])
    found = dict.fromkeys(("posterior", "beta", "isotropic"), decoder + prior)
    for (a, s), (b, t) in itertools.pairwise(zip(alphas, sigmas, strict=True)):
        step = t**2 - (b / a) ** 2 * s**2
        tilde = step * s**2 / t**2
        weight, trace = quadrature(b, t)
        error = (a * step / t**2) ** 2 * trace / 2  # by axis, in the mean of p(z_s | z_t)
        best = (tilde + error).clamp(tilde, step)
        for name, var in (("posterior", tilde), ("beta", step), ("isotropic", best)):
            var = torch.as_tensor(var).double()
            cost = (tilde + error) / var - 1 + (var / tilde).log()
            found[name] += float(weight @ cost.expand_as(trace))
    entropy = standard_gaussians().entropy()
    for name, nats in found.items():
        assert abs(nats - entropy - EXACT[spacing, name]) < 0.004, name


PLAIN = {
    "logsnr": ((2.40, 0.17, 0.07), (2.8, 2.0, 2.0), 0.16),
    "ddpm": ((1.31, 0.31, 0.16), (2.5, 1.4, 1.4), 0.26),
}
"""What plain sampling found before the integrals, for "posterior", "beta" and "isotropic"; the
scatter of each sample, and that of the difference between the last two."""


@pytest.mark.parametrize("spacing", ["logsnr", "ddpm"])
def test_one_draw_of_each_step_scatters_so_far_about_the_integrals(spacing: str) -> None:
    """By hand, x and one z_t at each step: 2,000 samples within five standard errors, and earlier
    figures within two of 1,000 samples. The last two rows share nearly all their noise, so that
    their difference is told to 0.02, rounding included."""
    published, scatter, of_difference = PLAIN[spacing]
    found = plain_gaps(spacing, 2000)
    names = ("posterior", "beta", "isotropic")
    for name, before, wide in zip(names, published, scatter, strict=True):
        exact = EXACT[spacing, name]
        spread = float(found[name].std())
        assert spread == pytest.approx(wide, rel=0.12)
        assert abs(float(found[name].mean()) - exact) < 5 * spread / math.sqrt(2000)
        assert abs(before - exact) < 2 * wide / math.sqrt(1000)
    gain = found["beta"] - found["isotropic"]
    exact = EXACT[spacing, "beta"] - EXACT[spacing, "isotropic"]
    assert float(gain.std()) == pytest.approx(of_difference, rel=0.25)
    assert abs(float(gain.mean()) - exact) < 5 * float(gain.std()) / math.sqrt(2000)
    assert abs(published[1] - published[2] - exact) < 0.02


def plain_gaps(spacing: str, n: int) -> dict[str, Tensor]:
    """log p less the terms of the bound, each with one draw of noise, (n,)."""
    process = scoresde.VPSDE()
    times = grid(process, 50, spacing).flip(0)[1:]
    levels = list(zip(process.alpha(times).tolist(), process.sigma(times).tolist(), strict=True))
    g = generator(0)
    mixture = standard_gaussians()
    x = mixture.sample(n, generator=g).double()
    means, std = modes()

    def seen(a: float, s: float) -> tuple[Tensor, Tensor]:
        """Squared error by axis of E[x0|z] for a drawn z, and its expectation."""
        z = a * x + s * torch.randn(n, 2, generator=g).double()
        var = a**2 * std**2 + s**2
        share = (-0.5 * (z[:, None] - a * means).square().sum(2) / var).softmax(1)[:, :, None]
        x0 = means + (a * std**2 / var) * (z[:, None] - a * means)
        mean = (share * x0).sum(1)
        trace = (share * (x0 - mean[:, None]).square()).sum((1, 2)) + 2 * std**2 * s**2 / var
        return (x - mean).square().sum(1) / 2, trace / 2

    first, last = levels[0], levels[-1]
    decoder = math.log(2 * math.pi * first[1] ** 2) + seen(*first)[0] / first[1] ** 2
    prior = 0.5 * last[0] ** 2 * x.square().sum(1) + last[1] ** 2 - 1 - 2 * math.log(last[1])
    rest = mixture.log_prob(x).double() + decoder + prior
    found = dict.fromkeys(("posterior", "beta", "isotropic"), rest)
    for (a, s), (b, t) in itertools.pairwise(levels):
        step = t**2 - (b / a) ** 2 * s**2
        tilde = step * s**2 / t**2
        square, expected = ((a * step / t**2) ** 2 * y for y in seen(b, t))
        best = (tilde + expected).clamp(tilde, step)
        for name, var in (("posterior", tilde), ("beta", step), ("isotropic", best)):
            var = torch.as_tensor(var).double()
            found[name] = found[name] + (tilde + square) / var - 1 + (var / tilde).log()
    return found


@pytest.mark.parametrize("spacing", ["logsnr", pytest.param("ddpm", marks=pytest.mark.slow)])
def test_exact_heads_have_the_bounds_of_the_exact_moments(spacing: str) -> None:
    mixture = standard_gaussians()
    x = mixture.sample(1500, generator=generator(0))
    found: dict[str, Tensor] = {}
    for name in ("posterior", "beta", "isotropic", "elementwise"):
        exact = name in ("isotropic", "elementwise")
        sde = scoresde.oracle(mixture, scoresde.VPSDE(), variance=name if exact else None)
        how: dict[str, Any] = {"variance": "learned" if exact else name, "spacing": spacing}
        bound = scoresde.vlb(sde, x, steps=50, generator=generator(1), **how)
        found[name] = mixture.log_prob(x) - bound.log_prob
        error = float(found[name].std()) / math.sqrt(len(x))
        assert abs(float(found[name].mean()) - EXACT[spacing, name]) < 5 * error + 0.004
    for name in ("isotropic", "elementwise"):  # the same noise: what a learned variance gains
        gain = found["beta"] - found[name]
        error = float(gain.std()) / math.sqrt(len(x))
        assert abs(float(gain.mean()) - EXACT[spacing, "beta"] + EXACT[spacing, name]) < (
            5 * error + 0.008
        )
        assert float(gain.mean()) > 5 * error
    sde = scoresde.oracle(mixture, scoresde.VPSDE(), variance="elementwise")
    drawn = scoresde.vlb(
        sde, x, steps=50, variance="learned", draws=8, spacing=spacing, generator=generator(2)
    )
    gap = mixture.log_prob(x) - drawn.log_prob
    error = float(gap.std()) / math.sqrt(len(x))
    assert abs(float(gap.mean()) - EXACT[spacing, "elementwise"]) < 5 * error + 0.004


@pytest.mark.slow
def test_the_bounds_of_a_thousand_steps() -> None:
    mixture = standard_gaussians()
    x = mixture.sample(1000, generator=generator(0))
    sde = scoresde.oracle(mixture, scoresde.VPSDE(), variance="isotropic")
    for variance, wanted in (("posterior", 0.89), ("beta", 0.02), ("learned", 0.01)):
        how: dict[str, Any] = {"variance": variance, "spacing": "ddpm"}
        bound = scoresde.vlb(sde, x, steps=1000, generator=generator(1), **how)
        gap = mixture.log_prob(x) - bound.log_prob
        error = float(gap.std()) / math.sqrt(len(x))
        assert abs(float(gap.mean()) - wanted) < 3 * error + 0.02
        assert error < 0.05


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_ancestral_samples_have_the_variance_of_its_steps(variance: str) -> None:
    """Six steps from N(0, I): a linear recursion, closed by E[x0 | x] without noise."""
    std, process = 0.4, scoresde.VPSDE()
    sde = scoresde.oracle(gaussian(std, std), process, variance="elementwise").double()
    x = scoresde.sample(
        sde, 20_000, solver="ancestral", variance=variance, steps=6, generator=generator(0)
    )
    phi = process.phi(grid(process, 6, "logsnr")).tolist()
    found = 1.0
    for t, s in itertools.pairwise(phi):
        total = math.cos(t) ** 2 * std**2 + math.sin(t) ** 2
        x0 = math.cos(t) * std**2 / total
        eps = math.sin(t) / total
        r = math.tan(s) / math.tan(t)
        tilde = math.sin(s) ** 2 * (1 - r**2)
        c = math.cos(s) * (1 - r**2)
        added = {
            "posterior": tilde,
            "beta": 1 - (math.cos(t) / math.cos(s)) ** 2,
            "learned": tilde + c**2 * std**2 * math.sin(t) ** 2 / total,
        }[variance]
        if s == 0:
            added = 0.0
        found = (math.cos(s) * x0 + math.sin(s) * r * eps) ** 2 * found + added
    error = found * math.sqrt(2 / 40_000)
    assert abs(float(x.square().mean()) - found) < 5 * error


def test_ancestral_takes_the_learned_variance_where_there_is_one() -> None:
    mixture = standard_gaussians()
    with_head = scoresde.oracle(mixture, scoresde.VPSDE(), variance="elementwise")
    without = scoresde.oracle(mixture, scoresde.VPSDE())

    def drawn(sde: scoresde.Model, **how: Any) -> scoresde.Solution:
        return scoresde.solve(sde, 50, steps=10, generator=generator(0), **how)

    usual = drawn(with_head, solver="ancestral")
    assert torch.equal(usual.x, drawn(with_head, solver="ancestral", variance="learned").x)
    assert int(usual.nfe[0]) == 10
    fixed = drawn(without, solver="ancestral").x
    assert not torch.allclose(usual.x, fixed, atol=1e-2)
    assert torch.equal(fixed, drawn(with_head, solver="ancestral", variance="posterior").x)
    assert torch.equal(fixed, drawn(without, solver="ddim", eta=1.0).x)
    # a model made from others has another mean, which the variance is not that of
    assert torch.equal(fixed, drawn(scoresde.Derived(with_head), solver="ancestral").x)
    with pytest.raises(ValueError, match="has not learnt the variance"):
        drawn(scoresde.Derived(with_head), solver="ancestral", variance="learned")


class Line(nn.Module):
    """Output and logit are linear: a·x, and b·x + d."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3).double())
        self.b = nn.Parameter(torch.tensor(0.2).double())
        self.d = nn.Parameter(torch.tensor(-0.7).double())

    def forward(self, x: Tensor, t: Tensor, with_variance: bool = False) -> Tensor:
        out = self.a * x
        return torch.stack([out, self.b * x + self.d]) if with_variance else out


@pytest.mark.parametrize("predict", ["edm", "x0"])
@pytest.mark.parametrize("noise", ["uniform", "adaptive"])
def test_the_hybrid_loss_is_that_of_ddpm_by_hand(predict: str, noise: str) -> None:
    """Denoising plus λ·T·KL between the two Gaussians, whose mean gets no gradient from it."""
    steps, weight = 20, 0.3
    process = scoresde.RectifiedFlow()
    sde = scoresde.build(process, Line(), shape=(2,), predict=predict, variance="learned")
    z0, eps = torch.randn(2, 40, 2, generator=generator(0)).double()
    q = torch.linspace(0.05, 0.95, 40).double()
    gradients = []
    for objective in (
        scoresde.Denoising(noise=noise),
        scoresde.Hybrid(noise=noise, vlb_weight=weight, vlb_steps=steps),
    ):
        ready = objective.prepared(sde, paired=False, joined=False)
        loss = ready(sde.net, sde, z0, eps, q, {}, 1.0, generator(0))
        gradients.append(torch.autograd.grad(loss, list(sde.net.parameters()), allow_unused=True))
    assert gradients[0][1] is None
    assert torch.allclose(gradients[1][0], gradients[0][0], rtol=1e-12)
    levels = scoresde.NOISES[noise](process, q)
    if noise == "adaptive":
        levels = scoresde.NOISES["likelihood"](process, q)
        made: Any = scoresde.Denoising(noise=noise).prepared(sde, paired=False, joined=False)
        levels = made._adaptive(process, q)[0]
    cos, sin = levels.cos()[:, None], levels.sin()[:, None]
    z = cos * z0 + sin * eps
    x0 = sde.net.a * z if predict == "x0" else cos * z + sin * sde.net.a * z
    s = torch.atan(torch.exp(levels.tan().log() - 11 / steps))[:, None]
    share = (sde.net.b * z + sde.net.d).sigmoid()
    ratio = s.tan() / levels.tan()[:, None]
    tilde = s.sin() ** 2 * (1 - ratio**2)
    beta = 1 - (cos / s.cos()) ** 2
    c = s.cos() * (1 - ratio**2)
    exact = Normal(c * z0, tilde.sqrt())
    model = Normal(c * x0.detach(), (tilde + (beta - tilde) * share).sqrt())
    bound = weight * steps * kl_divergence(exact, model).mean()
    wanted = torch.autograd.grad(bound, [sde.net.b, sde.net.d])
    assert torch.allclose(torch.stack(gradients[1][1:]), torch.stack(wanted), rtol=1e-7)


def test_the_best_share_is_the_mean_squared_error_whatever_the_step() -> None:
    square = 2 * torch.rand(300, 1, generator=generator(0)).double() ** 2
    share = torch.linspace(0.01, 0.99, 981).double()
    for growth in (1e-3, 0.5, 20.0):
        cost = step_costs(share.logit()[None], square, torch.full((1, 1), growth).double()).mean(0)
        assert float(share[cost.argmin()]) == pytest.approx(float(square.mean()), abs=2e-3)


def test_a_network_with_a_head_keeps_mean_trace_and_likelihood() -> None:
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=16, depth=2, variance="learned")
    plain = scoresde.build("vp", "mlp", shape=(2,), width=16, depth=2)
    nn.init.normal_(sde.net.net.out.weight, std=0.3)
    nn.init.normal_(sde.net.head.out.weight, std=0.3)
    plain.net.load_state_dict(sde.net.net.state_dict())
    x = torch.randn(20, 2, generator=generator(0))
    assert sde.traces()
    assert torch.equal(scoresde.log_prob(sde, x, steps=20), scoresde.log_prob(plain, x, steps=20))
    bounds = [
        scoresde.elbo(each, x, draws=8, generator=generator(1)).log_prob for each in (sde, plain)
    ]
    assert torch.equal(*bounds)


def test_units_only_shift_a_bound() -> None:
    """Correlated columns, one of them constant, are whitened: log p changes by log |det|."""
    rows = torch.randn(400, 2, generator=generator(0)) @ torch.tensor([[2.0, 1.5], [0.0, 0.1]])
    data = torch.cat([rows[:, :1], torch.full((400, 1), 3.0), rows[:, 1:]], 1)
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(3,), width=16, depth=2, variance="learned")
    scoresde.fit(sde, data, steps=3, validation=None, progress=False, generator=generator(1))
    nn.init.normal_(sde.ema.head.out.weight, std=0.5)
    white = scoresde.build("vp", "learned_variance", shape=(3,), width=16, depth=2).eval()
    white.net.load_state_dict(sde.ema.state_dict())
    white.scale[1] = 0.0  # the constant
    z = sde.from_data(data[:50])
    inside = torch.zeros(50, 3)
    inside[:, [0, 2]] = z
    how: dict[str, Any] = {"steps": 20, "variance": "learned"}
    found = scoresde.vlb(sde, data[:50], generator=generator(2), **how).log_prob
    wanted = scoresde.vlb(white, inside, generator=generator(2), **how).log_prob
    assert torch.allclose(found, wanted - sde.log_scale, atol=1e-3)
    assert sde.variance_fn()(z, 0.5).shape == (50, 4)


def test_conditions_averages_and_files_keep_the_head(tmp_path: Any) -> None:
    """Two classes of one mean, of standard deviations 0.1 and 1: their shares differ."""
    labels = torch.randint(2, (2000,), generator=generator(0))
    data = torch.randn(2000, 1, generator=generator(1)) * torch.tensor([[0.1], [1.0]])[labels]
    torch.manual_seed(0)
    sde = scoresde.build(
        "rectified", "mlp", shape=(1,), width=32, depth=2, classes=2, variance="learned"
    )
    scoresde.fit(
        sde,
        data,
        given={"y": labels},
        steps=500,
        batch_size=128,
        validation=None,
        progress=False,
        generator=generator(2),
    )
    z = torch.zeros(1, 1)
    narrow, broad = (float(sde.given(y=y).variance_fn()(z, 0.7)[0, 1]) for y in (0, 1))
    assert narrow < 0.3
    assert broad > 0.6
    assert sde.given(y=0).capabilities == sde.capabilities
    raw = float(sde.given(y=0).variance_fn(raw=True)(z, 0.7)[0, 1].detach())
    assert raw != narrow
    again = scoresde.load(scoresde.save(sde, tmp_path / "model"))
    labels, data = labels[:20], data[:20]
    bounds = [
        scoresde.vlb(
            each.given(y=labels), data, steps=10, variance="learned", generator=generator(3)
        )
        for each in (sde, again)
    ]
    assert torch.equal(bounds[0].log_prob, bounds[1].log_prob)
    assert again.objective == "hybrid"


class Length(nn.Module):
    """The root mean square of a series, as a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 4)
        self.calls = 0

    def forward(self, series: Tensor) -> Tensor:
        self.calls += 1
        return self.scale(series.square().mean((1, 2), True)[:, 0])


def test_a_condition_of_any_shape_is_embedded_once_for_both_outputs() -> None:
    sde = scoresde.build(
        "vp", "mlp", shape=(2,), width=8, vector=4, embed=Length(), variance="learned"
    )
    series = torch.randn(64, 3, 5)
    scoresde.fit(sde, torch.randn(64, 2), given={"vector": series}, steps=2, progress=False)
    sde.ema.embed["vector"].calls = 0
    x = scoresde.sample(sde.given(vector=series[:4]), solver="ancestral", steps=6)
    assert x.shape == (4, 2)
    assert sde.ema.embed["vector"].calls <= 3  # once for each of the problem's functions


def test_networks_without_a_closed_trace_have_twice_the_channels(tmp_path: Any) -> None:
    torch.manual_seed(0)
    sde = scoresde.build(
        "vp", "dit", shape=(1, 4, 4), width=16, depth=1, heads=2, patch=2, variance="learned"
    )
    images = torch.randn(64, 1, 4, 4, generator=generator(0))
    scoresde.fit(sde, images, steps=3, batch_size=16, progress=False, generator=generator(1))
    assert sde.net.head is None
    assert not sde.traces()
    z = torch.randn(2, 16, generator=generator(2))
    velocity, share = sde.variance_fn()(z, 0.5).chunk(2, 1)
    assert torch.equal(velocity, sde.velocity_fn()(z, 0.5))
    assert ((share > 0) & (share < 1) & (share != 0.5)).all()
    again = scoresde.load(scoresde.save(sde, tmp_path / "model"))
    assert torch.equal(again.variance_fn()(z, 0.5), sde.variance_fn()(z, 0.5))


@pytest.mark.parametrize("steps", [10, 1000, 4000])
def test_cosine_times_are_the_grid_of_improved_ddpm(steps: int) -> None:
    """As `betas_for_alpha_bar` of its code has it."""

    def alpha_bar(tau: float) -> float:
        return math.cos((tau + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = 1.0
    wanted = [1.0]
    for i in range(steps):
        kept *= 1 - min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999)
        wanted.append(kept)
    exact = torch.tensor(wanted, dtype=torch.float64)
    process = scoresde.Cosine()
    times = process.ddpm_times(steps)
    assert torch.allclose(process.alpha(times) ** 2, exact, rtol=1e-6)
    assert torch.allclose(process.sigma(times) ** 2, 1 - exact, rtol=1e-9, atol=1e-11)
    if steps == 1000:
        assert torch.equal(grid(process, 50, "ddpm"), times[::20].flip(0))
        gap = scoresde.oracle(gaussian(1.0), process, variance="isotropic").double()
        x = torch.randn(400, 1, generator=generator(0)).double()
        bound = scoresde.vlb(gap, x, steps=50, spacing="ddpm", variance="learned")
        assert (bound.log_prob - Normal(0.0, 1.0).log_prob(x)[:, 0]).abs().max() < 1e-2


def test_scalars_have_a_variance_too() -> None:
    sde = scoresde.build("vp", "mlp", shape=(), width=8, depth=1, variance="learned")
    scoresde.fit(sde, torch.randn(64), steps=2, validation=None, progress=False)
    assert scoresde.sample(sde, 5, solver="ancestral", steps=4).shape == (5,)
    assert scoresde.vlb(sde, torch.zeros(3), steps=6, variance="learned").log_prob.isfinite().all()


def test_latents_are_sampled_with_the_variance_that_their_model_has_learnt() -> None:
    torch.manual_seed(0)
    stage = scoresde.first_stage("vae", shape=(6,), latent=(2,), width=16)
    prior = scoresde.build(
        "vp", "mlp", shape=(2,), width=8, depth=1, predict="eps", variance="learned"
    )
    model = scoresde.Latent(stage, prior)
    rows = torch.randn(200, 6, generator=generator(0))
    scoresde.fit_stage(stage, rows, steps=5, progress=False, generator=generator(1))
    scoresde.fit(model, rows, steps=5, progress=False, generator=generator(1))
    assert prior.net.head.out.weight.any()
    drawn = {}
    for variance in (None, "learned", "posterior"):
        how: dict[str, Any] = {"variance": variance, "generator": generator(2)}
        drawn[variance] = scoresde.sample(model, 5, solver="ancestral", steps=6, **how)
    latents = scoresde.sample(prior, 5, solver="ancestral", steps=6, generator=generator(2))
    assert torch.equal(drawn[None], drawn["learned"])
    assert torch.allclose(drawn[None], stage.decode(latents), atol=1e-5)
    assert not torch.allclose(drawn[None], drawn["posterior"], atol=1e-3)


class Halved(Line):
    """One whose second output is missing."""

    def forward(self, x: Tensor, t: Tensor, with_variance: bool = False) -> Tensor:
        return x


class Plain(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def test_bad_calls_end_at_once() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8, variance="learned")
    plain = scoresde.build("vp", "mlp", shape=(2,), width=8)
    flow = scoresde.build("rectified", "mlp", shape=(2,), width=8, variance="learned")
    halved = scoresde.build("vp", Halved(), shape=(2,), variance="learned")
    data = torch.randn(50, 2)
    for call, text in [
        (lambda: scoresde.build("vp", shape=(2,), variance="fixed"), "unknown variance 'fixed'"),
        (
            lambda: scoresde.build("vp", Plain(), shape=(2,), variance="learned"),
            "Plain takes no with_variance=",
        ),
        (
            lambda: scoresde.build("vp", "two_times", shape=(2,), variance="learned"),
            "'two_times' can't have a learned variance: it takes span=",
        ),
        (
            lambda: scoresde.build("vp", "masked", shape=(2,), variance="learned"),
            "'masked' can't have a learned variance: it is for rows with gaps",
        ),
        (lambda: scoresde.fit(sde, data, objective="denoising"), "variance untrained.*'hybrid'"),
        (
            lambda: scoresde.fit(plain, data, objective="hybrid"),
            "MLP does not have; try build.*variance='learned'",
        ),
        (lambda: scoresde.fit(flow, data, coupling="minibatch_ot"), "coupled pairs"),
        (lambda: scoresde.sample(plain, solver="ancestral", variance="learned"), "not learnt"),
        (lambda: scoresde.sample(plain, solver="ancestral", variance="x"), "unknown variance 'x'"),
        (lambda: scoresde.vlb(plain, data, variance="learned"), "not learnt the variance"),
        (
            lambda: scoresde.sample(halved, solver="ancestral"),
            r"with_variance=True, and returned .1, 2.; it must return both outputs",
        ),
        (
            lambda: scoresde.fit(halved, data.double(), batch_size=50),
            r"with_variance=True, and returned .50, 2.; it must return both outputs",
        ),
        (lambda: scoresde.Hybrid(vlb_weight=0), "vlb_weight"),
        (lambda: scoresde.Hybrid(vlb_steps=0), "vlb_steps"),
        (
            lambda: scoresde.oracle(standard_gaussians(), scoresde.VPSDE(), variance="learned"),
            "unknown variance 'learned'",
        ),
        (lambda: LearnedVariance((2,)).check_condition(y=torch.zeros(1)), "no condition 'y'|y"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()


@pytest.mark.slow
def test_a_trained_head_is_nearly_as_good_as_the_exact_one() -> None:
    """In about 40 CPU seconds, with the errors of the mean in it."""
    torch.manual_seed(0)
    mixture = scoresde.toy.EightGaussians()
    sde = scoresde.build("vp", "mlp", shape=(2,), variance="learned")
    scoresde.fit(sde, mixture, steps=3000, progress=False, generator=generator(0))
    x = mixture.sample(4000, generator=generator(1))
    for spacing in ("logsnr", "ddpm"):
        gaps = {}
        for variance in ("beta", "learned"):
            how: dict[str, Any] = {"variance": variance, "spacing": spacing}
            bound = scoresde.vlb(sde, x, steps=50, generator=generator(2), **how)
            gaps[variance] = mixture.log_prob(x) - bound.log_prob
        gain = gaps["beta"] - gaps["learned"]
        error = float(gain.std()) / math.sqrt(len(x))
        assert float(gain.mean()) > 5 * error
        assert float(gaps["learned"].mean()) < EXACT[spacing, "isotropic"] + 0.1
