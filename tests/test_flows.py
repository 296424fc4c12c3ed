"""Flows of coupled pairs, trained: straighter than before, and still densities. Small networks,
seeds fixed, wide margins.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import scoresde
from scoresde import CheckpointError, ScoreSDE
from scoresde.data.pairs import Pairs
from scoresde.data.stream import TrainingStream
from scoresde.metrics import energy_distance


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(seed: int = 0, **options: Any) -> ScoreSDE:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return scoresde.build(
            "rectified",
            "mlp",
            shape=(2,),
            **({"width": 48, "depth": 2, "fourier": 16, "blur": False} | options),
        )


def fit(sde: ScoreSDE, data: Any, steps: int, **options: Any) -> ScoreSDE:
    scoresde.fit(
        sde, data, steps=steps, batch_size=256, generator=generator(1), progress=False, **options
    )
    return sde


BLOBS = scoresde.toy.GaussianMixture([[-2.0, 0.0], [2.0, 0.5], [0.0, 2.5]], 0.5)


@pytest.fixture(scope="module")
def flow() -> ScoreSDE:
    return fit(build(), BLOBS, 1000)


@pytest.fixture(scope="module")
def reflowed(flow: ScoreSDE) -> ScoreSDE:
    pairs = scoresde.reflow(
        flow, 8000, generator=generator(2), rtol=1e-3, atol=1e-3, progress=False
    )
    return fit(copy.deepcopy(flow), pairs, 1500)


@pytest.mark.slow  # the page on flows asserts it, too
def test_reflow_makes_paths_straight_and_one_step_enough(
    flow: ScoreSDE, reflowed: ScoreSDE
) -> None:
    """With these seeds S falls to a fifteenth and E² to a fifth."""
    assert (flow.outcome.name, reflowed.outcome.name) == ("score", "velocity")
    before, after = (
        scoresde.straightness(sde, 500, generator=generator(3)) for sde in (flow, reflowed)
    )
    assert after.straightness.value < 0.2 * before.straightness.value
    assert after.path_energy.value < before.path_energy.value
    truth = BLOBS.sample(1500, generator=generator(4))
    one = [
        energy_distance(
            truth, scoresde.sample(sde, 1500, solver="ddim", steps=1, generator=generator(5))
        )
        for sde in (flow, reflowed)
    ]
    assert float(one[1]) < 0.4 * float(one[0])


@pytest.mark.slow
def test_a_distilled_model_jumps_and_has_nothing_else(flow: ScoreSDE, reflowed: ScoreSDE) -> None:
    pairs = scoresde.reflow(
        reflowed, 4000, generator=generator(6), rtol=1e-3, atol=1e-3, progress=False
    )
    student = fit(copy.deepcopy(reflowed), pairs, 600, objective="distilled", lr=1e-3)
    assert student.distilled_steps == 1
    x1 = torch.randn(2000, 2, generator=generator(7)) * student.scale + student.mean
    there = scoresde.decode(reflowed, x1)
    gap = (scoresde.decode(student, x1, solver="ddim", steps=1) - there).norm(dim=1)
    assert (
        gap.median() < 0.15 * there.std()
    )  # not the mean: where the map is steep, few steps do not bring it far
    assert torch.equal(
        scoresde.sample(student, 5, steps=1, generator=generator()),
        scoresde.sample(student, 5, steps=1, generator=generator()),
    )
    for call in (
        lambda: scoresde.sample(student, 2, solver="adams"),
        lambda: scoresde.sample(student, 2, solver="ancestral"),
        lambda: scoresde.log_prob(student, x1),
        lambda: scoresde.elbo(student, x1),
        lambda: student.score(x1, 0.5),
    ):
        with pytest.raises(ValueError, match="has learnt the steps of 'ddim' with steps=1"):
            call()


def mass_and_entropy(
    sde: ScoreSDE, low: float = -8.0, high: float = 8.0, n: int = 61
) -> tuple[float, float]:
    """∫ p and −∫ p·log p by the trapezoidal rule, whose error for a smooth density that ends
    within the box is tiny.
    """
    axis = torch.linspace(low, high, n, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_p = scoresde.log_prob(sde, grid, rtol=1e-4, atol=1e-4)
    cell = float(axis[1] - axis[0]) ** 2
    return float(log_p.exp().sum()) * cell, float(-(log_p.exp() * log_p).sum()) * cell


@pytest.mark.parametrize(
    "which",
    [
        pytest.param("reflowed", marks=pytest.mark.slow),
        pytest.param("between", marks=pytest.mark.slow),
        "between by transport",
    ],
)
def test_the_density_of_a_flow_of_coupled_pairs_integrates_to_one(
    which: str, request: pytest.FixtureRequest
) -> None:
    """And its entropy by quadrature is that by samples, to 4.5 standard errors: a false alarm in
    10⁵ seeds.
    """
    if which == "reflowed":
        sde: ScoreSDE = request.getfixturevalue("reflowed")
    else:
        sde = build(fourier=0)
        sde.source = scoresde.toy.GaussianMixture([[-3.0, -2.0], [1.5, 3.0]], 0.7)
        fit(sde, BLOBS, 150, coupling="minibatch_ot" if "transport" in which else "independent")
        assert sde.outcome.name == "velocity"
    sde = copy.deepcopy(sde).double()
    mass, entropy = mass_and_entropy(sde)
    assert abs(mass - 1) < 1e-3
    _, log_p = scoresde.sample_and_log_prob(sde, 1500, generator=generator(8))
    assert abs(float(log_p.mean()) + entropy) < 4.5 * float(log_p.std()) / 1500**0.5 + 1e-3


def test_transport_makes_paths_between_two_laws_straighter() -> None:
    found = {}
    for coupling in ("independent", "minibatch_ot"):
        sde = build()
        sde.source = scoresde.toy.EightGaussians()
        found[coupling] = scoresde.straightness(
            fit(sde, BLOBS, 200, coupling=coupling), 500, generator=generator(9)
        )
    assert found["minibatch_ot"].curvature.value < 0.3 * found["independent"].curvature.value
    assert found["minibatch_ot"].path_energy.value < found["independent"].path_energy.value


def test_pairs_are_learnt_as_they_are(tmp_path: Path) -> None:
    """x0 = x1 + (3, 1): one straight velocity, which a few steps find; and latents are part of
    what a run is known by.
    """
    x1 = torch.randn(500, 2, generator=generator())
    shift = torch.tensor([3.0, 1.0])
    sde = build(fourier=0, depth=1)
    with pytest.warns(UserWarning, match="a Gaussian of their mean and scale is assumed"):
        fit(sde, Pairs(x1 + shift, x1), 300)
    start = 0.5 * torch.randn(100, 2, generator=generator(1))
    torch.testing.assert_close(scoresde.decode(sde, start), start + shift, rtol=0, atol=0.15)
    how: dict[str, Any] = {
        "checkpoints": scoresde.Checkpoints(tmp_path, resume=True),
        "progress": False,
        "batch_size": 16,
        "steps": 4,
    }
    sourced = build()
    sourced.source = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    scoresde.fit(sourced, Pairs(x1 + shift, x1), **how)
    with pytest.raises(CheckpointError, match="data="):
        scoresde.fit(sourced, Pairs(x1 + shift, -x1), **how)


def test_a_student_has_its_teachers_units_and_not_those_of_other_pairs(
    flow: ScoreSDE, tmp_path: Path
) -> None:
    student, x1 = build(), torch.randn(9, 2)
    scoresde.reflow(flow, 50, out=tmp_path, progress=False)
    fit(student, Pairs.open(tmp_path)[:40], 2)
    assert torch.equal(student.mean, flow.mean)
    assert torch.equal(student.scale, flow.scale)
    with pytest.raises(ValueError, match="begin in another distribution"):
        fit(student, Pairs(torch.randn(100, 2), 5 + torch.randn(100, 2)), 2)
    with pytest.raises(ValueError, match="RectifiedFlow"):
        fit(scoresde.build("vp", "mlp", shape=(2,)), Pairs(x1, x1), 1)


def test_pairs_in_a_folder_train_the_same_model(tmp_path: Path, flow: ScoreSDE) -> None:
    inside = scoresde.reflow(flow, 300, generator=generator(), progress=False)
    outside = scoresde.reflow(
        flow, 300, generator=generator(), out=tmp_path / "pairs", progress=False
    )
    trained = [
        fit(build(), pairs, 20) for pairs in (inside, outside, Pairs.open(tmp_path / "pairs"))
    ]
    for other in trained[1:]:
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                trained[0].state_dict().values(), other.state_dict().values(), strict=True
            )
        )


def test_latents_stay_with_their_samples() -> None:
    x = torch.arange(50.0)[:, None].expand(-1, 2).contiguous()
    sde = build()
    y = torch.arange(50)
    source = TrainingStream(Pairs(x, -x, {"y": y}), build(classes=50), 8, seed=3)
    for rows, start, condition, _ in (next(it) for it in [source.batches(0)] for _ in range(3)):
        assert isinstance(start, Tensor)
        assert torch.equal(rows, -start)
        assert torch.equal(rows[:, 0].long(), condition["y"])
    assert source.paired
    assert sde.source is None
