"""The loss against each paper's own formula, the noise laws against scipy, and `fit` against what it promises."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import scoresde
from conftest import PROCESSES, generator
from scoresde import NOISES, PREDICTIONS, WEIGHTS, Process, ScoreSDE, toy
from scoresde.data import Source
from scoresde.prediction import singular

PAIRS = [
    (name, predict)
    for name in PROCESSES
    for predict in PREDICTIONS
    if not singular(predict, p := scoresde.PROCESSES.build(name), p.phi_max)
]


class Answers(nn.Module):
    """Says the same random numbers whatever it is shown, and keeps what it was shown."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = nn.Parameter(answers)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append((x.detach().clone(), t.detach().clone()))
        return self.answers.reshape(x.shape) if self.answers.numel() == x.numel() else 0 * x + self.answers.sum()


def small(process: str = "vp", seed: int = 0, **options: Any) -> ScoreSDE:
    """An MLP whose initial weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return scoresde.build(process, "mlp", shape=(2,), **({"width": 16, "depth": 2, "fourier": 4} | options))


def weights(sde: ScoreSDE) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in sde.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def cloud(n: int = 200, seed: int = 0) -> Tensor:
    return torch.tensor([3.0, -1.0]) + torch.tensor([0.5, 4.0]) * torch.randn(n, 2, generator=generator(seed))


# ---------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)])
def test_rectified_flow_is_flow_matching(shape: tuple[int, ...]) -> None:
    """E‖net(x_t, t) − (ε − x0)‖²/D (Lipman et al. 2023, eq. 23), with the draws of the same generator."""
    torch.manual_seed(0)
    net = scoresde.BACKBONES.build("test_linear", shape).double()
    sde = ScoreSDE(scoresde.RectifiedFlow(), net, shape=shape, predict="v", sees="raw").double()
    x0 = 2 + 3 * torch.randn(64, *shape, generator=generator(1), dtype=torch.float64)
    sde.standardize(x0)
    got = scoresde.loss(sde, x0, weight="velocity", noise="uniform", generator=generator(7))
    g = generator(7)
    eps = torch.randn(64, math.prod(shape), generator=g, dtype=torch.float64).reshape(x0.shape)
    jitter = torch.rand(64, generator=g, dtype=torch.float64)
    t = (torch.randperm(64, generator=g) + jitter) / 64
    unit = (x0 - sde.mean) / sde.scale  # the path lives in standardized units
    column = t.reshape(-1, *(1,) * len(shape))
    wanted = (net((1 - column) * unit + column * eps, t) - (eps - unit)).square().mean()
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    ours, theirs = (torch.autograd.grad(value, list(net.parameters())) for value in (got, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def denoised(process: Process, predict: str, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
    """x̂0 as the papers write it, from a network's output."""
    alpha, sigma, dalpha, dsigma = process.alpha(t), process.sigma(t), process.dalpha(t), process.dsigma(t)
    if predict == "x0":
        return out
    if predict == "eps":  # Ho et al. 2020, eq. 15
        return (x - sigma * out) / alpha
    if predict == "score":  # Tweedie
        return (x + sigma**2 * out) / alpha
    if predict == "v":  # out = α̇·x0 + σ̇·ε
        return (dsigma * x - sigma * out) / (alpha * dsigma - sigma * dalpha)
    level = sigma / alpha  # Karras et al. 2022, eq. 7 and table 1 at σ_data = 1
    c_skip, c_out = 1 / (level**2 + 1), level / torch.sqrt(1 + level**2)
    return c_skip * x / alpha + c_out * out


def objective(process: Process, weight: str, x0: Tensor, guess: Tensor, eps: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The papers' objectives, per element."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    if weight == "min_snr":  # Hang et al. 2023, section 3.4
        return torch.clamp((alpha / sigma) ** 2, max=5.0) * (guess - x0) ** 2
    if weight == "edm":  # Karras et al. 2022, λ(σ) = (σ² + σ_data²)/(σ·σ_data)²
        return ((sigma / alpha) ** 2 + 1) / (sigma / alpha) ** 2 * (guess - x0) ** 2
    if weight == "velocity":  # Lipman et al. 2023, eq. 9
        velocity = process.dalpha(t) * guess + process.dsigma(t) * (x - alpha * guess) / sigma
        return (velocity - process.dalpha(t) * x0 - process.dsigma(t) * eps) ** 2
    score = -(x - alpha * guess) / sigma**2
    error = (score - (x0 * alpha - x) / sigma**2) ** 2
    return {"sigma2": sigma**2, "likelihood": process.g2(t)}[weight] * error  # Song et al. 2021, eq. 7; 2021b, eq. 8


@pytest.mark.parametrize("weight", list(WEIGHTS))
@pytest.mark.parametrize(("name", "predict"), PAIRS)
def test_loss_is_the_objective_of_its_paper(name: str, predict: str, weight: str) -> None:
    """In float64, from a network of random answers; noise between the ends, where the papers' divisions lose nothing."""
    process = scoresde.PROCESSES.build(name)
    x0 = torch.randn(32, 3, generator=generator(1), dtype=torch.float64)
    answers = torch.randn(32, 3, generator=generator(2), dtype=torch.float64)
    net = Answers(answers)
    sde = ScoreSDE(process, net, shape=(3,), predict=predict, sees="raw").double()
    got = scoresde.loss(sde, x0, weight=weight, generator=generator(3))
    (_, t), t = net.seen[0], net.seen[0][1][:, None]
    eps = torch.randn(32, 3, generator=generator(3), dtype=torch.float64)
    x = process.alpha(t) * x0 + process.sigma(t) * eps
    torch.testing.assert_close(net.seen[0][0], x, rtol=1e-9, atol=1e-9)
    guess = denoised(process, predict, x, answers, t)
    wanted = objective(process, weight, x0, guess, eps, x, t).mean()
    assert abs(float(got) - float(wanted)) <= 1e-9 * float(wanted)


@pytest.mark.parametrize("weight", list(WEIGHTS))
def test_gradient_of_the_loss_is_its_slope(weight: str) -> None:
    """Central differences in float64, along a random direction of all weights."""
    sde = small().double()
    for p in sde.net.parameters():
        nn.init.normal_(p, std=0.3, generator=generator(4))
    x0 = cloud(64).double()
    sde.standardize(x0)
    parameters = list(sde.net.parameters())
    direction = [torch.randn(p.shape, generator=generator(i), dtype=p.dtype) for i, p in enumerate(parameters)]

    def moved(h: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=h)
            value = scoresde.loss(sde, x0, weight=weight, generator=generator(5)).item()
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=h)
        return value

    gradients = torch.autograd.grad(scoresde.loss(sde, x0, weight=weight, generator=generator(5)), parameters)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert all(bool(g.abs().sum() > 0) for g in gradients)
    assert slope == pytest.approx((moved(1e-5) - moved(-1e-5)) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_laws_are_what_they_say(name: str) -> None:
    """Quantiles against scipy, and draws by Kolmogorov–Smirnov: a false alarm in 10,000 per law and process."""
    process = scoresde.PROCESSES.build(name)
    low, high = (math.log(math.tan(min(max(p, 1e-6), math.pi / 2 - 1e-6))) for p in (process.phi_min, process.phi_max))
    law = scipy.stats.truncnorm((low + 1.5) / 1.5, (high + 1.5) / 1.5, loc=-1.5, scale=1.5)
    q = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    got = torch.log(torch.tan(NOISES["lognormal"](process, q)))
    np.testing.assert_allclose(got.numpy(), law.ppf(q.numpy()), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(process.time(NOISES["uniform"](process, q)), q, rtol=0, atol=1e-9)
    iid = torch.rand(5000, generator=generator(8), dtype=torch.float64)
    drawn = torch.log(torch.tan(NOISES["lognormal"](process, iid)))
    assert scipy.stats.kstest(drawn.numpy(), law.cdf).pvalue > 1e-4
    times = process.time(NOISES["uniform"](process, iid))
    assert scipy.stats.kstest(times.numpy(), scipy.stats.uniform.cdf).pvalue > 1e-4


@pytest.mark.parametrize("b", [1, 7, 64])
def test_one_noise_level_falls_into_each_stratum_in_random_order(b: int) -> None:
    net = Answers(torch.zeros(b, 2))
    sde = ScoreSDE(scoresde.RectifiedFlow(), net, shape=(2,), predict="v", sees="raw")
    for seed in range(20):
        scoresde.loss(sde, torch.zeros(b, 2), noise="uniform", generator=generator(seed))
    strata = torch.stack([torch.floor(t.double() * b).long() for _, t in net.seen])
    assert torch.equal(strata.sort(1).values, torch.arange(b).expand(20, b))
    inside = torch.cat([t.double() * b for _, t in net.seen]) - strata.flatten()
    # the place within a stratum is uniform: 4 standard errors of its mean
    assert abs(float(inside.mean()) - 0.5) < 4 / math.sqrt(12 * len(inside))
    if b > 1:
        assert len({tuple(row.tolist()) for row in strata}) > 10


def test_train_mode_uses_the_network_and_eval_mode_its_average() -> None:
    sde = small()
    scoresde.fit(sde, cloud(), steps=5, progress=False, generator=generator())
    for p in sde.net.parameters():
        nn.init.normal_(p, generator=generator(1))
    x0 = cloud(16)
    sde.train()
    raw = scoresde.loss(sde, x0, generator=generator(2))
    sde.eval()
    averaged = scoresde.loss(sde, x0, generator=generator(2))
    only = small()
    only.standardize(cloud())
    for net, value in ((sde.net, raw), (sde.ema, averaged)):
        only.net.load_state_dict(net.state_dict())
        torch.testing.assert_close(scoresde.loss(only, x0, generator=generator(2)), value)
    assert float(raw) != float(averaged)


# ---------------------------------------------------------------------------------------------------- fit


def test_the_same_generator_gives_the_same_weights_bit_for_bit() -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        sde = small()
        scoresde.fit(sde, cloud(), steps=10, batch_size=32, progress=False, generator=generator(seed))
        return weights(sde)

    assert same(trained(1), trained(1))
    assert not same(trained(1), trained(2))

    sde = small()
    torch.manual_seed(5)
    scoresde.fit(sde, cloud(), steps=10, batch_size=32, progress=False)
    unseeded = weights(sde)
    sde = small()
    torch.manual_seed(5)
    scoresde.fit(sde, cloud(), steps=10, batch_size=32, progress=False)
    assert same(weights(sde), unseeded)  # without one, torch's own generator rules


class Pairs(Dataset[Any]):
    """A map-style dataset of (x, {"y": y})."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.x[i], {"y": self.y[i]}


class Rows(IterableDataset[Any]):
    """The rows of a tensor, one after the other."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)


def steps_of(source: Source) -> Iterator[Tensor]:
    """The data of one step after the other."""
    for x, _, k in source.batches(0):
        yield from x.split(len(x) // k)


N = 40
LABELS = torch.arange(N) % 3
KINDS: dict[str, Any] = {
    "tensor": lambda x: x,
    "float64 tensor": lambda x: x.double(),
    "float64 array": lambda x: x.double().numpy(),
    "array with negative strides": lambda x: x.flip(0).numpy()[::-1],
    "list": lambda x: x.tolist(),
    "TensorDataset": TensorDataset,
    "map-style dataset": lambda x: Pairs(x, LABELS),
    "DataLoader": lambda x: DataLoader(TensorDataset(x), 16),
    "IterableDataset": Rows,
}
LAWS: dict[str, Any] = {
    "toy density": lambda: toy.Moons(),
    "distribution": lambda: torch.distributions.MultivariateNormal(
        torch.tensor([1.0, -2.0]), torch.diag(torch.tensor([4.0, 9.0]))
    ),
}


@pytest.mark.parametrize("kind", [*KINDS, *LAWS])
def test_global_random_state_is_neither_read_nor_touched_when_a_generator_is_given(kind: str) -> None:
    data = KINDS[kind](cloud(N)) if kind in KINDS else LAWS[kind]()
    results = []
    for seed in (1, 2):
        sde = small(classes=3)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before, before_np = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        scoresde.fit(sde, data, steps=3, batch_size=16, progress=False, generator=generator(3))
        assert torch.equal(torch.random.get_rng_state(), before), "touched"
        assert np.array_equal(np.random.get_state()[1], before_np), "numpy's touched"  # noqa: NPY002
        results.append(weights(sde))
    assert same(*results), "read"


@pytest.mark.parametrize("batch_size", [8, 40, 100])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_data_is_standardized_and_trained_on(kind: str, batch_size: int) -> None:
    """Mean and scale are those of all the data, whatever they come in, and their rows are what a batch holds."""
    x = cloud(N)
    sde = small(classes=3)
    history = scoresde.fit(sde, KINDS[kind](x), steps=7, batch_size=batch_size, progress=False, generator=generator())
    torch.testing.assert_close(sde.mean, x.mean(0))
    torch.testing.assert_close(sde.scale, x.std(0, correction=0))
    assert history.step[-1] == 7
    assert all(math.isfinite(value) for value in history.loss)
    source = Source(KINDS[kind](x), sde, batch_size, seed=1)
    seen = torch.cat(list(itertools.islice(steps_of(source), 5 * 100 // batch_size)))
    assert seen.is_floating_point()  # float64 data stay so until they are standardized
    seen = seen.float()
    row = (seen[:, None] - x[None]).abs().amax(2)
    assert float(row.amin(1).max()) < 1e-6
    times = torch.bincount(row.argmin(1), minlength=N)
    assert int(times.max() - times.min()) <= 1  # epoch after epoch, none twice before all


@pytest.mark.parametrize("kind", list(LAWS))
def test_laws_are_drawn_from_afresh(kind: str) -> None:
    """Mean and scale of 50,000 draws: 5 standard errors."""
    law = LAWS[kind]()
    sde = small()
    scoresde.fit(sde, law, steps=3, progress=False, generator=generator())
    mean, std = (law.mean(), law.std()) if isinstance(law, toy.GaussianMixture) else (law.mean, law.stddev)
    assert bool(((sde.mean - mean).abs() < 5 * std / math.sqrt(50_000)).all())
    assert bool(((sde.scale / std - 1).abs() < 0.02).all())
    seen = torch.cat(list(itertools.islice(steps_of(Source(law, sde, 1000, seed=1)), 70)))
    assert len(seen.unique(dim=0)) > 69_900


def test_labels_of_a_dataset_and_of_given_stay_with_their_rows() -> None:
    x = torch.arange(N).float()[:, None].expand(N, 2) + torch.tensor([0.0, 0.5])
    y = torch.arange(N)
    sde = small(classes=N)
    for data, given in ((Pairs(x, y), None), (DataLoader(Pairs(x, y), 7), None), (x, {"y": y}), (x.numpy(), {"y": y.numpy()})):
        for rows, condition, _ in itertools.islice(Source(data, sde, 16, seed=1, given=given).batches(0), 10):
            assert torch.equal(rows[:, 0].long(), condition["y"])


@pytest.mark.parametrize("kind", ["tensor", "float64 array", "DataLoader", "map-style dataset"])
def test_standardization_is_measured_once_and_kept(kind: str) -> None:
    sde = small(classes=3)
    scoresde.fit(sde, KINDS[kind](cloud(N)), steps=2, progress=False)
    mean, scale = sde.mean.clone(), sde.scale.clone()
    scoresde.fit(sde, KINDS[kind](100 + 10 * cloud(N)), steps=2, progress=False)
    assert torch.equal(sde.mean, mean)
    assert torch.equal(sde.scale, scale)


@pytest.mark.parametrize("half_life", [0.0, 1.0, 700.0])
def test_average_is_the_recursion(half_life: float) -> None:
    """w̄_1 = w_1, w̄_{k+1} = d_k·w̄_k + (1 − d_k)·w_{k+1} with d_k = min(2^(−1/half_life), (1 + k)/(10 + k)); the network notes
    its weights.
    """
    decay = 0.5 ** (1 / half_life) if half_life else 0.0
    seen: list[Tensor] = []

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.3, -0.2]))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(self.w.detach().double())
            return x * self.w

    sde = ScoreSDE(scoresde.VPSDE(), Noting(), shape=(2,))
    scoresde.fit(sde, cloud(), steps=60, lr=0.05, ema=half_life, progress=False, generator=generator())
    after = [w.clone() for w in seen[1:]] + [sde.net.w.detach().double()]
    assert len(after) == 60
    wanted = after[0]
    for k, w in enumerate(after[1:], start=1):
        d = min(decay, (1 + k) / (10 + k))
        wanted = d * wanted + (1 - d) * w
    assert sde.ema is not None
    torch.testing.assert_close(sde.ema.w.double(), wanted, rtol=1e-5, atol=1e-6)
    assert not sde.ema.w.requires_grad
    assert float((after[-1] - after[0]).abs().max()) > 0.05


class Token:
    """Lives as long as a part of an autograd graph does."""


class Tracked(torch.autograd.Function):
    alive: ClassVar[weakref.WeakSet[Token]] = weakref.WeakSet()

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.token = Token()
        Tracked.alive.add(ctx.token)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def test_history_holds_numbers_and_no_graph_is_kept_from_step_to_step() -> None:
    most = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out = Tracked.apply(x * self.w)
            most.append(len(Tracked.alive))
            return out

    sde = ScoreSDE(scoresde.VPSDE(), Net(), shape=(2,))
    history = scoresde.fit(sde, cloud(), steps=40, batch_size=32, progress=False)
    assert max(most) <= 2  # this step's, and the one before it until its loss is replaced
    assert len(most) == 40
    gc.collect()
    assert len(Tracked.alive) == 0
    assert history.step == list(range(4, 41, 4))
    assert all(isinstance(value, float) for value in history.loss)
    assert history.seconds > 0


def test_fit_leaves_a_model_in_eval_mode_that_goes_on_from_its_raw_weights() -> None:
    sde = small()
    sde.eval()
    scoresde.fit(sde, cloud(), steps=20, progress=False, generator=generator())
    assert not sde.training
    assert not any(module.training for module in sde.modules())
    assert sde.net.out.weight.requires_grad
    raw = sde.net.out.weight.clone()
    scoresde.fit(sde, cloud(), steps=1, lr=1e-12, progress=False, generator=generator())
    torch.testing.assert_close(sde.net.out.weight, raw, rtol=0, atol=1e-6)


OVERLAPPING = toy.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.6)
RECIPES = {"vp": {}, "rectified": {"weight": "velocity", "noise": "uniform"}}


@pytest.mark.parametrize(("process", "predict"), [("vp", "edm"), ("rectified", "v")])
def test_a_trained_model_draws_from_an_easy_target(process: str, predict: str) -> None:
    """Two overlapping Gaussians: on the same draws the loss is lower, and the energy test takes 1000 samples for the truth.

    p > 0.01 for the trained model (typically 0.1); the untrained one, a unit Gaussian of the right mean and scale, is found
    out at p = 0.005.
    """
    sde = small(process, width=64, depth=3, fourier=16, predict=predict)
    truth = OVERLAPPING.sample(1000, generator=generator(3))
    sde.standardize(truth)

    def report() -> tuple[float, float]:
        x = scoresde.sample(sde, 1000, generator=generator(2))
        held_out = scoresde.loss(
            sde, OVERLAPPING.sample(4000, generator=generator(5)), generator=generator(6), **RECIPES[process]
        )
        return float(held_out.detach()), scoresde.energy_test(x, truth, permutations=199, generator=generator(4))

    before, p_before = report()
    how = {"steps": 1500, "lr": 5e-3, "progress": False, "generator": generator(1)}
    history = scoresde.fit(sde, OVERLAPPING, **how, **RECIPES[process])
    after, p_after = report()
    assert after < 0.995 * before
    assert abs(history.loss[-1] / after - 1) < 0.05
    assert p_before < 0.01 < p_after


def test_labels_given_to_fit_reach_the_right_rows() -> None:
    """Classes at (−4, 0) and (4, 2), std ½: samples of class k lie at its mean, to 0.25, with its spread."""
    means = torch.tensor([[-4.0, 0.0], [4.0, 2.0]])
    y = torch.arange(2).repeat(500)
    x = means[y] + 0.5 * torch.randn(1000, 2, generator=generator())
    sde = small(width=48, classes=2)
    scoresde.fit(sde, x, given={"y": y}, steps=800, batch_size=256, progress=False, generator=generator(1))
    drawn = scoresde.sample(sde.given(y=y[:400]), 400, generator=generator(2))
    for k in range(2):
        torch.testing.assert_close(drawn[k::2].mean(0), means[k], rtol=0, atol=0.25)
        assert float(drawn[k::2].std(0).max()) < 1.0
    logp = scoresde.log_prob(sde.given(y=torch.tensor([0, 1])), means[[0, 0]])
    assert float(logp[0] - logp[1]) > 5


# ---------------------------------------------------------------------------------------------------- when it goes wrong


class Poisoned(nn.Module):
    """NaN from a call on."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.w, self.call, self.calls = nn.Parameter(torch.tensor(0.1)), call, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += self.training
        return x * self.w if self.calls < self.call or not self.training else x * self.w * float("nan")


@pytest.mark.parametrize("call", [1, 17])
def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step(call: int) -> None:
    """The average keeps the last finite weights, as `TrainingError` says."""
    sde = ScoreSDE(scoresde.VPSDE(), Poisoned(call), shape=(2,))
    with pytest.raises(scoresde.TrainingError, match=r"nan (after|at) step (\d+).*lr") as caught:
        scoresde.fit(sde, cloud(), steps=40, progress=False, generator=generator())
    step = int(str(caught.value).split("step ")[1].split()[0].rstrip(";,."))
    assert call <= step <= call + 4
    assert not sde.training
    assert sde.ema is not None
    assert bool(sde.ema.w.isfinite())
    assert bool(scoresde.log_prob(sde, cloud(3)).isfinite().all())


class Interrupted:
    """A user presses Ctrl-C while the third draw is made: after step 64 of a fit."""

    def __init__(self, at: int) -> None:
        self.at, self.draws = at, 0

    def sample(self, n: int) -> Tensor:
        self.draws += 1
        if self.draws == self.at:
            raise KeyboardInterrupt
        return cloud(n, self.draws)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupted_fit_leaves_a_usable_model(at: int) -> None:
    sde = small()
    with pytest.raises(KeyboardInterrupt):
        scoresde.fit(sde, Interrupted(at), steps=1000, batch_size=16, progress=False, generator=generator())
    if at > 1:
        assert not sde.training
        torch.testing.assert_close(sde.mean, torch.tensor([3.0, -1.0]), rtol=0, atol=0.2)
    x = scoresde.sample(sde.eval(), 5, generator=generator())
    assert bool(x.isfinite().all())
    assert bool(scoresde.log_prob(sde, x).isfinite().all())
    scoresde.fit(sde, cloud(), steps=3, progress=False)  # and it goes on


@pytest.mark.parametrize("why", ["interrupted", "a condition it does not take"])
def test_a_second_fit_that_ends_before_its_first_step_keeps_the_average_of_the_first(why: str) -> None:
    sde = small()
    scoresde.fit(sde, cloud(), steps=30, lr=0.05, progress=False, generator=generator())
    before = weights(sde)
    if why == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            scoresde.fit(sde, Interrupted(1), steps=10, progress=False, generator=generator())
    else:
        with pytest.raises(ValueError, match="no condition 'label'"):
            scoresde.fit(sde, cloud(), steps=10, given={"label": torch.zeros(200)}, progress=False)
    assert same(weights(sde), before)
