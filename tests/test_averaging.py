"""Weights in one piece of memory against separate ones, and averages against closed forms."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from test_training import cloud, small
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

import scoresde
from conftest import generator
from scoresde import ScoreSDE
from scoresde.storage import records as storage
from scoresde.training import backend as engine
from scoresde.training.averaging import Average, Weights, exponent, half_life, power, width


class Zoo(nn.Module):
    """One parameter of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied, self.frozen = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(2, 2)
        self.tied.weight = self.first.weight
        self.frozen.requires_grad_(False)
        self.conv = nn.Conv2d(3, 5, 2).to(memory_format=torch.channels_last)
        self.number, self.empty = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.empty(0, 3))
        self.long = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
        self.coarse = nn.Parameter(torch.randn(4, dtype=torch.bfloat16))
        self.plane = nn.Parameter(torch.randn(4, dtype=torch.complex64))


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def test_flat_parameters_are_views_of_one_tensor_per_dtype_with_their_values_and_strides() -> None:
    torch.manual_seed(0)
    net = Zoo()
    before, strides = values(net), {name: p.stride() for name, p in net.named_parameters()}
    weights = Weights(net)
    assert weights.flat
    assert {part.dtype for part in weights.parts} == {
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.complex64,
    }
    assert len(weights.parts) == 4
    trained = [p for p in net.parameters() if p.requires_grad]
    assert sum(part.numel() for part in weights.parts) == sum(
        p.numel() for p in trained
    )  # the tied one counts once
    assert net.first.weight is net.tied.weight
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name])
        assert p.stride() == strides[name]
    named = weights.named([part.detach() for part in weights.parts])
    assert named.keys() == {name for name, p in net.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for i, part in enumerate(weights.parts):  # every number is somebody's, and nobody's twice
            part.copy_(torch.arange(part.numel()) % 256 + i)
    seen = torch.cat([p.detach().abs().double().flatten() for p in trained])
    wanted = torch.cat([part.detach().abs().double().flatten() for part in weights.parts])
    assert torch.equal(seen.sort().values, wanted.sort().values)
    assert all(
        torch.equal(named[name], p) for name, p in net.named_parameters() if p.requires_grad
    )
    assert torch.equal(net.frozen.weight, before["frozen.weight"])

    weights.fill(
        [part.detach() for part in weights.parts], {"a." + k: v for k, v in before.items()}, "a."
    )
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    weights.release()
    places = {p.untyped_storage().data_ptr() for p in trained if p.numel()}
    assert len(places) == sum(p.numel() > 0 for p in trained)  # each its own memory again
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name])
        assert p.stride() == strides[name]
        assert p.grad is None


def test_parameters_that_do_not_fill_their_memory_stay_where_they_are() -> None:
    net = nn.Linear(4, 4)
    net.weight = nn.Parameter(torch.randn(8, 8)[::2, 1::2])
    place = net.weight.data_ptr()
    weights = Weights(net)
    assert not weights.flat
    assert weights.parts[0] is net.weight
    assert net.weight.data_ptr() == place


def test_parameters_that_share_memory_go_on_sharing_it() -> None:
    """Each is stepped in the same place, as by torch's own optimizers."""
    net = nn.Linear(2, 2, bias=False)
    net.other = nn.Parameter(net.weight.data.T)
    frozen = nn.Linear(2, 2, bias=False)
    frozen.other = nn.Parameter(frozen.weight.data[1], requires_grad=False)
    for each in (net, frozen):
        assert not Weights(each).flat
        assert each.other.untyped_storage().data_ptr() == each.weight.untyped_storage().data_ptr()
    assert Weights(nn.Linear(2, 2)).flat


@pytest.mark.parametrize("flat", [True, False])
def test_other_weights_are_held_for_a_while_even_if_that_fails(flat: bool) -> None:
    torch.manual_seed(0)
    net = Zoo()
    weights, before = Weights(net, flat=flat), values(net)
    others = [torch.full_like(part, 3) for part in weights.copies()]

    def hold_and_fail() -> None:
        with weights.holding(others):
            assert bool((net.conv.weight == 3).all())
            assert bool((net.frozen.weight != 3).all())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hold_and_fail()
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("mixed", [False, True])
def test_clip_is_torchs(mixed: bool, scale: float) -> None:
    """To 1e-7 in float64, gradients above and below the norm, and the norm itself; NaN stays
    NaN.
    """
    net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2)).double()
    if mixed:
        net[1].float()
    other, weights = copy.deepcopy(net), Weights(net)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        g = scale * torch.randn(p.shape, generator=generator(1), dtype=p.dtype)
        assert p.grad is not None
        p.grad.copy_(g)
        q.grad = g
    found = weights.clip(1.0)
    wanted = nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6 if mixed else 1e-7)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            p.grad, q.grad, rtol=1e-7 if p.dtype == torch.float64 else 1e-6, atol=0
        )
    net[0].weight.grad[0, 0] = float("nan")
    weights.clip(1.0)
    assert bool(net[0].bias.grad.isnan().all())


class Odd(nn.Module):
    """A parameter that gets no gradient, one reparametrized, one tied; the network is copied and
    read while it is trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(3, 8))
        self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 2)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.middle.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.copies: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if len(self.copies) < 3:
            kept, self.copies = self.copies, []
            other = copy.deepcopy(self)
            self.copies = [
                *kept,
                {name: value.clone() for name, value in other.state_dict().items()},
            ]
            assert all(
                torch.equal(value, self.state_dict()[name])
                for name, value in other.state_dict().items()
            )
        h = torch.tanh(self.first(torch.cat([x, t[:, None]], 1)))
        return self.last(torch.tanh(self.again(torch.tanh(self.middle(h)))))


def test_training_flat_is_training_separate_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 steps of `fit`, to 1e-6; and of torch.optim.Adam by hand on a copy, to 1e-6."""

    def trained(flat: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        torch.manual_seed(0)
        net = Odd()
        sde = ScoreSDE(scoresde.VPSDE(), net, shape=(2,))
        monkeypatch.setattr(engine, "Weights", functools.partial(Weights, flat=flat))
        how = {"steps": 50, "batch_size": 32, "progress": False, "validation": None}
        scoresde.fit(sde, cloud(), generator=generator(1), **how)
        assert sde.ema is not None
        assert bool((net.unused == 1).all())
        assert not torch.equal(net.copies[1]["last.weight"], net.copies[2]["last.weight"])
        return values(net), values(sde.ema)

    for ours, theirs in zip(trained(True), trained(False), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


def test_flat_steps_are_adam_by_hand() -> None:
    """w −= lr·m̂/(√v̂ + 1e-8) (Kingma & Ba 2015, algorithm 1) of each tensor by itself, in float64
    to 1e-12.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    other, weights = copy.deepcopy(net), Weights(net)
    optimizer = torch.optim.Adam(weights.parts, lr=0.01, betas=(0.9, 0.99), fused=True)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in other.parameters()]
    for k in range(1, 51):
        x = torch.randn(16, 3, generator=generator(k), dtype=torch.float64)
        weights.zero_grad()
        net(x).square().mean().backward()
        weights.clip(0.1)
        optimizer.step()
        gradients = torch.autograd.grad(other(x).square().mean(), list(other.parameters()))
        norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
        with torch.no_grad():
            for p, g, (m, v) in zip(other.parameters(), gradients, moments, strict=True):
                g = g * min(1.0, 0.1 / (norm + 1e-6))
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.01)
                p -= 0.01 * (m / (1 - 0.9**k)) / ((v / (1 - 0.99**k)).sqrt() + 1e-8)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_dtypes_are_trained(dtype: torch.dtype) -> None:
    sde = small().to(dtype)
    before = values(sde.net)
    scoresde.fit(sde, cloud(), steps=20, progress=False, generator=generator())
    assert all(p.dtype == dtype and bool(p.isfinite().all()) for p in sde.net.parameters())
    assert sum(not torch.equal(p, before[name]) for name, p in sde.net.named_parameters()) == len(
        before
    )


def test_a_network_that_takes_its_parameters_elsewhere_is_an_error_rather_than_not_trained() -> (
    None
):
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.3, -0.2]))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.w.data = self.w.data.clamp(-1, 1)
            return x * self.w

    sde = ScoreSDE(scoresde.VPSDE(), Clipped(), shape=(2,))
    with pytest.raises(scoresde.TrainingError, match="in place"):
        scoresde.fit(sde, cloud(), steps=10, progress=False)


# ----------------------------------------------------------------------------------------- averages

HISTORY = torch.randn(500, generator=generator(2), dtype=torch.float64).cumsum(0)


def averaged(decay: Any, history: Tensor = HISTORY) -> float:
    net = nn.Linear(1, 1, bias=False).double()
    average = Average(Weights(net), decay)
    for w in history:
        net.weight.data.fill_(float(w))
        average.update()
    return float(average.parts[0])


@pytest.mark.parametrize("steps", [0.0, 1.0, 30.0, 700.0])
def test_half_life_is_the_recursion_and_what_its_name_says(steps: float) -> None:
    wanted = float(HISTORY[0])
    for k, w in enumerate(HISTORY.tolist()[1:], start=2):
        decay = min(0.5 ** (1 / steps), k / (9 + k)) if steps else 0.0
        wanted = decay * wanted + (1 - decay) * w
    assert averaged(half_life(steps)) == pytest.approx(wanted, rel=1e-12)
    if steps:
        assert half_life(steps)(10**9) ** steps == pytest.approx(0.5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 6.94, 16.97])
def test_power_average_is_its_profile(gamma: float) -> None:
    """Step τ weighs ∫ (γ + 1)·u^γ/t^(γ+1) du over (τ − 1, τ), which is what β_k = (1 − 1/k)^(γ+1)
    (eq. 127) telescopes to.
    """
    t = len(HISTORY)
    tau = torch.arange(t + 1, dtype=torch.float64)
    profile = (tau / t).pow(gamma + 1).diff()
    assert float(profile.sum()) == pytest.approx(1)
    assert averaged(power(gamma)) == pytest.approx(float(profile @ HISTORY), rel=1e-11)


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1, 0.2, 0.28])
def test_width_is_the_standard_deviation_of_the_profile(sigma: float) -> None:
    gamma = exponent(sigma)
    moments = [
        scipy.integrate.quad(
            lambda u, i=i: (gamma + 1) * u ** (gamma + i), 0, 1, epsabs=1e-13, limit=200
        )[0]
        for i in range(3)
    ]
    assert moments[0] == pytest.approx(1, rel=1e-9)
    assert np.sqrt(moments[2] - moments[1] ** 2) == pytest.approx(sigma, rel=1e-7)
    assert width(gamma) == pytest.approx(sigma, rel=1e-10)


class Weighing:
    """Notes the weights after each of an optimizer's steps, and may interrupt."""

    def __init__(self, stop: int | None = None) -> None:
        self.history: list[Tensor] = []
        self.stop = stop

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.history.append(
            torch.cat([p.detach().flatten().double() for p in optimizer.param_groups[0]["params"]])
        )
        if self.stop is not None and len(self.history) >= self.stop:
            raise KeyboardInterrupt


@pytest.fixture
def weighing() -> Iterator[Any]:
    handles: list[RemovableHandle] = []

    def begin(stop: int | None = None) -> Weighing:
        for handle in handles:
            handle.remove()
        handles.append(register_optimizer_step_post_hook(noting := Weighing(stop)))
        return noting

    yield begin
    for handle in handles:
        handle.remove()


def linear() -> ScoreSDE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return scoresde.build("vp", "test_linear", shape=(2,))


@pytest.mark.filterwarnings("ignore:an average of width:UserWarning")
@pytest.mark.parametrize("snapshots", [8, 16, 32])
def test_an_average_composed_afterwards_is_the_power_average_of_the_history(
    tmp_path: Path, weighing: Any, snapshots: int
) -> None:
    """Of 400 steps, relative to how far the weights moved: 1e-6 where a snapshot has that width,
    else about twice what is seen.

    Seen for σ = 0.07, 0.15, 0.2: with 8 snapshots 1.7e-3, 7.3e-3, 2.8e-2; with 16 1.2e-4, 7.1e-4,
    4.8e-3; with 32 8e-6, 5.7e-5, 7.6e-4.
    """
    noted = weighing()
    sde = linear()
    scoresde.fit(
        sde,
        cloud(),
        steps=400,
        batch_size=32,
        lr=0.02,
        ema=scoresde.Averaging(snapshots=snapshots),
        checkpoints=tmp_path,
        progress=False,
        generator=generator(),
    )
    history = torch.stack(noted.history)
    assert len(history) == 400
    moved = float((history.amax(0) - history.amin(0)).norm())
    seen = {8: (3e-3, 1.5e-2, 6e-2), 16: (3e-4, 1.5e-3, 1e-2), 32: (2e-5, 1.2e-4, 1.5e-3)}[
        snapshots
    ]
    bounds = {0.05: 1e-6, 0.1: 1e-6, **dict(zip((0.07, 0.15, 0.2), seen, strict=True))}
    errors = {}
    for sigma in bounds:
        shares = (torch.arange(401, dtype=torch.float64) / 400).pow(exponent(sigma) + 1).diff()
        ema = scoresde.posthoc_ema(tmp_path, sigma).ema
        assert ema is not None
        got = torch.cat([p.detach().double().flatten() for p in ema.parameters()])
        errors[sigma] = float((got - shares @ history).norm()) / moved
    assert all(errors[sigma] < bound for sigma, bound in bounds.items()), errors
    middle = 400 * (snapshots // 2) // snapshots
    shares = (torch.arange(middle + 1, dtype=torch.float64) / middle).pow(exponent(0.1) + 1).diff()
    ema = scoresde.posthoc_ema(tmp_path, 0.1, step=middle).ema
    assert ema is not None
    got = torch.cat([p.detach().double().flatten() for p in ema.parameters()])
    assert float((got - shares @ history[:middle]).norm()) / moved < 1e-5


def test_a_width_that_the_snapshots_do_not_span_is_said(tmp_path: Path) -> None:
    """The profile's error in L², found again by quadrature of the best fit: 7.7% at 0.25 with 16
    snapshots, 2.3% at 0.2.
    """
    scoresde.fit(
        linear(),
        cloud(),
        steps=64,
        ema=scoresde.Averaging(snapshots=16),
        checkpoints=tmp_path,
        progress=False,
        generator=generator(),
    )
    t = (torch.arange(64_000, dtype=torch.float64) + 0.5) / 64_000
    profiles = []
    for i, narrow in itertools.product(range(1, 17), (0.05, 0.1)):
        gamma, end = exponent(narrow), i / 16
        profiles.append(torch.where(t < end, (gamma + 1) * (t / end) ** gamma / end, 0.0))
    basis = torch.stack(profiles, 1)
    for sigma, off in ((0.02, "12%"), (0.25, "8%"), (0.2, None), (0.04, None)):
        wanted = (exponent(sigma) + 1) * t ** exponent(sigma)
        left = wanted - basis @ torch.linalg.lstsq(basis, wanted.unsqueeze(1)).solution[:, 0]
        error = float(left.norm() / wanted.norm())
        assert (error > 0.05) == (off is not None)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            scoresde.posthoc_ema(tmp_path, sigma)
        assert [f"{error:.0%} off" in str(w.message) for w in said] == ([True] if off else [])


@pytest.mark.parametrize("noise", ["lognormal", "adaptive"])
def test_a_resumed_run_has_the_snapshots_of_one_that_was_never_stopped(
    tmp_path: Path, weighing: Any, noise: str
) -> None:
    held_out = cloud(100, 5)

    def fit(sde: ScoreSDE, folder: str, seed: int) -> scoresde.History:
        return scoresde.fit(
            sde,
            cloud(),
            steps=120,
            batch_size=256,
            objective=scoresde.Denoising(noise=noise),
            validation=scoresde.Validation(held_out, every=25, patience=100),
            ema=scoresde.Averaging(snapshots=6),
            checkpoints=scoresde.Checkpoints(tmp_path / folder, every=25, resume=True),
            generator=generator(seed),
            progress=False,
        )

    whole = linear()
    history = fit(whole, "whole", 1)
    weighing(stop=67)
    with pytest.raises(KeyboardInterrupt):
        fit(linear(), "cut", 1)
    weighing()
    resumed = linear()
    again = fit(resumed, "cut", 9)
    assert (history.loss, history.validation, history.best) == (
        again.loss,
        again.validation,
        again.best,
    )
    stems = storage.records(tmp_path / "whole", "average-")
    assert stems == storage.records(tmp_path / "cut", "average-")
    assert len(stems) == 6
    for stem in [*stems, "step-00000120", "model"]:
        ours, theirs = (storage.read(tmp_path / folder, stem)[1] for folder in ("cut", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), stem
    assert all(
        torch.equal(a, b)
        for a, b in itertools.zip_longest(
            whole.state_dict().values(), resumed.state_dict().values()
        )
    )
