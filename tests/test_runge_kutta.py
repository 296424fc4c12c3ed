"""Runge–Kutta methods: every number of the table, every order that is claimed, and what adaptivity
per sample is worth.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.integrate
import torch
from scipy.integrate._ivp import dop853_coefficients
from torch import Tensor, nn

import scoresde
from conftest import MIXTURES, generator, kept, some
from scoresde import SOLVERS, ScoreSDE, toy
from scoresde.sampling.problem import levels, problem
from scoresde.solvers import TABLEAUS, AdaptiveRungeKutta, Counts, Problem, RungeKutta, Tableau
from scoresde.solvers.problem import rms

ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.b_hat]
DENSE = {"bosh3": 3, "rk45": 4, "tsit5": 4, "dop853": 7}
BROAD = [[2.2, -1.0], [0.2, -0.3]], [1.9, 0.6]  # a mixture on which leading terms show early
# Heun with Euler: not closed, and nothing but b̂ is given.
TWO = Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2), (1.0, 0.0))


def double(means: list[list[float]], stds: list[float]) -> ScoreSDE:
    mixture = toy.GaussianMixture(torch.tensor(means, dtype=torch.float64), stds)
    return scoresde.oracle(mixture, scoresde.RectifiedFlow()).double()


def start(n: int, dim: int = 2, seed: int = 5) -> Tensor:
    return torch.randn(n, dim, generator=generator(seed), dtype=torch.float64)


def posed(sde: ScoreSDE, times: Tensor, adaptive: bool = True) -> Problem:
    return problem(sde, levels(sde, times), adaptive, lambda: torch.zeros(0))


def adapt(
    solver: AdaptiveRungeKutta, sde: ScoreSDE, z: Tensor, times: list[float]
) -> tuple[Tensor, Counts, list[Tensor]]:
    """The end point, the counts, and the states at the inner times."""
    task, seen = posed(sde, torch.tensor(times, dtype=torch.float64)), {}
    task.observe = lambda i, state: seen.update({i: state.clone()})
    end, counts = solver.run(task, z)
    assert torch.equal(seen[task.last], end)
    return end, counts, [seen[i] for i in range(1, task.last)]


# ---- the numbers


def polynomials(tableau: Tableau) -> np.ndarray:
    return np.array(tableau.interpolant)


def test_coefficients_are_those_of_scipy() -> None:
    """To 1e-15: a, b and c of all three, b − b̂, and the interpolants. Bogacki–Shampine's there is
    the cubic Hermite one.
    """
    for name, theirs in (("bosh3", scipy.integrate.RK23), ("rk45", scipy.integrate.RK45)):
        ours = TABLEAUS[name]
        stages = len(theirs.B)
        a = np.array([list(row) + [0.0] * (stages - len(row)) for row in ours.a[:stages]])
        np.testing.assert_allclose(a[:, : theirs.A.shape[1]], theirs.A, atol=1e-15)
        np.testing.assert_allclose(ours.b, [*theirs.B, 0.0], atol=1e-15)
        np.testing.assert_allclose(ours.c[:stages], theirs.C, atol=1e-15)
        np.testing.assert_allclose(np.abs(ours.errors[0]), np.abs(theirs.E), atol=1e-15)
        np.testing.assert_allclose(polynomials(ours), theirs.P, atol=1e-14)
    ours, theirs = TABLEAUS["dop853"], dop853_coefficients
    for rows, first in ((ours.a, 0), (ours.extra, 13)):
        for i, row in enumerate(rows, start=first):
            np.testing.assert_array_equal(row, theirs.A[i, :i])
    np.testing.assert_array_equal(ours.b, theirs.B)
    np.testing.assert_allclose(ours.c, theirs.C[:12], atol=4e-15)  # of rows with entries up to 43
    np.testing.assert_allclose(ours.errors, np.stack([theirs.E5, theirs.E3])[:, :12], atol=1e-15)


def test_dop853_interpolant_is_that_of_scipy() -> None:
    """Hairer's nested form in θ and 1 − θ against our powers of θ, whose coefficients reach 550:
    to 1e-12.
    """
    k = np.random.default_rng(0).standard_normal((16, 3))
    b, d = dop853_coefficients.B, dop853_coefficients.D
    step = b @ k[:12]
    f = np.stack([step, k[0] - step, 2 * step - k[12] - k[0], *(d @ k)])
    for theta in (0.1, 0.5, 0.9, 1.0):
        state = np.zeros(3)
        for i, row in enumerate(f[::-1]):
            state = (state + row) * (theta if i % 2 == 0 else 1 - theta)
        ours = (polynomials(TABLEAUS["dop853"]) @ theta ** np.arange(1, 8)) @ k
        np.testing.assert_allclose(ours, state, atol=1e-12)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_interpolants_meet_the_step_at_both_ends(name: str) -> None:
    """b(0) = 0, b(1) = b, and slopes k_first at 0, k_last at 1."""
    tableau = TABLEAUS[name]
    d, b = polynomials(tableau), np.array(tableau.closed.b)
    powers = np.arange(1, d.shape[1] + 1)
    unit = np.eye(len(d))
    np.testing.assert_allclose(d.sum(1), np.pad(b, (0, len(d) - len(b))), atol=1e-12)
    np.testing.assert_allclose(d[:, 0], unit[0], atol=1e-14)
    np.testing.assert_allclose(d @ powers, unit[len(b) - 1], atol=1e-11)


def test_a_tableau_must_fit() -> None:
    for bad in (
        {"a": ((), (1.0, 2.0))},
        {"b": (1.0,)},
        {"b_hat": (1.0,)},
        {"b_low": (1.0, 0.0, 0.0)},
    ):
        with pytest.raises(ValueError, match="entries"):
            replace(TWO, **bad)
    with pytest.raises(ValueError, match="b_hat"):
        AdaptiveRungeKutta(TABLEAUS["rk4"])
    assert TWO.closed.fsal
    assert scoresde.SOLVERS.build("rk23").tableau is TABLEAUS["bosh3"]
    assert scoresde.SOLVERS.build("dopri5").tableau is TABLEAUS["rk45"]


# ---- orders


def ended(sde: ScoreSDE, tableau: Tableau, n: int, z: Tensor) -> Tensor:
    """Where states end, by so many equal steps in φ."""
    return RungeKutta(tableau).run(posed(sde, times(sde, n), adaptive=False), z)[0]


@functools.cache
def ordered(high: bool) -> tuple[ScoreSDE, Tensor, Tensor]:
    """A problem for methods up to order 5 or for one of order 8, states, and where they end."""
    if high:
        sde = double([[0.0, 0.0], [1.0, 0.0], [0.0, 0.5]], [0.5, 0.5, 0.5])
    else:
        sde = double(*BROAD)
    z = start(64)
    return sde, z, ended(sde, TABLEAUS["dop853"], 100, z)


@pytest.mark.parametrize("name", some(TABLEAUS, "euler", "rk4", "rk45", "dop853"))
def test_the_end_point_has_the_stated_order(name: str) -> None:
    """Five halvings (six at order 5), the last of which is within 0.15 of the order; problems were
    chosen for their leading term to show.

    At order 5 other terms are as large until errors of 1e-10: the slope comes down to 5 from
    above, and the last one is that between 6e-12 and 2e-13. At order 8 six halvings are 14
    decades, and the last error is 1e-15: there four, by least squares.
    """
    tableau = TABLEAUS[name]
    sde, z, exact = ordered(tableau.order == 8)
    counts = np.array(
        [
            {1: 16, 2: 8, 3: 8, 4: 6, 5: 2, 8: 2}[tableau.order] * 2**k
            for k in range({5: 7, 8: 5}.get(tableau.order, 6))
        ]
    )
    errors = np.array(
        [float((ended(sde, tableau, int(n), z) - exact).square().mean().sqrt()) for n in counts]
    )
    slopes = np.log2(errors[:-1] / errors[1:])
    slope = (
        slopes[-1] if tableau.order < 8 else -np.polyfit(np.log2(counts), np.log2(errors), 1)[0]
    )
    assert slope == pytest.approx(tableau.order, abs=0.15), (slopes, errors)


def times(sde: ScoreSDE, n: int) -> Tensor:
    """Nodes uniform in φ."""
    phi = torch.linspace(sde.process.phi_max, sde.process.phi_min, n + 1, dtype=torch.float64)
    return sde.process.time(phi)


@dataclass(frozen=True)
class OneStep(AdaptiveRungeKutta):
    """Goes from the first level to the last at once."""

    def _first_step(self, problem: Problem, y: Tensor, k: Tensor, sign: float) -> Tensor:
        return torch.full(
            (len(y),), problem.levels[-1].phi - problem.levels[0].phi, dtype=torch.float64
        )


@pytest.mark.parametrize("name", ADAPTIVE)
def test_dense_output_has_its_order(name: str) -> None:
    """Within one step of size h the state is off by O(h^{q+1}); q = 3, 4, 4, 7. Slope of the last
    halving within 0.2.
    """
    sde, z = double(*BROAD), start(64)
    high, order = 1.1, DENSE[name]
    errors = []
    for k in range(5):
        h = (1.2 if order == 7 else 0.4) * 2.0**-k
        phi = torch.tensor([high, high - 0.4 * h, high - 0.7 * h, high - h], dtype=torch.float64)
        nodes = sde.process.time(phi)
        _, counts, states = adapt(
            OneStep(TABLEAUS[name], rtol=1e6, atol=1e6), sde, z, nodes.tolist()
        )
        assert bool((counts.accepted == 1).all())
        worst = 0.0
        for i, state in enumerate(states, start=1):
            fine = torch.linspace(high, float(phi[i]), 9, dtype=torch.float64)
            exact = RungeKutta(TABLEAUS["dop853"]).run(
                posed(sde, sde.process.time(fine), adaptive=False), z
            )[0]
            worst = max(worst, float((state - exact).square().mean().sqrt()))
        errors.append(worst)
    seen = [e for e in errors if e > 1e-13]
    assert len(seen) >= 3
    assert math.log2(seen[-2] / seen[-1]) == pytest.approx(order + 1, abs=0.2), errors


# ---- dense output in a solve


STATIONS = [1.0, 0.93, 0.8, 0.61, 0.6, 0.4, 0.2, 0.05, 1e-3, 0.0]


@functools.cache
def on_the_way(forward: bool) -> tuple[Tensor, list[Tensor]]:
    """40 states to begin with, and where each is at every time on the way, by a solve of its own
    at 1e-10.
    """
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE()).double()
    z, path = start(40), STATIONS[::-1] if forward else STATIONS
    if forward:
        z = MIXTURES["8 Gaussians"].sample(40, generator=generator()).double()
    tight = AdaptiveRungeKutta(TABLEAUS["dop853"], rtol=1e-10, atol=1e-10)
    return z, [adapt(tight, sde, z, [path[0], t])[0] for t in path[1:-1]]


@pytest.mark.parametrize(
    ("name", "forward"),
    kept(itertools.product(ADAPTIVE, [False, True]), lambda name, _: name == "rk45"),
)
def test_wanted_times_change_nothing_but_are_met(name: str, forward: bool) -> None:
    """The end point is the same to the last bit, and so are steps; extra evaluations are what
    extra stages cost.

    States on the way are within 20 tolerances of a solve at 1e-10.
    """
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE()).double()
    (z, exact), path = on_the_way(forward), STATIONS[::-1] if forward else STATIONS
    tolerance = 1e-6 if name == "bosh3" else 1e-7  # of order 3, it takes hundreds of steps
    solver = AdaptiveRungeKutta(TABLEAUS[name], rtol=tolerance, atol=tolerance)
    plain, alone, _ = adapt(solver, sde, z, [path[0], path[-1]])
    end, counts, states = adapt(solver, sde, z, path)
    assert torch.equal(end, plain)
    assert torch.equal(counts.accepted, alone.accepted)
    assert torch.equal(counts.rejected, alone.rejected)
    extra = counts.nfe - alone.nfe
    stages = len(TABLEAUS[name].extra)
    assert bool((extra <= stages * len(states)).all())
    assert (int(extra.max()) > 0) == (stages > 0)
    for state, wanted, t in zip(states, exact, path[1:-1], strict=True):
        error = float((state - wanted).square().mean().sqrt())
        assert error < 20 * tolerance, t


@pytest.mark.parametrize("name", ADAPTIVE)
def test_evaluations_are_counted_and_mates_do_not_matter_on_the_way(name: str) -> None:
    """The rows a network sees are what samples report; replacing the mates changes no bit of a
    path.
    """

    class Counting(nn.Module):
        rows = 0

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.rows += len(x)
            return torch.tanh(3 * x) * 0.8 - 0.3 * x * t.unsqueeze(1)

    net = Counting()
    sde = ScoreSDE(scoresde.VPSDE(), net, shape=(3,), predict="edm")
    z, paths = torch.randn(33, 3, generator=generator()), []
    for scale, place in ((1.0, 0), (3.0, 17), (1e-2, 32)):
        batch = scale * torch.randn(33, 3, generator=generator(1))
        batch[place] = z[0]
        net.rows = 0
        end, counts, states = adapt(AdaptiveRungeKutta(TABLEAUS[name]), sde, batch, STATIONS)
        assert net.rows == int(counts.nfe.sum())
        paths.append(torch.stack([*states, end])[:, place])
    assert torch.equal(paths[0], paths[1])
    assert torch.equal(paths[0], paths[2])


def test_times_closer_than_the_smallest_angle_are_the_end_itself() -> None:
    """A prediction singular at σ = 0 stops at the hair; stations below it coincide with the end,
    or with the start forward.
    """

    class Shrink(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 0.5 * x

    sde = ScoreSDE(
        scoresde.VPSDE(), Shrink(), shape=(2,), predict="x0", input_convention="raw"
    ).double()
    z = start(5)
    end, _, states = adapt(AdaptiveRungeKutta(TABLEAUS["rk45"]), sde, z, [1.0, 0.5, 1e-9, 0.0])
    torch.testing.assert_close(states[-1], end, rtol=0, atol=1e-12)
    _, _, states = adapt(AdaptiveRungeKutta(TABLEAUS["rk45"]), sde, z, [0.0, 1e-9, 0.5, 1.0])
    assert torch.equal(states[0], z)


# ---- step control


@functools.cache
def hundred_ends() -> Tensor:
    """Where 100 samples end, by Dormand–Prince 8(5,3) at 1e-12."""
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE()).double()
    tight = AdaptiveRungeKutta(TABLEAUS["dop853"], rtol=1e-12, atol=1e-12)
    return adapt(tight, sde, start(100), [1.0, 0.0])[0]


@pytest.mark.parametrize("name", some([*ADAPTIVE, "custom"], "rk45", "dop853", "custom"))
def test_tolerance_rules_the_error(name: str) -> None:
    tableau = TABLEAUS.get(name, TWO)
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE()).double()
    z = start(100)
    exact = hundred_ends()
    cost = 0.0
    decades = {2: (1e-3, 1e-4), 3: (1e-3, 1e-5), 8: (1e-3, 1e-5, 1e-7, 1e-9)}
    for tolerance in decades.get(tableau.order, (1e-3, 1e-5, 1e-7)):
        end, counts, states = adapt(
            AdaptiveRungeKutta(tableau, rtol=tolerance, atol=tolerance), sde, z, [1.0, 0.3, 0.0]
        )
        assert float((end - exact).square().mean().sqrt()) < 100 * tolerance
        assert states[0].isfinite().all()
        assert float(counts.nfe.double().mean()) > cost
        cost = float(counts.nfe.double().mean())
        per_step = len(tableau.closed.b) - 1
        most = 2 + per_step * (counts.accepted + counts.rejected) + len(tableau.extra)
        assert bool((counts.nfe <= most).all() & (counts.nfe >= most - len(tableau.extra)).all())


def test_a_field_without_error_takes_the_largest_steps() -> None:
    """A unit Gaussian does not move on the arc: every estimate is exactly 0, and dop853's
    combination of two is not 0/0.
    """
    sde = scoresde.oracle(
        toy.GaussianMixture(torch.zeros(1, 2), 1.0), scoresde.RectifiedFlow()
    ).double()
    for name in ADAPTIVE:
        _, counts, _ = adapt(AdaptiveRungeKutta(TABLEAUS[name]), sde, start(4), [1.0, 0.0])
        assert int(counts.rejected.max()) == 0
        assert int(counts.accepted.max()) < 8


@pytest.mark.slow
def test_memory_does_not_grow_with_steps() -> None:
    """Tensors alive at an evaluation: no more after 100 attempted steps than before, but for what
    one step holds.
    """
    alive: list[int] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            if len(alive) % 100 == 0:
                alive.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
            else:
                alive.append(alive[-1])
            return torch.sin(20 * x + 30 * t.unsqueeze(1))

    sde = ScoreSDE(scoresde.VPSDE(), Watching(), shape=(2,)).double()
    with torch.no_grad():
        AdaptiveRungeKutta(TABLEAUS["rk45"], rtol=1e-7, atol=1e-7).run(
            posed(sde, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)), start(1)
        )
    assert len(alive) > 600
    assert max(alive[600:]) <= max(alive[:600]) + 10


# ---- what it is worth


@dataclass(frozen=True)
class Shared(AdaptiveRungeKutta):
    """The same tableau and controller with one step for the whole batch, by the largest error in
    it.
    """

    def _first_step(self, problem: Problem, y: Tensor, k: Tensor, sign: float) -> Tensor:
        h = super()._first_step(problem, y, k, sign)
        return (h.abs().min() * sign).expand_as(h).clone()

    def _error(self, problem, *args):  # type: ignore[no-untyped-def]
        error, gauge = super()._error(problem, *args)
        return error.max().expand_as(error).clone(), gauge


class EasyAndStiff(nn.Module):
    """Sample i comes from a Gaussian mixture with a spread of its own, std[i] in condition: from
    0.02 (stiff) to 1 (easy).
    """

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means)

    def forward(self, x: Tensor, t: Tensor, std: Tensor) -> Tensor:
        phi = scoresde.RectifiedFlow().phi(t).unsqueeze(1)
        z, cos, sin, std = (
            x / torch.hypot(t, 1 - t).unsqueeze(1),
            torch.cos(phi),
            torch.sin(phi),
            std.unsqueeze(1),
        )
        var = (cos * std).square() + sin.square()
        away = z.unsqueeze(1) - cos.unsqueeze(1) * self.means
        share = torch.softmax(-0.5 * away.square().sum(2) / var, 1).unsqueeze(2)
        x0 = (share * (self.means + (cos * std.square() / var).unsqueeze(1) * away)).sum(1)
        eps = (share * (sin / var).unsqueeze(1) * away).sum(1)
        return sin * x0 - cos * eps


def mixed(name: str) -> tuple[ScoreSDE, Tensor]:
    """Two batches of 1,000: eight modes with a spread for each sample, and one mixture of modes of
    very unequal spread.
    """
    if name == "a spread for each":
        angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
        net = EasyAndStiff(2 * torch.stack([angles.cos(), angles.sin()], 1))
        sde = ScoreSDE(scoresde.RectifiedFlow(), net, shape=(2,), input_convention="raw").double()
        spread = torch.logspace(math.log10(0.02), 0.0, 1000, dtype=torch.float64)
        return sde.given(std=spread), start(1000)
    return double([[0.0, 0.0], [3.0, 0.0], [0.0, -3.0]], [1.0, 0.3, 0.02]), start(1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a spread for each", "unequal modes"])
def test_steps_for_each_sample_pay(name: str) -> None:
    """Rows evaluated by steps per sample ÷ by one shared step, each at the cheapest tolerance that
    keeps the worst error small.

    At worst errors of 1e-4 and 1e-5 the ratio is at most 0.75, and so is the geometric mean from
    1e-2 on. Single ratios at 1e-2 and 1e-3 are not held to it: one sample in a thousand decides
    them, and over seeds they run from 0.5 to 0.9.
    """
    sde, z = mixed(name)
    exact, _, _ = adapt(
        AdaptiveRungeKutta(TABLEAUS["dop853"], rtol=1e-12, atol=1e-12), sde, z, [1.0, 0.0]
    )
    cost = {}
    for kind in (AdaptiveRungeKutta, Shared):
        points = []
        for exponent in np.arange(2.0, 8.6, 0.25):
            end, counts, _ = adapt(
                kind(TABLEAUS["rk45"], rtol=10**-exponent, atol=10**-exponent), sde, z, [1.0, 0.0]
            )
            points.append((float((end - exact).abs().max()), int(counts.nfe.sum())))
        cost[kind] = np.array(
            [
                min(rows for error, rows in points if error <= target)
                for target in (1e-2, 1e-3, 1e-4, 1e-5)
            ]
        )
    ratios = cost[AdaptiveRungeKutta] / cost[Shared]
    assert ratios[2:].max() <= 0.75, ratios
    assert np.exp(np.log(ratios).mean()) <= 0.75, ratios


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a spread for each", "unequal modes"])
def test_steps_and_orders_for_each_sample_pay(name: str) -> None:
    """The same for the default solver, "adams", whose shared variant takes the largest norm in the
    batch for all of it.

    The geometric mean from 1e-2 to 1e-6 is at most 0.75. Single ratios are not all: over two seeds
    they ran from 0.46 to 0.85.
    """
    sde, z = mixed(name)
    exact, _, _ = adapt(
        AdaptiveRungeKutta(TABLEAUS["dop853"], rtol=1e-12, atol=1e-12), sde, z, [1.0, 0.0]
    )
    cost = []
    for norm in (
        rms,
        lambda e: rms(e).reshape(-1, len(z)).amax(1, keepdim=True).expand(-1, len(z)).flatten(),
    ):
        points = []
        for exponent in np.arange(2.0, 8.6, 0.5):
            task = posed(sde, torch.tensor([1.0, 0.0], dtype=torch.float64))
            task.norm = norm
            end, counts = SOLVERS.build("adams", rtol=10**-exponent, atol=10**-exponent).run(
                task, z
            )
            points.append((float((end - exact).abs().max()), int(counts.nfe.sum())))
        cost.append(
            [
                min(rows for error, rows in points if error <= target)
                for target in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
            ]
        )
    ratios = np.array(cost[0]) / np.array(cost[1])
    assert np.exp(np.log(ratios).mean()) <= 0.75, ratios
