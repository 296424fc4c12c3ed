"""Where pairs go while they are drawn: into memory, or into a folder that holds them part by part.

A folder of pairs holds a record `pairs` of `scoresde.storage` and arrays as numpy writes them, a row for each pair:

    x.npy, latent.npy, given-0.npy, given-1.npy, …

Each part is flushed to the disk before the record says so, with the SHA-256 of its bytes in each file. The first part of a file
has the header with it, so that every byte is accounted for. Files grow by plain writes, as a full disk must be an error and not
a crash. A run that was killed goes on at the first part that is missing or damaged; as pair i depends on the seed and i alone,
it ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from . import storage
from .errors import CheckpointError
from .random import draw_seed

RECORD = "pairs"
TYPES = ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "|u1", "|b1")  # of numbers in a folder
PROBED = 16  # pairs that are drawn again to see that the model is the one that drew them
CLOSE = 1e-2  # … and how close most of them have to come, in units of the data's scale: devices round differently


class Store(Protocol):
    """Where pairs go: the seed they depend on, how many there are, and how many are drawn together."""

    seed: int
    done: int
    rows: int

    def put(self, columns: list[Tensor]) -> None:
        """Take the next part: x, latent and the conditions."""
        ...

    def columns(self) -> tuple[list[Any], dict[str, Tensor]]:
        """Return [x, latent] and the conditions, all of them."""
        ...


class Memory:
    """Pairs in memory."""

    def __init__(self, columns: Mapping[str, Tensor], n: int, rows: int, generator: torch.Generator | None) -> None:
        self.seed, self.done, self.rows, self._names, self._n = draw_seed(generator), 0, rows, list(columns), n
        self._columns: list[Tensor] = []

    def put(self, columns: list[Tensor]) -> None:
        """Take the next part."""
        if not self._columns:
            self._columns = [value.new_empty((self._n, *value.shape[1:])) for value in columns]
        for column, value in zip(self._columns, columns, strict=True):
            column[self.done : self.done + len(value)] = value
        self.done += len(columns[0])

    def columns(self) -> tuple[list[Any], dict[str, Tensor]]:
        """Return [x, latent] and the conditions."""
        return self._columns[:2], dict(zip(self._names[2:], self._columns[2:], strict=True))


class Folder:
    """Pairs in a folder, all of them or the first `done`.

    `about` says n, rows, seed, the settings, and of each file its condition's name, its dtype, the shape of a row and its header;
    `digests[k, j]` is the SHA-256 of part k of file j.
    """

    def __init__(self, folder: Path, about: dict[str, Any], digests: Tensor) -> None:
        self._folder, self._about = folder, about
        self.seed, self.n, self.rows, self.done = (about[name] for name in ("seed", "n", "rows", "done"))
        self._names, self.settings = about["names"], about["settings"]
        if not all(type(k) is int for k in (self.seed, self.n, self.rows, self.done)) or not 0 <= self.done <= self.n:
            raise ValueError("its numbers are not those of pairs")
        if not isinstance(about["settings"], dict) or self.rows < 1 or (self.done % self.rows and self.done < self.n):
            raise ValueError("its parts are not those of pairs")
        self._types = [np.dtype(dtype) for dtype in about["dtypes"] if dtype in TYPES]
        self._shapes = [tuple(shape) for shape in about["shapes"]]
        self._headers = [bytes.fromhex(header) for header in about["headers"]]
        self._files = ["x.npy", "latent.npy", *(f"given-{i}.npy" for i in range(len(self._names)))]
        self._widths = [math.prod(s) * t.itemsize for s, t in zip(self._shapes, self._types, strict=True)]
        self._digests = digests
        if {len(self._files), len(self._headers)} != {len(self._widths)} or digests.dtype != torch.uint8:
            raise ValueError("its files are not those of pairs")
        if digests.shape != (-(-self.done // self.rows), len(self._files), 32):
            raise ValueError("it has another number of parts than pairs")

    @classmethod
    def read(cls, folder: Path) -> Folder:
        """What is there, by its record."""
        about, tensors = storage.read(folder, RECORD)
        try:
            return cls(folder, about, tensors["digests"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder / RECORD}.json is not of pairs: {storage.brief(error)}; use another copy") from None

    @classmethod
    def begun(
        cls,
        folder: Path,
        columns: Mapping[str, Tensor],
        n: int,
        rows: int,
        generator: torch.Generator | None,
        settings: dict[str, Any],
    ) -> Folder:
        """What is there to go on with, or a new beginning. The record comes first: it is what makes the folder ours."""
        storage.sweep(folder)
        kinds = [_numpy(name, value) for name, value in columns.items()]
        shapes = [list(value.shape[1:]) for value in columns.values()]
        about: dict[str, Any] = {"n": n, "names": list(columns)[2:], "dtypes": kinds, "shapes": shapes, "settings": settings}
        if (folder / f"{RECORD}.json").exists():
            there = cls.read(folder)
            there._compare(about)
            there._keep(there._sound()[0])
            return there
        about |= {"seed": draw_seed(generator), "rows": rows, "done": 0}
        about["headers"] = [_header(kind, (n, *shape)).hex() for kind, shape in zip(kinds, shapes, strict=True)]
        new = cls(folder, about, torch.empty((0, len(columns), 32), dtype=torch.uint8, device="cpu"))
        storage.write(folder, RECORD, {"digests": new._digests}, about)
        return new

    def _compare(self, now: Mapping[str, Any]) -> None:
        """Raise unless the folder was begun with these."""
        before = {"n": self.n, **self._about["settings"], **self._about}
        wanted = {"n": now["n"], **now["settings"], **now}
        for name in {**wanted, **self._about["settings"]}:  # what was said by the caller before what follows from it
            if before.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"the pairs in {self._folder} were begun with {name}={before.get(name)!r}, and now it is "
                    f"{wanted.get(name)!r}; go on with the same, or choose another folder"
                )

    def _span(self, j: int, first: int, stop: int) -> tuple[int, int]:
        """Where pairs first to stop are in file j; the header is with the first."""
        header = len(self._headers[j])
        return header * bool(first) + first * self._widths[j], header + stop * self._widths[j]

    def _sound(self) -> tuple[int, str]:
        """How many pairs have, in all files, the bytes that were written; and in which file the next has not."""
        with contextlib.ExitStack() as stack:
            opened: list[BinaryIO] = []
            for name in self._files if self.done else ():
                try:
                    opened.append(stack.enter_context(_opened(self._folder / name)))
                except OSError as error:
                    return 0, f"{name}, which can't be read: {error.strerror or error}"
            for k, digests in enumerate(self._digests):
                first, stop = k * self.rows, min((k + 1) * self.rows, self.done)
                for j, file in enumerate(opened):
                    start, end = self._span(j, first, stop)
                    file.seek(start)
                    if hashlib.sha256(file.read(end - start)).digest() != bytes(digests[j].tolist()):
                        return first, self._files[j]
        return self.done, ""

    def _keep(self, sound: int) -> None:
        """Go on after the pairs that are sound."""
        if sound < self.done:
            warnings.warn(f"{self._folder} is damaged from pair {sound} of {self.done} on; they are drawn again", stacklevel=4)
            self._digests, self.done = self._digests[: sound // self.rows], sound
        elif self.done == self.n:  # nothing will be written, and nothing may follow
            with _disk(self._folder):
                for j, name in enumerate(self._files):
                    if (self._folder / name).stat().st_size > (end := self._span(j, 0, self.n)[1]):
                        os.truncate(self._folder / name, end)

    def recognize(self, draw: Callable[[int, int, int], list[Tensor]], scale: Tensor) -> None:
        """Raise unless the first pairs come out again: whatever settings do not say of a model, its samples do."""
        if not self.done:
            return
        k = min(PROBED, self.done)
        again = [value.cpu().double() for value in draw(self.seed, 0, k)[:2]]
        for j, value in enumerate(again):
            with _opened(self._folder / self._files[j]) as file:
                rows = np.fromfile(file, self._types[j], k * math.prod(self._shapes[j]), offset=len(self._headers[j]))
            unit = scale.cpu().double()
            off = (torch.from_numpy(rows).double().reshape(value.shape) - value).abs() / torch.where(unit == 0, 1, unit)
            if not float(off.flatten(1).amax(1).median()) < CLOSE:
                raise CheckpointError(
                    f"the pairs in {self._folder} are of another model, or another source: drawn again, the first come out "
                    f"elsewhere ({self._files[j]}); go on with the same, or choose another folder"
                )

    def put(self, columns: list[Tensor]) -> None:
        """Append a part: the files, then the record that says so."""
        first, stop = self.done, self.done + len(columns[0])
        digests = []
        with _disk(self._folder):
            for j, (value, kind) in enumerate(zip(columns, self._types, strict=True)):
                start, end = self._span(j, first, stop)
                data = np.ascontiguousarray(value.cpu().float().numpy() if value.dtype == torch.bfloat16 else value.cpu().numpy())
                pieces = [b"" if first else self._headers[j], data.astype(kind, copy=False).tobytes()]
                with _opened(self._folder / self._files[j], write=True) as file:
                    file.seek(start)
                    file.writelines(pieces)
                    file.truncate(end)  # behind it may be what a run that was killed wrote and no record names
                    file.flush()
                    os.fsync(file.fileno())
                digests.append(hashlib.sha256(b"".join(pieces)).digest())
        self._digests = torch.cat(
            [self._digests, torch.tensor([list(each) for each in digests], dtype=torch.uint8, device="cpu")[None]]
        )
        self.done = stop
        storage.write(self._folder, RECORD, {"digests": self._digests}, {**self._about, "done": stop})
        storage.sweep(self._folder)

    def columns(self) -> tuple[list[Any], dict[str, Tensor]]:
        """Return [x, latent], memory-mapped, and the conditions; all bytes are checked."""
        on = "reflow with this folder as out= and the same arguments"
        if self.done < self.n:
            raise CheckpointError(f"{self._folder} holds {self.done} of {self.n} pairs: {on} goes on with it")
        sound, where = self._sound()
        if sound < self.n:
            raise CheckpointError(f"{self._folder} is damaged from pair {sound} on, in {where}: {on} draws them again")
        arrays = []
        with _disk(self._folder, "read"):
            for j, name in enumerate(self._files):
                with _opened(self._folder / name) as file:
                    if os.fstat(file.fileno()).st_size != self._span(j, 0, self.n)[1]:
                        raise CheckpointError(f"{self._folder / name} is damaged: it is longer than was written; {on} cuts it")
                    place = {"mode": "r", "offset": len(self._headers[j]), "shape": (self.n, *self._shapes[j])}
                    arrays.append(np.memmap(file, self._types[j], **cast("Any", place)))
        rest = zip(self._names, arrays[2:], strict=True)
        return arrays[:2], {name: torch.from_numpy(native(value)) for name, value in rest}


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder that pairs can be written to, or say why not."""
    with storage.Lock(folder):
        with _disk(folder):
            others = {name for name in os.listdir(folder) if not name.startswith(".")} - set(storage.leftovers(folder))
        if others and f"{RECORD}.json" not in others:
            raise CheckpointError(f"{folder} holds something that is not pairs of ours; choose another folder")
        yield


@contextlib.contextmanager
def _disk(folder: Path, verb: str = "write") -> Iterator[None]:
    """Say of what the system does not let us do, which folder it was; what was saved before is as it was."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"can't {verb} the pairs in {folder}: {error.strerror or error}") from error


def _opened(path: Path, *, write: bool = False) -> BinaryIO:
    """Open a plain file; no link is followed, no pipe waited for."""
    extra = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))
    mode = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
    return open(os.open(path, mode | extra, 0o666), "r+b" if write else "rb")


def _numpy(name: str, value: Tensor) -> str:
    """The dtype that a column has in a file."""
    dtype = torch.float32 if value.dtype == torch.bfloat16 else value.dtype  # which numpy does not have
    kind = np.dtype(str(dtype).removeprefix("torch.")).newbyteorder("<").str if not dtype.is_complex else ""
    if kind not in TYPES:
        raise TypeError(f"condition {name!r} is of {value.dtype}, which pairs on disk can't hold; give it as float or int64")
    return kind


def _header(kind: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def native(value: Any) -> Any:
    """A copy in memory, in the machine's byte order."""
    return np.array(value, value.dtype.newbyteorder("="), subok=False)
