"""Models in eval mode while a verb such as `sample` runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from .protocol import Model

_MODES = threading.Lock()


@contextlib.contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Put a model into eval mode, and each of its modules back into its mode at the end."""
    with contextlib.ExitStack() as stack:
        for sde in model._evaluated():
            stack.enter_context(_evaluating(sde))
        yield


@contextlib.contextmanager
def _evaluating(sde: Any) -> Iterator[None]:
    """The same for one trained model; of several threads, the last to leave restores the modes."""
    held = sde.net.__dict__
    with _MODES:
        training = [m for m in sde.modules() if m.training]
        users, training = held.get("_evaluating", (0, training))
        held["_evaluating"] = users + 1, training
        sde.eval()
    try:
        yield
    finally:
        with _MODES:
            users, training = held.pop("_evaluating")
            if users > 1:
                held["_evaluating"] = users - 1, training
            else:
                for module in training:
                    module.training = True
