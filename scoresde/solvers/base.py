"""The contract between a model and a solver: a `Problem` to work on, a `Solver` that moves states along it.

States are rows (B, n) on the unit arc (see `scoresde.process`). A solver moves them from `levels[0]` to `levels[-1]`, calls
the problem for velocities, denoised values and noise, and reports every level it reaches. It knows neither the network
nor the process, so it is a dozen lines, and the same solver serves sampling, encoding and likelihoods.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..registry import Registry

SOLVERS: Registry[Solver] = Registry("solver")
"""All solvers by name; `@SOLVERS.register("name")` adds one and enrols it in the tests."""


@dataclass(frozen=True)
class Level:
    """One node of a grid, in plain floats: time t, angle φ, cos φ and sin φ, and the process's numbers at t.

    Attributes
    ----------
    t, phi, cos, sin : float
        Process time, and the angle on the arc with its cosine and sine.
    alpha, sigma, radius, dalpha, dsigma : float
        α, σ, √(α² + σ²), and time derivatives.
    noise2 : float
        g̃²(t), the squared noise of the reverse SDE (`Process.reverse_g2`).

    Examples
    --------
    >>> sde = scoresde.build("rectified", "mlp", shape=(2,))
    >>> scoresde.plan.levels(sde, torch.tensor([0.5], dtype=torch.float64))[0].alpha
    0.5
    """

    t: float
    phi: float
    cos: float
    sin: float
    alpha: float
    sigma: float
    radius: float
    dalpha: float
    dsigma: float
    noise2: float


Velocity = Callable[[Tensor, "float | Tensor", "Tensor | None"], Tensor]
Denoise = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def rms(error: Tensor) -> Tensor:
    """Return the root mean square of each row, the norm that step control uses.

    Parameters
    ----------
    error : Tensor, shape (B, n)

    Returns
    -------
    Tensor, shape (B,)

    Examples
    --------
    >>> import torch
    >>> rms(torch.tensor([[3.0, 3.0], [0.0, 2.0]]))
    tensor([3.0000, 1.4142])
    """
    return error.square().mean(1).sqrt()


def split(z: Tensor, v: Tensor, cos: float | Tensor, sin: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return (x̂0, ε̂) = (cos φ·z − sin φ·v, sin φ·z + cos φ·v), the denoised value and noise that a velocity stands for.

    Parameters
    ----------
    z, v : Tensor, shape (B, n)
        State and velocity.
    cos, sin : float or Tensor (B, 1)
        Of the angle φ.

    Returns
    -------
    x0, eps : Tensor, shape (B, n)

    Examples
    --------
    >>> import torch
    >>> split(torch.tensor([[3.0]]), torch.tensor([[-2.0]]), 0.0, 1.0)
    (tensor([[2.]]), tensor([[3.]]))
    """
    return cos * z - sin * v, sin * z + cos * v


@dataclass
class Problem:
    """What a solver is handed.

    Parameters
    ----------
    levels : tuple of Level
        The grid, from start to end.
    velocity : callable (z, φ, rows) -> dz/dφ
        φ is a float for all rows, or a float64 tensor with one angle a row; `rows` says which samples z holds (None: all).
    denoise : callable (z, i) -> (x̂0, ε̂)
        At level i.
    noise : callable () -> Tensor (B, n)
        The next standard normal draw.
    adaptive : bool
        Whether the levels are only stations, between which the solver chooses its own steps.
    norm : callable (B, n) -> (B,)
        Of errors already divided by the tolerance.
    observe : callable (i, z)
        To be told every level reached after the first.
    wanted : set of int, optional
        The levels that it cares for, where telling costs something; None: all.

    Examples
    --------
    See `Stepper` for a solver that works on one.
    """

    levels: tuple[Level, ...]
    velocity: Velocity
    denoise: Denoise
    noise: Callable[[], Tensor]
    adaptive: bool = False
    norm: Callable[[Tensor], Tensor] = rms
    observe: Callable[[int, Tensor], None] = lambda i, z: None
    wanted: frozenset[int] | None = None

    def wants(self, i: int) -> bool:
        """Whether level i is one of those wanted.

        Parameters
        ----------
        i : int

        Returns
        -------
        bool

        Examples
        --------
        See `Problem`.
        """
        return self.wanted is None or i in self.wanted

    @property
    def last(self) -> int:
        """Index of the last level."""
        return len(self.levels) - 1


@dataclass
class Counts:
    """What a solve cost: tensors with one entry a sample, or plain integers that hold for all.

    Attributes
    ----------
    nfe : int or Tensor (B,)
        Network evaluations.
    accepted, rejected : int or Tensor (B,)
        Steps.
    failed : Tensor of bool (B,), or None
        Samples that did not reach the end.
    reason : str
        Why, for the message: "nan", "stuck" or "steps".

    Examples
    --------
    >>> Counts(nfe=10, accepted=10).rejected
    0
    """

    nfe: int | Tensor
    accepted: int | Tensor
    rejected: int | Tensor = 0
    failed: Tensor | None = None
    reason: str = ""


class Solver(abc.ABC):
    """A way to move states along a problem.

    Subclass `Stepper` for methods that go from level to level; subclass this for anything else.

    Attributes
    ----------
    order : float
        Order of convergence of the end point in the step size (weak order for stochastic solvers).
    stochastic : bool
        Whether it draws noise on the way; such a solver serves no likelihood.
    ode : bool
        Whether it integrates `problem.velocity` alone, so that it can carry a log-density along.
    steps : int or None
        Fixed number of steps when the user gives none; None means adaptive.
    spacing : str
        The grid when the user names none.
    tolerances : tuple of str
        Options that rule an adaptive solve and mean nothing on a fixed grid.

    Examples
    --------
    >>> [name for name in scoresde.SOLVERS if scoresde.SOLVERS.build(name).ode]
    [...'euler', 'midpoint', 'heun', 'rk4', 'bosh3', 'rk45', 'tsit5', 'dop853'...]
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    ode: ClassVar[bool] = False
    steps: ClassVar[int | None] = 100
    spacing: ClassVar[str] = "time"
    tolerances: ClassVar[tuple[str, ...]] = ()

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
    >>> a, b = (scoresde.sample(sde, solver=s, generator=torch.Generator().manual_seed(0)) for s in ("ddim", "doctest_ddim"))
    >>> torch.allclose(a, b)
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
