"""The protocol of models: whatever answers it works with every verb, exactly as a ScoreSDE does."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import scoresde
from scoresde import Derived, Model, ScoreSDE, toy
from scoresde.common.capabilities import Capability
from scoresde.model.outcomes import OUTCOMES, as_outcome, distilled, from_kind, to_kind


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Average(Derived):
    """The mean of two models' velocities."""

    def __init__(self, model: Model, other: Model) -> None:
        super().__init__(model)
        self.other = other

    def velocity_fn(self, *, raw: bool = False) -> Any:
        u = self.model.velocity_fn(raw=raw)
        v = self.other.velocity_fn(raw=raw)
        return lambda z, phi, rows=None: 0.5 * (u(z, phi, rows) + v(z, phi, rows))


@pytest.fixture
def moons() -> ScoreSDE:
    return scoresde.oracle(toy.Moons(), scoresde.VPSDE()).double()


@pytest.fixture
def gaussians() -> tuple[ScoreSDE, ScoreSDE]:
    """Two Gaussians, N(±1, I): the mean of their scores is that of N(0, I)."""
    means = (torch.full((1, 2), 1.0), torch.full((1, 2), -1.0))
    left, right = (scoresde.oracle(toy.GaussianMixture(m, 1.0), scoresde.VPSDE()) for m in means)
    return left.double(), right.double()


@pytest.mark.parametrize("solver", ["adams", "rk45", "em", "ddim", "dpmpp_2m", "heun", "pc"])
def test_the_average_of_a_model_with_itself_is_the_model(moons: ScoreSDE, solver: str) -> None:
    same = Average(moons, moons)
    got = scoresde.sample(same, 7, solver=solver, generator=generator())
    expected = scoresde.sample(moons, 7, solver=solver, generator=generator())
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_the_average_of_two_gaussians_has_their_mean_score(
    gaussians: tuple[ScoreSDE, ScoreSDE],
) -> None:
    """x_t ~ N(±α, I) for each, and so N(0, I) for the mean of their scores, at every time."""
    average = Average(*gaussians)
    x = torch.randn(50, 2, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(average.score(x, 0.3), -x, rtol=1e-9, atol=1e-9)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    log_p = scoresde.log_prob(average, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_p, normal, rtol=0, atol=1e-6)
    bound = scoresde.elbo(average, x, draws=64, generator=generator(1))
    assert bool(((bound.log_prob - normal).abs() < 5 * bound.stderr + 1e-3).all())


def test_a_model_made_from_others_is_neither_saved_nor_fitted(
    moons: ScoreSDE, tmp_path: Any
) -> None:
    average = Average(moons, moons)
    verbs = {
        "save": lambda: scoresde.save(average, tmp_path / "model"),  # type: ignore[arg-type]
        "fit": lambda: scoresde.fit(average, torch.randn(9, 2)),  # type: ignore[arg-type]
        "loss": lambda: scoresde.loss(average, torch.randn(9, 2)),  # type: ignore[arg-type]
    }
    for verb, call in verbs.items():
        with pytest.raises(
            TypeError, match=f"^{verb} takes a ScoreSDE.*Average.*made from others"
        ):
            call()
    with pytest.raises(TypeError, match=r"^Average is made from models, got Tensor"):
        Average(torch.zeros(2), moons)  # type: ignore[arg-type]


def test_conditions_reach_the_models_within() -> None:
    """Rows of conditions are cut in both models, whatever the batches."""
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,), classes=3, width=16)
    for parameter in sde.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    view = sde.given(y=torch.tensor([0, 1, 2, 1, 0]))
    average = Average(view, view)
    how = {"solver": "rk45", "batch_size": 2}
    got = scoresde.sample(average, generator=generator(), **how)
    expected = scoresde.sample(view, generator=generator(), **how)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    alone = scoresde.sample(
        Average(sde, sde).given(y=view.condition["y"]), generator=generator(), **how
    )
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="'y' has 5 rows for 4 samples"):
        scoresde.sample(average, 4)


def test_evaluations_of_a_model_of_two_are_counted_twice(moons: ScoreSDE) -> None:
    one = scoresde.solve(moons, 3, solver="heun", steps=5).nfe
    two = scoresde.solve(Average(moons, moons), 3, solver="heun", steps=5).nfe
    assert two.tolist() == (2 * one).tolist()


def test_views_hand_on_what_the_model_has() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,), classes=3)
    view = sde.given(y=1)
    assert view.net is sde.net
    assert view.eval() is view
    assert not sde.training
    assert view.double() is view
    assert sde.state_dtype == torch.float64
    twin = copy.deepcopy(view)
    assert twin.net is not sde.net
    assert twin.condition["y"].tolist() == [1]
    assert "given(y=[1])" in repr(view)


def test_outcomes_have_words_in_files() -> None:
    for outcome in (*OUTCOMES.values(), distilled(4)):
        if outcome.name == "distilled" and outcome.distilled_steps is None:
            continue
        assert from_kind(to_kind(outcome)) == outcome
    assert to_kind(OUTCOMES["endpoint"]) == "jump"
    assert as_outcome("nodes:2").distilled_steps == 2
    assert OUTCOMES["flow_map"].capabilities == {
        Capability.VELOCITY,
        Capability.ENDPOINT,
        Capability.FLOW_MAP,
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [("sees", "input_convention"), ("solver", "default_solver"), ("kind", "outcome")],
)
def test_old_names_work_for_a_version(old: str, new: str, moons: ScoreSDE) -> None:
    with pytest.warns(DeprecationWarning, match=new) as told:
        value = getattr(moons, old)
    assert told[0].filename == __file__
    assert value == {"sees": "raw", "solver": "adams", "kind": "score"}[old]


def test_old_arguments_work_for_a_version() -> None:
    with pytest.warns(DeprecationWarning, match="sees= is now input_convention="):
        scoresde.build("vp", "mlp", shape=(2,), sees="raw")
    with pytest.warns(DeprecationWarning, match="kind= is now outcome="):
        made = ScoreSDE(scoresde.VPSDE(), torch.nn.Identity(), shape=(2,), kind="jump")
    assert made.outcome.name == "endpoint"


def test_a_model_is_not_a_tensor() -> None:
    with pytest.raises(TypeError, match="sample needs a ScoreSDE, got Tensor"):
        scoresde.sample(torch.zeros(2))  # type: ignore[arg-type]


# ------------------------------------------------------------------ views


def labelled() -> ScoreSDE:
    """A model of three classes with weights that are not 0, in eval mode."""
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,), classes=3, axes=0)
    for parameter in sde.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return sde.eval()


def test_every_method_of_a_view_runs_under_its_conditions() -> None:
    """Also those that only ScoreSDE has, those of subclasses, and those by their old names."""

    class Doubling(ScoreSDE):
        def doubled(self, x: torch.Tensor, t: float) -> torch.Tensor:
            return 2 * self.score(x, t)

    net = labelled().net
    view = Doubling(scoresde.VPSDE(), net, shape=(2,)).eval().given(y=torch.tensor([0, 1, 2]))
    z = torch.ones(3, 2)
    expected = view.network_fn()(z, 0.5, None)
    assert torch.equal(view.output(z, 0.5), expected)
    assert torch.equal(view.doubled(z, 0.5), 2 * view.score(z, 0.5))
    with pytest.warns(DeprecationWarning, match=r"Conditioned.caller is now .network_fn"):
        assert torch.equal(view.caller()(z, 0.5, None), expected)
    with pytest.warns(DeprecationWarning, match="slice_conditions"):
        assert view.rows(1, 3, 3).condition["y"].tolist() == [1, 2]


def test_a_subclass_that_its_views_would_not_follow_is_refused() -> None:
    class Scaled(ScoreSDE):
        def network_fn(self, *, raw: bool = False, traced: bool = False) -> Any:
            output = super().network_fn(raw=raw)
            return lambda z, phi, rows=None: 2 * output(z, phi, rows)

    scaled = Scaled(scoresde.VPSDE(), labelled().net, shape=(2,))
    assert scoresde.sample(scaled, 2, solver="euler", steps=2).shape == (2, 2)
    with pytest.raises(TypeError, match=r"Scaled overrides network_fn.*scoresde\.Derived"):
        scaled.given(y=1)


@pytest.mark.parametrize(
    "how", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_copies_of_views_keep_their_conditions(how: Any) -> None:
    view = labelled().given(y=torch.tensor([2, 0]))
    twin = how(view)
    x = torch.ones(2, 2)
    assert torch.equal(twin.score(x, 0.5), view.score(x, 0.5))
    assert (twin.net is view.net) == (how is copy.copy)


def test_views_of_one_model_work_in_threads() -> None:
    sde = labelled().train()
    views = [sde.given(y=k % 3) for k in range(6)]

    def draw(view: Any) -> torch.Tensor:
        return scoresde.sample(view, 8, solver="euler", steps=5, generator=generator())

    alone = [draw(view) for view in views]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(draw, views))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert sde.training


def test_views_work_in_inference_mode_and_through_compiled_networks() -> None:
    view = labelled().given(y=1)
    x = torch.ones(2, 2)
    expected = view.score(x, 0.5)
    with torch.inference_mode():
        assert torch.equal(labelled().given(y=1).score(x, 0.5), expected)
    compiled = torch.compile(view.net, backend="eager")
    again = ScoreSDE(scoresde.VPSDE(), compiled, shape=(2,)).given(y=1)
    torch.testing.assert_close(again.score(x, 0.5), expected)


# ------------------------------------------------------------------ models made from others


@pytest.mark.parametrize("first", ["labelled", "plain"])
def test_each_model_is_given_the_conditions_that_it_takes(first: str) -> None:
    plain = scoresde.build("vp", "mlp", shape=(2,)).eval()
    models = (labelled(), plain) if first == "labelled" else (plain, labelled())
    average = Average(*models)
    y = torch.tensor([0, 1, 2])
    both = average.given(y=y)
    assert [len(m.condition) for m in both.models.values()] == (
        [1, 0] if first == "labelled" else [0, 1]
    )
    again = average.with_condition({"y": y})
    how: dict[str, Any] = {"solver": "euler", "steps": 4, "batch_size": 2}
    got = scoresde.sample(both, generator=generator(), **how)
    assert len(got) == 3
    torch.testing.assert_close(got, scoresde.sample(again, generator=generator(), **how))
    with pytest.raises(ValueError, match="takes no condition 'z'"):
        average.given(y=1, z=2)


def test_rows_of_conditions_are_chosen_in_each_model() -> None:
    """Two models under values of one name keep them apart, as guidance needs."""
    sde = labelled()
    average = Average(sde.given(y=1), sde.given(y=torch.tensor([0, 2])))
    assert average.condition_rows == 2
    chosen = average.select_conditions(torch.tensor([1, 1, 0]))
    assert chosen.model.condition["y"].tolist() == [1]
    assert chosen.other.condition["y"].tolist() == [2, 2, 0]
    law = scoresde.Distribution(average, solver="euler", steps=4)
    assert law.batch_shape == (2,)
    x = torch.zeros(2, 2)
    expected = scoresde.log_prob(average, x, solver="euler", steps=4)
    torch.testing.assert_close(law.log_prob(x), expected)


def test_all_models_are_converted_and_set_to_a_mode() -> None:
    average = Average(labelled(), labelled())
    assert average.double() is average
    assert average.train() is average
    assert [m.state_dtype for m in average.models.values()] == [torch.float64] * 2
    assert all(m.training for m in average.models.values())
    assert scoresde.sample(average, 3, solver="euler", steps=2).dtype == torch.float64
    assert average.training
    z = torch.ones(2, 2, dtype=torch.float64)
    assert torch.equal(average.output(z, 0.5), average.network_fn()(z, 0.5, None))
    for made in (average, Average(average.model.given(y=1), average.other)):
        with pytest.raises(
            AttributeError, match="Average is made from models and has no state_di"
        ):
            made.state_dict()


def test_no_model_is_asked_where_its_prediction_is_singular() -> None:
    """`x0` at φ = 0 leaves ε open, whatever the average of two such predicts."""
    gaussian = toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    exact = scoresde.oracle(gaussian, scoresde.VPSDE()).double()

    class Denoiser(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return exact.process.alpha(t)[:, None] * x

    sde = ScoreSDE(
        scoresde.VPSDE(), Denoiser(), shape=(2,), predict="x0", input_convention="raw"
    ).double()
    average = Average(sde, sde)
    assert average.phi_min == sde.phi_min > 0
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    assert bool(average.velocity(x, 0.0).isfinite().all())
    torch.testing.assert_close(
        scoresde.log_prob(average, x), scoresde.log_prob(exact, x), rtol=0, atol=1e-3
    )


def test_the_old_name_of_an_attribute_sets_the_new_one(moons: ScoreSDE) -> None:
    with pytest.warns(DeprecationWarning, match="sees is now .input_convention"):
        moons.sees = "arc"
    assert moons.input_convention == "arc"


QUIET: dict[str, Any] = {"progress": False, "batch_size": 32}


def flow(net: str = "mlp", **options: Any) -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build("rectified", net, shape=(2,), width=16, **options)


def moons_sample(n: int = 500) -> torch.Tensor:
    return toy.Moons().sample(n, generator=generator(0))


def test_a_conditioned_view_follows_the_outcome() -> None:
    sde = flow(classes=2)
    view = sde.given(y=1)
    scoresde.fit(sde, moons_sample(), coupling="minibatch_ot", steps=2, **QUIET)
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


@pytest.mark.parametrize("outcome", ["flow_map", "bridge"])
def test_what_takes_further_inputs_is_not_claimed_by_a_model_made_from_others(
    outcome: str,
) -> None:
    """A second time or an end of the bridge does not reach the network through `velocity_fn`: a
    flow map would jump along its velocity, with other samples.
    """
    torch.manual_seed(0)
    names = {"flow_map": ("rectified", "two_times"), "bridge": ("bridge", "two_drifts")}
    sde = scoresde.build(*names[outcome], shape=(2,))
    for parameter in sde.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    sde.outcome = OUTCOMES[outcome]
    same = Average(sde, sde)
    assert same.capabilities == {"velocity"}
    assert same.default_solver == "adams"
    with pytest.raises(ValueError, match="this model"):
        scoresde.sample(same, 2, solver=outcome)
    got = scoresde.sample(same, 5, steps=8, generator=generator())
    wanted = scoresde.sample(sde, 5, solver="adams", steps=8, generator=generator())
    torch.testing.assert_close(got, wanted)


def test_a_model_made_from_others_can_do_what_all_can() -> None:
    def model(outcome: Any) -> ScoreSDE:
        net = scoresde.build("rectified", "two_times", shape=(2,)).net
        return ScoreSDE(scoresde.RectifiedFlow(), net, shape=(2,), outcome=outcome)

    score, velocity, jumps, steps = map(model, ("score", "velocity", "endpoint", distilled(2)))
    for pair in ((score, velocity), (velocity, score), (score, model("flow_map"))):
        assert Average(*pair).outcome == OUTCOMES["velocity"]
    for one in (score, jumps, steps):
        assert Average(one, one).outcome == one.outcome
    for pair in ((score, jumps), (jumps, model("flow_map")), (steps, score), (steps, jumps)):
        with pytest.raises(ValueError, match="have nothing in common"):
            scoresde.sample(Average(*pair))


def test_the_models_of_a_model_are_shown(moons: ScoreSDE) -> None:
    average = Average(moons, labelled().given(y=1))
    average.weight = 0.5
    rows = repr(average).splitlines()
    assert rows[0].startswith("Average: ")
    assert rows[1] == "  made of     model=ScoreSDE, other=ScoreSDE.given(y=[1]), weight=0.5"


# ------------------------------------------------------------------ guidance


class Guided(Derived):
    """(1 − w)·unconditional + w·conditional velocity."""

    def __init__(self, model: Model, other: Model, weight: float) -> None:
        super().__init__(model)
        self.other = other
        self.weight = weight

    def velocity_fn(self, *, raw: bool = False) -> Any:
        with_y = self.model.velocity_fn(raw=raw)
        without = self.other.velocity_fn(raw=raw)
        w = self.weight
        return lambda z, phi, rows=None: (1 - w) * without(z, phi, rows) + w * with_y(z, phi, rows)


class Classes(torch.nn.Module):
    """The exact output for N(m_y, ½²), and for their mixture without a class."""

    def __init__(self) -> None:
        super().__init__()
        self.condition_shapes: dict[str, tuple[int, ...]] = {"y": ()}
        means = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])
        laws = [toy.GaussianMixture(m, 0.5) for m in (means, *means.split(1))]
        self.nets = torch.nn.ModuleList(scoresde.oracle(law, VP).net for law in laws)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None
    ) -> torch.Tensor:
        out = torch.stack([net(x, t) for net in self.nets])
        return out[0] if y is None else out[1 + y, torch.arange(len(x))]


VP = scoresde.VPSDE()
Y = torch.tensor([0, 1, 2, 1, 0])


def classes() -> ScoreSDE:
    return ScoreSDE(VP, Classes(), shape=(2,), input_convention="raw").double()


@pytest.mark.parametrize(
    ("make", "weight"),
    [
        (labelled, 1.0),
        pytest.param(classes, 0.0, marks=pytest.mark.slow),
        pytest.param(classes, 1.0, marks=pytest.mark.slow),
        pytest.param(labelled, 0.0, marks=pytest.mark.slow),
    ],
)
def test_guidance_of_weight_0_and_1_is_one_of_its_models(make: Any, weight: float) -> None:
    """One network stands for both: `given()` makes the one that stays without conditions."""
    sde = make().double()
    guided = Guided(sde, sde.given(), weight).given(y=Y)
    expected = sde.given(y=Y) if weight else sde.given()
    verbs: dict[str, Any] = {
        f"sample {solver}": lambda m, s=solver: scoresde.sample(
            m, 5, solver=s, steps=8, batch_size=2, generator=generator()
        )
        for solver in ("heun", "em", "ddim", "dpmpp_2m")
    }
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    how: dict[str, Any] = {"solver": "heun", "steps": 8, "batch_size": 3}
    bits = (torch.arange(10).reshape(5, 2), scoresde.dequantize.Uniform(16))
    verbs |= {
        "log_prob": lambda m: scoresde.log_prob(m, x, **how),
        "hutchinson": lambda m: scoresde.log_prob(
            m, x, trace="hutchinson", probes=1, generator=generator(), **how
        ),
        "elbo": lambda m: scoresde.elbo(m, x, draws=4, generator=generator()).log_prob,
        "bits": lambda m: scoresde.bits_per_dim(m, *bits, generator=generator(), **how).bits,
        "encode": lambda m: scoresde.encode(m, x, **how),
        "decode": lambda m: scoresde.decode(m, x, **how),
        "score": lambda m: m.score(x, 0.3),
        "distribution": lambda m: scoresde.Distribution(m, solver="heun", steps=8).log_prob(x),
    }
    for name, verb in verbs.items():
        torch.testing.assert_close(
            torch.as_tensor(verb(guided)), torch.as_tensor(verb(expected)), msg=name
        )


def test_guidance_of_weight_2_has_the_score_that_it_states() -> None:
    sde = classes()
    guided = Guided(sde, sde.given(), 2.0).given(y=Y)
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    expected = 2 * sde.given(y=Y).score(x, 0.3) - sde.given().score(x, 0.3)
    torch.testing.assert_close(guided.score(x, 0.3), expected)
    view = sde.given(y=Y)
    same = Guided(view, view.with_condition({}).given(), 2.0)
    torch.testing.assert_close(same.score(x, 0.3), expected)
    two = Guided(sde, scoresde.oracle(Classes().nets[0].mixture, VP).double(), 2.0).given(y=Y)
    torch.testing.assert_close(two.score(x, 0.3), expected)
    assert guided.condition["y"].tolist() == Y.tolist()
    assert scoresde.solve(guided, solver="heun", steps=3).nfe.tolist() == [12] * 5
    twin = copy.deepcopy(guided)
    torch.testing.assert_close(twin.score(x, 0.3), expected)
    again = guided.given(y=torch.tensor([1]))
    torch.testing.assert_close(again.score(x, 0.3)[1], expected[1])


def test_conditions_reach_models_without_them_on_purpose_if_all_are() -> None:
    sde = labelled()
    guided = Guided(sde, sde.given(), 2.0)
    assert not guided.unconditional
    assert guided.given().unconditional
    both = guided.given().given(y=1)
    assert [len(m.condition) for m in both.models.values()] == [1, 1]
    assert [len(m.condition) for m in guided.given(y=1).models.values()] == [1, 0]


# ------------------------------------------------------------------ further capabilities


class Curved(Derived):
    """A model that also gives d²z/dφ²."""

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"curvature"}

    def curvature_fn(self, *, raw: bool = False) -> Any:
        velocity = self.velocity_fn(raw=raw)

        def curvature(z: torch.Tensor, phi: Any, rows: Any = None) -> torch.Tensor:
            phi = torch.as_tensor(phi, dtype=torch.float64).expand(len(z))
            point = (z, phi)
            along = (velocity(z, phi, rows), torch.ones_like(phi))
            with torch.enable_grad():
                found: torch.Tensor = torch.autograd.functional.jvp(
                    lambda z, phi: velocity(z, phi, rows), point, along
                )[1]
            return found

        return curvature


class Taylor(scoresde.Stepper):
    """The Taylor series of order 2."""

    order = 2
    spacing = "arc"
    needs = frozenset({"velocity", "curvature"})
    evaluations = 2

    def step(self, problem: Any, z: torch.Tensor, i: int) -> torch.Tensor:
        here, there = problem.levels[i : i + 2]
        h = there.phi - here.phi
        curvature = problem.field("curvature")(z, here.phi)
        return z + h * problem.velocity(z, here.phi, None) + 0.5 * h * h * curvature


@pytest.fixture
def curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "this model has no curvature: write Curved(sde)"
    monkeypatch.setitem(scoresde.CAPABILITIES, "curvature", text)


@pytest.mark.usefixtures("curvature")
def test_a_solver_may_need_a_further_output_of_a_model(moons: ScoreSDE) -> None:
    """Of order 2, counted, checked, and refused for models without it."""
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.VPSDE()).double()
    curved = Curved(sde)

    def ends(solver: Any, **how: Any) -> torch.Tensor:
        return scoresde.sample(curved, 100, solver=solver, generator=generator(), **how)

    truth = ends("dop853", rtol=1e-8, atol=1e-8)
    coarse, fine = ((ends(Taylor(), steps=n) - truth).norm() for n in (100, 200))
    assert 1.8 < float((coarse / fine).log2()) < 2.2
    assert scoresde.solve(curved, 2, solver=Taylor(), steps=5).nfe.tolist() == [10, 10]
    outer = Average(curved, curved)  # its curvature is its own, and not known
    for model in (sde, sde.given(), outer):
        with pytest.raises(ValueError, match=r"no curvature: write Curved"):
            scoresde.sample(model, 2, solver=Taylor())

    class Broken(Curved):
        def curvature_fn(self, *, raw: bool = False) -> Any:
            return lambda z, phi, rows=None: z * float("nan")

    with pytest.raises(scoresde.SolverError, match="output is not finite for 2 of 2 samples at φ"):
        scoresde.sample(Broken(sde), 2, solver=Taylor())


def test_what_follows_from_a_velocity_every_model_with_one_has(
    moons: ScoreSDE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, conditioned and made from others; those without a velocity are refused."""
    monkeypatch.setitem(scoresde.FIELDS, "curvature", lambda model: Curved(model).curvature_fn())
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.VPSDE()).double()
    how: dict[str, Any] = {"solver": Taylor(), "steps": 5}
    expected = scoresde.sample(Curved(sde), 4, generator=generator(), **how)
    for model in (sde, sde.given(), Average(sde, sde)):
        got = scoresde.sample(model, 4, generator=generator(), **how)
        torch.testing.assert_close(got, expected)
    moons.outcome = "endpoint"
    with pytest.raises(ValueError, match="not its velocity"):
        scoresde.sample(moons, 2, **how)


@pytest.mark.usefixtures("curvature")
def test_a_further_output_runs_under_conditions() -> None:
    """Of a model made from others and of a subclass of ScoreSDE, whose views are as able."""

    class Able(ScoreSDE):
        @property
        def capabilities(self) -> frozenset[str]:
            return super().capabilities | {"curvature"}

        curvature_fn = Curved.curvature_fn

    net = labelled().double().net
    able = Able(scoresde.VPSDE(), net, shape=(2,)).eval().double()
    plain = ScoreSDE(scoresde.VPSDE(), net, shape=(2,)).eval().double()
    how: dict[str, Any] = {"solver": Taylor(), "steps": 10}
    expected = [
        scoresde.sample(Curved(plain.given(y=int(y))), 5, generator=generator(), **how)[i]
        for i, y in enumerate(Y)
    ]
    for model in (able.given(y=Y), Curved(plain).given(y=Y), Curved(plain.given(y=Y))):
        got = scoresde.sample(model, generator=generator(), batch_size=2, **how)
        torch.testing.assert_close(got, torch.stack(expected))


@pytest.mark.usefixtures("curvature")
def test_an_unknown_capability_is_named_with_the_nearest(moons: ScoreSDE) -> None:
    class Misspelt(Taylor):
        needs = frozenset({"curvatur"})

    with pytest.raises(ValueError, match=r"unknown capability 'curvatur'.*mean 'curvature'"):
        scoresde.sample(moons, solver=Misspelt())


class Halved(Derived):
    """Half the first model's network, by `network_fn` alone."""

    @property
    def predict(self) -> str:  # type: ignore[override]
        return self.model.predict

    def network_fn(self, *, raw: bool = False, traced: bool = False) -> Any:
        if traced:
            return super().network_fn(raw=raw, traced=True)
        out = self.model.network_fn(raw=raw)
        return lambda z, phi, rows=None: 0.5 * out(z, phi, rows)


def test_an_overridden_network_is_that_of_every_verb(moons: ScoreSDE) -> None:
    """`sample`, which takes the velocity, and `score`, which takes the network, are of one law."""
    half = Halved(moons)
    z = torch.randn(3, 2, dtype=torch.float64, generator=generator())
    got = half.velocity_fn()(z, 0.7, None)
    torch.testing.assert_close(got, Model.velocity_fn(half)(z, 0.7, None), rtol=0, atol=0)
    assert not torch.equal(got, moons.velocity_fn()(z, 0.7, None))
    solved = scoresde.solve(half, 2, times=[1.0, 0.0], generator=generator()).x[-1]
    assert torch.isfinite(scoresde.log_prob(half, solved)).all()


@pytest.mark.parametrize("name", ["scale", "mean", "shape", "source", "given"])
def test_a_derived_model_says_which_names_are_taken(moons: ScoreSDE, name: str) -> None:
    class Scaled(Derived):
        def __init__(self, model: Model) -> None:
            super().__init__(model)
            setattr(self, name, 2.0)

    with pytest.raises(AttributeError, match=f"Scaled can't set '{name}', which every model has"):
        Scaled(moons)


def test_a_network_that_asks_for_the_derived_one_ends(moons: ScoreSDE) -> None:
    class Same(Derived):
        def network_fn(self, *, raw: bool = False, traced: bool = False) -> Any:
            return super().network_fn(raw=raw, traced=traced)

    z = torch.randn(3, 2, dtype=torch.float64, generator=generator())
    got, expected = (model.velocity_fn()(z, 0.7, None) for model in (Same(moons), moons))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("differs", ["process", "shape", "mean", "source"])
def test_models_that_do_not_go_together_are_refused(differs: str) -> None:
    def built(process: str = "rectified", size: int = 2) -> ScoreSDE:
        return scoresde.build(process, "mlp", shape=(size,), width=8)

    first, other = built(), built()
    if differs == "process":
        other = built("vp")
    elif differs == "shape":
        other = built(size=3)
    elif differs == "mean":
        other.standardize(torch.tensor([[0.0, 1.0], [5.0, 8.0]]))
    else:
        other.source = toy.Moons()
    for model in (Average(first, other), Average(Average(first, first), other)):
        for call in (lambda m: scoresde.sample(m, 2), lambda m: m.score(torch.ones(1, 2), 0.5)):
            with pytest.raises(
                ValueError, match=rf"share process, .* and \.other has .*{differs}"
            ):
                call(model)


@pytest.mark.parametrize("name", ["caller", "flow", "offers", "solver"])
def test_a_method_by_its_old_name_is_not_passed_over(name: str) -> None:
    with pytest.raises(TypeError, match=f"Mine overrides {name}, which is now"):
        type("Mine", (ScoreSDE,), {name: lambda self: None})


def test_a_pickle_of_before_is_a_model(moons: ScoreSDE) -> None:
    """The attributes that version 0.1 had, which it kept in lists."""
    before = dict(vars(moons))
    del before["input_convention"], before["learnt"]
    for name in ("_outcome", "_source", "_standardization", "_interface"):
        before.pop(name, None)
    before |= {"sees": moons.input_convention, "_kind": ["nodes:2"], "condition": {}, "_said": []}
    before |= {"_learnt": [None], "_shares": False, "_source": [None], "_units": None}
    made = ScoreSDE.__new__(ScoreSDE)
    made.__setstate__(dict(before))
    assert made.outcome == distilled(2)
    assert made.source is made.learnt is None
    x = torch.ones(1, 2, dtype=torch.float64)
    assert torch.equal(made.denoise(x, 0.5)[0], moons.denoise(x, 0.5)[0])
    with pytest.raises(TypeError, match="a view made by given"):
        ScoreSDE.__new__(ScoreSDE).__setstate__(before | {"condition": {"y": torch.ones(1)}})


def test_old_words_of_capabilities(moons: ScoreSDE) -> None:
    jumps = ScoreSDE(moons.process, moons.net, shape=(2,), outcome="endpoint")
    with pytest.warns(DeprecationWarning, match="capabilities"):
        offers = jumps.offers
    assert "jump" in offers
    assert "map" not in offers
    with pytest.warns(DeprecationWarning, match="require"):
        jumps.check("jump")
    with pytest.warns(DeprecationWarning, match="distilled_steps"):
        assert moons.nodes == 0


def test_a_backbone_whose_hide_is_overridden_uses_it() -> None:
    class Mine(scoresde.MLP):
        def hide(self, condition: Any, generator: Any) -> Any:
            raise RuntimeError("mine")

    sde = ScoreSDE(scoresde.VPSDE(), Mine((2,), width=8, classes=3), shape=(2,))
    with pytest.raises(RuntimeError, match="mine"):
        scoresde.fit(sde, torch.randn(9, 2), given={"y": torch.arange(9) % 3}, steps=2)


def test_models_in_a_list_are_refused(moons: ScoreSDE) -> None:
    for held in ([moons], (moons, moons), {"a": moons}):
        with pytest.raises(TypeError, match="parts holds several models: give each an attribute"):
            Average(moons, moons).parts = held
