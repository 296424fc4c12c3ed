"""A multilayer perceptron for points, tables and small images: the default backbone.

Random Fourier features of the state (Tancik et al. 2020) let a small network draw sharp edges; a sinusoidal embedding of
the noise label tells it how sharp they are; the output starts at zero.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from ..checks import number, whole
from .base import BACKBONES


@BACKBONES.register("mlp")
class MLP(nn.Module):
    """A perceptron on [x, sin(2πFx), cos(2πFx), embedding(t), embedding(y)] with SiLU activations.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample; flattened inside.
    width : int
        Units per hidden layer.
    depth : int
        Hidden layers, at least 1.
    fourier : int
        Random Fourier features F of the state (rows of F); 0 for none.
    bandwidth : float
        Their frequencies: entries of F are N(0, bandwidth²·2/D), in cycles per standard deviation of the data, D = ∏shape.
    classes : int
        If positive, the network takes a label `y` in 0 … classes − 1, shape (B,); without one it is unconditional.

    Raises
    ------
    ValueError
        For sizes that are not positive.

    Examples
    --------
    >>> net = MLP((2,), width=32)
    >>> net(torch.randn(5, 2), torch.zeros(5))[0]
    tensor([0., 0.], grad_fn=...)
    """

    frequencies: Tensor
    rates: Tensor
    out: nn.Linear

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 128,
        depth: int = 4,
        fourier: int = 64,
        bandwidth: float = 0.5,
        classes: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("width", width, 1),
            ("depth", depth, 1),
            ("fourier", fourier, 0),
            ("classes", classes, 0),
        ):
            whole(name, value, least)
        number("bandwidth", bandwidth, 0, math.inf, hint="try 0.5")
        n, labels = math.prod(shape), 16
        self.register_buffer("frequencies", torch.randn(n, fourier) * (2 * math.pi * bandwidth * math.sqrt(2 / n)))
        self.register_buffer("rates", torch.exp(torch.linspace(math.log(0.2), math.log(4.0), labels)))
        sizes = [n + 2 * fourier + 2 * labels] + [width] * depth
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(width, n)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.classes = classes
        if classes:
            self.label = nn.Embedding(classes + 1, width)  # the last row means "no label"
            nn.init.zeros_(self.label.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the network's output.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        t : Tensor, shape (B,)
            Noise labels.
        y : Tensor of int, shape (B,), optional
            Class labels, if the network was built with classes.

        Returns
        -------
        Tensor, shape (B, *shape)

        Examples
        --------
        >>> net = MLP((2,), classes=3)
        >>> net(torch.zeros(1, 2), torch.zeros(1), y=torch.tensor([2])).shape
        torch.Size([1, 2])
        """
        flat = x.reshape(len(x), -1)
        phase, turn = flat @ self.frequencies, t.unsqueeze(1) * self.rates
        h = torch.cat([flat, phase.sin(), phase.cos(), turn.sin(), turn.cos()], 1)
        h = self.hidden[0](h)
        if self.classes:
            h = h + self.label(torch.full((len(x),), self.classes, device=x.device) if y is None else y)
        for layer in self.hidden[1:]:
            h = layer(nn.functional.silu(h))
        out: Tensor = self.out(nn.functional.silu(h))
        return out.reshape(x.shape)

    def check_condition(self, y: Tensor) -> None:
        """Raise unless labels are what this network takes; called once before a solve or a loss, not at every evaluation.

        Parameters
        ----------
        y : Tensor of int, shape (n,)

        Raises
        ------
        ValueError
            For labels that are not integers of shape (n,), or out of range.

        Examples
        --------
        >>> MLP((2,), classes=3).check_condition(y=torch.tensor([3]))
        Traceback (most recent call last):
        ValueError: labels y run from 0 to 2, got 3 to 3
        """
        if not self.classes:
            raise ValueError("this MLP takes no label y; build it with classes=n")
        if y.is_floating_point() or y.ndim != 1:
            raise ValueError(f"labels y are integers of shape (n,), got {y.dtype} of shape {tuple(y.shape)}")
        if not bool(((y >= 0) & (y < self.classes)).all()):
            raise ValueError(f"labels y run from 0 to {self.classes - 1}, got {int(y.min())} to {int(y.max())}")
