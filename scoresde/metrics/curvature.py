"""How straight the paths of a model are.

A model's ODE moves x_1 (noise, or a sample of its source) to x_0 (data) along x_t. In the units of
the data, with E over the paths, and t the process's own time:

    path energy             PE = E ∫‖ẋ_t‖² dt
    displacement            Δ = E‖x_1 − x_0‖²
    straightness            S = E ∫‖(x_1 − x_0) − ẋ_t‖² dt = PE − Δ   (Liu et al. 2023, section 2.2)
    curvature               C = S/Δ                                   (Lee et al. 2023: S alone)
    normalized path energy  NPE = |PE − W_2²|/W_2²                    (Tong et al. 2024)

S = 0 means that all paths are straight at constant speed, so that one Euler step in t ("ddim" with
steps=1) lands where they end. NPE = 0 means that they also join source and data optimally: PE ≥ Δ ≥
W_2². C has no unit. It is a ratio of means: the mean of ratios has no finite variance in the plane,
where some paths are hardly displaced at all.

All of these depend on the speed along a path and on the factor α, not only on the curve. For a
rectified flow they mean what the papers mean. VP, VE and the like are not straight in x_t: VP
shrinks the data as t grows, VE raises the noise to σ_max, so that their S measures the process
more than the model. Compare it between models of one process only.

One solve yields everything. Between stations t_k the path is interpolated by polynomials of degree
4 on Gauss–Lobatto nodes, whose energy the same nodes' quadrature integrates exactly. S is computed
from the deviation from the chord, not as the difference PE − Δ: a path that is straight to 1e-6 has
an S of 1e-12, free of rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from ..common.checks import check_budget, check_generator, real_number, whole_number
from ..common.progress import shows_progress
from ..common.seeds import takes_seed
from ..model.protocol import Model
from ..model.require import require_model
from ..sampling.plan import plan
from ..sampling.trajectory import solve
from ..solvers import Solver
from ..solvers.options import SolverOptions
from .transport import wasserstein

# Gauss–Lobatto on [−1, 1], exact to degree 7
NODES = (-1.0, -math.sqrt(3 / 7), 0.0, math.sqrt(3 / 7), 1.0)
WEIGHTS = (1 / 10, 49 / 90, 32 / 45, 49 / 90, 1 / 10)
DEGREE = len(NODES) - 1


class Estimate(NamedTuple):
    """A mean over paths and its standard error.

    Attributes
    ----------
    value : float
    stderr : float
        Half the width of an interval that holds the mean over all paths in 68% of choices of the
        n paths.

    Examples
    --------
    >>> Estimate(1.0, 0.1)
    Estimate(value=1.0, stderr=0.1)
    """

    value: float
    stderr: float


@dataclass(frozen=True)
class Straightness:
    """How straight the paths of a model are; see `straightness`.

    Attributes
    ----------
    path_energy, displacement, straightness : Estimate
        PE, Δ and S = PE − Δ, in squared units of the data.
    curvature : Estimate
        C = S/Δ; 0 for straight paths.
    normalized_path_energy : Estimate
        NPE = |PE − W_2²|/W_2²; 0 for straight paths that join source and data optimally. Its
        stderr does not count the error of W_2.
    w2 : float
        W_2 between source and data, in the units of the data: as given, or between the ends of
        these paths.
    nfe : float
        Network evaluations per path of this measurement.

    Examples
    --------
    See `straightness`.
    """

    path_energy: Estimate
    displacement: Estimate
    straightness: Estimate
    curvature: Estimate
    normalized_path_energy: Estimate
    w2: float
    nfe: float


@takes_seed
@shows_progress
def straightness(
    sde: Model,
    n: int | None = None,
    *,
    start: Tensor | None = None,
    w2: float | None = None,
    panels: int = 16,
    solver: str | Solver = "adams",
    steps: int | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[SolverOptions],
) -> Straightness:
    """Measure energy and curvature of a model's ODE paths, in one solve.

    They do not depend on where the paths end: straight paths to the wrong place are straight.

    Parameters
    ----------
    sde : ScoreSDE
    n : int, optional
        Number of paths, from starting points that `solve` draws; 1024 if neither n nor `start` is
        given.
    start : Tensor, shape (n, *shape), optional
        Starting points x_1 instead, in the units of the data.
    w2 : float, optional
        W_2 between source and data. By default `wasserstein(x_1, x_0)` of these paths, which costs
        n³ operations and has the bias of n points; it never exceeds √Δ of the same paths.
    panels : int
        Pieces of degree 4 that interpolate a path, of equal length in t.
    solver, steps, **options
        As for `solve`; the solver is deterministic. A fixed grid is refined until it holds all
        4·panels + 1 stations. An adaptive solver interpolates, and its tolerances bound what can
        be resolved: at 1e-5 straight paths have C of some 1e-12, in float32 of 1e-10.
    generator : torch.Generator, optional
        The randomness of the starting points.
    seed : int, optional
        An integer in place of the generator.
    batch_size : int, optional
        Paths computed at once. All their states, (4·panels + 1)·n samples, are held in memory.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.

    Returns
    -------
    Straightness

    Raises
    ------
    TypeError, ValueError
        For a stochastic solver, and as `solve`.
    SolverError
        As `solve`.

    References
    ----------
    Liu, Gong and Liu, Flow straight and fast, ICLR 2023; Lee, Kim and Ye, Minimizing trajectory
    curvature of ODE-based generative models, ICML 2023; Tong et al., Improving and generalizing
    flow-based generative models with minibatch optimal transport, TMLR 2024.

    Examples
    --------
    From N(0, I) to N(0, 4·I) in the plane the map is x_0 = 2·x_1, which is optimal: Δ = W_2² = 2.
    The flow of independent pairs follows it along √((1 − t)²·4 + t²), which is not straight:

    >>> import scoresde
    >>> wide = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 2.0)
    >>> flow = scoresde.oracle(wide, scoresde.RectifiedFlow())
    >>> s = straightness(flow, 200, generator=torch.Generator().manual_seed(0))
    >>> abs(s.displacement.value - 2) < 4 * s.displacement.stderr
    True
    >>> round(s.curvature.value, 3)
    0.858
    """
    sde = require_model(sde, "straightness")
    panels = whole_number("panels", panels)
    check_generator(generator)
    if w2 is not None:
        hint = "leave it out, for that between the ends of the paths"
        w2 = real_number("w2", w2, 0, math.inf, hint=hint)
    if n is None:
        n = 1024 if start is None else 1
    check_budget(f"panels={panels}", 32.0 * panels, calls=panels)
    times = _stations(panels)
    if plan(sde, solver, steps, None, {**options}).solver.stochastic:
        raise ValueError(
            f"paths are those of the ODE, and solver {solver!r} is stochastic; try 'adams'"
        )
    solution = solve(
        sde,
        n,
        start=start,
        times=times,
        solver=solver,
        steps=steps,
        generator=generator,
        batch_size=batch_size,
        **options,
    )
    nfe = float(solution.nfe.double().mean())
    return _straightness(solution.x, times, w2, nfe)


def _straightness(x: Tensor, times: Tensor, w2: float | None, nfe: float) -> Straightness:
    """The figures of paths (stations, n, *shape)."""
    x1 = x[0].flatten(1).double()
    x0 = x[-1].flatten(1).double()
    displacement = (x1 - x0).square().sum(1)
    deviation = _deviation(x, times)
    if w2 is None:
        w2 = float(wasserstein(x1, x0)) if len(x1) > 1 else math.nan
    pe = _mean(deviation + displacement)
    delta = _mean(displacement)
    curvature = float(deviation.mean() / displacement.mean())
    scatter = _mean(deviation - curvature * displacement)
    curvature_error = scatter.stderr / delta.value if delta.value else math.nan
    return Straightness(
        path_energy=pe,
        displacement=delta,
        straightness=_mean(deviation),
        curvature=Estimate(curvature, curvature_error),
        normalized_path_energy=_normalized(pe, w2),
        w2=w2,
        nfe=nfe,
    )


def _mean(values: Tensor) -> Estimate:
    """The mean and its standard error, NaN for one value."""
    stderr = math.nan
    if len(values) > 1:
        stderr = float(values.std()) / math.sqrt(len(values))
    return Estimate(float(values.mean()), stderr)


def _normalized(pe: Estimate, w2: float) -> Estimate:
    """|PE − W_2²|/W_2²."""
    if not w2:
        return Estimate(math.nan, math.nan)
    return Estimate(abs(pe.value - w2**2) / w2**2, pe.stderr / w2**2)


def _stations(panels: int) -> Tensor:
    """The nodes of all panels, from t = 1 down to 0."""
    left = torch.arange(panels, dtype=torch.float64, device="cpu")[:, None]
    nodes = torch.tensor(NODES[:-1], dtype=torch.float64, device="cpu")
    inner = (left + 0.5 + 0.5 * nodes) / panels
    return 1 - torch.cat([inner.flatten(), inner.new_ones(1)])


def _derivatives() -> Tensor:
    """D_kj = ℓ_j'(ξ_k), the derivatives at the nodes of the Lagrange polynomials ℓ_j."""
    xi = torch.tensor(NODES, dtype=torch.float64, device="cpu")
    gap = xi[:, None] - xi + torch.eye(len(xi), dtype=torch.float64, device="cpu")
    c = gap.prod(1)
    D = c[:, None] / c / gap
    D.fill_diagonal_(0)
    return D - torch.diag(D.sum(1))


def _deviation(x: Tensor, times: Tensor) -> Tensor:
    """∫‖ẋ_t − (x_1 − x_0)‖² dt of each path: the energy of x_t − (1 − t)·x_0 − t·x_1."""
    D = _derivatives().to(x.device)
    w = torch.tensor(WEIGHTS, dtype=torch.float64, device=x.device)
    x1 = x[0].flatten(1).double()
    x0 = x[-1].flatten(1).double()
    t = times.to(x.device)[:, None, None]
    total = x1.new_zeros(len(x1))
    for k in range(0, len(x) - 1, DEGREE):
        here = slice(k, k + DEGREE + 1)
        off = x[here].flatten(2).double() - t[here] * x1 - (1 - t[here]) * x0
        # slopes per ξ, where dt = h/2 dξ
        slope = torch.einsum("kj,jnd->knd", D, off).square().sum(2)
        total += (w @ slope) * 2 / float(times[k] - times[k + DEGREE])
    return total
