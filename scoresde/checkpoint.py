"""The checkpoints of a training run in its folder, and the averages that can be composed from its snapshots afterwards.

A folder holds, as records of `scoresde.storage`: `step-NNNNNNNN`, all that a run needs to go on bit for bit (raw and averaged
weights, optimizer, step, seed, position in the data, settings), of which the last two are kept; `average-NNNNNNNN`, two
power-function averages; and `model`, once the run is done. No random state is stored: all randomness of a step is a function
of the seed, the step and the rank.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import storage
from .checks import as_path, number, whole
from .engine import Engine
from .errors import CheckpointError
from .io import AVERAGE, MODEL, PREFIX, SEEN, STEP, describe, load, ready, seen, weights
from .modules import duplicate
from .sde import ScoreSDE
from .weights import copy_all, exponent, whole_tensor

if TYPE_CHECKING:
    from .training import Run

KEPT = 2  # checkpoints
PROFILES = (0.05, 0.10)  # σ_rel of the two averages that others are composed of (Karras et al. 2024, section 3)
MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoint:
    """What was read of one: `about` and `tensors`."""

    def __init__(self, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.about, self.tensors = about, tensors
        seed, config = about.get("seed"), about.get("config")
        if not isinstance(seed, int) or not isinstance(config, dict):
            raise CheckpointError("its newest checkpoint holds a model, but not the run that made it: choose another folder")
        self.seed, self.config = seed, config
        self.names = (about.get("model") or {}).get("schema")


class Checkpoints:
    """A run's folder, while the run has it.

    Parameters
    ----------
    folder : path
    resume : bool
        Whether to go on with a run that is there; otherwise it is an error that there is one.
    engine : Engine
        Its main process writes; all read.

    Attributes
    ----------
    newest : Checkpoint or None
        What the run goes on from.

    Raises
    ------
    CheckpointError
        If the folder can't be written, is in use, holds something else, or a run that was not to be resumed.
    """

    def __init__(self, folder: str | os.PathLike[str], resume: bool, engine: Engine) -> None:
        self.folder, self.resume, self.engine = as_path(folder, "out").absolute(), resume, engine
        self.newest: Checkpoint | None = None
        self._stack = contextlib.ExitStack()
        self._model: dict[str, Any] | None = None
        self._config: dict[str, Any] = {}

    def __enter__(self) -> Checkpoints:
        """Take the folder."""

        def take() -> str | None:
            ready(self.folder)
            self._stack.enter_context(storage.Lock(self.folder))
            storage.sweep(self.folder)
            stems = storage.records(self.folder, STEP)
            if not stems and (self.folder / f"{MODEL}.json").exists():
                raise CheckpointError(f"{self.folder} holds a model and no checkpoint of its run: a new run wants another folder")
            if not stems:  # snapshots of a run that was killed before its first checkpoint are not this one's
                for stem in storage.records(self.folder, AVERAGE):
                    storage.remove(self.folder, stem)
                return None
            if not self.resume:
                raise CheckpointError(
                    f"{self.folder} holds a run at step {int(stems[-1][len(STEP) :])}: resume=True goes on with it; "
                    "a new one wants another folder"
                )
            problems = []
            for stem in reversed(stems):
                try:
                    storage.read(self.folder, stem)
                except CheckpointError as error:
                    problems.append(error)
                    continue
                if problems:
                    warnings.warn(f"the newest checkpoint is not used: {problems[0]}", stacklevel=4)
                self._prune(stem)
                return stem
            raise problems[0]

        try:
            stem = self.engine.together(take)
            if stem is not None:
                self.newest = Checkpoint(*storage.read(self.folder, stem))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Let go of it."""
        self._stack.close()

    def check(self, sde: ScoreSDE, config: Mapping[str, Any]) -> None:
        """Take the run's settings, and see that they are those of the run that is to be gone on with."""
        try:
            self._model = describe(sde) | {"averaged": True}
            for name in SEEN:  # what the data will say
                self._model.pop(name, None)
        except (TypeError, ValueError) as error:
            warnings.warn(f"the run can be resumed, but `load` won't be able to build its model: {error}", stacklevel=4)
        self._config = json.loads(json.dumps({**config, "model": self._model}))
        if self.newest is None:
            return
        before, now = (_unnamed(config) for config in (self.newest.config, self._config))
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise CheckpointError(
                    f"the run in {self.folder} was started with {name}={before.get(name)!r}, and this one has {now.get(name)!r}; "
                    "go on with the same, or choose another folder"
                )

    def restore(self, run: Run) -> None:
        """Put a run where the newest checkpoint left it."""
        assert self.newest is not None
        about, tensors = self.newest.about, self.newest.tensors
        try:
            _restore(run, about, tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the run in {self.folder} is not one of this model: {storage.brief(error)}") from error
        self.newest = None  # its memory is wanted

    def save(self, run: Run) -> None:
        """Write a checkpoint, and remove all but the last two. One of a later step is damaged, and replaced then."""
        run.verify()
        about, tensors = _state(run)

        def write() -> None:
            stem = f"{STEP}{run.step:08d}"
            model = self._model and self._model | seen(run.sde)
            storage.write(self.folder, stem, tensors, {**about, "model": model, "config": self._config})
            self._prune(stem)
            storage.sweep(self.folder)

        self.engine.together(write)

    def last(self) -> int | None:
        """Return the step of the newest checkpoint in the folder."""
        stems = storage.records(self.folder, STEP)
        return int(stems[-1][len(STEP) :]) if stems else None

    def _prune(self, newest: str) -> None:
        """Keep two checkpoints up to the newest; a run that was killed between writing and removing has one more."""
        stems = storage.records(self.folder, STEP)
        for stem in stems[: stems.index(newest) + 1][:-KEPT]:
            storage.remove(self.folder, stem)

    def snapshot(self, run: Run) -> None:
        """Write the two averages that others are composed of."""
        tensors = {}
        for i, profile in enumerate(run.profiles):
            for name, value in run.weights.named(profile.parts).items():
                tensors[f"{i}.{name}"] = whole_tensor(value)
        about = {"step": run.step, "model": self._model and self._model | seen(run.sde)}
        self.engine.together(lambda: storage.write(self.folder, f"{AVERAGE}{run.step:08d}", tensors, about))

    def finish(self, sde: ScoreSDE) -> None:
        """Write the model."""
        if self._model is not None:

            def write() -> None:
                storage.write(self.folder, MODEL, weights(sde), describe(sde))
                storage.sweep(self.folder)

            self.engine.together(write)


def posthoc_ema(folder: str | os.PathLike[str], sigma: float = 0.1, *, step: int | None = None) -> ScoreSDE:
    """Return a run's model with an average of the weights whose length is chosen now, from the snapshots of two others.

    The power-function average of relative width σ has the profile p_γ,t(τ) = (γ + 1)·τ^γ/t^(γ+1) over the steps τ ≤ t. The sum
    of the snapshots that comes closest to it in L², Σ_i c_i·p_i with Σ_j ⟨p_i, p_j⟩·c_j = ⟨p_i, p⟩, is taken of the weights.

    Parameters
    ----------
    folder : path
        Of a `fit` with out= and snapshots=.
    sigma : float
        σ_rel, the standard deviation of the average's profile as a fraction of training; about 0.1 of the last steps count.
        The two averages stored have 0.05 and 0.1. With 16 snapshots the composed profile differs from the wanted one by 1% (in
        L²) at 0.04 and 0.15, 2% at 0.2, 4% at 0.03 and 0.22, 8% at 0.25; with 8 by three times that. Above 5% a warning says so.
    step : int, optional
        The end of the average: that of a snapshot, by default the last.

    Returns
    -------
    ScoreSDE
        In eval mode, the raw weights as they are in the folder.

    Raises
    ------
    CheckpointError
        Without snapshots, or if they are damaged.
    ValueError
        For a width that none has.

    References
    ----------
    Karras et al., Analyzing and improving the training dynamics of diffusion models, CVPR 2024, section 3 and algorithm 3.

    Examples
    --------
    >>> import scoresde, tempfile
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = scoresde.fit(sde, scoresde.toy.Moons(), steps=50, snapshots=5, out=folder, progress=False)
    ...     scoresde.posthoc_ema(folder, 0.07).shape
    (2,)
    """
    number("sigma", sigma, 0.01, 0.28, hint="it is a fraction of training: try 0.1")
    folder, step = as_path(folder, "folder"), None if step is None else whole("step", step)
    stems = [stem for stem in storage.records(folder, AVERAGE) if step is None or int(stem[len(AVERAGE) :]) <= step]
    if not stems or (step is not None and int(stems[-1][len(AVERAGE) :]) != step):
        raise CheckpointError(
            f"{folder} has no snapshot{'s' if step is None else f' of step {step}'}: fit(..., out=, snapshots=16)"
        )
    sde = load(folder)
    model = describe(sde) | {"averaged": True}
    gammas = [exponent(width) for width in PROFILES]
    kinds = [(gamma, int(stem[len(AVERAGE) :])) for stem in stems for gamma in gammas]
    matrix = [[_inner(*a, *b) for b in kinds] for a in kinds]
    wanted = [_inner(*a, exponent(sigma), kinds[-1][1]) for a in kinds]
    shares = np.linalg.lstsq(np.array(matrix), np.array(wanted), rcond=None)[0]
    own = _inner(exponent(sigma), kinds[-1][1], exponent(sigma), kinds[-1][1])
    left = 1 - float(2 * shares @ wanted - shares @ np.array(matrix) @ shares) / own
    if left > 0.05**2:
        warnings.warn(
            f"an average of width {sigma:g} is {math.sqrt(left):.0%} off, composed of {len(stems)} snapshots: train with more "
            f"of them, or take a sigma nearer to {PROFILES[0]:g} to {PROFILES[1]:g}",
            stacklevel=2,
        )
    total: dict[str, Tensor] = {}
    for stem, pair in zip(stems, shares.reshape(-1, len(gammas)), strict=True):
        about, tensors = storage.read(folder, stem)
        if _unnamed({"model": about.get("model")}) != _unnamed({"model": model}):
            raise CheckpointError(f"{folder / stem} is a snapshot of another model than the one in the folder")
        for name, value in tensors.items():
            i, _, inner = name.partition(".")
            total[inner] = total.get(inner, 0) + float(pair[int(i)]) * value.double()
    if sde.ema is None:
        sde.ema = duplicate(sde.net).requires_grad_(False)
    theirs = dict(sde.ema.named_parameters())
    if not total.keys() <= theirs.keys():
        raise CheckpointError(f"the snapshots in {folder} are of another network")
    with torch.no_grad():
        for name, value in total.items():
            theirs[name].copy_(value)
    return sde.eval()


def _inner(a: float, s: int, b: float, t: int) -> float:
    """⟨p_a,s, p_b,t⟩ = ∫ of the product of two profiles, over the earlier one's steps."""
    if s > t:
        a, s, b, t = b, t, a, s
    return float((a + 1) * (b + 1) / (a + b + 1) * (s / t) ** b / t)


def _unnamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the names of columns and classes: data are matched by them, and runs of before have none."""
    model = config.get("model")
    return {**config, "model": {k: v for k, v in model.items() if k != "schema"} if isinstance(model, Mapping) else model}


def _state(run: Run) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All that a run has to find again, as JSON and tensors."""
    sde, weights, named = run.sde, run.weights, {}
    run.publish(run.average.parts)
    for name in ("mean", "scale", "measured"):
        named[PREFIX + name] = getattr(sde, name)
    named |= {f"{PREFIX}conditions.{name}": value for name, value in sde.conditions.named_buffers()}
    for part, net in (("net.", sde.net), ("ema.", run.shown)):
        for name, value in net.state_dict().items():
            named[PREFIX + part + name] = whole_tensor(value)
    kept = sde.net.state_dict().keys()
    named |= {f"buffer.{name}": value for name, value in sde.net.named_buffers() if name not in kept}  # not persistent, but there
    optimizer = getattr(run.optimizer, "optimizer", run.optimizer)
    states = [optimizer.state[p] for p in weights.parts]
    for key in MOMENTS:
        parts = [state.get(key, torch.zeros_like(p.detach())) for state, p in zip(states, weights.parts, strict=True)]
        named |= {f"optimizer.{key}.{name}": whole_tensor(value) for name, value in weights.named(parts).items()}
    named["optimizer.step"] = max((state["step"] for state in states if state), key=float)
    for i, profile in enumerate(run.profiles):
        named |= {f"profile.{i}.{name}": whole_tensor(value) for name, value in weights.named(profile.parts).items()}
    if run.best is not None:
        named |= {f"best.{name}": whole_tensor(value) for name, value in weights.named(run.best).items()}
    if run.law is not None:
        named |= {"law.moments": run.law.moments, "law.sums": run.engine.each(run.law.sums)}
    named["total"] = run.engine.each(run.total)
    scaler = run.engine.scaler()
    about = {
        "step": run.step,
        "seed": run.seed,
        "position": {k: v * run.engine.world if k == "batch" else v for k, v in run.pairing.at(run.step).items()},
        "averaged": run.average.count,
        "stopped": run.stopped,
        "history": vars(run.history),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    return about, named


def _compare(tensors: Mapping[str, Tensor], prefix: str, wanted: Mapping[str, Tensor]) -> None:
    """See that the tensors after a prefix have the names and shapes of a network's."""
    theirs = {name.removeprefix(prefix): tuple(value.shape) for name, value in tensors.items() if name.startswith(prefix)}
    wrong = sorted({name for name, _ in theirs.items() ^ {name: tuple(value.shape) for name, value in wanted.items()}.items()})
    if wrong:
        raise ValueError(f"{len(wrong)} weights are missing, unknown, frozen or of another shape, first {wrong[0]!r}")


def _restore(run: Run, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    sde, weights = run.sde, run.weights
    _compare(tensors, PREFIX + "net.", sde.net.state_dict())
    _compare(tensors, f"optimizer.{MOMENTS[0]}.", weights.named([p.detach() for p in weights.parts]))
    with torch.no_grad():
        for name in ("mean", "scale", "measured"):
            getattr(sde, name).copy_(tensors[PREFIX + name])
        model = about.get("model") or {}
        sde.learnt = model.get("learnt")
        for name in model.get("conditions", {}):
            of = f"{PREFIX}conditions.{name}."
            sde.conditions.put(name, tensors[of + "mean"].to(run.device), tensors[of + "scale"].to(run.device))
        for net in (sde.net, run.shown):
            for name, value in itertools.chain(net.named_parameters(), net.named_buffers()):
                if not value.requires_grad and PREFIX + "net." + name in tensors:  # what is not trained
                    value.copy_(tensors[PREFIX + "net." + name])
        for name, value in sde.net.named_buffers():
            if f"buffer.{name}" in tensors:
                value.copy_(tensors[f"buffer.{name}"])
    weights.fill([p.detach() for p in weights.parts], tensors, PREFIX + "net.")
    weights.fill(run.average.parts, tensors, PREFIX + "ema.")
    copy_all(run.sound, run.average.parts)
    optimizer = getattr(run.optimizer, "optimizer", run.optimizer)
    moments = {key: [torch.zeros_like(p.detach()) for p in weights.parts] for key in MOMENTS}
    for key, parts in moments.items():
        weights.fill(parts, tensors, f"optimizer.{key}.")
    for i, p in enumerate(weights.parts):
        step = tensors["optimizer.step"].clone()
        optimizer.state[p] = {
            "step": step.to(p.device) if optimizer.defaults["fused"] else step,
            **{key: parts[i] for key, parts in moments.items()},
        }
    for i, profile in enumerate(run.profiles):
        weights.fill(profile.parts, tensors, f"profile.{i}.")
        profile.count = int(about["step"])
    if run.law is not None:
        run.law.moments.copy_(tensors["law.moments"])
        run.law.sums.copy_(run.engine.own(tensors["law.sums"]))
    run.total.copy_(run.engine.own(tensors["total"]))
    run.step, run.average.count, run.stopped = int(about["step"]), int(about["averaged"]), bool(about["stopped"])
    world = run.engine.world  # that take turns at a loader's batches
    run.position = {k: -(-v // world) if k == "batch" else v for k, v in about["position"].items()}
    run.history = type(run.history)(**about["history"])
    if run.history.best is not None:
        run.best = weights.copies()
        weights.fill(run.best, tensors, "best.")
        run.lowest = run.history.validation[run.history.checked.index(run.history.best)]
    scaler = run.engine.scaler()
    if scaler is not None and about["scaler"]:
        scaler.load_state_dict(about["scaler"])
    run.moved = True
