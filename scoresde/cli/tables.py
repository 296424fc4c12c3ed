"""Tables with columns of several kinds: how `fit`, `sample` and `log-prob` read and write them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ..common.checks import whole_number
from ..data.files.mixed import (
    check_table_path,
    read_columns,
    write_columns,
)
from ..data.typed_table import Table
from ..model.builder import build
from ..model.tables.schema import TableSchema
from ..training.fitting import fit
from ..training.options import AUTO, Checkpoints, Validation
from ..training.recipes import PLAIN
from .devices import (
    find_device,
    launched,
    say,
)
from .inputs import log_of, network_options, split_names
from .parser import Option, option

TABLE_OPTIONS: tuple[Option, ...] = (
    option(
        "--table",
        action="store_true",
        help="a .csv, .tsv or .parquet with columns of several kinds: numbers, integers, words; "
        "sample and log-prob write and read such tables then",
    ),
    option(
        "--categories",
        metavar="NAME,…",
        help="of a --table: numbers that are categories",
    ),
    option(
        "--bounds",
        action="append",
        default=[],
        metavar="NAME=LOW:HIGH",
        help="of a --table: bounds of a column, such as price=0: or share=0:1",
    ),
    option(
        "--drop-missing", action="store_true", help="of a --table: leave out rows without a value"
    ),
    option(
        "--keep-missing",
        action="store_true",
        help="of a --table: keep rows that lack numbers, for --net masked, which learns from them",
    ),
    option(
        "--no-equalize", action="store_true", help="of a --table: leave columns that clump as is"
    ),
)
"""Options of `fit`."""

NO_FILE = (None, "", AUTO, "none")
"""Of --validation: no held-out samples are given."""

NOT_OF_TABLES = ("recipe", "stage", "condition", "columns", "transform")


def fit_table(args: argparse.Namespace) -> None:
    """Train a model of a table."""
    for name in NOT_OF_TABLES:
        if getattr(args, name):
            raise ValueError(f"--{name} is no option of a --table, whose columns are all learnt")
    log = log_of(args)
    how = {name: PLAIN.how[name] for name in ("steps", "batch_size", "lr")}
    how |= {name: getattr(args, name) for name in how if getattr(args, name) is not None}
    for name in ("steps", "batch_size"):
        if how[name] != AUTO:
            whole_number(name.replace("_", "-"), how[name])
    every = PLAIN.every if args.every is None else whole_number("every", args.every)
    categories = []
    if args.categories:
        categories = split_names(args.categories)
    if args.drop_missing and args.keep_missing:
        raise ValueError("--drop-missing and --keep-missing exclude one another; leave one out")
    missing = "error"
    if args.drop_missing:
        missing = "drop"
    elif args.keep_missing:
        missing = "keep"
    table = Table(
        read_columns(args.data, encoding=args.encoding, categories=categories),
        categories=categories,
        bounds=dict(map(_bounds, args.bounds)),
        equalize=not args.no_equalize,
        missing=missing,
    )
    held_out: Validation | str | None = AUTO
    if args.validation == "none":
        held_out = None
    if args.validation not in NO_FILE:
        rows = read_columns(args.validation, encoding=args.encoding, table=table)
        held_out = Validation(rows, every=every, patience=args.patience)
    elif args.patience is not None:
        raise ValueError("--patience goes with --validation, whose loss it watches")
    options = network_options(args.option)
    if table.classes:
        options["classes"] = table.classes
    torch.manual_seed(args.seed)
    net = args.net or PLAIN.net
    sde = build(args.process or PLAIN.process, net, shape=table.shape, **options)
    engine = launched()
    if engine is None and args.device is not None:
        sde.to(find_device(args.device))
    history = fit(
        sde,
        table,
        validation=held_out,
        coupling=args.coupling,
        objective=args.objective,
        checkpoints=Checkpoints(args.out, every=every, resume=args.resume),
        log=log,
        backend=engine,
        generator=torch.Generator().manual_seed(args.seed),
        **how,
    )
    say(engine, repr(table))
    say(engine, f"{args.out}: {history!r}")


def _bounds(text: str) -> tuple[str, tuple[float | None, float | None]]:
    """A column and its bounds, from NAME=LOW:HIGH."""
    name, equals, pair = text.rpartition("=")
    low, colon, high = pair.partition(":")
    try:
        if not equals or not colon:
            raise ValueError
        ends = [float(end) if end.strip() else None for end in (low, high)]
    except ValueError:
        raise ValueError(
            f"bounds are NAME=LOW:HIGH such as share=0:1 or price=0:, got {text!r}"
        ) from None
    return name, (ends[0], ends[1])


def read_rows(
    args: argparse.Namespace, path: str, table: TableSchema, first: int | None = None
) -> dict[str, Any]:
    """Return the rows of a model's table in a file, or the first of them."""
    if args.columns or args.condition or args.levels:
        raise ValueError(
            "this model has learnt a table, whose columns it knows: leave out --columns, "
            "--condition and --levels"
        )
    columns = read_columns(path, encoding=args.encoding, table=table)
    if first is None:
        return dict(columns)
    n = whole_number("n", first)
    return {name: column[:n] for name, column in columns.items()}


def write_rows(path: str, frame: Any) -> None:
    """Write rows of a table."""
    check_table_path(path)
    write_columns(Path(path), frame)
