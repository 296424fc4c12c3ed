"""Guidance of a trained model: scikit-learn's digits, by class and with a hidden half.

Trains a conditional `mlp` for 3,000 steps on 1,500 digits (about 90 CPU seconds). Then, for scales
β of classifier-free guidance, how many of 1,000 samples a support vector machine takes for their
class, and the energy distance to the real digits of that class; and how often the truth lies within
20 draws of the right half of held-out digits: `python benchmarks/guided_digits.py` (5 CPU minutes).
"""

from __future__ import annotations

import argparse

import sklearn.datasets
import torch
from sklearn.svm import SVC
from torch import Tensor

import scoresde

GRAY = scoresde.dequantize.Uniform(levels=17)
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
DRAWS = 20
NOISE = 0.03


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy(images: Tensor, g: torch.Generator) -> Tensor:
    """Gray levels with uniform noise inside their bins, in [0, 1)."""
    return (images + torch.rand(images.shape, generator=g)) / GRAY.levels


def classes(sde: scoresde.ScoreSDE, images: Tensor, labels: Tensor, known: SVC) -> None:
    y = torch.arange(10).repeat_interleave(100)
    print("| β | of their class | energy distance within the class |\n| --- | --- | --- |")
    for scale in SCALES:
        guided = scoresde.classifier_free(sde, scale).given(y=y)
        x = GRAY.values(scoresde.sample(guided, generator=generator(1))).float().flatten(1)
        right = known.score(x.numpy(), y.numpy())
        apart = [
            float(scoresde.energy_distance(x[y == c] / 17, images[labels == c].flatten(1) / 17))
            for c in range(10)
        ]
        print(f"| {scale:g} | {right:.3f} | {sum(apart) / 10:.4f} |", flush=True)


def halves(sde: scoresde.ScoreSDE, held_out: Tensor, particles: int, steps: int) -> None:
    x = noisy(held_out, generator(2))
    hidden = torch.zeros(1, 8, 8, dtype=torch.bool)
    hidden[:, :, 4:] = True
    y = x + NOISE * torch.randn(x.shape, generator=generator(3))
    seen = scoresde.measurements.Inpaint(~hidden, noise=NOISE)
    posterior = scoresde.observe(sde.given(), seen, y.repeat_interleave(DRAWS, 0))
    if particles > 1:
        drawn = scoresde.particles(posterior, None, particles, steps, generator=generator(1)).x
    else:
        drawn = scoresde.sample(posterior, steps=steps, generator=generator(1))
    drawn = drawn.reshape(len(x), DRAWS, 1, 8, 8)
    below = (drawn < x[:, None]).sum(1)[hidden.expand_as(x)]
    within = ((below > 0) & (below < DRAWS)).float().mean()
    expected = (DRAWS - 1) / (DRAWS + 1)
    print(f"{particles} particles, {steps} steps: {within:.1%} within the draws ({expected:.1%})")


def main(digits: int = 10, steps: int = 3000) -> None:
    torch.manual_seed(0)
    found = sklearn.datasets.load_digits()
    images = torch.as_tensor(found.images, dtype=torch.float32).unsqueeze(1)
    labels = torch.as_tensor(found.target)
    order = torch.randperm(len(images), generator=generator(0))
    images = images[order]
    labels = labels[order]
    train = images[:1500]
    data = torch.cat([noisy(train, generator(seed)) for seed in range(8)])
    sde = scoresde.build("vp", "mlp", shape=(1, 8, 8), width=512, depth=3, fourier=0, classes=10)
    given = {"y": labels[:1500].repeat(8)}
    scoresde.fit(sde, data, given=given, steps=steps, lr=1e-3, generator=generator(0))
    known = SVC(C=10, gamma=1e-3).fit(train.flatten(1).numpy(), labels[:1500].numpy())
    right = known.score(images[1500:].flatten(1).numpy(), labels[1500:].numpy())
    print(f"real held-out digits of their class: {right:.3f}")
    classes(sde, images, labels, known)
    halves(sde, images[1500 : 1500 + digits], 1, 50)
    halves(sde, images[1500 : 1500 + digits], 8, 60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3000)
    main(**vars(parser.parse_args()))
