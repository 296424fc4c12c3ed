r"""Lower bounds on log p(x) of a model as a stochastic process: the ELBO, and DDPM's bound.

Let z0 be data, standardized, at the data end φ0 of the arc. The path on from there is an arc of
its own, with angle θ:

    z = cos θ·z0 + sin θ·ε,    cos θ = cos φ/cos φ0,
    u* = dz/dθ = cos θ·ε − sin θ·z0,    u = (dφ/dθ)·v(z, φ)

with the model's velocity v. Where φ0 = 0, θ is φ. Take θ_s < θ_t and S = sin²θ_t − sin²θ_s. The
posterior of z_s given (z_t, z0) and the model's own distribution of z_s given z_t are Gaussians of
equal variance, KL = ½(S/sin²θ_s)·‖u − u*‖² apart. In the limit of small steps

    log p(z0) ≥ log N(z0; 0, I) + ∫ cot θ·E f dθ,    f = ‖u*‖² − ‖u − u*‖² = 2u·u* − ‖u‖².

This is the bound of Kingma et al. (2021, eq. 11–18) and Song et al. (2021b, theorem 3), with its
∫‖ε − ε̂‖² d log tan φ, less the bound of standard normal data, whose velocity is 0 and whose bound
is exact. The difference vanishes at both ends, so it needs no cut-offs.

Three methods reduce the noise of an estimate. Levels are stratified. ε and −ε are used together,
at mirrored places of a stratum: the linear term cancels, and Hutchinson's noise remains. And
‖ε‖² − D, whose mean is 0, is subtracted, times the share R² = f/‖u*‖² that the model explained at
the draw before, which is independent of this one. So the estimate is unbiased for every model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common import progress as bars
from ..common.checks import check_generator, whole_number
from ..common.errors import SolverError
from ..common.names import choose, suggest_arguments
from ..common.progress import shows_progress
from ..common.random import PATH, Noise, draw_seed
from ..common.seeds import takes_seed
from ..common.sharding import together
from ..model.protocol import Model
from ..model.require import require_model
from ..sampling.batches import batch_ranges, map_batches
from .bound_levels import data_end, level_at, level_range, onto_arc, step_costs, vlb_levels
from .bound_result import Bound
from .step_variance import saved_by, with_data_noise
from .tables import entered

VARIANCES = ("posterior", "beta", "learned")

LevelAt = Callable[[int, Tensor], tuple[Tensor, Tensor, Tensor, Tensor | None]]
"""(draw k, place in its stratum (B,)) -> (cos θ, sin θ, weight, h), each (B,); h = β/β̃ − 1 is
for learned variances, 0 for the decoder, and None in continuous time."""


@takes_seed
@shows_progress
@suggest_arguments
@together()
def elbo(
    sde: Model,
    x: Tensor,
    *,
    draws: int = 128,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Bound:
    """Return an unbiased estimate of the evidence lower bound on log p(x) of the reverse SDE.

    log p(x) ≥ log N(z0; 0, I) + ∫ cot θ·E[2u·u* − ‖u‖²] dθ − D·log r(0) − log|det scale|, see
    `scoresde.density.bounds`. It bounds the density of what SDE solvers sample, not that of the
    ODE, which `log_prob` gives: the two agree only for an exact score. With an exact score it is
    log p(x) + E log(N(z1; 0, I)/p(z1)), tight except for the prior. Like `log_prob`, it takes x for
    a sample at the data end of the process: at σ_min for `VESDE` and `EDM`, and at
    φ = `Process.phi_floor` where σ(0) = 0. It has no gradients, even for x that requires them;
    `loss` has.

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, shape (B, *shape), or rows of a table
        Data, in their own units.
    draws : int
        Noise levels, at least 4, each with ε and −ε: two network evaluations a draw. The standard
        error falls as 1/√draws.
    generator : torch.Generator, optional
        The randomness: that of sample i does not depend on the others.
    seed : int, optional
        An integer in place of the generator.
    batch_size : int, optional
        Samples computed at once.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.

    Returns
    -------
    Bound

    Raises
    ------
    TypeError, ValueError
        For x of the wrong shape or dtype, other bad arguments, or a model that has no score.
    SolverError
        If the network's output is not finite.

    References
    ----------
    Kingma et al., Variational diffusion models, NeurIPS 2021, eq. 11–18. Song et al., Maximum
    likelihood training of score-based diffusion models, NeurIPS 2021b, theorem 3.

    Examples
    --------
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde, x = scoresde.oracle(mixture, scoresde.RectifiedFlow()), mixture.sample(5)
    >>> bound = scoresde.elbo(sde, x, draws=200)
    >>> (bound.log_prob - mixture.log_prob(x)).abs() < 6 * bound.stderr
    tensor([True, True, True, True, True])
    """
    sde, x, rows = _accept(sde, x, "elbo", generator)
    draws = whole_number("draws", draws, 4)
    stratum = level_range(sde) / draws

    def at(k: int, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        cos, sin, weight = level_at((k + place) * stratum)
        return cos, sin, stratum * weight, None

    def known(square: Tensor) -> Tensor:
        return -0.5 * (square + sde.dim * math.log(2 * math.pi))

    return _estimate(sde, x, at, known, draws, generator, batch_size, rows)


@takes_seed
@shows_progress
@suggest_arguments
@together()
def vlb(
    sde: Model,
    x: Tensor,
    *,
    steps: int = 1000,
    variance: str = "posterior",
    spacing: str = "logsnr",
    draws: int | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Bound:
    """Return the variational bound on log p(x) of the ancestral sampler, as in DDPM.

    −log p(x) ≤ KL(q(z_T|x) ‖ N(0, I)) + Σ_t E KL(q(z_s|z_t, x) ‖ p(z_s|z_t)) − E log p(x|z_1),
    plus D·log r(0) + log|det scale|. The decoder p(x|z_1) is the Gaussian about x̂0 with the
    variance that suits standard normal data. It is a density, not DDPM's distribution of 8-bit
    pixels; dequantize those (`scoresde.dequantize`). x stands for the same level as in `elbo`,
    which this approaches in the mean from below as 1/steps: on a "logsnr" grid always, on "ddpm",
    "time" and "arc" only with variance="beta". It has no gradients, even for x that requires them.

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, shape (B, *shape)
        Data, in their own units.
    steps : int
        T. Levels below 1.5·φ0 are left to the decoder, so that `VESDE` and `EDM` take about 5%
        fewer; nfe/2 is the number taken.
    variance : str
        Of p(z_s|z_t). "posterior" is DDPM's β̃, right where the data are points. "beta" is right
        where they are standard normal: β_t for a VP process, and for others its equivalent on the
        arc. "learned", between the two, takes a model built with variance="learned". With
        "posterior", smooth data cost ½(1/h − 1 + log h) nats a dimension at a step over which a
        small σ² falls by a factor h: 0.8 for h = ¼. Only "logsnr" and "karras" grids, where h
        nears 1, then come close to `elbo`.
    spacing : str
        Where the levels lie: a key of `scoresde.SPACINGS`. "ddpm" has the levels of a discrete VP
        or cosine process (steps divides 1000).
    draws : int, optional
        Steps drawn, stratified, with ε and −ε each, for an unbiased estimate in 2·draws network
        evaluations; at least 4. By default every step is taken once.
    generator : torch.Generator, optional
        The randomness: that of sample i does not depend on the others.
    seed : int, optional
        An integer in place of the generator.
    batch_size : int, optional
        Samples computed at once.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.

    Returns
    -------
    Bound

    Raises
    ------
    TypeError, ValueError, SolverError
        As `elbo`, and for an unknown variance or spacing.

    References
    ----------
    Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020, eq. 5–8. Nichol & Dhariwal,
    Improved denoising diffusion probabilistic models, ICML 2021.

    Examples
    --------
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde, x = scoresde.oracle(mixture, scoresde.VPSDE()), mixture.sample(500)
    >>> gap = mixture.log_prob(x) - scoresde.vlb(sde, x, steps=50, variance="beta").log_prob
    >>> gap.mean() > 0
    tensor(True)
    """
    sde, x, rows = _accept(sde, x, "vlb", generator)
    choose("variance", variance, VARIANCES)
    if variance == "learned":
        sde.require("variance")
    sin2 = vlb_levels(sde, steps, spacing)
    here = sin2[1:]
    below = sin2[:-1]
    taken = len(here)
    if draws is not None:
        draws = whole_number("draws", draws, 4)
    elif taken < 4:
        raise ValueError(
            f"{taken} steps are too few for a standard error; take steps=4 or more, or give draws="
        )
    cos2 = (1 - here).clamp_min(0)
    cost, spare = step_costs(sin2, variance == "posterior")
    growth = (here / below - 1).nan_to_num(posinf=0.0).to(x.device)
    learned = variance == "learned"
    last = float(sin2[-1])
    prior = last - 1 - math.log(last)
    decoder = math.log(2 * math.pi * float(here[0]))
    # E‖u*‖² = D·cos²θ + ‖z0‖²·sin²θ.
    constant = sde.dim * (prior + decoder + float(spare[1:].sum() + (cost * cos2).sum()))
    per_square = 1 - last + float((cost * here).sum())
    total = float(cost.sum())
    cos = cos2.sqrt().to(x.device)
    sin = here.sqrt().to(x.device)
    cumulative = (cost.cumsum(0) / total).to(x.device)
    cost = cost.to(x.device)

    def at(k: int, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        if draws is None:
            step = torch.full(place.shape, k, device=place.device)
            weight = 0.5 * cost[step]
        else:
            step = torch.searchsorted(cumulative, (k + place) / draws).clamp_max(taken - 1)
            weight = torch.full_like(place, 0.5 * total / draws)
        return cos[step], sin[step], weight, growth[step]

    def known(square: Tensor) -> Tensor:
        return -0.5 * (constant + per_square * square)

    return _estimate(sde, x, at, known, draws or taken, generator, batch_size, rows, learned)


def _accept(
    sde: Model, x: Any, verb: str, generator: torch.Generator | None
) -> tuple[Model, Tensor, Tensor | None]:
    """The model, its data x, and what is added to log p(x), with all arguments checked."""
    require_model(sde, verb).require("score")
    check_generator(generator)
    sde, x, rows = entered(sde, x, generator)
    x = sde.accept(x)
    sde.slice_conditions(0, len(x), len(x))
    return sde, x, rows


@torch.no_grad()
def _estimate(
    sde: Model,
    x: Tensor,
    at: LevelAt,
    known: Callable[[Tensor], Tensor],
    draws: int,
    generator: torch.Generator | None,
    batch_size: int | None,
    rows: Tensor | None,
    learned: bool = False,
) -> Bound:
    """known(‖z0‖²) + Σ_k weight_k·E f(θ_k), over draws k of the levels."""
    batches = batch_ranges(sde, len(x), batch_size, calls=2 * draws)
    seed = draw_seed(generator)
    radius = float(sde.process.radius(0.0))
    offset = sde.dim * math.log(radius) + sde.log_scale

    def work(part: Model, start: int, stop: int) -> tuple[Tensor, Tensor]:
        z0 = part.from_data(x[start:stop]) / radius
        # One number more is for the place in the stratum.
        noise = Noise(seed, PATH, start, stop, sde.dim + 1, z0)
        total, error = _integrate(part, z0, at, noise, draws, learned)
        return known(z0.double().square().sum(1)) + total - offset, error

    log_p, error = map_batches(sde, len(x), batches, work)
    bad = ~log_p.isfinite()
    if bool(bad.any()):
        raise SolverError(
            f"the bound of {int(bad.sum())} of {len(x)} samples is not finite; check the weights "
            "and the data's scale",
            bad,
            x,
        )
    off = sde.off_constants(x)
    if off is not None:
        log_p[off] = -math.inf
    if rows is not None:
        log_p = log_p + rows.to(log_p)
    return Bound(log_p, error, torch.full((len(x),), 2 * draws, device="cpu"))


def _integrate(
    sde: Any, z0: Tensor, at: LevelAt, noise: Noise, draws: int, learned: bool
) -> tuple[Tensor, Tensor]:
    """Σ_k weight_k·f(θ_k) (B,) in float64, and its standard error."""
    velocity = sde.variance_fn() if learned else sde.velocity_fn()
    sin_start = math.sin(data_end(sde))
    zero = z0.new_zeros(len(z0), dtype=torch.float64)
    share = zero
    total = zero
    spread = zero
    before: list[Tensor] = []
    for k in range(draws):
        bars.step(k, draws, "draw")
        drawn = noise()
        eps = drawn[:, 1:]
        place = torch.special.ndtr(drawn[:, 0].double())
        control = eps.square().sum(1).double() - sde.dim
        value = zero
        gain = zero
        length = zero
        for sign, q in ((1.0, place), (-1.0, 1 - place)):
            cos, sin, weight, growth = at(k, q)
            phi, turn = onto_arc(sde, cos, sin)
            c, s, turn = (y.to(z0).unsqueeze(1) for y in (cos, sin, turn))
            u = velocity(c * z0 + sign * s * eps, phi, None)
            wanted = sign * c * eps - s * z0
            saved: Tensor | float = 0.0
            if learned and growth is not None:
                u, w = u.chunk(2, 1)
                w = with_data_noise(w, sin_start / torch.sin(phi))
                saved = saved_by(w, (turn * u - wanted).square(), growth)
            u = turn * u
            f = (u * (2 * wanted - u)).sum(1).double()
            value = value + 0.5 * weight * (f + saved - share * cos.square() * control)
            gain = gain + f
            length = length + wanted.square().sum(1).double()
        # For the next draw, which is independent of this one.
        share = (gain / length).clamp(0, 1)
        total = total + value
        before = [*before[-2:], value]
        if len(before) == 3:
            # A second difference removes the slope of the integral.
            difference = before[0] - 2 * before[1] + before[2]
            spread = spread + difference.square() / 6
    return total, (spread * (draws / (draws - 2))).sqrt()
