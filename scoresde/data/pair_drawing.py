"""Reflow: pairs (x0, x1) that a model's own ODE joins, for the next model to be trained on.

A flow is trained on pairs of a sample x0 and a point x1 with x_t = α(t)·x0 + σ(t)·x1, where
α(1) = 0. It learns the velocity v(x, t) = E[α̇·x0 + σ̇·x1 | x_t = x]. Its ODE dx/dt = v(x, t)
joins other pairs than those it was trained on:

    x1 ~ the distribution at t = 1,    x0 = x1 + ∫ v(x_t, t) dt  from t = 1 to 0.

They have the same two distributions, cost no more to transport under any convex cost (for the
rectified flow), and cross less: a model trained on them has straighter paths (Liu et al. 2023,
section 2.2). Reflow can be repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from ..common import progress as bars
from ..common.checks import as_path, check_budget, check_generator, whole_number
from ..common.errors import SolverError
from ..common.progress import shows_progress
from ..common.random import BLOCK, PATH, seeded
from ..common.seeds import takes_seed
from ..common.sharding import shared
from ..model.protocol import Model
from ..model.require import require_tensors
from ..model.score_sde import ScoreSDE
from ..processes.base import as_time
from ..sampling.plan import plan
from ..sampling.problem import starting_points
from ..sampling.trajectory import solve
from ..solvers import Solver
from ..solvers.options import SolverOptions
from ..storage.description import describe, weights
from .pair_store import FolderStore, MemoryStore, Store, hold_folder
from .pairs import Pairs, stored_pairs

PART_PAIRS = 8192
"""Most pairs that are drawn and saved together …"""
PART_NUMBERS = 2**21
"""… and most numbers of their samples."""


@takes_seed
@shows_progress
def reflow(
    sde: Model,
    n: int,
    *,
    solver: str | Solver = "adams",
    steps: int | None = None,
    spacing: str | None = None,
    out: str | os.PathLike[str] | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    **options: Unpack[SolverOptions],
) -> Pairs:
    """Draw n pairs (x_0, x_1) that a model's ODE joins; `fit` on them straightens its paths.

    x_1 is drawn from noise, or from the model's `source`, and x_0 = decode(sde, x_1). The process
    must end in noise alone, α(1) = 0, and the solver must be deterministic. A model conditioned
    per sample, `sde.given(y=labels)`, draws pairs with these labels.

    Parameters
    ----------
    sde : ScoreSDE
    n : int
        Number of pairs.
    solver, steps, spacing, batch_size, **options
        As for `sample`. The next model learns the error of this solve, too.
    out : path, optional
        A folder to write the pairs to, part by part. A second call with the same model and settings
        continues an interrupted one and ends with the same bytes, whatever its generator. Without
        a folder, pairs are in memory.
    generator : torch.Generator, optional
        By default torch's global one. Pair i depends on it and on i alone, not on n or
        `batch_size`.
    seed : int, optional
        An integer in place of the generator.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.

    Returns
    -------
    Pairs
        On the model's device; memory-mapped with `out`.

    Raises
    ------
    TypeError, ValueError
        For a stochastic solver, a process with α(1) > 0, or other arguments that make no sense.
    CheckpointError
        If the folder can't be written, is in use, or holds anything but pairs of this model and
        these settings.
    SolverError
        If a solve fails; saved parts stay.

    References
    ----------
    Liu, Gong & Liu, Flow straight and fast: learning to generate and transfer data with rectified
    flow, ICLR 2023, algorithm 1.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.oracle(scoresde.toy.Moons(), scoresde.RectifiedFlow())
    >>> pairs = scoresde.reflow(sde, 100, progress=False)
    >>> torch.allclose(scoresde.decode(sde, pairs.latent), pairs.x)
    True
    """
    sde = require_tensors(sde, "reflow")
    check_generator(generator)
    n = whole_number("n", n)
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size)
    _check_ode(sde, solver, steps, spacing, {**options})
    folder = None if out is None else as_path(out, "out")
    if folder is not None and shared():
        raise ValueError(
            "inside sharded() every rank would write to out=: leave it out, or call reflow outside"
        )
    nbytes = 2.0 * n * sde.dim * sde.state_dtype.itemsize
    check_budget(f"n={n} pairs", nbytes, device=sde.scale.device, disk=folder)
    sde.slice_conditions(0, n, n)  # raises unless conditions go with n samples
    how: dict[str, Any] = {"solver": solver, "steps": steps, "spacing": spacing, **options}
    drawing = _Drawing(sde, n, batch_size, how, folder)
    unit = None if sde.source is not None else _unit(sde)
    with torch.no_grad(), contextlib.ExitStack() as stack:
        store: Store
        if folder is None:
            store = MemoryStore(drawing.columns(), n, drawing.rows, generator)
        else:
            stack.enter_context(hold_folder(folder))
            settings = _settings(sde, how, unit)
            store = FolderStore.begin_or_continue(
                folder, drawing.columns(), n, drawing.rows, generator, settings
            )
            store.check_model(drawing.draw, sde.scale)
        while store.done < n:
            first = store.done
            stop = min(first + store.rows, n)
            with bars.part(first, stop, n, "pair"):
                store.put(drawing.draw(store.seed, first, stop))
        return stored_pairs(store, unit, sde.schema.describe())


def _check_ode(
    sde: Model,
    solver: str | Solver,
    steps: int | None,
    spacing: str | None,
    options: dict[str, Any],
) -> None:
    """Raise unless the model and solver join points at t = 1 with samples."""
    if not sde.process.ends_in_noise:
        end = float(sde.process.alpha(as_time(1.0)))
        raise ValueError(
            f"reflow pairs samples with noise, which requires α(1) = 0, and "
            f"{sde.process} ends with α(1) = {end:.2g}; try RectifiedFlow() or Cosine()"
        )
    if plan(sde, solver, steps, spacing, options).solver.stochastic:
        name = solver if isinstance(solver, str) else type(solver).__name__
        raise ValueError(
            f"pairs are the two ends of an ODE's path, and solver {name!r} is stochastic; try "
            "'adams'"
        )


class _Drawing:
    """Draws pairs of a model, part by part."""

    def __init__(
        self,
        sde: Model,
        n: int,
        batch_size: int | None,
        how: dict[str, Any],
        folder: Path | None,
    ) -> None:
        self._sde = sde
        self._n = n
        self._batch_size = batch_size
        self._how = how
        self._folder = folder
        self._radius = float(sde.process.radius(as_time(1.0)))
        rows = max(1, min(PART_PAIRS, PART_NUMBERS // sde.dim))
        self.rows = rows // BLOCK * BLOCK or rows
        """Pairs of a part."""

    def columns(self) -> dict[str, Tensor]:
        """A row of each column that `draw` returns, by name."""
        sde = self._sde
        state = sde.scale.new_empty((1, *sde.shape), dtype=sde.state_dtype)
        conditions = {name: value.to(sde.scale.device) for name, value in _conditions(sde)}
        return {"x": state, "latent": state, **conditions}

    def draw(self, seed: int, first: int, stop: int) -> list[Tensor]:
        """Pairs first to stop − 1: x, latent and the conditions."""
        part = self._sde.slice_conditions(first, stop, self._n)
        latent = self._sde.to_data(self._radius * starting_points(part, seed, first, stop))
        generator = seeded("cpu", seed, PATH)
        try:
            solution = solve(
                part,
                start=latent,
                generator=generator,
                batch_size=self._batch_size,
                **self._how,
            )
        except SolverError as error:
            error.first += first
            text = f"{error} (of pairs {first} to {stop - 1}"
            if self._folder is not None:
                text += f"; the {first} pairs before them are kept in {self._folder}"
            error.args = (f"{text})",)
            raise
        n = stop - first
        conditions = [value.expand(n, *value.shape[1:]) for _, value in _conditions(part)]
        return [solution.x[-1], latent, *conditions]


def _conditions(sde: Model) -> list[tuple[str, Tensor]]:
    """Conditions of a model in the order of their columns."""
    return sorted(sde.condition.items())


def _unit(sde: Model) -> list[Any]:
    """Mean and scale of a model, and the root of its correlations if it whitens."""
    part = sde.standardization
    found = [part.mean, part.scale] + ([] if part.root is None else [part.root])
    return [value.tolist() for value in found]


def _settings(sde: Model, how: Mapping[str, Any], unit: Any) -> dict[str, Any]:
    """What all pairs of a folder have in common, in plain JSON."""
    solver = how["solver"]
    if isinstance(solver, Solver):
        how = {**how, "solver": [type(solver).__name__, vars(solver)]}
    described = [_described(trained) for trained in sde.trained()]
    models = [model for model, _ in described]
    digests = [digest for _, found in described for digest in found]
    model = models[0] if len(models) == 1 else [repr(type(sde).__name__), *models]
    plain = {name: _plain_option(value) for name, value in sorted(how.items())}
    return {
        "model": model,
        "weights": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "given": {name: _sha256(value) for name, value in _conditions(sde)},
        "unit": unit,
        **plain,
    }


def _described(sde: ScoreSDE) -> tuple[Any, list[str]]:
    """What a model is built from, and a digest of each of its tensors."""
    try:
        model: Any = describe(sde)
    except (TypeError, ValueError):  # a network that is not registered has pairs nevertheless
        name = type(sde.net).__name__
        model = [repr(sde.process), name, list(sde.shape), sde.predict, sde.input_convention]
    return model, [name + _sha256(value) for name, value in sorted(weights(sde).items())]


def _plain_option(value: Any) -> Any:
    """An option in plain JSON: numbers and text as they are, else a repr."""
    if isinstance(value, str | int | float | None):
        return value
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # memory addresses differ between runs


def _sha256(value: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and numbers."""
    value = value.detach().cpu().contiguous()
    sha = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
    if value.numel():
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
