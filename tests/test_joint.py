"""Joint training of a first stage and the score model of its latents.

Oracles: the bound in closed form for a linear stage, its gradient by quadrature over a mixture
prior, and the likelihood of probabilistic PCA, which the bound reaches.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoresde
from scoresde.density.bound_levels import level_at, level_range, onto_arc
from scoresde.model.joint import Joint
from scoresde.storage import records
from scoresde.storage.description import describe
from scoresde.storage.description import weights as tensors_of
from scoresde.storage.rebuild import rebuild
from scoresde.training.averaging import PROFILE_WIDTHS
from scoresde.training.joint import JointBound
from scoresde.training.noise_levels import stratified_quantiles


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def untrained(**options: Any) -> Any:
    torch.manual_seed(0)
    stage = scoresde.first_stage("vae", shape=(4,), latent=(2,), width=8)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8, depth=1, **options)
    return scoresde.Latent(stage, sde)


def rows(n: int = 300) -> Tensor:
    return 3 + torch.randn(n, 4, generator=generator(1)) @ torch.randn(
        4, 4, generator=generator(2)
    )


def weights(model: Any) -> dict[str, Tensor]:
    parts = {"stage": model.stage, "latents": model.model}
    found = {}
    for name, part in parts.items():
        found |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    return found


class Line(scoresde.StageNet):
    """Linear encoder and decoder, and one scale of q for each latent; all of them learnt."""

    def __init__(self, dim: int, latent: int, noise: float | None = None) -> None:
        super().__init__((latent,), noise=noise)
        g = generator(3)
        self.into = nn.Parameter(0.5 * torch.randn(latent, dim, generator=g))
        self.shift = nn.Parameter(0.2 * torch.randn(latent, generator=g))
        self.log_scale = nn.Parameter(torch.full((latent,), -0.7))
        self.out = nn.Parameter(0.5 * torch.randn(dim, latent, generator=g))
        self.mean = nn.Parameter(torch.zeros(dim))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x @ self.into.T + self.shift
        return mean, self.log_scale.exp().expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.out.T + self.mean


# ------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize(
    ("process", "weight"),
    [
        (scoresde.VPSDE(), "edm"),
        (scoresde.RectifiedFlow(), "min_snr"),
        (scoresde.VESDE(), "sigma2"),
    ],
    ids=["edm", "min_snr", "sigma2"],
)
def test_the_gradient_of_the_encoder_is_that_of_the_bound_by_quadrature(
    process: Any, weight: str
) -> None:
    """Whatever the score network's weight. Latents have a mixture in closed form as p(z), and
    units of their own. Eleven numbers, five standard errors: 1 false alarm in 200,000."""
    prior = scoresde.toy.GaussianMixture([[-1.2], [0.9]], [[0.3], [0.6]], [0.4, 0.6])
    center, unit = 0.4, 1.7
    latents = scoresde.oracle(prior, process).double()
    latents.mean.fill_(center)
    latents.scale.fill_(unit)
    stage = scoresde.FirstStage(Line(3, 1, noise=0.5), shape=(3,)).double()
    stage.mean.copy_(torch.tensor([1.0, 0.0, -2.0]))
    stage.scale.copy_(torch.tensor([2.0, 0.5, 1.0]))
    x = stage.to_data(1.5 * torch.randn(16, 3, generator=generator(5)).double())
    net = stage.net
    parameters = list(net.parameters())

    nodes, mass = (torch.as_tensor(y) for y in hermite(200))
    mean, scale = net.encode(stage.from_data(x))
    z = mean + scale * nodes  # (16, 200)
    start = math.sin(process.phi_min)  # VESDE takes data for a sample at σ_min
    law = prior.perturb(math.cos(process.phi_min), start)
    radius = float(process.radius(0.0))
    log_p = law.log_prob(((z - center) / unit / radius).reshape(-1, 1)).view_as(z)
    error = stage.from_data(x)[:, None] - net.decode(z[:, :, None])
    log_x = -0.5 * (error / 0.5).square() - math.log(0.5) - 0.5 * math.log(2 * math.pi)
    log_q = -0.5 * nodes.square() - scale.log() - 0.5 * math.log(2 * math.pi)
    each = log_x.sum(2) + log_p - math.log(unit * radius) - log_q
    bound = -(each @ mass).mean() / 3
    wanted = torch.autograd.grad(bound, parameters)
    bound = bound.detach()

    model = Joint(scoresde.Latent(stage, latents), stage, latents)
    objective = JointBound(weight)
    found = []
    values = []
    many = stage.from_data(x).repeat(250, 1)
    for k in range(40):
        g = generator(100 + k)
        q = stratified_quantiles(1, len(many), g, many.device)
        loss = objective(model.net, model, many, many, q, {}, 1.0, g)
        values.append(loss.detach())
        found.append(torch.cat([y.flatten() for y in torch.autograd.grad(loss, parameters)]))
    ours = torch.stack(found)
    error = ours.std(0) / math.sqrt(len(ours))
    theirs = torch.cat([y.flatten() for y in wanted])
    assert float(((ours.mean(0) - theirs) / error).abs().max()) < 5
    assert float(error.max()) < 0.03 * float(theirs.abs().max())
    spread = float(torch.stack(values).std()) / math.sqrt(len(values))
    assert abs(float(torch.stack(values).mean() - bound)) < 5 * spread
    assert spread < 0.02


@pytest.mark.parametrize("weight", ["edm", "min_snr"])
def test_the_score_network_has_the_gradient_of_its_own_weighted_error(weight: str) -> None:
    """By hand, ∫ cot θ·w(φ)·‖v − u*‖² dθ at the same latents, levels and noise."""
    process = scoresde.RectifiedFlow()
    model = untrained()
    model = scoresde.Latent(model.stage, scoresde.build(process, "mlp", shape=(2,), width=8))
    nn.init.normal_(model.model.net.out.weight, std=0.3)
    x = rows(64)
    model.stage.standardize(x)
    joint = Joint(model, model.stage, model.model)
    z0 = joint.from_data(x)
    q = torch.linspace(0.01, 0.99, 64).double()
    theirs = list(model.model.net.parameters())
    loss = JointBound(weight)(joint.net, joint, z0, z0, q, {}, 1.0, generator(4))
    ours = torch.autograd.grad(loss, theirs)

    g = generator(4)
    encoded = model.stage.encode(x)
    z = (encoded.mean + encoded.scale * torch.randn(64, 2, generator=g)).detach()
    eps = torch.randn(64, 2, generator=g)
    cos, sin, mass = level_at(level_range(model.model) * q)
    phi, turn = onto_arc(model.model, cos, sin)
    own = scoresde.WEIGHTS[weight](process, phi) * mass * level_range(model.model)
    c, s, turn = (y.float()[:, None] for y in (cos, sin, turn))
    v = turn * model.model.velocity_fn(raw=True)(c * z + s * eps, phi, None)
    error = (v - (c * eps - s * z)).square().sum(1)
    wanted = torch.autograd.grad((own * error).mean() / 4, theirs)
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5)


def test_joint_training_reaches_the_likelihood_of_probabilistic_pca() -> None:
    """After a stage whose KL weighed 0.3, with a bound 0.7 nats short: within 0.05 nats, where 500
    samples have a standard error of 0.008. Its noise is that of the data, to 5%."""
    g = generator()
    loadings = torch.randn(5, 2, generator=g) * torch.tensor([1.5, 0.8])
    covariance = loadings @ loadings.T + 0.25 * torch.eye(5)
    truth = torch.distributions.MultivariateNormal(torch.full((5,), 2.0), covariance)
    x, test = (
        2 + torch.randn(n, 2, generator=g) @ loadings.T + 0.5 * torch.randn(n, 5, generator=g)
        for n in (4000, 500)
    )
    torch.manual_seed(0)
    stage = scoresde.FirstStage(Line(5, 2), shape=(5,), standardize="none")
    model = scoresde.Latent(stage, scoresde.build("vp", "mlp", shape=(2,), width=32, depth=1))
    how: dict[str, Any] = {"batch_size": 128, "progress": False, "seed": 0, "ema": 40}
    scoresde.fit_stage(stage, x, kl=0.3, steps=300, lr=3e-2, **how)
    scoresde.fit(model, x, steps=150, lr=1e-2, validation=None, **how)
    before = gap(model, truth, test)
    units = model.model.mean.clone(), model.model.scale.clone()
    scoresde.fit_joint(model, x, steps=450, lr=1e-2, **how)
    after = gap(model, truth, test)
    assert float(before.mean()) > 0.3
    error = float(after.std()) / math.sqrt(len(test))
    assert error < 0.012
    assert -5 * error < float(after.mean()) < 0.05
    assert stage.noise == pytest.approx(0.5, rel=0.05)
    assert torch.equal(model.model.mean, units[0])
    assert torch.equal(model.model.scale, units[1])


def gap(model: Any, truth: Any, x: Tensor) -> Tensor:
    how: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}
    bound = scoresde.latent_bound(model, x, draws=1, seed=1, **how)
    return truth.log_prob(x) - bound.log_prob


def hermite(n: int) -> Any:
    """Nodes and weights of expectations over N(0, 1)."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(n)
    return nodes, mass / mass.sum()


# ------------------------------------------------------------------------------- runs and files


def test_a_killed_run_ends_as_one_that_was_not_and_is_loaded_as_a_latent(tmp_path: Path) -> None:
    """Also into a model that was never fitted, in another process say."""
    x = rows()
    y = torch.arange(300) % 3
    how: dict[str, Any] = {"batch_size": 32, "progress": False, "given": {"y": y}}
    two_stage = untrained(classes=3)
    scoresde.fit_stage(two_stage.stage, x, steps=5, progress=False, seed=0)
    scoresde.fit(two_stage, x, steps=5, seed=0, validation=None, **how)
    begin = scoresde.save(two_stage, tmp_path / "begin")

    def run(model: Any, folder: str, resume: bool = False) -> None:
        kept = scoresde.Checkpoints(tmp_path / folder, every=5, resume=resume)
        validation = (x[:50], {"y": y[:50]})
        scoresde.fit_joint(
            model, x, steps=20, checkpoints=kept, seed=2, validation=validation, **how
        )

    whole = scoresde.load(begin)
    run(whole, "whole")
    moved = weights(whole)
    for part, before in (("stage", two_stage.stage), ("latents", two_stage.model)):
        for key, _ in before.net.named_parameters():
            for net in ("net", "ema"):
                name = f"{part}.{net}.{key}"
                assert not torch.equal(moved[name], weights(two_stage)[name]), name

    model = scoresde.load(begin)
    outputs = model.stage.net.outputs
    calls = []

    def killed(z: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 15:
            raise InterruptedError
        return outputs(z)

    model.stage.net.outputs = killed
    with pytest.raises(InterruptedError):
        run(model, "parts")
    midway = scoresde.load(tmp_path / "parts")
    assert isinstance(midway, scoresde.Latent)
    again = untrained(classes=3)
    run(again, "parts", resume=True)
    loaded = scoresde.load(tmp_path / "parts")
    assert isinstance(loaded, scoresde.Latent)
    for found in (again, loaded):
        assert weights(found).keys() == moved.keys()
        for key, value in weights(found).items():
            assert torch.equal(value, moved[key]), key
    assert loaded.model.learnt == whole.model.learnt
    drawn = [
        scoresde.sample(each.given(y=1), 5, seed=3, steps=5) for each in (whole, again, loaded)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_averages_of_both_parts_are_composed_afterwards(tmp_path: Path) -> None:
    """That of a width that was stored is the stored one."""
    model = untrained()
    x = rows()
    scoresde.fit_stage(model.stage, x, steps=2, progress=False)
    how: dict[str, Any] = {"ema": scoresde.Averaging(snapshots=2), "checkpoints": tmp_path}
    scoresde.fit_joint(model, x, steps=8, progress=False, **how)
    found = scoresde.posthoc_ema(tmp_path, PROFILE_WIDTHS[1])
    assert isinstance(found, scoresde.Latent)
    stored = records.read(tmp_path, "average-00000008")[1]
    for part, own in (("stage", found.stage), ("latents", found.model)):
        for name, value in own.networks()[0].named_parameters():
            torch.testing.assert_close(value.data, stored[f"1.{part}.{name}"])
    assert float(found.stage.reconstruct(x).sub(model.stage.reconstruct(x)).abs().max()) > 0


def _rank(rank: int, folder: str) -> None:
    import accelerate

    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= own | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29513"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    model = untrained()
    x = rows()
    model.stage.standardize(x)
    before = weights(untrained())
    how: dict[str, Any] = {"batch_size": 64, "progress": False, "validation": x[:40]}
    how["backend"] = accelerate.Accelerator(cpu=True)
    history = scoresde.fit_joint(model, x, steps=6, seed=1, **how)
    found = weights(model)
    moved = [name for name, value in before.items() if not torch.equal(found[name], value)]
    torch.save((found, history.loss, history.validation, moved), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_one_model(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one[1:] == other[1:]
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name
    for part in ("stage.net.encoder", "stage.net.decoder", "latents.net"):
        assert any(name.startswith(part) for name in one[3]), part


@pytest.mark.filterwarnings("ignore:the stage of a joint training is of a version")
def test_records_of_both_parts_are_read_and_damaged_ones_refused() -> None:
    model = untrained(vector=2)
    x = rows()
    given = {"vector": 5 + 3 * torch.randn(300, 2, generator=generator(6))}
    scoresde.fit_stage(model.stage, x, steps=2, progress=False)
    scoresde.fit_joint(model, x, given=given, steps=2, progress=False)
    joint = Joint(model, model.stage, model.model)
    about = describe(joint)
    tensors = tensors_of(joint)
    again = rebuild(about, tensors)
    assert isinstance(again, scoresde.Latent)
    assert weights(again).keys() == weights(model).keys()
    for key, value in weights(again).items():
        assert torch.equal(value, weights(model)[key]), key
    parts = about["parts"]
    damaged: list[Any] = [
        {**about, "parts": None},
        {**about, "parts": {"stage": parts["stage"]}},
        {**about, "parts": {"stage": parts["latents"], "latents": parts["stage"]}},
        {**about, "parts": {"stage": about, "latents": about}},
        {**about, "shape": "x"},
        {name: value for name, value in about.items() if name != "averaged"},
    ]
    for record in damaged:
        with pytest.raises(scoresde.CheckpointError, match="does not describe a model"):
            rebuild(record, tensors)
    del tensors["latents_mean"]
    with pytest.raises(scoresde.CheckpointError, match="mean"):
        rebuild(about, tensors)


def test_a_score_model_that_was_never_fitted_measures_the_latents_first() -> None:
    """As those of `fit` are, whose mean and scale of 300 × 2 draws agree to five errors."""
    model = untrained()
    x = rows()
    scoresde.fit_stage(model.stage, x, steps=5, progress=False, seed=0)
    stage = {key: value.clone() for key, value in model.stage.net.state_dict().items()}
    q = model.stage.encode(x)
    spread = (q.mean.var(0, correction=0) + q.scale.square().mean(0)).sqrt().detach()
    scoresde.fit_joint(model, x, steps=1, progress=False, seed=0)
    torch.testing.assert_close(model.model.scale.float(), spread, rtol=0.21, atol=0)
    off = (model.model.mean.float() - q.mean.mean(0)).abs() / spread
    assert float(off.max()) < 5 / math.sqrt(300)
    assert any(not torch.equal(stage[key], y) for key, y in model.stage.net.state_dict().items())


def test_names_of_columns_and_words_go_to_their_parts(tmp_path: Path) -> None:
    import pandas

    model = untrained(classes=2)
    frame = pandas.DataFrame(rows(60).numpy(), columns=["a", "b", "c", "d"])
    kind = pandas.Series(["cat", "dog"] * 30)
    scoresde.fit_stage(model.stage, frame, steps=2, progress=False)
    how: dict[str, Any] = {"steps": 4, "progress": False, "checkpoints": tmp_path / "run"}
    log = scoresde.Log(tmp_path / "log.jsonl", samples=2, given={"y": "dog"})
    scoresde.fit_joint(model, frame, given={"y": kind}, log=log, **how)
    loaded = scoresde.load(tmp_path / "run")
    for found in (model, loaded):
        assert found.stage.schema.columns == ("a", "b", "c", "d")
        assert found.model.schema.columns == ()
        assert found.model.schema.words == {"y": ("cat", "dog")}
        scoresde.sample(found.given(y="dog"), 2, steps=2)


def test_vectors_and_their_scores_are_in_every_record(tmp_path: Path) -> None:
    model = untrained(vector=2)
    x = rows(200)
    c = torch.stack([x[:, 0], (4 * x[:, 1]).exp()], 1)
    scoresde.fit_stage(model.stage, x, steps=2, progress=False)
    folder = scoresde.Checkpoints(tmp_path / "run", every=2)
    how: dict[str, Any] = {"progress": False, "checkpoints": folder, "steps": 4}
    scoresde.fit_joint(model, x, given={"vector": c}, **how)
    assert model.model.conditions.scored() == {"vector": 1}
    records.remove(tmp_path / "run", "model")  # that of the last step is left
    loaded = scoresde.load(tmp_path / "run")
    wanted = model.model.conditions.state_dict()
    found = loaded.model.conditions.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_what_can_not_be_trained_together_is_refused_in_a_sentence(tmp_path: Path) -> None:
    x = rows(40)
    model = untrained()
    unfitted = untrained()
    scoresde.fit_stage(model.stage, x, steps=2, progress=False)
    stage = model.stage

    def around(sde: Any) -> Any:
        return scoresde.Latent(stage, sde)

    vq = scoresde.first_stage("vq", shape=(4,), latent=(2,), width=8).standardize(x)
    frozen = scoresde.load(scoresde.save(stage, tmp_path / "stage"))
    frozen.net.requires_grad_(False)
    velocity = scoresde.build("rectified", "mlp", shape=(2,), width=8)
    velocity.outcome = "velocity"
    learned = scoresde.build("vp", "mlp", shape=(2,), width=8, variance="learned")
    exact = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    guided = scoresde.temper(model, 2.0)
    cases: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "fit_joint takes a Latent, got FirstStage", lambda:
            scoresde.fit_joint(stage, x)),
        (TypeError, "fit_joint takes a Latent, got ScoreSDE: write Latent(stage", lambda:
            scoresde.fit_joint(model.model, x)),
        (TypeError, "fit_joint takes a Latent, got Composed", lambda:
            scoresde.fit_joint(guided, x)),
        (ValueError, "fit_joint takes the whole model, not one conditioned", lambda:
            scoresde.fit_joint(untrained(classes=2).given(y=1), x)),
        (TypeError, "made from others: fit_joint those", lambda:
            scoresde.fit_joint(around(scoresde.temper(model.model, 2.0)), x)),
        (TypeError, "a vector-quantized stage has no density q(z|x)", lambda:
            scoresde.fit_joint(scoresde.Latent(vq, model.model), x)),
        (ValueError, "this first stage was never fitted: scoresde.fit_stage", lambda:
            scoresde.fit_joint(unfitted, x)),
        (ValueError, "the first stage is frozen", lambda:
            scoresde.fit_joint(scoresde.Latent(frozen, model.model), x)),
        (ValueError, "the score model is frozen", lambda: scoresde.fit_joint(around(exact), x)),
        (ValueError, "this score model has learnt 'velocity'", lambda:
            scoresde.fit_joint(around(velocity), x)),
        (ValueError, "leaves the variance untrained", lambda:
            scoresde.fit_joint(around(learned), x)),
        (TypeError, "a Latent is fitted to tensors or arrays, got a Table", lambda:
            scoresde.fit_joint(model, scoresde.Table(x))),
        (TypeError, "fit_joint has its own objective", lambda:
            scoresde.fit_joint(model, x, objective="denoising")),
        (TypeError, "fit_joint pairs latents with noise as they come", lambda:
            scoresde.fit_joint(model, x, coupling="minibatch_ot")),
        (ValueError, "unknown weight 'edn'", lambda: scoresde.fit_joint(model, x, weight="edn")),
        (ValueError, "data has shape (40, 2), wanted (batch, 4)", lambda:
            scoresde.fit_joint(model, x[:, :2])),
        (ValueError, "steps is at least 1", lambda: scoresde.fit_joint(model, x, steps=0)),
        (TypeError, "Pairs are the ends of a ScoreSDE's paths", lambda:
            scoresde.fit_joint(model, scoresde.Pairs(x, x))),
    ]  # fmt: skip
    for kind, text, call in cases:
        with pytest.raises(kind, match=re.escape(text)):
            call()
