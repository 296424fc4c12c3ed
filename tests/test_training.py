"""`fit` against what it promises, and what it leaves behind when things go wrong."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from fit_options import fit_keywords
from torch import Tensor, nn

import scoresde
from conftest import generator
from scoresde import ScoreSDE, TrainingError, toy
from scoresde.training.renamed import translated


def small(process: str = "vp", seed: int = 0, **options: Any) -> ScoreSDE:
    """An MLP whose initial weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return scoresde.build(
            process, "mlp", **({"shape": (2,), "width": 16, "depth": 2, "fourier": 4} | options)
        )


def weights(sde: ScoreSDE) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in sde.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def cloud(n: int = 200, seed: int = 0) -> Tensor:
    return torch.tensor([3.0, -1.0]) + torch.tensor([0.5, 4.0]) * torch.randn(
        n, 2, generator=generator(seed)
    )


# ---------------------------------------------------------------------------------------------- fit


def test_the_same_generator_gives_the_same_weights_bit_for_bit() -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        sde = small()
        scoresde.fit(
            sde, cloud(), steps=10, batch_size=32, progress=False, generator=generator(seed)
        )
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


@pytest.mark.parametrize("half_life", [0.0, 1.0, 700.0])
def test_average_is_the_recursion(half_life: float) -> None:
    """w̄_1 = w_1, w̄_{k+1} = d_k·w̄_k + (1 − d_k)·w_{k+1} with d_k = min(2^(−1/half_life), (1 +
    k)/(10 + k)); the network notes its weights.
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
    how = {"steps": 60, "lr": 0.05, "progress": False, "validation": None}
    scoresde.fit(sde, cloud(), ema=half_life, generator=generator(), **how)
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


class Slow(scoresde.MLP):
    """A network that says how fast it learns."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, width=8, depth=1, fourier=0)
        self.learning_rate = 1e-3


@pytest.mark.parametrize(
    ("net", "shape", "options", "rate"),
    [
        ("mlp", (2,), {}, 3e-3),
        ("mlp", (4,), {}, 5e-3),
        ("mlp", (4,), {"width": 256, "depth": 1}, 3e-3),
        ("mlp", (4,), {"blur": False}, 3e-3),
        ("mlp", (1, 2, 2), {}, 3e-3),
        ("resmlp", (2,), {}, 3e-3),
        (Slow((2,)), (2,), {}, 1e-3),
    ],
)
def test_the_learning_rate_is_by_default_the_networks(
    net: Any, shape: tuple[int, ...], options: dict[str, Any], rate: float
) -> None:
    """Adam's first step moves a weight by the learning rate, whatever its gradient."""
    sde = scoresde.build("vp", net, shape=shape, **options)
    before = [p.detach().clone() for p in sde.net.parameters()]
    data = torch.randn(64, *shape, generator=generator())
    scoresde.fit(sde, data, steps=1, progress=False, validation=None, generator=generator())
    pairs = zip(sde.net.parameters(), before, strict=True)
    moved = max(float((after - p).abs().max()) for after, p in pairs)
    assert moved == pytest.approx(rate, rel=1e-3)


def test_a_learning_rate_that_is_no_number() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8, depth=1)
    with pytest.raises(ValueError, match="lr is a number or 'auto', got 'fast'"):
        scoresde.fit(sde, torch.randn(64, 2), lr="fast")


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
    how = {"steps": 40, "batch_size": 32, "progress": False}
    history = scoresde.fit(sde, cloud(), validation=None, **how)
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
LOSSES = {"vp": {}, "rectified": {"weight": "velocity", "noise": "uniform"}}


@pytest.mark.parametrize(
    ("process", "predict"),
    [("vp", "edm"), pytest.param("rectified", "v", marks=pytest.mark.slow)],
)
def test_a_trained_model_draws_from_an_easy_target(process: str, predict: str) -> None:
    """Two overlapping Gaussians: on the same draws the loss is lower, and the energy test takes
    1000 samples for the truth.

    p > 0.01 for the trained model (typically 0.1); the untrained one, a unit Gaussian of the right
    mean and scale, is found out at p = 0.005.
    """
    sde = small(process, width=64, depth=3, fourier=16, predict=predict)
    truth = OVERLAPPING.sample(1000, generator=generator(3))
    sde.standardize(truth)

    def report() -> tuple[float, float]:
        x = scoresde.sample(sde, 1000, generator=generator(2))
        held_out = scoresde.loss(
            sde,
            OVERLAPPING.sample(4000, generator=generator(5)),
            generator=generator(6),
            **LOSSES[process],
        )
        return float(held_out.detach()), scoresde.energy_test(
            x, truth, permutations=199, generator=generator(4)
        )

    before, p_before = report()
    how = {
        "steps": 500,
        "batch_size": 256,
        "lr": 5e-3,
        "progress": False,
        "generator": generator(1),
    }
    objective = scoresde.Denoising(**LOSSES[process])
    history = scoresde.fit(sde, OVERLAPPING, objective=objective, **how)
    after, p_after = report()
    assert after < 0.995 * before
    assert abs(history.loss[-1] / after - 1) < 0.05
    assert p_before < 0.01 < p_after


def test_labels_given_to_fit_reach_the_right_rows() -> None:
    """Classes at (−4, 0) and (4, 2), std ½: samples of class k lie at its mean, to 0.25, with its
    spread.
    """
    means = torch.tensor([[-4.0, 0.0], [4.0, 2.0]])
    y = torch.arange(2).repeat(500)
    x = means[y] + 0.5 * torch.randn(1000, 2, generator=generator())
    sde = small(width=48, classes=2, condition_dropout=0)
    scoresde.fit(
        sde, x, given={"y": y}, steps=300, batch_size=256, progress=False, generator=generator(1)
    )
    drawn = scoresde.sample(sde.given(y=y[:400]), 400, generator=generator(2))
    for k in range(2):
        torch.testing.assert_close(drawn[k::2].mean(0), means[k], rtol=0, atol=0.25)
        assert float(drawn[k::2].std(0).max()) < 1.0
    logp = scoresde.log_prob(sde.given(y=torch.tensor([0, 1])), means[[0, 0]])
    assert float(logp[0] - logp[1]) > 5


# ------------------------------------------------------------------------------- when it goes wrong


class Poisoned(nn.Module):
    """NaN from a call on."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.w, self.call, self.calls = nn.Parameter(torch.tensor(0.1)), call, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += self.training
        return (
            x * self.w
            if self.calls < self.call or not self.training
            else x * self.w * float("nan")
        )


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
        scoresde.fit(
            sde, Interrupted(at), steps=1000, batch_size=16, progress=False, generator=generator()
        )
    if at > 2:  # steps were made
        assert not sde.training
        torch.testing.assert_close(sde.mean.float(), torch.tensor([3.0, -1.0]), rtol=0, atol=0.2)
    x = scoresde.sample(sde.eval(), 5, generator=generator())
    assert bool(x.isfinite().all())
    assert bool(scoresde.log_prob(sde, x).isfinite().all())
    scoresde.fit(sde, cloud(), steps=3, progress=False)  # and it goes on


@pytest.mark.parametrize("why", ["interrupted", "a condition it does not take"])
def test_a_second_fit_that_ends_before_its_first_step_keeps_the_average_of_the_first(
    why: str,
) -> None:
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


# -------------------------------------------------------------------------- constants, odd networks


@pytest.mark.parametrize("objective", [None, "consistency", "bridge", "minibatch_ot"])
@pytest.mark.filterwarnings("ignore:sinkhorn")
def test_constants_come_back_from_training_as_they_were(objective: str | None) -> None:
    """Columns of scale 1, 1000 and 1e-3 beside constants: learning them is what it is without."""
    wanted = torch.tensor([0.0, 7.0, 0.0, 1e6, 1e-30])
    scale = torch.tensor([1.0, 1.0, 1e3, 1.0, 1e-3])
    free = [0, 2, 4]
    x = wanted.clone().expand(300, 5).clone()
    x[:, free] = scale[free] * torch.randn(300, 3, generator=generator(3))
    x = torch.cat([x, torch.full((300, 1), 0.3)], 1)
    process, backbone = {
        "bridge": ("bridge", "two_drifts"),
        "consistency": ("rectified", "two_times"),
    }.get(str(objective), ("rectified", "mlp"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sde = scoresde.build(process, backbone, shape=(6,), width=16)
    if objective == "bridge":
        sde.source = x * torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0, 3.0])  # whose constants are others
    how = {"coupling": objective} if objective == "minibatch_ot" else {"objective": objective}
    with pytest.warns(UserWarning, match=r"features \[1, 3, 5\] are constant"):
        scoresde.fit(sde, x, steps=20, batch_size=32, progress=False, generator=generator(), **how)  # type: ignore[arg-type]
    y = scoresde.sample(sde, 20, generator=generator())
    torch.testing.assert_close(
        y[:, [1, 3, 5]], torch.tensor([7.0, 1e6, 0.3]).expand(20, 3), rtol=1e-7, atol=0
    )
    spread = y[:, free].std(0) / x[:, free].std(0)
    assert bool(((spread > 0.05) & (spread < 20)).all())
    assert sde.scale.eq(0).tolist() == [False, True, False, True, False, True]


def test_training_with_a_constant_is_training_without_it() -> None:
    """The loss and its gradients: of a network that does not look at the constant, and one that
    never has it.
    """

    class Wide(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert not bool(x[:, 1].any())
            out = self.inner(x[:, [0, 2]], t)
            return torch.stack([out[:, 0], 9 + out[:, 1], out[:, 1]], 1)

    x = cloud()
    bare = small(axes=0)
    wide = ScoreSDE(bare.process, Wide(small(axes=0).net), shape=(3,))
    how: dict[str, Any] = {"steps": 10, "batch_size": 16, "progress": False}
    table = torch.stack([x[:, 0], torch.full((200,), 7.0), x[:, 1]], 1)
    held_out = scoresde.Validation(table, every=5)
    with pytest.warns(UserWarning, match="constant"):
        mine = scoresde.fit(wide, table, validation=held_out, generator=generator(), **how)
    held_out = scoresde.Validation(x, every=5)
    theirs = scoresde.fit(bare, x, validation=held_out, generator=generator(), **how)
    assert mine.loss == theirs.loss
    assert mine.validation == theirs.validation
    assert scoresde.loss(wide, table, generator=generator()) == scoresde.loss(
        bare, x, generator=generator()
    )
    for a, b in zip(wide.net.parameters(), bare.net.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_networks_with_weights_made_by_hooks(norm: Any) -> None:
    """The average is that of the parameters that are trained, from which the hooks make the
    weights.
    """

    def made() -> ScoreSDE:
        sde = small()
        norm(
            next(m for m in sde.net.modules() if isinstance(m, nn.Linear) and bool(m.weight.any()))
        )
        sde.score(torch.ones(1, 2), 0.5)  # the weight is no leaf from here on
        return sde

    sde = made()
    how = {"steps": 5, "progress": False, "validation": None}
    scoresde.fit(sde, cloud(), ema=0, generator=generator(), **how)
    x = cloud(5, 1)
    assert sde.ema is not None
    with torch.no_grad():
        raw = sde.net.eval()(x, torch.zeros(5))
        assert torch.equal(sde.ema(x, torch.zeros(5)), raw)  # ema=0: the last weights
    copied = copy.deepcopy(sde)
    wanted = scoresde.log_prob(sde, x, steps=10)
    assert torch.equal(scoresde.log_prob(copied, x, steps=10), wanted)
    fresh = made()
    fresh.load_state_dict(sde.state_dict())
    assert torch.equal(scoresde.log_prob(fresh.eval(), x, steps=10), wanted)


def test_a_model_made_in_inference_mode_learns_like_any_other(tmp_path: Path) -> None:
    plain = small()
    folder = scoresde.save(plain, tmp_path / "model")
    with torch.inference_mode():
        built, loaded = small(), scoresde.load(folder)
        built.float()
        moved = copy.deepcopy(built).double().float()
        late = small()
        late.net = small().net  # type: ignore[assignment]
    x = cloud(5)
    wanted = scoresde.log_prob(plain.eval(), x)
    scoresde.fit(plain, cloud(), steps=3, progress=False, generator=generator())
    for sde in (built, loaded, moved, late):
        assert torch.equal(scoresde.log_prob(sde.eval(), x), wanted)
        scoresde.fit(sde, cloud(), steps=3, progress=False, generator=generator())
        assert same(weights(sde), weights(plain))


# ------------------------------------------------- keywords of version 0.1, and what they are now


def renamed(**old: Any) -> list[str]:
    """Fit with old keywords; return the warnings, which name this file."""
    how: dict[str, Any] = {"steps": 4, "batch_size": 16, "progress": False, "validation": None}
    with pytest.warns(DeprecationWarning, match="keywords of fit") as caught:
        scoresde.fit(small(), cloud(), generator=generator(), **(how | old))
    assert {Path(warning.filename).name for warning in caught} == {Path(__file__).name}
    return [str(warning.message) for warning in caught]


def test_old_keywords_are_taken_with_one_warning_that_says_what_to_write(tmp_path: Path) -> None:
    messages = renamed(
        weight="sigma2",
        noise="uniform",
        validation=cloud(9),
        patience=2,
        snapshots=2,
        out=tmp_path,
        every=3,
        resume=True,
    )
    assert len(messages) == 1
    assert messages[0].endswith(
        "write fit(..., objective=Denoising(weight='sigma2', noise='uniform'), "
        "validation=Validation(x, every=3, patience=2), ema=Averaging(snapshots=2), "
        f"checkpoints=Checkpoints({str(tmp_path)!r}, every=3, resume=True))"
    )
    history = scoresde.fit(
        small(),
        cloud(),
        objective=scoresde.Denoising("sigma2", "uniform"),
        validation=scoresde.Validation(cloud(9), every=3, patience=2),
        ema=scoresde.Averaging(snapshots=2),
        checkpoints=scoresde.Checkpoints(tmp_path, every=3, resume=True),
        steps=4,
        batch_size=16,
    )
    assert history.checked == [3, 4]  # of the run before, which these arguments go on with


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"compile": False, "every": 7}, "leave them out"),
        ({"resume": False, "accelerator": None}, "leave them out"),
        ({"noise": "adaptive"}, r"objective=Denoising\(weight='edm', noise='adaptive'\)"),
    ],
)
def test_each_old_keyword_has_a_new_form(old: dict[str, Any], new: str) -> None:
    (message,) = renamed(**old)
    assert re.search(new, message)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"patience": 3}, ValueError, "patience= goes with validation="),
        ({"resume": True}, ValueError, "resume= needs a folder"),
        ({"snapshots": 3}, ValueError, "snapshots= needs a folder"),
        ({"ema": scoresde.Averaging(snapshots=3)}, ValueError, "snapshots= needs a folder"),
        ({"weight": "sigma2", "objective": "meanflow"}, ValueError, "'meanflow' has its own"),
        ({"noise": "nodes:2"}, ValueError, r"Distilled\(steps=2, weight='edm'\) distils pairs"),
        ({"every": 3, "checkpoints": "run"}, TypeError, "every= is now part of checkpoints="),
        (
            {"patience": 3, "validation": scoresde.Validation(cloud(9))},
            TypeError,
            "patience= is now part of validation=",
        ),
        ({"ema": 0.999}, ValueError, "ema is a half-life in steps, got 0.999"),
        ({"backend": "jit"}, TypeError, "backend is 'compile', .* got 'jit'"),
        ({"validation": cloud(9), "objective": "consistency"}, ValueError, "does not learn"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_options_that_do_not_go_together_are_refused_before_any_work(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    sde = small()
    before = weights(sde)
    with pytest.raises(error, match=message):
        scoresde.fit(sde, cloud(), steps=4, progress=False, **options)
    assert same(weights(sde), before)


def test_validations_are_as_frequent_as_checkpoints_unless_they_say(tmp_path: Path) -> None:
    how: dict[str, Any] = {"steps": 6, "batch_size": 16, "progress": False}
    bare = scoresde.Checkpoints(tmp_path / "bare", every=2)
    history = scoresde.fit(small(), cloud(), validation=cloud(9), checkpoints=bare, **how)
    assert history.checked == [2, 4, 6]
    own = scoresde.Checkpoints(tmp_path / "own", every=2)
    held_out = scoresde.Validation(cloud(9), every=3)
    history = scoresde.fit(small(), cloud(), validation=held_out, checkpoints=own, **how)
    assert history.checked == [3, 6]


# ---------------------------------------------------------------------- objectives of one's own


class Huber(scoresde.Denoising):
    """A loss of one's own for examples that are stated as always."""

    def loss(self, net: Any, sde: Any, examples: Any, progress: Any, generator: Any) -> Tensor:
        out = net(examples.x, examples.t, **examples.condition)
        return ((out - examples.target).square().sum(1) + 1e-4).sqrt().mean()


class Called(scoresde.Objective):
    """Denoising through the public call alone, without examples of several steps."""

    kind = "score"

    def __call__(self, *inputs: Any) -> Tensor:
        return scoresde.Denoising(noise="lognormal")(*inputs)


def trained(objective: Any, **how: Any) -> tuple[ScoreSDE, scoresde.History]:
    sde = small()
    common: dict[str, Any] = {"steps": 20, "batch_size": 32, "progress": False}
    history = scoresde.fit(
        sde, cloud(), objective=objective, generator=generator(), **(common | how)
    )
    return sde, history


def test_denoising_by_its_public_call_is_denoising() -> None:
    by_name, _ = trained("denoising")
    called, _ = trained(Called())
    for a, b in zip(by_name.net.parameters(), called.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert by_name.kind == called.kind == "score"


def test_an_objective_serves_several_runs_and_keeps_nothing_of_them() -> None:
    objective = scoresde.Denoising(noise="adaptive")
    first, _ = trained(objective)
    second, _ = trained(objective)
    assert same(weights(first), weights(second))
    assert objective.state_dict() == {}
    prepared = objective.prepared(first, paired=False, joined=False)
    assert set(prepared.state_dict()) == {"moments", "sums"}


def test_a_loss_of_ones_own_is_another_run(tmp_path: Path) -> None:
    _, history = trained(Huber(), checkpoints=tmp_path)
    _, usual = trained("denoising")
    assert history.loss != usual.loss
    again = scoresde.Checkpoints(tmp_path, resume=True)
    with pytest.raises(scoresde.CheckpointError, match="objective="):
        trained("denoising", checkpoints=again)
    assert trained(Huber(), checkpoints=again)[1].loss == history.loss


class Late(nn.Module):
    """Makes a parameter when it is called first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(2))
        return self.scale * self.layer(torch.cat([x, t[:, None]], 1))


class Spoiled(nn.Module):
    """NaN in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.layer(torch.cat([x, t[:, None]], 1))
        return out if self.training else out * float("nan")


X = torch.randn(200, 2, generator=generator(1))


def fit(sde: ScoreSDE, data: Any = X, **options: Any) -> scoresde.History:
    common = {"steps": 30, "batch_size": 16, "progress": False, "generator": generator()}
    return scoresde.fit(sde, data, **fit_keywords(**(common | options)))


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (Late, {}, "came or went.*scale"),
        (Spoiled, {"validation": X, "every": 10, "patience": 3}, "validation loss is nan"),
    ],
)
def test_what_can_not_be_trained_is_an_error(
    net: Callable[[], nn.Module], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        fit(ScoreSDE(scoresde.VPSDE(), net(), shape=(2,)), **options)


def small_model(**options: Any) -> ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build(
        "vp", "mlp", shape=(2,), **({"width": 8, "depth": 1, "fourier": 2} | options)
    )


def test_a_compile_that_fails_later_is_a_warning_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_without_gradients(net: nn.Module) -> Any:
        def call(*inputs: Any, **condition: Any) -> Any:
            if not torch.is_grad_enabled():
                raise RuntimeError("recompile failed")
            return net(*inputs, **condition)

        return call

    monkeypatch.setattr(torch, "compile", fails_without_gradients)
    with pytest.warns(UserWarning, match="recompile failed"):
        history = fit(small_model(), validation=X, every=10, backend="compile")
    assert len(history.validation) == 3


def test_half_precision_weights_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="half precision"):
        fit(small_model().to(torch.bfloat16))


def test_old_and_new_keywords_together_lose_nothing(tmp_path: Path) -> None:
    held_out = scoresde.Validation(torch.randn(8, 2), every=1, patience=1)
    with pytest.warns(DeprecationWarning, match="patience=1"):
        found = translated({"out": tmp_path, "validation": held_out})
    assert found["validation"].patience == 1
    with pytest.raises(TypeError, match="weight= is now part of objective="):
        translated({"weight": "sigma2", "objective": scoresde.Denoising()})
