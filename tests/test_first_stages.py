"""First stages against closed forms: PPCA, Lloyd's algorithm, Gaussian KLs, exact log p."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

import scoresde
from scoresde.backbones import VAE
from scoresde.backbones.codebook import VQ, StraightThrough
from scoresde.model.autoencoder import Encoded


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(scoresde.StageNet):
    """x̂ = A·z, and q(z|x) of a linear mean and a constant scale."""

    def __init__(self, d: int, k: int) -> None:
        super().__init__((k,))
        self.up = nn.Linear(k, d)
        self.down = nn.Linear(d, k)
        self.log_scale = nn.Parameter(torch.zeros(k))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.down(x)
        return mean, self.log_scale.exp().expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        out: Tensor = self.up(z)
        return out


# ------------------------------------------------------------------------------- the bound


def test_a_linear_autoencoder_reaches_the_likelihood_of_ppca() -> None:
    """Tipping & Bishop 1999: at the maximum, noise² is the mean of the eigenvalues left out, and
    the bound is exact, as q(z|x) is Gaussian."""
    torch.manual_seed(0)
    g = generator(1)
    x = torch.randn(4000, 1, generator=g) @ torch.tensor([[2.0, -1.0, 1.0]])
    x = x + 0.5 * torch.randn(4000, 3, generator=g) + 3
    stage = scoresde.FirstStage(Linear(3, 1), shape=(3,), standardize="none")
    history = scoresde.fit_stage(stage, x, steps=400, lr=3e-2, generator=g, progress=False)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    noise2 = float(eigenvalues[:2].mean())
    exact = -0.5 * (
        3 * math.log(2 * math.pi) + math.log(eigenvalues[2]) + 2 * math.log(noise2) + 3
    )
    assert stage.noise**2 == pytest.approx(noise2, rel=0.05)
    tail = torch.tensor(history.loss[-3:]).mean()  # of 120 steps of 512
    assert float(-3 * tail) == pytest.approx(exact, abs=0.06)


def test_the_learnt_noise_stops_where_a_latent_says_all_of_x() -> None:
    stage = scoresde.first_stage("vae", shape=(2,), latent=(2,), width=8)
    stage.net.learnt_noise.data.fill_(-200.0)
    assert stage.noise == pytest.approx(1e-3)
    x = torch.randn(10, 2, generator=generator())
    z0 = stage.from_data(x)
    loss = scoresde.Autoencoding()(stage.net, stage, z0, z0, z0[:, 0], {}, 1.0, generator())
    loss.backward()
    assert bool(loss.isfinite())
    assert float(stage.net.learnt_noise.grad) == 0
    assert all(bool(p.grad.isfinite().all()) for p in stage.net.parameters())


def objective_of(stage: Any, x: Tensor, objective: Any, seed: int = 0) -> Tensor:
    z0 = stage.from_data(x).to(stage.state_dtype)
    stage.train()
    q = torch.rand(len(x)).double()
    value: Tensor = objective(stage.net, stage, z0, 0 * z0, q, {}, 1.0, generator(seed))
    return value.detach() * stage.dim


@pytest.mark.parametrize("shape", [(6,), (2, 8, 8)])
def test_the_objective_is_the_bound_by_torchs_distributions(shape: tuple[int, ...]) -> None:
    latent = (2,) if len(shape) == 1 else (3, 2, 2)
    torch.manual_seed(1)
    stage = scoresde.first_stage(
        "vae", shape=shape, latent=latent, channels=4, width=8, noise=0.3
    ).double()
    x = 5 + 2 * torch.randn(7, *shape, generator=generator(), dtype=torch.float64)
    stage.standardize(x)
    got = objective_of(stage, x, scoresde.Autoencoding(kl=0.5), seed=3)
    q = Normal(*stage.encode(x))
    noise = torch.randn(7, *latent, generator=generator(3), dtype=torch.float64)
    z = q.mean + q.stddev * noise
    sigma = 0.3 * stage.scale.expand(shape)
    likelihood = Independent(Normal(stage.decode(z), sigma), len(shape)).log_prob(x)
    assert torch.allclose(stage.log_likelihood(x, z), likelihood, rtol=1e-6)
    kl = kl_divergence(q, Normal(0.0, 1.0)).flatten(1).sum(1)
    volume = float(sigma.log().sum()) - math.prod(shape) * math.log(0.3)
    bound = (likelihood + volume - 0.5 * kl).mean()
    assert float(got) == pytest.approx(-float(bound.detach()), rel=1e-6)


def test_free_bits_hold_the_kl_of_each_channel_from_below() -> None:
    net = scoresde.FIRST_STAGES.build("vae", (1, 4, 4), latent=(2, 2, 2), channels=4)
    mean = torch.stack([torch.full((2, 2), 1.0), torch.full((2, 2), 0.1)]).expand(5, 2, 2, 2)
    one = torch.ones_like(mean)
    assert float(net.penalty((mean, one), 1.0, 0.0)) == pytest.approx(4 * 0.5 + 4 * 0.005)
    assert float(net.penalty((mean, one), 1.0, 0.7)) == pytest.approx(2.0 + 0.7)
    assert float(net.penalty((mean, one), 0.5, 3.0)) == pytest.approx(3.0)
    mean = mean.clone().requires_grad_()
    net.penalty((mean, one), 1.0, 0.7).backward()
    assert float(mean.grad[:, 1].abs().max()) == 0  # below the free bits nothing pulls
    assert float(mean.grad[:, 0].abs().min()) > 0


def test_a_users_loss_is_given_samples_in_their_own_units() -> None:
    seen = []

    def loss(x_hat: Tensor, x: Tensor) -> Tensor:
        seen.append((x_hat, x))
        return (x_hat - x).abs().sum(1)

    stage = scoresde.first_stage("vae", shape=(3,), latent=(2,), width=8)
    x = 100 + 10 * torch.randn(50, 3, generator=generator())
    stage.standardize(x)
    plain = objective_of(stage, x, scoresde.Autoencoding())
    more = objective_of(stage, x, scoresde.Autoencoding(extra=loss))
    x_hat, same = seen[0]
    assert torch.allclose(same, x, rtol=1e-5)
    assert float(more - plain) == pytest.approx(
        float((x_hat - x).abs().sum(1).mean().detach()), rel=1e-3
    )
    with pytest.raises(ValueError, match=r"extra returned \(50, 3\), wanted .* \(50,\)"):
        objective_of(stage, x, scoresde.Autoencoding(extra=lambda a, b: a - b))


@pytest.mark.slow
def test_images_and_vectors_with_constants_are_reconstructed() -> None:
    """Two patterns with random weights: two latent numbers explain all but the noise."""
    g = generator(2)
    torch.manual_seed(2)
    weights = torch.rand(2000, 2, generator=g)
    patterns = torch.randn(2, 1, 8, 8, generator=g)
    clean = torch.einsum("bk,kcij->bcij", weights, patterns)
    stage = scoresde.first_stage("vae", shape=(1, 8, 8), latent=(4, 2, 2), channels=8)
    scoresde.fit_stage(stage, clean, kl=1e-3, steps=120, batch_size=32, lr=1e-2, progress=False)
    error = (stage.reconstruct(clean[:200]) - clean[:200]).square().mean() / clean.var()
    assert error < 0.1
    rows = torch.cat([weights, torch.full((2000, 1), 7.0)], 1)
    stage = scoresde.first_stage("vae", shape=(3,), latent=(2,), width=32)
    with pytest.warns(UserWarning, match="constant"):
        scoresde.fit_stage(stage, rows, kl=1e-3, steps=150, batch_size=64, lr=1e-2, progress=False)
    back = stage.reconstruct(rows[:200])
    assert bool((back[:, 2] == 7).all())
    assert float((back - rows[:200])[:, :2].square().mean()) < 0.1 * float(weights.var())


# ------------------------------------------------------------------------------- codebooks


def codebook(decay: float, revive: float = 0.0, codes: int = 4) -> VQ:
    torch.manual_seed(0)
    return VQ((2,), latent=(2,), codes=codes, decay=decay, revive=revive, width=4)


def settled(net: VQ, z: Tensor) -> None:
    quantized, index = net.quantized(z)
    net.settle((z, quantized, index))


def test_decay_0_is_one_step_of_lloyds_algorithm() -> None:
    net = codebook(decay=0.0)
    z = torch.randn(40, 2, generator=generator(4))
    z = z[torch.cdist(z, net.codebook).argmin(1) != 3]  # leave one code unused
    index = torch.cdist(z, net.codebook).argmin(1)
    wanted = [z[index == k].mean(0) if (index == k).any() else net.codebook[k] for k in range(4)]
    settled(net, z)
    torch.testing.assert_close(net.codebook, torch.stack(wanted))
    assert net.count.tolist() == torch.bincount(index, minlength=4).tolist()


def test_counts_start_at_1_and_decay() -> None:
    net = codebook(decay=0.9)
    before = net.codebook.clone()
    z = before[1] + 0.01 * torch.randn(10, 2, generator=generator())
    settled(net, z)
    torch.testing.assert_close(net.count, torch.tensor([0.9, 0.9 + 1.0, 0.9, 0.9]))
    mean = (0.9 * before[1] + 0.1 * z.sum(0)) / 1.9
    wanted = torch.stack([before[0], mean, before[2], before[3]])
    torch.testing.assert_close(net.codebook, wanted)
    share = torch.tensor([0.9, 1.9, 0.9, 0.9]) / 4.6
    assert net.perplexity == pytest.approx(float((-(share * share.log()).sum()).exp()))


def test_reviving_a_code_resets_embedding_count_and_sum() -> None:
    net = codebook(decay=0.9, revive=0.95)
    z = net.codebook[1] + 0.01 * torch.randn(10, 2, generator=generator())
    settled(net, z)
    for k in (0, 2, 3):  # their counts fell to 0.9
        assert net.count[k] == 1
        assert torch.equal(net.sum[k], net.codebook[k])
        assert bool((net.codebook[k] == z).all(1).any())
    settled(net, z)  # a stale sum would draw them back
    assert float(torch.cdist(net.codebook, z).amin(1).max()) < 0.05


def test_the_loss_is_of_the_codes_before_they_move() -> None:
    torch.manual_seed(5)
    stage = scoresde.first_stage("vq", shape=(2,), latent=(2,), codes=4, width=4, decay=0.0)
    x = torch.randn(30, 2, generator=generator())
    before = stage.net.codebook.clone()
    got = objective_of(stage, x, scoresde.Autoencoding())
    assert not torch.equal(before, stage.net.codebook)
    stage.net.codebook.copy_(before)
    z = stage.encode(x).mean
    code = before[torch.cdist(z, before).argmin(1)]
    wanted = -stage.log_likelihood(x, z).mean() + 0.25 * (z - code).square().sum(1).mean()
    assert float(got) == pytest.approx(float(wanted.detach()), rel=1e-5)
    stage.eval()  # neither validation nor encoding moves the codebook
    settled_at = stage.net.codebook.clone()
    z0 = stage.from_data(x)
    scoresde.Autoencoding()(stage.net, stage, z0, z0, z0[:, 0], {}, 1.0, generator())
    assert torch.equal(settled_at, stage.net.codebook)


def test_the_straight_through_gradient_is_the_identity_exactly() -> None:
    net = VQ((1, 4, 4), latent=(2, 2, 2), codes=8, channels=4)
    z = torch.randn(3, 2, 2, 2, generator=generator(), requires_grad=True)
    quantized, _ = net.quantized(z)
    out = StraightThrough.apply(z, quantized)
    assert torch.equal(out, quantized)
    decoded = net.decoder(out)
    weight = torch.randn(decoded.shape, generator=generator(1))
    (ours,) = torch.autograd.grad((decoded * weight).sum(), z)
    leaf = quantized.clone().requires_grad_()
    (theirs,) = torch.autograd.grad((net.decoder(leaf) * weight).sum(), leaf)
    assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_fit_stage_finds_sixteen_clusters_by_sixteen_codes() -> None:
    """The data have a perplexity of 15.98; with unused codes put on any latent it is 15.4."""
    torch.manual_seed(0)
    g = generator(0)
    axis = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    labels = torch.randint(16, (4000,), generator=g)
    x = torch.cartesian_prod(axis, axis)[labels] + 0.05 * torch.randn(4000, 2, generator=g)
    stage = scoresde.first_stage("vq", shape=(2,), latent=(2,), codes=16, width=32)
    scoresde.fit_stage(stage, x, steps=1500, batch_size=128, validation=None, progress=False)
    codes = stage.networks()[0].quantized(stage.encode(x).mean)[1]
    pairs = torch.stack([labels, codes.flatten()], 1).unique(dim=0)
    assert len(pairs) == 16
    assert len(pairs[:, 1].unique()) == 16
    assert stage.perplexity == pytest.approx(16, abs=0.1)
    assert float((stage.reconstruct(x) - x).square().mean().sqrt()) < 0.1


def test_a_diverged_codebook_is_told_by_the_loss() -> None:
    stage = scoresde.first_stage("vq", shape=(6,), latent=(2,), codes=16, width=16)
    x = torch.randn(300, 6, generator=generator())
    with pytest.raises(scoresde.TrainingError, match="the loss is"):
        scoresde.fit_stage(stage, x, lr=1e4, steps=200, progress=False)


def _rank(rank: int, file: str, parts: list[Tensor], found: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    net = codebook(decay=0.9, revive=0.95)
    torch.manual_seed(rank)
    settled(net, parts[rank])
    found[rank] = {k: v.tolist() for k, v in net.state_dict().items() if "coder" not in k}
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_share_one_codebook(tmp_path: Path) -> None:
    z = torch.randn(30, 2, generator=generator(8)) + 3
    with torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        torch.multiprocessing.spawn(
            _rank, (str(tmp_path / "meet"), [z[:10], z[10:]], found), nprocs=2
        )
        first, second = found[0], found[1]
    assert first == second
    whole = codebook(decay=0.9, revive=0.0)
    settled(whole, z)
    live = whole.count >= 0.95
    assert bool(live.any())
    for name in ("codebook", "sum", "count"):
        ours = torch.tensor(first[name])[live]
        torch.testing.assert_close(ours, getattr(whole, name)[live])


class Still(VAE):
    """Without the noise of z, which each rank draws for itself."""

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Any:
        return super().forward(x, None)


STILL = {
    "vq": lambda: VQ((2,), latent=(2,), codes=4, width=4, decay=0.9, revive=0.0),
    "vae": lambda: Still((2,), latent=(2,), width=4),
}


def _trained(backend: Any = None) -> dict[str, Any]:
    """Both kinds of stage after 20 steps of global batches of 32."""
    found = {}
    for name, made in STILL.items():
        stage = scoresde.FirstStage(made(), shape=(2,))
        how: dict[str, Any] = {"steps": 20, "batch_size": 32, "progress": False, "lr": 1e-2}
        x = torch.randn(200, 2, generator=generator(9))
        scoresde.fit_stage(stage, x, generator=generator(3), backend=backend, **how)
        found |= {f"{name}.{key}": value for key, value in stage.state_dict().items()}
    return found


def _fitted(rank: int, file: str, folder: str) -> None:
    import accelerate

    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= own | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    torch.manual_seed(rank)
    torch.save(_trained(accelerate.Accelerator(cpu=True)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_train_one_stage(tmp_path: Path) -> None:
    """After T steps of global batches of 32, counts add up to γ^T·4 + (1 − γ^T)·32; weights,
    averages and codebook are those of one process, which has the same rows in every batch."""
    pytest.importorskip("accelerate")
    torch.multiprocessing.spawn(_fitted, (str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    total = 0.9**20 * 4 + (1 - 0.9**20) * 32
    assert float(first["vq.net.count"].sum()) == pytest.approx(total, rel=1e-5)
    torch.manual_seed(0)
    alone = _trained()
    assert alone.keys() == first.keys()
    moved = False
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6, msg=name)
        moved = moved or (
            "ema" in name and not torch.equal(value, alone[name.replace("ema", "net")])
        )
    assert moved


# ------------------------------------------------------------------------------- fit and files


@pytest.mark.parametrize("name", ["vae", "vq"])
def test_a_stage_is_resumed_bit_for_bit_and_loaded_as_one(name: str, tmp_path: Path) -> None:
    def made() -> Any:
        torch.manual_seed(0)
        return scoresde.first_stage(name, shape=(4,), latent=(2,), width=8)

    x = torch.randn(300, 4, generator=generator())
    how: dict[str, Any] = {"batch_size": 32, "progress": False, "validation": x[:50]}

    def run(stage: Any, folder: str, steps: int, resume: bool = False) -> None:
        kept = scoresde.Checkpoints(tmp_path / folder, every=5, resume=resume)
        scoresde.fit_stage(stage, x, steps=steps, checkpoints=kept, generator=generator(2), **how)

    whole = made()
    run(whole, "whole", 20)
    stage = made()
    settle = stage.net.settle
    calls = []

    def killed(code: Any) -> None:
        calls.append(code)
        if len(calls) == 14:
            raise InterruptedError
        settle(code)

    stage.net.settle = killed
    with pytest.raises(InterruptedError):
        run(stage, "parts", 20)
    stage = made()
    run(stage, "parts", 20, resume=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(stage.state_dict()[key], value), key
    loaded = scoresde.load(tmp_path / "parts")
    assert type(loaded) is scoresde.FirstStage
    assert torch.equal(loaded.reconstruct(x), whole.reconstruct(x))
    again = scoresde.load(scoresde.save(whole, tmp_path / "saved"))
    assert again.latent == (2,)
    assert torch.equal(again.encode(x).mean, whole.encode(x).mean)


def test_wrong_arguments_are_refused_in_a_sentence() -> None:
    stage = scoresde.first_stage("vae", shape=(4,), latent=(2,), width=8)
    x = torch.randn(30, 4, generator=generator())
    cases: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "sample needs a ScoreSDE, got FirstStage: write stage.reconstruct", lambda:
            scoresde.sample(stage)),
        (TypeError, "fit_stage takes a FirstStage, got ScoreSDE", lambda:
            scoresde.fit_stage(scoresde.build("vp", "mlp", shape=(4,)), x)),
        (TypeError, "fit_stage has its own objective", lambda:
            scoresde.fit_stage(stage, x, objective="denoising")),
        (ValueError, "kl is at least 0", lambda: scoresde.fit_stage(stage, x, kl=-1.0)),
        (ValueError, "free_bits", lambda: scoresde.fit_stage(stage, x, free_bits=math.nan)),
        (TypeError, "extra is a function", lambda: scoresde.fit_stage(stage, x, extra=1.0)),
        (ValueError, "z has shape (30, 4), wanted (batch, 2)", lambda: stage.decode(x)),
        (ValueError, "wanted as many axes", lambda:
            scoresde.first_stage("vae", shape=(1, 8, 8), latent=(4,))),
        (ValueError, "the same power of two", lambda:
            scoresde.first_stage("vae", shape=(1, 8, 8), latent=(4, 3, 3))),
        (ValueError, "latent=() of samples (4,): wanted as many axes, such as (4,)", lambda:
            scoresde.first_stage("vae", shape=(4,), latent=())),
        (ValueError, "latent=() of samples (1, 8, 8)", lambda:
            scoresde.first_stage("vq", shape=(1, 8, 8), latent=())),
        (ValueError, "got shape=()", lambda: scoresde.first_stage("vae", shape=(), latent=())),
        (ValueError, "got shape=(1, 2, 2, 2, 2)", lambda:
            scoresde.first_stage("vq", shape=(1, 2, 2, 2, 2), latent=(1, 1, 1, 1, 1))),
        (ValueError, "with patch=3: patch= divides each size of a sample, and 3 does not", lambda:
            scoresde.first_stage("vae", shape=(1, 8, 8), latent=(2, 3, 3), patch=3)),
        (TypeError, "a FirstStage is fitted to tensors or arrays, got a Table", lambda:
            scoresde.fit_stage(stage, scoresde.Table(x, bounds={"x0": (-9, None)}))),
        (TypeError, "a FirstStage is fitted to tensors or arrays, got a Table", lambda:
            scoresde.fit(stage, x, validation=scoresde.Table(x))),
        (ValueError, "noise is greater than 0", lambda:
            scoresde.first_stage("vae", shape=(4,), latent=(2,), noise=0.0)),
        (ValueError, "decay", lambda:
            scoresde.first_stage("vq", shape=(4,), latent=(2,), decay=1.0)),
        (ValueError, "unknown first stage 'vea'. Did you mean 'vae'?", lambda:
            scoresde.first_stage("vea", shape=(4,))),
        (TypeError, "is a scoresde.StageNet, got Linear", lambda:
            scoresde.first_stage(nn.Linear(4, 4), shape=(4,))),
    ]  # fmt: skip
    for kind, text, call in cases:
        with pytest.raises(kind, match=re.escape(text)):
            call()
    assert Encoded(x, None).sample() is x


@pytest.mark.parametrize("name", ["vae", "vq"])
@pytest.mark.parametrize(
    ("shape", "latent", "patch"),
    [
        ((1, 7, 7), (2, 3, 3), 1),
        ((1, 8, 6), (2, 3, 3), 1),
        ((1, 2, 4, 4), (2, 2, 2), 1),
        ((1, 12), (2, 5), 3),
        ((3, 9, 9), (2,), 3),
        ((1, 8, 8), (), 1),
        ((4,), (2, 2), 1),
    ],
)
def test_the_latent_that_a_message_suggests_is_accepted(
    name: str, shape: tuple[int, ...], latent: tuple[int, ...], patch: int
) -> None:
    how: dict[str, Any] = {"channels": 8, "patch": patch}
    with pytest.raises(ValueError, match="such as") as caught:
        scoresde.first_stage(name, shape=shape, latent=latent, **how)
    found = re.findall(r"such as \(([\d, ]+)\)$", str(caught.value))
    suggested = tuple(int(n) for n in found[0].split(",") if n.strip())
    stage = scoresde.first_stage(name, shape=shape, latent=suggested, **how)
    x = torch.randn(2, *shape, generator=generator())
    assert stage.reconstruct(x).shape == x.shape


@pytest.mark.parametrize("levels", [7, 256])
def test_the_edges_of_bins_are_in_their_own_bins(levels: int) -> None:
    """Standardized and back, v/L may be rounded into another bin, or below 0."""
    v = torch.arange(float(levels))
    for seed in range(20):
        stage = scoresde.first_stage("vae", shape=(1,), latent=(2,), width=4, levels=levels)
        data = torch.rand(100, 1, generator=torch.Generator().manual_seed(seed))
        stage.standardize(data * torch.rand(1, generator=torch.Generator().manual_seed(seed)))
        z = torch.zeros(levels, 2)
        found = stage.log_likelihood((v / levels)[:, None], z)
        middle = stage.log_likelihood(((v + 0.5) / levels)[:, None], z)
        torch.testing.assert_close(found, middle, rtol=0, atol=1e-4)
        top = torch.nextafter(torch.ones(1, 1), torch.zeros(1, 1))
        torch.testing.assert_close(stage.log_likelihood(top, z[:1]), middle[-1:])
        with pytest.raises(ValueError, match="got x outside"):
            stage.log_likelihood(torch.full((1, 1), 1.01), z[:1])
