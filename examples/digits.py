"""Real data: scikit-learn's handwritten digits, 1,797 images of 8×8 pixels with 17 gray levels.

Fits a model on 1,500 of them with uniform dequantization, prints held-out bits/dim with the exact
trace, and saves a sheet of samples beside real digits. About a minute on two cores: `python
examples/digits.py` (or `make digits`).
"""

from __future__ import annotations

import argparse
import math

import sklearn.datasets
import torch

import scoresde
from scoresde.common.plotting import sheet

GRAY = scoresde.dequantize.Uniform(levels=17)  # gray levels 0 … 16 as x = (v + u)/17, u ~ U[0, 1)


def main(steps: int = 2000, out: str = "digits.png", seed: int = 0, held_out: int = 297) -> float:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    images = torch.as_tensor(sklearn.datasets.load_digits().images, dtype=torch.float32).unsqueeze(
        1
    )
    images = images[torch.randperm(len(images), generator=generator)]
    train, test = images[:1500], images[1500 : 1500 + held_out]

    sde = scoresde.build("vp", "mlp", shape=(1, 8, 8), width=512, depth=3, fourier=0)
    history = scoresde.fit(sde, GRAY.dataset(train), steps=steps, lr=1e-3, generator=generator)
    bits = scoresde.bits_per_dim(sde, test, GRAY, generator=generator)
    print(history)
    print(
        f"held-out bits/dim: {bits.mean:.3f} ± {bits.mean_stderr:.3f} ({len(test)} images, one "
        "dequantization each, exact trace, "
        f"{bits.nfe.double().mean():.0f} evaluations; uniform over 17 levels: "
        f"{math.log2(GRAY.levels):.3f})"
    )
    samples = scoresde.sample(sde, 64, generator=generator)
    sheet(
        torch.cat([GRAY.values(samples).float(), test[:64]]),
        out,
        columns=16,
        title="samples above, held-out digits below",
    )
    print(f"samples: {out}")
    return bits.mean


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", default="digits.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out",
        type=int,
        default=297,
        help="images whose bits/dim are evaluated (at most 297)",
    )
    main(**vars(parser.parse_args()))
