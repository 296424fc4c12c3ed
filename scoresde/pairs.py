"""Reflow: the pairs (x0, x1) that a model's own ODE joins, for the next model to be trained on, in memory or in a folder.

A flow is trained on pairs of a sample x0 and a point x1 with x_t = α(t)·x0 + σ(t)·x1, where α(1) = 0. What it learns is the
velocity v(x, t) = E[α̇·x0 + σ̇·x1 | x_t = x], and its ODE dx/dt = v(x, t) joins other pairs than it was shown:

    x1 ~ the law at t = 1,    x0 = x1 + ∫ v(x_t, t) dt  from t = 1 to 0.

They have the same two laws, cost no more to transport under any convex cost (for the rectified flow), and cross less: a model
that is trained on them has straighter paths (Liu et al. 2023, section 2.2). Doing so again is reflow.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import io
from .checks import affordable, as_path, check_generator, flag, said, whole
from .errors import CheckpointError, SolverError
from .inputs import as_condition, as_floats, as_tensor
from .pairstore import RECORD, Folder, Memory, Store, held, native
from .plan import plan, starting_points
from .process import as_time
from .random import BLOCK, PATH, seeded
from .ranks import shared
from .sampling import solve
from .schema import Schema
from .sde import ScoreSDE, require_sde
from .solvers import Solver

PART = 8192, 2**21  # pairs that are drawn and saved together: at most so many, and so many numbers …


class Pairs:
    """n pairs of a sample x_0 and the point x_1 at t = 1 that belongs to it: what `reflow` draws, or any two tensors.

    Parameters
    ----------
    x : Tensor or array, shape (n, *shape)
        Samples, in the units of the data. A memory-mapped array stays on the disk.
    latent : Tensor or array, shape (n, *shape)
        What they are paired with, in the same units.
    given : mapping of str to tensor, optional
        Conditions, one row per pair.

    Attributes
    ----------
    x, latent : Tensor or numpy.memmap
    given : dict of str to Tensor

    Raises
    ------
    TypeError
        For other than floating-point numbers.
    ValueError
        For unequal numbers or shapes, no pairs, or numbers that are not finite.

    References
    ----------
    Liu, Gong & Liu, Flow straight and fast: learning to generate and transfer data with rectified flow, ICLR 2023.

    Examples
    --------
    >>> pairs = Pairs(torch.zeros(5, 2), torch.randn(5, 2))
    >>> len(pairs), pairs.shape, pairs[:3]
    (5, (2,), Pairs(3 of shape (2,)))
    >>> Pairs(torch.zeros(5, 2), torch.randn(4, 2))
    Traceback (most recent call last):
    ValueError: x has 5 rows and latent has 4: a pair has one of each
    """

    x: Any
    latent: Any
    given: dict[str, Tensor]
    unit: tuple[Tensor, ...] | None = None
    """Mean and scale of the Gaussian that `reflow` drew latents from, or None: a model that learns the pairs takes them over."""
    schema: Schema | None = None
    """The names that the model had learnt, which one that learns the pairs takes over, too."""

    def __init__(self, x: Any, latent: Any, given: Mapping[str, Any] | None = None) -> None:
        self.x, self.latent = _floats(x, "x"), _floats(latent, "latent")
        if isinstance(self.x, Tensor) != isinstance(self.latent, Tensor):  # both in memory, or neither
            self.x, self.latent = (v if isinstance(v, Tensor) else torch.from_numpy(native(v)) for v in (self.x, self.latent))
        if len(self.x) != len(self.latent):
            raise ValueError(f"x has {len(self.x)} rows and latent has {len(self.latent)}: a pair has one of each")
        if self.x.shape != self.latent.shape:
            ours, theirs = self.shape, tuple(self.latent.shape[1:])
            raise ValueError(f"x has samples of shape {ours} and latent of shape {theirs}: the ODE keeps the shape")
        if not isinstance(given, Mapping | None):
            raise TypeError(f"given is a mapping such as {{'y': labels}}, got {type(given).__name__}")
        self.given = {name: as_condition(value, name).detach() for name, value in (given or {}).items()}
        for name, value in self.given.items():
            if not value.ndim or len(value) != len(self):
                raise ValueError(f"condition {name!r} has shape {tuple(value.shape)} for {len(self)} pairs")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.x)

    def __getitem__(self, rows: slice) -> Pairs:
        """Return some of the pairs, sharing memory or the file."""
        if not isinstance(rows, slice):
            raise TypeError(f"pairs are cut by a slice such as pairs[:100], got {said(rows)}; rows are in .x and .latent")
        if not range(len(self))[rows]:
            raise ValueError(f"none of {len(self)} pairs lies in {rows}")
        if (rows.step or 1) < 0:
            raise ValueError(f"pairs are cut forwards, got {rows}")
        part = copy.copy(self)
        part.x, part.latent = self.x[rows], self.latent[rows]
        part.given = {name: value[rows] for name, value in self.given.items()}
        return part

    def __repr__(self) -> str:
        """How many, of which shape, with which conditions."""
        return f"Pairs({len(self)} of shape {self.shape}" + (f", given {sorted(self.given)})" if self.given else ")")

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Pairs:
        """Open pairs that `reflow` wrote to a folder, memory-mapped, having checked all of their bytes.

        Parameters
        ----------
        folder : path

        Returns
        -------
        Pairs
            With x and latent as read-only `numpy.memmap`, and the conditions as tensors.

        Raises
        ------
        CheckpointError
            If there are none, they are damaged, or not all of them are there yet; `reflow` with the same `out=` goes on then.

        Examples
        --------
        >>> import scoresde, tempfile
        >>> sde = scoresde.oracle(scoresde.toy.Moons(), scoresde.RectifiedFlow())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = reflow(sde, 10, steps=5, out=folder, progress=False)
        ...     Pairs.open(folder)
        Pairs(10 of shape (2,))
        """
        path = as_path(folder, "folder")
        if not os.path.lexists(path / f"{RECORD}.json"):
            raise CheckpointError(f"no pairs at {path}: it has no {RECORD}.json; reflow(..., out=folder) writes them")
        store = Folder.read(path)
        model = store.settings.get("model")
        try:
            return _made(store, store.settings.get("unit"), model.get("schema") if isinstance(model, dict) else None)
        except ValueError as error:
            raise CheckpointError(f"the pairs at {path} are damaged: {error}") from None


def reflow(
    sde: ScoreSDE,
    n: int,
    *,
    solver: str | Solver = "adams",
    steps: int | None = None,
    spacing: str | None = None,
    out: str | os.PathLike[str] | None = None,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Pairs:
    """Draw n pairs (x_0, x_1) that a model's ODE joins; `fit` on them straightens its paths.

    x_1 is drawn from the noise, or the model's `source`, and x_0 = decode(sde, x_1). The process has to end in that alone,
    α(1) = 0; the solver has to be deterministic. A model that was given labels by sample draws pairs with those labels.

    Parameters
    ----------
    sde : ScoreSDE
    n : int
        Number of pairs.
    solver, steps, spacing, batch_size, **options
        As for `sample`. The pairs are as good as the solve: its error is what the next model learns.
    out : path, optional
        A folder to write the pairs to, part by part. A run that was killed goes on with what is there, if it was of the same
        model and settings, and ends with the same bytes; the generator is not asked again then. Without it they are in memory.
    generator : torch.Generator, optional
        The randomness: pair i depends on it and on i alone, not on n or `batch_size`. Without one, torch's global generator.
    progress : bool
        Show a progress bar (on a terminal).

    Returns
    -------
    Pairs
        On the model's device; with `out`, memory-mapped.

    Raises
    ------
    TypeError, ValueError
        For a stochastic solver, a process that does not end in noise alone, or other arguments that make no sense.
    CheckpointError
        If the folder can't be written, is in use, holds something else, or pairs of another model or other settings.
    SolverError
        If a solve fails; the parts that were saved stay.

    References
    ----------
    Liu, Gong & Liu, Flow straight and fast: learning to generate and transfer data with rectified flow, ICLR 2023, algorithm 1.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.oracle(scoresde.toy.Moons(), scoresde.RectifiedFlow())
    >>> pairs = reflow(sde, 100, progress=False)
    >>> torch.allclose(scoresde.decode(sde, pairs.latent), pairs.x)
    True
    """
    sde = require_sde(sde, "reflow")
    check_generator(generator)
    progress = flag("progress", progress)
    n = whole("n", n)
    if batch_size is not None:
        batch_size = whole("batch_size", batch_size)
    if not sde.process.ends_in_noise:
        raise ValueError(
            f"reflow pairs a sample with what is there at t = 1, which has to be noise alone, and {sde.process} ends with "
            f"α(1) = {float(sde.process.alpha(as_time(1.0))):.2g}; try RectifiedFlow() or Cosine()"
        )
    if plan(sde, solver, steps, spacing, options).solver.stochastic:
        raise ValueError(f"pairs are the two ends of an ODE, and solver {_named(solver)} is stochastic; try 'adams'")
    out = None if out is None else as_path(out, "out")
    if out is not None and shared():
        raise ValueError("inside sharded() every rank would write to out=: leave it out, or call reflow outside")
    affordable(f"n={n} pairs", 2.0 * n * sde.dim * sde.state_dtype.itemsize, device=sde.scale.device, disk=out)
    sde.rows(0, n, n)
    how: dict[str, Any] = {"solver": solver, "steps": steps, "spacing": spacing, **options}
    columns = {"x": sde.scale.new_empty((1, *sde.shape), dtype=sde.state_dtype)}
    columns |= {"latent": columns["x"], **{name: value.to(sde.scale.device) for name, value in _conditions(sde)}}
    radius = float(sde.process.radius(as_time(1.0)))

    def draw(seed: int, first: int, stop: int) -> list[Tensor]:
        part = sde.rows(first, stop, n)
        latent = sde.to_data(radius * starting_points(part, seed, first, stop))
        try:
            x = solve(part, start=latent, generator=seeded("cpu", seed, PATH), batch_size=batch_size, **how).x[-1]
        except SolverError as error:
            kept = f"; the {first} pairs before them are kept in {out}" if out is not None else ""
            error.first += first
            error.args = (f"{error} (of pairs {first} to {stop - 1}{kept})",)
            raise
        return [x, latent, *(value.expand(stop - first, *value.shape[1:]) for _, value in _conditions(part))]

    rows = max(1, min(PART[0], PART[1] // sde.dim))
    rows = rows // BLOCK * BLOCK or rows
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        store: Store
        if out is None:
            store = Memory(columns, n, rows, generator)
        else:
            stack.enter_context(held(out))
            store = Folder.begun(out, columns, n, rows, generator, _settings(sde, solver, how))
            store.recognize(draw, sde.scale)
        bar = stack.enter_context(
            tqdm(total=n, initial=store.done, desc="reflow", disable=None if progress else True, mininterval=0.5)
        )
        while store.done < n:
            first, stop = store.done, min(store.done + store.rows, n)
            store.put(draw(store.seed, first, stop))
            bar.update(stop - first)
        return _made(store, _unit(sde), sde.schema.describe())


def _made(store: Store, unit: Any, names: Any) -> Pairs:
    """Pairs of what is stored, whose numbers were looked at as they came."""
    found = Pairs.__new__(Pairs)
    (found.x, found.latent), found.given = store.columns()
    found.schema = Schema.rebuild(names, found.shape)
    found.unit = None if unit is None else tuple(torch.tensor(value, dtype=torch.float64, device="cpu") for value in unit)
    return found


def _conditions(sde: ScoreSDE) -> list[tuple[str, Tensor]]:
    return sorted(sde.condition.items())


def _named(solver: str | Solver) -> str:
    return repr(solver if isinstance(solver, str) else type(solver).__name__)


def _settings(sde: ScoreSDE, solver: str | Solver, how: Mapping[str, Any]) -> dict[str, Any]:
    """What the pairs of a folder have in common, in plain JSON."""
    if isinstance(solver, Solver):
        how = {**how, "solver": [type(solver).__name__, vars(solver)]}
    bare = sde.holding({})
    try:
        model: Any = io.describe(bare)
    except (TypeError, ValueError):  # a network that is not registered can't be saved, and has pairs nevertheless
        model = [repr(sde.process), type(sde.net).__name__, list(sde.shape), sde.predict, sde.sees]
    plain = {name: value if isinstance(value, str | int | float | None) else _said(value) for name, value in sorted(how.items())}
    given = {name: _sha(value) for name, value in _conditions(sde)}
    weights = hashlib.sha256("".join(name + _sha(value) for name, value in sorted(io.weights(bare).items())).encode())
    return {"model": model, "weights": weights.hexdigest(), "given": given, "unit": _unit(sde), **plain}


def _unit(sde: ScoreSDE) -> list[Any] | None:
    return None if sde.source is not None else [sde.mean.tolist(), sde.scale.tolist()]


def _said(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # an address is another's tomorrow


def _sha(value: Tensor) -> str:
    value = value.detach().cpu().contiguous()
    sha = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
    sha.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return sha.hexdigest()


def _floats(value: Any, what: str) -> Any:
    """Rows of finite floating-point numbers, as a tensor, or left on the disk."""
    if not isinstance(value, np.memmap):
        value = as_tensor(value, what).detach()
    shape = tuple(value.shape)
    if len(shape) < 2:
        raise ValueError(f"{what} has shape {shape}, wanted (n, *shape), such as (n, 1) for numbers")
    step = max(1, PART[1] // max(1, math.prod(shape[1:]))) if isinstance(value, np.memmap) else max(1, len(value))
    for i in range(0, max(1, len(value)), step):
        part = value[i : i + step]
        as_floats(part if isinstance(part, Tensor) else native(part), shape[1:], what)
    return value
