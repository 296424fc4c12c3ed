"""What a step costs beside the network: no wait for the device, no memory, no graph."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import scoresde
from conftest import ORDINARY, generator
from scoresde import SOLVERS, ScoreSDE

FIXED = [name for name in ORDINARY if not name.startswith("doctest")]
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "lift_fresh",
    "masked_select",
    "is_nonzero",
    "unique",
)  # each waits for a GPU


class Net(nn.Module):
    """Remembers how many of its outputs are alive at once, and whether any is part of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2) * 0.3)
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most, self.graph = 0, False

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = torch.tanh(x @ self.weight)
        self.alive.add(out)
        self.most = max(self.most, len(self.alive))
        self.graph |= out.requires_grad
        return out


class Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += op.overloadpacket.__name__ in WAITS
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("solver", "predict"),
    [
        pytest.param(
            solver,
            predict,
            marks=()
            if predict == "edm" or solver in ("adams", "dpmpp_2m", "em", "heun", "pc")
            else (pytest.mark.slow,),
        )
        for solver in FIXED
        for predict in ("edm", "v", "eps")
    ],
)
def test_fixed_steps_wait_for_no_device_and_keep_nothing(solver: str, predict: str) -> None:
    """The operations that would wait for a GPU, and the network outputs alive at once, do not grow
    with the number of steps.

    Noise is drawn ahead for up to 32 steps, by generators of its own: a copy, not a wait.
    """
    seen = []
    for steps in (2, 12, 40):  # the first fills caches
        sde = ScoreSDE(scoresde.VPSDE(), net := Net(), shape=(2,), predict=predict)
        with Waits() as waits:
            x = scoresde.sample(sde, 8, solver=solver, steps=steps, generator=generator())
        seen.append((waits.count, net.most))
        assert not net.graph
        assert not x.requires_grad
    assert seen[1] == seen[2]


@pytest.mark.parametrize("solver", [name for name in FIXED if SOLVERS.build(name).tolerances])
def test_adaptive_solvers_keep_nothing_and_build_no_graph(solver: str) -> None:
    most = []
    for tolerance in (1e-2, 1e-4 if SOLVERS.build(solver).stochastic else 1e-6):
        sde = ScoreSDE(scoresde.VPSDE(), net := Net(), shape=(2,))
        with Waits() as waits:
            taken = scoresde.solve(
                sde, 8, solver=solver, rtol=tolerance, atol=tolerance, generator=generator()
            )
        assert waits.count > 3  # they must: it also shows that the test above would see it
        most.append(net.most)
        assert not net.graph
        assert not taken.x.requires_grad
    assert most[1] <= max(most[0], 12)
