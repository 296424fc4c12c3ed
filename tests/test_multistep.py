"""Multistep and Adams methods against diffusers, the papers' recursions, closed-form integrals,
and their own stated order.

All of diffusers' schedulers work on α² + σ² = 1, that is on the arc: our levels are handed to them
as σ = tan φ in float64, and our x̂0 as the network's output. Their first and last steps are ours
too, but for the cases that the tests spell out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor, nn

import scoresde
from conftest import MIXTURES, PROCESSES, at, generator, kept, rotated, some
from scoresde import SOLVERS, ScoreSDE, toy
from scoresde.processes.spacings import grid
from scoresde.sampling.problem import levels, problem
from scoresde.solvers import METHODS, Adams, Level
from scoresde.solvers.multistep import march, multistep
from scoresde.solvers.multistep_rows import Row, Step, coefficients, quadrature

MEAN, STD, STEPS = 0.7, 1.3, 8
BUMPS = toy.GaussianMixture(
    torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, 2.0]], dtype=torch.float64), [0.6, 0.8, 1.0]
)
P2 = toy.GaussianMixture(
    torch.randn(10, 64, generator=generator(64), dtype=torch.float64),
    torch.linspace(0.2, 0.6, 10, dtype=torch.float64),
)
PROBLEMS = {"8 Gaussians": MIXTURES["8 Gaussians"], "64-D": P2, "bumps": BUMPS}
CROSS = torch.tensor([[1.4, 0.0], [-1.4, 0.0], [0.0, 1.4], [0.0, -1.4]], dtype=torch.float64)


def path(
    row: Row,
    sde: ScoreSDE,
    nodes: Sequence[Level],
    z: Tensor,
    noise: Callable[[], Tensor] | None = None,
) -> list[Tensor]:
    """All states of a row on a grid."""
    states = [z]
    task = problem(sde, tuple(nodes), False, noise or (lambda: torch.zeros_like(z)))
    task.observe = lambda i, state: states.append(state.clone())
    march(row, task, z)
    return states


def slopes(errors: Sequence[float]) -> list[float]:
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


# ---- quadrature


@pytest.mark.parametrize("rate", [0.0, 1.0, 2.0, -1.0, 26.0])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_quadrature_integrates_polynomial_times_exponential(m: int, rate: float) -> None:
    """∫_a^b e^{rate·(s − b)}·(s − b)^k ds by parts in closed form, for k < m on uneven nodes, to
    1e-13 of its largest term.
    """
    a, b = np.array([-0.3, 1.0]), np.array([0.1, 1.5])
    nodes = a[:, None] - np.array([0.0, 0.7, 1.1, 2.3, 2.9])[None, :m] * (b - a)[:, None]
    weights = quadrature(nodes, a, b, rate)
    for k in range(m):
        moment = -((a - b) ** (k + 1)) / (k + 1)
        if rate:  # M_k = (0^k − e^{rate·(a − b)}·(a − b)^k − k·M_{k−1})/rate
            moment = np.zeros(2)
            for j in range(k + 1):
                moment = ((j == 0) - np.exp(rate * (a - b)) * (a - b) ** j - j * moment) / rate
        terms = weights * (nodes - b[:, None]) ** k
        np.testing.assert_allclose(
            terms.sum(1), moment, rtol=0, atol=1e-13 * max(1.0, np.abs(terms).sum())
        )


@pytest.mark.parametrize(
    ("first", "wanted"),
    [
        (
            0,
            [
                [1],
                [3 / 2, -1 / 2],
                [23 / 12, -16 / 12, 5 / 12],
                [55 / 24, -59 / 24, 37 / 24, -9 / 24],
            ],
        ),
        (1, [[1], [1 / 2, 1 / 2], [5 / 12, 8 / 12, -1 / 12], [9 / 24, 19 / 24, -5 / 24, 1 / 24]]),
    ],
)
def test_quadrature_on_uniform_nodes_is_adams_bashforth_and_moulton(
    first: int, wanted: list[list[float]]
) -> None:
    """Their coefficients up to order 4, to 1e-14 (Hairer, Nørsett & Wanner, Solving ODEs I)."""
    for row in wanted:
        nodes = first - np.arange(len(row), dtype=float)[None]
        got = quadrature(nodes, np.zeros(1), np.ones(1))[0]
        np.testing.assert_allclose(got, row, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rate", [0.0, 2.0, -1.0])
def test_quadrature_equals_scipy_for_each_lagrange_polynomial(rate: float) -> None:
    nodes = np.array([0.4, -0.3, -0.5, -1.2])
    got = quadrature(nodes[None], np.array([-0.3]), np.array([0.4]), rate)[0]
    for j, weight in enumerate(got):
        others = np.delete(nodes, j)
        found, _ = scipy.integrate.quad(
            lambda s, j=j, others=others: (
                math.exp(rate * (s - 0.4)) * np.prod((s - others) / (nodes[j] - others))
            ),
            -0.3,
            0.4,
            epsabs=1e-15,
            epsrel=1e-14,
        )
        assert abs(weight - found) < 1e-13


# ---- the papers' recursions on a Gaussian


def denoise(z: np.ndarray, cos: float, sin: float) -> tuple[np.ndarray, np.ndarray]:
    """x̂0 and ε̂ of N(MEAN, STD²) on the arc."""
    v = cos**2 * STD**2 + sin**2
    return MEAN + cos * STD**2 * (z - cos * MEAN) / v, sin * (z - cos * MEAN) / v


def moments(u: list[float], end: float, rate: float) -> np.ndarray:
    """Solve UniPC's R·ρ = b: values at u, polynomials against e^{rate·(s − end)} over 0 … end."""
    b = []
    for k in range(len(u)):
        zero = math.exp(-rate * end) if k == 0 else 0.0
        b.append((end**k - zero - (k * b[-1] if k else 0.0)) / rate)
    return np.linalg.solve(np.array([[x**k for x in u] for k in range(len(u))]), np.array(b))


def recursion(row: Row, nodes: Sequence[Level], z: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """A row of `METHODS` in plain floats, step by step as in the papers."""

    def value(z: np.ndarray, level: Level) -> np.ndarray:
        x0, eps = denoise(z, level.cos, level.sin)
        return x0 if row.variable == "x0" or level.cos < 1e-6 else eps

    def finite(level: Level) -> bool:
        return min(level.cos, level.sin) >= 1e-6

    kappa, tau2 = 1 + row.tau**2, row.tau**2
    known = [(nodes[0], value(z, nodes[0]))]  # newest first
    for i, (here, there) in enumerate(itertools.pairwise(nodes)):
        last, f = i + 2 == len(nodes), known[0][1]
        if last and row.tau:
            return there.cos * f
        if not (finite(here) and finite(there)):  # DDIM
            x0 = f if row.variable == "x0" or here.cos < 1e-6 else (z - here.sin * f) / here.cos
            eps = noise[i] if row.tau else (z - here.cos * x0) / here.sin
            z = there.cos * x0 + there.sin * eps
            known = [] if not finite(here) else known
        else:
            lam = {
                level: math.log(level.cos / level.sin)
                for level in (there, *(level for level, _ in known))
            }
            h = lam[there] - lam[here]
            if row.variable == "x0":
                keep, scale, rate = (
                    there.sin / here.sin * math.exp(-tau2 * h),
                    kappa * there.cos,
                    kappa,
                )
            else:
                keep, scale, rate = there.cos / here.cos, -there.sin, -1.0
            base = keep * z + there.sin * math.sqrt(-math.expm1(-2 * tau2 * h)) * noise[i]

            def step(
                pairs: Sequence[tuple[Level, np.ndarray]],
                base: np.ndarray = base,
                lam: dict[Level, float] = lam,
                start: float = lam[here],
                numbers: tuple[float, float, float] = (h, rate, scale),
            ) -> np.ndarray:
                h, rate, scale = numbers
                u = [lam[level] - start for level, _ in pairs]
                weights = moments(u, h, rate)
                if (
                    row.half and len(u) == 2
                ):  # the line through both values, read off in the middle of the step
                    total = moments([0.0], h, rate)[0]
                    weights = total * np.array(
                        [(0.5 * h - u[1]) / (u[0] - u[1]), (0.5 * h - u[0]) / (u[1] - u[0])]
                    )
                return base + scale * sum(w * f for w, (_, f) in zip(weights, pairs, strict=True))

            z = step(known[: row.order - row.corrector])
            if row.corrector and not last:
                new = value(z, there)
                z = step([(there, new), *known[: row.order - 1]])
                known.insert(0, (there, new))  # "PEC": the value at the predicted state goes on
                continue
        if not last:
            known.insert(0, (there, value(z, there)))
    return z


ROWS = dict(METHODS)
ROWS |= {
    f"{name}, order {n}": METHODS[name]._replace(order=n)
    for name in ("deis", "unipc", "sa")
    for n in (2, 4)
}
ROWS |= {
    "dpmpp_2m, tau 0.5": METHODS["dpmpp_2m"]._replace(tau=0.5),
    "sa, tau 0": METHODS["sa"]._replace(tau=0.0),
}


@pytest.mark.parametrize(("name", "kind"), rotated(PROCESSES, ROWS))
def test_gaussian_map_is_the_papers_recursion(name: str, kind: str) -> None:
    """On a Gaussian a sampler is an affine map of (x_T, noise): read it with unit vectors, all
    rows at once, to 1e-12.
    """
    row = ROWS[kind]
    process = scoresde.PROCESSES.build(name)
    sde = scoresde.oracle(
        toy.GaussianMixture(torch.full((1, 1), MEAN, dtype=torch.float64), STD), process
    ).double()
    nodes = levels(sde, grid(process, STEPS, "logsnr"))
    z = torch.zeros(2 + STEPS, 1, dtype=torch.float64)
    z[1] = 1
    noise = torch.eye(2 + STEPS, dtype=torch.float64)[2:].unsqueeze(2)
    draws = iter(noise)
    got = path(row, sde, nodes, z, lambda: next(draws))[-1]
    wanted = recursion(row, nodes, z.numpy(), noise.numpy())
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-12, atol=1e-12)


# ---- diffusers, and k-diffusion's recursions retyped, given the same network outputs and noise


class Wiggle(nn.Module):
    """A network that is no denoiser of anything: any ε will do where two codes are compared."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.9 * torch.sin(x + t.reshape(-1, *(1,) * (x.ndim - 1))) + 0.1 * x.flip(-1)


def wiggly(steps: int, zero: bool = False) -> tuple[ScoreSDE, tuple[Level, ...], Tensor, Tensor]:
    """A model, its levels for σ/α from 10 to 0.05 (and then 0), states, and noise, shape (steps,
    2, 48).
    """
    process = scoresde.RectifiedFlow()
    sde = ScoreSDE(
        process, Wiggle(), shape=(3, 4, 4), predict="edm", input_convention="raw"
    ).double()
    ratio = torch.logspace(1, math.log10(0.05), steps + (not zero), dtype=torch.float64)
    times = ratio / (1 + ratio)
    nodes = levels(sde, torch.cat([times, times.new_zeros(1)]) if zero else times)
    draws = torch.randn(steps + 1, 2, 48, generator=generator(), dtype=torch.float64)
    return sde, nodes, draws[0], draws[1:]


def theirs(
    name: str, sde: ScoreSDE, nodes: Sequence[Level], z: Tensor, noise: Tensor, **config: object
) -> list[Tensor]:
    """All (corrected) states of a scheduler of diffusers on our levels."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(
        prediction_type="sample", lower_order_final=False, **config
    )
    steps = len(nodes) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor(
        [level.sin / level.cos for level in nodes], dtype=torch.float64
    )
    scheduler.set_begin_index(0)
    task, states = problem(sde, tuple(nodes), False, lambda: z), []
    for i, timestep in enumerate(scheduler.timesteps):
        with pytest.MonkeyPatch.context() as patch:
            for module in ("dpmsolver_multistep", "sasolver"):
                target = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
                patch.setattr(
                    target, lambda *a, i=i, dtype, **k: noise[i].reshape(2, 3, 4, 4).to(dtype)
                )
            x0, _ = task.denoise(z, i)
            z = scheduler.step(
                x0.reshape(2, 3, 4, 4), timestep, z.reshape(2, 3, 4, 4)
            ).prev_sample.flatten(1)
        corrected = getattr(scheduler, "last_sample", None)
        if corrected is not None and i:
            states[-1] = corrected.flatten(1)
        states.append(z)
    return states


def assert_same(ours: Sequence[Tensor], others: Sequence[Tensor], atol: float = 1e-5) -> None:
    assert len(ours) == len(others)
    for a, b in zip(ours, others, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


DPM, UNIPC, DEIS, SA = (
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)


@pytest.mark.parametrize(
    ("row", "scheduler", "config"),
    [
        (METHODS["dpmpp_2m"], DPM, {"solver_order": 2, "final_sigmas_type": "sigma_min"}),
        (
            METHODS["dpmpp_2m"]._replace(half=False),
            DPM,
            {"solver_order": 2, "final_sigmas_type": "sigma_min", "solver_type": "heun"},
        ),
        (
            METHODS["dpmpp_2m"]._replace(order=1),
            DPM,
            {"solver_order": 1, "final_sigmas_type": "sigma_min"},
        ),
        (METHODS["unipc"]._replace(order=2), UNIPC, {"solver_order": 1, "solver_type": "bh2"}),
        (METHODS["unipc"], UNIPC, {"solver_order": 2, "solver_type": "bh2"}),
        (METHODS["unipc"]._replace(order=4), UNIPC, {"solver_order": 3, "solver_type": "bh2"}),
        (METHODS["deis"]._replace(order=2), DEIS, {"solver_order": 2}),
        (METHODS["deis"], DEIS, {"solver_order": 3}),
    ],
)
@pytest.mark.parametrize("steps", [8, 40])
def test_deterministic_rows_equal_diffusers(
    row: Row, scheduler: str, config: dict, steps: int
) -> None:
    """DPM-Solver++ (2M, midpoint and exact), UniPC (bh2, orders 1 to 3 and the corrector's one
    more), DEIS (2 and 3).
    """
    sde, nodes, z, noise = wiggly(steps)
    assert_same(path(row, sde, nodes, z)[1:], theirs(scheduler, sde, nodes, z, noise, **config))


@pytest.mark.parametrize("steps", [8, 40])
def test_2m_and_its_sde_equal_diffusers_down_to_sigma_zero(steps: int) -> None:
    """Their last step, to σ = 0, is x̂0 without noise, as ours."""
    sde, nodes, z, noise = wiggly(steps, zero=True)
    for row, kind in (
        (METHODS["dpmpp_2m"], "dpmsolver++"),
        (METHODS["dpmpp_2m_sde"], "sde-dpmsolver++"),
    ):
        draws = iter(noise)
        ours = path(row, sde, nodes, z, lambda draws=draws: next(draws))[1:]
        assert_same(ours, theirs(DPM, sde, nodes, z, noise, algorithm_type=kind, solver_order=2))


def third(row: Row, nodes: Sequence[Level], weight: Callable[[float], float]) -> list[Step]:
    """The exact coefficients of an order-3 row with the weight of D2, the second divided
    difference, put in by hand.

    With u = (λ − λ_0)/h and H = κ·h, the quadratic m0 + u·D1 + u²·D2 through three values has ∫
    H·e^{H(u − 1)}·u² du = q(H) = 1 + 2·(1 − e^{−H} − H)/H² for D2. Adding (w − q)·D2 to a step
    gives D2 the weight w.
    """
    table = coefficients(row, nodes)
    lam = [math.log(level.cos / level.sin) for level in nodes]
    for i in range(2, len(table)):
        h = lam[i + 1] - lam[i]
        r0, r1, big = (
            (lam[i] - lam[i - 1]) / h,
            (lam[i - 1] - lam[i - 2]) / h,
            (1 + row.tau**2) * h,
        )
        exact = 1 + 2 * (1 - math.exp(-big) - big) / big**2
        d2 = np.array([1 / r0, -1 / r0 - 1 / r1, 1 / r1]) / (r0 + r1)
        add = nodes[i + 1].cos * (weight(big) - exact) * d2
        table[i] = table[i]._replace(predict=(np.array(table[i].predict) + add).tolist())
    return table


def half_of_it(big: float) -> float:
    """−φ_3 = ½ − (e^{−H} − 1 + H)/H², in diffusers' dpmsolver++ of order 3 and in k-diffusion's 3M
    SDE: half of q(H).
    """
    return 0.5 - (math.exp(-big) - 1 + big) / big**2


def wrong_sign(big: float) -> float:
    """(1 − e^{−H} − H)/H² − ½, in diffusers' sde-dpmsolver++ of order 3: −1, not 0, for small
    steps.
    """
    return (1 - math.exp(-big) - big) / big**2 - 0.5


@pytest.mark.parametrize("steps", [8, 40])
@pytest.mark.parametrize(
    ("tau", "kind", "weight"),
    [(0.0, "dpmsolver++", half_of_it), (1.0, "sde-dpmsolver++", wrong_sign)],
)
def test_third_order_is_diffusers_but_for_the_weight_of_the_curvature(
    tau: float,
    kind: str,
    weight: Callable[[float], float],
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Theirs is not of order 3 (see the slopes below). With their weight put in by hand, ours
    equals theirs to 1e-5.
    """
    sde, nodes, z, noise = wiggly(steps)
    row = METHODS["dpmpp_3m"]._replace(tau=tau)
    config = {
        "algorithm_type": kind,
        "solver_order": 3,
        "solver_type": "heun",
        "final_sigmas_type": "sigma_min",
    }
    wanted = theirs(DPM, sde, nodes, z, noise, **config)
    draws = iter(noise)
    exact = path(row, sde, nodes, z, lambda: next(draws))[1:]
    table = third(row, nodes, weight)
    monkeypatch.setattr("scoresde.solvers.multistep.coefficients", lambda row, nodes: table)
    draws = iter(noise)
    last = -1 if tau else None  # our last step of an SDE is x̂0, theirs is one more of the same
    assert_same(path(row, sde, nodes, z, lambda: next(draws))[1:last], wanted[:last])
    assert rms(exact[-2] - wanted[-2]) > 1e-5


def k_diffusion(
    sde: ScoreSDE,
    nodes: Sequence[Level],
    z: Tensor,
    noise: Tensor,
    order: int,
    eta: float,
    weight: Callable | None = None,
) -> list[Tensor]:
    """The recursions of sample_dpmpp_2m, _2m_sde and _3m_sde, retyped: x = x0 + σ·ε and steps of
    −log σ.
    """
    task, states = problem(sde, tuple(nodes), False, lambda: z), []
    ratio = [level.sin / level.cos for level in nodes]
    x, old = z / nodes[0].cos, []
    for i, (s, t) in enumerate(itertools.pairwise(ratio)):
        x0, _ = task.denoise(x * nodes[i].cos, i)
        if t == 0:
            x = x0
        else:
            h = math.log(s / t)
            big = (1 + eta) * h
            x = (
                t / s * math.exp(-eta * h) * x
                - math.expm1(-big) * x0
                + t * math.sqrt(-math.expm1(-2 * eta * h)) * noise[i]
            )
            if order == 2 and old:
                x = x - 0.5 * math.expm1(-big) * h / old[0][1] * (x0 - old[0][0])
            elif old:
                slope = math.expm1(-big) / big + 1  # ∫ H·e^{H(u − 1)}·u du
                d1 = (x0 - old[0][0]) * h / old[0][1]
                if len(old) > 1:
                    r0, r1 = old[0][1] / h, old[1][1] / h
                    d2 = (d1 - (old[0][0] - old[1][0]) / r1) / (r0 + r1)
                    d1 = d1 + r0 * d2
                    x = x + weight(big) * d2
                x = x + slope * d1
            old = [(x0, h), *old][:2]
        states.append(x * nodes[i + 1].cos)
    return states


@pytest.mark.parametrize("steps", [8, 40])
def test_rows_equal_recursions_retyped_from_k_diffusion(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2M and 2M SDE as they are, 3M SDE with the full weight of the curvature, to 1e-11; with
    their half of it not.

    k-diffusion itself is no dependency of the tests: this compares with its formulas, not with its
    code.
    """
    sde, nodes, z, noise = wiggly(steps, zero=True)
    for row, order, eta in (
        (METHODS["dpmpp_2m"], 2, 0.0),
        (METHODS["dpmpp_2m_sde"], 2, 1.0),
        (METHODS["dpmpp_3m_sde"], 3, 1.0),
    ):
        draws = iter(noise)
        ours = path(row, sde, nodes, z, lambda draws=draws: next(draws))[1:]
        assert_same(
            ours,
            k_diffusion(sde, nodes, z, noise, order, eta, lambda big: 2 * half_of_it(big)),
            1e-11,
        )
    assert rms(ours[-1] - k_diffusion(sde, nodes, z, noise, 3, 1.0, half_of_it)[-1]) > 1e-5


@pytest.mark.parametrize("steps", some([8, 40], 8))
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order", [3, 4])
def test_sa_equals_diffusers(
    tau: float, order: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictor of order − 1, corrector of `order` values; but their sums of two values, in the
    start-up, are not exact.

    There they replace the weight w = (H − 1 + e^{−H})/(κ²·h) of the slope by h/2 ("does not
    influence the convergence order"). Put in by hand for the first corrector and the second
    predictor (all predictors if there are no longer ones).
    """
    sde, nodes, z, noise = wiggly(steps)
    row = METHODS["sa"]._replace(order=order, tau=tau)
    table, kappa = coefficients(row, nodes), 1 + tau**2
    lam = [math.log(level.cos / level.sin) for level in nodes]
    for i, step in enumerate(table):
        h = lam[i + 1] - lam[i]
        more = (
            kappa
            * nodes[i + 1].cos
            * (h / 2 - (kappa * h - 1 + math.exp(-kappa * h)) / (kappa**2 * h))
        )
        predict, correct = np.array(step.predict), np.array(step.correct)
        if len(predict) == 2:
            predict += more * h / (lam[i] - lam[i - 1]) * np.array([1, -1])
        if len(correct) == 2:
            correct += more * np.array([1, -1])
        table[i] = step._replace(predict=predict.tolist(), correct=correct.tolist())
    monkeypatch.setattr("scoresde.solvers.multistep.coefficients", lambda row, nodes: table)
    draws = iter(noise)
    last = -1 if tau else None  # our last step of an SDE is x̂0, theirs is one more of the same
    ours = path(row, sde, nodes, z, lambda: next(draws))[1:last]
    assert_same(
        ours,
        theirs(
            SA,
            sde,
            nodes,
            z,
            noise,
            predictor_order=order - 1,
            corrector_order=order,
            tau_func=lambda t: tau,
        )[:last],
    )


# ---- orders


def ends(
    row: Row, sde: ScoreSDE, z: Tensor, counts: Sequence[int], spacing: str = "logsnr"
) -> list[Tensor]:
    return [path(row, sde, levels(sde, grid(sde.process, n, spacing)), z)[-1] for n in counts]


@pytest.fixture(scope="module")
def quiet() -> tuple[ScoreSDE, Tensor, Tensor]:
    """A problem whose x̂0 hardly moves where the steps begin, states, and their end points to
    1e-14.

    A first step can only be DDIM's. It leaves h² times the change of x̂0 there, which caps the
    order of a predictor of order 3 or more at 2, however fine the grid. A symmetric mixture of
    variance about 1 under σ up to 1,000 makes that 1e-9 or less.
    """
    sde = scoresde.oracle(
        toy.GaussianMixture(CROSS, [0.5] * 4), scoresde.EDM(sigma_min=0.1, sigma_max=1000.0)
    ).double()
    z = torch.randn(32, 2, generator=generator(5), dtype=torch.float64)
    coarse, fine = ends(Row("v", 8, corrector=True), sde, z, [800, 1200], "graded")
    assert rms(coarse - fine) < 1e-13
    return sde, z, fine


def orders(row: Row) -> list[Row]:
    """A row with each order that it takes, once where `half` changes the start-up alone."""
    wanted = [row._replace(order=n) for n in range(1 + row.corrector, 5)]
    return [r if r.corrector or r.order == 2 else r._replace(half=False) for r in wanted]


ORDERS = sorted({r for row in METHODS.values() for r in orders(row._replace(tau=0.0))})


DEFAULT = {row._replace(tau=0.0) for row in METHODS.values()}


@pytest.mark.parametrize(
    "row",
    some(ORDERS, *DEFAULT),
    ids=["-".join(map(str, row[:4])) for row in ORDERS],
)
def test_each_row_has_its_order(row: Row, quiet: tuple[ScoreSDE, Tensor, Tensor]) -> None:
    """Slope of the end point's RMS error over two halvings, to 512 steps: within 0.15 of the
    order, 1 to 4.
    """
    sde, z, exact = quiet
    errors = [rms(end - exact) for end in ends(row, sde, z, [128, 256, 512])]
    for slope in slopes(errors)[-1 if row.variable == "eps" else -2 :]:
        assert abs(slope - row.order) < 0.15, (slopes(errors), errors)


def test_half_the_weight_of_the_curvature_makes_the_third_order_second(
    quiet: tuple[ScoreSDE, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half of the curvature's weight, as diffusers' has (above) and k-diffusion's formula,
    the slope is 2; with all, 3.
    """
    sde, z, exact = quiet
    for weight, order in ((half_of_it, 2), (lambda big: 2 * half_of_it(big), 3)):
        monkeypatch.setattr(
            "scoresde.solvers.multistep.coefficients",
            lambda row, nodes, weight=weight: third(row, nodes, weight),
        )
        errors = [rms(end - exact) for end in ends(METHODS["dpmpp_3m"], sde, z, [512, 1024])]
        assert abs(slopes(errors)[-1] - order) < 0.15, (order, slopes(errors))


def short_of_the_end(
    sde: ScoreSDE, steps: int, high: float = 1000.0, low: float = 0.1
) -> tuple[Level, ...]:
    """Levels uniform in λ between two values of σ/α, and one more at t = 0: an SDE's last step is
    Tweedie's, of no order.
    """
    ratio = torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=torch.float64)
    return levels(
        sde, torch.cat([sde.process.time(torch.atan(ratio)), torch.zeros(1, dtype=torch.float64)])
    )


NOISY = sorted({r for row in METHODS.values() if row.tau for r in orders(row)})
NAMED = ["-".join(map(str, row[1:4])) for row in NOISY]
NOISY_NAMES = [name for name, row in METHODS.items() if row.tau]


@pytest.mark.parametrize("name", some(NOISY_NAMES, "dpmpp_2m_sde"))
def test_drift_of_each_noisy_row_has_its_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the reverse SDE without its noise, dz/dλ = κ·cos φ·x̂0 − (τ² + cos² φ)·z, against scipy's
    DOP853 at 1e-13.

    Slope over the last of six halvings, within 0.15. 3M SDE with k-diffusion's weight of the
    curvature has order 2 instead of 3 (the fifth halving); with the wrong sign of diffusers'
    sde-dpmsolver++ order 1, until at 1,024 steps it is no longer stable.
    """
    row, mixture = METHODS[name], toy.GaussianMixture(CROSS, [0.5] * 4)
    sde = scoresde.oracle(mixture, scoresde.EDM(sigma_min=0.05, sigma_max=1000.0)).double()
    z = torch.randn(16, 2, generator=generator(5), dtype=torch.float64)
    kappa = 1 + row.tau**2

    def drift(at: float, flat: np.ndarray) -> np.ndarray:
        phi, state = math.atan(math.exp(-at)), torch.as_tensor(flat).reshape(z.shape)
        cos, sin = (
            torch.full((len(z),), f(phi), dtype=torch.float64) for f in (math.cos, math.sin)
        )
        x0, _ = mixture.denoise(state, cos, sin)
        return (
            (kappa * math.cos(phi) * x0 - (row.tau**2 + math.cos(phi) ** 2) * state)
            .flatten()
            .numpy()
        )

    span = (-math.log(1000.0), -math.log(0.1))
    flow = scipy.integrate.solve_ivp(
        drift, span, z.flatten().numpy(), method="DOP853", rtol=1e-13, atol=1e-13
    )
    exact = torch.as_tensor(flow.y[:, -1]).reshape(z.shape)
    counts = [16 * 2**k for k in range(7)]
    errors = [rms(path(row, sde, short_of_the_end(sde, n), z)[-2] - exact) for n in counts]
    assert abs(slopes(errors)[-1] - row.order) < 0.15, (slopes(errors), errors)
    for weight, order in ((half_of_it, 2), (wrong_sign, 1)) if row.order == 3 else ():
        monkeypatch.setattr(
            "scoresde.solvers.multistep.coefficients",
            lambda row, nodes, weight=weight: third(row, nodes, weight),
        )
        errors = [rms(path(row, sde, short_of_the_end(sde, n), z)[-2] - exact) for n in counts]
        assert abs(slopes(errors)[4] - order) < 0.15, (slopes(errors), errors)


@pytest.mark.parametrize("row", some(NOISY, *METHODS.values()), ids=NAMED)
def test_weak_order_of_noisy_rows_is_two_at_most(row: Row) -> None:
    """On a Gaussian, without sampling: the map (x_T, noise) -> x, read with unit vectors, gives
    the variance of what comes out.

    Its order is 2, whatever the order of the drift: x̂0 is a Brownian path, and what is
    extrapolated lags a step behind its noise. (The mean, which no noise reaches, keeps the order
    of the drift.)
    """
    sde = scoresde.oracle(
        toy.GaussianMixture(torch.full((1, 1), MEAN, dtype=torch.float64), STD), scoresde.EDM()
    ).double()
    errors = []
    for steps in [8 * 2**k for k in range(7)]:
        nodes = short_of_the_end(sde, steps, 50.0)
        z = torch.zeros(2 + steps, 1, dtype=torch.float64)
        z[1] = 1
        draws = iter(torch.eye(2 + steps, dtype=torch.float64)[2:].unsqueeze(2))
        got = path(row, sde, nodes, z, lambda draws=draws: next(draws))[-2][:, 0]
        before, after = (level.cos**2 * STD**2 + level.sin**2 for level in (nodes[0], nodes[-2]))
        errors.append(
            abs(float((got[1] - got[0]) ** 2 * before + (got[2:] - got[0]).square().sum()) - after)
        )
    assert abs(slopes(errors)[-1] - multistep(row).order) < 0.2, slopes(errors)


@pytest.mark.parametrize("name", some(NOISY_NAMES, "sa"))
def test_strong_order_of_noisy_rows_is_one(name: str) -> None:
    """RMS difference between n and 2n steps on the same Brownian path, on a mixture: order 1
    within 0.2, over four halvings.

    A step's noise is ∫ e^{λ − λ'}·√2 dW: r steps' draws n_j join as Σ e^{−(r − 1 − j)·h}·n_j,
    scaled to unit variance. The seed is fixed. Over seeds the slope scatters by 0.03: 0.2 would be
    a false alarm of less than 1e-8.
    """
    sde = scoresde.oracle(
        toy.GaussianMixture(torch.tensor([[1.2], [-1.2]], dtype=torch.float64), [0.5] * 2),
        scoresde.EDM(),
    ).double()
    fine, last, h = (
        torch.randn(513, 2000, 1, generator=generator(9), dtype=torch.float64),
        None,
        math.log(20 / 0.1) / 512,
    )
    errors = []
    for steps in [16 * 2**k for k in range(6)]:
        weights = torch.exp(-h * torch.arange(512 // steps - 1, -1, -1, dtype=torch.float64))
        joint = torch.einsum(
            "r,nrbk->nbk", weights / weights.norm(), fine[1:].reshape(steps, -1, 2000, 1)
        )
        draws = iter(joint)
        end = path(
            METHODS[name],
            sde,
            short_of_the_end(sde, steps, 20.0),
            fine[0],
            lambda draws=draws: next(draws),
        )[-2]
        errors += [rms(end - last)] if last is not None else []
        last = end
    assert abs(math.log2(errors[0] / errors[-1]) / 4 - 1) < 0.2, slopes(errors)


# ---- Adams


@pytest.mark.parametrize("order", some(range(2, 9), 3, 5, 8))
def test_adams_on_a_fixed_grid_has_its_order(
    order: int, quiet: tuple[ScoreSDE, Tensor, Tensor]
) -> None:
    """Slope over the last of six halvings on the "graded" grid, whose first steps are short enough
    for the start of order 2.

    Within 0.15 for orders 2 to 6. Orders 7 and 8 meet float64's floor at 200 steps: their steepest
    are within 0.15 and 0.5.
    """
    sde, z, exact = quiet
    first = {5: 16, 6: 8, 7: 4, 8: 3}.get(order, 12)
    counts = [first * 2**k for k in range(7)][-2 if order < 7 else 0 :]
    errors = [
        rms(end - exact) for end in ends(Row("v", order, corrector=True), sde, z, counts, "graded")
    ]
    seen = slopes(errors)[-1] if order < 7 else max(slopes(errors))
    assert abs(seen - order) < (0.15 if order < 8 else 0.5), (slopes(errors), errors)


@pytest.mark.parametrize(
    ("steps", "limit", "forward"),
    kept(
        [
            (1, 32, 1),
            (4, 32, 3),
            (5, 32, 4),
            (35, 32, 4),
            (36, 48, 4),
            (71, 48, 4),
            (72, 64, 4),
            (86, 100, 4),
            (100, 200, 4),
        ],
        lambda steps, limit, forward: steps < 10 or steps in (36, 100),
    ),
)
def test_adams_takes_its_limit_and_order_from_the_number_of_steps(
    steps: int, limit: int, forward: int
) -> None:
    """To the data it interpolates x̂0 in φ² up to a Lebesgue number, from the data v in φ up to an
    order.
    """
    sde = scoresde.oracle(BUMPS, scoresde.RectifiedFlow()).double()
    z = torch.randn(5, 2, generator=generator(), dtype=torch.float64)
    nodes = levels(sde, grid(sde.process, steps, "graded"))
    for most in (2, 4, 6, 10):
        least = min(forward, most)
        to_data = Row("x0φ²", most, corrector=True, limit=limit)
        from_data = Row("v", least, corrector=least > 1)
        for way, row in ((nodes, to_data), (nodes[::-1], from_data)):
            end, counts = Adams(max_order=most).run(problem(sde, way, False, lambda: z), z)
            assert torch.equal(end, path(row, sde, way, z)[-1])
            assert counts.nfe == steps
    with pytest.raises(ValueError, match="max_order is from 2 to 10, got 11"):
        Adams(max_order=11)


def solved(
    sde: ScoreSDE, n: int, tolerance: float, solver: str = "adams", **how: object
) -> scoresde.sampling.trajectory.Solution:
    return scoresde.solve(
        sde, n, solver=solver, rtol=tolerance, atol=tolerance, generator=generator(), **how
    )


@pytest.mark.parametrize(
    ("mixture", "name"),
    kept(
        itertools.product(PROBLEMS, ("vp", "rectified", "ve")),
        lambda mixture, name: (mixture, name) == ("8 Gaussians", "vp"),
    ),
)
def test_adams_error_follows_its_tolerance(mixture: str, name: str) -> None:
    """End point's error over six decades of tolerance, against Dormand–Prince 8(5,3) at 1e-11, for
    200 samples.

    The median sample's is between tolerance/50 and 0.7 × tolerance (0.03 to 0.44 measured). The
    RMS over samples is below 5 × tolerance, not below the tolerance (0.06 to 2.3 measured): a few
    samples near separatrices of the 8 Gaussians decide it.
    """
    sde = scoresde.oracle(PROBLEMS[mixture], scoresde.PROCESSES.build(name)).double()
    exact = solved(sde, 200, 1e-11, "dop853").x[-1]
    cost = 0.0
    for tolerance in (1e-3, 1e-4, 1e-6, 1e-8):
        solution = solved(sde, 200, tolerance)
        error = solution.x[-1] - exact
        assert tolerance / 50 < float(error.square().mean(1).sqrt().median()) < 0.7 * tolerance
        assert tolerance / 30 < rms(error) < 5 * tolerance
        assert bool((solution.nfe == 1 + solution.accepted + solution.rejected).all())
        assert cost < float(solution.nfe.double().mean()) < 2 * cost + 30
        cost = float(solution.nfe.double().mean())


@pytest.mark.parametrize(
    ("name", "mixture"),
    [
        ("vp", "8 Gaussians"),
        ("ve", "bumps"),
        ("vp", "bumps"),
        ("ve", "8 Gaussians"),
    ],
)
@pytest.mark.slow  # docs/solvers.md asserts it of one
def test_adams_likelihood_follows_its_tolerance(mixture: str, name: str) -> None:
    """Error of log p(x) over six decades of tolerance, against the closed form, for 100 samples;
    and that of the latent.

    RMS between tolerance/80 and the tolerance: over seeds, 0.03 to 0.30 of it were measured, and
    up to 0.08 for the latent.
    """
    density, process = PROBLEMS[mixture], scoresde.PROCESSES.build(name)
    sde = scoresde.oracle(density, process).double()
    (alpha0, sigma0), (alpha, sigma) = at(process, 0.0), at(process, 1.0)
    x = density.sample(100, generator=generator(3)).double()
    truth = density.perturb(alpha0, sigma0).log_prob(x)
    prior = density.perturb(alpha, sigma)
    latent = scoresde.encode(sde, x, solver="dop853", rtol=1e-12, atol=1e-12)
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-8):
        found = scoresde.likelihood(
            sde, x, solver="adams", rtol=tolerance, atol=tolerance, prior=prior
        )
        assert tolerance / 80 < rms(found.log_prob - truth) < tolerance
        assert rms(found.latent - latent) < tolerance * math.hypot(alpha, sigma)


@pytest.mark.parametrize("mixture", some(["8 Gaussians", "64-D"], "8 Gaussians"))
def test_adams_needs_few_evaluations(mixture: str) -> None:
    """RMS 1e-3, 1e-4, 1e-6 within 36, 60, 150 evaluations on a fixed grid; 30, 45, 80 a sample
    with that tolerance; float64.
    """
    sde = scoresde.oracle(PROBLEMS[mixture], scoresde.RectifiedFlow()).double()
    exact = solved(sde, 100, 1e-9, "dop853").x[-1]
    for error, steps, cost in ((1e-3, 36, 30), (1e-4, 60, 45), (1e-6, 150, 80)):
        fixed = scoresde.solve(sde, 100, solver="adams", steps=steps, generator=generator())
        assert rms(fixed.x[-1] - exact) < error
        assert bool((fixed.nfe == steps).all())
        free = solved(sde, 100, error)
        assert rms(free.x[-1] - exact) < error
        assert float(free.nfe.double().mean()) < cost


@pytest.mark.parametrize("name", some(["vp", "ve", "cosine"], "ve"))
def test_adams_dense_output_is_free_and_as_good_as_the_steps(name: str) -> None:
    times = [1.0, 0.9, 0.7, 0.69, 0.5, 0.31, 0.1, 0.05, 1e-3, 0.0]
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.PROCESSES.build(name)).double()
    radius = sde.process.radius(torch.tensor(times, dtype=torch.float64))[:, None, None]
    exact = solved(sde, 40, 1e-11, "dop853", times=times).x / radius
    for tolerance in (1e-3, 1e-5, 1e-8):
        dense, plain = solved(sde, 40, tolerance, times=times), solved(sde, 40, tolerance)
        assert torch.equal(dense.x[[0, -1]], plain.x)
        assert torch.equal(dense.nfe, plain.nfe)
        assert max(rms(row) for row in dense.x / radius - exact) < tolerance


class Watched(nn.Module):
    """A network that notes how many rows it sees."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.net(x, t)


def test_adams_drops_samples_that_are_done_and_keeps_them_apart() -> None:
    """The network sees as many rows as the samples report; neither a mate nor the wanted times
    change a bit of a sample.
    """
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE()).double()
    sde.net = watched = Watched(sde.net)
    solution = solved(sde, 100, 1e-6)
    assert sum(watched.seen) == int(solution.nfe.sum())
    assert min(watched.seen) < 50
    assert len(solution.nfe.unique()) > 5

    class Elementwise(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(3 * x) * 0.8 - 0.3 * x * t.reshape(-1, 1)

    sde = ScoreSDE(scoresde.VPSDE(), Elementwise(), shape=(3,)).double()
    z = torch.randn(64, 3, generator=generator(), dtype=torch.float64)
    found = []
    for times, mates in itertools.product(([1.0, 0.0], [1.0, 0.4, 0.01, 0.0]), (1.0, 1e-3, 5.0)):
        batch = z * mates
        batch[[3, 17, 60]] = z[17]
        nodes = levels(sde, torch.tensor(times, dtype=torch.float64))
        end, counts = Adams().run(problem(sde, nodes, True, lambda: z), batch)
        found += [torch.cat([end[i], counts.nfe[i : i + 1]]) for i in (3, 17, 60)]
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("name", some(["vp", "ve"], "vp"))
def test_adams_does_not_stall_in_float32(name: str) -> None:
    """Tolerances below what float32 resolves: it still ends, near the same place, for a bounded
    number of evaluations.
    """
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.PROCESSES.build(name))
    nodes = levels(sde, torch.tensor([1.0, 0.0], dtype=torch.float64))
    z = torch.randn(200, 2, generator=generator())
    ends = [
        (solver.run(problem(sde, nodes, True, lambda: z), z))
        for solver in (SOLVERS.build("adams", rtol=t, atol=t) for t in (1e-5, 1e-7))
    ]
    wide = scoresde.oracle(MIXTURES["8 Gaussians"], sde.process).double()
    exact, _ = SOLVERS.build("dop853", rtol=1e-9, atol=1e-9).run(
        problem(wide, nodes, True, lambda: z), z.double()
    )
    for end, counts in ends:
        assert end.dtype == torch.float32
        assert rms(end - exact) < 1e-5
        assert int(counts.nfe.max()) < 400


@pytest.mark.parametrize("times", [None, [1.0, 0.4, 0.0]])
def test_adams_failures_are_errors_that_keep_the_mates(times: list[float] | None) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.where(((t < 0.5) & (x[:, 0] > 0))[:, None], float("nan"), -0.1 * x)

    class Rough(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.where(x[:, :1] > 0, torch.sign(torch.sin(1e4 * x)) * 1e3, -0.1 * x)

    for net, match in ((Broken(), "not finite"), (Rough(), "max_steps")):
        sde = ScoreSDE(scoresde.VPSDE(), net, shape=(2,), input_convention="raw").double()
        with pytest.raises(scoresde.SolverError, match=match) as caught:
            solved(sde, 50, 1e-5, max_steps=300, times=times)
        failed = caught.value.failed
        assert 0 < int(failed.sum()) < 50
        start = solved(
            ScoreSDE(scoresde.VPSDE(), Plain(), shape=(2,), input_convention="raw").double(),
            50,
            1e-5,
            max_steps=300,
        )
        torch.testing.assert_close(caught.value.x[~failed], start.x[-1][~failed])
    for options in ({"rtol": 0.0}, {"atol": -1.0}, {"max_order": 1}, {"max_steps": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Adams(**options)


class Plain(nn.Module):
    """What the broken networks are where they work."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.1 * x


@pytest.mark.parametrize(
    ("n", "shape"),
    [(1, (1,)), (1000, (1,)), (1, (2,)), (3, (3, 32, 32)), (5, (1, 4, 4)), (1000, (2,))],
)
@pytest.mark.parametrize(("name", "steps"), rotated(["vp", "rectified"], [None, 60]))
def test_adams_in_all_sizes_equals_the_closed_form(
    n: int, shape: tuple[int, ...], name: str, steps: int | None
) -> None:
    """On N(m, s²·I) a sample keeps (x − α·m)/√(α²·s² + σ²) along its way."""
    process, mean, std = (
        scoresde.PROCESSES.build(name),
        torch.full((1, *shape), MEAN, dtype=torch.float64),
        0.4,
    )
    sde = scoresde.oracle(toy.GaussianMixture(mean, std), process).double()
    how = {"rtol": 1e-7, "atol": 1e-7} if steps is None else {"steps": steps}
    solution = scoresde.solve(sde, n, solver="adams", generator=generator(), **how)
    alpha, sigma = (
        f(torch.tensor([1.0, 0.0], dtype=torch.float64)) for f in (process.alpha, process.sigma)
    )
    spread = (alpha**2 * std**2 + sigma**2).sqrt()
    wanted = alpha[1] * mean + spread[1] / spread[0] * (solution.x[0] - alpha[0] * mean)
    torch.testing.assert_close(solution.x[-1], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "least"),
    kept(
        [("dpmpp_2m", 1.8), ("dpmpp_3m", 2.4), ("deis", 1.8)],
        lambda solver, least: solver == "dpmpp_3m",
    ),
)
def test_data_go_into_pure_noise_in_the_same_order(solver: str, least: float) -> None:
    """Of data whose mean is not 0: the step to α = 0 had the wrong weight of x̂0, and order 1.5."""
    law = scoresde.toy.GaussianMixture([[2.0, 1.0], [3.5, 0.0]], 0.5)
    sde = scoresde.oracle(law, scoresde.RectifiedFlow()).double()
    x = law.sample(100, generator=torch.Generator().manual_seed(0)).double()
    exact = scoresde.encode(sde, x, rtol=1e-10, atol=1e-10)
    coarse, fine = (
        (scoresde.encode(sde, x, solver=solver, steps=n) - exact).square().mean().sqrt()
        for n in (80, 320)
    )
    assert math.log(coarse / fine, 4) > least
