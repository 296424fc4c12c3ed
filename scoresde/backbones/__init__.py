"""Backbones: the networks. `BACKBONES` holds them all by name."""

from .base import BACKBONES
from .codebook import VQ
from .dit import DiT
from .embedded import Embedded
from .encoded import EncodedResMLP
from .external import Diffusers
from .learnedvariance import LearnedVariance
from .masked import Masked
from .mlp import MLP
from .presets import PRESETS, Preset
from .resmlp import ResMLP
from .stages import FIRST_STAGES, StageNet
from .twodrifts import TwoDrifts
from .twotimes import TwoTimes
from .unet import UNet
from .uvit import UViT
from .variational import VAE

__all__ = [
    "BACKBONES",
    "FIRST_STAGES",
    "MLP",
    "PRESETS",
    "VAE",
    "VQ",
    "DiT",
    "Diffusers",
    "Embedded",
    "EncodedResMLP",
    "LearnedVariance",
    "Masked",
    "Preset",
    "ResMLP",
    "StageNet",
    "TwoDrifts",
    "TwoTimes",
    "UNet",
    "UViT",
]
