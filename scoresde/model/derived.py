"""Models made from others: guided, averaged, conditioned ones."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..processes.base import Process
from .agreement import difference
from .old_names import RENAMED, by_old_name
from .outcomes import Outcome, combined
from .protocol import Model
from .schema import Schema
from .standardization import Standardization
from .tables.schema import TableSchema

IN_PLACE = {"bfloat16", "cpu", "cuda", "double", "eval", "float", "half", "to", "train"}
"""Methods of `nn.Module` that change a model in place and return it."""


class Derived(Model):
    """A model made from others, such as an average of two.

    Subclass it and override `velocity_fn`, or `network_fn` together with `predict`. Everything
    else is that of the first model: its process, units and attributes. The models among its
    attributes share that process, shape and units. `to`, `double`, `eval` and their like change
    all of them in place.

    Conditions reach each model that takes them. A model made by `given()` is without them on
    purpose and stays so, unless all are.

    It has the capabilities that all its models have, without flow maps and bridges, whose networks
    take further inputs. For another one, override `capabilities` and add `<name>_fn`: see
    `scoresde.common.capabilities.CAPABILITIES`.

    Parameters
    ----------
    model : Model
        The first model.

    Examples
    --------
    >>> class Slower(Derived):
    ...     def velocity_fn(self, *, raw=False):
    ...         velocity = self.model.velocity_fn(raw=raw)
    ...         return lambda z, phi, rows=None: 0.5 * velocity(z, phi, rows)
    >>> scoresde.sample(Slower(scoresde.oracle(scoresde.toy.Moons(), scoresde.VPSDE())), 3).shape
    torch.Size([3, 2])
    """

    predict = "edm"

    def __init__(self, model: Model) -> None:
        if not isinstance(model, Model):
            raise TypeError(
                f"{type(self).__name__} is made from models, got {type(model).__name__}"
            )
        self.model = model

    def __getattr__(self, name: str) -> Any:
        """Attributes of the first model; methods of the first model run on this one."""
        if name.startswith("__") or name == "model":
            raise AttributeError(name)
        if name in RENAMED:
            return by_old_name(self, name)
        if name in IN_PLACE:
            return functools.partial(self._in_place, name)
        value = getattr(self.model, name)
        if callable(value) and hasattr(nn.Module, name):
            return self._module_method(name, value)
        if inspect.ismethod(value) and value.__self__ is self.model:
            return types.MethodType(value.__func__, self)
        return value

    def _in_place(self, name: str, *args: Any, **kwargs: Any) -> Self:
        """Move, convert or set the mode of all its models, as `nn.Module` does."""
        for model in self.models.values():
            getattr(model, name)(*args, **kwargs)
        return self

    def _module_method(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Refuse methods of `nn.Module` that would reach one of its models alone."""
        raise AttributeError(
            f"{type(self).__name__} is made from models and has no {name}: ask those for theirs"
        )

    @property
    def process(self) -> Process:  # type: ignore[override]
        """That of the first model."""
        return self.model.process

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """That of the first model."""
        return self.model.shape

    @property
    def source(self) -> Any:
        """That of the first model."""
        return self.model.source

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """That of the first model."""
        return self.model.mean

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """That of the first model."""
        return self.model.scale

    def require_one_space(self) -> None:
        """Raise ValueError unless its models share process, shape, units and source.

        Raises
        ------
        ValueError
            With the attribute that holds another kind of model.

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> Derived(sde).require_one_space()
        """
        for name, model in self.models.items():
            if isinstance(model, Derived):
                model.require_one_space()
            differs = difference(self.model, model)
            if differs:
                raise ValueError(
                    f"the models of {type(self).__name__} share process, shape, units and source, "
                    f"and .{name} has {differs}"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse the names of every model's attributes and methods, and models in a list or dict,
        where their conditions would not reach them.
        """
        own = inspect.getattr_static(Derived, name, None)
        if inspect.isfunction(own) or (isinstance(own, property) and own.fset is None):
            raise AttributeError(
                f"{type(self).__name__} can't set {name!r}, which every model has; give the "
                f"attribute another name, such as 'my_{name}', or override {name!r} in the class"
            )
        held = value.values() if isinstance(value, dict) else value
        if isinstance(value, list | tuple | dict) and any(isinstance(one, Model) for one in held):
            raise TypeError(f"{name} holds several models: give each an attribute of its own")
        super().__setattr__(name, value)

    def _refusal(self, verb: str) -> str | None:
        """That of the first of its models that has one."""
        found = (model._refusal(verb) for model in self.models.values())
        return next((text for text in found if text is not None), None)

    @property
    def models(self) -> dict[str, Model]:
        """The models among its attributes, by the attribute's name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Model)}

    @property
    def ode_steps(self) -> int | None:  # type: ignore[override]
        """The largest number of its models; see `Model.ode_steps`."""
        return max((model.ode_steps or 0 for model in self.models.values()), default=0) or None

    @property
    def outcome(self) -> Outcome:
        """That of the first model, less what another lacks and what takes further inputs."""
        self.require_one_space()
        return combined(model.outcome for model in self.models.values())

    @property
    def standardization(self) -> Standardization:
        """That of the first model."""
        return self.model.standardization

    @property
    def schema(self) -> Schema:  # type: ignore[override]
        """That of the first model."""
        return self.model.schema

    @property
    def table(self) -> TableSchema | None:  # type: ignore[override]
        """That of the first model."""
        return self.model.table

    @property
    def condition(self) -> Mapping[str, Tensor]:
        """The conditions of all its models; where two differ in one, as "model.y" and "other.y"."""
        held = [(attribute, model.condition) for attribute, model in self.models.items()]
        differing = _differing([condition for _, condition in held])
        found = {}
        for attribute, condition in held:
            for name, value in condition.items():
                apart = name in differing or "." in name  # which a part keeps apart
                found[f"{attribute}.{name}" if apart else name] = value
        return found

    @property
    def unconditional(self) -> bool:  # type: ignore[override]
        """Whether all its models are without conditions on purpose."""
        return all(model.unconditional for model in self.models.values())

    @property
    def cost(self) -> int:  # type: ignore[override]
        """The calls of all its models."""
        return sum(model.cost for model in self.models.values())

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether a network beneath is in training mode."""
        return any(sde.training for sde in self.trained())

    @property
    def state_dtype(self) -> torch.dtype:
        """The widest of its models."""
        found = torch.float32
        for model in self.models.values():
            found = torch.promote_types(found, model.state_dtype)
        return found

    @property
    def phi_min(self) -> float:
        """The highest of its models, so that none is asked where it is singular."""
        return max(super().phi_min, *(model.phi_min for model in self.models.values()))

    def network_fn(self, *, raw: bool = False, traced: bool = False) -> Callable[..., Any]:
        """Return −dz/dφ, the output of an `edm` network; see `Model.network_fn`."""
        if traced:
            raise TypeError(f"{type(self).__name__} has no trace in closed form")
        own = type(self).velocity_fn is not Derived.velocity_fn
        velocity = self.velocity_fn(raw=raw) if own else self.model.velocity_fn(raw=raw)
        return lambda z, phi, rows=None: -velocity(z, phi, rows)

    def velocity_fn(self, *, raw: bool = False) -> Callable[..., Tensor]:
        """Return dz/dφ: by an overridden `network_fn`, or that of the first model; see `Model`."""
        if type(self).network_fn is not Derived.network_fn:
            return super().velocity_fn(raw=raw)
        return self.model.velocity_fn(raw=raw)

    def _on_arc(self, x: Tensor, t: Tensor | float, floor: float | None = None) -> Any:
        """States, angles and times, once the models are seen to go together."""
        self.require_one_space()
        text = self._refusal("a field of x_t")
        if text is not None:
            raise TypeError(text)
        return super()._on_arc(x, t, floor)

    def takes_condition(self, name: str) -> bool:
        """Whether one of its models takes a condition of that name; see `Model`."""
        return any(model.takes_condition(name) for model in self.models.values())

    def given(self, **condition: Any) -> Self:
        """Return this model with its models conditioned, each by what it takes.

        Parameters
        ----------
        **condition : Tensor, array, number or word
            As for `ScoreSDE.given`. Without any, the result has the unconditional distributions of
            all models, and gives no warning.

        Returns
        -------
        Derived

        Raises
        ------
        ValueError
            If none of its models takes such a condition, or they are under different ones now.

        Examples
        --------
        See `ScoreSDE.given`.
        """
        held = self._open()
        for name in _differing([model.condition for model in held.values()]).intersection(
            condition
        ):
            names = ", ".join(f".{each}" for each, m in held.items() if name in m.condition)
            raise ValueError(
                f"the models of {type(self).__name__} ({names}) have different {name}, which one "
                f"{name}= would replace: give each its own before they are put together"
            )
        unknown = {name: v for name, v in condition.items() if not self.takes_condition(name)}
        if unknown:
            self.model.given(**unknown)  # raises, and says what there is
        return self._with(lambda model: _given(model, condition), held)

    def with_condition(self, condition: Mapping[str, Tensor]) -> Self:
        """Return this model with its models conditioned; see `Model.with_condition`."""
        made = copy.copy(self)
        for attribute, model in self._open().items():
            own = {
                name.removeprefix(f"{attribute}."): value
                for name, value in condition.items()
                if name.startswith(f"{attribute}.")
            }
            setattr(made, attribute, model.with_condition({**_taken(model, condition), **own}))
        return made

    def slice_conditions(self, start: int, stop: int, total: int) -> Self:
        """Return this model for some samples of a call; see `Model.slice_conditions`."""
        return self._with(lambda model: model.slice_conditions(start, stop, total))

    def select_conditions(self, rows: Tensor) -> Self:
        """Return this model for chosen rows of its conditions; see `Model.select_conditions`."""
        return self._with(lambda model: model.select_conditions(rows))

    def at_data(self, x: Tensor) -> Tensor:
        """Return samples as the first model does; see `Model.at_data`."""
        return self.model.at_data(x)

    def networks(self, *, raw: bool = False) -> list[nn.Module]:
        """Return the networks of all its models; see `Model.networks`."""
        return [net for model in self.models.values() for net in model.networks(raw=raw)]

    def trained(self) -> Iterator[Any]:
        """Yield the trained models beneath; see `Model.trained`."""
        for model in self.models.values():
            yield from model.trained()

    def _evaluated(self) -> Iterator[Any]:
        """Those of all its models."""
        for model in self.models.values():
            yield from model._evaluated()

    def warn_unconditional(self) -> None:
        """Warn once of each model that was fitted with conditions and is given none."""
        for model in self.models.values():
            model.warn_unconditional()

    def _open(self) -> dict[str, Model]:
        """The models that conditions reach: those without on purpose stay so, unless all are."""
        found = {name: model for name, model in self.models.items() if not model.unconditional}
        return found or self.models

    def _with(
        self, change: Callable[[Any], Model], models: dict[str, Model] | None = None
    ) -> Self:
        """A copy of this model whose models, or some of them, are changed."""
        made = copy.copy(self)
        for name, model in (self.models if models is None else models).items():
            setattr(made, name, change(model))
        return made


def _differing(conditions: list[Mapping[str, Tensor]]) -> set[str]:
    """The names under which some conditions hold different values."""
    first: dict[str, Tensor] = {}
    found = set()
    for condition in conditions:
        for name, value in condition.items():
            known = first.setdefault(name, value)
            if known is not value and not _equal(known, value):
                found.add(name)
    return found


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two conditions are the same numbers."""
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)


def _taken(model: Model, condition: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions that a model takes."""
    return {name: value for name, value in condition.items() if model.takes_condition(name)}


def _given(model: Model, condition: Mapping[str, Any]) -> Model:
    """A model under those of some conditions that it takes; as it is if it takes none of them."""
    taken = _taken(model, condition)
    if condition and not taken:
        return model
    return model.given(**taken)
