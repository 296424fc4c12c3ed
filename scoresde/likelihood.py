"""log p(x) of a model, through the probability-flow ODE and the trace of its Jacobian.

Along dz/dφ = v(z, φ) the density changes by ∂/∂φ log p(z) = −div v (Chen et al. 2018; Song et al. 2021, eq. 39), so with the
latent z_1 that data x reach at the noise end,

    log p(x) = log p(z_1) + ∫ div v dφ − D·log r(0) − log|det scale|,

exactly, up to the tolerance of the solver. v is linear in the network's output (see `scoresde.prediction`), so
div v = (tr ∂out/∂z − D·(a·cos φ + b·sin φ))/det.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .plan import check_generator, chunks, levels, plan, run
from .process import as_time
from .random import PROBE, Noise, draw_seed
from .registry import nearest
from .sde import ScoreSDE, evaluating, require_sde
from .solvers import Problem, Solver
from .solvers.base import Velocity
from .trace import TRACES


class HasLogProb(Protocol):
    """Anything with log_prob: a torch.distributions.Distribution, a toy density, a ScoreSDE-based one."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value), shape (B,)."""


@dataclass(frozen=True)
class Likelihood:
    """What `likelihood` returns.

    Attributes
    ----------
    log_prob : Tensor, shape (B,)
        log p(x) in nats, with respect to the units of the data.
    latent : Tensor, shape (B, *shape)
        Where x ends at t = 1, in the units of the data.
    nfe : Tensor of int, shape (B,)
        Network evaluations of each sample; each comes with a trace.

    Examples
    --------
    >>> import scoresde
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> scoresde.likelihood(scoresde.oracle(gaussian, scoresde.VPSDE()), torch.zeros(1, 2)).log_prob
    tensor([-1.8379])
    """

    log_prob: Tensor
    latent: Tensor
    nfe: Tensor


@torch.inference_mode(False)  # inside which no trace could be taken
@torch.no_grad()
def likelihood(
    sde: ScoreSDE,
    x: Tensor,
    *,
    solver: str | Solver = "adams",
    trace: str = "exact",
    prior: HasLogProb | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Likelihood:
    """Return log p(x) with the latent and what it cost.

    log p(x) = log p(z_1) + ∫ div v dφ − D·log r(0) − log|det scale| along the probability-flow ODE. "Exact" means exact for
    the model: p(x_1) is only nearly the prior, which stands in for it unless `prior` is given. Gradients do not flow through.

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, shape (B, *shape)
        Data, in their own units.
    solver : str or Solver
        One that integrates the ODE ("adams", "rk45", "heun", …), not a stochastic sampler.
    trace : str
        "exact": ∑∂f_i/∂x_i by batched vector–Jacobian products, about D of them an evaluation. "hutchinson": one Gaussian
        probe per sample, held through the solve: unbiased, with a standard error of order √D nats.
    prior : object with .log_prob, optional
        The law of x_1 in the units of the data, where it is known: only for tests of a solver.
    steps : int, optional
        Fixed number of steps; without it adaptive solvers go by rtol and atol, which bound the error of log p too, in nats.
    spacing : str, optional
        Where the steps lie: a key of `scoresde.SPACINGS`.
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
    Chen et al., Neural ordinary differential equations, NeurIPS 2018. Song et al., ICLR 2021, section 4.3.

    Examples
    --------
    >>> import scoresde
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde = scoresde.oracle(mixture, scoresde.RectifiedFlow())
    >>> x = mixture.sample(4)
    >>> (scoresde.likelihood(sde, x).log_prob - mixture.log_prob(x)).abs().max() < 1e-3
    tensor(True)
    """
    sde = require_sde(sde, "log_prob")
    check_generator(generator)
    x = sde.accept(x)
    if trace not in TRACES:
        raise ValueError(f"unknown trace {trace!r}. {nearest(trace, TRACES)}")
    if prior is not None and not callable(getattr(prior, "log_prob", None)):
        raise TypeError(f"prior is the law of x at t = 1 and needs a log_prob method, got {type(prior).__name__}")
    how = plan(sde, solver, steps, spacing, options, forward=True)
    if not how.solver.ode:
        kind = "stochastic" if how.solver.stochastic else "not an ODE method"
        raise ValueError(f"log_prob integrates the probability-flow ODE and solver {solver!r} is {kind}; try 'adams' or 'rk45'")
    sde.rows(0, len(x), len(x))
    nodes = levels(sde, how.times)
    first, last = nodes[0], nodes[-1]
    seed = draw_seed(generator) if trace == "hutchinson" else 0
    values, latents, nfes = [], [], []
    with evaluating(sde):
        for start, stop in chunks(sde, len(x), batch_size, cost=sde.dim if trace == "exact" else 1):
            part = sde.rows(start, stop, len(x))
            z = part.from_data(x[start:stop]) / first.radius
            probe = Noise(seed, PROBE, start, stop, sde.dim, z)() if trace == "hutchinson" else None
            task = Problem(nodes, _with_density(part, TRACES[trace], probe), _none, _none, how.adaptive, _norm)
            end, counts = run(part, how.solver, task, torch.cat([z, z.new_zeros(len(z), 1)], 1), functools.partial(_same, task))
            z, gained = end[:, :-1], end[:, -1]
            latent = part.to_data(z * last.radius)
            if prior is None:
                log_p = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
            else:
                log_p = prior.log_prob(latent).to(z) + part.log_scale + sde.dim * math.log(last.radius)
            values.append(log_p + gained - sde.dim * math.log(first.radius) - part.log_scale)
            latents.append(latent)
            nfes.append(torch.as_tensor(counts.nfe).expand(len(z)))
    return Likelihood(torch.cat(values), torch.cat(latents), torch.cat(nfes).cpu())


def log_prob(
    sde: ScoreSDE,
    x: Tensor,
    *,
    solver: str | Solver = "adams",
    trace: str = "exact",
    prior: HasLogProb | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    """Return log p(x) of the model in nats, in the units of the data: `likelihood(...)`'s first field.

    log p(x) = log p(z_1) + ∫ div v dφ − D·log r(0) − log|det scale| along the probability-flow ODE.

    Parameters
    ----------
    sde, x, solver, trace, prior, steps, spacing, generator, batch_size, **options
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
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR 2021, section 4.3.

    Examples
    --------
    >>> import scoresde
    >>> mixture = scoresde.toy.Moons()
    >>> sde = scoresde.oracle(mixture, scoresde.VPSDE())
    >>> scoresde.log_prob(sde, mixture.sample(5)).shape
    torch.Size([5])
    """
    result = likelihood(
        sde,
        x,
        solver=solver,
        trace=trace,
        prior=prior,
        steps=steps,
        spacing=spacing,
        generator=generator,
        batch_size=batch_size,
        **options,
    )
    return result.log_prob


def bits_per_dim(log_prob: Tensor, dim: int, levels: int | None = None) -> Tensor:
    """Return −log p/(D·ln 2), plus log2(levels) for discrete data dequantized to [0, 1) as (value + u)/levels.

    The usual number for 8-bit images is `levels=256` with x = (pixel + u)/256, u ~ U[0, 1) (Theis et al. 2016).

    Parameters
    ----------
    log_prob : Tensor
        Nats, of x on the unit scale.
    dim : int
        D, elements per sample.
    levels : int, optional
        Number of values an element can take; None for continuous data.

    Returns
    -------
    Tensor
        Bits per dimension.

    Raises
    ------
    ValueError
        If dim or levels is not positive.

    Examples
    --------
    >>> bits_per_dim(torch.tensor([0.0]), dim=64, levels=256)  # uniform over all images
    tensor([8.])
    """
    if dim < 1 or (levels is not None and levels < 1):
        raise ValueError(f"dim and levels are at least 1, got {dim=}, {levels=}")
    return -log_prob / (dim * math.log(2)) + (math.log2(levels) if levels else 0.0)


def _with_density(sde: ScoreSDE, trace: Callable[..., tuple[Tensor, Tensor]], probe: Tensor | None) -> Velocity:
    """Return the right-hand side of (z, log-density gained): (v, div v), one more column than z."""

    call = sde.caller()

    def velocity(state: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        held = () if probe is None else (probe if rows is None else probe[rows],)
        b, z = len(state), state[:, :-1]

        def output(z: Tensor) -> Tensor:
            copies = len(z) // b  # an exact trace may ask for several copies of the batch at once
            if copies == 1:
                return call(z, phi, rows)
            at = phi.repeat(copies) if isinstance(phi, Tensor) else phi
            which = (torch.arange(b, device=z.device) if rows is None else rows).repeat(copies)
            return call(z, at, which)

        out, tr = trace(output, z, *held)
        if sde.predict == "edm":
            return torch.cat([-out, -tr.unsqueeze(1)], 1)
        c = sde.coefficients(as_time(phi)).to(z)
        k = c.a * c.cos + c.b * c.sin
        return torch.cat([(out - k * z) / c.det, (tr.unsqueeze(1) - k * sde.dim) / c.det], 1)

    return velocity


def _norm(error: Tensor) -> Tensor:
    """The worse of the log-density's error and the state's, whose length counts: log p is a sum over dimensions."""
    return torch.maximum(error[:, :-1].norm(dim=1), error[:, -1].abs())


def _same(task: Problem) -> Problem:
    return task


def _none(*_: Any) -> Any:
    raise AssertionError("an ODE solver asked for more than the velocity")
