"""Distances between two sets of samples, tests of equality, the floor that noise sets to each, and how straight paths are.

- `energy_distance`: E², in the units of the data. Unbiased, with nothing to choose.
- `mmd`: MMD², without a unit. Unbiased, wants a bandwidth.
- `sliced_wasserstein`: SW_p, in the units of the data. Sets of any sizes, any dimension.
- `wasserstein`: W_p, in the units of the data. Exact, for sets of one size, in n³ operations.
- `frechet_distance`: FID's d², in squared units of the features. Of the first two moments only, biased upwards.
- `energy_test`: a p-value by permutation, for 8192 points in all.
- `classifier_test`: a p-value and an accuracy, from a network trained to tell the sets apart.
- `noise_floor`: any of the distances between two sets of true samples, which no model can beat.
- `straightness`: path energy, straightness, curvature and normalized path energy of a model's ODE paths, in one solve.
- `evaluations`: how many network evaluations a solver needs for an error at the end of these paths.
"""

from .classifier import ClassifierTest, classifier_test
from .curvature import Estimate, Straightness, straightness
from .energy import energy_distance, energy_test
from .floor import NoiseFloor, noise_floor
from .frechet import frechet_distance, inception, moments
from .kernel import mmd
from .nfe import Evaluations, evaluations
from .transport import sliced_wasserstein, wasserstein

__all__ = [
    "ClassifierTest",
    "Estimate",
    "Evaluations",
    "NoiseFloor",
    "Straightness",
    "classifier_test",
    "energy_distance",
    "energy_test",
    "evaluations",
    "frechet_distance",
    "inception",
    "mmd",
    "moments",
    "noise_floor",
    "sliced_wasserstein",
    "straightness",
    "wasserstein",
]
