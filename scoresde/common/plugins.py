"""Plug-ins: entry points of installed packages, found by name, and imported on demand."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

_IMPORTS_ALLOWED: ContextVar[bool] = ContextVar("_IMPORTS_ALLOWED", default=True)


@contextlib.contextmanager
def loaded_only() -> Iterator[None]:
    """Let registries build only what is imported already; a context manager and a decorator."""
    token = _IMPORTS_ALLOWED.set(False)
    try:
        yield
    finally:
        _IMPORTS_ALLOWED.reset(token)


def may_import() -> bool:
    """Whether a name may choose what is imported: not within `loaded_only`."""
    return _IMPORTS_ALLOWED.get()


def plugin_names(table: str) -> set[str]:
    """Names of a table's plug-ins; none of them is imported."""
    return {entry.name for entry in importlib.metadata.entry_points(group=table.lower())}


def load_plugin(table: str, kind: str, name: str) -> tuple[Any, str] | None:
    """Import a table's plug-in; return it and the name of its package, or None if there is none."""
    entries = importlib.metadata.entry_points(group=table.lower())
    found = {entry.value: entry for entry in entries if entry.name == name}
    if not found:
        return None
    owners = {entry.dist.name if entry.dist else value for value, entry in found.items()}
    packages = " and ".join(sorted(owners))
    first = next(iter(found.values()))
    if not may_import() and any(entry.module not in sys.modules for entry in found.values()):
        raise ValueError(
            f"the {kind} {name!r} is a plug-in of {packages}, and files import nothing: import "
            f"{first.module} first (scoresde --import {first.module})"
        )
    if len(found) > 1:
        raise ValueError(
            f"there are {len(found)} plug-ins for the {kind} {name!r}, of {packages}: uninstall "
            "all but one"
        )
    try:
        return first.load(), packages
    except Exception as error:
        raise ImportError(
            f"the {kind} {name!r} is a plug-in of {packages}, which failed to import: "
            f"{type(error).__name__}: {error}"
        ) from error
