"""A posterior written to a folder: the model's record, and one of the coordinates and the prior."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..storage import records
from ..storage.lock import Lock
from ..storage.models import save

NAME = "posterior"
"""Name of the record."""


def save_posterior(
    posterior: Any,
    folder: str | os.PathLike[str],
) -> Path:
    """Write both records; the model first, for its errors."""
    folder = save(posterior.sde, folder)
    coordinates = posterior.coordinates
    about = {
        "prior": posterior._prior.describe(),
        "condition": posterior.condition,
        "transformed": coordinates is not None,
        "surrogate_pairs": posterior.surrogate_pairs,
    }
    if posterior._names is not None:
        about["schema"] = posterior._names.describe()
    numbers = {} if coordinates is None else coordinates.numbers
    with Lock(folder):
        records.write(folder, NAME, numbers, about)
        records.sweep(folder)
    return folder
