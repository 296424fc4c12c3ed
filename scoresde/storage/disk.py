"""Plain files: read whole without following links, written and flushed before they count."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..common.errors import CheckpointError

_FLAG_NAMES = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC")
OPEN_FLAGS = sum(getattr(os, name, 0) for name in _FLAG_NAMES)
"""Flags of `os.open` that this system has: follow no link, wait for no pipe, change no bytes."""

_NO_FSYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of network file systems that can't flush a folder."""


def file_names(folder: str | os.PathLike[str]) -> list[str]:
    """Names in a folder; none if there is no folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.strerror or error}") from None


def read_file(path: Path, limit: int) -> bytes | None:
    """The bytes of a plain file; None, and nothing read, if there are more than `limit`."""
    try:
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | OPEN_FLAGS)
        ) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} can't be read: it is not a plain file")
            return None if status.st_size > limit else file.read(status.st_size)
    except CheckpointError:
        raise
    except MemoryError:
        raise CheckpointError(f"{path} can't be read: it does not fit into memory") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.ELOOP:
            reason = "it is a link, and links are not followed"
        raise CheckpointError(f"{path} can't be read: {reason}") from None


def write_file(path: Path, pieces: Iterable[Any]) -> tuple[int, str]:
    """Write a new file and flush it to the disk; return its size in bytes and its SHA-256."""
    size = 0
    sha = hashlib.sha256()
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
            sha.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, sha.hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(fd)
