"""log p(x) of a model, through the probability-flow ODE and the trace of its Jacobian, with the size of every error.

Along dz/dφ = v(z, φ) the density changes by ∂/∂φ log p(z) = −div v (Chen et al. 2018; Song et al. 2021, eq. 39), so with the
latent z_1 that data x reach at the noise end,

    log p(x) = log p(z_1) + ∫ div v dφ − D·log r(0) − log|det scale|.

v is linear in the network's output (see `scoresde.prediction`), so div v = (tr ∂out/∂z − D·(a·cos φ + b·sin φ))/det. Three
things keep the number from being exact, and each is reported: the trace may be estimated, the solver has a tolerance, and
p(z_1) is only nearly the prior N(0, I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from .checks import check_generator, flag, whole
from .cnf import Flow, prior_gap, score_near, standard_normal
from .inputs import as_tensor
from .modules import leave_inference
from .plan import chunks, each, plan, starting_points
from .random import draw_seed
from .ranks import alone, shared, together
from .registry import choose
from .sde import ScoreSDE, matched, require_sde
from .solvers import Solver

ROUNDING = 1.5
"""How many standard deviations of rounding, as estimated, are stated: enough for 90% of points."""


class HasLogProb(Protocol):
    """Anything with log_prob: a torch.distributions.Distribution, a toy density, a ScoreSDE-based one."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), shape (B,)."""


@dataclass(frozen=True)
class Likelihood:
    """log p of some samples, and how far to trust it.

    Attributes
    ----------
    log_prob : Tensor, shape (B,)
        log p(x) in nats, with respect to the units of the data.
    stderr : Tensor, shape (B,)
        Standard error of log_prob from the estimated trace, in nats: 0 for an exact trace, NaN for a single probe. With few
        probes it is widened as Student's t asks, so that ±2 of it would hold the exact value in 95.4% of runs if estimates were
        normal. They are skewed, and it is 84 to 94% with random signs (74% with two of them in three dimensions, where they
        often come out equal) and 84 to 97% with normal probes, in 2 to 80 dimensions.
    solver_error : Tensor, shape (B,)
        Estimated error of the solve and its arithmetic, in nats: the plain sum of what each step leaves of state and log p, by
        the solver's own estimate, times a factor found on trained networks, and rounding, that of the state times the score.
        With "adams" and "bosh3" it held the true error of 90 to 100% of points of trained networks in float32, at tolerances
        from 1e-3 to 1e-6, and was in the median 4 to 27 times too large; the worst seen, in float64, held 86%. With "adams" on
        fixed grids of 10 to 200 steps it is 2 to 90 times too large.
        NaN for solvers that estimate none, as all others do on fixed grids, and for "rk45", "tsit5" and "dop853", whose
        estimates are up to 20 times too small where a network is rough.
    prior_gap : Tensor, shape (B,)
        How far log p(x) moves if p(z_1) as the model's own score has it replaces the prior N(0, I), in nats, without its sign
        and rounded up by a tenth or more, so that it holds the gap of 95% of points. 0 where the path ends in pure noise
        (rectified flow), but for rounding, or where `prior` was given.
    nfe : Tensor of int, shape (B,)
        Network evaluations of each sample's solve; each comes with a trace.
    latent : Tensor, shape (B, *shape)
        Where x ends at t = 1, in the units of the data.

    Examples
    --------
    >>> import scoresde
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> scoresde.likelihood(scoresde.oracle(gaussian, scoresde.VPSDE()), torch.zeros(1, 2)).log_prob
    tensor([-1.8379])
    """

    log_prob: Tensor
    stderr: Tensor
    solver_error: Tensor
    prior_gap: Tensor
    nfe: Tensor
    latent: Tensor


@together()
def likelihood(
    sde: ScoreSDE,
    x: Tensor,
    *,
    solver: str | Solver = "adams",
    trace: str = "exact",
    probes: int = 16,
    prior: HasLogProb | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    differentiable: bool = False,
    errors: bool = True,
    invalid: str = "raise",
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Likelihood:
    """Return log p(x) with its error bars, the latent, and what it cost.

    log p(x) = log p(z_1) + ∫ div v dφ − D·log r(0) − log|det scale| along the probability-flow ODE. "Exact" means exact for
    the model: p(z_1) is only nearly the prior, which stands in for it unless `prior` is given; `prior_gap` says how nearly.

    A feature that was constant in training (`sde.scale` 0) has a spike for a density, which is left out: log p is that of
    the other features, D of them. A row that lies off the constant by more than 1e-6 of it has density 0: log p is −∞.

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, shape (B, *shape)
        Data, in their own units.
    solver : str or Solver
        One that integrates the ODE ("adams", "rk45", "heun", …), not a stochastic sampler.
    trace : str
        "exact": ∑∂f_i/∂x_i. "hutchinson": the mean of vᵀ(∂f/∂x)v over random signs v drawn once per sample and held through
        the solve, unbiased; in up to `probes` dimensions the exact trace, which costs no more there. "hutchinson_gaussian": the
        same with normal v in any dimension, which is never better.
    probes : int
        How many such v.
    prior : object with .log_prob, optional
        The law of x_1 in the units of the data, where it is known: by default the model's source, if it has one.
    steps : int, optional
        Fixed number of steps; without it adaptive solvers go by rtol and atol, which rule the error of log p too: atol in nats,
        rtol relative to ∫ div v dφ. With a network of half precision they are, unless named, a tenth of its rounding.
    spacing : str, optional
        Where the steps lie: a key of `scoresde.SPACINGS`.
    differentiable : bool
        Whether gradients flow back from log_prob to the network's parameters and to x, through the solve with its steps held
        fixed; to x they do anyway if it requires grad. With differentiable=True a model in train mode is evaluated with its raw
        weights, not their average, so that it can be trained further by maximum likelihood. Memory grows with the steps.
    errors : bool
        Whether to estimate `solver_error` and `prior_gap`, for a few evaluations more. They are NaN otherwise.
    invalid : str
        What becomes of rows of x that are not finite: "raise", or "nan" for a log p that is NaN.
    generator : torch.Generator, optional
        Draws the probes.
    batch_size : int, optional
        Samples computed at once.
    **options
        Of the solver, e.g. rtol=1e-7.

    Returns
    -------
    Likelihood

    Raises
    ------
    TypeError, ValueError
        For x of the wrong shape or dtype or with NaN in it, a solver that has no ODE, or other bad arguments.
    SolverError
        If the network's output is not finite, or an adaptive solve does not reach the end.

    References
    ----------
    Chen et al., Neural ordinary differential equations, NeurIPS 2018. Song et al., ICLR 2021, section 4.3. Grathwohl et al.,
    FFJORD, ICLR 2019 (the held probe).

    Examples
    --------
    >>> import scoresde
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde = scoresde.oracle(mixture, scoresde.RectifiedFlow())
    >>> x = mixture.sample(4)
    >>> (scoresde.likelihood(sde, x).log_prob - mixture.log_prob(x)).abs().max() < 1e-3
    tensor(True)

    Gradients, here of log N(x; 0, I):

    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> x = torch.tensor([[1.0, -2.0]], requires_grad=True)
    >>> scoresde.log_prob(scoresde.oracle(gaussian, scoresde.VPSDE()), x).backward()
    >>> x.grad.round(decimals=3)
    tensor([[-1.,  2.]])
    """
    differentiable, errors = flag("differentiable", differentiable), flag("errors", errors)
    graph = torch.is_grad_enabled() and (differentiable or (isinstance(x, Tensor) and x.requires_grad))
    with torch.inference_mode(False), torch.set_grad_enabled(graph):  # in inference mode no trace could be taken
        sde, x = matched(require_sde(sde, "likelihood"), x)
        check_generator(generator)
        if graph and shared():
            raise ValueError("gradients do not cross ranks: inside sharded() leave out differentiable=True, and give x.detach()")
        leave_inference(sde)
        x, lost = _accept(sde, x, invalid)
        off = sde.off_constants(x)
        prior = _start(sde, prior)
        how = plan(sde, solver, steps, spacing, options, forward=True)
        ode = Flow(sde, solver, how, trace, probes, graph, graph and differentiable, generator, errors)
        sde.rows(0, len(x), len(x))
        first, last = ode.nodes[0], ode.nodes[-1]

        def work(part: ScoreSDE, start: int, stop: int) -> tuple[Tensor, ...]:
            z = part.from_data(x[start:stop]) / first.radius
            data = z.detach()
            z, gained, stderr, traced, counts = ode.carry(part, z, start, stop)
            latent = part.to_data(z * last.radius)
            log_p = _begun(part, prior, z, last.radius) + gained
            # Rounding adds up like a random walk, of log p and, times the score, of the state.
            rounding = (gained.abs() + log_p.abs()).detach()
            if errors:
                rounding = torch.hypot(rounding, (score_near(part, data, ode.raw) * data).norm(dim=1))
            rounding = ode.eps * rounding * torch.as_tensor(counts.nfe, device=z.device).sqrt()
            error = z.new_full((len(z),), math.nan) if counts.error is None else counts.error.to(z.dtype)
            if prior is not None:
                gap = torch.zeros_like(stderr)
            elif errors:
                gap = prior_gap(part, z.detach(), last, traced, part.caller(raw=ode.raw))
            else:
                gap = torch.full_like(stderr, math.nan)
            return (
                log_p - sde.dim * math.log(first.radius) - part.log_scale,
                stderr,
                ode.error_factor * error + ROUNDING * rounding,
                gap,
                torch.as_tensor(counts.nfe, device=z.device).expand(len(z)),
                latent,
            )

        joined = each(sde, len(x), chunks(sde, len(x), batch_size, cost=ode.cost, calls=len(how.times) - 1), work)
        if off is not None:
            joined[0][off] = -math.inf
        for column in joined if lost is not None else ():
            if column.is_floating_point():
                column[lost] = math.nan
        value, stderr, error, distance, nfe, latent = joined
        return Likelihood(value, stderr, error, distance, nfe.cpu(), latent)


def log_prob(sde: ScoreSDE, x: Tensor, **how: Any) -> Tensor:
    """Return log p(x) of the model in nats, in the units of the data: `likelihood(...)`'s first field.

    log p(x) = log p(z_1) + ∫ div v dφ − D·log r(0) − log|det scale| along the probability-flow ODE.

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, shape (B, *shape)
        Data, in their own units.
    **how
        As for `likelihood`: solver, trace, probes, prior, steps, spacing, differentiable, invalid, generator, batch_size, and
        the solver's options. Errors are not estimated.

    Returns
    -------
    Tensor, shape (B,)
        Nats.

    Raises
    ------
    TypeError, ValueError, SolverError
        As `likelihood`.

    References
    ----------
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR 2021, section 4.3.

    Examples
    --------
    >>> import scoresde
    >>> mixture = scoresde.toy.Moons()
    >>> sde = scoresde.oracle(mixture, scoresde.VPSDE())
    >>> scoresde.log_prob(sde, mixture.sample(5)).shape
    torch.Size([5])
    """
    return likelihood(require_sde(sde, "log_prob"), x, **{"errors": False, **how}).log_prob


@together()
def sample_and_log_prob(
    sde: ScoreSDE,
    n: int | None = None,
    *,
    solver: str | Solver = "adams",
    trace: str = "exact",
    probes: int = 16,
    steps: int | None = None,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Draw n samples x and return log p(x) with them, in one solve from noise to data.

    x is, to the tolerance, what `sample` draws with the same generator and solver, log p(x) what `log_prob` finds for it.

    Parameters
    ----------
    sde : ScoreSDE
    n : int, optional
        Number of samples: by default as many as conditions have rows, or 1.
    solver, trace, probes, steps, spacing, generator, batch_size, **options
        As for `likelihood`; the generator draws the samples as well as the probes.

    Returns
    -------
    x : Tensor, shape (n, *shape)
        In the units of the data.
    log_prob : Tensor, shape (n,)
        Nats.

    Raises
    ------
    TypeError, ValueError, SolverError
        As `likelihood`.

    Examples
    --------
    >>> import scoresde
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde = scoresde.oracle(mixture, scoresde.RectifiedFlow())
    >>> x, log_p = scoresde.sample_and_log_prob(sde, 4)
    >>> (log_p - mixture.log_prob(x)).abs().max() < 1e-3
    tensor(True)
    """
    with torch.inference_mode(False), torch.no_grad():
        sde = require_sde(sde, "sample_and_log_prob")
        leave_inference(sde)
        n = sde.condition_rows if n is None else n
        check_generator(generator)
        how = plan(sde, solver, steps, spacing, options)
        chunks(sde, n, batch_size)  # refused before a seed is drawn
        seed = draw_seed(generator)
        ode = Flow(sde, solver, how, trace, probes, False, False, generator)
        last, source = ode.nodes[-1], _start(sde, None)
        n = whole("n", n)
        batches = chunks(sde, n, batch_size, cost=ode.cost, calls=len(how.times) - 1)
        sde.rows(0, n, n)

        def work(part: ScoreSDE, start: int, stop: int) -> tuple[Tensor, Tensor]:
            z = starting_points(part, seed, start, stop)
            end, lost, *_ = ode.carry(part, z, start, stop)
            value = _begun(part, source, z, ode.nodes[0].radius) - lost - sde.dim * math.log(last.radius) - part.log_scale
            return part.to_data(end * last.radius), value

        x, log_p = each(sde, n, batches, work)
        return x, log_p


def _start(sde: ScoreSDE, prior: Any) -> Any:
    """The law at t = 1, the prior that a user gave or else the model's source, checked; None for the Gaussian."""
    law, what = (sde.source, "source") if prior is None else (prior, "prior")
    if law is None:
        return None
    if sde.free is not None:
        constant = (sde.scale == 0).nonzero()[:, 0].tolist()
        raise ValueError(
            f"features {constant} are constant in this model, and log p of the others needs the law of those alone at t = 1, "
            f"which {what} does not give; train a model of the features that vary"
        )
    if not callable(getattr(law, "log_prob", None)):
        if what == "prior":
            raise TypeError(f"prior is the law of x at t = 1 and needs a log_prob method, got {type(law).__name__}")
        raise ValueError(f"the likelihood needs log p at t = 1, and this model's source has none: {law!r}; give prior=")
    if isinstance(law, Distribution) and (law.batch_shape, law.event_shape) != ((), sde.shape):
        raise ValueError(
            f"{what} must be one law of samples of shape {tuple(sde.shape)}, got batch_shape {tuple(law.batch_shape)} and "
            f"event_shape {tuple(law.event_shape)}; torch.distributions.Independent makes one of several"
        )
    return law


def _begun(sde: ScoreSDE, law: Any, z: Tensor, radius: float) -> Tensor:
    """log p at t = 1 of states on the arc, shape (B,): of the law of x there, or of N(0, I)."""
    if law is None:
        return standard_normal(z)
    x = sde.to_data(z * radius)
    inside = _inside(law, x)
    if inside is not None and not bool(inside.any()):
        return z.new_full((len(z),), -math.inf)
    x = x if inside is None else x[inside]
    log_p: Tensor = law.log_prob(x)
    if log_p.shape != (len(x),):
        raise ValueError(
            f"{'source' if law is sde.source else 'prior'}.log_prob returned shape {tuple(log_p.shape)}, wanted ({len(x)},): "
            "one number a sample; torch.distributions.Independent makes one of several"
        )
    log_p = log_p.to(z)
    if inside is not None:
        log_p = z.new_full((len(z),), -math.inf).index_put((inside,), log_p)
    return log_p + sde.log_scale + sde.dim * math.log(radius)


def _inside(law: Any, x: Tensor) -> Tensor | None:
    """Which points have a density by a torch distribution, which raises at others; None for all."""
    if not isinstance(law, Distribution):
        return None
    try:
        support: Any = law.support
    except NotImplementedError:  # a law that does not say
        return None
    inside: Tensor = support.check(x)
    return None if bool(inside.all()) else inside


def check_how(
    sde: ScoreSDE,
    *,
    trace: str = "exact",
    probes: int = 16,
    solver: str | Solver = "adams",
    steps: int | None = None,
    spacing: str | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> None:
    """Raise what `likelihood` and `sample` would of these arguments, without any work.

    Parameters
    ----------
    sde, trace, probes, solver, steps, spacing, batch_size, **options
        As for `likelihood`.

    Raises
    ------
    TypeError, ValueError

    Examples
    --------
    >>> check_how(scoresde.build("vp", "mlp", shape=(2,)), solver="em")
    Traceback (most recent call last):
    ValueError: log p goes by the probability-flow ODE, and solver 'em' is stochastic; try 'adams' or 'rk45'
    """
    chunks(sde, 1, batch_size)
    with alone():
        Flow(sde, solver, plan(sde, solver, steps, spacing, options), trace, probes, False, False, torch.Generator())


def _accept(sde: ScoreSDE, x: Tensor, invalid: str) -> tuple[Tensor, Tensor | None]:
    """The batch, checked; and which of its rows are not finite, if they are to be answered with NaN."""
    choose("invalid=", invalid, ("raise", "nan"))
    if invalid == "nan":
        x = as_tensor(x, "x")
    if invalid == "nan" and x.ndim and x.is_floating_point() and tuple(x.shape[1:]) == sde.shape:
        lost = ~x.isfinite().reshape(len(x), -1).all(1)
        filled = torch.where(lost.reshape(-1, *(1,) * len(sde.shape)), sde.mean.to(x), x)
        return sde.accept(filled), lost.to(sde.scale.device)
    return sde.accept(x), None
