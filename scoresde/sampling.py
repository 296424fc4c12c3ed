"""Drawing samples: `solve` returns the trajectory and what it cost, `sample` only the samples.

Both work on flattened arc states and speak to the user in the units of the data.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import check_generator, whole
from .plan import chunks, each, levels, plan, problem, run, starting_points, starts_at_data
from .random import PATH, Noise, draw_seed
from .ranks import together
from .sde import LACKS, ScoreSDE, require_sde
from .solvers import Problem, Solver


@dataclass(frozen=True)
class Solution:
    """A solved trajectory, in the units of the data.

    Attributes
    ----------
    t : Tensor, shape (T,), float64
        Process times of the states, in the order of the solve.
    x : Tensor, shape (T, n, *shape)
        States.
    nfe : Tensor of int, shape (n,)
        Network evaluations of each sample.
    accepted, rejected : Tensor of int, shape (n,)
        Steps of each sample.

    Examples
    --------
    >>> import scoresde
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> solution = scoresde.solve(scoresde.oracle(gaussian, scoresde.VPSDE()), 5, solver="heun", steps=10)
    >>> solution.x.shape, solution.nfe
    (torch.Size([2, 5, 2]), tensor([20, 20, 20, 20, 20]))
    """

    t: Tensor
    x: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor


@torch.no_grad()
@together()
def solve(
    sde: ScoreSDE,
    n: int | None = None,
    *,
    start: Tensor | None = None,
    solver: str | Solver | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    times: Sequence[float] | Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Solution:
    """Move n samples from noise to data, or given states either way, and return the trajectory with its costs.

    On the arc z = x/√(α² + σ²) every solver starts from z ~ N(0, I) at t = 1, or from the model's `source`, and ends at t = 0.
    With `start=` it starts from those states instead, and with times that increase from 0 to 1 it takes data to noise (see
    `encode` and `decode`).

    Parameters
    ----------
    sde : ScoreSDE
    n : int, optional
        Number of samples: by default as many as `start` or conditions have rows, or 1.
    start : Tensor, shape (n, *shape), optional
        States to start from, in the units of the data, at the first of `times`.
    solver : str or Solver, optional
        A name of `scoresde.SOLVERS`, with its options as further arguments, or a solver object. By default "adams"; for models
        that jump, "consistency" or "flow_map"; for bridges, "bridge"; for distilled ones, "ddim" with their own steps.
    steps : int, optional
        Fixed number of steps. Without it an adaptive solver goes by its tolerances and others take their default. Tolerances that
        are not named are at least a tenth of the rounding of a half-precision network: 8e-4 in bfloat16, 1e-4 in float16.
    spacing : str, optional
        Where the steps lie: a key of `scoresde.SPACINGS`.
    times : sequence of float, optional
        Process times at which the state is wanted, decreasing from 1 to 0; by default those two. With `start`, also
        increasing from 0 to 1. Adaptive Runge–Kutta and Adams methods interpolate: asking changes neither steps nor end.
    generator : torch.Generator, optional
        The randomness: sample i depends on it and on i alone, not on n or `batch_size`. Without one, torch's global generator.
    batch_size : int, optional
        Samples computed at once.
    **options
        Of the solver, e.g. rtol=1e-6 for "rk45", eta=0.5 for "ddim", snr=0.1 for "pc".

    Returns
    -------
    Solution

    Raises
    ------
    TypeError, ValueError
        For arguments that make no sense, before any work starts.
    SolverError
        If the network's output is not finite, or an adaptive solve does not reach the end.

    References
    ----------
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR 2021.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> solution = scoresde.solve(sde, 3, solver="rk45", times=[1.0, 0.5, 0.25, 0.0])
    >>> solution.x.shape
    torch.Size([4, 3, 2])
    """
    t, states, *counts = _solve(sde, n, start, solver, steps, spacing, times, generator, batch_size, options)
    return Solution(t, torch.stack(states), *counts)


@torch.no_grad()
@together()
def _end(
    sde: ScoreSDE,
    n: int | None = None,
    *,
    start: Tensor | None = None,
    solver: str | Solver | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    times: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    """The last states of `solve`, in memory of their own."""
    return _solve(sde, n, start, solver, steps, spacing, times, generator, batch_size, options)[1][-1]


def _solve(
    sde: ScoreSDE,
    n: int | None,
    start: Tensor | None,
    solver: str | Solver | None,
    steps: int | None,
    spacing: str | None,
    times: Sequence[float] | Tensor | None,
    generator: torch.Generator | None,
    batch_size: int | None,
    options: dict[str, Any],
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """Times, the states at each, evaluations, steps taken and steps rejected."""
    sde = require_sde(sde, "solve")
    check_generator(generator)
    n = None if n is None else whole("n", n)
    forward = start is not None and starts_at_data(times)
    how = plan(sde, solver, steps, spacing, options, times=times, forward=forward)
    if forward and not how.solver.reversible:
        if how.solver.stochastic:
            raise ValueError(f"data go to noise along the ODE, and solver {solver!r} is stochastic; try 'adams'")
        if "velocity" not in how.solver.needs:
            raise ValueError(f"data go to noise along the ODE, and solver {solver!r} jumps towards the data; try 'adams'")
        if "velocity" not in sde.offers:
            raise ValueError(f"data go to noise along the ODE: {LACKS['velocity']}")
    given = None if start is None else sde.accept(start, "start")
    if given is not None:
        if n not in (None, 1, len(given)):
            raise ValueError(f"start holds {len(given)} states and n is {n}; leave n out")
        n = len(given)
    n = sde.condition_rows if n is None else n
    batches = chunks(sde, n, batch_size, calls=len(how.times) - 1, held=len(how.keep))
    nodes = levels(sde, how.times)
    sde.rows(0, n, n)
    seed = draw_seed(generator) if start is None or how.solver.stochastic else 0
    like = sde.scale.new_empty(0, dtype=sde.state_dtype)

    def work(part: ScoreSDE, first: int, stop: int) -> list[Tensor]:
        def task() -> Problem:
            noise = Noise(seed, PATH, first, stop, sde.dim, like) if how.solver.stochastic else _no_noise
            return problem(part, nodes, how.adaptive, noise)

        if given is None:
            z = starting_points(part, seed, first, stop)
        else:
            z = part.from_data(given[first:stop]) / nodes[0].radius
        seen = {0: z}
        posed = task()
        posed.observe, posed.wanted = functools.partial(_keep, seen, how.keep[:-1]), frozenset(how.keep)
        end, counts = run(sde, how.solver, posed, z, task)
        seen[len(nodes) - 1] = end
        columns = (counts.nfe, counts.accepted, counts.rejected)
        tensors = (c if isinstance(c, Tensor) else torch.tensor(c, device="cpu") for c in columns)
        costs = [c.expand(stop - first) for c in tensors]
        return [*costs, *(sde.to_data(nodes[k].radius * seen[k]) for k in how.keep)]

    nfe, accepted, rejected, *states = each(sde, n, batches, work)
    return how.times[list(how.keep)], states, nfe.cpu(), accepted.cpu(), rejected.cpu()


def _keep(seen: dict[int, Tensor], wanted: tuple[int, ...], i: int, z: Tensor) -> None:
    if i in wanted:
        seen[i] = z.clone()


def _no_noise() -> Tensor:
    raise AssertionError("a deterministic solver asked for noise: set stochastic = True")


def sample(
    sde: ScoreSDE,
    n: int | None = None,
    *,
    solver: str | Solver | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    """Draw n samples.

    Parameters
    ----------
    sde : ScoreSDE
    n : int, optional
        Number of samples: by default as many as conditions have rows, or 1.
    solver : str or Solver, optional
        A name of `scoresde.SOLVERS`, with its options as further arguments, or a solver object. By default "adams"; for models
        that jump, "consistency" or "flow_map"; for bridges, "bridge"; for distilled ones, "ddim" with their own steps.
    steps : int, optional
        Fixed number of steps. Without it an adaptive solver goes by its tolerances and others take their default. Tolerances that
        are not named are at least a tenth of the rounding of a half-precision network: 8e-4 in bfloat16, 1e-4 in float16.
    spacing : str, optional
        Where the steps lie: a key of `scoresde.SPACINGS`.
    generator : torch.Generator, optional
        The randomness: sample i depends on it and on i alone, not on n or `batch_size`. Without one, torch's global generator.
    batch_size : int, optional
        Samples computed at once.
    **options
        Of the solver, e.g. rtol=1e-6 for "rk45", eta=0.5 for "ddim", snr=0.1 for "pc".

    Returns
    -------
    Tensor, shape (n, *shape)
        Samples, in the units of the data.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no sense, before any work starts.
    SolverError
        If the network's output is not finite, or an adaptive solve does not reach the end.

    References
    ----------
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR 2021.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> scoresde.sample(sde, 1000, solver="rk45").norm(dim=1).mean()
    tensor(2.8...)
    """
    require_sde(sde, "sample")
    return _end(
        sde,
        n,
        solver=solver,
        steps=steps,
        spacing=spacing,
        generator=generator,
        batch_size=batch_size,
        **options,
    )


@together()
def encode(
    sde: ScoreSDE,
    x: Tensor,
    *,
    solver: str | Solver = "adams",
    steps: int | None = None,
    spacing: str | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    """Run data to noise along the probability-flow ODE: x_1 of each x_0, whose law is nearly N(0, (α² + σ²)·scale²).

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, shape (B, *shape)
        Data, in their own units.
    solver, steps, spacing, batch_size, **options
        As for `sample`; the solver is deterministic.

    Returns
    -------
    Tensor, shape (B, *shape)
        States at t = 1, in the units of the data; `decode` takes them back.

    Raises
    ------
    TypeError, ValueError
        For a stochastic solver or one that jumps, a model without a velocity, or data of the wrong shape or type.
    SolverError
        As `sample`.

    References
    ----------
    Song et al., Score-based generative modeling through stochastic differential equations, ICLR 2021, section 4.3.

    Examples
    --------
    >>> import scoresde
    >>> mixture = scoresde.toy.Moons()
    >>> sde, x = scoresde.oracle(mixture, scoresde.RectifiedFlow()), mixture.sample(4)
    >>> torch.allclose(scoresde.decode(sde, scoresde.encode(sde, x)), x, atol=1e-3)
    True
    """
    how = {"solver": solver, "steps": steps, "spacing": spacing, "batch_size": batch_size, **options}
    sde = require_sde(sde, "encode")
    return _end(sde, start=sde.accept(x), times=(0.0, 1.0), **how)


@together()
def decode(
    sde: ScoreSDE,
    latent: Tensor,
    *,
    solver: str | Solver = "adams",
    steps: int | None = None,
    spacing: str | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    """Run noise to data: the sample that each latent x_1 stands for, the inverse of `encode`.

    Parameters
    ----------
    sde : ScoreSDE
    latent : Tensor, shape (B, *shape)
        States at t = 1, in the units of the data: from `encode`, interpolated, or drawn.
    solver, steps, spacing, batch_size, **options
        As for `sample`.

    Returns
    -------
    Tensor, shape (B, *shape)
        Samples, in the units of the data.

    Raises
    ------
    TypeError, ValueError, SolverError
        As `sample`.

    Examples
    --------
    See `encode`.
    """
    how = {"solver": solver, "steps": steps, "spacing": spacing, "batch_size": batch_size, **options}
    sde = require_sde(sde, "decode")
    return _end(sde, start=sde.accept(latent, "latent"), **how)
