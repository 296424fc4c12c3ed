"""Data changed by a model: noised and solved back, and moved along a path between two samples."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from ..common import progress as bars
from ..common.capabilities import Capability
from ..common.checks import check_budget, real_number, whole_number
from ..common.progress import shows_progress
from ..common.random import PRIOR, Noise, draw_seed
from ..common.seeds import takes_seed
from ..common.sharding import together
from ..model.protocol import Model
from ..model.require import require_tensors
from ..model.standardization import wide
from ..processes.base import as_time
from ..sampling.options import PathOptions
from ..sampling.states import ArcStates
from ..sampling.trajectory import decode, encode, last_states
from ..solvers import Solver
from ..solvers.options import SolverOptions
from .guided import cosine_and_sine

PARALLEL = 1e-4
"""The sine of an angle below which two directions have no great circle of their own."""


@takes_seed
@shows_progress
@torch.no_grad()
@together()
def edit(
    sde: Model,
    x: Tensor,
    t0: float,
    *,
    solver: str | Solver | None = None,
    steps: int | None = None,
    spacing: str | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[SolverOptions],
) -> Tensor:
    """Noise data to t0 by the forward process, and solve back to new data (SDEdit).

    x_t0 = α·x + σ·ε at t0, then the ODE or SDE from t0 to 0. What is coarser than the noise at t0
    stays, what is finer is drawn anew: t0 = 1 keeps nothing, a small t0 nearly all. Data of the
    model's own distribution keep it; others, such as strokes, come nearer to it. With a guided or
    conditioned model, data move to what that says.

    Parameters
    ----------
    sde : ScoreSDE
    x : Tensor, array or data frame, shape (n, *shape)
        Data, in their own units. Columns of a frame are matched by name.
    t0 : float
        Process time in (0, 1]. Its noise, σ/α, depends on the process: 0.5 is another strength
        for `vp` than for `rectified`.
    solver, spacing, batch_size, progress, **options
        As for `sample`.
    steps : int, optional
        Steps from t0 to 0, all of them taken whatever t0 is.
    generator : torch.Generator, optional
        The randomness, ε as well: sample i depends on it, on i and x[i] alone.
    seed : int, optional
        An integer in place of the generator.

    Returns
    -------
    Tensor, shape (n, *shape)
        In the units of the data.

    Raises
    ------
    TypeError, ValueError
        For t0 outside (0, 1], a model without a score, such as a distilled one, and as `sample`.

    References
    ----------
    Meng et al., SDEdit: guided image synthesis and editing with stochastic differential equations,
    ICLR 2022.

    Examples
    --------
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde, x = scoresde.oracle(mixture, scoresde.VPSDE()), mixture.sample(1000)
    >>> edited = scoresde.edit(sde, x, 0.2)  # a vicinity of each point
    >>> (edited - x).norm(dim=1).mean() < 1
    tensor(True)
    """
    model = require_tensors(sde, "edit")
    taken = {"n", "start", "times"}.intersection(options)
    if taken:
        raise TypeError(f"edit has no {min(taken)}=: it solves from x, noised to t0, to the data")
    t0 = real_number("t0", t0, 0, 1, closed=True, hint="1 keeps nothing of x")
    if not t0:
        raise ValueError("t0 is between 0 and 1, got 0, which would change nothing")
    if model.distilled_steps is not None:
        model.require(Capability.SCORE)
    if Capability.SCORE not in model.capabilities:
        raise ValueError(
            "edit noises data with independent Gaussian noise, and this model has learnt other "
            "paths, which have no score: it takes a model that fit trained on single samples, "
            "without a source"
        )
    x = model.accept(x)
    z = model.from_data(x)
    seed = draw_seed(generator)
    noise = Noise(seed, PRIOR, 0, len(x), model.dim, z)()
    time = as_time(t0)
    cos, sin = cosine_and_sine(float(model.process.phi(time)), z)
    return last_states(
        model,
        start=ArcStates(cos * z + sin * noise),
        times=(t0, 0.0),
        solver=solver,
        steps=steps,
        spacing=spacing,
        generator=generator,
        batch_size=batch_size,
        **options,
    )


@shows_progress
@torch.no_grad()
def interpolate(
    sde: Model,
    a: Tensor,
    b: Tensor,
    k: int,
    *,
    solver: str | Solver = "adams",
    steps: int | None = None,
    spacing: str | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[SolverOptions],
) -> Tensor:
    """Return k points on a path from each sample a to b, through the noise that they come from.

    Both are encoded to t = 1 by the ODE, and their standardized latents joined by the great circle
    through them, from norm to norm in equal steps: a straight line would leave the shell that
    Gaussian latents lie on. Latents in one direction or opposite ones, as in one dimension, are
    joined by a straight line.

    Parameters
    ----------
    sde : ScoreSDE
    a, b : Tensor, shape (n, *shape)
        The ends, in the units of the data.
    k : int
        Points, both ends included: 2 or more.
    solver, steps, spacing, batch_size, progress, **options
        As for `encode`.

    Returns
    -------
    Tensor, shape (k, n, *shape)
        In the units of the data. The first is a and the last is b.

    Raises
    ------
    TypeError, ValueError
        For ends of different numbers, k < 2, and as `encode`.

    References
    ----------
    Song et al., Denoising diffusion implicit models, ICLR 2021, section 5.3.

    Examples
    --------
    >>> mixture = scoresde.toy.Moons()
    >>> sde, x = scoresde.oracle(mixture, scoresde.RectifiedFlow()), mixture.sample(2)
    >>> scoresde.interpolate(sde, x[:1], x[1:], 5).shape
    torch.Size([5, 1, 2])
    """
    model = require_tensors(sde, "interpolate")
    k = whole_number("k", k, 2)
    a = model.accept(a, "a")
    b = model.accept(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a holds {len(a)} samples and b {len(b)}: wanted as many, in pairs")
    check_budget(f"k={k} points of {len(a)} pairs", 16.0 * k * len(a) * model.dim)
    how: PathOptions = {
        "solver": solver,
        "steps": steps,
        "spacing": spacing,
        "batch_size": batch_size,
        **options,
    }
    radius = model.process.radius(as_time(1.0))
    if k == 2:
        return torch.stack([a, b.to(a.dtype)])
    latents = []
    for third, x in enumerate((a, b)):
        with bars.part(third, third + 1, 3):
            latents.append(encode(model, x, **how))
    ends = [model.from_data(x) / float(radius) for x in latents]
    shares = torch.linspace(0, 1, k, dtype=torch.float64, device="cpu")[1:-1]
    inside = float(radius) * great_circle(ends[0], ends[1], shares).flatten(0, 1)
    rows = torch.arange(len(a), device="cpu").repeat(k - 2)
    with bars.part(2, 3, 3):
        points = decode(model.select_conditions(rows), model.to_data(inside), **how)
    return torch.cat([a[None], points.reshape(k - 2, *a.shape).to(a.dtype), b[None].to(a.dtype)])


def great_circle(
    a: Tensor,
    b: Tensor,
    shares: Tensor,
) -> Tensor:
    """Points (k, B, n) at shares (k,) of the way from rows a to b, norms in equal steps."""
    dtype = a.dtype
    a = a.to(wide(a.device))
    b = b.to(a.dtype)
    norms = [x.norm(dim=1, keepdim=True).clamp_min(1e-30) for x in (a, b)]
    u = a / norms[0]
    v = b / norms[1]
    # accurate for small and large angles alike (Kahan)
    angle = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1)).unsqueeze(1)
    share = shares.to(a.dtype).to(a.device)[:, None, None]
    norm = (1 - share) * norms[0] + share * norms[1]
    sine = angle.sin()
    turned = (((1 - share) * angle).sin() * u + (share * angle).sin() * v) / sine
    straight = (1 - share) * a + share * b
    return torch.where(sine > PARALLEL, norm * turned, straight).to(dtype)
