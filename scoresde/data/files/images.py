"""Images: folders of them, and datasets whose items are dicts that hold them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ...common.inputs import as_tensor
from ...common.names import nearest
from .base import Request, Samples, labelled, optional, regular

MODES = ("L", "RGB", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of Pillow images that are read."""
OPAQUE = (
    "Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))"
    ".convert('RGB')"
)
ADVICE = {
    "1": "two levels: image.convert('L') makes them 0 and 255",
    "P": "a palette: image.convert('RGB') looks its colors up",
    "LA": f"transparent: {OPAQUE} puts it on white",
    "La": f"transparent: {OPAQUE} puts it on white",
    "PA": f"transparent: {OPAQUE} puts it on white",
    "RGBA": f"transparent: {OPAQUE} puts it on white",
    "RGBa": f"transparent: {OPAQUE} puts it on white",
    "CMYK": "for print: image.convert('RGB') is near to it",
}
"""What other modes are, and how to convert them."""
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Formats that are read: not EPS, which Pillow hands to another program."""


def image_folder(path: Path, request: Request) -> Samples:
    """Read a folder of images; its sub-folders are classes."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    if folders and len(folders) < len(entries):
        stray = next(entry for entry in entries if not entry.is_dir())
        raise ValueError(
            f"{stray.name} lies beside folders; in a folder of classes all images lie in one of "
            "them"
        )
    groups = [_files_under(folder) for folder in folders] or [entries]
    for folder, group in zip(folders or [path], groups, strict=True):
        if not group:
            raise ValueError(
                f"there is no image in {folder.name}; wanted files such as .png or .jpg"
            )
    files = [file for group in groups for file in group]
    first = read_image(files[0])
    values = np.empty((len(files), *first.shape), first.dtype)
    for i, file in enumerate(files):
        image = read_image(file)
        if image.shape != first.shape:
            raise ValueError(
                f"{file} is {_times(image.shape)} (channels, height, width), {files[0]} is "
                f"{_times(first.shape)}"
            )
        if image.dtype != first.dtype:
            raise ValueError(
                f"{file} holds {image.dtype}, {files[0]} {first.dtype}: all images are of one kind"
            )
        values[i] = image
    if not folders:
        request.conditions_in(())
        return Samples(values)
    y = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    return labelled(values, y, tuple(folder.name for folder in folders), request)


def _files_under(folder: Path) -> list[Path]:
    """Files in a folder and below, without hidden ones."""
    return sorted(file for file in folder.rglob("[!.]*") if not file.is_dir())


def _times(shape: tuple[int, ...]) -> str:
    """A shape for messages, such as 3 × 32 × 32."""
    return " × ".join(map(str, shape))


def read_image(path: Path) -> np.ndarray:
    """Read one image."""
    pillow = optional("PIL.Image", "images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            # From a stream: given a path, Pillow maps plain TIFFs, and scrambles those that EXIF
            # turns by 90 degrees.
            with regular(path).open("rb") as file, pillow.open(file, formats=FORMATS) as image:
                return _channels_first(image)
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise ValueError(f"{path} is not an image to be read: {error}") from None


def _channels_first(image: Any) -> np.ndarray:
    """Pixels (1 or 3, H, W) of a Pillow image, turned as its EXIF says, in its own levels."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ValueError(
            f"it has {frames} frames, wanted one; image.seek(i), image.copy() takes one out"
        )
    if image.mode not in MODES:
        advice = ADVICE.get(image.mode, "image.convert('RGB') is near to it")
        raise ValueError(
            f"it has mode {image.mode}, wanted L or RGB, or gray of 16 or 32 bits; it is {advice}"
        )
    coding = _coding(image)
    maximum = _maximum(image)
    if image.mode == "RGB" and (";16" in coding or maximum > 255):
        raise ValueError(
            "it has colors of 16 bits, of which Pillow keeps 8; write its numbers as .npy by "
            "another library"
        )
    pixels = np.asarray(optional("PIL.ImageOps", "images").exif_transpose(image))
    if image.format == "PPM" and image.mode == "I":
        # PPM has at most 16 bits, and Pillow stretches fewer to 16.
        pixels = np.rint(pixels * ((maximum or 65535) / 65535)).astype(np.uint16)
    if image.mode == "I" and ";32" in coding and not coding.endswith("S") and pixels.min() < 0:
        raise ValueError(
            "its numbers are unsigned of 32 bits, above what Pillow holds; write them as .npy by "
            "another library"
        )
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _arguments(image: Any) -> tuple[Any, ...]:
    """Arguments of the decoder of an image, which is not decoded yet."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _coding(image: Any) -> str:
    """How the file codes a pixel, such as RGB;16B."""
    texts = [argument for argument in _arguments(image) if isinstance(argument, str)]
    return texts[0] if texts else ""


def _maximum(image: Any) -> int:
    """The greatest number of a PPM file that is not one of 8 or 16 bits; 0 for all others."""
    arguments = _arguments(image)
    if image.format == "PPM" and len(arguments) > 1 and isinstance(arguments[1], int):
        return arguments[1]
    return 0


def columns(dataset: Any, samples: str, **conditions: str) -> Dataset[Any]:
    """Adapt a dataset of dicts, such as one of Hugging Face, to items (x, {"y": ...}) for `fit`.

    Pillow images are turned as their EXIF says. They and arrays (H, W) or (H, W, C) become tensors
    with channels first: uint8, or int32 for 16 bits, in their own levels. Everything else goes
    through `torch.as_tensor`. Datasets that can only be iterated, such as streamed ones, are
    refused.

    Parameters
    ----------
    dataset : map-style dataset
        With `len(dataset)`, and `dataset[i]` a mapping.
    samples : str
        The column of the samples.
    **conditions : str
        Columns of conditions by the condition's name: y="label".

    Returns
    -------
    Dataset
        Of items x, or (x, {"y": ...}) if there are conditions.

    Raises
    ------
    TypeError
        If the dataset has no length, or its items are no mappings. When an item is read, if a
        column holds no numbers.
    ValueError
        If the dataset is empty, or has no such column.

    Examples
    --------
    >>> rows = [{"image": [0.5, 1.5], "label": 3, "id": "a"}] * 10
    >>> scoresde.files.columns(rows, "image", y="label")[0]
    (tensor([0.5000, 1.5000]), {'y': tensor(3)})
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"columns takes a dataset with len() and [i], got {type(dataset).__name__}"
        )
    if not len(dataset):
        raise ValueError("the dataset is empty")
    item = dataset[0]
    if not isinstance(item, Mapping):
        raise TypeError(
            f"columns takes a dataset whose items are dicts, got items of type "
            f"{type(item).__name__}"
        )
    for column in (samples, *conditions.values()):
        if column not in item:
            raise ValueError(
                f"the dataset has no column {column!r}. {nearest(str(column), map(str, item))}"
            )
    return _Columns(dataset, samples, conditions)


class _Columns(Dataset[Any]):
    """A dataset of dicts as one of items (x, conditions)."""

    def __init__(self, dataset: Any, samples: str, conditions: Mapping[str, str]) -> None:
        self._dataset = dataset
        self._samples = samples
        self._conditions = dict(conditions)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: int) -> Any:
        return self._adapt(self._dataset[i])

    def __getitems__(self, rows: list[int]) -> list[Any]:
        """A batch for a DataLoader: in one query, if the dataset answers such."""
        query = getattr(self._dataset, "__getitems__", None)
        items = query(rows) if query else map(self._dataset.__getitem__, rows)
        return [self._adapt(item) for item in items]

    def _adapt(self, item: Mapping[str, Any]) -> Any:
        """One item."""
        x = _as_tensor(self._samples, item)
        condition = {name: _as_tensor(column, item) for name, column in self._conditions.items()}
        return (x, condition) if condition else x


def _as_tensor(column: str, item: Mapping[str, Any]) -> Tensor:
    """An entry of an item as a tensor; images get channels first."""
    value = item[column]
    try:
        if hasattr(value, "getbands"):  # a Pillow image; Pillow may not be installed
            value = _channels_first(value)
        elif isinstance(value, np.ndarray) and value.dtype in (np.uint8, np.uint16):
            value = _array_channels_first(value)
        if isinstance(value, np.ndarray):
            # A copy that may be written to, in a dtype and byte order of PyTorch.
            dtype: Any = value.dtype.newbyteorder("=")
            if value.dtype == np.uint16:
                dtype = np.int32
            value = np.array(value, dtype)
        return as_tensor(value, "an image")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"column {column!r} holds {type(value).__name__}, wanted numbers or an image: {error}"
        ) from None


def _array_channels_first(array: np.ndarray) -> np.ndarray:
    """An array (H, W) or (H, W, 1 or 3) with channels first; others as they are."""
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and array.shape[2] in (1, 3):
        return array.transpose(2, 0, 1)
    return array
