"""Draws of p(x | condition) and their summaries: against normal laws in closed form, and against
the draws themselves.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import generator
from scoresde import ScoreSDE
from scoresde.sampling import summaries

SPREAD = 0.5


class Shifted(nn.Module):
    """The denoiser of x | c ~ N(c, SPREAD²)."""

    condition_shapes = {"c": (2,)}  # noqa: RUF012
    labels = ("c",)

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        noise = torch.sigmoid(2 * t).unsqueeze(1)
        level = torch.zeros_like(x) if c is None else c
        gain = (1 - noise).sqrt() * SPREAD**2 / ((1 - noise) * SPREAD**2 + noise)
        return level + gain * (x - (1 - noise).sqrt() * level)


def model() -> ScoreSDE:
    return ScoreSDE(scoresde.VPSDE(), Shifted(), shape=(2,), predict="x0").eval()


def centres(n: int) -> Tensor:
    return torch.linspace(-1.5, 1.5, 2 * n).reshape(n, 2)


def test_summaries_are_those_of_normal_laws() -> None:
    """30 conditions, 1,000 draws: 300 numbers within 5 standard errors, a false alarm in 5,000."""
    c = centres(30)
    found = scoresde.summary(model(), given={"c": c}, generator=generator())
    assert found.draws == 1000
    error = SPREAD / math.sqrt(1000)
    assert bool(((found.mean - c).abs() < 5 * error).all())
    assert bool(((found.std - SPREAD).abs() < 5 * error / math.sqrt(2)).all())
    normal = torch.distributions.Normal(0.0, 1.0)
    for place, level in enumerate(found.levels):
        z = normal.icdf(torch.tensor(level))
        # of an order statistic: √(p(1 − p)/n)/density
        spread = math.sqrt(level * (1 - level)) / float(normal.log_prob(z).exp())
        off = (found.quantiles[:, place] - (c + SPREAD * z)).abs()
        assert float(off.max()) < 5 * error * spread, level
    low, high = found.interval(0.5)
    assert torch.equal(low, found.quantiles[:, 1])
    assert torch.equal(high, found.quantile(0.75))


@pytest.mark.parametrize("solver", ["adams", "dpmpp_2m_sde"])
def test_they_are_of_the_draws_that_sample_makes(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the conditions are cut into batches, and whatever the others are."""
    c = centres(7)
    how: dict[str, Any] = {"solver": solver, "steps": 6}
    drawn = scoresde.sample(model().given(c=c), draws=37, generator=generator(1), **how)
    assert drawn.shape == (37, 7, 2)
    levels = (0.0, 0.1, 0.5, 1.0)
    for states, batch, n in ((2**16, None, 7), (100, 20, 7), (1, 64, 3)):
        monkeypatch.setattr(summaries, "GROUP_STATES", states)
        changed = torch.cat([c[:n], torch.zeros(n, 2)])[:7]
        found = scoresde.summary(
            model().given(c=changed if n < 7 else c),
            37,
            quantiles=levels,
            generator=generator(1),
            batch_size=batch,
            **how,
        )
        wanted = drawn[:, :n]
        close: dict[str, float] = {"rtol": 0, "atol": 1e-5}
        torch.testing.assert_close(found.mean[:n], wanted.mean(0), **close)
        torch.testing.assert_close(found.std[:n], wanted.std(0), **close)
        for place, level in enumerate(levels):
            exact = wanted.quantile(level, 0)
            torch.testing.assert_close(found.quantiles[:n, place], exact, **close)


def test_more_draws_than_memory_holds_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="draws=10000000000000 for each of 2 take"):
        scoresde.sample(model().given(c=centres(2)), draws=10**13)


def test_draws_of_one_condition_and_of_none() -> None:
    """Without rows of conditions they are ordinary samples; with one, as many for each of n."""
    sde = model()
    plain = scoresde.sample(sde, 6, steps=5, generator=generator())
    drawn = scoresde.sample(sde, draws=6, steps=5, generator=generator())
    torch.testing.assert_close(drawn[:, 0], plain)
    of_one = sde.given(c=torch.tensor([1.0, -1.0]))
    drawn = scoresde.sample(of_one, 2, draws=3, steps=5, generator=generator())
    plain = scoresde.sample(of_one, 6, steps=5, generator=generator())
    torch.testing.assert_close(drawn, plain.reshape(2, 3, 2).transpose(0, 1))
    assert scoresde.summary(sde, 50, steps=5).mean.shape == (1, 2)


def test_a_fitted_model_in_the_units_of_its_data() -> None:
    """y = 1000·(x + .2·ε): 90% intervals of 400 held-out y hold between 80% and 97%."""
    torch.manual_seed(0)
    x = torch.randn(2400, 1, generator=generator(2))
    y = 1000 * (x + 0.2 * torch.randn(2400, 1, generator=generator(3)))
    sde = scoresde.build("rectified", "mlp", shape=(1,), vector=1, width=32, depth=2, fourier=0)
    scoresde.fit(
        sde,
        y[400:],
        given={"vector": x[400:]},
        steps=400,
        batch_size=128,
        generator=generator(),
        progress=False,
    )
    found = scoresde.summary(sde, 100, given={"vector": x[:400]}, steps=8, generator=generator())
    low, high = found.interval(0.9)
    inside = ((y[:400] > low) & (y[:400] < high)).float().mean()
    assert 0.8 < float(inside) < 0.97
    assert float((found.mean - 1000 * x[:400]).square().mean().sqrt()) < 100


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"draws": 1}, "draws"),
        ({"draws": 2.5}, "draws"),
        ({"quantiles": ()}, "quantiles are levels such as"),
        ({"quantiles": (0.5, 1.5)}, "quantiles"),
        ({"quantiles": "half"}, "quantiles"),
        ({"given": centres(3)}, "given is a mapping such as"),
        ({"given": {"d": centres(3)}}, "takes no condition 'd'"),
        ({"solver": "adam"}, "Did you mean 'adams'"),
        ({"progress": 1}, "progress"),
    ],
)
def test_bad_input_is_said_in_one_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        scoresde.summary(model(), **{"given": {"c": centres(3)}, **change})


def test_more_bad_input() -> None:
    found = scoresde.summary(model(), 10, given={"c": centres(3)}, steps=3)
    with pytest.raises(ValueError, match=r"no quantile 0.1 among .*ask for it"):
        found.interval(0.8)
    levels = torch.tensor([0.1, 0.9])  # of float32
    found = scoresde.summary(model(), 10, given={"c": centres(3)}, steps=3, quantiles=levels)
    assert torch.equal(found.interval(0.8)[1], found.quantiles[:, 1])
    with pytest.raises(ValueError, match="no rows"):
        scoresde.summary(model(), 10, given={"c": centres(3)[:0]})
    for verb in (scoresde.summary, scoresde.sample):
        with pytest.raises(ValueError, match="draws=1000000000000"):
            verb(model().given(c=centres(3)), draws=10**12)
    with pytest.raises(ValueError, match="mass"):
        found.interval(90)
    with pytest.raises(ValueError, match="has 3 rows for 4 samples"):
        scoresde.sample(model().given(c=centres(3)), 4, draws=5)
    with pytest.raises(ValueError, match="draws"):
        scoresde.sample(model(), draws=0)
