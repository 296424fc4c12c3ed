"""Recipes: every one runs from real files of the right format, saves, resumes, and gives way to
what the user says.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import scoresde
from conftest import some
from scoresde.cli.commands import main
from scoresde.training.recipes import PLAIN, RECIPES, Recipe

RNG = np.random.default_rng(7)
SMALL = {
    "unet": ["channels=8", "multipliers=[1,1]", "blocks=1"],
    "mlp": ["width=8", "depth=1", "fourier=0"],
}
"""Networks of some thousand numbers: a step of the recipes' own takes seconds on one core."""


def mnist(folder: Path, train: int = 40, test: int = 20) -> Path:
    for stem, n in (("train", train), ("t10k", test)):
        images, labels = (
            RNG.integers(0, 256, (n, 28, 28), np.uint8),
            RNG.integers(0, 10, n, np.uint8),
        )
        head = struct.pack(">BBBBiii", 0, 0, 8, 3, n, 28, 28)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(
            struct.pack(">BBBBi", 0, 0, 8, 1, n) + labels.tobytes()
        )
    return folder


def cifar(folder: Path, train: int = 8, test: int = 20) -> Path:
    for name, n in (*((f"data_batch_{i}", train) for i in range(1, 6)), ("test_batch", test)):
        records = RNG.integers(0, 256, (n, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


FILES = {(1, 28, 28): mnist, (3, 32, 32): cifar}
PIXELS = {name: each for name, each in RECIPES.items() if type(each) is Recipe}
"""Those of `test_latent_recipes.py` left out."""


def options(recipe: Recipe) -> list[str]:
    return [word for option in SMALL[recipe.net] for word in ("--option", option)]


def run(*arguments: Any) -> None:
    main([str(each) for each in arguments])


@pytest.mark.parametrize("name", some(PIXELS, "cifar10", "mnist"))
def test_every_recipe_runs_saves_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    """20 steps at batch 2, and the last 8 of them again as if the run had been killed before.

    On random bytes in files, with a small network of the recipe's kind.
    """
    recipe = RECIPES[name]
    folder = tmp_path / "data"
    folder.mkdir()
    FILES[recipe.shape](folder)
    out = tmp_path / "run"
    command = [
        "fit",
        "--recipe",
        name,
        folder,
        "--steps",
        20,
        "--batch-size",
        2,
        "--every",
        12,
        "--device",
        "cpu",
    ]
    command += ["--out", out, *options(recipe)]
    run(*command)
    one = scoresde.load(out)
    for path in (*out.glob("step-00000020*"), out / "model.json"):
        path.unlink()
    assert [path.name for path in out.glob("*.json")] == ["step-00000012.json"]
    run(*command, "--resume")
    other = scoresde.load(out)
    assert one.shape == recipe.shape
    assert scoresde.BACKBONES.name_of(one.net) == recipe.net
    assert scoresde.PROCESSES.name_of(one.process) == recipe.process
    for key, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    assert 0.45 < float(one.mean.mean()) < 0.55  # the unit scale


@pytest.mark.parametrize("name", list(PIXELS))
def test_the_recipes_own_network_fits_its_data_and_can_be_described(name: str) -> None:
    """On the meta device, at no cost: its options are the network's, and JSON has them."""
    recipe = RECIPES[name]
    with torch.device("meta"):
        net = scoresde.BACKBONES.build(recipe.net, recipe.shape, **recipe.options)
        assert net(torch.zeros(2, *recipe.shape), torch.zeros(2)).shape == (2, *recipe.shape)
    assert json.dumps(scoresde.BACKBONES.options_of(net))
    assert recipe.sentence.endswith(".")
    assert re.search(r"minutes$", recipe.budget)
    assert set(recipe.how) >= {"steps", "batch_size", "lr", "transforms"}


def test_what_the_user_says_goes_before_what_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the arguments that `fit` is given."""
    seen: list[dict[str, Any]] = []

    def fit(sde: scoresde.ScoreSDE, data: Any, **how: Any) -> str:
        seen.append({**how, "sde": sde})
        return "history"

    monkeypatch.setattr("scoresde.recipes.fit", fit)
    recipe, folder = RECIPES["fashion-mnist"], mnist(tmp_path)
    command = ["fit", folder, "--out", tmp_path / "run", "--device", "cpu"]
    run(*command, "--recipe", "fashion-mnist", *options(recipe))
    for name in ("steps", "batch_size", "lr"):
        assert seen[-1][name] == recipe.how[name]
    assert seen[-1]["transforms"] == ["flip", "dequantize"]
    assert seen[-1]["checkpoints"].every == PLAIN.every
    said = [
        "--steps",
        7,
        "--lr",
        1e-4,
        "--every",
        3,
        "--transform",
        "dequantize",
        "--process",
        "rectified",
    ]
    run(
        *command,
        "--recipe",
        "fashion-mnist",
        *said,
        "--net",
        "mlp",
        "--option",
        "width=8",
        "--option",
        "depth=1",
    )
    chosen = [seen[-1][name] for name in ("steps", "batch_size", "lr")]
    assert chosen == [7, recipe.how["batch_size"], 1e-4]
    assert seen[-1]["checkpoints"].every == 3
    assert seen[-1]["transforms"] == ["dequantize"]
    assert seen[-1]["sde"].process == scoresde.RectifiedFlow()
    assert isinstance(seen[-1]["sde"].net, scoresde.MLP)  # which does not know the unet's options
    run(*command, "--option", "width=8", "--option", "depth=1")
    assert {name: seen[-1][name] for name in PLAIN.how} == {
        **PLAIN.how,
        "transforms": ["dequantize"],
    }
    run(*command, "--recipe", "mnist", "--condition", "y", *options(recipe))
    assert (
        scoresde.BACKBONES.options_of(seen[-1]["sde"].net)["classes"]
        == int(seen[-1]["given"]["y"].max()) + 1
    )


def test_from_python_it_is_the_command(tmp_path: Path) -> None:
    recipe, folder = RECIPES["mnist"], mnist(tmp_path)
    command = ["fit", folder, "--recipe", "mnist", "--out", tmp_path / "run", "--device", "cpu"]
    run(*command, "--steps", 3, "--batch-size", 4, "--seed", 5, *options(recipe))
    torch.manual_seed(5)
    pairs = (option.split("=") for option in SMALL[recipe.net])
    sde = recipe.build(**{name: json.loads(value) for name, value in pairs})
    recipe.fit(sde, scoresde.files.read(folder).values, steps=3, batch_size=4, progress=False)
    for key, value in scoresde.load(tmp_path / "run").state_dict().items():
        assert torch.equal(sde.state_dict()[key], value), key


def test_on_a_gpu_it_compiles_and_computes_in_bfloat16_unless_told_otherwise() -> None:
    """What `fit` would be given there; there is no GPU here."""
    pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState

    recipe = RECIPES["cifar10"]
    assert "backend" not in recipe.keywords("cpu")
    AcceleratorState._reset_state()  # what other tests have left
    GradientState._reset_state()
    how = recipe.keywords("cuda", backend=None, steps=3)
    assert (how["backend"].compile, how["steps"]) == (True, 3)
    assert how["backend"].accelerator.mixed_precision == "bf16"
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    mine = SimpleNamespace(distributed_type="NO", backward=print)
    how = recipe.keywords("cuda", backend=scoresde.Backend(mine, compile=False))
    assert (how["backend"].compile, how["backend"].accelerator) == (False, mine)
    how = recipe.keywords("cuda", backend=mine)
    assert (how["backend"].compile, how["backend"].accelerator) == (True, mine)
    with pytest.warns(DeprecationWarning, match="backend=Backend"):
        old = recipe.keywords("cuda", accelerator=mine)
    assert old == how
    assert "backend" not in RECIPES["mnist"].keywords("cuda")
    assert "backend" not in recipe.keywords("mps")


def test_another_gpu_is_the_one_that_accelerate_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its devices have no number: it takes CUDA's current one. And one of another precision is
    named.
    """
    accelerate = pytest.importorskip("accelerate")
    said: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", said.append)
    monkeypatch.setattr(
        accelerate, "Accelerator", lambda mixed_precision: said.append(mixed_precision)
    )
    RECIPES["cifar10"].keywords("cuda:1")
    assert said == [torch.device("cuda:1"), "bf16"]

    def refuse(**_: Any) -> None:
        raise ValueError("AcceleratorState has already been initialized and cannot be changed")

    monkeypatch.setattr(accelerate, "Accelerator", refuse)
    with pytest.raises(ValueError, match="an Accelerator of another precision"):
        RECIPES["cifar10"].keywords("cuda")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("fashion_mnist", "unknown recipe 'fashion_mnist'. Did you mean 'fashion-mnist'"),
        (
            "cifar10",
            r"samples of shape \(3, 32, 32\), got \(1, 28, 28\). Those go with: mnist, fashion-",
        ),
    ],
)
def test_a_recipe_for_other_data_is_refused_at_once(
    recipe: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("fit", mnist(tmp_path), "--recipe", recipe, "--out", tmp_path / "run")
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert re.search(said, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_from_python_too_the_users_options_go_first() -> None:
    recipe = RECIPES["cifar10"]
    sde = recipe.build(channels=8, blocks=1)
    wanted = {**recipe.options, "channels": 8, "blocks": 1}
    assert {
        name: value
        for name, value in scoresde.BACKBONES.options_of(sde.net).items()
        if name in wanted
    } == wanted
    assert recipe.keywords() == recipe.how
    assert recipe.keywords(steps=3, ema=5) == {**recipe.how, "steps": 3, "ema": 5}
    how = recipe.keywords(checkpoints="run", validation=torch.zeros(2))
    assert (how["checkpoints"].every, how["validation"].every) == (2000, 2000)
    with pytest.raises(ValueError, match="unknown process ''"):
        recipe.build(process="")


def test_floats_and_unknown_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"integers 0 … 255, which it dequantizes, got float32"):
        RECIPES["mnist"].check(torch.zeros(2, 1, 28, 28))
    with pytest.raises(ValueError, match=r"got \(5,\). Without a recipe"):
        RECIPES["mnist"].fit(
            RECIPES["mnist"].build(net="mlp", width=8), np.zeros((2, 5), np.uint8)
        )


def test_an_unknown_device_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(
            "fit",
            mnist(tmp_path),
            "--out",
            tmp_path / "run",
            "--device",
            "gpu",
            "--option",
            "width=8",
        )
    assert "device 'gpu' can't be used; there are: cpu" in capsys.readouterr().err
