"""Names: presets, families, plug-ins; what a file may and may not ask for."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import pad

import scoresde
from conftest import generator
from scoresde.backbones import BACKBONES, MLP, PRESETS
from scoresde.backbones.base import can_trace
from scoresde.cli import commands as cli
from scoresde.common.plugins import loaded_only
from scoresde.common.registry import Registry
from scoresde.storage.description import describe, weights
from scoresde.storage.rebuild import rebuild

# ---------------------------------------------------------------------- presets

COUNTS = {
    "ddpm-cifar": 35_746_307,
    "ddpmpp-cifar": 55_732_739,
    "ncsnpp-cifar": 56_395_523,
    "adm-64": 295_900_035,
    "dit-s/2": 32_858_896,
    "dit-b/2": 130_303_504,
    "dit-l/2": 457_824_272,
    "dit-xl/2": 674_816_272,
    "uvit-s/2": 44_255_328,
}


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_as_large_as_published(name: str) -> None:
    """Within 0.5%, or within what rounding to a million hides."""
    preset = PRESETS[name]
    with torch.device("meta"):
        net = BACKBONES.build(name, preset.shape)
    count = sum(p.numel() for p in net.parameters())
    assert count == COUNTS[name]
    assert abs(count - preset.parameters) <= max(
        0.005 * preset.parameters, 0.5e6 * (preset.parameters % 10**6 == 0)
    )


def test_a_preset_is_saved_as_the_backbone_that_it_is(tmp_path: Path) -> None:
    sde = scoresde.build(
        "vp", "ddpmpp-cifar", shape=(3, 8, 8), channels=8, blocks=1, attention=(4,)
    )
    for parameter in sde.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    said = describe(sde)["net"]
    assert said["name"] == "unet"
    assert said["options"] == {**PRESETS["ddpmpp-cifar"].options, "multipliers": [2, 2, 2]} | {
        "channels": 8,
        "blocks": 1,
        "attention": [4],
    }
    again = scoresde.load(scoresde.save(sde, tmp_path / "model"))
    x, t = torch.randn(2, 3, 8, 8, generator=generator()), torch.zeros(2)
    assert torch.equal(again.net(x, t), sde.net.eval()(x, t))


def test_presets_are_offered_but_not_listed() -> None:
    assert "dit-s/2" in BACKBONES
    assert not set(PRESETS) & set(BACKBONES)
    for wrong, right in {
        "dit-s2": "dit-s/2",
        "ddpm++-cifar": "ddpmpp-cifar",
        "UViT S/2": "uvit-s/2",
        "mpl": "mlp",
    }.items():
        with pytest.raises(
            ValueError,
            match=rf"unknown backbone '.*'\. Did you mean '{right}'\? .*mlp.* Presets: .*adm-64",
        ):
            scoresde.build("vp", wrong, shape=(3, 32, 32))
    with pytest.raises(ValueError, match=r"'dit-s/2' has no option 'widht'. Did you mean 'width'"):
        scoresde.build("vp", "dit-s/2", shape=(4, 8, 8), widht=8)


def test_names_that_stand_for_a_removed_one_go_with_it() -> None:
    table = Registry[int]("number")
    table.add("power", lambda base, exponent=1: base**exponent)
    table.alias("square", "power", exponent=2)
    table.remove("power")
    assert "square" not in table
    table.add("square", lambda: 4)
    assert table.build("square") == 4


def test_options_are_remembered_as_they_were_given() -> None:
    multipliers, more = [1, 2], {"a": [1]}
    net = BACKBONES.build(
        "unet",
        (1, 8),
        channels=np.int64(8),
        multipliers=multipliers,
        blocks=1,
        dropout=np.float32(0.5),
    )
    multipliers.append(3)
    assert BACKBONES.options_of(net)["multipliers"] == [1, 2]
    said = describe(scoresde.ScoreSDE(scoresde.VPSDE(), net, shape=(1, 8)))["net"]["options"]
    assert said == {"channels": 8, "multipliers": [1, 2], "blocks": 1, "dropout": 0.5}
    table = Registry[Any]("thing")

    @table.register("kept")
    class Kept:
        def __init__(self, **options: Any) -> None: ...

    thing = Kept(more=more)
    more["a"].append(2)
    assert table.options_of(thing) == {"more": {"a": [1]}}


def test_an_alias_with_options_takes_a_free_name_and_keeps_it() -> None:
    numbers = Registry[float]("number")
    numbers.add("power", lambda base, exponent=1.0: base**exponent)
    numbers.alias("root", "power", exponent=0.5)
    numbers.alias("root", "power", exponent=0.5)  # again the same, as on reload
    assert numbers.build("root", 9) == 3
    assert numbers.build("root", 9, exponent=2) == 81
    with pytest.raises(ValueError, match="stands for 'power'; choose another"):
        numbers.alias("root", "power", exponent=1 / 3)
    with pytest.raises(ValueError, match="Did you mean 'power'"):
        numbers.alias("square", "powr", exponent=2)
    numbers.remove("root")
    assert "root" not in numbers


# ---------------------------------------------------------------------- plug-ins

NET = """
import torch
from torch import nn
import scoresde

LOADED = True

class Net(nn.Module):
    def __init__(self, shape, gain=2.0):
        super().__init__()
        self.gain = nn.Parameter(torch.full(shape, gain))

    def forward(self, x, t):
        return self.gain * x

@scoresde.BACKBONES.register("plug_itself")
class Itself(Net):
    pass

@scoresde.PROCESSES.register("plug_process")
class Path(scoresde.Process):
    def alpha(self, t): return 1 - t
    def sigma(self, t): return t

class Step(scoresde.Stepper):
    order, ode, evaluations = 1, True, 1
    def step(self, problem, z, i):
        here, there = problem.levels[i].phi, problem.levels[i + 1].phi
        return z + (there - here) * problem.velocity(z, here, None)

def factory(shape):
    return Net(shape, 3.0)

number = 7
"""
GROUPS = """
[scoresde.backbones]
plug_net = plug_package:Net
plug_itself = plug_package:Itself
plug_other_name = plug_package:Itself
plug_module = plug_package
plug_factory = plug_package:factory
plug_number = plug_package:number
plug_gone = plug_package_gone:Net
plug_missing = plug_package:Gone
mlp = plug_package:Net
[scoresde.processes]
plug_process = plug_package:Path
[scoresde.solvers]
plug_step = plug_package:Step
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages on the path, as if installed; what they register is forgotten
    afterwards.
    """
    tables: tuple[Registry[Any], ...] = (scoresde.BACKBONES, scoresde.PROCESSES, scoresde.SOLVERS)
    for table in tables:
        monkeypatch.setattr(table, "_makers", dict(table._makers))
        monkeypatch.setattr(table, "_aliases", dict(table._aliases))
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, "plug-package", GROUPS, NET)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for module in [name for name in sys.modules if name.startswith("plug_package")]:
        del sys.modules[module]


def install(folder: Path, package: str, groups: str, code: str | None = None) -> None:
    about = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(groups)
    if code is not None:
        (folder / f"{package.replace('-', '_')}.py").write_text(code)


@pytest.mark.usefixtures("site")
def test_a_plugin_is_loaded_when_it_is_asked_for(tmp_path: Path) -> None:
    sde = scoresde.build("vp", "plug_net", shape=(2,), gain=5.0)
    x = torch.randn(3, 2, generator=generator())
    torch.testing.assert_close(sde.net(x, torch.zeros(3)), 5 * x)
    assert BACKBONES.name_of(sde.net) == "plug_net"
    again = scoresde.load(scoresde.save(sde, tmp_path / "model"))  # it is loaded already
    assert torch.equal(again.net(x, torch.zeros(3)), sde.net(x, torch.zeros(3)))
    with pytest.raises(ValueError, match=r"'plug_net' has no option 'gian'. Did you mean 'gain'"):
        scoresde.build("vp", "plug_net", shape=(2,), gian=1.0)


@pytest.mark.usefixtures("site")
def test_one_that_registers_itself_and_a_second_name_of_it_are_the_same() -> None:
    assert type(BACKBONES.build("plug_itself", (2,))) is BACKBONES["plug_itself"]
    assert BACKBONES["plug_other_name"] is BACKBONES["plug_itself"]
    assert BACKBONES.name_of(BACKBONES.build("plug_other_name", (2,))) == "plug_itself"


@pytest.mark.usefixtures("site")
def test_processes_and_solvers_are_plugged_in_likewise() -> None:
    sde = scoresde.build("plug_process", "mlp", shape=(2,), width=8)
    rows = {
        name: scoresde.sample(sde, 4, solver=name, steps=8, generator=generator())
        for name in ("plug_step", "euler")
    }
    torch.testing.assert_close(rows["plug_step"], rows["euler"])
    assert float(scoresde.PROCESSES.build("plug_process").sigma(torch.tensor(0.25))) == 0.25
    assert BACKBONES.build("plug_factory", (2,)).gain.tolist() == [3.0, 3.0]


@pytest.mark.usefixtures("site")
def test_a_name_that_is_missing_is_answered_without_loading_any() -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown backbone 'plug_nte'. Did you mean 'plug_net'\?.* "
        r"Of plug-ins: plug_factory, ",
    ):
        scoresde.build("vp", "plug_nte", shape=(2,))
    with pytest.raises(ValueError, match=r"Did you mean 'plug_step'"):
        scoresde.SOLVERS.build("plug_stpe")
    assert type(BACKBONES.build("mlp", (2,))) is MLP  # a plug-in takes no name that there is
    assert "plug_package" not in sys.modules
    assert "plug_net" not in BACKBONES


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (
            "plug_gone",
            ImportError,
            r"'plug_gone' is a plug-in of plug-package, which failed to import: "
            r"ModuleNotFoundError: ",
        ),
        ("plug_missing", ImportError, r"plug-package, which failed to import: AttributeError: "),
        (
            "plug_number",
            TypeError,
            r"'plug_number' of plug-package is a int, neither a class nor a function",
        ),
        ("plug_module", TypeError, r"'plug_module' of plug-package is a module, neither"),
    ],
)
@pytest.mark.usefixtures("site")
def test_a_plugin_that_does_not_work_names_its_package(
    name: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        scoresde.build("vp", name, shape=(2,))


def test_two_plugins_of_one_name_are_refused(site: Path) -> None:
    install(
        site, "plug-package-two", "[scoresde.backbones]\nplug_net = plug_package_two:Net\n", NET
    )
    with pytest.raises(
        ValueError,
        match=r"2 plug-ins for the backbone 'plug_net', of plug-package and plug-package-two",
    ):
        scoresde.build("vp", "plug_net", shape=(2,))


@pytest.mark.parametrize("where", ["net", "inside", "process"])
@pytest.mark.usefixtures("site")
def test_a_file_loads_no_plugin(where: str) -> None:
    """Not even by a network that builds another by name; but what the user has loaded serves."""
    sde = scoresde.build("vp", "two_times", shape=(2,), width=8)
    about, tensors = describe(sde), weights(sde)
    if where == "net":
        about["net"] = {"name": "plug_net", "options": {}}
    elif where == "inside":
        about["net"]["options"] = {"backbone": "plug_net"}
    else:
        about["process"] = {"name": "plug_process", "options": {}}
    with pytest.raises(
        scoresde.CheckpointError,
        match="a plug-in of plug-package, and files import nothing: import plug_package",
    ):
        rebuild(about, tensors)
    assert "plug_package" not in sys.modules
    with loaded_only(), pytest.raises(ValueError, match="files import nothing"):
        BACKBONES.build("plug_net", (2,))
    importlib.import_module("plug_package")  # it is the user who asks
    if where == "process":
        assert type(rebuild(about, tensors).process).__name__ == "Path"
    else:
        with pytest.raises(
            scoresde.CheckpointError, match="weights are missing, unknown or of another shape"
        ):
            rebuild(about, tensors)  # it is there, and these are not its weights


def test_the_command_imports_what_the_user_says_and_no_more(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    folder = str(scoresde.save(scoresde.build("vp", "plug_net", shape=(2,)), tmp_path / "model"))
    for table in (scoresde.BACKBONES, scoresde.PROCESSES):
        table._makers = {
            name: maker for name, maker in table._makers.items() if not name.startswith("plug")
        }
    del sys.modules["plug_package"]
    command = ["sample", folder, "-n", "3", "--steps", "2", "--out", str(tmp_path / "x.npy")]
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "scoresde --import plug_package" in capsys.readouterr().err
    assert "plug_package" not in sys.modules
    with pytest.raises(SystemExit):
        cli.main([*command, "--import", "plug_package_gone"])
    assert "No module named 'plug_package_gone'" in capsys.readouterr().err
    cli.main([*command, "--import", "plug_package"])
    drawn = scoresde.sample(
        scoresde.load(folder), 3, steps=2, generator=torch.Generator().manual_seed(0)
    )
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), drawn.numpy())


def test_importing_scoresde_looks_up_no_plugin_and_needs_no_third_party_model_or_accelerate(
    site: Path,
) -> None:
    code = (
        "import importlib.metadata as m\n"
        "looked_up, found = [], m.entry_points\n"
        # torch has plug-ins, too
        "m.entry_points = lambda **by: (looked_up.append(by), found(**by))[1]\n"
        "import sys; sys.modules['accelerate'] = None\n"
        "import scoresde\n"
        "sde = scoresde.build('vp', 'mlp', shape=(2,), width=8)\n"
        "scoresde.fit(sde, scoresde.toy.Moons(), steps=2, progress=False)\n"
        "assert not {'diffusers', 'plug_package'} & set(sys.modules)\n"
        "assert not any('scoresde' in by.get('group', '') for by in looked_up)\n"
    )
    root = str(Path(scoresde.__file__).parent.parent)
    environment = {"PYTHONPATH": f"{site}:{root}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------------- other libraries

TINY = {
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "mid_block_type": None,
}
TINY |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}


def test_a_model_of_diffusers_is_called_as_its_authors_do() -> None:
    """The same numbers as from the library itself, at step 1000·(t + 6.2)/12.4 and with the last
    label for none.
    """
    import diffusers

    net: Any = BACKBONES.build("diffusers:UNet2DModel", (2, 4, 4), classes=3, **TINY).eval()
    assert type(net.model) is diffusers.UNet2DModel
    assert net.model.config.num_class_embeds == 4
    x, t = torch.randn(3, 2, 4, 4, generator=generator()), torch.tensor([-6.2, 0.0, 6.2])
    steps = torch.tensor([0.0, 500.0, 1000.0])
    for given, label in (({}, 3), ({"y": torch.tensor([1, 1, 1])}, 1)):
        wanted = net.model(x, steps, class_labels=torch.full((3,), label)).sample
        torch.testing.assert_close(net(x, t, **given), wanted, rtol=1e-4, atol=1e-4)


def test_a_text_of_one_word_is_the_condition_vector() -> None:
    blocks = {
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    }
    net = BACKBONES.build(
        "diffusers:UNet2DConditionModel",
        (2, 4, 4),
        vector=5,
        attention_head_dim=4,
        **TINY | blocks,
    )
    sde = scoresde.ScoreSDE(scoresde.VPSDE(), net.eval(), shape=(2, 4, 4))
    x, t, word = (
        torch.randn(2, 2, 4, 4, generator=generator()),
        torch.zeros(2),
        torch.randn(2, 5, generator=generator(1)),
    )
    wanted = net.model(
        x, 500 * torch.ones(2), encoder_hidden_states=pad(word, (0, 1))[:, None]
    ).sample
    torch.testing.assert_close(net(x, t, vector=word), wanted, rtol=1e-4, atol=1e-4)
    none = pad(torch.zeros(2, 5), (0, 1), value=1.0)[
        :, None
    ]  # the last number says that there is no word
    wanted = net.model(x, 500 * torch.ones(2), encoder_hidden_states=none).sample
    torch.testing.assert_close(net(x, t), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(net(x, t, vector=0 * word), wanted, atol=1e-3)
    with pytest.raises(ValueError, match=r"vector has shape \(n, 5\), got \(2, 4\)"):
        sde.given(vector=word[:, :4])
    with pytest.raises(ValueError, match="build it with classes=n"):
        sde.given(y=1)


WRONG: dict[str, tuple[str, tuple[int, ...], dict[str, Any], str]] = {
    "no such model": (
        "UNet2DModell",
        (2, 4, 4),
        {},
        r"unknown model 'UNet2DModell'.*Did you mean 'UNet2DModel'",
    ),
    "not a model": ("utils", (2, 4, 4), {}, r"unknown model 'utils'"),
    "another call": (
        "AutoencoderKL",
        (2, 4, 4),
        {},
        r"not with a state and a timestep; try UNet2DModel",
    ),
    "points": (
        "UNet2DModel",
        (2,),
        TINY,
        r"for channels and space, \(C, \*space\); got shape \(2,\)",
    ),
    "odd sizes": (
        "UNet2DModel",
        (2, 5, 5),
        TINY,
        r"does not work for samples of shape \(2, 5, 5\)",
    ),
    "another rank": ("UNet2DModel", (2, 8), TINY, r"does not work for samples of shape \(2, 8\)"),
    "no such option": (
        "UNet2DModel",
        (2, 4, 4),
        {"block_out_chanels": [8]},
        r"Did you mean 'block_out_channels'",
    ),
    "what follows": (
        "UNet2DModel",
        (2, 4, 4),
        {"in_channels": 2},
        r"'in_channels' .* is set by shape, classes and vector",
    ),
    "no labels": ("UNet1DModel", (2, 16), {"classes": 3}, r"takes no classes"),
    "no text": ("UNet2DModel", (2, 4, 4), {**TINY, "vector": 3}, r"takes no vector"),
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_what_diffusers_can_not_do_is_said_in_one_sentence(wrong: str) -> None:
    model, shape, options, said = WRONG[wrong]
    with pytest.raises(ValueError, match=said):
        scoresde.build("vp", f"diffusers:{model}", shape=shape, **options)


def test_a_file_does_not_import_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "diffusers", raising=False)
    with (
        loaded_only(),
        pytest.raises(ValueError, match=r"'diffusers:UNet2DModel': import diffusers first"),
    ):
        BACKBONES.build("diffusers:UNet2DModel", (2, 4, 4))
    assert "diffusers" not in sys.modules


def test_without_diffusers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(
        ImportError, match=r"'diffusers:UNet2DModel' needs diffusers: pip install diffusers"
    ):
        scoresde.build("vp", "diffusers:UNet2DModel", shape=(2, 4, 4))


# -------------------------------------------------------------- labels of the default backbone


def test_an_mlp_learns_what_no_label_is() -> None:
    """With what `fit` hides, the row of no label gets gradients, as the others do; in
    value_and_trace too.
    """
    torch.manual_seed(0)
    net = MLP((2,), width=8, classes=3)
    net.out.reset_parameters()
    x, t, y = torch.randn(400, 2), torch.zeros(400), torch.arange(400) % 3
    for call in (net.forward, lambda *given, **more: net.value_and_trace(*given, **more)[1]):
        net.zero_grad()
        call(x, t, **net.drop_conditions({"y": y}, generator())).square().sum().backward()
        assert bool(net.label.weight.grad.ne(0).any(1).all())
    net.eval()
    net.zero_grad()
    net(x, t, y=y).square().sum().backward()
    assert not net.label.weight.grad[3].any()
    assert can_trace(net)


@pytest.mark.parametrize("waves", ["sinusoidal", "fourier"])
def test_the_waves_of_an_mlp_are_what_is_asked_for(waves: str) -> None:
    torch.manual_seed(0)
    net = MLP((2,), waves=waves)
    if waves == "sinusoidal":
        torch.testing.assert_close(net.rates.log(), torch.linspace(math.log(0.2), math.log(4), 16))
    else:
        # A sum of squares of 16 N(0, 2²): χ² of 16 degrees of freedom is outside [2.5, 50] once in
        # 10⁴.
        assert 2.5 < float(net.rates.square().sum()) / 4 < 50
    with pytest.raises(ValueError, match="Did you mean 'fourier'"):
        MLP((2,), waves="furier")
