"""Guidance by gradients: a classifier of noised states, and functions of denoised samples."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import ORDINARY
from scoresde import energies
from scoresde.processes.base import as_time
from scoresde.toy import GaussianMixture

MEANS = torch.tensor([[-1.2, 0.3], [0.2, 1.1], [0.9, -0.8], [0.4, -0.2]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.4, 0.35, 0.5], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.2, 0.4, 0.1], dtype=torch.float64)
CLASS = torch.tensor([0, 1, 0, 1])
"""The class of each component."""

PROCESSES = {
    "vp": scoresde.VPSDE(),
    "ve": scoresde.VESDE(),
    "rectified": scoresde.RectifiedFlow(),
    "cosine": scoresde.Cosine(),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(y: int | None = None) -> GaussianMixture:
    """The law of standardized data, of all classes or of one."""
    chosen = torch.ones(4, dtype=torch.bool) if y is None else y == CLASS
    return GaussianMixture(MEANS[chosen], STDS[chosen], WEIGHTS[chosen])


def exact(process: str, y: int | None = None, units: bool = True) -> scoresde.ScoreSDE:
    """The exact model of such data, in units of their own: mean + scale ∘ (R·z)."""
    sde = scoresde.oracle(mixture(y), PROCESSES[process]).double()
    if units:
        sde.mean.copy_(torch.tensor([3.0, -200.0]))
        sde.scale.copy_(torch.tensor([0.1, 40.0]))
        sde.root.copy_(torch.tensor([[0.9, 0.3], [0.3, 1.1]]))
    return sde.eval()


def posterior(z: Tensor, phi: Tensor) -> Tensor:
    """Logits of the classes at states on the arc, in closed form."""
    cos, sin = phi.cos()[:, None], phi.sin()[:, None]
    variance = cos**2 * STDS**2 + sin**2
    square = (z.unsqueeze(1) - cos.unsqueeze(2) * MEANS).square().sum(2)
    joint = WEIGHTS.log() - 0.5 * square / variance - variance.log()
    return torch.stack([joint[:, y == CLASS].logsumexp(1) for y in (0, 1)], 1)


def of_data(sde: scoresde.ScoreSDE) -> Any:
    """The same classifier as users write it, of x_t and t in the units of the data."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        radius = sde.process.radius(t)[:, None]
        return posterior(sde.from_data(x) / radius, sde.process.phi(t))

    return net


# ------------------------------------------------------------------ an exact classifier


HOW = {
    "vp": (1e-9, 1e-9),
    "ve": (1e-9, 1e-9),
    "rectified": (1e-3, 1e-4),
    "cosine": (1e-3, 1e-4),
}
"""Errors allowed in samples, by standard deviations, and in log p."""


@pytest.mark.parametrize(
    "process",
    ["vp", *(pytest.param(p, marks=pytest.mark.slow) for p in ("ve", "rectified", "cosine"))],
)
def test_an_exact_classifier_makes_the_conditional_model(process: str) -> None:
    """In data units with correlations: β = 1 is p(x | y), by every solver of score models."""
    sde = exact(process)
    guided = scoresde.classifier(sde, posterior, y=1)
    for solver in ORDINARY:
        how: dict[str, Any] = {"solver": solver, "steps": 6}
        got = scoresde.sample(guided, 4, generator=generator(), **how)
        expected = scoresde.sample(exact(process, 1), 4, generator=generator(), **how)
        gap = float((sde.from_data(got) - sde.from_data(expected)).abs().max())
        assert gap < HOW[process][0], solver


@pytest.mark.parametrize("process", list(PROCESSES))
def test_an_exact_classifier_s_log_p_and_score_are_the_conditional_ones(process: str) -> None:
    """With a class for each sample, in two batches."""
    sde = exact(process)
    y = torch.tensor([0, 1, 1, 0, 1])
    guided = scoresde.classifier(sde, posterior, y)
    x = sde.to_data(mixture().sample(5, generator=generator(), dtype=torch.float64))
    how: dict[str, Any] = {"solver": "rk4", "steps": 8, "batch_size": 3}
    got = scoresde.log_prob(guided, x, **how)
    parts = [scoresde.log_prob(exact(process, k), x, **how) for k in (0, 1)]
    torch.testing.assert_close(got, torch.where(y == 0, *parts), rtol=0, atol=HOW[process][1])
    for t in (0.2, 0.7):
        scores = [exact(process, k).score(x, t) for k in (0, 1)]
        wanted = torch.where(y[:, None] == 0, *scores)
        torch.testing.assert_close(guided.score(x, t), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", list(PROCESSES))
def test_scale_0_is_the_plain_model(process: str) -> None:
    sde = exact(process)
    plain = scoresde.classifier(sde, posterior, y=1, scale=0.0)
    x = sde.to_data(mixture().sample(3, generator=generator(), dtype=torch.float64))
    for solver in ("heun", "em", "dpmpp_2m"):
        how: dict[str, Any] = {"solver": solver, "steps": 5, "generator": generator()}
        got = scoresde.sample(plain, 3, **how)
        how["generator"] = generator()
        torch.testing.assert_close(got, scoresde.sample(sde, 3, **how), rtol=0, atol=0)
    how = {"solver": "heun", "steps": 5}
    torch.testing.assert_close(
        scoresde.log_prob(plain, x, **how), scoresde.log_prob(sde, x, **how)
    )


def test_a_classifier_of_data_is_given_what_score_takes() -> None:
    sde = exact("ve")
    y = torch.tensor([0, 1, 1])
    x = sde.to_data(mixture().sample(3, generator=generator(), dtype=torch.float64))
    ours = scoresde.classifier(sde, posterior, y, scale=2.0)
    theirs = scoresde.classifier(sde, of_data(sde), y, scale=2.0, input_convention="data")
    torch.testing.assert_close(theirs.score(x, 0.4), ours.score(x, 0.4))
    times = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(theirs.score(x, times), ours.score(x, times))


def test_the_score_of_scale_2_is_stated_and_interval_confines_it() -> None:
    """∇log p(x_t) + 2·∇log p(y | x_t) = 2·conditional − unconditional."""
    sde = exact("vp")
    guided = scoresde.classifier(sde, posterior, 0, 2.0, interval=(0.5, math.inf))
    x = sde.to_data(mixture().sample(3, generator=generator(), dtype=torch.float64))
    levels = torch.tensor([0.05, 0.6, 0.9])  # u = .1, 3, 12
    plain = sde.score(x, levels)
    wanted = 2 * exact("vp", 0).score(x, levels) - plain
    wanted[0] = plain[0]
    torch.testing.assert_close(guided.score(x, levels), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(guided.score(x, 0.05), sde.score(x, 0.05), rtol=0, atol=0)


def test_samples_do_not_depend_on_their_batch() -> None:
    sde = exact("vp")
    y = torch.arange(200) % 2
    tilt = {"slope": torch.linspace(-1, 1, 200, dtype=torch.float64)}
    for guided in (
        scoresde.classifier(sde, posterior, y, scale=3.0),
        scoresde.toward(sde, lambda x0, slope: slope * x0[:, 0], **tilt),
        scoresde.toward(sde, lambda x0, slope: slope * x0[:, 0], through="denoised", **tilt),
    ):
        some = [
            scoresde.sample(guided, solver="euler", steps=2, generator=generator(), batch_size=b)
            for b in (7, 200)
        ]
        torch.testing.assert_close(*some, rtol=0, atol=1e-8)


def test_copies_and_conversions_carry_the_labels() -> None:
    sde = exact("vp", units=False)
    guided = scoresde.classifier(sde, posterior, y=torch.tensor([0, 1]))
    x = torch.randn(2, 2, generator=generator(), dtype=torch.float64)
    expected = guided.score(x, 0.3)
    for twin in (copy.copy(guided), copy.deepcopy(guided)):
        torch.testing.assert_close(twin.score(x, 0.3), expected)
    assert scoresde.sample(guided, solver="heun", steps=2).shape == (2, 2)
    assert scoresde.sample(guided, draws=3, solver="heun", steps=2).shape == (3, 2, 2)
    twin = copy.deepcopy(guided).float()
    torch.testing.assert_close(twin.score(x.float(), 0.3).double(), expected, rtol=1e-4, atol=1e-4)
    assert len(repr(guided).splitlines()) <= 6


# ------------------------------------------------------------------ a classifier that is fitted


def labelled_data(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    k = torch.multinomial(WEIGHTS, n, replacement=True, generator=g)
    z = MEANS[k] + STDS[k, None] * torch.randn(n, 2, generator=g, dtype=torch.float64)
    return exact("vp").to_data(z), CLASS[k]


@pytest.mark.slow
def test_a_fitted_classifier_comes_near_the_exact_one() -> None:
    """In data units. RMS error of p(y = 1 | z) over the arc .03, of the pull on v .15 of .50."""
    sde = exact("rectified")
    x, y = labelled_data(3000)
    net = scoresde.fit_classifier(sde, (x, y), steps=300, progress=False, generator=generator())
    assert net.classes == 2
    test_x, test_y = labelled_data(2000, seed=1)
    phi = torch.linspace(0.02, math.pi / 2 - 0.002, 2000, dtype=torch.float64)
    phi = phi[torch.randperm(2000, generator=generator())]
    noise = torch.randn(2000, 2, generator=generator(), dtype=torch.float64)
    z = phi.cos()[:, None] * sde.from_data(test_x) + phi.sin()[:, None] * noise
    z.requires_grad_()
    pulls, chances = [], []
    for f in (posterior, net):
        log_p = f(z, phi).double().log_softmax(1)
        chances.append(log_p[:, 1].exp().detach())
        chosen = log_p.gather(1, test_y[:, None]).sum()
        pulls.append(torch.autograd.grad(chosen, z)[0] * phi.tan()[:, None])
    assert float((chances[0] - chances[1]).square().mean().sqrt()) < 0.06
    assert float((pulls[0] - pulls[1]).square().sum(1).mean().sqrt()) < 0.3
    # In pure noise nothing is known, and the pull is finite.
    with torch.no_grad():
        at_noise = net(z, math.pi / 2).softmax(1).double()
    share = y.double().mean()
    torch.testing.assert_close(at_noise[:, 1], share.expand(2000), rtol=1e-5, atol=1e-5)
    guided = scoresde.classifier(sde, net, y=1)
    samples = sde.from_data(scoresde.sample(guided, 500, generator=generator(), steps=15))
    right = posterior(samples, torch.zeros(1, dtype=torch.float64)).argmax(1) == 1
    truth = (
        posterior(
            mixture(1).sample(4000, generator=generator(), dtype=torch.float64),
            torch.zeros(1, dtype=torch.float64),
        ).argmax(1)
        == 1
    )
    assert float(right.double().mean()) > float(truth.double().mean()) - 0.05


def test_a_run_repeats_by_its_generator_and_leaves_the_global_one() -> None:
    sde = exact("vp").float()
    x, y = labelled_data(200)
    before = torch.random.get_rng_state()
    runs = [
        scoresde.fit_classifier(sde, (x, y), steps=20, progress=False, generator=generator())
        for _ in range(2)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    one, other = (torch.cat([p.flatten() for p in run.parameters()]) for run in runs)
    assert torch.equal(one, other)
    assert not runs[0].training
    assert math.isfinite(runs[0].held_out_loss)


def test_images_words_and_a_network_of_one_s_own() -> None:
    """Bright images against dark ones: a class that noise hides only at the end."""
    g = generator()
    y = torch.arange(300) % 2
    x = torch.randn(300, 1, 6, 5, generator=g) + 6.0 * y[:, None, None, None]
    words = ["bright" if k else "a dark one" for k in y.tolist()]
    sde = scoresde.build("vp", "mlp", shape=(1, 6, 5), width=8).standardize(x)
    net = scoresde.fit_classifier(sde, (x, words), steps=20, progress=False, generator=g)
    assert net.words == ("a dark one", "bright")
    assert "classes=2, shape=(1, 6, 5)" in repr(net)
    guided = scoresde.classifier(sde, net, ["bright", "a dark one"])
    assert [int(k) for k in next(v for k, v in guided.condition.items() if k.endswith("y"))] == [
        1,
        0,
    ]
    got = sde.from_data(scoresde.sample(guided, solver="heun", steps=5, generator=g)).mean(1)
    assert float(got[0] - got[1]) > 0.1  # of 2

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, z: Tensor, u: Tensor) -> Tensor:
            assert z.shape[1:] == (1, 6, 5)
            mean = self.weight * z.flatten(1).mean(1)
            return torch.stack([-mean, mean], 1)

    own = Own()
    made = scoresde.fit_classifier(
        sde, (x, y), net=own, steps=60, lr=0.2, progress=False, generator=g
    )
    assert made.net is own
    assert float(own.weight.detach()) > 2.0
    assert made.held_out_loss < 0.5


def test_a_classifier_that_learns_nothing_says_so() -> None:
    sde = exact("vp").float()
    x, y = labelled_data(60)
    y = y[torch.randperm(60, generator=generator(1))]
    with pytest.warns(UserWarning, match="has learnt nothing that holds of held-out rows"):
        net = scoresde.fit_classifier(
            sde, (x, y), steps=40, lr=0.3, progress=False, generator=generator()
        )
    torch.testing.assert_close(
        net(torch.randn(4, 2), 0.1).softmax(1), net.log_frequencies.exp().expand(4, 2)
    )


# ------------------------------------------------------------------ towards a reward


def gaussian(process: str) -> tuple[scoresde.ScoreSDE, Tensor, Tensor]:
    """The model N(mean, covariance) of correlated data, a network of zeros."""
    g = generator(3)
    root = torch.tensor([[2.0, 0.5, 0.0], [0.0, 0.3, 0.1], [0.0, 0.0, 5.0]], dtype=torch.float64)
    x = torch.randn(500, 3, generator=g, dtype=torch.float64) @ root + 10.0
    sde = scoresde.build(process, "mlp", shape=(3,), width=8).standardize(x).double().eval()
    return sde, x.mean(0), torch.cov(x.T, correction=0)


@pytest.mark.parametrize("through", ["network", "denoised"])
def test_a_linear_reward_moves_the_mean_of_a_gaussian(through: str) -> None:
    """N(m, C)·exp(a·x) is N(m + C·a, C), in whitened data units, with an a for each sample."""
    sde, mean, covariance = gaussian("rectified")
    slopes = torch.tensor([[0.2, -1.0, 0.1], [0.0, 2.0, 0.0]], dtype=torch.float64)
    guided = scoresde.toward(
        sde, lambda x0, slope: (slope * x0).sum(1), 2.0, through=through, slope=slopes
    )
    x = mean + torch.randn(2, 3, generator=generator(), dtype=torch.float64)
    got = scoresde.log_prob(guided, x, rtol=1e-8, atol=1e-8)
    for row in range(2):
        law = torch.distributions.MultivariateNormal(
            mean + covariance @ (2 * slopes[row]), covariance
        )
        assert float(got[row] - law.log_prob(x[row])) == pytest.approx(0, abs=1e-4)


def test_the_two_ways_through_are_the_gradients_that_they_state() -> None:
    """On a mixture, by autograd of x̂0 as `denoise` gives it, in standardized units."""
    sde = exact("vp")
    reward = lambda x0: -0.5 * ((x0 - sde.mean) / sde.scale).square().sum(1)  # noqa: E731
    x = sde.to_data(mixture().sample(4, generator=generator(), dtype=torch.float64))
    t = 0.35
    time = as_time(t)
    phi = sde.process.phi(time)
    z = (sde.from_data(x) / sde.process.radius(time)).requires_grad_()
    v = sde.velocity_fn()(z, phi, None)
    x0 = phi.cos() * z - phi.sin() * v
    value = reward(sde.to_data(x0)).sum()
    by_z, by_x0 = torch.autograd.grad(value, [z, x0])
    for through, pull in (
        ("network", phi.tan() ** 2 * phi.cos() * by_z),
        ("denoised", phi.sin() ** 2 * by_x0),
    ):
        guided = scoresde.toward(sde, reward, 1.5, through=through)
        wanted = sde.to_data(x0 + 1.5 * pull)
        torch.testing.assert_close(guided.denoise(x, t)[0], wanted.detach(), rtol=1e-9, atol=1e-9)


def test_rewards_are_what_they_state() -> None:
    g = generator()
    x = torch.randn(3, 2, 4, 5, generator=g, dtype=torch.float64)
    target = torch.randn(3, 2, 4, 5, generator=g, dtype=torch.float64)
    wanted = torch.stack(
        [
            torch.distributions.Normal(target[i], 0.5).log_prob(x[i]).sum()
            - torch.distributions.Normal(target[i], 0.5).log_prob(target[i]).sum()
            for i in range(3)
        ]
    )
    torch.testing.assert_close(energies.pixel(std=0.5)(x, target), wanted)
    torch.testing.assert_close(energies.pixel(target[0], 0.5)(x)[0], wanted[0])
    weight = torch.randn(40, 6, generator=g, dtype=torch.float64)
    encode = lambda x: x.flatten(1) @ weight  # noqa: E731
    embedding = torch.randn(6, generator=g, dtype=torch.float64)
    found = encode(x)
    cosines = (found @ embedding) / (found.norm(dim=1) * embedding.norm())
    torch.testing.assert_close(energies.features(encode, embedding)(x), cosines)
    style = energies.gram(lambda x: x, target[0])
    grams = [torch.einsum("chw,dhw->cd", one, one) / 20 for one in (x[1], target[0])]
    torch.testing.assert_close(style(x)[1], -(grams[0] - grams[1]).square().mean())
    assert repr(style) == "gram(...)"


def test_a_reward_is_the_target_of_particles_at_the_data() -> None:
    sde, mean, _ = gaussian("vp")
    targets = mean + torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    guided: Any = scoresde.toward(sde, energies.pixel(std=2.0), 3.0, target=targets)
    x = torch.randn(2, 3, generator=generator(), dtype=torch.float64)
    rows = torch.tensor([3, 1])
    wanted = -3 * ((x - targets[rows]) / 2).square().sum(1) / 2
    torch.testing.assert_close(guided.log_g(sde.from_data(x), rows), wanted)
    v, value, gradient = guided.twist()(sde.from_data(x), 0.3, rows)
    assert (v.shape, value.shape, gradient.shape) == ((2, 3), (2,), (2, 3))
    assert not any(part.requires_grad for part in (v, value, gradient))


def test_gradients_reach_log_p_of_a_guided_model() -> None:
    """∂log p/∂x of N(m + C·a, C) is −C⁻¹(x − m − C·a)."""
    sde, mean, covariance = gaussian("rectified")
    slope = torch.tensor([0.1, 0.5, 0.0], dtype=torch.float64)
    guided = scoresde.toward(sde, lambda x0: x0 @ slope)
    x = (mean + torch.ones(1, 3, dtype=torch.float64)).requires_grad_()
    scoresde.log_prob(guided, x, solver="rk4", steps=4).sum().backward()
    wanted = -torch.linalg.solve(covariance, x.detach()[0] - mean - covariance @ slope)
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], wanted, rtol=1e-2, atol=1e-2)


# ------------------------------------------------------------------ refused


@functools.cache
def bad_calls() -> dict[str, tuple[Any, type[Exception], str]]:
    sde = exact("vp", units=False).float()
    x, y = labelled_data(40)
    fit = lambda *a, **k: scoresde.fit_classifier(sde, *a, progress=False, **k)  # noqa: E731
    flow = scoresde.build("rectified", "mlp", shape=(2,))
    flow.source = torch.randn(10, 2)
    guide = scoresde.classifier
    logits = lambda z, phi: z  # noqa: E731
    toward = scoresde.toward
    fitted = scoresde.NoisyClassifier(nn.Identity(), torch.ones(2) / 2, exact("vp"))
    bilinear = nn.Bilinear(2, 2, 3)
    bilinear.forward = lambda z, u: z @ bilinear.weight[0]  # type: ignore[method-assign]
    return {
        "no pair": (lambda: fit(x), TypeError, r"data is a pair \(x, labels\)"),
        "labels are numbers": (lambda: fit((x, y.double())), TypeError, "wanted integers"),
        "labels for others": (lambda: fit((x, y[:5])), ValueError, r"\(5,\) for 40 samples"),
        "label beyond": (lambda: fit((x, y), 1), ValueError, "run from 0 to 1, and classes is 1"),
        "negative": (lambda: fit((x, y - 1)), ValueError, "run from -1 to 0"),
        "one class": (lambda: fit((x, 0 * y)), ValueError, "all 40 samples are of class 0"),
        "empty class": (
            lambda: fit((x, y), 5),
            ValueError,
            r"3 of 5 classes have no .*\[2, 3, 4\]",
        ),
        "NaN": (lambda: fit((x / 0 * 0, y)), ValueError, "NaN or infinite values in 40 of 40"),
        "shape": (lambda: fit((x[:, :1], y)), ValueError, r"wanted \(batch, 2\)"),
        "steps": (lambda: fit((x, y), steps=0), ValueError, "steps is at least 1"),
        "net": (lambda: fit((x, y), net=logits), TypeError, "net is an nn.Module"),
        "net's shape": (
            lambda: fit((x, torch.arange(40) % 3), net=bilinear),
            ValueError,
            r"returned \(1, 2\), wanted \(1, 3\)",
        ),
        "keyword": (lambda: fit((x, y), epochs=3), TypeError, "write steps="),
        "no score": (lambda: scoresde.fit_classifier(flow, (x.float(), y)), ValueError, "score"),
        "guide without score": (
            lambda: guide(flow, logits, 0),
            ValueError,
            "classifier needs a score.*a velocity",
        ),
        "no model": (lambda: guide(scoresde.VPSDE(), logits, 0), TypeError, "needs a ScoreSDE"),
        "no classifier": (lambda: guide(sde, 3, 0), TypeError, "net is a classifier"),
        "other units": (
            lambda: guide(sde, fitted, 0),
            ValueError,
            "in the units of another model",
        ),
        "label of none": (
            lambda: guide(sde, logits, 2),
            ValueError,
            "the classifier has 2 classes",
        ),
        "negative label": (lambda: guide(sde, logits, -1), ValueError, "label -1: classes are"),
        "label by word": (lambda: guide(sde, logits, "cat"), TypeError, "knows no words"),
        "label by number": (lambda: guide(sde, logits, 0.5), TypeError, "wanted integers"),
        "label True": (lambda: guide(sde, logits, True), TypeError, "a class, an integer"),
        "labels in rows": (lambda: guide(sde, logits, y[:, None]), ValueError, r"or shape \(n,\)"),
        "scale": (lambda: guide(sde, logits, 0, math.nan), ValueError, "scale"),
        "convention": (
            lambda: guide(sde, logits, 0, input_convention="raw"),
            ValueError,
            "There are: arc, data",
        ),
        "one logit": (lambda: guide(sde, lambda z, phi: z[:, :1], 0), ValueError, "one logit"),
        "no logits": (
            lambda: guide(sde, lambda z, phi: z[0], 0),
            ValueError,
            r"wanted logits \(2",
        ),
        "cut off": (lambda: guide(sde, lambda z, phi: z.detach(), 0), ValueError, "no gradient"),
        "mixed logits": (
            lambda: guide(sde, lambda z, phi: z - z.mean(0), 0),
            ValueError,
            "on the other rows",
        ),
        "infinite logits": (lambda: guide(sde, lambda z, phi: z / 0, 0), ValueError, "infinite"),
        "interval": (
            lambda: guide(sde, logits, 0, interval=(2, 1)),
            ValueError,
            r"interval\[1\] is greater",
        ),
        "rows of y": (
            lambda: scoresde.sample(guide(sde, logits, y[:3]), 4),
            ValueError,
            "y has 3 rows for 4",
        ),
        "no function": (lambda: toward(sde, 1.0), TypeError, "log_g is a function of samples"),
        "one number": (lambda: toward(sde, lambda x0: x0.sum()), ValueError, r"wanted \(2,\)"),
        "no gradient": (
            lambda: toward(sde, lambda x0: x0.detach()[:, 0]),
            ValueError,
            "has no gradient by x0",
        ),
        "infinite": (
            lambda: toward(sde, lambda x0: x0[:, 0] / 0),
            ValueError,
            "NaN or infinite near",
        ),
        "mixed rows": (
            lambda: toward(sde, lambda x0: x0[:, 0] - x0.mean()),
            ValueError,
            "on the other samples",
        ),
        "through": (
            lambda: toward(sde, lambda x0: x0[:, 0], through="x0"),
            ValueError,
            "There are",
        ),
        "NaN target": (
            lambda: toward(sde, energies.pixel(), target=[[math.nan, 0.0]]),
            ValueError,
            "target has NaN",
        ),
        "target's shape": (
            lambda: toward(sde, energies.pixel([1.0])),
            ValueError,
            r"shape \(1,\), and samples \(2,\)",
        ),
        "two numbers of rows": (
            lambda: toward(sde, lambda x0, a, b: x0[:, 0], a=torch.ones(2), b=torch.ones(3)),
            ValueError,
            "different numbers of rows",
        ),
        "a failure": (
            lambda: toward(sde, lambda x0: x0 @ torch.ones(7)),
            ValueError,
            r"log_g\(x0\) fails for x0 of shape \(2, 2\)",
        ),
        "no target": (lambda: toward(sde, energies.pixel()), ValueError, "pixel.* has no target"),
        "two targets": (
            lambda: toward(sde, energies.pixel([0.0, 0.0]), target=x[:1]),
            ValueError,
            "of its own",
        ),
        "std": (lambda: energies.pixel([0.0], std=0), ValueError, "std is greater than 0"),
        "saved": (
            lambda: scoresde.save(guide(sde, logits, 0), "x"),
            TypeError,
            r"save those, its \.model",
        ),
        "trained": (
            lambda: scoresde.fit(toward(sde, lambda x0: x0[:, 0]), x),
            TypeError,
            "fit those",
        ),
    }


@pytest.mark.parametrize("case", list(bad_calls()))
def test_bad_calls_get_a_sentence(case: str) -> None:
    call, error, words = bad_calls()[case]
    with pytest.raises(error, match=words) as told:
        call()
    assert len(str(told.value)) < 400
