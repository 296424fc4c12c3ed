"""Reading samples: what numpy, pyarrow, Pillow and struct wrote comes back byte for byte;
strangers' files do no harm.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoresde.cli.inputs import held_out_split
from scoresde.data import files
from scoresde.data.files import columns, formats, read, write
from scoresde.data.files.base import Request, from_columns
from scoresde.data.files.tables import text_lines

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(50, 3)).astype(np.float32)
LABELS = RNG.integers(0, 5, 50)
DTYPES = ["u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", ">i4", ">f8", "?"]


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal in every byte, and in this machine's byte order."""
    assert found.dtype == wanted.dtype.newbyteorder("=")
    assert found.dtype.isnative
    assert found.shape == wanted.shape
    assert found.tobytes() == wanted.astype(found.dtype).tobytes()


def array(dtype: str, shape: tuple[int, ...] = (7, 2, 3)) -> np.ndarray:
    return (RNG.normal(size=shape) * 50).astype(dtype)


# Arrays.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_comes_back_mapped(dtype: str, order: str, tmp_path: Path) -> None:
    values = np.asarray(array(dtype), order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", values)
    found = read(tmp_path / "a.npy")
    same(found.values, values)
    assert isinstance(found.values, np.memmap) == values.dtype.isnative
    assert (len(found), found.given, found.names) == (7, {}, {})


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_versions_of_npy(version: tuple[int, int], tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, TABLE, version=version)
    same(read(tmp_path / "a.npy").values, TABLE)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", DTYPES)
def test_npz_comes_back_with_conditions(
    save: Callable[..., None], dtype: str, tmp_path: Path
) -> None:
    values = array(dtype, (50, 2, 3))
    words = np.array(["dog", "cat"])[LABELS % 2]
    save(
        tmp_path / "a.npz",
        x=values,
        label=LABELS.astype(np.uint8),
        angle=TABLE.astype(float),
        kind=words,
    )
    found = read(tmp_path / "a.npz", conditions={"y": "label", "angle": "angle", "kind": "kind"})
    same(found.values, values)
    assert isinstance(found.values, np.memmap) == (save is np.savez and dtype in ("u1", "i1", "?"))
    same(found.given["y"], LABELS)
    same(found.given["angle"], TABLE)
    assert [found.names["kind"][y] for y in found.given["kind"]] == words.tolist()
    other = read(tmp_path / "a.npz", samples="angle")
    same(other.values, TABLE.astype(float))


def test_npz_maps_numbers_that_lie_aligned_and_never_gives_pytorch_others(tmp_path: Path) -> None:
    mapped = set()
    for name in ("x", "xx", "xxx", "xxxx"):  # the name's length moves the data in the file
        np.savez(tmp_path / "a.npz", **{name: TABLE})
        found = read(tmp_path / "a.npz").values
        same(found, TABLE)
        assert found.flags.aligned
        mapped.add(isinstance(found, np.memmap))
    assert mapped == {True, False}


def test_npz_takes_the_only_array_and_names_them_otherwise(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", data=TABLE, y=LABELS)
    same(read(tmp_path / "one.npz", conditions=("y",)).values, TABLE)
    with pytest.raises(ValueError, match=r"no array 'x'.*samples=.*data, y"):
        read(tmp_path / "one.npz")
    with pytest.raises(ValueError, match=r"no 'lable'.*There are: data, y"):
        read(tmp_path / "one.npz", conditions=("lable",))


def idx_bytes(values: np.ndarray) -> bytes:
    """The format as its authors define it: 0, 0, type, rank, sizes, and the numbers, high byte
    first.
    """
    code = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}[
        values.dtype.str[1:]
    ]
    head = struct.pack(">BBBB", 0, 0, code, values.ndim) + struct.pack(
        f">{values.ndim}i", *values.shape
    )
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_of_every_type(dtype: str, packed: bool, tmp_path: Path) -> None:
    values = array(dtype, (9, 4, 5))
    path = tmp_path / ("a-idx3-ubyte.gz" if packed else "a-idx3-ubyte")
    path.write_bytes(gzip.compress(idx_bytes(values)) if packed else idx_bytes(values))
    same(read(path).values, values[:, None])
    flat = array(dtype, (9, 4))
    (tmp_path / "a.idx").write_bytes(idx_bytes(flat))
    same(read(tmp_path / "a.idx").values, flat)


@pytest.mark.parametrize(
    "style",
    [
        "{}-{}-idx{}-ubyte",
        "{}-{}.idx{}-ubyte",
        "{}-{}-idx{}-ubyte.gz",
        "emnist-letters-{}-{}-idx{}-ubyte.gz",
    ],
)
def test_a_folder_of_idx_files_as_mnist_has_them(style: str, tmp_path: Path) -> None:
    sets = {
        "train": (array("u1", (12, 28, 28)), array("u1", (12,)) % 10),
        "test": (array("u1", (5, 28, 28)), array("u1", (5,)) % 10),
    }
    for split, (images, labels) in sets.items():
        stem = {"train": "train", "test": "test" if "emnist" in style else "t10k"}[split]
        for what, values in (("images", images), ("labels", labels)):
            data = idx_bytes(values)
            (tmp_path / style.format(stem, what, values.ndim)).write_bytes(
                gzip.compress(data) if style.endswith("gz") else data
            )
    for split, (images, labels) in sets.items():
        found = read(tmp_path, split=split)
        same(found.values, images[:, None])
        same(found.given["y"], labels.astype(np.int64))
    same(
        read(tmp_path, conditions={"digit": "y"}).given["digit"], sets["train"][1].astype(np.int64)
    )


def test_a_folder_of_idx_files_that_do_not_match(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(array("u1", (12, 28, 28))))
    with pytest.raises(ValueError, match=r"one file of train labels.*train-labels.*none"):
        read(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(array("u1", (11,))))
    with pytest.raises(ValueError, match=r"'y' has shape \(11,\) for 12 samples"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"one file of test images, such as t10k-images"):
        read(tmp_path, split="test")
    with pytest.raises(ValueError, match=r"unknown split 'tset'. Did you mean 'test'"):
        read(tmp_path, split="tset")


def test_cifar_10(tmp_path: Path) -> None:
    images, labels = array("u1", (60, 3, 32, 32)), RNG.integers(0, 10, 60)
    records = [
        struct.pack("B", y) + image.tobytes() for image, y in zip(images, labels, strict=True)
    ]
    for i in range(5):
        (tmp_path / f"data_batch_{i + 1}.bin").write_bytes(b"".join(records[10 * i : 10 * i + 10]))
    (tmp_path / "test_batch.bin").write_bytes(b"".join(records[50:]))
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\n\n")
    for split, rows in (("train", slice(0, 50)), ("test", slice(50, 60))):
        found = read(tmp_path, split=split)
        same(found.values, images[rows])
        same(found.given["y"], labels[rows])
        assert found.names["y"] == ("airplane", "automobile")
    same(read(tmp_path / "data_batch_3.bin").values, images[20:30])
    (tmp_path / "data_batch_2.bin").write_bytes(b"".join(records[10:20])[:-1])
    with pytest.raises(ValueError, match=r"data_batch_2.bin has 30,729 bytes.*3,073"):
        read(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(b"\x0a" + records[0][1:])
    with pytest.raises(ValueError, match="label above 9"):
        read(tmp_path)
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(ValueError, match=r"data_batch_2\.bin"):
        read(tmp_path)


# Tables.

CELLS = [",".join(repr(float(v)) for v in row) for row in TABLE]


@pytest.mark.parametrize(
    "head",
    ["", "a,b,c\n", "# a, b, c\n", "\ufeffa,b,c\r\n", '"a","b","c"\n', "# made in May\n", "\n\n"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_csv_with_and_without_a_header(head: str, end: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(head + end.join(CELLS) + end, encoding="utf-8", newline="")
    same(read(tmp_path / "a.csv").values, TABLE)


def test_csv_conditions_are_integers_numbers_or_words(tmp_path: Path) -> None:
    big = LABELS + 2**60  # more digits than a float64 has
    words = np.array(["setosa", "virginica, or so", "versicolor"])[LABELS % 3]
    rows = (
        f'{c},{b},"{w}",{0.5 * y}' for c, b, w, y in zip(CELLS, big, words, LABELS, strict=True)
    )
    (tmp_path / "a.csv").write_text("a,b,c,id,kind,dose\n" + "\n".join(rows))
    found = read(tmp_path / "a.csv", conditions={"y": "kind", "id": "id", "dose": "dose"})
    same(found.values, TABLE)
    same(found.given["id"], big)
    same(found.given["dose"], (0.5 * LABELS).astype(np.float32))
    assert [found.names["y"][y] for y in found.given["y"]] == words.tolist()
    assert list(found.names["y"]) == sorted({*words.tolist()})
    assert list(read(tmp_path / "a.csv", conditions=("id", "kind", "dose")).given) == [
        "id",
        "kind",
        "dose",
    ]


def test_csv_with_names_that_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("0,1,label\n1.5,2.5,3\n")
    found = read(tmp_path / "a.csv", conditions=("label",))
    same(found.values, np.array([[1.5, 2.5]], np.float32))
    with pytest.raises(
        ValueError, match=r"line 1, column 3 is 'label'"
    ):  # not taken for a header: a row might be lost so
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows"),
        ("\n\n", "no rows"),
        ("x,y\n", "no rows"),
        ("x,y\n1,2\n3,four\n", r"line 3, column 2 is 'four'"),
        ("x,y\n1,2\n\n# so\n3,nan\n", r"line 5, column 2 is 'nan'"),
        ("1,2\n3,inf\n", r"line 2, column 2 is 'inf'"),
        ("1,2\n3,1e39\n", r"line 2, column 2 is '1e39'"),
        ("1,2\n3,\n", r"line 2, column 2 is ''"),
        ("1,2\n3\n", r"line 2 has 1 columns, wanted 2"),
        ("1,2\n3,4,5\n", r"line 2 has 3 columns, wanted 2"),
        ("x,y\n3,4,5\n", r"line 1 names 2 columns"),
        (",x\n0,4\n", "index=False"),
        ("1,2.o\n3,4\n", r"line 1, column 2 is '2.o'"),
    ],
)
def test_csv_mistakes_are_named_by_their_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        read(tmp_path / "a.csv")
    assert "a.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("1,3x\n2,4\n", "numbers and words, such as '4' and '3x'"),
        ("1,\n2,cat\n", "column 2 is ''"),
        ("1,nan\n2,3\n", "no finite real numbers"),
        ("1,2\n3\n", "line 3 has 1 columns"),
    ],
)
def test_csv_conditions_that_are_neither_numbers_nor_words(
    rows: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + rows)
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "a.csv", conditions=("y",))


def test_csv_conditions_want_a_header_that_has_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    with pytest.raises(ValueError, match="names no columns"):
        read(tmp_path / "a.csv", conditions=("y",))
    (tmp_path / "a.csv").write_text("x,label\n1,2\n3,4\n")
    with pytest.raises(ValueError, match="Did you mean 'label'"):
        read(tmp_path / "a.csv", conditions={"y": "lable"})
    with pytest.raises(ValueError, match="none is left"):
        read(tmp_path / "a.csv", conditions=("x", "label"))
    with pytest.raises(TypeError, match=r"\('label',\)"):
        read(tmp_path / "a.csv", conditions="label")


def test_parquet_as_pyarrow_wrote_it(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    words = np.array(["dog", "cat"])[LABELS % 2]
    kind = arrow.array(words.tolist()).dictionary_encode()
    table = arrow.table(
        {
            "a": TABLE[:, 0],
            "b": TABLE[:, 1].astype(float),
            "y": LABELS.astype(np.int8),
            "n": LABELS,
            "kind": kind,
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    found = read(tmp_path / "a.parquet", conditions=("y", "kind"))
    same(found.values, np.stack([TABLE[:, 0], TABLE[:, 1], LABELS.astype(np.float32)], 1))
    same(found.given["y"], LABELS)
    assert [found.names["kind"][y] for y in found.given["kind"]] == words.tolist()
    with pytest.raises(ValueError, match="'kind' holds words"):
        read(tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    for name, damaged in {
        "cut": data[:-9],
        "empty": b"",
        "zeros": data[:100] + b"\0" * (len(data) - 100),
    }.items():
        (tmp_path / f"{name}.parquet").write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.parquet"):
            read(tmp_path / f"{name}.parquet")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([1.0, None], "no value in 1 of 2"),
        ([1.0, float("nan")], "row 1"),
        ([[1.0], [2.0]], "of type list"),
        ([{"q": 1}] * 2, "struct"),
    ],
)
def test_parquet_mistakes(bad: list[Any], said: str, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        arrow.table({"a": [1.0, 2.0], "b": bad}), tmp_path / "a.parquet"
    )
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(("module", "file"), [("pyarrow", "a.parquet"), ("PIL", "images")])
def test_a_missing_package_is_named_with_its_extra(
    module: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    (tmp_path / "a.parquet").write_bytes(b"")
    for name in [module, f"{module}.parquet", f"{module}.Image"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'scoresde\[data\]'"):
        read(tmp_path / file)


# Images.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [(), ("cat", "dog", "eel")])
@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
def test_a_folder_of_images(
    channels: int, classes: tuple[str, ...], suffix: str, tmp_path: Path
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    values = array("u1", (12, channels, 5, 7))
    y = np.sort(np.arange(12) % 3)
    for i, image in enumerate(values):
        folder = tmp_path / classes[y[i]] if classes else tmp_path
        folder.mkdir(exist_ok=True)
        pillow.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)).save(
            folder / f"{i:02d}.{suffix}"
        )
    (tmp_path / ".hidden").write_text("no image")
    found = read(tmp_path)
    same(found.values, values)
    assert found.names == ({"y": classes} if classes else {})
    if classes:
        same(found.given["y"], y)


def test_images_of_another_size_mode_or_kind_are_named(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(array("u1", (5, 7))).save(tmp_path / "a.png")

    def said(name: str, image: Any) -> str:
        image.save(tmp_path / name) if hasattr(image, "save") else (tmp_path / name).write_bytes(
            image
        )
        with pytest.raises(ValueError, match=name) as caught:
            read(tmp_path)
        (tmp_path / name).unlink()
        return str(caught.value)

    assert "1 × 7 × 5" in said("b.png", pillow.fromarray(array("u1", (7, 5))))
    assert "3 × 5 × 7" in said("b.jpg", pillow.fromarray(array("u1", (5, 7, 3))))
    assert "mode RGBA" in said("b.png", pillow.fromarray(array("u1", (5, 7, 4))))
    assert "mode P" in said("b.gif", pillow.fromarray(array("u1", (5, 7, 3))).convert("P"))
    assert "holds uint16" in said("b.png", pillow.fromarray(array("i4", (5, 7)).astype(np.uint16)))
    assert "not an image" in said("b.txt", b"to do")
    assert "not an image" in said("b.png", (tmp_path / "a.png").read_bytes()[:-40])
    assert "not an image" in said(
        "b.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 7\nshowpage\n"
    )
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match=r"a\.png lies beside folders"):
        read(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="no image in cats"):
        read(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("png", "L"), ("png", "RGB"), ("png", "I;16"), ("tiff", "L"), ("jpg", "L")],
)
def test_images_are_turned_as_their_exif_says(
    orientation: int, suffix: str, mode: str, tmp_path: Path
) -> None:
    """EXIF 2.3, tag 274: where the first row and column of the stored pixels belong."""
    pillow = pytest.importorskip("PIL.Image")
    stored = np.arange(15, dtype=np.uint8).reshape(3, 5) * 16
    stored = stored.astype(np.uint16) * 273 if mode == "I;16" else stored
    stored = np.stack([stored] * 3, 2) if mode == "RGB" else stored
    exif = pillow.Exif()
    exif[274] = orientation
    how = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    pillow.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, **how)
    shown = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored.swapaxes(0, 1)[:, ::-1],
        7: stored.swapaxes(0, 1)[::-1, ::-1],
        8: stored.swapaxes(0, 1)[::-1],
    }[orientation]
    found = read(tmp_path).values[0]
    wanted = shown[None] if stored.ndim == 2 else shown.transpose(2, 0, 1)
    assert found.dtype == stored.dtype
    assert found.shape == wanted.shape
    np.testing.assert_allclose(
        found.astype(int), wanted.astype(int), atol=2 if suffix == "jpg" else 0
    )
    with pillow.open(io.BytesIO((tmp_path / f"a.{suffix}").read_bytes())) as image:
        x = columns([{"image": image}], "image")[0]
    np.testing.assert_array_equal(x.numpy(), found)


@pytest.mark.parametrize(
    ("version", "works"),
    [("9.4.0", False), ("10.2.0", False), ("10.3.0", True), ("13.0.dev0", True)],
)
def test_a_pillow_that_turns_images_twice_is_refused(
    version: str, works: bool, monkeypatch: Any, tmp_path: Path
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    values = array("u1", (5, 7))
    pillow.fromarray(values).save(tmp_path / "a.png")
    monkeypatch.setattr(pytest.importorskip("PIL"), "__version__", version)
    image = columns([{"image": pillow.fromarray(values)}], "image")
    if works:
        same(read(tmp_path).values, values[None, None])
        same(image[0].numpy(), values[None])
        return
    said = rf"need Pillow 10\.3 or newer, got {re.escape(version)}: pip install"
    with pytest.raises(ImportError, match=said):
        read(tmp_path)
    with pytest.raises(ImportError, match=said):
        image[0]


def ppm(kind: bytes, values: np.ndarray, maximum: int) -> bytes:
    height, width = values.shape[:2]
    return b"%s %d %d %d\n" % (kind, width, height, maximum) + values.astype(">u2").tobytes()


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a color (ISO 15948), which Pillow can't write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width, colors = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[colors], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_gray_images_of_16_and_32_bits_keep_their_levels(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    levels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8) + np.arange(
        8, dtype=np.uint16
    )
    big = pillow.frombytes("I;16B", (8, 8), levels.astype(">u2").tobytes())
    wide = levels.astype(np.int32) * 30_000 - 2**30
    cases: dict[str, tuple[Any, np.ndarray]] = {
        "a.png": (pillow.fromarray(levels), levels),
        "b.tiff": (pillow.fromarray(levels), levels),
        "c.tiff": (big, levels),
        "d.pgm": (ppm(b"P5", levels, 65535), levels),
        "e.pgm": (ppm(b"P5", levels // 16, 4095), levels // 16),
        "f.tiff": (pillow.fromarray(wide), wide),
        "g.tiff": (pillow.fromarray(levels.astype(np.float32) / 7), levels.astype(np.float32) / 7),
    }
    for name, (image, wanted) in cases.items():
        folder = tmp_path / name[0]
        folder.mkdir()
        (folder / name).write_bytes(image) if isinstance(image, bytes) else image.save(
            folder / name
        )
        same(read(folder).values, wanted[None, None])
        with pillow.open(folder / name) as opened:
            x = columns([{"image": opened}], "image")[0]
        assert torch.equal(
            x,
            torch.from_numpy(
                wanted.astype(np.int32 if wanted.dtype == np.uint16 else wanted.dtype)
            )[None],
        )
    assert torch.equal(
        columns([{"a": levels}], "a")[0], torch.from_numpy(levels.astype(np.int32))[None]
    )


def test_what_pillow_would_decode_with_loss_is_refused_with_advice(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    colors = np.random.default_rng(0).integers(0, 65536, (5, 7, 4)).astype(np.uint16)
    bytes_ = (colors >> 8).astype(np.uint8)
    opaque = r"alpha_composite.*convert\('RGB'\)"
    cases: list[tuple[str, Any, str]] = [
        ("a.png", png16(colors[..., :3]), "16 bits, of which Pillow keeps 8.*npy"),
        ("b.png", png16(colors), opaque),
        ("c.png", png16(colors[..., :2]), opaque),
        ("d.ppm", ppm(b"P6", colors[..., :3], 65535), "16 bits, of which Pillow keeps 8"),
        ("e.ppm", ppm(b"P6", colors[..., :3] % 1024, 1023), "16 bits, of which Pillow keeps 8"),
        ("f.png", pillow.fromarray(bytes_).convert("LA"), opaque),
        ("g.png", pillow.fromarray(bytes_), opaque),
        ("h.png", pillow.fromarray(bytes_[..., 0]).convert("1"), r"convert\('L'\)"),
        (
            "i.png",
            pillow.fromarray(bytes_[..., :3]).convert("P"),
            r"palette: image.convert\('RGB'\)",
        ),
        ("j.jpg", pillow.fromarray(bytes_).convert("RGB").convert("CMYK"), "mode CMYK.*RGB"),
    ]
    for name, image, said in cases:
        folder = tmp_path / name[0]
        folder.mkdir()
        (folder / name).write_bytes(image) if isinstance(image, bytes) else image.save(
            folder / name
        )
        with pytest.raises(ValueError, match=said) as caught:
            read(folder)
        assert name in str(caught.value)
    frames = [pillow.fromarray(bytes_[..., i]) for i in range(2)]
    (tmp_path / "k").mkdir()
    frames[0].save(tmp_path / "k" / "k.tiff", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="2 frames, wanted one"):
        read(tmp_path / "k")


# Datasets of dicts.


class Rows:
    """A dataset with the interface of Hugging Face's."""

    def __init__(self, **columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: column[i] for name, column in self.columns.items()}


@pytest.mark.parametrize("channels", [1, 3])
def test_columns_of_a_dataset_of_dicts(channels: int) -> None:
    pillow = pytest.importorskip("PIL.Image")
    values = array("u1", (10, channels, 5, 7))
    arrays = [v[0] if channels == 1 else v.transpose(1, 2, 0) for v in values]
    rows = Rows(
        pil=[pillow.fromarray(a) for a in arrays],
        array=arrays,
        planes=list(values),
        label=LABELS[:10].tolist(),
        point=TABLE[:10],
    )
    for name in ("pil", "array", "planes"):
        data = columns(rows, name, y="label", at="point")
        x, condition = next(iter(torch.utils.data.DataLoader(data, 10)))
        same(x.numpy(), values)
        same(condition["y"].numpy(), LABELS[:10])
        same(condition["at"].numpy(), TABLE[:10])
    assert torch.equal(columns(rows, "point")[3], torch.from_numpy(TABLE[3]))


def test_columns_says_what_is_missing_or_no_number() -> None:
    rows = Rows(image=[[1.0]], label=["cat"])
    with pytest.raises(
        ValueError, match=r"no column 'lable'. Did you mean 'label'\? There are: image, label"
    ):
        columns(rows, "image", y="lable")
    with pytest.raises(TypeError, match="'label' holds str"):
        columns(rows, "image", y="label")[0]
    with pytest.raises(TypeError, match="items are dicts, got items of type int"):
        columns([1, 2], "image")
    with pytest.raises(TypeError, match="got generator"):
        columns((row for row in ()), "image")
    with pytest.raises(ValueError, match="empty"):
        columns([], "image")


def test_columns_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"x": TABLE.tolist(), "label": LABELS.tolist()})
    batch, condition = next(iter(torch.utils.data.DataLoader(columns(data, "x", y="label"), 50)))
    same(batch.numpy(), TABLE)
    same(condition["y"].numpy(), LABELS)


# Writing.


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_written_is_read(suffix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    write(tmp_path / f"a.{suffix}", values)
    found = read(tmp_path / f"a.{suffix}").values
    same(found, values.numpy().astype(found.dtype))
    assert (found.dtype == np.float32) == (dtype == torch.float32 or suffix == "csv")
    with pytest.raises(ValueError, match=r"\.npy, \.csv, \.npz"):
        write(tmp_path / "a.pt", values)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "tsv.gz", "parquet"])
@pytest.mark.parametrize(
    "names",
    [
        ("height", "weight"),
        ("a,b", 'say "c"'),
        ("#id", " x"),
        ("0", "1"),
        ("größe/m²", "a\tb"),
        (),
    ],
)
def test_tables_are_written_with_their_names(
    suffix: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    """Every float32 comes back by the fewest digits that tell it apart: at most 9 (IEEE 754)."""
    values = np.array(
        [[0.1, -3.0], [1e-30, 16777216.0], [3.4028235e38, -0.0], [1 / 3, 2.5e-45]], np.float32
    )
    write(tmp_path / f"a.{suffix}", values, columns=names)
    found = read(tmp_path / f"a.{suffix}")
    same(found.values, values)
    wanted = names or (("x0", "x1") if suffix == "parquet" else ())
    clean = wanted if suffix == "parquet" else tuple(" ".join(name.split()) for name in wanted)
    assert found.columns == clean
    if suffix == "csv" and names == ("height", "weight"):
        lines = (tmp_path / "a.csv").read_text().splitlines()
        assert lines == [
            "height,weight",
            "0.1,-3.0",
            "1e-30,16777216.0",
            "3.4028235e+38,-0.0",
            "0.33333334,3e-45",
        ]


def test_what_is_no_array_of_numbers_is_not_written(tmp_path: Path) -> None:
    bad: dict[str, Any] = {
        "objects": np.array([[{}, 1]], dtype=object),
        "words": [["a", "b"]],
        "ragged": [[1.0], [1.0, 2.0]],
        "complex64": torch.zeros(2, 2, dtype=torch.complex64),
        "a mapping": {"x": 1},
        "one number": 3.0,
        "none": None,
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.zeros(2, 2, device="meta"),
    }
    for suffix in ("npy", "npz", "csv", "parquet"):
        for name, values in bad.items():
            with pytest.raises(TypeError, match=r"real numbers, .*got"):
                write(tmp_path / f"a.{suffix}", values)
            assert not (tmp_path / f"a.{suffix}").exists(), name
    write(tmp_path / "half.npy", torch.ones(2, 3, dtype=torch.bfloat16))
    same(read(tmp_path / "half.npy").values, np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="columns are 3 different names"):
        write(tmp_path / "a.csv", TABLE, columns=("a", "b"))
    for suffix, none in (("csv", ""), ("tsv", ""), ("parquet", None)):
        write(tmp_path / f"none.{suffix}", TABLE[:0])
        assert none is None or (tmp_path / f"none.{suffix}").read_text() == none
    write(tmp_path / "bits.csv", np.eye(3, dtype=bool))
    same(read(tmp_path / "bits.csv").values, np.eye(3, dtype=np.float32))
    write(tmp_path / "B.NPY", TABLE)
    same(read(tmp_path / "B.NPY").values, TABLE)


@pytest.mark.parametrize("call", [read, lambda path: write(path, TABLE)], ids=["read", "write"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        (b"a.npy", r"path is a path, got bytes; write os.fsdecode\(path\)"),
        (3, "got int"),
        (None, "got NoneType"),
    ],
)
def test_a_path_is_a_text(call: Callable[[Any], Any], path: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        call(path)
    for text in ("", "a\0.npy"):
        with pytest.raises(ValueError, match=r"path is (a path, got|the path of)"):
            call(text)


# Tables as others write them.


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "tsv.gz"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("head", [[], ["a", "b", "kind"], ["# made in May; by us"]])
def test_separators_and_packing(
    suffix: str, delimiter: str, head: list[str], tmp_path: Path
) -> None:
    if "tsv" in suffix and delimiter != "\t":
        pytest.skip("a .tsv has tabs")
    rows = [
        [f"{a!r}", f"{b!r}", str(y)]
        for (a, b), y in zip(TABLE[:, :2].tolist(), LABELS.tolist(), strict=True)
    ]
    text = "\n".join(delimiter.join(row) for row in ([head, *rows] if head else rows))
    data = text.encode()
    (tmp_path / f"t.{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    found = read(tmp_path / f"t.{suffix}", conditions=("kind",) if len(head) == 3 else ())
    if len(head) == 3:
        same(found.values, TABLE[:, :2])
        same(found.given["kind"], LABELS)
        assert found.columns == ("a", "b")
    else:
        same(found.values, np.concatenate([TABLE[:, :2], LABELS[:, None].astype(np.float32)], 1))
        assert found.columns == ()


def test_columns_of_a_table_are_chosen_by_name(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    text = "a,b,when,kind,dose,age\n" + "\n".join(
        f"{i},{i + 0.5},Monday,{'xy'[i % 2]},{i / 4},{30 + i}" for i in range(6)
    )
    (tmp_path / "t.csv").write_text(text)
    columns_ = {
        "a": range(6),
        "b": [i + 0.5 for i in range(6)],
        "when": ["Monday"] * 6,
        "kind": list("xyxyxy"),
    }
    columns_ |= {"dose": [i / 4 for i in range(6)], "age": [30 + i for i in range(6)]}
    pytest.importorskip("pyarrow.parquet").write_table(
        arrow.table(columns_), tmp_path / "t.parquet"
    )
    for name in ("t.csv", "t.parquet"):
        found = read(
            tmp_path / name,
            columns=("b", "a"),
            conditions={"y": "kind", "vector": ("age", "dose")},
        )
        same(found.values, np.array([[i + 0.5, i] for i in range(6)], np.float32))
        same(found.given["vector"], np.array([[30 + i, i / 4] for i in range(6)], np.float32))
        assert (found.columns, found.parts, found.names) == (
            ("b", "a"),
            {"vector": ("age", "dose")},
            {"y": ("x", "y")},
        )
        assert found.given["y"].tolist() == [0, 1, 0, 1, 0, 1]
        with pytest.raises(ValueError, match=r"no 'c'\. There are"):
            read(tmp_path / name, columns=("a", "c"))
        with pytest.raises(ValueError, match="'kind' has words"):
            read(tmp_path / name, columns=("a",), conditions={"vector": ("kind", "dose")})
        with pytest.raises(ValueError, match="'a' is asked for twice"):
            read(tmp_path / name, columns=("a", "a"))
    with pytest.raises(TypeError, match="columns is a sequence of names"):
        read(tmp_path / "t.csv", columns="a")
    np.savez(tmp_path / "t.npz", x=TABLE, dose=TABLE[:, 0], age=LABELS)
    found = read(tmp_path / "t.npz", conditions={"vector": ["dose", "age"]})
    same(found.given["vector"], np.stack([TABLE[:, 0], LABELS.astype(np.float32)], 1))
    with pytest.raises(ValueError, match=r"columns=\('x',\) is for \*\.csv, .*\*\.parquet$"):
        read(tmp_path / "t.npz", columns=("x",))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "cp1252", "utf-8"])
def test_other_encodings_are_read_when_named_and_asked_for_otherwise(
    encoding: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_bytes("größe,kind\n1.5,süß\n2.5,bär\n".encode(encoding))
    found = read(tmp_path / "a.csv", conditions=("kind",), encoding=encoding)
    assert (found.columns, found.names["kind"], found.values[:, 0].tolist()) == (
        ("größe",),
        ("bär", "süß"),
        [1.5, 2.5],
    )
    if encoding != "utf-8":
        with pytest.raises(
            ValueError,
            match=r"a\.csv can't be read: .*say which encoding it has, such as encoding='utf-16'",
        ):
            read(tmp_path / "a.csv", conditions=("kind",))
    with pytest.raises(ValueError, match="unknown encoding 'utf8x'"):
        read(tmp_path / "a.csv", encoding="utf8x")


@pytest.mark.parametrize(
    ("text", "conditions", "said"),
    [
        ("x,y,x\n1,2,3\n", (), "several columns 'x': 1 and 3"),
        ("x,y\n1,2#3\n", (), r"line 2, column 2 is '2#3'"),
        ("x,y\n1,2 # two\n", (), r"line 2, column 2 is '2 # two'"),
        ("1,2\n#3,4\n5,#6\n", (), r"line 3, column 2 is '#6'"),
        (
            "1,5;2,5\n3,5;4,5\n",
            (),
            r"column 1 is '3,5', wanted a finite number; decimals are written with a point",
        ),
        ("x;y\n1;2\n3;4;5\n", (), "line 3 has 3 columns, wanted 2"),
    ],
)
def test_a_table_is_not_read_as_another(
    text: str, conditions: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "a.csv", conditions=conditions)


def test_a_number_sign_belongs_to_its_cell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('u,kind\n1,"a\nb"\n2,c\n')
    assert read(tmp_path / "a.csv", conditions=("kind",)).names["kind"] == ("a\nb", "c")
    (tmp_path / "a.csv").write_text("# 3 rows\nu,kind\n1,C#\n# one more\n2,C\n3,F#\n")
    found = read(tmp_path / "a.csv", conditions={"y": "kind"})
    assert (found.given["y"].tolist(), found.names["y"]) == ([1, 0, 2], ("C", "C#", "F#"))
    assert found.values[:, 0].tolist() == [1, 2, 3]


# Harm.


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    "name", ["a.npy", "a.npz", "a.csv", "a.csv.gz", "a.parquet", "a.idx.gz", "data_batch_1.bin"]
)
def test_a_pipe_is_refused_rather_than_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "images").mkdir()
    os.mkfifo(tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match="is a named pipe, wanted a file"):
        read(tmp_path / name)
    with pytest.raises(ValueError, match="is a named pipe"):
        read(tmp_path / "images")
    if name.endswith(("npy", "csv")):
        with pytest.raises(ValueError, match="is a named pipe"):
            write(tmp_path / name, TABLE)
    (tmp_path / "link.npy").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is a device"):
        read(tmp_path / "link.npy")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.npy"))
        with pytest.raises(ValueError, match="is a socket"):
            read(tmp_path / "s.npy")


def test_a_decompression_bomb_is_refused_at_once_with_its_sizes(tmp_path: Path) -> None:
    """2 GB of zeros, with all headers true."""
    n, head = 2 * 10**9, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 2000)}
    packed = bytes(10**6)  # as deflate would have it: 1000 : 1
    first = npy_bytes(head)
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = stream.compress(first) + stream.flush(zlib.Z_FULL_FLUSH)
    million = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = million.compress(packed) + million.flush(zlib.Z_FULL_FLUSH)
    data = body + block * (n // 10**6) + b"\x03\0"
    name, size = b"x.npy", len(first) + n
    local = (
        struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(data), size, len(name), 0)
        + name
    )
    central = struct.pack(
        "<4sHHHHHHIIIHHHHHII",
        b"PK\1\2",
        20,
        20,
        0,
        8,
        0,
        0,
        0,
        len(data),
        size,
        len(name),
        *[0] * 6,
    )
    central += name
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    (tmp_path / "bomb.npz").write_bytes(local + data + central + end)
    idx = zlib.compressobj(9, zlib.DEFLATED, -15)
    gz = (
        gzip.compress(b"")[:10]
        + idx.compress(struct.pack(">BBBBii", 0, 0, 8, 2, 10**6, 2000))
        + idx.flush(zlib.Z_FULL_FLUSH)
    )
    (tmp_path / "bomb-idx2-ubyte.gz").write_bytes(gz + block * (n // 10**6) + b"\x03\0" + bytes(8))
    for name_ in ("bomb.npz", "bomb-idx2-ubyte.gz"):
        began = time.perf_counter()
        with pytest.raises(
            ValueError,
            match=rf"{name_}.*2,000,000,000 bytes or more are to come out of [\d,]{{9}}, .*bomb",
        ):
            read(tmp_path / name_)
        assert time.perf_counter() - began < 1


def test_a_bomb_of_text_or_parquet_is_refused_before_it_is_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = pytest.importorskip("pyarrow")
    for module in ("base", "tables"):
        monkeypatch.setattr(f"scoresde.data.files.{module}.BOMB_BYTES", 2**20)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"0,0\n" * 2**19))
    pytest.importorskip("pyarrow.parquet").write_table(
        arrow.table({"a": np.zeros(2**20)}), tmp_path / "a.parquet"
    )
    for name in ("a.csv.gz", "a.parquet"):
        with pytest.raises(ValueError, match=rf"{name}.*bytes or more are to come out of .*bomb"):
            read(tmp_path / name)
    rows = np.random.default_rng(0).normal(size=(20_000, 4))
    (tmp_path / "b.csv.gz").write_bytes(
        gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode())
    )
    assert len(read(tmp_path / "b.csv.gz")) == 20_000


def npy_bytes(header: str | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else repr(header)).encode() + b"\n"
    return (
        b"\x93NUMPY\x02\x00"
        + struct.pack("<I", len(text) if length is None else length)
        + text
        + data
    )


def npz_bytes(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


class Bomb:
    """What runs if anybody unpickles it."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("echo harm >> harm.txt",)


def sound(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def hostile() -> dict[str, bytes]:
    """Files that claim too much, hold a pickle, or are damaged."""
    good, objects = sound(TABLE), sound(np.array([[Bomb(), 1]], dtype=object))
    huge = {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**20)}
    zipped = npz_bytes({"x.npy": good})
    return {
        "objects.npy": objects,
        "pickle.npy": pickle.dumps(Bomb()),
        "huge.npy": npy_bytes(huge),
        "wrapping.npy": npy_bytes(huge | {"shape": (2**62, 4)}),
        "header.npy": npy_bytes(huge, length=2**32 - 1),
        "nested.npy": npy_bytes("(" * 5000),
        "call.npy": npy_bytes("__import__('os').system('echo harm >> harm.txt')"),
        "record.npy": npy_bytes(huge | {"descr": [("a", "|O")], "shape": (1, 1)}, b"\0" * 8),
        "negative.npy": npy_bytes(huge | {"shape": (-1, 2)}),
        "cut.npy": good[:-1],
        "long.npy": good + b"\0",
        "magic.npy": b"\x93NUMPZ" + good[6:],
        "empty.npy": b"",
        "objects.npz": npz_bytes({"x.npy": objects}),
        "pickle.npz": npz_bytes({"x.npy": pickle.dumps(Bomb())}),
        "bomb.npz": npz_bytes({"x.npy": npy_bytes(huge, bytes(10**6))}, zipfile.ZIP_DEFLATED),
        "lying.npz": zipped.replace(struct.pack("<I", len(good)), struct.pack("<I", 2**31)),
        "crc.npz": npz_bytes({"x.npy": good}, zipfile.ZIP_DEFLATED).replace(
            struct.pack("<I", zipfile.crc32(good)), b"abcd"
        ),
        "bzip.npz": npz_bytes({"x.npy": good}, zipfile.ZIP_BZIP2),
        "cut.npz": zipped[:-30],
        "empty.npz": b"",
        "torch.npz": npz_bytes({"archive/data.pkl": pickle.dumps(Bomb())}),
        "bomb-idx3-ubyte.gz": gzip.compress(
            struct.pack(">BBBBiii", 0, 0, 8, 3, 2**30, 28, 28) + bytes(10**6)
        ),
        "cut-idx3-ubyte.gz": gzip.compress(idx_bytes(array("u1", (3, 4, 5))))[:-12],
        "short-idx3-ubyte": idx_bytes(array("u1", (3, 4, 5)))[:-1],
        "long-idx3-ubyte": idx_bytes(array("u1", (3, 4, 5))) + b"\0",
        "head-idx3-ubyte": struct.pack(">BBBBi", 0, 0, 8, 3, 2**30),
        "type-idx3-ubyte": b"\0\0\x0a\x01" + bytes(9),
        "pickle-idx3-ubyte": pickle.dumps(Bomb()),
        "pickle.csv": pickle.dumps(Bomb()),
        "pickle.parquet": pickle.dumps(Bomb()),
        "data_batch_1.bin": pickle.dumps(Bomb()),  # as CIFAR-10's "python version" has them
    }


@pytest.mark.parametrize("name", list(hostile()))
def test_a_hostile_file_is_one_sentence_and_little_memory(name: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(hostile()[name])
    with pytest.raises(ValueError, match=name) as caught:
        read(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "..\\x", "x/../../../y"])
def test_names_inside_an_archive_are_names_only(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "a.npz").write_bytes(npz_bytes({f"{name}.npy": sound(TABLE)}))
    same(read(folder / "a.npz").values, TABLE)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.npz"]


def test_damage_is_found_or_changes_nothing_but_numbers(tmp_path: Path) -> None:
    """300 files with a bit flipped, or cut at random: an error of ours, or an array of a size that
    the file can hold.
    """
    rng = np.random.default_rng(1)
    images = array("u1", (6, 4, 5))
    (tmp_path / "a.npz").write_bytes(b"")
    np.savez_compressed(tmp_path / "z.npz", x=images, y=np.arange(6))
    np.savez(tmp_path / "s.npz", x=images, y=np.arange(6))
    files = {
        "a.npy": sound(images),
        "s.npz": (tmp_path / "s.npz").read_bytes(),
        "z.npz": (tmp_path / "z.npz").read_bytes(),
    }
    files |= {
        "a-idx3-ubyte": idx_bytes(images),
        "a-idx3-ubyte.gz": gzip.compress(idx_bytes(images)),
    }
    refused = kept = largest = 0
    for name, data in files.items():
        for i in range(60):
            at = int(rng.integers(len(data)))
            changed = data[:at] + (
                b""
                if i % 3 == 0
                else bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
            )
            (tmp_path / name).write_bytes(changed)
            try:
                largest = max(largest, read(tmp_path / name).values.nbytes)
            except ValueError as error:
                refused += name in str(error)
            else:
                kept += 1
    assert refused + kept == 300
    assert refused > 150
    assert largest <= 8 * images.nbytes  # a bit of the dtype


WATCH = """
import json, os, sys
import numpy as np
from scoresde.data.files import read
good, folder = sys.argv[1:3]
for name in sorted(os.listdir(good)):  # imports what is imported when first needed
    try: read(os.path.join(good, name))
    except ValueError: pass
seen = []
def watch(event, args):
    if event.startswith(("exec", "import", "pickle.", "marshal.", "os.system", "os.exec",
                         "os.posix_spawn", "subprocess.")):
        seen.append([event, str(args)[:100]])
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append([event, str(args)[:100]])
sys.addaudithook(watch)
refused = 0
for name in sorted(os.listdir(folder)):
    try: read(os.path.join(folder, name))
    except ValueError: refused += 1
print(json.dumps([refused, seen]))
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What one process says that maps 100 MB, if it can be measured, and then reads hostile files:
    it imports scoresde once.
    """
    folder = tmp_path_factory.mktemp("watched")
    good, bad = folder / "good", folder / "bad"
    write_hostile(good, bad)
    code = WATCH
    if MEASURED:
        code = RSS + WATCH
    large = [str(path) for path in write_large(folder)]
    done = subprocess.run(
        [sys.executable, "-c", code, str(good), str(bad), *large],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=folder,
    )
    assert not list(folder.rglob("harm.txt"))
    return done.stdout.splitlines()


def test_no_code_runs_on_hostile_files(watched: list[str]) -> None:
    refused, seen = json.loads(watched[-1])
    assert (refused, seen) == (len(hostile()) + 2, [])


def write_hostile(good: Path, bad: Path) -> None:
    """Files that are sound, and files that are not."""
    pytest.importorskip("pyarrow")
    pillow = pytest.importorskip("PIL.Image")
    files = hostile()
    for folder in (good, bad):
        (folder / "images").mkdir(parents=True)
        (folder / "data").write_bytes(b"")
    pillow.fromarray(array("u1", (5, 7))).save(good / "images" / "a.png")
    (good / "noimage").mkdir()
    (good / "noimage" / "a.png").write_bytes(b"x")
    np.save(good / "a.npy", TABLE)
    np.savez(good / "a.npz", x=TABLE)
    (good / "a.csv").write_text("1,2\n")
    (good / "b.csv").write_text("1,x\n")
    (good / "a.parquet").write_bytes(b"")
    (good / "a.idx.gz").write_bytes(gzip.compress(idx_bytes(array("u1", (3, 4)))))
    for name, data in files.items():
        (bad / name).write_bytes(data)
    (bad / "images" / "a.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 7\n(harm) run\n"
    )


RSS = """
import sys
from scoresde.data.files import read
def status(key):
    return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1])
read(sys.argv[-1])  # imports what is imported when first needed
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
before = status("VmRSS")
for name in sys.argv[3:-1]:
    found = read(name)
    rows = found.values[::100_000].sum()
    print(len(found), found.values.nbytes, status("VmHWM") - before)
"""


MEASURED = Path("/proc/self/clear_refs").exists()
LARGE, NAMES = 130_000, ["a.npy", "a-idx3-ubyte", "a.npz"]


def write_large(folder: Path) -> list[Path]:
    """Three files of 100 MB, and a small one that comes last."""
    n, names = LARGE, NAMES
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, 28, 28)}
    for name in names[:2]:  # sparse on the disk
        with (folder / name).open("wb") as file:
            file.write(
                npy_bytes(header)
                if name == "a.npy"
                else struct.pack(">BBBBiii", 0, 0, 8, 3, n, 28, 28)
            )
            file.truncate(file.tell() + n * 28 * 28)
    with (
        zipfile.ZipFile(folder / "a.npz", "w") as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array(file, np.zeros((n, 28, 28), np.uint8))
    np.save(folder / "small.npy", TABLE)
    return [folder / name for name in [*names, "small.npy"]]


@pytest.mark.skipif(not MEASURED, reason="measured through Linux's /proc")
def test_100_megabytes_are_mapped(watched: list[str]) -> None:
    """Less than 20 MB of memory for a .npy, an IDX and an .npz file, one after another in one
    process.
    """
    *lines, _ = watched
    assert len(lines) == len(NAMES)
    for line in lines:
        samples, size, kilobytes = map(int, line.split())
        assert (samples, size) == (LARGE, LARGE * 28 * 28)
        assert kilobytes < 20_000


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("nowhere.npy", {}, r"no file or folder.*nowhere\.npy"),
        ("model.pt", {}, r"read from \*\.npy, \*\.npz, \*\.csv.*, folders of .*, images$"),
        ("a.npy", {"samples": "x"}, r"samples='x' is for \*\.npz$"),
        ("a.npy", {"split": "test"}, r"split='test' is for folders of \*idx"),
        ("a.npy", {"conditions": ("y",)}, r"no 'y'.*names no columns"),
        ("flat.npy", {}, r"\(50,\); wanted one sample per row"),
        ("none.npy", {}, r"no samples: shape \(0, 3\)"),
        ("words.npy", {}, "str.*wanted real numbers"),
        ("complex.npy", {}, "complex64"),
        ("empty", {}, "samples are read from"),
    ],
)
def test_what_can_not_be_read(
    name: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    arrays = {
        "a": TABLE,
        "flat": TABLE[:, 0],
        "none": TABLE[:0],
        "words": np.array([["a", "b"]]),
        "complex": TABLE + 1j,
    }
    for stem, values in arrays.items():
        np.save(tmp_path / f"{stem}.npy", values)
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=said):
        read(tmp_path / name, **options)


def test_a_row_of_the_tables_is_read_though_it_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of JSON, and a folder that has a pattern of its own."""

    def jsonl(path: Path, request: Request) -> files.Samples:
        rows = [json.loads(line) for _, line in text_lines(path, request)]
        names = list(rows[0])
        return from_columns(
            names, lambda j: np.array([row[names[j]] for row in rows]), len(rows), request
        )

    def folder(path: Path, request: Request) -> files.Samples:
        return jsonl(path / f"{request.split}.jsonl", request)

    monkeypatch.setitem(files.FILES, "*.jsonl", (jsonl, "columns encoding"))
    monkeypatch.setitem(files.FOLDERS, "*.jsonl", (folder, "split columns encoding"))
    for name, shift in (("train", 0.0), ("test", 1.0)):
        rows = [{"a": i + shift, "b": -i, "kind": "xy"[i % 2]} for i in range(4)]
        text = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-16")
    how: dict[str, Any] = {"conditions": {"y": "kind"}, "encoding": "utf-16"}
    found = files.read(tmp_path / "train.jsonl", columns=("b", "a"), **how)
    assert found.values.tolist() == [[0, 0], [-1, 1], [-2, 2], [-3, 3]]
    assert found.columns == ("b", "a")
    assert found.given["y"].tolist() == [0, 1, 0, 1]
    assert found.names == {"y": ("x", "y")}
    assert held_out_split(str(tmp_path), None) == "test"
    found = files.read(tmp_path, split="test", **how)
    assert found.values.tolist() == [[1, 0], [2, -1], [3, -2], [4, -3]]
    assert formats.readable("encoding").endswith(r"*.jsonl, folders of *.jsonl")
    with pytest.raises(ValueError, match=r"train\.jsonl: split='test' is for folders"):
        files.read(tmp_path / "train.jsonl", split="test", **how)


@pytest.mark.parametrize("words", [["cat", "dog"], ["1", "2"]])
def test_a_column_of_text_is_words_even_if_they_look_like_numbers(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of the built-in readers, whose words are objects."""

    def reader(path: Path, request: Request) -> files.Samples:
        return from_columns(["height", "kind"], lambda j: columns[j], 2, request)

    monkeypatch.setitem(files.FILES, "*.two", (reader, "columns"))
    columns = [np.array([1.5, 2.5]), np.array(words)]
    path = tmp_path / "a.two"
    path.touch()
    with pytest.raises(ValueError, match=r"a\.two can't be read: column 'kind' holds words; ask"):
        read(path)
    found = read(path, conditions={"y": "kind"})
    assert found.values.tolist() == [[1.5], [2.5]]
    assert found.given["y"].tolist() == ([1, 2] if words[0] == "1" else [0, 1])
    columns[1] = np.array(["2026-11-29", "2026-11-30"], "datetime64[D]")
    with pytest.raises(ValueError, match=r"column 'kind' holds datetime64\[D\] values; ask"):
        read(path)


def test_a_file_nested_too_deep_is_a_value_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reader(path: Path, request: Request) -> files.Samples:
        return files.Samples(np.array(json.loads(path.read_text())))

    monkeypatch.setitem(files.FILES, "*.json", (reader, ""))
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"deep\.json can't be read: maximum recursion depth"):
        read(path)


def test_the_docstring_of_read_has_every_format() -> None:
    assert read.__doc__ is not None
    for pattern in files.FILES:
        assert f"`{pattern.removesuffix('.gz')}`" in read.__doc__
