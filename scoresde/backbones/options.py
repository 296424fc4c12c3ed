"""Checks of what backbones are built with, beside those of `scoresde.checks`: lists of integers, and yes or no."""

from __future__ import annotations

from collections.abc import Sequence

from ..checks import said, whole

MOST = 64  # entries of a list; files, too, say what to build


def wholes(name: str, values: object, example: str) -> list[int]:
    """Return values if they are a list or tuple of positive integers; raise otherwise.

    Parameters
    ----------
    name : str
        The option's name.
    values : object
        What the user gave.
    example : str
        What would do, for messages.

    Returns
    -------
    list of int

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        For integers below 1, or too many of them.

    Examples
    --------
    >>> wholes("attention", 16, "(16,)")
    Traceback (most recent call last):
    TypeError: attention is a list or tuple of integers such as (16,), got 16
    """
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TypeError(f"{name} is a list or tuple of integers such as {example}, got {said(values)}")
    if len(values) > MOST:
        raise ValueError(f"{name} has {len(values)} entries, at most {MOST} make sense; try {example}")
    return [whole(name, value) for value in values]
