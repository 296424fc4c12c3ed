"""Networks that diffusers trained on a chain, against diffusers' own pipelines and schedulers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import scoresde
from conftest import generator, rotated
from scoresde import DDPM

diffusers = pytest.importorskip("diffusers")

BLOCKS: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
RULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
PREDICTED = {"epsilon": "eps", "v_prediction": "v_arc", "sample": "x0"}


def network(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(**BLOCKS | options).eval()


def chain(rule: str = "linear", predicted: str = "epsilon", **options: Any) -> Any:
    """A scheduler whose steps are those of our grids; the noise is weak, so that errors of a
    random network are not magnified by 1/α(1) = 160.
    """
    end = 0.02 if predicted != "epsilon" else 0.002
    return diffusers.DDIMScheduler(
        beta_schedule=rule,
        beta_end=end,
        prediction_type=predicted,
        clip_sample=False,
        timestep_spacing="trailing",
        **options,
    )


def noise(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=generator())


@torch.no_grad()
def ddim(net: Any, scheduler: Any, x: Tensor, steps: int, **given: Tensor) -> Tensor:
    """Samples by diffusers' own steps."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t, **given).sample, t, x).prev_sample
    return x


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_levels_are_those_of_the_scheduler(rule: str, zero_snr: bool) -> None:
    """To 1e-6: its products of 1,000 numbers are in float32."""
    theirs = diffusers.DDPMScheduler(beta_schedule=rule, rescale_betas_zero_snr=zero_snr)
    process = DDPM(rule, zero_snr=zero_snr)
    t = process.ddpm_times()
    alpha_bar = theirs.alphas_cumprod.double()
    torch.testing.assert_close(process.alpha(t)[1:] ** 2, alpha_bar, rtol=0, atol=1e-6)
    torch.testing.assert_close(process.sigma(t)[1:] ** 2, 1 - alpha_bar, rtol=0, atol=1e-6)
    torch.testing.assert_close(process.time(process.phi(t)), t, rtol=0, atol=1e-14)
    assert process.ends_in_noise == zero_snr


def test_a_linear_chain_is_the_discrete_vp_of_its_own_class() -> None:
    vp = scoresde.VPSDE()
    alpha = vp.alpha(vp.ddpm_times(1000))
    process = DDPM("linear")
    torch.testing.assert_close(process.alpha(process.ddpm_times()), alpha, rtol=1e-12, atol=0)
    beta = (1 - (alpha[1:] / alpha[:-1]) ** 2).tolist()
    trained = DDPM("trained", trained=beta)
    torch.testing.assert_close(trained.angles, process.angles, rtol=0, atol=1e-12)
    assert repr(trained) == "DDPM('trained', 1000 numbers)"


def test_derivatives_and_marginals_of_a_chain() -> None:
    """Between two levels by autograd, and log p of a mixture under the exact score of the chain."""
    process = DDPM("scaled_linear", 0.00085, 0.012)
    t = torch.rand(50, generator=generator(), dtype=torch.float64)
    for function, derivative in ((process.alpha, process.dalpha), (process.sigma, process.dsigma)):
        by_autograd = torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]
        torch.testing.assert_close(derivative(t), by_autograd)
    mixture = scoresde.toy.EightGaussians()
    sde = scoresde.oracle(mixture, process).double()
    x = mixture.sample(20, generator=generator(), dtype=torch.float64)
    # 0.02: the Gaussian prior, where the chain keeps α = 0.07 of the data
    assert float((scoresde.log_prob(sde, x) - mixture.log_prob(x)).abs().max()) < 0.02


@pytest.mark.parametrize(("rule", "predicted"), rotated(RULES[:3], PREDICTED))
def test_samples_are_those_of_diffusers(rule: str, predicted: str, tmp_path: Path) -> None:
    """Same noise, same DDIM samples, from a folder, and after our own save and load.

    To 1e-5. Where the network predicts x0, solvers end at φ = 1e-4 instead of 0, which leaves
    that much noise.
    """
    net, scheduler = network(), chain(rule, predicted)
    if rule == "squaredcos_cap_v2" and predicted == "epsilon":
        scheduler = chain("linear", predicted, trained_betas=np.linspace(1e-4, 2e-3, 1000))
    diffusers.DDIMPipeline(net, scheduler).save_pretrained(tmp_path / "theirs")
    sde = scoresde.from_diffusers(tmp_path / "theirs")
    again = scoresde.load(scoresde.save(sde, tmp_path / "ours"))
    assert sde.predict == PREDICTED[predicted]
    assert all(
        torch.equal(net.state_dict()[name], value)
        for name, value in again.net.model.state_dict().items()
    )
    x = noise()
    wanted = ddim(net, scheduler, x, 20)
    found = scoresde.solve(again, start=x, solver="ddim", steps=20, spacing="ddpm").x[-1]
    room = 1e-5 if predicted != "sample" else 1e-3
    torch.testing.assert_close(found, wanted, rtol=0, atol=room)


def test_samples_are_those_of_the_pipeline() -> None:
    """DDIMPipeline as a whole: images in [0, 1] from a generator's noise."""
    pipeline = diffusers.DDIMPipeline(network(), chain(predicted="v_prediction"))
    pipeline.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(5)
    images = pipeline(2, generator=draw, num_inference_steps=10, output_type="np").images
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    sde = scoresde.from_diffusers(pipeline)
    found = scoresde.solve(sde, start=x, solver="ddim", steps=10, spacing="ddpm").x[-1]
    found = (found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float(((found > 0) & (found < 1)).float().mean()) > 0.05
    np.testing.assert_allclose(found.numpy(), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [0, 1, 17, 499, 999])
def test_the_noise_that_is_predicted_is_the_same(step: int) -> None:
    """At every level, in float32, whose times are no exact multiples of 1/T; and between two."""
    net = network()
    sde = scoresde.from_diffusers((net, chain()))
    x = noise()
    with torch.no_grad():
        wanted = net(x, step).sample
        between = net(x, torch.tensor(step + 0.25)).sample
        _, found = sde.denoise(x, (step + 1) / 1000)
        _, later = sde.denoise(x, min(1.0, (step + 1.25) / 1000))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    if step < 999:
        torch.testing.assert_close(later, between, rtol=0, atol=1e-4)


def test_ancestral_sampling_is_their_ddpm() -> None:
    """Algorithm 2 with the same draws, all T levels of a chain of 50."""
    net = network()
    theirs = diffusers.DDPMScheduler(50, beta_end=0.02, clip_sample=False)
    beta = torch.linspace(1e-4, 0.02, 50, dtype=torch.float64)
    theirs.alphas_cumprod = torch.cumprod(1 - beta, 0)  # theirs are in float32
    theirs.one = torch.ones((), dtype=torch.float64)
    sde = scoresde.from_diffusers((net, theirs))
    x, draws = noise(), torch.randn(50, 2, 3, 8, 8, generator=generator(9))
    wanted = x
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        place = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
        for i, t in enumerate(theirs.timesteps):
            patch.setattr(place, lambda *a, i=i, **k: draws[i])
            wanted = theirs.step(net(wanted, t).sample, t, wanted).prev_sample
    from scoresde.sampling.plan import plan
    from scoresde.sampling.problem import levels, problem

    made = plan(sde, "ancestral", 50, "ddpm", {})
    at = [0]
    task = problem(sde, levels(sde, made.times), False, lambda: draws[at[0]].flatten(1))
    z = x.flatten(1)
    with torch.no_grad():
        for i in range(50):
            at[0] = i
            z = made.solver.step(task, z, i)
    torch.testing.assert_close(z.reshape_as(x), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("unlabeled", [False, True])
def test_labels_of_a_class_conditional_network(unlabeled: bool, tmp_path: Path) -> None:
    net, scheduler = network(num_class_embeds=4), chain(predicted="v_prediction")
    net.save_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    sde = scoresde.from_diffusers(tmp_path, unlabeled=unlabeled)
    x, y = noise(), torch.tensor([2, 0])
    wanted = ddim(net, scheduler, x, 10, class_labels=y)
    how: dict[str, Any] = {"start": x, "solver": "ddim", "steps": 10, "spacing": "ddpm"}
    found = scoresde.solve(sde.given(y=y), **how).x[-1]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    if unlabeled:
        none = ddim(net, scheduler, x, 10, class_labels=torch.tensor([3, 3]))
        found = scoresde.solve(sde.given(), **how).x[-1]
        torch.testing.assert_close(found, none, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="run from 0 to 2"):
            sde.given(y=3)
        assert scoresde.classifier_free(sde.given(y=y), 2.0) is not None
        return
    last = ddim(net, scheduler, x, 10, class_labels=torch.tensor([3, 3]))
    found = scoresde.solve(sde.given(y=3), **how).x[-1]
    torch.testing.assert_close(found, last, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"always with y: write sde.given\(y=...\)"):
        scoresde.solve(sde.given(), **how)


def test_what_was_imported_can_be_scored_and_trained_further() -> None:
    sde = scoresde.from_diffusers((network(), chain()), shape=(3, 4, 4))
    x = torch.randn(6, 3, 4, 4, generator=generator())
    before = sde.net.model.conv_in.weight.clone()
    how = {"steps": 4, "trace": "hutchinson", "solver": "heun"}
    assert bool(scoresde.log_prob(sde, x, generator=generator(), **how).isfinite().all())
    scoresde.fit(sde, x, steps=3, batch_size=2, validation=None)
    assert not torch.equal(before, sde.net.model.conv_in.weight)
    assert float(sde.scale[0]) == 1.0  # images in [−1, 1] stay as they are


def wrong_folder(where: Path, what: str) -> Path:
    """A folder with one thing wrong."""
    net, scheduler = network(), chain()
    if what == "channels":
        net = network(out_channels=6)
    if what == "waves":
        net = network(time_embedding_type="fourier")
    net.save_pretrained(where, safe_serialization=what != "pickle")
    scheduler.save_pretrained(where)
    about = where / "scheduler_config.json"
    config = json.loads(about.read_text())
    if what == "chain":
        config["beta_schedule"] = "lineer"
    if what == "flow":
        config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    if what == "prediction":
        config["prediction_type"] = "flow"
    about.write_text(json.dumps(config))
    if what == "no chain":
        about.unlink()
    if what == "model":
        (where / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    if what in ("lost", "left over"):
        file = where / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        moved = tensors.pop("conv_in.weight")
        if what == "left over":
            tensors |= {"conv_in.weight": moved, "none.weight": moved.clone()}
        save_file(tensors, file)
    if what == "json":
        (where / "config.json").write_text("{")
    return where


SAID = {
    "pickle": (FileNotFoundError, r"diffusion_pytorch_model.bin, a pickle, which can run code"),
    "chain": (ValueError, "unknown beta_schedule 'lineer'. Did you mean 'linear'"),
    "flow": (ValueError, "FlowMatchEulerDiscreteScheduler has no chain of β"),
    "prediction": (ValueError, "unknown prediction_type 'flow'"),
    "no chain": (FileNotFoundError, "has no scheduler_config.json"),
    "model": (TypeError, "holds a UNet2DConditionModel, and from_diffusers takes a UNet2DModel"),
    "channels": (ValueError, "takes 3 channels and returns 6: one that learns a variance"),
    "waves": (ValueError, "time_embedding_type='fourier' is not read"),
    "json": (ValueError, "config.json is not JSON"),
    "lost": (ValueError, "are not of the network .* lack conv_in.weight, one of 1"),
    "left over": (ValueError, "beside the network's, none.weight, one of 1"),
}


@pytest.mark.parametrize("what", list(SAID))
def test_what_is_not_read_is_said_in_one_sentence(what: str, tmp_path: Path) -> None:
    error, said = SAID[what]
    with pytest.raises(error, match=said):
        scoresde.from_diffusers(wrong_folder(tmp_path, what))


def test_bad_arguments_are_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere"):
        scoresde.from_diffusers("nowhere")
    with pytest.raises(TypeError, match=r"a folder, a pipeline, or \(unet, scheduler\), got int"):
        scoresde.from_diffusers(3)
    with pytest.raises(ValueError, match="unlabeled= takes the last of a table of classes"):
        scoresde.from_diffusers((network(), chain()), unlabeled=True)
    with pytest.raises(ValueError, match=r"names no sample_size: give shape=\(C, H, W\)"):
        scoresde.from_diffusers((network(sample_size=None), chain()))
    with pytest.raises(ValueError, match="takes 3 channels, and shape"):
        scoresde.from_diffusers((network(), chain()), shape=(1, 8, 8))
    for values in (0.1, "abc", [[0.1]], [0.1, "a"]):
        with pytest.raises(TypeError, match="trained is a sequence of numbers"):
            scoresde.from_diffusers((network(), chain().config | {"trained_betas": values}))
    with pytest.raises(ValueError, match="unknown beta_schedule"):
        scoresde.from_diffusers((network(), chain().config | {"beta_schedule": ["linear"]}))
    with pytest.raises(ValueError, match="eps"):  # ε where nothing but noise is left
        scoresde.from_diffusers((network(), chain(rescale_betas_zero_snr=True)))
    for options, said in (
        ({"betas": "linaer"}, "Did you mean 'linear'"),
        ({"betas": "trained"}, "the numbers trained= go with betas='trained'"),
        ({"betas": "linear", "beta_end": 1.5}, "beta_end"),
        ({"betas": "trained", "trained": [0.1, 1.0]}, "every β lies between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=said):
            DDPM(**options)
    sde = scoresde.oracle(scoresde.toy.EightGaussians(), DDPM("linear", steps=50))
    with pytest.raises(ValueError, match="divides 50, got 7"):
        scoresde.sample(sde, 2, steps=7, spacing="ddpm")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"needs diffusers: pip install scoresde\[diffusers\]"):
        scoresde.from_diffusers("anywhere")
