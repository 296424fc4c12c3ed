"""Figures: losses, densities, small images, tables beside samples, calibration.

They need matplotlib: `pip install 'scoresde[plot]'`. Each function returns the figure, and saves it
if it gets a path.
"""

from .calibration import calibration_curve, rank_histogram
from .figures import (
    BLUE,
    GREY,
    ORANGE,
    curves,
    density_figure,
    lattice,
    sheet,
)
from .figures import _pyplot as _pyplot
from .tables import conditional_curves, pairs

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "calibration_curve",
    "conditional_curves",
    "curves",
    "density_figure",
    "lattice",
    "pairs",
    "rank_histogram",
    "sheet",
]
