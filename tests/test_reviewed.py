"""What a hostile reader found in training and its checkpoints, one test each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import scoresde
from conftest import fit_keywords, generator
from scoresde import CheckpointError, ScoreSDE, TrainingError

X = torch.randn(200, 2, generator=generator(1))


def small(**options: Any) -> ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build(
        "vp", "mlp", shape=(2,), **({"width": 8, "depth": 1, "fourier": 2} | options)
    )


def fit(sde: ScoreSDE, data: Any = X, **options: Any) -> scoresde.History:
    common = {"steps": 30, "batch_size": 16, "progress": False, "generator": generator()}
    return scoresde.fit(sde, data, **fit_keywords(**(common | options)))


class Wandering(Dataset[Tensor]):
    """Changes the working directory, as careless code does."""

    def __init__(self, there: Path) -> None:
        self.there = there

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> Tensor:
        os.chdir(self.there)
        return X[i]


def test_a_relative_folder_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fit(small(), Wandering(tmp_path / "there"), out="run", every=10)
    assert not list((tmp_path / "there").iterdir())
    assert scoresde.load(tmp_path / "here" / "run").shape == (2,)


def test_a_new_run_does_not_hide_behind_an_old_model(tmp_path: Path) -> None:
    scoresde.save(small(width=4), tmp_path)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="holds a model and no checkpoint"):
            fit(small(), out=tmp_path, resume=resume)


@pytest.mark.parametrize("what", ["one row", "a label", "dtype"])
def test_other_data_and_models_are_refused(what: str, tmp_path: Path) -> None:
    y = torch.arange(len(X)) % 3
    fit(small(classes=3), given={"y": y}, out=tmp_path)
    x, y, sde = X.clone(), y.clone(), small(classes=3)
    if what == "one row":
        x[77] += 1
    elif what == "a label":
        y[77] = (y[77] + 1) % 3
    else:
        sde.double()
    with pytest.raises(CheckpointError, match="dtype" if what == "dtype" else "data"):
        fit(sde, x, given={"y": y}, out=tmp_path, resume=True)


class Stop(Exception):
    pass


class Counting(nn.Module):
    """Its answer depends on a buffer that its state_dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.layer(torch.cat([x, t[:, None]], 1)) * (1 + self.calls / 100)


@pytest.mark.filterwarnings("ignore:the run can be resumed")
def test_buffers_that_are_not_persistent_are_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sde() -> ScoreSDE:
        torch.manual_seed(0)
        return ScoreSDE(scoresde.VPSDE(), Counting(), shape=(2,))

    whole = sde()
    fit(whole)
    save = scoresde.training.checkpoint.CheckpointFolder.save

    def stopping(self: Any, sde: ScoreSDE, state: Any) -> None:
        save(self, sde, state)
        raise Stop

    monkeypatch.setattr(scoresde.training.checkpoint.CheckpointFolder, "save", stopping)
    with pytest.raises(Stop):
        fit(sde(), out=tmp_path, every=15)
    monkeypatch.undo()
    resumed = sde()
    fit(resumed, out=tmp_path, every=15, resume=True)
    assert torch.equal(resumed.net.layer.weight, whole.net.layer.weight)


class Late(nn.Module):
    """Makes a parameter when it is called first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(2))
        return self.scale * self.layer(torch.cat([x, t[:, None]], 1))


class Spoiled(nn.Module):
    """NaN in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.layer(torch.cat([x, t[:, None]], 1))
        return out if self.training else out * float("nan")


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (Late, {}, "came or went.*scale"),
        (Spoiled, {"validation": X, "every": 10, "patience": 3}, "validation loss is nan"),
    ],
)
def test_what_can_not_be_trained_is_an_error(
    net: Callable[[], nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        fit(ScoreSDE(scoresde.VPSDE(), net(), shape=(2,)), **options)


def test_a_compile_that_fails_later_is_a_warning_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_without_gradients(net: nn.Module) -> Any:
        def call(*inputs: Any, **condition: Any) -> Any:
            if not torch.is_grad_enabled():
                raise RuntimeError("recompile failed")
            return net(*inputs, **condition)

        return call

    monkeypatch.setattr(torch, "compile", fails_without_gradients)
    with pytest.warns(UserWarning, match="recompile failed"):
        history = fit(small(), validation=X, every=10, backend="compile")
    assert len(history.validation) == 3


def test_snapshots_of_another_model_are_not_averaged(tmp_path: Path) -> None:
    fit(small(), out=tmp_path, snapshots=3)
    scoresde.posthoc_ema(tmp_path, 0.1)
    torch.manual_seed(0)
    scoresde.save(scoresde.build("ve", "mlp", shape=(2,), width=8, depth=1, fourier=2), tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        scoresde.posthoc_ema(tmp_path, 0.1)


def test_conditions_are_finite_and_of_the_models_dtype() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return self.layer(torch.cat([x, t[:, None], c[:, None]], 1))

    sde = ScoreSDE(scoresde.VPSDE(), Net(), shape=(2,))
    fit(sde, given={"c": np.linspace(0, 1, len(X))})
    with pytest.raises(ValueError, match="'c' has NaN"):
        fit(sde, given={"c": np.full(len(X), np.nan)})


def test_classes_of_another_file_are_numbered_as_in_training(tmp_path: Path) -> None:
    from scoresde.model.schema import Schema

    (tmp_path / "a.csv").write_text("u,kind\n1,x\n2,y\n3,z\n")
    (tmp_path / "b.csv").write_text("u,kind\n1,z\n2,x\n")
    (tmp_path / "c.csv").write_text("u,kind\n1,w\n2,x\n")
    a, b, c = (
        scoresde.files.read(tmp_path / f"{name}.csv", conditions=["kind"]) for name in "abc"
    )
    schema = Schema()
    schema.learn(a, None)
    assert schema.take(b)[1]["kind"].tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"'w'.*x, y, z"):
        schema.take(c)


def test_half_precision_weights_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="half precision"):
        fit(small().to(torch.bfloat16))
