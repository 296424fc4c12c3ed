"""What a GPU computes beside the CPU, and how fast: one JSON file, one page of tables.

    python benchmarks/gpu.py [--device cuda] [--small] [--cifar10 FOLDER] [--json gpu.json]
    [--out gpu.md]

- agreement: for each backbone, samples, log p and the gradient of one training step, on the device
  and on the CPU, from the same weights, starting points and noise;
- waits: operations per step of a fixed-step solver for which the CPU waits for the device;
- throughput: images per second of a training step of `unet` and `dit`, float32, bfloat16, and
  bfloat16 compiled, beside diffusers' networks and the speed of a large matrix product;
- recipe: "cifar10-5min", and its bits/dim on 1,000 test images, where its folder is given.

Without a GPU it runs on the CPU, with small networks, to show that it works; the figures then say
nothing about a GPU. The exit status is 1 if the device disagrees or a solver waits.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from backbones import DDPM
from report import Report
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import scoresde
from scoresde.backbones.unet import UNet

IMAGE = (3, 4, 4)
SIZES: dict[str, dict[str, Any]] = {
    "unet": {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "heads": 1},
    "dit": {"width": 64, "depth": 2, "heads": 2, "patch": 2},
    "uvit": {"width": 64, "depth": 3, "heads": 2, "patch": 2},
}
SHAPES = dict.fromkeys(SIZES, IMAGE)
BACKBONES = list(scoresde.BACKBONES)
BOUNDS = {"float64": 1e-9, "float32": 1e-4}  # of the largest entry; TF32 is off
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "lift_fresh",
    "masked_select",
    "is_nonzero",
    "unique",
}
FORMS = ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True))
SOLVERS = ("adams", "dpmpp_2m", "unipc", "ddim", "heun", "euler", "em", "pc", "dpmpp_2m_sde")


def model(name: str, dtype: torch.dtype) -> scoresde.ScoreSDE:
    """A small model of a backbone with weights that are nowhere zero."""
    torch.manual_seed(0)
    shape = SHAPES.get(name, (3,))
    sde = scoresde.build("vp", name, shape=shape, **SIZES.get(name, {})).to(dtype)
    for parameter in sde.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return sde.eval()


def samples(sde: scoresde.ScoreSDE, x: Tensor) -> Tensor:
    """Five steps of Heun's method from given noise."""
    return scoresde.decode(sde, x, solver="heun", steps=5)


def density(sde: scoresde.ScoreSDE, x: Tensor) -> Tensor:
    """log p with the exact trace."""
    return scoresde.log_prob(sde, x[:2], solver="heun", steps=5, trace="exact")


def gradient(sde: scoresde.ScoreSDE, x: Tensor) -> Tensor:
    """The gradient of the training loss, with given noise and noise levels."""
    rows = x.flatten(1)
    noise = rows.flip(0)
    quantiles = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    objective = scoresde.Denoising(noise="lognormal")
    unused = torch.Generator(x.device)
    loss = objective(sde.net, sde, rows, noise, quantiles.to(x.device), {}, 0.0, unused)
    weights = [p for p in sde.net.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


QUANTITIES: dict[str, Callable[[scoresde.ScoreSDE, Tensor], Tensor]] = {
    "samples": samples,
    "log p": density,
    "gradient": gradient,
}


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference over the largest entry of b, both in float64."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).abs().max() / b.abs().max())


def agreement(report: Report, device: str) -> bool:
    """Compare the device with the CPU in float64."""
    good = True
    report.head(
        f"{device} beside the CPU in float64: largest difference ÷ largest entry",
        ["backbone", "dtype", *QUANTITIES, "bound"],
    )
    for name in BACKBONES:
        truth = model(name, torch.float64)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(8, *truth.shape, generator=generator, dtype=torch.float64)
        wanted = {what: compute(truth, x) for what, compute in QUANTITIES.items()}
        for dtype, bound in BOUNDS.items():
            there = copy.deepcopy(truth).to(device=device, dtype=getattr(torch, dtype))
            y = x.to(device=device, dtype=getattr(torch, dtype))
            errors = {q: distance(f(there, y), wanted[q]) for q, f in QUANTITIES.items()}
            good = good and max(errors.values()) <= bound
            cells = [f"{error:.1e}" for error in errors.values()]
            report.row(f"`{name}`", dtype, *cells, f"{bound:.0e}")
            report.keep(what="agreement", backbone=name, dtype=dtype, bound=bound, **errors)
    report()
    return good


class Waits(TorchDispatchMode):
    """Counts operations for which the CPU waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        self.count += op.overloadpacket.__name__ in WAITS
        return op(*args, **(kwargs or {}))


def waits(report: Report, device: str) -> bool:
    """Count the waits of 40 steps beyond those of 12."""
    good = True
    report.head("Waits for the device per step", ["solver", "waits", "of CUDA's own count"])
    sde = model("mlp", torch.float32).to(device)
    for name in SOLVERS:
        seen, own = [], []
        for steps in (2, 12, 40):  # the first fills caches
            with Waits() as counter, Synchronizations(device) as synchronizations:
                scoresde.sample(sde, 8, solver=name, steps=steps)
            seen.append(counter.count)
            own.append(synchronizations.count)
        each, cuda = (seen[2] - seen[1]) / 28, (own[2] - own[1]) / 28
        good = good and each == cuda == 0
        report.row(f"`{name}`", f"{each:g}", f"{cuda:g}" if device != "cpu" else "—")
        report.keep(what="waits", solver=name, each=each, cuda=cuda)
    report()
    return good


class Synchronizations:
    """Counts the synchronizations that CUDA itself reports; none on a CPU."""

    def __init__(self, device: str) -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.count = 0

    def __enter__(self) -> Synchronizations:
        """Begin to listen."""
        self.caught = warnings.catch_warnings(record=True)
        self.list = self.caught.__enter__()
        if self.cuda:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: object) -> None:
        """Count what was heard."""
        if self.cuda:
            torch.cuda.set_sync_debug_mode("default")
            self.count = sum("synchroniz" in str(w.message) for w in self.list or [])
        self.caught.__exit__(None, None, None)


def networks(small: bool) -> dict[str, tuple[nn.Module, tuple[int, ...], Callable[..., Any]]]:
    """Networks of CIFAR-10's and ImageNet latents' size, ours and diffusers'."""
    shape = (3, 8, 8) if small else (3, 32, 32)
    latent = (4, 8, 8) if small else (4, 32, 32)
    channels = 32 if small else 128
    depth, width, heads = (2, 64, 2) if small else (12, 384, 6)
    options = DDPM | {"channels": channels, "attention": (shape[-1] // 2,)}
    ours = UNet(shape, dropout=0.1, **options)
    transformer = {"width": width, "depth": depth, "heads": heads, "patch": 2}
    dit = scoresde.build("vp", "dit", shape=latent, classes=1000, **transformer)
    found: dict[str, tuple[nn.Module, tuple[int, ...], Callable[..., Any]]] = {
        "unet": (ours, shape, lambda net, x, t, y: net(x, t)),
        "dit": (dit.net, latent, lambda net, x, t, y: net(x, t, y=y)),
    }
    try:
        from diffusers import DiTTransformer2DModel, UNet2DModel
    except ImportError:
        return found
    down = ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    theirs = UNet2DModel(
        sample_size=shape[-1],
        block_out_channels=tuple(channels * m for m in (1, 2, 2, 2)),
        layers_per_block=2,
        dropout=0.1,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=None,
        norm_num_groups=32,
    )
    their_dit = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=4,
        num_layers=depth,
        sample_size=latent[-1],
        num_embeds_ada_norm=1000,
    )

    def labelled(net: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        out: Tensor = net(x, timestep=t, class_labels=y).sample
        return out

    found["diffusers UNet2DModel"] = (theirs, shape, lambda net, x, t, y: net(x, t).sample)
    found["diffusers DiT"] = (their_dit, latent, labelled)
    return found


def clock(device: str) -> float:
    """Seconds, after the device has finished."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_speed(device: str, dtype: torch.dtype, small: bool) -> float:
    """Floating-point operations per second of a large matrix product."""
    n = 256 if small else 8192
    a = torch.randn(n, n, device=device, dtype=dtype)
    a @ a
    best = float("inf")
    for _ in range(5):
        start = clock(device)
        for _ in range(5):
            a @ a
        best = min(best, (clock(device) - start) / 5)
    return 2 * n**3 / best


def training_step(
    net: nn.Module, call: Callable[..., Any], inputs: tuple[Tensor, ...], dtype: torch.dtype
) -> None:
    """Run forward and backward once."""
    net.zero_grad(set_to_none=True)
    device = inputs[0].device.type
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = call(net, *inputs)
    out.float().square().mean().backward()


def throughput(report: Report, device: str, small: bool) -> None:
    """Time training steps, in float32, in bfloat16, and in bfloat16 compiled."""
    batch, steps, warm = (2, 1, 1) if small else (128, 10, 3)
    report.head(
        f"Training steps, batch {batch}",
        ["network", "parameters", "dtype", "", "images/s", "of a matrix product's speed"],
    )
    limits = {
        dtype: matmul_speed(device, dtype, small) for dtype in (torch.float32, torch.bfloat16)
    }
    for name, (net, shape, call) in networks(small).items():
        net = net.to(device).train()
        x = torch.randn(batch, *shape, device=device)
        inputs = (x, torch.rand(batch, device=device), torch.arange(batch, device=device))
        with FlopCounterMode(display=False) as counter:
            training_step(net, call, inputs, torch.float32)
        flops = counter.get_total_flops()
        millions = sum(p.numel() for p in net.parameters()) / 1e6
        for dtype, compiled in FORMS[:2] if small else FORMS:
            torch.compiler.reset()
            run: Any = torch.compile(net) if compiled else net
            for _ in range(warm):
                training_step(run, call, inputs, dtype)
            start = clock(device)
            for _ in range(steps):
                training_step(run, call, inputs, dtype)
            each = (clock(device) - start) / steps
            share = flops / each / limits[dtype]
            kind = "compiled" if compiled else "eager"
            word = str(dtype).removeprefix("torch.")
            rate = f"{batch / each:,.0f}"
            report.row(name, f"{millions:.1f} M", word, kind, rate, f"{share:.0%}")
            report.keep(
                what="throughput",
                network=name,
                dtype=word,
                compiled=compiled,
                images_per_second=batch / each,
                share=share,
                limit=limits[dtype],
            )
        net.to("cpu")
    report()


def recipe(report: Report, device: str, folder: str) -> None:
    """Train "cifar10-5min" and state its bits/dim."""
    rule = scoresde.recipes.recipe("cifar10-5min")
    torch.manual_seed(0)
    sde = rule.build().to(device)
    start = clock(device)
    rule.fit(sde, scoresde.files.read(folder).values, progress=False, validation=None)
    seconds = clock(device) - start
    test = scoresde.files.read(folder, split="test").values
    found = scoresde.evaluate(sde, test, n=1000, seed=0)
    report.head("Recipe cifar10-5min", ["seconds of training", "result"])
    report.row(f"{seconds:.0f}", str(found).replace("\n", "; "))
    report.keep(what="recipe", seconds=seconds, result=str(found))
    report()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="small networks, as on a CPU")
    parser.add_argument("--cifar10", help="folder of the binary version, for the recipe")
    parser.add_argument("--json", default="gpu.json")
    parser.add_argument("--out", default="gpu.md")
    args = parser.parse_args(arguments)
    if args.cifar10 and not Path(args.cifar10).is_dir():
        parser.error(f"--cifar10 is a folder, got {args.cifar10!r}")
    on_cpu = torch.device(args.device).type == "cpu"
    small = args.small or on_cpu
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    report = Report(args.out, args.json, ("torch", "diffusers", "scoresde"))
    if on_cpu:
        report("No GPU: a run in small on the CPU. Not measured on a GPU.\n")
    else:
        report(f"{torch.cuda.get_device_name(args.device)}\n")
    begin = time.perf_counter()
    agrees = agreement(report, args.device)
    waitless = waits(report, args.device)
    throughput(report, args.device, small)
    if args.cifar10:
        recipe(report, args.device, args.cifar10)
    else:
        report("Recipe cifar10-5min: not measured, for want of --cifar10 FOLDER.\n")
    report(f"{time.perf_counter() - begin:.0f} seconds.")
    if not agrees:
        report("THE DEVICE DISAGREES with the CPU.")
    if not waitless:
        report("A SOLVER WAITS for the device at each step.")
    return int(not (agrees and waitless))


if __name__ == "__main__":
    sys.exit(main())
