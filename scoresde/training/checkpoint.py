"""The checkpoints of a training run in its folder.

A folder holds, as records of `scoresde.storage.records`: `step-NNNNNNNN`, all that a run needs to
go on bit for bit (raw and averaged weights, optimizer, step, seed, position in the data,
settings), of which the last two are kept; `average-NNNNNNNN`, two power-function averages; and
`model`, once the run is done. No random state is stored: all randomness of a step is a function of
the seed, the step and the rank.

The state of a run is what `Trainer.state_dict` returns: tensors go into the tensors of the record,
everything else into its JSON.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ..common.checks import brief_repr
from ..common.errors import CheckpointError, one_line
from ..common.user_warnings import warn
from ..model.trainable import Trainable
from ..storage import records as storage
from ..storage.description import CONDITION_FACTS, condition_facts, describe, weights
from ..storage.features import with_features
from ..storage.lock import Lock
from ..storage.models import AVERAGE, MODEL, STEP, prepare_folder
from .backend import SingleProcess
from .options import Checkpoints

KEPT_CHECKPOINTS = 2


class Checkpoint:
    """A run as it was read: its state, and the settings that it was started with."""

    def __init__(self, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.state: dict[str, Any] = {**about, **tensors}
        seed = about.get("seed")
        settings = about.get("config")
        if not isinstance(seed, int) or not isinstance(settings, dict):
            raise CheckpointError(
                "its newest checkpoint holds a model, but not the run that made it; choose another "
                "folder"
            )
        self.seed = seed
        self.settings = settings
        self.schema = (about.get("model") or {}).get("schema")


class CheckpointFolder:
    """The folder of a run, locked for as long as the run lasts."""

    def __init__(self, options: Checkpoints, backend: SingleProcess) -> None:
        self.path = Path(options.folder).absolute()
        self.every = options.every
        self.newest: Checkpoint | None = None
        self._resume = options.resume
        self._backend = backend
        self._stack = contextlib.ExitStack()
        self._model: dict[str, Any] | None = None
        self._settings: dict[str, Any] = {}

    def __enter__(self) -> CheckpointFolder:
        """Lock the folder, and read the newest checkpoint that is not damaged."""
        try:
            stem = self._backend.together(self._open)
            if stem is not None:
                self.newest = Checkpoint(*storage.read(self.path, stem))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Unlock it."""
        self._stack.close()

    def _open(self) -> str | None:
        """Lock the folder on the main process, and return the stem to go on from, if any."""
        prepare_folder(self.path)
        self._stack.enter_context(Lock(self.path))
        storage.sweep(self.path)
        stems = storage.records(self.path, STEP)
        if not stems and (self.path / f"{MODEL}.json").exists():
            raise CheckpointError(
                f"{self.path} holds a model and no checkpoint of its run; choose another folder "
                "for a new run"
            )
        if not stems:
            # snapshots of a run that was killed before its first checkpoint are not this one's
            for stem in storage.records(self.path, AVERAGE):
                storage.remove(self.path, stem)
            return None
        if not self._resume:
            raise CheckpointError(
                f"{self.path} holds a run at step {_step(stems[-1])}: resume=True goes on with it; "
                "choose another folder for a new one"
            )
        problems = []
        for stem in reversed(stems):
            try:
                storage.read(self.path, stem)
            except CheckpointError as error:
                problems.append(error)
                continue
            if problems:
                warn(f"the newest checkpoint is not used: {problems[0]}")
            self._prune(stem)
            return stem
        raise problems[0]

    def check(self, sde: Trainable, settings: Mapping[str, Any]) -> None:
        """Keep the run's settings; raise unless they are those of the run to go on with."""
        try:
            self._model = describe(sde) | {"averaged": True}
            for name in CONDITION_FACTS:  # which the data decide
                self._model.pop(name, None)
        except (TypeError, ValueError) as error:
            warn(f"the run can be resumed, but `load` won't be able to build its model: {error}")
        self._settings = json.loads(json.dumps({**settings, "model": self._model}))
        if self.newest is None:
            return
        before = _comparable(self.newest.settings, self.newest.state)
        now = _comparable(self._settings, weights(sde))
        # another objective may have other settings: it is named first
        for name in ["objective", *sorted(before.keys() | now.keys())]:
            old = before.get(name)
            new = now.get(name)
            if old == new:
                continue
            values = repr(old), repr(new)
            if name == "model":
                name, old, new = _difference(name, old, new)
                values = brief_repr(old), brief_repr(new)
            raise CheckpointError(
                f"the run in {self.path} was started with {name}={values[0]}, and this one has "
                f"{values[1]}; go on with the same, or choose another folder"
            )

    def restore(self, trainer: Any) -> None:
        """Give a trainer the state of the newest checkpoint."""
        assert self.newest is not None
        try:
            trainer.load_state_dict(self.newest.state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"the run in {self.path} is not one of this model: {one_line(error)}"
            ) from error
        self.newest = None  # free its memory

    def save(self, sde: Trainable, state: Mapping[str, Any]) -> None:
        """Write a checkpoint and remove all but the last two; replace a damaged one."""
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        about = {name: value for name, value in state.items() if name not in tensors}
        assert not {"model", "config"} & state.keys()  # the folder's own entries

        def write() -> None:
            stem = f"{STEP}{state['step']:08d}"
            entries = {**about, "model": self._described(sde), "config": self._settings}
            storage.write(self.path, stem, tensors, entries)
            self._prune(stem)
            storage.sweep(self.path)

        self._backend.together(write)

    def last_step(self) -> int | None:
        """Return the step of the newest checkpoint in the folder."""
        stems = storage.records(self.path, STEP)
        return _step(stems[-1]) if stems else None

    def _prune(self, newest: str) -> None:
        """Keep two checkpoints up to the newest; a killed run may have left one more."""
        stems = storage.records(self.path, STEP)
        for stem in stems[: stems.index(newest) + 1][:-KEPT_CHECKPOINTS]:
            storage.remove(self.path, stem)

    def _described(self, sde: Trainable) -> dict[str, Any] | None:
        """Return the model in plain JSON, with what the data have decided."""
        return self._model and self._model | condition_facts(sde)

    def snapshot(self, sde: Trainable, step: int, tensors: dict[str, Tensor]) -> None:
        """Write the two averages that others are composed of."""
        about = {"step": step, "model": self._described(sde)}
        stem = f"{AVERAGE}{step:08d}"
        self._backend.together(lambda: storage.write(self.path, stem, tensors, about))

    def finish(self, sde: Trainable) -> None:
        """Write the model."""
        if self._model is None:
            return

        def write() -> None:
            storage.write(self.path, MODEL, weights(sde), describe(sde))
            storage.sweep(self.path)

        self._backend.together(write)

    @contextlib.contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Add to an error that ends a run from where it can go on."""
        try:
            yield
        except Exception as error:
            step = self.last_step()
            if step is not None:
                error.add_note(
                    f"The checkpoint of step {step} in {self.path} is kept: resume=True goes on "
                    "from there."
                )
            raise


def without_names(model: Any) -> Any:
    """Return a model's description without names of columns, which earlier versions lack."""
    if not isinstance(model, Mapping):
        return model
    return {name: value for name, value in model.items() if name != "schema"}


def _comparable(settings: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must be the same when a run is resumed."""
    model = without_names(settings.get("model"))
    if model is not None:
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        with contextlib.suppress(LookupError, TypeError, ValueError):  # compared as it stands
            model = with_features(model, tensors, always=True)
    found = {**settings, "model": model}
    if found.get("objective") != "denoising":  # which alone has them
        found.pop("weight", None)
        found.pop("noise", None)
    return found


def _difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """The innermost entry in which two nested settings differ, and its values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            if old.get(key) != new.get(key):
                return _difference(f"{name}.{key}", old.get(key), new.get(key))
    return name, old, new


def _step(stem: str) -> int:
    """Return the step in the name of a checkpoint."""
    return int(stem[len(STEP) :])
