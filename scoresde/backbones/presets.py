"""Networks of papers, as names for a backbone with options.

`scoresde.build("vp", "ddpmpp-cifar", shape=(3, 32, 32))` builds one. Any option can be given
another value, as samples of another size may need: attention=(14,) for images of 28×28, which have
no level of 16. A saved model holds the backbone's name and all its options, so that it does not
depend on this table.

These networks differ from the papers' in details: the noise label enters as sines and cosines of
log σ/α, there is one more label, "no label", outputs are the prediction alone, without a variance,
and group norms add 1e-5 to a variance, where the codes of DDPM, DDPM++ and NCSN++ add 1e-6.
Published weights can't be loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import dit, unet, uvit  # noqa: F401  (registers them)
from .base import BACKBONES


@dataclass(frozen=True)
class Preset:
    """A backbone with options, and what was published of it.

    Parameters
    ----------
    net : str
        A name of `scoresde.BACKBONES`.
    options : dict
        The options that it is built with.
    shape : tuple of int
        Shape of a sample in the paper.
    parameters : int
        Number of parameters, as published, mostly rounded.
    reference : str
        The paper.

    Examples
    --------
    >>> from scoresde.backbones.presets import PRESETS
    >>> PRESETS["dit-s/2"].options["width"], PRESETS["dit-s/2"].parameters
    (384, 33000000)
    """

    net: str
    options: dict[str, Any] = field(hash=False)
    shape: tuple[int, ...]
    parameters: int
    reference: str


_DDPM = {
    "channels": 128,
    "multipliers": (1, 2, 2, 2),
    "blocks": 2,
    "attention": (16,),
    "heads": 1,
    "dropout": 0.1,
}
_SONG = {
    "channels": 128,
    "multipliers": (2, 2, 2),
    "blocks": 4,
    "attention": (16,),
    "heads": 1,
    "dropout": 0.13,
}
_SONG |= {"attention_up": "last", "condition": "shift", "project": True, "skip_scale": True}
_ADM = {
    "channels": 192,
    "multipliers": (1, 2, 3, 4),
    "blocks": 3,
    "attention": (32, 16, 8),
    "head_channels": 64,
    "dropout": 0.1,
}
_DIT = "Peebles & Xie, Scalable diffusion models with transformers, ICCV 2023, tables 1 and 4"
_EDM = (
    "Song et al., Score-based generative modeling through SDEs, ICLR 2021; sizes of Karras et al., "
    "NeurIPS 2022, tables 7 and 8"
)


def _dit(width: int, depth: int, heads: int, parameters: int) -> Preset:
    """A DiT of a size, with patches of 2, for latents of ImageNet."""
    options = {"patch": 2, "width": width, "depth": depth, "heads": heads, "classes": 1000}
    return Preset("dit", options, (4, 32, 32), parameters, _DIT)


PRESETS: dict[str, Preset] = {
    "ddpm-cifar": Preset(
        "unet",
        {**_DDPM, "condition": "shift", "resample": "conv"},
        (3, 32, 32),
        35_700_000,
        "Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020, appendix B",
    ),
    "ddpmpp-cifar": Preset("unet", {**_SONG, "resample": "pool"}, (3, 32, 32), 55_700_000, _EDM),
    "ncsnpp-cifar": Preset(
        "unet",
        {**_SONG, "resample": "fir", "residual_input": True, "waves": "fourier", "features": 256},
        (3, 32, 32),
        56_400_000,  # of EDM's code, without augmentation labels
        _EDM,
    ),
    "adm-64": Preset(
        "unet",
        {**_ADM, "condition": "scale_shift", "resample": "pool", "classes": 1000},
        (3, 64, 64),
        295_900_000,
        "Dhariwal & Nichol, Diffusion models beat GANs, 2021; Karras et al. 2022, tables 7 and 8",
    ),
    "dit-s/2": _dit(384, 12, 6, 33_000_000),
    "dit-b/2": _dit(768, 12, 12, 130_000_000),
    "dit-l/2": _dit(1024, 24, 16, 458_000_000),
    "dit-xl/2": _dit(1152, 28, 16, 675_000_000),
    "uvit-s/2": Preset(
        "uvit",
        {"patch": 2, "width": 512, "depth": 13, "heads": 8},
        (3, 32, 32),
        44_000_000,
        "Bao et al., All are worth words: a ViT backbone for diffusion models, CVPR 2023",
    ),
}
"""All presets by name."""

for _name, _preset in PRESETS.items():
    BACKBONES.alias(_name, _preset.net, **_preset.options)
