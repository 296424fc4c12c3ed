"""Langevin steps: as correctors after any predictor, and alone, as annealed Langevin dynamics.

A Langevin step at one noise level keeps that level's law, up to O(δ²), whatever its step size:

    x ← x + δσ²·s + √(2δ)·σ·n,   s = −ε̂/σ,   that is on the arc   z ← z − δ·sin φ·ε̂ + √(2δ)·sin φ·n.

δ is the step size in units of σ². `CORRECTORS` holds the rules that choose it. The remaining bias is a relative δσ²/2V in the
variance V of a Gaussian, which vanishes towards the data, where σ² is small.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import affordable, number, said, whole
from ..registry import choose
from .base import SOLVERS, Problem, Solver, Stepper

CORRECTORS: dict[str, Callable[[float, float], float]] = {
    "langevin": lambda snr, a: 2 * (snr * a) ** 2,
    "ald": lambda snr, a: 2 * snr**2,
    "none": lambda snr, a: 0.0,
}
"""Rules (snr, a) -> δ, with a = α_t/α_s of the step that is corrected. `langevin`: Song et al. 2021, Algorithms 4 and 5;
`ald`: a fixed share of σ², as in NCSN, where δ = ½ε/σ_L² (Song & Ermon 2019, Algorithm 1); `none`: the predictor alone."""


NOISE_END = 1e-6  # cos φ below this is α = 0


def _langevin(problem: Problem, z: Tensor, i: int, delta: float, repeats: int) -> Tensor:
    """Take Langevin steps of size δ at level i."""
    sin = problem.levels[i].sin
    for _ in range(repeats):
        _, eps = problem.denoise(z, i)
        z = torch.add(z, eps, alpha=-delta * sin).add_(problem.noise(), alpha=math.sqrt(2 * delta) * sin)
    return z


@SOLVERS.register("pc")
@dataclass(frozen=True)
class PredictorCorrector(Stepper):
    """Predictor–corrector sampling: any stepper, and Langevin corrections after each of its steps but the last, any process.

    Song et al. 2021, Algorithms 1 to 5: after each prediction x ← x + δσ²·s + √(2δ)·σ·n with
    δ = 2·(a·snr·‖n‖/‖s‖)²/σ², where a is the transition's α_t/α_s: 1 in Algorithm 4, √(1 − β_i) in
    Algorithm 5, whose α_i is 1 − β_i in their code. For the two norms it takes their root mean
    squares under the forward process, √D and √D/σ. The papers average them over the batch, so that
    a sample depends on its mates; norms of the sample alone make δ depend on the state, and in few
    dimensions that is another distribution (on a 2-D mixture, modes 20% too wide however many
    steps).

    Half of the evaluations go to the corrector, so that the predictor, of weak order 1, takes half as many steps. What is
    wrong at 50 evaluations is the predictor's: "ancestral" with 25 steps leaves modes 10 to 18% too narrow, and up
    to 4% of all samples in a wrong one. `predictor="dpmpp_2s"`, of order 2, is within 5% at the same cost.

    Parameters
    ----------
    predictor : str or Stepper
        A registered stepper, "ancestral", "reverse_diffusion", "em", "ddim", "heun", …, or one with options of its own. Methods
        that remember earlier steps ("dpmpp_2m", "adams") can't be corrected in between.
    corrector : str
        A key of `CORRECTORS`: "langevin", "ald" or "none".
    snr : float
        Signal-to-noise ratio of the corrector.
    corrections : int
        Langevin steps after each prediction, M in Algorithm 1.

    Raises
    ------
    TypeError, ValueError
        For an unknown predictor or corrector, or numbers that are not positive.

    References
    ----------
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR 2021, Algorithms 1 to 5.

    Examples
    --------
    >>> PredictorCorrector(corrections=2).nfe(10), PredictorCorrector("heun", "none").nfe(10)
    (28, 20)
    >>> PredictorCorrector(corrector="metropolis")
    Traceback (most recent call last):
    ValueError: unknown corrector 'metropolis'. There are: ald, langevin, none.
    """

    predictor: str | Stepper = "ancestral"
    corrector: str = "langevin"
    snr: float = 0.16
    corrections: int = 1
    stochastic: ClassVar[bool] = True
    steps: ClassVar[int] = 250
    spacing: ClassVar[str] = "logsnr"

    def __post_init__(self) -> None:
        number("snr", self.snr, 0, 1, hint="try 0.16")
        affordable(f"corrections={whole('corrections', self.corrections)}", calls=self.corrections)
        choose("corrector", self.corrector, CORRECTORS)
        if (isinstance(self.predictor, str) and self.predictor == "pc") or not isinstance(self._predictor, Stepper):
            why = "it remembers earlier steps, or is no solver that goes from level to level"
            raise ValueError(f"{said(self.predictor)} can't be a predictor: {why}; try 'ancestral', 'em' or 'ddim'")

    @functools.cached_property
    def _predictor(self) -> Stepper:
        named = SOLVERS.build(self.predictor) if isinstance(self.predictor, str) else self.predictor
        return named  # type: ignore[return-value]

    @property
    def needs(self) -> tuple[str, ...]:
        """For the corrector a score; without one, what the predictor needs, which is checked in any case."""
        return self._predictor.needs if self.corrector == "none" else ("score",)

    @property
    def parts(self) -> tuple[Solver, ...]:
        """The predictor."""
        return (self._predictor,)

    def nfe(self, steps: int) -> int:  # noqa: D102
        return self._predictor.nfe(steps) + (steps - 1) * self.corrections * (self.corrector != "none")

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        z = self._predictor.step(problem, z, i)
        if i + 1 == problem.last:
            return z
        delta = CORRECTORS[self.corrector](self.snr, problem.levels[i].alpha / problem.levels[i + 1].alpha)
        return _langevin(problem, z, i + 1, delta, self.corrections if self.corrector != "none" else 0)


@SOLVERS.register("annealed_langevin")
@dataclass(frozen=True)
class AnnealedLangevin(Stepper):
    """Annealed Langevin dynamics of NCSN, correctors only: no number of levels makes few steps a level exact.

    At each level but the last, T times x ← x + ½α_i·s + √α_i·n with α_i = ε·σ_i²/σ_L², and x/α kept
    between levels (x itself for VE, which the paper has); at the end E[x0 | x], the denoising that
    Algorithm 1 lacked (Jolicoeur-Martineau et al. 2021, "Adversarial score matching"). Nothing but
    the Langevin steps removes noise, so that the state lags behind its level: after 500 evaluations
    modes are 10 to 14% too wide (2 to 3% with share=1), a bias that falls with the first power of
    the number of levels. How often each mode is chosen keeps a bias of the order of the share at
    any number of levels: at 1, the widest of ten modes in 16-D gets half as much again as its due;
    at 0.2, NCSN's own, an energy test of 1,000 sees none. Also `"ald"`.

    Parameters
    ----------
    share : float
        ε/σ_L² = α_i/σ_i², the step in units of each level's variance; below 4, where it becomes unstable.
    corrections : int
        Langevin steps a level, T in Algorithm 1.

    Raises
    ------
    TypeError, ValueError
        Unless 0 < share < 4 and corrections ≥ 1.

    References
    ----------
    Song & Ermon, Generative modeling by estimating gradients of the data distribution, NeurIPS 2019, Algorithm 1.

    Examples
    --------
    >>> AnnealedLangevin(corrections=3).nfe(10)
    31
    """

    share: float = 0.2
    corrections: int = 5
    stochastic: ClassVar[bool] = True
    spacing: ClassVar[str] = "logsnr"

    def __post_init__(self) -> None:
        number("share", self.share, 0, 4, hint="try 0.2")
        affordable(f"corrections={whole('corrections', self.corrections)}", calls=self.corrections)

    def nfe(self, steps: int) -> int:  # noqa: D102
        return steps * self.corrections + 1

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        z = _langevin(problem, z, i, 0.5 * self.share, self.corrections)
        here, there = problem.levels[i], problem.levels[i + 1]
        if i + 1 < problem.last:
            return z if here.cos < NOISE_END else (there.cos / here.cos) * z  # x/α = z/cos φ stays; where α = 0, pure noise does
        x0, _ = problem.denoise(z, i)
        return there.cos * x0


SOLVERS.alias("ald", "annealed_langevin")
