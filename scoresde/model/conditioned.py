"""A model under conditions, as `ScoreSDE.given` makes it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .condition_scales import warn_lacking
from .derived import Derived
from .outcomes import Outcome
from .protocol import Model

OWN = {"model", "_condition", "_deliberate", "_owner"}
"""The attributes of a view; all others are its model's."""

VIEWED = (
    "arc_velocity",
    "coefficients",
    "denoise",
    "drift",
    "from_data",
    "network_fn",
    "output",
    "score",
    "to_data",
    "velocity",
    "velocity_fn",
)
"""Methods that a view does not take from its model."""


class Conditioned(Derived):
    """A view of a model: the same network and units, with conditions."""

    _owner = False  # whether no one else has the model, as after a deep copy

    def __init__(
        self, model: Any, condition: Mapping[str, Tensor], deliberate: bool = False
    ) -> None:
        super().__init__(model)
        self._condition = dict(condition)
        self._deliberate = deliberate  # whether conditions were left out on purpose

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what is set on the model alone."""
        if name in OWN:
            super().__setattr__(name, value)
        elif self._owner:
            setattr(self.model, name, value)
        else:
            raise AttributeError(
                f"a view made by given(...) shares {name} with its model: set it on the model"
            )

    def __delattr__(self, name: str) -> None:
        """Refuse what is deleted on the model alone."""
        raise AttributeError(
            f"a view made by given(...) shares {name} with its model: delete it there"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Conditioned:
        """Return a view of a copy of the model, which has no other."""
        condition = copy.deepcopy(self._condition, memo)
        made = Conditioned(copy.deepcopy(self.model, memo), condition, self._deliberate)
        made._owner = True
        return made

    def _module_method(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method of `nn.Module` of the model, which returns the view in place of the model."""

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return self if result is self.model else result

        return call

    @property
    def condition(self) -> Mapping[str, Tensor]:
        """What it is conditioned on."""
        return self._condition

    @property
    def outcome(self) -> Outcome:
        """That of the model."""
        return self.model.outcome

    @property
    def capabilities(self) -> frozenset[str]:
        """Those of the model."""
        return self.model.capabilities

    @property
    def unconditional(self) -> bool:  # type: ignore[override]
        """Whether conditions were left out on purpose."""
        return self._deliberate and not self._condition

    @property
    def predict(self) -> str:  # type: ignore[override]
        """What the network outputs."""
        return self.model.predict

    @property
    def state_dtype(self) -> torch.dtype:
        """That of the model."""
        return self.model.state_dtype

    def network_fn(self, *, raw: bool = False, traced: bool = False) -> Callable[..., Any]:
        """Return the network under these conditions as a function; see `Model.network_fn`."""
        model: Any = self.model
        output: Callable[..., Any] = model._network_under(self._condition, raw=raw, traced=traced)
        return output

    def velocity_fn(self, *, raw: bool = False) -> Callable[..., Tensor]:
        """Return the right-hand side of the ODE as a function; see `Model.velocity_fn`."""
        return Model.velocity_fn(self, raw=raw)

    def _both_outputs(self, raw: bool) -> Callable[..., Tensor]:
        """The network's two outputs under these conditions; see `ReverseVariance`."""
        model: Any = self.model
        both: Callable[..., Tensor] = model._network_under(
            self._condition, raw=raw, with_variance=True
        )
        return both

    def takes(self, name: str) -> bool:
        """Whether the network has an argument of that name."""
        return self.model.takes(name)

    def traces(self, *, raw: bool = False) -> bool:
        """Whether the network offers its exact trace; see `Model.traces`."""
        return self.model.traces(raw=raw)

    def given(self, **condition: Any) -> Conditioned:
        """Return the model under these conditions and further ones; see `ScoreSDE.given`."""
        further = self.model.given(**condition)
        merged = {**self._condition, **further.condition}
        return Conditioned(self.model, merged, deliberate=not condition)

    def with_condition(self, condition: Mapping[str, Tensor]) -> Conditioned:
        """Return the model under these conditions, which were checked before."""
        return Conditioned(self.model, condition, self._deliberate)

    def slice_conditions(  # type: ignore[override]
        self, start: int, stop: int, total: int
    ) -> Model:
        """Return this model for some samples of a call; see `Model.slice_conditions`."""
        return Model.slice_conditions(self, start, stop, total)

    def select_conditions(self, rows: Tensor) -> Model:  # type: ignore[override]
        """Return this model for chosen rows of its conditions; see `Model.select_conditions`."""
        return Model.select_conditions(self, rows)

    def trained(self) -> Iterator[Any]:
        """Yield the model beneath."""
        return self.model.trained()

    def standardize(self, data: Any) -> None:
        """Refuse: mean and scale are the model's."""
        raise ValueError(
            "a view made by given(...) shares mean and scale with its model: standardize the model"
        )

    def warn_unconditional(self) -> None:
        """Warn once if conditions are lacking, and not on purpose."""
        if not self._deliberate:
            warn_lacking(self.model, self._condition)


def check_overrides(model: Any, base: type) -> None:
    """Raise TypeError for a subclass of the base whose methods its views would not use."""
    made = type(model)
    if made is base:
        return
    own = [name for name in VIEWED if getattr(made, name) is not getattr(base, name)]
    if own:
        raise TypeError(
            f"{made.__name__} overrides {' and '.join(own)}, which models made by given(...) would "
            "not use; write it as a scoresde.Derived, a model made from another"
        )
