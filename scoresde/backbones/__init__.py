"""Backbones: the networks. `BACKBONES` holds them all by name."""

from .base import BACKBONES
from .mlp import MLP
from .twodrifts import TwoDrifts
from .twotimes import TwoTimes

__all__ = ["BACKBONES", "MLP", "TwoDrifts", "TwoTimes"]
