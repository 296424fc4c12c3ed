"""torchsde's solvers by name, `"torchsde:srk"`, on the reverse SDE in the angle.

It is the same for every process:

    dz = −(v + cos φ·ε̂) ds + √(sin 2φ) dW,    ε̂ = sin φ·z + cos φ·v,    s = −φ.

This is dx = [α̇·x̂0 + σ̇·ε̂ + ½g̃²·ε̂/σ] dt + g̃ dw̄ (Karras et al. 2022, eq. 6) on the unit arc,
with sin 2φ for the squared noise per radian, which is bounded. The noise is additive, so that Itô
and Stratonovich agree. It comes from `problem.noise`; no global generator is touched, and there is
no Brownian tree.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..base import Stepper
from ..problem import Problem
from .flow import check_method

SDE = {
    "euler": ("ito", 1, 1.0),
    "milstein": ("ito", 1, 1.0),
    "srk": ("ito", 2, 1.5),
    "midpoint": ("stratonovich", 2, 1.0),
    "heun": ("stratonovich", 2, 1.0),
    "log_ode": ("stratonovich", 2, 1.0),
    "euler_heun": ("stratonovich", 1, 1.0),
}
"""Methods: the calculus each is written for, evaluations a step, weak order by torchsde."""


class _ReverseSDE:
    """The reverse SDE in s = −φ as torchsde wants it."""

    noise_type = "additive"

    def __init__(self, problem: Problem, sde_type: str) -> None:
        self.problem = problem
        self.sde_type = sde_type
        # srk asks twice for the drift at one point; the cache compares tensors by identity.
        self.f = functools.lru_cache(maxsize=1)(self.drift)

    def drift(self, s: float, z: Tensor) -> Tensor:
        cos, sin = math.cos(-s), math.sin(-s)
        v = self.problem.velocity(z, -s, None)
        return torch.add((-cos * sin) * z, v, alpha=-1 - cos * cos)

    def g_prod(self, s: float, z: Tensor, w: Tensor) -> Tensor:
        return math.sqrt(max(0.0, math.sin(-2 * s))) * w


@dataclass(frozen=True)
class _Brownian:
    """W over one step, and U = ∫ (W_s − W_start) ds = h·(W/2 + H), H ~ N(0, h/12) apart from W."""

    noise: Callable[[], Tensor]
    levy_area_approximation: ClassVar[str] = "foster"

    def __call__(
        self, start: float, end: float, return_U: bool = False, return_A: bool = False
    ) -> Any:
        h = end - start
        w = math.sqrt(h) * self.noise()
        if return_U:
            return w, torch.add(0.5 * h * w, self.noise(), alpha=h * math.sqrt(h / 12))
        # The areas A of pairs drop out where noise is additive.
        return (w, None) if return_A else w


@dataclass(frozen=True)
class TorchSDE(Stepper):
    """A method of torchsde on the reverse SDE in the angle, from node to node.

    dz = −(v + cos φ·ε̂) ds + √(sin 2φ) dW, with s = −φ. The last step is E[x0 | x], without noise.
    Noise comes from the generator given to `sample` and not from a Brownian tree, so a sample does
    not depend on the others of its batch. Adaptive steps are not offered.

    Parameters
    ----------
    method : str
        "euler", "milstein" (the same where noise is additive), "srk", "midpoint", "heun",
        "log_ode" or "euler_heun".

    Raises
    ------
    ValueError
        For another method.

    References
    ----------
    Li et al., Scalable gradients for stochastic differential equations, AISTATS 2020; Rößler, SIAM
    J. Numer. Anal. 2010 (srk).

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> scoresde.sample(sde, 1000, solver="torchsde:srk", steps=50).norm(dim=1).mean()
    tensor(2.8...)
    """

    method: str
    stochastic: ClassVar[bool] = True
    shared: ClassVar[bool] = False
    steps: ClassVar[int] = 250
    spacing: ClassVar[str] = "arc"

    def __post_init__(self) -> None:
        check_method(self.method, SDE)

    @property
    def order(self) -> float:  # type: ignore[override]
        """Weak order."""
        return SDE[self.method][2]

    def nfe(self, steps: int) -> int:  # noqa: D102
        return 1 + (steps - 1) * SDE[self.method][1]

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        # Their step by itself: `sdeint` draws from torch's global generator to check shapes,
        # evaluates the drift once more for that, and takes equal steps only.
        from torchsde._core import base_sde, methods

        here, there = problem.levels[i], problem.levels[i + 1]
        if i + 1 == problem.last:
            x0, _ = problem.denoise(z, i)
            return there.cos * x0
        calculus = SDE[self.method][0]
        reverse = _ReverseSDE(problem, calculus)
        how = {
            "dt": 0.0,
            "adaptive": False,
            "rtol": 0.0,
            "atol": 0.0,
            "dt_min": 0.0,
            "options": {},
        }
        make = methods.select(self.method, calculus)
        method = make(sde=base_sde.ForwardSDE(reverse), bm=_Brownian(problem.noise), **how)
        z, _ = method.step(-here.phi, -there.phi, z, ())
        # Their objects refer to themselves, and would keep the drift until the next garbage
        # collection.
        reverse.f.cache_clear()
        return z
