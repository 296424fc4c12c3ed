"""`ScoreDensity`: p(x) as scikit-learn's density estimators give it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import DensityMixin
from sklearn.utils.validation import check_is_fitted

from ..common.checks import whole_number
from ..density.exact import log_prob
from ..sampling.trajectory import sample
from .base import Array, ScoreEstimator, as_array, to_numpy


class ScoreDensity(DensityMixin, ScoreEstimator):  # type: ignore[misc]
    """A density p(x) over rows of numbers, as a scikit-learn estimator.

    Trains a score model and computes log p(x) along its probability-flow ODE. Mean and scale of
    the data are measured and kept, so no scaler is needed.

    Parameters
    ----------
    process : str or Process
        See `scoresde.build`.
    net : str or nn.Module
        A name of `scoresde.BACKBONES`, or a network, of which a copy is trained.
    steps, batch_size, lr : optional
        Of `scoresde.fit`; None for its defaults.
    equalize : bool
        Whether clumps in the columns are spread, as by `scoresde.Table`; all stay continuous.
    net_options : mapping, optional
        Options of a named network, such as {"width": 64}.
    fit_options : mapping, optional
        Further arguments of `scoresde.fit`, such as {"ema": 200}.
    solve_options : mapping, optional
        Options of the solves of `score_samples` and `sample`, such as {"rtol": 1e-4}.
    dtype : str
        "float32" or "float64": what the trained model computes in. In float32, rounding changes
        log p of a row by about 1e-6 with the rows beside it; float64 takes twice as long.
    device : str or torch.device
        Where the model is.
    verbose : bool
        Whether to show a progress bar.
    random_state : int, RandomState or None
        The randomness of the initial weights, of training, and of `sample`.

    Attributes
    ----------
    model_ : ScoreSDE
        The trained model, for every function of scoresde. If columns were equalized, it has
        a schema, `model_.table`: `scoresde.log_prob` takes rows, and `scoresde.sample` returns a
        data frame.
    history_ : History
        The losses of training.
    n_features_in_ : int
        Columns of X.
    feature_names_in_ : ndarray of str
        Their names, if X had names.

    Examples
    --------
    >>> import numpy as np
    >>> from scoresde.estimators import ScoreDensity
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> density = ScoreDensity(steps=100, net_options={"width": 16}, random_state=0).fit(X)
    >>> density.score_samples(X[:3]).shape, density.sample(4).shape
    ((3,), (4, 2))
    """

    def __init__(
        self,
        process: Any = "vp",
        net: Any = "mlp",
        *,
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

    def fit(self, X: Any, y: Any = None) -> ScoreDensity:
        """Train a new model.

        Parameters
        ----------
        X : array or data frame, shape (n_samples, n_features)
            At least two rows.
        y : None
            Ignored.

        Returns
        -------
        ScoreDensity
            Itself.

        Raises
        ------
        TypeError, ValueError
            For bad parameters or data, before training starts.

        Examples
        --------
        See `ScoreDensity`.
        """
        X = self._validated(X, ensure_min_samples=2)
        names = getattr(self, "feature_names_in_", ())
        self.model_, self.history_ = self._train(X, names=names)
        return self

    def score_samples(self, X: Any) -> Array:
        """Return log p(x) of each row.

        Parameters
        ----------
        X : array or data frame, shape (n_samples, n_features)

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
        See `ScoreDensity`.
        """
        rows = torch.tensor(self._rows(X))
        return to_numpy(log_prob(self.model_, rows, **self._solve_options()))

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of log p(x), by which `GridSearchCV` and `cross_val_score` compare.

        It is the mean, as for `GaussianMixture`, and not the sum, as for `KernelDensity`, so that
        folds of different sizes compare.

        Parameters
        ----------
        X : array or data frame, shape (n_samples, n_features)
        y : None
            Ignored.

        Returns
        -------
        float
            Nats per row.

        Examples
        --------
        See `ScoreDensity`.
        """
        return float(np.mean(self.score_samples(X)))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Array:
        """Draw rows from the model.

        Parameters
        ----------
        n_samples : int
        random_state : int, RandomState or None
            None for that of the estimator: with an integer there, every call returns the same
            rows.

        Returns
        -------
        ndarray of float64, shape (n_samples, n_features)

        Raises
        ------
        NotFittedError
            Before `fit`.
        SolverError
            As `scoresde.sample`.

        Examples
        --------
        See `ScoreDensity`.
        """
        check_is_fitted(self)
        n = whole_number("n_samples", n_samples)
        generator = self._generator(random_state)
        return as_array(sample(self.model_, n, generator=generator, **self._solve_options()))
