"""Commands and their options as tables, and the parser that is made of them.

A command is a row `"name": Command(help, run, options)` of the table `COMMANDS` of a module of this
folder, beside the function that runs it. To add one, write both there; a module that is new joins
the others in `scoresde.cli.commands`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """An argument of a command: its names and the keywords of `ArgumentParser.add_argument`."""

    names: tuple[str, ...]
    keywords: Mapping[str, Any]


@dataclass(frozen=True)
class Command:
    """A command of the command line."""

    help: str
    run: Callable[[argparse.Namespace], None]
    options: tuple[Option, ...]
    when_interrupted: Callable[[argparse.Namespace], str] = lambda args: ""
    """Says what an interrupted run leaves, as the end of a sentence."""


def option(*names: str, **keywords: Any) -> Option:
    """Return an option, as `add_argument` takes it."""
    return Option(names, keywords)


def build_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return the parser of a table of commands; the command's name goes to `verb`."""
    parser = argparse.ArgumentParser(
        prog="scoresde", description="Score models: train, sample, log p(x)."
    )
    subparsers = parser.add_subparsers(dest="verb", required=True)
    for name, command in commands.items():
        subparser = subparsers.add_parser(name, help=command.help)
        for each in command.options:
            subparser.add_argument(*each.names, **each.keywords)
    return parser


MODEL = option("model", help="the model's folder")
PARTICLES = option(
    "--particles",
    type=int,
    default=16,
    help="weighted ones of which each draw is one (default: %(default)s)",
)
STEPS = option("--steps", type=int, default=100, help="of each draw (default: %(default)s)")
SEED = option("--seed", type=int, default=0, help="of all randomness (default: %(default)s)")
DEVICE = option("--device", default="cpu", help="where to compute (default: %(default)s)")
LEVELS = option("--levels", type=int, help="of integer data (default: 256; 65536 for 16 bits)")
SOLVER = option("--solver", default="adams", help="an ODE solver (default: %(default)s)")
GIVEN = option(
    "--given",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="a condition of all samples, e.g. y=3, y=cat, or vector=[0.5,2]",
)
CONDITION = option(
    "--condition",
    action="append",
    default=[],
    metavar="NAME[=COLUMN,…]",
    help="a condition in the data: y=label, vector=dose,age",
)
COLUMNS = option(
    "--columns",
    metavar="NAME,…",
    help="the columns of a table that hold the samples (default: all others)",
)
ENCODING = option(
    "--encoding", default="utf-8", help="of a .csv or .tsv, e.g. utf-16 (default: %(default)s)"
)
IMPORT = option(
    "--import",
    action="append",
    default=[],
    dest="imports",
    metavar="MODULE",
    help="a module to import first, for what it adds: backbones, objectives, file formats, …; "
    "reading a model imports nothing, not even diffusers",
)
