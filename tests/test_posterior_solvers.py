"""Solvers of inverse problems against posteriors in closed form, where they are right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import scoresde
from conftest import generator
from scoresde import SOLVERS, ScoreSDE, measurements, toy
from scoresde.guidance.coordinates import measured_coordinates
from scoresde.solvers import Measured, RePaint

POSTERIOR = [name for name in SOLVERS if "measurement" in SOLVERS.build(name).needs]
SUMS = torch.tensor([[1.0, 0.1, 0.0], [0.0, 0.2, 5.0]])


def rows(n: int = 4000) -> Tensor:
    """A Gaussian's: means 3, −70, 0, standard deviations of 1, 6 and .2, correlated."""
    mix = torch.tensor([[1.0, 0.0, 0.0], [5.0, 3.0, 0.0], [0.1, 0.0, 0.2]], dtype=torch.float64)
    x = torch.randn(n, 3, generator=generator(), dtype=torch.float64) @ mix.T
    return x + torch.tensor([3.0, -70.0, 0.0], dtype=torch.float64)


def whitened(process: str = "vp") -> tuple[ScoreSDE, Tensor, Tensor]:
    """The Gaussian of these rows, exactly, and its mean and covariance."""
    x = rows()
    sde = scoresde.build(process, "mlp", shape=(3,), width=4, depth=1).standardize(x)
    return sde.eval().double(), x.mean(0), torch.cov(x.T, correction=0)


def posterior(
    mean: Tensor, covariance: Tensor, matrix: Tensor, noise: float, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a Gaussian given y = A·x + noise·n, by the textbook."""
    matrix = matrix.double()
    S = matrix @ covariance @ matrix.T + noise**2 * torch.eye(len(matrix)).double()
    gain = covariance @ matrix.T @ torch.linalg.inv(S)
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance


def check(x: Tensor, mean: Tensor, covariance: Tensor, shift: float, width: float) -> None:
    """Means within `shift` standard deviations of the truth, and spreads within a share."""
    std = covariance.diag().sqrt()
    assert float(((x.mean(0) - mean) / std).abs().max()) < shift
    assert float((x.std(0) / std - 1).abs().max()) < width
    whole = torch.cov(x.T, correction=0)
    assert float(((whole - covariance) / std / std[:, None]).abs().max()) < 2.5 * width


# ------------------------------------------------------------------ a Gaussian


@pytest.mark.parametrize("process", ["vp", "rectified", "ve"])
def test_daps_is_exact_for_a_whitened_gaussian(process: str) -> None:
    """With one step to E[x0 | z], at any number of steps: 2,000 draws, five standard errors. The
    kept signal of vp and ve at t = 1 adds less.
    """
    sde, mean, covariance = whitened(process)
    y = torch.tensor([-2.0, -12.0], dtype=torch.float64)
    seen = scoresde.observe(sde, measurements.Linear(SUMS, noise=0.5), y)
    for steps in (4, 50):
        x = scoresde.sample(
            seen, 2000, solver="daps", ode_steps=1, steps=steps, generator=generator(1)
        )
        truth = posterior(mean, covariance, SUMS, 0.5, y)
        check(x, *truth, shift=5 / math.sqrt(2000) + 0.02, width=5 / math.sqrt(4000) + 0.01)


def test_split_gibbs_tends_to_the_posterior_of_a_gaussian() -> None:
    """Means within .2 standard deviations and spreads within 10%, noise included: the means of p(x)
    are more than .5 away.
    """
    sde, mean, covariance = whitened()
    y = torch.tensor([-2.0, -12.0], dtype=torch.float64)
    seen = scoresde.observe(sde, measurements.Linear(SUMS, noise=0.5), y)
    truth = posterior(mean, covariance, SUMS, 0.5, y)
    prior = scoresde.sample(sde, 500, generator=generator())
    assert float(((prior.mean(0) - truth[0]) / truth[1].diag().sqrt()).abs().max()) > 0.5
    x = scoresde.sample(
        seen, 1500, solver="split_gibbs", steps=60, inner=8, generator=generator(1)
    )
    check(x, *truth, shift=0.2, width=0.1)


@pytest.mark.parametrize("solver", POSTERIOR)
def test_what_is_measured_exactly_is_kept(solver: str) -> None:
    """Two of three columns of a whitened Gaussian, where coordinates of states mix them; the third
    has its conditional distribution, by 250 steps within .15 standard deviations and 12%.
    """
    sde, mean, covariance = whitened()
    mask = torch.tensor([True, False, True])
    y = torch.tensor([4.5, math.nan, 0.3], dtype=torch.float64)
    seen = scoresde.observe(sde, measurements.Inpaint(mask), y)
    options: dict[str, Any] = {
        "repaint": {"steps": 250, "repeats": 2},
        "daps": {"ode_steps": 1},
    }.get(solver, {})
    x = scoresde.sample(seen, 1000, solver=solver, generator=generator(1), **options)
    torch.testing.assert_close(x[:, mask], y[mask].expand(1000, 2), rtol=0, atol=1e-9)
    truth = posterior(mean, covariance, torch.eye(3)[mask], 0.0, y[mask])
    std = float(truth[1][1, 1].sqrt())
    assert abs(float(x[:, 1].mean() - truth[0][1])) < 0.15 * std
    assert abs(float(x[:, 1].std()) / std - 1) < 0.12


# ------------------------------------------------------------------ mixtures


def test_repaint_of_columns_that_do_not_depend_on_one_another() -> None:
    """The second column of a 2 × 2 grid of modes, whatever the first is: p > 2e-3, a false alarm
    once in 500 runs.
    """
    centres = torch.tensor(list(itertools.product([-1.0, 1.0], [-1.0, 1.0])))
    mixture = toy.GaussianMixture(centres, 0.3, weights=[1, 3, 1, 3])
    sde = scoresde.oracle(mixture, scoresde.VPSDE()).double()
    seen = scoresde.observe(sde, measurements.Inpaint([True, False]), [0.9, 0.0])
    x = scoresde.sample(seen, 400, solver="repaint", steps=100, repeats=2, generator=generator(1))
    assert float((x[:, 0] - 0.9).abs().max()) < 1e-9
    truth = mixture.sample(400, generator=generator(2), dtype=torch.float64)
    assert (
        scoresde.energy_test(x[:, 1:], truth[:, 1:], permutations=999, generator=generator(3))
        > 2e-3
    )


def test_split_gibbs_tends_to_the_weights_of_two_modes() -> None:
    """Of ±1 with s = 0.5, given y = 0.5 with noise 1: the posterior mean within .06, where 4,000
    draws make ± .013.
    """
    mixture = toy.GaussianMixture([[-1.0], [1.0]], 0.5)
    sde = scoresde.oracle(mixture, scoresde.VESDE(sigma_max=20.0)).double()
    seen = scoresde.observe(sde, measurements.Denoise(1.0), [0.5])
    mean, std = torch.tensor([-1.0, 1.0]), math.hypot(0.5, 1.0)
    w = torch.softmax(-0.5 * ((0.5 - mean) / std).square(), 0)[1]
    modes = mean + 0.25 / 1.25 * (0.5 - mean)
    wanted = float(w * modes[1] + (1 - w) * modes[0])
    x = scoresde.sample(
        seen, 4000, solver="split_gibbs", steps=200, inner=6, generator=generator(1)
    )
    assert abs(float(x.mean()) - wanted) < 0.06


# ------------------------------------------------------------------ what was measured


def constants() -> ScoreSDE:
    """Images of which one channel is constant, in units of their own."""
    sde = scoresde.build("vp", "mlp", shape=(3, 2, 4), width=4).double()
    sde.mean.copy_(torch.tensor([5.0, 2.0, -1.0]).reshape(sde.mean.shape))
    sde.scale.copy_(torch.tensor([3.0, 0.0, 0.5]).reshape(sde.scale.shape))
    return sde


CASES: dict[str, Callable[[], tuple[ScoreSDE, measurements.Measurement]]] = {
    "whitened": lambda: (whitened()[0], measurements.Linear(SUMS, noise=0.3)),
    "whitened denoise": lambda: (whitened()[0], measurements.Denoise(0.3)),
    "wide": lambda: (whitened()[0], measurements.Linear(torch.randn(7, 3), noise=0.3)),
    "denoise": lambda: (constants(), measurements.Denoise(0.3)),
    "inpaint": lambda: (
        constants(),
        measurements.Inpaint(torch.rand(1, 2, 4, generator=generator()) < 0.5, noise=0.3),
    ),
    "blur": lambda: (constants(), measurements.Blur([0.25, 0.5, 0.25], noise=0.3)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_coordinates_have_the_likelihood_of_the_measurement(name: str) -> None:
    """log p(y | x) of both differ by the same for all x; V has orthonormal columns."""
    sde, measurement = CASES[name]()
    z = torch.randn(6, sde.dim, generator=generator(), dtype=torch.float64)
    x = sde.to_data(z)
    y = measurement(x[:1]) + 0.3 * torch.randn(
        measurement(x[:1]).shape, generator=generator(1), dtype=torch.float64
    )
    found = measured_coordinates(sde, measurement, measurement.flat(y))
    residual = (measurement.flat(y) - measurement.flat(measurement(x))) / 0.3
    wanted = residual.square().sum(1)
    got = ((found.values - found.coordinates(z)) / found.std).square().sum(1)
    torch.testing.assert_close(got - got[0], wanted - wanted[0])
    c = torch.randn(3, len(found.std), generator=generator(2), dtype=torch.float64)
    torch.testing.assert_close(found.coordinates(found.states(c)), c)
    seen = scoresde.observe(sde, measurement, y)
    assert bool(scoresde.sample(seen, 3, solver="daps", steps=3).isfinite().all())


@pytest.mark.parametrize("std", [0.0, 0.7])
def test_the_conditioned_gaussian(std: float) -> None:
    """N(mean, std²·I)·p(y | x) by the textbook: the mean, and the covariance from unit noise."""
    basis = torch.linalg.qr(torch.randn(4, 2, generator=generator()).double()).Q
    tau = torch.tensor([0.0, 0.4], dtype=torch.float64)
    c = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    seen = Measured(c, tau, lambda z: z @ basis, lambda c: c @ basis.T)
    mean = torch.tensor([[0.3, 1.0, -0.5, 2.0]], dtype=torch.float64)
    zero = torch.zeros_like(mean)
    unit = torch.eye(4, dtype=torch.float64)
    center = seen.conditioned(mean, std, zero)
    root = seen.conditioned(mean, std, unit) - center
    if not std:
        exact = mean + (c[:, :1] - mean @ basis[:, :1]) @ basis[:, :1].T
        torch.testing.assert_close(center, exact)
        assert not root.any()
        return
    S = std**2 * torch.eye(2) + tau.square().diag()
    gain = std**2 * basis @ torch.linalg.inv(S)
    torch.testing.assert_close(center, mean + (c - mean @ basis) @ gain.T)
    torch.testing.assert_close(root.T @ root, std**2 * unit - std**2 * gain @ basis.T)


def test_the_path_of_repaint() -> None:
    """Two levels back, twice down each part: the last return starts at the last level with noise,
    and none leads to α = 0.
    """
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.RectifiedFlow())
    seen = scoresde.observe(sde, measurements.Inpaint([True, False]), [0.0, 0.0])
    taken: list[list[tuple[int, int]]] = []

    class Watched(RePaint):
        def moves(self, problem: Any) -> list[tuple[int, int]]:
            taken.append(super().moves(problem))
            return taken[-1]

    found = scoresde.solve(seen, 2, solver=Watched(jump=2, repeats=2), steps=6, spacing="time")
    down = [(0, 1), (1, 2), (2, 3), (3, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert taken[0] == [*down, (5, 3), (3, 4), (4, 5), (5, 6)]
    assert found.nfe.tolist() == [10, 10]


@pytest.mark.parametrize("solver", POSTERIOR)
def test_samples_depend_on_their_own_y_and_number_alone(solver: str) -> None:
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.VPSDE()).double()
    y = torch.linspace(-2, 2, 70, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.0])
    how: dict[str, Any] = {"solver": solver, "steps": 5}

    def drawn(y: Tensor, **more: Any) -> Tensor:
        seen = scoresde.observe(sde, measurements.Inpaint([True, False]), y)
        return scoresde.sample(seen, generator=generator(3), **how, **more)

    whole = drawn(y)
    torch.testing.assert_close(whole[:, 0], y[:, 0], rtol=0, atol=1e-9)
    torch.testing.assert_close(drawn(y[:66]), whole[:66], rtol=0, atol=1e-9)
    torch.testing.assert_close(drawn(y, batch_size=9), whole, rtol=0, atol=1e-9)


def test_what_these_solvers_do_not_take_is_refused() -> None:
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.VPSDE())
    bent = measurements.Measurement(lambda x: x.square(), noise=0.1)
    for solver in POSTERIOR:
        for model in (sde, scoresde.observe(sde, bent, [1.0, 1.0])):
            with pytest.raises(ValueError, match=r"scoresde.observe\(sde, measurement, y\)"):
                scoresde.sample(model, 2, solver=solver)
    for measurement in (measurements.Inpaint([True, False], 0.1), measurements.Denoise(0.1)):
        with pytest.raises(ValueError, match="repaint keeps elements as they were measured"):
            scoresde.sample(scoresde.observe(sde, measurement, [1.0, 0.0]), 2, solver="repaint")
    large = scoresde.build("vp", "mlp", shape=(1, 64, 64), width=4)
    blurred = scoresde.observe(large, measurements.Blur(1.0, noise=0.1), torch.zeros(1, 64, 64))
    with pytest.raises(ValueError, match="decomposes matrices of up to"):
        scoresde.sample(blurred, 1, solver="daps", steps=2)
    for name, option in (("repaint", "jump"), ("daps", "ode_steps"), ("split_gibbs", "inner")):
        with pytest.raises(ValueError, match=f"{option} is at least 1"):
            SOLVERS.build(name, **{option: 0})
