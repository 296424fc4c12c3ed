"""The contract between a model and a solver: the `Problem`, its levels, and what a solve costs.

States are rows (B, n) on the unit arc (see `scoresde.processes.base`). A solver moves them from
`levels[0]` to `levels[-1]`. It calls the problem for velocities, denoised values and noise, and
reports every level that it reaches. It knows neither the network nor the process, so
sampling, encoding and likelihoods can use the same solver.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..common.user_warnings import warn
from .measured import Measured


@dataclass(frozen=True)
class Level:
    """One node of a grid, in plain floats.

    Attributes
    ----------
    t, phi, cos, sin : float
        Process time, and the angle on the arc in radians, with its cosine and sine.
    alpha, sigma, radius, dalpha, dsigma : float
        α, σ, √(α² + σ²), and the time derivatives of α and σ.
    noise2 : float
        g̃²(t), the squared noise of the reverse SDE (`Process.reverse_g2`).

    Examples
    --------
    >>> sde = scoresde.build("rectified", "mlp", shape=(2,))
    >>> scoresde.sampling.problem.levels(sde, torch.tensor([0.5], dtype=torch.float64))[0].alpha
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
Jump = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
Listener = Callable[..., None]


Field = Callable[[str], Velocity]


def _no_field(name: str) -> Velocity:
    raise AssertionError("this problem has no further fields; state them with field=")


def _no_jump(z: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
    raise AssertionError("this problem has no jumps; state it with jump=")


def _no_observer(i: int, z: Tensor) -> None:
    """Look at no level."""


def rms(error: Tensor) -> Tensor:
    """Return the root mean square of each row of (B, n), the norm that step control uses."""
    return error.square().mean(1).sqrt()


def column(weights: Tensor, like: Tensor) -> Tensor:
    """Return weights (…, B) as factors (…, B, 1) of the rows of `like`, in its dtype."""
    return weights.to(like.dtype).unsqueeze(-1)


def split(z: Tensor, v: Tensor, cos: float | Tensor, sin: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return (x̂0, ε̂) = (cos φ·z − sin φ·v, sin φ·z + cos φ·v) from state and velocity."""
    return cos * z - sin * v, sin * z + cos * v


@dataclass
class Problem:
    """What a solver works on.

    Parameters
    ----------
    levels : tuple of Level
        The grid, from start to end.
    velocity : callable (z, φ, rows) -> dz/dφ
        φ is a float for all rows, or a float64 tensor with one angle a row; `rows` says which
        samples z holds (None: all).
    denoise : callable (z, i) -> (x̂0, ε̂)
        At level i.
    noise : callable () -> Tensor (B, n)
        The next standard normal draw.
    adaptive : bool
        Whether the solver chooses its steps between the levels, which are only stations.
    norm : callable (B, n) -> (B,)
        The norm of errors that are already divided by the tolerance. It is homogeneous: c times
        the error, c a number a row, has |c| times the norm.
    observe : callable (i, z)
        Called with every level reached after the first, and the states there.
    wanted : set of int, optional
        The levels that `observe` cares for, where reporting costs something; None: all.
    jump : callable (z, i, j) -> (x̂0, ε̂), optional
        The ODE leads from z at level i to cos φ_j·x̂0 + sin φ_j·ε̂ at level j. For models that
        have learnt it. For a bridge, where its SDE would lead without noise if its estimate of
        the end stayed as it is.
    field : callable (name) -> callable (z, φ, rows) -> Tensor
        What the model gives for a further capability `name`: its method `<name>_fn()`.
        Take it once a solve; a call of it is an evaluation.
    bridge : float
        The noise σ of a bridge; 0 for all other models.
    capabilities : frozenset of str
        What the model can compute, for a solver that uses more than it needs where there is more.
    measurement : Measured, optional
        What was measured of each sample, for solvers that need a measurement. The velocities and
        denoised values are then those of the prior p(x), not of p(x | y).

    Examples
    --------
    See `Stepper` for a solver that works on one.
    """

    levels: tuple[Level, ...]
    velocity: Velocity
    denoise: Denoise
    noise: Callable[[], Tensor]
    adaptive: bool = False
    norm: Callable[[Tensor], Tensor] = dataclasses.field(default_factory=lambda: rms)
    observe: Callable[[int, Tensor], None] = dataclasses.field(
        default_factory=lambda: _no_observer
    )
    wanted: frozenset[int] | None = None
    jump: Jump = dataclasses.field(default_factory=lambda: _no_jump)
    bridge: float = 0.0
    capabilities: frozenset[str] = frozenset()
    field: Field = dataclasses.field(default_factory=lambda: _no_field)
    measurement: Measured | None = None

    def wrapped(self, after: Listener) -> Problem:
        """Return the same problem, with a function called after each evaluation of the network.

        Use this to count or check evaluations, so that no callable is forgotten.

        Parameters
        ----------
        after : callable (z, rows, at, *out)
            Gets the states, which samples they are (None: all), the angle or the number of the
            level, and what came out: one tensor, or x̂0 and ε̂.

        Returns
        -------
        Problem

        Examples
        --------
        See `Calls`.
        """

        def velocity(z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
            v = self.velocity(z, phi, rows)
            after(z, rows, phi, v)
            return v

        def denoise(z: Tensor, i: int) -> tuple[Tensor, Tensor]:
            out = self.denoise(z, i)
            after(z, None, i, *out)
            return out

        def jump(z: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
            out = self.jump(z, i, j)
            after(z, None, i, *out)
            return out

        def field(name: str) -> Velocity:
            inner = self.field(name)

            def call(z: Tensor, phi: float | Tensor, rows: Tensor | None = None) -> Tensor:
                out = inner(z, phi, rows)
                after(z, rows, phi, out)
                return out

            return call

        return replace(self, velocity=velocity, denoise=denoise, jump=jump, field=field)

    def watched(self, told: Listener) -> Problem:
        """Old name of `wrapped`.

        Parameters
        ----------
        told : callable (z, rows, at, *out)

        Returns
        -------
        Problem

        Examples
        --------
        See `wrapped`.
        """
        warn("Problem.watched is now Problem.wrapped", DeprecationWarning)
        return self.wrapped(told)

    def restricted(self, chosen: Sequence[int]) -> Problem:
        """Return the same problem on some of its levels, for a solver that calls another.

        Parameters
        ----------
        chosen : sequence of int
            The levels, from start to end.

        Returns
        -------
        Problem
            Whose levels nobody observes.

        Examples
        --------
        See `SplitGibbs`.
        """
        return replace(
            self,
            levels=tuple(self.levels[i] for i in chosen),
            denoise=lambda z, i: self.denoise(z, chosen[i]),
            jump=lambda z, i, j: self.jump(z, chosen[i], chosen[j]),
            observe=_no_observer,
            wanted=frozenset(),
        )

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
    """Evaluations of the network, counted for every sample where they happen.

    A function for `Problem.wrapped`.

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

    def __call__(  # noqa: D102
        self, z: Tensor, rows: Tensor | None, at: float | Tensor, *out: Tensor
    ) -> None:
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
        Network evaluations, as the solver states them. `solve` and `likelihood` report what they
        counted themselves.
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
