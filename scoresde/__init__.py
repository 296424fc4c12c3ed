"""scoresde: continuous-time score models. Train, sample, and know log p(x) exactly.

>>> import scoresde
>>> sde = scoresde.build("vp", "mlp", shape=(2,))
>>> history = scoresde.fit(sde, scoresde.toy.Moons(), steps=50, progress=False)
>>> x = scoresde.sample(sde, solver="rk45")
>>> scoresde.log_prob(sde, x).shape
torch.Size([1])
"""

from . import dequantize, files, metrics, recipes, toy, transforms
from .backbones import BACKBONES, MLP
from .bits import Bits, bits_per_dim
from .bounds import Bound, elbo, vlb
from .bridge import BridgeMatching, SchrodingerBridge
from .builder import build
from .checkpoint import posthoc_ema
from .coupling import COUPLINGS, ConditionAwareOT, Coupling, Independent, MinibatchOT, Sinkhorn
from .distribution import Distribution
from .errors import CheckpointError, SolverError, TrainingError
from .evaluation import Evaluation
from .exact import Likelihood, likelihood, log_prob, sample_and_log_prob
from .grids import SPACINGS
from .history import History
from .io import load, save
from .jumps import ConsistencyTraining, MeanFlow
from .metrics import (
    classifier_test,
    energy_distance,
    energy_test,
    evaluations,
    frechet_distance,
    mmd,
    noise_floor,
    sliced_wasserstein,
    straightness,
    wasserstein,
)
from .objective import NOISES, OBJECTIVES, WEIGHTS, Objective, loss
from .oracles import oracle
from .pairs import Pairs, reflow
from .paths import EDM, VESDE, VPSDE, Cosine, RectifiedFlow, SubVPSDE
from .prediction import PREDICTIONS
from .process import PROCESSES, Process
from .ranks import sharded
from .registry import Registry
from .reports import evaluate
from .sampling import Solution, decode, encode, sample, solve
from .sde import ScoreSDE
from .solvers import SOLVERS, AdaptiveRungeKutta, RungeKutta, Solver, Stepper
from .training import fit

__version__ = "0.1.0"

__all__ = [
    "BACKBONES",
    "COUPLINGS",
    "EDM",
    "MLP",
    "NOISES",
    "OBJECTIVES",
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
    "BridgeMatching",
    "CheckpointError",
    "ConditionAwareOT",
    "ConsistencyTraining",
    "Cosine",
    "Coupling",
    "Distribution",
    "Evaluation",
    "History",
    "Independent",
    "Likelihood",
    "MeanFlow",
    "MinibatchOT",
    "Objective",
    "Pairs",
    "Process",
    "RectifiedFlow",
    "Registry",
    "RungeKutta",
    "SchrodingerBridge",
    "ScoreSDE",
    "Sinkhorn",
    "Solution",
    "Solver",
    "SolverError",
    "Stepper",
    "SubVPSDE",
    "TrainingError",
    "bits_per_dim",
    "build",
    "classifier_test",
    "decode",
    "dequantize",
    "elbo",
    "encode",
    "energy_distance",
    "energy_test",
    "evaluate",
    "evaluations",
    "files",
    "fit",
    "frechet_distance",
    "likelihood",
    "load",
    "log_prob",
    "loss",
    "metrics",
    "mmd",
    "noise_floor",
    "oracle",
    "posthoc_ema",
    "recipes",
    "reflow",
    "sample",
    "sample_and_log_prob",
    "save",
    "sharded",
    "sliced_wasserstein",
    "solve",
    "straightness",
    "toy",
    "transforms",
    "vlb",
    "wasserstein",
]
