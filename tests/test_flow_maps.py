"""Flow maps against the exact ones of Gaussians: the loss that learns them, the network that holds
them, the solvers.

For x0 ~ N(μ, c²) the state at φ is N(cos φ·μ, S(φ)²), S² = c²·cos²φ + sin²φ, and the flow keeps
quantiles: F(z, φ, s) = cos s·μ + S(s)/S(φ)·(z − cos φ·μ).
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import PROCESSES, fitting, generator, rotated, some
from scoresde import ScoreSDE, toy
from scoresde.backbones import BACKBONES, TwoTimes
from scoresde.backbones.base import takes
from scoresde.solvers import SOLVERS
from scoresde.training.flow_maps import (
    ConsistencyTraining,
    MeanFlow,
    average_velocity,
    drift,
    residual,
)
from scoresde.training.noise_levels import stratified_quantiles

MEAN, STD = 0.7, 0.4


def spread(phi: Tensor) -> Tensor:
    return (STD**2 * phi.cos() ** 2 + phi.sin() ** 2).sqrt()


def exact_map(z: Tensor, phi: Tensor, s: Tensor) -> Tensor:
    return s.cos() * MEAN + spread(s) / spread(phi) * (z - phi.cos() * MEAN)


def exact_velocity(z: Tensor, phi: Tensor) -> Tensor:
    slope = (1 - STD**2) * phi.sin() * phi.cos() / spread(phi) ** 2
    return -phi.sin() * MEAN + slope * (z - phi.cos() * MEAN)


def exact_w(z: Tensor, phi: Tensor, s: Tensor) -> Tensor:
    """The average velocity: (cos δ·z − F)/sin δ, and its limit at δ = 0."""
    phi, s = phi[:, None], s[:, None]
    span = phi - s
    jump = (span.cos() * z - exact_map(z, phi, s)) / torch.where(
        span.abs() < 1e-6, 1.0, span.sin()
    )
    return torch.where(span.abs() < 1e-6, exact_velocity(z, phi), jump)


class Exact(nn.Module):
    """The exact flow map of N(MEAN, STD²) as a network that sees (x_t, t); `bend` is an error that
    training has to find.
    """

    def __init__(self, process: scoresde.Process) -> None:
        super().__init__()
        self.process, self.bend = process, nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, span: Tensor | None = None) -> Tensor:
        s = self.process.phi(t)
        phi = s if span is None else s + span
        z = (x / self.process.radius(t).reshape(-1, *(1,) * (x.ndim - 1))).flatten(1)
        a, b, c = self.bend
        return (a + b * z + c * (phi - s)[:, None] - exact_w(z, phi, s)).reshape(x.shape)


def exact_model(name: str, shape: tuple[int, ...] = (3,), kind: str = "map") -> ScoreSDE:
    process = scoresde.PROCESSES.build(name)
    return ScoreSDE(
        process, Exact(process), shape=shape, input_convention="raw", outcome=kind
    ).double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def angles(n: int) -> tuple[Tensor, Tensor]:
    phi = 0.05 + 1.5 * torch.rand(n, generator=generator(1), dtype=torch.float64)
    return phi, phi * torch.rand(n, generator=generator(2), dtype=torch.float64)


def test_the_exact_map_leaves_no_residual_and_another_does() -> None:
    """R of the exact map is 0 but for the O(h²) of the difference, which a quarter of h² shows; of
    a bent one it is not.
    """
    z, (phi, s) = normal(200, 3), angles(200)
    v = exact_velocity(z, phi[:, None])
    left = []
    for h in (0.02, 0.01):
        left.append(
            residual(exact_w(z, phi, s), drift(exact_w, z, v, phi, s, h), z, v, phi - s)
            .abs()
            .max()
        )
    assert left[1] < 1e-3
    assert 3.8 < left[0] / left[1] < 4.2

    def bent(z: Tensor, phi: Tensor, s: Tensor) -> Tensor:
        return exact_w(z, phi, s) + 0.1 * (phi - s)[:, None]

    assert residual(bent(z, phi, s), drift(bent, z, v, phi, s), z, v, phi - s).abs().mean() > 0.02


def test_the_difference_is_the_derivative_of_forward_mode() -> None:
    z, (phi, s) = normal(50, 3), angles(50)
    v = normal(50, 3, seed=3)
    _, exact = torch.autograd.functional.jvp(
        lambda z, phi: exact_w(z, phi, s), (z, phi), (v, torch.ones_like(phi))
    )
    torch.testing.assert_close(drift(exact_w, z, v, phi, s, 1e-3), exact, rtol=1e-3, atol=1e-4)


def test_the_residual_is_how_the_map_changes_along_the_path() -> None:
    """R = dF/dφ at fixed s, for any network and path: by automatic differentiation of F itself."""
    z, (phi, s) = normal(20, 2), angles(20)
    v = normal(20, 2, seed=3)

    def w(z: Tensor, phi: Tensor, s: Tensor) -> Tensor:
        return torch.tanh(z.flip(1) * phi[:, None]) + torch.sin(2 * s + phi)[:, None] * z

    def jump(z: Tensor, phi: Tensor) -> Tensor:
        span = (phi - s)[:, None]
        return span.cos() * z - span.sin() * w(z, phi, s)

    _, change = torch.autograd.functional.jvp(jump, (z, phi), (v, torch.ones_like(phi)))
    got = residual(w(z, phi, s), drift(w, z, v, phi, s, 1e-4), z, v, phi - s)
    torch.testing.assert_close(got, change, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "objective"),
    rotated(["rectified", "vp", "ve"], [MeanFlow(), ConsistencyTraining(), MeanFlow(to_data=0.0)]),
    ids=lambda o: str(getattr(o, "to_data", o)),
)
def test_the_gradient_vanishes_at_the_exact_map(name: str, objective: MeanFlow) -> None:
    """Mean gradient over 64 batches of 1,024 at the exact map: within 4 standard errors of 0 in
    all parameters (false alarms: 2e-4 a case), and not so, with the sign that leads back, where
    the map is bent.
    """
    sde = exact_model(name)
    net: Any = sde.net

    def gradients(batches: int) -> Tensor:
        found = []
        for i in range(batches):
            g = generator(100 + i)
            z0 = MEAN + STD * torch.randn(1024, 3, generator=g, dtype=torch.float64)
            eps = torch.randn(1024, 3, generator=g, dtype=torch.float64)
            q = stratified_quantiles(1, 1024, g, torch.device("cpu"))
            net.bend.grad = None
            objective(net, sde, z0, eps, q, {}, 0.5, g).backward()
            found.append(net.bend.grad.clone())
        return torch.stack(found)

    there = gradients(64)
    assert bool(
        (there.mean(0).abs() < 4 * there.std(0) / 8 + 1e-4).all()
    )  # 1e-4: the difference's h²
    for i in range(3):
        with torch.no_grad():
            net.bend.zero_()
            net.bend[i] = 0.3
        bent = gradients(8)[:, i]
        assert bent.mean() > 6 * bent.std() / 8**0.5


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_rows_are_drawn_as_the_module_says(kind: str) -> None:
    """Half of the rows on the diagonal; the others stratified over the whole arc, and `to_data` of
    them go to the data.
    """
    sde = scoresde.build("rectified", "two_times", shape=(2,)).to(getattr(torch, kind))
    q = stratified_quantiles(1, 4096, generator(), torch.device("cpu")).sort().values
    phi, s = MeanFlow(to_data=0.25).angles(sde, q, generator(1))
    assert torch.equal(phi[:2048], s[:2048])
    low = torch.arange(2048) / 2048 * math.pi / 2
    assert bool((phi[2048:] >= low).all() & (phi[2048:] <= low + math.pi / 4096 + 1e-12).all())
    assert bool((s[2048:] < phi[2048:]).all())
    share = float((s[2048:] == 0).double().mean())
    assert abs(share - 0.25) < 4 * math.sqrt(
        0.25 * 0.75 / 2048
    )  # 4 standard errors: false alarms 6e-5
    way = (s / phi)[2048:][s[2048:] > 0].sort().values
    assert abs(way - (torch.arange(len(way)) + 0.5) / len(way)).max() < 2.2 / math.sqrt(
        len(way)
    )  # Kolmogorov: 1e-4


@pytest.mark.parametrize("b", some([1, 2, 3, 5], 1, 3))
def test_levels_have_the_same_law_in_batches_of_every_size(b: int) -> None:
    """Also in pieces of a batch whose gradients are accumulated: half of all rows are on the
    diagonal, with the usual law; the others are uniform on the arc. Each within 4 standard errors,
    or Kolmogorov's 1e-4, which stratification only betters.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    class Watching(MeanFlow):
        def angles(self, *args: Any) -> tuple[Tensor, Tensor]:
            seen.append(super().angles(*args))
            return seen[-1]

    sde = scoresde.build("rectified", "two_times", shape=(2,), width=8)
    whole, n = stratified_quantiles(1, 300 * b, generator(), torch.device("cpu")), 300 * b
    for i in range(0, n, b):
        z0, eps = torch.randn(2, b, 2, generator=generator(i))
        loss = Watching()(sde.net, sde, z0, eps, whole[i : i + b], {}, 0.5, generator(i + 1))
        assert bool(loss.isfinite())
    phi, s = (torch.cat(column) for column in zip(*seen, strict=True))
    on = phi == s
    assert abs(float(on.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(n)
    quantile = (torch.tan(phi[on]).log() + 1.5) / 1.5
    for levels in (torch.special.ndtr(quantile), phi[~on] / (math.pi / 2)):
        assert (
            levels.sort().values - (torch.arange(len(levels)) + 0.5) / len(levels)
        ).abs().max() < 2.2 / math.sqrt(len(levels))


# ------------------------------------------------------------------ solvers


@pytest.mark.parametrize(("name", "shape"), rotated(PROCESSES, [(3,), (1, 2, 2)]))
def test_a_flow_map_leads_where_the_ode_does_in_any_number_of_steps(
    name: str, shape: tuple[int, ...]
) -> None:
    sde = exact_model(name, shape)
    ode = scoresde.sample(sde, 40, solver="adams", rtol=1e-10, atol=1e-10, generator=generator())
    for steps, n in ((1, 40), (2, 40), (5, 1)):
        solved = scoresde.solve(sde, n, solver="flow_map", steps=steps, generator=generator())
        torch.testing.assert_close(solved.x[-1], ode[:n], rtol=0, atol=1e-7)
        assert solved.nfe.tolist() == [steps] * n


@pytest.mark.parametrize(("name", "kind"), rotated(PROCESSES, ["map", "jump"]))
def test_consistency_sampling_draws_from_the_law_at_every_number_of_steps(
    name: str, kind: str
) -> None:
    """Mean and variance of 60,000 independent numbers within 4 standard errors (false alarms: 1e-4
    a number of steps).
    """
    sde = exact_model(name, kind=kind)
    process = sde.process
    start, n = process.phi_max, 20_000
    phi0 = torch.tensor(process.phi_min, dtype=torch.float64)
    far = torch.tensor(start, dtype=torch.float64)
    for steps in (1, 2, 3):
        x = scoresde.sample(
            sde, n, solver="consistency", steps=steps, generator=generator(steps)
        ).flatten() / float(process.radius(torch.zeros((), dtype=torch.float64)))
        mean, std = phi0.cos() * MEAN, spread(phi0)
        if (
            steps == 1
        ):  # from N(0, 1), which is not quite the law at φ_max of data that were not standardized
            mean, std = (
                exact_map(torch.zeros((), dtype=torch.float64), far, phi0),
                spread(phi0) / spread(far),
            )
        elif start < math.pi / 2 - 0.05:
            continue
        assert abs(float(x.mean() - mean)) < 4 * float(std) / math.sqrt(3 * n) + 1e-3 * (steps > 1)
        assert abs(float(x.var() / std**2) - 1) < 4 * math.sqrt(2 / (3 * n)) + 1e-3 * (steps > 1)


def test_consistency_steps_are_the_formula() -> None:
    """Song et al. 2023, algorithm 1, by hand for a rectified flow: jump to the data, mix with
    fresh noise, jump again.
    """
    sde = exact_model("rectified", kind="jump")
    nodes = scoresde.sampling.problem.levels(
        sde, torch.tensor([1.0, 0.6, 0.2, 0.0], dtype=torch.float64)
    )
    noise = normal(2, 10, 3, seed=5)
    draws = iter(noise)
    z = normal(10, 3)
    got, counts = SOLVERS.build("consistency").run(
        scoresde.sampling.problem.problem(sde, nodes, False, lambda: next(draws)), z
    )
    zero = torch.zeros((), dtype=torch.float64)
    for i, level in enumerate(nodes[:-1]):
        x0 = exact_map(z, torch.tensor(level.phi, dtype=torch.float64), zero)
        z = nodes[i + 1].cos * x0 + nodes[i + 1].sin * (noise[i] if i < 2 else 0)
    torch.testing.assert_close(got, x0, rtol=0, atol=1e-12)
    assert counts.nfe == 3


def test_without_a_span_a_jump_is_what_the_network_says_at_the_level() -> None:
    """A distilled model has x̂0 alone: one step of "consistency" is one of "ddim"."""
    sde = scoresde.build("rectified", "mlp", shape=(2,), width=16)
    nn.init.normal_(sde.net.out.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    sde.outcome = "jump"
    a, b = (
        scoresde.sample(sde, 20, solver=s, steps=1, generator=generator())
        for s in ("consistency", "ddim")
    )
    assert torch.equal(a, b)


@pytest.mark.parametrize("solver", ["flow_map", "consistency"])
def test_mates_and_batches_do_not_matter_and_conditions_are_told(solver: str) -> None:
    torch.manual_seed(0)
    sde = scoresde.build("rectified", "two_times", shape=(2,), width=16, classes=3).double()
    nn.init.normal_(sde.net.net.out.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    nn.init.normal_(sde.net.net.label.weight)  # type: ignore[union-attr, arg-type]
    sde.outcome = "map"
    y = torch.arange(200) % 3
    how: dict[str, Any] = {"solver": solver, "steps": 3}
    x = scoresde.sample(sde.given(y=y), 200, generator=generator(), **how)
    pieces = scoresde.sample(sde.given(y=y), 200, generator=generator(), batch_size=64, **how)
    torch.testing.assert_close(pieces, x, rtol=0, atol=1e-12)
    for label in range(3):
        alone = scoresde.sample(sde.given(y=label), 200, generator=generator(), **how)
        torch.testing.assert_close(alone[y == label], x[y == label], rtol=0, atol=1e-12)
        assert not torch.allclose(alone[y != label], x[y != label], atol=1e-3)


@pytest.mark.parametrize("solver", ["flow_map", "consistency"])
def test_a_map_that_says_nan_is_an_error_that_says_where(solver: str) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor, t: Tensor, span: Tensor | None = None) -> Tensor:
            return torch.where(x[:, :1] > 0, float("nan"), -0.1 * x)

    sde = ScoreSDE(scoresde.VPSDE(), Broken(), shape=(2,), outcome="map")
    with pytest.raises(scoresde.SolverError, match=r"\d+ of 50 samples.*t = 1") as caught:
        scoresde.sample(sde, 50, solver=solver, steps=2, generator=generator())
    assert caught.value.failed is not None
    assert 0 < int(caught.value.failed.sum()) < 50


# ------------------------------------------------------------------ the network


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in BACKBONES
        if name != "two_times" and not name.startswith(("doctest", "test"))
    ],
)
@pytest.mark.parametrize("shapes", [((2,), (2, 8)), ((1, 4, 4),)])
def test_two_times_shows_any_backbone_the_span_as_one_more_channel(
    name: str, shapes: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    shape, options = fitting(name, shapes)
    net = TwoTimes(shape, backbone=name, **options).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t, span = normal(5, *shape), normal(5, seed=1), normal(5, seed=2)
    channel = span.reshape(5, *(1,) * len(shape)).expand(5, 1, *shape[1:])
    torch.testing.assert_close(
        net(x, t, span=span), net.net(torch.cat([x, channel], 1), t)[:, : shape[0]]
    )
    torch.testing.assert_close(net(x, t), net(x, t, span=torch.zeros(5)))
    assert not torch.allclose(net(x, t), net(x, t, span=span))


def test_the_network_is_shown_where_it_lands_and_how_far_that_is() -> None:
    seen = {}

    class Spy(nn.Module):
        def forward(self, x: Tensor, t: Tensor, span: Tensor | None = None) -> Tensor:
            seen.update(x=x, t=t, span=span)
            return x

    sde = ScoreSDE(scoresde.VPSDE(), Spy(), shape=(1, 2, 2))
    z, (phi, s) = normal(6, 4), angles(6)
    got = average_velocity(sde.net, sde, {})(z, phi, s)
    assert torch.equal(got, -z)
    assert seen["x"].shape == (6, 1, 2, 2)
    torch.testing.assert_close(seen["t"], scoresde.model.network.noise_label(s))
    torch.testing.assert_close(seen["span"], phi - s)


def test_a_model_with_two_times_is_saved_and_keeps_its_velocity(tmp_path: Any) -> None:
    sde = scoresde.build("vp", "two_times", shape=(2,), backbone="mlp", width=16)
    nn.init.normal_(sde.net.net.out.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    again = scoresde.load(scoresde.save(sde, tmp_path / "model"))
    assert takes(again.net, "span")
    x = normal(4, 2).float()
    torch.testing.assert_close(again.velocity(x, 0.5), sde.velocity(x, 0.5), rtol=0, atol=0)
    assert bool(scoresde.log_prob(again, x).isfinite().all())


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("objective", some(["meanflow", "consistency"], "meanflow"))
def test_fit_learns_the_map_to_two_spikes(objective: str) -> None:
    """Of two spikes at ±1, of width 0.1, one step goes to that whose sign the noise has: E||x| −
    1| is 0.08 for the exact map, 0.15 after 2 s of training, and 1 for a denoiser's step, which
    goes to the mean.
    """
    sign = torch.randint(2, (4000, 1), generator=generator(1)) * 2.0 - 1
    data = 3.0 + 2.0 * (sign + 0.1 * torch.randn(4000, 1, generator=generator(2)))
    torch.manual_seed(0)
    sde = scoresde.build("rectified", "two_times", shape=(1,), width=32, depth=2, fourier=8)
    scoresde.fit(
        sde,
        data,
        objective=objective,
        steps=450,
        lr=1e-2,
        batch_size=256,
        generator=generator(),
        progress=False,
    )
    solved = scoresde.solve(sde, 2000, solver="consistency", steps=1, generator=generator(3))
    start, x = solved.x[0].flatten() - 3.0, (solved.x[-1].flatten() - 3.0) / 2
    far = start.abs() > 0.5
    assert bool((start.sign() == x.sign())[far].all())
    assert float((x[far].abs() - 1).abs().mean()) < 0.2


def test_what_cannot_learn_a_map_is_refused_before_any_work() -> None:
    sde = scoresde.build("rectified", "mlp", shape=(2,))
    with pytest.raises(ValueError, match=r"MLP takes no span=; try build.*two_times"):
        scoresde.fit(sde, scoresde.toy.Moons(), objective="meanflow", progress=False)
    with pytest.raises(ValueError, match=r"predict='edm', got 'v'"):
        MeanFlow().check(scoresde.build("rectified", "two_times", shape=(2,), predict="v"))
    with pytest.raises(ValueError, match=r"to_data.*0.5"):
        MeanFlow(to_data=1.5)
    with pytest.raises(ValueError, match=r"takes a span already"):
        TwoTimes((2,), backbone="two_times")
    with pytest.raises(ValueError, match=r"takes no condition 'label'.*There are: y"):
        scoresde.build("rectified", "two_times", shape=(2,), classes=2).given(label=1)
    for solver in ("flow_map", "consistency"):
        with pytest.raises(ValueError, match="this model has"):
            scoresde.sample(sde, solver=solver, steps=1)


@pytest.mark.parametrize("objective", ["meanflow", "consistency"])
def test_a_label_is_left_out_of_all_calls_of_a_step_or_of_none(objective: str) -> None:
    """What is learnt from differences between calls must be of one condition: else E² of two
    classes was 0.25, not 0.01.
    """
    sde = scoresde.build(
        "rectified", "two_times", shape=(2,), width=8, classes=2, condition_dropout=0.4
    )
    seen: list[Tensor] = []
    sde.net.register_forward_pre_hook(
        lambda net, given, named: seen.append(named["y"].clone()), with_kwargs=True
    )
    x, y = normal(64, 2).float(), torch.arange(64) % 2
    how: dict[str, Any] = {
        "steps": 3,
        "batch_size": 64,
        "progress": False,
        "generator": generator(2),
    }
    scoresde.fit(sde, x, given={"y": y}, objective=objective, **how)
    assert len(seen) == 9
    for whole, along, twice in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
        assert set(whole.tolist()) == {0, 1, 2}
        assert torch.equal(along, whole[32:])
        assert torch.equal(twice, torch.cat([along, along]))


QUIET: dict[str, Any] = {"progress": False, "batch_size": 32}


def flow(net: str = "mlp", **options: Any) -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build("rectified", net, shape=(2,), width=16, **options)


def moons(n: int = 500) -> torch.Tensor:
    return toy.Moons().sample(n, generator=generator(0))


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


@pytest.mark.parametrize(("kind", "solver"), [("map", "flow_map"), ("jump", "ddim")])
def test_jumps_do_not_go_from_data_to_noise(kind: str, solver: str) -> None:
    sde = flow("two_times")
    sde.outcome = kind
    with pytest.raises(ValueError, match="noise"):
        scoresde.encode(sde, moons(3), solver=solver, steps=1)


def test_a_model_without_a_velocity_says_so() -> None:
    sde = flow("two_times")
    sde.outcome = "jump"
    with pytest.raises(ValueError, match="not its velocity"):
        sde.velocity(moons(2), 0.5)


class Plain(nn.Module):
    """A network with one time."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x


def test_a_map_wants_a_second_time() -> None:
    with pytest.raises(ValueError, match="span"):
        scoresde.ScoreSDE(scoresde.RectifiedFlow(), Plain(), shape=(2,), outcome="map")
