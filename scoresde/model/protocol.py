"""What `sample`, `log_prob` and the other verbs require of a model, with or without weights.

A model moves states on the unit arc (`scoresde.model.arc`). With x_t = mean + L·x̃_t in the units
of the data (`scoresde.model.standardization`) and z = x̃_t/√(α² + σ²), a state has an angle
φ = atan(σ/α), and the network's output `out` at (z, φ) is a·x̂0 + b·ε̂
(`scoresde.processes.prediction`). Everything else follows, first dz/dφ = cos φ·ε̂ − sin φ·x̂0.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..common.capabilities import FIELDS, Capability, capabilities
from ..processes.base import Process
from .arc import OnArc
from .fields import Fields
from .old_names import OldNames
from .outcomes import Outcome, lacking
from .schema import Schema
from .standardization import Standardization
from .tables.schema import TableSchema
from .units import DataUnits


class Model(OnArc, Fields, DataUnits, OldNames, abc.ABC):
    """A distribution of x that `sample`, `log_prob`, `elbo` and similar functions can use.

    `ScoreSDE` is the model with a network, and `Derived` the base of models made from others. Any
    other class that has these attributes and methods is a model as well.

    Attributes
    ----------
    process : Process
        The Gaussian path.
    shape : tuple of int
        Shape of one sample.
    predict : str
        What `network_fn` returns: a key of `scoresde.PREDICTIONS`.
    outcome : Outcome
        What it can compute, and its default solver.
    standardization : Standardization
        Between data and states.
    mean, scale : Tensor
        Of the data, per first axis of a sample; a scale of 0 marks a constant.
    condition : mapping of str to Tensor
        What it is conditioned on: one row for all samples, or one a sample.
    source : object with .sample(n), or None
        The distribution of x at t = 1, in the units of the data, if it is not a Gaussian.
    cost : int
        Calls of a network that one evaluation takes.
    unconditional : bool
        Whether it is without conditions on purpose, as `given()` says.
    schema : Schema
        Names of columns and classes, if it was fitted to data with names.
    table : TableSchema or None
        What the columns of a table are, if it was fitted to one: its samples are rows of it.

    Examples
    --------
    >>> isinstance(scoresde.build("vp", "mlp", shape=(2,)), Model)
    True
    """

    process: Process
    shape: tuple[int, ...]
    predict: str
    source: Any = None
    cost: int = 1
    unconditional: bool = False
    mean: Tensor
    scale: Tensor
    schema: Schema
    table: TableSchema | None = None
    keeps_categories: bool = True
    ode_steps: int | None = None
    """Fixed steps of "adams" if neither steps= nor a tolerance is given; None: it adapts."""
    training: bool

    # ------------------------------------------------------------------ what a model has to answer

    @property
    @abc.abstractmethod
    def outcome(self) -> Outcome:
        """What training produced: what the model can compute, and its default solver."""

    @property
    @abc.abstractmethod
    def standardization(self) -> Standardization:
        """Between data and states."""

    @property
    @abc.abstractmethod
    def condition(self) -> Mapping[str, Tensor]:
        """What it is conditioned on."""

    @abc.abstractmethod
    def network_fn(self, *, raw: bool = False, traced: bool = False) -> Callable[..., Any]:
        """Return the network's output as a function, for a solve to call many times.

        Parameters
        ----------
        raw : bool
            Whether to call the raw network in eval mode too, rather than the averaged one.
        traced : bool
            Whether to return (out, traces) with traces = tr ∂out/∂z of shape (B, 1); see `traces`.

        Returns
        -------
        callable (z, φ, rows) -> Tensor (B, n), or a pair of such and Tensor (B, 1)
            z are states (B, n). φ is an angle in radians, a float or float64 of shape (B,). rows
            says which rows of per-sample conditions these states have, int64 of shape (B,); None
            means all rows in order.

        Raises
        ------
        TypeError
            If traced and there is no trace in closed form.

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).network_fn()(torch.ones(1, 2), 0.5, None)
        tensor([[0., 0.]], grad_fn=...)
        """

    @abc.abstractmethod
    def with_condition(self, condition: Mapping[str, Tensor]) -> Model:
        """Return this model under conditions that were checked before.

        Parameters
        ----------
        condition : mapping of str to Tensor
            They replace those it has.

        Returns
        -------
        Model

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,), classes=3)
        >>> sde.with_condition({"y": torch.tensor([1])}).condition
        {'y': tensor([1])}
        """

    @abc.abstractmethod
    def given(self, **condition: Any) -> Model:
        """Return this model conditioned; see `ScoreSDE.given`.

        Parameters
        ----------
        **condition : Tensor, array, number or word
            One value for all samples, or one row a sample.

        Returns
        -------
        Model

        Examples
        --------
        See `ScoreSDE.given`.
        """

    @abc.abstractmethod
    def networks(self, *, raw: bool = False) -> list[nn.Module]:
        """Return the networks in use: the averaged ones in eval mode, where there are such.

        Parameters
        ----------
        raw : bool
            As for `network_fn`.

        Returns
        -------
        list of nn.Module

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> sde.networks() == [sde.net]
        True
        """

    @abc.abstractmethod
    def trained(self) -> Iterator[Any]:
        """Yield the trained models beneath, whose mode is set to eval while a verb works.

        Yields
        ------
        ScoreSDE

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,), classes=3)
        >>> list(sde.given(y=1).trained()) == [sde]
        True
        """

    # ------------------------------------------------------------------ what follows

    def takes(self, name: str) -> bool:
        """Whether its network has an argument of that name, such as `span`, a second time.

        Parameters
        ----------
        name : str

        Returns
        -------
        bool

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).takes("span")
        False
        """
        return False

    def takes_condition(self, name: str) -> bool:
        """Whether `given` takes a condition of that name.

        Parameters
        ----------
        name : str

        Returns
        -------
        bool

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,), classes=3).takes_condition("y")
        True
        """
        return False

    def traces(self, *, raw: bool = False) -> bool:
        """Whether `network_fn(traced=True)` gives the output together with its exact trace.

        Parameters
        ----------
        raw : bool
            As for `network_fn`.

        Returns
        -------
        bool

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).traces()
        True
        """
        return False

    def slice_conditions(self, start: int, stop: int, total: int) -> Model:
        """Return this model for samples start … stop of `total`: with their rows of conditions.

        Parameters
        ----------
        start, stop, total : int
            The samples, numbered over the call.

        Returns
        -------
        Model

        Raises
        ------
        ValueError
            If a condition has neither one row nor `total` rows.

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,), classes=3)
        >>> sde.given(y=torch.tensor([0, 1, 2])).slice_conditions(1, 3, 3).condition
        {'y': tensor([1, 2])}
        """
        if not self.condition:
            return self
        found = {}
        for name, value in self.condition.items():
            if len(value) not in (1, total):
                raise ValueError(
                    f"condition {name!r} has {len(value)} rows for {total} samples; "
                    f"wanted 1 or {total}"
                )
            part = value if len(value) == 1 else value[start:stop]
            found[name] = part.to(self.device)
        return self.with_condition(found)

    def select_conditions(self, rows: Tensor) -> Model:
        """Return this model for chosen rows of its per-sample conditions.

        Parameters
        ----------
        rows : Tensor of int, shape (B,)
            Which row each sample has; one value for all samples stays.

        Returns
        -------
        Model

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,), classes=3).given(y=torch.tensor([0, 2]))
        >>> sde.select_conditions(torch.tensor([0, 0, 1])).condition
        {'y': tensor([0, 0, 2])}
        """
        if self.condition_rows == 1:
            return self
        found = {}
        for name, value in self.condition.items():
            found[name] = value if len(value) == 1 else value[rows.to(value.device)]
        return self.with_condition(found)

    def at_data(self, x: Tensor) -> Tensor:
        """Return the samples x_0 that a solve ends in, with what the model knows of them exactly.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            In the units of the data.

        Returns
        -------
        Tensor, shape (B, *shape)
            x itself; a model of data that are observed in part overrides this.

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).at_data(torch.ones(1, 2))
        tensor([[1., 1.]])
        """
        return x

    def warn_unconditional(self) -> None:
        """Warn once if the model was fitted with conditions and lacks some.

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).warn_unconditional()
        """

    def _evaluated(self) -> Iterator[Any]:
        """Modules with a network that are in eval mode while a verb works."""
        return self.trained()

    def _refusal(self, verb: str) -> str | None:
        """Why a function of that name can't take this model, in a sentence; None if it can."""
        return None

    @property
    def condition_rows(self) -> int:
        """The number of rows of the conditions: 1 without conditions, or with one row for all."""
        return max((len(value) for value in self.condition.values()), default=1)

    @property
    def capabilities(self) -> frozenset[str]:
        """What it can compute: a score, a velocity, the end of the ODE, …"""
        found = self.outcome.capabilities
        return found.union(FIELDS) if Capability.VELOCITY in found else found

    @property
    def distilled_steps(self) -> int | None:
        """The only number of steps that a distilled model can take; None for all others."""
        return self.outcome.distilled_steps

    @property
    def default_solver(self) -> str:
        """The solver that `sample` takes if none is named."""
        return self.outcome.solver

    def require(self, *needs: str) -> None:
        """Raise ValueError if the model lacks a capability.

        Parameters
        ----------
        *needs : str
            Keys of `scoresde.CAPABILITIES`: "score", "velocity", "endpoint", …

        Raises
        ------
        ValueError
            With the way to a model that does.

        Examples
        --------
        >>> path, net = scoresde.RectifiedFlow(), torch.nn.Identity()
        >>> jumps = scoresde.ScoreSDE(path, net, shape=(2,), outcome="endpoint")
        >>> jumps.require("velocity")
        Traceback (most recent call last):
        ValueError: this model has learnt where the ODE ends, not its velocity: ...
        """
        text = lacking(self.capabilities, capabilities(needs), self.distilled_steps)
        if text is not None:
            raise ValueError(text)
