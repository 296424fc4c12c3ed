"""Errors of the user's data while they are read: which batch and row, and what went wrong."""

from __future__ import annotations

import contextlib
import itertools
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from ..common.errors import TrainingError

_FETCH = "torch/utils/data/_utils/fetch.py"
"""Where PyTorch asks a dataset for rows."""
_NAMED_ROWS = 8


def error_text(error: BaseException) -> str:
    """Type and message on one line; of a DataLoader's worker, its own last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def requested_rows(trace: TracebackType | None) -> str | None:
    """Which rows of a dataset a DataLoader was fetching when it failed; None if it was not."""
    found = None
    while trace is not None:
        frame = trace.tb_frame
        trace = trace.tb_next
        if not frame.f_code.co_filename.replace("\\", "/").endswith(_FETCH):
            continue
        held = frame.f_locals
        if "idx" in held:
            found = f"row {held['idx']}"
        elif "possibly_batched_index" in held and not hasattr(held.get("self"), "dataset_iter"):
            rows = held["possibly_batched_index"]
            rows = list(rows) if isinstance(rows, list | tuple) else [rows]
            rows = _argument_among(rows, trace) or rows
            found = "row" if len(rows) == 1 else "rows"
            found += f" {', '.join(map(str, rows[:_NAMED_ROWS]))}"
            if len(rows) > _NAMED_ROWS:
                found += ", …"
    return found


def _argument_among(rows: list[Any], trace: TracebackType | None) -> list[Any]:
    """The row that the next call was asked for, if it has an argument that is one of the rows.

    Since Python 3.12 comprehensions have no frame of their own, which would name it.
    """
    if trace is None:
        return []
    code = trace.tb_frame.f_code
    values = [trace.tb_frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]]
    return [row for row in rows if any(row is value for value in values)][:1]


def following(items: Iterator[Any], where: str, *, first: int = 0, mapped: bool) -> Iterator[Any]:
    """A loader's items; an error of the user's code becomes a TrainingError that says where."""
    for i in itertools.count(first):
        try:
            item = next(items)
        except StopIteration as stop:
            # Of a map-style dataset it is an error: taken for the end, it would lose rows.
            raised_by_dataset = requested_rows(stop.__traceback__) is not None
            raised_by_worker = str(stop).startswith("Caught StopIteration")
            if not mapped or not (raised_by_dataset or raised_by_worker):
                return
            failed: Exception = stop
        except Exception as error:
            failed = error
        else:
            yield item
            continue
        rows = requested_rows(failed.__traceback__)
        place = f"batch {i}{where}" + (f", {rows}" if rows else "")
        if str(failed).startswith("Caught "):
            traceback.clear_frames(failed.__traceback__)  # PyTorch's, which refer to this error
        try:
            raise TrainingError(f"the data failed at {place}: {error_text(failed)}") from failed
        finally:
            # The last references to the workers: the garbage collector would take 5 seconds to end
            # each.
            del failed, items


@contextlib.contextmanager
def placed(where: str) -> Iterator[None]:
    """Add a place to the message of a TypeError or ValueError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):
            raise
        raise type(error)(f"{error} ({where})") from error.__cause__
