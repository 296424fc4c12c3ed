"""Records: what was written is read back whole, or refused; it is never read back changed.

A *record* is a pair of files in one folder:

    <stem>.json                              what it is, in plain JSON, with the size and SHA-256 of its tensors
    <stem>-<12 hexadecimals>.safetensors     the tensors, named by the first digits of their SHA-256

The JSON carries a seal over itself. With b its bytes up to the last entry, and H the SHA-256 in hexadecimals, the file is

    b ‖ s(b),    s(b) = ',\\n  "sha256": "' ‖ H(b) ‖ '"\\n}\\n',

and reading demands just these bytes, so that a flipped bit, a cut or an appended byte is found wherever it is. A seal finds
damage. It is not a signature: who can write to the folder can seal what they like, so reading trusts nothing but bytes. It
imports nothing, unpickles nothing, follows no links, and reads no more than was announced.

Writing goes through temporary files, each fsynced before it takes its name: first the tensors, then the JSON, which is what
makes a record exist. A write that is cut short, at any moment, leaves the previous record as it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .errors import CheckpointError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FORMAT = "scoresde-2"
LIMIT = 16 * 2**20  # bytes of JSON; ours have some thousands
LOCK = ".lock"

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_STEM = r"[a-z]+(?:-[0-9]{8})?"
_TENSORS = re.compile(rf"({_STEM})-[0-9a-f]{{12}}\.safetensors")
_PARTIAL = re.compile(rf"\.{_STEM}-[0-9a-f]{{8}}\.partial")
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))  # those the system has


def write(folder: str | os.PathLike[str], stem: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
    """Write a record: the tensors, then the JSON that makes it exist; a record of that name is replaced at that moment.

    The same tensors give the same bytes. No more than one tensor at a time is copied. The caller holds the `Lock`; the old
    record's tensors stay until `sweep`.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    stem : str
        Lower-case letters, or letters, a hyphen and eight digits: "model", "step-00000500".
    tensors : mapping of str to Tensor
        On any device, of the dtypes that `DTYPES` lists.
    about : mapping
        What JSON can say: strings, finite numbers, booleans, None, lists, dictionaries by strings.

    Returns
    -------
    Path
        Of the JSON.

    Raises
    ------
    TypeError, ValueError
        If the tensors or `about` can't be written so; nothing was.
    CheckpointError
        If the system can't: a full disk, a read-only folder. A record that was there is still there, and nothing else is.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write(folder, "model", {"w": torch.ones(2)}, {"width": 2})
    ...     read(folder, "model")
    ({'width': 2}, {'w': tensor([1., 1.])})
    """
    folder, path = Path(folder), _json(folder, stem)
    _body(about, "", 0)  # raises before anything is written
    pieces = _serialized(tensors)
    partials = [folder / f".{stem}-{secrets.token_hex(4)}.partial" for _ in range(2)]
    file = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        size, digest = _stream(partials[0], pieces)
        file = f"{stem}-{digest[:12]}.safetensors"
        os.replace(partials[0], folder / file)
        _sync(folder)  # the tensors have their name on the disk before the JSON says so
        _stream(partials[1], [seal(_body(about, f"{stem}-{digest}", size))])
        os.replace(partials[1], path)
        _sync(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            for partial in partials:
                partial.unlink(missing_ok=True)
            if file and file.encode() not in (path.read_bytes() if path.exists() else b""):
                (folder / file).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CheckpointError(f"can't write {path}: {error.strerror or error}") from error
        raise
    return path


def read(folder: str | os.PathLike[str], stem: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a record; its bytes are checked before anything in them is looked at.

    Parameters
    ----------
    folder : path
    stem : str
        As for `write`.

    Returns
    -------
    about : dict
    tensors : dict of str to Tensor
        On the CPU.

    Raises
    ------
    CheckpointError
        If there is no such record, or it is damaged, or it is not one of ours: which file, and what to do.

    Examples
    --------
    See `write`.
    """
    path = _json(folder, stem)
    record = _record(path)
    try:
        return record["about"], _tensors(path, record["tensors"])
    except CheckpointError:
        if _record(path)["sha256"] == record["sha256"]:
            raise
        return read(folder, stem)  # somebody replaced it while we read


def records(folder: str | os.PathLike[str], prefix: str) -> list[str]:
    """Return the stems `<prefix>NNNNNNNN` of the records in a folder, sorted; whether they are sound only `read` can tell.

    Parameters
    ----------
    folder : path
    prefix : str
        Such as "step-".

    Returns
    -------
    list of str

    Raises
    ------
    CheckpointError
        If the folder is there and can't be listed.

    Examples
    --------
    >>> records("no/such/folder", "step-")
    []
    """
    wanted = re.compile(rf"{re.escape(prefix)}[0-9]{{8}}\.json")
    return sorted(name.removesuffix(".json") for name in _names(folder) if wanted.fullmatch(name))


def remove(folder: str | os.PathLike[str], stem: str) -> None:
    """Remove a record: first the JSON, so that it ceases to exist at once, then its tensors. The caller holds the `Lock`.

    Parameters
    ----------
    folder : path
    stem : str
        As for `write`; a record that is not there is not an error.

    Raises
    ------
    CheckpointError
        If the system does not let us.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write(folder, "step-00000500", {}, {})
    ...     remove(folder, "step-00000500")
    ...     list(Path(folder).iterdir())
    []
    """
    path = _json(folder, stem)
    mine = [name for name in _names(folder) if (match := _TENSORS.fullmatch(name)) and match[1] == stem]
    try:
        path.unlink(missing_ok=True)
        for name in mine:
            (path.parent / name).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't remove {path}: {error.strerror or error}") from error


def leftovers(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names of what interrupted writes left behind: temporary files, and tensors that no JSON names.

    Parameters
    ----------
    folder : path

    Returns
    -------
    list of str
        Without the tensors of a record whose JSON is damaged: somebody may want to rescue them.

    Raises
    ------
    CheckpointError
        If the folder is there and can't be listed.

    Examples
    --------
    >>> leftovers("no/such/folder")
    []
    """
    names, named = _names(folder), dict[str, Any]()
    for stem in {match[1] for name in names if (match := _TENSORS.fullmatch(name))}:
        if f"{stem}.json" in names:
            try:
                named[stem] = _record(_json(folder, stem))["tensors"].get("file")
            except CheckpointError:
                continue
        else:
            named[stem] = ""
    orphans = [name for name in names if (match := _TENSORS.fullmatch(name)) and named.get(match[1], name) != name]
    return sorted(orphans + [name for name in names if _PARTIAL.fullmatch(name)])


def sweep(folder: str | os.PathLike[str]) -> None:
    """Delete what `leftovers` lists, and nothing else. The caller holds the `Lock`: another's write looks like a leftover.

    Parameters
    ----------
    folder : path

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / ".model-01234567.partial").write_bytes(b"cut sho")
    ...     sweep(folder)
    ...     list(Path(folder).iterdir())
    []
    """
    for name in leftovers(folder):
        with contextlib.suppress(OSError):  # it does no harm, and may go next time
            (Path(folder) / name).unlink()


class Lock:
    """One writer at a time: a context manager that holds `<folder>/.lock`, and is freed by the system if the process dies.

    Parameters
    ----------
    folder : path
        Made if it is not there.

    Raises
    ------
    CheckpointError
        On entering, if another process, or this one, is writing to the folder; or if it can't be written to.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Lock(folder):
    ...     with Lock(folder): pass
    Traceback (most recent call last):
    scoresde.errors.CheckpointError: ... is being written by this process already; ...
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.fd: int | None = None

    def __enter__(self) -> Lock:
        """Take it, or raise."""
        place, fd = self.folder / LOCK, -1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not _is(fd, place):  # who had it before us may have removed the file between our opening and locking it
                if fd >= 0:
                    os.close(fd)
                fd = os.open(place, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
                _grab(fd)
            with contextlib.suppress(OSError):  # a courtesy to who comes second
                os.ftruncate(fd, 0)
                os.write(fd, str(os.getpid()).encode())
        except BaseException as error:  # an interrupt, too, must not leave it locked
            if fd >= 0:
                os.close(fd)
            if not isinstance(error, OSError):
                raise
            if isinstance(error, BlockingIOError):
                who = _holder(place)
                raise CheckpointError(f"{self.folder} is being written by {who}; wait, or choose another folder") from None
            raise CheckpointError(f"can't write to {self.folder}: {error.strerror or error}") from error
        self.fd = fd
        _HELD.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Give it back, and leave no file."""
        fd, self.fd = self.fd, None
        if fd is not None:  # it is None in a child that was forked meanwhile: the lock is its parent's
            with contextlib.suppress(OSError):
                os.unlink(self.folder / LOCK)
            os.close(fd)


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forked() -> None:
    """Let go of the parent's locks: a data loader's worker that outlives a killed parent must not hold its folder."""
    for lock in list(_HELD):
        if lock.fd is not None:
            os.close(lock.fd)
            lock.fd = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _is(fd: int, place: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return fd >= 0 and os.path.samestat(os.fstat(fd), os.stat(place, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _holder(place: Path) -> str:
    with contextlib.suppress(OSError):
        pid = place.read_text(errors="replace")[:20]
        return "this process already" if pid == str(os.getpid()) else f"another process (pid {pid or 'unknown'})"
    return "another process"


def _grab(fd: int) -> None:
    """Lock an open file or raise BlockingIOError; where the file system has no locks, the folder is on its own."""
    try:
        if sys.platform == "win32":
            os.lseek(fd, 2**30, os.SEEK_SET)  # locks there are mandatory: keep off the bytes that say who has it
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise BlockingIOError from None
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise


def seal(body: bytes) -> bytes:
    """Return the bytes of a JSON file from those before its last entry.

    Parameters
    ----------
    body : bytes

    Returns
    -------
    bytes

    Examples
    --------
    >>> seal(b'{\\n  "a": 1')[:31]
    b'{\\n  "a": 1,\\n  "sha256": "d298ee'
    """
    return body + f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def brief(error: BaseException) -> str:
    """Return what an error says as one line of bounded length, though it may quote what a hostile file says.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    str

    Examples
    --------
    >>> brief(ValueError("two\\nlines"))
    'two lines'
    """
    text = " ".join(str(error)[:1000].split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def _json(folder: str | os.PathLike[str], stem: str) -> Path:
    if not isinstance(stem, str) or not re.fullmatch(_STEM, stem):
        raise ValueError(f"a record's name is letters, or letters, '-' and eight digits, such as step-00000500; got {stem!r}")
    return Path(folder) / f"{stem}.json"


def _names(folder: str | os.PathLike[str]) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.strerror or error}") from None


def _body(about: Mapping[str, Any], name: str, size: int) -> bytes:
    """The JSON before its seal; `name` is <stem>-<SHA-256 of the tensors>."""
    stem, _, digest = name.rpartition("-")
    entry = {"file": f"{stem}-{digest[:12]}.safetensors", "size": size, "sha256": digest}
    record = {"format": FORMAT, "tensors": entry, "about": dict(about)}
    body = json.dumps(record, indent=2, allow_nan=False).removesuffix("\n}").encode()
    if len(body) > LIMIT - 100:
        raise ValueError(f"a record's JSON has at most {LIMIT:,} bytes, got {len(body):,}; large things are tensors")
    return body


def _record(path: Path) -> dict[str, Any]:
    """Read and check a sealed JSON."""
    data = _bytes(path, LIMIT)
    if data is None:
        raise CheckpointError(f"{path} is larger than {LIMIT:,} bytes, as no record of ours is; it was not read")
    end = len(seal(b""))
    if len(data) < end or data != seal(data[:-end]):
        raise CheckpointError(f"{path} {_unsealed(data)}")
    try:
        record = _parse(data)
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{path} is not JSON as we write it: {brief(error)}; use another copy") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{path} {_foreign(record)}")
    if not isinstance(record.get("tensors"), dict) or not isinstance(record.get("about"), dict) or len(record) != 4:
        raise CheckpointError(f"{path} lacks what a record has, or has more; use another copy")
    return record


def _tensors(path: Path, entry: dict[str, Any]) -> dict[str, Tensor]:
    """Read and check the tensors that a JSON names."""
    file, size, digest = (entry.get(key) for key in ("file", "size", "sha256"))
    if not isinstance(digest, str) or file != f"{path.stem}-{digest[:12]}.safetensors" or not _TENSORS.fullmatch(file):
        raise CheckpointError(f"{path} names tensors that are not its own: {_shown(file)}; use a copy from a source you trust")
    place = path.parent / file
    data = _bytes(place, size if isinstance(size, int) else 0)
    if data is None or len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{place} is damaged: its size or SHA-256 is not the one in {path.name}; use another copy")
    try:
        if (length := int.from_bytes(data[:8], "little")) > LIMIT:
            raise ValueError(f"a header of {length:,} bytes")
        _parse(data[8 : 8 + length])  # its library lets a name come twice
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise CheckpointError(f"{place} is not a safetensors file: {brief(error)}; use another copy") from None
    return tensors


def _unsealed(data: bytes) -> str:
    """Why the seal of some bytes does not hold, as far as one can tell."""
    try:
        record = _parse(data)
    except (ValueError, RecursionError, MemoryError) as error:
        return f"is not JSON: {brief(error)}; it is damaged, or not ours"
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return _foreign(record)
    return "is damaged or was edited: its seal does not hold; use another copy"


def _foreign(record: object) -> str:
    found = record.get("format") if isinstance(record, dict) else type(record).__name__
    older = isinstance(found, str) and re.fullmatch(r"scoresde-[0-9]{1,3}", found)
    hint = "; save it again with this version" if older else ""
    return f"is not a {FORMAT} model (format: {_shown(found)}){hint}"


def _shown(value: object) -> str:
    """A string in quotes, cut; of anything else the type, as what is nested deeply can't even be printed."""
    return repr(value[:80]) if isinstance(value, str) else type(value).__name__


def _parse(data: bytes) -> Any:
    """JSON without what JSON should not have: NaN, infinities (also as 1e999), one key twice."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            raise ValueError("it says the same key twice")
        return found

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text[:40]} is not a finite number")
        return value

    return json.loads(data.decode(), object_pairs_hook=pairs, parse_float=finite, parse_constant=finite)


def _bytes(path: Path, limit: int) -> bytes | None:
    """The bytes of a plain file, or None for more than `limit`, unread. No link is followed, no pipe waited for."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _FLAGS)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} can't be read: it is not a plain file")
            return None if status.st_size > limit else file.read(status.st_size)
    except CheckpointError:
        raise
    except MemoryError:
        raise CheckpointError(f"{path} can't be read: it does not fit into memory") from None
    except (OSError, ValueError) as error:
        link = getattr(error, "errno", None) == errno.ELOOP
        reason = "it is a link, and links are not followed" if link else getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} can't be read: {reason}") from None


def _serialized(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """The pieces of a safetensors file, in the order of its own library (by size of element, then by name).

    Ours, as its library wants all tensors on the CPU and apart from one another, that is copied, before it writes the first.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, value in tensors.items():
        if not isinstance(name, str) or name == "__metadata__" or not isinstance(value, Tensor):
            raise TypeError(f"tensors are Tensors by name, got {name!r}: {type(value).__name__}")
        if value.dtype not in DTYPES or value.layout is not torch.strided:
            raise TypeError(f"tensor {name!r} is {value.layout} of {value.dtype}; dense {'/'.join(DTYPES.values())} are saved")
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        value = tensors[name]
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def pieces() -> Iterator[Any]:
        yield len(text).to_bytes(8, "little") + text
        for name in order:
            if tensors[name].numel():
                yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

    return pieces()


def _stream(path: Path, pieces: Iterable[Any]) -> tuple[int, str]:
    """Write a new file and wait until the disk has it; return its size and SHA-256."""
    size, sha = 0, hashlib.sha256()
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
            sha.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, sha.hexdigest()


def _sync(folder: Path) -> None:
    """Wait until the disk has the names in a folder, where the system can do so."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # some network file systems
            raise
    finally:
        os.close(fd)
