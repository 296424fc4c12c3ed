"""Solvers of few steps, for models that have learnt where the ODE leads.

The flow map F(z, φ, φ') = cos φ'·x̂0 + sin φ'·ε̂ is where the solution that is at z at the angle φ
is at the angle φ'; (x̂0, ε̂) comes from `Problem.jump` (see `scoresde.training.flow_maps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..common.capabilities import Capability
from .base import SOLVERS, Stepper
from .problem import Problem
from .stochastic import add_noise


@SOLVERS.register("flow_map")
@dataclass(frozen=True)
class FlowMap(Stepper):
    """Jumps by the model's flow map, z' = F(z, φ, φ'), in one evaluation each.

    It is deterministic, and exact for any number of steps if the map is: more steps only mend what
    the network has not learnt. It needs a model with a flow map, which
    `fit(sde, data, objective="meanflow")` makes.

    References
    ----------
    Boffi, Albergo and Vanden-Eijnden, Flow map matching, 2024; Geng et al., Mean flows for one-step
    generative modeling, 2025.

    Examples
    --------
    >>> FlowMap().stochastic, "flow_map" in FlowMap().needs
    (False, True)
    """

    steps: ClassVar[int] = 2
    spacing: ClassVar[str] = "arc"

    @property
    def needs(self) -> frozenset[Capability]:
        """A flow map."""
        return frozenset({Capability.FLOW_MAP})

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        there = problem.levels[i + 1]
        x0, eps = problem.jump(z, i, i + 1)
        return there.cos * x0 + there.sin * eps


@SOLVERS.register("consistency")
@dataclass(frozen=True)
class Consistency(Stepper):
    """Jump to the data, add fresh noise up to the next level, and jump again.

    z'/cos φ' = F(z, φ, φ_end)/cos φ_end + √(tan²φ' − tan²φ_end)·n. One step is one jump, without
    noise. It needs a model that knows where the ODE ends: a consistency model, or one with a flow
    map. Fresh noise keeps the distribution of z only if x0 and ε were independent in training, so
    sample models of coupled pairs in one step.

    References
    ----------
    Song, Dhariwal, Chen and Sutskever, Consistency models, ICML 2023, algorithm 1.

    Examples
    --------
    >>> Consistency().stochastic, "endpoint" in Consistency().needs
    (True, True)
    """

    stochastic: ClassVar[bool] = True
    steps: ClassVar[int] = 1
    spacing: ClassVar[str] = "arc"

    @property
    def needs(self) -> frozenset[Capability]:
        """Where the ODE ends."""
        return frozenset({Capability.ENDPOINT})

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        end = problem.levels[-1]
        x0, eps = problem.jump(z, i, problem.last)
        z = end.cos * x0 + end.sin * eps
        if i + 1 == problem.last:
            return z
        return add_noise(problem, z, end.phi, problem.levels[i + 1].phi)
