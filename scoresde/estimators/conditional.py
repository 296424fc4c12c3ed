"""`ConditionalScoreDensity`: p(y | x) as a scikit-learn regressor, with quantiles and intervals.

Along the probability-flow ODE in one dimension, order is kept: points do not overtake one another.
The point that starts at the q-quantile of the noise therefore ends at the q-quantile of p(y | x):
with Φ the distribution function of N(0, 1),

    quantile_q(y | x) = decode(Φ⁻¹(q); x),      E[y | x] = ∫ decode(Φ⁻¹(u); x) du over 0 … 1.

One number y thus needs one solve per quantile and no random numbers; its mean is a midpoint rule.
Several outputs are averaged over a scrambled Sobol sequence of noise, the same for every x, so
that predictions vary smoothly with x and do not depend on the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..common.checks import real_number, whole_number
from ..common.names import choose
from ..density.exact import log_prob
from ..processes.base import as_time
from ..sampling.trajectory import decode, sample
from .base import Array, Regressor, ScoreEstimator, as_array, in_units, levels_of, to_numpy

CONDITION = "vector"
"""What the network calls x."""
ROWS_AT_ONCE = 2**16
"""Most conditions that are laid out at once."""
MOST_DRAWS = 10**7
DRAWS_BEYOND = 10
"""Expected draws beyond a quantile that is found from draws."""


class ConditionalScoreDensity(Regressor, ScoreEstimator):
    """A density p(y | x) of one number or several, as a scikit-learn regressor.

    Trains a conditional score model. `predict` gives the mean or the median of p(y | x),
    `predict_interval` and `predict_quantiles` its quantiles, `score_samples` log p(y | x). Mean
    and scale of x and y are measured and kept, so no scaler is needed.

    Parameters
    ----------
    process : str or Process
        See `scoresde.build`.
    net : str or nn.Module
        A name of `scoresde.BACKBONES` that takes vectors, or a network with a condition `vector`,
        of which a copy is trained.
    center : str
        What `predict` returns: "mean", or "median" (of each output).
    draws : int
        Points over which means are taken, and quantiles of several outputs. More are used for
        quantiles nearer to 0 or 1 than 10/draws.
    steps, batch_size, lr : optional
        Of `scoresde.fit`; None for its defaults.
    equalize : bool
        Whether clumps in the columns of y are spread, as by `scoresde.Table`; all stay continuous.
        They are not where y is so nearly linear in X that this would bend the line.
    net_options : mapping, optional
        Options of a named network, such as {"width": 64}.
    fit_options : mapping, optional
        Further arguments of `scoresde.fit`, such as {"ema": 200}.
    solve_options : mapping, optional
        Options of all solves, such as {"rtol": 1e-4}.
    dtype : str
        "float32" or "float64": what the trained model computes in.
    device : str or torch.device
        Where the model is.
    verbose : bool
        Whether to show a progress bar.
    random_state : int, RandomState or None
        The randomness of the initial weights, of training, and of `sample`. Predictions have none.

    Attributes
    ----------
    model_ : ScoreSDE
        The trained model; `model_.given(vector=x)` is p(y | x). If y was equalized, it has a
        schema, `model_.table`, as that of `ScoreDensity`.
    history_ : History
        The losses of training.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of str
        Their names, if X had names.
    n_outputs_ : int
        Columns of y.

    Examples
    --------
    >>> import numpy as np
    >>> from scoresde.estimators import ConditionalScoreDensity
    >>> X = np.random.default_rng(0).normal(size=(500, 1))
    >>> y = X[:, 0] + np.random.default_rng(1).normal(size=500)
    >>> small = {"width": 16, "fourier": 0}
    >>> model = ConditionalScoreDensity(steps=100, net_options=small, random_state=0).fit(X, y)
    >>> model.predict(X[:3]).shape, model.predict_interval(X[:3], coverage=0.9).shape
    ((3,), (3, 2))
    >>> model.score_samples(X[:3], y[:3]).shape, model.sample(X[:3], 5).shape
    ((3,), (3, 5))
    """

    def __init__(
        self,
        process: Any = "vp",
        net: Any = "resmlp",
        *,
        center: Any = "mean",
        draws: Any = 64,
        steps: Any = None,
        batch_size: Any = None,
        lr: Any = None,
        equalize: Any = True,
        net_options: Any = None,
        fit_options: Any = None,
        solve_options: Any = None,
        dtype: Any = "float32",
        device: Any = "cpu",
        verbose: Any = False,
        random_state: Any = None,
    ) -> None:
        self.process = process
        self.net = net
        self.center = center
        self.draws = draws
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.equalize = equalize
        self.net_options = net_options
        self.fit_options = fit_options
        self.solve_options = solve_options
        self.dtype = dtype
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: y may have several columns."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> ConditionalScoreDensity:
        """Train a new model of p(y | x).

        Parameters
        ----------
        X : array or data frame, shape (n_samples, n_features)
            At least two rows.
        y : array, shape (n_samples,) or (n_samples, n_outputs)

        Returns
        -------
        ConditionalScoreDensity
            Itself.

        Raises
        ------
        TypeError, ValueError
            For bad parameters or data, before training starts.

        Examples
        --------
        See `ConditionalScoreDensity`.
        """
        self._check_prediction()
        X, y = self._validated_pair(X, y, ensure_min_samples=2)
        self._single = y.ndim == 1
        rows = y.astype(np.float64).reshape(len(y), -1)
        self.n_outputs_ = rows.shape[1]
        given = {CONDITION: torch.tensor(X)}
        options = {CONDITION: X.shape[1], "condition_dropout": 0.0}
        self.model_, self.history_ = self._train(rows, given, **options)
        return self

    def predict(self, X: Any) -> Array:
        """Return the mean or the median of p(y | x), as `center` says.

        Parameters
        ----------
        X : array or data frame, shape (n_samples, n_features)

        Returns
        -------
        ndarray of float64, shape (n_samples,) or (n_samples, n_outputs), as y in `fit`

        Raises
        ------
        NotFittedError, ValueError
            Before `fit`, or for rows of another width or with NaN.
        SolverError
            As `scoresde.decode`.

        Examples
        --------
        See `ConditionalScoreDensity`.
        """
        draws = self._check_prediction()
        if self.center == "median":
            return self._quantiles(self._rows(X), np.array([0.5]))[:, 0]
        rows = self._rows(X)
        return self._shaped(self._decode(rows, self._noise(draws)).mean(1))

    def predict_quantiles(
        self, X: Any, quantiles: float | Sequence[float] = (0.05, 0.5, 0.95)
    ) -> Array:
        """Return quantiles of p(y | x), of each output by itself.

        Parameters
        ----------
        X : array or data frame, shape (n_samples, n_features)
        quantiles : float or sequence of float
            Between 0 and 1.

        Returns
        -------
        ndarray of float64, shape (n_samples, n_quantiles), or (n_samples, n_quantiles, n_outputs)

        Raises
        ------
        NotFittedError, ValueError
            Before `fit`, for quantiles that are not between 0 and 1, or for bad rows.
        SolverError
            As `scoresde.decode`.

        Examples
        --------
        See `ConditionalScoreDensity`.
        """
        return self._quantiles(self._rows(X), levels_of(quantiles))

    def predict_interval(self, X: Any, coverage: float = 0.9) -> Array:
        """Return the central interval that holds y with a probability: two quantiles.

        Its ends are the quantiles (1 − coverage)/2 and (1 + coverage)/2, of each output by itself.

        Parameters
        ----------
        X : array or data frame, shape (n_samples, n_features)
        coverage : float
            Between 0 and 1.

        Returns
        -------
        ndarray of float64, shape (n_samples, 2), or (n_samples, 2, n_outputs)
            Lower and upper end.

        Raises
        ------
        NotFittedError, ValueError, SolverError
            As `predict_quantiles`.

        Examples
        --------
        See `ConditionalScoreDensity`.
        """
        share = real_number("coverage", coverage, 0, 1, hint="try 0.9")
        return self.predict_quantiles(X, (0.5 - 0.5 * share, 0.5 + 0.5 * share))

    def score_samples(self, X: Any, y: Any) -> Array:
        """Return log p(y | x) of each row.

        Parameters
        ----------
        X : array or data frame, shape (n_samples, n_features)
        y : array, shape (n_samples,) or (n_samples, n_outputs), as in `fit`

        Returns
        -------
        ndarray of float64, shape (n_samples,)
            Nats.

        Raises
        ------
        NotFittedError, ValueError
            Before `fit`, or for rows of another width or with NaN.
        SolverError
            As `scoresde.log_prob`.

        Examples
        --------
        See `ConditionalScoreDensity`.
        """
        check_is_fitted(self)
        X, y = self._validated_pair(X, y, reset=False)
        rows = torch.tensor(y.astype(np.float64).reshape(len(y), -1))
        if rows.shape[1] != self.n_outputs_:
            raise ValueError(f"y has {rows.shape[1]} columns, wanted {self.n_outputs_}, as in fit")
        return to_numpy(log_prob(self._given(X), rows, **self._solve_options()))

    def sample(self, X: Any, n_samples: int = 1, random_state: Any = None) -> Array:
        """Draw from p(y | x), independently for every row of X.

        Parameters
        ----------
        X : array or data frame, shape (n_rows, n_features)
        n_samples : int
            Draws for each row.
        random_state : int, RandomState or None
            None for that of the estimator: with an integer there, every call returns the same
            draws.

        Returns
        -------
        ndarray of float64, shape (n_rows, n_samples), or (n_rows, n_samples, n_outputs)

        Raises
        ------
        NotFittedError, ValueError
            Before `fit`, or for rows of another width or with NaN.
        SolverError
            As `scoresde.sample`.

        Examples
        --------
        See `ConditionalScoreDensity`.
        """
        n = whole_number("n_samples", n_samples)
        rows = self._rows(X)
        model = self._given(rows.repeat(n, axis=0))
        generator = self._generator(random_state)
        drawn = sample(model, generator=generator, **self._solve_options())
        return self._shaped(as_array(drawn).reshape(len(rows), n, -1))

    def _check_prediction(self) -> int:
        """Check `center` and `draws`; return the draws."""
        choose("center", self.center, ("mean", "median"))
        return whole_number("draws", self.draws)

    def _given(self, X: Any) -> Any:
        """The model under one condition per row."""
        return self.model_.given(**{CONDITION: torch.tensor(X).to(self.model_.device)})

    def _shaped(self, y: Array) -> Array:
        """Outputs (…, k) without their last axis if `fit` was given a y without it."""
        return y[..., 0] if self._single else y

    def _noise(self, n: int) -> Tensor:
        """Points (n, D) that stand for N(0, I): midpoints of equal shares, or a Sobol sequence."""
        dim = self.model_.dim
        if dim == 1:
            return _normal_quantiles(torch.arange(0.5, n, dtype=torch.float64)[:, None] / n)
        sobol: Any = torch.quasirandom.SobolEngine
        points = sobol(dim, scramble=True, seed=0).draw(n, dtype=torch.float64)
        return _normal_quantiles(points.clamp(1e-9, 1 - 1e-9))

    def _decode(self, rows: Any, noise: Tensor) -> Array:
        """The outputs (n_rows, n_noise, k) that points of the noise lead to under each row."""
        model = self.model_
        radius = float(model.process.radius(as_time(1.0)))
        start = model.to_data(noise.to(model.device) * radius)
        at_once = max(1, ROWS_AT_ONCE // len(noise))
        parts = []
        for first in range(0, len(rows), at_once):
            part = rows[first : first + at_once]
            given = self._given(part.repeat(len(noise), axis=0))
            end = decode(given, start.repeat(len(part), 1), **self._solve_options())
            found = to_numpy(in_units(model, end))
            parts.append(found.reshape(len(part), len(noise), -1))
        return np.concatenate(parts)

    def _quantiles(self, rows: Any, levels: Array) -> Array:
        """Quantiles: exactly, by the order that a flow in one dimension keeps, or from draws."""
        if self.model_.dim == 1:
            noise = _normal_quantiles(torch.tensor(levels)[:, None])
            return self._shaped(self._decode(rows, noise))
        beyond = float(np.minimum(levels, 1 - levels).min())
        draws = max(self._check_prediction(), math.ceil(DRAWS_BEYOND / beyond))
        if draws > MOST_DRAWS:
            raise ValueError(
                f"quantiles of several outputs are found from draws, and a level {beyond:.3g} from "
                f"0 or 1 needs {draws:,}: keep {DRAWS_BEYOND / MOST_DRAWS:g} away from them"
            )
        drawn = self._decode(rows, self._noise(draws))
        found = np.quantile(drawn, levels, axis=1, method="weibull")
        return self._shaped(np.moveaxis(found, 0, 1))


def _normal_quantiles(levels: Tensor) -> Tensor:
    """Φ⁻¹ of each level."""
    found: Tensor = torch.special.ndtri(levels)
    return found
