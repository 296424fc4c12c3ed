"""DiT and U-ViT against their papers' equations, written out here from the weights alone, with
explicit softmax and loops.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import generator
from scoresde.backbones.dit import DiT, modulate
from scoresde.backbones.tokens import divisors, grid, patchify, positions, unpatchify
from scoresde.backbones.uvit import UViT
from scoresde.density.trace import exact_trace, hutchinson_trace

F64 = torch.float64
SHAPES = [(2, 8), (3, 8, 8), (1, 4, 4, 4)]
SIZES = {
    DiT: {"width": 12, "depth": 2, "heads": 2, "features": 8},
    UViT: {"width": 12, "depth": 5, "heads": 2},
}
NETS = [DiT, UViT]
Net = type[DiT] | type[UViT]
each_net = pytest.mark.parametrize("cls", NETS)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def built(cls: Net, shape: tuple[int, ...], **options: object) -> DiT | UViT:
    """With all weights drawn, those that start at zero too, so that every part speaks."""
    net = cls(shape, **{**SIZES[cls], **options}).double().eval()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(normal(*p.shape, seed=i) / math.sqrt(p.shape[-1]))
    return net


# ------------------------------------------------------------------ the papers' equations


Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros((), dtype=F64))


def layer_norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def attention(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    q, k, v = linear(w, f"{name}.qkv", x).chunk(3, -1)
    size = x.shape[-1] // heads
    parts = []
    for i in range(heads):
        cut = slice(i * size, (i + 1) * size)
        scores = torch.einsum("bnd,bmd->bnm", q[..., cut], k[..., cut]) / math.sqrt(size)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        parts.append(torch.einsum("bnm,bmd->bnd", weights, v[..., cut]))
    return linear(w, f"{name}.join", torch.cat(parts, -1))


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def corners(shape: tuple[int, ...], p: int) -> list[tuple[slice, ...]]:
    """The patches of a sample, one slice an axis."""
    return [
        tuple(slice(i, i + p) for i in at)
        for at in itertools.product(*(range(0, n, p) for n in shape[1:]))
    ]


def cut(x: Tensor, p: int) -> Tensor:
    return torch.stack([x[(..., *at)].flatten(1) for at in corners(tuple(x.shape[1:]), p)], 1)


def paste(tokens: Tensor, shape: tuple[int, ...], p: int) -> Tensor:
    x = torch.full((len(tokens), *shape), torch.nan, dtype=F64)
    for i, at in enumerate(corners(shape, p)):
        x[(..., *at)] = tokens[:, i].reshape(-1, shape[0], *[p] * (len(shape) - 1))
    return x


def waves(w: Weights, name: str, t: Tensor) -> Tensor:
    turn = t[:, None] * w[f"{name}.rates"]
    return torch.cat([torch.sin(turn), torch.cos(turn)], 1)


def dit(net: DiT, x: Tensor, t: Tensor, y: Tensor, heads: int) -> Tensor:
    """Peebles & Xie 2023, figure 3, right: the block with adaLN-zero; and the final layer."""
    w = dict(net.state_dict())
    c = silu(
        linear(w, "embed.last", silu(linear(w, "embed.first", waves(w, "embed", t))))
        + w["embed.label.weight"][y]
    )
    h = linear(w, "first", cut(x, net.patch)) + places(grid(net.shape, net.patch), 12)
    for i in range(2):
        b1, g1, a1, b2, g2, a2 = linear(w, f"blocks.{i}.turn", c)[:, None].chunk(6, -1)
        h = h + a1 * attention(
            w, f"blocks.{i}.attention", layer_norm(h, 1e-6) * (1 + g1) + b1, heads
        )
        hidden = tanh_gelu(
            linear(w, f"blocks.{i}.perceptron.up", layer_norm(h, 1e-6) * (1 + g2) + b2)
        )
        h = h + a2 * linear(w, f"blocks.{i}.perceptron.down", hidden)
    b, g = linear(w, "turn", c)[:, None].chunk(2, -1)
    return paste(linear(w, "last", layer_norm(h, 1e-6) * (1 + g) + b), net.shape, net.patch)


def places(sizes: tuple[int, ...], width: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5, number by number, a part of the width for each axis."""
    count = width // (2 * len(sizes))
    rows = []
    for at in itertools.product(*map(range, sizes)):
        row = [
            f(i / 10_000 ** (k / count))
            for i in at
            for f in (math.sin, math.cos)
            for k in range(count)
        ]
        rows.append(row + [0.0] * (width - len(row)))
    return torch.tensor(rows, dtype=F64).float().double()


def uvit(net: UViT, x: Tensor, t: Tensor, y: Tensor, heads: int) -> Tensor:
    """Bao et al. 2023: concatenation, a linear map, a ViT block; at the end a convolution of 3."""
    w = dict(net.state_dict())

    def norm(name: str, h: Tensor) -> Tensor:
        return layer_norm(h, 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def block(name: str, h: Tensor) -> Tensor:
        h = h + attention(w, f"{name}.attention", norm(f"{name}.norm1", h), heads)
        hidden = erf_gelu(linear(w, f"{name}.perceptron.up", norm(f"{name}.norm2", h)))
        return h + linear(w, f"{name}.perceptron.down", hidden)

    told = silu(waves(w, "embed", t)) + w["embed.label.weight"][y]
    tokens = [
        silu(waves(w, "noise", t))[:, None],
        told[:, None],
        linear(w, "first", cut(x, net.patch)),
    ]
    h = torch.cat(tokens, 1) + w["places"]
    h1 = block("rising.0", h)
    h2 = block("rising.1", h1)
    h = block("middle", h2)
    h = block("falling.0", linear(w, "falling.0.join", torch.cat([h, h2], -1)))
    h = block("falling.1", linear(w, "falling.1.join", torch.cat([h, h1], -1)))
    rough = paste(linear(w, "last", norm("norm", h[:, 2:])), net.shape, net.patch)
    d = len(net.shape) - 1
    padded = nn.functional.pad(rough, (1, 1) * d)
    out = w["smooth.bias"].reshape(-1, *[1] * d)
    for at in itertools.product(range(3), repeat=d):
        part = padded[(..., *(slice(i, i + n) for i, n in zip(at, net.shape[1:], strict=True)))]
        out = out + torch.einsum("oc,bc...->bo...", w["smooth.weight"][(..., *at)], part)
    return out


@each_shape
@pytest.mark.parametrize(("cls", "equations"), [(DiT, dit), (UViT, uvit)])
def test_they_are_the_papers_equations(
    cls: Net, equations: object, shape: tuple[int, ...]
) -> None:
    net = built(cls, shape, classes=3)
    x, t, y = normal(4, *shape), 2 * normal(4, seed=1), torch.tensor([0, 2, 1, 3])
    given = net(x[:3], t[:3], y=y[:3])
    wanted = equations(net, x, t, y, heads=2)
    assert wanted.std() > 0.05
    torch.testing.assert_close(given, wanted[:3], rtol=0, atol=1e-12)
    # the last row of the table: no label
    torch.testing.assert_close(net(x[3:], t[3:]), wanted[3:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 4])
@each_shape
def test_patches_are_cut_and_pasted(shape: tuple[int, ...], p: int) -> None:
    x = normal(3, *shape)
    assert torch.equal(patchify(x, p), cut(x, p))
    assert torch.equal(unpatchify(cut(x, p), shape, p), x)


@pytest.mark.parametrize("sizes", [(5,), (3, 4), (2, 3, 2)])
def test_positions_are_the_paper_s(sizes: tuple[int, ...]) -> None:
    torch.testing.assert_close(positions(sizes, 26).double(), places(sizes, 26), rtol=0, atol=1e-6)


@each_shape
@each_net
def test_patches_that_trade_places_take_their_positions_with_them(
    cls: Net, shape: tuple[int, ...]
) -> None:
    net, p = built(cls, shape), 2
    if isinstance(net, UViT):  # a convolution knows its neighbours: leave it out
        nn.init.dirac_(net.smooth.weight)
    x, t = normal(3, *shape), normal(3, seed=1)
    n = math.prod(grid(shape, p))
    order = torch.randperm(n, generator=generator(2))
    before = cut(net(x, t), p)
    with torch.no_grad():
        net.places[-n:] = net.places[-n:][order].clone()
    after = net(paste(cut(x, p)[:, order], shape, p), t)
    torch.testing.assert_close(cut(after, p), before[:, order], rtol=0, atol=1e-12)


# ------------------------------------------------------------------ the start


@each_net
def test_the_output_starts_at_zero_and_learns(cls: Net) -> None:
    net = cls((3, 8, 8), **SIZES[cls])
    x, t = torch.randn(4, 3, 8, 8, generator=generator()), torch.zeros(4)
    assert not net(x, t).any()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):  # layers that start at zero hold back those before them by a step each
        (net(x, t) - x).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_a_block_of_dit_starts_as_the_identity() -> None:
    net = DiT((3, 8, 8), **SIZES[DiT])
    h, c = (
        torch.randn(4, 16, 12, generator=generator()),
        torch.randn(4, 12, generator=generator(1)),
    )
    for block in net.blocks:
        assert torch.equal(block(h, c), h)


# ------------------------------------------------------------------ the trace


@each_shape
@each_net
def test_the_exact_trace_is_the_jacobian_s(cls: Net, shape: tuple[int, ...]) -> None:
    net = built(cls, shape)
    x, t = normal(2, *shape), normal(2, seed=1)
    out, trace = exact_trace(lambda z: net(z.view_as(x), t).flatten(1), x.flatten(1))
    jacobians = [
        torch.autograd.functional.jacobian(lambda z, i=i: net(z[None], t[i : i + 1])[0], x[i])
        for i in range(2)
    ]
    wanted = torch.stack([j.reshape(x[0].numel(), -1).diagonal().sum() for j in jacobians])
    torch.testing.assert_close(out.view_as(x), net(x, t).detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(trace, wanted, rtol=0, atol=1e-11)
    assert trace.abs().min() > 1e-3


@each_net
def test_hutchinson_s_mean_is_the_trace(cls: Net) -> None:
    """Within 5 standard errors: a false alarm in 10⁶ for each of two."""
    net = built(cls, (1, 4, 4))
    x, t = normal(2, 1, 4, 4), normal(2, seed=1)

    def f(z: Tensor) -> Tensor:
        return net(z.view_as(x), t).flatten(1)

    probes = torch.randint(2, (400, 2, 16), generator=generator(3)).double() * 2 - 1
    _, traces = hutchinson_trace(f, x.flatten(1), probes)
    _, exact = exact_trace(f, x.flatten(1))
    assert ((traces.mean(0) - exact).abs() < 5 * traces.std(0) / math.sqrt(400)).all()


@each_net
def test_gradients_flow_through_the_trace(cls: Net) -> None:
    """Fused attention has no second derivative; against a central difference along a line."""
    net = built(cls, (1, 4, 4))
    x, d, t = normal(2, 16), normal(2, 16, seed=5), normal(2, seed=1)

    def trace(z: Tensor, create_graph: bool = False) -> Tensor:
        return exact_trace(
            lambda z: net(z.view(2, 1, 4, 4), t).flatten(1), z, create_graph=create_graph
        )[1]

    source = x.clone().requires_grad_()
    (pulled,) = torch.autograd.grad(trace(source, create_graph=True).sum(), source)
    slope = (trace(x + 1e-5 * d) - trace(x - 1e-5 * d)) / 2e-5
    torch.testing.assert_close((pulled * d).sum(1), slope, rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------ rows, conditions


@each_net
def test_rows_do_not_influence_one_another(cls: Net) -> None:
    net = built(cls, (3, 8, 8), classes=3, vector=2, image=1)
    x, t, y, v, im = (
        normal(5, 3, 8, 8),
        normal(5, seed=1),
        torch.tensor([0, 1, 2, 0, 1]),
        normal(5, 2),
        normal(5, 1, 8, 8),
    )
    together = net(x, t, y, v, im)
    alone = torch.cat([net(*(each[i : i + 1] for each in (x, t, y, v, im))) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    spoilt = x.clone()
    spoilt[2] = torch.nan
    rest = [0, 1, 3, 4]
    torch.testing.assert_close(net(spoilt, t, y, v, im)[rest], together[rest], rtol=0, atol=1e-14)


@each_shape
@each_net
def test_every_condition_is_heard_and_its_absence_is_a_null(
    cls: Net, shape: tuple[int, ...]
) -> None:
    net = built(cls, shape, classes=3, vector=2, image=1)
    x, t = normal(2, *shape), normal(2, seed=1)
    none = net(x, t)
    given = {"y": torch.tensor([0, 2]), "vector": normal(2, 2), "image": normal(2, 1, *shape[1:])}
    net.check_condition(**given)
    for name, value in given.items():
        assert ((net(x, t, **{name: value}) - none).flatten(1).norm(dim=1) > 1e-2).all(), name
        # zeros are not none
        assert ((net(x, t, **{name: 0 * value}) - none).flatten(1).norm(dim=1) > 1e-3).all(), name
    nothing = {
        name: torch.full_like(value, torch.nan) for name, value in given.items() if name != "y"
    }
    nothing["y"] = torch.tensor([3, 3])
    torch.testing.assert_close(net(x, t, **nothing), none, rtol=0, atol=1e-14)


@each_net
def test_dropout_is_of_what_is_added_and_of_training_alone(cls: Net) -> None:
    """With everything dropped, DiT's blocks are the identity, and U-ViT's the linear maps of
    tokens and earlier ones.
    """
    net = built(cls, (1, 4, 4), dropout=1.0)
    x, t = normal(2, 1, 4, 4), normal(2, seed=1)
    same = built(cls, (1, 4, 4))
    same.load_state_dict(net.state_dict())
    assert torch.equal(net(x, t), same(x, t))
    with torch.no_grad():
        for name, p in same.named_parameters():
            if ".attention.join" in name or ".perceptron.down" in name:
                p.zero_()
    torch.testing.assert_close(net.train()(x, t), same(x, t), rtol=0, atol=1e-14)


@pytest.mark.slow
def test_a_small_dit_learns_what_is_known() -> None:
    """±a pattern with noise of 0.3, D = 8, standardized already: of the excess loss of a network
    that says zero over that of the exact score, the least there is, on the same noise, no fifth is
    left.
    """
    pattern = math.sqrt(1 - 0.3**2) * torch.tensor([[[1.0, 1, -1, 1, -1, -1, 1, 1]]])
    mixture = scoresde.toy.GaussianMixture(torch.cat([pattern, -pattern]), 0.3)
    process = scoresde.VPSDE()
    torch.manual_seed(0)
    net = DiT((1, 8), patch=2, width=32, depth=2, heads=2, features=32)
    sde = scoresde.ScoreSDE(process, net, shape=(1, 8))
    held = mixture.sample(4096, generator=generator(1))
    zero = scoresde.loss(sde.eval(), held, generator=generator(2)).item()
    scoresde.fit(sde, mixture, steps=250, batch_size=128, generator=generator(), progress=False)
    ours = scoresde.loss(sde, held, generator=generator(2)).item()
    least = scoresde.loss(scoresde.oracle(mixture, process), held, generator=generator(2)).item()
    assert ours - least < 0.2 * (zero - least)


# ------------------------------------------------------------------ number formats and the compiler


@pytest.mark.parametrize(
    "cls", [NETS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in NETS[1:])]
)
def test_the_compiler_and_low_precision_agree_with_it(cls: Net) -> None:
    net = built(cls, (3, 8, 8), classes=3)
    x, t, y = normal(2, 3, 8, 8), normal(2, seed=1), torch.tensor([0, 2])
    wanted = net(x, t, y)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, t, y=y), wanted, rtol=0, atol=1e-12)
    net.float()
    torch.testing.assert_close(net(x.float(), t.float(), y).double(), wanted, rtol=1e-4, atol=1e-4)
    scale = wanted.detach().abs().max().item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x.float(), t.float(), y)
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=0.05 * scale)
    out = net.bfloat16()(x.bfloat16(), t.bfloat16(), y)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=0.1 * scale)


# ------------------------------------------------------------------ counts


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions", "ours"),
    [
        (384, 12, 6, 33, 32_858_896),
        (768, 12, 12, 130, 130_303_504),
        (1024, 24, 16, 458, 457_824_272),
        (1152, 28, 16, 675, 674_816_272),
    ],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_dit_has_the_published_number_of_parameters(
    width: int, depth: int, heads: int, millions: int, ours: int
) -> None:
    """But for the variance that the paper's gives out beside the mean: as many channels again, 4
    of 2×2, each with a bias.
    """
    with torch.device("meta"):
        net = DiT((4, 32, 32), patch=2, width=width, depth=depth, heads=heads, classes=1000)
    count = sum(p.numel() for p in net.parameters())
    theirs = count + 4 * 2 * 2 * (width + 1)
    assert count == ours
    assert round(theirs / 1e6) == millions
    # of a block, in widths: attention, perceptron, modulation
    maps = [
        (1, 3),
        (1, 1),
        (1, 4),
        (4, 1),
        (1, 6),
    ]
    block = sum((a * width + 1) * b * width for a, b in maps)
    rest = (16 + 1) * width + (256 + 1 + width + 1 + 1001) * width + (width + 1) * (2 * width + 32)
    assert theirs == depth * block + rest


def test_uvit_has_the_published_number_of_parameters() -> None:
    """To the last: 13 blocks, 6 of them with a linear map of twice the width, without a perceptron
    of the noise label.
    """
    with torch.device("meta"):
        net = UViT((3, 32, 32), patch=2, width=512, depth=13, heads=8)
    w = 512
    block = 3 * w * w + (w + 1) * w + (w + 1) * 4 * w + (4 * w + 1) * w + 4 * w
    rest = (12 + 1) * w + (256 + 1) * w + 2 * w + (w + 1) * 12 + (27 + 1) * 3
    count = sum(p.numel() for p in net.parameters())
    assert count == 13 * block + 6 * (2 * w + 1) * w + rest == 44_255_328
    assert round(count / 1e6) == 44


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            (6,),
            {},
            r"samples of shape \(C, \*space\) with 1 to 3 axes of space, got \(6,\); try 'resmlp'",
        ),
        ((1, 2, 2, 2, 2), {}, "1 to 3 axes of space"),
        ((3, 7, 7), {}, "patches of 2 do not fill samples of 7×7; patches of 1 or 7 do"),
        ((3, 28, 28), {"patch": 8}, "patches of 1, 2, 4, 7, 14 or 28 do"),
        ((3, 8, 9), {}, "patches of 1 do$"),
        ((3, 8, 8), {"patch": 0}, "patch is at least 1, got 0"),
        ((3, 8, 8), {"heads": 5}, "heads=5 of width=12; try 4 or 6"),
        ((3, 8, 8), {"depth": 0}, "depth is at least 1"),
        ((3, 8, 8), {"ratio": 0}, "ratio is greater than 0"),
        ((3, 8, 8), {"ratio": 0.01}, "leaves a perceptron without units"),
        ((3, 8, 8), {"dropout": 1.5}, "dropout is between 0 and 1"),
        ((3, 8, 8), {"waves": "sines"}, "unknown waves"),
    ],
)
@each_net
def test_mistakes_are_said_in_a_sentence(
    cls: Net, shape: tuple[int, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cls(shape, **{**SIZES[cls], **options})


def test_uvit_wants_an_odd_depth_and_an_even_width() -> None:
    with pytest.raises(ValueError, match=r"depth is odd, .* got 4; try 5"):
        UViT((3, 8, 8), width=12, heads=2, depth=4)
    with pytest.raises(ValueError, match=r"width is even, .* got 9; try 10"):
        UViT((3, 8, 8), width=9, heads=3)


@each_net
def test_a_sample_of_another_shape_is_refused(cls: Net) -> None:
    net = cls((3, 8, 8), **SIZES[cls])
    for shape in ((2, 1, 8, 8), (2, 3, 8), (2, 3, 8, 10)):
        with pytest.raises(
            ValueError, match=r"built for samples of shape \(3, 8, 8\).* got x of shape"
        ):
            net(torch.zeros(shape), torch.zeros(2))
    with pytest.raises(ValueError, match="takes no condition y; build it with classes=n"):
        net.check_condition(y=torch.tensor([0]))
    with pytest.raises(ValueError, match="features is at least 2"):
        DiT((3, 8, 8), width=12, heads=2, features=1)
    strict = cls((3, 8, 8), **SIZES[cls], classes=3, condition_dropout=0)
    with pytest.raises(ValueError, match="always with y"):
        strict(torch.zeros(2, 3, 8, 8), torch.zeros(2))


def test_modulation_is_of_layer_norms() -> None:
    h = modulate(torch.tensor([1.0, 3.0]), torch.ones(2), torch.ones(2))
    torch.testing.assert_close(h, torch.tensor([-1.0, 3.0]), rtol=0, atol=1e-5)


def test_divisors() -> None:
    for n in range(1, 400):
        assert divisors(n) == [k for k in range(1, n + 1) if n % k == 0]
    for n in (10**9 + 7, 10**18 + 9, 2**61 - 1):  # primes, such as a file may have
        assert divisors(n) == [1, n]
