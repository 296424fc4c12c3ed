"""Solvers that step with (x̂0, ε̂): DDIM and DDPM, Euler–Maruyama, reverse diffusion.

The last step of the stochastic ones is E[x0 | x], without noise, as is usual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..common.capabilities import Capability
from ..common.checks import real_number
from ..common.errors import SolverError
from ..common.names import choose
from .base import SOLVERS, Stepper
from .problem import Problem, split


@SOLVERS.register("ddim")
@dataclass(frozen=True)
class DDIM(Stepper):
    """DDIM, and with eta = 1 the ancestral sampler of DDPM, for any process.

    On the arc DDIM keeps (x̂0, ε̂) and turns: z' = cos φ'·x̂0 + sin φ'·(√(1 − q)·ε̂ + √q·n), where
    q = η²·(1 − e^{2(λ − λ')}) is the share of noise drawn anew; η = 1 makes it the exact posterior
    of x_s given (x_t, x̂0). `"ancestral"` is this with eta = 1, and with other variances too.

    Parameters
    ----------
    eta : float
        0 deterministic (order 1), 1 ancestral (weak order 1).

    Raises
    ------
    ValueError
        Unless 0 ≤ eta ≤ 1.

    References
    ----------
    Song et al., Denoising diffusion implicit models, ICLR 2021, eq. 12; Ho et al., Denoising
    diffusion probabilistic models, NeurIPS 2020, eq. 7.

    Examples
    --------
    >>> DDIM(eta=0.0).stochastic, DDIM(eta=1.0).stochastic
    (False, True)
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        real_number("eta", self.eta, 0, 1, closed=True, hint="0 is DDIM, 1 ancestral")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether eta > 0."""
        return self.eta > 0

    @property
    def needs(self) -> frozenset[Capability]:
        """A score if it is stochastic; else only values of x0, which all models have."""
        return frozenset({Capability.SCORE}) if self.stochastic else frozenset()

    @property
    def spacing(self) -> str:  # type: ignore[override]
        """Uniform in t, as in the papers; with noise, equal steps in λ, of equal shares of it."""
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
        if not self.stochastic:
            return there.cos * x0 + there.sin * eps
        ratio = (there.sin * here.cos) / (there.cos * here.sin)  # e^{λ − λ'}
        fresh = max(0.0, self.eta**2 * (1 - ratio) * (1 + ratio))
        z = there.cos * x0 + (there.sin * math.sqrt(1 - fresh)) * eps
        return z if fresh == 0 else z.add_(problem.noise(), alpha=there.sin * math.sqrt(fresh))


VARIANCES = ("posterior", "beta", "learned")


@SOLVERS.register("ancestral")
@dataclass(frozen=True)
class Ancestral(Stepper):
    """The ancestral sampler of DDPM, for any process; weak order 1.

    z' = cos φ'·x̂0 + sin φ'·e^{λ − λ'}·ε̂ + √Σ·n. With Σ = β̃ = sin²φ'·(1 − e^{2(λ − λ')}) this is
    the exact posterior of x_s given (x_t, x̂0), and `DDIM` with eta = 1. With Σ = β = β̃·(1 + h),
    h = sin²φ/sin²φ' − 1, it is exact for standard normal data. A learned variance is β̃·(1 + h·w),
    elementwise, with the network's w in [0, 1] at the level where the step starts.

    Parameters
    ----------
    variance : str, optional
        Σ: "posterior", "beta" or "learned". By default learned if the model has learnt it, and
        posterior otherwise.

    Raises
    ------
    ValueError
        For another variance.

    References
    ----------
    Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020, eq. 7; Nichol & Dhariwal,
    Improved denoising diffusion probabilistic models, ICML 2021, eq. 15.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.Moons(), scoresde.VPSDE(), variance="elementwise")
    >>> scoresde.sample(sde, 3, solver="ancestral", steps=20).shape
    torch.Size([3, 2])
    """

    variance: str | None = None
    stochastic: ClassVar[bool] = True
    steps: ClassVar[int] = 250
    spacing: ClassVar[str] = "logsnr"

    def __post_init__(self) -> None:
        if self.variance is not None:
            choose("variance", self.variance, VARIANCES)

    @property
    def needs(self) -> frozenset[Capability]:
        """A score, and a variance if it is to be the learned one."""
        needed = {Capability.SCORE}
        if self.variance == "learned":
            needed.add(Capability.VARIANCE)
        return frozenset(needed)

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        here, there = problem.levels[i], problem.levels[i + 1]
        share: Tensor | float = float(self.variance == "beta")
        learned = self.variance is None and Capability.VARIANCE in problem.capabilities
        if learned or self.variance == "learned":
            velocity, share = problem.field(Capability.VARIANCE)(z, here.phi, None).chunk(2, 1)
            x0, eps = split(z, velocity, here.cos, here.sin)
        else:
            x0, eps = problem.denoise(z, i)
        if i + 1 == problem.last:
            return there.cos * x0
        ratio = (there.sin * here.cos) / (there.cos * here.sin)  # e^{λ − λ'}
        fresh = max(0.0, (1 - ratio) * (1 + ratio))
        z = there.cos * x0 + (there.sin * math.sqrt(1 - fresh)) * eps
        std = there.sin * math.sqrt(fresh)
        growth = (here.sin / there.sin) ** 2 - 1
        if isinstance(share, float):
            return z.add_(problem.noise(), alpha=std * math.sqrt(1 + growth * share))
        return z.add_(problem.noise() * (1 + growth * share).sqrt(), alpha=std)


@SOLVERS.register("em")
@dataclass(frozen=True)
class EulerMaruyama(Stepper):
    """Euler–Maruyama on the reverse SDE, in the process's own time and state; weak order 1.

    x' = x − Δt·(α̇·x̂0 + σ̇·ε̂ + ½g̃²·ε̂/σ) + g̃·√Δt·n. For processes with α(1) > 0 these are the
    drift f·x − g²·score and the noise g (Song et al. 2021, eq. 6). See `Process.reverse_g2` for g̃
    where g is infinite.

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
        dt = here.t - there.t
        r = there.radius
        slope = here.dsigma + 0.5 * here.noise2 / here.sigma
        if not math.isfinite(slope + here.dalpha):
            raise SolverError(
                f"em needs finite α̇, σ̇ and g, and one is infinite at t = {here.t:g}; try "
                "'ancestral' or 'rk45'"
            )
        x = (here.radius / r) * z
        if here.dalpha:
            x.add_(x0, alpha=-dt * here.dalpha / r)
        x.add_(eps, alpha=-dt * slope / r)
        return x.add_(problem.noise(), alpha=math.sqrt(here.noise2 * dt) / r)


@SOLVERS.register("reverse_diffusion")
@dataclass(frozen=True)
class ReverseDiffusion(Stepper):
    """The reverse diffusion predictor: the discretized forward kernel run backwards; weak order 1.

    With the exact kernel x_t | x_s ~ N(a·x_s, v·I), a = α_t/α_s and v = σ_t² − a²·σ_s², the
    discretized forward step is x_t = x_s + (a − 1)·x_s + √v·n. Song et al. reverse it as x_s = x_t
    − (a − 1)·x_t + v·s + √v·n, with the score s = −ε̂/σ_t:

        x_s = (2 − a)·x_t − (v/σ_t)·ε̂ + √v·n.

    For VE, a = 1 and v = σ_t² − σ_s²: their Algorithm 2. For VP, v = 1 − a² = β with 1 − β =
    α_t²/α_s²: their Algorithm 3, (2 − √(1 − β))·x + β·s + √β·n. `score_sde` takes β(t)/N for this
    β, which is the same to first order; at N ≤ 20 it passes 1, and the root is NaN. Where α_t = 0
    the kernel holds nothing of x_s, and x_s = α_s·x̂0 + σ_s·n.

    References
    ----------
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR
    2021, Appendix E.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> bool(scoresde.sample(sde, 8, solver="reverse_diffusion", steps=5).isfinite().all())
    True
    """

    stochastic: ClassVar[bool] = True
    steps: ClassVar[int] = 250
    spacing: ClassVar[str] = "arc"

    def step(self, problem: Problem, z: Tensor, i: int) -> Tensor:  # noqa: D102
        here, there = problem.levels[i], problem.levels[i + 1]
        x0, eps = problem.denoise(z, i)
        if i + 1 == problem.last:
            return there.cos * x0
        if here.cos < 1e-6:
            return (there.cos * x0).add_(problem.noise(), alpha=there.sin)
        a = here.alpha / there.alpha
        ratio = (there.sin * here.cos) / (there.cos * here.sin)  # e^{λ − λ'}
        share = (1 - ratio) * (1 + ratio)  # v/σ_t², without cancellation
        r = there.radius
        sigma = here.sigma
        z = ((2 - a) * here.radius / r) * z
        z.add_(eps, alpha=-share * sigma / r)
        return z.add_(problem.noise(), alpha=math.sqrt(share) * sigma / r)
