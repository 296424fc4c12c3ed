"""What `fit` holds out of a table by itself: never worse than the untrained network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import generator
from scoresde import ScoreSDE, toy

NOTHING_LEARNT = pytest.mark.filterwarnings("ignore:the network has learnt nothing")
BY_HEART = pytest.mark.filterwarnings("ignore:the model has begun to learn the rows by heart")
QUIET = {"progress": False}


def small(n: int = 2, seed: int = 0, width: int = 32) -> ScoreSDE:
    torch.manual_seed(seed)
    return scoresde.build("vp", "mlp", shape=(n,), width=width, depth=2)


def noise(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=generator(seed))


def moons(n: int, seed: int = 0) -> Tensor:
    return toy.Moons().sample(n, generator=generator(seed))


class Noting(nn.Module):
    """Notes the rows that it is trained on, by a condition that numbers them."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.rows: set[int] = set()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.training:
            self.rows |= set(y.tolist())
        return x * self.w


@NOTHING_LEARNT
def test_held_out_rows_are_not_trained_on_and_all_others_are() -> None:
    net = Noting()
    sde = ScoreSDE(scoresde.VPSDE(), net, shape=(2,))
    rows = torch.arange(100)
    given = {"y": rows}
    history = scoresde.fit(sde, noise(100, 2), given=given, steps=30, batch_size=64, **QUIET)
    assert len(history.held_out) == 20
    assert net.rows == set(rows.tolist()) - set(history.held_out)


@NOTHING_LEARNT
def test_held_out_rows_follow_from_the_seed_and_not_from_the_order() -> None:
    def rows(x: Tensor, seed: int) -> list[int]:
        return scoresde.fit(small(), x, steps=2, generator=generator(seed), **QUIET).held_out

    x = noise(60, 2)
    assert rows(x, 1) == rows(x, 1)
    assert rows(x, 1) == rows(x.flip(0), 1)
    assert rows(x, 1) != rows(x, 2)
    assert rows(x, 1) not in (list(range(12)), list(range(48, 60)))


@pytest.mark.parametrize(
    ("n", "held"), [(19, 0), (20, 4), (500, 100), (5000, 500), (30_000, 2000)]
)
@NOTHING_LEARNT
def test_a_capped_share_is_held_out(n: int, held: int) -> None:
    history = scoresde.fit(small(), noise(n, 2), steps=2, batch_size=16, **QUIET)
    assert len(history.held_out) == held
    assert ("held_out=" in repr(history)) == (held > 0)


@NOTHING_LEARNT
def test_mean_and_scale_are_those_of_all_rows() -> None:
    """So that the untrained network is the Gaussian of all rows."""
    x = noise(80, 3)
    sde = small(3)
    scoresde.fit(sde, x, steps=2, **QUIET)
    torch.testing.assert_close(sde.mean.double(), x.double().mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(sde.scale.double(), x.double().std(0, correction=0))


def test_on_noise_the_untrained_network_is_kept_and_said() -> None:
    """A standardized normal sample: nothing is to be learnt, and log p stays the Gaussian's."""
    x = noise(60, 6)
    sde = small(6, width=64)
    untrained = scoresde.build("vp", "mlp", shape=(6,), width=64, depth=2)
    untrained.standardize(x)
    with pytest.warns(UserWarning, match="learnt nothing that the 12 held-out rows confirm"):
        history = scoresde.fit(sde, x, generator=generator(), **QUIET)
    assert history.best == 0
    assert history.gap == 0
    assert history.step[-1] < 500  # stopped early
    new = noise(50, 6, seed=1)
    assert torch.equal(scoresde.log_prob(sde, new), scoresde.log_prob(untrained.eval(), new))


@BY_HEART
def test_few_moons_are_learnt_and_better_than_the_gaussian() -> None:
    """Gain over the untrained network on 1,000 new points: 4 standard errors above 0."""
    x = moons(300)
    new = moons(1000, seed=1)
    sde = small(width=64)
    untrained = small(width=64)
    untrained.standardize(x)
    history = scoresde.fit(sde, x, steps=200, batch_size=256, generator=generator(), **QUIET)
    gain = scoresde.log_prob(sde, new) - scoresde.log_prob(untrained.eval(), new)
    assert history.best is not None
    assert history.best > 0
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5
    assert history.checked[0] == 0
    assert history.gap is not None


def test_learning_by_heart_is_said() -> None:
    """Clusters that have only two rows each: the held-out ones confirm little."""
    centres = 5 * noise(20, 8)
    x = centres.repeat(2, 1) + 0.5 * noise(40, 8, seed=1)
    with pytest.warns(UserWarning, match="by heart|learnt nothing"):
        scoresde.fit(small(8, width=64), x, generator=generator(), **QUIET)


def test_nothing_is_held_out_where_rows_can_not_be_chosen(tmp_path: Path) -> None:
    x = moons(64)
    np.save(tmp_path / "x.npy", x.numpy())
    source = scoresde.build("rectified", "mlp", shape=(2,), width=8)
    flow = scoresde.build("rectified", "mlp", shape=(2,), width=8)
    source.source = toy.EightGaussians()
    images = scoresde.build("vp", "unet", shape=(1, 8, 8), channels=8, blocks=1, multipliers=(1,))
    loader = torch.utils.data.DataLoader(x, batch_size=16)
    cases: dict[str, tuple[ScoreSDE, Any, dict[str, Any]]] = {
        "off": (small(), x, {"validation": None}),
        "own rows": (small(), x, {"validation": x[:9]}),
        "sampler": (small(), toy.Moons(), {}),
        "loader": (small(), loader, {}),
        "on disk": (small(), np.load(tmp_path / "x.npy", mmap_mode="r"), {}),
        "pairs": (flow, scoresde.Pairs(x, x), {}),
        "coupling": (
            scoresde.build("rectified", "mlp", shape=(2,), width=8),
            x,
            {"coupling": "minibatch_ot"},
        ),
        "source": (source, x, {}),
        "images": (images, torch.randn(64, 1, 8, 8, generator=generator()), {}),
    }
    for name, (sde, data, how) in cases.items():
        history = scoresde.fit(sde, data, steps=2, batch_size=16, **how, **QUIET)
        assert history.held_out == [], name
        assert history.gap is None, name


@NOTHING_LEARNT
def test_a_second_training_holds_nothing_out() -> None:
    """Its network may have seen any row."""
    sde = small()
    assert scoresde.fit(sde, moons(64), steps=2, **QUIET).held_out
    assert scoresde.fit(sde, moons(64), steps=2, **QUIET).held_out == []


class Killed(Exception):
    pass


@pytest.mark.parametrize("data", ["moons", pytest.param("noise", marks=pytest.mark.slow)])
@NOTHING_LEARNT
@BY_HEART
def test_a_resumed_run_ends_as_one_in_one_go(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that has ended, and one that was killed before it chose an average."""
    x = moons(200) if data == "moons" else noise(200, 2)
    found = []
    for name, kills in (("whole", 0), ("pieces", 3)):
        folder = tmp_path / name
        for part in range(kills + 1):
            sde = small(seed=part)  # other weights, which the checkpoint replaces
            with monkeypatch.context() as patch:
                if part < kills:
                    patch.setattr(scoresde.training.trainer.Trainer, "note", _killing(40))
                try:
                    history = scoresde.fit(
                        small() if part == 0 else sde,
                        x,
                        checkpoints=scoresde.Checkpoints(folder, every=25, resume=True),
                        steps=100,
                        batch_size=64,
                        generator=generator(3),
                        **QUIET,
                    )
                except Killed:
                    continue
        again = small(seed=9)
        how = scoresde.Checkpoints(folder, every=25, resume=True)
        scoresde.fit(sde, x, steps=100, batch_size=64, checkpoints=how, **QUIET)  # a trained one
        ended = scoresde.fit(again, x, steps=100, batch_size=64, checkpoints=how, **QUIET)
        assert (ended.best, ended.gap) == (history.best, history.gap)
        found.append((history, scoresde.load(folder).state_dict(), again.state_dict()))
    (whole, one, ended_one), (pieces, other, ended_other) = found
    for name in ("step", "loss", "checked", "validation", "best", "held_out", "gap"):
        assert getattr(whole, name) == getattr(pieces, name), name
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
        assert torch.equal(value, ended_one[name]), name
        assert torch.equal(value, ended_other[name]), name


def _killing(steps: int) -> Any:
    """`Trainer.note` that ends the run after so many steps of it."""
    note = scoresde.training.trainer.Trainer.note
    begun: list[int] = []

    def killing(self: Any) -> None:
        begun.append(self.step)
        if self.step - begun[0] >= steps:
            raise Killed
        note(self)

    return killing


@NOTHING_LEARNT
def test_other_data_are_refused_on_resume(tmp_path: Path) -> None:
    how = {"steps": 20, "checkpoints": scoresde.Checkpoints(tmp_path, every=5, resume=True)}
    scoresde.fit(small(), noise(100, 2), **how, **QUIET)
    with pytest.raises(scoresde.CheckpointError, match="data="):
        scoresde.fit(small(), noise(100, 2, seed=1), **how, **QUIET)
    with pytest.raises(scoresde.CheckpointError, match=r"validation={.*}, and this one has None"):
        scoresde.fit(small(), noise(100, 2), validation=None, **how, **QUIET)


@NOTHING_LEARNT
@BY_HEART
def test_conditions_and_labels_are_held_out_with_their_rows() -> None:
    """The label says where a sample is, and two modes lie about that: what is learnt is
    confirmed.
    """
    y = torch.arange(200) % 2
    modes = torch.sign(noise(200, 2, seed=2))
    x = modes + noise(200, 2) * 0.1 + y[:, None] * 4.0
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=32, depth=2, classes=2)
    how = {"steps": 150, "batch_size": 128, "given": {"y": y}}
    history = scoresde.fit(sde, x, generator=generator(), **how, **QUIET)
    assert history.best is not None
    assert history.best > 0
    new = 1 + noise(100, 2, seed=1) * 0.1
    told = scoresde.log_prob(sde.given(y=torch.zeros(100, dtype=torch.long)), new).mean()
    assert told > scoresde.log_prob(sde.given(y=torch.ones(100, dtype=torch.long)), new).mean() + 3


def test_steps_are_chosen_by_the_rows() -> None:
    """One step per row at batches of 512, from 500 to 10,000."""
    from scoresde.data.stream import TrainingStream
    from scoresde.training.held_out import usual_steps

    def steps(n: int, batch_size: int = 512) -> int:
        sde = small()
        return usual_steps(
            sde, TrainingStream(torch.zeros(n, 2), sde, batch_size, seed=0), batch_size
        )

    assert [steps(n) for n in (50, 2000, 50_000)] == [500, 2000, 10_000]
    assert steps(2000, 256) == 4000


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another word": ({"validation": "on"}, ValueError, "validation is 'auto', None, .* got 'on'"),
    "a number": ({"validation": 0.1}, TypeError, "validation is .* got float"),
    "a word of steps": ({"steps": "many"}, ValueError, "steps is an integer or 'auto', .*'many'"),
    "half a step": (
        {"steps": 0.5},
        TypeError,
        "got 0.5; try 10_000, or 'auto'",
    ),
    "no steps": ({"steps": 0}, ValueError, "steps is at least 1"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_values_are_refused_in_one_sentence(case: str) -> None:
    how, kind, message = BAD[case]
    sde = small()
    with pytest.raises(kind, match=message) as caught:
        scoresde.fit(sde, moons(64), **how, **QUIET)
    assert not re.search(r"\.\s", str(caught.value))
    assert not bool(sde.measured)
