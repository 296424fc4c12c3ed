"""Couplings: which noise, or which sample of a source, is joined with which x0 in training.

Any joint distribution of (x0, x1) with the right marginals trains a model of the same path,
x_t = α·x0 + σ·x1, from x1 ~ p_1 to x0 ~ p_0. The coupling decides how often paths cross, and so how
straight the ODE becomes. Optimal transport within batches of b rows (Tong et al. 2024; Pooladian et
al. 2023) joins them by the permutation π of least cost

    Σ_i ‖x0_i − x1_π(i)‖²,        or greatest Σ_i ⟨x0_i, x1_π(i)⟩.

In conditional models that makes x1 depend on the condition c, but at sampling time x1 does not
depend on it. Condition-aware transport (Cheng & Schwing 2025) adds w·‖c_i − c_π(i)‖² to the cost,
with w = ∞ for labels: only x1 of the same label change places.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..common.checks import check_budget, real_number, whole_number
from ..common.registry import Registry
from ..common.user_warnings import warn

COUPLINGS: Registry[Coupling] = Registry("coupling")
"""All couplings by name."""

Array = NDArray[np.float64]
Rows = NDArray[np.intp]

NOT_CONVERGED = 0.1
"""The share of a Sinkhorn plan above which a warning says that it has not converged."""

LOG_DOMAIN = 400
"""The ratio of cost to regularization above which Sinkhorn's iteration underflows."""


@dataclass(frozen=True)
class Coupling(abc.ABC):
    """A way to join the rows of a batch with as many rows of noise, or of a source.

    `fit` joins them in a thread beside the training. Subclass it, give `join`, and register:
    `@scoresde.COUPLINGS.register("name")`.

    Parameters
    ----------
    size : int, optional
        Rows that are joined with one another; by default those of a step.
    reuse : int
        Steps that use each pair, each time at another noise level and in another batch, because an
        assignment may take longer than a step of a small network.

    Raises
    ------
    ValueError
        Unless both are positive.

    Examples
    --------
    >>> COUPLINGS.build("minibatch_ot", size=1024)
    MinibatchOT(size=1024, reuse=8)
    """

    size: int | None = None
    reuse: int = 8

    joins: ClassVar[bool] = True
    """Whether there is anything to join: not if all pairs are independent."""

    def __post_init__(self) -> None:
        whole_number("reuse", self.reuse)
        if self.size is not None:
            size = whole_number("size", self.size)
            check_budget(f"size={size}", 8.0 * size * size)  # of all distances

    def check(self, names: set[str] | None) -> None:
        """Raise or warn if this coupling does not suit data with such conditions.

        Parameters
        ----------
        names : set of str, or None
            The names of their conditions; None if they are not known yet.

        Examples
        --------
        >>> ConditionAwareOT().check(set())
        Traceback (most recent call last):
        ValueError: condition_aware_ot joins rows by their conditions, and these data have none; ...
        """
        return

    @abc.abstractmethod
    def join(
        self, x0: Array, x1: Array, condition: Mapping[str, NDArray[Any]], rng: np.random.Generator
    ) -> Rows:
        """Return which row of x1 goes with each row of x0.

        Parameters
        ----------
        x0, x1 : array, shape (b, n)
            Standardized.
        condition : mapping of str to array (b, …)
            Of the rows of x0.
        rng : numpy.random.Generator
            The only source of randomness, so that a run can be repeated.

        Returns
        -------
        array of int, shape (b,)
            A permutation, or a draw that leaves both marginals as they are.

        Examples
        --------
        >>> x0, x1 = np.array([[0.0], [5.0]]), np.array([[6.0], [1.0]])
        >>> MinibatchOT().join(x0, x1, {}, np.random.default_rng(0))
        array([1, 0])
        """


@COUPLINGS.register("independent")
@dataclass(frozen=True)
class Independent(Coupling):
    """Join every x0 with any x1: the coupling of diffusion models, and the only one with a score.

    Examples
    --------
    >>> Independent().joins
    False
    """

    size: None = None
    reuse: int = 1
    joins: ClassVar[bool] = False

    def join(
        self, x0: Array, x1: Array, condition: Mapping[str, NDArray[Any]], rng: np.random.Generator
    ) -> Rows:
        """Return the rows in their order."""
        return np.arange(len(x0))


@COUPLINGS.register("minibatch_ot")
@dataclass(frozen=True)
class MinibatchOT(Coupling):
    """Join by exact optimal transport within a batch.

    It costs O(size³): about 5 ms for 256 rows and 0.2 s for 1,024, beside the training. In
    conditional models it makes x1 depend on the condition; see `ConditionAwareOT`.

    Parameters
    ----------
    size, reuse
        As for `Coupling`.

    References
    ----------
    Tong et al. 2024; Crouse 2016, the algorithm of scipy's assignment.

    Examples
    --------
    >>> MinibatchOT()
    MinibatchOT(size=None, reuse=8)
    """

    def check(self, names: set[str] | None) -> None:
        """Warn about conditions."""
        if names:
            warn(
                f"{type(self).__name__} joins rows whatever their conditions {sorted(names)}, so "
                "that a conditional model starts from the wrong place when it samples; try "
                "coupling='condition_aware_ot'"
            )

    def join(
        self, x0: Array, x1: Array, condition: Mapping[str, NDArray[Any]], rng: np.random.Generator
    ) -> Rows:
        """Return the assignment of least cost."""
        return _assign(_cost(x0, x1))


@COUPLINGS.register("condition_aware_ot")
@dataclass(frozen=True)
class ConditionAwareOT(Coupling):
    """Join by optimal transport within a batch among rows of (nearly) the same condition: C²OT.

    Rows of x1 first belong to rows of x0, with their conditions, at random. Where conditions are
    integers, only rows with equal ones change places. Where they are real, exchanging i and j costs
    w·‖c_i − c_j‖² more, with w such that a given ratio of all exchanges would pay.

    Parameters
    ----------
    size, reuse
        As for `Coupling`.
    ratio : float
        The share, in [0, 1], of exchanges of i with j ≠ i, of the same label, that have
        cost_ij + w·‖c_i − c_j‖² ≤ cost_ii. `fit` standardizes the conditions.

    Raises
    ------
    TypeError, ValueError
        Unless 0 ≤ ratio ≤ 1.

    References
    ----------
    Cheng and Schwing 2025.

    Examples
    --------
    >>> x0, x1 = np.array([[0.0], [5.0], [6.0]]), np.array([[6.0], [1.0], [0.5]])
    >>> y = np.array([0, 0, 1])
    >>> ConditionAwareOT().join(x0, x1, {"y": y}, np.random.default_rng(0))
    array([1, 0, 2])
    """

    ratio: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        real_number("ratio", self.ratio, 0, 1, closed=True)

    def check(self, names: set[str] | None) -> None:
        """Raise if there are no conditions."""
        if names is not None and not names:
            raise ValueError(
                "condition_aware_ot joins rows by their conditions, and these data have none; try "
                "'minibatch_ot'"
            )

    def join(
        self, x0: Array, x1: Array, condition: Mapping[str, NDArray[Any]], rng: np.random.Generator
    ) -> Rows:
        """Return the assignment, group by group of equal labels."""
        self.check(set(condition))
        b = len(x0)
        rows = {name: value.reshape(b, -1) for name, value in condition.items()}
        labels = [value for value in rows.values() if value.dtype.kind in "iub"]
        reals = [value.astype(float) for value in rows.values() if value.dtype.kind == "f"]
        group = np.zeros(b, int)
        if labels:
            group = np.unique(np.hstack(labels), axis=0, return_inverse=True)[1].reshape(b)
        cost = _cost(x0, x1)
        if reals:
            c = np.hstack(reals)
            cost = _squares(x0, x1)
            gap = _squares(c, c).clip(0)
            pairs = (group[:, None] == group) & ~np.eye(b, dtype=bool)
            cost += _weight(cost, gap, pairs, self.ratio) * gap
        found = np.arange(b)
        for number in range(group.max() + 1):
            members = np.flatnonzero(group == number)
            found[members] = members[_assign(cost[np.ix_(members, members)])]
        return found


@COUPLINGS.register("sinkhorn")
@dataclass(frozen=True)
class Sinkhorn(MinibatchOT):
    """Join by entropic optimal transport within a batch: draw x1 of each row from the plan that
    minimizes cost − reg·entropy.

    It needs `pip install scoresde[ot]`. With reg = 2σ² it joins the ends of a Schrödinger bridge
    of noise σ (Tong et al. 2024b).

    Parameters
    ----------
    size, reuse
        As for `Coupling`.
    reg : float
        In units of squared distance between standardized samples.

    Raises
    ------
    TypeError, ValueError, ImportError
        Unless reg is positive, and without the package.

    References
    ----------
    Cuturi 2013; Tong et al., Improving and generalizing flow-based generative models, TMLR 2024,
    proposition 3.5.

    Examples
    --------
    >>> Sinkhorn(reg=0.1)
    Sinkhorn(size=None, reuse=8, reg=0.1)
    """

    reg: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        real_number("reg", self.reg, 0, math.inf)
        try:
            import ot  # noqa: F401
        except ImportError:
            raise ImportError(
                "coupling='sinkhorn' needs POT: pip install scoresde[ot]; or take 'minibatch_ot'"
            ) from None

    def plan(self, x0: Array, x1: Array) -> Array:
        """Return the joint probabilities of rows of x0 and x1.

        Parameters
        ----------
        x0, x1 : array, shape (b, n)

        Returns
        -------
        array, shape (b, b)
            All rows and columns have the sum 1/b: what the iteration lacks is spread over all
            entries (Altschuler et al. 2017, algorithm 2).

        Warns
        -----
        UserWarning
            If the iteration lacks more than a tenth of the plan.

        Examples
        --------
        >>> Sinkhorn(reg=1e3).plan(np.zeros((2, 1)), np.ones((2, 1))) * 4
        array([[1., 1.],
               [1., 1.]])
        """
        import ot

        cost = _squares(x0, x1)
        even = np.full(len(x0), 1 / len(x0))
        cost -= cost.min(1, keepdims=True)
        cost -= cost.min(0)
        # "sinkhorn_log" takes a hundred times as long, but nothing underflows
        method = "sinkhorn" if cost.max() < LOG_DOMAIN * self.reg else "sinkhorn_log"
        how: dict[str, Any] = {"numItermax": 1000, "stopThr": 1e-6, "warn": False}
        plan: Array = ot.sinkhorn(even, even, cost, self.reg, method=method, **how)
        plan = plan * np.minimum(1, even / np.maximum(plan.sum(1), 1e-300))[:, None]
        plan = plan * np.minimum(1, even / np.maximum(plan.sum(0), 1e-300))
        rows = np.maximum(even - plan.sum(1), 0)
        columns = np.maximum(even - plan.sum(0), 0)
        missing = rows.sum()
        if missing > NOT_CONVERGED:
            warn(
                f"sinkhorn: {missing:.0%} of the plan has not converged at reg={self.reg:g}; try "
                "a larger reg"
            )
        return plan + np.outer(rows, columns) / missing if missing > 0 else plan

    def join(
        self, x0: Array, x1: Array, condition: Mapping[str, NDArray[Any]], rng: np.random.Generator
    ) -> Rows:
        """Return a draw from each row of the plan."""
        edges = np.cumsum(self.plan(x0, x1), 1)
        found: Rows = (edges < rng.random((len(x0), 1)) * edges[:, -1:]).sum(1)
        return found


def _squares(x0: Array, x1: Array) -> Array:
    """Return ‖x0_i − x1_j‖²."""
    squares: Array = np.square(x0).sum(1)[:, None] + np.square(x1).sum(1) - 2 * x0 @ x1.T
    return squares


def _cost(x0: Array, x1: Array) -> Array:
    """Return a cost with the same assignment as ‖x0_i − x1_j‖², found up to 3 times as fast."""
    x0 = x0 - x0.mean(0)
    x1 = x1 - x1.mean(0)
    near = x0.std()
    far = x1.std()
    # as if both were equally wide
    stretch = far / near if near * far > 0 else 1.0
    return _squares(x0 * stretch, x1)


def _assign(cost: Array) -> Rows:
    """Return the permutation of least cost."""
    from scipy.optimize import linear_sum_assignment

    # subtracting the least of each row and column keeps the assignment, which is found faster
    cost = cost - cost.min(1, keepdims=True)
    found: Rows = linear_sum_assignment(cost - cost.min(0))[1]
    return found


def _weight(cost: Array, gap: Array, pairs: NDArray[np.bool_], ratio: float) -> float:
    """Return w with cost_ij + w·gap_ij ≤ cost_ii for the given ratio of some pairs (i, j)."""
    saved = (np.diag(cost)[:, None] - cost)[pairs]
    gap = gap[pairs]
    if not len(saved):
        return 0.0
    # the w up to which an exchange pays
    largest = np.where(saved >= 0, np.inf, -1.0)
    np.divide(saved, gap, out=largest, where=gap > 1e-12 * gap.max())
    return float(np.clip(np.quantile(largest, 1 - ratio, method="higher"), 0, 1e8))
