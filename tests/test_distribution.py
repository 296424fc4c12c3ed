"""A model as a torch distribution: shapes, batches of conditions, and the things that take
distributions.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import MIXTURES, generator
from scoresde import ScoreSDE


def law(**how: object) -> scoresde.Distribution:
    return scoresde.Distribution(
        scoresde.oracle(MIXTURES["8 Gaussians"], scoresde.RectifiedFlow()).double(), **how
    )


def test_log_prob_of_any_sample_shape_is_the_models() -> None:
    mixture = MIXTURES["8 Gaussians"]
    d = law(rtol=1e-8, atol=1e-8)
    assert (d.batch_shape, d.event_shape) == (torch.Size(), torch.Size((2,)))
    for shape in ((), (3,), (2, 3)):
        x = d.sample(shape)
        assert x.shape == (*shape, 2)
        torch.testing.assert_close(
            d.log_prob(x), mixture.log_prob(x.reshape(-1, 2)).reshape(shape), rtol=0, atol=1e-6
        )
    assert d.sample((0, 3)).shape == (0, 3, 2)
    assert d.log_prob(torch.zeros(0, 2, dtype=torch.float64)).shape == (0,)


def test_sampling_follows_torchs_seed() -> None:
    torch.manual_seed(5)
    first = law().sample((4,))
    torch.manual_seed(5)
    assert torch.equal(first, law().sample((4,)))


class Shifted(nn.Module):
    """x̂0 of N(m, 0) with m = (y, y): the law of condition y is a spike there, smoothed by the
    process's σ(0).
    """

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return y[:, None].to(x).expand_as(x)


def test_conditions_make_a_batch_of_laws() -> None:
    """For VE, x_0 given y is N(y, σ_min²): log p of a batch of laws, broadcast, expanded and made
    independent.
    """
    sde = ScoreSDE(
        scoresde.VESDE(sigma_min=0.5), Shifted(), shape=(2,), predict="x0", input_convention="raw"
    ).double()
    y = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    d = scoresde.Distribution(sde.given(y=y), rtol=1e-8, atol=1e-8)
    assert (d.batch_shape, d.event_shape) == (torch.Size((3,)), torch.Size((2,)))
    x = d.sample((4,))
    assert x.shape == (4, 3, 2)
    assert float((x - y[:, None]).abs().max()) < 0.5 * 5
    known = torch.distributions.Independent(
        torch.distributions.Normal(y[:, None].expand(3, 2), 0.5), 1
    )
    # the prior stands for N(y, σ_max² + …): a gap of y·z/σ_max and less
    torch.testing.assert_close(d.log_prob(x), known.log_prob(x), rtol=0, atol=0.3)
    single = torch.stack(
        [
            scoresde.Distribution(sde.given(y=v), rtol=1e-8, atol=1e-8).log_prob(x[:, i])
            for i, v in enumerate(y)
        ],
        1,
    )
    torch.testing.assert_close(d.log_prob(x), single, rtol=0, atol=1e-6)
    one = torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(d.log_prob(one), d.log_prob(one.expand(3, 2)), rtol=0, atol=1e-12)
    wide = d.expand((4, 3))
    assert wide.sample().shape == (4, 3, 2)
    torch.testing.assert_close(wide.log_prob(x), d.log_prob(x), rtol=0, atol=1e-9)
    joint = torch.distributions.Independent(d, 1)
    torch.testing.assert_close(joint.log_prob(x), d.log_prob(x).sum(1), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_it_can_be_transformed_and_differentiated() -> None:
    base = law(rtol=1e-7, atol=1e-7)
    scaled = torch.distributions.TransformedDistribution(
        base, [torch.distributions.AffineTransform(1.0, 2.0, event_dim=1)]
    )
    x = scaled.sample((5,))
    wanted = MIXTURES["8 Gaussians"].log_prob((x - 1) / 2) - 2 * torch.tensor(2.0).log()
    torch.testing.assert_close(scaled.log_prob(x), wanted, rtol=0, atol=1e-6)
    y = (
        MIXTURES["8 Gaussians"]
        .sample(5, generator=generator(), dtype=torch.float64)
        .requires_grad_()
    )
    (gradient,) = torch.autograd.grad(base.log_prob(y).sum(), y)
    (truth,) = torch.autograd.grad(MIXTURES["8 Gaussians"].log_prob(y).sum(), y)
    torch.testing.assert_close(gradient, truth, rtol=0, atol=1e-4)


def test_bad_values_and_models_are_refused() -> None:
    with pytest.raises(TypeError, match="Distribution needs a ScoreSDE"):
        scoresde.Distribution(scoresde.VPSDE())
    with pytest.raises(ValueError, match="'em' is stochastic"):
        law(solver="em")
    with pytest.raises(ValueError, match="unknown trace"):
        law(trace="exct")
    with pytest.raises((TypeError, ValueError), match="rtoll"):
        law(rtoll=1.0)
    with pytest.raises(ValueError, match="shape"):
        law().log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"within the support|NaN or infinite"):
        law().log_prob(torch.tensor([[float("nan"), 0.0]]))
    with pytest.raises(ValueError, match="shape"):
        law(validate_args=False).log_prob(torch.zeros(4, 3))


LACKING = {
    "mean": ".mean(0)",
    "variance": ".var(0)",
    "stddev": ".std(0)",
    "mode": "argmax",
    "entropy": "log_prob",
}
LACKING |= {
    "perplexity": "exp()",
    "cdf": "<= value",
    "icdf": "quantile",
    "rsample": "differentiable=True",
}


@pytest.mark.parametrize("name", [*LACKING, "enumerate_support"])
def test_what_has_no_closed_form_says_what_to_write(name: str) -> None:
    with pytest.raises(NotImplementedError) as caught:
        _ = getattr(law(), name)(torch.zeros(2))
    assert f"no {name} in closed form" in str(caught.value)
    assert LACKING.get(name, "continuous") in str(caught.value)


def test_the_estimates_that_are_named_are_right() -> None:
    """Mean, spread and entropy of a Gaussian, from 2000 samples: within 5 standard errors, one
    false alarm in a million.
    """
    gaussian = scoresde.toy.GaussianMixture([[1.0, -2.0]], 0.5)
    torch.manual_seed(0)
    d = scoresde.Distribution(scoresde.oracle(gaussian, scoresde.RectifiedFlow()))
    x, error = d.sample((2000,)), 0.5 / 2000**0.5
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=5 * error)
    torch.testing.assert_close(x.std(0), torch.tensor([0.5, 0.5]), rtol=0, atol=5 * error / 2**0.5)
    assert (
        abs(float(-d.log_prob(x).mean(0)) - gaussian.entropy()) < 5 / 2000**0.5
    )  # log p of a 2-D Gaussian varies by 1
    assert float((x <= torch.tensor([1.0, -2.0])).all(-1).double().mean(0)) == pytest.approx(
        0.25, abs=5 * 0.0097
    )
    inside = (x.quantile(torch.tensor(0.5), dim=0) - torch.tensor([1.0, -2.0])).abs()
    assert bool((inside < 5 * 1.2533 * error).all())


@pytest.mark.parametrize("shape", [5, "ab", (1.5,), (-1,), (True,), None, (10**12,)])
def test_shapes_that_are_none_are_refused(shape: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"sample_shape|take at least"):
        law().sample(shape)
    with pytest.raises((TypeError, ValueError), match="batch_shape"):
        scoresde.Distribution(
            scoresde.build("vp", shape=(2,), classes=3).given(y=torch.tensor([0, 1, 2]))
        ).expand(shape)
