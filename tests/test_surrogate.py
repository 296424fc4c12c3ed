"""Posteriors that learn from pairs of a learnt simulator, where those that were given are few."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import scoresde
from scoresde.inference import pairs, surrogate
from scoresde.inference.pairs import Pairs, Training
from scoresde.inference.surrogate import Simulator

BOX = (-torch.ones(2), torch.ones(2))
SHORT: dict[str, Any] = {"steps": 30, "batch_size": 64, "progress": False}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs are too few, and networks and checks are small."""
    monkeypatch.setattr(surrogate, "LATE", 0)
    monkeypatch.setattr("scoresde.training.validation.FIXED_EXAMPLES", 256)
    monkeypatch.setattr(pairs, "build", functools.partial(scoresde.build, width=32))


def crescent(theta: Tensor, chance: torch.Generator) -> Tensor:
    """Of radius 0.3 ± 0.03, to the right of theta, (N, 2)."""
    angle = math.pi * (torch.rand(len(theta), generator=chance) - 0.5)
    radius = 0.3 + 0.03 * torch.randn(len(theta), generator=chance)
    return theta + torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def crescents(n: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    theta = 2 * torch.rand(n, 2, generator=g) - 1
    return theta, crescent(theta, g)


def simulator(theta: Tensor, x: Tensor, steps: int = 1) -> Simulator:
    g = torch.Generator().manual_seed(0)
    divided = Pairs.divided(theta, x, 0.05, g)
    how = {"batch_size": 64, "progress": False}
    return Simulator(divided, Training(steps, 2e-3, 200.0, 3, how, True), g)


def test_a_linear_gaussian_simulator_is_learnt_without_steps() -> None:
    """Its coordinates are exact; means and covariances within five standard errors of 4,000."""
    g = torch.Generator().manual_seed(0)
    theta = torch.rand(4000, 2, generator=g)
    slope = torch.tensor([[1.0, -2.0, 0.5], [0.0, 300.0, 0.1]])
    noise = torch.tensor([[0.3, 0.0, 0.0], [20.0, 30.0, 0.0], [0.05, 0.0, 0.05]])
    x = theta @ slope + torch.randn(4000, 3, generator=g) @ noise.T
    found = simulator(theta, x)
    drawn = found.sample(torch.tensor([[0.2, 0.7]]).expand(4000, 2), g)
    spread = noise.square().sum(1).sqrt()
    off = (drawn - torch.tensor([0.2, 0.7]) @ slope) / spread
    # the regression on 3,800 pairs has errors of its own, at most twice as large
    assert float(off.mean(0).abs().max()) < 10 / math.sqrt(4000)
    exact = noise @ noise.T / torch.outer(spread, spread)
    assert float((torch.cov(off.T) - exact).abs().max()) < 10 * math.sqrt(2 / 4000)


def test_counts_stay_counts_constants_stay_and_nothing_leaves_the_range() -> None:
    g = torch.Generator().manual_seed(0)
    theta = torch.rand(1000, 2, generator=g)
    counts = torch.poisson(5 * theta[:, :1], generator=g)
    smooth = theta[:, 1:] + 0.1 * torch.randn(1000, 1, generator=g)
    coin = torch.bernoulli(theta[:, :1], generator=g)
    x = torch.cat([counts, torch.full((1000, 1), 7.0), smooth, coin], 1)
    found = simulator(theta, x)
    drawn = found.sample(theta.repeat(5, 1), g)
    assert set(drawn[:, 0].tolist()) <= set(counts[:, 0].tolist())
    assert bool((drawn[:, 1] == 7).all())
    assert set(drawn[:, 3].tolist()) == {0, 1}
    assert abs(float(drawn[:, 3].mean() - coin.mean())) < 0.1
    assert float(drawn[:, 2].min()) >= float(smooth.min())
    assert float(drawn[:, 2].max()) <= float(smooth.max())
    assert len(drawn[:, 2].unique()) > 4000
    assert abs(float(drawn[:, 0].mean() - counts.mean())) < 0.2  # five standard errors


@pytest.mark.usefixtures("always")
def test_more_pairs_of_the_true_simulator_replace_the_posterior(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mean log p of fresh pairs rises by a fifth of a nat at least; seen: 0.93."""
    monkeypatch.setattr(Simulator, "__init__", lambda *_: None)
    monkeypatch.setattr(Simulator, "sample", lambda _, theta, chance: crescent(theta, chance))
    theta, x = crescents(100, 0)
    fresh, seen = crescents(100, 1)
    how: dict[str, Any] = {**SHORT, "steps": 60, "seed": 0}
    alone = scoresde.posterior(BOX, theta, x, surrogate=False, **how)
    both = scoresde.posterior(BOX, theta, x, **how)
    assert alone.surrogate_pairs == 0
    assert both.surrogate_pairs == 20 * 90
    assert alone.history is not None
    assert both.history is not None
    assert min(both.history.validation) < min(alone.history.validation)
    gain = both.log_prob(fresh, x=seen, steps=12) - alone.log_prob(fresh, x=seen, steps=12)
    assert float(gain.mean()) > 0.2
    assert "1,800 surrogate pairs" in repr(both)


@pytest.mark.usefixtures("always")
def test_wrong_or_failed_simulators_replace_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Simulator, "__init__", lambda *_: None)
    monkeypatch.setattr(Simulator, "sample", lambda _, theta, chance: -crescent(theta, chance))
    theta, x = crescents(100, 0)
    alone = scoresde.posterior(BOX, theta, x, seed=0, surrogate=False, **SHORT)
    both = scoresde.posterior(BOX, theta, x, seed=0, **SHORT)
    assert both.surrogate_pairs == 0
    points, seen = crescents(20, 2)
    before = alone.log_prob(points, x=seen, steps=8)
    assert torch.equal(both.log_prob(points, x=seen, steps=8), before)

    def fail(*_: Any) -> None:
        raise scoresde.TrainingError("the loss is nan")

    monkeypatch.setattr(Simulator, "__init__", fail)
    with pytest.warns(UserWarning, match="simulator failed: the loss is nan"):
        both = scoresde.posterior(BOX, theta, x, seed=0, **SHORT)
    assert torch.equal(both.log_prob(points, x=seen, steps=8), before)


@pytest.mark.usefixtures("always")
def test_no_simulator_is_learnt_where_it_can_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """With failures, scores, many numbers, no held-out pairs, enough pairs, or another network."""

    class Learnt(Exception):
        pass

    def learn(*_: Any) -> None:
        raise Learnt

    monkeypatch.setattr("scoresde.inference.recipe.retrained", learn)
    theta, x = crescents(300, 0)
    how: dict[str, Any] = {**SHORT, "seed": 0, "steps": 2}
    with pytest.raises(Learnt):
        scoresde.posterior(BOX, theta, x, **how)
    failed = x.clone()
    failed[7] = math.nan
    with pytest.warns(UserWarning, match="1 of 300 simulations"):
        scoresde.posterior(BOX, theta, failed, **how)
    normal = MultivariateNormal(torch.zeros(2), torch.eye(2))
    found = scoresde.posterior(normal, theta, theta.exp() ** 30, **how)
    assert found.coordinates is not None
    assert len(found.coordinates.numbers["heavy"])
    wide = torch.cat([x, torch.randn(300, 99, generator=torch.Generator().manual_seed(0))], 1)
    scoresde.posterior(BOX, theta, wide, **how)
    scoresde.posterior(BOX, theta, x, **{**how, "held_out": 0})
    monkeypatch.setattr(surrogate, "LATE", how["steps"] + 1)
    scoresde.posterior(BOX, theta, x, **how)
    monkeypatch.setattr(surrogate, "LATE", 0)
    sde = scoresde.build("rectified", "resmlp", shape=(2,), vector=2, width=16)
    scoresde.posterior(BOX, theta, x, sde=sde, **how)
    with pytest.raises(TypeError, match="surrogate"):
        scoresde.posterior(BOX, theta, x, **{**how, "surrogate": "yes"})


@pytest.mark.usefixtures("always")
def test_it_is_repeated_by_a_seed_resumed_and_saved(tmp_path: Path) -> None:
    theta, x = crescents(150, 0)
    points, seen = crescents(20, 1)
    how: dict[str, Any] = {**SHORT, "seed": 3, "steps": 50, "batch_size": 128}
    found = []
    for resume in (False, True):
        kept = scoresde.Checkpoints(tmp_path / "run", every=20, resume=resume)
        state = torch.get_rng_state()
        post = scoresde.posterior(BOX, theta, x, checkpoints=kept, **how)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(post.log_prob(points, x=seen, steps=8))
    assert torch.equal(found[0], found[1])
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"simulator", "surrogate"}
    again = scoresde.load_posterior(post.save(tmp_path / "post"))
    assert again.surrogate_pairs == post.surrogate_pairs == 20 * 140
    assert torch.equal(again.log_prob(points, x=seen, steps=8), found[0])


@pytest.mark.slow
def test_few_pairs_gain_by_a_learnt_simulator() -> None:
    """The mean log p of fresh pairs rises by a fifth of a nat at least."""
    theta, x = crescents(300, 0)
    fresh, seen = crescents(1000, 1)
    how: dict[str, Any] = {"steps": 1500, "progress": False, "seed": 0}
    alone = scoresde.posterior(BOX, theta, x, surrogate=False, **how)
    both = scoresde.posterior(BOX, theta, x, **how)
    gain = both.log_prob(fresh, x=seen, steps=16) - alone.log_prob(fresh, x=seen, steps=16)
    assert float(gain.mean()) > 0.2


def test_a_longer_training_has_folders_within_and_no_log(tmp_path: Path) -> None:
    how = {"checkpoints": tmp_path, "log": "run.jsonl", "batch_size": 8}
    longer = Training(100, 2e-3, 200.0, 3, how, True).within("more").longer(3, 4)
    assert (longer.steps, longer.patience) == (300, 12)
    assert longer.how == {"checkpoints": scoresde.Checkpoints(tmp_path / "more"), "batch_size": 8}
    assert Training("auto", 2e-3, 200.0, 3, {}, True).longer(3, 4).steps == "auto"


def test_values_are_rounded_to_those_that_came() -> None:
    values = torch.tensor([0.0, 1.0, 4.0])
    x = torch.tensor([-9.0, 0.0, 0.2, 0.8, 2.4, 2.6, 4.0, 9.0])
    assert surrogate._nearest(x, values).tolist() == [0, 0, 0, 1, 1, 4, 4, 4]
    assert surrogate._nearest(x, values[:1]).tolist() == [0] * 8
    found = surrogate._repeated(torch.tensor([3.0, 1.0, 1.0, 1.0]))
    assert found is not None
    assert found.tolist() == [1, 3]
    assert surrogate._repeated(torch.tensor([3.0, 1.0, 2.0, 1.0])) is None


@pytest.mark.slow
@pytest.mark.usefixtures("always")
def test_theta_narrower_than_the_prior_keeps_the_first_posterior() -> None:
    """The pairs of the prior are of another posterior."""
    g = torch.Generator().manual_seed(0)
    prior = MultivariateNormal(torch.zeros(2), 1e4 * torch.eye(2))
    theta = torch.randn(150, 2, generator=g)
    x = theta + torch.randn(150, 2, generator=g)
    how: dict[str, Any] = {**SHORT, "seed": 0}
    alone = scoresde.posterior(prior, theta, x, surrogate=False, **how)
    both = scoresde.posterior(prior, theta, x, **how)
    fresh = torch.randn(200, 2, generator=g)
    seen = fresh + torch.randn(200, 2, generator=g)
    loss = alone.log_prob(fresh, x=seen, steps=8) - both.log_prob(fresh, x=seen, steps=8)
    assert float(loss.mean()) < 0.1
