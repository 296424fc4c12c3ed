"""Rows with gaps: what is measured, learnt and filled in, against laws in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.utils.data import DataLoader

import scoresde
from conftest import generator
from scoresde import ScoreSDE
from scoresde.backbones import Masked
from scoresde.backbones.masked import MISSING, MODELLED, SEEN
from scoresde.cli.commands import main
from scoresde.model.gaps import with_gaps

QUIET: dict[str, Any] = {"progress": False}
NAN = math.nan


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def with_holes(x: Tensor, share: float, seed: int = 5) -> Tensor:
    """Entries lost completely at random."""
    return x.masked_fill(torch.rand(x.shape, generator=generator(seed)) < share, NAN)


def built(shape: tuple[int, ...] = (3,), **options: Any) -> ScoreSDE:
    """With all weights drawn, so that every part speaks."""
    torch.manual_seed(0)
    sde = scoresde.build("rectified", "masked", shape=shape, **{"width": 8, **options}).eval()
    with torch.no_grad():
        for i, p in enumerate(sde.net.parameters()):
            p.copy_(normal(*p.shape, seed=i) / math.sqrt(max(1, p.shape[-1] if p.ndim else 1)))
    return sde


# ---------------------------------------------------------------------- the network


def test_roles_decide_what_the_network_knows_and_what_it_says() -> None:
    """Only modelled entries have an output; nothing depends on the state of others, nor on the
    values of missing ones; all depends on what is seen.
    """
    net = built().net
    x, t, values = normal(4, 3), normal(4, seed=1), normal(4, 3, seed=2)
    roles = torch.tensor([MODELLED, SEEN, MISSING]).expand(4, 3)
    seen = torch.stack([values, roles], 1)
    out = net(x, t, seen=seen)
    assert bool((out[:, 0] != 0).all())
    assert not out[:, 1:].any()
    other = x.clone()
    other[:, 1:] += 1
    torch.testing.assert_close(net(other, t, seen=seen), out)
    for entry, changes in ((1, True), (2, False)):
        changed = seen.clone()
        changed[:, 0, entry] += 0.3
        assert (not torch.allclose(net(x, t, seen=changed), out)) == changes
    whole = torch.stack([values, torch.zeros(4, 3)], 1)
    torch.testing.assert_close(net(x, t, seen=whole), net(x, t))  # values of modelled entries


def test_the_trace_of_whole_rows_is_in_closed_form() -> None:
    sde = built()
    assert sde.traces()
    x, t = normal(4, 3), normal(4, seed=1)
    net: Any = sde.net
    out, trace = net.value_and_trace(x, t)
    torch.testing.assert_close(out, net(x, t))
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, i=i: net(one[None], t[i : i + 1])[0], x[i]
        )
        torch.testing.assert_close(trace[i], jacobian.trace(), rtol=0, atol=1e-4)
    assert not built(backbone="resmlp").traces()


def test_a_share_of_rows_is_shown_a_uniform_share_of_what_they_have() -> None:
    """4,000 rows of 20 entries, of which 5 are missing: 60% of the rows are shown something, but
    for those whose share shows none: E(1 − u)^15 = 1/16. 4.5 standard deviations.
    """
    net = Masked((20,), width=8, shown=0.6)
    roles = torch.zeros(4000, 20)
    roles[:, :5] = MISSING
    seen = torch.stack([torch.zeros(4000, 20), roles], 1)
    found = net.drop_conditions({"seen": seen}, generator())["seen"][:, 1]
    assert torch.equal(found[:, :5], roles[:, :5])
    assert bool(((found[:, 5:] == SEEN) | (found[:, 5:] == MODELLED)).all())
    count = (found == SEEN).sum(1)
    share = 0.6 * 15 / 16
    assert abs(int((count > 0).sum()) - 4000 * share) < 4.5 * math.sqrt(4000 * share * (1 - share))
    for number in (
        1,
        8,
        15,
    ):  # every count has the same probability, ∫ C(15, k) uᵏ(1 − u)^(15 − k)
        expected = 4000 * 0.6 / 16
        assert abs(int((count == number).sum()) - expected) < 4.5 * math.sqrt(expected)
    none = Masked((20,), width=8, shown=0.0).drop_conditions({"seen": seen}, generator())
    assert torch.equal(none["seen"], seen)


# ---------------------------------------------------------------------- data and loss


@pytest.mark.parametrize("kind", ["tensor", "array", "memmap", "loader", "validation"])
def test_mean_and_scale_are_of_what_there_is(kind: str, tmp_path: Path) -> None:
    x = with_holes(7 + 3 * normal(60, 3), 0.4)
    x[:, 2] *= 1e4
    data: Any = x
    if kind == "array":
        data = x.numpy()
    elif kind == "memmap":
        np.save(tmp_path / "x.npy", x.numpy())
        data = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "loader":
        data = DataLoader(x, batch_size=10)  # type: ignore[arg-type]
    sde = built()
    more = {"validation": x} if kind == "validation" else {}
    history = scoresde.fit(sde, data, steps=12, batch_size=10, **more, **QUIET)
    assert all(map(math.isfinite, [*history.loss, *history.validation]))
    wide = x.double().numpy()
    np.testing.assert_allclose(sde.mean.numpy(), np.nanmean(wide, 0), rtol=1e-6)
    np.testing.assert_allclose(sde.scale.numpy(), np.nanstd(wide, 0), rtol=1e-6)


def test_the_loss_is_that_of_the_entries_there_are() -> None:
    """By hand, for one weight and for another prediction; missing entries have no gradient."""
    for predict in ("edm", "x0"):
        sde = built(predict=predict) if predict != "edm" else built()
        x = with_holes(normal(6, 3), 0.4)
        gaps = x.isnan()
        assert 0 < int(gaps.sum()) < 18
        z0, seen = with_gaps(sde, sde.from_data(x))
        eps, q = normal(6, 3, seed=3), torch.linspace(0.05, 0.95, 6).double()
        objective = scoresde.Denoising(weight="sigma2", noise="uniform")
        examples = objective.examples(sde, z0, eps, q, {"seen": seen})
        loss = objective.loss(sde.net, sde, examples, 1.0, generator)
        phi = objective.levels(sde.process, q)
        c = sde.coefficients(phi)
        z = (c.cos * z0 + c.sin * eps).float().masked_fill(gaps, 9.0)  # which it must not see
        out = sde.net(*sde.inputs(z, phi, torch.float32)[:2], seen=seen)
        error = (out - (c.a * z0 + c.b * eps)) / c.det
        wanted = (phi.cos().square().unsqueeze(1) * error.square())[~gaps].sum() / 18
        torch.testing.assert_close(loss.double(), wanted.double(), rtol=1e-5, atol=0)


def test_a_constant_among_the_columns() -> None:
    x = torch.cat([normal(60, 2), torch.full((60, 1), 4.0)], 1)
    x = with_holes(x, 0.3)
    sde = built()
    with pytest.warns(UserWarning, match=r"features \[2\] are constant"):
        scoresde.fit(sde, x, steps=3, batch_size=10, **QUIET)
    filled = scoresde.impute(sde, x, steps=4, generator=generator())
    assert torch.equal(filled[:, 2], torch.full((60,), 4.0))
    assert bool(filled.isfinite().all())


# ---------------------------------------------------------------------- what is learnt


def correlated() -> MultivariateNormal:
    """In odd units: means 5 and −300, standard deviations 1 and 20, correlation .9."""
    return MultivariateNormal(
        torch.tensor([5.0, -300.0]), torch.tensor([[1.0, 18.0], [18.0, 400.0]])
    )


def test_whole_rows_and_gaps_of_a_gaussian() -> None:
    """A third of all entries are lost. log p of whole rows within .1 nats of the truth (filling in
    means costs .5, and more). x_2 given x_1 has its mean within .3 of its spread, where the mean of
    all rows would be off by 2 and 3, and its spread within .4, where theirs is 2.3 times too wide.
    """
    torch.manual_seed(1)
    truth = correlated()
    rows, test = truth.sample((4000,)), truth.sample((300,))
    torch.manual_seed(0)
    sde = scoresde.build("rectified", "masked", shape=(2,), width=64, depth=2, fourier=0)
    how: dict[str, Any] = {"steps": 800, "batch_size": 256, "ema": 100, **QUIET}
    scoresde.fit(sde, with_holes(rows, 1 / 3), generator=generator(), **how)
    lost = truth.log_prob(test) - scoresde.log_prob(sde, test)
    assert float(lost.mean()) < 0.1
    shown = torch.tensor([[4.0, NAN], [6.5, NAN], [NAN, -320.0]])
    drawn = scoresde.impute(sde, shown, draws=2000, steps=10, generator=generator())
    assert torch.equal(drawn[:, :2, 0], shown[:2, 0].expand(2000, 2))
    wanted = torch.tensor([-318.0, -273.0])
    spread = 20 * math.sqrt(1 - 0.81)
    assert bool(((drawn[:, :2, 1].mean(0) - wanted).abs() < 0.3 * spread).all())
    assert bool(((drawn[:, :2, 1].std(0) / spread - 1).abs() < 0.4).all())
    assert abs(float(drawn[:, 2, 0].mean()) - 4.1) < 0.3 * math.sqrt(1 - 0.81)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_gaps_cost_little_log_p_in_eight_columns(share: float) -> None:
    """Gaps in 2 of 8 columns: within .1 nats of a model of as many complete rows (seen: .01 at 10%
    and .03 at 50%).
    """
    torch.manual_seed(1)
    a = normal(8, 8)
    truth = MultivariateNormal(torch.arange(8.0), a @ a.T / 8 + 0.1 * torch.eye(8))
    rows, test = truth.sample((20_000,)), truth.sample((2000,))
    gappy = rows.clone()
    gappy[:, [1, 5]] = with_holes(rows[:, [1, 5]], share)
    found = []
    for net, x in (("mlp", rows), ("masked", gappy)):
        torch.manual_seed(0)
        sde = scoresde.build("rectified", net, shape=(8,), width=64, depth=3, fourier=16)
        scoresde.fit(sde, x, steps=1000, batch_size=256, generator=generator(), **QUIET)
        found.append(scoresde.log_prob(sde, test))
    assert float((found[0] - found[1]).mean()) < 0.1


@pytest.mark.slow
def test_imputations_are_draws_of_a_mixtures_conditional() -> None:
    """Three modes in three dimensions. Rows of the truth of which half is hidden and filled in are
    rows of the truth (energy test), and so is what is hidden of single rows, to an energy distance
    of .1 (two samples of 400 of the truth: .006; of the prior: 1 and more).
    """
    weight = torch.tensor([0.5, 0.3, 0.2])
    mean = torch.tensor([[-2.0, -2, 0], [2.0, -1, 1], [0.0, 2, -2]])

    def draws(n: int, seed: int, chances: Tensor = weight) -> Tensor:
        mode = torch.multinomial(chances, n, True, generator=generator(seed))
        return mean[mode] + 0.4 * normal(n, 3, seed=seed + 100)

    torch.manual_seed(0)
    sde = scoresde.build("rectified", "masked", shape=(3,), width=64, depth=3, fourier=16)
    rows = with_holes(draws(5000, 0), 0.15)
    scoresde.fit(sde, rows, steps=2500, batch_size=256, generator=generator(), **QUIET)
    filled = scoresde.impute(sde, with_holes(draws(1000, 1), 0.5), generator=generator(2))
    assert scoresde.energy_test(filled, draws(1000, 3), permutations=199) > 0.01
    for row in ([NAN, -1.5, NAN], [0.2, NAN, NAN], [2.0, -1.0, NAN], [NAN, NAN, 0.7]):
        shown = torch.tensor(row)
        lost = shown.isnan()
        square = (shown[~lost] - mean[:, ~lost]).square().sum(1)
        chances = (weight.log() - square / (2 * 0.16)).softmax(0)
        drawn = scoresde.impute(sde, shown[None], draws=400, generator=generator(4))[:, 0, lost]
        exact = draws(400, 5, chances)[:, lost]
        assert float(scoresde.energy_distance(drawn, exact)) < 0.1, row


# ---------------------------------------------------------------------- files and errors


def test_a_fitted_model_is_saved_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    x = with_holes(normal(50, 3), 0.3)
    y = torch.arange(50) % 2

    def run(folder: Path | None = None, resume: bool = False) -> ScoreSDE:
        sde = built(classes=2)
        checkpoints = folder and scoresde.Checkpoints(folder, every=2, resume=resume)
        scoresde.fit(
            sde,
            x,
            given={"y": y},
            steps=6,
            batch_size=10,
            generator=generator(),
            checkpoints=checkpoints,
            **QUIET,
        )
        return sde

    whole = run(tmp_path / "run")
    wanted = scoresde.impute(whole.given(y=y), x, draws=2, steps=3, generator=generator())
    again = scoresde.load(scoresde.save(whole, tmp_path / "model"))
    for other in (again, scoresde.load(tmp_path / "run"), run()):
        found = scoresde.impute(other.given(y=y), x, draws=2, steps=3, generator=generator())
        assert torch.equal(found, wanted)
    assert torch.equal(wanted[0][~x.isnan()], x[~x.isnan()])


def test_bad_input_is_said_in_one_sentence() -> None:
    x = with_holes(normal(20, 3), 0.3)
    sde = built()

    class Own(scoresde.Objective):
        kind = "velocity"

        def __call__(self, *_: Any) -> Tensor:
            raise AssertionError

    def fit(x: Any, sde: ScoreSDE = sde, **more: Any) -> None:
        scoresde.fit(sde, x, steps=1, batch_size=5, **more, **QUIET)

    plain = scoresde.build("rectified", "mlp", shape=(3,), width=8)
    with pytest.raises(ValueError, match="data has NaN or infinite values in"):
        fit(x, plain)
    with pytest.raises(ValueError, match="data has infinite values in 1 of 20 rows: 4"):
        fit(x.index_put((torch.tensor(4), torch.tensor(0)), torch.tensor(math.inf)))
    with pytest.raises(ValueError, match=r"features \[1\] of the data have no value in any row"):
        fit(x.index_fill(1, torch.tensor([1]), NAN))
    with pytest.raises(ValueError, match="does not leave gaps out"):
        fit(x, objective=Own())
    with pytest.raises(ValueError, match="joins rows by their distance"):
        fit(x, coupling="minibatch_ot")
    with pytest.raises(ValueError, match=r"no condition to give: scoresde.impute\(model, x\)"):
        sde.given(seen=torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="takes no condition 'c'"):
        sde.given(c=1.0)
    with pytest.raises(ValueError, match="'masked' has no vector="):
        built(vector=2)
    with pytest.raises(ValueError, match="shown"):
        built(shown=1.5)
    with pytest.raises(ValueError, match="learnt with shown=0"):
        scoresde.impute(built(shown=0.0), x)
    with pytest.raises(ValueError, match=r"x has shape \(20, 2\), wanted \(batch, 3\)"):
        scoresde.impute(sde, x[:, :2])
    with pytest.raises(ValueError, match="x has infinite values"):
        scoresde.impute(sde, x / 0)
    with pytest.raises(ValueError, match="NaN"):
        scoresde.log_prob(sde, x)


# ---------------------------------------------------------------------- tables


def gapped_table(n: int = 2000) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows (a, b, c) of a table, and the same with 40% of b and of c missing."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=n)
    kind = rng.choice(["u", "v"], n)
    b = np.round(a + 0.5 * rng.normal(size=n) + (kind == "u"), 1)
    c = np.exp(0.5 * a + 0.3 * rng.normal(size=n))
    whole = pd.DataFrame({"a": a, "b": b, "c": c, "kind": kind})
    gaps = whole.copy()
    for name in "bc":
        gaps[name] = gaps[name].mask(rng.random(n) < 0.4)
    return whole, gaps


@pytest.mark.slow
def test_a_table_that_keeps_gaps_is_learnt(tmp_path: Path) -> None:
    """log p of whole rows within .15 nats of the truth; imputed b has its mean and variance."""
    whole, gaps = gapped_table(4000)
    table = scoresde.Table(gaps[:3000], bounds={"c": (0, None)}, missing="keep")
    torch.manual_seed(0)
    sde = scoresde.build(
        "rectified", "masked", shape=table.shape, classes=table.classes, backbone="mlp", width=32
    )
    scoresde.fit(sde, table, steps=1500, progress=False, validation=None, seed=0)
    new = whole[3000:]
    found = scoresde.log_prob(sde, new[:500], seed=0)
    a, b, c = (torch.tensor(new[name][:500].to_numpy()) for name in "abc")
    normal = torch.distributions.Normal
    up = torch.tensor((new["kind"][:500] == "u").to_numpy()).double()
    # b was rounded: its bins [v, v + .1) begin at v, and N is about even in them
    true = normal(0.0, 1.0).log_prob(a) + normal(a + up, 0.5).log_prob(b)
    true = true + normal(0.5 * a, 0.3).log_prob(c.log()) - c.log() + math.log(0.5)
    assert abs(float((true - found).mean())) < 0.15
    lost = new[:400].assign(b=np.nan)
    drawn = scoresde.impute(sde, lost, seed=1)
    rest = drawn["b"] - drawn["a"] - (drawn["kind"] == "u")
    assert abs(rest.mean()) < 5 * 0.5 / 20 + 0.03
    assert 0.4 < rest.std() < 0.62
    assert (drawn["c"] == new["c"][:400]).all()
    scoresde.save(sde, tmp_path / "m")
    pd.testing.assert_frame_equal(
        scoresde.impute(scoresde.load(tmp_path / "m"), lost, seed=1), drawn
    )


def test_gaps_of_a_table_are_for_networks_that_take_them(tmp_path: Path, capsys: Any) -> None:
    _, gaps = gapped_table(200)
    table = scoresde.Table(gaps, missing="keep")
    plain = scoresde.build("vp", "mlp", shape=table.shape, classes=table.classes, width=8)
    with pytest.raises(ValueError, match=r"missing='keep', for a network .* 'masked'"):
        scoresde.fit(plain, table, steps=1, progress=False)
    with pytest.raises(ValueError, match="column 'kind' has no value in 1 of 200 rows"):
        scoresde.Table(gaps.assign(kind=[None, *gaps["kind"][1:]]), missing="keep")
    with pytest.raises(ValueError, match="infinite"):
        scoresde.Table(gaps.assign(a=[math.inf, *gaps["a"][1:]]), missing="keep")
    gaps.to_csv(tmp_path / "rows.csv", index=False)
    how = ["fit", str(tmp_path / "rows.csv"), "--table", "--steps", "3", "--keep-missing"]
    main([*how, "--net", "masked", "--option", "width=8", "--out", str(tmp_path / "m")])
    sde = scoresde.load(tmp_path / "m")
    assert not scoresde.impute(sde, gaps[:5], steps=3).isna().any(axis=None)
    with pytest.raises(SystemExit):
        main([*how, "--drop-missing", "--out", str(tmp_path / "n")])
    assert "exclude one another" in capsys.readouterr().err
