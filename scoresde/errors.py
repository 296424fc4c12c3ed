"""The exceptions of scoresde that are not plain ValueError or TypeError.

>>> import scoresde
>>> issubclass(scoresde.SolverError, RuntimeError), issubclass(scoresde.CheckpointError, ValueError)
(True, True)
"""

from __future__ import annotations

from torch import Tensor


class SolverError(RuntimeError):
    """A solve failed numerically: the message says how many samples, where on the path, and which knob to turn.

    Attributes
    ----------
    failed : Tensor of bool, shape (B,), or None
        Which samples of the failing batch are affected.
    x : Tensor, shape (B, *shape), or None
        The states where the solve stopped, in the units of the data. After an adaptive solve those that are not `failed` are
        finished samples; a fixed grid stops for all where the first goes wrong.
    first : int
        The number, in the call, of the failing batch's first sample.

    Examples
    --------
    >>> raise SolverError("2 of 10 samples ...")
    Traceback (most recent call last):
    scoresde.errors.SolverError: 2 of 10 samples ...
    """

    def __init__(self, message: str, failed: Tensor | None = None, x: Tensor | None = None) -> None:
        super().__init__(message)
        self.failed = failed
        self.x = x
        self.first = 0


class CheckpointError(ValueError):
    """A model folder is missing, damaged, or not one of ours; nothing was loaded.

    Examples
    --------
    >>> from scoresde import load
    >>> load("no/such/folder")
    Traceback (most recent call last):
    scoresde.errors.CheckpointError: no model at no/such/folder: ...
    """


class TrainingError(RuntimeError):
    """Training failed: the loss is not finite, or the data raised an error.

    The model keeps the average of its last finite weights, and the last checkpoint stays. An error of the data (a dataset, a
    loader's worker, an object with `.sample`) is the cause; the message names the batch, and the row where it is known.

    Examples
    --------
    >>> raise TrainingError("the loss is nan after step 100 ...")
    Traceback (most recent call last):
    scoresde.errors.TrainingError: the loss is nan after step 100 ...
    """
