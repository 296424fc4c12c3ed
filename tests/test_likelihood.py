"""log p against closed forms: every process, precision, rank and trace; conditions, units, prior
gap.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import MIXTURES, PROCESSES, at, generator, kept, rotated, some
from scoresde import Process, ScoreSDE, toy
from scoresde.common.random import PATH, PRIOR, PROBE, Noise
from scoresde.solvers import Counts, Problem, Solver


def true_ends(
    mixture: toy.GaussianMixture, process: Process
) -> tuple[toy.GaussianMixture, toy.GaussianMixture]:
    """The mixture's law at t = 0 (smoothed by σ_min where there is one) and at t = 1."""
    return mixture.perturb(*at(process, 0.0)), mixture.perturb(*at(process, 1.0))


PAIRS = list(itertools.product(PROCESSES, MIXTURES))


@pytest.mark.parametrize(
    ("process", "mixture"),
    kept(
        PAIRS,
        lambda name, target: (
            target == "8 Gaussians" and name in ("vp", "ve", "rectified", "test_polynomial")
        ),
    ),
    indirect=True,
)
def test_log_prob_is_the_closed_form(process: Process, mixture: toy.GaussianMixture) -> None:
    """With the true p(x_1) as prior: 1e-5 nats in float64 at tight tolerance, worst of 10; 1e-3 in
    float32 at defaults, worst of 40.
    """
    data, noise = true_ends(mixture, process)
    sde = scoresde.oracle(mixture, process)
    x = data.sample(40, generator=generator(), dtype=torch.float64)
    tight = scoresde.log_prob(sde, x[:10], prior=noise, rtol=1e-7, atol=1e-7)
    assert tight.dtype == torch.float64
    assert float((tight - data.log_prob(x[:10])).abs().max()) < 1e-5
    single = scoresde.log_prob(sde, x.float(), prior=noise)
    assert single.dtype == torch.float32
    assert float((single.double() - data.log_prob(x.float().double())).abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("process", "predict"),
    kept(
        itertools.product(PROCESSES, ("x0", "eps", "v", "score")),
        lambda name, predict: (
            name == "vp" or (name, predict) in (("ve", "x0"), ("rectified", "v"))
        ),
    ),
    indirect=["process"],
)
def test_log_prob_does_not_depend_on_what_the_network_predicts(
    process: Process, predict: str
) -> None:
    """A singular pair at σ = 0 (x0) starts a hair above and says it costs O(1e-8); here it must
    stay below 1e-5.
    """
    mixture = MIXTURES["8 Gaussians"]
    if scoresde.processes.prediction.singular(predict, process, process.phi_max):
        pytest.skip("refused at construction")
    inner = scoresde.oracle(mixture, process)

    class Other(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            phi = process.phi(t.clamp_min(1e-30))
            z = x / process.radius(t)[:, None]
            x0, eps = inner.coefficients(phi).solve(z, inner.net(x, t))
            c = scoresde.processes.prediction.coefficients(predict, process, phi)
            return c.a * x0 + c.b * eps

    sde = ScoreSDE(process, Other(), shape=(2,), predict=predict, input_convention="raw")
    data, noise = true_ends(mixture, process)
    x = data.sample(15, generator=generator(), dtype=torch.float64)
    logp = scoresde.log_prob(sde, x, prior=noise, rtol=1e-6, atol=1e-6)
    assert float((logp - data.log_prob(x)).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("shape", "solver"),
    kept(
        [
            *[(shape, "rk45") for shape in ((), (1,), (5,), (2, 3), (1, 4, 4), (2, 2, 2, 2))],
            ((), "rk4"),
            ((2, 3), "rk4"),
        ],
        lambda shape, solver: shape in ((), (5,), (2, 2, 2, 2)) if solver == "rk45" else shape,
    ),
)
def test_any_rank_batch_of_one_and_many(shape: tuple[int, ...], solver: str) -> None:
    means = torch.randn(3, *shape, generator=generator(9), dtype=torch.float64) if shape else None
    if means is None:  # scalars: a Gaussian network written out
        means = torch.zeros(1, 1, dtype=torch.float64)
    mixture = toy.GaussianMixture(means, 0.5)
    sde = scoresde.oracle(mixture, scoresde.RectifiedFlow())
    if not shape:
        inner = sde.net

        class Scalar(nn.Module):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return inner(x[:, None], t)[:, 0]

        sde = ScoreSDE(scoresde.RectifiedFlow(), Scalar(), shape=(), input_convention="raw")
    x = mixture.sample(4, generator=generator(), dtype=torch.float64)
    truth = mixture.log_prob(x)
    x = x.reshape(4, *shape)
    how = {"rtol": 1e-6, "atol": 1e-6} if solver == "rk45" else {"steps": 25}
    many = scoresde.log_prob(sde, x, solver=solver, **how)
    torch.testing.assert_close(many, truth, rtol=0, atol=1e-5 if solver == "rk45" else 1e-4)
    torch.testing.assert_close(
        scoresde.log_prob(sde, x, solver=solver, batch_size=3, **how), many, rtol=0, atol=1e-9
    )
    torch.testing.assert_close(
        scoresde.log_prob(sde, x[:1], solver=solver, **how), many[:1], rtol=0, atol=1e-9
    )


def test_standardization_enters_with_its_jacobian(process: Process) -> None:
    """A model that knows N(0, 1) and was standardized to N(m, s²) has exactly that density, in the
    units of the data.
    """
    m, s = (
        torch.tensor([3.0, -40.0], dtype=torch.float64),
        torch.tensor([0.01, 20.0], dtype=torch.float64),
    )
    low, _ = at(process, 0.0)
    start = math.hypot(*at(process, 0.0))
    sde = scoresde.oracle(toy.GaussianMixture(torch.zeros(1, 2), 1.0), process).double()
    sde.standardize(torch.stack([m - s, m + s]))
    x = m + s * torch.randn(20, 2, generator=generator(), dtype=torch.float64)
    wanted = torch.distributions.Normal(m * low / low, s * start).log_prob(x).sum(1)
    torch.testing.assert_close(
        scoresde.log_prob(sde, x, rtol=1e-9, atol=1e-9), wanted, rtol=0, atol=1e-7
    )
    prior = torch.distributions.Independent(
        torch.distributions.Normal(m, s * math.hypot(*at(process, 1.0))), 1
    )
    torch.testing.assert_close(
        scoresde.log_prob(sde, x, prior=prior, rtol=1e-9, atol=1e-9), wanted, rtol=0, atol=1e-7
    )


def test_model_density_integrates_to_one() -> None:
    """A trained network's density is a density, whatever it has learned: quadrature over a box
    that holds it.
    """
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=32)
    target = toy.GaussianMixture([[-1.0, 0.0], [1.5, 0.5]], [0.7, 1.0])
    scoresde.fit(sde, target, steps=100, progress=False, generator=generator())
    side = torch.linspace(-9, 9, 61)
    log_p = scoresde.log_prob(sde, torch.cartesian_prod(side, side), rtol=1e-4, atol=1e-4)
    total = log_p.double().exp().sum() * 0.3**2
    assert abs(float(total) - 1) < 1e-3


@pytest.mark.parametrize("trace", ["hutchinson", "hutchinson_gaussian"])
def test_hutchinson_is_unbiased(trace: str) -> None:
    """Mean over 400 runs of one point within 4 standard errors (false alarm 6e-5 a point, 5
    points).
    """
    mixture = MIXTURES["16-D"]
    sde = scoresde.oracle(mixture, scoresde.VPSDE())
    x = mixture.sample(5, generator=generator()).float()
    how = {"steps": 10}
    exact = scoresde.log_prob(sde, x, **how)
    how |= {"trace": trace, "probes": 2}
    many = scoresde.log_prob(sde, x.repeat(400, 1), generator=generator(1), **how).reshape(400, 5)
    # log p is linear in the trace estimate along the same path
    error = many.std(0) / 20
    assert bool((error > 0.01).all())
    assert bool(((many.mean(0) - exact).abs() < 4 * error).all())
    again = scoresde.log_prob(sde, x.repeat(400, 1), generator=generator(1), batch_size=777, **how)
    torch.testing.assert_close(again.reshape(400, 5), many, rtol=0, atol=1e-4)


def test_a_single_probe_has_no_standard_error_and_an_exact_trace_none_to_state() -> None:
    mixture = MIXTURES["8 Gaussians"]
    sde, x = scoresde.oracle(mixture, scoresde.VPSDE()), mixture.sample(3, generator=generator())
    for trace in ("hutchinson", "hutchinson_gaussian"):
        found = scoresde.likelihood(sde, x, trace=trace, probes=1, steps=8)
        assert bool(found.stderr.isnan().all())
    assert bool((scoresde.likelihood(sde, x, steps=8).stderr == 0).all())


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
def test_as_many_signs_as_dimensions_are_the_exact_trace(dim: int) -> None:
    """They cost as much; in 2-D two signs had no spread to see half of the time, and ±2 errors
    held 50%.
    """
    mixture = toy.GaussianMixture(torch.randn(4, dim, generator=generator(dim)), 0.5)
    sde, x = scoresde.oracle(mixture, scoresde.VPSDE()), mixture.sample(20, generator=generator())
    exact = scoresde.log_prob(sde, x, steps=10)
    for probes in (dim, dim + 1, 16):
        found = scoresde.likelihood(sde, x, trace="hutchinson", probes=probes, steps=10)
        assert torch.equal(found.log_prob, exact)
        assert bool((found.stderr == 0).all())
    if dim > 1:
        some = scoresde.log_prob(sde, x, trace="hutchinson", probes=dim - 1, steps=10)
        assert float((some - exact).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("trace", "dim", "counts"),
    kept(
        [
            ("hutchinson_gaussian", 2, (1, 2, 4, 16, 64)),
            ("hutchinson_gaussian", 8, (1, 2, 4, 16, 64)),
            ("hutchinson", 8, (1, 2, 4)),
            ("hutchinson", 80, (1, 4, 16)),
        ],
        lambda trace, dim, counts: dim == 8,
    ),
)
def test_probes_are_independent_and_their_error_is_stated(
    trace: str, dim: int, counts: tuple[int, ...]
) -> None:
    """Against exact traces of the same steps, 400 points: the RMS error falls as 1/√probes, to 25%,
    and ±2 errors hold ≥ 82%. What 64 equal probes give: an RMS 8 times too large, coverage 0."""
    means = torch.randn(5, dim, generator=generator(dim), dtype=torch.float64)
    mixture = toy.GaussianMixture(means, torch.linspace(0.3, 0.8, 5, dtype=torch.float64))
    sde = scoresde.oracle(mixture, scoresde.VPSDE()).double()
    x = mixture.sample(400, generator=generator(), dtype=torch.float64)
    how = {"solver": "heun", "steps": 8, "errors": False}
    exact = scoresde.log_prob(sde, x, **how)
    rms = {}
    for probes in counts:
        found = scoresde.likelihood(
            sde, x, trace=trace, probes=probes, generator=generator(3), **how
        )
        error = (found.log_prob - exact).abs()
        rms[probes] = float(error.square().mean().sqrt())
        held = float((error <= 2 * found.stderr).double().mean())
        assert rms[probes] * math.sqrt(probes) == pytest.approx(rms[1], rel=0.25)
        assert probes == 1 or 0.82 <= held <= 0.98


@pytest.mark.parametrize("stream", [PRIOR, PATH, PROBE])
def test_later_draws_leave_earlier_ones_alone(stream: int) -> None:
    """Kept without a copy, over more draws than are made ahead at once."""
    noise, again = (Noise(5, stream, 3, 70, 2, torch.empty(0)) for _ in range(2))
    kept = [noise() for _ in range(80)]
    assert len({float(x[0, 0]) for x in kept}) == 80
    assert all(torch.equal(x, again()) for x in kept)


MANY = [(1, (1,)), (1, (3, 4, 4, 2)), (6, (1,)), (6, (8,)), (6, (1, 8, 8)), (6, (3, 4, 4, 2))]


@pytest.mark.parametrize(
    ("count", "shape", "process"),
    [
        pytest.param(*case, name, marks=() if i % 3 == j and i % 2 else (pytest.mark.slow,))
        for i, case in enumerate(MANY)
        for j, name in enumerate(("vp", "ve", "rectified"))
    ],
    indirect=["process"],
)
def test_log_prob_in_many_dimensions(count: int, shape: tuple[int, ...], process: Process) -> None:
    """|Δ log p| ≤ 1e-3 in float32 at the default tolerance, ≤ 1e-5 in float64 at 1e-7; worst of 12
    points.
    """
    means = torch.randn(count, *shape, generator=generator(math.prod(shape)), dtype=torch.float64)
    mixture = toy.GaussianMixture(means, torch.linspace(0.3, 0.7, count, dtype=torch.float64))
    data, noise = true_ends(mixture, process)
    sde = scoresde.oracle(mixture, process)
    x = data.sample(12, generator=generator(), dtype=torch.float64)
    tight = scoresde.log_prob(sde, x, prior=noise, rtol=1e-7, atol=1e-7)
    assert float((tight - data.log_prob(x)).abs().max()) <= 1e-5
    single = scoresde.log_prob(sde, x.float(), prior=noise)
    assert float((single.double() - data.log_prob(x.float().double())).abs().max()) <= 1e-3


@pytest.mark.slow  # the page on solvers prints it, too
@pytest.mark.parametrize("name", MIXTURES)
def test_a_tolerance_means_something_over_six_decades(name: str) -> None:
    """From 1e-3 to 1e-9 the worst error of 40 points stays below 10 and above 1/20 of the
    tolerance.
    """
    mixture, process = MIXTURES[name], scoresde.VPSDE()
    sde = scoresde.oracle(mixture, process).double()
    x = mixture.sample(40, generator=generator(), dtype=torch.float64)
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        found = scoresde.likelihood(
            sde, x, prior=mixture.perturb(*at(process, 1.0)), rtol=tolerance, atol=tolerance
        )
        error = (found.log_prob - mixture.log_prob(x)).abs()
        assert tolerance / 20 <= float(error.max()) <= 10 * tolerance
        covered = (error <= found.solver_error).double().mean()
        assert float(covered) >= 0.95
        most = 30 if tolerance > 3e-8 else 100
        assert float(found.solver_error.mean()) <= most * float(error.mean())


@pytest.fixture(scope="module")
def trained() -> list[tuple[ScoreSDE, Tensor, Tensor]]:
    """Small networks, as rough as training leaves them; 40 points, and log p of each at 1e-8 in
    float64.
    """
    means = torch.randn(6, 8, generator=generator(8)) * 1.5
    found = []
    for target, process in (
        (toy.Moons(), "vp"),
        (toy.GaussianMixture(means, torch.linspace(0.2, 0.6, 6)), "rectified"),
    ):
        x = target.sample(40, generator=generator(7)).float()
        torch.manual_seed(0)
        sde = scoresde.build(process, "mlp", shape=x.shape[1:], width=48)
        scoresde.fit(sde, target, steps=250, progress=False, generator=generator())
        double = copy.deepcopy(sde).double()
        how = {"rtol": 1e-8, "atol": 1e-8, "batch_size": 100}
        found.append((sde.eval(), x, scoresde.log_prob(double, x.double(), **how)))
    return found


@pytest.mark.parametrize(
    ("solver", "tolerance"),
    kept(
        itertools.product(("adams", "bosh3", "rk45", "tsit5", "dop853"), (1e-3, 1e-4, 1e-5, 1e-6)),
        lambda solver, tolerance: (solver, tolerance) == ("adams", 1e-5),
    ),
)
def test_solver_error_holds_on_trained_networks(
    solver: str, tolerance: float, trained: list[tuple[ScoreSDE, Tensor, Tensor]]
) -> None:
    """At 9 points of 10 in float32 and float64, and at most 30 times too large in the median."""
    if solver == "bosh3" and tolerance < 1e-5:
        pytest.skip("hundreds of steps")
    for sde, x, exact in trained:
        check_solver_error(sde, x, exact, solver=solver, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("solver", "steps"),
    kept(
        [("adams", 20), ("adams", 50), ("adams", 200), ("euler", 50), ("heun", 20), ("rk4", 15)],
        lambda solver, steps: steps == 20,
    ),
)
def test_solver_error_holds_for_fixed_steps(
    solver: str, steps: int, trained: list[tuple[ScoreSDE, Tensor, Tensor]]
) -> None:
    """As with a tolerance."""
    for sde, x, exact in trained:
        check_solver_error(sde, x, exact, solver=solver, steps=steps)


def check_solver_error(sde: ScoreSDE, x: Tensor, exact: Tensor, **how: Any) -> None:
    for model in (sde, copy.deepcopy(sde).double()):
        found = scoresde.likelihood(model, x.to(model.state_dtype), **how)
        error = (found.log_prob - exact).abs()
        assert float((error <= found.solver_error).double().mean()) >= 0.9
        assert float((found.solver_error / error.clamp_min(1e-9)).median()) <= 30


def test_solver_error_is_ten_times_the_difference_to_a_more_exact_solve() -> None:
    """By "adams" at a tenth of the tolerance and at most 1e-5, or with a step more in the middle
    of each: on an even grid in φ the even grid of twice the steps.
    """
    mixture = MIXTURES["8 Gaussians"]
    sde = scoresde.oracle(mixture, scoresde.VPSDE()).double()
    x = mixture.sample(10, generator=generator(), dtype=torch.float64)
    for how, check in [
        ({"solver": "rk45", "rtol": 1e-5, "atol": 1e-4}, {"rtol": 1e-6, "atol": 1e-5}),
        ({"solver": "adams", "rtol": 1e-2, "atol": 1e-7}, {"rtol": 1e-5, "atol": 1e-8}),
        (
            {"solver": "heun", "steps": 7, "spacing": "arc"},
            {"solver": "heun", "steps": 14, "spacing": "arc"},
        ),
    ]:
        found = scoresde.likelihood(sde, x, **how)
        exact = scoresde.log_prob(sde, x, **check)
        difference = (found.log_prob - exact).abs()
        torch.testing.assert_close(found.solver_error, 10 * difference, rtol=1e-3, atol=1e-11)


@pytest.mark.parametrize("given", [{}, {"rtol": 1e-3}, {"rtol": None, "atol": "1e-3"}])
def test_a_solver_without_tolerances_has_no_solver_error(given: dict[str, Any]) -> None:
    """Neither is there anything to tighten nor a grid to refine."""

    class Mine(Solver):
        ode = True
        steps = None

        def __init__(self) -> None:
            vars(self).update(given)

        def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:
            return scoresde.SOLVERS.build("adams").run(problem, z)

    found = scoresde.likelihood(small(), torch.ones(2, 2).double(), solver=Mine())
    assert bool(found.solver_error.isnan().all())
    assert bool(found.log_prob.isfinite().all())


def test_mates_do_not_matter_to_a_likelihood() -> None:
    class Elementwise(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(3 * x) * 0.8 - 0.3 * x * t[:, None]

    sde = ScoreSDE(scoresde.VPSDE(), Elementwise(), shape=(3,))
    x = torch.randn(64, 3, generator=generator())
    other = 4 * torch.randn(64, 3, generator=generator(1))
    other[17] = x[17]
    for how in ({}, {"solver": "rk4", "steps": 10}):
        assert torch.equal(
            scoresde.log_prob(sde, x, **how)[17], scoresde.log_prob(sde, other, **how)[17]
        )


def test_latent_is_where_the_flow_ends_and_sampling_comes_back() -> None:
    mixture = MIXTURES["8 Gaussians"]
    sde = scoresde.oracle(mixture, scoresde.VPSDE()).double()
    how = {"rtol": 1e-8, "atol": 1e-8}
    drawn = scoresde.solve(sde, 50, generator=generator(), **how)
    found = scoresde.likelihood(sde, drawn.x[-1], errors=False, **how)
    torch.testing.assert_close(found.latent, drawn.x[0], rtol=0, atol=1e-6)
    assert found.nfe.shape == (50,)


@pytest.mark.parametrize(
    ("process", "mixture"),
    kept(PAIRS, lambda name, target: name == "vp" and target == "8 Gaussians"),
    indirect=True,
)
def test_prior_gap_is_the_only_error_left_and_is_stated(
    process: Process, mixture: toy.GaussianMixture
) -> None:
    """Without `prior=`, log p is off by log N(x_1) − log p(x_1); `prior_gap` covers that, not
    twice as large on average.
    """
    data, noise = true_ends(mixture, process)
    sde = scoresde.oracle(mixture, process).double()
    x = data.sample(25, generator=generator(), dtype=torch.float64)
    found = scoresde.likelihood(sde, x, rtol=1e-6, atol=1e-6)
    gap = process.prior(mixture.shape).log_prob(found.latent) - noise.log_prob(found.latent)
    torch.testing.assert_close(found.log_prob - data.log_prob(x), gap, rtol=0, atol=1e-5)
    assert bool((gap.abs() <= found.prior_gap + 1e-8).all())
    assert float(found.prior_gap.mean()) <= 2 * float(gap.abs().mean()) + 1e-8
    assert bool((scoresde.likelihood(sde, x[:2], prior=noise, steps=8).prior_gap == 0).all())


@pytest.mark.parametrize(("name", "dim"), rotated(["vp", "vp that ends early", "ve"], [1, 2, 8]))
def test_prior_gap_holds_on_standardized_data(name: str, dim: int) -> None:
    """The lowest orders vanish there. 95% of points; the default VP's is at most a fifth too large
    on average.
    """
    process = {"vp": scoresde.VPSDE(), "ve": scoresde.VESDE()}.get(
        name, scoresde.VPSDE(beta_max=6.0)
    )
    means = torch.randn(4, dim, generator=generator(dim), dtype=torch.float64)
    means, std = means - means.mean(0), torch.linspace(0.1, 0.4, 4, dtype=torch.float64)
    scale = (means.square().mean() + std.square().mean()).sqrt()
    mixture = toy.GaussianMixture(means / scale, std / scale)
    sde = scoresde.oracle(mixture, process).double()
    x = mixture.sample(100, generator=generator(), dtype=torch.float64)
    found = scoresde.likelihood(sde, x, rtol=1e-6, atol=1e-6)
    ours = process.prior(mixture.shape).log_prob(found.latent)
    gap = (ours - mixture.perturb(*at(process, 1.0)).log_prob(found.latent)).abs()
    assert float((gap <= found.prior_gap + 1e-8).double().mean()) >= 0.95
    assert name != "vp" or float(found.prior_gap.mean()) <= 1.2 * float(gap.mean())


@pytest.mark.parametrize("process", some(PROCESSES, "vp"), indirect=True)
def test_samples_come_with_the_log_prob_that_is_found_for_them(process: Process) -> None:
    """To 10 × the tolerance, and they are the samples that `sample` draws; encode and decode
    likewise.
    """
    mixture = MIXTURES["8 Gaussians"]
    sde = scoresde.oracle(mixture, process).double()
    tolerance = 1e-5
    how = {"rtol": tolerance, "atol": tolerance}
    x, value = scoresde.sample_and_log_prob(sde, 30, generator=generator(), **how)
    torch.testing.assert_close(
        value, scoresde.log_prob(sde, x, **how), rtol=0, atol=10 * tolerance
    )
    torch.testing.assert_close(
        x, scoresde.sample(sde, 30, generator=generator(), **how), rtol=0, atol=30 * tolerance
    )
    torch.testing.assert_close(
        scoresde.decode(sde, scoresde.encode(sde, x, **how), **how), x, rtol=0, atol=30 * tolerance
    )
    again, parts = scoresde.sample_and_log_prob(
        sde, 30, generator=generator(), batch_size=17, **how
    )
    torch.testing.assert_close(again, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts, value, rtol=0, atol=1e-11)


SMALL = {"width": 16, "depth": 2}


def small(process: str = "vp", **options: object) -> ScoreSDE:
    """A network with some structure in it, in float64."""
    torch.manual_seed(3)
    sde = scoresde.build(process, "mlp", shape=(2,), **SMALL, **options).double()
    for p in sde.net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return sde.eval()


@pytest.mark.parametrize(
    ("backbone", "predict", "solver", "steps"),
    kept(
        [
            *itertools.product(["mlp"], ["edm"], ["adams", "rk45"], [20]),
            *itertools.product(["test_linear"], ["v"], ["adams", "rk45"], [20]),
            ("mlp", "edm", "adams", None),
            ("test_linear", "v", "rk45", None),
        ],
        lambda net, predict, solver, steps: (
            steps is not None and (net, solver) in (("mlp", "adams"), ("test_linear", "rk45"))
        ),
    ),
)
def test_gradients_equal_finite_differences(
    solver: str, steps: int | None, predict: str, backbone: str
) -> None:
    """Of log p with respect to x and to every weight along a random direction, to 1e-4."""
    torch.manual_seed(3)
    sde = (
        scoresde.build(
            "vp", backbone, shape=(2,), predict=predict, **(SMALL if backbone == "mlp" else {})
        )
        .double()
        .eval()
    )
    for p in sde.net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    how = (
        {"solver": solver, "steps": steps}
        if steps
        else {"solver": solver, "rtol": 1e-8, "atol": 1e-8}
    )
    x = torch.randn(2, 2, generator=generator(), dtype=torch.float64, requires_grad=True)
    weights = list(sde.net.parameters())
    value = scoresde.log_prob(sde, x, differentiable=True, **how)
    gradients = torch.autograd.grad(value.sum(), [x, *weights])
    directions = [
        torch.randn(p.shape, generator=generator(9), dtype=p.dtype) for p in (x, *weights)
    ]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip((x, *weights), directions, strict=True):
                p.add_(d, alpha=sign * 1e-4)
            ends.append(scoresde.log_prob(sde, x.detach(), **how).sum())
            for p, d in zip((x, *weights), directions, strict=True):
                p.sub_(d, alpha=sign * 1e-4)
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-4, rtol=1e-4, atol=1e-4)


def test_a_graph_only_where_one_is_wanted() -> None:
    sde, x = small(), torch.randn(4, 2, dtype=torch.float64)
    assert not scoresde.log_prob(sde, x, steps=8).requires_grad
    with torch.no_grad():
        assert not scoresde.log_prob(sde, x, differentiable=True, steps=8).requires_grad
        assert not scoresde.log_prob(sde, x.clone().requires_grad_(), steps=8).requires_grad
    with torch.inference_mode():
        assert not scoresde.log_prob(sde, x, differentiable=True, steps=8).requires_grad
    assert scoresde.log_prob(sde, x.clone().requires_grad_()).requires_grad


def test_error_bars_have_no_graph_even_where_the_prior_is_trained() -> None:
    mean = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    prior = torch.distributions.MultivariateNormal(mean, torch.eye(2, dtype=torch.float64))
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    found = scoresde.likelihood(small(), x, prior=prior, steps=8)
    assert found.log_prob.requires_grad
    assert not any(part.requires_grad for part in (found.solver_error, found.prior_gap))


def test_fine_tuning_by_maximum_likelihood_trains_the_raw_weights() -> None:
    """20 steps on a Gaussian raise its log-likelihood by more than 0.3 nats; the averaged network
    stays as it was.
    """
    torch.manual_seed(0)
    sde = scoresde.build("rectified", "mlp", shape=(2,), width=16, depth=2)
    data = torch.randn(256, 2, generator=generator()) * torch.tensor([1.0, 0.1]) + torch.tensor(
        [1.0, 0.0]
    )
    scoresde.fit(sde, data, steps=2, progress=False, lr=1e-6)
    data = sde.from_data(data).roll(1, 1) * 0.3  # another law, in standardized units
    before = [p.clone() for p in sde.ema.parameters()]
    sde.train()
    optimizer, seen = torch.optim.Adam(sde.net.parameters(), lr=1e-2), []
    for _ in range(20):
        loss = -scoresde.log_prob(sde, data, differentiable=True, steps=8).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < seen[0] - 0.3
    assert all(torch.equal(a, b) for a, b in zip(before, sde.ema.parameters(), strict=True))
    assert sde.training


def test_rows_that_are_not_finite_are_named_or_answered_with_nan() -> None:
    sde, x = small(), torch.randn(6, 2, dtype=torch.float64, generator=generator())
    whole = scoresde.log_prob(sde, x, steps=8)
    x[1, 0], x[4, 1] = math.nan, math.inf
    with pytest.raises(ValueError, match=r"2 of 6 rows: 1, 4"):
        scoresde.log_prob(sde, x)
    found = scoresde.likelihood(sde, x, invalid="nan", steps=8)
    keep = torch.tensor([0, 2, 3, 5])
    torch.testing.assert_close(found.log_prob[keep], whole[keep], rtol=0, atol=1e-12)
    assert found.log_prob.isnan().nonzero()[:, 0].tolist() == [1, 4]
    assert found.latent.isnan().any(1).nonzero()[:, 0].tolist() == [1, 4]


class Middle(nn.Module):
    """A perceptron with something in the middle."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 16), middle, nn.Linear(16, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.middle(torch.tanh(self.first(torch.cat([x, t[:, None]], 1)))))


@pytest.mark.parametrize(
    "middle", [nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Identity()], ids=lambda m: type(m).__name__
)
def test_gradients_of_a_model_in_train_mode_are_those_of_eval_mode(middle: nn.Module) -> None:
    """backward() comes when the model is in train mode again, and computes activations anew."""
    torch.manual_seed(0)
    sde = ScoreSDE(scoresde.VPSDE(), Middle(middle), shape=(2,)).double()
    x = torch.randn(4, 2, generator=generator(), dtype=torch.float64, requires_grad=True)
    found = []
    for mode in (True, False):
        value = scoresde.log_prob(sde.train(mode), x, differentiable=True, steps=12)
        found.append(torch.autograd.grad(value.sum(), [x, *sde.net.parameters()]))
        assert sde.training is mode
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_weights_that_moved_before_backward_are_noticed() -> None:
    sde = small()
    value = scoresde.log_prob(
        sde, torch.ones(1, 2, dtype=torch.float64), differentiable=True, steps=4
    )
    with torch.no_grad():
        sde.net.out.weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed between log_prob and backward"):
        value.sum().backward()


def test_a_gradient_to_x_alone_is_that_of_the_average_and_weights_need_train_mode() -> None:
    """log p does not depend on whether x requires grad; only `differentiable` in train mode means
    the raw weights.
    """
    sde = small()
    sde.ema = small().net.requires_grad_(False)
    with torch.no_grad():
        sde.ema.out.weight.mul_(1.5)
    sde.train()
    x = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    plain = scoresde.log_prob(sde, x, steps=12)
    assert torch.equal(
        scoresde.log_prob(sde, x.clone().requires_grad_(), steps=12).detach(), plain
    )
    assert not torch.allclose(
        scoresde.log_prob(sde, x, differentiable=True, steps=12).detach(), plain
    )
    with pytest.raises(
        ValueError, match=r"no weight of the network in use requires grad: call sde.train()"
    ):
        scoresde.log_prob(sde.eval(), x, differentiable=True)


def test_the_raw_network_is_traced_as_it_is() -> None:
    """A layer of the raw network was replaced, the average's was not: the closed form serves only
    the latter.
    """
    sde = small()
    sde.ema = small().net.requires_grad_(False)

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 1.5 * super().forward(x)

    layer = Scaled(16, 2).double()
    layer.load_state_dict(sde.net.out.state_dict())
    sde.net.out = layer
    assert (sde.traces(), sde.traces(raw=True)) == (True, False)
    x = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    found = scoresde.log_prob(sde.train(), x, differentiable=True, steps=20)
    alone = ScoreSDE(sde.process, sde.net, shape=(2,)).double().eval()
    torch.testing.assert_close(
        found.detach(), scoresde.log_prob(alone, x, steps=20), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    "validate", [True, False]
)  # torch.compile turns it off for a whole process
def test_a_prior_gives_one_number_a_sample(validate: bool) -> None:
    sde, x, law = small(), torch.zeros(2, 2, dtype=torch.float64), torch.distributions
    for prior in (
        law.Normal(0.0, 1.0, validate_args=validate),
        law.MultivariateNormal(torch.zeros(4, 2), torch.eye(2), validate_args=validate),
        law.MultivariateNormal(torch.zeros(3), torch.eye(3), validate_args=validate),
    ):
        with pytest.raises(ValueError, match="prior must be one distribution of samples of shape"):
            scoresde.log_prob(sde, x, prior=prior)

    class Two:
        def log_prob(self, x: torch.Tensor) -> torch.Tensor:
            return -0.5 * x.square()

    with pytest.raises(ValueError, match=r"prior\.log_prob returned shape"):
        scoresde.log_prob(sde, x, prior=Two())


@pytest.mark.parametrize("far", some([5.0, 20.0, 50.0], 20.0))
def test_error_bars_hold_for_outliers(far: float) -> None:
    """In float32 a far latent magnifies the state's error: log p changes by |z_1| times that."""
    mixture = MIXTURES["8 Gaussians"]
    sde = scoresde.oracle(mixture, scoresde.RectifiedFlow())
    x = far * torch.nn.functional.normalize(torch.randn(20, 2, generator=generator()))
    found = scoresde.likelihood(sde, x)
    error = (found.log_prob.double() - mixture.log_prob(x.double())).abs()
    assert float((error <= found.solver_error).double().mean()) >= 0.9


def test_a_failing_batch_says_which_samples_it_holds() -> None:
    class Spoiled(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.where(x > 3, math.nan, -x)

    sde, x = ScoreSDE(scoresde.VPSDE(), Spoiled(), shape=(2,)), torch.zeros(6, 2)
    x[5] = 4.0
    with pytest.raises(scoresde.SolverError, match="the batch of samples 4 to 5") as caught:
        scoresde.log_prob(sde, x, batch_size=2)
    assert caught.value.first == 4
    assert caught.value.failed.tolist() == [False, True]


def test_numpy_rows_that_are_not_finite_are_answered_too() -> None:
    x = np.zeros((3, 2))
    x[1] = math.nan
    assert scoresde.log_prob(small(), x, invalid="nan").isnan().tolist() == [False, True, False]


def test_dropout_does_not_act_in_a_likelihood_and_the_mode_comes_back() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drop = nn.Linear(2, 2), nn.Dropout(0.5)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.drop(self.layer(x))

    sde = ScoreSDE(scoresde.VPSDE(), Dropping(), shape=(2,)).train()
    x = torch.randn(5, 2, generator=generator())
    assert torch.equal(scoresde.log_prob(sde, x), scoresde.log_prob(sde, x))
    assert sde.training
    assert sde.net.drop.training


# ------------------------------------------------------------------ constant features


class Padded(nn.Module):
    """The denoiser of some elements of a sample; what it says in the place of the others depends
    on all that it is shown.
    """

    def __init__(self, inner: nn.Module, free: list[int]) -> None:
        super().__init__()
        self.inner, self.free = inner, free

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        flat = x.flatten(1)
        out = 5 + flat.sum(1, keepdim=True) + 3 * flat
        return out.index_copy(
            1, torch.tensor(self.free), self.inner(flat[:, self.free], t)
        ).reshape(x.shape)


def constants(
    shape: tuple[int, ...], values: dict[int, float]
) -> tuple[ScoreSDE, ScoreSDE, list[int]]:
    """A model with constants along the first axis, and the exact one of the elements that vary,
    standardized alike.
    """
    size = math.prod(shape) // shape[0]
    free = [i for i in range(math.prod(shape)) if i // size not in values]
    means = torch.randn(3, len(free), generator=generator(1), dtype=torch.float64)
    process = scoresde.VPSDE()
    bare = scoresde.oracle(toy.GaussianMixture(means, 0.3), process)
    whole = ScoreSDE(process, Padded(bare.net, free), shape=shape, input_convention="raw")
    scale = torch.linspace(0.5, 20, shape[0], dtype=torch.float64)
    mean = torch.linspace(-3, 8, shape[0], dtype=torch.float64)
    for i, value in values.items():
        scale[i], mean[i] = 0.0, value
    for mine, value in ((whole.mean, mean), (whole.scale, scale)):
        mine.copy_(value.reshape(mine.shape))
    bare.mean.copy_(whole.mean.expand(shape).flatten()[free])
    bare.scale.copy_(whole.scale.expand(shape).flatten()[free])
    return whole, bare, free


@pytest.mark.parametrize(
    ("shape", "values"),
    kept(
        [
            ((3,), {1: 7.0}),
            ((5,), {0: 0.0, 2: 1e6, 4: 1e-30}),
            ((6,), dict.fromkeys(range(1, 6), -0.3)),
            ((3, 2, 2), {1: 0.1}),
        ],
        lambda shape, values: shape == (3,),
    ),
)
def test_a_constant_feature_is_left_out_everywhere(
    shape: tuple[int, ...], values: dict[int, float]
) -> None:
    """All verbs answer for the others, bit for bit, as a model that never had it."""
    whole, bare, free = constants(shape, values)

    def without(x: Tensor) -> Tensor:
        """The elements that vary, once the others are seen to be their constants."""
        full = whole.mean.float().expand(shape).flatten()
        rest = [i for i in range(len(full)) if i not in free]
        assert torch.equal(x.flatten(1)[:, rest], full[rest].expand(len(x), -1))
        return x.flatten(1)[:, free]

    for how in (
        {},
        {"solver": "rk45"},
        {"solver": "heun", "steps": 10},
        {"solver": "em", "steps": 20},
    ):
        x = scoresde.sample(whole, 5, generator=generator(), **how)  # type: ignore[arg-type]
        wanted = scoresde.sample(bare, 5, generator=generator(), **how)  # type: ignore[arg-type]
        assert torch.equal(without(x), wanted)
    y = without(x)
    latent = scoresde.encode(whole, x, steps=10)
    assert torch.equal(without(latent), scoresde.encode(bare, y, steps=10))
    assert torch.equal(
        without(scoresde.decode(whole, latent + 0, steps=10)),
        scoresde.decode(bare, without(latent), steps=10),
    )
    for trace in ("exact", "hutchinson"):
        mine, theirs = (
            scoresde.likelihood(m, v, trace=trace, generator=generator(), steps=10)
            for m, v in ((whole, x), (bare, y))
        )
        for name in ("log_prob", "stderr", "prior_gap"):
            torch.testing.assert_close(
                getattr(mine, name), getattr(theirs, name), rtol=1e-4, atol=1e-4
            )
        without(mine.latent)
    for verb in (scoresde.elbo, scoresde.vlb):
        bounds = [
            verb(m, v, generator=generator(), draws=4).log_prob for m, v in ((whole, x), (bare, y))
        ]  # type: ignore[operator]
        torch.testing.assert_close(*bounds)
    bits = [scoresde.bits_per_dim(m, v, None, steps=10).bits for m, v in ((whole, x), (bare, y))]
    torch.testing.assert_close(*bits)
    drawn = [scoresde.sample_and_log_prob(m, 4, generator=generator()) for m in (whole, bare)]
    assert torch.equal(without(drawn[0][0]), drawn[1][0])
    torch.testing.assert_close(drawn[0][1], drawn[1][1])
    for view in ("score", "velocity", "drift"):
        rates = [getattr(m, view)(v, 0.4) for m, v in ((whole, x), (bare, y))]
        torch.testing.assert_close(rates[0].flatten(1)[:, free], rates[1])
        assert int((rates[0].flatten(1) != 0).sum(1).max()) <= len(free)
    x0, eps = whole.denoise(x, 0.4)
    torch.testing.assert_close(without(x0), bare.denoise(y, 0.4)[0])
    assert eps.shape == x.shape
    law = scoresde.Distribution(whole)
    torch.testing.assert_close(law.log_prob(x), scoresde.log_prob(bare, y))


def test_a_point_off_a_constant_has_density_0() -> None:
    whole, bare, free = constants((4,), {1: 7.0, 3: 0.0})
    x = scoresde.sample(whole, 4, generator=generator(), steps=10)
    x[1, 1], x[2, 3], x[3, 1] = 7.1, 1e-20, 7.000001
    wanted = scoresde.log_prob(bare, x[:, free], steps=10)
    wanted[1:3] = -math.inf
    torch.testing.assert_close(scoresde.log_prob(whole, x, steps=10), wanted)
    assert scoresde.elbo(whole, x).log_prob.isneginf().tolist() == [False, True, True, False]
    assert scoresde.vlb(whole, x, steps=4).log_prob.isneginf().tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert scoresde.bits_per_dim(whole, x, None, steps=10).bits.isinf().tolist() == [
        False,
        True,
        True,
        False,
    ]
    x.requires_grad_()
    scoresde.log_prob(whole, x, steps=10)[0].backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    with pytest.raises(ValueError, match=r"features \[1, 3\] are constant"):
        scoresde.log_prob(whole, x.detach(), prior=toy.GaussianMixture(torch.zeros(1, 4), 1.0))
