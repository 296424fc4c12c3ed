"""The adaptive loop: each sample has separate steps, and leaves the batch when it is done.

Runge–Kutta, exponential, Adams and SDE methods share it. A method subclasses `AdaptiveSolve`: it
tries one step of every unfinished sample, with an error in units of the tolerance (`propose`), and
chooses the next step sizes (`resize`). The loop takes the steps whose error is at most 1. It drops
the samples that have arrived, that are stuck, or whose steps have run out.

States wanted on the way are stations. A method with dense output interpolates them (`record`);
the others land on each (`LandingSolve`).
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from ..common.checks import real_number, whole_number
from .base import Solver
from .problem import Counts, Problem


@dataclass(frozen=True)
class Adaptive(Solver):
    """A solver that chooses steps by a tolerance: the options that all of these share.

    It takes a step where the norm of (its error)/(atol + rtol·|z|) is at most 1.

    Parameters
    ----------
    rtol, atol : float
        Tolerated error a step, relative and absolute, in standard deviations of the data.
    max_steps : int
        Attempted steps per sample after which a solve raises `SolverError`; by keyword.

    Raises
    ------
    TypeError, ValueError
        For tolerances that are not positive, or max_steps < 1.

    Examples
    --------
    >>> scoresde.SOLVERS.build("rk45", rtol=1e-3).max_steps
    10000
    >>> scoresde.SOLVERS.build("adams", max_steps=0)
    Traceback (most recent call last):
    ValueError: max_steps is at least 1, got 0
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = field(default=10_000, kw_only=True)
    steps: ClassVar[int | None] = None
    tolerances: ClassVar[tuple[str, ...]] = ("rtol", "atol", "max_steps")
    usual: ClassVar[str] = "1e-5"
    """The tolerance that messages propose."""

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            real_number(name, getattr(self, name), 0, math.inf, hint=f"try {self.usual}")
        whole_number("max_steps", self.max_steps)


class Survivors:
    """The unfinished samples of an adaptive solve, and the last values of the finished ones."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.rows = torch.arange(n, device=device)
        self._n = n
        self._left: list[tuple[Tensor, ...]] = []

    @property
    def some(self) -> Tensor | None:
        """The rows of unfinished samples, as `Problem.velocity` takes them: None for all."""
        return None if len(self.rows) == self._n else self.rows

    def leave(self, leaves: Tensor, *columns: Tensor) -> Tensor:
        """Take samples out, with their entries of some columns; return the places that stay."""
        go = leaves.nonzero()[:, 0]
        stay = (~leaves).nonzero()[:, 0]
        self._left.append((self.rows[go], *(column[go] for column in columns)))
        self.rows = self.rows[stay]
        return stay

    def all(self) -> list[Tensor]:
        """Return the columns of all samples in their order, once all have left."""
        rows, *columns = (torch.cat(column) for column in zip(*self._left, strict=True))
        order = rows.argsort()
        return [column[order] for column in columns]


@dataclass(slots=True)
class Trial:
    """One attempted step of the B unfinished samples."""

    state: Tensor  # where it leads (B, n)
    phi: Tensor  # the angle there (B,)
    error: Tensor  # in units of the tolerance (B,)
    output: Tensor  # finite unless the network's output was not (B, …)


T = TypeVar("T", bound=Trial)


class AdaptiveSolve(abc.ABC, Generic[T]):
    """One adaptive solve: the state of all unfinished samples, and the loop that moves them."""

    columns: ClassVar[tuple[str, ...]] = ("y", "phi", "h", "accepted")
    """Attributes with one row per unfinished sample."""
    h: Tensor
    """Lengths (B,) of the steps to try next, in radians."""

    def __init__(self, problem: Problem, z: Tensor) -> None:
        self.problem = problem
        self.start = problem.levels[0].phi
        self.end = problem.levels[-1].phi
        self.y = z
        self.phi = z.new_full((len(z),), self.start, dtype=torch.float64)
        self.accepted = torch.zeros_like(self.phi, dtype=torch.int64)
        self.under_way = Survivors(len(z), z.device)
        self.attempts = 0

    @abc.abstractmethod
    def propose(self) -> T:
        """Try one step of every unfinished sample."""

    @abc.abstractmethod
    def resize(self, trial: T, good: Tensor) -> None:
        """Choose the next step sizes `h`, given which of the trial steps are taken."""

    @abc.abstractmethod
    def stuck(self, trial: T, good: Tensor) -> Tensor | None:
        """Return which samples have too small steps to go on, or None for none."""

    @abc.abstractmethod
    def evaluations(self, tried: Tensor, accepted: Tensor, good: Tensor) -> Tensor:
        """Return the evaluations of each sample; `good`: whether its last step was taken."""

    @abc.abstractmethod
    def inner_states(self) -> Iterable[Tensor]:
        """Return the states at all levels between the first and the last."""

    def record(self, trial: T, good: Tensor) -> None:
        """Take note of the stations that the steps about to be taken pass."""

    def accept(self, trial: T, good: Tensor) -> None:
        """Move the samples whose step is taken."""
        self.y = torch.where(good.unsqueeze(1), trial.state, self.y)
        self.phi = torch.where(good, trial.phi, self.phi)

    def arrived(self) -> Tensor:
        """Return which samples are at the end."""
        return self.phi == self.end

    def go_on(self, good: Tensor) -> None:
        """Prepare the next step of those who stay; `good`: whether their last one was taken."""

    def keep(self, stay: Tensor) -> None:
        """Drop all samples but those at some places."""
        for name in self.columns:
            setattr(self, name, getattr(self, name).index_select(0, stay))

    def run(self, max_steps: int) -> tuple[Tensor, Counts]:
        """Move all samples to the end."""
        while len(self.y):
            self.attempts += 1
            trial = self.propose()
            good = trial.error <= 1
            self.record(trial, good)
            self.resize(trial, good)
            self.accept(trial, good)
            self.accepted += good
            arrived = leaves = self.arrived()
            if self.attempts == max_steps:
                leaves = torch.ones_like(arrived)
            else:
                stuck = self.stuck(trial, good)
                if stuck is not None:
                    leaves = arrived | stuck
            if bool(leaves.any()):  # waits for the device
                tried = torch.full_like(self.accepted, self.attempts)
                stay = self.under_way.leave(
                    leaves, self.y, tried, self.accepted, good, arrived, trial.output
                )
                self.keep(stay)
                good = good.index_select(0, stay)
            self.go_on(good)
        return self._finish(max_steps)

    def _finish(self, max_steps: int) -> tuple[Tensor, Counts]:
        """Report the states on the way; return the ends, the costs, and why samples failed."""
        ends, tried, accepted, good, arrived, output = self.under_way.all()
        failed = ~arrived
        if not bool(output[failed].isfinite().all()):
            reason = "nan"
        elif self.attempts == max_steps:
            reason = "steps"
        else:
            reason = "stuck"
        for i, state in enumerate(self.inner_states(), start=1):
            self.problem.observe(i, state)
        self.problem.observe(self.problem.last, ends)
        nfe = self.evaluations(tried, accepted, good)
        return ends, Counts(nfe, accepted, tried - accepted, failed, reason)


@dataclass(slots=True)
class LandingTrial(Trial):
    """A trial step that ends at the next station at the latest."""

    step: Tensor  # its length (B,)
    goal: Tensor  # the angle of the station (B,)
    cut: Tensor  # whether it is shorter than the step that was wanted (B,)


class LandingSolve(AdaptiveSolve[LandingTrial]):
    """A solve that lands on every station, by steps h > 0, and evaluates the field after each."""

    columns = (*AdaptiveSolve.columns, "slope", "target")
    stages: int
    """Evaluations of a step, that at its start included."""
    slope: Tensor
    """The field (B, n) where the samples are."""

    def __init__(self, problem: Problem, z: Tensor, h: float) -> None:
        super().__init__(problem, z)
        angles = list(dict.fromkeys(level.phi for level in problem.levels[1:]))
        self.stations = torch.tensor(angles, dtype=torch.float64, device=z.device)
        self.inner = [angles.index(level.phi) for level in problem.levels[1:-1]]
        self.landed = z.expand(len(angles), *z.shape).clone()  # the states at each station
        self.target = torch.zeros_like(self.accepted)  # the next station of each sample
        self.many = problem.last > 1  # stations; else all of the above is idle
        self.h = torch.full_like(self.phi, h)

    @abc.abstractmethod
    def evaluate(self, y: Tensor, phi: Tensor, rows: Tensor | None) -> Tensor:
        """Return the field at states (B, n) and angles (B,)."""

    @abc.abstractmethod
    def growth(self, error: Tensor) -> Tensor:
        """Return the ratio of the next step to a step with some error, both (B,)."""

    def next_stations(self) -> Tensor:
        """Return the angle of the station that each sample heads for."""
        return self.stations[self.target] if self.many else self.stations

    def resize(self, trial: LandingTrial, good: Tensor) -> None:
        """Scale the steps by their growth, within bounds."""
        growth = self.growth(trial.error)
        longer = growth.clamp(0.2, 5.0)
        shorter = growth.clamp(0.1, 0.9).nan_to_num(nan=0.1)
        h = trial.step * torch.where(good, longer, shorter)
        # A step that was cut short does not make the next one shorter.
        self.h = torch.where(good & trial.cut, torch.maximum(h, self.h), h)

    def accept(self, trial: LandingTrial, good: Tensor) -> None:
        """Move the samples whose step is accepted, and note which of them reach a station."""
        super().accept(trial, good)
        if not self.many:
            return
        reached = self.phi == trial.goal
        at = reached.nonzero()[:, 0]
        if len(at):
            self.landed[self.target[at], self.under_way.rows[at]] = self.y[at]
            self.target = self.target + reached

    def stuck(self, trial: LandingTrial, good: Tensor) -> Tensor | None:
        """Return which samples failed at a step below 1e-12 radians."""
        return ~good & (trial.step < 1e-12)

    def go_on(self, good: Tensor) -> None:
        """Evaluate the field for the samples that moved."""
        onward = good.nonzero()[:, 0]
        if not len(onward):
            return
        if len(onward) == len(good):
            self.slope = self.evaluate(self.y, self.phi, self.under_way.some)
            return
        rows = self.under_way.rows[onward]
        fresh = self.evaluate(self.y[onward], self.phi[onward], rows)
        self.slope = self.slope.index_copy(0, onward, fresh)

    def evaluations(self, tried: Tensor, accepted: Tensor, good: Tensor) -> Tensor:
        """Count one at the start, one after each step taken but the last, and the stages."""
        return 1 + (self.stages - 1) * tried + accepted - good.long()

    def inner_states(self) -> Iterable[Tensor]:
        """Return the states at the stations."""
        return self.landed[self.inner]
