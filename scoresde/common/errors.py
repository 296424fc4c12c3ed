"""Exceptions of scoresde that are not plain ValueError or TypeError.

>>> import scoresde
>>> issubclass(scoresde.SolverError, RuntimeError), issubclass(scoresde.CheckpointError, ValueError)
(True, True)
"""

from __future__ import annotations

from torch import Tensor


class SolverError(RuntimeError):
    """A solve failed numerically. The message says how many samples, where, and what to try.

    Attributes
    ----------
    failed : Tensor of bool, shape (B,), or None
        Which samples of the batch failed.
    x : Tensor, shape (B, *shape), or None
        States where the solve stopped, in the units of the data. An adaptive solver finishes the
        samples that did not fail; a fixed grid stops all of them where the first one fails.
    first : int
        Number of the batch's first sample among all samples of the call.

    Examples
    --------
    >>> raise SolverError("2 of 10 samples ...")
    Traceback (most recent call last):
    scoresde.common.errors.SolverError: 2 of 10 samples ...
    """

    def __init__(
        self, message: str, failed: Tensor | None = None, x: Tensor | None = None
    ) -> None:
        super().__init__(message)
        self.failed = failed
        self.x = x
        self.first = 0


class CheckpointError(ValueError):
    """A folder of a model is missing, damaged, or not one of ours. Nothing was loaded.

    Examples
    --------
    >>> from scoresde import load
    >>> load("no/such/folder")
    Traceback (most recent call last):
    scoresde.common.errors.CheckpointError: no model at no/such/folder: ...
    """


class TrainingError(RuntimeError):
    """Training failed: the loss is not finite, or the data raised an error.

    The model keeps the average of its last finite weights, and the last checkpoint stays. If a
    dataset, a loader's worker or an object with `.sample` raised an error, it is the `__cause__`,
    and the message names the batch, and the row if it is known.

    Examples
    --------
    >>> raise TrainingError("the loss is nan after step 100 ...")
    Traceback (most recent call last):
    scoresde.common.errors.TrainingError: the loss is nan after step 100 ...
    """


def one_line(error: BaseException) -> str:
    """An error's message on one line of at most 300 characters; it may quote a hostile file."""
    text = " ".join(str(error)[:1000].split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
