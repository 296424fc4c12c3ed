"""Predictions, and the user's view of a model, against closed forms."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import at, generator
from scoresde import PREDICTIONS, Process, ScoreSDE, toy
from scoresde.model.network import noise_label
from scoresde.processes.prediction import coefficients, singular

SHAPES = [(), (3,), (2, 3), (1, 4, 4), (2, 2, 2, 2)]


class Answer(nn.Module):
    """A network that outputs a·x0 + b·ε for fixed (x0, ε), whatever it is shown."""

    def __init__(self, process: Process, predict: str, x0: Tensor, eps: Tensor) -> None:
        super().__init__()
        self.process, self.predict, self.x0, self.eps = process, predict, x0, eps

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = coefficients(self.predict, self.process, self.process.phi(t))
        shape = (-1,) + (1,) * (x.ndim - 1)
        return c.a.reshape(shape) * self.x0 + c.b.reshape(shape) * self.eps


@pytest.mark.parametrize("predict", list(PREDICTIONS))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_prediction_gives_back_x0_and_eps(
    process: Process, predict: str, shape: tuple[int, ...]
) -> None:
    if singular(predict, process, process.phi_max):
        with pytest.raises(ValueError, match="that work there"):
            ScoreSDE(process, nn.Identity(), shape=shape, predict=predict)
        return
    x0, eps = torch.randn(2, 5, *shape, generator=generator(1), dtype=torch.float64)
    t = torch.tensor([0.02, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    column = t.reshape(-1, *(1,) * len(shape))
    x = process.alpha(column) * x0 + process.sigma(column) * eps
    sde = ScoreSDE(
        process,
        Answer(process, predict, x0, eps),
        shape=shape,
        predict=predict,
        input_convention="raw",
    ).double()
    got_x0, got_eps = sde.denoise(x, t)
    # What the solve divides by: the smaller of α/r and σ/r loses that many digits of x0 or eps.
    torch.testing.assert_close(got_x0, x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(got_eps, eps, rtol=1e-8, atol=1e-8)
    velocity = process.dalpha(column) * x0 + process.dsigma(column) * eps
    torch.testing.assert_close(sde.velocity(x, t), velocity, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(sde.score(x, t), -eps / process.sigma(column), rtol=1e-8, atol=1e-8)
    z = (x / torch.hypot(process.alpha(column), process.sigma(column))).reshape(5, -1)
    phi = process.phi(t)
    cos = torch.cos(phi)[:, None]
    sin = torch.sin(phi)[:, None]
    wanted = cos * eps.reshape(5, -1) - sin * x0.reshape(5, -1)
    torch.testing.assert_close(sde.arc_velocity(z, phi), wanted, rtol=1e-8, atol=1e-8)


def test_only_the_pairs_that_must_be_are_refused() -> None:
    refused = {
        (name, predict)
        for name in ("vp", "ve", "subvp", "edm", "cosine", "rectified")
        for predict in PREDICTIONS
        if singular(predict, p := scoresde.PROCESSES.build(name), p.phi_max)
    }
    assert refused == {
        (p, predict) for p in ("cosine", "rectified") for predict in ("eps", "score")
    }


def test_score_velocity_and_drift_of_a_gaussian_in_the_units_of_the_data(process: Process) -> None:
    """For N(m, s²) the score at time t is −(x − α·m)/(α²s² + σ²); a standardized model must say
    the same in data units.
    """
    m = torch.tensor([3.0, -40.0], dtype=torch.float64)
    s = torch.tensor([0.5, 20.0], dtype=torch.float64)
    sde = scoresde.oracle(toy.GaussianMixture(torch.zeros(1, 2), 1.0), process).double()
    sde.standardize(torch.stack([m - s, m + s]))  # the model now knows N(m, s²)
    x, t = m + s * torch.randn(6, 2, generator=generator(), dtype=torch.float64), 0.37
    alpha, sigma = at(process, t)
    v = alpha**2 + sigma**2
    torch.testing.assert_close(sde.score(x, t), -(x - m) / (s**2 * v), rtol=1e-10, atol=1e-12)
    x0, eps = sde.denoise(x, t)
    torch.testing.assert_close(x0, m + alpha * (x - m) / v, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(eps, sigma * (x - m) / s / v, rtol=1e-10, atol=1e-10)
    f, g2 = float(process.f(t)), float(process.g2(t))
    torch.testing.assert_close(
        sde.velocity(x, t), f * (x - m) - 0.5 * g2 * s**2 * sde.score(x, t), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(
        sde.drift(x, t), f * (x - m) - g2 * s**2 * sde.score(x, t), rtol=1e-9, atol=1e-9
    )


def test_label_is_the_log_ratio_and_finite_at_both_ends() -> None:
    phi = torch.linspace(0.05, 1.52, 50, dtype=torch.float64)
    torch.testing.assert_close(noise_label(phi), torch.log(torch.tan(phi)), rtol=0, atol=2e-3)
    ends = noise_label(torch.tensor([0.0, torch.pi / 2], dtype=torch.float64))
    assert bool(ends.isfinite().all())
    assert (
        abs(noise_label(0.3) - float(noise_label(torch.tensor(0.3, dtype=torch.float64)))) < 1e-15
    )


def test_standardization_is_per_feature_or_channel_and_units_do_not_matter() -> None:
    table = torch.randn(500, 3, generator=generator()) * torch.tensor(
        [1e-3, 1.0, 1e4]
    ) + torch.tensor([0.0, 5.0, -1e5])
    sde = scoresde.build("vp", "mlp", shape=(3,)).standardize(table)
    z = sde.from_data(table)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3), rtol=1e-4, atol=0)
    torch.testing.assert_close(sde.to_data(z), table, rtol=1e-5, atol=1e-3)
    images = torch.rand(50, 3, 4, 5, generator=generator()) * 255
    sde = scoresde.build("vp", "mlp", shape=(3, 4, 5)).standardize(images)
    assert sde.scale.shape == (3, 1, 1)
    torch.testing.assert_close(
        sde.mean.flatten().float(), images.mean((0, 2, 3)), rtol=1e-5, atol=0
    )
    assert abs(sde.log_scale - 20 * float(sde.scale.double().log().sum())) < 1e-6


def test_given_conditions_a_view_and_leaves_the_original() -> None:
    # In training, labels are left out now and then.
    sde = scoresde.build("vp", "mlp", shape=(2,), classes=3).eval()
    nn.init.normal_(sde.net.label.weight)
    nn.init.normal_(sde.net.out.weight)
    labelled = sde.given(y=torch.tensor([0, 1, 2]))
    assert sde.condition == {}
    assert labelled.net is sde.net
    x = torch.ones(3, 2)
    rows = labelled.score(x, 0.5)
    for k in range(3):
        torch.testing.assert_close(
            sde.given(y=k).score(x[:1], 0.5), rows[k : k + 1], rtol=1e-4, atol=1e-6
        )
    assert not torch.allclose(rows[0], rows[1])
    assert not torch.allclose(sde.score(x, 0.5)[0], rows[0])  # without a label: the null row


def test_conditions_follow_their_samples_through_batches_and_finished_rows() -> None:
    """Rows of an adaptive solve finish at different times; each must keep its own label, in any
    batch.
    """
    sde = scoresde.build("vp", "mlp", shape=(2,), classes=4, width=32, depth=2).double()
    for p in sde.net.parameters():
        nn.init.normal_(p, std=0.16, generator=generator(3))
    y = torch.arange(4).repeat(8)
    whole = scoresde.sample(sde.given(y=y), 32, generator=generator(1))
    parts = scoresde.sample(sde.given(y=y), 32, generator=generator(1), batch_size=7)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-9)
    for k in (0, 3):
        alone = scoresde.sample(sde.given(y=k), 32, generator=generator(1))
        torch.testing.assert_close(whole[k::4], alone[k::4], rtol=0, atol=1e-9)
    logp = scoresde.log_prob(sde.given(y=y), whole)
    torch.testing.assert_close(
        logp[2::4], scoresde.log_prob(sde.given(y=2), whole[2::4]), rtol=0, atol=1e-6
    )


def test_bf16_network_works_with_float32_state() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,))
    nn.init.normal_(sde.net.out.weight, std=0.02)
    sde.net.to(torch.bfloat16)
    for solver in ("rk45", "em", "pc"):
        x = scoresde.sample(
            sde,
            8,
            solver=solver,
            generator=generator(),
            **({"rtol": 1e-2, "atol": 1e-2} if solver == "rk45" else {}),
        )
        assert x.dtype == torch.float32
        assert bool(x.isfinite().all())


# ------------------------------------------------------------------ units of any size


@pytest.mark.parametrize("convert", ["half", "bfloat16", "float", "double"])
def test_mean_and_scale_are_not_rounded_with_the_network(convert: str) -> None:
    """Data with mean 1e5 + 1/3: what goes in comes back, and log p moves by what the network's
    rounding moves it.
    """
    x = (
        torch.tensor([1e5 + 1 / 3, 1001.3])
        + torch.tensor([2.0, 0.01]) * torch.randn(100, 2, generator=generator()).double()
    )
    # The network's output is 0, which every dtype holds.
    sde = scoresde.build("vp", "mlp", shape=(2,), standardize="scale").standardize(x).eval()
    before = {name: sde.state_dict()[name].clone() for name in ("mean", "scale")}
    wanted = scoresde.log_prob(sde, x, rtol=1e-4, atol=1e-4)
    samples = scoresde.sample(sde, 4, generator=generator(), rtol=1e-4, atol=1e-4)
    getattr(sde, convert)()
    for name, value in before.items():
        assert torch.equal(sde.state_dict()[name], value)
    assert sde.state_dtype == (torch.float64 if convert == "double" else torch.float32)
    assert next(sde.net.parameters()).dtype == {
        "half": torch.float16,
        "bfloat16": torch.bfloat16,
    }.get(convert, torch.float64 if convert == "double" else torch.float32)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    torch.testing.assert_close(sde.from_data(x), z, rtol=1e-9, atol=1e-9)
    single = sde.from_data(x.float())
    torch.testing.assert_close(
        single,
        ((x.float().double() - x.mean(0)) / x.std(0, correction=0)).float(),
        rtol=1e-6,
        atol=1e-6,
    )
    torch.testing.assert_close(
        scoresde.log_prob(sde, x, rtol=1e-4, atol=1e-4), wanted, rtol=0, atol=1e-3
    )
    if convert != "double":
        again = scoresde.sample(sde, 4, generator=generator(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again, samples, rtol=1e-7, atol=0)


def test_states_follow_the_network_not_the_standardization() -> None:
    net = scoresde.MLP((2,), width=8).double()
    sde = ScoreSDE(scoresde.VPSDE(), net, shape=(2,))
    assert scoresde.sample(sde, 1).dtype == torch.float64
    sde.net.bfloat16()
    assert sde.state_dtype == torch.float32
    # The oracle's network has no numbers: the last conversion counts.
    bare = scoresde.oracle(toy.Moons(), scoresde.VPSDE())
    assert [bare.state_dtype, bare.double().state_dtype, bare.half().state_dtype] == [
        torch.float32,
        torch.float64,
        torch.float32,
    ]
    moved = scoresde.build("vp", "mlp", shape=(2,), width=8).to("meta")
    assert moved.mean.device.type == "meta"
    assert moved.to_empty(device="cpu").scale.dtype == torch.float64


@pytest.mark.parametrize("assign", [False, True])
def test_standardizations_of_single_precision_are_taken_over(assign: bool) -> None:
    """As files of before have them."""
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    state = sde.state_dict() | {
        "mean": torch.tensor([0.1, 2.0]),
        "scale": torch.tensor([3.0, 0.7]),
    }
    sde.load_state_dict(state, assign=assign)
    assert sde.mean.dtype == torch.float64
    assert torch.equal(sde.mean, torch.tensor([0.1, 2.0]).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-31, 1e-20, 1.0, 1e30])
def test_scale_is_measured_at_any_size(size: float, dtype: torch.dtype) -> None:
    table = torch.randn(500, 2, generator=generator(), dtype=torch.float64) * torch.tensor(
        [1.0, 30.0]
    )
    table[:, 1] -= 4
    x = (table * size).to(dtype)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8).standardize(
        part for part in x.split(170)
    )
    torch.testing.assert_close(sde.mean.double() / size, table.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        sde.scale.double() / size, table.std(0, correction=0), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        sde.to_data(sde.from_data(x)) / size, x / size, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("size", [1e-300, 1e-180, 1e180, 1e300])
def test_scale_is_measured_where_squares_have_no_floating_point(size: float) -> None:
    """The unit grows from part to part, and the first part does not vary at all."""
    table = torch.cat(
        [
            torch.zeros(100, 1),
            torch.randn(400, 1, generator=generator()) * torch.linspace(0.01, 3, 400)[:, None],
        ]
    )
    x = size * table.double()
    sde = (
        scoresde.build("vp", "mlp", shape=(1,), width=8)
        .double()
        .standardize(part for part in x.split(50))
    )
    torch.testing.assert_close(sde.mean / size, table.double().mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        sde.scale / size, table.double().std(0, correction=0), rtol=1e-12, atol=0
    )


def test_numbers_that_a_dtype_can_not_hold_are_named() -> None:
    x = torch.randn(50, 2, generator=generator(), dtype=torch.float64)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    with pytest.raises(ValueError, match=r"beyond what float32 can hold.*\.double\(\)"):
        sde.standardize(1e38 * x)
    for coarse in (1e-40 * x, 1e6 + x, torch.stack([x[:, 0], 1e-42 * x[:, 1]], 1)):
        with pytest.warns(UserWarning, match=r"rounded coarsely.*\.double\(\)"):
            sde.standardize(coarse)
    with pytest.raises(ValueError, match="do not vary"):
        sde.standardize(torch.full((9, 2), 1e-40))
    # one value that differs is no rounding, however many are equal
    outlier = torch.full((100_000, 2), 7.0)
    outlier[5] = 7.001
    sde.standardize(outlier)
    assert bool((sde.scale > 0).all())


def test_lists_of_rows_and_of_parts_are_taken_as_they_would_be_together() -> None:
    x = torch.randn(30, 2, generator=generator())
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    wanted = sde.standardize(x).scale.clone()
    forms = [
        list(x),
        [row.numpy() for row in x],
        x.tolist(),
        list(x.split(10)),
        list(x.split(7)),
        x.split(7),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in forms:
            torch.testing.assert_close(sde.standardize(data).scale, wanted, rtol=1e-6, atol=0)
        sde.standardize(x)
        known = scoresde.log_prob(sde, x[:3], steps=3)
        for rows in (list(x[:3]), [row.numpy() for row in x[:3]], tuple(x[:3])):
            found = scoresde.log_prob(sde, rows, steps=3)  # type: ignore[arg-type]
            assert torch.equal(found, known)
    for odd in ([x[0], x[0, :1]], [x[0], "a"], [x[0], None]):
        with pytest.raises((TypeError, ValueError), match="x is a tensor or array"):
            scoresde.log_prob(sde, odd)  # type: ignore[arg-type]
