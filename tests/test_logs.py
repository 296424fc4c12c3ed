"""Logs of training: what is written where, that it changes nothing, and that it loses nothing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import scoresde
from conftest import generator
from scoresde.storage.description import weights
from scoresde.training import recording
from scoresde.training.logs import Log, as_log, writer_of

Line = dict[str, Any]


def model(**options: Any) -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build("vp", "mlp", shape=(2,), width=16, **options)


def fit(sde: Any, log: Any = None, steps: int = 40, **options: Any) -> scoresde.History:
    data = torch.randn(300, 2, generator=generator())
    how: dict[str, Any] = {"batch_size": 32, "validation": (data[:50], None)} | options
    how["generator"] = generator(3)
    return scoresde.fit(sde, data, steps=steps, log=log, **how)


def read(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Logger:
    """As wandb's run: a method log(dict, step)."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.lines: list[Line] = []
        self.fails_at = fails_at

    def log(self, values: dict[str, Any], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("no route to host")
        self.lines.append({**values, "step": step})


def same(one: Any, other: Any) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_lines_are_the_history_and_the_samples_are_of_the_average(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.jsonl"
    sde = model(classes=2)
    checked = scoresde.Validation(torch.randn(20, 2), {"y": torch.zeros(20).long()}, every=10)
    given = {"y": torch.arange(300) % 2}
    log = Log(path, samples=20, n=3, given={"y": [0, 1, 1]})
    history = fit(sde, log, given=given, validation=checked)
    lines = read(path)
    assert [(x["step"], x["loss"]) for x in lines if "loss" in x] == list(
        zip(history.step, history.loss, strict=True)
    )
    assert [(x["step"], x["validation"]) for x in lines if "validation" in x] == list(
        zip(history.checked, history.validation, strict=True)
    )
    rates = [x["lr"] for x in lines if "lr" in x]
    assert rates[0] > rates[-1] > 0
    drawn = {x["step"]: x["samples"] for x in lines if "samples" in x}
    assert list(drawn) == [20, 40]
    view = sde.given(y=torch.tensor([0, 1, 1]))
    again = scoresde.sample(view, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.tensor(drawn[40]), again, rtol=0, atol=0)


@pytest.mark.parametrize("net", ["mlp", "dit"])
def test_a_log_leaves_the_weights_as_they_are(net: str) -> None:
    """Bit for bit, with dropout, which draws from the global generator."""
    found = []
    for log in (None, Log(Logger(), samples=3)):
        torch.manual_seed(0)
        shape = (2,) if net == "mlp" else (1, 4, 4)
        more = {} if net == "mlp" else {"width": 8, "heads": 2, "depth": 1, "dropout": 0.3}
        sde = scoresde.build("vp", net, shape=shape, **more)
        x = torch.randn(64, *shape, generator=generator())
        how = {"steps": 12, "batch_size": 16, "generator": generator(1), "validation": x[:8]}
        history = scoresde.fit(sde, x, log=log, **how)
        found.append((sde, history.loss, history.validation))
    assert same(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


def test_an_object_gets_numbers_and_arrays() -> None:
    logger = Logger()
    fit(model(), Log(logger, samples=40, n=5))
    assert sorted(logger.lines[-1]) == ["samples", "step"]
    assert logger.lines[-1]["samples"].shape == (5, 2)
    assert {type(x["loss"]) for x in logger.lines if "loss" in x} == {float}
    plain = Logger()
    fit(model(), plain)
    assert [x["step"] for x in plain.lines] == [x["step"] for x in logger.lines[:-1]]


def test_a_resumed_run_goes_on_with_its_file(tmp_path: Path) -> None:
    """Killed between two checkpoints, in the middle of a line: the file ends as if it never was."""
    whole = tmp_path / "whole.jsonl"
    fit(model(), Log(whole, samples=10, n=2), checkpoints=tmp_path / "a")

    class Stop(Exception):
        pass

    def stop(self: Any, step: int) -> None:
        original(self, step)
        if step == 27:
            raise Stop

    broken = tmp_path / "broken.jsonl"
    log = Log(broken, samples=10, n=2)
    checkpoints = scoresde.Checkpoints(tmp_path / "b", every=10, resume=True)
    original = recording.Recorder.follow
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording.Recorder, "follow", stop)
        with pytest.raises(Stop):
            fit(model(), log, checkpoints=checkpoints, validation=None)
    assert max(x["step"] for x in read(broken)) > 20
    with open(broken, "a") as file:
        file.write('{"step": 28, "lo')
    fit(model(), log, checkpoints=checkpoints, validation=None)
    ours, theirs = ([drop(x, "seconds", "validation") for x in read(p)] for p in (broken, whole))
    assert ours == [x for x in theirs if len(x) > 1]


def test_a_run_killed_before_its_first_checkpoint_writes_its_file_anew(tmp_path: Path) -> None:
    """Also the line of the untrained network."""
    log = Log(tmp_path / "log.jsonl")
    checkpoints = scoresde.Checkpoints(tmp_path / "run", every=10, resume=True)
    held_out = scoresde.Validation(torch.randn(50, 2, generator=generator()), every="auto")
    original = recording.Recorder.follow

    def stop(self: Any, step: int) -> None:
        original(self, step)
        if step == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording.Recorder, "follow", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(model(), log, checkpoints=checkpoints, validation=held_out)
    assert read(tmp_path / "log.jsonl")[0]["step"] == 0
    fit(model(), log, checkpoints=checkpoints, validation=held_out)
    steps = [line["step"] for line in read(tmp_path / "log.jsonl")]
    assert steps.count(0) == 1
    assert steps == sorted(steps)


def drop(line: Line, *names: str) -> Line:
    return {name: value for name, value in line.items() if name not in names}


def test_a_new_run_does_not_join_the_log_of_another(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    sde = model()
    fit(sde, str(path))
    before, text = {n: v.clone() for n, v in weights(sde).items()}, path.read_text()
    with pytest.raises(ValueError, match=r"run.jsonl holds the log of a run: choose another"):
        fit(sde, str(path))
    assert path.read_text() == text
    assert all(torch.equal(before[name], value) for name, value in weights(sde).items())


def test_samples_of_a_table_are_its_rows(tmp_path: Path) -> None:
    """As lines, as a data frame for an object, and for TensorBoard as numbers and words."""
    rows = {"size": list(range(60)), "kind": ["a", "b", "b"] * 20}
    table = scoresde.Table(rows)
    found: list[Any] = []
    logger = Logger()
    for to in (tmp_path / "run.jsonl", logger):
        torch.manual_seed(0)
        sde = scoresde.build("vp", "mlp", shape=table.shape, classes=table.classes, width=8)
        how = {"steps": 10, "validation": None, "generator": generator(1)}
        scoresde.fit(sde, table, log=Log(to, samples=10, n=4), **how)
        found.append(scoresde.sample(sde, 4, generator=generator()))
    lines = read(tmp_path / "run.jsonl")
    assert lines[-1]["samples"] == {name: found[0][name].tolist() for name in rows}
    assert logger.lines[-1]["samples"].equals(found[1])
    assert {type(size) for size in lines[-1]["samples"]["size"]} == {int}


def test_a_log_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    quiet, sde, logger = model(), model(), Logger(fails_at=20)
    fit(quiet)
    with pytest.warns(UserWarning, match="the run goes on: ConnectionError: no route to host"):
        history = fit(sde, logger)
    assert history.step[-1] == 40
    assert max(x["step"] for x in logger.lines) == 16
    assert same(quiet, sde)


def test_samples_that_fail_leave_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Tensor:
        raise scoresde.SolverError("3 of 3 samples are not finite")

    quiet, sde, logger = model(), model(), Logger()
    fit(quiet)
    monkeypatch.setattr(recording, "drawn", fails)
    with pytest.warns(UserWarning, match="no more samples are logged, as those of step 10 failed"):
        fit(sde, Log(logger, samples=10))
    assert [x for x in logger.lines if "samples" in x] == []
    assert logger.lines[-1]["step"] == 40
    assert sde.training is quiet.training
    assert same(quiet, sde)


def test_only_the_main_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoresde.training.backend import SingleProcess

    path = tmp_path / "run.jsonl"
    # What another rank's backend does: nothing, and it returns what the main process found.
    monkeypatch.setattr(SingleProcess, "main", False)
    monkeypatch.setattr(SingleProcess, "together", lambda self, work: None)
    fit(model(), Log(path, samples=10))
    assert not path.exists()


def test_first_stages_and_latents_are_logged(tmp_path: Path) -> None:
    x = torch.randn(100, 6, generator=generator())
    stage = scoresde.first_stage("vae", shape=(6,), latent=(2,), width=8)
    scoresde.fit_stage(stage, x, steps=10, log=tmp_path / "stage.jsonl")
    assert read(tmp_path / "stage.jsonl")[-1]["step"] == 10
    with pytest.raises(TypeError, match=r"samples= are drawn from a ScoreSDE, .* a FirstStage"):
        scoresde.fit_stage(stage, x, steps=10, log=Log(tmp_path / "s.jsonl", samples=5))
    latent = scoresde.Latent(stage, scoresde.build("vp", "mlp", shape=(2,), width=8))
    log = Log(tmp_path / "latent.jsonl", samples=10, n=4)
    scoresde.fit(latent, x, steps=10, log=log)
    drawn = torch.tensor(read(tmp_path / "latent.jsonl")[-1]["samples"])
    assert drawn.shape == (4, 6)  # of x, not of latents


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a number": (3, TypeError, "a log goes to a path or an object with .log"),
    "a class": (Logger, TypeError, "a log goes to a path or an object"),
    "a table": ("run.csv", ValueError, r"ends in .jsonl or a folder for TensorBoard, got run.csv"),
    "nothing": ("", ValueError, "the log is the path of a folder or file, got ''"),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_what_is_no_log_is_said_first(wrong: str) -> None:
    value, error, said = WRONG[wrong]
    with pytest.raises(error, match=said):
        fit(model(), value)
    for options, match in (
        ({"samples": -1}, "samples is at least 0"),
        ({"n": 0}, "n is at least 1"),
        ({"given": 3}, "given is a mapping"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            Log("run.jsonl", **options)
    with pytest.raises(TypeError, match=r"a log goes to a path or an object with .log"):
        Log(3)


def test_without_tensorboard_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"pip install scoresde\[tensorboard\], or choose a file"
    ):
        fit(model(), "runs/first")
    assert as_log("run.jsonl") is not None


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    """With its own reader; a resumed run replaces the steps after its checkpoint."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "runs"
    sde = scoresde.build("vp", "dit", shape=(1, 4, 4), width=8, heads=2, depth=1)
    x = torch.randn(64, 1, 4, 4, generator=generator())
    log = Log(folder, samples=10, n=2)
    checkpoints = scoresde.Checkpoints(tmp_path / "run", every=10, resume=True)
    how: dict[str, Any] = {"batch_size": 16, "checkpoints": checkpoints, "steps": 20}

    def killed(self: Any, step: int) -> None:
        follow(self, step)
        if step == 14:
            raise KeyboardInterrupt

    follow = recording.Recorder.follow
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording.Recorder, "follow", killed)
        with pytest.raises(KeyboardInterrupt):
            scoresde.fit(sde, x, log=log, **how)
    history = scoresde.fit(sde, x, log=log, **how)
    found = EventAccumulator(str(folder))
    found.Reload()
    scalars = found.Scalars("loss")
    assert [s.step for s in scalars] == history.step
    values = torch.tensor([s.value for s in scalars])
    torch.testing.assert_close(values, torch.tensor(history.loss), rtol=1e-6, atol=0)
    assert [image.step for image in found.Images("samples")] == [10, 20]
    with pytest.raises(ValueError, match="runs holds the log of a run"):
        fit(model(), folder)
    points = tmp_path / "points"
    fit(model(), Log(points, samples=20))
    found = EventAccumulator(str(points))
    found.Reload()
    assert found.Tags()["histograms"] == ["samples/0", "samples/1"]
    rows = tmp_path / "rows"
    table = scoresde.Table({"size": list(range(60)), "kind": ["a", "b", "b"] * 20})
    sde = scoresde.build("vp", "mlp", shape=table.shape, classes=table.classes, width=8)
    scoresde.fit(sde, table, steps=10, validation=None, log=Log(rows, samples=10, n=4))
    found = EventAccumulator(str(rows))
    found.Reload()
    assert found.Tags()["histograms"] == ["samples/size"]
    word = found.Tensors("samples/kind/text_summary")[0].tensor_proto.string_val[0].decode()
    assert sorted(set(word.split(", "))) in (["a"], ["b"], ["a", "b"])


@pytest.mark.parametrize(
    "text", ["garbage\n", "[1]\n", '{"step": "a"}\n', "notes of mine", "{}\n"]
)
def test_a_file_that_is_no_log_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="not of a log"):
        writer_of(Log(path), 10, resumed=True)
    assert path.read_text() == text


def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for cut in ('{"st', '{"step": 9, "lo'):
        path.write_text('{"step": 4, "loss": 1.0}\n' + cut)
        writer = writer_of(Log(path), 10, resumed=True)
        writer.write({"loss": 2.0}, 12)
        writer.close()
        assert [line["step"] for line in read(path)] == [4, 12]


def test_a_log_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").mkdir()
    with pytest.raises(ValueError, match="is no file"):
        fit(model(), tmp_path / "run.jsonl")
    (tmp_path / "taken").write_text("x")
    logs = ["taken/run.jsonl"]
    if importlib.util.find_spec("tensorboard"):
        logs += ["taken", "taken/deeper"]
    for log in logs:
        with pytest.raises(ValueError, match="taken is no folder, and a log"):
            fit(model(), tmp_path / log)
