"""The tables FILES and FOLDERS say who reads what, by the name; `read` goes by them, `write` by WRITERS."""

from __future__ import annotations

import csv
import fnmatch
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from torch import Tensor

from ..registry import nearest
from .arrays import SPLITS, cifar_file, cifar_folder, idx, idx_folder, npy, npz
from .base import Ask, Samples
from .images import image_folder
from .tables import parquet, table

Reader = Callable[[Path, Ask], Samples]

# What damaged files lead the standard library to raise.
DAMAGE = (ValueError, OSError, EOFError, OverflowError, csv.Error, zlib.error, BadZipFile, NotImplementedError)

FILES: dict[str, tuple[Reader, str]] = {
    "*.npy": (npy, ""),
    "*.npz": (npz, "samples"),
    "*.csv": (table, ""),
    "*.parquet": (parquet, ""),
    "*idx?-ubyte": (idx, ""),
    "*idx?-ubyte.gz": (idx, ""),
    "*.idx": (idx, ""),
    "*.idx.gz": (idx, ""),
    "*_batch*.bin": (cifar_file, ""),
}
"""Patterns of file names, readers, and which of samples= and split= they know."""

FOLDERS: dict[str, tuple[Reader, str]] = {
    "*idx?-ubyte": (idx_folder, "split"),
    "*idx?-ubyte.gz": (idx_folder, "split"),
    "*_batch*.bin": (cifar_folder, "split"),
    "*": (image_folder, ""),
}
"""The same for folders, by a name that is in them; the first pattern that finds one decides."""


def read(
    path: str | os.PathLike[str],
    *,
    conditions: Mapping[str, str] | Sequence[str] = (),
    samples: str | None = None,
    split: str = "train",
) -> Samples:
    """Read samples, and conditions by name, from a file or folder. What the name ends in says how.

    | name | what is read |
    | --- | --- |
    | `*.npy` | mapped, not loaded |
    | `*.npz` | array `x`, the only one, or `samples=`; mapped if stored plainly and aligned in the file, as bytes always are |
    | `*.csv` | a table of numbers with or without a header line, as float32 |
    | `*.parquet` | the same, through pyarrow |
    | `*idx3-ubyte`, `*.idx`, also `.gz` | IDX, of any type it has; three-dimensional data become images of one channel |
    | `*_batch*.bin` | CIFAR-10, with its labels as `y` |
    | a folder of these IDX or CIFAR files | the set `split=`, with its labels as `y` |
    | a folder of images | of one size and mode, gray or RGB, in the order of names; its sub-folders are the classes `y` |

    Mapped arrays are not checked for NaN, nor those of an .npz against its checksum: that would read them whole.

    Parameters
    ----------
    path : path
    conditions : sequence of str, or mapping of str to str
        Columns of a table, or arrays of an .npz, that are no samples but conditions: ("label",), or {"y": "label"} to call it y.
        Integers become int64, other numbers float32, and words int64 in the order of the alphabet, with `names`.
    samples : str, optional
        The array of an .npz that holds the samples.
    split : str
        "train" or "test", of an IDX or CIFAR-10 folder.

    Returns
    -------
    Samples

    Raises
    ------
    TypeError
        For arguments of the wrong kind.
    ValueError
        If there is no such file, it is of another kind, damaged or empty, or holds something that is not a number, or not what
        was asked for.
    ImportError
        Without pyarrow or Pillow, where they are needed: `pip install 'scoresde[data]'`.

    References
    ----------
    The IDX format: LeCun, Cortes & Burges, The MNIST database, "File formats". CIFAR-10: Krizhevsky 2009, "Binary version".

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     _ = Path(d, "a.csv").write_text("height,kind\\n1.5,cat\\n2.5,dog\\n0.5,cat\\n")
    ...     table = scoresde.files.read(Path(d, "a.csv"), conditions={"y": "kind"})
    >>> table.values.ravel(), table.given["y"], table.names["y"]
    (array([1.5, 2.5, 0.5], dtype=float32), array([0, 1, 0]), ('cat', 'dog'))
    """
    if isinstance(conditions, str) or not isinstance(conditions, Mapping | Sequence):
        raise TypeError(f"conditions is a sequence or mapping of names, such as ('label',), got {conditions!r}")
    ask = Ask(dict(conditions if isinstance(conditions, Mapping) else zip(conditions, conditions, strict=True)), samples, split)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}. {nearest(split, SPLITS)}")
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    known, inside = (FOLDERS, os.listdir(path)) if path.is_dir() else (FILES, [path.name])
    pattern = next((p for p in known if fnmatch.filter([name.lower() for name in inside], p)), None)
    if pattern is None:
        raise ValueError(f"{path}: samples are read from .npy or .csv files, from .npz, .parquet, IDX, and folders of images")
    reader, takes = known[pattern]
    for name, value in (("samples", samples), ("split", split if split != "train" else None)):
        if value is not None and name not in takes:
            raise ValueError(f"{path}: {name}={value!r} is for {_WHERE[name]}")
    try:
        found = reader(path, ask)
        _check(found.values, found.given)
    except DAMAGE as error:
        raise ValueError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    return found


_WHERE = {"samples": "the arrays of an .npz archive", "split": "folders of IDX or CIFAR-10 files"}


def _check(values: np.ndarray, given: Mapping[str, np.ndarray]) -> None:
    if values.dtype.kind not in "biuf":
        raise ValueError(f"it holds {values.dtype.name} values, wanted real numbers")
    if values.ndim < 2:
        raise ValueError(f"it holds an array of shape {values.shape}; wanted one sample per row, (n, …)")
    if not values.size:
        raise ValueError(f"it holds no samples: shape {values.shape}")
    for name, value in given.items():
        if not value.ndim or len(value) != len(values):
            raise ValueError(f"condition {name!r} has shape {value.shape} for {len(values)} samples")


def write(path: str | os.PathLike[str], values: Tensor | np.ndarray) -> None:
    """Write values as .npy, as .npz (array `x`), or as .csv, one sample per line: what `read` reads back as it was.

    Parameters
    ----------
    path : path
    values : Tensor or array, shape (n, ...)

    Raises
    ------
    ValueError
        For another suffix.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     scoresde.files.write(Path(d, "a.csv"), torch.rand(2, 3))
    ...     scoresde.files.read(Path(d, "a.csv"))
    Samples(2 of shape (3,), float32)
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ValueError(f"{path}: values are written as {', '.join(WRITERS)}")
    WRITERS[path.suffix](path, values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values))


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    ".npy": lambda path, values: np.save(path, values, allow_pickle=False),
    ".csv": lambda path, values: np.savetxt(path, values.reshape(len(values), -1), delimiter=","),
    ".npz": lambda path, values: np.savez(path, x=values),
}
"""By suffix."""
