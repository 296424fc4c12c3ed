"""Other libraries' solvers by name: `"torchdiffeq:dopri8"`, `"scipy:LSODA"`, `"torchsde:srk"`.

The libraries are imported on first use.
"""

from __future__ import annotations

import functools
from typing import Any

from ...common.registry import Registry
from ..base import SOLVERS, Solver
from .scipy import IVP, SciPy
from .torchdiffeq import ADAPTIVE, FIXED, AdaptiveTorchDiffEq, TorchDiffEq
from .torchsde import SDE, TorchSDE

__all__ = ["LIBRARIES", "AdaptiveTorchDiffEq", "SciPy", "TorchDiffEq", "TorchSDE"]

REFUSED = {
    "torchdiffeq:scipy_solver": "it couples the samples of a batch; 'scipy:LSODA' and its like "
    "take each by itself",
    "torchsde:reversible_heun": "what it carries from step to step swings undamped, so that narrow "
    "modes come out many times too wide; try 'torchsde:heun'",
    "torchsde:adjoint_reversible_heun": "it only serves torchsde's own gradients; try "
    "'torchsde:heun'",
}
"""Methods that would run and mislead, and why."""

LIBRARIES: dict[str, Registry[Solver]] = {
    name: Registry(f"{name} solver") for name in ("torchdiffeq", "scipy", "torchsde")
}
"""The methods of each library by name."""

for _library, _class, _table in (
    ("torchdiffeq", AdaptiveTorchDiffEq, ADAPTIVE),
    ("torchdiffeq", TorchDiffEq, FIXED),
    ("scipy", SciPy, IVP),
    ("torchsde", TorchSDE, SDE),
):
    for _method in _table:
        LIBRARIES[_library].add(_method, functools.partial(_class, _method))
LIBRARIES["torchdiffeq"].alias("fixed_adams", "implicit_adams")


def _build(library: str, member: str, **options: Any) -> Solver:
    refused = REFUSED.get(f"{library}:{member}")
    if refused:
        raise ValueError(f"{library}'s {member} is not offered: {refused}")
    return LIBRARIES[library].build(member, **options)


for _library in LIBRARIES:
    SOLVERS.family(_library, functools.partial(_build, _library))
