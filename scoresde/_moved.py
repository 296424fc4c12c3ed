"""Old addresses of modules: importing one gives the module at its new address, with a warning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

PUBLIC = {
    "dequantize": "density.dequantize",
    "files": "data.files",
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
    "conditions": "model.conditions",
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
    "modules": "common.modules",
    "objective": "training.objectives",
    "oracles": "model.oracles",
    "pairs": "data.pairs",
    "pairstore": "data.pair_store",
    "paths": "processes.paths",
    "plan": "sampling.plan",
    "plotting": "common.plotting",
    "prediction": "processes.prediction",
    "process": "processes.base",
    "random": "common.random",
    "ranks": "common.sharding",
    "registry": "common.registry",
    "reports": "evaluation.report",
    "schema": "model.schema",
    "sde": "model.score_sde",
    "source": "model.source",
    "standardization": "model.standardization",
    "trace": "density.trace",
    "weights": "training.averaging",
}
"""Modules of version 0.1 that have moved."""


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module at its new address when its old one is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for an old name, None for all others."""
        package, _, rest = name.partition(".")
        first, dot, inner = rest.partition(".")
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


def install() -> None:
    """Make old addresses importable."""
    sys.meta_path.insert(0, Finder())
