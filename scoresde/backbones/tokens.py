"""Parts of transformers on samples: patches as tokens, positions, attention, perceptron.

A sample (C, n_1, …, n_d) is cut into patches of p elements along each axis of space. Patch i is
one token of C·p^d numbers,

    token_i = (x[c, p·i_1 + j_1, …, p·i_d + j_d]  for c, j_1, …, j_d),

and the tokens of a sample run through i in row-major order: a permutation of its elements. A
transformer does not see the order of its tokens; their places are added as vectors: here, for each
axis, sines and cosines of the index (Vaswani et al. 2017),

    sin(i_a·ω_k), cos(i_a·ω_k),      ω_k = 10000^(−k/K),   k = 0 … K − 1,   K = ⌊width/2d⌋.

Attention of h heads, on tokens X (N, width), is softmax(Q·Kᵀ/√(width/h))·V for each head, with (Q,
K, V) = X·W + b, and one linear map of the joined heads (Vaswani et al. 2017, eq. 1). Tokens of
different samples do not mix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..common.checks import real_number, whole_number


def check_transformer(width: int, depth: int, heads: int, ratio: float, dropout: float) -> None:
    """Raise unless these are the sizes of a transformer."""
    for name, value in (("width", width), ("depth", depth), ("heads", heads)):
        whole_number(name, value)
    real_number("ratio", ratio, 0, math.inf, hint="try 4")
    real_number("dropout", dropout, 0, 1, closed=True, hint="try 0")
    if width % heads:
        below = [h for h in divisors(width) if h < heads]
        above = [h for h in divisors(width) if h > heads]
        fit = below[-1:] + above[:1]
        raise ValueError(
            f"heads divide the width among them, got heads={heads} of width={width}; try "
            f"{' or '.join(map(str, fit))}"
        )
    if int(ratio * width) < 1:
        raise ValueError(
            f"ratio={ratio} of width={width} leaves a perceptron without units; try 4"
        )


def grid(shape: tuple[int, ...], patch: int) -> tuple[int, ...]:
    """Return the number of patches along each axis of space."""
    if not 2 <= len(shape) <= 4:
        raise ValueError(
            f"a transformer takes samples of shape (C, *space) with 1 to 3 axes of space, got "
            f"{tuple(shape)}; try 'resmlp'"
        )
    whole_number("patch", patch)
    space = shape[1:]
    if any(n % patch for n in space):
        fit = divisors(math.gcd(*space))[:8]
        these = str(fit[-1])
        if len(fit) > 1:
            these = f"{', '.join(map(str, fit[:-1]))} or {these}"
        size = "×".join(map(str, space))
        raise ValueError(
            f"patches of {patch} do not fill samples of {size}; patches of {these} do"
        )
    return tuple(n // patch for n in space)


def divisors(n: int) -> list[int]:
    """Return the divisors of n in order; beyond 10^10 only those with a small factor."""
    # n may come from a file, and be huge
    most = min(math.isqrt(n), 100_000)
    small = [k for k in range(1, most + 1) if n % k == 0]
    return sorted({*small, *(n // k for k in small)})


def check_sample(x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless x is a batch of samples of a shape."""
    if tuple(x.shape[1:]) != shape:
        wanted = ", ".join(map(str, ("B", *shape)))
        raise ValueError(
            f"this network was built for samples of shape {shape}, x of shape ({wanted}), got x of "
            f"shape {tuple(x.shape)}"
        )


def patchify(x: Tensor, patch: int) -> Tensor:
    """Return the patches of samples as tokens (B, N, C·p^d)."""
    b, c, *space = x.shape
    d = len(space)
    split = [size for n in space for size in (n // patch, patch)]
    order = [0, *range(2, 2 + 2 * d, 2), 1, *range(3, 3 + 2 * d, 2)]
    return x.reshape(b, c, *split).permute(order).reshape(b, math.prod(split[::2]), c * patch**d)


def unpatchify(tokens: Tensor, shape: tuple[int, ...], patch: int) -> Tensor:
    """Return the samples (B, *shape) of tokens: the inverse of `patchify`."""
    c, *space = shape
    d = len(space)
    order = [0, 1 + d, *(axis for i in range(d) for axis in (1 + i, 2 + d + i))]
    parts = tokens.reshape(tokens.shape[0], *(n // patch for n in space), c, *[patch] * d)
    return parts.permute(order).reshape(tokens.shape[0], *shape)


def positions(places: tuple[int, ...], width: int) -> Tensor:
    """Return the vector of each place (N, width): sines and cosines of its index."""
    count = width // (2 * len(places))
    step = -math.log(10_000) / max(count, 1)
    rates = torch.exp(torch.arange(count, dtype=torch.float64) * step)
    indices = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in places), indexing="ij"
    )
    turns = [torch.outer(i.flatten(), rates) for i in indices]
    waves = torch.cat([wave for turn in turns for wave in (turn.sin(), turn.cos())], 1)
    return functional.pad(waves, (0, width - waves.shape[1])).float()


class Attention(nn.Module):
    """Attention of the tokens of a sample to each other."""

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.join = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention's output (B, N, width)."""
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.join(heads.transpose(1, 2).reshape(b, n, width))
        return out


class Perceptron(nn.Module):
    """Two linear maps with a GELU between them, on each token alone."""

    def __init__(self, width: int, hidden: int, approximate: str = "none") -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the second map."""
        y: Tensor = self.down(functional.gelu(self.up(x), approximate=self.approximate))
        return y
