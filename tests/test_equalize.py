"""Equalized columns of tables: the tree against a recursion written by hand, the map and its
Jacobian, densities of known clumps, and what a model keeps of the map.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scoresde
from conftest import generator
from scoresde import Table
from scoresde.cli.commands import main
from scoresde.model.tables.equalize import (
    STOP,
    USUAL_HALVINGS,
    equalizing_knots,
    knots_of_unequal_bins,
)
from scoresde.model.tables.schema import TableSchema

pd = pytest.importorskip("pandas")


def clumps(n: int = 2000) -> Any:
    """Multiples of 32, at which a spread of 1000 has cells of 32 bins, and a normal column."""
    rng = np.random.default_rng(0)
    hd = 32 * np.round(rng.normal(200, 1000 / 32, n)).astype(int)
    hd[0] += 1  # so that the step is 1
    return pd.DataFrame({"hd": hd, "x": rng.normal(size=n)})


def by_hand(counts: list[int], widths: list[float] | None = None) -> tuple[float, list[float]]:
    """Evidence of a node of the tree, and the masses of its bins; the node has mass 1."""
    n = sum(counts)
    widths = widths or [1.0] * len(counts)
    if len(counts) == 1:
        return 0.0, [1.0]
    half = len(counts) // 2
    left, right = counts[:half], counts[half:]
    ours = [by_hand(left, widths[:half]), by_hand(right, widths[half:])]
    wide = [sum(widths[:half]) / sum(widths), sum(widths[half:]) / sum(widths)]
    chance = 1.0
    seen = [0, 0]
    for side, part in enumerate((left, right)):  # one value after the other
        for _ in range(sum(part)):
            chance *= (wide[side] + seen[side]) / (1 + sum(seen)) / wide[side]
            seen[side] += 1
    split = (1 - STOP) * chance * math.exp(ours[0][0] + ours[1][0])
    evidence = math.log(STOP + split)
    if split <= STOP:
        return evidence, [w / sum(widths) for w in widths]
    share = (wide[0] + seen[0]) / (1 + n)
    masses = [share * m for m in ours[0][1]] + [(1 - share) * m for m in ours[1][1]]
    return evidence, masses


def test_the_slopes_are_those_of_a_recursion_by_hand() -> None:
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.full(128, 0.15))
    near = rng.choice(128, 400, p=weights)
    values = np.concatenate([near, [-4250, 4250]]).astype(float)  # a spread of 300
    depth = math.floor(math.log2(values.std() / 16))
    width = 2**depth
    assert depth == 4
    x, z = map(np.array, equalizing_knots(values, 1.0, 0.0))
    parts = np.bincount(near, minlength=128).reshape(-1, width).tolist()
    want = width * np.array([m for part in parts for m in by_hand(part)[1]])
    assert len(np.unique(want.round(6))) > 20  # many splits
    assert (x[0], x[-1]) == (0, 128)
    got = np.diff(np.interp(np.arange(129), x, z))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_bins_of_different_widths_are_those_of_the_recursion() -> None:
    """log(k + 1) of integers k: cells end at the bin that holds a multiple of a sixteenth."""
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.full(600, 0.1))
    k = rng.choice(600, 1000, p=weights)
    edges = np.log(np.arange(700) + 1.0)
    x, z = map(
        np.array, knots_of_unequal_bins(k, lambda i: edges[i], lambda w: np.exp(w).astype(int) - 1)
    )
    middles = 0.5 * (edges[k] + edges[k + 1])
    cell = middles.std() / 16
    ends = np.unique(np.floor(np.exp(cell * np.arange(math.ceil(6.5 / cell)))).astype(int) - 1)
    counts = np.bincount(k, minlength=700)
    outside = (edges < x[0]) | (edges > x[-1])
    got = np.diff(np.where(outside, edges, np.interp(edges, x, z)))
    assert np.isin(x, edges).all()
    seen = 0
    for low, high in itertools.pairwise(ends[ends < 650]):
        widths = np.diff(edges[low : high + 1])
        want = widths.sum() * np.array(by_hand(counts[low:high].tolist(), widths.tolist())[1])
        np.testing.assert_allclose(got[low:high], want, rtol=1e-9)
        seen += len(np.unique((want / widths).round(6))) > 2
    assert seen > 10


def test_the_gain_on_new_rows_is_the_entropy_of_the_gaps() -> None:
    """One of 32 bins is taken: log 32 nats, less what a thousand numbers cost to learn."""
    rows = clumps(20_000)
    table = Table(rows[:10_000])
    assert "equalized" in str(table.columns[0])
    z, _ = table.encode(rows[10_000:])
    gain = float(table.log_det(z).mean())
    assert math.log(32) - 0.1 < gain < math.log(32)
    assert float((z[:, 0] - torch.tensor(rows["hd"][10_000:].to_numpy())).abs().max()) < 64


def test_the_gain_of_columns_with_bounds_is_the_entropy_of_their_gaps() -> None:
    """Prices are multiples of 50, and shares of 1/1000 multiples of 4/1000."""
    rng = np.random.default_rng(0)
    price = 50 * np.round(rng.lognormal(4, 0.5, 20_000)).astype(int)
    share = np.round(0.25 / (1 + np.exp(-rng.normal(size=20_000))), 3) * 4
    price[0] += 1
    share[0] += 0.001
    rows = pd.DataFrame({"price": price, "share": np.round(share, 3)})
    bounds: Any = {"price": (0, None), "share": (0, 1)}
    table = Table(rows[:10_000], bounds=bounds)
    assert [str(column).endswith("equalized") for column in table.columns] == [True, True]
    x = table.noisy(table.values(rows[10_000:])[0], generator(0))
    z = table.maps.forward(x)
    gain = table.maps.log_slopes(z) - table.maps.bounds_log_slopes(table.maps.without_bounds(x))
    gains = gain.mean(0).tolist()
    assert math.log(50) - 0.2 < gains[0] < math.log(50)
    assert math.log(4) - 0.2 < gains[1] < math.log(4)
    assert (table.decode(z)["price"].to_numpy() == price[10_000:]).all()
    assert (table.decode(z)["share"].to_numpy() == rows["share"][10_000:]).all()


@pytest.mark.parametrize(
    ("outlier", "zeros"), [(1e6, 0.0), (1e9, 0.0), (1e12, 0.0), (1e9, 0.3), (1e9, 0.7)]
)
def test_an_outlier_hides_no_other_value(outlier: float, zeros: float) -> None:
    """All else lies in one cell, whose width is a sixteenth of the spread: log p of fresh normal
    numbers is their entropy, less what some dozen numbers cost to learn.
    """
    rng = np.random.default_rng(0)
    values = np.append(np.where(rng.random(4000) < zeros, 0, rng.normal(size=4000)), outlier)
    places, images = map(np.array, equalizing_knots(values, None, 0.0))
    fresh = rng.normal(size=4000)
    slopes = np.diff(images) / np.diff(places)
    log_p = np.log(slopes[np.searchsorted(places, fresh, side="right") - 1])
    log_p -= math.log(values.std() / 16)
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    log_p -= math.log(1 - zeros)
    assert -entropy - 0.15 < log_p.mean() < -entropy + 0.15


def test_a_value_that_occurs_many_times_is_no_clump() -> None:
    """Its density has no bound, and the tree would never end: it has the usual levels."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random(4000) < 0.7, 0.0, rng.normal(size=4000))
    places = np.array(equalizing_knots(values, None, 0.0)[0])
    assert len(places)
    assert np.diff(places).min() > 0.99 * values.std() / 16 / 2**USUAL_HALVINGS


def test_smooth_columns_stay_as_they_are() -> None:
    """A column in 3·10⁴ is changed by chance at the most, as 350 show none (95%: below 1%)."""
    rng = np.random.default_rng(0)
    for n in (150, 3000):
        for _ in range(50):
            assert equalizing_knots(rng.normal(size=n), None, 0.0) == ((), ())
            assert equalizing_knots(rng.poisson(900, n), 1.0, 0.0) == ((), ())
        for _ in range(25):
            smooth = {
                "n": rng.geometric(0.01, n),
                "x": rng.lognormal(0, 2, n),
                "p": rng.beta(2, 3, n),
            }
            table = Table(smooth, bounds={"n": (1, None), "x": (0, None), "p": (0, 1)})
            assert not any(column.knots for column in table.numeric)
    assert Table(clumps(), equalize=False).columns[0].describe()["knots"] == []


def test_rows_come_back_and_the_jacobian_is_that_of_autograd() -> None:
    rows = clumps()
    rows["clump"] = np.where(rows.index % 3, rows["x"].to_numpy() ** 3, 1 + 1e-3 * rows["x"])
    table = Table(rows)
    assert [bool(column.describe()["knots"]) for column in table.columns] == [True, False, True]
    z, _ = table.encode(rows, generator(0))
    again = table.decode(z)
    assert (again["hd"] == rows["hd"]).all()
    np.testing.assert_allclose(again["clump"], rows["clump"], rtol=0, atol=1e-9)
    values, _ = table.values(rows[:50])
    x = table.noisy(values, generator(0)).requires_grad_()
    slopes = torch.autograd.grad(table.maps.forward(x).sum(), x)[0]
    torch.testing.assert_close(slopes.log(), table.maps.log_slopes(table.maps.forward(x)))
    outside = torch.tensor([[-1e9, 0.0, 1e9]], dtype=torch.float64)
    assert torch.equal(table.maps.forward(outside), outside)
    gaps = x.detach()[:1] * torch.tensor([[math.nan, 1.0, 1.0]])  # a gap moves no other number
    moved = table.maps.forward(torch.cat([gaps, x.detach()[:1]]))
    assert bool(moved[0, 0].isnan())
    assert torch.equal(moved[0, 1:], moved[1, 1:])
    assert float(table.steps[0]) == pytest.approx(float(table.maps.least_slopes()[0]))


@pytest.mark.parametrize("bounds", [(-5.0, None), (None, 9.0), (-4.0, 4.5)])
@pytest.mark.parametrize("step", [None, 0.001])
def test_bounded_columns_have_the_jacobian_of_both_maps(bounds: Any, step: float | None) -> None:
    rng = np.random.default_rng(0)
    x = rng.choice(np.linspace(-3.5, 4, 26), 3000) + 0.004 * rng.normal(size=3000)
    table = Table({"x": x if step is None else np.round(x, 3)}, bounds={"x": bounds})
    assert (table.numeric[0].step, bool(table.numeric[0].knots)) == (step, True)
    values, _ = table.values(table.frame)
    points = table.noisy(values, generator(0)).requires_grad_()
    z = table.maps.forward(points)
    slopes = torch.autograd.grad(z.sum(), points)[0]
    torch.testing.assert_close(slopes.log(), table.maps.log_slopes(z))
    torch.testing.assert_close(table.maps.inverse(z), points, atol=1e-9, rtol=0)
    plain = Table(table.frame, bounds={"x": bounds}, equalize=False)
    w = plain.maps.forward(points)
    assert float((z - w).detach().abs().max()) < float(w.detach().std()) / 16
    gain = table.maps.log_slopes(z) - plain.maps.log_slopes(w)
    assert float(gain.detach().mean()) > 1.0
    again = TableSchema.rebuild(json.loads(json.dumps(table.describe())), (1,))
    assert again is not None
    assert torch.equal(again.maps.forward(points), z)
    if step is not None:
        finest = torch.autograd.grad(table.maps.forward(points).sum(), points)[0].min() * step
        assert 0 < float(table.steps) <= float(finest)


def test_log_p_of_an_exact_model_has_the_jacobian() -> None:
    from scipy import stats

    rows = clumps()
    table = Table(rows, steps={"hd": None, "x": None})
    law = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1000.0)
    sde = scoresde.oracle(law, scoresde.RectifiedFlow()).double()
    sde.table = table.schema()
    got = scoresde.log_prob(sde, rows[:5], solver="rk45", rtol=1e-6, atol=1e-6)
    x, z = map(np.array, (table.numeric[0].knots, table.numeric[0].images))
    value = rows["hd"][:5].to_numpy()
    at = np.searchsorted(x, value, side="right") - 1
    slope = (z[at + 1] - z[at]) / (x[at + 1] - x[at])
    want = stats.norm(0, 1000).logpdf(z[at] + slope * (value - x[at])) + np.log(slope)
    want = want + stats.norm(0, 1000).logpdf(rows["x"][:5])
    np.testing.assert_allclose(got.numpy(), want, atol=1e-4)


@pytest.mark.parametrize("kind", ["tensor", "frame"])
def test_fit_says_what_a_table_would_gain(kind: str) -> None:
    """log 32 − ½ at the most of the gain that the rows themselves show."""
    rows = clumps(4000).astype(float)
    data = rows if kind == "frame" else torch.tensor(rows.to_numpy())
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    name = {"tensor": "column 0", "frame": "'hd'"}[kind]
    with pytest.warns(UserWarning, match=f"^the values of {name} clump") as told:
        scoresde.fit(sde, data, steps=1, progress=False, validation=None)
    gain = float(str(told[0].message).rpartition("about ")[2].split()[0])
    assert math.log(32) - 0.5 < gain < math.log(32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scoresde.fit(sde, data, steps=1, progress=False, validation=None)  # once
        fresh = scoresde.build("vp", "mlp", shape=(2,), width=8)
        scoresde.fit(fresh, Table(rows), steps=1, progress=False, validation=None)


def test_fit_is_silent_on_smooth_rows_and_on_many_zeros() -> None:
    rng = np.random.default_rng(0)
    zeros = np.maximum(rng.normal(size=(3000, 3)), 0)
    for x in (rng.normal(size=(3000, 40)), zeros, rng.poisson(9, (3000, 3)).astype(float)):
        sde = scoresde.build("vp", "mlp", shape=x.shape[1:], width=8)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scoresde.fit(sde, torch.tensor(x), steps=1, progress=False, validation=None)


def test_data_that_fit_refuses_are_not_searched_for_clumps() -> None:
    x = torch.from_numpy(clumps().to_numpy())
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match="is sparse"):
            scoresde.fit(sde, x.to_sparse(), steps=1, progress=False)
        with pytest.raises(ValueError, match="masked values"):
            scoresde.fit(sde, np.ma.array(x.numpy(), mask=x > 3), steps=1, progress=False)


@pytest.mark.parametrize("bounds", [None, (-1e300, 1e300)])
def test_numbers_at_the_ends_of_float64_make_no_warnings_of_numpy(bounds: Any) -> None:
    """A logit that is 0 to rounding for all values, and squares that overflow."""
    x = np.random.default_rng(0).normal(size=200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = Table({"x": x if bounds else 1e200 * x}, bounds={"x": bounds} if bounds else {})
    assert table.numeric[0].knots == ()


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_a_table_of_an_array_takes_arrays(kind: Any, tmp_path: Path) -> None:
    rows = clumps()
    array = kind(rows.to_numpy())
    table = Table(array, bounds={"x0": (0, None)})
    named = Table(
        rows.rename(columns={"hd": "x0", "x": "x1"}).astype(float), bounds={"x0": (0, None)}
    )
    assert table.describe() == {**named.describe(), "array": True}
    sde = fitted(table)
    assert list(scoresde.sample(sde, 2, steps=2, solver="heun").columns) == ["x0", "x1"]
    loaded = scoresde.load(scoresde.save(sde, tmp_path / "m"))
    how = {"solver": "heun", "steps": 4, "seed": 0}
    frame = {"x0": array[:9, 0], "x1": array[:9, 1]}
    got = [scoresde.log_prob(m, x, **how) for m in (sde, loaded) for x in (array[:9], frame)]
    assert all(torch.equal(each, got[0]) for each in got)
    gap = rows.to_numpy()[:3].copy()
    gap[0, 1] = math.nan
    whole = scoresde.impute(sde, kind(gap), steps=2)
    assert whole["x0"].tolist() == gap[:, 0].tolist()
    fitted(table, sde)
    scoresde.fit(sde, array, steps=1, progress=False)
    with pytest.raises(ValueError, match=r"have shape \(N, 2\), got \(9, 1\)"):
        scoresde.log_prob(sde, array[:9, :1])
    grad = torch.zeros(3, 2, requires_grad=True)
    with pytest.raises(ValueError, match="gradients do not pass"):
        scoresde.log_prob(sde, grad)


def test_the_bound_of_rows_has_the_jacobian() -> None:
    """The bound of an exact score is log p, up to the prior's 2e-5 and the noise (5 σ)."""
    table = Table(clumps(), steps={"hd": None, "x": None})
    law = scoresde.toy.GaussianMixture(torch.tensor([[6400.0, 0.0]]), torch.tensor([1000.0]))
    sde = scoresde.oracle(law, scoresde.RectifiedFlow()).double()
    sde.table = table.schema()
    rows = clumps()[:5]
    bound = scoresde.elbo(sde, rows, seed=0)
    exact = scoresde.log_prob(sde, rows, solver="rk45", rtol=1e-6, atol=1e-6)
    assert bool(((bound.log_prob - exact).abs() < 5 * bound.stderr + 1e-3).all())


def test_encoded_rows_are_not_taken_for_rows_of_an_array() -> None:
    """What `fit` holds out, and the marginals of rows: as for the same table by names."""
    rows = np.random.default_rng(0).gamma(2.0, size=(200, 2)) + 50  # encoded, below the bounds
    tables = [Table(rows, bounds={"x0": (50, None)}, equalize=False)]
    by_name = {"x0": rows[:, 0], "x1": rows[:, 1]}
    tables.append(Table(by_name, bounds={"x0": (50, None)}, equalize=False))
    judged = []
    for table in tables:
        torch.manual_seed(0)
        sde = scoresde.build("vp", "mlp", shape=table.shape, width=8, depth=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has learnt nothing in 5 steps
            scoresde.fit(sde, table, steps=5, batch_size=64, seed=0, progress=False)
        some = {name: column[:4].copy() for name, column in by_name.items()}
        some["x1"][0] = math.nan
        how = {"solver": "heun", "steps": 4, "seed": 0, "draws": 10}
        judged.append(scoresde.marginal_log_prob(sde, some, **how).log_prob)
        whole = scoresde.log_prob(sde, by_name, solver="heun", steps=4, seed=0)
        assert torch.allclose(judged[-1][1:], whole[1:4].double(), atol=1e-5)
    assert torch.equal(judged[0], judged[1])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_rows_of_a_tensor_are_dropped(kind: torch.dtype) -> None:
    x = torch.arange(40.0).reshape(20, 2).to(kind)
    x[3, 1] = math.nan
    with pytest.warns(UserWarning, match="1 of 20 rows"):
        table = Table(x.requires_grad_(), missing="drop")
    kept = torch.cat([x[:3], x[4:]]).detach().float()
    assert torch.equal(torch.tensor(np.stack([*table.frame.values()], 1)).float(), kept)


def fitted(table: Table, sde: Any = None, steps: int = 5) -> scoresde.ScoreSDE:
    """A small model after a few steps."""
    torch.manual_seed(0)
    sde = sde or scoresde.build("vp", "mlp", shape=table.shape, width=8, depth=1)
    scoresde.fit(sde, table, steps=steps, batch_size=64, generator=generator(0), progress=False)
    return sde


@pytest.mark.parametrize("bounded", [False, True])
def test_a_model_keeps_its_map_in_files_and_in_further_training(
    bounded: bool, tmp_path: Path
) -> None:
    rows = clumps()
    bounds: Any = {"hd": (0, None)} if bounded else {}
    sde = fitted(Table(rows[:1000], bounds=bounds))
    assert sde.table is not None
    about = sde.table.describe()
    loaded = scoresde.load(scoresde.save(sde, tmp_path / "m"))
    assert loaded.table is not None
    assert loaded.table.describe() == about
    how = {"solver": "heun", "steps": 4}
    both = [scoresde.log_prob(m, rows[:9], generator=generator(0), **how) for m in (sde, loaded)]
    assert torch.equal(*both)
    other = Table(pd.concat([rows[1000:], rows[:1]]), bounds=bounds)
    assert other.describe() != about
    assert fitted(other, sde).table.describe() == about  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"knots": [0.0, 1.0, 1.0]}, "step"),
        ({"knots": [0.0, 2.0], "images": [0.0, 1.0, 2.0]}, "step"),
        ({"knots": [0.0, math.nan], "images": [0.0, 2.0]}, "step"),
        ({"knots": [0.0, 2.0], "images": [0.0, 1.0]}, "step"),  # the ends move
        ({"knots": "0"}, "step"),
    ],
)
def test_hostile_knots_are_refused(change: dict[str, Any], value: str) -> None:
    about = json.loads(json.dumps(Table(clumps(), equalize=False).describe()))
    about["columns"][0] |= change
    with pytest.raises(ValueError, match=f"its column 'hd' has a {value}"):
        TableSchema.rebuild(about, (2,))


def test_a_record_from_before_there_were_knots_is_read() -> None:
    about = json.loads(json.dumps(Table(clumps(), equalize=False).describe()))
    for name in ("knots", "images"):
        del about["columns"][0][name]
    found = TableSchema.rebuild(about, (2,))
    assert found is not None
    assert found.numeric[0].knots == ()


@pytest.mark.parametrize("option", [[], ["--no-equalize"]])
def test_the_command_equalizes(
    option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("scoresde.cli.tables.fit", lambda sde, table, **how: seen.append(table))
    clumps().to_csv(tmp_path / "t.csv", index=False)
    main(["fit", str(tmp_path / "t.csv"), "--out", str(tmp_path / "m"), "--table", *option])
    assert bool(seen[0].numeric[0].knots) == (not option)


def test_equalize_is_true_or_false() -> None:
    with pytest.raises((TypeError, ValueError), match="equalize"):
        Table(clumps(), equalize="yes")  # type: ignore[arg-type]


def test_log_p_of_own_samples_is_that_of_rows_far_from_zero() -> None:
    """Slopes are found in float64: float32 would confuse knots at 10⁶."""
    rng = np.random.default_rng(0)
    places = 1e6 + rng.choice(np.linspace(-2, 2, 41), 1000)
    table = Table({"a": places + 1e-3 * rng.normal(size=1000), "b": rng.normal(size=1000)})
    assert "equalized" in str(table.columns[0])
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    scoresde.fit(sde, table, steps=1, progress=False, validation=None)
    rows, own = scoresde.sample_and_log_prob(sde, 100, steps=20, seed=0)
    again = scoresde.log_prob(sde, rows, steps=20)
    torch.testing.assert_close(own.double(), again.double(), atol=0.02, rtol=0)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e290])
def test_knots_scale_with_a_column_whose_squares_float64_lacks(scale: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.choice(np.linspace(-2, 2, 41), 1000) + 1e-4 * rng.normal(size=1000)
    whole, images = map(np.array, equalizing_knots(values, None, 0.0))
    with np.errstate(all="raise", under="ignore"):
        scaled = equalizing_knots(scale * values, None, 0.0)
    table = Table({"a": scale * values})
    z, _ = table.encode({"a": scale * values})
    gain = np.log(np.diff(images) / np.diff(whole))
    at = np.searchsorted(whole, values, side="right") - 1
    want = float(gain[np.clip(at, 0, len(gain) - 1)].mean())
    # rounding moves values at the edges of bins
    assert float(table.log_det(z).mean()) == pytest.approx(want, abs=0.1)
    assert len(scaled[0]) == pytest.approx(len(whole), rel=0.1)


def test_bins_that_float64_would_round_are_not_spread() -> None:
    rng = np.random.default_rng(0)
    whole = 10**15 + 1000 * rng.integers(0, 1000, 2000)
    whole[0] += 1  # so that the step is 1
    near = rng.choice(np.linspace(-2, 2, 41), 2000) + 1e-3 * rng.normal(size=2000)
    table = Table({"n": whole, "x": 1e12 + near})
    assert not any("equalized" in str(column) for column in table.columns)
    z, _ = table.encode(table.frame)
    assert (np.asarray(table.decode(z)["n"]) == whole).all()
