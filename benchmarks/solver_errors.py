"""Whether `solver_error` of `likelihood` holds, on networks that were trained for this.

    python benchmarks/solver_errors.py [--networks moons …] [--points 200] [--json FILE.jsonl]

A cell is a network, in float32 or float64, and a solver with a tolerance or a number of steps. It
has the share of points whose true error is within `solver_error`, and the median of their ratio.
The truth is "dop853" at 1e-10 with the same weights in float64, so that rounding counts as error.
SHOWN networks were looked at when the estimate was designed, HELD ones only afterwards. Images take
30 points and two random signs, which the truth shares in float64, so that they have no float32. The
tables have the least share and the range of the medians over the networks. Each cell is a line of
the JSON file, and a network that is there already is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn import datasets
from torch import Tensor

import scoresde
from scoresde import toy

TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)
ADAPTIVE = ("adams", "bosh3", "rk45", "tsit5", "dop853")
GRIDS = (
    ("adams", 20),
    ("adams", 50),
    ("adams", 200),
    ("euler", 50),
    ("heun", 20),
    ("heun", 50),
    ("rk4", 15),
    ("dop853", 6),
)
UNET = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4}


class Network(NamedTuple):
    """A target, and what is trained on it."""

    target: Any  # a density, or rows
    process: str
    backbone: str
    options: dict[str, Any]
    steps: int


def mixture(dim: int, count: int) -> toy.GaussianMixture:
    """A mixture with random centres."""
    centres = torch.randn(count, dim, generator=torch.Generator().manual_seed(dim)) * 1.5
    return toy.GaussianMixture(centres, torch.linspace(0.2, 0.6, count))


def rows(name: str, columns: int) -> Tensor:
    """The first columns of a table of scikit-learn."""
    return torch.tensor(getattr(datasets, f"load_{name}")().data[:, :columns]).float()


def components(count: int) -> Tensor:
    """The first principal components of the digits."""
    x = rows("digits", 64) / 16
    x = x - x.mean(0)
    return x @ torch.linalg.svd(x, full_matrices=False)[2][:count].T


def images() -> Tensor:
    """The digits as images."""
    return (rows("digits", 64) / 16).reshape(-1, 1, 8, 8)


SMALL = {"width": 32, "depth": 2}
SHOWN = {
    "moons": Network(toy.Moons(), "vp", "mlp", {"width": 48}, 250),
    "mixture, 8-D": Network(mixture(8, 6), "rectified", "mlp", {"width": 48}, 300),
    "8 Gaussians": Network(
        toy.EightGaussians(), "rectified", "mlp", {**SMALL, "fourier": 0}, 1000
    ),
    "spirals": Network(toy.TwoSpirals(), "vp", "resmlp", {"width": 64}, 800),
    "wine": Network(rows("wine", 13), "edm", "mlp", {"width": 64}, 800),
}
HELD = {
    "pinwheel": Network(toy.Pinwheel(), "rectified", "mlp", {"width": 64}, 600),
    "swiss roll": Network(toy.SwissRoll(), "vp", "mlp", {}, 3000),
    "mixture, 5-D": Network(mixture(5, 4), "cosine", "resmlp", {"width": 48}, 400),
    "breast cancer, 10-D": Network(rows("breast_cancer", 10), "edm", "mlp", {"width": 64}, 1000),
    "8 Gaussians, small": Network(toy.EightGaussians(), "subvp", "mlp", SMALL, 200),
    "grid": Network(toy.Grid25(), "ve", "mlp", {"width": 96}, 1000),
    "digits, 12-D": Network(components(12), "vp", "mlp", {"width": 96}, 1500),
    "digits, images": Network(images(), "rectified", "unet", UNET, 300),
}


def trained(network: Network, points: int) -> tuple[scoresde.ScoreSDE, Tensor]:
    """The trained model, and points to evaluate it at: fresh ones, or rows a little apart."""
    generator = torch.Generator().manual_seed(7)
    target = network.target
    image = network.backbone == "unet"
    if isinstance(target, Tensor):
        at = torch.randint(len(target), (30 if image else points,), generator=generator)
        x = target[at]
        x = x + 0.02 * target.std(0) * torch.randn(x.shape, generator=generator)
    else:
        x = target.sample(points, generator=generator).float()
    torch.manual_seed(0)
    sde = scoresde.build(network.process, network.backbone, shape=x.shape[1:], **network.options)
    scoresde.fit(
        sde,
        target,
        steps=network.steps,
        batch_size=64 if image else 512,
        validation=None,
        progress=False,
        generator=torch.Generator().manual_seed(0),
    )
    return sde.eval(), x


def ways(image: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The solvers with their tolerances and steps, and how a row of the table calls them."""
    if image:
        for tolerance in TOLERANCES[:3]:
            yield "adams", {"solver": "adams", "rtol": tolerance, "atol": tolerance}
        yield "rk45", {"solver": "rk45", "rtol": 1e-4, "atol": 1e-4}
        for solver in ("adams", "heun"):
            yield f"{solver}, 20 steps", {"solver": solver, "steps": 20}
        return
    for solver in ADAPTIVE:
        for tolerance in TOLERANCES:
            if solver != "bosh3" or tolerance > 5e-6:
                yield solver, {"solver": solver, "rtol": tolerance, "atol": tolerance}
    for solver, steps in GRIDS:
        yield f"{solver}, {steps} steps", {"solver": solver, "steps": steps}


def cells(name: str, network: Network, points: int) -> Iterator[dict[str, Any]]:
    """The results of one network."""
    sde, x = trained(network, points)
    image = network.backbone == "unet"
    common: dict[str, Any] = {"generator": torch.Generator().manual_seed(1)}
    if image:
        common |= {"trace": "hutchinson", "probes": 2}
    double = copy.deepcopy(sde).double()
    tight = 1e-8 if image else 1e-10
    exact = {"solver": "dop853", "rtol": tight, "atol": tight}
    truth = scoresde.log_prob(double, x.double(), **exact, **common)
    models = {"float64": double}
    if not image:
        models["float32"] = sde
    for dtype, model in models.items():
        for row, how in ways(image):
            common["generator"].manual_seed(1)
            began = time.process_time()
            found = scoresde.likelihood(model, x.to(model.state_dtype), **how, **common)
            error = (found.log_prob - truth).abs()
            yield {
                "network": name,
                "dtype": dtype,
                "row": row,
                "tolerance": how.get("rtol"),
                "share": float((error <= found.solver_error).double().mean()),
                "ratio": float((found.solver_error / error.clamp_min(1e-13)).median()),
                "error": float(error.median()),
                "seconds": time.process_time() - began,
            }


def show(found: list[dict[str, Any]]) -> None:
    """Print a table for each dtype."""
    for dtype in ("float64", "float32"):
        mine = [cell for cell in found if cell["dtype"] == dtype]
        print(f"\n{dtype}: least share of points · range of the median ratios\n")
        print("| solver |" + "".join(f" {t:.0e} |" for t in TOLERANCES) + " fixed |")
        print("| --- |" + " --- |" * (len(TOLERANCES) + 1))
        for row in dict.fromkeys(cell["row"] for cell in mine):
            texts = []
            for tolerance in (*TOLERANCES, None):
                here = [c for c in mine if c["row"] == row and c["tolerance"] == tolerance]
                text = "–"
                if here:
                    ratios = [cell["ratio"] for cell in here]
                    text = f"{min(cell['share'] for cell in here):.2f}"
                    text += f" · {min(ratios):.0f}–{max(ratios):.0f}"
                texts.append(text)
            print(f"| {row} | " + " | ".join(texts) + " |")


def main() -> None:
    """Run the command."""
    networks = {**SHOWN, **HELD}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(networks), choices=list(networks))
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--json", default="solver_errors.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    file = Path(args.json)
    found = []
    if file.exists():
        found = [json.loads(line) for line in file.read_text().splitlines()]
    for name in args.networks:
        if any(cell["network"] == name for cell in found):
            continue
        ours = list(cells(name, networks[name], args.points))
        with file.open("a") as out:
            out.writelines(json.dumps(cell) + "\n" for cell in ours)
        found += ours
    for title, names in (("Shown", SHOWN), ("Held back", HELD)):
        here = [c for c in found if c["network"] in names and c["network"] in args.networks]
        if here:
            print(f"\n### {title}: {', '.join(dict.fromkeys(c['network'] for c in here))}")
            show(here)


if __name__ == "__main__":
    main()
