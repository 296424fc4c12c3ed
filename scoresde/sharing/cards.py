"""Model cards: what a model is, in Markdown, written from the model itself."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from ..common.capabilities import Capability
from ..common.checks import as_path, brief_repr
from ..common.errors import CheckpointError
from ..model.require import require_trainable
from ..model.score_sde import ScoreSDE
from ..model.trainable import Trainable
from ..storage import records as storage
from ..storage.description import describe
from ..storage.models import STEP
from ..training.history import History

MOST_SHOWN = 16
"""Columns and channels whose units a card lists."""
WORD = re.compile(r"[A-Za-z][A-Za-z0-9.-]*")
NOT_TEXT = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
"""Words that YAML takes for something else."""
NOT_SETTINGS = ("model", "data", "validation", "source")
"""Entries of a run's settings that say nothing to a reader."""


def model_card(
    model: Trainable,
    *,
    name: str | None = None,
    license: str | None = None,
    data: str | None = None,
    history: History | str | os.PathLike[str] | None = None,
    evaluation: Any = None,
) -> str:
    """Return a model card, as the README.md of a model on the Hugging Face hub.

    It says what the model itself knows: process, network, number of parameters, shape, columns and
    units of a sample, conditions, how to load it, draw samples and get log p, and its limits. What
    it does not know, such as where the data are from, is yours to say.

    Parameters
    ----------
    model : ScoreSDE, or another Trainable
        One that `save` takes.
    name : str, optional
        The title, and what the code loads: "user/name", or a folder.
    license : str, optional
        The word for it in the card's header, such as "mit".
    data : str, optional
        On what the model was trained, in Markdown.
    history : History, or path, optional
        What `fit` returned, or its folder of checkpoints, which also has the settings of the run.
    evaluation : Evaluation, float or str, optional
        What `evaluate` found on held-out data, or the mean held-out log p in nats.

    Returns
    -------
    str

    Raises
    ------
    TypeError, ValueError, CheckpointError
        If `save` would not take the model, or a folder holds no run.

    Examples
    --------
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=16)
    >>> print(model_card(sde, name="me/moons", license="mit"))
    ---
    library_name: scoresde
    license: mit
    tags:
    - diffusion
    - score-based-model
    ---
    <BLANKLINE>
    # me/moons
    ...
    """
    model = require_trainable(model, "model_card")
    for word, text in (("name", name), ("license", license), ("data", data)):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{word} is text, got {brief_repr(text)}")
    parts = [
        _header(license),
        f"# {' '.join((name or 'A ' + type(model).__name__).split())}",
        _model_section(model),
        _data_section(model, data),
        _use_section(model, name or "user/name"),
    ]
    if history is not None:
        parts.append(_training_section(history))
    if evaluation is not None:
        parts.append(_evaluation_section(evaluation))
    parts.append(_limits_section(model))
    return "\n\n".join(parts) + "\n"


def _header(license: str | None) -> str:
    """The card's metadata, in YAML."""
    lines = ["---", "library_name: scoresde"]
    if license is not None:
        lines.append(f"license: {_yaml_word(license)}")
    return "\n".join([*lines, "tags:", "- diffusion", "- score-based-model", "---"])


def _yaml_word(text: str) -> str:
    """Text as one value of YAML; in quotes if it is more than a word."""
    if WORD.fullmatch(text) and text.lower() not in NOT_TEXT:
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    escaped = (c if " " <= c <= "~" else f"\\U{ord(c):08x}" for c in quoted)
    return f'"{"".join(escaped)}"'


def _table(rows: Mapping[str, Any]) -> str:
    """A table of two columns."""
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _cell(value: Any) -> str:
    """Text of a cell, on one line."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _call(about: Mapping[str, Any]) -> str:
    """A name with its options, as written in code."""
    options = [f"{name}={value!r}" for name, value in about["options"].items()]
    return f"`{about['name']}`" + (f", {', '.join(options)}" if options else "")


def _model_section(model: Trainable) -> str:
    """What the model is made of."""
    about = describe(model)
    count = sum(p.numel() for p in model.net.parameters())
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.net.parameters()}
    rows: dict[str, Any] = {"kind": f"`{type(model).__name__}`"}
    if isinstance(model, ScoreSDE):
        rows["process"] = f"`{model.process!r}`"
        rows["predicts"] = f"`{model.predict}`"
        rows["has learnt"] = model.outcome.name
        if model.source is not None:
            rows["source"] = model.source
    rows["network"] = _call(about["net"])
    rows["parameters"] = f"{count:,}"
    rows["weights"] = f"{' and '.join(sorted(dtypes)) or 'none'}, safetensors"
    if model.ema is not None:
        rows["in use"] = "the average of the weights; those of the last step are kept beside it"
    return f"## Model\n\n{_table(rows)}"


def _data_section(model: Trainable, data: str | None) -> str:
    """What a sample is."""
    rows: dict[str, Any] = {"shape of a sample": model.shape}
    if model.table is not None:
        for column in model.table.columns:
            rows[f"column `{_cell(column.name)}`"] = type(column).__name__.lower()
    if bool(model.measured):
        rows |= _units(model)
    elif model.ema is None:
        rows["units"] = "not measured: this model has not been fitted"
    for name in model.interface.condition_names:
        rows[f"condition `{name}`"] = _condition(model, name)
    text = f"## Data\n\n{_table(rows)}"
    return f"{text}\n\n{data.strip()}" if data else text


def _units(model: Trainable) -> dict[str, str]:
    """Mean and scale of each column or channel."""
    mean = model.mean.flatten().tolist()
    scale = model.scale.flatten().tolist()
    names = list(model.schema.columns or [])
    if len(mean) > MOST_SHOWN:
        return {
            "units": f"mean {_mean(mean):.4g}, standard deviation {_mean(scale):.4g} on average"
        }
    word = "column" if len(model.shape) == 1 else "channel"
    found = {}
    for i, (m, s) in enumerate(zip(mean, scale, strict=True)):
        label = names[i] if i < len(names) else i
        found[f"{word} `{_cell(label)}`"] = f"mean {m:.4g}, standard deviation {s:.4g}"
    return found


def _mean(values: list[float]) -> float:
    """The mean of numbers."""
    return math.fsum(values) / len(values)


def _made(model: Trainable) -> list[str]:
    """The conditions that networks of the user's make."""
    found: list[str] = describe(model).get("embed", {}).get("names", [])
    return found


def _condition(model: Trainable, name: str) -> str:
    """What a condition is, as far as the model knows."""
    if name in _made(model):
        return "what its network makes a vector of: see embed="
    words = model.schema.words.get(name)
    if words:
        return (
            "one of "
            + ", ".join(map(str, words[:MOST_SHOWN]))
            + (", …" if len(words) > MOST_SHOWN else "")
        )
    shapes = model.interface.condition_shapes or {}
    if not shapes.get(name):
        classes = getattr(model.interface.inner, "classes", 0)
        return f"a class label, 0 to {classes - 1}" if classes and name == "y" else "one number"
    return f"numbers of shape {shapes[name]}"


def _use_section(model: Trainable, name: str) -> str:
    """The code that loads the model and uses it."""
    lines = ["import torch", "import scoresde", ""]
    where = json.dumps(name)
    made = _made(model)
    if made:
        lines += [f"# networks of {', '.join(made)}, built as those that were trained"]
        lines += ["networks = {...}"]
        where += ", embed=networks"
    lines += [f"model = scoresde.from_pretrained({where})"]
    if isinstance(model, ScoreSDE):
        names = model.interface.condition_names
        if names:
            given = ", ".join(f"{each}={_example(model, each)}" for each in names)
            lines += [f"model = model.given({given})"]
        lines += ["x = scoresde.sample(model, 16)"]
        if Capability.VELOCITY in model.outcome.capabilities and _has_density(model):
            lines += ["log_p = scoresde.log_prob(model, x)  # nats, in the units of the data"]
    elif hasattr(model, "sample"):
        lines += ["x = model.sample(16)"]
    code = "\n".join(lines)
    return f"## Use\n\n`pip install scoresde[hub]`\n\n```python\n{code}\n```"


def _example(model: Trainable, name: str) -> str:
    """A value of a condition, as written in code."""
    words = model.schema.words.get(name)
    if words:
        return repr(words[0])
    if name in _made(model):
        return "..."
    shape = (model.interface.condition_shapes or {}).get(name)
    if not shape:
        return "0"
    return f"torch.zeros{tuple(shape)}"


def _has_density(model: ScoreSDE) -> bool:
    """Whether the distribution of x at t = 1 has a log p."""
    return model.source is None or hasattr(model.source, "log_prob")


def _training_section(history: History | str | os.PathLike[str]) -> str:
    """What happened during training, and with which settings if a folder has them."""
    settings: dict[str, Any] = {}
    if not isinstance(history, History):
        history, settings = _run_of(history)
    rows: dict[str, Any] = {"steps": history.step[-1] if history.step else 0}
    if history.loss:
        rows["last training loss"] = f"{history.loss[-1]:.5g}"
    if history.validation:
        rows["validation loss"] = (
            f"{history.validation[-1]:.5g}, lowest {min(history.validation):.5g}"
        )
    if history.best is not None:
        rows["weights kept"] = f"those of step {history.best}"
    if history.held_out:
        rows["rows held out"] = len(history.held_out)
    if history.gap is not None:
        rows["learnt by heart"] = (
            f"{history.gap:.3g}: so much more the loss fell on training rows than on held-out ones"
        )
    rows["seconds"] = f"{history.seconds:.1f}"
    known = {k: v for k, v in settings.items() if k not in NOT_SETTINGS and v not in (None, [])}
    return f"## Training\n\n{_table({**rows, **{f'`{k}`': v for k, v in known.items()}})}"


def _run_of(folder: str | os.PathLike[str]) -> tuple[History, dict[str, Any]]:
    """History and settings of the newest checkpoint in a folder."""
    path = as_path(folder, "history")
    stems = storage.records(path, STEP)
    if not stems:
        raise CheckpointError(f"{path} holds no checkpoint of a run")
    about, _ = storage.read(path, stems[-1])
    return History(**about["history"]), dict(about["config"])


def _evaluation_section(evaluation: Any) -> str:
    """What was measured on held-out data."""
    if isinstance(evaluation, Tensor | np.ndarray) and math.prod(evaluation.shape) == 1:
        evaluation = float(evaluation)
    if isinstance(evaluation, bool | Tensor | np.ndarray):
        raise TypeError(
            "evaluation is what evaluate returns, a mean log p or text, got "
            f"{brief_repr(evaluation)}"
        )
    if isinstance(evaluation, Real):
        return f"## Evaluation\n\nMean held-out log p(x): {evaluation:.4f} nats"
    text = evaluation if isinstance(evaluation, str) else f"```text\n{evaluation!r}\n```"
    return f"## Evaluation\n\n{text}"


def _limits_section(model: Trainable) -> str:
    """What the model can't do."""
    lines = []
    if isinstance(model, ScoreSDE):
        has = model.outcome.capabilities
        if Capability.VELOCITY not in has:
            lines.append("It has samples, and no log p: it has no ODE.")
        else:
            lines.append(
                "log p is that of the model's own ODE, up to the errors that `likelihood` states; "
                "how near the model is to the data, only held-out data can say."
            )
        if Capability.SCORE not in has:
            lines.append("It has no score: solvers of SDEs and guidance by the score refuse it.")
    if not bool(model.measured):
        lines.append("It has not been fitted: its samples mean nothing.")
    lines.append(
        "Far from its training data its numbers are extrapolations. It may repeat training rows, "
        "and the biases in them."
    )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
