"""Running a solver, and the errors that tell a user what went wrong in it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from torch import Tensor

from ..common.errors import SolverError
from ..common.progress import Bar, current
from ..model.protocol import Model
from ..solvers import Calls, Counts, Problem, Solver

REASONS = {
    "nan": (
        "the network's output is not finite, or its trace",
        "check the weights and the data's scale",
    ),
    "stuck": (
        "the step size fell below 1e-12",
        "raise rtol= and atol=: this field is rougher than they ask",
    ),
    "steps": ("the steps ran out", "raise max_steps=, or rtol= and atol="),
}
"""Why an adaptive solve failed, by `Counts.reason`, and what to try."""


def run_solver(
    sde: Model, solver: Solver, task: Problem, z: Tensor, again: Callable[[], Problem]
) -> tuple[Tensor, Counts]:
    """Run a solver, count its evaluations, and raise `SolverError` if samples fail."""

    def to_data(z: Tensor) -> Tensor:
        return sde.to_data(z[:, : sde.dim] * task.levels[-1].radius)

    calls = Calls(len(z))
    end, counts = solver.run(with_bar(task.wrapped(calls), len(z)), z)
    counts = dataclasses.replace(counts, nfe=calls.nfe * sde.cost)
    if counts.failed is not None and bool(counts.failed.any()):
        why, advice = REASONS[counts.reason]
        raise SolverError(
            f"{int(counts.failed.sum())} of {len(z)} samples did not get from t = "
            f"{task.levels[0].t:g} to t = {task.levels[-1].t:g}: {why}; {advice}. "
            "The exception holds the others of this batch in .x, and which failed in .failed",
            counts.failed,
            to_data(end),
        )
    bad = ~end.isfinite().all(1)
    if bool(bad.any()):
        # A check at every step would stall a GPU. Solve the same problem again, with one.
        solver.run(stop_at_nan(again(), to_data), z)
        raise SolverError(
            f"{int(bad.sum())} of {len(z)} samples are not finite; take more steps=",
            bad,
            to_data(end),
        )
    return end, counts


def with_bar(problem: Problem, n: int) -> Problem:
    """The same problem of n samples, which moves the bar that is shown, if one is."""
    bar = current()
    if bar is None:
        return problem
    return problem.wrapped(functools.partial(_move, bar, problem, n))


def _move(
    bar: Bar,
    problem: Problem,
    n: int,
    z: Tensor,
    rows: Tensor | None,
    at: int | float | Tensor,
    *out: Tensor,
) -> None:
    """Move a bar to where a solve of n samples is: in levels, or in angles of the path."""
    if not bar.due():
        return  # before anything is read from a device
    if isinstance(at, int):
        bar.move(at / max(problem.last, 1), f"step {at} of {problem.last}")
        return
    first = problem.levels[0].phi
    last = problem.levels[-1].phi
    phi = float(at.mean()) if isinstance(at, Tensor) else at
    share = (phi - first) / (last - first)
    going = 1.0 if rows is None else len(rows) / n
    text = ""
    if not problem.adaptive:
        done = sum((level.phi - phi) * (last - first) < 0 for level in problem.levels)
        text = f"step {done} of {problem.last}"
    bar.move(1 - going * (1 - share), text)  # finished samples count as done


def stop_at_nan(problem: Problem, to_data: Callable[[Tensor], Tensor]) -> Problem:
    """The same problem, which raises `SolverError` at the first output that is not finite."""

    def check(z: Tensor, rows: Tensor | None, at: int | float | Tensor, *out: Tensor) -> None:
        finite = sum(out).isfinite().all(1)  # type: ignore[union-attr]
        bad = ~(finite & z.isfinite().all(1))
        if bool(bad.any()):
            raise SolverError(
                f"the network's output is not finite for {int(bad.sum())} of {len(bad)} samples "
                f"at {_place(problem, at)}"
                " check the weights and the data's scale, or take more steps=",
                bad,
                to_data(z),
            )

    return problem.wrapped(check)


def _place(problem: Problem, at: int | float | Tensor) -> str:
    """Where on the path an evaluation was: at a level, by its number, or at one angle or many."""
    if isinstance(at, int):
        return f"t = {problem.levels[at].t:.4g};"
    phi = float(at.mean()) if isinstance(at, Tensor) else at
    return f"φ = {phi:.3g} (0 data, π/2 noise);"
