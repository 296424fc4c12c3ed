"""Backbones: the networks. `BACKBONES` holds them all by name."""

from .base import BACKBONES
from .mlp import MLP

__all__ = ["BACKBONES", "MLP"]
