"""`scoresde inpaint`: what is hidden in an image, given what is seen."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.checks import whole_number
from ..data import files
from ..data.files.base import optional
from ..data.files.images import read_image
from ..guidance.measurements import Inpaint
from ..guidance.observed import observe
from ..guidance.weighted_particles import particles
from ..model.protocol import Model
from ..storage.models import load
from .devices import place, say
from .inputs import LEVELS, check_writable, conditions, with_constants
from .parser import DEVICE, GIVEN, IMPORT, MODEL, PARTICLES, SEED, STEPS, Command, option


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
