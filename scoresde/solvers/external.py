r"""Other people's solvers by name: `"torchdiffeq:dopri8"`, `"scipy:LSODA"`, `"torchsde:srk"`.

torchdiffeq and scipy see dz/ds = ±v(z, φ), in a variable s = ±φ that increases from start to end, as they expect; torchsde is
in `external_sde`. What is hidden: an angle asked for outside the path is moved to its end, and steps that run out or vanish
are reported as `Counts.failed`. The libraries are imported on first use.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..registry import Registry, nearest
from .base import SOLVERS, Adaptive, Counts, Problem, Solver
from .external_sde import SDE, TorchSDE

ADAPTIVE = {"dopri8": 8, "dopri5": 5, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4, "implicit_adams": 4}
IVP = {"RK23": 3, "RK45": 5, "DOP853": 8, "Radau": 5, "BDF": 5, "LSODA": 12}
"""Deterministic methods of torchdiffeq (adaptive, fixed) and scipy, with their orders; of BDF and LSODA the highest."""

OPTIONS: dict[str, dict[str, Any]] = {"explicit_adams": {"max_order": 5}}
"""Adams–Bashforth of order 4, whatever its option says; at torchdiffeq's default, 11, it is unstable below some 400 steps."""

REFUSED = {
    "torchdiffeq:scipy_solver": "it couples the samples of a batch; 'scipy:LSODA' and its like take each by itself",
    "torchsde:reversible_heun": "what it carries from step to step swings undamped, so that narrow modes come out "
    "many times too wide; try 'torchsde:heun'",
    "torchsde:adjoint_reversible_heun": "it only serves torchsde's own gradients; try 'torchsde:heun'",
}
"""Methods that would run and mislead, and why."""


def _check(method: str, table: Iterable[str]) -> None:
    if method not in table:
        raise ValueError(f"unknown method {method!r}. {nearest(method, table)}")


def _refuse_gradient(x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise TypeError("scipy solvers carry no gradient; use 'adams', or solve under torch.no_grad()")


class _Failed(Exception):
    """A solve can't go on; the argument is a reason of `Counts`."""


class _Flow:
    """dz/ds as a function (s, z) that never leaves the path, and counts its calls.

    Adaptive methods probe for a first step size beyond the end, and torchdiffeq rounds time to the state's dtype.
    """

    def __init__(self, problem: Problem) -> None:
        first, last = problem.levels[0].phi, problem.levels[-1].phi
        self.problem, self.sign = problem, math.copysign(1.0, last - first)
        self.low, self.high = min(first, last), max(first, last)
        self.stations = [self.sign * level.phi for level in problem.levels]
        self.calls = 0

    def __call__(self, s: float | Tensor, z: Tensor, rows: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.v = self.problem.velocity(z, min(max(self.sign * float(s), self.low), self.high), rows)
        return self.sign * self.v


class _GridFlow(_Flow):
    """The same for a fixed grid of torchdiffeq, which calls back at the start of each step: from a level."""

    started = 0

    def callback_step(self, s: Tensor, z: Tensor, ds: Tensor) -> None:
        if self.started:
            self.problem.observe(self.started, z)
        self.started += 1


class _StepFlow(_Flow):
    """The same for an adaptive method of torchdiffeq: counts its steps, and stops it before it dies by assertion.

    Under `python -O` there are no assertions and it would go on for ever.
    """

    attempted = accepted = 0

    def __init__(self, problem: Problem, max_steps: int) -> None:
        super().__init__(problem)
        self.max_steps = max_steps

    def callback_step(self, s: Tensor, z: Tensor, ds: Tensor) -> None:
        self.z = z
        if self.attempted == self.max_steps:
            raise _Failed("steps")
        if not bool(s + ds > s):
            raise _Failed("stuck" if bool(self.v.isfinite().all()) else "nan")
        self.attempted += 1

    def callback_accept_step(self, s: Tensor, z: Tensor, ds: Tensor) -> None:
        self.accepted += 1


@dataclass(frozen=True)
class _Method(Solver):
    """A deterministic method of another library, by its name there."""

    method: str
    table: ClassVar[dict[str, int]]
    ode: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.method, self.table)

    @property
    def order(self) -> int:  # type: ignore[override]
        """Order of the method, the highest if it varies."""
        return self.table[self.method]


@dataclass(frozen=True)
class _Adaptive(Adaptive, _Method):
    """What the adaptive solvers of torchdiffeq and scipy have in common: tolerances, and no fixed grid."""

    def __post_init__(self) -> None:
        _check(self.method, self.table)
        super().__post_init__()

    def _no_grid(self, problem: Problem) -> None:
        if not problem.adaptive:
            raise ValueError(f"{self.method!r} chooses its own steps; give rtol= and atol= instead of steps=, or try 'rk45'")


@dataclass(frozen=True)
class TorchDiffEq(_Method):
    """A fixed-step method of torchdiffeq, from node to node of our grid; the Adams methods only on a grid even in φ.

    `implicit_adams` iterates until the whole batch has converged, so there a sample depends on its mates (`shared`). Time
    lives on the states' device, where torchdiffeq compares it step by step: each step waits for a GPU.

    Parameters
    ----------
    method : str
        "euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams" or "implicit_adams".

    Raises
    ------
    ValueError
        For another method, or when an Adams method is run on a grid whose steps in φ differ by more than a tenth.

    References
    ----------
    Chen, torchdiffeq, https://github.com/rtqichen/torchdiffeq.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> theirs, ours = (
    ...     scoresde.sample(sde, 5, solver=name, steps=20, generator=torch.Generator().manual_seed(0))
    ...     for name in ("torchdiffeq:euler", "euler")
    ... )
    >>> torch.allclose(theirs, ours, atol=1e-5)
    True
    """

    table: ClassVar[dict[str, int]] = FIXED
    spacing: ClassVar[str] = "arc"

    @property
    def shared(self) -> bool:
        """Whether samples of a batch share the number of iterations, so that one depends on its mates."""
        return self.method == "implicit_adams"

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        from torchdiffeq import odeint

        flow = _GridFlow(problem)
        nodes = torch.tensor(flow.stations, dtype=torch.float64, device=z.device)
        sizes = np.diff(flow.stations)
        if self.method.endswith("adams") and sizes.max() > 1.1 * sizes.min():
            raise ValueError(
                f"{self.method!r} takes all steps for equal; leave out spacing= and times=, or try 'torchdiffeq:rk4'"
            )
        # Output times are the ends alone, so that it keeps no other states.
        options = {"grid_constructor": lambda f, z, s: nodes} | OPTIONS.get(self.method, {})
        reach = 50 * torch.finfo(z.dtype).eps  # implicit_adams never meets the default tolerances in float32
        how = {"rtol": max(1e-7, reach), "atol": max(1e-9, reach), "method": self.method, "options": options}
        z = odeint(flow, z, nodes[[0, -1]], **how)[-1]
        problem.observe(problem.last, z)
        return z, Counts(flow.calls, problem.last)


@dataclass(frozen=True)
class AdaptiveTorchDiffEq(_Adaptive):
    """An adaptive method of torchdiffeq, which shares one step size over the `batch_size` samples solved at once.

    So a sample depends on its mates (within its tolerance: the norm of a batch's error is the worst sample's), all are
    evaluated until the last is done, and all fail together. Ours ("rk45") keeps samples apart. It lands on the end and on
    every requested time, and waits for a GPU at each step. fehlberg2 estimates its error hundreds of times too small.

    Parameters
    ----------
    method : str
        "dopri8", "dopri5", "bosh3", "fehlberg2" or "adaptive_heun".
    rtol, atol : float
        Tolerated error a step, relative and absolute, in standard deviations of the data (and nats, in a likelihood).
    max_steps : int
        Attempted steps after which a solve raises `SolverError`.

    Raises
    ------
    TypeError, ValueError
        For another method, tolerances that are not positive, or max_steps < 1; when run on a fixed grid.

    References
    ----------
    Chen, torchdiffeq, https://github.com/rtqichen/torchdiffeq.

    Examples
    --------
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde = scoresde.oracle(mixture, scoresde.RectifiedFlow())
    >>> x = mixture.sample(4)
    >>> (scoresde.log_prob(sde, x, solver="torchdiffeq:dopri5") - mixture.log_prob(x)).abs().max() < 1e-3
    tensor(True)
    """

    shared: ClassVar[bool] = True
    table: ClassVar[dict[str, int]] = ADAPTIVE

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        from torchdiffeq import odeint

        self._no_grid(problem)
        flow = _StepFlow(problem, self.max_steps)
        s = torch.tensor(flow.stations, dtype=torch.float64, device=z.device)
        # Without step_t it would step beyond the end, and interpolate back. No gradient goes through the steps themselves.
        options = {"step_t": s[1:], "norm": lambda error: problem.norm(error.detach()).max()}
        try:
            path = odeint(flow, z, s, rtol=self.rtol, atol=self.atol, method=self.method, options=options)
        except _Failed as failure:
            lost = torch.ones(len(z), dtype=torch.bool, device=z.device)
            return flow.z, Counts(flow.calls, flow.accepted, flow.attempted - flow.accepted, lost, str(failure))
        for i in range(1, len(s)):
            problem.observe(i, path[i])
        return path[-1], Counts(flow.calls, flow.accepted, flow.attempted - flow.accepted)


@dataclass(frozen=True)
class SciPy(_Adaptive):
    """A method of scipy.integrate, on the CPU and sample by sample: exact and independent of mates, but slow for many.

    Each sample is a call of its own with its own steps, in float64; the network sees one row at a time. For the stiff
    methods ("Radau", "BDF", "LSODA") a Jacobian costs D evaluations, which are counted; rejected steps are not known apart.
    It carries no gradient.

    Parameters
    ----------
    method : str
        "RK23", "RK45", "DOP853", "Radau", "BDF" or "LSODA".
    rtol, atol : float
        Tolerated error a step, relative and absolute, in standard deviations of the data (and nats, in a likelihood).
    max_steps : int
        Accepted steps per sample after which a solve raises `SolverError`.

    Raises
    ------
    TypeError, ValueError
        For another method, tolerances that are not positive, or max_steps < 1; when run on a fixed grid, or where z or the
        velocity wants a gradient.

    References
    ----------
    Virtanen et al., SciPy 1.0, Nature Methods 2020.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE()).double()
    >>> theirs, ours = (
    ...     scoresde.sample(sde, 3, solver=name, rtol=1e-8, atol=1e-8, generator=torch.Generator().manual_seed(0))
    ...     for name in ("scipy:LSODA", "rk45")
    ... )
    >>> torch.allclose(theirs, ours, atol=1e-5)
    True
    """

    shared: ClassVar[bool] = False
    table: ClassVar[dict[str, int]] = IVP

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        self._no_grid(problem)
        _refuse_gradient(z)
        flow = _Flow(problem)
        starts = z.double().cpu().numpy()
        path = np.repeat(starts[None], len(problem.levels), 0)
        nfe, accepted = np.zeros(len(z), dtype=np.int64), np.zeros(len(z), dtype=np.int64)
        failed, reason = np.zeros(len(z), dtype=bool), ""
        for b in range(len(z)):
            before, row = flow.calls, torch.tensor([b], device=z.device)

            def velocity(s: float, y: np.ndarray, row: Tensor = row) -> np.ndarray:
                out = flow(s, torch.as_tensor(y[None], device="cpu").to(z), row)
                _refuse_gradient(out)
                v = out[0].double().cpu().numpy()
                if not np.isfinite(v).all():  # in the hands of a factorization or of Fortran this would be another error
                    raise _Failed("nan")
                return v

            try:
                for _ in self._steps(velocity, flow.stations, path[:, b]):
                    accepted[b] += 1
            except _Failed as failure:
                failed[b], reason = True, reason or str(failure)
            nfe[b] = flow.calls - before
        states = torch.as_tensor(path, device="cpu").to(z)
        for i in range(1, len(states)):
            problem.observe(i, states[i])
        evaluations, steps, lost = (torch.as_tensor(column, device=z.device) for column in (nfe, accepted, failed))
        return states[-1], Counts(evaluations, steps, 0, lost, reason)

    def _steps(self, velocity: Callable[..., np.ndarray], stations: list[float], path: np.ndarray) -> Iterator[None]:
        """Integrate one sample, write its states at the stations into path (T, n), and yield after each step."""
        import scipy.integrate

        make = getattr(scipy.integrate, self.method)
        solver = make(velocity, stations[0], path[0].copy(), stations[-1], rtol=self.rtol, atol=self.atol)
        i, last = 1, len(stations) - 1
        for _ in range(self.max_steps):
            solver.step()
            if solver.status == "failed":
                raise _Failed("stuck")
            while i < last and stations[i] <= solver.t:
                path[i] = solver.dense_output()(stations[i])
                i += 1
            path[i:] = solver.y  # also where a solve that fails later had got to
            yield
            if solver.status == "finished":
                return
        raise _Failed("steps")


LIBRARIES: dict[str, Registry[Solver]] = {name: Registry(f"{name} solver") for name in ("torchdiffeq", "scipy", "torchsde")}
"""The methods of each library by name."""

for _library, _class, _table in (
    ("torchdiffeq", AdaptiveTorchDiffEq, ADAPTIVE),
    ("torchdiffeq", TorchDiffEq, FIXED),
    ("scipy", SciPy, IVP),
    ("torchsde", TorchSDE, SDE),
):
    for _method in _table:
        LIBRARIES[_library].add(_method, functools.partial(_class, _method))
LIBRARIES["torchdiffeq"].alias("fixed_adams", "implicit_adams")


def _build(library: str, member: str, **options: Any) -> Solver:
    refused = REFUSED.get(f"{library}:{member}")
    if refused:
        raise ValueError(f"{library}'s {member} is not offered: {refused}")
    return LIBRARIES[library].build(member, **options)


for _library in LIBRARIES:
    SOLVERS.family(_library, functools.partial(_build, _library))
