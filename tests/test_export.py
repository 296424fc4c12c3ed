"""Networks outside this library: `torch.export` of every backbone, and ONNX, at any batch size."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import generator, some

Case = tuple[tuple[int, ...], dict[str, Any], dict[str, Callable[[int], Tensor]]]


def labels(n: int) -> Tensor:
    return torch.arange(n) % 3


def numbers(n: int) -> Tensor:
    return torch.randn(n, 2, generator=generator(2))


def some_seen(n: int) -> Tensor:
    """Values and roles of three columns, of which the first is seen and the last missing."""
    roles = torch.tensor([1.0, 0.0, -1.0]).expand(n, 3)
    return torch.stack([torch.randn(n, 3, generator=generator(3)), roles], 1)


BLOCKS = {"width": 16, "heads": 2, "depth": 2, "classes": 3}
CASES: dict[str, Case] = {
    "mlp": ((3,), {"width": 16, "classes": 3, "vector": 2}, {"y": labels, "vector": numbers}),
    "resmlp": ((3,), {"width": 16, "classes": 3, "vector": 2}, {"y": labels, "vector": numbers}),
    "encoded_resmlp": ((3,), {"width": 16}, {}),
    "masked": ((3,), {"width": 16}, {"seen": some_seen}),
    "two_times": ((3,), {"width": 16}, {"span": lambda n: torch.full((n,), 0.3)}),
    "two_drifts": ((3,), {"width": 16}, {"tilt": lambda n: torch.ones(n)}),
    "learned_variance": ((3,), {"width": 16}, {}),
    "unet": ((1, 8, 8), {"channels": 16, "classes": 3}, {"y": labels}),
    "dit": ((1, 8, 8), BLOCKS, {"y": labels}),
    "uvit": ((1, 8, 8), BLOCKS, {"y": labels}),
}
ONNX_ERROR = 2e-5
"""Another runtime adds in another order: float32 of outputs of size 1 to 10."""


def network(name: str) -> nn.Module:
    """One whose last layer is not of zeros, as it is before training."""
    shape, options, _ = CASES[name]
    net = scoresde.build("vp", name, shape=shape, **options).net.eval()
    draw = generator(1)
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn(p.shape, generator=draw))
    return net


def inputs(name: str, n: int) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """State, noise labels and conditions of n samples."""
    shape, _, conditions = CASES[name]
    x = torch.randn(n, *shape, generator=generator())
    t = torch.linspace(-6, 6, n)
    return (x, t), {key: make(n) for key, make in conditions.items()}


def sizes(given: dict[str, Tensor]) -> dict[str, Any]:
    """The first axis of every input is the batch."""
    batch = torch.export.Dim("batch", max=2**20)
    return {name: {0: batch} for name in ("x", "t", *given)}


def test_every_backbone_has_a_case() -> None:
    known = {n for n in scoresde.BACKBONES if not n.startswith(("doctest", "test_", "gated"))}
    assert known - {"backbone_plugin"} == CASES.keys()


@torch.no_grad()
@pytest.mark.parametrize("name", some(CASES, "mlp", "masked", "two_times", "dit"))
def test_an_exported_network_is_the_network(name: str) -> None:
    """To 1e-6 of the largest output, from one batch size to others, written and read."""
    net = network(name)
    both, given = inputs(name, 4)
    program = torch.export.export(net, both, given, dynamic_shapes=sizes(given))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for n in (1, 4, 7):
        both, given = inputs(name, n)
        wanted = net(*both, **given)
        assert float(wanted.std()) > 0.01
        found = again(*both, **given)
        assert float((found - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_a_network_in_onnx_is_the_network(name: str, tmp_path: Path) -> None:
    """The case without conditions is on docs/ecosystem.md, which runs in `make test`."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net = network(name)
    both, given = inputs(name, 4)
    program = torch.onnx.export(
        net, both, kwargs=given, dynamo=True, verbose=False, dynamic_shapes=sizes(given)
    )
    program.save(str(tmp_path / "net.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"))
    for n in (1, 7):
        both, given = inputs(name, n)
        arrays = [value.numpy() for value in (*both, *given.values())]
        names = [value.name for value in session.get_inputs()]
        found = torch.tensor(session.run(None, dict(zip(names, arrays, strict=True)))[0])
        wanted = net(*both, **given)
        assert float((found - wanted).abs().max()) <= ONNX_ERROR * float(wanted.abs().max())
