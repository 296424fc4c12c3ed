"""What a model can compute, and what a solver requires of it: the vocabulary of both."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any

from .names import choose


class Capability(enum.StrEnum):
    """Something that a model can compute. A name in lower case can replace a member."""

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
    MEASUREMENT = "measurement"
    """A prior, and what was measured of a sample by a linear map."""
    VARIANCE = "variance"
    """The variance of reverse steps, beside the velocity."""


CAPABILITIES: dict[str, str] = {
    "score": (
        "this model has no score, only a velocity: it learnt from coupled pairs, or another task; "
        "try solver='adams'"
    ),
    "velocity": (
        "this model has learnt where the ODE ends, not its velocity: it has samples, "
        "sample(sde, steps=1), and no more"
    ),
    "endpoint": (
        "this model has learnt a velocity, not where it leads: that takes "
        "fit(sde, data, objective='consistency')"
    ),
    "flow_map": (
        "this model has no flow map: that takes a two-time network and "
        "fit(sde, data, objective='meanflow')"
    ),
    "bridge": (
        "this model is no Schrödinger bridge: that takes build('bridge', 'two_drifts', ...), "
        "a source, and fit(sde, data)"
    ),
    "measurement": (
        "this solver takes a model of which something was measured by a linear map: "
        "scoresde.observe(sde, measurement, y) with measurements.Inpaint, Blur, Linear or another "
        "linear one; scoresde.particles takes all measurements"
    ),
    "variance": (
        "this model has not learnt the variance of reverse steps: that takes "
        "build(..., variance='learned') and fit(sde, data); guided and combined models have none"
    ),
}
"""All capabilities by name, with the message on a model that lacks it. An entry adds one, which a
solver may need and a model may serve: what it gives is the model's method `<name>_fn`.
"""


FIELDS: dict[str, Callable[[Any], Callable[..., Any]]] = {}
"""Capabilities that every model with a velocity has, by name, as they follow from it. An entry
`make` gets the model, and make(model) is a function of (z, φ, rows) like `velocity_fn()`, whose
result has one row a sample, of any width.
"""

RENAMED = {"jump": "endpoint", "map": "flow_map"}
"""Old names of capabilities, and words of files for the outcomes of the same names."""


def capabilities(names: Iterable[str]) -> frozenset[str]:
    """A set of capabilities, from members or names; ValueError for one that is not in the table."""
    known = {**CAPABILITIES, **FIELDS}
    return frozenset(choose("capability", str(name), known) for name in names)
