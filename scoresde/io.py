"""A model is a record of `scoresde.storage`: weights in safetensors (raw and averaged), and names and options in JSON.

`describe` says a model in plain JSON and `weights` in tensors; `rebuild` turns the two into a model again, from classes that
are registered here and from nothing else: it never runs or imports what a file names. A training checkpoint, record
"step-NNNNNNNN", has the same description as its entry "model", and the same tensors under the prefix "model.".
"""

from __future__ import annotations

import inspect
import json
import math
import numbers
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import storage
from .backbones import BACKBONES
from .checks import as_path, said
from .errors import CheckpointError
from .inputs import event_shape
from .modules import duplicate
from .process import PROCESSES
from .registry import loaded_only
from .schema import Schema
from .sde import ScoreSDE, require_sde
from .source import Missing
from .storage import brief
from .toy import DENSITIES

MODEL, STEP, AVERAGE = "model", "step-", "average-"  # the records that a folder of ours may hold
PREFIX = "model."
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SPARE = 2**26  # numbers that a network may leave out of its state: no weight of the file bounds them
_NETS = ("net.", "ema.")
SEEN = ("conditions", "learnt")  # what `fit` has found of the data's conditions
_NULLS = re.compile(r"(^|\.)null_(vector|image)$")  # learnt for "none", which older files lack
_WORDS = re.compile(r"\.to_[kv]\.weight$")  # of diffusers' models that attend to a condition, likewise
WRONG = (ImportError, LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, MemoryError)


def save(sde: ScoreSDE, folder: str | os.PathLike[str]) -> Path:
    """Save a model as a folder.

    Parameters
    ----------
    sde : ScoreSDE
        Its process and network must be of registered classes, so that `load` can name them. A network wrapped for
        distributed runs or by `torch.compile` is saved as what is inside.
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
        If the folder can't be written, is being written by another process, or holds something else.

    Examples
    --------
    >>> import scoresde, tempfile
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=16)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scoresde.load(scoresde.save(sde, folder + "/model")).process
    VPSDE(beta_min=0.1, beta_max=20.0)
    """
    sde = require_sde(sde, "save")
    folder = as_path(folder, "folder")
    about = describe(sde)
    folder = ready(folder)
    with storage.Lock(folder):
        storage.write(folder, MODEL, weights(sde), about)
        storage.sweep(folder)
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
        If it can't be made or written to, or holds something else than models, checkpoints and leftovers of ours.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ready(folder + "/a/b").exists()
    True
    """
    folder = as_path(folder, "folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ours = (folder / f"{MODEL}.json").exists() or storage.records(folder, STEP) or storage.records(folder, AVERAGE)
        others = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if not ours and others - {storage.LOCK, *storage.leftovers(folder)}:
            raise CheckpointError(f"{folder} holds something that is not a scoresde model; choose another folder")
    except OSError as error:
        raise CheckpointError(f"can't write a model to {folder}: {error}") from error
    if not os.access(folder, os.W_OK):
        raise CheckpointError(f"can't write a model to {folder}: it is read-only")
    return folder


def load(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> ScoreSDE:
    """Load a model from a folder that `save` wrote, in eval mode; or from the newest sound checkpoint of a training run.

    Parameters
    ----------
    folder : path
        What `save` wrote there is preferred to checkpoints; a checkpoint that is damaged is passed over with a warning.
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
    folder = as_path(folder, "folder")
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"there is no device {said(device)} here: {said(error, str)}") from None
    if device.type == "meta":
        raise ValueError("a model is not loaded to the meta device, which has no values; take 'cpu'")
    if os.path.lexists(folder / f"{MODEL}.json"):
        return rebuild(*storage.read(folder, MODEL), str(folder / f"{MODEL}.json")).to(device)
    steps = storage.records(folder, STEP)
    if not steps:
        raise CheckpointError(f"no model at {folder}: it has neither {MODEL}.json nor {STEP}NNNNNNNN.json")
    stem, about, tensors = _newest(folder, steps)
    tensors = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    return rebuild(about.get("model"), tensors, str(folder / f"{stem}.json")).to(device)


def describe(sde: ScoreSDE) -> dict[str, Any]:
    """Return what a model is built from, in plain JSON, checked that it can be built from it.

    Parameters
    ----------
    sde : ScoreSDE

    Returns
    -------
    dict
        Process and network by name and options, shape, prediction, …: all but the `weights`.

    Raises
    ------
    TypeError, ValueError
        If names and plain options do not say it all.

    Examples
    --------
    >>> import scoresde
    >>> describe(scoresde.build("vp", "mlp", shape=(2,), width=16))["net"]
    {'name': 'mlp', 'options': {'width': 16}}
    """
    if sde.condition:
        raise ValueError(f"conditions {sorted(sde.condition)} are not saved: save the model that given(...) was called on")
    net = _inner(sde.net)
    name, options = BACKBONES.name_of(net), BACKBONES.options_of(net)
    options.pop(next(iter(inspect.signature(BACKBONES[name]).parameters), ""), None)  # the shape, whatever they call it
    about: dict[str, Any] = {
        "process": {"name": PROCESSES.name_of(sde.process), "options": PROCESSES.options_of(sde.process)},
        "net": {"name": name, "options": options},
        "shape": list(sde.shape),
        "predict": sde.predict,
        "sees": sde.sees,
        "kind": sde.kind,
        "source": _source(sde),
        "averaged": sde.ema is not None,
        **seen(sde),
    }
    if names := sde.schema.describe():
        about["schema"] = names
    try:
        about = json.loads(json.dumps(about, allow_nan=False, default=_number))  # as it will be read
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"a model is saved as names and plain options, and one is not plain: {error}") from None
    tensors = weights(sde)
    try:
        _compare(_on_paper(about, len(tensors)), tensors)
    except (ValueError, TypeError, RuntimeError) as error:
        raise TypeError(f"this model can't be rebuilt from its names and options, so it is not saved: {error}") from error
    return about


def seen(sde: ScoreSDE) -> dict[str, Any]:
    """What `fit` has found of the data's conditions, in plain JSON; of a model without any nothing."""
    about = {"conditions": {name: list(shape) for name, shape in sde.conditions.known().items()}, "learnt": sde.learnt}
    return {name: value for name, value in about.items() if value}


def weights(sde: ScoreSDE) -> dict[str, Tensor]:
    """Return all tensors of a model by name: of the network, of its average, and the standardization.

    Parameters
    ----------
    sde : ScoreSDE

    Returns
    -------
    dict of str to Tensor
        Named as in a model that is not wrapped for distributed runs or by `torch.compile`. They are the model's own, not
        copies, on its device.

    Examples
    --------
    >>> import scoresde
    >>> sorted(weights(scoresde.build("vp", "mlp", shape=(2,))))[:3]
    ['mean', 'measured', 'net.frequencies']
    """
    parts = {"net.": _inner(sde.net), "ema.": None if sde.ema is None else _inner(sde.ema)}
    found = {name: value for name, value in sde.state_dict().items() if not name.startswith(tuple(parts))}
    for part, net in parts.items():
        found |= {part + name: value for name, value in ({} if net is None else net.state_dict()).items()}
    return {_COMPILED.sub("", name): value.detach() for name, value in found.items()}


@loaded_only()  # a file must not choose what is imported
def rebuild(about: Any, tensors: Mapping[str, Tensor], where: str = "the description") -> ScoreSDE:
    """Build a model from what `describe` and `weights` said, in eval mode; nothing of it is trusted.

    Parameters
    ----------
    about : dict
        What `describe` returned, after a time in a file.
    tensors : mapping of str to Tensor
        What `weights` returned, names wrapped by `module.` or `_orig_mod.` or not. They are copied.
    where : str
        Where they are from, for messages.

    Returns
    -------
    ScoreSDE
        On the CPU.

    Raises
    ------
    CheckpointError
        If they are not a model that can be built here.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("vp", "mlp", shape=(2,))
    >>> rebuild(describe(sde), weights(sde)).process
    VPSDE(beta_min=0.1, beta_max=20.0)
    """
    try:
        wanted = _on_paper(about, len(tensors))
        tensors = _unwrapped(tensors, wanted)
        if (filled := _filled(tensors, wanted)) is not tensors:
            tensors = filled
            warnings.warn(
                f"{where} is of a version for which a condition of zeros and none are the same: fit it anew to tell them apart",
                stacklevel=3,
            )
        _compare(wanted, tensors)
        with torch.device("cpu"), torch.inference_mode(False):
            sde = _build(about)
        parts = [*sde.named_parameters(), *sde.named_buffers()]
        told = [(value.dtype, tensors[name].dtype) for name, value in parts if name in tensors and name.startswith(_NETS)]
        turned = dict(reversed(told))  # what a network leaves out of its state goes along with the first weight
        for name, value in parts:
            if not name.startswith(_NETS):
                continue
            value.data = value.data.to(tensors[name].dtype if name in tensors else turned.get(value.dtype, value.dtype))
        sde.load_state_dict(tensors)
    except WRONG as error:
        raise CheckpointError(f"{where} does not describe a model that can be built here: {brief(error)}") from None
    return sde.eval()


# What wrappers put into names: torch.compile around any module, distributed training around the network.
_COMPILED = re.compile(r"(?<![^.])_orig_mod\.")


def _inner(net: nn.Module) -> nn.Module:
    """The network inside its wrappers."""
    while True:
        if isinstance(net, nn.parallel.DistributedDataParallel | nn.DataParallel):
            net = net.module
        elif isinstance(inside := getattr(net, "_orig_mod", None), nn.Module):
            net = inside
        else:
            return net


def _unwrapped(tensors: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by the names that are wanted, where these differ by wrappers only; two must not end with one name."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name not in wanted:
            name = _COMPILED.sub("", name)
        while name not in wanted and re.match(r"(net|ema)\.module\.", name):  # a network may have a part of that name
            name = name.replace("module.", "", 1)
        if name in found:
            raise ValueError(f"two weights are both {name!r}")
        found[name] = value
    return found


def _newest(folder: Path, steps: list[str]) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The newest sound record; older ones serve, but not in silence."""
    errors: list[CheckpointError] = []
    for stem in reversed(steps):
        try:
            record = storage.read(folder, stem)
        except CheckpointError as error:
            errors.append(error)
            continue
        if errors:
            warnings.warn(f"loading {folder / stem} instead of the newest checkpoint: {errors[0]}", stacklevel=3)
        return stem, *record
    raise errors[0]


def _build(about: dict[str, Any]) -> ScoreSDE:
    """Build what the JSON describes, with weights yet to come."""
    shape = event_shape(about["shape"])
    process = PROCESSES.build(about["process"]["name"], **about["process"]["options"])
    net = BACKBONES.build(about["net"]["name"], shape, **about["net"]["options"])
    kind = about.get("kind") or ("velocity" if about["coupled"] else "score")  # as it was said before there were other kinds
    sde = ScoreSDE(process, net, shape=shape, predict=about["predict"], sees=about["sees"], kind=kind)
    sde.source = _law(about.get("source"))
    sde.schema = Schema.rebuild(about.get("schema"), shape)
    if about["averaged"]:
        sde.ema = duplicate(net).requires_grad_(False)
    for name, statistic in about.get("conditions", {}).items():
        sde.conditions.blank(name, tuple(statistic))
    sde.learnt = _recorded(about.get("learnt"))
    return sde


def _recorded(about: Any) -> dict[str, Any] | None:
    """What `fit` has recorded, if it is that."""
    if about is None:
        return None
    conditions = {str(name): [int(n) for n in shape] for name, shape in about["conditions"].items()}
    return {"conditions": conditions, "unconditional": bool(about["unconditional"])}


def _filled(tensors: dict[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of an older file with zeros for what is learnt in place of absent conditions: as it was there."""
    found = dict(tensors)
    for name, (shape, _) in wanted.items():
        here = tensors.get(name)
        if here is None and _NULLS.search(name):
            like = next((value for other, value in tensors.items() if other.startswith(name[:4])), None)
            found[name] = torch.zeros(shape, dtype=torch.float32 if like is None else like.dtype)
        elif here is not None and _WORDS.search(name) and here.ndim == 2 and (here.shape[0], here.shape[1] + 1) == shape:
            found[name] = torch.cat([here, here.new_zeros(here.shape[0], 1)], 1)
    changed = found.keys() != tensors.keys() or any(found[name] is not value for name, value in tensors.items())
    return found if changed else tensors


def _number(value: object) -> int | float:
    """A number of numpy's as one of Python's."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} {value!r}")


def _source(sde: ScoreSDE) -> dict[str, Any] | None:
    """The law that paths begin in, by name; of one that has none a file can say only that there is one."""
    try:
        if sde.source is None:
            return None
        return {"name": DENSITIES.name_of(sde.source), "options": DENSITIES.options_of(sde.source)}
    except ValueError:
        return {"name": None, "options": {}}


def _law(about: dict[str, Any] | None) -> Any:
    if about is None:
        return None
    return Missing() if about["name"] is None else DENSITIES.build(about["name"], **about["options"])


def _on_paper(about: dict[str, Any], count: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Names, shapes and kinds of the weights that the JSON asks for, before any are allocated: it may ask for anything."""
    shape, name, options = event_shape(about["shape"]), about["net"]["name"], about["net"]["options"]
    left = [4.0 * count + 100]  # constructors may assign a parameter more than once

    def stop(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError(f"the network has many more weights than the {count} in the file")

    handle = None
    try:
        handle = torch.nn.modules.module.register_module_parameter_registration_hook(stop)
        with torch.device("meta"):
            net = BACKBONES.build(name, shape, **options)
    except RuntimeError as error:
        if not (isinstance(error, NotImplementedError) or re.search(r"\bmeta\b", str(error))):
            raise
        net = BACKBONES.build(name, shape, **options)  # a constructor that looks at its numbers can't be built on paper
    finally:
        left[0] = math.inf  # the hook is torch's, for all modules: after an interrupt just now it must do no harm
        if handle is not None:
            handle.remove()
    stated = net.state_dict()
    spare = sum(value.numel() for key, value in net.named_buffers() if key not in stated)
    if spare > SPARE:
        raise ValueError(f"the network makes {spare} numbers that are in no file, more than {SPARE}")
    statistic = shape[:1] + (1,) * (len(shape) - 1)
    wanted: dict[str, tuple[tuple[int, ...], str]] = {
        "mean": (statistic, "float"),
        "scale": (statistic, "float"),
        "measured": ((), _kind(torch.bool)),
    }
    for name, statistic in about.get("conditions", {}).items():
        if not isinstance(statistic, list) or len(statistic) > 1 or not all(type(n) is int and n >= 0 for n in statistic):
            raise ValueError(f"the standardization of condition {name!r} has no shape {statistic!r}")
        wanted |= {f"conditions.{name}.{what}": (tuple(statistic), "float") for what in ("mean", "scale")}
    for part in ("net", "ema") if about["averaged"] else ("net",):
        wanted |= {f"{part}.{key}": (tuple(value.shape), _kind(value.dtype)) for key, value in stated.items()}
    return wanted


def _kind(dtype: torch.dtype) -> str:
    """One kind for all floating-point numbers, as models may be converted; another for each other dtype."""
    return "float" if dtype in FLOATS else str(dtype)


def _compare(wanted: dict[str, tuple[tuple[int, ...], str]], tensors: Mapping[str, Tensor]) -> None:
    found = {name: (tuple(value.shape), _kind(value.dtype)) for name, value in tensors.items()}
    wrong = sorted({name for name, _ in wanted.items() ^ found.items()})
    if wrong:
        raise ValueError(f"{len(wrong)} weights are missing, unknown or of another shape or kind, first {wrong[0]!r}")
    of_conditions = [value for name, value in tensors.items() if name.startswith("conditions.")]
    spreads = [value for name, value in tensors.items() if name.startswith("conditions.") and name.endswith(".scale")]
    if not all(bool(value.isfinite().all()) for value in of_conditions) or any(bool((v <= 0).any()) for v in spreads):
        raise ValueError("the standardization of its conditions is not a finite mean and a positive scale")
    mean, scale = tensors["mean"], tensors["scale"]
    if not bool(mean.isfinite().all() & scale.isfinite().all() & (scale >= 0).all() & (scale > 0).any()):
        raise ValueError("its standardization is not a finite mean and a positive scale (0 for constants)")
