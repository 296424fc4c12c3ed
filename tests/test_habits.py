"""What people are used to: seeds, progress bars, complete names, short reprs, small tables."""

from __future__ import annotations

import base64
import inspect
import io
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import scoresde
from scoresde import dequantize, measurements, metrics, toy, transforms
from scoresde.backbones.coupling_layers import FLOWS
from scoresde.backbones.keywords import FlowOptions, Name, NetworkOptions, StageOptions
from scoresde.common import progress
from scoresde.common.seeds import takes_seed
from scoresde.density.bound_result import Bound
from scoresde.model.derived import Derived
from scoresde.sampling.failures import _move
from scoresde.sampling.solution import Solution
from scoresde.solvers.options import SolverOptions
from scoresde.training.history import History
from scoresde.training.keywords import FitKeywords

MIXTURE = toy.EightGaussians()
SDE = scoresde.oracle(MIXTURE, scoresde.RectifiedFlow())
X = MIXTURE.sample(12, seed=5)
BUMPS = toy.GaussianMixture([[0.125], [0.375], [0.625], [0.875]], stds=0.05)
QUICK: dict[str, Any] = {"solver": "heun", "steps": 4}
LOOSE: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2}
PROBED: dict[str, Any] = {"trace": "hutchinson_gaussian", "probes": 2, **QUICK}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------ seed=


def small(**options: Any) -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build("vp", "mlp", shape=(2,), width=8, depth=1, **options)


def fitted(**how: Any) -> Tensor:
    sde = small()
    scoresde.fit(sde, X, steps=3, batch_size=4, validation=None, progress=False, **how)
    return torch.cat([p.detach().flatten() for p in sde.net.parameters()])


def classified(**how: Any) -> Tensor:
    labels = torch.arange(12) % 2
    options: dict[str, Any] = {"steps": 4, "progress": False, **how}
    net: Any = scoresde.fit_classifier(SDE, (X, labels), **options)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def trained_posterior(**how: Any) -> Tensor:
    theta = torch.linspace(-0.9, 0.9, 80).reshape(40, 2)
    options: dict[str, Any] = {"steps": 3, "progress": False, **how}
    post = scoresde.posterior((-torch.ones(2), torch.ones(2)), theta, theta, **options)
    return torch.cat([p.detach().flatten() for p in post.sde.net.parameters()])


def untrained_posterior() -> scoresde.Posterior:
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,), vector=2, width=8, depth=1)
    return scoresde.Posterior(sde, (-5 * torch.ones(2), 5 * torch.ones(2)))


POSTERIOR = untrained_posterior()
STAGE = scoresde.first_stage("vae", shape=(6,), latent=(2,), width=16)
LATENT = scoresde.Latent(STAGE, SDE)
RANKED = torch.randn(9, 20, 2, generator=generator(1)).round(decimals=0)
TRUTH = torch.randn(9, 2, generator=generator(2)).round(decimals=0)
PIXELS = torch.arange(4).repeat(4)[:, None]
ORACLE = scoresde.oracle(BUMPS, scoresde.RectifiedFlow())
GUIDED = scoresde.observe(SDE, measurements.Linear([[1.0, 1.0]], noise=1.0), y=[3.0])
ZEROS = torch.zeros(2, 6)
MASKED = torch.tensor([[0.7, torch.nan]])

SEEDED: dict[str, Callable[..., Any]] = {
    "sample": lambda **k: scoresde.sample(SDE, 5, **QUICK, **k),
    "solve": lambda **k: scoresde.solve(SDE, 5, **QUICK, **k).x,
    "summary": lambda **k: scoresde.summary(SDE, 5, **QUICK, **k).mean,
    "likelihood": lambda **k: scoresde.likelihood(SDE, X, **PROBED, **k).stderr,
    "log_prob": lambda **k: scoresde.log_prob(SDE, X, **PROBED, **k),
    "sample_and_log_prob": lambda **k: scoresde.sample_and_log_prob(SDE, 5, **QUICK, **k)[1],
    "elbo": lambda **k: scoresde.elbo(SDE, X, draws=4, **k).log_prob,
    "vlb": lambda **k: scoresde.vlb(SDE, X, steps=8, draws=4, **k).log_prob,
    "latent_bound": lambda **k: (
        scoresde.latent_bound(LATENT, torch.zeros(2, 6), 3, **QUICK, **k).log_prob
    ),
    "bits_per_dim": lambda **k: (
        scoresde.bits_per_dim(ORACLE, PIXELS, dequantize.Uniform(4), **QUICK, **k).bits
    ),
    "TruncatedNormal.fitted": lambda **k: torch.tensor(
        dequantize.TruncatedNormal.fitted(ORACLE, PIXELS, 4, **QUICK, **k).std
    ),
    "noisy": lambda **k: dequantize.Uniform(4).noisy(PIXELS, **k)[0],
    "Dequantized.sample": lambda **k: dequantize.Uniform(4).dataset(PIXELS).sample(5, **k),
    "Flip": lambda **k: transforms.Flip()(torch.arange(64.0).reshape(16, 1, 2, 2), **k),
    "Dequantize": lambda **k: transforms.Dequantize()(PIXELS, **k),
    "apply": lambda **k: transforms.apply([transforms.Dequantize()], PIXELS, **k),
    "reflow": lambda **k: scoresde.reflow(SDE, 5, **QUICK, **k).latent,
    "edit": lambda **k: scoresde.edit(SDE, X, 0.5, **QUICK, **k),
    "impute": lambda **k: scoresde.impute(SDE, MASKED, particles=4, steps=4, **k),
    "particles": lambda **k: scoresde.particles(GUIDED, 3, 4, steps=4, **k).x,
    "Posterior.sample": lambda **k: POSTERIOR.sample((3,), x=torch.zeros(2), **QUICK, **k),
    "Posterior.map": lambda **k: POSTERIOR.map(
        torch.zeros(2), draws=4, steps=0, solver="euler", **k
    ),
    "calibration": lambda **k: torch.tensor(
        metrics.calibration(POSTERIOR, TRUTH, TRUTH, draws=5, density=False, **k).p_value
    ),
    "coverage": lambda **k: torch.tensor(
        metrics.coverage(TRUTH[:, 0], RANKED[:, :, 0], **k).p_value
    ),
    "sbc": lambda **k: torch.tensor(metrics.sbc(TRUTH, RANKED, **k).p_value),
    "tarp": lambda **k: torch.tensor(metrics.tarp(TRUTH, RANKED, **k).p_value),
    "energy_test": lambda **k: torch.tensor(metrics.energy_test(X, X + 1, 50, **k)),
    "classifier_test": lambda **k: torch.tensor(
        metrics.classifier_test(X.repeat(4, 1), X.repeat(4, 1) + 0.1, steps=3, **k).accuracy
    ),
    "c2st": lambda **k: torch.tensor(metrics.c2st(X[:4], X[:4] + 0.5, 2, **k)),
    "sliced_wasserstein": lambda **k: torch.as_tensor(
        metrics.sliced_wasserstein(X, X * 2, projections=4, **k)
    ),
    "noise_floor": lambda **k: torch.tensor(
        metrics.noise_floor(metrics.energy_distance, MIXTURE, 8, **k).mean
    ),
    "straightness": lambda **k: torch.tensor(
        metrics.straightness(SDE, 6, steps=8, solver="heun", **k).displacement.value
    ),
    "nfe_for_error": lambda **k: torch.tensor(
        metrics.nfe_for_error(SDE, 0.5, n=4, most=8, **k).error
    ),
    "CouplingFlow.sample": lambda **k: scoresde.coupling_flow((2,)).sample(4, **k),
    "sample_latent": lambda **k: STAGE.sample_latent(torch.zeros(3, 6), **k),
    "Encoded.sample": lambda **k: STAGE.encode(torch.zeros(3, 6)).sample(**k),
    "toy.sample": lambda **k: toy.Moons().sample(4, **k),
    "fit": fitted,
    "fit_classifier": classified,
    "posterior": trained_posterior,
    "loss": lambda **k: scoresde.loss(SDE, X, **k),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_is_the_generator_of_that_seed(name: str) -> None:
    state = torch.random.get_rng_state()
    call = SEEDED[name]
    found = call(seed=3)
    assert torch.equal(found, call(generator=generator(3)))
    with pytest.raises(TypeError, match="give seed= or generator=, not both"):
        call(seed=3, generator=generator(3))
    with pytest.raises(TypeError, match=r"seed is an integer, got 0\.5"):
        call(seed=0.5)
    torch.random.set_rng_state(state)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_seeds_draw_others() -> None:
    for name in ("sample", "elbo", "reflow", "particles", "fit", "toy.sample"):
        assert not torch.equal(SEEDED[name](seed=3), SEEDED[name](seed=4)), name


def test_a_seed_in_log_prob_of_a_posterior() -> None:
    how: dict[str, Any] = {"trace": "hutchinson_gaussian", "probes": 1, **QUICK}
    theta = torch.zeros(3, 2)
    found = POSTERIOR.log_prob(theta, x=torch.zeros(2), normalized=False, seed=1, **how)
    again = POSTERIOR.log_prob(
        theta, x=torch.zeros(2), normalized=False, generator=generator(1), **how
    )
    assert torch.equal(found, again)


CALLBACKS = {"__call__", "loss", "drop_conditions", "angles"}
"""Methods that `fit` calls with its own generator."""


def functions(holder: Any) -> Iterator[tuple[str, Any]]:
    for name in getattr(holder, "__all__", ()):
        thing = getattr(holder, name)
        if inspect.isclass(thing) and thing.__module__.startswith("scoresde"):
            for method, value in vars(thing).items():
                if not method.startswith("_") and method not in CALLBACKS:
                    yield f"{name}.{method}", getattr(value, "__func__", value)
        elif inspect.isfunction(thing):
            yield name, thing


def test_every_public_function_that_takes_a_generator_takes_a_seed() -> None:
    takes = {}
    for holder in (scoresde, metrics, toy, dequantize, transforms):
        for name, function in functions(holder):
            if inspect.isfunction(function):
                takes[name] = inspect.signature(function).parameters
    drawing = {name: found for name, found in takes.items() if "generator" in found}
    assert len(drawing) > 30
    for name, found in drawing.items():
        assert found["seed"].kind is inspect.Parameter.KEYWORD_ONLY, name
        assert found["seed"].default is None, name


def test_a_seed_goes_to_the_device_of_the_first_argument_that_has_one() -> None:
    @takes_seed
    def where(
        model: Any,
        n: Any = 1,
        generator: torch.Generator | None = None,
        *,
        seed: int | None = None,
    ) -> Any:
        return n, generator

    assert where(SDE, seed=1)[1].device == SDE.device
    assert where(torch.zeros(1, device="meta"), seed=1)[1].device.type == "cpu"
    assert where("x", 7, None, seed=1)[0] == 7
    assert where("x", 7, None, seed=1)[1].initial_seed() == 1
    assert where("x") == (1, None)


def test_a_misspelled_argument_beside_a_seed_is_answered_as_always() -> None:
    with pytest.raises(TypeError, match="Did you mean 'draws'"):
        scoresde.elbo(SDE, X, seed=1, drawz=4)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"no option 'etta'. Did you mean 'eta'"):
        scoresde.sample(SDE, 3, solver="ddim", seed=1, etta=0.5)  # type: ignore[call-arg]


# ------------------------------------------------------------------ progress=


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


VERBS: dict[str, Callable[..., Any]] = {
    "sample": lambda **k: scoresde.sample(SDE, 200, **QUICK, batch_size=64, seed=0, **k),
    "log_prob": lambda **k: scoresde.log_prob(SDE, X[:6], batch_size=3, **LOOSE, **k),
    "elbo": lambda **k: scoresde.elbo(SDE, X, draws=6, seed=0, **k).log_prob,
    "vlb": lambda **k: scoresde.vlb(SDE, X, steps=8, seed=0, **k).log_prob,
    "encode": lambda **k: scoresde.encode(SDE, X, **QUICK, **k),
    "interpolate": lambda **k: scoresde.interpolate(SDE, X[:2], X[2:4], 4, **QUICK, **k),
    "reflow": lambda **k: scoresde.reflow(SDE, 30, **QUICK, seed=0, **k).x,
    "summary": lambda **k: scoresde.summary(SDE, 5, **QUICK, seed=0, **k).mean,
    "particles": lambda **k: scoresde.particles(GUIDED, 3, 4, steps=4, seed=0, **k).x,
    "bits_per_dim": lambda **k: (
        scoresde.bits_per_dim(ORACLE, PIXELS, dequantize.Uniform(4), **QUICK, seed=0, **k).bits
    ),
}


def written(
    monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any], terminal: bool, **how: Any
) -> tuple[Any, str]:
    stream = Terminal() if terminal else io.StringIO()
    with monkeypatch.context() as m:
        m.setattr(sys, "stderr", stream)
        found = call(**how)
    return found, stream.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", VERBS)
def test_a_bar_changes_no_number(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    call = VERBS[name]
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)
    silent, nothing = written(monkeypatch, call, terminal=True, progress=False)
    shown, bar = written(monkeypatch, call, terminal=False, progress=True)
    assert nothing == ""
    assert torch.equal(silent, shown)
    assert f"{name}: " in bar
    assert "100%" in bar.splitlines()[-1]
    assert bar.count("\n") == 1  # one bar, of the call itself
    assert len(bar.split("\r")) > 4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_by_default_a_bar_is_for_terminals_and_for_long_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for delay, terminal, shown in ((0.0, True, 1), (0.0, False, 0), (1e9, True, 0)):
        monkeypatch.setattr(progress, "DELAY_SECONDS", delay)
        for name in ("sample", "particles"):
            _, bar = written(monkeypatch, VERBS[name], terminal)
            assert (name in bar) == bool(shown), (name, delay, terminal)
    assert progress.DELAY_SECONDS == 1e9


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_training_and_evaluation_follow_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"n": 3, "samples": 2, "features": None, **LOOSE}

    def evaluated(**k: Any) -> float:
        return scoresde.evaluate(SDE, X, **how, **k).score.mean  # type: ignore[union-attr]

    def trained(**k: Any) -> Tensor:
        sde = small()
        scoresde.fit(sde, X.repeat(5, 1), steps=5, batch_size=4, seed=0, **k)
        return next(sde.net.parameters()).detach()

    for call, label in ((evaluated, "score: "), (trained, "fit: ")):
        monkeypatch.setattr(progress, "DELAY_SECONDS", 1e9)
        quiet, bar = written(monkeypatch, call, terminal=True)
        assert bar == ""
        monkeypatch.setattr(progress, "DELAY_SECONDS", 0.0)
        shown, bar = written(monkeypatch, call, terminal=True)
        assert label in bar
        assert "log_prob" not in bar  # those of calls inside
        assert torch.equal(torch.as_tensor(quiet), torch.as_tensor(shown))
        _, bar = written(monkeypatch, call, terminal=False)
        assert bar == ""


def test_a_bar_says_steps_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)
    _, bar = written(monkeypatch, VERBS["sample"], terminal=False, progress=True)
    assert "sample 64 of 200, step 2 of 4" in bar
    shares = [int(part.split("%")[0].split()[-1]) for part in bar.split("\r") if "%" in part]
    assert shares == sorted(shares)
    assert {32, 64, 96} <= set(shares)  # a batch of 64 of 200 each


class Poison:
    """What a device would have to be asked for."""

    def __float__(self) -> float:
        raise AssertionError("a bar waited for the device")

    mean = __float__


def test_a_bar_that_is_not_due_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = progress.Bar("sample", 1e9)
    task = types.SimpleNamespace(last=4, levels=[types.SimpleNamespace(phi=1.5)] * 2)
    at: Any = Poison()
    _move(bar, task, 3, X, None, at)  # type: ignore[arg-type]
    assert bar.at == 0.0
    levels = [types.SimpleNamespace(phi=1.5), types.SimpleNamespace(phi=0.0)]
    task = types.SimpleNamespace(last=1, levels=levels, adaptive=True)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    due = progress.Bar("sample", 0.0)
    monkeypatch.setattr(due, "due", lambda: True)
    rows = torch.tensor([0, 1])
    angles = torch.tensor([0.75, 0.75])
    _move(due, task, 4, X, rows, angles)  # type: ignore[arg-type]
    assert due.at == pytest.approx(1 - 0.5 * 0.5)  # half of the samples have half a path to go


def test_parts_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)
    with progress.bar("work", True):
        bar = progress.current()
        assert bar is not None
        with progress.part(1, 2, 4, "batch"), progress.part(1, 2, 2, "half"):
            progress.step(1, 2)
            assert bar.at == pytest.approx(0.25 + 0.125 + 0.0625)
        assert bar.at == pytest.approx(0.5)
        progress.step(1, 10)
        assert bar.at == pytest.approx(0.5)  # never back
        with progress.bar("inside", True):
            assert progress.current() is bar
    assert progress.current() is None


def test_no_bar_is_left_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="x has shape"):
        written(
            monkeypatch,
            lambda **k: scoresde.log_prob(SDE, torch.zeros(3, 5), **k),
            terminal=True,
            progress=True,
        )
    assert progress.current() is None
    with pytest.raises(TypeError, match="progress is True, False or None, got 3"):
        scoresde.sample(SDE, 3, progress=3)  # type: ignore[arg-type]


# ------------------------------------------------------------------ names that complete


def options(registry: Any) -> set[str]:
    """The options of all that the library registers; other tests register more."""
    found = set()
    for name in registry:
        if getattr(registry[name], "__module__", "").startswith(("scoresde.", "functools")):
            every = inspect.signature(registry[name]).parameters.values()
            found |= {p.name for p in every if p.kind is not p.VAR_KEYWORD}
    return found


def test_the_options_of_all_solvers_have_names() -> None:
    assert set(SolverOptions.__annotations__) == options(scoresde.SOLVERS)


def test_the_options_of_all_networks_have_names() -> None:
    ours = {name for name in scoresde.BACKBONES if not name.startswith("test_")}
    assert set(get_args(Name)) == ours
    assert set(NetworkOptions.__annotations__) == options(scoresde.BACKBONES) - {"shape"}
    assert set(StageOptions.__annotations__) == options(scoresde.FIRST_STAGES) - {"shape"}
    flows = options(FLOWS) - {"shape"} | {"standardize"}
    assert set(FlowOptions.__annotations__) == flows


def test_the_keywords_of_fit_are_those_that_are_passed_on() -> None:
    assert set(FitKeywords.__annotations__) == set(inspect.signature(scoresde.fit).parameters) - {
        "sde",
        "data",
    }


BARE = {
    "loss": "condition",
    "toward": "tensors",
    "Dequantization.dataset": "condition",
    "Registry.build": "options",
    "Registry.alias": "options",
    "build": "options",  # the second of two overloads
}
"""Functions whose further arguments have names that the user chooses."""


def test_no_public_verb_takes_bare_keywords() -> None:
    for holder in (scoresde, metrics, toy, dequantize, transforms):
        for name, function in functions(holder):
            if not inspect.isfunction(function) or name.endswith(".given"):
                continue
            for p in inspect.signature(function).parameters.values():
                if p.kind is p.VAR_KEYWORD and "Unpack" not in str(p.annotation):
                    forwards = name.endswith((".forward", ".check_condition"))
                    refuses = "Raise NotImplementedError" in (function.__doc__ or "")
                    assert forwards or refuses or BARE.get(name) == p.name, name


# ------------------------------------------------------------------ repr


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_says_what_it_is() -> None:
    sde = small(classes=3)
    count = sum(p.numel() for p in sde.net.parameters())
    assert repr(sde) == (
        "ScoreSDE: VPSDE(beta_min=0.1, beta_max=20.0), samples of shape (2,)\n"
        f"  network     MLP, {count:,} parameters in float32 on cpu, predicts edm\n"
        "  trained     not by fit, in train mode\n"
        "  scale       whitened, not measured yet\n"
        "  conditions  y"
    )
    given = {"y": ["a", "b", "c"] * 4}
    x = torch.tensor([[0.0, 10.0], [2.0, 30.0]]).repeat(6, 1)
    scoresde.fit(sde, x, given=given, steps=2, validation=None, progress=False)
    rows = repr(sde).splitlines()
    assert rows[2] == "  trained     by fit, as a score, averaged weights, in eval mode"
    assert rows[3] == "  scale       whitened, mean 1 … 20, scale 1 … 10"
    assert rows[4] == "  conditions  y (a, b, c); or none"
    assert repr(sde.given(y="a")).startswith("ScoreSDE.given(y=[1]): VPSDE(")
    assert "Linear" in repr(sde.net)  # modules are those of the network


class Broken(Derived):
    @property
    def process(self) -> Any:
        raise RuntimeError("no process yet")

    def trained(self) -> Any:
        raise RuntimeError("nothing yet")


def models() -> dict[str, Any]:
    sde = small(classes=3)
    table = scoresde.Table({"n": [3, 8, 5, 9], "kind": ["a", "b", "a", "a"]})
    rows = scoresde.build("vp", "mlp", shape=table.shape, classes=table.classes, width=8)
    scoresde.fit(rows, table, steps=2, progress=False)
    return {
        "view": sde.given(y=[0, 1]),
        "guided": scoresde.classifier_free(sde.given(y=1), 2.0),
        "observed": GUIDED,
        "composed": scoresde.compose([(sde.given(y=1), 1.0), (sde.given(y=2), 2.0)]),
        "latent": LATENT,
        "stage": STAGE,
        "flow": scoresde.coupling_flow((2,)),
        "posterior": POSTERIOR,
        "oracle": SDE,
        "meta": small().to("meta"),
        "table": rows,
        "half-built": scoresde.ScoreSDE.__new__(scoresde.ScoreSDE),
        "half-built stage": scoresde.FirstStage.__new__(scoresde.FirstStage),
        "half-built view": Derived.__new__(Derived),
        "a user's": Broken(sde),
    }


def test_every_model_is_shown_in_six_lines() -> None:
    for name, model in models().items():
        lines = repr(model).splitlines()
        assert 1 <= len(lines) <= 6, name
        assert max(map(len, lines)) <= 100 or name == "posterior", name
        assert "Linear(in_features" not in repr(model), name
    shown = models()
    assert "rows of 2 columns" in repr(shown["table"])
    assert "latents (2,)" in repr(shown["latent"])
    assert "on the meta device" in repr(shown["meta"])
    assert "measurement=Linear(noise=1)" in repr(shown["observed"])
    assert repr(shown["half-built"]) == "ScoreSDE"
    assert repr(shown["posterior"]).startswith("Posterior of ScoreSDE: VPSDE(")


def test_a_model_in_a_module_is_shown_in_it() -> None:
    text = repr(nn.Sequential(small()))
    assert text.startswith("Sequential(\n  (0): ScoreSDE: VPSDE(")
    assert "in_features" not in text


# ------------------------------------------------------------------ results


def test_a_likelihood_is_a_small_table() -> None:
    values = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
    zero = torch.zeros(6)
    found = scoresde.Likelihood(
        values, zero, zero + 1.25e-5, zero + 0.012, torch.arange(6) + 20, torch.zeros(6, 2)
    )
    # std of −1 … −6 is √3.5, over √6
    assert repr(found) == (
        "Likelihood of 6 samples, in nats\n"
        "            log p  ± trace  ± solver  ± prior   nfe\n"
        "0              -1        0   1.2e-05    0.012    20\n"
        "1              -2        0   1.2e-05    0.012    21\n"
        "2              -3        0   1.2e-05    0.012    22\n"
        "…\n"
        "mean  -3.5 ± 0.76        0   1.2e-05    0.012  22.5"
    )
    page = found._repr_html_()
    assert page is not None
    assert page.count("<tr>") == 6
    assert "<td>-3.5 ± 0.76</td>" in page


def test_a_bound_and_a_solution_are_small_tables() -> None:
    bound = Bound(torch.tensor([-1.5]), torch.tensor([0.25]), torch.tensor([16]))
    assert repr(bound) == (
        "Lower bound on log p of 1 sample, in nats\n   bound     ±  nfe\n0   -1.5  0.25   16"
    )
    x = torch.tensor([[[0.0], [2.0]]]).repeat(7, 1, 1)
    count = torch.tensor([3, 4])
    solution = Solution(torch.linspace(1, 0, 7), x, 2 * count, count, torch.zeros(2))
    lines = repr(solution).splitlines()
    assert lines[0] == (
        "Solution: 2 samples of shape (1,), 6 … 8 evaluations and 3 … 4 steps each"
    )
    assert lines[2].split() == ["1", "1", "1.414", "0", "2"]
    assert [line.split()[0] for line in lines[2:]] == ["1", "0.833", "0.667", "…", "0"]


def test_particles_show_their_evidence() -> None:
    found = scoresde.particles(GUIDED, 2, 4, steps=4, seed=0)
    lines = repr(found).splitlines()
    assert lines[0] == "Particles: 2 samples of 4 particles"
    assert lines[2].split()[1] == f"{float(found.log_evidence[0]):.4g}"
    assert lines[-1].split()[1] == f"{float(found.log_evidence.mean()):.4g}"


def test_results_that_can_not_be_read_are_shown_all_the_same() -> None:
    meta = torch.zeros(3, device="meta")
    bound = Bound(meta, meta, meta)
    assert repr(bound) == "Bound(...)"
    assert bound._repr_html_() is None


def test_a_history_is_a_picture_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    history = History([100, 200], [0.8, 0.5], seconds=1.5)
    page = history._repr_html_()
    assert page is not None
    assert repr(history) in page
    start = page.index("base64,") + len("base64,")
    picture = base64.b64decode(page[start : page.index('"', start)])
    assert picture.startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert history._repr_html_() is None


def test_without_an_open_stream_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        for shown in (None, True):
            with monkeypatch.context() as m:
                m.setattr(sys, "stderr", stream)
                found = scoresde.sample(SDE, 3, steps=3, seed=0, progress=shown)
            assert torch.equal(found, scoresde.sample(SDE, 3, steps=3, seed=0))
