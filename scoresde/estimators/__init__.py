"""Score models as scikit-learn estimators: `ScoreDensity` and `ConditionalScoreDensity`.

They need scikit-learn, which is imported when one of them is first asked for:
`pip install 'scoresde[sklearn]'`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conditional import ConditionalScoreDensity
    from .unconditional import ScoreDensity

__all__ = ["ConditionalScoreDensity", "ScoreDensity"]

_HOMES = {"ConditionalScoreDensity": "conditional", "ScoreDensity": "unconditional"}


def __getattr__(name: str) -> Any:
    """Import an estimator, and scikit-learn with it, on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    except ImportError as error:
        if not str(error.name).startswith("sklearn"):
            raise
        raise ImportError(
            f"{name} needs scikit-learn 1.6 or newer: pip install 'scoresde[sklearn]' ({error})"
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
