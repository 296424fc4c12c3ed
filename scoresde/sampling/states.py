"""From a call's arguments to the states at the times it asks for, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.capabilities import CAPABILITIES, Capability
from ..common.checks import check_generator, whole_number
from ..common.random import PATH, Noise, draw_seed
from ..model.protocol import Model
from ..model.require import require_model
from ..solvers import Counts, Problem, Solver
from .batches import batch_ranges, map_batches
from .failures import run_solver
from .plan import Plan, plan, starts_at_data
from .problem import levels, measured_by, prior_and_rows, problem, starting_points


@dataclass(frozen=True)
class ArcStates:
    """States on the arc to start from, (n, dim), in place of those in the units of the data."""

    z: Tensor

    def __len__(self) -> int:
        """The number of states."""
        return len(self.z)

    def __getitem__(self, rows: slice) -> ArcStates:
        """Return some of the rows."""
        return ArcStates(self.z[rows])


def solve_states(
    sde: Model,
    n: int | None,
    start: Tensor | ArcStates | None,
    solver: str | Solver | None,
    steps: int | None,
    spacing: str | None,
    times: Sequence[float] | Tensor | None,
    generator: torch.Generator | None,
    batch_size: int | None,
    options: dict[str, Any],
    *,
    seed: int | None = None,
    first_sample: int = 0,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """Times, the states at each, evaluations, accepted steps and rejected steps.

    A call with a `seed` is a part of a larger one, from its `first_sample` on.
    """
    sde = require_model(sde, "solve")
    check_generator(generator)
    n = None if n is None else whole_number("n", n)
    started = start is not None
    forward = started and starts_at_data(times)
    planned = plan(
        sde, solver, steps, spacing, options, times=times, forward=forward, started=started
    )
    if forward:
        _check_runs_to_noise(sde, planned.solver, solver)
    start, n = _accepted(sde, start, n)
    calls = len(planned.times) - 1
    batches = batch_ranges(sde, n, batch_size, calls=calls, held=len(planned.keep))
    nodes = levels(sde, planned.times)
    sde.slice_conditions(0, n, n)
    stochastic = planned.solver.stochastic
    if seed is None:
        seed = draw_seed(generator) if start is None or stochastic else 0
    drawn = seed
    measurement = measured_by(sde, planned.solver)

    def work(part: Model, first: int, stop: int) -> list[Tensor]:
        numbers = first_sample + first, first_sample + stop
        if start is None:
            z = starting_points(part, drawn, *numbers)
        else:
            z = _arc_states(part, start[first:stop], nodes[0].radius)

        solved, seen = prior_and_rows(part, measurement, first, stop)

        def task() -> Problem:
            noise = _path_noise(part, drawn, *numbers) if stochastic else _no_noise
            return problem(solved, nodes, planned.adaptive, noise, seen)

        states, counts = _trajectory(solved, planned, task, z)
        columns = (counts.nfe, counts.accepted, counts.rejected)
        tensors = (c if isinstance(c, Tensor) else torch.tensor(c, device="cpu") for c in columns)
        costs = [c.expand(stop - first) for c in tensors]
        found = [sde.to_data(nodes[k].radius * states[k]) for k in planned.keep]
        if nodes[-1].t == 0:
            found[-1] = part.at_data(found[-1])
        return [*costs, *found]

    nfe, accepted, rejected, *states = map_batches(sde, n, batches, work)
    return planned.times[list(planned.keep)], states, nfe.cpu(), accepted.cpu(), rejected.cpu()


def _accepted(
    sde: Model,
    start: Tensor | ArcStates | None,
    n: int | None,
) -> tuple[Tensor | ArcStates | None, int]:
    """The states to start from, checked if they are a user's, and the number of samples."""
    if start is None:
        return None, sde.condition_rows if n is None else n
    if not isinstance(start, ArcStates):
        start = require_model(sde, "solve(start=...)").accept(start, "start")
    if n not in (None, 1, len(start)):
        raise ValueError(f"start holds {len(start)} states and n is {n}; leave n out")
    return start, len(start)


def _arc_states(sde: Model, start: Tensor | ArcStates, radius: float) -> Tensor:
    """States on the arc of states to start from."""
    return start.z if isinstance(start, ArcStates) else sde.from_data(start) / radius


def _check_runs_to_noise(
    sde: Model,
    solver: Solver,
    named: str | Solver | None,
) -> None:
    """Raise unless the solver, and the model's velocity, lead from data to noise."""
    if solver.reversible:
        return
    if solver.stochastic:
        raise ValueError(
            f"data go to noise along the ODE, and solver {named!r} is stochastic; try 'adams'"
        )
    if solver.all_needs & {Capability.ENDPOINT, Capability.FLOW_MAP}:
        raise ValueError(
            f"data go to noise along the ODE, and solver {named!r} jumps towards the data; "
            "try 'adams'"
        )
    if "velocity" not in sde.capabilities:
        raise ValueError(f"data go to noise along the ODE: {CAPABILITIES['velocity']}")


def _trajectory(
    sde: Model,
    planned: Plan,
    task: Callable[[], Problem],
    z: Tensor,
) -> tuple[dict[int, Tensor], Counts]:
    """Solve for a batch: its arc states by the number of the level, and the costs."""
    last = len(planned.times) - 1
    inside = planned.keep[:-1]
    states = {0: z}

    def keep(i: int, z: Tensor) -> None:
        if i in inside:
            states[i] = z.clone()

    observed = task()
    observed.observe = keep
    observed.wanted = frozenset(planned.keep)
    end, counts = run_solver(sde, planned.solver, observed, z, task)
    states[last] = end
    return states, counts


def _path_noise(
    sde: Model,
    seed: int,
    start: int,
    stop: int,
) -> Noise:
    """The noise along the path of samples start to stop."""
    like = sde.scale.new_empty(0, dtype=sde.state_dtype)
    return Noise(seed, PATH, start, stop, sde.dim, like)


def _no_noise() -> Tensor:
    """What a deterministic solver has for noise: an error."""
    raise AssertionError("a deterministic solver asked for noise: set stochastic = True")
