"""`solve` from given states, `encode` and `decode`, and models that have no score."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import MIXTURES, ORDINARY, PROCESSES, generator, kept, rotated
from scoresde import SOLVERS, ScoreSDE, SolverError, toy
from scoresde.sampling.batches import batch_ranges, map_batches, name_failed_batch
from scoresde.sampling.plan import plan
from scoresde.sampling.problem import levels, problem

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize(
    ("name", "target"),
    kept(
        itertools.product(PROCESSES, MIXTURES),
        lambda name, target: target == "8 Gaussians" and name in ("ve", "test_polynomial"),
    ),
)
def test_decode_undoes_encode(name: str, target: str) -> None:
    mixture = MIXTURES[target]
    sde = scoresde.oracle(mixture, scoresde.PROCESSES.build(name)).double()
    x, tight = (
        mixture.sample(10, generator=generator(), dtype=torch.float64),
        {"rtol": 1e-8, "atol": 1e-8},
    )
    latent = scoresde.encode(sde, x, **tight)
    torch.testing.assert_close(scoresde.decode(sde, latent, **tight), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        scoresde.encode(sde, x, solver="dop853", **tight), latent, rtol=1e-6, atol=1e-6
    )
    with pytest.raises(TypeError, match="encode runs from t = 0 to t = 1 and takes no times="):
        scoresde.encode(sde, x, times=(0.0, 0.5))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="decode runs from t = 1 to t = 0 and takes no times="):
        scoresde.decode(sde, x, times=(0.0, 0.5))  # type: ignore[call-arg]


def test_encode_is_the_known_map_of_a_gaussian() -> None:
    """For data N(m, s²) the flow is affine: x_t = α·m + √(α²s² + σ²)·(x_0 − m)/s."""
    process = scoresde.VPSDE()
    sde = scoresde.oracle(
        toy.GaussianMixture(torch.full((1, 3), 0.7, dtype=torch.float64), 1.3), process
    ).double()
    x = torch.randn(5, 3, generator=generator(), dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    alpha, sigma = process.alpha(one), process.sigma(one)
    wanted = alpha * 0.7 + (alpha**2 * 1.3**2 + sigma**2).sqrt() * (x - 0.7) / 1.3
    torch.testing.assert_close(scoresde.encode(sde, x, **TIGHT), wanted, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        scoresde.likelihood(sde, x, **TIGHT).latent, wanted, rtol=0, atol=1e-8
    )


def test_encoding_has_its_trajectory_and_images_their_shape() -> None:
    image = torch.randn(1, 2, 3, 2, generator=generator(), dtype=torch.float64)
    sde = scoresde.oracle(toy.GaussianMixture(image, 0.5), scoresde.RectifiedFlow()).double()
    x = image + 0.5 * torch.randn(4, 2, 3, 2, generator=generator(1), dtype=torch.float64)
    path = scoresde.solve(sde, start=x, times=[0.0, 0.3, 1.0], **TIGHT)
    assert path.x.shape == (3, 4, 2, 3, 2)
    torch.testing.assert_close(path.x[0], x)
    # on this path x_t = α·m + √(α²s² + σ²)·(x_0 − m)/s
    torch.testing.assert_close(
        path.x[1], 0.7 * image + (0.35**2 + 0.3**2) ** 0.5 * (x - image) / 0.5, rtol=0, atol=1e-7
    )
    back = scoresde.solve(sde, start=path.x[-1], times=[1.0, 0.3, 0.0], **TIGHT)
    torch.testing.assert_close(back.x.flip(0), path.x, rtol=0, atol=1e-6)


@functools.cache
def one_mode() -> tuple[ScoreSDE, Tensor, Tensor]:
    """A Gaussian's exact score, data, and where each row ends."""
    mixture = toy.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 0.5)
    sde = scoresde.oracle(mixture, scoresde.EDM()).double()
    x = mixture.sample(20, generator=generator(), dtype=torch.float64)
    return sde, x, scoresde.encode(sde, x, **TIGHT)


@pytest.mark.parametrize(
    "solver", [name for name in ORDINARY if not SOLVERS.build(name).stochastic]
)
def test_every_deterministic_solver_runs_both_ways(solver: str) -> None:
    """Data to noise and back, with enough steps for 3%."""
    sde, x, exact = one_mode()
    steps = 400 if SOLVERS.build(solver).order == 1 else 60
    latent = scoresde.encode(sde, x, solver=solver, steps=steps)
    torch.testing.assert_close(latent, exact, rtol=0.03, atol=0.03)
    torch.testing.assert_close(
        scoresde.decode(sde, latent, solver=solver, steps=steps), x, rtol=0, atol=0.03
    )


def test_batches_do_not_change_an_encoding() -> None:
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE()).double()
    x = MIXTURES["8 Gaussians"].sample(30, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(
        scoresde.encode(sde, x, batch_size=7), scoresde.encode(sde, x), rtol=0, atol=1e-12
    )


class Flow(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.3 * x


BAD = {
    "stochastic encode": (
        lambda sde, x: scoresde.encode(sde, x, solver="em"),
        "stochastic; try 'adams'",
    ),
    "wrong shape": (
        lambda sde, x: scoresde.encode(sde, torch.zeros(3, 5)),
        r"x has shape|start has shape",
    ),
    "n and start": (lambda sde, x: scoresde.solve(sde, 7, start=x), "leave n out"),
    "times backward": (
        lambda sde, x: scoresde.solve(sde, start=x, times=[0.0, 0.7, 0.3, 1.0]),
        "times increase",
    ),
    "times forward": (lambda sde, x: scoresde.solve(sde, 3, times=[0.0, 1.0]), "times decrease"),
    "NaN": (lambda sde, x: scoresde.encode(sde, x * float("nan")), "finite|NaN"),
    "steps of an external adaptive": (
        lambda sde, x: scoresde.sample(sde, solver="scipy:LSODA", steps=5),
        "rtol",
    ),
    "tolerance of 0": (lambda sde, x: scoresde.sample(sde, rtol=0.0), "rtol"),
    "order out of range": (lambda sde, x: scoresde.sample(sde, max_order=11), "max_order"),
    "unknown family member": (
        lambda sde, x: scoresde.sample(sde, solver="torchdiffeq:dopri9"),
        "dopri",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_mistakes_are_named(name: str) -> None:
    call, message = BAD[name]
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE())
    with pytest.raises((ValueError, TypeError), match=message):
        call(sde, torch.zeros(3, 2))


def test_a_model_of_coupled_pairs_has_a_velocity_and_no_score(tmp_path: object) -> None:
    sde = ScoreSDE(scoresde.RectifiedFlow(), Flow(), shape=(2,), outcome="velocity")
    for solver in ORDINARY:
        if "score" in SOLVERS.build(solver).all_needs:
            with pytest.raises(ValueError, match="coupled pairs"):
                scoresde.sample(sde, 2, solver=solver)
    for call in (sde.score, sde.drift):
        with pytest.raises(ValueError, match="coupled pairs"):
            call(torch.zeros(1, 2), 0.5)
    assert bool(
        scoresde.log_prob(sde, scoresde.sample(sde, 3, generator=generator())).isfinite().all()
    )
    built = scoresde.build("rectified", "mlp", shape=(2,))
    built.kind = "velocity"
    assert scoresde.load(scoresde.save(built, tmp_path / "model")).outcome.name == "velocity"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_in_half_precision_keep_states_in_float32(dtype: torch.dtype) -> None:
    """The state does not lose what the network does: 100 Euler steps of a constant velocity end
    where they should.
    """

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = nn.Parameter(torch.full((2,), 0.25, dtype=dtype))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert x.dtype == t.dtype == dtype
            return self.v.expand_as(x)

    process = scoresde.RectifiedFlow()
    for solver in ORDINARY:
        sde = ScoreSDE(process, Constant(), shape=(2,))
        steps = None if SOLVERS.build(solver).steps is None else 20
        x = scoresde.sample(sde, 5, solver=solver, steps=steps, generator=generator())
        assert x.dtype == torch.float32
        assert bool(x.isfinite().all())
        if SOLVERS.build(solver).ode:  # z' = −out
            start = scoresde.solve(sde, 5, solver=solver, steps=steps, generator=generator()).x[0]
            torch.testing.assert_close(x, start + 0.25 * torch.pi / 2, rtol=0, atol=1e-5)


@functools.cache
def two_modes(name: str) -> tuple[ScoreSDE, Tensor, Tensor, Tensor]:
    """An exact score under a process, 30 points, and their latents and log p to 1e-9."""
    mixture = toy.GaussianMixture(
        torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64), 0.5
    )
    sde = scoresde.oracle(mixture, scoresde.PROCESSES.build(name)).double()
    x = mixture.sample(30, generator=generator(), dtype=torch.float64)
    found = scoresde.likelihood(sde, x, errors=False, **TIGHT)
    return sde, x, found.latent, found.log_prob


FROM_DATA = ["adams", "ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "deis", "rk4"]


@pytest.mark.parametrize(
    ("name", "solver"),
    rotated(PROCESSES, FROM_DATA),
)
def test_fixed_grids_start_at_the_data_too(name: str, solver: str) -> None:
    """σ(0) = 0 on most paths, where λ is infinite: 60 steps from data to noise, and log p where
    there is one.
    """
    sde, x, exact, there = two_modes(name)
    error = (
        scoresde.encode(sde, x, solver=solver, steps=60) - exact
    ).square().mean().sqrt() / exact.std()
    assert error < (0.1 if solver == "ddim" else 5e-3)
    if SOLVERS.build(solver).ode:
        torch.testing.assert_close(
            scoresde.log_prob(sde, x, solver=solver, steps=60), there, rtol=0, atol=1e-3
        )


@pytest.mark.parametrize(
    ("solver", "spacing"),
    rotated(
        ["adams", "unipc", "dpmpp_3m", "deis", "sa", "dpmpp_3m_sde", "dpmpp_2m_sde"],
        ["time", None],
    ),
)
def test_wanted_times_do_not_upset_methods_that_remember(solver: str, spacing: str | None) -> None:
    """float32 times lie beside the nodes of a "time" grid; others anywhere. The law's spread stays
    within 0.2 of its 0.3.
    """
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE())
    for m in (3, 8, 21, 31):
        for dtype in (torch.float32, torch.float64):
            times = torch.linspace(1, 0, m, dtype=dtype)
            path = scoresde.solve(
                sde,
                200,
                solver=solver,
                steps=20,
                spacing=spacing,
                times=times,
                generator=generator(),
            )
            assert float(path.x[-1].norm(dim=1).std()) < 0.5
            torch.testing.assert_close(path.t, times.double())


def test_many_steps_of_a_prediction_that_stops_short_of_the_data() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,), predict="x0")
    for solver in ("adams", "dpmpp_3m", "deis", "unipc"):
        assert bool(
            scoresde.sample(sde, 4, solver=solver, steps=400, generator=generator())
            .isfinite()
            .all()
        )


def test_a_station_at_the_start_is_the_start() -> None:
    class Flat(scoresde.Process):
        def alpha(self, t: Tensor) -> Tensor:
            return (1 - t) ** 4

        def sigma(self, t: Tensor) -> Tensor:
            return t

    sde = scoresde.oracle(MIXTURES["8 Gaussians"], Flat()).double()
    path = scoresde.solve(sde, 5, times=(1.0, 1 - 1e-5, 0.5, 0.0), generator=generator())
    torch.testing.assert_close(path.x[1], path.x[0], rtol=0, atol=1e-3)


def test_a_network_that_fails_once_is_asked_again() -> None:
    """A NaN at one of the first calls is a step that was too long; adams goes on like rk45."""

    class Once(nn.Module):
        def __init__(self, call: int) -> None:
            super().__init__()
            self.left = call

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.left -= 1
            out = 0.3 * torch.tanh(x)
            return (
                torch.where(torch.arange(len(x))[:, None] == 2, float("nan"), out)
                if self.left == 0
                else out
            )

    for call in range(2, 9):
        sde = ScoreSDE(scoresde.VPSDE(), Once(call), shape=(2,)).double()
        clean = ScoreSDE(scoresde.VPSDE(), Once(-1), shape=(2,)).double()
        got, want = (scoresde.sample(s, 5, generator=generator()) for s in (sde, clean))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_chunks_of_ggf_hold_for_thousands() -> None:
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE()).double()
    whole = scoresde.sample(sde, 3000, solver="ggf", generator=generator())
    part = scoresde.sample(sde, 3000, solver="ggf", generator=generator(), batch_size=1100)
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-5)


def test_samples_own_their_memory_and_no_more() -> None:
    """100,000 samples of two float32 are 0.8 MB, not as much again for where they began."""
    sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.RectifiedFlow())
    x = scoresde.sample(sde, 100, solver="euler", steps=2)
    both = scoresde.sample_and_log_prob(sde, 3, solver="euler", steps=2)
    latent = scoresde.encode(sde, x, solver="euler", steps=2)
    found = scoresde.likelihood(sde, x, solver="euler", steps=2)
    rest = [
        scoresde.decode(sde, latent, solver="euler", steps=2),
        found.log_prob,
        found.latent,
        found.stderr,
    ]
    law = scoresde.Distribution(sde, solver="euler", steps=2).sample((10,))
    for value in (x, *both, latent, *rest, law):
        assert value.untyped_storage().nbytes() == value.nbytes
    kept = scoresde.solve(sde, start=latent, solver="euler", steps=2)
    assert torch.equal(kept.x[-1], rest[0])


def test_tolerances_follow_the_arithmetic_of_the_network() -> None:
    """Half precision costs no more evaluations than single, at errors of its rounding; what can't
    be met warns.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sde = scoresde.build("vp", "mlp", shape=(2,), width=32).eval()
        torch.nn.init.normal_(sde.net.out.weight, std=0.3)
    x = torch.randn(50, 2, generator=generator())
    exact = (
        scoresde.sample(sde, 50, generator=generator(), rtol=1e-7, atol=1e-7),
        scoresde.log_prob(sde, x, rtol=1e-7, atol=1e-7),
    )
    for solver in ("adams", "rk45"):
        drawn = scoresde.solve(sde, 50, solver=solver, generator=generator())
        scored = scoresde.likelihood(sde, x, solver=solver, errors=False)
        for dtype in (torch.float16, torch.bfloat16):
            half = copy.deepcopy(sde).to(dtype)
            again = scoresde.solve(half, 50, solver=solver, generator=generator())
            assert float(again.nfe.double().mean()) <= float(drawn.nfe.double().mean())
            found = scoresde.likelihood(half, x, solver=solver, errors=False)
            assert float(found.nfe.double().mean()) <= 1.2 * float(scored.nfe.double().mean())
            for mine, wanted in ((again.x[-1], exact[0]), (found.log_prob, exact[1])):
                assert float((mine - wanted).abs().median()) < 5 * torch.finfo(dtype).eps
    name = {"rtol": 1e-4, "atol": 1e-2}
    with pytest.warns(
        UserWarning,
        match="rtol=0.0001 asks for more than this network's half precision resolves, about 8e-04",
    ):
        scoresde.sample(half, 1, **name)
    with pytest.warns(UserWarning, match="atol=1e-05 asks for more"):
        scoresde.sample(half, 1, solver=scoresde.SOLVERS.build("rk45", rtol=0.1))
    with warnings.catch_warnings(action="error"):
        scoresde.sample(half, 1, steps=5)
        scoresde.sample(half, 1, solver="ggf")
        scoresde.sample(sde, 1, rtol=1e-7, atol=1e-7)


# ------------------------------------------------------------------ the parts of a solve


def test_a_plan_has_the_times_of_the_arc_and_refuses_names_that_are_none() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,))
    wanted = sde.process.time(
        torch.linspace(float(sde.process.phi_max), 0, 3, dtype=torch.float64)
    )
    torch.testing.assert_close(plan(sde, "heun", 2, "arc", {}).times, wanted, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"unknown solver 'rk_45'\. Did you mean 'rk45'"):
        plan(sde, "rk_45", None, None, {})


def test_denoised_value_and_noise_make_the_state_again() -> None:
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE())
    nodes = levels(sde, torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64))
    z = torch.randn(5, 2, generator=generator())
    posed = problem(sde, nodes, False, lambda: z)
    for i, level in enumerate(nodes):
        x0, eps = posed.denoise(z, i)
        torch.testing.assert_close(level.cos * x0 + level.sin * eps, z)


def test_batches_cover_the_samples_in_order() -> None:
    sde = scoresde.build("vp", "mlp", shape=(2,))
    assert list(batch_ranges(sde, 10, 4)) == [(0, 4), (4, 8), (8, 10)]
    (joined,) = map_batches(
        sde, 10, batch_ranges(sde, 10, 4), lambda part, start, stop: [torch.arange(start, stop)]
    )
    assert torch.equal(joined, torch.arange(10))


def test_a_failed_batch_is_named() -> None:
    message = r"not finite \(the batch of samples 64 to 127\)"
    with pytest.raises(SolverError, match=message) as caught, name_failed_batch(64, 128, 200):
        raise SolverError("2 of 64 samples are not finite")
    assert caught.value.first == 64
