"""Ready-made rewards for `toward`: functions (x0, target) -> log g (B,).

Each takes its target here, one for all samples, or leaves it to
`toward(sde, ..., target=targets)`, a row a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.checks import brief_repr, real_number
from ..common.inputs import as_tensor

Network = Callable[[Tensor], Tensor]


class _Reward:
    """A reward of samples with a target."""

    def __init__(self, target: Any, net: Network | None = None) -> None:
        if net is not None and not callable(net):
            raise TypeError(f"net is a function of samples, got {brief_repr(net)}")
        self.net: Any = net
        self.target: Tensor | None = None
        if target is not None:
            found = as_tensor(target, "target")
            if found.is_floating_point() and not bool(found.isfinite().all()):
                raise ValueError("target has NaN or infinite values")
            self.target = found.detach()

    def __repr__(self) -> str:
        """Its name."""
        return f"{type(self).__name__.lower()}(...)"

    def __call__(self, x0: Tensor, target: Tensor | None = None) -> Tensor:
        """Return log g (B,) of samples (B, *shape)."""
        if target is None:
            if self.target is None:
                raise ValueError(
                    f"{self!r} has no target: give it one, or toward(sde, ..., target=targets)"
                )
            target = self.target[None]
        elif self.target is not None:
            raise ValueError(f"{self!r} has a target of its own: leave out target=")
        target = target.to(x0.device)
        if target.is_floating_point():
            target = target.to(x0.dtype)
        return self.reward(x0, target)

    def reward(self, x0: Tensor, target: Tensor) -> Tensor:
        """log g (B,) with targets (1 or B, …)."""
        raise NotImplementedError


class Pixel(_Reward):
    """−‖x0 − target‖²/(2·std²)."""

    def __init__(self, target: Any, std: float) -> None:
        super().__init__(target)
        self.std = std

    def reward(self, x0: Tensor, target: Tensor) -> Tensor:
        """log g (B,) with targets (1 or B, *shape)."""
        if target.shape[1:] != x0.shape[1:]:
            raise ValueError(
                f"target has shape {tuple(target.shape[1:])}, and samples {tuple(x0.shape[1:])}"
            )
        return -0.5 * ((x0 - target) / self.std).square().flatten(1).sum(1)


class Features(_Reward):
    """cos(net(x0), target)."""

    def reward(self, x0: Tensor, target: Tensor) -> Tensor:
        """log g (B,) with targets (1 or B, m)."""
        found = self.net(x0)
        if not isinstance(found, Tensor) or len(found) != len(x0):
            raise ValueError(f"net returned no features of {len(x0)} samples")
        found = found.flatten(1)
        target = target.flatten(1).to(found.dtype)
        if target.shape[1] != found.shape[1]:
            raise ValueError(
                f"target has {target.shape[1]} features, and net returns {found.shape[1]}"
            )
        return torch.cosine_similarity(found, target, 1)


class Gram(_Reward):
    """−mean (G(x0) − G(target))², G = F·Fᵀ/P of features F (C, P)."""

    def reward(self, x0: Tensor, target: Tensor) -> Tensor:
        """log g (B,) with targets (1 or B, *shape)."""
        with torch.no_grad():
            wanted = self._gram(target)
        return -(self._gram(x0) - wanted).square().flatten(1).mean(1)

    def _gram(self, x: Tensor) -> Tensor:
        found = self.net(x)
        if not isinstance(found, Tensor) or found.ndim < 3 or len(found) != len(x):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"net returned {got}, wanted features ({len(x)}, C, positions…)")
        features = found.flatten(2)
        return features @ features.transpose(1, 2) / features.shape[2]


def pixel(target: Any = None, std: float = 1.0) -> Pixel:
    """Return log g(x0) = −‖x0 − target‖²/(2·std²), a sum over the elements of a sample.

    Parameters
    ----------
    target : Tensor or array, shape (*shape), optional
        In the units of the data.
    std : float
        How far samples may be from it, in the same units.

    Returns
    -------
    callable (x0, target) -> Tensor (B,)

    Examples
    --------
    N(0, 1)·exp(−(x − 2)²/2) is N(1, 1/2). x̂0 does not say how uncertain x0 is, so `toward` gets
    the mean right here, and not the spread:

    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 1), 1.0)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE())
    >>> guided = scoresde.toward(sde, scoresde.energies.pixel([2.0]))
    >>> scoresde.energies.pixel([2.0], std=0.5)(torch.tensor([[1.0], [2.0]]))
    tensor([-2., -0.])
    """
    return Pixel(target, real_number("std", std, 0, math.inf))


def features(net: Network, target: Any = None) -> Features:
    """Return log g(x0) = cos(net(x0), target), the cosine of two embeddings, as of CLIP.

    Parameters
    ----------
    net : callable (B, *shape) -> (B, m)
        An encoder of samples in the units of the data, differentiable, in eval mode. Resizing and
        normalization, which most encoders need, are part of it.
    target : Tensor or array, shape (m,), optional
        The embedding of a text or of another sample.

    Returns
    -------
    callable (x0, target) -> Tensor (B,)
        From −1 to 1: `toward` takes a scale of some tens.

    References
    ----------
    Radford et al., Learning transferable visual models from natural language supervision, 2021.

    Examples
    --------
    >>> scoresde.energies.features(lambda x: x, [1.0, 0.0])(torch.tensor([[3.0, 4.0]]))
    tensor([0.6000])
    """
    return Features(target, net)


def gram(net: Network, target: Any = None) -> Gram:
    """Return log g(x0) = −mean (G(x0) − G(target))², the style of an image: G = F·Fᵀ/P.

    Parameters
    ----------
    net : callable (B, *shape) -> (B, C, P…)
        Features F of samples in the units of the data, C channels at P positions; differentiable,
        in eval mode.
    target : Tensor or array, shape (*shape), optional
        An image of that style.

    Returns
    -------
    callable (x0, target) -> Tensor (B,)

    References
    ----------
    Gatys et al., A neural algorithm of artistic style, 2015.

    Examples
    --------
    >>> image = torch.arange(8.0).reshape(2, 2, 2)
    >>> style = scoresde.energies.gram(lambda x: x, image)
    >>> style(torch.stack([image.flip(2), image + 1]))  # positions do not matter
    tensor([ -0., -72.])
    """
    return Gram(target, net)
