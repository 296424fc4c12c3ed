"""A residual perceptron whose numbers are read by a perceptron of their own first.

A posterior p(theta | x) depends on x through statistics that are no linear maps, such as variances:

    h_0 = x,  h_i = dropout(silu(W_i·h_{i−1} + b_i)),      vector = (x, h_last).

`ResMLP` maps this vector linearly. x stays in it, so that what is linear needs no hidden unit. In a
solve the encoder is called once, not at every step.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ..common.checks import real_number, whole_number
from .base import BACKBONES
from .conditions import check_numbers
from .embedded import Embedded
from .resmlp import ResMLP


class Encoder(nn.Module):
    """A perceptron of numbers x that returns x and its last hidden layer."""

    def __init__(self, size: int, units: int, layers: int, dropout: float) -> None:
        super().__init__()
        sizes = [size] + [units] * layers
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in itertools.pairwise(sizes))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """x (B, K) and the units of the last layer, (B, K + units)."""
        h = x
        for layer in self.layers:
            h = nn.functional.silu(layer(h))
            h = nn.functional.dropout(h, self.dropout, self.training)
        return torch.cat([x, h], 1)


@BACKBONES.register("encoded_resmlp")
class EncodedResMLP(Embedded):
    """`ResMLP` with a perceptron that reads its condition `vector`.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample; flattened inside.
    vector : int
        Numbers in the condition, at least 1.
    units, layers : int
        Of the perceptron, at least 1.
    encoder_dropout : float
        Probability, in training, for its units.
    **options
        Of `ResMLP`.

    Raises
    ------
    ValueError
        For sizes that are not positive.

    Examples
    --------
    >>> net = EncodedResMLP((2,), vector=3, width=32)
    >>> net(torch.randn(5, 2), torch.zeros(5), vector=torch.randn(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        vector: int = 1,
        units: int = 128,
        layers: int = 2,
        encoder_dropout: float = 0.1,
        **options: str | float,
    ) -> None:
        for name, value in (("vector", vector), ("units", units), ("layers", layers)):
            whole_number(name, value)
        real_number("encoder_dropout", encoder_dropout, 0, 1, closed=True, hint="try 0.1")
        rest: dict[str, object] = dict(options)
        net = ResMLP(shape, vector=vector + units, **rest)  # type: ignore[arg-type]
        super().__init__(net, Encoder(vector, units, layers, encoder_dropout))
        self.vector_shape = (vector,)
        self.condition_shapes = {**net.condition_shapes, "vector": self.vector_shape}

    def check_condition(self, **condition: Tensor) -> None:
        """Raise unless the network takes these conditions; called once before a solve or a loss."""
        super().check_condition(**condition)
        if "vector" in condition:
            check_numbers("vector", condition["vector"], self.vector_shape)
