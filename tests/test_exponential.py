"""Singlestep exponential integrators against the papers' recursions, diffusers, a formula of
k-diffusion, and their order.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import MIXTURES, PROCESSES, generator, kept, rotated, some
from scoresde import SOLVERS, ScoreSDE, toy
from scoresde.sampling.plan import plan
from scoresde.sampling.problem import levels, problem
from scoresde.solvers import (
    EXPONENTIALS,
    AdaptiveSinglestep,
    Counts,
    Exponential,
    Singlestep,
    Solver,
)
from scoresde.solvers.exponential_tableaus import phi_functions

FIXED = ["dpmpp_2s", "dpmpp_3s", "dpm_2", "dpm_3"]
NAMES = [*FIXED, "dpm_adaptive"]
MEAN, STD = 0.7, 1.3
BUMPS = toy.GaussianMixture(
    torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, 2.0]], dtype=torch.float64), [0.6, 0.8, 1.0]
)
EMBEDDED = Exponential(
    2, "eps", (0.0, 1 / 3, 1.0), (((1.0,),), EXPONENTIALS["dpm_adaptive"].w_hat)
)


def march(
    sde: ScoreSDE, solver: str | Solver, z: Tensor, times: Sequence[float] | Tensor
) -> tuple[Tensor, list[Tensor], Counts]:
    """Run a solver over the given times: its end, every state on the way, and the counts."""
    made = SOLVERS.build(solver) if isinstance(solver, str) else solver
    path = [z]
    task = problem(
        sde,
        levels(sde, torch.as_tensor(times, dtype=torch.float64)),
        made.steps is None,
        lambda: z,
    )
    task.observe = lambda i, state: path.append(state.clone())
    end, counts = made.run(task, z)
    return end, path, counts


def on_grid(
    sde: ScoreSDE, solver: str | Solver, z: Tensor, times: Sequence[float] | Tensor
) -> list[Tensor]:
    """All states of a solver on a fixed grid."""
    path, task = (
        [z],
        problem(sde, levels(sde, torch.as_tensor(times, dtype=torch.float64)), False, lambda: z),
    )
    task.observe = lambda i, state: path.append(state.clone())
    (SOLVERS.build(solver) if isinstance(solver, str) else solver).run(task, z)
    return path


@pytest.mark.parametrize("n", [1, 2, 3])
def test_phi_functions_equal_their_series_in_fifty_digits(n: int) -> None:
    """φ_k(x) = 1F1(1; k+1; x)/k! by mpmath, to 1e-14 relative, also where the recursion loses all
    digits.
    """
    x = np.concatenate(
        [s * np.logspace(-17, 1.5, 150) for s in (1, -1)] + [[0.0, 1.0, -1.0, 0.999999, -1.000001]]
    )
    with mpmath.workdps(50):
        wanted = np.array(
            [float(mpmath.hyp1f1(1, n + 1, mpmath.mpf(float(v))) / mpmath.factorial(n)) for v in x]
        )
    np.testing.assert_allclose(
        phi_functions(torch.tensor(x), n)[-1].numpy(), wanted, rtol=1e-14, atol=0
    )


def denoise(x: float, alpha: float, sigma: float) -> tuple[float, float]:
    """x̂0 and ε̂ of N(MEAN, STD²) in closed form."""
    v = alpha**2 * STD**2 + sigma**2
    return MEAN + alpha * STD**2 * (x - alpha * MEAN) / v, sigma * (x - alpha * MEAN) / v


def paper(solver: str, x: float, a: float, s: float, a_to: float, s_to: float) -> float:
    """One step from (α, σ) = (a, s) to (a_to, s_to) on the unit circle, as printed in the papers.

    Lu et al. 2022a, Algorithms 1 (r = 1/2) and 2 (r1 = 1/3, r2 = 2/3); DPM-Solver++(2S) of Lu et
    al. 2022b and its third-order analog.
    """
    lam = math.log(a / s)
    h = math.log(a_to / s_to) - lam

    def at(r: float) -> tuple[float, float]:
        angle = math.atan(math.exp(-(lam + r * h)))
        return math.cos(angle), math.sin(angle)

    def e(r: float) -> float:
        return math.exp(r * h) - 1

    def d(r: float) -> float:
        return math.exp(-r * h) - 1

    x0, eps = denoise(x, a, s)
    if solver == "dpm_2":
        a1, s1 = at(0.5)
        return a_to / a * x - s_to * e(1) * denoise(a1 / a * x - s1 * e(0.5) * eps, a1, s1)[1]
    if solver == "dpmpp_2s":
        a1, s1 = at(0.5)
        return s_to / s * x - a_to * d(1) * denoise(s1 / s * x - a1 * d(0.5) * x0, a1, s1)[0]
    r1, r2 = 1 / 3, 2 / 3
    (a1, s1), (a2, s2) = at(r1), at(r2)
    if solver == "dpm_3":
        d1 = denoise(a1 / a * x - s1 * e(r1) * eps, a1, s1)[1] - eps
        u2 = a2 / a * x - s2 * e(r2) * eps - s2 * r2 / r1 * (e(r2) / (r2 * h) - 1) * d1
        return (
            a_to / a * x
            - s_to * e(1) * eps
            - s_to / r2 * (e(1) / h - 1) * (denoise(u2, a2, s2)[1] - eps)
        )
    d1 = denoise(s1 / s * x - a1 * d(r1) * x0, a1, s1)[0] - x0
    u2 = s2 / s * x - a2 * d(r2) * x0 + a2 * r2 / r1 * (d(r2) / (r2 * h) + 1) * d1
    return (
        s_to / s * x
        - a_to * d(1) * x0
        + a_to / r2 * (d(1) / h + 1) * (denoise(u2, a2, s2)[0] - x0)
    )


def classical(order: int, x: float, here: float, there: float) -> float:
    """One step on the arc by the midpoint rule or by Heun's third-order method, whichever λ's
    weights become for h → 0.
    """

    def v(z: float, phi: float) -> float:
        x0, eps = denoise(z, math.cos(phi), math.sin(phi))
        return math.cos(phi) * eps - math.sin(phi) * x0

    h, k1 = there - here, v(x, here)
    if order == 2:
        return x + h * v(x + h / 2 * k1, here + h / 2)
    k2 = v(x + h / 3 * k1, here + h / 3)
    return x + h * (k1 + 3 * v(x + 2 / 3 * h * k2, here + 2 / 3 * h)) / 4


@pytest.mark.parametrize(("name", "solver"), rotated(PROCESSES, NAMES))
@pytest.mark.parametrize("spacing", ["logsnr", "time"])
def test_steps_are_the_papers(name: str, solver: str, spacing: str) -> None:
    """On a Gaussian, state by state, to 1e-12: the papers' step for h ≤ 2, the classical one
    beyond, up to infinite λ.
    """
    sde = scoresde.oracle(
        toy.GaussianMixture(torch.full((1, 1), MEAN, dtype=torch.float64), STD),
        scoresde.PROCESSES.build(name),
    )
    sde = sde.double()
    times = plan(sde, solver, 8, spacing, {}).times
    nodes = levels(sde, times)
    for start in (-0.4, 1.7):
        path = on_grid(sde, solver, torch.tensor([[start]], dtype=torch.float64), times)
        x = start
        for i, (here, there) in enumerate(itertools.pairwise(nodes)):
            if (
                min(here.cos, there.sin) == 0
                or math.log(math.tan(here.phi) / math.tan(there.phi)) > 2
            ):
                x = classical(SOLVERS.build(solver).order, x, here.phi, there.phi)
            else:
                x = paper(
                    "dpm_3" if solver == "dpm_adaptive" else solver,
                    x,
                    here.cos,
                    here.sin,
                    there.cos,
                    there.sin,
                )
            assert abs(float(path[i + 1]) - x) < 1e-12 * max(1, abs(x)), i


class Wiggle(nn.Module):
    """A network that is no denoiser of anything: any ε will do where two codes are compared."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.9 * torch.sin(x + t.reshape(-1, *(1,) * (x.ndim - 1))) + 0.1 * x.flip(-1)


@pytest.mark.parametrize("solver", FIXED)
def test_trajectory_equals_diffusers(solver: str) -> None:
    """The same outputs on the same grid, DPMSolverSinglestepScheduler against ours, to 1e-5 (1e-10
    is reached).

    diffusers counts every evaluation as a step, so its grid is ours with the inner nodes. At order
    3 it takes the papers' step only by halves: with solver_type="midpoint" its second stage has
    (e^h − 1)/2 where the papers have φ_2, and with "heun" its last stage is another. Both are of
    order 3 still. Taken from "heun" and "midpoint" in turn, it is the papers'.
    """
    diffusers = pytest.importorskip("diffusers")
    order, kind = (
        int(solver[-2 if solver.endswith("s") else -1]),
        "dpmsolver++" if "pp" in solver else "dpmsolver",
    )
    process, steps = scoresde.VPSDE(), 12
    sde = ScoreSDE(process, Wiggle(), shape=(3, 4, 4), predict="eps", sees="raw").double()
    # Inner nodes are equidistant in λ: 1/2; 1/3, 2/3.
    lam = torch.linspace(-4.0, 5.0, steps * order + 1, dtype=torch.float64)
    angles = torch.atan(torch.exp(-lam))
    z = torch.randn(2, 48, generator=generator(1), dtype=torch.float64)
    ours = on_grid(sde, solver, z, process.time(angles)[::order])

    def theirs(switch: bool) -> list[Tensor]:
        scheduler = diffusers.DPMSolverSinglestepScheduler(
            solver_order=order, algorithm_type=kind, final_sigmas_type="sigma_min"
        )
        scheduler.set_timesteps(steps * order)
        scheduler.sigmas, scheduler.order_list = angles.tan(), list(range(1, order + 1)) * steps
        scheduler.set_begin_index(0)
        x, path = z.reshape(2, 3, 4, 4), []
        for i in range(steps * order):
            scheduler.register_to_config(
                solver_type="heun" if switch and order == 3 and i % 3 == 1 else "midpoint"
            )
            eps = Wiggle()(x, process.time(angles[i]).expand(2))
            x = scheduler.step(eps, scheduler.timesteps[i], x).prev_sample
            path.append(x.reshape(2, 48))
        return path[order - 1 :: order]

    worst = max(float((a - b).abs().max()) for a, b in zip(ours[1:], theirs(True), strict=True))
    assert worst < 1e-10
    if order == 3:
        assert (
            max(float((a - b).abs().max()) for a, b in zip(ours[1:], theirs(False), strict=True))
            > 1e-5
        )


def test_trajectory_equals_a_recursion_retyped_from_k_diffusion() -> None:
    """`sample_dpmpp_2s_ancestral` with eta = 0, its formulas in its own variables (x = x0 + σ·ε),
    on Karras' own process.

    It ends at σ = 0 with an Euler step, x = x̂0; ours end there at second order
    (`test_the_end_at_sigma_0_is_no_bottleneck`).
    """
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.EDM()).double()
    times = plan(sde, "dpmpp_2s", 15, "karras", {}).times
    nodes = levels(sde, times)
    z = torch.randn(50, 2, generator=generator(2), dtype=torch.float64)
    ours = on_grid(sde, "dpmpp_2s", z, times)

    def model(x: Tensor, sigma: float) -> Tensor:
        return sde.denoise(x, float(sde.process.time(math.atan(sigma))))[0]

    x, worst = z * nodes[0].radius, 0.0
    for i, (here, there) in enumerate(itertools.pairwise(nodes)):
        denoised = model(x, here.sigma)
        t, t_next = -math.log(here.sigma), -math.log(there.sigma)
        h = t_next - t
        s = t + h / 2
        x_2 = (math.exp(-s) / math.exp(-t)) * x - math.expm1(-h / 2) * denoised
        x = (math.exp(-t_next) / math.exp(-t)) * x - math.expm1(-h) * model(x_2, math.exp(-s))
        worst = max(worst, float((ours[i + 1] * there.radius - x).abs().max() / there.radius))
    assert worst < 1e-9


@functools.cache
def bumps(name: str) -> tuple[ScoreSDE, Tensor, Tensor]:
    """A smooth mixture under a process, with starts and their exact ends."""
    sde = scoresde.oracle(BUMPS, scoresde.PROCESSES.build(name)).double()
    z = torch.randn(16, 2, generator=generator(5), dtype=torch.float64)
    return sde, z, on_grid(sde, "rk45", z, plan(sde, "rk45", 400, "arc", {}).times)[-1]


def errors(name: str, solver: str | Solver, counts: Sequence[int], spacing: str) -> list[float]:
    sde, z, exact = bumps(name)
    ends = [on_grid(sde, solver, z, plan(sde, "dpm_2", n, spacing, {}).times)[-1] for n in counts]
    return [float((end - exact).square().mean().sqrt()) for end in ends]


@pytest.mark.parametrize(
    ("solver", "name"),
    kept(
        itertools.product([*NAMES, "embedded"], ["ve", "edm"]),
        lambda solver, name: name == "ve" and solver in ("dpmpp_2s", "dpm_3", "embedded"),
    ),
)
def test_order(name: str, solver: str) -> None:
    """Slope of the end point's RMS error over five halvings from 8 to 256 steps uniform in λ,
    whose ends are finite here.
    """
    made = Singlestep(EMBEDDED) if solver == "embedded" else SOLVERS.build(solver)
    error = errors(name, made, [8 * 2**k for k in range(6)], "logsnr")
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(error)]
    assert abs(slopes[-1] - made.order) < 0.05, slopes
    assert all(abs(slope - made.order) < 0.15 for slope in slopes[2:]), slopes


@pytest.mark.parametrize("solver", some(FIXED, "dpmpp_2s", "dpm_3"))
def test_the_end_at_sigma_0_is_no_bottleneck(solver: str) -> None:
    """From σ(1)/α(1) = ∞ to σ(0) = 0 on a grid uniform in φ: order 2 for all, where first-order
    ends would leave 10 times more.

    Near σ = 0 such a grid has steps in λ that don't shrink, log 2 and log 3/2 and so on: of order
    3, 2 is left, and of order 2 up to a logarithm 2. The docstring says so. This is their default
    grid.
    """
    coarse, fine = errors("rectified", solver, [64, 256], "arc")
    assert 1.7 < math.log(coarse / fine, 4) < 2.15
    assert fine < 2e-4


@pytest.mark.parametrize(("name", "solver"), rotated(PROCESSES, NAMES))
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_few_steps_are_exact_where_the_denoised_value_stays(
    name: str, solver: str, steps: int
) -> None:
    """All data at one point m: x̂0 = m and ε̂ keep their values, so steps in λ end at cos φ·m +
    sin φ·ε.

    One or two of them from λ = −0.99 to 0.99; eight all the way, where only those to infinite λ
    are classical, and short.
    """
    process, m = scoresde.PROCESSES.build(name), torch.tensor([2.0, -1.0], dtype=torch.float64)
    sde = scoresde.oracle(toy.GaussianMixture(m[None], 1e-9), process).double()
    z = torch.randn(50, 2, generator=generator(), dtype=torch.float64)
    inner = process.time(
        torch.atan(torch.exp(-torch.linspace(-0.99, 0.99, steps + 1, dtype=torch.float64)))
    )
    times = inner if steps < 8 else plan(sde, solver, steps, "logsnr", {}).times
    first, last = levels(sde, times[[0, -1]])
    wanted = last.cos * m + last.sin * (z - first.cos * m) / first.sin
    end = on_grid(sde, solver, z, times)[-1]
    finite = min(first.cos, last.sin) > 0
    torch.testing.assert_close(end, wanted, rtol=0, atol=1e-9 if finite else 1e-4)


@pytest.mark.parametrize(
    ("name", "solver"),
    rotated(("rectified", "vp", "ve"), NAMES),
)
def test_data_to_noise_undoes_noise_to_data(name: str, solver: str) -> None:
    """The same code with h < 0: to 1e-4 and back again, which a wrong sign in one weight would not
    be.
    """
    sde = scoresde.oracle(BUMPS, scoresde.PROCESSES.build(name)).double()
    made = (
        SOLVERS.build(solver, rtol=1e-7, atol=1e-7)
        if solver == "dpm_adaptive"
        else SOLVERS.build(solver)
    )
    z = torch.randn(16, 2, generator=generator(3), dtype=torch.float64)
    times = (
        torch.tensor([1.0, 0.4, 0.0])
        if solver == "dpm_adaptive"
        else plan(sde, solver, 200, None, {}).times
    )
    there = march(sde, made, z, times)[0]
    torch.testing.assert_close(march(sde, made, there, times.flip(0))[0], z, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "predict"), rotated(["vp", "rectified", "ve"], ["x0", "eps"]))
def test_tolerance_rules_the_adaptive_error(name: str, predict: str) -> None:
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.PROCESSES.build(name)).double()
    z = torch.randn(100, 2, generator=generator(), dtype=torch.float64)
    exact = march(sde, SOLVERS.build("dop853", rtol=1e-8, atol=1e-8), z, [1.0, 0.0])[0]
    before = 0.0
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        made = AdaptiveSinglestep(
            replace(EXPONENTIALS["dpm_adaptive"], predict=predict), rtol=tolerance, atol=tolerance
        )
        end, _, counts = march(sde, made, z, [1.0, 0.0])
        assert float((end - exact).square().mean().sqrt()) < 10 * tolerance
        mean = float(counts.nfe.double().mean())
        assert mean > before
        assert len(counts.nfe.unique()) > 2
        assert bool((counts.nfe == 3 * counts.accepted + 2 * counts.rejected).all())
        before = mean


def test_adaptive_rows_are_counted_and_the_finished_cost_nothing() -> None:
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE()).double()
    z = torch.randn(100, 2, generator=generator(), dtype=torch.float64)
    made, seen = SOLVERS.build("dpm_adaptive"), []
    task = problem(
        sde, levels(sde, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)), True, lambda: z
    )
    inner = task.velocity

    def velocity(y: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        seen.append(len(y))
        return inner(y, phi, rows)

    task.velocity = velocity
    _, counts = made.run(task, z)
    assert sum(seen) == int(counts.nfe.sum())
    assert min(seen) < 100


class Elementwise(nn.Module):
    """Acts on each number alone, so that only the solver could mix samples."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(3 * x) * 0.8 - 0.3 * x * t.reshape(-1, *(1,) * (x.ndim - 1))


@pytest.mark.parametrize(("process", "solver"), rotated(["vp", "rectified"], NAMES))
def test_batch_mates_do_not_matter_at_all(process: str, solver: str) -> None:
    """Alone, or among 63 others of three kinds: the same to the last bit."""
    sde = ScoreSDE(scoresde.PROCESSES.build(process), Elementwise(), shape=(3,), predict="edm")
    z = torch.randn(64, 3, generator=generator())
    run: Callable[[Tensor], Tensor] = lambda batch: march(  # noqa: E731
        sde,
        solver,
        batch,
        [1.0, 0.0] if solver == "dpm_adaptive" else plan(sde, solver, 20, None, {}).times,
    )[0]
    wanted = run(z)[17]
    for scale in (1e-3, 1.0, 5.0):
        for keep in (0, 17, 63):
            batch = scale * torch.randn(64, 3, generator=generator(2))
            batch[keep] = z[17]
            assert torch.equal(run(batch)[keep], wanted)


class Broken(nn.Module):
    """NaN from a time on, for samples that start to the right."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.where(((t < 0.5) & (x[:, 0] > 0))[:, None], float("nan"), -0.1 * x)


@pytest.mark.parametrize(
    ("solver", "steps"), [(name, 10) for name in NAMES] + [("dpm_adaptive", None)]
)
def test_nan_is_an_error_that_keeps_the_others(solver: str, steps: int | None) -> None:
    sde = ScoreSDE(scoresde.VPSDE(), Broken(), shape=(2,), input_convention="raw")
    with pytest.raises(scoresde.SolverError, match="the network's output is not finite") as caught:
        scoresde.sample(sde, 50, solver=solver, steps=steps, generator=generator())
    assert 0 < int(caught.value.failed.sum()) < 50
    assert bool(caught.value.x[~caught.value.failed].isfinite().all())


def test_nothing_hangs() -> None:
    class Rough(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.sign(torch.sin(1e4 * x)) * 1e3

    sde = ScoreSDE(scoresde.VPSDE(), Rough(), shape=(2,))
    with pytest.raises(scoresde.SolverError, match="max_steps"):
        scoresde.sample(sde, 10, solver="dpm_adaptive", max_steps=50, generator=generator())


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"rtol": 0.0}, ValueError, "rtol is greater than 0"),
        ({"atol": -1.0}, ValueError, "atol is greater than 0"),
        ({"max_steps": 0}, ValueError, "max_steps is at least 1"),
        ({"max_steps": 2.5}, TypeError, "max_steps is an integer"),
        ({"rtol": 1e-3, "steps": 10}, ValueError, "no effect together with steps="),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, object], error: type[Exception], says: str
) -> None:
    sde = scoresde.oracle(BUMPS, scoresde.VPSDE())
    with pytest.raises(error, match=says):
        scoresde.sample(sde, solver="dpm_adaptive", **options)
    with pytest.raises(ValueError, match="no w_hat"):
        AdaptiveSinglestep(EXPONENTIALS["dpm_3"])
