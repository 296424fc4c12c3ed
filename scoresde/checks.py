"""Checks of plain arguments: what came, what was wanted, what to try."""

from __future__ import annotations

import math
import numbers

import numpy as np


def whole(name: str, value: object, least: int = 1) -> int:
    """Return value if it is an integer of at least `least`; raise otherwise.

    Parameters
    ----------
    name : str
        The argument's name.
    value : object
        What the user gave.
    least : int
        The smallest that makes sense.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        For anything but an integer.
    ValueError
        If it is too small.

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
        raise TypeError(f"{name} is an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} is at least {least}, got {value}")
    return int(value)


def flag(name: str, value: object) -> bool:
    """Return value if it is True or False; raise otherwise: "no" and "yes" are both true.

    Parameters
    ----------
    name : str
        The argument's name.
    value : object
        What the user gave.

    Returns
    -------
    bool

    Raises
    ------
    TypeError
        For anything else.

    Examples
    --------
    >>> flag("compile", "yes")
    Traceback (most recent call last):
    TypeError: compile is True or False, got 'yes'
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is True or False, got {value!r}")
    return bool(value)


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
        raise TypeError(f"{name} is a number, got {value!r}")
    real = float(value)
    if not (low <= real <= high if closed else low < real < high) or not math.isfinite(real):
        least = f"at least {low:g}" if closed else f"greater than {low:g}"
        bounds = f"between {low:g} and {high:g}" if high < math.inf else least + " and finite" * (real == math.inf)
        raise ValueError(f"{name} is {bounds}, got {value}" + (f"; {hint}" if hint else ""))
    return real
