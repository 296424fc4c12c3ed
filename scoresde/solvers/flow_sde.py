"""Noise for flows: an SDE with the marginals of the ODE, and any strength of noise.

With u = α̇·x̂0 + σ̇·ε̂ the velocity of the ODE and s = −ε̂/σ the score, every w(t) ≥ 0 leaves the
marginals of

    dx = (u − ½w·s) dt + √w dW̄,        from t = 1 to 0,

unchanged. Along it y = (x − α·x̂0)/σ, which is ε̂, obeys dy = (w/2σ²)·y dt + (√w/σ) dW̄ as long
as x̂0 stays: an Ornstein–Uhlenbeck equation. With K = ∫ w/σ² dt over a step to the angle φ' it has
the solution

    z' = cos φ'·x̂0 + sin φ'·(√(1 − q)·ε̂ + √q·n),        q = 1 − e^{−K},

which is DDIM's with another share q of fresh noise: finite at both ends, and stable for every w
and every step. Where x̂0 moves, with κ = ½·(K summed so far) and λ = −log tan φ,

    d(z·e^κ/sin φ) = e^μ·x̂0 dμ + noise,        μ = λ + κ,

so that x̂0 may be extrapolated to the middle of the step in μ, as DPM-Solver++(2M) does in λ:
order 2 for one evaluation. Without noise, it can also go from data to noise.

A form of w enters by an antiderivative of w/σ² alone, and is a row of `FORMS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..common.checks import real_number, whole_number
from ..common.names import choose
from .base import SOLVERS, Solver
from .problem import Counts, Level, Problem

_REACH = 3.0
"""Longest step over the one before that x̂0 is extrapolated over; with much noise it would grow."""


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


FORMS: dict[str, Callable[[Level], float]] = {
    "sigma": lambda at: _log(at.sigma),
    "sigma2": lambda at: at.t,
    "bridge": lambda at: 2 * _log(at.sin),
    "sde": lambda at: 2 * (_log(at.sin) - _log(at.cos)),
}
"""Forms of the noise by name, as antiderivatives of w/σ² at a level. What w they stand for, and
what that is for rectified flow:

- `sigma`: w = σ·σ̇, which is t. The w = σ of Ma et al. 2024, whose σ̇ is 1.
- `sigma2`: w = σ², which is t²: the least near the data.
- `bridge`: w = 2ασ·φ̇, which is 2t(1 − t)/(t² + (1 − t)²): 0 at both ends, 1 in the middle. It is
  g²·cos²φ, that of `Process.reverse_g2` for processes that end in pure noise.
- `sde`: w = g², which is 2t/(1 − t): the process's own reverse SDE. It is infinite where that
  starts in pure noise, and the first step then draws all of the noise anew.

A constant w is no row: K grows as 1/σ towards the data, and the order falls (to ½, with order = 1).
"""


@SOLVERS.register("flow_sde")
@dataclass(frozen=True)
class FlowSDE(Solver):
    """The SDE with the marginals of a flow, and any strength of noise; weak order 2.

    dx = (u − ½w·s) dt + √w dW̄ with w = noise·(a form), for rectified flow and every other process.
    A model trained on coupled pairs has no score s, and is refused. The last step is E[x0 | x],
    without noise. Strong noise repairs errors made on the way, and needs more steps: with noise =
    4 the error of mean and variance is five times that of noise = 1.

    Known methods are special cases. With order = 1, noise = 0 is DDIM, and form = "sde" with
    noise = 1 the ancestral sampler. With order = 2, noise = 0 is DPM-Solver++(2M), and form =
    "sde" with noise = τ² its SDE variant, "dpmpp_2m_sde". Flow-GRPO's noise a·√(t/(1 − t)) is
    form = "sde" with noise = a²/2 (Liu et al. 2025).

    Parameters
    ----------
    noise : float
        Strength, ≥ 0: the factor of w. 0 is the ODE.
    form : str
        A key of `FORMS`: how w depends on time.
    order : int
        2, or 1 for x̂0 held constant over each step.

    Raises
    ------
    TypeError, ValueError
        For a negative noise, an unknown form or another order.

    References
    ----------
    Ma et al., SiT, ECCV 2024, section 2; Albergo et al., Stochastic interpolants, arXiv:2303.08797;
    Song et al., ICLR 2021. For the step: Lu et al., DPM-Solver++, arXiv:2211.01095, Algorithm 2;
    Xue et al., SA-Solver, NeurIPS 2023.

    Examples
    --------
    >>> target = scoresde.toy.EightGaussians()
    >>> sde = scoresde.oracle(target, scoresde.RectifiedFlow())
    >>> a, b = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    >>> x = scoresde.sample(sde, 500, solver="flow_sde", noise=2.0, generator=a)
    >>> scoresde.energy_test(x, target.sample(500, generator=b), 99) > 0.01
    True
    >>> FlowSDE(form="simga")
    Traceback (most recent call last):
    ValueError: unknown form 'simga'. Did you mean 'sigma'? There are: bridge, sde, sigma, sigma2.
    """

    noise: float = 1.0
    form: str = "sigma"
    order: int = 2  # type: ignore[misc]
    steps: ClassVar[int | None] = 100

    def __post_init__(self) -> None:
        real_number("noise", self.noise, 0, math.inf, closed=True, hint="0 is the ODE")
        choose("form", self.form, FORMS)
        if whole_number("order", self.order) > 2:
            raise ValueError(f"order is 1 or 2, got {self.order}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether noise > 0."""
        return self.noise > 0

    @property
    def spacing(self) -> str:  # type: ignore[override]
        """Denser at both ends of the arc; with noise, equal steps in λ, of equal shares of it."""
        return "logsnr" if self.stochastic else "graded"

    def _relaxed(self, here: Level, there: Level) -> float:
        """Return K = ∫ w/σ² dt from one level down to the next, 0 where σ does not fall with t."""
        if not self.noise:
            return 0.0
        form = FORMS[self.form]
        return self.noise * max(0.0, form(here) - form(there))

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        gap, before = math.inf, z  # the length in μ of the last step, and its x̂0
        for i in range(problem.last):
            x0, eps = problem.denoise(z, i)
            if self.stochastic and i + 1 == problem.last:
                z = problem.levels[-1].cos * x0
            else:
                z, gap = self._move(problem, i, x0, eps, before, gap)
            before = x0
            problem.observe(i + 1, z)
        return z, Counts(problem.last, problem.last)

    def _move(
        self, problem: Problem, i: int, x0: Tensor, eps: Tensor, before: Tensor, gap: float
    ) -> tuple[Tensor, float]:
        """Return the states at level i + 1, and the length of the step in μ."""
        here, there = problem.levels[i], problem.levels[i + 1]
        k = self._relaxed(here, there)
        length = abs(_log(there.cos) - _log(there.sin) - _log(here.cos) + _log(here.sin) + 0.5 * k)
        keep = there.sin * math.exp(-0.5 * k)
        z = torch.add(there.cos * x0, eps, alpha=keep)
        # Into pure noise: the mean of |μ' − μ| with the weight e^μ'.
        ahead = 0.5 * length if there.cos else 1.0
        if self.order == 2 and 0 < gap < math.inf and 2 * ahead <= _REACH * gap:
            weight = ahead / gap * (there.cos - keep * here.cos / here.sin)
            z.add_(x0 - before, alpha=weight)
        if self.stochastic:
            z.add_(problem.noise(), alpha=there.sin * math.sqrt(-math.expm1(-k)))
        return z, length
