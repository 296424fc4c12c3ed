"""The loss against each paper's own formula, the noise laws against scipy, the adaptive law
against its optimum, and validation against a computation of its own.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from test_training import cloud, same, small, weights
from torch import Tensor, nn

import scoresde
from conftest import PROCESSES, generator
from scoresde import NOISES, PREDICTIONS, WEIGHTS, Process, ScoreSDE, toy
from scoresde.common.random import FIXED, seeded
from scoresde.processes.prediction import singular
from scoresde.training import trainer as training
from scoresde.training.history import History
from scoresde.training.noise_levels import AdaptiveLevels
from scoresde.training.regression import denoising_examples, squared_errors
from scoresde.training.validation import checked_after

PAIRS = [
    (name, predict)
    for name in PROCESSES
    for predict in PREDICTIONS
    if not singular(predict, p := scoresde.PROCESSES.build(name), p.phi_max)
]


class Answers(nn.Module):
    """Says the same random numbers whatever it is shown, and keeps what it was shown."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = nn.Parameter(answers)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append((x.detach().clone(), t.detach().clone()))
        return (
            self.answers.reshape(x.shape)
            if self.answers.numel() == x.numel()
            else 0 * x + self.answers.sum()
        )


# ----------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)])
def test_rectified_flow_is_flow_matching(shape: tuple[int, ...]) -> None:
    """E‖net(x_t, t) − (ε − x0)‖²/D (Lipman et al. 2023, eq. 23), with the draws of the same
    generator.
    """
    torch.manual_seed(0)
    net = scoresde.BACKBONES.build("test_linear", shape).double()
    sde = ScoreSDE(
        scoresde.RectifiedFlow(), net, shape=shape, predict="v", input_convention="raw"
    ).double()
    x0 = 2 + 3 * torch.randn(64, *shape, generator=generator(1), dtype=torch.float64)
    sde.standardize(x0)
    got = scoresde.loss(sde, x0, weight="velocity", noise="uniform", generator=generator(7))
    g = generator(7)
    eps = torch.randn(64, math.prod(shape), generator=g, dtype=torch.float64).reshape(x0.shape)
    jitter = torch.rand(64, generator=g, dtype=torch.float64)
    t = (torch.randperm(64, generator=g) + jitter) / 64
    unit = (x0 - sde.mean) / sde.scale  # the path lives in standardized units
    column = t.reshape(-1, *(1,) * len(shape))
    wanted = (net((1 - column) * unit + column * eps, t) - (eps - unit)).square().mean()
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    ours, theirs = (torch.autograd.grad(value, list(net.parameters())) for value in (got, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def denoised(process: Process, predict: str, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
    """x̂0 as the papers write it, from a network's output; by its row (a, b) for any other one."""
    alpha, sigma, dalpha, dsigma = (
        process.alpha(t),
        process.sigma(t),
        process.dalpha(t),
        process.dsigma(t),
    )
    if predict == "x0":
        return out
    if predict == "eps":  # Ho et al. 2020, eq. 15
        return (x - sigma * out) / alpha
    if predict == "score":  # Tweedie
        return (x + sigma**2 * out) / alpha
    if predict == "v":  # out = α̇·x0 + σ̇·ε
        return (dsigma * x - sigma * out) / (alpha * dsigma - sigma * dalpha)
    if predict == "edm":  # Karras et al. 2022, eq. 7 and table 1 at σ_data = 1
        level = sigma / alpha
        c_skip, c_out = 1 / (level**2 + 1), level / torch.sqrt(1 + level**2)
        return c_skip * x / alpha + c_out * out
    return by_elimination(process, predict, x, out, t)


def by_elimination(process: Process, predict: str, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
    """x̂0 of x = α·x0 + σ·ε and out = a·x0 + b·ε, by LAPACK."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    a, b = PREDICTIONS[predict](process, torch.atan2(sigma, alpha))
    rows = torch.stack([torch.cat([alpha, sigma], 1), torch.cat([a, b], 1)], 1)
    return torch.linalg.solve(rows, torch.stack([x, out], 1))[:, 0]


@pytest.mark.parametrize(("name", "predict"), PAIRS)
def test_a_prediction_is_what_its_row_says(name: str, predict: str) -> None:
    """So a new prediction needs its row alone: the rows give x̂0 as the papers do."""
    process = scoresde.PROCESSES.build(name)
    t = torch.linspace(0.2, 0.8, 9, dtype=torch.float64)[:, None]
    x, out = torch.randn(2, 9, 3, generator=generator(), dtype=torch.float64)
    found = by_elimination(process, predict, x, out, t)
    torch.testing.assert_close(found, denoised(process, predict, x, out, t))


def objective(
    process: Process, weight: str, x0: Tensor, guess: Tensor, eps: Tensor, x: Tensor, t: Tensor
) -> Tensor:
    """The papers' objectives, per element."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    if weight == "min_snr":  # Hang et al. 2023, section 3.4
        return torch.clamp((alpha / sigma) ** 2, max=5.0) * (guess - x0) ** 2
    if weight == "edm":  # Karras et al. 2022, λ(σ) = (σ² + σ_data²)/(σ·σ_data)²
        return ((sigma / alpha) ** 2 + 1) / (sigma / alpha) ** 2 * (guess - x0) ** 2
    if weight == "velocity":  # Lipman et al. 2023, eq. 9
        velocity = process.dalpha(t) * guess + process.dsigma(t) * (x - alpha * guess) / sigma
        return (velocity - process.dalpha(t) * x0 - process.dsigma(t) * eps) ** 2
    score = -(x - alpha * guess) / sigma**2
    error = (score - (x0 * alpha - x) / sigma**2) ** 2
    # Song et al. 2021, eq. 7; 2021b
    return {"sigma2": sigma**2, "likelihood": process.g2(t)}[weight] * error


@pytest.mark.parametrize("weight", list(WEIGHTS))
@pytest.mark.parametrize(("name", "predict"), PAIRS)
def test_loss_is_the_objective_of_its_paper(name: str, predict: str, weight: str) -> None:
    """In float64, from a network of random answers; noise between the ends, where the papers'
    divisions lose nothing.
    """
    process = scoresde.PROCESSES.build(name)
    x0 = torch.randn(32, 3, generator=generator(1), dtype=torch.float64)
    answers = torch.randn(32, 3, generator=generator(2), dtype=torch.float64)
    net = Answers(answers)
    sde = ScoreSDE(process, net, shape=(3,), predict=predict, input_convention="raw").double()
    got = scoresde.loss(sde, x0, weight=weight, generator=generator(3))
    (_, t), t = net.seen[0], net.seen[0][1][:, None]
    eps = torch.randn(32, 3, generator=generator(3), dtype=torch.float64)
    x = process.alpha(t) * x0 + process.sigma(t) * eps
    torch.testing.assert_close(net.seen[0][0], x, rtol=1e-9, atol=1e-9)
    guess = denoised(process, predict, x, answers, t)
    wanted = objective(process, weight, x0, guess, eps, x, t).mean()
    assert abs(float(got) - float(wanted)) <= 1e-9 * float(wanted)


@pytest.mark.parametrize("weight", list(WEIGHTS))
def test_gradient_of_the_loss_is_its_slope(weight: str) -> None:
    """Central differences in float64, along a random direction of all weights."""
    sde = small().double()
    for p in sde.net.parameters():
        nn.init.normal_(p, std=0.3, generator=generator(4))
    x0 = cloud(64).double()
    sde.standardize(x0)
    parameters = list(sde.net.parameters())
    direction = [
        torch.randn(p.shape, generator=generator(i), dtype=p.dtype)
        for i, p in enumerate(parameters)
    ]

    def moved(h: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=h)
            value = scoresde.loss(sde, x0, weight=weight, generator=generator(5)).item()
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=h)
        return value

    gradients = torch.autograd.grad(
        scoresde.loss(sde, x0, weight=weight, generator=generator(5)), parameters
    )
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert all(bool(g.abs().sum() > 0) for g in gradients)
    assert slope == pytest.approx((moved(1e-5) - moved(-1e-5)) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_laws_are_what_they_say(name: str) -> None:
    """Quantiles against scipy, and draws by Kolmogorov–Smirnov: a false alarm in 10,000 per law
    and process.
    """
    process = scoresde.PROCESSES.build(name)
    low, high = (
        math.log(math.tan(min(max(p, 1e-6), math.pi / 2 - 1e-6)))
        for p in (process.phi_min, process.phi_max)
    )
    law = scipy.stats.truncnorm((low + 1.5) / 1.5, (high + 1.5) / 1.5, loc=-1.5, scale=1.5)
    q = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    got = torch.log(torch.tan(NOISES["lognormal"](process, q)))
    np.testing.assert_allclose(got.numpy(), law.ppf(q.numpy()), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(process.time(NOISES["uniform"](process, q)), q, rtol=0, atol=1e-9)
    iid = torch.rand(5000, generator=generator(8), dtype=torch.float64)
    drawn = torch.log(torch.tan(NOISES["lognormal"](process, iid)))
    assert scipy.stats.kstest(drawn.numpy(), law.cdf).pvalue > 1e-4
    times = process.time(NOISES["uniform"](process, iid))
    assert scipy.stats.kstest(times.numpy(), scipy.stats.uniform.cdf).pvalue > 1e-4


@pytest.mark.parametrize("b", [1, 7, 64])
def test_one_noise_level_falls_into_each_stratum_in_random_order(b: int) -> None:
    net = Answers(torch.zeros(b, 2))
    sde = ScoreSDE(scoresde.RectifiedFlow(), net, shape=(2,), predict="v", input_convention="raw")
    for seed in range(20):
        scoresde.loss(sde, torch.zeros(b, 2), noise="uniform", generator=generator(seed))
    strata = torch.stack([torch.floor(t.double() * b).long() for _, t in net.seen])
    assert torch.equal(strata.sort(1).values, torch.arange(b).expand(20, b))
    inside = torch.cat([t.double() * b for _, t in net.seen]) - strata.flatten()
    # the place within a stratum is uniform: 4 standard errors of its mean
    assert abs(float(inside.mean()) - 0.5) < 4 / math.sqrt(12 * len(inside))
    if b > 1:
        assert len({tuple(row.tolist()) for row in strata}) > 10


def test_train_mode_uses_the_network_and_eval_mode_its_average() -> None:
    sde = small()
    scoresde.fit(sde, cloud(), steps=5, progress=False, generator=generator())
    for p in sde.net.parameters():
        nn.init.normal_(p, generator=generator(1))
    x0 = cloud(16)
    sde.train()
    raw = scoresde.loss(sde, x0, generator=generator(2))
    sde.eval()
    averaged = scoresde.loss(sde, x0, generator=generator(2))
    only = small()
    only.standardize(cloud())
    for net, value in ((sde.net, raw), (sde.ema, averaged)):
        only.net.load_state_dict(net.state_dict())
        torch.testing.assert_close(scoresde.loss(only, x0, generator=generator(2)), value)
    assert float(raw) != float(averaged)


# --------------------------------------------------------------------------------- the adaptive law

VP = scoresde.VPSDE()
CPU = torch.device("cpu")


def taught(root: Tensor, rounds: int = 300) -> AdaptiveLevels:
    """A law of quantiles themselves that has seen the loss `root` in each interval, again and
    again.
    """
    law = AdaptiveLevels(lambda process, q: q, CPU)
    for _ in range(rounds):
        law.record(torch.arange(law.BINS), root)
        law.update()
    return law


def profile(kind: str) -> Tensor:
    q = (torch.arange(AdaptiveLevels.BINS, dtype=torch.float64) + 0.5) / AdaptiveLevels.BINS
    return {
        "smooth": 0.3 + (q - 0.7).square() * 5,
        "steep": torch.exp(-12 * q),
        "one": (torch.arange(AdaptiveLevels.BINS) == 17).double(),
        "none": torch.zeros(AdaptiveLevels.BINS, dtype=torch.float64),
        "tiny": 1e-150 * (1 + q),
        "huge": 1e150 * (1 + q),
    }[kind]


@pytest.mark.parametrize("kind", ["smooth", "steep", "one", "none", "tiny", "huge"])
def test_the_adaptive_law_learns_the_optimum(kind: str) -> None:
    """p ∝ √E[loss²|q] but for a tenth: its distribution function is the inverse of the map of
    stratified_quantiles, to 1e-9.
    """
    root = profile(kind)
    law = taught(root, 8000 if kind in ("tiny", "none") else 300)
    share = root / root.mean() if kind != "none" else torch.ones_like(root)
    density = 0.9 * share + 0.1
    q = torch.rand(20_000, generator=generator(), dtype=torch.float64)
    there, ratio, bins = law(VP, q)
    assert torch.equal(bins, (there * law.BINS).floor().long().clamp(0, law.BINS - 1))
    torch.testing.assert_close(ratio, 1 / density[bins], rtol=1e-9, atol=0)
    before = torch.cat([torch.zeros(1, dtype=torch.float64), density.cumsum(0) / law.BINS])
    cdf = before[bins] + density[bins] * (there - bins / law.BINS)
    torch.testing.assert_close(cdf, q, rtol=0, atol=1e-9)
    ends, _, _ = law(VP, torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["smooth", "steep", "one"])
def test_the_adaptive_law_lowers_the_variance_by_what_theory_says(kind: str) -> None:
    """Of 200,000 losses f(q)·χ²₁ each: mean within 5 standard errors (a false alarm in 1.7
    million), variance within a twentieth.

    Predicted: E f²·3/p − (E f)², 3 being χ²₁'s second moment; a tenth of the draws being uniform,
    at most 1/0.9 of the optimum's first term.
    """
    root, n = profile(kind), 200_000
    law = taught(math.sqrt(3) * root)
    chi = torch.randn(2, n, generator=generator(1), dtype=torch.float64).square()
    q = (
        torch.randperm(n, generator=generator(2))
        + torch.rand(n, generator=generator(3), dtype=torch.float64)
    ) / n
    _, ratio, bins = law(VP, q)
    drawn, plain = root[bins] * chi[0] * ratio, root[(q * 64).long()] * chi[1]
    density = 0.9 * root / root.mean() + 0.1
    wanted = float((3 * root**2 / density).mean() - root.mean() ** 2)
    assert float(drawn.var()) == pytest.approx(wanted, rel=0.05)
    assert float((3 * root**2 / density).mean()) <= 3 * float(root.mean() ** 2) / 0.9 + 1e-12
    for value in (drawn, plain):
        assert abs(float(value.mean() - root.mean())) < 5 * float(value.std()) / math.sqrt(n)
    assert (
        float(3 * (root**2).mean() - root.mean() ** 2) / float(drawn.var())
        > {"smooth": 1.2, "steep": 4, "one": 40}[kind]
    )


def test_the_adaptive_law_keeps_the_expectation_of_a_networks_loss() -> None:
    """That of noise="likelihood" by quadrature over 2¹⁴ quantiles, with fixed data and noise: to
    1e-4.
    """
    sde = ScoreSDE(VP, Answers(torch.full((2,), 0.7)), shape=(2,)).double()
    n = 2**14
    x0, eps = torch.ones(n, 2, dtype=torch.float64), torch.full((n, 2), 0.4, dtype=torch.float64)

    def each(phi: Tensor) -> Tensor:
        z0 = sde.from_data(x0)
        examples = denoising_examples(sde, z0, eps, phi, "sigma2", {})
        with torch.no_grad():
            return squared_errors(sde.net.answers.expand(n, 2), examples)

    law = AdaptiveLevels(NOISES["likelihood"], CPU)
    q = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    wanted = each(NOISES["likelihood"](VP, q))
    spread = []
    for _ in range(30):
        phi, ratio, bins = law(VP, q)
        errors = each(phi)
        got = ratio * errors
        spread.append(float(got.std()))
        assert float(got.mean()) == pytest.approx(float(wanted.mean()), rel=1e-4)
        law.record(bins, errors)
        law.update()
    assert spread[-1] < 0.6 * spread[0]


class Huber(scoresde.Denoising):
    """Pseudo-Huber."""

    def errors(self, out: Tensor, examples: Any) -> Tensor:
        return (super().errors(out, examples) + 1e-2).sqrt() - 0.1


@pytest.mark.parametrize("noise", ["uniform", "adaptive"])
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4), (1, 8)])
@pytest.mark.parametrize("predict", ["v", "eps"])
def test_a_loss_of_ones_own_is_that_of_the_arc_velocity(
    shape: tuple[int, ...], predict: str, noise: str
) -> None:
    """A subclass that changes `errors` alone, by the formula in float64, on vectors and images."""
    n = math.prod(shape)
    answers = torch.linspace(-1, 1, 6 * n, dtype=torch.float64).reshape(6, n)
    sde = ScoreSDE(VP, Answers(answers), shape=shape, predict=predict).double()
    made = Huber("sigma2", noise).prepared(sde, paired=False, joined=False)
    z0, eps = torch.randn(2, 6, n, generator=generator(1), dtype=torch.float64)
    q = (torch.arange(6, dtype=torch.float64) + 0.3) / 6
    found = made.loss(sde.net, sde, made.examples(sde, z0, eps, q, {}), 1.0, lambda: generator(0))
    phi, ratio = NOISES[noise](VP, q), torch.ones(6, dtype=torch.float64)
    c = sde.coefficients(phi)
    gap = (answers - c.a * z0 - c.b * eps) / c.det
    squares = torch.cos(phi) ** 2 * gap.square().mean(1)
    wanted = (ratio * ((squares + 1e-2).sqrt() - 0.1)).mean()
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-12)


def test_adaptive_levels_weight_a_loss_of_ones_own_from_outside() -> None:
    """The factor 1/p multiplies the error itself, so that the loss keeps its expectation."""
    sde = ScoreSDE(VP, Answers(torch.full((2,), 0.7)), shape=(2,)).double()
    made = Huber("edm", "adaptive").prepared(sde, paired=False, joined=False)
    n = 2**14
    z0, eps = torch.ones(n, 2, dtype=torch.float64), torch.full((n, 2), 0.4, dtype=torch.float64)
    q = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    values = []
    for _ in range(20):
        examples = made.examples(sde, z0, eps, q, {})
        value = made.loss(sde.net, sde, examples, 1.0, lambda: generator(0))
        values.append(float(value.detach()))
        made.update(lambda sums: None)
    assert made.state_dict()["moments"].std() > 0.1
    assert values == pytest.approx([values[0]] * 20, rel=1e-4)


def test_losses_that_are_not_finite_do_not_spoil_the_adaptive_law() -> None:
    """They are as if they had not been: scaled half precision passes over such steps."""
    laws = [taught(profile("smooth"), 5) for _ in range(2)]
    bins = torch.arange(64)
    bad = profile("smooth").clone()
    bad[5], bad[6], bad[7] = math.nan, math.inf, 1e200  # whose square is not
    laws[0].record(bins, bad)
    keep = torch.tensor([i not in (5, 6, 7) for i in range(64)])
    laws[1].record(bins[keep], bad[keep])
    for law in laws:
        law.update()
    assert torch.equal(laws[0].moments, laws[1].moments)


def test_the_adaptive_law_goes_on_from_its_state() -> None:
    law = taught(profile("steep"), 3)
    law.record(torch.tensor([3, 3, 60]), torch.tensor([1.0, 2.0, 5.0]))
    other = AdaptiveLevels(law.base, CPU)
    other.moments.copy_(law.moments)
    other.sums.copy_(law.sums)
    q = torch.rand(100, generator=generator(), dtype=torch.float64)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(law(VP, q), other(VP, q), strict=True))
        law.update()
        other.update()


# --------------------------------------------------------------------------------------- validation


def linear(process: str = "rectified", predict: str = "v", **options: Any) -> ScoreSDE:
    torch.manual_seed(0)
    net = scoresde.BACKBONES.build("test_linear", (2,))
    return ScoreSDE(
        scoresde.PROCESSES.build(process),
        net,
        shape=(2,),
        predict=predict,
        input_convention="raw",
        standardize="scale",
        **options,
    )


def test_the_validation_loss_is_the_averages_on_fixed_examples() -> None:
    """Flow matching's loss by hand (Lipman et al. 2023, eq. 23), for each of the averages there
    were; whatever the run's seed.
    """
    held_out, found = cloud(300, 5), []
    how: dict[str, Any] = {
        "objective": scoresde.Denoising(weight="velocity", noise="uniform"),
        "validation": scoresde.Validation(held_out, every=10),
        "steps": 30,
    }
    for seed in (1, 2):
        sde = linear()
        averages: list[list[Tensor]] = []
        original = training.Trainer.validate

        def noting(run: Any, kept: Any = averages, original: Any = original) -> None:
            average = run.weights.named(run.averages.main.parts)
            kept.append([p.clone() for p in average.values()])
            original(run)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training.Trainer, "validate", noting)
            history = scoresde.fit(
                sde, cloud(), lr=0.01, progress=False, generator=generator(seed), **how
            )
        assert history.checked == [10, 20, 30]
        rows = torch.arange(300).repeat(28)  # 8,192 examples at least
        g = seeded("cpu", FIXED)
        eps = torch.randn(8400, 2, generator=g)
        jitter = torch.rand(8400, generator=g, dtype=torch.float64)
        t = ((torch.randperm(8400, generator=g) + jitter) / 8400).float()[:, None]
        unit = ((held_out[rows] - sde.mean) / sde.scale).float()
        x, target = (1 - t) * unit + t * eps, eps - unit
        for value, parts in zip(history.validation, averages, strict=True):
            first, bias, last, offset = parts
            out = torch.tanh(torch.cat([x, t], 1) @ first.T + bias) @ last.T + offset
            assert value == pytest.approx(float((out - target).square().mean()), rel=1e-5)
        found.append(history)
    assert found[0].validation != found[1].validation  # the weights differ
    still = [
        scoresde.fit(
            linear(), cloud(), lr=1e-30, progress=False, generator=generator(seed), **how
        ).validation
        for seed in (1, 2)
    ]
    assert still[0] == still[1]
    assert still[0] == pytest.approx([still[0][0]] * 3, rel=1e-5)


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_stops_and_keeps_the_best_average(patience: int) -> None:
    """Validation data of another law: the loss on them rises as the training data are learnt."""
    sde, averages = linear("vp", "edm"), {}
    original = training.Trainer.validate

    def noting(run: Any) -> None:
        average = run.weights.named(run.averages.main.parts)
        averages[run.step] = {name: p.clone() for name, p in average.items()}
        original(run)

    held_out = cloud(300, 5) * torch.tensor([1.0, -0.2]) - 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Trainer, "validate", noting)
        history = scoresde.fit(
            sde,
            cloud(),
            validation=scoresde.Validation(held_out, every=10, patience=patience),
            steps=2000,
            lr=0.02,
            progress=False,
            generator=generator(),
        )
    i = int(np.argmin(history.validation))
    assert history.best == history.checked[i]
    assert history.checked[-1] == history.best + 10 * patience < 2000
    assert sde.ema is not None
    assert all(
        torch.equal(p, averages[history.best][name]) for name, p in sde.ema.named_parameters()
    )
    assert not all(
        torch.equal(p, averages[history.checked[-1]][name])
        for name, p in sde.ema.named_parameters()
    )


def test_checks_that_come_ever_more_rarely_keep_the_best_average() -> None:
    """The untrained network is the first; training ends 300 steps after the best at least."""
    checks = [0, 20, 24, 29, 35, 42, 51, 62, 75, 90, 108, 130, 156, 188, 226, 272, 327, 393, 472]
    how: dict[str, Any] = {"steps": 472, "lr": 0.02, "progress": False}
    for shift in (-3, 0):
        held_out = cloud(300, 5) + shift
        sde, rarely = linear("vp", "edm"), scoresde.Validation(held_out, every="auto", patience=2)
        before = {name: p.clone() for name, p in sde.net.named_parameters()}
        history = scoresde.fit(sde, cloud(), validation=rarely, generator=generator(), **how)
        assert history.checked == checks[: len(history.checked)]
        assert history.best == history.checked[int(np.argmin(history.validation))]
        assert (history.best == 0) == (shift != 0)
        assert history.checked[-1] == min(step for step in checks if step >= history.best + 300)
        assert sde.ema is not None
        kept = all(torch.equal(p, before[name]) for name, p in sde.ema.named_parameters())
        assert kept == (history.best == 0)


def test_checks_are_at_most_500_steps_apart() -> None:
    steps = [step for step in range(9000) if checked_after(step)]
    assert steps[:12] == [0, 20, 24, 29, 35, 42, 51, 62, 75, 90, 108, 130]
    gaps = np.diff(steps)
    assert (gaps[1:] >= np.minimum(gaps[:-1], 4)).all()
    assert (np.diff(steps[13:])[-8:] == 500).all()
    assert not checked_after(steps[-1] + 1)
    assert checked_after(steps[-1] + 500 * 2000)
    with pytest.raises(ValueError, match="every is an integer or 'auto', got 'Auto'"):
        scoresde.Validation(cloud(), every="Auto")


def test_a_run_with_rare_checks_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Bit for bit, also where the untrained network was the best."""
    held_out = scoresde.Validation(cloud(300, 5) - 3, every="auto", patience=9)
    how: dict[str, Any] = {"validation": held_out, "steps": 60, "lr": 0.02, "progress": False}
    whole, part = linear("vp", "edm"), linear("vp", "edm")
    history = scoresde.fit(whole, cloud(), generator=generator(), **how)
    folder = scoresde.Checkpoints(tmp_path, every=10, resume=True)
    original = training.Trainer.validate

    def stopping(run: Any) -> None:
        if run.step == 42:
            raise KeyboardInterrupt
        original(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Trainer, "validate", stopping)
        with pytest.raises(KeyboardInterrupt):
            scoresde.fit(part, cloud(), generator=generator(), checkpoints=folder, **how)
    again = linear("vp", "edm")
    resumed = scoresde.fit(again, cloud(), generator=generator(), checkpoints=folder, **how)
    assert (resumed.checked, resumed.validation) == (history.checked, history.validation)
    assert resumed.best == history.best
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), whole.state_dict().values(), strict=True)
    )


def test_conditions_of_the_validation_data_are_used() -> None:
    x, y = cloud(90), torch.arange(90) % 3
    sde = small(classes=3)
    values = []
    scoresde.fit(
        sde,
        x + 5 * y[:, None],
        given={"y": y},
        steps=300,
        lr=0.01,
        progress=False,
        generator=generator(),
    )
    for labels in (y, (y + 1) % 3):
        held_out = (x + 5 * y[:, None], {"y": labels})
        how = {"steps": 1, "lr": 1e-30, "progress": False, "generator": generator()}
        values.append(
            scoresde.fit(sde, x, given={"y": y}, validation=held_out, **how).validation[0]
        )
    assert values[0] < 0.9 * values[1]


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "another shape": (torch.zeros(5, 3), ValueError, r"\(5, 3\), wanted"),
    "integers": (torch.zeros(5, 2, dtype=torch.int32), TypeError, "floating point"),
    "NaN": (torch.full((5, 2), math.nan), ValueError, "NaN"),
    "nothing": (torch.zeros(0, 2), ValueError, "no samples"),
    "an unknown condition": (
        (torch.zeros(5, 2), {"z": torch.zeros(5)}),
        ValueError,
        "no condition 'z'",
    ),
    "few labels": (
        (torch.zeros(5, 2), {"y": torch.zeros(4, dtype=torch.long)}),
        ValueError,
        "for 5 samples",
    ),
    "a class that is not": (
        (torch.zeros(5, 2), {"y": torch.full((5,), 3)}),
        ValueError,
        "from 0 to 2",
    ),
    "a law": (scoresde.toy.Moons(), TypeError, "Moons"),
    "three": ((torch.zeros(5, 2),) * 3, TypeError, "tuple"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_validation_data_are_refused_before_any_work(case: str) -> None:
    validation, kind, message = BAD[case]
    sde = small(classes=3)
    before = weights(sde)
    with pytest.raises(kind, match=message):
        scoresde.fit(sde, cloud(), validation=validation, steps=3, progress=False)
    assert same(weights(sde), before)


def test_a_history_draws_its_losses_and_the_step_that_was_kept(tmp_path: Path) -> None:
    history = History([10, 20, 30], [0.9, 0.6, 0.5], [10, 20, 30], [1.0, 0.7, 0.8], best=20)
    figure: Any = history.plot(tmp_path / "losses.png")
    axes = figure.axes[0]
    for line, (x, y) in zip(
        axes.lines,
        [([10, 20, 30], [0.9, 0.6, 0.5]), ([10, 20, 30], [1.0, 0.7, 0.8]), ([20] * 2, [0, 1])],
        strict=True,
    ):
        assert list(line.get_xdata()) == x
        assert list(line.get_ydata()) == y
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["training", "validation, averaged weights", "kept: step 20"]
    assert (tmp_path / "losses.png").stat().st_size > 5000
    assert History().plot().axes[0].get_xlabel() == "step"  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------ torch.compile


@pytest.mark.slow
def test_compiling_changes_no_loss() -> None:
    """To 1e-4 over 60 steps with validation, where there is a compiler."""

    def losses(compiled: bool) -> tuple[list[float], list[float]]:
        history = scoresde.fit(
            small(),
            cloud(),
            steps=60,
            validation=scoresde.Validation(cloud(50, 3), every=20),
            backend=scoresde.Backend(compile=compiled),
            progress=False,
            generator=generator(),
        )
        return history.loss, history.validation

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = losses(True)
    if any("torch.compile failed" in str(warning.message) for warning in caught):
        pytest.skip("no compiler")
    for ours, wanted in zip(got, losses(False), strict=True):
        assert ours == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("when", ["called", "made"])
def test_a_failed_compile_is_a_warning_and_the_run_is_that_without(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = small()
    scoresde.fit(plain, cloud(), steps=5, progress=False, generator=generator())

    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", failing if when == "made" else lambda net, **__: failing)
    sde = small()
    with pytest.warns(UserWarning, match="torch.compile failed, .* no compiler here$"):
        scoresde.fit(
            sde, cloud(), steps=5, backend="compile", progress=False, generator=generator()
        )
    assert same(weights(sde), weights(plain))


def test_what_is_wrong_with_a_network_is_said_whether_compiled_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Wrong(nn.Linear):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
            raise ZeroDivisionError("my mistake")

    monkeypatch.setattr(torch, "compile", lambda net, **_: net.forward)
    with pytest.raises(ZeroDivisionError, match="my mistake"):
        scoresde.fit(
            ScoreSDE(VP, Wrong(2, 2), shape=(2,)),
            cloud(),
            steps=5,
            backend="compile",
            progress=False,
        )


# ------------------------------------------------------------------------------------ odd arguments


COUNTS: dict[str, Any] = {
    "steps": lambda n: scoresde.fit(small(), cloud(), progress=False, steps=n),
    "batch_size": lambda n: scoresde.fit(small(), cloud(), progress=False, batch_size=n),
    "every": lambda n: scoresde.Checkpoints("run", every=n),
    "every of validations": lambda n: scoresde.Validation(cloud(), every=n),
    "patience": lambda n: scoresde.Validation(cloud(), patience=n),
    "snapshots": lambda n: scoresde.Averaging(snapshots=n),
    "steps of ddim": lambda n: scoresde.Distilled(n),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [True, 2.0, "3", -1])
def test_counts_are_integers(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=name.split()[0]):
        COUNTS[name](value)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """Also in what a checkpoint says of the run, and it goes on with Python's."""
    how = {
        "steps": np.int64(6),
        "batch_size": np.int32(8),
        "lr": np.float32(0.25),
        "ema": np.int64(5),
    }
    rest: dict[str, Any] = {"progress": False, "validation": cloud(9), "generator": generator()}
    sde = small()
    begun = scoresde.Checkpoints(tmp_path, every=np.int16(3))  # type: ignore[arg-type]
    scoresde.fit(sde, cloud(), checkpoints=begun, **how, **rest)
    plain = {name: value.item() for name, value in how.items()}
    again = small()
    resumed = scoresde.Checkpoints(tmp_path, every=3, resume=True)
    scoresde.fit(again, cloud(), checkpoints=resumed, **plain, **rest)
    assert same(weights(sde), weights(again))


@pytest.mark.parametrize(("n", "steps", "batch_size"), [(2, 1, 512), (3, 7, 1), (200, 1, 1)])
def test_few_data_and_few_steps(n: int, steps: int, batch_size: int) -> None:
    sde = small()
    history = scoresde.fit(
        sde, cloud(n), steps=steps, batch_size=batch_size, progress=False, generator=generator()
    )
    assert history.step[-1] == steps
    assert bool(scoresde.log_prob(sde, cloud(3)).isfinite().all())


def test_a_rate_that_is_much_too_high_is_an_error_and_the_model_is_as_good_as_before() -> None:
    sde = small()
    with pytest.raises(scoresde.TrainingError, match=r"lower lr \(now 1e\+06\)"):
        scoresde.fit(sde, cloud(), lr=1e6, steps=50, progress=False, generator=generator())
    assert all(bool(value.isfinite().all()) for value in sde.state_dict().values())
    assert bool(scoresde.sample(sde, 3, generator=generator()).isfinite().all())


# ------------------------------------------------------------------------------ laws of t for flows


class Cosh(scipy.stats.rv_continuous):
    """Density ∝ e^{4t} + e^{4(1 − t)} on [0, 1] (Lee et al. 2024), of which scipy is told the
    distribution function.
    """

    def _cdf(self, t: Any) -> Any:
        return ((np.exp(4 * t) - 1) + (np.exp(4.0) - np.exp(4 * (1 - t)))) / (
            2 * (np.exp(4.0) - 1)
        )


T_LAWS: dict[str, tuple[Any, Any]] = {  # the distribution function of t, and its quantiles
    "logit_normal": (
        lambda t: scipy.stats.norm.cdf(np.log(t / (1 - t))),
        lambda q: scipy.special.expit(scipy.stats.norm.ppf(q)),
    ),
    "u_shaped": (Cosh(a=0, b=1).cdf, Cosh(a=0, b=1, xtol=1e-15).ppf),
}


@pytest.mark.parametrize("law", list(T_LAWS))
def test_quantiles_of_time_laws_are_scipys(law: str) -> None:
    """To 1e-12 in t where t is φ's own clock; elsewhere in the process's t, through φ and back."""
    q = torch.linspace(0.001, 0.999, 333, dtype=torch.float64)
    wanted = torch.as_tensor(T_LAWS[law][1](q.numpy()))
    for name in PROCESSES:
        process = scoresde.PROCESSES.build(name)
        got = process.time(NOISES[law](process, q))
        torch.testing.assert_close(
            got, wanted, rtol=0, atol=1e-12 if name in ("rectified", "cosine") else 1e-9
        )
    ends = NOISES[law](
        scoresde.RectifiedFlow(), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    )
    torch.testing.assert_close(
        ends,
        torch.tensor([1e-6, math.pi / 4, math.pi / 2], dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )


def test_the_u_shaped_density_is_the_papers() -> None:
    """The distribution function of the tests, differentiated: ∝ e^{4t} + e^{4(1 − t)}, and of
    integral 1.
    """
    t = np.linspace(0.01, 0.99, 99)
    slope = (T_LAWS["u_shaped"][0](t + 1e-5) - T_LAWS["u_shaped"][0](t - 1e-5)) / 2e-5
    density = 2 * (np.exp(4 * t) + np.exp(4 * (1 - t))) / (np.exp(4.0) - 1)
    np.testing.assert_allclose(slope, density, rtol=1e-8)
    assert T_LAWS["u_shaped"][0](np.array([0.0, 1.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("law", list(T_LAWS))
def test_the_loss_draws_t_by_its_law(law: str) -> None:
    """What the network is shown, 20 batches of 64: one t in each 64th of the law, so its distance
    from the law is a 64th at most.

    And the places within the strata by Kolmogorov–Smirnov: a false alarm in 10,000.
    """
    net = Answers(torch.zeros(64, 2, dtype=torch.float64))
    sde = ScoreSDE(
        scoresde.RectifiedFlow(), net, shape=(2,), predict="v", input_convention="raw"
    ).double()
    for seed in range(20):
        scoresde.loss(
            sde, torch.zeros(64, 2, dtype=torch.float64), noise=law, generator=generator(seed)
        )
    strata = 64 * T_LAWS[law][0](torch.stack([t for _, t in net.seen]).numpy())
    assert np.array_equal(np.sort(np.floor(strata), 1), np.tile(np.arange(64.0), (20, 1)))
    assert scipy.stats.kstest(strata.ravel() % 1, "uniform").pvalue > 1e-4


def flow(net: str = "mlp", **options: Any) -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build("rectified", net, shape=(2,), width=16, **options)


def moons(n: int = 500) -> torch.Tensor:
    return toy.Moons().sample(n, generator=generator(0))


def test_loss_draws_the_levels_that_fit_does() -> None:
    sde, x = flow(), moons(64)
    for noise, source in (("lognormal", None), ("uniform", toy.EightGaussians())):
        sde.source = source
        ours, told = (
            scoresde.loss(sde, x, generator=generator(3), **how) for how in ({}, {"noise": noise})
        )
        assert torch.equal(ours, told)
