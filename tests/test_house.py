"""How the code stands: the layout of the package, and its figures, counted by `tests/house.py`."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
import warnings
from pathlib import Path

import pytest
from house import circles, figures, folder_graph, imports, modules

import scoresde
from scoresde import _moved

ROOT = Path(scoresde.__file__).parent
FLOORS = [
    {"common", "_moved"},
    {"processes", "backbones", "solvers", "toy"},
    {"model"},
    {"sampling", "storage"},
    {"density", "metrics"},
    {"data", "guidance"},
    {"training"},
    {"evaluation", "estimators", "inference", "sharing"},
    {"cli"},
    {"__main__"},
]
"""The folders from the ground up. A folder imports only from floors below its own."""


def test_a_folder_imports_only_from_floors_below() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for name, others in folder_graph(modules(ROOT)).items():
        for other in others:
            assert floor[other] < floor[name], f"{name} imports {other}"


def test_solvers_know_neither_model_nor_process() -> None:
    assert folder_graph(modules(ROOT))["solvers"] == {"common"}


def test_no_modules_import_one_another_in_a_circle() -> None:
    paths = modules(ROOT)
    assert circles({name: imports(name, paths) for name in paths if name}) == []


@pytest.mark.filterwarnings("ignore:scoresde.* is now:DeprecationWarning")
def test_no_module_hides_behind_a_public_name() -> None:
    """`import scoresde.x as m` gives a module: a function of that name would come instead."""
    for found in pkgutil.walk_packages(scoresde.__path__, "scoresde."):
        if not found.name.endswith("__main__"):
            package, _, name = found.name.rpartition(".")
            module = importlib.import_module(found.name)
            assert getattr(sys.modules[package], name) is module, found.name
            assert not inspect.isfunction(getattr(scoresde, name, None)), found.name


@pytest.mark.parametrize(("old", "new"), sorted({**_moved.PUBLIC, **_moved.MOVED}.items()))
def test_an_old_address_gives_the_module_that_took_its_place(old: str, new: str) -> None:
    sys.modules.pop(f"scoresde.{old}", None)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = importlib.import_module(f"scoresde.{old}")
    assert found is importlib.import_module(f"scoresde.{new}")
    assert found.__spec__ is not None
    assert found.__spec__.name == f"scoresde.{new}"
    assert [w.category for w in told] == ([] if old in _moved.PUBLIC else [DeprecationWarning])


def test_the_root_holds_few_modules_on_few_floors() -> None:
    assert figures(ROOT).root_modules <= 4
    assert figures(ROOT).floors <= 9


def test_lines_are_short() -> None:
    assert figures(ROOT).long_lines == []
    assert figures(ROOT).line_length <= 36


def test_docstrings_leave_room_for_code() -> None:
    assert figures(ROOT).docstring_ratio <= 0.65


TABLES = {"_parser", "add_fit_arguments"}
"""Functions that are tables: one statement a row."""


def test_functions_and_modules_are_short() -> None:
    assert [
        f for f in figures(ROOT).long_functions if f.split(":")[1].split()[0] not in TABLES
    ] == []
    assert figures(ROOT).long_modules == []


def test_functions_take_few_arguments() -> None:
    assert figures(ROOT).most_arguments[0] <= 15, figures(ROOT).most_arguments[1]


def test_no_ternary_stands_inside_the_arguments_of_a_call() -> None:
    found = []
    for path in modules(ROOT).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                values = [*node.args, *(k.value for k in node.keywords)]
                found += [f"{path}:{v.lineno}" for v in values if isinstance(v, ast.IfExp)]
    assert found == []
