"""`fit`: a checked plan, a trainer made of it, and its run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any, Unpack

import torch

from ..common.checks import check_generator
from ..common.names import suggest_arguments
from ..common.random import FIXED, draw_seed, isolated
from ..common.seeds import takes_seed
from ..data.stream import TrainingStream
from ..model.latent import Latent
from ..model.require import require_sde, require_trainable
from ..model.schema import Schema
from ..model.score_sde import ScoreSDE
from ..model.source import starts
from ..model.trainable import Trainable
from . import conditional_gaussian
from .backend import SingleProcess, start_backend
from .checkpoint import Checkpoint, CheckpointFolder
from .compiled import Compiled
from .couplings import Coupling
from .held_out import HeldOut, Patience, hold_out, usual_steps
from .history import History
from .keywords import Running
from .latents import with_latents
from .model_before import ModelBefore
from .objectives import Objective
from .options import AUTO, HALF_LIFE_STEPS, Averaging, Backend, Checkpoints
from .pairing import Pairing
from .plan import Plan, planned
from .recording import Recorder
from .renamed import old_keywords_translated
from .tables import refuse_table, tell_of_clumps, with_table
from .trainer import Trainer
from .validation import Validator

HASHED_STARTS = 64
"""Samples by which a source is recognized."""


@old_keywords_translated
@torch.inference_mode(False)
@suggest_arguments
@takes_seed
def fit(
    sde: Trainable | Latent,
    data: Any,
    *,
    given: Mapping[str, Any] | None = None,
    transforms: Any = (),
    validation: Any = AUTO,
    objective: str | Objective | None = None,
    coupling: str | Coupling | None = None,
    steps: int | str = AUTO,
    batch_size: int = 512,
    lr: float | str = AUTO,
    ema: float | Averaging = HALF_LIFE_STEPS,
    checkpoints: str | os.PathLike[str] | Checkpoints | None = None,
    backend: str | Backend | Any = None,
    progress: bool | None = None,
    **running: Unpack[Running],
) -> History:
    """Train a model: by default to denoise, which is denoising score matching, and flow matching
    for a rectified flow.

    Minimizes the loss of `objective` with Adam (β = 0.9, 0.99), gradients clipped to norm 1,
    warm-up and cosine decay of the learning rate to 0, and keeps an exponential average of the
    weights, which eval mode uses. Mean and scale of the data are measured the first time and kept
    in the model. A second `fit` goes on from the raw weights.

    Parameters
    ----------
    sde : ScoreSDE, another Trainable, or Latent
        Trained in place, and left in eval mode.
    data : Tensor, array, data frame, Table, list, Samples of a file, Dataset, DataLoader, Pairs, or
    an object with .sample(n)
        Samples of shape sde.shape, in any units; memory-mapped arrays stay on disk. Integers need
        transforms="dequantize". The model keeps the names of columns, and matches later data by
        them; of a `scoresde.Table`, which only a ScoreSDE takes, it keeps the schema. From `Pairs`,
        of `reflow` or your own, it learns which x_1 leads to which x_0. Items of lists, datasets
        and loaders are x, (x, {"y": labels}), {"x": x, "y": labels}, or (x, labels) if the network
        takes just one condition that fits: integers, one a sample, are labels y. A loader's last
        batch may be short.
    given : mapping of str to Tensor, array, Series or list of words, optional
        Conditions by name, one row per sample, for tensors and arrays. Words become classes, and
        the model keeps them. Mean and scale of conditions that are numbers are measured the first
        time and kept in the model; labels, integers, stay as they are. Entries of vectors of which
        most would look alike, by outliers or heavy tails, are told to the network as normal scores.
    transforms : str, Transform, or several
        What happens to every batch, by name: "flip", "dequantize"; see `scoresde.transforms`.
    validation : "auto", None, Tensor, array, data frame or Samples, (x, given), or Validation
        Held-out samples, with a mapping of their conditions if there are any. `fit` notes the
        averaged network's loss on them every 500 steps, or as often as it writes checkpoints.
        `Validation` says how often, and whether training stops when that loss stays high.
        With "auto" `fit` holds out some rows of an array of vectors in memory, chosen by the seed:
        a fifth of up to 500 rows, 100 of up to 1,000, then a tenth, at most 2,000, and none of
        fewer than 20. Training stops when their loss stays high. Of the last average, the best one
        and the untrained network the model keeps the one under which these rows have the highest
        log p. Nothing is held out from other data, nor with a coupling, a source or an objective
        that has no score, nor in a second `fit`. None for no validation.
    objective : str or Objective, optional
        What is learnt: a name of `scoresde.OBJECTIVES`, or an object, such as
        `Denoising(weight="min_snr")` or `Distilled(2)`. By default "denoising", "bridge" for
        `SchrodingerBridge`, and its own for a model that is no ScoreSDE.
    coupling : str or Coupling, optional
        Which noise, or which sample of the model's `source`, is joined with which x0: a name of
        `scoresde.COUPLINGS`. With any but "independent" the model has no score.
    steps : int or "auto"
        Optimizer steps. With "auto" one for each row of an array of vectors in memory, at batches
        of 512, from 500 to 10,000; 10,000 for other data.
    batch_size : int
        Samples per step, over all processes (a DataLoader brings its own, per process).
    lr : float or "auto"
        Peak learning rate. With "auto" that of the network's attribute `learning_rate`, if it has
        one and learns a score: 5e-3 for `mlp` up to width 128 of 4 columns or more, else 3e-3.
    ema : float or Averaging
        Half-life of the average in steps; 0 for none. `Averaging` also keeps snapshots, from which
        `posthoc_ema` composes averages of other lengths.
    checkpoints : path or Checkpoints, optional
        A folder for checkpoints every 500 steps and, at the end, the model, which `load` reads.
        `Checkpoints` says how often, and whether to go on from the newest one.
    backend : accelerate.Accelerator, "compile" or Backend, optional
        An accelerator for several processes, mixed precision or gradient accumulation; "compile"
        for torch.compile; `Backend` for both.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.
    generator : torch.Generator, optional
        The randomness of batches, noise and dropout. Without one, torch's global generator gives
        the seed. While it trains, `fit` seeds the process's global generators, and puts them back
        at the end: other threads should not draw from them meanwhile.
    seed : int, optional
        An integer in place of the generator.
    log : path, Log, or an object with .log(dict, step), optional
        Where to write losses while it trains: a file that ends in .jsonl, a folder for TensorBoard,
        or a logger, such as a run of wandb. `Log` adds samples.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        For bad arguments or data, before any work starts.
    TrainingError
        If the loss is not finite, or the data raise an error, which is its cause. The last
        checkpoint is kept.
    CheckpointError
        If the folder of checkpoints can't be written, holds something else, or holds a run that
        these arguments do not go on with.

    References
    ----------
    Song et al. 2021; Karras et al. 2022; Lipman et al. 2023.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("rectified", "mlp", shape=(2,))
    >>> scoresde.fit(sde, torch.randn(1000, 2), steps=20, progress=False)
    History(steps=20, loss=..., seconds=...)
    """
    latent = None
    if isinstance(sde, Latent):
        latent = sde
        sde = require_sde(latent.model, "fit")
    sde = require_trainable(sde, "fit")
    generator = running.get("generator")
    check_generator(generator)
    plan = planned(
        sde,
        transforms=transforms,
        validation=validation,
        objective=objective,
        coupling=coupling,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema=ema,
        checkpoints=checkpoints,
        backend=backend,
        progress=progress,
        log=running.get("log"),
    )
    refuse_table(latent or sde, data, plan.validation)
    runner = start_backend(plan.backend.accelerator, sde)
    seed = runner.agree(draw_seed(generator), plan.of_this_call())
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(runner.telling())
        folder = None
        if plan.checkpoints is not None:
            folder = stack.enter_context(CheckpointFolder(plan.checkpoints, runner))
            seed = folder.newest.seed if folder.newest is not None else seed
        reseed = stack.enter_context(isolated(sde.scale.device))
        if latent is not None:
            data, given, plan = with_latents(latent, data, given, plan)
        trainer = _trainer(stack, sde, data, given, plan, runner, folder, seed)
        if folder is not None:
            stack.enter_context(folder.named_in_errors())
        recorder = Recorder(plan.log, getattr(sde, "whole", latent or sde), trainer, plan.resumes)
        trainer.recorder = stack.enter_context(recorder)
        trainer.run(reseed, folder)
    return trainer.history


def _trainer(
    stack: contextlib.ExitStack,
    sde: Trainable,
    data: Any,
    given: Mapping[str, Any] | None,
    plan: Plan,
    backend: SingleProcess,
    folder: CheckpointFolder | None,
    seed: int,
) -> Trainer:
    """Return a run, new or restored, that is ready to make steps; the stack closes it."""
    before = ModelBefore(sde)
    stack.callback(before.restore)
    newest = None if folder is None else folder.newest
    if newest is not None and newest.schema:
        sde.schema.assign(Schema.rebuild(newest.schema, sde.shape))
    data, given, plan = with_table(sde, data, given, plan)
    data, given = _matched(sde, data, given)
    source = TrainingStream(
        data,
        sde,
        plan.batch_size,
        seed=seed,
        given=given,
        transforms=plan.transforms,
        rank=backend.rank,
        world=backend.world,
    )
    pairing = Pairing(source, sde, plan.coupling, seed, backend.rank)
    stack.callback(pairing.close)
    plan = _completed(sde, plan, source, newest)
    objective, validator = _objective_for(sde, plan, source, seed)
    settings = plan.settings(objective)
    if folder is not None or backend.world > 1:
        settings |= _data_settings(sde, source, validator)
    if folder is not None:
        folder.check(sde, settings)
    backend.share([*sde.parameters(), *sde.buffers()], settings)
    trainer = Trainer(sde, objective, pairing, backend, plan, before)
    stack.callback(trainer.close)
    if isinstance(validator, HeldOut):
        trainer.stopping = Patience(plan.steps)
        trainer.history.held_out = sorted(validator.rows.tolist())
    if newest is not None and folder is not None:
        folder.restore(trainer)
    else:
        tell_of_clumps(sde, data, plan)
        source.standardize(sde)
        source.standardize_conditions(sde)
        if sde.learnt is None and sde.ema is None:
            conditional_gaussian.measure(sde, source, objective)
        sde.learnt = _learnt_conditions(sde, source)
    sde._warned = False
    backend.share(list(sde.buffers()), last=True)
    if validator is not None:
        validator.fix()
        trainer.validator = validator
    if plan.backend.compile:
        trainer.net = Compiled(trainer.net)
    trainer.net = sde.standardization.varying(trainer.net)
    return trainer


def _matched(sde: Trainable, data: Any, given: Any) -> tuple[Any, Any]:
    """Return data and conditions, matched by the names that the model knows and now learns."""
    ready = getattr(data, "schema", None)  # of pairs and of dequantized data
    if isinstance(ready, Schema):
        sde.schema.follow(ready)
    return sde.schema.learn(data, given)


def _completed(
    sde: Trainable, plan: Plan, source: TrainingStream, newest: Checkpoint | None
) -> Plan:
    """Return a plan whose steps are known; a run that held nothing out goes on so."""
    steps = plan.steps
    if plan.steps_by_data:
        steps = usual_steps(sde, source, plan.batch_size)
    holds_out = plan.holds_out and sde.ema is None  # a trained network may have seen any row
    if newest is not None:
        holds_out = plan.holds_out and newest.settings.get("validation") is not None
        if plan.steps_by_data:
            steps = newest.settings.get("steps", steps)
    return dataclasses.replace(plan, steps=steps, steps_by_data=False, holds_out=holds_out)


def _objective_for(
    sde: Trainable, plan: Plan, source: TrainingStream, seed: int
) -> tuple[Objective, Validator | None]:
    """Return the objective of these data, and what validates it; raise if there is none."""
    paired = source.paired
    joined = plan.coupling.joins
    if paired and not isinstance(sde, ScoreSDE):
        raise TypeError(
            f"Pairs are the ends of a ScoreSDE's paths, and this is a {type(sde).__name__}"
        )
    if isinstance(sde, ScoreSDE) and paired and not sde.process.ends_in_noise:
        raise ValueError(
            f"pairs are the two ends of paths, and at t = 1 {sde.process} is not at one; try "
            "RectifiedFlow()"
        )
    if (paired or joined) and plan.validation is not None:
        raise ValueError(
            "validation= measures the loss of independent pairs, which a model of coupled ones "
            "does not learn"
        )
    objective = plan.objective.prepared(sde, paired=paired, joined=joined)
    sde.has_learnt(objective)
    if plan.holds_out:
        return objective, hold_out(sde, plan, objective, source, seed)
    if plan.validation is None:
        return objective, None
    validator = Validator(sde, plan, plan.validation)
    validator.check(source.condition_names)
    return objective, validator


def _data_settings(
    sde: Trainable, source: TrainingStream, validator: Validator | None
) -> dict[str, Any]:
    """Return what the data of a run are recognized by, in plain JSON."""
    found: dict[str, Any] = {
        "data": source.fingerprint,
        "validation": None if validator is None else validator.fingerprint,
    }
    if sde.source is not None:
        few = starts(sde.source, FIXED, 0, HASHED_STARTS, sde.shape)
        found["source"] = hashlib.sha256(few.cpu().double().numpy().tobytes()).hexdigest()
    return found


def _learnt_conditions(sde: Trainable, source: TrainingStream) -> dict[str, Any]:
    """Return the conditions of this run and those before, and whether "none" is learnt too."""
    before = {} if sde.learnt is None else sde.learnt["conditions"]
    shapes = {name: list(shape) for name, shape in source.conditions.items()}
    return {
        "conditions": {**before, **shapes},
        "unconditional": sde.interface.can_do_without or not source.conditions,
    }
