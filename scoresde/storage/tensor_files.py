"""Tensors in safetensors files: written piece by piece, and checked before they are parsed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..common.errors import CheckpointError, one_line
from .disk import read_file
from .sealed import LIMIT, parse_json, quoted

STEM = r"[a-z]+(?:-[0-9]{8})?"
TENSORS_NAME = re.compile(rf"({STEM})-[0-9a-f]{{12}}\.safetensors")

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

_UNREADABLE = (
    safetensors.SafetensorError,
    LookupError,
    ValueError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
)
"""What the library raises for a damaged file."""


def safetensors_pieces(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """The bytes of a safetensors file; unlike its library, copy only one tensor at a time."""
    for name, value in tensors.items():
        if not isinstance(name, str) or name == "__metadata__" or not isinstance(value, Tensor):
            raise TypeError(f"tensors are Tensors by name, got {name!r}: {type(value).__name__}")
        if value.dtype not in DTYPES or value.layout is not torch.strided:
            raise TypeError(
                f"tensor {name!r} is {value.layout} of {value.dtype}; dense "
                f"{'/'.join(DTYPES.values())} are saved"
            )
    # The order of the library: by size of an element, then by name.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        value = tensors[name]
        start = end
        end = start + value.numel() * value.element_size()
        header[name] = {
            "dtype": DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _pieces(text, [tensors[name] for name in order])


def _pieces(header: bytes, tensors: list[Tensor]) -> Iterator[Any]:
    """The header with its length, then the bytes of each tensor."""
    yield len(header).to_bytes(8, "little") + header
    for value in tensors:
        if value.numel():
            flat = value.detach().cpu().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data


def read_tensors(path: Path, entry: dict[str, Any]) -> dict[str, Tensor]:
    """Read the tensors that the JSON at `path` names in `entry`; raise unless they are its own."""
    file, size, digest = (entry.get(key) for key in ("file", "size", "sha256"))
    wanted = f"{path.stem}-{digest[:12]}.safetensors" if isinstance(digest, str) else None
    if wanted is None or file != wanted or not TENSORS_NAME.fullmatch(wanted):
        raise CheckpointError(
            f"{path} names tensors that are not its own: {quoted(file)}; use a copy from a source "
            "you trust"
        )
    place = path.parent / wanted
    limit = size if isinstance(size, int) else 0
    data = read_file(place, limit)
    if data is None or len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(
            f"{place} is damaged: its size or SHA-256 is not the one in {path.name}; use another "
            "copy"
        )
    try:
        length = int.from_bytes(data[:8], "little")
        if length > LIMIT:
            raise ValueError(f"a header of {length:,} bytes")
        parse_json(data[8 : 8 + length])  # the library itself accepts a name twice
        return safetensors.torch.load(data)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{place} is not a safetensors file: {one_line(error)}; use another copy"
        ) from None
