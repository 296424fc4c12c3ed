"""`evaluate`, held against closed forms of bits, of log p and of the Fréchet distance, and against
the verbs it is made of.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import scoresde
from conftest import generator
from scoresde import evaluate, toy
from scoresde.cli.commands import main
from scoresde.common import plotting
from scoresde.evaluation.held_out import random_order
from scoresde.evaluation.measures import MEASURES, SCORED_AT_ONCE, Task
from scoresde.evaluation.results import Score, fingerprint

LEVELS = 8
CENTRES = torch.tensor([[0.3, 0.3], [0.7, 0.6]], dtype=torch.float64)
STD = 0.08


def law() -> toy.GaussianMixture:
    return toy.GaussianMixture(CENTRES, STD)


def model() -> scoresde.ScoreSDE:
    return scoresde.oracle(law(), scoresde.VPSDE())


def integers(n: int, seed: int = 0) -> Tensor:
    return scoresde.dequantize.Uniform(LEVELS).values(law().sample(n, generator=generator(seed)))


def bits(values: Tensor) -> Tensor:
    """−log₂ P(v)/D exactly: the mass of a normal law in a bin is a difference of its distribution
    function.
    """
    edges = (
        torch.arange(LEVELS + 1, dtype=torch.float64) / LEVELS - CENTRES[..., None]
    ) / STD  # (component, axis, edge)
    mass = torch.special.ndtr(edges).diff(dim=-1)
    each = mass[:, torch.arange(2), values]  # (component, sample, axis)
    return -(each.prod(-1).mean(0)).log2() / 2


def test_bits_are_those_of_bits_per_dim_and_fall_to_the_exact_ones_with_draws() -> None:
    """The importance-weighted bound with k = 64 is the truth within 4 standard errors of its
    draws; the usual one is above.
    """
    v = integers(60)
    found = evaluate(
        model(), v, levels=LEVELS, draws=64, samples=0, rtol=1e-3, atol=1e-3, progress=False
    )
    assert found.score is not None
    assert found.weighted is not None
    exact = float(bits(v).mean())
    assert found.score.mean > exact + 0.1
    assert abs(found.weighted.mean - exact) < 4 * found.weighted.trace_error / math.sqrt(60) < 0.04
    noise = scoresde.dequantize.Uniform(LEVELS)  # the same law, other numbers
    single = scoresde.bits_per_dim(model(), v, noise, generator=generator(9), rtol=1e-3, atol=1e-3)
    assert abs(single.mean - found.score.mean) < 4 * math.hypot(
        single.mean_stderr, found.score.stderr
    )
    assert (found.score.unit, found.score.n, found.score.draws, found.weighted.draws) == (
        "bits/dim",
        60,
        1,
        64,
    )
    assert (found.score.trace, found.score.trace_error, found.weighted.bias) == ("exact", 0, 0)


@pytest.mark.slow
def test_an_estimated_trace_says_how_far_the_weighted_bound_is_too_low() -> None:
    """At k = 64 the mean falls by no more than `bias` (and 0.02 for what k leaves), and by more
    than a tenth of it.
    """
    v = integers(40)
    how: dict[str, Any] = {
        "levels": LEVELS,
        "draws": 64,
        "samples": 0,
        "steps": 16,
        "progress": False,
    }
    normal = {"trace": "hutchinson_gaussian", "probes": 24}  # two signs are the exact trace in 2-D
    exact, estimated = (
        evaluate(model(), v, **how).weighted,
        evaluate(model(), v, **normal, **how).weighted,
    )
    signs = evaluate(model(), v[:3], probes=2, **how).weighted
    assert signs is not None
    assert (signs.trace, signs.probes) == ("exact", 0)
    assert exact is not None
    assert estimated is not None
    assert (estimated.trace, estimated.probes) == ("hutchinson_gaussian", 24)
    assert estimated.bias > 0.005
    one = evaluate(model(), v, **normal, **how | {"draws": 1}).score
    assert one is not None
    nats = 2 * math.log(2)
    assert estimated.bias * nats == pytest.approx((one.trace_error * nats) ** 2 / 2)
    assert math.isnan(estimated.trace_error)  # of trace and draws together
    assert 0.1 * estimated.bias < exact.mean - estimated.mean < estimated.bias + 0.02
    none = evaluate(model(), v[:3], probes=1, **how).weighted
    assert none is not None
    assert math.isnan(none.bias)  # one probe does not tell


def test_points_are_scored_in_nats() -> None:
    x = law().sample(3 * SCORED_AT_ONCE // 2, generator=generator(1))
    read_only = x.numpy().copy()
    read_only.setflags(write=False)  # as files come
    found = evaluate(model(), read_only, samples=0, progress=False).score
    assert found is not None
    exact = law().log_prob(x)
    assert found.mean == pytest.approx(float(exact.mean()), abs=1e-3)
    assert found.stderr == pytest.approx(float(exact.std()) / math.sqrt(len(x)), rel=1e-3)
    assert (found.unit, found.n, found.draws) == ("nats", 3 * SCORED_AT_ONCE // 2, 0)
    direct = scoresde.likelihood(model(), x)
    # the errors are those of SCORED_AT_ONCE data, whichever they are
    assert found.solver_error == pytest.approx(float(direct.solver_error.mean()), rel=0.2)
    assert found.prior_gap == pytest.approx(float(direct.prior_gap.mean()), rel=0.2)
    assert found.prior_gap != pytest.approx(found.solver_error, rel=0.2)


@pytest.mark.parametrize("probes", [2, 4])
def test_the_error_of_the_trace_is_one_standard_deviation(probes: int) -> None:
    """The spread of log p over 12 draws of the probes, its root mean square over 150 points,
    within a fifth.
    """
    x = law().sample(150, generator=generator(1))
    how = {"trace": "hutchinson_gaussian", "probes": probes, "steps": 10}
    draws = [scoresde.log_prob(model(), x, **how, generator=generator(seed)) for seed in range(12)]
    wanted = float(torch.stack(draws).var(0).mean().sqrt())
    found = evaluate(model(), x, samples=0, progress=False, **how).score
    assert found is not None
    assert found.trace_error == pytest.approx(wanted, rel=0.2)


def test_integers_are_scored_to_a_tolerance_that_does_not_show() -> None:
    v = integers(100)
    loose, tight = (
        evaluate(model(), v, levels=LEVELS, samples=0, progress=False, **how).score
        for how in ({}, {"rtol": 1e-8})
    )
    assert loose is not None
    assert tight is not None
    assert loose.solver == "adams, rtol=0.0001, atol=0.0001"
    assert abs(loose.mean - tight.mean) < 1e-4
    assert loose.nfe < 0.7 * tight.nfe


@pytest.mark.parametrize(("dim", "trace"), [(256, "exact"), (257, "hutchinson")])
def test_traces_of_small_samples_are_exact_unless_the_user_says(dim: int, trace: str) -> None:
    sde = scoresde.build("rectified", "mlp", shape=(dim,), width=4, depth=1, fourier=0)
    found = evaluate(sde, torch.zeros(1, dim), samples=0, steps=2, progress=False).score
    assert found is not None
    assert (found.trace, found.probes) == (trace, 0 if trace == "exact" else 2)


def test_parts_have_noise_of_their_own_and_the_chunks_of_samples_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of eight equal data no two see the same noise; of 12 samples none are equal."""
    module = importlib.import_module("scoresde.evaluation.measures")
    monkeypatch.setattr(module, "SCORED_AT_ONCE", 4)
    monkeypatch.setattr(module, "DRAWN_AT_ONCE", 4)
    original, bits, seen = module.bits_per_dim, [], []

    def noted(*args: Any, **kwargs: Any) -> Any:
        bits.append(original(*args, **kwargs))
        return bits[-1]

    def features(x: Tensor) -> Tensor:
        seen.append(x)
        return x.double()

    monkeypatch.setattr(module, "bits_per_dim", noted)
    sde = scoresde.oracle(law(), scoresde.VPSDE())
    evaluate(sde, torch.full((8, 2), 1000), levels=2**16, samples=0, progress=False)
    assert len(torch.cat([each.bits for each in bits]).unique()) == 8
    evaluate(sde, law().sample(3), n=0, fid=12, features=features, samples=0, progress=False)
    (samples,) = [x for x in seen if len(x) == 12]
    assert len(samples.unique(dim=0)) == 12


def test_the_seed_rules_which_are_scored_and_all_else(tmp_path: Path) -> None:
    v = integers(50)
    how: dict[str, Any] = {
        "n": 20,
        "levels": LEVELS,
        "samples": 3,
        "fid": 40,
        "features": None,
        "rtol": 1e-2,
        "atol": 1e-2,
        "progress": False,
    }

    def found(seed: int) -> dict[str, Any]:
        evaluate(model(), v, seed=seed, out=tmp_path, **how)
        text = (tmp_path / "evaluation.json").read_text()
        return json.loads(re.sub(r'("\w*seconds"|"date"): ("[^"]*"|[\d.e-]+)', r"\1: 0", text))

    torch.manual_seed(1)
    first = found(3)
    torch.manual_seed(2)
    assert found(3) == first
    other = found(4)
    assert (first["score"]["n"], first["score"]["of"], first["total"], first["seed"]) == (
        20,
        20,
        50,
        3,
    )
    for part, key in (("score", "mean"), ("distance", "value")):
        assert other[part][key] != first[part][key]


def test_the_frechet_distance_is_that_of_the_laws() -> None:
    """Of samples of N(½, 0.2²) to data of N(0.8, 0.2²) it is 2·0.3² within 0.03, some 4 standard
    deviations at n = 1000.
    """
    sde = scoresde.oracle(toy.GaussianMixture([[0.5, 0.5]], 0.2), scoresde.VPSDE())
    x = 0.8 + 0.2 * torch.randn(1000, 2, generator=generator(0))
    found = evaluate(sde, x, n=0, samples=0, fid=1000, features=None, progress=False)
    assert found.distance is not None
    assert found.distance.value == pytest.approx(0.18, abs=0.03)
    assert (found.score, found.distance.samples, found.distance.data) == (None, 1000, 1000)


def image_model() -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(1, 3, 3), width=8, depth=1, fourier=0, classes=3)
    torch.nn.init.normal_(sde.net.out.weight, std=0.1)
    return sde.eval()


def images(n: int = 30) -> Tensor:
    return torch.randint(256, (n, 1, 3, 3), generator=generator(5), dtype=torch.uint8)


def sheet(drawn: list[Tensor]) -> Any:
    """A stand-in that notes what is drawn, between black 0 and white 255."""

    def draw(images: Tensor, out: Path, *, limits: Any, **_: Any) -> None:
        assert limits == (0, 255)
        drawn.append(images)
        out.touch()

    return draw


def test_a_sheet_has_the_samples_of_that_seed_and_features_see_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []
    monkeypatch.setattr(plotting, "sheet", sheet(drawn))

    def brightness(x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        return x.flatten(1).double().mean(1, keepdim=True)

    sde = image_model()
    found = evaluate(
        sde,
        images(),
        n=0,
        samples=7,
        fid=20,
        features=brightness,
        seed=4,
        out=tmp_path,
        progress=False,
    )
    assert torch.equal(
        drawn[0],
        scoresde.dequantize.Uniform(256)
        .values(scoresde.sample(sde, 7, generator=generator(4)))
        .float(),
    )
    assert found.distance is not None
    assert (found.samples, found.sheet, found.distance.features) == (
        7,
        "samples.png",
        "brightness",
    )


def test_conditions_go_with_their_data_and_samples_take_them_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Tensor] = []
    monkeypatch.setattr(plotting, "sheet", sheet(drawn))
    sde, v, y = image_model(), images(5), torch.tensor([2, 0, 1, 1, 0])
    found = evaluate(sde, v, given={"y": y}, samples=7, out=tmp_path, progress=False)
    # the same noise
    alone = [
        evaluate(sde.given(y=label), v, samples=0, progress=False).score for label in range(3)
    ]
    assert found.score is not None
    assert all(each is not None for each in alone)
    assert min(a.mean for a in alone if a) <= found.score.mean <= max(a.mean for a in alone if a)
    order = random_order(5, 7, seed=0)
    assert sorted(order[:5].tolist()) == [0, 1, 2, 3, 4]
    wanted = scoresde.sample(sde.given(y=y[order]), 7, generator=generator(0))
    assert torch.equal(drawn[0], scoresde.dequantize.Uniform(256).values(wanted).float())


class TwoClasses(torch.nn.Module):
    """E[x0 | x_t, y] of N(m, 0.05²) with m = 0.2 or 0.8."""

    def __init__(self) -> None:
        super().__init__()
        self.process = scoresde.VPSDE()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha, sigma = (c(t)[:, None].to(x) for c in (self.process.alpha, self.process.sigma))
        mean = torch.where(y == 0, 0.2, 0.8)[:, None].to(x)
        return mean + (x - alpha * mean) * alpha * 0.05**2 / (alpha**2 * 0.05**2 + sigma**2)


def two_classes() -> tuple[scoresde.ScoreSDE, Tensor, Tensor]:
    """A model, and data sorted by class."""
    y = torch.arange(600) // 300
    x = torch.where(y == 0, 0.2, 0.8)[:, None] + 0.05 * torch.randn(600, 2, generator=generator(0))
    return (
        scoresde.ScoreSDE(
            scoresde.VPSDE(), TwoClasses(), shape=(2,), predict="x0", input_convention="raw"
        ),
        x,
        y,
    )


def test_data_sorted_by_class_are_no_matter_for_the_frechet_distance() -> None:
    """All of one class would give 2·0.3² and more; half of each gives 0 but for noise, some 2·(0.3
    ± 0.01)²/500.
    """
    sde, x, y = two_classes()
    for fid in (300, 900):  # part of a round, and one and a half
        found = evaluate(
            sde, x, given={"y": y.numpy()}, n=0, samples=0, fid=fid, features=None, progress=False
        ).distance
        assert found is not None
        assert found.value < 0.01


def test_what_is_scored_first_is_a_random_subset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of data sorted by how likely they are: interrupted after one part, the mean is that of all
    within 4 standard errors.
    """
    module = importlib.import_module("scoresde.evaluation.measures")
    sde, x, y = two_classes()
    x[300:] = 0.5 + 0.3 * torch.randn(300, 2, generator=generator(2))
    how: dict[str, Any] = {"samples": 0, "rtol": 1e-3, "atol": 1e-3, "progress": False}
    full = evaluate(sde, x, given={"y": y}, **how).score
    original, calls = module.likelihood, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "likelihood", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(sde, x, given={"y": y}, out=tmp_path, **how)
    part = json.loads((tmp_path / "evaluation.json").read_text())["score"]
    assert full is not None
    assert (part["n"], part["of"], full.n) == (SCORED_AT_ONCE, 600, 600)
    assert abs(part["mean"] - full.mean) < 4 * part["stderr"]
    assert f"so far {SCORED_AT_ONCE} of 600 data" in Score(**part).rows()[0][2]


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_parts_found_before_are_kept_while_model_data_and_seed_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is written before the first result."""
    v = integers(40)
    how: dict[str, Any] = {
        "levels": LEVELS,
        "out": tmp_path,
        "rtol": 1e-2,
        "atol": 1e-2,
        "progress": False,
    }
    file = tmp_path / "evaluation.json"

    def parts() -> dict[str, Any]:
        found = json.loads(file.read_text())
        return {name: found[name] for name in ("score", "samples", "distance")}

    evaluate(model(), v, samples=3, n=10, **how)
    first, text = parts(), file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("scoresde.evaluation.measures"), "solve", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model(), v, samples=3, seed=9, **how)
    assert file.read_bytes() == text
    evaluate(model(), v, n=0, samples=0, fid=10, features=None, **how)
    second = parts()
    assert (second["score"], second["samples"]) == (first["score"], 3)
    assert second["distance"] is not None
    for other in (
        {"data": v + (v < 1)},
        {"seed": 1},
        {"sde": scoresde.oracle(law(), scoresde.VPSDE(beta_max=19.0))},
    ):
        file.write_bytes(text)
        call: dict[str, Any] = {
            "sde": model(),
            "data": v,
            "n": 0,
            "samples": 0,
            "fid": 10,
            "features": None,
            **how,
            **other,
        }
        evaluate(call.pop("sde"), call.pop("data"), **call)
        assert parts()["score"] is None, other


@pytest.mark.parametrize("levels", [2, 8, 256, 1000])
def test_features_see_bytes_in_the_middle_of_their_bins(levels: int) -> None:
    """⌊(v + ½)·256/L⌋ of the data, exactly; samples of N(½, 0.02²) have the mean 127.5 of them,
    and half a bin more for few.
    """
    sde = scoresde.oracle(toy.GaussianMixture([[0.5] * 4], 0.02), scoresde.VPSDE())
    v, seen = torch.randint(levels, (50, 4), generator=generator(0)), []

    def features(x: Tensor) -> Tensor:
        assert x.dtype == torch.uint8
        seen.append(x)
        return x.double()

    evaluate(sde, v, levels=levels, n=0, samples=0, fid=500, features=features, progress=False)
    assert any(torch.equal(x, ((v + 0.5) * 256 / levels).floor().byte()) for x in seen)
    samples = torch.cat([x for x in seen if len(x) > 50])
    if levels >= 256:
        assert float(samples.double().mean()) == pytest.approx(127.5, abs=0.5)
    else:
        assert float(samples.double().mean()) == pytest.approx(128, abs=64 / levels)


def test_what_was_found_before_an_interruption_stands_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("scoresde.evaluation.measures")
    original, calls = module.bits_per_dim, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "bits_per_dim", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            model(),
            integers(SCORED_AT_ONCE + 10),
            levels=LEVELS,
            samples=2,
            out=tmp_path,
            rtol=1e-3,
            atol=1e-3,
            progress=False,
        )
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["score"]["n"] == SCORED_AT_ONCE
    assert found["samples"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evaluation.json",
        "pairs.png",
        "samples.csv",
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes, and one of points, from the command."""
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.integers(0, 256, (60, 1, 4, 4)).astype(np.uint8))
    np.save(folder / "points.npy", rng.normal(size=(60, 2)))
    for name in ("images", "points"):
        small = [
            "--steps",
            "20",
            "--batch-size",
            "16",
            "--option",
            "width=8",
            "--option",
            "depth=1",
        ]
        main(["fit", str(folder / f"{name}.npy"), "--out", str(folder / name), *small])
    return folder


def test_the_command_writes_what_the_function_finds(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    how = [
        "-n",
        "20",
        "--samples",
        "9",
        "--seed",
        "2",
        "--fid",
        "40",
        "--features",
        "pixels",
        "--device",
        "cpu",
        "--draws",
        "3",
        "--tolerance",
        "1e-2",
    ]
    main(
        [
            "evaluate",
            str(trained / "images"),
            str(trained / "images.npy"),
            "--out",
            str(tmp_path / "e"),
            *how,
        ]
    )
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    sde, v = scoresde.load(trained / "images"), torch.from_numpy(np.load(trained / "images.npy"))
    wanted = evaluate(
        sde,
        v,
        n=20,
        draws=3,
        samples=9,
        fid=40,
        features=None,
        seed=2,
        progress=False,
        rtol=1e-2,
        atol=1e-2,
    )
    assert wanted.score is not None
    assert wanted.weighted is not None
    assert wanted.distance is not None
    assert found["score"]["mean"] == wanted.score.mean
    assert found["weighted"]["mean"] == wanted.weighted.mean
    assert found["distance"]["value"] == wanted.distance.value
    assert found["parameters"] == sum(p.numel() for p in sde.net.parameters())
    assert re.search(rf"bits/dim +{wanted.score.mean:.4f} ± {wanted.score.stderr:.4f}", said), said
    assert re.search(rf"bits/dim, k = 3 +{wanted.weighted.mean:.4f}", said), said
    assert "20 of 60, drawn at random with seed 2" in said
    picture = imread(tmp_path / "e" / "samples.png")[..., :3]
    assert picture.std() > 0.05
    assert abs(wanted.score.mean - 8) < 1.5  # uniform noise


def test_a_table_has_no_picture_and_a_models_own_folder_may_hold_its_evaluation(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            "evaluate",
            str(trained / "points"),
            str(trained / "points.npy"),
            "--out",
            str(trained / "points"),
            "-n",
            "10",
        ]
    )
    assert re.search(r"mean log p\(x\) .* nats", capsys.readouterr().out)
    assert (trained / "points" / "evaluation.json").exists()
    assert not (trained / "points" / "samples.png").exists()
    small = ["--steps", "20", "--batch-size", "16", "--option", "width=8", "--option", "depth=1"]
    main(
        ["fit", str(trained / "points.npy"), "--out", str(trained / "points"), "--resume", *small]
    )


def test_the_test_set_is_taken_where_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_recipes import mnist

    mnist(tmp_path, train=30, test=12)
    small = ["--steps", "2", "--batch-size", "4", "--option", "width=4", "--option", "depth=1"]
    main(["fit", str(tmp_path), "--out", str(tmp_path / "run"), *small])
    how = ["--samples", "0", "-n", "3", "--probes", "1", "--tolerance", "1e-2", "--device", "cpu"]
    for split, total in (([], 12), (["--split", "train"], 30)):
        main(
            [
                "evaluate",
                str(tmp_path / "run"),
                str(tmp_path),
                "--out",
                str(tmp_path / "e"),
                *how,
                *split,
            ]
        )
        assert f"3 of {total}" in capsys.readouterr().out


def test_a_mistake_of_the_command_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another model's data, and a set that a file does not have."""
    for how, said in (
        (["images.npy"], r"data have shape \(1, 4, 4\)"),
        (["points.npy", "--split", "test"], "split='test' is for"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(
                [
                    "evaluate",
                    str(trained / "points"),
                    str(trained / how[0]),
                    *how[1:],
                    "--out",
                    str(tmp_path / "e"),
                ]
            )
        error = capsys.readouterr().err
        assert (caught.value.code, error.count("\n")) == (2, 1)
        assert re.search(said, error), error
        assert list(tmp_path.iterdir()) == []


X, V = torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.long)


@pytest.mark.parametrize(
    ("data", "how", "error", "said"),
    [
        (torch.zeros(4, 3), {}, ValueError, r"data has shape \(4, 3\), wanted \(batch, 2\)"),
        (torch.zeros(4, 3, dtype=torch.uint8), {}, ValueError, r"data have shape \(3,\) a sample"),
        (V + 9, {"levels": 8}, ValueError, "integers from 0 to 7, got 9"),
        (
            torch.tensor([[0, 0]] * 50 + [[9, 0]]),
            {"levels": 8, "n": 1, "fid": 5, "features": None},
            ValueError,
            "got 9",
        ),
        (torch.zeros(0, 2), {}, ValueError, "not empty"),
        (X * math.nan, {}, ValueError, "NaN"),
        (X, {"n": -1}, ValueError, "n is at least 0"),
        (X, {"draws": 2}, ValueError, "draws=2 are of the noise of integers"),
        (V, {"draws": 0}, ValueError, "draws is at least 1"),
        (X, {"fid": 1}, ValueError, "at least 2"),
        (X[:1], {"fid": 10, "features": None}, ValueError, "at least 2 data, got 1"),
        (X, {"fid": 10, "features": "incepton"}, ValueError, "Did you mean 'inception'"),
        (X, {"fid": 10, "features": lambda x: x.sum()}, ValueError, r"\(2, F\)"),
        (X, {"trace": "exact", "probes": 3}, ValueError, "probes=3 are of an estimated trace"),
        (X, {"trace": "hutchison"}, ValueError, "hutchinson"),
        (X, {"probes": 0}, ValueError, "probes is at least 1"),
        (X, {"solver": "em"}, ValueError, "stochastic"),
        (X, {"rtol": -1.0}, ValueError, "rtol"),
        (X, {"given": {"y": torch.zeros(3)}}, ValueError, r"'y' has shape \(3,\) for 4 data"),
        (X, {"out": 3}, TypeError, "out is a path"),
        (X, {"seed": 0.5}, TypeError, "seed is an integer"),
        (X, {"seed": -1}, ValueError, "seed is at least 0"),
        (X, {"seed": 2**63}, ValueError, r"seed is below 2\^63"),
        (X, {"out": ""}, ValueError, "out is the path of a folder"),
        (X, {"given": [1]}, TypeError, "given is a mapping"),
        (
            X,
            {"given": {"y": ["a"] * 4}},
            TypeError,
            "condition 'y' is a tensor or array of numbers, got an array of <U1",
        ),
        (X + 1j, {}, TypeError, "complex64"),
        (None, {}, TypeError, "data is a tensor or array of numbers, got NoneType"),
        ("points", {}, TypeError, "got str"),
        ([["a", "b"]], {}, TypeError, "got an array of <U1"),
        ([[1.0], [1.0, 2.0]], {}, TypeError, "got list"),
        (np.array([[{}, 1]]), {}, TypeError, "got an array of object"),
        (scoresde.dequantize.Uniform(8).dataset(V), {}, TypeError, "got Dequantized"),
        (X, {"fid": 5, "features": lambda x: x[:, :0]}, ValueError, "at least one a sample"),
    ],
)
def test_mistakes_are_found_before_the_work(
    data: Any,
    how: dict[str, Any],
    error: type[Exception],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = importlib.import_module("scoresde.evaluation.measures")
    for verb in ("solve", "sample", "likelihood", "bits_per_dim"):
        monkeypatch.setattr(module, verb, lambda *_, **__: pytest.fail("work was begun"))
    with pytest.raises(error, match=said):
        evaluate(model(), data, progress=False, **{"out": tmp_path / "e", **how})
    assert list(tmp_path.iterdir()) == []


def test_mistakes_with_conditions_are_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label that is used for samples only, a model told of rows, and one that has never been
    without.
    """
    module = importlib.import_module("scoresde.evaluation.measures")
    for verb in ("solve", "sample", "bits_per_dim"):
        monkeypatch.setattr(module, verb, lambda *_, **__: pytest.fail("work was begun"))
    y = torch.arange(30) % 3
    bad = y.clone()
    bad[random_order(30, 30, seed=0)[20]] = 7
    how: dict[str, Any] = {"n": 3, "features": None, "out": tmp_path / "e"}
    with pytest.raises(ValueError, match="labels y run from 0 to 2, got 0 to 7"):
        evaluate(image_model(), images(), given={"y": bad}, fid=30, **how)
    with pytest.raises(ValueError, match="given 'y' of 30 rows"):
        evaluate(image_model().given(y=y), images(), **how)
    seen = scoresde.observe(image_model(), scoresde.measurements.Denoise(0.1), images()[:4])
    with pytest.raises(ValueError, match="guided by y of 4 rows"):
        evaluate(seen, images(), **how)
    never = scoresde.build(
        "vp", "mlp", shape=(1, 3, 3), width=8, depth=1, fourier=0, classes=3, condition_dropout=0
    )
    with pytest.raises(ValueError, match="always with y"):
        evaluate(never, images(), **how)
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_is_of_model_data_and_conditions() -> None:
    x, y = torch.zeros(1, 2), {"y": torch.zeros(1)}
    same = fingerprint(model(), x, y)
    assert fingerprint(model(), x, y) == same
    other = scoresde.oracle(law(), scoresde.VPSDE(beta_max=19.0))
    for sde, data, conditions in ((model(), x + 1, y), (model(), x, {}), (other, x, y)):
        assert fingerprint(sde, data, conditions) != same


def test_arrays_of_every_layout_are_the_same_data(tmp_path: Path) -> None:
    v = integers(30).numpy()
    np.save(tmp_path / "v.npy", v)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    alike = [
        v[::-1].copy()[::-1],
        v.astype(">i4"),
        np.asfortranarray(v),
        v.astype(np.uint16),
        mapped,
        v.tolist(),
        torch.from_numpy(v),
    ]
    means = []
    for each in alike:
        found = evaluate(
            model(), each, levels=LEVELS, n=5, samples=0, steps=4, progress=False
        ).score
        assert found is not None
        means.append(found.mean)
    assert means == means[:1] * len(alike)


def test_a_row_of_the_table_is_measured_shown_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def energy(task: Task) -> Iterator[dict[str, Any]]:
        assert task.truth is not None
        yield {"energy": float(scoresde.energy_distance(task.drawn, task.truth))}

    monkeypatch.setitem(MEASURES, "energy", energy)
    x = law().sample(50)
    how: dict[str, Any] = {"n": 0, "samples": 0, "fid": 60, "features": None, "progress": False}
    found = evaluate(model(), x, out=tmp_path, **how)
    assert abs(found.metrics["energy"]) < 0.1
    assert re.search(rf"energy +{found.metrics['energy']:.4g}", repr(found))
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["metrics"] == found.metrics


def test_a_row_keeps_the_results_of_other_rows_and_writes_any_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call with another row, whose results are what tensors and numpy have for numbers."""
    x = law().sample(20)
    how: dict[str, Any] = {"n": 0, "samples": 0, "out": tmp_path, "progress": False}
    results: list[dict[str, Any]] = [
        {"first": 1.0, "again": 1.0},
        {
            "again": torch.tensor(2.0),
            "single": np.float32(0.5),
            "several": [torch.tensor([3]), math.nan],
        },
    ]
    for each in results:
        with monkeypatch.context() as patch:
            patch.setitem(MEASURES, "own", lambda task, each=each: iter([each]))
            found = evaluate(model(), x, **how)
    assert found.metrics["again"] == 2.0
    assert isinstance(found.metrics["again"], float)
    written = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    assert written == {"first": 1.0, "again": 2.0, "single": 0.5, "several": [3, None]}


@pytest.mark.slow
def test_the_command_hands_on_conditions_levels_and_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the file says is what the function finds when told the same."""
    rng = np.random.default_rng(1)
    v, y = rng.integers(0, 16, (40, 3)).astype(np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "d.npz", x=v, y=y)
    small = [
        "--validation",
        "none",
        "--steps",
        "30",
        "--batch-size",
        "16",
        "--option",
        "width=8",
        "--option",
        "depth=1",
        "--lr",
        "0.1",
        "--condition",
        "y",
    ]
    main(["fit", str(tmp_path / "d.npz"), "--out", str(tmp_path / "m"), *small])
    sde = scoresde.load(tmp_path / "m")
    how: dict[str, Any] = {"n": 4, "levels": 16, "samples": 0, "progress": False}
    how |= {"rtol": 1e-3, "atol": 1e-3}
    means = set()
    for words, model_, more in (
        (["--condition", "y"], sde, {"given": {"y": y}}),
        (["--given", "y=1"], sde.given(y=1), {}),
        (["--given", "y=1", "--trace", "hutchinson"], sde.given(y=1), {"trace": "hutchinson"}),
        ([], sde, {}),
    ):
        out = [
            "--out",
            str(tmp_path / "e"),
            "-n",
            "4",
            "--levels",
            "16",
            "--samples",
            "0",
            "--tolerance",
            "1e-3",
            "--device",
            "cpu",
        ]
        main(["evaluate", str(tmp_path / "m"), str(tmp_path / "d.npz"), *out, *words])
        wanted = evaluate(model_, v, **how, **more).score
        found = json.loads((tmp_path / "e" / "evaluation.json").read_text())
        assert wanted is not None
        assert found["score"]["mean"] == wanted.mean
        assert (found["notes"]["model"], found["notes"]["split"], found["levels"]) == (
            str(tmp_path / "m"),
            "train",
            16,
        )
        means.add(wanted.mean)
    # of no folder, only the table
    main(["evaluate", str(tmp_path / "m"), str(tmp_path / "d.npz"), *out[2:]])
    assert re.search(rf"bits/dim +{wanted.mean:.4f}", capsys.readouterr().out.splitlines()[-2])
    assert len(means) == 4


def test_a_folder_that_can_not_be_made_and_a_model_that_is_none_are_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"can't write to .*file"):
        evaluate(model(), X, out=tmp_path / "file" / "e")
    with pytest.raises(TypeError, match="evaluate needs a ScoreSDE"):
        evaluate(scoresde.VPSDE(), X)  # type: ignore[arg-type]
