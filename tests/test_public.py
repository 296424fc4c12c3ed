"""Everything public says what it is and shows itself at work."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import scoresde

ROOT = Path(scoresde.__file__).parent
OLDEST = ROOT.parent / "constraints-oldest.txt"
EXTRAS, TESTERS = ("plot", "data", "train", "ot", "sklearn", "hub"), ("pytest", "pandas")


def public() -> list[tuple[str, object]]:
    things: list[tuple[str, object]] = []
    modules: list[ModuleType] = [
        scoresde,
        scoresde.toy,
        scoresde.dequantize,
        scoresde.files,
        scoresde.transforms,
        scoresde.metrics,
        scoresde.plotting,
        scoresde.recipes,
        scoresde.solvers,
        scoresde.backbones,
        scoresde.estimators,
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


def is_override(name: str, thing: object) -> bool:
    """Whether a method is documented where a class above defines it first."""
    holder, _, method = name.rpartition(".")
    module = sys.modules[thing.__module__]
    owner = getattr(module, holder, None)
    above = owner.__mro__[1:] if inspect.isclass(owner) else ()
    return any(
        method in vars(cls) for cls in above if cls.__module__.startswith(("scoresde", "torch"))
    )


@pytest.mark.parametrize(("name", "thing"), public(), ids=[name for name, _ in public()])
def test_everything_public_is_documented_and_shown(name: str, thing: object) -> None:
    if is_override(name, thing):
        return
    text = inspect.getdoc(thing) or ""
    assert len(text.splitlines()[0]) > 12 if text else False, f"{name} has no docstring"
    assert ">>>" in text or "See `" in text, f"{name} has no example"
    if inspect.isfunction(thing):
        takes = [p for p in inspect.signature(thing).parameters if p != "self"]
        assert "Parameters" in text or not takes, f"{name} does not say what it takes"
        for p in takes:
            assert p in text, f"{name} does not say what {p} is"
        gives = inspect.signature(thing).return_annotation
        assert (
            "Returns" in text or gives in (None, "None", "Iterator[None]") or "Yields" in text
        ), f"{name} does not say what it returns"


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


WRONG_PLACES = {
    "f and g² are Lu et al. 2022a, eq. 2.3": r"Kingma et al\. 2021, eq\. 2\b",
    "VDM learns its schedule in 5.3 and appendix H": r"Kingma et al\. 2021, section 6\.2",
    "Lee et al. do not divide curvature by Δ": r"= S/Δ \((after )?Lee et al\. 2023[;)]",
    "C²OT": r"Schwing 2025, eq",
    "SF2M": r"Tong et al\. 2024b, (section|eq)",
    "DSBM": r"bridge matching, NeurIPS 2023, eq",
    "i-DODE": r"diffusion ODEs, ICML 2023, section",
    "Dowson and Landau": r"(Landau|normal distributions,) 1982, eq",
    "Bonneel": r"Bonneel et al\. 2015, definition",
}
"""Citations that named the wrong place, or one that could not be verified."""


def test_citations_that_were_wrong_or_unverified_name_no_place() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        text = " ".join(path.read_text(encoding="utf-8").split())
        wrong += [(path.name, why) for why, form in WRONG_PLACES.items() if re.search(form, text)]
    assert wrong == []
    about = " ".join((scoresde.processes.base.__doc__ or "").split())
    assert "Lu et al. 2022a, eq. 2.3) f = α̇/α" in about


def test_old_modules_answer_by_attribute_and_for_public_names() -> None:
    """In a process of its own, as a module is asked once."""
    code = """
import warnings
import scoresde
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert scoresde.sde.ScoreSDE is scoresde.ScoreSDE
    from scoresde.training import fit
    assert fit is scoresde.fit
    from scoresde.solvers.external_sde import TorchSDE
assert [each.category for each in caught] == 3 * [DeprecationWarning], caught
assert {each.filename for each in caught} == {"<string>"}, caught
from scoresde.objective import NOISES, WEIGHTS, loss
from scoresde.checkpoint import posthoc_ema
from scoresde.pairs import reflow
from scoresde.solvers.base import Adaptive, Calls
assert not hasattr(scoresde, "nothing")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
