"""Models in at most six lines, for `repr`: what they are made of, and whether they are trained.

A row that can't be computed is left out, as for a half-built model or a class of the user's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ..common.checks import brief_repr

LONGEST_LINE = 100
LONGEST_LIST = 40
SCALES = {
    "whiten": "whitened",
    "factors": "whitened by factors",
    "scale": "by mean and scale",
    "none": "none",
}
"""What `standardize=` asks for, in words."""


def shown(model: Any) -> str:
    """A title, and a row for each thing that a model has to say."""
    lines = [_attempt(_title, model) or type(model).__name__]
    for name, row in ROWS.items():
        text = _attempt(row, model)
        if text:
            lines.append(f"  {name:<12}{text}")
    return "\n".join(_cut(line) for line in lines)


def named(model: Any) -> str:
    """A model in one word, with the conditions that it is under."""
    name = type(model).__name__
    if name != "Conditioned":
        return name
    given = ", ".join(
        f"{_plain(key)}={list(value.shape)}" for key, value in model._condition.items()
    )
    return f"{named(model.model)}.given({given})"


def _attempt(row: Callable[[Any], str], model: Any) -> str:
    """What a row says of a model, or nothing if it can't."""
    with contextlib.suppress(Exception):
        return " ".join(row(model).split())
    return ""


def _cut(line: str) -> str:
    """A line of at most `LONGEST_LINE` characters."""
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def _plain(name: str) -> str:
    """The name of a condition, without the part that it belongs to."""
    return name.rpartition(".")[2]


def _title(model: Any) -> str:
    """Its kind, its path, and the shape of its samples."""
    parts = [named(model)]
    own = getattr(model, "process", None)
    if own is not None:
        parts.append(f": {own!r}")
    with contextlib.suppress(Exception):
        table = getattr(model, "table", None)
        what = f"samples of shape {tuple(model.shape)}"
        if table is not None:
            what = f"rows of {len(table.columns)} columns"
        stage = model if hasattr(model, "latent") else getattr(model, "stage", None)
        if stage is not None:
            what += f", latents {tuple(stage.latent)}"
        parts.append(f"{',' if own is not None else ':'} {what}")
    return "".join(parts)


def _made_of(model: Any) -> str:
    """The other attributes of a model made of models, and the first stage of latents."""
    if isinstance(model, nn.Module) or type(model).__name__ == "Conditioned":
        return ""
    texts = []
    for name, value in vars(model).items():
        if name.startswith("_"):
            continue
        known = hasattr(value, "standardization")
        texts.append(f"{name}={named(value) if known else brief_repr(value)}")
    return ", ".join(texts)


def _owners(model: Any) -> list[Any]:
    """The models with networks beneath, each once."""
    found = {id(owner): owner for owner in model.trained()}
    return list(found.values())


def _network(model: Any) -> str:
    """The classes of the networks, their size, and where they are."""
    owners = _owners(model)
    if not owners:
        return ""
    names = " and ".join(dict.fromkeys(owner.interface.name for owner in owners))
    weights = [p for owner in owners for p in owner.net.parameters()]
    text = f"{names}, {sum(p.numel() for p in weights):,} parameters"
    kinds = dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in weights)
    if kinds:
        devices = dict.fromkeys(str(p.device) for p in weights)
        text += f" in {' and '.join(kinds)} on {' and '.join(devices)}"
    outputs = dict.fromkeys(str(p) for p in (getattr(o, "predict", None) for o in owners) if p)
    return text + (f", predicts {' and '.join(outputs)}" if outputs else "")


def _trained(model: Any) -> str:
    """Whether `fit` has trained it, what for, and which weights are in use."""
    texts = []
    for owner in _owners(model):
        if owner.learnt is None:
            text = "not by fit"
        else:
            outcome = getattr(owner.outcome, "name", None)
            text = f"by fit, as {_article(outcome)}" if outcome else "by fit"
        if owner.ema is not None:
            text += ", raw weights" if owner.training else ", averaged weights"
        texts.append(f"{text}, in {'train' if owner.training else 'eval'} mode")
    return "; ".join(dict.fromkeys(texts))


def _article(word: str) -> str:
    """A word with its article."""
    word = word.replace("_", " ")
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _scale(model: Any) -> str:
    """How data are standardized, and the ranges of mean and scale."""
    owner = _owners(model)[0]
    kind: str = SCALES.get(owner.standardize_by, owner.standardize_by)
    if owner.mean.is_meta:
        return f"{kind}, on the meta device"
    if not bool(owner.measured):
        return f"{kind}, not measured yet"
    if owner.standardize_by == "none":
        return kind
    constant = int((owner.scale == 0).sum())
    text = f"{kind}, mean {_range(owner.mean)}, scale {_range(owner.scale[owner.scale != 0])}"
    return text + (f", {constant} constant" if constant else "")


def _range(values: Tensor) -> str:
    """The least and the greatest value, or one number if they agree."""
    low, high = float(values.min()), float(values.max())
    if math.isclose(low, high, rel_tol=1e-3):
        return f"{high:.3g}"
    return f"{low:.3g} … {high:.3g}"


def _conditions(model: Any) -> str:
    """What its networks take, and what they have learnt to do without."""
    texts = dict.fromkeys(text for owner in _owners(model) for text in _taken(owner))
    if not texts:
        return ""
    learnt = [owner.learnt for owner in _owners(model) if owner.learnt is not None]
    free = learnt and all(known["unconditional"] for known in learnt)
    return ", ".join(texts) + ("; or none" if free else "")


def _taken(owner: Any) -> Iterator[str]:
    """The conditions of one network by name, with their classes or columns."""
    for name in owner.interface.condition_names:
        words = owner.schema.words.get(name) or owner.schema.parts.get(name)
        if not words:
            yield name
            continue
        listed = ", ".join(map(str, words))
        if len(listed) > LONGEST_LIST:
            listed = f"{len(words)} of them"
        yield f"{name} ({listed})"


ROWS: dict[str, Callable[[Any], str]] = {
    "made of": _made_of,
    "network": _network,
    "trained": _trained,
    "scale": _scale,
    "conditions": _conditions,
}
"""What a model says, row by row."""
