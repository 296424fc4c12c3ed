r"""Lower bounds on log p(x) of a model as a stochastic process: the continuous-time ELBO and the discrete bound of DDPM.

Let z0 be data, standardized, at the data end φ0 of the arc. The path on from there is an arc of its own, with angle θ:

    z = cos θ·z0 + sin θ·ε,   cos θ = cos φ/cos φ0,   u* = dz/dθ = cos θ·ε − sin θ·z0,   u = (dφ/dθ)·v(z, φ)

with the model's velocity v. Where φ0 = 0, θ is φ. Between θ_s < θ_t, with S = sin²θ_t − sin²θ_s, two Gaussians of equal variance,
the posterior of z_s given (z_t, z0) and the model's own law, are KL = ½(S/sin²θ_s)·‖u − u*‖² apart. In the limit of small steps

    log p(z0) ≥ log N(z0; 0, I) + ∫ cot θ·E f dθ,     f = ‖u*‖² − ‖u − u*‖² = 2u·u* − ‖u‖².

That is the bound of Kingma et al. (2021, eq. 11–18) and Song et al. (2021b, theorem 3), ∫‖ε − ε̂‖² d log tan φ and all, less the
bound of standard normal data, whose velocity is 0 and whose bound is exact. What is left vanishes at both ends: no cut-offs.

Noise falls on every draw: levels are stratified, ε serves together with −ε at mirrored places of a stratum (Hutchinson's noise
remains, the linear term cancels), and ‖ε‖² − D is subtracted, whose mean is 0, times the share R² = f/‖u*‖² that the model
explained at the draw before, which is independent of this one. So the estimate is unbiased whatever the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_generator, whole
from .errors import SolverError
from .grids import grid
from .plan import chunks, each
from .random import PATH, Noise, draw_seed
from .ranks import together
from .registry import choose, explained
from .sde import ScoreSDE, require_sde

FINE, COARSE = 2e-3, 3.0  # levels tan θ between which draws are uniform in log tan θ; beyond, their density falls like the noise

VARIANCES = ("posterior", "beta")

At = Callable[[int, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Bound:
    """What `elbo` and `vlb` return.

    Attributes
    ----------
    log_prob : Tensor, shape (B,), float64
        An unbiased estimate of a lower bound on log p(x), in nats, in the units of the data; of constants as `likelihood`. It is
        below log p(x) on average over its draws: one estimate may lie above by a few of its standard errors.
    stderr : Tensor, shape (B,), float64
        Its standard error, from differences between neighboring draws: right in the mean of its squares, but the noise is skewed
        where few draws matter, and most often it is 5 to 20% too small. ±2 of these cover 87–94% in one to eight dimensions at
        64 to 128 draws, 93–96% at 512, 95% in 64 dimensions. Of `vlb` they cover 72–93% at 50 to 100 steps, 93–99% at 400
        and more. Where the noise levels that matter are seldom drawn it is less, 70% for a density as narrow as 2e-4 of the
        scale of the data: take more draws or steps there.
    nfe : Tensor of int, shape (B,)
        Network evaluations of each sample.

    Examples
    --------
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> scoresde.elbo(scoresde.oracle(gaussian, scoresde.VPSDE()), torch.zeros(1, 2)).log_prob
    tensor([-1.8379], dtype=torch.float64)
    """

    log_prob: Tensor
    stderr: Tensor
    nfe: Tensor


@explained
@together()
def elbo(
    sde: ScoreSDE,
    x: Tensor,
    *,
    draws: int = 128,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Bound:
    """Return the continuous-time evidence lower bound on log p(x) of the reverse SDE, unbiased, with its standard error.

    log p(x) ≥ log N(z0; 0, I) + ∫ cot θ·E[2u·u* − ‖u‖²] dθ − D·log r(0) − log|det scale|, see `scoresde.bounds`. It bounds the
    density of what SDE solvers sample, not that of the ODE, which `log_prob` gives: the two are one only for an exact score.
    With an exact score it is log p(x) + E log(N(z1; 0, I)/p(z1)): tight but for the prior. Like `log_prob`, it takes x for a
    sample at the data end of the process: for `VESDE` and `EDM` at σ_min; where σ(0) = 0 at φ = `Process.hair`. It is computed
    without gradients, also for x that requires them; `loss` has some.

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, shape (B, *shape)
        Data, in their own units.
    draws : int
        Noise levels, at least 4, each with ε and −ε: two network evaluations a draw. The standard error falls as 1/√draws.
    generator : torch.Generator, optional
        The randomness: that of sample i does not depend on its mates.
    batch_size : int, optional
        Samples computed at once.

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
    Kingma et al., Variational diffusion models, NeurIPS 2021, eq. 11–18. Song et al., Maximum likelihood training of score-based
    diffusion models, NeurIPS 2021b, theorem 3.

    Examples
    --------
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde, x = scoresde.oracle(mixture, scoresde.RectifiedFlow()), mixture.sample(5)
    >>> bound = scoresde.elbo(sde, x, draws=200)
    >>> (bound.log_prob - mixture.log_prob(x)).abs() < 6 * bound.stderr
    tensor([True, True, True, True, True])
    """
    x = _accept(sde, x, "elbo", generator)
    draws = whole("draws", draws, 4)
    # tan θ has the law whose density in log tan θ is ∝ T·(COARSE − FINE)/((FINE + T)(COARSE + T)), cut at θ(1).
    end = math.sqrt(_sin2(sde, sde.process.phi_max)) * math.cos(_start(sde)) / math.cos(sde.process.phi_max)
    log_ratio = math.log(COARSE / FINE)
    cut = math.log((1 + end / FINE) / (1 + end / COARSE))

    def at(k: int, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grown = torch.expm1((k + q) * (cut / draws))
        tan = FINE * grown / (1 - (1 + grown) * math.exp(-log_ratio))
        cos = torch.rsqrt(1 + tan * tan)
        weight = cos * cos * (FINE + tan) * (COARSE + tan) * (cut / draws) / (tan * (COARSE - FINE))
        return cos, tan * cos, weight

    def known(square: Tensor) -> Tensor:
        return -0.5 * (square + sde.dim * math.log(2 * math.pi))

    return _estimate(sde, x, at, known, draws, generator, batch_size)


@explained
@together()
def vlb(
    sde: ScoreSDE,
    x: Tensor,
    *,
    steps: int = 1000,
    variance: str = "posterior",
    spacing: str = "logsnr",
    draws: int | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Bound:
    """Return the variational bound on log p(x) of the ancestral sampler with `steps` steps, as in DDPM, with its standard error.

    −log p(x) ≤ KL(q(z_T|x) ‖ N(0, I)) + Σ_t E KL(q(z_s|z_t, x) ‖ p(z_s|z_t)) − E log p(x|z_1), plus D·log r(0) + log|det scale|.
    The decoder p(x|z_1) is the Gaussian about x̂0 with the variance that suits standard normal data: a density, not DDPM's law of
    8-bit pixels; for those dequantize (`scoresde.dequantize`). x stands for the same level as in `elbo`, which
    this approaches in the mean from below as 1/steps: on a "logsnr" grid always, on "ddpm", "time" and "arc" only with
    variance="beta". It is computed without gradients, also for x that requires them.

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, shape (B, *shape)
        Data, in their own units.
    steps : int
        T. Levels below 1.5·φ0 are left to the decoder, so that `VESDE` and `EDM` take about 5% fewer; nfe/2 is how many.
    variance : str
        Of p(z_s|z_t): "posterior", DDPM's β̃, which is right where the data are points; or "beta", which is right where they
        are standard normal: β_t for a VP process, and for others what that is on the arc. With "posterior", smooth data cost
        ½(1/h − 1 + log h) nats a dimension at a step over which a small σ² falls by a factor h: 0.8 for h = ¼. Only "logsnr" and
        "karras" grids, where h nears 1, then come close to `elbo`.
    spacing : str
        Where the levels lie: a key of `scoresde.SPACINGS`. "ddpm" has the levels of a discrete VP process (steps divides 1000).
    draws : int, optional
        Steps drawn, stratified, with ε and −ε each, for an unbiased estimate in 2·draws network evaluations; at least 4.
        By default every step is taken once.
    generator : torch.Generator, optional
        The randomness: that of sample i does not depend on its mates.
    batch_size : int, optional
        Samples computed at once.

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
    x = _accept(sde, x, "vlb", generator)
    choose("variance", variance, VARIANCES)
    phi = sde.process.phi(grid(sde.process, steps, spacing).flip(0)).tolist()
    sin2 = torch.tensor([0.0] + [_sin2(sde, p) for p in phi[1:] if p > 1.5 * _start(sde)], dtype=torch.float64, device="cpu")
    here, below = sin2[1:], sin2[:-1]
    cos2, taken = (1 - here).clamp_min(0), len(here)
    if draws is not None:
        draws = whole("draws", draws, 4)
    elif taken < 4:
        raise ValueError(f"{taken} steps are too few for a standard error; take steps=4 or more, or give draws=")
    ratio = below / here  # of the posterior's variance to beta's
    cost = (here - below) / (below if variance == "posterior" else here)
    cost[0] = 1.0  # the decoder
    spare = ratio - 1 - ratio.log() if variance == "beta" else torch.zeros_like(ratio)
    last = float(sin2[-1])
    prior, decoder = last - 1 - math.log(last), math.log(2 * math.pi * float(here[0]))
    constant = sde.dim * (prior + decoder + float(spare[1:].sum() + (cost * cos2).sum()))  # E‖u*‖² = D·cos²θ + ‖z0‖²·sin²θ
    per_square = 1 - last + float((cost * here).sum())
    total = float(cost.sum())
    cos, sin, cost, cumulative = (c.to(x.device) for c in (cos2.sqrt(), here.sqrt(), cost, cost.cumsum(0) / total))

    def at(k: int, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if draws is None:
            step = torch.full(q.shape, k, device=q.device)
            weight = 0.5 * cost[step]
        else:
            step = torch.searchsorted(cumulative, (k + q) / draws).clamp_max(taken - 1)
            weight = torch.full_like(q, 0.5 * total / draws)
        return cos[step], sin[step], weight

    def known(square: Tensor) -> Tensor:
        return -0.5 * (constant + per_square * square)

    return _estimate(sde, x, at, known, taken if draws is None else draws, generator, batch_size)


def _accept(sde: ScoreSDE, x: Tensor, verb: str, generator: torch.Generator | None) -> Tensor:
    require_sde(sde, verb).check_score()
    check_generator(generator)
    x = sde.accept(x)
    sde.rows(0, len(x), len(x))
    return x


def _start(sde: ScoreSDE) -> float:
    """φ0: the data end; a hair above it where σ(0) = 0, where any error of a network would make the bound −∞."""
    return max(sde.process.phi_min, sde.process.hair)


def _sin2(sde: ScoreSDE, phi: float) -> float:
    """sin²θ = 1 − cos²φ/cos²φ0, without cancellation."""
    start = _start(sde)
    return min(1.0, math.sin(phi - start) * math.sin(phi + start) / math.cos(start) ** 2)


@torch.no_grad()
def _estimate(
    sde: ScoreSDE,
    x: Tensor,
    at: At,
    known: Callable[[Tensor], Tensor],
    draws: int,
    generator: torch.Generator | None,
    batch_size: int | None,
) -> Bound:
    """known(‖z0‖²) + Σ_k weight_k·E f(θ_k), where `at`(k, place in the stratum) gives (cos θ, sin θ, weight)."""
    batches = chunks(sde, len(x), batch_size, calls=2 * draws)
    seed, radius = draw_seed(generator), float(sde.process.radius(0.0))
    offset = sde.dim * math.log(radius) + sde.log_scale

    def work(part: ScoreSDE, start: int, stop: int) -> tuple[Tensor, Tensor]:
        z0 = part.from_data(x[start:stop]) / radius
        noise = Noise(seed, PATH, start, stop, sde.dim + 1, z0)  # one more for the place in the stratum
        total, error = _sum(part, z0, at, noise, draws)
        return known(z0.double().square().sum(1)) + total - offset, error

    log_p, error = each(sde, len(x), batches, work)
    bad = ~log_p.isfinite()
    if bool(bad.any()):
        raise SolverError(
            f"the bound of {int(bad.sum())} of {len(x)} samples is not finite; check the weights and the data's scale", bad, x
        )
    off = sde.off_constants(x)
    if off is not None:
        log_p[off] = -math.inf
    return Bound(log_p, error, torch.full((len(x),), 2 * draws, device="cpu"))


def _sum(sde: ScoreSDE, z0: Tensor, at: At, noise: Noise, draws: int) -> tuple[Tensor, Tensor]:
    flow, start = sde.flow(), _start(sde)
    share = total = spread = z0.new_zeros(len(z0), dtype=torch.float64)
    before: list[Tensor] = []
    for k in range(draws):
        drawn = noise()
        eps, place = drawn[:, 1:], torch.special.ndtr(drawn[:, 0].double())
        control = eps.square().sum(1).double() - sde.dim
        value = gain = length = torch.zeros_like(total)
        for sign, q in ((1.0, place), (-1.0, 1 - place)):
            cos, sin, weight = at(k, q)
            level = torch.sqrt(math.sin(start) ** 2 + (math.cos(start) * sin) ** 2)  # sin φ
            phi = torch.atan2(level, cos * math.cos(start))
            c, s, turn = (y.to(z0).unsqueeze(1) for y in (cos, sin, math.cos(start) * sin / level))
            u = turn * flow(c * z0 + sign * s * eps, phi, None)
            wanted = sign * c * eps - s * z0
            f = (u * (2 * wanted - u)).sum(1).double()
            value = value + 0.5 * weight * (f - share * cos.square() * control)
            gain, length = gain + f, length + wanted.square().sum(1).double()
        share = (gain / length).clamp(0, 1)  # for the next draw, which is independent of this one
        total = total + value
        before = [*before[-2:], value]
        if len(before) == 3:  # a second difference: free of the integral's own slope
            spread = spread + (before[0] - 2 * before[1] + before[2]).square() / 6
    return total, (spread * (draws / (draws - 2))).sqrt()
