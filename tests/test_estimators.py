"""The scikit-learn estimators: their numbers beside closed forms and draws, and scikit-learn's own
checks.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_regressors_train, parametrize_with_checks

import scoresde
from conftest import Linear, rotated
from scoresde.estimators import ConditionalScoreDensity, ScoreDensity

TINY: dict[str, Any] = {
    "steps": 3,
    "net_options": {"width": 8, "fourier": 0, "depth": 1},
    "solve_options": {"solver": "heun", "steps": 2},
    "dtype": "float64",
}
SMALL: dict[str, Any] = {
    "steps": 400,
    "batch_size": 256,
    "net_options": {"width": 32, "fourier": 0},
    "fit_options": {"ema": 50},
    "solve_options": {"rtol": 1e-3, "atol": 1e-3},
    "random_state": 0,
}
Q05, Q95 = -1.6448536, 1.6448536


def two_arguments(estimator: Any) -> dict[str, str]:
    """The checks of scikit-learn that do not apply."""
    if isinstance(estimator, ScoreDensity):
        return {}
    needs_y = "score_samples of p(y | x) needs y, which this check does not give"
    return {
        "check_methods_sample_order_invariance": needs_y,
        "check_methods_subset_invariance": needs_y,
    }


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few held-out rows judge: what is learnt in three steps is not on trial."""
    monkeypatch.setattr("scoresde.training.held_out.JUDGED_ROWS", 8)
    monkeypatch.setattr("scoresde.training.held_out.JUDGED_EXAMPLES", 64)


@pytest.mark.usefixtures("hasty")
@parametrize_with_checks(
    [ScoreDensity(**TINY), ConditionalScoreDensity(draws=4, **TINY)],
    expected_failed_checks=two_arguments,
)
def test_scikit_learn_accepts_it(estimator: Any, check: Any) -> None:
    check(estimator)


def test_a_regressor_that_is_trained_passes_the_check_of_training() -> None:
    taught = {**TINY, "steps": 60, "lr": 0.02, "fit_options": {"ema": 10}}
    check_regressors_train("it", ConditionalScoreDensity(draws=8, **taught))


# ------------------------------------------------------------------ p(x)

MEAN = np.array([100.0, -3.0])
FACTOR = np.array([[20.0, 0.0], [0.5, 0.4]])


def gaussian(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of a correlated Gaussian in units of their own, and log p of each."""
    z = np.random.default_rng(seed).normal(size=(n, 2))
    log_p = -0.5 * (z**2).sum(1) - math.log(2 * math.pi) - math.log(np.linalg.det(FACTOR))
    return z @ FACTOR.T + MEAN, log_p


@pytest.fixture(scope="module")
def density() -> ScoreDensity:
    return ScoreDensity(**SMALL).fit(gaussian(4000, 0)[0])


def test_log_p_is_that_of_the_model_inside(density: ScoreDensity) -> None:
    x, _ = gaussian(50, 1)
    inside = scoresde.log_prob(density.model_, torch.tensor(x), **SMALL["solve_options"])
    found = density.score_samples(x)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, inside.double().numpy())
    assert density.score(x) == found.mean()


def test_log_p_and_samples_of_a_gaussian(density: ScoreDensity) -> None:
    """E[log p − log q] is below 0.03 nats; 3,000 draws have the mean and covariance, to 4 standard
    errors and 5% of model error.
    """
    x, log_p = gaussian(400, 1)
    assert -0.02 < np.mean(log_p - density.score_samples(x)) < 0.03
    drawn = np.linalg.solve(FACTOR, (density.sample(3000, random_state=1) - MEAN).T)
    assert np.abs(drawn.mean(1)).max() < 4 / math.sqrt(3000) + 0.05
    assert np.abs(np.cov(drawn) - np.eye(2)).max() < 4 * math.sqrt(2 / 3000) + 0.05


def test_samples_follow_the_random_state(density: ScoreDensity) -> None:
    first = density.sample(5)
    np.testing.assert_array_equal(first, density.sample(5))
    assert not np.array_equal(first, density.sample(5, random_state=1))
    free = clone(density).set_params(random_state=None, steps=1).fit(first)
    assert not np.array_equal(free.sample(5), free.sample(5))


def test_the_global_generators_stay_as_they_are() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    estimator = ScoreDensity(**TINY, random_state=0).fit(gaussian(20, 0)[0])
    estimator.sample(2)
    assert torch.rand(1) == expected


def test_a_clone_trains_the_same_model() -> None:
    x, _ = gaussian(100, 0)
    trained = {"fit_options": {"validation": None}}  # else the Gaussian of both is kept
    first = ScoreDensity(**TINY, **trained, random_state=5).fit(x)
    again = clone(first)
    assert not hasattr(again, "model_")
    np.testing.assert_array_equal(again.fit(x).score_samples(x), first.score_samples(x))
    other = clone(first).set_params(random_state=6).fit(x)
    assert not np.array_equal(other.score_samples(x), first.score_samples(x))


def test_a_network_of_the_users_is_copied() -> None:
    x, _ = gaussian(100, 0)
    net = Linear((2,))
    before = [p.clone() for p in net.parameters()]
    found = ScoreDensity(scoresde.RectifiedFlow(), net, steps=3, random_state=0).fit(x)
    assert isinstance(found.model_.net, Linear)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_pickle_gives_the_same_numbers(density: ScoreDensity) -> None:
    x, _ = gaussian(20, 2)
    file = io.BytesIO()
    joblib.dump(density, file)
    file.seek(0)
    for other in (pickle.loads(pickle.dumps(density)), joblib.load(file)):
        np.testing.assert_array_equal(other.score_samples(x), density.score_samples(x))
        np.testing.assert_array_equal(other.sample(5), density.sample(5))
        assert other.history_ == density.history_


def test_a_pickle_of_an_older_version_can_be_shown_and_cloned(density: ScoreDensity) -> None:
    """It has no `equalize`, and equalized nothing."""
    older = copy.copy(density)
    del older.equalize
    older = pickle.loads(pickle.dumps(older))
    assert "equalize=False" in repr(older)
    assert clone(older).get_params() == {**density.get_params(), "equalize": False}


def clumped(n: int, seed: int) -> np.ndarray:
    """Prices at 200 places, and a normal number that goes up with them."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    price = 100 + np.round(a + 0.5 * rng.normal(size=n), 1) * 30
    return np.stack([price + 0.003 * rng.normal(size=n), a], 1)


def test_clumps_are_spread_and_log_p_stays_that_of_the_rows() -> None:
    """Log p of rows nearly equals the truth; its integral over a column is 1."""
    how: dict[str, Any] = {**SMALL, "steps": 300}
    train, test = clumped(3000, 0), clumped(500, 1)
    both = [ScoreDensity(equalize=e, **how).fit(train) for e in (True, False)]
    assert [each.model_.table is not None for each in both] == [True, False]
    scores = [each.score(test) for each in both]
    assert scores[0] > scores[1] + 2.0
    own = scoresde.log_prob(both[0].model_, torch.tensor(test), **SMALL["solve_options"])
    np.testing.assert_array_equal(own.double().numpy(), both[0].score_samples(test))
    drawn = both[0].sample(2000)
    off = np.abs((drawn[:, 0] - 100) / 3 - np.round((drawn[:, 0] - 100) / 3))
    assert np.mean(off < 0.01) > 0.5  # 2% by chance
    alone = ScoreDensity(**{**how, "steps": 50}).fit(train[:, :1])
    step = 0.0005
    near = np.arange(100 - 0.5, 100 + 1.5, step)
    share = np.exp(alone.score_samples(near[:, None])).sum() * step
    assert share == pytest.approx(np.mean(np.abs(alone.sample(2000)[:, 0] - 100.5) < 1), abs=0.03)


def test_clumps_are_not_spread_where_this_would_bend_a_line() -> None:
    """Heights of fathers, from those of mothers and of both together: equalized, 0.06 nats are
    lost to the line.
    """
    rng = np.random.default_rng(0)
    father = 69 + 0.5 * np.round(5 * rng.normal(size=900))
    mother = 64 + 2.3 * rng.normal(size=900)
    X = np.stack([mother, (father + 1.08 * mother) / 2], 1)
    y = father + 0.2 * rng.random(900)
    how: dict[str, Any] = {**SMALL, "steps": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        near = ConditionalScoreDensity(**how).fit(X[:600], y[:600])
        far = ConditionalScoreDensity(**how).fit(X[:600, :1], y[:600])
    assert near.model_.table is None
    assert far.model_.table is not None
    ones = np.c_[X, np.ones(900)]
    left = y - ones @ np.linalg.lstsq(ones[:600], y[:600], rcond=None)[0]
    variance = np.mean(left[:600] ** 2)
    line = -0.5 * left[600:] ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    assert near.score_samples(X[600:], y[600:]).mean() > line.mean() - 0.02


def test_integers_stay_continuous_and_constants_constants() -> None:
    rng = np.random.default_rng(0)
    X = np.stack([32 * rng.poisson(50, 500) + (rng.random(500) < 0.01), np.full(500, 7.0)], 1)
    with pytest.warns(UserWarning, match="are constant"):
        density = ScoreDensity(**TINY).fit(X)
    table = density.model_.table
    assert table is not None
    assert [each.kind for each in table.numeric] == ["continuous", "continuous"]
    np.testing.assert_array_equal(density.score_samples(X), density.score_samples(X))
    assert (density.sample(5)[:, 1] == 7).all()
    assert density.score_samples([[1600.0, 7.1]])[0] == -math.inf


def test_names_of_columns_are_those_of_its_schema(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(clumped(500, 0), columns=["price", "a"])
    density = ScoreDensity(**TINY).fit(frame)
    rows = scoresde.sample(density.model_, 3, steps=2, solver="heun")
    assert list(rows.columns) == ["price", "a"]
    again = scoresde.load(scoresde.save(density.model_, tmp_path / "m"))
    how = TINY["solve_options"]
    values = [scoresde.log_prob(m, x, **how) for m in (again,) for x in (frame, frame.to_numpy())]
    np.testing.assert_array_equal(*values)
    np.testing.assert_array_equal(values[0].double(), density.score_samples(frame))


def test_a_scaler_before_it_changes_log_p_by_its_jacobian() -> None:
    x, _ = gaussian(300, 0)
    how = {**SMALL, "steps": 60}
    plain = ScoreDensity(**how).fit(x).score_samples(x)
    scaler = StandardScaler()
    pipeline = make_pipeline(scaler, ScoreDensity(**how)).fit(x)
    scaled = pipeline.score_samples(x) - np.log(scaler.scale_).sum()
    np.testing.assert_allclose(scaled, plain, atol=5e-3)


@pytest.mark.slow
def test_grid_search_takes_the_model_with_the_higher_log_p() -> None:
    x = scoresde.toy.Moons().sample(300, generator=torch.Generator().manual_seed(0)).numpy()
    how = {
        **SMALL,
        "batch_size": 64,
        "net_options": {"width": 32, "fourier": 16},
        "solve_options": {"solver": "heun", "steps": 8},
    }
    search = GridSearchCV(ScoreDensity(**how), {"steps": [1, 200]}, cv=2).fit(x)
    assert search.best_params_ == {"steps": 200}
    worse, better = search.cv_results_["mean_test_score"]
    assert better > worse + 0.05
    assert search.score(x) == search.best_estimator_.score_samples(x).mean()


# ------------------------------------------------------------------ p(y | x)


def heteroscedastic(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, y, and the standard deviation of y = 10 + 5·x + s·ε, with s = 2·exp(x/2)."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-1.5, 1.5, size=(n, 1))
    s = 2 * np.exp(0.5 * X[:, 0])
    return X, 10 + 5 * X[:, 0] + s * rng.normal(size=n), s


@pytest.fixture(scope="module")
def regressor() -> ConditionalScoreDensity:
    X, y, _ = heteroscedastic(6000, 0)
    return ConditionalScoreDensity(**SMALL).fit(X, y)


def test_intervals_cover_what_they_say(regressor: ConditionalScoreDensity) -> None:
    """Within 4 binomial standard errors and 1% of model error, on either side of x = 0 too."""
    X, y, _ = heteroscedastic(2000, 1)
    for coverage in (0.5, 0.9):
        low, high = regressor.predict_interval(X, coverage).T
        inside = (low < y) & (y < high)
        for part in (X[:, 0] < 0, X[:, 0] >= 0):
            error = math.sqrt(coverage * (1 - coverage) / part.sum())
            assert abs(inside[part].mean() - coverage) < 4 * error + 0.01


def test_quantiles_mean_and_log_p_are_those_of_the_truth(
    regressor: ConditionalScoreDensity,
) -> None:
    """To 0.16 of the standard deviation, and 0.03 nats, on average."""
    regressor = copy.copy(regressor).set_params(draws=16)
    X, y, s = heteroscedastic(200, 1)
    mean = 10 + 5 * X[:, 0]
    truth = mean[:, None] + s[:, None] * np.array([Q05, 0, Q95])
    found = regressor.predict_quantiles(X, (0.05, 0.5, 0.95))
    assert np.abs((found - truth) / s[:, None]).mean(0).max() < 0.16
    assert np.abs((regressor.predict(X) - mean) / s).mean() < 0.16
    log_p = -0.5 * ((y - mean) / s) ** 2 - np.log(s * math.sqrt(2 * math.pi))
    assert abs(np.mean(log_p - regressor.score_samples(X, y))) < 0.03
    assert regressor.score(X, y) == pytest.approx(r2_score(y, mean), abs=0.03)


def test_quantiles_of_a_clumped_y_are_those_of_its_draws() -> None:
    """A quantile moves with T, a mean does not: both are those of 4,000 draws (4 σ)."""
    data = clumped(1500, 0)
    how: dict[str, Any] = {**SMALL, "steps": 200}
    model = ConditionalScoreDensity(draws=400, **how).fit(data[:, 1:], data[:, 0])
    assert model.model_.table is not None
    at = np.array([[0.3]])
    drawn = model.sample(at, 4000)[0]
    below = (drawn[:, None] < model.predict_quantiles(at, (0.1, 0.5, 0.9))).mean(0)
    np.testing.assert_allclose(below, [0.1, 0.5, 0.9], atol=0.04)
    assert model.predict(at)[0] == pytest.approx(drawn.mean(), abs=4 * drawn.std() / 60)
    inside = scoresde.log_prob(
        model.model_.given(vector=torch.tensor(data[:9, 1:])),
        torch.tensor(data[:9, :1]),
        **SMALL["solve_options"],
    )
    np.testing.assert_array_equal(model.score_samples(data[:9, 1:], data[:9, 0]), inside.double())


def test_log_p_of_y_is_that_of_the_model_inside(regressor: ConditionalScoreDensity) -> None:
    X, y, _ = heteroscedastic(20, 2)
    given = regressor.model_.given(vector=torch.tensor(X))
    inside = scoresde.log_prob(given, torch.tensor(y)[:, None], **SMALL["solve_options"])
    np.testing.assert_array_equal(regressor.score_samples(X, y), inside.double().numpy())


def test_a_prediction_does_not_depend_on_the_other_rows() -> None:
    X, y, _ = heteroscedastic(30, 0)
    Y = np.c_[y, X[:, 0] * y]
    found = ConditionalScoreDensity(**TINY, random_state=0).fit(X, Y)
    whole = found.predict_quantiles(X, 0.3)
    np.testing.assert_allclose(found.predict_quantiles(X[[4]], 0.3)[0], whole[4], rtol=1e-7)
    np.testing.assert_allclose(found.predict(X[::-1]), found.predict(X)[::-1], rtol=1e-7)


@pytest.mark.parametrize(("process", "outputs"), rotated(["vp", "ve", "rectified"], [1, 3]))
def test_quantiles_and_means_are_those_of_draws(process: str, outputs: int) -> None:
    """Of a model that has hardly learnt: by the flow's order for one output, by a Sobol sequence
    for three. 4,000 draws: within 5 standard errors of each, and 4% for the sequence.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2))
    Y = rng.gamma(2.0, size=(200, outputs)) * (3 + X[:, :1])
    model = ConditionalScoreDensity(process, **{**SMALL, "steps": 30}, draws=256).fit(X, Y)
    rows = X[:2]
    draws = model.sample(rows, 4000)
    spread = draws.std(1)
    quantiles = model.predict_quantiles(rows, (0.1, 0.5))
    assert draws.shape == (2, 4000, outputs)
    assert quantiles.shape == (2, 2, outputs)
    tolerance = (5 / math.sqrt(4000) + 0.04 * (outputs > 1)) * spread
    assert (np.abs(model.predict(rows) - draws.mean(1)) < tolerance).all()
    for i, q in enumerate((0.1, 0.5)):
        # the density at the 10% quantile of a Gaussian is 0.18 of 1/std, at the median 0.4
        wide = 1.7 * tolerance
        assert (np.abs(quantiles[:, i] - np.quantile(draws, q, axis=1)) < wide).all()
    median = model.set_params(center="median").predict(rows)
    np.testing.assert_allclose(median, quantiles[:, 1], atol=1e-5 * np.abs(Y).max())


def test_the_shape_of_y_is_kept() -> None:
    X, y, _ = heteroscedastic(12, 0)
    flat = ConditionalScoreDensity(**TINY, random_state=0).fit(X, y)
    column = clone(flat).fit(X, y[:, None])
    for method in ("predict", "predict_interval", "sample"):
        one = getattr(flat, method)(X)
        np.testing.assert_allclose(getattr(column, method)(X)[..., 0], one, rtol=1e-9)
    np.testing.assert_allclose(column.score_samples(X, y), flat.score_samples(X, y), rtol=1e-9)


# ------------------------------------------------------------------ bad input

X6 = np.arange(12.0).reshape(6, 2) % 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net_options": 3}, "net_options is a mapping"),
        ({"steps": 3, "fit_options": {"steps": 4}}, "steps is given twice"),
        ({"fit_options": {"generator": None}}, "fit_options has 'generator'"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"device": "nowhere"}, "there is no device 'nowhere'"),
        ({"net": "mpl"}, "Did you mean 'mlp'"),
    ],
)
def test_a_bad_parameter_is_named_by_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ScoreDensity(**options).fit(X6)


def test_bad_requests_of_a_regressor_are_named() -> None:
    with pytest.raises(ValueError, match="unknown center 'meen'"):
        ConditionalScoreDensity(center="meen").fit(X6, X6)
    model = ConditionalScoreDensity(**TINY).fit(X6, X6[:, 0])
    with pytest.raises(ValueError, match="quantiles are numbers between 0 and 1"):
        model.predict_quantiles(X6, (5, 95))
    with pytest.raises(ValueError, match="coverage is between 0 and 1, got 90"):
        model.predict_interval(X6, 90)
    with pytest.raises(ValueError, match="y has 2 columns, wanted 1"):
        model.score_samples(X6, X6)
    with pytest.raises(ValueError, match="keep 1e-06 away"):
        ConditionalScoreDensity(**TINY).fit(X6, X6).predict_interval(X6, 1 - 1e-9)
    for name in ("sde", "data"):
        with pytest.raises(TypeError, match=f"fit_options has '{name}', which the estimator sets"):
            ScoreDensity(fit_options={name: None}).fit(X6)


def test_masked_values_and_tables_are_refused_by_name() -> None:
    """Masks hide numbers that scikit-learn's own checks take for values."""
    hidden = np.ma.masked_array(np.where(X6 > 1, 1e6, X6), mask=X6 > 1)
    y = X6[:, 0]
    hidden_y = hidden[:, 0]
    density = ScoreDensity(**TINY).fit(X6)
    regressor = ConditionalScoreDensity(draws=4, **TINY).fit(X6, y)
    for call in (
        lambda: ScoreDensity(**TINY).fit(hidden),
        lambda: ScoreDensity(**TINY).fit(list(hidden)),
        lambda: density.score_samples(hidden),
        lambda: density.score(hidden),
        lambda: ConditionalScoreDensity(**TINY).fit(hidden, y),
        lambda: regressor.predict(hidden),
        lambda: regressor.predict_quantiles(hidden),
        lambda: regressor.predict_interval(hidden),
        lambda: regressor.sample(hidden),
        lambda: regressor.score_samples(hidden, y),
        lambda: regressor.score(hidden, y),
    ):
        with pytest.raises(ValueError, match=r"^X has \d+ masked values"):
            call()
    for call in (
        lambda: ConditionalScoreDensity(**TINY).fit(X6, hidden_y),
        lambda: regressor.score_samples(X6, hidden_y),
        lambda: regressor.score(X6, hidden_y),
    ):
        with pytest.raises(ValueError, match=r"^y has \d+ masked values"):
            call()
    none = np.ma.masked_array(X6, mask=False)
    np.testing.assert_array_equal(density.score_samples(none), density.score_samples(X6))
    with pytest.raises(TypeError, match=r"got a Table: give its \.frame"):
        ScoreDensity(**TINY).fit(scoresde.Table(X6))


def test_reversed_arrays_give_the_numbers_of_their_copies() -> None:
    how = {**TINY, "random_state": 0}
    X, y = X6[:, ::-1], X6[::-1, 0]
    density = ScoreDensity(**how).fit(X)
    copied = ScoreDensity(**how).fit(X.copy())
    np.testing.assert_array_equal(density.score_samples(X), copied.score_samples(X.copy()))
    rows = X6[::-1]
    regressor = ConditionalScoreDensity(draws=4, **how).fit(rows, y)
    again = ConditionalScoreDensity(draws=4, **how).fit(rows.copy(), y.copy())
    np.testing.assert_array_equal(
        regressor.score_samples(rows, y), again.score_samples(rows.copy(), y.copy())
    )
    np.testing.assert_array_equal(regressor.predict(rows), again.predict(rows.copy()))
    assert regressor.score(rows, y) == r2_score(y, again.predict(rows.copy()))


def test_without_scikit_learn_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And `scoresde.estimators` is there without it."""
    for name in [name for name in sys.modules if name.startswith("scoresde.estimators")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(scoresde, "estimators", scoresde.estimators)
    for name in ("sklearn", "sklearn.base", "sklearn.utils", "sklearn.utils.validation"):
        monkeypatch.setitem(sys.modules, name, None)
    import scoresde.estimators as fresh

    assert "ScoreDensity" in dir(fresh)
    with pytest.raises(ImportError, match=r"pip install 'scoresde\[sklearn\]'"):
        _ = fresh.ScoreDensity
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = fresh.Nothing
