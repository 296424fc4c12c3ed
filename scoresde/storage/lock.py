"""One writer a folder: a lock file that the system frees when its process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import weakref
from pathlib import Path
from types import TracebackType

from ..common.errors import CheckpointError
from .disk import OPEN_FLAGS

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"

_HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


class Lock:
    """A context manager that holds `<folder>/.lock`; CheckpointError if another process does."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.fd: int | None = None

    def __enter__(self) -> Lock:
        """Take the lock, or raise."""
        place = self.folder / LOCK
        fd = -1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The holder before us may remove the file after we opened it and before we lock it.
            while not _is_named(fd, place):
                if fd >= 0:
                    os.close(fd)
                fd = os.open(place, os.O_RDWR | os.O_CREAT | OPEN_FLAGS, 0o666)
                _lock_file(fd)
            with contextlib.suppress(OSError):  # only for the error message of a second writer
                os.ftruncate(fd, 0)
                os.write(fd, str(os.getpid()).encode())
        except BaseException as error:  # an interrupt must not leave the folder locked
            if fd >= 0:
                os.close(fd)
            if not isinstance(error, OSError):
                raise
            if isinstance(error, BlockingIOError):
                raise CheckpointError(
                    f"{self.folder} is being written by {_holder(place)}; wait, or choose another "
                    "folder"
                ) from None
            raise CheckpointError(
                f"can't write to {self.folder}: {error.strerror or error}"
            ) from error
        self.fd = fd
        _HELD.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the file and free the lock."""
        fd = self.fd
        self.fd = None
        if fd is None:  # this process was forked meanwhile, and the lock is its parent's
            return
        with contextlib.suppress(OSError):
            os.unlink(self.folder / LOCK)
        os.close(fd)


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


def _close_in_child() -> None:
    """Close a parent's locks in its child: a data loader's worker may outlive the parent."""
    for lock in list(_HELD):
        if lock.fd is not None:
            os.close(lock.fd)
            lock.fd = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _is_named(fd: int, place: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return fd >= 0 and os.path.samestat(os.fstat(fd), os.stat(place, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _holder(place: Path) -> str:
    """Who holds a lock, for messages."""
    try:
        pid = place.read_text(errors="replace")[:20]
    except OSError:
        return "another process"
    if pid == str(os.getpid()):
        return "this process already"
    return f"another process (pid {pid or 'unknown'})"


def _lock_file(fd: int) -> None:
    """Lock an open file, or raise BlockingIOError; do nothing where a file system has no locks."""
    try:
        if sys.platform == "win32":
            # Locks are mandatory on Windows: lock a byte beyond those that name the holder.
            os.lseek(fd, 2**30, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD_BY_ANOTHER:
            raise BlockingIOError from None
        if error.errno not in _NO_LOCKS:
            raise
