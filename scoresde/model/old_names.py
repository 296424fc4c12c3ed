"""Names of version 0.1 that models answer to for one more version, with a DeprecationWarning."""

from __future__ import annotations

from typing import Any

from ..common.capabilities import RENAMED as RENAMED_CAPABILITIES
from ..common.user_warnings import warn
from .outcomes import as_outcome, to_kind

RENAMED = {
    "caller": "network_fn",
    "check": "require",
    "flow": "velocity_fn",
    "holding": "with_condition",
    "nodes": "distilled_steps",
    "offers": "capabilities",
    "rows": "slice_conditions",
    "solver": "default_solver",
}
"""Old names of methods and properties, with the new ones."""


def by_old_name(model: Any, name: str) -> Any:
    """What a model has under the new name of an old one."""
    new = RENAMED[name]
    warn(f"{type(model).__name__}.{name} is now .{new}", DeprecationWarning)
    found = getattr(model, new)
    if name == "check":
        return lambda *needs: found(*(RENAMED_CAPABILITIES.get(need, need) for need in needs))
    if name == "offers":
        return found | {old for old, word in RENAMED_CAPABILITIES.items() if word in found}
    if name == "nodes":
        return found or 0
    return found


def check_overrides_by_old_name(made: type) -> None:
    """Raise TypeError for a class that overrides a method by its old name: no one calls that."""
    for old in sorted(RENAMED.keys() & vars(made).keys()):
        raise TypeError(
            f"{made.__name__} overrides {old}, which is now {RENAMED[old]}: rename it; a "
            "scoresde.Derived changes what a model says"
        )


def upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a pickled ScoreSDE, also of version 0.1, by the names of today."""
    state["_buffers"].setdefault("root", None)
    state.setdefault("_standardize", "scale")
    if "sees" not in state:
        return state
    if state.get("condition"):
        raise TypeError("this pickle is of a view made by given(...): pickle its model instead")
    gone = {"sees", "condition", "_kind", "_learnt", "_said", "_shares", "_units"}
    kept = {name: value for name, value in state.items() if name not in gone}
    kept["input_convention"] = state["sees"]
    kept["_outcome"] = as_outcome(state["_kind"][0])
    kept["_source"] = state["_source"][0]
    kept["learnt"] = state["_learnt"][0]
    return kept


class OldNames:
    """The old names of attributes that can be set."""

    @property
    def sees(self: Any) -> Any:
        """The old name of `input_convention`."""
        warn(f"{type(self).__name__}.sees is now .input_convention", DeprecationWarning)
        return self.input_convention

    @sees.setter
    def sees(self, convention: str) -> None:
        warn(f"{type(self).__name__}.sees is now .input_convention", DeprecationWarning)
        model: Any = self
        model.input_convention = convention

    @property
    def kind(self: Any) -> str:
        """The old word for the name of `outcome`."""
        warn(f"{type(self).__name__}.kind is now .outcome.name", DeprecationWarning)
        return to_kind(self.outcome)

    @kind.setter
    def kind(self, kind: str) -> None:
        warn(f"{type(self).__name__}.kind is now .outcome", DeprecationWarning)
        model: Any = self
        model.outcome = kind
