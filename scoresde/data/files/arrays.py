"""Arrays in binary files: .npy and .npz (NEP 1), IDX, and the records of CIFAR-10.

A layout is what a header claims. Mapping or reading it first checks that the file holds as much.
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

from ...common.names import nearest
from .base import Request, Samples, check_compression, labelled, regular, with_conditions

NPY_HEADER_BYTES = 10_000
"""Most bytes of a .npy header that numpy reads."""
DEFLATE_RATIO = 1032
"""The most that deflate can shrink data by."""
CHUNK_BYTES = 2**20
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IDX_SPLITS = {"train": "train", "test": "t10k|test"}
"""How the names of IDX files of a split begin."""
IDX_EXAMPLES = {"train": "train-{}-idx3-ubyte.gz", "test": "t10k-{}-idx3-ubyte.gz"}
CIFAR_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR_SHAPE = (3, 32, 32)
"""Shape of an image of CIFAR-10; its record begins with a byte of label."""
CIFAR_CLASSES = 10

_NPY_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|U[1-9]\d{0,7})")
_NPY_VERSIONS = (b"\1\0", b"\2\0", b"\3\0")


@dataclass(frozen=True)
class _Layout:
    """Dtype, shape and order of an array in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str = "C"

    @property
    def nbytes(self) -> int:
        """Bytes of the array, as one of Python's integers, which no header can overflow."""
        return math.prod(self.shape) * self.dtype.itemsize

    def mapped(self, path: Path, start: int) -> np.ndarray:
        """Map the array that begins at byte `start` of a file."""
        if not self.nbytes:
            return np.empty(self.shape, self.dtype)
        order: Any = self.order
        return _native(np.memmap(path, self.dtype, "r", start, self.shape, order))

    def filled(self, stream: Any, held: int) -> np.ndarray:
        """Read the array, and nothing else, from a stream of `held` bytes of deflate."""
        self.check_size(min(self.nbytes, DEFLATE_RATIO * held + NPY_HEADER_BYTES))
        check_compression(self.nbytes, held)
        buffer = np.empty(self.nbytes, np.uint8)
        at = 0
        while at < self.nbytes:
            count = stream.readinto(buffer.data[at : at + CHUNK_BYTES])
            if not count:
                break
            at += count
        self.check_size(at + len(stream.read(1)))
        order: Any = self.order
        return _native(buffer.view(self.dtype).reshape(self.shape, order=order))

    def check_size(self, held: int) -> None:
        """Raise unless a file holds as many bytes of data as its header claims."""
        if held == self.nbytes:
            return
        bound = "no more than" if held < self.nbytes else "at least"
        raise ValueError(
            f"its header wants {self.nbytes:,} bytes of data, and there are {bound} {held:,}: it "
            "is damaged"
        )


def _native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, the only one that PyTorch has."""
    if array.dtype.isnative:
        return array
    return np.asarray(array).astype(array.dtype.newbyteorder("="))


def _exactly(stream: Any, n: int) -> bytes:
    """The next n bytes of a header."""
    data: bytes = stream.read(n)
    if len(data) != n:
        raise ValueError("it ends within its header")
    return data


def _npy_header(stream: Any) -> tuple[_Layout, int]:
    """The layout of the array of a .npy stream, and where its data begin (NEP 1)."""
    magic = stream.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in _NPY_VERSIONS:
        raise ValueError("its first bytes are not those of a .npy array")
    code, width = ("<I", 4) if magic[6] > 1 else ("<H", 2)
    (length,) = struct.unpack(code, _exactly(stream, width))
    if length > NPY_HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes, more than {NPY_HEADER_BYTES:,}")
    encoding = "utf-8" if magic[6] == 3 else "latin1"
    text = _exactly(stream, length).decode(encoding)
    try:
        header = ast.literal_eval(text.strip())
        descr = header["descr"]
        shape = header["shape"]
        order = "F" if header["fortran_order"] else "C"
        whole = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
        valid = whole and len(header) == 3
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        valid = False
    if not valid:
        raise ValueError("its header is not that of a .npy array")
    if not isinstance(descr, str) or not _NPY_DTYPE.fullmatch(descr):
        what = f"elements of type {descr!r:.40}"
        if "O" in str(descr):
            what = "Python objects, which only a pickle can hold"
        raise ValueError(f"it holds {what}; wanted numbers: nothing is unpickled here")
    return _Layout(np.dtype(descr), shape, order), 8 + width + length


def npy(path: Path, request: Request) -> Samples:
    """Map an array."""
    request.conditions_in(())
    with path.open("rb") as stream:
        layout, start = _npy_header(stream)
    layout.check_size(path.stat().st_size - start)
    return Samples(layout.mapped(path, start))


def npz(path: Path, request: Request) -> Samples:
    """Map or read the array of samples, and those of conditions."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        members = {info.filename.removesuffix(".npy"): info for info in infos}
        if len(members) < len(infos):
            raise ValueError("two of its arrays have the same name")
        fields = request.conditions_in(members)
        rest = [name for name in members if name not in request.wanted()]
        name = request.samples or (rest[0] if len(rest) == 1 else "x")
        if name not in members:
            raise ValueError(
                f"it has no array {name!r}; say which holds the samples, samples=. "
                f"{nearest(name, members)}"
            )
        values = _member(path, archive, members[name])
        return with_conditions(values, fields, lambda name: _member(path, archive, members[name]))


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Map or read one array of an archive."""
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{info.filename!r} is encrypted, or packed in a way that np.savez never does"
        )
    size = path.stat().st_size
    with archive.open(info) as stream:
        layout, start = _npy_header(stream)
        layout.check_size(info.file_size - start)
        if info.compress_type == zipfile.ZIP_STORED:
            start += _stored_at(path, info)
            if start + layout.nbytes > size:
                raise ValueError(f"{info.filename!r} reaches beyond the end of the file")
            # PyTorch needs aligned numbers.
            if start % layout.dtype.itemsize == 0:
                return layout.mapped(path, start)
        return layout.filled(stream, min(info.compress_size, size))


def _stored_at(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the data of an archive's member begin: after its local header, name and extra field."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", _exactly(file, 4))
    return info.header_offset + 30 + int(name) + int(extra)


def _idx_array(path: Path) -> np.ndarray:
    """Map an IDX file, or read a compressed one."""
    packed = path.suffix.lower() == ".gz"
    held = regular(path).stat().st_size
    with gzip.open(path) if packed else path.open("rb") as stream:
        magic = _exactly(stream, 4)
        if magic[:2] != b"\0\0" or magic[2] not in IDX_DTYPES or not magic[3]:
            raise ValueError(
                f"it is no IDX file: it begins with 0x{magic.hex()}, wanted 0x0000, a type (0x08 "
                "…) and a rank"
            )
        rank = magic[3]
        shape = struct.unpack(f">{rank}I", _exactly(stream, 4 * rank))
        layout = _Layout(np.dtype(IDX_DTYPES[magic[2]]), shape)
        if packed:
            return layout.filled(stream, held)
    start = 4 + 4 * rank
    layout.check_size(held - start)
    return layout.mapped(path, start)


def idx(path: Path, request: Request) -> Samples:
    """Map or read an IDX file; three axes are images of one channel."""
    request.conditions_in(())
    values = _idx_array(path)
    if values.ndim == 3:
        values = values[:, None]
    return Samples(values)


def idx_folder(path: Path, request: Request) -> Samples:
    """Read the images and labels of a split."""
    images = _idx_file(path, request.split, "images")
    labels = _idx_file(path, request.split, "labels")
    return labelled(idx(images, Request({})).values, _idx_array(labels), (), request)


def _idx_file(path: Path, split: str, what: str) -> Path:
    """The only IDX file of a split's images or labels; a plain one is preferred to its .gz."""
    pattern = rf"(.*[-_])?({IDX_SPLITS[split]})[-.]{what}[-.]idx\d-ubyte(\.gz)?"
    names = [
        name for name in sorted(os.listdir(path), reverse=True) if re.fullmatch(pattern, name)
    ]
    files = {name.removesuffix(".gz"): name for name in names}
    if len(files) != 1:
        have = f"several: {', '.join(sorted(files))}" if files else "none"
        raise ValueError(
            f"wanted one file of {split} {what}, such as {IDX_EXAMPLES[split].format(what)}; there "
            f"is {have}"
        )
    return path / next(iter(files.values()))


def cifar_folder(path: Path, request: Request) -> Samples:
    """Read the records of a split, and the names of the classes if the folder has them."""
    meta = path / "batches.meta.txt"
    names = tuple(meta.read_text(encoding="utf-8").split()) if meta.is_file() else ()
    return _cifar_records([path / name for name in CIFAR_FILES[request.split]], names, request)


def cifar_file(path: Path, request: Request) -> Samples:
    """Read the records of one file."""
    return _cifar_records([path], (), request)


def _cifar_records(paths: list[Path], names: tuple[str, ...], request: Request) -> Samples:
    """Read the records of several files: a byte of label, then the planes red, green, blue."""
    size = 1 + math.prod(CIFAR_SHAPE)
    batches: list[np.ndarray] = []
    for path in paths:
        held = regular(path).stat().st_size
        if not held or held % size:
            raise ValueError(
                f"{path.name} has {held:,} bytes, which is no whole number of CIFAR-10 records of "
                f"{size:,}: it is cut"
            )
        batch = np.memmap(path, np.uint8, "r", shape=(held // size, size))
        if int(batch[:, 0].max()) >= CIFAR_CLASSES:
            raise ValueError(f"{path.name} has a label above 9: it holds no CIFAR-10 records")
        batches.append(batch)
    values = np.concatenate([batch[:, 1:] for batch in batches]).reshape(-1, *CIFAR_SHAPE)
    labels = np.concatenate([batch[:, 0] for batch in batches])
    return labelled(values, labels, names, request)
