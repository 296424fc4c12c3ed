"""Traces against Jacobians taken apart: closed forms, every fallback, second derivatives, probes,
memory, cost.
"""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import scoresde
from conftest import fitting, generator
from scoresde.backbones import BACKBONES, MLP, traces
from scoresde.backbones.base import can_trace
from scoresde.density.trace import exact_trace, hutchinson_trace, jacobian_products
from scoresde.density.trace_estimators import Exact, as_estimator

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def jacobians(f: Callable[[Tensor], Tensor], z: Tensor, h: float = 1e-5) -> Tensor:
    """By central differences of order 4, row by row: nothing of autograd in it. (B, n, n)."""
    columns = []
    with torch.no_grad():
        for e in torch.eye(z.shape[1], dtype=F64):
            at = [f(z + s * h * e) for s in (1, -1, 2, -2)]
            columns.append((8 * (at[0] - at[1]) - (at[2] - at[3])) / (12 * h))
    return torch.stack(columns, 2)


def diagonal(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return jacobians(f, z).diagonal(dim1=1, dim2=2).sum(1)


# ------------------------------------------------------------------ the closed form of the MLP

BUILDS = [
    {},
    {"depth": 3, "fourier": 0},
    {"depth": 2, "fourier": 0},
    {"depth": 1, "fourier": 0},
    {"depth": 1},
    {"depth": 2},
    {"depth": 3},
    {"depth": 5, "width": 7},
    {"depth": 4, "width": 7, "fourier": 0},
    {"depth": 2, "width": 7, "fourier": 0},
    {"depth": 1, "width": 7},
    {"classes": 3, "width": 20},
    {"vector": 3, "width": 20},
    {"vector": 2, "classes": 3, "depth": 1, "width": 20},
]


def built(shape: tuple[int, ...], **options: int) -> MLP:
    torch.manual_seed(0)
    net = MLP(shape, **options).double().eval()
    for layer in (net.out, net.gain, getattr(net, "label", net.out)):
        nn.init.normal_(layer.weight)
    return net


def by_autograd(net: nn.Module, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
    def one(x: Tensor, t: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(condition, (v[None] for v in values), strict=True))
        return net(x[None], t[None], **named)[0]

    parts = [
        torch.autograd.functional.jacobian(
            lambda x, i=i: one(x, t[i], *(v[i] for v in condition.values())), x[i]
        )
        for i in range(len(x))
    ]
    return torch.stack([part.reshape(x[0].numel(), -1).trace() for part in parts])


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 2, 2)])
@pytest.mark.parametrize("options", BUILDS, ids=str)
def test_mlp_equals_autograd(options: dict[str, int], shape: tuple[int, ...]) -> None:
    """Fewer dimensions than units and more (width 7), Fourier features or none, 1 to 5 layers,
    conditions or none.
    """
    net = built(shape, **options)
    x, t = normal(4, *shape), normal(4, seed=1)
    given = {"y": torch.tensor([0, 2, 1, 0])} if "classes" in options else {}
    if "vector" in options:
        given["vector"] = normal(4, options["vector"], seed=2)
    out, trace = net.value_and_trace(x, t, **given)
    torch.testing.assert_close(out, net(x, t, **given), rtol=0, atol=1e-12)
    torch.testing.assert_close(trace, by_autograd(net, x, t, **given), rtol=0, atol=1e-12)
    if given:
        torch.testing.assert_close(
            net.value_and_trace(x, t)[1], by_autograd(net, x, t), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("budget", [1, 2**12])
def test_mlp_cut_into_pieces_is_the_same(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and columns in many pieces; 300 rows are more than the 128 that are never cut."""
    for options in ({}, {"depth": 3, "fourier": 0}, {"width": 7}):
        net = built((9,), **options)
        x, t = normal(300, 9), normal(300, seed=1)
        whole = net.value_and_trace(x, t)[1]
        monkeypatch.setattr(traces, "BUDGET", budget)
        torch.testing.assert_close(net.value_and_trace(x, t)[1], whole, rtol=1e-13, atol=1e-12)
        monkeypatch.undo()


def test_mlp_rows_do_not_mix() -> None:
    """A NaN or a huge row changes not a bit of its mates; alone or among many a row's trace is the
    same to rounding.
    """
    for options in ({}, {"depth": 3, "fourier": 0}, {"depth": 2, "fourier": 0}):
        net = built((5,), **options)
        x, t = normal(200, 5), normal(200, seed=1)
        trace = net.value_and_trace(x, t)[1]
        spoilt = x.clone()
        spoilt[3], spoilt[150] = torch.nan, 1e30
        again = net.value_and_trace(spoilt, t)[1]
        mates = torch.ones(200, dtype=torch.bool)
        mates[[3, 150]] = False
        assert torch.equal(again[mates], trace[mates])
        alone = torch.cat([net.value_and_trace(x[i : i + 1], t[i : i + 1])[1] for i in range(20)])
        torch.testing.assert_close(alone, trace[:20], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "options",
    [{"width": 6}, {"width": 6, "depth": 3, "fourier": 0}, {"width": 6, "depth": 2, "fourier": 0}],
    ids=str,
)
@pytest.mark.parametrize("n", [2, 8])
def test_mlp_trace_carries_gradients(options: dict[str, int], n: int) -> None:
    """Of trace and output, to x and to every parameter: gradgradcheck would need minutes, autograd
    of autograd is the oracle.
    """
    net = built((n,), **options)
    x, t = normal(3, n).requires_grad_(), normal(3, seed=1)
    weights = [x, *net.parameters()]
    ours = torch.autograd.grad(
        [(p * w).sum() for p, w in zip(net.value_and_trace(x, t), (1.0, 0.7), strict=True)],
        weights,
        [torch.ones((), dtype=F64)] * 2,
    )
    out, trace = exact_trace(lambda z: net(z, t), x, create_graph=True)
    theirs = torch.autograd.grad(out.sum() + 0.7 * trace.sum(), weights)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


def test_a_closed_form_is_only_believed_while_it_holds() -> None:
    class Louder(MLP):
        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return 2 * super().forward(x, t, y)

    class Quiet(MLP):
        pass

    class Adapter(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert can_trace(MLP((2,)))
    assert can_trace(Quiet((2,)))
    assert not can_trace(Louder((2,)))
    assert not can_trace(nn.Linear(2, 2))
    hooked, patched, adapted, bound = MLP((2,)), MLP((2,)), MLP((2,)), Louder((2,))
    hooked.hidden[1].register_forward_hook(lambda module, args, out: 2 * out)
    patched.forward = lambda x, t: x  # type: ignore[method-assign]
    adapted.out = Adapter(128, 2)
    bound.value_and_trace = lambda x, t: (x, x.sum(1))  # type: ignore[method-assign, assignment]
    assert not can_trace(hooked)
    assert not can_trace(patched)
    assert not can_trace(adapted)
    assert can_trace(bound)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_backbones_with_a_closed_form_are_right(name: str) -> None:
    torch.manual_seed(0)
    shape, options = fitting(name)
    net = BACKBONES.build(name, shape, **options).double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    z, t = normal(3, math.prod(shape)), normal(3, seed=1)
    x = z.reshape(3, *shape)
    _, trace = exact_trace(lambda z: net(z.reshape(x.shape), t).flatten(1), z)
    torch.testing.assert_close(
        trace, diagonal(lambda z: net(z.reshape(x.shape), t).flatten(1), z), rtol=1e-7, atol=1e-7
    )
    if can_trace(net):
        _, closed = net.value_and_trace(x, t)  # type: ignore[operator]
        torch.testing.assert_close(closed, trace, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------ any network: ways and fallbacks


class Cube(torch.autograd.Function):
    """Its backward pass goes through numpy: no batching rule."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(np.asarray(3 * (x**2).numpy() * g.numpy()))


class Once(torch.autograd.Function):
    """Its backward pass runs but once, as those of compiled networks with donated buffers do."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.spent = False
        return x**3

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        if ctx.spent:
            raise RuntimeError("only once")
        ctx.spent = True
        return 3 * ctx.saved_tensors[0] ** 2 * g


N = 6


def networks() -> dict[str, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(N, 20), nn.SiLU(), nn.Linear(20, N)).double()
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double().eval()
    normalized = nn.Sequential(
        nn.Linear(N, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, N)
    ).double()
    for _ in range(3):
        normalized(normal(50, N) + 1)
    convolution = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv2d(4, 1, 3, padding=1)
    ).double()
    lift = normal(N, 12, seed=5)

    def tokens(z: Tensor) -> Tensor:
        return (z @ lift).view(-1, 3, 4)

    def inplace(z: Tensor) -> Tensor:
        z.mul_(2).add_(1)
        return body(z).tanh_()

    def energy(z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            return torch.autograd.grad(body(z).square().sum(), z, create_graph=True)[0]

    return {
        "plain": body,
        "sdpa": lambda z: (
            functional.scaled_dot_product_attention(*[tokens(z)] * 3).flatten(1) @ lift.T
        ),
        "attention": lambda z: (
            attention(*[tokens(z)] * 3, need_weights=False)[0].flatten(1) @ lift.T
        ),
        "attention with weights": lambda z: attention(*[tokens(z)] * 3)[0].flatten(1) @ lift.T,
        "batch norm": normalized.eval(),
        "convolution": lambda z: convolution(z.view(-1, 1, 2, 3)).flatten(1),
        "checkpoint": lambda z: z * checkpoint(body, z, use_reentrant=False),
        "reentrant checkpoint": lambda z: z * checkpoint(body, z, use_reentrant=True),
        "nested checkpoints": lambda z: checkpoint(
            lambda y: y * checkpoint(body, y, use_reentrant=True), z, use_reentrant=True
        ),
        "torch.func inside": lambda z: torch.func.vmap(
            torch.func.grad(lambda y: body(y).square().sum())
        )(z),
        "autograd inside": energy,
        "writes into its input": inplace,
        "returns its input": lambda z: z,
        "no batching rule": Cube.apply,
        "backward but once": lambda z: Once.apply(z) + body(z),
    }


NAMES = list(networks())


@pytest.mark.parametrize("b", [1, 300])
@pytest.mark.parametrize("name", NAMES)
def test_exact_trace_of_awkward_networks(name: str, b: int) -> None:
    """300 samples go one product at a time, a single one batched; the oracle is a finite
    difference.
    """
    f, z = networks()[name], normal(b, N)
    before, z_before = f(z.clone()), z.clone()
    out, trace = exact_trace(f, z)
    torch.testing.assert_close(out, before)
    assert torch.equal(z, z_before)
    assert not out.requires_grad
    assert not trace.requires_grad
    torch.testing.assert_close(
        trace, diagonal(lambda z: f(z.clone()).detach(), z), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("no batching rule", "backward but once")]
)
def test_second_derivatives(name: str) -> None:
    """∇_z of the trace with create_graph, against a finite difference of the trace itself."""
    f, z, w = networks()[name], normal(3, N).requires_grad_(), normal(3, N, seed=3)
    out, trace = exact_trace(f, z, create_graph=True)
    assert out.requires_grad
    constant = not trace.requires_grad  # the identity's
    (g,) = (torch.zeros_like(z),) if constant else torch.autograd.grad(trace.sum(), z)
    h = 1e-5
    up, down = (exact_trace(f, z.detach() + s * h * w)[1] for s in (1, -1))
    torch.testing.assert_close((g * w).sum(1), (up - down) / (2 * h), rtol=1e-6, atol=1e-6)


def test_second_derivatives_reach_parameters_and_earlier_tensors() -> None:
    net = nn.Sequential(nn.Linear(N, 8), nn.Tanh(), nn.Linear(8, N)).double()
    first, last = net[0], net[2]
    start = normal(4, N).requires_grad_()
    z = 0.5 * start  # not a leaf
    trace = exact_trace(net, z, create_graph=True)[1]
    closed = (1 - first(z).tanh() ** 2) @ (last.weight.T * first.weight).sum(1)
    torch.testing.assert_close(trace, closed)
    for weights in ([start], [first.weight, first.bias, last.weight]):
        ours = torch.autograd.grad(trace.sum(), weights, retain_graph=True)
        theirs = torch.autograd.grad(closed.sum(), weights, retain_graph=True)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compiled_networks(backend: str) -> None:
    """Their backward passes may run but once and have no batching rule."""
    net = nn.Sequential(nn.Linear(N, 8), nn.Tanh(), nn.Linear(8, N)).double()
    compiled = torch.compile(net, backend=backend)
    z = normal(5, N)
    try:
        compiled(z)
    except Exception as error:  # no compiler on this machine
        pytest.skip(f"torch.compile: {type(error).__name__}")
    out, trace = exact_trace(compiled, z)
    torch.testing.assert_close(out, net(z).detach())
    torch.testing.assert_close(trace, exact_trace(net, z)[1])
    probes = normal(2, 5, N)
    torch.testing.assert_close(
        hutchinson_trace(compiled, z, probes), hutchinson_trace(net, z, probes)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    net = MLP((N,), width=16).eval()
    nn.init.normal_(net.out.weight, std=0.2)
    z, t = normal(4, N).float(), torch.zeros(4)
    whole = exact_trace(lambda z: net(z, t), z)[1]
    half = MLP((N,), width=16).eval()
    half.load_state_dict(net.state_dict())
    half.to(dtype)
    scale = float(
        jacobians(lambda z: net(z.float(), t).double(), z.double(), 1e-2)
        .square()
        .sum((1, 2))
        .sqrt()
        .max()
    )
    for trace in (
        exact_trace(lambda z: half(z.to(dtype), t.to(dtype)).to(z), z)[1],
        half.value_and_trace(z.to(dtype), t.to(dtype))[1].float(),
    ):
        assert float((trace - whole).abs().max()) < 30 * torch.finfo(dtype).eps * scale


def test_dropout_in_train_mode_is_one_draw_or_refused() -> None:
    """One forward pass has one mask: the trace is that of the map it drew. Where passes must be
    repeated, masks would differ.
    """
    net = nn.Sequential(nn.Linear(N, 40), nn.Dropout(0.5), nn.Linear(40, N)).double()
    z = normal(5, N)
    torch.manual_seed(1)
    trace = exact_trace(net, z)[1]
    torch.manual_seed(1)
    mask = functional.dropout(torch.ones(5, 40, dtype=F64), 0.5)
    torch.testing.assert_close(trace, mask @ (net[2].weight.T * net[0].weight).sum(1).detach())
    with pytest.raises(TypeError, match="random"):
        exact_trace(lambda z: Once.apply(net(z)), normal(300, N))


def test_outputs_that_do_not_depend_on_the_input() -> None:
    z, weight = normal(4, 3), torch.ones(3, dtype=F64, requires_grad=True)
    probes = normal(2, 4, 3)
    for f in (torch.ones_like, lambda z: weight.expand(4, 3) * 1.0):
        assert torch.equal(exact_trace(f, z)[1], torch.zeros(4, dtype=F64))
        assert torch.equal(hutchinson_trace(f, z, probes)[1], torch.zeros(2, 4, dtype=F64))
    for f in (
        lambda z: z.detach() ** 2,
        lambda z: weight * z.detach(),
        lambda z: weight * torch.from_numpy(z.detach().numpy() ** 2),
    ):
        with pytest.raises(TypeError, match="no gradient"):
            exact_trace(f, z)
        with pytest.raises(TypeError, match="no gradient"):
            hutchinson_trace(f, z, probes)


def test_inference_mode_and_no_grad_change_nothing() -> None:
    net = networks()["plain"]
    z = normal(4, N)
    outside = exact_trace(net, z)[1]
    with torch.no_grad():
        assert torch.equal(exact_trace(net, z)[1], outside)
    with torch.inference_mode():
        assert torch.equal(exact_trace(net, z.clone())[1], outside)


def test_nothing_holds_a_graph() -> None:
    """After the call the activations are gone, whichever way was taken, and no parameter has a
    gradient.
    """
    for name in ("plain", "reentrant checkpoint", "no batching rule"):
        for b in (1, 300):
            kept: list[weakref.ref[Tensor]] = []
            f = networks()[name]

            def watched(
                z: Tensor,
                f: Callable[[Tensor], Tensor] = f,
                kept: list[weakref.ref[Tensor]] = kept,
            ) -> Tensor:
                h = 2 * z
                kept.append(weakref.ref(h))
                return f(h)

            gc.disable()
            try:
                exact_trace(watched, normal(b, N))
                assert not any(ref() is not None for ref in kept)
            finally:
                gc.enable()
            assert all(p.grad is None for p in getattr(f, "parameters", list)())


# ------------------------------------------------------------------ Hutchinson


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("k", "b"), [(1, 3), (5, 3), (5, 300)])
def test_hutchinson_is_the_quadratic_form_of_the_jacobian(name: str, k: int, b: int) -> None:
    f, z, probes = networks()[name], normal(b, N), normal(k, b, N, seed=2)
    out, traces = hutchinson_trace(f, z, probes)
    torch.testing.assert_close(out, f(z.clone()))
    rows = []
    for probe in probes:
        h = 1e-5
        with torch.enable_grad():
            up, down = (f((z + s * h * probe).requires_grad_().clone()).detach() for s in (1, -1))
        rows.append((probe * (up - down) / (2 * h)).sum(1))
    torch.testing.assert_close(traces, torch.stack(rows), rtol=1e-6, atol=1e-6)


def test_hutchinson_passes_forward_once() -> None:
    calls = []

    def f(z: Tensor) -> Tensor:
        calls.append(len(z))
        return z.sin()

    hutchinson_trace(f, normal(300, N), normal(7, 300, N))
    exact_trace(f, normal(300, N))
    exact_trace(f, normal(2, N))
    assert calls == [300, 300, 2]


def test_hutchinson_variance_is_what_the_docstring_says() -> None:
    """A symmetric J: 2‖J‖² for normal probes, 2(‖J‖² − Σ J_ii²) for signs. 40,000 probes: the
    sample variance has a relative standard error of at most √(14/40,000) = 1.9% (kurtosis ≤ 15),
    and 8% is over 4 of those: false alarms below 1e-4.
    """
    j = normal(8, 8)
    j = j + j.T
    many = 40_000
    draws = torch.randn(many, 1, 8, generator=generator(4), dtype=F64)
    f = lambda z: z @ j  # noqa: E731
    for probes, variance in (
        (draws, 2 * j.square().sum()),
        (draws.sign(), 2 * (j.square().sum() - j.diagonal().square().sum())),
    ):
        traces = hutchinson_trace(f, normal(1, 8), probes)[1][:, 0]
        assert abs(float(traces.var() / variance) - 1) < 0.08
        assert abs(float(traces.mean() - j.trace())) < 4 * float(variance / many) ** 0.5


def test_hutchinson_carries_gradients() -> None:
    net, z, probes = networks()["plain"], normal(4, N).requires_grad_(), normal(3, 4, N, seed=2)
    traces = hutchinson_trace(net, z, probes, create_graph=True)[1]
    (g,) = torch.autograd.grad(traces.sum(), z)
    h, w = 1e-5, normal(4, N, seed=3)
    up, down = (hutchinson_trace(net, z.detach() + s * h * w, probes)[1].sum(0) for s in (1, -1))
    torch.testing.assert_close((g * w).sum(1), (up - down) / (2 * h), rtol=1e-6, atol=1e-6)


def test_probes_of_the_wrong_shape() -> None:
    for shape in ((4, N), (2, 3, N), (2, 4, N + 1), (0, 4, N)):
        with pytest.raises(ValueError, match=r"probes have shape \(k, 4, 6\)"):
            hutchinson_trace(networks()["plain"], normal(4, N), torch.ones(shape, dtype=F64))


# ------------------------------------------------------------------ estimators


@pytest.mark.parametrize("b", [1, 300])
@pytest.mark.parametrize("name", NAMES)
def test_products_are_rows_of_the_jacobian(name: str, b: int) -> None:
    f, z, vectors = networks()[name], normal(b, N), normal(5, b, N, seed=2)
    out, products = jacobian_products(f, z, vectors)
    torch.testing.assert_close(out, f(z.clone()))
    wanted = torch.einsum("kbi,bij->kbj", vectors, jacobians(lambda z: f(z.clone()).detach(), z))
    torch.testing.assert_close(products, wanted, rtol=1e-6, atol=1e-6)


def test_products_with_an_output_that_is_constant_are_zero() -> None:
    out, products = jacobian_products(torch.ones_like, normal(4, N), normal(3, 4, N))
    assert torch.equal(out, torch.ones(4, N, dtype=F64))
    assert torch.equal(products, torch.zeros(3, 4, N, dtype=F64))


def model(n: int = 4) -> tuple[scoresde.ScoreSDE, Tensor]:
    """A network with a trace of its own at every state, and data."""
    sde = scoresde.build("vp", "mlp", shape=(n,), width=16).double().eval()
    for i, parameter in enumerate(sde.net.parameters()):
        with torch.no_grad():
            parameter.copy_(0.3 * normal(*parameter.shape, seed=i))
    return sde, normal(30, n, seed=99)


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        ("exact", Exact()),
        ("hutchinson", scoresde.Hutchinson(3)),
        ("hutchinson_gaussian", scoresde.Hutchinson(3, "gaussian")),
        ("hutchinson", scoresde.Hutchinson(3, torch.sign)),
    ],
)
def test_an_estimator_is_what_its_name_stands_for(
    name: str, estimator: scoresde.TraceEstimator
) -> None:
    """The same numbers to the last bit, of samples with their log p as well."""
    sde, x = model()
    how = {"steps": 5, "solver": "heun"}
    first = scoresde.likelihood(sde, x, trace=name, probes=3, generator=generator(), **how)
    second = scoresde.likelihood(sde, x, trace=estimator, generator=generator(), **how)
    for field, value in vars(first).items():
        torch.testing.assert_close(getattr(second, field), value, rtol=0, atol=0, equal_nan=True)
    by_name = scoresde.sample_and_log_prob(
        sde, 5, trace=name, probes=3, generator=generator(), **how
    )
    by_object = scoresde.sample_and_log_prob(sde, 5, trace=estimator, generator=generator(), **how)
    assert all(map(torch.equal, by_name, by_object))


def test_signs_of_as_many_probes_as_dimensions_are_the_exact_trace() -> None:
    signs, gaussian = scoresde.Hutchinson(6), scoresde.Hutchinson(6, "gaussian")
    assert isinstance(signs.in_dimension(6), Exact)
    assert signs.in_dimension(7) is signs
    assert gaussian.in_dimension(2) is gaussian


class Deflated(scoresde.TraceEstimator):
    """The Hutch++ of docs/extending.md."""

    def __init__(self, rank: int = 2, draws: int = 4) -> None:
        self.rank = rank
        self.draws = draws
        self.probes = rank + draws

    def estimate(
        self, f: Callable[[Tensor], Tensor], z: Tensor, probes: Tensor | None, create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        assert probes is not None
        _, rows = jacobian_products(f, z, probes[: self.rank])
        q = torch.linalg.qr(rows.permute(1, 2, 0)).Q.permute(2, 0, 1)
        v = probes[self.rank :].sign()
        v = v - torch.einsum("rbn,kbn,rbm->kbm", q, v, q)
        out, rows = jacobian_products(f, z, torch.cat([q, v]), create_graph=create_graph)
        inside, left = (rows * torch.cat([q, v])).sum(2).T.split([len(q), len(v)], 1)
        return out, inside.sum(1, keepdim=True) + left


class Differences(scoresde.TraceEstimator):
    """Central differences: no randomness, and no gradient of the network."""

    def estimate(
        self, f: Callable[[Tensor], Tensor], z: Tensor, probes: Tensor | None, create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        assert probes is None
        return f(z), diagonal(f, z).unsqueeze(1)


def test_an_estimator_of_ones_own_is_unbiased_and_states_its_error() -> None:
    """The same 300 times: the mean within 5 of its standard errors of the exact log p, and ±2
    stated errors hold the exact value in 85 to 99.5% (Student's t of 4 draws asks for 95.4%).
    """
    sde, x = model(6)
    how = {"steps": 6, "solver": "heun"}
    x = x[:1].repeat(300, 1)
    exact = scoresde.log_prob(sde, x, **how)
    found = scoresde.likelihood(sde, x, trace=Deflated(), generator=generator(7), **how)
    error = found.log_prob - exact
    assert float(error.std()) > 1e-3
    assert abs(float(error.mean())) < 5 * float(error.std()) / math.sqrt(len(x))
    assert 0.85 < float((error.abs() < 2 * found.stderr).double().mean()) < 0.995


def small(name: str) -> scoresde.TraceEstimator:
    """A registered estimator, with few probes if it takes any."""
    return as_estimator(name, 3)


@pytest.mark.parametrize("name", list(scoresde.TRACES))
def test_every_registered_estimator_is_unbiased_and_keeps_rows_apart(name: str) -> None:
    """The same row 4000 times, with probes of each its own: the mean within 5 of its standard
    errors of the trace by differences. A row's estimate does not depend on its mates.
    """
    estimator = small(name)
    weight = normal(6, 6)

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight) * z.flip(1)

    z = normal(1, 6, seed=1).repeat(4000, 1)
    probes = None
    if estimator.probes:
        probes = estimator.prepare(normal(estimator.probes, *z.shape, seed=2))
    out, traces = estimator.estimate(f, z, probes, False)
    torch.testing.assert_close(out, f(z))
    assert traces.shape == (len(z), estimator.draws)
    found = traces.mean(1)
    bar = 5 * found.std() / math.sqrt(len(z)) + 1e-6
    assert bool((found.mean() - diagonal(f, z[:1])).abs() < bar)
    few = None if probes is None else probes[:, 7:9]
    torch.testing.assert_close(estimator.estimate(f, z[7:9], few, False)[1], traces[7:9])


@pytest.mark.parametrize("name", list(scoresde.TRACES))
def test_gradients_of_every_registered_estimator_are_unbiased(name: str) -> None:
    """To z, of the same row 4000 times: their mean within 5 of its standard errors of the gradient
    of the trace by differences.
    """
    estimator = small(name)
    weight = normal(4, 4)

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ weight) * z.flip(1)

    point = normal(1, 4, seed=1)
    z = point.repeat(4000, 1).requires_grad_()
    probes = None
    if estimator.probes:
        probes = estimator.prepare(normal(estimator.probes, *z.shape, seed=2))
    traces = estimator.estimate(f, z, probes, True)[1].mean(1)
    (found,) = torch.autograd.grad(traces.sum(), z)
    h = 1e-4
    steps = h * torch.eye(4, dtype=F64)
    expected = (diagonal(f, point + steps) - diagonal(f, point - steps)) / (2 * h)
    bar = 5 * found.std(0) / math.sqrt(len(z)) + 1e-5
    assert bool(((found.mean(0) - expected).abs() < bar).all())


def test_an_estimator_of_full_rank_is_exact() -> None:
    sde, x = model()
    how = {"steps": 6, "solver": "heun"}
    exact = scoresde.log_prob(sde, x, **how)
    torch.testing.assert_close(
        scoresde.log_prob(sde, x, trace=Deflated(rank=4), **how), exact, rtol=0, atol=1e-10
    )
    found = scoresde.likelihood(sde, x, trace=Differences(), **how)
    torch.testing.assert_close(found.log_prob, exact, rtol=0, atol=1e-7)
    assert torch.equal(found.stderr, torch.zeros_like(found.stderr))


def test_probes_of_ones_own_estimator_belong_to_samples() -> None:
    sde, x = model()
    how = {"trace": Deflated(), "steps": 4, "solver": "heun"}
    together = scoresde.log_prob(sde, x, generator=generator(), **how)
    apart = scoresde.log_prob(sde, x, generator=generator(), batch_size=7, **how)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)


def test_gradients_flow_through_an_estimator_of_ones_own() -> None:
    sde, x = model()
    x = x[:3].requires_grad_()
    grads = []
    for trace in (Deflated(rank=4), "exact"):
        log_p = scoresde.log_prob(sde, x, trace=trace, steps=3, solver="heun", differentiable=True)
        weights = [x, *(p for p in sde.net.parameters() if p.requires_grad)]
        grads.append(torch.autograd.grad(log_p.sum(), weights, allow_unused=True))
    for mine, exact in zip(*grads, strict=True):
        if exact is not None:
            torch.testing.assert_close(mine, exact, rtol=1e-6, atol=1e-8)


def test_what_is_wrong_with_an_estimator_is_said() -> None:
    class Flat(Exact):
        def estimate(
            self, f: Callable[[Tensor], Tensor], z: Tensor, probes: Tensor | None, graph: bool
        ) -> tuple[Tensor, Tensor]:
            return f(z), z.sum(1)

    class Plain(scoresde.TraceEstimator):
        estimate = Flat.estimate

    sde, x = model()
    for trace, probes, error, message in (
        (Plain(), None, ValueError, r"Plain\.estimate returned traces of shape \(30,\), wanted"),
        (scoresde.Hutchinson(4), 3, TypeError, "probes=3 .* give them to the Hutchinson itself"),
        (scoresde.Hutchinson, None, TypeError, "trace is a name or a TraceEstimator object"),
        ("hutchison", None, ValueError, "Did you mean 'hutchinson'"),
        ("exact", 0, ValueError, "probes is at least 1"),
    ):
        with pytest.raises(error, match=message):
            scoresde.log_prob(sde, x, trace=trace, probes=probes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown distribution.*'gaussian'"):
        scoresde.Hutchinson(2, "gausian")
    with pytest.raises(ValueError, match="probes is at least 1"):
        scoresde.Hutchinson(0)


# ------------------------------------------------------------------ memory and cost

PEAK = """
import re, torch
from scoresde.backbones import MLP
from scoresde.density.trace import exact_trace
torch.set_num_threads(1)
torch.set_grad_enabled(False)
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
for n, batches in ((64, (8, 1_000)), (1536, (8,))):
    net = MLP((n,), width=128 if n == 64 else 32).eval()
    torch.nn.init.normal_(net.out.weight)
    for b in batches:
        x, t = torch.randn(b, n), torch.zeros(b)
        exact_trace(lambda z: net(z, t), x)
        if b > 8 or n > 64:
            x, t = torch.randn(5 * b, n), torch.zeros(5 * b)
        net.value_and_trace(x, t)
        if b == 8 and n == 64:
            before = peak()
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux",
    reason="reads /proc/self/status: getrusage would count the parent's peak",
)
def test_memory_is_bounded() -> None:
    """MiB above what a batch of eight takes, in a process of its own: 5,000 × 64 (1,000 by
    products) and 40 × 1,536.
    """
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # or glibc keeps what was freed
    run = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env=environment
    )
    assert float(run.stdout) < 128


def test_two_hidden_layers_cost_the_same_at_any_dimension() -> None:
    """The bilinear form: at D = 64 it takes 1.5 forward passes, where 64 products take above 40.
    Twice that is allowed.
    """
    net = MLP((64,), depth=2, fourier=0).eval()
    x, t = torch.randn(1000, 64), torch.zeros(1000)

    def seconds(call: Callable[[], object]) -> float:
        taken = []
        for _ in range(9):
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
        return sorted(taken)[len(taken) // 2]

    with torch.no_grad():
        assert seconds(lambda: net.value_and_trace(x, t)) < 3 * seconds(lambda: net(x, t))
