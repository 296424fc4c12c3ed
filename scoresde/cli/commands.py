"""The `scoresde` command: the table `COMMANDS`. Arrays are read from and written to files; models
are folders.

`accelerate launch -m scoresde …` runs a command on several processes, if it computes where
`scoresde.cli.devices` says.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence

from ..common.checks import check_seed
from ..common.errors import SolverError, TrainingError
from . import demo, imputing, inpainting, sampling, scoring, training
from .parser import Command, build_parser

COMMANDS: dict[str, Command] = {
    **demo.COMMANDS,
    **training.COMMANDS,
    **sampling.COMMANDS,
    **imputing.COMMANDS,
    **inpainting.COMMANDS,
    **scoring.COMMANDS,
}
"""All commands by name; see `scoresde.cli.parser`."""

MISTAKES = (ValueError, TypeError, OSError, ImportError, SolverError, TrainingError)
"""Errors that a user can mend: one line, no traceback."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake ends with status 2 and one line on standard error."""
    args = build_parser(COMMANDS).parse_args(argv)
    command = COMMANDS[args.verb]
    status = 2
    try:
        check_seed(getattr(args, "seed", 0))
        for name in getattr(args, "imports", ()):
            importlib.import_module(name)
        command.run(args)
        return
    except MISTAKES as error:
        message = _as_arguments(str(error), hasattr(args, "condition"))
    except (MemoryError, RuntimeError) as error:
        message = _out_of_memory(error)
        if not message:
            raise
    except KeyboardInterrupt:
        status = 130
        message = "interrupted" + command.when_interrupted(args)
    print(f"scoresde {args.verb}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)


def _as_arguments(message: str, has_condition: bool) -> str:
    """A message with arguments of the command in place of Python."""
    instead = r"give it by --given \1=…"
    if has_condition:
        instead += r" or --condition \1"
    message = re.sub(r"write sde\.given\((\w+)=\.\.\.\)", instead, message)
    return message.replace("Checkpoints(folder, resume=True)", "--resume")


def _out_of_memory(error: MemoryError | RuntimeError) -> str:
    """The message for an error that means too little memory; "" for any other."""
    text = str(error)
    if not isinstance(error, MemoryError) and not re.search(
        "memory|overflow", text, re.IGNORECASE
    ):
        return ""
    where = text.splitlines()[0] if text else "on this machine"
    return f"there is not the memory for it: {where}"
