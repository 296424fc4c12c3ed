"""Sphinx configuration: `make docs` builds the pages, with warnings as errors."""

import re
import unicodedata
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

import scoresde

project = "scoresde"
author = "The scoresde maintainers"
copyright = "The scoresde maintainers"
release = version = scoresde.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"scoresde {release}"
html_static_path = ["_site"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
autosummary_generate = False

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
# A process that overrides alpha() does not repeat what alpha() is.
autodoc_inherit_docstrings = False
autodoc_typehints = "none"  # docstrings state type, shape and unit
napoleon_google_docstring = True  # toy and metrics
napoleon_numpy_docstring = True
napoleon_use_ivar = True
# `sample` in a docstring is a name: a link if it is documented, code if not.
default_role = "py:obj"

_INLINE = re.compile(r"(?<!\\)[*|]")
_NAME = r"<mi>(?:log|ln|exp|sin|cos|tan|cot)</mi>"
_FUNCTION = rf"(?:{_NAME}|<(?P<with>msub|msup)>{_NAME}<mn>\d</mn></(?P=with)>)"
_BEFORE = "</(?:mi|mn|msub|msup|mfrac)>|&#x02207;</mo>"
_LETTER = re.compile(r'<mi mathvariant="(double-struck|script)">([A-Z])</mi>')
_THIN = '<mspace width="0.167em" />'
_SUMMARY = "<!-- summary -->"
_ENTRY = re.compile(r"^\.\. auto(?:function|class|data|exception):: (\S+)$", re.M)


def plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the stars and bars of (B, *shape) and |x|, and show formulas of modules as written."""
    example = False
    formula = False
    out = []
    for i, line in enumerate(lines):
        bare = line.strip()
        example = bare.startswith(">>>") or (example and bool(bare))
        indented = line.startswith("    ")
        if what == "module" and indented and not formula and i and not lines[i - 1].strip():
            out += ["::", ""]
        formula = what == "module" and (indented or (formula and not bare))
        out.append(line if example or formula else _escaped(line))
    lines[:] = out


def _escaped(line: str) -> str:
    """The line with backslashes before stars and bars, but for what stands in backquotes."""
    parts = re.split(r"(`[^`]*`)", line)
    escaped = [c if c.startswith("`") else _INLINE.sub(r"\\\g<0>", c) for c in parts]
    return "".join(escaped)


def summary(app: Any, name: str, source: list[str]) -> None:
    """Put a table of all entries of a page in the place that asks for it."""
    if _SUMMARY in source[0]:
        entries = "\n".join(f"   ~{entry}" for entry in _ENTRY.findall(source[0]))
        table = f"```{{eval-rst}}\n.. autosummary::\n   :nosignatures:\n\n{entries}\n```"
        source[0] = source[0].replace(_SUMMARY, table)


def _letter(match: re.Match[str]) -> str:
    """𝔼 or 𝒩 itself, as browsers ignore the attribute that asks for it."""
    name = f"MATHEMATICAL {match[1].upper()} CAPITAL {match[2]}"
    return f"<mi>{unicodedata.lookup(name)}</mi>"


def _spaced(formula: str) -> str:
    """Set ∼ as a relation, and thin spaces around the names of functions, as TeX does."""
    formula = formula.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")
    formula = re.sub(rf"({_BEFORE})(?={_FUNCTION})", rf"\1{_THIN}", formula)
    return re.sub(rf"{_FUNCTION}(?=<m(?!o|space))", rf"\g<0>{_THIN}", formula)


def mathml(display: str) -> Any:
    """A visitor that writes a formula as MathML, which browsers show without any script."""

    def visit(writer: Any, node: Any) -> None:
        parts = [node.astext()]
        if display == "block" and r"\begin" not in parts[0]:
            parts = re.split(
                r"\\qquad\b", parts[0]
            )  # they stand in one line where it is wide enough
        formulas = [
            _LETTER.sub(_letter, _spaced(convert(part, display=display))) for part in parts
        ]
        if display == "block":
            writer.body.append(f'<div class="math">{"".join(formulas)}</div>')
        else:  # the word joiner keeps a comma beside the formula
            writer.body.append(f"{formulas[0]}&#8288;")
        raise nodes.SkipNode

    return visit, None


def setup(app: Any) -> None:
    """Run `plain` before napoleon, fill in the summaries, write formulas as MathML."""
    app.connect("autodoc-process-docstring", plain, priority=400)
    app.connect("source-read", summary)
    app.add_html_math_renderer("mathml", mathml("inline"), mathml("block"))
