"""Couplings: which noise, or which sample of a source, is joined with which x0 in training.

Any joint law of (x0, x1) with the right marginals trains a model of the same path law, x_t = α·x0 + σ·x1 for x1 ~ p_1 and
x0 ~ p_0; the coupling decides how often paths cross, and so how straight the ODE becomes. Optimal transport within batches of b
rows (Tong et al. 2024; Pooladian et al. 2023) joins them by the permutation π of least cost

    Σ_i ‖x0_i − x1_π(i)‖²,        that is of greatest Σ_i ⟨x0_i, x1_π(i)⟩.

In conditional models that makes x1 depend on the condition c, which at sampling time it does not. Condition-aware transport
(Cheng & Schwing 2025) adds w·‖c_i − c_π(i)‖² to the cost, with w = ∞ for labels: only x1 of the same label change places.
"""

from __future__ import annotations

import abc
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import affordable, number, whole
from .data import Batch, Source
from .inputs import as_floats, as_tensor
from .random import PAIRS, STARTS, seeded
from .registry import Registry
from .sde import ScoreSDE
from .source import draw

COUPLINGS: Registry[Coupling] = Registry("coupling")
"""All couplings by name."""

Array = NDArray[np.float64]
AT_ONCE = 16  # steps that are joined in one go, before the first of them is taken
SLOW = 1024  # rows whose assignment takes a noticeable part of a second
CUBIC = 2e-10  # seconds of an assignment of n rows, over n³


@dataclass(frozen=True)
class Coupling(abc.ABC):
    """A way to join the rows of a batch with as many rows of noise, or of a source.

    Subclass it, give `join`, and register: `@scoresde.COUPLINGS.register("name")`.

    Parameters
    ----------
    size : int, optional
        Rows that are joined with one another; by default those of a step.
    reuse : int
        Steps that each pair serves in, each time at another noise level and with other mates: an assignment may take longer
        than a step of a small network.

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
        whole("reuse", self.reuse)
        if self.size is not None:
            size = whole("size", self.size)
            affordable(f"size={size}", 8.0 * size * size)  # of all distances

    def check(self, names: set[str] | None) -> None:
        """Raise or warn if data with conditions of these names (None: not known yet) are not for this coupling.

        Parameters
        ----------
        names : set of str, or None

        Examples
        --------
        >>> ConditionAwareOT().check(set())
        Traceback (most recent call last):
        ValueError: condition_aware_ot joins rows by their conditions, and these data have none; try 'minibatch_ot'
        """
        return

    @abc.abstractmethod
    def join(self, x0: Array, x1: Array, condition: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> NDArray[np.intp]:
        """Return which row of x1 goes with each row of x0.

        Parameters
        ----------
        x0, x1 : array, shape (b, n)
            Standardized.
        condition : mapping of str to array (b, …)
            Of the rows of x0.
        rng : numpy.random.Generator
            All the randomness there is.

        Returns
        -------
        array of int, shape (b,)

        Examples
        --------
        >>> x0, x1 = np.array([[0.0], [5.0]]), np.array([[6.0], [1.0]])
        >>> MinibatchOT().join(x0, x1, {}, np.random.default_rng(0))
        array([1, 0])
        """


@COUPLINGS.register("independent")
@dataclass(frozen=True)
class Independent(Coupling):
    """Every x0 with any x1: the coupling of diffusion models, and the only one that leaves a score.

    Examples
    --------
    >>> Independent().joins
    False
    """

    size: None = None
    reuse: int = 1
    joins: ClassVar[bool] = False

    def join(self, x0: Array, x1: Array, condition: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> NDArray[np.intp]:
        """Return the rows in their order."""
        return np.arange(len(x0))


@COUPLINGS.register("minibatch_ot")
@dataclass(frozen=True)
class MinibatchOT(Coupling):
    """Exact optimal transport within a batch, as an assignment (Tong et al. 2024; Crouse 2016).

    It costs O(size³): about 5 ms for 256 rows and 0.2 s for 1,024, on the side of the training. In conditional models it makes
    x1 depend on the condition; see `ConditionAwareOT`.

    Parameters
    ----------
    size, reuse
        As for `Coupling`.

    Examples
    --------
    >>> MinibatchOT()
    MinibatchOT(size=None, reuse=8)
    """

    def check(self, names: set[str] | None) -> None:
        """Warn about conditions."""
        if names:
            warnings.warn(
                f"{type(self).__name__} joins rows whatever their conditions {sorted(names)}, so that a conditional model starts "
                "from the wrong place when it samples: take coupling='condition_aware_ot'",
                stacklevel=7,
            )

    def join(self, x0: Array, x1: Array, condition: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> NDArray[np.intp]:
        """Return the assignment of least cost."""
        return _assign(_cost(x0, x1))


@COUPLINGS.register("condition_aware_ot")
@dataclass(frozen=True)
class ConditionAwareOT(Coupling):
    """Optimal transport within a batch among rows of (nearly) the same condition, C²OT (Cheng & Schwing 2025).

    Rows of x1 are first given to rows of x0, with their conditions, at random. Where conditions are integers, only rows of the
    same ones change places. Where they are real, exchanging i and j costs w·‖c_i − c_j‖² more, with w such that a given ratio
    of all exchanges would pay.

    Parameters
    ----------
    size, reuse
        As for `Coupling`.
    ratio : float
        Of exchanges of i with j ≠ i, of the same label, that have cost_ij + w·‖c_i − c_j‖² ≤ cost_ii, in [0, 1]. `fit`
        hands it standardized conditions.

    Raises
    ------
    ValueError
        For a ratio that is none.

    Examples
    --------
    >>> x0, x1, y = np.array([[0.0], [5.0], [6.0]]), np.array([[6.0], [1.0], [0.5]]), np.array([0, 0, 1])
    >>> ConditionAwareOT().join(x0, x1, {"y": y}, np.random.default_rng(0))
    array([1, 0, 2])
    """

    ratio: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        number("ratio", self.ratio, 0, 1, closed=True)

    def check(self, names: set[str] | None) -> None:
        """Raise if there are no conditions."""
        if names is not None and not names:
            raise ValueError("condition_aware_ot joins rows by their conditions, and these data have none; try 'minibatch_ot'")

    def join(self, x0: Array, x1: Array, condition: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> NDArray[np.intp]:
        """Return the assignment, group by group of equal labels."""
        self.check(set(condition))
        b = len(x0)
        labels = [value.reshape(b, -1) for value in condition.values() if value.dtype.kind in "iub"]
        values = [value.reshape(b, -1).astype(float) for value in condition.values() if value.dtype.kind == "f"]
        which = np.unique(np.hstack(labels), axis=0, return_inverse=True)[1].reshape(b) if labels else np.zeros(b, int)
        cost, found = _cost(x0, x1), np.arange(b)
        if values:
            c = np.hstack(values)
            cost, gap = _squares(x0, x1), _squares(c, c).clip(0)
            cost += _weight(cost, gap, (which[:, None] == which) & ~np.eye(b, dtype=bool), self.ratio) * gap
        for group in range(which.max() + 1):
            rows = np.flatnonzero(which == group)
            found[rows] = rows[_assign(cost[np.ix_(rows, rows)])]
        return found


@COUPLINGS.register("sinkhorn")
@dataclass(frozen=True)
class Sinkhorn(MinibatchOT):
    """Entropic optimal transport within a batch: x1 of each row is drawn from the plan that minimizes cost − reg·entropy.

    It needs `pip install scoresde[ot]`. With reg = 2σ² it joins the ends of a Schrödinger bridge of noise σ (Tong et al. 2024b).

    Parameters
    ----------
    size, reuse
        As for `Coupling`.
    reg : float
        In units of squared distance between standardized samples.

    Raises
    ------
    ValueError, ImportError
        Unless reg is positive, and without the package.

    References
    ----------
    Cuturi 2013; Tong et al., Improving and generalizing flow-based generative models, TMLR 2024, proposition 3.5.

    Examples
    --------
    >>> Sinkhorn(reg=0.1)
    Sinkhorn(size=None, reuse=8, reg=0.1)
    """

    reg: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        number("reg", self.reg, 0, math.inf)
        try:
            import ot  # noqa: F401
        except ImportError:
            raise ImportError("coupling='sinkhorn' needs POT: pip install scoresde[ot]; or take 'minibatch_ot'") from None

    def plan(self, x0: Array, x1: Array) -> Array:
        """Return the joint probabilities of rows of x0 and x1.

        Parameters
        ----------
        x0, x1 : array, shape (b, n)

        Returns
        -------
        array, shape (b, b)
            Whose rows and columns all have the sum 1/b: what the iteration has left of their errors is spread over all entries
            (Altschuler et al. 2017, algorithm 2).

        Warns
        -----
        UserWarning
            If that is more than a tenth of the plan.

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
        method = "sinkhorn" if cost.max() < 400 * self.reg else "sinkhorn_log"  # a hundred times as long, but nothing underflows
        plan: Array = ot.sinkhorn(even, even, cost, self.reg, method=method, numItermax=1000, stopThr=1e-6, warn=False)
        plan = plan * np.minimum(1, even / np.maximum(plan.sum(1), 1e-300))[:, None]
        plan = plan * np.minimum(1, even / np.maximum(plan.sum(0), 1e-300))
        rows, columns = (np.maximum(even - plan.sum(axis), 0) for axis in (1, 0))
        lost = rows.sum()
        if lost > 0.1:
            warnings.warn(f"sinkhorn: {lost:.0%} of the plan has not converged at reg={self.reg:g}: take more", stacklevel=2)
        return plan + np.outer(rows, columns) / lost if lost > 0 else plan

    def join(self, x0: Array, x1: Array, condition: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> NDArray[np.intp]:
        """Return a draw from each row of the plan."""
        edges = np.cumsum(self.plan(x0, x1), 1)
        found: NDArray[np.intp] = (edges < rng.random((len(x0), 1)) * edges[:, -1:]).sum(1)
        return found


def _squares(x0: Array, x1: Array) -> Array:
    """‖x0_i − x1_j‖²."""
    squares: Array = np.square(x0).sum(1)[:, None] + np.square(x1).sum(1) - 2 * x0 @ x1.T
    return squares


def _cost(x0: Array, x1: Array) -> Array:
    """A cost with the same assignment as the squared distance, found up to three times as fast: as if both were as wide."""
    x0, x1 = x0 - x0.mean(0), x1 - x1.mean(0)
    near, far = x0.std(), x1.std()
    return _squares(x0 * (far / near if near * far > 0 else 1.0), x1)


def _assign(cost: Array) -> NDArray[np.intp]:
    from scipy.optimize import linear_sum_assignment

    cost = cost - cost.min(1, keepdims=True)  # likewise
    found: NDArray[np.intp] = linear_sum_assignment(cost - cost.min(0))[1]
    return found


def _weight(cost: Array, gap: Array, pairs: NDArray[np.bool_], ratio: float) -> float:
    """w such that cost_ij + w·gap_ij ≤ cost_ii for the given ratio of some pairs (i, j)."""
    gain, gap = (np.diag(cost)[:, None] - cost)[pairs], gap[pairs]  # what an exchange saves, and what it costs
    if not len(gain):
        return 0.0
    worth = np.where(gain >= 0, np.inf, -1.0)  # up to which w it pays
    np.divide(gain, gap, out=worth, where=gap > 1e-12 * gap.max())
    return float(np.clip(np.quantile(worth, 1 - ratio, method="higher"), 0, 1e8))


class Pairing:
    """An endless stream of training batches with what their paths begin in, joined on the side while others are learnt.

    Parameters
    ----------
    source : Source
        Of the data.
    sde : ScoreSDE
    coupling : Coupling
    seed, rank : int

    Raises
    ------
    TypeError, ValueError
        If the coupling is not for these data.

    Examples
    --------
    >>> sde = scoresde.build("rectified", "mlp", shape=(2,))
    >>> pairing = Pairing(Source(torch.rand(10, 2), sde, 4, seed=0), sde, MinibatchOT(), 0, 0)
    >>> x0, eps, condition, sizes = next(pairing.batches(0))
    >>> x0.shape, eps.shape, len(sizes)
    (torch.Size([64, 2]), torch.Size([64, 2]), 16)
    """

    def __init__(self, source: Source, sde: ScoreSDE, coupling: Coupling, seed: int, rank: int) -> None:
        self._source, self._sde, self._coupling, self._seed, self._rank = source, sde, coupling, seed, rank
        self._pool: ThreadPoolExecutor | None = None
        self._closed = self._looked = False
        self._span: tuple[int, bool, dict[str, int], dict[str, int]] = 0, False, {}, {}
        if not coupling.joins:
            return
        if source.paired:
            raise TypeError("these data are pairs already: leave coupling= out")
        if not sde.process.ends_in_noise:
            raise ValueError(f"a coupling joins the ends of paths, and {sde.process} has none at t = 1; try RectifiedFlow()")
        source.gather(coupling.size, AT_ONCE)
        if source.names is not None:
            self._look(source.names, coupling.size or source.rows or 0)
        self._pool = ThreadPoolExecutor(1, "scoresde-coupling")

    def _look(self, names: set[str], size: int) -> None:
        """Say what is wrong with data of which this is known, once."""
        self._looked = True
        self._coupling.check(names)
        if size > SLOW:
            warnings.warn(
                f"joining {size} rows takes about {CUBIC * size**3:.2g} s on one core, and {size**2 * 8e-6:.0f} MB, each time: "
                "take a smaller size=, or batch_size=",
                stacklevel=6,
            )

    def batches(
        self, step: int, position: Mapping[str, int] | None = None, stop: float = math.inf
    ) -> Iterator[tuple[Tensor, Tensor | None, dict[str, Tensor], list[int]]]:
        """Yield (x0, ε, conditions, sizes) of the steps after so many, several at once; ε of None is left to the caller to draw.

        Parameters
        ----------
        step : int
        position : dict, optional
            What `at` said of that step.
        stop : int, optional
            The last step: nothing is joined that is not learnt.

        Yields
        ------
        x0 : Tensor, shape (B, *shape)
            In the units of the data.
        eps : Tensor, shape (B, n), or None
            Standardized.
        condition : dict of str to Tensor
        sizes : list of int
            Rows of each step: the last batch of a loader may be short.

        Examples
        --------
        See `Pairing`.
        """
        reuse = self._coupling.reuse if self._coupling.joins else 1
        # of those that come step by step several are joined and served together, so that each row meets others every time
        several = max(1, min(reuse, math.ceil(stop / reuse))) if self._source.together == 1 and stop < math.inf else 1
        k = self._source.together * several
        first = step // k // reuse
        ready: list[tuple[Any, ...]] = []
        taken, before = self._source.batches(first * k, position or {}), dict(position or {})
        for group in itertools.count(first):
            while not ready or (self._pool and len(ready) < 2 and (group + 1) * k * reuse < stop):
                ready.append((before, *self._begun([next(taken) for _ in range(several)], group + len(ready))))
                before = dict(self._source.position)
            mine, x0, eps, condition, sizes, which = ready.pop(0)
            after = ready[0][0] if ready else before
            if which is not None:
                eps = eps.index_select(0, which.result().to(eps.device))
            for use in range(step // k - group * reuse if group == first else 0, reuse):
                one = x0, eps, condition
                if use:
                    g = seeded(x0.device, self._seed, PAIRS, group, use, self._rank)
                    order = torch.randperm(len(x0), generator=g, device=x0.device)
                    given = {name: value.index_select(0, order) for name, value in condition.items()}
                    one = x0.index_select(0, order), eps.index_select(0, order), given
                self._span = (group * reuse + use + 1) * k, use + 1 == reuse, mine, after
                yield *one, sizes

    def at(self, step: int) -> dict[str, int]:
        """Return what `batches` needs beside the step, to go on after it: within a batch it begins with that again.

        Parameters
        ----------
        step : int
            One of the last batch's.

        Returns
        -------
        dict

        Examples
        --------
        See `Pairing`.
        """
        end, over, mine, after = self._span
        return after if over and step >= end else mine

    def _begun(
        self, batches: list[Batch], group: int
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor], list[int], Future[Tensor] | None]:
        """Batches as one, what it is to be joined with, the rows of each step, and the promise of how they are joined."""
        x0, start, condition, _ = batches[0]
        sizes = [len(x0) // self._source.together] * self._source.together
        if len(batches) > 1:
            x0, sizes = torch.cat([batch[0] for batch in batches]), [len(batch[0]) for batch in batches]
            condition = {name: torch.cat([batch[2][name] for batch in batches]) for name in condition}
        sde, eps = self._sde, None
        words = self._seed, STARTS, group, self._rank
        if start is not None:
            eps = sde.from_start(start).to(sde.state_dtype)
        elif sde.source is not None:
            drawn = as_tensor(draw(sde.source, len(x0), *words), "source.sample(n)")
            drawn = as_floats(drawn, sde.shape, "source.sample(n)").to(x0.device)
            eps = sde.from_start(drawn).to(sde.state_dtype)
        elif self._pool is not None:
            g = seeded(x0.device, *words)
            eps = torch.randn(len(x0), sde.dim, generator=g, device=x0.device, dtype=sde.state_dtype)
        if self._pool is None or eps is None:
            return x0, eps, condition, sizes, None
        if not self._looked:
            self._look(set(condition), self._coupling.size or sizes[0])
        blocks = sizes
        if self._coupling.size is not None:
            blocks = [self._coupling.size] * -(-len(x0) // self._coupling.size)
        data, noise = (x.detach().cpu().double().numpy() for x in (sde.from_data(x0), eps))
        numbers = {name: sde.conditions.standardize(name, value) for name, value in condition.items()}
        given = {name: value.detach().cpu().numpy() for name, value in numbers.items()}
        return x0, eps, condition, sizes, self._pool.submit(self._joined, data, noise, given, blocks, words)

    def _joined(
        self, x0: Array, x1: Array, condition: dict[str, NDArray[Any]], sizes: list[int], words: tuple[int, ...]
    ) -> Tensor:
        rng, parts, name = np.random.default_rng(words), [], type(self._coupling).__name__
        for start, stop in itertools.pairwise(itertools.accumulate(sizes, initial=0)):
            if self._closed:
                raise RuntimeError("the training has ended")
            rows = slice(start, stop)
            b = len(x0[rows])
            found = np.asarray(self._coupling.join(x0[rows], x1[rows], {n: value[rows] for n, value in condition.items()}, rng))
            if found.shape != (b,) or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= b:
                raise ValueError(
                    f"{name}.join returned {found.dtype} of shape {found.shape} for {b} rows; wanted the row of x1 that goes "
                    f"with each of x0: integers from 0 to {b - 1}, of shape ({b},)"
                )
            parts.append(start + found)
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    def close(self) -> None:
        """Let the side worker go.

        Examples
        --------
        See `Pairing`.
        """
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
