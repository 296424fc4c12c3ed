"""scoresde: continuous-time score models. Train, sample, and know log p(x) exactly.

>>> import scoresde
>>> sde = scoresde.build("vp", "mlp", shape=(2,))
>>> history = scoresde.fit(sde, scoresde.toy.Moons(), steps=50, progress=False)
>>> x = scoresde.sample(sde, solver="rk45")
>>> scoresde.log_prob(sde, x).shape
torch.Size([1])
"""

from . import dequantize, files, toy, transforms
from .backbones import BACKBONES, MLP
from .bits import Bits, bits_per_dim
from .bounds import Bound, elbo, vlb
from .build import build
from .checkpoint import posthoc_ema
from .distribution import Distribution
from .errors import CheckpointError, SolverError, TrainingError
from .grids import SPACINGS
from .history import History
from .io import load, save
from .likelihood import Likelihood, likelihood, log_prob, sample_and_log_prob
from .metrics import energy_distance, energy_test
from .objective import NOISES, WEIGHTS, loss
from .oracle import oracle
from .paths import EDM, VESDE, VPSDE, Cosine, RectifiedFlow, SubVPSDE
from .prediction import PREDICTIONS
from .process import PROCESSES, Process
from .ranks import sharded
from .registry import Registry
from .sampling import Solution, decode, encode, sample, solve
from .sde import ScoreSDE
from .solvers import SOLVERS, AdaptiveRungeKutta, RungeKutta, Solver, Stepper
from .training import fit

__version__ = "0.1.0"

__all__ = [
    "BACKBONES",
    "EDM",
    "MLP",
    "NOISES",
    "PREDICTIONS",
    "PROCESSES",
    "SOLVERS",
    "SPACINGS",
    "VESDE",
    "VPSDE",
    "WEIGHTS",
    "AdaptiveRungeKutta",
    "Bits",
    "Bound",
    "CheckpointError",
    "Cosine",
    "Distribution",
    "History",
    "Likelihood",
    "Process",
    "RectifiedFlow",
    "Registry",
    "RungeKutta",
    "ScoreSDE",
    "Solution",
    "Solver",
    "SolverError",
    "Stepper",
    "SubVPSDE",
    "TrainingError",
    "bits_per_dim",
    "build",
    "decode",
    "dequantize",
    "elbo",
    "encode",
    "energy_distance",
    "energy_test",
    "files",
    "fit",
    "likelihood",
    "load",
    "log_prob",
    "loss",
    "oracle",
    "posthoc_ema",
    "sample",
    "sample_and_log_prob",
    "save",
    "sharded",
    "solve",
    "toy",
    "transforms",
    "vlb",
]
