"""Solvers: what moves a state from one noise level to another. `SOLVERS` holds them all by name."""

from .adams import Adams
from .adaptive_sde import GottaGoFast
from .base import SOLVERS, Adaptive, Counts, Level, Problem, Solver, Stepper
from .exponential import EXPONENTIALS, AdaptiveSinglestep, Exponential, Singlestep
from .external import AdaptiveTorchDiffEq, SciPy, TorchDiffEq
from .external_sde import TorchSDE
from .langevin import CORRECTORS, AnnealedLangevin, PredictorCorrector
from .multistep import METHODS, Multistep
from .runge_kutta import AdaptiveRungeKutta, RungeKutta
from .steppers import DDIM, EulerMaruyama, ReverseDiffusion
from .stochastic import ChurnedHeun, Restart
from .tableaus import TABLEAUS, Tableau

__all__ = [
    "CORRECTORS",
    "DDIM",
    "EXPONENTIALS",
    "METHODS",
    "SOLVERS",
    "TABLEAUS",
    "Adams",
    "Adaptive",
    "AdaptiveRungeKutta",
    "AdaptiveSinglestep",
    "AdaptiveTorchDiffEq",
    "AnnealedLangevin",
    "ChurnedHeun",
    "Counts",
    "EulerMaruyama",
    "Exponential",
    "GottaGoFast",
    "Level",
    "Multistep",
    "PredictorCorrector",
    "Problem",
    "Restart",
    "ReverseDiffusion",
    "RungeKutta",
    "SciPy",
    "Singlestep",
    "Solver",
    "Stepper",
    "Tableau",
    "TorchDiffEq",
    "TorchSDE",
]

# As other toolkits spell them: Euler ancestral with eta = 1 is the posterior of DDPM.
for _name, _target in {
    "ddpm": "ancestral",
    "euler_ancestral": "ancestral",
    "euler_a": "ancestral",
    "euler_maruyama": "em",
    "predictor_corrector": "pc",
    "gotta_go_fast": "ggf",
    "sa_solver": "sa",
    "uni_pc": "unipc",
}.items():
    SOLVERS.alias(_name, _target)
