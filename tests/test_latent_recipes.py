"""Recipes of latent models: killed in either training and resumed, saved, sampled, scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recipes import mnist
from torch import Tensor
from torch.distributions import Normal

import scoresde
from scoresde.backbones import VAE
from scoresde.cli.commands import main
from scoresde.training.recipes import RECIPES

SMALL = ["--stage", "channels=4", "--stage", "steps=8", "--stage", "batch_size=4"]
SMALL += ["--option", "width=8", "--option", "depth=1", "--batch-size", "4", "--every", "3"]


def run(*arguments: Any) -> None:
    main([str(each) for each in arguments])


def command(folder: Path, out: Path, *more: Any) -> list[Any]:
    name = "fashion-mnist-latent"
    return ["fit", folder, "--recipe", name, "--out", out, *SMALL, "--steps", 8, *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of data, and a run that was not killed."""
    folder = mnist(tmp_path_factory.mktemp("data"))
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(*command(folder, out))
    return folder, out


def weights(path: Path) -> dict[str, Tensor]:
    model = scoresde.load(path)
    assert isinstance(model, scoresde.Latent)
    parts = {"stage": model.stage, "latents": model.model}
    found = {}
    for name, part in parts.items():
        found |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    return found


@pytest.mark.parametrize("part", ["stage", "latents"])
def test_a_killed_run_ends_as_one_that_was_not(
    part: str,
    trained: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Interrupted in the fifth step of either training, and resumed from its third."""
    folder, whole = trained
    out = tmp_path / "run"
    kind: Any = VAE if part == "stage" else scoresde.BACKBONES["resmlp"]
    intact = kind.forward
    calls = []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return intact(*args, **kwargs)

    monkeypatch.setattr(kind, "forward", killed)
    with pytest.raises(SystemExit) as caught:
        run(*command(folder, out))
    assert caught.value.code == 130
    assert f"the last checkpoint is of step 3 in {part}" in capsys.readouterr().err
    monkeypatch.setattr(kind, "forward", intact)
    if part == "stage":
        with pytest.raises(scoresde.CheckpointError, match="no score model of its latents yet"):
            scoresde.load(out)
        assert isinstance(scoresde.load(out / "stage"), scoresde.FirstStage)
    run(*command(folder, out, "--resume"))
    one = weights(whole)
    other = weights(out)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(other[key], value), key


def test_what_it_wrote_is_sampled_and_scored(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = trained
    run("sample", out, "-n", 3, "--steps", 4, "--out", tmp_path / "x.npy")
    assert scoresde.files.read(tmp_path / "x.npy").values.shape == (3, 1, 28, 28)
    scored = tmp_path / "scored"
    run("evaluate", out, folder, "-n", 5, "--samples", 0, "--out", scored, "--tolerance", 1e-2)
    said = capsys.readouterr().out
    found = json.loads((scored / "evaluation.json").read_text())
    assert "bits/dim" in said
    assert "2 probes" in said
    assert found["score"]["n"] == 5
    parts = [scoresde.load(out / name) for name in ("stage", "latents")]
    count = sum(p.numel() for part in parts for p in part.networks()[0].parameters())
    assert found["parameters"] == count


def test_floats_of_a_latent_are_drawn_and_not_scored(trained: tuple[Path, Path]) -> None:
    model = scoresde.load(trained[1])
    x = torch.rand(3, 1, 28, 28)
    with pytest.raises(TypeError, match=r"latent_bound\(model, x\) bounds log p, or n=0"):
        scoresde.evaluate(model, x, progress=False)
    found = scoresde.evaluate(model, x, n=0, samples=2, progress=False)
    assert (found.samples, found.score) == (2, None)


def test_a_latent_is_saved_as_its_two_parts(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = trained
    model = scoresde.load(out)
    again = scoresde.load(scoresde.save(model, tmp_path / "saved"))
    how: dict[str, Any] = {"steps": 3}
    g = torch.Generator()
    drawn = scoresde.sample(model, 2, generator=g.manual_seed(0), **how)
    assert torch.equal(scoresde.sample(again, 2, generator=g.manual_seed(0), **how), drawn)
    scoresde.save(model, tmp_path / "saved")  # replaces it
    guided = scoresde.Latent(model.stage, scoresde.temper(model.model, 2.0))
    with pytest.raises(TypeError, match="save takes a ScoreSDE"):
        scoresde.save(guided, tmp_path / "guided")
    assert not (tmp_path / "guided").exists()
    (tmp_path / "saved" / "latents" / "model.json").unlink()
    with pytest.raises(scoresde.CheckpointError):
        scoresde.load(tmp_path / "saved")


def test_options_of_a_stage_go_with_a_recipe_that_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mnist(tmp_path)
    with pytest.raises(SystemExit):
        run("fit", folder, "--recipe", "mnist", "--stage", "kl=1", "--out", tmp_path / "run")
    assert "--stage goes with a recipe that has one" in capsys.readouterr().err
    recipe: Any = RECIPES["fashion-mnist-latent"]
    with pytest.raises(TypeError, match=r"fits the Latent of its build\(\)"):
        recipe.fit(RECIPES["mnist"].build("vp", "mlp", width=8), torch.zeros(2, 1, 28, 28).byte())


# ------------------------------------------------------------------------------- bits


class Known(scoresde.StageNet):
    """P(v|z) by a Gaussian around z whose bins reach to ∓∞ at both ends; q(z|x) is given."""

    levels = 8

    def __init__(self, mean: float, scale: float) -> None:
        super().__init__((1,), noise=1.0)
        self.mean, self.scale = mean, scale

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(x, self.mean), torch.full_like(x, self.scale)

    def decode(self, z: Tensor) -> Tensor:
        return z

    def log_mass(self, out: Tensor, bins: Any, free: Tensor | None) -> Tensor:
        high = Normal(out, 0.5).cdf(bins.high).masked_fill(bins.highest, 1)
        low = Normal(out, 0.5).cdf(bins.low).masked_fill(bins.lowest, 0)
        return (high - low).clamp_min(1e-30).log().sum(1)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_bits_of_a_latent_bound_those_of_a_quadrature(trace: str) -> None:
    """One number of 8 levels, z ~ N(0, 1): −log₂ P(v), ∫ by quadrature. The mean of 4,000 single
    draws is −log₂ P(v) + KL(q ‖ p(z|v))/ln 2 to 4 standard errors (false alarms: 1 in 16,000), and
    64 draws reach −log₂ P(v) itself."""
    stage = scoresde.FirstStage(Known(0.6, 0.5), shape=(1,), standardize="none")
    stage.mean.fill_(0.5)
    stage.scale.fill_(0.25)
    prior = scoresde.oracle(scoresde.toy.GaussianMixture([[0.0]], 1.0), scoresde.VPSDE())
    model = scoresde.Latent(stage, prior)
    z = torch.linspace(-4.5, 4.5, 4001).double()[:, None]
    edges = (torch.tensor([5 / 8, 6 / 8]).double() - 0.5) / 0.25
    mass = Normal(z, 0.5).cdf(edges[1]) - Normal(z, 0.5).cdf(edges[0])
    p = (Normal(0, 1).log_prob(z).exp() * mass)[:, 0].clamp_min(1e-300)
    step = float(z[1, 0] - z[0, 0])
    truth = -float((p.sum() * step).log2())
    q = Normal(0.6, 0.5).log_prob(z[:, 0])
    single = float((q.exp() * (q - p.log())).sum() * step) / 0.6931471805599453
    v = torch.full((4000, 1), 5)
    uniform = scoresde.dequantize.Uniform(8)
    how: dict[str, Any] = {"trace": trace, "rtol": 1e-4, "atol": 1e-4}
    g = torch.Generator().manual_seed(0)
    found = scoresde.bits_per_dim(model, v, uniform, generator=g, **how)
    assert abs(found.mean - single) < 4 * found.mean_stderr
    assert found.mean_stderr < 0.02
    if trace == "exact":
        close = scoresde.bits_per_dim(model, v[:60], uniform, draws=64, generator=g, **how)
        assert abs(close.mean - truth) < 0.02
        x, log_q = uniform.noisy(v, g)
        bound = scoresde.latent_bound(model, x, draws=1, generator=g, **how)
        bits = uniform.bits(bound.log_prob.float(), log_q, 1)
        assert abs(float(bits.mean()) - single) < 4 * float(bits.std()) / 4000**0.5


def test_logistic_bins_are_those_of_the_distribution_function() -> None:
    """A mixture of two at chosen parameters, in float64, and the sum over all levels is 1."""
    torch.manual_seed(0)
    net = VAE((2,), latent=(1,), levels=6, components=2)
    stage = scoresde.FirstStage(net, shape=(2,), standardize="none").double()
    stage.mean.fill_(0.4)
    stage.scale.fill_(0.3)
    z = torch.tensor([[0.7]]).double()
    with torch.no_grad():
        out = net.outputs(z)
        weight, mean, log_scale = out.reshape(3, 2, 2)
        total = torch.zeros(()).double()
        for i in range(6):
            for j in range(6):
                x = (torch.tensor([[i, j]]).double() + 0.3) / 6
                found = stage.log_likelihood(x, z)[0]
                wanted = 2 * torch.log(torch.tensor(6.0).double())
                for d, v in enumerate((i, j)):
                    inside = torch.zeros(2).double()
                    for k, edge in enumerate((v, v + 1)):
                        at = (edge / 6 - 0.4) / 0.3
                        cdf = torch.sigmoid((at - mean[:, d]) / log_scale[:, d].exp())
                        if edge in (0, 6):
                            cdf = torch.full_like(cdf, edge / 6)
                        inside = inside + (cdf if k else -cdf)
                    wanted = wanted + (weight[:, d].softmax(0) * inside).sum().log()
                assert float(found) == pytest.approx(float(wanted), abs=1e-10)
                total = total + found.exp() / 36
    assert float(total) == pytest.approx(1, abs=1e-10)
    means = (weight.softmax(0) * mean).sum(0) * 0.3 + 0.4
    torch.testing.assert_close(stage.decode(z)[0], means)


MISTAKES: dict[str, tuple[Any, str]] = {
    "one level": (lambda: VAE((2,), (1,), levels=1), "levels is at least 2"),
    "noise": (lambda: VAE((2,), (1,), levels=4, noise=0.1), "noise= is that of a Gau"),
    "patches": (
        lambda: VAE((1, 28, 28), (4, 14, 14), patch=4),
        "with patch=4: each size is that of the sample divided by 4 times",
    ),
    "whitening": (
        lambda: scoresde.first_stage(
            "vae", shape=(2,), latent=(1,), levels=4, standardize="whiten"
        ),
        "mixes columns",
    ),
    "scales": (
        lambda: scoresde.fit_stage(
            scoresde.first_stage("vae", shape=(2,), latent=(1,), levels=4),
            torch.randn(30, 2),
            steps=2,
            progress=False,
        ),
        r"takes x = \(v \+ u\)/4 in \[0, 1\)",
    ),
    "noises": (
        lambda: scoresde.first_stage("vae", shape=(2,), latent=(1,), levels=4).noise,
        "no one noise",
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_is_one_sentence(mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_a_seed_is_that_of_both_trainings(trained: tuple[Path, Path]) -> None:
    """The global generator differs from run to run and changes nothing."""
    data = scoresde.files.read(trained[0]).values
    recipe = RECIPES["fashion-mnist-latent"].with_stage(channels=4, steps=2, batch_size=4)
    found = []
    for i in range(2):
        torch.manual_seed(0)
        model = recipe.build(width=8, depth=1)
        torch.manual_seed(10 + i)
        recipe.fit(model, data, seed=3, steps=2, batch_size=4, progress=False)
        found.append(model)
    for part in ("stage", "model"):
        one, other = (getattr(model, part).state_dict() for model in found)
        assert all(torch.equal(one[key], other[key]) for key in one)
