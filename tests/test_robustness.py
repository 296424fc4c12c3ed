"""What users do around a model: inference mode, checkpoints of their own, threads, odd processes,
data far away.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import scoresde
from conftest import MIXTURES, generator
from scoresde import Process, ScoreSDE, toy


def test_inference_mode_changes_no_log_prob() -> None:
    """Inside it no graph can be built, so a trace taken there would silently be 0."""
    mixture = MIXTURES["8 Gaussians"]
    sde = scoresde.oracle(mixture, scoresde.VPSDE())
    x = mixture.sample(5, generator=generator())
    with torch.inference_mode():
        inside = scoresde.log_prob(sde, x.clone())
    torch.testing.assert_close(inside, scoresde.log_prob(sde, x), rtol=0, atol=1e-6)


def test_a_network_that_hides_its_gradient_is_refused_by_the_trace() -> None:
    class Hidden(nn.Module):
        @torch.no_grad()
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(x)

    for trace in ("exact", "hutchinson"):
        with pytest.raises(TypeError, match="no gradient"):
            scoresde.log_prob(
                ScoreSDE(scoresde.VPSDE(), Hidden(), shape=(2,)), torch.ones(3, 2), trace=trace
            )


def test_log_prob_of_a_network_whose_backward_cannot_be_batched() -> None:
    """Copies of the batch, with each copy's own angle and condition, in an adaptive solve."""

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return torch.from_numpy(np.asarray(np.cos(x.numpy()) * g.numpy()))  # numpy: no vmap

    class Net(nn.Module):
        def __init__(self, plain: bool) -> None:
            super().__init__()
            self.sine = torch.sin if plain else Sine.apply

        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return 0.5 * self.sine(x * (1 + y[:, None])) * (1 + 0.1 * t[:, None])

    x, y = (
        torch.randn(9, 3, generator=generator(), dtype=torch.float64),
        torch.linspace(0, 1, 9, dtype=torch.float64),
    )
    plain, odd = (
        scoresde.log_prob(ScoreSDE(scoresde.VPSDE(), Net(kind), shape=(3,)).double().given(y=y), x)
        for kind in (True, False)
    )
    torch.testing.assert_close(odd, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("alpha", "sigma", "said"),
    [
        (lambda t: t, lambda t: 1 - t, "reversed"),
        (lambda t: 0.5 * (1 - t), lambda t: t, "divide"),
        (lambda t: 1 - t, lambda t: torch.log(t), "finite"),
        (lambda t: 1 - t, lambda t: (t - 0.2).clamp_min(0), "increase"),
        (lambda t: 1.0, lambda t: t, "tensor"),
    ],
)
def test_what_is_no_path_from_data_to_noise_is_refused(
    alpha: object, sigma: object, said: str
) -> None:
    path = type(
        "Path", (Process,), {"alpha": lambda self, t: alpha(t), "sigma": lambda self, t: sigma(t)}
    )()
    with pytest.raises((ValueError, TypeError), match=said):
        ScoreSDE(path, nn.Identity(), shape=(2,))


def test_em_says_where_a_rate_is_infinite_and_others_still_run() -> None:
    path = type(
        "Root", (Process,), {"alpha": lambda s, t: (1 - t).sqrt(), "sigma": lambda s, t: t.sqrt()}
    )()
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], path)
    with pytest.raises(scoresde.SolverError, match="infinite at t = 1"):
        scoresde.sample(sde, 3, solver="em", steps=10)
    assert bool(scoresde.sample(sde, 3, solver="ancestral", steps=10).isfinite().all())


def test_a_state_dict_carries_average_and_scale() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,), width=16)
    scoresde.fit(sde, toy.Moons(), steps=30, progress=False, generator=generator())
    other = scoresde.build("vp", "mlp", shape=(2,), width=16)
    other.load_state_dict(sde.state_dict())
    other.eval()
    a, b = (scoresde.sample(m, 5, generator=generator()) for m in (sde, other))
    assert torch.equal(a, b)
    assert bool(other.measured)


def test_float64_data_far_from_zero_lose_nothing() -> None:
    """Spread 1 around 10⁷: float32 can't tell neighbors apart, the standardized data can."""
    data = 1e7 + torch.randn(2000, 2, generator=generator(), dtype=torch.float64)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=16).double()
    scoresde.fit(sde, data, steps=5, progress=False, generator=generator())
    z = sde.from_data(data)
    torch.testing.assert_close(z.std(0), torch.ones(2, dtype=torch.float64), rtol=1e-3, atol=0)
    assert len(z[:, 0].unique()) == 2000
    with pytest.warns(UserWarning, match="float32"):
        scoresde.fit(
            scoresde.build("vp", "mlp", shape=(2,), width=16), data, steps=2, progress=False
        )


def test_threads_may_sample_one_model() -> None:
    """Whoever is first changes modes and the last restores them: all see the averaged network
    without dropout.
    """
    sde = scoresde.build("vp", "mlp", shape=(2,), width=16)
    scoresde.fit(sde, toy.Moons(), steps=30, progress=False, generator=generator())
    sde.train()
    alone = scoresde.sample(sde, 50, solver="em", steps=40, generator=generator())
    with ThreadPoolExecutor(4) as pool:
        many = list(
            pool.map(
                lambda _: scoresde.sample(sde, 50, solver="em", steps=40, generator=generator()),
                range(12),
            )
        )
    for x in many:
        torch.testing.assert_close(x, alone, rtol=0, atol=1e-5)
    assert sde.training
    assert sde.net.training


def test_a_diverged_fit_can_be_repeated_with_a_lower_rate() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,), width=16)
    with pytest.raises(scoresde.TrainingError, match="lower lr"):
        scoresde.fit(sde, toy.Moons(), steps=50, lr=1e30, progress=False, generator=generator())
    assert all(bool(p.isfinite().all()) for p in sde.parameters())
    scoresde.fit(sde, toy.Moons(), steps=50, progress=False, generator=generator())


def test_a_second_fit_goes_on_with_the_average() -> None:
    """One more step of a trained model moves it by one step, not back to the raw weights."""
    sde = scoresde.build("vp", "mlp", shape=(2,), width=32)
    scoresde.fit(sde, toy.Moons(), steps=400, progress=False, generator=generator())
    before = [p.clone() for p in sde.ema.parameters()]
    scoresde.fit(sde, toy.Moons(), steps=1, progress=False, generator=generator(1))
    raw = list(sde.net.parameters())
    for old, new, current in zip(before, sde.ema.parameters(), raw, strict=True):
        torch.testing.assert_close(new, old + 0.001 * (current - old), rtol=0, atol=1e-6)


def test_numpy_numbers_are_numbers() -> None:
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.VPSDE())
    assert len(scoresde.sample(sde, np.int64(3), solver="euler", steps=np.int32(4))) == 3
    assert len(scoresde.sample(sde, 2, rtol=np.float32(1e-3), atol=1e-3)) == 2
    assert bool(sde.score(torch.zeros(2, 2), np.array([0.5, 0.7])).isfinite().all())


def test_times_that_differ_from_the_grid_by_rounding_add_no_steps() -> None:
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.RectifiedFlow())
    path = scoresde.solve(
        sde, 2, solver="ancestral", steps=7, spacing="time", times=np.linspace(1, 0, 8)
    )
    assert path.nfe.tolist() == [7, 7]
    assert path.x.shape[0] == 8


def test_ddpm_grid_keeps_its_starting_noise() -> None:
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.VPSDE())
    path = scoresde.solve(
        sde, 100, solver="ddim", steps=1000, spacing="ddpm", generator=generator()
    )
    euler = scoresde.solve(sde, 100, solver="euler", steps=2, generator=generator())
    torch.testing.assert_close(path.x[0], euler.x[0])
    assert math.isclose(float(path.t[0]), 1.0034, abs_tol=1e-3)


def test_registering_under_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="taken"):

        @scoresde.BACKBONES.register("mlp")
        class MLP(nn.Module):
            pass

    with pytest.raises(TypeError, match="register\\('name'\\)"):
        scoresde.PROCESSES.register(Process)  # type: ignore[arg-type]


def everything(folder: Path) -> list[object]:
    """What the public verbs return, with all seeds fixed."""
    g, out = generator, list[object]()
    mixture = toy.EightGaussians()
    x = mixture.sample(12, generator=g())
    with torch.device("cpu"), torch.random.fork_rng():
        torch.manual_seed(0)
        sde = scoresde.build("vp", "mlp", shape=(2,), width=8, depth=1, classes=2)
        flow = scoresde.build("rectified", "mlp", shape=(2,), width=8, depth=1)
        laws = TensorDataset(x)
    train: dict[str, Any] = {"steps": 3, "batch_size": 4, "progress": False}
    for data in (x, x.numpy(), x.tolist(), laws, DataLoader(laws, 4, shuffle=True), toy.Moons()):
        scoresde.fit(flow, data, generator=g(), **train)
    scoresde.fit(
        sde, x, given={"y": [0, 1] * 6}, validation=(x, {"y": [0, 1] * 6}), generator=g(), **train
    )
    scoresde.fit(
        sde,
        x,
        given={"y": np.arange(12) % 2},
        noise="adaptive",
        generator=g(),
        out=folder / "run",
        **train,
    )
    scoresde.fit(flow, x, coupling="minibatch_ot", generator=g(), **train)
    sde = scoresde.load(scoresde.save(sde, folder / "model"))
    given = sde.given(y=1)
    for spacing in scoresde.SPACINGS:
        out.append(
            scoresde.sample(sde, 3, solver="ddim", steps=10, spacing=spacing, generator=g())
        )
    for solver in scoresde.SOLVERS:
        if scoresde.SOLVERS.build(solver).all_needs <= {"score", "velocity"}:
            out.append(scoresde.sample(given, 3, solver=solver, steps=4, generator=g()))
    out += [
        scoresde.sample(given, 3, solver=solver, rtol=1e-2, atol=1e-2, generator=g())
        for solver in ("rk45", "ggf")
    ]
    out += vars(scoresde.solve(given, 3, times=[1.0, 0.4, 0.0], generator=g())).values()
    out += vars(
        scoresde.likelihood(given, x, trace="hutchinson", generator=g(), rtol=1e-2, atol=1e-2)
    ).values()
    out += [scoresde.log_prob(given, x), *scoresde.sample_and_log_prob(given, 3, generator=g())]
    out += [
        scoresde.encode(given, x, steps=6),
        scoresde.decode(given, x, steps=6),
        sde.score(x, 0.3),
        sde.velocity(x, 0.5),
    ]
    out += [
        scoresde.elbo(sde, x, generator=g()).log_prob,
        scoresde.vlb(sde, x, steps=8, generator=g()).log_prob,
    ]
    out.append(
        scoresde.loss(sde, x, generator=g(), y=torch.zeros(12, dtype=torch.long, device="cpu"))
    )
    values = (16 * x.sigmoid()).long()
    out.append(
        scoresde.bits_per_dim(
            sde, values, scoresde.dequantize.Uniform(16), draws=2, generator=g(), steps=6
        ).bits
    )
    pairs = scoresde.reflow(flow, 8, generator=g(), progress=False, rtol=1e-3, atol=1e-3)
    scoresde.fit(flow, pairs, generator=g(), **train)
    flow.source = x
    scoresde.fit(flow, x, generator=g(), **train)
    out += [pairs.x, pairs.latent, scoresde.sample(flow, 3, generator=g())]
    for name in toy.DENSITIES:
        law = toy.DENSITIES.build(name)
        y = law.sample(5, generator=g())
        out += [y, law.log_prob(y), *law.bounds()]
    y = x + 0.1
    out += [
        scoresde.energy_distance(x, y),
        scoresde.energy_test(x, y, generator=g()),
        scoresde.wasserstein(x, y),
    ]
    out += [
        scoresde.sliced_wasserstein(x, y, generator=g()),
        scoresde.mmd(x, y),
        scoresde.frechet_distance(x, y),
    ]
    out.append(scoresde.oracle(mixture, scoresde.VESDE()).score(x, 0.2))
    return out + list(sde.state_dict().values()) + list(flow.state_dict().values())


@pytest.mark.filterwarnings("ignore")
def test_another_default_device_changes_nothing(tmp_path: Path) -> None:
    """All public verbs, bit for bit, on a model and data of the CPU."""
    wanted = everything(tmp_path / "plain")
    with torch.device("meta"):
        found = everything(tmp_path / "meta")
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
            assert mine.device.type == "cpu"
            assert torch.equal(mine.nan_to_num(), theirs.nan_to_num())
        else:
            assert mine == theirs
