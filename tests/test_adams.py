"""`adams` on a fixed grid: its weights against quadrature, its order, and modes of any thinness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.interpolate
import torch
from torch import Tensor

import scoresde
from conftest import PROCESSES, generator, kept, some
from scoresde import toy
from scoresde.processes.spacings import grid
from scoresde.sampling.problem import levels, problem
from scoresde.solvers.multistep import march
from scoresde.solvers.multistep_rows import Row, coefficients


def standardized(means: Tensor, stds: float) -> toy.GaussianMixture:
    """A mixture of equal modes, of mean 0, in the units that `fit` gives to a model: variance 1."""
    scale = (means.square().mean() + stds**2).sqrt()
    return toy.GaussianMixture(means / scale, float(stds / scale))


ANGLES = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
RING = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
FAR = torch.randn(10, 64, generator=generator(64), dtype=torch.float64)
FAR = FAR - FAR.mean(0)


@pytest.mark.parametrize("process", ["vp", "rectified", "ve"])
def test_weights_equal_quadrature_of_each_lagrange_polynomial(process: str) -> None:
    """∫ ℓ_j(s²)/sin²s ds by scipy's adaptive rule, and ℓ_j(0) where the step ends at φ = 0, to
    1e-10. The first four values are integrated from the start on.
    """
    sde = scoresde.build(process, "mlp", shape=(2,))
    nodes = levels(sde, grid(sde.process, 9, "graded"))
    phi = np.array([level.phi for level in nodes])

    def integrals(known: np.ndarray, a: float, b: float) -> np.ndarray:
        """∫_b^a ℓ_j(s²)/sin²s ds of all j; ℓ_j(0) if b = 0."""
        found = []
        for j in range(len(known)):
            others = np.delete(known, j) ** 2

            def basis(s: float, own: float = known[j], others: np.ndarray = others) -> float:
                return float(np.prod((s**2 - others) / (own**2 - others)))

            if b == 0:
                found.append(basis(0.0))
                continue
            area, _ = scipy.integrate.quad(
                lambda s, f=basis: f(s) / math.sin(s) ** 2, b, a, epsabs=1e-13, epsrel=1e-12
            )
            found.append(area)
        return np.array(found)

    total = np.zeros(1)
    for i, step in enumerate(coefficients(Row("x0φ²", 5, corrector=True), nodes)):
        a, b = phi[i], phi[i + 1]
        scale = math.sin(b) if b else 1.0
        behind = phi[[i - j for j in range(min(4, i + 1))]]
        assert np.abs(step.predict - scale * integrals(behind, a, b)).max() < 1e-10
        if step.correct and i < 3:
            before = np.append(0.0, total)
            total = integrals(phi[i + 1 :: -1], phi[0], b)
            assert np.abs(step.correct - scale * (total - before)).max() < 1e-10
        elif step.correct:
            wanted = integrals(np.append(b, behind), a, b)
            assert np.abs(step.correct - scale * wanted).max() < 1e-10
        keep = math.sin(b) / math.sin(a)
        assert step.keep == pytest.approx(keep, abs=1e-15)


def test_the_lebesgue_number_of_every_extrapolation_is_limited() -> None:
    """Σ|ℓ_j| at the next node, by SciPy's barycentric polynomials: as many nodes as the limit
    allows, and never one more.
    """
    process = scoresde.VPSDE()
    sde = scoresde.build(process, "mlp", shape=(2,))
    nodes = levels(sde, grid(process, 24, "graded"))
    q = np.array([level.phi for level in nodes]) ** 2

    def lebesgue(i: int, m: int) -> float:
        behind = q[i - np.arange(m)]
        basis = scipy.interpolate.BarycentricInterpolator(behind, np.eye(m))
        return float(np.abs(basis(q[i + 1])).sum())

    sizes = []
    for i, step in enumerate(coefficients(Row("x0φ²", 10, corrector=True, limit=32.0), nodes)):
        m = len(step.predict)
        sizes.append(m)
        assert m == 1 or lebesgue(i, m) <= 32.0
        assert m in (i + 1, 9) or lebesgue(i, m + 1) > 32.0
    assert sizes[:3] == [1, 2, 3]
    assert sizes[-1] == 9
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    "inner",
    [[1 - 1e-9], [0.5 + 2**-53, 0.5, 0.5 - 2**-54], [0.5, 1e-100], [0.5, 1e-300, 5e-324]],
    ids=["near noise", "one rounding apart", "near the data", "denormal"],
)
def test_times_close_together_or_close_to_an_end_do_no_harm(inner: list[float]) -> None:
    """Against a solve at 1e-8, but for the 10 of 200 samples that err most: of 20 steps the error
    is 8e-4, and where two times are next to one another 4e-3, as the order begins anew. Weights
    stay below the limit.
    """
    sde = scoresde.oracle(toy.EightGaussians(), scoresde.RectifiedFlow()).double()
    exact = scoresde.sample(sde, 200, rtol=1e-8, atol=1e-8, seed=1)
    found = scoresde.solve(sde, 200, solver="adams", steps=20, times=[1, *inner, 0], seed=1)
    error = (found.x[-1] - exact).square().sum(1).sort().values[:190].mean().sqrt()
    assert error < (6e-3 if len(inner) == 3 else 1e-3)
    times = torch.cat([grid(sde.process, 20, "graded"), torch.tensor(inner, dtype=torch.float64)])
    nodes = levels(sde, times.sort(descending=True).values)
    for step in coefficients(Row("x0φ²", 10, corrector=True, limit=32.0), nodes):
        assert np.abs(step.predict).sum() < 32
        assert not step.correct or np.abs(step.correct).sum() < 32


@pytest.mark.parametrize(("solver", "most"), [("adams", 2e-3), ("unipc", 0.1)])
def test_data_go_to_noise_over_times_at_one_level(solver: str, most: float) -> None:
    """σ is the same number at the first three times, and steps between them are empty."""
    mixture = toy.EightGaussians()
    sde = scoresde.oracle(mixture, scoresde.VESDE()).double()
    x = mixture.sample(64, generator=generator(3)).double()
    exact = scoresde.encode(sde, x, rtol=1e-8, atol=1e-8)
    with np.errstate(all="raise"):
        found = scoresde.solve(sde, start=x, solver=solver, steps=20, times=[0, 5e-324, 1e-300, 1])
    assert (found.x[-1] - exact).square().mean().sqrt() < most * exact.std()


@pytest.mark.parametrize("order", some(range(2, 8), 3, 5, 7))
def test_order_towards_the_data(order: int) -> None:
    """Slope of the end point's RMS error from 48 to 96 steps; orders 6 and 7 come to it from below
    (5.7, 6.4).
    """
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    # x̂0 rests where the steps begin with a low order.
    process = scoresde.EDM(sigma_min=0.1, sigma_max=1000.0)
    sde = scoresde.oracle(toy.GaussianMixture(means, [0.5] * 4), process).double()
    z = torch.randn(32, 2, generator=generator(5), dtype=torch.float64)

    def end(order: int, steps: int) -> Tensor:
        nodes = levels(sde, grid(sde.process, steps, "graded"))
        return march(Row("x0φ²", order, corrector=True), problem(sde, nodes, False, lambda: z), z)[
            0
        ]

    exact = end(8, 500)
    errors = [float((end(order, steps) - exact).square().mean().sqrt()) for steps in (48, 96)]
    slope = math.log2(errors[0] / errors[1])
    assert order - 0.6 < slope < order + 0.2, (slope, errors)


@pytest.mark.parametrize(
    ("name", "dtype"),
    kept(
        ((name, dtype) for dtype in (torch.float32, torch.float64) for name in PROCESSES),
        lambda name, dtype: name in (("ve", "rectified") if dtype == torch.float32 else ("vp",)),
    ),
)
def test_one_mode_of_any_thinness_stays_thin(name: str, dtype: torch.dtype) -> None:
    """The std of samples is at most the mode's own (convolved with σ(0)), for 1 to 500 steps and
    stds of 1e-5 to 0.1.

    Steps too coarse to see a mode's width make it thinner. Velocities interpolated in φ made one
    of 1e-4 8e-2 wide.
    """
    steps_of = {1e-5: (5, 50), 1e-4: (1, 2, 5, 13, 50, 200, 500), 1e-2: (5, 50), 1e-1: (5, 50)}
    for std, steps in ((std, steps) for std, counts in steps_of.items() for steps in counts):
        mixture = toy.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), std)
        sde = scoresde.oracle(mixture, scoresde.PROCESSES.build(name)).to(dtype)
        x = scoresde.sample(sde, 200, solver="adams", steps=steps, generator=generator())
        floor = float(sde.process.sigma(torch.tensor(0.0, dtype=torch.float64)))
        assert float(x.double().std()) <= 1.15 * math.hypot(std, floor), (std, steps)


@pytest.mark.parametrize("steps", some([50, 100], 50))
@pytest.mark.parametrize("means", [RING, FAR], ids=["2-D", "64-D"])
def test_modes_of_two_hundredths_keep_their_width(means: Tensor, steps: int) -> None:
    """Spread within modes of 2% of the data's std, beside that of the samples solved to 1e-8 from
    the same noise: 0.5%.
    """
    sde = scoresde.oracle(standardized(means, 0.02), scoresde.VPSDE()).double()

    def spread(**how: float) -> float:
        x = scoresde.sample(sde, 300, solver="adams", generator=generator(), **how)
        modes = means / (means.square().mean() + 0.02**2).sqrt()
        return float((x - modes[torch.cdist(x, modes).argmin(1)]).square().mean().sqrt())

    assert spread(steps=steps) == pytest.approx(spread(rtol=1e-8, atol=1e-8), rel=5e-3)


@pytest.mark.parametrize(("unit", "most"), [(1.0, 4.1e-6), (math.sqrt(8), 3.6e-5)])
def test_twenty_five_narrow_modes_reach_a_high_order(unit: float, most: float) -> None:
    """25 Gaussians of std 0.05 at distance 2, raw and standardized: at 100 steps no worse than
    order 6 in the velocity.

    With the orders of before, velocities left 8.6e-6 and 3.7e-3.
    """
    side = torch.arange(-4, 5, 2, dtype=torch.float64)
    mixture = toy.GaussianMixture(torch.cartesian_prod(side, side) / unit, 0.05 / unit)
    sde = scoresde.oracle(mixture, scoresde.VPSDE()).double()
    ends = [
        scoresde.sample(sde, 300, solver="adams", generator=generator(), **how)
        for how in ({"steps": 100}, {"rtol": 1e-9, "atol": 1e-9})
    ]
    assert float((ends[0] - ends[1]).square().mean().sqrt()) < most


@pytest.mark.parametrize("name", ["vp", "rectified"])
def test_the_log_density_that_goes_along_is_right(name: str) -> None:
    """`sample_and_log_prob` on a fixed grid carries log p by the same weights: its closed form at
    the samples, to 1e-4 nats.
    """
    mixture = standardized(RING, 0.3)
    sde = scoresde.oracle(mixture, scoresde.PROCESSES.build(name)).double()
    x, logp = scoresde.sample_and_log_prob(
        sde, 50, solver="adams", steps=80, generator=generator()
    )
    exact = scoresde.log_prob(sde, x, rtol=1e-9, atol=1e-9)
    assert float((logp - exact).abs().max()) < 1e-4
