"""Checks of plain arguments: what came, what was wanted, what to try."""

from __future__ import annotations

import math
import numbers
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

LARGEST = 2**63 - 1  # that an index, or a seed of torch's, holds
DAY = 86_400.0  # seconds
CALL = 1e-5  # seconds that a call of a network takes at the least: none is that fast
MEMORY = 2**50  # bytes, where a system doesn't say how many it has
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def whole(name: str, value: object, least: int = 1, most: int = LARGEST) -> int:
    """Return value as an int if it is an integer from `least` to `most`; raise otherwise.

    Parameters
    ----------
    name : str
        The argument's name.
    value : object
        What the user gave.
    least, most : int
        The smallest and the largest that make sense.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        For anything but an integer.
    ValueError
        If it is too small or too large.

    Examples
    --------
    >>> whole("steps", 2.5)
    Traceback (most recent call last):
    TypeError: steps is an integer, got 2.5
    >>> whole("steps", 0)
    Traceback (most recent call last):
    ValueError: steps is at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is an integer, got {said(value)}")
    value = int(value)
    if value < least:
        raise ValueError(f"{name} is at least {least}, got {said(value)}")
    if value > most:
        bound = "below 2^63" if most == LARGEST else f"at most {most}"
        raise ValueError(f"{name} is {bound}, got {said(value)}")
    return value


def number(name: str, value: object, low: float, high: float, *, closed: bool = False, hint: str = "") -> float:
    """Return value if it is a number between low and high (exclusive unless closed); raise otherwise.

    Parameters
    ----------
    name : str
        The argument's name.
    value : object
        What the user gave.
    low, high : float
        Bounds.
    closed : bool
        Whether the bounds themselves are allowed.
    hint : str
        What to try.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        For anything but a number.
    ValueError
        If it is out of bounds.

    Examples
    --------
    >>> number("rtol", -1.0, 0, math.inf, hint="try 1e-5")
    Traceback (most recent call last):
    ValueError: rtol is greater than 0, got -1.0; try 1e-5
    >>> number("eta", 2, 0, 1, closed=True)
    Traceback (most recent call last):
    ValueError: eta is between 0 and 1, got 2
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a number, got {said(value)}")
    try:
        real = float(value)
    except OverflowError:
        raise ValueError(f"{name} is a number that a float can hold, got {said(value)}") from None
    if not (low <= real <= high if closed else low < real < high) or not math.isfinite(real):
        if high < math.inf:
            bounds = f"between {low:g} and {high:g}"
        elif low == -math.inf:
            bounds = "finite"
        else:
            bounds = (f"at least {low:g}" if closed else f"greater than {low:g}") + " and finite" * (real == math.inf)
        raise ValueError(f"{name} is {bounds}, got {said(value, str)}" + (f"; {hint}" if hint else ""))
    return real


def said(value: object, how: Callable[[object], str] = repr) -> str:
    """Return a value for a message: on one line, and short."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**24:
        return f"{'−' * (value < 0)}10^{math.log10(abs(value)):.0f}"
    try:
        text = " ".join(how(value).split())
    except Exception:  # a repr of the user's that fails must not hide what is wrong
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:79]}…"


def size(count: float) -> str:
    """Return a number of bytes as people read it, such as '7.5 TiB'."""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.3g} {unit}"


def memory(device: torch.device | str = "cpu") -> float:
    """Return the bytes of memory that a device has: all of it, in use or not."""
    device = torch.device(device)
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        found = float(os.sysconf("SC_PAGE_SIZE")) * float(os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return MEMORY
    return found if found > 0 else MEMORY


def affordable(
    what: str,
    nbytes: float = 0,
    *,
    calls: float = 0,
    device: torch.device | str = "cpu",
    disk: Path | None = None,
    hint: str = "take fewer",
) -> None:
    """Raise ValueError for what no run can hold or end: more bytes than the memory, or calls that last more than a day.

    With `disk`, a path, the bytes are to be written there. The estimates are lower bounds, a call counting as 10 µs, so
    that nothing is refused that could have worked.
    """
    where = "this machine" if torch.device(device).type == "cpu" else f"device {device}"
    if disk is None:
        has, kind = memory(device), "memory"
    else:
        there = next(folder for folder in (disk.absolute(), *disk.absolute().parents) if folder.exists())
        has, kind, where = float(shutil.disk_usage(there).total), "disk space", str(disk)
    if nbytes > has:
        raise ValueError(f"{what} take at least {size(nbytes)} of {kind}, and {where} has {size(has)}; {hint}")
    if calls * CALL > DAY:
        raise ValueError(f"{what} take at least {calls * CALL / DAY:,.0f} days, at {CALL * 1e6:.0f} µs a call; {hint}")


def as_path(value: object, what: str) -> Path:
    """Return a path if value is one: text, or an os.PathLike that stands for text; raise otherwise."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        hint = ", got bytes; write os.fsdecode(path)" if isinstance(path, bytes) else f", got {type(path).__name__}"
        raise TypeError(f"{what} is a path{hint}")
    if not path:
        raise ValueError(f"{what} is the path of a folder or file, got ''; '.' is this one")
    if "\0" in path:
        raise ValueError(f"{what} is a path, got {said(path)}, which has a NUL character in it")
    if max(map(len, Path(path).parts), default=0) > 255:
        raise ValueError(f"{what} is a path, got {said(path)}, in which a name has more than 255 characters")
    return Path(path)


def check_generator(generator: object) -> None:
    """Raise TypeError unless generator is a torch.Generator or None.

    Examples
    --------
    >>> check_generator(0)
    Traceback (most recent call last):
    TypeError: generator is a torch.Generator, got int; write torch.Generator().manual_seed(0)
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        hint = generator if isinstance(generator, int) and 0 <= generator <= LARGEST else 0
        raise TypeError(
            f"generator is a torch.Generator, got {type(generator).__name__}; write torch.Generator().manual_seed({int(hint)})"
        )


def check_seed(seed: object) -> int:
    """Return a seed if it is one that generators take, 0 ≤ seed < 2⁶³; raise otherwise."""
    return whole("seed", seed, 0)


def flag(name: str, value: object) -> bool:
    """Return value if it is True or False (numpy's will do); raise otherwise.

    Examples
    --------
    >>> flag("project", "no")
    Traceback (most recent call last):
    TypeError: project is True or False, got 'no'
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is True or False, got {said(value)}")
    return bool(value)
