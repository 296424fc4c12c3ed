"""Vectors whitened by their full covariance, and Fourier features along their columns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import scoresde
from scoresde.backbones.base import noise_fade
from scoresde.common.thinning import Thinned
from scoresde.model.column_features import octaves_of
from scoresde.model.covariance import Covariance
from scoresde.storage import records

D = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(d: int, condition: float, seed: int = 0) -> MultivariateNormal:
    """Of a random orientation, with variances from 1 to 1/condition and units of all sizes."""
    g = generator(seed)
    axes, _ = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))
    variance = torch.logspace(0, -math.log10(condition), d, dtype=torch.float64)
    unit = torch.logspace(-2, 2, d, dtype=torch.float64)
    covariance = (axes * variance) @ axes.T * unit * unit.unsqueeze(1)
    return MultivariateNormal(3 * unit, covariance)


def drawn(law: MultivariateNormal, n: int, seed: int = 0) -> Tensor:
    noise = torch.randn(n, len(law.loc), generator=generator(seed), dtype=torch.float64)
    return law.loc + noise @ law.scale_tril.T


def model(x: Tensor, process: str = "vp", **options: Any) -> scoresde.ScoreSDE:
    """A network of zeros that knows the covariance of x."""
    return scoresde.build(process, "mlp", shape=(x.shape[1],), **options).standardize(x).eval()


def likeliest(x: Tensor) -> MultivariateNormal:
    """The Gaussian of the highest likelihood."""
    x = x.double()
    return MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))


# ------------------------------------------------------------------ the map


@pytest.mark.parametrize("process", ["vp", "rectified", "ve"])
def test_a_network_of_zeros_is_the_gaussian_of_the_data(process: str) -> None:
    x = drawn(gaussian(D, 1e4), 4000)
    sde = model(x, process).double()
    wanted = likeliest(x)
    found = scoresde.log_prob(sde, x[:50], rtol=1e-9, atol=1e-9)
    prior = 1e-3 if process == "ve" else 1e-5  # at σ(1) = 50 something is left of the data
    torch.testing.assert_close(found, wanted.log_prob(x[:50]), rtol=0, atol=prior)
    score = sde.score(x[:50], 0.0)
    gap = x[:50] - wanted.loc
    exact = -torch.linalg.solve(wanted.covariance_matrix, gap.T).T
    if process != "ve":  # the score of rectified is that at σ = 1e-4, where α² = 1 − 2e-4
        torch.testing.assert_close(score, exact, rtol=2.5e-4, atol=1e-6 * float(exact.abs().max()))


def test_states_are_white_and_come_back() -> None:
    x = drawn(gaussian(D, 1e6), 3000)
    sde = model(x)
    z = sde.from_data(x)
    torch.testing.assert_close(torch.cov(z.T, correction=0), torch.eye(D).double())
    torch.testing.assert_close(sde.to_data(z), x, rtol=1e-9, atol=1e-9)
    volume = torch.linalg.slogdet(likeliest(x).covariance_matrix).logabsdet / 2
    assert sde.log_scale == pytest.approx(float(volume), abs=1e-9)


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_score_velocity_and_drift_follow_the_data_s_units(t: float) -> None:
    """They are gradients and rates in data space: of a Gaussian all are known."""
    x = drawn(gaussian(3, 100), 2000)
    sde = model(x).double()
    law = likeliest(x)
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = sde.process.alpha(time), sde.process.sigma(time)
    spread = (alpha**2 + sigma**2) * law.covariance_matrix
    states = law.loc + 2 * (x[:20] - law.loc)
    exact = -torch.linalg.solve(spread, (states - law.loc).T).T
    torch.testing.assert_close(sde.score(states, t), exact, rtol=1e-6, atol=1e-6)
    rate = (alpha * sde.process.dalpha(time) + sigma * sde.process.dsigma(time)) / (
        alpha**2 + sigma**2
    )
    torch.testing.assert_close(
        sde.velocity(states, t), rate * (states - law.loc), rtol=1e-6, atol=1e-6
    )
    x0, _ = sde.denoise(states, t)
    shrunk = law.loc + alpha / (alpha**2 + sigma**2) * (states - law.loc)
    torch.testing.assert_close(x0, shrunk, rtol=1e-6, atol=1e-6)


def test_samples_have_the_covariance_of_the_data() -> None:
    """Whitened by the true covariance, 4,000 samples: 5 standard errors of each entry."""
    law = gaussian(D, 1e4)
    sde = model(drawn(law, 20_000)).double()
    found = scoresde.sample(sde, 4000, steps=10, generator=generator())
    white = torch.linalg.solve(law.scale_tril, (found - law.loc).T).T
    error = torch.cov(white.T) - torch.eye(D)
    assert float(error.abs().max()) < 5 * math.sqrt(2 / 4000) + 5 * math.sqrt(2 / 20_000)


@pytest.mark.filterwarnings("ignore:the network has learnt nothing")
@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_fit_learns_a_gaussian_of_any_condition(condition: float) -> None:
    """32-D, 10,000 rows, 20 steps: 560/20,000 = .028 nats, as near as the covariance of the rows.

    With a scale for each column alone 20 steps left 12 and 69 nats, and whole runs .84 and 30.
    """
    law = gaussian(32, condition)
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(32,), width=32)
    how: dict[str, Any] = {"batch_size": 128, "progress": False, "generator": generator()}
    scoresde.fit(sde, drawn(law, 10_000, 1), steps=20, **how)
    x = drawn(law, 300, 2)
    lost = law.log_prob(x) - scoresde.log_prob(sde.double(), x, steps=10)
    assert float(lost.mean()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "most"), [("lognormal", 1.8), ("likelihood", 0.9)])
def test_a_mode_of_a_ten_thousandth_is_learnt_in_part(noise: str, most: float) -> None:
    """Half of the mass in a mode of std 1e-4: 500 steps lose 1.3 and .65 ± .1 nats.

    Without Fourier features along the columns and octaves as fine as the data they lost 2.9 and
    1.15. What is left is the noise levels, which are seldom drawn.
    """
    law = scoresde.toy.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), [1e-4, 0.5])
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=64)
    how: dict[str, Any] = {"steps": 500, "batch_size": 256, "generator": generator()}
    scoresde.fit(sde, law, objective=scoresde.Denoising(noise=noise), progress=False, **how)
    x = law.sample(200, generator=generator(2), dtype=torch.float64)
    lost = law.log_prob(x) - scoresde.log_prob(sde.double(), x, rtol=1e-4, atol=1e-4)
    assert float(lost.mean()) < most


def test_constants_and_their_neighbours() -> None:
    law = gaussian(3, 10)
    x = drawn(law, 500)
    x = torch.cat([x[:, :1], torch.full((500, 1), 7.0), x[:, 1:]], 1)
    with pytest.warns(UserWarning, match="constant"):
        sde = model(x)
    samples = scoresde.sample(sde, 20, steps=5, generator=generator())
    assert bool((samples[:, 1] == 7).all())
    alone = model(x[:, [0, 2, 3]]).double()
    found = scoresde.log_prob(sde.double(), x[:9])
    torch.testing.assert_close(found, scoresde.log_prob(alone, x[:9, [0, 2, 3]]))


def test_columns_that_determine_one_another_are_named() -> None:
    x = torch.randn(500, 2, generator=generator()).double()
    x = torch.cat([x, x.sum(1, keepdim=True), torch.randn(500, 1).double()], 1)
    with pytest.warns(UserWarning, match=r"\[0, 1, 2\] determine one another"):
        sde = model(x)
    samples = scoresde.sample(sde, 100, steps=5, generator=generator())
    assert float((samples[:, 0] + samples[:, 1] - samples[:, 2]).abs().max()) < 1e-5


# ------------------------------------------------------------------ measuring


@pytest.mark.parametrize("parts", [1, 7, 60])
def test_a_stream_has_the_covariance_of_its_rows(parts: int) -> None:
    """In parts of any size, of any unit, far from 0."""
    x = drawn(gaussian(D, 1e8), 6000)
    covariance = Covariance()
    for part in x.chunk(parts):
        covariance.add(part)
    root = covariance.root(torch.ones(D, dtype=torch.bool))
    wanted = torch.from_numpy(np.corrcoef(x.T.numpy()))
    torch.testing.assert_close(root @ root, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("unit", [1e-150, 1e150])
def test_units_of_any_size(unit: float) -> None:
    x = drawn(gaussian(3, 10), 1000)
    roots = []
    for scale in (1.0, unit):
        covariance = Covariance()
        covariance.add(torch.zeros(5, 3, dtype=torch.float64))  # a unit of 0 at first
        covariance.add(x * scale)
        roots.append(covariance.root(torch.ones(3, dtype=torch.bool)))
    torch.testing.assert_close(roots[0], roots[1], rtol=1e-9, atol=1e-9)


def test_a_covariance_of_few_rows_is_shrunk_and_one_of_many_is_not() -> None:
    """40 rows of 30 independent columns: near the identity, where the sample's is singular."""
    x = torch.randn(40, 30, generator=generator(), dtype=torch.float64)
    covariance = Covariance()
    covariance.add(x)
    root = covariance.root(torch.ones(30, dtype=torch.bool))
    law = MultivariateNormal(torch.zeros(30).double(), root @ root)
    fresh = torch.randn(2000, 30, generator=generator(1), dtype=torch.float64)
    best = -15 * math.log(2 * math.pi) - fresh.square().sum(1).mean() / 2
    assert float(best - law.log_prob(fresh).mean()) < 1.0  # the sample's covariance: thousands


def test_of_many_rows_only_noise_is_shrunk() -> None:
    """6,000 rows of 64 columns: independent ones have no correlations, others all of theirs."""
    x = torch.randn(6000, 64, generator=generator(), dtype=torch.float64)
    mixed = x + 0.1 * x.roll(1, 1)
    roots = []
    for rows in (x, mixed):
        covariance = Covariance()
        covariance.add(rows)
        roots.append(covariance.root(torch.ones(64, dtype=torch.bool)))
    off = roots[0] - torch.eye(64)
    assert float(off.abs().max()) < 1e-3  # of the sample, 0.02
    torch.testing.assert_close(roots[1] @ roots[1], torch.corrcoef(mixed.T), rtol=0, atol=1e-12)


def test_few_rows_of_a_narrow_law_are_hardly_shrunk() -> None:
    """100 rows, 4 columns, condition 1e6: within half a nat of the Gaussian of most likelihood."""
    law = gaussian(4, 1e6)
    x = drawn(law, 100)
    covariance = Covariance()
    covariance.add(x)
    root = covariance.root(torch.ones(4, dtype=torch.bool))
    unit = x.std(0, correction=0)
    ours = MultivariateNormal(x.mean(0), root @ root * unit * unit.unsqueeze(1))
    fresh = drawn(law, 4000, 1)
    gap = likeliest(x).log_prob(fresh).mean() - ours.log_prob(fresh).mean()
    assert float(gap) < 0.5


def test_what_is_kept_of_a_stream_is_spread_evenly() -> None:
    thinned = Thinned(100)
    for part in torch.arange(5000).unsqueeze(1).split(37):
        thinned.add(part)
    kept = thinned.rows()[:, 0]
    assert 100 <= len(kept) <= 200
    assert len({int(step) for step in kept.diff()}) == 1


# ------------------------------------------------------------------ factors

LONG = 2000


def with_factors(n: int, factors: int = 5, d: int = LONG) -> tuple[Tensor, Any]:
    """Rows of strong factors and of noise that differs by column, in units of all sizes."""
    g = generator()
    unit = torch.logspace(-2, 2, d, dtype=torch.float64)
    loadings = unit.unsqueeze(1) * torch.randn(d, factors, generator=g, dtype=torch.float64)
    noise = unit**2 * (0.1 + 2 * torch.rand(d, generator=g, dtype=torch.float64))
    law = torch.distributions.LowRankMultivariateNormal(3 * unit, loadings, noise)
    x = torch.randn(n, factors, generator=g, dtype=torch.float64) @ loadings.T
    return law.loc + x + torch.randn(n, d, generator=g, dtype=torch.float64) * noise.sqrt(), law


class Zero(torch.nn.Module):
    """A network that has learnt nothing."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


def long_model(x: Tensor, **options: Any) -> scoresde.ScoreSDE:
    sde = scoresde.ScoreSDE(scoresde.VPSDE(), Zero(), shape=(x.shape[1],), **options)
    return sde.standardize(x).eval()


def divergence(law: Any, sde: scoresde.ScoreSDE) -> float:
    """KL(law | Gaussian of the model) by 400 draws, which at 7 nats leaves an error of .2."""
    torch.manual_seed(1)
    x = law.sample((400,))
    z = sde.from_data(x)
    ours = -0.5 * z.square().sum(1) - 0.5 * sde.dim * math.log(2 * math.pi) - sde.log_scale
    return float((law.log_prob(x) - ours).mean())


def test_long_vectors_have_factors_as_near_as_their_rows() -> None:
    """2,000 columns, 5 factors, 1,000 rows: to first order D·(5 + 2)/(2·1,000) = 7 nats."""
    x, law = with_factors(1000)
    sde = long_model(x.float())
    assert sde.root is not None
    assert sde.root.shape == (LONG, 65)
    assert int((sde.root[:, 1:].abs().amax(0) > 0).sum()) == 5
    assert 5 < divergence(law, sde) < 8.5
    assert divergence(law, long_model(x.float(), standardize="scale")) > 1000


def test_columns_without_factors_are_given_none() -> None:
    x = torch.randn(300, 1100, generator=generator())
    assert not bool(long_model(x).root[:, 1:].any())  # type: ignore[index]
    few = long_model(x[:5])
    assert not bool(few.root[:, 1:].any())  # type: ignore[index]


def test_of_few_rows_factors_are_shrunk() -> None:
    """40 rows of 1,100 columns: far better than no factor, and than the likeliest ones."""
    x, law = with_factors(40, 2, 1100)
    alone = divergence(law, long_model(x, standardize="scale"))
    assert divergence(law, long_model(x)) < 0.3 * alone


def test_a_network_of_zeros_is_the_gaussian_of_the_factors() -> None:
    x, _ = with_factors(400, 3, 1030)
    x[:, 7] = 4.0
    with pytest.warns(UserWarning, match=r"\[7\] are constant"):
        sde = long_model(x).double()
    free = torch.arange(1030) != 7
    root = (sde.scale[free].unsqueeze(1) * sde.standardization.directions).double()
    law = MultivariateNormal(sde.mean[free], root @ root.T)
    wanted = law.log_prob(x[:3, free])
    z = sde.from_data(x[:3])
    found = -0.5 * z.square().sum(1) - 0.5 * 1029 * math.log(2 * math.pi) - sde.log_scale
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(sde.to_data(z), x[:3], rtol=1e-9, atol=1e-9)
    back = sde.standardization.columns(z) * sde.scale + sde.mean
    torch.testing.assert_close(back[:, free], x[:3, free], rtol=1e-9, atol=1e-9)
    exact = -torch.linalg.solve(law.covariance_matrix, (x[:3, free] - law.loc).T).T
    score = sde.score(x[:3], 0.0)
    torch.testing.assert_close(
        score[:, free], exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max())
    )
    by_solver = scoresde.log_prob(sde, x[:3], trace="hutchinson", steps=20, seed=0)
    torch.testing.assert_close(by_solver, wanted, rtol=0, atol=0.1)
    bound = scoresde.elbo(sde, x[:3], draws=8, seed=0).log_prob
    torch.testing.assert_close(bound, wanted, rtol=0, atol=1.0)


def test_files_keep_the_factors(tmp_path: Path) -> None:
    x, _ = with_factors(100, 2, 1030)
    sde = scoresde.build("vp", "mlp", shape=(1030,), width=4, depth=1)
    scoresde.fit(sde, x.float(), steps=1, progress=False, validation=None)
    assert sde.standardize_by == "factors"
    loaded = scoresde.load(scoresde.save(sde, tmp_path / "m"))
    assert torch.equal(loaded.root, sde.root)
    how: dict[str, Any] = {"trace": "hutchinson", "steps": 3, "seed": 0}
    assert torch.equal(*(scoresde.log_prob(m, x[:2].float(), **how) for m in (sde, loaded)))
    about, tensors = records.read(tmp_path / "m", "model")
    for bad, message in ((-1.0, "not a positive definite"), (1e30, "stretches by")):
        root = tensors["root"].clone()
        root[3, 0] = bad
        records.write(tmp_path / "m", "model", {**tensors, "root": root}, about)
        with pytest.raises(scoresde.CheckpointError, match=message):
            scoresde.load(tmp_path / "m")


def test_pairs_of_a_model_with_factors_train_another() -> None:
    x, _ = with_factors(100, 2, 1030)
    teacher = scoresde.ScoreSDE(scoresde.RectifiedFlow(), Zero(), shape=(1030,)).standardize(x)
    pairs = scoresde.reflow(teacher, 8, solver="euler", steps=2, progress=False)
    student = scoresde.build("rectified", "mlp", shape=(1030,), width=4, depth=1)
    scoresde.fit(student, pairs, steps=1, progress=False)
    assert torch.equal(student.root, teacher.root)


# ------------------------------------------------------------------ choices


def test_who_is_whitened() -> None:
    vector = scoresde.build("vp", "mlp", shape=(3,))
    assert vector.standardize_by == "whiten"
    assert scoresde.build("vp", "mlp", shape=(1025,), width=4).standardize_by == "factors"
    for shape in [(1,), (1, 4, 4), (3, 2)]:
        assert scoresde.build("vp", "mlp", shape=shape, width=4).standardize_by == "scale"
    coupled = scoresde.build("rectified", "mlp", shape=(2,))
    coupled.source = torch.randn(100, 2)
    assert coupled.standardize_by == "scale"
    assert coupled.root is None
    with pytest.raises(ValueError, match="for vectors"):
        scoresde.build("vp", "mlp", shape=(1, 4, 4), standardize="whiten")
    with pytest.raises(ValueError, match="more than 65 numbers, and these have 65"):
        scoresde.build("vp", "mlp", shape=(65,), standardize="factors")
    with pytest.raises(ValueError, match="Did you mean 'whiten'"):
        scoresde.build("vp", "mlp", shape=(2,), standardize="whitened")


def test_nothing_is_measured_on_request() -> None:
    x = torch.randn(100, 2) * 5 + 3
    sde = model(x, standardize="none")
    assert bool(sde.measured)
    assert torch.equal(sde.from_data(x), x)


def test_files_and_copies_keep_the_covariance(tmp_path: Path) -> None:
    x = drawn(gaussian(D, 1e4), 300).float()
    sde = scoresde.build("vp", "mlp", shape=(D,), width=8)
    checkpoints = scoresde.Checkpoints(tmp_path / "run", every=5)
    scoresde.fit(sde, x, steps=10, checkpoints=checkpoints, progress=False)
    scoresde.save(sde, tmp_path / "model")
    wanted = scoresde.log_prob(sde, x[:5])
    for folder in ("run", "model"):
        loaded = scoresde.load(tmp_path / folder)
        assert torch.equal(loaded.root, sde.root)
        assert torch.equal(scoresde.log_prob(loaded, x[:5]), wanted)
    half = scoresde.load(tmp_path / "model").bfloat16()
    assert torch.equal(half.root, sde.root)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (torch.full((2, 2), math.nan), "not a positive definite"),
        (-torch.eye(2), "not a positive definite"),
        (torch.ones(2, 2), "not a positive definite"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "not a positive definite"),
        (torch.eye(2) * 1e-30, "stretches by 1e\\+20 or more"),
        (torch.eye(2) * 1e30, "stretches by 1e\\+20 or more"),
        (torch.eye(3), "of another shape or kind, first 'root'"),
        (torch.eye(2).long(), "of another shape or kind, first 'root'"),
        (None, "weights are missing"),
    ],
)
def test_a_file_with_a_wrong_root_is_refused(
    root: Tensor | None, message: str, tmp_path: Path
) -> None:
    scoresde.save(model(torch.randn(50, 2, generator=generator()), width=8), tmp_path / "m")
    about, tensors = records.read(tmp_path / "m", "model")
    tensors = {name: value for name, value in tensors.items() if name != "root"}
    if root is not None:
        tensors["root"] = root
    records.write(tmp_path / "m", "model", tensors, about)
    with pytest.raises(scoresde.CheckpointError, match=message):
        scoresde.load(tmp_path / "m")


def test_pairs_of_a_whitened_model_train_another() -> None:
    """The x_1 that `reflow` drew are the Gaussian of the first model's covariance."""
    x = drawn(gaussian(2, 100), 1000).float()
    sde = model(x, "rectified")
    pairs = scoresde.reflow(sde, 300, progress=False)
    other = scoresde.build("rectified", "mlp", shape=(2,), blur=False, width=8)
    scoresde.fit(other, pairs, steps=3, progress=False)
    assert torch.equal(other.root, sde.root)
    z = other.from_start(pairs.latent)
    assert float((torch.cov(z.T) - torch.eye(2)).abs().max()) < 0.3  # 300 rows, 4 standard errors


def test_models_of_other_correlations_do_not_mix() -> None:
    x = torch.randn(200, 2)
    a = model(x)
    b = model(x)
    b.root.copy_(torch.tensor([[1.0, 0.2], [0.2, 1.0]]))

    class Mean(scoresde.model.derived.Derived):
        def __init__(self, first: Any, other: Any) -> None:
            super().__init__(first)
            self.other = other

    with pytest.raises(ValueError, match="correlations"):
        scoresde.sample(Mean(a, b), 2)


# ------------------------------------------------------------------ features along columns


def test_octaves_follow_the_finest_structure_of_a_column() -> None:
    """Of 20,000 rows: smooth, rounded to 1/50 of the spread, and uneven cells with noise."""
    g = generator()
    smooth = torch.randn(20_000, generator=g)
    rounded = (torch.randn(20_000, generator=g) * 50).round() / 50
    weights = torch.rand(400, generator=g)
    uneven = torch.multinomial(weights, 20_000, replacement=True, generator=g) / 50.0
    uneven = uneven + torch.rand(20_000, generator=g) / 50
    u = torch.stack([smooth, rounded, uneven], 1)
    found = octaves_of((u - u.mean(0)) / u.std(0))
    assert found[0] == 3
    assert found[1] >= 6
    assert found[2] >= 7


def test_features_lie_along_the_columns_of_the_data() -> None:
    """Seen from whitened space: a frequency's phase is 2π·f times the standardized column."""
    x = drawn(gaussian(3, 1e3), 5000)
    sde = model(x)
    z = sde.from_data(x)
    u = (x - x.mean(0)) / x.std(0, correction=0)
    phase = z.float() @ sde.net.frequencies
    first = torch.tensor([0.5, 1.0, 2.0]).repeat_interleave(3)
    wanted = 2 * math.pi * u.repeat(1, 3).float() * first
    torch.testing.assert_close(phase[:, :9], wanted, rtol=1e-4, atol=1e-4)


def test_the_trace_in_closed_form_counts_features_along_columns() -> None:
    x = drawn(gaussian(3, 1e2), 1000)
    sde = model(x).double()
    torch.nn.init.normal_(sde.net.out.weight, std=0.3)
    z = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    t = torch.linspace(-2, 2, 4, dtype=torch.float64)
    _, trace = sde.net.value_and_trace(z, t)
    for i in range(4):
        jacobian = torch.func.jacrev(lambda p, i=i: sde.net(p[None], t[i : i + 1])[0])(z[i])
        assert float(trace[i]) == pytest.approx(float(jacobian.trace()), rel=1e-9)


def test_features_fade_without_denormal_numbers() -> None:
    """exp(−½|ω|²·sin²φ), up to 1e-26; float32 is slow below 1e-38."""
    frequencies = 2 * math.pi * 2.0 ** torch.arange(-1, 7).unsqueeze(0)
    t = torch.linspace(-7, 7, 200)
    fade = noise_fade(frequencies, t)
    wide = frequencies.double()
    sine = 1 / (1 + torch.exp(-2 * t.double()))
    wanted = torch.exp(-0.5 * torch.outer(sine, wide.square()[0]))
    torch.testing.assert_close(fade.double(), wanted, rtol=1e-4, atol=1e-26)
    assert float(wanted.min()) < 1e-45 < 1e-27 < float(fade.min())


def test_bad_axes() -> None:
    with pytest.raises(ValueError, match="axes=4 are features of vectors"):
        scoresde.build("vp", "mlp", shape=(1, 2, 2), axes=4)
    with pytest.raises(ValueError, match="blur=False"):
        scoresde.build("vp", "resmlp", shape=(2,), axes=4, blur=False)
