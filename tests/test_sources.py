"""Models whose paths begin in another law than a Gaussian."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import scoresde
from conftest import generator
from scoresde import toy


def flow(net: str = "mlp", **options: Any) -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build("rectified", net, shape=(2,), width=16, **options)


def test_a_source_of_several_laws_is_refused_by_sample_and_log_prob() -> None:
    sde = flow()
    sde.source = torch.distributions.Normal(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="Independent"):
        scoresde.sample_and_log_prob(sde, 2)


class Still(nn.Module):
    """Says that nothing moves."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0 * x


@pytest.mark.parametrize("given", [True, False])
def test_outside_of_a_bounded_source_there_is_no_density(given: bool) -> None:
    """A network that says 0 leaves all states where they are, and so log p(x) is the source's."""
    square = torch.distributions.Independent(
        torch.distributions.Uniform(torch.zeros(2), 2 * torch.ones(2)), 1
    )
    sde = scoresde.ScoreSDE(
        scoresde.RectifiedFlow(), Still(), shape=(2,), outcome="velocity", source=square
    )
    sde.mean.fill_(0.5)
    sde.scale.fill_(3.0)
    x = torch.tensor([[0.5, 1.0], [2.5, 1.0], [1.5, 1.9], [-0.1, 0.1]])
    how = {"prior": square} if given else {}
    log_p = scoresde.log_prob(sde, x, **how)
    torch.testing.assert_close(
        log_p[[0, 2]], torch.full((2,), -2 * float(np.log(2))), rtol=1e-5, atol=1e-5
    )
    assert log_p[[1, 3]].tolist() == [-np.inf] * 2
    assert scoresde.log_prob(sde, x[1:2], **how).tolist() == [-np.inf]


def moons(n: int = 500) -> torch.Tensor:
    return toy.Moons().sample(n, generator=generator(0))


def test_a_refused_source_is_not_kept() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,))
    with pytest.raises(ValueError, match="RectifiedFlow"):
        sde.source = moons()
    assert sde.source is None


def test_a_source_can_be_taken_back() -> None:
    sde = flow()
    sde.source = toy.Moons()
    sde.source = None
    assert sde.outcome.name == "score"


QUIET: dict[str, Any] = {"progress": False, "batch_size": 32}


def test_a_run_is_not_resumed_with_another_source(tmp_path: Any) -> None:
    for shift in (0, 50):
        sde = flow()
        sde.source = moons() + shift
        if not shift:
            scoresde.fit(sde, moons(), steps=4, checkpoints=tmp_path / "run", **QUIET)
    again = scoresde.Checkpoints(tmp_path / "run", resume=True)
    with pytest.raises(scoresde.CheckpointError, match="source"):
        scoresde.fit(sde, moons(), steps=4, checkpoints=again, **QUIET)


def test_a_likelihood_says_that_the_source_was_not_saved(tmp_path: Any) -> None:
    sde = flow()
    sde.source = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    scoresde.save(sde, tmp_path / "model")
    with pytest.raises(ValueError, match="source") as caught:
        scoresde.log_prob(scoresde.load(tmp_path / "model"), moons(2))
    assert "saved" in str(caught.value)


class Empty(toy.Moons):
    """A law with a length, which is 0."""

    def __len__(self) -> int:
        return 0


def test_a_source_that_counts_as_false_is_saved(tmp_path: Any) -> None:
    sde = flow()
    sde.source = Empty()
    scoresde.save(sde, tmp_path / "model")
    assert scoresde.load(tmp_path / "model").source is not None


def test_entropic_plans_keep_the_law_of_the_source() -> None:
    """Each row of x1 is taken as often as any other, also where the iteration has not converged."""
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    x1 = rng.normal(size=(64, 784))
    x0 = np.sign(rng.normal(size=x1.shape)) * 0.9 + 0.2 * rng.normal(size=x1.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = scoresde.Sinkhorn().plan(x0, x1)
    np.testing.assert_allclose(plan.sum(0) * 64, 1, rtol=1e-9)
