"""A model is a folder: weights in safetensors (raw and averaged) and a JSON file that names everything needed to rebuild it.

Loading builds registered classes from plain numbers and strings and fills them with tensors: it never runs code from the
folder. The JSON is written last and carries the SHA-256 of the weights, so a save that was cut short leaves the previous
model in place and a damaged one is recognized.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from .backbones import BACKBONES
from .errors import CheckpointError
from .inputs import event_shape
from .process import PROCESSES
from .sde import ScoreSDE, require_sde

FORMAT = "scoresde-1"
JSON = "model.json"


def save(sde: ScoreSDE, folder: str | os.PathLike[str]) -> Path:
    """Save a model as a folder.

    Parameters
    ----------
    sde : ScoreSDE
        Its process and network must be of registered classes, so that `load` can name them.
    folder : path
        Made if it is not there; a model that is there is replaced once the new one is complete.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    TypeError, ValueError
        If the model can't be described by names and plain options.
    CheckpointError
        If the folder can't be written, or holds something else.

    Examples
    --------
    >>> import scoresde, tempfile
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=16)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scoresde.load(scoresde.save(sde, folder + "/model")).process
    VPSDE(beta_min=0.1, beta_max=20.0)
    """
    sde = require_sde(sde, "save")
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder is a path, got {type(folder).__name__}")
    if sde.condition:
        raise ValueError(f"conditions {sorted(sde.condition)} are not saved: save the model that given(...) was called on")
    folder = Path(folder)
    options = BACKBONES.options_of(sde.net)
    options.pop(next(iter(inspect.signature(type(sde.net)).parameters), ""), None)  # the shape, whatever they call it
    net = {"name": BACKBONES.name_of(sde.net), "options": options}
    about: dict[str, Any] = {
        "format": FORMAT,
        "process": {"name": PROCESSES.name_of(sde.process), "options": PROCESSES.options_of(sde.process)},
        "net": net,
        "shape": list(sde.shape),
        "predict": sde.predict,
        "sees": sde.sees,
        "coupled": sde.coupled,
        "averaged": sde.ema is not None,
    }
    try:
        json.dumps(about)
    except TypeError as error:
        raise TypeError(f"a model is saved as names and plain options, and one is not plain: {error}") from None
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in sde.state_dict().items()}
    try:
        _compare(_on_paper(about, len(weights)), weights)
    except (ValueError, TypeError, RuntimeError) as error:
        raise TypeError(f"this model can't be rebuilt from its names and options, so it is not saved: {error}") from error
    data = safetensors.torch.save(weights)
    digest = hashlib.sha256(data).hexdigest()
    about["weights"] = {"file": f"weights-{digest[:12]}.safetensors", "sha256": digest}
    ready(folder)
    try:
        _write(folder / about["weights"]["file"], data)
        _write(folder / JSON, (json.dumps(about, indent=2) + "\n").encode())
        for old in folder.glob("weights-*.safetensors"):
            if old.name != about["weights"]["file"]:
                old.unlink()
    except OSError as error:
        raise CheckpointError(f"can't write a model to {folder}: {error}") from error
    return folder


def ready(folder: str | os.PathLike[str]) -> Path:
    """Make a folder that a model can be saved to, or say why not: to be asked before hours of training.

    Parameters
    ----------
    folder : path

    Returns
    -------
    Path

    Raises
    ------
    CheckpointError
        If it can't be made or written to, or holds something that is not a model.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ready(folder + "/a/b").exists()
    True
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / JSON).exists():
            raise CheckpointError(f"{folder} holds something that is not a scoresde model; choose another folder")
    except OSError as error:
        raise CheckpointError(f"can't write a model to {folder}: {error}") from error
    if not os.access(folder, os.W_OK):
        raise CheckpointError(f"can't write a model to {folder}: it is read-only")
    return folder


def load(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> ScoreSDE:
    """Load a model from a folder that `save` wrote, in eval mode.

    Parameters
    ----------
    folder : path
    device : str or torch.device
        Where to put it.

    Returns
    -------
    ScoreSDE

    Raises
    ------
    CheckpointError
        If there is no model, it is damaged, it is not one of ours, or it needs a process or backbone that is not registered.

    Examples
    --------
    See `save`.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder is a path, got {type(folder).__name__}")
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {device!r} here: {error}") from None
    folder = Path(folder)
    try:
        about = json.loads((folder / JSON).read_bytes())
    except OSError as error:
        raise CheckpointError(f"no model at {folder}: {error.strerror} ({JSON})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / JSON} is not JSON: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        got = about.get("format") if isinstance(about, dict) else type(about).__name__
        raise CheckpointError(f"{folder / JSON} is not a {FORMAT} model (format: {got!r})")
    try:
        file, digest = about["weights"]["file"], about["weights"]["sha256"]
        if Path(file).name != file:
            raise CheckpointError(f"{folder / JSON} names weights outside the folder: {file!r}")
        data = (folder / file).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise CheckpointError(f"{folder / file} is damaged: its SHA-256 is not the one in {JSON}")
        weights = safetensors.torch.load(data)
        _compare(_on_paper(about, len(weights)), weights)
        sde = _build(about)
        for name, value in itertools.chain(sde.named_parameters(), sde.named_buffers()):
            value.data = value.data.to(weights[name].dtype)
        sde.load_state_dict(weights)
        sde.to(device)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{folder} names weights that can't be read: {error}") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{folder / file} is not a safetensors file: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, MemoryError) as error:
        raise CheckpointError(f"{folder / JSON} does not describe a model that can be built here: {error}") from None
    return sde.eval()


def _build(about: dict[str, Any]) -> ScoreSDE:
    """Build what the JSON describes, with weights yet to come."""
    shape = event_shape(about["shape"])
    process = PROCESSES.build(about["process"]["name"], **about["process"]["options"])
    net = BACKBONES.build(about["net"]["name"], shape, **about["net"]["options"])
    coupled = about.get("coupled", False)  # older files do not say
    sde = ScoreSDE(process, net, shape=shape, predict=about["predict"], sees=about["sees"], coupled=coupled)
    if about["averaged"]:
        sde.ema = copy.deepcopy(net).requires_grad_(False)
    return sde


def _on_paper(about: dict[str, Any], count: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that the JSON asks for, before any are allocated: it may ask for anything."""
    shape, name, options = event_shape(about["shape"]), about["net"]["name"], about["net"]["options"]
    left = [4 * count + 100]  # constructors may assign a parameter more than once

    def stop(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError(f"the network has many more weights than the {count} in the file")

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(stop)
    try:
        with torch.device("meta"):
            net = BACKBONES.build(name, shape, **options)
    except RuntimeError:  # a constructor that looks at its numbers can't be built on paper
        net = BACKBONES.build(name, shape, **options)
    finally:
        handle.remove()
    statistic = shape[:1] + (1,) * (len(shape) - 1)
    wanted: dict[str, tuple[int, ...]] = {"mean": statistic, "scale": statistic, "measured": ()}
    for part in ("net", "ema") if about["averaged"] else ("net",):
        wanted |= {f"{part}.{key}": tuple(value.shape) for key, value in net.state_dict().items()}
    return wanted


def _compare(wanted: dict[str, tuple[int, ...]], weights: dict[str, torch.Tensor]) -> None:
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = sorted({name for name, _ in wanted.items() ^ found.items()})
    if wrong:
        raise ValueError(f"{len(wrong)} weights are missing, unknown or of another shape, first {wrong[0]!r}")


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".partial", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
