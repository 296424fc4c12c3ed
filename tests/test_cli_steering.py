"""`scoresde impute` and `scoresde inpaint`: known values stay, draws follow the closed form."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import scoresde
from scoresde.cli.commands import main
from scoresde.data.files.mixed import read_columns


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained models of measured data, which are Gaussians: of two columns, and of images."""
    path = tmp_path_factory.mktemp("steering")
    g = torch.Generator().manual_seed(0)
    a = torch.randn(5000, 1, generator=g)
    rows = torch.cat([10 + a, 3 * a + 0.3 * torch.randn(5000, 1, generator=g)], 1)
    table = scoresde.build("vp", "mlp", shape=(2,), width=8).standardize(rows)
    table.schema.columns = ("a", "b")
    scoresde.save(table, path / "table")
    images = scoresde.build("vp", "mlp", shape=(1, 4, 4), width=8)
    images.standardize(torch.rand(1000, 1, 4, 4, generator=g))
    scoresde.save(images, path / "images")
    pillow = pytest.importorskip("PIL.Image")
    picture = np.arange(0, 160, 10, dtype=np.uint8).reshape(4, 4)
    pillow.fromarray(picture).save(path / "image.png")
    mask = np.zeros((4, 4), np.uint8)
    mask[:2] = 255
    pillow.fromarray(mask).save(path / "mask.png")
    pillow.fromarray(np.zeros((3, 4), np.uint8)).save(path / "small.png")
    np.save(path / "white.npy", np.ones((1, 4, 4), bool))
    np.save(path / "numbers.npy", np.linspace(0, 3, 16).reshape(1, 4, 4))
    return path


@pytest.mark.filterwarnings("ignore:.* populations have an effective size")
def test_gaps_of_a_table_are_filled_in_its_units(folder: Path, tmp_path: Path) -> None:
    """E[b | a = 11] = 3 and std 0.3: the mean of 64 lies within 5 standard errors (1e-6)."""
    rows = "b,name,a\n" + ",x,11\n" * 64 + "123456789.123,y,10\n"
    (tmp_path / "gaps.csv").write_text(rows)
    out = tmp_path / "filled.csv"
    model, gaps = str(folder / "table"), str(tmp_path / "gaps.csv")
    main(["impute", model, gaps, "--out", str(out), "--steps", "30", "--particles", "4"])
    filled = read_columns(out)
    assert list(filled) == ["b", "name", "a"]  # a column that the model lacks stays as it is
    assert filled["name"].tolist() == ["x"] * 64 + ["y"]
    assert filled["a"].tolist() == [11.0] * 64 + [10.0]
    assert filled["b"][-1] == 123456789.123
    drawn = filled["b"][:64]
    assert abs(drawn.mean() - 3) < 5 * 0.3 / 8 + 0.05
    assert 0.1 < drawn.std() < 0.6


@pytest.mark.filterwarnings("ignore:.* populations have an effective size")
def test_an_image_keeps_what_is_known_of_it(folder: Path, tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    known = [str(folder / "image.png"), "--mask", str(folder / "mask.png")]
    short = ["-n", "3", "--steps", "10", "--particles", "2"]
    main(["inpaint", str(folder / "images"), *known, *short, "--out", str(tmp_path / "o.png")])
    drawn = np.asarray(pillow.open(tmp_path / "o.png"))
    assert drawn.shape == (4, 12)
    image = np.asarray(pillow.open(folder / "image.png"))
    for k in range(3):
        assert (drawn[:2, 4 * k : 4 * k + 4] == image[:2]).all()
    assert not (drawn[2:, :4] == drawn[2:, 4:8]).all()
    main(["inpaint", str(folder / "images"), *known, *short, "--out", str(tmp_path / "o.npy")])
    array = np.load(tmp_path / "o.npy")
    assert array.shape == (3, 1, 4, 4)
    assert np.allclose(array[:, 0, :2], (image[:2] + 0.5) / 256)


MISTAKES = {
    "a table that is not there": ("impute {m}/table {m}/no.csv --out {o}.csv", "no file"),
    "a table of other columns": ("impute {m}/table {o}.csv --out {o}2.csv", "columns"),
    "a model of images": ("impute {m}/images {o}.csv --out {o}2.csv", "columns"),
    "another kind of table": ("impute {m}/table {o}.csv --out {o}.npy", "tables are written"),
    "another kind of picture": (
        "inpaint {m}/images {m}/image.png --mask {m}/mask.png --out {o}.xyz",
        "written are",
    ),
    "a mask of another size": (
        "inpaint {m}/images {m}/image.png --mask {m}/small.png --out {o}.png",
        r"\(1, 3, 4\)",
    ),
    "an image of another size": (
        "inpaint {m}/images {m}/small.png --mask {m}/mask.png --out {o}.png",
        r"\(1, 3, 4\)",
    ),
    "a folder that is not there": (
        "impute {m}/table {o}.csv --out {m}/no/f.csv",
        "no such folder",
    ),
    "a mask of all": (
        "inpaint {m}/images {m}/image.png --mask {m}/white.npy --out {o}.png",
        "hides nothing",
    ),
    "a mask of numbers": (
        "inpaint {m}/images {m}/image.png --mask {m}/numbers.npy --out {o}.png",
        "is no mask",
    ),
    "no mask": (
        "inpaint {m}/images {m}/image.png --mask {m}/no.png --out {o}.png",
        "not an image",
    ),
    "a model of vectors": (
        "inpaint {m}/table {m}/image.png --mask {m}/mask.png --out {o}.png",
        "samples have",
    ),
    "no particles": (
        "inpaint {m}/images {m}/image.png --mask {m}/mask.png --out {o}.png --particles 0",
        "particles is at least 1",
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_is_one_line(
    mistake: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "o.csv").write_text("a,c\n1,2\n")
    line, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as caught:
        main(line.format(m=folder, o=tmp_path / "o").split())
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(message, said), said
