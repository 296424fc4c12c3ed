"""A training run between two steps, and what makes the next one.

All randomness of a step depends on the seed, the step and the rank alone. So a run that was
interrupted goes on from its last checkpoint with the numbers it would have seen, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..common.errors import TrainingError
from ..common.modules import duplicate
from ..common.progress import counted
from ..common.random import LEVELS, NETWORK, seeded
from ..model.condition_scales import standardized
from ..model.gaps import with_gaps
from ..model.trainable import Trainable
from . import state
from .averaging import Averages, copy_all
from .backend import SingleProcess
from .checkpoint import CheckpointFolder
from .held_out import HeldOut, choose_average
from .history import History
from .model_before import ModelBefore
from .noise_levels import stratified_quantiles
from .objectives import Objective
from .pairing import Pairing
from .plan import Plan
from .recording import Recorder
from .validation import EarlyStopping, Validator

GRADIENT_NORM = 1.0
"""The norm that gradients are scaled down to."""

WARM_UP_STEPS = 200
NOTED_STEPS = 100
"""Steps between two losses in the history, in a long run."""

Reseed = Callable[..., None]


class Trainer:
    """A run: `steps_to_go` makes its steps, `state_dict` holds all that it needs to go on."""

    def __init__(
        self,
        sde: Trainable,
        objective: Objective,
        pairing: Pairing,
        backend: SingleProcess,
        plan: Plan,
        before: ModelBefore,
    ) -> None:
        self.sde = sde
        self.objective = objective
        self.pairing = pairing
        self.backend = backend
        self.plan = plan
        self.before = before
        self.step = 0
        self.position: dict[str, int] = {}
        """In the data, where to begin."""
        self.history = History()
        self.validator: Validator | None = None
        self.recorder: Recorder | None = None
        self.stopping = EarlyStopping(plan.patience, plan.patient_steps)
        self.total = torch.zeros((), device=sde.scale.device)
        """Of the losses since the last note."""
        self.averaged_net = duplicate(sde.net).requires_grad_(False)
        self.net, self.weights, self.optimizer = backend.prepare(sde, plan.lr)
        self._names = self._trained_names()
        self._follow = getattr(sde.interface.inner, "follow_training", None)
        self._closed = False
        try:
            averaging = plan.averaging
            self.averages = Averages(
                self.weights, averaging.half_life, averaging.snapshots, sde.ema
            )
            sde.train()
        except BaseException:  # before there is a run that can be closed
            self.weights.release()
            raise

    # ------------------------------------------------------------------ the run

    def run(self, reseed: Reseed, folder: CheckpointFolder | None) -> None:
        """Make all steps that are left, and write down what they lead to."""
        steps = self.plan.steps
        snapshots = self.plan.averaging.snapshots
        noted = max(1, min(NOTED_STEPS, steps // 10))
        kept = {round(i * steps / snapshots) for i in range(1, snapshots + 1)}
        begun = time.perf_counter()
        passed = self.history.seconds
        held = self.validator if isinstance(self.validator, HeldOut) else None
        watched = self.validator
        if watched is not None and watched.checks_untrained and not self.history.checked:
            self.validate()  # the untrained network
            self.record(0)
        with self._bar() as bar:
            for step in self.steps_to_go(reseed):
                last = step == steps
                if step % noted == 0 or last:
                    self.note()
                    bar.set_postfix(loss=f"{self.history.loss[-1]:.4f}", refresh=False)
                    bar.update(step - bar.n)
                if self.validator is not None and (self.validator.due(step) or last):
                    self.validate()
                    if self.stopping.stopped and self.history.step[-1:] != [step]:
                        self.note()
                self.history.seconds = passed + time.perf_counter() - begun
                self.record(step)
                if folder is None:
                    continue
                if step in kept:
                    folder.snapshot(self.sde, step, self._profiles())
                if step % folder.every == 0 or last or self.stopping.stopped:
                    self.verify()
                    folder.save(self.sde, self.state_dict())
            if held is not None:
                choose_average(self)
            self.close()
            if folder is not None:
                folder.finish(self.sde)

    def record(self, step: int) -> None:
        """Let the log have what was noted at a step."""
        if self.recorder is not None:
            self.recorder.follow(step)

    def _bar(self) -> contextlib.AbstractContextManager[tqdm[Any]]:
        """The progress bar; calls inside it have none."""
        progress = self.plan.progress if self.backend.main else False
        return counted(self.plan.steps, "fit", progress, done=self.step)

    def steps_to_go(self, reseed: Reseed) -> Iterator[int]:
        """Make step after step, and yield the number of each that was made."""
        seed = self.pairing.seed
        rank = self.backend.rank
        last = self.plan.steps
        warm = max(1, min(WARM_UP_STEPS, last // 10))
        for examples, sizes, skip in self._batches():
            starts = itertools.accumulate(sizes, initial=0)
            for start, b in list(zip(starts, sizes, strict=False))[skip:]:
                self.step = step = self.step + 1
                decay = 0.5 * (1 + math.cos(math.pi * (step - 1) / last))
                for group in self.optimizer.param_groups:
                    group["lr"] = self.plan.lr * min(step / warm, decay)
                if self._follow is not None:
                    self._follow((step - 1) / last)
                reseed(seed, NETWORK, step, rank)
                self._descend(examples, start, b)
                self.averages.update()
                self.before.replaced = True
                yield step
                if self.stopping.stopped or step >= last:
                    return

    def _batches(self) -> Iterator[tuple[Any, list[int], int]]:
        """Yield the examples of several steps, the rows of each step, and how many to skip."""
        if self.stopping.stopped or self.step >= self.plan.steps:
            return  # a finished run that is resumed asks for no data
        sde = self.sde
        device = sde.scale.device
        drop_conditions = sde.interface.drop
        steps = self.plan.steps
        for x0, eps, condition, sizes in self.pairing.batches(self.step, self.position, steps):
            if self.step >= steps:
                return
            group, skip = divmod(self.step, len(sizes))
            g = seeded(device, self.pairing.seed, LEVELS, group, self.backend.rank)
            if eps is None:
                shape = len(x0), sde.dim
                eps = torch.randn(shape, generator=g, device=device, dtype=sde.state_dtype)
            if len(set(sizes)) == 1:
                q = stratified_quantiles(len(sizes), sizes[0], g, device)
            else:  # the last batch of a loader is short
                q = torch.cat([stratified_quantiles(1, b, g, device) for b in sizes])
            z0 = sde.from_data(x0).to(eps)
            condition = standardized(sde, condition)
            if sde.interface.takes_gaps:
                z0, condition["seen"] = with_gaps(sde, z0)
            if condition and drop_conditions is not None:
                condition = drop_conditions(condition, g)
            if skip == 0:
                self.objective.update(self.backend.sum)
            yield self.objective.examples(sde, z0, eps, q, condition), sizes, skip

    def _descend(self, examples: Any, start: int, b: int) -> None:
        """Make one step of the optimizer, from b rows of the examples."""
        backend = self.backend
        device = self.total.device
        progress = self.step / self.plan.steps
        words = self.pairing.seed, LEVELS, self.step, backend.rank
        self.weights.zero_grad()
        for rows, share in backend.micro(start, b):
            generator = functools.partial(seeded, device, *words, rows.start)
            with backend.syncing(rows.stop == start + b):
                value = self.objective.loss(
                    self.net, self.sde, examples[rows], progress, generator
                )
                value = value if share == 1 else share * value
                backend.backward(value)
            self.total += value.detach()
        backend.clip(self.weights, GRADIENT_NORM)
        self.optimizer.step()

    # ------------------------------------------------------------------ what it leads to

    def note(self) -> None:
        """Write down the mean loss since the last note."""
        mean = self.verify()
        self.history.step.append(self.step)
        self.history.loss.append(mean)
        self.total.zero_()

    def verify(self) -> float:
        """Return the mean loss since the last note; raise unless it and the average are finite.

        Called before each save, so that a NaN checkpoint never replaces a usable one. Only here
        the device is waited for.
        """
        names = self._trained_names()
        if names != self._names:
            raise TrainingError(
                f"parameters came or went while the network was called: "
                f"{sorted(names ^ self._names)[:3]}; make them before"
            )
        noted = self.history.step[-1] if self.history.step else 0
        mean = float(self.backend.mean(self.total)) / max(1, self.step - noted)
        averages = self.averages
        if not (math.isfinite(mean) and averages.are_finite()):
            copy_all(averages.main.parts, averages.last_finite)
            copy_all([p.detach() for p in self.weights.parts], averages.last_finite)
            if not self.step:
                raise TrainingError("a weight of the untrained network is not finite")
            raise TrainingError(
                f"the loss is {mean} after step {self.step}, or a weight is not finite; lower lr "
                f"(now {self.plan.lr:g})"
            )
        copy_all(averages.last_finite, averages.main.parts)
        return mean

    def validate(self) -> None:
        """Note the loss of the averaged weights on held-out samples; stop if it stays high."""
        assert self.validator is not None
        self.verify()
        self.sde.eval()
        average = self.averages.main.parts
        with torch.no_grad(), self.weights.holding(average):
            loss = self.validator.loss(self.net, self.backend)
        self.sde.train()
        self.stopping.record(self.step, loss, self.history, average)

    @torch.no_grad()
    def publish(self, parts: list[Tensor]) -> None:
        """Give the model an average for its eval mode, with the buffers of the network."""
        self.weights.fill_module(self.averaged_net, parts)
        buffers = zip(self.averaged_net.buffers(), self.sde.net.buffers(), strict=True)
        for mine, theirs in buffers:
            mine.copy_(theirs)
        self.sde.ema = self.averaged_net

    def close(self) -> None:
        """Leave a model that can be used, whatever happened."""
        if self._closed:
            return
        self._closed = True
        trained = self.before.replaced
        if trained:
            self.publish(self.stopping.best or self.averages.main.parts)
        self.weights.release()
        self.backend.release(self.sde)
        self.sde.eval()
        if not trained:
            self.sde.train(self.before.training)

    def _trained_names(self) -> set[str]:
        return {name for name, p in self.sde.net.named_parameters() if p.requires_grad}

    def _profiles(self) -> dict[str, Tensor]:
        """Return the averages of a snapshot."""
        found: dict[str, Tensor] = {}
        for i, profile in enumerate(self.averages.profiles):
            found |= state.named(self.weights, profile.parts, f"{i}.")
        return found

    # ------------------------------------------------------------------ its state

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on: tensors, and plain JSON; all ranks call it."""
        backend = self.backend
        weights = self.weights
        self.publish(self.averages.main.parts)
        scaler = backend.scaler()
        found: dict[str, Any] = {
            "step": self.step,
            "seed": self.pairing.seed,
            "position": state.of_all_ranks(self.pairing.at(self.step), backend.world),
            "averaged": self.averages.main.count,
            "stopped": self.stopping.stopped,
            "history": dict(vars(self.history)),
            "scaler": None if scaler is None else scaler.state_dict(),
            "learnt": self.sde.learnt,
        }
        found |= state.model_tensors(self.sde, self.averaged_net)
        found |= state.optimizer_tensors(self.optimizer, weights)
        for i, profile in enumerate(self.averages.profiles):
            found |= state.named(weights, profile.parts, f"profile.{i}.")
        for name, parts in self.stopping.averages().items():
            found |= state.named(weights, parts, name)
        for name, value in self.objective.state_dict().items():
            shared = name not in self.objective.per_rank
            found[f"law.{name}"] = value if shared else backend.each(value)
        found["total"] = backend.each(self.total)
        return found

    @torch.no_grad()
    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, on as many ranks or another number of them."""
        backend = self.backend
        weights = self.weights
        averages = self.averages
        state.check(found, self.sde, weights)
        state.load_model(found, self.sde, self.averaged_net)
        weights.fill([p.detach() for p in weights.parts], found, state.NET)
        weights.fill(averages.main.parts, found, state.EMA)
        copy_all(averages.last_finite, averages.main.parts)
        state.load_optimizer(found, self.optimizer, weights)
        for i, profile in enumerate(averages.profiles):
            weights.fill(profile.parts, found, f"profile.{i}.")
            profile.count = int(found["step"])
        objective = {}
        for name in self.objective.state_dict():
            value = found[f"law.{name}"]
            objective[name] = backend.own(value) if name in self.objective.per_rank else value
        self.objective.load_state_dict(objective)
        self.total.copy_(backend.own(found["total"]))
        self.step = int(found["step"])
        averages.main.count = int(found["averaged"])
        self.position = state.of_one_rank(found["position"], backend.world)
        self.history = History(**found["history"])
        self.stopping.restore(bool(found["stopped"]), self.history, weights, found)
        scaler = backend.scaler()
        if scaler is not None and found["scaler"]:
            scaler.load_state_dict(found["scaler"])
        self.before.replaced = True
