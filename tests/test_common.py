"""Checks of arguments, seeded randomness, names and figures: what every folder uses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import scoresde
from conftest import generator
from scoresde.common.checks import (
    brief_repr,
    check_generator,
    format_bytes,
    real_number,
    true_or_false,
    whole_number,
)
from scoresde.common.errors import one_line
from scoresde.common.inputs import as_floats, event_shape, whole_labels
from scoresde.common.names import nearest
from scoresde.common.plugins import loaded_only, may_import
from scoresde.common.random import NETWORK, ORDER, PATH, Noise, draw_seed, isolated, seeded


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: whole_number("steps", 2.5), "steps is an integer, got 2.5"),
        (lambda: whole_number("steps", True), "steps is an integer, got True"),
        (lambda: whole_number("steps", 0), "steps is at least 1, got 0"),
        (lambda: whole_number("seed", 2**63), r"seed is below 2\^63, got 9223372036854775808"),
        (
            lambda: real_number("rtol", -1.0, 0, math.inf, hint="try 1e-5"),
            "rtol is greater than 0, got -1.0; try 1e-5",
        ),
        (lambda: real_number("eta", 2, 0, 1, closed=True), "eta is between 0 and 1, got 2"),
        (lambda: real_number("eta", math.nan, 0, 1), "eta is between 0 and 1, got nan"),
        (lambda: true_or_false("project", "no"), "project is True or False, got 'no'"),
        (lambda: check_generator(7), r"got int; write seed=7"),
        (lambda: event_shape("2"), r"a tuple of integers such as \(2,\)"),
        (
            lambda: as_floats(torch.tensor([[1, 2]]), (2,), "x"),
            r"x has dtype torch.int64, wanted floating point; convert it, e.g. x.float\(\)",
        ),
    ],
)
def test_a_message_says_what_came_and_what_was_wanted(check: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        check()


def test_values_are_short_in_messages() -> None:
    assert brief_repr(10**30) == "10^30"
    assert brief_repr(-(10**30)) == "−10^30"
    assert brief_repr("a" * 200) == "'" + "a" * 78 + "…"
    assert format_bytes(8 * 2**40) == "8 TiB"
    assert one_line(ValueError("two\nlines")) == "two lines"
    assert one_line(ValueError()) == "ValueError"
    assert nearest("rk54", ["euler", "rk45"]) == "Did you mean 'rk45'? There are: euler, rk45."


def test_shapes_and_labels_become_plain() -> None:
    assert event_shape(2) == (2,)
    assert event_shape([3, 8, 8]) == (3, 8, 8)
    assert whole_labels("y", torch.tensor([3], dtype=torch.uint16)).dtype == torch.int64


def test_a_file_imports_nothing() -> None:
    with loaded_only():
        assert not may_import()
        assert isinstance(scoresde.PROCESSES.build("vp"), scoresde.VPSDE)
    assert may_import()


def test_seeds_and_words_determine_what_is_drawn() -> None:
    g = generator(0)
    assert draw_seed(g) != draw_seed(g)
    a, b = (torch.rand(1, generator=seeded("cpu", 1, ORDER, 5)) for _ in range(2))
    assert torch.equal(a, b)
    draws = []
    before = torch.random.get_rng_state()
    for _ in range(2):
        with isolated() as seed:
            seed(1, NETWORK, 0)
            draws.append(torch.rand(1))
    assert torch.equal(*draws)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_belongs_to_samples() -> None:
    like = torch.empty(0)
    whole = Noise(7, PATH, 0, 200, 3, like)
    part = Noise(7, PATH, 100, 150, 3, like)
    first = whole()
    kept = first.clone()
    assert torch.equal(first[100:150], part())
    for _ in range(50):
        assert torch.equal(whole()[100:150], part())
    assert torch.equal(first, kept)  # no later draw writes into it


def test_figures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from scoresde.common.plotting import curves, density_figure, lattice, sheet

    assert len(curves({"training": ([1, 2], [0.5, 0.4])}).axes[0].lines) == 1
    wanted = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    assert torch.equal(lattice(torch.zeros(2), torch.ones(2), 2), wanted)
    moons = scoresde.toy.Moons()
    paths = torch.stack([moons.sample(9), moons.sample(9)])
    file = tmp_path / "density.png"
    model = density_figure(moons, moons.log_prob, moons.sample(50), paths, file, points=40)
    assert model.shape == (40, 40)
    sheet(torch.rand(10, 8, 8), tmp_path / "sheet.png")
    assert file.stat().st_size > 0
    assert (tmp_path / "sheet.png").stat().st_size > 0
