"""The site: every public name has its place, pictures have commands, and search finds answers.

What needs a built site reads docs/_build/html, if `make docs` has made it.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import scoresde

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SITE = DOCS / "_build" / "html"
ENTRY = re.compile(r"^\.\. auto(?:function|class|data|exception):: (\S+)$", re.M)


def script(name: str) -> ModuleType:
    """A script of docs/, as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_on_one_page_of_the_api() -> None:
    """A table is there under the name of the module that fills it."""
    pages = [page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md"))]
    entries = [entry for page in pages for entry in ENTRY.findall(page)]
    assert len(entries) == len(set(entries))
    words = {entry.rpartition(".")[2] for entry in entries}
    modules = {"dequantize", "energies", "estimators", "files", "measurements", "metrics"}
    modules |= {"plotting", "recipes", "toy", "transforms"}
    old = {"evaluations"}  # nfe_for_error
    assert sorted(set(scoresde.__all__) - words - modules - old) == []
    assert all("<!-- summary -->" in page for page in pages)


def test_every_page_of_the_api_is_in_its_table_of_contents() -> None:
    listed = (DOCS / "api.md").read_text(encoding="utf-8")
    for page in sorted((DOCS / "api").glob("*.md")):
        assert listed.count(f"api/{page.stem}") == 2, page  # in the table, and in the toctree


def test_every_picture_names_the_command_that_draws_it() -> None:
    pytest.importorskip("PIL")
    pictures = script("pictures")
    gallery = (DOCS / "gallery.md").read_text(encoding="utf-8")
    drawn = {picture.name for picture in (DOCS / "_static").glob("*.png")}
    assert drawn == {*pictures.PICTURES, *pictures.NOTEBOOKS}
    for name, picture in pictures.PICTURES.items():
        assert f"_static/{name}" in gallery, name
        assert f"`{picture.command}`" in " ".join(gallery.split()), name
        for file in re.findall(r"\S+\.py\b", picture.command):
            assert (ROOT / file).exists(), file
    for name, page in pictures.NOTEBOOKS.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert f'savefig("{name}"' in text, name
        assert f"(../_static/{name})" in text, name


def test_pictures_are_small() -> None:
    for picture in (DOCS / "_static").glob("*.png"):
        assert picture.stat().st_size <= 150_000, picture


def test_a_picture_is_stored_small_and_on_white(tmp_path: Path) -> None:
    """A wide blue picture, whose upper part is transparent; and noise, which can't become small."""
    image = pytest.importorskip("PIL.Image")
    pictures = script("pictures")
    picture = image.new("RGBA", (2000, 500), "blue")
    picture.putalpha(image.linear_gradient("L").resize(picture.size))
    picture.save(tmp_path / "a.png")
    pictures.shrink(tmp_path / "a.png", tmp_path / "b.png")
    small = image.open(tmp_path / "b.png").convert("RGB")
    assert small.size == (1600, 400)
    assert min(small.getpixel((800, 0))) > 250
    assert small.getpixel((800, 399)) == (0, 0, 255)
    image.effect_noise((700, 700), 100).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="draw less"):
        pictures.shrink(tmp_path / "a.png", tmp_path / "b.png")


def test_formulas_become_mathml_that_browsers_show() -> None:
    """Browsers know neither the attribute for 𝔼 nor the spaces around log."""
    pytest.importorskip("latex2mathml")
    pytest.importorskip("docutils")
    written: list[str] = []

    class Skipped(Exception):
        pass

    conf = script("conf")
    conf.nodes = SimpleNamespace(SkipNode=Skipped)
    formula = r"\mathbb E\,[-\log p(x)] \sim 2\log_2 D \qquad y"
    for display, count in (("inline", 1), ("block", 2)):
        with pytest.raises(Skipped):
            conf.mathml(display)[0](
                SimpleNamespace(body=written), SimpleNamespace(astext=lambda: formula)
            )
        html = written.pop()
        assert html.count("<math ") == count
        assert "<mi>𝔼</mi>" in html
        assert f"<mi>log</mi>{conf._THIN}<mi>p</mi>" in html
        assert f"<mn>2</mn>{conf._THIN}<msub><mi>log</mi><mn>2</mn></msub>{conf._THIN}" in html
        assert "<mo>&#x0223C;</mo>" in html
        assert "\\" not in html


def test_other_hosts_are_noticed(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    check = script("check_site")
    page = tmp_path / "page.html"
    page.write_text(
        '<a href="https://example.org">fine</a><img src="a.png"><script src="b.js"></script>'
        '<link rel="canonical" href="https://example.org/page.html">'
    )
    assert list(check.external(tmp_path)) == []
    page.write_text('<script async src="https://cdn.example.org/mathjax.js"></script>')
    assert len(list(check.external(tmp_path))) == 1
    page.write_text('<link rel="stylesheet" href="//fonts.example.org/a.css">')
    (tmp_path / "a.css").write_text('@import "https://fonts.example.org/b.css";')
    assert len(list(check.external(tmp_path))) == 2


@pytest.mark.skipif(not (SITE / "searchindex.js").exists(), reason="make docs has not run")
def test_search_finds_answers_and_nothing_is_fetched_from_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sphinx")
    assert script("check_site").main(str(SITE)) == 0, capsys.readouterr().out
