"""Keywords of `fit`, in a module that processes started by a test find too: not in a conftest."""

from __future__ import annotations

from typing import Any

import scoresde


def fit_keywords(
    *,
    out: Any = None,
    every: int = 500,
    resume: bool = False,
    validation: Any = None,
    patience: int | None = None,
    snapshots: int = 0,
    ema: float = 700,
    weight: str = "edm",
    noise: str | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Keywords of `fit` for runs that validate as often as they write checkpoints."""
    if validation is not None:
        parts = validation if isinstance(validation, tuple) else (validation,)
        validation = scoresde.Validation(*parts, every=every, patience=patience)
    if (weight, noise) != ("edm", None):
        others["objective"] = scoresde.Denoising(weight, noise)
    if out is not None:
        others["checkpoints"] = scoresde.Checkpoints(out, every, resume)
    return {**others, "validation": validation, "ema": scoresde.Averaging(ema, snapshots)}
