"""Options of the registered networks, so that editors complete them; each takes its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

Name = Literal[
    "mlp",
    "resmlp",
    "unet",
    "dit",
    "uvit",
    "encoded_resmlp",
    "two_times",
    "learned_variance",
    "masked",
    "two_drifts",
]
"""The names of `scoresde.BACKBONES` in the library."""


class NetworkOptions(TypedDict, total=False):
    """Options of `scoresde.BACKBONES`."""

    width: int
    depth: int
    channels: int
    multipliers: Sequence[int]
    blocks: int
    attention: Sequence[int]
    attention_up: str
    heads: int
    head_channels: int
    groups: int
    patch: int
    ratio: float
    dropout: float
    features: int
    waves: str
    octaves: int
    fourier: int | None
    bandwidth: float
    blur: bool
    axes: int | None
    classes: int | Sequence[int]
    vector: int
    image: int
    condition: str
    condition_dropout: float
    told: int
    units: int
    layers: int
    encoder_dropout: float
    dropout_share: float
    members: int
    resample: str
    project: bool
    skip_scale: bool
    residual_input: bool
    backbone: str
    shown: float


class FlowOptions(TypedDict, total=False):
    """Options of `coupling_flow`."""

    kind: str
    layers: int
    width: int
    depth: int
    classes: int | Sequence[int]
    vector: int
    condition_dropout: float
    standardize: str


class StageOptions(TypedDict, total=False):
    """Options of `scoresde.FIRST_STAGES`."""

    latent: tuple[int, ...]
    channels: int
    blocks: int
    width: int
    depth: int
    noise: float | None
    codes: int
    decay: float
    commitment: float
    revive: float
    levels: int
    components: int
    patch: int
