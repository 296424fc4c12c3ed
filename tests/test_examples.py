"""The examples run, and what they print is what it says."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_recipes import cifar, mnist

import scoresde

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of 64 units, whatever the example asks for."""
    build = scoresde.build

    def narrower(*args: Any, **options: Any) -> scoresde.ScoreSDE:
        return build(*args, **options | {"width": 64})

    monkeypatch.setattr(scoresde, "build", narrower)
    monkeypatch.setattr("scoresde.inference.pairs.build", narrower)


@pytest.mark.usefixtures("narrow")
def test_digits_example_prints_finite_bits_and_draws_a_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """150 steps on real digits: bits/dim near or below a uniform law's log2 17 = 4.09, and a sheet
    of pictures on disk.
    """
    pytest.importorskip("sklearn")
    main = runpy.run_path(str(EXAMPLES / "digits.py"))["main"]
    bits = main(steps=150, out=str(tmp_path / "digits.png"), held_out=10)
    assert 1.5 < bits < math.log2(17) + 0.2
    assert (tmp_path / "digits.png").stat().st_size > 5000
    assert f"{bits:.3f}" in capsys.readouterr().out


def test_distribution_example_infers_and_trains_on(capsys: pytest.CaptureFixture[str]) -> None:
    """A short run: emcee's posterior mean within 0.5 of the truth (−0.99, posterior std 0.7), and
    a loss no worse than before.
    """
    pytest.importorskip("emcee")
    main = runpy.run_path(str(EXAMPLES / "distribution.py"))["main"]
    mean, before, after = main(fit_steps=300, chain=12, tuning=8)
    assert abs(mean + 0.99) < 0.5
    assert after < before + 0.02
    assert f"{after:.3f}" in capsys.readouterr().out


def test_regression_example_is_no_worse_than_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """133 patients held out: log p(y | x) within 0.1 nats of linear regression's or above, and
    coverage of 90% intervals within 4 binomial standard errors (10%).
    """
    pytest.importorskip("sklearn")
    main = runpy.run_path(str(EXAMPLES / "regression_intervals.py"))["main"]
    log_p, line, coverage = main(steps=150, out=str(tmp_path / "bands.png"))
    assert log_p > line - 0.1
    assert abs(coverage - 0.9) < 0.1
    assert (tmp_path / "bands.png").stat().st_size > 5000
    assert f"{log_p:.3f}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_rectified_flow_example_reflows_and_draws_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run: after a reflow one step is better than before, and paths are straighter, by
    half at least.
    """
    main = runpy.run_path(str(EXAMPLES / "rectified_flow.py"))["main"]
    before, after = main(steps=200, pairs=1000, points=300, out=str(tmp_path))
    assert after["E² of one step / floor"] < 0.5 * before["E² of one step / floor"]
    assert after["straightness S"] < 0.5 * before["straightness S"]
    assert (tmp_path / "paths.png").stat().st_size > 5000
    assert f"{after['curvature']:.4g}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_posterior_example_tells_how_near_the_exact_one_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run: a classifier that always tells the posterior of 200 steps from the exact one
    would be right in all cases.
    """
    main = runpy.run_path(str(EXAMPLES / "posterior.py"))["main"]
    accuracy = main(n=2000, steps=200, draws=300, out=str(tmp_path / "posterior.png"))
    assert accuracy < 0.95
    assert (tmp_path / "posterior.png").stat().st_size > 5000
    assert f"{accuracy:.1%}" in capsys.readouterr().out


def test_guidance_example_ranks_methods(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run: exact guidance is within 2.5 floors of its target, that of two exact sets, and
    particles of a measurement are nearer than "pigdm", 8 floors away at full length.
    """
    main = runpy.run_path(str(EXAMPLES / "guidance.py"))["main"]
    ratios = main(n=200, particles=8, steps=25, out=str(tmp_path / "guidance.png"))
    assert ratios["classifier_free, β = 1"] < 2.5
    assert ratios["particles"] < 0.8 * ratios["pigdm"]
    assert (tmp_path / "guidance.png").stat().st_size > 5000
    assert f"{ratios['mmps']:.2f}" in capsys.readouterr().out


@pytest.mark.usefixtures("narrow")
def test_inpaint_example_covers_hidden_pixels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run: 9 draws hold more than half of the hidden pixels, where 80% are expected."""
    pytest.importorskip("sklearn")
    main = runpy.run_path(str(EXAMPLES / "inpaint.py"))["main"]
    share = main(steps=150, draws=9, evaluations=12, out=str(tmp_path / "inpaint.png"))
    assert share > 0.5
    assert (tmp_path / "inpaint.png").stat().st_size > 5000
    assert f"{share:.1%}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "files"),
    [("fashion_mnist", mnist), ("cifar10", cifar)],
)
@pytest.mark.slow  # docs/images.md runs the same recipes by the command
def test_image_examples_train_score_and_draw(
    name: str, files: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten steps of a small network on random bytes: bits/dim near the 8 of noise, and a sheet."""
    pytest.importorskip("matplotlib")
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    net = {"channels": 8, "multipliers": (1,), "blocks": 1, "patch": 4, "attention": ()}
    how = {"n": 2, "net": net, "steps": 10, "batch_size": 4, "progress": False}
    (tmp_path / "data").mkdir()
    found = main(str(files(tmp_path / "data")), out=str(tmp_path / "run"), **how)
    assert abs(found.score.mean - 8) < 1.5
    assert (tmp_path / "run" / "samples.png").stat().st_size > 5000
    assert f"{found.score.mean:.4f}" in capsys.readouterr().out


@pytest.mark.usefixtures("narrow")
def test_table_example_finds_anomalies(capsys: pytest.CaptureFixture[str]) -> None:
    """A short run of a narrow network: malignant samples are less likely than benign ones."""
    pytest.importorskip("sklearn")
    main = runpy.run_path(str(EXAMPLES / "table_anomalies.py"))["main"]
    auc, gaussian = main(steps=200)
    assert auc > 0.85
    assert gaussian > 0.9
    assert f"{auc:.3f}" in capsys.readouterr().out
