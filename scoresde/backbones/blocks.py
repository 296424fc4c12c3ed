"""Blocks of the U-Net: residual blocks and attention, for signals, images and volumes alike.

With n a group norm, W_i a 3×3 convolution (3 or 3×3×3 in other ranks), e the embedding of the noise
label and of conditions, and R a change of size (none, halving or doubling), a residual block is

    h ← W_1·R silu(n_1 x)
    h ← W_2·drop silu(m(h))
    out = c·(P·R x + h)

    m(h) = n_2(h + A·e)                        condition="shift" (Ho et al. 2020)
    m(h) = (1 + s)∘n_2(h) + b, (s, b) = A·e    condition="scale_shift" (Dhariwal & Nichol 2021)

with W_2 = 0 at the start, P the identity or a 1×1 convolution, and c = 1 or √½ (Song et al. 2021).
Halving is a mean of neighbors and doubling a repetition, or both are the filter [1, 3, 3, 1]/8
along each axis (Zhang 2019).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F

from .base import batching
from .resampling import convolution, doubled, doubled_convolution, halved, kernel, started
from .tokens import divisors


class GroupNorm(nn.GroupNorm):
    """torch's group norm, also in batched backward passes and in forward mode on any layout."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x."""
        if batching():
            grouped = x.reshape(x.shape[0], self.num_groups, -1)
            whole = F.layer_norm(grouped, grouped.shape[2:], eps=self.eps).view(x.shape)
            by_channel = (-1, *[1] * (x.ndim - 2))
            return torch.addcmul(self.bias.view(by_channel), self.weight.view(by_channel), whole)
        if not torch.compiler.is_compiling():
            tangent = unpack_dual(x).tangent  # type: ignore[no-untyped-call]
            x = x if tangent is None else x.contiguous()
        return super().forward(x)


def norm(channels: int, groups: int = 32) -> GroupNorm:
    """Return a group norm of at most `groups` groups, with at least 4 channels each."""
    most = max(1, min(groups, channels // 4))
    return GroupNorm(max(g for g in divisors(channels) if g <= most), channels)


class Pointwise(nn.Linear):
    """A 1×1 convolution as a matrix product, which copies nothing if channels are last."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out)
        started(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return a linear map of the channels of every place."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Attention(nn.Module):
    """Self-attention between all places, added to its input."""

    def __init__(self, channels: int, heads: int, groups: int = 32, scale: float = 1.0) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.norm = norm(channels, groups)
        self.qkv = started(nn.Linear(channels, 3 * channels))
        self.out = started(nn.Linear(channels, channels), zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return c·(x + attention)."""
        # a view, if channels come last in memory
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h: Tensor = self.out(attended).transpose(1, 2).unflatten(2, x.shape[2:])
        out = x + h
        return out if self.scale == 1 else out * self.scale


class Block(nn.Module):
    """A residual block, optionally with a change of size and with attention."""

    taps: Tensor | None

    def __init__(
        self,
        rank: int,
        into: int,
        out: int,
        width: int,
        change: str = "",
        filter: str = "box",
        project: bool = False,
        condition: str = "shift",
        heads: int = 0,
        dropout: float = 0.0,
        scale: float = 1.0,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.change = change
        self.scale_shift = condition == "scale_shift"
        self.dropout = dropout
        self.scale = scale
        taps = kernel(filter, rank) if change and filter == "fir" else None
        self.register_buffer("taps", taps)
        self.norm1 = norm(into, groups)
        self.conv1 = convolution(rank, into, out)
        self.affine = started(nn.Linear(width, (1 + self.scale_shift) * out))
        self.norm2 = norm(out, groups)
        self.conv2 = convolution(rank, out, out, zero=True)
        self.skip = Pointwise(into, out) if into != out or (change and project) else nn.Identity()
        self.attention = Attention(out, heads, groups, scale) if heads else None

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Return c·(P·R x + h), with attention."""
        h = F.silu(self.norm1(x))
        if self.change == "up" and self.taps is None:
            h = doubled_convolution(h, *self.conv1.parameters())
            x = doubled(self.skip(x))
        else:
            if self.change:
                change = halved if self.change == "down" else doubled
                h = change(h, self.taps)
                x = change(x, self.taps)
            h = self.conv1(h)
            x = self.skip(x)
        condition = self.affine(vector).unflatten(1, (-1, *[1] * (x.ndim - 2)))
        if self.scale_shift:
            s, b = condition.chunk(2, 1)
            h = torch.addcmul(b, self.norm2(h), 1 + s)
        else:
            h = self.norm2(h + condition)
        h = F.dropout(F.silu(h), self.dropout, self.training)
        out: Tensor = self.conv2(h) + x
        if self.scale != 1:
            out = out * self.scale
        return out if self.attention is None else cast(Tensor, self.attention(out))
