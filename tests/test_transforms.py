"""Transforms of training batches: their laws, their Jacobians, and that they leave everything else
alone.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import scoresde
from conftest import generator
from scoresde import transforms
from scoresde.data.transforms import (
    TRANSFORMS,
    Dequantize,
    Flip,
    Transform,
    apply,
    log_det,
    resolve,
)

SHAPES = [(5,), (4, 6), (3, 4, 6)]
IMAGES = [(4, 6), (1, 4, 6), (3, 5, 4), (2, 3, 4, 5)]


def images(n: int, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(256, (n, *shape), generator=generator(1), dtype=torch.int64).to(dtype)


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64])
def test_flip_gives_each_image_or_its_mirror_image(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = images(200, shape, dtype)
    y = Flip()(x, generator())
    assert y.dtype == dtype
    kept = (y == x).flatten(1).all(1)
    mirrored = (y == x.flip(-1)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert 0 < int(mirrored.sum()) < 200
    assert torch.equal(x, images(200, shape, dtype))  # the batch itself is left as it was


def test_flip_mirrors_with_probability_one_half_each_independently() -> None:
    """Binomial tests at level 1e-4, 3 of them: a false alarm in 3,000 seeds."""
    n = 20_000
    x = torch.tensor([[[0, 1]]]).expand(n, 1, 2)
    heads = Flip()(x, generator(2))[:, 0, 0]
    again = Flip()(x, generator(3))[:, 0, 0]
    for count in (heads, heads[1:] ^ heads[:-1], heads ^ again):
        assert stats.binomtest(int(count.sum()), len(count), 0.5).pvalue > 1e-4


@pytest.mark.parametrize("shape", [(), (7,)])
def test_flip_refuses_what_are_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="mirrors images"):
        Flip()(torch.zeros(3, *shape))


@pytest.mark.parametrize("levels", [2, 16, 256, 1000])
def test_dequantize_is_uniform_in_every_bin(levels: int) -> None:
    """Kolmogorov–Smirnov at level 1e-4 in 4 cases, a false alarm in 2,500 seeds; u and v are
    independent by Spearman's test.
    """
    v = torch.randint(levels, (20_000, 1), generator=generator(4))
    x = Dequantize(levels)(v, generator(5))
    assert torch.equal(scoresde.dequantize.Uniform(levels).values(x), v)
    u = (x.double() * levels - v).ravel().numpy()
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    assert stats.spearmanr(u, v.ravel().numpy()).pvalue > 1e-4


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.int64, torch.float32, torch.float64]
)
def test_dequantize_keeps_every_value_in_its_bin_and_below_one(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where u comes out as the least or the greatest number that float32 has in [0, 1]."""
    v = torch.arange(256).to(dtype)[:, None]
    for u in (0.0, 1 - 2**-24, 1.0):
        monkeypatch.setattr(
            torch, "rand", lambda shape, u=u, dtype=None, **_: torch.full(shape, u, dtype=dtype)
        )
        x = Dequantize()(v)
        assert x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal((x * 256).floor().long(), v.long())
        assert float(x.max()) < 1


def test_dequantize_refuses_what_are_no_such_integers() -> None:
    for bad in (torch.tensor([[256]]), torch.tensor([[-1]]), torch.tensor([[0.5]])):
        with pytest.raises(ValueError, match="integers from 0 to 255"):
            Dequantize()(bad)
    with pytest.raises(ValueError, match="integers from 0 to 15, got 16"):
        Dequantize(16)(torch.tensor([[16]], dtype=torch.uint8))
    with pytest.raises(ValueError, match="levels is at least 2"):
        Dequantize(1)


@pytest.mark.parametrize("name", list(TRANSFORMS))
@pytest.mark.parametrize("shape", IMAGES)
def test_log_det_is_that_of_the_jacobian_at_fixed_noise(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By autograd, with the noise fixed by the generator, and without the check of integers, which
    has no derivative.
    """
    transform = TRANSFORMS.build(name)
    monkeypatch.setattr(scoresde.dequantize.Uniform, "_accept", lambda self, values: values)
    x = images(1, shape, torch.float64)
    for seed in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, seed=seed: transform(x, generator(seed)), x
        )
        d = math.prod(shape)
        found = torch.linalg.slogdet(jacobian.reshape(d, d)).logabsdet
        assert float(found) == pytest.approx(transform.log_det(shape), rel=1e-12)
    assert log_det([transform] * 2, shape) == 2 * transform.log_det(shape)


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_the_generator_decides_and_what_is_drawn_does_not_depend_on_the_data(name: str) -> None:
    transform = TRANSFORMS.build(name)
    g, h, other = generator(7), generator(7), generator(8)
    x = images(50, (1, 4, 4))
    first = transform(x, g)
    assert torch.equal(first, transform(x, h))
    transform(255 - x, generator(7))
    assert torch.equal(g.get_state(), h.get_state())
    assert not torch.equal(first, transform(x, other))
    assert not torch.equal(first, transform(x, g))
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        transform(x, g)
        assert torch.equal(
            before, torch.get_rng_state()
        )  # with a generator torch's own is left alone


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_no_sample_depends_on_its_mates_and_rows_stay_in_place(name: str) -> None:
    """Row i of T(x) is a function of row i of x, so labels stay with their samples."""
    transform = TRANSFORMS.build(name)
    x = images(30, (1, 4, 4))
    y = x.clone()
    y[7] = 255 - y[7]
    changed = (transform(x, generator()) != transform(y, generator())).flatten(1).any(1)
    assert changed.nonzero().ravel().tolist() == [7]


def test_apply_goes_in_order_and_hands_on_one_generator() -> None:
    x = images(40, (3, 4, 4))
    g = generator(9)
    flipped = Flip()(x, g)
    wanted = Dequantize()(flipped, g)
    assert torch.equal(apply(resolve(("flip", "dequantize")), x, generator(9)), wanted)
    sums = apply(resolve(("flip", "dequantize")), x, generator(9)).mul(256).floor().sum((1, 2, 3))
    assert torch.equal(
        sums.long(), x.long().sum((1, 2, 3))
    )  # each row is still the same image, so its label is right
    assert apply((), torch.ones(2, 2)).tolist() == [[1, 1], [1, 1]]


def test_a_uniform_image_has_eight_bits_whatever_the_transforms() -> None:
    """−(log p + log|det|)/(D·log 2) with p = 1 on the unit cube, the density of dequantized
    uniform bytes: exactly 8.
    """
    shape = (1, 8, 8)
    nats = math.prod(shape) * math.log(2)
    assert -log_det(resolve(("flip", "dequantize")), shape) / nats == pytest.approx(8, rel=1e-15)
    _, log_q = scoresde.dequantize.Uniform(256).noisy(images(1, shape))
    assert float(log_q) == pytest.approx(-log_det(resolve("dequantize"), shape), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_refused_unless_dequantized(dtype: torch.dtype) -> None:
    x = torch.ones(2, 3, 3, dtype=dtype)
    for given in ((), ("flip",)):
        with pytest.raises(
            TypeError, match=rf"integers \({dtype}\).*transforms=\('dequantize',\)"
        ):
            apply(resolve(given), x)
    assert apply(resolve("flip"), x.float()).dtype == torch.float32


def test_resolve_says_what_there_is() -> None:
    assert resolve("flip") == resolve(Flip()) == resolve(["flip"]) == (Flip(),)
    assert resolve(("flip", Dequantize(16))) == (Flip(), Dequantize(16))
    with pytest.raises(ValueError, match=r"unknown transform 'filp'. Did you mean 'flip'\?"):
        resolve(("filp",))
    with pytest.raises(ValueError, match="dequantized once"):
        resolve(("dequantize", "dequantize"))
    for bad in (3, (3,), (Flip,), None):
        with pytest.raises(TypeError, match="transform"):
            resolve(bad)  # type: ignore[arg-type]


def test_users_register_their_own() -> None:
    @TRANSFORMS.register("test_rotate")
    class Rotate(Transform):
        def __init__(self, times: int = 1) -> None:
            self.times = times

        def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return x.rot90(self.times, (-2, -1))

        def log_det(self, shape: tuple[int, ...]) -> float:
            return 0.0

    try:
        x = torch.rand(2, 1, 4, 4)
        assert torch.equal(apply(resolve(("test_rotate", Rotate(3))), x), x)
        assert (TRANSFORMS.name_of(Rotate(3)), TRANSFORMS.options_of(Rotate(3))) == (
            "test_rotate",
            {"times": 3},
        )
    finally:
        TRANSFORMS.remove("test_rotate")
    assert TRANSFORMS.options_of(transforms.Dequantize(16)) == {"levels": 16}


def test_a_mirror_image_does_not_go_with_a_condition_that_has_pixels() -> None:
    """It would mirror x alone. At the door of fit, of tables and of datasets; numbers and labels
    are free to come along.
    """
    sde = scoresde.build(
        "vp",
        "unet",
        shape=(1, 4, 4),
        channels=4,
        multipliers=(1,),
        blocks=1,
        image=1,
        vector=2,
        classes=2,
    )
    x, vector, y = torch.rand(8, 1, 4, 4), torch.rand(8, 2), torch.arange(8) % 2
    few: dict[str, Any] = {"steps": 1, "batch_size": 4, "progress": False}
    with pytest.raises(
        ValueError,
        match=r"Flip\(\) moves pixels and would leave those of the condition 'image' "
        r"\(8, 1, 4, 4\)",
    ):
        scoresde.fit(sde, x, given={"image": x}, transforms="flip", **few)
    with pytest.raises(
        ValueError,
        match=r"Flip\(\) moves pixels and would leave those of the condition 'image' "
        r"\(4, 1, 4, 4\)",
    ):
        scoresde.fit(
            sde,
            torch.utils.data.DataLoader([(v, {"image": v}) for v in x], 4),
            transforms="flip",
            **few,
        )
    scoresde.fit(sde, x, given={"vector": vector, "y": y}, transforms="flip", **few)
    scoresde.fit(sde, (255 * x).byte(), given={"image": x}, transforms="dequantize", **few)
