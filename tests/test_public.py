"""The shape of the package: imports run downward, and everything public says what it is and shows itself at work."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import scoresde

ROOMS = [
    "errors ranks storage checks registry random inputs modules schema process conditions",
    "paths standardization prediction grids solvers backbones toy source",
    "sde trace",
    "plan sampling pairstore cnf exact bounds dequantize bits distribution oracles metrics plotting "
    "objective weights engine coupling pairs jumps bridge data items files transforms io checkpoint history training "
    "evaluation",
    "builder cli demo reports recipes __init__ __main__",
]
FLOOR = {name: floor for floor, room in enumerate(ROOMS) for name in room.split()}
ROOT = Path(scoresde.__file__).parent
OLDEST = ROOT.parent / "constraints-oldest.txt"
EXTRAS, TESTERS = ("plot", "data", "train", "ot"), ("pytest", "scikit-learn", "pandas")


def imports(path: Path) -> set[str]:
    """The rooms of ours that a module imports."""
    here = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level]
            target = (*base, *(node.module or "").split(".")) if node.module else base
            found |= {target[0]} if target else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downward_and_solvers_know_neither_model_nor_process(path: Path) -> None:
    room = path.relative_to(ROOT).with_suffix("").parts[0]
    for other in imports(path) - {room}:
        assert FLOOR[other] <= FLOOR[room], f"{room} imports {other}"
    if room == "solvers":
        assert imports(path) <= {"solvers", "registry", "checks", "errors"}


def test_no_module_hides_behind_a_public_name() -> None:
    """`import scoresde.x as m` gives a module, whichever x: a function of its name would come instead."""
    for found in pkgutil.walk_packages(scoresde.__path__, "scoresde."):
        if not found.name.endswith("__main__"):
            package, _, name = found.name.rpartition(".")
            module = importlib.import_module(found.name)
            assert getattr(sys.modules[package], name) is module, found.name


def public() -> list[tuple[str, object]]:
    things: list[tuple[str, object]] = []
    modules: list[ModuleType] = [
        scoresde,
        scoresde.toy,
        scoresde.dequantize,
        scoresde.files,
        scoresde.transforms,
        scoresde.metrics,
        scoresde.recipes,
        scoresde.solvers,
        scoresde.backbones,
    ]
    for module in modules:
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                things.append((name, thing))
            elif inspect.isclass(thing) and thing.__module__.startswith("scoresde"):
                things.append((name, thing))
                things += [
                    (f"{name}.{key}", value)
                    for key, value in vars(thing).items()
                    if inspect.isfunction(value) and not key.startswith("_")
                ]
    return things


OVERRIDES = {"alpha", "sigma", "dalpha", "dsigma", "time", "f", "g2", "reverse_g2", "run", "step", "nfe", "extra_repr"}
OVERRIDES |= {"curve", "observe", "log_det", "join", "check"}


@pytest.mark.parametrize(("name", "thing"), public(), ids=[name for name, _ in public()])
def test_everything_public_is_documented_and_shown(name: str, thing: object) -> None:
    method = name.rpartition(".")[2]
    if method in OVERRIDES and "." in name and name.split(".")[0] not in ("Process", "Solver", "Stepper", "Coupling"):
        return  # documented where it is defined first
    text = inspect.getdoc(thing) or ""
    assert len(text.splitlines()[0]) > 12 if text else False, f"{name} has no docstring"
    assert ">>>" in text or "See `" in text, f"{name} has no example"
    if inspect.isfunction(thing):
        takes = [p for p in inspect.signature(thing).parameters if p != "self"]
        assert "Parameters" in text or not takes, f"{name} does not say what it takes"
        for p in takes:
            assert p in text, f"{name} does not say what {p} is"
        gives = inspect.signature(thing).return_annotation
        assert "Returns" in text or gives in (None, "None", "Iterator[None]"), f"{name} does not say what it returns"


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed() -> None:
    """`make test-oldest` installs the floors of pyproject.toml, no newer version by mistake."""
    project = ROOT.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("an installed package has no pyproject.toml")
    wanted = tomllib.loads(project.read_text())["project"]
    extras = wanted["optional-dependencies"]
    asked = [*wanted["dependencies"], *(one for name in EXTRAS for one in extras[name])]
    asked += [one for one in extras["test"] if one.startswith(TESTERS)]
    floors = dict(one.split(">=") for one in asked)
    pinned = dict(line.split("==") for line in OLDEST.read_text().split() if "==" in line)

    def numbers(version: str) -> tuple[int, ...]:
        return tuple(map(int, [*version.split("."), "0", "0"][:3]))

    assert pinned.keys() == floors.keys()
    for name, floor in floors.items():
        # or the first bug-fix release of it: scipy 1.11.0 was withdrawn
        assert numbers(floor) <= numbers(pinned[name]) <= numbers(floor + ".1"), name
