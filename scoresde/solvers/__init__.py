"""Solvers: what moves a state from one noise level to another. `SOLVERS` holds them all by name."""

from .base import SOLVERS, Counts, Level, Problem, Solver, Stepper
from .runge_kutta import TABLEAUS, AdaptiveRungeKutta, RungeKutta, Tableau
from .steppers import DDIM, EulerMaruyama, PredictorCorrector

__all__ = [
    "DDIM",
    "SOLVERS",
    "TABLEAUS",
    "AdaptiveRungeKutta",
    "Counts",
    "EulerMaruyama",
    "Level",
    "PredictorCorrector",
    "Problem",
    "RungeKutta",
    "Solver",
    "Stepper",
    "Tableau",
]
