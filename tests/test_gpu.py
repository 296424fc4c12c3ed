"""The benchmark of a GPU runs in small on a CPU, and sees a device that is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import scoresde

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    "backbones",
    [
        pytest.param(["mlp", "unet", "dit"], id="some"),
        pytest.param(list(scoresde.BACKBONES), id="all", marks=pytest.mark.slow),
    ],
)
def test_the_gpu_benchmark_runs_in_small_on_a_cpu(
    backbones: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tables are written, and a device that rounds too coarsely is an exit status of 1."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(sys.modules, "diffusers", None)  # five seconds of imports
    import gpu

    monkeypatch.setattr(gpu, "BACKBONES", backbones)
    written = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--json", str(written), "--out", str(tmp_path / "gpu.md")]
    assert gpu.main(arguments) == 0
    rows = json.loads(written.read_text())["rows"]
    agreement = [row for row in rows if row["what"] == "agreement"]
    assert {row["backbone"] for row in agreement} == set(backbones)
    assert all(row["samples"] <= row["bound"] for row in agreement)
    waits = [row for row in rows if row["what"] == "waits"]
    assert [row["solver"] for row in waits] == list(gpu.SOLVERS)
    assert all(row["each"] == 0 for row in waits)
    speeds = [row for row in rows if row["what"] == "throughput"]
    assert {row["network"] for row in speeds} >= {"unet", "dit"}
    assert "Not measured on a GPU" in (tmp_path / "gpu.md").read_text()

    monkeypatch.setitem(gpu.BOUNDS, "float32", 1e-9)
    report = gpu.Report(None, None, ("torch",))
    monkeypatch.setattr(gpu, "BACKBONES", ["mlp"])
    assert not gpu.agreement(report, "cpu")


def test_the_gpu_benchmark_sees_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    with gpu.Waits() as waits:
        bool(torch.ones(3).sum() > 0)
    assert waits.count == 1
