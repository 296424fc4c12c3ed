"""Joint training of a first stage and the score model of its latents.

Oracles: the bound in closed form for a linear stage, its gradient by quadrature over a mixture
prior, and the likelihood of probabilistic PCA, which the bound reaches.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoresde
from scoresde.model.joint import Joint
from scoresde.training.joint import JointBound


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def untrained(**options: Any) -> Any:
    torch.manual_seed(0)
    stage = scoresde.first_stage("vae", shape=(4,), latent=(2,), width=8)
    sde = scoresde.build("vp", "mlp", shape=(2,), width=8, depth=1, **options)
    return scoresde.Latent(stage, sde)


def rows(n: int = 300) -> Tensor:
    return 3 + torch.randn(n, 4, generator=generator(1)) @ torch.randn(4, 4, generator=generator(2))


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
    ("process", "predict", "weight"),
    [
        (scoresde.VPSDE(), "edm", "edm"),
        (scoresde.RectifiedFlow(), "x0", "min_snr"),
        (scoresde.VESDE(), "eps", "sigma2"),
    ],
    ids=["edm", "min_snr", "sigma2"],
)
def test_the_gradient_of_the_encoder_is_that_of_the_bound_by_quadrature(
    process: Any, predict: str, weight: str
) -> None:
    """Whatever the score network's weight. Latents have a mixture in closed form as p(z), and
    units of their own. Eight numbers, five standard errors: 1 false alarm in 200,000."""
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

    latents.predict = predict if predict == "edm" else latents.predict
    model = Joint(scoresde.Latent(stage, latents), stage, latents)
    objective = JointBound(weight)
    found = []
    values = []
    many = stage.from_data(x).repeat(250, 1)
    for k in range(40):
        g = generator(100 + k)
        q = scoresde.training.noise_levels.stratified_quantiles(1, len(many), g, many.device)
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
