"""What commands read: samples from files, conditions from files or arguments, network options."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.checks import whole_number
from ..data import files
from ..data.files.formats import reader_of
from ..model.class_words import Labels
from ..model.protocol import Model
from ..training.logs import Log

LEVELS = {np.dtype(np.uint8): 256, np.dtype(np.uint16): 65536}  # of integers that are dequantized
BYTES_ON_DISK = 2**30  # larger data stay in their file
NOT_OPTIONS = {"net": "say --net", "process": "say --process", "shape": "that is the data's"}

Columns = dict[str, str | tuple[str, ...]]


def check_writable(path: str, *suffixes: str) -> None:
    """Raise unless a file of that name can be written, before the work that makes it."""
    if Path(path).suffix not in suffixes:
        raise ValueError(f"{path}: written are {', '.join(suffixes)} files")
    check_folder(path)


def check_folder(path: str) -> None:
    """Raise unless the folder of a file is there."""
    if not Path(path).absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no such folder")


def split_names(text: str) -> list[str]:
    """Return names between commas; a name that holds a comma stands in quotes."""
    names = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])]
    if not names or not all(names):
        raise ValueError(f"columns are NAME,NAME,…, got {text!r}")
    return names


def condition_columns(pairs: Sequence[str]) -> Columns:
    """Return the columns of --condition: NAME=COLUMN, NAME=COLUMN,COLUMN,… for vectors, or NAME."""
    found: Columns = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        columns = split_names(text or name)
        if name in found:
            raise ValueError(
                f"condition {name!r} comes twice by --condition; several columns are {name}=a,b"
            )
        found[name] = columns[0] if len(columns) == 1 else tuple(columns)
    return found


def conditions(args: argparse.Namespace) -> tuple[Columns, dict[str, str]]:
    """Return the columns of --condition, and the texts of --given."""
    columns = condition_columns(getattr(args, "condition", ()))
    texts = {}
    for pair in args.given:
        name, _, texts[name] = pair.partition("=")
    twice = sorted(columns.keys() & texts.keys())
    if twice:
        raise ValueError(
            f"condition {twice[0]!r} comes by both --condition and --given; leave one out"
        )
    return columns, texts


def with_constants(sde: Model, texts: dict[str, str]) -> Model:
    """Return the model under the conditions of --given; the same model if there are none."""
    given: dict[str, Any] = {}
    for name, text in texts.items():
        words = sde.schema.words.get(name, ())
        if text in words:
            given[name] = text
            continue
        try:
            parsed = _parsed(f"{name}={text}", text)
            if isinstance(parsed, dict) and name == "y" and sde.table is not None:
                given[name] = parsed
                continue
            value = torch.as_tensor(parsed)
        except (json.JSONDecodeError, TypeError, RuntimeError):
            known = f"or one of {', '.join(words[:20])}, " if words else ""
            raise ValueError(
                f"a condition is NAME=NUMBER such as y=3, {known}got {f'{name}={text}'[:80]!r}"
            ) from None
        given[name] = value.float().reshape(1, -1) if name == "vector" else value
    return sde.given(**given) if given else sde


def network_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Return the options NAME=VALUE of a network; values are JSON, or else words."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(
                f"an option of the network is NAME=VALUE such as width=256, got {pair!r}"
            )
        if name in NOT_OPTIONS:
            raise ValueError(f"{name} is no option of the network: {NOT_OPTIONS[name]}")
        try:
            options[name] = _parsed(pair, value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def _parsed(pair: str, value: str) -> Any:
    """A value in JSON."""
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError(f"{pair[:20]}… is nested too deep") from None


def log_of(args: argparse.Namespace) -> Log | None:
    """Return the log of --log and --log-samples."""
    if args.log is None:
        if args.log_samples is not None:
            raise ValueError("--log-samples goes with --log, where the samples are written")
        return None
    samples = 0
    if args.log_samples is not None:
        samples = whole_number("log-samples", args.log_samples)
    return Log(args.log, samples=samples)


def number_of_classes(y: np.ndarray) -> int:
    """Return how many classes labels have."""
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise ValueError(
            f"labels y are integers, one a sample, got {y.dtype} of shape {y.shape}; numbers are a "
            "--condition vector=COLUMN,…"
        )
    if isinstance(y, Labels) and y.words:
        return len(y.words)
    low = int(y.min())
    high = int(y.max())
    if low < 0 or high >= len(y):
        raise ValueError(
            f"labels y run from {low} to {high} in {len(y):,} samples; wanted are classes numbered "
            "0, 1, …; if there are more classes than samples, say --option classes=N"
        )
    return high + 1


def read_samples(
    args: argparse.Namespace,
    path: str,
    columns: Columns,
    split: str = "train",
    *,
    on_disk: bool = False,
) -> tuple[Any, int]:
    """Return `Samples` whose values are a tensor, with the conditions of `columns` alone, and their
    levels; 0 for floats.
    """
    chosen = None if args.columns is None else tuple(split_names(args.columns))
    found = files.read(
        path, conditions=columns, columns=chosen, split=split, encoding=args.encoding
    )
    given = {name: found.given[name] for name in columns}
    if "vector" in given:
        if isinstance(given["vector"], Labels):
            raise ValueError(
                "condition 'vector' is of numbers, and this column has words: --condition y=COLUMN"
            )
        given["vector"] = given["vector"].astype(np.float32).reshape(len(found), -1)
    levels = LEVELS.get(found.values.dtype, 0)
    values = _tensor(found.values, on_disk=on_disk)
    return dataclasses.replace(found, values=values, given=given), levels


def _tensor(values: np.ndarray, *, on_disk: bool) -> Any:
    """Values as a tensor, floats as float32; large ones stay in their file if they may."""
    if on_disk and isinstance(values, np.memmap) and values.nbytes > BYTES_ON_DISK:
        return values
    dtype = np.int32 if values.dtype == np.uint16 else values.dtype
    tensor = torch.from_numpy(np.array(values, dtype))
    return tensor.float() if tensor.is_floating_point() else tensor


def first_samples(samples: files.Samples, n: int | None) -> files.Samples:
    """Return the first n samples."""
    given = {name: value[:n] for name, value in samples.given.items()}
    return dataclasses.replace(samples, values=samples.values[:n], given=given)


def held_out_split(path: str, split: str | None) -> str:
    """Return which set of a folder to read: the test set, if it has one and the user names none."""
    if split is not None or not os.path.isdir(path):
        return split or "train"
    _, options = reader_of(Path(path))
    return "test" if "split" in options else "train"
