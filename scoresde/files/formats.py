"""The tables FILES and FOLDERS say who reads what, by the name; `read` goes by them, `write` by WRITERS."""

from __future__ import annotations

import codecs
import csv
import fnmatch
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..checks import as_path
from ..registry import nearest
from .arrays import SPLITS, cifar_file, cifar_folder, idx, idx_folder, npy, npz
from .base import Ask, Samples, optional, regular
from .images import image_folder
from .tables import parquet, table, write_parquet, write_text

Reader = Callable[[Path, Ask], Samples]

# What damaged files lead the standard library to raise.
DAMAGE = (ValueError, OSError, EOFError, OverflowError, csv.Error, zlib.error, BadZipFile, NotImplementedError)

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
"""Patterns of file names, readers, and which of samples=, split=, columns= and encoding= they know."""

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
    conditions: Mapping[str, str | Sequence[str]] | Sequence[str] = (),
    columns: Sequence[str] | None = None,
    samples: str | None = None,
    split: str = "train",
    encoding: str = "utf-8",
) -> Samples:
    """Read samples, and conditions by name, from a file or folder. What the name ends in says how.

    | name | what is read |
    | --- | --- |
    | `*.npy` | mapped, not loaded |
    | `*.npz` | array `x`, the only one, or `samples=`; mapped if stored plainly and aligned in the file, as bytes always are |
    | `*.csv`, `*.tsv`, also `.gz` | a table of numbers with or without a header line, as float32; between the cells , ; or tabs |
    | `*.parquet` | the same, through pyarrow |
    | `*idx3-ubyte`, `*.idx`, also `.gz` | IDX, of any type it has; three-dimensional data become images of one channel |
    | `*_batch*.bin` | CIFAR-10, with its labels as `y` |
    | a folder of these IDX or CIFAR files | the set `split=`, with its labels as `y` |
    | a folder of images | of one size and mode, gray or RGB, in the order of names; its sub-folders are the classes `y` |

    Images are turned as their EXIF says. Gray ones of 16 bits come as uint16, of 32 as int32 or float32.

    Mapped arrays are not checked for NaN, nor those of an .npz against its checksum: that would read them whole.

    Parameters
    ----------
    path : path
    conditions : sequence of str, or mapping of str to str or sequence of str
        Columns of a table, or arrays of an .npz, that are no samples but conditions: ("label",), or {"y": "label"} to call it y.
        Integers become int64, other numbers float32, and words int64 in the order of the alphabet, with `names`. Several columns,
        {"vector": ("dose", "age")}, make one condition of vectors, float32.
    columns : sequence of str, optional
        The columns of a table that are the samples, in this order; by default all that are no conditions.
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
        If there is no such file, it is of another kind, no regular file, damaged or empty, a decompression bomb, or holds
        something that is not a number, or not what was asked for.
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
    path, ask = as_path(path, "path"), _ask(conditions, columns, samples, split, encoding)
    if not path.exists():
        raise ValueError(f"there is no file or folder {path}")
    known, inside = (FOLDERS, os.listdir(path)) if path.is_dir() else (FILES, [path.name])
    pattern = next((p for p in known if fnmatch.filter([name.lower() for name in inside], p)), None)
    if pattern is None:
        raise ValueError(
            f"{path}: samples are read from .npy or .csv files, from .tsv, .npz, .parquet, IDX, and folders of images"
        )
    reader, takes = known[pattern]
    said = {"samples": samples, "split": split if split != "train" else None, "columns": columns}
    said["encoding"] = encoding if codecs.lookup(encoding).name != "utf-8" else None
    for name, value in said.items():
        if value is not None and name not in takes:
            raise ValueError(f"{path}: {name}={value!r} is for {_WHERE[name]}")
    try:
        found = reader(path if path.is_dir() else regular(path), ask)
        _check(found.values, found.given)
    except DAMAGE as error:
        raise ValueError(f"{path} can't be read: {' '.join(str(error).split())}") from None
    return found


_WHERE = {
    "samples": "the arrays of an .npz archive",
    "split": "folders of IDX or CIFAR-10 files",
    "columns": "tables, .csv, .tsv and .parquet",
    "encoding": "text, .csv and .tsv",
}


def _ask(conditions: object, columns: object, samples: str | None, split: object, encoding: object) -> Ask:
    """What is asked for, once it makes sense."""
    if isinstance(conditions, str) or not isinstance(conditions, Mapping | Sequence):
        raise TypeError(f"conditions is a sequence or mapping of names, such as ('label',), got {conditions!r}")
    fields: dict[str, str | tuple[str, ...]] = {}
    for name in conditions:
        column = conditions[name] if isinstance(conditions, Mapping) else name
        several = isinstance(column, Sequence) and not isinstance(column, str)
        names = tuple(column) if several else (column,)
        if not isinstance(name, str) or not names or not all(isinstance(each, str) for each in names):
            raise TypeError(f"a condition is a name, and a column or several, {{'vector': ('dose', 'age')}}, got {column!r}")
        fields[name] = names if several else column
    if columns is not None:
        if isinstance(columns, str) or not isinstance(columns, Sequence) or not all(isinstance(c, str) for c in columns):
            raise TypeError(f"columns is a sequence of names, such as ('height', 'weight'), got {columns!r}")
        if not columns:
            raise ValueError("columns names none; leave it out for all")
    ask = Ask(fields, samples, str(split), None if columns is None else tuple(columns), str(encoding))
    if twice := [name for i, name in enumerate(ask.wanted()) if name in ask.wanted()[:i] and name in (columns or ())]:
        raise ValueError(f"column {twice[0]!r} is asked for twice, by columns= or conditions=")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}. {nearest(str(split), SPLITS)}")
    try:
        "".encode(str(encoding))
    except LookupError:
        raise ValueError(f"unknown encoding {encoding!r}; try 'utf-8', 'utf-16' or 'latin-1'") from None
    return ask


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


def write(path: str | os.PathLike[str], values: Tensor | np.ndarray, *, columns: Sequence[str] = ()) -> None:
    """Write values as .npy, .npz (array `x`), .csv, .tsv or .parquet, one sample per line: what `read` reads back as it was.

    Text has the fewest digits from which the same number of the same dtype comes back; read as float32, float64 is rounded.

    Parameters
    ----------
    path : path
        What it ends in says how; .csv.gz and .tsv.gz are packed.
    values : Tensor or array of numbers, shape (n, ...)
    columns : sequence of str, optional
        Names of the numbers of a sample, for the header of a table; arrays have no names.

    Raises
    ------
    TypeError
        For values that are no real numbers.
    ValueError
        For another suffix, other than one name a number, or a path that is no regular file.
    ImportError
        For .parquet without pyarrow: `pip install 'scoresde[data]'`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as d:
    ...     scoresde.files.write(Path(d, "a.csv"), torch.tensor([[0.1, 2.0]]), columns=("height", "weight"))
    ...     print(Path(d, "a.csv").read_text(), scoresde.files.read(Path(d, "a.csv")))
    height,weight
    0.1,2.0
    Samples(1 of shape (2,), float32)
    """
    path, writer = writable(path)
    array = _real(values)
    width = int(np.prod(array.shape[1:]))
    if columns and (len(columns) != width or len({*columns}) < width or not all(isinstance(name, str) for name in columns)):
        raise ValueError(f"columns are {width} different names, one for each number of a sample, got {tuple(columns)!r:.200}")
    writer(path, array, tuple(columns))


def writable(path: str | os.PathLike[str]) -> tuple[Path, Callable[..., None]]:
    """Return a path and who writes it, or say why it can't be written: to be asked before the work."""
    path = as_path(path, "path")
    suffix = next((suffix for suffix in WRITERS if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise ValueError(f"{path}: values are written as {', '.join(WRITERS)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no such folder")
    if path.exists():
        regular(path)
    if suffix == ".parquet":
        optional("pyarrow.parquet", "parquet files")
    return path, WRITERS[suffix]


def _real(values: object) -> np.ndarray:
    """Values as an array of real numbers."""
    wanted = "values are a tensor or array of real numbers, (n, …)"
    if isinstance(values, Tensor):
        if values.layout is not torch.strided or values.is_quantized or values.device.type == "meta":
            raise TypeError(f"{wanted}, got a tensor of {values.dtype}, {values.layout}, on {values.device}")
        values = values.detach().cpu()
        known = values.dtype in (torch.float16, torch.float32, torch.float64) or not values.is_floating_point()
        values = (values if known else values.float()).resolve_conj().resolve_neg().numpy()
    try:
        array = np.asarray(values)
    except ValueError:  # rows of several lengths
        raise TypeError(f"{wanted}, got {type(values).__name__}") from None
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{wanted}, got {type(values).__name__} of {array.dtype}")
    if not array.ndim:
        raise TypeError(f"{wanted}, got one number")
    return array


def _npy(path: Path, values: np.ndarray, columns: Sequence[str]) -> None:
    with path.open("wb") as file:  # numpy would append .npy to .NPY
        np.save(file, values, allow_pickle=False)


def _npz(path: Path, values: np.ndarray, columns: Sequence[str]) -> None:
    with path.open("wb") as file:
        np.savez(file, x=values)


WRITERS: dict[str, Callable[[Path, np.ndarray, Sequence[str]], None]] = {
    ".npy": _npy,
    ".csv": write_text,
    ".npz": _npz,
    ".tsv": write_text,
    ".parquet": write_parquet,
    ".csv.gz": write_text,
    ".tsv.gz": write_text,
}
"""By what a name ends in."""
