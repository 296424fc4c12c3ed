"""Warnings that point to the line of the user's code that called into the library."""

from __future__ import annotations

import sys
import warnings

INSIDE = ("scoresde", "torch", "contextlib", "abc")
"""Packages whose frames are passed over."""


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called into the library."""
    frame = sys._getframe(1)
    level = 2
    while frame.f_back is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in INSIDE:
            break
        frame = frame.f_back
        level += 1
    warnings.warn(text, category, stacklevel=level)
