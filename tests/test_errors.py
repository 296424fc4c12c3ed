"""Bad calls: each ends at once, before any network call, in a sentence on what came, what was wanted, what to try."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable
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


def sde(process: scoresde.Process | None = None, shape: tuple[int, ...] = (2,), **options: Any) -> ScoreSDE:
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
    "sample of a process class": (lambda: scoresde.sample(scoresde.VPSDE), TypeError, "sample needs a ScoreSDE.*VPSDE.*build"),
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
    "fit of a process": (lambda: scoresde.fit(scoresde.VESDE(), points()), TypeError, r"fit needs a ScoreSDE.*VESDE.*build"),
    "fit of a process class": (lambda: scoresde.fit(scoresde.VESDE, points()), TypeError, "fit needs a ScoreSDE.*VESDE.*build"),
    "loss of a process": (lambda: scoresde.loss(scoresde.VESDE(), points()), TypeError, "loss needs a ScoreSDE"),
    "sample of a network": (lambda: scoresde.sample(nn.Linear(2, 2)), TypeError, "sample needs a ScoreSDE, got Linear.*build"),
    "sample of a name": (lambda: scoresde.sample("vp"), TypeError, "got str.*build.*load"),
    "a process class in ScoreSDE": (
        lambda: ScoreSDE(scoresde.VPSDE, Counting(), shape=(2,)),
        TypeError,
        r"process is a scoresde\.Process.*write VPSDE\(\)",
    ),
    "a name in ScoreSDE": (lambda: ScoreSDE("vp", Counting(), shape=(2,)), TypeError, "'vp'.*build takes names"),
    "a function for a network": (
        lambda: ScoreSDE(scoresde.VPSDE(), lambda x, t: x, shape=(2,)),
        TypeError,
        "net is an nn.Module, got function",
    ),
    # names with a typo
    "process with a typo": (lambda: scoresde.build("vpe", shape=(2,)), ValueError, "unknown process 'vpe'.*Did you mean 'v"),
    "network with a typo": (lambda: scoresde.build("vp", "mpl", shape=(2,)), ValueError, "'mpl'.*Did you mean 'mlp'"),
    "solver with a typo": (lambda: scoresde.sample(sde(), solver="rk_45"), ValueError, "unknown solver.*Did you mean 'rk45'"),
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
    "weight with a typo": (lambda: fit(points(), weight="likelyhood"), ValueError, "unknown weight.*Did you mean 'likelihood'"),
    "noise with a typo": (lambda: fit(points(), noise="unifrom"), ValueError, "unknown noise.*Did you mean 'uniform'"),
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
    "sees with a typo": (lambda: sde(sees="row"), ValueError, "unknown sees.*Did you mean 'raw'"),
    "density with a typo": (
        lambda: __import__("scoresde.demo", fromlist=["demo"]).demo("checkerbord"),
        ValueError,
        "unknown density.*Did you mean 'checkerboard'",
    ),
    "a solver that is a class": (
        lambda: scoresde.sample(sde(), solver=scoresde.RungeKutta),
        TypeError,
        "solver is a name or a Solver object, got",
    ),
    "a solver that is a number": (lambda: scoresde.sample(sde(), solver=45), TypeError, "solver is a name or a Solver"),
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
    "rtol with euler": (lambda: scoresde.sample(sde(), solver="euler", rtol=1e-3), ValueError, "no option 'rtol'|no effect"),
    "rtol with steps": (lambda: scoresde.sample(sde(), solver="rk45", steps=5, rtol=1e-3), ValueError, "rtol.*no effect.*steps"),
    "max_steps with steps": (
        lambda: scoresde.log_prob(sde(), points(), steps=5, max_steps=10),
        ValueError,
        "max_steps.*no effect.*steps",
    ),
    "eta with ancestral": (lambda: scoresde.sample(sde(), solver="ancestral", eta=0.5), ValueError, "no option 'eta'"),
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
    "x without a batch": (lambda: scoresde.log_prob(sde(), points(2)), ValueError, r"\(2,\), wanted \(batch, 2\)"),
    "x of another rank": (lambda: scoresde.log_prob(sde(), points(5, 1, 2)), ValueError, r"\(5, 1, 2\), wanted \(batch, 2\)"),
    "images as rows": (
        lambda: scoresde.log_prob(sde(shape=(1, 4, 4)), points(5, 16)),
        ValueError,
        r"\(5, 16\), wanted \(batch, 1, 4, 4\)",
    ),
    "a number for x": (lambda: scoresde.log_prob(sde(), 3.0), (TypeError, ValueError), "x"),  # type: ignore[dict-item]
    "text for x": (lambda: scoresde.log_prob(sde(), "x.npy"), TypeError, "x is a tensor or array, got str"),
    "integer x": (lambda: scoresde.log_prob(sde(), torch.zeros(5, 2, dtype=torch.int64)), TypeError, "int64.*floating.*float()"),
    "no x": (lambda: scoresde.log_prob(sde(), points(0, 2)), ValueError, r"no samples: shape \(0, 2\)"),
    "NaN in x": (lambda: scoresde.log_prob(sde(), spoiled(math.nan)), ValueError, "NaN.*1 of 20 rows: 3"),
    "infinite x in loss": (lambda: scoresde.loss(sde(), spoiled(math.inf)), ValueError, "infinite.*rows: 3"),
    "a shape of text": (lambda: scoresde.build("vp", shape="2"), TypeError, "shape is a tuple of integers"),
    "a shape with a zero": (lambda: scoresde.build("vp", shape=(0, 3)), ValueError, "all sizes at least 1"),
    "a shape of floats": (lambda: scoresde.build("vp", shape=(2.0,)), TypeError, "tuple of integers"),
    "a shape of booleans": (lambda: scoresde.build("vp", shape=(True,)), TypeError, "tuple of integers"),
    # data
    "data of another width": (lambda: fit(points(20, 3)), ValueError, r"data has shape \(20, 3\), wanted \(batch, 2\)"),
    "data of another rank": (lambda: fit(points(20)), ValueError, r"\(20,\), wanted \(batch, 2\)"),
    "integer data": (lambda: fit(torch.randint(9, (20, 2))), TypeError, "int64.*floating point.*float()"),
    "integer array": (lambda: fit(np.ones((20, 2), dtype=np.int32)), TypeError, "int32.*floating point"),
    "boolean data": (lambda: fit(points() > 0), TypeError, "bool.*floating point"),
    "complex data": (lambda: fit(points() + 1j), TypeError, "complex.*floating point"),
    "NaN data": (lambda: fit(spoiled(math.nan)), ValueError, "NaN.*1 of 20 rows: 3"),
    "infinite data": (lambda: fit(spoiled(-math.inf)), ValueError, "infinite.*rows: 3"),
    "empty data": (lambda: fit(points(0, 2)), ValueError, r"no samples: shape \(0, 2\)"),
    "an empty list": (lambda: fit([]), ValueError, "no samples|shape"),
    "an empty loader": (lambda: fit(DataLoader(TensorDataset(points()), 64, drop_last=True)), ValueError, "empty"),
    "constant data": (lambda: fit(torch.ones(20, 2)), ValueError, "do not vary: 20 equal samples"),
    "one sample": (lambda: fit(points(1, 2)), ValueError, "do not vary"),
    "text for data": (lambda: fit("data.npy"), TypeError, "data is a tensor, array, Dataset.*got str"),
    "None for data": (lambda: fit(None), TypeError, "got NoneType"),
    "data and labels in a tuple": (lambda: fit((points(), torch.zeros(20))), TypeError, r"tuple.*given=\{'y': y\}"),
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
    "given with a density": (lambda: fit(mixture(), given={"y": torch.zeros(20)}), TypeError, "given= goes with a tensor"),
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
    "given that is no mapping": (lambda: fit(points(), classy(), given=torch.zeros(20, dtype=torch.int64)), TypeError, "given"),
    "labels out of range": (lambda: fit(points(), classy(), given={"y": torch.full((20,), 3)}), ValueError, "0 to 2.*3"),
    "labels below range": (lambda: scoresde.sample(classy().given(y=-1), 4), ValueError, "0 to 2.*-1"),
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
        lambda: fit(points(), scoresde.build("vp", "mlp", shape=(2,)), given={"y": torch.zeros(20, dtype=torch.int64)}),
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
    "an unknown condition": (lambda: classy().given(yy=1), ValueError, "takes no condition 'yy'.*'?y'?"),
    "a condition of text": (lambda: classy().given(y="cat"), TypeError, "condition 'y' is a number or a tensor, got 'cat'"),
    "a condition of nothing": (lambda: classy().given(y=None), TypeError, "condition 'y'.*got None; leave it out for none"),
    # numbers
    "n = 0": (lambda: scoresde.sample(sde(), 0), ValueError, "n is at least 1, got 0"),
    "n = -1": (lambda: scoresde.sample(sde(), -1), ValueError, "n is at least 1, got -1"),
    "n = 2.5": (lambda: scoresde.sample(sde(), 2.5), TypeError, "n is an integer, got 2.5"),
    "n = True": (lambda: scoresde.sample(sde(), True), TypeError, "n is an integer, got True"),
    "n = '5'": (lambda: scoresde.sample(sde(), "5"), TypeError, "n is an integer, got '5'"),
    "batch_size = 0": (lambda: scoresde.sample(sde(), 5, batch_size=0), ValueError, "batch_size is at least 1, got 0"),
    "steps = 0": (lambda: scoresde.sample(sde(), solver="heun", steps=0), ValueError, "steps is at least 1, got 0"),
    "steps = 1.5": (lambda: scoresde.sample(sde(), solver="heun", steps=1.5), TypeError, "steps is an integer, got 1.5"),
    "steps = True": (lambda: scoresde.sample(sde(), solver="heun", steps=True), TypeError, "steps is an integer, got True"),
    "steps = 0 of rk45": (lambda: scoresde.sample(sde(), steps=0), ValueError, "steps is at least 1, got 0"),
    "steps = -5 in fit": (lambda: fit(points(), steps=-5), ValueError, "steps is at least 1, got -5"),
    "steps = 1e4 in fit": (lambda: fit(points(), steps=1e4), TypeError, "steps is an integer, got 10000.0"),
    "batch_size = 0 in fit": (lambda: fit(points(), batch_size=0), ValueError, "batch_size is at least 1, got 0"),
    "lr = 0": (lambda: fit(points(), lr=0.0), ValueError, "lr is greater than 0, got 0"),
    "lr = nan": (lambda: fit(points(), lr=math.nan), ValueError, "lr.*got nan"),
    "ema is a decay": (lambda: fit(points(), ema=0.999), ValueError, r"half-life in steps, got 0\.999.*700"),
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
    "rtol < 0": (lambda: scoresde.sample(sde(), rtol=-1e-3), ValueError, "rtol is greater than 0, got -0.001; try 1e-5"),
    "rtol = 0": (lambda: scoresde.sample(sde(), rtol=0.0), ValueError, "rtol is greater than 0"),
    "atol = inf": (lambda: scoresde.sample(sde(), atol=math.inf), ValueError, "atol.*finite.*got inf"),
    "rtol = nan": (lambda: scoresde.log_prob(sde(), points(), rtol=math.nan), ValueError, "rtol.*got nan"),
    "rtol = '1e-3'": (lambda: scoresde.sample(sde(), rtol="1e-3"), TypeError, "rtol is a number, got '1e-3'"),
    "max_steps = 0": (lambda: scoresde.sample(sde(), max_steps=0), ValueError, "max_steps is at least 1"),
    "eta = 2": (lambda: scoresde.sample(sde(), solver="ddim", eta=2), ValueError, "eta is between 0 and 1, got 2"),
    "snr < 0": (lambda: scoresde.sample(sde(), solver="pc", snr=-0.1), ValueError, r"snr.*got -0\.1.*0\.16"),
    "snr = '0.1'": (lambda: scoresde.sample(sde(), solver="pc", snr="0.1"), TypeError, "snr is a number"),
    "no corrections": (
        lambda: scoresde.sample(sde(), solver="pc", corrections=0),
        ValueError,
        "corrections is at least 1, got 0",
    ),
    "beta_min > beta_max": (lambda: scoresde.VPSDE(beta_min=3.0, beta_max=2.0), ValueError, r"beta_max of VPSDE is at least 3"),
    "beta_min = 0": (lambda: scoresde.SubVPSDE(beta_min=0.0), ValueError, "beta_min of SubVPSDE is greater than 0"),
    "beta_max = inf": (lambda: scoresde.VPSDE(beta_max=math.inf), ValueError, "beta_max"),
    "beta_min = text": (lambda: scoresde.VPSDE(beta_min="0.1"), TypeError, "beta_min"),
    "sigma_min = 0": (lambda: scoresde.VESDE(sigma_min=0.0), ValueError, "sigma_min of VESDE is greater than 0"),
    "sigma_min > sigma_max": (lambda: scoresde.EDM(sigma_min=90.0), ValueError, "sigma_max of EDM is greater than 90"),
    "rho = 0": (lambda: scoresde.EDM(rho=0.0), ValueError, "rho of EDM is between"),
    "negative width": (lambda: scoresde.build("vp", "mlp", shape=(2,), width=-3), ValueError, "width is at least 1, got -3"),
    "fractional depth": (lambda: scoresde.MLP((2,), depth=1.5), TypeError, "depth is an integer, got 1.5"),
    "no bandwidth": (lambda: scoresde.MLP((2,), bandwidth=0.0), ValueError, "bandwidth is greater than 0, got 0"),
    # what does not go together
    "a stochastic solver in log_prob": (
        lambda: scoresde.log_prob(sde(), points(), solver="em"),
        ValueError,
        "'em' is stochastic; try 'adams'",
    ),
    "pc in log_prob": (lambda: scoresde.log_prob(sde(), points(), solver="pc"), ValueError, "'pc' is stochastic; try 'adams'"),
    "ddim in log_prob": (lambda: scoresde.log_prob(sde(), points(), solver="ddim"), ValueError, "not an ODE method; try 'adams'"),
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
    "eps with cosine": (lambda: scoresde.build("cosine", shape=(2,), predict="eps"), ValueError, "work there: edm, x0, v"),
    "score with cosine": (lambda: scoresde.build("cosine", shape=(2,), predict="score"), ValueError, "work there: edm, x0, v"),
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
        lambda: scoresde.solve(sde(), solver="ddim", steps=10, spacing="ddpm", times=[1.0, 0.5, 0.0]),
        ValueError,
        "times=.*ddpm",
    ),
    "times that increase": (lambda: scoresde.solve(sde(), times=[0.0, 0.5, 1.0]), ValueError, r"decrease from 1.*to 0.*\[0\.0"),
    "times twice the same": (lambda: scoresde.solve(sde(), times=[1.0, 0.5, 0.5, 0.0]), ValueError, "decrease from 1"),
    "times that end early": (lambda: scoresde.solve(sde(), times=[1.0, 0.1]), ValueError, "decrease from 1.*to 0"),
    "times of NaN": (lambda: scoresde.solve(sde(), times=[1.0, math.nan, 0.0]), ValueError, "decrease from 1"),
    "times of text": (lambda: scoresde.solve(sde(), times=["a", "b"]), (TypeError, ValueError), "times"),  # type: ignore[dict-item]
    "a time outside [0, 1]": (lambda: sde().score(points(), 1.5), ValueError, "from 0.*to 1.*1.5"),
    "times of another length": (lambda: sde().denoise(points(), torch.zeros(7)), ValueError, r"t has shape \(7,\).*\(20,\)"),
    "generator = 0": (
        lambda: scoresde.sample(sde(), generator=0),
        TypeError,
        r"got int; write torch.Generator\(\).manual_seed\(0\)",
    ),
    "generator = 7 in fit": (lambda: fit(points(), generator=7), TypeError, r"manual_seed\(7\)"),
    "a generator of numpy": (
        lambda: scoresde.log_prob(sde(), points(), generator=np.random.default_rng(0)),
        TypeError,
        "generator is a torch.Generator, got Generator|numpy",
    ),
    "a generator in loss": (lambda: scoresde.loss(sde(), points(), generator=0), TypeError, "generator is a torch.Generator"),
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
    "an oracle without a process": (lambda: scoresde.oracle(mixture(), "vp"), TypeError, "process"),
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
        lambda: scoresde.sample(ScoreSDE(scoresde.VPSDE(), Says(lambda x: x[:, :1]), shape=(2,)), 3),
        ValueError,
        r"given \(3, 2\) and returned \(3, 1\); it must keep the shape",
    ),
    "a network of another shape in fit": (
        lambda: fit(points(), ScoreSDE(scoresde.VPSDE(), Says(lambda x: x[:, :1]), shape=(2,))),
        ValueError,
        r"returned \(\d+, 1\); it must keep",
    ),
    "a network that returns a tuple": (
        lambda: scoresde.log_prob(ScoreSDE(scoresde.VPSDE(), Says(lambda x: (x, x)), shape=(2,)), points()),
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
    "-1 points of a density": (lambda: toy.Moons().sample(-1), ValueError, "n = -1.*at least 1"),
    "a density at a wrong shape": (lambda: toy.Moons().log_prob(points(5, 3)), ValueError, r"\(5, 3\); it wants \(n, 2\)"),
    "negative noise": (lambda: toy.Rings(noise=-0.1), ValueError, r"noise is greater than 0, got -0\.1; try 0\.1"),
    "bits of no dimensions": (lambda: scoresde.dequantize.Uniform(4).bits(points(1), 0.0, 0), ValueError, "dim.*at least 1.*0"),
    # folders
    "load of a missing folder": (lambda: scoresde.load("no/such/model"), CheckpointError, "no model at no/such/model"),
    "load of a number": (lambda: scoresde.load(3), TypeError, "folder is a path, got int"),
    "save to a number": (lambda: scoresde.save(classy(), 3), TypeError, "folder is a path, got int"),
    "save of a process": (lambda: scoresde.save(scoresde.VPSDE(), "x"), TypeError, "save needs a ScoreSDE"),
}
DONE_BY_THE_NETWORK = ("a network", "labels", "a label")  # these are found out by calling it, once


@pytest.mark.parametrize("mistake", list(BAD))
def test_a_bad_call_raises_at_once_and_says_what_to_do(mistake: str) -> None:
    """Within a second, which is generous; no training, no network call; a sentence, not a number or a traceback of torch's."""
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
    with pytest.warns(UserWarning, match=r"features \[1\] are constant.*drop them or add noise"):
        fit(x, steps=1)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "model.json").write_text("{"), "model.json is not JSON"),
        (lambda folder: (folder / "model.json").write_text('{"format": "gguf"}'), "not a scoresde-2 model.*'gguf'"),
        (lambda folder: next(folder.glob("*.safetensors")).write_bytes(b"PK"), "damaged.*SHA-256"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "can't be read"),
    ],
)
def test_a_corrupt_folder_is_refused(damage: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    folder = scoresde.save(classy(), tmp_path / "model")
    damage(folder)
    with pytest.raises(CheckpointError, match=said):
        scoresde.load(folder)


def test_what_can_not_be_saved_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Counting is not a registered backbone.*BACKBONES\.register"):
        scoresde.save(sde(), tmp_path / "model")
    with pytest.raises(ValueError, match=r"\['y'\] are not saved.*given"):
        scoresde.save(classy().given(y=1), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
