"""Convolutions for signals, images and volumes, and changes of size by two: means and repetition, or a filter.

Two identities make them cheaper, by as much as they save multiplications. A 1×1 convolution commutes with repetition. And
repetition followed by W is one transposed convolution of stride 2: along an axis, with y_n = Σ_k w_k·x_⌊(n+k−1)/2⌋,

    y_2i = w_0·x_{i−1} + (w_1 + w_2)·x_i,      y_{2i+1} = (w_0 + w_1)·x_i + w_2·x_{i+1},

2 products each in place of 3: 4 in place of 9 for images, 8 in place of 27 for volumes. The edges agree, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
APPLY = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
FILTERS = {"box": (1.0, 1.0), "fir": (1.0, 3.0, 3.0, 1.0)}


def convolution(rank: int, into: int, out: int, zero: bool = False, **options: Any) -> nn.Module:
    """Return a convolution of length 3 that keeps the size, with the uniform weights of Glorot & Bengio (2010), or zeros.

    Parameters
    ----------
    rank : int
        Number of axes, 1 to 3.
    into, out : int
        Channels.
    zero : bool
        Whether weights start at zero; biases always do.
    **options
        Of torch's layer, such as stride.

    Returns
    -------
    nn.Module

    Examples
    --------
    >>> convolution(3, 4, 8)(torch.ones(1, 4, 2, 2, 2)).shape
    torch.Size([1, 8, 2, 2, 2])
    """
    layer: nn.Module = CONVOLUTIONS[rank](into, out, 3, **{"padding": 1, **options})
    return started(layer, zero)


def started(layer: nn.Module, zero: bool = False) -> nn.Module:
    """Return the layer, with the uniform weights of Glorot & Bengio (2010) or zeros, and no bias.

    Parameters
    ----------
    layer : nn.Module
    zero : bool

    Returns
    -------
    nn.Module

    Examples
    --------
    >>> started(nn.Linear(2, 3), zero=True).weight.any()
    tensor(False)
    """
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    nn.init.zeros_(weight) if zero else nn.init.xavier_uniform_(weight)
    nn.init.zeros_(bias)
    return layer


def kernel(name: str, rank: int) -> Tensor:
    """Return a filter of `FILTERS` along each axis, of sum 1 and shape (1, 1, L, …).

    Parameters
    ----------
    name : str
    rank : int

    Returns
    -------
    Tensor

    Examples
    --------
    >>> 64 * kernel("fir", 2)[0, 0, 1]
    tensor([3., 9., 9., 3.])
    """
    taps = torch.tensor(FILTERS[name])
    out = torch.ones(())
    for _ in range(rank):
        out = out.unsqueeze(-1) * (taps / taps.sum())
    return out[None, None]


def filtered(x: Tensor, taps: Tensor, stride: int, padding: int) -> Tensor:
    """Return every channel of x, convolved with the same filter.

    Parameters
    ----------
    x : Tensor, shape (B, C, *space)
    taps : Tensor, shape (1, 1, L, …)
    stride, padding : int

    Returns
    -------
    Tensor

    Examples
    --------
    >>> filtered(torch.tensor([[[1.0, 3.0, 5.0, 5.0]]]), kernel("box", 1), stride=2, padding=0)
    tensor([[[2., 5.]]])
    """
    channels = x.shape[1]
    weight = taps.to(x.dtype).expand(channels, *taps.shape[1:])
    return APPLY[x.ndim - 2](x, weight, stride=stride, padding=padding, groups=channels)


def halved(x: Tensor, taps: Tensor | None = None) -> Tensor:
    """Return x at half its size: means of neighbors, or of what a filter of length 4 sees.

    Parameters
    ----------
    x : Tensor, shape (B, C, *space)
    taps : Tensor, shape (1, 1, 4, …), optional

    Returns
    -------
    Tensor, shape (B, C, *space/2)

    Examples
    --------
    >>> halved(torch.tensor([[[1.0, 3.0, 5.0, 5.0]]]))
    tensor([[[2., 5.]]])
    """
    return POOLS[x.ndim - 2](x, 2) if taps is None else filtered(x, taps, stride=2, padding=1)


def doubled(x: Tensor, taps: Tensor | None = None) -> Tensor:
    """Return x at twice its size: each number repeated, or the transpose of `halved` with a filter, times 2 for each axis.

    Parameters
    ----------
    x : Tensor, shape (B, C, *space)
    taps : Tensor, shape (1, 1, 4, …), optional

    Returns
    -------
    Tensor, shape (B, C, *2·space)

    Examples
    --------
    >>> doubled(torch.tensor([[[4.0, 8.0]]]), kernel("fir", 1))
    tensor([[[3., 5., 7., 6.]]])
    """
    if taps is None:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    rank, channels = x.ndim - 2, x.shape[1]
    weight = (2**rank * taps).to(x.dtype).expand(channels, *taps.shape[1:])
    return TRANSPOSED[rank](x, weight, stride=2, padding=1, groups=channels)


def doubled_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the convolution of `doubled(x)` with weights of length 3, as one transposed convolution of x.

    Parameters
    ----------
    x : Tensor, shape (B, C, *space)
    weight : Tensor, shape (out, C, 3, …)
    bias : Tensor, shape (out,)

    Returns
    -------
    Tensor, shape (B, out, *2·space)

    Examples
    --------
    >>> x, layer = torch.randn(1, 2, 4), torch.nn.Conv1d(2, 5, 3, padding=1)
    >>> torch.allclose(doubled_convolution(x, layer.weight, layer.bias), layer(doubled(x)), atol=1e-5)
    True
    """
    axes = range(2, weight.ndim)
    for axis in axes:  # (w_0, w_1, w_2) becomes (w_2, w_1 + w_2, w_0 + w_1, w_0): a transposed convolution flips
        w0, w1, w2 = weight.unbind(axis)
        weight = torch.stack([w2, w1 + w2, w0 + w1, w0], axis)
    return TRANSPOSED[x.ndim - 2](x, weight.transpose(0, 1), bias, stride=2, padding=1)


class Resample(nn.Module):
    """DDPM's change of size: a strided convolution down; repetition and a convolution up.

    Parameters
    ----------
    rank, channels : int
    up : bool

    References
    ----------
    Ho et al. 2020, appendix B; with padding on both sides, as in later codes.

    Examples
    --------
    >>> Resample(2, 4, up=True)(torch.zeros(1, 4, 3, 3), None).shape
    torch.Size([1, 4, 6, 6])
    """

    def __init__(self, rank: int, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = convolution(rank, channels, channels, stride=1 if up else 2)

    def forward(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        """Return x at half or twice its size; the vector is not looked at.

        Parameters
        ----------
        x : Tensor, shape (B, C, *space)
        vector : Tensor, optional

        Returns
        -------
        Tensor

        Examples
        --------
        See the class.
        """
        out: Tensor = doubled_convolution(x, *self.conv.parameters()) if self.up else self.conv(x)
        return out


class Pyramid(nn.Module):
    """NCSN++'s way of the input to a lower level: a 3×3 convolution, then a filter, at half the size.

    Both being linear, the filter goes first, and the convolution has stride 2: a quarter of the multiplications.

    Parameters
    ----------
    rank, into, out : int
    filter : str
        Of `FILTERS`.

    References
    ----------
    Song et al., Score-based generative modeling through SDEs, ICLR 2021, appendix H.2, "residual" input.

    Examples
    --------
    >>> Pyramid(2, 3, 8, "fir")(torch.zeros(1, 3, 4, 4)).shape
    torch.Size([1, 8, 2, 2])
    """

    taps: Tensor

    def __init__(self, rank: int, into: int, out: int, filter: str) -> None:
        super().__init__()
        self.register_buffer("taps", kernel(filter, rank))
        self.conv = convolution(rank, into, out, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the lower level gets.

        Parameters
        ----------
        x : Tensor, shape (B, into, *space)

        Returns
        -------
        Tensor, shape (B, out, *space/2)

        Examples
        --------
        See the class.
        """
        out: Tensor = self.conv(filtered(x, self.taps, stride=1, padding=self.taps.shape[-1] // 2))
        return out
