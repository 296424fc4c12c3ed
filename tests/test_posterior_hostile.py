"""Posteriors from hostile priors, observations and records: supports, modes, what was edited."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_posterior import QUICK, UNIT, conjugate, small
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Gumbel,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform

import scoresde
from scoresde.inference.coordinates import Coordinates
from scoresde.inference.prior import as_prior, rebuild_prior
from scoresde.storage import records


def test_supports_of_joined_mixtures_are_those_of_each_parameter() -> None:
    low = torch.tensor([[0.0, 2.0], [10.0, 12.0]])
    parts = MixtureSameFamily(Categorical(torch.ones(2, 2)), Uniform(low, low + 1))
    prior = as_prior(Independent(parts, 1))
    theta = torch.tensor([[0.5, 10.5], [2.5, 10.5], [1.5, 10.5], [0.5, 11.5]])
    before = torch.get_rng_state()
    assert prior.contains(theta).tolist() == [True, True, False, False]
    assert torch.equal(torch.get_rng_state(), before)


def mapped(base: Distribution, *maps: Any) -> Distribution:
    return TransformedDistribution(base, list(maps))


ZERO, ONE, INF = torch.zeros(2), torch.ones(2), [math.inf] * 2
TRANSFORMED: dict[str, tuple[Distribution, list[float], list[float]]] = {
    "log-uniform": (
        Independent(mapped(Uniform(ZERO, ONE), ExpTransform()), 1),
        [1, 1],
        [math.e] * 2,
    ),
    "of a vector": (
        mapped(Independent(Uniform(ZERO, ONE), 1), AffineTransform(3, -2)),
        [1, 1],
        [3, 3],
    ),
    "logit-normal": (
        Independent(mapped(Normal(ZERO, ONE), SigmoidTransform()), 1),
        [0, 0],
        [1, 1],
    ),
    "two maps": (
        Independent(mapped(Normal(ZERO, ONE), SigmoidTransform(), AffineTransform(ONE, -2)), 1),
        [-1, -1],
        [1, 1],
    ),
    "correlated": (mapped(MultivariateNormal(ZERO, torch.eye(2)), ExpTransform()), [0, 0], INF),
    "log-normal": (Independent(LogNormal(ZERO, ONE), 1), [0, 0], INF),
    "Gumbel": (Independent(Gumbel(ZERO, ONE), 1), [-math.inf] * 2, INF),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_the_support_of_a_transformed_prior_is_what_the_maps_make_of_its_base(name: str) -> None:
    """Torch's own is that of the last map, and of a mixture that of no component."""
    law, low, high = TRANSFORMED[name]
    prior = as_prior(law)
    torch.testing.assert_close(prior.low, torch.tensor(low, dtype=torch.float64))
    torch.testing.assert_close(prior.high, torch.tensor(high, dtype=torch.float64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = law.sample((1000,))
    assert prior.contains(theta).all()
    torch.testing.assert_close(prior.log_prob(theta), law.log_prob(theta).double())
    outside = torch.full((1, 2), -2.0)
    assert prior.contains(outside).item() == (name == "Gumbel")


def test_an_observation_far_from_the_simulations_is_told_of() -> None:
    """And draws are in the box, however far a network says."""
    theta = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    for prior in (UNIT, MultivariateNormal(ZERO, torch.eye(2))):
        post = small(prior, theta, torch.cat([theta, ONE.expand(300, 2)[:, :1]], 1))
        post.sample((3,), x=torch.tensor([2.0, -1.0, 1.0]), **QUICK)
        with pytest.warns(UserWarning, match=r"x\[1\] = 9 lies far from the simulations"):
            draws = post.sample((3,), x=torch.tensor([1.0, 9.0, 1.0]), **QUICK)
        assert draws.isfinite().all()
        with pytest.warns(UserWarning, match=r"x\[2\] = 1\.1 lies far from"):
            post.sample((3,), x=torch.tensor([1.0, 0.5, 1.1]), **QUICK)


def test_the_mode_lies_in_the_support() -> None:
    """N(0, COV) peaks between two pieces; in a box of float64 rounding leaves nothing outside."""
    low = torch.tensor([[-2.0, -2.0], [0.4, 0.3]])
    pieces = MixtureSameFamily(Categorical(torch.ones(2)), Independent(Uniform(low, low + 1.7), 1))
    g = torch.Generator().manual_seed(0)
    post = conjugate(pieces)
    found = post.map(torch.zeros(2), draws=200, steps=5, generator=g, **QUICK)
    assert post._prior.contains(found)
    edge = torch.tensor([0.1, 0.3], dtype=torch.float64)
    post = conjugate((-edge, edge))
    post.sde.float()
    found = post.map(torch.tensor([9.0, 9.0]), draws=500, steps=5, generator=g, **QUICK)
    assert found.dtype == torch.float32
    assert post._prior.contains(found)
    assert torch.allclose(found.abs(), edge.float(), atol=1e-3)
    assert post.map(torch.zeros(0, 2)).shape == (0, 2)


def test_outside_what_was_learnt_a_wider_prior_has_no_density(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    theta = torch.rand(100, 2, generator=g)
    folder = small(UNIT, theta, theta + 0.1).save(tmp_path / "post")
    wide = scoresde.load_posterior(folder, (-torch.ones(2), 2 * torch.ones(2)))
    points = torch.tensor([[0.5, 1.5], [-0.5, 0.5], [0.5, 0.5]])
    assert wide.log_prob(points, x=torch.ones(2), **QUICK).isfinite().tolist() == [0, 0, 1]


def test_a_box_too_narrow_for_the_dtype_is_refused() -> None:
    low = torch.tensor([1e6, 0.0], dtype=torch.float64)
    box = (low, low + torch.tensor([1e-2, 1.0], dtype=torch.float64))
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=1, width=8)
    with pytest.raises(ValueError, match=r"parameters \[0\] are too narrow for float32"):
        scoresde.Posterior(sde, box)
    found = scoresde.Posterior(sde.double(), box)._prior.nearest(
        torch.tensor([[0.0, 2.0]]).double()
    )
    assert torch.equal(found, torch.stack([box[0][:1], box[1][1:]], 1))


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 4)

    def forward(self, series: Tensor) -> Tensor:
        out: Tensor = self.map(series.mean(2))
        return out


def test_observations_of_any_shape_go_through_a_network_of_the_users() -> None:
    g = torch.Generator().manual_seed(0)
    theta = torch.rand(60, 2, generator=g)
    x = theta.mean(1)[:, None, None] + torch.randn(60, 3, 5, generator=g)
    sde = scoresde.build("rectified", "resmlp", shape=(2,), width=8, vector=4, embed=Summed())
    post = scoresde.posterior(UNIT, theta, x, sde=sde, steps=3, progress=False, generator=g)
    assert post.condition == "vector"
    together = post.log_prob(theta[:2], x=x[:2])
    alone = torch.stack([post.log_prob(theta[i], x=x[i]) for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-4)
    with pytest.raises(ValueError, match=r"wanted \(3, 5\), one observation"):
        post.sample((2,), x=x[0, :2])


def test_the_held_out_share_is_the_only_one() -> None:
    g = torch.Generator().manual_seed(0)
    theta = torch.rand(100, 2, generator=g)
    for share, steps in ((0, 7), (0.2, 251)):
        history = small(UNIT, theta, theta, held_out=share, steps=steps).history
        assert history is not None
        assert history.held_out == []
        assert history.step[-1] == steps
        assert bool(history.validation) is (share > 0)
    for name in ("validation", "given"):
        with pytest.raises(TypeError, match=f"posterior has no argument '{name}'"):
            small(UNIT, theta, theta, **{name: None})


@pytest.mark.parametrize(
    "numbers",
    [
        {"family": "box", "low": [0, 0, 0], "high": [1, 1]},
        {"family": "box", "low": [1, 1], "high": [0, 0], "validate_args": 0},
        {"family": "box", "low": [-1e39, 0], "high": [1e39, 1]},
        {"family": "box", "low": [10**400, 0], "high": [1, 1]},
        {"family": "normal", "loc": [0, 0]},
    ],
)
def test_an_edited_prior_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(scoresde.CheckpointError, match="holds no prior"):
        rebuild_prior({"dtype": "float32", **numbers}, "posterior.json")


def test_edited_coordinates_are_refused(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    theta = torch.rand(100, 2, generator=g)
    folder = small(UNIT, theta, theta, steps=1).save(tmp_path / "post")
    about, numbers = records.read(folder, "posterior")
    changes: list[tuple[dict[str, Any], dict[str, Tensor]]] = [
        ({name: None}, {}) for name in ("condition", "transformed")
    ]
    for name in Coordinates.NUMBERS:
        changes += [({}, {name: torch.zeros(7)}), ({}, {name: numbers[name] * math.nan})]
    for key, value in changes:
        records.write(folder, "posterior", {**numbers, **value}, {**about, **key})
        with pytest.raises(scoresde.CheckpointError, match=r"posterior\.json (was|names)"):
            scoresde.load_posterior(folder)


class Unsupported(Distribution):
    def __init__(self) -> None:
        super().__init__(event_shape=torch.Size([2]), validate_args=False)


def test_bad_priors_and_observations_are_refused() -> None:
    theta = torch.rand(20, 2)
    with pytest.raises(ValueError, match="support is None"):
        as_prior(Unsupported())
    with pytest.raises(TypeError, match="real corners"):
        as_prior((torch.zeros(2), torch.ones(2) + 1j))
    with pytest.raises(ValueError, match="at least one number"):
        scoresde.posterior(UNIT, theta, theta[:, :0])
    with pytest.raises(ValueError, match=r"held_out is between 0 and 0\.9"):
        scoresde.posterior(UNIT, theta, theta, held_out=1)
    x = torch.zeros(2, dtype=torch.bfloat16)
    post = conjugate(UNIT)
    with pytest.raises(ValueError, match="sample_shape="):
        post.sample(10**12, x=x)
    assert torch.equal(post.log_prob(theta[0], x=x), post.log_prob(theta[0], x=x.double()))
