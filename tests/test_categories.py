"""Categories of tables: labels of combinations, their probabilities, and what networks see."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import chisquare

import scoresde
from scoresde.backbones.labels import CombinedLabels
from scoresde.cli.commands import main
from scoresde.model.tables.categories import Categories, _share
from scoresde.model.tables.category_tree import (
    STRENGTHS,
    CategoryTree,
    _greatest_tree,
)

RNG = np.random.default_rng(0)
WORDS = [*"abcde"]


def chain(n: int, sizes: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a Markov chain of categories, and their log p."""
    rng = np.random.default_rng(seed)
    tables = [rng.dirichlet(np.ones(b), a) for a, b in itertools.pairwise((1, *sizes))]
    codes = np.zeros((n, len(sizes)), np.int64)
    log_p = np.zeros(n)
    before = np.zeros(n, np.int64)
    for j, table in enumerate(tables):
        drawn = (rng.random(n)[:, None] > table.cumsum(1)[before]).sum(1).clip(max=sizes[j] - 1)
        log_p += np.log(table[before, drawn])
        codes[:, j] = before = drawn
    return codes, log_p


# ---------------------------------------------------------------------- probabilities


@pytest.mark.parametrize("sizes", [(4,), (3, 2), (4, 3, 2, 5)])
def test_probabilities_of_all_combinations_sum_to_one(sizes: tuple[int, ...]) -> None:
    codes = np.stack([RNG.integers(0, max(1, size - 1), 60) for size in sizes], 1)
    found = Categories.of(codes, sizes)  # the last category of each column never occurs
    p = np.exp(found.log_prob(np.arange(math.prod(sizes))))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    unseen = (found.codes(np.arange(found.most)) == np.array(sizes) - 1).any(1)
    assert (p[unseen] == 0).all()
    assert (p[~unseen] > 0).all()


def test_one_column_has_its_shares() -> None:
    found = Categories.of(np.array([[0]] * 3 + [[1]] * 5 + [[2]]), (3,))
    assert np.exp(found.log_prob(np.arange(3))) == pytest.approx(np.array([3, 5, 1]) / 9)
    assert found.classes == 3


def test_it_finds_the_distribution_of_a_chain() -> None:
    """Ten columns of six categories, 6·10⁷ combinations: .05 nats from 20,000 rows."""
    sizes = (6,) * 10
    codes, log_p = chain(24_000, sizes)
    found = Categories.of(codes[:20_000], sizes)
    gap = log_p[20_000:] - found.log_prob(found.find(codes[20_000:]))
    assert 0 < gap.mean() < 0.05
    order = {frozenset(edge) for edge in enumerate(found.tree.parents) if edge[1] >= 0}
    assert order == {frozenset(edge) for edge in itertools.pairwise(range(10))}


def test_shares_of_combinations_tell_what_no_tree_can() -> None:
    """c = a xor b: pairs of columns are independent."""
    ab = RNG.integers(0, 2, (4000, 2))
    codes = np.concatenate([ab, ab[:, :1] ^ ab[:, 1:]], 1)
    found = Categories.of(codes, (2, 2, 2))
    p = np.exp(found.log_prob(np.arange(8)))
    right = found.codes(np.arange(8)) @ np.ones(3, np.int64) % 2 == 0
    assert p[right].sum() > 0.999
    assert (p > 0).all()


@pytest.mark.parametrize("n", [40, 400])
def test_independent_columns_lose_little(n: int) -> None:
    """Twelve columns of three: within .03 nats a row of their shares, on eight sets of rows."""
    rng = np.random.default_rng(n)
    lost = []
    for _ in range(8):
        codes = rng.integers(0, 3, (n, 12))
        new = rng.integers(0, 3, (1000, 12))
        found = Categories.of(codes, (3,) * 12)
        shares = sum(np.log(np.bincount(codes[:, j]) / len(codes))[new[:, j]] for j in range(12))
        lost.append(float((shares - found.log_prob(found.find(new))).mean()))
    assert np.mean(lost) < 0.03


def test_the_tree_is_the_greatest_of_all() -> None:
    weights = np.abs(RNG.normal(size=(4, 4)))
    weights = weights + weights.T
    parents = _greatest_tree(weights)
    edges = [(j, parent) for j, parent in enumerate(parents) if parent >= 0]
    pairs = [*itertools.combinations(range(4), 2)]
    best = 0.0
    for three in itertools.combinations(pairs, 3):
        reached = {0}
        for _ in range(3):
            reached |= {b for edge in three for b in edge if reached & {*edge}}
        if len(reached) == 4:
            best = max(best, sum(weights[edge] for edge in three))
    assert len(edges) == 3
    assert sum(weights[edge] for edge in edges) == pytest.approx(best)


def test_strengths_are_those_of_rows_left_out_in_turn() -> None:
    codes, _ = chain(300, (4, 5))
    edges = CategoryTree.of(codes, (4, 5)).edges
    edge = edges[0] if edges[0].above.size > 1 else edges[1]
    column = 1 if edge is edges[1] else 0
    parent = 1 - column

    def left_out(strength: float) -> float:
        total = 0.0
        for i, (a, b) in enumerate(codes[:, [column, parent]].tolist()):
            rest = np.delete(codes, i, 0)
            both = ((rest[:, column] == a) & (rest[:, parent] == b)).sum()
            rows = (rest[:, parent] == b).sum()
            share = (rest[:, column] == a).mean()
            total += math.log((both + strength * share) / (rows + strength))
        return total

    assert edge.strength == max(STRENGTHS, key=left_out)


def test_the_share_of_the_tree_is_the_most_probable() -> None:
    often = np.array([0.3, 0.0, 0.05, 0.2])
    tree = np.array([0.1, 0.2, 0.1, 0.1])
    counts = np.array([30, 1, 6, 20])
    found = minimize_scalar(
        lambda e: -(counts * np.log((1 - e) * often + e * tree)).sum(), (0.01, 0.99), (0, 1)
    )
    with np.errstate(divide="ignore"):
        assert _share(np.log(often), np.log(tree), counts) == pytest.approx(found.x, abs=1e-3)
    assert 0 < _share(np.log([0.5, 1e-300]), np.array([-1.0, -1e4]), np.array([5, 1])) < 1


@pytest.mark.parametrize("often", [False, True])
def test_draws_have_these_probabilities(often: bool) -> None:
    """χ² of 24 combinations, 20,000 draws, at p > 1e-4 for a fixed seed."""
    codes, _ = chain(400, (4, 3, 2), seed=3)
    found = Categories.of(codes, (4, 3, 2))
    if not often:
        found = Categories(found.tree, found.numbers[:0], found.counts[:0], 1.0)
    drawn = found.draw(np.random.default_rng(1).random((20_000, found.chances)))
    p = np.exp(found.log_prob(np.arange(24)))
    counts = np.bincount(drawn, minlength=24)
    assert (counts[p == 0] == 0).all()
    assert chisquare(counts[p > 0], 20_000 * p[p > 0] / p.sum()).pvalue > 1e-4


def test_draws_at_the_ends_of_the_unit_interval_are_categories() -> None:
    codes, _ = chain(50, (5, 4), seed=5)
    found = Categories.of(codes, (5, 4))
    for end in (0.0, 1.0 - 2**-53):
        drawn = found.draw(np.full((3, found.chances), end))
        assert np.isfinite(found.log_prob(drawn)).all()


def test_a_record_gives_the_same_probabilities() -> None:
    codes, _ = chain(500, (4, 3, 5))
    found = Categories.of(codes, (4, 3, 5))
    about = json.loads(json.dumps(found.describe()))["categories"]
    again = Categories.rebuild(about, (4, 3, 5))
    assert np.array_equal(again.log_prob(np.arange(60)), found.log_prob(np.arange(60)))
    assert again.describe() == found.describe()


def test_circles_in_a_record_are_refused() -> None:
    codes, _ = chain(200, (3, 3))
    about = Categories.of(codes, (3, 3)).describe()["categories"]
    for j in range(2):
        about["tree"][j] = {**about["tree"][1], "parent": 1 - j}
    with pytest.raises(ValueError, match="tree of categories"):
        Categories.rebuild(about, (3, 3))


def test_more_combinations_than_labels_are_refused() -> None:
    sizes = (2,) * 53
    with pytest.raises(ValueError, match=r"53 categorical columns have 9e\+15 combinations"):
        Categories.of(np.zeros((3, 53), np.int64), sizes)
    with pytest.raises(ValueError, match=r"fewer than 2\^53"):
        scoresde.build("vp", "mlp", shape=(1,), classes=sizes)


# ---------------------------------------------------------------------- networks


def test_labels_are_taken_apart() -> None:
    table = CombinedLabels((4, 3, 2), 5)
    torch.nn.init.normal_(table.weight)
    for number, codes in enumerate(itertools.product(range(4), range(3), range(2))):
        rows = [codes[0], 4 + codes[1], 7 + codes[2]]
        wanted = table.weight[rows].sum(0)
        assert torch.allclose(table(torch.tensor([number]))[0], wanted, atol=1e-6)
    assert torch.equal(table(torch.tensor([24]))[0], table.weight[-1])


@pytest.mark.parametrize("net", ["mlp", "resmlp"])
def test_networks_of_categories_have_exact_densities(net: str) -> None:
    """∫p(x | y) dx = 1, by quadrature, for three combinations of 10⁶ and for none."""
    torch.manual_seed(0)
    sde = scoresde.build("vp", net, shape=(1,), classes=(100, 100, 100), width=16).double()
    with torch.no_grad():
        for p in sde.net.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    x = torch.linspace(-12, 12, 201, dtype=torch.float64)[:, None]
    found = []
    for y in (0, 123_456, 999_999, None):
        under = sde.given() if y is None else sde.given(y=y)
        log_p = scoresde.log_prob(under, x, solver="heun", steps=40)
        found.append(log_p)
        assert float(torch.trapezoid(log_p.exp(), x[:, 0])) == pytest.approx(1, abs=3e-3)
    for a, b in itertools.combinations(found, 2):
        assert float((a - b).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="labels y run from 0 to 999999"):
        sde.given(y=10**6)


@pytest.mark.parametrize(
    ("classes", "match"),
    [
        ((), "at least two"),
        ((3,), "at least two"),
        ((3, 0), "at least 1"),
        ((3, 2.5), "integer"),
        ("34", "integer"),
        (-1, "at least 0"),
        ((10**9, 10**9), r"fewer than 2\^53"),
    ],
)
@pytest.mark.parametrize("net", ["mlp", "resmlp"])
def test_bad_classes_are_refused(net: str, classes: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        scoresde.build("vp", net, shape=(2,), classes=classes)


# ---------------------------------------------------------------------- tables


def wide_rows(n: int) -> pd.DataFrame:
    """A number and six columns of five words, 15,625 combinations, as x ~ N(Σ code/4, .3²)."""
    codes, _ = chain(n, (5,) * 6, seed=7)
    rng = np.random.default_rng(1)
    words = np.array(WORDS)
    rows = {f"c{j}": words[codes[:, j]] for j in range(6)}
    return pd.DataFrame({"x": codes.sum(1) / 4 + 0.3 * rng.normal(size=n), **rows})


@pytest.fixture(scope="module")
def trained() -> tuple[scoresde.ScoreSDE, pd.DataFrame]:
    rows = wide_rows(3000)
    table = scoresde.Table(rows)
    assert table.classes == (5,) * 6
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(1,), classes=table.classes, width=32, depth=2)
    scoresde.fit(sde, table, steps=200, lr=5e-3, validation=None, progress=False, seed=0)
    return sde, rows


def test_combinations_that_never_occurred_have_the_numbers_of_their_categories(
    trained: tuple[scoresde.ScoreSDE, pd.DataFrame],
) -> None:
    """x is N(Σ code/4, .3²) for all: .1 nats of log p(x | c) on combinations never trained on."""
    sde, rows = trained
    assert sde.table is not None
    new = wide_rows(20_000).iloc[3000:]
    names = [f"c{j}" for j in range(6)]
    known = set(map(tuple, rows[names].to_numpy()))
    new = new[[tuple(row) not in known for row in new[names].to_numpy()]][:300]
    values, found = sde.table.values(new)
    assert found is not None
    log_c = sde.table.category_log_prob(found)
    assert bool(log_c.isfinite().all())
    log_p = scoresde.log_prob(sde, new).double() - log_c
    codes = np.stack([np.searchsorted(WORDS, new[name]) for name in names], 1).sum(1)
    true = torch.distributions.Normal(torch.from_numpy(codes / 4), 0.3).log_prob(values[:, 0])
    assert abs(float((true - log_p).mean())) < 0.1


def test_samples_of_many_categories(
    trained: tuple[scoresde.ScoreSDE, pd.DataFrame], tmp_path: Path
) -> None:
    sde, _ = trained
    drawn = scoresde.sample(sde, 500, seed=1)
    codes = np.stack([np.searchsorted(WORDS, drawn[f"c{j}"]) for j in range(6)], 1)
    rest = drawn["x"] - codes.sum(1) / 4
    assert abs(rest.mean()) < 5 * 0.3 / math.sqrt(500) + 0.05
    assert 0.24 < rest.std() < 0.4
    scoresde.save(sde, tmp_path / "m")
    again = scoresde.load(tmp_path / "m")
    pd.testing.assert_frame_equal(scoresde.sample(again, 9, seed=1), drawn[:9])
    row = drawn.iloc[:1]
    label = again.table.label({f"c{j}": row[f"c{j}"].item() for j in range(6)})
    given = scoresde.sample(again.given(y=label), 3, seed=0)
    assert (given.drop(columns="x") == row.drop(columns="x").to_numpy()).all(axis=None)


def test_a_missing_category_among_many_is_drawn_by_bayes(
    trained: tuple[scoresde.ScoreSDE, pd.DataFrame],
) -> None:
    """Of 400 copies, the shares of its five categories: 4.5 standard errors and .02."""
    sde, rows = trained
    table = sde.table
    assert table is not None
    row = rows.iloc[:1]
    each = pd.concat([row.assign(c3=word) for word in WORDS])
    p = scoresde.log_prob(sde, each).double().softmax(0)
    gaps = pd.concat([row.assign(c3=None)] * 400)
    found = scoresde.impute(sde, gaps, seed=0)
    share = torch.tensor([(found["c3"] == word).mean() for word in WORDS])
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / 400).sqrt() + 0.02).all()
    summed = scoresde.marginal_log_prob(sde, gaps[:1]).log_prob
    assert torch.allclose(summed, scoresde.log_prob(sde, each).double().logsumexp(0), atol=1e-4)
    lost = pd.concat([row.assign(**{f"c{j}": None for j in range(6)})] * 10)
    with pytest.raises(ValueError, match=r"rows that lack categories \(10\) may have"):
        scoresde.impute(sde, lost)


def test_categories_are_conditions_by_column(
    trained: tuple[scoresde.ScoreSDE, pd.DataFrame], tmp_path: Path
) -> None:
    sde, rows = trained
    row = {f"c{j}": str(rows[f"c{j}"].iloc[0]) for j in range(6)}
    assert sde.table is not None
    wanted = scoresde.sample(sde.given(y=sde.table.label(row)), 2, seed=0)
    pd.testing.assert_frame_equal(scoresde.sample(sde.given(y=row), 2, seed=0), wanted)
    scoresde.save(sde, tmp_path / "m")
    out = tmp_path / "out.csv"
    command = ["sample", str(tmp_path / "m"), "-n", "2", "--seed", "0", "--out", str(out)]
    main([*command, "--given", f"y={json.dumps(row)}"])
    assert (pd.read_csv(out)[[*row]] == wanted[[*row]]).all(axis=None)
    with pytest.raises(ValueError, match=r"'y' is numbers .* y=\{'column': word"):
        sde.given(y="a, b")


@pytest.mark.parametrize("classes", [(3, 4), (6, 2), (12, 1), (5, 5), 11])
def test_networks_of_other_categories_are_refused(classes: Any) -> None:
    rows = {"x": RNG.normal(size=24), "a": [*"abcd"] * 6, "b": [*"uvw"] * 8}
    table = scoresde.Table(rows)
    assert table.classes == (4, 3)
    sde = scoresde.build("vp", "mlp", shape=(1,), classes=classes, width=8)
    with pytest.raises(ValueError, match=r"classes=\(4, 3\), and the network does not"):
        scoresde.fit(sde, table, steps=1, progress=False)
    one = scoresde.build("vp", "mlp", shape=(1,), classes=12, width=8)  # a label a combination
    scoresde.fit(one, table, steps=1, progress=False, validation=None)


def test_categories_without_rows_are_refused_where_they_would_be_learnt() -> None:
    kinds = pd.Categorical([*"ab"] * 12, categories=[*"abz"], ordered=True)
    rows = pd.DataFrame({"x": RNG.normal(size=24), "a": kinds, "b": [*"uvw"] * 8})
    table = scoresde.Table(rows)
    sde = scoresde.build("vp", "mlp", shape=(1,), classes=table.classes, width=8)
    scoresde.fit(sde, table, steps=1, progress=False, validation=None)
    new = rows.assign(a=pd.Categorical(["z"] * 24, categories=[*"abz"], ordered=True))
    for call in (
        lambda: scoresde.fit(sde, new, steps=1, progress=False),
        lambda: table.encode(new),
        lambda: sde.given(y={"a": "z", "b": "u"}),
        lambda: scoresde.impute(sde, new.assign(b=None)),
    ):
        with pytest.raises(ValueError, match="its probability is 0"):
            call()


def test_a_gap_in_a_long_table_is_one_gap() -> None:
    rows = pd.DataFrame({"x": RNG.normal(size=24), "a": [*"abcd"] * 6, "b": [*"uvw"] * 8})
    table = scoresde.Table(rows)
    codes = torch.zeros(120_000, 2, dtype=torch.int64)
    codes[7, 1] = -1
    found, numbers = scoresde.model.tables.gaps.candidates(table, codes)
    assert len(found) == 120_002
    assert numbers[found == 7].tolist() == [0, 1, 2]


def test_labels_of_a_table_in_words() -> None:
    table = scoresde.Table(
        {"x": [0.5, 2.0, 1.3], "kind": ["a", "b", "a"], "n": [True, False, True]}
    )
    assert table.label({"n": True, "kind": "b"}) == 3
    with pytest.raises(ValueError, match="'q', which the table does not have"):
        table.label({"kind": "q", "n": True})
    for wrong in ({"kind": "a"}, {"kind": "a", "n": True, "m": 1}):
        with pytest.raises(ValueError, match="one of each of 'kind', 'n', got"):
            table.label(wrong)
    for word in (None, math.nan, ["a", "b"]):
        with pytest.raises(TypeError, match="which is no category"):
            table.label({"kind": word, "n": True})
    with pytest.raises(TypeError, match="mapping"):
        table.label("a, True")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no categorical columns"):
        scoresde.Table({"x": [0.5, 2.0]}).label({})


def test_models_of_earlier_versions_keep_their_labels(tmp_path: Path) -> None:
    """Combinations and counts stand in their files: labels number those that occurred."""
    rows = {"x": RNG.normal(size=40), "a": [*"uvuw"] * 10, "b": [*"stts"] * 10}
    about = scoresde.Table(rows).describe()
    del about["categories"]
    about |= {"combinations": [[0, 0], [0, 1], [1, 1], [2, 0]], "counts": [10, 10, 10, 10]}
    sde = scoresde.build("vp", "mlp", shape=(1,), classes=4, width=8)
    sde.standardize(torch.from_numpy(rows["x"]).float()[:, None])
    sde.table = scoresde.model.tables.schema.TableSchema.rebuild(about, (1,))
    scoresde.save(sde, tmp_path / "m")
    old = scoresde.load(tmp_path / "m")
    assert old.table is not None
    assert old.table.describe() == about
    assert old.table.classes == 4
    drawn = scoresde.sample(old, 20, seed=0)
    pairs = {*["us", "ut", "vt", "wv", "ws"]}
    log_p = scoresde.log_prob(old, drawn)
    assert bool(log_p.isfinite().all())
    assert len({a + b for a, b in zip(drawn["a"], drawn["b"], strict=True)} & pairs) >= 3
    gaps = drawn.assign(b=None)
    with pytest.raises(ValueError, match="no label of this table stands"):
        old.table.label({"a": "v", "b": "s"})
    scoresde.fit(old, scoresde.Table(rows), steps=1, progress=False, validation=None)
    assert (scoresde.impute(old, gaps, seed=0, particles=2, steps=5)["a"] == drawn["a"]).all()
