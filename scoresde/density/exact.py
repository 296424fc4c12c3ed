"""log p(x) of a model, by its probability-flow ODE, with the size of every error.

Along dz/dφ = v(z, φ) the density changes by ∂/∂φ log p(z) = −div v (Chen et al. 2018; Song et al.
2021, eq. 39). With the latent z_1 that data x reach at the noise end,

    log p(x) = log p(z_1) + ∫ div v dφ − D·log r(0) − log|det scale|.

v is linear in the network's output (see `scoresde.processes.prediction`), so
div v = (tr ∂out/∂z − D·(a·cos φ + b·sin φ))/det. Three things keep the number from being exact,
and each is reported: the trace may be estimated, the solver has a tolerance, and p(z_1) is only
nearly the prior N(0, I).
"""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from ..common.checks import check_generator, true_or_false, whole_number
from ..common.inputs import as_tensor
from ..common.modules import leave_inference
from ..common.names import choose
from ..common.progress import shows_progress
from ..common.random import draw_seed
from ..common.seeds import takes_seed
from ..common.sharding import shared, together
from ..model.protocol import Model
from ..model.require import require_model
from ..sampling.batches import map_batches
from ..sampling.problem import starting_points
from ..sampling.tables import with_categories
from ..solvers import Solver
from ..solvers.options import RunOptions, SolverOptions
from .density_ode import DensityODE, plan_ode, weights_in_use
from .error_bars import Likelihood, likelihood_columns
from .options import LogProbOptions
from .prior import HasLogProb, log_prior, resolve_prior
from .tables import entered
from .trace_estimators import TraceEstimator, as_estimator


@takes_seed
@shows_progress
@together()
def likelihood(
    sde: Model,
    x: Tensor,
    *,
    solver: str | Solver = "adams",
    trace: str | TraceEstimator = "exact",
    probes: int | None = None,
    prior: HasLogProb | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    differentiable: bool = False,
    errors: bool = True,
    invalid: str = "raise",
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    **options: Unpack[RunOptions],
) -> Likelihood:
    """Return log p(x) with its error bars, the latent, and what it cost.

    log p(x) = log p(z_1) + ∫ div v dφ − D·log r(0) − log|det scale| along the probability-flow
    ODE. It is exact for the model, except that N(0, I), or `prior`, replaces the model's p(z_1);
    `prior_gap` estimates the difference.

    A feature that was constant in training (`sde.scale` 0) has a spike for a density, which is
    left out: log p is that of the D other features. A row off the constant by more than 1e-6 of it
    has density 0: log p is −∞.

    For rows of a `Table` it is log p(y) + log p(x | y), in the units of the columns: y is the
    combination of categories, and x = v + u·step is the row with noise in the bins of discretized
    values. Its mean over u is a lower bound: E log p(y, x) + Σ log step ≤ log P(y, v), the log of
    the probability of the row's bins (Jensen's inequality; Theis et al. 2016).

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, shape (B, *shape), or rows of a table
        Data, in their own units; for a model of a `Table` also a data frame with its columns. A
        tensor is encoded rows then, and log p their density given y.
    solver : str or Solver
        A solver of the ODE ("adams", "rk45", "heun", …), not a stochastic sampler.
    trace : str or TraceEstimator
        A name of `scoresde.TRACES`, or an object. "exact": ∑∂f_i/∂x_i. "hutchinson": the mean of
        vᵀ(∂f/∂x)v over random signs v, drawn once for each sample and held through the solve,
        unbiased; in up to `probes` dimensions the exact trace, which costs no more there.
        "hutchinson_gaussian": the same with normal v in any dimension, which is never better.
    probes : int, optional
        How many such v, for a trace given by name; 16 by default.
    prior : object with .log_prob, optional
        The distribution of x_1 in the units of the data, where it is known. By default the
        model's source, if it has one.
    steps : int, optional
        Fixed number of steps. Without it adaptive solvers go by rtol and atol, which rule the
        error of log p too: atol in nats, rtol relative to ∫ div v dφ. With a network of half
        precision they are a tenth of its rounding, unless named.
    spacing : str, optional
        Where the steps lie: a key of `scoresde.SPACINGS`.
    differentiable : bool
        Whether gradients flow back from log_prob to the network's parameters, through the solve
        with its steps held fixed. To x they flow whenever it requires grad. A model in train mode
        is evaluated with its raw weights, not their average, so that it can be trained further by
        maximum likelihood. Memory grows with the steps.
    errors : bool
        Whether to estimate `solver_error`, by a second, more exact solve, and `prior_gap`. They are
        NaN otherwise. It takes 2.4 times as long at the default tolerance, and 3 times on a grid.
    invalid : str
        What to do about rows of x that are not finite: "raise", or "nan" for a log p of NaN.
    generator : torch.Generator, optional
        Draws the probes, and for rows of a table the noise inside the bins.
    seed : int, optional
        An integer in place of the generator.
    batch_size : int, optional
        Samples computed at once.
    **options
        Of the solver, e.g. rtol=1e-7; and progress: whether to show a progress bar, by default on a
        terminal, from two seconds on.

    Returns
    -------
    Likelihood

    Raises
    ------
    TypeError, ValueError
        For x of the wrong shape or dtype or with NaN in it, a solver that has no ODE, or other bad
        arguments.
    SolverError
        If the network's output is not finite, or an adaptive solve does not reach the end.

    References
    ----------
    Chen et al., Neural ordinary differential equations, NeurIPS 2018. Song et al., Score-based
    generative modeling through stochastic differential equations, ICLR 2021, section 4.3.
    Grathwohl et al., FFJORD, ICLR 2019 (probes held through a solve).

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
    differentiable = true_or_false("differentiable", differentiable)
    errors = true_or_false("errors", errors)
    requires_grad = isinstance(x, Tensor) and x.requires_grad
    graph = torch.is_grad_enabled() and (differentiable or requires_grad)
    # In inference mode no trace can be taken.
    with torch.inference_mode(False), torch.set_grad_enabled(graph):
        sde, x, rows = entered(require_model(sde, "likelihood"), x, generator, invalid)
        check_generator(generator)
        if graph and shared():
            raise ValueError(
                "gradients do not cross ranks: inside sharded() leave out differentiable=True, and "
                "give x.detach()"
            )
        for trained in sde.trained():
            leave_inference(trained)
        x, invalid_rows = _accept(sde, x, invalid)
        off_constants = sde.off_constants(x)
        prior = resolve_prior(sde, prior)
        planned = plan_ode(sde, solver, steps, spacing, {**options}, forward=True)
        raw = graph and differentiable and _trains(sde)
        estimator = as_estimator(trace, probes)
        ode = DensityODE(sde, planned, estimator, graph=graph, raw=raw, errors=errors)
        seed = draw_seed(generator) if ode.random else 0
        sde.slice_conditions(0, len(x), len(x))
        batches = ode.batches(sde, len(x), batch_size)

        def work(part: Model, start: int, stop: int) -> tuple[Tensor, ...]:
            z = part.from_data(x[start:stop]) / ode.levels[0].radius
            return likelihood_columns(part, ode, z, start, seed, prior)

        columns = map_batches(sde, len(x), batches, work)
        if off_constants is not None:
            columns[0][off_constants] = -math.inf
        if invalid_rows is not None:
            for column in columns:
                if column.is_floating_point():
                    column[invalid_rows] = math.nan
        if rows is not None:
            columns[0] = columns[0] + rows.to(columns[0])
        value, stderr, solver_error, gap, nfe, latent = columns
        return Likelihood(value, stderr, solver_error, gap, nfe.cpu(), latent)


def _trains(sde: Model) -> bool:
    """Whether gradients go to the raw weights, not their average; raise if they reach none."""
    raw = sde.training
    if not any(p.requires_grad for p in weights_in_use(sde, raw)):
        raise ValueError(
            "differentiable=True, but no weight of the network in use requires grad: call "
            "sde.train() to train the raw weights, not their average"
        )
    return raw


@takes_seed
@shows_progress
def log_prob(
    sde: Model,
    x: Tensor,
    *,
    solver: str | Solver = "adams",
    trace: str | TraceEstimator = "exact",
    probes: int | None = None,
    prior: HasLogProb | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    differentiable: bool = False,
    invalid: str = "raise",
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[LogProbOptions],
) -> Tensor:
    """Return log p(x) of the model in nats: the field `log_prob` of `likelihood`.

    log p(x) = log p(z_1) + ∫ div v dφ − D·log r(0) − log|det scale| along the probability-flow ODE.
    For rows of a `Table` it is the log-density of the row with noise in the bins of discretized
    values, which is another at every call without a generator; see `likelihood`.

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, shape (B, *shape), or rows of a table
        Data, in their own units.
    solver, trace, probes, prior, steps, spacing, differentiable, invalid, generator, seed
        As for `likelihood`. Errors are not estimated.
    batch_size, progress, **options
        As for `likelihood`.

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
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR
    2021, section 4.3.

    Examples
    --------
    >>> import scoresde
    >>> mixture = scoresde.toy.Moons()
    >>> sde = scoresde.oracle(mixture, scoresde.VPSDE())
    >>> scoresde.log_prob(sde, mixture.sample(5)).shape
    torch.Size([5])
    """
    how: LogProbOptions = {"errors": False, **options}
    return likelihood(
        require_model(sde, "log_prob"),
        x,
        solver=solver,
        trace=trace,
        probes=probes,
        prior=prior,
        steps=steps,
        spacing=spacing,
        differentiable=differentiable,
        invalid=invalid,
        generator=generator,
        batch_size=batch_size,
        **how,
    ).log_prob


@takes_seed
@shows_progress
@together()
def sample_and_log_prob(
    sde: Model,
    n: int | None = None,
    *,
    solver: str | Solver = "adams",
    trace: str | TraceEstimator = "exact",
    probes: int | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[SolverOptions],
) -> tuple[Any, Tensor]:
    """Draw n samples x and return log p(x) with them, in one solve from noise to data.

    To the tolerance, x is what `sample` draws with the same generator and solver, and log p(x) is
    what `log_prob` returns for it.

    Parameters
    ----------
    sde : ScoreSDE
    n : int, optional
        Number of samples: by default as many as conditions have rows, or 1.
    solver, trace, probes, steps, spacing, generator, seed, batch_size, progress, **options
        As for `likelihood`; the generator draws the samples as well as the probes.

    Returns
    -------
    x : Tensor, shape (n, *shape), or pandas.DataFrame from a model with a table
        In the units of the data.
    log_prob : Tensor, shape (n,)
        Nats; of a row of a table before it is rounded down to its steps.

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
        sde, rows = with_categories(require_model(sde, "sample_and_log_prob"), n, generator)
        for trained in sde.trained():
            leave_inference(trained)
        n = sde.condition_rows if rows.n is None else whole_number("n", rows.n)
        check_generator(generator)
        planned = plan_ode(sde, solver, steps, spacing, {**options})
        ode = DensityODE(sde, planned, as_estimator(trace, probes))
        source = resolve_prior(sde, None)
        batches = ode.batches(sde, n, batch_size)
        sde.slice_conditions(0, n, n)
        seed = draw_seed(generator)
        probe_seed = draw_seed(generator) if ode.random else 0
        first = ode.levels[0]
        last = ode.levels[-1]

        def work(part: Model, start: int, stop: int) -> tuple[Tensor, Tensor]:
            z = starting_points(part, seed, start, stop)
            solved = ode.solve(part, z, start, probe_seed)
            log_p = log_prior(part, source, z, first.radius) - solved.gain
            value = log_p - sde.dim * math.log(last.radius) - part.log_scale
            return part.to_data(solved.z * last.radius), value

        x, log_p = map_batches(sde, n, batches, work)
        return rows.decoded(x), log_p + rows.added(x)


def _accept(sde: Model, x: Tensor, invalid: str) -> tuple[Tensor, Tensor | None]:
    """The batch, checked, and which rows are not finite, if `invalid` answers them with NaN."""
    choose("invalid=", invalid, ("raise", "nan"))
    if invalid == "raise":
        return sde.accept(x), None
    x = as_tensor(x, "x")
    if not x.ndim or not x.is_floating_point() or tuple(x.shape[1:]) != sde.shape:
        return sde.accept(x), None
    lost = ~x.isfinite().reshape(len(x), -1).all(1)
    by_sample = lost.reshape(-1, *(1,) * len(sde.shape))
    filled = torch.where(by_sample, sde.mean.to(x), x)
    return sde.accept(filled), lost.to(sde.scale.device)
