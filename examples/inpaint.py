"""Half of a handwritten digit, and what the other half may be: a model of scikit-learn's digits,
draws given what is seen, and a picture. About a minute on one CPU core.

The model learns whole digits and nothing of the task. Held-out digits are seen on the left, with
noise, and drawn from p(digit | left half): the rows of the picture are the truth, what is seen, the
mean of the draws, four of them, and their spread.

    python examples/inpaint.py --out inpaint.png

`scoresde inpaint` does the same with a saved model of images and files of yours.

Needs scikit-learn and matplotlib: pip install 'scoresde[sklearn,plot]'.
"""

from __future__ import annotations

import argparse

import matplotlib

matplotlib.use("Agg", force=False)
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import scoresde

GRAY = scoresde.dequantize.Uniform(levels=17)  # gray levels 0 … 16 as x = (v + u)/17, u ~ U[0, 1)
NOISE = 0.03  # of what is seen, where white is 1
ORANGE = "#d1662a"
MASK = (torch.arange(8) < 4).expand(1, 8, 8)  # True is seen


def split(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gray levels of 1,500 digits to learn from, and of ten others, one of each class."""
    digits = load_digits()
    order = torch.randperm(len(digits.images), generator=generator)
    images = torch.as_tensor(digits.images, dtype=torch.float32)[order].unsqueeze(1)
    labels = torch.as_tensor(digits.target)[order]
    held_out = images[1500:]
    first = [int((labels[1500:] == k).nonzero()[0]) for k in range(10)]
    return images[:1500], held_out[first]


def main(
    steps: int = 2000,
    draws: int = 20,
    evaluations: int = 50,
    out: str = "inpaint.png",
    seed: int = 0,
) -> float:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    train, held_out = split(generator)
    sde = scoresde.build("vp", "mlp", shape=(1, 8, 8), width=384, depth=3, fourier=0)
    print(scoresde.fit(sde, GRAY.dataset(train), steps=steps, lr=1e-3, generator=generator))

    truth = (held_out + torch.rand(held_out.shape, generator=generator)) / GRAY.levels
    measurement = scoresde.measurements.Inpaint(MASK, noise=NOISE)
    error = NOISE * torch.randn(truth.shape, generator=generator)
    y = measurement(truth + error)
    posterior = scoresde.observe(sde, measurement, y.repeat_interleave(draws, 0))
    found = scoresde.sample(posterior, steps=evaluations, generator=generator)
    found = found.reshape(len(truth), draws, 1, 8, 8).transpose(0, 1)

    inside = (found.amin(0) < truth) & (truth < found.amax(0))
    share = float(inside[~MASK.expand_as(truth)].float().mean())
    expected = (draws - 1) / (draws + 1)
    print(
        f"the truth is between the least and the greatest of {draws} draws in {share:.1%} of "
        f"{10 * int((~MASK).sum())} hidden pixels (expected: {expected:.1%})"
    )
    draw(truth, y, found, out)
    print(f"picture: {out}")
    return share


def draw(truth: Tensor, y: Tensor, found: Tensor, out: str) -> None:
    rows = [
        ("truth", truth),
        ("seen", y),
        ("mean", found.mean(0)),
        ("", found[0]),
        ("draws", found[1]),
        ("", found[2]),
        ("", found[3]),
        ("spread", found.std(0)),
    ]
    figure, axes = plt.subplots(len(rows), len(truth), figsize=(8.2, 6.1), facecolor="white")
    for (name, images), line in zip(rows, axes, strict=True):
        for axis, image in zip(line, images, strict=True):
            shown = image[0].numpy()
            if name == "spread":
                axis.imshow(shown, cmap="magma", vmin=0, vmax=0.4)
            else:
                axis.imshow(shown, cmap="gray", vmin=0, vmax=1)
            if name == "seen":
                axis.axvspan(3.5, 7.5, color="#c9cdd0", lw=0)
            elif name != "truth":
                axis.axvline(3.5, color=ORANGE, lw=1)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12)
    figure.subplots_adjust(0.09, 0.01, 0.995, 0.99, 0.08, 0.08)
    figure.savefig(out, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--draws", type=int, default=20, help="of each digit")
    parser.add_argument("--evaluations", type=int, default=50, help="steps of each draw")
    parser.add_argument("--out", default="inpaint.png")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
