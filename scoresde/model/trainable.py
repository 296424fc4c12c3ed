"""What `fit`, checkpoints, `save` and `load` require of a model that has a network of its own.

A score model is one kind. Another kind subclasses `Trainable`, says which objective it learns by,
and what beside its network it is made of; everything else about training and files is shared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..backbones.base import BACKBONES
from ..common.inputs import event_shape
from ..common.modules import duplicate, leave_inference
from ..common.registry import Registry
from .condition_scales import ConditionScales
from .module import StandardizedModule
from .network import NetworkInterface
from .schema import Schema
from .tables.schema import TableSchema
from .units import DataUnits

KINDS: dict[str, type[Trainable]] = {}
"""The kinds of models that a file can hold, by the word for each in a file."""


class Trainable(StandardizedModule, DataUnits):
    """A model with a network of its own, which `fit` trains and `save` writes.

    Subclass it, give `stored_as`, `networks_by_name`, `verbs` and `objective`, and if it is made
    of more than a network and a shape, `described` and `rebuilt`. What else it does is its own.

    Parameters
    ----------
    net : nn.Module
        Its forward method takes two positional arguments, and conditions by name.
    shape : tuple of int
        Shape of one sample, without the batch.
    standardize : str, optional
        "whiten", "factors", "scale" or "none": what `fit` measures first; see `ScoreSDE`.

    Attributes
    ----------
    stored_as : str
        The word for this kind of model in a file.
    networks_by_name : Registry
        Its networks, by which a file names them; the first parameter of each is the shape.
    verbs : str
        What the model can do, for the message of functions that take score models.
    objective : str or Objective
        What `fit` trains it for if the user names nothing.
    ema, schema, table, conditions, learnt
        See `ScoreSDE`.

    Examples
    --------
    >>> class Mean(Trainable):
    ...     verbs = "its .net.mean is what it has learnt"
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.mean = nn.Parameter(torch.zeros(2))
    ...     def forward(self, x, noise=None): return (x - self.mean).square().sum(1)
    >>> class LeastSquares(scoresde.Objective):
    ...     trains = Mean
    ...     def __call__(self, net, model, z0, eps, q, condition, progress, generator):
    ...         return net(z0, eps).mean()
    >>> model = Mean(Net(), shape=(2,))
    >>> scoresde.fit(model, torch.randn(99, 2), objective=LeastSquares(), steps=5, progress=False)
    History(steps=5, loss=..., seconds=...)
    """

    stored_as: ClassVar[str]
    networks_by_name: ClassVar[Registry[nn.Module]] = BACKBONES
    verbs: ClassVar[str] = ""
    objective: Any = None
    net: nn.Module
    ema: nn.Module | None
    source: Any = None
    outcome: Any = None
    table: TableSchema | None = None
    input_convention = "own"
    _interface: NetworkInterface | None = None
    _warned = False  # whether a lack of conditions was warned of
    _tells_of_clumps = True  # whether `fit` warns of columns that clump

    def __init_subclass__(cls, **options: Any) -> None:
        """Let files name the class, if it says by which word."""
        super().__init_subclass__(**options)
        if "stored_as" in vars(cls):
            KINDS[cls.stored_as] = cls

    @torch.inference_mode(False)
    def __init__(
        self,
        net: nn.Module,
        *,
        shape: tuple[int, ...],
        standardize: str | None = None,
        coupled: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net is an nn.Module, got {type(net).__name__}")
        leave_inference(net)
        self.net = net
        self.register_module("ema", None)
        self.shape = event_shape(shape)
        self.make_statistics(next(itertools.chain(net.parameters(), net.buffers()), None))
        self._standardize = standardize
        self.choose_standardization(standardize, coupled)
        self.schema = Schema()
        self.conditions = ConditionScales()
        self.learnt: dict[str, Any] | None = None

    # ------------------------------------------------------------------ what it is made of

    def described(self) -> dict[str, Any]:
        """Return what it is made of beside network, shape and data, in plain JSON.

        Returns
        -------
        dict of str to object

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).described()["predict"]
        'edm'
        """
        return {}

    @classmethod
    def rebuilt(cls, net: nn.Module, shape: tuple[int, ...], about: Mapping[str, Any]) -> Self:
        """Return a model of a network and of what `described` returned, read from a file.

        Parameters
        ----------
        net : nn.Module
        shape : tuple of int
        about : mapping of str to object
            Not trusted. Its entry "standardize" is `standardize_by`.

        Returns
        -------
        Trainable

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> about = sde.described() | {"standardize": "none"}
        >>> scoresde.ScoreSDE.rebuilt(sde.net, (2,), about).standardize_by
        'none'
        """
        return cls(net, shape=shape, standardize=about["standardize"])

    def has_learnt(self, objective: Any) -> None:
        """Keep what training for an objective makes of the model; `fit` calls it.

        Parameters
        ----------
        objective : Objective

        Examples
        --------
        >>> sde = scoresde.build("rectified", "two_times", shape=(2,))
        >>> sde.has_learnt(scoresde.MeanFlow())
        >>> sde.outcome.name
        'flow_map'
        """

    # ------------------------------------------------------------------ its network

    @property
    def condition(self) -> Mapping[str, Tensor]:
        """Empty: `given` returns a view that has conditions, where there is such a method."""
        return {}

    @property
    def interface(self) -> NetworkInterface:
        """What the network takes and offers."""
        held = self._interface
        if held is None or held.net is not self.net:
            held = NetworkInterface(self.net)
            object.__setattr__(self, "_interface", held)
        return held

    @property
    def state_dtype(self) -> torch.dtype:  # type: ignore[override]
        """The dtype of states: the network's own, but at least float32."""
        for value in itertools.chain(self.net.parameters(), self.net.buffers()):
            if value.is_floating_point():
                return torch.promote_types(value.dtype, torch.float32)
        return torch.promote_types(self._dtype, torch.float32)

    def networks(self, *, raw: bool = False) -> list[nn.Module]:
        """Return the network in use, in a list: in eval mode the averaged one, if there is one.

        Parameters
        ----------
        raw : bool
            Whether to return the raw network in eval mode too.

        Returns
        -------
        list of nn.Module

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> sde.networks() == [sde.net]
        True
        """
        # In eval mode, without a wrapper for distributed runs: ranks take different numbers of
        # evaluations in a solve and must not wait for one another.
        net: nn.Module = self.net
        if not (raw or self.net.training or self.ema is None):
            net = self.ema
        if isinstance(net, nn.parallel.DistributedDataParallel) and not net.training:
            net = net.module
        return [net]

    def trained(self) -> Iterator[Self]:
        """Yield this model.

        Yields
        ------
        Trainable

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> list(sde.trained()) == [sde]
        True
        """
        yield self

    # ------------------------------------------------------------------ as a module

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for an averaged network and for conditions that the state holds."""
        if self.ema is None and any(name.startswith(prefix + "ema.") for name in state_dict):
            self.ema = duplicate(self.net).requires_grad_(False)
        self.conditions.make_room(state_dict, prefix + "conditions.", self.mean.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    __repr__ = DataUnits.__repr__
