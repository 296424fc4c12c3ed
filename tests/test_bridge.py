"""Schrödinger bridges between Gaussians, which are known in closed form: the loss, both samplers,
both directions.

For x0 ~ N(m0, a²) and x1 ~ N(m1, b²) entropic transport with regularization 2σ² joins the ends
with the covariance C = ½(√(4a²b² + σ⁴) − σ²), and the bridge has the variance (1 − t)²a² + t²b² +
2t(1 − t)C + σ²t(1 − t) (Bunne et al. 2023; Janati et al. 2020). All fields are linear.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import generator
from scoresde import ScoreSDE
from scoresde.backbones import BACKBONES, TwoDrifts
from scoresde.backbones.base import takes
from scoresde.sampling.plan import plan
from scoresde.sampling.problem import levels, problem
from scoresde.solvers import SOLVERS
from scoresde.training.bridge import BridgeMatching, SchrodingerBridge
from scoresde.training.couplings import Sinkhorn
from scoresde.training.noise_levels import stratified_quantiles

M0, M1, A, B = 0.7, -1.1, 0.5, 1.3


def covariance(noise: float) -> float:
    """C of the ends."""
    return 0.5 * (math.sqrt(4 * A**2 * B**2 + noise**4) - noise**2)


def moments(t: Any, noise: float) -> tuple[Any, Any]:
    """Mean and variance of x_t."""
    variance = (1 - t) ** 2 * A**2 + t**2 * B**2 + t * (1 - t) * (2 * covariance(noise) + noise**2)
    return (1 - t) * M0 + t * M1, variance


def ends(x: Tensor, t: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """E[x0 | x_t] and E[x1 | x_t]."""
    mean, variance = moments(t, noise)
    c = covariance(noise)
    return M0 + ((1 - t) * A**2 + t * c) / variance * (x - mean), M1 + (
        (1 - t) * c + t * B**2
    ) / variance * (x - mean)


class Exact(nn.Module):
    """The exact drifts as a network that sees (x_t, t); `bend` are errors that training has to
    find.
    """

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise, self.bend = noise, nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))

    def forward(
        self, x: Tensor, t: Tensor, tilt: Tensor | None = None, apart: bool = False
    ) -> Tensor:
        t = t.reshape(-1, *(1,) * (x.ndim - 1))
        x0, x1 = ends(x, t, self.noise)
        score = -(x - moments(t, self.noise)[0]) / moments(t, self.noise)[1]
        drifts = []
        for way, (a, b, c) in zip((1, -1), self.bend, strict=True):
            there = (
                (x - x0) / t.clamp_min(1e-12) if way == 1 else (x1 - x) / (1 - t).clamp_min(1e-12)
            )
            # at t = 0 and 1, where x̂ − x is 0/0, by way of the other drift and the score
            there = (
                torch.where(t < 1e-9, (x1 - x) - self.noise**2 * score, there)
                if way == 1
                else there
            )
            there = (
                torch.where(t > 1 - 1e-9, (x - x0) + self.noise**2 * score, there)
                if way == -1
                else there
            )
            r = torch.hypot(1 - t, t)
            drifts.append(a + b * x + c * t - ((1 - 2 * t) * x / r + r * there))
        if apart:
            return torch.stack(drifts)
        w = 0.5 if tilt is None else 0.5 * (1 + tilt.reshape(t.shape))
        return w * drifts[0] + (1 - w) * drifts[1]


def exact(noise: float, shape: tuple[int, ...] = (1,)) -> ScoreSDE:
    sde = ScoreSDE(
        SchrodingerBridge(noise),
        Exact(noise),
        shape=shape,
        input_convention="raw",
        outcome="bridge",
    ).double()
    mean = torch.full(shape, M1, dtype=torch.float64)
    sde.source = torch.distributions.Independent(torch.distributions.Normal(mean, B), len(shape))
    return sde


def pairs(n: int, noise: float, seed: int, shape: tuple[int, ...] = (1,)) -> tuple[Tensor, Tensor]:
    """Ends from the exact entropic plan, flattened."""
    g = generator(seed)
    a, b = torch.randn(2, n, math.prod(shape), generator=g, dtype=torch.float64)
    c = covariance(noise)
    return M0 + A * a, M1 + c / A * a + math.sqrt(B**2 - c**2 / A**2) * b


def gradients(sde: ScoreSDE, noise: float, ends_noise: float, batches: int = 100) -> Tensor:
    """Gradients of the loss at the network as it is, of so many batches."""
    found = []
    for k in range(batches):
        z0, z1 = pairs(256, ends_noise, k)
        g = generator(10_000 + k)
        value = BridgeMatching()(
            sde.net, sde, z0, z1, stratified_quantiles(1, 256, g, z0.device), {}, 0.0, g
        )
        found.append(torch.autograd.grad(value, sde.net.bend)[0].flatten())
    return torch.stack(found)


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_exact_drifts_are_where_the_loss_is_least(noise: float) -> None:
    """z-scores of 6 mean gradients, |z| < 4.2 (false alarm 1.6e-4). With ends joined as for other
    noise it is far from 0.
    """
    sde = exact(noise)
    found = gradients(sde, noise, noise)
    z = found.mean(0) / found.std(0) * math.sqrt(len(found))
    assert z.abs().max() < 4.2, z
    found = gradients(sde, noise, 2 * noise)
    assert (found.mean(0) / found.std(0) * math.sqrt(len(found))).abs().max() > 10


def test_the_loss_is_that_of_both_bridges_written_out() -> None:
    """By x_t, t and the drifts (x_t − x0)/t and (x1 − x_t)/(1 − t) themselves, on images, for a
    network that is no denoiser.
    """
    noise, shape = 0.6, (2, 3, 3)

    class Wiggle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(
            self, x: Tensor, t: Tensor, tilt: Tensor | None = None, apart: bool = False
        ) -> Tensor:
            t = t.reshape(-1, 1, 1, 1)
            return torch.stack([torch.sin(x * self.p + t), torch.cos(x.flip(1) - t)])

    sde = ScoreSDE(
        SchrodingerBridge(noise), Wiggle(), shape=shape, input_convention="raw"
    ).double()
    x0, x1 = torch.randn(2, 5, 18, generator=generator(1), dtype=torch.float64)
    q = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    got = BridgeMatching()(sde.net, sde, x0, x1, q, {}, 0.0, generator(2))

    xi = torch.randn(5, 18, generator=generator(2), dtype=torch.float64)
    t = sde.process.time(sde.process.phi(torch.sin(0.5 * math.pi * q) ** 2))[:, None]
    torch.testing.assert_close(t[:, 0], torch.sin(0.5 * math.pi * q) ** 2)
    x = (1 - t) * x0 + t * x1 + noise * (t * (1 - t)).sqrt() * xi
    r = torch.hypot(1 - t, t)
    total = torch.zeros((), dtype=torch.float64)
    data, source = sde.net(x.reshape(-1, *shape), t[:, 0], apart=True).reshape(2, 5, 18)
    for out, drift, spread in (
        (data, (x - x0) / t, noise**2 * (1 - t) / t * ((1 - t) / r) ** 2),
        (source, (x1 - x) / (1 - t), noise**2 * t / (1 - t) * (t / r) ** 2),
    ):
        velocity = (1 - 2 * t) * x / r + r * drift  # of z = x/r per radian: r² dt = dφ
        total = total + ((velocity + out) ** 2 / (1 + spread)).mean() / 2
    torch.testing.assert_close(got, total)


def affine(noise: float, steps: int, forward: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """What the solver makes of a start 0, a start 1 and each draw of noise alone, at all levels:
    it is affine in all of them.

    Returns the times and, there, mean and variance of x and its covariance with the start, exactly.
    """
    sde = exact(noise)
    how = plan(sde, "bridge", steps, None, {}, forward=forward)
    nodes = levels(sde, how.times)
    draws = iter(torch.eye(steps + 2, dtype=torch.float64)[2:])
    z = torch.zeros(steps + 2, 1, dtype=torch.float64)
    z[1] = 1
    task = problem(sde, nodes, False, lambda: next(draws)[:, None])
    seen = {0: z}
    task.observe = lambda i, z: seen.update({i: z.clone()})
    with torch.no_grad():
        how.solver.run(task, z)
    x = np.stack([(seen[i] * nodes[i].radius).numpy()[:, 0] for i in range(steps + 1)])
    mean, std = (M0, A) if forward else (M1, B)
    gain = x[:, 1] - x[:, 0]
    means = x[:, 0] + gain * mean
    variances = (gain * std) ** 2 + ((x[:, 2:] - x[:, :1]) ** 2).sum(1)
    return how.times.numpy(), np.stack([means, variances, gain * std**2], 1)


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_sde_has_the_marginals_of_the_bridge_and_joins_its_ends_to_first_order(
    noise: float, forward: bool
) -> None:
    """Without sampling, all along the path. Mean and covariance of the ends need no limit: the
    fields are linear.
    """
    wrong = []
    for steps in (100, 200, 400):
        t, found = affine(noise, steps, forward)
        mean, variance = moments(t, noise)
        np.testing.assert_allclose(found[:, 0], mean, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[-1, 2], covariance(noise), rtol=0, atol=1e-12)
        wrong.append(abs(np.sqrt(found[:, 1] / variance) - 1).max())
    assert wrong[0] < 2.2e-3  # with the default number of steps
    assert all(a > 2 * b for a, b in itertools.pairwise(wrong)), wrong


@pytest.mark.parametrize("solver", ["bridge", "adams"])
def test_samples_have_the_marginals_at_five_times_by_sde_and_ode(solver: str) -> None:
    """10,000 samples of two features: 20 z-scores of means and variances, |z| < 4.5 (false alarm
    1.4e-4).
    """
    noise, n, times = 0.8, 10_000, [1.0, 0.75, 0.5, 0.25, 0.0]
    options = {"steps": 200} if solver == "bridge" else {}
    found = scoresde.solve(
        exact(noise, (2,)), n, solver=solver, times=times, generator=generator(3), **options
    )
    for t, x in zip(times, found.x, strict=True):
        mean, variance = moments(t, noise)
        bias = 2e-3 if solver == "bridge" else 1e-4  # of 200 steps: see the test before
        assert (x.mean(0) - mean).abs().max() < 4.5 * math.sqrt(variance / n) + bias, t
        assert (x.var(0) - variance).abs().max() < 4.5 * variance * math.sqrt(2 / n) + bias, t


def test_the_ode_is_the_monotone_map_and_its_likelihood_that_of_the_data() -> None:
    sde = exact(0.8)
    x = torch.linspace(-1, 2, 31, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        scoresde.encode(sde, x, solver="rk45", rtol=1e-9, atol=1e-9),
        M1 + B / A * (x - M0),
        rtol=0,
        atol=1e-6,
    )
    truth = torch.distributions.Normal(torch.tensor(M0, dtype=torch.float64), A).log_prob(x[:, 0])
    torch.testing.assert_close(
        scoresde.log_prob(sde, x, rtol=1e-8, atol=1e-8), truth, rtol=0, atol=1e-5
    )


def test_there_and_back_by_the_sde() -> None:
    """Data to source: the joint law of both ends is the entropic plan's. |z| < 4.5 of mean,
    variance, covariance.
    """
    noise, n = 0.8, 10_000
    sde = exact(noise)
    x0 = M0 + A * torch.randn(n, 1, generator=generator(1), dtype=torch.float64)
    x1 = scoresde.solve(
        sde, start=x0, times=[0.0, 1.0], solver="bridge", steps=200, generator=generator(2)
    ).x[-1]
    assert abs(float(x1.mean()) - M1) < 4.5 * B / math.sqrt(n) + 2e-3
    assert abs(float(x1.var()) - B**2) < 4.5 * B**2 * math.sqrt(2 / n) + 2e-3
    c = covariance(noise)
    found = float(torch.cov(torch.cat([x0, x1], 1).T)[0, 1])
    assert abs(found - c) < 4.5 * math.sqrt((A**2 * B**2 + c**2) / n) + 2e-3


def test_samples_depend_on_the_seed_and_their_number_alone() -> None:
    sde = exact(0.8, (2,))
    all_ = scoresde.sample(sde, 200, solver="bridge", steps=10, generator=generator(4))
    part = scoresde.sample(
        sde, 200, solver="bridge", steps=10, generator=generator(4), batch_size=64
    )
    torch.testing.assert_close(all_, part, rtol=0, atol=0)


def test_sinkhorn_with_twice_the_variance_joins_what_the_bridge_joins() -> None:
    """The covariance of the ends, 20 batches of 256: within 4.5 standard errors and 2% for the
    size of the batches.
    """
    pytest.importorskip("ot")
    noise, found = 1.0, []
    coupling = BridgeMatching().coupling(exact(noise))
    assert coupling == Sinkhorn(reg=2 * noise**2)
    for k in range(20):
        rng = np.random.default_rng(k)
        x0, x1 = M0 + A * rng.standard_normal((256, 1)), M1 + B * rng.standard_normal((256, 1))
        found.append(np.cov(x0[:, 0], x1[coupling.join(x0, x1, {}, rng), 0])[0, 1])
    c = covariance(noise)
    assert abs(np.mean(found) - c) < 4.5 * np.std(found) / math.sqrt(20) + 0.02 * c


def test_the_plan_is_the_same_whichever_way_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the log domain and out of it, on costs as they are and shifted: the same rows for the
    same randomness.
    """
    ot = pytest.importorskip("ot")
    x0, x1 = np.random.default_rng(0).standard_normal((2, 64, 2))
    found = Sinkhorn(reg=0.3).join(x0, x1, {}, np.random.default_rng(1))
    plain = ot.sinkhorn
    monkeypatch.setattr(
        ot, "sinkhorn", lambda *a, method, **k: plain(*a, method="sinkhorn_log", **k)
    )
    np.testing.assert_array_equal(
        found, Sinkhorn(reg=0.3).join(x0, x1, {}, np.random.default_rng(1))
    )
    cost = np.square(x0[:, None] - x1).sum(2)
    exact_plan = plain(np.full(64, 1 / 64), np.full(64, 1 / 64), cost, 0.3, method="sinkhorn_log")
    monkeypatch.setattr(ot, "sinkhorn", lambda *a, **k: exact_plan)
    np.testing.assert_array_equal(
        found, Sinkhorn(reg=0.3).join(x0, x1, {}, np.random.default_rng(1))
    )


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
def test_the_network_of_two_drifts_mixes_them_by_the_tilt(shape: tuple[int, ...]) -> None:
    net = TwoDrifts(shape, width=16).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3, generator=generator(1))
    x, t = (
        torch.randn(6, *shape, generator=generator(2), dtype=torch.float64),
        torch.linspace(-3, 3, 6, dtype=torch.float64),
    )
    data, source = net(x, t, apart=True)
    assert (data - source).abs().min() > 0
    one = torch.ones(6, dtype=torch.float64)
    for tilt, wanted in (
        (one, data),
        (-one, source),
        (0 * one, 0.5 * (data + source)),
        (None, 0.5 * (data + source)),
    ):
        torch.testing.assert_close(net(x, t, tilt=tilt), wanted)
    torch.testing.assert_close(net(x, t, tilt=one * t)[3:4], net(x[3:4], t[3:4], tilt=t[3:4]))


def test_a_bridge_is_saved_and_loaded(tmp_path: Any) -> None:
    pytest.importorskip("ot")
    sde = scoresde.build(SchrodingerBridge(0.7), "two_drifts", shape=(2,), width=16)
    sde.source = scoresde.toy.EightGaussians()
    scoresde.fit(
        sde, scoresde.toy.Moons(), steps=5, batch_size=32, progress=False, generator=generator()
    )
    assert sde.outcome.name == "bridge"
    assert sde.solver == "bridge"
    loaded = scoresde.load(scoresde.save(sde, tmp_path / "model"))
    assert (loaded.outcome.name, loaded.process, takes(loaded.net, "tilt")) == (
        "bridge",
        SchrodingerBridge(0.7),
        True,
    )
    for solver in ("bridge", "adams"):
        a, b = (
            scoresde.sample(m, 5, solver=solver, generator=generator(1)) for m in (sde, loaded)
        )
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_labels_go_through_the_bridge() -> None:
    pytest.importorskip("ot")
    sde = scoresde.build("bridge", "two_drifts", shape=(2,), width=16, classes=2)
    sde.source = scoresde.toy.EightGaussians()
    x, y = torch.randn(100, 2, generator=generator()), torch.arange(100) % 2
    scoresde.fit(
        sde,
        x,
        given={"y": y},
        coupling="independent",
        steps=5,
        batch_size=32,
        progress=False,
        generator=generator(),
    )
    assert scoresde.sample(sde.given(y=torch.tensor([0, 1, 0])), 3, steps=4).shape == (3, 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: scoresde.build("bridge", "mlp", shape=(2,)), "two drifts"),
        (lambda: scoresde.build("bridge", "two_drifts", shape=(2,), width=8), "no source"),
        (
            lambda: scoresde.build("bridge", "two_drifts", shape=(2,), width=8, predict="v"),
            "predict='edm'",
        ),
        (lambda: scoresde.build("rectified", "two_drifts", shape=(2,), width=8), "has none"),
    ],
)
def test_what_can_not_learn_a_bridge_is_told_so_before_any_work(change: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        scoresde.fit(change(), torch.randn(50, 2), objective="bridge", progress=False)


def test_models_that_are_no_bridge_are_refused_by_its_solver_and_others_by_name() -> None:
    moons = scoresde.oracle(scoresde.toy.Moons(), scoresde.RectifiedFlow())
    with pytest.raises(ValueError, match="no Schrödinger bridge"):
        scoresde.sample(moons, 3, solver="bridge")
    with pytest.raises(ValueError, match="has no score"):
        scoresde.sample(exact(0.5), 3, solver="em")
    with pytest.raises(ValueError, match="noise"):
        SchrodingerBridge(noise=0.0)
    assert SOLVERS.build("bridge").stochastic
    with pytest.raises(ValueError, match="takes a tilt already"):
        BACKBONES.build("two_drifts", (2,), backbone="two_drifts")


def trained(steps: int, **options: Any) -> ScoreSDE:
    torch.manual_seed(0)
    sde = scoresde.build("bridge", "two_drifts", shape=(2,), blur=False, **options)
    sde.source = scoresde.toy.EightGaussians()
    scoresde.fit(sde, scoresde.toy.Moons(), steps=steps, progress=False, generator=generator())
    return sde


@pytest.mark.slow
def test_eight_gaussians_to_moons_by_both_samplers_and_a_density_that_integrates_to_one() -> None:
    """Energy distances² of 4,000 samples below 3e-3, where two true samples have 0 ± 6e-4; about
    two minutes of CPU.
    """
    pytest.importorskip("ot")
    sde, moons = trained(2000), scoresde.toy.Moons()
    truth = moons.sample(4000, generator=generator(5))
    for solver in ("bridge", "adams"):
        x = scoresde.sample(sde, 4000, solver=solver, generator=generator(7))
        assert scoresde.energy_distance(x, truth) < 3e-3
    back = scoresde.solve(
        sde, start=truth, times=[0.0, 1.0], solver="bridge", generator=generator(8)
    ).x[-1]
    assert scoresde.energy_distance(back, sde.source.sample(4000, generator=generator(9))) < 4e-3
    low, high = moons.sample(10_000, generator=generator(1)).aminmax(dim=0)
    axes = [
        torch.linspace(float(a) - 1.5, float(b) + 1.5, 97) for a, b in zip(low, high, strict=True)
    ]
    grid = torch.cartesian_prod(*axes)
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    assert abs(float(scoresde.log_prob(sde, grid).double().exp().sum()) * cell - 1) < 0.01
