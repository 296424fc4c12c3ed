"""The loss on held-out samples, and when training stops because of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import TrainingError
from ..common.random import FIXED, seeded
from ..data.stream import TrainingStream
from ..data.typed_table import is_rows, training_rows
from ..model.condition_scales import standardized
from ..model.gaps import with_gaps
from ..model.trainable import Trainable
from ..sampling.problem import starting_points
from .averaging import Weights
from .backend import SingleProcess
from .history import History
from .noise_levels import stratified_quantiles
from .options import AUTO, Validation
from .plan import Plan

FIXED_EXAMPLES = 8192
"""Of a validation: at least half and at most twice as many, and fewer where samples are large."""

FIXED_NUMBERS = 2**24
"""In all examples of a validation."""

LONGEST_GAP = 500  # steps between checks

FEWEST_EXAMPLES = 64
ROWS_AT_ONCE = 1024


class Validator:
    """The same noise for the same held-out samples, whatever the run's seed."""

    def __init__(self, sde: Trainable, plan: Plan, validation: Validation) -> None:
        objective = plan.objective.validated_by()
        assert objective is not None
        self.objective = objective.prepared(sde, paired=False, joined=False)
        self.every: int | str = validation.every
        self.source = _source(sde, plan, validation)
        self._sde: Any = sde
        self._examples: list[Any] = []
        self._rows: list[int] = []

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the held-out samples are recognized by, in plain JSON."""
        return self.source.fingerprint

    def due(self, step: int) -> bool:
        """Whether the loss is checked after a step."""
        if isinstance(self.every, int):
            return step > 0 and step % self.every == 0
        return checked_after(step)

    @property
    def checks_untrained(self) -> bool:
        """Whether the loss is checked before training too."""
        return self.every == AUTO

    def check(self, names: set[str] | None) -> None:
        """Raise ValueError unless the samples have the conditions of the training data."""
        mine = self.source.condition_names
        if names is not None and mine != names:
            raise ValueError(
                f"validation has conditions {sorted(mine or ())} where training has "
                f"{sorted(names)}; give both the same, validation=(x, {{'y': y}})"
            )

    def fix(self) -> None:
        """Make the examples, once the model knows the scale of the data."""
        sde = self._sde
        device = sde.scale.device
        wanted = min(FIXED_EXAMPLES, FIXED_NUMBERS // sde.dim)
        x0, condition = self.source.evenly_spaced(max(FEWEST_EXAMPLES, wanted))
        n = len(x0)
        g = seeded(device, FIXED)
        if sde.source is None:
            eps = torch.randn(n, sde.dim, generator=g, device=device, dtype=sde.state_dtype)
        else:
            eps = starting_points(sde, FIXED, 0, n)
        q = stratified_quantiles(1, n, g, device)
        z0 = sde.from_data(x0).to(sde.state_dtype)
        condition = standardized(sde, condition)
        if sde.interface.takes_gaps:
            z0, condition["seen"] = with_gaps(sde, z0)
        examples = self.objective.examples(sde, z0, eps, q, condition)
        self._rows = [min(ROWS_AT_ONCE, n - i) for i in range(0, n, ROWS_AT_ONCE)]
        self._examples = [examples[i : i + ROWS_AT_ONCE] for i in range(0, n, ROWS_AT_ONCE)]

    @torch.no_grad()
    def loss(self, net: Callable[..., Any], backend: SingleProcess) -> float:
        """Return the mean loss of a network in eval mode; raise unless it is finite."""
        losses = []
        for rows, examples in zip(self._rows, self._examples, strict=True):
            value = self.objective.loss(net, self._sde, examples, 1.0, self._generator)
            losses.append(value * rows)
        return float(backend.mean(torch.stack(losses).sum())) / sum(self._rows)

    def _generator(self) -> torch.Generator:
        """Return the same randomness for every validation."""
        return seeded(self._sde.scale.device, FIXED, 0)


def _early_checks() -> list[int]:
    """The steps after which the loss is checked until checks are `LONGEST_GAP` apart."""
    found = [0, 20]
    while found[-1] - found[-2] < LONGEST_GAP:
        found.append(min(math.ceil(1.2 * found[-1]), found[-1] + LONGEST_GAP))
    return found


EARLY_CHECKS = _early_checks()


def checked_after(step: int) -> bool:
    """Whether the loss is checked after a step, where checks come ever more rarely."""
    late = step - EARLY_CHECKS[-1]
    return late % LONGEST_GAP == 0 if late > 0 else step in EARLY_CHECKS


class EarlyStopping:
    """Keeps the best average, and says when it has been the best for too long."""

    def __init__(self, patience: int | None, min_steps: int = 0) -> None:
        self.patience = patience
        self.min_steps = min_steps
        """Fewest steps since the best average."""
        self.stopped = False
        self.best: list[Tensor] | None = None
        self._lowest = math.inf

    def record(self, step: int, loss: float, history: History, average: list[Tensor]) -> None:
        """Add a validation to the history."""
        if not math.isfinite(loss):
            raise TrainingError(
                f"the validation loss is {loss} after step {step}; the network's output in eval "
                "mode is not finite"
            )
        history.checked.append(step)
        history.validation.append(loss)
        if self.patience is None:
            return
        self.keep_lowest(step, loss, history, average)
        assert history.best is not None
        later = [checked for checked in history.checked if checked > history.best]
        self.stopped = len(later) >= self.patience and step >= history.best + self.min_steps

    def keep_lowest(self, step: int, loss: float, history: History, average: list[Tensor]) -> None:
        """Keep an average whose loss is the lowest so far."""
        if history.best is None or loss < self._lowest:
            self._lowest = loss
            history.best = step
            self.best = [p.clone() for p in average]

    def averages(self) -> dict[str, list[Tensor]]:
        """Return the averages that a checkpoint must hold, by their prefixes."""
        return {} if self.best is None else {"best.": self.best}

    def restore(
        self, stopped: bool, history: History, weights: Weights, found: Mapping[str, Any]
    ) -> None:
        """Go on from a checkpoint."""
        self.stopped = stopped
        if history.best is not None:
            self.best = weights.copies()
            weights.fill(self.best, found, "best.")
            self._lowest = history.validation[history.checked.index(history.best)]


def _source(sde: Trainable, plan: Plan, validation: Validation) -> TrainingStream:
    """Return held-out samples as a table."""
    x, given = validation.x, validation.given
    if is_rows(sde, x):
        x, given = training_rows(sde, x, given)
    x, given = sde.schema.take(x, given)
    if not isinstance(x, Tensor | np.ndarray | list):
        raise TypeError(
            f"validation is a tensor or array, or (x, {{'y': labels}}), got {type(x).__name__}"
        )
    return TrainingStream(x, sde, plan.batch_size, seed=0, given=given, transforms=plan.transforms)
