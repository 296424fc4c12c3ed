"""Weighted particles of guided models, against closed forms and sums over grids."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import scoresde
from scoresde import measurements
from scoresde.guidance import weighted_particles
from scoresde.guidance.free import ClassifierFree
from scoresde.guidance.gaps import WithGaps
from scoresde.guidance.guided import cosine_and_sine
from scoresde.guidance.particle_resampling import (
    Passes,
    Population,
    balanced,
    effective_size,
    passes_of,
    systematic,
)
from scoresde.guidance.tilted import Tilted, differentiated
from scoresde.guidance.twisted import _narrowed
from scoresde.guidance.weighted_particles import Particles
from scoresde.toy import GaussianMixture

F64 = torch.float64
LINE = torch.linspace(-6, 6, 12001, dtype=F64).unsqueeze(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def oracle(mixture: GaussianMixture, process: Any = None) -> scoresde.ScoreSDE:
    return scoresde.oracle(mixture, process or scoresde.VPSDE()).double()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def network() -> scoresde.ScoreSDE:
    return scoresde.build("vp", "mlp", shape=(2,), width=8, depth=1)


def test_curvatures_of_a_default_batch_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks inside: at what a pass is given, as the curvature of 64 numbers in 1,024 dimensions
    would take 1 GB for the states of an unguided batch.
    """
    held: list[int] = []

    def run(model: Any, angles: Any, z: Tensor, rows: Any, noise: Any, population: Any) -> Tensor:
        held.append(len(z) * model.curvature_rows * z.shape[1])
        return z

    monkeypatch.setattr(weighted_particles, "run_twisted", run)
    sde = scoresde.build("vp", "mlp", shape=(1024,), width=8, depth=1)
    sums = measurements.Linear(randn(64, 1024).float(), noise=0.5)
    scoresde.particles(scoresde.observe(sde, sums, y=torch.zeros(64)), 256, 16, steps=1, seed=0)
    assert len(held) > 1
    assert 0 < max(held) <= 2**25


class Posterior:
    """A standardized mixture of 16 components, y = A·x + noise·n, and p(x | y) in closed form."""

    def __init__(self, dim: int, kind: str, seed: int) -> None:
        g = generator(1000 * seed + dim)
        means = torch.randn(16, dim, generator=g, dtype=F64)
        stds = 0.15 + 0.2 * torch.rand(16, 1, generator=g, dtype=F64)
        unit = ((means - means.mean(0)).square() + stds.square()).mean(0).sqrt()
        self.prior = GaussianMixture((means - means.mean(0)) / unit, stds / unit)
        self.noise = 0.1 + 0.2 * float(torch.rand((), generator=g))
        self.A = matrix(dim, kind, g)
        x = self.prior.sample(1, generator=g, dtype=F64)
        self.y = x @ self.A.T + self.noise * torch.randn(1, len(self.A), generator=g, dtype=F64)
        m, v = self.prior._m, self.prior._s.square()
        S = (self.A * v.unsqueeze(1)) @ self.A.T + self.noise**2 * torch.eye(len(self.A))
        gap = self.y - m @ self.A.T
        law = torch.distributions.MultivariateNormal(torch.zeros_like(gap), S)
        joint = law.log_prob(gap) - math.log(16)
        self.log_evidence = float(joint.logsumexp(0))
        self.weights = joint.softmax(0)
        gain = torch.linalg.solve(S, self.A * v.unsqueeze(1)).mT
        self.centers = m + (gain @ gap.unsqueeze(2))[..., 0]
        covariance = torch.diag_embed(v) - gain @ (self.A * v.unsqueeze(1))
        self.factor = torch.linalg.cholesky(0.5 * (covariance + covariance.mT))

    def sample(self, n: int, seed: int) -> Tensor:
        g = generator(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=g)
        eps = torch.randn(n, self.centers.shape[1], 1, generator=g, dtype=F64)
        return self.centers[k] + (self.factor[k] @ eps)[..., 0]

    def modes(self, x: Tensor) -> Tensor:
        law = torch.distributions.MultivariateNormal(self.centers, scale_tril=self.factor)
        return (law.log_prob(x.unsqueeze(1)) + self.weights.log()).softmax(1).mean(0)

    def model(self, process: Any = None, method: str = "mmps") -> scoresde.Model:
        linear = measurements.Linear(self.A, self.noise)
        return scoresde.observe(oracle(self.prior, process), linear, self.y, method=method)


def matrix(dim: int, kind: str, g: torch.Generator) -> Tensor:
    if kind == "inpaint":
        return torch.eye(dim, dtype=F64)[torch.randperm(dim, generator=g)[: dim // 2]]
    if kind == "project":
        rows = torch.randn(max(1, dim // 4), dim, generator=g, dtype=F64)
        return rows / rows.norm(dim=1, keepdim=True)
    i = torch.arange(dim)
    apart = (i - i.unsqueeze(1)).abs()
    kernel = torch.exp(-0.5 * torch.minimum(apart, dim - apart).double().square())
    return kernel / kernel.sum(1, keepdim=True)


def apart(a: Tensor, b: Tensor) -> float:
    return float(scoresde.sliced_wasserstein(a, b, projections=64, generator=generator()))


def variation(truth: Posterior, x: Tensor) -> float:
    return 0.5 * float((truth.modes(x) - truth.weights).abs().sum())


class Twisted(Tilted):
    """p·g for g = N(y; x, noise²) of a standard normal p, with the exact twist times a factor."""

    def __init__(self, model: Any, y: float, noise: float, trust: float = 1.0) -> None:
        super().__init__(model, y=torch.tensor([[y]], dtype=F64))
        self.noise2 = noise**2
        self.trust = trust

    def log_g(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        return self._normal(z, self.noise2, rows)

    def _normal(self, mean: Tensor, variance: Any, rows: Tensor | None) -> Tensor:
        gap = self.tensor("y", rows, mean) - mean
        return (
            -0.5 * gap.square() / variance
            - 0.5 * torch.log(2 * math.pi * variance * torch.ones_like(gap))
        ).sum(1)

    def twist(self, *, raw: bool = False) -> Any:
        plain = self.model.velocity_fn(raw=raw)

        def twist(z: Tensor, phi: Any, rows: Tensor | None = None) -> Any:
            cos, sin = cosine_and_sine(phi, z)

            def log_psi(z: Tensor) -> tuple[Tensor]:
                return (self.trust * self._normal(cos * z, self.noise2 + sin**2, rows),)

            gradient, (value,) = differentiated(log_psi, z)
            return plain(z, phi, rows), value, gradient

        return twist


NORMAL = GaussianMixture(torch.zeros(1, 1), 1.0)


# ------------------------------------------------------------------ populations


def test_systematic_resampling_is_unbiased_and_within_one() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=F64)
    uniform = (torch.arange(1000, dtype=F64).unsqueeze(1) + 0.5) / 1000
    chosen = systematic(weights.expand(1000, 4), uniform)
    counts = torch.stack([(chosen == k).sum(1) for k in range(4)], 1).double()
    torch.testing.assert_close(counts.mean(0), 4 * weights[0], rtol=0, atol=2e-3)
    assert bool(((counts - 4 * weights).abs() < 1).all())


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_resampling_keeps_what_weighted_particles_estimate(share: float) -> None:
    """E Σ w·f over resampling is what it was; ±5 standard errors, false alarms 6e-7 each."""
    g = generator(3)
    n = 5_000
    log_weights = torch.randn(1, 5, generator=g, dtype=F64).expand(n, 5)
    values = torch.arange(5.0, dtype=F64)
    population = Population(n, 5, 1.0, lambda: torch.randn(n, 1, generator=g, dtype=F64))
    population.add(log_weights)
    (kept,) = population.resample(share, values.repeat(n).unsqueeze(1))
    assert bool((population.resampled == 1).all())
    weights = (population.log_weights + population.log_evidence.unsqueeze(1)).exp()
    found = (weights * kept.reshape(n, 5)).mean(1)
    wanted = float((log_weights[0].exp() * values).mean())
    assert abs(float(found.mean()) - wanted) < 5 * float(found.std()) / math.sqrt(n)
    mass = population.evidence().exp()
    spread = max(float(mass.std()), 1e-12) / math.sqrt(n)
    assert abs(float(mass.mean()) - float(log_weights[0].exp().mean())) < 5 * spread + 1e-12


@pytest.mark.parametrize("size", [1, 2, 5])
def test_noise_that_adds_up_to_0_is_normal_for_each_particle(size: int) -> None:
    """Covariances of 20,000 draws within 5 standard errors; false alarms 6e-7 each."""
    n = 20_000
    rows = balanced(randn(n * size, 2, seed=4), size).reshape(n, 2 * size)
    if size > 1:
        assert float(rows.reshape(n, size, 2).sum(1).abs().max()) < 1e-12
    between = torch.full((size, size), -1 / max(size - 1, 1), dtype=F64).fill_diagonal_(1)
    wanted = torch.kron(between, torch.eye(2, dtype=F64))
    found = rows.T @ rows / n
    error = ((1 + wanted.square()) / n).sqrt()
    assert bool(((found - wanted).abs() < 5 * error).all())


def test_noise_that_adds_up_to_0_makes_evidence_more_precise() -> None:
    """The variance of a mean of exp(0.5·ε) over 16 particles: by 1/0.88 of what is linear."""
    weights = (0.5 * balanced(randn(16 * 4000, 1, seed=5), 16)).exp().reshape(4000, 16)
    plain = (0.5 * randn(16 * 4000, 1, seed=5)).exp().reshape(4000, 16)
    mass = math.exp(0.125)
    assert abs(float(weights.mean()) - mass) < 5 * float(weights.mean(1).std()) / math.sqrt(4000)
    assert float(weights.mean(1).var()) < 0.2 * float(plain.mean(1).var())


def test_steps_lie_around_one_once_there_are_enough_to_be_even() -> None:
    model = scoresde.observe(oracle(NORMAL), measurements.Denoise(0.5), torch.zeros(1, 1))
    end = math.asinh(100.0)
    for steps in (2, 30, 50):
        places = [
            math.asinh(1 / math.tan(a)) for a in weighted_particles._angles(model, steps, None)
        ]
        gaps = torch.tensor(places, dtype=F64).diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(steps - 1), rtol=1e-3, atol=0)
        assert places[-1] == pytest.approx(end, abs=1e-6)
    for steps, least in ((100, 45), (400, 180)):
        levels = [math.tan(a) for a in weighted_particles._angles(model, steps, None)]
        assert len(levels) == steps
        assert all(a > b for a, b in itertools.pairwise(levels))
        assert sum(0.3 < u < 3 for u in levels) > least
        assert levels[-1] == pytest.approx(0.01, rel=1e-6)


def test_populations_of_weight_zero_have_no_evidence_and_no_size() -> None:
    population = Population(2, 3, 0.5, lambda: torch.zeros(2, 1, dtype=F64))
    population.add(torch.tensor([-math.inf] * 3 + [0.0] * 3, dtype=F64))
    population.resample(1.0)
    assert population.evidence().tolist() == [-math.inf, 0.0]
    assert effective_size(population.weights).tolist() == pytest.approx([0.0, 3.0])


def test_a_draw_has_less_bias_than_weights() -> None:
    """Importance sampling of N(0.5, 1) by 8 draws of N(0, 1); families of one, and of all.

    The mean of a draw by weights is .06 too low; 20,000 populations know it to .003.
    """
    n = 20_000
    z = randn(n, 8, seed=6)
    population = Population(n, 8, 0.5, lambda: torch.zeros(n, 1, dtype=F64))
    population.add(0.5 * z)
    weights = population.weights
    chances = population.chances()
    assert float(chances.min()) >= 0
    torch.testing.assert_close(chances.sum(1), torch.ones(n, dtype=F64))
    plain = abs(float((weights * z).sum(1).mean()) - 0.5)
    drawn = abs(float((chances * z).sum(1).mean()) - 0.5)
    assert plain > 0.05
    assert drawn < 0.5 * plain
    population._family = torch.zeros_like(population._family)
    torch.testing.assert_close(population.chances(), weights)


# ------------------------------------------------------------------ passes


def test_steps_are_split_into_passes_and_these_grow_longer() -> None:
    assert [passes_of(k, 100) for k in (1, 100, 199, 200, 399, 400)] == [1, 1, 1, 2, 3, 4]
    counts = [passes_of(400 * 8**k, 100) for k in range(4)]
    assert counts == [4 * 4**k for k in range(4)]  # of 100·2^k steps
    assert all(passes_of(k, 100) <= k // 100 for k in range(200, 5000, 7))


def test_passes_are_one_population() -> None:
    """Three passes of five particles, against the fifteen of them; the draws to 5 errors."""
    n = 20_000
    g = generator(8)
    passes = Passes(lambda: torch.randn(n, 1, generator=g, dtype=F64))
    values = torch.arange(15.0, dtype=F64)
    log_weights = torch.randn(3, 5, generator=g, dtype=F64)
    for k in range(3):
        population = Population(n, 5, 0.5, lambda: torch.zeros(n, 1, dtype=F64))
        population.add(log_weights[k].expand(n, 5))
        passes.add(population, values[5 * k : 5 * k + 5].expand(n, 5))
    mass = log_weights.exp().mean(1)
    torch.testing.assert_close(passes.evidence().exp(), mass.mean().expand(n))
    weights = log_weights.flatten().softmax(0)
    torch.testing.assert_close(passes.effective_size(), (1 / weights.square().sum()).expand(n))
    between = (mass.std() / mass.mean() / math.sqrt(3)).expand(n)
    inside = (log_weights.exp().var(1) / 5).sum().sqrt() / mass.sum()
    torch.testing.assert_close(passes.stderr(), torch.maximum(between, inside.expand(n)))
    mean = float((weights * values).sum())
    for found in ((passes.weights * passes.x).sum(1), passes.draw()):
        assert abs(float(found.mean()) - mean) < 5 * float(found.std()) / math.sqrt(n)


def test_four_times_the_steps_halve_the_error_of_evidence() -> None:
    """Standard deviations of 300 populations are known to 4% each."""
    model = Twisted(oracle(NORMAL), y=1.0, noise=0.5, trust=0.5)
    exact = float(torch.distributions.Normal(0.0, math.sqrt(1.25)).log_prob(torch.tensor(1.0)))
    errors = []
    for steps in (100, 400):
        found = scoresde.particles(model, 300, 16, steps, generator=generator(2))
        assert found.nfe.tolist() == [16 * steps] * 300
        assert found.states.shape == (300, 16, 1)
        error = found.log_evidence - exact
        errors.append(float(error.square().mean().sqrt()))
        assert 0.8 < float(found.stderr.mean()) / float(error.std()) < 1.8
    assert errors[1] < 0.58 * errors[0]
    assert float(found.x.mean()) == pytest.approx(0.8, abs=4.5 * math.sqrt(0.2 / 300))
    alone = scoresde.particles(model, 50, 1, 200, generator=generator(2))
    assert bool(alone.stderr.isfinite().all())


# ------------------------------------------------------------------ p(x)·g(x)


def test_the_root_of_a_narrower_covariance() -> None:
    T = randn(4, 3, 5, seed=9)
    eye = torch.eye(5, dtype=F64).expand(4, 5, 5)
    columns = [_narrowed(eye[:, :, i], T) for i in range(5)]
    L = torch.stack([column for column, _ in columns], 2)
    torch.testing.assert_close(L @ L.mT, torch.linalg.inv(eye + T.mT @ T))
    torch.testing.assert_close(columns[0][1], torch.linalg.slogdet(L).logabsdet)


@pytest.mark.parametrize("measured", [2, 6, None], ids=["few", "many", "gaps"])
def test_curvature_is_that_of_the_twist_of_a_gaussian(measured: int | None) -> None:
    """There C and G do not depend on z, so that TᵀT is minus the Hessian of log ψ."""
    gaussian = oracle(GaussianMixture(torch.zeros(1, 4), 0.7))
    if measured is None:
        row = torch.tensor([[0.3, math.nan, -0.2, math.nan]], dtype=F64)
        model: Any = WithGaps(gaussian, row)
    else:
        linear = measurements.Linear(randn(measured, 4, seed=1), noise=0.3)
        model = scoresde.observe(gaussian, linear, randn(1, measured, seed=2))
    z = randn(3, 4, seed=3)
    rows = torch.zeros(3, dtype=torch.long)
    for phi in (0.2, 1.0):
        *plain, T = model.curved_twist()(z, phi, rows)
        for a, b in zip(plain, model.twist()(z, phi, rows), strict=True):
            assert torch.equal(a, b)
        change = 1e-4 * torch.eye(4, dtype=F64)
        gradients = [model.twist()(z + s, phi, rows)[2] for c in change for s in (c, -c)]
        hessian = torch.stack(
            [(a - b) / 2e-4 for a, b in zip(gradients[::2], gradients[1::2], strict=True)], 2
        )
        torch.testing.assert_close(T.mT @ T, -hessian, rtol=1e-6, atol=1e-6)


def test_curvature_makes_evidence_more_precise(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Gaussian nothing but the size of steps makes weights vary."""
    gaussian = oracle(GaussianMixture(torch.zeros(1, 8), 1.0))
    seen = measurements.Denoise(0.2)
    model = scoresde.observe(gaussian, seen, randn(1, 8, seed=4))
    exact = float(
        torch.distributions.Normal(0.0, math.sqrt(1.04)).log_prob(randn(1, 8, seed=4)).sum()
    )
    errors = []
    for curved in (True, False):
        if not curved:
            monkeypatch.setattr(type(model), "curved_twist", Tilted.curved_twist)
        found = scoresde.particles(model, 50, 4, 60, generator=generator())
        errors.append(float((found.log_evidence - exact).square().mean().sqrt()))
    assert errors[0] < 0.5 * errors[1]


def test_an_exact_twist_leaves_nothing_to_weight() -> None:
    model = Twisted(oracle(NORMAL), y=1.0, noise=0.5)
    found = scoresde.particles(model, 300, 8, 150, generator=generator())
    exact = float(torch.distributions.Normal(0.0, math.sqrt(1.25)).log_prob(torch.tensor(1.0)))
    assert float(found.log_evidence.mean()) == pytest.approx(exact, abs=0.01)
    assert float(found.log_evidence.std()) < 0.06
    assert float(found.ess.min()) > 6.5
    # N(0.8, 0.2): mean ± 4.5 and variance ± 4.5 standard errors, false alarms 1e-5
    assert float(found.x.mean()) == pytest.approx(0.8, abs=4.5 * math.sqrt(0.2 / 300))
    assert float(found.x.var()) == pytest.approx(0.2, abs=4.5 * 0.2 * math.sqrt(2 / 300) + 0.002)


@pytest.mark.filterwarnings("ignore:.*of 500 populations")
@pytest.mark.parametrize("trust", [0.0, 0.5])
def test_the_last_weight_is_the_likelihood_whatever_the_twist(trust: float) -> None:
    """A twist that knows nothing, or half: the evidence is unbiased, and so are weighted means.

    ± 5 standard errors and 0.01 for the steps; false alarms 1e-6.
    """
    model = Twisted(oracle(NORMAL), y=1.0, noise=0.5, trust=trust)
    found = scoresde.particles(model, 500, 8, 60, generator=generator(1))
    exact = math.exp(
        float(torch.distributions.Normal(0.0, math.sqrt(1.25)).log_prob(torch.tensor(1.0)))
    )
    mass = found.log_evidence.exp()
    assert (
        abs(float(mass.mean()) / exact - 1) < 5 * float(mass.std()) / exact / math.sqrt(500) + 0.01
    )
    mean = (mass.unsqueeze(1) * found.log_weights.exp() * found.states[..., 0]).sum(1)
    error = 5 * float((mean - 0.8 * mass).std()) / exact / math.sqrt(500) + 0.01
    assert abs(float(mean.mean()) / exact - 0.8) < error
    assert float(found.ess.mean()) < 7


def test_standard_errors_cover_the_evidence() -> None:
    """Twice the standard error holds 95% for normal errors; with 16 particles, at least 80%."""
    truth = Posterior(4, "project", 1)
    found = scoresde.particles(truth.model(), 60, 16, 40, generator=generator())
    error = found.log_evidence - truth.log_evidence
    assert float((error.abs() < 2 * found.stderr).double().mean()) > 0.8
    ratio = float(found.stderr.mean() / error.std())
    assert 0.5 < ratio < 1.5


def test_particles_have_the_weights_of_modes_that_guidance_alone_misses() -> None:
    """The total variation of the weights; of exact samples it is 0.04 ± 0.015."""
    truth = Posterior(2, "project", 0)
    found = scoresde.particles(truth.model(), 300, 8, 40, generator=generator())
    alone = scoresde.sample(truth.model(), 300, solver="dpmpp_2m", steps=40, generator=generator())
    assert variation(truth, found.x) < 0.1
    assert variation(truth, alone) > 0.15


@pytest.mark.parametrize("process", [scoresde.VESDE(), scoresde.RectifiedFlow()])
def test_every_process_has_the_same_evidence(process: Any) -> None:
    truth = Posterior(2, "inpaint", 1)
    found = scoresde.particles(truth.model(process), 30, 16, 40, generator=generator())
    joint = float(found.log_evidence.logsumexp(0)) - math.log(30)
    assert joint == pytest.approx(truth.log_evidence, abs=0.1)


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_what_is_observed_almost_exactly(noise: float) -> None:
    """The evidence is the density of what is observed; the grid ends a tenth below the noise."""
    prior = Posterior(4, "inpaint", 0).prior
    mask = torch.tensor([True, False, True, False])
    x = prior.sample(1, generator=generator(1), dtype=F64)
    model = scoresde.observe(oracle(prior), measurements.Inpaint(mask, noise), x)
    found = scoresde.particles(model, 40, 16, 60, generator=generator())
    stds = (prior._s.expand(16, 4)[:, mask].square() + noise**2).sqrt()
    exact = float(GaussianMixture(prior._m[:, mask], stds).log_prob(x[:, mask]))
    joint = float(found.log_evidence.logsumexp(0)) - math.log(40)
    assert joint == pytest.approx(exact, abs=0.25)
    if not noise:
        assert torch.equal(found.x[:, mask], x[:, mask].expand(40, 2))


def test_a_nonlinear_measurement() -> None:
    """y = x₁·x₂ of a standard normal, whose evidence is a sum over a grid."""
    product = measurements.Measurement(lambda x: x[:, :1] * x[:, 1:], noise=0.2)
    prior = GaussianMixture(torch.zeros(1, 2), 1.0)
    y = torch.tensor([[1.0]], dtype=F64)
    axis = torch.linspace(-6, 6, 601, dtype=F64)
    points = torch.cartesian_prod(axis, axis)
    log_joint = prior.log_prob(points) + product.log_likelihood(points, y)
    exact = float(log_joint.logsumexp(0)) + 2 * math.log(0.02)
    model = scoresde.observe(oracle(prior), product, y)
    found = scoresde.particles(model, 100, 16, 100, generator=generator())
    error = found.log_evidence - exact
    assert abs(float(error.mean())) < 0.06  # 4 standard errors
    assert float(error.square().mean().sqrt()) < 0.18  # two passes of 50 steps; one of 100: 0.20
    assert abs(float((found.x[:, 0] > 0).double().mean()) - 0.5) < 0.2  # 4 standard errors


@pytest.mark.parametrize("through", ["network", "denoised"])
def test_a_narrow_reward_is_damped_where_x0_is_uncertain(through: str) -> None:
    """∫p·g by a sum over a grid. With ∇log g(x̂0) as it is, the estimate was 8 nats too low."""
    prior = GaussianMixture([[-1.2], [0.8]], [0.3, 0.5])

    def log_g(x: Tensor) -> Tensor:
        return -0.5 * ((x - 0.3) / 0.2).square().sum(1)

    exact = float((prior.log_prob(LINE) + log_g(LINE)).logsumexp(0)) + math.log(1e-3)
    model = scoresde.toward(oracle(prior), log_g, through=through)
    found = scoresde.particles(model, 60, 16, 50, generator=generator())
    assert float(found.log_evidence.mean()) == pytest.approx(exact, abs=0.1)
    assert float(found.log_evidence.std()) < 0.25


def test_a_classifier_that_is_exact_is_weighted_to_its_power() -> None:
    means, stds = torch.tensor([[-1.2, 0.8]], dtype=F64), torch.tensor([[0.3, 0.5]], dtype=F64)
    prior = GaussianMixture(means.T, stds[0])

    def logits(z: Tensor, phi: Tensor) -> Tensor:
        cos, sin = phi.cos().unsqueeze(1), phi.sin().unsqueeze(1)
        variance = (cos * stds).square() + sin.square()
        return -0.5 * ((z - cos * means).square() / variance + variance.log())

    log_p = logits(LINE, torch.zeros(1, dtype=F64)).log_softmax(1)[:, 1]
    for scale, slack in ((1.0, 0.01), (2.0, 0.15)):
        exact = float((prior.log_prob(LINE) + scale * log_p).logsumexp(0)) + math.log(1e-3)
        model = scoresde.classifier(oracle(prior), logits, y=torch.tensor(1), scale=scale)
        found = scoresde.particles(model, 80, 16, 50, generator=generator())
        assert float(found.log_evidence.logsumexp(0)) - math.log(80) == pytest.approx(
            exact, abs=slack + 0.02
        )


def test_data_in_other_units_give_the_same_posterior() -> None:
    """A whitened model whose data are N(m, C): posterior and evidence in closed form, in float32
    too."""
    root = torch.tensor([[2.0, 0.0], [3.0, 0.5]], dtype=F64)
    data = 5 + randn(4000, 2) @ root.T
    sde = network().double().standardize(data).eval()
    cov, mean = torch.cov(data.T, correction=0), data.mean(0)
    y = torch.tensor([[9.0]], dtype=F64)
    model = scoresde.observe(sde, measurements.Linear([[1.0, 0.0]], noise=0.7), y)
    found = scoresde.particles(model, 150, 4, 60, generator=generator())
    law = torch.distributions.Normal(mean[0], (cov[0, 0] + 0.49).sqrt())
    error = found.log_evidence - law.log_prob(y[0, 0])
    assert abs(float(error.mean())) < 0.04
    gain = cov[:, 0] / (cov[0, 0] + 0.49)
    center = mean + gain * (9 - mean[0])
    left = (cov - gain.unsqueeze(1) * cov[:1]).diagonal()
    assert bool(((found.x.mean(0) - center).abs() < 4.5 * (left / 150).sqrt()).all())
    assert bool(((found.x.var(0) / left - 1).abs() < 4.5 * math.sqrt(2 / 150) + 0.02).all())
    single = network().standardize(data).eval()
    model = scoresde.observe(single, measurements.Linear([[1.0, 0.0]], noise=0.7), y)
    found = scoresde.particles(model, 50, 4, 50, generator=generator())
    assert found.x.dtype == torch.float32
    assert found.log_evidence.dtype == F64
    assert abs(float((found.log_evidence - law.log_prob(y[0, 0])).mean())) < 0.1


@pytest.mark.filterwarnings("ignore:.*populations have")
def test_a_sample_depends_on_its_number_alone() -> None:
    truth = Posterior(2, "inpaint", 0)
    linear = measurements.Linear(truth.A, truth.noise)
    y = truth.y + torch.arange(11.0, dtype=F64).unsqueeze(1) / 100
    base = oracle(truth.prior)
    model = scoresde.observe(base, linear, y)
    some = scoresde.particles(model, particles=8, steps=12, generator=generator(), batch_size=4)
    more = scoresde.particles(model, particles=8, steps=12, generator=generator())
    few = scoresde.particles(
        scoresde.observe(base, linear, y[:3]), 3, 8, 12, generator=generator()
    )
    for a, b, c in zip(some, more, few, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(a[:3], c, rtol=1e-9, atol=1e-9)
    how = {"particles": 2, "steps": 2}
    y = truth.y + torch.linspace(-1, 1, 200, dtype=F64).unsqueeze(1)
    many = scoresde.observe(base, linear, y)
    whole = scoresde.particles(many, batch_size=200, generator=generator(), **how)
    parts = scoresde.particles(many, batch_size=7, generator=generator(), **how)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    # weights of each population are normalized, and x is one of its particles
    torch.testing.assert_close(more.log_weights.exp().sum(1), torch.ones(11, dtype=F64))
    assert bool((more.x.unsqueeze(1) == more.states).all(2).any(1).all())


# ------------------------------------------------------------------ products of powers

PARENT = GaussianMixture([[-1.5], [-0.5], [0.5], [1.5]], [0.3, 0.5, 0.4, 0.6])
CHILD = GaussianMixture([[0.5], [1.5]], [0.4, 0.6])


def guided(beta: float) -> scoresde.Model:
    return ClassifierFree(oracle(CHILD), oracle(PARENT), beta)


def on_line(log_p: Tensor, n: int, seed: int) -> Tensor:
    chances = log_p.softmax(0).cumsum(0)
    uniform = torch.rand(n, generator=generator(seed), dtype=F64)
    return LINE[torch.searchsorted(chances, uniform).clamp_max(len(LINE) - 1)]


def powered(beta: float) -> Tensor:
    return (1 - beta) * PARENT.log_prob(LINE) + beta * CHILD.log_prob(LINE)


def test_classifier_free_particles_are_p_of_x_times_p_of_y_to_the_beta() -> None:
    log_p = powered(2.0)
    found = scoresde.particles(guided(2.0), 30, 64, 100, generator=generator())
    picked = torch.multinomial(found.log_weights.exp(), 20, True, generator=generator())
    x = found.states[..., 0].gather(1, picked).reshape(-1, 1)
    assert apart(x, on_line(log_p, 20_000, 1)) < 0.12
    alone = scoresde.sample(guided(2.0), 600, generator=generator())
    assert apart(alone, on_line(log_p, 20_000, 1)) > 0.35
    mass = float(log_p.logsumexp(0)) + math.log(1e-3)
    joint = float(found.log_evidence.logsumexp(0)) - math.log(30)
    assert joint == pytest.approx(mass, abs=0.1)


def test_guidance_without_particles_is_another_distribution() -> None:
    """KL(density of the ODE ‖ p(x)·p(y|x)^β) in nats: 0 at β = 1, and 0.57 at β = 3."""
    line = LINE[::60]
    kl = []
    for beta in (1.0, 3.0):
        log_q = scoresde.log_prob(guided(beta), line, rtol=1e-5, atol=1e-5)
        log_p = powered(beta)[::60]
        log_p = log_p - log_p.logsumexp(0) - math.log(0.06)
        q = log_q.exp() * 0.06
        assert float(q.sum()) == pytest.approx(1, abs=5e-3)
        kl.append(float((q * (log_q - log_p)).sum()))
    assert kl[0] == pytest.approx(0, abs=1e-4)
    assert kl[1] == pytest.approx(0.57, abs=0.02)


@pytest.mark.parametrize("power", [2.0, 0.5])
def test_powers_have_the_mass_of_the_density_in_the_units_of_the_data(power: float) -> None:
    """∫p^a of a whitened Gaussian is known, and for it all weights are equal."""
    data = 4 + randn(1000, 2) @ torch.tensor([[2.0, 1.0], [0.0, 0.3]], dtype=F64)
    sde = network().double().standardize(data).eval()
    found = scoresde.particles(scoresde.temper(sde, power), 300, 2, 50, generator=generator())
    cov = torch.cov(data.T, correction=0)
    log_det = float(torch.logdet(2 * math.pi * cov))
    exact = 0.5 * (1 - power) * log_det - math.log(power)
    torch.testing.assert_close(
        found.log_evidence, torch.full((300,), exact, dtype=F64), rtol=0, atol=1e-4
    )
    assert float(found.ess.min()) > 1.999
    spread = power * sde.from_data(found.x).T.cov()
    # ± 4.5 standard errors, false alarms 1e-5, and 1% for the steps
    assert float((spread - torch.eye(2, dtype=F64)).abs().max()) < 4.5 * math.sqrt(2 / 300) + 0.01


SEPARATED = GaussianMixture(
    torch.tensor([[-1.3, -0.6], [1.2, 0.1], [-0.1, 1.4]]), torch.tensor([0.25, 0.4, 0.5])
)
ROUND = GaussianMixture(torch.tensor([[0.6, 0.5], [-0.8, -0.7]]), torch.tensor([0.8, 0.7]))
WIDE = GaussianMixture(torch.tensor([[0.3, -0.2], [-0.5, 0.4]]), torch.tensor([1.0, 1.1]))


@pytest.mark.parametrize(
    "parts",
    [
        [(SEPARATED, 1.0), (ROUND, 1.0)],
        [(SEPARATED, 2.0)],
        [(SEPARATED, 0.5)],
        [(SEPARATED, 1.0), (ROUND, 1.0), (WIDE, -1.0)],
    ],
    ids=["product", "colder", "warmer", "negated"],
)
def test_products_powers_and_negation(parts: list[tuple[GaussianMixture, float]]) -> None:
    axis = torch.linspace(-5, 5, 201, dtype=F64)
    points = torch.cartesian_prod(axis, axis)
    log_p = torch.zeros(len(points), dtype=F64)
    for mixture, a in parts:
        log_p = log_p + a * mixture.log_prob(points)
    mass = float(log_p.logsumexp(0)) + 2 * math.log(10 / 200)
    model = scoresde.compose([(oracle(mixture), a) for mixture, a in parts])
    found = scoresde.particles(model, 100, 24, 40, generator=generator())
    joint = float(found.log_evidence.logsumexp(0)) - math.log(100)
    assert joint == pytest.approx(mass, abs=0.1)

    def exact(seed: int) -> Tensor:
        return points[torch.multinomial(log_p.softmax(0), 100, True, generator=generator(seed))]

    floor = sum(apart(exact(i), exact(i + 4)) for i in range(4))
    assert sum(apart(found.x, exact(i)) for i in range(4)) < 2 * floor


# ------------------------------------------------------------------ what is refused, and said


def test_what_stands_for_no_density_is_refused() -> None:
    plain = oracle(CHILD)
    with pytest.raises(TypeError, match=r"scoresde\.sample draws from it"):
        scoresde.particles(plain, 2)
    within = scoresde.classifier_free(plain, 2.0, without=oracle(PARENT), interval=(0.1, 3.0))
    with pytest.raises(ValueError, match="leave them out for particles"):
        scoresde.particles(within, 2)
    seen = scoresde.observe(plain, measurements.Denoise(0.5), torch.zeros(1, 1))
    with pytest.raises(TypeError, match="guides Observed"):
        scoresde.particles(scoresde.compose([(seen, 1.0), (plain, 1.0)]), 2)
    cut = Twisted(plain, 0.0, 1.0)
    cut.interval = (0.0, 1.0)
    with pytest.raises(ValueError, match="leave interval= out"):
        scoresde.particles(cut, 2)
    flow = scoresde.build("rectified", "mlp", shape=(1,))
    flow.source = torch.randn(10, 1)
    with pytest.raises(ValueError, match="particles needs a score"):
        scoresde.particles(scoresde.classifier_free(flow, 2.0, without=flow), 2)
    with pytest.raises(ValueError, match="resample_below"):
        scoresde.particles(seen, 2, resample_below=1.5)


def test_thin_populations_are_named_once() -> None:
    far = Twisted(oracle(NORMAL), y=6.0, noise=0.05, trust=0.0)
    with pytest.warns(UserWarning, match=r"4 of 4 populations") as caught:
        scoresde.particles(far, 4, 8, 20, generator=generator())
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scoresde.particles(Twisted(oracle(NORMAL), 0.0, 1.0), 4, 8, 20, generator=generator())


def test_a_few_thin_populations_are_chance() -> None:
    """1 of 50 on an exactly Gaussian model may be thin; 3 of 50 are above the share of 5%."""
    sizes = torch.full((50,), 8.0)
    empty = torch.zeros(50)
    for thin, warns in ((1, False), (3, True)):
        sizes[:thin] = 1.0
        found = Particles(empty, empty, empty, empty, empty, sizes, empty, empty)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            weighted_particles._warn_of_weights(found, 8)
        assert bool(caught) == warns


def test_each_sample_has_what_was_observed_of_it_exactly() -> None:
    """Rows of y without noise, each for a population of its own."""
    x = 100 + 7 * randn(200, 3)
    sde = scoresde.build("vp", "mlp", shape=(3,), width=8, depth=1).double().standardize(x).eval()
    mask = torch.tensor([True, False, True])
    seen = scoresde.observe(sde, measurements.Inpaint(mask), x[:6])
    found = scoresde.particles(seen, None, 16, 80, generator=generator())
    assert torch.equal(found.x[:, mask], x[:6, mask])
    assert torch.equal(found.states[..., mask], x[:6, None, mask].expand(-1, 16, -1))
    whole = MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    spread = whole.covariance_matrix[mask][:, mask]
    law = MultivariateNormal(whole.mean[mask], spread)
    gap = (found.log_evidence - law.log_prob(x[:6, mask])) / found.stderr
    assert float(gap.abs().max()) < 4


def test_evaluations_are_counted_with_backward_passes() -> None:
    truth = Posterior(4, "inpaint", 0)
    found = scoresde.particles(truth.model(), 3, 4, 20, generator=generator())
    assert found.nfe.tolist() == [4 * 20 * (1 + 2)] * 3  # a pass, and one back for each number
    both = scoresde.particles(guided(2.0), 2, 4, 20, generator=generator())
    assert both.nfe.tolist() == [4 * 20 * 2] * 2


# ------------------------------------------------------------------ the table


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 16, 64])
@pytest.mark.parametrize("kind", ["inpaint", "project", "blur"])
def test_posteriors_of_mixtures(dim: int, kind: str) -> None:
    n = 96 if dim < 64 else 48
    truth = Posterior(dim, kind, 0)
    found = scoresde.particles(truth.model(), n, 16, 100, generator=generator())
    exact = [truth.sample(n, seed) for seed in range(8)]
    floor = sum(apart(exact[i], exact[i + 4]) for i in range(4))
    assert sum(apart(found.x, exact[i]) for i in range(4)) < 2 * floor
    assert variation(truth, found.x) < sum(variation(truth, x) for x in exact) / 8 + 0.06
    limit = {2: 0.1, 16: 0.3, 64: 0.7}[dim]
    assert abs(float((found.log_evidence - truth.log_evidence).mean())) < limit
