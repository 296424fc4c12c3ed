"""Rows filled by any model with a score, against conditional distributions in closed form."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import generator
from scoresde import ScoreSDE, toy

NAN = math.nan
FEW: dict[str, Any] = {"particles": 8, "steps": 30}
pytestmark = pytest.mark.filterwarnings("ignore:.*populations have an effective size")


def gaussian() -> tuple[ScoreSDE, Tensor, Tensor]:
    """A whitened Gaussian in odd units, exactly: the model, its mean and covariance."""
    mix = torch.tensor([[1.0, 0.0, 0.0], [5.0, 3.0, 0.0], [0.1, 0.0, 0.2]], dtype=torch.float64)
    x = torch.randn(4000, 3, generator=generator(), dtype=torch.float64) @ mix.T
    x = x + torch.tensor([3.0, -70.0, 0.0], dtype=torch.float64)
    sde = scoresde.build("vp", "mlp", shape=(3,), width=4, depth=1).standardize(x)
    return sde.eval().double(), x.mean(0), torch.cov(x.T, correction=0)


def test_gaps_of_a_gaussian() -> None:
    """Another mask in each row: means within .25 standard deviations and spreads within 18% of the
    conditional ones (250 draws make .06 and 4.5%); a whole row stays, a row of gaps is a sample.
    """
    sde, mean, covariance = gaussian()
    x = torch.tensor(
        [[4.0, NAN, 0.3], [NAN, -72.0, NAN], [1.0, 2.0, 3.0], [NAN, NAN, NAN]],
        dtype=torch.float64,
    )
    found = scoresde.impute(sde, x, draws=250, generator=generator(1), **FEW)
    assert found.shape == (250, 4, 3)
    known = ~x.isnan()
    assert torch.equal(found[:, known], x[known].expand(250, -1))
    for i in (0, 1, 3):
        a, b = known[i], ~known[i]
        gain = covariance[b][:, a] @ torch.linalg.inv(covariance[a][:, a])
        wanted = mean[b] + gain @ (x[i, a] - mean[a])
        std = (covariance[b][:, b] - gain @ covariance[a][:, b]).diag().sqrt()
        drawn = found[:, i, b]
        assert float(((drawn.mean(0) - wanted) / std).abs().max()) < 0.25
        assert float((drawn.std(0) / std - 1).abs().max()) < 0.18


def test_a_gaussian_gives_no_warning() -> None:
    """Its weights differ by the error of the steps alone, down to the noise of what is known."""
    sde, mean, _ = gaussian()
    x = torch.stack([mean, mean + 1.0]).index_fill(1, torch.tensor([1]), NAN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scoresde.impute(sde, x, draws=20, generator=generator(1))


def test_modes_far_apart_have_their_weights() -> None:
    """Two of three modes fit what is known equally well: .5 ± .025 of 400 draws; 4 standard errors
    are a false alarm once in 15,000 runs. A twist without the Jacobian gives .62.
    """
    centres = torch.tensor([[-2.0, -2.0], [2.0, 2.0], [2.0, -2.0]])
    sde = scoresde.oracle(toy.GaussianMixture(centres, 0.3), scoresde.VPSDE()).double()
    row = torch.tensor([[2.0, NAN]], dtype=torch.float64)
    found = scoresde.impute(sde, row, draws=400, steps=60, generator=generator(3))
    assert abs(float((found[:, 0, 1] > 0).double().mean()) - 0.5) < 0.1


@pytest.mark.slow
def test_gaps_of_a_mixture() -> None:
    """Four modes in units of another mean and scale: the second column given the first, at a point
    where two modes share it .27 to .73. p > 2e-3, a false alarm once in 500 runs.
    """
    centres = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, 0.5], [1.5, -0.5]])
    mixture = toy.GaussianMixture(centres, 0.25, weights=[3, 1, 2, 2])
    sde = scoresde.oracle(mixture, scoresde.VPSDE()).double()
    sde.mean.copy_(torch.tensor([100.0, -3.0]))
    sde.scale.copy_(torch.tensor([20.0, 0.5]))
    at = torch.tensor(1.2, dtype=torch.float64)
    x = torch.tensor([[100.0 + 20.0 * float(at), NAN]], dtype=torch.float64)
    found = scoresde.impute(sde, x, draws=400, particles=16, steps=60, generator=generator(1))
    log_w = torch.tensor([3.0, 1.0, 2.0, 2.0]).log() - 0.5 * ((at - centres[:, 0]) / 0.25) ** 2
    mode = torch.multinomial(log_w.softmax(0), 400, True, generator=generator(2))
    truth = centres[mode, 1] + 0.25 * torch.randn(400, generator=generator(3))
    drawn = (found[:, 0, 1:] + 3.0) / 0.5
    p = scoresde.energy_test(
        drawn, truth[:, None].double(), permutations=999, generator=generator(4)
    )
    assert p > 2e-3


def test_images_and_constants() -> None:
    """More elements than are solved exactly, and a channel that is constant: what is known is
    kept, and a Gaussian of independent elements has its own law elsewhere.
    """
    sde = scoresde.build("vp", "mlp", shape=(2, 6, 12), width=4, depth=1).double()
    sde.mean.copy_(torch.tensor([5.0, 2.0]).reshape(sde.mean.shape))
    sde.scale.copy_(torch.tensor([3.0, 0.0]).reshape(sde.scale.shape))
    x = 5.0 + 3.0 * torch.randn(30, 2, 6, 12, generator=generator(), dtype=torch.float64)
    x[:, 1] = 2.0
    gaps = torch.rand(x.shape, generator=generator(1)) < 0.3
    found = scoresde.impute(
        sde, x.masked_fill(gaps, NAN), particles=2, steps=20, generator=generator(2)
    )
    assert torch.equal(found[~gaps], x[~gaps])
    torch.testing.assert_close(found[:, 1], x[:, 1])
    drawn = found[:, 0][gaps[:, 0]]
    assert abs(float(drawn.mean()) - 5.0) < 0.5
    assert abs(float(drawn.std()) / 3.0 - 1) < 0.1


def test_draws_do_not_depend_on_batches() -> None:
    sde, mean, _ = gaussian()
    x = mean.expand(9, 3).clone()
    x[::2, 1] = NAN
    whole = scoresde.impute(sde, x, draws=2, generator=generator(1), **FEW)
    parts = scoresde.impute(sde, x, draws=2, generator=generator(1), batch_size=3, **FEW)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-8)
    first = scoresde.impute(sde, x[:4], generator=generator(1), **FEW)
    again = scoresde.impute(sde, x, generator=generator(1), **FEW)
    torch.testing.assert_close(first, again[:4], rtol=0, atol=1e-8)


def test_each_row_has_its_own_condition() -> None:
    """A label that says the second column, which the first one does not."""
    torch.manual_seed(0)
    y = torch.arange(600) % 2
    rows = torch.stack([torch.randn(600), 10.0 * y + 0.1 * torch.randn(600)], 1)
    sde = scoresde.build("vp", "mlp", shape=(2,), classes=2, width=32, depth=2)
    scoresde.fit(sde, rows, given={"y": y}, steps=150, batch_size=128, progress=False)
    x = torch.tensor([[0.0, NAN], [0.0, 1.0], [0.5, NAN], [-0.5, NAN]])
    found = scoresde.impute(
        sde.given(y=torch.tensor([0, 1, 1, 0])), x, generator=generator(1), **FEW
    )
    assert (found[:, 1] > 5).tolist() == [False, False, True, False]


def test_frames_of_a_table() -> None:
    """A column without bounds, one of integers, one of shares and a category that says how large
    they are: what is there stays, gaps are filled with numbers that the table can have.
    """
    pd = pytest.importorskip("pandas")
    torch.manual_seed(0)
    y = torch.arange(600) % 2
    free = torch.randn(600) + 10.0 * y
    frame = pd.DataFrame(
        {
            "free": free.numpy(),
            "count": (torch.randn(600).exp() * 3 + 20 * y).floor().int().numpy(),
            "kind": ["small" if one == 0 else "large" for one in y.tolist()],
            "share": torch.sigmoid(torch.randn(600)).numpy(),
        }
    )
    table = scoresde.Table(frame, bounds={"share": (0, 1), "count": (0, None)})
    sde = scoresde.build("vp", "mlp", shape=table.shape, classes=table.classes, width=32, depth=2)
    scoresde.fit(sde, table, steps=200, batch_size=128, progress=False)
    gaps = frame.iloc[:24].astype({"count": float}).copy()
    guided = scoresde.toward(sde, lambda x: x[:, 0])
    with pytest.raises(ValueError, match="how frequent the categories"):
        scoresde.sample(guided, 2)
    kinds = scoresde.sample(guided.given(y="small"), 2, steps=4, solver="heun")["kind"]
    assert list(kinds) == ["small", "small"]
    gaps.index = range(100, 124)
    gaps.iloc[0::3, 0] = NAN
    gaps.iloc[1::3, 1] = NAN
    gaps.iloc[2::6, 3] = NAN
    gaps.iloc[2::6, 0] = NAN
    found = scoresde.impute(sde, gaps, generator=generator(1), **FEW)
    assert list(found.columns) == list(frame.columns)
    assert list(found.index) == list(range(100, 124))
    found = found.reset_index(drop=True)
    gaps = gaps.reset_index(drop=True)
    assert (found.dtypes == frame.dtypes).all()
    assert not found.isna().any().any()
    assert (found["kind"] == frame["kind"][:24]).all()
    for name in ("free", "count", "share"):
        known = ~gaps[name].isna()
        assert (found[name][known] == frame[name][:24][known]).all()
    assert ((found["free"] > 5) == (found["kind"] == "large")).sum() >= 20  # it is little trained
    assert found["share"].between(0, 1).all()
    assert (found["count"] >= 0).all()
    for rows, how, error, why in (
        (gaps.assign(free=math.inf), {}, ValueError, "infinite values in 24 rows"),
        (gaps, {"draws": 2}, TypeError, "draws= is for models without a table"),
        (gaps[["free", "kind"]], {}, ValueError, "the rows lack the columns"),
    ):
        with pytest.raises(error, match=why):
            scoresde.impute(sde, rows, **how)
    with pytest.raises(ValueError, match=r"without given\(y=\.\.\.\)"):
        scoresde.impute(sde.given(y="small"), gaps)


class Still(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_imputations_that_cannot_be_are_refused() -> None:
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.RectifiedFlow())
    x = torch.tensor([[0.0, NAN]])
    coupled = ScoreSDE(scoresde.RectifiedFlow(), Still(), shape=(2,), outcome="velocity")
    masked = scoresde.build("vp", "masked", shape=(2,), width=8)
    guided = scoresde.toward(sde, lambda x0: x0[:, 0])
    for model, rows, how, error, why in (
        (guided, x, {}, TypeError, "impute by the model that was guided"),
        (coupled, x, {}, ValueError, "impute takes a model with a score"),
        (sde, x, {"solver": "em"}, TypeError, "solver= is of solvers"),
        (sde, x, {"eta": 0.5}, TypeError, "eta= is of solvers"),
        (sde, x + math.inf, {}, ValueError, "infinite values"),
        (sde, x[:, :1], {}, ValueError, "x has shape"),
        (sde, x, {"draws": 0}, ValueError, "draws is at least 1"),
        (sde, x, {"particles": 0}, ValueError, "particles is at least 1"),
        (masked, x, {"particles": 4}, TypeError, "particles= is for networks"),
    ):
        with pytest.raises(error, match=why):
            scoresde.impute(model, rows, **how)
