"""Score models of latents: what they are trained on, what they draw, and the bound on log p."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import scoresde
from scoresde.sampling.states import ArcStates, solve_states
from scoresde.training.latents import FromPosterior, encoded


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(scoresde.StageNet):
    """x̂ = A·z with orthogonal columns, and the exact posterior under z ~ N(0, prior²·I)."""

    def __init__(self, columns: Tensor, noise: float, prior: float, stretch: float = 1.0) -> None:
        super().__init__((columns.shape[1],), noise=noise)
        self.register_buffer("columns", columns)
        self.precision = (columns.square().sum(0) / noise**2 + prior**-2).float()
        self.noise2 = noise**2
        self.stretch = stretch

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x @ self.columns / self.noise2 / self.precision
        return mean, (self.stretch * self.precision.rsqrt()).expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.columns.T


def columns() -> Tensor:
    return torch.linalg.qr(torch.randn(6, 2, generator=generator(0)))[0]


# ------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("process", [scoresde.VPSDE(), scoresde.RectifiedFlow()])
def test_the_bound_is_log_p_itself_where_q_is_the_posterior(process: Any) -> None:
    """A Gaussian prior and a linear decoder, in data units of other scales: every draw weighs the
    same, and log p(x) is that of N(mean, diag(s)·(AAᵀ + noise²·I)·diag(s))."""
    prior = scoresde.oracle(scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0), process)
    stage = scoresde.FirstStage(Linear(columns(), 0.3, 1.0), shape=(6,))
    stage.mean.copy_(torch.arange(6.0))
    stage.scale.copy_(torch.tensor([1.0, 2.0, 0.5, 10.0, 0.1, 1.0]))
    scale = stage.scale.float()
    covariance = columns() @ columns().T + 0.09 * torch.eye(6)
    truth = torch.distributions.MultivariateNormal(
        stage.mean.float(), covariance * scale * scale[:, None]
    )
    torch.manual_seed(0)
    x = truth.sample((20,))
    model = scoresde.Latent(stage, prior)
    found = scoresde.latent_bound(model, x, draws=3, generator=generator(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.log_prob.float(), truth.log_prob(x), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.ess, torch.full((20,), 3.0).double(), atol=1e-4, rtol=0)
    some = scoresde.latent_bound(model, x[:7], draws=3, generator=generator(), rtol=1e-6)
    assert torch.allclose(some.log_prob, found.log_prob[:7], atol=1e-3)


def gap(n: int, draws: int, stretch: float) -> tuple[float, float]:
    """Mean and standard error of log p(x) less the bound: 8 Gaussians as prior, noise 0.17."""
    toy = scoresde.toy.EightGaussians()
    stage = scoresde.FirstStage(
        Linear(columns(), 0.17, 2.0, stretch), shape=(6,), standardize="none"
    )
    model = scoresde.Latent(stage, scoresde.oracle(toy, scoresde.VPSDE()))
    g = generator(1)
    x = toy.sample(n, generator=g) @ columns().T + 0.17 * torch.randn(n, 6, generator=g)
    angle = torch.arange(8) * (math.pi / 4)
    centers = 4 / math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
    covariance = 0.125 * columns() @ columns().T + 0.17**2 * torch.eye(6)
    parts = [
        torch.distributions.MultivariateNormal(center @ columns().T, covariance).log_prob(x)
        for center in centers
    ]
    truth = torch.stack(parts).logsumexp(0) - math.log(8)
    how: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    found = scoresde.latent_bound(model, x, draws=draws, generator=generator(2), **how)
    below = truth - found.log_prob
    return float(below.mean()), float(below.std()) / math.sqrt(n)


@pytest.mark.parametrize(
    ("n", "draws", "stretch", "low", "high"),
    [
        (1500, 1, 1.0, 0.12, 0.30),
        (400, 10, 1.0, -0.01, 0.06),
        (1500, 1, 2.0, 2.0, 3.2),
        (400, 10, 2.0, 0.02, 0.20),
        pytest.param(1000, 100, 1.0, -0.01, 0.01, marks=pytest.mark.slow),
        pytest.param(1000, 100, 2.0, -0.01, 0.03, marks=pytest.mark.slow),
    ],
)
def test_the_gap_to_log_p_of_8_gaussians_closes_with_draws(
    n: int, draws: int, stretch: float, low: float, high: float
) -> None:
    """As measured: .21/.02/.002 for 1/10/100 draws, and 2.6/.1/.007 with q twice as wide; the bound
    is never above log p by three standard errors (false alarms: 1 in 700 for each)."""
    mean, error = gap(n, draws, stretch)
    print(f"gap {mean:.4f} ± {error:.4f}")
    assert low < mean < high
    assert mean > -3 * error


# ------------------------------------------------------------------------------- training


class Spy(scoresde.Objective):
    """Denoising that keeps what the score model is shown."""

    kind = "score"

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Any]] = []
        self.inner: Any = None

    def prepared(self, sde: Any, *, paired: bool, joined: bool) -> Any:
        self.inner = scoresde.Denoising().prepared(sde, paired=paired, joined=joined)
        return self

    def examples(self, sde: Any, z0: Tensor, eps: Tensor, q: Tensor, condition: Any) -> Any:
        self.seen.append((z0.clone(), dict(condition)))
        return self.inner.examples(sde, z0, eps, q, condition)

    def loss(self, *args: Any) -> Tensor:
        loss: Tensor = self.inner.loss(*args)
        return loss

    def __call__(self, *args: Any) -> Tensor:
        loss: Tensor = self.inner(*args)
        return loss


def stage_of(shape: tuple[int, ...], latent: tuple[int, ...], name: str = "vae") -> Any:
    torch.manual_seed(3)
    return scoresde.first_stage(name, shape=shape, latent=latent, channels=4, width=8)


@pytest.mark.parametrize("name", ["vae", "vq"])
def test_the_score_model_sees_channels_of_unit_variance(name: str) -> None:
    stage = stage_of((1, 8, 8), (3, 4, 4), name)
    x = 5 + torch.randn(4000, 1, 8, 8, generator=generator()).cumsum(2)  # 2% are 3.5 errors
    stage.standardize(x)
    sde = scoresde.build("vp", "unet", shape=stage.latent, channels=4, multipliers=(1,), blocks=1)
    spy = Spy()
    model = scoresde.Latent(stage, sde)
    scoresde.fit(model, x, objective=spy, steps=12, batch_size=500, progress=False)
    z = torch.cat([z0 for z0, _ in spy.seen]).reshape(-1, 3, 16).movedim(1, 0).reshape(3, -1)
    torch.testing.assert_close(z.var(1), torch.ones(3), atol=0.02, rtol=0)
    torch.testing.assert_close(z.mean(1), torch.zeros(3), atol=0.02, rtol=0)


def test_rows_are_drawn_anew_from_q_with_their_conditions() -> None:
    stage = stage_of((4,), (2,))
    x = torch.randn(16, 4, generator=generator())
    stage.standardize(x)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8, classes=16, condition_dropout=0.0)
    spy = Spy()
    scoresde.fit(
        scoresde.Latent(stage, sde),
        x,
        given={"y": torch.arange(16)},
        objective=spy,
        validation=None,
        steps=200,
        batch_size=16,
        progress=False,
    )
    z = torch.cat([z0 for z0, _ in spy.seen])
    y = torch.cat([condition["y"] for _, condition in spy.seen])
    mean, scale = stage.encode(x)
    for k in range(16):
        latents = sde.to_data(z[y == k])
        n = len(latents)
        assert len(latents.unique(dim=0)) == n >= 200
        errors = (latents.mean(0) - mean[k]).abs() / (scale[k] / math.sqrt(n))
        assert float(errors.detach().max()) < 4.5  # 32 of them: 1 false alarm in 5,000
        ratio = latents.std(0) / scale[k]
        torch.testing.assert_close(ratio, torch.ones(2), atol=0.25, rtol=0)


class Rows(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], {"y": self.y[i]}


def test_all_kinds_of_data_are_encoded_alike() -> None:
    stage = stage_of((4,), (2,))
    x = torch.randn(700, 4, generator=generator())
    y = torch.arange(700) % 3
    stage.standardize(x)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8, classes=3)
    model = scoresde.Latent(stage, sde)
    mean, scale = stage.encode(x)
    samples = scoresde.files.Samples(x.numpy(), {"y": y.numpy()})
    cases: list[tuple[Any, Any]] = [
        (x, {"y": y}),
        (x.numpy(), {"y": y.numpy()}),
        (samples, None),
        (TensorDataset(x, y), None),
        (Rows(x, y), None),
        (DataLoader(Rows(x, y), 100), None),
    ]
    for data, given in cases:
        rows, found = encoded(model, data, given, ())
        torch.testing.assert_close(rows, torch.stack([mean, scale], 1))
        assert np.array_equal(np.asarray(found["y"]), y.numpy())
    rows, found = encoded(model, scoresde.toy.GaussianMixture(torch.zeros(1, 4), 1.0), None, ())
    assert rows.shape == (50_000, 2, 2)
    assert found is None
    drawn = FromPosterior((2, 2))(rows[:1].expand(20_000, 2, 2), generator(4))
    torch.testing.assert_close(drawn.mean(0), rows[0, 0], atol=0.05, rtol=0)


def test_a_trained_latent_model_draws_what_the_data_are(tmp_path: Path) -> None:
    """A ring in 2 of 6 dimensions, by a linear first stage: its radius and its angles."""
    g = generator(5)
    z = scoresde.toy.EightGaussians().sample(3000, generator=g)
    x = z @ columns().T + 0.05 * torch.randn(3000, 6, generator=g)
    net = Linear(columns(), 0.05, 2.0)
    stage = scoresde.FirstStage(net, shape=(6,), standardize="none").standardize(x)
    model = scoresde.Latent(stage, scoresde.build("rectified", "mlp", shape=(2,), width=64))
    history = scoresde.fit(
        model, x, validation=x[:200], steps=300, checkpoints=tmp_path, progress=False
    )
    assert len(history.validation) >= 1
    drawn = scoresde.sample(model, 1000, generator=generator(6), steps=20)
    latents = drawn @ columns()
    torch.testing.assert_close(latents @ columns().T, drawn, atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.norm(dim=1).mean(), z.norm(dim=1).mean(), atol=0.2, rtol=0)
    loaded = scoresde.load(tmp_path)
    again = scoresde.Latent(stage, loaded)
    same = scoresde.sample(again, 10, generator=generator(6), steps=20)
    torch.testing.assert_close(same, drawn[:10], atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------- what it draws


def trained_pair() -> tuple[Any, Any]:
    stage = stage_of((6,), (2,))
    stage.standardize(torch.randn(100, 6, generator=generator()) * 3 + 1)
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=16, classes=3)
    for p in sde.net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    sde.mean.copy_(torch.tensor([2.0, -1.0]))
    sde.scale.copy_(torch.tensor([0.5, 3.0]))
    return stage, sde.eval()


def test_samples_are_decoded_latents_also_conditioned_and_guided() -> None:
    stage, sde = trained_pair()
    model = scoresde.Latent(stage, sde)

    def both(outer: Any, inner: Any, **how: Any) -> None:
        x = scoresde.sample(outer, 5, generator=generator(1), **how)
        z = scoresde.sample(inner, 5, generator=generator(1), **how)
        torch.testing.assert_close(x, stage.decode(z), atol=1e-4, rtol=1e-4)

    both(model, sde)
    both(model, sde, solver="em", steps=20)
    y = torch.tensor([0, 1, 2, 0, 1])
    both(model.given(y=y), sde.given(y=y), steps=10)
    guided = scoresde.classifier_free(sde.given(y=1), 2.0)
    both(scoresde.classifier_free(model.given(y=1), 2.0), guided, steps=10)
    both(scoresde.Latent(stage, guided), guided, steps=10)
    both(scoresde.temper(model.given(y=1), 1.5), scoresde.temper(sde.given(y=1), 1.5), steps=10)
    assert model.shape == (6,)


def test_edits_are_those_of_latents() -> None:
    """Of a reward as well, whose gradient passes the decoder."""
    stage, sde = trained_pair()
    model = scoresde.Latent(stage, sde)
    x = torch.randn(4, 6, generator=generator(2))
    how: dict[str, Any] = {"steps": 10, "solver": "heun"}
    z = stage.encode(x).mean.detach()
    edited = scoresde.edit(model, x, 0.5, generator=generator(), **how)
    latents = scoresde.edit(sde, z, 0.5, generator=generator(), **how)
    torch.testing.assert_close(edited, stage.decode(latents), atol=1e-4, rtol=1e-4)

    def reward(x: Tensor) -> Tensor:
        return -((x - 1) ** 2).sum(1) / 10

    pulled = scoresde.toward(model, reward)
    of_latents = scoresde.toward(sde, lambda z: reward(stage.decode(z)))
    x = scoresde.sample(pulled, 5, generator=generator(1), **how)
    z = scoresde.sample(of_latents, 5, generator=generator(1), **how)
    torch.testing.assert_close(x, stage.decode(z), atol=1e-4, rtol=1e-4)
    plain = scoresde.sample(model, 5, generator=generator(1), **how)
    assert float(reward(x).mean()) > float(reward(plain).mean())


def test_states_to_start_from_are_latents() -> None:
    stage, sde = trained_pair()
    model = scoresde.Latent(stage, sde)
    z = torch.randn(5, 2, generator=generator())
    _, states, *_ = solve_states(model, None, ArcStates(z), "heun", 20, None, None, None, None, {})
    latents = scoresde.decode(
        sde, sde.to_data(z * sde.process.radius(1.0)), solver="heun", steps=20
    )
    torch.testing.assert_close(states[-1], stage.decode(latents), atol=1e-4, rtol=1e-4)


def test_what_a_latent_model_can_not_do_is_refused_in_a_sentence(tmp_path: Path) -> None:
    stage, sde = trained_pair()
    model = scoresde.Latent(stage, sde)
    guided = scoresde.classifier_free(model.given(y=1), 2.0)
    x = torch.randn(3, 6)
    vq = stage_of((6,), (2,), "vq")
    unfitted = scoresde.Latent(stage_of((6,), (2,)), sde)
    refused = "does not take a Latent: its decoder has no inverse"
    cases: list[tuple[type[Exception], str, Any]] = [
        (TypeError, f"log_prob {refused}", lambda: scoresde.log_prob(model, x)),
        (TypeError, f"log_prob {refused}", lambda: scoresde.log_prob(guided, x)),
        (TypeError, f"elbo {refused}", lambda: scoresde.elbo(model, x)),
        (TypeError, f"encode {refused}", lambda: scoresde.encode(model, x)),
        (TypeError, f"decode {refused}", lambda: scoresde.decode(model, x)),
        (TypeError, f"loss {refused}", lambda: scoresde.loss(model, x)),
        (TypeError, f"solve(start=...) {refused}", lambda: scoresde.solve(model, start=x)),
        (TypeError, f"a field of x_t {refused}", lambda: model.score(x, 0.5)),
        (TypeError, f"a field of x_t {refused}", lambda: guided.velocity(x, 0.5)),
        (TypeError, "save takes a ScoreSDE", lambda: scoresde.save(guided, tmp_path)),
        (TypeError, "latent_bound takes a scoresde.Latent", lambda:
            scoresde.latent_bound(sde, x)),
        (TypeError, "latent_bound takes a scoresde.Latent", lambda:
            scoresde.latent_bound(guided, x)),
        (TypeError, "leave trace= and probes= out", lambda:
            scoresde.latent_bound(model, x, trace="hutchinson")),
        (TypeError, "a vector-quantized stage has no density", lambda:
            scoresde.latent_bound(scoresde.Latent(vq, sde), x)),
        (ValueError, "x has shape (3, 2), wanted (batch, 6)", lambda:
            scoresde.latent_bound(model, x[:, :2])),
        (ValueError, "draws is at least 1", lambda: scoresde.latent_bound(model, x, draws=0)),
        (TypeError, "the first stage comes first", lambda: scoresde.Latent(sde, stage)),
        (TypeError, "Latent is made from models, got MLP", lambda:
            scoresde.Latent(stage, sde.net)),
        (ValueError, "have shape (2,), and the score model has (6,)", lambda:
            scoresde.Latent(stage, scoresde.build("vp", "mlp", shape=(6,)))),
        (ValueError, "this first stage was never fitted", lambda: scoresde.fit(unfitted, x)),
        (TypeError, "not to pairs", lambda: scoresde.fit(model, scoresde.Pairs(x, x))),
        (ValueError, "data has shape (3, 2), wanted (batch, 6)", lambda:
            scoresde.fit(model, x[:, :2])),
        (TypeError, "a Latent is fitted to tensors or arrays, got a Table", lambda:
            scoresde.fit(model, scoresde.Table(torch.randn(30, 6)))),
        (ValueError, "fit trains the whole model", lambda: scoresde.fit(model.given(y=1), x)),
        (TypeError, "made from others: fit those", lambda: scoresde.fit(guided, x)),
        (ValueError, "steps is at least 1", lambda: scoresde.fit(model, x, steps=0)),
    ]  # fmt: skip
    for kind, text, call in cases:
        with pytest.raises(kind, match=re.escape(text)):
            call()
