"""The adaptive loop that all adaptive solvers share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import scoresde
from conftest import generator
from scoresde.sampling.problem import levels
from scoresde.solvers import Problem
from scoresde.solvers.adaptive import AdaptiveSolve, Survivors, Trial


def test_samples_leave_with_their_values_and_come_back_in_order() -> None:
    """Of three samples the second leaves first."""
    under_way = Survivors(3, torch.device("cpu"))
    assert under_way.some is None
    stay = under_way.leave(torch.tensor([False, True, False]), torch.tensor([1.0, 2.0, 3.0]))
    assert stay.tolist() == [0, 2]
    assert under_way.some is not None
    assert under_way.some.tolist() == [0, 2]
    under_way.leave(torch.tensor([True, True]), torch.tensor([10.0, 30.0]))
    assert [column.tolist() for column in under_way.all()] == [[10.0, 2.0, 30.0]]


@dataclass(slots=True)
class HeunTrial(Trial):
    step: Tensor


class HeunSolve(AdaptiveSolve[HeunTrial]):
    """Heun's method with Euler's for the error, written as a new method would be."""

    def __init__(self, problem: Problem, z: Tensor) -> None:
        super().__init__(problem, z)
        self.h = torch.full_like(self.phi, math.copysign(0.01, self.end - self.start))

    def propose(self) -> HeunTrial:
        room = self.end - self.phi
        step = torch.where(room / self.h < 1.01, room, self.h)
        there = torch.where(room / self.h < 1.01, self.end, self.phi + self.h)
        rows, h = self.under_way.some, step.unsqueeze(1)
        v = self.problem.velocity(self.y, self.phi, rows)
        v1 = self.problem.velocity(self.y + h * v, there, rows)
        error = self.problem.norm(0.5 * h * (v1 - v) / 1e-4)
        return HeunTrial(self.y + 0.5 * h * (v + v1), there, error, v1, step)

    def resize(self, trial: HeunTrial, good: Tensor) -> None:
        growth = (0.8 / trial.error.sqrt()).clamp(0.1, 5.0).nan_to_num(nan=0.1)
        self.h = trial.step * growth

    def stuck(self, trial: HeunTrial, good: Tensor) -> Tensor | None:
        return self.h.abs() < 1e-12

    def evaluations(self, tried: Tensor, accepted: Tensor, good: Tensor) -> Tensor:
        return 2 * tried

    def inner_states(self) -> Iterable[Tensor]:
        return []


RATES = torch.tensor([-3.0, 0.1, 2.0], dtype=torch.float64)


def posed(times: list[float]) -> Problem:
    """Three samples with dz/dφ = rate·z, infinite where z > 1,000."""
    sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.RectifiedFlow())

    def velocity(z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        rate = RATES[: len(z)] if rows is None else RATES[rows]
        return torch.where(z > 1000, math.inf, rate.unsqueeze(1) * z)

    nodes = levels(sde, torch.tensor(times, dtype=torch.float64))
    return Problem(nodes, velocity, None, None, adaptive=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("times", [[1.0, 0.0], [0.0, 1.0]])
def test_a_new_method_needs_a_step_and_a_step_size(times: list[float]) -> None:
    """Each sample reaches the exact end, with steps of its own, and only its own evaluations."""
    problem = posed(times)
    z = torch.ones(3, 2, dtype=torch.float64)
    end, counts = HeunSolve(problem, z).run(10_000)
    span = problem.levels[-1].phi - problem.levels[0].phi
    exact = z * (RATES * span).exp().unsqueeze(1)
    assert not bool(torch.as_tensor(counts.failed).any())
    torch.testing.assert_close(end, exact, rtol=1e-2, atol=1e-2)
    accepted = torch.as_tensor(counts.accepted)
    assert len(set(accepted.tolist())) == 3
    assert int(accepted.argmin()) == 1
    alone, costs = HeunSolve(posed(times), z[:1]).run(10_000)
    assert torch.equal(alone, end[:1])
    assert torch.equal(torch.as_tensor(costs.nfe), torch.as_tensor(counts.nfe)[:1])


@pytest.mark.parametrize(("start", "steps", "reason"), [(2000.0, 1000, "nan"), (1.0, 3, "steps")])
def test_a_failure_has_a_reason(start: float, steps: int, reason: str) -> None:
    z = torch.ones(3, 2, dtype=torch.float64)
    z[1] = start
    _, counts = HeunSolve(posed([1.0, 0.0]), z).run(steps)
    assert counts.reason == reason
    assert bool(torch.as_tensor(counts.failed)[1])


ADAPTIVE = ["adams", "rk45", "dpm_adaptive", "ggf"]


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_a_failed_sample_is_reported_where_it_stopped(solver: str) -> None:
    sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    starts = scoresde.solve(sde, 20, solver=solver, generator=generator()).x[0]
    with pytest.raises(scoresde.SolverError, match="the steps ran out") as caught:
        scoresde.sample(sde, 20, solver=solver, max_steps=6, generator=generator())
    failed, x = caught.value.failed, caught.value.x
    assert failed is not None
    assert x is not None
    assert bool(failed.all())
    assert bool(x.isfinite().all())
    assert bool((x != starts).all())


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_times_that_share_an_angle_share_a_state(solver: str) -> None:
    """With predict="x0" a solve ends at a small angle, which stands for all times below."""
    torch.manual_seed(0)
    net = scoresde.BACKBONES.build("mlp", (2,), width=8, depth=1)
    sde = scoresde.ScoreSDE(scoresde.RectifiedFlow(), net, shape=(2,), predict="x0")
    times = torch.tensor([1.0, 0.3, 1e-9, 0.0], dtype=torch.float64)
    nodes = levels(sde, times)
    assert nodes[2].phi == nodes[3].phi
    x = scoresde.solve(sde, 4, solver=solver, times=times, generator=generator()).x
    # Both are multiplied by the radius at their time.
    torch.testing.assert_close(x[2], x[3], rtol=1e-6, atol=1e-6)
