"""What training can produce, as rows of a table: what a model can compute, and its solver."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..common.capabilities import CAPABILITIES, RENAMED, Capability
from ..common.names import nearest


@dataclass(frozen=True)
class Outcome:
    """What a training run ends in.

    Attributes
    ----------
    name : str
        A key of `OUTCOMES`.
    capabilities : frozenset of str
        What such a model can compute.
    solver : str
        The solver that `sample` takes if none is named.
    distilled_steps : int, optional
        The only number of steps that a distilled model can take; None for all others.

    Examples
    --------
    >>> sorted(OUTCOMES["flow_map"].capabilities)
    [<Capability.ENDPOINT: 'endpoint'>, <Capability.FLOW_MAP: 'flow_map'>, ...]
    """

    name: str
    capabilities: frozenset[str]
    solver: str
    distilled_steps: int | None = None


_ROWS = (
    Outcome("score", frozenset({Capability.SCORE, Capability.VELOCITY}), "adams"),
    Outcome("velocity", frozenset({Capability.VELOCITY}), "adams"),
    Outcome("endpoint", frozenset({Capability.ENDPOINT}), "consistency"),
    Outcome(
        "flow_map",
        frozenset({Capability.VELOCITY, Capability.ENDPOINT, Capability.FLOW_MAP}),
        "flow_map",
    ),
    Outcome("bridge", frozenset({Capability.VELOCITY, Capability.BRIDGE}), "bridge"),
    Outcome("distilled", frozenset(), "ddim"),
)
OUTCOMES: dict[str, Outcome] = {row.name: row for row in _ROWS}
"""All outcomes by name. `score`: E[x0 | x_t], and so everything. `velocity`: the velocity of pairs
(x0, x1) that depend on one another (reflow, optimal transport) or do not begin in a Gaussian: an
ODE and a likelihood, but no score, as −ε̂/σ is not ∇log p_t. `endpoint`: x0 at the end of the ODE
from x_t (consistency models): samples in few evaluations, no ODE and no likelihood. `flow_map`: the
velocity, and where the ODE is at any later time (MeanFlow). `bridge`: the drifts of the SDEs that
join data and source, and so the velocity between them. `distilled`: the points that k steps of
"ddim" visit, and no more."""

DISTILLED = (
    "this model has learnt the steps of 'ddim' with steps={steps} and spacing='time' that lead to "
    "the data, and no more: sample(sde) takes them by itself"
)


def distilled(steps: int) -> Outcome:
    """The outcome of distillation for a number of steps."""
    return replace(OUTCOMES["distilled"], distilled_steps=steps)


def as_outcome(value: str | Outcome) -> Outcome:
    """An outcome by name, or as it is."""
    if isinstance(value, Outcome):
        return value
    if value in OUTCOMES and value != "distilled":
        return OUTCOMES[value]
    try:
        return from_kind(value)
    except ValueError:
        known = [name for name in OUTCOMES if name != "distilled"]
        raise ValueError(f"unknown outcome {value!r}. {nearest(str(value), known)}") from None


def combined(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of a function of models' outputs, which knows a state and an angle alone.

    A ValueError if they have no capability in common.
    """
    first, *others = outcomes
    has = first.capabilities.intersection(*(one.capabilities for one in others))
    has &= {Capability.SCORE, Capability.VELOCITY, Capability.ENDPOINT}
    if any(Capability.FLOW_MAP in one.capabilities for one in (first, *others)):
        has -= {Capability.ENDPOINT}  # where a flow map ends takes a second time
    if all(one == first for one in others) and has == first.capabilities:
        return first
    for row in OUTCOMES.values():
        if has and row.capabilities == has:
            return row
    names = " and ".join(repr(one.name) for one in (first, *others))
    raise ValueError(f"models with the outcomes {names} have nothing in common to be made one")


def lacking(
    has: frozenset[str], needs: frozenset[str], distilled_steps: int | None = None
) -> str | None:
    """The message on a model that lacks some of the capabilities needed; None if it has all."""
    missing = needs - has
    if not missing:
        return None
    if distilled_steps is not None:
        return DISTILLED.format(steps=distilled_steps)
    if Capability.VELOCITY not in has:
        return CAPABILITIES[Capability.VELOCITY]
    return CAPABILITIES[min(missing)]


_WORDS = {name: word for word, name in RENAMED.items()}


def to_kind(outcome: Outcome) -> str:
    """The word for an outcome in files: "score", "jump", "nodes:2", …"""
    if outcome.distilled_steps is not None:
        return f"nodes:{outcome.distilled_steps}"
    return _WORDS.get(outcome.name, outcome.name)


def from_kind(kind: object) -> Outcome:
    """The outcome for its name in a file."""
    words = {to_kind(row): row for row in OUTCOMES.values() if row.name != "distilled"}
    if isinstance(kind, str):
        name, _, steps = kind.partition(":")
        if name == "nodes" and steps.isdecimal() and 0 < len(steps) < 10 and int(steps):
            return distilled(int(steps))
        if kind in words:
            return words[kind]
    raise ValueError(f"unknown kind={kind!r}. {nearest(str(kind), ['nodes:1', *words])}")
