"""A residual perceptron whose numbers are read by a perceptron of their own first.

A posterior p(theta | x) depends on x through statistics that are no linear maps, such as variances:

    h_0 = x,  h_i = dropout(silu(W_i·h_{i−1} + b_i)),      vector = (x, h_last).

`ResMLP` maps this vector linearly. x stays in it, so that what is linear needs no hidden unit. In a
solve the encoder is called once, not at every step.

Several such networks, `members`, are an ensemble, whose output is their mean. In training each
sees a part of every batch, so that a step costs as much as with one. Few pairs are learnt by heart,
by each member in its own way, and the mean of members has a smaller error than one of them
(Lakshminarayanan et al., NeurIPS 2017).

Dropout blurs what is narrow, and is needed while the learning rate is high. So it ends after a
share of the steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

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


class Encoders(nn.Module):
    """What each member is told, (B, members·(K + units)); in training, for rows of its own."""

    def __init__(self, members: list[Encoder]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, K), encoded."""
        if not self.training:
            return torch.cat([member(x) for member in self.members], 1)
        parts = _parts(x, len(self.members))
        own = [member(part) for member, part in zip(self.members, parts, strict=False)]
        return torch.cat(own).repeat(1, len(self.members))


class Members(nn.Module):
    """The mean of networks; in training, a part of the rows for each."""

    wide_inputs = True

    def __init__(self, members: list[ResMLP], told: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        shapes = members[0].condition_shapes
        self.condition_shapes = {**shapes, "vector": (told * len(members),)}
        self.condition_dropout = members[0].condition_dropout

    def forward(
        self, x: Tensor, t: Tensor, vector: Tensor | None = None, **condition: Tensor
    ) -> Tensor:
        """x (B, *shape) and t (B,)."""
        count = len(self.members)
        told: tuple[Tensor | None, ...] = (None,) * count
        if vector is not None:
            told = vector.chunk(count, 1)
        if not self.training:
            outs = [
                m(x, t, vector=v, **condition) for m, v in zip(self.members, told, strict=True)
            ]
            return torch.stack(outs).mean(0)
        rows = {"x": x, "t": t, **condition}
        if told[0] is not None:
            rows["vector"] = told[0]
        parts = {name: _parts(value, count) for name, value in rows.items()}
        own = []
        for i in range(len(parts["x"])):
            own.append(self.members[i](**{name: value[i] for name, value in parts.items()}))
        return torch.cat(own)

    def drop_conditions(
        self, condition: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Conditions without those of some samples, as one of the members does it."""
        found: dict[str, Tensor] = self._first.drop_conditions(condition, generator)
        return found

    def check_condition(self, **condition: Tensor) -> None:
        """Raise unless the members take these conditions."""
        self._first.check_condition(**condition)

    @property
    def _first(self) -> Any:
        """A member."""
        return self.members[0]


def _parts(rows: Tensor, count: int) -> tuple[Tensor, ...]:
    """Rows in so many parts, and none of them empty."""
    return rows.tensor_split(max(1, min(count, len(rows))))


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
    dropout_share : float
        Share of the training steps, from the first, in which units drop out, here and in `ResMLP`.
    members : int
        Networks, at least 1, whose mean is the output. Each learns from a part of every batch.
    **options
        Of `ResMLP`.

    Raises
    ------
    ValueError
        For sizes that are not positive.

    References
    ----------
    Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation using deep
    ensembles, NeurIPS 2017.

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
        dropout_share: float = 0.25,
        members: int = 1,
        **options: str | float,
    ) -> None:
        sizes = {"vector": vector, "units": units, "layers": layers, "members": members}
        for name, value in sizes.items():
            whole_number(name, value)
        real_number("encoder_dropout", encoder_dropout, 0, 1, closed=True, hint="try 0.1")
        real_number("dropout_share", dropout_share, 0, 1, closed=True, hint="try 0.25")
        rest: dict[str, Any] = dict(options)
        told = vector + units
        nets = [ResMLP(shape, vector=told, **rest) for _ in range(members)]
        for each in nets:
            each.conditional_gaussian = None  # their vector is a hidden layer, not data
        encoders = [Encoder(vector, units, layers, encoder_dropout) for _ in range(members)]
        net: nn.Module = nets[0]
        encoder: nn.Module = encoders[0]
        if members > 1:
            net = Members(nets, told)
            encoder = Encoders(encoders)
        super().__init__(net, encoder)
        self.dropout_share = dropout_share
        self._dropouts = {ResMLP: nets[0].dropout, Encoder: encoder_dropout}
        self.vector_shape = (vector,)
        self.condition_shapes = {**nets[0].condition_shapes, "vector": self.vector_shape}

    def follow_training(self, share: float) -> None:
        """Let units drop out, or no longer; `fit` calls it before each step.

        Parameters
        ----------
        share : float
            Of the training steps, those that are made, from 0 to 1.

        Examples
        --------
        >>> net = EncodedResMLP((2,), vector=3, width=32)
        >>> net.follow_training(0.9)
        >>> net.embed["vector"].dropout
        0.0
        """
        on = share < self.dropout_share
        for module in self.modules():
            if isinstance(module, ResMLP | Encoder):
                module.dropout = self._dropouts[type(module)] if on else 0.0

    def check_condition(self, **condition: Tensor) -> None:
        """Raise unless the network takes these conditions; called once before a solve or a loss."""
        super().check_condition(**condition)
        if "vector" in condition:
            check_numbers("vector", condition["vector"], self.vector_shape)
