"""Figures of the code: layout, imports, docstrings, lines, functions.

`python tests/house.py` prints them.
"""

from __future__ import annotations

import ast
import functools
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(root: Path) -> dict[str, Path]:
    """All modules of a package by dotted name; the package itself is ''."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def relative_imports(path: Path) -> list[ast.ImportFrom]:
    """The statements `from … import …` of a file."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def imports(name: str, paths: dict[str, Path]) -> set[str]:
    """The modules that a module imports, inside functions and for type checking too."""
    path = paths[name]
    here = name.split(".") if name else []
    package = here if path.name == "__init__.py" else here[:-1]
    found = set()
    for node in relative_imports(path):
        base = package[: len(package) + 1 - node.level]
        target = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            inside = f"{target}.{alias.name}".lstrip(".")
            found.add(inside if inside in paths else target)
    return found - {name, ""}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another: strongly connected components, by Tarjan."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in graph[v]:
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            group = [stack.pop()]
            while group[-1] != v:
                group.append(stack.pop())
            found.append(group)

    for v in graph:
        if v not in index:
            visit(v)
    return [group for group in found if len(group) > 1]


def folder(name: str) -> str:
    """The folder that a module is in; a module at the root is a folder of its own."""
    return name.partition(".")[0]


def folder_graph(paths: dict[str, Path]) -> dict[str, set[str]]:
    """Which folder imports which."""
    graph: dict[str, set[str]] = {}
    for name in paths:
        if name:
            others = {folder(other) for other in imports(name, paths)} - {folder(name)}
            graph.setdefault(folder(name), set()).update(others)
    return graph


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each folder: 1 if it imports no other, else one above those it imports."""
    found: dict[str, int] = {}

    def floor(v: str, above: tuple[str, ...] = ()) -> int:
        if v in above:
            return 0
        if v not in found:
            found[v] = 1 + max((floor(w, (*above, v)) for w in graph[v]), default=0)
        return found[v]

    for v in graph:
        floor(v)
    return found


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """All docstrings, and the strings that describe the constant above them."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node.value.value, str):
            yield node.value


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions and methods."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def body_lines(node: Function) -> int:
    """Lines of a function from `def` to its end, without its docstring."""
    end = node.end_lineno or node.lineno
    doc = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
    documented = (doc.end_lineno or 0) - doc.lineno + 1 if doc else 0
    return end - node.lineno + 1 - documented


def arguments(node: Function) -> int:
    """How many arguments a function takes, `self` and `cls` aside."""
    a = node.args
    named = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len([x for x in named if x not in ("self", "cls")]) + bool(a.vararg) + bool(a.kwarg)


@dataclass
class Figures:
    """The figures of a package."""

    root_modules: int
    floors: int
    circles: list[list[str]]
    docstring_ratio: float  # docstring lines per line of code
    line_length: float  # characters per line of code, without indentation
    long_lines: list[str]  # over 100 columns
    long_functions: list[str]  # over 60 lines
    most_arguments: tuple[int, str]
    long_modules: list[str]  # over 400 lines
    longest_module: tuple[int, str]


@functools.cache
def figures(root: Path) -> Figures:
    """Count."""
    paths = modules(root)
    graph = {name: imports(name, paths) for name in paths if name}
    documented = code = characters = lines = 0
    long_lines, long_functions, long_modules = [], [], []
    most, longest = (0, ""), (0, "")
    for path in paths.values():
        text = path.read_text()
        tree = ast.parse(text)
        where = path.relative_to(root)
        rows = text.splitlines()
        taken = set()
        for doc in docstrings(tree):
            taken |= set(range(doc.lineno, (doc.end_lineno or doc.lineno) + 1))
        written = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in (
                tokenize.COMMENT,
                tokenize.NL,
                tokenize.NEWLINE,
                tokenize.INDENT,
                tokenize.DEDENT,
                tokenize.ENDMARKER,
            ):
                written |= set(range(token.start[0], token.end[0] + 1))
        documented += len(taken)
        code += len(written - taken)
        full = [row.strip() for n, row in enumerate(rows, 1) if row.strip() and n not in taken]
        characters, lines = characters + sum(map(len, full)), lines + len(full)
        long_lines += [f"{where}:{i}" for i, row in enumerate(rows, 1) if len(row) > 100]
        for node in functions(tree):
            if body_lines(node) > 60:
                long_functions.append(f"{where}:{node.name} ({body_lines(node)})")
            most = max(most, (arguments(node), f"{where}:{node.name}"))
        if len(rows) > 400:
            long_modules.append(f"{where} ({len(rows)})")
        longest = max(longest, (len(rows), str(where)))
    at_root = [
        name
        for name, path in paths.items()
        if name and "." not in name and path.name != "__init__.py"
    ]
    return Figures(
        root_modules=len(at_root) + 1,
        floors=max(floors(folder_graph(paths)).values()),
        circles=circles(graph),
        docstring_ratio=documented / code,
        line_length=characters / lines,
        long_lines=long_lines,
        long_functions=long_functions,
        most_arguments=most,
        long_modules=long_modules,
        longest_module=longest,
    )


if __name__ == "__main__":
    given = sys.argv[1:]
    root = Path(given[0]) if given else Path(__file__).parent.parent / "scoresde"
    for name, value in vars(figures(root)).items():
        if isinstance(value, list):
            print(f"{name:16} {len(value):5}   {' '.join(map(str, value[:12]))}")
        else:
            print(f"{name:16} {value}")
