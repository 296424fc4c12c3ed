"""Old names of a process's attributes, for one version."""

from __future__ import annotations

from typing import Any

from ..common.user_warnings import warn


class OldFloor:
    """`hair`, which is now `phi_floor`."""

    phi_floor: float

    def __init_subclass__(cls, **options: Any) -> None:
        """Take a floor that a class states by the old name."""
        super().__init_subclass__(**options)
        stated = vars(cls).get("hair")
        if isinstance(stated, float):
            warn(f"{cls.__name__}.hair is now .phi_floor", DeprecationWarning)
            cls.phi_floor = stated
            del cls.hair

    @property
    def hair(self) -> float:
        """The old name of `phi_floor`."""
        warn("Process.hair is now .phi_floor", DeprecationWarning)
        return self.phi_floor
