"""How good a density: KL(truth ‖ model) in nats on every toy density, from `fit`'s defaults, by
exact likelihood.

    python benchmarks/density.py [--process vp] [--steps 10000] [--densities moons rings]

Prints one row a density: true entropy, gap ± standard error over 10,000 true samples, CPU seconds
of the fit, evaluations.
"""

from __future__ import annotations

import argparse
import platform
import time

import torch

import scoresde


def row(density: str, process: str, steps: int, points: int) -> str:
    truth = scoresde.toy.DENSITIES[density]()
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    sde = scoresde.build(process, "mlp", shape=(2,))
    began = time.process_time()
    scoresde.fit(sde, truth, steps=steps, generator=generator, progress=False)
    seconds = time.process_time() - began
    x = truth.sample(points, generator=generator)
    result = scoresde.likelihood(sde, x)
    excess = (
        truth.log_prob(x) - result.log_prob
    ).double()  # its mean is the divergence, with little variance
    gap, error = float(excess.mean()), float(excess.std()) / points**0.5
    nfe = float(result.nfe.double().mean())
    return (
        f"| {density:<15} | {truth.entropy():8.4f} | {gap:8.4f} ± {error:.4f} "
        f"| {seconds:7.1f} | {nfe:5.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--process", default="vp")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--densities", nargs="*", default=list(scoresde.toy.DENSITIES))
    args = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"process {args.process}"
    )
    print("| density         | entropy  | gap (nats)        | CPU s   | evals |")
    print("| --------------- | -------- | ----------------- | ------- | ----- |")
    for density in args.densities:
        print(row(density, args.process, args.steps, args.points), flush=True)


if __name__ == "__main__":
    main()
