"""Reading and writing by the name of a file: the tables FILES, FOLDERS and WRITERS."""

from __future__ import annotations

import codecs
import csv
import fnmatch
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ...common.checks import as_path
from ...common.names import nearest
from .arrays import IDX_SPLITS, cifar_file, cifar_folder, idx, idx_folder, npy, npz
from .base import Request, Samples, optional, regular
from .images import image_folder
from .tables import parquet, table, write_parquet, write_text

Reader = Callable[[Path, Request], Samples]

DAMAGE = (
    ValueError,
    OSError,
    EOFError,
    OverflowError,
    csv.Error,
    zlib.error,
    BadZipFile,
    NotImplementedError,
    RecursionError,
)
"""What damaged files lead the standard library to raise: `read` makes a ValueError of it."""

NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)
"""Floating-point dtypes that numpy has."""

FILES: dict[str, tuple[Reader, str]] = {
    "*.npy": (npy, ""),
    "*.npz": (npz, "samples"),
    "*.csv": (table, "columns encoding"),
    "*.csv.gz": (table, "columns encoding"),
    "*.tsv": (table, "columns encoding"),
    "*.tsv.gz": (table, "columns encoding"),
    "*.parquet": (parquet, "columns"),
    "*idx?-ubyte": (idx, ""),
    "*idx?-ubyte.gz": (idx, ""),
    "*.idx": (idx, ""),
    "*.idx.gz": (idx, ""),
    "*_batch*.bin": (cifar_file, ""),
}
"""Patterns of file names, their readers, and the options of `read` that these take."""

FOLDERS: dict[str, tuple[Reader, str]] = {
    "*idx?-ubyte": (idx_folder, "split"),
    "*idx?-ubyte.gz": (idx_folder, "split"),
    "*_batch*.bin": (cifar_folder, "split"),
    "*": (image_folder, ""),
}
"""The same for folders, by the names in them; the first pattern that one matches decides, and "*"
only where no other does.
"""


def readable(option: str = "") -> str:
    """The names that `read` knows, or those of them whose readers take an option."""
    files, folders = (
        [pattern for pattern, (_, options) in table.items() if not option or option in options]
        for table in (FILES, FOLDERS)
    )
    if "*" in folders:
        folders[folders.index("*")] = "images"
    if folders:
        files.append(f"folders of {', '.join(folders)}")
    return ", ".join(files)


def read(
    path: str | os.PathLike[str],
    *,
    conditions: Mapping[str, str | Sequence[str]] | Sequence[str] = (),
    columns: Sequence[str] | None = None,
    samples: str | None = None,
    split: str = "train",
    encoding: str = "utf-8",
) -> Samples:
    """Read samples, and conditions by name, from a file or folder; the name says how.

    | name | what is read |
    | --- | --- |
    | `*.npy` | an array, mapped, not loaded |
    | `*.npz` | array `x`, the only one, or `samples=`; mapped if stored plainly and aligned |
    | `*.csv`, `*.tsv`, also `.gz` | a table of numbers, with or without a header, as float32 |
    | `*.parquet` | the same, through pyarrow |
    | `*idx?-ubyte`, `*.idx`, also `.gz` | IDX of any type; three axes are images of one channel |
    | `*_batch*.bin` | CIFAR-10, with its labels as `y` |
    | a folder of IDX or CIFAR files | the set `split=`, with its labels as `y` |
    | a folder of images | images of one size and mode, gray or RGB; sub-folders are classes `y` |

    Cells are separated by commas, semicolons or tabs. Images come in the order of their names,
    turned as their EXIF says. Gray ones of 16 bits become uint16, of 32 bits int32 or float32.
    Mapped arrays are not checked for NaN, nor those of an .npz against its checksum, as this would
    read them whole.

    Parameters
    ----------
    path : path
    conditions : sequence of str, or mapping of str to str or sequence of str
        Columns of a table, or arrays of an .npz, that are conditions: ("label",), or {"y": "label"}
        to call it y. Integers become int64, other numbers float32, and words int64 in alphabetical
        order, with `names`. Several columns, {"vector": ("dose", "age")}, make one condition of
        vectors, float32.
    columns : sequence of str, optional
        Columns of a table that are the samples, in this order; by default all that are not
        conditions.
    samples : str, optional
        The array of an .npz that holds the samples.
    split : str
        "train" or "test", of an IDX or CIFAR-10 folder.
    encoding : str
        Of the text of a .csv or .tsv, such as "utf-16" or "latin-1".

    Returns
    -------
    Samples

    Raises
    ------
    TypeError
        For arguments of the wrong kind.
    ValueError
        If there is no such file, or it is of another kind, not a regular file, damaged, empty, or
        a decompression bomb; if it holds something that is not a number, or lacks a column that
        was asked for.
    ImportError
        Without pyarrow or Pillow, where they are needed: `pip install 'scoresde[data]'`.

    References
    ----------
    The IDX format: LeCun, Cortes & Burges, The MNIST database, "File formats". CIFAR-10: Krizhevsky
    2009, "Binary version".

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     _ = Path(d, "a.csv").write_text("height,kind\\n1.5,cat\\n2.5,dog\\n0.5,cat\\n")
    ...     table = scoresde.files.read(Path(d, "a.csv"), conditions={"y": "kind"})
    >>> table.values.ravel(), table.given["y"], table.names["y"]
    (array([1.5, 2.5, 0.5], dtype=float32), array([0, 1, 0]), ('cat', 'dog'))
    """
    path = as_path(path, "path")
    request = _request(conditions, columns, samples, split, encoding)
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    reader, options = reader_of(path)
    given = {
        "samples": samples,
        "split": None if split == "train" else split,
        "columns": columns,
        "encoding": None if codecs.lookup(encoding).name == "utf-8" else encoding,
    }
    for name, value in given.items():
        if value is not None and name not in options.split():
            raise ValueError(f"{path}: {name}={value!r} is for {readable(name)}")
    try:
        if not path.is_dir():
            regular(path)
        found = reader(path, request)
        _check(found.values, found.given)
    except DAMAGE as error:
        raise ValueError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    return found


def reader_of(path: Path) -> tuple[Reader, str]:
    """The reader of a file or folder, and the options that it takes."""
    readers = FILES
    names = [path.name]
    if path.is_dir():
        readers = FOLDERS
        names = os.listdir(path)
    names = [name.lower() for name in names]
    for pattern in sorted(readers, key="*".__eq__):  # which matches all, and comes last
        if fnmatch.filter(names, pattern):
            return readers[pattern]
    raise ValueError(f"{path}: samples are read from {readable()}")


def _request(
    conditions: object, columns: object, samples: str | None, split: object, encoding: object
) -> Request:
    """What the user wants of a file, checked."""
    fields = _condition_columns(conditions)
    if columns is not None:
        texts = isinstance(columns, Sequence) and all(isinstance(name, str) for name in columns)
        if isinstance(columns, str) or not texts:
            raise TypeError(
                f"columns is a sequence of names, such as ('height', 'weight'), got {columns!r}"
            )
        if not columns:
            raise ValueError("columns names none; leave it out for all")
    chosen = None if columns is None else tuple(cast("Sequence[str]", columns))
    request = Request(fields, samples, str(split), chosen, str(encoding))
    wanted = request.wanted()
    for name in chosen or ():
        if wanted.count(name) > 1:
            raise ValueError(f"column {name!r} is asked for twice, by columns= or conditions=")
    if split not in IDX_SPLITS:
        raise ValueError(f"unknown split {split!r}. {nearest(str(split), IDX_SPLITS)}")
    try:
        "".encode(str(encoding))
    except LookupError:
        raise ValueError(
            f"unknown encoding {encoding!r}; try 'utf-8', 'utf-16' or 'latin-1'"
        ) from None
    return request


def _condition_columns(conditions: object) -> dict[str, str | tuple[str, ...]]:
    """The columns of each condition by its name."""
    if isinstance(conditions, str) or not isinstance(conditions, Mapping | Sequence):
        raise TypeError(
            f"conditions is a sequence or mapping of names, such as ('label',), got {conditions!r}"
        )
    fields: dict[str, str | tuple[str, ...]] = {}
    for name in conditions:
        column = conditions[name] if isinstance(conditions, Mapping) else name
        several = isinstance(column, Sequence) and not isinstance(column, str)
        names = tuple(column) if several else (column,)
        texts = all(isinstance(each, str) for each in (name, *names))
        if not names or not texts:
            raise TypeError(
                f"a condition is a name, and a column or several, {{'vector': ('dose', 'age')}}, "
                f"got {column!r}"
            )
        fields[name] = names if several else column
    return fields


def _check(values: np.ndarray, given: Mapping[str, np.ndarray]) -> None:
    """Raise unless a file holds samples of real numbers, and a condition for each."""
    if values.dtype.kind not in "biuf":
        raise ValueError(f"it holds {values.dtype.name} values, wanted real numbers")
    if values.ndim < 2:
        raise ValueError(
            f"it holds an array of shape {values.shape}; wanted one sample per row, (n, …)"
        )
    if not values.size:
        raise ValueError(f"it holds no samples: shape {values.shape}")
    for name, value in given.items():
        if not value.ndim or len(value) != len(values):
            raise ValueError(
                f"condition {name!r} has shape {value.shape} for {len(values)} samples"
            )


def write(
    path: str | os.PathLike[str], values: Tensor | np.ndarray, *, columns: Sequence[str] = ()
) -> None:
    """Write values as .npy, .npz (array `x`), .csv, .tsv or .parquet; `read` reads them back.

    Text has the fewest digits that determine a number of its dtype. `read` makes it float32, which
    rounds float64.

    Parameters
    ----------
    path : path
        Its suffix says how; .csv.gz and .tsv.gz are compressed.
    values : Tensor or array of numbers, shape (n, ...)
        One sample per line.
    columns : sequence of str, optional
        A name for each number of a sample, for the header of a table. Arrays have no names.

    Raises
    ------
    TypeError
        For values that are no real numbers.
    ValueError
        For another suffix, too few or too many names, or a path that is no regular file.
    ImportError
        For .parquet without pyarrow: `pip install 'scoresde[data]'`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     path = Path(d, "a.csv")
    ...     scoresde.files.write(path, torch.tensor([[0.1, 2.0]]), columns=("height", "weight"))
    ...     print(path.read_text(), scoresde.files.read(path))
    height,weight
    0.1,2.0
    Samples(1 of shape (2,), float32)
    """
    path, writer = writable(path)
    array = _real(values)
    width = int(np.prod(array.shape[1:]))
    texts = all(isinstance(name, str) for name in columns)
    if columns and (not texts or len(columns) != width or len({*columns}) < width):
        raise ValueError(
            f"columns are {width} different names, one for each number of a sample, got "
            f"{tuple(columns)!r:.200}"
        )
    writer(path, array, tuple(columns))


def writable(path: str | os.PathLike[str]) -> tuple[Path, Callable[..., None]]:
    """A path and its writer; raise if it can't be written. Called before the work."""
    path = as_path(path, "path")
    suffixes = [suffix for suffix in WRITERS if path.name.lower().endswith(suffix)]
    if not suffixes:
        raise ValueError(f"{path}: values are written as {', '.join(WRITERS)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no such folder")
    if path.exists():
        regular(path)
    if suffixes[0] == ".parquet":
        optional("pyarrow.parquet", "parquet files")
    return path, WRITERS[suffixes[0]]


def _real(values: object) -> np.ndarray:
    """Values as an array of real numbers."""
    wanted = "values are a tensor or array of real numbers, (n, …)"
    if isinstance(values, Tensor):
        dense = values.layout is torch.strided and not values.is_quantized
        if not dense or values.device.type == "meta":
            raise TypeError(
                f"{wanted}, got a tensor of {values.dtype}, {values.layout}, on {values.device}"
            )
        values = values.detach().cpu()
        if values.is_floating_point() and values.dtype not in NUMPY_FLOATS:
            values = values.float()
        values = values.resolve_conj().resolve_neg().numpy()
    try:
        array = np.asarray(values)
    except ValueError:  # rows of several lengths
        raise TypeError(f"{wanted}, got {type(values).__name__}") from None
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{wanted}, got {type(values).__name__} of {array.dtype}")
    if not array.ndim:
        raise TypeError(f"{wanted}, got one number")
    return array


def _write_npy(path: Path, values: np.ndarray, columns: Sequence[str]) -> None:
    """Write one array."""
    with path.open("wb") as file:  # given a path, numpy would append .npy to .NPY
        np.save(file, values, allow_pickle=False)


def _write_npz(path: Path, values: np.ndarray, columns: Sequence[str]) -> None:
    """Write an archive with array `x`."""
    with path.open("wb") as file:
        np.savez(file, x=values)


WRITERS: dict[str, Callable[[Path, np.ndarray, Sequence[str]], None]] = {
    ".npy": _write_npy,
    ".csv": write_text,
    ".npz": _write_npz,
    ".tsv": write_text,
    ".parquet": write_parquet,
    ".csv.gz": write_text,
    ".tsv.gz": write_text,
}
"""Writers by suffix."""
