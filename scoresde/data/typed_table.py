"""`Table`: rows with columns of several kinds, which a model learns together with their schema."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import true_or_false
from ..common.names import choose
from ..common.user_warnings import warn
from ..model.class_words import Labels
from ..model.tables.categories import Categories
from ..model.tables.cells import category_numbers, missing_text
from ..model.tables.columns import Bounds, Categorical
from ..model.tables.fitting import check_network
from ..model.tables.gaps import partial_rows
from ..model.tables.infer import Statements, column_of
from ..model.tables.reading import RawColumn, array_columns, as_array, raw_columns
from ..model.tables.schema import TableSchema
from ..model.trainable import Trainable
from .files.mixed import read_columns
from .transforms import Transform

MOST_SINGLE_WORDS = 100
"""Categories of a column that may have fewer than two rows each."""


class Table(TableSchema):
    """Rows with columns of several kinds: continuous, discretized, bounded, categorical.

    `fit(sde, table)` learns log p of a row, and keeps the schema in the model, `sde.table`. Then
    `sample` returns data frames, and `log_prob` takes them; `save`, `load` and the command follow.

    - A column of numbers is **discretized** if all its values are multiples of a step: integers,
      or hundredths. The value v stands for [v, v + step), in which each batch draws fresh uniform
      noise. A new value between two steps is rounded down, with a warning if the step is more than
      a thousandth of the range. Other numbers are **continuous**, also those on a decimal grid
      finer than 1e-4 standard deviations, unless most rows repeat a value.
    - A column with stated `bounds` is learnt as log(x − a), −log(b − x) or log((x − a)/(b − x)),
      with the Jacobian. For a discretized column, a and b lie 5% of a step outside the bins of
      its values within the bounds, so that a value may be equal to a bound.
    - Columns are **equalized** where their values clump: in cells of a sixteenth of the standard
      deviation, of the log or logit if there are bounds, a piecewise linear map, with its Jacobian,
      spreads clumps that are too narrow for a network. Columns that gain less than 0.05 nats a row
      stay as they are.
    - Words, booleans, pandas' categories and stated integers are **categorical**:
      log p(row) = log p(y) + log p(x | y), where y numbers the combinations of categories. The
      network learns a vector of each category, and adds up those of a combination. p(y) is a
      mixture of the shares of combinations that occurred more than once, and of a tree of columns,
      each depending on one other, the tree of greatest mutual information: every combination of
      categories that occurred has a probability. See `scoresde.model.tables.categories`.

    Parameters
    ----------
    frame : data frame, mapping of str to column, or array or Tensor of shape (N, columns)
        Of pandas or polars, or a dict of arrays and lists, all of one length. The columns of an
        array are named x0, x1, …, and then `fit`, `log_prob`, `impute`, `marginal_log_prob` and
        `evaluate` take arrays of rows as well as data frames.
    categories : collection of str
        Columns of numbers that are categories.
    steps : mapping of str to float or None
        Steps that are known, such as {"carat": 0.01}; None for a continuous column.
    bounds : mapping of str to pair
        Such as {"x": (0, None), "share": (0, 1)}; None for no bound.
    equalize : bool
        Whether to spread clumps.
    missing : str
        What to do with rows that lack a value: "error", "drop", with a warning, or "keep" those
        that lack numbers, for a network that learns from them, build(..., "masked").

    Attributes
    ----------
    frame : data frame or mapping
        The rows.
    columns, shape, classes, steps
        See `scoresde.model.tables.schema.TableSchema`.

    Raises
    ------
    TypeError, ValueError
        For no rows, two columns of one name, a column that is constant, infinite somewhere or
        missing, values outside their bounds or off their step, no numeric column, a categorical
        column of more than 100 categories with fewer than two rows each on average, or 2^53
        combinations of categories.

    Warns
    -----
    UserWarning
        Of dropped rows, and of a continuous column with one value in a fifth of its rows.

    References
    ----------
    Theis, van den Oord & Bethge, A note on the evaluation of generative models, ICLR 2016
    (dequantization). Chow & Liu, Approximating discrete probability distributions with dependence
    trees, IEEE Transactions on Information Theory 14, 1968 (categories). Wong & Ma, Optional Pólya
    tree and Bayesian inference, Annals of Statistics 38, 2010 (clumps).

    Examples
    --------
    >>> rows = {"price": [3, 8, 5, 9], "kind": ["a", "b", "a", "a"], "x": [0.11, 2.5, 0.37, 1.25]}
    >>> table = scoresde.Table(rows, bounds={"x": (0, None)})
    >>> table
    Table: 4 rows, 2 numeric columns, 1 categorical
      price  int64    discretized, step 1                    3 … 9
      kind   str      categorical, 2 categories              a, b
      x      float64  discretized, step 0.01, log above 0    0.11 … 2.5
    >>> sde = scoresde.build("vp", "mlp", shape=table.shape, classes=table.classes, width=32)
    >>> history = scoresde.fit(sde, table, steps=20, progress=False)
    >>> scoresde.sample(sde, 2).columns.tolist()
    ['price', 'kind', 'x']
    >>> scoresde.log_prob(sde, rows).shape
    torch.Size([4])
    """

    def __init__(
        self,
        frame: Any,
        *,
        categories: Collection[str] = (),
        steps: Mapping[str, float | None] | None = None,
        bounds: Mapping[str, Bounds] | None = None,
        equalize: bool = True,
        missing: str = "error",
    ) -> None:
        true_or_false("equalize", equalize)
        choose("missing=", missing, ("error", "drop", "keep"))
        of_array = isinstance(frame, Tensor | np.ndarray) and frame.ndim == 2
        if of_array:
            frame = array_columns(frame)
        raw = raw_columns(frame)
        stated = Statements(categories, steps or {}, bounds or {}, raw)
        for each in raw.values():
            if each.missing.all():
                raise ValueError(f"column {each.name!r} has no values at all: leave it out")
        frame, raw = _without_gaps(frame, raw, missing)
        known = [each.take(np.flatnonzero(~each.missing)) for each in raw.values()]
        columns = [column_of(each, stated, equalize) for each in known]
        categorical = [each for each in columns if isinstance(each, Categorical)]
        counted = None
        if categorical:
            codes = [category_numbers(each, raw[each.name]) for each in categorical]
            sizes = [len(each.categories) for each in categorical]
            _refuse_rare(categorical, codes)
            counted = Categories.of(np.stack(codes, 1), sizes)
        super().__init__(columns, counted, of_array)
        self.frame = frame
        self._rows = len(next(iter(raw.values())))

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        encoding: str = "utf-8",
        categories: Collection[str] = (),
        steps: Mapping[str, float | None] | None = None,
        bounds: Mapping[str, Bounds] | None = None,
        equalize: bool = True,
        missing: str = "error",
    ) -> Table:
        """Read a table from a .csv, .tsv or .parquet file; the first line of text has the names.

        Cells that are empty, or NA or NaN, have no value. A column with a cell that is no number
        is words, and so is one of `categories` that has both 01234 and 1234. A line that begins
        with # is a comment; write its first cell in quotes, "#1", if it is a row.

        Parameters
        ----------
        path : path
        encoding : str
            Of text.
        categories, steps, bounds, equalize, missing
            As for `Table`.

        Returns
        -------
        Table

        Raises
        ------
        TypeError, ValueError, ImportError
            As `Table` and `scoresde.files.read`.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "a.csv")
        ...     _ = path.write_text("n,kind\\n1,a\\n4,b\\n")
        ...     scoresde.Table.read(path)
        Table: 2 rows, 1 numeric columns, 1 categorical
          n     int64  discretized, step 3          1 … 4
          kind  str    categorical, 2 categories    a, b
        """
        rows = read_columns(path, encoding=encoding, categories=categories)
        how: dict[str, Any] = {"steps": steps, "bounds": bounds, "equalize": equalize}
        return cls(rows, categories=categories, missing=missing, **how)

    def __len__(self) -> int:
        """Number of rows."""
        return self._rows

    def _size(self) -> str:
        """Numbers of rows and columns."""
        return f"{len(self):,} rows, {super()._size()}"


def _refuse_rare(columns: Collection[Categorical], codes: Collection[np.ndarray]) -> None:
    """Raise for a column that has fewer than two rows of each category, such as names."""
    for column, numbers in zip(columns, codes, strict=True):
        rows = len(numbers)
        words = len(np.unique(numbers))
        if words > MOST_SINGLE_WORDS and 2 * words > rows:
            raise ValueError(
                f"column {column.name!r} has {words:,} different categories in {rows:,} rows, too "
                "few of each to learn from: leave it out, or join rare ones"
            )


def _without_gaps(
    frame: Any,
    raw: dict[str, RawColumn],
    missing: str,
) -> tuple[Any, dict[str, RawColumn]]:
    """Rows and columns without the rows that lack a value, which are an error or dropped."""
    gaps = np.any([each.missing for each in raw.values()], 0)
    if not gaps.any() or missing == "keep":
        return frame, raw
    if missing == "error":
        raise ValueError(missing_text(next(each for each in raw.values() if each.missing.any())))
    if gaps.all():
        raise ValueError("every row lacks a value in some column: leave out those with most gaps")
    warn(f"{int(gaps.sum()):,} of {len(gaps):,} rows lack a value and are dropped")
    rows = np.flatnonzero(~gaps)
    kept = {name: each.take(rows) for name, each in raw.items()}
    if isinstance(frame, Mapping):
        return {name: as_array(name, column)[rows] for name, column in frame.items()}, kept
    return (frame.iloc[rows] if hasattr(frame, "iloc") else frame[rows]), kept


class EncodeRows(Transform):
    """Fresh noise in the bins of a table's values, and the change of variables, for batches."""

    continuous = True
    moves = False

    def __init__(self, table: TableSchema) -> None:
        self.table = table

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return encoded rows (B, D) of values (B, D)."""
        maps = self.table.maps
        u = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return maps.forward(maps.noisy(x, u))

    def log_det(self, shape: tuple[int, ...]) -> float:
        """Refuse: it differs from row to row."""
        raise TypeError("log|det| of a table differs from row to row: table.log_det(z)")

    def __repr__(self) -> str:
        """What it does; the schema is in the model's description."""
        return "EncodeRows()"


def is_rows(sde: Trainable, data: Any) -> bool:
    """Whether data are rows of a table for this model."""
    return isinstance(data, Table) or (sde.table is not None and sde.table.takes(data))


def keep_schema(sde: Trainable, data: Any) -> None:
    """Keep a table's schema in a model that has none; raise if the model knows another."""
    if not isinstance(data, Table):
        return
    if sde.table is None:
        check_network(sde, data)
        if bool(sde.measured):
            raise ValueError(
                "this model was fitted to data without a schema: take a new model for a table"
            )
        sde.table = data.schema()
    elif _unseen(sde.table) != _unseen(data):
        raise ValueError(
            "this model has learnt a table with other columns, steps, bounds or categories: give "
            "the data frame itself, fit(sde, table.frame), or take a new model"
        )


def _unseen(table: TableSchema) -> list[dict[str, Any]]:
    """The columns in plain JSON, without what rows decide: their range and their clumps."""
    columns = table.describe()["columns"]
    decided = {"seen", "knots", "images"}
    return [{name: v for name, v in column.items() if name not in decided} for column in columns]


def training_rows(
    sde: Trainable,
    data: Any,
    given: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """The values (N, D) of a table's rows, and their labels with words, as conditions."""
    table = sde.table
    assert table is not None
    if given and "y" in given:
        raise ValueError("the categories of a table are its condition y: leave it out of given=")
    gaps = sde.interface.takes_gaps
    values, found = table.values(data, gaps=gaps)
    if gaps:
        values, _ = partial_rows(table, data, categories=False)
    if sde.device.type == "mps":  # which has no float64
        values = values.float()
    given = dict(given or {})
    if found is not None:
        given["y"] = Labels(table.possible(found).numpy(), table.words)
    return values, given
