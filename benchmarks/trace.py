"""What a trace costs: value + trace ÷ one forward pass, 1,000 points, float32, one thread, CPU
time.

Calls are interleaved, each timed beside a forward pass just before it, and medians over rounds are
printed. `closed form` is the network's own `value_and_trace`, `products` is `exact_trace` of any
network, `one probe` is `hutchinson_trace`. Beside them the ways of others, written out: a loop of
vector–Jacobian products (score_sde, FFJORD), the same with create_graph (flow_matching, torchdyn),
and torch.func's vmap of jvp. `compiled` is torch.compile of the closed form, over an uncompiled
forward pass; it needs a C++ compiler, and is left out above 16 dimensions.

    python benchmarks/trace.py
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoresde.backbones import MLP
from scoresde.density.trace import exact_trace, hutchinson_trace

Run = Callable[[], object]
NETWORKS = {
    "4 × 128, Fourier": {},
    "3 × 128": {"depth": 3, "fourier": 0},
    "2 × 128": {"depth": 2, "fourier": 0},
}
COLUMNS = [
    "closed form",
    "compiled",
    "products",
    "one probe",
    "loop",
    "loop, create_graph",
    "vmap of jvp",
]


def loop(f: Callable[[Tensor], Tensor], z: Tensor, create_graph: bool) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        out = f(z)
        trace = torch.zeros(len(z))
        for i in range(z.shape[1]):
            trace += torch.autograd.grad(
                out[:, i].sum(), z, create_graph=create_graph, retain_graph=True
            )[0][:, i].detach()
    return trace


def forward_mode(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    basis = torch.eye(z.shape[1]).unsqueeze(1).expand(-1, len(z), -1)
    rows = torch.func.vmap(lambda v: (torch.func.jvp(f, (z,), (v,))[1] * v).sum(1))(basis)
    return rows.sum(0)


def compiled(net: MLP, x: Tensor, t: Tensor) -> Run | None:
    if x.shape[1] > 16:
        return None
    call = torch.compile(net.value_and_trace)
    try:
        call(x, t)
    except Exception as error:
        print(f"torch.compile: {type(error).__name__}", file=sys.stderr)
        return None
    return lambda: call(x, t)


def runs(net: MLP, x: Tensor, t: Tensor) -> dict[str, Run | None]:
    def f(z: Tensor) -> Tensor:
        return net(z, t)

    probe = torch.randn(1, *x.shape).sign()
    return {
        "closed form": lambda: net.value_and_trace(x, t),
        "compiled": compiled(net, x, t),
        "products": lambda: exact_trace(f, x),
        "one probe": lambda: hutchinson_trace(f, x, probe),
        "loop": lambda: loop(f, x, False),
        "loop, create_graph": lambda: loop(f, x, True),
        "vmap of jvp": lambda: forward_mode(f, x),
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    rule = "--- | " * (3 + len(COLUMNS))
    print(f"| network | D | forward, ms | {' | '.join(COLUMNS)} |\n| {rule}".rstrip())
    for name, options in NETWORKS.items():
        for n in (2, 16, 64):
            net = MLP((n,), **options).eval()
            nn.init.normal_(net.out.weight, std=0.1)
            x, t = torch.randn(1000, n), torch.randn(1000)
            forward: Run = functools.partial(net, x, t)
            calls = {c: call for c, call in runs(net, x, t).items() if call is not None}
            taken: dict[str, list[float]] = {c: [] for c in (*calls, "forward")}
            for i in range(1 + {2: 25, 16: 9, 64: 5}[n]):
                for column, call in calls.items():
                    for name_of, each in (("forward", forward), (column, call)):
                        start = time.process_time()
                        each()
                        if i:  # the first warms up
                            taken[name_of].append(time.process_time() - start)
            base = statistics.median(taken["forward"])
            cells = [
                f"{statistics.median(taken[c]) / base:.2f}" if c in taken else "–" for c in COLUMNS
            ]
            print(f"| {name} | {n} | {1e3 * base:.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
