"""What `fit` holds out of a table by itself, and the judgement on it.

A network that learns few rows by heart is worse than the one it began as, which for a zero output
is a Gaussian. So some rows are held out. Their loss, with the same noise each time, says when to
stop. At the end log p of them decides between the last average, the best one and the first.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..common.errors import SolverError
from ..common.random import FIXED, HELD_OUT, seeded
from ..common.user_warnings import warn
from ..data.readers import TableReader
from ..data.stream import TrainingStream
from ..density.exact import log_prob
from ..density.tables import EncodedRows
from ..model.condition_scales import standardized
from ..model.gaps import with_gaps
from ..model.score_sde import ScoreSDE
from ..model.standardization import wide
from ..model.trainable import Trainable
from ..solvers.options import SolverOptions
from .averaging import Weights
from .conditional_gaussian import measure
from .denoising import Denoising
from .history import History
from .noise_levels import stratified_quantiles
from .objectives import Objective
from .options import AUTO, MOST_STEPS, PATIENT_STEPS
from .plan import Plan
from .regression import network_output
from .validation import ROWS_AT_ONCE, EarlyStopping, Validator

FEWEST_ROWS = 20
"""Of a table of fewer rows nothing is held out: what is left over would judge nothing."""

USUAL_SHARE = 10  # one row in so many …
SMALL_SHARE = 5  # … and in small tables one in so many, up to …
SMALL_ROWS = 100
MOST_ROWS = 2000

JUDGED_EXAMPLES = 4096
"""Held-out rows with noise, whose loss is a check."""

JUDGED_ROWS = 256
"""Most rows of which log p is computed at the end …"""

JUDGED_DIM = 128
"""… in at most so many dimensions …"""

UNTRACED_DIM = 8
"""… or so many, where the network's trace has no closed form."""

JUDGED_TOLERANCE = 1e-2  # nats

PATIENCE = 3
"""Training stops at so many times the best step, plus `PATIENT_STEPS` or …"""

PATIENT_SHARE = 4
"""… one in so many of all steps, if that is more."""

CONFIRMED_STANDARD_ERRORS = 1.0
"""By which held-out rows must prefer a trained average to the first."""

BY_HEART = 0.5
"""If held-out rows do not confirm this share of the gain on training rows, `fit` warns."""

NOTICED_GAIN = 0.02
"""Share of the loss: smaller gains on training rows say nothing."""

ROWS_A_STEP = 512
FEWEST_STEPS = 500


def readable_table(sde: Trainable, source: TrainingStream) -> TableReader | None:
    """Return the reader of an array of vectors in memory; None for other data."""
    reader = source.reader
    if type(reader) is not TableReader or not isinstance(reader.rows, Tensor):
        return None
    return reader if len(sde.shape) == 1 else None


def usual_steps(sde: Trainable, source: TrainingStream, batch_size: int) -> int:
    """Return the steps of `steps="auto"`: as many passes over a table as a batch has rows."""
    reader = readable_table(sde, source)
    if reader is None:
        return MOST_STEPS
    steps = len(reader.rows) * ROWS_A_STEP // batch_size
    return min(max(steps, FEWEST_STEPS), MOST_STEPS)


def held_out_rows(n: int, seed: int) -> Tensor:
    """Return the numbers of the rows of n that are held out, in random order."""
    held = min(MOST_ROWS, max(n // USUAL_SHARE, min(SMALL_ROWS, n // SMALL_SHARE)))
    return torch.randperm(n, generator=seeded("cpu", seed, HELD_OUT), device="cpu")[:held]


def hold_out(
    sde: Trainable, plan: Plan, objective: Objective, source: TrainingStream, seed: int
) -> HeldOut | None:
    """Hold out rows of a table for a model that learns a score; None for other data and models."""
    reader = readable_table(sde, source)
    if not isinstance(sde, ScoreSDE):
        return None
    if reader is None or plan.coupling.joins or sde.source is not None:
        return None
    judge = objective.validated_by()
    if objective.kind != "score" or not isinstance(judge, Denoising):
        return None
    if len(reader.rows) < FEWEST_ROWS:
        return None
    return HeldOut(sde, judge, reader, held_out_rows(len(reader.rows), seed))


class HeldOut(Validator):
    """Rows of the training data that are held out, and what they say about a network."""

    def __init__(
        self, sde: ScoreSDE, objective: Denoising, reader: TableReader, rows: Tensor
    ) -> None:
        self.objective: Denoising = objective.prepared(sde, paired=False, joined=False)
        self.every = AUTO
        self.rows = rows
        self._sde: ScoreSDE = sde
        self._reader = reader
        reader.hold_out(rows)
        self._fixed: dict[bool, Any] = {}
        """Examples, of held-out rows or not, and how many rows they are of."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the held-out rows are recognized by; seed and data say the rest."""
        return {"held_out": len(self.rows)}

    def fix(self) -> None:
        """Make the examples: of the held-out rows, and of as many training rows."""
        most = max(1, 2**24 // self._sde.dim)
        kept = self._reader.kept
        assert kept is not None
        n = min(len(self.rows), len(kept), most)
        spaced = kept[torch.arange(n, device=kept.device) * (len(kept) // n)]
        for held, rows in ((True, self.rows[:n]), (False, spaced.cpu())):
            self._fixed[held] = self._examples_of(rows)
        self._x, self._condition = self._reader.chosen(self.rows[:JUDGED_ROWS])

    def _examples_of(self, rows: Tensor) -> tuple[Any, int]:
        """Return rows with fixed noise at fixed levels, several times each."""
        sde = self._sde
        device = sde.scale.device
        x0, condition = self._reader.chosen(rows.repeat(-(-JUDGED_EXAMPLES // len(rows))))
        g = seeded(device, FIXED)
        n = len(x0)
        eps = torch.randn(n, sde.dim, generator=g, device=device, dtype=sde.state_dtype)
        q = stratified_quantiles(1, n, g, device)
        z0 = sde.from_data(x0).to(sde.state_dtype)
        shown = standardized(sde, condition)
        if sde.interface.takes_gaps:
            z0, shown["seen"] = with_gaps(sde, z0)
        return self.objective.examples(sde, z0, eps, q, shown), len(rows)

    @torch.no_grad()
    def losses(self, net: Any, backend: Any, *, held: bool = True) -> Tensor:
        """Return the loss of each held-out row, or of training rows, (n,) in float64."""
        examples, rows = self._fixed[held]
        parts = []
        for i in range(0, len(examples), ROWS_AT_ONCE):
            part = examples[i : i + ROWS_AT_ONCE]
            parts.append(self.objective.errors(network_output(net, part), part))
        errors = torch.cat(parts)
        errors = errors.to(wide(errors.device)).view(-1, rows)
        mean: Tensor = backend.mean(errors.mean(0))
        return mean

    def loss(self, net: Any, backend: Any) -> float:
        """Return the mean loss of the held-out rows."""
        return float(self.losses(net, backend).mean())

    @property
    def can_score(self) -> bool:
        """Whether log p of the held-out rows is cheap."""
        sde = self._sde
        if sde.interface.takes_gaps:  # log p is of whole rows
            return False
        return sde.dim <= (JUDGED_DIM if sde.traces() else UNTRACED_DIM)

    def scores(self, backend: Any) -> Tensor | None:
        """Return log p of held-out rows under the model; None if it can't be computed."""
        sde = self._sde
        given = sde.given(**self._condition) if self._condition else sde
        rows: Any = EncodedRows(self._x)
        how: SolverOptions = {"rtol": JUDGED_TOLERANCE, "atol": JUDGED_TOLERANCE}
        found = torch.full((len(self._x),), math.nan, device=sde.scale.device)
        with contextlib.suppress(SolverError):  # the mean is NaN then, on all ranks
            found = log_prob(given, rows, **how)
        mean: Tensor = backend.mean(found.to(wide(found.device)))
        return mean if bool(mean.isfinite().all()) else None


class Patience(EarlyStopping):
    """Keeps the first average and the best later one; stops long after the best step."""

    def __init__(self, steps: int) -> None:
        super().__init__(None)
        self._least = max(PATIENT_STEPS, steps // PATIENT_SHARE)
        self.first: list[Tensor] | None = None

    def record(self, step: int, loss: float, history: History, average: list[Tensor]) -> None:
        """Add a check to the history, and keep the average if its loss is the lowest."""
        super().record(step, loss, history, average)
        if step == 0:
            self.first = [p.clone() for p in average]
            return
        self.keep_lowest(step, loss, history, average)
        assert history.best is not None
        self.stopped = step >= PATIENCE * history.best + self._least

    def averages(self) -> dict[str, list[Tensor]]:
        """Return the averages that a checkpoint must hold, by their prefixes."""
        first = {} if self.first is None else {"first.": self.first}
        return super().averages() | first

    def restore(
        self, stopped: bool, history: History, weights: Weights, found: Mapping[str, Any]
    ) -> None:
        """Go on from a checkpoint."""
        super().restore(stopped, history, weights, found)
        self.first = weights.copies()
        weights.fill(self.first, found, "first.")


def confirmed(gain: Tensor, least: float = 0.0) -> bool:
    """Whether the mean of gains (n,) is above `least`, and above its standard error."""
    if len(gain) < 2:
        return False
    error = gain.std() / math.sqrt(len(gain))
    return bool(gain.mean() > max(least, CONFIRMED_STANDARD_ERRORS * float(error)))


def choose_average(trainer: Any) -> None:
    """Keep the last, best or first average of a run that has ended, and say what was kept.

    With the first, the Gaussian under conditions is measured again, on all rows.
    """
    held: HeldOut = trainer.validator
    stopping: Patience = trainer.stopping
    history: History = trainer.history
    assert stopping.first is not None
    assert stopping.best is not None
    assert history.best is not None
    candidates = {0: stopping.first, history.best: stopping.best}
    candidates[trainer.step] = trainer.averages.main.parts
    losses = {}
    gained = {}
    for step, parts in candidates.items():
        with torch.no_grad(), trainer.weights.holding(parts):
            trainer.sde.eval()
            losses[step] = held.losses(trainer.net, trainer.backend)
            gained[step] = held.losses(trainer.net, trainer.backend, held=False)
    best = _best(trainer, held, candidates, losses)
    kept = [p.clone() for p in candidates[best]]
    history.best = best
    stopping.best = kept
    on_training = float((gained[0] - gained[best]).mean())
    on_held_out = float((losses[0] - losses[best]).mean())
    history.gap = on_training - on_held_out
    if best == 0:
        trainer.publish(kept)
        if getattr(trainer.sde.ema, "adds_nothing", False):
            measure(trainer.sde, trainer.pairing.source, trainer.objective, all_rows=True)
        warn(
            f"the network has learnt nothing that the {len(held.rows)} held-out rows confirm: the "
            "model keeps the weights it began with, for most networks the Gaussian of the data, or "
            "their linear regression on the conditions; more rows, or validation=None, train it on"
        )
    elif history.gap > max(BY_HEART * on_training, NOTICED_GAIN * float(gained[0].mean())):
        warn(
            f"the model has begun to learn the rows by heart: of the {on_training:.3g} by which "
            f"its loss on training rows fell, held-out rows confirm {max(on_held_out, 0):.3g}; "
            "take more rows, a smaller network or fewer steps"
        )


def _best(
    trainer: Any, held: HeldOut, candidates: dict[int, Any], losses: dict[int, Tensor]
) -> int:
    """Return the step whose average held-out rows prefer: by log p, or by their loss."""
    least = 0.0
    values: dict[int, Tensor] = {step: -value for step, value in losses.items()}
    if held.can_score:
        scores: dict[int, Tensor] = {}
        for step, parts in candidates.items():
            trainer.publish(parts)
            trainer.sde.eval()
            found = held.scores(trainer.backend)
            if found is not None:
                scores[step] = found
        if 0 in scores:
            values = scores
            least = JUDGED_TOLERANCE
    best = max(values, key=lambda step: float(values[step].mean()))
    if best and not confirmed(values[best] - values[0], least):
        return 0
    return best
