"""What benchmarks print and keep: Markdown on the screen and in a file, rows in a JSON file."""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def versions(packages: Iterable[str]) -> str:
    """Name the packages' versions, the machine and the day."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    where = f"one thread of {platform.machine()}, {os.cpu_count()} cores"
    return f"{', '.join(found)}; {where}; {time.strftime('%Y-%m-%d')}"


class Report:
    """Prints lines, adds them to a Markdown file, and keeps rows for a JSON file."""

    def __init__(self, out: str | None, rows: str | None, packages: Iterable[str]) -> None:
        self.out = Path(out) if out else None
        self.json = Path(rows) if rows else None
        self.machine = versions(packages)
        self.rows: list[dict[str, Any]] = []
        if self.out:
            self.out.write_text("")
        self(self.machine + "\n")

    def __call__(self, line: str = "") -> None:  # noqa: D102
        print(line, flush=True)
        if self.out:
            with self.out.open("a") as file:
                file.write(line + "\n")

    def head(self, title: str, columns: Sequence[str]) -> None:
        """Begin a table."""
        self(f"### {title}\n")
        self("| " + " | ".join(columns) + " |")
        self("| --- " * len(columns) + "|")

    def row(self, *cells: object) -> None:
        """Print a row of a table."""
        self("| " + " | ".join(str(cell) for cell in cells) + " |")

    def keep(self, **row: Any) -> None:
        """Add a row to the JSON file."""
        self.rows.append(row)
        if self.json:
            self.json.write_text(
                json.dumps({"machine": self.machine, "rows": self.rows}, indent=1)
            )


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where results go."""
    parser.add_argument("--out", help="a file for the tables, beside the screen")
    parser.add_argument("--json", help="a file for all results")
    parser.add_argument("--quick", action="store_true", help="minutes, to see that it works")
    parser.add_argument("--seed", type=int, default=0)


def options(words: Sequence[str]) -> dict[str, Any]:
    """Read key=value, where a value is a Python literal or else a string."""
    found: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found
