"""The options of a U-Net, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..common.checks import real_number, true_or_false, whole_number
from ..common.names import nearest
from .options import whole_numbers

CHOICES = {
    "condition": ("shift", "scale_shift"),
    "resample": ("pool", "fir", "conv"),
    "attention_up": ("all", "last"),
}
MOST_LEVELS = 24


@dataclass(frozen=True)
class UNetOptions:
    """What `UNet` is built with, beside the shape of a sample; see there."""

    channels: int = 64
    multipliers: Sequence[int] = (1, 2, 2)
    blocks: int = 2
    attention: Sequence[int] = ()
    attention_up: str = "all"
    heads: int = 0
    head_channels: int = 64
    dropout: float = 0.0
    condition: str = "scale_shift"
    resample: str = "pool"
    project: bool = False
    skip_scale: bool = False
    residual_input: bool = False
    patch: int = 1
    groups: int = 32
    octaves: int = 0
    features: int = 0
    waves: str = "sinusoidal"
    classes: int | Sequence[int] = 0
    vector: int = 0
    image: int = 0
    condition_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("channels", "blocks", "patch", "groups"):
            whole_number(name, getattr(self, name))
        for name in ("heads", "features"):
            whole_number(name, getattr(self, name), 0)
        whole_number("head_channels", self.head_channels)
        real_number("dropout", self.dropout, 0, 1, closed=True, hint="try 0.1")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"unknown {name}={value!r}. {nearest(value, choices)}")
        for name in ("project", "skip_scale", "residual_input"):
            true_or_false(name, getattr(self, name))
        multipliers = whole_numbers("multipliers", self.multipliers, "(1, 2, 2)")
        attention = whole_numbers("attention", self.attention, "(16, 8)")
        if len(multipliers) > MOST_LEVELS:
            raise ValueError(
                f"multipliers has {len(multipliers)} entries, one a level, and {MOST_LEVELS} halve "
                f"{2**MOST_LEVELS} to 1"
            )
        if not multipliers:
            raise ValueError("multipliers is empty; give one number a level, such as (1, 2, 2)")
        object.__setattr__(self, "multipliers", multipliers)
        object.__setattr__(self, "attention", attention)

    @property
    def scale(self) -> float:
        """What sums are multiplied by."""
        return math.sqrt(0.5) if self.skip_scale else 1.0

    @property
    def filter(self) -> str:
        """The filter of changes of size, a name of `scoresde.backbones.resampling.FILTERS`."""
        return "fir" if self.resample == "fir" else "box"
