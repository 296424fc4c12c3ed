"""Where pairs go while they are drawn: into memory, or into a folder, part by part.

A folder of pairs holds a record `pairs` of `scoresde.storage.records`, and arrays as numpy writes
them, with a row for each pair:

    x.npy, latent.npy, given-0.npy, given-1.npy, …

Each part is flushed to the disk before the record names it, with the SHA-256 of its bytes in each
file. The header of a file belongs to its first part, so that every byte is accounted for. Files
grow by plain writes, as a full disk must be an error and not a crash. An interrupted run continues
at the first part that is missing or damaged; as pair i depends on the seed and i alone, it ends
with the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..common.errors import CheckpointError, one_line
from ..common.random import draw_seed
from ..common.user_warnings import warn
from ..storage import records as storage
from ..storage.disk import OPEN_FLAGS
from ..storage.lock import Lock

RECORD = "pairs"
DTYPES = ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "|u1", "|b1")
"""Dtypes of numbers in a folder."""
PROBED_PAIRS = 16
"""Pairs that are drawn again, to check that the model is the same …"""
MOST_OFF = 1e-2
"""… and how far most may be off, in units of the data's scale: devices round differently."""

Draw = Callable[[int, int, int], list[Tensor]]
"""Draws pairs from a seed, a first number and a last: x, latent and the conditions."""


class Store(Protocol):
    """Where pairs go."""

    seed: int
    """What all pairs depend on."""
    done: int
    """Pairs that are stored."""
    rows: int
    """Pairs of a part."""

    def put(self, columns: list[Tensor]) -> None:
        """Store the next part: x, latent and the conditions."""
        ...

    def columns(self) -> tuple[list[Any], dict[str, Tensor]]:
        """[x, latent] and the conditions, of all pairs."""
        ...


class MemoryStore:
    """Pairs in memory."""

    def __init__(
        self, columns: Mapping[str, Tensor], n: int, rows: int, generator: torch.Generator | None
    ) -> None:
        self.seed = draw_seed(generator)
        self.done = 0
        self.rows = rows
        self._n = n
        self._names = list(columns)
        self._columns: list[Tensor] = []

    def put(self, columns: list[Tensor]) -> None:
        """Store the next part."""
        if not self._columns:
            self._columns = [value.new_empty((self._n, *value.shape[1:])) for value in columns]
        for column, value in zip(self._columns, columns, strict=True):
            column[self.done : self.done + len(value)] = value
        self.done += len(columns[0])

    def columns(self) -> tuple[list[Any], dict[str, Tensor]]:
        """[x, latent] and the conditions."""
        return self._columns[:2], dict(zip(self._names[2:], self._columns[2:], strict=True))


class FolderStore:
    """Pairs in a folder: all n of them, or the first `done`."""

    def __init__(self, folder: Path, about: dict[str, Any], digests: Tensor) -> None:
        # `about` has, of each file, the condition's name, the dtype, the shape of a row and the
        # header. digests[k, j] is the SHA-256 of part k of file j.
        self._folder = folder
        self._about = about
        self.seed = about["seed"]
        self.n = about["n"]
        self.rows = about["rows"]
        self.done = about["done"]
        self.settings = about["settings"]
        self._names = about["names"]
        numbers = (self.seed, self.n, self.rows, self.done)
        if not all(type(k) is int for k in numbers) or not 0 <= self.done <= self.n:
            raise ValueError("its numbers are not those of pairs")
        unfinished_part = self.rows < 1 or (self.done % self.rows and self.done < self.n)
        if not isinstance(self.settings, dict) or unfinished_part:
            raise ValueError("its parts are not those of pairs")
        self._dtypes = [np.dtype(dtype) for dtype in about["dtypes"] if dtype in DTYPES]
        self._shapes = [tuple(shape) for shape in about["shapes"]]
        self._headers = [bytes.fromhex(header) for header in about["headers"]]
        self._files = ["x.npy", "latent.npy", *(f"given-{i}.npy" for i in range(len(self._names)))]
        self._row_bytes = [
            math.prod(shape) * dtype.itemsize
            for shape, dtype in zip(self._shapes, self._dtypes, strict=True)
        ]
        self._digests = digests
        counts = {len(self._files), len(self._headers)}
        if counts != {len(self._row_bytes)} or digests.dtype != torch.uint8:
            raise ValueError("its files are not those of pairs")
        if digests.shape != (-(-self.done // self.rows), len(self._files), 32):
            raise ValueError("it has another number of parts than pairs")

    @classmethod
    def read(cls, folder: Path) -> FolderStore:
        """The store that a folder's record describes."""
        about, tensors = storage.read(folder, RECORD)
        try:
            return cls(folder, about, tensors["digests"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{folder / RECORD}.json is not of pairs: {one_line(error)}; use another copy"
            ) from None

    @classmethod
    def begin_or_continue(
        cls,
        folder: Path,
        columns: Mapping[str, Tensor],
        n: int,
        rows: int,
        generator: torch.Generator | None,
        settings: dict[str, Any],
    ) -> FolderStore:
        """The store that is there, without damaged parts, or a new one."""
        storage.sweep(folder)
        dtypes = [_file_dtype(name, value) for name, value in columns.items()]
        shapes = [list(value.shape[1:]) for value in columns.values()]
        about: dict[str, Any] = {
            "n": n,
            "names": list(columns)[2:],
            "dtypes": dtypes,
            "shapes": shapes,
            "settings": settings,
        }
        if (folder / f"{RECORD}.json").exists():
            there = cls.read(folder)
            there._check_same(about)
            there._drop_damaged()
            return there
        about |= {"seed": draw_seed(generator), "rows": rows, "done": 0}
        about["headers"] = [
            _npy_header(dtype, (n, *shape)).hex()
            for dtype, shape in zip(dtypes, shapes, strict=True)
        ]
        digests = torch.empty((0, len(columns), 32), dtype=torch.uint8, device="cpu")
        new = cls(folder, about, digests)
        # The record comes first: it is what makes the folder ours.
        storage.write(folder, RECORD, {"digests": digests}, about)
        return new

    def _check_same(self, now: Mapping[str, Any]) -> None:
        """Raise unless the pairs were begun with the same number, columns and settings."""
        before = {"n": self.n, **self.settings, **self._about}
        wanted = {"n": now["n"], **now["settings"], **now}
        for name in {**wanted, **self.settings}:
            if before.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"the pairs in {self._folder} were begun with {name}={before.get(name)!r}, and "
                    f"now it is {wanted.get(name)!r}; go on with the same, or choose another folder"
                )

    def _byte_range(self, j: int, first: int, stop: int) -> tuple[int, int]:
        """Where pairs first to stop − 1 are in file j; the header goes with the first."""
        header = len(self._headers[j])
        start = header + first * self._row_bytes[j] if first else 0
        return start, header + stop * self._row_bytes[j]

    def _undamaged(self) -> tuple[int, str]:
        """Pairs whose bytes are as written in all files, and which file is wrong after them."""
        with contextlib.ExitStack() as stack:
            files: list[BinaryIO] = []
            for name in self._files if self.done else ():
                try:
                    files.append(stack.enter_context(_open(self._folder / name)))
                except OSError as error:
                    return 0, f"{name}, which can't be read: {error.strerror or error}"
            for k, digests in enumerate(self._digests):
                first = k * self.rows
                stop = min(first + self.rows, self.done)
                for j, file in enumerate(files):
                    start, end = self._byte_range(j, first, stop)
                    file.seek(start)
                    digest = hashlib.sha256(file.read(end - start)).digest()
                    if digest != bytes(digests[j].tolist()):
                        return first, self._files[j]
        return self.done, ""

    def _drop_damaged(self) -> None:
        """Forget the first damaged part and all after it; cut what follows the last pair."""
        undamaged, _ = self._undamaged()
        if undamaged < self.done:
            warn(
                f"{self._folder} is damaged from pair {undamaged} of {self.done} on; they are "
                "drawn again",
            )
            self._digests = self._digests[: undamaged // self.rows]
            self.done = undamaged
        elif self.done == self.n:
            with _named_errors(self._folder):
                for j, name in enumerate(self._files):
                    end = self._byte_range(j, 0, self.n)[1]
                    if (self._folder / name).stat().st_size > end:
                        os.truncate(self._folder / name, end)

    def check_model(self, draw: Draw, scale: Tensor) -> None:
        """Raise unless the first pairs come out again: settings do not tell all models apart."""
        if not self.done:
            return
        k = min(PROBED_PAIRS, self.done)
        unit = scale.cpu().double()
        unit = torch.where(unit == 0, 1, unit)
        again = [value.cpu().double() for value in draw(self.seed, 0, k)[:2]]
        for j, value in enumerate(again):
            count = k * math.prod(self._shapes[j])
            with _open(self._folder / self._files[j]) as file:
                rows = np.fromfile(file, self._dtypes[j], count, offset=len(self._headers[j]))
            before = torch.from_numpy(rows).double().reshape(value.shape)
            off = (before - value).abs() / unit
            if not float(off.flatten(1).amax(1).median()) < MOST_OFF:
                raise CheckpointError(
                    f"the pairs in {self._folder} are of another model, or another source: drawn "
                    f"again, the first come out elsewhere ({self._files[j]}); go on with the same, "
                    "or choose another folder"
                )

    def put(self, columns: list[Tensor]) -> None:
        """Append a part: the files, then the record that names it."""
        stop = self.done + len(columns[0])
        with _named_errors(self._folder):
            digests = [self._append(j, value, stop) for j, value in enumerate(columns)]
        part = torch.tensor([list(digest) for digest in digests], dtype=torch.uint8, device="cpu")
        self._digests = torch.cat([self._digests, part[None]])
        self.done = stop
        about = {**self._about, "done": stop}
        storage.write(self._folder, RECORD, {"digests": self._digests}, about)
        storage.sweep(self._folder)

    def _append(self, j: int, value: Tensor, stop: int) -> bytes:
        """Append pairs up to stop − 1 to file j, flush it, and return the SHA-256 of the part."""
        value = value.cpu()
        if value.dtype == torch.bfloat16:
            value = value.float()
        rows = np.ascontiguousarray(value.numpy()).astype(self._dtypes[j], copy=False)
        header = b"" if self.done else self._headers[j]
        pieces = [header, rows.tobytes()]
        start, end = self._byte_range(j, self.done, stop)
        with _open(self._folder / self._files[j], write=True) as file:
            file.seek(start)
            file.writelines(pieces)
            file.truncate(end)  # an interrupted run may have written more, which no record names
            file.flush()
            os.fsync(file.fileno())
        return hashlib.sha256(b"".join(pieces)).digest()

    def columns(self) -> tuple[list[Any], dict[str, Tensor]]:
        """[x, latent], memory-mapped, and the conditions; all bytes are checked."""
        on = "reflow with this folder as out= and the same arguments"
        if self.done < self.n:
            raise CheckpointError(
                f"{self._folder} holds {self.done} of {self.n} pairs: {on} goes on with it"
            )
        undamaged, where = self._undamaged()
        if undamaged < self.n:
            raise CheckpointError(
                f"{self._folder} is damaged from pair {undamaged} on, in {where}: {on} draws them "
                "again"
            )
        arrays = []
        with _named_errors(self._folder, "read"):
            for j, name in enumerate(self._files):
                with _open(self._folder / name) as file:
                    if os.fstat(file.fileno()).st_size != self._byte_range(j, 0, self.n)[1]:
                        raise CheckpointError(
                            f"{self._folder / name} is damaged: it is longer than was written; "
                            f"{on} cuts it"
                        )
                    place: Any = {
                        "mode": "r",
                        "offset": len(self._headers[j]),
                        "shape": (self.n, *self._shapes[j]),
                    }
                    arrays.append(np.memmap(file, self._dtypes[j], **place))
        rest = zip(self._names, arrays[2:], strict=True)
        return arrays[:2], {name: torch.from_numpy(native(value)) for name, value in rest}


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Lock a folder that pairs can be written to, or raise."""
    with Lock(folder):
        with _named_errors(folder):
            names = {name for name in os.listdir(folder) if not name.startswith(".")}
            others = names - set(storage.leftovers(folder))
        if others and f"{RECORD}.json" not in others:
            raise CheckpointError(
                f"{folder} holds something that is not pairs of ours; choose another folder"
            )
        yield


@contextlib.contextmanager
def _named_errors(folder: Path, verb: str = "write") -> Iterator[None]:
    """Turn an OSError into a CheckpointError that names the folder."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"can't {verb} the pairs in {folder}: {error.strerror or error}"
        ) from error


def _open(path: Path, *, write: bool = False) -> BinaryIO:
    """Open a plain file; no link is followed, no pipe waited for."""
    flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
    mode: Literal["r+b", "rb"] = "r+b" if write else "rb"
    return open(os.open(path, flags | OPEN_FLAGS, 0o666), mode)


def _file_dtype(name: str, value: Tensor) -> str:
    """The dtype that a column has in a file."""
    dtype = torch.float32 if value.dtype == torch.bfloat16 else value.dtype
    text = ""
    if not dtype.is_complex:
        text = np.dtype(str(dtype).removeprefix("torch.")).newbyteorder("<").str
    if text not in DTYPES:
        raise TypeError(
            f"condition {name!r} is of {value.dtype}, which pairs on disk can't hold; give it as "
            "float or int64"
        )
    return text


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file."""
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def native(value: Any) -> Any:
    """A copy of an array in memory, in the machine's byte order."""
    return np.array(value, value.dtype.newbyteorder("="), subok=False)
