"""The gradient that a solver carries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import scoresde
from conftest import generator, some
from scoresde import SOLVERS
from scoresde.sampling.problem import levels
from scoresde.solvers import TABLEAUS, AdaptiveRungeKutta, Problem, Solver

# Lends its levels: the whole arc, from π/2 to 0.
ARC = scoresde.build("rectified", "mlp", shape=(1,))
EMBEDDED = [name for name, tableau in TABLEAUS.items() if tableau.b_hat]
ODE = [
    name
    for name in SOLVERS
    if SOLVERS.build(name).ode and not name.startswith(("test", "doctest"))
]


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
