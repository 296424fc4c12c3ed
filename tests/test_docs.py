"""Every python block and every command of the README and the documentation runs, page by page:
each page in one namespace and one folder. What does not run here is listed, and checked.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import re
import runpy
import sys
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import PAGES, ROOT, Block, arguments, blocks, commands
from test_recipes import mnist

import scoresde
from scoresde.cli import commands as cli
from scoresde.evaluation.measures import MEASURES
from scoresde.recipes import RECIPES
from scoresde.sampling import plan
from scoresde.solvers.base import Solver
from scoresde.training.latent_recipes import LatentRecipe

ASSERTED = ("docs/flows.md",)
"""Pages that assert what a model learns in the steps that they state."""
PRECISE = ("docs/extending.md", "docs/solvers.md")
"""Pages that assert how exact a solve is."""

SMALLER = {
    "demo": ["--steps", "20", "--solver", "heun"],
    "fit": ["--steps", "20", "--batch-size", "32"],
    "sample": ["-n", "4"],
    "log-prob": ["-n", "4"],
    "evaluate": ["-n", "2", "--samples", "2", "--tolerance", "1"],
    "impute": ["--steps", "5", "--particles", "2"],
    "inpaint": ["--steps", "5", "--particles", "2"],
}
"""Options that come after those of the page, and replace them: the commands are on trial, and not
what a model learns.
"""
SMALL_NETS = {
    "unet": ["channels=8", "multipliers=[1,1]", "blocks=1"],
    "mlp": ["width=32"],
    "resmlp": ["width=8", "depth=1"],
}

ELSEWHERE = {
    "accelerate": "is named alone; commands that it starts run in this process",
    "hf": "logs in to a server",
    "make": "makes environments and runs what CI runs; the target must be in the Makefile",
    "pip": "installs packages; each extra must be one of pyproject.toml",
    "python": "runs for minutes; the script must be there and take these arguments. Examples run "
    "in test_examples.py, benchmarks/gpu.py in test_gpu.py",
    ".": "belongs to a shell",
}
"""Programs that are not run here, and why."""
NOT_RUN = {
    "docs/extending.md": {
        "evaluate model/ rows.f32 --import mymodule": "a module of the reader's"
    },
    "docs/gallery.md": {"demo --out demo.png": "the command of docs/start.md"},
    "docs/index.md": {"demo --out demo.png": "the command of docs/start.md"},
}
"""Commands of scoresde that are only parsed, and why."""
TEXT = {
    "docs/backbones.md": {"[project.entry-points": "of a pyproject.toml; see test_registry.py"},
    "docs/ecosystem.md": {"scoresde.push_to_hub(": "needs a server; see test_hub.py"},
    "docs/training.md": {"# torchrun": "eight processes with a GPU each; see test_ranks.py"},
}
"""Blocks of code that do not run, by how they begin, and why."""


def rows(path: str, header: str = "", columns: int = 2) -> None:
    """Write a table of normal numbers, or an array."""
    values = np.random.default_rng(0).normal(size=(50, columns)).astype(np.float32)
    if path.endswith(".npy"):
        np.save(path, values)
    else:
        np.savetxt(path, values, delimiter=",", header=header, comments="")


def clothes() -> None:
    """The four files of Fashion-MNIST, with other pictures."""
    Path("FOLDER").mkdir()
    mnist(Path("FOLDER"))


FILES = {
    "README.md": (functools.partial(rows, "data.npy"), clothes),
    "docs/cookbook/density_of_a_table.md": (functools.partial(rows, "table.csv", "a,b"),),
    "docs/cookbook/labels.md": (clothes,),
    "docs/data.md": (functools.partial(rows, "trial.csv", "pulse,pressure,dose,age", 4),),
    "docs/ecosystem.md": (functools.partial(rows, "rows.npy"),),
    "docs/gallery.md": (clothes,),
    "docs/images.md": (clothes,),
    "docs/latent.md": (clothes,),
    "docs/training.md": (functools.partial(rows, "data.npy"),),
}
"""The reader's own files, which the commands of a page read."""

FEWER = {
    "README.md": {"2 * torch.rand(5000, 2)": "2 * torch.rand(500, 2)", "randn(5000": "randn(500"},
    "docs/cookbook/posterior.md": {"torch.rand(5000, 2)": "torch.rand(500, 2)"},
    "docs/estimators.md": {'[{"width": 16}, {"width": 32}]': '[{"width": 16}]'},
    "docs/flows.md": {
        "reuse=8), **short": 'reuse=8), **(short | {"steps": 20})',
        '_ot", **short': '_ot", **(short | {"steps": 20})',
        "Distilled(1), **short": 'Distilled(1), **(short | {"steps": 20})',
        '"meanflow", **short': '"meanflow", **(short | {"steps": 20})',
        "repeats=3": "repeats=2",
        "steps=100, batch_size=128": "steps=10, batch_size=128",
    },
    "docs/notebooks/likelihoods.md": {"steps=400": "steps=50"},
    "docs/posteriors.md": {
        "post.sample((500,), x=x_o)": "post.sample((50,), x=x_o)",
        "draws=20, steps=5": "draws=2, steps=1",
        "draws=500)": "draws=50)",
    },
    "docs/solvers.md": {
        "(3, 4, 5, 6, 8, 12, 16)": "(3, 12)",
        "scoresde.solve(model, 256, ": "scoresde.solve(model, 16, ",
        "scoresde.solve(sde, 500, ": "scoresde.solve(sde, 100, ",
        "range(2, 9)": "(2, 5, 8)",
        "(12, 24, 36, 48, 96)": "(12, 48)",
    },
}
"""Numbers of pages, and smaller ones that replace them: the fast suite still runs each statement
and each assertion, and the slow one runs these pages with their own numbers.
"""


@functools.cache
def parser() -> argparse.ArgumentParser:
    return cli.build_parser(cli.COMMANDS)


def is_whole(words: list[str]) -> bool:
    """Whether a command names all that it needs, so that it can run; a verb alone does not."""
    if len(words) == 1:
        return False
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            parser().parse_args(words)
    except SystemExit:
        return False
    return True


def check_mention(words: list[str]) -> None:
    """Raise unless the verb and options exist that a sentence names, as in `fit --recipe mnist`."""
    verb, *others = words
    known = {name for option in cli.COMMANDS[verb].options for name in option.names}
    used = {word for word in others if word.startswith("-")} - {"--help"}
    assert used <= known, f"scoresde {verb} has no {sorted(used - known)}"


def made_small(words: list[str]) -> list[str]:
    """A command with small networks and few steps."""
    verb = words[0]
    small = [*words, *SMALLER[verb]]
    net = words[words.index("--net") + 1] if "--net" in words else "mlp"
    if "--recipe" in words:
        recipe = RECIPES[words[words.index("--recipe") + 1]]
        net = recipe.net
        small += ["--steps", "2", "--batch-size", "4", "--validation", "none"]
        if isinstance(recipe, LatentRecipe):
            small += ["--stage", "channels=4", "--stage", "steps=2", "--stage", "batch_size=4"]
    if verb == "fit":
        for option in SMALL_NETS.get(net, ()):
            small += ["--option", option]
    return small


def run(words: list[str], page: str) -> None:
    """Run a command of scoresde in this process; what it was to write must be there then."""
    if " ".join(words) in NOT_RUN.get(page, ()):
        return
    cli.main(made_small(words))
    if "--out" in words:
        assert Path(words[words.index("--out") + 1]).exists(), words


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a page add names to the tables, for itself alone."""
    for registry in (
        scoresde.PROCESSES,
        scoresde.BACKBONES,
        scoresde.SOLVERS,
        scoresde.COUPLINGS,
        scoresde.OBJECTIVES,
        scoresde.TRACES,
        scoresde.transforms.TRANSFORMS,
    ):
        monkeypatch.setattr(registry, "_makers", dict(registry._makers))
    dictionaries: tuple[dict[str, Any], ...] = (
        scoresde.CAPABILITIES,
        scoresde.FIELDS,
        scoresde.NOISES,
        scoresde.PREDICTIONS,
        scoresde.SPACINGS,
        scoresde.WEIGHTS,
        scoresde.files.FILES,
        scoresde.files.FOLDERS,
        MEASURES,
    )
    before = [dict(table) for table in dictionaries]
    yield
    for table, entries in zip(dictionaries, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Perceptrons of 32 units, unless the page says how many; and, unless the page asserts what is
    learnt, 10 training steps at most and a coarse default tolerance: the blocks are on trial.
    """
    page = request.getfixturevalue("page")
    most = None if page in ASSERTED else 10
    tolerance = 1e-3 if page in PRECISE else 1e-2
    build, fit, posterior = scoresde.build, scoresde.fit, scoresde.posterior

    def narrower(process: Any = "vp", net: Any = "mlp", **options: Any) -> scoresde.ScoreSDE:
        width = {"width": 32} if net in ("mlp", "resmlp", "encoded_resmlp") else {}
        if net == "encoded_resmlp":
            options["members"] = 1
        return build(process, net, **(width | options))

    def shorter(train: Any) -> Any:
        def run(*args: Any, steps: Any = None, **how: Any) -> Any:
            if most is not None:
                steps = most if steps in (None, "auto") else min(steps, most)
            if steps is not None:
                how["steps"] = steps
            return train(*args, **how)

        return run

    finer = plan._raise_tolerances

    def coarser(solver: Solver, named: Collection[str], least: float) -> Solver:
        return finer(solver, named, tolerance if not {"rtol", "atol"} & set(named) else least)

    if most is not None:
        monkeypatch.setattr(plan, "_raise_tolerances", coarser)
    monkeypatch.setattr("scoresde.density.density_ode.CHECK_MOST", 0.1)
    demo = importlib.import_module("scoresde.cli.demo")
    monkeypatch.setattr(demo, "demo", functools.partial(demo.demo, points=100))
    monkeypatch.setattr(demo, "LATTICE", 32)
    monkeypatch.setattr(scoresde, "build", narrower)
    monkeypatch.setattr("scoresde.inference.pairs.build", narrower)
    monkeypatch.setattr(scoresde, "fit", shorter(fit))
    monkeypatch.setattr("scoresde.estimators.base.fit", shorter(fit))
    monkeypatch.setattr(scoresde, "posterior", shorter(posterior))


def runs(block: Block) -> bool:
    """Whether a block is Python, or has a command of scoresde."""
    if block.language == "python":
        return True
    return any(arguments(words) is not None for words in commands(block))


def replaced(code: str, fewer: dict[str, str]) -> str:
    """The code of a block with the smaller numbers of `FEWER`."""
    for number, smaller in fewer.items():
        code = code.replace(number, smaller)
    return code


@pytest.mark.usefixtures("tables", "small")
@pytest.mark.parametrize(
    ("page", "whole"),
    [
        *[(page, False) for page in PAGES if any(map(runs, blocks(page)))],
        *[pytest.param(page, True, marks=pytest.mark.slow) for page in FEWER],
    ],
)
def test_a_page_runs(
    page: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fewer = {} if whole else FEWER.get(page, {})
    for make in FILES.get(page, ()):
        make()
    namespace: dict[str, object] = {"__name__": "__docs__"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks(page):
            if block.language == "python":  # padded, so that a traceback shows the page's line
                code = "\n" * block.line + replaced(block.code, fewer)
                exec(compile(code, str(PAGES[page]), "exec", dont_inherit=True), namespace)
            for words in commands(block):
                ours = arguments(words)
                if ours is None:
                    continue
                if block.language == "sentence" and not is_whole(ours):
                    check_mention(ours)
                else:
                    run(ours, page)


@pytest.mark.parametrize("page", PAGES)
def test_what_does_not_run_is_listed(page: str) -> None:
    for block in blocks(page):
        where = f"{page}:{block.line}"
        if block.language == "text":
            assert any(map(block.code.startswith, TEXT.get(page, ()))), where
            continue
        known = block.language in ("python", "console", "sentence")
        assert known or block.language.startswith("{"), f"{where}: {block.language!r}"
        for words in commands(block):
            assert arguments(words) is not None or words[0] in ELSEWHERE, f"{where}: {words}"


def test_what_is_listed_is_on_its_page() -> None:
    for page, known in NOT_RUN.items():
        told = [" ".join(arguments(words) or ()) for b in blocks(page) for words in commands(b)]
        assert known.keys() <= set(told), page
        assert all(is_whole(command.split()) for command in known), page
    for page, known in TEXT.items():
        codes = [block.code for block in blocks(page) if block.language == "text"]
        assert all(any(code.startswith(start) for code in codes) for start in known), page
    for page in FILES:
        assert any(map(runs, blocks(page))), page
    for page, fewer in FEWER.items():
        code = "".join(block.code for block in blocks(page) if block.language == "python")
        assert all(number in code for number in fewer), page


def others(program: str) -> dict[str, list[str]]:
    """The commands of another program, of all pages."""
    found = [words for page in PAGES for block in blocks(page) for words in commands(block)]
    chosen = [words for words in found if words[0] == program and arguments(words) is None]
    return {" ".join(words): words for words in chosen}


def test_extras_that_pip_installs_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = others("pip")
    assert len(installed) > 5
    for command in installed:
        named = re.search(r"\[([\w,]+)\]", command)
        assert named is None or set(named[1].split(",")) <= extras.keys(), command


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = others("make")
    assert len(named) > 3
    for words in named.values():
        assert words[1] in targets, words


class Parsed(Exception):
    """The arguments of a script are right."""


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts end when they have read their arguments; what they import is forgotten."""
    parse = argparse.ArgumentParser.parse_args
    before = set(sys.modules)

    def end(self: argparse.ArgumentParser, *args: Any) -> None:
        parse(self, *args)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", end)
    yield
    folders = [str(ROOT / name) for name in ("benchmarks", "examples", "docs")]
    for name in set(sys.modules) - before:
        file = str(getattr(sys.modules[name], "__file__", ""))
        if file.startswith(tuple(folders)):
            del sys.modules[name]


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.parametrize("command", [c for c in others("python") if ".py" in c])
def test_scripts_take_the_arguments_that_pages_give_them(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ROOT / others("python")[command][1]
    if script.parent.name == "examples":
        assert f'"{script.name}"' in (ROOT / "tests" / "test_examples.py").read_text()
    monkeypatch.syspath_prepend(script.parent)
    if command.endswith(".py"):  # a script that is named, and has other arguments if any
        assert script.exists()
        return
    monkeypatch.setattr(sys, "argv", others("python")[command][1:])
    with pytest.raises(Parsed):
        runpy.run_path(str(script), run_name="__main__")
