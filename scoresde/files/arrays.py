"""Arrays in binary files: .npy and .npz (NEP 1), IDX, and the records of CIFAR-10.

A layout says what a header claims; mapping or reading it finds out first whether it is there.
"""

from __future__ import annotations

import ast
import gzip
import math
import os
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..registry import nearest
from .base import Ask, Samples, check_shrunk, labelled, regular, with_conditions

HEADER = 10_000  # bytes of a .npy header at most, as numpy has it
DEFLATE = 1032  # the most that deflate can shrink data by
SPLITS = {"train": "train", "test": "t10k|test"}  # how the names of IDX files begin
CIFAR = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
RECORD = (3, 32, 32)  # CIFAR: a byte of label, then the planes red, green, blue
IDX = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclass(frozen=True)
class _Layout:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str = "C"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize  # Python's integers: no header can make them wrap

    def mapped(self, path: Path, start: int) -> np.ndarray:
        if not self.nbytes:
            return np.empty(self.shape, self.dtype)
        return _native(np.memmap(path, self.dtype, "r", start, self.shape, self.order))  # type: ignore[call-overload]

    def filled(self, stream: Any, held: int) -> np.ndarray:
        """Read the array, and nothing else, from a stream that `held` bytes of deflate feed."""
        self.fits(min(self.nbytes, DEFLATE * held + HEADER))
        check_shrunk(self.nbytes, held)
        buffer = np.empty(self.nbytes, np.uint8)
        view, at = buffer.data, 0
        while at < self.nbytes and (got := stream.readinto(view[at : at + 2**20])):
            at += got
        self.fits(at + len(stream.read(1)))
        return _native(buffer.view(self.dtype).reshape(self.shape, order=self.order))  # type: ignore[call-overload]

    def fits(self, held: int) -> None:
        if held != self.nbytes:
            least = "no more than " if held < self.nbytes else "at least " if held > self.nbytes else ""
            raise ValueError(f"its header wants {self.nbytes:,} bytes of data, and there are {least}{held:,}: it is damaged")


def _native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, the only one that PyTorch has."""
    return array if array.dtype.isnative else np.asarray(array).astype(array.dtype.newbyteorder("="))


def _exactly(stream: Any, n: int) -> bytes:
    data: bytes = stream.read(n)
    if len(data) != n:
        raise ValueError("it ends within its header")
    return data


def _npy_header(stream: Any) -> tuple[_Layout, int]:
    """Return the layout of the array that a .npy stream opens with, and where its data begin (NEP 1)."""
    magic = stream.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it is no .npy array, by its first bytes")
    wide = magic[6] > 1
    (length,) = struct.unpack("<I" if wide else "<H", _exactly(stream, 4 if wide else 2))
    if length > HEADER:
        raise ValueError(f"its header has {length:,} bytes, more than {HEADER:,}")
    text = _exactly(stream, length).decode("utf-8" if magic[6] == 3 else "latin1")
    try:
        header = ast.literal_eval(text.strip())
        descr, shape, order = header["descr"], header["shape"], "F" if header["fortran_order"] else "C"
        sound = len(header) == 3 and type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        sound = False
    if not sound:
        raise ValueError("its header is not that of a .npy array")
    if not isinstance(descr, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|U[1-9]\d{0,7})", descr):
        what = "Python objects, which only a pickle can hold" if "O" in str(descr) else f"elements of type {descr!r:.40}"
        raise ValueError(f"it holds {what}; wanted numbers: nothing is unpickled here")
    return _Layout(np.dtype(descr), shape, order), 8 + (4 if wide else 2) + length


def npy(path: Path, ask: Ask) -> Samples:
    """Map an array."""
    ask.columns(())
    with path.open("rb") as stream:
        layout, start = _npy_header(stream)
    layout.fits(path.stat().st_size - start)
    return Samples(layout.mapped(path, start))


def npz(path: Path, ask: Ask) -> Samples:
    """Map or read the array of samples, and those of conditions."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("two of its arrays have the same name")
        fields = ask.columns(members)
        rest = [name for name in members if name not in ask.wanted()]
        wanted = ask.samples or ("x" if "x" in rest or len(rest) != 1 else rest[0])
        if wanted not in members:
            raise ValueError(f"it has no array {wanted!r}; say which holds the samples, samples=. {nearest(wanted, members)}")
        values = _member(path, archive, members[wanted])
        return with_conditions(values, fields, lambda name: _member(path, archive, members[name]))


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename!r} is encrypted, or packed in a way that np.savez never does")
    with archive.open(info) as stream:
        layout, start = _npy_header(stream)
        layout.fits(info.file_size - start)
        if info.compress_type == zipfile.ZIP_STORED:
            with path.open("rb") as file:
                file.seek(info.header_offset + 26)  # past what the central directory has too: the lengths of name and extra
                start += info.header_offset + 30 + sum(struct.unpack("<HH", _exactly(file, 4)))
            if start + layout.nbytes > path.stat().st_size:
                raise ValueError(f"{info.filename!r} reaches beyond the end of the file")
            if start % layout.dtype.itemsize == 0:  # PyTorch must not see numbers that straddle words
                return layout.mapped(path, start)
        return layout.filled(stream, min(info.compress_size, path.stat().st_size))


def _idx_array(path: Path) -> np.ndarray:
    packed, held = path.suffix.lower() == ".gz", regular(path).stat().st_size
    with gzip.open(path) if packed else path.open("rb") as stream:
        magic = _exactly(stream, 4)
        if magic[:2] != b"\0\0" or magic[2] not in IDX or not magic[3]:
            raise ValueError(f"it is no IDX file: it begins with 0x{magic.hex()}, wanted 0x0000, a type (0x08 …) and a rank")
        shape = struct.unpack(f">{magic[3]}I", _exactly(stream, 4 * magic[3]))
        layout, start = _Layout(np.dtype(IDX[magic[2]]), shape), 4 + 4 * magic[3]
        if packed:
            return layout.filled(stream, held)
    layout.fits(held - start)
    return layout.mapped(path, start)


def idx(path: Path, ask: Ask) -> Samples:
    """Map or read an IDX file; three axes are images of one channel."""
    ask.columns(())
    values = _idx_array(path)
    return Samples(values[:, None] if values.ndim == 3 else values)


def idx_folder(path: Path, ask: Ask) -> Samples:
    """Read the images and labels of a split."""
    found = {}
    for what in ("images", "labels"):
        pattern = rf"(.*[-_])?({SPLITS[ask.split]})[-.]{what}[-.]idx\d-ubyte(\.gz)?"
        files = {name.removesuffix(".gz"): name for name in sorted(os.listdir(path), reverse=True) if re.fullmatch(pattern, name)}
        if len(files) != 1:  # the same file plain and packed is one, and the plain one, which can be mapped, is taken
            have = f"several: {', '.join(sorted(files))}" if files else "none"
            raise ValueError(
                f"wanted one file of {ask.split} {what}, such as {_EXAMPLE[ask.split].format(what)}; there is {have}"
            )
        found[what] = path / next(iter(files.values()))
    return labelled(idx(found["images"], Ask({})).values, _idx_array(found["labels"]), (), ask)


_EXAMPLE = {"train": "train-{}-idx3-ubyte.gz", "test": "t10k-{}-idx3-ubyte.gz"}


def cifar_folder(path: Path, ask: Ask) -> Samples:
    """Read the records of a split, and the names of the classes where they are."""
    meta = path / "batches.meta.txt"
    names = tuple(meta.read_text(encoding="utf-8").split()) if meta.is_file() else ()
    return _records([path / name for name in CIFAR[ask.split]], names, ask)


def _records(paths: list[Path], names: tuple[str, ...], ask: Ask) -> Samples:
    size, batches = 1 + math.prod(RECORD), []
    for path in paths:
        held = regular(path).stat().st_size
        if not held or held % size:
            raise ValueError(
                f"{path.name} has {held:,} bytes, which is no whole number of CIFAR-10 records of {size:,}: it is cut"
            )
        batches.append(np.memmap(path, np.uint8, "r", shape=(held // size, size)))
        if int(batches[-1][:, 0].max()) > 9:
            raise ValueError(f"{path.name} has a label above 9: it holds no CIFAR-10 records")
    values = np.concatenate([batch[:, 1:] for batch in batches]).reshape(-1, *RECORD)
    return labelled(values, np.concatenate([batch[:, 0] for batch in batches]), names, ask)


def cifar_file(path: Path, ask: Ask) -> Samples:
    """Read the records of one file."""
    return _records([path], (), ask)
