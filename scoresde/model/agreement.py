"""Whether models go together, as those that one model is made from must."""

from __future__ import annotations

import torch

from .frames import listed
from .protocol import Model


def difference(first: Model, other: Model) -> str | None:
    """What another model has that the first has not, in words; None if they go together."""
    if other is first:
        return None
    if repr(first.process) != repr(other.process) and first.process != other.process:
        return f"the process {other.process!r}, not {first.process!r}"
    if first.shape != other.shape:
        return f"the shape {other.shape}, not {first.shape}"
    if (first.source is None) != (other.source is None):
        return f"the source {other.source!r}, not {first.source!r}"
    ours, theirs = first.schema.columns, other.schema.columns
    if ours and theirs and ours != theirs:
        return f"the columns {listed(theirs)}, not {listed(ours)}"
    for name in ("mean", "scale"):
        a, b = (getattr(model, name).detach().cpu().double() for model in (first, other))
        slack = 1e-6 * first.scale.detach().cpu().double()
        if bool(((a - b).abs() > slack).any()):
            return f"another {name} of the data; fit both to the same data"
    a, b = (m.standardization.directions.cpu().double() for m in (first, other))
    if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=1e-6):
        return "other correlations of the data; fit both to the same data"
    return None
