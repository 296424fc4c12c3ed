"""Measurements against other codes and matrices, and what `observe` refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import scoresde
from scoresde import measurements
from scoresde.guidance.measurements import (
    Blur,
    Denoise,
    Downsample,
    Inpaint,
    Linear,
    Measurement,
    PhaseRetrieval,
)

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 5, 7)])
@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_blur_along_one_axis_is_a_convolution(shape: tuple[int, ...], padding: str) -> None:
    """By numpy; of images the same kernel along both axes."""
    x = randn(3, *shape)
    kernel = np.array([0.5, 0.3, 0.1, 0.05, 0.05])

    def once(row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if padding == "zeros":
            return np.convolve(row, kernel, "same")
        return np.convolve(np.concatenate([row[-2:], row, row[:2]]), kernel, "valid")

    wanted = np.apply_along_axis(once, -1, x.numpy())
    if len(shape) == 3:
        wanted = np.apply_along_axis(once, -2, wanted)
    found = Blur(kernel, 0.1, padding=padding)(x)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


def test_blur_by_a_kernel_of_two_axes() -> None:
    x = randn(2, 3, 6, 5)
    kernel = randn(3, 5, seed=1)
    by_fft = torch.zeros(6, 5, dtype=F64)
    by_fft[:3, :5] = kernel
    by_fft = by_fft.roll((-1, -2), (0, 1))
    wanted = torch.fft.ifft2(torch.fft.fft2(x) * torch.fft.fft2(by_fft)).real
    torch.testing.assert_close(Blur(kernel, 0.1, padding="circular")(x), wanted)
    plain = F.conv2d(x.reshape(6, 1, 6, 5), kernel.flip(0, 1)[None, None], padding=(1, 2))
    torch.testing.assert_close(Blur(kernel, 0.1)(x), plain.reshape(x.shape))


def test_a_blur_of_a_width_is_a_gaussian() -> None:
    """Its moments, and the widths of two blurs add up in squares; wider than the signal too."""
    x = torch.zeros(1, 101, dtype=F64)
    x[0, 50] = 1
    at = torch.arange(101) - 50.0
    y = Blur(3, 0.1)(x)[0]
    assert float(y.sum()) == pytest.approx(1)
    assert float((y * at**2).sum()) == pytest.approx(9, rel=2e-3)
    twice = Blur(4.0, 0.1)(Blur(3, 0.1)(x))
    torch.testing.assert_close(twice, Blur(5.0, 0.1)(x), rtol=0, atol=1e-4)
    flat = Blur(50.0, 0.1, padding="circular")(randn(1, 7))
    assert flat.std() < 1e-5


def test_downsample_pools_and_phase_retrieval_transforms() -> None:
    image = randn(2, 3, 6, 4)
    torch.testing.assert_close(Downsample(2, 0.1)(image), F.avg_pool2d(image, 2))
    signal = randn(2, 3, 6)
    torch.testing.assert_close(Downsample(3, 0.1)(signal), F.avg_pool1d(signal, 3))
    torch.testing.assert_close(Downsample(3, 0.1)(signal[:, 0]), F.avg_pool1d(signal, 3)[:, 0])
    found = PhaseRetrieval(0.1)(image)
    padded = np.zeros((2, 3, 12, 8))
    padded[:, :, :6, :4] = image
    np.testing.assert_allclose(found, np.abs(np.fft.fft2(padded, norm="ortho")), atol=1e-12)
    torch.testing.assert_close(found.square().sum(), image.square().sum())  # Parseval
    torch.testing.assert_close(PhaseRetrieval(0.1)(-signal), PhaseRetrieval(0.1)(signal))


def linear_ones() -> list[tuple[Measurement, tuple[int, ...]]]:
    return [
        (Denoise(0.1), (3,)),
        (Inpaint(torch.tensor([True, False, True])), (3,)),
        (Inpaint(torch.tensor([[True, False, True, True]])), (2, 4)),
        (Linear(randn(5, 3), 0.1), (3,)),
        (Blur([1.0, 2.0, 0.0], 0.1), (2, 6)),
        (Blur(randn(3, 3), 0.1, padding="circular"), (1, 4, 4)),
        (Downsample(2, 0.1), (4, 4)),
    ]


@pytest.mark.parametrize("number", range(7))
def test_the_adjoint_of_a_linear_measurement(number: int) -> None:
    measurement, shape = linear_ones()[number]
    x = randn(4, *shape)
    y = measurement(x)
    w = randn(*y.shape, seed=1)
    pulled = measurement.adjoint(w, shape)
    assert pulled.shape == x.shape
    torch.testing.assert_close((y * w).flatten(1).sum(1), (x * pulled).flatten(1).sum(1))


def test_only_what_is_observed_counts_in_the_likelihood() -> None:
    mask = torch.tensor([True, False, True])
    x = randn(4, 3)
    y = randn(1, 3, seed=1)
    law = torch.distributions.Normal(x[:, mask], 0.3)
    found = Inpaint(mask, noise=0.3).log_likelihood(x, y)
    torch.testing.assert_close(found, law.log_prob(y[:, mask]).sum(1))


def test_accept_takes_one_y_for_all_or_a_row_each() -> None:
    sde = scoresde.build("vp", "mlp", shape=(3,))
    total = Measurement(lambda x: x.sum(1), noise=1.0, linear=True)  # y is a number
    assert total.accept(3, sde).shape == (1,)
    assert total.accept([3, 4], sde).shape == (2,)
    assert Denoise(1.0).accept(np.ones((5, 3), dtype=np.float32), sde).dtype == torch.float32
    nan = Inpaint([True, False, True]).accept([1.0, math.nan, 2.0], sde)
    torch.testing.assert_close(nan, torch.tensor([[1.0, 0.0, 2.0]], dtype=F64))


# ------------------------------------------------------------------ refused


def model(shape: tuple[int, ...] = (3,)) -> Any:
    return scoresde.build("vp", "mlp", shape=shape)


def frozen() -> Any:
    sde = model()
    sde.scale[1] = 0
    return sde


y3 = [0.0, 0.0, 0.0]
nan3 = [0.0, math.nan, 0.0]
REFUSED: dict[str, tuple[Any, str]] = {
    "y of another shape": (lambda: (model(), Denoise(1.0), [0.0, 0.0]), r"y has shape \(2,\)"),
    "y of too many axes": (lambda: (model(), Denoise(1.0), [[y3]]), r"wanted that, or \(n, 3\)"),
    "y without rows": (lambda: (model(), Denoise(1.0), torch.zeros(0, 3)), "y has shape"),
    "y a number": (lambda: (model(), Denoise(1.0), 0.0), r"y has shape \(\)"),
    "y of NaN": (lambda: (model(), Denoise(1.0), [y3, nan3]), "NaN or infinite values, in row 1"),
    "y infinite": (lambda: (model(), Denoise(1.0), [0.0, 0.0, math.inf]), "NaN or infinite"),
    "y of NaN where observed": (lambda: (model(), Inpaint([True] * 3), nan3), "NaN"),
    "y complex": (lambda: (model(), Denoise(1.0), torch.zeros(3) * 1j), "real numbers"),
    "y of words": (lambda: (model(), Denoise(1.0), ["a", "b", "c"]), "y is an array of"),
    "y None": (lambda: (model(), Denoise(1.0), None), "y is a tensor or array, got None"),
    "noise 0": (lambda: (model(), Denoise(0), y3), "noise is greater than 0"),
    "noise below 0": (lambda: (model(), Inpaint([True] * 3, -1), y3), "noise is at least 0"),
    "noise NaN": (lambda: (model(), Denoise(math.nan), y3), "noise is greater than 0"),
    "noise of each entry": (
        lambda: (model(), Denoise(torch.ones(3)), y3),
        r"one number for all of y, .* measure A\(x\)/noise, give y/noise, and say noise=1",
    ),
    "noises in a list": (lambda: (model(), Inpaint([True] * 3, [0.1] * 3), y3), "one number for"),
    "noise a word": (lambda: (model(), Denoise("1"), y3), "noise is a number"),
    "likelihood without noise": (
        lambda: (model(), Inpaint([True] * 3), y3, "likelihood"),
        "divides by noise²",
    ),
    "an unknown method": (lambda: (model(), Denoise(1.0), y3, "mmsp"), "Did you mean 'mmps'"),
    "a method that is none": (lambda: (model(), Denoise(1.0), y3, None), "unknown method"),
    "a plain function": (lambda: (model(), lambda x: x, y3), r"Measurement\(f, noise=0.1\)"),
    "a class": (lambda: (model(), Denoise, y3), "got the class Denoise"),
    "a matrix for a measurement": (lambda: (model(), torch.eye(3), y3), "one of scoresde.meas"),
    "a mask of another shape": (
        lambda: (model(), Inpaint([True, False]), [0.0, 0.0]),
        r"the mask has shape \(2,\), wanted \(3,\)",
    ),
    "a mask of too many axes": (lambda: (model(), Inpaint([[True] * 3]), y3), "the mask has"),
    "a mask of numbers": (lambda: (model(), Inpaint([1, 0, 1]), y3), "mask is of bool"),
    "a mask of nothing": (lambda: (model(), Inpaint([False] * 3), y3), "observes nothing"),
    "a mask of constants": (lambda: (frozen(), Inpaint([True] * 3), y3), "constant in this model"),
    "a matrix of another width": (
        lambda: (model(), Linear(torch.eye(2), 1.0), [0.0, 0.0]),
        "the matrix has 2 columns, and a sample 3",
    ),
    "a matrix of NaN": (lambda: (model(), Linear([nan3], 1.0), [0.0]), "NaN or infinite"),
    "a matrix of one axis": (lambda: (model(), Linear(y3, 1.0), [0.0]), r"shape \(m, n\)"),
    "a factor that does not divide": (
        lambda: (model(), Downsample(2, 1.0), [0.0]),
        "factor 2 does not divide 3",
    ),
    "a factor of 1": (lambda: (model(), Downsample(1, 1.0), y3), "factor is at least 2"),
    "a kernel of even size": (lambda: (model(), Blur([0.5, 0.5], 1.0), y3), "odd sizes"),
    "a width of 0": (lambda: (model(), Blur(0.0, 1.0), y3), "width of the blur is greater"),
    "a kernel of two axes on vectors": (
        lambda: (model(), Blur(torch.ones(3, 3), 1.0), y3),
        "two axes",
    ),
    "another padding": (lambda: (model(), Blur(1.0, 1.0, padding="reflect"), y3), "padding"),
    "oversample below 1": (lambda: (model(), PhaseRetrieval(1.0, 0.5), y3), "oversample"),
    "A without gradient": (
        lambda: (model(), Measurement(lambda x: x.detach(), 1.0), y3),
        "no gradient",
    ),
    "A of one number for all": (
        lambda: (model(), Measurement(lambda x: x.sum(), 1.0), 0.0),
        "a row for each",
    ),
    "A that mixes rows": (
        lambda: (model(), Measurement(lambda x: x - x.mean(0), 1.0), y3),
        "mixes rows",
    ),
    "A that fails": (
        lambda: (model(), Measurement(lambda x: x @ torch.eye(2), 1.0), y3),
        "fails: mat1 and mat2",
    ),
    "A of NaN": (
        lambda: (model(), Measurement(lambda x: (x - 9).log(), 1.0), y3),
        "not finite near the mean",
    ),
    "A complex": (lambda: (model(), Measurement(torch.fft.fft, 1.0), y3), "real numbers"),
    "A of numpy": (
        lambda: (model(), Measurement(lambda x: x.detach().numpy(), 1.0), y3),
        "real numbers, got ndarray",
    ),
    "A that is not linear": (
        lambda: (model(), Measurement(lambda x: x**2, 1.0, linear=True), y3),
        "says that it is linear",
    ),
    "A that is no function": (lambda: (model(), Measurement(3, 1.0), y3), "is a function"),
    "no model": (lambda: (torch.nn.Identity(), Denoise(1.0), y3), "observe"),
    "a complex matrix": (
        lambda: (model(), measurements.Linear([[1j, 0, 0]], 1.0), [0.0]),
        "matrix has dtype torch.complex",
    ),
    "a model without score": (
        lambda: (
            scoresde.ScoreSDE(
                scoresde.RectifiedFlow(), torch.nn.Identity(), shape=(3,), outcome="endpoint"
            ),
            Denoise(1.0),
            y3,
        ),
        "has learnt where the ODE ends|no score",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_refused_says_so_in_a_sentence(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message) as error:
        scoresde.observe(*arguments())
    assert "\n" not in str(error.value)


def test_rows_of_y_are_as_many_as_samples() -> None:
    ours = scoresde.observe(model(), Denoise(1.0), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="y has 4 rows for 5 samples"):
        scoresde.sample(ours, 5)
    assert scoresde.sample(ours, steps=3).shape == (4, 3)


def test_there_is_no_adjoint_of_a_nonlinear_measurement() -> None:
    with pytest.raises(TypeError, match="is not linear"):
        PhaseRetrieval(1.0).adjoint(torch.zeros(1, 3), (3,))
    with pytest.raises(ValueError, match="without noise"):
        Inpaint([True]).log_likelihood(torch.zeros(1, 1), torch.zeros(1, 1))
    assert measurements.Measurement is Measurement
