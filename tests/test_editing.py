"""Solves that begin between noise and data, data noised and solved back, paths between samples."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import MIXTURES, ORDINARY, PROCESSES, at, generator, some
from scoresde import SOLVERS, ScoreSDE, toy
from scoresde.guidance.editing import great_circle
from scoresde.model.outcomes import distilled
from scoresde.processes.spacings import SPACINGS, grid

TIGHT: dict[str, Any] = {"solver": "dop853", "rtol": 1e-9, "atol": 1e-9}
EIGHT = MIXTURES["8 Gaussians"]
OURS = [name for name in ORDINARY if ":" not in name]


def noised(process: scoresde.Process, t0: float, n: int, seed: int = 1) -> Tensor:
    """Draws from the exact p_t0 of 8 Gaussians."""
    return EIGHT.perturb(*at(process, t0)).sample(
        n, generator=generator(seed), dtype=torch.float64
    )


def in_units() -> tuple[ScoreSDE, Callable[[Tensor], Tensor]]:
    """8 Gaussians' exact score in units of another mean, scale and correlation, and the map."""
    sde = scoresde.oracle(toy.EightGaussians(1.0, 0.1), scoresde.VPSDE()).double()
    sde.mean.copy_(torch.tensor([100.0, -3.0]))
    sde.scale.copy_(torch.tensor([20.0, 0.5]))
    root = torch.tensor([[0.9, 0.3], [0.3, 0.9]], dtype=torch.float64)
    sde.root = root
    return sde, lambda z: sde.mean + sde.scale * (z.double() @ root.T)


# ------------------------------------------------------------------ times that begin below 1


@pytest.mark.parametrize(
    "name",
    some((name for name in PROCESSES if not name.startswith("test")), "vp", "ve", "rectified"),
)
def test_a_solve_from_between_is_the_tail_of_the_whole_solve(name: str) -> None:
    """At a tolerance of 1e-9, at every time asked for, and back."""
    process = scoresde.PROCESSES.build(name)
    sde = scoresde.oracle(EIGHT, process).double()
    whole = scoresde.solve(sde, 20, generator=generator(), times=[1.0, 0.35, 0.1, 0.0], **TIGHT)
    tail = scoresde.solve(sde, start=whole.x[1], times=[0.35, 0.1, 0.0], **TIGHT)
    assert tail.t.tolist() == [0.35, 0.1, 0.0]
    torch.testing.assert_close(tail.x, whole.x[1:], rtol=0, atol=2e-6)
    back = scoresde.solve(sde, start=tail.x[-1], times=[0.0, 0.1, 0.35], **TIGHT)
    torch.testing.assert_close(back.x.flip(0), tail.x, rtol=0, atol=2e-6)


@functools.cache
def from_between() -> tuple[ScoreSDE, Tensor, Tensor]:
    """A model, states at t = 0.4, and where a tight solve takes them."""
    process = scoresde.VPSDE()
    sde = scoresde.oracle(EIGHT, process).double()
    x = noised(process, 0.4, 300)
    return sde, x, scoresde.solve(sde, start=x, times=(0.4, 0.0), **TIGHT).x[-1]


@pytest.mark.parametrize("solver", OURS)
def test_every_solver_works_from_between(solver: str) -> None:
    """From the exact p_t0 to the data's law: the permutation test has p > 2e-3, a false alarm once
    in 500 solvers. Deterministic ones end where a tight solve does.
    """
    sde, x, end = from_between()
    made = SOLVERS.build(solver)
    steps: dict[str, Any] = {} if made.steps is None else {"steps": 60}
    found = scoresde.solve(
        sde, start=x, times=(0.4, 0.0), solver=solver, generator=generator(3), **steps
    )
    truth = EIGHT.sample(300, generator=generator(4), dtype=torch.float64)
    p = scoresde.energy_test(found.x[-1], truth, permutations=999, generator=generator(5))
    assert p > 2e-3
    if made.steps is not None and solver != "restart":
        assert set(found.accepted.tolist()) == {60}
    if not made.stochastic:
        assert float((found.x[-1] - end).norm(dim=1).median()) < 0.03


@pytest.mark.parametrize("spacing", [name for name in SPACINGS if name != "ddpm"])
def test_grids_have_the_steps_that_were_asked_for(spacing: str) -> None:
    """Peers cut a grid from 1 and round the number of steps that are left, to 0 for small t0."""
    for name, begin, steps in itertools.product(PROCESSES, (1.0, 0.9, 0.3, 1e-3), (1, 2, 7)):
        times = grid(scoresde.PROCESSES.build(name), steps, spacing, begin)
        assert len(times) == steps + 1
        assert (float(times[0]), float(times[-1])) == (begin, 0.0)
        assert bool((times.diff() < 0).all())


@pytest.mark.parametrize("predict", ["edm", "x0"])
def test_a_small_time_still_has_steps(predict: str) -> None:
    sde = ScoreSDE(scoresde.VPSDE(), Still(), shape=(2,), predict=predict).double()
    x = torch.ones(3, 2, dtype=torch.float64)
    t = float(sde.process.time(1.2e-4))
    found = scoresde.solve(sde, start=x, times=(t, 0.0), solver="ddim", steps=3)
    assert int(found.nfe.min()) >= 1
    assert bool(found.x.isfinite().all())


class Still(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_times_that_cannot_be_are_refused() -> None:
    sde = scoresde.oracle(EIGHT, scoresde.VPSDE())
    x = torch.zeros(2, 2)
    for times in ((1.2, 0.0), (0.0, 0.0), (0.5,), (0.5, 0.1), (0.2, 0.5, 0.0)):
        with pytest.raises(ValueError, match="times "):
            scoresde.solve(sde, start=x, times=times)
    with pytest.raises(ValueError, match="below 1 with start= alone"):
        scoresde.solve(sde, 2, times=(0.5, 0.0))
    with pytest.raises(ValueError, match="nothing is left to solve"):
        scoresde.solve(scoresde.oracle(EIGHT, scoresde.VESDE()), start=x, times=(1e-300, 0.0))
    with pytest.raises(ValueError, match="spacing='ddpm'"):
        scoresde.solve(sde, start=x, times=(0.5, 0.0), solver="ddim", steps=10, spacing="ddpm")
    steps = ScoreSDE(scoresde.VPSDE(), Still(), shape=(2,), outcome=distilled(2))
    for refused in (
        lambda: scoresde.solve(steps, start=x, times=(0.5, 0.0)),
        lambda: scoresde.edit(steps, x, 0.5),
        lambda: scoresde.edit(steps, x, 1.0),
    ):
        with pytest.raises(ValueError, match="has learnt the steps of 'ddim'"):
            refused()


# ------------------------------------------------------------------ edit


@pytest.mark.parametrize("solver", ["adams", "dpmpp_2m_sde"])
def test_data_of_the_law_keep_it(solver: str) -> None:
    """In odd units, at three times: p > 2e-3, a false alarm once in 167 runs of the three. And
    what is coarser than the noise stays.
    """
    sde, move = in_units()
    mixture = toy.EightGaussians(1.0, 0.1)
    x, truth = (move(mixture.sample(400, generator=generator(s))) for s in (0, 1))
    inverse = torch.linalg.inv(move(torch.eye(2).double()) - move(torch.zeros(2, 2).double()))
    gaps = []
    for t0 in (0.1, 0.4, 1.0):
        found = scoresde.edit(sde, x, t0, solver=solver, generator=generator(2))
        flat = (found - sde.mean) @ inverse, (truth - sde.mean) @ inverse
        assert scoresde.energy_test(*flat, permutations=999, generator=generator(3)) > 2e-3
        gaps.append(float(((found - x) @ inverse).norm(dim=1).median()))
    assert gaps[0] < 0.35 < gaps[1] < gaps[2]


def test_an_edit_of_a_gaussian_in_closed_form() -> None:
    """Of N(0, s²·I) under an ODE: α·x0 + σ·ε shrunk by s/√(α²s² + σ²), so that its correlation
    with x0 is α·s/√(α²s² + σ²). 4,000 draws: 5 standard deviations.
    """
    process = scoresde.RectifiedFlow()
    mixture = toy.GaussianMixture(torch.zeros(1, 1), 0.5)
    sde = scoresde.oracle(mixture, process).double()
    x = mixture.sample(4000, generator=generator(), dtype=torch.float64)
    found = scoresde.edit(sde, x, 0.3, generator=generator(1))
    alpha, sigma = at(process, 0.3)
    wanted = alpha * 0.5 / math.hypot(alpha * 0.5, sigma)
    got = float(torch.corrcoef(torch.cat([x, found], 1).T)[0, 1])
    assert abs(got - wanted) < 5 * (1 - wanted**2) / math.sqrt(4000)
    assert abs(float(found.std()) / 0.5 - 1) < 5 / math.sqrt(2 * 4000)


def test_an_edit_depends_on_a_sample_and_its_number_alone() -> None:
    sde, move = in_units()
    x = move(toy.EightGaussians(1.0, 0.1).sample(70, generator=generator()).double())

    def edited(x: Tensor, **how: Any) -> Tensor:
        return scoresde.edit(
            sde, x, 0.3, solver="ancestral", steps=5, generator=generator(7), **how
        )

    whole = edited(x)
    torch.testing.assert_close(edited(x[:66]), whole[:66], rtol=0, atol=1e-9)
    torch.testing.assert_close(edited(x, batch_size=9), whole, rtol=0, atol=1e-9)


def test_edits_that_cannot_be_are_refused() -> None:
    sde = scoresde.oracle(EIGHT, scoresde.RectifiedFlow())
    x = torch.zeros(2, 2)
    for t0 in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="t0 is between 0 and 1"):
            scoresde.edit(sde, x, t0)
    with pytest.raises(TypeError, match="t0 is a number"):
        scoresde.edit(sde, x, True)
    with pytest.raises(ValueError, match="x has shape"):
        scoresde.edit(sde, torch.zeros(2, 3), 0.5)
    coupled = ScoreSDE(scoresde.RectifiedFlow(), Still(), shape=(2,), outcome="velocity")
    with pytest.raises(ValueError, match="other paths, which have no score"):
        scoresde.edit(coupled, x, 0.5)


# ------------------------------------------------------------------ interpolate


def test_the_great_circle() -> None:
    """Norms in equal steps and angles in equal steps; a straight line where there is no circle."""
    a, b = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    points = great_circle(a, b, torch.linspace(0, 1, 5))[:, 0]
    torch.testing.assert_close(points.norm(dim=1), torch.linspace(2, 4, 5))
    angles = torch.atan2(points[:, 1], points[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 5))
    for other in (3 * a, -a):
        middle = great_circle(a, other, torch.tensor([0.5]))[0]
        torch.testing.assert_close(middle, 0.5 * (a + other))


def test_a_path_between_samples_of_a_gaussian() -> None:
    """The latents of a Gaussian are its standardized points, so that its paths are great circles
    there. Its ends are the samples as they are.
    """
    torch.manual_seed(0)
    rows = torch.randn(2000, 3).double() @ torch.tensor(
        [[1.0, 0.0, 0.0], [5.0, 3.0, 0.0], [0.1, 0.0, 0.2]], dtype=torch.float64
    ).T + torch.tensor([3.0, -70.0, 0.0], dtype=torch.float64)
    sde = scoresde.build("ve", "mlp", shape=(3,)).standardize(rows).eval().double()
    a, b = rows[:4], rows[4:8]
    found = scoresde.interpolate(sde, a, b, 5, **TIGHT)
    assert torch.equal(found[0], a)
    assert torch.equal(found[-1], b)
    circle = great_circle(sde.from_data(a), sde.from_data(b), torch.linspace(0, 1, 5))
    wanted = torch.stack([sde.to_data(z) for z in circle])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
    two = scoresde.interpolate(sde, a, b, 2)
    assert torch.equal(two, torch.stack([a, b]))


def test_paths_under_conditions_a_row_each() -> None:
    """Each pair under its own condition, and no other's."""
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,), classes=3, width=16).eval()
    with torch.no_grad():
        for p in sde.net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    a, b = torch.randn(2, 3, 2, generator=generator())
    y = torch.tensor([0, 2, 1])
    how: dict[str, Any] = {"solver": "rk4", "steps": 10}
    whole = scoresde.interpolate(sde.given(y=y), a, b, 4, **how)
    for i in range(3):
        one = sde.given(y=y[i : i + 1])
        alone = scoresde.interpolate(one, a[i : i + 1], b[i : i + 1], 4, **how)
        torch.testing.assert_close(alone[:, 0], whole[:, i], rtol=0, atol=1e-5)


def test_guided_models_decode_what_they_encode() -> None:
    """β = 2, where inverting with the conditional model alone fails."""
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,), classes=3, width=16, depth=2).double()
    y = torch.arange(3).repeat(200)
    x = torch.randn(600, 2, generator=generator()).double() * 0.3 + y[:, None]
    scoresde.fit(sde, x, given={"y": y}, steps=60, progress=False)
    guided = scoresde.classifier_free(sde.given(y=y[:30]), 2.0)
    how = {"rtol": 1e-6, "atol": 1e-6}
    back = scoresde.decode(guided, scoresde.encode(guided, x[:30], **how), **how)
    torch.testing.assert_close(back, x[:30], rtol=0, atol=1e-4)
    ends = scoresde.interpolate(guided, x[:30], x[:30].flip(0), 3)
    assert bool(ends.isfinite().all())


def test_paths_that_cannot_be_are_refused() -> None:
    sde = scoresde.oracle(EIGHT, scoresde.VPSDE())
    x = torch.zeros(2, 2)
    for refused, error, why in (
        (lambda: scoresde.interpolate(sde, x, x[:1], 3), ValueError, "wanted as many"),
        (lambda: scoresde.interpolate(sde, x, x, 1), ValueError, "k is at least 2"),
        (lambda: scoresde.interpolate(sde, x, x, 3.0), TypeError, "k is an integer"),
        (lambda: scoresde.interpolate(sde, x, x, 3, solver="em"), ValueError, "stochastic"),
    ):
        with pytest.raises(error, match=why):
            refused()
