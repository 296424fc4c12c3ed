"""log p against closed forms: every process, precision, rank and trace; conditions, units, prior gap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import MIXTURES, at, generator
from scoresde import Process, ScoreSDE, toy
from scoresde.trace import exact_trace, hutchinson_trace


def true_ends(mixture: toy.GaussianMixture, process: Process) -> tuple[toy.GaussianMixture, toy.GaussianMixture]:
    """The mixture's law at t = 0 (smoothed by σ_min where there is one) and at t = 1."""
    return mixture.perturb(*at(process, 0.0)), mixture.perturb(*at(process, 1.0))


def test_log_prob_is_the_closed_form(process: Process, mixture: toy.GaussianMixture) -> None:
    """With the true p(x_1) as prior: 1e-5 nats in float64 at tight tolerance, 1e-3 in float32 at defaults; worst of 300."""
    data, noise = true_ends(mixture, process)
    sde = scoresde.oracle(mixture, process)
    x = data.sample(300, generator=generator(), dtype=torch.float64)
    tight = scoresde.log_prob(sde, x, prior=noise, rtol=1e-9, atol=1e-9)
    assert tight.dtype == torch.float64
    assert float((tight - data.log_prob(x)).abs().max()) < 1e-5
    single = scoresde.log_prob(sde, x.float(), prior=noise)
    assert single.dtype == torch.float32
    assert float((single.double() - data.log_prob(x.float().double())).abs().max()) < 1e-3


@pytest.mark.parametrize("predict", ["x0", "eps", "v", "score"])
def test_log_prob_does_not_depend_on_what_the_network_predicts(process: Process, predict: str) -> None:
    """A singular pair at σ = 0 (x0) starts a hair above and says it costs O(1e-8); here it must stay below 1e-5."""
    mixture = MIXTURES["8 Gaussians"]
    if scoresde.prediction.singular(predict, process, process.phi_max):
        pytest.skip("refused at construction")
    inner = scoresde.oracle(mixture, process)

    class Other(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            phi = process.phi(t.clamp_min(1e-30))
            z = x / process.radius(t)[:, None]
            x0, eps = inner.coefficients(phi).solve(z, inner.net(x, t))
            c = scoresde.prediction.coefficients(predict, process, phi)
            return c.a * x0 + c.b * eps

    sde = ScoreSDE(process, Other(), shape=(2,), predict=predict, sees="raw")
    data, noise = true_ends(mixture, process)
    x = data.sample(30, generator=generator(), dtype=torch.float64)
    logp = scoresde.log_prob(sde, x, prior=noise, rtol=1e-8, atol=1e-8)
    assert float((logp - data.log_prob(x)).abs().max()) < 1e-5


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (1, 4, 4), (2, 2, 2, 2)])
@pytest.mark.parametrize("solver", ["rk45", "rk4"])
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

        sde = ScoreSDE(scoresde.RectifiedFlow(), Scalar(), shape=(), sees="raw")
    x = mixture.sample(7, generator=generator(), dtype=torch.float64)
    truth = mixture.log_prob(x)
    x = x.reshape(7, *shape)
    how = {"rtol": 1e-9, "atol": 1e-9} if solver == "rk45" else {"steps": 100}
    many = scoresde.log_prob(sde, x, solver=solver, **how)
    torch.testing.assert_close(many, truth, rtol=0, atol=1e-6 if solver == "rk45" else 1e-4)
    for batch_size in (1, 3):
        torch.testing.assert_close(
            scoresde.log_prob(sde, x, solver=solver, batch_size=batch_size, **how), many, rtol=0, atol=1e-9
        )
    torch.testing.assert_close(scoresde.log_prob(sde, x[:1], solver=solver, **how), many[:1], rtol=0, atol=1e-9)


def test_standardization_enters_with_its_jacobian(process: Process) -> None:
    """A model that knows N(0, 1) and was standardized to N(m, s²) has exactly that density, in the units of the data."""
    m, s = torch.tensor([3.0, -40.0], dtype=torch.float64), torch.tensor([0.01, 20.0], dtype=torch.float64)
    low, _ = at(process, 0.0)
    start = math.hypot(*at(process, 0.0))
    sde = scoresde.oracle(toy.GaussianMixture(torch.zeros(1, 2), 1.0), process).double()
    sde.standardize(torch.stack([m - s, m + s]))
    x = m + s * torch.randn(20, 2, generator=generator(), dtype=torch.float64)
    wanted = torch.distributions.Normal(m * low / low, s * start).log_prob(x).sum(1)
    torch.testing.assert_close(scoresde.log_prob(sde, x, rtol=1e-9, atol=1e-9), wanted, rtol=0, atol=1e-7)
    prior = torch.distributions.Independent(torch.distributions.Normal(m, s * math.hypot(*at(process, 1.0))), 1)
    torch.testing.assert_close(scoresde.log_prob(sde, x, prior=prior, rtol=1e-9, atol=1e-9), wanted, rtol=0, atol=1e-7)


def test_model_density_integrates_to_one() -> None:
    """A trained network's density is a density, whatever it has learned: quadrature over a box that holds it."""
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=32)
    target = toy.GaussianMixture([[-1.0, 0.0], [1.5, 0.5]], [0.7, 1.0])
    scoresde.fit(sde, target, steps=300, progress=False, generator=generator())
    side = torch.linspace(-12, 12, 121)
    total = scoresde.log_prob(sde, torch.cartesian_prod(side, side)).double().exp().sum() * 0.2**2
    assert abs(float(total) - 1) < 1e-3


def test_hutchinson_is_unbiased_and_exact_on_average() -> None:
    """Mean over 400 probes of one point within 4 standard errors (false alarm 6e-5 a point, 5 points)."""
    mixture = MIXTURES["8 Gaussians"]
    sde = scoresde.oracle(mixture, scoresde.VPSDE())
    x = mixture.sample(5, generator=generator())
    exact = scoresde.log_prob(sde, x)
    many = scoresde.log_prob(sde, x.repeat(400, 1), trace="hutchinson", generator=generator(1)).reshape(400, 5)
    # log p is linear in the trace estimate along the same path
    error = many.std(0) / 20
    assert bool((error > 0.01).all())
    assert bool(((many.mean(0) - exact).abs() < 4 * error).all())
    again = scoresde.log_prob(sde, x.repeat(400, 1), trace="hutchinson", generator=generator(1), batch_size=77)
    torch.testing.assert_close(again.reshape(400, 5), many, rtol=0, atol=1e-4)


def test_mates_do_not_matter_to_a_likelihood() -> None:
    class Elementwise(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(3 * x) * 0.8 - 0.3 * x * t[:, None]

    sde = ScoreSDE(scoresde.VPSDE(), Elementwise(), shape=(3,))
    x = torch.randn(64, 3, generator=generator())
    other = 4 * torch.randn(64, 3, generator=generator(1))
    other[17] = x[17]
    for how in ({}, {"solver": "rk4", "steps": 10}):
        assert torch.equal(scoresde.log_prob(sde, x, **how)[17], scoresde.log_prob(sde, other, **how)[17])


def test_latent_is_where_the_flow_ends_and_sampling_comes_back() -> None:
    mixture = MIXTURES["8 Gaussians"]
    sde = scoresde.oracle(mixture, scoresde.VPSDE()).double()
    drawn = scoresde.solve(sde, 50, rtol=1e-10, atol=1e-10, generator=generator())
    found = scoresde.likelihood(sde, drawn.x[-1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.latent, drawn.x[0], rtol=0, atol=1e-6)
    assert found.nfe.shape == (50,)


def test_prior_gap_is_the_only_error_left() -> None:
    """Without `prior=`, log p is off by exactly log N(x_1) − log p(x_1)."""
    mixture, process = MIXTURES["8 Gaussians"], scoresde.VPSDE()
    sde = scoresde.oracle(mixture, process).double()
    x = mixture.sample(50, generator=generator(), dtype=torch.float64)
    noise = mixture.perturb(*at(process, 1.0))
    result = scoresde.likelihood(sde, x, rtol=1e-10, atol=1e-10)
    gap = process.prior((2,)).log_prob(result.latent) - noise.log_prob(result.latent)
    torch.testing.assert_close(result.log_prob - mixture.log_prob(x), gap, rtol=0, atol=1e-7)
    assert 1e-5 < float(gap.abs().max()) < 0.1


def test_traces_equal_autograd() -> None:
    net = nn.Sequential(nn.Linear(6, 20), nn.SiLU(), nn.Linear(20, 6)).double()
    z = torch.randn(5, 6, generator=generator(), dtype=torch.float64)
    jacobian = torch.stack([torch.autograd.functional.jacobian(net, row) for row in z])
    out, trace = exact_trace(net, z)
    torch.testing.assert_close(out, net(z).detach())
    torch.testing.assert_close(trace, jacobian.diagonal(dim1=1, dim2=2).sum(1))
    probe = torch.randn(5, 6, generator=generator(1), dtype=torch.float64)
    _, estimate = hutchinson_trace(net, z, probe)
    torch.testing.assert_close(estimate, torch.einsum("bi,bij,bj->b", probe, jacobian, probe))


def test_trace_of_networks_that_cannot_be_batched() -> None:
    """An autograd function without a batching rule falls back to copies of the batch, with the same answer."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return torch.from_numpy(np.asarray(3 * (x**2).numpy() * g.numpy()))  # numpy: no vmap

    z = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    _, trace = exact_trace(Cube.apply, z)
    torch.testing.assert_close(trace, 3 * (z**2).sum(1))
    _, constant = exact_trace(lambda z: torch.ones_like(z), z)
    assert bool((constant == 0).all())


def test_bits_per_dim_of_known_laws() -> None:
    uniform = torch.zeros(3)  # log p of U[0, 1)^D
    torch.testing.assert_close(scoresde.bits_per_dim(uniform, 48, 256), torch.full((3,), 8.0))
    torch.testing.assert_close(scoresde.bits_per_dim(torch.tensor([-2 * math.log(2)]), 2), torch.ones(1))
    # 17 equally likely values, perfectly modelled: log2 17 bits, in any units once the density is per unit of x
    assert abs(float(scoresde.bits_per_dim(torch.tensor(0.0), 64, 17)) - math.log2(17)) < 1e-6
