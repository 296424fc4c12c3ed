"""`scoresde impute`: the gaps of a table, given the rest of each row."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.result_tables import counted
from ..data.files.mixed import check_table_path, read_columns
from ..guidance.imputation import impute as fill
from ..model.protocol import Model
from ..model.tables.reading import raw_column
from ..storage.models import load
from .devices import place, say
from .inputs import check_folder, conditions, with_constants
from .parser import DEVICE, ENCODING, GIVEN, IMPORT, MODEL, PARTICLES, SEED, STEPS, Command, option
from .tables import write_rows


def impute(args: argparse.Namespace) -> None:
    """Fill in the gaps of a table, and write it."""
    check_table_path(args.out)
    check_folder(args.out)
    sde = load(args.model)
    known = {"table": sde.table, "numbers": sde.schema.columns or None}
    columns = read_columns(args.data, encoding=args.encoding, **known)
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
    gaps = sum(
        int(raw_column(name, columns[name]).missing.sum()) for name in filled if name in columns
    )
    rows_read = counted(len(next(iter(columns.values()))), "row")
    say(engine, f"{args.out}: {counted(gaps, 'gap')} filled in {rows_read}")


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
}
