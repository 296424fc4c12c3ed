"""A network called through torch.compile, as long as that works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..common.user_warnings import warn

SHOWN_CHARACTERS = 200


class Compiled:
    """A network called through torch.compile, or as it is once that has failed."""

    def __init__(self, net: Callable[..., Any]) -> None:
        self._net = net
        self._compiled: Any = None
        self._failed = False

    def __call__(self, *inputs: Any, **condition: Any) -> Any:
        """Call it."""
        if self._failed:
            return self._net(*inputs, **condition)
        try:
            if self._compiled is None:
                self._compiled = torch.compile(self._net)
            return self._compiled(*inputs, **condition)
        except Exception as error:
            self._failed = True
            # an error of the network itself is raised here
            out = self._net(*inputs, **condition)
            reason = str(error).splitlines()[0][:SHOWN_CHARACTERS]
            warn(f"torch.compile failed, training goes on without it: {reason}")
            return out
