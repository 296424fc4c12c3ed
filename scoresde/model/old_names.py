"""Names of version 0.1 that models answer to for one more version, with a DeprecationWarning."""

from __future__ import annotations

from typing import Any

from ..common.user_warnings import warn
from .outcomes import to_kind

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
    return getattr(model, new)


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
