"""log p of rows with gaps, and missing categories: against closed forms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import scoresde
from conftest import generator
from scoresde.cli.commands import main

pd = pytest.importorskip("pandas")

NAN = math.nan


def test_what_is_left_of_a_mixture() -> None:
    """Three modes in three columns: 60 rows with one or two gaps, by their own errors."""
    means = torch.tensor([[-2.0, 0.0, 1.0], [2.0, 1.0, -1.0], [0.0, 3.0, 0.0]])
    mixture = scoresde.toy.GaussianMixture(means, 0.5)
    x = mixture.sample(60, generator=generator(0))
    x[:30, 1] = x[30:, 0] = x[40:, 2] = NAN
    x[0] = torch.tensor([0.0, 1.0, 0.0])
    x[1] = NAN
    known = ~x.isnan()
    squares = torch.where(known[:, None], ((x[:, None] - means) / 0.5).double().square(), 0)
    truth = -0.5 * squares.sum(2) - known.sum(1)[:, None] * math.log(0.5 * math.sqrt(2 * math.pi))
    truth = truth.logsumexp(1) - math.log(3)
    sde = scoresde.oracle(mixture, scoresde.VPSDE())
    found = scoresde.marginal_log_prob(sde, x, draws=100, generator=generator(1))
    error = found.log_prob - truth
    assert abs(float(error[0])) < 0.01
    assert found.log_prob[1] == 0
    assert found.stderr[:2].tolist() == [0, 0]
    rows = found.stderr[2:]
    assert float(error[2:].square().mean().sqrt()) < 2 * float(rows.square().mean().sqrt()) + 0.02
    assert float(error.abs().mean()) < 0.05


def test_a_whitened_gaussian_in_the_units_of_the_data() -> None:
    """Columns of scales from 0.1 to 1e3, and a constant one, which has no density."""
    mixing = torch.randn(5, 5, generator=generator(3)).double()
    rows = torch.randn(4000, 5, generator=generator(4)).double() @ mixing
    rows = rows * torch.tensor([1, 1e3, 0.1, 1, 1]) + 3
    rows[:, 4] = 7.0
    with pytest.warns(UserWarning, match="constant"):
        sde = scoresde.build("vp", "mlp", shape=(5,), width=8).double().standardize(rows)
    mean, cov = rows[:, :4].mean(0), torch.cov(rows[:, :4].T, correction=0)
    x = rows[:20].clone()
    x[:10, 1] = x[10:, 0] = x[10:, 2] = NAN
    x[::2, 4] = NAN
    found = scoresde.marginal_log_prob(sde, x, generator=generator(0))
    for i, row in enumerate(x[:, :4]):
        known = ~row.isnan()
        law = MultivariateNormal(mean[known], cov[known][:, known])
        assert abs(float(found.log_prob[i] - law.log_prob(row[known]))) < 0.25, i
    assert float(found.stderr.mean()) < 0.06


class Groups(nn.Module):
    """E[x0 | z, y] where x | y ~ N(MEANS[y], COV): the output of a perfect network."""

    means = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    cov = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
    condition_shapes = {"y": ()}  # noqa: RUF012
    labels = ("y",)
    wide_inputs = True

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        phi = t.double().exp().atan()[:, None]
        cos, sin = phi.cos(), phi.sin()
        size, along = torch.linalg.eigh(self.cov)
        mean = self.means[y]
        left = ((z - cos * mean) @ along) / (cos**2 * size + sin**2)
        x0 = mean + cos * ((left * size) @ along.T)
        return (sin * x0 - cos * sin * (left @ along.T)).to(z.dtype)


COUNTS = {"a": 40, "b": 40, "c": 20}


def model_of_groups() -> tuple[Any, Any]:
    kinds = [kind for kind, count in COUNTS.items() for _ in range(count)]
    noise = torch.randn(100, 2, generator=generator(2))
    frame = pd.DataFrame({"kind": kinds, "u": noise[:, 0].numpy(), "v": noise[:, 1].numpy()})
    table = scoresde.Table(frame)
    sde = scoresde.ScoreSDE(scoresde.RectifiedFlow(), Groups(), shape=(2,)).double()
    sde.table = table.schema()
    return sde, frame


def posterior_of_groups(u: float, v: float = NAN) -> tuple[Tensor, Tensor]:
    """p(kind | u, v) or p(kind | u), and log p(u, v) or log p(u)."""
    some = [0] if math.isnan(v) else [0, 1]
    law = MultivariateNormal(Groups.means[:, some], Groups.cov[some][:, some])
    share = torch.tensor([0.4, 0.4, 0.2]).double().log()
    joint = law.log_prob(torch.tensor([u, v]).double()[some]) + share
    return joint.softmax(0), joint.logsumexp(0)


def test_a_missing_category_is_summed_over() -> None:
    sde, _ = model_of_groups()
    rows = pd.DataFrame(
        {"kind": [None, None, "b", None], "u": [0.5, 1.5, 0.2, NAN], "v": [1.0, NAN, NAN, NAN]}
    )
    found = scoresde.marginal_log_prob(sde, rows, draws=400, generator=generator(0))
    law = MultivariateNormal(Groups.means[1, :1], Groups.cov[:1, :1])
    b = law.log_prob(torch.tensor([0.2]).double()) + math.log(0.4)
    truth = [posterior_of_groups(0.5, 1.0)[1], posterior_of_groups(1.5)[1], b, torch.tensor(0.0)]
    assert torch.allclose(found.log_prob, torch.stack(truth).double(), atol=0.08)
    assert abs(float(found.log_prob[0] - truth[0])) < 0.01


@pytest.mark.filterwarnings("ignore:.*populations:UserWarning")
def test_a_missing_category_is_drawn_by_bayes() -> None:
    """1,000 copies of a row with all numbers, and 60 of one without v; 4.5 standard errors."""
    sde, _ = model_of_groups()
    for n, (u, v) in ((1000, (0.8, 0.6)), (60, (1.4, NAN))):
        rows = pd.DataFrame({"kind": [None] * n, "u": [u] * n, "v": [v] * n})
        found = scoresde.impute(sde, rows, generator=generator(1), particles=2, steps=8)
        p, _ = posterior_of_groups(u, v)
        share = torch.tensor([(found["kind"] == kind).mean() for kind in COUNTS]).double()
        assert ((share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt() + 0.01).all()
        assert (found["u"] == u).all()
        assert not found.isna().any().any()


def test_combinations_keep_what_is_known_of_them() -> None:
    """Of two categorical columns one is missing: the other stays."""
    kinds = ["a", "b"] * 30
    sizes = ["s"] * 30 + ["l"] * 30
    numbers = torch.randn(60, generator=generator(5)).numpy()
    table = scoresde.Table({"kind": kinds, "size": sizes, "x": numbers})
    sde = scoresde.build("vp", "mlp", shape=(1,), classes=table.classes, width=8)
    scoresde.fit(sde, table, steps=2, validation=None, progress=False)
    rows = pd.DataFrame({"kind": ["a", ""] * 20, "size": [None, "l"] * 20, "x": [0.3] * 40})
    found = scoresde.impute(sde, rows, generator=generator(0))
    assert (found["kind"][0::2] == "a").all()
    assert (found["size"][1::2] == "l").all()
    assert set(found["size"][0::2]) == {"s", "l"}
    with pytest.raises(ValueError, match="column 'kind' has 'q', which the table does not have"):
        scoresde.impute(sde, rows.assign(kind="q"))


def test_rows_of_a_model_under_a_category_need_none() -> None:
    numbers = torch.randn(60, generator=generator(5)).numpy()
    table = scoresde.Table({"kind": ["a", "b"] * 30, "x": numbers})
    sde = scoresde.build("vp", "mlp", shape=(1,), classes=2, width=8)
    scoresde.fit(sde, table, steps=2, validation=None, progress=False)
    under = sde.given(y=1)
    found = scoresde.marginal_log_prob(under, {"x": [0.3, NAN]}).log_prob
    assert float(found[0]) == pytest.approx(float(scoresde.log_prob(under, {"x": [0.3]})))
    assert found[1] == 0


def test_the_command_fills_in_categories(tmp_path: Path, capsys: Any) -> None:
    numbers = torch.randn(60, generator=generator(5)).numpy()
    table = scoresde.Table({"kind": ["a", "b"] * 30, "x": numbers})
    sde = scoresde.build("vp", "mlp", shape=(1,), classes=2, width=8)
    scoresde.fit(sde, table, steps=2, validation=None, progress=False)
    scoresde.save(sde, tmp_path / "model")
    (tmp_path / "gaps.csv").write_text("kind,x\na,\n,0.5\n,\nb,1.25\n")
    out = tmp_path / "out.csv"
    files = [str(tmp_path / name) for name in ("model", "gaps.csv")]
    main(["impute", *files, "--out", str(out), "--steps", "5", "--particles", "2"])
    assert "4 gaps filled in 4 rows" in capsys.readouterr().out
    found = pd.read_csv(out)
    assert not found.isna().any().any()
    assert set(found["kind"]) <= {"a", "b"}
    assert found["kind"][0] == "a"
    assert found["x"][3] == 1.25


def test_bad_rows_are_refused() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    image = scoresde.build("vp", "unet", shape=(1, 8, 8), channels=8)
    for model, rows, how, why in (
        (sde, torch.zeros(3, 3), {}, "x has shape"),
        (sde, torch.full((3, 2), math.inf), {}, "infinite"),
        (sde, torch.zeros(3, 2), {"draws": 1}, "draws is at least 2"),
        (image, torch.zeros(3, 1, 8, 8), {}, "takes models of vectors"),
    ):
        with pytest.raises(ValueError, match=why):
            scoresde.marginal_log_prob(model, rows, **how)


@pytest.mark.filterwarnings("ignore:features .* are constant")
def test_a_constant_with_another_number_has_density_0() -> None:
    data = torch.randn(500, 3, generator=generator(0))
    data[:, 1] = 7.0
    sde = scoresde.build("vp", "mlp", shape=(3,), width=8).standardize(data)
    rows = torch.tensor([[0.5, 8.0, torch.nan], [0.5, 7.0, torch.nan], [0.5, 8.0, 0.0]])
    found = scoresde.marginal_log_prob(sde, rows, seed=0)
    mean, scale = data[:, 0].mean(), data[:, 0].std(correction=0)
    want = float(torch.distributions.Normal(mean, scale).log_prob(torch.tensor(0.5)))
    assert found.log_prob[[0, 2]].isneginf().all()
    assert float(found.stderr[0]) == 0
    assert float(found.log_prob[1]) == pytest.approx(want, abs=4 * float(found.stderr[1]))


def test_modes_far_from_an_oracles_own_scale() -> None:
    """Two modes at ±20; where 40 steps lose the density between them, the error says so."""
    mixture = scoresde.toy.GaussianMixture([[-20.0, -20.0, 0.0], [20.0, 20.0, 0.0]], 0.5)
    sde = scoresde.oracle(mixture, scoresde.VPSDE())
    rows = torch.tensor([[NAN, -20.0, 0.0], [NAN, 20.5, 0.05], [NAN, NAN, 0.0]])
    law = torch.distributions.Normal(0.0, 0.5)
    near = [float(law.log_prob(torch.tensor(x)).double()) for x in (0.0, 0.5, 0.05)]
    want = [2 * near[0] - math.log(2), near[1] + near[2] - math.log(2), near[0]]
    with pytest.warns(UserWarning, match="log p of 1 of 3 rows has a standard error"):
        found = scoresde.marginal_log_prob(sde, rows, seed=0)
    error = (found.log_prob - torch.tensor(want)).abs()
    assert (error[:2] < 0.2).all()
    assert (found.stderr[:2] < 0.2).all()
    assert error[2] < 4 * found.stderr[2]
    assert found.stderr[2] > 1


def test_options_that_are_no_solvers_leave_the_steps_as_they_are() -> None:
    sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE()).double()
    rows = torch.tensor([[0.3, NAN], [NAN, -0.2]])
    plain, few, finer = (
        scoresde.marginal_log_prob(sde, rows, draws=8, seed=0, **how).log_prob
        for how in ({}, {"batch_size": 7}, {"steps": 20})
    )
    torch.testing.assert_close(plain, few, rtol=0, atol=1e-9)
    assert not torch.equal(plain, finer)
