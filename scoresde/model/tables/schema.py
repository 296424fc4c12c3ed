"""The schema of a table: rows of mixed columns as real numbers and class labels, and back.

A row has numeric values v (D of them) and categories, which one class label y combines. With
u uniform on [0, 1), a discretized value becomes a point of its bin, x = v + u·step, and a change of
variables z = T(x) takes bounded columns to all real numbers. A model of z given y is one of rows:

    log p(x, y) = log p(y) + log p_z(T(x) | y) + log|dT/dx|,

with p(y) by `scoresde.model.tables.categories`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...common.checks import check_generator
from ...common.inputs import as_floats, as_tensor
from ...common.random import (
    PRIOR,
    Noise,
    draw_seed,
)
from ..frames import listed
from .categories import Categories
from .cells import (
    as_frame,
    category_numbers,
    checked_numbers,
    combination,
    restored_numbers,
    restored_words,
)
from .columns import (
    Categorical,
    Column,
    Numeric,
    rebuild_column,
    shown_columns,
)
from .combinations import Combinations, rebuild_combinations
from .infer import and_more
from .maps import Maps
from .reading import array_columns, holds_columns, raw_columns


class TableSchema:
    """What the columns of a table are, as a model keeps it: see `scoresde.Table`.

    Attributes
    ----------
    columns : tuple of Numeric or Categorical
        In the table's order.
    shape : tuple of int
        (D,), D being the number of numeric columns: the shape of an encoded row.
    classes : int or tuple of int
        How many categories each categorical column has, a number if there is one column; 0 without
        categorical columns.
    of_array : bool
        Whether rows may be arrays, as the table was one: (N, columns), in the table's order.
    steps : Tensor, shape (D,), float64
        The finest step of each numeric column in encoded units, over the range of the table: the
        step itself; step·min dz/dx if the column is bounded or equalized; 0 if it is continuous.

    Examples
    --------
    >>> table = scoresde.Table({"x": [0.5, 0.25, 0.75], "kind": ["a", "b", "a"]})
    >>> table.shape, table.classes, table.steps
    ((1,), 2, tensor([0.2500], dtype=torch.float64))
    """

    of_array = False  # of schemas in pickles of earlier versions

    def __init__(
        self,
        columns: Sequence[Column],
        categories: Categories | Combinations | None,
        of_array: bool = False,
    ) -> None:
        self.of_array = of_array
        self.columns = tuple(columns)
        self.numeric = tuple(each for each in columns if isinstance(each, Numeric))
        self.categorical = tuple(each for each in columns if isinstance(each, Categorical))
        self.categories = categories
        if not self.numeric:
            raise ValueError(
                "the table has no numeric column, and a density is of numbers: take the "
                "frequencies of its categories"
            )
        self.maps = Maps(self.numeric)
        self.shape = (len(self.numeric),)
        self.classes: int | tuple[int, ...] = 0 if categories is None else categories.classes
        self.steps = self._encoded_steps()

    def encode(
        self, frame: Any, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return rows as real numbers z, with fresh noise inside the bins, and class labels.

        Parameters
        ----------
        frame : data frame or mapping of str to column
            With the columns of the table, in any order.
        generator : torch.Generator, optional
            The randomness of the noise: that of row i does not depend on the others.

        Returns
        -------
        z : Tensor, shape (N, D), float64
            The numeric columns, in the table's order.
        labels : Tensor of int64, shape (N,), or None
            Condition `y`: the number of the combination of categories; None for a table without
            categorical columns.

        Raises
        ------
        TypeError, ValueError
            For columns that are lacking or of another kind, missing or infinite values, values
            outside stated bounds, and categories that the table does not have.

        Examples
        --------
        >>> table = scoresde.Table({"x": [0.5, 2.0, 1.3], "n": [1, 4, 2], "kind": ["a", "b", "a"]})
        >>> z, labels = table.encode({"kind": ["b"], "x": [1.0], "n": [3]})
        >>> z.floor(), labels
        (tensor([[1., 3.]], dtype=torch.float64), tensor([1]))
        """
        values, found = self.values(frame)
        labels = None if found is None else self.possible(found)
        return self.maps.forward(self.noisy(values, generator)), labels

    def log_det(self, z: Tensor) -> Tensor:
        """Return log|dz/dx| of each row, at its encoded numbers: log p(x) = log p(z) + log|dz/dx|.

        Parameters
        ----------
        z : Tensor, shape (N, D)
            From `encode`.

        Returns
        -------
        Tensor, shape (N,)
            Nats; 0 for a table without bounded or equalized columns.

        Examples
        --------
        z = log x, so that log dz/dx = −z:

        >>> rows = {"x": [0.51, 2.0, 1.3]}
        >>> table = scoresde.Table(rows, bounds={"x": (0, None)}, steps={"x": None})
        >>> table.log_det(torch.tensor([[1.0], [-2.0]]))
        tensor([-1.,  2.])
        """
        z = as_floats(z, self.shape, "z")
        return self.maps.log_slopes(z).sum(1)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Any:
        """Return encoded rows as a data frame with the table's columns, in numpy's dtypes.

        Discretized columns are rounded down to their steps. Those with bounds keep within them.

        Parameters
        ----------
        z : Tensor, shape (N, D)
        labels : Tensor of int64, shape (N,), optional
            Without them, the categorical columns are left out.

        Returns
        -------
        pandas.DataFrame
            Without pandas, a dict of arrays.

        Raises
        ------
        ValueError
            For numbers of another shape, or labels out of range.

        Examples
        --------
        >>> table = scoresde.Table({"n": [1, 4, 2], "kind": ["a", "b", "a"]})
        >>> table.decode(torch.tensor([[3.7]]), torch.tensor([1]))
           n kind
        0  3    b
        """
        z = as_floats(z, self.shape, "z")
        x = self.maps.inverse(z.detach().cpu().double()).numpy()
        found: dict[str, Any] = {}
        for j, column in enumerate(self.numeric):
            found[column.name] = restored_numbers(column, x[:, j])
        if labels is not None and self.categories is not None:
            numbers = np.asarray(as_tensor(labels, "labels").detach().cpu())
            most = self.categories.most
            fits = numbers.shape == (len(x),) and numbers.dtype.kind in "iu"
            if not fits or not ((numbers >= 0) & (numbers < most)).all():
                raise ValueError(f"labels are {len(x)} integers from 0 to {most - 1}, one a row")
            codes = self.categories.codes(numbers)
            for j, each in enumerate(self.categorical):
                found[each.name] = restored_words(each, codes[:, j])
        names = [each.name for each in self.columns if each.name in found]
        return as_frame({name: found[name] for name in names})

    def label(self, categories: Mapping[str, Any]) -> int:
        """Return the class label of a combination of categories, for `sde.given(y=...)`.

        Parameters
        ----------
        categories : mapping of str to category
            One of each categorical column, by its name.

        Returns
        -------
        int

        Raises
        ------
        TypeError, ValueError
            For columns that are lacking, and categories that the table does not have.

        Examples
        --------
        >>> rows = {"x": [0.5, 2.0, 1.3], "kind": ["a", "b", "a"], "size": ["s", "s", "l"]}
        >>> scoresde.Table(rows).label({"kind": "b", "size": "l"})
        2
        """
        if self.categories is None:
            raise ValueError("the table has no categorical columns")
        codes = combination(self.categorical, categories)
        found = torch.from_numpy(self.categories.find(codes))
        label = self.possible(found)
        if (self.categories.codes(label.numpy()) != codes).any():
            raise ValueError("no label of this table stands for this combination alone")
        return int(label[0])

    def restored(self, z: Tensor) -> Tensor:
        """The values (N, D) of encoded rows, rounded down to their steps, in float64."""
        x = self.maps.inverse(z.detach().cpu().double()).numpy()
        parts = [restored_numbers(column, x[:, j]) for j, column in enumerate(self.numeric)]
        return torch.from_numpy(np.stack(parts, 1).astype(np.float64))

    def values(
        self,
        frame: Any,
        *,
        categories: bool = True,
        gaps: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the values (N, D), and the combinations of categories; −1 for unknown ones."""
        frame = self.by_name(frame)
        categorical = self.categorical if categories else ()
        needed = [each.name for each in self.numeric] + [each.name for each in categorical]
        raw = raw_columns(frame, needed)
        parts = [checked_numbers(column, raw[column.name], gaps) for column in self.numeric]
        values = torch.from_numpy(np.stack(parts, 1))
        if self.categories is None or not categories:
            return values, None
        codes = np.stack([category_numbers(c, raw[c.name]) for c in categorical], 1)
        return values, torch.from_numpy(self.categories.find(codes))

    def takes(self, rows: Any) -> bool:
        """Whether an argument is rows, not encoded: columns by name, or an array of them."""
        arrays = self.of_array and isinstance(rows, Tensor | np.ndarray)
        return arrays or holds_columns(rows)

    def by_name(self, rows: Any) -> Any:
        """Rows as columns by name: those of a Table, or of an array (N, columns)."""
        if isinstance(rows, TableSchema):
            return getattr(rows, "frame", rows)
        if not self.of_array or holds_columns(rows):
            return rows
        if isinstance(rows, Tensor) and rows.requires_grad:
            raise ValueError("gradients do not pass the maps of a table: give x.detach()")
        names = [each.name for each in self.columns]
        if getattr(rows, "ndim", 0) != 2 or rows.shape[1] != len(names):
            shape = tuple(getattr(rows, "shape", ()))
            raise ValueError(f"rows of the table have shape (N, {len(names)}), got {shape}")
        return array_columns(rows, names)

    def noisy(self, values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return points inside the bins of values (N, D); the noise is that of the sample."""
        check_generator(generator)
        if not bool(self.maps.steps.any()):
            return values
        like = torch.empty(0, dtype=torch.float64, device="cpu")
        normal = Noise(draw_seed(generator), PRIOR, 0, len(values), self.shape[0], like)()
        return self.maps.noisy(values, torch.special.ndtr(normal).to(values))

    def draw_categories(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n combinations; number i depends on the generator and i alone."""
        assert self.categories is not None
        like = torch.empty(0, dtype=torch.float64, device="cpu")
        normal = Noise(draw_seed(generator), PRIOR, 0, n, self.categories.chances, like)()
        chance = torch.special.ndtr(normal).numpy()
        return torch.from_numpy(self.categories.draw(chance.reshape(n, -1)))

    def labels(self, combinations: Tensor) -> Tensor:
        """The class labels of combinations (N,), int64."""
        assert self.categories is not None
        return torch.from_numpy(self.categories.labels(combinations.cpu().numpy()))

    def possible(self, combinations: Tensor) -> Tensor:
        """The class labels of combinations (N,); raise for those whose probability is 0."""
        lost = self.category_log_prob(combinations).isneginf()
        if bool(lost.any()):
            names = listed(each.name for each in self.categorical)
            raise ValueError(
                f"row {int(lost.nonzero()[0])} (from 0){and_more(lost.numpy())} has categories of "
                f"{names} that no row of the table had: its probability is 0"
            )
        return self.labels(combinations)

    def category_log_prob(self, combinations: Tensor) -> Tensor:
        """log p(y) of combinations (N,), −∞ for those that are impossible; float64."""
        assert self.categories is not None
        return torch.from_numpy(self.categories.log_prob(combinations.cpu().numpy()))

    @property
    def words(self) -> tuple[str, ...]:
        """A text for each class label, such as "Ideal, E"; none beyond 1,000, or if two agree."""
        if self.categories is None:
            return ()
        found = self.categories.words([[*map(str, c.categories)] for c in self.categorical])
        return found if len({*found}) == len(found) else ()

    def _encoded_steps(self) -> Tensor:
        """The finest steps in encoded units: slopes are least at an end or in the middle."""
        maps = self.maps
        ranges = [column.seen for column in self.numeric]
        seen = torch.tensor(ranges, dtype=torch.float64, device="cpu").T
        low, high = seen[0], seen[1] + maps.steps
        middle = (0.5 * (maps.low + maps.high)).nan_to_num().clamp(low, high)
        points = [maps.without_bounds(x[None]) for x in (low, middle, high)]
        slopes = [maps.bounds_log_slopes(w)[0] for w in points]
        bounded = torch.where(maps.low.isfinite() | maps.high.isfinite(), 1.0, 0.0)
        steep = (bounded * torch.stack(slopes).amin(0)).exp()
        return maps.steps * steep * maps.least_slopes()

    def describe(self) -> dict[str, Any]:
        """Return the schema as plain JSON."""
        about: dict[str, Any] = {"columns": [column.describe() for column in self.columns]}
        if self.of_array:
            about["array"] = True
        if self.categories is not None:
            about |= self.categories.describe()
        return about

    @staticmethod
    def rebuild(about: Any, shape: tuple[int, ...]) -> TableSchema | None:
        """Return the schema that `describe` wrote, checked as data from a stranger."""
        if about is None:
            return None
        known = {"columns", "categories", "combinations", "counts", "array"}
        if not isinstance(about, Mapping) or not {"columns"} <= about.keys() <= known:
            raise ValueError("its table is not one of columns and categories")
        of_array = about.get("array", False)
        if type(of_array) is not bool:
            raise ValueError("its table says neither that it is of an array nor that it isn't")
        if not isinstance(about["columns"], list):
            raise ValueError("its table has no list of columns")
        columns = [rebuild_column(each) for each in about["columns"]]
        names = [column.name for column in columns]
        if len({*names}) < len(names):
            raise ValueError("its table has two columns of one name")
        categorical = [each for each in columns if isinstance(each, Categorical)]
        sizes = [len(each.categories) for each in categorical]
        found = TableSchema(columns, _rebuild_categories(about, sizes), of_array)
        if found.shape != tuple(shape):
            raise ValueError(
                f"its table has {found.shape[0]} numeric columns, and a sample has shape {shape}"
            )
        return found

    def schema(self) -> TableSchema:
        """Return the schema alone, without rows."""
        return TableSchema(self.columns, self.categories, self.of_array)

    def __repr__(self) -> str:
        """A line for each column: name, dtype, kind, range or categories."""
        title = f"{type(self).__name__}: {self._size()}"
        return "\n".join([title, *shown_columns(self.columns)])

    def _size(self) -> str:
        """How many columns of each kind."""
        more = f", {len(self.categorical)} categorical" if self.categorical else ""
        return f"{len(self.numeric)} numeric columns{more}"


def _rebuild_categories(
    about: Mapping[str, Any], sizes: Sequence[int]
) -> Categories | Combinations | None:
    """Categories of a file, of this or an earlier version, checked."""
    if "categories" not in about:
        return rebuild_combinations(about, sizes)
    if not sizes or {"combinations", "counts"} & about.keys():
        raise ValueError("its table has counts of categories that can't be")
    return Categories.rebuild(about["categories"], sizes)
