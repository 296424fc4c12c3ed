"""Saved models: the same numbers come back bit for bit, and nothing that is damaged, foreign or hostile gets in."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import scoresde
from conftest import generator
from scoresde import CheckpointError, ScoreSDE

TINY = {"width": 8, "depth": 1, "fourier": 2}


def build(process: Any = "vp", net: str = "mlp", shape: tuple[int, ...] = (2,), **options: Any) -> ScoreSDE:
    """A model with random weights, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sde = scoresde.build(process, net, shape=shape, **(TINY if net == "mlp" else {}) | options)
        for p in sde.net.parameters():
            nn.init.normal_(p, std=0.3)
    return sde


def trained(sde: ScoreSDE, **given: Tensor) -> ScoreSDE:
    """Standardized, with an average that differs from the raw weights."""
    x = 5 + 3 * torch.randn(50, *sde.shape, generator=generator(1))
    scoresde.fit(sde, x, steps=3, lr=0.05, batch_size=50, given=given or None, progress=False, generator=generator(2))
    return sde


MODELS: dict[str, Callable[[], ScoreSDE]] = {
    "untrained": build,
    "averaged": lambda: trained(build()),
    "float64": lambda: trained(build("rectified", predict="v").double()),
    "options of a process": lambda: trained(build(scoresde.VPSDE(beta_max=7.5), predict="eps")),
    "positional options": lambda: trained(ScoreSDE(scoresde.EDM(0.01, 20.0), scoresde.MLP((3,), 8, 1, 2), shape=(3,))),
    "image": lambda: trained(build("ve", shape=(1, 3, 3))),
    "image with channels": lambda: trained(build("cosine", shape=(3, 2, 2), predict="x0")),
    "scalar": lambda: trained(build("subvp", shape=())),
    "classes": lambda: trained(build(classes=3), y=torch.arange(50) % 3),
    "raw": lambda: trained(build("edm", sees="raw")),
    "user's process": lambda: trained(build("test_polynomial")),
    "user's backbone": lambda: trained(build(net="test_linear", width=5)),
    "bfloat16 network": lambda: half(trained(build())),
}


def half(sde: ScoreSDE) -> ScoreSDE:
    sde.net.to(torch.bfloat16)
    assert sde.ema is not None
    sde.ema.to(torch.bfloat16)
    return sde


@pytest.mark.parametrize("name", list(MODELS))
def test_a_loaded_model_says_bitwise_the_same(name: str, tmp_path: Path) -> None:
    sde = MODELS[name]()
    sde.eval()
    assert scoresde.save(sde, tmp_path / "model") == tmp_path / "model"
    loaded = scoresde.load(tmp_path / "model")
    assert not loaded.training
    assert scoresde.PROCESSES.options_of(loaded.process) == scoresde.PROCESSES.options_of(sde.process)
    assert type(loaded.process) is type(sde.process)
    assert type(loaded.net) is type(sde.net)
    for attribute in ("shape", "predict", "sees", "measured", "state_dtype"):
        assert getattr(loaded, attribute) == getattr(sde, attribute), attribute
    ours, theirs = sde.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert ours[key].dtype == theirs[key].dtype, key
        assert torch.equal(ours[key], theirs[key]), key
    views = [(sde, loaded)]
    if name == "classes":
        views = [(sde.given(y=k), loaded.given(y=k)) for k in range(3)]
    for a, b in views:
        how = {"solver": "em", "steps": 5} if name == "bfloat16 network" else {"rtol": 1e-3, "atol": 1e-3}
        x = scoresde.sample(a, 3, generator=generator(3), **how)
        assert torch.equal(scoresde.sample(b, 3, generator=generator(3), **how), x)
        fixed = {"solver": "heun", "steps": 4}
        assert torch.equal(scoresde.log_prob(b, x, **fixed), scoresde.log_prob(a, x, **fixed))
        raw = {"generator": generator(4)}, {"generator": generator(4)}
        sde.train()
        loaded.train()
        assert torch.equal(scoresde.loss(a, x, **raw[0]), scoresde.loss(b, x, **raw[1]))
        sde.eval()
        loaded.eval()


def test_training_goes_on_from_a_loaded_model_as_from_the_saved(tmp_path: Path) -> None:
    sde = trained(build())
    loaded = scoresde.load(scoresde.save(sde, tmp_path))
    for model in (sde, loaded):
        scoresde.fit(model, torch.randn(30, 2, generator=generator()), steps=3, progress=False, generator=generator(1))
    for key, value in sde.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_saving_again_replaces_the_model_and_keeps_one_weights_file(tmp_path: Path) -> None:
    sde = trained(build())
    scoresde.save(sde, tmp_path / "deep" / "model")
    scoresde.save(sde, tmp_path / "deep" / "model")
    nn.init.ones_(sde.net.out.bias)
    scoresde.save(sde, str(tmp_path / "deep" / "model"))
    names = sorted(path.name for path in (tmp_path / "deep" / "model").iterdir())
    assert len(names) == 2
    assert names[0] == "model.json"
    assert names[1].endswith(".safetensors")
    assert torch.equal(scoresde.load(tmp_path / "deep" / "model").net.out.bias, torch.ones(2))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="another folder"):
        scoresde.save(build(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(CheckpointError):
        scoresde.save(build(), tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("which", [1, 2])
def test_a_write_that_fails_leaves_the_previous_model_and_no_litter(
    which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, or read-only, at the first or at the second file."""
    folder = scoresde.save(trained(build()), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    replace, calls = scoresde.io.os.replace, []

    def failing(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == which:
            raise OSError(30, "Read-only file system")
        replace(*args, **kwargs)

    monkeypatch.setattr("os.replace", failing)
    other = build()
    with pytest.raises(CheckpointError, match="Read-only file system"):
        scoresde.save(other, folder)
    monkeypatch.undo()
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: after.get(name) for name in before} == before
    assert torch.equal(scoresde.load(folder).net.out.bias, trained(build()).net.out.bias)
    assert not [name for name in after if name.endswith((".partial", ".tmp"))]
    scoresde.save(other, folder)
    assert len(list(folder.iterdir())) == 2
    assert torch.equal(scoresde.load(folder).net.out.bias, other.net.out.bias)


# ---------------------------------------------------------------------------------------------------- damage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return scoresde.save(trained(build(scoresde.VPSDE(beta_max=10.0))), tmp_path / "model")


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def refused(folder: Path, match: str | None = None) -> str:
    """Load a folder, which must be refused within a second and by name."""
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match=match) as caught:
        scoresde.load(folder)
    assert time.perf_counter() - began < 20
    assert str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99, 0.9999])
def test_weights_that_were_cut_short_are_refused(share: float, folder: Path) -> None:
    path = weights_of(folder)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert path.name in refused(folder)


def test_weights_with_a_zeroed_tail_are_refused(folder: Path) -> None:
    path = weights_of(folder)
    data = path.read_bytes()
    for lost in (1, 8, 512, len(data)):
        path.write_bytes(data[:-lost] + bytes(lost))
        if data[-lost:] != bytes(lost):
            assert path.name in refused(folder)


def test_one_flipped_bit_in_the_weights_is_noticed(folder: Path) -> None:
    path = weights_of(folder)
    data = path.read_bytes()
    for i in range(0, 8 * len(data), 8 * len(data) // 300 | 1):
        bad = bytearray(data)
        bad[i // 8] ^= 1 << i % 8
        path.write_bytes(bad)
        assert path.name in refused(folder)
    path.write_bytes(data)
    scoresde.load(folder)


def test_one_flipped_bit_in_the_json_is_an_error_of_ours_or_another_valid_model(folder: Path) -> None:
    """JSON carries no checksum; whatever a bit makes of it, nothing but CheckpointError comes out."""
    path = folder / "model.json"
    data = path.read_bytes()
    survived = 0
    for i in range(0, 8 * len(data), 13):
        bad = bytearray(data)
        bad[i // 8] ^= 1 << i % 8
        path.write_bytes(bad)
        try:
            scoresde.load(folder)
            survived += 1
        except CheckpointError as error:
            assert str(folder) in str(error)  # noqa: PT017
    assert survived < 0.3 * len(range(0, 8 * len(data), 13))  # white space, digits of beta_max


def test_json_that_was_cut_is_refused(folder: Path) -> None:
    path = folder / "model.json"
    data = path.read_bytes()
    for length in range(0, len(data.rstrip()) - 1, 7):
        path.write_bytes(data[:length])
        assert "model.json" in refused(folder)
    for other in (b"\xff\xfe\x00", b"null", b"[]", b'"scoresde-1"', b"[" * 100_000, b"{}", b"\x80\x04K\x01."):
        path.write_bytes(other)
        assert "model.json" in refused(folder)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    path = weights_of(folder)
    path.unlink()
    assert path.name in refused(folder)
    (folder / "model.json").unlink()
    assert "model.json" in refused(folder)
    (tmp_path / "empty").mkdir()
    assert "model.json" in refused(tmp_path / "empty")
    assert "no model" in refused(tmp_path / "nowhere")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    (tmp_path / "foreign" / "config.json").write_text("{}")
    assert "model.json" in refused(tmp_path / "foreign")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file")


DELETE = object()


def edited(folder: Path, *edits: Any) -> None:
    """Change entries of the JSON, each named by a dotted path and followed by its new value."""
    about = json.loads((folder / "model.json").read_text())
    for keys, value in zip(edits[::2], edits[1::2], strict=True):
        *way, last = keys.split(".")
        part = about
        for key in way:
            part = part[key]
        if value is DELETE:
            del part[last]
        else:
            part[last] = value
    (folder / "model.json").write_text(json.dumps(about))


EDITS = {
    "another format": ("format", "scoresde-999"),
    "someone else's format": ("format", "diffusers"),
    "format of another type": ("format", 1),
    "no format": ("format", DELETE),
    "weights above the folder": ("weights.file", "../model.safetensors"),
    "absolute weights": ("weights.file", "/etc/passwd"),
    "weights that are a folder": ("weights.file", ".."),
    "weights without a name": ("weights.file", ""),
    "weights with a null byte": ("weights.file", "a\0b"),
    "weights of another type": ("weights.file", 7),
    "weights elsewhere": ("weights.file", "missing.safetensors"),
    "another checksum": ("weights.sha256", "0" * 64),
    "checksum of another type": ("weights.sha256", None),
    "no weights": ("weights", DELETE),
    "weights as text": ("weights", "weights.safetensors"),
    "unknown process": ("process.name", "vpp"),
    "process of another type": ("process.name", ["vp"]),
    "unknown network": ("net.name", "os.system"),
    "dunder network": ("net.name", "__class__"),
    "network by path": ("net.name", "torch.nn.Linear"),
    "unknown prediction": ("predict", "__init__"),
    "prediction of another type": ("predict", ["edm"]),
    "singular prediction": ("process", {"name": "rectified", "options": {}}, "predict", "eps"),
    "unknown view": ("sees", "everything"),
    "unknown option of the process": ("process.options.beta_mean", 1.0),
    "bad option of the process": ("process.options.beta_max", -1.0),
    "NaN option of the process": ("process.options.beta_max", float("nan")),
    "text option of the process": ("process.options.beta_max", "10"),
    "overflowing option": ("process", {"name": "edm", "options": {"rho": 1e-9}}),
    "unknown option of the network": ("net.options.widht", 8),
    "options that shadow arguments": ("net.options", {"self": 1, "name": "mlp"}),
    "shape among the options": ("net.options.shape", [2]),
    "options of another type": ("net.options", [1, 2]),
    "another width": ("net.options.width", 16),
    "fractional width": ("net.options.width", 8.5),
    "no width": ("net.options.width", DELETE),
    "no shape": ("shape", DELETE),
    "another shape": ("shape", [3]),
    "negative shape": ("shape", [-2]),
    "text shape": ("shape", "2"),
    "no average": ("averaged", False),
    "no process": ("process", DELETE),
    "no network": ("net", DELETE),
}


@pytest.mark.parametrize("edit", list(EDITS))
def test_a_json_that_says_something_else_is_refused(edit: str, folder: Path) -> None:
    edited(folder, *EDITS[edit])
    refused(folder)


@pytest.mark.parametrize("change", ["extra", "missing", "renamed", "reshaped", "not safetensors", "huge header"])
def test_weights_that_are_not_those_of_the_network_are_refused_though_their_checksum_is_right(change: str, folder: Path) -> None:
    path = weights_of(folder)
    weights = safetensors.torch.load_file(path)
    if change == "extra":
        weights["net.backdoor"] = torch.ones(1)
    elif change == "missing":
        del weights["net.out.bias"]
    elif change == "renamed":
        weights["net.out.biass"] = weights.pop("net.out.bias")
    elif change == "reshaped":
        weights["net.out.bias"] = torch.ones(1)
    data = safetensors.torch.save(weights)
    data = {"not safetensors": b"PK\x03\x04" * 10, "huge header": b"\xff" * 7 + b"\x7f" + b"{}"}.get(change, data)
    path.write_bytes(data)
    edited(folder, "weights.sha256", hashlib.sha256(data).hexdigest())
    refused(folder)


# ---------------------------------------------------------------------------------------------------- hostility

HOSTILE = """
import json, pathlib, resource, sys, time
import torch
torch.set_num_threads(1)
import scoresde
folder, edits = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
scoresde.load(folder)  # what a sound load imports is imported now
original = json.loads((folder / "model.json").read_text())
seen, watching = [], False
WATCHED = ("pickle.find_class", "exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn",
           "subprocess.Popen", "marshal.loads", "ctypes.dlopen", "socket.connect")
def hook(event, args):
    if watching and event in WATCHED:
        seen.append(event + " " + repr(args[:1])[:80])
sys.addaudithook(hook)
virtual = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (virtual + 2**30, virtual + 2**30))  # a bomb must not take the machine along
report = {}
for name, changes in edits.items():
    about = json.loads(json.dumps(original))
    for keys, value in changes.items():
        *way, last = keys.split(".")
        part = about
        for key in way:
            part = part[key]
        part[last] = value
    (folder / "model.json").write_text(json.dumps(about))
    peak, began, watching = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), True
    try:
        scoresde.load(folder)
        outcome = "loaded"
    except Exception as error:
        outcome = type(error).__name__ + ": " + str(error)[:300]
    watching = False
    seconds = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    report[name] = [outcome, seconds, grown / 1024]
print(json.dumps({"report": report, "seen": seen}))
"""

BOMBS: dict[str, dict[str, Any]] = {
    "os.system": {"net.name": "os.system", "net.options": {"command": "touch pwned"}},
    "process os.system": {"process.name": "os.system"},
    "__class__": {"net.name": "__class__"},
    "a module of the folder": {"net.name": "evil", "process.name": "evil"},
    "a dotted path into the folder": {"net.name": "evil:Network"},
    "__reduce__": {"process.options": {"__reduce__": ["os.system", ["touch pwned"]]}},
    "a pickle for weights": {"weights.file": "weights.pkl"},
    "a Python file for weights": {"weights.file": "evil.py"},
    "shape of 10^12": {"shape": [10**12]},
    "shape of 10^30": {"shape": [10**30]},
    "shape of 10^4 axes": {"shape": [2] * 10**4},
    "shape of 10^8": {"shape": [10**8]},
    "shape of 10^6": {"shape": [10**6]},
    "width of 10^12": {"net.options.width": 10**12},
    "width of 10^30": {"net.options.width": 10**30},
    "width of 10^6": {"net.options.width": 10**6},
    "depth of 10^12": {"net.options.depth": 10**12},
    "depth of 10^30": {"net.options.depth": 10**30},
    "depth of 10^5": {"net.options.depth": 10**5},
    "classes of 10^12": {"net.options.classes": 10**12},
    "features of 10^12": {"net.options.fourier": 10**12},
}


def test_a_hostile_folder_runs_nothing_and_takes_neither_memory_nor_time(tmp_path: Path) -> None:
    """In a process of its own, watched by an audit hook: no unpickling, no import, no code, an error of ours in a second."""
    folder = scoresde.save(trained(build()), tmp_path / "model")
    code = "import pathlib; pathlib.Path(r'" + str(tmp_path / "pwned") + "').touch()\nclass Network: pass\n"
    (folder / "evil.py").write_text(code)
    (folder / "weights.pkl").write_bytes(b"cposix\nsystem\n(S'touch " + str(tmp_path / "pwned").encode() + b"'\ntR.")
    bombs = json.loads(json.dumps(BOMBS))
    for name in ("weights.pkl", "evil.py"):  # with the right checksum, so that only the format stands in the way
        for changes in bombs.values():
            if changes.get("weights.file") == name:
                changes["weights.sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(folder), json.dumps(bombs)], capture_output=True, text=True, timeout=120, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert not (tmp_path / "pwned").exists()
    assert answer["seen"] == []
    for name, (outcome, seconds, megabytes) in answer["report"].items():
        assert outcome.startswith("CheckpointError"), (name, outcome)
        assert seconds < 20, (name, seconds)
        assert megabytes < 200, (name, megabytes)


@pytest.mark.parametrize("sde", ["oracle", "bare network", "given"])
def test_what_can_not_be_named_is_not_saved(sde: str, tmp_path: Path) -> None:
    model = {
        "oracle": lambda: scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE()),
        "bare network": lambda: ScoreSDE(scoresde.VPSDE(), nn.Identity(), shape=(2,)),
        "given": lambda: build(classes=2).given(y=1),
    }[sde]()
    with pytest.raises(ValueError, match=r"register|given"):
        scoresde.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
