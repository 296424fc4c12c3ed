"""Models that have learnt the steps of a solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import scoresde
from conftest import generator
from scoresde import toy

QUIET: dict[str, Any] = {"progress": False, "batch_size": 32}


def flow(net: str = "mlp", **options: Any) -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build("rectified", net, shape=(2,), width=16, **options)


def test_a_student_starts_where_its_pairs_do() -> None:
    teacher = scoresde.oracle(toy.EightGaussians(), scoresde.RectifiedFlow())
    pairs, student = scoresde.reflow(teacher, 2000, generator=generator(0), progress=False), flow()
    scoresde.fit(student, pairs, steps=2, **QUIET)
    starts = scoresde.solve(student, 2000, solver="ddim", steps=1, generator=generator(1)).x[0]
    assert torch.allclose(starts.std(0), pairs.latent.std(0), rtol=0.15)  # six standard errors


def test_a_distilled_model_is_sampled_at_the_levels_it_learnt() -> None:
    teacher, student = scoresde.oracle(toy.Moons(), scoresde.RectifiedFlow()), flow()
    scoresde.fit(
        student,
        scoresde.reflow(teacher, 200, progress=False),
        objective="distilled",
        steps=20,
        **QUIET,
    )
    assert scoresde.solve(student, 3, generator=generator(0)).nfe.tolist() == [1, 1, 1]


def moons(n: int = 500) -> torch.Tensor:
    return toy.Moons().sample(n, generator=generator(0))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_distilled_model_remembers_its_steps_and_takes_no_others(k: int, tmp_path: Any) -> None:
    teacher, student = scoresde.oracle(toy.Moons(), scoresde.RectifiedFlow()), flow()
    scoresde.fit(
        student,
        scoresde.reflow(teacher, 50, progress=False),
        objective=scoresde.Distilled(k),
        steps=5,
        **QUIET,
    )
    scoresde.save(student, tmp_path / "model")
    plain = flow()
    plain.load_state_dict(
        student.state_dict()
    )  # the same weights, as a model that may be sampled at any levels
    loaded = scoresde.load(tmp_path / "model").eval()
    assert (loaded.outcome.name, loaded.default_solver, loaded.distilled_steps) == (
        "distilled",
        "ddim",
        k,
    )
    by_hand = scoresde.sample(
        plain, 9, solver="ddim", steps=k, spacing="time", generator=generator(1)
    )
    assert torch.equal(scoresde.sample(loaded, 9, generator=generator(1)), by_hand)
    assert torch.equal(
        scoresde.sample(loaded, 9, solver="ddim", steps=k, spacing="time", generator=generator(1)),
        by_hand,
    )
    assert len(scoresde.solve(loaded, 3, times=[j / k for j in range(k, -1, -1)]).t) == k + 1
    wrong: list[dict[str, Any]] = [
        {"solver": "adams"},
        {"solver": "ddim", "eta": 1.0},
        {"solver": "consistency"},
        {"steps": k + 1},
        {"spacing": "arc"},
        {"times": [1.0, 0.4, 0.0]},
        {"start": moons(2), "times": [0.0, 1.0]},
    ]
    for how in wrong:
        with pytest.raises(ValueError, match=rf"'ddim' with steps={k} and spacing='time'"):
            scoresde.solve(loaded, **how)
    for call in (
        scoresde.log_prob,
        scoresde.elbo,
        lambda sde, x: sde.velocity(x, 0.5),
        lambda sde, x: sde.score(x, 0.5),
    ):
        with pytest.raises(ValueError, match=rf"steps={k}"):
            call(loaded, moons(2))
