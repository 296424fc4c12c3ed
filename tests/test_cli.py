"""The `scoresde` command, in this process: what it writes is what the API says, and a mistake
costs one line.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scoresde
from conftest import generator
from scoresde.cli.commands import main


def read(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(scoresde.files.read(path).values))


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    return (
        np.array([10.0, -3.0])
        + np.array([2.0, 0.1]) * np.random.default_rng(0).normal(size=(200, 2))
    ).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, table: np.ndarray) -> Path:
    """A model that the command trained from an .npy file."""
    folder = tmp_path_factory.mktemp("cli")
    np.save(folder / "data.npy", table)
    main(
        [
            "fit",
            str(folder / "data.npy"),
            "--out",
            str(folder / "model"),
            "--steps",
            "30",
            "--batch-size",
            "64",
            "--seed",
            "3",
            "--validation",
            "none",
        ]
    )
    return folder / "model"


def as_api(table: np.ndarray) -> scoresde.ScoreSDE:
    torch.manual_seed(3)
    sde = scoresde.build("vp", "mlp", shape=(2,))
    how = {"steps": 30, "batch_size": 64, "progress": False, "validation": None}
    scoresde.fit(sde, torch.from_numpy(table), **how)
    return sde


def test_fit_is_the_fit_of_the_api_with_that_seed(model: Path, table: np.ndarray) -> None:
    ours, theirs = as_api(table).state_dict(), scoresde.load(model).state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("header", ["", "height,weight\n", "# height, weight\n"])
def test_fit_reads_csv_with_and_without_a_header(
    header: str, table: np.ndarray, model: Path, tmp_path: Path
) -> None:
    rows = "\n".join(",".join(repr(float(v)) for v in row) for row in table)
    (tmp_path / "data.csv").write_text(header + rows + "\n\n")
    assert torch.equal(read(tmp_path / "data.csv"), torch.from_numpy(table))
    out = tmp_path / "model"
    main(
        [
            "fit",
            str(tmp_path / "data.csv"),
            "--out",
            str(out),
            "--steps",
            "30",
            "--batch-size",
            "64",
            "--validation",
            "none",
            "--seed",
            "3",
        ]
    )
    assert torch.equal(scoresde.load(out).net.out.weight, scoresde.load(model).net.out.weight)


def test_fit_takes_images_and_other_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(20, 1, 4, 4)))
    main(
        [
            "fit",
            str(tmp_path / "images.npy"),
            "--out",
            str(tmp_path / "m"),
            "--steps",
            "3",
            "--process",
            "rectified",
        ]
    )
    said = capsys.readouterr().out
    assert "20 samples of shape (1, 4, 4)" in said
    sde = scoresde.load(tmp_path / "m")
    assert (sde.shape, sde.process) == ((1, 4, 4), scoresde.RectifiedFlow())


@pytest.mark.parametrize("suffix", ["npy", "csv"])
@pytest.mark.parametrize("how", [["--solver", "em", "--steps", "10"], []])
def test_sample_writes_the_samples_of_the_api(
    suffix: str, how: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"x.{suffix}"
    main(["sample", str(model), "-n", "7", "--seed", "5", "--out", str(out), *how])
    options = {"solver": "em", "steps": 10} if how else {}
    wanted = scoresde.sample(scoresde.load(model), 7, generator=generator(5), **options)
    assert torch.equal(read(out), wanted)
    assert "7 samples" in capsys.readouterr().out
    if suffix == "npy":
        assert np.load(out).dtype == np.float32


@pytest.mark.parametrize("suffix", ["npy", "csv", None])
def test_log_prob_says_what_the_api_says(
    suffix: str | None,
    table: np.ndarray,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.save(tmp_path / "data.npy", table[:9])
    out = tmp_path / f"logp.{suffix}"
    main(
        [
            "log-prob",
            str(model),
            str(tmp_path / "data.npy"),
            *(["--out", str(out)] if suffix else []),
        ]
    )
    wanted = scoresde.log_prob(scoresde.load(model), torch.from_numpy(table[:9])).numpy()
    said = re.search(
        r"mean log p\(x\): (\S+) ± (\S+) nats over 9 samples", capsys.readouterr().out
    )
    assert said is not None
    assert float(said[1]) == pytest.approx(wanted.mean(), abs=1e-4)
    assert float(said[2]) == pytest.approx(wanted.std(ddof=1) / 3, abs=1e-4)
    if suffix:
        got = np.load(out) if suffix == "npy" else np.loadtxt(out, delimiter=",")
        np.testing.assert_array_equal(np.asarray(got, dtype=np.float32), wanted)
    assert out.exists() == (suffix is not None)


def test_log_prob_says_how_far_to_trust_it(
    table: np.ndarray, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "data.npy", table[:9])
    said = []
    for how in (
        ["--tolerance", "1e-3"],
        ["--tolerance", "1e-5"],
        ["--trace", "hutchinson_gaussian", "--tolerance", "1e-3"],
    ):
        main(["log-prob", str(model), str(tmp_path / "data.npy"), *how])
        found = re.search(
            r"solver (\S+), prior (\S+), trace (\S+); (\d+) evaluations each",
            capsys.readouterr().out,
        )
        assert found is not None
        said.append([float(number) for number in found.groups()])
    loose, tight, estimated = said
    assert loose[0] > tight[0]
    assert loose[3] < tight[3]
    assert tight[2] == 0 < estimated[2]


def test_one_sample_has_a_log_prob_too(table: np.ndarray, model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", table[:1])
    main(["log-prob", str(model), str(tmp_path / "one.npy")])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, table: np.ndarray) -> Path:
    """Files of every wrong kind."""
    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "good.npy", table)
    for name, y in {
        "codes": 10**10 * np.arange(20),
        "negative": -1 - np.arange(20),
        "fractions": np.arange(20) / 7,
    }.items():
        np.savez(folder / f"{name}.npz", x=table[:20], y=y)
    np.save(folder / "integers.npy", (10 * table).astype(np.int64))
    np.save(folder / "nan.npy", np.where(np.arange(400).reshape(200, 2) == 7, np.nan, table))
    np.save(folder / "flat.npy", table[:, 0])
    np.save(folder / "wide.npy", np.concatenate([table, table], 1))
    np.save(folder / "none.npy", table[:0])
    np.save(folder / "words.npy", np.array([["a", "b"]]))
    np.save(folder / "complex.npy", table + 1j)
    np.save(folder / "objects.npy", np.array([[{}, 1]], dtype=object), allow_pickle=True)
    np.savez(folder / "archive.npz", table)
    (folder / "archive.npz").rename(folder / "archive.npy")
    (folder / "empty.npy").write_bytes(b"")
    (folder / "cut.npy").write_bytes((folder / "good.npy").read_bytes()[:200])
    (folder / "text.npy").write_text("1,2\n3,4\n")
    (folder / "empty.csv").write_text("")
    (folder / "header.csv").write_text("x,y\n")
    (folder / "words.csv").write_text("x,y\n1,2\n3,four\n")
    (folder / "ragged.csv").write_text("1,2\n3\n")
    (folder / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    (folder / "table.txt").write_text("1 2\n3 4\n")
    (folder / "torch.pt").write_bytes(b"PK")
    (folder / "occupied").mkdir()
    (folder / "occupied" / "thesis.txt").write_text("years of work")
    (folder / "broken").mkdir()
    (folder / "broken" / "model.json").write_text('{"format": "scoresde-1"')
    return folder


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such data": (["fit", "{files}/god.npy", "--out", "{out}"], r"no file.*god\.npy"),
    "data that is a folder": (["fit", "{files}", "--out", "{out}"], "files"),
    "data of another kind": (
        ["fit", "{files}/table.txt", "--out", "{out}"],
        r"read from \*\.npy, \*\.npz, \*\.csv",
    ),
    "a pickle": (["fit", "{files}/torch.pt", "--out", "{out}"], r"read from \*\.npy, \*\.npz"),
    "integer data": (["fit", "{files}/integers.npy", "--out", "{out}"], "int64.*float"),
    "NaN data": (["fit", "{files}/nan.npy", "--out", "{out}"], "NaN.*rows: 3"),
    "one column of numbers": (
        ["fit", "{files}/flat.npy", "--out", "{out}"],
        r"\(200,\).*one sample per row",
    ),
    "no rows": (["fit", "{files}/none.npy", "--out", "{out}"], "no samples|no rows"),
    "words": (["fit", "{files}/words.npy", "--out", "{out}"], "words|str"),
    "complex numbers": (["fit", "{files}/complex.npy", "--out", "{out}"], "complex"),
    "pickled objects": (["fit", "{files}/objects.npy", "--out", "{out}"], "pickle|Object"),
    "an archive": (["fit", "{files}/archive.npy", "--out", "{out}"], r"archive\.npy"),
    "an empty .npy": (["fit", "{files}/empty.npy", "--out", "{out}"], r"empty\.npy|No data"),
    "a cut .npy": (["fit", "{files}/cut.npy", "--out", "{out}"], "."),
    "text called .npy": (["fit", "{files}/text.npy", "--out", "{out}"], "."),
    "an empty .csv": (["fit", "{files}/empty.csv", "--out", "{out}"], "no rows"),
    "a header without rows": (["fit", "{files}/header.csv", "--out", "{out}"], "no rows"),
    "a word in a .csv": (["fit", "{files}/words.csv", "--out", "{out}"], "four"),
    "a ragged .csv": (["fit", "{files}/ragged.csv", "--out", "{out}"], "columns"),
    "a binary .csv": (["fit", "{files}/binary.csv", "--out", "{out}"], "."),
    "unknown process": (
        ["fit", "{files}/good.npy", "--out", "{out}", "--process", "rectifed"],
        "Did you mean 'rectified'",
    ),
    "unknown network": (
        ["fit", "{files}/good.npy", "--out", "{out}", "--net", "mpl"],
        "Did you mean 'mlp'",
    ),
    "no steps": (
        ["fit", "{files}/good.npy", "--out", "{out}", "--steps", "0"],
        "steps is at least 1, got 0",
    ),
    "no batch": (
        ["fit", "{files}/good.npy", "--out", "{out}", "--batch-size", "-3"],
        "batch.size.*-3",
    ),
    "an occupied folder": (
        ["fit", "{files}/good.npy", "--out", "{files}/occupied"],
        "another folder",
    ),
    "a folder under a file": (
        ["fit", "{files}/good.npy", "--out", "{files}/good.npy/model"],
        "good.npy",
    ),
    "no such model": (["sample", "{files}/modle", "--out", "{out}.npy"], "no model.*modle"),
    "a broken model": (
        ["sample", "{files}/broken", "--out", "{out}.npy"],
        "model.json is not JSON",
    ),
    "a folder without a model": (["sample", "{files}/occupied", "--out", "{out}.npy"], "no model"),
    "an output of another kind": (["sample", "{model}", "--out", "{out}.txt"], r"\.npy.*\.csv"),
    "an output without a folder": (
        ["sample", "{model}", "--out", "{files}/nowhere/x.npy"],
        "folder|directory",
    ),
    "no samples": (
        ["sample", "{model}", "-n", "0", "--out", "{out}.npy"],
        "n is at least 1, got 0",
    ),
    "unknown solver": (
        ["sample", "{model}", "--solver", "rk54", "--out", "{out}.npy"],
        "unknown solver 'rk54'",
    ),
    "no solver steps": (
        ["sample", "{model}", "--solver", "em", "--steps", "0", "--out", "{out}.npy"],
        "steps.*0",
    ),
    "data of another shape": (
        ["log-prob", "{model}", "{files}/wide.npy"],
        r"\(200, 4\).*\(batch, 2\)",
    ),
    "no such data to score": (["log-prob", "{model}", "{files}/god.npy"], "god.npy"),
    "integers to score": (["log-prob", "{model}", "{files}/integers.npy"], "int64"),
    "a stochastic solver": (
        ["log-prob", "{model}", "{files}/good.npy", "--solver", "em"],
        "em.*try 'adams'",
    ),
    "a score of another kind": (
        ["log-prob", "{model}", "{files}/good.npy", "--out", "{out}.json"],
        r"\.npy.*\.csv",
    ),
    **{
        f"device {name!r}": (
            ["fit", "{files}/good.npy", "--out", "{out}", "--device", name],
            f"device {name!r} can't be used; there are: cpu",
        )
        for name in ("meta", "mps:9", "xla", "cpu:7", "privateuseone", "")
    },
    "a device to sample on": (
        ["sample", "{model}", "--device", "hpu", "--out", "{out}.npy"],
        "'hpu' can't be used; there are: cpu",
    ),
    "a device to score on": (
        ["log-prob", "{model}", "{files}/good.npy", "--device", "meta"],
        "'meta' can't be used",
    ),
    "a negative seed": (
        ["fit", "{files}/good.npy", "--out", "{out}", "--seed", "-1"],
        "seed is at least 0",
    ),
    "a seed too long": (
        ["sample", "{model}", "--out", "{out}.npy", "--seed", str(2**63)],
        r"seed is below 2\^63",
    ),
    "a network too large": (
        ["fit", "{files}/good.npy", "--out", "{out}", "--option", "width=100000000000000"],
        "memory",
    ),
    "brackets": (
        ["fit", "{files}/good.npy", "--out", "{out}", "--option", "width=" + "[" * 100_000],
        "nested too deep",
    ),
    "brackets in a condition": (
        ["sample", "{model}", "--out", "{out}.npy", "--given", "y=" + "[" * 100_000],
        "too deep",
    ),
    "an option that is another": (
        ["fit", "{files}/good.npy", "--out", "{out}", "--option", "net=unet"],
        "say --net",
    ),
    "a shape": (
        ["fit", "{files}/good.npy", "--out", "{out}", "--option", "shape=3"],
        "shape is no option.*data's",
    ),
    "no recipe": (
        ["fit", "{files}/good.npy", "--out", "{out}", "--recipe", ""],
        "unknown recipe ''",
    ),
    "labels that are codes": (
        ["fit", "{files}/codes.npz", "--out", "{out}", "--condition", "y"],
        r"labels y run from 0 to 190000000000 in 20 samples",
    ),
    "negative labels": (
        ["fit", "{files}/negative.npz", "--out", "{out}", "--condition", "y"],
        "labels y run from -20 to -1",
    ),
    "labels with fractions": (
        ["fit", "{files}/fractions.npz", "--out", "{out}", "--condition", "y"],
        "labels y are integers",
    ),
    **{
        f"a condition {value}": (
            ["sample", "{model}", "--out", "{out}.npy", "--given", f"y={value}"],
            "a condition is NAME=NUMBER",
        )
        for value in ("null", "{{}}", '"a"', "")
    },
    "guidance without a condition": (
        ["sample", "{model}", "--out", "{out}.npy", "--guidance", "2"],
        "--guidance strengthens a condition: name it by --given",
    ),
    "a condition twice": (
        ["log-prob", "{model}", "{files}/good.npy", "--given", "y=1", "--condition", "y"],
        "'y' comes by both --condition and --given",
    ),
    "features of a near name": (
        ["evaluate", "{model}", "{files}/good.npy", "--out", "{out}", "--features", "pixel"],
        "unknown features 'pixel'. Did you mean 'pixels'",
    ),
    "a folder without a name": (
        ["evaluate", "{model}", "{files}/good.npy", "--out", ""],
        "out is the path of a folder",
    ),
    "unknown density": (
        ["demo", "--density", "moon", "--out", "{out}.png"],
        "Did you mean 'moons'",
    ),
    "unknown process of the demo": (
        ["demo", "--steps", "1000", "--process", "vpe", "--out", "{out}.png"],
        "unknown process 'vpe'",
    ),
    "unknown solver of the demo": (
        ["demo", "--steps", "1000", "--solver", "rk5", "--out", "{out}.png"],
        "unknown solver 'rk5'",
    ),
    "a figure of another kind": (["demo", "--out", "{out}.xyz"], r"\.png"),
    "no steps of the demo": (
        ["demo", "--steps", "0", "--out", "{out}.png"],
        "steps is at least 1",
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_ends_with_status_2_and_one_line_at_once(
    mistake: str, files: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within a second, and with nothing written, not even an empty folder."""
    arguments, said = MISTAKES[mistake]
    places: dict[str, Any] = {"files": files, "model": model, "out": tmp_path / "out"}
    before = sorted(files.rglob("*"))
    began = time.perf_counter()
    with pytest.raises(SystemExit) as caught:
        main([argument.format(**places) for argument in arguments])
    assert time.perf_counter() - began < 20
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith(f"scoresde {arguments[0]}: ")
    assert list(tmp_path.iterdir()) == []
    assert sorted(files.rglob("*")) == before


def test_a_condition_that_a_model_never_was_without_is_asked_for_by_its_option(
    tmp_path: Path, table: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "d.npz", x=table[:20], y=np.arange(20) % 3)
    small = [
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--option",
        "width=8",
        "--option",
        "depth=1",
        "--option",
        "condition_dropout=0",
    ]
    main(
        ["fit", str(tmp_path / "d.npz"), "--out", str(tmp_path / "m"), "--condition", "y", *small]
    )
    for verb, more in (("sample", []), ("evaluate", [str(tmp_path / "d.npz")])):
        with pytest.raises(SystemExit):
            main([verb, str(tmp_path / "m"), *more, "--out", str(tmp_path / "x.npy")])
        assert "always with y: give it by --given y=…" in capsys.readouterr().err
        assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize(
    ("every", "said"),
    [
        ("2", "interrupted; the last checkpoint is of step 2: go on with --resume"),
        ("9", "interrupted"),
    ],
)
def test_an_interrupted_fit_says_how_to_go_on(
    every: str,
    said: str,
    table: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Interrupted at its third loss, as by Ctrl-C."""
    np.save(tmp_path / "data.npy", table)
    module, calls = importlib.import_module("scoresde.training.trainer"), []
    original = module.Trainer.steps_to_go

    def interrupted(*args: Any) -> Any:
        for step in original(*args):
            if step == 3:
                raise KeyboardInterrupt
            calls.append(step)
            yield step

    monkeypatch.setattr(module.Trainer, "steps_to_go", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "fit",
                str(tmp_path / "data.npy"),
                "--out",
                str(tmp_path / "m"),
                "--steps",
                "20",
                "--batch-size",
                "8",
                "--every",
                every,
            ]
        )
    assert caught.value.code == 130
    assert capsys.readouterr().err == f"scoresde fit: {said}\n"


def test_a_model_that_does_not_fit_its_json_is_one_line_too(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch lists what does not fit on many lines."""
    folder = scoresde.save(scoresde.load(model), tmp_path / "model")
    (folder / "model.json").write_text(
        (folder / "model.json").read_text().replace('"shape": [', '"shape": [3, ')
    )
    with pytest.raises(SystemExit) as caught:
        main(["sample", str(folder), "--out", str(tmp_path / "x.npy")])
    error = capsys.readouterr().err
    assert (caught.value.code, len(error.strip().splitlines())) == (2, 1), error


@pytest.mark.parametrize(
    "arguments",
    [[], ["smaple"], ["sample"], ["fit", "x.npy"], ["sample", "m", "-n", "ten", "--out", "x.npy"]],
)
def test_what_argparse_refuses_ends_with_status_2_and_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: scoresde")
    assert "error: " in error


def test_help_works_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `python -m scoresde --help` does."""
    monkeypatch.setattr(sys, "argv", ["scoresde", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("scoresde", run_name="__main__")
    assert caught.value.code == 0
    said = capsys.readouterr()
    for verb in ("demo", "fit", "sample", "log-prob"):
        assert verb in said.out
    assert said.err == ""


def test_demo_draws_four_panels_and_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fewer points than the real one; each quarter of the figure holds a picture."""
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    module = importlib.import_module("scoresde.cli.demo")
    numbers: dict[str, float] = {}
    original = module.demo

    def smaller(*args: Any, **kwargs: Any) -> dict[str, float]:
        numbers.update(functools.partial(original, points=150)(*args, **kwargs))
        return numbers

    monkeypatch.setattr(module, "demo", smaller)
    monkeypatch.setattr(module, "LATTICE", 32)
    out = tmp_path / "demo.png"
    main(
        [
            "demo",
            "--steps",
            "30",
            "--density",
            "moons",
            "--process",
            "rectified",
            "--solver",
            "heun",
            "--out",
            str(out),
        ]
    )
    picture = imread(out)[..., :3]
    assert picture.shape[1] > 1000
    for panel in np.array_split(picture, 4, axis=1):
        height, width = panel.shape[:2]
        # no frame, no title
        inner = slice(int(0.35 * height), int(0.75 * height))
        middle = panel[inner, int(0.3 * width) : int(0.7 * width)]
        assert middle.std() > 0.02
        assert len(np.unique(middle.reshape(-1, 3), axis=0)) > 3
    said = capsys.readouterr().out
    assert re.search(r"moons · RectifiedFlow\(\) · heun", said)
    for label in ("model NLL", "true entropy", "gap", "fit", "sample", "log_prob", "figure"):
        assert re.search(rf"^  {label}", said, re.MULTILINE), label
    assert f"{scoresde.toy.Moons().entropy():.4f} nats" in said
    assert f"{numbers['gap']:.4f} nats" in said
    # The gap is the mean of log p − log p_model over 500 points: NLL − entropy up to the noise of
    # log p, 4 standard errors.
    assert numbers["gap"] == pytest.approx(
        numbers["nll"] - scoresde.toy.Moons().entropy(), abs=4 * 1.0 / 500**0.5
    )
    assert numbers["gap"] > -4 * numbers["gap_error"]
    assert numbers["nfe_sample"] == 200


def test_an_interrupted_fit_goes_on_and_ends_where_an_uninterrupted_one_does(
    table: np.ndarray, model: Path, tmp_path: Path
) -> None:
    """The newest checkpoint is removed, as if the run had been killed before it."""
    np.save(tmp_path / "data.npy", table)
    out = tmp_path / "run"
    command = [
        "fit",
        str(tmp_path / "data.npy"),
        "--out",
        str(out),
        "--steps",
        "30",
        "--batch-size",
        "64",
        "--validation",
        "none",
        "--seed",
        "3",
    ]
    main([*command, "--every", "20"])
    for path in out.glob("step-00000030*"):
        path.unlink()
    (out / "model.json").unlink()
    assert sorted(path.name for path in out.glob("*.json")) == ["step-00000020.json"]
    main([*command, "--every", "20", "--resume"])
    for key, value in scoresde.load(model).state_dict().items():
        assert torch.equal(scoresde.load(out).state_dict()[key], value), key


def test_a_run_is_not_overwritten_unasked(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                str(model.parent / "data.npy"),
                "--out",
                str(model),
                "--steps",
                "30",
                "--batch-size",
                "64",
            ]
        )
    assert re.search(r"holds a run at step 30.*resume", capsys.readouterr().err)


def test_a_log_has_the_losses_and_samples_and_goes_on_with_the_run(
    table: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "data.npy", table)
    data = str(tmp_path / "data.npy")
    log = tmp_path / "logs" / "run.jsonl"
    how = ["--steps", "20", "--option", "width=16", "--validation", "none"]
    how += ["--log", str(log), "--log-samples", "10"]
    main(["fit", data, "--out", str(tmp_path / "model"), *how])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    drawn = {line["step"]: line["samples"] for line in lines if "samples" in line}
    assert list(drawn) == [10, 20]
    assert [line["step"] for line in lines if "loss" in line] == list(range(2, 21, 2))
    sde = scoresde.load(tmp_path / "model")
    assert torch.equal(torch.tensor(drawn[20]), scoresde.sample(sde, 16, generator=generator()))
    main(["fit", data, "--out", str(tmp_path / "model"), "--resume", *how])
    assert [json.loads(line) for line in log.read_text().splitlines()] == lines
    with pytest.raises(SystemExit):
        main(["fit", data, "--out", str(tmp_path / "other"), *how])
    assert "run.jsonl holds the log of a run: " in (said := capsys.readouterr().err)
    assert said.endswith("or go on with the run by --resume\n")


def test_columns_are_conditions_and_options_are_the_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "\n".join(f"{i % 7},{i % 5},{'ab'[i % 2]}" for i in range(60))
    (tmp_path / "t.csv").write_text("u,v,kind\n" + rows)
    how = [
        "--condition",
        "y=kind",
        "--option",
        "width=8",
        "--option",
        "depth=1",
        "--validation",
        str(tmp_path / "t.csv"),
    ]
    main(
        [
            "fit",
            str(tmp_path / "t.csv"),
            "--out",
            str(tmp_path / "m"),
            "--steps",
            "5",
            "--batch-size",
            "8",
            *how,
        ]
    )
    assert "validation=" in capsys.readouterr().out
    sde = scoresde.load(tmp_path / "m")
    assert (sde.shape, sde.net.classes, sde.net.out.in_features, len(sde.net.hidden)) == (
        (2,),
        2,
        8,
        1,
    )
    main(
        [
            "sample",
            str(tmp_path / "m"),
            "-n",
            "3",
            "--given",
            "y=1",
            "--out",
            str(tmp_path / "x.npz"),
        ]
    )
    wanted = scoresde.sample(sde.given(y=1), 3, generator=generator(0))
    assert torch.equal(read(tmp_path / "x.npz"), wanted)
    guided = ["-n", "3", "--given", "y=b", "--guidance", "2", "--out", str(tmp_path / "g.npy")]
    main(["sample", str(tmp_path / "m"), *guided])
    wanted = scoresde.sample(
        scoresde.classifier_free(sde.given(y=1), 2), 3, generator=generator(0)
    )
    assert torch.equal(read(tmp_path / "g.npy"), wanted)
    assert not torch.equal(wanted, read(tmp_path / "x.npz"))


def test_bytes_are_dequantized_and_scored_in_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 3, 3)).astype(np.uint8)
    np.save(tmp_path / "i.npy", images)
    how = [
        "--transform",
        "flip",
        "--option",
        "width=8",
        "--option",
        "depth=1",
        "--option",
        "fourier=0",
    ]
    main(
        [
            "fit",
            str(tmp_path / "i.npy"),
            "--out",
            str(tmp_path / "m"),
            "--steps",
            "5",
            "--batch-size",
            "8",
            *how,
        ]
    )
    sde = scoresde.load(tmp_path / "m")
    assert 0.4 < float(sde.mean) < 0.6  # on the unit scale
    capsys.readouterr()
    main(["log-prob", str(tmp_path / "m"), str(tmp_path / "i.npy"), "-n", "20"])
    said = re.search(
        r"mean bits per dimension: (\S+) ± (\S+) bits/dim over 20 samples", capsys.readouterr().out
    )
    assert said is not None
    wanted = scoresde.bits_per_dim(
        sde,
        torch.from_numpy(images[:20]),
        scoresde.dequantize.Uniform(256),
        generator=generator(0),
    )
    assert float(said[1]) == pytest.approx(wanted.mean, abs=1e-4)
    assert abs(wanted.mean - 8) < 1.5  # uniform noise


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (["--option", "width"], "NAME=VALUE"),
        (["--option", "widht=8"], "widht.*width"),
        (["--transform", "flop"], "flop.*flip"),
        (["--transform", "flip"], "flip"),
        (["--condition", "y=label"], "no .label."),
        (["--patience", "3"], "validation"),
        (["--every", "0"], "every"),
        (["--validation", "nowhere.npy"], "nowhere"),
        (["--log", "run.csv"], "ends in .jsonl or a folder for TensorBoard, got run.csv"),
        (["--log-samples", "2"], "--log-samples goes with --log"),
        (["--log", "run.jsonl", "--log-samples", "0"], "log-samples is at least 1"),
    ],
)
def test_a_bad_option_of_fit_ends_in_one_line(
    how: list[str],
    message: str,
    table: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.save(tmp_path / "data.npy", table)
    with pytest.raises(SystemExit) as caught:
        main(
            ["fit", str(tmp_path / "data.npy"), "--out", str(tmp_path / "m"), "--steps", "3", *how]
        )
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert re.search(message, said), said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_several_processes_train_and_sample_as_one(table: np.ndarray, tmp_path: Path) -> None:
    """Two processes write one run; what they draw together from it is what one process draws, to
    1e-5.
    """
    np.save(tmp_path / "data.npy", table)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "scoresde",
    ]

    def run(*command: str) -> None:
        subprocess.run(
            [*launch, *command], cwd=tmp_path, check=True, capture_output=True, timeout=120
        )

    run("fit", "data.npy", "--out", "run", "--steps", "60", "--batch-size", "64", "--every", "20")
    assert sorted(path.name for path in (tmp_path / "run").glob("*.json")) == [
        "model.json",
        "step-00000040.json",
        "step-00000060.json",
    ]
    run("sample", "run", "-n", "101", "--seed", "5", "--out", "x.npy")
    wanted = scoresde.sample(scoresde.load(tmp_path / "run"), 101, generator=generator(5))
    torch.testing.assert_close(read(tmp_path / "x.npy"), wanted, rtol=1e-5, atol=1e-5)
