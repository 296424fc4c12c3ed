"""Blocks of the U-Net: residual blocks, attention and resampling, for signals, images and volumes alike.

With n a group norm, W_i a 3×3 convolution (3 or 3×3×3 in other ranks), e the vector of the noise label and of conditions, and R a
change of size (none, halving or doubling), a residual block is

    h = W_1·R silu(n_1 x)
    h = W_2·drop silu(m(h)),        m(h) = n_2(h + A·e)                      condition="shift"         (Ho et al. 2020)
                                    m(h) = (1 + s)∘n_2(h) + b, (s, b) = A·e  condition="scale_shift"   (Dhariwal & Nichol 2021)
    out = c·(P·R x + h)

with W_2 = 0 at the start, P the identity or a 1×1 convolution, and c = 1 or √½ (Song et al. 2021). Halving is a mean of
neighbors and doubling a repetition, or both are the filter [1, 3, 3, 1]/8 along each axis (Zhang 2019).
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
    """torch's, also where that can't be done: in forward mode with channels last in memory, and in batched backward passes.

    There it is a layer norm of each group, with the same weights, of which torch knows more.

    Examples
    --------
    >>> x = torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last)
    >>> out, pushed = torch.func.jvp(GroupNorm(2, 8), (x,), (x,))
    >>> bool(pushed.abs().max() < 1e-3)  # the scale of x is normalized away
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the norm of x.

        Parameters
        ----------
        x : Tensor, shape (B, C, *space)

        Returns
        -------
        Tensor, shape (B, C, *space)

        Examples
        --------
        See the class.
        """
        if batching():
            grouped = x.reshape(len(x), self.num_groups, -1)
            whole = F.layer_norm(grouped, grouped.shape[2:], eps=self.eps).view(x.shape)
            by_channel = (-1, *[1] * (x.ndim - 2))
            return torch.addcmul(self.bias.view(by_channel), self.weight.view(by_channel), whole)
        if not torch.compiler.is_compiling():
            tangent = unpack_dual(x).tangent  # type: ignore[no-untyped-call]
            x = x if tangent is None else x.contiguous()
        return super().forward(x)


def norm(channels: int, groups: int = 32) -> GroupNorm:
    """Return a group norm with as many groups as divide the channels, at most `groups`, of at least 4 channels.

    Parameters
    ----------
    channels, groups : int

    Returns
    -------
    GroupNorm

    Examples
    --------
    >>> norm(256), norm(50), norm(3)
    (GroupNorm(32, 256, ...), GroupNorm(10, 50, ...), GroupNorm(1, 3, ...))
    """
    most = max(1, min(groups, channels // 4))
    return GroupNorm(max(g for g in divisors(channels) if g <= most), channels)


class Pointwise(nn.Linear):
    """A 1×1 convolution, as the matrix product it is: with channels last in memory nothing is copied, and it starts likewise.

    Parameters
    ----------
    into, out : int

    Examples
    --------
    >>> x, layer = torch.randn(2, 3, 4, 4), Pointwise(3, 5)
    >>> torch.allclose(layer(x), F.conv2d(x, layer.weight[:, :, None, None]), atol=1e-5)
    True
    """

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out)
        started(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same map of every place's channels.

        Parameters
        ----------
        x : Tensor, shape (B, into, *space)

        Returns
        -------
        Tensor, shape (B, out, *space)

        Examples
        --------
        See the class.
        """
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Attention(nn.Module):
    """Self-attention between all places, added to its input.

    Parameters
    ----------
    channels, heads : int
    groups : int
        Of the norm.
    scale : float
        c, of the sum.

    References
    ----------
    Ho et al., Denoising diffusion probabilistic models, NeurIPS 2020, appendix B.

    Examples
    --------
    >>> x = torch.randn(2, 8, 4, 4)
    >>> torch.equal(Attention(8, heads=2)(x), x)
    True
    """

    def __init__(self, channels: int, heads: int, groups: int = 32, scale: float = 1.0) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.norm = norm(channels, groups)
        self.qkv = started(nn.Linear(channels, 3 * channels))
        self.out = started(nn.Linear(channels, channels), zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return c·(x + attention).

        Parameters
        ----------
        x : Tensor, shape (B, C, *space)

        Returns
        -------
        Tensor, shape (B, C, *space)

        Examples
        --------
        See the class.
        """
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # a view, if channels come last in memory
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h: Tensor = self.out(seen).transpose(1, 2).unflatten(2, x.shape[2:])
        out = x + h
        return out if self.scale == 1 else out * self.scale


class Block(nn.Module):
    """A residual block, with a change of size and with attention if asked for.

    Parameters
    ----------
    rank, into, out, width : int
        Number of axes, channels, and length of the vector.
    change : str
        "", "down" or "up".
    filter : str
        Of `FILTERS`.
    project : bool
        Whether what skips a change of size goes through a 1×1 convolution; it does where channels change.
    condition : str
        "shift" or "scale_shift".
    heads : int
        Of attention; 0 for none.
    dropout, scale : float
        Probability, and c.
    groups : int
        Of the norms.

    References
    ----------
    Ho et al. 2020, appendix B; Song et al. 2021, appendix H; Dhariwal & Nichol, NeurIPS 2021, section 3.

    Examples
    --------
    >>> x = torch.randn(2, 8, 4, 4)
    >>> torch.equal(Block(2, 8, 8, width=5)(x, torch.randn(2, 5)), x)
    True
    """

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
        self.change, self.scale_shift, self.dropout, self.scale = change, condition == "scale_shift", dropout, scale
        self.register_buffer("taps", kernel(filter, rank) if change and filter == "fir" else None)
        self.norm1 = norm(into, groups)
        self.conv1 = convolution(rank, into, out)
        self.affine = started(nn.Linear(width, (1 + self.scale_shift) * out))
        self.norm2 = norm(out, groups)
        self.conv2 = convolution(rank, out, out, zero=True)
        self.skip = Pointwise(into, out) if into != out or (change and project) else nn.Identity()
        self.attention = Attention(out, heads, groups, scale) if heads else None

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Return c·(P·R x + h), with attention.

        Parameters
        ----------
        x : Tensor, shape (B, into, *space)
        vector : Tensor, shape (B, width)

        Returns
        -------
        Tensor, shape (B, out, *space), half or twice that size after a change

        Examples
        --------
        See the class.
        """
        h = F.silu(self.norm1(x))
        if self.change == "up" and self.taps is None:
            h, x = doubled_convolution(h, *self.conv1.parameters()), doubled(self.skip(x))
        else:
            if self.change:
                change = halved if self.change == "down" else doubled
                h, x = change(h, self.taps), change(x, self.taps)
            h, x = self.conv1(h), self.skip(x)
        told = self.affine(vector).unflatten(1, (-1, *[1] * (x.ndim - 2)))
        if self.scale_shift:
            s, b = told.chunk(2, 1)
            h = torch.addcmul(b, self.norm2(h), 1 + s)
        else:
            h = self.norm2(h + told)
        h = F.dropout(F.silu(h), self.dropout, self.training)
        out: Tensor = self.conv2(h) + x
        if self.scale != 1:
            out = out * self.scale
        return out if self.attention is None else cast(Tensor, self.attention(out))
