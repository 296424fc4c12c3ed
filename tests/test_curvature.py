"""Straightness of paths and cost of an error: against quadrature of closed forms and recursions by
hand.

From one Gaussian to another the ODE's path is known: x_t = α(t)·m + g(t)/g(1)·(x_1 − α(1)·m) with
g² = α²·s² + σ².
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from torch import Tensor, nn

import scoresde
from conftest import generator
from scoresde import toy
from scoresde.metrics import Straightness, evaluations, nfe_for_error, straightness
from scoresde.sampling.plan import plan

PROCESSES = ["rectified", "vp", "ve", "cosine", "subvp"]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def gaussian(shape: tuple[int, ...], seed: int = 0) -> toy.GaussianMixture:
    g = generator(seed)
    means = torch.randn(1, *shape, generator=g, dtype=torch.float64)
    return toy.GaussianMixture(
        means, 0.3 + torch.rand(1, *shape, generator=g, dtype=torch.float64) * 1.5
    )


def closed(
    process: scoresde.Process, mixture: toy.GaussianMixture, x1: Tensor
) -> tuple[Tensor, Tensor]:
    """PE and Δ of each path, by adaptive quadrature of |ẋ_t|² for every coordinate: (c_1·α̇ +
    c_2·ġ)².
    """

    def at(t: float) -> tuple[float, float, float, float]:
        time = torch.tensor(t, dtype=torch.float64)
        return tuple(
            float(f(time)) for f in (process.alpha, process.sigma, process.dalpha, process.dsigma)
        )  # type: ignore

    m, s = mixture.mean().flatten(), mixture.std().flatten()
    energy, displacement = (
        torch.zeros(len(x1), dtype=torch.float64),
        torch.zeros(len(x1), dtype=torch.float64),
    )
    for d in range(len(m)):
        var = float(s[d]) ** 2

        def slopes(t: float, var: float = var) -> tuple[float, float]:
            alpha, sigma, dalpha, dsigma = at(t)
            return dalpha, (alpha * dalpha * var + sigma * dsigma) / math.sqrt(
                alpha**2 * var + sigma**2
            )

        (a1, s1, *_), (a0, s0, *_) = at(1.0), at(0.0)
        g1, g0 = (math.sqrt(a * a * var + c * c) for a, c in ((a1, s1), (a0, s0)))
        y = (x1.flatten(1)[:, d] - a1 * m[d]) / g1
        moments = [
            quad(lambda t, i=i, j=j: slopes(t)[i] * slopes(t)[j], 0, 1, epsabs=1e-11, limit=200)[0]
            for i, j in ((0, 0), (0, 1), (1, 1))
        ]
        energy += m[d] ** 2 * moments[0] + 2 * m[d] * y * moments[1] + y.square() * moments[2]
        displacement += ((a1 - a0) * m[d] + (g1 - g0) * y).square()
    return energy, displacement


@pytest.mark.parametrize("shape", [(2,), (1, 1, 3)])
@pytest.mark.parametrize("name", PROCESSES)
def test_from_gaussian_to_gaussian_it_is_a_quadrature(name: str, shape: tuple[int, ...]) -> None:
    process, mixture = scoresde.PROCESSES.build(name), gaussian(shape)
    x1 = torch.randn(8, *shape, generator=generator(1), dtype=torch.float64) * float(
        process.radius(1.0)
    )
    s = straightness(
        scoresde.oracle(mixture, process).double(), start=x1, w2=0.5, panels=32, **TIGHT
    )
    energy, displacement = closed(process, mixture, x1)
    straight = energy - displacement
    for estimate, values in (
        (s.path_energy, energy),
        (s.displacement, displacement),
        (s.straightness, straight),
    ):
        assert estimate.value == pytest.approx(values.mean().item(), rel=1e-6)
        assert estimate.stderr == pytest.approx(values.std().item() / math.sqrt(8), rel=1e-5)
    assert s.curvature.value == pytest.approx(
        float(straight.mean() / displacement.mean()), rel=1e-6
    )
    assert s.normalized_path_energy.value == pytest.approx(
        abs(float(energy.mean()) - 0.25) / 0.25, rel=1e-6
    )


def test_the_error_falls_as_the_eighth_power_of_the_panels() -> None:
    x1, process, mixture = (
        torch.randn(4, 2, generator=generator(), dtype=torch.float64),
        scoresde.RectifiedFlow(),
        gaussian((2,)),
    )
    sde, truth = (
        scoresde.oracle(mixture, process).double(),
        closed(process, mixture, x1)[0].mean().item(),
    )
    two, four = (
        abs(
            straightness(sde, start=x1, panels=p, rtol=1e-12, atol=1e-12).path_energy.value - truth
        )
        for p in (2, 4)
    )
    assert 2**6.5 < two / four < 2**10


@pytest.mark.parametrize("name", ["rectified", pytest.param("vp", marks=pytest.mark.slow)])
def test_of_curved_paths_it_is_what_the_models_own_velocity_says(name: str) -> None:
    sde = scoresde.oracle(toy.EightGaussians(4.0, 0.3), scoresde.PROCESSES.build(name)).double()
    times = torch.linspace(1, 0, 257, dtype=torch.float64)
    path = scoresde.solve(sde, 32, times=times, generator=generator(), **TIGHT)
    s = straightness(sde, 32, generator=generator(), **TIGHT)
    chord = path.x[0] - path.x[-1]
    simpson = torch.tensor([1.0, *[4.0, 2.0] * 127, 4.0, 1.0], dtype=torch.float64) / (3 * 256)
    slopes = torch.stack([sde.velocity(x, float(t)) for x, t in zip(path.x, times, strict=True)])
    for estimate, off in ((s.path_energy, slopes), (s.straightness, slopes - chord)):
        values = simpson @ off.square().sum(2)
        assert estimate.value == pytest.approx(values.mean().item(), rel=1e-5)
        assert estimate.stderr == pytest.approx(values.std().item() / math.sqrt(32), rel=1e-5)


class Constant(nn.Module):
    """ε − x0 is the same everywhere; remembers the states it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.states = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.states += len(x)
        return torch.tensor([0.5, -2.0], dtype=x.dtype).expand_as(x)


def constant() -> scoresde.ScoreSDE:
    sde = scoresde.ScoreSDE(scoresde.RectifiedFlow(), Constant(), shape=(2,), predict="v")
    return sde.standardize(torch.tensor([[0.0, 10.0], [2.0, 30.0]])).double()  # scale 1 and 10


def test_a_constant_velocity_is_straight_and_optimal() -> None:
    s = straightness(constant(), 50, generator=generator(), **TIGHT)
    length = 0.5**2 + 20.0**2
    assert s.displacement.value == pytest.approx(length, rel=1e-9)
    assert s.path_energy.value == pytest.approx(length, rel=1e-9)
    assert s.straightness.value < 1e-18 * length
    assert s.curvature.value < 1e-18
    assert s.normalized_path_energy.value < 1e-9
    assert s.w2 == pytest.approx(math.sqrt(length), rel=1e-9)
    # "ddim" is Euler's method in t
    assert nfe_for_error(constant(), 1e-6, n=16, generator=generator()).nfe == 1
    assert (
        nfe_for_error(constant(), 1e-6, n=16, generator=generator(), solver="euler", most=64).nfe
        == math.inf
    )
    single = straightness(constant().float(), 50, generator=generator())
    assert single.straightness.value < 1e-9 * length  # of float32 states


def test_one_solve_yields_all_at_once() -> None:
    sde = constant()
    net = sde.net
    alone = scoresde.solve(sde, 50, generator=generator()).nfe.sum().item()
    asked, net.states = net.states, 0
    s = straightness(sde, 50, generator=generator())
    assert net.states == asked == alone == round(50 * s.nfe)


def test_batches_options_and_starts_are_those_of_solve() -> None:
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.RectifiedFlow()).double()
    whole = straightness(sde, 50, generator=generator())
    parts = straightness(sde, 50, generator=generator(), batch_size=7)
    x1 = scoresde.solve(sde, 50, generator=generator()).x[0]
    given = straightness(sde, start=x1)
    for other in (parts, given):
        assert other.path_energy.value == pytest.approx(whole.path_energy.value, rel=1e-9)
    steps = straightness(sde, 50, solver="rk4", steps=30, generator=generator())
    assert steps.curvature.value == pytest.approx(whole.curvature.value, rel=1e-3)
    with pytest.raises(ValueError, match="stochastic"):
        straightness(sde, solver="em")
    for wrong in ({"w2": -1.0}, {"panels": 0}, {"steps": 0}, {"solver": "rk_45"}):
        with pytest.raises(ValueError):
            straightness(sde, 4, **wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="straightness needs a ScoreSDE"):
        straightness(scoresde.VPSDE())  # type: ignore[arg-type]


def test_standard_errors_are_those_of_fresh_runs() -> None:
    # spread over 100 runs: χ² with 99 degrees of freedom, bounds at a false alarm of 1e-4 each,
    # 10% for n = 40 in a ratio
    sde = scoresde.oracle(
        toy.GaussianMixture(torch.zeros(1, 2), torch.tensor([[2.0, 0.3]])),
        scoresde.RectifiedFlow(),
    )
    x1 = torch.randn(100, 40, 2, generator=generator())
    runs: list[Straightness] = [
        straightness(sde, start=x, w2=1.0, panels=2, solver="rk4", steps=8) for x in x1
    ]
    low, high = (math.sqrt(stats.chi2.ppf(q, 99) / 99) for q in (1e-4, 1 - 1e-4))
    for field in (
        "path_energy",
        "displacement",
        "straightness",
        "curvature",
        "normalized_path_energy",
    ):
        values = torch.tensor([getattr(run, field).value for run in runs])
        told = torch.tensor([getattr(run, field).stderr for run in runs]).square().mean().sqrt()
        assert low / 1.1 < float(values.std() / told) < high * 1.1, field


# --- evaluations for an error ---


def test_euler_needs_what_its_recursion_needs() -> None:
    """On one Gaussian dz/dφ = c(φ)·z, so that Euler's method multiplies z by Π(1 + h·c) and the
    exact flow by g(0)/g(1).
    """
    s = 0.4
    sde = scoresde.oracle(
        toy.GaussianMixture(torch.zeros(1, 2), s), scoresde.RectifiedFlow()
    ).double()
    x1 = torch.randn(100, 2, generator=generator(), dtype=torch.float64)

    def recursion(steps: int) -> float:
        phi = sde.process.phi(plan(sde, "euler", steps, None, {}).times)
        factor = 1.0
        for here, there in zip(phi.tolist(), phi.tolist()[1:], strict=False):
            cos, sin = math.cos(here), math.sin(here)
            factor *= 1 + (there - here) * cos * sin * (1 - s * s) / (
                cos * cos * s * s + sin * sin
            )
        return abs(factor - s) * float(x1.square().mean().sqrt())

    for error in (0.2, 0.03, 0.004):
        found = nfe_for_error(sde, error, start=x1, solver="euler")
        steps = next(k for k in range(1, 1000) if recursion(k) <= error)
        assert (found.nfe, found.steps, found.tolerance) == (steps, steps, None)
        assert found.error == pytest.approx(recursion(steps), rel=1e-6)


@pytest.mark.slow
def test_every_solver_meets_the_error_and_no_less_would_do() -> None:
    sde = scoresde.oracle(toy.EightGaussians(4.0, 0.3), scoresde.VPSDE()).double()
    how = {"n": 64, "generator": generator()}
    exact = scoresde.solve(sde, 64, generator=generator(), rtol=1e-11, atol=1e-11).x

    def error(**how: object) -> float:
        return float(
            (scoresde.solve(sde, start=exact[0], **how).x[-1] - exact[-1]).square().mean().sqrt()
        )  # type: ignore

    for solver in ("heun", "dpmpp_2m"):
        found = nfe_for_error(sde, 1e-2, solver=solver, n=64, generator=generator())
        assert found.steps is not None
        assert error(solver=solver, steps=found.steps) == pytest.approx(found.error, rel=1e-4)
        assert found.error <= 1e-2 < error(solver=solver, steps=found.steps - 1)
    found = nfe_for_error(sde, 1e-4, solver="rk45", adaptive=True, n=64, generator=generator())
    assert found.tolerance is not None
    assert (
        found.error
        <= 1e-4
        < error(solver="rk45", rtol=found.tolerance * 10**0.5, atol=found.tolerance * 10**0.5)
    )
    never = nfe_for_error(sde, 1e-6, most=8, **how)
    assert never.nfe == math.inf
    assert 0 < never.error < 10


def test_the_old_name_warns_and_finds_the_same() -> None:
    how = {"n": 16, "generator": generator()}
    with pytest.warns(DeprecationWarning, match="nfe_for_error"):
        found = evaluations(constant(), 1e-6, **how)
    assert found == nfe_for_error(constant(), 1e-6, n=16, generator=generator())


def test_searches_that_make_no_sense_are_refused() -> None:
    sde = scoresde.oracle(toy.Moons(), scoresde.RectifiedFlow())
    for how, message in (
        ({"solver": "em"}, "stochastic"),
        ({"solver": "euler", "adaptive": True}, "no tolerance"),
        ({"solver": "rk45", "rtol": 1e-3}, "searched for"),
        ({"solver": "rk45", "steps": 3}, "searched for"),
        ({"most": 0}, "most"),
    ):
        with pytest.raises(ValueError, match=message):
            nfe_for_error(sde, 0.1, n=4, **how)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"below .*double"):
        nfe_for_error(sde, 1e-7, n=4)
    with pytest.raises(ValueError, match="error is"):
        nfe_for_error(sde, 0.0)
