r"""The JSON of a record, with a seal over its own bytes.

With b the bytes up to the last entry, and H the SHA-256 in hexadecimals, the file is

    b ‖ s(b),    s(b) = ',\n  "sha256": "' ‖ H(b) ‖ '"\n}\n'.

Reading accepts just these bytes, so that it finds a flipped bit, a cut or an appended byte. A seal
finds damage. It is no signature: anyone who can write to the folder can seal anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import CheckpointError, one_line
from .disk import read_file

FORMAT = "scoresde-2"
LIMIT = 16 * 2**20
"""Most bytes of JSON that are read or written; ours have some thousands."""


def seal(body: bytes) -> bytes:
    """A JSON file from the bytes before its last entry."""
    return body + f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def json_body(about: Mapping[str, Any], name: str, size: int) -> bytes:
    """The JSON before its seal; `name` is <stem>-<SHA-256 of the tensors>, `size` their bytes."""
    stem, _, digest = name.rpartition("-")
    entry = {"file": f"{stem}-{digest[:12]}.safetensors", "size": size, "sha256": digest}
    record = {"format": FORMAT, "tensors": entry, "about": dict(about)}
    body = json.dumps(record, indent=2, allow_nan=False).removesuffix("\n}").encode()
    if len(body) > LIMIT - 100:
        raise ValueError(
            f"a record's JSON has at most {LIMIT:,} bytes, got {len(body):,}; large things are "
            "tensors"
        )
    return body


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a sealed JSON, and check it."""
    data = read_file(path, LIMIT)
    if data is None:
        raise CheckpointError(
            f"{path} is larger than {LIMIT:,} bytes, as no record of ours is; it was not read"
        )
    end = len(seal(b""))
    if len(data) < end or data != seal(data[:-end]):
        raise CheckpointError(f"{path} {_unsealed(data)}")
    try:
        record = parse_json(data)
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f"{path} is not JSON as we write it: {one_line(error)}; use another copy"
        ) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{path} {_foreign(record)}")
    entries = (record.get("tensors"), record.get("about"))
    if len(record) != 4 or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(
            f"{path} has other entries than a record; use a copy that was not edited"
        )
    return record


def parse_json(data: bytes) -> Any:
    """Parse JSON; raise ValueError for NaN, infinities (also as 1e999), and a key that repeats."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            raise ValueError("it has the same key twice")
        return found

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text[:40]} is not a finite number")
        return value

    return json.loads(
        data.decode(), object_pairs_hook=pairs, parse_float=finite, parse_constant=finite
    )


def quoted(value: object) -> str:
    """A string in quotes, cut; the type of anything else, which may be nested too deep to print."""
    return repr(value[:80]) if isinstance(value, str) else type(value).__name__


def _unsealed(data: bytes) -> str:
    """Why the seal of some bytes does not hold, as far as one can tell."""
    try:
        record = parse_json(data)
    except (ValueError, RecursionError, MemoryError) as error:
        return f"is not JSON: {one_line(error)}; it is damaged, or not ours"
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return _foreign(record)
    return "is damaged or was edited: its seal does not hold; use another copy"


def _foreign(record: object) -> str:
    """What is wrong with JSON of another format."""
    found = record.get("format") if isinstance(record, dict) else type(record).__name__
    text = f"is not a {FORMAT} model (format: {quoted(found)})"
    if isinstance(found, str) and re.fullmatch(r"scoresde-[0-9]{1,3}", found):
        text += "; save it again with this version"
    return text
