"""Checks of a verb's first argument."""

from __future__ import annotations

from typing import Any

from ..processes.base import Process
from .conditioned import Conditioned
from .derived import Derived
from .protocol import Model
from .schema import is_named
from .score_sde import ScoreSDE
from .tables.reading import holds_columns
from .trainable import Trainable

OF_VIEWS = {
    "fit": (
        "fit trains the whole model, not one conditioned by given(...): pass labels as "
        "fit(..., given={{'y': y}})"
    ),
    "save": "conditions are not saved: save the model that given(...) was called on",
    "": "{verb} takes the whole model, not one conditioned by given(...)",
}
"""What to say of a view by verb, "" for all others."""


def require_model(model: Any, verb: str) -> Model:
    """The argument if it is a model; otherwise a TypeError with the line to write."""
    if isinstance(model, Derived):
        model.require_one_space()
    if isinstance(model, Model):
        text = model._refusal(verb)
        if text is not None:
            raise TypeError(text)
        return model
    if isinstance(model, Process) or (isinstance(model, type) and issubclass(model, Process)):
        raise TypeError(
            f"{verb} needs a ScoreSDE and got the process {model!r}, which has no network yet; "
            "write scoresde.build('vp', 'mlp', shape=(2,)) or "
            "ScoreSDE(process, net, shape=(2,)), then fit it"
        )
    if isinstance(getattr(model, "module", None), ScoreSDE):
        raise TypeError(
            f"{verb} needs a ScoreSDE, got one wrapped in {type(model).__name__}; pass its .module"
        )
    if isinstance(model, Trainable):
        raise TypeError(f"{verb} needs a ScoreSDE, got {type(model).__name__}: {model.verbs}")
    raise TypeError(
        f"{verb} needs a ScoreSDE, got {type(model).__name__}; scoresde.build('vp', 'mlp', "
        "shape=(2,)) makes one and scoresde.load(folder) reads one"
    )


def trainable(model: Model, verb: str) -> ScoreSDE:
    """The ScoreSDE that a model is, or a view of; a TypeError for a model made from others."""
    if isinstance(model, Conditioned):
        model = model.model
    if isinstance(model, ScoreSDE):
        return model
    parts = "those"
    if isinstance(model, Derived):
        parts += f", its {' and '.join(f'.{name}' for name in model.models)}"
    raise TypeError(
        f"{verb} takes a ScoreSDE, which has a network of its own, got {type(model).__name__}, a "
        f"model made from others: {verb} {parts}"
    )


def require_trainable(model: Any, verb: str) -> Trainable:
    """The argument if it has a network of its own: a ScoreSDE, or a model of another kind."""
    if isinstance(model, Trainable) and not isinstance(model, Model):
        return model
    return require_sde(model, verb)


def require_sde(model: Any, verb: str) -> ScoreSDE:
    """The argument if it is a ScoreSDE itself, neither a view nor made from models."""
    model = require_model(model, verb)
    if isinstance(model, Conditioned):
        raise ValueError(OF_VIEWS.get(verb, OF_VIEWS[""]).format(verb=verb))
    return trainable(model, verb)


def require_tensors(model: Any, verb: str) -> Model:
    """The argument if it is a model of tensors; a TypeError for one that has learnt a table."""
    found = require_model(model, verb)
    if found.table is None:
        return found
    raise TypeError(
        f"{verb} takes models of tensors, and this one has learnt a table: take scoresde.sample "
        "and scoresde.log_prob, which take and return its rows"
    )


def require_encoded(model: Model, x: Any) -> None:
    """Raise TypeError for rows of a table, which `log_prob` alone takes as they are."""
    if model.table is not None and (holds_columns(x) or is_named(x)):
        raise TypeError(
            "this model has learnt a table, whose rows only fit, evaluate and what returns log p "
            "take as they are; here encode them: z, labels = sde.table.encode(frame), then z and "
            "sde.given(y=labels)"
        )


def matched(model: Model, x: Any) -> tuple[Model, Any]:
    """The model under the conditions that samples of a file bring, and these in column order."""
    require_encoded(model, x)
    if not is_named(x):
        return model, x
    x, given = model.schema.take(x)
    return (model.given(**given) if given else model), x
