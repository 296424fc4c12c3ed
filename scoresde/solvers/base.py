"""The contract between a model and a solver: a `Problem` to work on, a `Solver` that moves states along it.

States are rows (B, n) on the unit arc (see `scoresde.process`). A solver moves them from `levels[0]` to `levels[-1]`, calls
the problem for velocities, denoised values and noise, and reports every level it reaches. It knows neither the network
nor the process, so it is a dozen lines, and the same solver serves sampling, encoding and likelihoods.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import number, whole
from ..registry import ELSEWHERE, Registry

SOLVERS: Registry[Solver] = Registry("solver")
SOLVERS.elsewhere = ELSEWHERE
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
Measure = Callable[[Tensor, Tensor, Tensor, "float | Tensor"], Tensor]
Denoise = Callable[[Tensor, int], tuple[Tensor, Tensor]]
Jump = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
Told = Callable[..., None]


def _no_jump(z: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
    raise AssertionError("this problem has no jumps: state them")


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


def column(weights: Tensor, like: Tensor) -> Tensor:
    """Return numbers (…, B), one a row, as factors of states like `like`: a last axis of 1, and its dtype.

    Parameters
    ----------
    weights : Tensor, shape (…, B)
    like : Tensor
        Gives the dtype.

    Returns
    -------
    Tensor, shape (…, B, 1)

    Examples
    --------
    >>> column(torch.tensor([1.0, 2.0], dtype=torch.float64), torch.zeros(2, 3)) * torch.ones(2, 3)
    tensor([[1., 1., 1.],
            [2., 2., 2.]])
    """
    return weights.to(like.dtype).unsqueeze(-1)


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
        Of errors already divided by the tolerance. A norm: c times the error, c a number a row, has |c| times its value.
    observe : callable (i, z)
        To be told every level reached after the first.
    wanted : set of int, optional
        The levels that it cares for, where telling costs something; None: all.
    measure : callable (error, z, v, φ) -> (B,), optional
        The size ≥ 0 of a local error (B, n) in absolute units, given state, velocity and angle at the end of its step; a solver
        that estimates errors keeps account of it: see `Counts.error`.
    jump : callable (z, i, j) -> (x̂0, ε̂), optional
        Such that cos φ_j·x̂0 + sin φ_j·ε̂ is where the ODE leads from z at level i to level j: of models that have learnt it.
        Of a bridge, where its SDE would lead but for the noise, if the end that it heads for stayed as it is.
    bridge : float
        The noise σ of a bridge; 0 for all other models.

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
    measure: Measure | None = None
    jump: Jump = field(default_factory=lambda: _no_jump)
    bridge: float = 0.0

    def watched(self, told: Told) -> Problem:
        """Return the same problem, which tells of every evaluation of the network as it happens.

        Parameters
        ----------
        told : callable (z, rows, at, *out)
            What it is told: the states, which samples they are (None: all), the angle or the number of the level,
            and what came out, one tensor or x̂0 and ε̂.

        Returns
        -------
        Problem

        Examples
        --------
        See `Calls`.
        """

        def velocity(z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
            v = self.velocity(z, phi, rows)
            told(z, rows, phi, v)
            return v

        def denoise(z: Tensor, i: int) -> tuple[Tensor, Tensor]:
            out = self.denoise(z, i)
            told(z, None, i, *out)
            return out

        def jump(z: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
            out = self.jump(z, i, j)
            told(z, None, i, *out)
            return out

        return replace(self, velocity=velocity, denoise=denoise, jump=jump)

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


class Calls:
    """Evaluations of the network, counted for every sample where they happen; for `Problem.watched`.

    Attributes
    ----------
    nfe : int or Tensor (B,)
        Evaluations so far; a plain integer while all samples have had as many.

    Examples
    --------
    >>> calls = Calls(3)
    >>> calls(torch.zeros(3, 2), None, 0.5)
    >>> calls(torch.zeros(1, 2), torch.tensor([2]), 0.5)
    >>> calls.nfe
    tensor([1, 1, 2])
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._all = 0
        self._each: Tensor | None = None

    def __call__(self, z: Tensor, rows: Tensor | None, at: float | Tensor, *out: Tensor) -> None:  # noqa: D102
        if rows is None:
            self._all += 1
            return
        if self._each is None:
            self._each = rows.new_zeros(self._n)
        self._each.index_add_(0, rows, torch.ones_like(rows))

    @property
    def nfe(self) -> int | Tensor:  # noqa: D102
        return self._all if self._each is None else self._all + self._each


@dataclass
class Counts:
    """What a solve cost: tensors with one entry a sample, or plain integers that hold for all.

    Attributes
    ----------
    nfe : int or Tensor (B,)
        Network evaluations, as the solver states them. `solve` and `likelihood` report what they counted themselves.
    accepted, rejected : int or Tensor (B,)
        Steps.
    failed : Tensor of bool (B,), or None
        Samples that did not reach the end.
    reason : str
        Why, for the message: "nan", "stuck" or "steps".
    error : Tensor (B,), float64, or None
        Σ measure(e) over the steps a sample took, e the estimated local error of each, where the problem has a measure and
        the solver an estimate that costs no evaluation; how far to believe it says `Solver.error_factor`. Adaptive Adams methods
        estimate what is left after the correction; on a fixed grid, and with embedded Runge–Kutta methods, it is the correction.

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
    error: Tensor | None = None


class Solver(abc.ABC):
    """A way to move states along a problem.

    Subclass `Stepper` for methods that go from level to level; subclass this for anything else.

    Attributes
    ----------
    order : float
        Order of convergence of the end point in the step size (weak order for stochastic solvers).
    stochastic : bool
        Whether it draws noise on the way; such a solver serves no likelihood.
    reversible : bool
        Whether a stochastic one may also go from data to noise.
    ode : bool
        Whether it integrates `problem.velocity` alone, so that it can carry a log-density along.
    steps : int or None
        Fixed number of steps when the user gives none; None means adaptive.
    spacing : str
        The grid when the user names none.
    tolerances : tuple of str
        Options that rule an adaptive solve and mean nothing on a fixed grid.
    needs : tuple of str
        Which of "score", "velocity", "jump", "map", "bridge" a model must offer one of; by default a score if it is stochastic, a
        velocity otherwise.

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

    def error_factor(self, adaptive: bool) -> float:
        """Return by what `Counts.error` is multiplied for the `solver_error` of a likelihood: NaN where no factor makes it hold.

        Parameters
        ----------
        adaptive : bool
            Whether the solver chose its steps.

        Returns
        -------
        float
            1 for solvers that do not say otherwise.

        Examples
        --------
        >>> scoresde.SOLVERS.build("rk45").error_factor(True), scoresde.SOLVERS.build("adams").error_factor(True)
        (nan, 0.95)
        """
        return 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        """What a model must offer, one of these."""
        return ("score",) if self.stochastic else ("velocity",)

    @property
    def parts(self) -> tuple[Solver, ...]:
        """The solvers that it calls, whose needs must be met too: its attributes that are solvers."""
        return tuple(part for part in getattr(self, "__dict__", {}).values() if isinstance(part, Solver))

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


@dataclass(frozen=True)
class Adaptive(Solver):
    """A solver that chooses its own steps by a tolerance: the options that all of these share.

    A step is taken where the norm of (its error)/(atol + rtol·|z|) is at most 1.

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
    """The tolerance to try instead of one that makes no sense."""

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            number(name, getattr(self, name), 0, math.inf, hint=f"try {self.usual}")
        whole("max_steps", self.max_steps)


class Survivors:
    """The samples of an adaptive solve that are still under way, and what the others left with.

    Attributes
    ----------
    rows : Tensor of int, shape (b,)
        Which samples are under way.

    Examples
    --------
    Of three samples the second leaves first:

    >>> under_way = Survivors(3, torch.device("cpu"))
    >>> under_way.leave(torch.tensor([False, True, False]), torch.tensor([1.0, 2.0, 3.0]))
    tensor([0, 2])
    >>> under_way.some
    tensor([0, 2])
    >>> under_way.leave(torch.tensor([True, True]), torch.tensor([10.0, 30.0]))
    tensor([], dtype=torch.int64)
    >>> under_way.all()
    [tensor([10.,  2., 30.])]
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.rows = torch.arange(n, device=device)
        self._n, self._left = n, list[tuple[Tensor, ...]]()

    @property
    def some(self) -> Tensor | None:
        """Which samples are under way, as `Problem.velocity` is told: None for all."""
        return None if len(self.rows) == self._n else self.rows

    def leave(self, leaves: Tensor, *columns: Tensor) -> Tensor:
        """Take samples out of the batch.

        Parameters
        ----------
        leaves : Tensor of bool, shape (b,)
            Which of those under way.
        *columns : Tensor, shape (b, ...)
            What those that leave report; the same number of columns each time.

        Returns
        -------
        Tensor of int
            Where the others are in the batch as it was.

        Examples
        --------
        See `Survivors`.
        """
        go, stay = leaves.nonzero()[:, 0], (~leaves).nonzero()[:, 0]
        self._left.append((self.rows[go], *(column[go] for column in columns)))
        self.rows = self.rows[stay]
        return stay

    def all(self) -> list[Tensor]:
        """Return the columns of all samples, who have all left, in their order.

        Returns
        -------
        list of Tensor, shape (B, ...)

        Examples
        --------
        See `Survivors`.
        """
        rows, *columns = (torch.cat(column) for column in zip(*self._left, strict=True))
        order = rows.argsort()
        return [column[order] for column in columns]


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
