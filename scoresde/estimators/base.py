"""What both estimators do: check options, train a model with a seed, move rows to and from torch.

Parameters stay as they were given, as scikit-learn wants; `fit` reads them, and checks them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ..common.checks import brief_repr, true_or_false
from ..common.inputs import refuse_masked
from ..common.names import choose
from ..common.random import isolated
from ..common.ridge import unexplained
from ..model.builder import build
from ..model.score_sde import ScoreSDE
from ..model.tables.infer import continuous_column
from ..model.tables.schema import TableSchema
from ..training.conditional_gaussian import gaussian_of
from ..training.fitting import fit
from ..training.history import History

Array = NDArray[np.float64]

DTYPES = {"float32": torch.float32, "float64": torch.float64}
FLOATS = (np.float64, np.float32)
TINY = 1e-300


class ScoreEstimator(BaseEstimator):  # type: ignore[misc]
    """An estimator that trains a ScoreSDE; a subclass says of what."""

    process: Any
    net: Any
    steps: Any
    batch_size: Any
    lr: Any
    equalize: Any = False  # of pickles of earlier versions, which equalized nothing
    net_options: Any
    fit_options: Any
    solve_options: Any
    dtype: Any
    device: Any
    verbose: Any
    random_state: Any

    def _train(
        self,
        rows: Array,
        given: Mapping[str, Tensor] | None = None,
        names: Sequence[str] = (),
        **net_options: Any,
    ) -> tuple[ScoreSDE, History]:
        """Build a model and fit it to rows; `net_options` are defaults of a named network."""
        equalize = true_or_false("equalize", self.equalize)
        choose("dtype", self.dtype, tuple(DTYPES))
        options = _mapping("net_options", self.net_options)
        fit_options = _mapping("fit_options", self.fit_options)
        self._solve_options()
        named = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr}
        fit_options |= _without_repeats(named, fit_options)
        progress = None if true_or_false("verbose", self.verbose) else False
        device = _device(self.device)
        seed = self._seed(self.random_state)
        net = self.net
        if isinstance(net, str):
            options = {**net_options, **options}
        else:
            net = copy.deepcopy(net)
        with isolated() as reseed:
            reseed(seed)
            model = build(self.process, net, shape=(rows.shape[1],), **options)
        model = model.to(device)
        model._tells_of_clumps = False
        generator = torch.Generator().manual_seed(seed)
        data = torch.tensor(rows)
        table = equalized_table(rows, names) if equalize else None
        if table is not None:
            data, _ = table.encode(rows)
            plain = torch.tensor(rows)
            vector = None if given is None else given["vector"]
            has_line = gaussian_of(model) is not None
            if has_line and _bends(table, data, plain, vector):
                table = None
                data = plain
        history = fit(
            model, data, given=given, generator=generator, progress=progress, **fit_options
        )
        model.table = table
        return model.to(DTYPES[self.dtype]), history

    def _solve_options(self) -> dict[str, Any]:
        """Options of the solves."""
        progress = None if self.verbose else False
        return {"progress": progress, **_mapping("solve_options", self.solve_options)}

    def _seed(self, random_state: Any) -> int:
        """A seed from what scikit-learn calls a random state."""
        return int(check_random_state(random_state).randint(2**31 - 1))

    def _generator(self, random_state: Any) -> torch.Generator:
        """The generator of a call: of its own random state, or else of the estimator's."""
        own = self.random_state if random_state is None else random_state
        return torch.Generator().manual_seed(self._seed(own))

    def _rows(self, X: Any) -> NDArray[Any]:
        """The rows of a fitted estimator's input, checked as scikit-learn does."""
        check_is_fitted(self)
        return self._validated(X, reset=False)

    def _validated(self, X: Any, **how: Any) -> NDArray[Any]:
        """Rows as scikit-learn checks them, without masks, and as PyTorch takes them."""
        _check_rows(X)
        return np.ascontiguousarray(validate_data(self, X, dtype=FLOATS, **how))

    def _validated_pair(self, X: Any, y: Any, **how: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Rows X, and targets y as they are: of numbers, one or several a row."""
        _check_rows(X)
        refuse_masked(y, "y")
        X, y = validate_data(self, X, y, dtype=FLOATS, multi_output=True, y_numeric=True, **how)
        return np.ascontiguousarray(X), y


class Regressor(RegressorMixin):  # type: ignore[misc]
    """Scikit-learn's regressors, without masks."""

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R² of `predict`, 1 − Σ(y − ŷ)²/Σ(y − mean of y)², by which searches compare.

        Parameters
        ----------
        X : array or data frame, shape (n_samples, n_features)
        y : array, shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array, shape (n_samples,), optional

        Returns
        -------
        float
            At most 1.

        Raises
        ------
        NotFittedError, ValueError, SolverError
            As `predict`, and for masked values.

        Examples
        --------
        See `ConditionalScoreDensity`.
        """
        refuse_masked(y, "y")
        refuse_masked(sample_weight, "sample_weight")
        return float(super().score(X, y, sample_weight))


def equalized_table(rows: Array, names: Sequence[str]) -> TableSchema | None:
    """The schema of continuous columns, some of which are equalized; None if none need it."""
    names = names if len({*names}) == rows.shape[1] else [f"x{j}" for j in range(rows.shape[1])]
    columns = [continuous_column(name, rows[:, j]) for j, name in enumerate(names)]
    return TableSchema(columns, None, True) if any(each.knots for each in columns) else None


def _bends(table: TableSchema, z: Tensor, rows: Tensor, vector: Tensor | None) -> bool:
    """Whether a straight line of rows on a vector loses more than equalizing them gains."""
    if vector is None:
        return False
    unit = rows.abs().amax(0).clamp_min(TINY)
    before = unexplained(vector, rows / unit).clamp_min(TINY)
    after = unexplained(vector, z / unit).clamp_min(TINY)
    loss = 0.5 * (after / before).log().sum()
    gain = table.log_det(z).mean()
    return bool(gain < loss)


def in_units(model: ScoreSDE, z: Tensor) -> Tensor:
    """Encoded rows (N, D) in the units of the data."""
    return z if model.table is None else model.table.restored(z)


def as_array(rows: Any) -> Array:
    """Samples, a tensor or columns by name, as one array in float64."""
    if isinstance(rows, Tensor):
        return to_numpy(rows)
    return np.stack([np.asarray(rows[name], np.float64) for name in rows], 1)


def levels_of(quantiles: Any) -> Array:
    """Quantiles as an array (q,); raise unless they are between 0 and 1."""
    try:
        levels = np.atleast_1d(np.asarray(quantiles, dtype=np.float64))
    except (TypeError, ValueError):
        levels = np.array([math.nan])
    if levels.ndim != 1 or not levels.size or not np.all((levels > 0) & (levels < 1)):
        raise ValueError(
            f"quantiles are numbers between 0 and 1 such as (0.05, 0.95), got "
            f"{brief_repr(quantiles)}"
        )
    return levels


def to_numpy(x: Tensor) -> Array:
    """A tensor as an array in float64."""
    return x.detach().cpu().double().numpy()


def _check_rows(X: Any) -> None:
    """Raise for rows that scikit-learn would take for others, or not understand."""
    if isinstance(X, TableSchema):
        raise TypeError("X is an array or a data frame of numbers, got a Table: give its .frame")
    refuse_masked(X, "X")


def _device(value: Any) -> torch.device:
    """The device of a model; raise if there is none of that name."""
    try:
        return torch.empty(0, device=value).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"there is no device {brief_repr(value)} here: {brief_repr(error, str)}"
        ) from None


def _mapping(name: str, value: Any) -> dict[str, Any]:
    """The options of a parameter that is None or a mapping."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} is a mapping of options such as {{'width': 64}}, got {brief_repr(value)}"
        )
    return dict(value)


def _without_repeats(named: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The named parameters that were given; raise if fit_options has one of them too."""
    found = {name: value for name, value in named.items() if value is not None}
    twice = sorted(found.keys() & options.keys())
    if twice:
        raise TypeError(f"{twice[0]} is given twice: leave it out of fit_options")
    own = sorted({"sde", "data", "given", "generator", "seed", "progress"} & options.keys())
    if own:
        raise TypeError(
            f"fit_options has {own[0]!r}, which the estimator sets: use X, random_state or verbose"
        )
    return found
