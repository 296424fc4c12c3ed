"""Checks the built site: `make docs` runs it after the build. Needs only what Sphinx needs.

- No page asks another host for a script, a style sheet, a font or a picture.
- Every picture of `_static` is in the gallery, and small.
- Sphinx's search finds a page that answers each of `QUESTIONS` within its first three hits.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import snowballstemmer
from sphinx.search.en import SearchEnglish

QUESTIONS = {
    "log likelihood": "likelihood notebooks/likelihoods",
    "positive log p": "notebooks/likelihoods",
    "bits per dim": "conventions",
    "dequantization": "conventions data api/density",
    "NaN loss": "training",
    "loss does not decrease": "start",
    "missing values": "cookbook/missing_values",
    "DataFrame": "cookbook/density_of_a_table tables",
    "anomaly": "cookbook/anomalies",
    "normalize data": "conventions",
    "own dataset": "data start",
    "class labels": "cookbook/labels",
    "guidance scale": "conventions guidance",
    "inpaint": "cookbook/inpainting guidance",
    "fewer steps": "cookbook/one_step solvers",
    "best sampler": "solvers cookbook/compare_solvers",
    "same seed": "conventions",
    "resume training": "training",
    "unpaired data": "cookbook/between_data flows",
    "samples outside the prior": "posteriors",
    "copies of training data": "training",
    "several GPUs": "training",
    "prediction interval": "cookbook/intervals estimators",
    "own network": "cookbook/pytorch_network extending",
    "diffusers": "cookbook/diffusers_model backbones ecosystem",
    "simulation-based inference": "cookbook/posterior posteriors",
    "missing data": "cookbook/missing_values",
    "outlier detection": "cookbook/anomalies",
    "confidence interval": "cookbook/intervals",
    "multi GPU": "training",
    "custom UNet": "cookbook/pytorch_network",
    "time series": "backbones",
}
"""What users type, and the pages that answer it beside `questions`, which has them all."""

HITS = 3
LIMIT = 150_000  # bytes of a picture
TITLE, TERM, PART_OF_TITLE, PART_OF_TERM = 15, 5, 7, 2  # scores of Sphinx's searchtools.js
EXTERNAL = re.compile(
    r"<(?:script|img|iframe|source|embed)\b[^>]*\bsrc=[\"'](?:https?:)?//[^\"']*[\"']"
    r"|<link\b(?![^>]*rel=[\"']canonical)[^>]*\bhref=[\"'](?:https?:)?//[^\"']*[\"']"
)
IMPORTED = re.compile(r"(?:@import\s+|url\()\s*[\"']?(?:https?:)?//[^\"')]*")


def external(site: Path) -> Iterator[str]:
    """Everything that a browser would fetch from another host."""
    for page in sorted(site.rglob("*.html")):
        for match in EXTERNAL.finditer(page.read_text(encoding="utf-8")):
            yield f"{page.relative_to(site)}: {match[0]}"
    for sheet in sorted(site.rglob("*.css")):
        for match in IMPORTED.finditer(sheet.read_text(encoding="utf-8")):
            yield f"{sheet.relative_to(site)}: {match[0]}"


def pictures(docs: Path) -> Iterator[str]:
    """Pictures that are too large, or not in the gallery, if no page of a notebook draws them."""
    pages = [docs / "gallery.md", *sorted((docs / "notebooks").glob("*.md"))]
    shown = "".join(page.read_text(encoding="utf-8") for page in pages)
    for picture in sorted((docs / "_static").glob("*.png")):
        if picture.name not in shown:
            yield f"{picture.name} is not in the gallery"
        if picture.stat().st_size > LIMIT:
            yield f"{picture.name} has {picture.stat().st_size:,} bytes, more than {LIMIT:,}"


class Search:
    """What Sphinx's searchtools.js does with a query: index entries, titles, objects, words."""

    def __init__(self, site: Path) -> None:
        text = (site / "searchindex.js").read_text(encoding="utf-8")
        self.index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
        self.stem = snowballstemmer.stemmer("english").stemWord

    def hits(self, query: str) -> list[str]:
        """The names of the pages that it shows, best first; a page may come more than once."""
        lower = query.lower()
        results = [*self._titles(lower), *self._objects(lower), *self._words(query)]
        first, late = self._entries(lower)
        results = sorted(results + first, key=lambda hit: (-hit[0], hit[1].lower()))
        late = sorted(late, key=lambda hit: (-hit[0], hit[1].lower()))
        shown: dict[tuple[str, str], str] = {}
        for _, title, anchor, page in [*results, *late]:
            shown.setdefault((title, anchor), self.index["docnames"][page])
        return list(shown.values())

    def _titles(self, lower: str) -> Iterator[tuple[float, str, str, int]]:
        titles = self.index["titles"]
        for title, found in self.index["alltitles"].items():
            if lower in title.lower() and len(lower) >= len(title) / 2:
                for page, anchor in found:
                    whole = titles[page] == title
                    name = title if whole else f"{titles[page]} > {title}"
                    score = round(TITLE * len(lower) / len(title)) + whole
                    yield score, name, anchor or "", page

    def _entries(self, lower: str) -> tuple[list, list]:
        groups: tuple[list, list] = ([], [])
        for entry, found in self.index["indexentries"].items():
            if lower in entry and len(lower) >= len(entry) / 2:
                score = round(100 * len(lower) / len(entry))
                for page, anchor, main in found:
                    title = self.index["titles"][page]
                    groups[0 if main else 1].append((score, title, anchor, page))
        return groups

    def _objects(self, lower: str) -> Iterator[tuple[float, str, str, int]]:
        terms = set(re.findall(r"\w+", lower))
        for term in terms:
            for prefix, entries in self.index["objects"].items():
                for page, kind, priority, anchor, name in entries:
                    whole = f"{prefix}.{name}" if prefix else name
                    last = whole.lower().split(".")[-1]
                    title = self.index["titles"][page]
                    around = f"{prefix} {name} {self.index['objnames'][str(kind)][2]} {title}"
                    if term not in whole.lower():
                        continue
                    if any(other not in around.lower() for other in terms - {term}):
                        continue
                    exact = term in (whole.lower(), last)
                    score = 11 if exact else 6 if term in last else 0
                    score += {0: 15, 1: 5, 2: -5}.get(priority, 0)
                    yield score, whole, anchor, page

    def _words(self, query: str) -> Iterator[tuple[float, str, str, int]]:
        words = {
            self.stem(word)
            for word in re.findall(r"\w+", query.lower())
            if word not in SearchEnglish.stopwords and not word.isdigit()
        }
        scores: dict[int, dict[str, int]] = {}
        for word in words:
            for table, whole, part in (
                ("terms", TERM, PART_OF_TERM),
                ("titleterms", TITLE, PART_OF_TITLE),
            ):
                entries = self.index[table]
                if word in entries:
                    found = [(entries[word], whole)]
                else:
                    found = [
                        (pages, part)
                        for term, pages in entries.items()
                        if len(word) > 2 and word in term
                    ]
                for pages, score in found:
                    for page in [pages] if isinstance(pages, int) else pages:
                        scores.setdefault(page, {})[word] = score
        long = sum(len(word) > 2 for word in words)
        for page, found in scores.items():
            if len(found) in (len(words), long):
                yield max(found.values()), self.index["titles"][page], "", page


def main(site: str) -> int:
    docs = Path(__file__).parent
    problems = [*external(Path(site)), *pictures(docs)]
    search = Search(Path(site))
    for query, answers in QUESTIONS.items():
        hits = search.hits(query)[:HITS]
        print(f"  {query:28} {', '.join(hits)}")
        if not {*answers.split(), "questions"} & set(hits):
            problems.append(f"a search for {query!r} shows {hits}, none of {answers}")
    print("\n".join(problems) or "no other host, small pictures, all questions found")
    return min(len(problems), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
