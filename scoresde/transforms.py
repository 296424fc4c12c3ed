"""What happens to a training batch before it is learnt: transforms x → T(x, u) with noise u, whose Jacobian is known.

A model of T(x, u) is one of x: with log|det ∂T/∂x|, the same for all samples, log p(x) ≥ E log p_model(T(x, u)) + log|det|
for dequantized integers, v ↦ (v + u)/L (Theis et al. 2016, see `scoresde.dequantize`), where log|det| = −D·log L. A symmetry that
is applied at random, such as a mirror image with probability ½, has log|det| = 0: the model learns the density averaged over it.

Each sample is transformed by itself, in its place, and keeps its conditions. These are not transformed: a condition that has
space of its own, such as an image, does not go with a transform that moves elements, such as a mirror image.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_generator, said, whole
from .dequantize import Uniform
from .inputs import as_tensor
from .registry import Registry

__all__ = ["TRANSFORMS", "Dequantize", "Flip", "Transform", "apply", "check_condition", "log_det", "resolve"]


class Transform(abc.ABC):
    """A map of batches that keeps their shape, sample by sample, and knows its Jacobian.

    Subclasses give `__call__` and `log_det`, and register: `@scoresde.transforms.TRANSFORMS.register("name")`.

    Attributes
    ----------
    continuous : bool
        Whether it makes floating-point data of integers.
    moves : bool
        Whether elements change places, so that conditions with space would no longer fit; unless said otherwise they may.

    Examples
    --------
    >>> class Negative(scoresde.transforms.Transform):
    ...     def __call__(self, x, generator=None): return -x
    ...     def log_det(self, shape): return 0.0
    >>> Negative()(torch.ones(1, 2))
    tensor([[-1., -1.]])
    """

    continuous: bool = False
    moves: bool = True

    @abc.abstractmethod
    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the transformed batch.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        generator : torch.Generator, optional
            On x's device: the same one, the same batch.

        Returns
        -------
        Tensor, shape (B, *shape)

        Raises
        ------
        TypeError, ValueError
            For data that it can't transform.

        Examples
        --------
        >>> scoresde.transforms.Dequantize(2)(torch.tensor([[0, 1]])).mul(2).floor()
        tensor([[0., 1.]])
        """

    @abc.abstractmethod
    def log_det(self, shape: tuple[int, ...]) -> float:
        """Return log|det ∂T/∂x| of one sample.

        Parameters
        ----------
        shape : tuple of int
            Shape of a sample.

        Returns
        -------
        float
            Nats.

        Examples
        --------
        >>> scoresde.transforms.Dequantize(256).log_det((2,))  # −2·log 256
        -11.09...
        """


TRANSFORMS: Registry[Transform] = Registry("transform", "scoresde.transforms.TRANSFORMS")
"""Transforms by name."""


@TRANSFORMS.register("flip")
@dataclass(frozen=True)
class Flip(Transform):
    """Mirror each image left to right, along its last axis, with probability ½: log|det| = 0.

    Only for images whose mirror image is as likely: not for digits or letters.

    Raises
    ------
    ValueError
        When called, for samples of less than two axes.

    Examples
    --------
    >>> x = torch.tensor([[[0, 1], [2, 3]]] * 3)
    >>> scoresde.transforms.Flip()(x, torch.Generator().manual_seed(4))[:, 0]
    tensor([[0, 1],
            [0, 1],
            [1, 0]])
    """

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the batch with about half of its images mirrored."""
        x = as_tensor(x, "x")
        check_generator(generator)
        if x.ndim < 3:
            raise ValueError(f"flip mirrors images, (batch, …, height, width), got shape {tuple(x.shape)}")
        heads = torch.randint(2, (len(x),), generator=generator, device=x.device, dtype=torch.uint8).bool()
        return torch.where(heads.reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Return 0: a permutation of the elements."""
        return 0.0


@TRANSFORMS.register("dequantize")
@dataclass(frozen=True)
class Dequantize(Transform):
    """Make points of the unit scale of integers 0 … L − 1: x = (v + u)/L with u ~ U[0, 1), log|det| = −D·log L.

    This is `scoresde.dequantize.Uniform` for batches; x is in its bin, and never 1.

    Parameters
    ----------
    levels : int
        L: 256 for 8-bit images.

    Raises
    ------
    TypeError, ValueError
        Unless levels is an integer of at least 2; when called, for what are no integers 0 … L − 1.

    References
    ----------
    Theis, van den Oord & Bethge, A note on the evaluation of generative models, ICLR 2016.

    Examples
    --------
    >>> x = scoresde.transforms.Dequantize()(torch.tensor([[0, 255]], dtype=torch.uint8))
    >>> (x * 256).floor(), x.dtype
    (tensor([[  0., 255.]]), torch.float32)
    """

    levels: int = 256
    continuous = True
    moves = False

    def __post_init__(self) -> None:
        whole("levels", self.levels, 2)
        Uniform(self.levels)

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return (x + u)/L, float32, or float64 for float64 values and for more than 4096 levels."""
        x = as_tensor(x, "x")
        check_generator(generator)
        uniform = Uniform(self.levels)
        v = x if x.dtype == torch.uint8 and self.levels >= 256 else uniform._accept(x)  # bytes fit, without asking the device
        u = torch.rand(v.shape, generator=generator, device=v.device, dtype=torch.promote_types(v.dtype, torch.float32))
        return uniform._add(v, u)[0]

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Return −D·log L."""
        return -math.prod(shape) * math.log(self.levels)


def resolve(transforms: str | Transform | Iterable[str | Transform]) -> tuple[Transform, ...]:
    """Return transforms as objects: names are built from `TRANSFORMS`, with their default options.

    Parameters
    ----------
    transforms : str, Transform, or several
        Such as ("flip", "dequantize") or ("flip", Dequantize(16)).

    Returns
    -------
    tuple of Transform

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        For unknown names, and for more than one that makes integers continuous.

    Examples
    --------
    >>> scoresde.transforms.resolve(("flip", "dequantize"))
    (Flip(), Dequantize(levels=256))
    >>> scoresde.transforms.resolve("dequantise")
    Traceback (most recent call last):
    ValueError: unknown transform 'dequantise'. Did you mean 'dequantize'? There are: dequantize, flip.
    """
    several = (transforms,) if isinstance(transforms, str | Transform) else transforms
    if not isinstance(several, Iterable):
        raise TypeError(f"transforms are names such as ('flip', 'dequantize'), or objects, got {said(transforms)}")
    found = []
    for each in several:
        if not isinstance(each, str | Transform):
            raise TypeError(f"a transform is a name, such as 'flip', or an object of scoresde.transforms, got {said(each)}")
        found.append(TRANSFORMS.build(each) if isinstance(each, str) else each)
    if sum(each.continuous for each in found) > 1:
        raise ValueError(f"data are dequantized once, got {', '.join(map(repr, found))}")
    return tuple(found)


def apply(transforms: Iterable[Transform], x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return the batch after all transforms, in their order.

    Parameters
    ----------
    transforms : iterable of Transform
        See `resolve`.
    x : Tensor, shape (B, *shape)
    generator : torch.Generator, optional
        On x's device.

    Returns
    -------
    Tensor, shape (B, *shape)
        Floating point.

    Raises
    ------
    TypeError
        For integers if no transform makes them continuous.
    ValueError
        For data that a transform refuses, or a generator on another kind of device.

    Examples
    --------
    >>> transforms = scoresde.transforms.resolve(("flip", "dequantize"))
    >>> x = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    >>> scoresde.transforms.apply(transforms, x).dtype
    torch.float32
    """
    transforms, x = resolve(transforms), as_tensor(x, "x")
    check_generator(generator)
    if not x.is_floating_point() and not any(each.continuous for each in transforms):
        raise TypeError(
            f"data are integers ({x.dtype}), and a density is of continuous values; dequantize them, transforms=('dequantize',), "
            "or convert them, e.g. x.float(), if they are no counts or pixels"
        )
    if generator is not None and generator.device.type != x.device.type:
        raise ValueError(f"the generator is on {generator.device}, the batch on {x.device}; they must be on the same")
    for each in transforms:
        x = each(x, generator)
    return x


def check_condition(transforms: Iterable[Transform], condition: Mapping[str, Tensor]) -> None:
    """Raise if a transform moves elements that a condition says something about place by place.

    Parameters
    ----------
    transforms : iterable of Transform
        See `resolve`.
    condition : mapping of str to Tensor
        With one row per sample.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> scoresde.transforms.check_condition([Flip()], {"image": torch.zeros(5, 1, 4, 4)})
    Traceback (most recent call last):
    ValueError: Flip() moves pixels and would leave those of the condition 'image' (5, 1, 4, 4) where they are: do without, or ...
    """
    for each in transforms:
        for name, value in condition.items():
            if each.moves and value.ndim > 2:
                raise ValueError(
                    f"{each!r} moves pixels and would leave those of the condition {name!r} {tuple(value.shape)} where they are: "
                    "do without, or transform both in a dataset (a transform of your own that moves none says moves = False)"
                )


def log_det(transforms: Iterable[Transform], shape: tuple[int, ...]) -> float:
    """Return log|det| of all transforms together: what to add to log p of transformed data to have that of the raw ones.

    Parameters
    ----------
    transforms : iterable of Transform
        See `resolve`.
    shape : tuple of int
        Shape of a sample.

    Returns
    -------
    float
        Nats; for dequantized data −D·log L, so that bits per dimension are −(log p + log_det)/(D·log 2).

    Examples
    --------
    >>> scoresde.transforms.log_det(scoresde.transforms.resolve(("flip", "dequantize")), (1, 1)) == -math.log(256)
    True
    """
    return sum(each.log_det(tuple(shape)) for each in transforms)
