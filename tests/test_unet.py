"""The U-Net: beside diffusers' own, weight by weight; its counts beside the papers'; its
identities and its derivatives.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import scoresde
from scoresde.backbones import resampling
from scoresde.backbones.base import batchable
from scoresde.backbones.blocks import GroupNorm, norm
from scoresde.backbones.resampling import joined, patched
from scoresde.backbones.unet import UNet
from scoresde.backbones.unet_options import UNetOptions
from scoresde.density.trace import exact_trace

Options = dict[str, Any]

DDPM: Options = {
    "channels": 128,
    "multipliers": (1, 2, 2, 2),
    "attention": (16,),
    "heads": 1,
    "condition": "shift",
    "resample": "conv",
}
DDPMPP: Options = {
    **{
        "channels": 128,
        "multipliers": (2, 2, 2),
        "blocks": 4,
        "attention": (16,),
        "attention_up": "last",
        "heads": 1,
    },
    **{"condition": "shift", "project": True, "skip_scale": True},
}
NCSNPP: Options = {
    **DDPMPP,
    "resample": "fir",
    "residual_input": True,
    "waves": "fourier",
    "features": 256,
}
ADM: Options = {
    "channels": 192,
    "multipliers": (1, 2, 3, 4),
    "blocks": 3,
    "attention": (32, 16, 8),
    "classes": 1000,
}
LONG = {"multipliers": (1, 2, 2, 2)}

TINY: Options = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "heads": 2, "attention": [8]}
FAMILY: dict[str, Options] = {
    "ddpm": {**TINY, "condition": "shift", "resample": "conv"},
    "ddpm++": {
        **TINY,
        "condition": "shift",
        "project": True,
        "skip_scale": True,
        "attention_up": "last",
    },
    "ncsn++": {
        **TINY,
        "condition": "shift",
        "project": True,
        "skip_scale": True,
        "resample": "fir",
        "residual_input": True,
    },
    "adm": TINY,
    "patched": {**TINY, "patch": 2, "residual_input": True, "attention": [4]},
}
SHAPES = [(2, 8), (3, 8, 8), (1, 8, 4, 4)]


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network in float64, with no weight at zero."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    for p in net.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return net


def inputs(shape: tuple[int, ...], n: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(n, 1 + torch.Size(shape).numel(), generator=generator, dtype=torch.float64)
    return draw[:, 1:].reshape(n, *shape), draw[:, 0]


# --- counts ---


@pytest.mark.parametrize(
    ("options", "size", "count", "ours"),
    [
        (DDPM, 32, 35_746_307, 0),  # Ho et al. 2020, "35.7M"; google/ddpm-cifar10-32
        (
            DDPMPP,
            32,
            55_732_739,
            0,
        ),  # Karras et al. 2022, their networks.SongUNet without augmentation labels
        (NCSNPP, 32, 56_395_523, 0),
        ({**DDPMPP, **LONG}, 32, 61_804_419, 0),  # Song et al. 2021
        ({**NCSNPP, **LONG}, 32, 62_758_787, 0),
        (ADM, 64, 295_899_267, 768),  # Dhariwal & Nichol 2021; the label "none" is ours
    ],
    ids=["ddpm", "ddpm++", "ncsn++", "ddpm++ of 4 levels", "ncsn++ of 4 levels", "adm"],
)
def test_counts(options: Options, size: int, count: int, ours: int) -> None:
    with torch.device("meta"):
        net = UNet((3, size, size), **options)
    assert sum(p.numel() for p in net.parameters()) == count + ours


# --- diffusers ---


def _pair(ours: nn.Module, theirs: nn.Module) -> None:
    for name, p in ours.named_parameters():
        p.data.copy_(theirs.get_parameter(name).reshape(p.shape))


def _block(ours: Any, theirs: Any, attention: Any = None) -> None:
    names = {
        "norm1": "norm1",
        "conv1": "conv1",
        "affine": "time_emb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
    }
    for mine, its in names.items():
        _pair(getattr(ours, mine), getattr(theirs, its))
    if theirs.conv_shortcut is not None:
        _pair(ours.skip, theirs.conv_shortcut)
    assert (ours.attention is None) == (attention is None)
    if attention is not None:
        _pair(ours.attention.norm, attention.group_norm)
        _pair(ours.attention.out, attention.to_out[0])
        linear = (attention.to_q, attention.to_k, attention.to_v)
        ours.attention.qkv.weight.data = torch.cat([m.weight for m in linear]).detach()
        ours.attention.qkv.bias.data = torch.cat([m.bias for m in linear]).detach()


def _side(ours: list[Any], changes: list[Any], theirs: Any) -> None:
    """Copy one way, down or up: the blocks of each level, and between two levels what changes the
    size.
    """
    for i, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
        attentions = getattr(its, "attentions", [None] * len(its.resnets))
        for block, resnet, attention in zip(mine, its.resnets, attentions, strict=True):
            _block(block, resnet, attention)
        if i < len(ours) - 1:
            (change,) = its.upsamplers if hasattr(its, "upsamplers") else its.downsamplers
            _pair(changes[i].conv, change.conv) if isinstance(
                changes[i], resampling.Resample
            ) else _block(changes[i], change)


@pytest.mark.parametrize("member", ["ddpm", "adm"])
def test_diffusers(member: str) -> None:
    """Their weights in our network, and their vector of the time: the same output, and the same
    gradient.
    """
    diffusers = pytest.importorskip("diffusers")
    conv = member == "ddpm"
    their = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D" if conv else "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D" if conv else "AttnUpBlock2D"),
        norm_num_groups=4,
        attn_norm_num_groups=4,
        attention_head_dim=8,
        resnet_time_scale_shift="default" if conv else "scale_shift",
        **({} if conv else {"downsample_type": "resnet", "upsample_type": "resnet"}),
    )
    awake(their)
    options: Options = {"condition": "shift", "resample": "conv"} if conv else {}
    net: Any = UNet(
        (3, 8, 8),
        channels=16,
        multipliers=(1, 2),
        attention=(4,) if conv else (8, 4),
        head_channels=8,
        groups=4,
        **options,
    )
    net = net.double().eval()
    _pair(net.stem, their.conv_in)
    _side(list(net.encoder), list(net.downs), their.down_blocks)
    _block(net.middle[0], their.mid_block.resnets[0], their.mid_block.attentions[0])
    _block(net.middle[1], their.mid_block.resnets[1])
    _side(list(net.decoder), list(net.ups), their.up_blocks)
    _pair(net.norm, their.conv_norm_out)
    _pair(net.out, their.conv_out)
    x, t = inputs((3, 8, 8))
    told: list[Tensor] = []
    their.time_embedding.register_forward_hook(lambda _, __, out: told.append(out.detach()))

    class Told(nn.Module):
        def forward(self, x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
            return x, told[0]

    net.embed = Told()
    x.requires_grad_()
    out = [their(x, 100 * t.abs()).sample, net(x, t)]
    assert out[0].std() > 0.1
    torch.testing.assert_close(out[1], out[0], rtol=0, atol=1e-10)
    first, second = (torch.autograd.grad(o.square().sum(), x)[0] for o in out)
    torch.testing.assert_close(second, first, rtol=0, atol=1e-9)


# --- DDPM++ and NCSN++ as their papers and codes have them, from the weights alone ---

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def conv(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)


def group_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    groups, out = max(1, min(32, x.shape[1] // 4)), torch.empty_like(x)
    for part in torch.arange(x.shape[1]).chunk(groups):
        values = x[:, part].flatten(1)
        mean, variance = values.mean(1), values.var(1, correction=0)
        out[:, part] = (x[:, part] - mean[:, None, None, None]) / (variance + 1e-5).sqrt()[
            :, None, None, None
        ]
    return out * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def resampled(x: Tensor, change: str, taps: list[float]) -> Tensor:
    """Zhang 2019: insert zeros to double, filter each axis, drop every other place to halve."""
    weight = torch.tensor(taps, dtype=x.dtype)
    square = torch.outer(weight, weight) / weight.sum() ** 2
    length = len(taps)
    if change == "down":
        padded = F.pad(x, [(length - 2) // 2] * 4)
        return torch.cat(
            [F.conv2d(padded[:, [c]], square[None, None]) for c in range(x.shape[1])], 1
        )[:, :, ::2, ::2]
    sparse = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    sparse[:, :, ::2, ::2] = 4 * x
    padded = F.pad(sparse, [length // 2, (length - 1) // 2] * 2)
    return torch.cat([F.conv2d(padded[:, [c]], square[None, None]) for c in range(x.shape[1])], 1)


def attended(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    tokens = group_norm(w, f"{name}.norm", x).flatten(2).transpose(1, 2)
    q, k, v = linear(w, f"{name}.qkv", tokens).chunk(3, 2)
    size = q.shape[2] // heads
    heard = []
    for i in range(heads):
        mine = slice(i * size, (i + 1) * size)
        heard.append(
            torch.softmax(q[..., mine] @ k[..., mine].transpose(1, 2) / math.sqrt(size), 2)
            @ v[..., mine]
        )
    return linear(w, f"{name}.out", torch.cat(heard, 2)).transpose(1, 2).reshape(x.shape)


def residual(
    w: Weights,
    name: str,
    x: Tensor,
    e: Tensor,
    taps: list[float],
    change: str = "",
    attends: bool = False,
    heads: int = 2,
) -> Tensor:
    """BigGAN's block: Song et al. 2021, appendix H.2; sums over √2."""
    h, skip = F.silu(group_norm(w, f"{name}.norm1", x)), x
    if change:
        h, skip = resampled(h, change, taps), resampled(skip, change, taps)
    h = conv(w, f"{name}.conv1", h) + linear(w, f"{name}.affine", e)[:, :, None, None]
    h = conv(w, f"{name}.conv2", F.silu(group_norm(w, f"{name}.norm2", h)))
    if change or h.shape[1] != skip.shape[1]:
        skip = (
            torch.einsum("oc,bchw->bohw", w[f"{name}.skip.weight"], skip)
            + w[f"{name}.skip.bias"][:, None, None]
        )
    out = (skip + h) / math.sqrt(2)
    return (out + attended(w, f"{name}.attention", out, heads)) / math.sqrt(2) if attends else out


def song(
    w: Weights,
    x: Tensor,
    t: Tensor,
    levels: int,
    blocks: int,
    attends: set[int],
    taps: list[float],
    pyramid: bool,
) -> Tensor:
    """Karras et al. 2022, table 8; their code has attention in one block a level up: the last."""
    turn = t[:, None] * w["embed.rates"]
    e = linear(w, "embed.first", torch.cat([turn.sin(), turn.cos()], 1))
    e = F.silu(linear(w, "embed.last", F.silu(e)))
    seen, h = x, conv(w, "stem", x)
    kept = [h]
    for i in range(levels):
        if i:
            h = residual(w, f"downs.{i - 1}", h, e, taps, "down")
            if pyramid:  # the convolution on a margin that the filter sees, then the filter
                weight, bias = w[f"pyramid.{i - 1}.conv.weight"], w[f"pyramid.{i - 1}.conv.bias"]
                margin = (len(taps) - 2) // 2
                wide = F.conv2d(seen, weight, padding=1 + margin)
                square = torch.outer(*[torch.tensor(taps, dtype=x.dtype) / sum(taps)] * 2)[
                    None, None
                ]
                low = torch.cat(
                    [F.conv2d(wide[:, [c]], square, stride=2) for c in range(wide.shape[1])], 1
                )
                h = seen = (h + low + bias[:, None, None]) / math.sqrt(2)
            kept.append(h)
        for j in range(blocks):
            h = residual(w, f"encoder.{i}.{j}", h, e, taps, attends=i in attends)
            kept.append(h)
    h = residual(w, "middle.0", h, e, taps, attends=True)
    h = residual(w, "middle.1", h, e, taps)
    for i in range(levels):
        if i:
            h = residual(w, f"ups.{i - 1}", h, e, taps, "up")
        for j in range(blocks + 1):
            last = j == blocks and levels - 1 - i in attends
            h = residual(
                w, f"decoder.{i}.{j}", torch.cat([h, kept.pop()], 1), e, taps, attends=last
            )
    assert not kept
    return conv(w, "out", F.silu(group_norm(w, "norm", h)))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("member", ["ddpm++", "ncsn++"])
def test_ddpmpp_and_ncsnpp_are_those_of_the_papers(member: str, blocks: int) -> None:
    sizes: Options = {
        "channels": 12,
        "multipliers": [1, 2, 2],
        "blocks": blocks,
        "attention": [8, 4],
        "features": 10,
    }
    options = {**FAMILY[member], **sizes, "attention_up": "last"}
    torch.manual_seed(0)
    net = awake(UNet((3, 8, 8), **options))
    x, t = inputs((3, 8, 8))
    w = {name: value.detach() for name, value in net.state_dict().items()}
    ncsn = member == "ncsn++"
    wanted = song(w, x, t, 3, blocks, {0, 1}, [1.0, 3.0, 3.0, 1.0] if ncsn else [1.0, 1.0], ncsn)
    assert wanted.std() > 0.1
    torch.testing.assert_close(net(x, t), wanted, rtol=0, atol=1e-10)


# --- identities ---


@pytest.mark.parametrize("shape", SHAPES)
def test_repetition_and_convolution_are_one_transposed_convolution(shape: tuple[int, ...]) -> None:
    x, _ = inputs(shape)
    layer = resampling.convolution(len(shape) - 1, shape[0], 5).double()
    weight, bias = layer.get_parameter("weight"), nn.init.normal_(layer.get_parameter("bias"))
    torch.testing.assert_close(
        resampling.doubled_convolution(x, weight, bias),
        layer(resampling.doubled(x)),
        rtol=0,
        atol=1e-13,
    )


def test_changes_of_size_by_hand() -> None:
    x = torch.tensor([[[1.0, 3.0, 5.0, 5.0]]])
    assert torch.equal(resampling.halved(x), torch.tensor([[[2.0, 5.0]]]))
    assert torch.equal(64 * resampling.kernel("fir", 2)[0, 0, 1], torch.tensor([3.0, 9, 9, 3]))
    y = torch.tensor([[[4.0, 8.0]]])
    wanted = torch.tensor([[[3.0, 5, 7, 6]]])
    assert torch.equal(resampling.doubled(y, resampling.kernel("fir", 1)), wanted)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (50, 10), (3, 1)])
def test_groups_divide_the_channels_into_four_at_least(channels: int, groups: int) -> None:
    assert norm(channels).num_groups == groups


@pytest.mark.parametrize("shape", SHAPES)
def test_doubling_is_the_transpose_of_halving(shape: tuple[int, ...]) -> None:
    """⟨halved x, y⟩ = ⟨x, doubled y⟩/2^rank, with either filter; both keep a constant inside."""
    rank = len(shape) - 1
    x, _ = inputs(shape)
    y, _ = inputs((shape[0], *(n // 2 for n in shape[1:])))
    for taps in (None, resampling.kernel("fir", rank).double()):
        torch.testing.assert_close(
            (resampling.halved(x, taps) * y).sum() * 2**rank,
            (x * resampling.doubled(y, taps)).sum(),
        )
        for change in (resampling.halved, resampling.doubled):
            inside = F.pad(
                change(torch.ones(1, 2, *[8] * rank, dtype=torch.float64), taps), [-1, -1] * rank
            )
            torch.testing.assert_close(inside, torch.ones_like(inside))


@pytest.mark.parametrize("name", list(resampling.FILTERS))
@pytest.mark.parametrize("shape", SHAPES)
def test_the_pyramid_is_a_convolution_and_then_a_filter(shape: tuple[int, ...], name: str) -> None:
    """The order of the reference: W on a wide margin, then the filter with stride 2."""
    rank = len(shape) - 1
    x, _ = inputs(shape)
    pyramid = resampling.Pyramid(rank, shape[0], 5, name).double()
    weight, taps = pyramid.conv.get_parameter("weight"), resampling.kernel(name, rank).double()
    wide = resampling.APPLY[rank](x, weight, padding=1 + (taps.shape[-1] - 1) // 2)
    torch.testing.assert_close(
        pyramid(x), resampling.filtered(wide, taps, stride=2, padding=0), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_patches(shape: tuple[int, ...]) -> None:
    x, _ = inputs(shape)
    assert torch.equal(joined(patched(x, 2), 2), x)
    if len(shape) == 3:
        assert torch.equal(patched(x, 2), F.pixel_unshuffle(x, 2))
        assert torch.equal(joined(patched(x, 2), 2), F.pixel_shuffle(patched(x, 2), 2))


# --- what a backbone must be ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("member", list(FAMILY))
def test_zero_at_first_then_all_parameters_learn_and_mates_do_not_mix(
    member: str, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    net = UNet(shape, **FAMILY[member], classes=3, vector=2, image=1).double()
    x, t = inputs(shape)
    condition = {"y": torch.tensor([0, 1, 2]), "vector": x.flatten(1)[:, :2], "image": x[:, :1]}
    assert not net(x, t).any()
    awake(net)
    out = net(x, t, **condition)
    torch.testing.assert_close(
        out[1:2],
        net(x[1:2], t[1:2], **{k: v[1:2] for k, v in condition.items()}),
        rtol=0,
        atol=1e-12,
    )
    assert out.is_contiguous()
    assert out.shape == x.shape
    for name in condition:
        assert not torch.allclose(
            out, net(x, t, **{k: v for k, v in condition.items() if k != name})
        )
    for given in (condition, {}):
        net.train()(x, t, **given).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


@pytest.mark.parametrize(
    "member",
    [pytest.param(m, marks=() if m in ("ncsn++", "adm") else pytest.mark.slow) for m in FAMILY],
)
def test_traces(member: str) -> None:
    """exact_trace and forward mode, against the whole Jacobian."""
    shape = (2, 8, 8)
    torch.manual_seed(0)
    net = awake(UNet(shape, **FAMILY[member]))
    x, t = inputs(shape, 2)

    def f(z: Tensor) -> Tensor:
        out: Tensor = net(z.reshape(-1, *shape), t[: len(z)])
        return out.flatten(1)

    z = x.flatten(1)
    jacobian: Tensor = torch.autograd.functional.jacobian(lambda v: f(v[None])[0], z[0])  # type: ignore[no-untyped-call]
    out, trace = exact_trace(f, z)
    torch.testing.assert_close(trace[0], jacobian.trace(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out, f(z))
    with sdpa_kernel(SDPBackend.MATH):  # no fused attention has a forward mode
        pushed = torch.func.jvp(f, (z[:1],), (z[1:],))[1]
    torch.testing.assert_close(pushed[0], jacobian @ z[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("member", "shape"),
    [
        pytest.param(
            member,
            shape,
            marks=()
            if (len(shape) == 3 and member in ("ddpm", "adm"))
            or (len(shape), member) == (2, "ddpm")
            else (pytest.mark.slow,),
        )
        for member in FAMILY
        for shape in ((2, 8), (1, 8, 8), (1, 8, 4, 4))
    ],
)
def test_a_trace_is_one_backward_pass(
    member: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All products batched, with a graph and without: torch's group norm could not be."""
    net = awake(UNet(shape, **FAMILY[member]))
    x, t = inputs(shape, 1)
    calls, grad = [0], torch.autograd.grad

    def counted(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        return grad(*args, **more)

    def f(z: Tensor) -> Tensor:
        out: Tensor = net(z.reshape(-1, *shape), t).flatten(1)
        return out

    z = x.flatten(1)
    monkeypatch.setattr(torch.autograd, "grad", counted)
    _, plain = exact_trace(f, z)
    assert calls[0] == 1
    _, graphed = exact_trace(f, z.clone().requires_grad_(), create_graph=True)
    assert calls[0] == 2
    monkeypatch.setattr("scoresde.density.trace.BATCHED", {"cpu": 0})
    _, singly = exact_trace(f, z)
    assert calls[0] == 2 + z.shape[1]
    torch.testing.assert_close(plain, singly, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(graphed, singly, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_batched_group_norm_is_torchs(shape: tuple[int, ...]) -> None:
    x, _ = inputs((8, *shape[1:]))
    norm = awake(GroupNorm(2, 8))
    with batchable():
        mine = norm(x)
    torch.testing.assert_close(mine, norm(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "member", [pytest.param(m, marks=pytest.mark.slow) for m in ("patched", "ncsn++", "adm")]
)
def test_compiles_without_breaks(member: str) -> None:
    net = awake(UNet((3, 8, 8), **FAMILY[member]))
    x, t = inputs((3, 8, 8))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t), net(x, t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("member", list(FAMILY))
def test_bfloat16(member: str) -> None:
    """Mixed and pure bfloat16, whose unit is 2^-8, within a few percent of float64, for inputs of
    size 100 too.
    """
    net = awake(UNet((3, 8, 8), **FAMILY[member]))
    x, t = inputs((3, 8, 8))
    for scale in (1.0, 100.0):
        exact = net(scale * x, t)
        single = copy.deepcopy(net).float()
        with torch.autocast("cpu", torch.bfloat16):
            mixed = single((scale * x).float(), t.float())
        pure = copy.deepcopy(net).bfloat16()((scale * x).bfloat16(), t.bfloat16())
        for out in (mixed, pure):
            assert out.dtype is torch.bfloat16
            assert (out.double() - exact).norm() < 0.05 * exact.norm()


def test_options_survive_json_and_models_their_file(tmp_path: Any) -> None:
    options = json.loads(json.dumps({**FAMILY["ncsn++"], "attention": (8, 4)}))
    sde = scoresde.build("vp", "unet", shape=(3, 8, 8), **options)
    for p in sde.net.parameters():
        nn.init.normal_(p, std=0.1)
    scoresde.save(sde, tmp_path / "model")
    again = scoresde.load(tmp_path / "model")
    x, t = inputs((3, 8, 8))
    torch.testing.assert_close(
        again.net(x.float(), t.float()), sde.net(x.float(), t.float()), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 7, 7), {"multipliers": (1, 2)}, "multiples of 2, got \\(7, 7\\); try 6 or 8"),
        ((1, 28, 28), {"multipliers": (1, 1, 1, 1)}, "4 levels .* multiples of 8.*try 24 or 32"),
        ((1, 28, 28), {"patch": 4}, "patch=4 .* multiples of 16"),
        ((2,), {}, "for points try 'mlp'"),
        ((1, 2, 2, 2, 2), {}, r"\(C, n\), \(C, n, n\) or"),
        (
            (3, 8, 8),
            {"attention": (16,)},
            "attention=16 is no level of this U-Net; it has 8, 4, 2",
        ),
        ((3, 8, 8), {"multipliers": ()}, "multipliers is empty"),
        ((3, 8, 8), {"multipliers": (1, 0)}, "multipliers is at least 1"),
        ((3, 8, 8), {"resample": "fri"}, "unknown resample='fri'. Did you mean 'fir'"),
        ((3, 8, 8), {"condition": "scale"}, "unknown condition"),
        ((3, 8, 8), {"attention_up": "first"}, "unknown attention_up"),
        ((3, 8, 8), {"channels": 8, "heads": 3}, "3 heads do not divide 16 channels"),
        ((3, 8, 8), {"dropout": 1.5}, "dropout is between 0 and 1"),
        ((3, 8, 8), {"blocks": 0}, "blocks is at least 1"),
        ((3, 8, 8), {"waves": "cosine"}, "unknown waves"),
        ((3, 8, 8), {"features": 5}, "features is even, as many sines as cosines, got 5; try 6"),
        ((1, 28, 28), {"attention": (16,)}, r"it has 28, 14, 7: try attention=\(14,\)"),
        ((3, 8, 8), {"multipliers": (1,) * 30}, "30 entries, one a level"),
        ((3, 8, 8), {"attention": [8] * 10**6}, "attention has 1000000 entries"),
        ((3, 0, 8), {}, "all sizes at least 1"),
        ((3, -8, 8), {}, "all sizes at least 1"),
    ],
)
def test_bad_options(shape: tuple[int, ...], options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(shape, **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("multipliers", value) for value in (2, (1, 1.5), iter((1, 2)))),
        *(("attention", value) for value in (8, "8", 8.0)),
        *(("project", "yes"), ("skip_scale", 1), ("residual_input", "False"), ("channels", True)),
    ],
)
def test_options_of_another_type(name: str, value: object) -> None:
    with pytest.raises(
        TypeError, match=f"{name} is (a list or tuple of integers|an integer|True or False).*, got"
    ):
        UNet((3, 8, 8), **{name: value})  # type: ignore[arg-type]


def test_options_are_arguments_by_name_and_place() -> None:
    names = list(inspect.signature(UNet).parameters)
    assert names == ["shape", *(field.name for field in dataclasses.fields(UNetOptions))]
    net = UNet((1, 8, 8), 8, (1, 2), heads=2)
    options = {"channels": 8, "multipliers": (1, 2), "heads": 2}
    assert scoresde.BACKBONES.options_of(net) == {"shape": (1, 8, 8), **options}
    with pytest.raises(TypeError, match="unexpected keyword argument 'chanels'"):
        UNet((1, 8, 8), chanels=8)
    with pytest.raises(ValueError, match=r"no option 'chanels'\. Did you mean 'channels'"):
        scoresde.BACKBONES.build("ddpm-cifar", (3, 32, 32), chanels=8)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 9, 8), (3, 8, 8), (2, 192)])
def test_other_samples_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes samples of shape \(3, 8, 8\), got x of shape"):
        UNet((3, 8, 8), **TINY)(torch.zeros(shape), torch.zeros(shape[0]))


def test_28_is_halved_twice() -> None:
    net = awake(UNet((1, 28, 28), channels=8, blocks=1, attention=(14, 7)))
    x, t = inputs((1, 28, 28))
    assert net(x, t).std() > 0.01


@pytest.mark.parametrize(
    ("name", "channels"), [("unet", 1), pytest.param("dit", 3, marks=pytest.mark.slow)]
)
def test_log_prob_of_images_is_the_prior_plus_the_integral_of_the_trace(
    name: str, channels: int
) -> None:
    """RK4 in φ by hand, 2 steps, with the trace of the whole Jacobian: log p(z_0) = log N(z_1) + ∫
    div dφ, rectified.
    """
    torch.manual_seed(0)
    small = {
        "unet": {"channels": 8, "multipliers": (1, 2), "blocks": 1},
        "dit": {"width": 16, "depth": 1, "heads": 2},
    }[name]
    sde = scoresde.build("rectified", name, shape=(channels, 4, 4), **small).double().eval()
    for parameter in sde.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(1, 16 * channels, dtype=torch.float64)

    def rates(z: Tensor, phi: float) -> tuple[Tensor, Tensor]:
        jacobian = torch.autograd.functional.jacobian(
            lambda z: sde.arc_velocity(z[None], phi)[0], z[0], vectorize=False
        )
        return sde.arc_velocity(z, phi).detach(), jacobian.trace()

    z, integral, h = x, torch.zeros((), dtype=torch.float64), math.pi / 4
    for i in range(2):
        k: list[tuple[Tensor, Tensor]] = []
        for c in (0.0, 0.5, 0.5, 1.0):
            k.append(rates(z + c * h * k[-1][0] if k else z, (i + c) * h))
        z = z + h / 6 * (k[0][0] + 2 * k[1][0] + 2 * k[2][0] + k[3][0])
        integral = integral + h / 6 * (k[0][1] + 2 * k[1][1] + 2 * k[2][1] + k[3][1])
    by_hand = -0.5 * (z.square() + math.log(2 * math.pi)).sum() + integral
    assert abs(float(integral)) > 0.1  # or the trace would not be seen
    found = scoresde.log_prob(
        sde, x.view(1, channels, 4, 4), solver="rk4", steps=2, spacing="arc", trace="exact"
    )
    torch.testing.assert_close(found, by_hand[None], rtol=1e-10, atol=1e-8)
