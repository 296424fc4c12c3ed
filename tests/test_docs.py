"""Every python block of the README and the documentation runs, page by page, each page in one
namespace.
"""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import scoresde
from scoresde.cli import commands as cli
from scoresde.evaluation.measures import MEASURES

ROOT = Path(__file__).parent.parent
PAGES = {
    page.relative_to(ROOT).as_posix(): page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
FENCE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=fence)[ \t]*$", re.M | re.S
)
NOT_RUN = ("text", "console")
SMALL = {"fit": ["--steps", "20"], "sample": ["-n", "20"], "log-prob": ["-n", "20"]}
"""Commands that run on files which their page has written, and what makes them small."""
ASSERTED = ("docs/flows.md",)
"""Pages that assert what a model learns in the steps that they state."""


def blocks(page: Path) -> Iterator[tuple[str, str, int]]:
    """Yield language, code and the number of lines before the code, for each fenced block."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        yield match["language"].strip(), match["code"], text.count("\n", 0, match.start("code"))


def commands(code: str) -> Iterator[list[str]]:
    """Yield the words of each scoresde command of a console block, from its verb on."""
    for line in code.splitlines():
        if line.startswith("$ scoresde "):
            yield shlex.split(line, comments=True)[2:]


def run_small(words: list[str]) -> None:
    """Run a command of `SMALL` if the files are there that it reads."""
    verb, *others = words
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), others))
    if verb in SMALL and names and all(Path(name).exists() for name in names):
        cli.main([*words, *SMALL[verb]])


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
    """Perceptrons of 32 units, unless the page says how many, and 25 training steps at most, unless
    the page asserts what is learnt: the blocks are on trial.
    """
    most = None if request.getfixturevalue("page") in ASSERTED else 25
    build, fit, posterior = scoresde.build, scoresde.fit, scoresde.posterior

    def narrower(process: Any = "vp", net: Any = "mlp", **options: Any) -> scoresde.ScoreSDE:
        width = {"width": 32} if net in ("mlp", "resmlp", "encoded_resmlp") else {}
        return build(process, net, **(width | options))

    def shorter(train: Any) -> Any:
        def run(*args: Any, steps: Any = None, **how: Any) -> Any:
            if most is not None:
                steps = most if steps in (None, "auto") else min(steps, most)
            if steps is not None:
                how["steps"] = steps
            return train(*args, **how)

        return run

    monkeypatch.setattr(scoresde, "build", narrower)
    monkeypatch.setattr("scoresde.inference.recipe.build", narrower)
    monkeypatch.setattr(scoresde, "fit", shorter(fit))
    monkeypatch.setattr("scoresde.estimators.base.fit", shorter(fit))
    monkeypatch.setattr(scoresde, "posterior", shorter(posterior))


@pytest.mark.usefixtures("tables", "small")
@pytest.mark.parametrize(
    "page", [name for name, page in PAGES.items() if any(b[0] == "python" for b in blocks(page))]
)
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__docs__"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for language, code, above in blocks(PAGES[page]):
            if language == "python":  # padded, so that a traceback shows the line of the page
                exec(compile("\n" * above + code, str(PAGES[page]), "exec"), namespace)
            elif language == "console":
                for words in commands(code):
                    run_small(words)


@pytest.mark.parametrize("page", PAGES)
def test_fences_are_of_a_known_kind(page: str) -> None:
    for language, _, above in blocks(PAGES[page]):
        known = language == "python" or language in NOT_RUN or language.startswith("{")
        assert known, (
            f"{page}:{above}: a block of kind {language!r}; python blocks run, {NOT_RUN} do not"
        )


@pytest.mark.parametrize("page", PAGES)
def test_scoresde_commands_parse(page: str) -> None:
    """Not all commands in console blocks can run here, but their verbs and options must exist."""
    for language, code, _ in blocks(PAGES[page]):
        for words in commands(code) if language == "console" else ():
            cli.build_parser(cli.COMMANDS).parse_args(words)
