"""What a network can have learnt, as rows of a table: what it serves, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..common.capabilities import Capability
from ..common.names import nearest


@dataclass(frozen=True)
class Outcome:
    """What a training run ends in.

    Attributes
    ----------
    name : str
        A key of `OUTCOMES`.
    capabilities : frozenset of Capability
        What such a model serves.
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
    capabilities: frozenset[Capability]
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

MISSING = {
    Capability.SCORE: (
        "this model has no score, only a velocity: it learnt from coupled pairs, or another task; "
        "try solver='adams'"
    ),
    Capability.VELOCITY: (
        "this model has learnt where the ODE ends, not its velocity: it has samples, "
        "sample(sde, steps=1), and no more"
    ),
    Capability.ENDPOINT: (
        "this model has learnt a velocity, not where it leads: that takes "
        "fit(sde, data, objective='consistency')"
    ),
    Capability.FLOW_MAP: (
        "this model has no flow map: that takes a two-time network and "
        "fit(sde, data, objective='meanflow')"
    ),
    Capability.BRIDGE: (
        "this model is no Schrödinger bridge: that takes build('bridge', 'two_drifts', ...), "
        "a source, and fit(sde, data)"
    ),
}
"""The message on a model that lacks a capability, with the way to one that has it."""

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


def lacking(outcome: Outcome, needs: frozenset[Capability]) -> str | None:
    """The message on an outcome that does not serve all that is needed; None if it does."""
    missing = needs - outcome.capabilities
    if not missing:
        return None
    if outcome.distilled_steps is not None:
        return DISTILLED.format(steps=outcome.distilled_steps)
    if Capability.VELOCITY not in outcome.capabilities:
        return MISSING[Capability.VELOCITY]
    return MISSING[min(missing)]


_OLD_NAMES = {"endpoint": "jump", "flow_map": "map"}


def to_kind(outcome: Outcome) -> str:
    """The word for an outcome in files: "score", "jump", "nodes:2", …"""
    if outcome.distilled_steps is not None:
        return f"nodes:{outcome.distilled_steps}"
    return _OLD_NAMES.get(outcome.name, outcome.name)


def from_kind(kind: object) -> Outcome:
    """The outcome that a word of files stands for."""
    words = {to_kind(row): row for row in OUTCOMES.values() if row.name != "distilled"}
    if isinstance(kind, str):
        name, _, steps = kind.partition(":")
        if name == "nodes" and steps.isdecimal() and 0 < len(steps) < 10 and int(steps):
            return distilled(int(steps))
        if kind in words:
            return words[kind]
    raise ValueError(f"unknown kind={kind!r}. {nearest(str(kind), ['nodes:1', *words])}")
