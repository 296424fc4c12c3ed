"""Networks that were trained with diffusers on a chain of noise levels, as score models.

A chain is the process `scoresde.processes.discrete.DDPM`, whose level i is at t = i/T, and the step
number of diffusers counts levels from 0: i − 1. The network receives x_t, as it did in training.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.base import BACKBONES
from ..backbones.external import Diffusers
from ..common.checks import as_path, true_or_false
from ..common.errors import one_line
from ..common.names import nearest
from ..model.score_sde import ScoreSDE
from ..processes.discrete import BETAS, DDPM, TRAINED
from ..storage.disk import read_file
from ..storage.sealed import LIMIT, parse_json

PREDICTIONS_OF_DIFFUSERS = {"epsilon": "eps", "v_prediction": "v_arc", "sample": "x0"}
NETWORK = "UNet2DModel"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")
TABLE = "class_embedding.weight"
SIZES = ("sample_size", "in_channels", "out_channels", "num_class_embeds", "time_embedding_type")
"""Options that shape and classes decide, or that are checked here."""
UNUSED = ("class_embed_type", "num_train_timesteps")
_DEFAULTS = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
}
"""Of diffusers' DDPM and DDIM schedulers, where a file leaves an entry out."""


def from_diffusers(
    source: Any,
    *,
    shape: tuple[int, ...] | None = None,
    unlabeled: bool = False,
    device: str | torch.device = "cpu",
) -> ScoreSDE:
    """Return a score model of a UNet2DModel, trained with diffusers on a chain of noise levels.

    For unconditional and class-conditional models of pixels; not for latent or text models. What
    the pipeline's scheduler does to samples on the way is no part of the model: x̂0 is not clipped
    (`clip_sample`, `thresholding`). With `solver="ddim", spacing="ddpm"` and a number of steps that
    divides T, samples are those of diffusers' DDIM with `timestep_spacing="trailing"`. The units
    are the pipeline's, images in [−1, 1].

    Parameters
    ----------
    source : path, DiffusionPipeline, or (UNet2DModel, scheduler)
        A folder as `DDPMPipeline.save_pretrained` writes it: config.json and weights in
        safetensors, with scheduler_config.json. Pickles (.bin) are not read.
    shape : tuple of int, optional
        Shape of one sample, (C, H, W); by default that of the network's config.
    unlabeled : bool
        Whether the last row of the table of classes stands for "no label", as in models that were
        trained for classifier-free guidance. If not, every row is a class, and a label is required.
    device : str or torch.device

    Returns
    -------
    ScoreSDE
        In eval mode, with the process `DDPM`; `save`, `load` and `fit` work as for others.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        For a folder without these files, another kind of network, chain or prediction.
    ImportError
        Without diffusers: `pip install scoresde[diffusers]`.

    References
    ----------
    von Platen et al., Diffusers: state-of-the-art diffusion models, 2022,
    github.com/huggingface/diffusers.

    Examples
    --------
    >>> import diffusers
    >>> blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    >>> net = diffusers.UNet2DModel(8, block_out_channels=[32], layers_per_block=1, **blocks)
    >>> sde = from_diffusers((net, diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")))
    >>> sde.process, sde.predict
    (DDPM('squaredcos_cap_v2', beta_start=0.0001, beta_end=0.02, steps=1000), 'eps')
    >>> scoresde.sample(sde, 2, solver="ddim", steps=10, spacing="ddpm").shape
    torch.Size([2, 3, 8, 8])
    """
    true_or_false("unlabeled", unlabeled)
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "from_diffusers needs diffusers: pip install scoresde[diffusers]"
        ) from error
    if isinstance(source, str | os.PathLike):
        folder = as_path(source, "source")
        net = _network_of(folder, diffusers)
        chain: Mapping[str, Any] = _chain_file(folder)
    else:
        net, chain = _parts(source)
    if type(net).__name__ != NETWORK:
        raise TypeError(
            f"from_diffusers takes a {NETWORK}, which is called with images and steps alone, got "
            f"{type(net).__name__}"
        )
    process, predict = chain_of(chain)
    mine = _backbone(net, process.steps, shape, unlabeled)
    sde = ScoreSDE(
        process,
        mine,
        shape=mine.shape,
        predict=predict,
        input_convention="raw",
        standardize="none",
    )
    sde.measured.fill_(True)
    if mine.classes:
        sde.learnt = {"conditions": {"y": []}, "unconditional": unlabeled}
    return sde.eval().to(device)


def chain_of(config: Mapping[str, Any]) -> tuple[DDPM, str]:
    """The process and the prediction that a scheduler's config describes; raise for any other."""
    name = config.get("_class_name", "this scheduler")
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(
            f"{name} has no chain of β (no beta_schedule); from_diffusers takes those of DDPM, "
            "DDIM and the solvers of the same chain"
        )
    found = {**_DEFAULTS, **config}
    rule = found["beta_schedule"]
    trained = found["trained_betas"]
    if trained is not None:
        rule = TRAINED
    elif not isinstance(rule, str) or rule not in BETAS:
        raise ValueError(f"unknown beta_schedule {rule!r}. {nearest(str(rule), BETAS)}")
    predicted = found["prediction_type"]
    if not isinstance(predicted, str) or predicted not in PREDICTIONS_OF_DIFFUSERS:
        raise ValueError(
            f"unknown prediction_type {predicted!r}. "
            f"{nearest(str(predicted), PREDICTIONS_OF_DIFFUSERS)}"
        )
    process = DDPM(
        rule,
        found["beta_start"],
        found["beta_end"],
        found["num_train_timesteps"],
        trained,
        found["rescale_betas_zero_snr"],
    )
    return process, PREDICTIONS_OF_DIFFUSERS[predicted]


def _parts(source: Any) -> tuple[Any, Mapping[str, Any]]:
    """The network and the scheduler's config of a pipeline, or of a pair."""
    if isinstance(source, tuple) and len(source) == 2:
        net, scheduler = source
    else:
        net = getattr(source, "unet", None)
        scheduler = getattr(source, "scheduler", None)
    config = getattr(scheduler, "config", scheduler)
    if not isinstance(net, nn.Module) or not isinstance(config, Mapping):
        raise TypeError(
            "from_diffusers takes a folder, a pipeline, or (unet, scheduler), got "
            f"{type(source).__name__}"
        )
    return net, config


def _network_of(folder: Path, diffusers: Any) -> nn.Module:
    """The network of a folder, by diffusers' own reader; never from a pickle."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    place = folder
    if (folder / "unet").is_dir():
        place = folder / "unet"
    about = _json(place / "config.json")
    name = about.get("_class_name")
    if name != NETWORK:
        raise TypeError(f"{place} holds a {name}, and from_diffusers takes a {NETWORK}")
    if not any((place / file).is_file() for file in WEIGHTS):
        pickles = sorted(path.name for path in place.glob("*.bin"))
        found = "nothing of the kind"
        if pickles:
            found = f"{pickles[0]}, a pickle, which can run code and is not read"
        raise FileNotFoundError(
            f"{place} has no {WEIGHTS[0]}, only {found}; save the pipeline again with "
            "save_pretrained(folder, safe_serialization=True)"
        )
    net: nn.Module
    try:
        net, found = getattr(diffusers, NETWORK).from_pretrained(
            str(place),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"diffusers can't read {place}: {one_line(error)}") from error
    for keys, what in (
        ("missing_keys", "lack"),
        ("unexpected_keys", "have, beside the network's,"),
    ):
        names = sorted(found.get(keys) or ())
        if names:  # diffusers would draw them at random, or leave them out
            raise ValueError(
                f"the weights in {place} are not of the network in its config.json: they {what} "
                f"{names[0]}, one of {len(names)}"
            )
    return net


def _chain_file(folder: Path) -> dict[str, Any]:
    """The config of the scheduler in a folder."""
    for place in (folder, folder / "scheduler", folder.parent / "scheduler"):
        if (place / "scheduler_config.json").is_file():
            return _json(place / "scheduler_config.json")
    raise FileNotFoundError(
        f"{folder} has no scheduler_config.json, which says the noise levels; give the folder of "
        "the whole pipeline, or (unet, scheduler)"
    )


def _json(path: Path) -> dict[str, Any]:
    """The JSON of a small file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}")
    try:
        found = parse_json(read_file(path.resolve(), LIMIT) or b"")
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


def _backbone(
    net: nn.Module, levels: int, shape: tuple[int, ...] | None, unlabeled: bool
) -> Diffusers:
    """A network of ours with the weights of one of diffusers."""
    config: Mapping[str, Any] = net.config  # type: ignore[assignment]
    _check_config(config)
    rows = config["num_class_embeds"] or 0
    if unlabeled and rows < 2:
        raise ValueError(
            f"unlabeled= takes the last of a table of classes, 2 or more, and this has {rows}"
        )
    known = inspect.signature(type(net)).parameters
    options = {
        name: json.loads(json.dumps(value))
        for name, value in config.items()
        if name in known and name not in (*SIZES, *UNUSED) and value != known[name].default
    }
    dropout = 0.0 if rows and not unlabeled else 0.1
    size = shape or _shape_of(config)
    if isinstance(size, tuple) and size[:1] != (config["in_channels"],):
        raise ValueError(
            f"the network takes {config['in_channels']} channels, and shape={size} has another "
            "number of them"
        )
    # A table without a row for "no label" gets one of zeros, which is never used.
    mine = BACKBONES.build(
        f"diffusers:{NETWORK}",
        size,
        classes=rows - unlabeled,
        condition_dropout=dropout,
        levels=levels,
        **options,
    )
    assert isinstance(mine, Diffusers)
    weights: dict[str, Tensor] = dict(net.state_dict())
    if rows and not unlabeled:
        table = weights[TABLE]
        weights[TABLE] = torch.cat([table, table.new_zeros(1, table.shape[1])])
    first = next(iter(weights.values()))
    mine.to(first.dtype)
    mine.model.load_state_dict(weights)
    return mine


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a network that a score model can't call."""
    channels = config["in_channels"], config["out_channels"]
    if channels[0] != channels[1]:
        raise ValueError(
            f"the network takes {channels[0]} channels and returns {channels[1]}: one that learns "
            "a variance, or sees a second image, is not read"
        )
    for name, wanted in (("time_embedding_type", "positional"), ("class_embed_type", None)):
        if config[name] != wanted:
            raise ValueError(f"{name}={config[name]!r} is not read, only {wanted!r}")


def _shape_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of a sample by the network's config."""
    size = config["sample_size"]
    if size is None:
        raise ValueError("the network's config names no sample_size: give shape=(C, H, W)")
    space = (size, size) if isinstance(size, int) else tuple(size)
    return (config["in_channels"], *space)
