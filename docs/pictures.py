"""Remakes the pictures of the documentation: `make pictures`, or `python docs/pictures.py NAME …`.

`PICTURES` names the command of each picture in `_static`; docs/gallery.md shows the same commands.
Pictures of the notebooks are written by the code of their pages, which runs at full size here.
Every picture is stored with a palette, at most 150 kB.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
STATIC = DOCS / "_static"
LIMIT = 150_000  # bytes
WIDEST = 1600  # pixels
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Picture:
    """How a picture is made: a command that writes `written`, and about how long it takes."""

    command: str
    written: str
    minutes: float
    by_default: bool = True


PICTURES = {
    "demo.png": Picture("python -m scoresde demo --out demo.png", "demo.png", 2),
    "inpaint.png": Picture("python examples/inpaint.py --out inpaint.png", "inpaint.png", 1),
    "guidance.png": Picture("python examples/guidance.py --out guidance.png", "guidance.png", 2),
    "reflow.png": Picture(
        "python examples/rectified_flow.py --out rectified_flow", "rectified_flow/paths.png", 3
    ),
    "frontier.png": Picture(
        'make bench-solvers BENCH="--figure frontier.png"', "frontier.png", 30, by_default=False
    ),
    "densities.png": Picture(
        "python benchmarks/likelihood.py density --figure densities.png",
        "densities.png",
        90,
        by_default=False,
    ),
    "gaps.png": Picture(
        "python benchmarks/likelihood.py density --figure densities.png",
        "densities-gaps.png",
        90,
        by_default=False,
    ),
    "fashion.png": Picture(
        "scoresde fit --recipe fashion-mnist FOLDER --out run && "
        "scoresde evaluate run FOLDER -n 256 --out run",
        "run/samples.png",
        30,
        by_default=False,
    ),
    "fashion-latent.png": Picture(
        "scoresde fit --recipe fashion-mnist-latent FOLDER --out run && "
        "scoresde evaluate run FOLDER -n 256 --out run",
        "run/samples.png",
        20,
        by_default=False,
    ),
}
NOTEBOOKS = {
    f"{prefix}-{name}.png": f"docs/notebooks/{page}.md"
    for page, prefix, names in [
        ("sdes", "sdes", ("forward", "score", "backward", "learnt")),
        ("likelihoods", "likelihoods", ("paths", "error", "moons")),
        ("rectified_flow", "flow", ("lines", "reflow", "steps")),
    ]
    for name in names
}


def shrink(source: Path, target: Path) -> None:
    """Store a picture with as many colors as fit into the limit, on white, no wider than WIDEST."""
    image = Image.open(source).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    if image.width > WIDEST:
        height = round(image.height * WIDEST / image.width)
        image = image.resize((WIDEST, height), Image.Resampling.LANCZOS)
    for colors in (256, 128, 64, 32, 16):
        image.quantize(colors, dither=Image.Dither.NONE).save(target, optimize=True)
        if target.stat().st_size <= LIMIT:
            return
    raise ValueError(f"{target.name} has {target.stat().st_size} bytes in 16 colors: draw less")


def run_page(page: str) -> None:
    """Run the code of a page, which writes its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        code = "\n".join(FENCE.findall((DOCS.parent / page).read_text(encoding="utf-8")))
        script = Path(folder, "page.py")
        script.write_text(code, encoding="utf-8")
        subprocess.run([sys.executable, script], cwd=folder, env=environment(), check=True)
        for picture in sorted(Path(folder).glob("*.png")):
            shrink(picture, STATIC / picture.name)
            print(STATIC / picture.name)


def run_command(name: str) -> None:
    """Run the command of a picture from the root of the repository, and store what it wrote."""
    picture = PICTURES[name]
    command = re.sub(r"\bpython\b", sys.executable, picture.command)
    subprocess.run(command, shell=True, cwd=DOCS.parent, env=environment(), check=True)
    written = DOCS.parent / picture.written
    shrink(written, STATIC / name)
    print(STATIC / name)
    if written.parent == DOCS.parent:
        written.unlink()
    else:
        shutil.rmtree(written.parent)


def environment() -> dict[str, str]:
    """The environment, with this checkout first, and no windows."""
    path = os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg"}


def main(names: list[str]) -> None:
    short = [name for name, picture in PICTURES.items() if picture.by_default]
    names = names or [*short, *NOTEBOOKS]
    unknown = [name for name in names if name not in PICTURES and name not in NOTEBOOKS]
    if unknown:
        raise SystemExit(f"no such pictures: {unknown}; there are {[*PICTURES, *NOTEBOOKS]}")
    for page in dict.fromkeys(NOTEBOOKS[name] for name in names if name in NOTEBOOKS):
        run_page(page)
    for name in names:
        if name in PICTURES:
            run_command(name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as demo.png; none: all that take minutes")
    main(parser.parse_args().names)
