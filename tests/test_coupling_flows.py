"""Coupling flows: inverses and log-determinants, densities that integrate to 1, as sources."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import scoresde
from scoresde import toy
from scoresde.backbones.coupling_layers import CouplingLayers


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rough(n: int, **options: Any) -> CouplingLayers:
    """A network of random weights in float64, far from the identity."""
    torch.manual_seed(n)
    net = CouplingLayers((n,), width=16, **options).double()
    for p in net.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return net


@pytest.mark.parametrize("kind", ["affine", "additive"])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_inverse_and_log_determinant_are_those_of_the_jacobian(n: int, kind: str) -> None:
    net = rough(n, kind=kind)
    x = torch.randn(5, n, generator=generator(), dtype=torch.float64)
    z, log_det = net(x)
    torch.testing.assert_close(net.inverse(z), x, atol=1e-10, rtol=0)
    for row, found in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: net(v[None])[0][0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], found, atol=1e-10, rtol=0)
    if kind == "additive":  # volumes change by the constants of the last scaling alone
        torch.testing.assert_close(log_det, net.log_scale.sum().expand(5))


@pytest.mark.parametrize("kind", ["affine", "additive"])
@pytest.mark.parametrize("n", [2, 5])
def test_with_the_same_weights_it_is_the_flow_of_zuko(n: int, kind: str) -> None:
    """Zuko's layers with our bounded scale as their map, and our perceptrons as their networks:
    its features are in order, and its outputs (shift, scale) by feature."""
    zuko = pytest.importorskip("zuko")
    from torch.distributions import AffineTransform

    class Shift(AffineTransform):
        def __init__(self, shift: Tensor, raw: Tensor | None = None) -> None:
            scale = torch.ones_like(shift)
            if raw is not None:
                scale = (2 * torch.tanh(raw / 2)).exp()
            super().__init__(shift, scale)

    net = rough(n, kind=kind, layers=6)
    numbers = 2 if kind == "affine" else 1
    parts = []
    for layer in net.layers:
        kept, columns = layer.kept.sort()
        moved, rows = layer.moved.sort()
        mask = torch.zeros(n, dtype=torch.bool).index_fill(0, kept, True)
        theirs = zuko.flows.coupling.GeneralCouplingTransform(
            n,
            mask=mask,
            univariate=Shift,
            shapes=((),) * numbers,
            hidden_features=(16, 16),
            activation=torch.nn.SiLU,
        ).double()
        weights = layer.net.state_dict()
        weights["0.weight"] = weights["0.weight"][:, columns]
        order = torch.stack([rows + k * len(moved) for k in range(numbers)], 1).flatten()
        last = str(max(int(name.partition(".")[0]) for name in weights))
        for name in (f"{last}.weight", f"{last}.bias"):
            weights[name] = weights[name][order]
        theirs.hyper.load_state_dict(weights)
        parts.append(theirs)
    base = torch.distributions.Normal(torch.zeros(n).double(), (-net.log_scale).exp().double())
    flow = zuko.flows.Flow(parts, lambda *_: torch.distributions.Independent(base, 1))
    x = torch.randn(50, n, generator=generator(), dtype=torch.float64)
    z, log_det = net(x)
    ours = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + log_det
    torch.testing.assert_close(flow().log_prob(x), ours, atol=1e-10, rtol=0)


def test_a_class_has_an_inverse_of_its_own() -> None:
    net = rough(3, classes=4, vector=2)
    x = torch.randn(6, 3, generator=generator(), dtype=torch.float64)
    given = {"y": torch.arange(6) % 4, "vector": torch.randn(6, 2, generator=generator()).double()}
    z, _ = net(x, None, **given)
    torch.testing.assert_close(net.inverse(z, **given), x, atol=1e-10, rtol=0)
    assert (net.inverse(z, given["y"].flip(0), given["vector"]) - x).abs().max() > 0.1
    assert (net(x)[0] - z).abs().max() > 0.1


@pytest.mark.parametrize("n", [1, 2])
def test_its_density_integrates_to_one(n: int) -> None:
    """In the units of the data, whitened."""
    flow = scoresde.coupling_flow(shape=(n,), layers=4, width=8)
    flow.net = rough(n, layers=4)
    flow.mean.fill_(3.0)
    flow.scale.copy_(torch.tensor([2.0, 0.5][:n]))
    if n == 2:
        flow.root.copy_(torch.linalg.cholesky(torch.tensor([[1.0, 0.6], [0.6, 1.0]])))
    axes = [3 + s * torch.linspace(-60, 60, 701).double() for s in (2.0, 0.5)[:n]]
    grid = torch.cartesian_prod(*axes).reshape(-1, n)
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    with torch.no_grad():
        total = float(flow.log_prob(grid).exp().sum()) * cell
    assert total == pytest.approx(1, abs=1e-3)


def test_a_gaussian_is_learnt_exactly_and_survives_a_file(tmp_path: Path) -> None:
    """A correlated Gaussian is the untrained flow of whitened data: KL below 5e-3 in nats."""
    root = torch.tensor([[1.0, 0.0], [3.0, 0.5]])
    x = 5 + torch.randn(20_000, 2, generator=generator()) @ root.T
    flow = scoresde.coupling_flow(shape=(2,), layers=2, width=8)
    scoresde.fit(flow, x, steps=30, ema=5, generator=generator(), progress=False)
    truth = torch.distributions.MultivariateNormal(torch.full((2,), 5.0), scale_tril=root)
    new = truth.sample((5000,))
    assert abs(float((truth.log_prob(new) - flow.log_prob(new)).mean())) < 5e-3
    loaded = scoresde.load(scoresde.save(flow, tmp_path / "flow"))
    assert isinstance(loaded, scoresde.CouplingFlow)
    assert torch.equal(loaded.log_prob(new), flow.log_prob(new))
    drawn = flow.sample(4000, generator())
    assert torch.equal(drawn, loaded.sample(4000, generator()))
    torch.testing.assert_close(drawn.mT.cov(), truth.covariance_matrix, atol=0.6, rtol=0)


def test_a_class_label_conditions_samples_and_density() -> None:
    y = torch.arange(4000) % 2
    x = torch.randn(4000, 1, generator=generator()) + 6 * y[:, None]
    flow = scoresde.coupling_flow(shape=(1,), classes=2, layers=2, width=8)
    scoresde.fit(flow, x, given={"y": y}, steps=300, lr=1e-2, ema=20, progress=False)
    drawn = flow.sample(1000, generator(), given={"y": torch.arange(1000) % 2})
    assert float(drawn[::2].mean()) == pytest.approx(0, abs=0.5)
    assert float(drawn[1::2].mean()) == pytest.approx(6, abs=0.5)
    at = torch.tensor([[6.0]])
    likelier = flow.log_prob(at, given={"y": 1}) - flow.log_prob(at, given={"y": 0})
    assert float(likelier) > 3


def test_as_a_source_its_density_is_the_prior_of_a_flow() -> None:
    """∫p = 1 of a model with velocity 0 between source and data, whose density is the source's."""
    flow = scoresde.coupling_flow(shape=(1,), layers=4, width=8)
    flow.net = rough(1, layers=4)
    mixture = toy.GaussianMixture([[0.0]], 1.0)
    sde = scoresde.oracle(mixture, scoresde.RectifiedFlow()).double()
    sde.source = flow
    grid = torch.linspace(-100, 100, 801).double()[:, None]
    log_p = scoresde.log_prob(sde, grid, rtol=1e-6, atol=1e-6)
    assert float(log_p.exp().sum() * 0.25) == pytest.approx(1, abs=1e-3)
    x = scoresde.sample(sde, 5, generator=generator())
    assert x.shape == (5, 1)
    assert x.isfinite().all()


def test_numbers_of_any_precision_have_the_density_of_the_network() -> None:
    """Doubles from NumPy, as `fit` takes them, and conditions; halves in a network of halves."""
    x = torch.randn(200, 2, generator=generator(), dtype=torch.float64)
    v = x.sum(1, keepdim=True)
    flow = scoresde.coupling_flow(shape=(2,), layers=2, width=8, vector=1)
    scoresde.fit(flow, x.numpy(), given={"vector": v.numpy()}, steps=5, progress=False)
    found = flow.log_prob(x.numpy(), given={"vector": v.numpy()})
    assert found.dtype == torch.float64
    exact = flow.double().log_prob(x, given={"vector": v})
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)
    flow.half()
    rough = flow.log_prob(x, given={"vector": v})
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0)
    drawn = flow.sample(200, generator(), given={"vector": v})
    assert bool(drawn.isfinite().all())


def test_its_gradient_by_doubles_is_that_of_floats() -> None:
    flow = scoresde.coupling_flow(shape=(2,), layers=2, width=8)
    x = torch.randn(5, 2, generator=generator(), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    torch.testing.assert_close(slope, -x.detach(), atol=1e-5, rtol=0)  # of N(0, I)


TABLE = scoresde.Table({"a": [0.5, 1.7, 2.1], "b": [3, 4, 9]}, bounds={"a": (0, None)})
MISTAKES: dict[str, tuple[Any, str]] = {
    "of samples": (lambda f: f.sample(0), "n is at least 1"),
    "of shapes": (lambda f: f.log_prob(torch.ones(3, 3)), r"wanted \(batch, 2\)"),
    "of NaN": (lambda f: f.log_prob(torch.full((1, 2), math.nan)), "NaN"),
    "of conditions": (lambda f: f.sample(2, given={"y": 1}), "takes no condition y"),
    "of verbs": (lambda f: scoresde.sample(f), "a flow has .sample"),
    "of kinds": (
        lambda f: scoresde.coupling_flow(shape=(2,), kind="afine"),
        "Did you mean 'affine'",
    ),
    "of options": (lambda f: scoresde.coupling_flow(shape=(2,), layer=3), "mean 'layers'"),
    "of entries": (lambda f: scoresde.coupling_flow(shape=()), "no entries"),
    "of constants": (
        lambda f: scoresde.fit(f, torch.tensor([[1.0, 2.0], [2.0, 2.0], [3.0, 2.0]]), steps=2),
        r"features \[1\] are constant",
    ),
    "of tables": (
        lambda f: scoresde.fit(f, TABLE, steps=2),
        "a CouplingFlow is fitted to tensors or arrays, got a Table",
    ),
    "of words": (
        lambda f: scoresde.fit(
            scoresde.coupling_flow(shape=(1,), classes=2),
            scoresde.Table({"x": [0.5, 1.7, 2.1], "y": ["a", "b", "a"]}),
            steps=2,
        ),
        "a CouplingFlow is fitted to tensors or arrays, got a Table",
    ),
    "of held-out tables": (
        lambda f: scoresde.fit(f, torch.randn(9, 2), validation=TABLE, steps=2),
        "a CouplingFlow is fitted to tensors or arrays, got a Table",
    ),
    "of couplings": (
        lambda f: scoresde.fit(f, torch.randn(9, 2), coupling="minibatch_ot"),
        "coupling= joins data",
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
@pytest.mark.filterwarnings("ignore:features .* are constant")
def test_a_mistake_is_one_sentence(mistake: str) -> None:
    call, message = MISTAKES[mistake]
    flow = scoresde.coupling_flow(shape=(2,), layers=2, width=8)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call(flow)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_moons() -> None:
    """KL to the truth in nats after 25 to 31 CPU s: .011, .014 and .013 at seeds 0, 1 and 2."""
    torch.manual_seed(0)
    moons = toy.Moons()
    flow = scoresde.coupling_flow(shape=(2,))
    scoresde.fit(flow, moons, steps=2800, ema=100, generator=generator(), progress=False)
    x = moons.sample(50_000, generator(1))
    kl = moons.log_prob(x) - flow.log_prob(x)
    assert float(kl.mean()) < 0.015


def test_latents_are_standard_normal() -> None:
    x: Tensor = toy.Moons().sample(2000, generator())
    flow = scoresde.coupling_flow(shape=(2,), layers=4, width=16)
    scoresde.fit(flow, x, steps=200, ema=20, generator=generator(), progress=False)
    z, _ = flow.networks()[0](flow.standardization.spread(flow.from_data(x)))
    assert float(z.mean(0).abs().max()) < 0.15
    assert float((z.std(0) - 1).abs().max()) < 0.15
