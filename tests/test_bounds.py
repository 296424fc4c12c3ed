"""Bounds on log p: linear models, whose bounds are integrals; DDPM's recursion by hand; exact
scores, whose ELBO is tight.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import binomtest
from torch import Tensor, nn

import scoresde
from conftest import generator, some
from scoresde import ScoreSDE, toy
from scoresde.processes.spacings import grid

EIGHT = toy.EightGaussians(4.0, 0.3)


class Scaled(nn.Module):
    """A network that says a·z: no exact score of anything, but all its bounds are quadratic in the
    data.
    """

    def __init__(self, a: float = 0.4) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.a * z


def linear(process: scoresde.Process, dim: int = 3, a: float = 0.4) -> ScoreSDE:
    return ScoreSDE(process, Scaled(a), shape=(dim,)).double().eval()


def smoothed(mixture: toy.GaussianMixture, process: scoresde.Process) -> toy.GaussianMixture:
    """The law that a model of the mixture has at its data end."""
    return mixture.perturb(1.0, float(process.sigma(torch.zeros((), dtype=torch.float64))))


def mean_and_error(gap: Tensor) -> tuple[float, float]:
    return float(gap.mean()), float(gap.std()) / math.sqrt(len(gap))


class Cut(scoresde.VPSDE):
    """A process whose phi_floor can be set."""

    def __init__(self, phi_floor: float) -> None:
        super().__init__()
        object.__setattr__(self, "phi_floor", phi_floor)


def exact_elbo(process: scoresde.Process, square: float, dim: int, a: float) -> float:
    """The ELBO of `linear` by quadrature, in the letters of VDM: −½∫ E‖ε − ε̂‖² dλ between the
    ends, decoder and prior.

    With y = x + √(τ² − τ0²)·ε as the forward process from x at level τ0 = tan φ0, p(y_s|y_t) about
    E[y_0|y_t] = y − ρ²·ε̂/τ, and ‖ρ·ε − ρ²ε̂/τ‖² instead of ‖τ·ε − τ·ε̂‖²; dividing by ρ² and
    integrating over log ρ gives both ends' infinities their counterterms: decoder ½D·log(2πρ²) +
    ½E‖e‖² at small ρ.
    """
    start = max(process.phi_min, process.phi_floor)
    radius = float(process.radius(0.0))
    # x̃ of squared norm `square` lies at z0 = x̃/r(0), that is y = z0/cos φ0 on the scale α = 1
    norm2 = square / radius**2 / math.cos(start) ** 2
    tau0, tau1 = math.tan(start), math.tan(process.phi_max)

    def error(log_rho: float) -> float:
        """E‖ε − (ρ/τ)·ε̂‖² with ε̂ = sin φ·z + cos φ·v, v = −a·z, z = cos φ·(y0 + ρ·ε)."""
        rho = math.exp(log_rho)
        tau = math.hypot(rho, tau0)
        phi = math.atan(tau)
        gain = rho / tau * (math.sin(phi) - a * math.cos(phi)) * math.cos(phi)
        return gain**2 * norm2 + dim * (1 - gain * rho) ** 2

    low, high = -16.0, 0.5 * math.log(tau1**2 - tau0**2)
    integral = quad(error, low, high, epsabs=1e-9, limit=500)[0]
    decoder = 0.5 * dim * math.log(2 * math.pi) + dim * low + 0.5 * error(low)
    mean2, var = (
        norm2 / (1 + tau1**2),
        math.exp(2 * high) / (1 + tau1**2),
    )  # of z1 given x; its prior is N(0, I)
    prior = 0.5 * (mean2 + dim * (var - 1 - math.log(var)))
    return -(decoder + integral + prior) - dim * math.log(radius * math.cos(start))


FOUR = [scoresde.VPSDE(), scoresde.VESDE(sigma_min=0.05), scoresde.EDM(), scoresde.SubVPSDE()]


@pytest.mark.parametrize("process", some(FOUR, FOUR[2]), ids=lambda p: type(p).__name__)
def test_elbo_of_a_linear_model_is_its_quadrature(process: scoresde.Process) -> None:
    """Against VDM's formula integrated in log ρ, another route; 4 standard errors: false alarm 1
    in 4,000 runs of all four.
    """
    sde = linear(process)
    x = torch.randn(1, 3, generator=generator(1), dtype=torch.float64).expand(20_000, 3)
    exact = exact_elbo(process, float(x[0].square().sum()), 3, 0.4)
    found = scoresde.elbo(sde, x, draws=64, generator=generator(2))
    mean, error = mean_and_error(found.log_prob - exact)
    assert error < 0.01
    assert abs(mean) < 4 * error
    assert torch.equal(found.nfe, torch.full((20_000,), 128))


def test_elbo_counts_the_scale_of_the_data_and_takes_images() -> None:
    """x = m + s·x̃ has log p less by D·log s; the same noise, so equal to rounding."""
    plain, scaled = (
        linear(scoresde.VPSDE(), 8),
        ScoreSDE(scoresde.VPSDE(), Scaled(), shape=(2, 2, 2)).double(),
    )
    scaled.mean.fill_(3.0)
    scaled.scale.copy_(torch.tensor([2.0, 5.0]).reshape(2, 1, 1))
    z = torch.randn(5, 8, generator=generator(), dtype=torch.float64)
    small = scoresde.elbo(plain, z, draws=8, generator=generator(1))
    large = scoresde.elbo(scaled, scaled.to_data(z), draws=8, generator=generator(1))
    torch.testing.assert_close(large.log_prob, small.log_prob - 4 * math.log(10.0))
    torch.testing.assert_close(large.stderr, small.stderr)


@pytest.mark.parametrize(
    "name",
    some(["vp", "ve", "edm", "rectified", "cosine", "test_polynomial"], "vp", "ve", "rectified"),
)
def test_elbo_of_an_exact_score_is_log_p(name: str) -> None:
    """The reverse SDE of the exact score is the forward one backwards: tight at every x, but for
    the prior, E log(N/p_1)(z_1), here < 0.01. 4 standard errors over 1,000 points: false alarm 1
    in 2,500 runs of all six.
    """
    process = scoresde.PROCESSES.build(name)
    sde, x = (
        scoresde.oracle(EIGHT, process).double(),
        EIGHT.sample(1000, generator=generator(3)).double(),
    )
    found = scoresde.elbo(sde, x, generator=generator(4), draws=64)
    mean, error = mean_and_error(found.log_prob - smoothed(EIGHT, process).log_prob(x))
    assert error < 0.04
    assert abs(mean) < 4 * error + 0.01


def test_its_standard_error_is_the_spread_and_falls_as_one_over_root_draws() -> None:
    """Against the spread about the exact value, in 64-D. ±2 holds 95%: fewer than 0.92 or more
    than 0.975 of 1,000 in 1 run of 10⁴ by chance.
    """
    mixture = toy.GaussianMixture(
        torch.randn(5, 64, generator=generator(5), dtype=torch.float64), 0.1
    )
    sde = scoresde.oracle(mixture, scoresde.VPSDE()).double()
    x = mixture.sample(1000, generator=generator(6)).double()
    spreads = []
    for draws in (64, 128):
        found = scoresde.elbo(sde, x, draws=draws, generator=generator(7))
        gap = found.log_prob - mixture.log_prob(x)
        spreads.append(float(gap.square().mean().sqrt()))
        assert abs(float(found.stderr.square().mean().sqrt()) / spreads[-1] - 1) < 0.1
        assert 0.92 < float((gap.abs() <= 2 * found.stderr).double().mean()) < 0.975
    assert 1.27 < spreads[0] / spreads[1] < 1.84


def test_narrow_densities_are_covered_nearly_as_often_and_the_docstring_says_how_often() -> None:
    """s = 1e-3 and 2e-4 of the data's scale, in 1-D: 87% and 70% of 1,000, to 4 binomial standard
    errors (1 in 8,000 runs).
    """
    for std, share in ((1e-3, 0.87), (2e-4, 0.70)):
        gaussian = toy.GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), std)
        sde, x = (
            scoresde.oracle(gaussian, scoresde.VPSDE()).double(),
            gaussian.sample(1000, generator=generator(27)).double(),
        )
        found = scoresde.elbo(sde, x, generator=generator(28))
        held = float(
            ((found.log_prob - gaussian.log_prob(x)).abs() <= 2 * found.stderr).double().mean()
        )
        assert abs(held - share) < 4 * math.sqrt(share * (1 - share) / 1000)


def test_no_gradients() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    for bound in (scoresde.elbo, scoresde.vlb):
        assert not bound(linear(scoresde.VPSDE()), x, draws=4).log_prob.requires_grad


def test_skewed_noise_in_two_dimensions_is_covered_nine_times_in_ten() -> None:
    """What the docstring admits: ±2 holds about 90% of estimates in 2-D at the default. Under 850
    of 1,000 at 90%: 1 in 10⁶.
    """
    sde, x = (
        scoresde.oracle(EIGHT, scoresde.VPSDE()).double(),
        EIGHT.sample(1000, generator=generator(8)).double(),
    )
    found = scoresde.elbo(sde, x, generator=generator(9))
    held = int(((found.log_prob - EIGHT.log_prob(x)).abs() <= 2 * found.stderr).sum())
    assert 850 < held < 980
    assert binomtest(held, 1000, 0.9).pvalue > 1e-6


@pytest.mark.parametrize("steps", [50, 100])
def test_the_standard_error_of_few_steps_is_right_in_the_mean_square(steps: int) -> None:
    """As the docstring has it: to a fifth of the spread of 60 estimates a point, covering 80 to
    95%, as it is skewed.
    """
    sde, x = (
        scoresde.oracle(EIGHT, scoresde.VPSDE()).double(),
        EIGHT.sample(20, generator=generator(30)).double(),
    )
    found = scoresde.vlb(sde, x.repeat(60, 1), steps=steps, generator=generator(31))
    value, error = (column.reshape(60, 20) for column in (found.log_prob, found.stderr))
    ratio = error.square().mean().sqrt() / (value - value.mean(0)).square().mean().sqrt()
    assert 0.8 < float(ratio) < 1.2
    held = float(((value - value.mean(0)).abs() <= 2 * error).double().mean())
    assert 0.8 < held < 0.95


def test_the_coverage_of_vlb_lies_where_the_docstring_says() -> None:
    """1,200 estimates about their means, in 1-D, 2-D and 8-D: within the range and two errors.
    Means of 20 points are covered 95% of times: here 60 of them, 88% at least (one false alarm in
    a hundred).
    """
    text = " ".join((scoresde.Bound.__doc__ or "").split())
    ranges = re.search(
        r"Those of `vlb` cover (\d+)–(\d+)% at 50 to 100 .*?(\d+)–(\d+)% at 400", text
    )
    assert ranges is not None
    few, many = ([int(end) / 100 for end in ranges.groups()[i : i + 2]] for i in (0, 2))
    line = torch.randn(4, 1, generator=generator(1), dtype=torch.float64) * 1.5
    space = torch.randn(5, 8, generator=generator(8), dtype=torch.float64)
    for law in (EIGHT, toy.GaussianMixture(line, 0.2), toy.GaussianMixture(space, 0.3)):
        sde = scoresde.oracle(law, scoresde.VPSDE()).double()
        x = law.sample(20, generator=generator(30)).double().repeat(60, 1)
        for steps, (low, high) in ((50, few), (400, many))[: 1 + (law is EIGHT)]:
            found = scoresde.vlb(sde, x, steps=steps, generator=generator(31))
            value, error = (part.reshape(60, 20) for part in (found.log_prob, found.stderr))
            held = float(((value - value.mean(0)).abs() <= 2 * error).double().mean())
            assert low - 0.02 < held < high + 0.02, (steps, held)
            off = (value - value.mean(0)).mean(1).abs()
            of_mean = error.square().sum(1).sqrt() / 20
            assert float((off <= 2 * of_mean).double().mean()) >= 0.88


def test_the_bound_does_not_move_with_the_start() -> None:
    """A phi_floor of 1e-4, 1e-5 or 1e-3 smooths the density by O(phi_floor²); the random numbers
    are the same for all three.
    """
    x = EIGHT.sample(200, generator=generator(10)).double()
    bounds = [
        scoresde.elbo(
            scoresde.oracle(EIGHT, Cut(phi_floor)).double(), x, draws=64, generator=generator(11)
        ).log_prob
        for phi_floor in (1e-5, 1e-4, 1e-3)
    ]
    assert float((bounds[1] - bounds[0]).abs().max()) < 0.01
    assert float((bounds[2] - bounds[0]).abs().max()) < 0.1
    assert abs(float((bounds[1] - bounds[0]).mean())) < 1e-4
    assert abs(float((bounds[2] - bounds[0]).mean())) < 1e-2


def test_a_wrong_model_stays_below_the_truth() -> None:
    """E_data elbo ≤ E_data log p_data = −entropy for every model; here by far, as the score is of
    other centers.
    """
    sde = scoresde.oracle(toy.EightGaussians(3.0, 0.4), scoresde.VPSDE()).double()
    x = EIGHT.sample(500, generator=generator(12)).double()
    assert (
        float(scoresde.elbo(sde, x, generator=generator(13)).log_prob.mean())
        < float(EIGHT.log_prob(x).mean()) - 0.3
    )


def test_mates_do_not_matter() -> None:
    """Sample i has its own numbers, whatever batch it is computed in."""
    sde = linear(scoresde.RectifiedFlow(), 5)
    x = torch.randn(150, 5, generator=generator(), dtype=torch.float64)
    for bound in (
        scoresde.elbo,
        lambda *a, **k: scoresde.vlb(*a, steps=20, **k),
        lambda *a, **k: scoresde.vlb(*a, draws=8, **k),
    ):
        whole = bound(sde, x, generator=generator(1))
        parts = bound(sde, x, generator=generator(1), batch_size=40)
        torch.testing.assert_close(parts.log_prob, whole.log_prob)
        torch.testing.assert_close(parts.stderr, whole.stderr)
        torch.testing.assert_close(
            bound(sde, x[:70], generator=generator(1)).log_prob, whole.log_prob[:70]
        )


def by_hand(alpha_bar: Tensor, square: float, dim: int, a: float, variance: str) -> float:
    """DDPM's bound in Ho et al.'s letters (eq. 5–8): β_t, ᾱ_t and β̃_t, and ε̂ of a linear model
    in closed form.
    """
    alpha = alpha_bar[1:] / alpha_bar[:-1]
    beta = 1 - alpha
    total = 0.5 * float(
        square * alpha_bar[-1] - dim * alpha_bar[-1] - dim * torch.log1p(-alpha_bar[-1])
    )  # L_T
    for t in range(len(beta)):
        bar, keep = float(alpha_bar[t + 1]), float(alpha[t])
        slope = math.sqrt(1 - bar) - a * math.sqrt(bar)  # ε̂ = slope·x_t
        wrong = dim * (1 - slope * math.sqrt(1 - bar)) ** 2 + slope**2 * bar * square  # E‖ε − ε̂‖²
        shift = float(beta[t]) ** 2 / (keep * (1 - bar)) * wrong  # ‖μ̃ − μ_θ‖², eq. 12
        own = float(beta[t])
        if (
            t == 0
        ):  # the decoder's mean is x̂0, its variance that of x0 given x_1 for standard normal data
            total += 0.5 * (dim * math.log(2 * math.pi * own) + shift / own)
            continue
        tilde = (1 - float(alpha_bar[t])) / (1 - bar) * own
        own = tilde if variance == "posterior" else own
        total += 0.5 * (dim * (tilde / own - 1 - math.log(tilde / own)) + shift / own)
    return -total


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_vlb_is_the_bound_of_ddpm_written_by_hand(variance: str) -> None:
    """Every step, and steps drawn at random; 4 standard errors each: false alarm 1 in 4,000 runs
    of all four.
    """
    process = Cut(1e-9)
    sde = linear(process)
    x = torch.randn(1, 3, generator=generator(14), dtype=torch.float64).expand(1000, 3)
    for steps in (20, 200):
        times = process.ddpm_times(1000)[:: 1000 // steps]
        alpha_bar = process.alpha(times) ** 2
        exact = by_hand(alpha_bar, float(x[0].square().sum()), 3, 0.4, variance)
        for draws in (None, 20):
            how = {"steps": steps, "variance": variance, "spacing": "ddpm"}
            found = scoresde.vlb(sde, x, draws=draws, generator=generator(15), **how)
            mean, error = mean_and_error(found.log_prob - exact)
            assert error < 0.2
            assert abs(mean) < 4 * error
            assert bool((found.nfe == 2 * (draws or steps)).all())


@pytest.mark.parametrize("how", some([{"variance": "beta", "spacing": "arc"}, {}], {}), ids=repr)
def test_vlb_nears_log_p_from_below_as_one_over_steps(how: dict[str, str]) -> None:
    """With the exact score, by default too: the gap halves, to a quarter or so, when steps double.
    Ratios are good to 10%.
    """
    sde, x = (
        scoresde.oracle(EIGHT, scoresde.VPSDE()).double(),
        EIGHT.sample(1500, generator=generator(16)).double(),
    )
    gaps = []
    for steps in (40, 80, 160):
        found = scoresde.vlb(sde, x, steps=steps, generator=generator(17), **how)
        gaps.append(mean_and_error(EIGHT.log_prob(x) - found.log_prob))
    assert all(gap > 3 * error for gap, error in gaps)
    orders = [math.log2(a / b) for (a, _), (b, _) in pairwise(gaps)]
    assert 0.7 < sum(orders) / 2 < 1.3


def test_levels_near_the_data_end_are_the_decoders() -> None:
    """VE, σ_min = 0.01: of 200 steps those from below 1.5·φ0 are not taken. nfe says so, and the
    bound is one all the same.
    """
    process = scoresde.VESDE()
    sde, x = (
        scoresde.oracle(EIGHT, process).double(),
        EIGHT.sample(300, generator=generator(25)).double(),
    )
    found = scoresde.vlb(sde, x, steps=200, generator=generator(26))
    ratio = process.phi(grid(process, 200, "logsnr"))[:-1] / process.phi_min
    taken = int((ratio > 1.5).sum())
    assert 180 < taken < 199
    assert torch.equal(found.nfe, torch.full((300,), 2 * taken))
    gap, error = mean_and_error(smoothed(EIGHT, process).log_prob(x) - found.log_prob)
    assert 3 * error < gap < 2


def test_posterior_variance_stays_below_where_sigma_doubles_from_step_to_step() -> None:
    """What the docstring says of σ = 0: Σ ½(1/h − 1 + log h) nats a dimension over the ratios h of
    the arc's grid, however fine.

    With h_i = (i/(i+1))² that is 1.42 in the limit; the gap at 320 steps of a 2-D density, 2.75,
    against 2·1.42 = 2.84 − O(1/T).
    """
    ratios = [(i / (i + 1)) ** 2 for i in range(1, 320)]
    limit = sum(0.5 * (1 / h - 1 + math.log(h)) for h in ratios)
    sde, x = (
        scoresde.oracle(EIGHT, scoresde.VPSDE()).double(),
        EIGHT.sample(400, generator=generator(18)).double(),
    )
    found = scoresde.vlb(
        sde, x, steps=320, variance="posterior", spacing="arc", generator=generator(19)
    )
    gap, error = mean_and_error(EIGHT.log_prob(x) - found.log_prob)
    assert error < 0.02
    assert abs(gap - 2 * limit) < 0.15


@pytest.mark.parametrize("weight", ["edm", "likelihood"])
def test_training_noise_for_likelihood_minimizes_minus_elbo(weight: str) -> None:
    """Loss × D·log(sin φ1/sin φ0), with weight 1 and importance-sampled levels, is −elbo but for a
    constant: the difference of two models is that of their ELBOs. With weight `likelihood` (2
    dφ/dt·cot φ) and uniform t the factor is D/2, at more noise. 4 standard errors of the
    difference: false alarm 1 in 8,000 runs of both.
    """
    process, low = scoresde.VPSDE(), 1e-4
    x = torch.randn(20_000, 3, generator=generator(20), dtype=torch.float64)
    noise = "likelihood" if weight == "edm" else "uniform"
    factor = 3 * math.log(math.sin(process.phi_max) / math.sin(low)) if weight == "edm" else 1.5
    losses, bounds = [], []
    for a in (0.1, 0.4):
        sde = linear(process, a=a)
        shared = [
            scoresde.loss(sde, x, weight=weight, noise=noise, generator=generator(21 + i)).detach()
            for i in range(20)
        ]
        losses.append(torch.stack(shared) * factor)
        square = float(x.square().sum(1).mean())
        bounds.append(exact_elbo(process, square, 3, a))
    mean, error = mean_and_error(losses[1] - losses[0])
    assert error < 0.05 if weight == "edm" else error < 0.5
    assert abs(mean - (bounds[0] - bounds[1])) < 4 * error + 1e-3


@pytest.mark.slow
def test_a_model_trained_for_likelihood_has_a_better_bound() -> None:
    """Above the best Gaussian after 300 steps, and better after 300 more: the objective is the
    bound.
    """
    sde = scoresde.build("vp", "mlp", shape=(2,), width=64, depth=2)
    x = EIGHT.sample(500, generator=generator(22))
    torch.manual_seed(0)
    means = []
    for _ in range(2):
        scoresde.fit(
            sde,
            EIGHT,
            steps=300,
            weight="edm",
            noise="likelihood",
            progress=False,
            generator=generator(23),
        )
        means.append(float(scoresde.elbo(sde, x, generator=generator(24)).log_prob.mean()))
    gaussian = -math.log(
        2 * math.pi * math.e * float(EIGHT.std()[0]) ** 2
    )  # what a network that says 0 has
    assert gaussian + 0.2 < means[0] < means[1]


def test_bad_calls_end_at_once() -> None:
    sde, x = linear(scoresde.VPSDE()), torch.zeros(2, 3, dtype=torch.float64)
    coupled = ScoreSDE(scoresde.RectifiedFlow(), Scaled(), shape=(3,), outcome="velocity")
    for call, error, text in [
        (lambda: scoresde.elbo(coupled, x), ValueError, "no score"),
        (lambda: scoresde.vlb(coupled, x), ValueError, "no score"),
        (lambda: scoresde.elbo(sde, x, draws=3), ValueError, "draws is at least 4"),
        (lambda: scoresde.vlb(sde, x, draws=2.5), TypeError, "draws is an integer"),
        (
            lambda: scoresde.vlb(sde, x, variance="learned"),
            ValueError,
            "has not learnt the variance.*variance='learned'",
        ),
        (lambda: scoresde.vlb(sde, x, spacing="cosine"), ValueError, "unknown spacing"),
        (
            lambda: scoresde.vlb(sde, x, steps=3, spacing="time"),
            ValueError,
            "too few for a standard error",
        ),
        (lambda: scoresde.elbo(sde, torch.zeros(2, 4)), ValueError, "wanted .batch, 3."),
        (lambda: scoresde.elbo(sde, x, generator=0), TypeError, "torch.Generator"),
        (lambda: scoresde.elbo(scoresde.VPSDE(), x), TypeError, "needs a ScoreSDE"),
        (
            lambda: scoresde.elbo(linear(scoresde.VPSDE(), a=math.inf), x),
            scoresde.SolverError,
            "2 of 2 samples is not finite",
        ),
    ]:
        with pytest.raises(error, match=text):
            call()
