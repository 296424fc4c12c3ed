"""scipy's solvers by name, `"scipy:LSODA"`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..problem import Counts, Problem
from .flow import AdaptiveMethod, Failed, Flow

IVP = {"RK23": 3, "RK45": 5, "DOP853": 8, "Radau": 5, "BDF": 5, "LSODA": 12}
"""Methods with their orders; of BDF and LSODA the highest."""


def _refuse_gradient(x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            "scipy solvers carry no gradient; use 'adams', or solve under torch.no_grad()"
        )


def _velocity(flow: Flow, like: Tensor, row: Tensor, s: float, y: np.ndarray) -> np.ndarray:
    """Return dz/ds (n,) of one sample as scipy wants it."""
    out = flow(s, torch.as_tensor(y[None], device="cpu").to(like), row)
    _refuse_gradient(out)
    v = out[0].double().cpu().numpy()
    # Passed on, it would be another error of a factorization or of Fortran.
    if not np.isfinite(v).all():
        raise Failed("nan")
    return v


@dataclass(frozen=True)
class SciPy(AdaptiveMethod):
    """A method of scipy.integrate, on the CPU, one sample at a time.

    Each sample is a call of its own with its own steps, in float64: exact and independent of the
    others, but slow for many, as the network sees one row at a time. For the stiff methods
    ("Radau", "BDF", "LSODA") a Jacobian costs D evaluations, which are counted. Rejected steps are
    not counted apart. It carries no gradient.

    Parameters
    ----------
    method : str
        "RK23", "RK45", "DOP853", "Radau", "BDF" or "LSODA".
    rtol, atol : float
        Tolerated error a step, relative and absolute, in standard deviations of the data (and
        nats, in a likelihood).
    max_steps : int
        Accepted steps per sample after which a solve raises `SolverError`.

    Raises
    ------
    TypeError, ValueError
        For another method, tolerances that are not positive, or max_steps < 1; when run on a fixed
        grid, or where z or the velocity wants a gradient.

    References
    ----------
    Virtanen et al., SciPy 1.0, Nature Methods 2020.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE()).double()
    >>> def draw(solver):
    ...     how = {"rtol": 1e-8, "atol": 1e-8, "generator": torch.Generator().manual_seed(0)}
    ...     return scoresde.sample(sde, 3, solver=solver, **how)
    >>> torch.allclose(draw("scipy:LSODA"), draw("rk45"), atol=1e-5)
    True
    """

    shared: ClassVar[bool] = False
    table: ClassVar[dict[str, int]] = IVP

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        self._refuse_grid(problem)
        _refuse_gradient(z)
        flow = Flow(problem)
        path = np.repeat(z.double().cpu().numpy()[None], len(problem.levels), 0)
        nfe = np.zeros(len(z), dtype=np.int64)
        accepted = np.zeros(len(z), dtype=np.int64)
        failed = np.zeros(len(z), dtype=bool)
        reason = ""
        for b in range(len(z)):
            before = flow.calls
            velocity = functools.partial(_velocity, flow, z, torch.tensor([b], device=z.device))
            try:
                for _ in self._steps(velocity, flow.stations, path[:, b]):
                    accepted[b] += 1
            except Failed as failure:
                failed[b] = True
                reason = reason or str(failure)
            nfe[b] = flow.calls - before
        states = torch.as_tensor(path, device="cpu").to(z)
        for i in range(1, len(states)):
            problem.observe(i, states[i])
        evaluations, steps, lost = (
            torch.as_tensor(column, device=z.device) for column in (nfe, accepted, failed)
        )
        return states[-1], Counts(evaluations, steps, 0, lost, reason)

    def _steps(
        self, velocity: Callable[..., np.ndarray], stations: list[float], path: np.ndarray
    ) -> Iterator[None]:
        """Integrate one sample, yielding after each step; write its states into path (T, n)."""
        import scipy.integrate

        method = getattr(scipy.integrate, self.method)
        tolerances = {"rtol": self.rtol, "atol": self.atol}
        solver = method(velocity, stations[0], path[0].copy(), stations[-1], **tolerances)
        i, last = 1, len(stations) - 1
        for _ in range(self.max_steps):
            solver.step()
            if solver.status == "failed":
                raise Failed("stuck")
            while i < last and stations[i] <= solver.t:
                path[i] = solver.dense_output()(stations[i])
                i += 1
            path[i:] = solver.y  # the last is where a solve that fails later stops
            yield
            if solver.status == "finished":
                return
        raise Failed("steps")
