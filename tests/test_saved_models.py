"""Saved models: the same numbers come back bit for bit, and nothing that is damaged, foreign or
hostile gets in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

import scoresde
from conftest import generator, some
from scoresde import CheckpointError, ScoreSDE
from scoresde.storage import records as storage
from scoresde.storage.description import describe, weights
from scoresde.storage.models import prepare_folder
from scoresde.storage.rebuild import rebuild
from scoresde.storage.sealed import seal

TINY = {"width": 8, "depth": 1, "fourier": 2}


def build(
    process: Any = "vp", net: str = "mlp", shape: tuple[int, ...] = (2,), **options: Any
) -> ScoreSDE:
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
    scoresde.fit(
        sde,
        x,
        steps=3,
        lr=0.05,
        batch_size=50,
        given=given or None,
        progress=False,
        generator=generator(2),
    )
    return sde


MODELS: dict[str, Callable[[], ScoreSDE]] = {
    "untrained": build,
    "averaged": lambda: trained(build()),
    "float64": lambda: trained(build("rectified", predict="v").double()),
    "options of a process": lambda: trained(build(scoresde.VPSDE(beta_max=7.5), predict="eps")),
    "positional options": lambda: trained(
        ScoreSDE(scoresde.EDM(0.01, 20.0), scoresde.MLP((3,), 8, 1, 2), shape=(3,))
    ),
    "image": lambda: trained(build("ve", shape=(1, 3, 3))),
    "image with channels": lambda: trained(build("cosine", shape=(3, 2, 2), predict="x0")),
    "scalar": lambda: trained(build("subvp", shape=())),
    "classes": lambda: trained(build(classes=3), y=torch.arange(50) % 3),
    "raw": lambda: trained(build("edm", input_convention="raw")),
    "user's process": lambda: trained(build("test_polynomial")),
    "user's backbone": lambda: trained(build(net="test_linear", width=5)),
    "bfloat16 network": lambda: half(trained(build())),
}


def half(sde: ScoreSDE) -> ScoreSDE:
    sde.net.to(torch.bfloat16)
    assert sde.ema is not None
    sde.ema.to(torch.bfloat16)
    return sde


@pytest.mark.parametrize(
    "name",
    some(
        MODELS,
        "averaged",
        "float64",
        "positional options",
        "image",
        "classes",
        "user's process",
        "bfloat16 network",
    ),
)
def test_a_loaded_model_says_bitwise_the_same(name: str, tmp_path: Path) -> None:
    sde = MODELS[name]()
    sde.eval()
    assert scoresde.save(sde, tmp_path / "model") == tmp_path / "model"
    loaded = scoresde.load(tmp_path / "model")
    assert not loaded.training
    assert scoresde.PROCESSES.options_of(loaded.process) == scoresde.PROCESSES.options_of(
        sde.process
    )
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
        how = (
            {"solver": "em", "steps": 5}
            if name == "bfloat16 network"
            else {"rtol": 1e-3, "atol": 1e-3}
        )
        x = scoresde.sample(a, 3, generator=generator(3), **how)
        assert torch.equal(scoresde.sample(b, 3, generator=generator(3), **how), x)
        fixed = {"solver": "heun", "steps": 4}
        assert torch.equal(scoresde.log_prob(b, x, **fixed), scoresde.log_prob(a, x, **fixed))
        sde.train()
        loaded.train()
        losses = []
        for each in (a, b):
            with torch.random.fork_rng():
                torch.manual_seed(4)  # labels are left out by torch's own generator
                losses.append(scoresde.loss(each, x, generator=generator(4)))
        assert torch.equal(*losses)
        sde.eval()
        loaded.eval()


def test_training_goes_on_from_a_loaded_model_as_from_the_saved(tmp_path: Path) -> None:
    sde = trained(build())
    loaded = scoresde.load(scoresde.save(sde, tmp_path))
    for model in (sde, loaded):
        scoresde.fit(
            model,
            torch.randn(30, 2, generator=generator()),
            steps=3,
            progress=False,
            generator=generator(1),
        )
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
    assert names[1] == "model.json"
    assert names[0].endswith(".safetensors")
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
    replace, calls = os.replace, []

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


# ---------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sde = trained(build(scoresde.VPSDE(beta_max=10.0)))
    return scoresde.save(sde, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of one saved model, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


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


def test_one_flipped_bit_in_the_json_is_noticed(folder: Path) -> None:
    path = folder / "model.json"
    data = path.read_bytes()
    for i in range(0, 8 * len(data), 13):
        bad = bytearray(data)
        bad[i // 8] ^= 1 << i % 8
        path.write_bytes(bad)
        assert path.name in refused(folder)


def test_json_that_was_cut_is_refused(folder: Path) -> None:
    path = folder / "model.json"
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        assert "model.json" in refused(folder)
    for other in (
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b'"scoresde-2"',
        b"[" * 100_000,
        b"{}",
        b"\x80\x04K\x01.",
    ):
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
    """Change entries of the JSON, each named by a dotted path and followed by its new value, and
    seal it again.
    """
    about = json.loads((folder / "model.json").read_text())
    del about["sha256"]
    for keys, value in zip(edits[::2], edits[1::2], strict=True):
        *way, last = keys.split(".")
        part = about
        for key in way:
            part = part[key]
        if value is DELETE:
            del part[last]
        else:
            part[last] = value
    (folder / "model.json").write_bytes(
        seal(json.dumps(about, indent=2).removesuffix("\n}").encode())
    )


def test_an_edit_must_be_sealed(folder: Path) -> None:
    """The library may be told another option by who knows how; a text editor is found out."""
    edited(folder, "about.process.options.beta_max", 20.0)
    assert scoresde.PROCESSES.options_of(scoresde.load(folder).process) == {"beta_max": 20.0}
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace('"beta_max": 20.0', '"beta_max": 10.0'))
    assert "seal does not hold" in refused(folder)


EDITS = {
    "another format": ("format", "scoresde-999"),
    "someone else's format": ("format", "diffusers"),
    "format of another type": ("format", 1),
    "no format": ("format", DELETE),
    "an older format": ("format", "scoresde-1"),
    "another size": ("tensors.size", 7),
    "size of another type": ("tensors.size", "7"),
    "no size": ("tensors.size", DELETE),
    "no description": ("about", DELETE),
    "description of another type": ("about", []),
    "weights above the folder": ("tensors.file", "../model.safetensors"),
    "absolute weights": ("tensors.file", "/etc/passwd"),
    "weights that are a folder": ("tensors.file", ".."),
    "weights without a name": ("tensors.file", ""),
    "weights with a null byte": ("tensors.file", "a\0b"),
    "weights of another type": ("tensors.file", 7),
    "weights elsewhere": ("tensors.file", "missing.safetensors"),
    "another checksum": ("tensors.sha256", "0" * 64),
    "checksum of another type": ("tensors.sha256", None),
    "no weights": ("tensors", DELETE),
    "weights as text": ("tensors", "weights.safetensors"),
    "unknown process": ("about.process.name", "vpp"),
    "process of another type": ("about.process.name", ["vp"]),
    "unknown network": ("about.net.name", "os.system"),
    "dunder network": ("about.net.name", "__class__"),
    "network by path": ("about.net.name", "torch.nn.Linear"),
    "unknown prediction": ("about.predict", "__init__"),
    "prediction of another type": ("about.predict", ["edm"]),
    "singular prediction": (
        "about.process",
        {"name": "rectified", "options": {}},
        "about.predict",
        "eps",
    ),
    "unknown view": ("about.sees", "everything"),
    "unknown option of the process": ("about.process.options.beta_mean", 1.0),
    "bad option of the process": ("about.process.options.beta_max", -1.0),
    "NaN option of the process": ("about.process.options.beta_max", float("nan")),
    "text option of the process": ("about.process.options.beta_max", "10"),
    "overflowing option": ("about.process", {"name": "edm", "options": {"rho": 1e-9}}),
    "unknown option of the network": ("about.net.options.widht", 8),
    "options that shadow arguments": ("about.net.options", {"self": 1, "name": "mlp"}),
    "shape among the options": ("about.net.options.shape", [2]),
    "options of another type": ("about.net.options", [1, 2]),
    "another width": ("about.net.options.width", 16),
    "fractional width": ("about.net.options.width", 8.5),
    "no width": ("about.net.options.width", DELETE),
    "no shape": ("about.shape", DELETE),
    "another shape": ("about.shape", [3]),
    "negative shape": ("about.shape", [-2]),
    "text shape": ("about.shape", "2"),
    "no average": ("about.averaged", False),
    "no process": ("about.process", DELETE),
    "no network": ("about.net", DELETE),
}


@pytest.mark.parametrize("edit", list(EDITS))
def test_a_json_that_says_something_else_is_refused(edit: str, folder: Path) -> None:
    edited(folder, *EDITS[edit])
    refused(folder)


PRIME = 10**9 + 7
HUGE: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    "patches of a long signal": ("dit", [1, 10**12 + 1], {"patch": 2}),
    "a prime number of patches": ("dit", [1, 2**61 - 1], {"patch": 2}),
    "heads of a wide network": ("dit", [1, 4], {"width": 10**12 + 1, "heads": 7}),
    "a prime number of channels": ("unet", [1, 8], {"channels": PRIME, "groups": 10**9}),
    "more places than memory": ("dit", [1, 8192, 8192], {"patch": 1}),
    "more weights than memory": ("unet", [1, 8], {"channels": 8, "multipliers": [10**9, 10**9]}),
    "more weights than addresses": ("resmlp", [2], {"width": 10**15}),
    "many blocks": ("unet", [1, 8], {"blocks": 10**9}),
    "many levels": ("unet", [1, 8], {"multipliers": [1] * 5000}),
}


@pytest.mark.parametrize("what", list(HUGE))
def test_a_file_that_asks_for_too_much_is_refused_without_trying(what: str) -> None:
    """Each would take hours, or terabytes."""
    name, shape, options = HUGE[what]
    small = (
        {"width": 4, "heads": 1, "depth": 1}
        if name == "dit"
        else {"channels": 8, "blocks": 1}
        if name == "unet"
        else {}
    )
    sde = scoresde.build("vp", name, shape=(1, 4) if name != "resmlp" else (2,), **small)
    about, tensors = describe(sde), weights(sde)
    about["shape"], about["net"]["options"] = shape, {**about["net"]["options"], **options}
    said = (
        "numbers that are in no file"
        if what == "more places than memory"
        else "does not describe a model"
    )
    with pytest.raises(CheckpointError, match=said):
        rebuild(about, tensors)


def test_a_constructor_that_looks_at_its_numbers_can_be_loaded(tmp_path: Path) -> None:
    """Not on the meta device, which has none; one that fails otherwise is not tried twice."""
    tries = []

    @scoresde.BACKBONES.register("test_looks")
    class Looks(nn.Module):
        def __init__(self, shape: tuple[int, ...], wrong: bool = False) -> None:
            super().__init__()
            tries.append(wrong)
            self.map = nn.Linear(shape[0], shape[0])
            if wrong:
                raise RuntimeError("out of luck")
            if float(self.map.weight.detach().abs().max()) > 0:
                nn.init.zeros_(self.map.bias)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.map(x)
            return out

    try:
        sde = scoresde.build("vp", "test_looks", shape=(2,))
        assert torch.equal(
            scoresde.load(scoresde.save(sde, tmp_path / "m")).net.map.weight, sde.net.map.weight
        )
        about = describe(sde)
        about["net"]["options"]["wrong"] = True
        tries.clear()
        with pytest.raises(CheckpointError, match="out of luck"):
            rebuild(about, weights(sde))
        assert tries == [True]
    finally:
        scoresde.BACKBONES.remove("test_looks")


@pytest.mark.parametrize(
    "change", ["extra", "missing", "renamed", "reshaped", "not safetensors", "huge header"]
)
def test_weights_that_are_not_those_of_the_network_are_refused_though_their_checksum_is_right(
    change: str, folder: Path
) -> None:
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
    data = {
        "not safetensors": b"PK\x03\x04" * 10,
        "huge header": b"\xff" * 7 + b"\x7f" + b"{}",
    }.get(change, data)
    path.unlink()
    digest = hashlib.sha256(data).hexdigest()
    file = f"model-{digest[:12]}.safetensors"
    (folder / file).write_bytes(data)
    edited(folder, "tensors", {"file": file, "size": len(data), "sha256": digest})
    refused(folder, "not describe a model|not a safetensors file")


# ---------------------------------------------------------------------- what is saved


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


# ---------------------------------------------------------------------- wrapped networks


def compiled(sde: ScoreSDE) -> None:
    sde.net = torch.compile(sde.net)


def compiled_inside(sde: ScoreSDE) -> None:
    sde.net.hidden[0] = torch.compile(sde.net.hidden[0])


def parallel(sde: ScoreSDE) -> None:
    sde.net = nn.DataParallel(sde.net)


def distributed(sde: ScoreSDE) -> None:
    sde.net = nn.parallel.DistributedDataParallel(sde.net)


def distributed_and_compiled(sde: ScoreSDE) -> None:
    distributed(sde)
    compiled(sde)
    sde.ema = torch.compile(sde.ema)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "wrap", [compiled, compiled_inside, parallel, distributed, distributed_and_compiled]
)
def test_a_wrapped_network_is_saved_as_what_is_inside(
    wrap: Callable[[ScoreSDE], None], tmp_path: Path
) -> None:
    sde = trained(build())
    plain = {name: value.clone() for name, value in sde.state_dict().items()}
    bare = {
        path.name: path.read_bytes() for path in scoresde.save(sde, tmp_path / "bare").iterdir()
    }
    wrap(sde)
    assert sde.state_dict().keys() != plain.keys()
    wrapped = {
        path.name: path.read_bytes() for path in scoresde.save(sde, tmp_path / "wrapped").iterdir()
    }
    assert wrapped == bare
    loaded = scoresde.load(tmp_path / "wrapped")
    assert all(torch.equal(value, plain[name]) for name, value in loaded.state_dict().items())
    from_names = rebuild(describe(sde), sde.state_dict())  # as somebody else may have written them
    assert from_names.state_dict().keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in from_names.state_dict().items())


@scoresde.BACKBONES.register("test_module")
class Module(nn.Module):
    """A backbone with a part called `module`, which is not a wrapper, and a buffer that it does
    not save.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.module = nn.Linear(*shape, *shape)
        self.register_buffer("two", torch.full(shape, 2.0), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.two * self.module(x)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "wrap", [lambda sde: None, compiled, distributed, distributed_and_compiled]
)
def test_a_part_called_module_is_no_wrapper(
    wrap: Callable[[ScoreSDE], None], tmp_path: Path
) -> None:
    sde = trained(build(net="test_module"))
    plain = {name: value.clone() for name, value in sde.state_dict().items()}
    assert "net.module.weight" in plain
    wrap(sde)
    for loaded in (
        scoresde.load(scoresde.save(sde, tmp_path)),
        rebuild(describe(sde), sde.state_dict()),
    ):
        assert all(torch.equal(value, plain[name]) for name, value in loaded.state_dict().items())
        assert torch.equal(loaded.net.two, torch.full((2,), 2.0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("net.out.bias"), "missing"),
        (lambda t: t.update({"net.backdoor": torch.ones(1)}), "unknown"),
        (
            lambda t: t.update({"net.module.out.bias": torch.ones(2)}),
            "two weights are both 'net.out.bias'",
        ),
        (
            lambda t: t.update({"net._orig_mod.out.bias": torch.ones(2)}),
            "two weights are both 'net.out.bias'",
        ),
        (lambda t: t.update({"out.bias": t.pop("net.out.bias")}), "missing"),
        (
            lambda t: t.update({"net.out.bias": torch.ones(2, dtype=torch.int32)}),
            "kind, first 'net.out.bias'",
        ),
        (lambda t: t.update({"measured": torch.ones(())}), "kind, first 'measured'"),
        (lambda t: t.update({"scale": torch.zeros(2)}), "positive scale"),
        (lambda t: t.update({"mean": torch.full((2,), torch.nan)}), "finite mean"),
    ],
)
def test_names_shapes_and_kinds_are_strict(
    change: Callable[[dict[str, Tensor]], Any], said: str
) -> None:
    sde = build()
    tensors = weights(sde)
    change(tensors)
    with pytest.raises(CheckpointError, match=said):
        rebuild(describe(sde), tensors)


def test_weights_are_the_models_own_and_a_rebuilt_model_has_its_own(tmp_path: Path) -> None:
    sde = trained(build())
    tensors = weights(sde)
    assert all(
        tensors[name].data_ptr() == value.data_ptr() for name, value in sde.state_dict().items()
    )
    other = rebuild(describe(sde), tensors)
    nn.init.zeros_(sde.net.out.bias)
    assert not torch.equal(other.net.out.bias, torch.zeros(2))


# ---------------------------------------------------------------------- checkpoints


def test_a_training_checkpoint_has_the_model_in_it(tmp_path: Path) -> None:
    """As `fit` writes it: the model beside other things, in a folder where a model may be saved
    too.
    """
    early, late = build(), trained(build(classes=3), y=torch.arange(50) % 3)
    for step, sde in ((500, early), (1000, late)):
        tensors = {f"model.{name}": value for name, value in weights(sde).items()}
        tensors |= {"optimizer.0.exp_avg": torch.ones(3), "rng.torch": torch.get_rng_state()}
        storage.write(
            prepare_folder(tmp_path),
            f"step-{step:08d}",
            tensors,
            {"step": step, "model": describe(sde)},
        )
    loaded = scoresde.load(tmp_path)
    assert all(
        torch.equal(value, late.state_dict()[name]) for name, value in loaded.state_dict().items()
    )
    storage.remove(tmp_path, "step-00001000")
    assert scoresde.load(tmp_path).ema is None
    scoresde.save(late, tmp_path)
    assert scoresde.load(tmp_path).ema is not None
    assert storage.records(tmp_path, "step-") == ["step-00000500"]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    "name", [".lock", ".model-01234567.partial", "model-0123456789ab.safetensors"]
)
def test_a_folder_with_nothing_but_leftovers_of_ours_is_ready(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"1")
    scoresde.save(build(), prepare_folder(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("net", "fourier", "axes"), [("mlp", 64, 40), ("resmlp", 64, 0)])
def test_older_files_have_more_random_features(net: str, fourier: int, axes: int) -> None:
    """By default of 5 columns there were 64, beside those along columns and before these."""
    torch.manual_seed(0)
    sde = scoresde.build("vp", net, shape=(5,), width=8, depth=1, fourier=fourier, axes=axes)
    nn.init.normal_((sde.net.out if net == "mlp" else sde.net.last).weight)
    sde.eval()
    about = describe(sde)
    for name in ("fourier", "axes"):
        del about["net"]["options"][name]
    again = rebuild(about, weights(sde))
    x, t = torch.randn(3, 5), torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(again.score(x, t), sde.score(x, t))
    assert describe(rebuild(describe(again), weights(again))) == describe(again)
    for name in ("fourier", "axes"):
        about["net"]["options"] = {"width": 8, "depth": 1, name: 10_000}
        with pytest.raises(CheckpointError, match="weights are missing, unknown or of another"):
            rebuild(about, weights(sde))
