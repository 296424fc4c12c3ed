"""Langevin steps: correctors after any predictor, and annealed Langevin dynamics.

A Langevin step of any size keeps the distribution at its noise level, up to O(δ²):

    x ← x + δσ²·s + √(2δ)·σ·n,    s = −ε̂/σ,    on the arc
    z ← z − δ·sin φ·ε̂ + √(2δ)·sin φ·n.

δ is the step size in units of σ². `CORRECTORS` holds the rules that choose it. The remaining bias
is a relative δσ²/2V in the variance V of a Gaussian, which vanishes towards the data, where σ² is
small.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..common.capabilities import Capability
from ..common.checks import brief_repr, check_budget, real_number, whole_number
from ..common.names import choose
from .base import SOLVERS, Solver, Stepper
from .problem import Problem

CORRECTORS: dict[str, Callable[[float, float], float]] = {
    "langevin": lambda snr, a: 2 * (snr * a) ** 2,
    "ald": lambda snr, a: 2 * snr**2,
    "none": lambda snr, a: 0.0,
}
"""Rules (snr, a) -> δ, with a = α_t/α_s of the step that is corrected. `langevin`: Song et al.
2021, Algorithms 4 and 5; `ald`: a fixed share of σ², as in NCSN, where δ = ½ε/σ_L² (Song & Ermon
2019, Algorithm 1); `none`: the predictor alone.
"""


NOISE_END = 1e-6
"""cos φ below which α counts as 0."""


def _langevin(problem: Problem, z: Tensor, i: int, delta: float, repeats: int) -> Tensor:
    """Take Langevin steps of size δ at level i."""
    sin = problem.levels[i].sin
    std = math.sqrt(2 * delta) * sin
    for _ in range(repeats):
        _, eps = problem.denoise(z, i)
        z = torch.add(z, eps, alpha=-delta * sin)
        z.add_(problem.noise(), alpha=std)
    return z


@SOLVERS.register("pc")
@dataclass(frozen=True)
class PredictorCorrector(Stepper):
    """Predictor–corrector sampling: any stepper, with Langevin corrections between its steps.

    After each prediction but the last, for any process (Song et al. 2021, Algorithms 1 to 5):

        x ← x + δσ²·s + √(2δ)·σ·n,        δ = 2·(a·snr·‖n‖/‖s‖)²/σ²,

    where a is the transition's α_t/α_s (√(1 − β_i) in Algorithm 5, 1 in Algorithm 4). For the two
    norms it takes their root mean squares under the forward process, √D and √D/σ. The papers
    average them over the batch, so that a sample depends on the others. Norms of the sample alone
    make δ depend on the state, and in few dimensions that is another distribution (on a 2-D
    mixture, modes 20% too wide however many steps).

    Half of the evaluations go to the corrector, so that the predictor, of weak order 1, takes half
    as many steps. The error at 50 evaluations is the predictor's: "ancestral" with 25 steps leaves
    modes 10 to 18% too narrow, and up to 4% of all samples in a wrong one. `predictor="dpmpp_2s"`,
    of order 2, is within 5% at the same cost.

    Parameters
    ----------
    predictor : str or Stepper
        A registered stepper, "ancestral", "reverse_diffusion", "em", "ddim", "heun", …, or one
        with options of its own. Methods that remember earlier steps ("dpmpp_2m", "adams") cannot
        be corrected in between.
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
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR
    2021, Algorithms 1 to 5.

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
        real_number("snr", self.snr, 0, 1, hint="try 0.16")
        check_budget(
            f"corrections={whole_number('corrections', self.corrections)}", calls=self.corrections
        )
        choose("corrector", self.corrector, CORRECTORS)
        if (isinstance(self.predictor, str) and self.predictor == "pc") or not isinstance(
            self._predictor, Stepper
        ):
            why = "it remembers earlier steps, or is no solver that goes from level to level"
            raise ValueError(
                f"{brief_repr(self.predictor)} can't be a predictor: {why}; "
                "try 'ancestral', 'em' or 'ddim'"
            )

    @functools.cached_property
    def _predictor(self) -> Stepper:
        named = (
            SOLVERS.build(self.predictor) if isinstance(self.predictor, str) else self.predictor
        )
        return named  # type: ignore[return-value]

    @property
    def needs(self) -> frozenset[Capability]:
        """For the corrector a score; what the predictor needs comes with `parts`."""
        return frozenset() if self.corrector == "none" else frozenset({Capability.SCORE})

    @property
    def parts(self) -> tuple[Solver, ...]:
        """The predictor."""
        return (self._predictor,)

    @property
    def _repeats(self) -> int:
        """Langevin steps after each prediction."""
        return 0 if self.corrector == "none" else self.corrections

    def nfe(self, steps: int) -> int:  # noqa: D102
        return self._predictor.nfe(steps) + (steps - 1) * self._repeats

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        z = self._predictor.step(problem, z, i)
        if i + 1 == problem.last:
            return z
        ratio = problem.levels[i].alpha / problem.levels[i + 1].alpha
        delta = CORRECTORS[self.corrector](self.snr, ratio)
        return _langevin(problem, z, i + 1, delta, self._repeats)


@SOLVERS.register("annealed_langevin")
@dataclass(frozen=True)
class AnnealedLangevin(Stepper):
    """Annealed Langevin dynamics of NCSN: correctors without a predictor. Also `"ald"`.

    At each level but the last, T times x ← x + ½α_i·s + √α_i·n with α_i = ε·σ_i²/σ_L². Between
    levels x/α stays (x itself for VE, which the paper has). The end is E[x0 | x], the denoising
    that Algorithm 1 lacked (Jolicoeur-Martineau et al. 2021, "Adversarial score matching").

    Only the Langevin steps remove noise, so that the state lags behind its level: after 500
    evaluations modes are 10 to 14% too wide (2 to 3% with share=1). This bias falls with the first
    power of the number of levels. The share of samples in each mode keeps a bias of the order of
    `share` at any number of levels: at 1, the widest of ten modes in 16-D gets half as many
    samples again as it should; at 0.2, NCSN's own, an energy test of 1,000 sees none.

    Parameters
    ----------
    share : float
        ε/σ_L² = α_i/σ_i², the step in units of each level's variance; below 4, where it becomes
        unstable.
    corrections : int
        Langevin steps a level, T in Algorithm 1.

    Raises
    ------
    TypeError, ValueError
        Unless 0 < share < 4 and corrections ≥ 1.

    References
    ----------
    Song & Ermon, Generative modeling by estimating gradients of the data distribution, NeurIPS
    2019, Algorithm 1.

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
        real_number("share", self.share, 0, 4, hint="try 0.2")
        check_budget(
            f"corrections={whole_number('corrections', self.corrections)}", calls=self.corrections
        )

    def nfe(self, steps: int) -> int:  # noqa: D102
        return steps * self.corrections + 1

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        z = _langevin(problem, z, i, 0.5 * self.share, self.corrections)
        here, there = problem.levels[i], problem.levels[i + 1]
        if i + 1 == problem.last:
            x0, _ = problem.denoise(z, i)
            return there.cos * x0
        # x/α = z/cos φ stays; where α = 0, pure noise does.
        return z if here.cos < NOISE_END else (there.cos / here.cos) * z


SOLVERS.alias("ald", "annealed_langevin")
