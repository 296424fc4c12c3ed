"""Solvers of inverse problems: samples of p(x | y) by a model of p(x) and what was measured.

They take the prior's own denoiser, and y where they say. Without weights for what they leave out,
all are biased, mostly in the weights of modes, and more evaluations do not help: `particles`
corrects this. The numbers below are of 16 Gaussians in 2, 16 and 64 dimensions, measured by
inpainting, projections and blur: the sliced Wasserstein distance to exact posterior samples, over
that between two sets of these. `particles` has 1.3, 1.6 and 1.5 there.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..common.capabilities import Capability
from ..common.checks import check_budget, whole_number
from .base import SOLVERS, Solver
from .measured import Measured
from .problem import Counts, Problem
from .stochastic import NOISE_END, add_noise


class FromMeasurement(Solver):
    """A solver that needs what was measured, and the prior's score."""

    stochastic: ClassVar[bool] = True
    spacing: ClassVar[str] = "logsnr"

    @property
    def needs(self) -> frozenset[Capability]:
        """A score, and a linear measurement."""
        return frozenset({Capability.SCORE, Capability.MEASUREMENT})


def _measured(problem: Problem) -> Measured:
    """What was measured."""
    assert problem.measurement is not None
    return problem.measurement


@SOLVERS.register("repaint")
@dataclass(frozen=True)
class RePaint(FromMeasurement):
    """RePaint: ancestral steps, after each of which noised values replace what was measured.

    Biased: the steps know what was measured only by its noised values. Its distance is 2.8, 3.8
    and 15 times the floor with 5 repeats (see `scoresde.solvers.inverse`), and the share of a
    mode may be wrong by a third in 64 dimensions. Returns mend what they can: every `jump` levels
    the path goes back up by fresh noise, and down again. Exact is what was measured, and a
    distribution whose other coordinates do not depend on it, as of a Gaussian that is whitened.

    It takes `measurements.Inpaint(mask)` without noise. N steps cost about N·repeats evaluations.

    Parameters
    ----------
    jump : int
        Levels to go back.
    repeats : int
        How often each part of the path is gone down, once without returns.

    Raises
    ------
    TypeError, ValueError
        For numbers below 1.

    References
    ----------
    Lugmayr et al., RePaint: inpainting using denoising diffusion probabilistic models, CVPR 2022,
    Algorithm 1 and Appendix B.

    Examples
    --------
    >>> RePaint().stochastic, "measurement" in RePaint().needs
    (True, True)
    """

    jump: int = 10
    repeats: int = 5
    order: ClassVar[int] = 1
    steps: ClassVar[int] = 100

    def __post_init__(self) -> None:
        whole_number("jump", self.jump)
        check_budget(f"repeats={whole_number('repeats', self.repeats)}", calls=self.repeats)

    def moves(self, problem: Problem) -> list[tuple[int, int]]:
        """Return the moves (from level, to level): one down, or `jump` up.

        Parameters
        ----------
        problem : Problem

        Returns
        -------
        list of (int, int)

        Examples
        --------
        See `RePaint`.
        """
        found = []
        for i in range(problem.last):
            found.append((i, i + 1))
            bottom = i + 1
            top = bottom - self.jump
            # the last return starts from the last level that has noise
            due = (problem.last - 1 - bottom) % self.jump == 0 and bottom < problem.last
            # no finite noise leads up to α = 0
            if due and top >= 0 and problem.levels[top].cos > NOISE_END:
                down = list(itertools.pairwise(range(top, bottom + 1)))
                found += [(bottom, top), *down] * (self.repeats - 1)
        return found

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        measured = _measured(problem)
        if bool((measured.std != 0).any()):
            raise ValueError(
                "repaint keeps elements as they were measured, so it takes Inpaint(mask) without "
                "noise; try 'split_gibbs' or 'daps', or scoresde.particles"
            )
        nfe = 0
        for i, j in self.moves(problem):
            here, there = problem.levels[i], problem.levels[j]
            if j < i:
                z = add_noise(problem, z, here.phi, there.phi)
                continue
            x0, eps = problem.denoise(z, i)
            nfe += 1
            if j == problem.last:
                z = measured.replaced(x0, 1.0, 0.0, x0) / there.radius
            else:
                noise = problem.noise()
                keep = (there.sin * here.cos) / (there.cos * here.sin)  # u'/u
                fresh = max(0.0, (1 - keep) * (1 + keep))
                z = there.cos * x0 + (there.sin * keep) * eps
                z.add_(noise, alpha=there.sin * math.sqrt(fresh))
                # what the step drew for these coordinates is not used, so its noise is free
                z = measured.replaced(z, there.cos, there.sin, noise)
            problem.observe(j, z)
        return z, Counts(nfe, nfe)


@SOLVERS.register("daps")
@dataclass(frozen=True)
class DAPS(FromMeasurement):
    """DAPS: at each level estimate the data, condition a Gaussian around them on y, noise again.

    Biased: p(x0 | z) is no Gaussian around one estimate. Its distance is 5.5, 9 and 12 times the
    floor (see `scoresde.solvers.inverse`). It is exact for a Gaussian that is whitened with
    ode_steps=1.

    From z at the angle φ an ODE leads to x̂0; a draw x0 ~ N(x0; x̂0, sin²φ)·p(y | x0) is exact, as
    the measurement is linear; then z' = cos φ'·x0 + sin φ'·n at the next level. sin φ is the spread
    of p(x0 | z) for standard normal data, and σ/α of the paper near the data. With ode_steps=1,
    x̂0 = E[x0 | z]. Further steps reach samples of p(x), which are sharper.

    Parameters
    ----------
    ode_steps : int
        Steps, each of one evaluation, from each level to the data.

    Raises
    ------
    TypeError, ValueError
        For a number below 1.

    References
    ----------
    Zhang et al., Improving diffusion inverse problem solving with decoupled noise annealing, 2024,
    Algorithm 1.

    Examples
    --------
    >>> DAPS(ode_steps=1).stochastic
    True
    """

    ode_steps: int = 5
    order: ClassVar[int] = 1
    steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        whole_number("ode_steps", self.ode_steps)

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        measured = _measured(problem)
        ode = SOLVERS.build("ddim")
        nfe = 0
        for i in range(problem.last):
            here, there = problem.levels[i], problem.levels[i + 1]
            x0, counts = _to_data(problem, ode, z, i, self.ode_steps)
            nfe += int(counts.nfe)
            x0 = measured.conditioned(x0, here.sin, problem.noise())
            if i + 1 == problem.last:
                z = x0 / there.radius
            else:
                z = (there.cos * x0).add_(problem.noise(), alpha=there.sin)
            problem.observe(i + 1, z)
        return z, Counts(nfe, problem.last)


@SOLVERS.register("split_gibbs")
@dataclass(frozen=True)
class SplitGibbs(FromMeasurement):
    """Split Gibbs (PnP-DM): draws of x0 given a noised copy w, and of w given x0 and y, in turn.

    Biased: the copies have noise ρ = σ/α that falls to 0 on the way, and the weights of modes
    freeze while ρ is still large. Its distance is 5, 8 and 13 times the floor (see
    `scoresde.solvers.inverse`), and tends to 1 only for ever more steps. For a Gaussian the error
    falls with the steps alone.

    At each level, x0 ~ p(x0 | w) by a few steps of the prior's SDE ("dpmpp_2m_sde"), then
    w ~ N(w; x0, ρ²)·p(y | w), exactly, as the measurement is linear, with ρ of the next level.

    Parameters
    ----------
    inner : int
        Steps of the SDE, each of one evaluation, from each level to the data.

    Raises
    ------
    TypeError, ValueError
        For a number below 1.

    References
    ----------
    Coeurdoux, Dobigeon and Chainais, Plug-and-play split Gibbs sampler, 2023; Wu et al., Principled
    probabilistic imaging using diffusion models as plug-and-play priors, NeurIPS 2024, Algorithm 1.

    Examples
    --------
    >>> SplitGibbs(inner=4).stochastic
    True
    """

    inner: int = 8
    order: ClassVar[int] = 1
    steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        whole_number("inner", self.inner)

    def run(self, problem: Problem, z: Tensor) -> tuple[Tensor, Counts]:  # noqa: D102
        measured = _measured(problem)
        sde = SOLVERS.build("dpmpp_2m_sde")
        nfe = 0
        for i in range(problem.last):
            there = problem.levels[i + 1]
            x0, counts = _to_data(problem, sde, z, i, self.inner)
            nfe += int(counts.nfe)
            noise = problem.noise()
            if i + 1 == problem.last:
                z = measured.conditioned(x0, 0.0, noise) / there.radius
            else:
                z = there.cos * measured.conditioned(x0, there.sin / there.cos, noise)
            problem.observe(i + 1, z)
        return z, Counts(nfe, problem.last)


def _to_data(
    problem: Problem,
    solver: Solver,
    z: Tensor,
    i: int,
    steps: int,
) -> tuple[Tensor, Counts]:
    """Standardized data to which a solver leads from z at level i, in at most so many steps."""
    count = min(steps, problem.last - i)
    chosen = [i + round(k * (problem.last - i) / count) for k in range(count + 1)]
    end, counts = solver.run(problem.restricted(chosen), z)
    return problem.levels[-1].radius * end, counts
