"""Populations of weighted particles: evidence, effective sizes, and who goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SHORT = 400
"""Up to so many steps, passes are as many as fit; beyond it they also grow longer."""


def passes_of(steps: int, least: int) -> int:
    """How many passes of at least so many steps share a number of steps.

    The variance of evidence falls with passes, and its bias with the steps of one: where both
    are first order, k passes of L steps are best for k in proportion to L² (Duffie and Glynn 1995).
    """
    if steps <= SHORT:
        return max(1, steps // least)
    return int(max(1, SHORT // least) * (steps / SHORT) ** (2 / 3) + 1e-9)


class Population:
    """n populations of P particles each: their log weights, and what the weights estimate.

    With P·Σ w = 1 at the start, the mean weight estimates the evidence without bias. Particles that
    descend from one of the first ones are a family.
    """

    def __init__(
        self, n: int, size: int, resample_below: float, normals: Callable[[], Tensor]
    ) -> None:
        like = normals()
        self.size = size
        self.log_weights = like.new_zeros(n, size)
        self.log_evidence = like.new_zeros(n)
        self.resampled = torch.zeros(n, dtype=torch.long, device=like.device)
        self._below = resample_below * size
        self._variance = like.new_zeros(n)
        self._normals = normals
        self._own = torch.arange(size, device=like.device).expand(n, size)
        self._family = self._own
        self._first = (size * torch.arange(n, device=like.device)).unsqueeze(1)

    def add(self, increments: Tensor) -> None:
        """Add to the log weights (n·P,)."""
        self.log_weights = self.log_weights + increments.reshape(self.log_weights.shape)

    @property
    def weights(self) -> Tensor:
        """Normalized weights (n, P)."""
        return _softmax(self.log_weights)

    def resample(self, share: float, *states: Any) -> list[Any]:
        """Rows (n·P, …) of the particles that go on, in the populations whose ESS is low.

        A state may be None, and stays so.

        ESS and chances are those of w^share; a particle keeps the rest, w^(1 − share), as weight.
        """
        uniform = torch.special.ndtr(self._normals())
        if not share:
            return list(states)
        log_weights = share * self.log_weights
        weights = _softmax(log_weights)
        mean = log_weights.logsumexp(1) - math.log(self.size)
        few = (effective_size(weights) < self._below) & (mean > -math.inf)
        low = few.unsqueeze(1)
        chosen = torch.where(low, systematic(weights, uniform), self._own)
        self.log_evidence = self.log_evidence + torch.where(few, mean, 0)
        self._variance = self._variance + torch.where(few, self._relative_variance(weights), 0)
        rest = torch.zeros_like(log_weights)
        if share < 1:
            rest = ((1 - share) * self.log_weights).gather(1, chosen)
        self.log_weights = torch.where(low, rest, self.log_weights)
        self._family = self._family.gather(1, chosen)
        self.resampled = self.resampled + few
        rows = (chosen + self._first).flatten()
        return [state if state is None else state.index_select(0, rows) for state in states]

    def chances(self) -> Tensor:
        """Weights (n, P) of a particle to draw, w·(1 + F − Σ F²) with weights F of families.

        A draw by w has a bias of order 1/P, as populations count alike whatever their evidence.
        The jackknife over families takes its first order away, with these positive weights.
        """
        families = self._families()
        share = families.gather(1, self._family)
        return self.weights * (1 + share - families.square().sum(1, keepdim=True))

    def _families(self) -> Tensor:
        """The weights (n, P) of families, each at the number of its first particle."""
        return torch.zeros_like(self.log_weights).scatter_add(1, self._family, self.weights)

    def evidence(self) -> Tensor:
        """log of the mean weight (n,), all steps together."""
        return self.log_evidence + self.log_weights.logsumexp(1) - math.log(self.size)

    def stderr(self) -> Tensor:
        """The standard error of `evidence`, in nats, the larger of two estimates; ∞ for P = 1.

        That of means of weights F of independent families, √(P·ΣF² − 1)/√(P − 1) (Chan and Lai
        2013, Lee and Whiteley 2018), which is 1 at the most; and the same of single weights, its
        squares added up over the times between resampling, which holds where families die out.
        """
        if self.size == 1:
            return torch.full_like(self.log_evidence, math.inf)
        families = self._families()
        steps = self._variance + self._relative_variance(self.weights)
        return torch.maximum(self._relative_variance(families), steps).sqrt()

    def _relative_variance(self, weights: Tensor) -> Tensor:
        """The variance of a mean of weights over its square, from normalized weights (n, P)."""
        excess = self.size * weights.square().sum(1) - 1
        return excess.clamp_min(0) / max(self.size - 1, 1)


class Passes:
    """Independent populations of P particles as one: their mean evidence, and P of all particles.

    P of the 2·P particles of a pass and of all before it go on, with their weights as chances.
    """

    def __init__(self, normals: Callable[[], Tensor]) -> None:
        """Normal numbers (n, 1) a call, for who goes on."""
        self._normals = normals
        self._evidence: list[Tensor] = []
        self._variance: list[Tensor] = []
        self._square: list[Tensor] = []
        self.resampled = torch.zeros((), dtype=torch.long)

    def add(self, population: Population, x: Tensor) -> None:
        """Add particles x (n, P, …) and their population."""
        self.resampled = population.resampled + self.resampled.to(population.resampled)
        self._size = population.size
        before = self.evidence().unsqueeze(1) if self._evidence else None
        count = len(self._evidence)
        self._evidence.append(population.evidence())
        self._variance.append(population.stderr().square())
        self._square.append(population.weights.square().sum(1))
        if before is None:
            self.x = x
            self.weights = population.weights
            self._chances = population.chances()
            return
        now = self._evidence[-1].unsqueeze(1)
        old = self.weights.log() + before + math.log(count)
        weights = _softmax(torch.cat([old, population.weights.log() + now], 1))
        chosen = systematic(weights, torch.special.ndtr(self._normals()), population.size)
        each = torch.arange(len(x), device=x.device).unsqueeze(1)
        self.x = torch.cat([self.x, x], 1)[each, chosen]
        self.weights = torch.full_like(self.weights, 1 / population.size)
        self._chances = self.weights

    def draw(self) -> Tensor:
        """One particle (n, …) of each population."""
        chosen = _inverse(self._chances, torch.special.ndtr(self._normals()))[:, 0]
        return self.x[torch.arange(len(chosen), device=chosen.device), chosen]

    def evidence(self) -> Tensor:
        """log of the mean evidence (n,)."""
        return torch.stack(self._evidence).logsumexp(0) - math.log(len(self._evidence))

    @property
    def _shares(self) -> Tensor:
        """The share (k, n) of each pass in the evidence."""
        return _softmax(torch.stack(self._evidence, 1)).T

    def effective_size(self) -> Tensor:
        """1/Σ w² (n,) over the particles of all passes."""
        square = (self._shares.square() * torch.stack(self._square)).sum(0)
        return torch.where(square > 0, 1 / square, 0)

    def stderr(self) -> Tensor:
        """The standard error of `evidence`, in nats: that of the passes, or from their spread."""
        count = len(self._evidence)
        squares = self._shares.square()
        between = (count * squares.sum(0) - 1).clamp_min(0) / max(count - 1, 1)
        if self._size == 1 and count > 1:
            return between.sqrt()
        variance = torch.stack(self._variance)
        inside = torch.where(squares > 0, squares * variance, 0).sum(0)
        return torch.maximum(inside, between).sqrt()


def balanced(normals: Tensor, size: int) -> Tensor:
    """Normal rows (n·P, D) made to add up to 0 in each population; each stays N(0, I).

    The correlation of −1/(P − 1) removes what is linear in the noise from a mean over particles.
    The mean stays unbiased, because it depends only on the distribution of each single particle.
    """
    if size == 1:
        return normals
    rows = normals.reshape(-1, size, normals.shape[1])
    apart = rows - rows.mean(1, keepdim=True)
    return (math.sqrt(size / (size - 1)) * apart).reshape(normals.shape)


def effective_size(weights: Tensor) -> Tensor:
    """1/Σ w² (n,) of normalized weights; 0 where all are 0."""
    square = weights.square().sum(1)
    return torch.where(square > 0, 1 / square, 0)


def systematic(weights: Tensor, uniform: Tensor, size: int | None = None) -> Tensor:
    """P or `size` indices a row of weights (n, P), by one uniform number (n, 1) a row."""
    size = size or weights.shape[1]
    places = (torch.arange(size, device=weights.device) + uniform) / size
    return _inverse(weights, places)


def _inverse(weights: Tensor, places: Tensor) -> Tensor:
    """The inverse (n, k) of the distribution functions of weights (n, P) at places (n, k)."""
    total = weights.cumsum(1)
    total = total / total[:, -1:].clamp_min(1e-300)
    found = torch.searchsorted(total, places.contiguous(), right=True)
    return found.clamp_max(weights.shape[1] - 1)


def _softmax(log_weights: Tensor) -> Tensor:
    """Normalized weights; 0 where all are 0."""
    none = log_weights.amax(1, keepdim=True) == -math.inf
    return torch.where(none, 0, torch.where(none, 0, log_weights).softmax(1))
