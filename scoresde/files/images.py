"""Images: folders of them, and datasets whose items are dicts that hold them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ..inputs import as_tensor
from ..registry import nearest
from .base import Ask, Samples, labelled, optional, regular

GRAY16 = ("I;16", "I;16B", "I;16L", "I;16N")
READ = {"L": np.uint8, "RGB": np.uint8, "I": np.int32, "F": np.float32} | dict.fromkeys(GRAY16, np.uint16)
OPAQUE = "Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA')).convert('RGB')"
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
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # no EPS, which Pillow hands to another program


def image_folder(path: Path, ask: Ask) -> Samples:
    """Read a folder of images, whose sub-folders are classes."""
    shown = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in shown if entry.is_dir()]
    if folders and len(folders) < len(shown):
        stray = next(entry for entry in shown if not entry.is_dir())
        raise ValueError(f"{stray.name} lies beside folders; in a folder of classes all images lie in one of them")
    groups = [_beneath(folder) for folder in folders] or [shown]
    for folder, group in zip(folders or [path], groups, strict=True):
        if not group:
            raise ValueError(f"there is no image in {folder.name}; wanted files such as .png or .jpg")
    files = [file for group in groups for file in group]
    first = _pixels(files[0])
    values = np.empty((len(files), *first.shape), first.dtype)
    for i, file in enumerate(files):
        image = _pixels(file)
        if image.shape != first.shape:
            size = " × ".join(map(str, image.shape))
            raise ValueError(f"{file} is {size} (channels, height, width), {files[0]} is {' × '.join(map(str, first.shape))}")
        if image.dtype != first.dtype:
            raise ValueError(f"{file} holds {image.dtype}, {files[0]} {first.dtype}: all images are of one kind")
        values[i] = image
    if not folders:
        ask.columns(())
        return Samples(values)
    y = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    return labelled(values, y, tuple(folder.name for folder in folders), ask)


def _beneath(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("[!.]*") if not file.is_dir())


def _pixels(path: Path) -> np.ndarray:
    pillow = optional("PIL.Image", "images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            # As a stream: of a path Pillow maps plain TIFFs, and scrambles those that are to be turned by 90 degrees.
            with regular(path).open("rb") as file, pillow.open(file, formats=FORMATS) as image:
                return _channels_first(image)
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise ValueError(f"{path} is not an image to be read: {error}") from None


def _channels_first(image: Any) -> np.ndarray:
    """The pixels of a Pillow image, turned as its EXIF says, in its own levels: shape (1 or 3, H, W)."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ValueError(f"it has {frames} frames, wanted one; image.seek(i), image.copy() takes one out")
    if image.mode not in READ:
        advice = ADVICE.get(image.mode, "image.convert('RGB') is near to it")
        raise ValueError(f"it has mode {image.mode}, wanted L or RGB, or gray of 16 or 32 bits; it is {advice}")
    coding = _coding(image)
    if image.mode == "RGB" and (";16" in coding or _maximum(image) > 255):
        raise ValueError("it has colors of 16 bits, of which Pillow keeps 8; write its numbers as .npy by another library")
    maximum, turned = _maximum(image), optional("PIL.ImageOps", "images").exif_transpose(image)
    pixels = np.asarray(turned)
    if image.format == "PPM" and image.mode == "I":  # which has at most 16 bits; Pillow stretches fewer
        pixels = np.rint(pixels * ((maximum or 65535) / 65535)).astype(np.uint16)
    if image.mode == "I" and ";32" in coding and not coding.endswith("S") and pixels.min() < 0:
        raise ValueError("its numbers are unsigned of 32 bits, above what Pillow holds; write them as .npy by another library")
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _arguments(image: Any) -> tuple[Any, ...]:
    """What the decoder of an image that is not yet decoded is told."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _coding(image: Any) -> str:
    """How the file codes a pixel, such as RGB;16B."""
    return next((str(argument) for argument in _arguments(image) if isinstance(argument, str)), "")


def _maximum(image: Any) -> int:
    """The greatest number of a PPM file that is not one of 8 or 16 bits; 0 for all others."""
    arguments = _arguments(image)
    return int(arguments[1]) if image.format == "PPM" and len(arguments) > 1 and isinstance(arguments[1], int) else 0


def columns(dataset: Any, samples: str, **conditions: str) -> Dataset[Any]:
    """Adapt a dataset whose items are dicts, such as one of Hugging Face, to items (x, {"y": ...}), which `fit` takes.

    Pillow images, turned as their EXIF says, and uint8 arrays (H, W) or (H, W, C), become uint8 tensors, channels first; those of
    16 bits int32, in their own levels. All else goes through `torch.as_tensor`. Datasets that can only be iterated, such as
    streamed ones, are not adapted.

    Parameters
    ----------
    dataset : map-style dataset
        With `len(dataset)`, and `dataset[i]` a mapping.
    samples : str
        The column of the samples.
    **conditions : str
        Columns of conditions, by the condition's name: y="label".

    Returns
    -------
    Dataset
        Of items x, or (x, {"y": ...}) if there are conditions.

    Raises
    ------
    TypeError
        If the dataset has no length, or its items are no mappings; when reached, for a column that holds no numbers.
    ValueError
        If it is empty, or has no such column.

    Examples
    --------
    >>> rows = [{"image": [0.5, 1.5], "label": 3, "id": "a"}] * 10
    >>> scoresde.files.columns(rows, "image", y="label")[0]
    (tensor([0.5000, 1.5000]), {'y': tensor(3)})
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(f"columns takes a dataset with len() and [i], got {type(dataset).__name__}")
    if not len(dataset):
        raise ValueError("the dataset is empty")
    item = dataset[0]
    if not isinstance(item, Mapping):
        raise TypeError(f"columns takes a dataset whose items are dicts, got items of type {type(item).__name__}")
    for column in (samples, *conditions.values()):
        if column not in item:
            raise ValueError(f"the dataset has no column {column!r}. {nearest(str(column), map(str, item))}")
    return _Columns(dataset, samples, conditions)


class _Columns(Dataset[Any]):
    def __init__(self, dataset: Any, samples: str, conditions: Mapping[str, str]) -> None:
        self._dataset, self._samples, self._conditions = dataset, samples, dict(conditions)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: int) -> Any:
        return self._adapt(self._dataset[i])

    def __getitems__(self, rows: list[int]) -> list[Any]:
        """What a DataLoader asks for: one query for the batch, where the dataset answers such."""
        several = getattr(self._dataset, "__getitems__", None)
        return [self._adapt(item) for item in (several(rows) if several else map(self._dataset.__getitem__, rows))]

    def _adapt(self, item: Mapping[str, Any]) -> Any:
        x = _as_tensor(self._samples, item)
        condition = {name: _as_tensor(column, item) for name, column in self._conditions.items()}
        return (x, condition) if condition else x


def _as_tensor(column: str, item: Mapping[str, Any]) -> Tensor:
    value = item[column]
    try:
        if hasattr(value, "getbands"):  # a Pillow image, known by its method so that Pillow need not be there
            value = _channels_first(value)
        elif isinstance(value, np.ndarray) and value.dtype in (np.uint8, np.uint16) and value.ndim in (2, 3):
            last = value.ndim == 3 and value.shape[2] in (1, 3)  # else (C, H, W) already
            value = value[None] if value.ndim == 2 else value.transpose(2, 0, 1) if last else value
        if isinstance(value, np.ndarray):  # in a dtype and order that PyTorch knows, and its own to write to
            value = np.array(value, np.int32 if value.dtype == np.uint16 else value.dtype.newbyteorder("="))
        return as_tensor(value, "an image")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"column {column!r} holds {type(value).__name__}, wanted numbers or an image: {error}") from None
