"""Fashion-MNIST, 28×28 clothes in gray: the recipe "fashion-mnist", held-out bits/dim and a sheet
of 64 samples.

Takes a folder with the four IDX files (train-images-idx3-ubyte.gz, …). About 20 minutes on two
cores; interrupted, the same line goes on from the last checkpoint. `python
examples/fashion_mnist.py FOLDER --out fashion` is what these two commands do:

    scoresde fit --recipe fashion-mnist FOLDER --out fashion --resume
    scoresde evaluate fashion FOLDER --out fashion -n 200
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

import scoresde


def main(
    data: str,
    out: str = "fashion",
    n: int = 200,
    seed: int = 0,
    net: dict[str, Any] | None = None,
    **how: Any,
) -> scoresde.Evaluation:
    recipe = scoresde.recipes.RECIPES["fashion-mnist"]
    torch.manual_seed(seed)
    sde = recipe.build(**net or {})
    checkpoints = scoresde.Checkpoints(out, recipe.every, resume=True)
    history = recipe.fit(sde, scoresde.files.read(data).values, checkpoints=checkpoints, **how)
    print(history)
    found = scoresde.evaluate(
        sde, scoresde.files.read(data, split="test").values, n=n, seed=seed, out=out
    )
    print(found)
    print(f"samples: {out}/{found.sheet}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder of the IDX files")
    parser.add_argument("--out", default="fashion")
    parser.add_argument("-n", type=int, default=200, help="images whose bits/dim are evaluated")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
