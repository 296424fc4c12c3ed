"""Rectified flow: a model's own noise and samples, paired, straighten its paths until one Euler
step is enough.

Fits a flow to a toy density, draws pairs from it, fits the next flow to those, prints how straight
each is and how good its samples are in one step, and draws the paths. About two minutes on two
cores: `python examples/rectified_flow.py`. Models and pairs stay in the folder `--out`: a run that
was interrupted goes on there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import scoresde
from scoresde.common.plotting import BLUE, GREY, ORANGE


def main(
    density: str = "moons",
    steps: int = 4000,
    pairs: int = 50_000,
    reflows: int = 1,
    out: str = "rectified_flow",
    points: int = 10_000,
    seed: int = 0,
) -> list[dict[str, float]]:
    def random(k: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * seed + k)

    def train(k: int, data: object) -> scoresde.ScoreSDE:
        torch.manual_seed(seed)
        sde = scoresde.build("rectified", "mlp", shape=(2,), blur=False)
        scoresde.fit(
            sde,
            data,
            objective=scoresde.Denoising(noise="uniform"),
            steps=steps,
            checkpoints=scoresde.Checkpoints(f"{out}/flow-{k}", resume=True),
            generator=random(2 * k),
        )
        return sde

    truth = scoresde.toy.DENSITIES[density]()
    flows = [train(0, truth)]
    for k in range(1, reflows + 1):
        drawn = scoresde.reflow(
            flows[-1], pairs, out=f"{out}/pairs-{k}", generator=random(2 * k - 1)
        )
        flows.append(train(k, drawn))

    test = truth.sample(points, generator=random(101))
    floor = scoresde.noise_floor(
        scoresde.energy_distance, truth, points, repeats=20, generator=random(102)
    )
    one = [
        scoresde.sample(sde, points, solver="ddim", steps=1, generator=random(103))
        for sde in flows
    ]
    rows = []
    for sde, x in zip(flows, one, strict=True):
        straight = scoresde.straightness(sde, 1024, generator=random(104))
        rows.append(
            {
                "E² of one step / floor": floor.times(scoresde.energy_distance(x, test)),
                "straightness S": straight.straightness.value,
                "path energy": straight.path_energy.value,
                "curvature": straight.curvature.value,
                "evaluations to 1e-2": scoresde.nfe_for_error(
                    sde, 1e-2, n=500, generator=random(105)
                ).nfe,
            }
        )
    names = ["flow", *(f"{k} reflow" + "s" * (k > 1) for k in range(1, reflows + 1))]
    print(
        f"{density}: {steps:,} steps, {pairs:,} pairs; E² of {points:,} samples, floor "
        f"{floor.rms:.2g} (between two true sets)"
    )
    print(f"{'':24}" + "".join(f"{name:>12}" for name in names))
    for key in rows[0]:
        print(f"{key:24}" + "".join(f"{row[key]:>12.4g}" for row in rows))

    times = torch.linspace(1, 0, 100)
    paths = [scoresde.solve(sde, 150, times=times, generator=random(106)).x for sde in flows]
    titles = [
        f"{name}: S = {row['straightness S']:.2g}" for name, row in zip(names, rows, strict=True)
    ]
    draw(paths, [x[:4000] for x in one], titles, Path(out) / "paths.png")
    print(f"figure: {Path(out) / 'paths.png'}")
    return rows


def draw(
    paths: list[torch.Tensor], samples: list[torch.Tensor], titles: list[str], file: Path
) -> None:
    """Paths above, samples of one Euler step below; a column for each model."""
    ends = torch.cat([x[[0, -1]].flatten(0, 1) for x in paths])
    (left, bottom), (right, top) = (ends.amin(0) - 0.25).tolist(), (ends.amax(0) + 0.25).tolist()
    n, ratio = len(titles), (top - bottom) / (right - left)
    size = 4.0 * n, 2 * 4.0 * ratio + 0.5
    figure, axes = plt.subplots(2, n, figsize=size, squeeze=False, constrained_layout=True)
    for k, (x, y, title) in enumerate(zip(paths, samples, titles, strict=True)):
        above, below = axes[:, k]
        above.plot(*x.permute(2, 0, 1).numpy(), color=GREY, lw=0.7, alpha=0.6)
        above.scatter(*x[0].T.numpy(), s=7, c=BLUE, linewidths=0, zorder=3, label="noise")
        above.scatter(*x[-1].T.numpy(), s=7, c=ORANGE, linewidths=0, zorder=3, label="data")
        above.set_title(title, fontsize=12)
        below.scatter(*y.T.numpy(), s=2, c=ORANGE, linewidths=0, alpha=0.5)
    axes[0, 0].legend(
        loc="lower left", fontsize=9, frameon=False, handletextpad=0.1, markerscale=1.6
    )
    axes[0, 0].set_ylabel("paths", fontsize=11)
    axes[1, 0].set_ylabel("one Euler step", fontsize=11)
    for axis in axes.flat:
        axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
        axis.spines[:].set_color("#d5d8da")
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--density", default="moons", choices=sorted(scoresde.toy.DENSITIES))
    parser.add_argument("--steps", type=int, default=4000, help="training steps of each flow")
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--reflows", type=int, default=1)
    parser.add_argument(
        "--out", default="rectified_flow", help="folder for models, pairs and the figure"
    )
    parser.add_argument("--points", type=int, default=10_000, help="samples that are compared")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
