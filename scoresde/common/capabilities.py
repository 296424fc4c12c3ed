"""What a model can serve, and what a solver needs of one: the vocabulary that both share."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from .names import choose


class Capability(enum.StrEnum):
    """One thing that a model may know of its law. A name in lower case stands for a member."""

    SCORE = "score"
    """∇log p_t(x), and so E[x0 | x_t]: the reverse SDE."""
    VELOCITY = "velocity"
    """dx/dt of an ODE from noise to data: samples and a likelihood."""
    ENDPOINT = "endpoint"
    """Where the ODE from x_t ends: samples in one evaluation."""
    FLOW_MAP = "flow_map"
    """Where the ODE from x_t is at any later time."""
    BRIDGE = "bridge"
    """The two drifts of an SDE between data and a source."""


def capabilities(names: Iterable[str]) -> frozenset[Capability]:
    """A set of capabilities, from members or their names."""
    members = [str(member) for member in Capability]
    return frozenset(Capability(choose("capability", str(name), members)) for name in names)
