"""Conditions of any shape through a network of the user's: against the backbone called by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import generator
from scoresde import CheckpointError

QUIET: dict[str, Any] = {"progress": False}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


class Series(nn.Module):
    """The mean over time of a series (B, 3, T), mapped."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.map = nn.Linear(3, width)
        self.calls = 0

    def forward(self, series: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.map(series.mean(2))
        return out


def drawn(net: nn.Module) -> None:
    """Draw all weights, so that every part speaks."""
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(normal(*p.shape, seed=i) / math.sqrt(max(1, p.shape[-1] if p.ndim else 1)))


def test_it_is_the_backbone_given_what_the_network_makes() -> None:
    """Rows that are dropped, or no condition, are the backbone's own null."""
    for name in ("mlp", "resmlp"):
        inner = scoresde.BACKBONES.build(name, (2,), width=8, vector=4, classes=3)
        net = scoresde.Embedded(inner, Series())
        drawn(net)
        x, t, series, y = normal(5, 2), normal(5, seed=1), normal(5, 3, 7, seed=2), torch.arange(5)
        y = y % 3
        made = net.embed["vector"](series)
        wanted = inner(x, t, vector=made, y=y)
        torch.testing.assert_close(net(x, t, vector=series, y=y), wanted)
        dropped = net.drop_conditions({"vector": series, "y": y}, generator(3))
        lost = dropped["y"] == 3
        lost = lost | (torch.arange(5) == 0)
        dropped["vector"] = series.masked_fill(lost.view(-1, 1, 1), math.nan)
        made = made.masked_fill(lost.unsqueeze(1), math.nan)
        out = net(x, t, **dropped)
        torch.testing.assert_close(out, inner(x, t, vector=made, y=dropped["y"]))
        torch.testing.assert_close(net(x, t), inner(x, t))
        out.square().sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
        assert bool((net.embed["vector"].map.weight.grad != 0).any())  # type: ignore[union-attr]


def test_the_trace_stays_in_closed_form_and_one_solve_embeds_once() -> None:
    series = Series()
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8, vector=4, embed=series).eval()
    drawn(sde.net)
    given = sde.given(vector=normal(5, 3, 7, seed=2))
    assert given.traces()
    z, phi = normal(5, 2).double(), torch.full((5,), 0.4).double()
    out, trace = given.network_fn(traced=True)(z, phi, None)
    output = given.network_fn()
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, i=i: output(torch.cat([z[:i], one[None], z[i + 1 :]]), phi, None)[i], z[i]
        )
        torch.testing.assert_close(trace[i, 0], jacobian.trace(), rtol=0, atol=1e-4)
    torch.testing.assert_close(out, output(z, phi, None))
    series.calls = 0
    scoresde.sample(given, steps=7, solver="heun", generator=generator())
    assert series.calls <= 2  # and not at each of 14 evaluations
    assert not scoresde.build("vp", "resmlp", shape=(2,), vector=4, embed=Series()).traces()


def test_it_is_trained_along() -> None:
    """x is the mean of a series in odd units plus .1·ε: the prior's spread is 1, the posterior's
    .1, and a model that knew nothing of the series would err by 1.
    """
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(1,), width=32, depth=2, vector=4, embed=Series())
    level = normal(2000, 1, seed=5)
    series = 1e3 + 50 * (level.unsqueeze(2) + 0.1 * normal(2000, 3, 10, seed=6))
    x = level + 0.1 * normal(2000, 1, seed=7)
    scoresde.fit(
        sde, x, given={"vector": series}, steps=300, batch_size=128, generator=generator(), **QUIET
    )
    assert sde.conditions.known() == {"vector": (3,)}
    assert sde.given(vector=series[0]).condition["vector"].shape == (1, 3, 10)
    drawn = scoresde.sample(sde.given(vector=series), steps=8, generator=generator())
    assert float((drawn - level).square().mean().sqrt()) < 0.35
    raw = scoresde.Embedded(
        scoresde.MLP((1,), width=8, vector=4), {"vector": Series()}, standardize=False
    )
    sde = scoresde.build("vp", raw, shape=(1,))
    scoresde.fit(sde, x, given={"vector": series}, steps=2, batch_size=8, **QUIET)
    assert not sde.conditions.known()


def test_a_registered_class_of_both_is_saved_under_its_name(tmp_path: Path) -> None:
    @scoresde.BACKBONES.register("of_series")
    class OfSeries(scoresde.Embedded):
        def __init__(self, shape: tuple[int, ...], width: int = 8) -> None:
            super().__init__(scoresde.MLP(shape, width=width, vector=4), Series())

    x, series = normal(30, 2), normal(30, 3, 6, seed=1)
    try:
        sde = scoresde.build("vp", "of_series", shape=(2,), width=6)
        scoresde.fit(sde, x, given={"vector": series}, steps=3, batch_size=10, **QUIET)
        again = scoresde.load(scoresde.save(sde, tmp_path / "model"))
        wanted = scoresde.log_prob(sde.given(vector=series), x)
        assert torch.equal(scoresde.log_prob(again.given(vector=series), x), wanted)
    finally:
        scoresde.BACKBONES.remove("of_series")
    with pytest.raises(CheckpointError, match="unknown backbone 'of_series'"):
        scoresde.load(tmp_path / "model")


@pytest.mark.parametrize("averaged", [False, True])
def test_networks_of_the_users_are_loaded_when_they_are_given(
    averaged: bool, tmp_path: Path
) -> None:
    """Bit for bit, with all weights of the file; the network that is given stays as it was."""
    x, series = normal(30, 2), normal(30, 3, 6, seed=1)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8, vector=4, embed=Series())
    how: dict[str, Any] = {} if averaged else {"ema": 0}
    how |= {"steps": 3, "batch_size": 10, "checkpoints": tmp_path / "run", **QUIET}
    scoresde.fit(sde, x, given={"vector": series}, **how)
    wanted = scoresde.log_prob(sde.given(vector=series), x)
    fresh = Series()
    before = [p.clone() for p in fresh.parameters()]
    scoresde.save(sde, tmp_path / "model")
    for folder in ("model", "run"):
        again = scoresde.load(tmp_path / folder, embed=fresh)
        assert torch.equal(scoresde.log_prob(again.given(vector=series), x), wanted)
    assert all(map(torch.equal, before, fresh.parameters()))
    twice = scoresde.load(scoresde.save(again, tmp_path / "twice"), embed={"vector": fresh})
    assert torch.equal(scoresde.log_prob(twice.given(vector=series), x), wanted)
    text = (tmp_path / "model" / "model.json").read_text()
    assert "Series" not in text  # no class of the user's is named
    with pytest.raises(CheckpointError, match=r"no file holds: load\(folder, embed=net\)"):
        scoresde.load(tmp_path / "model")
    with pytest.raises(CheckpointError, match="embed= has \\['other'\\]"):
        scoresde.load(tmp_path / "model", embed={"other": fresh})
    with pytest.raises(CheckpointError, match="of another shape or kind"):
        scoresde.load(tmp_path / "model", embed=nn.Linear(3, 4))
    with pytest.raises(TypeError, match="embed is a network, or a mapping"):
        scoresde.load(tmp_path / "model", embed=3)  # type: ignore[arg-type]
    plain = scoresde.save(scoresde.build("vp", "mlp", shape=(2,), width=8), tmp_path / "plain")
    with pytest.raises(ValueError, match="was built without embed=: leave it out"):
        scoresde.load(plain, embed=fresh)


def test_a_posterior_with_a_network_of_the_users_is_loaded(tmp_path: Path) -> None:
    theta, series = normal(60, 2), normal(60, 3, 6, seed=1)
    sde = scoresde.build("rectified", "mlp", shape=(2,), width=8, vector=4, embed=Series())
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    post = scoresde.posterior(prior, theta, series, sde=sde, steps=3, **QUIET)
    again = scoresde.load_posterior(post.save(tmp_path / "post"), embed=Series())
    found = again.log_prob(theta[:5], x=series[0])
    assert torch.equal(found, post.log_prob(theta[:5], x=series[0]))


def test_the_encoded_backbone_is_resmlp_given_the_numbers_and_hidden_units() -> None:
    """And in train mode dropout takes the units, here all of them, and never the numbers."""
    sizes: dict[str, Any] = {"vector": 3, "units": 4, "layers": 2, "width": 8}
    net = scoresde.BACKBONES.build("encoded_resmlp", (2,), encoder_dropout=1.0, **sizes).eval()
    drawn(net)
    x, t, v = normal(5, 2), normal(5, seed=1), normal(5, 3, seed=2)
    first, second = net.embed["vector"].layers
    h = nn.functional.silu(v @ first.weight.T + first.bias)
    h = nn.functional.silu(h @ second.weight.T + second.bias)
    wanted = net.net(x, t, vector=torch.cat([v, h], 1))
    torch.testing.assert_close(net(x, t, vector=v), wanted)
    assert not torch.allclose(wanted, net.net(x, t, vector=torch.cat([v, 0 * h], 1)))
    net.train()
    wanted = net.net(x, t, vector=torch.cat([v, 0 * h], 1))
    torch.testing.assert_close(net(x, t, vector=v), wanted)
    with pytest.raises(ValueError, match=r"got \(5, 2\)"):
        net.check_condition(vector=v[:, :2])
    with pytest.raises(ValueError, match="units"):
        scoresde.BACKBONES.build("encoded_resmlp", (2,), units=0)


@pytest.mark.parametrize("members", [1, 2])
def test_units_drop_out_in_the_first_steps_of_each_training(members: int) -> None:
    net = scoresde.BACKBONES.build(
        "encoded_resmlp", (2,), vector=3, width=8, dropout=0.3, dropout_share=0.4, members=members
    )
    sde = scoresde.build("rectified", net, shape=(2,))
    parts = [part for part in net.modules() if hasattr(part, "dropout")]
    assert len(parts) == 2 * members
    found: list[set[float]] = []
    net.register_forward_pre_hook(lambda *_: found.append({part.dropout for part in parts}))
    data, given = normal(40, 2), {"vector": normal(40, 3, seed=1)}
    for _ in range(2):
        scoresde.fit(sde, data, given=given, steps=5, validation=None, **QUIET)
    assert found == 2 * (2 * [{0.3, 0.1}] + 3 * [{0.0}])
    with pytest.raises(ValueError, match="dropout_share"):
        scoresde.BACKBONES.build("encoded_resmlp", (2,), dropout_share=2)


def test_an_ensemble_is_the_mean_of_members_that_learn_from_rows_of_their_own() -> None:
    sizes: dict[str, Any] = {"vector": 3, "units": 4, "width": 8, "encoder_dropout": 0.0}
    one = scoresde.BACKBONES.build("encoded_resmlp", (2,), **sizes).eval()
    net = scoresde.BACKBONES.build("encoded_resmlp", (2,), members=2, **sizes).eval()
    drawn(net)
    x, t, v = normal(5, 2), normal(5, seed=1), normal(5, 3, seed=2)
    alone = []
    for member, encoder in zip(net.net.members, net.embed["vector"].members, strict=True):
        one.net.load_state_dict(member.state_dict())
        one.embed["vector"].load_state_dict(encoder.state_dict())
        alone.append(one(x, t, vector=v).detach())
    assert not torch.allclose(*alone)
    torch.testing.assert_close(net(x, t, vector=v), (alone[0] + alone[1]) / 2)
    net.train()
    wanted = torch.cat([alone[0][:3], alone[1][3:]])
    torch.testing.assert_close(net(x, t, vector=v), wanted)
    assert net(x[:1], t[:1], vector=v[:1]).shape == (1, 2)


def test_a_condition_of_another_width_than_was_learnt_is_refused() -> None:
    net = scoresde.BACKBONES.build("resmlp", (2,), width=8, vector=4)
    sde = scoresde.build("vp", scoresde.Embedded(net, Series()), shape=(2,))
    scoresde.fit(sde, normal(40, 2), given={"vector": normal(40, 3, 5)}, steps=2, **QUIET)
    assert scoresde.sample(sde.given(vector=normal(4, 3, 7)), steps=2).shape == (4, 2)
    with pytest.raises(ValueError, match="learnt with 3 entries along its second axis"):
        scoresde.sample(sde.given(vector=normal(4, 2, 5)), steps=2)


def test_what_does_not_fit_is_said() -> None:
    x, series = normal(4, 2), normal(4, 3, 6)
    with pytest.raises(ValueError, match="MLP takes no condition 'vector' for embed= to make"):
        scoresde.build("vp", "mlp", shape=(2,), embed=Series())
    with pytest.raises(TypeError, match="embed is a network, or a mapping"):
        scoresde.build("vp", "mlp", shape=(2,), vector=4, embed=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"embed\['vector'\] is an nn.Module, got int"):
        scoresde.Embedded(scoresde.MLP((2,), vector=4), {"vector": 3})  # type: ignore[dict-item]
    sde = scoresde.build("vp", "mlp", shape=(2,), vector=5, embed=Series())
    with pytest.raises(ValueError, match=r"returned \(4, 4\), and the network takes \(4, 5\)"):
        scoresde.fit(sde, x, given={"vector": series}, steps=1, batch_size=4, **QUIET)
    with pytest.raises(ValueError, match=r"takes no condition 'c'. There are: vector"):
        sde.given(c=1.0)
    with pytest.raises(ValueError, match="condition 'vector' has NaN"):
        sde.given(vector=series * math.nan)
