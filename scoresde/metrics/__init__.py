"""Distances between two sets of samples, tests of equal distributions, the noise floor of a
distance, calibration of posteriors, and how straight paths are.

- `energy_distance`: E², in the units of the data; unbiased, with nothing to choose.
- `mmd`: MMD², without a unit; unbiased, needs a bandwidth.
- `sliced_wasserstein`: SW_p, in the units of the data; for sets of any sizes in any dimension.
- `wasserstein`: W_p, in the units of the data; exact, for sets of one size, in n³ operations.
- `frechet_distance`: d² of FID, in squared units of the features; of the first two moments only,
  biased upwards.
- `energy_test`: a p-value by permutation, for at most 8192 points in all.
- `classifier_test`: a p-value and an accuracy of a network that learns to tell the sets apart.
- `c2st`: cross-validated accuracy of a network, with the settings of the sbibm benchmark.
- `coverage`: how often highest-density regions of a posterior hold the truth, with a p-value.
- `sbc`: ranks of the truth among posterior draws, coordinate by coordinate, with a p-value.
- `tarp`: how often balls around random points hold the truth, with a p-value.
- `calibration`: these three, for an object that samples and has a density.
- `noise_floor`: a distance between two sets of true samples, which no model can beat.
- `straightness`: path energy, straightness, curvature and normalized path energy of a model's ODE
  paths, in one solve.
- `nfe_for_error`: how many network evaluations a solver needs for an error at the end of paths.
"""

from .c2st_score import c2st
from .curvature import Estimate, Straightness, straightness
from .energy import energy_distance, energy_test
from .floor import NoiseFloor, noise_floor
from .frechet import frechet_distance, inception, moments
from .hpd import Coverage, coverage
from .kernel import mmd
from .nfe import Evaluations, evaluations, nfe_for_error
from .posterior_check import Calibration, calibration
from .rank_statistics import RankTest, sbc
from .reference_points import ExpectedCoverage, tarp
from .transport import sliced_wasserstein, wasserstein
from .two_samples import ClassifierTest, classifier_test

__all__ = [
    "Calibration",
    "ClassifierTest",
    "Coverage",
    "Estimate",
    "Evaluations",
    "ExpectedCoverage",
    "NoiseFloor",
    "RankTest",
    "Straightness",
    "c2st",
    "calibration",
    "classifier_test",
    "coverage",
    "energy_distance",
    "energy_test",
    "evaluations",
    "frechet_distance",
    "inception",
    "mmd",
    "moments",
    "nfe_for_error",
    "noise_floor",
    "sbc",
    "sliced_wasserstein",
    "straightness",
    "tarp",
    "wasserstein",
]
