"""Guided models: classifier-free guidance, autoguidance, products and powers of models."""

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
from scoresde import Derived, ScoreSDE
from scoresde.toy import GaussianMixture

PLANE = GaussianMixture([[-1.4, 0.2], [0.1, 1.1], [0.9, -0.9]], [0.4, 0.5, 0.6])
LINE = GaussianMixture([[-1.5], [-0.5], [0.5], [1.5]], 0.3)
Y = torch.tensor([0, 2, 1, 1, 0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Classes(nn.Module):
    """The exact output for the components of class y of a mixture, and for all without a class."""

    def __init__(
        self, process: scoresde.Process, law: GaussianMixture, classes: list[list[int]]
    ) -> None:
        super().__init__()
        self.condition_shapes: dict[str, tuple[int, ...]] = {"y": ()}
        self.laws = [law, *(part(law, rows) for rows in classes)]
        self.nets = nn.ModuleList(scoresde.oracle(each, process).net for each in self.laws)

    def drop_conditions(self, condition: Any, generator: Any) -> Any:
        return condition

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            out: Tensor = self.nets[0](x, t)
            return out
        return torch.stack([net(x, t) for net in self.nets])[1 + y, torch.arange(len(x))]


def part(law: GaussianMixture, rows: list[int]) -> GaussianMixture:
    return GaussianMixture(law._m[rows], law._s.expand(len(law._m), 1)[rows, 0], law._w[rows])


def exact(
    process: str = "vp",
    law: GaussianMixture = PLANE,
    classes: tuple[list[int], ...] = ([0], [1], [2]),
) -> ScoreSDE:
    """The exact conditional model in units of its own, in float64."""
    path = scoresde.PROCESSES.build(process)
    net = Classes(path, law, list(classes))
    sde = ScoreSDE(path, net, shape=tuple(law.shape), input_convention="raw").double().eval()
    sde.mean.copy_(torch.arange(5.0, 5.0 + sde.dim))
    sde.scale.copy_(torch.logspace(-1, 1, sde.dim))
    return sde


def trained_like(seed: int = 0, **options: Any) -> ScoreSDE:
    """A small network with random weights, whose trace is known in closed form."""
    sde = scoresde.build("vp", "mlp", shape=(2,), width=16, depth=2, **options)
    g = generator(seed)
    with torch.no_grad():
        for p in sde.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return sde.double().eval()


def line() -> ScoreSDE:
    """1-D, four components, the second and fourth of which are class 1."""
    return exact("rectified", LINE, ([0, 2], [1, 3]))


def some_data(sde: ScoreSDE, n: int = 5) -> Tensor:
    z = torch.randn(n, sde.dim, generator=generator(1), dtype=torch.float64)
    return sde.to_data(z)


# ------------------------------------------------------------------ classifier-free guidance


@pytest.mark.parametrize("beta", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_scales_1_and_0_are_the_parts_bit_for_bit(beta: float) -> None:
    """By every solver of score models, with a class for each sample, and log_prob."""
    sde = exact()
    guided = scoresde.classifier_free(sde.given(y=Y), beta)
    expected = sde.given(y=Y) if beta else sde.given()
    for solver in ORDINARY:
        how: dict[str, Any] = {"solver": solver, "steps": 3, "batch_size": 4}
        got, wanted = (
            scoresde.sample(m, 5, generator=generator(), **how) for m in (guided, expected)
        )
        assert torch.equal(got, wanted), solver
    how = {"solver": "heun", "steps": 4, "batch_size": 2}
    x = some_data(sde)
    assert torch.equal(scoresde.log_prob(guided, x, **how), scoresde.log_prob(expected, x, **how))


def test_the_score_is_the_stated_one_within_its_interval() -> None:
    sde = exact("ve")
    guided = scoresde.classifier_free(sde.given(y=Y), 3.0, interval=(0.1, 2.0))
    x = some_data(sde)
    levels = sde.process.time(torch.tensor([0.05, 0.5, 1.9, 2.1, 10.0]).double().atan())
    ones = sde.given(y=Y).score(x, levels)
    wanted = 3 * ones - 2 * sde.given().score(x, levels)
    outside = torch.tensor([0, 3, 4])
    wanted[outside] = ones[outside]
    torch.testing.assert_close(guided.score(x, levels), wanted, rtol=1e-9, atol=1e-9)
    for i, t in enumerate(levels.tolist()):
        torch.testing.assert_close(guided.score(x, t)[i], wanted[i], rtol=1e-9, atol=1e-9)


def test_rescaled_velocities_have_the_spread_of_the_conditional_one() -> None:
    """Lin et al. 2024, eq. 15 and 16, on velocities, sample by sample."""
    sde = exact()
    z = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    one = sde.given(y=Y).velocity_fn()(z, 0.7, None)
    zero = sde.given().velocity_fn()(z, 0.7, None)
    both = 3 * one - 2 * zero
    full = both * (one.std(1) / both.std(1))[:, None]
    guided = scoresde.classifier_free(sde.given(y=Y), 3.0, rescale=0.7)
    got = guided.velocity_fn()(z, 0.7, None)
    torch.testing.assert_close(got, 0.7 * full + 0.3 * both)
    rows = torch.tensor([3, 0])
    some = guided.velocity_fn()(z[rows], 0.7, rows)
    torch.testing.assert_close(some, got[rows])


def test_a_weaker_model_guides_away() -> None:
    """Autoguidance: both are conditioned, and 2·good − weak is what guides."""
    good, weak = (trained_like(seed, classes=3) for seed in (0, 1))
    guided = scoresde.classifier_free(good, 2.0, without=weak).given(y=Y)
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    wanted = 2 * good.given(y=Y).score(x, 0.4) - weak.given(y=Y).score(x, 0.4)
    torch.testing.assert_close(guided.score(x, 0.4), wanted)


class Untraced(Derived):
    """A model without the trace in closed form."""

    def velocity_fn(self, *, raw: bool = False) -> Any:
        return self.model.velocity_fn(raw=raw)


def test_closed_form_traces_add_up() -> None:
    sde = trained_like(classes=3, condition_dropout=0.1)
    other = trained_like(1, classes=3)
    x = some_data(sde)
    how: dict[str, Any] = {"solver": "heun", "steps": 3, "batch_size": 2}
    for guided in (
        scoresde.classifier_free(sde.given(y=Y), 2.5),
        scoresde.classifier_free(sde.given(y=Y), 2.5, interval=(0.2, 3.0)),
        scoresde.classifier_free(sde.given(y=Y), 2.5, without=other.given(y=0)),
        scoresde.compose([(sde.given(y=Y), 1.5), (other.given(y=1), -0.7)]),
        scoresde.temper(sde.given(y=1), 2.0),
    ):
        assert guided.traces()
        untraced = Untraced(guided)
        assert not untraced.traces()
        got, wanted = (scoresde.log_prob(m, x, **how) for m in (guided, untraced))
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-8)
    assert not scoresde.classifier_free(sde.given(y=Y), 2.5, rescale=0.5).traces()


def test_samples_do_not_depend_on_their_batch() -> None:
    sde = exact()
    y = torch.arange(200) % 3
    for guided in (
        scoresde.classifier_free(sde.given(y=y), 3.0, rescale=0.5),
        scoresde.compose([(sde.given(y=y), 1.0), (sde.given(y=0), 0.5)]),
    ):
        some = [
            scoresde.sample(guided, solver="euler", steps=2, generator=generator(), batch_size=b)
            for b in (7, 200)
        ]
        torch.testing.assert_close(*some, rtol=0, atol=1e-8)


def grid() -> tuple[Tensor, float]:
    """Points of the line in data units, and their distance."""
    z = torch.linspace(-4.0, 4.0, 300, dtype=torch.float64)[:, None]
    x = line().to_data(z)
    return x, float(x[1] - x[0])


def test_guidance_is_not_the_power_of_the_classifier() -> None:
    """Of p(x)·p(y | x)³ the ODE is .522 nats away (KL by quadrature, ± .005), on 4 components."""
    sde = line()
    x, dx = grid()
    how: dict[str, Any] = {"solver": "rk4", "steps": 25}
    plain = scoresde.log_prob(sde.given(), x, **how)
    given = scoresde.log_prob(sde.given(y=1), x, **how)
    for beta, expected in ((1.0, 0.0), (3.0, 0.522)):
        guided = scoresde.classifier_free(sde.given(y=1), beta)
        found = scoresde.log_prob(guided, x, **how)
        target = (1 - beta) * plain + beta * given
        target = target - target.logsumexp(0) - math.log(dx)
        mass = found.exp() * dx
        assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
        assert float((mass * (found - target)).sum()) == pytest.approx(expected, abs=0.005)


def kolmogorov(samples: Tensor, x: Tensor, mass: Tensor) -> float:
    """The largest distance of an empirical distribution function from one on a grid."""
    order = samples.flatten().sort().values
    position = torch.searchsorted(order, x.flatten().contiguous(), right=True)
    return float((position / len(order) - mass.cumsum(0)).abs().max())


def test_the_ode_and_the_sde_of_a_guided_model_differ() -> None:
    """Kolmogorov distance from the ODE's law: .01 of the ODE and .11 of the SDE with 8,000 samples.

    Of 2,000 samples of that law, fewer than 1 in 1,000 sets are beyond .05.
    """
    sde = line()
    guided = scoresde.classifier_free(sde.given(y=1), 3.0)
    x, dx = grid()
    mass = scoresde.log_prob(guided, x, solver="rk4", steps=25).exp() * dx
    ode = scoresde.sample(guided, 2000, solver="dpmpp_2m", steps=30, generator=generator())
    noisy = scoresde.sample(guided, 2000, solver="dpmpp_2m_sde", steps=60, generator=generator())
    assert kolmogorov(ode, x, mass) < 0.05
    assert kolmogorov(noisy, x, mass) > 0.08


# ------------------------------------------------------------------ products and powers


def normal(mean: list[float], std: float, process: str = "rectified") -> ScoreSDE:
    """N(mean, std²) in standardized units, with units of its own."""
    law = GaussianMixture([mean], std)
    sde = scoresde.oracle(law, scoresde.PROCESSES.build(process)).double().eval()
    sde.mean.copy_(torch.tensor([3.0, -1.0]))
    sde.scale.copy_(torch.tensor([0.1, 20.0]))
    sde.root.copy_(torch.tensor([[0.8, 0.2], [0.2, 1.3]]))
    return sde


@pytest.mark.parametrize("process", ["rectified", pytest.param("vp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("parts", "mean", "std"),
    [
        ([([1.0, 0.0], 1.0), ([-0.4, 0.6], 1.0)], [0.3, 0.3], 0.7 / math.sqrt(2)),
        ([([1.0, 0.0], 2.0), ([-0.5, 0.6], 1.0)], [0.5, 0.2], 0.7 / math.sqrt(3)),
        ([([1.0, 0.0], 1.5), ([-0.4, 0.6], -1.0)], [3.8, -1.2], 0.7 / math.sqrt(0.5)),
        ([([1.0, 0.5], 0.5)], [1.0, 0.5], 0.7 / math.sqrt(0.5)),
        ([([1.0, 0.5], 4.0)], [1.0, 0.5], 0.7 / 2),
    ],
    ids=["product", "powers", "negation", "hot", "cold"],
)
def test_gaussians_of_one_covariance_are_composed_exactly(
    parts: Any, mean: list[float], std: float, process: str
) -> None:
    """Π N(m_i, C)^a_i is N(Σ a_i·m_i/s, C/s), s = Σ a_i: log p and the path of every sample.

    VP ends at φ = 1.564, beyond which parts are not asked: 8e-6.
    """
    models = [(normal(m, 0.7, process), a) for m, a in parts]
    product = scoresde.temper(*models[0]) if len(models) == 1 else scoresde.compose(models)
    law = normal(mean, std, process)
    x = law.to_data(torch.tensor(mean).double() + std * torch.randn(4, 2, generator=generator()))
    how: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}
    tolerance = 2e-5 if process == "vp" else 1e-6
    got = scoresde.log_prob(product, x, **how)
    torch.testing.assert_close(got, scoresde.log_prob(law, x, **how), rtol=0, atol=tolerance)
    torch.testing.assert_close(product.score(x, 0.3), law.score(x, 0.3), rtol=1e-8, atol=1e-8)
    some, wanted = (scoresde.sample(m, 4, generator=generator(), **how) for m in (product, law))
    gap = law.from_data(some) - law.from_data(wanted)
    assert float(gap.abs().max()) < tolerance


# ------------------------------------------------------------------ conditions


def values(model: Any) -> list[list[int]]:
    """The classes of each part of a model."""
    return [part.condition["y"].tolist() for part in model.models.values() if part.condition]


def test_parts_keep_different_conditions_of_one_name() -> None:
    sde = exact()
    both: Any = scoresde.compose([(sde.given(y=1), 1.0), (sde.given(y=Y), 0.5)])
    assert {name: len(value) for name, value in both.condition.items()} == {
        "model.y": 1,
        "part1.y": 5,
    }
    again = both.with_condition(both.condition)
    assert values(both) == values(again) == [[1], Y.tolist()]
    nested = scoresde.temper(both, 2.0)
    assert values(nested.with_condition(nested.condition).model) == values(both)
    rows = torch.tensor([4, 1])
    assert values(both.select_conditions(rows)) == [[1], [0, 2]]
    assert values(both.slice_conditions(1, 3, 5)) == [[1], [2, 1]]
    x = some_data(sde)
    wanted = sde.given(y=1).score(x, 1e-9) + 0.5 * sde.given(y=Y).score(x, 1e-9)
    torch.testing.assert_close(both.score(x, 1e-9), wanted, rtol=1e-4, atol=1e-4)
    assert len(scoresde.sample(both, solver="euler", steps=1)) == 5
    with pytest.raises(ValueError, match=r"\(\.model, \.part1\) have different y"):
        both.given(y=2)
    same = scoresde.compose([(sde.given(y=1), 1.0), (sde.given(y=1), 0.5)])
    assert values(same.given(y=2)) == [[2], [2]]


def test_conditions_given_later_reach_the_conditional_part_alone() -> None:
    sde = exact()
    x = some_data(sde)
    before = scoresde.classifier_free(sde.given(y=Y), 2.0)
    after = scoresde.classifier_free(sde, 2.0).given(y=Y)
    torch.testing.assert_close(after.score(x, 0.3), before.score(x, 0.3), rtol=0, atol=0)
    again = scoresde.classifier_free(sde.given(y=0), 2.0).given().given(y=Y)
    torch.testing.assert_close(again.score(x, 0.3), before.score(x, 0.3), rtol=0, atol=0)
    chosen = before.select_conditions(torch.tensor([1, 4]))
    torch.testing.assert_close(chosen.score(x[[1, 4]], 0.3), before.score(x, 0.3)[[1, 4]])
    assert before.without.unconditional
    solution = scoresde.solve(after, solver="heun", steps=3)
    assert solution.x.shape == (2, 5, 2)


def test_guided_models_are_guided() -> None:
    """A reward on top of guidance, guidance on top of a reward, tempered: scores add up."""
    sde = exact()
    x = some_data(sde)
    slope = torch.linspace(-1, 1, 5, dtype=torch.float64)
    t = 1e-9  # where x̂0 is x
    reward = lambda x0, slope: slope * x0[:, 0]  # noqa: E731
    pull = torch.stack([slope, torch.zeros(5, dtype=torch.float64)], 1)
    guided = scoresde.classifier_free(sde.given(y=Y), 2.0)
    plain = 2 * sde.given(y=Y).score(x, t) - sde.given().score(x, t)
    top = scoresde.toward(guided, reward, slope=slope)
    torch.testing.assert_close(top.score(x, t), plain + pull, rtol=1e-4, atol=1e-4)
    below = scoresde.classifier_free(scoresde.toward(sde, reward, slope=slope).given(y=Y), 2.0)
    torch.testing.assert_close(below.score(x, t), plain + pull, rtol=1e-4, atol=1e-4)
    cold = scoresde.temper(top, 3.0)
    torch.testing.assert_close(cold.score(x, t), 3 * (plain + pull), rtol=1e-3, atol=1e-3)
    for model in (top, below, cold):
        whole = scoresde.sample(model, solver="euler", steps=3, generator=generator())
        parts = scoresde.sample(
            model, solver="euler", steps=3, generator=generator(), batch_size=2
        )
        torch.testing.assert_close(whole, parts)
        chosen = model.select_conditions(torch.tensor([3, 0]))
        torch.testing.assert_close(chosen.score(x[[3, 0]], t), model.score(x, t)[[3, 0]])


def test_copies_conversions_and_names() -> None:
    sde = trained_like(classes=3, condition_dropout=0.1)
    guided = scoresde.classifier_free(sde.given(y=Y), 2.0)
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    expected = guided.score(x, 0.3)
    for twin in (copy.copy(guided), copy.deepcopy(guided)):
        torch.testing.assert_close(twin.score(x, 0.3), expected, rtol=0, atol=0)
    single = copy.deepcopy(guided).float()
    assert single.score(x.float(), 0.3).dtype == torch.float32
    product = scoresde.compose([(sde.given(y=1), 1.0), (guided, 2.0)])
    for text in (repr(guided), repr(product)):
        assert len(text) < 500
        assert "Linear" not in text
    with pytest.raises(TypeError, match=r"fit those, its \.model and \.without"):
        scoresde.fit(guided, x)
    with pytest.raises(TypeError, match=r"save those, its \.model and \.part1"):
        scoresde.save(product, "nowhere")


def test_models_of_pairs_are_guided_without_a_classifier_alone() -> None:
    """Reflowed models and those with a source have velocities, which guidance combines."""
    flow = scoresde.build(
        "rectified", "mlp", shape=(2,), width=8, classes=3, condition_dropout=0.1
    )
    flow.source = GaussianMixture([[4.0, 0.0]], 1.0)
    assert flow.capabilities == {"velocity"}
    guided = scoresde.classifier_free(flow.given(y=1), 2.0)
    assert scoresde.sample(guided, 3, solver="euler", steps=2).shape == (3, 2)
    assert scoresde.log_prob(guided, torch.zeros(2, 2), solver="euler", steps=2).shape == (2,)
    reflowed = scoresde.reflow(guided, 8, solver="euler", steps=2, progress=False)
    assert len(reflowed) == 8
    logits = lambda z, phi: z  # noqa: E731
    for call in (
        lambda: scoresde.classifier(flow, logits, 0),
        lambda: scoresde.toward(flow, lambda x0: x0[:, 0]),
        lambda: scoresde.compose([(flow, 1.0)]),
        lambda: scoresde.temper(flow, 2.0),
    ):
        with pytest.raises(ValueError, match="needs a score, and this model has only a velocity"):
            call()


def test_tables_are_guided() -> None:
    pandas = pytest.importorskip("pandas")
    g = generator()
    frame = pandas.DataFrame(
        {
            "size": torch.randn(60, generator=g).double().numpy(),
            "weight": torch.randn(60, generator=g).double().numpy(),
            "kind": ["cat", "dog", "dog"] * 20,
        }
    )
    table = scoresde.Table(frame)
    sde = scoresde.build(
        "vp", "mlp", shape=table.shape, width=8, classes=table.classes, condition_dropout=0.1
    )
    scoresde.fit(sde, table, steps=3, validation=None, progress=False, generator=g)
    guided = scoresde.classifier_free(sde, 2.0)
    some = scoresde.sample(guided, 5, solver="euler", steps=2, generator=g)
    assert list(some.columns) == list(frame.columns)
    assert set(some["kind"]) <= {"cat", "dog"}
    assert scoresde.log_prob(guided, frame[:4], solver="euler", steps=2).shape == (4,)
    with pytest.raises(ValueError, match=r"name one by given\(y=...\)"):
        scoresde.sample(scoresde.toward(sde, lambda x0: x0[:, 0]), 3)
    steered = scoresde.toward(sde.given(y=0), lambda x0: x0[:, 0])
    rows = scoresde.sample(steered, 3, solver="euler", steps=2)
    assert list(rows.columns) == list(frame.columns)
    assert set(rows["kind"]) == {"cat"}
    mixed = scoresde.compose([(sde.given(y=0), 1.0), (sde.given(y=1), 1.0)])
    with pytest.raises(ValueError, match="name one by given"):
        scoresde.sample(mixed, 3)


# ------------------------------------------------------------------ refused


@functools.cache
def bad_calls() -> dict[str, tuple[Any, type[Exception], str]]:
    sde = exact()
    view = sde.given(y=1)
    free = scoresde.classifier_free
    compose = scoresde.compose
    plain = scoresde.build("vp", "mlp", shape=(2,), width=8)
    always = scoresde.build("vp", "mlp", shape=(2,), width=8, classes=3, condition_dropout=0)
    other = exact()
    other.mean.add_(1.0)
    consistent = ScoreSDE(scoresde.VPSDE(), plain.net, shape=(2,), outcome="endpoint")
    return {
        "scale": (
            lambda: free(view, math.inf),
            ValueError,
            "scale is less than|scale is finite|scale",
        ),
        "scale by word": (lambda: free(view, "2"), TypeError, "scale is a number, got '2'"),
        "process": (lambda: free(scoresde.VPSDE(), 2.0), TypeError, "needs a ScoreSDE"),
        "no conditions": (
            lambda: free(plain, 2.0),
            ValueError,
            "takes none; without= guides away",
        ),
        "no conditions but a reward's": (
            lambda: free(scoresde.toward(plain, lambda x0, a: a * x0[:, 0], a=1.0), 2.0),
            ValueError,
            "takes none; without= guides away",
        ),
        "never without": (
            lambda: free(always.given(y=1), 2.0),
            ValueError,
            "never shown data without",
        ),
        "interval": (lambda: free(view, 2.0, interval=0.5), TypeError, r"a pair \(low, high\)"),
        "interval's end": (lambda: free(view, 2.0, interval=(1, 1)), ValueError, "greater than 1"),
        "negative noise": (lambda: free(view, 2.0, interval=(-1, 1)), ValueError, "at least 0"),
        "rescale": (lambda: free(view, 2.0, rescale=2), ValueError, "rescale"),
        "one number": (
            lambda: free(line().given(y=1), 2.0, rescale=0.5),
            ValueError,
            "over a sample's elements",
        ),
        "another process": (
            lambda: free(view, 2.0, without=exact("ve")),
            ValueError,
            r"\.without has the process VESDE",
        ),
        "other units": (
            lambda: free(view, 2.0, without=other),
            ValueError,
            r"\.without has another mean",
        ),
        "jumps": (lambda: free(consistent, 2.0, without=plain), ValueError, "where the ODE ends"),
        "rows": (
            lambda: scoresde.sample(free(sde.given(y=Y), 2.0), 4),
            ValueError,
            "has 5 rows for 4",
        ),
        "class": (lambda: free(always, 2.0, without=plain).given(y=7), ValueError, "y"),
        "no such condition": (
            lambda: free(view, 2.0).given(z=1),
            ValueError,
            "takes no condition 'z'",
        ),
        "power of particles": (
            lambda: free(view, 2.0, rescale=0.5).factors,
            ValueError,
            "make no power of densities",
        ),
        "no pairs": (lambda: compose(view), TypeError, r"pairs \[\(model, power\), \.\.\.\]"),
        "nothing": (lambda: compose([]), ValueError, "at least one"),
        "powers of sum 0": (
            lambda: compose([(view, 1.0), (view, -1.0)]),
            ValueError,
            "add up to 0: a density needs",
        ),
        "power": (lambda: compose([(view, math.nan)]), ValueError, "power"),
        "power 0": (lambda: scoresde.temper(view, 0.0), ValueError, "power is greater than 0"),
        "other space": (lambda: compose([(view, 1), (plain, 1)]), ValueError, r"\.part1 has"),
        "part": (lambda: compose([(view, 1), (3, 1)]), TypeError, "needs a ScoreSDE, got int"),
        "no network": (lambda: compose([("vp", 1)]), TypeError, "needs a ScoreSDE, got str"),
        "state dict": (lambda: free(view, 2.0).state_dict(), AttributeError, "has no state_dict"),
    }


@pytest.mark.parametrize("case", list(bad_calls()))
def test_bad_calls_get_a_sentence(case: str) -> None:
    call, error, words = bad_calls()[case]
    with pytest.raises(error, match=words) as told:
        call()
    assert len(str(told.value)) < 400
