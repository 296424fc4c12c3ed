"""Other libraries' solvers by name against ours, closed forms and their own orders, with their
quirks looked for one by one.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import MIXTURES, generator, kept, rotated, some
from scoresde import ScoreSDE, toy
from scoresde.solvers import (
    SOLVERS,
    AdaptiveTorchDiffEq,
    Level,
    Problem,
    SciPy,
    TorchDiffEq,
    TorchSDE,
)
from scoresde.solvers.external import LIBRARIES
from scoresde.solvers.external.scipy import IVP
from scoresde.solvers.external.torchdiffeq import ADAPTIVE, FIXED
from scoresde.solvers.external.torchsde import SDE, _Brownian

# implicit_adams says on coarse grids that its iteration has not converged, which is true and not
# what is tested here
pytestmark = pytest.mark.filterwarnings("ignore:Functional iteration did not converge")

NAMES = [f"{library}:{name}" for library, table in LIBRARIES.items() for name in table]
TOLERANT = [f"torchdiffeq:{name}" for name in ADAPTIVE] + [f"scipy:{name}" for name in IVP]
GRID = [f"torchdiffeq:{name}" for name in FIXED]
STOCHASTIC = [f"torchsde:{name}" for name in SDE]
SHARED = [f"torchdiffeq:{name}" for name in (*ADAPTIVE, "implicit_adams")]
FINE = ["torchdiffeq:dopri8", "torchdiffeq:dopri5", "scipy:LSODA", "scipy:DOP853", "scipy:Radau"]
TIGHT = {"rtol": 1e-8, "atol": 1e-8}
KINDS = ("torchdiffeq:dopri5", "scipy:LSODA", "torchdiffeq:rk4", "torchdiffeq:implicit_adams")
"""One of each kind, and all that are stochastic, stand for the rest in `make test`."""
MOST = some(NAMES, *KINDS, *STOCHASTIC)


def how(name: str, steps: int = 20) -> dict[str, object]:
    return {"solver": name} | (
        {"rtol": 1e-4, "atol": 1e-4} if name in TOLERANT else {"steps": steps}
    )


def eight(process: str = "vp") -> ScoreSDE:
    return scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.PROCESSES.build(process)).double()


def test_the_lists_are_complete() -> None:
    assert sorted(NAMES) == sorted(TOLERANT + GRID + STOCHASTIC)
    for name in NAMES:
        solver = SOLVERS.build(name)
        assert solver.shared == (name in SHARED)
        assert solver.stochastic == (name in STOCHASTIC) == (not solver.ode)
    assert SOLVERS.build("torchdiffeq:fixed_adams") == SOLVERS.build("torchdiffeq:implicit_adams")


@pytest.mark.parametrize("process", ["vp", pytest.param("rectified", marks=pytest.mark.slow)])
def test_end_points_and_stations_equal_ours(process: str) -> None:
    """To 1e-6 at a tolerance of 1e-8, at the end and at times on the way, where dense output of
    low order would show.
    """
    sde, times = eight(process), [1.0, 0.5, 0.1, 0.0]
    ours = scoresde.solve(sde, 3, times=times, rtol=1e-9, atol=1e-9, generator=generator())
    for name in FINE if process == "rectified" else FINE[1:3]:
        theirs = scoresde.solve(sde, 3, solver=name, times=times, generator=generator(), **TIGHT)
        torch.testing.assert_close(theirs.x, ours.x, rtol=0, atol=1e-6, msg=name)


@functools.cache
def three_to_compare_with() -> Tensor:
    return scoresde.sample(eight("rectified"), 3, rtol=1e-11, atol=1e-11, generator=generator())


@pytest.mark.parametrize(
    "name", some(TOLERANT, "torchdiffeq:dopri5", "torchdiffeq:bosh3", "scipy:LSODA", "scipy:BDF")
)
def test_tolerance_rules_the_error(name: str) -> None:
    """Each method's error falls with its tolerance, and stays below 100 times that (400 for an
    order of 2).
    """
    sde, fine = eight("rectified"), three_to_compare_with()
    errors = []
    for tolerance in (1e-3, 1e-5):
        x = scoresde.sample(
            sde, 3, solver=name, rtol=tolerance, atol=tolerance, generator=generator()
        )
        errors.append(float((x - fine).abs().max()))
        assert errors[-1] < (400 if SOLVERS.build(name).order == 2 else 100) * tolerance
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize("name", some([*FINE, "torchdiffeq:rk4"], *KINDS))
def test_log_prob_is_the_closed_form(name: str) -> None:
    mixture, process = MIXTURES["8 Gaussians"], scoresde.RectifiedFlow()
    x = mixture.sample(1, generator=generator(), dtype=torch.float64)
    fine = {"steps": 150} if name in GRID else {"rtol": 1e-7, "atol": 1e-7}
    logp = scoresde.log_prob(scoresde.oracle(mixture, process), x, solver=name, **fine)
    assert float((logp - mixture.log_prob(x)).abs().max()) < 1e-5


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_euler_is_ours(process: str) -> None:
    sde = eight(process)
    for spacing in ("arc", "time"):
        ours = scoresde.sample(
            sde, 20, solver="euler", steps=30, spacing=spacing, generator=generator()
        )
        theirs = scoresde.sample(
            sde, 20, solver="torchdiffeq:euler", steps=30, spacing=spacing, generator=generator()
        )
        torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)


@functools.cache
def three_modes() -> tuple[ScoreSDE, Tensor]:
    """A mixture's exact score, and where its samples end."""
    means = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, 2.0]], dtype=torch.float64)
    sde = scoresde.oracle(
        toy.GaussianMixture(means, [0.6, 0.8, 1.0]), scoresde.RectifiedFlow()
    ).double()
    return sde, scoresde.sample(sde, 32, rtol=1e-13, atol=1e-13, generator=generator())


@pytest.mark.parametrize("name", some(GRID, *KINDS))
def test_fixed_grids_have_their_order(name: str) -> None:
    """Slope over three halvings within 0.15 of the order; Adams–Moulton's order, which varies up to
    12, is only at least that.
    """
    sde, exact = three_modes()
    runs = [
        scoresde.sample(sde, 32, solver=name, steps=16 * 2**k, generator=generator())
        for k in range(4)
    ]
    errors = [float((x - exact).square().mean().sqrt()) for x in runs]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors) if b > 1e-12]
    order = SOLVERS.build(name).order
    assert slopes[-1] > order - 0.15, slopes
    assert slopes[-1] < order + 0.15 or name == "torchdiffeq:implicit_adams", slopes


RATES = torch.tensor([-0.5, 0.3, 1.0], dtype=torch.float64)


def growth(angles: list[float], asked: list[float], adaptive: bool) -> Problem:
    """dz/dφ = c·z with a rate of its own for each of three samples: z = z0·exp(c·(φ − φ0))."""
    levels = tuple(
        Level(0.0, phi, math.cos(phi), math.sin(phi), *[math.nan] * 6) for phi in angles
    )

    def velocity(z: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        asked.append(float(phi))
        return (RATES if rows is None else RATES[rows]).to(z)[:, None] * z

    return Problem(levels, velocity, None, lambda: torch.zeros(3, 2), adaptive)


@pytest.mark.parametrize(
    ("name", "way"), rotated(TOLERANT + GRID, ["float64", "float64 forward", "float32"])
)
def test_path_is_kept_and_each_sample_has_its_row(name: str, way: str) -> None:
    """In both directions, on paths long and short: no angle beyond the ends, every level seen
    once, the exponential reached.
    """
    dtype, forward = getattr(torch, way[:7]), way.endswith("forward")
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if name in TOLERANT else {}
    for low, high in ((0.0, math.pi / 2), (1e-4, 1.3), (0.3, 0.3001)):
        angles = np.linspace(low, high, 4 if tolerance else 65).tolist()
        angles = angles if forward else angles[::-1]
        asked: list[float] = []
        seen: dict[int, Tensor] = {}
        task = growth(angles, asked, bool(tolerance))
        task.observe = lambda i, z, seen=seen: seen.setdefault(i, z.clone())
        start = torch.ones(3, 2, dtype=dtype)
        end, counts = SOLVERS.build(name, **tolerance).run(task, start)
        assert min(asked) >= low
        assert max(asked) <= high
        assert int(torch.as_tensor(counts.nfe).sum()) == len(asked)
        assert end.dtype == dtype
        assert bool((start == 1).all())
        assert sorted(seen) == list(range(1, len(angles)))
        for i, z in (seen | {len(angles) - 1: end}).items():
            exact = (RATES * (angles[i] - angles[0])).exp()[:, None].expand(3, 2)
            # A wrong row or angle is off by far more.
            wide = {1: 0.1, 2: 0.01}.get(SOLVERS.build(name).order, 1e-3)
            torch.testing.assert_close(z.double(), exact, rtol=0, atol=wide)


@pytest.mark.parametrize("name", MOST)
def test_evaluations_are_those_the_network_sees(name: str) -> None:
    seen = []

    class Counting(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(len(x))
            return self.net(x, t)

    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.VPSDE())
    sde.net = Counting(sde.net)
    solution = scoresde.solve(sde, 5, generator=generator(), batch_size=3, **how(name, 10))
    assert int(solution.nfe.sum()) == sum(seen)
    assert bool((solution.accepted > 0).all())
    assert solution.x.dtype == torch.float32
    assert not solution.x.requires_grad


@pytest.mark.parametrize("name", MOST)
def test_mates_do_not_matter_unless_the_solver_says_so(name: str) -> None:
    """One sample with three sets of mates: the same bits, or about the tolerance of 1e-5 where a
    step size is shared.
    """
    sde = eight()
    tolerance = 1e-5 if name in SHARED else 1e-3
    options = (
        how(name)
        if name not in TOLERANT
        else {"solver": name, "rtol": tolerance, "atol": tolerance}
    )
    made = scoresde.sampling.plan.plan(
        sde, name, options.get("steps"), None, {k: v for k, v in options.items() if "tol" in k}
    )
    nodes = scoresde.sampling.problem.levels(sde, made.times)
    z, ends = torch.randn(4, 2, generator=generator(), dtype=torch.float64), []
    draws = torch.randn(50, 4, 2, generator=generator(1), dtype=torch.float64)
    for scale in (1.0, 0.01, 3.0):
        batch, noise = scale * z, scale * draws
        batch[1], noise[:, 1] = z[1], draws[:, 1]
        left = iter(noise)
        task = scoresde.sampling.problem.problem(
            sde, nodes, made.adaptive, lambda left=left: next(left)
        )
        with torch.no_grad():
            ends.append(made.solver.run(task, batch)[0][1])
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=4e-3 if name in SHARED else 0)


@pytest.mark.parametrize("name", MOST)
def test_samples_do_not_depend_on_batch_size_and_global_randomness_is_left_alone(
    name: str,
) -> None:
    sde = eight("rectified")
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.random.get_rng_state()
    before_np = np.random.get_state()[1].copy()  # noqa: NPY002
    whole = scoresde.sample(sde, 3, generator=generator(), **how(name))
    part = scoresde.sample(sde, 3, generator=generator(), batch_size=2, **how(name))
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-2 if name in SHARED else 1e-12)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_np)  # noqa: NPY002


@pytest.mark.parametrize(("name", "process"), rotated(STOCHASTIC, ["vp", "rectified"]))
def test_sde_moments_of_a_gaussian_and_spread_within_modes(name: str, process: str) -> None:
    """50 steps: mean and std within 5 standard errors (false alarm 1e-6 each); spread within 8
    modes to 3% + 5 errors.
    """
    n, mean, std = 4000, 0.7, 1.3
    gaussian = toy.GaussianMixture(torch.full((1, 2), mean, dtype=torch.float64), std)
    x = scoresde.sample(
        scoresde.oracle(gaussian, scoresde.PROCESSES.build(process)),
        n,
        solver=name,
        steps=50,
        generator=generator(),
    )
    assert abs(float(x.mean()) - mean) < 5 * std / math.sqrt(2 * n)
    assert abs(float(x.std()) / std - 1) < 5 / math.sqrt(4 * n)
    sde = scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.PROCESSES.build(process))
    x = scoresde.sample(sde, n, solver=name, steps=50, generator=generator(1))
    around = torch.arange(8) * math.pi / 4
    modes = 4 * torch.stack([around.cos(), around.sin()], 1)
    nearest = torch.cdist(x, modes).argmin(1)
    spread = float((x - modes[nearest]).square().mean().sqrt()) / 0.3
    assert abs(spread - 1) < 0.03 + 5 / math.sqrt(4 * n)
    counts = nearest.bincount(minlength=8)  # multinomial: each within 5 standard errors of n/8
    assert float((counts - n / 8).abs().max()) < 5 * math.sqrt(n / 8 * 7 / 8)


def test_brownian_increments_have_the_covariance_of_time_integrals() -> None:
    """Var W = h, Cov(W, U) = h²/2, Var U = h³/3, within 5 standard errors at n = 200,000 (false
    alarm 2e-6).
    """
    n, h, draw = 200_000, 0.7, generator()
    w, u = _Brownian(lambda: torch.randn(n, 1, generator=draw, dtype=torch.float64))(
        0.3, 0.3 + h, return_U=True
    )
    for got, wanted, size in ((w * w, h, h), (w * u, h**2 / 2, h**2), (u * u, h**3 / 3, h**3)):
        assert abs(float(got.mean()) - wanted) < 5 * 1.5 * size / math.sqrt(n)


@pytest.mark.parametrize(
    ("name", "order"),
    kept(
        [("euler", 1.0), ("euler_heun", 1.0), ("heun", 1.0), ("midpoint", 1.0), ("srk", 1.5)],
        lambda name, order: name == "srk",
    ),
)
def test_strong_order_on_coupled_noise(name: str, order: float) -> None:
    """The reverse SDE of a mixture between two angles, all grids along one Brownian path: W and U
    add up as integrals do.
    """
    means = torch.tensor([[0.0], [1.5]], dtype=torch.float64)
    sde = scoresde.oracle(
        toy.GaussianMixture(means, [0.6, 0.8]), scoresde.RectifiedFlow()
    ).double()
    solver, n, finest, top, bottom = SOLVERS.build(f"torchsde:{name}"), 400, 256, 1.3, 0.4
    if name == "srk":
        finest = 512  # order 1.5 shows later
    h, draw = (top - bottom) / finest, generator()
    w = math.sqrt(h) * torch.randn(finest, n, 1, generator=draw, dtype=torch.float64)
    u = h * (
        w / 2 + math.sqrt(h / 12) * torch.randn(finest, n, 1, generator=draw, dtype=torch.float64)
    )
    z0, ends = torch.randn(n, 1, generator=draw, dtype=torch.float64), []
    while len(w) >= 8:
        angles = np.linspace(top, bottom, len(w) + 1).tolist()
        nodes = tuple(
            Level(0.0, phi, math.cos(phi), math.sin(phi), *[math.nan] * 6)
            for phi in (*angles, 0.0)
        )
        normals = torch.stack([w / math.sqrt(h), (u / h - w / 2) / math.sqrt(h / 12)], 1)
        draws = iter(normals.flatten(0, 1) if name == "srk" else normals[:, 0])
        task, z = Problem(nodes, sde.arc_velocity, None, lambda draws=draws: next(draws)), z0
        with torch.no_grad():
            for i in range(len(w)):
                z = solver.step(task, z, i)
        ends.append(z)
        w, u, h = w[::2] + w[1::2], u[::2] + u[1::2] + h * w[::2], 2 * h
    # Of the coarser of two grids.
    errors = [float((a - b).square().mean().sqrt()) for a, b in itertools.pairwise(ends)]
    slope = math.log2(errors[-1] / errors[0]) / (len(errors) - 1)
    assert abs(slope - order) < 0.2, (slope, errors)


class Broken(nn.Module):
    """NaN from a time on, for samples that start to the right."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.where(((t < 0.5) & (x[:, 0] > 0))[:, None], float("nan"), -0.1 * x)


@pytest.mark.parametrize("name", MOST)
def test_nan_is_an_error_of_ours(name: str) -> None:
    sde = ScoreSDE(scoresde.VPSDE(), Broken(), shape=(2,), input_convention="raw")
    with pytest.raises(
        scoresde.SolverError, match=r"\d+ of 20 samples.*(t = |φ = ).*; "
    ) as caught:
        scoresde.sample(sde, 20, generator=generator(), **how(name))
    assert "not finite" in str(caught.value)
    failed = caught.value.failed
    if name in SHARED and name in TOLERANT:
        assert bool(
            failed.all()
        )  # with one step for all, none gets further than the first to fail
    else:
        assert 0 < int(failed.sum()) < 20
        assert bool(caught.value.x[~failed].isfinite().all())
    if name.startswith("scipy"):  # the others are finished samples
        good = scoresde.sample(
            ScoreSDE(scoresde.VPSDE(), Mild(), shape=(2,), input_convention="raw"),
            20,
            generator=generator(),
            **how(name),
        )
        assert torch.equal(caught.value.x[~failed], good[~failed])


class Mild(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.1 * x


@pytest.mark.parametrize("name", some(TOLERANT, *KINDS, "scipy:RK45"))
def test_a_rough_field_runs_out_of_steps(name: str) -> None:
    class Rough(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.sign(torch.sin(1e4 * x)) * 1e3

    sde = ScoreSDE(scoresde.VPSDE(), Rough(), shape=(2,))
    with pytest.raises(
        scoresde.SolverError, match=r"3 of 3 samples .*(max_steps|step size)"
    ) as caught:
        scoresde.sample(sde, 3, solver=name, max_steps=50, generator=generator())
    assert bool(caught.value.x.isfinite().all())


def test_what_can_not_be_is_said_before_any_work() -> None:
    sde = ScoreSDE(scoresde.VPSDE(), nn.Module(), shape=(2,))  # a network that can't be called

    def asks(
        match: str, solver: str, error: type[Exception] = ValueError, **options: object
    ) -> None:
        with pytest.raises(error, match=match):
            scoresde.sample(sde, 2, solver=solver, **options)

    asks("unknown torchdiffeq solver 'dopri'. Did you mean 'dopri", "torchdiffeq:dopri")
    asks("unknown scipy solver 'lsoda'. .*LSODA", "scipy:lsoda")
    asks("unknown torchsde solver 'srk2'. Did you mean 'srk'", "torchsde:srk2")
    asks("unknown solver 'torchdifeq:euler'", "torchdifeq:euler")
    asks("'dopri5' has no option 'rtoll'. Did you mean 'rtol'", "torchdiffeq:dopri5", rtoll=1e-3)
    asks("'euler' has no option 'rtol'", "torchdiffeq:euler", rtol=1e-3)
    asks("'srk' has no option 'adaptive'", "torchsde:srk", adaptive=True)
    asks("rtol is greater than 0", "scipy:LSODA", rtol=0)
    asks("atol is a number", "torchdiffeq:dopri8", TypeError, atol="small")
    asks("max_steps is at least 1", "scipy:BDF", max_steps=0)
    asks("rtol= has no effect together with steps=", "scipy:BDF", rtol=1e-3, steps=10)
    asks("'dopri8' chooses its own steps", "torchdiffeq:dopri8", steps=10)
    asks("'Radau' chooses its own steps", "scipy:Radau", steps=10)
    asks(
        "'explicit_adams' needs equal steps in φ",
        "torchdiffeq:explicit_adams",
        steps=10,
        spacing="logsnr",
    )
    asks("reversible_heun is not offered", "torchsde:reversible_heun")
    asks("scipy_solver is not offered.*scipy:LSODA", "torchdiffeq:scipy_solver")
    for kind in (TorchDiffEq, AdaptiveTorchDiffEq, SciPy, TorchSDE):
        with pytest.raises(ValueError, match="unknown method 'nothing'"):
            kind("nothing")
    with pytest.raises(ValueError, match="stochastic"):
        scoresde.log_prob(sde, torch.zeros(1, 2), solver="torchsde:srk")
