"""Gaussians on a circle and on a grid."""

from __future__ import annotations

import math

import torch

from ..common.checks import real_number
from .mixture import GaussianMixture


class EightGaussians(GaussianMixture):
    """Eight equal Gaussians on a circle; by default FFJORD's, radius 4/√2 and std 0.5/√2.

    Parameters
    ----------
    radius : float
        Radius of the circle, in the units of x.
    std : float
        Standard deviation of each Gaussian, in the same units.

    References
    ----------
    Grathwohl et al. 2019, FFJORD, `toy_data.py`.

    Examples
    --------
    >>> round(EightGaussians().entropy(), 4)
    2.8316
    """

    def __init__(self, radius: float = 4 / math.sqrt(2), std: float = 0.5 / math.sqrt(2)) -> None:
        radius = real_number("radius", radius, 0, math.inf, closed=True, hint="try 2.8")
        std = real_number("std", std, 0, math.inf, hint="try 0.35")
        angle = torch.arange(8, dtype=torch.float64, device="cpu") * (math.pi / 4)
        super().__init__(radius * torch.stack([angle.cos(), angle.sin()], 1), std)


class Grid25(GaussianMixture):
    """Twenty-five equal Gaussians on a 5×5 grid about the origin.

    Parameters
    ----------
    spacing : float
        Distance of neighboring means, in the units of x.
    std : float
        Standard deviation of each Gaussian, in the same units.

    References
    ----------
    Dumoulin et al. 2017, Adversarially Learned Inference.

    Examples
    --------
    >>> round(Grid25().entropy(), 4)  # log 25 + log(2πe·0.01): modes 20 stds apart
    1.4516
    """

    def __init__(self, spacing: float = 2.0, std: float = 0.1) -> None:
        spacing = real_number("spacing", spacing, 0, math.inf, closed=True, hint="try 2")
        std = real_number("std", std, 0, math.inf, hint="try 0.1")
        axis = spacing * torch.arange(-2, 3, dtype=torch.float64, device="cpu")
        super().__init__(torch.cartesian_prod(axis, axis), std)
