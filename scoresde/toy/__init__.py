"""Toy densities with a known truth: samples, log p(x) and entropy, to grade a model in nats.

>>> moons = DENSITIES["moons"]()
>>> moons.log_prob(moons.sample(5)).shape
torch.Size([5])
"""

from ..common.registry import Registry
from .curves import Moons, NoisyCurve, Rings, SwissRoll, TwoSpirals
from .density import Density
from .gaussians import EightGaussians, Grid25
from .mixture import GaussianMixture
from .shapes import Checkerboard, Pinwheel

DENSITIES: Registry[Density] = Registry("density", "scoresde.toy.DENSITIES")
"""Toy densities by name."""

for _name, _density in {
    "eight_gaussians": EightGaussians,
    "grid25": Grid25,
    "checkerboard": Checkerboard,
    "moons": Moons,
    "rings": Rings,
    "pinwheel": Pinwheel,
    "swiss_roll": SwissRoll,
    "two_spirals": TwoSpirals,
}.items():
    DENSITIES.register(_name)(_density)

__all__ = [
    "DENSITIES",
    "Checkerboard",
    "Density",
    "EightGaussians",
    "GaussianMixture",
    "Grid25",
    "Moons",
    "NoisyCurve",
    "Pinwheel",
    "Rings",
    "SwissRoll",
    "TwoSpirals",
]
