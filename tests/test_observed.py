"""Posteriors of measurements, against the closed form of a Gaussian prior."""

from __future__ import annotations

import functools
import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import scoresde
from scoresde import measurements
from scoresde.guidance import evaluation
from scoresde.guidance import observed as observed_module
from scoresde.guidance.guided import cosine_and_sine
from scoresde.guidance.linear_systems import (
    conjugate_gradients,
    gaussian_terms,
    information_terms,
)
from scoresde.sampling.plan import plan

F64 = torch.float64
PROCESSES = ["vp", "ve", "rectified"]
product = measurements.Measurement(lambda x: x[:, :1] * x[:, 1:2], noise=0.2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


class Normal(scoresde.Derived):
    """N(mean, cov) in the standardized states of a model, in closed form."""

    def __init__(self, model: scoresde.Model, mean: Tensor, cov: Tensor) -> None:
        super().__init__(model)
        self.center = mean
        self.cov = cov

    def velocity_fn(self, *, raw: bool = False) -> Any:
        def velocity(z: Tensor, phi: Any, rows: Any = None) -> Tensor:
            cos, sin = cosine_and_sine(phi, z)
            a = torch.as_tensor(cos, dtype=F64).reshape(-1, 1, 1)
            b = torch.as_tensor(sin, dtype=F64).reshape(-1, 1, 1)
            joint = a * a * self.cov + b * b * torch.eye(len(self.cov), dtype=F64)
            center = self.center if rows is None or self.center.ndim == 1 else self.center[rows]
            gap = (z - cos * center).unsqueeze(2)
            e = torch.linalg.solve(joint, gap).squeeze(2)
            return sin * cos * e - sin * (center + cos * (e @ self.cov))

        return velocity


def standardized(process: str, d: int) -> scoresde.ScoreSDE:
    """A whitened model of data with a mean, scales and correlations."""
    root = randn(d, d, seed=d) + 0.5 * torch.eye(d, dtype=F64)
    x = 3 * randn(1, d, seed=1) + randn(500, d, seed=2) @ root.T
    return scoresde.build(process, "mlp", shape=(d,)).double().standardize(x).eval()


def prior(process: str, d: int) -> Normal:
    root = randn(d, d, seed=d + 10) / math.sqrt(d)
    cov = root @ root.T + 0.2 * torch.eye(d, dtype=F64)
    return Normal(standardized(process, d), 0.3 * randn(d, seed=3), cov)


def affine(model: Any, measurement: Any) -> tuple[Tensor, Tensor]:
    """H and A(0) of the measurement of standardized states."""
    zero = torch.zeros(1, model.dim, dtype=F64)

    def f(z: Tensor) -> Tensor:
        return measurement.flat(measurement(model.to_data(z)))

    return (f(torch.eye(model.dim, dtype=F64)) - f(zero)).T, f(zero)[0]


def posterior(model: Normal, measurement: Any, y: Tensor) -> Normal:
    """The closed form for y (m,) or (n, m)."""
    H, start = affine(model, measurement)
    S = H @ model.cov @ H.T + measurement.noise**2 * torch.eye(len(H), dtype=F64)
    gain = model.cov @ H.T @ torch.linalg.inv(S)
    r = measurement.flat(y[None] if y.ndim == 1 else y) - start - H @ model.center
    mean = model.center + r @ gain.T
    return Normal(model.model, mean[0] if y.ndim == 1 else mean, model.cov - gain @ H @ model.cov)


def cases(d: int) -> dict[str, Any]:
    half = torch.arange(d) % 2 == 0
    return {
        "one": measurements.Linear(randn(1, d, seed=5), noise=0.3),
        "three": measurements.Linear(randn(3, d, seed=5), noise=0.3),
        "seventy": measurements.Linear(randn(70, d, seed=5), noise=2.0),
        "denoise": measurements.Denoise(0.5),
        "inpaint": measurements.Inpaint(half, noise=0.2),
        "exactly": measurements.Inpaint(half),
        "blur": measurements.Blur([0.25, 0.5, 0.25], noise=0.2),
        "downsample": measurements.Downsample(2, noise=0.2),
    }


def measured(model: Normal, measurement: Any, n: int | None = None) -> Tensor:
    x = model.to_data(model.center + randn(n or 1, model.dim, seed=7))
    y = measurement(x)
    return y if n else y[0]


# ------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("d", [2, 8])
@pytest.mark.parametrize("name", list(cases(2)))
def test_mmps_has_the_velocity_of_the_closed_form(name: str, d: int) -> None:
    model = prior("vp", d)
    measurement = cases(d)[name]
    y = measured(model, measurement)
    ours = scoresde.observe(model, measurement, y).velocity_fn()
    wanted = posterior(model, measurement, y).velocity_fn()
    z = randn(20, d, seed=8)
    with torch.no_grad():
        for phi in (1e-4, 0.01, 0.3, 1.0, 1.5, 1.569):
            if not measurement.noise and phi < 0.1:
                continue  # (z − y)/sin φ of any z, with all its digits gone
            for angle in (phi, torch.full((20,), phi, dtype=F64)):
                found = ours(z, angle)
                torch.testing.assert_close(found, wanted(z, angle), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("process", "name"), [("vp", "three"), ("ve", "inpaint"), ("rectified", "three")]
)
def test_samples_are_those_of_the_closed_form(process: str, name: str) -> None:
    """ODE and SDE, by the same noise. Above φ = acos 1e-3 the pull is that at this angle."""
    model = prior(process, 2)
    measurement = cases(2)[name]
    y = measured(model, measurement, 3)
    ours = scoresde.observe(model, measurement, y)
    wanted = posterior(model, measurement, y)
    slack = 1e-3 if process == "rectified" else 1e-8
    fine: dict[str, Any] = {"solver": "adams", "rtol": 1e-10, "atol": 1e-10}
    for options in (fine, {"solver": "em", "steps": 50}):
        found = scoresde.sample(ours, 3, generator=generator(), **options)
        closed = scoresde.sample(wanted, 3, generator=generator(), **options)
        torch.testing.assert_close(found, closed, rtol=0, atol=slack)


@functools.cache
def barely_trained() -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    x = randn(2000, 2) * torch.tensor([3.0, 0.2]).double()
    sde = scoresde.build("vp", "mlp", shape=(2,), width=32, depth=2).double()
    how: dict[str, Any] = {"steps": 60, "validation": None, "progress": False}
    scoresde.fit(sde, x, generator=generator(), **how)
    return sde


def test_a_network_of_little_training_is_sampled_by_default() -> None:
    """Its Jacobian is no covariance, where the pull has kinks: adaptive steps would not end."""
    sde = barely_trained()
    total = measurements.Linear([[1.0, 1.0]], noise=0.5)
    y = torch.linspace(-3, 12, 200).double()[:, None]
    found = scoresde.solve(scoresde.observe(sde, total, y), generator=generator())
    assert found.nfe.tolist() == [50 * 2] * 200
    residual = (found.x[-1].sum(1) - y[:, 0]).abs()
    assert float(residual.median()) < 1.5


@pytest.mark.slow
def test_error_bars_of_a_network_of_little_training_hold() -> None:
    """By default it takes 200 steps; 400 say the same."""
    ours = scoresde.observe(barely_trained(), measurements.Linear([[1.0, 1.0]], noise=0.5), [1.0])
    points = scoresde.sample(ours, 12, generator=generator())
    found = scoresde.likelihood(ours, points)
    assert found.nfe.tolist() == [200 * 2] * 12
    fine = scoresde.log_prob(ours, points, steps=400)
    error = (found.log_prob - fine).abs()  # the field has kinks, which a few points meet
    assert float(error.median()) < 5e-3
    assert float((error <= found.solver_error).double().mean()) >= 0.8


def test_log_prob_of_a_network_of_little_training_ends_by_default() -> None:
    """It takes 200 steps, and rtol= makes it adaptive."""
    sde = barely_trained()
    ours = scoresde.observe(sde, measurements.Linear([[1.0, 1.0]], noise=0.5), [1.0])
    points = scoresde.sample(ours, 12, generator=generator())
    found = scoresde.likelihood(ours, points, errors=False)
    assert found.nfe.tolist() == [200 * 2] * 12
    assert found.log_prob.isfinite().all()
    # models made from it, and other verbs, too; a tolerance makes it adaptive
    both = scoresde.classifier_free(ours, 2.0, without=sde)
    assert both.ode_steps == 200
    assert plan(both, "adams", None, None, {}).adaptive is False
    assert plan(both, "adams", None, None, {"rtol": 1e-3}).adaptive
    assert plan(both, "rk45", None, None, {}).adaptive
    assert plan(sde, "adams", None, None, {}).adaptive


@pytest.mark.parametrize(
    ("process", "name"), [("vp", "one"), ("ve", "blur"), ("rectified", "seventy")]
)
def test_log_prob_is_that_of_the_closed_form(process: str, name: str) -> None:
    model = prior(process, 2)
    measurement = cases(2)[name]
    y = measured(model, measurement)
    exact = posterior(model, measurement, y)
    L, start = affine(model, measurements.Denoise(1.0))
    law = MultivariateNormal(start + L @ exact.center, L @ exact.cov @ L.T)
    x = law.mean + randn(2, 2, seed=9) @ law.scale_tril.T
    time = torch.tensor([0.0, 1.0], dtype=F64)
    alpha, sigma = model.process.alpha(time), model.process.sigma(time)

    def at(i: int) -> MultivariateNormal:  # x_t, whose noise is L times white
        noise = sigma[i] ** 2 * L @ L.T
        cov = alpha[i] ** 2 * law.covariance_matrix + noise
        return MultivariateNormal(start + alpha[i] * (law.mean - start), cov)

    ours = scoresde.observe(model, measurement, y)
    given = None if process == "rectified" else at(1)
    found = scoresde.log_prob(ours, x, rtol=1e-9, atol=1e-9, prior=given)
    slack = 1e-3 if process == "rectified" else 1e-8
    torch.testing.assert_close(found, at(0).log_prob(x), rtol=0, atol=slack)


def test_what_is_observed_without_noise_comes_back_as_it_is() -> None:
    """Also as the ODE leaves it, to sin φ = 1e-4 standard deviations; NaN is not looked at."""
    model = prior("vp", 4)
    mask = torch.tensor([True, False, True, False])
    y = measured(model, measurements.Inpaint(mask), 300)
    y[:, ~mask] = math.nan
    ours = scoresde.observe(model, measurements.Inpaint(mask), y)
    x = scoresde.sample(ours, 300, generator=generator())
    assert torch.equal(x[:, mask], y[:, mask])
    end = scoresde.solve(ours, 300, generator=generator(), times=[1.0, 1e-7, 0.0]).x
    gap = (end[1] - end[2])[:, mask] / ours.scale[mask]
    assert gap.abs().max() < 6e-4
    exact = posterior(model, measurements.Inpaint(mask), torch.nan_to_num(y))
    L, start = affine(model, measurements.Denoise(1.0))
    free = x[:, ~mask] - (start + exact.center @ L.T)[:, ~mask]
    cov = (L @ exact.cov @ L.T)[~mask][:, ~mask]
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), free.T, upper=False)
    # mean square of 600 standard normal numbers: 5 standard errors, false alarms < 1e-6
    assert abs(float(white.square().mean()) - 1) < 5 * math.sqrt(2 / 600)
    assert float(white.mean(1).abs().max()) < 5 / math.sqrt(300)


# ------------------------------------------------------------------ the methods


@pytest.mark.parametrize("known", [2, 70])
def test_what_is_observed_without_noise_may_have_any_units(known: int) -> None:
    """Velocities of columns in units from 1e-3 to 1e6 are those of the columns in one unit, by
    Cholesky and by conjugate gradients.
    """
    d = known + 1
    x = randn(4 * d, d, seed=1) @ (torch.eye(d, dtype=F64) + 0.2 * randn(d, d, seed=2))
    units = torch.tensor([1e-3, 1e6, 10.0], dtype=F64).repeat(d)[:d]
    mask = torch.arange(d) < known
    z = randn(5, d, seed=3)
    found = []
    for unit in (torch.ones(d, dtype=F64), units):
        torch.manual_seed(0)
        sde = scoresde.build("vp", "mlp", shape=(d,)).double().standardize(unit * (x + 3)).eval()
        seen = scoresde.observe(sde, measurements.Inpaint(mask), unit * (x[:5] + 3))
        log_g = seen.log_g(z) + unit[:known].log().sum()
        found.append((seen.velocity_fn()(z, 0.3), seen.velocity_fn()(z, 0.003), 1e-9 * log_g))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


def mixture_model(process: str = "vp") -> Any:
    """Three components that differ in width, in units with a mean and a scale."""
    means = 2 * randn(3, 3, seed=4)
    mixture = scoresde.toy.GaussianMixture(means, 0.3 + randn(3, 3, seed=5).abs())
    sde = scoresde.oracle(mixture, getattr(scoresde, f"{process.upper()}SDE")()).double()
    sde.mean.copy_(torch.tensor([1.0, -2.0, 5.0]))
    sde.scale.copy_(torch.tensor([2.0, 0.5, 3.0]))
    return sde


def by_hand(model: Any, measurement: Any, y: Tensor, z: Tensor, phi: float) -> Any:
    """x̂0, J = ∂x̂0/∂z, H and r of one state z (n,), by torch.autograd.functional."""
    plain = model.velocity_fn()
    cos, sin = math.cos(phi), math.sin(phi)

    def denoised(z: Tensor) -> Tensor:
        return cos * z - sin * plain(z[None], phi, None)[0]

    def a(x0: Tensor) -> Tensor:
        return measurement(model.to_data(x0[None]))[0]

    x0 = denoised(z).detach()
    jacobian = torch.autograd.functional.jacobian
    return x0, jacobian(denoised, z), jacobian(a, x0), (y - a(x0)).detach()


@pytest.mark.parametrize("method", list(evaluation.METHODS))
@pytest.mark.parametrize("rows", [2, 70])
def test_each_method_is_what_its_formula_says(method: str, rows: int) -> None:
    """Below and above 64 measured numbers, where S is no longer built."""
    model = mixture_model()
    measurement = measurements.Linear(randn(rows, 3, seed=6), noise=1.5)
    y = measurement(3 * randn(1, 3, seed=7))[0]
    twist = scoresde.observe(model, measurement, y, method=method).twist()
    for phi in (0.2, 0.9, 1.4):
        cos, sin = math.cos(phi), math.sin(phi)
        z = randn(4, 3, seed=8)
        v, log_psi, gradient = twist(z, phi)
        torch.testing.assert_close(v, model.velocity_fn()(z, phi))
        gaps = []
        for i in range(4):
            _, J, H, r = by_hand(model, measurement, y, z[i], phi)
            C = {
                "mmps": sin**2 / cos * J,
                "pigdm": sin**2 * torch.eye(3, dtype=F64),
                "tmpd": sin**2 / cos * torch.diag(J.sum(0).clamp_min(0)),
                "diffpir": (sin / cos) ** 2 * torch.eye(3, dtype=F64),
                "likelihood": torch.zeros(3, 3, dtype=F64),
            }[method]
            S = 1.5**2 * torch.eye(rows, dtype=F64) + H @ C @ H.T
            w = torch.linalg.solve(S, r)
            if method == "diffpir":  # argmin |y − A x|²/noise² + |x − x̂0|²/u², by least squares
                u = sin / cos
                left = torch.cat([H / 1.5, torch.eye(3, dtype=F64) / u])
                right = torch.cat([r / 1.5, torch.zeros(3, dtype=F64)])
                wanted = torch.linalg.lstsq(left, right).solution * cos / sin**2
            else:
                wanted = J.T @ H.T @ w
            torch.testing.assert_close(gradient[i], wanted, rtol=1e-7, atol=1e-7)
            log_n = MultivariateNormal(torch.zeros(rows, dtype=F64), S).log_prob(r)
            gaps.append(float(log_psi[i] - log_n))
        if rows <= 64 or method in ("likelihood", "mmps"):
            assert max(map(abs, gaps)) < 1e-8
        elif method in ("pigdm", "diffpir"):  # log det S is a number for all samples
            assert max(gaps) - min(gaps) < 1e-8


def test_angles_a_sample_and_chosen_rows_give_what_one_angle_gives() -> None:
    model = mixture_model()
    y = randn(6, 3, seed=1)
    z = randn(6, 3, seed=2)
    phi = torch.linspace(0.1, 1.5, 6, dtype=F64)
    rows = torch.tensor([4, 1, 5])
    for method in evaluation.METHODS:
        ours = scoresde.observe(model, measurements.Denoise(0.7), y, method=method)
        twist = ours.twist()
        together = twist(z[rows], phi[rows], rows)
        for k, i in enumerate(rows.tolist()):
            one = scoresde.observe(model, measurements.Denoise(0.7), y[i], method=method)
            alone = one.twist()(z[i : i + 1], float(phi[i]))
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[k : k + 1], b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", [2, 70])
def test_samples_do_not_depend_on_their_batch(rows: int) -> None:
    model = mixture_model()
    measurement = measurements.Linear(randn(rows, 3, seed=6), noise=1.5)
    y = measurement(3 * randn(200, 3, seed=7))
    ours = scoresde.observe(model, measurement, y)
    how = {"solver": "dpmpp_2m", "steps": 2}
    some = scoresde.sample(ours, 200, generator=generator(), batch_size=200, **how)
    parts = scoresde.sample(ours, 200, generator=generator(), batch_size=7, **how)
    torch.testing.assert_close(some, parts, rtol=1e-8, atol=1e-8)
    again = scoresde.sample(ours, 200, generator=generator(), batch_size=200, **how)
    assert torch.equal(some, again)


# ------------------------------------------------------------------ nonlinear


def test_a_nonlinear_twist_says_nothing_in_pure_noise_and_ends_in_the_likelihood() -> None:
    gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    model = scoresde.oracle(gaussian, scoresde.VPSDE()).double()
    ours = scoresde.observe(model, product, [1.0])
    z = randn(200, 2, seed=1)
    _, log_psi, _ = ours.twist()(z, 1.565)
    assert log_psi.std() < 1e-3  # untempered 1.6 nats, where E[g(x0) | z] is the same for all z
    _, log_psi, gradient = ours.twist()(z, 1e-7)
    torch.testing.assert_close(log_psi, ours.log_g(z), rtol=1e-5, atol=1e-5)
    state = z.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(ours.log_g(state).sum(), state)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-4)


def test_phases_are_retrieved_up_to_their_symmetries() -> None:
    """16 magnitudes of 8 numbers, by systems in 8 dimensions and in 16, which agree."""
    model = prior("vp", 8)
    measurement = measurements.PhaseRetrieval(noise=0.3)
    y = measured(model, measurement, 5)
    ours = scoresde.observe(model, measurement, y)
    assert ours.cost == 9
    z = randn(5, 8, seed=8)
    in_8 = ours.twist()(z, 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "jacobian_of", lambda *sizes: "measured")
        in_16 = ours.twist()(z, 0.5)
    for a, b in zip(in_8, in_16, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    x = scoresde.sample(ours, 5, solver="dpmpp_2m", steps=30, generator=generator())
    prior_x = scoresde.sample(model, 5, solver="dpmpp_2m", steps=30, generator=generator())
    off = (measurement(x) - y).square().mean().sqrt()
    assert off < 0.4 * (measurement(prior_x) - y).square().mean().sqrt()


def test_weights_by_a_nonlinear_twist_stay_finite() -> None:
    """χ² of E[g(x0) | z] to ψ, by 20,000 draws of x0: at most 2, and up to 130 untempered."""
    gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    model = scoresde.oracle(gaussian, scoresde.VPSDE()).double()
    twist = scoresde.observe(model, product, [1.0]).twist()
    noise = randn(20_000, 2, seed=3)
    z = randn(100, 2, seed=2)
    for phi in (1.2, 0.9, 0.6):
        x0 = math.cos(phi) * z.unsqueeze(1) + math.sin(phi) * noise
        log_g = product.log_likelihood(x0.reshape(-1, 2), torch.ones(1, 1)).reshape(100, -1)
        truth = log_g.logsumexp(1) - math.log(20_000)
        ratio = (truth - twist(z, phi)[1]).exp()
        share = twist(z, phi)[1].softmax(0)
        mean = (share * ratio).sum()
        assert (share * (ratio / mean - 1).square()).sum() < 2


# ------------------------------------------------------------------ gradients and memory


@pytest.mark.parametrize("rows", [1, pytest.param(70, marks=pytest.mark.slow)])
def test_gradients_of_log_prob_reach_x_and_y(rows: int) -> None:
    model = prior("vp", 2)
    measurement = measurements.Linear(randn(rows, 2, seed=5), noise=0.1 + rows**0.5)
    y = measured(model, measurement).requires_grad_()
    L, start = affine(model, measurements.Denoise(1.0))
    x = (start + randn(1, 2, seed=9) @ L.T).requires_grad_()
    ours = scoresde.observe(model, measurement, y)
    t = torch.tensor(1.0, dtype=F64)
    alpha, sigma = float(model.process.alpha(t)), float(model.process.sigma(t))

    def law(a: float, s: float) -> MultivariateNormal:
        exact = posterior(model, measurement, y)
        cov = L @ (a * a * exact.cov + s * s * torch.eye(2, dtype=F64)) @ L.T
        return MultivariateNormal(start + a * L @ exact.center, cov)

    how = {"rtol": 1e-9, "atol": 1e-9, "differentiable": True}
    found = scoresde.log_prob(ours, x, prior=law(alpha, sigma), **how).sum()
    gradients = torch.autograd.grad(found, (x, y))
    wanted = torch.autograd.grad(law(1.0, 0.0).log_prob(x).sum(), (x, y))
    torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-8)


def test_no_graph_is_kept() -> None:
    model = mixture_model()
    y = torch.tensor([1.0], requires_grad=True)
    for measurement in (product, measurements.Linear(torch.ones(1, 3), noise=1.0)):
        for method in evaluation.METHODS:
            ours = scoresde.observe(model, measurement, y.detach(), method=method)
            for part in ours.twist()(randn(5, 3), 0.5):
                assert not part.requires_grad
    ours = scoresde.observe(model, product, y)
    counts = []
    for steps in (4, 40, 40):
        x = scoresde.sample(ours, 5, solver="dpmpp_2m", steps=steps)
        assert not x.requires_grad
        gc.collect()
        counts.append(sum(isinstance(one, Tensor) for one in gc.get_objects()))
    assert counts[2] == counts[1]


def test_inference_mode_and_no_grad_give_the_same() -> None:
    model = mixture_model()
    for rows in (2, 70):
        for method in evaluation.METHODS:
            measurement = measurements.Linear(randn(rows, 3, seed=6), noise=1.5)
            y = torch.ones(rows, dtype=F64)
            z = randn(4, 3, seed=8)
            ours = scoresde.observe(model, measurement, y, method=method)
            plain = ours.twist()(z, 0.7)
            with torch.inference_mode():
                inside = scoresde.observe(model, measurement, y + 0, method=method)
                for a, b in zip(inside.twist()(z + 0, 0.7), plain, strict=True):
                    torch.testing.assert_close(a, b)


# ------------------------------------------------------------------ numbers of other kinds


def trained_like(**options: Any) -> Any:
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(3,), width=16, depth=1, **options)
    for p in sde.net.parameters():
        with torch.no_grad():
            p.add_(0.1 * torch.randn_like(p))
    return sde.standardize(torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.2]) + 3).eval()


@pytest.mark.parametrize("method", list(evaluation.METHODS))
def test_float32_and_half_precision_agree_with_float64(method: str) -> None:
    sde = trained_like()
    measurement = measurements.Linear([[1.0, 0.5, 2.0], [0.0, 1.0, 1.0]], noise=0.5)
    z = randn(20, 3, seed=1)
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        made = trained_like().to(dtype)
        ours = scoresde.observe(made, measurement, [9.0, 7.0], method=method)
        kind = torch.promote_types(dtype, torch.float32)
        found[dtype] = ours.velocity_fn()(z.to(kind), 0.8).double()
        assert scoresde.sample(ours, 4, steps=5, solver="dpmpp_2m").isfinite().all()
    torch.testing.assert_close(found[torch.float32], found[F64], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[torch.bfloat16], found[F64], rtol=0.1, atol=0.15)
    assert sde.dim == 3


def test_what_is_no_covariance_pulls_nowhere() -> None:
    """W of negative eigenvalues, as networks have: they count for nothing, and mates stay."""
    good = torch.eye(2, dtype=F64) + 0.5
    bad = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64)  # 3 along (1, 1), −1 along (1, −1)
    r = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=F64)
    instead = torch.diag(torch.tensor([2.0, 4.0], dtype=F64))[None]
    w, log_n = gaussian_terms(r, torch.stack([good, bad]), 0.25, instead)
    noise = 0.25 * torch.eye(2, dtype=F64)
    alone = gaussian_terms(r[:1], good[None], 0.25, instead)
    assert torch.equal(w[:1], alone[0])
    torch.testing.assert_close(w[0], torch.linalg.solve(good + noise, r[0]))
    torch.testing.assert_close(w[1], torch.full((2,), 0.5 / 3.25, dtype=F64))
    mended = noise + 1.5 + torch.tensor([[1.5, -1.5], [-1.5, 1.5]], dtype=F64)  # 3 and 3
    law = MultivariateNormal(torch.zeros(2, dtype=F64), mended)
    torch.testing.assert_close(log_n[1], law.log_prob(r[1]))
    nan = torch.full((1, 2, 2), math.nan, dtype=F64)
    assert gaussian_terms(r[:1], nan, 0.25, instead)[0].isnan().all()


def test_systems_in_n_dimensions_agree_with_those_in_m() -> None:
    root = randn(3, 4, 4, seed=1)
    J = root @ root.mT
    J[1] = -torch.eye(4, dtype=F64)  # no covariance at all
    H = randn(1, 9, 4, seed=2)
    r = randn(3, 9, seed=3)
    shift, log_n = information_terms(r, H, J, 0.3, 0.25)
    w, log_m = gaussian_terms(r, 0.3 * H @ J @ H.mT, 0.25, torch.eye(9, dtype=F64)[None])
    wanted = (J @ H.mT @ w.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(shift, wanted, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_n[[0, 2]], log_m[[0, 2]], rtol=1e-8, atol=1e-8)
    white = torch.distributions.Normal(0.0, 0.5).log_prob(r[1]).sum()
    torch.testing.assert_close(log_n[1], white)


@pytest.mark.slow
def test_samples_fit_y_where_the_jacobian_is_no_covariance() -> None:
    """Of a network trained for long enough to be of use, and not longer.

    With S = noise² + H·C·Hᵀ as it is, samples diverge to 1e24 and beyond.
    """
    torch.manual_seed(0)
    clusters = 2 * torch.randn(4, 16)
    x = clusters.repeat(500, 1) + 0.3 * torch.randn(2000, 16)
    sde = scoresde.build("vp", "mlp", shape=(16,), width=64, depth=2)
    scoresde.fit(sde, x, steps=300, batch_size=256, progress=False, generator=generator())
    for rows, exact in ((1, 64), (4, 64), (70, 64), (70, 0)):  # 0: by conjugate gradients
        A = torch.randn(rows, 16, generator=generator(rows)) / 4
        measurement = measurements.Linear(A, noise=0.05)
        y = measurement(x[:50]) + 0.05 * torch.randn(50, rows, generator=generator(1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "EXACT", exact)
            ours = scoresde.observe(sde, measurement, y)
            found = scoresde.sample(ours, 50, solver="dpmpp_2m", steps=50, generator=generator())
        off = (measurement(found) - y).square().mean(1).sqrt()
        assert off.median() < 3 * 0.05, (rows, exact)
        assert found.abs().max() < 200, (rows, exact)


def test_conjugate_gradients_have_the_velocity_of_the_closed_form() -> None:
    """More than 64 numbers of more than 64."""
    model = prior("vp", 72)
    measurement = measurements.Blur([0.25, 0.5, 0.25], noise=5.0)
    y = measured(model, measurement)
    ours = scoresde.observe(model, measurement, y)
    wanted = posterior(model, measurement, y).velocity_fn()
    assert ours.cost == 204
    z = randn(5, 72, seed=8)
    with torch.no_grad():
        for phi in (0.1, 0.8, 1.4):
            torch.testing.assert_close(
                ours.velocity_fn()(z, phi), wanted(z, phi), rtol=1e-8, atol=1e-8
            )
    state = z[:1].clone().requires_grad_()
    by_factor = ours.velocity_fn()(state, 0.8)
    torch.testing.assert_close(by_factor.detach(), wanted(z[:1], 0.8), rtol=1e-8, atol=1e-8)


def test_conjugate_gradients_stop_a_sample_at_a_time() -> None:
    root = randn(3, 6, 6, seed=1)
    S = root @ root.mT + torch.eye(6, dtype=F64)
    S[1] = torch.eye(6, dtype=F64)
    r = randn(3, 6, seed=2)
    r[2] = 0

    def times(w: Tensor) -> Tensor:
        return (S @ w.unsqueeze(2)).squeeze(2)

    found = conjugate_gradients(times, r, 20, 1e-12)
    torch.testing.assert_close(found, torch.linalg.solve(S, r), rtol=1e-9, atol=1e-9)
    assert torch.equal(found[2], r[2])


def test_the_cost_counts_passes_through_the_network() -> None:
    model = mixture_model()
    costs = {"mmps": 3, "pigdm": 2, "tmpd": 3, "diffpir": 1, "likelihood": 2}
    measurement = measurements.Linear(torch.ones(2, 3), noise=1.0)
    for method, cost in costs.items():
        ours = scoresde.observe(model, measurement, [0.0, 0.0], method=method)
        assert ours.cost == cost
        solution = scoresde.solve(ours, 2, solver="dpmpp_2m", steps=4)
        assert solution.nfe.tolist() == [4 * cost] * 2


@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
def test_a_map_may_answer_in_another_dtype(dtype: torch.dtype) -> None:
    model = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE()).float()
    measurement = measurements.Measurement(lambda x: x.to(dtype), noise=0.3)
    ours = scoresde.observe(model, measurement, [1.0, 1.0])
    assert scoresde.sample(ours, 2, steps=3).dtype == torch.float32
    found = scoresde.particles(ours, 2, particles=4, steps=5, seed=0)
    assert found.x.dtype == torch.float32
    assert found.log_evidence.isfinite().all()


def test_log_g_is_the_likelihood_of_data() -> None:
    model = prior("vp", 4)
    z = randn(5, 4, seed=1)
    x = model.to_data(z)
    mask = torch.tensor([True, False, True, False])
    y = randn(5, 4, seed=2)
    found = scoresde.observe(model, measurements.Inpaint(mask, noise=0.3), y).log_g(z)
    law = torch.distributions.Normal(x[:, mask], 0.3)
    torch.testing.assert_close(found, law.log_prob(y[:, mask]).sum(1))
    exactly = scoresde.observe(model, measurements.Inpaint(mask), y)
    law = torch.distributions.Normal(x[:, mask], math.sin(1e-4) * model.scale[mask])
    torch.testing.assert_close(exactly.log_g(z), law.log_prob(y[:, mask]).sum(1))


# ------------------------------------------------------------------ other models


def test_many_states_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture_model()
    z = randn(10, 3, seed=1)
    phi = torch.linspace(0.1, 1.4, 10, dtype=F64)
    for measurement in (product, measurements.Denoise(0.5)):
        y = measurement(randn(10, 3, seed=2))
        ours = scoresde.observe(model, measurement, y)
        whole = ours.twist()(z, phi)
        one = ours.twist()(z[5:], 0.3, torch.arange(5, 10))
        monkeypatch.setattr(observed_module, "LARGEST_JACOBIAN", 27)
        for a, b in zip(ours.twist()(z, phi), whole, strict=True):
            torch.testing.assert_close(a, b)
        for a, b in zip(ours.twist()(z[5:], 0.3, torch.arange(5, 10)), one, strict=True):
            torch.testing.assert_close(a, b)
        monkeypatch.undo()


def test_images_with_constant_pixels_and_a_condition() -> None:
    """A network of zeros is N(mean, scale²): the posterior of each pixel is known."""
    sde = scoresde.build("vp", "mlp", shape=(2, 2, 2), classes=3).double().eval()
    sde.mean.copy_(torch.tensor([1.0, 5.0]).reshape(2, 1, 1))
    sde.scale.copy_(torch.tensor([2.0, 0.0]).reshape(2, 1, 1))
    y = 1 + 2 * randn(6, 2, 2, 2, seed=1)
    model = sde.given(y=torch.arange(6) % 3)
    ours = scoresde.observe(model, measurements.Denoise(1.5), y)
    fine: dict[str, Any] = {"solver": "adams", "rtol": 1e-9, "atol": 1e-9}
    x = scoresde.sample(ours, 6, generator=generator(), batch_size=4, **fine)
    gain = 4 / (4 + 1.5**2)
    start = scoresde.solve(ours, 6, generator=generator(), times=[1.0, 0.0], **fine)
    assert torch.equal(x[:, 1], torch.full((6, 2, 2), 5.0, dtype=F64))
    noise = (start.x[0][:, 0] - 1) / 2  # z_1, which the ODE takes along its own axis
    t = torch.tensor(1.0, dtype=F64)
    cos, sin = float(model.process.alpha(t)), float(model.process.sigma(t))
    mean = gain * (y[:, 0] - 1) / 2
    std = math.sqrt(1 - gain)
    end = (noise - cos * mean) / math.sqrt(cos**2 * std**2 + sin**2)
    wanted = 1 + 2 * (mean + std * end)
    torch.testing.assert_close(x[:, 0], wanted, rtol=0, atol=1e-7)


def test_a_guided_model_is_observed() -> None:
    sde = scoresde.build("vp", "mlp", shape=(3,), classes=2).eval()
    guided = scoresde.classifier_free(sde.given(y=1), 2.0)
    ours = scoresde.observe(guided, measurements.Denoise(0.5), [0.0, 1.0, 2.0])
    assert ours.cost == 2 * 4
    assert scoresde.sample(ours, 3, steps=3).isfinite().all()
    assert "Observed" in repr(ours)
