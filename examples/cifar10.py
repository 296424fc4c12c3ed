"""CIFAR-10, 32×32 photographs: the recipe "cifar10", bits/dim of 1,000 test images and a sheet of
64 samples.

Takes a folder with the binary version (data_batch_1.bin, …, test_batch.bin). Meant for one GPU and
30 minutes, `--recipe cifar10-5min` for 5; not measured yet. Interrupted, the same line goes on
from the last checkpoint. It is what these do:

    scoresde fit --recipe cifar10 FOLDER --out cifar10 --resume
    scoresde evaluate cifar10 FOLDER --out cifar10
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

import scoresde


def main(
    data: str,
    out: str = "cifar10",
    recipe: str = "cifar10",
    n: int = 1000,
    seed: int = 0,
    net: dict[str, Any] | None = None,
    **how: Any,
) -> scoresde.Evaluation:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rule = scoresde.recipes.recipe(recipe)
    torch.manual_seed(seed)
    sde = rule.build(**net or {}).to(device)
    checkpoints = scoresde.Checkpoints(out, rule.every, resume=True)
    history = rule.fit(sde, scoresde.files.read(data).values, checkpoints=checkpoints, **how)
    print(history)
    found = scoresde.evaluate(
        sde, scoresde.files.read(data, split="test").values, n=n, seed=seed, out=out
    )
    print(found)
    print(f"samples: {out}/{found.sheet}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder of the binary files")
    parser.add_argument("--out", default="cifar10")
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("-n", type=int, default=1000, help="images whose bits/dim are evaluated")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
