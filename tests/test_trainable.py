"""A model that is no ScoreSDE is trained, resumed, averaged, saved and loaded as one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from scoresde.common.registry import Registry
from scoresde.model.trainable import KINDS

NETS: Registry[nn.Module] = Registry("test network")


@NETS.register("location")
class Location(nn.Module):
    """log p of Laplace distributions in standardized units, whose location is a median."""

    def __init__(self, shape: tuple[int, ...], start: float = 0.0) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.full(shape, start))
        self.log_width = nn.Parameter(torch.zeros(shape))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        if self.training:
            self.calls += 1
        rate = (x - self.at).abs() / self.log_width.exp()
        return (-rate - self.log_width - math.log(2)).flatten(1).sum(1)


@pytest.fixture(scope="module", autouse=True)
def kind() -> Iterator[None]:
    class Laplace(scoresde.Trainable):
        stored_as = "test_laplace"
        networks_by_name = NETS
        verbs = "its .net says log p"

        def __init__(self, net: nn.Module, *, shape: tuple[int, ...], standardize: str = "scale"):
            super().__init__(net, shape=shape, standardize=standardize)
            self.objective = Likelihood()

    class Likelihood(scoresde.Objective):
        trains = Laplace

        def __call__(  # type: ignore[override]
            self, net: Any, model: Any, z0: Tensor, *rest: Any
        ) -> Tensor:
            loss: Tensor = -net(model.standardization.spread(z0), None).mean()
            return loss

    yield
    del KINDS["test_laplace"]


def made(shape: tuple[int, ...] = (2,)) -> Any:
    return KINDS["test_laplace"](NETS.build("location", shape, start=0.3), shape=shape)


def data(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return 5 + 3 * torch.empty(2000, *shape).exponential_(generator=g)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_it_learns_what_its_likelihood_has_in_closed_form(shape: tuple[int, ...]) -> None:
    """The maximum is at the medians, and the widths are mean absolute deviations from them."""
    x = data(*shape)
    model = made(shape)
    scoresde.fit(model, x, steps=400, lr=3e-2, ema=20, progress=False)
    z = model.from_data(x).reshape(len(x), *shape)
    median = z.median(0).values
    for net in (model.net, *model.networks()):
        torch.testing.assert_close(net.at.data, median, atol=0.02, rtol=0)
        width = (z - median).abs().mean(0)
        torch.testing.assert_close(net.log_width.data.exp(), width, atol=0, rtol=0.03)
    assert model.ema is model.networks()[0]


def test_a_run_in_two_parts_ends_as_one_in_one(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def until(step: int) -> Any:
        def forward(x: Tensor, noise: Tensor | None = None) -> Tensor:
            if model.net.calls >= step:
                raise Killed
            return type(model.net).forward(model.net, x, noise)

        return forward

    def fit(model: Any, folder: Path, resume: bool = False) -> None:
        kept = scoresde.Checkpoints(folder, every=10, resume=resume)
        g = torch.Generator().manual_seed(3)
        scoresde.fit(model, data(2), steps=30, generator=g, checkpoints=kept, progress=False)

    whole = made()
    fit(whole, tmp_path / "whole")
    model = made()
    model.net.forward = until(17)
    with pytest.raises(Killed):
        fit(model, tmp_path / "parts")
    model = made()
    fit(model, tmp_path / "parts", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    loaded = scoresde.load(tmp_path / "parts")
    assert type(loaded) is type(model)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_its_own_loss_validates_it(tmp_path: Path) -> None:
    model = made()
    held_out = data(2)[:300]
    history = scoresde.fit(
        model, data(2), steps=20, validation=held_out, checkpoints=tmp_path, progress=False
    )
    z = model.from_data(held_out)
    assert history.validation[-1] == pytest.approx(float(-model.networks()[0](z).mean()))


def test_save_and_load_give_the_same_class(tmp_path: Path) -> None:
    model = made((1, 2, 2))
    scoresde.fit(model, data(1, 2, 2), steps=5, progress=False)
    loaded = scoresde.load(scoresde.save(model, tmp_path / "model"))
    assert type(loaded) is type(model)
    assert loaded.net.calls == 5
    x = data(1, 2, 2)[:5]
    assert torch.equal(loaded.from_data(x), model.from_data(x))
    assert torch.equal(loaded.networks()[0](x), model.networks()[0](x))


def test_what_is_for_score_models_is_refused_in_a_sentence() -> None:
    model = made()
    with pytest.raises(TypeError, match=r"sample needs a ScoreSDE, got Laplace: its \.net says"):
        scoresde.sample(model)
    with pytest.raises(TypeError, match=r"log_prob needs a ScoreSDE, got Laplace"):
        scoresde.log_prob(model, data(2))
    with pytest.raises(
        TypeError, match="objective='denoising' trains a ScoreSDE, and this is a L"
    ):
        scoresde.fit(model, data(2), objective="denoising")
    with pytest.raises(TypeError, match="coupling= joins data with the noise of a ScoreSDE"):
        scoresde.fit(model, data(2), coupling="minibatch_ot")
    pairs = scoresde.Pairs(data(2), torch.randn(2000, 2))
    with pytest.raises(TypeError, match="Pairs are the ends of a ScoreSDE's paths"):
        scoresde.fit(model, pairs)
    sde = scoresde.build("vp", "mlp", shape=(2,))
    with pytest.raises(TypeError, match="trains a Laplace, and this is a ScoreSDE"):
        scoresde.fit(sde, data(2), objective=model.objective)
