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
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is between 0 (DDIM) and 1 (ancestral), got {self.eta}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether eta > 0."""
        return self.eta > 0

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        here, there = problem.levels[i], problem.levels[i + 1]
        x0, eps = problem.denoise(z, i)
        if self.stochastic and i + 1 == problem.last:
            return there.cos * x0
        ratio = (there.sin * here.cos) / (there.cos * here.sin)  # e^{λ − λ'}
        fresh = self.eta**2 * (1 - ratio) * (1 + ratio)
        z = there.cos * x0 + (there.sin * math.sqrt(1 - fresh)) * eps
        return z if fresh == 0 else z.add_(problem.noise(), alpha=there.sin * math.sqrt(fresh))


SOLVERS.add("ancestral", functools.partial(DDIM, eta=1.0))


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
        x = torch.add((here.radius / r) * z, x0, alpha=-dt * here.dalpha / r) if here.dalpha else (here.radius / r) * z
        x.add_(eps, alpha=-dt * slope / r)
        return x.add_(problem.noise(), alpha=math.sqrt(here.noise2 * dt) / r)


@SOLVERS.register("pc")
@dataclass(frozen=True)
class PredictorCorrector(Stepper):
    """Predictor–corrector sampling with annealed Langevin corrections (Song et al. 2021, Algorithms 1 to 5), any process.

    After each step of the predictor, x ← x + δ·s + √(2δ)·n with s the score and step size δ = 2a²·(snr·‖n‖/‖s‖)², where a is
    the transition's α_t/α_s (√(1 − β_i) in Algorithm 5, 1 in Algorithm 4). Norms are those of the sample alone; its ratio
    ‖n‖/‖σ·s‖ is held at `most` or below, since in few dimensions a score that happens to vanish would make δ infinite (the
    papers average norms over the batch, so that a sample depends on its mates).

    Parameters
    ----------
    predictor : str
        A registered stepper: "ancestral", "em", "ddim", …
    snr : float
        Signal-to-noise ratio r of the corrector.
    corrections : int
        Langevin steps after each prediction, M in Algorithm 1.
    most : float
        Bound on ‖n‖/‖σ·s‖.

    Raises
    ------
    ValueError
        For an unknown predictor, or numbers that are not positive.

    Examples
    --------
    >>> PredictorCorrector(corrections=2).nfe(10)
    28
    """

    predictor: str = "ancestral"
    snr: float = 0.16
    corrections: int = 1
    most: float = 1.5
    stochastic: ClassVar[bool] = True
    steps: ClassVar[int] = 250

    def __post_init__(self) -> None:
        if not (self.snr > 0 and self.corrections >= 1 and self.most > 0):
            raise ValueError(
                f"snr and most are positive and corrections at least 1, got {self.snr}, {self.most}, {self.corrections}"
            )
        if not isinstance(self._predictor, Stepper) or isinstance(self._predictor, PredictorCorrector):
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
        a = above.alpha / level.alpha
        for _ in range(self.corrections):
            _, eps = problem.denoise(z, i + 1)
            noise = problem.noise()
            ratio = (noise.norm(dim=1, keepdim=True) / eps.norm(dim=1, keepdim=True)).clamp_max(self.most)
            delta = 2 * (a * self.snr * ratio).square()  # in units of σ²: x = r·z, s = −ε̂/σ
            z = z + level.sin * ((2 * delta).sqrt() * noise - delta * eps)
        return z
