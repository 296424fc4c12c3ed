"""Samples as rows of tokens, and what transformers do with them: patches, positions, attention, perceptron.

A sample (C, n_1, …, n_d) is cut into patches of p elements along each axis of space. Patch i is one token of C·p^d numbers,

    token_i = (x[c, p·i_1 + j_1, …, p·i_d + j_d]  for c, j_1, …, j_d),

and the tokens of a sample run through i in row-major order. A permutation of elements is all it is. A transformer does not see
the order of its tokens; each is told its place by adding a vector to it: here, for each axis, sines and cosines of the index,

    sin(i_a·ω_k), cos(i_a·ω_k),      ω_k = 10000^(−k/K),   k = 0 … K − 1,   K = ⌊width/2d⌋                (Vaswani et al. 2017)

Attention of h heads, on tokens X (N, width), is softmax(Q·Kᵀ/√(width/h))·V a head, with (Q, K, V) = X·W + b, and one linear
map of the heads, joined (Vaswani et al. 2017, eq. 1). Tokens of different samples never meet.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checks import number, whole


def check_transformer(width: int, depth: int, heads: int, ratio: float, dropout: float) -> None:
    """Raise unless these make a transformer.

    Parameters
    ----------
    width, depth, heads : int
        Numbers a token, blocks, and heads, which divide the width.
    ratio : float
        Hidden units of a block's perceptron, in widths.
    dropout : float
        In [0, 1].

    Raises
    ------
    ValueError, TypeError

    Examples
    --------
    >>> check_transformer(width=64, depth=2, heads=5, ratio=4, dropout=0)
    Traceback (most recent call last):
    ValueError: heads divide the width among them, got heads=5 of width=64; try 4 or 8
    """
    for name, value in (("width", width), ("depth", depth), ("heads", heads)):
        whole(name, value)
    number("ratio", ratio, 0, math.inf, hint="try 4")
    number("dropout", dropout, 0, 1, closed=True, hint="try 0")
    if width % heads:
        fit = [h for h in divisors(width) if h < heads][-1:] + [h for h in divisors(width) if h > heads][:1]
        raise ValueError(
            f"heads divide the width among them, got heads={heads} of width={width}; try {' or '.join(map(str, fit))}"
        )
    if int(ratio * width) < 1:
        raise ValueError(f"ratio={ratio} of width={width} leaves a perceptron without units; try 4")


def grid(shape: tuple[int, ...], patch: int) -> tuple[int, ...]:
    """Return the number of patches along each axis of space.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample, (C, *space), with 1 to 3 axes of space.
    patch : int
        Elements of a patch along each axis.

    Returns
    -------
    tuple of int

    Raises
    ------
    ValueError
        If there are too few or too many axes, or the patches do not fill the sample.

    Examples
    --------
    >>> grid((3, 32, 16), 4)
    (8, 4)
    >>> grid((1, 28, 28), 8)
    Traceback (most recent call last):
    ValueError: patches of 8 do not fill samples of 28×28; patches of 1, 2, 4, 7, 14 or 28 do
    """
    if not 2 <= len(shape) <= 4:
        raise ValueError(
            f"a transformer takes samples of shape (C, *space) with 1 to 3 axes of space, got {tuple(shape)}; try 'resmlp'"
        )
    whole("patch", patch)
    space = shape[1:]
    if any(n % patch for n in space):
        fit = divisors(math.gcd(*space))[:8]
        these = " or ".join([", ".join(map(str, fit[:-1]))] * (len(fit) > 1) + [str(fit[-1])])
        size = "×".join(map(str, space))
        raise ValueError(f"patches of {patch} do not fill samples of {size}; patches of {these} do")
    return tuple(n // patch for n in space)


def divisors(n: int) -> list[int]:
    """Return the divisors of n in order; beyond 10^10 only those that are small, or leave a small quotient.

    Parameters
    ----------
    n : int
        At least 1.

    Returns
    -------
    list of int

    Examples
    --------
    >>> divisors(28)
    [1, 2, 4, 7, 14, 28]
    """
    small = [k for k in range(1, min(math.isqrt(n), 100_000) + 1) if n % k == 0]  # n may come from a file
    return sorted({*small, *(n // k for k in small)})


def check_sample(x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless x is a batch of samples of a shape.

    Parameters
    ----------
    x : Tensor, shape (B, *shape)
    shape : tuple of int

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_sample(torch.zeros(5, 3, 8, 8), (1, 8, 8))
    Traceback (most recent call last):
    ValueError: this network was built for samples of shape (1, 8, 8), x of shape (B, 1, 8, 8), got x of shape (5, 3, 8, 8)
    """
    if tuple(x.shape[1:]) != shape:
        wanted = ", ".join(map(str, ("B", *shape)))
        raise ValueError(
            f"this network was built for samples of shape {shape}, x of shape ({wanted}), got x of shape {tuple(x.shape)}"
        )


def patchify(x: Tensor, patch: int) -> Tensor:
    """Return the patches of samples, one row each.

    Parameters
    ----------
    x : Tensor, shape (B, C, *space)
    patch : int

    Returns
    -------
    Tensor, shape (B, N, C·patch^d)

    Examples
    --------
    >>> patchify(torch.arange(8.0).reshape(1, 1, 2, 4), 2)
    tensor([[[0., 1., 4., 5.],
             [2., 3., 6., 7.]]])
    """
    b, c, *space = x.shape
    d = len(space)
    split = [size for n in space for size in (n // patch, patch)]
    order = [0, *range(2, 2 + 2 * d, 2), 1, *range(3, 3 + 2 * d, 2)]
    return x.reshape(b, c, *split).permute(order).reshape(b, math.prod(split[::2]), c * patch**d)


def unpatchify(tokens: Tensor, shape: tuple[int, ...], patch: int) -> Tensor:
    """Return the samples that patches were cut from.

    Parameters
    ----------
    tokens : Tensor, shape (B, N, C·patch^d)
    shape : tuple of int
        (C, *space).
    patch : int

    Returns
    -------
    Tensor, shape (B, C, *space)

    Examples
    --------
    >>> x = torch.randn(2, 3, 4, 6)
    >>> torch.equal(unpatchify(patchify(x, 2), (3, 4, 6), 2), x)
    True
    """
    c, *space = shape
    d = len(space)
    order = [0, 1 + d, *(axis for i in range(d) for axis in (1 + i, 2 + d + i))]
    parts = tokens.reshape(len(tokens), *(n // patch for n in space), c, *[patch] * d)
    return parts.permute(order).reshape(len(tokens), *shape)


def positions(places: tuple[int, ...], width: int) -> Tensor:
    """Return what each token is told of its place: sines and cosines of the index along each axis.

    Parameters
    ----------
    places : tuple of int
        Tokens along each axis.
    width : int
        Numbers a token; what 2d does not divide stays zero.

    Returns
    -------
    Tensor, shape (N, width)

    References
    ----------
    Vaswani et al., Attention is all you need, NeurIPS 2017, section 3.5.

    Examples
    --------
    >>> positions((3,), 2)
    tensor([[ 0.0000,  1.0000],
            [ 0.8415,  0.5403],
            [ 0.9093, -0.4161]])
    """
    count = width // (2 * len(places))
    rates = torch.exp(torch.arange(count, dtype=torch.float64) * (-math.log(10_000) / max(count, 1)))
    indices = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in places), indexing="ij")
    turns = [torch.outer(i.flatten(), rates) for i in indices]
    told = torch.cat([wave for turn in turns for wave in (turn.sin(), turn.cos())], 1)
    return functional.pad(told, (0, width - told.shape[1])).float()


class Attention(nn.Module):
    """Attention of the tokens of a sample to each other, by torch's scaled_dot_product_attention.

    Parameters
    ----------
    width, heads : int
        Numbers a token, and heads, which divide it.
    bias : bool
        Whether queries, keys and values have one.

    References
    ----------
    Vaswani et al., Attention is all you need, NeurIPS 2017, eq. 1.

    Examples
    --------
    >>> Attention(8, 2)(torch.zeros(5, 3, 8)).shape
    torch.Size([5, 3, 8])
    """

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.join = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token hears.

        Parameters
        ----------
        x : Tensor, shape (B, N, width)

        Returns
        -------
        Tensor, shape (B, N, width)

        Examples
        --------
        See `Attention`.
        """
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        heard: Tensor = self.join(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width))
        return heard


class Perceptron(nn.Module):
    """Two linear maps with a GELU between them, on each token alone.

    Parameters
    ----------
    width, hidden : int
        Numbers a token, and units between.
    approximate : str
        "tanh" for GELU's approximation by tanh, "none" for GELU itself.

    Examples
    --------
    >>> Perceptron(8, 32)(torch.zeros(5, 3, 8)).shape
    torch.Size([5, 3, 8])
    """

    def __init__(self, width: int, hidden: int, approximate: str = "none") -> None:
        super().__init__()
        self.up, self.down, self.approximate = nn.Linear(width, hidden), nn.Linear(hidden, width), approximate

    def forward(self, x: Tensor) -> Tensor:
        """Return the second map's output.

        Parameters
        ----------
        x : Tensor, shape (B, N, width)

        Returns
        -------
        Tensor, shape (B, N, width)

        Examples
        --------
        See `Perceptron`.
        """
        y: Tensor = self.down(functional.gelu(self.up(x), approximate=self.approximate))
        return y
