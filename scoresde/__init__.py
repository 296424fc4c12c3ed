"""scoresde: continuous-time score models. Train, sample, and know log p(x) exactly.

>>> import scoresde
>>> sde = scoresde.build("vp", "mlp", shape=(2,))
>>> history = scoresde.fit(sde, scoresde.toy.Moons(), steps=50, progress=False)
>>> x = scoresde.sample(sde, solver="rk45")
>>> scoresde.log_prob(sde, x).shape
torch.Size([1])
"""

from . import _moved, estimators, metrics, toy
from .backbones import BACKBONES, FIRST_STAGES, MLP, Embedded, StageNet
from .backbones.coupling_layers import FLOWS
from .common import plotting
from .common.capabilities import CAPABILITIES, FIELDS
from .common.errors import CheckpointError, SolverError, TrainingError
from .common.registry import Registry
from .common.sharding import sharded
from .data import files, transforms
from .data.pair_drawing import reflow
from .data.pairs import Pairs
from .data.typed_table import Table
from .density import dequantize
from .density.bits import bits_per_dim
from .density.bound_result import Bound
from .density.bounds import elbo, vlb
from .density.distribution import Distribution
from .density.error_bars import Likelihood
from .density.exact import likelihood, log_prob, sample_and_log_prob
from .density.latent import LatentBound, latent_bound
from .density.trace_estimators import TRACES, Hutchinson, TraceEstimator
from .density.weighted_bits import Bits
from .evaluation.report import evaluate
from .evaluation.results import Evaluation
from .guidance import energies, measurements
from .guidance.classified import classifier
from .guidance.editing import edit, interpolate
from .guidance.free import classifier_free
from .guidance.imputation import impute
from .guidance.marginals import Marginal, marginal_log_prob
from .guidance.noisy_classifier import NoisyClassifier
from .guidance.observed import observe
from .guidance.powers import compose, temper
from .guidance.rewards import toward
from .guidance.weighted_particles import Particles, particles
from .inference.amortized import Posterior
from .inference.loading import load_posterior
from .inference.recipe import posterior
from .metrics import (
    classifier_test,
    energy_distance,
    energy_test,
    evaluations,
    frechet_distance,
    mmd,
    nfe_for_error,
    noise_floor,
    sliced_wasserstein,
    straightness,
    wasserstein,
)
from .model.autoencoder import FirstStage, first_stage
from .model.builder import build
from .model.derived import Derived
from .model.invertible import CouplingFlow, coupling_flow
from .model.latent import Latent
from .model.oracles import oracle
from .model.protocol import Model
from .model.score_sde import ScoreSDE
from .model.trainable import Trainable
from .processes.base import PROCESSES, Process
from .processes.discrete import DDPM
from .processes.paths import EDM, VESDE, VPSDE, Cosine, RectifiedFlow, SubVPSDE
from .processes.prediction import PREDICTIONS
from .processes.spacings import SPACINGS
from .sampling.solution import Solution
from .sampling.summaries import Summary, summary
from .sampling.trajectory import decode, encode, sample, solve
from .sharing.cards import model_card
from .sharing.chains import from_diffusers
from .sharing.hub import from_pretrained, push_to_hub
from .solvers import SOLVERS, AdaptiveRungeKutta, RungeKutta, Solver, Stepper
from .storage.models import load, save
from .training import recipes
from .training.bridge import BridgeMatching, SchrodingerBridge
from .training.classifier_fitting import fit_classifier
from .training.couplings import (
    COUPLINGS,
    ConditionAwareOT,
    Coupling,
    Independent,
    MinibatchOT,
    Sinkhorn,
)
from .training.denoising import Denoising, Distilled, loss
from .training.fitting import fit
from .training.flow_maps import ConsistencyTraining, MeanFlow
from .training.history import History
from .training.hybrid import Hybrid
from .training.joint import fit_joint
from .training.latent_recipes import LatentRecipe
from .training.logs import Log
from .training.maximum_likelihood import MaximumLikelihood
from .training.noise_levels import NOISES
from .training.objectives import OBJECTIVES, Objective
from .training.options import Averaging, Backend, Checkpoints, Validation
from .training.posthoc import posthoc_ema
from .training.regression import WEIGHTS
from .training.stages import Autoencoding, fit_stage

__version__ = "0.1.0"

_moved.install()

__all__ = [
    "BACKBONES",
    "CAPABILITIES",
    "COUPLINGS",
    "DDPM",
    "EDM",
    "FIELDS",
    "FIRST_STAGES",
    "FLOWS",
    "MLP",
    "NOISES",
    "OBJECTIVES",
    "PREDICTIONS",
    "PROCESSES",
    "SOLVERS",
    "SPACINGS",
    "TRACES",
    "VESDE",
    "VPSDE",
    "WEIGHTS",
    "AdaptiveRungeKutta",
    "Autoencoding",
    "Averaging",
    "Backend",
    "Bits",
    "Bound",
    "BridgeMatching",
    "CheckpointError",
    "Checkpoints",
    "ConditionAwareOT",
    "ConsistencyTraining",
    "Cosine",
    "Coupling",
    "CouplingFlow",
    "Denoising",
    "Derived",
    "Distilled",
    "Distribution",
    "Embedded",
    "Evaluation",
    "FirstStage",
    "History",
    "Hutchinson",
    "Hybrid",
    "Independent",
    "Latent",
    "LatentBound",
    "LatentRecipe",
    "Likelihood",
    "Log",
    "Marginal",
    "MaximumLikelihood",
    "MeanFlow",
    "MinibatchOT",
    "Model",
    "NoisyClassifier",
    "Objective",
    "Pairs",
    "Particles",
    "Posterior",
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
    "StageNet",
    "Stepper",
    "SubVPSDE",
    "Summary",
    "Table",
    "TraceEstimator",
    "Trainable",
    "TrainingError",
    "Validation",
    "bits_per_dim",
    "build",
    "classifier",
    "classifier_free",
    "classifier_test",
    "compose",
    "coupling_flow",
    "decode",
    "dequantize",
    "edit",
    "elbo",
    "encode",
    "energies",
    "energy_distance",
    "energy_test",
    "estimators",
    "evaluate",
    "evaluations",
    "files",
    "first_stage",
    "fit",
    "fit_classifier",
    "fit_joint",
    "fit_stage",
    "frechet_distance",
    "from_diffusers",
    "from_pretrained",
    "impute",
    "interpolate",
    "latent_bound",
    "likelihood",
    "load",
    "load_posterior",
    "log_prob",
    "loss",
    "marginal_log_prob",
    "measurements",
    "metrics",
    "mmd",
    "model_card",
    "nfe_for_error",
    "noise_floor",
    "observe",
    "oracle",
    "particles",
    "plotting",
    "posterior",
    "posthoc_ema",
    "push_to_hub",
    "recipes",
    "reflow",
    "sample",
    "sample_and_log_prob",
    "save",
    "sharded",
    "sliced_wasserstein",
    "solve",
    "straightness",
    "summary",
    "temper",
    "toward",
    "toy",
    "transforms",
    "vlb",
    "wasserstein",
]
