"""Bad calls: each ends at once, before any network call, in a sentence on what came, what was
wanted, what to try.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import scoresde
from conftest import generator
from scoresde import CheckpointError, ScoreSDE, toy
from scoresde.common.checks import check_budget, device_memory
from scoresde.sampling.batches import batch_ranges
from scoresde.sampling.plan import plan

CALLS: list[int] = []


class Counting(nn.Module):
    """A network that can be trained, takes labels, and notes that it was called."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Any:
        CALLS.append(len(x))
        return x * self.w.mean()


class Says(nn.Module):
    """A network whose output is made from its input."""

    def __init__(self, what: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.w, self.what = nn.Parameter(torch.zeros(1)), what

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.what(x)


def sde(
    process: scoresde.Process | None = None, shape: tuple[int, ...] = (2,), **options: Any
) -> ScoreSDE:
    return ScoreSDE(process or scoresde.VPSDE(), Counting(), shape=shape, **options)


def classy() -> ScoreSDE:
    return scoresde.build("vp", "mlp", shape=(2,), classes=3, width=8, depth=1)


def fit(data: Any, model: ScoreSDE | None = None, **options: Any) -> Any:
    return scoresde.fit(model or sde(), data, **{"steps": 2000, "progress": False, **options})


def points(*shape: int) -> Tensor:
    return torch.randn(*(shape or (20, 2)), generator=generator())


def spoiled(value: float) -> Tensor:
    x = points()
    x[3, 1] = value
    return x


def mixture() -> toy.GaussianMixture:
    return toy.EightGaussians()


Call = Callable[[], Any]
BAD: dict[str, tuple[Call, type[Exception], str]] = {
    # the wrong thing altogether
    "sample of a process": (
        lambda: scoresde.sample(scoresde.VPSDE()),
        TypeError,
        r"sample needs a ScoreSDE.*process VPSDE.*build",
    ),
    "sample of a process class": (
        lambda: scoresde.sample(scoresde.VPSDE),
        TypeError,
        "sample needs a ScoreSDE.*VPSDE.*build",
    ),
    "log_prob of a process": (
        lambda: scoresde.log_prob(scoresde.RectifiedFlow(), points()),
        TypeError,
        r"log_prob needs a ScoreSDE.*RectifiedFlow.*build",
    ),
    "log_prob of a process class": (
        lambda: scoresde.log_prob(scoresde.VPSDE, points()),
        TypeError,
        "log_prob needs a ScoreSDE.*VPSDE.*build",
    ),
    "fit of a process": (
        lambda: scoresde.fit(scoresde.VESDE(), points()),
        TypeError,
        r"fit needs a ScoreSDE.*VESDE.*build",
    ),
    "fit of a process class": (
        lambda: scoresde.fit(scoresde.VESDE, points()),
        TypeError,
        "fit needs a ScoreSDE.*VESDE.*build",
    ),
    "loss of a process": (
        lambda: scoresde.loss(scoresde.VESDE(), points()),
        TypeError,
        "loss needs a ScoreSDE",
    ),
    "sample of a network": (
        lambda: scoresde.sample(nn.Linear(2, 2)),
        TypeError,
        "sample needs a ScoreSDE, got Linear.*build",
    ),
    "sample of a name": (lambda: scoresde.sample("vp"), TypeError, "got str.*build.*load"),
    "a process class in ScoreSDE": (
        lambda: ScoreSDE(scoresde.VPSDE, Counting(), shape=(2,)),
        TypeError,
        r"process is a scoresde\.Process.*write VPSDE\(\)",
    ),
    "a name in ScoreSDE": (
        lambda: ScoreSDE("vp", Counting(), shape=(2,)),
        TypeError,
        "'vp'.*build takes names",
    ),
    "a function for a network": (
        lambda: ScoreSDE(scoresde.VPSDE(), lambda x, t: x, shape=(2,)),
        TypeError,
        "net is an nn.Module, got function",
    ),
    # names with a typo
    "process with a typo": (
        lambda: scoresde.build("vpe", shape=(2,)),
        ValueError,
        "unknown process 'vpe'.*Did you mean 'v",
    ),
    "network with a typo": (
        lambda: scoresde.build("vp", "mpl", shape=(2,)),
        ValueError,
        "'mpl'.*Did you mean 'mlp'",
    ),
    "solver with a typo": (
        lambda: scoresde.sample(sde(), solver="rk_45"),
        ValueError,
        "unknown solver.*Did you mean 'rk45'",
    ),
    "solver with a typo in log_prob": (
        lambda: scoresde.log_prob(sde(), points(), solver="huen"),
        ValueError,
        "unknown solver.*Did you mean 'heun'",
    ),
    "spacing with a typo": (
        lambda: scoresde.sample(sde(), solver="heun", steps=5, spacing="kerras"),
        ValueError,
        "unknown spacing.*Did you mean 'karras'",
    ),
    "weight with a typo": (
        lambda: fit(points(), objective=scoresde.Denoising(weight="likelyhood")),
        ValueError,
        "unknown weight.*Did you mean 'likelihood'",
    ),
    "noise with a typo": (
        lambda: fit(points(), objective=scoresde.Denoising(noise="unifrom")),
        ValueError,
        "unknown noise.*Did you mean 'uniform'",
    ),
    "levels of Distilled as a noise": (
        lambda: scoresde.loss(sde(), points(), noise="nodes:2"),
        ValueError,
        r"unknown noise 'nodes:2'.*objective=scoresde.Distilled\(2\)",
    ),
    "weight with a typo in loss": (
        lambda: scoresde.loss(sde(), points(), weight="sigma"),
        ValueError,
        "unknown weight.*Did you mean 'sigma2'",
    ),
    "trace with a typo": (
        lambda: scoresde.log_prob(sde(), points(), trace="hutchison"),
        ValueError,
        "unknown trace.*Did you mean 'hutchinson'",
    ),
    "prediction with a typo": (
        lambda: scoresde.build("vp", shape=(2,), predict="scor"),
        ValueError,
        "unknown prediction.*Did you mean 'score'",
    ),
    "input_convention with a typo": (
        lambda: sde(input_convention="row"),
        ValueError,
        "unknown input_convention.*Did you mean 'raw'",
    ),
    "density with a typo": (
        lambda: __import__("scoresde.cli.demo", fromlist=["demo"]).demo("checkerbord"),
        ValueError,
        "unknown density.*Did you mean 'checkerboard'",
    ),
    "a solver that is a class": (
        lambda: scoresde.sample(sde(), solver=scoresde.RungeKutta),
        TypeError,
        "solver is a name or a Solver object, got",
    ),
    "a solver that is a number": (
        lambda: scoresde.sample(sde(), solver=45),
        TypeError,
        "solver is a name or a Solver",
    ),
    # options
    "unknown option of a solver": (
        lambda: scoresde.sample(sde(), solver="rk45", rtoll=1e-3),
        ValueError,
        "'rk45' has no option 'rtoll'.*Did you mean 'rtol'",
    ),
    "unknown option of a network": (
        lambda: scoresde.build("vp", "mlp", shape=(2,), widht=3),
        ValueError,
        "'mlp' has no option 'widht'.*Did you mean 'width'",
    ),
    "unknown option of a process": (
        lambda: scoresde.PROCESSES.build("vp", beta_maxx=3.0),
        ValueError,
        "no option 'beta_maxx'.*Did you mean 'beta_max'",
    ),
    "options beside a network": (
        lambda: scoresde.build("vp", Counting(), shape=(2,), width=3),
        TypeError,
        r"\['width'\].*network itself",
    ),
    "options beside a solver object": (
        lambda: scoresde.sample(sde(), solver=scoresde.SOLVERS.build("ddim"), eta=0.5),
        TypeError,
        r"\['eta'\].*DDIM itself",
    ),
    "rtol with euler": (
        lambda: scoresde.sample(sde(), solver="euler", rtol=1e-3),
        ValueError,
        "no option 'rtol'|no effect",
    ),
    "rtol with steps": (
        lambda: scoresde.sample(sde(), solver="rk45", steps=5, rtol=1e-3),
        ValueError,
        "rtol.*no effect.*steps",
    ),
    "max_steps with steps": (
        lambda: scoresde.log_prob(sde(), points(), steps=5, max_steps=10),
        ValueError,
        "max_steps.*no effect.*steps",
    ),
    "eta with ancestral": (
        lambda: scoresde.sample(sde(), solver="ancestral", eta=0.5),
        ValueError,
        "no option 'eta'",
    ),
    "spacing without steps": (
        lambda: scoresde.sample(sde(), solver="rk45", spacing="karras"),
        ValueError,
        "spacing='karras'.*steps=",
    ),
    # shapes and kinds of x
    "x of another width": (
        lambda: scoresde.log_prob(sde(), points(5, 3)),
        ValueError,
        r"x has shape \(5, 3\), wanted \(batch, 2\)",
    ),
    "x without a batch": (
        lambda: scoresde.log_prob(sde(), points(2)),
        ValueError,
        r"\(2,\), wanted \(batch, 2\)",
    ),
    "x of another rank": (
        lambda: scoresde.log_prob(sde(), points(5, 1, 2)),
        ValueError,
        r"\(5, 1, 2\), wanted \(batch, 2\)",
    ),
    "images as rows": (
        lambda: scoresde.log_prob(sde(shape=(1, 4, 4)), points(5, 16)),
        ValueError,
        r"\(5, 16\), wanted \(batch, 1, 4, 4\)",
    ),
    "a number for x": (
        lambda: scoresde.log_prob(sde(), 3.0),  # type: ignore[arg-type]
        (TypeError, ValueError),  # type: ignore[dict-item]
        "x",
    ),
    "text for x": (
        lambda: scoresde.log_prob(sde(), "x.npy"),
        TypeError,
        "x is a tensor or array, got str",
    ),
    "integer x": (
        lambda: scoresde.log_prob(sde(), torch.zeros(5, 2, dtype=torch.int64)),
        TypeError,
        "int64.*floating.*float()",
    ),
    "no x": (
        lambda: scoresde.log_prob(sde(), points(0, 2)),
        ValueError,
        r"no samples: shape \(0, 2\)",
    ),
    "NaN in x": (
        lambda: scoresde.log_prob(sde(), spoiled(math.nan)),
        ValueError,
        "NaN.*1 of 20 rows: 3",
    ),
    "infinite x in loss": (
        lambda: scoresde.loss(sde(), spoiled(math.inf)),
        ValueError,
        "infinite.*rows: 3",
    ),
    "a shape of text": (
        lambda: scoresde.build("vp", shape="2"),
        TypeError,
        "shape is a tuple of integers",
    ),
    "a shape with a zero": (
        lambda: scoresde.build("vp", shape=(0, 3)),
        ValueError,
        "all sizes at least 1",
    ),
    "a shape of floats": (
        lambda: scoresde.build("vp", shape=(2.0,)),
        TypeError,
        "tuple of integers",
    ),
    "a shape of booleans": (
        lambda: scoresde.build("vp", shape=(True,)),
        TypeError,
        "tuple of integers",
    ),
    # data
    "data of another width": (
        lambda: fit(points(20, 3)),
        ValueError,
        r"data has shape \(20, 3\), wanted \(batch, 2\)",
    ),
    "data of another rank": (lambda: fit(points(20)), ValueError, r"\(20,\), wanted \(batch, 2\)"),
    "integer data": (
        lambda: fit(torch.randint(9, (20, 2))),
        TypeError,
        "int64.*floating point.*float()",
    ),
    "integer array": (
        lambda: fit(np.ones((20, 2), dtype=np.int32)),
        TypeError,
        "int32.*floating point",
    ),
    "boolean data": (lambda: fit(points() > 0), TypeError, "bool.*floating point"),
    "complex data": (lambda: fit(points() + 1j), TypeError, "complex.*floating point"),
    "NaN data": (lambda: fit(spoiled(math.nan)), ValueError, "NaN.*1 of 20 rows: 3"),
    "infinite data": (lambda: fit(spoiled(-math.inf)), ValueError, "infinite.*rows: 3"),
    "empty data": (lambda: fit(points(0, 2)), ValueError, r"no samples: shape \(0, 2\)"),
    "an empty list": (lambda: fit([]), ValueError, "no samples|shape"),
    "an empty loader": (
        lambda: fit(DataLoader(TensorDataset(points()), 64, drop_last=True)),
        ValueError,
        "empty",
    ),
    "constant data": (lambda: fit(torch.ones(20, 2)), ValueError, "do not vary: 20 equal samples"),
    "one sample": (lambda: fit(points(1, 2)), ValueError, "do not vary"),
    "text for data": (
        lambda: fit("data.npy"),
        TypeError,
        "data is a tensor, array, Dataset.*got str",
    ),
    "None for data": (lambda: fit(None), TypeError, "got NoneType"),
    "data and labels in a tuple": (
        lambda: fit((points(), torch.zeros(20))),
        TypeError,
        r"tuple.*given=\{'y': y\}",
    ),
    "labels without a name": (
        lambda: fit(TensorDataset(points(), torch.zeros(20))),
        TypeError,
        r"can't be told.*name the labels, \(x, \{'y': labels\}\)",
    ),
    "images for a table": (
        lambda: fit(DataLoader(TensorDataset(points(20, 1, 2)), 5)),
        ValueError,
        r"\(5, 1, 2\), wanted \(batch, 2\)",
    ),
    "an object with another sample": (
        lambda: fit(type("Law", (), {"sample": lambda self, n: points(n, 3)})()),
        ValueError,
        r"\(\d+, 3\), wanted \(batch, 2\)",
    ),
    # conditions
    "given with a loader": (
        lambda: fit(DataLoader(TensorDataset(points()), 5), given={"y": torch.zeros(20)}),
        TypeError,
        r"given= goes with a tensor or array",
    ),
    "given with a density": (
        lambda: fit(mixture(), given={"y": torch.zeros(20)}),
        TypeError,
        "given= goes with a tensor",
    ),
    "given of another length": (
        lambda: fit(points(), classy(), given={"y": torch.zeros(19, dtype=torch.int64)}),
        ValueError,
        r"'y'.*\(19,\).*20 samples",
    ),
    "given of an unknown name": (
        lambda: fit(points(), classy(), given={"label": torch.zeros(20, dtype=torch.int64)}),
        ValueError,
        "takes no condition 'label'.*There are: y",
    ),
    "given that is no mapping": (
        lambda: fit(points(), classy(), given=torch.zeros(20, dtype=torch.int64)),
        TypeError,
        "given",
    ),
    "labels out of range": (
        lambda: fit(points(), classy(), given={"y": torch.full((20,), 3)}),
        ValueError,
        "0 to 2.*3",
    ),
    "labels below range": (
        lambda: scoresde.sample(classy().given(y=-1), 4),
        ValueError,
        "0 to 2.*-1",
    ),
    "labels of floats": (
        lambda: fit(points(), classy(), given={"y": torch.zeros(20)}),
        (TypeError, ValueError),
        "integers.*float32",
    ),  # type: ignore[dict-item]
    "a label of another shape": (
        lambda: scoresde.sample(classy().given(y=torch.zeros(4, 1, dtype=torch.int64)), 4),
        ValueError,
        r"\(n,\).*\(4, 1\)",
    ),
    "labels for a network without": (
        lambda: fit(
            points(),
            scoresde.build("vp", "mlp", shape=(2,)),
            given={"y": torch.zeros(20, dtype=torch.int64)},
        ),
        ValueError,
        "classes",
    ),
    "conditions of another length": (
        lambda: scoresde.sample(classy().given(y=torch.tensor([0, 1, 2])), 4),
        ValueError,
        "3 rows for 4 samples; wanted 1 or 4",
    ),
    "conditions of another length in log_prob": (
        lambda: scoresde.log_prob(classy().given(y=torch.tensor([0, 1, 2])), points(4, 2)),
        ValueError,
        "3 rows for 4 samples",
    ),
    "an unknown condition": (
        lambda: classy().given(yy=1),
        ValueError,
        "takes no condition 'yy'.*'?y'?",
    ),
    "a condition of text": (
        lambda: classy().given(y="cat"),
        TypeError,
        "condition 'y' is a number or a tensor, got 'cat'",
    ),
    "a condition of nothing": (
        lambda: classy().given(y=None),
        TypeError,
        "condition 'y'.*got None; leave it out for none",
    ),
    # numbers
    "n = 0": (lambda: scoresde.sample(sde(), 0), ValueError, "n is at least 1, got 0"),
    "n = -1": (lambda: scoresde.sample(sde(), -1), ValueError, "n is at least 1, got -1"),
    "n = 2.5": (lambda: scoresde.sample(sde(), 2.5), TypeError, "n is an integer, got 2.5"),
    "n = True": (lambda: scoresde.sample(sde(), True), TypeError, "n is an integer, got True"),
    "n = '5'": (lambda: scoresde.sample(sde(), "5"), TypeError, "n is an integer, got '5'"),
    "batch_size = 0": (
        lambda: scoresde.sample(sde(), 5, batch_size=0),
        ValueError,
        "batch_size is at least 1, got 0",
    ),
    "steps = 0": (
        lambda: scoresde.sample(sde(), solver="heun", steps=0),
        ValueError,
        "steps is at least 1, got 0",
    ),
    "steps = 1.5": (
        lambda: scoresde.sample(sde(), solver="heun", steps=1.5),
        TypeError,
        "steps is an integer, got 1.5",
    ),
    "steps = True": (
        lambda: scoresde.sample(sde(), solver="heun", steps=True),
        TypeError,
        "steps is an integer, got True",
    ),
    "steps = 0 of rk45": (
        lambda: scoresde.sample(sde(), steps=0),
        ValueError,
        "steps is at least 1, got 0",
    ),
    "steps = -5 in fit": (
        lambda: fit(points(), steps=-5),
        ValueError,
        "steps is at least 1, got -5",
    ),
    "steps = 1e4 in fit": (
        lambda: fit(points(), steps=1e4),
        TypeError,
        "steps is an integer, got 10000.0",
    ),
    "batch_size = 0 in fit": (
        lambda: fit(points(), batch_size=0),
        ValueError,
        "batch_size is at least 1, got 0",
    ),
    "lr = 0": (lambda: fit(points(), lr=0.0), ValueError, "lr is greater than 0, got 0"),
    "lr = nan": (lambda: fit(points(), lr=math.nan), ValueError, "lr.*got nan"),
    "ema is a decay": (
        lambda: fit(points(), ema=0.999),
        ValueError,
        r"half-life in steps, got 0\.999.*700",
    ),
    "validation without the labels": (
        lambda: fit(
            points(),
            scoresde.build("vp", "mlp", shape=(2,), width=8, classes=3),
            given={"y": torch.zeros(20, dtype=torch.int64)},
            validation=points(),
        ),
        ValueError,
        r"validation has conditions \[\] where training has \['y'\]",
    ),
    "ema < 0": (lambda: fit(points(), ema=-1.0), ValueError, r"ema.*got -1.*half-life"),
    "ema = '0.9'": (lambda: fit(points(), ema="0.9"), TypeError, "ema is a number, got '0.9'"),
    "rtol < 0": (
        lambda: scoresde.sample(sde(), rtol=-1e-3),
        ValueError,
        "rtol is greater than 0, got -0.001; try 1e-5",
    ),
    "rtol = 0": (lambda: scoresde.sample(sde(), rtol=0.0), ValueError, "rtol is greater than 0"),
    "atol = inf": (
        lambda: scoresde.sample(sde(), atol=math.inf),
        ValueError,
        "atol.*finite.*got inf",
    ),
    "rtol = nan": (
        lambda: scoresde.log_prob(sde(), points(), rtol=math.nan),
        ValueError,
        "rtol.*got nan",
    ),
    "rtol = '1e-3'": (
        lambda: scoresde.sample(sde(), rtol="1e-3"),
        TypeError,
        "rtol is a number, got '1e-3'",
    ),
    "max_steps = 0": (
        lambda: scoresde.sample(sde(), max_steps=0),
        ValueError,
        "max_steps is at least 1",
    ),
    "eta = 2": (
        lambda: scoresde.sample(sde(), solver="ddim", eta=2),
        ValueError,
        "eta is between 0 and 1, got 2",
    ),
    "snr < 0": (
        lambda: scoresde.sample(sde(), solver="pc", snr=-0.1),
        ValueError,
        r"snr.*got -0\.1.*0\.16",
    ),
    "snr = '0.1'": (
        lambda: scoresde.sample(sde(), solver="pc", snr="0.1"),
        TypeError,
        "snr is a number",
    ),
    "no corrections": (
        lambda: scoresde.sample(sde(), solver="pc", corrections=0),
        ValueError,
        "corrections is at least 1, got 0",
    ),
    "beta_min > beta_max": (
        lambda: scoresde.VPSDE(beta_min=3.0, beta_max=2.0),
        ValueError,
        r"beta_max of VPSDE is at least 3",
    ),
    "beta_min = 0": (
        lambda: scoresde.SubVPSDE(beta_min=0.0),
        ValueError,
        "beta_min of SubVPSDE is greater than 0",
    ),
    "beta_max = inf": (lambda: scoresde.VPSDE(beta_max=math.inf), ValueError, "beta_max"),
    "beta_min = text": (lambda: scoresde.VPSDE(beta_min="0.1"), TypeError, "beta_min"),
    "sigma_min = 0": (
        lambda: scoresde.VESDE(sigma_min=0.0),
        ValueError,
        "sigma_min of VESDE is greater than 0",
    ),
    "sigma_min > sigma_max": (
        lambda: scoresde.EDM(sigma_min=90.0),
        ValueError,
        "sigma_max of EDM is greater than 90",
    ),
    "rho = 0": (lambda: scoresde.EDM(rho=0.0), ValueError, "rho of EDM is between"),
    "negative width": (
        lambda: scoresde.build("vp", "mlp", shape=(2,), width=-3),
        ValueError,
        "width is at least 1, got -3",
    ),
    "fractional depth": (
        lambda: scoresde.MLP((2,), depth=1.5),
        TypeError,
        "depth is an integer, got 1.5",
    ),
    "no bandwidth": (
        lambda: scoresde.MLP((2,), bandwidth=0.0),
        ValueError,
        "bandwidth is greater than 0, got 0",
    ),
    # what does not go together
    "a stochastic solver in log_prob": (
        lambda: scoresde.log_prob(sde(), points(), solver="em"),
        ValueError,
        "'em' is stochastic; try 'adams'",
    ),
    "pc in log_prob": (
        lambda: scoresde.log_prob(sde(), points(), solver="pc"),
        ValueError,
        "'pc' is stochastic; try 'adams'",
    ),
    "ddim in log_prob": (
        lambda: scoresde.log_prob(sde(), points(), solver="ddim"),
        ValueError,
        "not an ODE method; try 'adams'",
    ),
    "eps with rectified flow": (
        lambda: sde(scoresde.RectifiedFlow(), predict="eps"),
        ValueError,
        "predict='eps'.*RectifiedFlow.*work there: edm, x0, v",
    ),
    "score with rectified flow": (
        lambda: scoresde.build("rectified", shape=(2,), predict="score"),
        ValueError,
        "predict='score'.*work there: edm, x0, v",
    ),
    "eps with cosine": (
        lambda: scoresde.build("cosine", shape=(2,), predict="eps"),
        ValueError,
        "work there: edm, x0, v",
    ),
    "score with cosine": (
        lambda: scoresde.build("cosine", shape=(2,), predict="score"),
        ValueError,
        "work there: edm, x0, v",
    ),
    "ddpm levels of ve": (
        lambda: scoresde.sample(sde(scoresde.VESDE()), solver="ddim", steps=10, spacing="ddpm"),
        ValueError,
        "ddpm.*VPSDE.*try 'time'",
    ),
    "7 of 1000 ddpm levels": (
        lambda: scoresde.sample(sde(), solver="ddim", steps=7, spacing="ddpm"),
        ValueError,
        "divides 1000, got 7",
    ),
    "ddpm levels and times": (
        lambda: scoresde.solve(
            sde(), solver="ddim", steps=10, spacing="ddpm", times=[1.0, 0.5, 0.0]
        ),
        ValueError,
        "times=.*ddpm",
    ),
    "times that increase": (
        lambda: scoresde.solve(sde(), times=[0.0, 0.5, 1.0]),
        ValueError,
        r"decrease from 1.*to 0.*\[0\.0",
    ),
    "times twice the same": (
        lambda: scoresde.solve(sde(), times=[1.0, 0.5, 0.5, 0.0]),
        ValueError,
        "decrease from 1",
    ),
    "times that end early": (
        lambda: scoresde.solve(sde(), times=[1.0, 0.1]),
        ValueError,
        "decrease from 1.*to 0",
    ),
    "times of NaN": (
        lambda: scoresde.solve(sde(), times=[1.0, math.nan, 0.0]),
        ValueError,
        "decrease from 1",
    ),
    "times of text": (
        lambda: scoresde.solve(sde(), times=["a", "b"]),
        (TypeError, ValueError),
        "times",
    ),  # type: ignore[dict-item]
    "a time outside [0, 1]": (lambda: sde().score(points(), 1.5), ValueError, "from 0.*to 1.*1.5"),
    "times of another length": (
        lambda: sde().denoise(points(), torch.zeros(7)),
        ValueError,
        r"t has shape \(7,\).*\(20,\)",
    ),
    "generator = 0": (
        lambda: scoresde.sample(sde(), generator=0),
        TypeError,
        "got int; write seed=0",
    ),
    "generator = 7 in fit": (lambda: fit(points(), generator=7), TypeError, "write seed=7"),
    "a generator of numpy": (
        lambda: scoresde.log_prob(sde(), points(), generator=np.random.default_rng(0)),
        TypeError,
        "generator is a torch.Generator, got Generator|numpy",
    ),
    "a generator in loss": (
        lambda: scoresde.loss(sde(), points(), generator=0),
        TypeError,
        "generator is a torch.Generator",
    ),
    "a prior without log_prob": (
        lambda: scoresde.log_prob(sde(), points(), prior=object()),
        TypeError,
        "prior.*log_prob method, got object",
    ),
    "an unknown predictor": (
        lambda: scoresde.sample(sde(), solver="pc", predictor="ancestrel"),
        ValueError,
        "Did you mean 'ancestral'",
    ),
    "pc as its own predictor": (
        lambda: scoresde.sample(sde(), solver="pc", predictor="pc"),
        ValueError,
        "'pc' can't be a predictor: .*; try 'ancestral'",
    ),
    "the oracle of a checkerboard": (
        lambda: scoresde.oracle(toy.Checkerboard(), scoresde.VPSDE()),
        TypeError,
        "Gaussian mixtures, got Checkerboard",
    ),
    "an oracle without a process": (
        lambda: scoresde.oracle(mixture(), "vp"),
        TypeError,
        "process",
    ),
    "fit of an oracle": (
        lambda: fit(points(), scoresde.oracle(mixture(), scoresde.VPSDE())),
        ValueError,
        "no parameters to train.*oracle",
    ),
    "fit of a conditioned model": (
        lambda: fit(points(), classy().given(y=1)),
        ValueError,
        r"given\(\.\.\.\).*fit\(\.\.\., given=\{'y': y\}\)",
    ),
    # the network
    "a network of another shape": (
        lambda: scoresde.sample(
            ScoreSDE(scoresde.VPSDE(), Says(lambda x: x[:, :1]), shape=(2,)), 3
        ),
        ValueError,
        r"given \(3, 2\) and returned \(3, 1\); it must keep the shape",
    ),
    "a network of another shape in fit": (
        lambda: fit(points(), ScoreSDE(scoresde.VPSDE(), Says(lambda x: x[:, :1]), shape=(2,))),
        ValueError,
        r"returned \(\d+, 1\); it must keep",
    ),
    "a network that returns a tuple": (
        lambda: scoresde.log_prob(
            ScoreSDE(scoresde.VPSDE(), Says(lambda x: (x, x)), shape=(2,)), points()
        ),
        ValueError,
        "returned tuple; it must keep the shape",
    ),
    "a network that returns nothing": (
        lambda: scoresde.sample(ScoreSDE(scoresde.VPSDE(), Says(lambda x: None), shape=(2,))),
        ValueError,
        "returned NoneType",
    ),
    # registering
    "a name that is taken": (
        lambda: scoresde.PROCESSES.register("vp")(type("Mine", (scoresde.VPSDE,), {})),
        ValueError,
        "'vp' is taken by.*another",
    ),
    "a name that is no string": (lambda: scoresde.build(3, shape=(2,)), TypeError, "process"),
    # densities and distances
    "-1 points of a density": (
        lambda: toy.Moons().sample(-1),
        ValueError,
        "n is at least 1, got -1",
    ),
    "a density at a wrong shape": (
        lambda: toy.Moons().log_prob(points(5, 3)),
        ValueError,
        r"\(5, 3\); it wants \(n, 2\)",
    ),
    "negative noise": (
        lambda: toy.Rings(noise=-0.1),
        ValueError,
        r"noise is greater than 0, got -0\.1; try 0\.1",
    ),
    "bits of no dimensions": (
        lambda: scoresde.dequantize.Uniform(4).bits(points(1), 0.0, 0),
        ValueError,
        "dim.*at least 1.*0",
    ),
    # folders
    "load of a missing folder": (
        lambda: scoresde.load("no/such/model"),
        CheckpointError,
        "no model at no/such/model",
    ),
    "load of a number": (lambda: scoresde.load(3), TypeError, "folder is a path, got int"),
    "save to a number": (
        lambda: scoresde.save(classy(), 3),
        TypeError,
        "folder is a path, got int",
    ),
    "save of a process": (
        lambda: scoresde.save(scoresde.VPSDE(), "x"),
        TypeError,
        "save needs a ScoreSDE",
    ),
}
DONE_BY_THE_NETWORK = ("a network", "labels", "a label")  # these are found out by calling it, once


@pytest.mark.parametrize("mistake", list(BAD))
def test_a_bad_call_raises_at_once_and_says_what_to_do(mistake: str) -> None:
    """Within a second, which is generous; no training, no network call; a sentence, not a number
    or a traceback of torch's.
    """
    call, kind, said = BAD[mistake]
    CALLS.clear()
    before = torch.random.get_rng_state()
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind) as caught:
            call()
    seconds = time.perf_counter() - began
    message = str(caught.value)
    assert re.search(said, message, re.DOTALL), message
    assert len(message) > 20
    assert "\n" not in message
    assert seconds < 20, f"{seconds:.2f} s"
    if not mistake.startswith(DONE_BY_THE_NETWORK):
        assert CALLS == []
    assert not isinstance(caught.value, KeyError | AttributeError | IndexError)
    if mistake.startswith(("n =", "steps", "rtol", "solver", "times")):
        assert torch.equal(torch.random.get_rng_state(), before)  # refused before a seed was drawn


def test_there_are_at_least_45() -> None:
    assert len(BAD) >= 45


def test_a_refused_fit_leaves_the_model_untouched() -> None:
    model = classy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    for call in (
        lambda: fit(points(), model, weight="nonsense"),
        lambda: fit(spoiled(math.nan), model),
        lambda: fit(points(), model, given={"y": torch.zeros(19, dtype=torch.int64)}),
        lambda: fit(points(), model, given={"label": torch.zeros(20, dtype=torch.int64)}),
    ):
        with pytest.raises(ValueError):
            call()
        after = model.state_dict()
        assert after.keys() == before.keys()  # an average would have been added
        assert all(torch.equal(value, before[name]) for name, value in after.items())
        assert not model.measured
        assert model.training


def test_constant_features_are_a_warning_that_names_them() -> None:
    x = points()
    x[:, 1] = 4.0
    with pytest.warns(UserWarning, match=r"features \[1\] are constant.*drop them, or add noise"):
        fit(x, steps=1)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "model.json").write_text("{"), "model.json is not JSON"),
        (
            lambda folder: (folder / "model.json").write_text('{"format": "gguf"}'),
            "not a scoresde-2 model.*'gguf'",
        ),
        (lambda folder: next(folder.glob("*.safetensors")).write_bytes(b"PK"), "damaged.*SHA-256"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "can't be read"),
    ],
)
def test_a_corrupt_folder_is_refused(
    damage: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    folder = scoresde.save(classy(), tmp_path / "model")
    damage(folder)
    with pytest.raises(CheckpointError, match=said):
        scoresde.load(folder)


def test_what_can_not_be_saved_says_why(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Counting is not a registered backbone.*BACKBONES\.register"
    ):
        scoresde.save(sde(), tmp_path / "model")
    with pytest.raises(ValueError, match=r"conditions are not saved.*given"):
        scoresde.save(classy().given(y=1), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------- what is no tensor of numbers, at every door

VALUES = torch.zeros(20, 2, dtype=torch.int64)
X = points()


def hostile() -> dict[str, tuple[Any, str]]:
    """Things in the place of 20 samples of shape (2,), and what has to be said of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, about layouts in beta
        return {
            "sparse": (X.to_sparse(), "sparse.*to_dense"),
            "CSR": (X.to_sparse_csr(), "sparse.*to_dense"),
            "nested": (torch.nested.nested_tensor([X[:3], X[:5]]), "nested"),
            "jagged": (torch.nested.nested_tensor([X[:3], X[:5]], layout=torch.jagged), "nested"),
            "meta": (X.to("meta"), "meta device.*no values"),
            "MKL-DNN": (X.to_mkldnn(), "MKL-DNN.*to_dense"),
            "quantized": (
                torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
                "quantized.*dequantize",
            ),
            "float8": (X.to(torch.float8_e4m3fn), "float8.*float()"),
            "the other float8": (X.to(torch.float8_e5m2), "float8.*float()"),
            "four bits": (VALUES.to(torch.uint8).view(torch.uint4), "uint4"),
            "bits": (VALUES.to(torch.uint8).view(torch.bits8), "bits8"),
            "without a shape": (nn.UninitializedParameter(), "no shape yet"),
            "complex": (X + 1j, ""),
            "an array of objects": (np.array([[1.0, None]] * 20, dtype=object), ""),
            "an array of text": (np.array([["a", "b"]] * 20), ""),
            "an array of dates": (np.zeros((20, 2), dtype="M8[s]"), ""),
            "an array of records": (np.zeros((20, 2), dtype=[("a", "f4")]), ""),
            "a complex array": (np.zeros((20, 2), dtype=complex), ""),
            "long doubles": (np.zeros((20, 2), dtype=np.longdouble), ""),
            "masked": (np.ma.masked_array(X.numpy(), mask=X.numpy() > 1), ""),
            "rows of two lengths": ([[1.0, 2.0], [3.0]], ""),
            "rows of text": ([["a", "b"]], ""),
            "an integer beyond 64 bits": ([[10**400, 1]], ""),
            "None": (None, ""),
            "text": ("abc", ""),
            "bytes": (b"abc", ""),
            "a dict": ({}, ""),
            "an object": (object(), ""),
            "a set": ({1.0}, ""),
            "a generator": ((i for i in range(3)), ""),
            "a class": (Tensor, ""),
        }


def straight() -> ScoreSDE:
    return sde(scoresde.RectifiedFlow())


DOORS: dict[str, Callable[[Any], Any]] = {
    "solve": lambda x: scoresde.solve(sde(), start="" if x is None else x),
    "encode": lambda x: scoresde.encode(sde(), x),
    "decode": lambda x: scoresde.decode(sde(), x),
    "log_prob": lambda x: scoresde.log_prob(sde(), x),
    "likelihood": lambda x: scoresde.likelihood(sde(), x, invalid="nan"),
    "elbo": lambda x: scoresde.elbo(sde(), x),
    "vlb": lambda x: scoresde.vlb(sde(), x),
    "bits_per_dim of floats": lambda x: scoresde.bits_per_dim(sde(), x, None),
    "bits_per_dim": lambda x: scoresde.bits_per_dim(sde(), x, scoresde.dequantize.Uniform(4)),
    "loss": lambda x: scoresde.loss(sde(), x),
    "loss under a condition": lambda x: scoresde.loss(sde(), X, y=x),
    "fit": lambda x: fit(x),
    "fit of integers": lambda x: fit(x, transforms="dequantize"),
    "fit with validation": lambda x: fit(X, validation=(x, {})),
    "fit under a condition": lambda x: fit(X, given={"y": x}),
    "evaluate": lambda x: scoresde.evaluate(sde(), x, samples=0, progress=False),
    "evaluate under a condition": lambda x: scoresde.evaluate(
        sde(), X, given={"y": x}, samples=0, progress=False
    ),
    "given": lambda x: sde().given(y=x),
    "score": lambda x: sde().score(x, 0.5),
    "velocity": lambda x: sde().velocity(x, 0.5),
    "drift": lambda x: sde().drift(x, 0.5),
    "denoise": lambda x: sde().denoise(x, 0.5),
    "a time": lambda x: sde().denoise(X, x),
    "standardize": lambda x: sde().standardize(x),
    "a source": lambda x: ScoreSDE(
        scoresde.RectifiedFlow(), Counting(), shape=(2,), source=x if x is not None else ""
    ),
    "Pairs": lambda x: scoresde.Pairs(x, X),
    "latents of Pairs": lambda x: scoresde.Pairs(X, x),
    "conditions of Pairs": lambda x: scoresde.Pairs(X, X, {"y": x}),
    "Distribution": lambda x: scoresde.Distribution(sde()).log_prob(x),
    "straightness": lambda x: scoresde.straightness(straight(), start="" if x is None else x),
    "nfe_for_error": lambda x: scoresde.nfe_for_error(
        straight(), 0.1, start="" if x is None else x
    ),
    "energy_distance": lambda x: scoresde.energy_distance(x, X),
    "energy_test": lambda x: scoresde.energy_test(X, x),
    "mmd": lambda x: scoresde.mmd(x, X),
    "sliced_wasserstein": lambda x: scoresde.sliced_wasserstein(X, x),
    "wasserstein": lambda x: scoresde.wasserstein(x, X),
    "frechet_distance": lambda x: scoresde.frechet_distance(X, x),
    "classifier_test": lambda x: scoresde.classifier_test(x, X),
    "noise_floor": lambda x: scoresde.noise_floor(scoresde.energy_distance, x, 5),
    "a density": lambda x: toy.Moons().log_prob(x),
    "another density": lambda x: toy.Checkerboard().log_prob(x),
    "a density's score": lambda x: toy.Moons().score(x),
    "a density's denoise": lambda x: toy.Moons().denoise(x, 0.5, 0.5),
    "means of a mixture": lambda x: toy.GaussianMixture(x, 1.0),
    "stds of a mixture": lambda x: toy.GaussianMixture(X, x),
    "weights of a mixture": lambda x: toy.GaussianMixture(X, 1.0, "" if x is None else x),
    "noisy": lambda x: scoresde.dequantize.Uniform(4).noisy(x),
    "values": lambda x: scoresde.dequantize.Uniform(4).values(x),
    "bits": lambda x: scoresde.dequantize.Uniform(4).bits(x, 0.0, 2),
    "a dataset": lambda x: scoresde.dequantize.Uniform(4).dataset(x),
    "labels of a dataset": lambda x: scoresde.dequantize.Uniform(4).dataset(VALUES, y=x),
    "Dequantize": lambda x: scoresde.transforms.Dequantize(4)(x),
    "Flip": lambda x: scoresde.transforms.Flip()(x),
    "apply": lambda x: scoresde.transforms.apply(("dequantize",), x),
}


def refused(call: Call, where: str, words: str = "") -> None:
    """It raises TypeError or ValueError from a line of ours, in one short sentence, without a call
    of the network.
    """
    CALLS.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
    message, last = str(caught.value), caught.traceback[-1].path
    assert Path(last).is_relative_to(Path(scoresde.__file__).parent), f"{where}: {last}: {message}"
    assert "\n" not in message, f"{where}: {message}"
    assert 20 < len(message) < 300, f"{where}: {message}"
    assert re.search(words, message), f"{where}: {message}"
    assert CALLS == [], where


@pytest.mark.parametrize("door", list(DOORS))
def test_what_is_no_tensor_of_numbers_is_refused_at_every_door(door: str) -> None:
    for kind, (value, words) in hostile().items():
        refused(lambda value=value: DOORS[door](value), f"{door}, {kind}", words)


def test_arrays_of_any_order_and_read_only_ones_are_taken_without_a_warning() -> None:
    """Big-endian, backwards, frozen, masked nowhere, half precision: log p is that of the same
    tensor.
    """
    model, x = scoresde.oracle(mixture(), scoresde.VPSDE()), X[:5].double().numpy()
    frozen = x.copy()
    frozen.flags.writeable = False
    wanted = scoresde.log_prob(model, torch.from_numpy(x), solver="heun", steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (
            x.astype(">f8"),
            x[::-1].copy()[::-1],
            frozen,
            np.ma.masked_array(x),
            x.tolist(),
        ):
            found = scoresde.log_prob(model, same, solver="heun", steps=5)
            torch.testing.assert_close(found.to(wanted), wanted, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- numbers and sizes

NUMBERLIKE: dict[str, Any] = {
    "10^400": 10**400,
    "-10^400": -(10**400),
    "10^5000": 10**5000,
    "2^63": 2**63,
    "True": True,
    "numpy's True": np.bool_(True),
    "NaN": math.nan,
    "inf": math.inf,
    "a fraction": Fraction(7, 2),
    "a decimal": Decimal(5),
    "text": "5",
    "a tensor": torch.zeros(50, 50),
    "a list": [5],
    "complex": 5j,
    "None of ours": type("Evil", (), {"__repr__": lambda self: 1 / 0})(),
}
ABSURD = 10**12
SIZES: dict[str, Callable[[Any], Any]] = {
    "n of sample": lambda n: scoresde.sample(sde(), n),
    "n of solve": lambda n: scoresde.solve(sde(), n),
    "n of sample_and_log_prob": lambda n: scoresde.sample_and_log_prob(sde(), n),
    "n of reflow": lambda n: scoresde.reflow(straight(), n, progress=False),
    "n of reflow to a disk": lambda n: scoresde.reflow(
        straight(), n, out="nowhere/pairs", progress=False
    ),
    "n of straightness": lambda n: scoresde.straightness(straight(), n),
    "n of nfe_for_error": lambda n: scoresde.nfe_for_error(straight(), 0.1, n=n),
    "n of a density": lambda n: toy.Moons().sample(n),
    "n of a dataset": lambda n: scoresde.dequantize.Uniform(4).dataset(VALUES).sample(n),
    "n of noise_floor": lambda n: scoresde.noise_floor(scoresde.energy_distance, toy.Moons(), n),
    "a size of sample_shape": lambda n: scoresde.Distribution(sde()).sample((n,)),
    "steps": lambda n: scoresde.sample(sde(), solver="ddim", steps=n),
    "steps of log_prob": lambda n: scoresde.log_prob(sde(), X, steps=n),
    "steps of vlb": lambda n: scoresde.vlb(sde(), X, steps=n),
    "steps of fit": lambda n: fit(X, steps=n),
    "steps of classifier_test": lambda n: scoresde.classifier_test(X, X, steps=n),
    "width of classifier_test": lambda n: scoresde.classifier_test(X, X, width=n),
    "most": lambda n: scoresde.nfe_for_error(straight(), 1e-3, most=n),
    "panels": lambda n: scoresde.straightness(straight(), 10, panels=n),
    "draws of elbo": lambda n: scoresde.elbo(sde(), X, draws=n),
    "draws of vlb": lambda n: scoresde.vlb(sde(), X, draws=n),
    "draws of bits_per_dim": lambda n: scoresde.bits_per_dim(
        sde(), VALUES, scoresde.dequantize.Uniform(4), draws=n
    ),
    "draws of evaluate": lambda n: scoresde.evaluate(
        sde(), VALUES, levels=4, draws=n, progress=False
    ),
    "samples": lambda n: scoresde.evaluate(sde(), X, n=0, samples=n, progress=False),
    "fid": lambda n: scoresde.evaluate(
        sde(), X, n=0, samples=0, fid=n, features=None, progress=False
    ),
    "probes": lambda n: scoresde.log_prob(sde(), X, trace="hutchinson_gaussian", probes=n),
    "permutations": lambda n: scoresde.energy_test(X, X, permutations=n),
    "projections": lambda n: scoresde.sliced_wasserstein(X, X, projections=n),
    "repeats": lambda n: scoresde.noise_floor(scoresde.energy_distance, toy.Moons(), 5, repeats=n),
    "repeats of restart": lambda n: scoresde.sample(sde(), solver="restart", repeats=n),
    "corrections": lambda n: scoresde.sample(sde(), solver="pc", corrections=n),
    "size of a coupling": lambda n: scoresde.MinibatchOT(size="" if n is None else n),
    "batch_size of fit": lambda n: fit(X, batch_size=n),
    "snapshots": lambda n: fit(X, ema=scoresde.Averaging(snapshots=n), checkpoints="nowhere/run"),
    "shape": lambda n: scoresde.build("vp", shape=(n,)),
    "width": lambda n: scoresde.build("vp", shape=(2,), width=n),
    "depth": lambda n: scoresde.build("vp", shape=(2,), depth=n),
    "classes": lambda n: scoresde.build("vp", shape=(2,), classes=n),
}


@pytest.mark.parametrize("size", list(SIZES))
def test_sizes_that_are_none_or_absurd_are_refused_before_the_work(
    size: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, value in NUMBERLIKE.items():
        refused(lambda value=value: SIZES[size](value), f"{size}, {kind}")
    estimate = "at most" if size == "snapshots" else r"take at least [\d.,e+]+ (TiB|EiB|days)"
    refused(lambda: SIZES[size](ABSURD), size, estimate)
    assert list(tmp_path.iterdir()) == []


def test_what_a_machine_can_do_is_not_refused() -> None:
    """Estimates are lower bounds: the memory itself passes, twice that does not, and a million
    steps are no matter.
    """
    here = device_memory()
    check_budget("these", here)
    with pytest.raises(
        ValueError,
        match=r"these take at least .*iB of memory, and this machine has .*iB; take fewer",
    ):
        check_budget("these", 2 * here)
    for calls in (10**6, 10**9):
        check_budget("steps", calls=calls)
    with pytest.raises(ValueError, match="steps take at least 116 days"):
        check_budget("steps", calls=10**12)
    assert next(iter(batch_ranges(sde(), 10**7, None))) == (0, 8192)
    assert next(iter(batch_ranges(sde(), 10, 10**12))) == (
        0,
        10,
    )  # a batch is never larger than what there is
    assert len(plan(sde(), "ddim", 10**5, None, {}).times) == 10**5 + 1


def test_numpys_numbers_count_as_pythons() -> None:
    model = scoresde.oracle(mixture(), scoresde.VPSDE())
    for kind in (np.uint8, np.int64):
        found = scoresde.solve(
            model, kind(9), solver="pc", steps=kind(150), corrections=kind(2), batch_size=kind(7)
        )
        assert found.x.shape == (2, 9, 2)
        assert int(found.nfe[0]) == 150 + 149 * 2  # bytes would have wrapped


@pytest.mark.parametrize(
    "t", [10**400, math.nan, math.inf, -0.1, True, "1", 1j, None, torch.ones(20) * 1j]
)
def test_times_that_are_none(t: Any) -> None:
    refused(lambda: sde().score(X, t), f"t = {type(t)}")


def test_times_keep_all_digits_of_a_float() -> None:
    model = scoresde.oracle(mixture(), scoresde.VPSDE()).double()
    x, t = X.double(), 0.1
    assert torch.equal(model.score(x, t), model.score(x, torch.tensor(t, dtype=torch.float64)))
    assert float(scoresde.solve(model, times=[1.0, t, 0.0]).t[1]) == t


# ---------------------------------------------------------------- generators, paths, keywords

GENERATED: dict[str, Callable[[Any], Any]] = {
    "sample": lambda g: scoresde.sample(sde(), generator=g),
    "solve": lambda g: scoresde.solve(sde(), generator=g),
    "log_prob": lambda g: scoresde.log_prob(sde(), X, generator=g),
    "sample_and_log_prob": lambda g: scoresde.sample_and_log_prob(sde(), generator=g),
    "elbo": lambda g: scoresde.elbo(sde(), X, generator=g),
    "vlb": lambda g: scoresde.vlb(sde(), X, generator=g),
    "bits_per_dim": lambda g: scoresde.bits_per_dim(sde(), X, None, generator=g),
    "loss": lambda g: scoresde.loss(sde(), X, generator=g),
    "fit": lambda g: fit(X, generator=g),
    "reflow": lambda g: scoresde.reflow(straight(), 5, generator=g),
    "straightness": lambda g: scoresde.straightness(straight(), generator=g),
    "nfe_for_error": lambda g: scoresde.nfe_for_error(straight(), 0.1, generator=g),
    "a mixture": lambda g: toy.EightGaussians().sample(5, g),
    "a curve": lambda g: toy.Moons().sample(5, g),
    "a checkerboard": lambda g: toy.Checkerboard().sample(5, generator=g),
    "energy_test": lambda g: scoresde.energy_test(X, X, generator=g),
    "sliced_wasserstein": lambda g: scoresde.sliced_wasserstein(X, X, generator=g),
    "classifier_test": lambda g: scoresde.classifier_test(X, X, generator=g),
    "noise_floor": lambda g: scoresde.noise_floor(
        scoresde.energy_distance, toy.Moons(), 5, generator=g
    ),
    "noisy": lambda g: scoresde.dequantize.Uniform(4).noisy(VALUES, g),
    "a dataset": lambda g: scoresde.dequantize.Uniform(4).dataset(VALUES).sample(3, g),
    "fitted": lambda g: scoresde.dequantize.TruncatedNormal.fitted(sde(), VALUES, 4, generator=g),
    "Flip": lambda g: scoresde.transforms.Flip()(torch.zeros(2, 1, 2, 2), g),
    "Dequantize": lambda g: scoresde.transforms.Dequantize(4)(VALUES, g),
    "apply": lambda g: scoresde.transforms.apply(["dequantize"], VALUES, g),
}


@pytest.mark.parametrize("door", list(GENERATED))
def test_what_is_no_generator_is_refused_at_every_door(door: str) -> None:
    for wrong in (
        0,
        10**400,
        -1,
        True,
        "g",
        np.random.default_rng(0),
        torch.tensor(0),
        torch.Generator,
        [0],
    ):
        refused(
            lambda wrong=wrong: GENERATED[door](wrong),
            f"{door}, {type(wrong)}",
            "generator is a torch.Generator, got",
        )


PATHS: dict[str, Callable[[Any], Any]] = {
    "save": lambda p: scoresde.save(classy(), p),
    "load": lambda p: scoresde.load(p),
    "fit": lambda p: fit(X, checkpoints=p),
    "fit, resumed": lambda p: fit(X, checkpoints=scoresde.Checkpoints(p, resume=True)),
    "reflow": lambda p: scoresde.reflow(straight(), 5, out=p, progress=False),
    "evaluate": lambda p: scoresde.evaluate(sde(), X, n=0, samples=0, out=p, progress=False),
    "Pairs.open": lambda p: scoresde.Pairs.open(p),
    "posthoc_ema": lambda p: scoresde.posthoc_ema(p),
}


@pytest.mark.parametrize("door", list(PATHS))
def test_what_is_no_path_is_refused_at_every_door(
    door: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    in_bytes = type("InBytes", (), {"__fspath__": lambda self: b"abc"})()
    wrong = {
        "bytes": (b"abc", in_bytes),
        "NUL": ("a\0b", Path("a\0b")),
        "'.' is this one": ("",),
        "255": ("x" * 300,),
    }
    wrong["is a path, got"] = (3, 1.5, True, ["a"], {})
    for words, paths in wrong.items():
        for path in paths:
            refused(lambda path=path: PATHS[door](path), f"{door}, {path!r}", words)
    assert list(tmp_path.iterdir()) == []


FOREIGN: dict[str, tuple[Call, str]] = {
    "random_state of sample": (
        lambda: scoresde.sample(sde(), 3, random_state=0),
        "write seed=, an integer",
    ),
    "device of sample": (lambda: scoresde.sample(sde(), 3, device="cpu"), r"sde\.to\(device\)"),
    "verbose of sample": (
        lambda: scoresde.sample(sde(), 3, verbose=True),
        "write progress=, True or False",
    ),
    "seed of encode": (lambda: scoresde.encode(sde(), X, seed=0), "functions that draw"),
    "num_steps of solve": (lambda: scoresde.solve(sde(), 3, num_steps=5), "write steps="),
    "method of encode": (lambda: scoresde.encode(sde(), X, method="rk45"), "write solver="),
    "dtype of decode": (
        lambda: scoresde.decode(sde(), X, dtype=torch.float64),
        r"sde\.double\(\)",
    ),
    "tol of log_prob": (lambda: scoresde.log_prob(sde(), X, tol=1e-3), "rtol= and atol="),
    "rng of likelihood": (lambda: scoresde.likelihood(sde(), X, rng=0), "write seed="),
    "random_state of sample_and_log_prob": (
        lambda: scoresde.sample_and_log_prob(sde(), random_state=0),
        "write seed=",
    ),
    "device of reflow": (
        lambda: scoresde.reflow(straight(), 3, device="cpu"),
        r"sde\.to\(device\)",
    ),
    "device of evaluate": (
        lambda: scoresde.evaluate(sde(), X, n=0, samples=0, device="cpu"),
        r"sde\.to\(device\)",
    ),
    "rng of straightness": (lambda: scoresde.straightness(straight(), rng=0), "write seed="),
    "random_state of nfe_for_error": (
        lambda: scoresde.nfe_for_error(straight(), 0.1, random_state=0),
        "write seed=",
    ),
    "y of Distribution": (lambda: scoresde.Distribution(sde(), y=1), r"sde\.given\(y=\.\.\.\)"),
    "random_state beside a solver": (
        lambda: scoresde.sample(sde(), solver=scoresde.SOLVERS.build("ddim"), random_state=0),
        "write seed=",
    ),
    "random_state of fit": (lambda: fit(X, random_state=0), "write seed="),
    "epochs of fit": (lambda: fit(X, epochs=3), r"steps=.*len\(data\)"),
    "a typo of fit": (
        lambda: fit(X, bach_size=3),
        "no argument 'bach_size'. Did you mean 'batch_size'",
    ),
    "random_state of elbo": (lambda: scoresde.elbo(sde(), X, random_state=0), "write seed="),
    "device of vlb": (lambda: scoresde.vlb(sde(), X, device="cpu"), r"sde\.to\(device\)"),
    "rng of energy_test": (lambda: scoresde.energy_test(X, X, rng=0), "write seed="),
    "random_state of classifier_test": (
        lambda: scoresde.classifier_test(X, X, random_state=0),
        "write seed=",
    ),
    "random_state of a density": (lambda: toy.Moons().sample(3, random_state=0), "write seed="),
}


@pytest.mark.parametrize("call", list(FOREIGN))
def test_keywords_of_other_libraries_are_answered_with_what_to_write(call: str) -> None:
    refused(FOREIGN[call][0], call, FOREIGN[call][1])
