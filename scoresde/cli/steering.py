"""`scoresde inpaint` and `scoresde impute`: what is missing, given what is seen."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import whole_number
from ..data import files
from ..data.files.base import optional
from ..data.files.images import read_image
from ..data.files.mixed import check_table_path, read_columns
from ..guidance.imputation import impute as fill
from ..guidance.measurements import Inpaint
from ..guidance.observed import observe
from ..guidance.populations import particles
from ..model.protocol import Model
from ..storage.models import load
from .devices import place, say
from .inputs import LEVELS, check_folder, check_writable, conditions, with_constants
from .parser import DEVICE, ENCODING, GIVEN, IMPORT, MODEL, SEED, Command, option
from .tables import write_rows

PARTICLES = option(
    "--particles",
    type=int,
    default=16,
    help="weighted ones of which each draw is one (default: %(default)s)",
)
STEPS = option("--steps", type=int, default=100, help="of each draw (default: %(default)s)")


def impute(args: argparse.Namespace) -> None:
    """Fill in the gaps of a table, and write it."""
    check_table_path(args.out)
    check_folder(args.out)
    sde = load(args.model)
    columns = read_columns(args.data, encoding=args.encoding)
    _, texts = conditions(args)
    conditioned = with_constants(sde, texts)
    rows: Any = columns if sde.table is not None else _matrix(sde, columns)
    engine = place(sde, args.device)
    generator = torch.Generator().manual_seed(args.seed)
    how = {"particles": args.particles, "steps": args.steps, "generator": generator}
    if sde.table is None and sde.interface.takes_gaps:
        del how["particles"]  # a network that is shown what a row has
    filled = fill(conditioned, rows, **how)
    if isinstance(filled, Tensor):
        filled = _with_known(filled.cpu().numpy(), _names(sde, columns), columns)
    # Columns that the model does not have stay as they are.
    whole = {name: filled.get(name, column) for name, column in columns.items()}
    write_rows(args.out, whole)
    gaps = sum(int(_gaps(columns[name]).sum()) for name in filled if name in columns)
    say(engine, f"{args.out}: {gaps:,} gaps filled in {len(next(iter(columns.values()))):,} rows")


def _gaps(column: np.ndarray) -> np.ndarray:
    """Which cells of a column have no value."""
    found: np.ndarray = np.isnan(column) if column.dtype.kind == "f" else column == ""
    return found


def _names(sde: Model, columns: dict[str, np.ndarray]) -> list[str]:
    """The columns of a sample, in the model's order."""
    return list(sde.schema.columns or columns)


def _with_known(
    rows: np.ndarray, names: list[str], columns: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Filled rows as columns, where what was known has all of its digits."""
    found = {}
    for j, name in enumerate(names):
        column = columns[name]
        gaps = np.isnan(column)
        found[name] = np.where(gaps, rows[:, j], column) if gaps.any() else column
    return found


def _matrix(sde: Model, columns: dict[str, np.ndarray]) -> Tensor:
    """Columns as rows of samples, NaN for gaps."""
    names = _names(sde, columns)
    lacking = [name for name in names if name not in columns]
    if lacking or sde.shape != (len(names),):
        told = f" with the columns {names}" if sde.schema.columns else ""
        raise ValueError(
            f"the model has samples of shape {tuple(sde.shape)}{told}, and the table has the "
            f"columns {list(columns)}"
        )
    words = [name for name in names if columns[name].dtype.kind not in "fiu"]
    if words:
        raise ValueError(f"column {words[0]!r} has words, and the model has numbers")
    return torch.from_numpy(np.stack([columns[name].astype(np.float32) for name in names], 1))


def inpaint(args: argparse.Namespace) -> None:
    """Draw what lies behind the mask of an image."""
    check_writable(args.out, *IMAGES, ".npy")
    n = whole_number("n", args.n)
    sde = load(args.model)
    image, levels = _image(Path(args.image), sde)
    known = _mask(Path(args.mask), sde)
    _, texts = conditions(args)
    noise = args.noise
    posterior = observe(with_constants(sde, texts), Inpaint(known, noise=noise), image)
    engine = place(sde, args.device)
    generator = torch.Generator().manual_seed(args.seed)
    found = particles(posterior, n, args.particles, args.steps, generator=generator)
    drawn = found.x.cpu()
    if not noise:
        drawn = torch.where(known, image, drawn.to(image))
    _write_images(args.out, drawn, levels)
    say(engine, f"{args.out}: {n} draws of {int((~known).sum())} hidden numbers")


IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def _image(path: Path, sde: Model) -> tuple[Tensor, int]:
    """An image as the model has learnt them, and its levels; 0 for an array of floats."""
    pixels = files.read(path).values if path.suffix == ".npy" else read_image(path)
    pixels = np.asarray(pixels)
    if pixels.ndim == len(sde.shape) + 1 and len(pixels) == 1:
        pixels = pixels[0]
    if tuple(pixels.shape) != tuple(sde.shape):
        raise ValueError(
            f"{path} has shape {tuple(pixels.shape)}, and the model's samples have {sde.shape}"
        )
    levels = LEVELS.get(pixels.dtype, 0)
    x = torch.from_numpy(pixels.astype(np.float32))
    return ((x + 0.5) / levels if levels else x), levels


def _mask(path: Path, sde: Model) -> Tensor:
    """Where the image is known: the white of a picture, or True of an array."""
    if path.suffix == ".npy":
        pixels = np.asarray(files.read(path).values)
        if not np.isin(pixels, (0, 1)).all():
            raise ValueError(f"{path} is no mask: wanted an array of bool, True for what is known")
    else:
        pixels = read_image(path).max(0, keepdims=True)
    threshold = pixels.max(initial=0) / 2
    known = torch.from_numpy(pixels > threshold)
    if known.all():
        raise ValueError(f"{path} hides nothing: what is to be drawn is black, or False")
    try:
        return known.expand(sde.shape)
    except RuntimeError:
        raise ValueError(
            f"{path} has shape {tuple(pixels.shape)}, and the model's samples have {sde.shape}"
        ) from None


def _write_images(path: str, x: Tensor, levels: int) -> None:
    """Write draws side by side as one picture, or as an array."""
    if path.endswith(".npy"):
        files.write(path, x)
        return
    pillow = optional("PIL.Image", "images")
    levels = levels or 256
    pixels = (x * levels).floor().clamp(0, levels - 1) * (255 / (levels - 1))
    row = torch.cat(list(pixels.round().to(torch.uint8)), -1)  # (C, H, n·W)
    array = row.permute(1, 2, 0).numpy()
    if array.shape[2] == 1:  # gray
        array = array[..., 0]
    pillow.fromarray(array).save(path)


COMMANDS = {
    "impute": Command(
        help="fill in the gaps of a table",
        run=impute,
        options=(
            MODEL,
            option(
                "data",
                help="a .csv, .tsv or .parquet with the model's columns and gaps; others stay",
            ),
            PARTICLES,
            STEPS,
            SEED,
            GIVEN,
            ENCODING,
            DEVICE,
            option("--out", required=True, help=".csv, .tsv or .parquet"),
            IMPORT,
        ),
    ),
    "inpaint": Command(
        help="draw what is hidden in an image",
        run=inpaint,
        options=(
            MODEL,
            option("image", help="a picture, or a .npy array of the shape of a sample"),
            option(
                "--mask",
                required=True,
                help="a picture, white where the image is known, or a .npy array of bool",
            ),
            option("-n", type=int, default=4, help="how many draws (default: %(default)s)"),
            option(
                "--noise",
                type=float,
                default=0.0,
                help="standard deviation of the noise in the image (default: %(default)s)",
            ),
            PARTICLES,
            STEPS,
            SEED,
            GIVEN,
            DEVICE,
            option("--out", required=True, help="a picture of all draws side by side, or .npy"),
            IMPORT,
        ),
    ),
}
