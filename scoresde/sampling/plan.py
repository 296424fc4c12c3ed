"""From the arguments of a call to a plan: names and numbers, resolved and checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..common.checks import brief_repr, check_budget, whole_number
from ..common.inputs import as_reals
from ..common.names import FOREIGN_ARGUMENTS, choose
from ..common.user_warnings import warn
from ..model.outcomes import DISTILLED
from ..model.protocol import Model
from ..processes.spacings import SPACINGS, grid
from ..solvers import SOLVERS, Solver

LEVEL_BYTES = 240.0
"""Bytes that one level of a grid takes, at least."""

SAME_TIME = 1e-6
"""How far a time may lie from a step of a distilled model and still be that step."""


@dataclass(frozen=True)
class Plan:
    """How to solve: the solver, and the times that it visits."""

    solver: Solver
    times: Tensor  # (N + 1,), float64
    adaptive: bool
    keep: tuple[int, ...] = field(default=())  # which of the times the user asked for


def plan(
    sde: Model,
    solver: str | Solver | None,
    steps: int | None,
    spacing: str | None,
    options: dict[str, Any],
    *,
    times: Sequence[float] | Tensor | None = None,
    forward: bool = False,
    started: bool = False,
) -> Plan:
    """Resolve names and check every argument that says how to solve.

    From states of the user's, `started`, times may begin below 1.
    """
    if solver is None:
        solver = sde.default_solver
    method, named = _resolve_solver(solver, options)
    if steps is None:
        method = _raise_tolerances(method, named, tolerance(sde))
    if steps is None and solver == "adams" and not {"rtol", "atol"} & set(named):
        steps = sde.ode_steps
    wanted = _wanted_times(times, forward, started)
    _check_begin(sde, float(wanted[0]))
    if spacing is not None:
        choose("spacing", spacing, SPACINGS)
    if sde.distilled_steps is not None:
        steps = _distilled_steps(sde, method, steps, spacing, wanted, forward)
    else:
        _check_needs(sde, method)
    if steps is None:
        steps = method.steps
    else:
        for name in method.tolerances:
            if name in options:
                raise ValueError(
                    f"{name}= has no effect together with steps=, which fixes the grid; give one "
                    "or the other"
                )
        steps = whole_number("steps", steps)
    if steps is None:
        if spacing is not None:
            raise ValueError(
                f"spacing={spacing!r} places a fixed number of steps: give steps= too"
            )
        nodes = wanted
    else:
        check_budget(f"steps={steps}", LEVEL_BYTES * steps, calls=steps)
        nodes = _grid(sde, steps, spacing or method.spacing, wanted)
    last = len(nodes) - 1
    keep = (0, *(int((nodes - t).abs().argmin()) for t in wanted[1:-1]), last)
    if forward:
        nodes = nodes.flip(0)
        keep = tuple(last - k for k in reversed(keep))
    return Plan(method, nodes, steps is None, keep)


def _resolve_solver(
    solver: str | Solver, options: dict[str, Any]
) -> tuple[Solver, Collection[str]]:
    """The solver, built with its options, and the names of the options that the user chose."""
    if isinstance(solver, str):
        return SOLVERS.build(solver, **options), set(options)
    if not isinstance(solver, Solver):
        raise TypeError(f"solver is a name or a Solver object, got {type(solver).__name__}")
    if not options:
        return solver, set(solver.tolerances)
    for name in options:
        if name in FOREIGN_ARGUMENTS:
            raise TypeError(f"there is no {name}=: {FOREIGN_ARGUMENTS[name]}")
    raise TypeError(
        f"options {sorted(options)} go with a solver's name; give them to the "
        f"{type(solver).__name__} itself"
    )


def network_dtypes(sde: Model) -> set[torch.dtype]:
    """The floating-point types of the network's weights."""
    return {
        p.dtype
        for net in sde.networks(raw=True)
        for p in net.parameters()
        if p.is_floating_point()
    }


def tolerance(sde: Model) -> float:
    """The least tolerance worth asking for: a tenth of the rounding of half precision, or 0."""
    # Below it a solver takes rounding for curvature: evaluations rise, and errors stay. With
    # "adams", an MLP in bfloat16 takes 340 evaluations a sample at 1e-5, and 32 at this tolerance,
    # with errors of 2.4e-3 and 3.3e-3.
    coarsest = max((torch.finfo(dtype).eps for dtype in network_dtypes(sde)), default=0.0)
    return 0.1 * coarsest if coarsest > torch.finfo(torch.float32).eps else 0.0


def _raise_tolerances(solver: Solver, named: Collection[str], least: float) -> Solver:
    """The solver with default tolerances raised to `least`; warn of smaller named ones."""
    for name in {"rtol", "atol"} & set(solver.tolerances):
        value = getattr(solver, name)
        if value >= least:
            continue
        if name in named:
            warn(
                f"{name}={value:g} asks for more than this network's half precision resolves, "
                f"about {least:.0e}: "
                f"evaluations rise, errors do not fall; leave {name}= out, or make the network "
                ".float()",
            )
        else:
            solver = copy.copy(solver)
            object.__setattr__(solver, name, least)
    return solver


def _check_needs(sde: Model, solver: Solver) -> None:
    """Raise unless the model has what the solver, and each solver that it calls, needs."""
    sde.require(*solver.all_needs)


def _distilled_steps(
    sde: Model,
    solver: Solver,
    steps: int | None,
    spacing: str | None,
    wanted: Tensor,
    forward: bool,
) -> int:
    """The number of steps of a distilled model, whose network knows no other noise levels."""
    k = sde.distilled_steps
    assert k is not None
    expected = (
        solver == SOLVERS.build(sde.default_solver)
        and steps in (None, k)
        and spacing in (None, "time")
        and not forward
        and bool(wanted[0] == 1)
    )
    if not expected or bool(((wanted * k).round() / k - wanted).abs().max() > SAME_TIME):
        raise ValueError(DISTILLED.format(steps=k))
    return k


def _grid(sde: Model, steps: int, spacing: str, wanted: Tensor) -> Tensor:
    """The times of a fixed number of steps, with the wanted times among them."""
    begin = float(wanted[0])
    if (len(wanted) > 2 or begin < 1) and spacing == "ddpm":
        raise ValueError(
            "times= can't join spacing='ddpm', whose levels are discrete; leave one out"
        )
    nodes = grid(sde.process, steps, spacing, begin)
    if sde.phi_min > sde.process.phi_min:
        # Levels below the model's lowest would all stand for that one.
        ends = (nodes == begin) | (nodes == 0)
        nodes = nodes[(sde.process.phi(nodes) > 1.5 * sde.phi_min) | ends]
    return _insert_times(nodes, wanted[1:-1], sde.process.phi)


def _insert_times(nodes: Tensor, wanted: Tensor, phi: Callable[[Tensor], Tensor]) -> Tensor:
    """Move the nearest node to each wanted time, or add a node if that one is taken or far away."""
    # An added node close to another costs an evaluation and spoils methods that remember steps.
    if not len(wanted):
        return nodes
    times = nodes.clone()
    taken = {0, len(nodes) - 1}
    added = []
    angles = phi(nodes)
    for time, angle in zip(wanted, phi(wanted), strict=True):
        j = int((angles - angle).abs().argmin())
        gap = float((angles[max(j - 1, 0) : j + 2].diff()).abs().max())
        if j in taken or abs(float(angles[j] - angle)) > 0.5 * gap:
            added.append(time.reshape(1))
        else:
            taken.add(j)
            times[j] = time
    return torch.cat([times, *added]).sort(descending=True).values


def starts_at_data(times: Sequence[float] | Tensor | None) -> bool:
    """Whether the times begin at the data, t = 0, so that the solve runs to noise."""
    return times is not None and bool((_as_times(times).flatten()[:1] == 0).any())


def _as_times(times: Sequence[float] | Tensor) -> Tensor:
    """The times as float64 on the CPU."""
    try:
        return as_reals(times, "times").to("cpu", torch.float64)
    except (TypeError, ValueError):
        raise TypeError(f"times is a sequence of numbers, got {brief_repr(times)}") from None


def _wanted_times(times: Sequence[float] | Tensor | None, forward: bool, started: bool) -> Tensor:
    """The times at which the user wants states, from noise to data in both directions."""
    if times is None:
        return torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu")
    wanted = _as_times(times)
    if forward and wanted.ndim == 1:
        wanted = wanted.flip(0)
    downwards = (
        wanted.ndim == 1
        and len(wanted) >= 2
        and bool((wanted[1:] < wanted[:-1]).all())
        and bool(wanted[-1] == 0)
    )
    begins = downwards and (0 < float(wanted[0]) <= 1 if started else float(wanted[0]) == 1)
    if not begins:
        way = "decrease from 1 (noise) to 0 (data)"
        if forward:
            way = "increase from 0 (data) to 1 (noise), or a time below"
        elif started:
            way = "decrease from the time of start, in (0, 1], to 0 (data)"
        elif downwards and 0 < wanted[0] < 1:
            way += ", and begin below 1 with start= alone, the states x_t there"
        raise ValueError(f"times {way}, at least those two; got {brief_repr(times)}")
    return wanted


def _check_begin(sde: Model, begin: float) -> None:
    """Raise if no noise lies between a time and the data, so that a solve had no steps."""
    if begin < 1 and float(sde.process.phi(begin)) <= sde.phi_min:
        raise ValueError(
            f"at t = {begin:g} the noise is at its least already, so nothing is left to solve: "
            "take a larger time"
        )
