"""What forward + backward of the U-Net costs beside others' of the same size: ours ÷ theirs,
medians of interleaved runs.

    python benchmarks/backbones.py [--edm PATH/training/networks.py] [--batch 2] [--rounds 5]
    [--threads 1 2] [--compile]

The sizes are those for CIFAR-10: DDPM (35.7 million parameters) beside diffusers' UNet2DModel with
the same weights, block by block; DDPM++ (55.7 million) beside a UNet2DModel of nearly as many, and
beside EDM's SongUNet, again the same network. All see the same images and times, in training mode,
with the dropout of 0.1 they have in common. On a CPU, CPU time of all threads, in float32; on a
GPU, if there is one, wall time in bfloat16 autocast, eager and compiled, at a batch of 128. The
compiler is slow on a CPU: there it is asked only with --compile. diffusers is left out where it is
not installed, and EDM without its path.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.backbones.unet import UNet

Call = Callable[[Tensor, Tensor], Tensor]

DDPM = {
    "channels": 128,
    "multipliers": (1, 2, 2, 2),
    "attention": (16,),
    "heads": 1,
    "condition": "shift",
    "resample": "conv",
}
SONG = {
    "channels": 128,
    "multipliers": (2, 2, 2),
    "blocks": 4,
    "attention": (16,),
    "attention_up": "last",
    "heads": 1,
}
SONG |= {"condition": "shift", "project": True, "skip_scale": True}


def edm(path: str) -> nn.Module:
    """SongUNet of NVlabs/edm, whose decorators only serve its pickles."""
    package, persistence = (
        types.ModuleType("torch_utils"),
        types.ModuleType("torch_utils.persistence"),
    )
    persistence.persistent_class = lambda cls: cls  # type: ignore[attr-defined]
    package.persistence = persistence  # type: ignore[attr-defined]
    sys.modules.update({"torch_utils": package, "torch_utils.persistence": persistence})
    spec = importlib.util.spec_from_file_location("edm_networks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: nn.Module = module.SongUNet(32, 3, 3, channel_mult=[2, 2, 2])
    return net


def diffusers(widths: tuple[int, ...], layers: int, attends: int) -> nn.Module | None:
    """UNet2DModel with attention at one level, and in the middle."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return None
    down = ["AttnDownBlock2D" if i == attends else "DownBlock2D" for i in range(len(widths))]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    options: dict[str, Any] = {
        "sample_size": 32,
        "block_out_channels": widths,
        "layers_per_block": layers,
        "dropout": 0.1,
    }
    net: nn.Module = UNet2DModel(
        **options, down_block_types=down, up_block_types=up, attention_head_dim=None
    )
    return net


def pairs(
    args: argparse.Namespace,
) -> list[tuple[str, nn.Module, str, nn.Module, Callable[[nn.Module], Call]]]:
    def sample(net: nn.Module) -> Call:
        return lambda x, t: net(x, t).sample

    def unlabeled(net: nn.Module) -> Call:
        return lambda x, t: net(x, t, None)

    found: list[tuple[str, nn.Module, str, nn.Module, Callable[[nn.Module], Call]]] = []
    for name, options, shape in (
        ("DDPM", DDPM, ((128, 256, 256, 256), 2, 1)),
        ("DDPM++", SONG, ((256, 256, 256), 4, 1)),
    ):
        theirs = diffusers(*shape)
        if theirs is not None:
            found.append(
                (
                    name,
                    UNet((3, 32, 32), dropout=0.1, **options),
                    "diffusers UNet2DModel",
                    theirs,
                    sample,
                )
            )  # type: ignore[arg-type]
    if args.edm:
        ours = UNet((3, 32, 32), dropout=0.1, **SONG)  # type: ignore[arg-type]
        found.append(("DDPM++", ours, "EDM SongUNet", edm(args.edm), unlabeled))
    return found


def seconds(call: Call, net: nn.Module, x: Tensor, t: Tensor) -> tuple[float, float]:
    """Forward, and forward + backward."""
    clock = time.perf_counter if x.is_cuda else time.process_time
    ready = torch.cuda.synchronize if x.is_cuda else lambda: None
    net.zero_grad(set_to_none=True)
    ready()
    start = clock()
    with torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda):
        out = call(x, t)
    ready()
    half = clock()
    out.float().square().mean().backward()
    ready()
    return half - start, clock() - start


def compare(pair: Any, device: str, batch: int, rounds: int, compiled: bool) -> str:
    name, ours, other, theirs, wrap = pair
    x, t = torch.randn(batch, 3, 32, 32, device=device), torch.rand(batch, device=device)
    nets = [net.to(device).train() for net in (ours, theirs)]
    calls: list[Call] = [nets[0], wrap(nets[1])]
    if compiled:
        calls = [torch.compile(call) for call in calls]
    taken: list[list[tuple[float, float]]] = [[], []]
    for i in range(rounds + 1):
        for call, net, times in zip(calls, nets, taken, strict=True):
            now = seconds(call, net, x, t)
            if i:  # the first warms up
                times.append(now)
    medians = [
        [statistics.median(column) for column in zip(*times, strict=True)] for times in taken
    ]
    ratios = [statistics.median(a[k] / b[k] for a, b in zip(*taken, strict=True)) for k in (0, 1)]
    sizes = [sum(p.numel() for p in net.parameters()) / 1e6 for net in nets]
    return (
        f"| {name} | {other} | {sizes[0]:.1f} / {sizes[1]:.1f} | {1e3 * medians[0][1]:.0f} / "
        f"{1e3 * medians[1][1]:.0f} "
        f"| {ratios[0]:.2f} | {ratios[1]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="ours ÷ theirs, forward + backward")
    parser.add_argument("--edm", help="the file training/networks.py of NVlabs/edm")
    parser.add_argument("--batch", type=int, default=2, help="images at once on a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--compile", action="store_true", help="compile on the CPU, too")
    args = parser.parse_args()
    torch.manual_seed(0)
    settings = [
        ("cpu", n, args.batch, compiled)
        for n in args.threads
        for compiled in ([False, True] if args.compile else [False])
    ]
    if torch.cuda.is_available():
        settings += [("cuda", 1, 128, False), ("cuda", 1, 128, True)]
    for device, threads, batch, compiled in settings:
        torch.set_num_threads(threads)
        print(
            f"\n{device}, {threads} threads, batch {batch}, {'compiled' if compiled else 'eager'}\n"
        )
        columns = [
            "",
            "beside",
            "parameters, millions",
            "ms",
            "forward, ratio",
            "forward + backward, ratio",
        ]
        print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
        for pair in pairs(args):
            torch.compiler.reset()
            print(compare(pair, device, batch, args.rounds, compiled), flush=True)


if __name__ == "__main__":
    main()
