"""Arguments of `likelihood` by name, for functions that pass them on."""

from __future__ import annotations

import torch

from ..solvers import Solver
from ..solvers.options import SolverOptions
from .prior import HasLogProb
from .trace_estimators import TraceEstimator


class LogProbOptions(SolverOptions, total=False):
    """What `log_prob` takes besides its named arguments."""

    errors: bool


class SolveOptions(SolverOptions, total=False):
    """How the solves of a `Distribution` go, both of samples and of log p."""

    solver: str | Solver
    steps: int | None
    spacing: str | None
    batch_size: int | None


class ScoreOptions(SolveOptions, total=False):
    """How `evaluate` computes log p."""

    trace: str | TraceEstimator
    probes: int | None


class DensityOptions(ScoreOptions, total=False):
    """Arguments of `likelihood`, without its randomness."""

    prior: HasLogProb | None
    differentiable: bool
    errors: bool
    invalid: str
    progress: bool | None


class FittedOptions(DensityOptions, total=False):
    """What `TruncatedNormal.fitted` passes on."""

    draws: int


class RandomDensityOptions(DensityOptions, total=False):
    """Arguments of `likelihood`."""

    generator: torch.Generator | None
    seed: int | None


class ModeOptions(SolverOptions, total=False):
    """How `Posterior.map` computes log p, where steps= are those of the ascent."""

    solver: str | Solver
    spacing: str | None
    batch_size: int | None
    trace: str | TraceEstimator
    probes: int | None
    progress: bool | None
