"""`evaluate` and `summary` of models of tables: against laws in closed form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import scoresde
from scoresde import Table
from scoresde.cli.commands import main

pd = pytest.importorskip("pandas")

BOUNDS = {"a": (0, None), "c": (0, 1)}
QUIET: dict[str, Any] = {"samples": 0, "progress": False}


def frame(n: int, seed: int) -> Any:
    """Rows whose encoded numbers are N(0.4, 0.8²), independent."""
    z = np.random.default_rng(seed).normal(0.4, 0.8, (n, 3))
    return pd.DataFrame({"a": np.exp(z[:, 0]), "b": z[:, 1], "c": 1 / (1 + np.exp(-z[:, 2]))})


def model(std: float = 0.8) -> Any:
    """A model of such rows, exactly, if std is 0.8."""
    schema = Table(frame(50, 9), bounds=BOUNDS)
    law = scoresde.toy.GaussianMixture(torch.full((1, 3), 0.4), std)
    sde = scoresde.oracle(law, scoresde.RectifiedFlow()).double()
    sde.table = schema.schema()
    return sde


def test_log_p_is_in_the_units_of_the_columns_and_calibrated() -> None:
    """Of the true law: coverage within 4.5 standard errors of 500 rows and 1,000 draws."""
    rows = frame(500, 1)
    found = scoresde.evaluate(model(), rows, **QUIET)
    law = stats.norm(0.4, 0.8)
    want = stats.lognorm(0.8, scale=math.exp(0.4)).logpdf(rows["a"]) + law.logpdf(rows["b"])
    c = rows["c"]
    want = want + law.logpdf(np.log(c / (1 - c))) - np.log(c * (1 - c))
    assert found.score is not None
    assert found.score.mean == pytest.approx(float(want.mean()), abs=1e-3)
    assert found.score.stderr == pytest.approx(float(want.std()) / math.sqrt(500), rel=1e-3)
    levels = torch.tensor(found.metrics["coverage"])
    error = (levels * (1 - levels) * (1 / 500 + 1 / 1000)).sqrt()
    for name in ("the density", "a", "b", "c"):
        shares = torch.tensor(found.metrics[f"coverage of {name}"])
        assert ((shares - levels).abs() < 4.5 * error + 0.002).all(), name
    assert "coverage of the density  0." in repr(found)
    again = scoresde.evaluate(model(), rows, **QUIET)
    assert again.metrics == found.metrics
    assert again.score is not None
    assert again.score.mean == found.score.mean


def test_a_model_that_is_too_narrow_is_caught() -> None:
    found = scoresde.evaluate(model(0.56), frame(300, 2), **QUIET)
    at = found.metrics["coverage"].index(0.9)
    law = stats.norm(0, 0.56)
    truth = 2 * stats.norm(0, 0.8).cdf(law.ppf(0.95)) - 1  # 0.75
    assert found.metrics["coverage of b"][at] == pytest.approx(truth, abs=0.12)
    density = stats.chi2(3).cdf(stats.chi2(3).ppf(0.9) * 0.7**2)  # 0.62
    assert found.metrics["coverage of the density"][at] == pytest.approx(density, abs=0.12)


def test_categories_and_files(tmp_path: Path, capsys: Any) -> None:
    rows = frame(120, 3).assign(kind=["u", "v", "u"] * 40, n=np.arange(120) % 7)
    table = Table(rows, bounds=BOUNDS)
    sde = scoresde.build("vp", "mlp", shape=table.shape, classes=2, width=8)
    scoresde.fit(sde, table, steps=2, validation=None, progress=False)
    how: dict[str, Any] = {"steps": 8, "n": 40, "samples": 5, "progress": False}
    found = scoresde.evaluate(sde, rows, out=tmp_path / "a", **how)
    drawn = pd.read_csv(tmp_path / "a" / "samples.csv")
    assert list(drawn.columns) == list(rows.columns)
    assert len(drawn) == 5
    kept = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert found.score is not None
    assert kept["score"]["mean"] == found.score.mean
    assert kept["metrics"] == found.metrics
    assert scoresde.evaluate(sde, table, **how).score.mean == found.score.mean  # type: ignore[union-attr]
    # given one category its factor is left out
    one = rows[rows["kind"] == "u"]
    whole = scoresde.evaluate(sde, one, **{**how, "samples": 0}).score
    alone = scoresde.evaluate(sde.given(y="u"), one, **{**how, "samples": 0}).score
    assert whole is not None
    assert alone is not None
    assert whole.mean - alone.mean == pytest.approx(math.log(2 / 3), abs=1e-5)
    scoresde.save(sde, tmp_path / "model")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    files = [str(tmp_path / name) for name in ("model", "rows.csv", "b")]
    how_little = ["-n", "40", "--samples", "0", "--tolerance", "1e-2"]
    main(["evaluate", *files[:2], *how_little, "--out", files[2]])
    assert "coverage of the density" in capsys.readouterr().out
    assert json.loads((tmp_path / "b" / "evaluation.json").read_text())["total"] == 120


def test_a_summary_is_in_the_units_of_the_columns() -> None:
    """Quantiles of a log-normal and a logit-normal column; 5 standard errors of 4,000 draws."""
    found = scoresde.summary(model(), 4000, generator=torch.Generator().manual_seed(0))
    law = stats.norm(0.4, 0.8)
    for level in (0.25, 0.5, 0.75):
        z = law.ppf(level)
        error = 5 * math.sqrt(level * (1 - level) / 4000) / law.pdf(z)
        got = found.quantile(level)[0].double()
        assert float(got[0].log()) == pytest.approx(z, abs=error)
        assert float(got[1]) == pytest.approx(z, abs=error)
        assert float(torch.logit(got[2])) == pytest.approx(z, abs=error)
    mean = math.exp(0.4 + 0.32)
    assert float(found.mean[0, 0]) == pytest.approx(mean, abs=5 * 1.9 / math.sqrt(4000))


def test_what_is_not_of_tables_is_refused() -> None:
    sde = model()
    rows = frame(20, 4)
    for data, how, error, why in (
        (torch.zeros(3, 3), {}, TypeError, "evaluate takes rows of the table"),
        (rows, {"fid": 10}, TypeError, "draws= and fid= are for models of tensors"),
        (rows, {"draws": 2}, TypeError, "leave them out"),
        (rows.drop(columns="b"), {}, ValueError, "the rows lack the columns 'b'"),
        (rows.assign(c=2.0), {}, ValueError, "column 'c'"),
        (rows.assign(b=math.nan), {}, ValueError, "column 'b' has no value in 20 of 20 rows"),
    ):
        with pytest.raises(error, match=why):
            scoresde.evaluate(sde, data, **{**QUIET, **how})
    kinds = Table({"x": [0.5, 1.0, 2.25], "kind": ["a", "b", "a"]})
    net = scoresde.build("vp", "mlp", shape=(1,), classes=2, width=8)
    scoresde.fit(net, kinds, steps=1, validation=None, progress=False)
    with pytest.raises(ValueError, match="a summary is of conditions: name some"):
        scoresde.summary(net, 10)
    assert scoresde.summary(net.given(y=["a", "b"]), 10).mean.shape == (2, 1)


def test_one_row_or_one_sample_is_evaluated_without_a_picture(tmp_path: Path) -> None:
    for rows, samples in ((1, 5), (5, 1)):
        out = tmp_path / f"{rows}"
        how: dict[str, Any] = {"samples": samples, "out": out, "progress": False, "steps": 8}
        found = scoresde.evaluate(model(), frame(rows, 5), **how)
        assert found.score is not None
        assert found.score.n == rows
        assert not (out / "pairs.png").exists()
