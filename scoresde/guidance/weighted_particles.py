"""Populations of weighted particles, which sample guided models without bias in the limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.capabilities import Capability
from ..common.checks import check_generator, real_number, whole_number
from ..common.errors import SolverError
from ..common.names import choose
from ..common.progress import part, shows_progress
from ..common.random import PATH, PRIOR, RESAMPLING, Noise, draw_seed
from ..common.result_tables import by_sample, counted
from ..common.seeds import takes_seed
from ..common.sharding import together
from ..common.user_warnings import warn
from ..model.protocol import Model
from ..model.require import require_model
from ..model.standardization import wide
from ..processes.spacings import SPACINGS, grid
from ..sampling.batches import batch_ranges, map_batches
from .feynman_kac import run_corrected
from .gaps import WithGaps
from .guided import LARGEST_ANGLE, Guided, require_part
from .linearized import Linearized
from .observed import Observed
from .particle_resampling import Passes, Population, balanced, passes_of
from .tilted import STEPS_OF_A_PASS, Tilted
from .twisted import run_twisted

LAST_LEVEL = 0.01
"""The last noise level σ/α that is evaluated, at most."""
FINE = 4096
"""Points of the table from which default steps are interpolated."""
UNIFORM = 50
"""Up to so many steps, all are uniform in arsinh(α/σ); further ones lie around σ/α = 1."""
AROUND_ONE = 0.5
"""The largest share of steps around σ/α = 1."""
WIDTH = 0.8
"""Scale of their logistic distribution in log(σ/α)."""
ROWS_EACH = 8
"""Rows of the curvature of a twist that are held beside each state without smaller batches."""
PROBES = 8
"""Points and directions at which a measurement is differentiated to see its scale."""
LEAST_SIZE = 0.05
"""The effective share of a population below which `particles` warns …"""
LEAST_PARTICLES = 1.1
"""… or the effective number below which it does, and …"""
MOST_ERROR = 1.0
"""… the standard error of log evidence in nats above which it does, if …"""
MOST_SHARE = 0.05
"""… more than this share of the populations are so: a few are by chance."""


class Particles(NamedTuple):
    """What `particles` returns.

    Attributes
    ----------
    x : Tensor, shape (n, *shape)
        One draw of each population: the n samples, in the units of the data. Chances are the
        weights, corrected for most of the bias that few particles have (a jackknife).
    states : Tensor, shape (n, particles, *shape)
        All particles; of several passes as many as of one, drawn by their weights.
    log_weights : Tensor, shape (n, particles)
        Their normalized log weights, in nats.
    log_evidence : Tensor, shape (n,)
        An estimate of log ∫p(x)·g(x)dx a sample, such as log p(y); of log ∫Π pᵢ(x)^aᵢ dx for
        products of powers. Its exponential is unbiased but for the error of the steps, so for one
        y and n samples `log_evidence.logsumexp(0) - log(n)` is better than the mean.
    stderr : Tensor, shape (n,)
        The standard error of log_evidence, in nats, from how weights spread over the particles
        that descend from one at the start, over all of them between resamplings, and between
        passes. Too small where it is above about ½, as it knows nothing of modes that no particle
        found.
    ess : Tensor, shape (n,)
        Effective number of particles at the end, 1/Σw², over all those of all passes: it may be
        above `particles`.
    resampled : Tensor of int, shape (n,)
        How often the population was resampled.
    nfe : Tensor of int, shape (n,)
        Network evaluations of a sample, backward passes among them, over all its particles:
        particles · steps · `model.cost`. Steps that passes of equal length leave over are not
        taken: 1,000 are 7 passes of 142.

    Examples
    --------
    See `particles`.
    """

    x: Tensor
    states: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    stderr: Tensor
    ess: Tensor
    resampled: Tensor
    nfe: Tensor

    def __repr__(self) -> str:
        """A small table: log evidence of some samples, and its mean."""
        size = self.states.shape[1]
        title = f"Particles: {counted(len(self.x), 'sample')} of {counted(size, 'particle')}"
        columns = {
            "log evidence": self.log_evidence,
            "± (nats)": self.stderr,
            "ess": self.ess,
            "resampled": self.resampled,
            "nfe": self.nfe,
        }
        return by_sample(title, columns).text()


@takes_seed
@shows_progress
@torch.no_grad()
@together()
def particles(
    model: Model,
    n: int | None = None,
    particles: int = 16,
    steps: int = 100,
    *,
    resample_below: float = 0.5,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Particles:
    """Draw from a guided model by weighted particles, which correct the bias of its guidance.

    Each of the n samples owns a population, and is one draw from it. Of `observe`, `toward` and
    `classifier` the target is p(x)·g(x), by twisted sequential Monte Carlo (Wu et al. 2023); of
    `compose`, `temper` and `classifier_free` it is Π pᵢ(x)^aᵢ, by a Feynman–Kac formula, which is
    p(x)·p(y | x)^β for the last. `scoresde.sample` draws from neither, at any number of steps.
    Errors fall with `particles`, with `steps`, and with the quality of the guidance.

    Parameters
    ----------
    model : Model
        What `observe`, `toward`, `classifier`, `classifier_free`, `compose` or `temper` returned.
    n : int, optional
        Number of samples: by default as many as conditions have rows, or 1.
    particles : int
        Of each population.
    steps : int
        Each evaluates the guided model once a particle. From 200 on (100 where a measurement is
        not linear) they are split into passes of 100 (50) steps or more, each from noise to data
        with particles of its own; evidence is averaged over passes, and samples are drawn from
        all of them. So four times the steps halve the error of log evidence, as four times the
        particles do, in the memory of one pass. Above 400 steps there are as many passes as at
        400, times (steps/400)^⅔, so that their bias falls too.
    resample_below : float
        From 0 to 1: resample where the effective size falls below this share of the particles.
    spacing : str, optional
        Where the steps lie: a key of `scoresde.SPACINGS`. By default they are uniform in
        arsinh(α/σ), so in log(σ/α) near the data, down to a tenth of the noise of a measurement
        or to σ/α = 0.01; above 50 steps, up to half of them lie around σ/α = 1, where most of the
        weights arise.
    generator : torch.Generator, optional
        The randomness: sample i depends on it and on i alone, not on n or `batch_size`.
    seed : int, optional
        An integer in place of the generator.
    batch_size : int, optional
        Samples computed at once, each with all its particles.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.

    Returns
    -------
    Particles

    Warns
    -----
    UserWarning
        If more than 5% of populations end with an effective size below 5%, or a standard error
        of log evidence above 1 nat.

    Raises
    ------
    TypeError, ValueError
        For models that are not guided, and guidance that stands for no density: rescale=, an
        interval=, or guided models inside guided ones.
    SolverError
        If weights are NaN.

    References
    ----------
    Wu et al., Practical and asymptotically exact conditional sampling in diffusion models, NeurIPS
    2023. Skreta et al., Feynman–Kac correctors in diffusion, ICML 2025. Lee and Whiteley, Variance
    estimation in the particle filter, 2018. Duffie and Glynn, Efficient Monte Carlo simulation of
    security prices, 1995 (steps against passes).

    Examples
    --------
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE())
    >>> total = scoresde.measurements.Linear([[1.0, 1.0]], noise=1.0)
    >>> found = scoresde.particles(scoresde.observe(sde, total, y=[3.0]), 100, steps=30)
    >>> found.x.shape, found.log_evidence.mean()  # log N(3; 0, 3) = -2.97
    (torch.Size([100, 2]), tensor(-2.9..., dtype=torch.float64))
    """
    model = require_model(model, "particles")
    _require_correctable(model)
    check_generator(generator)
    size = whole_number("particles", particles)
    steps = whole_number("steps", steps)
    resample_below = real_number("resample_below", resample_below, 0, 1, closed=True)
    if spacing is not None:
        choose("spacing", spacing, SPACINGS)
    n = model.condition_rows if n is None else whole_number("n", n)
    passes = passes_of(steps, getattr(model, "steps_of_a_pass", STEPS_OF_A_PASS))
    angles = _angles(model, steps // passes, spacing)
    cost = size * max(1, model.cost)
    rows = model.curvature_rows if isinstance(model, Tilted) else 0
    width = max(1, rows // ROWS_EACH)
    batches = batch_ranges(model, n, batch_size, cost=size, calls=steps, held=size, width=width)
    model.slice_conditions(0, n, n)
    seed = draw_seed(generator)

    def work(part: Any, start: int, stop: int) -> list[Tensor]:
        return _populations(part, angles, passes, size, resample_below, seed, start, stop)

    x, states, weights, evidence, stderr, ess, resampled = map_batches(model, n, batches, work)
    nfe = torch.full((n,), passes * len(angles) * cost)
    found = Particles(x, states, weights, evidence, stderr, ess, resampled.cpu(), nfe)
    _warn_of_weights(found, size)
    return found


def _populations(
    model: Any,
    angles: Sequence[float],
    passes: int,
    size: int,
    resample_below: float,
    seed: int,
    start: int,
    stop: int,
) -> list[Tensor]:
    """The columns of `Particles`, but the last, of samples start to stop."""
    n = stop - start
    like = model.scale.new_empty(0, dtype=model.state_dtype)
    numbers = size * start, size * stop
    first = Noise(seed, PRIOR, *numbers, model.dim, like)
    path = Noise(seed, PATH, *numbers, model.dim, like)

    def noise() -> Tensor:
        return balanced(path(), size)

    uniforms = like.new_empty(0, dtype=wide(like.device))
    chance = Noise(seed, RESAMPLING, start, stop, 1, uniforms)
    passed = Passes(chance)
    for i in range(passes):
        population = Population(n, size, resample_below, chance)
        with part(i, i + 1, passes, "pass"):
            x = _one_pass(model, angles, balanced(first(), size), noise, population)
        passed.add(population, x)
    return [
        passed.draw(),
        passed.x,
        passed.weights.log(),
        passed.evidence(),
        passed.stderr(),
        passed.effective_size(),
        passed.resampled,
    ]


def _one_pass(
    model: Any,
    angles: Sequence[float],
    z: Tensor,
    noise: Callable[[], Tensor],
    population: Population,
) -> Tensor:
    """Samples (n, P, *shape) from states in noise (n·P, D); it weights the population."""
    n, size = population.log_weights.shape
    rows = torch.arange(n, device=z.device).repeat_interleave(size)
    if isinstance(model, Tilted):
        z = run_twisted(model, angles, z, rows, noise, population)
    else:
        factors = [(each, a) for each, a in model.factors if a]
        z = run_corrected(factors, angles, z, rows, noise, population)
        units = (1 - math.fsum(a for _, a in factors)) * model.standardization.log_scale
        population.add(torch.full_like(population.log_weights, units))
    bad = population.evidence().isnan() | ~z.reshape(n, -1).isfinite().all(1)
    # a row of y for each particle, where y is known without noise
    x: Tensor = model.select_conditions(rows).at_data(model.to_data(z))
    x = x.reshape(n, size, *model.shape)
    if bool(bad.any()):
        raise SolverError(
            f"{int(bad.sum())} of {n} populations have states or weights that are NaN: "
            "check the network's weights and the data's scale, or take more steps=",
            bad,
            x[:, 0],
        )
    return x


def _angles(model: Model, steps: int, spacing: str | None) -> list[float]:
    """Angles in radians from noise to data, at which the model is evaluated."""
    process = model.process
    most = process.phi_max
    least = max(model.phi_min, process.phi_floor)
    if not isinstance(model, Tilted):
        most = min(most, LARGEST_ANGLE)
    if spacing is None:
        end = max(math.atan(min(LAST_LEVEL, 0.1 * _finest(model))), least)
        nodes = _around_one(most, end, steps)
    else:
        nodes = process.phi(grid(process, steps, spacing))[:-1].clamp_max(most)
    above = nodes >= least * (1 - 1e-9)
    above[1:] &= nodes[1:] < nodes[:-1]
    found: list[float] = nodes[above].tolist()
    if not found:
        raise ValueError(f"steps={steps} leaves no noise level: take more steps=")
    return found


def _around_one(most: float, end: float, steps: int) -> Tensor:
    """Angles from `most` to `end`, uniform in arsinh(α/σ); above 50 steps denser at σ/α = 1."""
    high = math.asinh(math.cos(most) / math.sin(most))
    low = math.asinh(1 / math.tan(end))
    at = torch.linspace(high, low, FINE, dtype=torch.float64, device="cpu")
    logistic = 1 / (1 + at.sinh().clamp_min(1e-300) ** (-1 / WIDTH))
    near = min(max(1 - UNIFORM / steps, 0.0), AROUND_ONE)
    share = near * (logistic - logistic[0]) / (logistic[-1] - logistic[0])
    share = share + (1 - near) * (at - at[0]) / (at[-1] - at[0])
    wanted = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
    above = torch.searchsorted(share, wanted).clamp(1, FINE - 1)
    part = (wanted - share[above - 1]) / (share[above] - share[above - 1])
    places = torch.lerp(at[above - 1], at[above], part.clamp(0, 1))
    return torch.atan2(torch.ones_like(places), places.sinh())


def _finest(model: Model) -> float:
    """The noise of a measurement in standard deviations of what it sees of standardized data."""
    if isinstance(model, WithGaps):
        return 0.0
    if not isinstance(model, Observed):
        return math.inf
    g = torch.Generator().manual_seed(0)
    z, change = torch.randn(2, PROBES, model.dim, generator=g, device="cpu").to(model.scale)
    z = z.to(model.state_dtype)
    spread = Linearized(model.map, z, False).product(change.to(z)).square().mean(0).sqrt()
    return model.measurement.noise / max(float(spread.max()), 1e-12)


def _require_correctable(model: Model) -> None:
    """Raise for a model whose guidance is not a density, or not guided at all."""
    if isinstance(model, Tilted):
        if model.interval != (0.0, math.inf):
            raise ValueError(
                "with interval= guidance stands for no density p(x)·g(x) that particles could "
                "weight for: leave interval= out"
            )
        parts = [model.model]
    elif hasattr(model, "factors"):
        parts = [part for part, _ in model.factors]
    else:
        raise TypeError(
            f"particles corrects guided models, and {type(model).__name__} is none that it knows: "
            "scoresde.sample draws from it; guide it with observe, toward, classifier, "
            "classifier_free or compose"
        )
    for base in parts:
        if isinstance(base, Guided):
            raise TypeError(
                f"particles takes guidance of a model of data, and here {type(model).__name__} "
                f"guides {type(base).__name__}, whose noised densities are unknown: guide a plain "
                "model"
            )
        require_part(base, "particles", Capability.SCORE)


def _warn_of_weights(found: Particles, size: int) -> None:
    """Warn once, of how many populations are too thin or too uncertain."""
    few = found.ess < max(LEAST_SIZE * size, LEAST_PARTICLES)
    count = int((few | (found.stderr > MOST_ERROR)).sum())
    if count > MOST_SHARE * len(few) and size > 1:
        warn(
            f"{count} of {len(found.ess)} populations have an effective size below 5% of their "
            f"{size} particles or a standard error of log evidence above 1 nat: their samples are "
            "biased; take more particles= or steps=, or another method of guidance",
        )
