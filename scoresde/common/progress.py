"""Progress bars: one for the outermost call, which the loops inside it move.

A loop says which share of its own work is done. A call that runs in parts says which part of the
bar each of them is, so that the loops of a part move the bar within it. What only a device knows is
read when the bar is about to be drawn, at most twice a second, and not at all without a bar.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import numpy as np
from tqdm.auto import tqdm

from .checks import brief_repr
from .sharding import first_rank

P = ParamSpec("P")
T = TypeVar("T")

DELAY_SECONDS = 2.0
"""Calls that take less time have no bar, unless progress=True asks for one."""
INTERVAL_SECONDS = 0.5
"""Between two drawings of a bar, at least."""
TINY_SECONDS = 1e-6
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Bar:
    """A bar from 0 to 1, drawn from `delay` seconds on."""

    def __init__(self, name: str, delay: float) -> None:
        self._name = name
        self._began = time.time()
        self._next = time.monotonic() + delay
        self._drawn: tqdm[Any] | None = None
        self._texts: list[str] = []
        self.low = 0.0
        self.high = 1.0
        self.at = 0.0
        if delay == 0:
            self._draw([])

    def due(self) -> bool:
        """Whether it is time to draw."""
        return time.monotonic() >= self._next

    def move(self, share: float, text: str = "") -> None:
        """Draw the share that is done of the innermost part; a bar never goes back."""
        share = min(max(share, 0.0), 1.0)
        self.at = max(self.at, self.low + (self.high - self.low) * share)
        self._draw([*self._texts, text])

    def _draw(self, texts: list[str]) -> None:
        if self._drawn is None:
            # The delay keeps tqdm from drawing before position and start time are set.
            self._drawn = tqdm(
                total=1.0, desc=self._name, bar_format=FORMAT, mininterval=0, delay=TINY_SECONDS
            )
            self._drawn.start_t = self._began - TINY_SECONDS
        self._drawn.set_postfix_str(", ".join(filter(None, texts)), refresh=False)
        self._drawn.n = self.at
        self._drawn.refresh()
        self._next = time.monotonic() + INTERVAL_SECONDS

    @contextlib.contextmanager
    def part(self, low: float, high: float, text: str) -> Iterator[None]:
        """Let loops inside move the bar from `low` to `high` of the present part."""
        before = self.low, self.high
        width = self.high - self.low
        self.low, self.high = self.low + width * low, self.low + width * high
        self._texts.append(text)
        try:
            yield
            self.at = max(self.at, self.high)
            if self.due():
                self._draw(self._texts)
        finally:
            self._texts.pop()
            self.low, self.high = before

    def close(self) -> None:
        """Leave the last drawing on the screen."""
        if self._drawn is not None:
            if self.at >= 1 - 1e-9:
                self._draw([])
            self._drawn.close()


_BAR: ContextVar[Bar | bool] = ContextVar("bar", default=False)
"""The bar of the outermost call; True if calls inside show none, False if the next may show one."""


def check_progress(value: object) -> bool | None:
    """Return True, False, or None for the default; raise TypeError for anything else."""
    if value is not None and not isinstance(value, bool | np.bool_):
        raise TypeError(f"progress is True, False or None, got {brief_repr(value)}")
    return None if value is None else bool(value)


def _delay(progress: bool | None) -> float | None:
    """After how many seconds a bar is drawn; None for never."""
    stream = sys.stderr
    open_stream = stream is not None and not getattr(stream, "closed", False)
    if not open_stream or not first_rank() or progress is False:
        return None
    if progress:
        return 0.0
    terminal = getattr(stream, "isatty", None)
    return DELAY_SECONDS if terminal is not None and terminal() else None


@contextlib.contextmanager
def bar(name: str, progress: bool | None) -> Iterator[None]:
    """Show a bar for what runs inside, unless a call around it has one or wants none."""
    delay = _delay(progress)
    silent = progress is False or not first_rank()
    if _BAR.get() is not False or (delay is None and not silent):
        yield
        return
    shown = True if delay is None else Bar(name, delay)
    token = _BAR.set(shown)
    try:
        yield
    finally:
        _BAR.reset(token)
        if isinstance(shown, Bar):
            shown.close()


@contextlib.contextmanager
def counted(total: int, name: str, progress: bool | None, done: int = 0) -> Iterator[tqdm[Any]]:
    """Show a bar that the caller moves step by step; calls inside have none."""
    delay = None if _BAR.get() is not False else _delay(progress)
    token = _BAR.set(True)
    try:
        with tqdm(
            total=total,
            initial=done,
            desc=name,
            disable=delay is None,
            delay=delay or 0.0,
            mininterval=INTERVAL_SECONDS,
        ) as made:
            yield made
    finally:
        _BAR.reset(token)


def current() -> Bar | None:
    """The bar to move, if one is shown."""
    found = _BAR.get()
    return found if isinstance(found, Bar) else None


@contextlib.contextmanager
def part(done: float, stop: float, of: float, what: str = "") -> Iterator[None]:
    """Do the work from `done` to `stop` of a total `of`; `what` names a unit of a mere part."""
    shown = current()
    if shown is None:
        yield
        return
    text = "" if not what or stop - done >= of else f"{what} {done:,.0f} of {of:,.0f}"
    with shown.part(done / of, stop / of, text):
        yield


def step(i: int, of: int, what: str = "step") -> None:
    """Say that i steps of a loop are done."""
    shown = current()
    if shown is not None and shown.due():
        shown.move(i / of, f"{what} {i} of {of}")


def shows_progress(verb: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function with `progress=`: loops inside move a bar of its name.

    The function itself need not take the argument, if its **options name it.
    """
    signature = inspect.signature(verb)
    known = "progress" in signature.parameters

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        progress = check_progress(kwargs.get("progress"))
        if not known:
            kwargs.pop("progress", None)
        with bar(verb.__name__, progress):
            return verb(*args, **kwargs)

    if not known:
        added = inspect.Parameter(
            "progress",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation="bool | None",
        )
        *first, options = signature.parameters.values()
        call.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*first, added, options]
        )
    return call
