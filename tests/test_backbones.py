"""Every backbone by name, a network of diffusers and a plug-in: what all of them must hold.

Registering enrols: a newcomer of `BACKBONES` is tested here without a word, at the small sizes of
conftest's `fitting`.
"""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import SHAPES, fitting, generator, options_of
from scoresde import ScoreSDE
from scoresde.backbones import BACKBONES
from scoresde.backbones.base import can_trace
from scoresde.density.trace import exact_trace, hutchinson_trace

PLUGIN = """
import torch
from torch import nn

class Wave(nn.Module):
    def __init__(self, shape, width=16):
        super().__init__()
        n = torch.Size(shape).numel()
        self.first, self.last = nn.Linear(n + 1, width), nn.Linear(width, n)

    def forward(self, x, t):
        h = self.first(torch.cat([x.flatten(1), t[:, None]], 1)).sin()
        return self.last(h).reshape(x.shape)
"""
BLOCKS = {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}
PLAIN = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
DANCE = {
    "down_block_types": ["DownBlock1DNoSkip", "DownBlock1D"],
    "up_block_types": ["UpBlock1D", "UpBlock1DNoSkip"],
}
Case = tuple[tuple[int, ...], dict[str, Any]]
NEWCOMERS: dict[str, Case] = {
    "diffusers:UNet2DModel": ((2, 4, 4), {**BLOCKS, **PLAIN, "mid_block_type": None}),
    "diffusers:UNet2DConditionModel": ((2, 4, 4), {**BLOCKS, **PLAIN, "mid_block_type": None}),
    "diffusers:UNet1DModel": (
        (2, 16),
        {**DANCE, "block_out_channels": [32, 32], "extra_in_channels": 32, "layers_per_block": 1},
    ),
    "diffusers:DiTTransformer2DModel": (
        (2, 4, 4),
        {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2},
    ),
    "backbone_plugin": ((6,), {"width": 8}),
    "gated": ((2, 8), {"width": 8}),  # of docs/extending.md
}
OURS = [
    name
    for name in BACKBONES
    if not name.startswith(("doctest", "test_")) or name == "test_linear"
]
LABELLED = {name for name in OURS if "classes" in options_of(name)}
LABELLED |= {
    name for name in NEWCOMERS if name.startswith("diffusers:") and name != "diffusers:UNet1DModel"
}
SLOW = {
    name for name in NEWCOMERS if name.startswith("diffusers:") and name != "diffusers:UNet2DModel"
}
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in (*OURS, *NEWCOMERS)
]
TOLD = [param for param in NAMES if param.values[0] in LABELLED]


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A package with an entry point, on the path as if installed; and the backbone that the
    documentation shows.
    """
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(
        r'^@scoresde\.BACKBONES\.register\("gated"\)\n.*?(?=^\S+ = )', page, re.M | re.S
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(
        code,
        {"__name__": "__docs__", "scoresde": scoresde, "nn": nn, "torch": torch, "math": math},
    )
    folder = tmp_path_factory.mktemp("site")
    (folder / "backbone_package.py").write_text(PLUGIN)
    about = folder / "backbone_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: backbone-package\nVersion: 1.0\n"
    )
    (about / "entry_points.txt").write_text(
        "[scoresde.backbones]\nbackbone_plugin = backbone_package:Wave\n"
    )
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("backbone_package", None)
    for name in {"backbone_plugin", "gated"} & set(BACKBONES):
        BACKBONES.remove(name)


def case(name: str) -> Case:
    return NEWCOMERS[name] if name in NEWCOMERS else fitting(name)


def network(name: str, **more: Any) -> nn.Module:
    """A small network whose parameters are all random: nothing hides behind zeros."""
    shape, options = case(name)
    torch.manual_seed(0)
    net = BACKBONES.build(name, shape, **options | more).double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
    return net


def draw(name: str, n: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """States and noise labels."""
    rng = generator(seed)
    x = torch.randn(n, *case(name)[0], generator=rng, dtype=torch.float64)
    return x, 6 * torch.rand(n, generator=rng, dtype=torch.float64) - 3


def flat(net: nn.Module, x: Tensor, t: Tensor) -> tuple[Any, Tensor]:
    """The network as a map of rows, and its argument."""
    return lambda z: net(z.reshape(len(z), *x.shape[1:]), t).flatten(1), x.flatten(1)


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_shape_and_dtype_of_every_shape_that_it_takes(name: str) -> None:
    taken = []
    for shape in [case(name)[0]] if name in NEWCOMERS else SHAPES:
        try:
            torch.manual_seed(0)
            net = BACKBONES.build(name, shape, **case(name)[1])
        except (ValueError, IndexError):
            continue
        taken.append(shape)
        for dtype in (torch.float32, torch.float64):
            x = torch.randn(2, *shape, generator=generator(), dtype=dtype)
            out = net.to(dtype)(x, torch.tensor([-6.2, 6.2], dtype=dtype))
            assert out.shape == x.shape
            assert out.dtype == dtype
            # Ours start at zero: that is the best linear prediction of "edm".
            assert (
                bool(out.isfinite().all())
                if name in ("test_linear", *NEWCOMERS)
                else not out.any()
            )
    assert taken


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_all_parameters(name: str) -> None:
    net = network(name, **{"classes": 3} if name in LABELLED else {})
    x, t = draw(name, 4)
    given: dict[str, Any] = {"y": torch.tensor([0, 1, 2, 0])} if name in LABELLED else {}
    if name == "learned_variance":  # both outputs
        given["with_variance"] = True
    if name == "masked":  # a whole row, and rows of which something is seen
        given["seen"] = torch.stack([x, torch.zeros_like(x)], 1)
        given["seen"][1:, 1, 1:3] = torch.tensor([1.0, -1.0])
    if name == "encoded_resmlp":  # numbers, and a row without, for the null
        given["vector"] = torch.tensor([[1.0], [2.0], [-1.0], [math.nan]], dtype=x.dtype)
    (
        net(x, t, **given) * torch.randn(x.shape, generator=generator(1), dtype=x.dtype)
    ).sum().backward()
    wanting = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert not wanting, f"no gradient reaches {sorted(wanting)}"


@pytest.mark.parametrize("name", NAMES)
def test_in_eval_mode_it_is_deterministic_and_rows_do_not_mix(name: str) -> None:
    net = network(name)
    x, t = draw(name)
    x.requires_grad_()
    out = net(x, t)
    assert torch.equal(net(x, t), out)
    torch.testing.assert_close(
        torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)]), out, rtol=1e-11, atol=1e-11
    )
    (grad,) = torch.autograd.grad(out[1].square().sum(), x)
    assert not grad[0].any()
    assert grad[1].any()
    assert not grad[2].any()


@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64(name: str) -> None:
    net = network(name)
    x, t = draw(name)
    wanted = net(x, t).detach()
    got = copy.deepcopy(net).float()(x.float(), t.float()).detach()
    assert got.dtype == torch.float32
    # diffusers' embedding of a step number near 1000 is known to 1e-4 in float32.
    assert float((got - wanted).square().mean().sqrt()) < 1e-4 * float(
        wanted.square().mean().sqrt()
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_trace_is_that_of_autograds_jacobian(name: str) -> None:
    net = network(name)
    x, t = draw(name, 2)
    f, z = flat(net, x, t)
    out, trace = exact_trace(f, z)
    jacobian = torch.autograd.functional.jacobian(lambda z: f(z).sum(0), z)  # rows do not mix
    torch.testing.assert_close(
        trace, jacobian.diagonal(dim1=0, dim2=2).sum(1), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(out, f(z), rtol=1e-11, atol=1e-11)
    if can_trace(net):
        value, closed = net.value_and_trace(x, t)  # type: ignore[operator]
        torch.testing.assert_close(closed, trace, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(value.flatten(1), out, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_hutchinsons_mean_is_the_trace_within_its_error(name: str) -> None:
    """Five standard errors of 200 probes: a false alarm in 10⁶, of each of two rows."""
    net = network(name)
    f, z = flat(net, *draw(name, 2))
    _, trace = exact_trace(f, z)
    probes = torch.randint(2, (200, *z.shape), generator=generator(), dtype=torch.float64) * 2 - 1
    found = hutchinson_trace(f, z, probes)[1]
    assert bool(((found.mean(0) - trace).abs() <= 5 * found.std(0) / 200**0.5 + 1e-9).all())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_saved_and_loaded_copied_and_strict(name: str, tmp_path: Path) -> None:
    net = network(name, **{"classes": 3} if name in LABELLED else {})
    x, t = draw(name)
    wanted = net(x, t)
    sde = ScoreSDE(scoresde.VPSDE(), net, shape=case(name)[0]).double().eval()
    again = scoresde.load(scoresde.save(sde, tmp_path / "model")).net
    assert BACKBONES.name_of(again) == name
    assert torch.equal(again(x, t), wanted)
    assert torch.equal(copy.deepcopy(net)(x, t), wanted)
    torch.manual_seed(1)
    other = type(net)(**net._options).double().eval()  # type: ignore[arg-type]
    assert not torch.equal(other(x, t), wanted)
    other.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(other(x, t), wanted)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            *param.values, dtype, marks=() if i % 3 == j and not param.marks else pytest.mark.slow
        )
        for i, param in enumerate(NAMES)
        for j, dtype in enumerate((torch.bfloat16, torch.float16, torch.float64))
    ],
)
def test_in_other_precision_it_is_saved_and_loaded(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    net = network(name).to(dtype)
    x, t = (value.to(dtype) for value in draw(name))
    wanted = net(x, t)
    assert wanted.dtype == dtype
    sde = ScoreSDE(scoresde.VPSDE(), net, shape=case(name)[0])
    again = scoresde.load(scoresde.save(sde, tmp_path / "model")).net
    assert {p.dtype for p in again.parameters() if p.is_floating_point()} == {dtype}
    for mine, theirs in zip(
        net.buffers(), again.buffers(), strict=True
    ):  # frequencies of waves are not rounded
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    assert torch.equal(again(x, t), wanted)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(*param.values, marks=pytest.mark.slow)
        if param.values[0]
        in (
            "dit",
            "uvit",
            "unet",
            "resmlp",
            "two_drifts",
            "diffusers:UNet2DModel",
        )
        else param
        for param in NAMES
    ],
)
def test_it_compiles_without_a_break(name: str) -> None:
    net = network(name, **{"classes": 3} if name in LABELLED else {})
    x, t = draw(name)
    given = {"y": torch.tensor([0, 1, 2])} if name in LABELLED else {}
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():  # what a compiler takes for backward passes is three times as much
        torch.testing.assert_close(
            compiled(x, t, **given), net(x, t, **given), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("name", NAMES)
def test_it_works_under_autocast_to_bf16(name: str) -> None:
    net = network(name).float()
    x, t = (value.float() for value in draw(name))
    wanted = net(x, t).detach()
    with torch.autocast("cpu", torch.bfloat16):
        got = net(x, t).detach().float()
    assert bool(got.isfinite().all())
    assert float((got - wanted).square().mean().sqrt()) < 0.05 * float(
        wanted.square().mean().sqrt()
    )


# ------------------------------------------------------------------ conditions


@pytest.mark.parametrize("name", TOLD)
def test_labels_are_told_checked_and_left_out_in_training(name: str) -> None:
    shape = case(name)[0]
    net = network(name, classes=3)
    x, t = draw(name, 1)
    told = [net(x, t, **given) for given in ({}, *({"y": torch.tensor([k])} for k in range(3)))]
    # no label is a label of its own
    assert all(not torch.allclose(a, b) for i, a in enumerate(told) for b in told[:i])
    sde = ScoreSDE(scoresde.VPSDE(), net, shape=shape)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        y = torch.tensor([2], dtype=dtype)
        sde.given(y=y)
        assert torch.equal(net(x, t, y=y), told[3])
        assert bool(net.train()(x, t, y=y).isfinite().all())  # in training too
        net.eval()
    torch.testing.assert_close(sde.given(y=2).net(x, t, y=torch.tensor([2])), told[3])
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="labels y run from 0 to 2, got"):
            sde.given(y=wrong)
    with pytest.raises(ValueError, match="labels y are integers"):
        sde.given(y=0.5)
    with pytest.raises(ValueError, match="build it with classes=n"):
        ScoreSDE(scoresde.VPSDE(), network(name), shape=shape).given(y=1)
    # In training a label is left out with the probability that was asked for: 2000 rows, 4.9
    # standard errors, 1e-6.
    net = network(name, classes=3, condition_dropout=0.5)
    rows = x.expand(2000, *shape), t.expand(2000)
    told = net.drop_conditions({"y": torch.full((2000,), 1)}, torch.Generator().manual_seed(0))  # type: ignore[operator]
    out = net.eval()(*rows, **told).flatten(1)
    near = [
        ((out - net(x, t, **given).flatten(1)).abs().amax(1) < 1e-9)
        for given in ({}, {"y": torch.tensor([1])})
    ]
    assert bool((near[0] ^ near[1]).all())
    assert abs(float(near[0].double().mean()) - 0.5) < 4.9 * (0.25 / 2000) ** 0.5


@pytest.mark.parametrize("name", TOLD)
def test_a_label_that_is_missing_is_named_where_none_ever_was(name: str) -> None:
    net = network(name, classes=3, condition_dropout=0)
    x, t = draw(name, 2)
    with pytest.raises(
        ValueError, match=r"condition_dropout=0, always with y: write sde.given\(y=...\)"
    ):
        net(x, t)
    net.train()
    assert bool(net(x, t, y=torch.tensor([0, 1])).isfinite().all())
