"""Models as folders: a record with weights in safetensors, and names and options in JSON.

`scoresde.storage.description` says a model in plain JSON and tensors, and
`scoresde.storage.rebuild` turns the two into a model again. A training checkpoint, record
"step-NNNNNNNN", has the same description as its entry "model", and the same tensors under the
prefix "model.".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.checks import as_path, brief_repr
from ..common.errors import CheckpointError
from ..common.user_warnings import warn
from ..model import joint
from ..model.latent import Latent
from ..model.require import require_trainable
from ..model.trainable import Trainable
from . import records as storage
from .description import describe, weights
from .lock import LOCK, Lock
from .rebuild import rebuild

MODEL = "model"
"""Name of the record of a saved model."""
STEP = "step-"
"""Prefix of the records of checkpoints."""
AVERAGE = "average-"
"""Prefix of the records of averaged weights."""
PREFIX = "model."
"""Prefix of a model's weights in a checkpoint."""

STAGE = joint.STAGE
LATENTS = joint.LATENTS
"""Folders of the two parts of a `Latent`, in its folder."""


def save(sde: Trainable | Latent, folder: str | os.PathLike[str]) -> Path:
    """Save a model as a folder.

    Parameters
    ----------
    sde : ScoreSDE, another Trainable, or Latent
        Its process and network must be of registered classes, so that `load` can name them. Of a
        network wrapped for distributed training or by `torch.compile`, the inner one is saved. Of
        networks given as `embed=` only the weights are saved: pass networks of the same
        architecture to `load(..., embed=)`.
        The two parts of a Latent go to the folders "stage" and "latents" in it.
    folder : path
        Made if needed. A model that is there is replaced once the new one is complete.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    TypeError, ValueError
        If names and plain options can't describe the model.
    CheckpointError
        If the folder can't be written, another process is writing to it, or it holds something
        else.

    Examples
    --------
    >>> import scoresde, tempfile
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=16)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scoresde.load(scoresde.save(sde, folder + "/model")).process
    VPSDE(beta_min=0.1, beta_max=20.0)
    """
    if isinstance(sde, Latent):
        return _save_latent(sde, as_path(folder, "folder"))
    sde = require_trainable(sde, "save")
    folder = as_path(folder, "folder")
    about = describe(sde)
    folder = prepare_folder(folder)
    with Lock(folder):
        storage.write(folder, MODEL, weights(sde), about)
        storage.sweep(folder)
    return folder


def _save_latent(model: Latent, folder: Path) -> Path:
    """Save a first stage and the score model of its latents, once both can be described."""
    parts: dict[str, Trainable] = {
        STAGE: model.stage,
        LATENTS: require_trainable(model.model, "save"),
    }
    for part in parts.values():
        describe(part)
    latents = prepare_folder(folder / LATENTS)
    with Lock(latents):  # never the old latents beside a new stage
        storage.remove(latents, MODEL)
    for name, part in parts.items():
        save(part, folder / name)
    return folder


def prepare_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder that a model can be saved to, or raise; called before hours of training."""
    folder = as_path(folder, "folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        ours = (
            (folder / f"{MODEL}.json").exists()
            or storage.records(folder, STEP)
            or storage.records(folder, AVERAGE)
        )
        if not ours and names - {LOCK, *storage.leftovers(folder)}:
            raise CheckpointError(
                f"{folder} holds something that is not a scoresde model; choose another folder"
            )
    except OSError as error:
        raise CheckpointError(f"can't write a model to {folder}: {error}") from error
    if not os.access(folder, os.W_OK):
        raise CheckpointError(f"can't write a model to {folder}: it is read-only")
    return folder


def load(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    embed: nn.Module | Mapping[str, nn.Module] | None = None,
) -> Any:
    """Load a model, in eval mode, from what `save` wrote or the newest checkpoint of a run.

    Parameters
    ----------
    folder : path
        A saved model is preferred to checkpoints. A damaged checkpoint is skipped with a warning.
    device : str or torch.device
        Where to put the model.
    embed : nn.Module, or mapping of str to nn.Module, optional
        For a model that was built with `embed=`: networks of the same architecture. Copies of them
        get the weights of the file, which can't name classes of yours.

    Returns
    -------
    ScoreSDE, or a model of the kind that was saved

    Raises
    ------
    CheckpointError
        If there is no model, it is damaged, it is not one of ours, its process or backbone is
        not registered, or embed= is missing or has other weights.
    TypeError, ValueError
        For an embed= that is no network, or for a model without one.

    Examples
    --------
    See `save`.
    """
    folder = as_path(folder, "folder")
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"there is no device {brief_repr(device)} here: {brief_repr(error, str)}"
        ) from None
    if device.type == "meta":
        raise ValueError(
            "a model is not loaded to the meta device, which has no values; take 'cpu'"
        )
    modules = _modules(embed)
    if os.path.lexists(folder / f"{MODEL}.json"):
        about, tensors = storage.read(folder, MODEL)
        where = str(folder / f"{MODEL}.json")
        return _with_modules(about, tensors, where, modules).to(device)
    steps = storage.records(folder, STEP)
    if not steps and (folder / STAGE).is_dir():
        return _load_latent(folder, device)
    if not steps:
        raise CheckpointError(
            f"no model at {folder}: it has neither {MODEL}.json nor {STEP}NNNNNNNN.json"
        )
    stem, checkpoint, tensors = _newest_undamaged(folder, steps)
    tensors = {
        name.removeprefix(PREFIX): value
        for name, value in tensors.items()
        if name.startswith(PREFIX)
    }
    where = str(folder / f"{stem}.json")
    return _with_modules(checkpoint.get("model"), tensors, where, modules).to(device)


def _modules(embed: Any) -> dict[str, nn.Module] | None:
    """Networks by the condition that they make."""
    if embed is None:
        return None
    if isinstance(embed, nn.Module) and not isinstance(embed, nn.ModuleDict):
        return {"vector": embed}
    found = embed
    if isinstance(embed, Mapping | nn.ModuleDict):
        found = dict(embed.items())
    if not isinstance(found, dict) or not all(isinstance(m, nn.Module) for m in found.values()):
        raise TypeError(
            "embed is a network, or a mapping such as {'vector': net}, got "
            f"{type(embed).__name__}"
        )
    return found


def _with_modules(
    about: Any, tensors: dict[str, Tensor], where: str, modules: dict[str, nn.Module] | None
) -> Any:
    """The model of a record, with the user's networks, if it has some."""
    alone = isinstance(about, dict) and "parts" not in about
    if modules is not None and alone and "embed" not in about:
        raise ValueError(f"the model of {where} was built without embed=: leave it out")
    return rebuild(about, tensors, where, modules)


def _load_latent(folder: Path, device: torch.device) -> Latent:
    """Load the two parts of a `Latent`."""
    if not (folder / LATENTS).is_dir():
        raise CheckpointError(
            f"{folder} holds a first stage, and no score model of its latents yet: fit goes on "
            f"with --resume, and load('{folder / STAGE}') reads the stage"
        )
    try:
        return Latent(load(folder / STAGE, device), load(folder / LATENTS, device))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds two parts that do not go together: {error}"
        ) from None


def _newest_undamaged(
    folder: Path, steps: list[str]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The newest checkpoint that can be read; warn if it is not the newest of all."""
    errors: list[CheckpointError] = []
    for stem in reversed(steps):
        try:
            about, tensors = storage.read(folder, stem)
        except CheckpointError as error:
            errors.append(error)
            continue
        if errors:
            warn(
                f"loading {folder / stem} instead of the newest checkpoint: {errors[0]}",
            )
        return stem, about, tensors
    raise errors[0]
