"""What the arguments of `fit` hold that have more than one part, and the short forms of each."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..common.checks import as_path, real_number, true_or_false, whole_number

AUTO = "auto"
EVERY_STEPS = 500
PATIENT_STEPS = 300
"""Training goes on so long after the best check, if checks come ever more rarely: while the
learning rate warms up, the loss may rise before it falls."""
MOST_STEPS = 10_000
"""Of steps="auto"."""
HALF_LIFE_STEPS = 700.0

BY_NAME = ("x", "given", "accelerator")
"""Fields that a printed call names instead of showing their values."""


@dataclass(frozen=True, eq=False)
class Validation:
    """Held-out samples, and how often `fit` measures the averaged network's loss on them.

    The noise and the noise levels of these samples stay the same, so that losses can be compared
    within a run and between runs.

    Parameters
    ----------
    x : Tensor, array, data frame or Samples, shape (N, *shape)
        In the units of the data.
    given : mapping of str to Tensor, array, Series or list of words, optional
        Their conditions, of the same names as in training, one row per sample.
    every : int or "auto"
        Steps between validations. "auto" validates before training, after 20 steps, and then ever
        more rarely: each time after 1.2 times as many steps, at most 500 apart.
    patience : int, optional
        Stop after so many validations without a new lowest loss, and keep the average that had it.
        With every="auto", not before 300 steps without one.

    Raises
    ------
    TypeError, ValueError
        Unless `every` and `patience` are positive integers, or `every` is "auto".

    Examples
    --------
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    >>> held_out = scoresde.Validation(torch.randn(64, 2), every=10, patience=3)
    >>> history = scoresde.fit(sde, torch.randn(500, 2), validation=held_out, steps=20)
    >>> history.checked
    [10, 20]
    """

    x: Any
    given: Mapping[str, Any] | None = None
    every: int | str = EVERY_STEPS
    patience: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.every, str):
            object.__setattr__(self, "every", whole_number("every", self.every))
        elif self.every != AUTO:
            raise ValueError(f"every is an integer or 'auto', got {self.every!r}")
        if self.patience is not None:
            object.__setattr__(self, "patience", whole_number("patience", self.patience))

    def __repr__(self) -> str:
        """The call that makes it; x and given stand for themselves."""
        return written(self)


@dataclass(frozen=True)
class Averaging:
    """How `fit` averages the weights.

    Parameters
    ----------
    half_life : float
        Half-life of the exponential average in steps; 0 for none. The average is shorter at
        first: about a thirteenth of the steps so far.
    snapshots : int
        How many snapshots of two further averages to keep beside the checkpoints, at most one a
        step. `posthoc_ema` composes averages of other lengths from them.

    Raises
    ------
    TypeError, ValueError
        For a half-life between 0 and 1, which looks like a decay, or a negative number.

    References
    ----------
    Karras et al., Analyzing and improving the training dynamics of diffusion models, CVPR 2024.

    Examples
    --------
    >>> scoresde.Averaging(half_life=700, snapshots=16)
    Averaging(snapshots=16)
    """

    half_life: float = HALF_LIFE_STEPS
    snapshots: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "half_life", _half_life("half_life", self.half_life))
        object.__setattr__(self, "snapshots", whole_number("snapshots", self.snapshots, 0))

    def __repr__(self) -> str:
        """The call that makes it."""
        return written(self)


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often `fit` writes checkpoints; the last two are kept.

    Parameters
    ----------
    folder : path
        Of the checkpoints and, at the end, of the model, which `load` reads.
    every : int
        Steps between checkpoints.
    resume : bool
        Go on from the newest checkpoint in the folder, if there is one, as if nothing had
        happened. Data and arguments have to be the same as before. The randomness continues as
        in the interrupted run; `generator` is ignored.

    Raises
    ------
    TypeError, ValueError
        For a folder that is no path, or numbers that are none.

    Examples
    --------
    >>> import tempfile
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = scoresde.Checkpoints(folder, every=10)
    ...     _ = scoresde.fit(sde, torch.randn(100, 2), steps=20, checkpoints=checkpoints)
    ...     scoresde.load(folder).shape
    (2,)
    """

    folder: str | os.PathLike[str]
    every: int = EVERY_STEPS
    resume: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", as_path(self.folder, "folder"))
        object.__setattr__(self, "every", whole_number("every", self.every))
        object.__setattr__(self, "resume", true_or_false("resume", self.resume))

    def __repr__(self) -> str:
        """The call that makes it."""
        return written(self)


@dataclass(frozen=True)
class Backend:
    """What runs the steps of `fit`.

    Parameters
    ----------
    accelerator : accelerate.Accelerator, optional
        For several processes (DDP, FSDP2), mixed precision with loss scaling, and gradient
        accumulation. Needs `pip install scoresde[train]`.
    compile : bool
        Whether to call the network through torch.compile; if that fails, it is called as it is,
        with a warning.

    Raises
    ------
    TypeError
        For anything else.

    Examples
    --------
    >>> scoresde.Backend(compile=True)
    Backend(compile=True)
    """

    accelerator: Any = None
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "compile", true_or_false("compile", self.compile))
        if self.accelerator is not None and not _accelerates(self.accelerator):
            got = type(self.accelerator).__name__
            raise TypeError(f"accelerator is an accelerate.Accelerator, got {got}")

    def __repr__(self) -> str:
        """The call that makes it."""
        return written(self)


def as_validation(value: Any, every: int) -> Validation | str | None:
    """Return `validation=` in full: bare samples, or (x, given), are measured every so often."""
    if isinstance(value, str):
        if value != AUTO:
            raise ValueError(
                f"validation is 'auto', None, samples, (x, given) or Validation, got {value!r}"
            )
        return value
    if value is None or isinstance(value, Validation):
        return value
    if isinstance(value, tuple) and len(value) == 2:
        return Validation(*value, every=every)
    return Validation(value, every=every)


def as_averaging(value: Any) -> Averaging:
    """Return `ema=` in full: a number is a half-life."""
    return value if isinstance(value, Averaging) else Averaging(_half_life("ema", value))


def as_checkpoints(value: Any) -> Checkpoints | None:
    """Return `checkpoints=` in full: a path is the folder."""
    if value is None or isinstance(value, Checkpoints):
        return value
    return Checkpoints(as_path(value, "checkpoints"))


def as_backend(value: Any) -> Backend:
    """Return `backend=` in full: "compile", or an Accelerator."""
    if isinstance(value, Backend):
        return value
    if value is None or (isinstance(value, str) and value == "compile"):
        return Backend(compile=value is not None)
    if not _accelerates(value):
        got = repr(value) if isinstance(value, str) else type(value).__name__
        raise TypeError(
            f"backend is 'compile', an accelerate.Accelerator or a scoresde.Backend, got {got}"
        )
    return Backend(value)


def written(thing: Any) -> str:
    """Return the call that makes a dataclass: what differs from its defaults, data by name."""
    parts = []
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if value is field.default:
            continue
        if field.name in BY_NAME:
            text = field.name
        elif value == field.default:
            continue
        else:
            text = repr(os.fspath(value)) if isinstance(value, os.PathLike) else repr(value)
        if field.default is not dataclasses.MISSING:
            text = f"{field.name}={text}"
        parts.append(text)
    return f"{type(thing).__name__}({', '.join(parts)})"


def _half_life(name: str, value: Any) -> float:
    hint = "it is a half-life in steps: try 700, or 0 for none"
    half_life = real_number(name, value, 0, math.inf, closed=True, hint=hint)
    if 0 < half_life < 1:
        raise ValueError(
            f"{name} is a half-life in steps, got {half_life:g}; a decay of 0.999 a step has a "
            "half-life of 700"
        )
    return half_life


def _accelerates(value: Any) -> bool:
    """Whether something is an Accelerator; the package is not imported for it."""
    known = getattr(value, "distributed_type", None) is not None
    return known and callable(getattr(value, "backward", None))
