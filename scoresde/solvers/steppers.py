"""Solvers that step from level to level with (x̂0, ε̂): DDIM and DDPM, Euler–Maruyama, predictor–corrector.

The stochastic ones end as the field's do: the last step is E[x0 | x], without noise.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..checks import number, whole
from ..errors import SolverError
from .base import SOLVERS, Problem, Stepper


@SOLVERS.register("ddim")
@dataclass(frozen=True)
class DDIM(Stepper):
    """DDIM, and with eta = 1 the ancestral sampler of DDPM, for any process (Song et al. 2021a, eq. 12; Ho et al. 2020, eq. 7).

    On the arc DDIM keeps (x̂0, ε̂) and turns: z' = cos φ'·x̂0 + sin φ'·(√(1 − q)·ε̂ + √q·n), where q = η²·(1 − e^{2(λ − λ')})
    is the share of noise drawn anew; η = 1 makes it the exact posterior of x_s given (x_t, x̂0). `"ancestral"` is this with
    eta = 1.

    Parameters
    ----------
    eta : float
        0 deterministic (order 1), 1 ancestral (weak order 1).

    Raises
    ------
    ValueError
        Unless 0 ≤ eta ≤ 1.

    Examples
    --------
    >>> DDIM(eta=0.0).stochastic, DDIM(eta=1.0).stochastic
    (False, True)
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        number("eta", self.eta, 0, 1, closed=True, hint="0 is DDIM, 1 ancestral")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether eta > 0."""
        return self.eta > 0

    @property
    def spacing(self) -> str:  # type: ignore[override]
        """Uniform in t, as the papers' grids; ancestral steps in λ, where each draws the same share of noise anew."""
        return "logsnr" if self.stochastic else "time"

    @property
    def steps(self) -> int:  # type: ignore[override]
        """100, or 250 for the stochastic method, whose bias falls as 1/steps."""
        return 250 if self.stochastic else 100

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        here, there = problem.levels[i], problem.levels[i + 1]
        x0, eps = problem.denoise(z, i)
        if self.stochastic and i + 1 == problem.last:
            return there.cos * x0
        ratio = (there.sin * here.cos) / (there.cos * here.sin)  # e^{λ − λ'}
        fresh = max(0.0, self.eta**2 * (1 - ratio) * (1 + ratio))
        z = there.cos * x0 + (there.sin * math.sqrt(1 - fresh)) * eps
        return z if fresh == 0 else z.add_(problem.noise(), alpha=there.sin * math.sqrt(fresh))


def ancestral() -> DDIM:
    """Return the ancestral sampler, DDIM with eta = 1.

    Returns
    -------
    DDIM

    Examples
    --------
    >>> ancestral()
    DDIM(eta=1.0)
    """
    return DDIM(eta=1.0)


SOLVERS.add("ancestral", ancestral)


@SOLVERS.register("em")
@dataclass(frozen=True)
class EulerMaruyama(Stepper):
    """Euler–Maruyama on the reverse SDE, in the process's own time and state (Song et al. 2021, eq. 6; weak order 1).

    x' = x − Δt·(α̇·x̂0 + σ̇·ε̂ + ½g̃²·ε̂/σ) + g̃·√Δt·n; for processes with α(1) > 0 that is f·x − g²·score and g. See
    `Process.reverse_g2` for g̃ where g is infinite.

    Examples
    --------
    >>> EulerMaruyama().stochastic
    True
    """

    stochastic: ClassVar[bool] = True
    steps: ClassVar[int] = 250

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        here, there = problem.levels[i], problem.levels[i + 1]
        x0, eps = problem.denoise(z, i)
        if i + 1 == problem.last:
            return there.cos * x0
        dt, r = here.t - there.t, there.radius
        slope = here.dsigma + 0.5 * here.noise2 / here.sigma
        if not math.isfinite(slope + here.dalpha):
            raise SolverError(f"em needs α̇, σ̇ and g, one of which is infinite at t = {here.t:g}; try 'ancestral' or 'rk45'")
        x = torch.add((here.radius / r) * z, x0, alpha=-dt * here.dalpha / r) if here.dalpha else (here.radius / r) * z
        x.add_(eps, alpha=-dt * slope / r)
        return x.add_(problem.noise(), alpha=math.sqrt(here.noise2 * dt) / r)


@SOLVERS.register("pc")
@dataclass(frozen=True)
class PredictorCorrector(Stepper):
    """Predictor–corrector sampling with annealed Langevin corrections (Song et al. 2021, Algorithms 1 to 5), any process.

    After each step of the predictor, x ← x + δ·s + √(2δ)·n with s the score and step size δ = 2a²·(snr·‖n‖/‖s‖)², where a is
    the transition's α_t/α_s (√(1 − β_i) in Algorithm 5, 1 in Algorithm 4). For the two norms it takes their root mean
    squares under the forward process, √D and √D/σ. The papers average them over the batch, so that a sample depends on its
    mates; norms of the sample alone make δ depend on the state, and in few dimensions that is another distribution (on a
    2-D mixture, modes 20% too wide however many steps).

    Parameters
    ----------
    predictor : str
        A registered stepper: "ancestral", "em", "ddim", …
    snr : float
        Signal-to-noise ratio of the corrector.
    corrections : int
        Langevin steps after each prediction, M in Algorithm 1.

    Raises
    ------
    TypeError, ValueError
        For an unknown predictor, or numbers that are not positive.

    Examples
    --------
    >>> PredictorCorrector(corrections=2).nfe(10)
    28
    """

    predictor: str = "ancestral"
    snr: float = 0.16
    corrections: int = 1
    stochastic: ClassVar[bool] = True
    steps: ClassVar[int] = 250
    spacing: ClassVar[str] = "logsnr"

    def __post_init__(self) -> None:
        number("snr", self.snr, 0, 1, hint="try 0.16")
        whole("corrections", self.corrections)
        if self.predictor == "pc" or not isinstance(self._predictor, Stepper):
            raise ValueError(f"{self.predictor!r} can't be a predictor; try 'ancestral', 'em' or 'ddim'")

    @functools.cached_property
    def _predictor(self) -> Stepper:
        return SOLVERS.build(self.predictor)  # type: ignore[return-value]

    def nfe(self, steps: int) -> int:  # noqa: D102
        return self._predictor.nfe(steps) + (steps - 1) * self.corrections

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        z = self._predictor.step(problem, z, i)
        if i + 1 == problem.last:
            return z
        level, above = problem.levels[i + 1], problem.levels[i]
        delta = 2 * (self.snr * above.alpha / level.alpha) ** 2  # in units of σ²; on the arc x = r·z, s = −ε̂/σ
        for _ in range(self.corrections):
            _, eps = problem.denoise(z, i + 1)
            z = torch.add(z, eps, alpha=-delta * level.sin).add_(problem.noise(), alpha=math.sqrt(2 * delta) * level.sin)
        return z
