"""What a solver is, and the table of all solvers."""

from __future__ import annotations

import abc
from typing import ClassVar

from torch import Tensor

from ..common.capabilities import RENAMED, Capability, capabilities
from ..common.names import FOREIGN_ARGUMENTS
from ..common.registry import Registry
from ..common.user_warnings import warn
from .problem import Counts, Problem

SOLVERS: Registry[Solver] = Registry("solver")
SOLVERS.elsewhere = FOREIGN_ARGUMENTS
"""All solvers by name; `@SOLVERS.register("name")` adds one and enrols it in the tests."""


class Solver(abc.ABC):
    """A way to move states along a problem.

    Subclass `Stepper` for methods that go from level to level; subclass this for anything else.

    Attributes
    ----------
    order : float
        Order of convergence of the end point in the step size (weak order for stochastic solvers).
    stochastic : bool
        Whether it draws noise on the way; such a solver can't compute a likelihood.
    reversible : bool
        Whether a stochastic one may also go from data to noise.
    ode : bool
        Whether it integrates `problem.velocity` alone, so that it can carry a log-density along.
    steps : int or None
        Fixed number of steps when the user gives none; None means adaptive.
    spacing : str
        The grid when the user names none.
    tolerances : tuple of str
        Options of an adaptive solve, which mean nothing on a fixed grid.
    needs : set of str
        What the solver itself requires of a model, all of it: keys of `scoresde.CAPABILITIES`. By
        default a score if it is stochastic, a velocity otherwise.

    Examples
    --------
    >>> [name for name in scoresde.SOLVERS if scoresde.SOLVERS.build(name).ode]
    [...'euler', 'midpoint', 'heun', 'rk4', 'bosh3', 'rk45', 'tsit5', 'dop853'...]
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    ode: ClassVar[bool] = False
    reversible: ClassVar[bool] = False
    steps: ClassVar[int | None] = 100
    spacing: ClassVar[str] = "time"
    tolerances: ClassVar[tuple[str, ...]] = ()

    @property
    def needs(self) -> frozenset[str]:
        """What the solver itself requires of a model."""
        return frozenset({Capability.SCORE if self.stochastic else Capability.VELOCITY})

    @property
    def parts(self) -> tuple[Solver, ...]:
        """The solvers that it calls: its attributes that are solvers."""
        return tuple(
            part for part in getattr(self, "__dict__", {}).values() if isinstance(part, Solver)
        )

    @property
    def all_needs(self) -> frozenset[str]:
        """What a model must be able to compute: the `needs` of the solver and of its `parts`."""
        own = [self.needs] if isinstance(self.needs, str) else [str(name) for name in self.needs]
        for name in RENAMED.keys() & own:
            warn(
                f"the capability {name!r} is now called {RENAMED[name]!r}: write "
                f"needs = ({RENAMED[name]!r},) in {type(self).__name__}",
                DeprecationWarning,
            )
        mine = capabilities(RENAMED.get(name, name) for name in own)
        return mine.union(*(part.all_needs for part in self.parts))

    @abc.abstractmethod
    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:
        """Move states from the first level to the last.

        Parameters
        ----------
        problem : Problem
        z : Tensor, shape (B, n)
            States at `problem.levels[0]`; not modified.

        Returns
        -------
        z : Tensor, shape (B, n)
            States at `problem.levels[-1]`.
        counts : Counts

        Examples
        --------
        See `Stepper`.
        """


class Stepper(Solver):
    """A solver that goes from level to level: subclasses give `step`.

    Examples
    --------
    A solver of one's own, DDIM in three lines:

    >>> import scoresde, torch
    >>> @scoresde.SOLVERS.register("doctest_ddim")
    ... class Mine(scoresde.Stepper):
    ...     def step(self, problem, z, i):
    ...         x0, eps = problem.denoise(z, i)
    ...         there = problem.levels[i + 1]
    ...         return there.cos * x0 + there.sin * eps
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE())
    >>> def draw(solver):
    ...     return scoresde.sample(sde, solver=solver, generator=torch.Generator().manual_seed(0))
    >>> torch.allclose(draw("ddim"), draw("doctest_ddim"))
    True
    >>> scoresde.SOLVERS.remove("doctest_ddim")
    """

    evaluations: ClassVar[int] = 1
    """Network evaluations a step."""

    @abc.abstractmethod
    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:
        """Return the states at level i + 1, given those at level i.

        Parameters
        ----------
        problem : Problem
        z : Tensor, shape (B, n)
        i : int

        Returns
        -------
        Tensor, shape (B, n)

        Examples
        --------
        See `Stepper`.
        """

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        for i in range(problem.last):
            z = self.step(problem, z, i)
            problem.observe(i + 1, z)
        return z, Counts(self.nfe(problem.last), problem.last)

    def nfe(self, steps: int) -> int:
        """Return the network evaluations that a number of steps takes.

        Parameters
        ----------
        steps : int

        Returns
        -------
        int

        Examples
        --------
        >>> from scoresde.solvers import SOLVERS
        >>> SOLVERS.build("heun").nfe(10)
        20
        """
        return steps * self.evaluations
