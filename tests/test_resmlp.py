"""The residual perceptron against its equations, written out from the weights alone, and Jacobians
taken apart.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import generator
from scoresde.backbones.base import faded_waves
from scoresde.backbones.resmlp import ResMLP
from scoresde.density.trace import exact_trace, hutchinson_trace

F64 = torch.float64
SIZES = {"width": 10, "depth": 2, "fourier": 6, "told": 7, "features": 8}
SHAPES = [(5,), (2, 8), (3, 4, 4)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def built(shape: tuple[int, ...], **options: object) -> ResMLP:
    """With all weights drawn, those that start at zero too, so that every part speaks."""
    torch.manual_seed(0)
    net = ResMLP(shape, **{**SIZES, **options}).double().eval()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(normal(*p.shape, seed=i) / math.sqrt(p.shape[-1]))
    return net


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def equations(net: ResMLP, x: Tensor, t: Tensor, y: Tensor, blur: bool) -> Tensor:
    """The module's docstring, with φ from tan φ = e^t."""
    w = dict(net.state_dict())
    turn = t[:, None] * w["embed.rates"]
    told = linear(
        w,
        "embed.last",
        silu(linear(w, "embed.first", torch.cat([torch.sin(turn), torch.cos(turn)], 1))),
    )
    c = silu(told + w["embed.label.weight"][y])
    flat, omega = x.flatten(1), w["frequencies"]
    sin = (
        torch.sin(torch.atan(torch.exp(t)))[:, None] if blur else torch.zeros(len(x), 1, dtype=F64)
    )
    s = torch.exp(-0.5 * omega.square().sum(0) * sin**2)
    h = linear(
        w, "first", torch.cat([flat, s * torch.sin(flat @ omega), s * torch.cos(flat @ omega)], 1)
    )
    turns = linear(w, "turn", c).chunk(8, 1)
    for i in range(2):
        beta, gamma, alpha = turns[3 * i : 3 * i + 3]
        inner = silu(linear(w, f"up.{i}", silu(layer_norm(h) * (1 + gamma) + beta)))
        h = h + alpha * linear(w, f"down.{i}", inner)
    out = linear(w, "last", silu(layer_norm(h) * (1 + turns[7]) + turns[6]))
    return (out + linear(w, "gain", c) * flat).view_as(x)


@pytest.mark.parametrize("blur", [True, False])
@each_shape
def test_it_is_what_its_docstring_says(shape: tuple[int, ...], blur: bool) -> None:
    net = built(shape, classes=3, blur=blur, bandwidth=0.1)
    x, t, y = normal(4, *shape), 2 * normal(4, seed=1), torch.tensor([0, 2, 1, 3])
    wanted = equations(net, x, t, y, blur)
    torch.testing.assert_close(net(x[:3], t[:3], y=y[:3]), wanted[:3], rtol=0, atol=1e-12)
    # the last row of the table: no label
    torch.testing.assert_close(net(x[3:], t[3:]), wanted[3:], rtol=0, atol=1e-12)


def test_fading_is_the_mean_over_the_noise() -> None:
    """E_ξ exp(iω·(x + sin φ·ξ)) over 200,000 draws, within 5 standard errors: a false alarm in 10⁵
    for 24 numbers.
    """
    net = built((2,), bandwidth=0.1)
    x, t = normal(2, 2), torch.tensor([-1.0, 0.5], dtype=F64)
    sin = torch.sin(torch.atan(torch.exp(t)))[:, None, None]
    phase = (x[:, None] + sin * normal(2, 200_000, 2, seed=3)) @ net.frequencies
    waves = faded_waves(net.frequencies, x, t, True)
    for faded, draws in zip(waves, (phase.sin(), phase.cos()), strict=True):
        assert ((draws.mean(1) - faded).abs() < 5 * draws.std(1) / math.sqrt(200_000)).all()


def test_the_output_starts_at_zero_and_learns() -> None:
    torch.manual_seed(0)
    net = ResMLP((5,), **SIZES, classes=3)
    x, t = torch.randn(8, 5, generator=generator()), torch.zeros(8)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    assert not net(x, t, y).any()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):  # layers that start at zero hold back those before them by a step each
        (net(x, t, y) - x).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@each_shape
def test_the_traces_are_the_jacobian_s(shape: tuple[int, ...]) -> None:
    """Hutchinson's within 5 standard errors: a false alarm in 10⁶ for each of two."""
    net = built(shape, bandwidth=0.1)
    x, t = normal(2, *shape), normal(2, seed=1)

    def f(z: Tensor) -> Tensor:
        return net(z.view_as(x), t).flatten(1)

    n = x[0].numel()
    jacobians = [
        torch.autograd.functional.jacobian(lambda z, i=i: net(z[None], t[i : i + 1])[0], x[i])
        for i in range(2)
    ]
    wanted = torch.stack([j.reshape(n, n).diagonal().sum() for j in jacobians])
    torch.testing.assert_close(exact_trace(f, x.flatten(1))[1], wanted, rtol=0, atol=1e-11)
    probes = torch.randint(2, (400, 2, n), generator=generator(3)).double() * 2 - 1
    traces = hutchinson_trace(f, x.flatten(1), probes)[1]
    assert ((traces.mean(0) - wanted).abs() < 5 * traces.std(0) / 20).all()


def test_rows_do_not_influence_one_another() -> None:
    net = built((3, 4, 4), classes=3, vector=2, image=1)
    x, t, y, v, im = (
        normal(5, 3, 4, 4),
        normal(5, seed=1),
        torch.tensor([0, 1, 2, 0, 1]),
        normal(5, 2),
        normal(5, 1, 4, 4),
    )
    together = net(x, t, y, v, im)
    alone = torch.cat([net(*(each[i : i + 1] for each in (x, t, y, v, im))) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    spoilt = x.clone()
    spoilt[2] = torch.nan
    rest = [0, 1, 3, 4]
    torch.testing.assert_close(net(spoilt, t, y, v, im)[rest], together[rest], rtol=0, atol=1e-14)


@each_shape
def test_every_condition_is_heard_and_its_absence_is_a_null(shape: tuple[int, ...]) -> None:
    joined = {"image": 1} if len(shape) > 1 else {}
    net = built(shape, classes=3, vector=2, **joined)
    x, t = normal(2, *shape), normal(2, seed=1)
    none = net(x, t)
    given = {"y": torch.tensor([0, 2]), "vector": normal(2, 2)}
    nothing = {"y": torch.tensor([3, 3]), "vector": torch.full((2, 2), math.nan)}
    if joined:
        given["image"], nothing["image"] = (
            normal(2, 1, *shape[1:]),
            torch.full((2, 1, *shape[1:]), math.nan),
        )
    net.check_condition(**given)
    for name, value in given.items():
        assert ((net(x, t, **{name: value}) - none).flatten(1).norm(dim=1) > 1e-2).all(), name
        # zeros are not none
        assert ((net(x, t, **{name: 0 * value}) - none).flatten(1).norm(dim=1) > 1e-2).all(), name
    torch.testing.assert_close(net(x, t, **nothing), none, rtol=0, atol=1e-14)


def test_dropout_is_of_what_blocks_add_and_of_training_alone() -> None:
    net = built((5,), dropout=1.0)
    x, t = normal(2, 5), normal(2, seed=1)
    same = built((5,))
    assert torch.equal(net(x, t), same(x, t))
    with torch.no_grad():
        for layer in same.down:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    torch.testing.assert_close(net.train()(x, t), same(x, t), rtol=0, atol=1e-14)


def test_the_compiler_and_low_precision_agree_with_it() -> None:
    net = built((5,), classes=3, bandwidth=0.1)
    x, t, y = normal(2, 5), normal(2, seed=1), torch.tensor([0, 2])
    wanted = net(x, t, y).detach()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, t, y=y), wanted, rtol=0, atol=1e-12)
    net.float()
    torch.testing.assert_close(net(x.float(), t.float(), y).double(), wanted, rtol=1e-4, atol=1e-4)
    scale = wanted.abs().max().item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x.float(), t.float(), y)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=0.05 * scale)
    out = net.bfloat16()(x.bfloat16(), t.bfloat16(), y)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=0.1 * scale)


def test_a_narrow_one_takes_off_the_noise_of_wide_data() -> None:
    """N(0, s²) in 32 dimensions, s = 2, through 4 units: the best output is a gain of x, with all
    dimensions in it.

    The optimum of E‖(sin φ·x0 − cos φ·ε) − out(x)‖² is out = g·x, g = sin φ·cos φ·(s² −
    1)/(s²·cos²φ + sin²φ).
    """
    net = ResMLP((32,), width=4, depth=1, fourier=0, told=16)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    draw = generator(1)
    for step in range(400):
        phi = torch.rand(256, generator=draw) * 1.2 + 0.2
        x0, eps = 2 * torch.randn(256, 32, generator=draw), torch.randn(256, 32, generator=draw)
        sin, cos = phi.sin()[:, None], phi.cos()[:, None]
        out = net(cos * x0 + sin * eps, phi.tan().log())
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 400)
        optimizer.zero_grad()
        (out - (sin * x0 - cos * eps)).square().mean().backward()
        optimizer.step()
    phi = torch.tensor([0.3, 0.7, 1.1])
    x = torch.randn(3, 32, generator=draw)
    gain = phi.sin() * phi.cos() * 3 / (4 * phi.cos() ** 2 + phi.sin() ** 2)
    wanted = gain[:, None] * x
    assert ((net(x, phi.tan().log()) - wanted).norm(dim=1) < 0.15 * wanted.norm(dim=1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is at least 1"),
        ({"depth": 0}, "depth is at least 1"),
        ({"fourier": -1}, "fourier is at least 0"),
        ({"told": 0}, "told is at least 1"),
        ({"features": 1}, "features is at least 2"),
        ({"bandwidth": 0.0}, "bandwidth is greater than 0"),
        ({"dropout": 2}, "dropout is between 0 and 1"),
        ({"waves": "sines"}, "unknown waves"),
        ({"image": 1}, "has none"),
    ],
)
def test_mistakes_are_said_in_a_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResMLP((5,), **options)


def test_a_sample_of_another_shape_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"built for samples of shape \(5,\).* got x of shape \(2, 4\)"
    ):
        ResMLP((5,))(torch.zeros(2, 4), torch.zeros(2))
    strict = ResMLP((5,), classes=3, condition_dropout=0)
    with pytest.raises(ValueError, match="always with y"):
        strict(torch.zeros(2, 5), torch.zeros(2))


def test_it_is_saved_and_loaded(tmp_path: object) -> None:
    torch.manual_seed(0)
    sde = scoresde.build("vp", "resmlp", shape=(5,), **SIZES, waves="fourier")
    for p in sde.net.parameters():
        nn.init.normal_(p)
    again = scoresde.load(scoresde.save(sde, f"{tmp_path}/model"))
    x = torch.randn(3, 5, generator=generator())
    assert torch.equal(again.net(x, torch.zeros(3)), sde.net(x, torch.zeros(3)))
