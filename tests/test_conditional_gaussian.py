"""Networks that begin as the Gaussian of data given a vector and a class: closed forms, least
squares, and what `fit` measures.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_checkpoint import stopped
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.utils.data import DataLoader, TensorDataset

import scoresde
from conftest import generator, rotated
from scoresde.backbones import MLP, ResMLP
from scoresde.backbones.conditional_gaussian import ConditionalGaussian
from scoresde.storage.description import describe, weights
from scoresde.storage.rebuild import rebuild
from scoresde.training import conditional_gaussian
from scoresde.training.conditional_gaussian import fit_gaussian

F64 = torch.float64
QUIET: dict[str, Any] = {"progress": False, "seed": 0}
UNTRAINED: dict[str, Any] = {**QUIET, "steps": 1, "lr": 1e-12, "validation": None}
"""`fit` measures, and one tiny step leaves the network as it was."""
TIGHT: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6, "progress": False}


def line(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x = c·A + 5 + correlated noise in two dimensions, of three numbers c of different units."""
    g = generator(seed)
    c = torch.randn(n, 3, generator=g, dtype=F64) * torch.tensor([1.0, 100.0, 0.01]) + 7
    slope = torch.tensor([[1.0, 0.02, 50.0], [-1.0, 0.01, 80.0]], dtype=F64)
    noise = torch.tensor([[1.0, 0.0], [0.6, 0.3]], dtype=F64)
    return 5 + c @ slope.T + torch.randn(n, 2, generator=g, dtype=F64) @ noise.T, c


def least_squares(x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions of x, and the unbiased covariance of what is left."""
    ones = torch.cat([features, features.new_ones(len(features), 1)], 1)
    predicted = ones @ torch.linalg.lstsq(ones, x).solution
    left = x - predicted
    return predicted, left.T @ left / (len(x) - ones.shape[1])


def random_gaussian(net: Any, outer: float) -> None:
    """Give a network some Gaussian of three dimensions."""
    g = generator(5)
    basis = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=F64)).Q
    numbers = {
        "slope": torch.randn(2, 3, generator=g),
        "shifts": torch.randn(5, 3, generator=g),
        "intercept": torch.randn(3, generator=g),
        "basis": basis,
        "log_variance": torch.tensor([-4.0, -1.0, 0.3]),
        "outer": torch.tensor(outer),
    }
    net.conditional_gaussian.assign(numbers)


def loud(net: Any) -> Any:
    """A network in float64 none of whose weights is zero."""
    net = net.double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator(p.numel()), dtype=F64))
    return net


# ------------------------------------------------------------------ the network


@pytest.mark.parametrize("kind", [MLP, ResMLP])
def test_a_network_of_zeros_denoises_the_gaussian(kind: type) -> None:
    """Its output is sin φ·E[x0 | z] − cos φ·E[ε | z], by the formulas of Gaussians."""
    net = kind((3,), vector=2, classes=(2, 3), width=8).double()
    random_gaussian(net, 0.0)
    part = net.conditional_gaussian
    phi = torch.tensor([1e-3, 0.2, 0.7, 1.5], dtype=F64)
    z = torch.randn(4, 3, generator=generator(), dtype=F64)
    vector = torch.randn(4, 2, generator=generator(1), dtype=F64)
    y = torch.tensor([0, 4, 5, 2])
    first, second = y // 3, 2 + y % 3
    mean = part.intercept + vector @ part.slope + part.shifts[first] + part.shifts[second]
    covariance = part.basis @ torch.diag(part.log_variance.exp()) @ part.basis.T
    sin, cos = phi.sin()[:, None], phi.cos()[:, None]
    wanted = []
    for i in range(4):
        total = cos[i] ** 2 * covariance + sin[i] ** 2 * torch.eye(3, dtype=F64)
        pull = torch.linalg.solve(total, z[i] - cos[i] * mean[i])
        x0 = mean[i] + cos[i] * covariance @ pull
        wanted.append(sin[i] * x0 - cos[i] * sin[i] * pull)
    out = net(z, phi.tan().log(), y=y, vector=vector)
    torch.testing.assert_close(out, torch.stack(wanted), rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", [MLP, ResMLP])
def test_what_is_left_has_a_process_of_its_own(kind: type) -> None:
    """With S = ρ²·I, the model is that of (x0 − m)/ρ by the same network without a Gaussian."""
    net = loud(kind((3,), vector=2, width=8, fourier=8))
    bare = loud(kind((3,), vector=2, width=8, fourier=8))
    bare.load_state_dict(net.state_dict())
    random_gaussian(net, 0.0)
    rho = 0.05
    net.conditional_gaussian.log_variance.fill_(2 * math.log(rho))
    part = net.conditional_gaussian
    g = generator()
    inner = torch.randn(5, 3, generator=g, dtype=F64)
    eps = torch.randn(5, 3, generator=g, dtype=F64)
    vector = torch.randn(5, 2, generator=g, dtype=F64)
    mean = part.intercept + vector @ part.slope
    phi = torch.tensor([0.001, 0.02, 0.05, 0.4, 1.2], dtype=F64)
    sin, cos = phi.sin()[:, None], phi.cos()[:, None]
    out = net(cos * (mean + rho * inner) + sin * eps, phi.tan().log(), vector=vector)
    x0 = cos * (cos * (mean + rho * inner) + sin * eps) + sin * out
    angle = torch.atan2(sin, rho * cos)
    inside = angle.cos() * inner + angle.sin() * eps
    out = bare(inside, angle[:, 0].tan().log(), vector=vector)
    wanted = mean + rho * (angle.cos() * inside + angle.sin() * out)
    torch.testing.assert_close(x0, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("outer", [0.0, 1.0])
@pytest.mark.parametrize("options", [{}, {"depth": 1, "fourier": 0}, {"depth": 1}])
def test_the_trace_is_that_of_the_jacobian(options: dict[str, int], outer: float) -> None:
    """Of samples with both conditions, with one, and with none."""
    net = loud(MLP((3,), vector=2, classes=(2, 3), width=8, **options))
    random_gaussian(net, outer)
    g = generator()
    x = torch.randn(4, 3, generator=g, dtype=F64)
    t = torch.randn(4, generator=g, dtype=F64)
    vector = torch.randn(4, 2, generator=g, dtype=F64)
    vector[1:3] = math.nan
    y = torch.tensor([1, 3, 6, 6])
    out, trace = net.value_and_trace(x, t, y=y, vector=vector)
    torch.testing.assert_close(out, net(x, t, y=y, vector=vector), rtol=0, atol=1e-12)
    for i in range(4):
        row = slice(i, i + 1)

        def f(z: Tensor, row: slice = row) -> Tensor:
            value: Tensor = net(z, t[row], y=y[row], vector=vector[row])
            return value

        jacobian = torch.autograd.functional.jacobian(f, x[row])
        wanted = jacobian.reshape(3, 3).trace()
        torch.testing.assert_close(trace[i], wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [MLP, ResMLP])
def test_without_conditions_there_is_no_gaussian(kind: type) -> None:
    """NaN, "no label" and nothing at all give what the network gave before it was measured."""
    net = loud(kind((3,), vector=2, classes=(2, 3), width=8))
    g = generator()
    x, t = torch.randn(2, 3, generator=g, dtype=F64), torch.randn(2, generator=g, dtype=F64)
    none = {"vector": x.new_full((2, 2), math.nan), "y": torch.tensor([6, 6])}
    wanted = net(x, t)
    random_gaussian(net, 1.0)
    for given in ({}, none, {"y": none["y"]}, {"vector": none["vector"]}):
        torch.testing.assert_close(net(x, t, **given), wanted, rtol=0, atol=1e-12)
    assert (net(x, t, y=torch.tensor([0, 5])) - wanted).abs().min() > 1e-3


def test_low_precision_keeps_what_is_left() -> None:
    """Under autocast z' is the small difference of two numbers: 1% of it, not of them."""
    part = ConditionalGaussian(1, 1, ())
    part.slope.fill_(1.0)
    part.log_variance.fill_(2 * math.log(1e-3))
    c = torch.linspace(-2, 2, 9)[:, None]
    x, t = c + 1e-3 * torch.arange(9.0)[:, None], torch.full((9,), -12.0)
    with torch.autocast("cpu", torch.bfloat16):
        rest = part(x, t, None, c)
    torch.testing.assert_close(rest.x[:, 0], torch.arange(9.0), rtol=1e-2, atol=1e-2)
    half = MLP((1,), vector=1, width=8).half()
    assert half.conditional_gaussian is not None
    assert half.conditional_gaussian.slope.dtype == torch.float32


def test_images_and_hidden_layers_have_none() -> None:
    assert ResMLP((1, 4, 4), vector=2).conditional_gaussian is None
    assert MLP((2,)).conditional_gaussian is None
    assert MLP((300,), vector=2).conditional_gaussian is None
    names = [*scoresde.build("vp", "encoded_resmlp", shape=(2,), vector=3).state_dict()]
    names += scoresde.build("vp", "masked", shape=(2,), classes=3).state_dict()
    assert not [name for name in names if "conditional_gaussian" in name]


# ------------------------------------------------------------------ what `fit` measures


@pytest.mark.parametrize(("process", "net"), rotated(["vp", "rectified", "ve"], ["mlp", "resmlp"]))
def test_an_untrained_model_is_the_regression_of_its_data(process: str, net: str) -> None:
    """Least squares, within 0.002 nats on average and 0.4 at most; 5,000 samples within 5 standard
    errors.
    """
    x, c = line(2000)
    sde = scoresde.build(process, net, shape=(2,), vector=3, width=8)
    scoresde.fit(sde, x, given={"vector": c}, **UNTRAINED)
    predicted, covariance = least_squares(x, c)
    wanted = MultivariateNormal(predicted, covariance).log_prob(x)
    found = scoresde.log_prob(sde.given(vector=c), x, **TIGHT)
    assert abs(float((found - wanted).mean())) < 2e-3
    assert float((found - wanted).abs().max()) < 0.4
    drawn = scoresde.sample(sde.given(vector=c[:1]), 5000, seed=0, progress=False).double()
    error = covariance.diagonal().sqrt() / math.sqrt(5000)
    assert ((drawn.mean(0) - predicted[0]).abs() < 5 * error + 0.02).all()
    torch.testing.assert_close(torch.cov(drawn.T), covariance, rtol=0.12, atol=0.02)


def test_classes_have_means_of_their_own() -> None:
    """Two categories, the effects of which add up, and a label that no row has."""
    g = generator()
    y = torch.randint(0, 5, (3000,), generator=g)
    first, second = y // 3, y % 3
    x = torch.stack([2.0 * first, -1.0 * second], 1).double()
    x = x + torch.randn(3000, 2, generator=g, dtype=F64) * torch.tensor([0.2, 1.0])
    sde = scoresde.build("vp", "mlp", shape=(2,), classes=(2, 3), width=8)
    scoresde.fit(sde, x, given={"y": y}, **UNTRAINED)
    marks = torch.stack([first, second == 1, second == 2], 1).double()
    predicted, covariance = least_squares(x, marks)
    wanted = MultivariateNormal(predicted, covariance).log_prob(x)
    found = scoresde.log_prob(sde.given(y=y), x, **TIGHT)
    assert abs(float((found - wanted).mean())) < 5e-3
    part: Any = sde.net.conditional_gaussian  # type: ignore[union-attr]
    shares = torch.bincount(second, minlength=3) / 3000
    assert float((shares @ part.shifts[2:]).abs().max()) < 1e-5
    far = scoresde.sample(sde.given(y=5), 2000, seed=0, progress=False).double()
    assert ((far.mean(0) - torch.tensor([2.0, -2.0])).abs() < 0.2).all()


def test_streams_and_constants_are_measured_as_tables_are() -> None:
    x, c = line(500)
    rows = torch.cat([x[:, :1], torch.full((500, 1), 3.0, dtype=F64), x[:, 1:]], 1)
    y = torch.arange(500) % 3
    found = []
    for data in (rows, DataLoader(TensorDataset(rows, c, y), 64)):
        sde = scoresde.build("vp", "resmlp", shape=(3,), vector=3, classes=3, width=8)
        given = {"vector": c, "y": y} if isinstance(data, Tensor) else None
        with pytest.warns(UserWarning, match="constant"):
            scoresde.fit(sde, data, given=given, **UNTRAINED)
        part: Any = sde.net.conditional_gaussian  # type: ignore[union-attr]
        found.append({name: value.clone() for name, value in part.named_buffers()})
    for part in found:  # axes of S may point either way
        basis = part.pop("basis")
        part["covariance"] = basis @ part.pop("log_variance").exp().diag() @ basis.T
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-5)
    assert not found[0]["slope"][:, 1].any()
    assert float(found[0]["covariance"][1, 1]) == 1


def test_a_stream_is_read_whole_if_its_mean_is_known() -> None:
    """A loader that yields one class after the other."""
    y = torch.arange(400) // 100
    x = torch.stack([y, 0 * y], 1).double()
    x = x + torch.randn(400, 2, generator=generator(), dtype=F64)
    shifts = []
    for known in (False, True):
        sde = scoresde.build("vp", "mlp", shape=(2,), classes=4, width=8)
        if known:
            sde.standardize(x)
        scoresde.fit(sde, DataLoader(TensorDataset(x, y), 50), **UNTRAINED)
        part: Any = sde.net.conditional_gaussian  # type: ignore[union-attr]
        shifts.append(part.shifts.clone())
    torch.testing.assert_close(shifts[0], shifts[1])
    assert shifts[0].abs().max() > 0.5


def test_with_one_of_two_conditions_nothing_is_known() -> None:
    """x = 3c + y + noise given y alone has the spread of 3c, not that of the noise."""
    g = generator()
    c = torch.randn(1000, 1, generator=g, dtype=F64)
    y = torch.randint(0, 2, (1000,), generator=g)
    x = 3 * c + y[:, None] + 0.1 * torch.randn(1000, 1, generator=g, dtype=F64)
    sde = scoresde.build("vp", "mlp", shape=(1,), vector=1, classes=2, width=8)
    scoresde.fit(sde, x, given={"vector": c, "y": y}, **UNTRAINED)
    drawn = scoresde.sample(sde.given(y=1), 2000, seed=0, progress=False)
    assert abs(float(drawn.std()) / 3 - 1) < 0.1
    drawn = scoresde.sample(sde.given(y=1, vector=c[0]), 2000, seed=0, progress=False)
    assert abs(float(drawn.std()) / 0.1 - 1) < 0.1


def test_a_trained_model_keeps_its_gaussian_and_other_objectives_have_none() -> None:
    x, c = line(100)
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=3, width=8)
    scoresde.fit(sde, x, given={"vector": c}, **UNTRAINED)
    part: Any = sde.net.conditional_gaussian  # type: ignore[union-attr]
    before = part.slope.clone()
    assert before.any()
    scoresde.fit(sde, 3 * x, given={"vector": -c}, **UNTRAINED)
    assert torch.equal(part.slope, before)
    paired = {name: value for name, value in UNTRAINED.items() if name != "validation"}
    joined = scoresde.build("rectified", "resmlp", shape=(2,), vector=3, width=8)
    scoresde.fit(joined, x, given={"vector": c}, coupling="condition_aware_ot", **paired)
    assert not joined.net.conditional_gaussian.slope.any()  # type: ignore[union-attr]
    eps = scoresde.build("vp", "resmlp", shape=(2,), vector=3, width=8, predict="eps")
    scoresde.fit(eps, x, given={"vector": c}, **UNTRAINED)
    assert not eps.net.conditional_gaussian.slope.any()  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:the network has learnt nothing")
def test_weights_of_another_model_keep_the_gaussian_that_they_learnt_with() -> None:
    x, c = line(60)
    first, second = (
        scoresde.build("vp", "resmlp", shape=(2,), vector=3, width=8) for _ in range(2)
    )
    scoresde.fit(first, x, given={"vector": c}, steps=50, validation=None, **QUIET)
    second.net.load_state_dict(first.net.state_dict())
    history = scoresde.fit(second, 3 * x, given={"vector": -c}, steps=3, lr=1.0, **QUIET)
    assert history.best == 0
    kept = [m.conditional_gaussian.slope for m in (first.net, second.net, second.ema)]  # type: ignore[union-attr]
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])


def test_outliers_do_not_turn_the_line_and_ties_are_no_certainty() -> None:
    g = generator()
    c = torch.randn(500, 1, generator=g, dtype=F64)
    z = 0.5 * c + 0.1 * torch.randn(500, 1, generator=g, dtype=F64)
    clean = fit_gaussian(z, c)["slope"]
    assert abs(float(clean) - 0.5) < 0.02
    z[:5] = 100 * c[:5].sign()
    assert abs(float(fit_gaussian(z, c)["slope"]) - 0.5) < 0.05
    tied = torch.where(torch.arange(500)[:, None] % 10 > 0, 0.0, z)
    found = fit_gaussian(tied, c)
    assert all(bool(value.isfinite().all()) for value in found.values())


def test_outliers_widen_their_axis_by_how_far_out_they_are() -> None:
    """The variance is that of all residuals, times the farthest one's distance in units of where a
    normal distribution ends; the other axis stays, and so does that of an exponential distribution.
    """
    g = generator()
    c = torch.randn(300, 1, generator=g, dtype=F64)
    noise = torch.randn(300, 2, generator=g, dtype=F64)
    noise[:, 1].exponential_(generator=g)
    z = 0.1 * noise - 0.1 * noise.mean(0)
    variance = fit_gaussian(z, c)["log_variance"].exp().sort().values
    torch.testing.assert_close(variance, z.var(0).sort().values, rtol=0.03, atol=0)
    z[7, 0] = 5.0
    found = fit_gaussian(z, c)
    spread = z.var(0)
    times = 5 / float(spread[0].sqrt()) / math.sqrt(2 * math.log(600))
    wanted = torch.stack([times * spread[0], spread[1]]).sort().values
    variance = found["log_variance"].exp().sort().values
    torch.testing.assert_close(variance, wanted, rtol=0.03, atol=0)
    assert found["outer"] == 0  # the data are narrow all the same


def test_residuals_are_those_of_rows_left_out() -> None:
    """If a row lay where the others predict it, the regression on all would predict it there."""
    g = generator()
    c = torch.randn(12, 3, generator=g, dtype=F64)
    z = c[:, :2] + 0.01 * torch.randn(12, 2, generator=g, dtype=F64)
    weight = torch.linspace(0.5, 1.5, 12, dtype=F64)[:, None]
    _, _, left = conditional_gaussian._line(z, c, weight)
    moved = z.clone()
    moved[3] = z[3] - left[3]
    slope, intercept, _ = conditional_gaussian._line(moved, c, weight)
    torch.testing.assert_close(intercept + c[3] @ slope, moved[3], rtol=0, atol=1e-6)
    assert (left[3].abs() > 1e-4).all()


def test_few_rows_of_many_outputs_are_not_certain_either() -> None:
    """Noise, 40 rows of 30 outputs in three classes: within 1 nat of the model without classes.
    With the sample's covariance it would be 60.
    """
    g = generator()
    y = torch.randint(0, 3, (240,), generator=g)
    x = torch.randn(240, 30, generator=g)
    gaps = []
    for classes in (3, 0):
        sde = scoresde.build("rectified", "mlp", shape=(30,), classes=classes, width=8)
        given = {"y": y[:40]} if classes else None
        scoresde.fit(sde, x[:40], given=given, **UNTRAINED)
        model = sde.given(y=y[40:]) if classes else sde
        truth = -15 * math.log(2 * math.pi) - 0.5 * x[40:].square().sum(1)
        gaps.append(float((truth - scoresde.log_prob(model, x[40:], progress=False)).mean()))
    assert gaps[0] < gaps[1] + 1.0


def test_fourier_features_stay_where_clumps_are() -> None:
    """x = round(3c + 0.5ε): z' has the clumps at places that depend on c."""
    g = generator()
    c = torch.randn(2000, 1, generator=g, dtype=F64)
    smooth = 3 * c + 0.5 * torch.randn(2000, 1, generator=g, dtype=F64)
    seen = []
    for x in (smooth, smooth.round() + 0.01 * torch.randn(2000, 1, generator=g, dtype=F64)):
        sde = scoresde.build("vp", "resmlp", shape=(1,), vector=1, width=8)
        scoresde.fit(sde, x, given={"vector": c}, **UNTRAINED)
        part: Any = sde.net.conditional_gaussian  # type: ignore[union-attr]
        seen.append(float(part.outer))
    assert seen == [0, 1]


def test_fourier_features_are_those_of_what_is_left_if_it_is_narrow() -> None:
    g = generator()
    c = torch.randn(500, 1, generator=g, dtype=F64)
    noise = torch.randn(500, 1, generator=g, dtype=F64)
    assert [float(fit_gaussian(c + s * noise, c)["outer"]) for s in (0.1, 0.45, 0.55)] == [0, 0, 1]


def test_few_rows_of_many_columns_are_not_certain() -> None:
    """40 rows of 30 columns: of noise nothing is explained, and of a line with noise of variance
    0.01 no new row is as near as the rows themselves.
    """
    g = generator()
    c = torch.randn(40, 30, generator=g, dtype=F64)
    z = torch.randn(40, 2, generator=g, dtype=F64)
    assert fit_gaussian(z, c)["log_variance"].exp().min() > 0.5
    exact = c[:, :2] @ torch.randn(2, 2, generator=g, dtype=F64) + 0.1 * z
    variance = fit_gaussian(exact, c)["log_variance"].exp()
    assert 0.01 < float(variance.min()) < float(variance.max()) < 0.2


@pytest.mark.filterwarnings("ignore:the network has learnt nothing")
def test_a_model_that_has_learnt_nothing_more_is_the_regression_of_all_rows() -> None:
    """During training it is that of the rows that are not held out."""
    x, c = line(60)
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=3, width=8)
    part: Any = sde.net.conditional_gaussian  # type: ignore[union-attr]
    slopes = []
    part.register_forward_hook(lambda *_: slopes.append(part.slope.clone()))
    history = scoresde.fit(sde, x, given={"vector": c}, steps=3, lr=1.0, **QUIET)
    assert history.best == 0
    assert history.held_out is not None
    z, told = sde.from_data(x), sde.conditions.standardize("vector", c)
    kept = [i for i in range(60) if i not in history.held_out]
    wanted = fit_gaussian(z[kept], told[kept])["slope"]
    torch.testing.assert_close(slopes[0], wanted.float())
    wanted = fit_gaussian(z, told)["slope"]
    for net in (sde.net, sde.ema):
        torch.testing.assert_close(net.conditional_gaussian.slope, wanted.float())  # type: ignore[union-attr]


# ------------------------------------------------------------------ against least squares


def log_p_of_line(train: int, seed: int) -> tuple[float, float]:
    """Mean log p of new rows of a regression on 20 columns: ours, and that of least squares."""
    rng = np.random.default_rng(seed)
    X, w = rng.normal(size=(train + 400, 20)), rng.normal(size=20)
    y = X @ w + rng.normal(size=train + 400)
    from scoresde.estimators import ConditionalScoreDensity

    model = ConditionalScoreDensity(steps=60, random_state=0).fit(X[:train], y[:train])
    ones = np.c_[X, np.ones(len(X))]
    found = np.linalg.lstsq(ones[:train], y[:train], rcond=None)[0]
    left = y - ones @ found
    variance = (left[:train] ** 2).sum() / (train - 21)
    theirs = -0.5 * left[train:] ** 2 / variance - 0.5 * math.log(2 * math.pi * variance)
    return float(model.score_samples(X[train:], y[train:]).mean()), float(theirs.mean())


@pytest.mark.filterwarnings("ignore:the network has learnt nothing")
def test_a_regression_is_no_worse_than_least_squares() -> None:
    """Without the Gaussian, −1.95 against −1.48 nats."""
    pytest.importorskip("sklearn")
    ours, theirs = log_p_of_line(300, 0)
    assert ours > theirs - 0.03


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("net", ["mlp", "resmlp", "learned_variance"])
def test_older_files_have_no_gaussian(net: str) -> None:
    options = {"backbone": "resmlp"} if net == "learned_variance" else {}
    sde = scoresde.build("vp", net, shape=(2,), vector=3, classes=(2, 2), width=8, **options)
    tensors = weights(sde)
    older = {name: value for name, value in tensors.items() if "conditional_gaussian" not in name}
    assert len(older) < len(tensors)
    again = rebuild(describe(sde), older)
    for name, value in again.state_dict().items():
        assert torch.equal(value, tensors[name]), name


def test_older_states_and_pickles_have_no_gaussian() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,), vector=3, width=8)
    older = {n: v for n, v in sde.state_dict().items() if "conditional_gaussian" not in n}
    other = scoresde.build("vp", "mlp", shape=(2,), vector=3, width=8)
    other.load_state_dict(older)
    x, t = torch.randn(4, 2, generator=generator()), torch.zeros(4)
    vector = torch.randn(4, 3, generator=generator(1))
    wanted = sde.net(x, t, vector=vector)
    assert torch.equal(other.net(x, t, vector=vector), wanted)
    assert torch.equal(other.net(x, t, vector=vector[:1]), other.net(x, t, vector=vector[[0] * 4]))
    del sde.net._modules["conditional_gaussian"]
    again = pickle.loads(pickle.dumps(sde.net))
    torch.testing.assert_close(again(x, t, vector=vector), wanted)


@pytest.mark.filterwarnings("ignore:the network has learnt nothing")
def test_a_finished_run_that_is_resumed_keeps_its_gaussian(tmp_path: Path) -> None:
    x, c = line(60)
    numbers = []
    for resume in (False, True):
        torch.manual_seed(0)
        sde = scoresde.build("vp", "resmlp", shape=(2,), vector=3, width=8)
        where = scoresde.Checkpoints(tmp_path, every=10, resume=resume)
        history = scoresde.fit(sde, x, given={"vector": c}, steps=20, checkpoints=where, **QUIET)
        assert history.best == 0
        for model in (sde, scoresde.load(tmp_path)):
            numbers.append(model.ema.conditional_gaussian.slope)
    assert numbers[0].abs().max() > 0.1
    for other in numbers[1:]:
        assert torch.equal(other, numbers[0])


def test_a_run_of_an_older_version_goes_on_without_one(tmp_path: Path) -> None:
    """Its checkpoint lacks the Gaussian's numbers."""
    from scoresde.storage import records

    x, c = line(60)
    how: dict[str, Any] = {"given": {"vector": c}, "validation": None, "batch_size": 16, **QUIET}
    where = scoresde.Checkpoints(tmp_path, every=5)

    def model() -> scoresde.ScoreSDE:
        torch.manual_seed(0)
        return scoresde.build("vp", "resmlp", shape=(2,), vector=3, width=8)

    with stopped(12, KeyboardInterrupt()):
        scoresde.fit(model(), x, steps=20, checkpoints=where, **how)
    name = records.records(tmp_path, "step-")[-1]
    about, tensors = records.read(tmp_path, name)
    older = {key: value for key, value in tensors.items() if "conditional_gaussian" not in key}
    records.write(tmp_path, name, older, about)
    sde = model()
    further = scoresde.Checkpoints(tmp_path, every=5, resume=True)
    scoresde.fit(sde, x, steps=20, checkpoints=further, **how)
    assert sde.ema is not None
    assert not sde.ema.conditional_gaussian.slope.any()  # type: ignore[operator]
