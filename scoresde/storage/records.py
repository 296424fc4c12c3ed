"""Records: a record is read back as it was written, or refused; never changed.

A record is a pair of files in one folder:

    <stem>.json                              plain JSON, with the tensors' size and SHA-256
    <stem>-<12 hexadecimals>.safetensors     the tensors, named by the first digits of their SHA-256

Reading trusts only bytes (`scoresde.storage.sealed`): it imports nothing, unpickles
nothing, follows no links, and reads no more than was announced.

Writing goes through temporary files, each flushed to the disk before it is renamed: first the
tensors, then the JSON, which makes the record exist. An interrupted write, at any moment, leaves
the previous record as it was.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..common.errors import CheckpointError
from .disk import file_names, sync_folder, write_file
from .sealed import json_body, read_sealed, seal
from .tensor_files import STEM, TENSORS_NAME, read_tensors, safetensors_pieces

_PARTIAL_NAME = re.compile(rf"\.{STEM}-[0-9a-f]{{8}}\.partial")


def write(
    folder: str | os.PathLike[str],
    stem: str,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> Path:
    """Write or replace a record; the caller holds the `Lock`. Old tensors stay until `sweep`."""
    folder = Path(folder)
    path = _json_path(folder, stem)
    json_body(about, "", 0)  # raises before anything is written
    pieces = safetensors_pieces(tensors)
    partials = [folder / f".{stem}-{secrets.token_hex(4)}.partial" for _ in range(2)]
    file = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        size, digest = write_file(partials[0], pieces)
        file = f"{stem}-{digest[:12]}.safetensors"
        os.replace(partials[0], folder / file)
        sync_folder(folder)  # the JSON must not exist before the tensors do
        write_file(partials[1], [seal(json_body(about, f"{stem}-{digest}", size))])
        os.replace(partials[1], path)
        sync_folder(folder)
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
    """Read a record: its JSON and its tensors, checked before they are parsed."""
    path = _json_path(folder, stem)
    record = read_sealed(path)
    try:
        return record["about"], read_tensors(path, record["tensors"])
    except CheckpointError:
        if read_sealed(path)["sha256"] == record["sha256"]:
            raise
        return read(folder, stem)  # another process replaced it meanwhile


def records(folder: str | os.PathLike[str], prefix: str) -> list[str]:
    """Sorted stems `<prefix>NNNNNNNN` of the records in a folder; only `read` finds damage."""
    wanted = re.compile(rf"{re.escape(prefix)}[0-9]{{8}}\.json")
    names = [name for name in file_names(folder) if wanted.fullmatch(name)]
    return sorted(name.removesuffix(".json") for name in names)


def remove(folder: str | os.PathLike[str], stem: str) -> None:
    """Remove a record: the JSON, then its tensors. The caller holds the `Lock`."""
    path = _json_path(folder, stem)
    tensors = [name for name in file_names(folder) if _stem_of_tensors(name) == stem]
    try:
        path.unlink(missing_ok=True)
        for name in tensors:
            (path.parent / name).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't remove {path}: {error.strerror or error}") from error


def leftovers(folder: str | os.PathLike[str]) -> list[str]:
    """What interrupted writes left: temporary files, and tensors that no JSON names."""
    names = file_names(folder)
    stems = {name: _stem_of_tensors(name) for name in names}
    tensors = {name: stem for name, stem in stems.items() if stem}
    in_use: dict[str, Any] = {}
    for stem in set(tensors.values()):
        in_use[stem] = ""
        if f"{stem}.json" in names:
            try:
                in_use[stem] = read_sealed(_json_path(folder, stem))["tensors"].get("file")
            except CheckpointError:
                del in_use[stem]  # what a damaged JSON names is unknown: keep all its tensors
    orphans = [name for name, stem in tensors.items() if in_use.get(stem, name) != name]
    return sorted(orphans + [name for name in names if _PARTIAL_NAME.fullmatch(name)])


def sweep(folder: str | os.PathLike[str]) -> None:
    """Delete what `leftovers` lists. The caller holds the `Lock`, so that no write is going on."""
    for name in leftovers(folder):
        with contextlib.suppress(OSError):  # it does no harm, and may go next time
            (Path(folder) / name).unlink()


def _stem_of_tensors(name: str) -> str | None:
    """The stem of a tensors file; None for other files."""
    match = TENSORS_NAME.fullmatch(name)
    return match[1] if match else None


def _json_path(folder: str | os.PathLike[str], stem: str) -> Path:
    """Where a record's JSON is."""
    if not isinstance(stem, str) or not re.fullmatch(STEM, stem):
        raise ValueError(
            f"a record's name is letters, or letters, '-' and eight digits, such as step-00000500; "
            f"got {stem!r}"
        )
    return Path(folder) / f"{stem}.json"
