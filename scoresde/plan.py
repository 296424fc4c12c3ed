"""From what a user wrote to a problem that a solver can work on, and from its failures to errors a user can read.

Names and numbers are resolved and checked, and the process is evaluated at the nodes; sampling and likelihood share it all.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .backbones.base import takes
from .checks import affordable, said, whole
from .errors import SolverError
from .grids import SPACINGS, grid
from .inputs import as_reals
from .prediction import Coefficients
from .random import BLOCK, PRIOR, Noise
from .ranks import alone, gather, share
from .registry import ELSEWHERE, choose
from .sde import LACKS, ScoreSDE, evaluating
from .solvers import SOLVERS, Calls, Counts, Level, Problem, Solver
from .source import starts

ROWS = 8192  # states evaluated at once when the user does not say: large enough to be fast, small enough for a cache
LESS = "draw fewer, or write them to disk in parts"
NODE = 240.0  # bytes of a level of a grid, at the least
NUMBERS = 2**22  # … and at most this many numbers


@dataclass(frozen=True)
class Plan:
    """How to solve: the solver, and the times it visits. Made once at the door from what the user wrote.

    Attributes
    ----------
    solver : Solver
    times : Tensor, shape (N + 1,), float64
        Nodes of a fixed grid, or stations of an adaptive solve, in the order of the solve.
    adaptive : bool
    keep : tuple of int
        Which of them the user wants to see.
    """

    solver: Solver
    times: Tensor
    adaptive: bool
    keep: tuple[int, ...] = field(default=())


def plan(
    sde: ScoreSDE,
    solver: str | Solver | None,
    steps: int | None,
    spacing: str | None,
    options: dict[str, Any],
    *,
    times: Sequence[float] | Tensor | None = None,
    forward: bool = False,
) -> Plan:
    """Resolve names and check arguments: everything a user can get wrong about how to solve is found here.

    Parameters
    ----------
    sde : ScoreSDE
    solver : str, Solver or None
        A registered name, or an object; None for the model's own.
    steps, spacing
        The fixed grid, or None for the solver's own choice.
    options : dict
        Options of the named solver.
    times : sequence of float, optional
        Process times at which the state is wanted, decreasing from 1 to 0 (increasing from 0 to 1 if forward).
    forward : bool
        From data to noise.

    Returns
    -------
    Plan

    Raises
    ------
    TypeError, ValueError
        With what came, what was wanted and what to try.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("vp", "mlp", shape=(2,))
    >>> plan(sde, "heun", 2, None, {}).times
    tensor([1.0000, 0.2577, 0.0000], dtype=torch.float64)
    >>> plan(sde, "rk_45", None, None, {})
    Traceback (most recent call last):
    ValueError: unknown solver 'rk_45'. Did you mean 'rk45'? There are: ...
    """
    if solver is None:
        solver = sde.solver
    if isinstance(solver, str):
        solver = SOLVERS.build(solver, **options)
        named = set(options)
    elif not isinstance(solver, Solver):
        raise TypeError(f"solver is a name or a Solver object, got {type(solver).__name__}")
    elif options:
        for name in options:
            if name in ELSEWHERE:
                raise TypeError(f"there is no {name}=: {ELSEWHERE[name]}")
        raise TypeError(f"options {sorted(options)} go with a solver's name; give them to the {type(solver).__name__} itself")
    else:
        named = set(solver.tolerances)
    if steps is None:
        solver = _resolvable(solver, named, tolerance(sde))
    wanted = _times(times, forward)
    if spacing is not None:
        choose("spacing", spacing, SPACINGS)
    if sde.nodes:
        steps = _distilled(sde, solver, steps, spacing, wanted, forward)
    else:
        _meets(sde, solver)
    useless = [name for name in solver.tolerances if name in options] if steps is not None else []
    if useless:
        raise ValueError(f"{useless[0]}= has no effect together with steps=, which fixes the grid; give one or the other")
    steps = solver.steps if steps is None else whole("steps", steps)
    adaptive = steps is None
    if steps is not None:
        affordable(f"steps={steps}", NODE * steps, calls=steps)
    if adaptive and spacing is not None:
        raise ValueError(f"spacing={spacing!r} places a fixed number of steps: give steps= too")
    if adaptive or steps is None:
        nodes = wanted
    else:
        nodes = grid(sde.process, steps, spacing or solver.spacing)
        if len(wanted) > 2 and spacing == "ddpm":
            raise ValueError("times= can't join spacing='ddpm', whose levels are discrete; leave one out")
        if sde.phi_min > sde.process.phi_min:  # nodes below the hair would all stand for it
            nodes = nodes[(sde.process.phi(nodes) > 1.5 * sde.phi_min) | (nodes == 0)]
        nodes = _joined(nodes, wanted[1:-1], sde.process.phi)
    keep = (0, *(int((nodes - t).abs().argmin()) for t in wanted[1:-1]), len(nodes) - 1)
    if forward:
        last = len(nodes) - 1
        return Plan(solver, nodes.flip(0), adaptive, tuple(last - k for k in reversed(keep)))
    return Plan(solver, nodes, adaptive, keep)


def tolerance(sde: ScoreSDE) -> float:
    """The least tolerance worth asking of a solve: a tenth of the rounding of a half-precision network, 0 for others.

    Below it a solver takes rounding for curvature: evaluations rise, and errors stay. Measured with an MLP of eight Gaussians,
    "adams", bfloat16 (float16): 340 (128) evaluations a sample at 1e-5, 32 (57) at this, with errors of 2.4e-3 and 3.3e-3
    (2.4e-4 and 3.2e-4).
    """
    kinds = {p.dtype for p in sde.net.parameters() if p.is_floating_point()}
    coarsest = max((torch.finfo(kind).eps for kind in kinds), default=0.0)
    return 0.1 * coarsest if coarsest > torch.finfo(torch.float32).eps else 0.0


def _resolvable(solver: Solver, named: Collection[str], least: float) -> Solver:
    """The solver with tolerances that the network's arithmetic can meet, where the user named none."""
    for name in {"rtol", "atol"} & set(solver.tolerances):
        if (value := getattr(solver, name)) >= least:
            continue
        if name in named:
            warnings.warn(
                f"{name}={value:g} asks for more than this network's half precision resolves, about {least:.0e}: "
                f"evaluations rise, errors do not fall; leave {name}= out, or make the network .float()",
                stacklevel=6,
            )
        else:
            solver = copy.copy(solver)
            object.__setattr__(solver, name, least)
    return solver


def _meets(sde: ScoreSDE, solver: Solver) -> None:
    """Refuse a model that lacks what the solver needs, or what one of the solvers that it calls needs."""
    sde.check(*solver.needs)
    for part in solver.parts:
        _meets(sde, part)


def _distilled(sde: ScoreSDE, solver: Solver, steps: int | None, spacing: str | None, wanted: Tensor, forward: bool) -> int:
    """The number of steps that a distilled model takes; at other levels than theirs its network has learnt nothing."""
    k = sde.nodes
    asked = solver == SOLVERS.build(sde.solver) and steps in (None, k) and spacing in (None, "time") and not forward
    if not asked or bool(((wanted * k).round() / k - wanted).abs().max() > 1e-6):
        raise ValueError(LACKS["nodes"].format(k=k))
    return k


def _joined(nodes: Tensor, wanted: Tensor, phi: Callable[[Tensor], Tensor]) -> Tensor:
    """The grid with wanted times among its nodes: the nearest node is moved there, or one added where that is taken or far.

    A node more, close to another, would cost evaluations and is poison to methods that remember earlier steps.
    """
    if not len(wanted):
        return nodes
    times, taken, extra = nodes.clone(), {0, len(nodes) - 1}, []
    angles = phi(nodes)
    for time, angle in zip(wanted, phi(wanted), strict=True):
        j = int((angles - angle).abs().argmin())
        gap = float((angles[max(j - 1, 0) : j + 2].diff()).abs().max())
        if j in taken or abs(float(angles[j] - angle)) > 0.5 * gap:
            extra.append(time.reshape(1))
        else:
            taken.add(j)
            times[j] = time
    return torch.cat([times, *extra]).sort(descending=True).values


def starts_at_data(times: Sequence[float] | Tensor | None) -> bool:
    """Whether wanted times begin at the data, t = 0, so that a solve runs to noise.

    Parameters
    ----------
    times : sequence of float, or None

    Returns
    -------
    bool

    Raises
    ------
    TypeError
        If it is no sequence of numbers.

    Examples
    --------
    >>> starts_at_data([0.0, 1.0]), starts_at_data(None)
    (True, False)
    """
    return times is not None and bool((_numbers(times).flatten()[:1] == 0).any())


def _numbers(times: Sequence[float] | Tensor) -> Tensor:
    try:
        return as_reals(times, "times").to("cpu", torch.float64)
    except (TypeError, ValueError):
        raise TypeError(f"times is a sequence of numbers, got {said(times)}") from None


def _times(times: Sequence[float] | Tensor | None, forward: bool) -> Tensor:
    """The wanted times, from noise to data whichever way the solve goes."""
    if times is None:
        return torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu")
    wanted = _numbers(times)
    down = wanted.flip(0) if forward and wanted.ndim == 1 else wanted
    if down.ndim != 1 or len(down) < 2 or not bool((down[1:] < down[:-1]).all()) or down[0] != 1 or down[-1] != 0:
        way = "increase from 0 (data) to 1 (noise)" if forward else "decrease from 1 (noise) to 0 (data)"
        raise ValueError(f"times {way}, at least those two; got {said(times)}")
    return down


def levels(sde: ScoreSDE, times: Tensor) -> tuple[Level, ...]:
    """Evaluate the process at the nodes of a grid, once, in float64 on the CPU.

    Parameters
    ----------
    sde : ScoreSDE
    times : Tensor, shape (N + 1,), float64

    Returns
    -------
    tuple of Level

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("rectified", "mlp", shape=(2,))
    >>> [level.sigma for level in levels(sde, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))]
    [1.0, 0.5, 0.0]
    """
    p, low = sde.process, sde.phi_min
    at = times
    if low > p.phi_min:  # the prediction is singular at σ = 0: the arc state a hair above stands for that at the end
        at = torch.maximum(times, p.time(torch.tensor(low, dtype=torch.float64, device="cpu")))
    alpha, sigma, radius = p.alpha(at), p.sigma(at), p.radius(at)
    columns = [times, p.phi(at), alpha / radius, sigma / radius, alpha, sigma, p.radius(times)]
    columns += [p.dalpha(at), p.dsigma(at), p.reverse_g2(at)]
    return tuple(Level(*row) for row in zip(*(c.tolist() for c in columns), strict=True))


def problem(sde: ScoreSDE, nodes: tuple[Level, ...], adaptive: bool, noise: Callable[[], Tensor]) -> Problem:
    """State the sampling problem for a solver: velocity and denoised values on the arc.

    Parameters
    ----------
    sde : ScoreSDE
    nodes : tuple of Level
    adaptive : bool
    noise : callable () -> Tensor (B, n)

    Returns
    -------
    Problem

    Examples
    --------
    >>> import scoresde
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE())
    >>> nodes = levels(sde, torch.tensor([1.0, 0.0], dtype=torch.float64))
    >>> x0, eps = problem(sde, nodes, False, lambda: torch.zeros(1, 2)).denoise(torch.ones(1, 2), 0)
    >>> torch.allclose(nodes[0].cos * x0 + nodes[0].sin * eps, torch.ones(1, 2))
    True
    """
    columns = sde.coefficients(torch.tensor([level.phi for level in nodes], dtype=torch.float64, device="cpu"))
    rows = zip(*(torch.as_tensor(c, device="cpu").flatten().tolist() for c in columns), strict=True)
    solves = [Coefficients(*row) for row in rows]

    output = sde.caller()

    def denoise(z: Tensor, i: int) -> tuple[Tensor, Tensor]:
        return solves[i].solve(z, output(z, nodes[i].phi))

    if takes(sde.network(), "tilt"):
        tilts = (sde.scale.new_full((1,), tilt, dtype=sde.state_dtype) for tilt in (1.0, -1.0))  # to the data, to the source
        drifts = [sde.holding({**sde.condition, "tilt": tilt}).caller() for tilt in tilts]

        def towards(z: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
            return solves[i].solve(z, drifts[nodes[j].phi > nodes[i].phi](z, nodes[i].phi))

        return Problem(nodes, sde.flow(), denoise, noise, adaptive, jump=towards, bridge=sde.process.noise)

    if not takes(sde.network(), "span"):  # it has learnt where the ODE ends, if any: what it says at a level is all there is
        return Problem(nodes, sde.flow(), denoise, noise, adaptive, jump=lambda z, i, j: denoise(z, i))

    def jump(z: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
        span = z.new_full((1,), nodes[i].phi - nodes[j].phi)
        return solves[i].solve(z, sde.holding({**sde.condition, "span": span}).caller()(z, nodes[j].phi))

    return Problem(nodes, sde.flow(), denoise, noise, adaptive, jump=jump)


def starting_points(sde: ScoreSDE, seed: int, start: int, stop: int) -> Tensor:
    """Draw where samples start to stop of a call begin: states on the arc at t = 1.

    Parameters
    ----------
    sde : ScoreSDE
    seed : int
        The call's.
    start, stop : int

    Returns
    -------
    Tensor, shape (stop − start, n)
        Standard normal, or from the model's source.

    Examples
    --------
    >>> import scoresde
    >>> starting_points(scoresde.build("vp", "mlp", shape=(2,)), 7, 0, 3).shape
    torch.Size([3, 2])
    """
    like = sde.scale.new_empty(0, dtype=sde.state_dtype)
    if sde.source is None:
        return Noise(seed, PRIOR, start, stop, sde.dim, like)()
    return sde.from_start(starts(sde.source, seed, start, stop, sde.shape).to(like))


def checked(problem: Problem, to_data: Callable[[Tensor], Tensor]) -> Problem:
    """Return the same problem, raising `SolverError` at the first network output that is not finite.

    Finite outputs are not checked step by step, which would stall a GPU; a solve that ends in NaN is run again with this.

    Parameters
    ----------
    problem : Problem
    to_data : callable
        From states to data, for the exception.

    Returns
    -------
    Problem

    Examples
    --------
    See `SolverError`.
    """

    def told(z: Tensor, rows: Tensor | None, at: int | float | Tensor, *out: Tensor) -> None:
        bad = ~(sum(out).isfinite().all(1) & z.isfinite().all(1))  # type: ignore[union-attr]
        if bool(bad.any()):
            where = (
                f"t = {problem.levels[at].t:.4g}"
                if isinstance(at, int)
                else f"φ = {float(torch.as_tensor(at, device=getattr(at, 'device', 'cpu')).mean()):.3g}"
            )
            raise SolverError(
                f"the network's output is not finite for {int(bad.sum())} of {len(bad)} samples at {where}"
                + (";" if isinstance(at, int) else " (0 data, π/2 noise);")
                + " check the weights and the data's scale, or take more steps=",
                bad,
                to_data(z),
            )

    return problem.watched(told)


def run(sde: ScoreSDE, solver: Solver, task: Problem, z: Tensor, again: Callable[[], Problem]) -> tuple[Tensor, Counts]:
    """Run a solver and turn every numerical failure into a `SolverError`.

    Parameters
    ----------
    sde : ScoreSDE
    solver : Solver
    task : Problem
    z : Tensor, shape (B, n)
        States at the first level.
    again : callable () -> Problem
        The same problem with the same noise, to find out where a fixed grid went wrong.

    Returns
    -------
    z : Tensor, shape (B, n)
    counts : Counts

    Raises
    ------
    SolverError
        How many samples, where on the path, which knob.

    Examples
    --------
    See `sample`.
    """

    def home(z: Tensor) -> Tensor:
        return sde.to_data(z[:, : sde.dim] * task.levels[-1].radius)

    calls = Calls(len(z))
    end, counts = solver.run(task.watched(calls), z)
    counts = dataclasses.replace(counts, nfe=calls.nfe)
    if counts.failed is not None and bool(counts.failed.any()):
        lost = int(counts.failed.sum())
        why, knob = {
            "nan": ("the network's output is not finite, or its trace", "check the weights and the data's scale"),
            "stuck": ("the step size fell below 1e-12", "raise rtol= and atol=: this field is rougher than they ask"),
            "steps": ("the steps ran out", "raise max_steps=, or rtol= and atol="),
        }[counts.reason]
        raise SolverError(
            f"{lost} of {len(z)} samples did not get from t = {task.levels[0].t:g} to t = {task.levels[-1].t:g}: {why}; {knob}. "
            "The exception holds the others in .x, and which failed in .failed",
            counts.failed,
            home(end),
        )
    bad = ~end.isfinite().all(1)
    if bool(bad.any()):
        solver.run(checked(again(), home), z)
        raise SolverError(f"{int(bad.sum())} of {len(z)} samples are not finite; take more steps=", bad, home(end))
    return end, counts


def chunks(
    sde: ScoreSDE, n: int, batch_size: int | None, cost: int = 1, calls: int = 1, held: int = 1
) -> Iterator[tuple[int, int]]:
    """Cut n samples into batches; inside `sharded()`, this rank's share of them.

    Parameters
    ----------
    sde : ScoreSDE
    n : int
        Number of samples.
    batch_size : int or None
        At most so many at once; None chooses by the size of a sample.
    cost : int
        Copies of a sample that are evaluated at once.
    calls : int
        Calls of the network that a batch takes at the least.
    held : int
        States of a sample that are kept.

    Returns
    -------
    iterator of (start, stop)

    Raises
    ------
    TypeError, ValueError
        Unless n and batch_size are positive integers, and the memory and a day are enough for them.

    Examples
    --------
    >>> import scoresde
    >>> list(chunks(scoresde.build("vp", "mlp", shape=(2,)), 10, 4))
    [(0, 4), (4, 8), (8, 10)]
    """
    n = whole("n", n)
    nbytes = float(n) * sde.dim * sde.state_dtype.itemsize * held
    affordable(f"n={n} samples" + f" at {held} times" * (held > 2), nbytes, device=sde.scale.device, hint=LESS)
    if batch_size is not None:
        batch_size = whole("batch_size", batch_size)
    else:
        batch_size = max(1, min(ROWS // cost, NUMBERS // (cost * sde.dim)))
        batch_size = max(BLOCK * (batch_size // BLOCK), min(batch_size, BLOCK))
    size = batch_size
    low, high = share(n)
    affordable(f"{high - low} samples at {calls} calls a batch", calls=calls * -(-(high - low) // size))
    return ((start, min(start + size, high)) for start in range(low, high, size))


def each(
    sde: ScoreSDE,
    n: int,
    batches: Iterator[tuple[int, int]],
    work: Callable[[ScoreSDE, int, int], Sequence[Tensor]],
) -> list[Tensor]:
    """Do the work of every batch and join what comes: the one loop over batches that all verbs share.

    Parameters
    ----------
    sde : ScoreSDE
        Put into eval mode for the time.
    n : int
        Number of samples of the call.
    batches : iterator of (start, stop)
        From `chunks`.
    work : callable (part, start, stop) -> sequence of Tensor (stop − start, …)
        Given the model with the conditions of these samples. It meets no other ranks.

    Returns
    -------
    list of Tensor, shape (n, …)
        Inside `sharded()` those of all ranks, on every rank.

    Raises
    ------
    SolverError
        That of a batch, with `first` set; or that another rank has failed.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("vp", "mlp", shape=(2,))
    >>> each(sde, 10, chunks(sde, 10, 4), lambda part, start, stop: [torch.arange(start, stop)])
    [tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])]
    """
    sde.say_which()
    parts = []
    with evaluating(sde), alone():
        for start, stop in batches:
            with numbered(start, stop, n):
                parts.append(work(sde.rows(start, stop, n), start, stop))
    return gather([torch.cat(column) for column in zip(*parts, strict=True)], n)


@contextlib.contextmanager
def numbered(start: int, stop: int, n: int) -> Iterator[None]:
    """Say of a `SolverError` which samples of a call its batch holds.

    Parameters
    ----------
    start, stop, n : int
        The batch, in a call for n samples.

    Raises
    ------
    SolverError
        The one that came, with `first` set, and the batch named if it is not all.

    Examples
    --------
    >>> with numbered(64, 128, 200):
    ...     raise SolverError("2 of 64 samples are not finite")
    Traceback (most recent call last):
    scoresde.errors.SolverError: 2 of 64 samples are not finite (the batch of samples 64 to 127)
    """
    try:
        yield
    except SolverError as error:
        error.first = start
        if stop - start < n:
            error.args = (f"{error} (the batch of samples {start} to {stop - 1})",)
        raise
