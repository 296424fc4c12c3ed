"""Coupling flows, NICE and RealNVP: invertible maps whose log-determinants cost nothing.

A coupling layer leaves some entries a of z as they are and moves the others, b, by functions of a:

    additive (NICE)      b ← b + m(a)                     log|det| = 0
    affine (RealNVP)     b ← b·exp(s(a)) + m(a)           log|det| = Σ s(a)

with s bounded, |s| < 2, so that no layer can explode. The layers take turns at halves of a fixed
random order of the entries. Constants of the last layer scale each entry (Dinh et al. 2015, section
3.3). With one entry there is nothing to be a function of, and a layer is b·exp(s) + m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..common.checks import real_number, whole_number
from ..common.inputs import event_shape
from ..common.names import choose
from ..common.registry import Registry
from .conditions import (
    check_known,
    check_labels,
    check_numbers,
    drop_conditions,
    embedded_numbers,
    label_indices,
    require_conditions,
)
from .labels import label_table, number_of_labels

LARGEST_LOG_SCALE = 2.0
"""Bound of |s| of a layer."""

KINDS = ("affine", "additive")

FLOWS: Registry[nn.Module] = Registry("flow", "scoresde.FLOWS")
"""Invertible networks by name."""


class Coupling(nn.Module):
    """One layer: entries `kept` move entries `moved`, of which there is at least one."""

    kept: Tensor
    moved: Tensor

    def __init__(
        self, kept: Tensor, moved: Tensor, width: int, depth: int, affine: bool, context: int
    ) -> None:
        super().__init__()
        self.register_buffer("kept", kept)
        self.register_buffer("moved", moved)
        self.affine = affine
        outputs = len(moved) * (2 if affine else 1)
        layers: list[nn.Module] = []
        inputs = max(1, len(kept) + context)  # a single entry is moved by constants
        for _ in range(depth):
            layers += [nn.Linear(inputs, width), nn.SiLU()]
            inputs = width
        last = nn.Linear(inputs, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*layers, last)

    def _moves(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Shift and log-scale of the moved entries."""
        known = z.index_select(1, self.kept)
        if context is not None:
            known = torch.cat([known, context], 1)
        elif not len(self.kept):
            known = z.new_zeros(len(z), 1)
        out: Tensor = self.net(known)
        if not self.affine:
            return out, torch.zeros_like(out)
        shift, raw = out.chunk(2, 1)
        return shift, LARGEST_LOG_SCALE * torch.tanh(raw / LARGEST_LOG_SCALE)

    def forward(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the moved states (B, n), and log|det| (B,)."""
        shift, log_scale = self._moves(z, context)
        part = z.index_select(1, self.moved) * log_scale.exp() + shift
        return z.index_copy(1, self.moved, part), log_scale.sum(1)

    def inverse(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Return the states that the layer takes to z."""
        shift, log_scale = self._moves(z, context)
        part = (z.index_select(1, self.moved) - shift) * (-log_scale).exp()
        return z.index_copy(1, self.moved, part)


@FLOWS.register("coupling")
class CouplingLayers(nn.Module):
    """NICE or RealNVP as a network: called as net(x), it returns latents and log|∂z/∂x|.

    It is no denoiser: `scoresde.coupling_flow` makes a model of it.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample; flattened.
    kind : str
        "affine" (RealNVP) or "additive" (NICE).
    layers : int
        Coupling layers.
    width, depth : int
        Of each layer's perceptron; depth 0 is a linear map.
    classes : int or tuple of int
        Number of class labels y, 0 for none; see `Embedding`.
    vector : int
        Length of a numeric condition, 0 for none.
    condition_dropout : float
        Share of training samples that lose their conditions, so that p(x) is learnt too.

    Raises
    ------
    TypeError, ValueError
        For an unknown kind, or numbers that are not positive integers.

    References
    ----------
    Dinh et al., NICE: non-linear independent components estimation, ICLR workshop 2015. Dinh et
    al., Density estimation using Real NVP, ICLR 2017.

    Examples
    --------
    >>> net = CouplingLayers((3,))
    >>> z, log_det = net(torch.ones(2, 3))
    >>> z.shape, log_det
    (torch.Size([2, 3]), tensor([0., 0.], grad_fn=...))
    """

    labels = ("y",)

    def __init__(
        self,
        shape: tuple[int, ...],
        kind: str = "affine",
        layers: int = 12,
        width: int = 64,
        depth: int = 2,
        classes: int | Sequence[int] = 0,
        vector: int = 0,
        condition_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.shape = event_shape(shape)
        choose("kind", kind, KINDS)
        whole_number("layers", layers)
        whole_number("width", width)
        whole_number("depth", depth, 0)
        whole_number("vector", vector, 0)
        real_number("condition_dropout", condition_dropout, 0, 1, closed=True, hint="try 0.1")
        n = math.prod(self.shape)
        self.kind = kind
        self.classes = number_of_labels(classes)
        self.vectors = vector
        self.condition_dropout = condition_dropout
        context = width if self.classes or vector else 0
        self.label = label_table(classes, width)
        self.vector = nn.Linear(vector, width, bias=False) if vector else None
        self.null_vector = nn.Parameter(torch.randn(width) / math.sqrt(3)) if vector else None
        parts = []
        order = torch.arange(n)
        for number in range(layers):
            if number % 2 == 0:
                order = torch.randperm(n)
            half = n // 2
            kept, moved = order[:half], order[half:]
            if number % 2 and half:
                kept, moved = moved, kept
            affine = kind == "affine"
            parts.append(Coupling(kept, moved, width, depth, affine, context))
        self.layers = nn.ModuleList(parts)
        self.log_scale = nn.Parameter(torch.zeros(n))

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The conditions that it takes, with the shape of one sample's."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.classes:
            shapes["y"] = ()
        if self.vectors:
            shapes["vector"] = (self.vectors,)
        return shapes

    def _context(self, x: Tensor, y: Tensor | None, vector: Tensor | None) -> Tensor | None:
        """The conditions as one vector a sample; None without any."""
        given: dict[str, Tensor | None] = {}
        found = None
        if self.label is not None:
            given["y"] = y
            found = self.label(label_indices(x, y, self.classes))
        if self.vector is not None and self.null_vector is not None:
            given["vector"] = vector
            embedded = embedded_numbers(self.vector, self.null_vector, vector)
            embedded = embedded.expand(len(x), -1)
            found = embedded if found is None else found + embedded
        require_conditions(given, self.condition_dropout)
        return found

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        y: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return latents (B, n) and log|∂z/∂x| (B,); t is not used."""
        z = x.flatten(1)
        context = self._context(x, y, vector)
        log_det = z.new_zeros(len(z))
        for layer in self.layers:
            z, gained = layer(z, context)
            log_det = log_det + gained
        return z * self.log_scale.exp(), log_det + self.log_scale.sum()

    def inverse(self, z: Tensor, y: Tensor | None = None, vector: Tensor | None = None) -> Tensor:
        """Return the samples (B, *shape) of latents (B, n)."""
        context = self._context(z, y, vector)
        x = z * (-self.log_scale).exp()
        for layer in reversed(self.layers):
            x = layer.inverse(x, context)  # type: ignore[operator]
        return x.reshape(len(x), *self.shape)

    def drop_conditions(
        self, condition: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return conditions without those of some samples, chosen with `condition_dropout`."""
        return drop_conditions(condition, self.classes, self.condition_dropout, generator)

    def check_condition(
        self, y: Tensor | None = None, vector: Tensor | None = None, **unknown: Tensor
    ) -> None:
        """Raise unless the network takes these conditions."""
        check_known(unknown, self.condition_shapes)
        if y is not None:
            check_labels(y, self.classes)
        if vector is not None:
            check_numbers("vector", vector, (self.vectors,))
