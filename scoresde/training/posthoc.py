"""Averages of a run's weights whose length is chosen afterwards, from snapshots of two others."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import as_path, real_number, whole_number
from ..common.errors import CheckpointError
from ..common.modules import duplicate
from ..common.user_warnings import warn
from ..model.joint import Joint
from ..model.latent import Latent
from ..model.require import require_sde
from ..storage import records as storage
from ..storage.description import describe
from ..storage.models import AVERAGE, load
from .averaging import PROFILE_WIDTHS, exponent
from .checkpoint import without_names

INEXACT = 0.05
"""The relative error in L² of a composed profile above which a warning says so."""

Profile = tuple[float, int]
"""γ of a power-function average, and the step that it ends at."""


def posthoc_ema(
    folder: str | os.PathLike[str], sigma: float = 0.1, *, step: int | None = None
) -> Any:
    """Return a run's model with an average of the weights whose length is chosen now.

    The power-function average of relative width σ has the profile p_γ,t(τ) = (γ + 1)·τ^γ/t^(γ+1)
    over the steps τ ≤ t. The snapshots have profiles p_i; their sum Σ_i c_i·p_i that comes closest
    to the wanted profile in L² has Σ_j ⟨p_i, p_j⟩·c_j = ⟨p_i, p⟩. The same sum is taken of the
    weights.

    Parameters
    ----------
    folder : path
        Of a `fit` with checkpoints= and ema=Averaging(snapshots=...).
    sigma : float
        σ_rel, the standard deviation of the average's profile as a fraction of training; about 0.1
        of the last steps count. The two averages stored have 0.05 and 0.1. With 16 snapshots the
        composed profile differs from the wanted one by 1% (in L²) at 0.04 and 0.15, 2% at 0.2, 4%
        at 0.03 and 0.22, 8% at 0.25; with 8 by three times that. Above 5% a warning says so.
    step : int, optional
        The end of the average: that of a snapshot, by default the last.

    Returns
    -------
    ScoreSDE, or the Latent of a `fit_joint`
        In eval mode, with the raw weights of the folder.

    Raises
    ------
    CheckpointError
        Without snapshots, or if they are damaged.
    ValueError
        For a width that no such average has.

    References
    ----------
    Karras et al., Analyzing and improving the training dynamics of diffusion models, CVPR 2024,
    section 3 and algorithm 3.

    Examples
    --------
    >>> import scoresde, tempfile
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    >>> averaging = scoresde.Averaging(snapshots=5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     how = {"steps": 50, "ema": averaging, "checkpoints": folder}
    ...     _ = scoresde.fit(sde, scoresde.toy.Moons(), **how)
    ...     scoresde.posthoc_ema(folder, 0.07).shape
    (2,)
    """
    real_number("sigma", sigma, 0.01, 0.28, hint="it is a fraction of training: try 0.1")
    folder = as_path(folder, "folder")
    step = None if step is None else whole_number("step", step)
    stems = [
        stem
        for stem in storage.records(folder, AVERAGE)
        if step is None or int(stem[len(AVERAGE) :]) <= step
    ]
    if not stems or (step is not None and int(stems[-1][len(AVERAGE) :]) != step):
        which = "snapshots" if step is None else f"snapshot of step {step}"
        raise CheckpointError(
            f"{folder} has no {which}; try fit(..., checkpoints=folder, "
            "ema=Averaging(snapshots=16))"
        )
    whole = load(folder)
    sde: Any = whole
    if isinstance(whole, Latent):  # of joint training
        sde = Joint(whole, whole.stage, require_sde(whole.model, "posthoc_ema"))
    model = describe(sde) | {"averaged": True}
    gammas = [exponent(width) for width in PROFILE_WIDTHS]
    profiles = [(gamma, int(stem[len(AVERAGE) :])) for stem in stems for gamma in gammas]
    shares, error = _closest(profiles, (exponent(sigma), profiles[-1][1]))
    if error > INEXACT:
        warn(
            f"an average of width {sigma:g} is {error:.0%} off, composed of {len(stems)} "
            "snapshots; train with more of them, or take a sigma nearer to "
            f"{PROFILE_WIDTHS[0]:g} to {PROFILE_WIDTHS[1]:g}"
        )
    total: dict[str, Tensor] = {}
    for stem, pair in zip(stems, shares.reshape(-1, len(gammas)), strict=True):
        about, tensors = storage.read(folder, stem)
        if without_names(about.get("model")) != without_names(model):
            raise CheckpointError(
                f"{folder / stem} is a snapshot of another model than the one in the folder"
            )
        for name, value in tensors.items():
            i, _, inner = name.partition(".")
            total[inner] = total.get(inner, 0) + float(pair[int(i)]) * value.double()
    _put_average(sde, total, str(folder))
    sde.eval()
    return whole


def _put_average(sde: Any, average: dict[str, Tensor], folder: str) -> None:
    """Give a model an average of its trained weights."""
    if sde.ema is None:
        sde.ema = duplicate(sde.net).requires_grad_(False)
    theirs = dict(sde.ema.named_parameters())
    if not average.keys() <= theirs.keys():
        raise CheckpointError(f"the snapshots in {folder} are of another network")
    with torch.no_grad():
        for name, value in average.items():
            theirs[name].copy_(value)


def _closest(profiles: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """Return the sum of profiles that is closest to one in L², and its relative error."""
    matrix = np.array([[_inner(*a, *b) for b in profiles] for a in profiles])
    right = np.array([_inner(*a, *wanted) for a in profiles])
    shares = np.linalg.lstsq(matrix, right, rcond=None)[0]
    squared = 1 - float(2 * shares @ right - shares @ matrix @ shares) / _inner(*wanted, *wanted)
    return shares, math.sqrt(max(squared, 0.0))


def _inner(a: float, s: int, b: float, t: int) -> float:
    """Return ⟨p_a,s, p_b,t⟩, the integral of the product of two profiles."""
    if s > t:
        a, s, b, t = b, t, a, s
    return float((a + 1) * (b + 1) / (a + b + 1) * (s / t) ** b / t)
