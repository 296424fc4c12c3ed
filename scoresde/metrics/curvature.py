"""How straight the paths of a model are.

A model's ODE takes x_1 (noise, or whatever its source is) to x_0 (data) along x_t. In the units of the data, with E over the
paths, and t the process's own time:

    path energy             PE = E ∫‖ẋ_t‖² dt
    displacement            Δ = E‖x_1 − x_0‖²
    straightness            S = E ∫‖(x_1 − x_0) − ẋ_t‖² dt = PE − Δ      (Liu et al. 2023, S(Z) of section 2.2)
    curvature               C = S/Δ                                      (Lee et al. 2023 have S alone; has no unit)
    normalized path energy  NPE = |PE − W_2²|/W_2²                       (Tong et al. 2024)

S = 0 means that all paths are straight at constant speed, so that one Euler step in t ("ddim" with steps=1) lands where they
end. NPE = 0 means that besides they join source and data optimally: PE ≥ Δ ≥ W_2². C is a ratio of means because the mean of
ratios has no finite variance in the plane, where some paths are hardly displaced at all.

All of these depend on the clock and on the factor α, not on the curve alone. For a rectified flow they mean what the papers
mean. VP, VE and their like don't try to be straight in x_t: VP shrinks the data as t grows, VE blows the noise up to σ_max, so
that their S measures the schedule more than the model. Compare it between models of one process only.

One solve yields everything. Between stations t_k the path is interpolated by polynomials of degree 4 on Gauss–Lobatto nodes,
whose energy the same nodes' quadrature integrates exactly. It is taken of the deviation from the chord, not as the difference
PE − Δ, so that a path that is straight to 1e-6 has an S of 1e-12 and not of rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import affordable, check_generator, number, whole
from ..plan import plan
from ..sampling import solve
from ..sde import ScoreSDE, require_sde
from ..solvers import Solver
from .transport import wasserstein

_NODES = (-1.0, -math.sqrt(3 / 7), 0.0, math.sqrt(3 / 7), 1.0)  # Gauss–Lobatto, exact to degree 7
_WEIGHTS = (1 / 10, 49 / 90, 32 / 45, 49 / 90, 1 / 10)
_DEGREE = len(_NODES) - 1


class Estimate(NamedTuple):
    """A mean over paths and its standard error.

    Attributes
    ----------
    value : float
    stderr : float
        Of the choice of the n paths: half the width of an interval that holds the mean over all paths in 68% of runs.

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
        NPE = |PE − W_2²|/W_2²; 0 for straight paths that join source and data optimally. Its error takes W_2 as known.
    w2 : float
        W_2 between source and data, in the units of the data: as given, or between the ends of these paths.
    nfe : float
        Network evaluations that this took, per path.

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


def straightness(
    sde: ScoreSDE,
    n: int | None = None,
    *,
    start: Tensor | None = None,
    w2: float | None = None,
    panels: int = 16,
    solver: str | Solver = "adams",
    steps: int | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> Straightness:
    """Measure path energy, straightness, curvature and normalized path energy of a model's ODE paths, in one solve.

    It says nothing of where the paths end: a model with straight paths to the wrong place is straight.

    Parameters
    ----------
    sde : ScoreSDE
    n : int, optional
        Number of paths, from starting points that `solve` draws; 1024 if neither it nor `start` is given.
    start : Tensor, shape (n, *shape), optional
        Starting points x_1 instead, in the units of the data.
    w2 : float, optional
        W_2 between source and data. By default it is `wasserstein(x_1, x_0)` of these paths, whose cost grows as n³ and which
        comes with the bias of n points; it never exceeds √Δ of the same paths.
    panels : int
        Pieces of degree 4 that a path is interpolated by, of equal length in t.
    solver, steps, **options
        As for `solve`; the solver is deterministic. A fixed grid is refined until it holds all 4·panels + 1 stations; an adaptive
        solver interpolates, and its tolerances bound what can be seen: at 1e-5 straight paths have C of some 1e-12, in float32
        of 1e-10.
    generator : torch.Generator, optional
        The randomness of the starting points.
    batch_size : int, optional
        Paths computed at once. All their states, (4·panels + 1)·n samples, are held in memory.

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
    Liu, Gong and Liu, Flow straight and fast, ICLR 2023; Lee, Kim and Ye, Minimizing trajectory curvature of ODE-based
    generative models, ICML 2023; Tong et al., Improving and generalizing flow-based generative models with minibatch optimal
    transport, TMLR 2024.

    Examples
    --------
    From N(0, I) to N(0, 4·I) in the plane the map is x_0 = 2·x_1, which is optimal: Δ = W_2² = 2. The flow of independent pairs
    follows it along √((1 − t)²·4 + t²), which is not straight in time:

    >>> import scoresde
    >>> wide = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 2.0)
    >>> flow = scoresde.oracle(wide, scoresde.RectifiedFlow())
    >>> s = straightness(flow, 200, generator=torch.Generator().manual_seed(0))
    >>> abs(s.displacement.value - 2) < 4 * s.displacement.stderr
    True
    >>> round(s.curvature.value, 3)
    0.858
    """
    sde = require_sde(sde, "straightness")
    panels = whole("panels", panels)
    check_generator(generator)
    w2 = None if w2 is None else number("w2", w2, 0, math.inf, hint="leave it out, for that between the ends of the paths")
    number_of_paths = (1024 if start is None else 1) if n is None else n
    affordable(f"panels={panels}", 32.0 * panels, calls=panels)
    times = _stations(panels)
    if plan(sde, solver, steps, None, options).solver.stochastic:
        raise ValueError(f"paths are those of the ODE, and solver {solver!r} is stochastic; try 'adams'")
    how = {"solver": solver, "steps": steps, "generator": generator, "batch_size": batch_size, **options}
    solution = solve(sde, number_of_paths, start=start, times=times, **how)
    x1, x0 = (solution.x[k].flatten(1).double() for k in (0, -1))
    displacement = (x1 - x0).square().sum(1)
    straight = _deviation(solution.x, times)
    energy = straight + displacement
    w2 = float(wasserstein(x1, x0)) if w2 is None and len(x1) > 1 else math.nan if w2 is None else w2
    root = math.sqrt(len(x1))

    def mean(values: Tensor) -> Estimate:
        return Estimate(float(values.mean()), float(values.std()) / root if len(values) > 1 else math.nan)

    curvature = float(straight.mean() / displacement.mean())
    pe, delta, s, scatter = mean(energy), mean(displacement), mean(straight), mean(straight - curvature * displacement)
    return Straightness(
        path_energy=pe,
        displacement=delta,
        straightness=s,
        curvature=Estimate(curvature, scatter.stderr / delta.value if delta.value else math.nan),
        normalized_path_energy=_normalized(pe, w2),
        w2=w2,
        nfe=float(solution.nfe.double().mean()),
    )


def _normalized(pe: Estimate, w2: float) -> Estimate:
    return Estimate(abs(pe.value - w2**2) / w2**2, pe.stderr / w2**2) if w2 else Estimate(math.nan, math.nan)


def _stations(panels: int) -> Tensor:
    """The nodes of all panels, from t = 1 down to 0."""
    left = torch.arange(panels, dtype=torch.float64, device="cpu")[:, None]
    inner = (left + 0.5 + 0.5 * torch.tensor(_NODES[:-1], dtype=torch.float64, device="cpu")) / panels
    return 1 - torch.cat([inner.flatten(), inner.new_ones(1)])


def _derivatives() -> Tensor:
    """D_kj = ℓ_j'(ξ_k): the derivative at each node of the polynomial through values at the nodes."""
    xi = torch.tensor(_NODES, dtype=torch.float64, device="cpu")
    gap = xi[:, None] - xi + torch.eye(len(xi), dtype=torch.float64, device="cpu")
    c = gap.prod(1)
    D = c[:, None] / c / gap
    D.fill_diagonal_(0)
    return D - torch.diag(D.sum(1))


def _deviation(x: Tensor, times: Tensor) -> Tensor:
    """∫‖ẋ_t − (x_1 − x_0)‖² dt of each path: the energy of x_t − (1 − t)·x_0 − t·x_1, panel by panel."""
    D, w = _derivatives().to(x.device), torch.tensor(_WEIGHTS, dtype=torch.float64, device=x.device)
    x1, x0 = x[0].flatten(1).double(), x[-1].flatten(1).double()
    t = times.to(x.device)[:, None, None]
    total = x1.new_zeros(len(x1))
    for k in range(0, len(x) - 1, _DEGREE):
        here = slice(k, k + _DEGREE + 1)
        off = x[here].flatten(2).double() - t[here] * x1 - (1 - t[here]) * x0
        slope = torch.einsum("kj,jnd->knd", D, off).square().sum(2)  # per ξ, where dt = h/2 dξ
        total += (w @ slope) * 2 / float(times[k] - times[k + _DEGREE])
    return total
