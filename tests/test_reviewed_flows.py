"""What a hostile reader of the flows found, and was mended."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import scoresde
from conftest import generator
from scoresde import toy
from scoresde.data.stream import TrainingStream
from scoresde.training.couplings import Coupling
from scoresde.training.pairing import Pairing

QUIET: dict[str, Any] = {"progress": False, "batch_size": 32}


def flow(net: str = "mlp", **options: Any) -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build("rectified", net, shape=(2,), width=16, **options)


def moons(n: int = 500) -> torch.Tensor:
    return toy.Moons().sample(n, generator=generator(0))


class Still(nn.Module):
    """Says that nothing moves."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0 * x


class Counting(Coupling):
    """Joins nothing, and says how many rows it was asked for."""

    def join(
        self, x0: Any, x1: Any, condition: Mapping[str, Any], rng: np.random.Generator
    ) -> Any:
        SEEN.append(len(x0))
        return np.arange(len(x0))


SEEN: list[int] = []


# ---------------------------------------------------------------- wrong numbers


@pytest.mark.parametrize("objective", ["meanflow", "consistency"])
def test_flow_maps_are_learnt_with_accumulated_gradients(objective: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    four = accelerate.Accelerator(gradient_accumulation_steps=4)
    scoresde.fit(
        flow("two_times"),
        moons(),
        objective=objective,
        steps=30,
        backend=four,
        generator=generator(0),
        **QUIET,
    )


def test_a_student_starts_where_its_pairs_do() -> None:
    teacher = scoresde.oracle(toy.EightGaussians(), scoresde.RectifiedFlow())
    pairs, student = scoresde.reflow(teacher, 2000, generator=generator(0), progress=False), flow()
    scoresde.fit(student, pairs, steps=2, **QUIET)
    starts = scoresde.solve(student, 2000, solver="ddim", steps=1, generator=generator(1)).x[0]
    assert torch.allclose(starts.std(0), pairs.latent.std(0), rtol=0.15)  # six standard errors


def test_a_distilled_model_is_sampled_at_the_levels_it_learnt() -> None:
    teacher, student = scoresde.oracle(toy.Moons(), scoresde.RectifiedFlow()), flow()
    scoresde.fit(
        student,
        scoresde.reflow(teacher, 200, progress=False),
        objective="distilled",
        steps=20,
        **QUIET,
    )
    assert scoresde.solve(student, 3, generator=generator(0)).nfe.tolist() == [1, 1, 1]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_distilled_model_remembers_its_steps_and_takes_no_others(k: int, tmp_path: Any) -> None:
    teacher, student = scoresde.oracle(toy.Moons(), scoresde.RectifiedFlow()), flow()
    scoresde.fit(
        student,
        scoresde.reflow(teacher, 50, progress=False),
        objective=scoresde.Distilled(k),
        steps=5,
        **QUIET,
    )
    scoresde.save(student, tmp_path / "model")
    plain = flow()
    plain.load_state_dict(
        student.state_dict()
    )  # the same weights, as a model that may be sampled at any levels
    loaded = scoresde.load(tmp_path / "model").eval()
    assert (loaded.outcome.name, loaded.default_solver, loaded.distilled_steps) == (
        "distilled",
        "ddim",
        k,
    )
    by_hand = scoresde.sample(
        plain, 9, solver="ddim", steps=k, spacing="time", generator=generator(1)
    )
    assert torch.equal(scoresde.sample(loaded, 9, generator=generator(1)), by_hand)
    assert torch.equal(
        scoresde.sample(loaded, 9, solver="ddim", steps=k, spacing="time", generator=generator(1)),
        by_hand,
    )
    assert len(scoresde.solve(loaded, 3, times=[j / k for j in range(k, -1, -1)]).t) == k + 1
    wrong: list[dict[str, Any]] = [
        {"solver": "adams"},
        {"solver": "ddim", "eta": 1.0},
        {"solver": "consistency"},
        {"steps": k + 1},
        {"spacing": "arc"},
        {"times": [1.0, 0.4, 0.0]},
        {"start": moons(2), "times": [0.0, 1.0]},
    ]
    for how in wrong:
        with pytest.raises(ValueError, match=rf"'ddim' with steps={k} and spacing='time'"):
            scoresde.solve(loaded, **how)
    for call in (
        scoresde.log_prob,
        scoresde.elbo,
        lambda sde, x: sde.velocity(x, 0.5),
        lambda sde, x: sde.score(x, 0.5),
    ):
        with pytest.raises(ValueError, match=rf"steps={k}"):
            call(loaded, moons(2))


@pytest.mark.parametrize(("kind", "solver"), [("map", "flow_map"), ("jump", "ddim")])
def test_jumps_do_not_go_from_data_to_noise(kind: str, solver: str) -> None:
    sde = flow("two_times")
    sde.outcome = kind
    with pytest.raises(ValueError, match="noise"):
        scoresde.encode(sde, moons(3), solver=solver, steps=1)


def test_flow_sde_without_noise_encodes() -> None:
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.RectifiedFlow()).double()
    x = toy.EightGaussians().sample(20, generator=generator(0)).double()
    ours = scoresde.encode(sde, x, solver="flow_sde", noise=0.0, steps=2000)
    assert (ours - scoresde.encode(sde, x, rtol=1e-8, atol=1e-8)).abs().max() < 1e-2


@pytest.mark.parametrize("process", ["rectified", "vp", "ve"])
@pytest.mark.parametrize("spacing", ["graded", "time"])
def test_flow_sde_without_noise_encodes_as_dpmpp_2m_does(process: str, spacing: str) -> None:
    """But for the last step into pure noise, where dpmpp_2m falls back to order 1."""
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.PROCESSES.build(process)).double()
    x = toy.EightGaussians().sample(20, generator=generator(0)).double()
    ways = [("flow_sde", {"noise": 0.0}), ("dpmpp_2m", {})]
    how: dict[str, Any] = {
        "start": x,
        "times": [0.0, 0.3, 0.9, 1.0],
        "steps": 50,
        "spacing": spacing,
    }
    ours, theirs = (
        scoresde.solve(sde, solver=solver, **how, **options).x for solver, options in ways
    )
    same = slice(0, -1 if process == "rectified" else None)
    torch.testing.assert_close(ours[same], theirs[same], rtol=1e-9, atol=1e-9)


def test_flow_sde_without_noise_encodes_with_order_2() -> None:
    """Also where E[x0] is not 0, on which the last step into pure noise depends: the error falls
    by 4 as steps double.
    """
    law = toy.GaussianMixture([[1.0, 2.0], [2.5, 1.0]], 0.3)
    sde, x = (
        scoresde.oracle(law, scoresde.RectifiedFlow()).double(),
        law.sample(50, generator=generator(0)).double(),
    )
    exact = scoresde.encode(sde, x, rtol=1e-9, atol=1e-9)
    ends = (
        scoresde.encode(sde, x, solver="flow_sde", noise=0.0, steps=steps)
        for steps in (80, 160, 320)
    )
    errors = [float((end - exact).abs().max()) for end in ends]
    assert errors[0] > 3.4 * errors[1] > 3.4**2 * errors[2]


def test_a_source_of_several_laws_is_refused_by_sample_and_log_prob() -> None:
    sde = flow()
    sde.source = torch.distributions.Normal(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="Independent"):
        scoresde.sample_and_log_prob(sde, 2)


@pytest.mark.parametrize("given", [True, False])
def test_outside_of_a_bounded_source_there_is_no_density(given: bool) -> None:
    """A network that says 0 leaves all states where they are, and so log p(x) is the source's."""
    square = torch.distributions.Independent(
        torch.distributions.Uniform(torch.zeros(2), 2 * torch.ones(2)), 1
    )
    sde = scoresde.ScoreSDE(
        scoresde.RectifiedFlow(), Still(), shape=(2,), outcome="velocity", source=square
    )
    sde.mean.fill_(0.5)
    sde.scale.fill_(3.0)
    x = torch.tensor([[0.5, 1.0], [2.5, 1.0], [1.5, 1.9], [-0.1, 0.1]])
    how = {"prior": square} if given else {}
    log_p = scoresde.log_prob(sde, x, **how)
    torch.testing.assert_close(
        log_p[[0, 2]], torch.full((2,), -2 * float(np.log(2))), rtol=1e-5, atol=1e-5
    )
    assert log_p[[1, 3]].tolist() == [-np.inf] * 2
    assert scoresde.log_prob(sde, x[1:2], **how).tolist() == [-np.inf]


def test_loss_draws_the_levels_that_fit_does() -> None:
    sde, x = flow(), moons(64)
    for noise, source in (("lognormal", None), ("uniform", toy.EightGaussians())):
        sde.source = source
        ours, told = (
            scoresde.loss(sde, x, generator=generator(3), **how) for how in ({}, {"noise": noise})
        )
        assert torch.equal(ours, told)


def test_condition_aware_transport_moves_rows_of_small_groups() -> None:
    rng = np.random.default_rng(0)
    x0, x1, c = rng.normal(size=(20, 2)), rng.normal(size=(20, 2)), rng.normal(size=(20, 1))
    found = scoresde.ConditionAwareOT(ratio=0.05).join(x0, x1, {"c": c}, rng)
    assert (found != np.arange(20)).any()


def test_rows_are_joined_in_the_size_that_was_asked_for() -> None:
    SEEN.clear()
    sde = flow()
    pairing = Pairing(TrainingStream(moons(), sde, 64, seed=0), sde, Counting(size=1000), 0, 0)
    next(pairing.batches(0))
    pairing.close()
    assert set(SEEN) == {1000}


def test_a_loaders_batches_are_not_repeated_at_once() -> None:
    sde = flow()
    loader = DataLoader(TensorDataset(moons(128)), 32)
    pairing = Pairing(TrainingStream(loader, sde, 32, seed=0), sde, scoresde.MinibatchOT(), 0, 0)
    x, _, _, sizes = next(pairing.batches(0, None, 1000))
    pairing.close()
    first, second = (part.sort(0).values for part in x.split(sizes)[:2])
    assert sizes == [32] * 8
    assert not torch.equal(first, second)


# ---------------------------------------------------------------- sources


def test_a_refused_source_is_not_kept() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,))
    with pytest.raises(ValueError, match="RectifiedFlow"):
        sde.source = moons()
    assert sde.source is None


def test_a_source_can_be_taken_back() -> None:
    sde = flow()
    sde.source = toy.Moons()
    sde.source = None
    assert sde.outcome.name == "score"


def test_a_run_is_not_resumed_with_another_source(tmp_path: Any) -> None:
    for shift in (0, 50):
        sde = flow()
        sde.source = moons() + shift
        if not shift:
            scoresde.fit(sde, moons(), steps=4, checkpoints=tmp_path / "run", **QUIET)
    again = scoresde.Checkpoints(tmp_path / "run", resume=True)
    with pytest.raises(scoresde.CheckpointError, match="source"):
        scoresde.fit(sde, moons(), steps=4, checkpoints=again, **QUIET)


def test_a_likelihood_says_that_the_source_was_not_saved(tmp_path: Any) -> None:
    sde = flow()
    sde.source = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    scoresde.save(sde, tmp_path / "model")
    with pytest.raises(ValueError, match="source") as caught:
        scoresde.log_prob(scoresde.load(tmp_path / "model"), moons(2))
    assert "saved" in str(caught.value)


class Empty(toy.Moons):
    """A law with a length, which is 0."""

    def __len__(self) -> int:
        return 0


def test_a_source_that_counts_as_false_is_saved(tmp_path: Any) -> None:
    sde = flow()
    sde.source = Empty()
    scoresde.save(sde, tmp_path / "model")
    assert scoresde.load(tmp_path / "model").source is not None


def test_a_conditioned_view_follows_the_outcome() -> None:
    sde = flow(classes=2)
    view = sde.given(y=1)
    scoresde.fit(sde, moons(), coupling="minibatch_ot", steps=2, **QUIET)
    assert view.outcome.name == "velocity"
    sde.source = toy.Moons()
    assert view.source is sde.source


def test_an_unknown_outcome_is_refused() -> None:
    sde = flow()
    for wrong in (
        "velocty",
        "distilled",
        "nodes",
        "nodes:0",
        "nodes:x",
        "score:2",
        "score:",
        None,
    ):
        with pytest.raises(ValueError, match="unknown outcome"):
            sde.outcome = wrong  # type: ignore[assignment]
    assert sde.outcome.name == "score"


def test_a_model_without_a_velocity_says_so() -> None:
    sde = flow("two_times")
    sde.outcome = "jump"
    with pytest.raises(ValueError, match="not its velocity"):
        sde.velocity(moons(2), 0.5)


# ---------------------------------------------------------------- couplings


class Labelled(Dataset[Any]):
    """Samples with labels, from a dataset."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> Any:
        return torch.randn(2), {"y": torch.tensor(i % 2)}


def test_plain_transport_warns_of_labels_from_a_dataset() -> None:
    with pytest.warns(UserWarning, match="condition_aware_ot"):
        scoresde.fit(flow(classes=2), Labelled(), coupling="minibatch_ot", steps=2, **QUIET)


def test_a_loaders_large_batches_are_warned_of() -> None:
    loader = DataLoader(TensorDataset(moons(1200)), 1200)
    with pytest.warns(UserWarning, match="joining"):
        scoresde.fit(flow(), loader, coupling=Counting(), steps=1, progress=False)


def test_warnings_of_couplings_point_at_the_caller() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        labels = {"y": torch.zeros(500, dtype=torch.long)}
        scoresde.fit(
            flow(classes=2), moons(), given=labels, coupling="minibatch_ot", steps=1, **QUIET
        )
    assert [w.filename for w in caught if "condition_aware_ot" in str(w.message)] == [
        inspect.getfile(Counting)
    ]


def test_no_rows_are_joined_that_no_step_takes() -> None:
    SEEN.clear()
    wide = scoresde.build("rectified", "mlp", shape=(4096,), width=8, fourier=0)
    scoresde.fit(
        wide, torch.randn(64, 4096, generator=generator(0)), coupling=Counting(), steps=1, **QUIET
    )
    assert len(SEEN) == 1


class Short(Coupling):
    """Returns too few rows."""

    def join(
        self, x0: Any, x1: Any, condition: Mapping[str, Any], rng: np.random.Generator
    ) -> Any:
        return np.arange(len(x0) // 2)


def test_what_a_coupling_returns_is_checked() -> None:
    with pytest.raises(ValueError, match="Short"):
        scoresde.fit(flow(), moons(), coupling=Short(), steps=1, **QUIET)


def test_entropic_plans_keep_the_law_of_the_source() -> None:
    """Each row of x1 is taken as often as any other, also where the iteration has not converged."""
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    x1 = rng.normal(size=(64, 784))
    x0 = np.sign(rng.normal(size=x1.shape)) * 0.9 + 0.2 * rng.normal(size=x1.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = scoresde.Sinkhorn().plan(x0, x1)
    np.testing.assert_allclose(plan.sum(0) * 64, 1, rtol=1e-9)


# ---------------------------------------------------------------- metrics


def test_nfe_for_error_draws_from_their_generator_alone() -> None:
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.RectifiedFlow())
    before = torch.get_rng_state()
    scoresde.metrics.nfe_for_error(sde, 0.5, n=4, generator=generator(0))
    assert torch.equal(before, torch.get_rng_state())


def test_noise_floor_takes_a_torch_distribution() -> None:
    law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    truth: Any = law
    assert (
        scoresde.noise_floor(scoresde.energy_distance, truth, 20, 3, generator=generator(0)).rms
        > 0
    )


class Plain(nn.Module):
    """A network with one time."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x


def test_a_map_wants_a_second_time() -> None:
    with pytest.raises(ValueError, match="span"):
        scoresde.ScoreSDE(scoresde.RectifiedFlow(), Plain(), shape=(2,), outcome="map")
