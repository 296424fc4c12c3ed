"""Tables with columns of several kinds: what a column is, rows as numbers and back, log p of
known distributions, and what a model keeps of it.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scoresde
from conftest import generator
from scoresde import Table
from scoresde.cli.commands import main
from scoresde.model.tables.columns import Numeric
from scoresde.model.tables.combinations import Combinations
from scoresde.model.tables.schema import TableSchema
from scoresde.storage import records as storage

pd = pytest.importorskip("pandas")

N = 400
RNG = np.random.default_rng(0)
ROWS = pd.DataFrame(
    {
        "carat": np.round(RNG.lognormal(0, 0.5, N), 2),
        "price": RNG.integers(300, 10_000, N),
        "cut": pd.Categorical(RNG.choice([*"abc"], N), categories=[*"cbaz"], ordered=True),
        "x": RNG.normal(size=N),
        "share": RNG.beta(2, 3, N),
        "small": np.round(RNG.normal(size=N), 1).astype(np.float32),
        "third": RNG.integers(0, 9, N) / 3,
        "stars": RNG.integers(0, 6, N).astype(np.int8),
        "sold": RNG.random(N) < 0.3,
        "shop": RNG.choice(["here", "there"], N),
    }
)
BOUNDS = {"carat": (0, None), "share": (0, 1), "stars": (0, 5)}
EXACT = {"solver": "rk45", "rtol": 1e-7, "atol": 1e-7, "errors": False}


def table(**how: Any) -> Table:
    return Table(ROWS, **{"bounds": BOUNDS} | how)


def small(rows: Table, **how: Any) -> scoresde.ScoreSDE:
    """A model of few units, trained for a few steps."""
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=rows.shape, classes=rows.classes, width=8, depth=1)
    how = {"steps": 5, "batch_size": 16, "progress": False, "generator": generator(0)} | how
    scoresde.fit(sde, rows, **how)
    return sde


def gaussian(schema: Table, mean: float = 0.0, std: float = 1.0) -> scoresde.ScoreSDE:
    """A model whose encoded rows are N(mean, std²) in each of D columns, exactly."""
    d = schema.shape[0]
    law = scoresde.toy.GaussianMixture(torch.full((1, d), mean), std)
    sde = scoresde.oracle(law, scoresde.RectifiedFlow()).double()
    sde.table = schema.schema()
    return sde


# ---------------------------------------------------------------------- what a column is


def test_kinds_and_steps_of_columns_are_found() -> None:
    found = {column.name: column for column in table().columns}
    steps = {name: column.step for name, column in found.items() if isinstance(column, Numeric)}
    assert steps.pop("third") == pytest.approx(1 / 3)
    assert steps == {
        "carat": 0.01,
        "price": 1.0,
        "x": None,
        "share": None,
        "small": 0.1,
        "stars": 1.0,
    }
    assert [column.name for column in table().categorical] == ["cut", "sold", "shop"]
    assert found["cut"].categories == ("c", "b", "a", "z")  # as declared


@pytest.mark.parametrize(
    ("values", "step", "origin"),
    [
        ([0.5, 1.5, 4.5], 1.0, 0.5),
        ([0.0, 0.4, 1.0], 0.2, 0.0),  # the smallest difference is 0.4
        ([-0.07, 0.57, 0.29, 1.14], 0.01, 0.0),  # 0.57/0.01 is no integer in float64
        ([1.0, 1.25, 2.0], 0.25, 0.0),
        ([3, 9, 6], 3.0, 0.0),
        ([1e6 + 0.5, 1e6 + 1.0, 1e6 + 3.0], 0.5, 0.0),
    ],
)
def test_the_step_is_the_greatest_that_all_values_are_multiples_of(
    values: list[float], step: float, origin: float
) -> None:
    column = Table({"a": values * 5}).numeric[0]
    assert column.step == pytest.approx(step, rel=1e-12)
    assert column.origin == pytest.approx(origin)


def test_fine_grids_are_continuous_and_the_user_has_the_last_word() -> None:
    fine = np.round(RNG.normal(size=200), 6)
    assert Table({"a": fine}).numeric[0].step is None
    assert Table({"a": np.repeat(fine, 3)}).numeric[0].step == 1e-6  # most rows repeat a value
    assert Table({"a": [1, 2, 5]}, steps={"a": None}).numeric[0].step is None
    assert Table({"a": [0.0, 0.5, 1.0]}, steps={"a": 0.25}).numeric[0].step == 0.25
    stated = table(categories=["stars"], bounds={})
    assert [column.name for column in stated.categorical] == ["cut", "stars", "sold", "shop"]


def test_its_text_shows_the_schema() -> None:
    text = repr(table()).splitlines()
    assert text[0] == "Table: 400 rows, 7 numeric columns, 3 categorical"
    assert text[1].split()[:4] == ["carat", "float64", "discretized,", "step"]
    assert "log above 0" in text[1]
    assert text[3].split()[:4] == ["cut", "category", "categorical,", "4"]


# ---------------------------------------------------------------------- rows and numbers


def test_rows_come_back_as_they_were() -> None:
    schema = table()
    z, labels = schema.encode(ROWS, generator(0))
    back = schema.decode(z, labels)
    assert [*back.columns] == [*ROWS.columns]
    assert (back.dtypes == ROWS.dtypes).all()
    for name in ROWS.columns.drop(["share", "third"]):
        assert (back[name] == ROWS[name]).all(), name
    for name in ("share", "third"):
        np.testing.assert_allclose(back[name], ROWS[name], rtol=1e-14)
    # whatever the order of the columns, and from a mapping too
    again, same = schema.encode(dict(ROWS[ROWS.columns[::-1]].items()), generator(0))
    assert torch.equal(again, z)
    assert torch.equal(same, labels)


def test_noise_is_uniform_in_the_bin_and_fresh() -> None:
    """Kolmogorov–Smirnov at p > 1e-4: one false alarm in 10,000 seeds, and this one is fixed."""
    from scipy.stats import kstest

    schema = Table({"n": [2, 7] * 1000})
    z = schema.encode(schema.frame, generator(0))[0][:, 0]
    u = (z - torch.tensor([2, 7] * 1000)) / 5
    assert kstest(u.numpy(), "uniform").pvalue > 1e-4
    assert not torch.equal(z, schema.encode(schema.frame, generator(1))[0][:, 0])


def test_the_jacobian_is_that_of_autograd() -> None:
    schema = Table(
        {
            "a": [0.5, 2.0, 9.1],
            "b": [-3.0, 0.7, 0.2],
            "c": [0.1, 0.3, 0.85],
            "d": [1.0, 2.5, 7.77],
        },
        bounds={"a": (0, None), "b": (None, 1), "c": (-1, 1)},
        steps={"a": None, "b": None, "c": 0.05},
    )
    x = torch.tensor([[0.3, -5.0, 0.12, 4.0], [7.0, 0.99, -0.9, 2.0]], dtype=torch.float64)
    z = schema.maps.forward(x)
    torch.testing.assert_close(schema.maps.inverse(z), x)
    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: schema.maps.forward(v[None])[0], x[row]
        )
        assert torch.allclose(schema.log_det(z)[row], jacobian.slogdet()[1], atol=1e-12)


def test_discretized_bounded_columns_keep_their_bounds() -> None:
    schema = Table(
        {"stars": [0, 5, 3, 1], "share": [0.0, 1.0, 0.25, 0.75]},
        bounds={"stars": (0, 5), "share": (0, 1)},
    )
    z, _ = schema.encode(schema.frame)
    assert bool(z.isfinite().all())
    far = torch.tensor([[-40.0, -40.0], [40.0, 40.0]])
    assert schema.decode(far)["stars"].tolist() == [0, 5]
    assert schema.decode(far)["share"].tolist() == [0.0, 1.0]
    inside = Table({"a": [0.123, 0.456, 0.789]}, bounds={"a": (0, 1)}, steps={"a": None})
    ends = inside.decode(torch.tensor([[-900.0], [900.0]]))["a"]
    assert 0 < ends[0] < ends[1] < 1
    inside.encode({"a": ends})


def test_steps_are_in_encoded_units() -> None:
    """Of log x at x ≤ 4: step 0.5 is 0.5/(4.5 + 0.025) at least, where 4.5 ends the last bin."""
    schema = Table(
        {"a": [0.5, 4.0, 1.5], "b": [1, 4, 2], "c": [0.1234, 0.5, 0.77777]},
        bounds={"a": (0.5, None)},
        steps={"c": None},
    )
    steps = schema.steps
    assert steps[1:].tolist() == [1.0, 0.0]
    assert steps[0] == pytest.approx(0.5 / (4.5 - 0.475))


def test_numbers_far_from_zero_keep_their_digits() -> None:
    stamps = 1_700_000_000 + RNG.integers(0, 1000, 50)
    schema = Table({"when": stamps})
    z, _ = schema.encode(schema.frame)
    assert float(z.abs().max()) <= 1001
    assert (schema.decode(z.float())["when"] == stamps).all()


# ---------------------------------------------------------------------- log p


def test_log_p_of_exact_models_is_that_of_scipy() -> None:
    from scipy import stats

    rows = {"a": [0.31, 2.0, 9.1234], "b": [-3.0, 0.7123, 0.2], "c": [0.1, 0.3456, 0.85]}
    schema = Table(
        rows, bounds={"a": (0, None), "b": (None, 1), "c": (0, 1)}, steps=dict.fromkeys("abc")
    )
    law = stats.norm(0.4, 0.8)
    got = scoresde.log_prob(gaussian(schema, 0.4, 0.8), rows, solver="rk45", rtol=1e-8, atol=1e-8)
    a, b, c = (np.array(rows[name]) for name in "abc")
    want = stats.lognorm(0.8, scale=math.exp(0.4)).logpdf(a)
    want = want + law.logpdf(-np.log(1 - b)) - np.log(1 - b)
    want = want + law.logpdf(np.log(c / (1 - c))) - np.log(c * (1 - c))
    np.testing.assert_allclose(got.numpy(), want, atol=1e-6)


def test_the_density_of_a_bounded_column_integrates_to_one() -> None:
    schema = Table(
        {"share": [0.123, 0.456, 0.789]}, bounds={"share": (0, 2)}, steps={"share": None}
    )
    grid = np.linspace(0, 2, 1002)[1:-1]
    p = scoresde.log_prob(gaussian(schema, 0.3, 0.7), {"share": grid}, solver="rk45").exp()
    # the trapezoid rule, as p vanishes at both ends
    assert float(p.sum()) * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-3)


def test_log_p_of_discretized_rows_bounds_their_probability() -> None:
    """Of N(0, 3²) and bins of width 2: E log p + log 2 is below log P, by the variance in a bin."""
    from scipy import stats

    schema = Table({"n": [-4, 0, 2, 6]})
    values = np.repeat([-4, 0, 2], 2000)
    got = scoresde.log_prob(gaussian(schema, 0.0, 3.0), {"n": values}, generator=generator(0))
    bound = got.reshape(3, -1).mean(1) + math.log(2)
    law = stats.norm(0, 3)
    v = np.array([-4, 0, 2])
    exact = torch.tensor(np.log(law.cdf(v + 2) - law.cdf(v)))
    assert bool((bound < exact).all())
    assert bool((bound > exact - 0.06).all())
    # the mean of log N over the bin, to the error of 2000 draws (5 standard errors < 0.04)
    mean = -0.5 * ((v + 2.0) ** 3 - v**3.0) / (3 * 2 * 9) - 0.5 * math.log(2 * math.pi * 9)
    assert torch.allclose(got.reshape(3, -1).mean(1), torch.tensor(mean), atol=0.04)


def test_categories_are_a_factor_with_their_probabilities() -> None:
    """Of four rows two have one combination, so that it alone occurred more than once."""
    rows = {
        "x": [0.11, 0.52, 1.33, 1.74],
        "a": ["u", "v", "u", "u"],
        "b": [True, False, True, False],
    }
    schema = Table(rows, steps={"x": None})
    assert schema.classes == (2, 2)
    assert schema.words == ("u, False", "u, True", "v, False", "v, True")
    sde = small(schema)
    z, labels = schema.encode(rows)
    assert labels is not None
    assert labels.tolist() == [1, 2, 1, 0]
    apart = scoresde.log_prob(sde.given(y=labels), z)
    p = schema.category_log_prob(torch.arange(4)).exp()
    assert float(p.sum()) == pytest.approx(1)
    assert int(p.argmax()) == 1
    assert torch.allclose(scoresde.log_prob(sde, rows), apart + p[labels].log(), atol=1e-6)
    # (v, True) never occurred
    new = {"x": rows["x"][:1], "a": ["v"], "b": [True]}
    under = scoresde.log_prob(sde.given(y="v, True"), {"x": new["x"]})
    assert torch.allclose(scoresde.log_prob(sde, new), under + p[3].log(), atol=1e-6)
    # given a combination its factor is left out
    one = scoresde.log_prob(sde.given(y="u, True"), {"x": rows["x"]})
    assert torch.equal(one, scoresde.log_prob(sde.given(y=labels[0]), z))
    missing = {"x": [0.2, math.nan], "a": ["u", "v"], "b": [True, False]}
    assert scoresde.log_prob(sde, missing, invalid="nan").isnan().tolist() == [False, True]


def test_combinations_of_earlier_versions_are_good_turing() -> None:
    """Nine of the rows' 4 · 2 · 2 combinations occur, one of them once."""
    counts = np.array([10, 20, 1, 30, 5, 5, 4, 3, 22])
    codes = RNG.permutation(np.stack(np.unravel_index(np.arange(16), (4, 2, 2)), 1))
    found = Combinations(codes[:9], counts)
    assert (found.classes, found.most) == (9, 16)
    p = found.probabilities
    assert p.sum() == pytest.approx(1)
    assert p[found.find(codes[:9])] == pytest.approx((1 - 1.5 / 101) * counts / 100)
    # the others as if columns were independent
    new = codes[9:][found.find(codes[9:]) >= 0]
    rows = np.repeat(codes[:9], counts, 0)
    alone = np.prod([(rows[:, j] == new[:, j, None]).mean(1) for j in range(3)], 0)
    assert p[found.find(new)] == pytest.approx(1.5 / 101 * alone / alone.sum())
    # as numbers they are like one that differs in the fewest columns
    differ = (new[:, None] != found.seen).sum(2)
    label = found.labels(found.find(new))
    assert (differ[np.arange(len(new)), label] == differ.min(1)).all()


def test_a_category_that_no_row_had_has_probability_zero() -> None:
    kinds = pd.Categorical(["a", "b"] * 9, categories=["a", "b", "c"], ordered=True)
    rows = {"x": RNG.normal(size=18), "kind": kinds, "size": ["s", "s", "l"] * 6}
    sde = small(Table(pd.DataFrame(rows)))
    new = {"x": [0.2, 0.3], "kind": ["a", "c"], "size": ["s", "s"]}
    with pytest.warns(UserWarning, match="1 of 2 rows have categories that no row"):
        assert scoresde.log_prob(sde, new).isinf().tolist() == [False, True]


def test_samples_have_the_frequencies_and_dtypes_of_the_table() -> None:
    """χ² of 12 combinations, 4000 draws, at p > 1e-4 for a fixed seed."""
    from scipy.stats import chisquare

    schema = table()
    drawn = schema.draw_categories(4000, generator(0))
    share = schema.category_log_prob(torch.arange(16)).exp().numpy()
    counts = torch.bincount(drawn, minlength=16).numpy()
    assert (counts[share == 0] == 0).all()  # the category that no row has
    assert chisquare(counts[share > 0], 4000 * share[share > 0]).pvalue > 1e-4
    assert torch.equal(schema.draw_categories(100, generator(0)), drawn[:100])
    sde = small(schema)
    drawn = scoresde.sample(sde, 20, generator=generator(1))
    assert (drawn.dtypes == ROWS.dtypes).all()
    assert drawn["stars"].between(0, 5).all()
    assert (drawn["carat"] == drawn["carat"].round(2)).all()
    pd.testing.assert_frame_equal(scoresde.sample(sde, 8, generator=generator(1)), drawn[:8])
    given = scoresde.sample(sde.given(y="b, False, here"), 3)
    assert given[["cut", "sold", "shop"]].to_numpy().tolist() == [["b", False, "here"]] * 3
    assert [*scoresde.sample(sde.given(), 1).columns] == [c.name for c in schema.numeric]


def test_sample_and_log_prob_agree_with_log_prob() -> None:
    """Of a table without steps the row itself is the point."""
    rows = {"x": [0.123, 0.456, 0.789, 0.35], "kind": ["a", "b", "a", "a"]}
    schema = Table(rows, bounds={"x": (0, 1)}, steps={"x": None})
    sde = small(schema)
    drawn, log_p = scoresde.sample_and_log_prob(sde, 30, generator=generator(0))
    assert torch.allclose(scoresde.log_prob(sde, drawn).float(), log_p, atol=2e-3)


def test_fit_learns_a_lognormal_and_its_groups() -> None:
    """Mean log p of 500 new rows within 0.1 nats of that of the truth on the same rows."""
    from scipy import stats

    rng = np.random.default_rng(1)
    group = rng.choice(["low", "high"], 2500, p=[0.3, 0.7])
    mean = np.where(group == "low", 0.0, 2.0)
    rows = pd.DataFrame({"x": rng.lognormal(mean, 0.5), "group": group})
    schema = Table(rows[:2000], bounds={"x": (0, None)})
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(1,), classes=2, width=32, depth=2)
    scoresde.fit(sde, schema, steps=400, lr=1e-2, ema=100, progress=False, generator=generator(0))
    held_out = rows[2000:]
    share = np.log(np.where(held_out["group"] == "low", 0.3, 0.7))
    law = stats.lognorm(0.5, scale=np.exp(mean[2000:]))
    truth = float((law.logpdf(held_out["x"]) + share).mean())
    assert abs(float(scoresde.log_prob(sde, held_out).mean()) - truth) < 0.1


# ---------------------------------------------------------------------- fit


def test_fit_draws_fresh_noise_for_every_batch() -> None:
    from scoresde.data.typed_table import EncodeRows

    encode = EncodeRows(Table({"n": [1, 2, 4]}))
    values = torch.ones(5, 1, dtype=torch.float64)
    first, again = (encode(values, generator(seed)) for seed in (0, 1))
    assert not torch.equal(first, again)
    assert bool(((first >= 1) & (first < 2)).all())
    with pytest.raises(TypeError, match="differs from row to row"):
        encode.log_det((1,))


def test_a_model_trains_further_and_validates_on_rows() -> None:
    schema = table()
    sde = small(schema, validation=ROWS[:50])
    assert sde.table is not None
    assert sde.table.describe() == schema.describe()
    history = scoresde.fit(sde, ROWS[:64], steps=3, batch_size=16, progress=False)
    assert len(history.loss) > 0
    with pytest.raises(ValueError, match="other columns, steps, bounds"):
        scoresde.fit(sde, table(bounds={}), steps=3, progress=False)
    with pytest.raises(TypeError, match="has learnt a table"):
        scoresde.fit(sde, torch.zeros(5, 7), steps=3, progress=False)


def test_a_fit_that_fails_leaves_no_schema() -> None:
    schema = table()
    sde = scoresde.build("vp", "mlp", shape=schema.shape, classes=schema.classes, width=8)
    with pytest.raises(TypeError):
        scoresde.fit(sde, schema, validation=3, progress=False)
    assert sde.table is None


# ---------------------------------------------------------------------- files


def test_a_saved_model_gives_the_same_rows_and_log_p_bit_for_bit(tmp_path: Path) -> None:
    sde = small(table())
    scoresde.save(sde, tmp_path / "m")
    for other in (
        scoresde.load(tmp_path / "m"),
        copy.deepcopy(sde),
        pickle.loads(pickle.dumps(sde)),
    ):
        assert other.table is not None
        assert repr(other.table) == repr(sde.table)
        assert other.table.describe() == sde.table.describe()  # type: ignore[union-attr]
        how = {"solver": "heun", "steps": 8}
        log_p = [
            scoresde.log_prob(m, ROWS[:5], generator=generator(0), **how) for m in (sde, other)
        ]
        assert torch.equal(*log_p)
        drawn = [scoresde.sample(m, 9, generator=generator(0), **how) for m in (sde, other)]
        pd.testing.assert_frame_equal(*drawn)


def test_a_resumed_run_knows_its_table(tmp_path: Path) -> None:
    out = scoresde.Checkpoints(tmp_path, every=3)
    small(table(), steps=6, checkpoints=out)
    (tmp_path / "model.json").unlink()
    torch.manual_seed(0)
    again = scoresde.Checkpoints(tmp_path, every=3, resume=True)
    sde = small(table(), steps=6, checkpoints=again)
    loaded = scoresde.load(tmp_path)
    assert loaded.table is not None
    assert loaded.table.describe() == sde.table.describe()  # type: ignore[union-attr]


HOSTILE: list[tuple[tuple[Any, ...], Any]] = [
    (("columns",), {}),
    (("columns", 0), None),
    (("columns", 0, "kind"), "code"),
    (("columns", 0, "name"), 3),
    (("columns", 0, "name"), "price"),  # one name twice
    (("columns", 0, "dtype"), "object"),
    (("columns", 0, "step"), -1.0),
    (("columns", 0, "step"), "1"),
    (("columns", 0, "decimals"), 10**9),
    (("columns", 0, "seen"), [2.0, 1.0]),
    (("columns", 0, "seen"), [0.0]),
    (("columns", 0, "seen"), [-1.0, 2.0]),  # outside the bounds
    (("columns", 0, "seen"), [-1e308, 1e308]),
    (("columns", 1, "step"), 1e308),
    (("columns", 1, "step"), 1e-320),
    (("columns", 1, "origin"), 1e308),
    (("columns", 1, "bounds"), [1e308, None]),
    (("columns", 0, "bounds"), [1.0, 0.0]),
    (("columns", 0, "extra"), 1),
    (("columns", 2, "categories"), []),
    (("columns", 2, "categories"), ["a", "a", "b", "c"]),
    (("columns", 2, "categories"), [["a"], "b", "c", "z"]),
    (("columns", 8, "categories"), ["no", "yes"]),
    (("categories", "numbers", 0), 99),
    (("categories", "numbers", 0), True),
    (("categories", "counts", 0), 1),
    (("categories", "counts"), [2]),
    (("categories", "share"), 0.0),
    (("categories", "more"), 1),
    (("categories", "tree"), []),
    (("categories", "tree", 0, "parent"), 0),
    (("categories", "tree", 0, "parent"), 3),
    (("categories", "tree", 0, "parent"), "1"),
    (("categories", "tree", 0, "pairs"), []),
    (("categories", "tree", 0, "pairs", 0), 99),
    (("categories", "tree", 0, "counts", 0), 0),
    (("categories", "tree", 0, "strength"), 3.0),
    (("categories", "tree", 0, "strength"), True),
    (("combinations",), [[0, 0, 0]]),
    (("counts",), [1]),
    (("more",), 1),
]


@pytest.mark.parametrize(("place", "value"), HOSTILE)
def test_a_hostile_record_is_refused(place: tuple[Any, ...], value: Any) -> None:
    about = json.loads(json.dumps(table().describe()))
    assert TableSchema.rebuild(about, (7,)) is not None
    part = about
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(ValueError, match=r"its (table|column)"):
        TableSchema.rebuild(about, (7,))


def test_a_record_of_another_model_is_refused(tmp_path: Path) -> None:
    scoresde.save(small(table()), tmp_path / "m")
    about, tensors = storage.read(tmp_path / "m", "model")
    about["table"] = Table({"x": [0.5, 1.0, 2.25]}).describe()
    storage.write(tmp_path / "m", "model", tensors, about)
    with pytest.raises(scoresde.CheckpointError, match="1 numeric columns"):
        scoresde.load(tmp_path / "m")
    rows = {name: ROWS[name] for name in ROWS if name not in ("cut", "sold", "shop")}
    more = Table(rows | {"cut": np.arange(N) % 40}, categories=["cut"], bounds=BOUNDS)
    about["table"] = more.describe()
    storage.write(tmp_path / "m", "model", tensors, about)
    with pytest.raises(scoresde.CheckpointError, match="classes=40"):
        scoresde.load(tmp_path / "m")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_holds_the_same_table(suffix: str, tmp_path: Path) -> None:
    rows = ROWS.astype({"cut": str, "small": float, "stars": int})
    path = tmp_path / f"t.{suffix}"
    rows.to_csv(path, index=False) if suffix == "csv" else rows.to_parquet(path, index=False)
    read = Table.read(path, bounds=BOUNDS)
    assert len(read) == N
    names = [column.describe() for column in read.numeric]
    assert names == [column.describe() for column in Table(rows, bounds=BOUNDS).numeric]
    z, labels = read.encode(rows, generator(0))
    assert torch.equal(z, read.encode(read, generator(0))[0])
    assert labels is not None


def test_the_command_fits_samples_and_scores_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(tmp_path / "t.csv")
    ROWS.to_csv(data, index=False)
    model = str(tmp_path / "m")
    options = ["--steps", "5", "--batch-size", "16", "--option", "width=8", "--option", "depth=1"]
    bounds = ["--bounds", "carat=0:", "--bounds", "share=0:1", "--bounds", "stars=0:5"]
    main(["fit", data, "--out", model, "--table", *bounds, *options, "--validation", data])
    assert "discretized, step 0.01, log above 0" in capsys.readouterr().out
    sde = scoresde.load(model)
    for suffix, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        out = str(tmp_path / f"new.{suffix}")
        main(["sample", model, "-n", "30", "--out", out, "--seed", "3"])
        drawn = scoresde.sample(sde, 30, generator=generator(3))
        for name in ROWS:
            assert (read(out)[name] == drawn[name]).all(), name
    main(["log-prob", model, str(tmp_path / "new.csv"), "--out", str(tmp_path / "p.npy")])
    want = scoresde.log_prob(sde, drawn, generator=generator(0), rtol=1e-5, atol=1e-5)
    assert np.array_equal(np.load(tmp_path / "p.npy"), want.numpy())
    assert "mean log p(x)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["sample", model, "--out", str(tmp_path / "x.npy")])
    assert "tables are written as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "wanted"), [([], "auto"), (["--validation", "none"], None)], ids=["auto", "none"]
)
def test_the_command_holds_rows_out_as_fit_does(
    option: list[str], wanted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    monkeypatch.setattr("scoresde.cli.tables.fit", lambda sde, data, **how: seen.update(how))
    data = str(tmp_path / "t.csv")
    ROWS.to_csv(data, index=False)
    main(["fit", data, "--out", str(tmp_path / "m"), "--table", *option])
    assert seen["steps"] == "auto"
    assert seen["validation"] == wanted
    with pytest.raises(SystemExit):
        main(["fit", data, "--out", str(tmp_path / "m"), "--drop-missing", "--columns", "x"])


@pytest.mark.parametrize("name", ["steps", "batch-size", "lr"])
def test_the_command_does_not_take_0_for_the_default(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ROWS.to_csv(tmp_path / "t.csv", index=False)
    how = ["--table", "--out", str(tmp_path / "m"), "--steps", "2", f"--{name}", "0"]
    with pytest.raises(SystemExit):
        main(["fit", str(tmp_path / "t.csv"), *how])
    assert re.search(f"{name} is .*, got 0", capsys.readouterr().err)


# ---------------------------------------------------------------------- bad input

X = [0.25, 0.5, 1.5]
BAD: list[tuple[Any, dict[str, Any], str]] = [
    ({}, {}, "the table is empty"),
    ({"x": []}, {}, "the table is empty"),
    (np.zeros((3, 2)), {}, "column 'x0' is constant"),
    (np.zeros(3), {}, r"a table is a data frame, a mapping .* got ndarray; .* x\[:, None\]"),
    (np.zeros((3, 2, 2)), {}, "a table is a data frame, a mapping .* got ndarray$"),
    ("rows.csv", {}, r"got str; a file is read by scoresde\.Table\.read"),
    (pd.Series(X), {}, r"got Series; write column\.to_frame"),
    ({"x": X[:1]}, {}, "the table has one row, and a density takes at least two"),
    (
        {"x": X, "y": pd.date_range("2020", periods=3, tz="UTC")},
        {},
        "'y' holds Timestamp, .* give dates as numbers",
    ),
    ({"x": X, "y": [1, 2]}, {}, "columns of a table have one length"),
    (pd.DataFrame([[1, 2]], columns=["a", "a"]), {}, "several columns are called 'a'"),
    ({"x": X, "y": [1.0, 1.0, 1.0]}, {}, "column 'y' is constant, 1"),
    ({"x": X, "y": [math.nan] * 3}, {}, "column 'y' has no values at all"),
    ({"x": X, "y": [None, "a", "b"]}, {}, "column 'y' has no value in 1 of 3 rows"),
    ({"x": [1.0, math.nan, 2.0]}, {}, "column 'x' has no value in 1 of 3 rows, first in row 1"),
    ({"x": [1.0, math.inf, 2.0]}, {}, "column 'x' has infinite values"),
    ({"x": X, "y": np.array(["2020-01-01"] * 3, "M8[D]")}, {}, "column 'y' is of datetime64"),
    ({"x": X, "y": [1, "a", None]}, {}, "column 'y' holds int and str"),
    ({"x": X, "y": [1, "a", 2.0]}, {}, "column 'y' holds float and int and str"),
    ({"x": X, "y": [True, 2, 3]}, {}, "column 'y' holds bool and int"),
    ({"x": X, "y": ["a", math.nan, "b"]}, {}, "column 'y' has no value in 1 of 3 rows"),
    ({"x": X, "y": np.ma.array([1, 2, 4], mask=[0, 1, 0])}, {}, "'y' has no value in 1 of 3 rows"),
    (
        {"x": X, "y": [-1e308, 0.5, 1e308]},
        {},
        "column 'y' runs from -1e\\+308 to 1e\\+308: divide",
    ),
    ({"x": X, "y": [10**400, 2, 3]}, {}, "column 'y' has integers that float64 can't hold"),
    ({"x": X, "y": np.zeros((3, 2))}, {}, "column 'y' has shape"),
    ({"y": ["a", "b"]}, {}, "no numeric column"),
    ({"x": X}, {"bounds": {"z": (0, 1)}}, "the table has no column 'z'"),
    ({"x": X}, {"bounds": {"x": (1, 0)}}, "is a pair such as"),
    ({"x": X}, {"bounds": {"x": (0, 10**400)}}, "is a pair such as"),
    ({"x": X}, {"bounds": {"x": (0, 1)}}, "column 'x' has 1.5 outside the bounds"),
    ({"x": X}, {"bounds": {"x": (0.25, None)}, "steps": {"x": None}}, "on the bounds"),
    ({"x": X}, {"steps": {"x": 0.4}}, "no multiple of its step 0.4"),
    ({"x": X}, {"steps": {"x": 0}}, "is a positive number or None"),
    ({"x": X}, {"steps": {"x": 1e300}}, "all its values lie within 1"),
    ({"x": X}, {"steps": {"x": 1e-20}}, "finer than float64 tells its values apart"),
    ({"x": X, "y": [1.0, math.inf, 2.0]}, {"categories": ["y"]}, "'y' has categories such as 1.0"),
    ({"x": X}, {"categories": [["x"]]}, "categories is a list of names"),
    ({"x": X, "y": [*"abc"]}, {"steps": {"y": 1}}, "column 'y' is categorical"),
    ({"x": X}, {"categories": "x"}, "categories is a list"),
    ({"x": X}, {"missing": "skip"}, "unknown missing= 'skip'"),
    ({"x": [1, 2**60, 5]}, {}, "integers beyond 2\\^53"),
    ({"x": [2**60, 2**60 + 5]}, {}, "integers beyond 2\\^53"),
    ({"x": [2**60, 2**60]}, {}, "is constant"),
    (
        {"x": np.arange(2000), "y": [str(i) for i in range(2000)]},
        {},
        "2,000 different categories",
    ),
]


@pytest.mark.parametrize(("rows", "how", "message"), BAD)
def test_a_bad_table_is_refused_in_one_sentence(
    rows: Any, how: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Table(rows, **how)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"carat": None}, "the rows lack the columns 'carat'"),
        ({"cut": "q"}, "column 'cut' has 'q', which the table does not have"),
        ({"share": 1.2}, "column 'share' has 1.2, and 2 more, outside the bounds"),
        ({"share": 0.0}, "on the bounds"),
        ({"stars": 6}, "column 'stars' has 6"),
        ({"x": math.nan}, "column 'x' has no value in 3 of 3 rows"),
        ({"x": math.inf}, "column 'x' has infinite values in 3 rows"),
        ({"price": "dear"}, "column 'price' is numbers in the table"),
    ],
)
def test_bad_rows_are_refused_before_any_work(change: dict[str, Any], message: str) -> None:
    rows = {name: ROWS[name][:3] for name in ROWS}
    for name, value in change.items():
        rows[name] = np.array([value] * 3)
        if value is None:
            del rows[name]
    with pytest.raises((ValueError, TypeError), match=message):
        table().encode(rows)


@pytest.mark.parametrize(("dtype", "most"), [("float16", 200), ("float32", 30_000)])
def test_integers_in_a_float_of_few_digits_are_discretized(dtype: str, most: int) -> None:
    values = np.random.default_rng(0).integers(0, most, N)
    column = Table({"x": values.astype(dtype)}).columns[0]
    assert column == Numeric("x", dtype, column.seen, 1.0, 0.0, 0)
    rough = np.random.default_rng(0).uniform(0, most, N)
    assert Table({"x": rough.astype(dtype)}, steps={"x": None}).columns[0].kind == "continuous"


@pytest.mark.parametrize("far", [0, 10**12, 10**15, -(10**15), 2**53 - 9])
def test_noise_stays_in_the_bin_of_integers_far_from_zero(far: int) -> None:
    column = far + np.random.default_rng(0).integers(0, 9, N)
    rows = Table({"n": column})
    z, _ = rows.encode(rows, generator(0))
    assert rows.decode(z)["n"].tolist() == column.tolist()


def test_more_rows_than_memory_holds_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="n=10000000000000 samples take"):
        scoresde.sample(small(table(), validation=None), 10**13)


def test_columns_that_a_model_does_not_know_are_not_read() -> None:
    rows = Table({"x": [0.5, 1.0, 2.25]})
    dates = np.array(["2020-01-01"] * 2, "M8[D]")
    values, _ = rows.values({"when": dates, "x": [0.5, 1.0]})
    assert values[:, 0].tolist() == [0.5, 1.0]


def test_tensors_and_numbers_of_numpy_are_taken() -> None:
    x = torch.tensor([0.5, 1.0, 2.25])
    how = {"steps": {"x": np.float32(0.25)}, "bounds": {"x": (np.int64(0), None)}}
    wanted = Table({"x": x.numpy()}, steps={"x": 0.25}, bounds={"x": (0, None)}).describe()
    for column in (x.clone().requires_grad_(), x.bfloat16()):
        assert Table({"x": column}, **how).describe() == wanted


@pytest.mark.parametrize("labels", [torch.tensor([[0], [1]]), torch.ones(2), torch.ones(1).long()])
def test_labels_of_another_shape_or_kind_are_refused(labels: torch.Tensor) -> None:
    rows = Table({"n": [1, 2, 5], "kind": ["a", "b", "a"]})
    with pytest.raises(ValueError, match="labels are 2 integers from 0 to 1"):
        rows.decode(torch.ones(2, 1), labels)
    assert rows.decode(torch.ones(2, 1), [0, 1])["kind"].tolist() == ["a", "b"]  # type: ignore


def test_values_between_steps_are_rounded_down_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="between the multiples of its step 0.5"):
        values, _ = Table({"x": [0.0, 0.5, 1.5]}).values({"x": [0.7, 1.5]})
    assert values[:, 0].tolist() == [0.5, 1.5]


def test_rows_with_gaps_are_dropped_if_the_user_says_so() -> None:
    rows = pd.DataFrame({"x": [0.5, None, 1.5, 2.5], "y": ["a", "b", None, "a"]})
    with pytest.warns(UserWarning, match="2 of 4 rows lack a value and are dropped"):
        schema = Table(rows, missing="drop")
    assert len(schema) == len(schema.frame) == 2
    assert schema.encode(schema)[0].shape == (2, 1)


def test_a_value_that_many_rows_have_is_told() -> None:
    with pytest.warns(UserWarning, match="column 'rain' is 0 in 50% of the rows"):
        Table({"rain": np.where(np.arange(100) < 50, 0, RNG.random(100))})


def test_another_default_device_changes_nothing() -> None:
    z, labels = table().encode(ROWS, generator(0))
    with torch.device("meta"):
        again, same = table().encode(ROWS, generator(0))
    assert torch.equal(again, z)
    assert torch.equal(same, labels)


def test_columns_may_have_the_names_of_attributes() -> None:
    rows = pd.DataFrame({"frame": [0.5, 1.0, 2.25], "shape": [1, 2, 4]})
    values, _ = Table(rows).values(rows)
    assert values[:, 0].tolist() == [0.5, 1.0, 2.25]


def test_verbs_of_tensors_refuse_rows_and_tables() -> None:
    sde = small(table())
    with pytest.raises(TypeError, match="here encode them"):
        scoresde.loss(sde, ROWS)
    with pytest.raises(TypeError, match="encoded rows"):
        scoresde.encode(sde, ROWS)
    with pytest.raises(TypeError, match="this one has learnt a table"):
        scoresde.reflow(sde, 4)
    with pytest.raises(TypeError, match="this one has learnt a table"):
        scoresde.Distribution(sde)


def test_a_model_of_another_size_is_refused() -> None:
    schema = table()
    narrow = scoresde.build("vp", "mlp", shape=(2,), classes=schema.classes, width=8)
    with pytest.raises(ValueError, match=r"shape=table\.shape"):
        scoresde.fit(narrow, schema, steps=2, progress=False)
    blind = scoresde.build("vp", "mlp", shape=schema.shape, width=8)
    with pytest.raises(
        ValueError, match=r"classes=\(4, 2, 2\), and the .* classes=table\.classes"
    ):
        scoresde.fit(blind, schema, steps=2, progress=False)
