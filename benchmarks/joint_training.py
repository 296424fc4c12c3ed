"""Two stages of training, alone or followed by joint training, by the bound on log p.

    python benchmarks/joint_training.py ring    # 8 Gaussians as latents, a linear stage
    python benchmarks/joint_training.py digits  # of scikit-learn
    python benchmarks/joint_training.py FOLDER  # Fashion-MNIST, its four files; minutes

One line for each `kl`, and for each of the two ways: the bound by one draw of z, its standard
error over the test samples, and CPU seconds of training. Nats below log p for the ring, bits/dim
for the others.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import scoresde

NOISE = 0.17
"""Standard deviation of x about the plane of the ring."""

Steps = tuple[int, int, int]
"""Of `fit_stage`, `fit` and `fit_joint`."""


class Line(scoresde.StageNet):
    """Linear encoder and decoder, and one scale of q for each latent."""

    def __init__(self, dim: int, latent: int) -> None:
        super().__init__((latent,))
        self.into = nn.Linear(dim, latent)
        self.log_scale = nn.Parameter(torch.full((latent,), -0.7))
        self.out = nn.Linear(latent, dim)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of q."""
        mean: Tensor = self.into(x)
        return mean, self.log_scale.exp().expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x|z)."""
        found: Tensor = self.out(z)
        return found


@dataclass
class Task:
    """Data, models, and how they are trained."""

    train: Any
    test: Tensor
    stage: Any
    latents: Any
    runs: tuple[tuple[float, Steps, Steps], ...]
    """(kl, steps of two stages alone, steps of all three)."""
    levels: int = 0
    truth: Tensor | None = None
    how: dict[str, Any] = field(default_factory=dict)
    lr: tuple[float, float, float] = (2e-3, 2e-3, 1e-3)
    bound: dict[str, Any] = field(default_factory=lambda: {"rtol": 1e-3, "atol": 1e-3})

    def value(self, log_p: Tensor) -> Tensor:
        """What is reported of each sample."""
        if self.truth is not None:
            return self.truth - log_p
        dim = self.test[0].numel()
        return (math.log(self.levels) - log_p / dim) / math.log(2)


def ring() -> Task:
    """8 Gaussians in a plane of six dimensions."""
    toy = scoresde.toy.EightGaussians()
    g = torch.Generator().manual_seed(1)
    plane = torch.linalg.qr(torch.randn(6, 2, generator=g))[0]
    x = toy.sample(20_400, generator=g) @ plane.T + NOISE * torch.randn(20_400, 6, generator=g)
    angle = torch.arange(8) * (math.pi / 4)
    centers = 4 / math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1) @ plane.T
    covariance = 0.125 * plane @ plane.T + NOISE**2 * torch.eye(6)
    modes = torch.distributions.MultivariateNormal(centers, covariance)
    truth = modes.log_prob(x[:400, None]).logsumexp(1) - math.log(8)
    return Task(
        x[400:],
        x[:400],
        lambda: scoresde.FirstStage(Line(6, 2), shape=(6,), standardize="none"),
        lambda: scoresde.build("vp", "mlp", shape=(2,), width=128, depth=3),
        tuple((kl, (800, 2500, 0), (300, 1000, 1000)) for kl in (0.1, 1.0)),
        truth=truth,
        how={"batch_size": 256},
        lr=(3e-2, 3e-3, 3e-3),
    )


def digits() -> Task:
    """1,400 digits of 8×8 pixels to train on, 397 to test."""
    from sklearn.datasets import load_digits

    g = torch.Generator().manual_seed(0)
    v = torch.tensor(load_digits().data, dtype=torch.float32)
    v = v[torch.randperm(len(v), generator=g)]
    x = (v + torch.rand(v.shape, generator=g)) / 17
    net: dict[str, Any] = {"latent": (8,), "width": 128, "levels": 17, "components": 2}
    return Task(
        x[:1400],
        x[1400:],
        lambda: scoresde.first_stage("vae", shape=(64,), **net),
        lambda: scoresde.build("vp", "mlp", shape=(8,), width=128, depth=3),
        tuple((kl, (1100, 1000, 0), (600, 600, 600)) for kl in (0.1, 0.3, 0.5, 1.0)),
        levels=17,
        how={"batch_size": 128, "ema": 100},
    )


def fashion(folder: str) -> Task:
    """58,000 images of clothes to train on, 300 to test."""
    data = torch.as_tensor(scoresde.files.read(folder).values)
    g = torch.Generator().manual_seed(0)
    test = data[-2000:][:300].float()
    test = (test + torch.rand(test.shape, generator=g)) / 256
    net: dict[str, Any] = {"latent": (4, 7, 7), "levels": 256, "components": 3, "channels": 48}
    prior: dict[str, Any] = {"width": 256, "depth": 3, "fourier": 0}
    return Task(
        data[:-2000],
        test,
        lambda: scoresde.first_stage("vae", shape=(1, 28, 28), patch=4, **net),
        lambda: scoresde.build("vp", "resmlp", shape=(4, 7, 7), **prior),
        ((0.5, (850, 850, 0), (400, 400, 500)), (0.5, (1250, 1250, 0), (850, 850, 400))),
        levels=256,
        how={"batch_size": 128, "ema": 150, "transforms": ("flip", "dequantize")},
        lr=(2e-3, 1e-3, 1e-3),
        bound={"rtol": 1e-2, "atol": 1e-2, "trace": "hutchinson"},
    )


def report(task: Task, kl: float, steps: Steps) -> None:
    """Train once, and print a line."""
    torch.manual_seed(0)
    model = scoresde.Latent(task.stage(), task.latents())
    how: dict[str, Any] = {"progress": False, "seed": 0, "validation": None, **task.how}
    begun = time.process_time()
    scoresde.fit_stage(model.stage, task.train, kl=kl, steps=steps[0], lr=task.lr[0], **how)
    scoresde.fit(model, task.train, steps=steps[1], lr=task.lr[1], **how)
    if steps[2]:
        scoresde.fit_joint(model, task.train, steps=steps[2], lr=task.lr[2], **how)
    seconds = time.process_time() - begun
    bound = scoresde.latent_bound(model, task.test, draws=1, seed=1, **task.bound)
    value = task.value(bound.log_prob)
    error = float(value.std()) / math.sqrt(len(value))
    print(
        f"kl={kl:<4g} steps={steps}  {float(value.mean()):.3f} ± {error:.3f}  {seconds:.0f} CPU s"
    )


def main() -> None:
    """Run a task."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", help="ring, digits, or the folder of Fashion-MNIST")
    name = parser.parse_args().task
    task = (
        {"ring": ring, "digits": digits}[name]() if name in ("ring", "digits") else fashion(name)
    )
    for kl, *both in task.runs:
        for steps in both:
            report(task, kl, steps)


if __name__ == "__main__":
    main()
