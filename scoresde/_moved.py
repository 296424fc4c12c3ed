"""Old addresses of modules: importing one gives the module at its new address, with a warning."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PUBLIC = {
    "dequantize": "density.dequantize",
    "energies": "guidance.energies",
    "files": "data.files",
    "plotting": "common.plotting",
    "recipes": "training.recipes",
    "transforms": "data.transforms",
}
"""Modules that are public under a shorter name, which stays."""

MOVED = {
    "bits": "density.bits",
    "bounds": "density.bounds",
    "bridge": "training.bridge",
    "builder": "model.builder",
    "checkpoint": "training.checkpoint",
    "checks": "common.checks",
    "cnf": "density.density_ode",
    "conditions": "model.condition_scales",
    "coupling": "training.couplings",
    "demo": "cli.demo",
    "distribution": "density.distribution",
    "engine": "training.backend",
    "errors": "common.errors",
    "exact": "density.exact",
    "grids": "processes.spacings",
    "history": "training.history",
    "inputs": "common.inputs",
    "io": "storage.models",
    "items": "data.items",
    "jumps": "training.flow_maps",
    "metrics.classifier": "metrics.two_samples",
    "modules": "common.modules",
    "objective": "training.objectives",
    "oracles": "model.oracles",
    "pairs": "data.pairs",
    "pairstore": "data.pair_store",
    "paths": "processes.paths",
    "plan": "sampling.plan",
    "prediction": "processes.prediction",
    "process": "processes.base",
    "random": "common.random",
    "ranks": "common.sharding",
    "registry": "common.registry",
    "reports": "evaluation.report",
    "schema": "model.schema",
    "sde": "model.score_sde",
    "solvers.external_sde": "solvers.external.torchsde",
    "source": "model.source",
    "standardization": "model.standardization",
    "trace": "density.trace",
    "weights": "training.averaging",
}
"""Modules of version 0.1 that have moved."""

KEPT = ("data", "evaluation", "sampling", "solvers.base", "storage", "toy.mixture", "training")
"""Modules of version 0.1 whose names have moved."""


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module at its new address when its old one is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for an old name, None for all others."""
        package, _, rest = name.partition(".")
        first, dot, inner = rest.partition(".")
        if rest in MOVED:
            first, dot, inner = rest, "", ""
        new = {**PUBLIC, **MOVED}.get(first)
        if package != __package__ or new is None:
            return None
        address = f"{package}.{new}{dot}{inner}"
        if first in MOVED:
            warnings.warn(f"{name} is now {address}", DeprecationWarning, stacklevel=2)
        return importlib.machinery.ModuleSpec(name, self, origin=address)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Let Python make an empty module, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        """Replace the empty module by the one at the new address."""
        assert module.__spec__ is not None
        assert module.__spec__.origin is not None
        sys.modules[module.__name__] = importlib.import_module(module.__spec__.origin)


PLACES = ("", ".solvers", ".toy")
"""Where the public names of old modules are now."""


def attribute(module: str, name: str) -> Any:
    """What an old module was asked for that lives elsewhere now, or an old module itself."""
    found: Any = None
    new = ""
    if module == __package__ and name in MOVED:
        new = f"{module}.{MOVED[name]}"
        found = importlib.import_module(new)
    for place in PLACES:
        home = sys.modules[f"{__package__}{place}"]
        if found is None and name in home.__all__ and home.__name__ != module:
            new = f"{home.__name__}.{name}"
            found = getattr(home, name)
    if found is not None:
        warnings.warn(f"{module}.{name} is now {new}", DeprecationWarning, stacklevel=2)
        vars(sys.modules[module])[name] = found
        return found
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def install() -> None:
    """Make old addresses importable, and public names from their old modules."""
    sys.meta_path.insert(0, Finder())
    for address in ("", *KEPT, *MOVED.values()):
        name = f"{__package__}.{address}".rstrip(".")
        if name in sys.modules:
            vars(sys.modules[name])["__getattr__"] = functools.partial(attribute, name)
