"""Sphinx configuration: `make docs` builds the pages, with warnings as errors."""

import re
from typing import Any

import scoresde

project = "scoresde"
author = "The scoresde maintainers"
copyright = "The scoresde maintainers"
release = version = scoresde.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"scoresde {release}"

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


def setup(app: Any) -> None:
    """Run `plain` before napoleon."""
    app.connect("autodoc-process-docstring", plain, priority=400)
