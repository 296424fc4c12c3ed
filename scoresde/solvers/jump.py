"""Solvers of few steps, for models that have learnt where the ODE leads: flow maps and consistency models.

F(z, φ, s) = cos φ_s·x̂0 + sin φ_s·ε̂ is the state at the angle s of the solution that is at z at the angle φ, where (x̂0, ε̂) is
what `Problem.jump` says of that stretch: see `scoresde.jumps`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import SOLVERS, Problem, Stepper
from .stochastic import _add_noise


@SOLVERS.register("flow_map")
@dataclass(frozen=True)
class FlowMap(Stepper):
    """Jump from level to level by the flow map of the model, z' = F(z, φ, φ'), in one evaluation each (Boffi et al. 2024).

    Deterministic, and exact for any number of steps if the map is: more steps only mend what the network has not learnt. For
    models of kind "map", as `fit(sde, data, objective="meanflow")` makes them.

    References
    ----------
    Boffi, Albergo and Vanden-Eijnden, Flow map matching, 2024; Geng et al., Mean flows for one-step generative modeling, 2025.

    Examples
    --------
    >>> FlowMap().stochastic, FlowMap().needs
    (False, ('map',))
    """

    steps: ClassVar[int] = 2
    spacing: ClassVar[str] = "arc"

    @property
    def needs(self) -> tuple[str, ...]:
        """A flow map."""
        return ("map",)

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        there = problem.levels[i + 1]
        x0, eps = problem.jump(z, i, i + 1)
        return there.cos * x0 + there.sin * eps


@SOLVERS.register("consistency")
@dataclass(frozen=True)
class Consistency(Stepper):
    """Jump to the data, go back up to the next level by fresh noise, and jump again (Song et al. 2023, algorithm 1).

    y'/cos φ' = F(z, φ, φ_end)/cos φ_end + √(tan²φ' − tan²φ_end)·n. One step is one jump, without noise. For models of kind
    "jump" or "map". Going up by fresh noise keeps the law of z only if x0 and ε were independent in training: a model that
    learnt coupled pairs is to be sampled in one step.

    References
    ----------
    Song, Dhariwal, Chen and Sutskever, Consistency models, ICML 2023, algorithm 1.

    Examples
    --------
    >>> Consistency().stochastic, Consistency().needs
    (True, ('jump', 'map'))
    """

    stochastic: ClassVar[bool] = True
    steps: ClassVar[int] = 1
    spacing: ClassVar[str] = "arc"

    @property
    def needs(self) -> tuple[str, ...]:
        """Where the ODE ends."""
        return ("jump", "map")

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        end = problem.levels[-1]
        x0, eps = problem.jump(z, i, problem.last)
        z = end.cos * x0 + end.sin * eps
        return z if i + 1 == problem.last else _add_noise(problem, z, end.phi, problem.levels[i + 1].phi)
