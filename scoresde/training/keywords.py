"""Arguments of `fit` by name, for functions that pass them on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypedDict

import torch

from ..common.seeds import Randomness
from .couplings import Coupling
from .logs import Log
from .objectives import Objective
from .options import Averaging, Backend, Checkpoints


class Running(Randomness, total=False):
    """What `fit` takes by name after its own arguments."""

    log: str | os.PathLike[str] | Log | Any


class RunKeywords(TypedDict, total=False):
    """How `fit` runs, whatever the data and what is learnt."""

    batch_size: int
    checkpoints: str | os.PathLike[str] | Checkpoints | None
    backend: str | Backend | Any
    progress: bool | None
    log: str | os.PathLike[str] | Log | Any


class PosteriorKeywords(RunKeywords, total=False):
    """What `posterior` passes on."""

    objective: str | Objective | None
    coupling: str | Coupling | None


class StageKeywords(RunKeywords, total=False):
    """What `fit_stage` passes on."""

    given: Mapping[str, Any] | None
    transforms: Any
    validation: Any
    steps: int | str
    lr: float | str
    ema: float | Averaging
    generator: torch.Generator | None
    seed: int | None


class FitKeywords(StageKeywords, total=False):
    """All of them."""

    objective: str | Objective | None
    coupling: str | Coupling | None
