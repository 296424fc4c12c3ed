"""What a solver says of its own error, and the gradient that it carries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import scoresde
from conftest import generator, some
from scoresde import SOLVERS
from scoresde.sampling.problem import levels
from scoresde.solvers import TABLEAUS, Adams, AdaptiveRungeKutta, Problem, Solver
from scoresde.solvers.adams import TAIL
from scoresde.solvers.multistep import Row, march

# Lends its levels: the whole arc, from π/2 to 0.
ARC = scoresde.build("rectified", "mlp", shape=(1,))
EMBEDDED = [name for name, tableau in TABLEAUS.items() if tableau.b_hat]
ODE = [
    name
    for name in SOLVERS
    if SOLVERS.build(name).ode and not name.startswith(("test", "doctest"))
]
FIXED_ORDER = 5  # of Adams methods in the velocity, on a grid of 16 steps


def column(phi: float | Tensor) -> float | Tensor:
    """An angle, or one a row."""
    return phi.unsqueeze(1) if isinstance(phi, Tensor) else phi


def posed(velocity: Callable[..., Tensor], steps: int | None, **how: Any) -> Problem:
    """A problem on the whole arc, adaptive unless there are steps, which then are even in φ."""
    angles = torch.linspace(math.pi / 2, 0, (steps or 1) + 1, dtype=torch.float64)
    nodes = levels(ARC, ARC.process.time(angles))
    return Problem(
        nodes, velocity, lambda z, i: (z, z), lambda: torch.zeros(0), steps is None, **how
    )


def last(error: Tensor, z: Tensor, v: Tensor, phi: float | Tensor) -> Tensor:
    return error[:, -1].abs()


class Area:
    """∫ f dφ: a velocity that does not depend on the state, so that errors add up; remembers where
    it was asked.
    """

    def __init__(self) -> None:
        self.asked: list[float] = []

    @staticmethod
    def f(phi: np.ndarray | float) -> np.ndarray:
        return np.exp(np.sin(3 * np.asarray(phi)))

    def __call__(self, z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        self.asked.append(float(phi))
        return torch.full_like(z, float(self.f(self.asked[-1])))


# ---- sums of local errors


@pytest.mark.parametrize("name", EMBEDDED)
def test_runge_kutta_sums_its_estimates_over_accepted_steps(name: str) -> None:
    """Σ|h·Σ(b − b̂)·f(φ + c·h)| from the angles that were asked for: to 1e-8 of it. Some steps are
    rejected, and do not count.
    """
    solver, area = AdaptiveRungeKutta(TABLEAUS[name], rtol=1e-7, atol=1e-7), Area()
    _, counts = solver.run(posed(area, None, measure=last), torch.zeros(1, 1, dtype=torch.float64))
    c = np.array(solver.tableau.closed.c)
    # After the start and the probe for a first step.
    tries = np.array(area.asked[2:]).reshape(-1, len(c) - 1)
    ends, steps = tries[:, -1], (tries[:, -1] - tries[:, 0]) / (1 - c[1])
    starts = ends - steps
    taken = np.append(np.abs(starts[1:] - ends[:-1]) < 1e-9, True)
    total = 0.0
    for start, step in zip(starts[taken], steps[taken], strict=True):
        high, *low = (
            abs(step * np.dot(w, Area.f(start + c[: len(w)] * step)))
            for w in map(np.array, solver.tableau.errors)
        )
        total += high**2 / math.hypot(high, 0.1 * low[0]) if low else high
    assert int(counts.accepted) == taken.sum()
    assert counts.error is not None
    np.testing.assert_allclose(counts.error.numpy(), [total], rtol=1e-6, atol=1e-16)


def test_adams_sums_its_estimates_over_accepted_steps() -> None:
    """At max_order=2 it predicts by Euler and corrects by the trapezoidal rule: of ½h·(f' − f) a
    share is left as error.
    """
    area = Area()
    solver = Adams(rtol=1e-4, atol=1e-4, max_order=2)
    _, counts = solver.run(posed(area, None, measure=last), torch.zeros(1, 1, dtype=torch.float64))
    total, here, rejected = 0.0, area.asked[0], 0
    for there, after in zip(area.asked[1:], [*area.asked[2:], -1.0], strict=True):
        if after < there:
            total += abs(TAIL * 0.5 * (there - here) * float(Area.f(there) - Area.f(here)))
            here = there
        else:
            rejected += 1
    assert (int(counts.rejected), rejected > 0) == (rejected, True)
    np.testing.assert_allclose(counts.error.numpy(), [total], rtol=1e-12)


def test_adams_on_a_grid_sums_what_its_corrector_adds() -> None:
    """Integrals of the polynomials through k and through k + 1 nodes, by numpy's own fits: Σ|∫
    (P_{k+1} − P_k) dφ|.
    """
    steps, order = 16, FIXED_ORDER - 1
    area = Area()
    task = posed(area, steps, measure=last)
    _, counts = march(
        Row("v", FIXED_ORDER, corrector=True), task, torch.zeros(1, 1, dtype=torch.float64)
    )
    phi = np.linspace(math.pi / 2, 0, steps + 1)
    np.testing.assert_allclose(area.asked, phi[:-1], atol=1e-12)
    total = 0.0
    for i in range(steps - 1):  # the last is not corrected
        known = phi[max(0, i + 1 - order) : i + 1]
        integrals = []
        for nodes in (known, np.append(known, phi[i + 1])):
            x = nodes - phi[i]
            whole = np.polyint(np.polyfit(x, Area.f(nodes), len(nodes) - 1))
            integrals.append(np.polyval(whole, phi[i + 1] - phi[i]))
        total += abs(integrals[1] - integrals[0])
    np.testing.assert_allclose(counts.error.numpy(), [total], rtol=1e-8)


def density(z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
    """(v, dv/dz) of the mixture of N(±1.5, 0.4²), in closed form: the second column gathers
    log-density.
    """
    with torch.enable_grad():
        x = z[:, :1].detach().requires_grad_()
        angle = torch.as_tensor(column(phi), dtype=z.dtype)
        cos, sin = angle.cos(), angle.sin()
        variance = 0.4**2 * cos**2 + sin**2
        mean = 1.5 * torch.tanh(1.5 * cos * x / variance)  # of the components, given x
        bare = (x - cos * mean) / variance
        v = cos * sin * bare - sin * (mean + 0.4**2 * cos * bare)
        (slope,) = torch.autograd.grad(v.sum(), x)
    return torch.cat([v.detach(), slope], 1)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("adams", 1e-2),
        ("adams", 1e-4),
        ("adams", 1e-6),
        ("rk45", 1e-5),
        ("rk45", 1e-7),
        ("dop853", 1e-5),
        ("dop853", 1e-7),
    ],
)
def test_twice_the_sum_is_a_fair_bound_of_the_error_of_a_log_density(
    name: str, tolerance: float
) -> None:
    """Of 200 samples at most a tenth are further from a solve at 1e-11 than that; and in the
    median it says ≤ 100 ×.

    A state that has gone astray spoils log-densities that are themselves well integrated, which no
    sum of local errors sees: at 1e-4 many of rk45's errors are larger than the sum, and at 1e-3
    most.
    """
    z = torch.randn(200, 1, generator=generator(), dtype=torch.float64)
    start = torch.cat([z, torch.zeros_like(z)], 1)
    exact, _ = SOLVERS.build("dop853", rtol=1e-11, atol=1e-11).run(posed(density, None), start)
    end, counts = SOLVERS.build(name, rtol=tolerance, atol=tolerance).run(
        posed(density, None, measure=last), start
    )
    error = (end - exact)[:, 1].abs()
    assert float((error > 2 * counts.error).double().mean()) <= 0.1
    assert float((2 * counts.error / error).median()) < 100


@pytest.mark.parametrize("steps", [None, 20])
@pytest.mark.parametrize("name", ODE)
def test_measuring_changes_nothing_else_and_mates_do_not_matter(
    name: str, steps: int | None
) -> None:
    """The same bits with a measure, and for a sample the same sum with other mates. Who has no
    estimate says None.
    """

    def velocity(z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        return torch.sin(5 * z) - 0.3 * z * column(phi)

    solver = SOLVERS.build(name)
    z = torch.randn(37, 3, generator=generator(), dtype=torch.float64)
    adaptive = steps is None and solver.steps is None
    runs = [
        solver.run(posed(velocity, None if adaptive else 20, measure=m), z) for m in (None, last)
    ]
    (plain, without), (end, counts) = runs
    assert torch.equal(plain, end)
    assert without.error is None
    if not adaptive and name != "adams":
        assert counts.error is None
        return
    assert counts.error.dtype == torch.float64
    assert bool((counts.error > 0).all())
    _, fewer = solver.run(posed(velocity, None if adaptive else 20, measure=last), z[20:])
    assert torch.equal(fewer.error, counts.error[20:])


# ---- gradients

WEIGHTS = torch.tensor([0.7, -0.3, 0.4], dtype=torch.float64)


def network(weights: Tensor) -> Callable[..., Tensor]:
    def velocity(z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        angle = torch.as_tensor(column(phi), dtype=z.dtype)
        return weights[0] * torch.sin(2 * z + weights[1]) + weights[2] * torch.cos(angle) * z.flip(
            1
        )

    return velocity


def loss(solver: Solver, steps: int | None, weights: Tensor, z: Tensor) -> Tensor:
    """A function of the end points, and of the states on the way."""
    task = posed(network(weights), steps)
    if steps is None:
        task.levels = (task.levels[0], *posed(network(weights), 3).levels[1:])
    seen: list[Tensor] = []
    task.observe = lambda i, state: seen.append(state)
    end, _ = solver.run(task, z)
    return (
        end * torch.linspace(-1, 2, end.numel(), dtype=end.dtype).reshape(end.shape)
    ).sum() + seen[0].square().sum()


def gradients(
    solver: Solver, steps: int | None, directions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """By autograd, and by central differences, along directions in (weights, z): all axes unless
    they are given.
    """
    z = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    weights, start = WEIGHTS.clone().requires_grad_(), z.clone().requires_grad_()
    ours = torch.cat(
        [
            g.flatten()
            for g in torch.autograd.grad(loss(solver, steps, weights, start), (weights, start))
        ]
    )
    at, theirs = torch.cat([WEIGHTS, z.flatten()]), []
    directions = torch.eye(len(at), dtype=at.dtype) if directions is None else directions
    for direction in directions:
        with torch.no_grad():
            high, low = (
                loss(solver, steps, x[:3], x[3:].reshape(3, 2))
                for x in (at + 1e-5 * direction, at - 1e-5 * direction)
            )
        theirs.append((high - low) / 2e-5)
    return directions @ ours, torch.stack(theirs)


@pytest.mark.parametrize("name", [*ODE, "torchdiffeq:rk4", "torchdiffeq:explicit_adams"])
def test_gradient_on_a_grid_is_that_of_finite_differences(name: str) -> None:
    torch.testing.assert_close(*gradients(SOLVERS.build(name), 12), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    some(
        ["adams", *EMBEDDED, "torchdiffeq:dopri5", "torchdiffeq:dopri8"],
        "adams",
        "dop853",
        "torchdiffeq:dopri8",
    ),
)
def test_gradient_with_steps_held_fixed_is_that_of_finite_differences(name: str) -> None:
    """The steps of the differences are free to move: at 1e-8 the end points move by less than 1e-8
    with them, of 2e-5.
    """
    solver = SOLVERS.build(name, rtol=1e-10, atol=1e-10)
    directions = torch.randn(2, 9, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(*gradients(solver, None, directions), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_loose_solve_holds_its_steps_fixed() -> None:
    """At a tolerance of 1e-2 too it is that of the steps taken: the same steps as a tableau on a
    grid give the same gradient.

    One sample, so that all take them; the grid is that of the angles which the solve asked for.
    """
    z, weights = torch.full((1, 2), 0.5, dtype=torch.float64), WEIGHTS.clone().requires_grad_()
    asked: list[float] = []

    def velocity(z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        asked.append(float(phi))
        return network(weights)(z, phi, rows)

    solver = AdaptiveRungeKutta(TABLEAUS["rk45"], rtol=1e-2, atol=1e-2)
    end, counts = solver.run(posed(velocity, None), z)
    assert int(counts.rejected) == 0
    angles = torch.tensor([asked[0], *asked[7::6]], dtype=torch.float64)
    grid = Problem(
        levels(ARC, ARC.process.time(angles)),
        network(weights),
        lambda z, i: (z, z),
        lambda: z,
        False,
    )
    again, _ = solver.run(grid, z)
    (a,), (b,) = (torch.autograd.grad(x.sum(), weights) for x in (end, again))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_failed_try_does_not_spoil_the_gradient() -> None:
    """A narrow bend that makes every solver retry; rejected steps leave nothing behind."""

    def bend(weights: Tensor, start: Tensor, name: str) -> tuple[Tensor, Any]:
        def velocity(z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
            angle = torch.as_tensor(column(phi), dtype=z.dtype)
            return weights[0] * z + weights[1] * torch.exp(
                -((angle - 0.7) ** 2) / 0.02**2
            ) * torch.cos(z)

        return SOLVERS.build(name, rtol=1e-10, atol=1e-10).run(posed(velocity, None), start)

    z = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(1)
    for name in ("adams", "rk45", "dop853"):
        weights = WEIGHTS[:2].clone().requires_grad_()
        end, counts = bend(weights, z, name)
        assert int(counts.rejected.sum()) > 0
        (ours,) = torch.autograd.grad(end.sum(), weights)
        theirs = []
        for i in range(2):
            step = torch.eye(2, dtype=torch.float64)[i] * 1e-4
            theirs.append(
                (
                    bend(WEIGHTS[:2] + step, z, name)[0].sum()
                    - bend(WEIGHTS[:2] - step, z, name)[0].sum()
                )
                / 2e-4
            )
        torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wants", ["z", "velocity"])
def test_scipy_carries_no_gradient_and_says_so(wants: str) -> None:
    weights, z = WEIGHTS.clone(), torch.ones(2, 2, dtype=torch.float64)
    (z if wants == "z" else weights).requires_grad_()
    task, solver = posed(network(weights), None), SOLVERS.build("scipy:RK45")
    with pytest.raises(TypeError, match="scipy solvers carry no gradient; use 'adams'"):
        solver.run(task, z)
    with torch.no_grad():
        assert bool(solver.run(task, z)[0].isfinite().all())
