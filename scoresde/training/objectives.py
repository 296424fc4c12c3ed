"""What a model can learn: the base of all objectives, and their table."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common.registry import Registry
from ..model.outcomes import as_outcome
from ..model.score_sde import ScoreSDE
from ..model.trainable import Trainable

Condition = dict[str, Tensor]


class Objective(abc.ABC):
    """What a model can learn: a loss of standardized pairs of data and noise.

    Subclass it, give `kind` and `__call__`, and register: `@scoresde.OBJECTIVES.register("name")`.
    Everything else has defaults. `fit` calls `check` and `coupling` before any work, then
    `prepared`, and trains with what that returns.

    Attributes
    ----------
    kind : str
        What the trained model has learnt: see `ScoreSDE`.
    trains : type
        The kind of model that learns this: `ScoreSDE`, or another `Trainable`, which needs no
        `kind`, is given standardized samples as z0, and may leave eps and q unused.
    per_rank : frozenset of str
        The entries of `state_dict` that differ between ranks. A checkpoint has them of all ranks.
    learns_variance : bool
        Whether it trains the second output of a network with a variance, which `fit` otherwise
        refuses.
    takes_gaps : bool
        Whether the loss leaves out entries that are not modelled, which rows with gaps have.

    Examples
    --------
    Flow matching by a network that takes the state on the arc and its noise label:

    >>> class FlowMatching(scoresde.Objective):
    ...     kind = "velocity"
    ...     def __call__(self, net, sde, z0, eps, q, condition, progress, generator):
    ...         phi = q * sde.process.phi_max
    ...         cos, sin = phi.cos().to(z0)[:, None], phi.sin().to(z0)[:, None]
    ...         x, label, _ = sde.inputs(cos * z0 + sin * eps, phi, z0.dtype)
    ...         out = -net(x, label, **condition).reshape(z0.shape)
    ...         return (out - (cos * eps - sin * z0)).square().mean()
    >>> sde = scoresde.build("rectified", "mlp", shape=(2,), width=8)
    >>> history = scoresde.fit(sde, torch.randn(100, 2), objective=FlowMatching(), steps=5)
    >>> sde.outcome.name
    'velocity'
    """

    kind: str
    trains: ClassVar[type[Trainable]] = ScoreSDE
    per_rank: ClassVar[frozenset[str]] = frozenset()
    takes_gaps: ClassVar[bool] = False
    learns_variance: ClassVar[bool] = False

    def check(self, sde: Any) -> None:
        """Raise ValueError for a model that can't learn this.

        Parameters
        ----------
        sde : ScoreSDE

        Examples
        --------
        >>> scoresde.MeanFlow().check(scoresde.build("rectified", "mlp", shape=(2,)))
        Traceback (most recent call last):
        ValueError: a flow map has a second time, and MLP takes no span=; ...
        """
        return

    def coupling(self, sde: Any) -> Any:
        """Return the coupling of `fit` when the user names none.

        Parameters
        ----------
        sde : ScoreSDE

        Returns
        -------
        str or Coupling

        Examples
        --------
        >>> scoresde.MeanFlow().coupling(scoresde.build("rectified", "two_times", shape=(2,)))
        'independent'
        """
        return "independent"

    def prepared(self, sde: Any, *, paired: bool, joined: bool) -> Objective:
        """Return the objective for one run, with fresh state if it has any.

        Parameters
        ----------
        sde : ScoreSDE
        paired : bool
            Whether the data are `Pairs`.
        joined : bool
            Whether a coupling joins the data with noise.

        Returns
        -------
        Objective
            By default itself.

        Raises
        ------
        ValueError
            For data that this can't be learnt from.

        Examples
        --------
        >>> sde = scoresde.build("rectified", "mlp", shape=(2,))
        >>> scoresde.Denoising().prepared(sde, paired=False, joined=True)
        Denoising(weight='edm', noise='uniform')
        """
        return self

    def validated_by(self) -> Objective | None:
        """Return the objective whose loss on held-out samples says how well a model has learnt.

        Returns
        -------
        Objective or None
            By default `Denoising` for a model with a velocity, and the objective itself for a
            model that is no ScoreSDE. None where there is no such loss: `fit` then refuses
            `validation=`.

        Examples
        --------
        >>> scoresde.MeanFlow().validated_by()
        Denoising(weight='edm', noise=None)
        >>> scoresde.BridgeMatching().validated_by() is None
        True
        """
        if not issubclass(self.trains, ScoreSDE):
            return self
        offered = as_outcome(self.kind).capabilities
        if "velocity" not in offered or "bridge" in offered:
            return None
        return OBJECTIVES.build("denoising")

    def describe(self) -> dict[str, Any]:
        """Return the settings that must be the same when a run is resumed.

        Returns
        -------
        dict of str to object
            In plain JSON; empty for an objective that its name or `repr` tells apart from others.

        Examples
        --------
        >>> scoresde.Denoising(noise="uniform").describe()
        {'weight': 'edm', 'noise': 'uniform', 'objective': 'denoising'}
        """
        return {}

    @abc.abstractmethod
    def __call__(
        self,
        net: Callable[..., Any],
        sde: Any,
        z0: Tensor,
        eps: Tensor,
        q: Tensor,
        condition: Condition,
        progress: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the loss of a batch, with gradients.

        Parameters
        ----------
        net : callable (x, t, **condition) -> Tensor
            The raw network, as the backend calls it.
        sde : ScoreSDE
        z0, eps : Tensor, shape (B, n)
            Standardized samples, and the noise or the sample of the source that each goes with.
        q : Tensor, shape (B,), float64
            Quantiles in (0, 1) for the noise levels, stratified over a step.
        condition : dict of str to Tensor
            As the network takes them, one row per sample or one for all.
        progress : float
            Share of the training that is done after this step, in (0, 1].
        generator : torch.Generator
            On the model's device.

        Returns
        -------
        Tensor, shape ()
            A mean over the rows: gradients of the pieces of a batch are averaged.
        """

    def examples(self, sde: Any, z0: Tensor, eps: Tensor, q: Tensor, condition: Condition) -> Any:
        """State the batches of several steps at once, for an objective that saves time so.

        Parameters
        ----------
        sde : ScoreSDE
        z0, eps, q, condition
            As in a call, of all the steps.

        Returns
        -------
        object
            What `loss` takes; a slice of it holds those rows. By default just these tensors.

        Examples
        --------
        >>> sde = scoresde.build("rectified", "two_times", shape=(2,))
        >>> z, q = torch.zeros(6, 2), torch.rand(6).double()
        >>> examples = scoresde.MeanFlow().examples(sde, z, z, q, {})
        >>> examples[:4].z0.shape
        torch.Size([4, 2])
        """
        return PathEnds(z0, eps, q, condition)

    def loss(
        self,
        net: Callable[..., Any],
        sde: Any,
        examples: Any,
        progress: float,
        generator: Callable[[], torch.Generator],
    ) -> Tensor:
        """Return the loss of some rows of `examples`, with gradients: by default that of a call.

        Parameters
        ----------
        net : callable (x, t, **condition) -> Tensor
        sde : ScoreSDE
        examples : object
            Rows of what `examples` returned.
        progress : float
        generator : callable () -> torch.Generator
            Makes the generator of a call.

        Returns
        -------
        Tensor, shape ()

        Examples
        --------
        Denoising with a penalty of large weights:

        >>> class Decayed(scoresde.Denoising):
        ...     def loss(self, net, sde, examples, progress, generator):
        ...         penalty = sum(p.square().sum() for p in sde.net.parameters())
        ...         return super().loss(net, sde, examples, progress, generator) + 1e-4 * penalty
        >>> sde = scoresde.build("rectified", "mlp", shape=(2,), width=8)
        >>> scoresde.fit(sde, torch.randn(100, 2), objective=Decayed(), steps=5)
        History(steps=5, loss=..., seconds=...)
        """
        rows = examples
        return self(net, sde, rows.z0, rows.eps, rows.q, rows.condition, progress, generator())

    def update(self, total: Callable[[Tensor], None]) -> None:
        """Adapt to the steps so far, before the examples of the next ones are made.

        Parameters
        ----------
        total : callable (Tensor) -> None
            Adds a tensor over all ranks, in place.

        Examples
        --------
        >>> scoresde.MeanFlow().update(lambda x: None)
        """
        return

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that a checkpoint must hold.

        Returns
        -------
        dict of str to Tensor

        Examples
        --------
        >>> scoresde.MeanFlow().state_dict()
        {}
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` returned.

        Parameters
        ----------
        state : mapping of str to Tensor

        Examples
        --------
        >>> scoresde.MeanFlow().load_state_dict({})
        """
        return


@dataclass(frozen=True)
class PathEnds:
    """Rows of standardized pairs: both ends of paths, and quantiles of noise levels."""

    z0: Tensor  # (B, n)
    eps: Tensor  # (B, n)
    q: Tensor  # (B,)
    condition: Condition

    def __getitem__(self, rows: slice) -> PathEnds:
        """Return some of the rows."""
        condition = slice_rows(self.condition, rows)
        return PathEnds(self.z0[rows], self.eps[rows], self.q[rows], condition)


def slice_rows(condition: Condition, rows: slice | Tensor) -> Condition:
    """Return rows of conditions; a condition with one row for all samples keeps it."""
    if not condition:
        return condition
    return {name: value if len(value) == 1 else value[rows] for name, value in condition.items()}


def expand_rows(condition: Condition, n: int) -> Condition:
    """Return conditions with n rows each."""
    if not condition:
        return condition
    return {name: value.expand(n, *value.shape[1:]) for name, value in condition.items()}


OBJECTIVES: Registry[Objective] = Registry("objective", "scoresde.OBJECTIVES")
"""What `fit` can train a model for, by name; "denoising" is the default of all processes but
`SchrodingerBridge`.
"""
