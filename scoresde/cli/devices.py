"""Where a command computes: on a device, or as one of several processes that Accelerate started."""

from __future__ import annotations

import os
from typing import Any

import torch


def launched() -> Any:
    """Return an Accelerator if a launcher asked for several processes or another precision."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not several and os.environ.get("ACCELERATE_MIXED_PRECISION", "no") == "no":
        return None
    try:
        from accelerate import Accelerator
    except ImportError:
        raise ImportError(
            "several processes need Accelerate: pip install 'scoresde[train]'"
        ) from None
    return Accelerator(cpu=not torch.accelerator.is_available())


def find_device(name: str | None) -> torch.device:
    """Return the device of that name; without a name the accelerator, if there is one."""
    default = "cpu"
    if torch.accelerator.is_available():
        default = str(torch.accelerator.current_accelerator())
    known = ["cpu"]
    if default != "cpu":
        known += [f"{default}:{i}" for i in range(torch.accelerator.device_count())]
    name = default if name is None else name
    if name not in {*known, default}:
        raise ValueError(f"device {name!r} can't be used; there are: {', '.join(known)}")
    return torch.device(name)


def place(sde: Any, name: str | None) -> Any:
    """Move a model to the Accelerator's device, or the named one; return the Accelerator."""
    engine = launched()
    device = find_device(name) if engine is None else engine.device
    sde.to(device)
    return engine


def is_main(engine: Any) -> bool:
    """Whether this process writes files and prints."""
    return engine is None or bool(engine.is_main_process)


def say(engine: Any, text: str) -> None:
    """Print a line, once if there are several processes."""
    if is_main(engine):
        print(text)
