"""The arguments of `fit`, checked: what a run does, before it looks at the data."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from ..common.checks import check_budget, real_number, whole_number
from ..common.modules import leave_inference
from ..common.progress import check_progress
from ..common.sharding import shared
from ..common.user_warnings import warn
from ..data.transforms import Transform, resolve
from ..model.score_sde import ScoreSDE
from ..model.trainable import Trainable
from .couplings import COUPLINGS, Coupling
from .logs import Log, as_log
from .objectives import OBJECTIVES, Objective
from .options import (
    AUTO,
    EVERY_STEPS,
    MOST_STEPS,
    PATIENT_STEPS,
    Averaging,
    Backend,
    Checkpoints,
    Validation,
    as_averaging,
    as_backend,
    as_checkpoints,
    as_validation,
)

LEARNING_RATE = 3e-3
"""Of networks that suggest none."""

HALF_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    objective: Objective
    named: str
    """The objective as the user wrote it."""
    coupling: Coupling
    transforms: tuple[Transform, ...]
    validation: Validation | None
    steps: int
    batch_size: int
    lr: float
    averaging: Averaging
    checkpoints: Checkpoints | None
    backend: Backend
    progress: bool | None
    log: Log | None
    dtype: str
    holds_out: bool = False
    """Whether rows of a table are held out, if the data are one."""
    steps_by_data: bool = False

    @property
    def patience(self) -> int | None:
        """Of the validation, if there is one."""
        return None if self.validation is None else self.validation.patience

    @property
    def patient_steps(self) -> int:
        """Fewest steps since the best validation before training stops."""
        rare = self.validation is not None and self.validation.every == AUTO
        return PATIENT_STEPS if rare else 0

    @property
    def resumes(self) -> bool:
        """Whether to go on from the newest checkpoint."""
        return self.checkpoints is not None and self.checkpoints.resume

    def settings(self, objective: Objective) -> dict[str, Any]:
        """Return what a resumed run, and every rank, must share, in plain JSON."""
        validation = self.validation
        return {
            "steps": AUTO if self.steps_by_data else self.steps,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "ema": self.averaging.half_life,
            "snapshots": self.averaging.snapshots,
            "patience": self.patience,
            "every": None if validation is None else validation.every,
            "dtype": self.dtype,
            "transforms": [_without_addresses(each) for each in self.transforms],
            "coupling": _without_addresses(self.coupling),
            "objective": _without_addresses(self.named),
            **objective.describe(),
        }

    def of_this_call(self) -> dict[str, Any]:
        """Return what every rank must share before the data are looked at, in plain JSON."""
        return {
            **self.settings(self.objective),
            "holds_out": self.holds_out,
            "checkpoints": self.checkpoints is not None,
            "resume": self.resumes,
            "compile": self.backend.compile,
        }


def planned(
    sde: Trainable,
    *,
    transforms: Any,
    validation: Any,
    objective: str | Objective | None,
    coupling: str | Coupling | None,
    steps: int | str,
    batch_size: int,
    lr: float | str,
    ema: Any,
    checkpoints: Any,
    backend: Any,
    progress: bool | None,
    log: Any,
) -> Plan:
    """Return the plan of a run, or raise for arguments that make none."""
    named = sde.objective if objective is None else objective
    learnt = _objective(named)
    _check_kind(sde, learnt, named, coupling)
    folder = as_checkpoints(checkpoints)
    every = EVERY_STEPS if folder is None else folder.every
    held_out = as_validation(validation, every)
    auto = isinstance(held_out, str)
    held_out = None if isinstance(held_out, str) else held_out
    if held_out is not None and learnt.validated_by() is None:
        raise ValueError(
            f"validation= measures how well a model denoises, which it does not learn with "
            f"objective={named!r}"
        )
    learnt.check(sde)
    if coupling is None:
        coupling = learnt.coupling(sde)
    plan = Plan(
        objective=learnt,
        named=str(named),
        coupling=_coupling(coupling),
        transforms=tuple(resolve(transforms)),
        validation=held_out,
        steps=as_steps(steps),
        batch_size=whole_number("batch_size", batch_size),
        lr=_learning_rate(sde, learnt, lr),
        averaging=as_averaging(ema),
        checkpoints=folder,
        backend=as_backend(backend),
        progress=check_progress(progress),
        log=as_log(log),
        dtype=str(_dtype(sde)).removeprefix("torch."),
        holds_out=auto,
        steps_by_data=steps == AUTO,
    )
    _check_gaps(sde, plan)
    _check_sizes(sde, plan)
    _check_model(sde)
    return plan


def _check_kind(sde: Trainable, learnt: Objective, named: object, coupling: object) -> None:
    """Raise TypeError for an objective or a coupling that is for models of another kind."""
    if not isinstance(sde, learnt.trains):
        raise TypeError(
            f"objective={named!r} trains a {learnt.trains.__name__}, and this is a "
            f"{type(sde).__name__}"
        )
    if sde.interface.has_variance and not learnt.learns_variance:
        raise ValueError(
            f"objective={named!r} leaves the variance untrained that this model is to learn; try "
            "'hybrid', or build it without variance="
        )
    if coupling is not None and not isinstance(sde, ScoreSDE):
        raise TypeError(
            f"coupling= joins data with the noise of a ScoreSDE, and this is a {type(sde).__name__}"
        )


def as_steps(steps: int | str) -> int:
    """Return the steps of a run; if the data say them, the most."""
    if isinstance(steps, str):
        if steps != AUTO:
            raise ValueError(f"steps is an integer or 'auto', got {steps!r}")
        return MOST_STEPS
    try:
        return whole_number("steps", steps)
    except TypeError as error:
        raise TypeError(f"{error}; try 10_000, or 'auto'") from None


def _learning_rate(sde: Trainable, learnt: Objective, lr: float | str) -> float:
    """Return the peak learning rate; by default the network's, where it learns a score."""
    if not isinstance(lr, str):
        return real_number("lr", lr, 0, math.inf, hint="try 3e-3")
    if lr != AUTO:
        raise ValueError(f"lr is a number or 'auto', got {lr!r}")
    usual = getattr(sde.interface.inner, "learning_rate", None)
    if usual is None or getattr(learnt, "kind", None) != "score":
        return LEARNING_RATE
    return real_number("the network's learning_rate", usual, 0, math.inf, hint="try 3e-3")


def _objective(named: object) -> Objective:
    """Return an objective, by its name or itself."""
    if isinstance(named, str):
        return OBJECTIVES.build(named)
    if not isinstance(named, Objective):
        hint = f": write {named.__name__}()" if isinstance(named, type) else ""
        raise TypeError(f"objective is a name or an Objective, got {type(named).__name__}{hint}")
    return named


def _coupling(named: object) -> Coupling:
    """Return a coupling, by its name or itself."""
    if isinstance(named, str):
        return COUPLINGS.build(named)
    if not isinstance(named, Coupling):
        hint = f": write {named.__name__}()" if isinstance(named, type) else ""
        raise TypeError(f"coupling is a name or a Coupling, got {type(named).__name__}{hint}")
    return named


def _check_gaps(sde: Trainable, plan: Plan) -> None:
    """Raise ValueError for a run that can't leave out the gaps that its network is for."""
    if not sde.interface.takes_gaps:
        return
    if not plan.objective.takes_gaps:
        raise ValueError(
            f"a network for rows with gaps learns by denoising, and objective={plan.named!r} does "
            "not leave gaps out"
        )
    if plan.coupling.joins:
        raise ValueError(
            f"coupling={plan.coupling!r} joins rows by their distance, which rows with gaps do not "
            "have; leave it out"
        )


def _check_sizes(sde: Trainable, plan: Plan) -> None:
    """Raise ValueError for a run that no machine could hold or end, or that has no folder."""
    check_budget(f"steps={plan.steps}", calls=plan.steps)
    nbytes = 4.0 * sde.dim * plan.batch_size
    check_budget(f"batch_size={plan.batch_size}", nbytes, device=sde.scale.device)
    snapshots = plan.averaging.snapshots
    if snapshots > plan.steps:
        raise ValueError(
            f"snapshots is at most the number of steps, {plan.steps}, got {snapshots}"
        )
    if snapshots and plan.checkpoints is None:
        raise ValueError("snapshots= needs a folder; give it as checkpoints=")


def _check_model(sde: Trainable) -> None:
    """Raise ValueError for a model that can't be trained here; warn about half precision."""
    if shared():
        raise ValueError(
            "fit can't run inside sharded(); to train on several ranks, give it "
            "backend=Accelerator()"
        )
    trained = [p for p in sde.net.parameters() if p.requires_grad]
    if any(p.dtype in HALF_PRECISION for p in trained):
        warn(
            "weights of half precision lose small updates, and their average lags; keep them "
            "float32 and train with backend=Accelerator(mixed_precision='bf16')"
        )
    leave_inference(sde)
    if not trained:
        raise ValueError("this model's network has no parameters to train (an oracle?)")


def _dtype(sde: Trainable) -> torch.dtype | None:
    """Return the dtype of the network's first parameter."""
    parameter = next(sde.net.parameters(), None)
    return None if parameter is None else parameter.dtype


def _without_addresses(thing: object) -> str:
    """Return the text of a thing without memory addresses, which differ between runs."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(thing))
