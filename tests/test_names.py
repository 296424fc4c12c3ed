"""Columns of data frames are matched by name, whatever takes them; arrays go by position."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

import scoresde
from conftest import generator
from scoresde.metrics import calibration

pd = pytest.importorskip("pandas")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*populations have an effective size"),
    pytest.mark.filterwarnings("ignore:these pairs don't say"),
]
RENAMED = "1 missing: '[au]'; 1 unknown: 'z'"


def frame(n: int = 1000) -> Any:
    """b in other units than a, with correlation 0.93."""
    a, e = torch.randn(2, n, generator=generator(), dtype=torch.float64)
    return pd.DataFrame({"a": a.numpy(), "b": (50 * a + 500 + 20 * e).numpy()})


def gaussian() -> tuple[scoresde.ScoreSDE, MultivariateNormal]:
    """A model of the columns a and b that is a Gaussian exactly, and that Gaussian."""
    x = plain(frame())
    sde = scoresde.build("vp", "mlp", shape=(2,), width=4, depth=1).standardize(x).eval().double()
    sde.schema.columns = ("a", "b")
    return sde, MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))


def plain(rows: Any) -> Tensor:
    return torch.tensor(rows.to_numpy().copy())


def reversed_columns(rows: Any) -> Any:
    return rows[rows.columns[::-1]]


# ------------------------------------------------------------------------------ rows of a model


def test_rows_with_gaps_are_filled_by_name() -> None:
    """The mean of 400 draws of a given b lies within 0.2 conditional standard deviations."""
    sde, law = gaussian()
    rows = pd.DataFrame({"b": [560.0] * 400, "a": [math.nan] * 400})
    found = scoresde.impute(sde, rows, particles=4, steps=20, seed=0)
    (mean_a, mean_b), (var_a, shared, _, var_b) = law.mean, law.covariance_matrix.flatten()
    wanted = mean_a + shared / var_b * (560 - mean_b)
    std = (var_a - shared**2 / var_b).sqrt()
    assert abs(float((found[:, 0].mean() - wanted) / std)) < 0.2
    assert torch.equal(found[:, 1], torch.full((400,), 560.0, dtype=torch.float64))


def test_densities_of_rows_with_gaps_are_found_by_name() -> None:
    sde, law = gaussian()
    rows = frame(3)
    rows.loc[1, "a"] = math.nan
    rows.loc[2, "b"] = math.nan
    x = plain(rows)
    each = Normal(law.mean, law.covariance_matrix.diag().sqrt(), validate_args=False).log_prob(x)
    wanted = torch.stack([law.log_prob(x[:1])[0], each[1, 1], each[2, 0]])
    found = scoresde.marginal_log_prob(sde, reversed_columns(rows), draws=300, seed=0)
    assert float((found.log_prob - wanted).abs().max()) < 0.02


def test_a_distribution_matches_frames_and_series_by_name() -> None:
    sde, law = gaussian()
    rows = frame(5)
    wanted = law.log_prob(plain(rows))
    model = scoresde.Distribution(sde, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.log_prob(reversed_columns(rows)), wanted, rtol=0, atol=1e-4)
    one = model.log_prob(reversed_columns(rows).iloc[3])
    torch.testing.assert_close(one, wanted[3], rtol=0, atol=1e-4)


VERBS: dict[str, Callable[[Any, Any], Any]] = {
    "impute": lambda sde, x: scoresde.impute(sde, x, particles=2, steps=5, seed=0),
    "marginal_log_prob": lambda sde, x: scoresde.marginal_log_prob(sde, x, seed=0).log_prob,
    "Distribution": lambda sde, x: scoresde.Distribution(sde).log_prob(x),
    "log_prob": scoresde.log_prob,
    "elbo": lambda sde, x: scoresde.elbo(sde, x, seed=0).log_prob,
    "encode": scoresde.encode,
    "decode": scoresde.decode,
    "edit": lambda sde, x: scoresde.edit(sde, x, 0.3, seed=0),
    "interpolate": lambda sde, x: scoresde.interpolate(sde, x, x, 3),
    "score": lambda sde, x: sde.score(x, 0.5),
    "solve": lambda sde, x: scoresde.solve(sde, start=x, times=(1.0, 0.0)).x[-1],
    "evaluate": lambda sde, x: torch.tensor(
        scoresde.evaluate(sde, x, samples=0, seed=0, progress=False).score.mean
    ),
    "standardize": lambda sde, x: sde.standardize(x).mean.clone(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_order_of_columns_does_not_matter(verb: str) -> None:
    sde, _ = gaussian()
    rows = frame(16)
    wanted = VERBS[verb](sde, plain(rows))
    assert torch.equal(VERBS[verb](sde, reversed_columns(rows)), wanted)
    with pytest.raises(ValueError, match=RENAMED):
        VERBS[verb](sde, rows.rename(columns={"a": "z"}))
    with pytest.raises(ValueError, match="1 unknown: 'c'"):
        VERBS[verb](sde, rows.assign(c=0.0))


def test_rows_of_a_table_are_matched_by_name() -> None:
    rows = frame(400)
    rows["kind"] = (["x", "y"] * 200)[:400]
    table = scoresde.Table(rows)
    sde = scoresde.build("vp", "mlp", shape=table.shape, classes=table.classes, width=4, depth=1)
    scoresde.fit(sde, table, steps=2, validation=None, progress=False, seed=0)
    some = rows[:6].copy()
    some.loc[2:3, "a"] = math.nan
    some.loc[4, "kind"] = None
    filled = [
        scoresde.impute(sde, each, particles=2, steps=5, seed=0)
        for each in (some, reversed_columns(some))
    ]
    pd.testing.assert_frame_equal(*filled)
    in_order, other = (
        scoresde.marginal_log_prob(sde, each, draws=4, seed=0, steps=4).log_prob
        for each in (some, reversed_columns(some))
    )
    assert torch.equal(in_order, other)
    for verb in (scoresde.impute, scoresde.marginal_log_prob):
        with pytest.raises(ValueError, match="lack the columns 'a'"):
            verb(sde, some.rename(columns={"a": "z"}))


def test_a_gaussian_of_a_frame_knows_its_columns() -> None:
    rows = frame()
    sde = scoresde.build("vp", "mlp", shape=(2,), width=4, depth=1).standardize(rows)
    assert sde.schema.columns == ("a", "b")
    mean = sde.mean.clone()
    torch.testing.assert_close(sde.standardize(reversed_columns(rows)).mean, mean)


def test_pairs_of_frames_are_matched_by_name() -> None:
    rows = frame(20)
    latent = reversed_columns(rows + 1.0)
    given = {"vector": pd.DataFrame({"u": [0.0] * 20, "v": [1.0] * 20})}
    pairs = scoresde.Pairs(rows, latent, given)
    assert torch.equal(pairs.latent, pairs.x + 1)
    sde = scoresde.build("rectified", "resmlp", shape=(2,), vector=2, width=8)
    scoresde.fit(sde, pairs, steps=2, batch_size=8, progress=False, seed=0)
    assert sde.schema.columns == ("a", "b")
    assert sde.schema.parts == {"vector": ("u", "v")}
    with pytest.raises(ValueError, match="learnt 'a', 'b'"):
        scoresde.fit(sde, scoresde.Pairs(reversed_columns(rows), latent, given), steps=1)


def test_models_of_other_orders_of_columns_make_no_model() -> None:
    """Their mean and scale agree, so that nothing else tells."""
    x = torch.randn(100, 2, generator=generator())
    rows = pd.DataFrame(((x - x.mean(0)) / x.std(0, correction=0)).numpy(), columns=["a", "b"])
    first, other, nameless = (
        scoresde.build("vp", "mlp", shape=(2,), width=4, depth=1).standardize(each)
        for each in (rows, reversed_columns(rows), plain(rows))
    )
    scoresde.compose([(first, 1.0), (nameless, 0.5)])
    with pytest.raises(ValueError, match="the columns 'b', 'a', not 'a', 'b'"):
        scoresde.compose([(first, 1.0), (other, 0.5)])


# ------------------------------------------------------------------------------ latents


class Linear(scoresde.StageNet):
    """x̂ = A·z with orthogonal columns, and the exact posterior under z ~ N(0, I)."""

    def __init__(self, noise: float) -> None:
        super().__init__((2,), noise=noise)
        self.variance = noise**2
        self.register_buffer(
            "columns", torch.linalg.qr(torch.randn(4, 2, generator=generator()))[0]
        )
        self.precision = noise**-2 + 1

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x @ self.columns / self.variance / self.precision
        return mean, torch.full_like(mean, self.precision**-0.5)

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.columns.T


def latents() -> tuple[scoresde.Latent, Any, Tensor]:
    """A model whose bound is log p itself, four rows, and their log p."""
    prior = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    stage = scoresde.FirstStage(Linear(0.3), shape=(4,))
    stage.schema.columns = ("a", "b", "c", "d")
    columns = stage.net.columns
    law = MultivariateNormal(torch.zeros(4), columns @ columns.T + 0.09 * torch.eye(4))
    x = law.sample((4,)) + torch.arange(4.0)
    rows = pd.DataFrame(x.numpy(), columns=["a", "b", "c", "d"])
    latent = scoresde.Latent(stage, scoresde.oracle(prior, scoresde.VPSDE()))
    return latent.eval(), rows, law.log_prob(x)


def test_the_bound_of_latents_matches_columns_by_name() -> None:
    torch.manual_seed(0)
    latent, rows, wanted = latents()
    found = scoresde.latent_bound(latent, reversed_columns(rows), draws=3, seed=0, rtol=1e-5)
    torch.testing.assert_close(found.log_prob.float(), wanted, rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match=RENAMED):
        scoresde.latent_bound(latent, rows.rename(columns={"a": "z"}), draws=1)


def test_edits_of_latents_match_columns_by_name() -> None:
    torch.manual_seed(0)
    latent, rows, _ = latents()
    x = plain(rows)
    wanted = scoresde.edit(latent, x, 0.3, seed=0, steps=8)
    assert torch.equal(scoresde.edit(latent, reversed_columns(rows), 0.3, seed=0, steps=8), wanted)


def test_latents_know_the_words_of_their_conditions() -> None:
    stage = scoresde.FirstStage(Linear(0.3), shape=(4,))
    stage.schema.columns = ("a", "b", "c", "d")
    sde = scoresde.build("vp", "mlp", shape=(2,), classes=2, width=4)
    sde.schema.words["y"] = ("cat", "dog")
    latent = scoresde.Latent(stage, sde)
    assert latent.given(y="dog").condition["y"].tolist() == [1]
    assert latent.given(y="dog").schema.columns == ("a", "b", "c", "d")
    assert sde.schema.columns == ()


# ------------------------------------------------------------------------------ conditions


def test_a_series_is_a_condition_by_its_index() -> None:
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=2, width=8)
    sde.schema.parts["vector"] = ("u", "v")
    row = pd.DataFrame({"kind": ["p"], "v": [7.0], "u": [3]}).iloc[0][["v", "u"]]  # of objects
    assert sde.given(vector=row).condition["vector"].tolist() == [[3.0, 7.0]]
    with pytest.raises(ValueError, match=RENAMED):
        sde.given(vector=row.rename({"u": "z"}))


# ------------------------------------------------------------------------------ posteriors

SEEN = pd.DataFrame({"v": [0.8, 0.2], "u": [0.5, 0.3]})
PLAIN = torch.tensor([[0.5, 0.8], [0.3, 0.2]], dtype=torch.float64)


@pytest.fixture(scope="module")
def posterior() -> scoresde.Posterior:
    """theta of the columns s and t, x = theta + noise of 0.05."""
    g = generator()
    theta = torch.rand(600, 2, generator=g)
    x = theta + 0.05 * torch.randn(600, 2, generator=g)
    return scoresde.posterior(
        (torch.zeros(2), torch.ones(2)),
        pd.DataFrame(theta.numpy(), columns=["s", "t"]),
        pd.DataFrame(x.numpy(), columns=["u", "v"]),
        steps=10,
        held_out=0.0,
        progress=False,
        seed=0,
    )


def test_observations_are_matched_by_name(posterior: scoresde.Posterior) -> None:
    """E[theta | x] is x but for the edges: within 0.03, of a spread of 0.05 in 400 draws."""
    drawn = posterior.sample((400,), x=SEEN, seed=0, steps=10)
    assert float((drawn.mean(0) - PLAIN).abs().max()) < 0.03
    one = posterior.sample((400,), x=SEEN.iloc[0], seed=0, steps=10)
    assert float((one.mean(0) - PLAIN[0]).abs().max()) < 0.03


OF_X: dict[str, Callable[[Any, Any], Any]] = {
    "sample": lambda post, x: post.sample((3,), x=x, seed=0, steps=4),
    "log_prob": lambda post, x: post.log_prob(torch.tensor([0.4, 0.7]), x=x, steps=4),
    "map": lambda post, x: post.map(x, draws=4, steps=0, seed=0, rtol=0.05),
    "acceptance": lambda post, x: post.acceptance(x, n=20).share,
    "iid": lambda post, x: post.iid(x, draws=20, seed=0, steps=4).theta,
}


@pytest.mark.filterwarnings("ignore:the .* points of this posterior")
@pytest.mark.filterwarnings("ignore:the observations contradict")
@pytest.mark.parametrize("verb", OF_X)
def test_the_order_of_x_does_not_matter(posterior: scoresde.Posterior, verb: str) -> None:
    near = SEEN.assign(v=[0.8, 0.82], u=[0.5, 0.48])
    wanted = OF_X[verb](posterior, torch.tensor([[0.5, 0.8], [0.48, 0.82]], dtype=torch.float64))
    assert torch.equal(OF_X[verb](posterior, near), wanted)
    with pytest.raises(ValueError, match=RENAMED):
        OF_X[verb](posterior, near.rename(columns={"u": "z"}))
    if verb != "iid":
        alone = OF_X[verb](posterior, PLAIN[0])
        assert torch.equal(OF_X[verb](posterior, SEEN.iloc[0]), alone)
        with pytest.raises(ValueError, match=RENAMED):
            OF_X[verb](posterior, SEEN.iloc[0].rename({"u": "z"}))


def test_parameters_are_matched_by_name(posterior: scoresde.Posterior) -> None:
    theta = pd.DataFrame({"t": [0.7, 0.75], "s": [0.4, 0.45]})
    in_order = plain(theta[["s", "t"]])
    wanted = posterior.log_prob(in_order, x=PLAIN[0])
    assert torch.equal(posterior.log_prob(theta, x=PLAIN[0]), wanted)
    one = posterior.log_prob(theta.iloc[1], x=PLAIN[0])
    torch.testing.assert_close(one, wanted[1], rtol=0, atol=1e-4)
    both = posterior.iid(PLAIN[:1], draws=50, seed=0)
    assert torch.equal(both.log_prob(theta), both.log_prob(in_order))
    with pytest.raises(ValueError, match="1 unknown: 'z'"):
        posterior.log_prob(theta.rename(columns={"s": "z"}), x=PLAIN[0])


def test_a_saved_posterior_keeps_the_names(posterior: scoresde.Posterior, tmp_path: Path) -> None:
    again = scoresde.load_posterior(posterior.save(tmp_path))
    wanted = posterior.sample((5,), x=PLAIN, seed=0)
    assert torch.equal(again.sample((5,), x=SEEN, seed=0), wanted)
    with pytest.raises(ValueError, match=RENAMED):
        again.sample((5,), x=SEEN.rename(columns={"u": "z"}))


def test_names_that_do_not_fit_the_posterior_are_damage(
    posterior: scoresde.Posterior, tmp_path: Path
) -> None:
    short = scoresde.Posterior(
        posterior.sde, posterior.prior, coordinates=posterior.coordinates, condition="vector"
    )
    short._names = type(posterior._schema)(parts={"vector": ("u", "v", "w")})
    with pytest.raises(scoresde.CheckpointError, match="names 3 columns of x"):
        scoresde.load_posterior(short.save(tmp_path))


def test_arrays_bring_no_names(tmp_path: Path) -> None:
    """As in files without names: frames go by position."""
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=2, width=8)
    post = scoresde.Posterior(sde, (torch.zeros(2), torch.ones(2)))
    again = scoresde.load_posterior(post.save(tmp_path))
    x = pd.DataFrame({"p": [0.5], "q": [0.8]})
    theta = torch.tensor([0.4, 0.7])
    wanted = again.log_prob(theta, x=torch.tensor([[0.5, 0.8]]), normalized=False)
    assert torch.equal(again.log_prob(theta, x=x, normalized=False), wanted)


def test_a_model_trained_by_hand_brings_its_names() -> None:
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=2, width=8)
    post = scoresde.Posterior(sde, (torch.zeros(2), torch.ones(2)))
    g = generator()
    theta = torch.rand(100, 2, generator=g)
    x = pd.DataFrame((theta + torch.randn(100, 2, generator=g)).numpy(), columns=["u", "v"])
    scoresde.fit(sde, theta, given={"vector": x}, steps=5, progress=False, seed=0)
    wanted = post.sample((4,), x=PLAIN, seed=0)
    assert torch.equal(post.sample((4,), x=SEEN, seed=0), wanted)
    how: dict[str, Any] = {"steps": 5, "held_out": 0.0, "progress": False, "seed": 0}
    drawn = [
        scoresde.posterior(post.prior, theta, each, sde=copy.deepcopy(sde), **how).sample(
            (4,), x=seen, seed=0
        )
        for each, seen in ((x, PLAIN), (reversed_columns(x), SEEN))
    ]
    assert torch.equal(*drawn)


def test_calibration_matches_columns_by_name(posterior: scoresde.Posterior) -> None:
    g = generator(1)
    theta = torch.rand(20, 2, generator=g)
    x = theta + 0.05 * torch.randn(20, 2, generator=g)
    frames = [
        reversed_columns(pd.DataFrame(theta.numpy(), columns=["s", "t"])),
        reversed_columns(pd.DataFrame(x.numpy(), columns=["u", "v"])),
    ]
    of_arrays = calibration(posterior, theta, x, draws=5, density=False, seed=0)
    of_frames = calibration(posterior, *frames, draws=5, density=False, seed=0)
    assert of_frames.p_value == of_arrays.p_value
