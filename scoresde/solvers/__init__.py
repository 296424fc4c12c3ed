"""Solvers: what moves a state from one noise level to another. `SOLVERS` holds them all by name."""

from .adams import Adams
from .adaptive import Adaptive
from .adaptive_sde import GottaGoFast
from .base import SOLVERS, Solver, Stepper
from .bridge import Bridge
from .ddpm import DDIM, Ancestral, EulerMaruyama, ReverseDiffusion
from .exponential import AdaptiveSinglestep, Singlestep
from .exponential_tableaus import EXPONENTIALS, Exponential
from .external import AdaptiveTorchDiffEq, SciPy, TorchDiffEq, TorchSDE
from .flow_sde import FORMS, FlowSDE
from .inverse import DAPS, RePaint, SplitGibbs
from .jump import Consistency, FlowMap
from .langevin import CORRECTORS, AnnealedLangevin, PredictorCorrector
from .measured import Measured
from .multistep import Multistep
from .multistep_rows import METHODS
from .problem import Calls, Counts, Level, Problem
from .runge_kutta import AdaptiveRungeKutta, RungeKutta
from .stochastic import ChurnedHeun, Restart
from .tableaus import TABLEAUS, Tableau

__all__ = [
    "CORRECTORS",
    "DAPS",
    "DDIM",
    "EXPONENTIALS",
    "FORMS",
    "METHODS",
    "SOLVERS",
    "TABLEAUS",
    "Adams",
    "Adaptive",
    "AdaptiveRungeKutta",
    "AdaptiveSinglestep",
    "AdaptiveTorchDiffEq",
    "Ancestral",
    "AnnealedLangevin",
    "Bridge",
    "Calls",
    "ChurnedHeun",
    "Consistency",
    "Counts",
    "EulerMaruyama",
    "Exponential",
    "FlowMap",
    "FlowSDE",
    "GottaGoFast",
    "Level",
    "Measured",
    "Multistep",
    "PredictorCorrector",
    "Problem",
    "RePaint",
    "Restart",
    "ReverseDiffusion",
    "RungeKutta",
    "SciPy",
    "Singlestep",
    "Solver",
    "SplitGibbs",
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
