"""Checks of plain arguments. Each message says what came, what was wanted, and what to try."""

from __future__ import annotations

import math
import numbers
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

LARGEST = 2**63 - 1
"""The largest index, or seed, of PyTorch."""
DAY_SECONDS = 86_400.0
CALL_SECONDS = 1e-5
"""Seconds that a call of a network takes at least."""
UNKNOWN_MEMORY_BYTES = 2**50
"""Memory of a system that does not say how much it has."""
BYTE_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
LONGEST_REPR = 80
LONGEST_FILE_NAME = 255


def whole_number(name: str, value: object, least: int = 1, most: int = LARGEST) -> int:
    """Return an integer from `least` to `most` as an int; raise for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is an integer, got {brief_repr(value)}")
    value = int(value)
    if value < least:
        raise ValueError(f"{name} is at least {least}, got {brief_repr(value)}")
    if value > most:
        bound = "below 2^63" if most == LARGEST else f"at most {most}"
        raise ValueError(f"{name} is {bound}, got {brief_repr(value)}")
    return value


def real_number(
    name: str, value: object, low: float, high: float, *, closed: bool = False, hint: str = ""
) -> float:
    """Return a number between low and high, both excluded unless `closed`; raise otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a number, got {brief_repr(value)}")
    try:
        real = float(value)
    except OverflowError:
        raise ValueError(
            f"{name} is a number that a float can hold, got {brief_repr(value)}"
        ) from None
    inside = low <= real <= high if closed else low < real < high
    if inside and math.isfinite(real):
        return real
    if high < math.inf:
        bounds = f"between {low:g} and {high:g}"
    elif low == -math.inf:
        bounds = "finite"
    else:
        bounds = f"at least {low:g}" if closed else f"greater than {low:g}"
        if real == math.inf:
            bounds += " and finite"
    advice = f"; {hint}" if hint else ""
    raise ValueError(f"{name} is {bounds}, got {brief_repr(value, str)}{advice}")


def true_or_false(name: str, value: object) -> bool:
    """Return True or False, also numpy's, as a bool; raise otherwise."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is True or False, got {brief_repr(value)}")
    return bool(value)


def brief_repr(value: object, how: Callable[[object], str] = repr) -> str:
    """A value for a message: on one line, and short."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**24:
        sign = "−" if value < 0 else ""
        return f"{sign}10^{math.log10(abs(value)):.0f}"
    try:
        text = " ".join(how(value).split())
    except Exception:  # a user's repr that fails must not hide what is wrong
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_REPR else f"{text[: LONGEST_REPR - 1]}…"


def format_bytes(count: float) -> str:
    """A number of bytes as people read it, such as '7.5 TiB'."""
    for unit in BYTE_UNITS:
        if count < 1000 or unit == BYTE_UNITS[-1]:
            break
        count /= 1024
    return f"{count:.3g} {unit}"


def device_memory(device: torch.device | str = "cpu") -> float:
    """All bytes of memory of a device, in use or not."""
    device = torch.device(device)
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        found = float(os.sysconf("SC_PAGE_SIZE")) * float(os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return UNKNOWN_MEMORY_BYTES
    return found if found > 0 else UNKNOWN_MEMORY_BYTES


def check_budget(
    what: str,
    nbytes: float = 0,
    *,
    calls: float = 0,
    device: torch.device | str = "cpu",
    disk: Path | None = None,
    hint: str = "take fewer",
) -> None:
    """Raise ValueError for more bytes than a device or disk has, or calls that last over a day."""
    if disk is not None:
        parents = (disk.absolute(), *disk.absolute().parents)
        existing = next(folder for folder in parents if folder.exists())
        has = float(shutil.disk_usage(existing).total)
        kind = "disk space"
        where = str(disk)
    else:
        has = device_memory(device)
        kind = "memory"
        where = "this machine" if torch.device(device).type == "cpu" else f"device {device}"
    if nbytes > has:
        raise ValueError(
            f"{what} take at least {format_bytes(nbytes)} of {kind}, and {where} has "
            f"{format_bytes(has)}; {hint}"
        )
    if calls * CALL_SECONDS > DAY_SECONDS:
        days = calls * CALL_SECONDS / DAY_SECONDS
        raise ValueError(
            f"{what} take at least {days:,.0f} days, at {CALL_SECONDS * 1e6:.0f} µs a call; {hint}"
        )


def as_path(value: object, what: str) -> Path:
    """Return text, or an os.PathLike that stands for text, as a path; raise otherwise."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(path, bytes):
        raise TypeError(f"{what} is a path, got bytes; write os.fsdecode(path)")
    if not isinstance(path, str):
        raise TypeError(f"{what} is a path, got {type(path).__name__}")
    if not path:
        raise ValueError(f"{what} is the path of a folder or file, got ''; '.' is this one")
    if "\0" in path:
        raise ValueError(
            f"{what} is a path, got {brief_repr(path)}, which has a NUL character in it"
        )
    if max(map(len, Path(path).parts), default=0) > LONGEST_FILE_NAME:
        raise ValueError(
            f"{what} is a path, got {brief_repr(path)}, in which a name has more than "
            f"{LONGEST_FILE_NAME} characters"
        )
    return Path(path)


def check_generator(generator: object) -> None:
    """Raise TypeError unless generator is a torch.Generator or None."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    seed = 0
    if isinstance(generator, int) and 0 <= generator <= LARGEST:
        seed = int(generator)
    raise TypeError(
        f"generator is a torch.Generator, got {type(generator).__name__}; write seed={seed}"
    )


def check_seed(seed: object) -> int:
    """Return a seed of generators, 0 ≤ seed < 2⁶³; raise otherwise."""
    return whole_number("seed", seed, 0)
