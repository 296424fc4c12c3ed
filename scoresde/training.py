"""The training loop: what `fit` does with a model, data, and the loss of `scoresde.objective`.

All randomness of a step depends on the seed, the step and the rank alone. So a run that was interrupted goes on from its last
checkpoint with the numbers it would have seen, bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .checkpoint import PROFILES, Checkpoints
from .checks import affordable, as_path, check_generator, flag, number, whole
from .coupling import COUPLINGS, Coupling, Pairing
from .data import Source
from .engine import Engine
from .errors import TrainingError
from .history import History
from .modules import duplicate, leave_inference
from .objective import (
    OBJECTIVES,
    AdaptiveLaw,
    Examples,
    Objective,
    answer,
    check_names,
    corrupt,
    errors,
    law,
    mean_error,
    quantiles,
)
from .plan import starting_points
from .random import FIXED, LEVELS, NETWORK, draw_seed, isolated, seeded
from .ranks import shared
from .registry import explained
from .schema import Schema
from .sde import ScoreSDE, offers, require_sde
from .source import starts
from .transforms import resolve
from .weights import Average, copy_all, exponent, half_life, power, whole_tensor

CLIP = 1.0  # norm that gradients are scaled down to
FIXED_EXAMPLES = 8192  # of the validation loss, at least half and at most twice as many …
FIXED_NUMBERS = 2**24  # … and fewer where samples are large


@torch.inference_mode(False)
@explained
def fit(
    sde: ScoreSDE,
    data: Any,
    *,
    given: Mapping[str, Tensor] | None = None,
    transforms: Any = (),
    validation: Any = None,
    patience: int | None = None,
    steps: int = 10_000,
    batch_size: int = 512,
    lr: float = 3e-3,
    weight: str = "edm",
    noise: str | None = None,
    coupling: str | Coupling | None = None,
    objective: str | Objective | None = None,
    ema: float = 700,
    snapshots: int = 0,
    out: str | os.PathLike[str] | None = None,
    every: int = 500,
    resume: bool = False,
    compile: bool = False,
    accelerator: Any = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> History:
    """Train a model by denoising score matching (flow matching, for a rectified flow: the same loss).

    Minimizes E w(φ)·‖arc-velocity error‖² with Adam (β = 0.9, 0.99), gradients clipped to norm 1, warm-up and cosine decay
    of the learning rate to 0, and keeps an exponential average of the weights, which eval mode uses. Mean and scale of the
    data are measured the first time and kept in the model. A second `fit` goes on from the raw weights.

    Parameters
    ----------
    sde : ScoreSDE
        Trained in place, and left in eval mode.
    data : Tensor, array, data frame, list, Samples of a file, Dataset, DataLoader, Pairs, or an object with .sample(n)
        Samples of shape sde.shape, in any units; memory-mapped arrays stay on disk. Integers need
        transforms="dequantize". The model keeps the names of columns, and matches later data by them. Of `Pairs`, from
        `reflow` or anywhere, it is learnt which x_1 leads to which x_0. Items of lists, datasets and loaders are x,
        (x, {"y": labels}), {"x": x, "y": labels}, or (x, labels) if the network takes just one condition that fits:
        integers, one a sample, are labels y. A loader's last batch may be short.
    given : mapping of str to Tensor, array, Series or list of words, optional
        Conditions by name, one row per sample, for tensors and arrays. Words become classes, and the model keeps them. Mean
        and scale of those that are numbers are measured the first time and kept in the model; labels, integers, are taken as
        they are.
    transforms : str, Transform, or several
        What happens to every batch, by name: "flip", "dequantize"; see `scoresde.transforms`.
    validation : Tensor, array, data frame or Samples, or a pair of such and a mapping of conditions, optional
        Held-out samples. The averaged network's loss on them, with noise and noise levels that stay the same, is noted every
        `every` steps.
    patience : int, optional
        Stop after so many validations without a new lowest loss, and keep the average that had it.
    steps : int
        Optimizer steps.
    batch_size : int
        Samples per step, over all processes (a DataLoader brings its own, per process).
    lr : float
        Peak learning rate.
    weight : str
        A key of `scoresde.WEIGHTS`.
    noise : str, optional
        The law of noise levels, a key of `scoresde.NOISES`: by default "lognormal", and "uniform" where x1 tells about x0, as
        coupled pairs do, and much is to be learnt where they begin. "nodes:k" distils `Pairs` for k steps of "ddim": only the
        levels t = 1/k, 2/k … 1 are learnt.
    coupling : str or Coupling, optional
        Which noise, or which sample of the model's `source`, is joined with which x0: a name of `scoresde.COUPLINGS`. With any
        but "independent" the model has no score.
    objective : str or Objective, optional
        What is learnt: a name of `scoresde.OBJECTIVES`; by default "denoising", and "bridge" for `SchrodingerBridge`.
    ema : float
        Half-life of the average in steps; 0 for none. It is shorter at first: about a thirteenth of the steps so far.
    snapshots : int
        How many snapshots of two further averages to keep in `out`, at most one a step, for `posthoc_ema` to choose the
        averaging length later.
    out : path, optional
        A folder for checkpoints and, at the end, the model, which `load` reads.
    every : int
        Steps between checkpoints, and between validations. The last two checkpoints are kept.
    resume : bool
        Go on from the newest checkpoint in `out`, if there is one, as if nothing had happened. Data and arguments have to be
        those of the run; the randomness is the run's own, whatever `generator` says.
    compile : bool
        Whether to call the network through torch.compile; if that fails, it is called as it is, with a warning.
    accelerator : accelerate.Accelerator, optional
        For several processes (DDP, FSDP2), mixed precision with loss scaling, and gradient accumulation. Needs
        `pip install scoresde[train]`.
    generator : torch.Generator, optional
        The randomness of batches, noise and dropout. Without one, torch's global generator gives the seed. While it trains, `fit`
        seeds the process's global generators, and puts them back at the end: other threads had better not draw from them.
    progress : bool
        Show a progress bar (on a terminal).

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        For bad arguments or data, before any work starts.
    TrainingError
        If the loss is not finite, or the data raise an error, which is its cause. The last checkpoint is kept.
    CheckpointError
        If `out` can't be written, is another's, or holds a run that these arguments do not go on with.

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
    sde = require_sde(sde, "fit")
    check_generator(generator)
    for name, value in (("weight", weight), ("noise", noise)):
        if not isinstance(value, str) and (name, value) != ("noise", None):
            raise TypeError(f"{name} is a name, such as {'edm' if name == 'weight' else 'uniform'!r}, got {value!r}")
    check_names(weight, "uniform" if noise is None else noise)
    objective = sde.process.objective if objective is None else objective
    aim = OBJECTIVES.build(objective) if isinstance(objective, str) else objective
    if aim is not None:
        if not isinstance(aim, Objective):
            raise TypeError(f"objective is a name or an Objective, got {type(objective).__name__}")
        if (weight, noise) != ("edm", None):
            raise ValueError(f"weight= and noise= are of objective='denoising'; {objective!r} has its own")
        if validation is not None and ("velocity" not in offers(aim.kind) or "bridge" in offers(aim.kind)):
            raise ValueError(f"validation= measures how well a model denoises, which with {objective!r} it does not learn")
        aim.check(sde)
    if coupling is None:
        coupling = "independent" if aim is None else aim.coupling(sde)
    joined = COUPLINGS.build(coupling) if isinstance(coupling, str) else coupling
    if not isinstance(joined, Coupling):
        hint = f": write {coupling.__name__}()" if isinstance(coupling, type) else ""
        raise TypeError(f"coupling is a name or a Coupling, got {type(coupling).__name__}{hint}")
    steps, batch_size, every = whole("steps", steps), whole("batch_size", batch_size), whole("every", every)
    snapshots, lr = whole("snapshots", snapshots, 0), number("lr", lr, 0, math.inf, hint="try 3e-3")
    ema = number("ema", ema, 0, math.inf, closed=True, hint="it is a half-life in steps: try 700, or 0 for none")
    if 0 < ema < 1:
        raise ValueError(f"ema is a half-life in steps, got {ema:g}; a decay of 0.999 a step has a half-life of 700")
    resume, compile, progress = flag("resume", resume), flag("compile", compile), flag("progress", progress)
    affordable(f"steps={steps}", calls=steps)
    affordable(f"batch_size={batch_size}", 4.0 * sde.dim * batch_size, device=sde.scale.device)
    out = None if out is None else as_path(out, "out")
    if snapshots > steps:
        raise ValueError(f"snapshots is at most the number of steps, {steps}, got {snapshots}")
    if patience is not None:
        patience = whole("patience", patience)
        if validation is None:
            raise ValueError("patience= goes with validation=, whose loss it watches")
    if out is None and (resume or snapshots):
        raise ValueError(f"{'resume' if resume else 'snapshots'}= needs a folder: out=")
    if shared():
        raise ValueError("fit has no place inside sharded(): to train on several ranks, give it accelerator=Accelerator()")
    if sde.is_view:
        raise ValueError("fit trains the whole model, not one conditioned by given(...): pass labels as fit(..., given={'y': y})")
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in sde.net.parameters() if p.requires_grad):
        warnings.warn(
            "weights of half precision lose small updates, and their average lags: keep them float32 and train with "
            "accelerator=Accelerator(mixed_precision='bf16')",
            stacklevel=4,
        )
    leave_inference(sde)
    if not any(p.requires_grad for p in sde.net.parameters()):
        raise ValueError("this model's network has no parameters to train (an oracle?)")
    transforms = resolve(transforms)
    engine = Engine(accelerator, sde)
    config = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "weight": weight, "ema": ema, "snapshots": snapshots,
        "patience": patience, "every": every if validation is not None else None,
        "dtype": str(next(sde.net.parameters()).dtype).removeprefix("torch."),
    }  # fmt: skip
    seed = engine.agree(draw_seed(generator), config | {"out": out is not None, "resume": resume, "compile": compile})
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(engine.telling())
        checkpoints = stack.enter_context(Checkpoints(out, resume, engine)) if out is not None else None
        if checkpoints is not None and checkpoints.newest is not None:
            seed = checkpoints.newest.seed
        reseed = stack.enter_context(isolated(sde.scale.device))
        rank = {"rank": engine.rank, "world": engine.world}
        run, names = None, sde.schema.copy()
        stack.callback(lambda: None if run is not None and run.moved else sde.schema.assign(names))
        if checkpoints is not None and checkpoints.newest is not None and (before := checkpoints.newest.names):
            sde.schema.assign(Schema.rebuild(before, sde.shape))
        if isinstance(ready := getattr(data, "schema", None), Schema):
            sde.schema.follow(ready)
        data, given = sde.schema.learn(data, given)
        source = Source(data, sde, batch_size, seed=seed, given=given, transforms=transforms, **rank)
        pairing = Pairing(source, sde, joined, seed, engine.rank)
        stack.callback(pairing.close)
        coupled = source.paired or joined.joins
        if source.paired and not sde.process.ends_in_noise:
            raise ValueError(f"pairs are the two ends of paths, and at t = 1 {sde.process} is not at one; try RectifiedFlow()")
        noise = ("uniform" if coupled or sde.source is not None else "lognormal") if noise is None else noise
        if coupled and validation is not None:
            raise ValueError("validation= measures the loss of independent pairs, which a model of coupled ones does not learn")
        if noise.startswith("nodes:") and not source.paired:
            raise ValueError(
                f"noise={noise!r} distils pairs of points and what the ODE makes of them: fit(sde, reflow(teacher, n), ...)"
            )
        kind = sde.kind
        stack.callback(lambda: setattr(sde, "kind", sde.kind if run is not None and run.moved else kind))
        sde.kind = _kind(sde, coupled, aim, noise)
        held_out = None if validation is None else _held_out(sde, validation, batch_size, transforms)
        if held_out is not None and source.names is not None and held_out.names != source.names:
            raise ValueError(
                f"validation has conditions {sorted(held_out.names or ())} where training has {sorted(source.names)}: "
                "give both the same, validation=(x, {'y': y})"
            )
        if checkpoints is not None or engine.world > 1:  # who compare: with the run before, and with one another
            config |= {"data": source.about, "validation": held_out and held_out.about}
            if sde.source is not None:
                few = starts(sde.source, FIXED, 0, 64, sde.shape)
                config |= {"source": hashlib.sha256(few.cpu().double().numpy().tobytes()).hexdigest()}
        *told, paired, aimed = (
            re.sub(r" at 0x[0-9a-fA-F]+", "", str(each))  # an address is another's tomorrow
            for each in (*transforms, joined, objective)
        )
        config |= {"noise": noise, "transforms": told, "coupling": paired, "objective": aimed}
        if checkpoints is not None:
            checkpoints.check(sde, config)
        engine.share([*sde.parameters(), *sde.buffers()], config)
        run = Run(sde, pairing, aim, engine, seed, steps, lr, weight, noise, ema, snapshots)
        stack.callback(run.close)
        if checkpoints is not None and checkpoints.newest is not None:
            checkpoints.restore(run)
        else:
            source.settle(sde)
            source.settle_conditions(sde)
            sde.learnt = _learnt(sde, source)
        sde._said[0] = False
        engine.share([sde.mean, sde.scale, sde.measured, *sde.conditions.buffers()], last=True)
        run.examples = None if held_out is None else _fixed(sde, held_out, weight, noise)
        if compile:
            run.call = Compiled(run.call)
        run.call = sde.varying(run.call)
        begun, passed = time.perf_counter(), run.history.seconds
        bar = stack.enter_context(
            tqdm(total=steps, initial=run.step, desc="fit", disable=None if progress and engine.main else True, mininterval=0.5)
        )
        stack.enter_context(_naming_the_checkpoint(checkpoints))
        note = max(1, min(100, steps // 10))
        keep = {round(i * steps / snapshots) for i in range(1, snapshots + 1)} if snapshots else set()
        for step in run.steps_to_go(reseed):
            last = step == steps
            if step % note == 0 or last:
                run.note()
                bar.set_postfix(loss=f"{run.history.loss[-1]:.4f}", refresh=False)
                bar.update(step - bar.n)
            if run.examples is not None and (step % every == 0 or last):
                run.validate(patience)
                if run.stopped and run.history.step[-1:] != [step]:
                    run.note()
            run.history.seconds = passed + time.perf_counter() - begun
            if checkpoints is not None:
                if step in keep:
                    checkpoints.snapshot(run)
                if step % every == 0 or last or run.stopped:
                    checkpoints.save(run)
        run.close()
        if checkpoints is not None:
            checkpoints.finish(sde)
    return run.history


class Run:
    """A training run between two steps: all that a checkpoint has to hold, and what makes the next step.

    Parameters
    ----------
    sde : ScoreSDE
    pairing : Pairing
        The data.
    objective : Objective or None
        None for denoising.
    engine : Engine
    seed, steps, lr, weight, noise, ema, snapshots
        As for `fit`.
    """

    def __init__(
        self,
        sde: ScoreSDE,
        pairing: Pairing,
        objective: Objective | None,
        engine: Engine,
        seed: int,
        steps: int,
        lr: float,
        weight: str,
        noise: str,
        ema: float,
        snapshots: int,
    ) -> None:
        self.sde, self.pairing, self.engine, self.seed, self.steps, self.lr = sde, pairing, engine, seed, steps, lr
        self.objective = objective
        self.position: dict[str, int] = {}  # in the data, to begin at
        self.weight, self.step, self.stopped = weight, 0, False
        self.device, self.process = sde.scale.device, sde.process
        self.shown = duplicate(sde.net).requires_grad_(False)  # what becomes the averaged network
        self.hide = getattr(sde.net, "hide", None)
        self.call, self.weights, self.optimizer = engine.prepare(sde, lr)
        self.noise = law(noise)
        self.law = AdaptiveLaw(self.noise, self.device) if noise == "adaptive" else None
        self.total = torch.zeros((), device=self.device)
        self.history = History()
        self.examples: list[Examples] | None = None
        self.best: list[Tensor] | None = None
        self.lowest = math.inf
        self.moved = self.closed = False
        self.before = [value.clone() for value in (sde.mean, sde.scale, sde.measured)], sde.training
        self.known = set(sde.conditions.known()), sde.learnt
        self.names = {name for name, p in sde.net.named_parameters() if p.requires_grad}
        try:
            before = sde.ema
            self.average = Average(self.weights, half_life(ema), 0 if before is None else 10**9)
            if before is not None:  # a second fit goes on with the average as well
                self.weights.fill(self.average.parts, dict(before.named_parameters()))
            self.profiles = [Average(self.weights, power(exponent(s))) for s in PROFILES] if snapshots else []
            self.sound = [p.clone() for p in self.average.parts]  # the average when the loss was last seen to be finite
            sde.train()
        except BaseException:  # before there is a run that can be closed
            self.weights.release()
            raise

    def steps_to_go(self, reseed: Callable[..., None]) -> Iterator[int]:
        """Make step after step, and yield the number of each that was made."""
        rank, engine, objective = self.engine.rank, self.engine, self.objective
        net, weights, optimizer, law = self.call, self.weights, self.optimizer, self.law
        if self.stopped or self.step >= self.steps:  # a finished run that is resumed: no data are asked for
            return
        warm = max(1, min(200, self.steps // 10))
        for x0, eps, condition, sizes in self.pairing.batches(self.step, self.position, self.steps):
            if self.step >= self.steps:
                return
            group, skip = divmod(self.step, len(sizes))
            g = seeded(self.device, self.seed, LEVELS, group, rank)
            if eps is None:
                eps = torch.randn(len(x0), self.sde.dim, generator=g, device=self.device, dtype=self.sde.state_dtype)
            if len(set(sizes)) == 1:
                q = quantiles(len(sizes), sizes[0], g, self.device)
            else:  # the last batch of a loader is short
                q = torch.cat([quantiles(1, b, g, self.device) for b in sizes])
            condition = self.sde.shown(condition)
            if condition and self.hide is not None:
                condition = self.hide(condition, g)
            if objective is not None:
                examples = Examples(self.sde.from_data(x0).to(eps), q, eps, None, condition)
            elif law is None:
                examples, ratio = corrupt(self.sde, x0, eps, self.noise(self.process, q), self.weight, condition), None
            else:
                if skip == 0:
                    engine.sum(law.sums)
                    law.learn()
                phi, ratio, bins = law(self.process, q)
                examples = corrupt(self.sde, x0, eps, phi, self.weight, condition, ratio)
            begins = itertools.accumulate(sizes, initial=0)
            for start, b in list(zip(begins, sizes, strict=False))[skip:]:
                self.step = step = self.step + 1
                for each in optimizer.param_groups:
                    each["lr"] = self.lr * min(step / warm, 0.5 * (1 + math.cos(math.pi * (step - 1) / self.steps)))
                reseed(self.seed, NETWORK, step, rank)
                weights.zero_grad()
                for rows, share in engine.micro(start, b):
                    part = examples[rows]
                    with engine.syncing(rows.stop == start + b):
                        if objective is not None:
                            g = seeded(self.device, self.seed, LEVELS, step, rank, rows.start)
                            told = part.condition
                            value = objective(net, self.sde, part.x, part.target, part.t, told, step / self.steps, g)
                        elif law is None or ratio is None:
                            value = mean_error(answer(net, part), part)
                        else:
                            each_error = errors(answer(net, part), part)
                            value = each_error.mean()
                            law.note(bins[rows], each_error.detach() / ratio[rows])
                        engine.backward(value if share == 1 else share * value)
                    self.total += value.detach() if share == 1 else share * value.detach()
                engine.clip(weights, CLIP)
                optimizer.step()
                self.average.update()
                for profile in self.profiles:
                    profile.update()
                self.moved = True
                yield step
                if self.stopped or step >= self.steps:
                    return

    def note(self) -> None:
        """Write down the mean loss since the last note."""
        mean = self.verify()
        self.history.step.append(self.step)
        self.history.loss.append(mean)
        self.total.zero_()

    def verify(self) -> float:
        """Return the mean loss since the last note, once all is seen to be finite: only here the device is waited for.

        Who writes a checkpoint asks before: one with NaN could not be gone on with, and would push out one that can.
        """
        names = {name for name, p in self.sde.net.named_parameters() if p.requires_grad}
        if names != self.names:
            raise TrainingError(
                f"parameters came or went while the network was called: {sorted(names ^ self.names)[:3]}; make them before"
            )
        mean = float(self.engine.mean(self.total)) / max(1, self.step - (self.history.step[-1] if self.history.step else 0))
        if not (math.isfinite(mean) and all(bool(whole_tensor(p.isfinite().all())) for p in self.average.parts)):
            copy_all(self.average.parts, self.sound)
            copy_all([p.detach() for p in self.weights.parts], self.sound)
            raise TrainingError(f"the loss is {mean} after step {self.step}, or a weight not finite; lower lr (now {self.lr:g})")
        copy_all(self.sound, self.average.parts)
        return mean

    @torch.no_grad()
    def validate(self, patience: int | None) -> None:
        """Evaluate the averaged weights on the fixed examples, and stop if they have not been at their best for too long."""
        assert self.examples is not None
        self.verify()
        self.sde.eval()
        with self.weights.holding(self.average.parts):
            found = [mean_error(answer(self.call, part), part) * len(part) for part in self.examples]
        self.sde.train()
        value = float(self.engine.mean(torch.stack(found).sum())) / sum(map(len, self.examples))
        if not math.isfinite(value):
            raise TrainingError(
                f"the validation loss is {value} after step {self.step}; what the network says in eval mode is not finite"
            )
        self.history.checked.append(self.step)
        self.history.validation.append(value)
        if patience is None:
            return
        if self.history.best is None or value < self.lowest:
            self.lowest, self.history.best = value, self.step
            self.best = [p.clone() for p in self.average.parts]
        self.stopped = len([step for step in self.history.checked if step > self.history.best]) >= patience

    @torch.no_grad()
    def publish(self, parts: list[Tensor]) -> None:
        """Give the model an average for its eval mode, with the buffers of the network."""
        self.weights.fill_module(self.shown, parts)
        for mine, theirs in zip(self.shown.buffers(), self.sde.net.buffers(), strict=True):
            mine.copy_(theirs)
        self.sde.ema = self.shown

    def close(self) -> None:
        """Leave a model that can be used, whatever happened."""
        if self.closed:
            return
        self.closed = True
        if self.moved:
            self.publish(self.best if self.best is not None else self.average.parts)
        self.weights.release()
        self.engine.release(self.sde)
        self.sde.eval()
        if not self.moved:  # nothing was learnt: leave all as it was
            values, mode = self.before
            for mine, before in zip((self.sde.mean, self.sde.scale, self.sde.measured), values, strict=True):
                mine.copy_(before)
            names, self.sde.learnt = self.known
            self.sde.conditions.keep(names)
            self.sde.train(mode)


class Compiled:
    """A network called through torch.compile, or as it is if that can't be.

    Parameters
    ----------
    net : callable
    """

    def __init__(self, net: Callable[..., Any]) -> None:
        self.net, self.given_up = net, False
        self.fast: Any = None

    def __call__(self, *inputs: Any, **condition: Any) -> Any:
        """Call it."""
        if self.given_up:
            return self.net(*inputs, **condition)
        try:
            if self.fast is None:
                self.fast = torch.compile(self.net)
            return self.fast(*inputs, **condition)
        except Exception as error:
            self.given_up = True
            out = self.net(*inputs, **condition)  # what is wrong with the network itself is raised here
            warnings.warn(f"torch.compile failed, training goes on without it: {str(error).splitlines()[0][:200]}", stacklevel=2)
            return out


@contextlib.contextmanager
def _naming_the_checkpoint(checkpoints: Checkpoints | None) -> Iterator[None]:
    """Add to an error that ends a run where it can be gone on from."""
    try:
        yield
    except Exception as error:
        if checkpoints is not None and (step := checkpoints.last()) is not None:
            error.add_note(f"The checkpoint of step {step} in {checkpoints.folder} is kept: resume=True goes on from there.")
        raise


def _kind(sde: ScoreSDE, coupled: bool, objective: Objective | None, noise: str) -> str:
    """What a model is after it has learnt such pairs."""
    if objective is not None:
        return objective.kind
    if noise.startswith("nodes:"):
        return noise
    return "velocity" if coupled or sde.source is not None else "score"


def _learnt(sde: ScoreSDE, source: Source) -> dict[str, Any]:
    """What conditions a model has learnt with, in this run and before, and whether it has learnt to do without."""
    before = {} if sde.learnt is None else sde.learnt["conditions"]
    dropout = getattr(sde.net, "condition_dropout", None) != 0 and hasattr(sde.net, "hide")
    conditions = {**before, **{name: list(shape) for name, shape in source.conditions.items()}}
    return {"conditions": conditions, "unconditional": dropout or not source.conditions}


def _held_out(sde: ScoreSDE, validation: Any, batch_size: int, transforms: Any) -> Source:
    x, given = validation if isinstance(validation, tuple) and len(validation) == 2 else (validation, None)
    x, given = sde.schema.take(x, given)
    if not isinstance(x, Tensor | np.ndarray | list):
        raise TypeError(f"validation is a tensor or array, or (x, {{'y': labels}}), got {type(x).__name__}")
    return Source(x, sde, batch_size, seed=0, given=given, transforms=transforms)


def _fixed(sde: ScoreSDE, source: Source, weight: str, noise: str) -> list[Examples]:
    """The same noise for the same held-out samples, whatever the run's seed: losses of several runs can be compared."""
    device = sde.scale.device
    x0, condition = source.some(max(64, min(FIXED_EXAMPLES, FIXED_NUMBERS // sde.dim)))
    g = seeded(device, FIXED)
    if sde.source is None:
        eps = torch.randn(len(x0), sde.dim, generator=g, device=device, dtype=sde.state_dtype)
    else:
        eps = starting_points(sde, FIXED, 0, len(x0))
    phi = law(noise)(sde.process, quantiles(1, len(x0), g, device))
    examples = corrupt(sde, x0, eps, phi, weight, sde.shown(condition))
    return [examples[i : i + 1024] for i in range(0, len(x0), 1024)]
