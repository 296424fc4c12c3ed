"""torchdiffeq's solvers by name, `"torchdiffeq:dopri8"`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..problem import Counts, Problem
from .flow import AdaptiveMethod, Failed, Flow, Method

ADAPTIVE = {"dopri8": 8, "dopri5": 5, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
FIXED = {
    "euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "explicit_adams": 4,
    "implicit_adams": 4,
}
"""Methods, adaptive and fixed, with their orders."""

OPTIONS: dict[str, dict[str, Any]] = {"explicit_adams": {"max_order": 5}}
"""Options of methods. That of explicit_adams makes it Adams–Bashforth of order 4; at the default,
11, it is unstable below some 400 steps.
"""


class _GridFlow(Flow):
    """A flow for a fixed grid: it reports each level when its step starts."""

    started = 0

    def callback_step(self, s: Tensor, z: Tensor, ds: Tensor) -> None:
        if self.started:
            self.problem.observe(self.started, z)
        self.started += 1


class _StepFlow(Flow):
    """A flow for an adaptive method: it counts the steps, and stops a solve that cannot go on."""

    attempted = accepted = 0

    def __init__(self, problem: Problem, max_steps: int) -> None:
        super().__init__(problem)
        self.max_steps = max_steps

    def callback_step(self, s: Tensor, z: Tensor, ds: Tensor) -> None:
        self.z = z
        if self.attempted == self.max_steps:
            raise Failed("steps")
        # torchdiffeq would fail by an assertion, and under `python -O` never end.
        if not bool(s + ds > s):
            finite = bool(self.v.isfinite().all())
            reason = "stuck" if finite else "nan"
            raise Failed(reason)
        self.attempted += 1

    def callback_accept_step(self, s: Tensor, z: Tensor, ds: Tensor) -> None:
        self.accepted += 1


@dataclass(frozen=True)
class TorchDiffEq(Method):
    """A fixed-step method of torchdiffeq, from node to node of our grid.

    The Adams methods want a grid with equal steps in φ. `implicit_adams` iterates until the whole
    batch has converged, so that there a sample depends on the others of its batch (`shared`). Time
    lives on the states' device, where torchdiffeq compares it step by step, so each step waits for
    a GPU.

    Parameters
    ----------
    method : str
        "euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams" or "implicit_adams".

    Raises
    ------
    ValueError
        For another method, or when an Adams method is run on a grid whose steps in φ differ by
        more than a tenth.

    References
    ----------
    Chen, torchdiffeq, https://github.com/rtqichen/torchdiffeq.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> def draw(solver):
    ...     generator = torch.Generator().manual_seed(0)
    ...     return scoresde.sample(sde, 5, solver=solver, steps=20, generator=generator)
    >>> torch.allclose(draw("torchdiffeq:euler"), draw("euler"), atol=1e-5)
    True
    """

    table: ClassVar[dict[str, int]] = FIXED
    spacing: ClassVar[str] = "arc"

    @property
    def shared(self) -> bool:
        """Whether the samples of a batch share the number of iterations."""
        return self.method == "implicit_adams"

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        from torchdiffeq import odeint

        flow = _GridFlow(problem)
        nodes = torch.tensor(flow.stations, dtype=torch.float64, device=z.device)
        sizes = np.diff(flow.stations)
        if self.method.endswith("adams") and sizes.max() > 1.1 * sizes.min():
            raise ValueError(
                f"{self.method!r} needs equal steps in φ; leave out spacing= and times=, or try "
                "'torchdiffeq:rk4'"
            )
        # Output times are the ends alone, so that it keeps no other states.
        options = {"grid_constructor": lambda f, z, s: nodes} | OPTIONS.get(self.method, {})
        # In float32 implicit_adams never meets the default tolerances.
        reach = 50 * torch.finfo(z.dtype).eps
        how = {
            "rtol": max(1e-7, reach),
            "atol": max(1e-9, reach),
            "method": self.method,
            "options": options,
        }
        z = odeint(flow, z, nodes[[0, -1]], **how)[-1]
        problem.observe(problem.last, z)
        return z, Counts(flow.calls, problem.last)


@dataclass(frozen=True)
class AdaptiveTorchDiffEq(AdaptiveMethod):
    """An adaptive method of torchdiffeq: all samples of a batch share one step size.

    So a sample depends on the others of its batch (within its tolerance: the norm of a batch's
    error is the worst sample's), all are evaluated until the last is done, and all fail together.
    Ours ("rk45") keeps samples apart. It lands on the end and on every requested time, and waits
    for a GPU at each step. fehlberg2 estimates its error hundreds of times too small.

    Parameters
    ----------
    method : str
        "dopri8", "dopri5", "bosh3", "fehlberg2" or "adaptive_heun".
    rtol, atol : float
        Tolerated error a step, relative and absolute, in standard deviations of the data (and
        nats, in a likelihood).
    max_steps : int
        Attempted steps after which a solve raises `SolverError`.

    Raises
    ------
    TypeError, ValueError
        For another method, tolerances that are not positive, or max_steps < 1; when run on a fixed
        grid.

    References
    ----------
    Chen, torchdiffeq, https://github.com/rtqichen/torchdiffeq.

    Examples
    --------
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde = scoresde.oracle(mixture, scoresde.RectifiedFlow())
    >>> x = mixture.sample(4)
    >>> ours = scoresde.log_prob(sde, x, solver="torchdiffeq:dopri5")
    >>> torch.allclose(ours, mixture.log_prob(x), atol=1e-3)
    True
    """

    shared: ClassVar[bool] = True
    table: ClassVar[dict[str, int]] = ADAPTIVE

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        from torchdiffeq import odeint

        self._refuse_grid(problem)
        flow = _StepFlow(problem, self.max_steps)
        s = torch.tensor(flow.stations, dtype=torch.float64, device=z.device)
        # Without step_t it would step beyond the end, and interpolate back. No gradient goes
        # through the steps themselves.
        options = {"step_t": s[1:], "norm": lambda error: problem.norm(error.detach()).max()}
        how = {"rtol": self.rtol, "atol": self.atol, "method": self.method, "options": options}
        try:
            path = odeint(flow, z, s, **how)
        except Failed as failure:
            lost = torch.ones(len(z), dtype=torch.bool, device=z.device)
            rejected = flow.attempted - flow.accepted
            return flow.z, Counts(flow.calls, flow.accepted, rejected, lost, str(failure))
        for i in range(1, len(s)):
            problem.observe(i, path[i])
        return path[-1], Counts(flow.calls, flow.accepted, flow.attempted - flow.accepted)
