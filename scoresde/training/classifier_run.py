"""The training run of a classifier of noised states.

Noise levels are uniform in φ, as tan φ·∇log p(y | z, φ) counts alike at every angle. On 8 Gaussians
as 8 classes (4,000 rows) its RMS error is .02 to .11 below φ = 1 and .30 above 1.3. With the levels
that `fit` draws by default, few of which are at the noise end, it is .03 to .15 and .48.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..common.errors import TrainingError
from ..common.progress import counted
from ..common.random import FIXED, LEVELS, ORDER, seeded
from ..common.user_warnings import warn
from ..model.protocol import Model
from .held_out import FEWEST_ROWS, held_out_rows
from .noise_levels import stratified_quantiles
from .validation import ROWS_AT_ONCE

CHECKS = 40
"""How often the held-out loss is taken in a run that does not stop early."""

SHORTEST_GAP = 20  # steps between checks

JUDGED_EXAMPLES = 2048
"""Held-out rows with noise, whose loss is a check, at least."""

PATIENCE = 3
"""Training stops at so many times the best step, plus a tenth of all steps."""

AVERAGED_SHARE = 50
"""The average of the weights has a half-life of one in so many of all steps."""

WARM_UP_STEPS = 100
GRADIENT_NORM = 1.0


class ClassifierRun:
    """A training run of a classifier."""

    def __init__(self, model: Model, made: Any, x: Tensor, y: Tensor, seed: int) -> None:
        self.model = model
        self.made = made
        self.x = x
        self.y = y
        self.seed = seed
        held = held_out_rows(len(x), seed).to(x.device)
        self.held = held if len(x) >= FEWEST_ROWS else held[:0]
        left = torch.ones(len(x), dtype=torch.bool, device=x.device)
        left[self.held] = False
        self.rows = left.nonzero()[:, 0]
        self.trained = [p for p in made.net.parameters() if p.requires_grad]
        if not self.trained:
            raise ValueError("no weight of net requires grad: there is nothing to train")
        self.average = copy.deepcopy(made.net).eval().requires_grad_(False)

    def states(self, rows: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noised states (B, *shape) of some rows, and their angles (B,)."""
        model = self.model
        process = model.process
        z0 = model.from_data(self.x[rows]).float()
        q = stratified_quantiles(1, len(rows), g, z0.device)
        phi = process.phi_min + q * (process.phi_max - process.phi_min)
        eps = torch.randn(z0.shape, generator=g, device=z0.device)
        cos = phi.cos().unsqueeze(1).float()
        sin = phi.sin().unsqueeze(1).float()
        return model.standardization.spread(cos * z0 + sin * eps), phi

    def train(self, steps: int, batch_size: int, lr: float, progress: bool | None) -> None:
        """Make the steps, and leave the best average in the classifier."""
        self.made.train()
        optimizer = torch.optim.Adam(self.trained, lr, betas=(0.9, 0.99))
        decay = 0.5 ** (AVERAGED_SHARE / steps)
        warm = min(WARM_UP_STEPS, max(1, steps // 10))
        check = max(SHORTEST_GAP, steps // CHECKS)
        best = first = self.judged()
        best_step = 0
        kept = copy.deepcopy(self.average.state_dict())
        with counted(steps, "fit_classifier", progress) as bar:
            for step, rows in enumerate(self.batches(steps, batch_size), start=1):
                rate = min(1.0, step / warm) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
                self.descend(optimizer, lr * rate, step, rows)
                self.average_in(max(0.0, min(decay, step / (10 + step))))
                if step % check and step < steps:
                    continue
                bar.update(step - bar.n)
                found = self.judged()
                if not found >= best:  # NaN without held-out rows: the last average is kept
                    best = found
                    best_step = step
                    kept = copy.deepcopy(self.average.state_dict())
                if step > PATIENCE * best_step + steps // 10 and len(self.held):
                    break
        if not best_step:
            warn(
                f"the classifier has learnt nothing that holds of held-out rows ({first:.3f} nats "
                "with the frequencies of the classes alone): it guides nowhere"
            )
        self.made.net.load_state_dict(kept)
        self.made.held_out_loss = best

    def batches(self, steps: int, size: int) -> Iterator[Tensor]:
        """Yield the rows of each step: all in random order, then again."""
        g = seeded(self.x.device, self.seed, ORDER)
        order = self.rows[:0]
        for _ in range(steps):
            while len(order) < size:
                shuffled = torch.randperm(len(self.rows), generator=g, device=g.device)
                order = torch.cat([order, self.rows[shuffled]])
            yield order[:size]
            order = order[size:]

    def descend(
        self, optimizer: torch.optim.Optimizer, lr: float, step: int, rows: Tensor
    ) -> None:
        """Make one step of the optimizer."""
        for group in optimizer.param_groups:
            group["lr"] = lr
        z, phi = self.states(rows, seeded(self.x.device, self.seed, LEVELS, step))
        loss = functional.cross_entropy(self.made(z, phi), self.y[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.trained, GRADIENT_NORM)
        if not bool(norm.isfinite()):
            raise TrainingError(
                f"the classifier's loss or gradient is not finite at step {step}: try a lower lr"
            )
        optimizer.step()

    @torch.no_grad()
    def average_in(self, decay: float) -> None:
        """Move the average towards the weights; buffers are the network's."""
        for mean, value in zip(self.average.parameters(), self.made.net.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for held, buffer in zip(self.average.buffers(), self.made.net.buffers(), strict=True):
            held.copy_(buffer)

    @torch.no_grad()
    def judged(self) -> float:
        """The average's cross-entropy in nats of held-out rows, with the same noise each time."""
        if not len(self.held):
            return math.nan
        rows = self.held.repeat(-(-JUDGED_EXAMPLES // len(self.held)))
        z, phi = self.states(rows, seeded(self.x.device, self.seed, FIXED))
        net = self.made.net
        self.made.net = self.average
        try:
            total = 0.0
            for at in range(0, len(rows), ROWS_AT_ONCE):
                part = slice(at, at + ROWS_AT_ONCE)
                logits = self.made(z[part], phi[part])
                total += float(
                    functional.cross_entropy(logits, self.y[rows[part]], reduction="sum")
                )
        finally:
            self.made.net = net
        return total / len(rows)
