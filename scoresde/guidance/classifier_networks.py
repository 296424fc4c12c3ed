"""The usual networks f(z, u) of a classifier of noised states; they start at 0."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 5


class Dense(nn.Module):
    """An MLP on flattened states and features of the noise level."""

    WIDTH = 128
    DEPTH = 3

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        sizes = [dim, *[self.WIDTH] * self.DEPTH]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.noise = nn.ModuleList(nn.Linear(FEATURES, b) for b in sizes[1:])
        self.last = nn.Linear(self.WIDTH, classes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        h = z.flatten(1)
        level = _features(u)
        for layer, noise in zip(self.layers, self.noise, strict=True):
            h = functional.silu(layer(h) + noise(level))
        out: Tensor = self.last(h)
        return out


class Convolutional(nn.Module):
    """Three stages of convolutions, each at half the resolution, and a mean over positions."""

    WIDTHS = (32, 64, 128)

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        sizes = (channels, *self.WIDTHS)
        self.first = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=1 + (a != channels), padding=1)
            for a, b in itertools.pairwise(sizes)
        )
        self.noise = nn.ModuleList(nn.Linear(FEATURES, 2 * b) for b in self.WIDTHS)
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in self.WIDTHS)
        self.second = nn.ModuleList(nn.Conv2d(b, b, 3, padding=1) for b in self.WIDTHS)
        self.last = nn.Linear(self.WIDTHS[-1], classes)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        level = _features(u)
        h = z
        for first, noise, norm, second in zip(
            self.first, self.noise, self.norms, self.second, strict=True
        ):
            h = first(h)
            gain, shift = noise(level)[:, :, None, None].chunk(2, 1)
            h = h + second(functional.silu(norm(h) * (1 + gain) + shift))
            h = functional.silu(h)
        out: Tensor = self.last(h.mean((2, 3)))
        return out


def _features(u: Tensor) -> Tensor:
    """Numbers (B, 5) of noise labels u ≈ log tan φ: cos φ, sin φ and smooth functions of u."""
    phi = torch.atan(u.exp())
    return torch.stack([phi.cos(), phi.sin(), u / 4, (u / 2).sin(), (u / 2).cos()], 1)


def usual_net(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network for samples of a shape."""
    if len(shape) == 3:
        return Convolutional(shape[0], classes)
    return Dense(math.prod(shape), classes)
