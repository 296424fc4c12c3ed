"""Transforms x → T(x, u) of training batches, with noise u and a known Jacobian.

log|det ∂T/∂x| is the same for all samples. A model of T(x, u) is therefore one of x: for
dequantized integers, v ↦ (v + u)/L with log|det| = −D·log L,

    log p(x) ≥ E log p_model(T(x, u)) + log|det|        (Theis et al. 2016, `scoresde.dequantize`).

A random symmetry, such as a mirror image with probability ½, has log|det| = 0: the model learns the
density averaged over it.

Samples are transformed one by one, and keep their place and conditions. Conditions are not
transformed, so that a transform that moves elements, such as a mirror image, can't be combined
with a condition that has space of its own, such as an image.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.checks import brief_repr, check_generator, whole_number
from ..common.inputs import as_tensor
from ..common.registry import Registry
from ..common.seeds import takes_seed
from ..density.dequantize import Dequantization, Uniform

__all__ = [
    "TRANSFORMS",
    "Dequantize",
    "Flip",
    "Transform",
    "apply",
    "check_condition",
    "log_det",
    "resolve",
]


class Transform(abc.ABC):
    """A map of samples, one by one, that keeps their shape and knows its Jacobian.

    Subclasses define `__call__` and `log_det`. With a name,
    `@scoresde.transforms.TRANSFORMS.register("name")`, they can be built from it.

    Attributes
    ----------
    continuous : bool
        Whether it turns integers into floating-point numbers; False by default.
    moves : bool
        Whether elements change places, so that conditions with space would no longer fit; True by
        default.

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
    takes: tuple[int, ...] | None = None
    """Shape of the samples that it takes, if not that of those it returns."""

    @abc.abstractmethod
    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the transformed batch."""

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

    It suits images whose mirror image is as likely: not digits or letters.

    Raises
    ------
    ValueError
        When called, for samples with less than two axes.

    Examples
    --------
    >>> x = torch.tensor([[[0, 1], [2, 3]]] * 3)
    >>> scoresde.transforms.Flip()(x, torch.Generator().manual_seed(4))[:, 0]
    tensor([[0, 1],
            [0, 1],
            [1, 0]])
    """

    @takes_seed
    def __call__(
        self, x: Tensor, generator: torch.Generator | None = None, *, seed: int | None = None
    ) -> Tensor:
        """Return the batch with about half of its images mirrored."""
        x = as_tensor(x, "x")
        check_generator(generator)
        if x.ndim < 3:
            raise ValueError(
                f"flip mirrors images, (batch, …, height, width), got shape {tuple(x.shape)}"
            )
        heads = torch.randint(
            2, (len(x),), generator=generator, device=x.device, dtype=torch.uint8
        ).bool()
        return torch.where(heads.reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Return 0: a permutation of the elements."""
        return 0.0


@TRANSFORMS.register("dequantize")
@dataclass(frozen=True)
class Dequantize(Transform):
    """Dequantize integers v = 0 … L − 1: x = (v + u)/L with u ~ U[0, 1), log|det| = −D·log L.

    This is `scoresde.dequantize.Uniform` for batches; x stays in its bin, below 1.

    Parameters
    ----------
    levels : int
        L: 256 for 8-bit images.

    Raises
    ------
    TypeError, ValueError
        Unless levels is an integer of at least 2. When called, for anything but integers
        0 … L − 1.

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
        whole_number("levels", self.levels, 2)
        Uniform(self.levels)

    @takes_seed
    def __call__(
        self, x: Tensor, generator: torch.Generator | None = None, *, seed: int | None = None
    ) -> Tensor:
        """Return (x + u)/L: float32, or float64 for float64 values or more than 4096 levels."""
        x = as_tensor(x, "x")
        check_generator(generator)
        uniform = Uniform(self.levels)
        v = x
        if x.dtype != torch.uint8 or self.levels < 256:  # all bytes fit, without asking the device
            v = uniform._accept(x)
        dtype = torch.promote_types(v.dtype, torch.float32)
        u = torch.rand(v.shape, generator=generator, device=v.device, dtype=dtype)
        return uniform._add(v, u)[0]

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Return −D·log L."""
        return -math.prod(shape) * math.log(self.levels)


class DequantizeBy(Transform):
    """(v + u)/L with the noise u of any dequantization of integers v = 0 … L − 1."""

    continuous = True
    moves = False

    def __init__(self, dequantization: Dequantization) -> None:
        self.dequantization = dequantization

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return (x + u)/L."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        q = torch.rand(x.shape, generator=generator, device=x.device, dtype=dtype)
        return self.dequantization._add(x, q)[0]

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Return −D·log L, that of uniform noise."""
        return -math.prod(shape) * math.log(self.dequantization.levels)


def resolve(transforms: str | Transform | Iterable[str | Transform]) -> tuple[Transform, ...]:
    """Return transforms as objects; those of names have their default options.

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
        For unknown names, or several that make integers continuous.

    Examples
    --------
    >>> scoresde.transforms.resolve(("flip", "dequantize"))
    (Flip(), Dequantize(levels=256))
    >>> scoresde.transforms.resolve("dequantise")
    Traceback (most recent call last):
    ValueError: unknown transform 'dequantise'. Did you mean 'dequantize'? There are: ...
    """
    several = (transforms,) if isinstance(transforms, str | Transform) else transforms
    if not isinstance(several, Iterable):
        raise TypeError(
            f"transforms are names such as ('flip', 'dequantize'), or objects, got "
            f"{brief_repr(transforms)}"
        )
    found = []
    for each in several:
        if not isinstance(each, str | Transform):
            raise TypeError(
                f"a transform is a name, such as 'flip', or an object of scoresde.transforms, got "
                f"{brief_repr(each)}"
            )
        if isinstance(each, str):
            each = TRANSFORMS.build(each)
        found.append(each)
    if sum(each.continuous for each in found) > 1:
        raise ValueError(f"data are dequantized once, got {', '.join(map(repr, found))}")
    return tuple(found)


@takes_seed
def apply(
    transforms: Iterable[Transform],
    x: Tensor,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
) -> Tensor:
    """Apply all transforms to a batch, in their order.

    Parameters
    ----------
    transforms : iterable of Transform
        See `resolve`.
    x : Tensor, shape (B, *shape)
    generator : torch.Generator, optional
        On x's device.
    seed : int, optional
        An integer in place of the generator.

    Returns
    -------
    Tensor, shape (B, *shape)
        Floating point.

    Raises
    ------
    TypeError
        For integers that no transform makes continuous.
    ValueError
        For data that a transform refuses, or a generator on another kind of device.

    Examples
    --------
    >>> transforms = scoresde.transforms.resolve(("flip", "dequantize"))
    >>> x = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    >>> scoresde.transforms.apply(transforms, x).dtype
    torch.float32
    """
    transforms = resolve(transforms)
    x = as_tensor(x, "x")
    check_generator(generator)
    if not x.is_floating_point() and not any(each.continuous for each in transforms):
        raise TypeError(
            f"data are integers ({x.dtype}), and a density is of continuous values; dequantize "
            "them, transforms=('dequantize',), or convert them, e.g. x.float(), if they are no "
            "counts or pixels"
        )
    if generator is not None and generator.device.type != x.device.type:
        raise ValueError(
            f"the generator is on {generator.device}, the batch on {x.device}; they must be on the "
            "same"
        )
    for each in transforms:
        x = each(x, generator)
    return x


def check_condition(transforms: Iterable[Transform], condition: Mapping[str, Tensor]) -> None:
    """Raise if a transform moves elements, and a condition has space of its own.

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
    ValueError: Flip() moves pixels and would leave those of the condition 'image' ...
    """
    for each in transforms:
        for name, value in condition.items():
            if each.moves and value.ndim > 2:
                raise ValueError(
                    f"{each!r} moves pixels and would leave those of the condition {name!r} "
                    f"{tuple(value.shape)} where they are: do without, or transform both in a "
                    "dataset (a transform of your own that moves none says moves = False)"
                )


def log_det(transforms: Iterable[Transform], shape: tuple[int, ...]) -> float:
    """Return log|det| of all transforms together: log p(x) = log p(T(x)) + log|det|.

    Parameters
    ----------
    transforms : iterable of Transform
        See `resolve`.
    shape : tuple of int
        Shape of a sample.

    Returns
    -------
    float
        Nats: −D·log L for dequantized data, whose bits per dimension are
        −(log p + log|det|)/(D·log 2).

    Examples
    --------
    >>> transforms = scoresde.transforms.resolve(("flip", "dequantize"))
    >>> scoresde.transforms.log_det(transforms, (1, 1)) == -math.log(256)
    True
    """
    return sum(each.log_det(tuple(shape)) for each in transforms)
